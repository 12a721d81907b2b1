//! The addresses of masters, as sentinels report them.
//!
//! Each sentinel has a task of its own: it subscribes `+switch-master`, and asks for every master
//! after each such message and once a second. Of all reports the one with the highest configuration
//! epoch wins: a new epoch goes to the master that a majority has voted for, so a partitioned
//! sentinel can only report the past. Reports of a sentinel that has not been reached for a while
//! expire, so that sentinels that were set up again, from epoch zero, are believed.
//!
//! Invariant: a sentinel that does not answer changes no master's address.

use crate::backplane::log_throttle::LogThrottle;
use crate::backplane::redis::connection::client::open_url;
use crate::backplane::redis::failure::classify::LinkUser;
use crate::backplane::redis::failure::{LinkError, Outage};
use crate::backplane::redis::topology::error::TopologyError;
use crate::metrics::servers::RedisSnapshot;
use crate::plan::{Login, RedisPlan};
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, PushKind, Value};
use std::collections::HashMap;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;

/// Interval at which a sentinel is asked.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// How long it may take to answer.
const TIMEOUT: Duration = Duration::from_secs(1);
/// How long a sentinel's report counts.
const REPORT_TTL: Duration = Duration::from_secs(5);
/// Reports in the channel. A task that finds it full waits.
const REPORTS_MAX: usize = 64;

/// A sentinel's report, or why there is none.
struct SentinelReport {
    sentinel: usize,
    what: Result<MasterReport, TopologyError>,
}

/// The address of a master.
#[derive(Clone, Debug, PartialEq, Eq)]
struct MasterReport {
    master: usize,
    epoch: u64,
    address: String,
}

/// What is known of a master.
#[derive(Default)]
struct Master {
    name: String,
    /// The last report of each sentinel, and its time.
    last_reports: HashMap<usize, (Instant, MasterReport)>,
    address: Option<String>,
}

/// What is known of a sentinel.
struct SentinelState {
    address: String,
    /// When it last reported a master.
    reported_at: Option<Instant>,
    /// Its last error.
    error: Option<TopologyError>,
    failures: LogThrottle,
}

impl SentinelState {
    fn is_answering(&self, now: Instant) -> bool {
        self.reported_at.is_some_and(|at| now.duration_since(at) < REPORT_TTL)
    }
}

/// Watches all sentinels. Owned by [`crate::backplane::redis::topology::Topology`].
pub(crate) struct Sentinels {
    sentinels: Vec<SentinelState>,
    login: Login,
    tls_ca_file: Option<String>,
    masters: Vec<Master>,
    /// Spawned at the first poll: they need a runtime.
    tasks: Vec<JoinHandle<()>>,
    reports: Option<mpsc::Receiver<SentinelReport>>,
}

impl Drop for Sentinels {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl Sentinels {
    /// Not connected. `login`: credentials for the sentinels; `masters`: the names of the masters.
    pub(crate) fn new(
        addresses: &[String],
        login: &Login,
        masters: Vec<String>,
        plan: &RedisPlan,
    ) -> Sentinels {
        let master = |name| Master { name, ..Master::default() };
        let sentinels = |address: &String| SentinelState {
            address: address.clone(),
            reported_at: None,
            error: None,
            failures: LogThrottle::default(),
        };
        Sentinels {
            sentinels: addresses.iter().map(sentinels).collect(),
            login: login.clone(),
            tls_ca_file: plan.tls_ca_file.clone(),
            masters: masters.into_iter().map(master).collect(),
            tasks: Vec::new(),
            reports: None,
        }
    }

    /// A master's index and its new address, when it has changed.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>, now: Instant) -> Option<(usize, String)> {
        let reports = self.reports.get_or_insert_with(|| {
            let (sender, receiver) = mpsc::channel(REPORTS_MAX);
            let names: Arc<[String]> = self.masters.iter().map(|it| it.name.clone()).collect();
            for (number, sentinels) in self.sentinels.iter().enumerate() {
                let url = self.login.url(&sentinels.address);
                let (ca, names) = (self.tls_ca_file.clone(), names.clone());
                self.tasks.push(tokio::spawn(watch(number, url, ca, names, sender.clone())));
            }
            receiver
        });
        while let Poll::Ready(Some(SentinelReport { sentinel, what })) = reports.poll_recv(cx) {
            let sentinels = &mut self.sentinels[sentinel];
            match what {
                Ok(last_reports) => {
                    sentinels.reported_at = Some(now);
                    let number = last_reports.master;
                    let master = &mut self.masters[number];
                    if let Some(address) = master.listen(sentinel, last_reports, now) {
                        return Some((number, address));
                    }
                }
                Err(error) => {
                    if let Some(suppressed) = sentinels.failures.is_due(now) {
                        let sentinel = &sentinels.address;
                        let what = "a sentinel reports no master";
                        tracing::warn!(sentinel, %error, suppressed, "{what}");
                    }
                    sentinels.error = Some(error);
                }
            }
        }
        None
    }

