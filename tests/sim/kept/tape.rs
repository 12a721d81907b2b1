//! What one connection said and heard, as plain data: all that the checker looks at.

use crate::history::Step;
use serde_json::Value;

/// A place in a room's history, as clients see it: a word, and a number within it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct At {
    pub epoch: String,
    pub offset: u64,
}

/// A message, by whoever first thought of it: the connection, and its number there. A retry has the
/// name of what it repeats.
pub type Name = (usize, u64);

/// A message as somebody heard it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    pub at: Option<At>,
    pub name: Name,
    /// The payload, and who it is from.
    pub body: String,
    pub from: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Without an id: a room of the URL.
    Join {
        id: Option<u64>,
        room: String,
        since: Option<At>,
    },
    Leave {
        id: u64,
        room: String,
    },
    Publish {
        id: Option<u64>,
        room: String,
        name: Name,
        body: String,
        echo: bool,
        has_key: bool,
    },
    History {
        id: u64,
        room: String,
        since: Option<At>,
        limit: u64,
        reverse: bool,
    },
    /// Nothing is owed from here on.
    Goodbye,
    Heard(Heard),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    Welcome { user: String },
    Ok { id: Option<u64>, room: Option<String>, at: Option<At>, recovery: Option<Recovery> },
    Error { id: Option<u64>, code: String },
    Message { room: String, message: Message },
    Lost { room: String, count: u64 },
    History { id: u64, room: String, at: At, messages: Vec<Message> },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Recovery {
    Recovered { messages: u64 },
    NotRecovered { why: String },
}

/// One connection.
#[derive(Clone, Debug, Default)]
pub struct Tape {
    pub user: String,
    pub events: Vec<(Step, Event)>,
    /// Whether all is owed to it when the day ends: it neither left nor was cut off.
    pub is_alive: bool,
}

impl Tape {
    pub fn push(&mut self, step: Step, event: Event) {
        if let Event::Heard(Heard::Welcome { user }) = &event {
            assert_eq!(*user, self.user);
        }
        self.events.push((step, event));
    }
}

fn text(json: &Value, key: &str) -> Option<String> {
    json[key].as_str().map(str::to_owned)
}

fn at(json: &Value) -> Option<At> {
    Some(At { epoch: text(json, "epoch")?, offset: json["offset"].as_u64()? })
}

fn message(json: &Value) -> Message {
    let number = |key: &str| json["payload"][key].as_u64().expect("it was one of ours");
    Message {
        at: at(json),
        name: (number("by") as usize, number("n")),
        body: json["payload"].to_string(),
        from: text(json, "from").expect("a client sent it"),
    }
}

fn recovery(json: &Value) -> Option<Recovery> {
    json["recovered"].as_bool().map(|recovered| match recovered {
        true => Recovery::Recovered {
            messages: json["messages"].as_u64().expect("recovered says how many"),
        },
        false => {
            Recovery::NotRecovered { why: text(json, "reason").expect("not recovered says why") }
        }
    })
}

/// A frame as the checker wants it. `None`: nothing that matters here.
pub fn heard(json: &Value) -> Option<Heard> {
    let (id, room) = (json["id"].as_u64(), text(json, "room_id"));
    Some(match json["type"].as_str()? {
        "welcome" => Heard::Welcome { user: text(json, "user_id")? },
        "ok" => Heard::Ok { id, room, at: at(json), recovery: recovery(json) },
        "error" => Heard::Error { id, code: text(json, "code")? },
        "message" => Heard::Message { room: room?, message: message(json) },
        "lost" => Heard::Lost { room: room?, count: json["count"].as_u64()? },
        "history" => {
            let messages = json["messages"].as_array()?.iter().map(message).collect();
            Heard::History { id: id?, room: room?, at: at(json)?, messages }
        }
        _ => return None,
    })
}
