//! All nodes and their clients, a Redis between them, a balancer in front, and a clock.

use super::ledger::{Ear, Ledger, Nodes};
use super::node::{Node, Push, Sent};
use super::redis::Redis;
use crate::peer::{HEAD, client_frame};
use crate::rng::Rng;
use crate::world::ALL_RIGHTS;
use bytes::Bytes;
use campanile::auth::Identity;
use campanile::ids::ConnId;
use campanile::link::Downlink;
use campanile::policy::limits::Limits;
use campanile::protocol::dialect::Encoding;
use campanile::shard::conn::CloseReason;
use campanile::shard::{ClosedSocket, Opening};
use serde_json::Value;
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::time::{Duration, Instant};

/// As the shards' threads tell the time; here also what a handshake takes.
pub const TICK_MS: u64 = 100;

/// How a fleet is built.
#[derive(Clone, Copy)]
pub struct Build {
    pub nodes: usize,
    pub shards: u16,
    pub limits: Limits,
    pub linger_ms: u64,
    /// What a backplane thread takes of one kind in a turn.
    pub per_turn: usize,
}

impl Build {
    /// Two hundred nodes of two shards each, and nobody is pinged: that is told elsewhere.
    pub fn large() -> Build {
        let limits = Limits {
            ping_interval_ms: 24 * 3_600_000,
            uplink_items_max: 1024,
            downlink_items_max: 1024,
            ..Limits::PRODUCTION
        };
        Build { nodes: 200, shards: 2, limits, linger_ms: 15_000, per_turn: 256 }
    }
}

#[derive(Default)]
pub struct Client {
    pub user: String,
    pub node: usize,
    pub tower: usize,
    pub conn: Option<ConnId>,
    /// Which of all connections that ever were this one is: `"echo":false` means the connection.
    life: usize,
    /// Rooms it wants to be in, each with the number of its join (0: in the URL).
    pub rooms: Vec<(String, u64)>,
    pub ears: Vec<(Rc<str>, Ear)>,
    up: VecDeque<Vec<u8>>,
    /// When it comes again.
    pub back_at_ms: Option<u64>,
    next_id: u64,
}

/// What a client hears. Only what matters here.
enum Heard {
    Message { topic: Rc<str>, number: usize },
    Lost { topic: Rc<str>, count: u64 },
    Joined { id: u64, room: String },
    Refused { id: u64 },
    Reconnect { after_ms: u64 },
    Ping,
    Close,
    Other,
}

pub struct Fleet {
    pub now_ms: u64,
    pub limits: Limits,
    pub rng: Rng,
    pub nodes: Vec<Node>,
    pub alive: Vec<bool>,
    pub redis: Redis,
    pub clients: Vec<Client>,
    pub ledger: Ledger,
    /// Handshakes that the limit refused.
    pub refused: usize,
    lives: usize,
    born: Instant,
    /// Clients with something to say.
    talkers: VecDeque<usize>,
    /// Handshakes under way.
    opening: VecDeque<usize>,
}

impl Fleet {
    pub fn new(seed: u64, build: Build) -> Fleet {
        let node = |at| Node::new(at, build);
        let mut fleet = Fleet {
            now_ms: 0,
            limits: build.limits,
            rng: Rng::new(seed),
            nodes: (0..build.nodes).map(node).collect(),
            alive: vec![true; build.nodes],
            redis: Redis::default(),
            clients: Vec::new(),
            ledger: Ledger::default(),
            refused: 0,
            lives: 0,
            born: Instant::now(),
            talkers: VecDeque::new(),
            opening: VecDeque::new(),
        };
        fleet.nodes.iter_mut().for_each(Node::connect);
        fleet.run();
        fleet.redis.take_counts();
        fleet
    }

    pub fn now(&self) -> Instant {
        self.born + Duration::from_millis(self.now_ms)
    }

    // --- clients ---

    /// A client that is not connected yet.
    pub fn client(&mut self, user: &str, rooms: &[&str]) -> usize {
        let rooms = rooms.iter().map(|room| (room.to_string(), 0)).collect();
        let user = user.to_owned();
        self.clients.push(Client { user, rooms, next_id: 1, ..Client::default() });
        self.clients.len() - 1
    }

