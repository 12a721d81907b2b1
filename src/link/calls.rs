//! HTTP requests of the public port on their way to the ops thread.
//!
//! A request takes a [`CallPlace`] when its head is there, and keeps it until it is answered: so many
//! are under way in the whole node, their bodies included, and the channel always has room for one
//! that has a place. The answer is a [`super::Downlink::HttpReply`].

use crate::ids::{ConnId, ShardId};
use crate::link::bell::Bell;
use crate::link::ledger::{Ledger, LedgerHold};
use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender, bounded};
use crossbeam_utils::CachePadded;
use http::request::Parts;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A whole request.
#[derive(Debug)]
pub struct Call {
    /// Its head.
    pub parts: Parts,
    /// Its body; may be empty.
    pub body: Bytes,
    /// Whose connection it came by.
    pub shard: ShardId,
    /// Which connection; it may close before the answer.
    pub conn: ConnId,
    /// The client's address, if it is known.
    pub peer: Option<SocketAddr>,
    /// Given back when it is answered.
    pub place: CallPlace,
}

/// One of the places; given back when dropped. What it holds is in the ledger until then.
#[derive(Debug)]
pub struct CallPlace {
    taken: Arc<CachePadded<AtomicUsize>>,
    hold: LedgerHold,
}

impl CallPlace {
    /// The request, or its answer, has so many bytes.
    pub fn hold(&mut self, bytes: usize) {
        self.hold.set(bytes as u64);
    }
}

impl Drop for CallPlace {
    fn drop(&mut self) {
        self.taken.fetch_sub(1, Ordering::Release);
    }
}

/// What each shard holds.
#[derive(Clone)]
pub struct CallSender {
    calls: Sender<Call>,
    bell: Arc<Bell>,
    taken: Arc<CachePadded<AtomicUsize>>,
    max: usize,
    ledger: Arc<Ledger>,
}

impl CallSender {
    /// A place for one more request. `None`: all are taken.
    pub fn try_place(&self) -> Option<CallPlace> {
        let more = |taken| (taken < self.max).then_some(taken + 1);
        let taken = self.taken.fetch_update(Ordering::Acquire, Ordering::Relaxed, more);
        taken.ok().map(|_| CallPlace {
            taken: self.taken.clone(),
            hold: LedgerHold::new(self.ledger.clone()),
        })
    }

    /// Sends a request and wakes the ops thread. `false`: that has ended.
    #[must_use]
    pub fn send(&self, mut call: Call) -> bool {
        call.place.hold(call.body.len());
        let is_sent = self.calls.try_send(call).is_ok();
        self.bell.ring();
        is_sent
    }
}

/// What the ops thread holds.
pub struct CallReceiver {
    calls: Receiver<Call>,
    bell: Arc<Bell>,
}

impl CallReceiver {
    /// The next request.
    pub fn try_recv(&self) -> Option<Call> {
        self.calls.try_recv().ok()
    }

    /// Whether the thread may now wait for its bell.
    #[must_use]
    pub fn may_sleep(&self) -> bool {
        self.bell.may_sleep(|| self.calls.is_empty())
    }

    /// After waking.
    pub fn clear(&self) {
        self.bell.clear();
    }
}

impl AsFd for CallReceiver {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }
}

/// Both ends, for at most `max` requests at a time. Fails only when the kernel gives no descriptor.
pub fn calls(max: usize, ledger: Arc<Ledger>) -> io::Result<(CallSender, CallReceiver)> {
    let (sender, receiver) = bounded(max);
    let (bell, taken) = (Arc::new(Bell::new()?), Arc::default());
    let own = bell.clone();
    Ok((
        CallSender { calls: sender, bell, taken, max, ledger },
        CallReceiver { calls: receiver, bell: own },
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::SlotId;

    fn call(place: CallPlace) -> Call {
        let body = Bytes::from_static(&[b'x'; 100]);
        let (parts, ()) = http::Request::new(()).into_parts();
        let conn = ConnId(SlotId { index: 0, generation: 0 });
        Call { parts, body, shard: ShardId(0), conn, peer: None, place }
    }

    #[test]
    fn as_many_as_may_be_have_a_place_and_the_channel_takes_all_of_them() {
        let ledger = Arc::new(Ledger::new(1 << 30, 0));
        let held = || ledger.reading().held;
        let (sender, receiver) = calls(3, ledger.clone()).unwrap();
        let places: Vec<CallPlace> = (0..3).map(|_| sender.try_place().unwrap()).collect();
        assert!(sender.try_place().is_none());
        assert!(places.into_iter().all(|place| sender.send(call(place))));
        assert!(!receiver.may_sleep());
        assert_eq!(held(), 300, "what they hold is in the ledger");
        drop(receiver.try_recv().unwrap());
        let place = sender.try_place().expect("one was given back");
        assert!(sender.try_place().is_none());
        assert!(sender.send(call(place)));
        assert_eq!(std::iter::from_fn(|| receiver.try_recv()).count(), 3);
        assert_eq!(held(), 0);
        assert!(receiver.may_sleep());
    }
}
