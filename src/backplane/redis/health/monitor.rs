//! The Redis server's own numbers: memory, replicas, output buffers of our connection, and settings
//! that could lose messages.
//!
//! They are asked for in one pipeline every few seconds, on the connection for commands; nothing
//! waits for the reply. A query that this user may not make (managed servers refuse `CONFIG`) only
//! costs its numbers; that is logged once, and tried again a minute later.
//!
//! Measured cost on Redis 7.0: 32 µs of its time and 6 KB of text each round. Our own connection is
//! looked up by its id: a list of all subscribers takes 3 µs for each of them, and every node would
//! ask for it.
//!
//! There is one monitor for each server, and its log lines name the server.
//!
//! Invariant: no reply, or the lack of one, gives a link up.

use crate::backplane::redis::connection::link::ServerLink;
use crate::backplane::redis::health::info::{self, SECTIONS, SETTINGS};
use crate::backplane::redis::pipeline::{PendingReply, poll_reply, send};
use crate::metrics::redis::{RedisNumbers, advice};
use crate::plan::RedisPlan;
use redis::aio::MultiplexedConnection;
use redis::{Pipeline, RedisResult, Value};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

/// How long a reply may take, whatever the other timeouts: older numbers are useless.
const TIMEOUT: Duration = Duration::from_secs(1);
/// Interval of settings and of refused queries.
const SETTINGS_INTERVAL: Duration = Duration::from_secs(60);

/// The monitor of one server, which owns it. Outlives links, so that nothing is logged twice.
pub(crate) struct Monitor {
    interval: Duration,
    keeps_history: bool,
    /// The server's address, for the log.
    server: String,
    subscriber_id: SubscriberId,
    in_flight: Option<(Vec<MonitorQuery>, PendingReply<Vec<Value>>)>,
    states: [QueryState; QUERIES.len()],
    numbers: Arc<RedisNumbers>,
    /// Advice that was logged and still holds.
    advised: BTreeSet<&'static str>,
    is_silence_logged: bool,
}

/// A group of commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum MonitorQuery {
    /// `CONFIG GET`, one command for each setting: several in one need Redis 7.
    Settings,
    /// `INFO`, one command for each section.
    Info,
    /// `CLIENT LIST ID`: the output buffer of our subscriber connection.
    SubscriberId,
}

const QUERIES: [MonitorQuery; 3] =
    [MonitorQuery::Settings, MonitorQuery::Info, MonitorQuery::SubscriberId];

/// The state of a query.
#[derive(Default)]
struct QueryState {
    /// `None`: at once.
    due_at: Option<Instant>,
    /// The last replies, one for each command. Numbers are read from these.
    answers: Vec<Option<Vec<u8>>>,
    is_refusal_logged: bool,
}

/// The id of the subscriber connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SubscriberId {
    Unasked,
    Known(i64),
    Refused,
}

impl MonitorQuery {
    fn commands(self) -> usize {
        match self {
            MonitorQuery::Settings => SETTINGS.len(),
            MonitorQuery::Info => SECTIONS.len(),
            MonitorQuery::SubscriberId => 1,
        }
    }

    fn write(self, subscriber_id: i64, pipeline: &mut Pipeline) {
        match self {
            MonitorQuery::Settings => SETTINGS.iter().for_each(|setting| {
                pipeline.cmd("CONFIG").arg("GET").arg(setting);
            }),
            MonitorQuery::Info => SECTIONS.iter().for_each(|section| {
                pipeline.cmd("INFO").arg(section.name);
            }),
            MonitorQuery::SubscriberId => {
                pipeline.cmd("CLIENT").arg("LIST").arg("ID").arg(subscriber_id);
            }
        }
    }

    fn read(self, answers: &[Option<Vec<u8>>], numbers: &mut RedisNumbers) {
        for (at, answer) in answers.iter().enumerate() {
            let Some(answer) = answer else { continue };
            match self {
                MonitorQuery::Settings => info::read_setting(SETTINGS[at], answer, numbers),
                MonitorQuery::Info => info::read(&SECTIONS[at], answer, numbers),
                MonitorQuery::SubscriberId => info::read_client(answer, numbers),
            }
        }
    }

    fn log_refusal(self, server: &str, error: &str) {
        let (allow, missing) = match self {
            MonitorQuery::Settings => ("+config|get", "its settings cannot be judged"),
            MonitorQuery::Info => ("+info", "the numbers of the server are missing"),
            MonitorQuery::SubscriberId => {
                ("+client|id +client|list", "what waits in Redis for this node is not known")
            }
        };
        tracing::info!(
            server,
            error,
            "Redis does not answer all questions of the monitor: {missing}. Where the server is \
             yours, allow it: ACL SETUSER <user> {allow}"
        );
    }
}

