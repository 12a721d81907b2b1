//! The client protocols, and the only `match` on the one of a connection.
//!
//! Everything that differs between them is answered here: how a message becomes requests, how an
//! event is written, whether a connection is greeted, which heartbeat it gets, which close code says
//! what, and what becomes of a topic of which something was lost. A shard calls these functions and
//! never compares dialects.
//!
//! An [`Encoding`] is one form of finished bytes: a message is encoded once for each that has members
//! on a node. It is stored in one byte and only compared, never taken apart, on a delivery's way.

pub use crate::protocol::exchange::{Farewell, Heartbeat, Incoming, LossVerdict, Parsed};

#[cfg(feature = "test-dialect")]
use super::lines;
use super::run::{RunKind, RunStyle};
use super::{Command, Event, Request, RequestId, native};
use crate::ids::TopicKind;

/// A client protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dialect {
    /// `campanile.v1`: JSON in text messages.
    Native,
    /// A plain echo of text and binary messages, for conformance suites. It has no topics.
    Echo,
    /// For tests: see [`super::lines`].
    #[cfg(feature = "test-dialect")]
    Lines,
}

/// A request that shows a token: `{"type":"auth","token":"…"}`.
#[derive(Clone, PartialEq, Eq)]
pub struct AuthRequest {
    /// Its `id`, if it has one.
    pub id: Option<RequestId>,
    /// The token.
    pub token: Box<str>,
}

impl std::fmt::Debug for AuthRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AuthRequest").field("id", &self.id).finish_non_exhaustive()
    }
}

/// One form of finished bytes: dialect × format × framing × compression × delta.
///
/// ```text
/// bit   7      6           5       4 3     2 1 0
///       delta  compressed  framing format  dialect
/// ```
///
/// Bits 3 to 7 are zero until a dialect has more than one form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Encoding(u8);

/// How finished bytes travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// One text message of RFC 6455 for each event.
    WebSocketText,
    /// One binary message of RFC 6455 for each event.
    #[cfg(feature = "test-dialect")]
    WebSocketBinary,
}

impl Dialect {
    /// Its name for operators.
    pub fn label(self) -> &'static str {
        match self {
            Dialect::Native => "campanile.v1",
            Dialect::Echo => "echo",
            #[cfg(feature = "test-dialect")]
            Dialect::Lines => "lines",
        }
    }

    /// Whether its connections have a user, join rooms and receive broadcasts. Those of a dialect
    /// without topics only get back what they send, and may send more of it.
    pub fn has_topics(self) -> bool {
        match self {
            Dialect::Native => true,
            Dialect::Echo => false,
            #[cfg(feature = "test-dialect")]
            Dialect::Lines => true,
        }
    }

    /// Reads one message of a client: any number of requests, in their order.
    pub fn parse<'a>(
        self,
        message: Incoming<'a>,
        json_depth_max: usize,
        mut each: impl FnMut(Parsed<'a>),
    ) {
        match (self, message) {
            (Dialect::Native, Incoming::Text(text)) => each(
                native::parse(text, json_depth_max).map_or_else(Parsed::Rejected, Parsed::Request),
            ),
            (Dialect::Native, Incoming::Binary(_)) => each(Parsed::Unsupported),
            (Dialect::Echo, Incoming::Text(payload)) => {
                each(Parsed::Echo { is_text: true, payload })
            }
            (Dialect::Echo, Incoming::Binary(payload)) => {
                each(Parsed::Echo { is_text: false, payload })
            }
            #[cfg(feature = "test-dialect")]
            (Dialect::Lines, Incoming::Binary(message)) => lines::parse(message, each),
            #[cfg(feature = "test-dialect")]
            (Dialect::Lines, Incoming::Text(_)) => each(Parsed::Unsupported),
        }
    }

    /// The token that a message shows, if it does that and nothing else.
    pub fn auth_request(self, message: Incoming<'_>, json_depth_max: usize) -> Option<AuthRequest> {
        let (mut requests, mut found) = (0, None);
        self.parse(message, json_depth_max, |parsed| {
            requests += 1;
            if let Parsed::Request(Request { id, command: Command::Auth { token } }) = parsed {
                found = Some(AuthRequest { id, token: token.into() });
            }
        });
        found.filter(|_| requests == 1)
    }

    /// The exact number of bytes that [`Dialect::write`] appends.
    pub fn encoded_len(self, event: &Event<'_>) -> usize {
        match self {
            Dialect::Native => native::encoded_len(event),
            Dialect::Echo => 0,
            #[cfg(feature = "test-dialect")]
            Dialect::Lines => {
                let mut line = Vec::new();
                lines::write(event, &mut line);
                line.len()
            }
        }
    }

    /// Appends an event, without framing. Nothing, where the dialect has no such event.
    pub fn write(self, event: &Event<'_>, out: &mut Vec<u8>) {
        match self {
            Dialect::Native => native::write(event, out),
            Dialect::Echo => {}
            #[cfg(feature = "test-dialect")]
            Dialect::Lines => lines::write(event, out),
        }
    }

    /// What a run of stored messages looks like.
    pub fn run_style(self, kind: RunKind) -> RunStyle {
        match (self, kind) {
            (Dialect::Native | Dialect::Echo, RunKind::Missed) => RunStyle::Frames,
            (Dialect::Native | Dialect::Echo, RunKind::Page) => {
                RunStyle::Elements { separator: b',' }
            }
            #[cfg(feature = "test-dialect")]
            (Dialect::Lines, _) => RunStyle::Elements { separator: b'\n' },
        }
    }

    /// By what its connections are probed while they are idle.
    pub fn heartbeat(self) -> Heartbeat {
        match self {
            Dialect::Native | Dialect::Echo => Heartbeat::WebSocketPing,
            #[cfg(feature = "test-dialect")]
            Dialect::Lines => Heartbeat::Message(lines::HEARTBEAT),
        }
    }

    /// The close code (RFC 6455 §7.4) and the reason that stands beside it.
    pub fn close(self, why: Farewell) -> (u16, &'static str) {
        match self {
            Dialect::Native | Dialect::Echo => native_close(why),
            #[cfg(feature = "test-dialect")]
            Dialect::Lines => (4000 + why as u16, "by the dialect for tests"),
        }
    }

    /// What becomes of a member of `topic` when messages of it were lost.
    pub fn on_loss(self, topic: TopicKind<'_>) -> LossVerdict {
        match (self, topic) {
            (Dialect::Native | Dialect::Echo, _) => LossVerdict::Event,
            #[cfg(feature = "test-dialect")]
            (Dialect::Lines, topic) => lines::on_loss(topic),
        }
    }

    fn framing(self) -> Framing {
        match self {
            Dialect::Native | Dialect::Echo => Framing::WebSocketText,
            #[cfg(feature = "test-dialect")]
            Dialect::Lines => Framing::WebSocketBinary,
        }
    }

    const fn number(self) -> u8 {
        match self {
            Dialect::Native => 0,
            Dialect::Echo => 1,
            #[cfg(feature = "test-dialect")]
            Dialect::Lines => 2,
        }
    }
}

