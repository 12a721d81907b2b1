//! A node with one room or user, and a server that the test plays.

use crate::backplane::local::Local;
use crate::backplane::redis::history::batch::{BatchKind, FetchItem};
use crate::backplane::redis::history::histories::Histories;
use crate::backplane::redis::history::request::TopicRef;
use crate::backplane::redis::names::Names;
use crate::backplane::redis::pipeline::AnsweredBatch;
use crate::ids::{ConnId, NodeId, SlotId, TopicId};
use crate::ids::{Position, ShardId, TopicName};
use crate::link::channel::{OpsEnd, ShardEnd, window};
use crate::link::health::Health;
use crate::link::{Downlink, ReplyTo};
use crate::link::{HistoryRequest, RecoveryRequest};
use crate::policy::limits::Limits;
use crate::policy::namespaces::Namespaces;
use crate::protocol::dialect::Encoding;
use crate::protocol::{Page, Recovery, RequestId};
use redis::Value;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub(super) const AT: TopicId = TopicId(SlotId { index: 5, generation: 0 });
const CONN: ConnId = ConnId(SlotId { index: 7, generation: 0 });
pub(super) const GENERATION: &str = "run";

/// A room with a member here, or a user.
pub(super) struct Story {
    pub(super) histories: Histories,
    pub(super) local: Local,
    pub(super) names: Names,
    pub(super) topic: TopicName,
    pub(super) now: Instant,
    pub(super) asked: u64,
    shard: ShardEnd,
    _ops: OpsEnd,
    received: Vec<Downlink>,
}

impl Story {
    pub(super) fn begin(topic: TopicName) -> Story {
        let (mut shards, end, ops) = window(1, 64, 4096).unwrap();
        let text = "chat: history_size=5; @users: history_size=5";
        let namespaces = Arc::new(Namespaces::read(text).unwrap());
        let node = NodeId(1);
        let local = Local::new(node, end, Arc::new(Health::default()), Duration::ZERO, 0);
        let mut story = Story {
            histories: Histories::new(namespaces, &Limits::TINY),
            local,
            names: Names::new("t", node),
            topic,
            now: Instant::now(),
            asked: 0,
            shard: shards.remove(0),
            _ops: ops,
            received: Vec::new(),
        };
        let key = story.local.join(story.topic.clone(), ShardId(0), Encoding::NATIVE, AT).unwrap();
        assert!(story.local.confirm_subscription(key, 0));
        story.histories.on_subscribed(&story.topic);
        assert!(matches!(story.received(), [Downlink::Joined { .. }]));
        story.received.clear();
        story
    }

    pub(super) fn recover(&mut self, since: Option<Position>) {
        self.asked += 1;
        let (topic, ticket) = (self.topic.clone(), self.asked);
        let ask = Box::new(RecoveryRequest {
            topic,
            at: AT,
            conn: CONN,
            ticket,
            since,
            encoding: Encoding::NATIVE,
        });
        self.histories.recover(ShardId(0), ask, self.now, &mut self.local);
    }

    pub(super) fn history(&mut self, page: Page) {
        self.asked += 1;
        let id = Some(RequestId::Number(self.asked));
        let to = ReplyTo::Conn { shard: ShardId(0), conn: CONN, id, turn: false };
        let ask = Box::new(HistoryRequest {
            topic: self.topic.clone(),
            page,
            to,
            encoding: Encoding::NATIVE,
        });
        self.histories.history(ask, self.now, &mut self.local);
    }

    pub(super) fn message(&mut self, at: Position, body: &[u8]) {
        let topic = (&self.topic).into();
        self.histories.handle_message(topic, at, body, self.now, &mut self.local);
    }

    /// The server answers all reads that are due with the same reply.
    pub(super) fn read(&mut self, answer: &Value) {
        self.histories.queue_retries(self.now);
        let topics = self.send_reads();
        self.handle_replies(topics, BatchKind::Read, answer, 3);
    }

    /// Sends the reads that are due. Returns their topics.
    pub(super) fn send_reads(&mut self) -> Vec<TopicRef> {
        let batch = self.histories.build_read_batch(&self.names, self.now);
        batch.items.into_iter().map(|item| item.topic).collect()
    }

    pub(super) fn handle_replies(
        &mut self,
        topics: Vec<TopicRef>,
        what: BatchKind,
        answer: &Value,
        rounds: u32,
    ) {
        let answers = vec![answer.clone(); topics.len()];
        let items = topics.into_iter().map(|topic| FetchItem { topic, what }).collect();
        let batch = AnsweredBatch::of(items, answers);
        let whose = (&self.names, GENERATION);
        let next = self.histories.handle_replies(batch, whose, self.now, &mut self.local);
        for (what, topics) in next.into_iter().flatten() {
            if what == BatchKind::Repair {
                for (name, _) in &topics {
                    let _ = self.histories.repair_command(name, &self.names, GENERATION);
                }
            }
            // The reply to a creation is the hash alone.
            let answer = match (what, answer) {
                (BatchKind::Create, Value::Array(parts)) => parts.first().unwrap_or(&Value::Nil),
                _ => answer,
            };
            if rounds > 0 {
                self.handle_replies(topics, what, &answer.clone(), rounds - 1);
            }
        }
    }

    pub(super) fn pass(&mut self, time: Duration) {
        self.now += time;
        self.histories.expire(self.now, &mut self.local);
    }

    pub(super) fn received(&mut self) -> &[Downlink] {
        self.local.flush();
        self.received.extend(std::iter::from_fn(|| self.shard.try_recv()));
        &self.received
    }
}

/// The replies of `HMGET` and `XREVRANGE` for such a history.
pub(super) fn answer(e: u64, s: u64, l: &str, a: Option<u64>, offsets: &[u64]) -> Value {
    let text = |text: String| Value::BulkString(text.into_bytes());
    let number = |number: u64| text(number.to_string());
    let lineage = if l.is_empty() { Value::Nil } else { text(l.to_owned()) };
    let acked = a.map_or(Value::Nil, number);
    let meta = vec![number(e), number(s), lineage, acked, text(GENERATION.to_owned())];
    let body = || Value::Array(vec![text("d".into()), Value::BulkString(b"\x01\x001".to_vec())]);
    let entry = |offset: &u64| Value::Array(vec![text(format!("{offset}-0")), body()]);
    let entries = offsets.iter().rev().map(entry).collect();
    Value::Array(vec![Value::Array(meta), Value::Array(entries)])
}

pub(super) fn at((epoch, offset): (u64, u64)) -> Position {
    Position { epoch, offset }
}

pub(super) fn recovered(messages: u64) -> Recovery {
    Recovery::Recovered { messages }
}
