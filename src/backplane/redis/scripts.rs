//! What Redis does in one step for us: four scripts, sent by their hash.
//!
//! A server that has forgotten them (it restarted, or somebody said `SCRIPT FLUSH`) answers NOSCRIPT
//! and has done nothing. Then they are loaded again, and whatever was refused is sent again.
//!
//! Invariant: each script names all keys it touches in KEYS, and they lie in one slot.

use redis::aio::MultiplexedConnection;
use redis::{Cmd, RedisResult, Script, Value};
use std::sync::LazyLock;

static PUBLISH: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/publish.lua")));
static OPEN: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/open.lua")));
static ACKNOWLEDGE: LazyLock<Script> = LazyLock::new(|| Script::new(ACK));
static REPAIR: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/repair.lua")));

/// The code of [`Which::Ack`], for who has to teach it to a server.
pub const ACK: &str = include_str!("lua/ack.lua");

/// One of ours.
#[derive(Clone, Copy, Debug)]
pub enum Which {
    /// `lua/publish.lua`
    Publish,
    /// `lua/open.lua`
    Open,
    /// `lua/repair.lua`
    Repair,
    /// `lua/ack.lua`
    Ack,
}

/// `EVALSHA` of a script; the arguments are to be added behind the keys.
pub fn call(which: Which, keys: &[&str]) -> Cmd {
    let script = match which {
        Which::Publish => &PUBLISH,
        Which::Open => &OPEN,
        Which::Repair => &REPAIR,
        Which::Ack => &ACKNOWLEDGE,
    };
    let mut call = redis::cmd("EVALSHA");
    call.arg(script.get_hash()).arg(keys.len()).arg(keys);
    call
}

/// Loads all of them.
pub async fn load(mut cmd: MultiplexedConnection) -> RedisResult<()> {
    for code in [
        include_str!("lua/publish.lua"),
        include_str!("lua/open.lua"),
        include_str!("lua/repair.lua"),
        ACK,
    ] {
        redis::cmd("SCRIPT").arg("LOAD").arg(code).exec_async(&mut cmd).await?;
    }
    Ok(())
}

/// What `publish` and `repair` answer: a status, an epoch and a number.
pub fn status(answer: &Value) -> Option<(i64, u64, u64)> {
    let Value::Array(parts) = answer else { return None };
    let [Value::Int(status), epoch, number] = &parts[..] else { return None };
    Some((*status, integer(epoch)?, integer(number)?))
}

/// A whole number, however it is written.
pub fn integer(value: &Value) -> Option<u64> {
    match value {
        Value::Int(number) => u64::try_from(*number).ok(),
        Value::BulkString(bytes) => std::str::from_utf8(bytes).ok()?.parse().ok(),
        Value::SimpleString(text) => text.parse().ok(),
        _ => None,
    }
}
