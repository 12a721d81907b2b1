//! Questions to services of the operator, on their way to the thread that asks them over HTTP.
//!
//! A question takes a [`HookPlace`] with the bytes that it holds, and keeps it until it is answered:
//! so many wait in the whole node, and so many bytes. Each is answered by one
//! [`super::Downlink::Hook`].

use crate::ids::{ConnId, ShardId};
use crate::link::bell::Bell;
use crate::policy::grants::Grants;
use crate::policy::rights::Rights;
use crate::protocol::Info;
use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender, unbounded};
use crossbeam_utils::CachePadded;
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

/// What the places do not count of a question: its entry in queues, and the place.
const ENTRY_BYTES: usize = 256;

/// What a service is asked.
#[derive(Debug)]
pub enum HookQuestion {
    /// Whether a client may connect, and as whom.
    Connect(Box<ConnectQuestion>),
    /// Whether a connection may do something in a room.
    Room(Box<RoomQuestion>),
}

/// A client that the other checks have admitted.
#[derive(Debug, Default)]
pub struct ConnectQuestion {
    /// The user of its token; `None`: it has shown none.
    pub user: Option<Box<str>>,
    /// Its address, if it is known.
    pub address: Option<IpAddr>,
    /// The query of its request, without the token.
    pub query: Box<str>,
    /// Those of its header lines that the service is to see, by their names in lower case.
    pub headers: Vec<(Box<str>, Box<str>)>,
    /// The rooms that it names in the query.
    pub rooms: Vec<String>,
}

/// Something in a room, which the other checks have allowed.
#[derive(Debug)]
pub struct RoomQuestion {
    /// What is to be done.
    pub action: HookedAction,
    /// The connection's user; a generated name, if it has shown no token.
    pub user: Box<str>,
    /// Whether it has shown a token.
    pub has_token: bool,
    /// The room.
    pub room: Box<str>,
    /// The payload that is to be published: a JSON value. Empty for a join.
    pub payload: Bytes,
}

/// What is asked before it is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HookedAction {
    /// To join.
    Join,
    /// To publish.
    Publish,
}

impl HookQuestion {
    /// The bytes that it holds.
    pub fn held_bytes(&self) -> usize {
        let text = match self {
            HookQuestion::Connect(question) => {
                let headers = question.headers.iter();
                let headers: usize =
                    headers.map(|(name, value)| name.len() + value.len() + 32).sum();
                let rooms: usize = question.rooms.iter().map(|room| room.len() + 24).sum();
                question.query.len() + headers + rooms
            }
            HookQuestion::Room(question) => question.room.len() + question.payload.len(),
        };
        ENTRY_BYTES + text
    }
}

/// What a service has decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HookVerdict {
    /// It allows it. Of a client that connects it may say more.
    Allow(Option<Box<HookAdmission>>),
    /// It allows a message, with this payload instead: a JSON value of at most
    /// `limits.message_bytes_max`.
    Replace {
        /// The payload.
        payload: Bytes,
    },
    /// It does not.
    Deny {
        /// For the client: at most 120 bytes, without control characters.
        reason: Box<str>,
    },
    /// There is no answer, and then it is not allowed.
    Failed,
}

/// What a service says of a client that may connect. `None`, empty: it changes nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HookAdmission {
    /// The name of the user.
    pub user: Option<Box<str>>,
    /// What others are shown of the user.
    pub info: Option<Info>,
    /// What the user may do.
    pub rights: Option<Rights>,
    /// What the user may do in rooms and towards users.
    pub grants: Option<Arc<Grants>>,
    /// Rooms to join at once; valid names.
    pub join: Vec<String>,
    /// For how many seconds the connection may last.
    pub expires_in_s: Option<u64>,
}

impl HookAdmission {
    /// The bytes that it holds, about.
    pub fn held_bytes(&self) -> usize {
        let grants = self.grants.as_ref().map_or(0, |_| crate::policy::grants::BYTES_MAX);
        let join: usize = self.join.iter().map(|room| room.len() + 24).sum();
        let info = self.info.as_ref().map_or(0, |info| info.len());
        size_of::<HookAdmission>() + grants + join + info
    }
}

/// The answer to a question.
#[derive(Debug)]
pub struct HookReply {
    /// Whose question; it may have closed since.
    pub conn: ConnId,
    /// What was decided.
    pub verdict: HookVerdict,
}

/// A question with its place.
#[derive(Debug)]
pub struct HookAsk {
    /// The question.
    pub question: HookQuestion,
    /// Whose connection.
    pub shard: ShardId,
    /// Which connection; it may close before the answer.
    pub conn: ConnId,
    /// When it was sent.
    pub since: Instant,
    /// Given back when it is answered.
    pub place: HookPlace,
}

