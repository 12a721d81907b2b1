//! One read of the list of nodes and their records.

use crate::backplane::redis::error_reply::ErrorReply;
use crate::backplane::redis::pipeline::execute_on;
use crate::backplane::redis::presence::keys::{Keys, node_name};
use crate::backplane::redis::presence::skipped::Skipped;
use crate::backplane::wire::WireRange;
use redis::aio::MultiplexedConnection;
use redis::{FromRedisValue, RedisResult, Value, pipe};
use std::fmt;
use std::time::Duration;

/// How long a record lasts.
const RECORD_TTL: Duration = Duration::from_millis(5_000);
/// Bytes of a record or notice that are read. A longer one was not written by a node.
const RECORD_BYTES_MAX: usize = 64;

/// What a node may have that a server has lost. Its word follows the versions in the record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Repairs {
    /// The node is of a version that does not say so, and does not report.
    Unknown,
    /// It has histories, and reports when it has put back what a server lacks.
    Reported,
    /// It has no histories.
    Nothing,
}

impl Repairs {
    const REPORTED: &str = "reports";
    const NOTHING: &str = "no-history";

    fn word(self) -> &'static str {
        match self {
            Repairs::Unknown => "",
            Repairs::Reported => Repairs::REPORTED,
            Repairs::Nothing => Repairs::NOTHING,
        }
    }
}

/// The record of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NodeRecord {
    /// What it reads.
    pub reads: WireRange,
    /// What it may have that a server has lost.
    pub repairs: Repairs,
}

impl NodeRecord {
    /// Of a node whose record is unreadable.
    const FIRST: NodeRecord = NodeRecord { reads: WireRange::FIRST, repairs: Repairs::Unknown };

    /// Parses a record. Words that this version does not know are for later ones.
    fn read(text: &[u8]) -> Option<NodeRecord> {
        let reads = WireRange::read(text)?;
        let has = |word: &str| text.split(|byte| *byte == b' ').any(|it| it == word.as_bytes());
        let repairs = match (has(Repairs::REPORTED), has(Repairs::NOTHING)) {
            (true, _) => Repairs::Reported,
            (false, true) => Repairs::Nothing,
            (false, false) => Repairs::Unknown,
        };
        Some(NodeRecord { reads, repairs })
    }
}

impl fmt::Display for NodeRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.reads, self.repairs.word())
    }
}

/// The result of one read.
#[derive(Debug, Default)]
pub(super) struct NodesRead {
    /// The notice that this node was removed.
    pub notice: Option<Vec<u8>>,
    /// Whether the list of nodes did not have this one.
    pub was_unlisted: bool,
    /// All other nodes and their records.
    pub nodes: Vec<(String, Option<NodeRecord>)>,
    /// What no node has written.
    pub skipped: Skipped,
}

/// Renews this node's record, lists it and the nodes that were found in rooms, and reads all others.
pub(super) async fn renew_and_read(
    mut cmd: MultiplexedConnection,
    keys: Keys,
    own: NodeRecord,
    unlisted: Vec<String>,
) -> RedisResult<NodesRead> {
    let mut first = pipe();
    let ttl_ms = RECORD_TTL.as_millis() as u64;
    first.cmd("SET").arg(keys.record(&keys.me)).arg(own.to_string()).arg("PX").arg(ttl_ms);
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
) -> RedisResult<Vec<(String, Option<NodeRecord>)>> {
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let mut records = pipe();
    for name in &names {
        records.cmd("GETRANGE").arg(keys.record(name)).arg(0).arg(RECORD_BYTES_MAX);
    }
    let records = execute_on(cmd, &records).await?;
    let with_record = |(name, text)| Ok((name, record(text, skipped)?));
    names.into_iter().zip(records).map(with_record).collect()
}

/// Parses a record. A node whose record is unreadable lives, and counts as one of the first version.
fn record(text: Value, skipped: &mut Skipped) -> RedisResult<Option<NodeRecord>> {
    let text = match text {
        Value::BulkString(text) if text.is_empty() => return Ok(None),
        Value::BulkString(text) => text,
        other if ErrorReply::of(&other) == Some(ErrorReply::Unreadable) => {
            b"a key of another type".to_vec()
        }
        other => return other.extract_error().map(|_| None),
    };
    let read = skipped.or_skip(NodeRecord::read(&text), "the record of a node", &text);
    Ok(Some(read.unwrap_or(NodeRecord::FIRST)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backplane::redis::hostile;

    #[test]
    fn a_node_with_an_unreadable_record_lives_and_counts_as_one_of_the_first_version() {
        let mut skipped = Skipped::default();
        let mut of = |text: &[u8]| record(Value::BulkString(text.to_vec()), &mut skipped).unwrap();
        assert_eq!(of(b""), None, "no record");
        assert_eq!(of(b"1"), Some(NodeRecord::FIRST));
        let reads = WireRange { min: 1, max: 2 };
        assert_eq!(of(b"1-2"), Some(NodeRecord { reads, repairs: Repairs::Unknown }));
        for repairs in [Repairs::Reported, Repairs::Nothing] {
            let record = NodeRecord { reads, repairs };
            assert_eq!(of(format!("{record} later").as_bytes()), Some(record));
        }
        assert_eq!(of(b"\xFF"), Some(NodeRecord::FIRST));
        assert_eq!(skipped.count, 1);
        let another = redis::parse_redis_value(b"-WRONGTYPE Operation against a key\r\n").unwrap();
        assert_eq!(record(another, &mut skipped).unwrap(), Some(NodeRecord::FIRST));
        let moved = redis::parse_redis_value(b"-MOVED 1 127.0.0.1:1\r\n").unwrap();
        assert!(record(moved, &mut skipped).is_err(), "that says nothing of the node");
    }

    proptest::proptest! {
        #[test]
        fn any_reply_is_a_record_or_none(value in hostile::value()) {
            let _ = record(value, &mut Skipped::default());
        }
    }
}
