//! The six Lua scripts for histories and acknowledgements, called by their SHA-1.
//!
//! They are loaded when a link begins, and again by the first batch after a server did not know
//! one ([`crate::backplane::redis::pipeline`]).
//!
//! Invariant: each script names all keys it touches in KEYS, and they are in one slot.

use crate::backplane::redis::names::Names;
use crate::backplane::redis::partition_set::PartitionSet;
use crate::backplane::redis::pipeline::{ScriptOwner, ScriptSet};
use crate::backplane::redis::unreadable::number_of;
use crate::ids::Position;
use crate::link::FullShare;
use crate::policy::namespaces::Policy;
use redis::aio::MultiplexedConnection;
use redis::{Cmd, Pipeline, RedisResult, Script, Value};
use std::sync::LazyLock;

/// With the functions of `lua/fence.lua`.
macro_rules! fenced {
    ($file:literal) => {
        concat!(include_str!("lua/fence.lua"), include_str!($file))
    };
}

/// With the functions of `lua/number.lua`.
macro_rules! checked {
    ($($code:expr),+) => {
        concat!(include_str!("lua/number.lua"), $($code),+)
    };
}

const PUBLISH_CODE: &str = checked!(include_str!("lua/fence.lua"), include_str!("lua/publish.lua"));
const VERIFY_CODE: &str = checked!(include_str!("lua/fence.lua"), include_str!("lua/verify.lua"));
const REPAIR_CODE: &str = checked!(include_str!("lua/repair.lua"));

static REPORT: LazyLock<Script> = LazyLock::new(|| Script::new(fenced!("lua/report.lua")));
static PUBLISH: LazyLock<Script> = LazyLock::new(|| Script::new(PUBLISH_CODE));
static CREATE: LazyLock<Script> = LazyLock::new(|| Script::new(fenced!("lua/create.lua")));
static VERIFY: LazyLock<Script> = LazyLock::new(|| Script::new(VERIFY_CODE));
static ACKNOWLEDGE: LazyLock<Script> = LazyLock::new(|| Script::new(ACK_CODE));
static REPAIR: LazyLock<Script> = LazyLock::new(|| Script::new(REPAIR_CODE));

/// Milliseconds for which a server of a new generation waits for repairs by nodes that do not
/// report that they have made them: as long as the slowest of them may take to reconnect, which
/// pauses at most `redis.backoff_ms_max`.
pub(super) const REPAIR_MS: u64 = 600;

/// Milliseconds for which it waits at most for nodes that do: longer than a host holds one up.
/// The same as `WINDOW_MS_MAX` in `lua/fence.lua`.
pub(super) const REPAIR_MS_MAX: u64 = 5_000;

/// Partitions in one report. The server does nothing else while it takes one.
const PARTITIONS_PER_REPORT: usize = 128;

/// Seconds for which the position of a topic outlives its messages.
pub(super) const META_TTL_S: u64 = 24 * 60 * 60;

/// Seconds for which a history's hash is stored without a publish or an acknowledgement.
pub(super) fn meta_ttl_s(policy: &Policy) -> u64 {
    policy.history_ttl_s + META_TTL_S
}

const ACK_CODE: &str = checked!(include_str!("lua/ack.lua"));

/// All of them. Who calls one needs all, so that each server loads them once.
pub(super) const HISTORY_SCRIPTS: ScriptSet = ScriptSet {
    owner: ScriptOwner::History,
    texts: &[
        fenced!("lua/report.lua"),
        PUBLISH_CODE,
        fenced!("lua/create.lua"),
        REPAIR_CODE,
        VERIFY_CODE,
        ACK_CODE,
    ],
};

