//! The claims. The checker looks at what was acknowledged and at what members heard and were told,
//! and knows nothing of how it came about.
//!
//! A member is somebody who always comes back with the place it knows last. For each member and room:
//! 1. What it hears follows the place it was at without a hole, or `lost` stands in the hole and does
//!    not count too little. What a join says it recovers comes first, and whole.
//! 2. Offsets go on, also into another epoch; where they go back, it was told of a loss.
//! 3. A message that was acknowledged, and sent after the member was in, is heard, unless it lies in a
//!    gap that the member was told of.
//! 4. Nothing is heard twice, but what a join brings again, and what was told to be lost.
//! 5. Nobody is told `trimmed` who missed no more than a history keeps, as long as no server has lost
//!    anything.
//!
//! For all together:
//! 6. A place has one message, whoever speaks of it, a publisher's `ok` included.
//! 7. Epochs follow each other in one order. With 2 and 6 everybody heard one order.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;

/// (epoch, offset). A later epoch is a greater number.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct MessagePosition {
    pub epoch: u64,
    pub offset: u64,
}

impl fmt::Debug for MessagePosition {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}:{}", self.epoch, self.offset)
    }
}

/// What of the payload tells messages apart.
pub type Id = u64;

/// What happened to one member in one room.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A join was answered.
    Joined {
        at: MessagePosition,
        since: Option<MessagePosition>,
        reports: LossReport,
    },
    Heard {
        at: MessagePosition,
        id: Id,
    },
    /// 0: nobody knows how many.
    Lost {
        count: u64,
    },
    /// The connection has ended, or was left.
    Away,
}

/// What a join was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LossReport {
    /// It did not ask.
    Fresh,
    Recovered {
        messages: u64,
    },
    /// What it has heard is no longer so; so many messages follow that are so instead.
    NotRecovered {
        reason: String,
        messages: u64,
    },
}

impl fmt::Display for Event {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Event::Joined { at, since: None, .. } => write!(out, "joined at {at:?}"),
            Event::Joined { at, since: Some(since), reports } => {
                write!(out, "joined at {at:?} since {since:?}: {reports:?}")
            }
            Event::Heard { at, id } => write!(out, "heard {at:?} {id:#x}"),
            Event::Lost { count } => write!(out, "lost {count}"),
            Event::Away => write!(out, "away"),
        }
    }
}

#[derive(Clone, Debug)]
pub struct Entry {
    pub at_us: u64,
    pub room: usize,
    pub event: Event,
}

/// A publish and its `ok`.
#[derive(Clone, Debug)]
pub struct AckedPublish {
    pub room: usize,
    pub id: Id,
    pub at: MessagePosition,
    /// The first time it was sent.
    pub sent_us: u64,
}

/// All that is known of a run.
#[derive(Default)]
pub struct Record {
    /// Messages that a room keeps: who is told `trimmed` has missed more. 0: a server has lost what it
    /// kept, and nobody knows how much that was.
    pub history: u64,
    /// What was acknowledged must be heard, whatever was told.
    pub is_strict: bool,
    pub acked: Vec<AckedPublish>,
    pub members: Vec<Vec<Entry>>,
}

/// How often members were told that something is missing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Notices {
    pub lost: u64,
    /// By reason.
    pub not_recovered: BTreeMap<String, u64>,
    /// Acknowledged messages that a member did not hear, and knows it.
    pub acked_unheard: u64,
    /// Messages that came again at the very place at which they had been heard, after their end of the
    /// history was said to be lost. It was not: somebody answered who was behind. No violation yet.
    pub not_lost_at_all: u64,
}

impl fmt::Display for Notices {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "lost {}", self.lost)?;
        for (reason, times) in &self.not_recovered {
            write!(out, ", {reason} {times}")?;
        }
        write!(out, " (covering {} acknowledged", self.acked_unheard)?;
        write!(out, "; {} heard again in their places)", self.not_lost_at_all)
    }
}

/// Something that may not be, and where to look.
#[derive(Clone, Debug)]
pub struct Violation {
    pub member: Option<usize>,
    pub room: usize,
    /// Of the entry in the member's log.
    pub entry: usize,
    pub why: String,
}

#[derive(Default)]
pub struct Verdict {
    pub violations: Vec<Violation>,
    pub notices: Notices,
}

