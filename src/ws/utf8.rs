//! Whether text is text: whole, or in pieces that may cut a character.
//!
//! A whole message is one call into simdutf8. Pieces go through [`Utf8`], which remembers the one to
//! three bytes of a character that the last piece left open, and says no at the first byte that no
//! continuation could make valid. RFC 6455 §8.1 requires it only at the end; failing earlier saves
//! the bytes that would be collected until then.
//!
//! Invariant: between two pieces at most three bytes are stored, and they are the start of a character
//! that can still become valid.

/// These bytes cannot be text, whatever follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotUtf8;

/// Text on its way: what the last piece left open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Utf8 {
    open: [u8; 3],
    open_len: u8,
}

const _: () = assert!(size_of::<Utf8>() == 4);

/// Whether `bytes` are valid UTF-8 from end to end.
#[inline]
pub fn is_valid(bytes: &[u8]) -> bool {
    simdutf8::basic::from_utf8(bytes).is_ok()
}

impl Utf8 {
    /// Takes the next piece.
    pub fn push(&mut self, mut piece: &[u8]) -> Result<(), NotUtf8> {
        while self.open_len > 0 {
            let Some((&byte, rest)) = piece.split_first() else { return Ok(()) };
            self.push_byte(byte)?;
            piece = rest;
        }
        match simdutf8::compat::from_utf8(piece) {
            Ok(_) => Ok(()),
            Err(error) if error.error_len().is_some() => Err(NotUtf8),
            Err(error) => {
                self.keep(&piece[error.valid_up_to()..]);
                Ok(())
            }
        }
    }

    /// Whether what was pushed ends with a whole character.
    pub fn is_complete(self) -> bool {
        self.open_len == 0
    }

    /// One more byte of the character that is open.
    fn push_byte(&mut self, byte: u8) -> Result<(), NotUtf8> {
        let open_len = usize::from(self.open_len);
        let mut character = [0u8; 4];
        character[..open_len].copy_from_slice(&self.open[..open_len]);
        character[open_len] = byte;
        match std::str::from_utf8(&character[..=open_len]) {
            Ok(_) => self.open_len = 0,
            Err(error) if error.error_len().is_some() => return Err(NotUtf8),
            Err(_) => self.keep(&character[..=open_len]),
        }
        Ok(())
    }

    fn keep(&mut self, open: &[u8]) {
        assert!(open.len() <= self.open.len(), "four bytes are a whole character or none");
        self.open[..open.len()].copy_from_slice(open);
        self.open_len = open.len() as u8;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every border of the encoding (Unicode table 3-7), as text or as nearly text.
    const SAMPLES: &[&[u8]] = &[
        b"",
        b"ascii",
        "Zoë € \u{10FFFF} \u{7FF}\u{800}\u{FFFF}\u{10000}".as_bytes(),
        "κόσμε, 日本語, 🔔🔔🔔".as_bytes(),
        b"\x80",
        b"\xC0\xAF",
        b"\xC1\xBF",
        b"\xC2",
        b"\xC2\xC2",
        b"\xE0\x9F\xBF",
        b"\xE0\xA0\x80",
        b"\xED\x9F\xBF",
        b"\xED\xA0\x80",
        b"\xEF\xBF",
        b"\xF0\x8F\xBF\xBF",
        b"\xF0\x90\x80\x80",
        b"\xF4\x8F\xBF\xBF",
        b"\xF4\x90\x80\x80",
        b"\xF5\x80\x80\x80",
        b"\xFE",
        b"\xFF",
        b"a\xF0\x9F\x94z",
        b"a\xE2\x82",
    ];

    fn judge(pieces: &[&[u8]]) -> bool {
        let mut utf8 = Utf8::default();
        pieces.iter().all(|piece| utf8.push(piece).is_ok()) && utf8.is_complete()
    }

    #[test]
    fn two_cuts_anywhere_do_not_change_the_verdict() {
        for sample in SAMPLES {
            let wanted = std::str::from_utf8(sample).is_ok();
            assert_eq!(is_valid(sample), wanted, "{sample:x?}");
            for first in 0..=sample.len() {
                for second in first..=sample.len() {
                    let pieces = [&sample[..first], &sample[first..second], &sample[second..]];
                    assert_eq!(judge(&pieces), wanted, "{sample:x?} cut at {first}, {second}");
                }
            }
        }
    }

    #[test]
    fn it_says_no_at_the_first_byte_that_cannot_be_saved() {
        for sample in SAMPLES {
            let mut utf8 = Utf8::default();
            for (at, byte) in sample.iter().enumerate() {
                let hopeless = match std::str::from_utf8(&sample[..=at]) {
                    Ok(_) => false,
                    Err(error) => error.error_len().is_some(),
                };
                assert_eq!(utf8.push(&[*byte]).is_err(), hopeless, "{sample:x?} at {at}");
                if hopeless {
                    break;
                }
            }
        }
    }

    #[test]
    fn a_long_piece_may_end_inside_a_character_too() {
        // Long enough for the vector code, which smaller pieces never reach.
        for bells in 30..40 {
            let text = "🔔".repeat(bells);
            for cut in 0..text.len() {
                let (head, tail) = text.as_bytes().split_at(cut);
                assert!(judge(&[head, tail]));
                assert!(!judge(&[head, tail, b"\x80"]));
                assert_eq!(judge(&[head]), cut % 4 == 0);
            }
        }
    }
}
