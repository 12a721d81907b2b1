//! What publishers of this node were told is kept, in case nobody else knows of it.
//!
//! A server that dies may have answered a publish, and not yet told anybody who listens: one write
//! to a socket comes before the other. Then the node that published is the only one who knows. So
//! it remembers what was acknowledged until a canary has come back behind it, which proves that
//! what was said before was told; and when the next server is another one (another generation), it
//! asks for each whether it is there, and puts it back if it is the next one (`lua/recall.lua`).
//! What comes before it others may have to put back first ([`crate::backplane::redis::history`]), so it is asked
//! again for as long as the server waits.
//!
//! Invariant: what is remembered is in the order of its positions, topic by topic.

use crate::backplane::envelope;
use crate::backplane::history::store::IDEMPOTENCY_TTL;
use crate::backplane::log_throttle::LogThrottle;
use crate::backplane::message::Message;
use crate::backplane::redis::connection::{Reply, Way, fly, poll_reply, send};
use crate::backplane::redis::error_reply::Refusal;
use crate::backplane::redis::history::meta_ttl_s;
use crate::backplane::redis::scripts::{self, REPAIR_MS, Which};
use crate::ids::{Position, TopicName};
use crate::link::Publish;
use crate::policy::namespaces::Namespaces;
use redis::{Cmd, Pipeline, RedisResult, Value};
use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

/// What is remembered at most; beyond, the oldest is forgotten.
const BYTES_MAX: usize = 16 * 1024 * 1024;
/// How long before a canary a message must have been acknowledged, so that the canary proves it.
const MARGIN: Duration = Duration::from_millis(500);
/// Messages in one pipeline.
const RECALLED_PER_FLIGHT: usize = 1024;
/// Bytes after which one is closed while the server refuses: it may for days, and whatever stands
/// behind, the canary as well, has to wait each time. One message may be longer.
const REFUSED_BYTES: usize = 64 * 1024;
/// After how long it is asked again what was not there.
const PAUSE: Duration = Duration::from_millis(30);
/// The same for what the server has no room for: it waits for longer when it has.
const REFUSED_PAUSE: Duration = Duration::from_millis(REPAIR_MS / 2);
/// For how long, since a server takes anything. Longer than any server waits.
const PATIENCE: Duration = Duration::from_secs(3);

/// A message that was acknowledged.
pub struct Acked {
    publish: Publish,
    at: Position,
    since: Instant,
}

impl Acked {
    /// Where it stands.
    pub fn topic(&self) -> &TopicName {
        &self.publish.topic
    }
}

/// See the module. One for each server; it outlives links.
pub struct Witness {
    namespaces: Arc<Namespaces>,
    /// Known to be on the server with this generation.
    acked: VecDeque<Acked>,
    generation: String,
    /// Not known to be on the server of now.
    doubted: VecDeque<Acked>,
    doubted_until: Option<Instant>,
    again_at: Option<Instant>,
    flight: Option<Flight>,
    /// The server does not know the script.
    is_unloaded: bool,
    /// Something was refused when it was last asked.
    is_refused: bool,
    bytes: usize,
    envelope: Vec<u8>,
    lost: LogThrottle,
}

struct Flight {
    asked: Vec<Acked>,
    reply: Reply<Vec<Value>>,
}

impl Witness {
    /// Nothing was acknowledged.
    pub fn new(namespaces: Arc<Namespaces>) -> Witness {
        Witness {
            namespaces,
            acked: VecDeque::new(),
            generation: String::new(),
            doubted: VecDeque::new(),
            doubted_until: None,
            again_at: None,
            flight: None,
            is_unloaded: false,
            is_refused: false,
            bytes: 0,
            envelope: Vec::new(),
            lost: LogThrottle::default(),
        }
    }

    /// A publisher is being told that its message stands at a place.
    pub fn note(&mut self, publish: Publish, at: Position, now: Instant) {
        self.bytes += cost(&publish);
        self.acked.push_back(Acked { publish, at, since: now });
        while self.bytes > BYTES_MAX {
            let Some(oldest) = self.acked.pop_front() else { return };
            self.bytes -= cost(&oldest.publish);
        }
    }

    /// A canary has come back: what was acknowledged well before was told.
    pub fn forget_before(&mut self, canary_back_at: Instant) {
        while let Some(oldest) = self.acked.front()
            && oldest.since + MARGIN < canary_back_at
        {
            let told = self.acked.pop_front().expect("it was just looked at");
            self.bytes -= cost(&told.publish);
        }
    }

    /// Whether nothing is under way.
    pub fn is_quiet(&self) -> bool {
        self.flight.is_none()
    }

    /// Whether the server has said, since this was last asked, that it does not know the script.
    pub fn take_unloaded(&mut self) -> bool {
        std::mem::take(&mut self.is_unloaded)
    }

