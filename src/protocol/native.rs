//! stub
use super::{Event, Rejected, Request};

/// Reads one client message.
pub fn parse(_message: &mut [u8], _json_depth_max: usize) -> Result<Request<'_>, Rejected> {
    todo!()
}

/// The exact number of bytes [`write`] appends.
pub fn encoded_len(_event: &Event<'_>) -> usize {
    todo!()
}

/// Appends the event as one JSON object.
pub fn write(_event: &Event<'_>, _out: &mut Vec<u8>) {
    todo!()
}
