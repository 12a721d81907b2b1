//! Who uses the system: publishers who repeat themselves until they are answered, and members who come
//! and go and always say where they were.

use crate::checker::{AckedPublish, Entry, Event, Id, LossReport, MessagePosition};
use crate::rng::Rng;
use crate::run_state::{ClientLog, RunState};
use crate::ws_client::{Disconnected, WsClient};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

/// After which a request on a connection that lives is not answered any more. A publish waits at
/// most 10 s for Redis (`limits.publish_queue_ms_max`).
const UNANSWERED: Duration = Duration::from_secs(40);
const GLANCE: Duration = Duration::from_millis(25);
const BATCH_MAX: usize = 8;

pub fn room_name(room: usize) -> String {
    format!("kept:{room}")
}

fn room_number(value: &Value) -> Option<usize> {
    value["room_id"].as_str()?.strip_prefix("kept:")?.parse().ok()
}

fn place(value: &Value) -> Option<MessagePosition> {
    let epoch = value["epoch"].as_str()?.parse().ok()?;
    Some(MessagePosition { epoch, offset: value["offset"].as_u64()? })
}

// --- publishers ---

pub struct Publisher {
    pub who: u64,
    pub run_state: Arc<RunState>,
    pub rng: Rng,
    pub notes: Sender<ClientLog>,
    /// When it gives up. `None`: at the end of the run.
    pub deadline: Option<Instant>,
    line: Option<WsClient>,
    said: u64,
}

/// One that is not acknowledged yet.
struct PendingPublish {
    room: usize,
    text: String,
    sent_us: u64,
}

impl Publisher {
    pub fn new(
        who: u64,
        run_state: Arc<RunState>,
        rng: Rng,
        notes: Sender<ClientLog>,
    ) -> Publisher {
        Publisher { who, run_state, rng, notes, deadline: None, line: None, said: 0 }
    }

    pub fn run(mut self) {
        while !self.run_state.is_over() {
            if self.run_state.is_quiet() {
                self.run_state.rest(10);
                continue;
            }
            self.run_state.busy.fetch_add(1, SeqCst);
            let rooms = self.run_state.acked_sent_us.len();
            let count = 1 + self.rng.below(BATCH_MAX);
            let rooms = (0..count).map(|_| self.rng.below(rooms)).collect::<Vec<_>>();
            self.publish(&rooms);
            self.run_state.busy.fetch_sub(1, SeqCst);
            let ms = self.rng.below(80) as u64;
            self.run_state.rest(ms);
        }
    }

    /// Says something in each of these rooms until each has its `ok`; answers what. Empty: the run
    /// was over before.
    pub fn publish(&mut self, rooms: &[usize]) -> Vec<Id> {
        let mut pending = BTreeMap::new();
        for &room in rooms {
            self.said += 1;
            let id = self.who << 40 | self.said;
            let bytes = if self.rng.chance(2) { 16_000 } else { self.rng.below(600) };
            let text = json!({
                "type": "publish", "room_id": room_name(room), "id": id, "key": format!("{id:x}"),
                "payload": {"id": id, "pad": "x".repeat(bytes)},
            });
            pending.insert(id, PendingPublish { room, text: text.to_string(), sent_us: 0 });
        }
        let ids = pending.keys().copied().collect();
        while !pending.is_empty() && !self.is_late() {
            let line = match self.line.take() {
                Some(line) => Some(line),
                None => self
                    .run_state
                    .port(self.rng.next())
                    .and_then(|port| WsClient::open(port, "/ws").ok()),
            };
            if let Some(mut line) = line
                && self.try_all(&mut line, &mut pending).is_ok()
                && !self.rng.chance(5)
            {
                self.line = Some(line);
            }
            if !pending.is_empty() {
                let ms = 20 + self.rng.below(180) as u64;
                self.run_state.rest(ms);
            }
        }
        if pending.is_empty() { ids } else { Vec::new() }
    }

    fn is_late(&self) -> bool {
        self.run_state.is_over() || self.deadline.is_some_and(|deadline| Instant::now() > deadline)
    }

