//! The two Lua scripts of messages to everybody. They are sent as text: there are few, and a server
//! that has forgotten them needs no second attempt.

use crate::backplane::redis::names::Names;
use redis::Cmd;

macro_rules! numbered {
    ($file:literal) => {
        concat!(
            include_str!("../lua/number.lua"),
            include_str!("../lua/broadcast_number.lua"),
            include_str!($file)
        )
    };
}

/// Publishes an envelope to everybody, with `publish` (`PUBLISH` or `SPUBLISH`).
pub(in crate::backplane::redis) fn broadcast(
    names: &Names,
    channel: String,
    envelope: &[u8],
    publish: &str,
) -> Cmd {
    let mut command = redis::cmd("EVAL");
    command.arg(numbered!("../lua/broadcast.lua")).arg(1).arg(names.broadcast_key());
    command.arg(channel).arg(envelope).arg(publish);
    command
}

/// Reads the last number, and puts back what the node knows. `takes_number`: it takes one without a
/// message.
pub(super) fn check(names: &Names, known: u64, takes_number: bool) -> Cmd {
    let mut command = redis::cmd("EVAL");
    command.arg(numbered!("../lua/broadcast_check.lua")).arg(1).arg(names.broadcast_key());
    command.arg(known).arg(u8::from(takes_number));
    command
}
