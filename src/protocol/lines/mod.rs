//! A dialect for tests, which differs from the native one wherever a dialect may differ: lines of text
//! in binary messages, several requests in one message, what was missed inside the reply, a heartbeat
//! that is a message, and losses that end a membership or a connection.
//!
//! Only in builds with the feature `test-dialect`. `tests/sim/dialects.rs` puts its clients and native
//! ones into the same rooms.
//!
//! ```text
//! client: [#id ]join ROOM [EPOCH OFFSET] │ leave ROOM │ publish ROOM JSON │ history ROOM LIMIT
//!         │ presence ROOM │ auth TOKEN │ ping                                   one request a line
//! server: WORD arguments, separated by blanks; elements of a run, a line each
//! ```

use crate::ids::{Position, TopicKind};
use crate::protocol::exchange::{LossVerdict, Parsed};
use crate::protocol::{
    Command, ErrorCode, Event, Page, Recovery, Rejected, Request, RequestId, Unrecovered,
};
use std::fmt::Write as _;

/// The message that probes an idle connection.
pub const HEARTBEAT: &[u8] = b"heartbeat";

/// Reads one message: a request a line.
pub fn parse<'a>(message: &'a [u8], mut each: impl FnMut(Parsed<'a>)) {
    let text = std::str::from_utf8(message).unwrap_or("not UTF-8");
    for line in text.lines().filter(|line| line.as_bytes() != HEARTBEAT) {
        let (id, rest) = match line.strip_prefix('#').and_then(|line| line.split_once(' ')) {
            Some((id, rest)) => (id.parse().ok().map(RequestId::Number), rest),
            None => (None, line),
        };
        each(match command(rest) {
            Some(command) => Parsed::Request(Request { id, command }),
            None => Parsed::Rejected(Rejected {
                id,
                code: ErrorCode::BadRequest,
                message: format!("{rest} is no request"),
            }),
        });
    }
}

fn command(line: &str) -> Option<Command<'_>> {
    let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
    let (room, rest) = rest.split_once(' ').unwrap_or((rest, ""));
    Some(match word {
        "ping" => Command::Ping,
        "auth" => Command::Auth { token: rest },
        _ if room.is_empty() => return None,
        "join" => {
            Command::Join { room, since: position(rest), info: None, ack: false, token: None }
        }
        "leave" => Command::Leave { room },
        "publish" => Command::Publish {
            room,
            payload: rest.as_bytes(),
            echo: true,
            key: None,
            conflate_key: None,
        },
        "history" => {
            let page = Page { since: None, limit: rest.parse().ok()?, reverse: false };
            Command::History { room, page }
        }
        "presence" => Command::Presence { room },
        _ => return None,
    })
}

fn position(text: &str) -> Option<Position> {
    let (epoch, offset) = text.split_once(' ')?;
    Some(Position { epoch: epoch.parse().ok()?, offset: offset.parse().ok()? })
}

/// An event as a line, or as several where messages stand in it.
pub fn write(event: &Event<'_>, out: &mut Vec<u8>) {
    let mut line = String::new();
    let mut tail: &[u8] = b"";
    match event {
        Event::Welcome { user_id, .. } => line += &format!("welcome {user_id}"),
        Event::Ok { id, room, position, recovery, missed } => {
            line += &format!("ok{} {}{}", number(*id), room.unwrap_or("-"), at(*position));
            line += &recovered(*recovery);
            tail = missed.map_or(b"", |run| &run.bytes);
        }
        Event::Queue { user, position, recovery, missed } => {
            line += &format!("queue {user}{}{}", at(Some(*position)), recovered(*recovery));
            tail = missed.map_or(b"", |run| &run.bytes);
        }
        Event::History { id, room, position, messages } => {
            line += &format!("history{} {room}{}", number(*id), at(Some(*position)));
            tail = &messages.bytes;
        }
        Event::Presence { id, room, here } => {
            line += &format!("presence{} {room} {}", number(*id), here.count);
        }
        Event::Joined { room, user, .. } => line += &format!("joined {room} {user}"),
        Event::Left { room, user } => line += &format!("left {room} {user}"),
        Event::Error { id, code, .. } => line += &format!("error{} {}", number(*id), code.as_str()),
        Event::Message { topic, from, payload, position, .. } => {
            let (topic, from) = (name(*topic), from.unwrap_or("-"));
            line += &format!("message {topic} {from}{} ", at(*position));
            tail = payload;
        }
        Event::Lost { topic, count } => line += &format!("lost {} {count}", name(*topic)),
        Event::Unsubscribed { topic } => line += &format!("unsubscribed {}", name(*topic)),
        Event::Removed { room, why } => line += &format!("removed {room} {}", why.as_str()),
        Event::TokenExpires { in_ms } => line += &format!("token_expires {in_ms}"),
        Event::Reconnect { after_ms } => line += &format!("reconnect {after_ms}"),
        Event::Pong { id } => line += &format!("pong{}", number(*id)),
    }
    out.extend_from_slice(line.as_bytes());
    if !tail.is_empty() && !matches!(event, Event::Message { .. }) {
        out.push(b'\n');
    }
    out.extend_from_slice(tail);
}

/// Rooms whose names begin so lose their members, or their members' connections, with a message.
pub fn on_loss(topic: TopicKind<'_>) -> LossVerdict {
    match topic {
        TopicKind::Room(room) if room.starts_with("leave") => LossVerdict::Leave,
        TopicKind::Room(room) if room.starts_with("close") => LossVerdict::Close,
        _ => LossVerdict::Event,
    }
}

fn name(topic: TopicKind<'_>) -> String {
    match topic {
        TopicKind::Room(room) => room.to_owned(),
        TopicKind::User(user) => format!("@{user}"),
        TopicKind::All => "*".to_owned(),
    }
}

fn at(position: Option<Position>) -> String {
    position.map_or(String::new(), |Position { epoch, offset }| format!(" {epoch}:{offset}"))
}

fn number(id: Option<&RequestId>) -> String {
    let mut text = String::new();
    if let Some(RequestId::Number(number)) = id {
        let _ = write!(text, " #{number}");
    }
    text
}

fn recovered(recovery: Recovery) -> String {
    match recovery {
        Recovery::NotAsked => String::new(),
        Recovery::Recovered { messages } => format!(" recovered {messages}"),
        Recovery::NotRecovered(why) => format!(" unrecovered {}", why.as_str()),
        Recovery::Replaced { messages } => {
            format!(" unrecovered {} {messages}", Unrecovered::TailLost.as_str())
        }
    }
}
