//! What all threads of the process keep alive, against one bound.
//!
//! Each thread adds up what its holders have (outboxes, half messages, histories, what waits in a
//! channel) and posts the sum to its account here, a line of cache of its own. That sum says early
//! that memory grows; how much the process really has is what the kernel says. A sum may count one
//! buffer twice, which two outboxes share, and knows nothing of an allocator's gaps. So the *estimate*
//! is the resident size, read when a thread has grown and on every tick; but no more than twice the
//! sum and [`OVERHEAD_BYTES`]: pages that the allocator has not returned yet are used again first.
//!
//! How near the estimate is to `limits.memory_bytes_max` is the [`Pressure`], one byte that all
//! threads read. Each knows what to do about it at which step.
//!
//! Invariant: an account has one writer. Nothing here frees anything.

use crossbeam_utils::CachePadded;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

/// What a process has beside all sums: code, threads, rings, buffers that are reused.
pub const OVERHEAD_BYTES: u64 = 64 * 1024 * 1024;

/// An account that changed by less is not posted before the next tick.
const POST_BYTES: u64 = 64 * 1024;
/// An account that grew by so much since its thread last looked has it look again.
const LOOK_BYTES: u64 = 1024 * 1024;
/// The bound divided by this is the distance between two steps of pressure.
const STEPS: u64 = 16;

/// How near the node is to its bound. Each step includes those before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Pressure {
    /// It is not.
    #[default]
    None,
    /// Connections that hold much are not read.
    PauseLargest,
    /// Requests that would hold more are answered with `overloaded`.
    RefuseRequests,
    /// The connections that hold most are closed.
    CloseLargest,
    /// New connections are refused.
    RefuseConnections,
}

impl Pressure {
    const ALL: [Pressure; 5] = [
        Pressure::None,
        Pressure::PauseLargest,
        Pressure::RefuseRequests,
        Pressure::CloseLargest,
        Pressure::RefuseConnections,
    ];

    /// The pressure at an estimate, coming from `before`: a step is left half a step below where it
    /// began.
    pub fn at(estimate: u64, bytes_max: u64, before: Pressure) -> Pressure {
        let reached = |slack: u64| {
            let is_in = |step: &&Pressure| estimate + slack >= step.begins_at(bytes_max);
            *Pressure::ALL.iter().rev().find(is_in).expect("the first one begins at 0")
        };
        let (now, with_slack) = (reached(0), reached(bytes_max / STEPS / 2));
        now.max(before.min(with_slack))
    }

    /// The estimate at which a step begins.
    pub fn begins_at(self, bytes_max: u64) -> u64 {
        match self {
            Pressure::None => 0,
            step => bytes_max - (Pressure::ALL.len() as u64 - step as u64) * (bytes_max / STEPS),
        }
    }

    /// The estimate at which a step, once taken, is left.
    pub fn is_over_at(self, bytes_max: u64) -> u64 {
        self.begins_at(bytes_max).saturating_sub(bytes_max / STEPS / 2 + 1)
    }

    /// As it stands in the log.
    pub fn label(self) -> &'static str {
        match self {
            Pressure::None => "none",
            Pressure::PauseLargest => "pause_largest",
            Pressure::RefuseRequests => "refuse_requests",
            Pressure::CloseLargest => "close_largest",
            Pressure::RefuseConnections => "refuse_connections",
        }
    }
}

/// Shared by all threads of a node.
#[derive(Debug)]
pub struct Ledger {
    bytes_max: u64,
    accounts: Box<[CachePadded<Posted>]>,
    /// What [`LedgerHold`]s stand for.
    holds: CachePadded<AtomicU64>,
    shared: CachePadded<Shared>,
}

/// Bytes that no thread's account has, because what they are of goes from one to another. Rare and
/// large: bodies of requests for the API and answers to them. Counted until it is dropped.
#[derive(Debug)]
pub struct LedgerHold {
    ledger: Arc<Ledger>,
    bytes: u64,
}

impl LedgerHold {
    /// Nothing is held yet.
    pub fn new(ledger: Arc<Ledger>) -> LedgerHold {
        LedgerHold { ledger, bytes: 0 }
    }

    /// So many bytes are held now, and no others.
    pub fn set(&mut self, bytes: u64) {
        self.ledger.holds.fetch_add(bytes, Ordering::Relaxed);
        self.ledger.holds.fetch_sub(self.bytes, Ordering::Relaxed);
        self.bytes = bytes;
    }
}

