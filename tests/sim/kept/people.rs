//! Clients that remember where they were: they come and go, on any shard, and come back with `since`.
//! Everything they say and hear is on tape.

use super::tape::{At, Event, Heard, Name, Recovery, Tape, heard};
use crate::world::World;
use campanile::policy::limits::Limits;
use campanile::policy::namespaces::Namespaces;
use campanile::protocol::dialect::Encoding;
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::Arc;

/// How a message is sent.
#[derive(Clone, Copy)]
pub struct How {
    pub echo: bool,
    pub wants_ack: bool,
    pub has_key: bool,
    pub bytes: usize,
}

impl Default for How {
    fn default() -> How {
        How { echo: true, wants_ack: true, has_key: false, bytes: 0 }
    }
}

/// A publish that may be tried again.
#[derive(Clone)]
struct Try {
    room: String,
    name: Name,
    body: String,
}

#[derive(Default)]
pub struct Person {
    user: String,
    /// Their connection, by the number of its client.
    pub at: Option<usize>,
    /// The last place they know of in each room.
    pub memory: BTreeMap<String, At>,
    tries: Vec<Try>,
}

pub struct People {
    pub world: World,
    pub tapes: Vec<Tape>,
    /// Whose each tape is.
    whose: Vec<usize>,
    last_id: Vec<u64>,
    pub people: Vec<Person>,
    spaces: Arc<Namespaces>,
}

impl People {
    pub fn new(seed: u64, shards: usize, limits: Limits, spaces: &str) -> People {
        let spaces = Arc::new(Namespaces::read(spaces).expect("it is well written"));
        let mut world = World::kept(seed, shards, limits, spaces.clone());
        world.run();
        let (tapes, whose, last_id) = (Vec::new(), Vec::new(), Vec::new());
        People { world, tapes, whose, last_id, people: Vec::new(), spaces }
    }

    pub fn person(&mut self, user: &str) -> usize {
        self.people.push(Person { user: user.to_owned(), ..Person::default() });
        self.people.len() - 1
    }

    /// They knock and are let in. Nothing else happens yet.
    pub fn come(&mut self, person: usize, tower: usize, url_room: Option<&str>) {
        let who = self.world.knock(tower);
        let rooms: Vec<&str> = url_room.into_iter().collect();
        let user = self.people[person].user.clone();
        self.world.open(who, Some(&user), &rooms, Encoding::NATIVE);
        assert_eq!(who, self.tapes.len());
        self.tapes.push(Tape { user, ..Tape::default() });
        self.whose.push(person);
        self.last_id.push(0);
        if let Some(room) = url_room {
            let join = Event::Join { id: None, room: room.to_owned(), since: None };
            self.note(who, join);
        }
        self.people[person].at = Some(who);
    }

    /// Their connection, if it lives.
    pub fn here(&self, person: usize) -> Option<usize> {
        self.people[person].at.filter(|who| {
            self.world.lives[*who].is_alive() && self.world.clients[*who].conn.is_some()
        })
    }

    fn note(&mut self, who: usize, event: Event) {
        self.collect(who);
        let step = self.world.tick_step();
        self.tapes[who].push(step, event);
    }

    /// What a connection has heard goes on its tape, and into its owner's memory.
    pub fn collect(&mut self, who: usize) {
        for (step, json) in std::mem::take(&mut self.world.clients[who].texts) {
            let Some(heard) = heard(&json) else { continue };
            self.remember(who, &heard);
            self.tapes[who].push(step, Event::Heard(heard));
        }
    }

    fn remember(&mut self, who: usize, heard: &Heard) {
        let (room, at) = match heard {
            Heard::Message { room, message } => (room, &message.at),
            Heard::Ok { recovery: Some(Recovery::Recovered { .. }), .. } => return,
            Heard::Ok { room: Some(room), at, .. } => (room, at),
            _ => return,
        };
        if let Some(at) = at {
            self.people[self.whose[who]].memory.insert(room.clone(), at.clone());
        }
    }

