//! The backplane of a node that is alone: the same road, without Redis at its end.
//!
//! A publish still goes up to this thread and comes down again, so that a topic has one order and a
//! client cannot tell the two backplanes apart. Whatever was asked in one turn happens in the same
//! turn, in the order it was asked.
//!
//! Who is where is known here ([`Presence`]), because all connections are this node's own. Histories
//! are kept here ([`Logs`]), and are as old as this process; so is what users have acknowledged.
//!
//! Invariant: nothing waits here between turns, so nothing but the histories needs a limit.

use super::Transport;
use super::history::{Keep, Missed};
use super::interest::TopicKey;
use super::local::{Local, Message};
use super::logs::Logs;
use super::presence::Presence;
use crate::ids::{Position, ShardId, TopicKind, TopicName, UpTo};
use crate::link::{
    HistoryError, HistoryRequest, PresenceRequest, PresenceUpdate, Publish, PublishOutcome,
    Recover, Recovered, Said,
};
use crate::policy::limits::Limits;
use crate::policy::namespaces::{Namespaces, Policy};
use crate::protocol::{Recovery, Unrecovered};
use bytes::Bytes;
use std::sync::Arc;
use std::task::Context;
use std::time::{Duration, Instant};

/// How often old messages are looked for.
const TICK: Duration = Duration::from_millis(100);

/// See the module.
pub struct Embedded {
    asked: Vec<Asked>,
    is_up: bool,
    namespaces: Arc<Namespaces>,
    logs: Logs,
    presence: Presence,
    recovery_bytes_max: usize,
    ticked: Option<Instant>,
}

enum Asked {
    Subscribe(TopicKey),
    Publish(Publish),
    Recover(ShardId, Box<Recover>),
    History(Box<HistoryRequest>),
    PresenceUpdate(PresenceUpdate),
    Presence(Box<PresenceRequest>),
    Acknowledge(TopicName, UpTo),
}

impl Embedded {
    /// Nothing was said yet.
    pub fn new(namespaces: Arc<Namespaces>, limits: &Limits) -> Embedded {
        Embedded {
            asked: Vec::new(),
            is_up: false,
            namespaces,
            logs: Logs::new(limits.history_bytes_max),
            presence: Presence::default(),
            recovery_bytes_max: limits.recovery_bytes_max,
            ticked: None,
        }
    }

    fn policy(&self, topic: &TopicName) -> Policy {
        *self.namespaces.policy(topic.kind())
    }

    fn publish_now(&mut self, publish: Publish, now: Instant, local: &mut Local) {
        let policy = self.policy(&publish.topic);
        let position = match policy.has_history() {
            true => Some(self.keep(&publish, keep(&policy), now, local)),
            false => {
                local.message(&message(&publish));
                None
            }
        };
        local.done(publish.done, PublishOutcome::Accepted(position), now);
    }

    /// Gives a message its place, and everybody the message; unless it came before.
    fn keep(&mut self, publish: &Publish, keep: Keep, now: Instant, local: &mut Local) -> Position {
        let topic = &publish.topic;
        if let Some(known) = publish.key.as_ref().and_then(|key| self.logs.find_key(topic, key)) {
            return known;
        }
        let at = self.logs.log(topic, keep, now).next();
        let message = message(publish);
        let frames = local.frames(&message, topic, at);
        self.logs.push(topic, frames.clone(), keep, now);
        if let Some(key) = &publish.key {
            self.logs.keep_key(topic, key.clone(), at, now);
        }
        local.message_at(&message, frames);
        at
    }

    fn recover_now(&mut self, shard: ShardId, ask: Recover, now: Instant, local: &mut Local) {
        let policy = self.policy(&ask.topic);
        if let TopicKind::User(_) = ask.topic.kind() {
            return self.bring_now(shard, ask, &policy, now, local);
        }
        let log = self.logs.log(&ask.topic, keep(&policy), now);
        let found = match ask.since {
            None => Ok(None),
            Some(_) if !policy.recovery => Err(Unrecovered::NotEnabled),
            Some(since) => log.since(since, self.recovery_bytes_max).map(Some),
        };
        let (recovery, missed) = match found {
            Ok(None) => (Recovery::NotAsked, Bytes::new()),
            Ok(Some(Missed { frames, messages })) => (Recovery::Recovered { messages }, frames),
            Err(why) => (Recovery::NotRecovered(why), Bytes::new()),
        };
        let Recover { at, conn, ticket, .. } = ask;
        let position = log.position();
        local.recovered(shard, Recovered { at, conn, ticket, position, recovery, missed });
    }

    /// A connection of a user hears what the user has not acknowledged.
    fn bring_now(
        &mut self,
        shard: ShardId,
        ask: Recover,
        policy: &Policy,
        now: Instant,
        local: &mut Local,
    ) {
        let Recover { topic, at, conn, ticket, .. } = ask;
        let acked = self.logs.acked(&topic);
        let log = self.logs.log(&topic, keep(policy), now);
        let (recovery, missed) = log.unacknowledged(acked, self.recovery_bytes_max);
        let position = log.position();
        local.recovered(shard, Recovered { at, conn, ticket, position, recovery, missed });
    }