    /// The balancer chooses any living node, and the kernel any of its shards.
    pub fn choose(&mut self) -> (usize, usize) {
        loop {
            let node = self.rng.below(self.nodes.len());
            if self.alive[node] {
                return (node, self.rng.below(self.nodes[node].towers.len()));
            }
        }
    }

    /// A client knocks at a shard. `false`: refused.
    pub fn knock(&mut self, who: usize, (node, tower): (usize, usize)) -> bool {
        let shard = &mut self.nodes[node].towers[tower].shard;
        let Some(conn) = shard.handle_accept(who as u32, self.now_ms) else {
            self.refused += 1;
            return false;
        };
        let client = &mut self.clients[who];
        assert!(client.conn.is_none(), "it has one connection at a time");
        self.lives += 1;
        (client.node, client.tower, client.conn) = (node, tower, Some(conn));
        client.life = self.lives;
        client.ears.clear();
        client.up.clear();
        client.back_at_ms = None;
        true
    }

    /// Its handshake is done.
    pub fn open(&mut self, who: usize) {
        let client = &mut self.clients[who];
        let Some(conn) = client.conn else { return };
        client.rooms.iter_mut().for_each(|(_, id)| *id = 0);
        let opening = Opening {
            identity: Identity {
                user: Some(client.user.clone().into()),
                rights: ALL_RIGHTS,
                expires_unix_s: None,
                grants: None,
                info: None,
                mark: None,
            },
            response: Bytes::from_static(HEAD),
            rooms: client.rooms.iter().map(|(room, _)| room.clone()).collect(),
            encoding: Encoding::NATIVE,
        };
        let (node, tower) = (client.node, client.tower);
        self.nodes[node].towers[tower].shard.handle_open(conn, opening);
        self.visit(node, tower);
    }

    /// Comes in at once, anywhere.
    pub fn connect(&mut self, who: usize) {
        let place = self.choose();
        assert!(self.knock(who, place), "far from every limit");
        self.open(who);
    }

    /// Its socket is gone, without a word.
    pub fn cut(&mut self, who: usize) {
        let client = &mut self.clients[who];
        let Some(conn) = client.conn else { return };
        let (node, tower) = (client.node, client.tower);
        self.nodes[node].towers[tower].shard.handle_peer_gone(conn, CloseReason::Gone);
        self.visit(node, tower);
        assert!(self.clients[who].conn.is_none());
    }

    fn say(&mut self, who: usize, opcode: u8, payload: &[u8]) {
        self.clients[who].up.push_back(client_frame(true, opcode, payload, [0; 4]));
        self.talkers.push_back(who);
    }