impl Drop for LedgerHold {
    fn drop(&mut self) {
        self.set(0);
    }
}

/// What one thread has posted.
#[derive(Debug, Default)]
struct Posted {
    held: AtomicU64,
    /// What its connections hold that hold more than a little.
    held_by_connections: AtomicU64,
    /// The address whose connections hold most of that, as a number.
    largest_address: AtomicU64,
    /// How much.
    held_by_address: AtomicU64,
}

/// Which address holds most among the connections of a thread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AddressShare {
    /// What all connections hold, in bytes.
    pub all: u64,
    /// The address as a number that is the same on all threads.
    pub largest: u64,
    /// What its connections hold, in bytes.
    pub of_largest: u64,
}

/// Written when the pressure changes and on ticks, read by everybody.
#[derive(Debug, Default)]
struct Shared {
    pressure: AtomicU8,
    resident: AtomicU64,
}

/// The memory of a node at a moment, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryReading {
    /// What all threads keep alive, as they add it up.
    pub held: u64,
    /// What the process has of the machine's memory; 0: unknown.
    pub resident: u64,
    /// What counts against the bound.
    pub estimate: u64,
    /// The bound.
    pub bytes_max: u64,
    /// How near it is.
    pub pressure: Pressure,
}

impl Ledger {
    /// A ledger with so many accounts.
    pub fn new(bytes_max: u64, accounts: usize) -> Ledger {
        let accounts = (0..accounts).map(|_| CachePadded::default()).collect();
        let (holds, shared) = (CachePadded::default(), CachePadded::default());
        Ledger { bytes_max, accounts, holds, shared }
    }

    /// The bound.
    pub fn bytes_max(&self) -> u64 {
        self.bytes_max
    }

    /// How near the node is to its bound.
    #[inline]
    pub fn pressure(&self) -> Pressure {
        Pressure::ALL[usize::from(self.shared.pressure.load(Ordering::Relaxed))]
    }

    /// All numbers, as they were last looked at.
    pub fn reading(&self) -> MemoryReading {
        let (held, resident) = (self.held(), self.shared.resident.load(Ordering::Relaxed));
        let estimate = estimate(held, resident);
        let (bytes_max, pressure) = (self.bytes_max, self.pressure());
        MemoryReading { held, resident, estimate, bytes_max, pressure }
    }

    fn held(&self) -> u64 {
        let held: u64 =
            self.accounts.iter().map(|account| account.held.load(Ordering::Relaxed)).sum();
        held + self.holds.load(Ordering::Relaxed)
    }

    /// Whether the connections of one address hold at least half of what all connections hold: then
    /// sending clients to another node would only move them there.
    pub fn is_from_one_address(&self) -> bool {
        let shares: Vec<AddressShare> = self.accounts.iter().map(|posted| posted.share()).collect();
        let all: u64 = shares.iter().map(|share| share.all).sum();
        let of = |address: u64| {
            let same = shares.iter().filter(|share| share.largest == address);
            same.map(|share| share.of_largest).sum::<u64>()
        };
        let largest = shares.iter().map(|share| of(share.largest)).max().unwrap_or(0);
        all > 0 && largest >= all / 2
    }

    /// Sees how near the bound is. `resident`: what the process has now; `None`: unknown.
    fn look(&self, resident: Option<u64>) -> Pressure {
        let resident = resident.unwrap_or(0);
        self.shared.resident.store(resident, Ordering::Relaxed);
        let (before, held) = (self.pressure(), self.held());
        let pressure = Pressure::at(estimate(held, resident), self.bytes_max, before);
        if pressure != before {
            self.shared.pressure.store(pressure as u8, Ordering::Relaxed);
        }
        pressure
    }
}

impl Posted {
    fn share(&self) -> AddressShare {
        AddressShare {
            all: self.held_by_connections.load(Ordering::Relaxed),
            largest: self.largest_address.load(Ordering::Relaxed),
            of_largest: self.held_by_address.load(Ordering::Relaxed),
        }
    }
}

fn estimate(held: u64, resident: u64) -> u64 {
    match resident {
        0 => held,
        resident => resident.min(2 * held + OVERHEAD_BYTES),
    }
}

