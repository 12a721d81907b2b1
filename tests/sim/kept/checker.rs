//! The claims. The checker looks at tapes and at what was promised, never at a shard or a history.
//!
//! In each room with a history and for each connection:
//! 1. A join is answered with a position, and what is heard then follows it without a hole; with
//!    `recovered: true` it follows `since`, and what was missed comes first and whole.
//! 2. A hole is covered by a `lost` between its two sides that counts at least as much.
//! 3. Offsets rise; an epoch that was left does not come back, and the next one begins at 1.
//! 4. At the end of the day everybody who is in has heard everything up to the last message.
//! 5. What was acknowledged while somebody was in from before it was sent, they heard.
//! 6. `recovered: false` is said for a reason that holds.
//!
//! In all rooms: who is not in hears nothing; everything asked is answered once; what is heard is
//! what was said, by whom it was said, once (`rooms.rs`).

use super::rooms::Rooms;
use super::tape::{At, Event, Heard, Message, Name, Recovery, Tape};
use crate::history::Step;
use std::collections::{BTreeMap, HashMap, HashSet};

pub type Verdict = Result<(), String>;

macro_rules! must {
    ($condition:expr, $($why:tt)+) => {
        if !$condition { return Err(format!($($why)+)); }
    };
}
pub(super) use must;

/// What is promised of a room with a history.
#[derive(Clone, Copy, Debug)]
pub struct Promise {
    pub history_size: u64,
    pub recovery: bool,
    /// Nothing is given up for want of memory or time.
    pub is_ample: bool,
    pub recovery_bytes_max: usize,
}

/// Everything that is known of a day.
#[derive(Clone, Debug, Default)]
pub struct Day {
    pub tapes: Vec<Tape>,
    /// `None`: a room without history.
    pub rooms: BTreeMap<String, Option<Promise>>,
    /// Where each history was in the end.
    pub finals: BTreeMap<String, At>,
}

/// One stay in a room: from the answer to a join until it is left or joined anew.
#[derive(Debug)]
struct Stay {
    /// When it was told.
    told: Step,
    /// The last place it has heard of by itself. `None` in a room without history.
    at: Option<At>,
    /// What was recovered goes up to here, and has no hole at all. 0 once it has come.
    whole_until: u64,
    /// Where they were told the history was: nothing up to there may follow.
    behind: Option<At>,
    /// Lost since the last message.
    lost: u64,
    /// Lost since it came.
    lost_ever: u64,
    heard: HashSet<Name>,
}

impl Day {
    pub fn check(&self) -> Verdict {
        let rooms = Rooms::learn(&self.tapes)?;
        for (who, tape) in self.tapes.iter().enumerate() {
            let named = |why: String| format!("connection {who}: {why}\n{}", print(tape));
            answers_match(tape).map_err(named)?;
            pages_are_true(tape).map_err(named)?;
            for (room, promise) in &self.rooms {
                let named = |why: String| {
                    format!("connection {who} in {room}: {why}\n{}", print_room(tape, room))
                };
                let mut walk = Walk {
                    rooms: &rooms,
                    promise: *promise,
                    final_at: self.finals.get(room),
                    who,
                    room,
                    stay: None,
                    joins: Vec::new(),
                    leaves: HashSet::new(),
                    epochs: Vec::new(),
                    spoken: HashMap::new(),
                };
                walk.all(tape).map_err(named)?;
            }
        }
        Ok(())
    }
}

/// Goes through a tape with one room in mind.
struct Walk<'a> {
    rooms: &'a Rooms,
    promise: Option<Promise>,
    final_at: Option<&'a At>,
    who: usize,
    room: &'a str,
    stay: Option<Stay>,
    /// Not answered yet, with what they asked for.
    joins: Vec<(Option<u64>, Option<At>)>,
    leaves: HashSet<u64>,
    /// In the order in which they were met.
    epochs: Vec<String>,
    /// The last number heard of each speaker, where there is no history.
    spoken: HashMap<usize, u64>,
}

