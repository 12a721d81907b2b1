//! A word for each connection that is counted somewhere, by the connection's index: in pages like
//! those of the slab, so that what is not counted costs nothing and an empty page is freed.

const PAGE: usize = 1024;

/// The words. 0: nothing is noted.
#[derive(Default)]
pub(in crate::net) struct CountedWords {
    pages: Vec<Option<Box<Page>>>,
}

struct Page {
    used: usize,
    words: [u64; PAGE],
}

impl CountedWords {
    /// The word at `index`.
    pub(in crate::net) fn get(&self, index: u32) -> u64 {
        let page = self.pages.get(index as usize / PAGE).and_then(Option::as_ref);
        page.map_or(0, |page| page.words[index as usize % PAGE])
    }

    /// Replaces the word at `index`, and returns what it was.
    pub(in crate::net) fn set(&mut self, index: u32, word: u64) -> u64 {
        let (number, place) = (index as usize / PAGE, index as usize % PAGE);
        if self.pages.len() <= number {
            if word == 0 {
                return 0;
            }
            self.pages.resize_with(number + 1, || None);
        }
        let slot = &mut self.pages[number];
        if word == 0 && slot.is_none() {
            return 0;
        }
        let page = slot.get_or_insert_with(|| Box::new(Page { used: 0, words: [0; PAGE] }));
        let before = std::mem::replace(&mut page.words[place], word);
        page.used = page.used + usize::from(word != 0) - usize::from(before != 0);
        if page.used == 0 {
            *slot = None;
        }
        before
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    #[test]
    fn it_agrees_with_a_map_and_holds_no_empty_page() {
        let mut words = CountedWords::default();
        let mut model: HashMap<u32, u64> = HashMap::new();
        let mut seed = 9u64;
        for _ in 0..50_000 {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let index = (seed >> 33) as u32 % 5000;
            let word = if seed >> 62 == 0 { 0 } else { seed >> 20 };
            let before = model.insert(index, word).unwrap_or(0);
            assert_eq!(words.get(index), before);
            assert_eq!(words.set(index, word), before);
        }
        model.keys().for_each(|index| _ = words.set(*index, 0));
        assert!(words.pages.iter().all(Option::is_none));
        assert_eq!((words.set(1 << 20, 0), words.pages.len() < 10), (0, true));
    }
}
