//! What the machine has to do, in the most naive form: the place of each item, by its number.

use crate::backplane::redis::pipeline::machine::RetryOrder;
use crate::backplane::redis::pipeline::tests::rig::{
    Answer, BATCHES_MAX, Ending, ITEMS_PER_BATCH, Rig,
};
use std::collections::BTreeMap;
use std::time::Instant;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Waiting,
    /// In the batch of this number.
    InFlight(u32),
    /// Not sent again before this time.
    Refused(Instant),
    Ended(Ending),
}

/// A batch in flight.
struct ModelBatch {
    number: u32,
    has_loads: bool,
    answer: Option<Answer>,
}

pub(super) struct Model {
    order: RetryOrder,
    items: BTreeMap<u32, Place>,
    batches: Vec<ModelBatch>,
    sent: u32,
    /// The batch that loaded the scripts last on this connection.
    loaded_by: Option<u32>,
    is_script_missing: bool,
    refused_since: Option<Instant>,
    pub(super) is_paused: bool,
}

impl Model {
    pub(super) fn new(order: RetryOrder) -> Model {
        Model {
            order,
            items: BTreeMap::new(),
            batches: Vec::new(),
            sent: 0,
            loaded_by: None,
            is_script_missing: false,
            refused_since: None,
            is_paused: false,
        }
    }

    pub(super) fn push(&mut self) {
        self.items.insert(self.items.len() as u32, Place::Waiting);
    }

    pub(super) fn answer(&mut self, index: usize, answer: Answer) {
        self.batches[index].answer = Some(answer);
    }

    /// All that follows from replies and time.
    pub(super) fn turn(&mut self, now: Instant) {
        while let Some(answer) = self.batches.first().and_then(|batch| batch.answer) {
            let batch = self.batches.remove(0);
            self.apply(&batch, answer, now);
        }
        self.retry(now);
        self.send();
        // A batch without a pause is sent again at once.
        assert!(self.batches.len() <= BATCHES_MAX);
    }

    fn apply(&mut self, batch: &ModelBatch, answer: Answer, now: Instant) {
        if matches!(answer, Answer::Broken | Answer::OutOfStep) {
            return self.lose_link(now, Some(batch.number));
        }
        let of_batch = self.of_batch(batch.number);
        let (first, last) = (of_batch[0], of_batch[of_batch.len() - 1]);
        let ms = |ms| Place::Refused(now + std::time::Duration::from_millis(ms));
        let executed = Place::Ended(Ending::Executed);
        for item in of_batch {
            let place = match answer {
                Answer::MovedFirst if item == first => ms(20),
                Answer::NotYetLast if item == last => ms(100),
                Answer::OomFirst if item == first => Place::Ended(Ending::Refused),
                Answer::NoScript | Answer::NoScriptNorLoad if batch.has_loads => ms(100),
                Answer::NoScript | Answer::NoScriptNorLoad | Answer::Demoted => ms(0),
                _ => executed,
            };
            self.items.insert(item, place);
        }
        let is_missing = matches!(answer, Answer::NoScript | Answer::NoScriptNorLoad);
        self.is_script_missing |= is_missing && self.loaded_by.is_some_and(|by| by <= batch.number);
        self.refused_since = match self.refused().is_empty() {
            true => None,
            false => self.refused_since.or(Some(now)),
        };
        let is_load_refused = answer == Answer::NoScriptNorLoad && batch.has_loads;
        if answer == Answer::Demoted || is_load_refused {
            self.lose_link(now, None);
        }
    }

    /// The connection is lost with all batches in flight, and with `broken`.
    pub(super) fn lose_link(&mut self, now: Instant, broken: Option<u32>) {
        let numbers = self.batches.drain(..).map(|batch| batch.number).chain(broken);
        let numbers: Vec<u32> = numbers.collect();
        for (item, place) in &mut self.items {
            match place {
                Place::InFlight(number) => {
                    assert!(numbers.contains(number));
                    *place = match item % 2 {
                        0 => Place::Refused(now),
                        _ => Place::Ended(Ending::Lost),
                    };
                }
                Place::Refused(at) => *at = now,
                Place::Waiting | Place::Ended(_) => {}
            }
        }
        (self.loaded_by, self.is_script_missing, self.refused_since) = (None, false, None);
    }

    fn retry(&mut self, now: Instant) {
        let is_due = |place: &Place| matches!(place, Place::Refused(at) if *at <= now);
        let is_refused = |place: &Place| matches!(place, Place::Refused(_));
        let may_retry = match self.order {
            RetryOrder::Each => true,
            RetryOrder::InOrder => {
                let mut refused = self.items.values().filter(|place| is_refused(place));
                self.batches.is_empty() && refused.all(is_due)
            }
        };
        if may_retry {
            for place in self.items.values_mut().filter(|place| is_due(place)) {
                *place = Place::Waiting;
            }
        }
    }

    fn send(&mut self) {
        loop {
            let is_held_up = self.order == RetryOrder::InOrder && !self.refused().is_empty();
            let is_full = self.batches.len() == BATCHES_MAX;
            let next = self.at(|place| place == Place::Waiting);
            if self.is_paused || is_held_up || is_full || next.is_empty() {
                return;
            }
            let number = self.sent;
            self.sent += 1;
            for item in next.iter().take(ITEMS_PER_BATCH) {
                self.items.insert(*item, Place::InFlight(number));
            }
            let has_loads = self.loaded_by.is_none() || self.is_script_missing;
            if has_loads {
                (self.loaded_by, self.is_script_missing) = (Some(number), false);
            }
            self.batches.push(ModelBatch { number, has_loads, answer: None });
        }
    }

    fn at(&self, is_wanted: impl Fn(Place) -> bool) -> Vec<u32> {
        let wanted = self.items.iter().filter(|(_, place)| is_wanted(**place));
        wanted.map(|(item, _)| *item).collect()
    }

    fn of_batch(&self, number: u32) -> Vec<u32> {
        self.at(|place| place == Place::InFlight(number))
    }

    fn refused(&self) -> Vec<u32> {
        self.at(|place| matches!(place, Place::Refused(_)))
    }

    /// The machine is where the model is.
    pub(super) fn check(&self, rig: &Rig, story: &impl std::fmt::Debug) {
        let in_flight: Vec<(Vec<u32>, bool)> =
            self.batches.iter().map(|it| (self.of_batch(it.number), it.has_loads)).collect();
        let at_server: Vec<(Vec<u32>, bool)> =
            rig.batches.iter().map(|batch| (batch.items.clone(), batch.has_loads)).collect();
        assert_eq!(at_server, in_flight, "in flight: {story:?}");
        let waiting: Vec<u32> = rig.waiting.iter().copied().collect();
        assert_eq!(waiting, self.at(|place| place == Place::Waiting), "waiting: {story:?}");
        assert_eq!(rig.pipeline.refused(), self.refused().len(), "refused: {story:?}");
        let count: usize = in_flight.iter().map(|(items, _)| items.len()).sum();
        assert_eq!(rig.pipeline.in_flight(), count, "{story:?}");
        assert_eq!(rig.pipeline.has_none_in_flight(), count == 0, "{story:?}");
        assert_eq!(rig.pipeline.refused_since(), self.refused_since, "{story:?}");
        let mut ended = rig.ended.clone();
        ended.sort_unstable();
        let expected = self.items.iter().filter_map(|(item, place)| match place {
            Place::Ended(ending) => Some((*item, *ending)),
            _ => None,
        });
        assert_eq!(ended, expected.collect::<Vec<_>>(), "ended: {story:?}");
    }
}