    /// The link is lost: whatever was asked is asked again on the next one.
    pub fn lose_link(&mut self) {
        if let Some(flight) = self.flight.take() {
            for acked in flight.asked.into_iter().rev() {
                self.doubted.push_front(acked);
            }
        }
        self.again_at = None;
        self.doubted_until = None;
    }

    /// Gives away what belongs to topics that another server has now.
    pub fn take_moved(&mut self, has_moved: impl Fn(&TopicName) -> bool) -> Vec<Acked> {
        assert!(self.flight.is_none(), "topics move while nothing is under way");
        let all = self.doubted.drain(..).chain(self.acked.drain(..));
        let (moved, stay): (Vec<Acked>, Vec<Acked>) =
            all.partition(|acked| has_moved(&acked.publish.topic));
        self.bytes -= moved.iter().map(|acked| cost(&acked.publish)).sum::<usize>();
        self.doubted = stay.into();
        self.doubted_until = None;
        moved
    }

    /// Takes what was acknowledged by another server.
    pub fn adopt(&mut self, moved: Acked) {
        self.bytes += cost(&moved.publish);
        self.doubted.push_back(moved);
        self.doubted_until = None;
    }

    /// Asks a server that is up for what is doubted, if it may, and takes what was answered. Whether
    /// there was anything to do.
    pub fn poll(
        &mut self,
        cx: &mut Context<'_>,
        now: Instant,
        way: &Way<'_>,
        may_ask: bool,
    ) -> RedisResult<bool> {
        if way.generation != self.generation {
            way.generation.clone_into(&mut self.generation);
            self.doubted.append(&mut self.acked);
        }
        let mut is_busy = false;
        if let Some(flight) = &mut self.flight {
            let Poll::Ready(answers) = poll_reply(&mut flight.reply, cx) else { return Ok(false) };
            // If the link broke, all of it is asked again on the next one: see `lose_link`.
            let answers = answers?;
            let flight = self.flight.take().expect("it was just looked at");
            self.land(flight.asked, answers, now);
            is_busy = true;
        }
        let is_time = self.again_at.is_none_or(|at| at <= now);
        if may_ask && !self.doubted.is_empty() && is_time {
            self.again_at = None;
            self.doubted_until.get_or_insert(now + PATIENCE);
            let asked = self.take_some();
            let pipeline = self.load(&asked, way);
            let reply = send(cx, fly(way.cmd.clone(), pipeline));
            self.flight = Some(Flight { asked, reply });
            is_busy = true;
        }
        Ok(is_busy)
    }

    /// What is asked at once.
    fn take_some(&mut self) -> Vec<Acked> {
        let bytes_max = if self.is_refused { REFUSED_BYTES } else { usize::MAX };
        let (mut some, mut bytes) = (Vec::new(), 0);
        while some.len() < RECALLED_PER_FLIGHT && bytes < bytes_max {
            let Some(acked) = self.doubted.pop_front() else { break };
            bytes += cost(&acked.publish);
            some.push(acked);
        }
        some
    }

    fn load(&mut self, asked: &[Acked], way: &Way<'_>) -> Pipeline {
        let mut pipeline = Pipeline::with_capacity(asked.len());
        for acked in asked {
            self.envelope.clear();
            envelope::write(&Message::of(&acked.publish), &mut self.envelope);
            pipeline.add_command(self.recall(acked, way));
        }
        pipeline
    }

    fn recall(&self, acked: &Acked, way: &Way<'_>) -> Cmd {
        let Acked { publish, at, .. } = acked;
        let topic = publish.topic.as_str();
        let policy = self.namespaces.policy(publish.topic.kind());
        let keys = way.names.history_keys(topic);
        let retry = publish.key.as_ref().map(|key| format!("{}:{key}", keys.retry));
        let key_ttl_s = retry.as_ref().map_or(0, |_| IDEMPOTENCY_TTL.as_secs());
        let mut names = vec![&keys.meta[..], &keys.stream];
        names.extend(retry.as_deref());
        let mut command = scripts::call(Which::Recall, &names);
        command.arg(at.epoch).arg(at.offset).arg(way.generation);
        command.arg(way.names.channel(topic)).arg(way.publish);
        command.arg(policy.history_ttl_s).arg(meta_ttl_s(policy)).arg(key_ttl_s);
        command.arg(&self.envelope[..]);
        command
    }