/// One of the scripts.
#[derive(Clone, Copy, Debug)]
pub(super) enum HistoryScript {
    /// `lua/report.lua`
    Report,
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

/// `EVALSHA` of a script with its keys; the caller appends the arguments.
pub(super) fn call(script: HistoryScript, keys: &[&str]) -> Cmd {
    let script = match script {
        HistoryScript::Report => &REPORT,
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

/// Loads all scripts.
pub(super) async fn load(cmd: impl Into<MultiplexedConnection>) -> RedisResult<()> {
    let mut cmd = cmd.into();
    for text in HISTORY_SCRIPTS.texts {
        redis::cmd("SCRIPT").arg("LOAD").arg(text).exec_async(&mut cmd).await?;
    }
    Ok(())
}

/// How far a node is with what it has to put back on a server of a new generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum RepairStage {
    /// It is connected.
    Linked,
    /// It has put back all that follows what is there already.
    Followed,
    /// It has put back all that it has.
    Done,
}

/// What a node reports of the repair windows of a server.
#[derive(Clone, Copy, Debug)]
pub(super) enum WindowReport<'a> {
    /// How far it is.
    Stage {
        /// The stage.
        stage: RepairStage,
        /// The other nodes that lived when that was last known: `<node>=0` for one that reports,
        /// and `<node>=o` for one of a version that does not, with blanks between them.
        others: &'a str,
    },
    /// The server has another generation now for the data that it had under this one.
    Renamed(&'a str),
}

/// What the server has answered for one partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WindowReply {
    /// Its window goes on.
    Open,
    /// Its window is over.
    Over,
    /// The server has another generation than this node believes.
    WrongGeneration,
    /// It was refused, or is on another server.
    Refused,
}

/// Reports the stage of this node to the repair windows of some partitions, and begins those that
/// have not begun. Where that fails (no such partition, no write access yet) the first publish
/// begins one that goes by time. The replies are those of the partitions, in order.
pub(super) fn report_window(
    mut cmd: MultiplexedConnection,
    names: &Names,
    parts: &PartitionSet,
    generation: &str,
    report: WindowReport<'_>,
) -> impl Future<Output = RedisResult<Vec<(u16, WindowReply)>>> + use<> {
    let parts: Vec<u16> = parts.iter().collect();
    // In a Cluster each partition is in a slot of its own.
    let at_once = if names.is_sharded() { 1 } else { PARTITIONS_PER_REPORT };
    let mut pipeline = Pipeline::new();
    for some in parts.chunks(at_once) {
        let keys: Vec<String> = some.iter().map(|part| names.partition_key(*part)).collect();
        let keys: Vec<&str> = keys.iter().map(|key| &key[..]).collect();
        let mut command = call(HistoryScript::Report, &keys);
        command.arg(generation).arg(REPAIR_MS);
        match report {
            WindowReport::Renamed(before) => command.arg(before).arg("").arg("").arg(""),
            WindowReport::Stage { stage, others } => {
                command.arg("").arg(names.node().to_string()).arg(stage as u8 + 1).arg(others)
            }
        };
        pipeline.add_command(command);
    }
    async move {
        let replies = cmd.send_packed_commands(&pipeline, 0, pipeline.len()).await?;
        let some = parts.chunks(at_once).zip(replies);
        Ok(some.flat_map(|(some, reply)| window_replies(some, &reply)).collect())
    }
}

fn window_replies(parts: &[u16], reply: &Value) -> Vec<(u16, WindowReply)> {
    let of_part = |(at, part): (usize, &u16)| {
        let reply = match reply {
            Value::Array(replies) => replies.get(at).map(window_reply),
            _ => None,
        };
        (*part, reply.unwrap_or(WindowReply::Refused))
    };
    parts.iter().enumerate().map(of_part).collect()
}

fn window_reply(reply: &Value) -> WindowReply {
    match (reply, number_of(reply)) {
        (_, Some(0)) => WindowReply::Over,
        (_, Some(_)) => WindowReply::Open,
        (Value::BulkString(text), None) if text == b"-1" => WindowReply::WrongGeneration,
        _ => WindowReply::Refused,
    }
}

/// The reply of `lua/publish.lua`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PublishReply {
    /// The message is stored.
    Stored(StoredAt),
    /// It was stored at this position before, under the same idempotency key.
    StoredBefore(Position),
    /// The partition is in its repair window: send again after so many milliseconds.
    RetryAfterMs(u64),
    /// The server has another generation than this node believes: send again when it knows that.
    WrongGeneration,
    /// Its publisher has its share, of histories or of keys, and it would need more.
    Full(FullShare),
}

/// Where a message is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct StoredAt {
    /// Its position.
    pub at: Position,
    /// The epoch before, if it is the first of its own.
    pub parent: Option<u64>,
}

