//! Redis as naive as can be: channels, who listens to them, and counts of what it had to do.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::rc::Rc;

/// What Redis did since somebody last asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// `PUBLISH` commands.
    pub publishes: u64,
    /// Messages to subscribers.
    pub messages_out: u64,
    /// `SUBSCRIBE` commands, and the channels in them.
    pub subscribes: u64,
    pub channels_added: u64,
    /// `UNSUBSCRIBE` commands, and the channels in them.
    pub unsubscribes: u64,
    pub channels_removed: u64,
    /// Channels among them for which nothing changed. Redis does not mind.
    pub repeated: u64,
}

#[derive(Default)]
pub struct Redis {
    listeners: HashMap<Rc<str>, BTreeSet<usize>>,
    channels: HashMap<usize, HashSet<Rc<str>>>,
    counts: Counts,
}

impl Redis {
    pub fn take_counts(&mut self) -> Counts {
        std::mem::take(&mut self.counts)
    }

    /// Pairs of channel and listener: what it keeps in memory.
    pub fn subscriptions(&self) -> usize {
        self.channels.values().map(HashSet::len).sum()
    }

    pub fn channels_of(&self, node: usize) -> usize {
        self.channels.get(&node).map_or(0, HashSet::len)
    }

    pub fn subscribe(&mut self, node: usize, channels: Vec<String>) {
        self.counts.subscribes += 1;
        self.counts.channels_added += channels.len() as u64;
        for channel in channels {
            let channel: Rc<str> = channel.into();
            self.listeners.entry(channel.clone()).or_default().insert(node);
            let is_new = self.channels.entry(node).or_default().insert(channel);
            self.counts.repeated += u64::from(!is_new);
        }
    }

    pub fn unsubscribe(&mut self, node: usize, channels: Vec<String>) {
        self.counts.unsubscribes += 1;
        self.counts.channels_removed += channels.len() as u64;
        for channel in channels {
            if self.channels.get_mut(&node).is_some_and(|all| all.remove(&channel[..])) {
                self.forget(node, &channel);
            } else {
                self.counts.repeated += 1;
            }
        }
    }

    /// Who hears a message.
    pub fn publish(&mut self, channel: &str) -> (Rc<str>, Vec<usize>) {
        self.counts.publishes += 1;
        let Some((channel, nodes)) = self.listeners.get_key_value(channel) else {
            return (channel.into(), Vec::new());
        };
        self.counts.messages_out += nodes.len() as u64;
        (channel.clone(), nodes.iter().copied().collect())
    }

    /// A connection is gone, and with it all it listened to.
    pub fn lose(&mut self, node: usize) {
        for channel in self.channels.remove(&node).unwrap_or_default() {
            self.forget(node, &channel);
        }
    }

    fn forget(&mut self, node: usize, channel: &str) {
        let nodes = self.listeners.get_mut(channel).expect("somebody listened");
        nodes.remove(&node);
        if nodes.is_empty() {
            self.listeners.remove(channel);
        }
    }
}
