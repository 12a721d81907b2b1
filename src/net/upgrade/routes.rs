//! What is at which path of the public port, and who may go there.
//!
//! | path | |
//! |---|---|
//! | `/ws` | the native protocol; `?token=`, `?room_id=` (repeatable) |
//! | `echo_path` | a plain echo of text and binary messages, off by default |
//! | `ops.public_paths` | the operators' API, for requests with `ops.api_key` |
//! | `/` | a page to try it in a browser, if `page` is on |
//!
//! The handshake is judged first (RFC 6455 §4.2.1), then the origin, then the token, so that each
//! refusal says the first thing that has to change. Nobody is upgraded before all of it holds.
//!
//! A token may stand in `Authorization: Bearer`, in `?token=`, or among the subprotocols behind
//! `campanile.token.`, which is never repeated in an answer. Two that differ are refused.
//!
//! Invariant: pure; the same head at the same second gives the same answer.

use crate::auth::{AuthError, Authenticator, FetchedKeys, Identity, RoomAdmission};
use crate::ids::is_name;
use crate::link::key_requests::KeyRequests;
use crate::net::upgrade::query::Query;
use crate::net::upgrade::reject::RejectReason;
use crate::net::upgrade::{origin, page};
use crate::plan::{Plan, RejectedHandshakes};
use crate::policy::api_key::{is_public, is_shown};
use crate::policy::revocations::Revocations;
use crate::protocol::dialect::{Dialect, Encoding};
use crate::shard::{Opening, write_overloaded, write_rejection};
use crate::ws::handshake::{Upgrade, check, write_accept};
use bytes::Bytes;
use http::request::Parts;
use http::{Method, header};
use std::sync::Arc;

const PROTOCOL: &str = "campanile.v1";
/// What a token stands behind among the subprotocols: a browser's script can set no other header. All
/// characters of a JWT may stand there.
const TOKEN_PROTOCOL: &str = "campanile.token.";

/// Why a token is refused that names a key which may be known soon.
pub const UNKNOWN_KEY: RejectReason = RejectReason::Token(AuthError::UnknownKey);

/// The public port's paths.
pub struct Routes {
    plan: Arc<Plan>,
    authenticator: Arc<Authenticator>,
    revocations: Arc<Revocations>,
    fetched: Arc<FetchedKeys>,
    requests: Option<Arc<KeyRequests>>,
}

/// The answer to a request head.
pub enum RouteOutcome {
    /// A valid handshake, whose client is admitted.
    Open(Opening),
    /// A valid handshake, whose client has to send its token.
    AwaitToken(AwaitedOpening),
    /// The ops thread answers it, as it does on the operators' port.
    Call,
    /// A page: the complete answer.
    Page(Bytes),
    /// The request is refused.
    Reject(RejectReason),
    /// It would be a WebSocket, whose client is not admitted.
    Refuse(HandshakeRefusal),
}

/// What a client asked for that has not shown a token.
#[derive(Debug)]
pub struct AwaitedOpening {
    /// The complete 101 answer.
    pub response: Bytes,
    /// Rooms to join at once.
    pub rooms: Vec<String>,
    /// The protocol of the client.
    pub encoding: Encoding,
}

/// The answer to a client that is not admitted.
#[derive(Debug)]
pub struct HandshakeRefusal {
    /// Why.
    pub reason: RejectReason,
    /// The whole answer: an HTTP response, or a WebSocket that is accepted and closed.
    pub response: Bytes,
    /// Whom its token names, if it is signed with the key. Only where it is logged.
    pub user: Option<String>,
}

impl RouteOutcome {
    /// Whether its token names a key that is not known yet.
    pub fn is_of_unknown_key(&self) -> bool {
        match self {
            RouteOutcome::Reject(reason) => *reason == UNKNOWN_KEY,
            RouteOutcome::Refuse(refusal) => refusal.reason == UNKNOWN_KEY,
            RouteOutcome::Open(_)
            | RouteOutcome::AwaitToken(_)
            | RouteOutcome::Call
            | RouteOutcome::Page(_) => false,
        }
    }
}

/// Which time a head is judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attempt {
    /// The first one: a key that is not known is asked for.
    First,
    /// The keys were read since: one that is not known does not exist.
    WithNewKeys,
    /// They were not, and the client has waited for long enough.
    InVain,
}

impl Routes {
    /// The paths that `plan` asks for.
    pub fn new(plan: Arc<Plan>, authenticator: Arc<Authenticator>) -> Routes {
        let (revocations, fetched) = (Arc::default(), Arc::default());
        Routes { plan, authenticator, revocations, fetched, requests: None }
    }

    /// Takes a configuration over that was reloaded. The key of tokens is derived again.
    pub fn reload(&mut self, plan: Arc<Plan>) {
        self.plan = plan;
        self.renew();
    }

