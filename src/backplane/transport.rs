//! What a backplane is to the rest of this room: [`Transport`], which `embedded` and `redis` implement.

use crate::backplane::interest::TopicKey;
use crate::backplane::local::Local;
use crate::ids::{ShardId, TopicName, UpTo};
use crate::link::{HistoryRequest, PresenceRequest, PresenceUpdate, Publish, RecoveryRequest};
use crate::metrics::servers::Picture;
use std::sync::Arc;
use std::task::Context;
use std::time::Instant;

/// How messages reach other nodes, and come back from there.
///
/// What is asked takes effect in the order it was asked. A transport loses nothing silently: a
/// publish ends in exactly one [`Local::end_publish`], a lost link in [`Local::set_up`].
pub trait Transport {
    /// Wants to hear a topic. Confirmed by [`Local::confirm_subscription`], again after each lost link.
    fn subscribe(&mut self, key: TopicKey, topic: &TopicName);

    /// Wants to hear it no more.
    fn unsubscribe(&mut self, topic: TopicName);

    /// Sends a message to everyone in a topic, on any node, this one included.
    fn publish(&mut self, publish: Publish, now: Instant, local: &mut Local);

    /// Answers where a topic's history is and what somebody missed of it, behind all deliveries of
    /// that topic that were made before: exactly one [`Local::reply_recovery`], or where nothing can be
    /// said of it [`Local::refuse_recovery`].
    fn recover(
        &mut self,
        shard: ShardId,
        ask: Box<RecoveryRequest>,
        now: Instant,
        local: &mut Local,
    );

    /// Answers what was said: exactly one [`Local::reply_history`].
    fn history(&mut self, ask: Box<HistoryRequest>, now: Instant, local: &mut Local);

    /// Notes who came into a room with presence, or left it.
    fn update_presence(&mut self, attend: PresenceUpdate, now: Instant);

    /// Answers who is in a room: exactly one [`Local::reply_presence`].
    fn presence(&mut self, ask: Box<PresenceRequest>, now: Instant);

    /// Notes how far a user has dealt with what is kept for it. One that is lost means that something
    /// is brought once more.
    fn acknowledge(&mut self, topic: TopicName, up_to: UpTo, now: Instant, local: &mut Local);

    /// Whether it takes more publishes now. While not, nothing is taken from the shards.
    fn has_room(&self) -> bool;

    /// Whether no publish waits for its end.
    fn is_idle(&self) -> bool;

    /// Goes on with what was asked and tells `local` what happened, within bounds. Answers whether
    /// there was anything to do; if not, `cx` is woken when there is.
    fn poll(&mut self, cx: &mut Context<'_>, now: Instant, local: &mut Local) -> bool;

    /// Puts its own gauges among the counters of `local`.
    fn measure(&mut self, _now: Instant, _local: &mut Local) {}

    /// What is known of its servers, if anything about them was new when it was last measured.
    fn take_snapshot(&mut self) -> Option<Arc<Picture>> {
        None
    }
}
