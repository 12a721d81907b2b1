//! Violations of RFC 6455 after the handshake, with the close code and reason of each.
//!
//! One variant for each rule, so that a log line and a test name the rule and not a family of them.
//! All of it is the peer's fault: nothing here is ever retried, it ends the connection.
//!
//! Invariant: every reason fits a close frame (`encode::close` need not cut it).

use crate::ws::close::CloseCode;

/// How the peer broke the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ProtocolError {
    /// RSV1, RSV2 or RSV3 is set, and no extension was negotiated (RFC 6455 §5.2).
    ReservedBits,
    /// An opcode that means nothing yet: 3–7 or 11–15 (§5.2).
    ReservedOpcode,
    /// A control frame without FIN (§5.5).
    ControlFragmented,
    /// A client's frame without a mask (§5.1).
    Unmasked,
    /// A control frame that announces more than 125 bytes (§5.5).
    ControlTooLong,
    /// A length that would have fitted a shorter form (§5.2: "the minimal number of bytes MUST be
    /// used").
    LengthNotMinimal,
    /// A 64-bit length with its top bit set (§5.2).
    LengthTopBit,
    /// A continuation, but nothing to continue (§5.4).
    ContinuationUnexpected,
    /// A new message inside a fragmented one (§5.4).
    MessageInterrupted,
    /// The message would be longer than we take. Known from its headers, before it arrives.
    MessageTooBig,
    /// A text message that is not UTF-8 (§8.1).
    InvalidUtf8,
    /// A close frame of one byte: half a code (§5.5.1).
    CloseTruncated,
    /// A close code that may not be sent (§7.4).
    CloseCodeInvalid,
    /// A close reason that is not UTF-8 (§5.5.1).
    CloseReasonInvalid,
}

impl ProtocolError {
    /// All of them, for tables.
    pub const ALL: [ProtocolError; 14] = [
        ProtocolError::ReservedBits,
        ProtocolError::ReservedOpcode,
        ProtocolError::ControlFragmented,
        ProtocolError::Unmasked,
        ProtocolError::ControlTooLong,
        ProtocolError::LengthNotMinimal,
        ProtocolError::LengthTopBit,
        ProtocolError::ContinuationUnexpected,
        ProtocolError::MessageInterrupted,
        ProtocolError::MessageTooBig,
        ProtocolError::InvalidUtf8,
        ProtocolError::CloseTruncated,
        ProtocolError::CloseCodeInvalid,
        ProtocolError::CloseReasonInvalid,
    ];

    /// The code of our close frame (RFC 6455 §7.4.1).
    pub fn close_code(self) -> CloseCode {
        match self {
            ProtocolError::MessageTooBig => CloseCode::TOO_BIG,
            ProtocolError::InvalidUtf8 | ProtocolError::CloseReasonInvalid => {
                CloseCode::INVALID_DATA
            }
            ProtocolError::ReservedBits
            | ProtocolError::ReservedOpcode
            | ProtocolError::ControlFragmented
            | ProtocolError::Unmasked
            | ProtocolError::ControlTooLong
            | ProtocolError::LengthNotMinimal
            | ProtocolError::LengthTopBit
            | ProtocolError::ContinuationUnexpected
            | ProtocolError::MessageInterrupted
            | ProtocolError::CloseTruncated
            | ProtocolError::CloseCodeInvalid => CloseCode::PROTOCOL,
        }
    }

    /// One line for the close frame and the log, at most 123 bytes.
    pub fn reason(self) -> &'static str {
        match self {
            ProtocolError::ReservedBits => "a reserved bit is set, and no extension was negotiated",
            ProtocolError::ReservedOpcode => "a reserved opcode",
            ProtocolError::ControlFragmented => "a control frame must not be fragmented",
            ProtocolError::Unmasked => "frames from a client must be masked",
            ProtocolError::ControlTooLong => "a control frame carries at most 125 bytes",
            ProtocolError::LengthNotMinimal => "a length must be written in its shortest form",
            ProtocolError::LengthTopBit => "the top bit of a 64-bit length must be 0",
            ProtocolError::ContinuationUnexpected => "a continuation without a message to continue",
            ProtocolError::MessageInterrupted => "a new message inside a fragmented one",
            ProtocolError::MessageTooBig => "the message is bigger than this server takes",
            ProtocolError::InvalidUtf8 => "a text message must be UTF-8",
            ProtocolError::CloseTruncated => "a close frame with half a close code",
            ProtocolError::CloseCodeInvalid => "a close code that may not be sent",
            ProtocolError::CloseReasonInvalid => "a close reason must be UTF-8",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_violation_has_its_own_reason_and_it_fits_a_close_frame() {
        let reasons: HashSet<_> = ProtocolError::ALL.iter().map(|error| error.reason()).collect();
        assert_eq!(reasons.len(), ProtocolError::ALL.len());
        assert!(reasons.iter().all(|reason| (1..=123).contains(&reason.len())));
    }

    #[test]
    fn only_size_and_encoding_have_codes_of_their_own() {
        for error in ProtocolError::ALL {
            let code = match error {
                ProtocolError::MessageTooBig => 1009,
                ProtocolError::InvalidUtf8 | ProtocolError::CloseReasonInvalid => 1007,
                _ => 1002,
            };
            assert_eq!(error.close_code().get(), code, "{error:?}");
        }
    }
}
