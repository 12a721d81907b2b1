//! Opens a stream to a Redis server: TCP, TLS over it, or a Unix socket.
//!
//! The authorities that may have signed the server's certificate are in a file, which is read at
//! each connection so that it can be replaced while the node runs; without a file they are those of
//! Mozilla's list. A certificate is always checked, so `#insecure` in a URL is refused.
//!
//! Invariant: a stream that [`dial`] returns sends at once (no Nagle), and an idle one ends within
//! half a minute after another host is gone. Where there is traffic, the canary is quicker.

use crate::backplane::redis::failure::classify::of_connect;
use crate::backplane::redis::failure::{LinkError, SetupError};
use crate::tls_trust;
use redis::ConnectionAddr;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use socket2::{SockRef, TcpKeepalive};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Idle time after which the kernel probes the other end.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(5);
/// Interval of probes; Linux gives up after 9 of them.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(2);

/// A byte stream to a server.
pub(super) enum Stream {
    /// `redis://`
    Plain(TcpStream),
    /// `rediss://`
    Tls(Box<TlsStream<TcpStream>>),
    /// `redis+unix://`
    Unix(UnixStream),
}

/// Connects.
pub(super) async fn dial(
    addr: &ConnectionAddr,
    tls_ca_file: Option<&str>,
) -> Result<Stream, LinkError> {
    match addr {
        ConnectionAddr::Tcp(host, port) => Ok(Stream::Plain(open(host, *port).await?)),
        ConnectionAddr::TcpTls { insecure: true, .. } => {
            let error = "rediss://…#insecure is not supported: a certificate is always checked. \
                         Name the file of the authority that signed it in redis.tls_ca_file";
            Err(SetupError::Url(error.to_owned()).into())
        }
        ConnectionAddr::TcpTls { host, port, .. } => {
            let connector = TlsConnector::from(Arc::new(client_config(tls_ca_file)?));
            let name = ServerName::try_from(host.clone())
                .map_err(|error| SetupError::Url(format!("{host} in rediss://: {error}")))?;
            let stream = connector.connect(name, open(host, *port).await?).await;
            let stream = stream.map_err(|error| SetupError::Tls(error.to_string()))?;
            Ok(Stream::Tls(Box::new(stream)))
        }
        ConnectionAddr::Unix(path) => {
            let named = |error: io::Error| {
                io::Error::new(error.kind(), format!("{}: {error}", path.display()))
            };
            let stream = UnixStream::connect(path).await;
            Ok(Stream::Unix(stream.map_err(|error| of_connect(&named(error)))?))
        }
        _ => {
            let error = "only redis://, rediss:// and redis+unix:// are supported";
            Err(SetupError::Url(error.to_owned()).into())
        }
    }
}

async fn open(host: &str, port: u16) -> Result<TcpStream, LinkError> {
    let addresses = tokio::net::lookup_host((host, port)).await;
    let addresses: Vec<SocketAddr> = addresses
        .map_err(|error| SetupError::UnknownName {
            host: host.to_owned(),
            error: error.to_string(),
        })?
        .collect();
    let opened = async {
        let stream = TcpStream::connect(&addresses[..]).await?;
        stream.set_nodelay(true)?;
        let keepalive =
            TcpKeepalive::new().with_time(KEEPALIVE_AFTER).with_interval(KEEPALIVE_INTERVAL);
        SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
        Ok(stream)
    };
    opened.await.map_err(|error: io::Error| of_connect(&error))
}

fn client_config(tls_ca_file: Option<&str>) -> Result<ClientConfig, LinkError> {
    let refused = |error| {
        let path = tls_ca_file.expect("the built-in list is good").to_owned();
        SetupError::Authority { path, error }.into()
    };
    tls_trust::client_config(tls_ca_file).map_err(refused)
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_read(cx, into),
            Stream::Tls(stream) => Pin::new(stream).poll_read(cx, into),
            Stream::Unix(stream) => Pin::new(stream).poll_read(cx, into),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Stream::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
            Stream::Unix(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Unix(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
