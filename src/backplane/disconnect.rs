//! The order to close all connections of a user, as it travels between nodes: on the channel of the
//! user's topic, which exactly the nodes with connections of the user have subscribed to.
//!
//! ```text
//! 'D' │ version 1 │ close code u16, little-endian │ reason, UTF-8, at most 123 bytes
//! ```
//!
//! Invariant: whatever bytes come, [`read`] answers; what it answers may stand in a close frame.

use crate::link::Disconnect;

/// No envelope of a message begins with it, no position and no presence event.
const MARK: u8 = b'D';
const VERSION: u8 = 1;
/// A close frame has 125 bytes (RFC 6455 §5.5), two of them for the code.
const REASON_BYTES_MAX: usize = 123;

/// Whether the body of a message on a topic's channel is such an order.
pub fn is_disconnect(body: &[u8]) -> bool {
    body.first() == Some(&MARK)
}

/// The order as bytes.
pub fn write(close: &Disconnect) -> Vec<u8> {
    let mut body = vec![MARK, VERSION];
    body.extend_from_slice(&close.code.to_le_bytes());
    body.extend_from_slice(close.reason.as_bytes());
    body
}

/// The order, or `None` if it is of another version or not written so.
pub fn read(body: &[u8]) -> Option<Disconnect> {
    let [MARK, VERSION, low, high, reason @ ..] = body else { return None };
    let code = u16::from_le_bytes([*low, *high]);
    let is_code = matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999);
    let reason = std::str::from_utf8(reason).ok()?;
    let is_good = is_code && reason.len() <= REASON_BYTES_MAX;
    is_good.then(|| Disconnect { code, reason: reason.into() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_written_is_read(code in 3000u16..5000, reason in "[a-zé]{0,60}") {
            let close = Disconnect { code, reason: reason.into() };
            let body = write(&close);
            prop_assert!(is_disconnect(&body));
            prop_assert_eq!(read(&body), Some(close));
        }

        #[test]
        fn no_bytes_are_too_wild_to_be_answered(
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            if let Some(close) = read(&[&[MARK, VERSION], &bytes[..]].concat()) {
                prop_assert!(close.reason.len() <= REASON_BYTES_MAX);
            }
        }
    }

    #[test]
    fn what_may_not_stand_in_a_close_frame_is_refused() {
        let body = |code: u16, reason: &str| write(&Disconnect { code, reason: reason.into() });
        assert!(read(&body(1008, &"x".repeat(123))).is_some());
        assert_eq!(read(&body(1008, &"x".repeat(124))), None);
        assert_eq!(read(&body(1005, "x")), None);
        assert_eq!(read(&[MARK, 2, 0xF0, 3]), None, "a version of the future");
        assert_eq!(read(&[MARK, 1, 0xF0]), None);
        assert_eq!(read(&[MARK, 1, 0xF0, 3, 0xFF]), None, "not UTF-8");
    }
}
