//! The map of a Redis Cluster: the master of each partition.
//!
//! Every known master is asked (`CLUSTER NODES`), because any one of them may be partitioned and
//! have an old view. Where views contradict each other the higher configuration epoch wins, slot by
//! slot: that is the Cluster's own rule, and no minority can make a higher one.
//!
//! Asked at the start, every two seconds, and at once after a redirection or a lost link; then
//! repeatedly until an answer comes. A master that only we still reach announces nothing, so
//! subscriptions there are stale for no longer than one interval.
//!
//! Invariant: a map is returned only if each partition's slot has a master.

use crate::backplane::log_throttle::LogThrottle;
use crate::backplane::partition::PARTITIONS;
use crate::backplane::redis::connection::client::open_url;
use crate::backplane::redis::failure::{LinkError, Outage};
use crate::backplane::redis::topology::error::TopologyError;
use crate::backplane::redis::topology::map::PartitionMap;
use crate::metrics::servers;
use crate::plan::{Login, RedisPlan};
use futures_util::future::join_all;
use redis::AsyncConnectionConfig;
use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

/// Slots of a Cluster.
const SLOTS: usize = 16_384;
/// Interval while nothing seems to change.
const POLL_INTERVAL: Duration = Duration::from_secs(2);
/// Shortest interval.
const POLL_INTERVAL_MIN: Duration = Duration::from_millis(100);
/// How long one server may take to answer; the others' answers count without it.
const TIMEOUT: Duration = Duration::from_millis(500);
/// Servers asked at once.
const ASKED_AT_ONCE_MAX: usize = 16;
/// Known nodes of a Cluster, at most: as many as Redis supports.
const NODES_MAX: usize = 1_000;

type Asking = Pin<Box<dyn Future<Output = Result<ClusterView, TopologyError>>>>;

/// What the servers' answers amount to.
struct ClusterView {
    map: PartitionMap,
    /// Addresses of all nodes, replicas included.
    addresses: Vec<String>,
}

/// Watches the map of a Cluster. Owned by [`crate::backplane::redis::topology::Topology`].
pub(crate) struct Cluster {
    login: Login,
    tls_ca_file: Option<String>,
    seeds: Vec<String>,
    /// Addresses to ask: the last masters, then all other nodes, then the configured ones.
    known: Vec<String>,
    asking: Option<Asking>,
    /// `None`: to be asked at once.
    asked_at: Option<Instant>,
    is_hurried: bool,
    map: Option<PartitionMap>,
    /// Why the last attempt failed, if it did.
    last_error: Option<TopologyError>,
    failures: LogThrottle,
}

impl Cluster {
    /// Not asked yet.
    pub(crate) fn new(seeds: Vec<String>, plan: &RedisPlan) -> Cluster {
        Cluster {
            login: plan.servers.login.clone(),
            tls_ca_file: plan.tls_ca_file.clone(),
            known: seeds.clone(),
            seeds,
            asking: None,
            asked_at: None,
            is_hurried: false,
            map: None,
            last_error: None,
            failures: LogThrottle::default(),
        }
    }

    /// Asks again as soon as the shortest interval allows.
    pub(crate) fn hurry(&mut self) {
        self.is_hurried = true;
    }

    /// The map, if it has changed.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>, now: Instant) -> Option<PartitionMap> {
        let every =
            if self.is_hurried || self.map.is_none() { POLL_INTERVAL_MIN } else { POLL_INTERVAL };
        if self.asking.is_none() && self.asked_at.is_none_or(|at| now.duration_since(at) >= every) {
            self.is_hurried = false;
            self.asked_at = Some(now);
            let asked = self.known.iter().take(ASKED_AT_ONCE_MAX).cloned().collect();
            self.asking =
                Some(Box::pin(ask_all(asked, self.login.clone(), self.tls_ca_file.clone())));
        }
        let Poll::Ready(view) = self.asking.as_mut()?.as_mut().poll(cx) else { return None };
        self.asking = None;
        match view {
            Ok(ClusterView { map, addresses }) => {
                self.last_error = None;
                self.known.clone_from(&map.servers);
                self.know(addresses);
                let is_new = self.map.as_ref() != Some(&map);
                self.map = Some(map);
                if is_new { self.map.clone() } else { None }
            }
            Err(error) => {
                self.is_hurried = true;
                if let Some(suppressed) = self.failures.is_due(now) {
                    tracing::warn!(%error, suppressed, "cannot read the Redis Cluster's slot map");
                }
                self.last_error = Some(error);
                None
            }
        }
    }

    /// Adds the state of the map to the snapshot.
    pub(crate) fn describe(&self, view: &mut servers::RedisSnapshot) {
        let masters = self.map.as_ref().map(|map| map.servers.len() as u64);
        view.deployment.cluster_masters = masters;
        view.deployment.cluster_map_failed = Some(u64::from(self.last_error.is_some()));
        view.cluster_error = self.last_error.as_ref().map(TopologyError::to_string);
    }

    fn know(&mut self, addresses: Vec<String>) {
        for address in addresses.into_iter().chain(self.seeds.iter().cloned()) {
            if self.known.len() < NODES_MAX && !self.known.contains(&address) {
                self.known.push(address);
            }
        }
    }
}

