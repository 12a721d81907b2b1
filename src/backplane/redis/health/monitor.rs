//! What the Redis server says of itself: how much memory, who follows it, what waits for us, and
//! which of its settings would lose messages.
//!
//! It is asked in one pipeline every few seconds, on the connection that publishes, and its answer
//! is taken when it comes: nothing waits for it. A question that this user may not ask (managed
//! servers refuse `CONFIG`) only costs the numbers it would have brought; it is said once, and asked
//! again a minute later, in case somebody has allowed it.
//!
//! What it costs, as Redis 7.0 counts it: 32 µs of its time and 6 KB of text each round. Our own
//! connection is looked up by its id: a list of all subscribers takes 3 µs for each of them, and
//! every node would ask for it.
//!
//! There is one for each server, and what it logs names the server.
//!
//! Invariant: whatever is answered, or not answered, no link is given up for it.

use crate::backplane::redis::connection::ServerLink;
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

/// How long an answer may take, whatever else may take longer: older numbers are of no use.
const TIMEOUT: Duration = Duration::from_secs(1);
/// How often settings are looked at, and whether a refused question is allowed by now.
const SETTINGS_INTERVAL: Duration = Duration::from_secs(60);

/// See the module. It outlives links, so that nothing is said twice.
pub struct Monitor {
    interval: Duration,
    keeps_history: bool,
    /// Where the server is, for the log.
    server: String,
    subscriber_id: SubscriberId,
    in_flight: Option<(Vec<MonitorQuery>, PendingReply<Vec<Value>>)>,
    states: [QueryState; QUERIES.len()],
    numbers: Arc<RedisNumbers>,
    /// What was advised and still holds.
    advised: BTreeSet<&'static str>,
    is_silence_logged: bool,
}

/// What is asked, and by which commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum MonitorQuery {
    /// `CONFIG GET`, setting by setting: several in one command need Redis 7.
    Settings,
    /// `INFO`, section by section.
    Info,
    /// `CLIENT LIST ID`: what waits for this node.
    SubscriberId,
}

const QUERIES: [MonitorQuery; 3] =
    [MonitorQuery::Settings, MonitorQuery::Info, MonitorQuery::SubscriberId];

/// What became of a question.
#[derive(Default)]
struct QueryState {
    /// `None`: at once.
    due_at: Option<Instant>,
    /// The last answers, command by command. Numbers are read from these.
    answers: Vec<Option<Vec<u8>>>,
    is_refusal_logged: bool,
}

/// The id of the connection that subscribes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SubscriberId {
    Unasked,
    TopologyChange(i64),
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
    /// Asks nothing yet.
    pub fn new(plan: &RedisPlan) -> Monitor {
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

    /// What is known now. The same until something is new.
    pub fn numbers(&self) -> &Arc<RedisNumbers> {
        &self.numbers
    }

    /// Asks what is due on a link that is up, and takes what was answered. `server`: where it goes.
    pub fn poll(&mut self, cx: &mut Context<'_>, now: Instant, link: &ServerLink, server: &str) {
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

    /// The link is lost, and with it the right to say anything of the server.
    pub fn lose_link(&mut self) {
        self.subscriber_id = SubscriberId::Unasked;
        self.in_flight = None;
        for states in &mut self.states {
            states.due_at = None;
            states.answers.clear();
        }
        self.forget();
    }

    /// What was said of another server says nothing of this one.
    fn set_server(&mut self, server: &str) {
        server.clone_into(&mut self.server);
        self.advised.clear();
        self.is_silence_logged = false;
        self.states.iter_mut().for_each(|states| states.is_refusal_logged = false);
    }

    /// The id of the connection that subscribes, which the link asked for.
    fn learn_subscriber_id(&mut self, link: &ServerLink) {
        if self.subscriber_id == SubscriberId::Unasked {
            self.subscriber_id = match &link.sub_id {
                Ok(id) => SubscriberId::TopologyChange(*id),
                Err(error) => {
                    self.refuse(MonitorQuery::SubscriberId, error);
                    SubscriberId::Refused
                }
            };
        }
    }

    fn due(&self, now: Instant) -> Vec<MonitorQuery> {
        let is_due = |query: &MonitorQuery| {
            let may_ask = *query != MonitorQuery::SubscriberId
                || matches!(self.subscriber_id, SubscriberId::TopologyChange(_));
            may_ask && self.states[*query as usize].due_at.is_none_or(|due_at| due_at <= now)
        };
        QUERIES.into_iter().filter(is_due).collect()
    }

    fn write(&self, queries: &[MonitorQuery]) -> Pipeline {
        let subscriber_id =
            if let SubscriberId::TopologyChange(id) = self.subscriber_id { id } else { 0 };
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

    /// Answers to one question. Those that are errors bring nothing, the others what they have.
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

    /// There was no answer, to none of them. Whether the link still lives is the canary's business.
    fn handle_silence(&mut self, queries: &[MonitorQuery], error: &str, now: Instant) {
        for query in queries {
            self.states[*query as usize].due_at = Some(now + self.interval);
        }
        if !std::mem::replace(&mut self.is_silence_logged, true) {
            let server = &self.server;
            tracing::warn!(server, error, "Redis does not say how it is; its numbers are missing");
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

    /// Everything that is known, from the last answers.
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

    /// Says what is unsafe, each thing once for as long as it is so. How many warnings there are.
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

/// The bytes of an answer: of a text, or of the value of the one setting that was asked for. `None`,
/// where there is an error instead, or no such setting: an empty `save` says something, no `save`
/// says nothing.
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
    fn a_setting_that_was_not_told_is_not_known() {
        let mut numbers = RedisNumbers::default();
        let text_of = |text: &str| Value::BulkString(text.into());
        let refused = "-NOPERM this user has no permissions\r\n";
        let refused = redis::parse_redis_value(refused.as_bytes()).unwrap();
        let answers = |save: &Value| {
            let of = |setting: &&str| if *setting == "save" { save.clone() } else { Value::Nil };
            SETTINGS.iter().map(of).map(text).collect::<Vec<_>>()
        };
        for untold in [refused, Value::Map(Vec::new())] {
            MonitorQuery::Settings.read(&answers(&untold), &mut numbers);
            assert_eq!(numbers, RedisNumbers::default(), "{untold:?}");
        }
        let empty = Value::Map(vec![(text_of("save"), text_of(""))]);
        MonitorQuery::Settings.read(&answers(&empty), &mut numbers);
        assert_eq!(numbers.is_saving, Some(0));
    }
}