    /// Adds the sentinels that do not answer to the snapshot.
    pub(crate) fn describe(&self, now: Instant, picture: &mut RedisSnapshot) {
        let silent = self.sentinels.iter().filter(|sentinels| !sentinels.is_answering(now));
        let error =
            |sentinel: &SentinelState| sentinel.error.as_ref().map(TopologyError::to_string);
        let silent = silent.map(|sentinel| (sentinel.address.clone(), error(sentinel)));
        picture.unreachable_sentinels = silent.collect();
        let answering = self.sentinels.len() - picture.unreachable_sentinels.len();
        picture.deployment.sentinels_configured = Some(self.sentinels.len() as u64);
        picture.deployment.sentinels_answering = Some(answering as u64);
    }
}

impl Master {
    /// Takes a report. Returns the master's address if it has changed.
    fn listen(
        &mut self,
        sentinel: usize,
        last_reports: MasterReport,
        now: Instant,
    ) -> Option<String> {
        self.last_reports.insert(sentinel, (now, last_reports));
        self.last_reports.retain(|_, (at, _)| now.duration_since(*at) < REPORT_TTL);
        // Of several with the same epoch the current one: they are about to agree.
        let believed =
            |last_reports: &MasterReport| Some(&last_reports.address) == self.address.as_ref();
        let all = self.last_reports.values().map(|(_, last_reports)| last_reports);
        let best = all.max_by_key(|last_reports| (last_reports.epoch, believed(last_reports)))?;
        if believed(best) {
            return None;
        }
        let address = best.address.clone();
        tracing::info!(
            master = self.name,
            address,
            epoch = best.epoch,
            "sentinels report a new master address"
        );
        self.address = Some(address.clone());
        Some(address)
    }
}

/// Watches one sentinel for as long as the node lives.
async fn watch(
    sentinel: usize,
    url: String,
    tls_ca_file: Option<String>,
    masters: Arc<[String]>,
    reports: mpsc::Sender<SentinelReport>,
) {
    loop {
        let Err(error) = listen(sentinel, &url, tls_ca_file.as_deref(), &masters, &reports).await;
        if reports.send(SentinelReport { sentinel, what: Err(error) }).await.is_err() {
            return;
        }
        tokio::time::sleep(POLL_INTERVAL / 2).await;
    }
}

/// Returns only with an error.
async fn listen(
    sentinel: usize,
    url: &str,
    tls_ca_file: Option<&str>,
    masters: &[String],
    reports: &mpsc::Sender<SentinelReport>,
) -> Result<std::convert::Infallible, TopologyError> {
    let switched = Arc::new(Notify::new());
    let lost = Arc::new(Notify::new());
    let (on_switch, on_loss) = (switched.clone(), lost.clone());
    let config = AsyncConnectionConfig::new().set_response_timeout(Some(TIMEOUT)).set_push_sender(
        move |push: redis::PushInfo| {
            match push.kind {
                PushKind::Message => on_switch.notify_one(),
                PushKind::Disconnection => on_loss.notify_one(),
                _ => {}
            }
            Ok::<(), redis::aio::SendError>(())
        },
    );
    let opened = tokio::time::timeout(TIMEOUT, open_url(url, tls_ca_file, config));
    let (mut connection, _driver, user) =
        opened.await.map_err(|_| LinkError::from(Outage::Timeout("")))??;
    let failure = |error: redis::RedisError| user.failure(&error);
    connection.subscribe("+switch-master").await.map_err(failure)?;
    loop {
        // A master that it does not know hides no other.
        let mut unknown = None;
        for (master, name) in masters.iter().enumerate() {
            match ask(&mut connection, name, &user).await {
                Ok((epoch, address)) => {
                    let report = SentinelReport {
                        sentinel,
                        what: Ok(MasterReport { master, epoch, address }),
                    };
                    reports.send(report).await.map_err(|_| TopologyError::Ending)?;
                }
                Err(error) => {
                    let (name, error) = (name.clone(), Box::new(error));
                    unknown = Some(TopologyError::UnknownMaster { name, error });
                }
            }
        }
        if let Some(error) = unknown {
            return Err(error);
        }
        tokio::select! {
            () = switched.notified() => {}
            () = lost.notified() => {
                return Err(user.lost("it was closed").into());
            }
            () = tokio::time::sleep(POLL_INTERVAL) => {}
        }
    }
}

