//! `Slab<T>`: a slab in pages, with keys that are recognised when they are stale.
//!
//! Pages, because a vector of a million connections that doubles copies them all in one visit and
//! leaves half of its memory unused; a page is allocated once and never moves. A freed place is
//! used again last-in first-out, so a busy shard stays in the pages that are in its cache.
//!
//! Invariant: a `SlotId` whose generation differs from its place's finds nothing, ever.

use crate::ids::SlotId;

const PAGE: usize = 1024;

struct Entry<T> {
    generation: u32,
    value: Option<T>,
}

/// A bounded, paged, generational slab.
pub struct Slab<T> {
    pages: Vec<Box<[Entry<T>]>>,
    free: Vec<u32>,
    used: usize,
    /// Places ever used; every index below is initialised.
    high: usize,
    max: usize,
}

impl<T> Slab<T> {
    /// A slab for at most `max` inhabitants. Nothing is allocated yet.
    pub fn with_max(max: usize) -> Slab<T> {
        assert!(max <= u32::MAX as usize);
        Slab { pages: Vec::new(), free: Vec::new(), used: 0, high: 0, max }
    }

    /// How many live here.
    pub fn len(&self) -> usize {
        self.used
    }

    /// Whether no place is taken.
    pub fn is_empty(&self) -> bool {
        self.used == 0
    }

    /// One past the highest index ever used: the range that a sweep has to walk.
    pub fn capacity_used(&self) -> usize {
        self.high
    }

    /// Puts `value` into a free place; gives it back when all `max` are taken.
    pub fn insert(&mut self, value: T) -> Result<SlotId, T> {
        if self.used == self.max {
            return Err(value);
        }
        let index = match self.free.pop() {
            Some(index) => index as usize,
            None => self.grow(),
        };
        let entry = &mut self.pages[index / PAGE][index % PAGE];
        debug_assert!(entry.value.is_none());
        entry.value = Some(value);
        self.used += 1;
        Ok(SlotId { index: index as u32, generation: entry.generation })
    }

    /// Takes the inhabitant out. From now on `id` finds nothing.
    pub fn remove(&mut self, id: SlotId) -> Option<T> {
        let entry = self.entry_mut(id.index)?;
        if entry.generation != id.generation {
            return None;
        }
        let value = entry.value.take()?;
        entry.generation = entry.generation.wrapping_add(1);
        self.used -= 1;
        self.free.push(id.index);
        Some(value)
    }

    /// The inhabitant, unless it has left.
    pub fn get(&self, id: SlotId) -> Option<&T> {
        let entry = self.entry(id.index)?;
        if entry.generation == id.generation { entry.value.as_ref() } else { None }
    }

    /// The inhabitant, unless it has left.
    pub fn get_mut(&mut self, id: SlotId) -> Option<&mut T> {
        let entry = self.entry_mut(id.index)?;
        if entry.generation == id.generation { entry.value.as_mut() } else { None }
    }

    /// The value at `index`, whatever its generation. For indices whose owner removes them in time.
    #[inline]
    pub fn at(&self, index: u32) -> Option<&T> {
        self.entry(index)?.value.as_ref()
    }

    /// The value at `index`, whatever its generation.
    #[inline]
    pub fn at_mut(&mut self, index: u32) -> Option<&mut T> {
        self.entry_mut(index)?.value.as_mut()
    }

    /// The value at `index`, whatever its generation, with its full key.
    #[inline]
    pub fn with_id_mut(&mut self, index: u32) -> Option<(SlotId, &mut T)> {
        let entry = self.entry_mut(index)?;
        let id = SlotId { index, generation: entry.generation };
        entry.value.as_mut().map(|value| (id, value))
    }

    /// The full key of the value at `index`.
    pub fn id_at(&self, index: u32) -> Option<SlotId> {
        let entry = self.entry(index)?;
        entry.value.as_ref()?;
        Some(SlotId { index, generation: entry.generation })
    }

    /// Everyone, in index order.
    pub fn iter(&self) -> impl Iterator<Item = (SlotId, &T)> {
        (0..self.high as u32).filter_map(|index| Some((self.id_at(index)?, self.at(index)?)))
    }

    #[inline]
    fn entry(&self, index: u32) -> Option<&Entry<T>> {
        self.pages.get(index as usize / PAGE)?.get(index as usize % PAGE)
    }

    #[inline]
    fn entry_mut(&mut self, index: u32) -> Option<&mut Entry<T>> {
        self.pages.get_mut(index as usize / PAGE)?.get_mut(index as usize % PAGE)
    }

    fn grow(&mut self) -> usize {
        let index = self.high;
        if index == self.pages.len() * PAGE {
            let page = (0..PAGE).map(|_| Entry { generation: 0, value: None });
            self.pages.push(page.collect());
        }
        self.high += 1;
        index
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_of_someone_who_left_finds_nobody() {
        let mut slots = Slab::with_max(2);
        let ann = slots.insert("ann").unwrap();
        assert_eq!(slots.remove(ann), Some("ann"));
        let bob = slots.insert("bob").unwrap();
        assert_eq!(bob.index, ann.index);
        assert_eq!(slots.get(ann), None);
        assert_eq!(slots.remove(ann), None);
        assert_eq!(slots.get(bob), Some(&"bob"));
    }

    #[test]
    fn a_full_slab_gives_the_value_back() {
        let mut slots = Slab::with_max(1);
        slots.insert(1).unwrap();
        assert_eq!(slots.insert(2), Err(2));
    }

    #[test]
    fn it_agrees_with_a_map_over_many_operations() {
        let mut slots = Slab::with_max(3000);
        let mut model = std::collections::HashMap::new();
        let mut seed = 7u64;
        for step in 0..50_000u64 {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            if seed >> 63 == 0 {
                if let Ok(id) = slots.insert(step) {
                    assert!(model.insert(id, step).is_none());
                }
            } else if let Some(id) = model.keys().nth((seed % 8) as usize).copied() {
                assert_eq!(slots.remove(id), model.remove(&id));
            }
            assert_eq!(slots.len(), model.len());
        }
        assert_eq!(slots.iter().count(), model.len());
        assert!(slots.iter().all(|(id, value)| model[&id] == *value));
    }
}
