//! What the checker knows of a room, put together from all tapes: what stands where, and what was
//! asked and promised.

use super::checker::{Verdict, must};
use super::tape::{At, Event, Heard, Message, Name, Tape};
use crate::history::Step;
use std::collections::{BTreeMap, HashMap, HashSet};

/// Something that somebody said, under one name however often it was tried.
#[derive(Debug)]
pub struct Said {
    pub room: String,
    body: String,
    /// When it was first sent.
    pub sent: Step,
    has_key: bool,
    tries: usize,
    /// Connections that must not, or need not, hear it.
    pub unechoed: HashSet<usize>,
    users: HashSet<String>,
    /// Told that it was not sent, and never tried again.
    refused: bool,
    /// Somebody was told that it was.
    pub acked: bool,
}

/// One room's history.
#[derive(Debug, Default)]
struct Shelf {
    what: HashMap<At, Name>,
    tops: HashMap<String, u64>,
}

#[derive(Debug, Default)]
pub struct Rooms {
    shelves: BTreeMap<String, Shelf>,
    pub said: BTreeMap<Name, Said>,
    places: HashMap<Name, At>,
}

impl Rooms {
    /// Puts all tapes together; what does not fit is refused.
    pub fn learn(tapes: &[Tape]) -> Result<Rooms, String> {
        let mut rooms = Rooms::default();
        for (who, tape) in tapes.iter().enumerate() {
            rooms.learn_said(who, tape);
        }
        for tape in tapes {
            rooms.learn_outcomes(tape)?;
        }
        for tape in tapes {
            for (_, event) in &tape.events {
                rooms.learn_heard(event)?;
            }
        }
        rooms.speakers_in_order()?;
        Ok(rooms)
    }

    fn learn_said(&mut self, who: usize, tape: &Tape) {
        for (step, event) in &tape.events {
            let Event::Publish { room, name, body, echo, has_key, .. } = event else { continue };
            let said = self.said.entry(*name).or_insert_with(|| Said {
                room: room.clone(),
                body: body.clone(),
                sent: *step,
                has_key: *has_key,
                tries: 0,
                unechoed: HashSet::new(),
                users: HashSet::new(),
                refused: false,
                acked: false,
            });
            said.sent = said.sent.min(*step);
            said.tries += 1;
            said.users.insert(tape.user.clone());
            if !echo {
                said.unechoed.insert(who);
            }
        }
    }

