//! What is asked, case by case.
//!
//! Invariant: a case says everything that differs; whatever it does not say is the same for all.

use crate::server::Contestant::{self, Campanile, Each, Heartbeat, Joined, Receive};

/// One question.
pub struct Case {
    /// How it is chosen.
    pub name: &'static str,
    /// The question.
    pub title: &'static str,
    /// What is compared; ours first.
    pub contestants: &'static [Contestant],
    /// Which figure.
    pub figure: Kind,
    /// Arguments of `campanile load`.
    pub load: &'static str,
    /// The same, small.
    pub load_smoke: &'static str,
    /// Arguments of `campanile load` that the floor does not get: it cannot do it, and is measured
    /// without.
    pub load_ours_only: &'static str,
    /// Further arguments of `campanile serve`.
    pub serve: &'static str,
    /// The ratio to reach, to the contestant.
    pub target: Option<(f64, Contestant)>,
}

/// Which figure of a run counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Processor time of the server by delivery.
    Delivery,
    /// 99 % of all copies are no later, with so many messages a second that Campanile's core is busy
    /// for three tenths of the time.
    Latency,
    /// Processor time of the server by received message.
    Receive,
    /// Processor time of the server by ping and pong.
    Heartbeat,
}

const ROOM: Case = Case {
    name: "",
    title: "",
    contestants: &[Campanile, Joined, Each],
    figure: Kind::Delivery,
    load: "",
    load_smoke: "",
    load_ours_only: "",
    serve: "",
    target: Some((1.30, Joined)),
};

const ONE_BY_ONE: Case =
    Case { contestants: &[Campanile, Each], target: Some((1.10, Each)), ..ROOM };

/// Tokens, because messages to users need users.
const SECRET_SERVE: &str = "--auth-hmac-secret a-secret-of-thirty-two-characters";

