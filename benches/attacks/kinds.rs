//! The attacks: what each connection sends when it begins, and what it adds whenever all of that is
//! sent.

use super::pump::Attacker;
use super::wire::{frame, post, text};

/// One attack. All attackers come from one address.
pub(super) struct Attack {
    pub(super) name: &'static str,
    pub(super) what: &'static str,
    pub(super) connections: usize,
    /// The WebSocket that is opened first. `None`: nothing is sent by itself.
    pub(super) path: Option<&'static str>,
    /// Whether this one reads what it is sent.
    pub(super) reads: fn(&Attacker) -> bool,
    /// Whether it sends one piece a turn, however much the socket takes.
    pub(super) is_dripping: bool,
    /// What a new connection sends, behind the handshake.
    pub(super) begin: fn(&Attacker, &mut Vec<u8>),
    /// What it sends when all before is sent. `false`: it ends, and a new one begins.
    pub(super) more: fn(&Attacker, &mut Vec<u8>) -> bool,
}

/// A client that opens a WebSocket and reads.
const CLIENT: Attack = Attack {
    name: "",
    what: "",
    connections: 50,
    path: Some("/ws"),
    reads: |_| true,
    is_dripping: false,
    begin: |_, _| {},
    more: |_, _| true,
};

/// One that does not open any.
const PEER: Attack = Attack { path: None, ..CLIENT };

