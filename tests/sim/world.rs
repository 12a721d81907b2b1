//! Everything together: shards, clients, wires, a clock, and the backplane between the shards.
//!
//! A visit to a shard is what `net/reactor.rs` makes of it: tell, then drain (window, one batch,
//! closed sockets, window again). Every visit ends with [`Shard::check`] and a look at the limits.
//! Bytes travel in pieces of random size; a socket takes what its buffer has room for, or less.

use crate::backplane::{Backplane, Window};
use crate::history::{Fate, Heard, History, Life, Sent, Step};
use crate::kept::node::Node;
use crate::peer::{Frame, HEAD, Peer, client_frame};
use crate::rng::Rng;
use bytes::Bytes;
use campanile::auth::{AnonymousSecret, Identity};
use campanile::ids::{ConnId, NodeId, ShardId, TopicId};
use campanile::link::{Downlink, Uplink};
use campanile::policy::limits::Limits;
use campanile::policy::namespaces::Namespaces;
use campanile::policy::rights::Rights;
use campanile::protocol::dialect::{Dialect, Encoding};
use campanile::shard::conn::CloseReason;
use campanile::shard::delivery::batch::SendBatch;
use campanile::shard::{ClosedSocket, Opening, Shard, ShardConfig};
use serde_json::Value;
use std::collections::VecDeque;
use std::sync::Arc;

pub const ALL_RIGHTS: Rights =
    Rights { publish: true, publish_unjoined: false, send: true, broadcast: true };

/// One shard and what its thread keeps beside it.
pub struct Tower {
    pub shard: Shard,
    pub batch: SendBatch,
    /// Deliveries taken whose writes are not all made.
    pending: Vec<usize>,
    /// How many writes each visit made, since somebody last asked.
    pub writes: Vec<usize>,
    pub biggest_write_bytes: usize,
}

/// A client and its socket, both ends.
pub struct Client {
    pub tower: usize,
    pub conn: Option<ConnId>,
    peer: Peer,
    pub up: VecDeque<u8>,
    down: VecDeque<u8>,
    /// What its socket buffers.
    pub down_max: usize,
    /// Bytes it reads in a turn.
    pub pace: usize,
    /// It has closed its half.
    up_ended: bool,
    up_end_read: bool,
    /// It has closed all of it: writes fail.
    broken: bool,
    /// The server has closed its half, or all.
    pub half_closed: bool,
    pub gone: bool,
    pub answers_pings: bool,
    pub answers_close: bool,
    pub frames: Vec<Frame>,
    /// Texts and when they were heard, for who keeps tapes (`kept/`).
    pub texts: Vec<(Step, Value)>,
    /// When it heard each ping.
    pub pings_ms: Vec<u64>,
    pub said_goodbye: bool,
    next_id: u64,
}

impl Tower {
    fn new(at: usize, node: usize, limits: Limits, namespaces: Arc<Namespaces>) -> Tower {
        let config = ShardConfig {
            id: ShardId(at as u16),
            node: NodeId(node as u64),
            node_name: format!("node-{node}"),
            limits,
            namespaces,
            anonymous_secret: AnonymousSecret::new([0; 16]),
        };
        Tower {
            shard: Shard::new(config),
            batch: SendBatch::default(),
            pending: Vec::new(),
            writes: Vec::new(),
            biggest_write_bytes: 0,
        }
    }
}

pub struct World {
    pub now_ms: u64,
    pub limits: Limits,
    pub rng: Rng,
    pub towers: Vec<Tower>,
    pub windows: Vec<Window>,
    pub clients: Vec<Client>,
    pub backplane: Backplane,
    /// The real backplane of a node that is alone. With it, the naive one has nothing to do.
    pub node: Option<Node>,
    pub lives: Vec<Life>,
    /// While set, the backplane does nothing.
    pub backplane_sleeps: bool,
    step: Step,
}

impl World {
    /// `shards` on each of `nodes` nodes, and the naive backplane.
    pub fn new(seed: u64, nodes: usize, shards: usize, limits: Limits) -> World {
        World::ruled(seed, nodes, shards, limits, "")
    }

