//! The notice of an outage to members of topics without a history: what other nodes published in
//! the meantime is gone.
//!
//! Invariant: a topic is notified once for each link but the first.

use crate::backplane::local::Local;
use crate::ids::TopicKind;
use crate::policy::namespaces::Namespaces;
use std::ops::Range;

/// Topics whose members are notified in one turn.
const NOTIFIED_PER_TURN: usize = 1024;

/// The topics that are still to be notified.
#[derive(Default)]
pub(super) struct OutageNotice {
    /// Their slab indices.
    places: Range<u32>,
}

impl OutageNotice {
    /// All topics that there are now.
    pub(super) fn begin(&mut self, local: &Local) {
        self.places = 0..local.interest.slots_end();
    }

    /// Notifies a part of the topics, and none while shards have full channels. `server`: whose
    /// topics; `None`: those of all. Returns whether there was work.
    pub(super) fn poll(
        &mut self,
        server: Option<usize>,
        namespaces: &Namespaces,
        local: &mut Local,
    ) -> bool {
        if self.places.is_empty() || local.is_waiting() {
            return false;
        }
        for place in self.places.by_ref().take(NOTIFIED_PER_TURN) {
            let Some((_, topic)) = local.interest.name_at(place) else { continue };
            let owner = local.interest.server_of(topic.as_str());
            // Of messages to everybody it is known whether one was missed, unless other services
            // publish them.
            let is_here = match server {
                Some(server) => server == owner && topic.kind() != TopicKind::All,
                None => true,
            };
            if is_here && !namespaces.policy(topic.kind()).has_history() {
                let topic = topic.clone();
                local.notify_lost(&topic, 0);
            }
        }
        true
    }
}
