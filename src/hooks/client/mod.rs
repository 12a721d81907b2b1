//! An HTTP/1.1 client for a few known servers: requests that are bounded in time, answers that are
//! bounded in bytes.
//!
//! Connections are reused. They are opened straight to the server that the URL names: no proxy of the
//! environment is used, and a redirect is an answer like any other, which nobody follows. Over
//! `https` the certificate is always checked ([`TlsTrust`]); the file of the authorities is read again
//! when it has changed, so that it can be replaced while the node runs.
//!
//! Invariant: a request ends within its timeout, and holds at most [`AskLimits::body_bytes_max`] and
//! [`HEAD_BYTES_MAX`] of its answer, whatever the server does.

mod trust;

use crate::dial::{DialedStream, dial};
use crate::hooks::client::trust::TlsTrust;
use crate::link::ledger::{Ledger, LedgerHold};
use bytes::BytesMut;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Bytes;
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, USER_AGENT};
use hyper::{Method, Request, StatusCode, Uri};
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::client::legacy::{Client, Error as LegacyError};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use std::error::Error;
use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tower_service::Service;

/// The longest head of an answer.
pub const HEAD_BYTES_MAX: usize = 64 * 1024;
/// How long a connection that is not used stays open.
const IDLE_MAX: Duration = Duration::from_secs(30);

/// What one request may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AskLimits {
    /// From its start to the last byte of its answer, a new connection included.
    pub timeout: Duration,
    /// The longest body of an answer.
    pub body_bytes_max: usize,
}

/// A whole answer. Its status may be any.
#[derive(Clone, Debug)]
pub struct HttpAnswer {
    /// The status.
    pub status: StatusCode,
    /// The header lines.
    pub headers: HeaderMap,
    /// The body, at most [`AskLimits::body_bytes_max`].
    pub body: Bytes,
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HttpError {
    /// It was not whole in time.
    Timeout,
    /// There is no connection to the server.
    Connect(String),
    /// The body is longer than it may be.
    TooLarge {
        /// The longest that is read.
        body_bytes_max: usize,
    },
    /// The connection broke, or what came is not HTTP.
    Broken(String),
}

impl fmt::Display for HttpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HttpError::Timeout => f.write_str("no whole answer came in time"),
            HttpError::Connect(why) => write!(f, "no connection: {why}"),
            HttpError::TooLarge { body_bytes_max } => {
                write!(f, "the answer has more than {body_bytes_max} bytes")
            }
            HttpError::Broken(why) => write!(f, "no HTTP answer: {why}"),
        }
    }
}

/// The client. Cloned, it shares its connections. Lives on a tokio runtime.
#[derive(Clone)]
pub struct HttpClient {
    client: Client<Connector, Full<Bytes>>,
    ledger: Arc<Ledger>,
}

impl HttpClient {
    /// A client that trusts the authorities of the file `ca_file`, or else Mozilla's list, and leaves
    /// at most `idle_max` unused connections to each server open. What it has of answers counts in
    /// the ledger until they are whole.
    pub fn new(ca_file: Option<&str>, idle_max: usize, ledger: &Arc<Ledger>) -> HttpClient {
        let connector = Connector { trust: Arc::new(TlsTrust::new(ca_file)) };
        let client = Client::builder(TokioExecutor::new())
            .pool_idle_timeout(IDLE_MAX)
            .pool_timer(TokioTimer::new())
            .pool_max_idle_per_host(idle_max)
            .http1_max_buf_size(HEAD_BYTES_MAX)
            .build(connector);
        HttpClient { client, ledger: ledger.clone() }
    }

    /// `GET`, with these header lines.
    pub async fn get(
        &self,
        url: &Uri,
        headers: &[(HeaderName, HeaderValue)],
        limits: AskLimits,
    ) -> Result<HttpAnswer, HttpError> {
        self.ask(request(Method::GET, url, headers, Bytes::new()), limits).await
    }