/// The close codes of `campanile.v1`.
fn native_close(why: Farewell) -> (u16, &'static str) {
    match why {
        Farewell::Unsupported => (1003, "binary messages are not spoken here, send text"),
        Farewell::Slow => (1013, "too slow: more is waiting for this connection than may wait"),
        Farewell::Overloaded => (1013, "this server has as many topics as it may have"),
        Farewell::RateLimited => (1008, "rate_limited"),
        Farewell::Silent => (1001, "no answer to a ping"),
        Farewell::Drain => (1001, "this server goes away, connect again"),
        Farewell::TokenExpired => (4401, "token_expired"),
        Farewell::TokenRevoked => (4401, "token_revoked"),
        Farewell::NotAdmitted => (4401, "not_admitted"),
        Farewell::Lost => (1013, "messages were lost, connect again"),
    }
}

impl Encoding {
    /// JSON in text messages.
    pub const NATIVE: Encoding = Encoding::of(Dialect::Native);

    /// All that a connection may have.
    pub const ALL: [Encoding; Encoding::COUNT] = [
        Encoding::of(Dialect::Native),
        Encoding::of(Dialect::Echo),
        #[cfg(feature = "test-dialect")]
        Encoding::of(Dialect::Lines),
    ];

    /// The number of encodings of this build.
    pub const COUNT: usize = if cfg!(feature = "test-dialect") { 3 } else { 2 };

    /// Its index in [`Encoding::ALL`].
    pub const fn place(self) -> usize {
        (self.0 & 0b111) as usize
    }

    /// The plain form of a dialect.
    pub const fn of(dialect: Dialect) -> Encoding {
        Encoding(dialect.number())
    }

    /// Which protocol.
    pub fn dialect(self) -> Dialect {
        match self.0 & 0b111 {
            0 => Dialect::Native,
            #[cfg(feature = "test-dialect")]
            2 => Dialect::Lines,
            _ => Dialect::Echo,
        }
    }

    /// The framing of its payloads.
    pub fn framing(self) -> Framing {
        self.dialect().framing()
    }

    /// The byte, for tables.
    pub const fn get(self) -> u8 {
        self.0
    }
}