pub(super) const ATTACKS: &[Attack] = &[
    Attack { name: "connects", what: "connects and resets", more: |_, _| false, ..PEER },
    Attack {
        name: "half-handshakes",
        what: "half a head each, 2,000 connections",
        connections: 2000,
        begin: |_, out| out.extend_from_slice(b"GET /ws HTTP/1.1\r\nHost: x\r\n"),
        ..PEER
    },
    Attack {
        name: "slow-heads",
        what: "heads byte by byte, 500 connections",
        connections: 500,
        is_dripping: true,
        begin: |_, out| out.extend_from_slice(b"GET /ws HTTP/1.1\r\n"),
        more: |_, out| {
            out.push(b'a');
            true
        },
        ..PEER
    },
    Attack {
        name: "big-heads",
        what: "heads of 8 KB that never end",
        begin: |_, out| out.extend_from_slice(b"GET /ws HTTP/1.1\r\nHost: x\r\n"),
        more: |_, out| {
            out.extend_from_slice(b"X-");
            out.resize(out.len() + 1000, b'a');
            out.extend_from_slice(b": 1\r\n");
            true
        },
        ..PEER
    },
    Attack {
        name: "fresh-rooms",
        what: "joins and leaves rooms that nobody else has",
        more: |attacker, out| {
            let Attacker { index, step } = attacker;
            text(format!(r#"{{"type":"join","room_id":"f{index}-{step}"}}"#).as_bytes(), out);
            text(format!(r#"{{"type":"leave","room_id":"f{index}-{step}"}}"#).as_bytes(), out);
            true
        },
        ..CLIENT
    },
    Attack {
        name: "one-room",
        what: "joins and leaves one room",
        more: |_, out| {
            text(br#"{"type":"join","room_id":"one"}"#, out);
            text(br#"{"type":"leave","room_id":"one"}"#, out);
            true
        },
        ..CLIENT
    },
    Attack {
        name: "many-rooms",
        what: "joins rooms and leaves none",
        more: |attacker, out| {
            let Attacker { index, step } = attacker;
            text(format!(r#"{{"type":"join","room_id":"m{index}-{step}"}}"#).as_bytes(), out);
            true
        },
        ..CLIENT
    },
    Attack {
        name: "histories",
        what: "asks for a history of 100 KB, pipelined",
        begin: |attacker, out| {
            text(br#"{"type":"join","room_id":"h"}"#, out);
            if attacker.index == 0 {
                (0..100).for_each(|_| text(publish("h", 1000).as_bytes(), out));
            }
        },
        more: |_, out| {
            text(br#"{"type":"history","room_id":"h","limit":1000}"#, out);
            true
        },
        ..CLIENT
    },
    Attack {
        name: "presences",
        what: "asks who is in a room of 50, pipelined",
        begin: |_, out| text(br#"{"type":"join","room_id":"watched:p"}"#, out),
        more: |_, out| {
            text(br#"{"type":"presence","room_id":"watched:p"}"#, out);
            true
        },
        ..CLIENT
    },
    Attack {
        name: "small-publishes",
        what: "publishes 100 bytes to its own room",
        begin: join_own,
        more: |attacker, out| publish_own(attacker, 100, out),
        ..CLIENT
    },
    Attack {
        name: "large-publishes",
        what: "publishes 60 KB to its own room",
        begin: join_own,
        more: |attacker, out| publish_own(attacker, 60_000, out),
        ..CLIENT
    },
    Attack {
        name: "keys",
        what: "publishes with a new idempotency key each",
        begin: join_own,
        more: |attacker, out| {
            let Attacker { index, step } = attacker;
            let json =
                format!(r#"{{"room_id":"own-{index}","payload":1,"key":"{index}-{step:0100}"}}"#);
            text(json.as_bytes(), out);
            true
        },
        ..CLIENT
    },
    Attack {
        name: "never-reads",
        what: "49 who never read in a room with one busy publisher",
        reads: |attacker| attacker.index == 0,
        begin: |_, out| text(br#"{"type":"join","room_id":"busy"}"#, out),
        more: |attacker, out| {
            if attacker.index == 0 {
                text(publish("busy", 1000).as_bytes(), out);
            }
            true
        },
        ..CLIENT
    },
    Attack {
        name: "user-messages",
        what: "sends to users, who acknowledge nothing",
        more: |attacker, out| {
            let Attacker { index, step } = attacker;
            let user = step % 1000;
            let json = format!(r#"{{"target_user_id":"u{index}-{user}","payload":"x"}}"#);
            text(json.as_bytes(), out);
            true
        },
        ..CLIENT
    },
    Attack {
        name: "fragments",
        what: "messages of 60 KB without their end, 500 connections",
        connections: 500,
        begin: |_, out| frame(0x01, &[b'a'; 1000], out),
        more: |attacker, out| {
            // The last byte before the limit is the last one that comes.
            if attacker.step % 64 < 59 {
                frame(0x00, &[b'a'; 1000], out);
            }
            true
        },
        ..CLIENT
    },
    Attack {
        name: "pings",
        what: "pings of 125 bytes",
        more: |_, out| {
            frame(0x89, &[b'p'; 125], out);
            true
        },
        ..CLIENT
    },
    Attack {
        name: "tiny-frames",
        what: "empty fragments of one message",
        begin: |_, out| frame(0x01, b"", out),
        more: |_, out| {
            (0..100).for_each(|_| frame(0x00, b"", out));
            true
        },
        ..CLIENT
    },
    Attack {
        name: "bad-json",
        what: "messages that are not JSON",
        more: |_, out| {
            text(br#"{"type":"join","room_id":x}"#, out);
            true
        },
        ..CLIENT
    },
    Attack {
        name: "deep-json",
        what: "messages of 60,000 brackets",
        more: |_, out| {
            let json = [&br#"{"room_id":"r","payload":"#[..], &[b'['; 60_000]].concat();
            text(&json, out);
            true
        },
        ..CLIENT
    },
    Attack {
        name: "echoes",
        what: "60 KB on the echo path, and nothing read",
        path: Some("/echo"),
        reads: |_| false,
        more: |_, out| {
            frame(0x82, &[0; 60_000], out);
            true
        },
        ..CLIENT
    },
    Attack {
        name: "reopens",
        what: "opens, joins, closes",
        begin: |_, out| text(br#"{"type":"join","room_id":"one"}"#, out),
        more: |attacker, out| {
            frame(0x88, &1000u16.to_be_bytes(), out);
            attacker.step % 2 == 0
        },
        ..CLIENT
    },
    Attack {
        name: "http-bodies",
        what: "posts 60 KB to the API, with its key",
        more: |_, out| {
            post(publish("http", 60_000).as_bytes(), out);
            true
        },
        ..PEER
    },
];

fn publish(room: &str, bytes: usize) -> String {
    format!(r#"{{"room_id":"{room}","payload":"{}"}}"#, "x".repeat(bytes))
}

fn join_own(attacker: &Attacker, out: &mut Vec<u8>) {
    text(format!(r#"{{"type":"join","room_id":"own-{}"}}"#, attacker.index).as_bytes(), out);
}

fn publish_own(attacker: &Attacker, bytes: usize, out: &mut Vec<u8>) -> bool {
    text(publish(&format!("own-{}", attacker.index), bytes).as_bytes(), out);
    true
}
