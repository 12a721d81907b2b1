//! Random numbers for masks and retry delays. Not for secrets.

/// The generator xorshift64*.
#[derive(Debug)]
pub(super) struct XorShift {
    state: u64,
}

impl XorShift {
    /// A generator whose numbers depend on `seed` only.
    pub(super) fn new(seed: u64) -> XorShift {
        // The state zero would give only zeros.
        XorShift { state: seed | 1 }
    }

    /// The next number, of 48 bits.
    pub(super) fn next_u48(&mut self) -> u64 {
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        self.state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    /// The key of the next masked frame.
    pub(super) fn next_mask(&mut self) -> u32 {
        self.next_u48() as u32
    }
}