/// The epoch and address of a master.
///
/// During a failover `SENTINEL MASTER` of the leading sentinel has the new epoch and still the old
/// address, until every replica follows the new master; `GET-MASTER-ADDR-BY-NAME` has the new
/// address from the promotion on. The epoch is asked for first: an address may be newer than it,
/// never older.
async fn ask(
    connection: &mut MultiplexedConnection,
    name: &str,
    user: &LinkUser,
) -> Result<(u64, String), TopologyError> {
    let mut both = redis::pipe();
    both.cmd("SENTINEL").arg("MASTER").arg(name);
    both.cmd("SENTINEL").arg("GET-MASTER-ADDR-BY-NAME").arg(name);
    let answers = both.query_async(connection).await;
    let (fields, address): (Value, Value) = answers.map_err(|error| user.failure(&error))?;
    Ok((epoch(&fields)?, address_of(&address)?))
}

/// Parses `SENTINEL MASTER`: a map, or alternating names and values.
fn epoch(answer: &Value) -> Result<u64, TopologyError> {
    let fields: Option<HashMap<String, String>> = redis::from_redis_value_ref(answer).ok();
    let epoch = fields.as_ref().and_then(|fields| fields.get("config-epoch")?.parse().ok());
    epoch.ok_or(TopologyError::Incomplete("config-epoch"))
}

/// Parses `SENTINEL GET-MASTER-ADDR-BY-NAME`.
fn address_of(answer: &Value) -> Result<String, TopologyError> {
    let (ip, port): (String, String) = redis::from_redis_value_ref(answer)
        .map_err(|_| TopologyError::Incomplete("address of the master"))?;
    Ok(if ip.contains(':') { format!("[{ip}]:{port}") } else { format!("{ip}:{port}") })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backplane::redis::hostile;

    fn last_reports(epoch: u64, address: &str) -> MasterReport {
        MasterReport { master: 0, epoch, address: address.to_owned() }
    }

    #[test]
    fn the_highest_epoch_wins_until_it_is_reported_no_more() {
        let mut master = Master::default();
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        assert_eq!(master.listen(0, last_reports(3, "a"), at(0)), Some("a".into()));
        assert_eq!(master.listen(1, last_reports(3, "a"), at(1)), None);
        assert_eq!(master.listen(2, last_reports(2, "old"), at(2)), None, "it was cut off");
        assert_eq!(
            master.listen(1, last_reports(4, "b"), at(3)),
            Some("b".into()),
            "one is enough"
        );
        assert_eq!(
            master.listen(0, last_reports(3, "a"), at(4)),
            None,
            "it does not know of that yet"
        );
        assert_eq!(
            master.listen(0, last_reports(4, "other"), at(5)),
            None,
            "they are about to agree"
        );
        assert_eq!(master.listen(0, last_reports(0, "new"), at(6)), None);
        assert_eq!(
            master.listen(0, last_reports(0, "new"), at(5004)),
            Some("new".into()),
            "set up again"
        );
    }

    #[test]
    fn both_forms_of_an_answer_are_parsed() {
        let pairs = [("name", "m"), ("ip", "::1"), ("port", "7"), ("config-epoch", "12")];
        let text = |text: &str| Value::BulkString(text.into());
        let map = pairs.map(|(name, value)| (text(name), text(value))).to_vec();
        let row = pairs.iter().flat_map(|(name, value)| [text(name), text(value)]).collect();
        for answer in [Value::Map(map), Value::Array(row)] {
            assert_eq!(epoch(&answer), Ok(12));
        }
        assert!(epoch(&Value::Array(Vec::new())).is_err());
        assert_eq!(address_of(&Value::Array(vec![text("::1"), text("7")])), Ok("[::1]:7".into()));
        assert_eq!(address_of(&Value::Array(vec![text("h"), text("7")])), Ok("h:7".into()));
        assert!(address_of(&Value::Nil).is_err());
    }

    proptest::proptest! {
        #[test]
        fn any_answer_of_a_sentinel_is_parsed_or_refused(
            answer in hostile::value(),
            epochs in proptest::collection::vec(hostile::edge(), 0..8),
        ) {
            let _ = (epoch(&answer), address_of(&answer));
            let mut master = Master::default();
            for (sentinel, epoch) in epochs.into_iter().enumerate() {
                let _ = master.listen(sentinel % 3, last_reports(epoch, "h:1"), Instant::now());
            }
        }
    }
}
