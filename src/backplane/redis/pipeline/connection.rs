//! The connection on which batches are sent, and what else is needed to write commands.

use crate::backplane::redis::names::Names;
use crate::backplane::redis::pipeline::reply::{BatchReply, PendingReply, execute, send};
use crate::backplane::redis::pipeline::script_loads::{ScriptLoads, ScriptOwner};
use redis::aio::MultiplexedConnection;
use redis::{Pipeline, Value};
use std::rc::Rc;
use std::task::Context;

/// Where batches are sent.
pub(crate) trait BatchSender {
    /// The replies to one batch.
    type Reply: BatchReply;

    /// Sends commands. Those of a later call are executed after them.
    fn send_batch(&self, cx: &mut Context<'_>, commands: Pipeline) -> Self::Reply;

    /// Which scripts the server knows.
    fn scripts(&self) -> &Rc<ScriptLoads>;
}

/// One connection for commands, shared by all its senders. Cheap to clone.
#[derive(Clone)]
pub(crate) struct CommandConnection {
    connection: MultiplexedConnection,
    scripts: Rc<ScriptLoads>,
}

impl CommandConnection {
    /// A new connection to a server that knows the scripts of `loaded`.
    pub(crate) fn new(
        connection: MultiplexedConnection,
        loaded: &[ScriptOwner],
    ) -> CommandConnection {
        let scripts = Rc::new(ScriptLoads::default());
        loaded.iter().for_each(|owner| scripts.note_load(*owner));
        CommandConnection { connection, scripts }
    }

    /// The connection itself, for commands that are no batch.
    pub(crate) fn connection(&self) -> &MultiplexedConnection {
        &self.connection
    }
}

impl From<CommandConnection> for MultiplexedConnection {
    fn from(cmd: CommandConnection) -> MultiplexedConnection {
        cmd.connection
    }
}

impl BatchSender for CommandConnection {
    type Reply = PendingReply<Vec<Value>>;

    fn send_batch(&self, cx: &mut Context<'_>, commands: Pipeline) -> Self::Reply {
        send(cx, execute(self.connection.clone(), commands))
    }

    fn scripts(&self) -> &Rc<ScriptLoads> {
        &self.scripts
    }
}

/// What is needed to send commands to a server that is up.
pub(crate) struct CommandContext<'a> {
    /// The connection for commands.
    pub cmd: &'a CommandConnection,
    /// The connection for publishes that wait for a replica; `None`: no namespace wants that.
    pub replicated: Option<&'a CommandConnection>,
    /// Names of channels and keys.
    pub names: &'a Names,
    /// [`crate::backplane::redis::connection::link::ServerLink::generation`].
    pub generation: &'a str,
    /// The publish command: `PUBLISH`, or in a Cluster `SPUBLISH`.
    pub publish: &'static str,
    /// The version in which envelopes are written ([`crate::backplane::wire`]).
    pub version: u8,
}

impl CommandContext<'_> {
    /// Whether the server is one of a Cluster, where topics move.
    pub(crate) fn is_sharded(&self) -> bool {
        self.publish == "SPUBLISH"
    }
}