/// Parses the reply. `None`: unexpected, so the outcome of the publish is unknown.
pub(super) fn parse_publish_reply(answer: &Value) -> Option<PublishReply> {
    let Value::Array(parts) = answer else { return None };
    let (status, epoch, number, parent) = match &parts[..] {
        [Value::Int(status), epoch, number] => (*status, epoch, number, None),
        [Value::Int(1), epoch, number, parent] => (1, epoch, number, Some(number_of(parent)?)),
        _ => return None,
    };
    let position = || Position::checked(number_of(epoch)?, number_of(number)?);
    match status {
        // No server waits longer, whatever it answers.
        0 => Some(PublishReply::RetryAfterMs(number_of(number)?.min(REPAIR_MS))),
        1 => position().map(|at| PublishReply::Stored(StoredAt { at, parent })),
        2 => position().map(PublishReply::StoredBefore),
        3 => Some(PublishReply::WrongGeneration),
        4 => Some(PublishReply::Full(FullShare::Histories)),
        5 => Some(PublishReply::Full(FullShare::IdempotencyKeys)),
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
    fn no_reply_makes_a_publish_wait_longer_than_the_repair_window() {
        assert_eq!(
            parse_publish_reply(&answer(0, "0", "70")),
            Some(PublishReply::RetryAfterMs(70))
        );
        assert_eq!(
            parse_publish_reply(&answer(0, "0", "9007199254740991")),
            Some(PublishReply::RetryAfterMs(REPAIR_MS))
        );
        assert_eq!(parse_publish_reply(&answer(0, "0", "18446744073709551615")), None);
        assert_eq!(parse_publish_reply(&answer(3, "0", "0")), Some(PublishReply::WrongGeneration));
    }

    #[test]
    fn only_a_possible_position_is_reported() {
        let at = Position { epoch: 7, offset: 3 };
        assert_eq!(
            [1, 2].map(|status| parse_publish_reply(&answer(status, "7", "3"))),
            [PublishReply::Stored(StoredAt { at, parent: None }), PublishReply::StoredBefore(at)]
                .map(Some)
        );
        let Value::Array(mut parts) = answer(1, "7", "3") else { panic!("an array") };
        parts.push(Value::BulkString(b"5".into()));
        let first = StoredAt { at, parent: Some(5) };
        assert_eq!(
            parse_publish_reply(&Value::Array(parts.clone())),
            Some(PublishReply::Stored(first))
        );
        parts[0] = Value::Int(2);
        assert_eq!(parse_publish_reply(&Value::Array(parts)), None);
        for (epoch, offset) in [("0", "3"), ("7", "18446744073709551615"), ("x", "3"), ("7", "-1")]
        {
            assert_eq!(parse_publish_reply(&answer(1, epoch, offset)), None, "{epoch}:{offset}");
        }
    }

    #[test]
    fn scripts_and_nodes_know_how_long_a_window_is_at_most() {
        let code = include_str!("lua/fence.lua");
        assert!(code.contains(&format!("local WINDOW_MS_MAX, LATE_MS = {REPAIR_MS_MAX},")));
    }

    #[test]
    fn each_partition_has_a_reply_whatever_the_server_answers() {
        let text = |text: &str| Value::BulkString(text.into());
        let replies = Value::Array(["0", "40", "-1", "x"].map(text).to_vec());
        let parsed: Vec<_> =
            window_replies(&[7, 8, 9, 10, 11], &replies).into_iter().map(|(_, it)| it).collect();
        use WindowReply::{Open, Over, Refused, WrongGeneration};
        assert_eq!(parsed, [Over, Open, WrongGeneration, Refused, Refused]);
        let refused = redis::parse_redis_value(b"-NOREPLICAS Not enough\r\n").unwrap();
        assert_eq!(window_replies(&[7, 8], &refused), [(7, Refused), (8, Refused)]);
    }

    proptest! {
        #[test]
        fn any_reply_is_parsed_or_unknown(value in hostile::value()) {
            let _ = parse_publish_reply(&value);
            prop_assert_eq!(window_replies(&[1, 2, 3], &value).len(), 3);
        }
    }
}
