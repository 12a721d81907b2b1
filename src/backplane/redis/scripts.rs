//! What Redis does in one step for us: six scripts, sent by their hash.
//!
//! A server that has forgotten them (it restarted, or somebody said `SCRIPT FLUSH`) answers NOSCRIPT
//! and has done nothing. Then they are loaded again, and whatever was refused is sent again.
//!
//! Invariant: each script names all keys it touches in KEYS, and they lie in one slot.

use super::names::{Names, PARTITIONS};
use redis::aio::MultiplexedConnection;
use redis::{Cmd, Pipeline, RedisResult, Script, Value};
use std::sync::LazyLock;

/// With what `lua/fence.lua` has for those that need it.
macro_rules! fenced {
    ($file:literal) => {
        concat!(include_str!("lua/fence.lua"), include_str!($file))
    };
}

static BEGIN: LazyLock<Script> = LazyLock::new(|| Script::new(fenced!("lua/begin.lua")));
static PUBLISH: LazyLock<Script> = LazyLock::new(|| Script::new(fenced!("lua/publish.lua")));
static OPEN: LazyLock<Script> = LazyLock::new(|| Script::new(fenced!("lua/open.lua")));
static RECALL: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/recall.lua")));
static ACKNOWLEDGE: LazyLock<Script> = LazyLock::new(|| Script::new(ACK));
static REPAIR: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/repair.lua")));

/// How long a server that is another one than before waits for what nodes can put back: as long as
/// the slowest of them may take to come back, which pauses for `redis.backoff_ms_max` at most.
pub const REPAIR_MS: u64 = 600;

/// The code of [`Which::Ack`], for who has to teach it to a server.
pub const ACK: &str = include_str!("lua/ack.lua");

/// One of ours.
#[derive(Clone, Copy, Debug)]
pub enum Which {
    /// `lua/begin.lua`
    Begin,
    /// `lua/publish.lua`
    Publish,
    /// `lua/open.lua`
    Open,
    /// `lua/repair.lua`
    Repair,
    /// `lua/recall.lua`
    Recall,
    /// `lua/ack.lua`
    Ack,
}

/// `EVALSHA` of a script; the arguments are to be added behind the keys.
pub fn call(which: Which, keys: &[&str]) -> Cmd {
    let script = match which {
        Which::Begin => &BEGIN,
        Which::Publish => &PUBLISH,
        Which::Open => &OPEN,
        Which::Repair => &REPAIR,
        Which::Recall => &RECALL,
        Which::Ack => &ACKNOWLEDGE,
    };
    let mut call = redis::cmd("EVALSHA");
    call.arg(script.get_hash()).arg(keys.len()).arg(keys);
    call
}

/// Loads all of them.
pub async fn load(mut cmd: MultiplexedConnection) -> RedisResult<()> {
    for code in [
        fenced!("lua/begin.lua"),
        fenced!("lua/publish.lua"),
        fenced!("lua/open.lua"),
        include_str!("lua/repair.lua"),
        include_str!("lua/recall.lua"),
        ACK,
    ] {
        redis::cmd("SCRIPT").arg("LOAD").arg(code).exec_async(&mut cmd).await?;
    }
    Ok(())
}

/// Begins the pause of every partition that a server has, if it is another one than before. Where
/// it has none, or cannot write yet, the first message begins it.
pub async fn begin(
    mut cmd: MultiplexedConnection,
    names: &Names,
    generation: &str,
) -> RedisResult<()> {
    let mut pipeline = Pipeline::new();
    for partition in 0..PARTITIONS {
        let key = names.partition_key(partition as u16);
        let mut begin = call(Which::Begin, &[&key]);
        begin.arg(generation).arg(REPAIR_MS);
        pipeline.add_command(begin);
    }
    cmd.send_packed_commands(&pipeline, 0, PARTITIONS).await.map(|_| ())
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