    /// The same, with rooms of these namespaces.
    pub fn ruled(
        seed: u64,
        nodes: usize,
        shards: usize,
        limits: Limits,
        namespaces: &str,
    ) -> World {
        let namespaces = Arc::new(Namespaces::read(namespaces).expect("namespaces of a story"));
        let tower = |at| Tower::new(at, at / shards, limits, namespaces.clone());
        let towers = (0..nodes * shards).map(tower);
        let mut world = World::build(seed, nodes * shards, limits, towers, |at| at / shards);
        (0..nodes * shards).for_each(|at| world.visit(at, |_| ()));
        world
    }

    /// One node that is alone, with its real backplane and rooms that have a history.
    pub fn kept(seed: u64, shards: usize, limits: Limits, spaces: Arc<Namespaces>) -> World {
        let tower = |at| Tower::new(at, 0, limits, spaces.clone());
        let mut world = World::build(seed, shards, limits, (0..shards).map(tower), |_| 0);
        world.node = Some(Node::new(shards, limits, spaces.clone()));
        (0..shards).for_each(|at| world.visit(at, |_| ()));
        world
    }

    fn build(
        seed: u64,
        shards: usize,
        limits: Limits,
        towers: impl Iterator<Item = Tower>,
        node_of: impl Fn(usize) -> usize,
    ) -> World {
        let (up_max, down_max) = (limits.uplink_items_max, limits.downlink_items_max);
        let windows: Vec<_> =
            (0..shards).map(|at| Window::new(node_of(at), up_max, down_max)).collect();
        let nodes = windows.last().map_or(0, |window| window.node + 1);
        World {
            now_ms: 0,
            limits,
            rng: Rng::new(seed),
            towers: towers.collect(),
            windows,
            clients: Vec::new(),
            backplane: Backplane::new(nodes),
            node: None,
            lives: Vec::new(),
            backplane_sleeps: false,
            step: 1,
        }
    }

    /// The node dies and another process takes its place. All sockets are gone, and all that was
    /// kept.
    pub fn restart(&mut self, spaces: Arc<Namespaces>) {
        for who in 0..self.clients.len() {
            if self.clients[who].conn.take().is_some() {
                self.end_of_socket(who);
            }
        }
        let (shards, limits) = (self.towers.len(), self.limits);
        self.towers = (0..shards).map(|at| Tower::new(at, 0, limits, spaces.clone())).collect();
        self.node = Some(Node::new(shards, limits, spaces));
        (0..shards).for_each(|at| self.visit(at, |_| ()));
    }

    /// One shard with tiny limits, at rest.
    pub fn tiny() -> World {
        World::with(Limits::TINY)
    }

    /// One shard, at rest.
    pub fn with(limits: Limits) -> World {
        let mut world = World::new(1, 1, 1, limits);
        world.run();
        world
    }

    /// Everything that has happened, for the judge.
    pub fn history(&self) -> History {
        History { lives: self.lives.clone(), said: self.backplane.said.clone() }
    }

    // --- clients ---

    /// A socket is accepted, nothing is said yet.
    pub fn knock(&mut self, tower: usize) -> usize {
        let who = self.clients.len();
        self.clients.push(Client {
            tower,
            conn: None,
            peer: Peer::default(),
            up: VecDeque::new(),
            down: VecDeque::new(),
            down_max: 1 << 20,
            pace: usize::MAX,
            up_ended: false,
            up_end_read: false,
            broken: false,
            half_closed: false,
            gone: false,
            answers_pings: true,
            answers_close: true,
            frames: Vec::new(),
            texts: Vec::new(),
            pings_ms: Vec::new(),
            said_goodbye: false,
            next_id: 1,
        });
        self.lives.push(Life { tower, ..Life::default() });
        let now_ms = self.now_ms;
        let conn = self.visit(tower, |shard| shard.handle_accept(who as u32, now_ms));
        self.clients[who].conn = conn;
        if conn.is_none() {
            self.end_of_socket(who);
        }
        who
    }

