//! The lineage of a history: the epochs before its own, and where each of them ended.
//!
//! An epoch ends when a server of another generation stores the next message. What the old server
//! had stored beyond that offset is not part of the history any more: the history has *forked*
//! there. So a position of an earlier epoch is a position of this history up to the lowest fork
//! since.
//!
//! Invariant: epochs fall from entry to entry and are lower than the current one; no offset is
//! beyond the end of the history.

use crate::backplane::redis::unreadable::number;
use crate::ids::Position;
use crate::protocol::Unrecovered;
use std::fmt;

/// Epochs that are remembered: as many as `lua/publish.lua` stores.
const EPOCHS_MAX: usize = 16;

/// Earlier epochs, newest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Lineage {
    ends: Vec<EpochEnd>,
}

/// An earlier epoch, and its last offset that the next one took over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct EpochEnd {
    epoch: u64,
    offset: u64,
}

impl Lineage {
    /// Parses `<epoch>:<offset> …` as it is stored with a history that ends at `last`. Nothing
    /// after a malformed entry is believed.
    pub(super) fn parse(text: &[u8], last: Position) -> Lineage {
        let mut later = last.epoch;
        let entries = text.split(u8::is_ascii_whitespace).filter(|entry| !entry.is_empty());
        let end_of = |entry: &[u8]| {
            let colon = entry.iter().position(|byte| *byte == b':')?;
            let (epoch, offset) = (number(&entry[..colon])?, number(&entry[colon + 1..])?);
            let is_earlier = (1..std::mem::replace(&mut later, epoch)).contains(&epoch);
            is_earlier.then_some(EpochEnd { epoch, offset: offset.min(last.offset) })
        };
        Lineage { ends: entries.take(EPOCHS_MAX).map_while(end_of).collect() }
    }

    /// Whether no earlier epoch is known.
    pub(super) fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The last offset of an earlier epoch that is part of this history; `None`: the epoch is not
    /// of this lineage.
    pub(super) fn end_of(&self, epoch: u64) -> Option<u64> {
        let place = self.ends.iter().position(|end| end.epoch == epoch)?;
        self.ends[..=place].iter().map(|end| end.offset).min()
    }

    /// The offset up to which a client at a position has received this history, whose own epoch the
    /// position may have.
    pub(super) fn received_up_to(&self, since: Position) -> u64 {
        self.end_of(since.epoch).map_or(since.offset, |end| end.min(since.offset))
    }

    /// A position as one of the current epoch.
    pub(super) fn translate(&self, since: Position, epoch: u64) -> Result<Position, Unrecovered> {
        if since.epoch == epoch {
            return Ok(since);
        }
        match self.end_of(since.epoch) {
            None => Err(Unrecovered::Epoch),
            Some(end) if since.offset > end => Err(Unrecovered::TailLost),
            Some(_) => Ok(Position { epoch, offset: since.offset }),
        }
    }
}

/// The form that [`Lineage::parse`] reads.
impl fmt::Display for Lineage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.ends.iter().try_for_each(|end| write!(f, "{}:{} ", end.epoch, end.offset))
    }
}

#[cfg(test)]
impl<const N: usize> From<[(u64, u64); N]> for Lineage {
    fn from(ends: [(u64, u64); N]) -> Lineage {
        ends.to_vec().into()
    }
}

#[cfg(test)]
impl From<Vec<(u64, u64)>> for Lineage {
    fn from(ends: Vec<(u64, u64)>) -> Lineage {
        let ends = ends.into_iter().map(|(epoch, offset)| EpochEnd { epoch, offset });
        Lineage { ends: ends.collect() }
    }
}

