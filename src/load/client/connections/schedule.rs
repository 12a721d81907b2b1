//! Which connection connects next, and how long its handshake may take.
//!
//! Connects are bounded twice: by the handshakes that are outstanding, and by a rate. A failed
//! attempt is retried after a delay; a handshake has a deadline.
//!
//! Time is an argument; nothing here uses a socket.
//!
//! Invariant: `handshakes` is the number of connections that connect or wait for the response.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::time::Duration;

/// The longest `Retry-After` that is honoured, in seconds.
const RETRY_AFTER_S_MAX: u64 = 300;

/// When a handshake has taken too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct HandshakeDeadline {
    /// In nanoseconds since the run began.
    pub at_ns: u64,
    /// Whose handshake.
    pub slot: u32,
    /// The slot's generation then; with another one, that handshake has ended.
    pub generation: u16,
}

/// The connects of one worker.
#[derive(Debug)]
pub(super) struct ConnectSchedule {
    /// Handshakes that may be outstanding.
    concurrency: u32,
    /// Connects a second, if limited.
    rate: Option<f64>,
    /// Slots to connect, in order.
    queue: VecDeque<u32>,
    /// Slots to connect again, by time.
    retries: BinaryHeap<Reverse<(u64, u32)>>,
    /// In order of time: all handshakes have the same timeout.
    deadlines: VecDeque<HandshakeDeadline>,
    handshakes: u32,
    /// Connects begun since `rate_since_ns`.
    begun: u64,
    rate_since_ns: u64,
}

impl ConnectSchedule {
    /// An empty schedule.
    pub(super) fn new(concurrency: u32, rate: Option<f64>) -> ConnectSchedule {
        ConnectSchedule {
            concurrency,
            rate,
            queue: VecDeque::new(),
            retries: BinaryHeap::new(),
            deadlines: VecDeque::new(),
            handshakes: 0,
            begun: 0,
            rate_since_ns: 0,
        }
    }

    /// Forgets all handshakes and retries, and queues the slots `0..slots`.
    pub(super) fn restart(&mut self, slots: u32, now_ns: u64) {
        self.deadlines.clear();
        self.retries.clear();
        self.handshakes = 0;
        self.begun = 0;
        self.rate_since_ns = now_ns;
        self.queue = (0..slots).collect();
    }

    /// Queues the retries that are due.
    pub(super) fn queue_due_retries(&mut self, now_ns: u64) {
        while let Some(&Reverse((due_ns, slot))) = self.retries.peek() {
            if due_ns > now_ns {
                break;
            }
            self.retries.pop();
            self.queue.push_back(slot);
        }
    }

    /// Takes the next slot off the queue, if concurrency and rate allow a connect now.
    pub(super) fn take_next(&mut self, now_ns: u64) -> Option<u32> {
        if self.handshakes >= self.concurrency || self.rate_due_ns() > now_ns {
            return None;
        }
        let slot = self.queue.pop_front()?;
        self.begun += 1;
        Some(slot)
    }

    /// When the next connect can begin; `None` if that depends on an event.
    pub(super) fn next_due_ns(&self) -> Option<u64> {
        if self.handshakes >= self.concurrency {
            return None;
        }
        if self.queue.is_empty() {
            return self.retries.peek().map(|Reverse((due_ns, _))| *due_ns);
        }
        Some(self.rate_due_ns())
    }

    /// A handshake has begun, and must have ended with a join by its deadline.
    pub(super) fn handshake_begun(&mut self, deadline: HandshakeDeadline) {
        self.handshakes += 1;
        self.deadlines.push_back(deadline);
    }

    /// A handshake has ended, with a 101 or without.
    pub(super) fn handshake_ended(&mut self) {
        self.handshakes -= 1;
    }

    /// The earliest deadline, also of a handshake that has ended.
    pub(super) fn first_deadline(&self) -> Option<HandshakeDeadline> {
        self.deadlines.front().copied()
    }

    /// Removes the earliest deadline.
    pub(super) fn drop_first_deadline(&mut self) {
        self.deadlines.pop_front();
    }