impl Walk<'_> {
    fn all(&mut self, tape: &Tape) -> Verdict {
        for (step, event) in &tape.events {
            self.event(*step, event).map_err(|why| format!("at {step}: {why}"))?;
        }
        match self.stay.take() {
            Some(stay) if tape.is_alive && self.joins.is_empty() => self.at_the_end(stay),
            _ => Ok(()),
        }
    }

    fn event(&mut self, step: Step, event: &Event) -> Verdict {
        match event {
            Event::Join { id, room, since } if room == self.room => {
                self.joins.push((*id, since.clone()));
            }
            Event::Leave { id, room } if room == self.room => drop(self.leaves.insert(*id)),
            Event::Heard(Heard::Ok { id, room: Some(room), at, recovery }) if room == self.room => {
                return self.on_ok(step, *id, at.as_ref(), recovery.as_ref());
            }
            Event::Heard(Heard::Error { id, code }) => {
                // Without an id it is of a publish, or of the room in the URL.
                let is_ours = id.is_some() || code != "not_joined";
                self.joins.retain(|(asked, _)| asked != id || !is_ours);
            }
            Event::Heard(Heard::Message { room, message }) if room == self.room => {
                return self.on_message(message);
            }
            Event::Heard(Heard::Lost { room, count }) if room == self.room => {
                let Some(stay) = &mut self.stay else {
                    return Err("told of a loss without being in".into());
                };
                stay.lost += count;
                stay.lost_ever += count;
            }
            _ => {}
        }
        Ok(())
    }

    fn on_ok(
        &mut self,
        step: Step,
        id: Option<u64>,
        at: Option<&At>,
        recovery: Option<&Recovery>,
    ) -> Verdict {
        if id.is_some_and(|id| self.leaves.remove(&id)) {
            if let Some(stay) = self.stay.take() {
                must!(stay.whole_until == 0, "left before all that was recovered had come");
            }
            return Ok(());
        }
        let Some(place) = self.joins.iter().position(|(asked, _)| *asked == id) else {
            return Ok(()); // Of a request that is about this room, but no join.
        };
        let (_, since) = self.joins.remove(place);
        must!(at.is_some() == self.promise.is_some(), "a position where none should be, or none");
        must!(since.is_some() == recovery.is_some(), "asked {since:?}, answered {recovery:?}");
        if let Some(at) = at {
            self.meet(&at.epoch)?;
        }
        match &self.stay {
            Some(_) if since.is_none() => self.on_told(at),
            _ => self.begin(step, at, since, recovery),
        }
    }

    /// A member has asked where the history is: what they have heard is before that, and what they
    /// hear from now on is behind it.
    fn on_told(&mut self, told: Option<&At>) -> Verdict {
        let (Some(stay), Some(told)) = (&mut self.stay, told) else { return Ok(()) };
        if let Some(here) = &stay.at {
            let is_behind = here.epoch != told.epoch || here.offset <= told.offset;
            must!(is_behind, "told {told:?} after {here:?} was heard");
        }
        stay.behind = Some(told.clone());
        Ok(())
    }

    /// A stay begins where the answer says.
    fn begin(
        &mut self,
        told: Step,
        at: Option<&At>,
        since: Option<At>,
        recovery: Option<&Recovery>,
    ) -> Verdict {
        let mut stay = Stay {
            told,
            at: at.cloned(),
            whole_until: 0,
            behind: None,
            lost: 0,
            lost_ever: 0,
            heard: HashSet::new(),
        };
        if let (Some(at), Some(since)) = (at, since) {
            match recovery {
                Some(Recovery::Recovered { messages }) => {
                    must!(since.epoch == at.epoch, "{since:?} recovered in {at:?}");
                    let missed = at.offset.checked_sub(since.offset);
                    must!(missed == Some(*messages), "{messages} from {since:?} to {at:?}");
                    stay.whole_until = if *messages > 0 { at.offset } else { 0 };
                    stay.at = Some(since);
                }
                Some(Recovery::NotRecovered { why }) => self.is_honest(why, &since, at)?,
                None => {}
            }
        }
        self.stay = Some(stay);
        Ok(())
    }

    /// Whether what was missed could really not be brought back.
    fn is_honest(&self, why: &str, since: &At, at: &At) -> Verdict {
        let promise = self.promise.expect("there is a position");
        let is_same = since.epoch == at.epoch;
        let holds = match why {
            "not_enabled" => !promise.recovery,
            "epoch" => !is_same,
            "tail_lost" => is_same && since.offset > at.offset,
            "trimmed" => {
                let missed = at.offset.saturating_sub(since.offset);
                is_same && missed > 0 && (!promise.is_ample || missed > promise.history_size)
            }
            "too_much" if is_same && since.offset < at.offset => {
                let places = since.offset + 1..=at.offset;
                let bytes = self.rooms.bytes_max(self.room, &at.epoch, places);
                bytes.is_none_or(|bytes| bytes > promise.recovery_bytes_max)
            }
            _ => false,
        };
        must!(holds, "not recovered, {why}: {since:?} at {at:?} of {promise:?}");
        Ok(())
    }

    fn on_message(&mut self, message: &Message) -> Verdict {
        must!(message.at.is_some() == self.promise.is_some(), "with or without a position?");
        must!(self.stay.is_some(), "heard {message:?} without being in");
        if let Some(at) = &message.at {
            self.meet(&at.epoch)?;
        }
        let stay = self.stay.as_mut().expect("looked at above");
        let (who, room, rooms) = (self.who, self.room, self.rooms);
        if let (Some(here), Some(at)) = (stay.at.clone(), message.at.clone()) {
            if stay.whole_until > 0 {
                let next = At { offset: here.offset + 1, ..here };
                must!(at == next, "recovering, {next:?} is next and not {at:?}");
                if at.offset == stay.whole_until {
                    stay.whole_until = 0;
                }
            } else {
                let missed = missed(rooms, who, room, &here, &at)?;
                let lost = stay.lost;
                must!(missed <= lost, "{missed} between {here:?} and {at:?}, told of {lost}");
                let is_own = rooms.is_unechoed(who, message.name);
                must!(!is_own, "heard {message:?} in spite of echo");
            }
            let told = stay.behind.as_ref().filter(|told| told.epoch == at.epoch);
            let is_behind = told.is_none_or(|told| at.offset > told.offset);
            must!(is_behind, "heard {at:?} after it was told to be at {told:?}");
            stay.lost = 0;
            stay.at = Some(at);
        } else {
            let (by, number) = message.name;
            let before = self.spoken.insert(by, number);
            must!(before < Some(number), "{message:?} out of order, or twice");
            must!(!rooms.is_unechoed(who, message.name), "heard {message:?} in spite of echo");
        }
        stay.heard.insert(message.name);
        Ok(())
    }

    /// An epoch that was left does not come back.
    fn meet(&mut self, epoch: &str) -> Verdict {
        if self.epochs.last().is_some_and(|last| last == epoch) {
            return Ok(());
        }
        must!(!self.epochs.iter().any(|known| known == epoch), "{epoch} comes back");
        self.epochs.push(epoch.to_owned());
        Ok(())
    }

    /// All is quiet: what is owed is here.
    fn at_the_end(&self, stay: Stay) -> Verdict {
        if let Some(here) = &stay.at {
            let end = self.final_at.ok_or("nobody knows where this room ended")?;
            must!(stay.whole_until == 0, "{here:?}, and recovered less than was said");
            let next = At { offset: end.offset + 1, ..end.clone() };
            let missed = missed(self.rooms, self.who, self.room, here, &next)?;
            let lost = stay.lost;
            must!(missed <= lost, "{missed} between {here:?} and the end {end:?}, told of {lost}");
        }
        let mut unheard = Vec::new();
        for (name, said) in &self.rooms.said {
            let is_owed = said.acked && said.room == self.room && said.sent > stay.told;
            if is_owed && !stay.heard.contains(name) && !said.unechoed.contains(&self.who) {
                unheard.push((name, self.rooms.place_of(*name)));
            }
        }
        let told = stay.lost_ever;
        must!(
            unheard.len() as u64 <= told,
            "told of {told}, but acknowledged and never heard: {unheard:?}"
        );
        Ok(())
    }
}

