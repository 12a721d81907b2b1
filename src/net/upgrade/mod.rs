//! What happens on a connection before it is a WebSocket: one stage after another.
//!
//! ```text
//!   ProxyHeader ──► Head ──► (a WebSocket, or an answer and the end)
//!                   ▲  ├───► FirstMessage ──► (a WebSocket, or the end)
//!                   │  ├───► Waiting ───────► (a WebSocket, or an answer and the end)
//!                   │  ├───► KeyWait ───────► (Waiting, a WebSocket, or an answer and the end)
//!                   │  └───► Body ──► Answer ──┐
//!                   └──────────────────────────┘
//! ```
//!
//! | stage | begins | bytes |
//! |---|---|---|
//! | `ProxyHeader` | with the connection, unless `proxy_protocol = off` | 536 |
//! | `Head` | with the connection, or behind a PROXY header or an answer | `head_bytes_max` |
//! | `FirstMessage` | behind the head of a WebSocket that may send its token later | 32 KiB |
//! | `Body` | behind the head of a request for the API | `http_body_bytes_max` |
//! | `Waiting` | behind the head of a WebSocket, with `hooks.connect_url` | one read of what follows |
//! | `KeyWait` | behind a token that names a key that is not known | its head or message, one read |
//! | `Answer` | when that is whole, and the ops thread has it | one read of what follows |
//!
//! PROXY header and first head have one deadline together, the shard's `handshake_timeout_ms`, over
//! all reads, so that dripping bytes buys no time; each further head of a connection has one of its
//! own, a body has `http_body_timeout_ms`, and a first message `auth.first_message_timeout_ms`. In
//! `Answer`, `Waiting` and `KeyWait` the connection is not read, so a second request waits until the
//! first one is answered. `Waiting` ends with the verdict of the hook, which comes within
//! `hooks.waiting_timeout_ms` and `hooks.timeout_ms`.
//!
//! `KeyWait` ends when the keys of `auth.jwks_url` were read, or after another `handshake_timeout_ms`;
//! the token is judged again then. At most [`KEY_WAITS_MAX`] of a shard are in it.
//!
//! Connections in a stage are bounded by `handshakes_max`, those in `Body` and `Answer` by
//! `http_calls_max`, and those in `Waiting` by `hooks.waiting_max` and `hooks.waiting_bytes_max`.
//!
//! Invariant: what a connection holds here is at most its stage's bytes, rounded up to what the
//! allocator's doubling gives; one that has become a WebSocket holds nothing. No byte of a connection
//! reaches the HTTP parser before its PROXY header is judged.

mod body;
pub mod first_message;
pub mod forwarded;
pub mod http_head;
mod key_wait;
mod origin;
mod page;
pub mod proxy_header;
mod query;
pub mod reject;
pub mod routes;
mod waiting;

use crate::link::calls::{CallPlace, CallSender};
use crate::link::hooks::{ConnectQuestion, HookPlace, HookQuestion, HookSender, HookVerdict};
use crate::plan::ProxyProtocol;
use crate::policy::networks::any_contains;
use crate::protocol::dialect::{AuthRequest, Encoding};
use crate::shard::Opening;
use body::{BodyPlan, CONTINUE};
use bytes::{Buf, Bytes, BytesMut};
use first_message::{FirstMessage, FirstRead};
use http::request::Parts;
use http_head::HeadRead;
use key_wait::{HeadOfWait, HeldToken};
use proxy_header::ProxyHeader;
use reject::RejectReason;
use routes::{Attempt, AwaitedOpening, HandshakeRefusal, RouteOutcome, Routes, UNKNOWN_KEY};
use std::collections::HashMap;
use std::net::SocketAddr;

/// Connections of a shard that wait for keys, at most. Further ones may come again.
pub const KEY_WAITS_MAX: usize = 256;

/// Connections that have begun a stage, by the index of their connection.
#[derive(Default)]
pub struct Upgrades {
    begun: HashMap<u32, Begun>,
    /// Memory of all [`Begun::bytes`].
    held_bytes: usize,
    /// Those in `Body` or `Answer`.
    calls: usize,
    /// Those in `Waiting`.
    waiting: usize,
    /// Those in `KeyWait`.
    key_waits: usize,
}

