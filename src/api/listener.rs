//! The operators' listener: a bounded number of connections, each with deadlines, and always a
//! place for the next one.
//!
//! `axum::serve` has no deadlines, and hyper's own one for heads (`header_read_timeout`) also runs
//! while a keep-alive connection is idle, which would cut off every scraper. So this file accepts, and
//! serves each connection with hyper in a task that watches its deadlines.
//!
//! Every host that reaches the port may connect, and a load balancer's health check must not wait for
//! them. At the limit a new connection evicts the one that has waited longest, of
//! the address that has the most. One whose request is being carried out is never evicted;
//! `guard::AT_A_TIME_MAX` keeps the number of those below the limit, because every route outside
//! `/v1` is answered without waiting.
//!
//! Invariant: one task, [`serve`], owns the list of connections and decides which one is evicted. A
//! connection's task only notes in its [`Place`] what happens on it.

use crate::metrics::{OpsCounters, OpsMirror};
use axum::Router;
use axum::extract::ConnectInfo;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use std::cell::Cell;
use std::cmp::Reverse;
use std::collections::HashMap;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, Id, JoinError, JoinSet, yield_now};
use tokio::time::{Instant, sleep, sleep_until};

/// Connections at a time. The plan's reserve of descriptors has room for them.
pub(super) const CONNECTIONS_MAX: usize = 64;

/// Connections that may wait in the kernel to be accepted, which takes microseconds each. The
/// kernel drops the SYN of one that finds no room, and its client retries a second later.
pub(super) const BACKLOG: i32 = 1024;

/// Longer than the usual scrape interval, so that a scraper keeps its connection.
pub(super) const SILENCE_MAX: Duration = Duration::from_secs(90);

/// How long a whole head may take, over all reads: the first one from the accept, each further one
/// from its first byte.
const HEAD_MAX: Duration = Duration::from_secs(5);

/// A head of more bytes, but for the last read of it, is refused (431).
const HEAD_BYTES_MAX: usize = 64 * 1024;

/// An honest client sends its head within milliseconds; one that takes longer than this is evicted
/// before all others.
const MOMENT: Duration = Duration::from_secs(1);

/// How often a connection's deadline is read again: the first byte of a head brings it nearer.
const GLANCE: Duration = Duration::from_secs(1);

/// The pause after an error of `accept` that is not about one connection, such as EMFILE.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// A peer's address, for handlers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Peer(pub(super) SocketAddr);

/// Serves until the process ends. Needs a [`tokio::task::LocalSet`] around it.
pub(super) async fn serve(
    listener: TcpListener,
    router: Router,
    mirror: Arc<OpsMirror>,
) -> io::Result<()> {
    let mut connections = Connections { mirror, ..Connections::default() };
    let mut is_failing = false;
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => {
                    is_failing = false;
                    connections.make_room().await;
                    connections.begin(stream, peer, router.clone());
                    // A request that came with its connection is answered before the next accept,
                    // which may evict it.
                    yield_now().await;
                }
                Err(error) if is_of_one_connection(&error) => {}
                Err(error) => {
                    if !std::mem::replace(&mut is_failing, true) {
                        tracing::warn!(%error, "the ops port cannot accept connections at the moment");
                    }
                    sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(ended) = connections.tasks.join_next_with_id() => connections.end(ended),
        }
    }
}

fn is_of_one_connection(error: &io::Error) -> bool {
    use ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionRefused | ConnectionAborted | ConnectionReset)
}

/// Why a connection has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    /// Its peer ended it, or HTTP did.
    ByItself,
    /// Its head was not whole in time.
    SlowHead,
    /// Nothing moved on it for [`SILENCE_MAX`].
    Silent,
}

/// The open connections, at most [`CONNECTIONS_MAX`].
#[derive(Default)]
struct Connections {
    tasks: JoinSet<Ended>,
    open: HashMap<Id, Open>,
    counters: OpsCounters,
    mirror: Arc<OpsMirror>,
}

/// One of them.
struct Open {
    peer: SocketAddr,
    place: Rc<Place>,
    task: AbortHandle,
}

impl Connections {
    /// Evicts until there is a place for one more.
    async fn make_room(&mut self) {
        while self.open.len() >= CONNECTIONS_MAX {
            if let Some(open) = self.longest_waiting() {
                tracing::debug!(peer = %open.peer, "a connection of the operators' port is evicted");
                open.task.abort();
                self.counters.evicted += 1;
            }
            if let Some(ended) = self.tasks.join_next_with_id().await {
                self.end(ended);
            }
        }
    }

