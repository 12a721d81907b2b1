//! The stamp in a published message, by which a receiver counts and times it.
//!
//! A stamp is 44 characters that any JSON writer leaves as they are: a magic word, the run, the
//! room, the sequence number in the room, and the time at which the message was due. It is the end
//! of the payload, so its distance from the end of the frame is the same in all deliveries: the
//! first stamp is searched for, the others are read at that distance.
//!
//! Invariant: a stamp names its run, so messages of another run are not counted.

/// Length of a stamp.
pub(crate) const STAMP_BYTES: usize = MAGIC.len() + 8 + 8 + 8 + 16;

/// The room in the stamp of a message that goes to all connections.
pub(crate) const BROADCAST_ROOM: u32 = u32::MAX;

const MAGIC: &[u8; 4] = b"~CL~";

/// Room and number of a message, and the time at which it was due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// Of the plan.
    pub run_id: u32,
    /// The room's index.
    pub room: u32,
    /// The message's sequence number in its room, from 1.
    pub seq: u32,
    /// When it was due, in nanoseconds since the run began. Latency counts from here.
    pub intended_ns: u64,
}

impl Stamp {
    /// Appends a payload of `payload_bytes` bytes: filler, then the stamp.
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

/// Finds stamps. One for each worker, because it remembers the distance of the last search.
#[derive(Debug, Default)]
pub(crate) struct StampFinder {
    /// Distance of the last stamp from the end of its frame; 0: none found yet.
    from_end: usize,
}

impl StampFinder {
    /// The stamp in `payload`, if there is one.
    pub(crate) fn find(&mut self, payload: &[u8]) -> Option<Stamp> {
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
