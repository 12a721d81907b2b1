//! A client whose token names a key that is not known: the identity provider may have made it since
//! its keys were read, so that they are read again, and the client is judged again.

use crate::net::upgrade::routes::AwaitedOpening;
use crate::protocol::dialect::AuthRequest;
use http::request::Parts;

/// What one header line takes in the map of a head, beside its bytes.
const HEADER_BYTES: usize = 112;

/// What is judged again.
pub(super) enum HeldToken {
    /// The token of the request.
    Head(HeadOfWait),
    /// That of the first message.
    First(AwaitedOpening, AuthRequest),
}

/// A request for a WebSocket.
pub(super) struct HeadOfWait {
    pub(super) parts: Parts,
    /// What its head took.
    pub(super) head_bytes: usize,
}

impl HeldToken {
    /// Memory that it keeps alive.
    pub(super) fn held_bytes(&self) -> usize {
        size_of::<HeldToken>()
            + match self {
                HeldToken::Head(HeadOfWait { parts, head_bytes }) => {
                    head_bytes + parts.headers.capacity() * HEADER_BYTES
                }
                HeldToken::First(opening, request) => {
                    let rooms = opening.rooms.iter().map(|room| size_of::<String>() + room.len());
                    opening.response.len() + rooms.sum::<usize>() + request.token.len()
                }
            }
    }
}
