//! A value that one thread replaces as a whole and others take when they look.
//!
//! A reader pays one atomic load to find that nothing is new, so a shard may look on each tick. The
//! value itself is immutable: a thread that has taken it uses it for as long as it likes.
//!
//! Invariant: a reader that sees a version sees its value, or a later one.

use arc_swap::ArcSwap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The newest value, and its number.
#[derive(Debug)]
pub struct Exchange<T> {
    value: ArcSwap<T>,
    version: AtomicU64,
}

impl<T> Exchange<T> {
    /// The first value.
    pub fn new(value: Arc<T>) -> Exchange<T> {
        Exchange { value: ArcSwap::new(value), version: AtomicU64::new(0) }
    }

    /// Replaces the value. One thread does.
    pub fn set(&self, value: Arc<T>) {
        self.value.store(value);
        self.version.fetch_add(1, Ordering::Release);
    }

    /// The newest value.
    pub fn get(&self) -> Arc<T> {
        self.value.load_full()
    }
}

/// A thread's view of an [`Exchange`].
#[derive(Debug)]
pub struct ExchangeReader<T> {
    exchange: Arc<Exchange<T>>,
    seen: u64,
}

impl<T> ExchangeReader<T> {
    /// From now on changes are news. The caller has the first value.
    pub fn new(exchange: Arc<Exchange<T>>) -> ExchangeReader<T> {
        ExchangeReader { exchange, seen: 0 }
    }

    /// The newest value, if it is another one than at the last call.
    pub fn changed(&mut self) -> Option<Arc<T>> {
        let version = self.exchange.version.load(Ordering::Acquire);
        if version == self.seen {
            return None;
        }
        self.seen = version;
        Some(self.exchange.get())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_seen_once_by_each_reader_and_only_the_last_of_several() {
        let exchange = Arc::new(Exchange::new(Arc::new(1)));
        let mut readers = [(); 2].map(|()| ExchangeReader::new(exchange.clone()));
        assert!(readers.iter_mut().all(|reader| reader.changed().is_none()));
        exchange.set(Arc::new(2));
        assert_eq!(readers[0].changed().as_deref(), Some(&2));
        exchange.set(Arc::new(3));
        for reader in &mut readers {
            assert_eq!(reader.changed().as_deref(), Some(&3));
            assert!(reader.changed().is_none());
        }
    }
}
