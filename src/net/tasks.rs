//! The shard's tasks: what each waits for, and how it calls the shard then.
//!
//! Seven for the whole shard, none per connection. They share nothing but the [`ReactorCell`]. A
//! task that has more to do than one turn's worth yields *fairly*: monoio puts a task that wakes
//! itself at the front of its queue, so it lets a neighbour wake it, which puts it at the end.

use crate::link::bell::Bell;
use crate::link::health::Health;
use crate::net::accept::{Accepted, LingeringSockets, accept};
use crate::net::io::epoll::Readiness;
use crate::net::io::socket;
use crate::net::reactor::{RING_INTERVAL, Reactor, ReactorCell, TICK_MS, TURN};
use crate::net::upgrade::reject::RejectReason;
use monoio::net::TcpStream;
use std::future::poll_fn;
use std::io;
use std::net::TcpListener;
use std::os::fd::AsRawFd;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

/// Connections taken in one turn.
const ACCEPT_BATCH: usize = 64;
/// How long to leave the backlog alone when not even a refusal is possible.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(50);

/// Runs the shard until it has been drained.
pub(super) async fn run(
    inner: Reactor,
    lingering: LingeringSockets,
    listener: TcpListener,
    bell: Arc<Bell>,
    health: &Health,
) -> io::Result<()> {
    let sockets = socket::watch(inner.epoll_fd())?;
    let backlog = socket::watch(listener.as_raw_fd())?;
    let rung = socket::watch(bell.fd())?;
    let reactor = Rc::new(ReactorCell::new(inner));
    reactor.visit(|_| ()); // The shard has items for the backplane before the first connection.
    let listener = Rc::new(listener);
    monoio::spawn(accept_loop(reactor.clone(), lingering, backlog, listener.clone()));
    monoio::spawn(event_loop(reactor.clone(), sockets));
    monoio::spawn(read_loop(reactor.clone()));
    monoio::spawn(bell_loop(reactor.clone(), rung, bell, listener));
    monoio::spawn(write_loop(reactor.clone()));
    monoio::spawn(ring_loop(reactor.clone()));
    health.shard_listens();
    monoio::spawn(clock(reactor.clone())).await;
    // The runtime holds its tasks, and with them the cell, until the process ends. The reactor must be
    // dropped now: the backplane ends once every shard has dropped its end of the window.
    reactor.close();
    Ok(())
}

async fn accept_loop(
    reactor: Rc<ReactorCell>,
    mut lingering: LingeringSockets,
    backlog: TcpStream,
    listener: Rc<TcpListener>,
) {
    let listener = listener.as_raw_fd();
    loop {
        // Sockets that linger have to be closed in time.
        let wait = monoio::time::timeout(Duration::from_secs(1), backlog.readable(false)).await;
        lingering.tick(Instant::now());
        if wait.is_err() {
            continue;
        }
        if reactor.look(|inner| inner.is_draining()) {
            return;
        }
        if !take_connections(&reactor, &mut lingering, listener) {
            monoio::time::sleep(EXHAUSTED_PAUSE).await;
        }
        fair_yield().await;
    }
}

/// One turn at the backlog. `false`: nothing more can be taken for now.
fn take_connections(
    reactor: &ReactorCell,
    lingering: &mut LingeringSockets,
    listener: i32,
) -> bool {
    reactor.visit(|inner| {
        let now = Instant::now();
        let more = take_batch(inner, lingering, listener, now);
        inner.steer(now);
        more
    })
}

fn take_batch(
    inner: &mut Reactor,
    lingering: &mut LingeringSockets,
    listener: i32,
    now: Instant,
) -> bool {
    for _ in 0..ACCEPT_BATCH {
        if now.elapsed() >= TURN {
            return true;
        }
        match accept(listener) {
            Accepted::Socket(socket) => {
                let may = if inner.bypasses_proxies(socket) {
                    Err(RejectReason::NoProxy)
                } else if lingering.admit(now) {
                    inner.accept(socket)
                } else {
                    Err(RejectReason::TooFast)
                };
                if let Err(why) = may {
                    inner.count_rejected(why);
                    lingering.refuse(socket, why, now);
                }
            }
            Accepted::Empty => return true,
            Accepted::Exhausted => {
                if !lingering.refuse_one_for_want_of_files(listener, now) {
                    return false;
                }
                inner.count_no_files();
            }
        }
    }
    true
}