    /// Sends all that is pending, and hears every answer.
    fn try_all(
        &mut self,
        line: &mut WsClient,
        pending: &mut BTreeMap<Id, PendingPublish>,
    ) -> Result<(), Disconnected> {
        for publish in pending.values_mut() {
            if publish.sent_us == 0 {
                publish.sent_us = self.run_state.now_us();
            }
            line.send(&publish.text)?;
        }
        let mut unanswered = pending.len();
        let began = Instant::now();
        while unanswered > 0 && !self.is_late() {
            if began.elapsed() > UNANSWERED {
                let ids: Vec<_> = pending.keys().collect();
                self.trouble(format!("no answer within {UNANSWERED:?} to one of {ids:x?}"));
                return Err(Disconnected);
            }
            let Some(value) = line.receive(GLANCE)? else { continue };
            let Some(id) = value["id"].as_u64() else { continue };
            unanswered -= 1;
            match value["type"].as_str() {
                Some("ok") => self.on_ok(id, &value, pending),
                Some("error") => self.on_error(&value),
                _ => self.trouble(format!("a publish was answered {value}")),
            }
        }
        Ok(())
    }

    fn on_ok(&self, id: Id, value: &Value, pending: &mut BTreeMap<Id, PendingPublish>) {
        let Some(publish) = pending.remove(&id) else {
            return self.trouble(format!("answered twice: {value}"));
        };
        let Some(at) = place(value) else {
            return self.trouble(format!("an ok without a place: {value}"));
        };
        let PendingPublish { room, sent_us, .. } = publish;
        self.run_state.acked_sent_us[room].fetch_max(sent_us, SeqCst);
        let _ = self.notes.send(ClientLog::AckedPublish(AckedPublish { room, id, at, sent_us }));
    }

    fn on_error(&self, value: &Value) {
        let code = value["code"].as_str().unwrap_or_default();
        if !["backplane_unavailable", "outcome_unknown", "overloaded"].contains(&code) {
            self.trouble(format!("a publish was answered {value}"));
        }
    }

    fn trouble(&self, what: String) {
        let _ = self.notes.send(ClientLog::Trouble(format!("publisher {}: {what}", self.who)));
    }
}

// --- members ---

pub struct Member {
    pub who: usize,
    pub run_state: Arc<RunState>,
    pub rng: Rng,
    pub notes: Sender<ClientLog>,
    /// By room: where it is.
    places: Vec<Option<MessagePosition>>,
    /// By room: what the join under way asked for.
    asked: Vec<Option<PendingJoin>>,
    /// By room: whether this connection has asked to be in.
    came: Vec<bool>,
}

struct PendingJoin {
    since: Option<MessagePosition>,
    at: Instant,
}

impl Member {
    pub fn new(who: usize, run_state: Arc<RunState>, rng: Rng, notes: Sender<ClientLog>) -> Member {
        let rooms = run_state.acked_sent_us.len();
        let (places, asked) = (vec![None; rooms], (0..rooms).map(|_| None).collect());
        Member { who, run_state, rng, notes, places, asked, came: vec![false; rooms] }
    }

    pub fn run(mut self) {
        while !self.run_state.is_over() {
            let port = self.run_state.port(self.rng.next());
            let line = port.and_then(|port| WsClient::open(port, "/ws").ok());
            let Some(mut line) = line else {
                self.run_state.rest(20);
                continue;
            };
            let _ = self.stay(&mut line);
            for room in 0..self.places.len() {
                (self.asked[room], self.came[room]) = (None, false);
                self.log(room, Event::Away);
            }
            drop(line);
            let ms = if self.rng.chance(10) { 3000 } else { 600 };
            let ms = self.rng.below(ms) as u64;
            self.run_state.rest_unless_quiet(ms);
        }
    }

    /// One connection, until it ends or has been long enough. Not all rooms are joined at once: one
    /// that nobody on a node is in is let go of there, and is found anew.
    fn stay(&mut self, line: &mut WsClient) -> Result<(), Disconnected> {
        for room in 0..self.places.len() {
            if self.places[room].is_none() || self.rng.chance(60) {
                self.join(line, room)?;
            }
        }
        let until = Instant::now() + Duration::from_millis(300 + self.rng.below(8000) as u64);
        while !self.run_state.is_over() {
            if Instant::now() > until && !self.run_state.is_quiet() {
                return Ok(());
            }
            if let Some(value) = line.receive(GLANCE)? {
                self.on_value(line, &value)?;
            }
            self.come_into_more(line)?;
            let waited = self.asked.iter().flatten().map(|asked| asked.at.elapsed()).max();
            if waited.is_some_and(|waited| waited > UNANSWERED) && self.all_ready() {
                self.trouble(format!("no answer to a join within {UNANSWERED:?}"));
                return Err(Disconnected);
            }
        }
        Ok(())
    }