    /// The connection to evict: of the lowest rank.
    fn longest_waiting(&self) -> Option<&Open> {
        let (now, mut of_network) = (Instant::now(), HashMap::<IpAddr, usize>::new());
        for open in self.open.values() {
            *of_network.entry(network(open.peer)).or_default() += 1;
        }
        let ranked = self.open.values().filter_map(|open| {
            let of_its_network = of_network[&network(open.peer)];
            Some((open.place.rank(of_its_network, now)?, open))
        });
        ranked.min_by_key(|(rank, _)| *rank).map(|(_, open)| open)
    }

    fn begin(&mut self, stream: TcpStream, peer: SocketAddr, router: Router) {
        let place = Rc::new(Place::new(Instant::now()));
        let task = self.tasks.spawn_local(connection(stream, peer, router, place.clone()));
        self.open.insert(task.id(), Open { peer, place, task });
        self.publish();
    }

    fn end(&mut self, ended: Result<(Id, Ended), JoinError>) {
        let (id, ended) = match ended {
            Ok((id, ended)) => (id, ended),
            // Evicted, and counted there.
            Err(aborted) => (aborted.id(), Ended::ByItself),
        };
        let peer = self.open.remove(&id).map(|open| open.peer);
        match ended {
            Ended::SlowHead => self.counters.slow_head += 1,
            Ended::Silent => self.counters.silent += 1,
            Ended::ByItself => {}
        }
        if ended != Ended::ByItself {
            tracing::debug!(?peer, reason = ?ended, "a connection of the operators' port is closed");
        }
        self.publish();
    }

    fn publish(&mut self) {
        self.counters.connections = self.open.len() as u64;
        self.mirror.publish(&self.counters);
    }
}

/// What counts as one peer: an address, or the /64 of IPv6 that a host is given.
fn network(peer: SocketAddr) -> IpAddr {
    const HOST_BITS: u128 = (1 << 64) - 1;
    match peer.ip().to_canonical() {
        IpAddr::V6(addr) => Ipv6Addr::from_bits(addr.to_bits() & !HOST_BITS).into(),
        v4 => v4,
    }
}

/// In which order connections are evicted, lowest first: late heads; then those of the network that
/// has the most connections, so that it evicts its own before those of others; then the oldest.
type Rank = (bool, Reverse<usize>, Instant);

/// What a connection is at. Written by its task, read by [`serve`]; both are on one thread.
struct Place {
    phase: Cell<Phase>,
    /// When it came into that phase.
    since: Cell<Instant>,
    /// When bytes last went in or out.
    moved_at: Cell<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// It has just begun, or some of a head is there.
    Head,
    /// A request is carried out.
    Request,
    /// Its peer reads the answer, or may ask again.
    Answered,
}

impl Place {
    fn new(now: Instant) -> Place {
        let [since, moved_at] = [(); 2].map(|()| Cell::new(now));
        Place { phase: Cell::new(Phase::Head), since, moved_at }
    }

    fn enter(&self, phase: Phase, now: Instant) {
        self.phase.set(phase);
        self.since.set(now);
        self.moved_at.set(now);
    }

    fn has_read(&self, now: Instant) {
        match self.phase.get() {
            Phase::Answered => self.enter(Phase::Head, now),
            Phase::Head | Phase::Request => self.moved_at.set(now),
        }
    }

    /// `None`: it is not evicted in this phase.
    fn rank(&self, of_its_network: usize, now: Instant) -> Option<Rank> {
        let (since, count) = (self.since.get(), Reverse(of_its_network));
        match self.phase.get() {
            Phase::Request => None,
            Phase::Head if now.duration_since(since) > MOMENT => Some((false, count, since)),
            Phase::Head | Phase::Answered => Some((true, count, since)),
        }
    }

    /// When it ends if nothing happens, and why.
    fn deadline(&self) -> (Instant, Ended) {
        match self.phase.get() {
            Phase::Head => (self.since.get() + HEAD_MAX, Ended::SlowHead),
            Phase::Request | Phase::Answered => (self.moved_at.get() + SILENCE_MAX, Ended::Silent),
        }
    }

