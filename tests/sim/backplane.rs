//! A backplane as naive as can be: one log for all nodes, a queue to each, and a lot of bad luck.
//!
//! It shares no code with `src/backplane`, so that the two cannot be wrong in the same way. Order is
//! that of the log. What it drops it counts, and tells before anything newer of that topic.

use crate::history::{Fate, Said, Step};
use crate::peer::server_frame;
use bytes::Bytes;
use campanile::ids::{TopicId, TopicKind, TopicName};
use campanile::link::connections::everybody;
use campanile::link::{Downlink, Origin, Publish, PublishOutcome, ReplyTo, Uplink};
use campanile::protocol::dialect::Encoding;
use serde_json::Value;
use std::collections::{BTreeMap, VecDeque};

/// The window of one shard, and what waits for room in it.
pub struct Window {
    pub node: usize,
    pub up: VecDeque<Uplink>,
    /// With each delivery, which message of the log it is.
    pub down: VecDeque<(Downlink, Option<usize>)>,
    pub up_max: usize,
    pub down_max: usize,
    /// Whether its shard has connections that a broadcast is for.
    pub hears_broadcasts: bool,
    answers: VecDeque<Downlink>,
    lost: VecDeque<(TopicId, u64)>,
    unconfirmed: VecDeque<TopicId>,
}

impl Window {
    pub fn new(node: usize, up_max: usize, down_max: usize) -> Window {
        Window {
            node,
            up: VecDeque::new(),
            down: VecDeque::new(),
            up_max,
            down_max,
            hears_broadcasts: false,
            answers: VecDeque::new(),
            lost: VecDeque::new(),
            unconfirmed: VecDeque::new(),
        }
    }

    /// Moves what must arrive into the window: answers, then losses. Answers whether anything moved.
    pub fn push_waiting(&mut self) -> bool {
        let before = self.down.len();
        while self.down.len() < self.down_max {
            let next = match self.answers.pop_front() {
                Some(answer) => answer,
                None => match self.lost.pop_front() {
                    Some((to, count)) => Downlink::Lost { to, count },
                    None => break,
                },
            };
            self.down.push_back((next, None));
        }
        self.down.len() > before
    }

    fn lose(&mut self, to: TopicId) {
        match self.lost.iter_mut().find(|(at, _)| *at == to) {
            Some((_, count)) => *count += 1,
            None => self.lost.push_back((to, 1)),
        }
    }
}

/// What is remembered of a message until every node has had it.
struct Message {
    except: Option<Origin>,
    frame: Bytes,
}

#[derive(Default)]
pub struct Backplane {
    /// Who listens: window and the shard's key, by topic.
    pub interest: BTreeMap<String, Vec<(usize, TopicId)>>,
    pub said: Vec<Said>,
    messages: Vec<Message>,
    /// Messages on their way to each node.
    to_node: Vec<VecDeque<usize>>,
    down: Vec<bool>,
    /// Windows that want to know when the messages before this one have come.
    settling: Vec<(usize, usize)>,
}

impl Backplane {
    pub fn new(nodes: usize) -> Backplane {
        let to_node = vec![VecDeque::new(); nodes];
        Backplane { to_node, down: vec![false; nodes], ..Backplane::default() }
    }

    fn settle(&mut self, windows: &mut [Window]) {
        let to_node = &self.to_node;
        self.settling.retain(|(at, before)| {
            let next = to_node[windows[*at].node].front();
            let waits = next.is_some_and(|number| number < before);
            if !waits {
                windows[*at].answers.push_back(Downlink::Settled);
            }
            waits
        });
    }

    /// Takes one item from a window. `luck` decides how a publish to a broken link ends.
    pub fn take(&mut self, windows: &mut [Window], at: usize, luck: u64, step: Step) -> bool {
        if !windows[at].answers.is_empty() {
            return false;
        }
        let Some(item) = windows[at].up.pop_front() else { return false };
        match item {
            Uplink::Join { topic, at: id, .. } => {
                self.interest.entry(topic.as_str().to_owned()).or_default().push((at, id));
                windows[at].unconfirmed.push_back(id);
            }
            Uplink::Leave { topic, at: id } => {
                let members = self.interest.get_mut(topic.as_str()).expect("a leave has its join");
                let place = members.iter().position(|member| *member == (at, id));
                members.remove(place.expect("a leave names the key of its join"));
                if members.is_empty() {
                    self.interest.remove(topic.as_str());
                }
                windows[at].lost.retain(|(to, _)| *to != id);
            }
            Uplink::Publish(publish) => self.publish(windows, at, publish, luck, step),
            Uplink::Recover(_) | Uplink::History(_) => panic!("nothing is kept here"),
            Uplink::Settle => {
                self.settling.push((at, self.said.len()));
                self.settle(windows);
            }
            Uplink::Acknowledge { .. } => panic!("nothing is kept here"),
            Uplink::PresenceUpdate(_) | Uplink::Presence(_) => panic!("no room has presence here"),
            Uplink::Disconnect(_) | Uplink::Revoke(_) => panic!("only the ops thread asks for it"),
        }
        true
    }

