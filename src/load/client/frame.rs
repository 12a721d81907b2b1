//! The client's half of RFC 6455 framing: reads frames of a server, writes masked frames.
//!
//! Written apart from `crate::ws` on purpose: a generator with the server's codec would agree with
//! its mistakes. Reading copies nothing; the caller keeps what follows the first frame.
//!
//! Invariant: a frame is returned whole or not at all.

/// Longest payload that is read, in bytes; a longer one ends the connection.
pub(crate) const FRAME_BYTES_MAX: u64 = 64 << 20;

/// The opcodes of RFC 6455 §5.2.
pub(crate) mod opcode {
    /// A further frame of a fragmented message.
    pub(crate) const CONTINUATION: u8 = 0;
    /// A text message.
    pub(crate) const TEXT: u8 = 1;
    /// A binary message.
    pub(crate) const BINARY: u8 = 2;
    /// The peer closes the connection.
    pub(crate) const CLOSE: u8 = 8;
    /// Is answered with a pong of the same payload.
    pub(crate) const PING: u8 = 9;
    /// The answer to a ping.
    pub(crate) const PONG: u8 = 10;
}

/// The first frame of a slice.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum NextFrame<'a> {
    /// The frame is complete.
    Whole {
        /// One of [`opcode`], or one that RFC 6455 reserves.
        opcode: u8,
        /// Not masked.
        payload: &'a [u8],
        /// Length of the frame, header included.
        bytes: usize,
    },
    /// The slice ends before the frame.
    Incomplete,
    /// A server must not send this; with the reason.
    Invalid(&'static str),
}

/// Reads the first frame of `bytes`.
pub(crate) fn next_frame(bytes: &[u8]) -> NextFrame<'_> {
    let &[first, second, ..] = bytes else { return NextFrame::Incomplete };
    if first & 0x70 != 0 {
        return NextFrame::Invalid("a reserved bit, though no extension is negotiated");
    }
    if second & 0x80 != 0 {
        return NextFrame::Invalid("a masked frame from the server");
    }
    let (length, header) = match second {
        126 => match bytes.get(2..4) {
            Some(b) => (u64::from(u16::from_be_bytes([b[0], b[1]])), 4),
            None => return NextFrame::Incomplete,
        },
        127 => match bytes.get(2..10) {
            Some(b) => (u64::from_be_bytes(b.try_into().expect("a slice of eight bytes")), 10),
            None => return NextFrame::Incomplete,
        },
        short => (u64::from(short), 2),
    };
    if length > FRAME_BYTES_MAX {
        return NextFrame::Invalid("a frame longer than 64 MiB");
    }
    let end = header + length as usize;
    match bytes.get(header..end) {
        Some(payload) => NextFrame::Whole { opcode: first & 0x0f, payload, bytes: end },
        None => NextFrame::Incomplete,
    }
}

/// Appends one masked frame with FIN set (RFC 6455 §5.3).
pub(crate) fn put_frame(out: &mut Vec<u8>, opcode: u8, payload: &[u8], mask: u32) {
    let mask = mask.to_le_bytes();
    out.push(0x80 | opcode);
    match payload.len() {
        n @ 0..=125 => out.push(0x80 | n as u8),
        n @ 126..=65_535 => {
            out.push(0x80 | 126);
            out.extend_from_slice(&(n as u16).to_be_bytes());
        }
        n => {
            out.push(0x80 | 127);
            out.extend_from_slice(&(n as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(&mask);
    out.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, key)| byte ^ key));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A frame as a server writes it.
    fn server_frame(opcode: u8, payload: &[u8]) -> Vec<u8> {
        let mut out = vec![0x80 | opcode];
        match payload.len() {
            n @ 0..=125 => out.push(n as u8),
            n @ 126..=65_535 => {
                out.push(126);
                out.extend_from_slice(&(n as u16).to_be_bytes());
            }
            n => {
                out.push(127);
                out.extend_from_slice(&(n as u64).to_be_bytes());
            }
        }
        out.extend_from_slice(payload);
        out
    }

    #[test]
    fn a_frame_cut_anywhere_is_incomplete() {
        for length in [0, 1, 125, 126, 127, 65_535, 65_536] {
            let payload = vec![b'x'; length];
            let whole = server_frame(opcode::TEXT, &payload);
            let cuts = (0..whole.len().min(20)).chain([whole.len() - 1]);
            for cut in cuts {
                assert_eq!(
                    next_frame(&whole[..cut]),
                    NextFrame::Incomplete,
                    "length {length}, cut {cut}"
                );
            }
            let bytes = whole.len();
            let expected = NextFrame::Whole { opcode: opcode::TEXT, payload: &payload, bytes };
            assert_eq!(next_frame(&whole), expected);
        }
    }

    #[test]
    fn frames_in_one_slice_are_read_one_by_one() {
        let mut wire = server_frame(opcode::TEXT, b"one");
        wire.extend(server_frame(opcode::PING, b""));
        wire.extend(server_frame(opcode::BINARY, &[7; 300]));
        let (mut seen, mut rest) = (Vec::new(), wire.as_slice());
        while let NextFrame::Whole { opcode, payload, bytes } = next_frame(rest) {
            seen.push((opcode, payload.len()));
            rest = &rest[bytes..];
        }
        assert_eq!(seen, [(opcode::TEXT, 3), (opcode::PING, 0), (opcode::BINARY, 300)]);
        assert!(rest.is_empty());
    }

    #[test]
    fn a_frame_that_a_server_must_not_send_is_invalid_with_its_reason() {
        assert!(
            matches!(next_frame(&[0x81, 0x80]), NextFrame::Invalid(why) if why.contains("masked"))
        );
        assert!(
            matches!(next_frame(&[0xc1, 0x00]), NextFrame::Invalid(why) if why.contains("reserved"))
        );
        let endless = [0x82, 127, 0, 0, 0, 0xff, 0, 0, 0, 0];
        assert!(matches!(next_frame(&endless), NextFrame::Invalid(why) if why.contains("longer")));
    }

    #[test]
    fn a_written_frame_is_masked_and_unmasks_to_its_payload() {
        for length in [0usize, 1, 5, 125, 126, 65_535, 65_536] {
            let payload: Vec<u8> = (0..length).map(|i| i as u8).collect();
            let mut out = Vec::new();
            put_frame(&mut out, opcode::BINARY, &payload, 0x1234_5678);
            assert_eq!(out[0], 0x82);
            assert_eq!(out[1] & 0x80, 0x80, "RFC 6455 §5.3: a client masks every frame");
            let body = out.len() - length;
            let mask: [u8; 4] = out[body - 4..body].try_into().expect("four bytes");
            assert_eq!(mask, 0x1234_5678u32.to_le_bytes());
            let plain: Vec<u8> =
                out[body..].iter().enumerate().map(|(i, b)| b ^ mask[i % 4]).collect();
            assert_eq!(plain, payload);
        }
    }
}