    /// The handshake of a client that knocked succeeds.
    pub fn open(&mut self, who: usize, user: Option<&str>, rooms: &[&str], encoding: Encoding) {
        let Some(conn) = self.clients[who].conn else { return };
        let tower = self.clients[who].tower;
        if !self.towers[tower].shard.is_handshaking(conn) {
            return;
        }
        self.lives[who].rooms = rooms.iter().map(|room| room.to_string()).collect();
        self.clients[who].peer.is_echo = encoding.dialect() == Dialect::Echo;
        let opening = Opening {
            identity: Identity {
                user: user.map(Into::into),
                rights: ALL_RIGHTS,
                expires_unix_s: None,
                grants: None,
                info: None,
                mark: None,
            },
            response: Bytes::from_static(HEAD),
            rooms: self.lives[who].rooms.clone(),
            encoding,
        };
        self.visit(tower, |shard| shard.handle_open(conn, opening));
    }

    /// A client of the first shard, at rest.
    pub fn connect(&mut self, user: &str) -> usize {
        self.connect_to(0, user, &[])
    }

    pub fn connect_to(&mut self, tower: usize, user: &str, rooms: &[&str]) -> usize {
        let who = self.knock(tower);
        self.open(who, (!user.is_empty()).then_some(user), rooms, Encoding::NATIVE);
        self.run();
        who
    }

    pub fn connect_echo(&mut self) -> usize {
        let who = self.knock(0);
        self.open(who, None, &[], Encoding::of(Dialect::Echo));
        self.run();
        who
    }

    /// Bytes leave a client. Nothing is noted: see the `send_*` below for what the judge looks at.
    pub fn send_bytes(&mut self, who: usize, bytes: &[u8]) {
        self.clients[who].up.extend(bytes);
    }

    /// A frame leaves a client.
    pub fn send_frame(&mut self, who: usize, fin: bool, opcode: u8, payload: &[u8]) {
        let key = (self.rng.next() as u32).to_be_bytes();
        self.send_bytes(who, &client_frame(fin, opcode, payload, key));
    }

    pub fn send_text(&mut self, who: usize, text: &str) {
        self.send_frame(who, true, 1, text.as_bytes());
    }

    fn note(&mut self, who: usize, sent: Sent) {
        let step = self.tick_step();
        self.lives[who].sent.push((step, sent));
    }

    fn new_id(&mut self, who: usize) -> u64 {
        self.clients[who].next_id += 1;
        self.clients[who].next_id
    }

