//! Which channels are subscribed on one link: changes in batches, and everything anew at its start.
//!
//! Changes are sent in the order they were asked, neighbours of one kind together, at most 512 in a
//! command and a few commands under way. Each command is followed by a PING: its answer proves that
//! the confirmations before it were counted right, and that nothing is out of step.
//!
//! A new link subscribes everything wanted by walking over all topics, while changes go on. A
//! change is always sent before the walk's next batch, so that no unsubscription that was asked
//! early can follow a subscription of the same topic that the walk made late.
//!
//! Invariant: a topic is told as subscribed only after the server has confirmed it on this link.

use super::link::{Reply, poll_reply, send};
use super::names::Names;
use crate::backplane::interest::{Interest, TopicKey};
use crate::ids::TopicName;
use redis::aio::MultiplexedConnection;
use redis::{RedisResult, Value};
use std::collections::VecDeque;
use std::task::{Context, Poll};

/// Channels in one command.
pub const CHANNELS_PER_BATCH: usize = 512;
/// Commands under way.
pub const BATCHES_MAX: usize = 4;

enum Change {
    Add(TopicKey, TopicName),
    Remove(TopicName),
}

impl Change {
    fn is_addition(&self) -> bool {
        matches!(self, Change::Add(..))
    }
}

/// One command under way, and whom to tell when it is confirmed.
struct Batch {
    keys: Vec<TopicKey>,
    is_of_walk: bool,
}

/// One command: what it changes.
pub struct Command {
    /// Whether channels are subscribed or unsubscribed.
    pub is_addition: bool,
    /// Their names.
    pub channels: Vec<String>,
}

/// What one command changes, and whom to tell.
#[derive(Default)]
struct Cut {
    is_addition: bool,
    is_of_walk: bool,
    keys: Vec<TopicKey>,
    channels: Vec<String>,
}

/// See the module. One for each link.
pub struct Subscriptions {
    changes: VecDeque<Change>,
    /// In the order in which they were sent, which is that of their replies.
    under_way: VecDeque<Batch>,
    replies: VecDeque<Reply<()>>,
    /// Names that are no topics and come first: our own channels.
    fixed: Option<Vec<String>>,
    /// The places where the walk has not been. Topics that come later come as changes.
    walk: std::ops::Range<u32>,
    walk_under_way: usize,
}

impl Subscriptions {
    /// For a new link: nothing is subscribed yet. `fixed` are channels that are no topics, `places`
    /// is where the topics are that exist already ([`Interest::high`]).
    pub fn new(fixed: Vec<String>, places: u32) -> Subscriptions {
        Subscriptions {
            changes: VecDeque::new(),
            under_way: VecDeque::new(),
            replies: VecDeque::new(),
            fixed: Some(fixed),
            walk: 0..places,
            walk_under_way: 0,
        }
    }

    /// Wants a topic.
    pub fn add(&mut self, key: TopicKey, topic: &TopicName) {
        self.changes.push_back(Change::Add(key, topic.clone()));
    }

    /// Wants it no more.
    pub fn remove(&mut self, topic: TopicName) {
        self.changes.push_back(Change::Remove(topic));
    }

    /// Whether everything that was wanted when the link began is confirmed.
    pub fn is_complete(&self) -> bool {
        self.fixed.is_none() && self.walk.is_empty() && self.walk_under_way == 0
    }

    /// Sends what waits, hands out what was confirmed. Whether there was anything to do.
    pub fn poll(
        &mut self,
        cx: &mut Context<'_>,
        sub: &MultiplexedConnection,
        names: &Names,
        interest: &Interest,
        confirmed_keys: &mut Vec<TopicKey>,
    ) -> RedisResult<bool> {
        let mut is_busy = false;
        while let Some(command) = self.next_command(names, interest) {
            self.replies.push_back(send(cx, change(sub.clone(), command)));
            is_busy = true;
        }
        while let Some(front) = self.replies.front_mut() {
            let Poll::Ready(confirmed) = poll_reply(front, cx) else { break };
            self.replies.pop_front();
            confirmed?;
            confirmed_keys.append(&mut self.confirmed());
            is_busy = true;
        }
        Ok(is_busy)
    }

    /// The next command to send; it is under way from now on. `None`: as many are under way as may
    /// be, or nothing waits.
    pub fn next_command(&mut self, names: &Names, interest: &Interest) -> Option<Command> {
        if self.under_way.len() >= BATCHES_MAX {
            return None;
        }
        let Cut { is_addition, is_of_walk, keys, channels } = self.cut(names, interest)?;
        self.walk_under_way += usize::from(is_of_walk);
        self.under_way.push_back(Batch { keys, is_of_walk });
        Some(Command { is_addition, channels })
    }

    /// The oldest command under way is confirmed: answers the topics that are subscribed by it.
    pub fn confirmed(&mut self) -> Vec<TopicKey> {
        let batch = self.under_way.pop_front().expect("only what was sent is confirmed");
        self.walk_under_way -= usize::from(batch.is_of_walk);
        batch.keys
    }

    fn cut(&mut self, names: &Names, interest: &Interest) -> Option<Cut> {
        if let Some(channels) = self.fixed.take() {
            return Some(Cut { is_addition: true, is_of_walk: true, keys: Vec::new(), channels });
        }
        self.cut_changes(names).or_else(|| self.cut_walk(names, interest))
    }

