//! Orders to close all connections of a user, on their way to Redis and so to every node.
//!
//! Each is one `PUBLISH` (or `SPUBLISH`) on the channel of the user's topic, on the connection that
//! carries messages. It may overtake messages that still wait to be sent. It is not repeated: if the
//! connection breaks before the reply, the outcome is unknown, and the caller is answered so.
//!
//! Invariant: at most [`WAITING_MAX`] wait for replies, and each request is answered once.

use crate::backplane::disconnect;
use crate::backplane::redis::names::Names;
use crate::backplane::redis::pipeline::{PendingReply, execute, poll_reply, send};
use crate::backplane::redis::topology::routes::ServerRoutes;
use crate::link::{DisconnectRequest, PublishOutcome, ReplyTo};
use redis::Value;
use redis::aio::MultiplexedConnection;
use std::collections::VecDeque;
use std::task::{Context, Poll};

/// More than the API carries out at a time.
const WAITING_MAX: usize = 64;

/// Orders that wait or are in flight. Not a [`crate::backplane::redis::pipeline::BatchPipeline`]:
/// each order has a connection of its own choice and one try, so no order waits for another.
#[derive(Default)]
pub(super) struct Disconnects {
    waiting: VecDeque<(DisconnectRequest, MultiplexedConnection, &'static str)>,
    sent: VecDeque<(ReplyTo<PublishOutcome>, PendingReply<Vec<Value>>)>,
}

impl Disconnects {
    /// Takes a request, unless the server of the user's topic is down or too many wait already.
    pub(super) fn push(&mut self, ask: DisconnectRequest, route: &ServerRoutes) {
        let cmd = route.cmd(route.server_of(ask.topic.as_str())).cloned();
        let has_room = self.waiting.len() + self.sent.len() < WAITING_MAX;
        match cmd.filter(|_| has_room) {
            Some(cmd) => self.waiting.push_back((ask, cmd, route.publish())),
            None => ask.reply.call(PublishOutcome::Unavailable),
        }
    }

    /// Whether every request has been answered.
    pub(super) fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.sent.is_empty()
    }

    /// Sends what was asked, and answers. Whether there was anything to do.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, names: &Names) -> bool {
        let mut is_busy = false;
        while let Some((ask, cmd, publish)) = self.waiting.pop_front() {
            is_busy = true;
            let mut pipeline = redis::pipe();
            let channel = names.channel(ask.topic.as_str());
            pipeline.cmd(publish).arg(channel).arg(disconnect::write(&ask.close));
            self.sent.push_back((ask.reply, send(cx, execute(cmd, pipeline))));
        }
        for _ in 0..self.sent.len() {
            let (answer, mut reply) = self.sent.pop_front().expect("they were just counted");
            match poll_reply(&mut reply, cx) {
                Poll::Pending => self.sent.push_back((answer, reply)),
                Poll::Ready(answers) => {
                    is_busy = true;
                    answer.call(match answers.as_deref() {
                        Ok([Value::Int(_)]) => PublishOutcome::Accepted(None),
                        Ok(_) => PublishOutcome::Unavailable, // The server refused it.
                        Err(_) => PublishOutcome::Unknown,
                    });
                }
            }
        }
        is_busy
    }
}