    pub fn send_join(&mut self, who: usize, room: &str) -> u64 {
        let id = self.new_id(who);
        self.note(who, Sent::Join { id, room: room.to_owned() });
        self.send_text(who, &format!(r#"{{"type":"join","room_id":"{room}","id":{id}}}"#));
        id
    }

    pub fn send_leave(&mut self, who: usize, room: &str) -> u64 {
        let id = self.new_id(who);
        self.note(who, Sent::Leave { id, room: room.to_owned() });
        self.send_text(who, &format!(r#"{{"type":"leave","room_id":"{room}","id":{id}}}"#));
        id
    }

    /// A request that only wants an answer.
    pub fn send_other(&mut self, who: usize, request: &str) -> u64 {
        let id = self.new_id(who);
        self.note(who, Sent::Other { id });
        self.send_text(who, &format!(r#"{{{request},"id":{id}}}"#));
        id
    }

    /// A message for `topic` (`r:…`, `u:…` or `*`), of about `bytes`; answers its number.
    pub fn send_message(&mut self, who: usize, topic: &str, say: Say) -> u64 {
        let number = self.new_id(who);
        let id = say.wants_ack.then_some(number);
        let topic_owned = topic.to_owned();
        self.note(who, Sent::Publish { id, topic: topic_owned, number, echo: say.echo });
        let to = match topic.split_at(topic.len().min(2)) {
            ("r:", room) => format!(r#""type":"publish","room_id":"{room}","echo":{}"#, say.echo),
            ("u:", user) => format!(r#""target_user_id":"{user}""#),
            _ => r#""type":"broadcast""#.to_owned(),
        };
        let id = id.map(|id| format!(r#","id":{id}"#)).unwrap_or_default();
        let pad = "x".repeat(say.bytes);
        let payload = format!(r#"{{"by":{who},"n":{number},"pad":"{pad}"}}"#);
        self.send_text(who, &format!(r#"{{{to}{id},"payload":{payload}}}"#));
        number
    }

    /// A plain message to a room, with all that comes of it.
    pub fn publish(&mut self, who: usize, room: &str) -> u64 {
        let number = self.send_message(who, &format!("r:{room}"), Say::default());
        self.run();
        number
    }

    pub fn join(&mut self, who: usize, room: &str) {
        self.send_join(who, room);
        self.run();
    }

    pub fn leave(&mut self, who: usize, room: &str) {
        self.send_leave(who, room);
        self.run();
    }

    /// A close frame.
    pub fn send_close(&mut self, who: usize) {
        self.say_goodbye(who);
        self.send_frame(who, true, 8, &1000u16.to_be_bytes());
    }

    /// The judge owes it nothing from here on.
    pub fn say_goodbye(&mut self, who: usize) {
        if !std::mem::replace(&mut self.clients[who].said_goodbye, true) {
            self.note(who, Sent::Goodbye);
        }
    }

    /// Its half of the socket ends.
    pub fn end_up(&mut self, who: usize) {
        self.say_goodbye(who);
        self.clients[who].up_ended = true;
    }

    /// Its machine is gone: nothing is read, writes fail.
    pub fn vanish(&mut self, who: usize) {
        self.end_up(who);
        let client = &mut self.clients[who];
        client.broken = true;
        client.down.clear();
    }

    /// Frames heard since the last call.
    pub fn heard(&mut self, who: usize) -> Vec<Frame> {
        std::mem::take(&mut self.clients[who].frames)
    }

    /// The texts among them, each as `type` and what matters most of it.
    pub fn heard_texts(&mut self, who: usize) -> Vec<String> {
        self.heard(who).iter().filter_map(brief).collect()
    }

    /// The number of each message heard since the last call.
    pub fn heard_numbers(&mut self, who: usize) -> Vec<u64> {
        let number = |frame: &Frame| match frame {
            Frame::Text(json) if json["type"] == "message" => json["payload"]["n"].as_u64(),
            _ => None,
        };
        self.heard(who).iter().filter_map(number).collect()
    }

    pub fn close_code(&self, who: usize) -> Option<u16> {
        self.clients[who].frames.iter().find_map(|frame| match frame {
            Frame::Close(code, _) => Some(*code),
            _ => None,
        })
    }

    // --- the shard's thread ---

    /// Tells a shard something, then drains it as `net/reactor.rs` does.
    pub fn visit<R>(&mut self, at: usize, tell: impl FnOnce(&mut Shard) -> R) -> R {
        let answer = tell(&mut self.towers[at].shard);
        self.tell_connections(at);
        self.drain_uplink(at);
        let tower = &mut self.towers[at];
        let mut batch = std::mem::take(&mut tower.batch);
        tower.shard.take_batch(&mut batch);
        if !batch.is_empty() {
            tower.writes.push(batch.ops().len());
            assert!(batch.ops().len() <= self.limits.send_batch_max, "a batch has its limit");
            self.write(at, &batch);
        }
        batch.finish();
        self.towers[at].batch = batch;
        while let Some(closed) = self.towers[at].shard.poll_closed() {
            self.close(closed);
        }
        self.drain_uplink(at);
        // Whoever may be read is asked by [`World::read`].
        while let Some(conn) = self.towers[at].shard.poll_resumed() {
            let _ = self.towers[at].shard.begin_reading(conn);
        }
        self.after_visit(at);
        answer
    }

    /// Who a broadcast is for.
    fn tell_connections(&mut self, at: usize) {
        let shard = &self.towers[at].shard;
        match &self.node {
            Some(node) => {
                for encoding in Encoding::ALL {
                    let open = shard.broadcast_receivers(encoding);
                    node.ends[at].connections.set(encoding, open);
                }
            }
            None => {
                self.windows[at].hears_broadcasts = shard.broadcast_receivers(Encoding::NATIVE) > 0
            }
        }
    }

    fn drain_uplink(&mut self, at: usize) {
        let (shard, window) = (&mut self.towers[at].shard, &mut self.windows[at]);
        while let Some(item) = shard.poll_uplink() {
            if let Some(node) = &self.node {
                if let Err(item) = node.ends[at].try_send(item) {
                    return shard.return_uplink(item);
                }
                continue;
            }
            if window.up.len() >= window.up_max {
                return shard.return_uplink(item);
            }
            window.up.push_back(item);
        }
    }

    fn write(&mut self, at: usize, batch: &SendBatch) {
        let mut seen = std::collections::HashSet::new();
        for op in batch.ops() {
            assert!(seen.insert(op.socket_key), "a connection stands twice in a batch");
            let bytes: Vec<u8> = batch.bufs(op).flatten().copied().collect();
            let biggest = batch.bufs(op).map(|buf| buf.len()).max().unwrap_or(0);
            let client = &mut self.clients[op.socket_key as usize];
            assert!(!client.gone && !client.half_closed, "a write after the end");
            assert_eq!((client.tower, client.conn), (at, Some(op.conn)));
            let tower = &mut self.towers[at];
            tower.biggest_write_bytes = tower.biggest_write_bytes.max(biggest);
            if client.broken {
                tower.shard.handle_write_error(op.conn);
                continue;
            }
            let taken = bytes.len().min(client.room());
            client.down.extend(&bytes[..taken]);
            if taken < bytes.len() {
                tower.shard.handle_short_write(batch, op, taken);
            }
        }
    }

    fn close(&mut self, closed: ClosedSocket) {
        match closed {
            ClosedSocket::Half { socket_key } => {
                let client = &mut self.clients[socket_key as usize];
                assert!(!client.half_closed && !client.gone, "closed once");
                client.half_closed = true;
            }
            ClosedSocket::Whole { socket_key, conn, .. } => {
                let client = &mut self.clients[socket_key as usize];
                assert_eq!(client.conn.map(|conn| conn.0.index), Some(conn.0.index));
                assert!(!client.gone, "gone once");
                client.conn = None;
                self.end_of_socket(socket_key as usize);
            }
        }
    }

    fn end_of_socket(&mut self, who: usize) {
        self.clients[who].gone = true;
        self.clients[who].up.clear();
    }

    fn after_visit(&mut self, at: usize) {
        let step = self.tick_step();
        let limits = self.limits;
        let tower = &mut self.towers[at];
        if !tower.shard.has_sends() {
            for number in tower.pending.drain(..) {
                self.backplane.said[number].fates.insert(at, Fate::Written(step));
            }
        }
        let shard = &mut tower.shard;
        #[cfg(debug_assertions)]
        shard.check();
        shard.measure();
        assert!(shard.connections() <= limits.connections_per_shard_max);
        assert!(shard.counters.handshaking as usize <= limits.handshakes_max);
        assert!(shard.counters.topics as usize <= limits.topics_per_shard_max);
        let members_max = (limits.rooms_per_connection_max + 1) * shard.connections();
        assert!(shard.counters.members as usize <= members_max);
        // A write that was begun is kept whole, and a close frame always finds room.
        let outbox_bytes_max = limits.outbox_bytes_max.max(tower.biggest_write_bytes) + 127;
        let mut outbox_bytes = 0;
        for client in self.clients.iter().filter(|client| client.tower == at) {
            let Some(conn) = client.conn else { continue };
            let waiting: usize = shard.outbox_slices(conn, usize::MAX).map(<[u8]>::len).sum();
            assert!(waiting <= outbox_bytes_max, "{waiting} bytes wait for one connection");
            outbox_bytes += waiting;
        }
        assert_eq!(shard.counters.outbox_bytes, outbox_bytes as u64);
    }

    /// Reads a piece of at most `max` bytes from a client. Answers whether there was anything.
    pub fn read(&mut self, who: usize, max: usize) -> bool {
        let client = &mut self.clients[who];
        let (tower, Some(conn)) = (client.tower, client.conn) else { return false };
        let shard = &self.towers[tower].shard;
        let has_room = shard.frames_waiting() < self.limits.downlink_items_max;
        if shard.uplink_waiting() > 0 || !has_room {
            return false;
        }
        if shard.is_paused(conn) {
            if client.broken {
                self.visit(tower, |shard| shard.handle_peer_gone(conn, CloseReason::Gone));
                return true;
            }
            return false;
        }
        let used = self.towers[tower].shard.handle_rest(conn);
        if used.used_bytes > 0 || used.is_paused {
            self.visit(tower, |_| ());
            return true;
        }
        let client = &mut self.clients[who];
        let taken = client.up.len().min(max.max(1));
        if taken > 0 {
            let mut bytes: Vec<u8> = client.up.drain(..taken).collect();
            if !self.towers[tower].shard.is_handshaking(conn) {
                self.visit(tower, |shard| shard.handle_read(conn, &mut bytes));
            }
            return true;
        }
        if client.up_ended && !std::mem::replace(&mut client.up_end_read, true) {
            self.visit(tower, |shard| shard.handle_eof(conn));
            return true;
        }
        false
    }

    /// Writes what waits in a client's outbox, as far as its socket takes it.
    pub fn flush(&mut self, who: usize) -> bool {
        let client = &mut self.clients[who];
        let (tower, Some(conn)) = (client.tower, client.conn) else { return false };
        let slices = self.towers[tower].shard.outbox_slices(conn, 64);
        let bytes: Vec<u8> = slices.flatten().copied().collect();
        let taken = bytes.len().min(client.room());
        if client.broken && !bytes.is_empty() {
            self.visit(tower, |shard| shard.handle_peer_gone(conn, CloseReason::Io));
            return true;
        }
        if taken > 0 {
            client.down.extend(&bytes[..taken]);
            self.visit(tower, |shard| shard.handle_flushed(conn, taken));
        }
        taken > 0
    }

    /// Takes one item from the window, unless much waits to be written.
    pub fn take_downlink(&mut self, at: usize) -> bool {
        if self.towers[at].shard.frames_waiting() >= self.limits.downlink_items_max {
            return false;
        }
        let Some((item, number)) = self.pop_downlink(at) else { return false };
        self.towers[at].pending.extend(number);
        let now_ms = self.now_ms;
        let stale = self.towers[at].shard.counters.dropped_stale;
        self.visit(at, |shard| shard.handle_downlink(item, now_ms));
        let is_stale = self.towers[at].shard.counters.dropped_stale > stale;
        if let Some(number) = number.filter(|_| is_stale) {
            // It named members who have all left: on this shard nobody listened.
            self.backplane.said[number].fates.remove(&at);
            self.towers[at].pending.retain(|pending| *pending != number);
        }
        true
    }

    pub fn pop_downlink(&mut self, at: usize) -> Option<(Downlink, Option<usize>)> {
        match &self.node {
            Some(node) => node.ends[at].try_recv().map(|item| (item, None)),
            None => self.windows[at].down.pop_front(),
        }
    }

    /// Takes all that is in the window, in one visit.
    pub fn take_downlinks(&mut self, at: usize) {
        let items: Vec<_> = std::iter::from_fn(|| self.pop_downlink(at)).collect();
        self.towers[at].pending.extend(items.iter().filter_map(|(_, number)| *number));
        let now_ms = self.now_ms;
        self.visit(at, |shard| {
            for (item, _) in items {
                shard.handle_downlink(item, now_ms);
            }
        });
    }

    /// One batch, if there is something to write.
    pub fn write_on(&mut self, at: usize) -> bool {
        let has_sends = self.towers[at].shard.has_sends();
        if has_sends {
            self.visit(at, |_| ());
        }
        has_sends
    }

    /// Time passes, in ticks of at most 100 ms, with everything that comes of it.
    pub fn pass(&mut self, ms: u64) {
        let end_ms = self.now_ms + ms;
        while self.now_ms < end_ms {
            self.now_ms = end_ms.min(self.now_ms + 100);
            self.tick();
            self.run();
        }
    }

    /// Tells every shard the time.
    pub fn tick(&mut self) {
        let now_ms = self.now_ms;
        for at in 0..self.towers.len() {
            self.visit(at, |shard| {
                shard.handle_timeout(now_ms);
                while let Some(conn) = shard.poll_timed_out() {
                    shard.counters.refused_timeout += 1;
                    shard.handle_http(conn, Bytes::from_static(HEAD), now_ms);
                }
            });
        }
    }

    // --- everybody else ---

    /// A client reads what its pace allows, and reacts.
    pub fn client_turn(&mut self, who: usize) -> bool {
        let step = self.tick_step();
        let client = &mut self.clients[who];
        let taken = client.down.len().min(client.pace);
        let bytes: Vec<u8> = client.down.drain(..taken).collect();
        let frames = client.peer.hear(&bytes);
        for frame in frames {
            self.react(who, &frame);
            self.lives[who].heard.extend(heard(&frame).map(|heard| (step, heard)));
            if let Frame::Text(json) = &frame {
                if json["type"] == "welcome" {
                    self.lives[who].user = json["user_id"].as_str().expect("a name").to_owned();
                }
                if self.node.is_some() {
                    self.clients[who].texts.push((step, json.clone()));
                }
            }
            self.clients[who].frames.push(frame);
        }
        let ended = self.clients[who].hears_the_end();
        if ended {
            // Our half ends when theirs has; and whatever was cut off is not coming.
            self.lives[who].heard.push((step, Heard::End));
            self.clients[who].up_ended = true;
            self.clients[who].said_goodbye = true;
        }
        taken > 0 || ended
    }

    fn react(&mut self, who: usize, frame: &Frame) {
        let client = &self.clients[who];
        match frame {
            Frame::Ping(payload) => {
                let now_ms = self.now_ms;
                self.clients[who].pings_ms.push(now_ms);
                if self.clients[who].answers_pings {
                    self.send_frame(who, true, 10, payload);
                }
            }
            Frame::Close(code, _) if client.answers_close && !client.said_goodbye => {
                self.say_goodbye(who);
                self.send_frame(who, true, 8, &code.to_be_bytes());
            }
            _ => {}
        }
    }

    /// Moves everything but the clock until nothing moves.
    pub fn run(&mut self) {
        loop {
            let mut moved = false;
            for at in 0..self.towers.len() {
                while self.backplane_turn(at) {
                    moved = true;
                }
                moved |= self.take_downlink(at);
                while self.write_on(at) {
                    moved = true;
                }
            }
            for who in 0..self.clients.len() {
                let piece = self.rng.below(64) + 1;
                moved |= self.read(who, piece);
                moved |= self.flush(who);
                moved |= self.client_turn(who);
            }
            if !moved {
                return;
            }
        }
    }

    /// One step of everything the backplane has to do for a shard.
    pub fn backplane_turn(&mut self, at: usize) -> bool {
        if self.backplane_sleeps {
            return false;
        }
        let taken = self.take_uplink(at);
        if let Some(node) = &mut self.node {
            return node.poll(self.now_ms) | taken;
        }
        let step = self.tick_step();
        let windows = &mut self.windows;
        let node = windows[at].node;
        let confirmed = self.backplane.confirm(windows, at);
        let delivered = self.backplane.deliver(windows, node, step);
        windows[at].push_waiting() | taken | confirmed | delivered
    }

    /// The backplane takes something from a shard, which then has room for what waits in the shard.
    fn take_uplink(&mut self, at: usize) -> bool {
        let now_ms = self.now_ms;
        let taken = match &mut self.node {
            Some(node) => node.take(at, usize::MAX, now_ms),
            None => {
                let (luck, step) = (self.rng.next(), self.tick_step());
                self.backplane.take(&mut self.windows, at, luck, step)
            }
        };
        let waiting = self.towers[at].shard.uplink_waiting();
        if waiting > 0 {
            self.visit(at, |_| ());
        }
        taken || self.towers[at].shard.uplink_waiting() < waiting
    }

    /// Puts something into the window of a shard from outside.
    pub fn say_down(&mut self, at: usize, item: Downlink) {
        self.windows[at].down.push_back((item, None));
    }

    /// The key under which a shard listens for a topic.
    pub fn topic_id(&self, at: usize, topic: &str) -> TopicId {
        let members = &self.backplane.interest[topic];
        members.iter().find(|(window, _)| *window == at).expect("the shard listens").1
    }

    /// Topics the backplane listens for, without that of everybody.
    pub fn listened_for(&self) -> Vec<&str> {
        self.backplane.interest.keys().map(|topic| &topic[..]).filter(|t| *t != "*").collect()
    }

    pub fn tick_step(&mut self) -> Step {
        self.step += 1;
        self.step
    }

    /// Items that wait in a shard's window for the backplane, as names.
    pub fn up(&self, at: usize) -> Vec<String> {
        let name = |item: &Uplink| match item {
            Uplink::Join { topic, .. } => format!("join {topic:?}"),
            Uplink::Leave { topic, .. } => format!("leave {topic:?}"),
            Uplink::Publish(publish) => format!("publish {:?}", publish.topic),
            Uplink::Recover(ask) => format!("recover {:?}", ask.topic),
            Uplink::History(ask) => format!("history {:?}", ask.topic),
            Uplink::PresenceUpdate(attend) => format!("attend {:?}", attend.topic),
            Uplink::Presence(ask) => format!("presence {:?}", ask.topic),
            Uplink::Disconnect(ask) => format!("disconnect {:?}", ask.topic),
            Uplink::Revoke(order) => format!("revoke {:?}", order.revocation.subject),
            Uplink::Settle => "settle".to_owned(),
            Uplink::Acknowledge { topic, .. } => format!("acknowledge {topic:?}"),
        };
        self.windows[at].up.iter().map(name).collect()
    }
}

/// How a message is sent.
#[derive(Clone, Copy)]
pub struct Say {
    pub echo: bool,
    pub wants_ack: bool,
    pub bytes: usize,
}

impl Default for Say {
    fn default() -> Say {
        Say { echo: true, wants_ack: false, bytes: 0 }
    }
}

impl Client {
    /// What its socket still takes.
    fn room(&self) -> usize {
        self.down_max.saturating_sub(self.down.len())
    }

    fn hears_the_end(&mut self) -> bool {
        let server_ended = self.gone || self.half_closed;
        server_ended && self.down.is_empty() && !self.broken && !self.up_ended
    }

    /// Whether there is anything left that may happen to it.
    pub fn is_here(&self) -> bool {
        !self.gone || !self.down.is_empty()
    }

    /// Whether it waits in the middle of a frame.
    pub fn is_torn(&self) -> bool {
        self.peer.is_torn()
    }
}

fn brief(frame: &Frame) -> Option<String> {
    let Frame::Text(json) = frame else { return None };
    let what = ["code", "room_id", "count"].iter().find(|key| !json[**key].is_null());
    let what = what.map(|key| format!(" {}", json[*key]).replace('"', "")).unwrap_or_default();
    Some(format!("{}{what}", json["type"].as_str().unwrap_or("?")))
}

/// A frame as the judge wants it.
fn heard(frame: &Frame) -> Option<Heard> {
    let json = match frame {
        Frame::Text(json) => json,
        Frame::Close(code, _) => return Some(Heard::Close(*code)),
        _ => return None,
    };
    let text = |key: &str| json[key].as_str().map(str::to_owned);
    let id = json["id"].as_u64();
    let topic = || match (text("room_id"), text("target_user_id")) {
        (Some(room), _) => format!("r:{room}"),
        (_, Some(user)) => format!("u:{user}"),
        _ => {
            assert_eq!(json["broadcast"], Value::Bool(true), "{json}");
            "*".to_owned()
        }
    };
    let number = |value: &Value| value.as_u64().expect("a number");
    Some(match json["type"].as_str().unwrap_or("") {
        "welcome" => Heard::Welcome,
        "ok" => Heard::Ok { id, room: text("room_id") },
        "pong" => Heard::Ok { id, room: None },
        "error" => Heard::Error { id, code: text("code").expect("an error has a code") },
        "lost" => Heard::Lost { topic: topic(), count: number(&json["count"]) },
        "reconnect" => Heard::Reconnect,
        // A story's own payload is not for the judge.
        "message" if json["payload"]["n"].is_null() => return None,
        "message" => Heard::Message {
            topic: topic(),
            from: text("from").expect("a client sent it"),
            by: number(&json["payload"]["by"]) as usize,
            number: number(&json["payload"]["n"]),
        },
        _ => return None, // An echo, or what a story made up.
    })
}
