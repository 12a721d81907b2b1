//! Tables with an entry for each connection, in segments: a connection's bytes are counted, and a
//! table that moves when it grows leaves half of itself empty, and what it was before with the
//! allocator.

/// Entries of a segment.
const SEGMENT: usize = 512;

/// Entries by the index of their connection; those that were never set are the fill.
#[derive(Debug, Default)]
pub(in crate::shard) struct SegmentTable<T> {
    segments: Vec<Box<[T]>>,
}

impl<T: Copy> SegmentTable<T> {
    /// The entry of this index, if the table is so long.
    pub(in crate::shard) fn get(&self, index: u32) -> Option<T> {
        let (segment, at) = place(index);
        Some(self.segments.get(segment)?[at])
    }

    /// The same, to be changed.
    pub(in crate::shard) fn get_mut(&mut self, index: u32) -> Option<&mut T> {
        let (segment, at) = place(index);
        Some(&mut self.segments.get_mut(segment)?[at])
    }

    /// Sets the entry of this index. Where the table is too short, all up to it are `fill`.
    pub(in crate::shard) fn set(&mut self, index: u32, entry: T, fill: T) {
        let (segment, at) = place(index);
        while self.segments.len() <= segment {
            self.segments.push(vec![fill; SEGMENT].into_boxed_slice());
        }
        self.segments[segment][at] = entry;
    }

    /// Whether nothing was ever set.
    #[cfg(test)]
    pub(in crate::shard) fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }
}

fn place(index: u32) -> (usize, usize) {
    (index as usize / SEGMENT, index as usize % SEGMENT)
}

/// Entries of which the last one goes first. Few take what they need.
#[derive(Debug)]
pub(in crate::shard) struct SegmentStack<T> {
    full: Vec<Box<[T]>>,
    last: Vec<T>,
}

impl<T> Default for SegmentStack<T> {
    fn default() -> SegmentStack<T> {
        SegmentStack { full: Vec::new(), last: Vec::new() }
    }
}

impl<T: Copy> SegmentStack<T> {
    /// Adds one.
    pub(in crate::shard) fn push(&mut self, entry: T) {
        if self.last.len() == SEGMENT {
            let next = Vec::with_capacity(SEGMENT);
            self.full.push(std::mem::replace(&mut self.last, next).into_boxed_slice());
        }
        self.last.push(entry);
    }

    /// Takes the last one.
    pub(in crate::shard) fn pop(&mut self) -> Option<T> {
        if self.last.is_empty()
            && let Some(before) = self.full.pop()
        {
            self.last = before.into_vec();
        }
        self.last.pop()
    }

    /// Whether there is none.
    pub(in crate::shard) fn is_empty(&self) -> bool {
        self.last.is_empty() && self.full.is_empty()
    }

    /// How many there are.
    pub(in crate::shard) fn len(&self) -> usize {
        self.full.len() * SEGMENT + self.last.len()
    }

    /// Takes all of them.
    pub(in crate::shard) fn take_all(&mut self) -> Vec<T> {
        let SegmentStack { full, mut last } = std::mem::take(self);
        full.iter().for_each(|segment| last.extend_from_slice(segment));
        last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_what_was_set_and_otherwise_the_fill() {
        let mut table = SegmentTable::default();
        assert!(table.is_empty() && table.get(0).is_none());
        for index in (0..3000).step_by(7) {
            table.set(index, index + 1, 0);
        }
        for index in 0..3000 {
            let entry = if index % 7 == 0 { index + 1 } else { 0 };
            assert_eq!(table.get(index), Some(entry));
        }
        *table.get_mut(7).expect("it was set") = 5;
        assert_eq!((table.get(7), table.get(3072)), (Some(5), None));
    }

    #[test]
    fn a_stack_gives_back_what_it_was_given_the_last_one_first() {
        let mut stack = SegmentStack::default();
        for round in 0..3 {
            (0..2000).for_each(|n| stack.push(n));
            assert_eq!(stack.len(), 2000, "{round}");
            for n in (0..2000).rev() {
                assert!(!stack.is_empty());
                assert_eq!(stack.pop(), Some(n));
            }
            assert!(stack.is_empty() && stack.pop().is_none());
        }
        (0..1500).for_each(|n| stack.push(n));
        let mut all = stack.take_all();
        all.sort_unstable();
        assert!(stack.is_empty() && all.into_iter().eq(0..1500));
    }

    #[test]
    fn few_take_what_they_need() {
        let mut stack = SegmentStack::default();
        stack.push(1_u32);
        assert!(stack.last.capacity() <= 4 && stack.full.capacity() == 0);
    }
}