/// What the stages read of the node and the socket.
pub struct StageContext<'a> {
    /// The public port's paths.
    pub routes: &'a Routes,
    /// The way to the ops thread.
    pub calls: &'a CallSender,
    /// The way to the thread that asks hooks.
    pub hooks: &'a HookSender,
    /// Answers the address of the socket's peer. Asked only where a proxy may be trusted.
    pub direct: &'a dyn Fn() -> Option<SocketAddr>,
    /// The shard's clock.
    pub now_ms: u64,
    /// The time of day.
    pub now_unix_s: u64,
}

/// One connection that has begun a stage.
struct Begun {
    stage: Stage,
    /// What has come of it.
    bytes: BytesMut,
    /// The client's address from a PROXY header.
    named: Option<SocketAddr>,
    /// When its stage must be over, in milliseconds of the shard's clock. 0: when the shard says so.
    deadline_ms: u64,
    /// Whether a request of it was answered.
    is_served: bool,
}

enum Stage {
    ProxyHeader,
    Head,
    FirstMessage(Box<FirstMessage>),
    Body(Box<BegunCall>),
    Answer,
    Waiting(Box<WaitingOpening>),
    KeyWait(Box<HeldToken>),
}

/// A handshake that a hook is asked about.
struct WaitingOpening {
    opening: Opening,
    /// The bytes for which its question has a place.
    held_bytes: usize,
}

/// A request for the API whose body is awaited.
struct BegunCall {
    parts: Parts,
    body_bytes: usize,
    place: CallPlace,
}

/// What has become of a connection.
pub enum Progress {
    /// More bytes are needed.
    More,
    /// More bytes are needed, and the client waits for this before it sends them.
    Interim(Bytes),
    /// The request is a valid handshake: the connection becomes a WebSocket.
    Open {
        /// For the shard.
        opening: Opening,
        /// The client's address where a proxy has named it; otherwise the socket's peer is the client.
        named: Option<SocketAddr>,
        /// Bytes after the head, for the decoder; may be empty.
        rest: BytesMut,
        /// Where its token came in its first message, which is answered.
        first: Option<AuthRequest>,
    },
    /// It is a WebSocket that has to send its token. This leaves now.
    AwaitToken {
        /// The 101 answer.
        response: Bytes,
        /// Until then, in milliseconds of the shard's clock.
        deadline_ms: u64,
    },
    /// Its token names a key that is not known: it is not to be read until [`Upgrades::handle_keys`].
    AwaitKeys {
        /// As in `Open`.
        named: Option<SocketAddr>,
    },
    /// It has got a page: a complete HTTP answer, then the end.
    Page(Bytes),
    /// A whole request for the API. The connection is not to be read until it is answered.
    Call {
        /// Its head.
        parts: Box<Parts>,
        /// The whole body; empty, if the request has none.
        body: Bytes,
        /// As in `Open`.
        named: Option<SocketAddr>,
        /// For as long as it is under way.
        place: CallPlace,
    },
    /// A hook is to be asked whether it is admitted. The connection is not to be read until then.
    Ask {
        /// What the hook is asked.
        question: Box<ConnectQuestion>,
        /// As in `Open`.
        named: Option<SocketAddr>,
        /// Until it is answered.
        place: HookPlace,
    },
    /// It is refused.
    Reject(RejectReason),
    /// It would be a WebSocket, whose client is not admitted.
    Refuse(HandshakeRefusal),
    /// Its socket has failed.
    Gone,
}

/// What has come of the first stage.
enum ProxyVerdict {
    /// What follows is HTTP.
    Next,
    More,
    Gone,
    Reject(RejectReason),
}

/// What is to become of a connection whose time is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimedOut {
    /// Its stage has more time.
    NotYet {
        /// Until then, in milliseconds of the shard's clock; `None`: for as long as it takes.
        deadline_ms: Option<u64>,
    },
    /// It is refused.
    Reject(RejectReason),
    /// It is refused, and is a WebSocket already.
    Close(Encoding, RejectReason),
    /// It ends: it was served, and asks nothing more.
    End,
}

/// The stage of a connection that was closed by its peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeftAt {
    /// No byte of a request had arrived: a health check.
    Nothing,
    /// In the middle of a header, a head or a body.
    Halfway,
    /// Behind an answer.
    Served,
}

impl Upgrades {
    /// More bytes of the connection at `index`.
    pub fn handle_read(&mut self, index: u32, input: &[u8], context: &StageContext) -> Progress {
        let mut begun = self.take(index).unwrap_or_else(|| Begun::new(context.routes));
        let before = begun.bytes.len();
        begun.bytes.extend_from_slice(input);
        self.go_on(index, begun, before, context)
    }

