//! The contract of a backplane: [`Transport`], which [`crate::backplane::embedded`] and
//! [`crate::backplane::redis`] implement, and one conformance suite tests
//! (`tests/backplane_conformance`).

use crate::backplane::interest::TopicKey;
use crate::backplane::local::Local;
use crate::ids::{ShardId, TopicName, UpTo};
use crate::link::{
    DisconnectRequest, HistoryRequest, PresenceRequest, PresenceUpdate, Publish, RecoveryRequest,
    RevokeRequest,
};
use crate::metrics::servers::RedisSnapshot;
use std::sync::Arc;
use std::task::Context;
use std::time::Instant;

/// How messages reach other nodes and come back.
///
/// Calls take effect in the order in which they are made. Nothing is lost silently: each publish
/// ends in exactly one [`Local::end_publish`], a lost link in [`Local::set_up`].
pub trait Transport {
    /// Subscribes a topic. Confirmed by [`Local::confirm_subscription`], and confirmed again after
    /// each lost link.
    fn subscribe(&mut self, key: TopicKey, topic: &TopicName);

    /// Unsubscribes a topic.
    fn unsubscribe(&mut self, topic: TopicName);

    /// Sends a message to all members of a topic on all nodes, this one included. Ends in exactly
    /// one [`Local::end_publish`].
    fn publish(&mut self, publish: Publish, now: Instant, local: &mut Local);

    /// Replies with the position of a topic's history and the messages missed since a given
    /// position, queued after all earlier deliveries of that topic. Ends in exactly one
    /// [`Local::reply_recovery`], or [`Local::refuse_recovery`] if the stored history is
    /// unreadable.
    fn recover(
        &mut self,
        shard: ShardId,
        ask: Box<RecoveryRequest>,
        now: Instant,
        local: &mut Local,
    );

    /// Replies with a page of a topic's history: exactly one [`Local::reply_history`].
    fn history(&mut self, ask: Box<HistoryRequest>, now: Instant, local: &mut Local);

    /// Records a join, a leave or new info in a room with presence.
    fn update_presence(&mut self, attend: PresenceUpdate, now: Instant);

    /// Replies with the users in a room: exactly one [`Local::reply_presence`].
    fn presence(&mut self, ask: Box<PresenceRequest>, now: Instant);

    /// Records the offset up to which a user has acknowledged its queue. An acknowledgement that is
    /// lost causes redelivery, nothing worse.
    fn acknowledge(&mut self, topic: TopicName, up_to: UpTo, now: Instant, local: &mut Local);

    /// Orders every node with connections of a user to close them, this one included, and answers the
    /// request. It is not queued while the link is down: the request fails.
    fn disconnect(&mut self, ask: Box<DisconnectRequest>, now: Instant, local: &mut Local);

    /// Remembers a revocation of tokens until it is over, on every node ([`Local::revoke`]): those
    /// that are down now learn it when they are up.
    fn revoke(&mut self, order: Box<RevokeRequest>, now: Instant, local: &mut Local);

    /// Whether it accepts more publishes now. While it does not, nothing is taken from the shards.
    fn has_room(&self) -> bool;

    /// Whether every publish has ended.
    fn is_idle(&self) -> bool;

    /// Makes progress and reports results to `local`, within bounds. Returns whether there was
    /// work; if not, `cx` is woken when there is.
    fn poll(&mut self, cx: &mut Context<'_>, now: Instant, local: &mut Local) -> bool;

    /// Writes its gauges into the counters of `local`.
    fn measure(&mut self, _now: Instant, _local: &mut Local) {}

    /// The state of its servers, if it has changed since the last call. Written by `measure`.
    fn take_snapshot(&mut self) -> Option<Arc<RedisSnapshot>> {
        None
    }
}