    pub fn join(&mut self, who: usize, room: &str) {
        let client = &mut self.clients[who];
        client.next_id += 1;
        let id = client.next_id;
        match client.rooms.iter_mut().find(|(known, _)| known == room) {
            Some((_, last)) => *last = id,
            None => client.rooms.push((room.to_owned(), id)),
        }
        let text = format!(r#"{{"type":"join","room_id":"{room}","id":{id}}}"#);
        self.say(who, 1, text.as_bytes());
    }

    pub fn leave(&mut self, who: usize, room: &str) {
        let client = &mut self.clients[who];
        client.rooms.retain(|(known, _)| known != room);
        client.next_id += 1;
        let topic = format!("r:{room}");
        // Nothing is owed any more; the order still is.
        if let Some((_, ear)) = client.ears.iter_mut().find(|(known, _)| **known == topic[..]) {
            ear.leave();
        }
        let text = format!(r#"{{"type":"leave","room_id":"{room}","id":{}}}"#, client.next_id);
        self.say(who, 1, text.as_bytes());
    }

    /// A message for `topic` (`r:…`, `u:…` or `*`).
    pub fn publish(&mut self, who: usize, topic: &str, echo: bool) {
        let number = self.ledger.say(self.clients[who].life, echo);
        let to = match topic.split_at(topic.len().min(2)) {
            ("r:", room) => format!(r#""type":"publish","room_id":"{room}","echo":{echo}"#),
            ("u:", user) => format!(r#""target_user_id":"{user}""#),
            _ => r#""type":"broadcast""#.to_owned(),
        };
        self.say(who, 1, format!(r#"{{{to},"payload":{{"n":{number}}}}}"#).as_bytes());
    }

    pub fn ear(&self, who: usize, topic: &str) -> Option<&Ear> {
        self.clients[who].ears.iter().find(|(known, _)| **known == *topic).map(|(_, ear)| ear)
    }

    /// Everything is owed to every client here from now on, at `topic`. For topics that confirm
    /// nothing: users and everybody.
    pub fn owe(&mut self, who: usize, topic: &str) {
        let (ledger, client) = (&self.ledger, &mut self.clients[who]);
        ledger.owe(ear_of(client, &topic.into()), topic);
    }

    // --- the threads of a node ---

    /// A visit to a shard, as `net/reactor.rs` makes it. Answers whether anything moved.
    pub fn visit(&mut self, node: usize, tower: usize) -> bool {
        let (now_ms, waiting_max) = (self.now_ms, self.limits.downlink_items_max);
        let it = &mut self.nodes[node].towers[tower];
        for encoding in Encoding::ALL {
            it.end.connections.set(encoding, it.shard.broadcast_receivers(encoding));
        }
        let mut moved = false;
        while it.shard.frames_waiting() < waiting_max {
            let Some(item) = it.end.try_recv() else { break };
            it.shard.handle_downlink(item, now_ms);
            moved = true;
        }
        moved |= self.drain_uplink(node, tower);
        moved |= self.write(node, tower);
        while let Some(closed) = self.nodes[node].towers[tower].shard.poll_closed() {
            moved = true;
            if let ClosedSocket::Whole { socket_key, conn, .. } = closed {
                let client = &mut self.clients[socket_key as usize];
                assert_eq!(client.conn, Some(conn));
                client.conn = None;
            }
        }
        // Whoever may be read is asked by [`World::read`].
        let shard = &mut self.nodes[node].towers[tower].shard;
        while let Some(conn) = shard.poll_resumed() {
            let _ = shard.begin_reading(conn);
        }
        self.drain_uplink(node, tower) | moved
    }

    fn drain_uplink(&mut self, node: usize, tower: usize) -> bool {
        let it = &mut self.nodes[node].towers[tower];
        let mut moved = false;
        while let Some(item) = it.shard.poll_uplink() {
            if let Err(item) = it.end.try_send(item) {
                it.shard.return_uplink(item);
                break;
            }
            moved = true;
        }
        moved
    }

    /// One batch, taken whole by every socket.
    fn write(&mut self, node: usize, tower: usize) -> bool {
        let it = &mut self.nodes[node].towers[tower];
        if !it.shard.has_sends() {
            return false;
        }
        let mut batch = std::mem::take(&mut it.batch);
        it.shard.take_batch(&mut batch);
        let mut read: HashMap<*const u8, Rc<Vec<Heard>>> = HashMap::new();
        for op in batch.ops() {
            let who = op.socket_key as usize;
            assert_eq!(self.clients[who].conn, Some(op.conn));
            for buf in batch.bufs(op) {
                let heard = read.entry(buf.as_ptr()).or_insert_with(|| Rc::new(parse(buf))).clone();
                heard.iter().for_each(|heard| self.hear(who, heard));
            }
        }
        batch.finish();
        self.nodes[node].towers[tower].batch = batch;
        true
    }

    fn hear(&mut self, who: usize, heard: &Heard) {
        let (now_ms, ledger) = (self.now_ms, &self.ledger);
        let client = &mut self.clients[who];
        let (node, life) = (client.node, client.life);
        match heard {
            Heard::Message { topic, number } => {
                ledger.hear(ear_of(client, topic), life, node, topic, *number);
            }
            Heard::Lost { topic, count } => ear_of(client, topic).told += count,
            Heard::Joined { id, room } => {
                if client.rooms.iter().any(|(known, last)| known == room && last == id) {
                    let topic: Rc<str> = format!("r:{room}").into();
                    ledger.owe(ear_of(client, &topic), &topic);
                }
            }
            Heard::Refused { id } => client.rooms.retain(|(_, last)| last != id),
            Heard::Reconnect { after_ms } => client.back_at_ms = Some(now_ms + after_ms),
            Heard::Ping => self.say(who, 10, b""),
            Heard::Close => self.say(who, 8, &1000u16.to_be_bytes()),
            Heard::Other => {}
        }
    }

    /// The first who has something to say says it, if its shard reads now.
    pub fn read(&mut self) -> bool {
        let Some(who) = self.talkers.pop_front() else { return false };
        let client = &mut self.clients[who];
        let Some(conn) = client.conn else { return true }; // It has gone meanwhile.
        let (node, tower) = (client.node, client.tower);
        let shard = &mut self.nodes[node].towers[tower].shard;
        let is_full = shard.frames_waiting() >= self.limits.downlink_items_max;
        let is_not_read = shard.is_handshaking(conn) || shard.is_paused(conn);
        if shard.uplink_waiting() > 0 || is_full || is_not_read {
            self.talkers.push_back(who);
            return false;
        }
        let rest = shard.handle_rest(conn);
        if rest.used_bytes > 0 || rest.is_paused {
            self.talkers.push_back(who);
            self.visit(node, tower);
        } else if let Some(mut frame) = client.up.pop_front() {
            shard.handle_read(conn, &mut frame);
            self.visit(node, tower);
        }
        true
    }

    /// One turn of a node's backplane thread.
    pub fn turn(&mut self, at: usize) -> bool {
        let now = self.now();
        let (moved, sent) = self.nodes[at].turn(now, &mut self.redis);
        sent.into_iter().for_each(|sent| self.carry_out(at, sent));
        moved
    }

    fn carry_out(&mut self, from: usize, sent: Sent) {
        let (channel, listeners) = self.redis.publish(&sent.channel);
        let number = number_in(&sent.body);
        let (mut reached, mut cut_off) = (Nodes::default(), Nodes::default());
        for node in 0..self.nodes.len() {
            if !self.nodes[node].is_up() {
                cut_off.add(node);
            }
        }
        for node in listeners {
            reached.add(node);
            let link = self.nodes[node].link.as_mut().expect("who listens is connected");
            let (channel, body) = (channel.clone(), sent.body.clone());
            link.pushes.push_back(Push::Message { channel, body, number });
        }
        self.ledger.carry_out(number, &sent.topic, reached, cut_off);
        if let Some(link) = &mut self.nodes[from].link {
            link.done.push_back(sent.done);
        }
    }

    // --- what goes wrong ---

    /// A node's connection to Redis is lost.
    pub fn break_link(&mut self, at: usize) {
        let now = self.now();
        for number in self.nodes[at].go_down(now) {
            self.ledger.lose(number, at);
        }
        self.redis.lose(at);
    }

    /// A node dies, and everybody's sockets on it.
    pub fn kill(&mut self, at: usize) -> Vec<usize> {
        self.break_link(at);
        self.alive[at] = false;
        let here = |client: &Client| client.conn.is_some() && client.node == at;
        let whose: Vec<usize> =
            (0..self.clients.len()).filter(|who| here(&self.clients[*who])).collect();
        whose.iter().for_each(|who| self.clients[*who].conn = None);
        whose
    }

    /// A node is told to end: its clients are sent away over that time.
    pub fn drain(&mut self, at: usize, over_ms: u64) {
        self.alive[at] = false;
        let now_ms = self.now_ms;
        for it in &mut self.nodes[at].towers {
            it.shard.handle_downlink(Downlink::Drain { over_ms }, now_ms);
        }
    }

    // --- all together ---

    /// Moves everything but the clock until nothing moves.
    pub fn run(&mut self) {
        loop {
            let mut moved = false;
            for _ in 0..self.talkers.len() {
                moved |= self.read();
            }
            for at in 0..self.nodes.len() {
                if self.alive[at] || self.nodes[at].link.is_some() {
                    moved |= self.turn(at);
                    for tower in 0..self.nodes[at].towers.len() {
                        while self.visit(at, tower) {
                            moved = true;
                        }
                    }
                }
            }
            if !moved {
                return;
            }
        }
    }

    /// Time passes by one tick: handshakes end, those who wait for their time come again.
    pub fn tick(&mut self) {
        self.now_ms += TICK_MS;
        let now_ms = self.now_ms;
        for _ in 0..self.opening.len() {
            let who = self.opening.pop_front().expect("counted above");
            self.open(who);
        }
        for who in 0..self.clients.len() {
            let client = &self.clients[who];
            if client.conn.is_some() || client.back_at_ms.is_none_or(|at_ms| at_ms > now_ms) {
                continue;
            }
            let place = self.choose();
            if self.knock(who, place) {
                self.opening.push_back(who);
            } else {
                // HTTP 503 with Retry-After, and a client that spreads itself.
                let wait_ms = 1000 + self.rng.below(1000) as u64;
                self.clients[who].back_at_ms = Some(now_ms + wait_ms);
            }
        }
        for at in 0..self.nodes.len() {
            for it in &mut self.nodes[at].towers {
                it.shard.handle_timeout(now_ms);
            }
        }
        self.run();
    }

    /// Every member heard everything once and in order, or was told; and every list agrees.
    pub fn judge(&mut self) {
        for client in self.clients.iter_mut() {
            if client.conn.is_some() {
                for (topic, ear) in &mut client.ears {
                    self.ledger.judge(ear, client.life, client.node, topic);
                }
            }
        }
        #[cfg(debug_assertions)]
        self.nodes.iter().flat_map(|node| &node.towers).for_each(|it| it.shard.check());
    }
}

fn ear_of<'a>(client: &'a mut Client, topic: &Rc<str>) -> &'a mut Ear {
    let at = client.ears.iter().position(|(known, _)| known == topic).unwrap_or_else(|| {
        client.ears.push((topic.clone(), Ear::default()));
        client.ears.len() - 1
    });
    &mut client.ears[at].1
}

/// The number in a payload: the last thing in an envelope.
fn number_in(body: &[u8]) -> usize {
    let text = String::from_utf8_lossy(body);
    let (_, number) = text.rsplit_once(r#"{"n":"#).expect("every payload has a number");
    number.trim_end_matches('}').parse().expect("a number")
}

/// What a buffer says: whole frames, after an HTTP answer perhaps.
fn parse(buf: &[u8]) -> Vec<Heard> {
    let mut rest = buf.strip_prefix(HEAD).unwrap_or(buf);
    let mut heard = Vec::new();
    while let [first, second, after @ ..] = rest {
        let (head, len) = match second {
            126 => (2, usize::from(u16::from_be_bytes([after[0], after[1]]))),
            127 => panic!("nothing so long is said here"),
            len => (0, usize::from(*len)),
        };
        let payload = &after[head..head + len];
        heard.push(match first & 15 {
            1 => understand(payload),
            8 => Heard::Close,
            9 => Heard::Ping,
            _ => Heard::Other,
        });
        rest = &after[head + len..];
    }
    heard
}

fn understand(payload: &[u8]) -> Heard {
    let json: Value = serde_json::from_slice(payload).expect("text is JSON");
    let topic = || -> Rc<str> {
        match (json["room_id"].as_str(), json["target_user_id"].as_str()) {
            (Some(room), _) => format!("r:{room}").into(),
            (_, Some(user)) => format!("u:{user}").into(),
            _ => "*".into(),
        }
    };
    let number = |value: &Value| value.as_u64().expect("a number");
    match json["type"].as_str() {
        Some("message") => {
            Heard::Message { topic: topic(), number: number(&json["payload"]["n"]) as usize }
        }
        Some("lost") => Heard::Lost { topic: topic(), count: number(&json["count"]) },
        Some("ok") => match json["room_id"].as_str() {
            Some(room) => {
                Heard::Joined { id: json["id"].as_u64().unwrap_or(0), room: room.to_owned() }
            }
            None => Heard::Other,
        },
        Some("error") => Heard::Refused { id: json["id"].as_u64().unwrap_or(u64::MAX) },
        Some("reconnect") => Heard::Reconnect { after_ms: number(&json["after_ms"]) },
        _ => Heard::Other,
    }
}