    fn new_id(&mut self, who: usize) -> u64 {
        self.last_id[who] += 1;
        self.last_id[who]
    }

    pub fn join(&mut self, who: usize, room: &str, since: Option<At>) -> u64 {
        let id = self.new_id(who);
        let since_text = since_json(since.as_ref());
        self.note(who, Event::Join { id: Some(id), room: room.to_owned(), since });
        let text = format!(r#"{{"type":"join","room_id":"{room}","id":{id}{since_text}}}"#);
        self.world.send_text(who, &text);
        id
    }

    pub fn leave(&mut self, who: usize, room: &str) -> u64 {
        let id = self.new_id(who);
        self.note(who, Event::Leave { id, room: room.to_owned() });
        let text = format!(r#"{{"type":"leave","room_id":"{room}","id":{id}}}"#);
        self.world.send_text(who, &text);
        id
    }

    pub fn publish(&mut self, who: usize, room: &str, how: How) -> u64 {
        let id = self.new_id(who);
        let pad = "x".repeat(how.bytes);
        let body: Value =
            serde_json::from_str(&format!(r#"{{"by":{who},"n":{id},"pad":"{pad}"}}"#))
                .expect("it is JSON");
        let it = Try { room: room.to_owned(), name: (who, id), body: body.to_string() };
        if how.has_key {
            self.people[self.whose[who]].tries.push(it.clone());
        }
        self.send(who, id, it, how)
    }

    /// Tries the number-th publish with a key again, from wherever they are now.
    pub fn try_again(&mut self, who: usize, number: usize, echo: bool) {
        let tries = &self.people[self.whose[who]].tries;
        let Some(it) = tries.get(number % tries.len().max(1)).cloned() else { return };
        let id = self.new_id(who);
        self.send(who, id, it, How { echo, wants_ack: true, has_key: true, bytes: 0 });
    }

    fn send(&mut self, who: usize, id: u64, it: Try, how: How) -> u64 {
        let How { echo, wants_ack, has_key, .. } = how;
        let Try { room, name, body } = it;
        let mut text = format!(r#"{{"type":"publish","room_id":"{room}","payload":{body}"#);
        text.extend(wants_ack.then(|| format!(r#","id":{id}"#)));
        text.extend((!echo).then(|| r#","echo":false"#.to_owned()));
        text.extend(has_key.then(|| format!(r#","key":"{}-{}""#, name.0, name.1)));
        text.push('}');
        let id = wants_ack.then_some(id);
        self.note(who, Event::Publish { id, room, name, body, echo, has_key });
        self.world.send_text(who, &text);
        name.1
    }

    pub fn ask_history(
        &mut self,
        who: usize,
        room: &str,
        since: Option<At>,
        limit: u64,
        reverse: bool,
    ) {
        let id = self.new_id(who);
        let since_text = since_json(since.as_ref());
        self.note(who, Event::History { id, room: room.to_owned(), since, limit, reverse });
        let text = format!(
            r#"{{"type":"history","room_id":"{room}","id":{id},"limit":{limit},"reverse":{reverse}{since_text}}}"#
        );
        self.world.send_text(who, &text);
    }

    /// Nothing is owed to them from here on; how they go is the caller's.
    pub fn goodbye(&mut self, who: usize) {
        self.note(who, Event::Goodbye);
    }

    /// The node dies and starts again with nothing in its histories. Who tried something before that
    /// does not try it again: keys are as old as the process.
    pub fn restart(&mut self) {
        self.world.restart(self.spaces.clone());
        self.people.iter_mut().for_each(|person| person.tries.clear());
    }

    /// All tapes to their end, and who is still here.
    pub fn collect_all(&mut self) {
        for who in 0..self.tapes.len() {
            self.collect(who);
            let client = &self.world.clients[who];
            self.tapes[who].is_alive = self.world.lives[who].is_alive() && client.conn.is_some();
        }
    }
}

fn since_json(since: Option<&At>) -> String {
    since.map_or(String::new(), |At { epoch, offset }| {
        format!(r#","since":{{"epoch":"{epoch}","offset":{offset}}}"#)
    })
}