/// Asks all of them; one answer is enough.
async fn ask_all(
    addresses: Vec<String>,
    login: Login,
    tls_ca_file: Option<String>,
) -> Result<ClusterView, TopologyError> {
    let (login, tls_ca_file) = (&login, &tls_ca_file);
    let answers = join_all(addresses.iter().map(|address| async move {
        let asked = ask(login.url(address), tls_ca_file.clone());
        match tokio::time::timeout(TIMEOUT, asked).await {
            Ok(Ok(text)) => Ok(read(&text, address)),
            Ok(Err(error)) => Err((address.clone(), error)),
            Err(_) => Err((address.clone(), Outage::Timeout("").into())),
        }
    }));
    let (mut views, mut errors) = (Vec::new(), Vec::new());
    for answer in answers.await {
        match answer {
            Ok(view) => views.push(view),
            Err(error) => errors.push(error),
        }
    }
    if views.is_empty() {
        return Err(TopologyError::NoAnswer(errors));
    }
    let addresses = views.iter().flat_map(|view| &view.addresses).cloned().collect();
    Ok(ClusterView { map: merge(&views)?, addresses })
}

async fn ask(url: String, tls_ca_file: Option<String>) -> Result<String, LinkError> {
    let opened = open_url(&url, tls_ca_file.as_deref(), AsyncConnectionConfig::new()).await?;
    let (mut connection, _driver, user) = opened;
    let failure = |error: redis::RedisError| user.failure(&error);
    redis::cmd("CLUSTER").arg("NODES").query_async(&mut connection).await.map_err(failure)
}

/// One server's answer.
#[derive(Debug, Default)]
struct NodeView {
    masters: Vec<Master>,
    addresses: Vec<String>,
}

#[derive(Debug, PartialEq, Eq)]
struct Master {
    epoch: u64,
    id: String,
    address: String,
    slots: Vec<(u16, u16)>,
}

/// Parses `CLUSTER NODES`. Lines that are not understood are skipped. So is everything beyond the
/// nodes and slots that a Cluster can have: each slot has one master.
///
/// `<id> <ip:port@bus[,name…]> <flags> <master> <ping> <pong> <epoch> <link> <slots…>`
fn read(text: &str, asked: &str) -> NodeView {
    let mut view = NodeView::default();
    let mut slots_left = SLOTS;
    for line in text.lines().take(NODES_MAX) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [id, place, flags, _, _, _, epoch, _, slots @ ..] = &words[..] else { continue };
        let has = |flag: &str| flags.split(',').any(|word| word == flag);
        if has("noaddr") || has("handshake") {
            continue;
        }
        let address = address(place, asked, has("myself"));
        let (Some(address), Ok(epoch)) = (address, epoch.parse()) else { continue };
        view.addresses.push(address.clone());
        if has("master") {
            let fits = |(first, last): &(u16, u16)| {
                let left = slots_left.checked_sub(usize::from(last - first) + 1);
                slots_left = left.unwrap_or(slots_left);
                left.is_some()
            };
            let slots = slots.iter().filter_map(|word| range(word)).take_while(fits).collect();
            view.masters.push(Master { epoch, id: (*id).to_owned(), address, slots });
        }
    }
    view
}

/// A node's address: by its host name, if it has one. A node that does not know its own address is
/// where it was asked.
fn address(place: &str, asked: &str, is_myself: bool) -> Option<String> {
    let mut parts = place.split(',');
    let endpoint = parts.next()?.split('@').next()?;
    let name = parts.next().filter(|name| !name.is_empty() && !name.contains('='));
    let (ip, port) = endpoint.rsplit_once(':')?;
    match name {
        Some(name) => Some(format!("{name}:{port}")),
        None if ip.is_empty() && is_myself => Some(asked.to_owned()),
        None if ip.is_empty() => None,
        None if ip.contains(':') => Some(format!("[{ip}]:{port}")),
        None => Some(endpoint.to_owned()),
    }
}

/// `5` or `5-10`. A migrating slot (`[5->-…]`) is still at its old master.
fn range(word: &str) -> Option<(u16, u16)> {
    let (first, last) = word.split_once('-').unwrap_or((word, word));
    let (first, last) = (first.parse().ok()?, last.parse().ok()?);
    (first <= last && usize::from(last) < SLOTS).then_some((first, last))
}

