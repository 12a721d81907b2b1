//! Connections of the redis crate, with the settings that all their users here share: RESP3, over our
//! own dialing, with replies bounded before they are stored ([`bounded`]).

use crate::backplane::redis::connection::bounded::Bounded;
use crate::backplane::redis::connection::dial::dial;
use crate::backplane::redis::connection::reply_limits::ReplyLimits;
use crate::backplane::redis::failure::classify::LinkUser;
use crate::backplane::redis::failure::{LinkError, SetupError};
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, ConnectionInfo, IntoConnectionInfo, ProtocolVersion};
use tokio::task::JoinHandle;

#[cfg(doc)]
use crate::backplane::redis::connection::bounded;

/// The task that reads and writes for a connection of the redis crate. The connection ends with it.
pub struct Driver(JoinHandle<()>);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Opens a connection to a server that is no link, with the limits of those. Returns its user as
/// well, for errors of commands.
pub(crate) async fn open_url(
    url: &str,
    tls_ca_file: Option<&str>,
    config: AsyncConnectionConfig,
) -> Result<(MultiplexedConnection, Driver, LinkUser), LinkError> {
    let info = connection_info(url)?;
    let user = LinkUser::new(info.redis_settings().username(), "commanding");
    let opened = open(&info, tls_ca_file, config, ReplyLimits::default(), &user).await?;
    Ok((opened.0, opened.1, user))
}

/// The settings of a URL, for RESP3.
pub(super) fn connection_info(url: &str) -> Result<ConnectionInfo, LinkError> {
    let info = url.into_connection_info().map_err(|error| SetupError::Url(error.to_string()))?;
    let settings = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
    Ok(info.set_redis_settings(settings))
}

/// Opens a connection. Without a timeout of its own.
pub(super) async fn open(
    info: &ConnectionInfo,
    tls_ca_file: Option<&str>,
    config: AsyncConnectionConfig,
    limits: ReplyLimits,
    user: &LinkUser,
) -> Result<(MultiplexedConnection, Driver), LinkError> {
    let stream = Bounded::new(dial(info.addr(), tls_ca_file).await?, limits);
    let opened = MultiplexedConnection::new_with_config(info.redis_settings(), stream, config);
    let (connection, driver) = opened.await.map_err(|error| user.failure(&error))?;
    Ok((connection, Driver(tokio::spawn(driver))))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The configuration makes the URLs, the redis crate reads them.
    #[test]
    fn the_redis_crate_understands_the_url_of_each_server_as_it_is_meant() {
        use crate::config::RedisServers;
        for (text, user, password, db) in [
            ("redis://h", None, None, 0),
            ("redis://:p@h/3", None, Some("p"), 3),
            ("redis://%C3%A9:a%40%2F%3F%23%25:b@h", Some("\u{e9}"), Some("a@/?#%:b"), 0),
            ("rediss://u:p@[::1]:7/15", Some("u"), Some("p"), 15),
            ("redis+sentinel://u:p@s/m/2", Some("u"), Some("p"), 2),
            (
                "redis+unix:///run/a%20b.sock?db=4&user=u&password=%26%2B%20",
                Some("u"),
                Some("&+ "),
                4,
            ),
        ] {
            let servers = RedisServers::read(text).unwrap();
            let url = servers.login.url(&servers.addresses()[0]);
            let info = connection_info(&url).unwrap();
            let settings = info.redis_settings();
            let is = (settings.username(), settings.password(), settings.db());
            assert_eq!(is, (user, password, db), "{text}");
            let shown = info.addr().to_string();
            let at = shown.replace("::1", "[::1]").replace("[[", "[").replace("]]", "]");
            assert!(servers.addresses()[0] == shown || servers.addresses()[0] == at, "{shown}");
        }
    }
}