    fn publish(&mut self, windows: &mut [Window], at: usize, it: Publish, luck: u64, step: Step) {
        let outcome = match (self.down[windows[at].node], luck % 3) {
            (false, _) => PublishOutcome::Accepted(None),
            (true, 0) => PublishOutcome::Unavailable,
            (true, _) => PublishOutcome::Unknown,
        };
        if outcome == PublishOutcome::Accepted(None) || luck % 3 == 1 {
            self.log(&it, step);
        }
        let ReplyTo::Conn { conn, id, .. } = it.done else {
            panic!("a shard publishes for clients")
        };
        if id.is_some() || outcome != PublishOutcome::Accepted(None) {
            windows[at].answers.push_back(Downlink::Ack { conn, id, outcome });
        }
        for node in 0..self.down.len() {
            if self.down[node] {
                self.drop_all(windows, node, step);
            }
        }
    }

    fn log(&mut self, it: &Publish, step: Step) {
        let payload = std::str::from_utf8(&it.payload).expect("JSON is text");
        let from = it.from.as_ref().map(|topic| match topic.kind() {
            TopicKind::User(user) => user.to_owned(),
            other => panic!("{other:?} is not a user"),
        });
        let to = match it.topic.kind() {
            TopicKind::Room(room) => format!(r#""room_id":{}"#, Value::from(room)),
            TopicKind::User(user) => format!(r#""target_user_id":{}"#, Value::from(user)),
            TopicKind::All => r#""broadcast":true"#.to_owned(),
        };
        let from = Value::from(from.expect("a client is a user"));
        let json = format!(r#"{{"type":"message",{to},"from":{from},"payload":{payload}}}"#);
        let label: Value = serde_json::from_str(payload).expect("a payload is JSON");
        let label = |key: &str| label[key].as_u64();
        for queue in &mut self.to_node {
            queue.push_back(self.said.len());
        }
        self.messages.push(Message { except: it.except, frame: server_frame(&json).into() });
        self.said.push(Said {
            step,
            topic: it.topic.as_str().to_owned(),
            by: label("by").unwrap_or(0) as usize,
            number: label("n").unwrap_or(0),
            echo: it.except.is_none(),
            fates: BTreeMap::new(),
        });
    }

    /// One message reaches a node.
    pub fn deliver(&mut self, windows: &mut [Window], node: usize, step: Step) -> bool {
        if self.down[node] {
            return false;
        }
        let Some(number) = self.to_node[node].pop_front() else { return false };
        let (said, message) = (&mut self.said[number], &self.messages[number]);
        for (at, to) in &listeners(&self.interest, windows, &said.topic) {
            let window = &mut windows[*at];
            if window.node != node {
                continue;
            }
            window.push_waiting();
            let waits = !window.answers.is_empty() || !window.lost.is_empty();
            if waits || window.down.len() >= window.down_max {
                window.lose(*to);
                said.fates.insert(*at, Fate::Dropped(step));
                continue;
            }
            let origin = message.except.filter(|origin| {
                origin.node.0 == node as u64 && usize::from(origin.shard.0) == *at
            });
            let frame = message.frame.clone();
            let except = origin.map(|origin| origin.conn);
            window.down.push_back((Downlink::Deliver { to: *to, frame, except }, Some(number)));
            said.fates.insert(*at, Fate::OnItsWay);
        }
        self.settle(windows);
        true
    }

    /// The link of a node breaks: what was on its way is gone.
    pub fn break_link(&mut self, windows: &mut [Window], node: usize, step: Step) {
        self.down[node] = true;
        self.drop_all(windows, node, step);
    }

    pub fn mend_link(&mut self, node: usize) {
        self.down[node] = false;
    }

    fn drop_all(&mut self, windows: &mut [Window], node: usize, step: Step) {
        while let Some(number) = self.to_node[node].pop_front() {
            let said = &mut self.said[number];
            for (at, to) in &listeners(&self.interest, windows, &said.topic) {
                if windows[*at].node == node {
                    windows[*at].lose(*to);
                    said.fates.insert(*at, Fate::Dropped(step));
                }
            }
        }
        self.settle(windows);
    }

    /// Confirms the oldest join of a window.
    pub fn confirm(&mut self, windows: &mut [Window], at: usize) -> bool {
        if self.down[windows[at].node] {
            return false;
        }
        let Some(id) = windows[at].unconfirmed.pop_front() else { return false };
        windows[at].answers.push_back(Downlink::Joined { at: id });
        true
    }
}

/// Who listens for a topic: window and the shard's key. Nobody joins to hear what is said to
/// everybody.
fn listeners(
    interest: &BTreeMap<String, Vec<(usize, TopicId)>>,
    windows: &[Window],
    topic: &str,
) -> Vec<(usize, TopicId)> {
    if topic != TopicName::ALL {
        return interest.get(topic).cloned().unwrap_or_default();
    }
    let those = windows.iter().enumerate().filter(|(_, window)| window.hears_broadcasts);
    those.map(|(at, _)| (at, everybody(Encoding::NATIVE))).collect()
}
