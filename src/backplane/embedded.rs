//! The backplane of a node that is alone: the same road, without Redis at its end.
//!
//! A publish still goes up to this thread and comes down again, so that a topic has one order and a
//! client cannot tell the two backplanes apart. Whatever was asked in one turn happens in the same
//! turn, in the order it was asked.
//!
//! Invariant: nothing waits here between turns, so nothing needs a limit.

use super::Transport;
use super::interest::TopicKey;
use super::local::{Local, Message};
use crate::ids::{TopicKind, TopicName};
use crate::link::{Outcome, Publish};
use std::task::Context;
use std::time::Instant;

/// See the module.
#[derive(Default)]
pub struct Embedded {
    asked: Vec<Asked>,
    is_up: bool,
}

enum Asked {
    Subscribe(TopicKey),
    Publish(Publish),
}

impl Transport for Embedded {
    fn subscribe(&mut self, key: TopicKey, _topic: &TopicName) {
        self.asked.push(Asked::Subscribe(key));
    }

    fn unsubscribe(&mut self, _topic: TopicName) {}

    fn publish(&mut self, publish: Publish, _now: Instant, _local: &mut Local) {
        self.asked.push(Asked::Publish(publish));
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
        let is_busy = !self.asked.is_empty();
        for asked in self.asked.drain(..) {
            match asked {
                Asked::Subscribe(key) => local.subscribed(key),
                Asked::Publish(publish) => {
                    local.message(&message(&publish));
                    local.done(publish.done, Outcome::Accepted, now);
                }
            }
        }
        is_busy
    }
}

/// A publish as those who hear it see it.
pub fn message(publish: &Publish) -> Message<'_> {
    Message {
        topic: publish.topic.as_str(),
        from: publish.from.as_ref().and_then(user),
        payload: &publish.payload,
        except: publish.except,
    }
}

/// The user of a `u:<user>` topic.
fn user(topic: &TopicName) -> Option<&str> {
    match topic.kind() {
        TopicKind::User(user) => Some(user),
        TopicKind::Room(_) | TopicKind::All => None,
    }
}
