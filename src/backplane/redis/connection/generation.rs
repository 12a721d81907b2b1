//! The generation of a server: which process it is, and whose replica it last was.
//!
//! Its second half is the replication id, which has a new value after each promotion. It also has a
//! new one when the first replica attaches to a master, and an hour after the last one has left:
//! then the data is the same, and nodes follow the change on their links ([`Replication`]).

use crate::backplane::redis::connection::subscriber::Subscriber;
use crate::backplane::redis::failure::classify::LinkUser;
use crate::backplane::redis::failure::{LinkError, Outage, SetupError};
use redis::aio::MultiplexedConnection;

/// Characters of a run id or a replication id in a generation.
const HALF: usize = 16;

/// The generation that all connections report (32 characters). `Err`: they reach different servers.
pub(super) async fn common_generation(
    sub: &mut Subscriber,
    commanding: impl Iterator<Item = MultiplexedConnection>,
    user: &LinkUser,
) -> Result<String, LinkError> {
    let known =
        generation_of(async |section: &str| sub.ask(&[b"INFO", section.as_bytes()]).await).await?;
    for mut connection in commanding {
        let other = generation_of(async |section: &str| {
            let info = redis::cmd("INFO").arg(section).query_async(&mut connection).await;
            info.map_err(|error| user.failure(&error))
        });
        if other.await? != known {
            return Err(SetupError::SeveralServers.into());
        }
    }
    Ok(known)
}

/// What `INFO replication` reports of where a master's data comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::backplane::redis) struct Replication {
    /// The second half of the generation.
    pub id: String,
    /// The id was chosen when a replica was promoted. Otherwise the same process has the same data
    /// under it as under the one before: Redis clears `master_replid2` with each id that it chooses
    /// for another reason, and a promotion always sets it.
    pub is_promoted: bool,
}

impl Replication {
    /// Parses the section. `None`: there is no id in it.
    pub(in crate::backplane::redis) fn of(info: &str) -> Option<Replication> {
        let field = |name: &str| info.lines().find_map(|line| line.strip_prefix(name));
        let id = field("master_replid:")?.trim().get(..HALF)?.to_owned();
        // Who does not report it is believed to have promoted a replica.
        let before = field("master_replid2:").map_or("", str::trim);
        let is_promoted = before.is_empty() || before.bytes().any(|byte| byte != b'0');
        Some(Replication { id, is_promoted })
    }
}

/// The generation of the same process under another replication id.
pub(in crate::backplane::redis) fn renamed(generation: &str, replication: &str) -> String {
    format!("{}{replication}", &generation[..HALF])
}

/// The replication id in a generation; `None`: there is no history, and no generation.
pub(in crate::backplane::redis) fn replication_id(generation: &str) -> Option<&str> {
    generation.get(HALF..).filter(|id| !id.is_empty())
}

/// Run id and replication id of a server, from `INFO`.
async fn generation_of(
    mut info: impl AsyncFnMut(&str) -> Result<String, LinkError>,
) -> Result<String, LinkError> {
    let mut halves = String::new();
    for (section, field) in [("server", "run_id:"), ("replication", "master_replid:")] {
        let text = info(section).await?;
        let value = text.lines().find_map(|line| line.strip_prefix(field));
        let half = value.and_then(|value| value.trim().get(..HALF));
        let without = || Outage::Protocol(format!("INFO {section} has no {field}"));
        halves.push_str(half.ok_or_else(without)?);
    }
    Ok(halves)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_of_a_promotion_unless_redis_says_that_there_was_none() {
        let id = "8204e7666be8bd679479f09a6f4ed9a04533610d";
        let none = "0".repeat(40);
        let of = |before: Option<&str>| {
            let before = before.map_or(String::new(), |id| format!("master_replid2:{id}\r\n"));
            Replication::of(&format!("role:master\r\nmaster_replid:{id}\r\n{before}")).unwrap()
        };
        assert_eq!(of(Some(&none)), Replication { id: id[..16].to_owned(), is_promoted: false });
        for promoted in [Some(id), Some(""), None] {
            assert!(of(promoted).is_promoted, "{promoted:?}");
        }
        for without in ["", "master_replid2:0", "master_replid:short\r\n"] {
            assert_eq!(Replication::of(without), None, "{without}");
        }
        let generation = "a".repeat(16) + &"b".repeat(16);
        let next = renamed(&generation, &id[..16]);
        assert_eq!(next, "a".repeat(16) + &id[..16]);
        assert_eq!(replication_id(&next), Some(&id[..16]));
        assert_eq!(replication_id(""), None);
    }
}