    /// Resolves when the deadline has passed.
    async fn overdue(&self) -> Ended {
        loop {
            let ((deadline, ended), now) = (self.deadline(), Instant::now());
            if deadline <= now {
                return ended;
            }
            sleep_until(deadline.min(now + GLANCE)).await;
        }
    }
}

/// Serves one connection to its end.
async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    router: Router,
    place: Rc<Place>,
) -> Ended {
    let (router, at) = (TowerToHyperService::new(router), &place);
    let service = service_fn(move |mut request: hyper::Request<Incoming>| {
        at.enter(Phase::Request, Instant::now());
        request.extensions_mut().insert(ConnectInfo(Peer(peer)));
        let answer = router.call(request);
        async move {
            let answer = answer.await;
            at.enter(Phase::Answered, Instant::now());
            // One request at a turn: who sends thousands at once does not keep others waiting.
            yield_now().await;
            answer
        }
    });
    let io = TokioIo::new(Noted { stream, place: place.clone() });
    let mut http = http1::Builder::new();
    let served = http.max_buf_size(HEAD_BYTES_MAX).serve_connection(io, service);
    tokio::select! {
        // How HTTP has ended is the peer's business.
        _ = served => Ended::ByItself,
        ended = place.overdue() => ended,
    }
}

/// A stream whose movements are noted.
struct Noted {
    stream: TcpStream,
    place: Rc<Place>,
}

impl AsyncRead for Noted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        if buf.filled().len() > before {
            self.place.has_read(Instant::now());
        }
        read
    }
}

impl AsyncWrite for Noted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        if written.is_ready() {
            self.place.moved_at.set(Instant::now());
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Connections, each with how many its network has and for how many seconds it has been in its
    /// phase, in the order in which they are evicted.
    fn evicted(mut places: Vec<(&'static str, Phase, usize, u32)>) -> Vec<&'static str> {
        let now = Instant::now() + 1000 * SECOND;
        let rank = |(_, phase, of_its_network, ago): &(&str, Phase, usize, u32)| {
            let place = Place::new(now);
            place.enter(*phase, now - *ago * SECOND);
            place.rank(*of_its_network, now)
        };
        places.retain(|place| rank(place).is_some());
        places.sort_by_key(rank);
        places.into_iter().map(|(name, ..)| name).collect()
    }

    #[test]
    fn late_heads_are_evicted_first_then_the_oldest_of_the_network_with_the_most() {
        let order = evicted(vec![
            ("new", Phase::Head, 1, 1),
            ("served", Phase::Request, 40, 80),
            ("scraper", Phase::Answered, 1, 15),
            ("late head", Phase::Head, 1, 3),
            ("older scraper", Phase::Answered, 1, 60),
            ("later head", Phase::Head, 1, 4),
            ("one of many", Phase::Head, 40, 0),
            ("just answered", Phase::Answered, 1, 0),
            ("older one of many", Phase::Answered, 40, 1),
        ]);
        let late = ["later head", "late head"];
        let many = ["older one of many", "one of many"];
        let few = ["older scraper", "scraper", "new", "just answered"];
        assert_eq!(order, [&late[..], &many, &few].concat());
    }

    #[test]
    fn a_network_is_an_address_or_what_a_host_has_of_ipv6() {
        let network = |text: &str| network(SocketAddr::new(text.parse().unwrap(), 1)).to_string();
        assert_eq!(network("192.0.2.7"), "192.0.2.7");
        assert_eq!(network("::ffff:192.0.2.7"), "192.0.2.7");
        assert_eq!(network("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::");
    }

    #[test]
    fn a_head_has_its_deadline_from_its_first_byte_in_however_many_pieces_it_comes() {
        let start = Instant::now();
        let place = Place::new(start);
        let at = |seconds: u32| start + seconds * SECOND;
        (1..5).for_each(|seconds| place.has_read(at(seconds)));
        assert_eq!(place.deadline(), (start + HEAD_MAX, Ended::SlowHead), "dripping buys no time");
        place.enter(Phase::Request, at(5));
        place.has_read(at(20));
        assert_eq!(place.deadline(), (at(20) + SILENCE_MAX, Ended::Silent), "a body comes");
        place.enter(Phase::Answered, at(21));
        assert_eq!(place.deadline(), (at(21) + SILENCE_MAX, Ended::Silent), "a scraper may wait");
        place.has_read(at(81));
        place.has_read(at(84));
        assert_eq!(place.deadline(), (at(81) + HEAD_MAX, Ended::SlowHead), "the next head");
    }
}