impl Monitor {
    /// Nothing is asked yet.
    pub(crate) fn new(plan: &RedisPlan) -> Monitor {
        let mut monitor = Monitor {
            interval: Duration::from_millis(plan.monitor_interval_ms),
            keeps_history: plan.keeps_history,
            server: String::new(),
            subscriber_id: SubscriberId::Unasked,
            in_flight: None,
            states: Default::default(),
            numbers: Arc::default(),
            advised: BTreeSet::new(),
            is_silence_logged: false,
        };
        monitor.forget();
        monitor
    }

    /// The current numbers; the same `Arc` until something changes.
    pub(crate) fn numbers(&self) -> &Arc<RedisNumbers> {
        &self.numbers
    }

    /// Asks what is due on a link that is up, and handles replies. `server`: its address.
    pub(crate) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        now: Instant,
        link: &ServerLink,
        server: &str,
    ) {
        if self.interval.is_zero() {
            return;
        }
        if self.server != server {
            self.set_server(server);
        }
        self.learn_subscriber_id(link);
        if let Some((_, reply)) = &mut self.in_flight {
            let Poll::Ready(answers) = poll_reply(reply, cx) else { return };
            let (queries, _) = self.in_flight.take().expect("it was just looked at");
            match answers {
                Ok(answers) => self.handle_answers(&queries, answers, now),
                Err(error) => self.handle_silence(&queries, &error.to_string(), now),
            }
        }
        let due = self.due(now);
        if !due.is_empty() {
            let pipeline = self.write(&due);
            let commands = due.iter().map(|query| query.commands()).sum();
            self.in_flight = Some((due, send(cx, ask(link.cmd.clone(), pipeline, commands))));
        }
    }

    /// The link is lost: nothing is known of the server any more.
    pub(crate) fn lose_link(&mut self) {
        self.subscriber_id = SubscriberId::Unasked;
        self.in_flight = None;
        for states in &mut self.states {
            states.due_at = None;
            states.answers.clear();
        }
        self.forget();
    }

    /// The server is another one: what was logged is forgotten.
    fn set_server(&mut self, server: &str) {
        server.clone_into(&mut self.server);
        self.advised.clear();
        self.is_silence_logged = false;
        self.states.iter_mut().for_each(|states| states.is_refusal_logged = false);
    }

    /// Takes the id of the subscriber connection, which the link asked for.
    fn learn_subscriber_id(&mut self, link: &ServerLink) {
        if self.subscriber_id == SubscriberId::Unasked {
            self.subscriber_id = match &link.sub_id {
                Ok(id) => SubscriberId::Known(*id),
                Err(error) => {
                    self.refuse(MonitorQuery::SubscriberId, &error.to_string());
                    SubscriberId::Refused
                }
            };
        }
    }

    fn due(&self, now: Instant) -> Vec<MonitorQuery> {
        let is_due = |query: &MonitorQuery| {
            let may_ask = *query != MonitorQuery::SubscriberId
                || matches!(self.subscriber_id, SubscriberId::Known(_));
            may_ask && self.states[*query as usize].due_at.is_none_or(|due_at| due_at <= now)
        };
        QUERIES.into_iter().filter(is_due).collect()
    }

    fn write(&self, queries: &[MonitorQuery]) -> Pipeline {
        let subscriber_id = if let SubscriberId::Known(id) = self.subscriber_id { id } else { 0 };
        let mut pipeline = Pipeline::new();
        queries.iter().for_each(|query| query.write(subscriber_id, &mut pipeline));
        pipeline
    }

    fn handle_answers(&mut self, queries: &[MonitorQuery], answers: Vec<Value>, now: Instant) {
        let mut answers = answers.into_iter();
        for query in queries {
            let subscriber_id = answers.by_ref().take(query.commands()).collect();
            self.handle_answer(*query, subscriber_id, now);
        }
        self.is_silence_logged = false;
        let numbers = self.read();
        let warnings = self.log_advice(&numbers);
        let warnings = numbers.monitor_up.map(|_| warnings);
        self.numbers = Arc::new(RedisNumbers { warnings, ..numbers });
    }

    /// Handles the replies to one query. Errors bring no numbers, the other commands do.
    fn handle_answer(&mut self, query: MonitorQuery, answers: Vec<Value>, now: Instant) {
        let refused = answers.iter().find_map(|answer| match answer {
            Value::ServerError(error) => Some(error.to_string()),
            _ => None,
        });
        let seldom = refused.is_some() || query == MonitorQuery::Settings;
        let states = &mut self.states[query as usize];
        states.due_at =
            Some(now + if seldom { self.interval.max(SETTINGS_INTERVAL) } else { self.interval });
        states.answers = answers.into_iter().map(text).collect();
        match refused {
            Some(error) => self.refuse(query, &error),
            None => states.is_refusal_logged = false,
        }
    }

    /// There was no reply. The canary decides whether the link still works.
    fn handle_silence(&mut self, queries: &[MonitorQuery], error: &str, now: Instant) {
        for query in queries {
            self.states[*query as usize].due_at = Some(now + self.interval);
        }
        if !std::mem::replace(&mut self.is_silence_logged, true) {
            let server = &self.server;
            tracing::warn!(
                server,
                error,
                "Redis does not answer INFO in time; its numbers are missing"
            );
        }
        self.forget();
    }

    fn refuse(&mut self, query: MonitorQuery, error: &str) {
        let states = &mut self.states[query as usize];
        if !std::mem::replace(&mut states.is_refusal_logged, true) {
            query.log_refusal(&self.server, error);
        }
    }

    fn forget(&mut self) {
        let monitor_up = (!self.interval.is_zero()).then_some(0);
        self.numbers = Arc::new(RedisNumbers { monitor_up, ..RedisNumbers::default() });
    }

    /// All numbers, from the last replies.
    fn read(&self) -> RedisNumbers {
        let mut numbers = RedisNumbers::default();
        for (query, states) in QUERIES.iter().zip(&self.states) {
            query.read(&states.answers, &mut numbers);
        }
        let info = &self.states[MonitorQuery::Info as usize].answers;
        numbers.monitor_up =
            Some(u64::from(info.iter().flatten().any(|answer| !answer.is_empty())));
        numbers
    }

    /// Logs advice, each once for as long as it holds. Returns the number of warnings.
    fn log_advice(&mut self, numbers: &RedisNumbers) -> u64 {
        let found = advice(numbers, self.keeps_history);
        let server = &self.server;
        for advice in found.iter().filter(|advice| !self.advised.contains(advice.about)) {
            match advice.is_warning {
                true => tracing::warn!(server, "{}. Write {}", advice.text, advice.write),
                false => tracing::info!(server, "{}. Write {}", advice.text, advice.write),
            }
        }
        self.advised = found.iter().map(|advice| advice.about).collect();
        found.iter().filter(|advice| advice.is_warning).count() as u64
    }
}