    /// What publishers were told.
    fn learn_outcomes(&mut self, tape: &Tape) -> Verdict {
        let mut asked: HashMap<u64, Name> = HashMap::new();
        for (_, event) in &tape.events {
            match event {
                Event::Publish { id: Some(id), name, .. } => drop(asked.insert(*id, *name)),
                Event::Heard(Heard::Ok { id: Some(id), at, .. }) => {
                    let Some(name) = asked.get(id) else { continue };
                    self.said.get_mut(name).expect("it was sent").acked = true;
                    if let Some(at) = at {
                        let room = self.said[name].room.clone();
                        self.place(&room, at, *name)?;
                    }
                }
                Event::Heard(Heard::Error { id: Some(id), code }) if code != "outcome_unknown" => {
                    let Some(name) = asked.get(id) else { continue };
                    let said = self.said.get_mut(name).expect("it was sent");
                    said.refused = said.tries == 1;
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn learn_heard(&mut self, event: &Event) -> Verdict {
        let Event::Heard(heard) = event else { return Ok(()) };
        match heard {
            Heard::Message { room, message } => self.learn_message(room, message),
            Heard::History { room, at, messages, .. } => {
                self.reach(room, at);
                messages.iter().try_for_each(|message| self.learn_message(room, message))
            }
            Heard::Ok { room: Some(room), at: Some(at), .. } => {
                self.reach(room, at);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// A message is what its speaker said, wherever and by whomever it is heard.
    fn learn_message(&mut self, room: &str, message: &Message) -> Verdict {
        let Message { at, name, body, from } = message;
        let Some(said) = self.said.get(name) else { return Err(format!("made up: {message:?}")) };
        must!(said.room == room, "said in {}, heard in {room}: {message:?}", said.room);
        must!(said.body == *body, "{message:?} is not what was said: {}", said.body);
        must!(said.users.contains(from), "{from} is not who said {message:?}");
        must!(!said.refused, "its speaker was told that it was not sent: {message:?}");
        at.as_ref().map_or(Ok(()), |at| self.place(room, at, *name))
    }

    /// A message stands in one place, and a place holds one message.
    fn place(&mut self, room: &str, at: &At, name: Name) -> Verdict {
        self.reach(room, at);
        let shelf = self.shelves.get_mut(room).expect("it was just reached");
        let known = *shelf.what.entry(at.clone()).or_insert(name);
        must!(known == name, "{room} {at:?} is {known:?} for one and {name:?} for another");
        let place = self.places.entry(name).or_insert_with(|| at.clone());
        must!(*place == *at, "{name:?} stands at {place:?} and at {at:?}");
        Ok(())
    }

    fn reach(&mut self, room: &str, at: &At) {
        let shelf = self.shelves.entry(room.to_owned()).or_default();
        let top = shelf.tops.entry(at.epoch.clone()).or_default();
        *top = (*top).max(at.offset);
    }

    /// What one connection says in a room stands there in the order in which it said it.
    fn speakers_in_order(&self) -> Verdict {
        let mut last: HashMap<(&str, usize, &str), (u64, u64)> = HashMap::new();
        for (name, at) in &self.places {
            must!(at.offset > 0, "{name:?} stands at {at:?}, before the first place");
        }
        for (name, said) in &self.said {
            let Some(at) = self.places.get(name).filter(|_| !said.has_key) else { continue };
            let speaker = (&said.room[..], name.0, &at.epoch[..]);
            let before = last.insert(speaker, (name.1, at.offset));
            let in_order = before.is_none_or(|(_, offset)| offset < at.offset);
            must!(in_order, "{name:?} at {at:?} stands before what was said earlier");
        }
        Ok(())
    }

    /// The last place of a history that anybody knows of.
    pub fn top(&self, room: &str, epoch: &str) -> u64 {
        self.shelves.get(room).and_then(|shelf| shelf.tops.get(epoch)).copied().unwrap_or(0)
    }

    /// Places in `from..to` whose messages were owed to `who`.
    pub fn owed(
        &self,
        who: usize,
        room: &str,
        epoch: &str,
        places: std::ops::RangeInclusive<u64>,
    ) -> u64 {
        let (mut owed, mut unknown) = (0, 0);
        for offset in places {
            let at = At { epoch: epoch.to_owned(), offset };
            match self.shelves.get(room).and_then(|shelf| shelf.what.get(&at)) {
                Some(name) => owed += u64::from(!self.said[name].unechoed.contains(&who)),
                None => unknown += 1,
            }
        }
        // Its own message that it did not want to hear and whose place nobody knows may be one.
        let unplaced = self.said.iter().filter(|(name, said)| {
            said.room == room && said.unechoed.contains(&who) && !self.places.contains_key(*name)
        });
        owed + u64::saturating_sub(unknown, unplaced.count() as u64)
    }

    /// Whether a connection surely asked not to hear this.
    pub fn is_unechoed(&self, who: usize, name: Name) -> bool {
        let said = &self.said[&name];
        said.tries == 1 && said.unechoed.contains(&who)
    }

    pub fn place_of(&self, name: Name) -> Option<&At> {
        self.places.get(&name)
    }

    /// An upper bound of what messages take on the wire; `None` if one of them is not known.
    pub fn bytes_max(
        &self,
        room: &str,
        epoch: &str,
        places: std::ops::RangeInclusive<u64>,
    ) -> Option<usize> {
        let shelf = self.shelves.get(room)?;
        let bytes = |offset| {
            let name = shelf.what.get(&At { epoch: epoch.to_owned(), offset })?;
            Some(self.said[name].body.len() + FRAME_BYTES_MAX)
        };
        places.map(bytes).sum()
    }
}

/// What a message takes beside its payload, at most: the names here are short.
const FRAME_BYTES_MAX: usize = 300;
