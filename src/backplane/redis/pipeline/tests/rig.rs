//! A user of the machine, a connection, and a server whose replies the test chooses.

use crate::backplane::redis::pipeline::batch::OutgoingBatch;
pub(super) use crate::backplane::redis::pipeline::fake::FakeReply as Reply;
use crate::backplane::redis::pipeline::fake::{FakeBatch, FakeConnection};
use crate::backplane::redis::pipeline::item_reply::ItemReply;
use crate::backplane::redis::pipeline::machine::{BatchPipeline, RetryOrder};
use crate::backplane::redis::pipeline::script_loads::{ScriptOwner, ScriptSet};
use redis::{RedisResult, Value};
use std::collections::VecDeque;
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

pub(super) const ITEMS_PER_BATCH: usize = 2;
pub(super) const BATCHES_MAX: usize = 2;
pub(super) const SCRIPTS: ScriptSet =
    ScriptSet { owner: ScriptOwner::History, texts: &["return 1", "return 2"] };

/// What the server does with a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// It executes all items.
    Ok,
    /// The topic of the first item is on another server; the others are executed.
    MovedFirst,
    /// It has too few replicas for the last item; the others are executed.
    NotYetLast,
    /// It does not know the script.
    NoScript,
    /// The same, and refuses to load it.
    NoScriptNorLoad,
    /// It refuses the first item for good; the others are executed.
    OomFirst,
    /// It is a replica now.
    Demoted,
    /// The connection breaks.
    Broken,
    /// It sends one reply too many.
    OutOfStep,
}

/// How an item ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Ending {
    Executed,
    Refused,
    Lost,
}

/// A batch as the server sees it.
pub(super) struct ServerBatch {
    pub(super) items: Vec<u32>,
    pub(super) has_loads: bool,
    reply: Reply,
    pub(super) is_answered: bool,
}

pub(super) struct Rig {
    order: RetryOrder,
    pub(super) pipeline: BatchPipeline<u32, Reply>,
    connection: FakeConnection,
    pub(super) waiting: VecDeque<u32>,
    pub(super) batches: VecDeque<ServerBatch>,
    pub(super) ended: Vec<(u32, Ending)>,
    pub(super) now: Instant,
    pushed: u32,
}

pub(super) fn error(line: &str) -> Value {
    redis::parse_redis_value(format!("-{line}\r\n").as_bytes()).unwrap()
}

impl Rig {
    pub(super) fn new(order: RetryOrder) -> Rig {
        Rig {
            order,
            pipeline: BatchPipeline::new(BATCHES_MAX, order),
            connection: FakeConnection::default(),
            waiting: VecDeque::new(),
            batches: VecDeque::new(),
            ended: Vec::new(),
            now: Instant::now(),
            pushed: 0,
        }
    }

    pub(super) fn push(&mut self) {
        self.waiting.push_back(self.pushed);
        self.pushed += 1;
    }

    pub(super) fn pass(&mut self, time: Duration) {
        self.now += time;
    }

    /// Turns until there is nothing to do.
    pub(super) fn turn(&mut self) {
        for _ in 0..10 {
            match self.poll() {
                Ok(false) => return,
                Ok(true) => {}
                Err(_) => self.lose_link(),
            }
        }
        panic!("the machine is always busy");
    }

    fn poll(&mut self) -> RedisResult<bool> {
        let mut cx = Context::from_waker(Waker::noop());
        let mut is_busy = false;
        for item in self.pipeline.take_due(self.now).rev() {
            self.waiting.push_front(item);
        }
        if self.order == RetryOrder::Each {
            self.waiting.make_contiguous().sort_unstable();
        }
        while self.pipeline.may_send() && !self.waiting.is_empty() {
            let mut batch = OutgoingBatch::with_scripts(2, &self.connection, &SCRIPTS);
            for item in self.waiting.drain(..self.waiting.len().min(ITEMS_PER_BATCH)) {
                batch.commands.cmd("EVALSHA").arg(item);
                batch.items.push(item);
            }
            self.pipeline.send(&mut cx, self.now, &self.connection, batch);
            self.batches.extend(self.connection.take_sent().into_iter().map(ServerBatch::new));
            is_busy = true;
        }
        while let Some(batch) = self.pipeline.poll_answered(&mut cx)? {
            self.batches.pop_front();
            for (item, reply) in batch {
                match reply {
                    ItemReply::Ended(_) => self.ended.push((item, Ending::Executed)),
                    ItemReply::Again(refusal) => self.pipeline.send_again(item, refusal, self.now),
                    ItemReply::Unreadable(_) | ItemReply::Permanent(_) => {
                        self.ended.push((item, Ending::Refused));
                    }
                }
            }
            is_busy = true;
        }
        Ok(is_busy)
    }

    /// The connection is lost, and another one begins. Even items are sent again, odd ones end.
    pub(super) fn lose_link(&mut self) {
        for item in self.pipeline.lose_link() {
            match item % 2 {
                0 => self.pipeline.put_back(item),
                _ => self.ended.push((item, Ending::Lost)),
            }
        }
        self.batches.clear();
        self.connection = FakeConnection::default();
    }

    /// The server answers a batch; its replies arrive.
    pub(super) fn answer(&mut self, index: usize, answer: Answer) {
        let batch = &mut self.batches[index];
        batch.is_answered = true;
        batch.reply.deliver(replies(batch.items.len(), batch.has_loads, answer));
    }
}

impl ServerBatch {
    fn new(sent: FakeBatch) -> ServerBatch {
        let (mut items, mut loads) = (Vec::new(), 0);
        for command in sent.commands.cmd_iter() {
            let args: Vec<&[u8]> = command
                .args_iter()
                .map(|arg| match arg {
                    redis::Arg::Simple(bytes) => bytes,
                    _ => panic!("no cursor"),
                })
                .collect();
            match args[..] {
                [b"EVALSHA", item] => {
                    items.push(std::str::from_utf8(item).unwrap().parse().unwrap());
                }
                [b"SCRIPT", b"LOAD", _] if items.is_empty() => loads += 1,
                _ => panic!("{args:?}"),
            }
        }
        let texts = SCRIPTS.texts.len();
        assert!(loads == 0 || loads == texts, "a set is loaded as a whole");
        ServerBatch { items, has_loads: loads > 0, reply: sent.reply, is_answered: false }
    }
}

fn replies(items: usize, has_loads: bool, answer: Answer) -> RedisResult<Vec<Value>> {
    let loads = if has_loads { SCRIPTS.texts.len() } else { 0 };
    let mut replies = vec![Value::Int(1); loads + items];
    let last = replies.len() - 1;
    let missing = error("NOSCRIPT No matching script.");
    match answer {
        Answer::Ok => {}
        Answer::MovedFirst => replies[loads] = error("MOVED 1 127.0.0.1:1"),
        Answer::NotYetLast => replies[last] = error("NOREPLICAS Not enough good replicas"),
        Answer::NoScript => replies[loads..].fill(missing),
        Answer::NoScriptNorLoad => {
            replies[..loads].fill(error("NOPERM no permissions to run the 'script|load' command"));
            replies[loads..].fill(missing);
        }
        Answer::OomFirst => replies[loads] = error("OOM command not allowed"),
        Answer::Demoted => replies[loads..].fill(error("READONLY You can't write")),
        Answer::Broken => {
            return Err(std::io::Error::from(std::io::ErrorKind::ConnectionReset).into());
        }
        Answer::OutOfStep => replies.push(Value::Int(1)),
    }
    Ok(replies)
}
