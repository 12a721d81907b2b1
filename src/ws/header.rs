//! A client frame's header: 6, 8 or 14 bytes (RFC 6455 §5.2).
//!
//! [`parse`] looks at whatever is there, be it one byte or a megabyte, and judges every byte it has:
//! a header that is wrong in its first byte is refused before its second arrives. The rules are
//! checked in the order of the bytes, so the verdict does not depend on how the header was cut.
//! Rules that depend on earlier frames (continuations, sizes) are the decoder's.
//!
//! Invariant: a parsed header is one that a client may send.

use crate::ws::encode::{CONTROL_BYTES_MAX, Opcode};
use crate::ws::error::ProtocolError;

/// The longest header of a client: 2 bytes, 8 of length, 4 of mask.
pub const HEADER_BYTES_MAX: usize = 14;

/// A client frame's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Whether its message ends with it.
    pub fin: bool,
    /// The kind of the frame.
    pub opcode: Opcode,
    /// The payload's mask.
    pub key: [u8; 4],
    /// How long the payload will be; below 2⁶³.
    pub payload_bytes: u64,
    /// How long the header itself is: 6, 8 or 14.
    pub header_bytes: usize,
}

/// Reads the header at the front of `bytes`. `Ok(None)`: right so far, but not all of it is there.
#[inline]
pub fn parse(bytes: &[u8]) -> Result<Option<Header>, ProtocolError> {
    let Some(&first) = bytes.first() else { return Ok(None) };
    let (fin, opcode) = parse_first(first)?;
    let Some(&second) = bytes.get(1) else { return Ok(None) };
    let short_len = parse_second(second, opcode)?;
    let Some((payload_bytes, rest)) = parse_len(short_len, &bytes[2..])? else { return Ok(None) };
    let Some(&key) = rest.first_chunk::<4>() else { return Ok(None) };
    let header_bytes = bytes.len() - rest.len() + 4;
    Ok(Some(Header { fin, opcode, key, payload_bytes, header_bytes }))
}

#[inline]
fn parse_first(first: u8) -> Result<(bool, Opcode), ProtocolError> {
    if first & 0x70 != 0 {
        return Err(ProtocolError::ReservedBits);
    }
    let fin = first & 0x80 != 0;
    let opcode = Opcode::from_bits(first & 0x0F).ok_or(ProtocolError::ReservedOpcode)?;
    if opcode.is_control() && !fin {
        return Err(ProtocolError::ControlFragmented);
    }
    Ok((fin, opcode))
}

#[inline]
fn parse_second(second: u8, opcode: Opcode) -> Result<u8, ProtocolError> {
    if second & 0x80 == 0 {
        return Err(ProtocolError::Unmasked);
    }
    let short_len = second & 0x7F;
    // Both longer forms say more than 125 or are not minimal; neither is for a control frame.
    if opcode.is_control() && usize::from(short_len) > CONTROL_BYTES_MAX {
        return Err(ProtocolError::ControlTooLong);
    }
    Ok(short_len)
}