/// The bytes of a reply: of a text, or of the value of a setting. `None`: an error, or no such
/// setting; an empty `save` is a value, no `save` is none.
fn text(answer: Value) -> Option<Vec<u8>> {
    match answer {
        Value::BulkString(bytes) => Some(bytes),
        Value::SimpleString(text) | Value::VerbatimString { text, .. } => Some(text.into_bytes()),
        Value::Map(pairs) => pairs.into_iter().next().and_then(|(_, value)| text(value)),
        _ => None,
    }
}

async fn ask(
    mut cmd: MultiplexedConnection,
    pipeline: Pipeline,
    commands: usize,
) -> RedisResult<Vec<Value>> {
    let answers = cmd.send_packed_commands(&pipeline, 0, commands);
    match tokio::time::timeout(TIMEOUT, answers).await {
        Ok(answers) => answers,
        Err(_) => Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_that_was_not_read_is_not_known() {
        let mut numbers = RedisNumbers::default();
        let text_of = |text: &str| Value::BulkString(text.into());
        let refused = "-NOPERM this user has no permissions\r\n";
        let refused = redis::parse_redis_value(refused.as_bytes()).unwrap();
        let answers = |save: &Value| {
            let of = |setting: &&str| if *setting == "save" { save.clone() } else { Value::Nil };
            SETTINGS.iter().map(of).map(text).collect::<Vec<_>>()
        };
        for missing in [refused, Value::Map(Vec::new())] {
            MonitorQuery::Settings.read(&answers(&missing), &mut numbers);
            assert_eq!(numbers, RedisNumbers::default(), "{missing:?}");
        }
        let empty = Value::Map(vec![(text_of("save"), text_of(""))]);
        MonitorQuery::Settings.read(&answers(&empty), &mut numbers);
        assert_eq!(numbers.is_saving, Some(0));
    }
}
