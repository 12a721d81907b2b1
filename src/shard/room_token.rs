//! What a token for one room says, once it was checked.

use crate::policy::grants::RoomActions;

/// What such a token says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::shard) struct RoomToken {
    /// What it allows in the room.
    pub(in crate::shard) actions: RoomActions,
    /// When it expires, in seconds of the shard's clock; `None`: never.
    pub(in crate::shard) expires_s: Option<u32>,
}
