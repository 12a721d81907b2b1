//! What a published message carries so that every receiver can count and time it.
//!
//! A stamp is 44 characters that survive any JSON writer: a mark, the run, the room, the number of
//! the message in its room, and the moment it was meant to be sent. It stands at the end of the
//! payload, so in a delivery it has a fixed distance from the end of the frame: the first one is
//! searched for, all others are looked up.
//!
//! Invariant: messages of another run are never counted.

/// Characters of a stamp.
pub const STAMP_BYTES: usize = MAGIC.len() + 8 + 8 + 8 + 16;

/// The room of the one message that goes to everybody.
pub const BROADCAST_ROOM: u32 = u32::MAX;

const MAGIC: &[u8; 4] = b"~CL~";

/// One message's identity and time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// Random per run.
    pub run_id: u32,
    /// The room's index.
    pub room: u32,
    /// The message's number in its room, from 1.
    pub seq: u32,
    /// When it was meant to be sent, in nanoseconds since the run began.
    pub intended_ns: u64,
}

impl Stamp {
    /// Appends the stamp behind so much filler that both have `payload_bytes` characters.
    pub fn write(&self, payload_bytes: usize, out: &mut Vec<u8>) {
        let filler = payload_bytes.saturating_sub(STAMP_BYTES);
        out.resize(out.len() + filler, b'x');
        out.extend_from_slice(MAGIC);
        write_hex(out, u64::from(self.run_id), 8);
        write_hex(out, u64::from(self.room), 8);
        write_hex(out, u64::from(self.seq), 8);
        write_hex(out, self.intended_ns, 16);
    }

    /// Reads the stamp that begins at `at` in `frame`, if one does.
    fn read(frame: &[u8], at: usize) -> Option<Stamp> {
        let text = frame.get(at..at + STAMP_BYTES)?.strip_prefix(MAGIC)?;
        Some(Stamp {
            run_id: read_hex(&text[..8])? as u32,
            room: read_hex(&text[8..16])? as u32,
            seq: read_hex(&text[16..24])? as u32,
            intended_ns: read_hex(&text[24..40])?,
        })
    }
}

/// Finds stamps, and remembers where the last one stood.
#[derive(Debug, Default)]
pub struct StampFinder {
    from_end: usize,
}

impl StampFinder {
    /// The stamp in `payload`, if there is one.
    pub fn find(&mut self, payload: &[u8]) -> Option<Stamp> {
        if payload.len() < STAMP_BYTES {
            return None;
        }
        if self.from_end != 0 && payload.len() >= self.from_end {
            let found = Stamp::read(payload, payload.len() - self.from_end);
            if found.is_some() {
                return found;
            }
        }
        let at = payload.windows(MAGIC.len()).rposition(|four| four == MAGIC)?;
        self.from_end = payload.len() - at;
        Stamp::read(payload, at)
    }
}

fn write_hex(out: &mut Vec<u8>, value: u64, digits: u32) {
    for digit in (0..digits).rev() {
        out.push(b"0123456789abcdef"[(value >> (4 * digit)) as usize & 15]);
    }
}

fn read_hex(digits: &[u8]) -> Option<u64> {
    let mut value = 0;
    for &digit in digits {
        let nibble = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        value = value << 4 | u64::from(nibble);
    }
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAMP: Stamp =
        Stamp { run_id: 0xdead_beef, room: 7, seq: 4_000_000_001, intended_ns: 123 };

    #[test]
    fn a_stamp_is_found_wherever_a_server_puts_the_payload() {
        let mut payload = Vec::new();
        STAMP.write(120, &mut payload);
        assert_eq!(payload.len(), 120);
        let mut finder = StampFinder::default();
        for (before, after) in [("{\"payload\":\"", "\"}"), ("", "\",\"offset\":12}"), ("42[", "")]
        {
            for _ in 0..2 {
                let frame = [before.as_bytes(), &payload, after.as_bytes()].concat();
                assert_eq!(finder.find(&frame), Some(STAMP));
            }
        }
    }

    #[test]
    fn a_frame_without_a_stamp_has_none_even_after_one_with() {
        let mut payload = Vec::new();
        STAMP.write(STAMP_BYTES, &mut payload);
        let mut finder = StampFinder::default();
        assert_eq!(finder.find(&payload), Some(STAMP));
        assert_eq!(finder.find(b"{\"type\":\"ok\"}"), None);
        assert_eq!(finder.find(&[b'~'; 200]), None);
        payload.truncate(STAMP_BYTES - 1);
        assert_eq!(finder.find(&[&[b'y'; 60], payload.as_slice()].concat()), None);
    }
}