/// Merges all views. Fails if a slot has no master.
fn merge(views: &[NodeView]) -> Result<PartitionMap, TopologyError> {
    let mut owners: Vec<Option<(u64, &Master)>> = vec![None; SLOTS];
    for master in views.iter().flat_map(|view| &view.masters) {
        for slot in master.slots.iter().flat_map(|(first, last)| *first..=*last) {
            let place = &mut owners[usize::from(slot)];
            if place.is_none_or(|(epoch, _)| master.epoch > epoch) {
                *place = Some((master.epoch, master));
            }
        }
    }
    let of_partition = |partition: usize| {
        let slot = slot_of(partition);
        let owner = owners[usize::from(slot)];
        owner.map(|(_, master)| &master.address).ok_or(TopologyError::SlotWithoutMaster(slot))
    };
    let addresses: Vec<&String> = (0..PARTITIONS).map(of_partition).collect::<Result<_, _>>()?;
    // In an order that does not depend on who was asked first.
    let mut servers: BTreeMap<&String, u16> = addresses.iter().map(|it| (*it, 0)).collect();
    servers.values_mut().zip(0..).for_each(|(number, at)| *number = at);
    let owners = std::array::from_fn(|partition| servers[addresses[partition]]);
    Ok(PartitionMap { servers: servers.into_keys().cloned().collect(), owners: Arc::new(owners) })
}

/// The slot of all names of a partition: CRC16 (XMODEM) of their hash tag, `p<number>`.
pub(crate) fn slot_of(partition: usize) -> u16 {
    let crc = format!("p{partition}").bytes().fold(0u16, |crc, byte| {
        (0..8).fold(crc ^ (u16::from(byte) << 8), |crc, _| {
            if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 }
        })
    });
    crc % SLOTS as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backplane::redis::hostile;
    use proptest::prelude::*;

    const NODES: &str = "\
a 127.0.0.1:1@10001,,tls-port=0,shard-id=x myself,master - 0 0 3 connected 0-8191 [5->-b]
b 127.0.0.1:2@10002 master - 0 0 2 connected 8192-16382 16383
c 127.0.0.1:3@10003 slave a 0 0 3 connected
d :0@0 master,noaddr - 0 0 9 disconnected 0-16383
e 127.0.0.1:5@5,host.example master,fail - 0 0 1 connected
nonsense
";

    #[test]
    fn cluster_nodes_is_parsed() {
        let view = read(NODES, "asked:1");
        assert_eq!(view.addresses, ["127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3", "host.example:5"]);
        let slots: Vec<_> = view.masters.iter().map(|master| &master.slots[..]).collect();
        assert_eq!(slots, [&[(0, 8191)][..], &[(8192, 16382), (16383, 16383)], &[]]);
        let view = read("a :7@1 myself,master - 0 0 3 connected 0-16383", "asked:7");
        assert_eq!(view.masters[0].address, "asked:7");
        let view = read("a ::1:7@1 master - 0 0 3 connected 0-16383", "asked:7");
        assert_eq!(view.masters[0].address, "[::1]:7");
    }

    #[test]
    fn the_higher_epoch_wins_slot_by_slot() {
        let before = read(NODES, "x");
        let after = read("c 127.0.0.1:3@3 myself,master - 0 0 4 connected 0-8191", "x");
        for views in [[before, after], {
            let after = read("c 127.0.0.1:3@3 myself,master - 0 0 4 connected 0-8191", "x");
            [after, read(NODES, "x")]
        }] {
            let map = merge(&views).unwrap();
            assert_eq!(map.servers, ["127.0.0.1:2", "127.0.0.1:3"]);
            for partition in 0..PARTITIONS {
                let server = u16::from(slot_of(partition) < 8192);
                assert_eq!(map.owners[partition], server);
            }
        }
    }

    #[test]
    fn a_slot_without_a_master_makes_no_map() {
        let view = read("a h:1@1 master - 0 0 1 connected 0-16000", "x");
        let error = merge(&[view]).unwrap_err();
        assert!(matches!(error, TopologyError::SlotWithoutMaster(_)), "{error}");
    }

    #[test]
    fn a_text_without_end_costs_no_more_than_a_cluster_has() {
        let all = "0-16383 ".repeat(1000);
        let line =
            |number| format!("m{number} h:{number}@1 master - 0 0 {number} connected {all}\n");
        let view = read(&(0..2 * NODES_MAX).map(line).collect::<String>(), "x");
        assert_eq!((view.masters.len(), view.addresses.len()), (NODES_MAX, NODES_MAX));
        let slots: usize = view.masters.iter().map(|master| master.slots.len()).sum();
        assert_eq!(slots, 1, "the first has them all");
        assert_eq!(merge(&[view]).unwrap().servers, ["h:0"]);
    }

    proptest! {
        #[test]
        fn any_words_are_parsed(
            words in prop::collection::vec(
                prop_oneof![
                    "[a-z,:@\\[\\]-]{0,12}",
                    "[0-9]{1,5}(-[0-9]{1,5})?",
                    hostile::edge().prop_map(|number| number.to_string()),
                    Just("master".to_owned()),
                    Just("myself,master".to_owned()),
                    Just("127.0.0.1:1@2".to_owned()),
                    Just("\n".to_owned()),
                ],
                0..60,
            ),
        ) {
            let view = read(&words.join(" "), "asked:1");
            let _ = merge(&[view]);
        }
    }

    #[test]
    fn any_answer_is_parsed() {
        for text in ["", "\n\n", "a b c d e f g h i", "a h:1@1 master - 0 0 x connected 5-1", "é"]
        {
            assert!(merge(&[read(text, "x")]).is_err(), "{text}");
        }
    }
}