/// All of them.
pub const CASES: &[Case] = &[
    Case {
        name: "window-1",
        title: "one room of 1000, one message outstanding",
        load: "fanout --members 1000 --window 1",
        load_smoke: "fanout --members 20 --window 1",
        ..ONE_BY_ONE
    },
    Case {
        name: "window-64",
        title: "one room of 1000, 64 messages outstanding",
        load: "fanout --members 1000 --window 64",
        load_smoke: "fanout --members 20 --window 8",
        ..ROOM
    },
    Case {
        name: "window-256",
        title: "one room of 1000, 256 messages outstanding",
        load: "fanout --members 1000 --window 256",
        load_smoke: "fanout --members 20 --window 32",
        ..ROOM
    },
    Case {
        name: "rooms-1",
        title: "1000 rooms of 10, every member in 5, one message outstanding in each room",
        load: "fanout --rooms 1000 --members 10 --rooms-per-member 5 --window 1",
        load_smoke: "fanout --rooms 20 --members 4 --rooms-per-member 5 --window 1",
        ..ROOM
    },
    Case {
        name: "rooms-8",
        title: "1000 rooms of 10, every member in 5, 8 messages outstanding in each room",
        load: "fanout --rooms 1000 --members 10 --rooms-per-member 5 --window 8",
        load_smoke: "fanout --rooms 20 --members 4 --rooms-per-member 5 --window 4",
        ..ROOM
    },
    Case {
        name: "users",
        title: "1000 users, one message outstanding to each",
        load: "fanout --rooms 1000 --members 1 --window 1",
        load_smoke: "fanout --rooms 20 --members 1 --window 1",
        serve: SECRET_SERVE,
        ..ROOM
    },
    Case {
        name: "users-8",
        title: "1000 users, 8 messages outstanding to each",
        load: "fanout --rooms 1000 --members 1 --window 8",
        load_smoke: "fanout --rooms 20 --members 1 --window 4",
        serve: SECRET_SERVE,
        ..ROOM
    },
    Case {
        name: "broadcast-1",
        title: "a message to all 1000, one outstanding",
        load: "fanout --members 1000 --window 1",
        load_smoke: "fanout --members 20 --window 1",
        ..ONE_BY_ONE
    },
    Case {
        name: "broadcast-64",
        title: "messages to all 1000, 64 outstanding",
        load: "fanout --members 1000 --window 64",
        load_smoke: "fanout --members 20 --window 8",
        ..ROOM
    },
    Case {
        name: "publishers",
        title: "one room of 1000 on 4 shards, 8 publishers, 64 messages outstanding",
        load: "fanout --members 1000 --publishers 8 --window 64",
        load_smoke: "fanout --members 20 --publishers 4 --window 8",
        serve: "--shards 4",
        ..ROOM
    },
    Case {
        name: "large-1",
        title: "one room of 1000, messages of 16 KiB, one outstanding",
        load: "fanout --members 1000 --window 1 --payload-bytes 16384",
        load_smoke: "fanout --members 5 --window 1 --payload-bytes 16384",
        ..ONE_BY_ONE
    },
    Case {
        name: "large-16",
        title: "one room of 1000, messages of 16 KiB, 16 outstanding",
        load: "fanout --members 1000 --window 16 --payload-bytes 16384",
        load_smoke: "fanout --members 5 --window 4 --payload-bytes 16384",
        ..ROOM
    },
    Case {
        name: "silent-1",
        title: "one room of 990 and 10 who do not read, one message outstanding",
        load: "fanout --members 990 --window 1",
        load_smoke: "fanout --members 20 --window 1",
        load_ours_only: "--non-reading 10",
        ..ONE_BY_ONE
    },
    Case {
        name: "silent-64",
        title: "one room of 990 and 10 who do not read, 64 messages outstanding",
        load: "fanout --members 990 --window 64",
        load_smoke: "fanout --members 20 --window 8",
        load_ours_only: "--non-reading 10",
        ..ROOM
    },
    Case {
        name: "latency",
        title: "p99 of one room of 1000 at 30 % load",
        contestants: &[Campanile, Each],
        figure: Kind::Latency,
        load: "fanout --members 1000",
        load_smoke: "fanout --members 20",
        target: Some((1.50, Each)),
        ..ROOM
    },
    Case {
        name: "receive-1",
        title: "1000 talk, each message in a segment with a ping behind it",
        contestants: &[Campanile, Receive],
        figure: Kind::Receive,
        load: "ingest --conns 1000 --burst 1",
        load_smoke: "ingest --conns 20 --burst 1",
        target: None,
        ..ROOM
    },
    Case {
        name: "receive-16",
        title: "1000 talk, 16 messages in a segment",
        contestants: &[Campanile, Receive],
        figure: Kind::Receive,
        load: "ingest --conns 1000 --burst 16",
        load_smoke: "ingest --conns 20 --burst 16",
        target: None,
        ..ROOM
    },
    Case {
        name: "receive-cut",
        title: "1000 talk, 16 messages at a time, cut every 500 bytes",
        contestants: &[Campanile, Receive],
        figure: Kind::Receive,
        load: "ingest --conns 1000 --burst 16 --cut-bytes 500",
        load_smoke: "ingest --conns 20 --burst 4 --cut-bytes 50",
        target: None,
        ..ROOM
    },
    Case {
        name: "heartbeat",
        title: "10000 idle connections, each pinged every second",
        contestants: &[Campanile, Heartbeat],
        figure: Kind::Heartbeat,
        load: "idle --conns 10000",
        load_smoke: "idle --conns 50",
        serve: "--limits-ping-interval-ms 1000",
        target: None,
        ..ROOM
    },
];

impl Case {
    /// Arguments of `campanile load` that are more than one word can hold: path and message.
    pub fn templates(&self) -> Vec<&'static str> {
        const SEND: &str = r#"{"type":"send","target_user_id":"{room}","payload":"{payload}"}"#;
        const BROADCAST: &str = r#"{"type":"broadcast","payload":"{payload}"}"#;
        match self.name {
            "users" | "users-8" => vec![
                "--path",
                "/ws?room_id={room}&token={token}",
                "--token-secret",
                "a-secret-of-thirty-two-characters",
                "--message",
                SEND,
            ],
            "broadcast-1" | "broadcast-64" => vec!["--message", BROADCAST],
            _ => Vec::new(),
        }
    }
}
