//! The operators' listener: at most so many connections, none silent for long.
//!
//! axum sets neither limit. Without them whoever reaches the port could take the descriptors that
//! the clients' connections need. At the limit, further connections wait in the kernel's backlog,
//! for a moment only where some are open on which nobody asks anything: a client that keeps many
//! for later must not keep a load balancer from asking whether the node lives.

use axum::extract::connect_info::Connected;
use axum::serve::{IncomingStream, Listener};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep, sleep};

/// Connections at a time. The plan's reserve of descriptors has room for them.
pub(super) const CONNECTIONS_MAX: usize = 64;

/// Longer than the usual scrape interval, so that a scraper keeps its connection.
pub(super) const SILENCE_MAX: Duration = Duration::from_secs(90);

/// How often it is looked whether a connection has been silent for too long. One on which nobody
/// asks has been by then, if others wait.
const GLANCE: Duration = Duration::from_secs(2);

/// A listener with a limit.
pub(super) struct Capped {
    listener: TcpListener,
    permits: Arc<Semaphore>,
}

impl Capped {
    pub(super) fn new(listener: TcpListener) -> Capped {
        Capped { listener, permits: Arc::new(Semaphore::new(CONNECTIONS_MAX)) }
    }
}

impl Listener for Capped {
    type Io = Watched;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Watched, SocketAddr) {
        let permits = self.permits.clone();
        let permit = permits.acquire_owned().await.expect("the semaphore is never closed");
        // axum's own accept waits out EMFILE and the like.
        let (stream, addr) = Listener::accept(&mut self.listener).await;
        let (glance, moved_at) = (Box::pin(sleep(GLANCE)), Instant::now());
        let (permits, is_asking) = (self.permits.clone(), false);
        (Watched { stream, glance, moved_at, is_asking, permits, _permit: permit }, addr)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A peer's address, for handlers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Peer(pub(super) SocketAddr);

impl Connected<IncomingStream<'_, Capped>> for Peer {
    fn connect_info(stream: IncomingStream<'_, Capped>) -> Peer {
        Peer(*stream.remote_addr())
    }
}

/// A connection that fails when nothing has moved on it for [`SILENCE_MAX`], or for [`GLANCE`] if
/// nobody asks anything on it and there is no room for others.
pub(super) struct Watched {
    stream: TcpStream,
    glance: Pin<Box<Sleep>>,
    moved_at: Instant,
    /// Something came that nothing was answered to yet.
    is_asking: bool,
    permits: Arc<Semaphore>,
    _permit: OwnedSemaphorePermit,
}

impl Watched {
    /// Something moved: the silence begins anew. Nothing did: it may have lasted too long.
    fn watch<T>(
        &mut self,
        cx: &mut Context<'_>,
        moved: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        match moved {
            Poll::Ready(result) => {
                self.moved_at = Instant::now();
                self.glance.as_mut().reset(self.moved_at + GLANCE);
                Poll::Ready(result)
            }
            Poll::Pending => loop {
                ready!(self.glance.as_mut().poll(cx));
                let is_in_the_way = !self.is_asking && self.permits.available_permits() == 0;
                if is_in_the_way || self.moved_at.elapsed() >= SILENCE_MAX {
                    return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
                }
                self.glance.as_mut().reset(Instant::now() + GLANCE);
            },
        }
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let moved = Pin::new(&mut self.stream).poll_read(cx, buf);
        self.is_asking |= buf.filled().len() > before;
        self.watch(cx, moved)
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let moved = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.is_asking &= moved.is_pending();
        self.watch(cx, moved)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
