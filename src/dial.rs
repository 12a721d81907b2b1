//! Streams to other servers: TCP, TLS over it, or a Unix socket.
//!
//! Redis and the services that are asked over HTTP are reached through here, so that the same holds
//! for both. [`crate::tls_trust`] decides whom TLS trusts.
//!
//! Invariant: a stream over TCP sends at once (no Nagle), and an idle one ends within half a minute
//! after the other host is gone.

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use socket2::{SockRef, TcpKeepalive};
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
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

/// A byte stream to a server. Lives on a tokio runtime.
pub enum DialedStream {
    /// TCP.
    Plain(TcpStream),
    /// TLS over TCP; the server's certificate was checked.
    Tls(Box<TlsStream<TcpStream>>),
    /// A Unix socket.
    Unix(UnixStream),
}

/// Why there is no stream.
#[derive(Debug)]
pub enum DialError {
    /// The name has no IP address.
    UnknownName(io::Error),
    /// No address of it answers.
    Connect(io::Error),
    /// No certificate can be for such a name.
    NoServerName(String),
    /// There is no TLS session that could be trusted.
    Tls(io::Error),
}

impl fmt::Display for DialError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DialError::UnknownName(error) | DialError::Connect(error) => error.fmt(f),
            DialError::NoServerName(why) => f.write_str(why),
            DialError::Tls(error) => write!(f, "TLS: {error}"),
        }
    }
}

impl std::error::Error for DialError {}

/// Connects over TCP; with `tls`, over TLS to a server whose certificate is for `host`.
pub async fn dial(
    host: &str,
    port: u16,
    tls: Option<Arc<ClientConfig>>,
) -> Result<DialedStream, DialError> {
    let Some(config) = tls else { return Ok(DialedStream::Plain(dial_tcp(host, port).await?)) };
    let name = ServerName::try_from(host.to_owned());
    let name = name.map_err(|error| DialError::NoServerName(error.to_string()))?;
    let stream = dial_tcp(host, port).await?;
    let stream = TlsConnector::from(config).connect(name, stream).await;
    Ok(DialedStream::Tls(Box::new(stream.map_err(DialError::Tls)?)))
}

/// Connects to a Unix socket.
pub async fn dial_unix(path: &Path) -> Result<DialedStream, DialError> {
    let stream = UnixStream::connect(path).await;
    let named =
        |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    Ok(DialedStream::Unix(stream.map_err(|error| DialError::Connect(named(error)))?))
}

async fn dial_tcp(host: &str, port: u16) -> Result<TcpStream, DialError> {
    let addresses = tokio::net::lookup_host((host, port)).await;
    let addresses: Vec<SocketAddr> = addresses.map_err(DialError::UnknownName)?.collect();
    let opened = async {
        let stream = TcpStream::connect(&addresses[..]).await?;
        stream.set_nodelay(true)?;
        let keepalive =
            TcpKeepalive::new().with_time(KEEPALIVE_AFTER).with_interval(KEEPALIVE_INTERVAL);
        SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
        Ok(stream)
    };
    opened.await.map_err(DialError::Connect)
}

impl AsyncRead for DialedStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            DialedStream::Plain(stream) => Pin::new(stream).poll_read(cx, into),
            DialedStream::Tls(stream) => Pin::new(stream).poll_read(cx, into),
            DialedStream::Unix(stream) => Pin::new(stream).poll_read(cx, into),
        }
    }
}

impl AsyncWrite for DialedStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            DialedStream::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            DialedStream::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
            DialedStream::Unix(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            DialedStream::Plain(stream) => Pin::new(stream).poll_flush(cx),
            DialedStream::Tls(stream) => Pin::new(stream).poll_flush(cx),
            DialedStream::Unix(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            DialedStream::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            DialedStream::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
            DialedStream::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_that_is_idle_is_probed_and_sends_at_once() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let port = listener.local_addr().unwrap().port();
            let stream = dial("127.0.0.1", port, None).await.expect("it listens");
            let DialedStream::Plain(stream) = stream else { panic!("TCP") };
            let socket = SockRef::from(&stream);
            assert!(socket.keepalive().unwrap() && stream.nodelay().unwrap());
            assert_eq!(socket.tcp_keepalive_time().unwrap(), KEEPALIVE_AFTER);
            assert_eq!(socket.tcp_keepalive_interval().unwrap(), KEEPALIVE_INTERVAL);
        });
    }
}