    /// 1: there. 0, or refused: asked again, those of one topic in their order. Else it is gone, also
    /// where somebody has written over the history: nobody else waits for that to be mended.
    fn land(&mut self, asked: Vec<Acked>, answers: Vec<Value>, now: Instant) {
        let is_late = self.doubted_until.is_some_and(|until| until <= now);
        let (mut again, mut gone, mut pause) = (Vec::new(), 0, PAUSE);
        self.is_refused = false;
        for (acked, answer) in asked.into_iter().zip(answers) {
            let refusal = Refusal::of(&answer);
            match answer {
                Value::Int(1) => self.acked.push_back(Acked { since: now, ..acked }),
                // A server that takes nothing yet, as a master without its replicas or without
                // memory, has not gone on either: patience begins anew when it does.
                _ if refusal.is_some_and(|refusal| refusal != Refusal::Unreadable) => {
                    self.doubted_until = None;
                    self.is_refused = true;
                    self.is_unloaded |= refusal == Some(Refusal::Unloaded);
                    let is_short = refusal.is_some_and(Refusal::is_for_now);
                    pause = if is_short { pause } else { REFUSED_PAUSE };
                    again.push(acked);
                }
                Value::Int(0) if !is_late => again.push(acked),
                _ => {
                    self.bytes -= cost(&acked.publish);
                    gone += 1;
                }
            }
        }
        if !again.is_empty() {
            self.again_at = Some(now + pause);
            again.into_iter().rev().for_each(|acked| self.doubted.push_front(acked));
        }
        if gone > 0
            && let Some(suppressed) = self.lost.is_due(now)
        {
            tracing::warn!(
                messages = gone,
                suppressed,
                "a new server went on without acknowledged messages"
            );
        }
    }
}

/// What a message is counted as: its bytes, and about what it takes to keep them.
fn cost(publish: &Publish) -> usize {
    size_of::<Acked>() + publish.topic.as_str().len() + publish.payload.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::Done;
    use bytes::Bytes;

    fn publish(room: &str, bytes: usize) -> Publish {
        Publish {
            topic: TopicName::room(room),
            payload: Bytes::from(vec![b'1'; bytes]),
            from: None,
            except: None,
            key: None,
            conflate_key: None,
            done: Done::Nobody,
        }
    }

    fn at(offset: u64) -> Position {
        Position { epoch: 7, offset }
    }

    #[test]
    fn what_a_canary_has_proved_is_forgotten_and_nothing_newer() {
        let mut witness = Witness::new(Arc::default());
        let start = Instant::now();
        for ms in [0, 100, 1000] {
            witness.note(publish("a", 1), at(ms), start + Duration::from_millis(ms));
        }
        witness.forget_before(start + MARGIN);
        assert_eq!(witness.acked.len(), 3, "just not well before");
        witness.forget_before(start + Duration::from_millis(601));
        assert_eq!(witness.acked.iter().map(|acked| acked.at.offset).collect::<Vec<_>>(), [1000]);
        witness.forget_before(start + Duration::from_secs(9));
        assert_eq!((witness.acked.len(), witness.bytes), (0, 0));
    }

    #[test]
    fn the_oldest_gives_way_when_there_is_too_much() {
        let mut witness = Witness::new(Arc::default());
        for offset in 0..40 {
            witness.note(publish("a", 1024 * 1024), at(offset), Instant::now());
        }
        assert!(witness.bytes <= BYTES_MAX);
        assert_eq!(witness.acked.back().map(|acked| acked.at.offset), Some(39));
        assert_eq!(witness.acked.len(), 15);
    }

    #[test]
    fn little_is_asked_at_once_of_a_server_that_refuses() {
        let mut witness = Witness::new(Arc::default());
        for offset in 1..=1030 {
            let bytes = match offset {
                1..=2 => REFUSED_BYTES,
                3..=6 => REFUSED_BYTES / 4,
                _ => 1,
            };
            witness.note(publish("a", bytes), at(offset), Instant::now());
        }
        witness.doubted.append(&mut witness.acked);
        let asked = witness.take_some();
        assert_eq!(asked.len(), RECALLED_PER_FLIGHT);
        let oom = redis::parse_redis_value(b"-OOM command not allowed\r\n").unwrap();
        witness.land(asked, vec![oom; RECALLED_PER_FLIGHT], Instant::now());
        assert_eq!([1, 2, 3].map(|_| witness.take_some().len()), [1, 1, 4]);
        let asked = witness.take_some();
        let one = vec![Value::Int(1); asked.len()];
        witness.land(asked, one, Instant::now());
        witness.doubted.append(&mut witness.acked);
        let rest = witness.doubted.len();
        assert_eq!(witness.take_some().len(), rest, "it takes them again");
    }

    #[test]
    fn what_has_moved_is_given_away_and_doubted_by_whoever_takes_it() {
        let (mut one, mut other) = (Witness::new(Arc::default()), Witness::new(Arc::default()));
        for (room, offset) in [("a", 1), ("b", 1), ("a", 2)] {
            one.note(publish(room, 1), at(offset), Instant::now());
        }
        let moved = one.take_moved(|topic| *topic == TopicName::room("a"));
        moved.into_iter().for_each(|acked| other.adopt(acked));
        let offsets = |witness: &Witness| {
            witness.doubted.iter().map(|acked| acked.at.offset).collect::<Vec<_>>()
        };
        assert_eq!((offsets(&one), offsets(&other)), (vec![1], vec![1, 2]));
    }
}