    /// Whom to ask for keys that are not known.
    pub fn set_key_requests(&mut self, requests: Arc<KeyRequests>) {
        self.requests = Some(requests);
    }

    /// Keys were read from `auth.jwks_url`.
    pub fn set_fetched(&mut self, fetched: Arc<FetchedKeys>) {
        self.fetched = fetched;
        self.renew();
    }

    /// Which reading of them that was.
    pub fn reading(&self) -> u64 {
        self.fetched.reading
    }

    /// How many readings have begun.
    pub fn readings_begun(&self) -> u64 {
        self.requests.as_ref().map_or(0, |requests| requests.readings())
    }

    fn renew(&mut self) {
        let authenticator = Authenticator::with_fetched(&self.plan.auth, &self.fetched.keys);
        self.authenticator = Arc::new(authenticator);
    }

    /// Other tokens are revoked than until now.
    pub fn set_revocations(&mut self, revocations: Arc<Revocations>) {
        self.revocations = revocations;
    }

    /// A client that was admitted a while ago: whether its token was revoked since.
    pub fn check_revoked(&self, identity: &Identity) -> Result<(), AuthError> {
        match self.revocations.refuse(identity.user.as_deref(), identity.mark) {
            true => Err(AuthError::Revoked),
            false => Ok(()),
        }
    }

    /// The plan of the node.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The longest request head.
    pub fn head_bytes_max(&self) -> usize {
        self.plan.limits.head_bytes_max
    }

    /// Judges one request head.
    pub fn answer(&self, head: &Parts, now_unix_s: u64) -> RouteOutcome {
        self.answer_at(head, Attempt::First, now_unix_s)
    }

    /// Judges it, perhaps again.
    pub fn answer_at(&self, head: &Parts, attempt: Attempt, now_unix_s: u64) -> RouteOutcome {
        let path = head.uri.path();
        let echo = self.plan.echo_path.as_deref() == Some(path);
        if !echo && path != "/ws" {
            return if self.is_call(head, path) {
                RouteOutcome::Call
            } else {
                self.page(head, path)
            };
        }
        match self.open(head, echo, attempt, now_unix_s) {
            Ok(outcome) => outcome,
            Err(reason) => self.refuse(head, echo, reason),
        }
    }

    /// How a WebSocket is refused. Only who is not admitted is worth an answer that a page sees: a
    /// request that is wrong is its author's business.
    fn refuse(&self, head: &Parts, echo: bool, reason: RejectReason) -> RouteOutcome {
        let is_forbidden = matches!(reason, RejectReason::Origin | RejectReason::OtherOrigin);
        let is_of_client = is_forbidden || matches!(reason, RejectReason::Token(_));
        let upgrade = check(head).ok().filter(|_| is_of_client);
        let Some(upgrade) = upgrade else { return RouteOutcome::Reject(reason) };
        let response = match self.plan.rejected_handshakes {
            RejectedHandshakes::Http => reason.response(),
            RejectedHandshakes::Close => {
                let mut response = Vec::new();
                write_accept(&upgrade, protocol(&upgrade, echo), &mut response);
                let text = reason.rejection().text;
                match reason == UNKNOWN_KEY {
                    true => write_overloaded(encoding(echo), text, &mut response),
                    false => write_rejection(encoding(echo), is_forbidden, text, &mut response),
                }
                Bytes::from(response)
            }
        };
        let is_logged = tracing::enabled!(tracing::Level::DEBUG);
        let user = if is_logged { self.user_of(head) } else { None };
        RouteOutcome::Refuse(HandshakeRefusal { reason, response, user })
    }

    /// Whom the token of a request names.
    fn user_of(&self, head: &Parts) -> Option<String> {
        let query = Query::read(head.uri.query().unwrap_or("")).ok()?;
        let protocols = check(head).ok()?.protocols;
        self.authenticator.user_of(token(head, &query, &protocols).ok()??)
    }

    /// Whether it is for the API and has the key. Requests without it do not reach the ops thread.
    fn is_call(&self, head: &Parts, path: &str) -> bool {
        let Some(key) = &self.plan.ops_api_key else { return false };
        let shown = head.headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        is_public(path, &self.plan.ops_public_paths) && is_shown(shown, key)
    }