    /// Whether the connection at `index` was not to be read until it is answered.
    pub fn is_answering(&self, index: u32) -> bool {
        self.begun.get(&index).is_some_and(|begun| matches!(begun.stage, Stage::Answer))
    }

    /// The connection at `index` was answered: its next request begins, with what came of it already.
    pub fn handle_answered(&mut self, index: u32, context: &StageContext) -> Progress {
        let Some(mut begun) = self.take(index) else { return Progress::More };
        begun.stage = Stage::Head;
        begun.is_served = true;
        begun.deadline_ms = context.now_ms + context.routes.plan().limits.handshake_timeout_ms;
        self.go_on(index, begun, 0, context)
    }

    /// Whether the connection at `index` waits for the verdict of a hook.
    pub fn is_waiting(&self, index: u32) -> bool {
        self.begun.get(&index).is_some_and(|begun| matches!(begun.stage, Stage::Waiting(_)))
    }

    /// The hook has decided about the connection at `index`.
    pub fn handle_verdict(
        &mut self,
        index: u32,
        verdict: HookVerdict,
        context: &StageContext,
    ) -> Progress {
        let Some(begun) = self.take(index) else { return Progress::More };
        let Begun { stage: Stage::Waiting(waiting), bytes, named, .. } = begun else {
            unreachable!("a verdict is for a connection that waits for it")
        };
        let plan = context.routes.plan();
        match waiting::decide(waiting.opening, verdict, plan, context.now_unix_s) {
            Ok(opening) => Progress::Open { opening, named, rest: bytes, first: None },
            Err(refusal) => Progress::Refuse(refusal),
        }
    }

    /// Whether the connection at `index` waits for keys.
    pub fn is_awaiting_keys(&self, index: u32) -> bool {
        self.begun.get(&index).is_some_and(|begun| matches!(begun.stage, Stage::KeyWait(_)))
    }

    /// The keys were read since the connection at `index` waits for them, or it has waited for long
    /// enough: it is judged again.
    pub fn handle_keys(
        &mut self,
        index: u32,
        attempt: Attempt,
        context: &StageContext,
    ) -> Progress {
        let Some(mut begun) = self.take(index) else { return Progress::More };
        let may_wait = attempt == Attempt::First;
        let progress = match std::mem::replace(&mut begun.stage, Stage::Head) {
            Stage::KeyWait(wait) => match *wait {
                HeldToken::Head(head) => begun.judge(head, attempt, may_wait, context),
                HeldToken::First(opening, request) => {
                    begun.admit_first(opening, request, attempt, may_wait, context)
                }
            },
            _ => unreachable!("keys are for a connection that waits for them"),
        };
        self.keep(index, begun, progress)
    }

    fn go_on(
        &mut self,
        index: u32,
        mut begun: Begun,
        before: usize,
        context: &StageContext,
    ) -> Progress {
        let may_wait = self.key_waits < KEY_WAITS_MAX;
        let progress = begun.step(before, may_wait, context);
        self.keep(index, begun, progress)
    }

    /// Stores a connection that goes on.
    fn keep(&mut self, index: u32, begun: Begun, progress: Progress) -> Progress {
        let goes_on = matches!(
            progress,
            Progress::More
                | Progress::Interim(_)
                | Progress::AwaitToken { .. }
                | Progress::AwaitKeys { .. }
                | Progress::Call { .. }
                | Progress::Ask { .. }
        );
        if goes_on {
            self.held_bytes += begun.held_bytes();
            self.calls += usize::from(begun.is_call());
            self.waiting += usize::from(matches!(begun.stage, Stage::Waiting(_)));
            self.key_waits += usize::from(matches!(begun.stage, Stage::KeyWait(_)));
            self.begun.insert(index, begun);
        }
        progress
    }

    /// The deadline of the connection at `index` has passed, by the shard's clock.
    pub fn timed_out(&self, index: u32, routes: &Routes, now_ms: u64) -> TimedOut {
        let protocol = routes.plan().proxy_protocol;
        let Some(begun) = self.begun.get(&index) else {
            return TimedOut::Reject(late_head(protocol == ProxyProtocol::Required));
        };
        if begun.deadline_ms > now_ms {
            return TimedOut::NotYet { deadline_ms: Some(begun.deadline_ms) };
        }
        match &begun.stage {
            Stage::ProxyHeader => TimedOut::Reject(late_head(protocol == ProxyProtocol::Required)),
            Stage::Head if begun.is_served && begun.bytes.is_empty() => TimedOut::End,
            Stage::Head => TimedOut::Reject(RejectReason::HeadTimeout),
            Stage::FirstMessage(first) => {
                TimedOut::Close(first.opening.encoding, RejectReason::AuthTimeout)
            }
            Stage::Body(_) => TimedOut::Reject(RejectReason::BodyTimeout),
            Stage::Answer | Stage::Waiting(_) | Stage::KeyWait(_) => {
                TimedOut::NotYet { deadline_ms: None }
            }
        }
    }

