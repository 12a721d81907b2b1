//! Opens a stream to a Redis server: TCP, TLS over it, or a Unix socket.
//!
//! The authorities that may have signed the server's certificate are in a file, which is read at
//! each connection so that it can be replaced while the node runs; without a file they are those of
//! Mozilla's list. A certificate is always checked, so `#insecure` in a URL is refused.

use crate::backplane::redis::failure::classify::of_connect;
use crate::backplane::redis::failure::{LinkError, SetupError};
use crate::dial::{DialError, DialedStream};
use crate::{dial, tls_trust};
use redis::ConnectionAddr;
use rustls::ClientConfig;
use std::sync::Arc;

/// Connects.
pub(super) async fn dial(
    addr: &ConnectionAddr,
    tls_ca_file: Option<&str>,
) -> Result<DialedStream, LinkError> {
    match addr {
        ConnectionAddr::Tcp(host, port) => {
            dial::dial(host, *port, None).await.map_err(|error| of_dial(host, error))
        }
        ConnectionAddr::TcpTls { insecure: true, .. } => {
            let error = "rediss://…#insecure is not supported: a certificate is always checked. \
                         Name the file of the authority that signed it in redis.tls_ca_file";
            Err(SetupError::Url(error.to_owned()).into())
        }
        ConnectionAddr::TcpTls { host, port, .. } => {
            let config = Arc::new(client_config(tls_ca_file)?);
            dial::dial(host, *port, Some(config)).await.map_err(|error| of_dial(host, error))
        }
        ConnectionAddr::Unix(path) => {
            dial::dial_unix(path).await.map_err(|error| of_dial("", error))
        }
        _ => {
            let error = "only redis://, rediss:// and redis+unix:// are supported";
            Err(SetupError::Url(error.to_owned()).into())
        }
    }
}

fn of_dial(host: &str, error: DialError) -> LinkError {
    match error {
        DialError::UnknownName(error) => {
            SetupError::UnknownName { host: host.to_owned(), error: error.to_string() }.into()
        }
        DialError::Connect(error) => of_connect(&error),
        DialError::NoServerName(why) => {
            SetupError::Url(format!("{host} in rediss://: {why}")).into()
        }
        DialError::Tls(error) => SetupError::Tls(error.to_string()).into(),
    }
}

fn client_config(tls_ca_file: Option<&str>) -> Result<ClientConfig, LinkError> {
    let refused = |error| {
        let path = tls_ca_file.expect("the built-in list is good").to_owned();
        SetupError::Authority { path, error }.into()
    };
    tls_trust::client_config(tls_ca_file).map_err(refused)
}
