//! `campanile.v1`, the native dialect: one JSON object a message, both ways.
//!
//! Reading and writing share no state and no types but [`super::Command`] and [`super::Event`]. The
//! payload is the one thing that passes through both, and neither looks into it further than to see
//! that it is JSON.

mod parse;
mod write;

pub use parse::{KEY_BYTES_MAX, LIMIT_DEFAULT, LIMIT_MAX, TOKEN_BYTES_MAX, parse};
pub use write::{encoded_len, write};