/// Of one kind of violation in one room of one member the first says it all.
const VIOLATIONS_MAX: usize = 50;

pub fn check(record: &Record) -> Verdict {
    let mut verdict = Verdict::default();
    positions_have_one_message(record, &mut verdict.violations);
    epochs_have_one_order(record, &mut verdict.violations);
    let mut acked_of: HashMap<usize, Vec<&AckedPublish>> = HashMap::new();
    for acked in &record.acked {
        acked_of.entry(acked.room).or_default().push(acked);
    }
    let lossy = rooms_with_losses(record);
    for (who, log) in record.members.iter().enumerate() {
        let rooms: HashSet<usize> = log.iter().map(|entry| entry.room).collect();
        for room in rooms {
            let mut walk = MemberCheck::new(who, room);
            walk.is_strict = record.is_strict;
            walk.history = if lossy.contains(&room) { 0 } else { record.history };
            let entries = log.iter().enumerate().filter(|(_, entry)| entry.room == room);
            for (number, entry) in entries.clone() {
                walk.entry = number;
                walk.on_entry(entry);
            }
            let unheard = walk.at_the_end(acked_of.get(&room).map_or(&[], |acked| acked));
            if let Some((first, count)) = unheard {
                let (id, at, here) = (first.id, first.at, walk.here);
                let mut then = entries.filter(|(_, entry)| entry.at_us >= first.sent_us);
                walk.entry = then.next().map_or(walk.entry, |(number, _)| number);
                walk.blame(format!(
                    "{count} acknowledged and never heard; the first is {id:#x} at {at:?}, said at \
                     {} µs; now at {here:?}",
                    first.sent_us
                ));
            }
            verdict.violations.append(&mut walk.violations);
            walk.add_to(&mut verdict.notices);
        }
    }
    verdict.violations.truncate(VIOLATIONS_MAX);
    verdict
}

/// Rooms of which somebody was told that something is gone: there may be holes in their histories.
fn rooms_with_losses(record: &Record) -> HashSet<usize> {
    let tells = |event: &Event| match event {
        Event::Lost { .. } => true,
        Event::Joined { reports: LossReport::NotRecovered { reason, .. }, .. } => {
            reason != "trimmed"
        }
        _ => false,
    };
    let entries = record.members.iter().flatten();
    entries.filter(|entry| tells(&entry.event)).map(|entry| entry.room).collect()
}

/// What lies between two places may be missing: the member was told.
#[derive(Clone, Copy, Debug)]
struct Gap {
    after: MessagePosition,
    /// The last place in it. `None`: nothing was heard since.
    until: Option<MessagePosition>,
}

impl Gap {
    /// Places in epochs that are neither the first nor the last of a gap lie in it when their epoch
    /// was met between the two.
    fn covers(&self, at: MessagePosition) -> bool {
        let is_after = match at.epoch == self.after.epoch {
            true => at.offset > self.after.offset,
            // An older epoch, and yet not heard: its number is above all that was heard.
            false => at.epoch > self.after.epoch || at.offset > self.after.offset,
        };
        let is_before = self.until.is_none_or(|until| match at.epoch == until.epoch {
            true => at.offset <= until.offset,
            false => at.epoch < until.epoch,
        });
        is_after && is_before
    }
}

/// `lost` was heard, and no message since.
struct UnexplainedMessage {
    /// `None`: nobody knows how many.
    count: Option<u64>,
}

/// Goes through the log of one member in one room.
struct MemberCheck {
    who: usize,
    room: usize,
    entry: usize,
    history: u64,
    is_strict: bool,
    /// Whether there is a stay at the moment.
    is_in: bool,
    /// From then on everything is owed.
    in_since_us: Option<u64>,
    here: MessagePosition,
    /// What is recovered goes up to here. 0: nothing is under way.
    whole_until: u64,
    /// The highest that was heard before the last join: what comes again up to here is no duplicate.
    again_until: u64,
    doubt: Option<UnexplainedMessage>,
    gaps: Vec<Gap>,
    /// Where, and how many gaps had been told by then.
    heard: HashMap<Id, (MessagePosition, usize)>,
    notices: Notices,
    violations: Vec<Violation>,
}