    /// `POST` of a JSON text, with these header lines.
    pub async fn post_json(
        &self,
        url: &Uri,
        headers: &[(HeaderName, HeaderValue)],
        body: Bytes,
        limits: AskLimits,
    ) -> Result<HttpAnswer, HttpError> {
        let mut request = request(Method::POST, url, headers, body);
        let json = HeaderValue::from_static("application/json");
        request.headers_mut().insert(CONTENT_TYPE, json);
        self.ask(request, limits).await
    }

    async fn ask(
        &self,
        request: Request<Full<Bytes>>,
        limits: AskLimits,
    ) -> Result<HttpAnswer, HttpError> {
        let body_bytes_max = limits.body_bytes_max;
        let whole = async {
            let answer = self.client.request(request).await.map_err(of_client)?;
            let (head, body) = answer.into_parts();
            let mut body = Limited::new(body, body_bytes_max);
            let (mut read, mut held) = (BytesMut::new(), LedgerHold::new(self.ledger.clone()));
            while let Some(frame) = body.frame().await {
                let frame = frame.map_err(|error| match error.is::<LengthLimitError>() {
                    true => HttpError::TooLarge { body_bytes_max },
                    false => HttpError::Broken(causes(&*error)),
                })?;
                if let Ok(bytes) = frame.into_data() {
                    read.extend_from_slice(&bytes);
                    held.set(read.capacity() as u64);
                }
            }
            Ok(HttpAnswer { status: head.status, headers: head.headers, body: read.freeze() })
        };
        tokio::time::timeout(limits.timeout, whole).await.unwrap_or(Err(HttpError::Timeout))
    }
}

/// Whether this client can ask there, and if not, what to write.
pub fn check_url(text: &str) -> Result<Uri, String> {
    let url: Uri = text.parse().map_err(|error| format!("{error}"))?;
    let is_http = matches!(url.scheme_str(), Some("http" | "https"));
    let authority = url.authority().map(|authority| authority.as_str());
    match (is_http, authority) {
        (false, _) | (_, None) => Err("write http://… or https://…".to_owned()),
        (_, Some(name)) if name.contains('@') => {
            Err("a user name and a password in a URL are not sent".to_owned())
        }
        _ => Ok(url),
    }
}

fn request(
    method: Method,
    url: &Uri,
    headers: &[(HeaderName, HeaderValue)],
    body: Bytes,
) -> Request<Full<Bytes>> {
    let mut request = Request::new(Full::new(body));
    *request.method_mut() = method;
    *request.uri_mut() = url.clone();
    let own = concat!("campanile/", env!("CARGO_PKG_VERSION"));
    request.headers_mut().insert(USER_AGENT, HeaderValue::from_static(own));
    for (name, value) in headers {
        request.headers_mut().insert(name.clone(), value.clone());
    }
    request
}

fn of_client(error: LegacyError) -> HttpError {
    let why = error.source().map_or_else(|| error.to_string(), causes);
    if error.is_connect() { HttpError::Connect(why) } else { HttpError::Broken(why) }
}

/// An error and what caused it.
fn causes(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// Opens connections.
#[derive(Clone)]
struct Connector {
    trust: Arc<TlsTrust>,
}

impl Service<Uri> for Connector {
    type Response = TokioIo<ClientStream>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, url: Uri) -> Self::Future {
        Box::pin(open(url, self.trust.clone()))
    }
}

async fn open(url: Uri, trust: Arc<TlsTrust>) -> io::Result<TokioIo<ClientStream>> {
    let host = url.host().ok_or_else(|| io::Error::other("the URL names no host"))?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let is_tls = url.scheme_str() == Some("https");
    let port = url.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
    let config =
        match is_tls {
            true => Some(trust.client_config().map_err(|error| {
                io::Error::other(format!("the file of the authorities: {error}"))
            })?),
            false => None,
        };
    let stream = dial(host, port, config).await.map_err(io::Error::other)?;
    Ok(TokioIo::new(ClientStream(stream)))
}

/// A stream of the pool.
struct ClientStream(DialedStream);

impl Connection for ClientStream {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl AsyncRead for ClientStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_read(cx, into)
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().0).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests;
