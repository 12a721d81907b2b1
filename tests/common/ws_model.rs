//! A decoder of WebSocket frames that is too simple to be wrong, beside the one of the server.
//!
//! The model sees the whole stream at once, stores everything, and reads like the figure in RFC 6455
//! §5.2. Whatever a client sends, in whatever pieces it arrives, both must answer the same items and the
//! same error.

use campanile::ws::close::CloseCode;
use campanile::ws::decoder::{Decoder, DecoderLimits, Item, ProtocolError};

/// An item that owns what it says: opcode and payload, for a close its code and reason.
pub type Items = Vec<(u8, Vec<u8>)>;

/// All items of `bytes`, as RFC 6455 has them.
pub fn model(bytes: &[u8], limits: DecoderLimits) -> (Items, Option<ProtocolError>) {
    let mut items = Items::new();
    let verdict = model_frames(bytes, limits, &mut items);
    (items, verdict.err())
}

fn model_frames(
    mut rest: &[u8],
    limits: DecoderLimits,
    items: &mut Items,
) -> Result<(), ProtocolError> {
    let mut open: Option<(u8, Vec<u8>)> = None;
    while let Some((fin, opcode, len, key, payload)) = model_header(rest)? {
        let control = opcode >= 8;
        match (&open, opcode) {
            (None, 0) => return Err(ProtocolError::ContinuationUnexpected),
            (Some(_), 1 | 2) => return Err(ProtocolError::MessageInterrupted),
            _ => {}
        }
        let before = open.as_ref().map_or(0, |(_, message)| message.len());
        if !control && len + before as u128 > limits.message_bytes_max as u128 {
            return Err(ProtocolError::MessageTooBig);
        }
        let here = payload.len().min(len as usize);
        let clear = payload[..here].iter().enumerate().map(|(at, byte)| byte ^ key[at % 4]);
        rest = &payload[here..];
        if control {
            if here as u128 == len {
                let payload: Vec<u8> = clear.collect();
                if opcode == 8 {
                    model_close(&payload)?;
                }
                items.push((opcode, payload));
                if opcode == 8 {
                    return Ok(());
                }
            }
            continue;
        }
        let (kind, message) = open.get_or_insert((opcode, Vec::new()));
        message.extend(clear);
        let ends = fin && here as u128 == len;
        match std::str::from_utf8(message) {
            Err(error) if *kind == 1 && (ends || error.error_len().is_some()) => {
                return Err(ProtocolError::InvalidUtf8);
            }
            _ => {}
        }
        if ends {
            items.extend(open.take());
        }
    }
    Ok(())
}

/// FIN, opcode, length, key, and what follows the header.
type ModelHeader<'a> = (bool, u8, u128, [u8; 4], &'a [u8]);

fn model_header(bytes: &[u8]) -> Result<Option<ModelHeader<'_>>, ProtocolError> {
    let Some(first) = bytes.first() else { return Ok(None) };
    let (fin, opcode) = (first & 128 > 0, first & 15);
    match (first >> 4 & 7, opcode, fin) {
        (1.., _, _) => return Err(ProtocolError::ReservedBits),
        (_, 3..=7 | 11..=15, _) => return Err(ProtocolError::ReservedOpcode),
        (_, 8..=10, false) => return Err(ProtocolError::ControlFragmented),
        _ => {}
    }
    let Some(second) = bytes.get(1) else { return Ok(None) };
    if second & 128 == 0 {
        return Err(ProtocolError::Unmasked);
    }
    let extended = match second & 127 {
        126.. if opcode >= 8 => return Err(ProtocolError::ControlTooLong),
        126 => 2,
        127 => 8,
        _ => 0,
    };
    let Some(digits) = bytes.get(2..2 + extended) else { return Ok(None) };
    let number = digits.iter().fold(0u128, |number, digit| number << 8 | u128::from(*digit));
    let len = if extended == 0 { u128::from(second & 127) } else { number };
    match (extended, len) {
        (8, 0x8000_0000_0000_0000..) => return Err(ProtocolError::LengthTopBit),
        (2, ..126) | (8, ..65536) => return Err(ProtocolError::LengthNotMinimal),
        _ => {}
    }
    let Some(key) = bytes.get(2 + extended..6 + extended) else { return Ok(None) };
    Ok(Some((fin, opcode, len, key.try_into().unwrap(), &bytes[6 + extended..])))
}

fn model_close(payload: &[u8]) -> Result<(), ProtocolError> {
    match payload {
        [] => Ok(()),
        [_] => Err(ProtocolError::CloseTruncated),
        [high, low, reason @ ..] => {
            let code = u16::from(*high) << 8 | u16::from(*low);
            CloseCode::new(code).ok_or(ProtocolError::CloseCodeInvalid)?;
            let reason = std::str::from_utf8(reason);
            reason.map(|_| ()).map_err(|_| ProtocolError::CloseReasonInvalid)
        }
    }
}

/// What the decoder makes of `bytes` when they arrive in reads of these sizes (the last one takes the rest).
/// With `thrifty`, it is thrown away after every read that leaves it at rest.
pub fn decode(
    bytes: &[u8],
    reads: &[usize],
    thrifty: bool,
    limits: DecoderLimits,
) -> (Items, Option<ProtocolError>) {
    let mut items = Items::new();
    let mut decoder = Decoder::new();
    let mut rest = bytes;
    let mut reads = reads.iter().copied();
    while !rest.is_empty() {
        let (read, later) = rest.split_at(reads.next().unwrap_or(rest.len()).min(rest.len()));
        rest = later;
        let mut read = read.to_vec();
        let mut input = read.as_mut_slice();
        while let Some(item) = decoder.next(&mut input, limits) {
            match item {
                Ok(item) => items.push(owned(item)),
                Err(error) => {
                    let again = decoder.next(&mut input, limits);
                    assert_eq!(again, Some(Err(error)), "an error is final");
                    return (items, Some(error));
                }
            }
        }
        assert!(input.is_empty(), "None means that all of it was taken");
        if decoder.is_at_rest() {
            assert_eq!(decoder.heap_bytes(), 0);
            if thrifty {
                decoder = Decoder::new();
            }
        }
    }
    (items, None)
}

fn owned(item: Item<'_>) -> (u8, Vec<u8>) {
    match item {
        Item::Text(bytes) => (1, bytes.to_vec()),
        Item::Binary(bytes) => (2, bytes.to_vec()),
        Item::Ping(bytes) => (9, bytes.to_vec()),
        Item::Pong(bytes) => (10, bytes.to_vec()),
        Item::Close { code: None, reason } => (8, reason.as_bytes().to_vec()),
        Item::Close { code: Some(code), reason } => {
            (8, [&code.get().to_be_bytes(), reason.as_bytes()].concat())
        }
    }
}
