//! The shard's tasks: who waits for what, and what each tells the shard when it comes.
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
pub async fn run(
    room: Reactor,
    lounge: LingeringSockets,
    listener: TcpListener,
    bell: Arc<Bell>,
    health: &Health,
) -> io::Result<()> {
    let sockets = socket::watch(room.epoll_fd())?;
    let backlog = socket::watch(listener.as_raw_fd())?;
    let rung = socket::watch(bell.fd())?;
    let door = Rc::new(ReactorCell::new(room));
    door.visit(|_| ()); // The shard has something to say before anybody comes.
    let listener = Rc::new(listener);
    monoio::spawn(accept_loop(door.clone(), lounge, backlog, listener.clone()));
    monoio::spawn(event_loop(door.clone(), sockets));
    monoio::spawn(read_loop(door.clone()));
    monoio::spawn(bell_loop(door.clone(), rung, bell, listener));
    monoio::spawn(write_loop(door.clone()));
    monoio::spawn(ring_loop(door.clone()));
    health.shard_listens();
    monoio::spawn(clock(door.clone())).await;
    // The runtime keeps its tasks, and with them the door, for as long as the process lives. The
    // room must go now: the backplane ends once every shard has dropped its end of the window.
    door.close();
    Ok(())
}

async fn accept_loop(
    door: Rc<ReactorCell>,
    mut lounge: LingeringSockets,
    backlog: TcpStream,
    listener: Rc<TcpListener>,
) {
    let listener = listener.as_raw_fd();
    loop {
        // While guests are in the lounge somebody has to show them out.
        let wait = monoio::time::timeout(Duration::from_secs(1), backlog.readable(false)).await;
        lounge.tick(Instant::now());
        if wait.is_err() {
            continue;
        }
        if door.look(|room| room.is_draining()) {
            return;
        }
        if !take_connections(&door, &mut lounge, listener) {
            monoio::time::sleep(EXHAUSTED_PAUSE).await;
        }
        fair_yield().await;
    }
}

/// One turn at the backlog. `false`: nothing more can be taken for now.
fn take_connections(door: &ReactorCell, lounge: &mut LingeringSockets, listener: i32) -> bool {
    door.visit(|room| {
        let now = Instant::now();
        let more = take_batch(room, lounge, listener, now);
        room.steer(now);
        more
    })
}

fn take_batch(
    room: &mut Reactor,
    lounge: &mut LingeringSockets,
    listener: i32,
    now: Instant,
) -> bool {
    for _ in 0..ACCEPT_BATCH {
        if now.elapsed() >= TURN {
            return true;
        }
        match accept(listener) {
            Accepted::Socket(socket) => {
                let may = if room.is_stranger(socket) {
                    Err(RejectReason::NoProxy)
                } else if lounge.admit(now) {
                    room.accept(socket)
                } else {
                    Err(RejectReason::TooFast)
                };
                if let Err(why) = may {
                    room.count_rejected(why);
                    lounge.refuse(socket, why, now);
                }
            }
            Accepted::Empty => return true,
            Accepted::Exhausted => {
                if !lounge.refuse_one_for_want_of_files(listener, now) {
                    return false;
                }
                room.count_no_files();
            }
        }
    }
    true
}

/// Takes what happens to sockets, always: a full window must not keep anybody from hearing what
/// waits for them, nor from being counted as alive.
async fn event_loop(door: Rc<ReactorCell>, sockets: TcpStream) {
    let mut events: Vec<Readiness> = Vec::new();
    loop {
        if sockets.readable(false).await.is_err() {
            monoio::time::sleep(EXHAUSTED_PAUSE).await;
        }
        loop {
            let more = door.visit(|room| {
                let more = room.take_events(&mut events);
                for event in events.drain(..) {
                    room.handle_event(event);
                }
                room.read_waiting();
                more
            });
            if !more {
                break;
            }
            fair_yield().await;
        }
    }
}

/// Reads on from those who wait, a turn each, whenever there is room for what they ask.
async fn read_loop(door: Rc<ReactorCell>) {
    loop {
        poll_fn(|cx| {
            door.look(|room| {
                if room.has_unread() && room.may_read() {
                    return Poll::Ready(());
                }
                room.reader = Some(cx.waker().clone());
                Poll::Pending
            })
        })
        .await;
        door.visit(|room| room.read_waiting());
        fair_yield().await;
    }
}

/// Takes what the backplane sends, and lets the shard try the window again when it was full.
async fn bell_loop(
    door: Rc<ReactorCell>,
    rung: TcpStream,
    bell: Arc<Bell>,
    listener: Rc<TcpListener>,
) {
    loop {
        let any = door.visit(|room| room.take_downlink());
        if door.look(|room| room.is_draining()) {
            socket::stop_listening(listener.as_raw_fd());
        }
        if any {
            fair_yield().await;
            continue;
        }
        if !door.look(|room| room.may_sleep()) {
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
async fn write_loop(door: Rc<ReactorCell>) {
    loop {
        poll_fn(|cx| {
            door.look(|room| {
                if room.has_sends() {
                    return Poll::Ready(());
                }
                room.writer = Some(cx.waker().clone());
                Poll::Pending
            })
        })
        .await;
        door.visit(|_| ());
        fair_yield().await;
    }
}

/// Rings for visits that had little to say to the backplane soon after others had.
async fn ring_loop(door: Rc<ReactorCell>) {
    loop {
        poll_fn(|cx| {
            door.look(|room| {
                if room.must_ring() {
                    return Poll::Ready(());
                }
                room.ring_waker = Some(cx.waker().clone());
                Poll::Pending
            })
        })
        .await;
        monoio::time::sleep(RING_INTERVAL).await;
        door.look(|room| room.ring(Instant::now()));
    }
}

/// Ticks while nothing else does; returns when the shard has ended.
async fn clock(door: Rc<ReactorCell>) {
    let mut interval = monoio::time::interval(Duration::from_millis(TICK_MS));
    loop {
        interval.tick().await;
        if door.visit(|room| room.is_drained()) {
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