/// What only the operating system and the allocator can do.
pub struct MemoryCalls {
    /// Reads what the process has of the machine's memory. `None`: it cannot be read.
    pub resident: Box<dyn Fn() -> Option<u64> + Send>,
    /// Gives back what the calling thread's allocator holds and does not use.
    pub give_back: fn(),
}

/// One thread's account. Owned by the thread.
pub struct Account {
    ledger: Arc<Ledger>,
    number: usize,
    calls: MemoryCalls,
    posted: u64,
    looked_at: u64,
    /// The most that all threads held since this one last gave memory back.
    held_max: u64,
}

impl Account {
    /// The account of this number.
    pub fn new(ledger: Arc<Ledger>, number: usize, calls: MemoryCalls) -> Account {
        Account { ledger, number, calls, posted: 0, looked_at: 0, held_max: 0 }
    }

    /// One that is bounded by nothing, for tests.
    pub fn unbounded() -> Account {
        let calls = MemoryCalls { resident: Box::new(|| None), give_back: || () };
        Account::new(Arc::new(Ledger::new(u64::MAX, 1)), 0, calls)
    }

    /// The ledger that it is an account of.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// What the thread keeps alive now. After each turn of it.
    #[inline]
    pub fn post(&mut self, held: u64) -> Pressure {
        if held.abs_diff(self.posted) >= POST_BYTES {
            self.put(held);
        }
        if held >= self.looked_at + LOOK_BYTES {
            self.looked_at = held;
            return self.ledger.look((self.calls.resident)());
        }
        self.ledger.pressure()
    }

    /// The same on its tick. Where all threads hold much less than before, what its allocator still
    /// has of that goes back to the machine.
    pub fn tick(&mut self, held: u64) -> Pressure {
        self.put(held);
        self.looked_at = held;
        if self.has_fallen() {
            (self.calls.give_back)();
        }
        self.ledger.look((self.calls.resident)())
    }

    /// Whether so much less is held than before that memory should go back. Once for each fall.
    fn has_fallen(&mut self) -> bool {
        let held = self.ledger.held();
        self.held_max = self.held_max.max(held);
        let has_fallen = self.held_max > held + (OVERHEAD_BYTES / 4).max(self.held_max / 4);
        if has_fallen {
            self.held_max = held;
        }
        has_fallen
    }

    fn put(&mut self, held: u64) {
        self.posted = held;
        self.ledger.accounts[self.number].held.store(held, Ordering::Relaxed);
    }

    /// Gives back what the thread's allocator does not use, and looks again.
    pub fn give_back(&mut self) -> Pressure {
        (self.calls.give_back)();
        self.ledger.look((self.calls.resident)())
    }

    /// How much the thread's connections hold, and which address most of it.
    pub fn post_share(&mut self, share: AddressShare) {
        let posted = &self.ledger.accounts[self.number];
        posted.held_by_connections.store(share.all, Ordering::Relaxed);
        posted.largest_address.store(share.largest, Ordering::Relaxed);
        posted.held_by_address.store(share.of_largest, Ordering::Relaxed);
    }

