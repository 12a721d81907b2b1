//! The generation of a server: which process it is, and whose replica it last was.

use crate::backplane::redis::connection::subscriber::Subscriber;
use crate::backplane::redis::failure::classify::LinkUser;
use crate::backplane::redis::failure::{LinkError, Outage, SetupError};
use redis::aio::MultiplexedConnection;

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

/// Run id and replication id of a server, from `INFO`.
async fn generation_of(
    mut info: impl AsyncFnMut(&str) -> Result<String, LinkError>,
) -> Result<String, LinkError> {
    let mut halves = String::new();
    for (section, field) in [("server", "run_id:"), ("replication", "master_replid:")] {
        let text = info(section).await?;
        let value = text.lines().find_map(|line| line.strip_prefix(field));
        let half = value.and_then(|value| value.trim().get(..16));
        let without = || Outage::Protocol(format!("INFO {section} has no {field}"));
        halves.push_str(half.ok_or_else(without)?);
    }
    Ok(halves)
}
