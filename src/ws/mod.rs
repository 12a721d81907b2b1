//! RFC 6455 between bytes and meaning, without a socket, a clock or a runtime.
//!
//! In: [`handshake`] judges a request head, [`decoder`] turns bytes into messages, unmasking them
//! where they lie. Out: [`encode`] makes complete server frames, header and payload in one piece.
//! [`close`] has the codes, [`error`] what a peer can do wrong. permessage-deflate (RFC 7692) is not
//! spoken: an offer is declined by silence, and a frame that sets RSV1 anyway breaks the protocol.
//!
//! Invariant: no allocation for a frame that arrives whole.

pub mod close;
pub mod decoder;
pub mod encode;
pub mod error;
pub mod handshake;
pub mod header;
pub mod mask;
pub mod utf8;
