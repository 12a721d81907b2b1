//! A connection for tests: it records what is sent, and its replies are delivered by hand.

use crate::backplane::redis::pipeline::connection::BatchSender;
use crate::backplane::redis::pipeline::reply::BatchReply;
use crate::backplane::redis::pipeline::script_loads::ScriptLoads;
use redis::{Pipeline, RedisResult, Value};
use std::cell::Cell;
use std::rc::Rc;
use std::task::{Context, Poll};

/// A connection to nothing.
#[derive(Default)]
pub(crate) struct FakeConnection {
    scripts: Rc<ScriptLoads>,
    /// What was sent and not taken, oldest first.
    sent: Cell<Vec<FakeBatch>>,
}

/// A batch that was sent.
pub(crate) struct FakeBatch {
    /// Its commands.
    pub commands: Pipeline,
    /// Where its replies are put.
    pub reply: FakeReply,
}

/// The replies to a batch; `None`: not yet.
#[derive(Clone, Default)]
pub(crate) struct FakeReply(Rc<Cell<Option<RedisResult<Vec<Value>>>>>);

impl FakeConnection {
    /// Takes what was sent, oldest first.
    pub(crate) fn take_sent(&self) -> Vec<FakeBatch> {
        self.sent.take()
    }
}

impl FakeReply {
    /// The replies arrive.
    pub(crate) fn deliver(&self, replies: RedisResult<Vec<Value>>) {
        assert!(self.0.replace(Some(replies)).is_none(), "a batch is answered once");
    }
}

impl BatchReply for FakeReply {
    fn poll_batch(&mut self, _: &mut Context<'_>) -> Poll<RedisResult<Vec<Value>>> {
        self.0.take().map_or(Poll::Pending, Poll::Ready)
    }
}

impl BatchSender for FakeConnection {
    type Reply = FakeReply;

    fn send_batch(&self, _: &mut Context<'_>, commands: Pipeline) -> FakeReply {
        let reply = FakeReply::default();
        let mut sent = self.sent.take();
        sent.push(FakeBatch { commands, reply: reply.clone() });
        self.sent.set(sent);
        reply
    }

    fn scripts(&self) -> &Rc<ScriptLoads> {
        &self.scripts
    }
}