/// The payload's length and what follows it; `None` while it is cut.
#[inline]
fn parse_len(short_len: u8, bytes: &[u8]) -> Result<Option<(u64, &[u8])>, ProtocolError> {
    let (len, shortest, rest) = match short_len {
        126 => {
            let Some((len, rest)) = bytes.split_first_chunk::<2>() else { return Ok(None) };
            (u64::from(u16::from_be_bytes(*len)), 126, rest)
        }
        127 => {
            let Some((len, rest)) = bytes.split_first_chunk::<8>() else { return Ok(None) };
            (u64::from_be_bytes(*len), 0x1_0000, rest)
        }
        _ => return Ok(Some((u64::from(short_len), bytes))),
    };
    if len >> 63 != 0 {
        return Err(ProtocolError::LengthTopBit);
    }
    if len < shortest {
        return Err(ProtocolError::LengthNotMinimal);
    }
    Ok(Some((len, rest)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

    fn with_key(start: &[u8]) -> Vec<u8> {
        [start, &KEY].concat()
    }

    #[test]
    fn every_form_of_the_length_is_read_whole_and_waited_for_when_cut() {
        let table: [(&[u8], u64); 9] = [
            (&[0x82, 0x80], 0),
            (&[0x82, 0x81], 1),
            (&[0x82, 0xFD], 125),
            (&[0x82, 0xFE, 0, 126], 126),
            (&[0x82, 0xFE, 1, 0], 256),
            (&[0x82, 0xFE, 0xFF, 0xFF], 65535),
            (&[0x82, 0xFF, 0, 0, 0, 0, 0, 1, 0, 0], 65536),
            (&[0x82, 0xFF, 0, 0, 0, 1, 0, 0, 0, 0], 1 << 32),
            (&[0x82, 0xFF, 0x7F, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF], u64::MAX >> 1),
        ];
        for (start, payload_bytes) in table {
            let mut bytes = with_key(start);
            let header_bytes = bytes.len();
            assert!(header_bytes <= HEADER_BYTES_MAX);
            for cut in 0..header_bytes {
                assert_eq!(parse(&bytes[..cut]), Ok(None), "{start:x?} cut at {cut}");
            }
            bytes.extend_from_slice(b"payload");
            let header =
                Header { fin: true, opcode: Opcode::Binary, key: KEY, payload_bytes, header_bytes };
            assert_eq!(parse(&bytes), Ok(Some(header)));
        }
    }

    #[test]
    fn every_first_byte_has_its_verdict_at_once() {
        for first in 0..=255u8 {
            let (fin, bits) = (first & 0x80 != 0, first & 0x0F);
            let verdict = if first & 0x70 != 0 {
                Err(ProtocolError::ReservedBits)
            } else if matches!(bits, 3..=7 | 11..=15) {
                Err(ProtocolError::ReservedOpcode)
            } else if bits >= 8 && !fin {
                Err(ProtocolError::ControlFragmented)
            } else {
                Ok(None)
            };
            assert_eq!(parse(&[first]), verdict, "{first:#x}");
            if verdict.is_ok() {
                let header = parse(&with_key(&[first, 0x80])).unwrap().unwrap();
                assert_eq!((header.fin, header.opcode as u8), (fin, bits));
            }
        }
    }

    #[test]
    fn every_second_byte_has_its_verdict_at_once() {
        for opcode in [0u8, 1, 2, 8, 9, 10] {
            for second in 0..=255u8 {
                let verdict = if second < 0x80 {
                    Err(ProtocolError::Unmasked)
                } else if opcode >= 8 && second & 0x7F > 125 {
                    Err(ProtocolError::ControlTooLong)
                } else {
                    Ok(None)
                };
                assert_eq!(parse(&[0x80 | opcode, second]), verdict, "{opcode} {second:#x}");
            }
        }
    }

    #[test]
    fn a_length_that_is_too_wide_or_too_big_is_refused_before_the_mask() {
        let table: [(&[u8], ProtocolError); 6] = [
            (&[0x81, 0xFE, 0, 0], ProtocolError::LengthNotMinimal),
            (&[0x81, 0xFE, 0, 125], ProtocolError::LengthNotMinimal),
            (&[0x81, 0xFF, 0, 0, 0, 0, 0, 0, 0, 5], ProtocolError::LengthNotMinimal),
            (&[0x81, 0xFF, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF], ProtocolError::LengthNotMinimal),
            (&[0x81, 0xFF, 0x80, 0, 0, 0, 0, 0, 0, 0], ProtocolError::LengthTopBit),
            (&[0x81, 0xFF, 255, 255, 255, 255, 255, 255, 255, 255], ProtocolError::LengthTopBit),
        ];
        for (bytes, error) in table {
            assert_eq!(parse(bytes), Err(error), "{bytes:x?}");
            assert_eq!(parse(&bytes[..bytes.len() - 1]), Ok(None));
        }
    }
}
