//! Commands that wait for the word of a hook; see `shard/hooked.rs`.

use crate::ids::{ConflateKey, ConnId, Position};
use crate::link::hooks::HookQuestion;
use crate::protocol::RequestId;
use crate::shard::room_token::RoomToken;
use bytes::Bytes;
use std::collections::{HashMap, VecDeque};

/// What a stored command takes beside its texts.
const COMMAND_BYTES: usize = 256;

/// Connections with a command that waits. Empty where no namespace asks a hook.
#[derive(Debug, Default)]
pub(in crate::shard) struct HookedCommands {
    of: HashMap<ConnId, VecDeque<HookedCommand>>,
    held_bytes: usize,
    /// Questions that are to be sent.
    pub(in crate::shard) to_ask: VecDeque<(ConnId, HookQuestion)>,
}

/// A join or a publish that was allowed by everything but the hook.
#[derive(Debug)]
pub(in crate::shard) struct HookedCommand {
    pub(in crate::shard) room: Box<str>,
    pub(in crate::shard) id: Option<RequestId>,
    pub(in crate::shard) what: HookedWhat,
}

#[derive(Debug)]
pub(in crate::shard) enum HookedWhat {
    Join {
        since: Option<Position>,
        info: Option<Box<str>>,
        ack: bool,
        room_token: Option<RoomToken>,
    },
    Publish {
        payload: Bytes,
        echo: bool,
        key: Option<Box<str>>,
        conflate_key: Option<ConflateKey>,
    },
}

impl HookedCommand {
    fn held_bytes(&self) -> usize {
        let texts = match &self.what {
            HookedWhat::Join { info, .. } => info.as_ref().map_or(0, |info| info.len()),
            HookedWhat::Publish { payload, key, .. } => {
                payload.len() + key.as_ref().map_or(0, |key| key.len())
            }
        };
        COMMAND_BYTES + self.room.len() + texts
    }
}

impl HookedCommands {
    /// Whether a command of this connection waits.
    pub(in crate::shard) fn has(&self, conn: ConnId) -> bool {
        self.of.contains_key(&conn)
    }

    /// Connections of which a command waits.
    pub(in crate::shard) fn len(&self) -> usize {
        self.of.len()
    }

    /// Memory of what waits.
    pub(in crate::shard) fn held_bytes(&self) -> usize {
        self.held_bytes
    }

    /// Stores a command. Answers whether it is the connection's first, which is asked about now.
    pub(in crate::shard) fn push(&mut self, conn: ConnId, command: HookedCommand) -> bool {
        self.held_bytes += command.held_bytes();
        let queue = self.of.entry(conn).or_default();
        queue.push_back(command);
        queue.len() == 1
    }

    /// The command that was asked about. The connection's entry stays until [`HookedCommands::next`].
    pub(in crate::shard) fn take(&mut self, conn: ConnId) -> Option<HookedCommand> {
        let command = self.of.get_mut(&conn)?.pop_front()?;
        self.held_bytes -= command.held_bytes();
        Some(command)
    }

    /// The command that is to be asked about next. `None`: nothing of the connection waits any more.
    pub(in crate::shard) fn next(&mut self, conn: ConnId) -> Option<&HookedCommand> {
        if self.of.get(&conn).is_some_and(VecDeque::is_empty) {
            self.of.remove(&conn);
        }
        self.of.get(&conn)?.front()
    }

    /// A connection waits for nothing more.
    pub(in crate::shard) fn forget(&mut self, conn: ConnId) {
        let queue = self.of.remove(&conn).unwrap_or_default();
        self.held_bytes -= queue.iter().map(HookedCommand::held_bytes).sum::<usize>();
    }
}