    /// Neighbours of one kind: that keeps the order.
    fn cut_changes(&mut self, names: &Names) -> Option<Cut> {
        let is_addition = self.changes.front()?.is_addition();
        let mut cut = Cut { is_addition, ..Cut::default() };
        while cut.channels.len() < CHANNELS_PER_BATCH
            && self.changes.front().is_some_and(|change| change.is_addition() == is_addition)
        {
            match self.changes.pop_front().expect("it was just looked at") {
                Change::Add(key, topic) => {
                    cut.keys.push(key);
                    cut.channels.push(names.channel(topic.as_str()));
                }
                Change::Remove(topic) => cut.channels.push(names.channel(topic.as_str())),
            }
        }
        Some(cut)
    }

    fn cut_walk(&mut self, names: &Names, interest: &Interest) -> Option<Cut> {
        let mut cut = Cut { is_addition: true, is_of_walk: true, ..Cut::default() };
        while cut.channels.len() < CHANNELS_PER_BATCH {
            let Some(place) = self.walk.next() else { break };
            if let Some((key, topic)) = interest.name_at(place) {
                cut.keys.push(key);
                cut.channels.push(names.channel(topic.as_str()));
            }
        }
        (!cut.channels.is_empty()).then_some(cut)
    }
}

async fn change(mut sub: MultiplexedConnection, command: Command) -> RedisResult<()> {
    let mut barrier = sub.clone();
    let changed = async {
        match command.is_addition {
            true => sub.subscribe(&command.channels[..]).await,
            false => sub.unsubscribe(&command.channels[..]).await,
        }
    };
    let ping = redis::cmd("PING");
    // `join` polls its first future first, so the PING is sent behind the change.
    let (changed, pong) =
        futures_util::future::join(changed, barrier.send_packed_command(&ping)).await;
    changed?;
    match pong?.extract_error()? {
        Value::SimpleString(pong) if pong == "PONG" => Ok(()),
        other => {
            Err((redis::ErrorKind::Client, "replies are out of step", format!("{other:?}")).into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backplane::interest::Joined;
    use crate::ids::{NodeId, ShardId, SlotId, TopicId};
    use std::time::{Duration, Instant};

    fn names() -> Names {
        Names::new("t", NodeId(1))
    }

    fn wanted(interest: &mut Interest, room: &str) -> TopicKey {
        let at = TopicId(SlotId { index: 0, generation: 0 });
        match interest.join(TopicName::room(room), ShardId(0), at) {
            Joined::Subscribe(key) => key,
            other => panic!("{other:?}"),
        }
    }

    fn rooms(cut: &Cut) -> Vec<&str> {
        cut.channels.iter().map(|channel| channel.split_once(":r:").unwrap().1).collect()
    }

    #[test]
    fn changes_keep_their_order_and_neighbours_of_a_kind_go_together() {
        let mut interest = Interest::new(Duration::ZERO);
        let mut subscriptions = Subscriptions::new(vec!["fixed".into()], 0);
        assert_eq!(subscriptions.cut(&names(), &interest).unwrap().channels, ["fixed"]);
        let room = TopicName::room;
        let (a, b) = (wanted(&mut interest, "a"), wanted(&mut interest, "b"));
        subscriptions.add(a, &room("a"));
        subscriptions.add(b, &room("b"));
        subscriptions.remove(room("a"));
        subscriptions.add(a, &room("a"));
        let mut cuts = Vec::new();
        while let Some(cut) = subscriptions.cut(&names(), &Interest::new(Duration::ZERO)) {
            cuts.push((cut.is_addition, rooms(&cut).join(",")));
        }
        assert_eq!(cuts, [(true, "a,b".into()), (false, "a".into()), (true, "a".into())]);
    }

    #[test]
    fn a_walk_finds_every_topic_once_and_lets_changes_go_first() {
        let mut interest = Interest::new(Duration::ZERO);
        let keys: Vec<_> = (0..1300).map(|n| wanted(&mut interest, &n.to_string())).collect();
        let now = Instant::now();
        interest.leave(&TopicName::room("7"), ShardId(0), TopicId(keys[0]), now);
        let at = TopicId(SlotId { index: 0, generation: 0 });
        interest.leave(&TopicName::room("7"), ShardId(0), at, now);
        assert!(interest.take_expired(now).is_some());
        let mut subscriptions = Subscriptions::new(Vec::new(), interest.high());
        let _fixed = subscriptions.cut(&names(), &interest);
        let first = subscriptions.cut(&names(), &interest).unwrap();
        let _late = wanted(&mut interest, "late");
        subscriptions.remove(TopicName::room("7"));
        let change = subscriptions.cut(&names(), &interest).unwrap();
        assert_eq!((change.is_addition, rooms(&change)), (false, vec!["7"]));
        let second = subscriptions.cut(&names(), &interest).unwrap();
        let third = subscriptions.cut(&names(), &interest).unwrap();
        assert!(subscriptions.cut(&names(), &interest).is_none());
        let cuts = [&first, &second, &third];
        assert_eq!(cuts.map(|cut| cut.keys.len()), [512, 512, 1299 - 1024]);
        let mut found: Vec<u32> =
            cuts.iter().flat_map(|cut| rooms(cut)).map(|room| room.parse().unwrap()).collect();
        found.sort_unstable();
        assert!(found.into_iter().eq((0..1300).filter(|n| *n != 7)));
    }
}