    /// The client's address where a proxy has named it, of a connection that is in a stage.
    pub fn named(&self, index: u32) -> Option<SocketAddr> {
        self.begun.get(&index)?.named
    }

    /// Whether a request of the connection at `index` was answered.
    pub fn is_served(&self, index: u32) -> bool {
        self.begun.get(&index).is_some_and(|begun| begun.is_served)
    }

    /// The connection at `index` was closed.
    pub fn forget(&mut self, index: u32) -> LeftAt {
        match self.take(index) {
            Some(Begun { stage: Stage::Waiting(_) | Stage::KeyWait(_), .. }) => LeftAt::Halfway,
            Some(begun) if begun.is_halfway() => LeftAt::Halfway,
            Some(begun) if begun.is_served => LeftAt::Served,
            _ => LeftAt::Nothing,
        }
    }

    /// Memory that headers, heads and bodies hold which are not whole.
    pub fn held_bytes(&self) -> usize {
        self.held_bytes
    }

    /// Requests for the API that are received or carried out.
    pub fn calls(&self) -> usize {
        self.calls
    }

    /// Connections that wait for the verdict of a hook.
    pub fn waiting(&self) -> usize {
        self.waiting
    }

    /// Connections that wait for keys.
    pub fn key_waits(&self) -> usize {
        self.key_waits
    }

    fn take(&mut self, index: u32) -> Option<Begun> {
        let begun = self.begun.remove(&index)?;
        self.held_bytes -= begun.held_bytes();
        self.calls -= usize::from(begun.is_call());
        self.waiting -= usize::from(matches!(begun.stage, Stage::Waiting(_)));
        self.key_waits -= usize::from(matches!(begun.stage, Stage::KeyWait(_)));
        Some(begun)
    }
}

/// A balancer's health check that only connects is not answered.
fn late_head(needs_proxy_header: bool) -> RejectReason {
    match needs_proxy_header {
        true => RejectReason::ProxyTimeout,
        false => RejectReason::HeadTimeout,
    }
}

impl Begun {
    fn new(routes: &Routes) -> Begun {
        let stage = match routes.plan().proxy_protocol {
            ProxyProtocol::Off => Stage::Head,
            ProxyProtocol::Optional | ProxyProtocol::Required => Stage::ProxyHeader,
        };
        Begun { stage, bytes: BytesMut::new(), named: None, deadline_ms: 0, is_served: false }
    }

    fn is_call(&self) -> bool {
        matches!(self.stage, Stage::Body(_) | Stage::Answer)
    }

    /// Whether it is in the middle of something.
    fn is_halfway(&self) -> bool {
        !self.bytes.is_empty() || self.is_call() || matches!(self.stage, Stage::FirstMessage(_))
    }

    /// Memory of what has come of it.
    fn held_bytes(&self) -> usize {
        let of_stage = match &self.stage {
            Stage::FirstMessage(first) => first.held_bytes(),
            Stage::Waiting(waiting) => waiting.held_bytes,
            Stage::KeyWait(wait) => wait.held_bytes(),
            _ => 0,
        };
        self.bytes.capacity() + of_stage
    }

    /// Continues as far as the bytes allow; the first `before` of them were looked at already.
    fn step(&mut self, mut before: usize, may_wait: bool, context: &StageContext) -> Progress {
        if matches!(self.stage, Stage::ProxyHeader) {
            match self.read_proxy_header(context) {
                ProxyVerdict::Next => before = 0,
                ProxyVerdict::More => return Progress::More,
                ProxyVerdict::Gone => return Progress::Gone,
                ProxyVerdict::Reject(reason) => return Progress::Reject(reason),
            }
        }
        match self.stage {
            Stage::Body(_) => self.read_body(context),
            Stage::FirstMessage(_) => self.read_first_message(may_wait, context),
            Stage::Head if !self.bytes.is_empty() => self.read_head(before, may_wait, context),
            _ => Progress::More,
        }
    }

