//! A client that is not admitted and is to see why: a browser's script sees no HTTP status, but it
//! sees a message and a close code.

use crate::framing;
use crate::protocol::dialect::Encoding;
use crate::protocol::{ErrorCode, Event};
use crate::ws::close::CloseCode;
use crate::ws::encode;

/// Appends what follows the 101 of such a client: the reason as an error, where the dialect has
/// events, and a close frame with it.
///
/// 1. `is_forbidden`: no client may connect from there. 4403.
/// 2. Otherwise it has to come with another token. 4401.
pub fn write_rejection(encoding: Encoding, is_forbidden: bool, message: &str, out: &mut Vec<u8>) {
    let (code, close) = match is_forbidden {
        true => (ErrorCode::Forbidden, CloseCode::FORBIDDEN),
        false => (ErrorCode::Unauthorized, CloseCode::UNAUTHORIZED),
    };
    write(encoding, code, close, message, out);
}

/// The same for one that may come again later. 1013.
pub fn write_overloaded(encoding: Encoding, message: &str, out: &mut Vec<u8>) {
    write(encoding, ErrorCode::Overloaded, CloseCode::TRY_AGAIN_LATER, message, out);
}

fn write(encoding: Encoding, code: ErrorCode, close: CloseCode, message: &str, out: &mut Vec<u8>) {
    if encoding.dialect().has_topics() {
        framing::write(&Event::Error { id: None, code, message }, encoding, out);
    }
    out.extend_from_slice(&encode::close(Some(close), message));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::dialect::Dialect;

    #[test]
    fn a_rejected_client_receives_the_reason_and_a_code() {
        let of = |dialect, is_forbidden| {
            let mut out = Vec::new();
            write_rejection(Encoding::of(dialect), is_forbidden, "no", &mut out);
            out
        };
        let error = |code: &str| format!(r#"{{"type":"error","code":"{code}","message":"no"}}"#);
        for (is_forbidden, name, code) in
            [(false, "unauthorized", 4401u16), (true, "forbidden", 4403)]
        {
            let text = error(name);
            let close = [&[0x88, 4][..], &code.to_be_bytes(), b"no"].concat();
            let whole = [&[0x81, text.len() as u8][..], text.as_bytes(), &close].concat();
            assert_eq!(of(Dialect::Native, is_forbidden), whole);
            assert_eq!(of(Dialect::Echo, is_forbidden), close);
        }
    }
}