    /// One more room now and then; when it is quiet, all of them.
    fn come_into_more(&mut self, line: &mut WsClient) -> Result<(), Disconnected> {
        let is_quiet = self.run_state.is_quiet();
        for room in 0..self.places.len() {
            if !self.came[room] && (is_quiet || self.rng.chance(1)) {
                self.join(line, room)?;
            }
        }
        Ok(())
    }

    fn all_ready(&self) -> bool {
        self.run_state.progress.iter().all(|progress| progress.is_ready.load(SeqCst))
    }

    fn join(&mut self, line: &mut WsClient, room: usize) -> Result<(), Disconnected> {
        let since = self.places[room];
        let mut join = json!({"type": "join", "room_id": room_name(room), "id": room});
        if let Some(MessagePosition { epoch, offset }) = since {
            join["since"] = json!({"epoch": epoch.to_string(), "offset": offset});
        }
        self.asked[room] = Some(PendingJoin { since, at: Instant::now() });
        self.came[room] = true;
        line.send(&join.to_string())
    }

    fn on_value(&mut self, line: &mut WsClient, value: &Value) -> Result<(), Disconnected> {
        match value["type"].as_str() {
            Some("ok") => self.on_ok(value),
            Some("error") => {
                // Such as `overloaded`: come back later.
                let code = value["code"].as_str().unwrap_or_default();
                if !["backplane_unavailable", "overloaded"].contains(&code) {
                    self.trouble(format!("a join was answered {value}"));
                }
                return Err(Disconnected);
            }
            Some("message") => self.on_message(value),
            Some("lost") => {
                let Some(room) = room_number(value) else { return Ok(()) };
                let count = value["count"].as_u64().unwrap_or(0);
                self.log(room, Event::Lost { count });
                // As docs/protocol.md says: join again with `since`. Some do not.
                if self.asked[room].is_none() && (self.run_state.is_quiet() || self.rng.chance(70))
                {
                    self.join(line, room)?;
                }
            }
            Some("reconnect") => return Err(Disconnected),
            _ => {}
        }
        Ok(())
    }

    fn on_ok(&mut self, value: &Value) {
        let asked = value["id"].as_u64().and_then(|room| {
            let room = room as usize;
            Some((room, self.asked.get_mut(room)?.take()?))
        });
        let (Some((room, asked)), Some(at)) = (asked, place(value)) else {
            return self.trouble(format!("an ok that nobody asked for, or no place: {value}"));
        };
        let reports = match (&value["recovered"], asked.since) {
            (Value::Bool(true), Some(since)) => {
                let messages = value["messages"].as_u64().unwrap_or(0);
                if messages == 0 {
                    self.places[room] = Some(at);
                } else {
                    self.places[room] = Some(since);
                }
                LossReport::Recovered { messages }
            }
            (Value::Bool(false), Some(_)) => {
                let messages = value["messages"].as_u64().unwrap_or(0);
                self.places[room] = if messages == 0 { Some(at) } else { asked.since };
                let reason = value["reason"].as_str().unwrap_or_default().to_owned();
                LossReport::NotRecovered { reason, messages }
            }
            (Value::Null, None) => {
                self.places[room] = Some(at);
                LossReport::Fresh
            }
            _ => return self.trouble(format!("asked {:?}, answered {value}", asked.since)),
        };
        self.log(room, Event::Joined { at, since: asked.since, reports });
    }

    fn on_message(&mut self, value: &Value) {
        let Some(room) = room_number(value) else { return };
        let (Some(at), Some(id)) = (place(value), value["payload"]["id"].as_u64()) else {
            return self.trouble(format!("a message without its place or payload: {value}"));
        };
        self.places[room] = Some(at);
        self.run_state.heard_last[self.who][room].store(id, SeqCst);
        self.log(room, Event::Heard { at, id });
    }

    fn log(&self, room: usize, event: Event) {
        let entry = Entry { at_us: self.run_state.now_us(), room, event };
        let _ = self.notes.send(ClientLog::Member { who: self.who, entry });
    }

    fn trouble(&self, what: String) {
        let _ = self.notes.send(ClientLog::Trouble(format!("member {}: {what}", self.who)));
    }
}