#[cfg(test)]
impl Lineage {
    /// Its entries.
    pub(super) fn entries(&self) -> impl Iterator<Item = (u64, u64)> {
        self.ends.iter().map(|end| (end.epoch, end.offset))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LAST: Position = Position { epoch: 7, offset: 12 };

    #[test]
    fn a_lineage_is_believed_up_to_its_first_impossible_entry() {
        let of = |text: &str| Lineage::parse(text.as_bytes(), LAST);
        assert_eq!(of("5:9 3:4 "), [(5, 9), (3, 4)].into());
        assert_eq!(of("5:99"), [(5, 12)].into(), "no further than the history itself");
        let many: Vec<(u64, u64)> = (2..=18).rev().map(|epoch| (epoch, 1)).collect();
        let text: String = many.iter().map(|(epoch, end)| format!("{epoch}:{end} ")).collect();
        let last = Position { epoch: 30, ..LAST };
        let newest = Lineage::from(many[..EPOCHS_MAX].to_vec());
        assert_eq!(Lineage::parse(text.as_bytes(), last), newest);
        for wrong in
            ["x", "5:", ":9", "5", "5:9:1", "7:1", "8:1", "0:1", "5:-1", "5:9007199254740992"]
        {
            assert_eq!(of(&format!("6:2 {wrong} 1:1")), [(6, 2)].into(), "{wrong}");
        }
        assert_eq!(of("5:1 5:1"), [(5, 1)].into(), "an epoch stands there once");
        assert_eq!(of(&"x ".repeat(100_000)), Lineage::default());
    }

    /// A history as the server and its successors stored it: for each epoch the messages that were
    /// stored when it ended, and the text of its lineage.
    struct Model {
        epochs: Vec<(u64, Vec<u64>)>,
        text: String,
        messages: u64,
    }

    #[derive(Clone, Debug)]
    enum Step {
        /// So many messages are stored.
        Append(u64),
        /// A server takes over that lacks the last so many messages, under an epoch so much higher.
        TakeOver { lacks: usize, epochs: u64 },
    }

    impl Model {
        fn new() -> Model {
            Model { epochs: vec![(1, Vec::new())], text: String::new(), messages: 0 }
        }

        fn current(&self) -> &(u64, Vec<u64>) {
            self.epochs.last().expect("there is always one")
        }

        fn position(&self) -> Position {
            let (epoch, messages) = self.current();
            Position { epoch: *epoch, offset: messages.len() as u64 }
        }

        fn act(&mut self, step: &Step) {
            match step {
                Step::Append(count) => {
                    let new = self.messages..self.messages + count;
                    self.messages += count;
                    self.epochs.last_mut().expect("there is always one").1.extend(new);
                }
                Step::TakeOver { lacks, epochs } => {
                    let (epoch, mut messages) = self.current().clone();
                    messages.truncate(messages.len().saturating_sub(*lacks));
                    // As `lua/publish.lua` writes it.
                    let text = format!("{epoch}:{} {}", messages.len(), self.text);
                    let entries = text.split_whitespace().take(EPOCHS_MAX);
                    self.text = entries.map(|entry| format!("{entry} ")).collect();
                    self.epochs.push((epoch + epochs, messages));
                }
            }
        }

        /// What a client at this position should receive, found by comparing messages one by one.
        fn translate(&self, since: Position) -> Result<Position, Unrecovered> {
            let (epoch, messages) = self.current();
            let known = self.epochs.len().saturating_sub(EPOCHS_MAX + 1);
            let of = self.epochs[known..].iter().find(|(of, _)| *of == since.epoch);
            let Some((of, received)) = of else { return Err(Unrecovered::Epoch) };
            let same = received.iter().zip(messages).take_while(|(a, b)| a == b).count() as u64;
            if of != epoch && since.offset > same {
                return Err(Unrecovered::TailLost);
            }
            Ok(Position { epoch: *epoch, offset: since.offset })
        }
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..4u64).prop_map(Step::Append),
            (0..4usize, 1..3u64).prop_map(|(lacks, epochs)| Step::TakeOver { lacks, epochs }),
        ]
    }

    proptest! {
        #[test]
        fn a_position_is_translated_as_if_all_messages_were_compared(
            steps in prop::collection::vec(step(), 0..30),
        ) {
            let mut model = Model::new();
            steps.iter().for_each(|step| model.act(step));
            let last = model.position();
            let lineage = Lineage::parse(model.text.as_bytes(), last);
            for epoch in 0..=last.epoch + 1 {
                for offset in 0..=model.messages + 1 {
                    let since = Position { epoch, offset };
                    let expected = model.translate(since);
                    prop_assert_eq!(lineage.translate(since, last.epoch), expected, "{:?}", since);
                    let is_earlier = epoch != last.epoch && expected != Err(Unrecovered::Epoch);
                    let received = lineage.received_up_to(since);
                    if is_earlier {
                        let here = Position { epoch, offset: received };
                        prop_assert!(received <= offset && model.translate(here).is_ok());
                        let next = Position { epoch, offset: received + 1 };
                        prop_assert!(received == offset || model.translate(next).is_err());
                    } else {
                        prop_assert_eq!(received, offset);
                    }
                }
            }
        }

        #[test]
        fn a_lineage_is_read_back_from_its_text(
            epochs in prop::collection::btree_set(1..1000u64, 0..=EPOCHS_MAX),
            offset in 0..1000u64,
        ) {
            let ends: Vec<_> = epochs.into_iter().rev().map(|epoch| (epoch, offset)).collect();
            let (lineage, last) = (Lineage::from(ends), Position { epoch: 1000, offset: 1000 });
            prop_assert_eq!(Lineage::parse(lineage.to_string().as_bytes(), last), lineage);
        }
    }
}
