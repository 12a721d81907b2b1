//! What Redis does in one step for us: six scripts, sent by their hash.
//!
//! A server that has forgotten them (it restarted, or somebody said `SCRIPT FLUSH`) answers NOSCRIPT
//! and has done nothing. Then they are loaded again, and whatever was refused is sent again.
//!
//! Invariant: each script names all keys it touches in KEYS, and they lie in one slot.

use crate::backplane::partition::PARTITIONS;
use crate::backplane::redis::names::Names;
use crate::backplane::redis::unreadable::number_of;
use crate::ids::Position;
use crate::policy::namespaces::Policy;
use redis::aio::MultiplexedConnection;
use redis::{Cmd, Pipeline, RedisResult, Script, Value};
use std::sync::LazyLock;

/// With what `lua/fence.lua` has for those that need it.
macro_rules! fenced {
    ($file:literal) => {
        concat!(include_str!("lua/fence.lua"), include_str!($file))
    };
}

/// With what `lua/number.lua` has for those that need it.
macro_rules! checked {
    ($($code:expr),+) => {
        concat!(include_str!("lua/number.lua"), $($code),+)
    };
}

const PUBLISH_CODE: &str = checked!(include_str!("lua/fence.lua"), include_str!("lua/publish.lua"));
const VERIFY_CODE: &str = checked!(include_str!("lua/verify.lua"));
const REPAIR_CODE: &str = checked!(include_str!("lua/repair.lua"));

static BEGIN_FENCE: LazyLock<Script> =
    LazyLock::new(|| Script::new(fenced!("lua/begin_fence.lua")));
static PUBLISH: LazyLock<Script> = LazyLock::new(|| Script::new(PUBLISH_CODE));
static CREATE: LazyLock<Script> = LazyLock::new(|| Script::new(fenced!("lua/create.lua")));
static VERIFY: LazyLock<Script> = LazyLock::new(|| Script::new(VERIFY_CODE));
static ACKNOWLEDGE: LazyLock<Script> = LazyLock::new(|| Script::new(ACK));
static REPAIR: LazyLock<Script> = LazyLock::new(|| Script::new(REPAIR_CODE));

/// How long a server that is another one than before waits for what nodes can put back: as long as
/// the slowest of them may take to come back, which pauses for `redis.backoff_ms_max` at most.
pub const REPAIR_MS: u64 = 600;

/// For how long the position of a topic outlives its messages.
pub const META_TTL_S: u64 = 24 * 60 * 60;

/// For how long what is known of a history is kept without a message or an acknowledgement.
pub fn meta_ttl_s(policy: &Policy) -> u64 {
    policy.history_ttl_s + META_TTL_S
}

/// The code of [`HistoryScript::Ack`], for who has to teach it to a server.
pub const ACK: &str = checked!(include_str!("lua/ack.lua"));

/// One of ours.
#[derive(Clone, Copy, Debug)]
pub enum HistoryScript {
    /// `lua/begin_fences.lua`
    BeginFence,
    /// `lua/publish.lua`
    Publish,
    /// `lua/create.lua`
    Create,
    /// `lua/repair.lua`
    Repair,
    /// `lua/verify.lua`
    Verify,
    /// `lua/ack.lua`
    Ack,
}

/// `EVALSHA` of a script; the arguments are to be added behind the keys.
pub fn call(script: HistoryScript, keys: &[&str]) -> Cmd {
    let script = match script {
        HistoryScript::BeginFence => &BEGIN_FENCE,
        HistoryScript::Publish => &PUBLISH,
        HistoryScript::Create => &CREATE,
        HistoryScript::Repair => &REPAIR,
        HistoryScript::Verify => &VERIFY,
        HistoryScript::Ack => &ACKNOWLEDGE,
    };
    let mut call = redis::cmd("EVALSHA");
    call.arg(script.get_hash()).arg(keys.len()).arg(keys);
    call
}

/// Loads all of them.
pub async fn load(mut cmd: MultiplexedConnection) -> RedisResult<()> {
    for code in [
        fenced!("lua/begin_fence.lua"),
        PUBLISH_CODE,
        fenced!("lua/create.lua"),
        REPAIR_CODE,
        VERIFY_CODE,
        ACK,
    ] {
        redis::cmd("SCRIPT").arg("LOAD").arg(code).exec_async(&mut cmd).await?;
    }
    Ok(())
}

/// Begins the pause of every partition that a server has, if it is another one than before. Where
/// it has none, or cannot write yet, the first message begins it.
pub async fn begin_fences(
    mut cmd: MultiplexedConnection,
    names: &Names,
    generation: &str,
) -> RedisResult<()> {
    let mut pipeline = Pipeline::new();
    for partition in 0..PARTITIONS {
        let key = names.partition_key(partition as u16);
        let mut begin = call(HistoryScript::BeginFence, &[&key]);
        begin.arg(generation).arg(REPAIR_MS);
        pipeline.add_command(begin);
    }
    cmd.send_packed_commands(&pipeline, 0, PARTITIONS).await.map(|_| ())
}

/// What `lua/publish.lua` answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PublishReply {
    /// The message stands there.
    StoredAt(Position),
    /// To come again after so many milliseconds.
    RetryAfterMs(u64),
}

/// Reads it. `None`: the script does not answer so, and what has become of the message is not known.
pub fn parse_publish_reply(answer: &Value) -> Option<PublishReply> {
    let Value::Array(parts) = answer else { return None };
    let [Value::Int(status), epoch, number] = &parts[..] else { return None };
    match status {
        // No server waits for longer, whatever it says.
        0 => Some(PublishReply::RetryAfterMs(number_of(number)?.min(REPAIR_MS))),
        1 | 2 => {
            Position::checked(number_of(epoch)?, number_of(number)?).map(PublishReply::StoredAt)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backplane::redis::hostile;
    use proptest::prelude::*;

    fn answer(status: i64, epoch: &str, number: &str) -> Value {
        let text = |text: &str| Value::BulkString(text.into());
        Value::Array(vec![Value::Int(status), text(epoch), text(number)])
    }

    #[test]
    fn no_answer_makes_anybody_wait_for_longer_than_a_server_does() {
        assert_eq!(
            parse_publish_reply(&answer(0, "0", "70")),
            Some(PublishReply::RetryAfterMs(70))
        );
        assert_eq!(
            parse_publish_reply(&answer(0, "0", "9007199254740991")),
            Some(PublishReply::RetryAfterMs(REPAIR_MS))
        );
        assert_eq!(parse_publish_reply(&answer(0, "0", "18446744073709551615")), None);
    }

    #[test]
    fn only_a_place_that_can_be_is_told() {
        let at = Position { epoch: 7, offset: 3 };
        assert_eq!(
            [1, 2].map(|status| parse_publish_reply(&answer(status, "7", "3"))),
            [Some(PublishReply::StoredAt(at)); 2]
        );
        for (epoch, offset) in [("0", "3"), ("7", "18446744073709551615"), ("x", "3"), ("7", "-1")]
        {
            assert_eq!(parse_publish_reply(&answer(1, epoch, offset)), None, "{epoch}:{offset}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_answered_is_understood_or_not(value in hostile::value()) {
            let _ = parse_publish_reply(&value);
        }
    }
}