    fn open(
        &self,
        head: &Parts,
        echo: bool,
        attempt: Attempt,
        now_unix_s: u64,
    ) -> Result<RouteOutcome, RejectReason> {
        let upgrade = check(head).map_err(RejectReason::Handshake)?;
        origin::check(&head.headers, &self.plan.origins, self.plan.auth.anonymous)?;
        let query = Query::read(head.uri.query().unwrap_or(""))?;
        let token = token(head, &query, &upgrade.protocols)?;
        let awaits = token.is_none() && !echo && self.plan.auth.awaits_first_message();
        let identity = match awaits {
            true => None,
            false => Some(self.admit(token, attempt, now_unix_s)?),
        };
        let rooms = if echo { Vec::new() } else { self.rooms(query)? };
        let mut response = Vec::new();
        write_accept(&upgrade, protocol(&upgrade, echo), &mut response);
        let (response, encoding) = (Bytes::from(response), encoding(echo));
        Ok(match identity {
            Some(identity) => RouteOutcome::Open(Opening { identity, response, rooms, encoding }),
            None => RouteOutcome::AwaitToken(AwaitedOpening { response, rooms, encoding }),
        })
    }

    /// Checks a token, or that there may be none.
    pub fn admit(
        &self,
        token: Option<&str>,
        attempt: Attempt,
        now_unix_s: u64,
    ) -> Result<Identity, RejectReason> {
        let identity = self.authenticator.admit(token, now_unix_s);
        let identity = identity.map_err(|why| self.refused(why, attempt))?;
        self.check_revoked(&identity).map_err(RejectReason::Token)?;
        Ok(identity)
    }

    /// Checks a token for one room.
    pub fn admit_to_room(
        &self,
        token: &str,
        attempt: Attempt,
        now_unix_s: u64,
    ) -> Result<RoomAdmission, RejectReason> {
        let admission = self.authenticator.admit_to_room(token, now_unix_s);
        let admission = admission.map_err(|why| self.refused(why, attempt))?;
        match self.revocations.refuse(Some(&admission.user), admission.mark) {
            true => Err(RejectReason::Token(AuthError::Revoked)),
            false => Ok(admission),
        }
    }

    /// Why a token is refused. Has the keys read, if it names one that may be new.
    fn refused(&self, why: AuthError, attempt: Attempt) -> RejectReason {
        let why = match (why, attempt) {
            (AuthError::UnknownKey, Attempt::WithNewKeys) => AuthError::Invalid,
            (why, _) => why,
        };
        let reason = RejectReason::Token(why);
        if reason == UNKNOWN_KEY && attempt == Attempt::First {
            self.requests.iter().for_each(|requests| requests.ask());
        }
        reason
    }

    fn rooms(&self, query: Query) -> Result<Vec<String>, RejectReason> {
        if query.rooms.len() > self.plan.limits.rooms_per_connection_max {
            return Err(RejectReason::TooManyRooms);
        }
        if !query.rooms.iter().all(|room| is_name(room)) {
            return Err(RejectReason::BadRoomName);
        }
        Ok(query.rooms)
    }

    fn page(&self, head: &Parts, path: &str) -> RouteOutcome {
        if path != "/" || !self.plan.page {
            return RouteOutcome::Reject(RejectReason::NotFound);
        }
        match head.method {
            Method::GET => RouteOutcome::Page(Bytes::from(page::response(false))),
            Method::HEAD => RouteOutcome::Page(Bytes::from(page::response(true))),
            _ => RouteOutcome::Reject(RejectReason::PageMethod),
        }
    }
}

/// Of the subprotocols offered the one that is spoken.
fn protocol(upgrade: &Upgrade<'_>, echo: bool) -> Option<&'static str> {
    (!echo && upgrade.protocols.contains(&PROTOCOL)).then_some(PROTOCOL)
}

fn encoding(echo: bool) -> Encoding {
    Encoding::of(if echo { Dialect::Echo } else { Dialect::Native })
}

/// The token of a request, wherever it stands. `None`: there is none.
fn token<'a>(
    head: &'a Parts,
    query: &'a Query,
    protocols: &[&'a str],
) -> Result<Option<&'a str>, RejectReason> {
    let of_protocols = protocols.iter().filter_map(|offer| offer.strip_prefix(TOKEN_PROTOCOL));
    let mut all = bearer(head)?.into_iter().chain(query.token.as_deref()).chain(of_protocols);
    let first = all.next();
    match all.all(|other| Some(other) == first) {
        true => Ok(first),
        false => Err(RejectReason::TwoTokens),
    }
}

/// The token of `Authorization: Bearer`. `None`: there is none, or it is of another scheme, which is a
/// proxy's business. Two of them are refused.
fn bearer(head: &Parts) -> Result<Option<&str>, RejectReason> {
    let mut values = head.headers.get_all(header::AUTHORIZATION).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(RejectReason::TwoAuthorizations);
    }
    let text = value.to_str().map_err(|_| RejectReason::HeadMalformed)?;
    let (scheme, token) = text.split_once(' ').unwrap_or((text, ""));
    Ok(scheme.eq_ignore_ascii_case("bearer").then(|| token.trim()))
}