    /// Connects a slot again at `due_ns`.
    pub(super) fn retry(&mut self, slot: u32, due_ns: u64) {
        self.retries.push(Reverse((due_ns, slot)));
    }

    fn rate_due_ns(&self) -> u64 {
        match self.rate {
            None => 0,
            Some(rate) => {
                self.rate_since_ns.saturating_add((self.begun as f64 * 1e9 / rate) as u64)
            }
        }
    }
}

/// How long to wait after `tries` failed attempts: what the server asked for plus up to as much
/// again, or 0.1 s doubled with every attempt up to 5 s, half of it random.
pub(super) fn retry_delay_ns(tries: u8, retry_after_s: Option<u64>, random: u64) -> u64 {
    let (least, spread) = match retry_after_s {
        Some(s) => (
            Duration::from_secs(s.min(RETRY_AFTER_S_MAX)),
            Duration::from_secs(s.clamp(1, RETRY_AFTER_S_MAX)),
        ),
        None => {
            let doubled = Duration::from_millis(50 << tries.min(6));
            let half = doubled.min(Duration::from_millis(2500));
            (half, half)
        }
    };
    least.as_nanos() as u64 + random % (spread.as_nanos() as u64).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn handshake(slot: u32) -> HandshakeDeadline {
        HandshakeDeadline { at_ns: 1_000, slot, generation: 1 }
    }

    #[test]
    fn outstanding_handshakes_bound_the_connects() {
        let mut schedule = ConnectSchedule::new(2, None);
        schedule.restart(3, 0);
        for slot in 0..2 {
            assert_eq!(schedule.take_next(0), Some(slot));
            schedule.handshake_begun(handshake(slot));
        }
        assert_eq!(schedule.take_next(0), None);
        assert_eq!(schedule.next_due_ns(), None, "only an event allows the third");
        schedule.handshake_ended();
        assert_eq!(schedule.take_next(0), Some(2));
        assert_eq!(schedule.take_next(0), None);
    }

    #[test]
    fn a_rate_bounds_the_connects() {
        let mut schedule = ConnectSchedule::new(100, Some(10.0));
        schedule.restart(3, 5);
        assert_eq!(schedule.take_next(5), Some(0));
        assert_eq!(schedule.next_due_ns(), Some(100_000_005));
        assert_eq!(schedule.take_next(100_000_004), None);
        assert_eq!(schedule.take_next(100_000_005), Some(1));
    }

    #[test]
    fn retries_are_queued_in_order_of_time_and_forgotten_by_a_restart() {
        let mut schedule = ConnectSchedule::new(100, None);
        schedule.retry(7, 20);
        schedule.retry(8, 10);
        assert_eq!(schedule.next_due_ns(), Some(10));
        schedule.queue_due_retries(9);
        assert_eq!(schedule.take_next(9), None);
        schedule.queue_due_retries(20);
        assert_eq!([schedule.take_next(20), schedule.take_next(20)], [Some(8), Some(7)]);
        schedule.retry(9, 30);
        schedule.handshake_begun(handshake(7));
        schedule.restart(1, 30);
        schedule.queue_due_retries(30);
        assert_eq!(schedule.first_deadline(), None);
        assert_eq!([schedule.take_next(30), schedule.take_next(30)], [Some(0), None]);
    }

    #[test]
    fn a_delay_doubles_up_to_five_seconds_and_honours_retry_after() {
        let s = |seconds: u64| seconds * 1_000_000_000;
        let ms = |ms: u64| ms * 1_000_000;
        assert_eq!(
            [0, 3, 255].map(|tries| retry_delay_ns(tries, None, 0)),
            [ms(50), ms(400), ms(2500)]
        );
        assert_eq!(retry_delay_ns(0, None, ms(50) - 1), ms(100) - 1);
        assert_eq!(
            retry_delay_ns(0, None, ms(50)),
            ms(50),
            "the random part is below the fixed part"
        );
        assert_eq!([0, 7, 9_999].map(|after| retry_delay_ns(0, Some(after), 0)), [0, s(7), s(300)]);
        assert_eq!(retry_delay_ns(0, Some(0), s(1) - 1), s(1) - 1);
        assert_eq!(retry_delay_ns(0, Some(7), s(6)), s(13));
    }
}
