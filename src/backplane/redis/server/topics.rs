//! The topics of a server: what is asked of it for them, and what is in flight.

use crate::backplane::interest::TopicKey;
use crate::backplane::local::Local;
use crate::backplane::redis::history::Histories;
use crate::backplane::redis::names::Names;
use crate::backplane::redis::publish::queue::PublishQueue;
use crate::backplane::redis::server::supervisor::{Server, Task};
use crate::backplane::redis::shared::ServerAssignment;
use crate::ids::TopicName;
use crate::link::Publish;
use std::time::Instant;

impl Server {
    /// The queue of publishes.
    pub(in crate::backplane::redis) fn publishes(&mut self) -> &mut PublishQueue {
        &mut self.publishes
    }

    /// The histories on this server.
    pub(in crate::backplane::redis) fn histories(&mut self) -> &mut Histories {
        &mut self.histories
    }

    /// Whether it takes more publishes.
    pub(in crate::backplane::redis) fn has_room(&self) -> bool {
        !self.is_up() || self.publishes.has_room()
    }

    /// Whether every publish has ended.
    pub(in crate::backplane::redis) fn is_idle(&self) -> bool {
        self.publishes.is_idle()
    }

    /// Whether no command of a topic is in flight.
    pub(in crate::backplane::redis) fn has_none_in_flight(&self) -> bool {
        self.publishes.has_none_in_flight() && self.histories.has_none_in_flight()
    }

    /// Stops or resumes sending commands of topics.
    pub(in crate::backplane::redis) fn set_paused(&mut self, is_paused: bool) {
        self.publishes.set_paused(is_paused);
        self.histories.set_paused(is_paused);
    }

    /// Whether the server has redirected a topic (MOVED, ASK) since the last call.
    pub(in crate::backplane::redis) fn take_redirected(&mut self) -> bool {
        let others = [self.publishes.take_redirected(), self.histories.take_redirected()];
        std::mem::take(&mut self.is_redirected) | others.contains(&true)
    }

    /// The map has changed: servers may have other numbers and partitions.
    pub(in crate::backplane::redis) fn set_assignment(
        &mut self,
        assignment: ServerAssignment,
        names: &Names,
    ) {
        self.assignment = assignment;
        if let Task::Live(live) = &mut self.task {
            self.canaries_missed_before += live.set_assignment(assignment, names);
        }
    }

    /// Takes over a topic that another server had.
    pub(in crate::backplane::redis) fn take_over(&mut self, key: TopicKey, topic: &TopicName) {
        self.life.note_members();
        if let Task::Live(live) = &mut self.task {
            live.subscriptions.add(key, topic);
            self.moved.insert(key);
        }
    }

    /// Subscribes a topic. Without a link nothing is sent: the next link subscribes everything
    /// wanted.
    pub(in crate::backplane::redis) fn subscribe(&mut self, key: TopicKey, topic: &TopicName) {
        if let Task::Live(live) = &mut self.task {
            live.subscriptions.add(key, topic);
        }
    }

    /// Unsubscribes a topic.
    pub(in crate::backplane::redis) fn unsubscribe(&mut self, topic: TopicName) {
        self.histories.leave(&topic);
        if let Task::Live(live) = &mut self.task {
            live.subscriptions.remove(topic);
        }
    }

    /// Queues a publish.
    pub(in crate::backplane::redis) fn publish(
        &mut self,
        publish: Publish,
        now: Instant,
        local: &mut Local,
    ) {
        self.publishes.push(publish, self.life.is_up(), now, local);
    }
}
