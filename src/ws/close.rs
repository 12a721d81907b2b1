//! Close codes (RFC 6455 §7.4), as a type that cannot hold one that may not be sent.

/// A code that may stand in a close frame: 1000–1003, 1007–1014, 3000–4999.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CloseCode(u16);

impl CloseCode {
    /// The purpose has been fulfilled.
    pub const NORMAL: CloseCode = CloseCode(1000);
    /// The server goes away.
    pub const GOING_AWAY: CloseCode = CloseCode(1001);
    /// The peer broke the protocol.
    pub const PROTOCOL: CloseCode = CloseCode(1002);
    /// A kind of data that is not accepted here.
    pub const UNSUPPORTED: CloseCode = CloseCode(1003);
    /// Data that does not fit its kind: text that is not UTF-8.
    pub const INVALID_DATA: CloseCode = CloseCode(1007);
    /// Something that policy forbids.
    pub const POLICY: CloseCode = CloseCode(1008);
    /// A message too big to be taken.
    pub const TOO_BIG: CloseCode = CloseCode(1009);
    /// The server cannot serve now.
    pub const TRY_AGAIN_LATER: CloseCode = CloseCode(1013);
    /// The token with which the client came has expired (of the range for private use, §7.4.2).
    pub const TOKEN_EXPIRED: CloseCode = CloseCode(4401);
    /// The client is not admitted with its token, or without one (likewise).
    pub const UNAUTHORIZED: CloseCode = CloseCode(4401);
    /// The client is not admitted from where it comes (likewise).
    pub const FORBIDDEN: CloseCode = CloseCode(4403);

    /// The code, if it may be sent or received in a frame.
    pub fn new(code: u16) -> Option<CloseCode> {
        matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999).then_some(CloseCode(code))
    }

    /// The number.
    pub fn get(self) -> u16 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exactly_the_codes_that_may_stand_in_a_frame_exist() {
        // RFC 6455 §7.4 and the registry of §11.7: 1004 is reserved; 1005, 1006 and 1015 are for the
        // application only and never sent to the peer.
        for code in 0..=u16::MAX {
            let may_be_sent = match code {
                1000..=1014 => ![1004, 1005, 1006].contains(&code),
                3000..=4999 => true,
                _ => false,
            };
            assert_eq!(CloseCode::new(code).map(CloseCode::get), may_be_sent.then_some(code));
        }
    }

    #[test]
    fn the_named_codes_may_be_sent() {
        let named = [
            (CloseCode::NORMAL, 1000),
            (CloseCode::GOING_AWAY, 1001),
            (CloseCode::PROTOCOL, 1002),
            (CloseCode::UNSUPPORTED, 1003),
            (CloseCode::INVALID_DATA, 1007),
            (CloseCode::POLICY, 1008),
            (CloseCode::TOO_BIG, 1009),
            (CloseCode::TRY_AGAIN_LATER, 1013),
            (CloseCode::TOKEN_EXPIRED, 4401),
        ];
        for (name, number) in named {
            assert_eq!(CloseCode::new(number), Some(name));
        }
    }
}