    fn acknowledge_now(&mut self, topic: &TopicName, up_to: UpTo, local: &mut Local) {
        let is_good = self.logs.acknowledge(topic, up_to);
        local.counters.acks_stored += u64::from(is_good);
        local.counters.acks_ignored += u64::from(!is_good);
    }

    fn tell(&mut self, ask: HistoryRequest, now: Instant, local: &mut Local) {
        let policy = self.policy(&ask.topic);
        let log = self.logs.log(&ask.topic, keep(&policy), now);
        let said = match log.page(ask.page, self.recovery_bytes_max) {
            Ok(frames) => Ok(Said { position: log.position(), frames }),
            Err(why) => Err(HistoryError::Unrecovered(why)),
        };
        local.said(ask.topic, ask.to, said);
    }

    fn attend_now(&mut self, attend: PresenceUpdate, now: Instant) {
        let grace = Duration::from_millis(self.policy(&attend.topic).presence_grace_ms);
        self.presence.handle(attend, grace, now);
        self.presence.make_room();
    }

    /// Tells the members of rooms who came and who left.
    fn tell_news(&mut self, local: &mut Local) {
        while let Some(changed) = self.presence.poll_event() {
            let users_max = self.policy(&changed.topic).presence_events_users_max;
            let member = self.presence.member(&changed.topic, &changed.user);
            if let Some(news) = changed.news(member, users_max) {
                local.news(changed.topic.as_str(), &news);
            }
        }
    }
}

fn keep(policy: &Policy) -> Keep {
    Keep { messages: policy.history_size, time: Duration::from_secs(policy.history_ttl_s) }
}

impl Transport for Embedded {
    fn subscribe(&mut self, key: TopicKey, _topic: &TopicName) {
        self.asked.push(Asked::Subscribe(key));
    }

    fn unsubscribe(&mut self, _topic: TopicName) {}

    fn publish(&mut self, publish: Publish, _now: Instant, _local: &mut Local) {
        self.asked.push(Asked::Publish(publish));
    }

    fn recover(&mut self, shard: ShardId, ask: Box<Recover>, _now: Instant, _local: &mut Local) {
        self.asked.push(Asked::Recover(shard, ask));
    }

    fn history(&mut self, ask: Box<HistoryRequest>, _now: Instant, _local: &mut Local) {
        self.asked.push(Asked::History(ask));
    }

    fn attend(&mut self, attend: PresenceUpdate, _now: Instant) {
        self.asked.push(Asked::PresenceUpdate(attend));
    }

    fn presence(&mut self, ask: Box<PresenceRequest>, _now: Instant) {
        self.asked.push(Asked::Presence(ask));
    }

    fn acknowledge(&mut self, topic: TopicName, up_to: UpTo, _: Instant, _: &mut Local) {
        self.asked.push(Asked::Acknowledge(topic, up_to));
    }

    fn has_room(&self) -> bool {
        true
    }

    fn is_idle(&self) -> bool {
        self.asked.is_empty()
    }

    fn poll(&mut self, _cx: &mut Context<'_>, now: Instant, local: &mut Local) -> bool {
        if !self.is_up {
            self.is_up = true;
            local.set_up(true, "nothing to connect to", now);
        }
        if self.ticked.is_none_or(|ticked| now.saturating_duration_since(ticked) >= TICK) {
            self.ticked = Some(now);
            self.logs.tick(now);
        }
        self.presence.handle_timeout(now);
        self.tell_news(local);
        let is_busy = !self.asked.is_empty();
        let mut asked = std::mem::take(&mut self.asked);
        for asked in asked.drain(..) {
            match asked {
                Asked::Subscribe(key) => _ = local.subscribed(key, 0),
                Asked::Publish(publish) => self.publish_now(publish, now, local),
                Asked::Recover(shard, ask) => self.recover_now(shard, *ask, now, local),
                Asked::History(ask) => self.tell(*ask, now, local),
                Asked::PresenceUpdate(attend) => {
                    self.attend_now(attend, now);
                    self.tell_news(local);
                }
                Asked::Acknowledge(topic, up_to) => self.acknowledge_now(&topic, up_to, local),
                Asked::Presence(ask) => {
                    let here = self.presence.here(&ask.topic);
                    local.here(*ask, Some(Arc::new(here)));
                }
            }
        }
        self.asked = asked; // its memory is used again
        is_busy
    }

    fn measure(&mut self, _now: Instant, local: &mut Local) {
        let counters = &mut local.counters;
        counters.histories = self.logs.topics() as u64;
        counters.histories_bytes = self.logs.bytes() as u64;
        counters.histories_given_up = self.logs.given_up;
        counters.presences = self.presence.users() as u64;
    }
}

/// A publish as those who hear it see it.
pub fn message(publish: &Publish) -> Message<'_> {
    Message {
        topic: publish.topic.as_str(),
        from: publish.from.as_ref().and_then(user),
        payload: &publish.payload,
        except: publish.except,
        conflate_key: publish.conflate_key,
        key: publish.key.as_deref(),
    }
}

/// The user of a `u:<user>` topic.
fn user(topic: &TopicName) -> Option<&str> {
    match topic.kind() {
        TopicKind::User(user) => Some(user),
        TopicKind::Room(_) | TopicKind::All => None,
    }
}