/// How many messages a connection did not hear that came from one place to the next it heard.
fn missed(rooms: &Rooms, who: usize, room: &str, here: &At, next: &At) -> Result<u64, String> {
    if here.epoch == next.epoch {
        must!(here.offset < next.offset, "{next:?} after {here:?}");
        return Ok(rooms.owed(who, room, &here.epoch, here.offset + 1..=next.offset - 1));
    }
    let top = rooms.top(room, &here.epoch);
    let tail = rooms.owed(who, room, &here.epoch, here.offset + 1..=top);
    Ok(tail + rooms.owed(who, room, &next.epoch, 1..=next.offset - 1))
}

/// Every request with an id is answered once; at most once when nothing is owed.
fn answers_match(tape: &Tape) -> Verdict {
    let mut answers: BTreeMap<u64, usize> = BTreeMap::new();
    for (step, event) in &tape.events {
        let asked = match event {
            Event::Join { id, .. } | Event::Publish { id, .. } => *id,
            Event::Leave { id, .. } | Event::History { id, .. } => Some(*id),
            Event::Goodbye | Event::Heard(_) => None,
        };
        answers.extend(asked.map(|id| (id, 0)));
        let answered = match event {
            Event::Heard(Heard::Ok { id, .. } | Heard::Error { id, .. }) => *id,
            Event::Heard(Heard::History { id, .. }) => Some(*id),
            _ => None,
        };
        let Some(id) = answered else { continue };
        let times = answers.get_mut(&id).ok_or(format!("at {step}: nobody asked {id}"))?;
        *times += 1;
        must!(*times == 1, "at {step}: {id} is answered twice");
    }
    let unanswered: Vec<_> = answers.iter().filter(|(_, times)| **times == 0).collect();
    must!(!tape.is_alive || unanswered.is_empty(), "never answered: {unanswered:?}");
    Ok(())
}