/// What is taken of the places.
#[derive(Default)]
struct Taken {
    questions: CachePadded<AtomicUsize>,
    bytes: CachePadded<AtomicUsize>,
}

/// A place; given back when dropped.
pub struct HookPlace {
    taken: Arc<Taken>,
    bytes: usize,
}

impl Drop for HookPlace {
    fn drop(&mut self) {
        self.taken.questions.fetch_sub(1, Ordering::Release);
        self.taken.bytes.fetch_sub(self.bytes, Ordering::Release);
    }
}

impl fmt::Debug for HookPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HookPlace({} bytes)", self.bytes)
    }
}

/// How many questions wait, and how many bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HookPlaces {
    /// Questions at most.
    pub questions_max: usize,
    /// Bytes at most.
    pub bytes_max: usize,
}

/// What each shard holds.
#[derive(Clone)]
pub struct HookSender {
    asks: Sender<HookAsk>,
    bell: Arc<Bell>,
    taken: Arc<Taken>,
    places: HookPlaces,
}

impl HookSender {
    /// A place for one more question, which holds so many bytes. `None`: as many wait as may.
    pub fn try_place(&self, bytes: usize) -> Option<HookPlace> {
        let more = |counter: &AtomicUsize, by: usize, max: usize| {
            let step = |taken: usize| taken.checked_add(by).filter(|sum| *sum <= max);
            counter.fetch_update(Ordering::Acquire, Ordering::Relaxed, step).is_ok()
        };
        let HookPlaces { questions_max, bytes_max } = self.places;
        if !more(&self.taken.questions, 1, questions_max) {
            return None;
        }
        if !more(&self.taken.bytes, bytes, bytes_max) {
            self.taken.questions.fetch_sub(1, Ordering::Release);
            return None;
        }
        Some(HookPlace { taken: self.taken.clone(), bytes })
    }

    /// Sends a question and wakes the thread that asks. `false`: that has ended.
    #[must_use]
    pub fn send(&self, ask: HookAsk) -> bool {
        let is_sent = self.asks.send(ask).is_ok();
        self.bell.ring();
        is_sent
    }
}

/// What the thread holds that asks.
pub struct HookReceiver {
    asks: Receiver<HookAsk>,
    bell: Arc<Bell>,
    taken: Arc<Taken>,
}

impl HookReceiver {
    /// The next question.
    pub fn try_recv(&self) -> Option<HookAsk> {
        self.asks.try_recv().ok()
    }

    /// Questions that are not answered, and their bytes.
    pub fn taken(&self) -> (usize, usize) {
        let Taken { questions, bytes } = &*self.taken;
        (questions.load(Ordering::Relaxed), bytes.load(Ordering::Relaxed))
    }

    /// Whether the thread may now wait for its bell.
    #[must_use]
    pub fn may_sleep(&self) -> bool {
        self.bell.may_sleep(|| self.asks.is_empty())
    }

    /// After waking.
    pub fn clear(&self) {
        self.bell.clear();
    }
}

impl AsFd for HookReceiver {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }
}

/// Both ends. Fails only when the kernel gives no descriptor.
pub fn hooks(places: HookPlaces) -> io::Result<(HookSender, HookReceiver)> {
    let (sender, receiver) = unbounded(); // as many as there are places
    let (bell, taken) = (Arc::new(Bell::new()?), Arc::<Taken>::default());
    let (own_bell, own_taken) = (bell.clone(), taken.clone());
    Ok((
        HookSender { asks: sender, bell, taken, places },
        HookReceiver { asks: receiver, bell: own_bell, taken: own_taken },
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::SlotId;

    #[test]
    fn questions_and_their_bytes_have_places_and_give_them_back() {
        let places = HookPlaces { questions_max: 2, bytes_max: 1000 };
        let (sender, receiver) = hooks(places).unwrap();
        let first = sender.try_place(600).expect("there is room");
        assert!(sender.try_place(600).is_none(), "too many bytes");
        let second = sender.try_place(400).expect("just as many");
        assert!(sender.try_place(0).is_none(), "too many questions");
        drop(second);
        assert_eq!(receiver.taken(), (1, 600));
        let ask = HookAsk {
            question: HookQuestion::Connect(Box::default()),
            shard: ShardId(0),
            conn: ConnId(SlotId { index: 0, generation: 0 }),
            since: Instant::now(),
            place: first,
        };
        assert!(sender.send(ask) && !receiver.may_sleep());
        drop(receiver.try_recv().expect("it was sent"));
        assert!(receiver.may_sleep());
        assert_eq!(receiver.taken(), (0, 0));
    }
}