    fn read_head(&mut self, before: usize, may_wait: bool, context: &StageContext) -> Progress {
        let routes = context.routes;
        let all_bytes = self.bytes.len();
        let parts = match http_head::read(&mut self.bytes, before, routes.head_bytes_max()) {
            Ok(HeadRead::More) => return Progress::More,
            Ok(HeadRead::Whole(parts)) => *parts,
            Err(reason) => return Progress::Reject(reason),
        };
        let head_bytes = all_bytes - self.bytes.len();
        self.judge(HeadOfWait { parts, head_bytes }, Attempt::First, may_wait, context)
    }

    /// Judges a whole head.
    fn judge(
        &mut self,
        head: HeadOfWait,
        attempt: Attempt,
        may_wait: bool,
        context: &StageContext,
    ) -> Progress {
        let outcome = context.routes.answer_at(&head.parts, attempt, context.now_unix_s);
        if may_wait && outcome.is_of_unknown_key() {
            let named = self.client(&head.parts.headers, context);
            return self.await_keys(HeldToken::Head(head), named);
        }
        let parts = head.parts;
        match outcome {
            RouteOutcome::Open(opening) => self.open(parts, opening, context),
            RouteOutcome::AwaitToken(opening) => {
                self.begin_first_message(&parts.headers, opening, may_wait, context)
            }
            RouteOutcome::Page(response) => Progress::Page(response),
            RouteOutcome::Reject(reason) => Progress::Reject(reason),
            RouteOutcome::Refuse(refusal) => Progress::Refuse(refusal),
            RouteOutcome::Call => self.begin_call(parts, context),
        }
    }

    fn begin_first_message(
        &mut self,
        headers: &http::HeaderMap,
        opening: AwaitedOpening,
        may_wait: bool,
        context: &StageContext,
    ) -> Progress {
        self.named = self.client(headers, context);
        let timeout_ms = context.routes.plan().auth.first_message_timeout_ms;
        self.deadline_ms = context.now_ms + timeout_ms;
        self.stage = Stage::FirstMessage(Box::new(FirstMessage::new(opening)));
        match self.read_first_message(may_wait, context) {
            Progress::Interim(response) => {
                Progress::AwaitToken { response, deadline_ms: self.deadline_ms }
            }
            progress => progress,
        }
    }

    fn read_first_message(&mut self, may_wait: bool, context: &StageContext) -> Progress {
        let Stage::FirstMessage(first) = &mut self.stage else { return Progress::More };
        let read = first.read(&mut self.bytes);
        let opening = &mut first.opening;
        let (encoding, response) = (opening.encoding, std::mem::take(&mut opening.response));
        let rooms = std::mem::take(&mut opening.rooms);
        match read {
            FirstRead::More(out) => {
                opening.rooms = rooms;
                if out.is_empty() { Progress::More } else { Progress::Interim(out) }
            }
            FirstRead::Token(request) => {
                let opening = AwaitedOpening { response, rooms, encoding };
                self.admit_first(opening, request, Attempt::First, may_wait, context)
            }
            FirstRead::End(reason, close) => {
                Progress::Refuse(first_message::refuse(encoding, reason, response, close))
            }
        }
    }

    /// Judges the token of a first message.
    fn admit_first(
        &mut self,
        opening: AwaitedOpening,
        request: AuthRequest,
        attempt: Attempt,
        may_wait: bool,
        context: &StageContext,
    ) -> Progress {
        let token = Some(&*request.token);
        let admitted = context.routes.admit(token, attempt, context.now_unix_s);
        if may_wait && admitted == Err(UNKNOWN_KEY) {
            return self.await_keys(HeldToken::First(opening, request), self.named);
        }
        let AwaitedOpening { response: before, rooms, encoding } = opening;
        match admitted {
            Ok(identity) => Progress::Open {
                opening: Opening { identity, response: before, rooms, encoding },
                named: self.named,
                rest: std::mem::take(&mut self.bytes),
                first: Some(request),
            },
            Err(reason) => Progress::Refuse(first_message::refuse(encoding, reason, before, None)),
        }
    }

    fn await_keys(&mut self, wait: HeldToken, named: Option<SocketAddr>) -> Progress {
        // The memory of what is in `wait` is given back; what follows it is at most one read.
        self.bytes = BytesMut::from(&self.bytes[..]);
        self.stage = Stage::KeyWait(Box::new(wait));
        Progress::AwaitKeys { named }
    }

