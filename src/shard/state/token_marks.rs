//! What revocations are compared with, by the index of a connection: of those whose token has `jti` or
//! `iat`.
//!
//! One that has a mark costs [`PACKED_BYTES`], in pages like those of `named_peers.rs`; the others
//! cost nothing where no neighbour has one.

use crate::policy::revocations::TokenMark;

const PAGE: usize = 1024;
const PACKED_BYTES: usize = 12;

// A connection whose token has `jti` or `iat` may cost 16 bytes more.
const _: () = assert!(size_of::<Page>() <= 16 * PAGE);

/// `iat` and both halves of the hash. All zeros: none.
type Packed = [u32; PACKED_BYTES / 4];

struct Page {
    used: usize,
    marks: [Packed; PAGE],
}

/// The table.
#[derive(Default)]
pub(in crate::shard) struct TokenMarks {
    pages: Vec<Option<Box<Page>>>,
}

impl TokenMarks {
    /// Notes the mark of a connection in the place of another one. `None`: it has none now.
    pub(in crate::shard) fn set(&mut self, index: u32, mark: Option<TokenMark>) {
        self.remove(index);
        let packed = mark.map_or(Packed::default(), pack);
        if packed == Packed::default() {
            return;
        }
        let (page, place) = (index as usize / PAGE, index as usize % PAGE);
        if self.pages.len() <= page {
            self.pages.resize_with(page + 1, || None);
        }
        let page = self.pages[page]
            .get_or_insert_with(|| Box::new(Page { used: 0, marks: [Packed::default(); PAGE] }));
        page.marks[place] = packed;
        page.used += 1;
    }

    /// The mark of a connection, if it has one.
    pub(in crate::shard) fn get(&self, index: u32) -> Option<TokenMark> {
        let page = self.pages.get(index as usize / PAGE)?.as_ref()?;
        unpack(page.marks[index as usize % PAGE])
    }

    /// Forgets a mark.
    pub(in crate::shard) fn remove(&mut self, index: u32) -> Option<TokenMark> {
        let slot = self.pages.get_mut(index as usize / PAGE)?;
        let page = slot.as_mut()?;
        let mark = unpack(std::mem::take(&mut page.marks[index as usize % PAGE]))?;
        page.used -= 1;
        if page.used == 0 {
            *slot = None;
        }
        Some(mark)
    }
}

fn pack(mark: TokenMark) -> Packed {
    [mark.issued_s, mark.id_hash as u32, (mark.id_hash >> 32) as u32]
}

fn unpack(packed: Packed) -> Option<TokenMark> {
    let [issued_s, low, high] = packed;
    let id_hash = u64::from(high) << 32 | u64::from(low);
    (packed != Packed::default()).then_some(TokenMark { id_hash, issued_s })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_found_by_its_connection_and_its_page_goes_with_the_last_one() {
        let mut marks = TokenMarks::default();
        let mark = |n: u64| TokenMark { id_hash: n << 40 | 7, issued_s: n as u32 };
        for index in [3, 1024, 5000] {
            marks.set(index, Some(mark(u64::from(index))));
        }
        assert_eq!(marks.get(1024), Some(mark(1024)));
        assert_eq!([0, 4, 2047, 90_000].map(|index| marks.get(index)), [None; 4]);
        marks.set(3, Some(mark(9)));
        assert_eq!(marks.get(3), Some(mark(9)), "another token of the same connection");
        assert_eq!(marks.remove(3), Some(mark(9)));
        assert_eq!(marks.remove(3), None);
        marks.set(1024, None);
        assert_eq!(marks.get(1024), None);
        let pages = marks.pages.iter().filter(|page| page.is_some()).count();
        assert_eq!(pages, 1, "that of 5000");
    }
}