impl MemberCheck {
    fn new(who: usize, room: usize) -> MemberCheck {
        MemberCheck {
            who,
            room,
            entry: 0,
            history: 0,
            is_strict: false,
            is_in: false,
            in_since_us: None,
            here: MessagePosition { epoch: 0, offset: 0 },
            whole_until: 0,
            again_until: 0,
            doubt: None,
            gaps: Vec::new(),
            heard: HashMap::new(),
            notices: Notices::default(),
            violations: Vec::new(),
        }
    }

    fn blame(&mut self, why: String) {
        let (member, room, entry) = (Some(self.who), self.room, self.entry);
        self.violations.push(Violation { member, room, entry, why });
    }

    fn on_entry(&mut self, entry: &Entry) {
        match &entry.event {
            Event::Joined { at, since, reports } => {
                self.on_joined(*at, *since, reports);
                self.in_since_us.get_or_insert(entry.at_us);
            }
            Event::Heard { at, id } => self.on_heard(*at, *id),
            Event::Lost { count } => self.on_lost(*count),
            Event::Away => {
                self.is_in = false;
                self.whole_until = 0;
            }
        }
    }

    fn on_joined(
        &mut self,
        at: MessagePosition,
        since: Option<MessagePosition>,
        reports: &LossReport,
    ) {
        self.is_in = true;
        self.whole_until = 0;
        match (since, reports) {
            (None, LossReport::Fresh) => {
                if self.in_since_us.is_some() {
                    self.blame("the member forgot where it was: a fault of this test".into());
                }
                self.here = at;
            }
            (Some(since), LossReport::Recovered { messages }) => {
                if since.offset.checked_add(*messages) != Some(at.offset) {
                    self.blame(format!("{messages} recovered from {since:?} to {at:?}"));
                }
                self.again_until = self.here.offset.max(self.again_until);
                self.here = since;
                self.whole_until = if *messages > 0 { at.offset } else { 0 };
                self.doubt = None;
            }
            (Some(since), LossReport::NotRecovered { reason, messages }) => {
                let missed = at.offset.saturating_sub(since.offset);
                if reason == "trimmed" && missed < self.history {
                    self.blame(format!("trimmed, and only {missed} from {since:?} to {at:?}"));
                }
                *self.notices.not_recovered.entry(reason.clone()).or_default() += 1;
                let offset = at.offset.saturating_sub(*messages);
                let from = MessagePosition { offset, ..at };
                self.gaps.push(Gap { after: self.here, until: Some(from) });
                self.here = from;
                self.whole_until = if *messages > 0 { at.offset } else { 0 };
                self.again_until = 0;
                self.doubt = None;
            }
            _ => self.blame(format!("asked {since:?}, told {reports:?}")),
        }
    }

    fn on_lost(&mut self, count: u64) {
        self.notices.lost += 1;
        if !self.is_in {
            self.blame("told of a loss without being in".into());
        }
        let before = match self.doubt.take() {
            None => Some(0),
            Some(doubt) => doubt.count,
        };
        let count = if count == 0 { None } else { before.map(|before| before + count) };
        self.doubt = Some(UnexplainedMessage { count });
    }

    fn on_heard(&mut self, at: MessagePosition, id: Id) {
        if !self.is_in {
            self.blame(format!("heard {at:?} without being in"));
        }
        let here = self.here;
        let goes_on = at.offset > here.offset;
        let missed = if goes_on { at.offset - here.offset - 1 } else { 0 };
        // A history may have places of which nothing is left, and says so where they are.
        let told = self.doubt.as_ref().and_then(|doubt| doubt.count).unwrap_or(0);
        if self.whole_until > 0 && (missed > told || !goes_on) {
            let until = self.whole_until;
            self.blame(format!("recovering up to {until}, {at:?} after {here:?}"));
        }
        if !goes_on && at.epoch == here.epoch {
            self.blame(format!("{at:?} after {here:?}"));
        } else if !goes_on && self.doubt.is_none() {
            self.blame(format!("back to {at:?} from {here:?} without a word"));
        }
        if !goes_on {
            self.again_until = 0;
        }
        match self.doubt.take() {
            None if missed > 0 => {
                self.blame(format!("a hole of {missed} between {here:?} and {at:?}, not a word"));
            }
            Some(UnexplainedMessage { count: Some(count) }) if count < missed => {
                self.blame(format!("told of {count}, missed {missed}: {here:?}, then {at:?}"));
            }
            None => {}
            Some(_) => {
                let until = MessagePosition { offset: at.offset.saturating_sub(1), ..at };
                self.gaps.push(Gap { after: here, until: Some(until) });
            }
        }
        self.take(at, id);
    }