    /// Which part of `bytes`, that are too much for the node, this thread has to give up: as much as
    /// its part of what all hold.
    pub fn part_of(&self, bytes: u64) -> u64 {
        let held = self.ledger.held().max(1);
        (u128::from(bytes) * u128::from(self.posted) / u128::from(held)) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU64;

    const MIB: u64 = 1024 * 1024;

    fn account(ledger: &Arc<Ledger>, number: usize, resident: &Arc<AtomicU64>) -> Account {
        let resident = resident.clone();
        let resident = Box::new(move || Some(resident.load(Ordering::Relaxed)));
        Account::new(ledger.clone(), number, MemoryCalls { resident, give_back: || () })
    }

    #[test]
    fn steps_come_one_after_another_and_are_left_half_a_step_below() {
        let max = 1600 * MIB;
        let (mut pressure, mut seen) = (Pressure::None, Vec::new());
        let up = (0..=1600).map(|mib| mib * MIB);
        let down = (0..=1600).rev().map(|mib| mib * MIB);
        for estimate in up.chain(down) {
            let next = Pressure::at(estimate, max, pressure);
            if next != pressure {
                seen.push((estimate / MIB, next));
            }
            pressure = next;
        }
        let all = [
            (1200, Pressure::PauseLargest),
            (1300, Pressure::RefuseRequests),
            (1400, Pressure::CloseLargest),
            (1500, Pressure::RefuseConnections),
            (1449, Pressure::CloseLargest),
            (1349, Pressure::RefuseRequests),
            (1249, Pressure::PauseLargest),
            (1149, Pressure::None),
        ];
        assert_eq!(seen, all);
    }

    #[test]
    fn a_thread_that_grows_looks_before_its_tick() {
        let ledger = Arc::new(Ledger::new(160 * MIB, 2));
        let resident = Arc::new(AtomicU64::new(20 * MIB));
        let (mut one, mut other) = (account(&ledger, 0, &resident), account(&ledger, 1, &resident));
        assert_eq!(other.tick(90 * MIB), Pressure::None);
        resident.store(155 * MIB, Ordering::Relaxed);
        assert_eq!(one.post(MIB / 2), Pressure::None, "too little to look");
        assert_eq!(one.post(2 * MIB), Pressure::RefuseConnections);
        assert_eq!(other.post(90 * MIB), Pressure::RefuseConnections, "both see it");
        let reading = ledger.reading();
        assert_eq!((reading.held, reading.estimate), (92 * MIB, 155 * MIB));
    }

    #[test]
    fn what_goes_from_thread_to_thread_counts_until_it_is_dropped() {
        let ledger = Arc::new(Ledger::new(1600 * MIB, 1));
        let mut account = account(&ledger, 0, &Arc::default());
        let [mut one, mut other] = [0, 1].map(|_| LedgerHold::new(ledger.clone()));
        one.set(1000 * MIB);
        other.set(450 * MIB);
        assert_eq!(account.tick(10 * MIB), Pressure::CloseLargest);
        assert_eq!(ledger.reading().held, 1460 * MIB);
        one.set(20 * MIB);
        drop(other);
        assert_eq!((account.tick(10 * MIB), ledger.reading().held), (Pressure::None, 30 * MIB));
        drop(one);
        assert_eq!(ledger.reading().held, 10 * MIB);
    }

    #[test]
    fn pages_that_the_allocator_holds_back_are_no_pressure() {
        let ledger = Arc::new(Ledger::new(1600 * MIB, 1));
        let resident = Arc::new(AtomicU64::new(1590 * MIB));
        let mut account = account(&ledger, 0, &resident);
        assert_eq!(account.tick(100 * MIB), Pressure::None);
        assert_eq!(account.tick(790 * MIB), Pressure::RefuseConnections);
    }

    #[test]
    fn one_buffer_that_many_hold_counts_once() {
        let ledger = Arc::new(Ledger::new(1600 * MIB, 1));
        let resident = Arc::new(AtomicU64::new(50 * MIB));
        let mut account = account(&ledger, 0, &resident);
        assert_eq!(account.tick(10_000 * MIB), Pressure::None);
    }

    #[test]
    fn an_address_counts_over_all_threads() {
        let ledger = Arc::new(Ledger::new(1600 * MIB, 3));
        let mut accounts = [0, 1, 2].map(|number| account(&ledger, number, &Arc::default()));
        assert!(!ledger.is_from_one_address(), "nobody holds anything");
        let share = |all, largest, of_largest| AddressShare { all, largest, of_largest };
        accounts[0].post_share(share(100, 7, 40));
        assert!(!ledger.is_from_one_address());
        accounts[1].post_share(share(100, 7, 70));
        accounts[2].post_share(share(10, 9, 10));
        assert!(ledger.is_from_one_address());
        accounts[1].post_share(share(100, 8, 70));
        assert!(!ledger.is_from_one_address());
    }

    #[test]
    fn who_holds_more_gives_up_more() {
        let ledger = Arc::new(Ledger::new(1600 * MIB, 2));
        let [mut one, mut other] = [0, 1].map(|number| account(&ledger, number, &Arc::default()));
        let _ = (one.tick(300 * MIB), other.tick(100 * MIB));
        assert_eq!((one.part_of(40 * MIB), other.part_of(40 * MIB)), (30 * MIB, 10 * MIB));
    }

    #[test]
    fn memory_is_given_back_once_after_each_fall() {
        let ledger = Arc::new(Ledger::new(1600 * MIB, 1));
        let mut account = account(&ledger, 0, &Arc::default());
        let falls = |mib: u64, account: &mut Account| {
            account.put(mib * MIB);
            account.has_fallen()
        };
        let all = [400, 350, 100, 100, 90, 200, 100].map(|mib| falls(mib, &mut account));
        assert_eq!(all, [false, false, true, false, false, false, true]);
    }
}
