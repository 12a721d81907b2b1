//! A batch: while it is written, in flight, and with its replies.

use crate::backplane::redis::pipeline::connection::BatchSender;
use crate::backplane::redis::pipeline::item_reply::ItemReply;
use crate::backplane::redis::pipeline::script_loads::{ScriptLoads, ScriptOwner, ScriptSet};
use redis::{Cmd, Pipeline, RedisError, RedisResult, Value};
use std::rc::Rc;
use std::task::Context;
use std::time::Instant;

/// A batch that is being written. Its user adds the commands of each item to `commands`, and the
/// item to `items`, in the same order.
pub(crate) struct OutgoingBatch<I> {
    /// The commands. Where scripts have to be loaded it begins with that.
    pub commands: Pipeline,
    /// The items.
    pub items: Vec<I>,
    shape: BatchShape,
}

/// Which replies belong to what.
#[derive(Clone, Copy, Debug)]
struct BatchShape {
    /// The set of scripts that the items call.
    scripts: Option<ScriptOwner>,
    /// Replies to SCRIPT LOAD, which come first.
    loads: usize,
    commands_per_item: usize,
    /// Whether one more command ends the batch.
    has_last: bool,
}

impl<I> OutgoingBatch<I> {
    /// An empty batch of items with one command each, which call no scripts.
    pub(crate) fn new(capacity: usize) -> OutgoingBatch<I> {
        let shape = BatchShape { scripts: None, loads: 0, commands_per_item: 1, has_last: false };
        let commands = Pipeline::with_capacity(capacity + 1);
        OutgoingBatch { commands, items: Vec::with_capacity(capacity), shape }
    }

    /// The same for items that call scripts of a set. It begins with SCRIPT LOAD if the server of
    /// the connection does not know them, so it has to be sent on that connection next, or dropped.
    pub(crate) fn with_scripts(
        capacity: usize,
        connection: &impl BatchSender,
        set: &ScriptSet,
    ) -> OutgoingBatch<I> {
        let mut batch = OutgoingBatch::new(capacity);
        batch.shape.scripts = Some(set.owner);
        if connection.scripts().is_wanted(set.owner) {
            for text in set.texts {
                batch.commands.cmd("SCRIPT").arg("LOAD").arg(text);
            }
            batch.shape.loads = set.texts.len();
        }
        batch
    }

    /// Each item has so many commands.
    pub(crate) fn commands_per_item(mut self, commands: usize) -> OutgoingBatch<I> {
        self.shape.commands_per_item = commands;
        self
    }

    /// Ends the batch with a command that belongs to no item.
    pub(crate) fn end_with(&mut self, last: Cmd) {
        self.commands.add_command(last);
        self.shape.has_last = true;
    }

    /// Whether it has no items.
    pub(crate) fn is_empty(&self) -> bool {
        self.items.is_empty()
    }
}

impl BatchShape {
    fn replies(&self, items: usize) -> usize {
        self.loads + items * self.commands_per_item + usize::from(self.has_last)
    }
}

/// A batch in flight.
pub(super) struct SentBatch<I, R> {
    pub(super) items: Vec<I>,
    pub(super) reply: R,
    shape: BatchShape,
    sent_at: Instant,
    scripts: Rc<ScriptLoads>,
    /// [`ScriptLoads::loads`] when it was sent, its own included.
    loads_before: u32,
}

impl<I, R> SentBatch<I, R> {
    pub(super) fn send(
        cx: &mut Context<'_>,
        sent_at: Instant,
        connection: &impl BatchSender<Reply = R>,
        batch: OutgoingBatch<I>,
    ) -> SentBatch<I, R> {
        let OutgoingBatch { commands, items, shape } = batch;
        assert_eq!(commands.len(), shape.replies(items.len()), "each reply belongs to something");
        let scripts = connection.scripts().clone();
        if let Some(owner) = shape.scripts
            && shape.loads > 0
        {
            scripts.note_load(owner);
        }
        let loads_before = shape.scripts.map_or(0, |owner| scripts.loads(owner));
        let reply = connection.send_batch(cx, commands);
        SentBatch { items, reply, shape, sent_at, scripts, loads_before }
    }

    /// Its items with their replies, and why the connection has to be given up although it answers:
    /// a script cannot be loaded. `Err`: there are no replies, or not one for each command.
    #[expect(clippy::type_complexity, reason = "both halves are taken apart where it is called")]
    pub(super) fn answer(
        self,
        replies: RedisResult<Vec<Value>>,
    ) -> Result<(AnsweredBatch<I>, Option<RedisError>), (Vec<I>, RedisError)> {
        let mut replies = match replies {
            Ok(replies) if replies.len() == self.shape.replies(self.items.len()) => replies,
            Ok(_) => {
                let error = (redis::ErrorKind::Client, "replies are out of step").into();
                return Err((self.items, error));
            }
            Err(error) => return Err((self.items, error)),
        };
        let last = if self.shape.has_last { replies.pop() } else { None };
        let mut replies = replies.into_iter();
        let loads = replies.by_ref().take(self.shape.loads);
        let refused = loads.filter_map(|reply| match reply {
            Value::ServerError(error) => Some(RedisError::from(error)),
            _ => None,
        });
        let refused = refused.last();
        let SentBatch { items, shape, sent_at, scripts, loads_before, .. } = self;
        let items = items.into_iter();
        Ok((AnsweredBatch { items, replies, last, shape, sent_at, scripts, loads_before }, refused))
    }
}

/// A batch with its replies: an iterator over items and what the reply means for each.
pub(crate) struct AnsweredBatch<I> {
    items: std::vec::IntoIter<I>,
    replies: std::vec::IntoIter<Value>,
    last: Option<Value>,
    shape: BatchShape,
    sent_at: Instant,
    scripts: Rc<ScriptLoads>,
    loads_before: u32,
}

impl<I> AnsweredBatch<I> {
    /// Items with one reply each, for tests of users.
    #[cfg(test)]
    pub(crate) fn of(items: Vec<I>, replies: Vec<Value>) -> AnsweredBatch<I> {
        let OutgoingBatch::<I> { shape, .. } = OutgoingBatch::new(0);
        let (items, replies, last) = (items.into_iter(), replies.into_iter(), None);
        let (sent_at, scripts, loads_before) = (Instant::now(), Rc::default(), 0);
        AnsweredBatch { items, replies, last, shape, sent_at, scripts, loads_before }
    }

    /// When it was sent.
    pub(crate) fn sent_at(&self) -> Instant {
        self.sent_at
    }

    /// The reply to the command that ended it ([`OutgoingBatch::end_with`]).
    pub(crate) fn take_last(&mut self) -> Option<Value> {
        self.last.take()
    }
}

impl<I> Iterator for AnsweredBatch<I> {
    type Item = (I, ItemReply);

    fn next(&mut self) -> Option<(I, ItemReply)> {
        let item = self.items.next()?;
        let replies = self.replies.by_ref().take(self.shape.commands_per_item);
        let mut reply = ItemReply::of_all(replies);
        if let Some(owner) = self.shape.scripts
            && reply.is_script_missing()
        {
            self.scripts.note_missing(owner, self.loads_before);
            if self.shape.loads > 0 {
                reply.note_script_lost();
            }
        }
        Some((item, reply))
    }
}
