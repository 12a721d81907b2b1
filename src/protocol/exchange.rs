//! What every dialect makes of its messages, and what it answers for: the types that
//! [`crate::protocol::dialect`] and the rooms of the dialects have in common.

use crate::protocol::{Rejected, Request};

/// One message of a client.
#[derive(Debug)]
pub enum Incoming<'a> {
    /// A text message: UTF-8. It is parsed in place.
    Text(&'a mut [u8]),
    /// A binary message.
    Binary(&'a [u8]),
}

/// What one message of a client asks for.
#[derive(Debug, PartialEq, Eq)]
pub enum Parsed<'a> {
    /// A valid request. A message may have several.
    Request(Request<'a>),
    /// A request that was not understood. It is answered, and the connection stays.
    Rejected(Rejected),
    /// These bytes go back as they came.
    Echo {
        /// As a text message; otherwise as a binary one.
        is_text: bool,
        /// The bytes.
        payload: &'a [u8],
    },
    /// A kind of message that this dialect does not have: the connection is closed.
    Unsupported,
}

/// By what a connection is probed while it is idle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heartbeat {
    /// By a ping of RFC 6455 §5.5.2, which every client's library answers by itself.
    WebSocketPing,
    /// By a message of the dialect: this payload, which its clients answer.
    #[cfg(feature = "test-dialect")]
    Message(&'static [u8]),
}

/// Why the server closes a connection that has done nothing wrong in RFC 6455's eyes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Farewell {
    /// A kind of message that the dialect does not have.
    Unsupported,
    /// More waits for it than may wait.
    Slow,
    /// This node has as many topics as it may have.
    Overloaded,
    /// No answer to a heartbeat.
    Silent,
    /// This node is shutting down.
    Drain,
    /// Its token has expired.
    TokenExpired,
    /// Messages of a topic were lost, and its client has to come back to recover them.
    Lost,
    /// It sends faster than its rates allow, for too long.
    RateLimited,
    /// It was admitted by a key or a rule that no longer holds.
    NotAdmitted,
    /// Its token was revoked.
    TokenRevoked,
}

/// What becomes of a member of a topic of which messages were lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LossVerdict {
    /// It receives an event in the place of what was lost, and stays.
    Event,
    /// It leaves the topic, and receives an event for that. Its user's own topic cannot be left: there
    /// the connection is closed.
    Leave,
    /// Its connection is closed.
    Close,
}