    /// The client is admitted, unless a hook is to be asked first.
    fn open(&mut self, parts: Parts, opening: Opening, context: &StageContext) -> Progress {
        let named = self.client(&parts.headers, context);
        let plan = context.routes.plan();
        if plan.hooks.connect_url.is_none() {
            let rest = std::mem::take(&mut self.bytes);
            return Progress::Open { named, opening, rest, first: None };
        }
        let address = named.or_else(context.direct).map(|peer| peer.ip());
        let question = waiting::question(&parts, &opening, address, plan);
        let question = HookQuestion::Connect(Box::new(question));
        // The memory of the head is given back; what follows it is at most one read.
        self.bytes = BytesMut::from(&self.bytes[..]);
        let held_bytes = question.held_bytes() + opening.response.len();
        let Some(place) = context.hooks.try_place(held_bytes + self.bytes.len()) else {
            return Progress::Reject(RejectReason::HooksFull);
        };
        let HookQuestion::Connect(question) = question else { unreachable!("it was just made") };
        self.named = named;
        self.stage = Stage::Waiting(Box::new(WaitingOpening { opening, held_bytes }));
        Progress::Ask { question, named, place }
    }

    fn begin_call(&mut self, parts: Parts, context: &StageContext) -> Progress {
        let limits = &context.routes.plan().limits;
        let BodyPlan { bytes, waits_for_continue } =
            match body::plan(&parts, limits.http_body_bytes_max) {
                Ok(plan) => plan,
                Err(reason) => return Progress::Reject(reason),
            };
        let Some(place) = context.calls.try_place() else {
            return Progress::Reject(RejectReason::CallsFull);
        };
        self.deadline_ms = context.now_ms + limits.http_body_timeout_ms;
        self.stage = Stage::Body(Box::new(BegunCall { parts, body_bytes: bytes, place }));
        match self.read_body(context) {
            Progress::More if waits_for_continue => Progress::Interim(Bytes::from_static(CONTINUE)),
            progress => progress,
        }
    }

    fn read_body(&mut self, context: &StageContext) -> Progress {
        let Stage::Body(call) = &self.stage else { return Progress::More };
        if self.bytes.len() < call.body_bytes {
            return Progress::More;
        }
        let Stage::Body(call) = std::mem::replace(&mut self.stage, Stage::Answer) else {
            unreachable!("it was just looked at")
        };
        let BegunCall { parts, body_bytes, place } = *call;
        let body = self.bytes.split_to(body_bytes).freeze();
        // What follows must not keep the body's memory.
        self.bytes = BytesMut::from(&self.bytes[..]);
        let named = self.client(&parts.headers, context);
        Progress::Call { parts: Box::new(parts), body, named, place }
    }

    /// Reads the PROXY header, if there is one.
    fn read_proxy_header(&mut self, context: &StageContext) -> ProxyVerdict {
        let plan = context.routes.plan();
        match proxy_header::parse(&self.bytes) {
            Err(_) => return ProxyVerdict::Reject(RejectReason::ProxyMalformed),
            Ok(ProxyHeader::Incomplete) => return ProxyVerdict::More,
            Ok(ProxyHeader::Absent) if plan.proxy_protocol == ProxyProtocol::Required => {
                return ProxyVerdict::Reject(RejectReason::ProxyMissing);
            }
            Ok(ProxyHeader::Absent) => {}
            Ok(ProxyHeader::Whole { bytes, source }) => {
                // A health check may have reset its connection before this is read.
                let Some(proxy) = (context.direct)() else { return ProxyVerdict::Gone };
                if !any_contains(&plan.trusted_proxies, proxy.ip()) {
                    return ProxyVerdict::Reject(RejectReason::ProxyUntrusted);
                }
                self.bytes.advance(bytes);
                self.named = source;
            }
        }
        self.stage = Stage::Head;
        ProxyVerdict::Next
    }

    /// The client's address, if it is not the socket's peer: from the headers of HTTP proxies, or else
    /// from the PROXY header.
    fn client(&self, headers: &http::HeaderMap, context: &StageContext) -> Option<SocketAddr> {
        let trusted = &context.routes.plan().trusted_proxies;
        if trusted.is_empty() || !forwarded::is_forwarded(headers) {
            return self.named;
        }
        let nearest = self.named.or_else(context.direct)?;
        forwarded::client(headers, nearest.ip(), trusted).or(self.named)
    }
}