/// Takes the events of sockets, always: a full window must keep no client from receiving what waits
/// for it, nor from being counted as active.
async fn event_loop(reactor: Rc<ReactorCell>, sockets: TcpStream) {
    let mut events: Vec<Readiness> = Vec::new();
    loop {
        if sockets.readable(false).await.is_err() {
            monoio::time::sleep(EXHAUSTED_PAUSE).await;
        }
        loop {
            let more = reactor.visit(|inner| {
                let more = inner.take_events(&mut events);
                for event in events.drain(..) {
                    inner.handle_event(event);
                }
                inner.read_waiting();
                more
            });
            if !more {
                break;
            }
            fair_yield().await;
        }
    }
}

/// Reads on from connections that wait, a turn each, whenever there is room for what they ask.
async fn read_loop(reactor: Rc<ReactorCell>) {
    loop {
        poll_fn(|cx| {
            reactor.look(|inner| {
                if inner.has_unread() && inner.may_read() {
                    return Poll::Ready(());
                }
                inner.reader = Some(cx.waker().clone());
                Poll::Pending
            })
        })
        .await;
        reactor.visit(|inner| inner.read_waiting());
        fair_yield().await;
    }
}

/// Takes what the backplane sends, and lets the shard try the window again when it was full.
async fn bell_loop(
    reactor: Rc<ReactorCell>,
    rung: TcpStream,
    bell: Arc<Bell>,
    listener: Rc<TcpListener>,
) {
    loop {
        let any = reactor.visit(|inner| inner.take_downlink());
        if reactor.look(|inner| inner.is_draining()) {
            socket::stop_listening(listener.as_raw_fd());
        }
        if any {
            fair_yield().await;
            continue;
        }
        if !reactor.look(|inner| inner.may_sleep()) {
            // Something waits, but so much is being written that it must: the writer has its turn.
            fair_yield().await;
            continue;
        }
        if rung.readable(false).await.is_err() {
            monoio::time::sleep(EXHAUSTED_PAUSE).await;
        }
        bell.clear();
    }
}

/// Writes on, one batch a turn, while visits leave something to write.
async fn write_loop(reactor: Rc<ReactorCell>) {
    loop {
        poll_fn(|cx| {
            reactor.look(|inner| {
                if inner.has_sends() {
                    return Poll::Ready(());
                }
                inner.writer = Some(cx.waker().clone());
                Poll::Pending
            })
        })
        .await;
        reactor.visit(|_| ());
        fair_yield().await;
    }
}

/// Rings for visits whose items were few and came soon after those of other visits.
async fn ring_loop(reactor: Rc<ReactorCell>) {
    loop {
        poll_fn(|cx| {
            reactor.look(|inner| {
                if inner.must_ring() {
                    return Poll::Ready(());
                }
                inner.ring_waker = Some(cx.waker().clone());
                Poll::Pending
            })
        })
        .await;
        monoio::time::sleep(RING_INTERVAL).await;
        reactor.look(|inner| inner.ring(Instant::now()));
    }
}

/// Ticks while nothing else does; returns when the shard has ended.
async fn clock(reactor: Rc<ReactorCell>) {
    let mut interval = monoio::time::interval(Duration::from_millis(TICK_MS));
    loop {
        interval.tick().await;
        if reactor.visit(|inner| inner.is_drained()) {
            return;
        }
    }
}

/// Lets every other task that can run have its turn first.
async fn fair_yield() {
    let mut yielded = false;
    poll_fn(move |cx| {
        if yielded {
            return Poll::Ready(());
        }
        yielded = true;
        let waker = cx.waker().clone();
        monoio::spawn(async move { waker.wake() });
        Poll::Pending
    })
    .await;
}
