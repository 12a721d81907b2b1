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
    /// Data that is not what its kind says: text that is not UTF-8.
    pub const INVALID_DATA: CloseCode = CloseCode(1007);
    /// Something that policy forbids.
    pub const POLICY: CloseCode = CloseCode(1008);
    /// A message too big to be taken.
    pub const TOO_BIG: CloseCode = CloseCode(1009);
    /// The server cannot serve now.
    pub const TRY_AGAIN_LATER: CloseCode = CloseCode(1013);

    /// The code, if it may be sent or received in a frame.
    pub fn new(code: u16) -> Option<CloseCode> {
        matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999).then_some(CloseCode(code))
    }

    /// The number.
    pub fn get(self) -> u16 {
        self.0
    }
}