/// A page of a history is a piece of it, in the order asked for, from where it was asked for.
fn pages_are_true(tape: &Tape) -> Verdict {
    let mut asked = HashMap::new();
    for (_, event) in &tape.events {
        match event {
            Event::History { id, since, limit, reverse, .. } => {
                asked.insert(*id, (since.clone(), *limit, *reverse));
            }
            Event::Heard(Heard::History { id, at, messages, .. }) => {
                let (since, limit, reverse) = &asked[id];
                page_is_true(since.as_ref(), *limit, *reverse, at, messages)
                    .map_err(|why| format!("page {id}: {why}"))?;
            }
            _ => {}
        }
    }
    Ok(())
}

fn page_is_true(
    since: Option<&At>,
    limit: u64,
    reverse: bool,
    at: &At,
    messages: &[Message],
) -> Verdict {
    must!(messages.len() as u64 <= limit, "{} of {limit}", messages.len());
    let mut offsets = Vec::new();
    for message in messages {
        let stands = message.at.as_ref().ok_or("a message without a place")?;
        must!(stands.epoch == at.epoch && stands.offset <= at.offset, "{stands:?} in {at:?}");
        offsets.push(stands.offset);
    }
    if reverse {
        offsets.reverse();
    }
    must!(offsets.windows(2).all(|two| two[1] == two[0] + 1), "a hole in {offsets:?}");
    let (first, last) = (offsets.first(), offsets.last());
    match since {
        None if reverse => must!(last.is_none_or(|last| *last == at.offset), "not the newest"),
        None => {}
        Some(since) if reverse => {
            must!(last.is_none_or(|last| *last < since.offset), "not before {since:?}");
        }
        Some(since) => {
            must!(first.is_none_or(|first| *first > since.offset), "not behind {since:?}")
        }
    }
    Ok(())
}

fn print(tape: &Tape) -> String {
    tape.events.iter().map(|(step, event)| format!("{step:>8} {event:?}\n")).collect()
}

/// What of a tape is about one room; answers that name none may be.
fn print_room(tape: &Tape, wanted: &str) -> String {
    let is_about = |event: &Event| match event {
        Event::Join { room, .. }
        | Event::Leave { room, .. }
        | Event::Publish { room, .. }
        | Event::History { room, .. }
        | Event::Heard(Heard::Message { room, .. } | Heard::Lost { room, .. })
        | Event::Heard(Heard::Ok { room: Some(room), .. } | Heard::History { room, .. }) => {
            room == wanted
        }
        Event::Goodbye | Event::Heard(_) => true,
    };
    let events = tape.events.iter().filter(|(_, event)| is_about(event)).cloned();
    print(&Tape { events: events.collect(), ..Tape::default() })
}
