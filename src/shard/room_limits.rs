//! What the namespace of a room limits: its members in this shard, how fast clients publish to it, and
//! how large their messages are.
//!
//! Only rooms of namespaces that set such a limit cost anything here. The rate of a room is one
//! bucket, stored while it is not full; how many there are is bounded by what clients publish in the
//! time in which one fills.
//!
//! Invariant: a request that is refused here has changed nothing.

use crate::policy::namespaces::Policy;
use crate::policy::token_bucket::TokenRate;
use crate::protocol::ErrorCode;
use crate::protocol::dialect::Encoding;
use crate::shard::command_error::CommandError;
use crate::shard::state::Shard;

/// Rooms whose buckets are stored, at most. Beyond, others are not limited until some are full again.
const ROOMS_MAX: usize = 64 * 1024;

impl Shard {
    /// Whether a room has as many members in this shard as it may have.
    pub(super) fn is_room_full(&self, room: &str) -> bool {
        let members_max = self.config.namespaces.policy_of_room(room).members_per_shard_max;
        if members_max == 0 {
            return false;
        }
        let topics = Encoding::ALL.iter().filter_map(|of| self.hub.find_room(room, *of));
        let members: usize =
            topics.filter_map(|at| self.hub.get(at)).map(|topic| topic.members().len()).sum();
        members >= members_max
    }

    /// Whether a new member may join a room.
    pub(super) fn check_members(&self, room: &str) -> Result<(), CommandError> {
        match self.is_room_full(room) {
            true => Err(ROOM_FULL),
            false => Ok(()),
        }
    }

    /// Whether a client may publish so many bytes to a room now. Takes a token of the room, if its
    /// namespace has a rate.
    pub(super) fn check_publish(
        &mut self,
        room: &str,
        policy: &Policy,
        payload_bytes: usize,
    ) -> Result<(), CommandError> {
        if policy.message_bytes_max > 0 && payload_bytes > policy.message_bytes_max {
            return Err(CommandError(
                ErrorCode::TooBig,
                "messages of this room are smaller (message_bytes_max of its namespace)",
            ));
        }
        match policy.publishes_per_s_max {
            0 => Ok(()),
            per_s => self.take_publish_token(room, per_s),
        }
    }

    fn take_publish_token(&mut self, room: &str, per_s: u64) -> Result<(), CommandError> {
        // What comes in a second may come at once.
        let rate = TokenRate::new(per_s, per_s);
        let now_ns = self.life.now_ms.saturating_mul(1_000_000);
        let full_ns = self.room_rates.get(room).copied().unwrap_or(0);
        if !rate.has_token(full_ns, now_ns) {
            self.counters.limited_rooms += 1;
            return Err(CommandError(
                ErrorCode::RateLimited,
                "more is published to this room in a second than may be: send it again later",
            ));
        }
        let full_ns = rate.charge(full_ns, now_ns, 1);
        if let Some(known) = self.room_rates.get_mut(room) {
            *known = full_ns;
        } else if self.room_rates.len() < ROOMS_MAX {
            self.room_rates.insert(room.into(), full_ns);
        }
        Ok(())
    }

    /// Time has passed: buckets that are full again are dropped.
    pub(super) fn look_at_room_rates(&mut self) {
        if self.room_rates.is_empty() {
            return;
        }
        let now_ns = self.life.now_ms.saturating_mul(1_000_000);
        self.room_rates.retain(|_, full_ns| *full_ns > now_ns);
        if self.room_rates.is_empty() {
            self.room_rates.shrink_to(0);
        }
    }
}

/// What a join of a full room is answered with.
pub(super) const ROOM_FULL: CommandError =
    CommandError(ErrorCode::RoomFull, "this room has as many members here as it may have");

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::AnonymousSecret;
    use crate::ids::{NodeId, ShardId};
    use crate::policy::limits::Limits;
    use crate::shard::ShardConfig;

    #[test]
    fn rooms_whose_rate_is_counted_are_bounded() {
        let mut shard = Shard::new(ShardConfig {
            id: ShardId(0),
            node: NodeId(1),
            node_name: "n".into(),
            limits: Limits::TINY,
            namespaces: Default::default(),
            anonymous_secret: AnonymousSecret::new([0; 16]),
        });
        let publish =
            |shard: &mut Shard, room: usize| shard.take_publish_token(&room.to_string(), 1).is_ok();
        let idle_bytes = shard.held_bytes();
        assert!((0..=ROOMS_MAX).all(|room| publish(&mut shard, room)));
        assert_eq!(shard.room_rates.len(), ROOMS_MAX);
        assert!(!publish(&mut shard, 0) && publish(&mut shard, ROOMS_MAX), "it has no place");
        assert!(shard.held_bytes() > idle_bytes + ROOMS_MAX, "they count");
        shard.life.now_ms += 5_000;
        shard.look_at_room_rates();
        assert_eq!(shard.held_bytes(), idle_bytes);
        assert!(publish(&mut shard, ROOMS_MAX) && !publish(&mut shard, ROOMS_MAX));
    }
}