    fn take(&mut self, at: MessagePosition, id: Id) {
        let gaps = self.gaps.len();
        let before = self.heard.insert(id, (at, gaps));
        let comes_again = at.offset <= self.again_until;
        match before {
            Some((place, before)) if before == gaps && !comes_again => {
                self.blame(format!("message {id:#x} is heard at {at:?}, and was at {place:?}"));
            }
            Some((place, _)) if place == at && !comes_again => self.notices.not_lost_at_all += 1,
            None if comes_again && at.offset < self.again_until && self.gaps.is_empty() => {
                self.blame(format!("{at:?} was somebody else's when it was heard before"));
            }
            _ => {}
        }
        self.here = at;
        if at.offset >= self.whole_until {
            self.whole_until = 0;
        }
    }

    /// All is quiet. What is owed is here, or the member knows that it misses something. Answers the
    /// first that is neither, and how many there are.
    fn at_the_end<'a>(&mut self, acked: &[&'a AckedPublish]) -> Option<(&'a AckedPublish, usize)> {
        if self.doubt.take().is_some() {
            self.gaps.push(Gap { after: self.here, until: None });
        }
        let in_since_us = self.in_since_us?;
        let mut unheard = Vec::new();
        for acked in acked.iter().filter(|acked| acked.sent_us > in_since_us) {
            if self.heard.contains_key(&acked.id) {
                continue;
            }
            match self.gaps.iter().any(|gap| gap.covers(acked.at)) {
                true if !self.is_strict => self.notices.acked_unheard += 1,
                _ => unheard.push(*acked),
            }
        }
        Some((*unheard.first()?, unheard.len()))
    }

    fn add_to(self, all: &mut Notices) {
        all.lost += self.notices.lost;
        all.acked_unheard += self.notices.acked_unheard;
        all.not_lost_at_all += self.notices.not_lost_at_all;
        for (reason, times) in self.notices.not_recovered {
            *all.not_recovered.entry(reason).or_default() += times;
        }
    }
}

fn positions_have_one_message(record: &Record, violations: &mut Vec<Violation>) {
    let mut at_place: HashMap<(usize, MessagePosition), Id> = HashMap::new();
    let mut look =
        |room: usize, at: MessagePosition, id: Id, member: Option<usize>, entry: usize| {
            let first = *at_place.entry((room, at)).or_insert(id);
            if first != id {
                let why = format!("{at:?} is {first:#x} for one and {id:#x} for another");
                violations.push(Violation { member, room, entry, why });
            }
        };
    for (who, log) in record.members.iter().enumerate() {
        for (number, entry) in log.iter().enumerate() {
            if let Event::Heard { at, id } = entry.event {
                look(entry.room, at, id, Some(who), number);
            }
        }
    }
    for (number, acked) in record.acked.iter().enumerate() {
        look(acked.room, acked.at, acked.id, None, number);
    }
}

/// Whoever hears two epochs of a room hears them in the same order as everybody else.
fn epochs_have_one_order(record: &Record, violations: &mut Vec<Violation>) {
    let mut before: HashMap<(usize, u64, u64), (usize, usize)> = HashMap::new();
    for (who, log) in record.members.iter().enumerate() {
        let mut met: HashMap<usize, Vec<u64>> = HashMap::new();
        for (number, entry) in log.iter().enumerate() {
            let Event::Heard { at, .. } = entry.event else { continue };
            let met = met.entry(entry.room).or_default();
            if met.last() == Some(&at.epoch) {
                continue;
            }
            let mut complaint = met.contains(&at.epoch).then(|| format!("{at:?}: comes back"));
            for &earlier in met.iter().filter(|&&earlier| earlier != at.epoch) {
                before.entry((entry.room, earlier, at.epoch)).or_insert((who, number));
                if let Some((other, _)) = before.get(&(entry.room, at.epoch, earlier)) {
                    complaint.get_or_insert(format!("{at:?}: member {other} met it the other way"));
                }
            }
            met.push(at.epoch);
            if let Some(why) = complaint {
                violations.push(Violation {
                    member: Some(who),
                    room: entry.room,
                    entry: number,
                    why: format!("the order of epochs: {why}"),
                });
            }
        }
    }
}
