//! One read of the list of nodes and their records.

use crate::backplane::redis::error_reply::ErrorReply;
use crate::backplane::redis::pipeline::execute_on;
use crate::backplane::redis::presence::keys::{Keys, node_name};
use crate::backplane::redis::presence::skipped::Skipped;
use crate::backplane::wire::WireRange;
use redis::aio::MultiplexedConnection;
use redis::{FromRedisValue, RedisResult, Value, pipe};
use std::time::Duration;

/// How long a record lasts.
const RECORD_TTL: Duration = Duration::from_millis(5_000);
/// Bytes of a record or notice that are read. A longer one was not written by a node.
const RECORD_BYTES_MAX: usize = 64;

/// The result of one read.
#[derive(Debug, Default)]
pub(super) struct NodesRead {
    /// The notice that this node was removed.
    pub notice: Option<Vec<u8>>,
    /// Whether the list of nodes did not have this one.
    pub was_unlisted: bool,
    /// All other nodes, and what they read; `None`: no record.
    pub nodes: Vec<(String, Option<WireRange>)>,
    /// What no node has written.
    pub skipped: Skipped,
}

/// Renews this node's record, lists it and the nodes that were found in rooms, and reads all others.
pub(super) async fn renew_and_read(
    mut cmd: MultiplexedConnection,
    keys: Keys,
    reads: WireRange,
    unlisted: Vec<String>,
) -> RedisResult<NodesRead> {
    let mut first = pipe();
    let ttl_ms = RECORD_TTL.as_millis() as u64;
    first.cmd("SET").arg(keys.record(&keys.me)).arg(reads.to_string()).arg("PX").arg(ttl_ms);
    first.cmd("GETRANGE").arg(keys.removed(&keys.me)).arg(0).arg(RECORD_BYTES_MAX);
    first.cmd("SADD").arg(keys.nodes()).arg(&keys.me);
    if !unlisted.is_empty() {
        first.cmd("SADD").arg(keys.nodes()).arg(unlisted);
    }
    first.cmd("SMEMBERS").arg(keys.nodes());
    let mut answers = execute_on(&mut cmd, &first).await?;
    let nodes = answers.pop().unwrap_or_default();
    answers.truncate(3);
    let [record, notice, listed] = <[Value; 3]>::try_from(answers).unwrap_or_default();
    record.extract_error()?;
    let was_unlisted = listed.extract_error()? == Value::Int(1);
    let names = Vec::<Vec<u8>>::from_redis_value(nodes.extract_error()?)?;
    let mut read = NodesRead { was_unlisted, ..NodesRead::default() };
    read.notice = match notice {
        Value::BulkString(notice) if !notice.is_empty() => Some(notice),
        Value::ServerError(_) => {
            read.skipped.note("a notice", b"a key of another type");
            None
        }
        _ => None,
    };
    let names = names.iter().filter_map(|name| {
        read.skipped.or_skip(node_name(name), "a name in the list of nodes", name)
    });
    let names: Vec<String> = names.filter(|name| *name != keys.me).collect();
    read.nodes = records(&mut cmd, &keys, names, &mut read.skipped).await?;
    Ok(read)
}

async fn records(
    cmd: &mut MultiplexedConnection,
    keys: &Keys,
    names: Vec<String>,
    skipped: &mut Skipped,
) -> RedisResult<Vec<(String, Option<WireRange>)>> {
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let mut records = pipe();
    for name in &names {
        records.cmd("GETRANGE").arg(keys.record(name)).arg(0).arg(RECORD_BYTES_MAX);
    }
    let records = execute_on(cmd, &records).await?;
    let with_range = |(name, record)| Ok((name, range(record, skipped)?));
    names.into_iter().zip(records).map(with_range).collect()
}

/// What a node with this record reads. A node whose record is unreadable lives, and counts as one of
/// the first version.
fn range(record: Value, skipped: &mut Skipped) -> RedisResult<Option<WireRange>> {
    let text = match record {
        Value::BulkString(text) if text.is_empty() => return Ok(None),
        Value::BulkString(text) => text,
        other if ErrorReply::of(&other) == Some(ErrorReply::Unreadable) => {
            b"a key of another type".to_vec()
        }
        other => return other.extract_error().map(|_| None),
    };
    let read = skipped.or_skip(WireRange::read(&text), "the record of a node", &text);
    Ok(Some(read.unwrap_or(WireRange::FIRST)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backplane::redis::hostile;

    #[test]
    fn a_node_with_an_unreadable_record_lives_and_counts_as_one_of_the_first_version() {
        let mut skipped = Skipped::default();
        let mut of = |text: &[u8]| range(Value::BulkString(text.to_vec()), &mut skipped).unwrap();
        assert_eq!(of(b""), None, "no record");
        assert_eq!(of(b"1"), Some(WireRange::FIRST));
        assert_eq!(of(b"1-2"), Some(WireRange { min: 1, max: 2 }));
        assert_eq!(of(b"\xFF"), Some(WireRange::FIRST));
        assert_eq!(skipped.count, 1);
        let another = redis::parse_redis_value(b"-WRONGTYPE Operation against a key\r\n").unwrap();
        assert_eq!(range(another, &mut skipped).unwrap(), Some(WireRange::FIRST));
        let moved = redis::parse_redis_value(b"-MOVED 1 127.0.0.1:1\r\n").unwrap();
        assert!(range(moved, &mut skipped).is_err(), "that says nothing of the node");
    }

    proptest::proptest! {
        #[test]
        fn any_reply_is_a_record_or_none(value in hostile::value()) {
            let _ = range(value, &mut Skipped::default());
        }
    }
}
