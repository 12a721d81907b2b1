//! Answers that are good for a while.
//!
//! Invariant: at most `bytes_max` bytes; the oldest answers give way. Time is an argument.

use crate::link::hooks::HookVerdict;
use hashbrown::HashMap;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What an entry takes beside its question and what the answer says.
const ENTRY_BYTES: usize = 192;

/// Verdicts by what was asked.
#[derive(Debug)]
pub(super) struct AnswerCache {
    bytes_max: usize,
    bytes: usize,
    entries: HashMap<Arc<[u8]>, CachedAnswer>,
    /// In the order in which they came, each with its number: one that was replaced has another.
    order: VecDeque<(Arc<[u8]>, u64)>,
    number: u64,
}

#[derive(Debug)]
struct CachedAnswer {
    verdict: HookVerdict,
    until: Instant,
    bytes: usize,
    number: u64,
}

impl AnswerCache {
    pub(super) fn new(bytes_max: usize) -> AnswerCache {
        let (entries, order) = (HashMap::new(), VecDeque::new());
        AnswerCache { bytes_max, bytes: 0, entries, order, number: 0 }
    }

    /// The verdict on the same question, if it still holds.
    pub(super) fn get(&self, key: &[u8], now: Instant) -> Option<&HookVerdict> {
        self.entries.get(key).filter(|entry| now < entry.until).map(|entry| &entry.verdict)
    }

    /// Remembers a verdict.
    pub(super) fn put(&mut self, key: &[u8], verdict: &HookVerdict, ttl: Duration, now: Instant) {
        let text_bytes = match verdict {
            HookVerdict::Allow(Some(admission)) => admission.held_bytes(),
            HookVerdict::Deny { reason } => reason.len(),
            HookVerdict::Replace { payload } => payload.len(),
            HookVerdict::Allow(None) | HookVerdict::Failed => 0,
        };
        let bytes = ENTRY_BYTES + key.len() + text_bytes;
        if bytes > self.bytes_max {
            return;
        }
        self.number += 1;
        let (key, number) = (Arc::<[u8]>::from(key), self.number);
        let entry = CachedAnswer { verdict: verdict.clone(), until: now + ttl, bytes, number };
        self.bytes += bytes;
        if let Some(before) = self.entries.insert(key.clone(), entry) {
            self.bytes -= before.bytes;
        }
        self.order.push_back((key, number));
        self.forget_oldest(now);
    }

    /// Drops what is over, and the oldest while there is too much.
    pub(super) fn forget_oldest(&mut self, now: Instant) {
        while let Some((key, number)) = self.order.front() {
            let entry = self.entries.get(key).filter(|entry| entry.number == *number);
            let is_good = entry.is_some_and(|entry| now < entry.until);
            let is_room =
                self.bytes <= self.bytes_max && self.order.len() <= 2 * self.entries.len();
            if is_good && is_room {
                return;
            }
            let is_current = entry.is_some();
            let (key, _) = self.order.pop_front().expect("it was just looked at");
            if is_current && let Some(entry) = self.entries.remove(&key) {
                self.bytes -= entry.bytes;
            }
        }
    }

    /// What the answers take.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_holds_for_its_time_and_the_oldest_give_way() {
        let start = Instant::now();
        let (second, verdict) = (Duration::from_secs(1), HookVerdict::Allow(None));
        let mut cache = AnswerCache::new(2 * (ENTRY_BYTES + 1));
        cache.put(b"a", &verdict, second, start);
        assert_eq!(cache.get(b"a", start), Some(&verdict));
        assert_eq!(cache.get(b"a", start + second), None, "its time is over");
        cache.put(b"b", &verdict, second, start);
        cache.put(b"c", &verdict, second, start);
        assert_eq!(cache.get(b"a", start), None, "it was the oldest");
        assert!(cache.get(b"b", start).is_some() && cache.get(b"c", start).is_some());
        let reason = "x".repeat(3 * ENTRY_BYTES).into();
        cache.put(b"d", &HookVerdict::Deny { reason }, second, start);
        assert_eq!(cache.get(b"d", start), None, "larger than everything");
        // The same question again and again takes one place, in both tables.
        for _ in 0..100 {
            cache.put(b"c", &verdict, second, start);
        }
        assert!(cache.bytes() <= 2 * (ENTRY_BYTES + 1) && cache.order.len() <= 4);
        cache.forget_oldest(start + second);
        assert_eq!((cache.bytes(), cache.order.len()), (0, 0));
    }
}
