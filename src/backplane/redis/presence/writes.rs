//! Writing entries to Redis: what is queued, one batch for each server, and its replies.

use crate::backplane::partition::partition;
use crate::backplane::presence::{PresenceEvent, Transition, user_name};
use crate::backplane::redis::error_reply::ErrorReply;
use crate::backplane::redis::partition_set::PartitionSet;
use crate::backplane::redis::pipeline::{
    AnsweredBatch, CommandConnection, ItemReply, OutgoingBatch,
};
use crate::backplane::redis::presence::keys::node_name;
use crate::backplane::redis::presence::scripts::{self, PRESENCE_SCRIPTS};
use crate::backplane::redis::presence::server_state::{RoomWrite, Writable};
use crate::backplane::redis::presence::skipped::Skipped;
use crate::backplane::redis::presence::state::RedisPresence;
use crate::backplane::redis::presence::write_queue::{Notify, PendingWrite};
use crate::backplane::redis::presence::{event, room_read};
use crate::backplane::redis::topology::routes::ServerRoutes;
use crate::backplane::redis::unreadable;
use crate::ids::TopicName;
use redis::{FromRedisValue, Pipeline, RedisError, Value};
use std::task::Context;
use std::time::{Duration, Instant};

/// Pause after a server refused something.
const PAUSE: Duration = Duration::from_millis(500);
/// Changes that wait for Redis, at most. Redis that is down, or slower than clients join and leave,
/// would have the node keep one for each. Beyond, a change is dropped, and all that its partition has
/// of this node is written again when there is room: joins with their events, leaves without.
pub(super) const WRITES_MAX: usize = 256 * 1024;
/// Users in one script call.
const USERS_PER_CALL: usize = 256;
/// Script calls in one batch.
const ROOMS_PER_BATCH: usize = 128;
/// Users after which a batch is closed.
const USERS_PER_BATCH: usize = 2048;

impl RedisPresence {
    /// Takes the users whose entries have changed. A server that may have stale entries does not
    /// know who is new.
    pub(super) fn take_transitions(&mut self) {
        while let Some(changed) = self.members.poll_event() {
            let unknown = || self.stale_entries.parts().or(self.rewrites.parts());
            let (notify, by) = match changed.change {
                Transition::Joined(by) if unknown().has(partition(changed.topic.as_str())) => {
                    (Notify::IfHere, Some(by))
                }
                Transition::Joined(by) => (Notify::IfNew, Some(by)),
                Transition::Updated => (Notify::Not, None),
                Transition::Left => (Notify::IfNew, None),
            };
            if self.writes.len() >= WRITES_MAX {
                self.dropped.count += 1;
                self.dropped.parts = self.dropped.parts.or(PartitionSet::of(&changed.topic));
                continue;
            }
            self.writes.add(&changed.topic, changed.user, PendingWrite::new(notify, by));
        }
    }

    /// Partitions of which changes were dropped are written whole when half of what waits has gone.
    pub(super) fn make_up_for_dropped(&mut self) {
        if !self.dropped.parts.is_empty() && self.writes.len() <= WRITES_MAX / 2 {
            let parts = std::mem::take(&mut self.dropped.parts);
            self.rewrite(parts, Notify::IfNew);
        }
    }

    pub(super) fn rewrite(&mut self, parts: PartitionSet, notify: Notify) {
        if parts.is_empty() {
            return;
        }
        self.stale_entries.look_for(parts);
        let rooms = self.members.rooms().filter(|topic| parts.has(partition(topic.as_str())));
        rooms.for_each(|topic| self.rewrites.add_whole(topic, notify));
    }

    /// Puts back writes that may have arrived.
    pub(super) fn put_back(&mut self, room_writes: Vec<RoomWrite>) {
        for RoomWrite { topic, users, .. } in room_writes {
            for (user, write) in users {
                // A user who left may be removed already, with or without the event: an event twice
                // is better than none.
                let is_gone = self.members.member(&topic, &user).is_none();
                let is_announced = write.notify > Notify::Not;
                let notify = if is_gone && is_announced { Notify::Always } else { write.notify };
                let write = PendingWrite { notify, may_be_written: true, ..write };
                self.writes.add(&topic, user, write);
            }
        }
    }

    pub(super) fn poll_batch(
        &mut self,
        cx: &mut Context<'_>,
        now: Instant,
        server: usize,
        route: &ServerRoutes,
    ) -> bool {
        let mut is_busy = false;
        if let Some(answered) = self.servers.poll_batch(server, cx) {
            match answered {
                Ok(batch) => self.handle_replies(server, batch, now),
                Err((room_writes, error)) => {
                    self.failures.warn("rooms", &error, now);
                    let owns = self.servers.owns(server);
                    room_writes.into_iter().for_each(|room| self.put_off(room, &owns, PAUSE, now));
                }
            }
            is_busy = true;
        }
        if let Some(writable) = self.servers.writable(server, route)
            && (self.rewrites.has_any_of(writable.write) || self.writes.has_any_of(writable.notify))
            && let Some(connection) = route.commands(server)
        {
            let batch = self.build_batch(connection, writable, route.publish());
            if !batch.is_empty() {
                self.servers.send(server, cx, now, connection, batch);
            }
            is_busy = true;
        }
        is_busy
    }

    fn build_batch(
        &mut self,
        connection: &CommandConnection,
        writable: Writable,
        publish: &'static str,
    ) -> OutgoingBatch<RoomWrite> {
        let mut batch = OutgoingBatch::with_scripts(ROOMS_PER_BATCH, connection, &PRESENCE_SCRIPTS);
        let mut users = 0;
        while batch.items.len() < ROOMS_PER_BATCH && users < USERS_PER_BATCH {
            let Some(room) = self.take_writes(writable) else { break };
            if room.users.is_empty() {
                continue;
            }
            users += room.users.len();
            self.write_room(&mut batch.commands, &room.topic, &room.users, publish);
            batch.items.push(room);
        }
        batch
    }

    /// Some users of a room; rewrites first.
    fn take_writes(&mut self, writable: Writable) -> Option<RoomWrite> {
        let members = &self.members;
        let everybody =
            |topic: &TopicName| members.members(topic).map(|(user, _)| user.clone()).collect();
        if let Some((topic, mut some)) =
            self.rewrites.take(writable.write, USERS_PER_CALL, everybody)
        {
            // Users with an event are not written without it.
            some.retain(|(user, _)| !self.writes.notifies(&topic, user));
            return Some(RoomWrite { topic, users: some, is_rewrite: true });
        }
        let (topic, users) = self.writes.take(writable.notify, USERS_PER_CALL, |_| Vec::new())?;
        Some(RoomWrite { topic, users, is_rewrite: false })
    }

    fn write_room(
        &self,
        pipeline: &mut Pipeline,
        topic: &TopicName,
        some: &[(TopicName, PendingWrite)],
        publish: &'static str,
    ) {
        let users: Vec<_> =
            some.iter().map(|(user, write)| self.user(topic, user, *write)).collect();
        let users_max = self.rules.namespaces.policy(topic.kind()).presence_events_users_max;
        let dead = &self.liveness.dead()[..];
        let room = scripts::RoomArgs { topic: topic.as_str(), users_max, dead, publish };
        scripts::write(pipeline, &self.keys, &self.rules.names, room, &users);
    }

    /// A user's current entry.
    fn user<'a>(
        &self,
        topic: &TopicName,
        user: &'a TopicName,
        write: PendingWrite,
    ) -> scripts::UserArgs<'a> {
        let (name, member) = (user_name(user), self.members.member(topic, user));
        let notify = match write.notify {
            Notify::Not => 0,
            Notify::IfHere if member.is_some() => 2,
            Notify::IfNew | Notify::IfHere => 1,
            Notify::Always => 2,
        };
        match member {
            Some(member) => {
                let info = member.info.as_deref();
                let value = room_read::value_written(member.connections, info);
                let event = event::write(&PresenceEvent::Joined { user: name, info, by: write.by });
                scripts::UserArgs { name, value, notify, event }
            }
            None => {
                let (value, event) =
                    (String::new(), event::write(&PresenceEvent::Left { user: name }));
                scripts::UserArgs { name, value, notify, event }
            }
        }
    }

    /// Handles the replies to a batch: writes that were refused are put back.
    ///
    /// 1. The room is moving to another server, or its keys are unreadable: its partition gets a
    ///    pause.
    /// 2. The server did not know the script: the next batch loads it.
    /// 3. Any other error: the whole server gets a pause.
    fn handle_replies(&mut self, server: usize, batch: AnsweredBatch<RoomWrite>, now: Instant) {
        let owns = self.servers.owns(server);
        for (room, reply) in batch {
            let of_room = PartitionSet::of(&room.topic);
            let (error, parts, pause) = match reply {
                ItemReply::Ended(reply) => {
                    self.handle_written(room, reply, now);
                    continue;
                }
                ItemReply::Again(refusal) => match refusal.kind {
                    ErrorReply::Moved => (refusal.error, of_room, PAUSE),
                    ErrorReply::ScriptMissing => (refusal.error, owns, refusal.pause),
                    _ => (refusal.error, owns, PAUSE),
                },
                ItemReply::Unreadable(error) => (error, of_room, PAUSE),
                ItemReply::Permanent(error) => (error, owns, PAUSE),
            };
            self.failures.warn(room.topic.as_str(), &RedisError::from(error), now);
            self.put_off(room, &parts, pause, now);
        }
    }

    /// A write was refused: it is written again after a pause of these partitions. Until then no
    /// grace ends there.
    fn put_off(&mut self, room: RoomWrite, parts: &PartitionSet, pause: Duration, now: Instant) {
        self.servers.refuse(parts, now + pause);
        for (user, write) in room.users {
            let queue =
                if write.notify == Notify::Not { &mut self.rewrites } else { &mut self.writes };
            queue.add(&room.topic, user, write);
        }
    }

    /// A room is written: `reply` has its other nodes, and those of the users whose entry was
    /// missing.
    fn handle_written(&mut self, room: RoomWrite, reply: Value, now: Instant) {
        let (mut nodes, mut skipped, mut missing) = (Vec::new(), Skipped::default(), Vec::new());
        for word in Vec::<Vec<u8>>::from_redis_value(reply).unwrap_or_default() {
            match &word[..] {
                [b'!', number @ ..] => missing.extend(unreadable::number(number)),
                name => {
                    let node = node_name(name);
                    nodes.extend(skipped.or_skip(node, "a name among the nodes of a room", name));
                }
            }
        }
        self.failures.skip(room.topic.as_str(), &skipped, now);
        self.observe(nodes);
        let part = PartitionSet::of(&room.topic);
        // Where entries are being written again, one that is missing has not vanished.
        if !room.is_rewrite && self.rewrites.parts().and(part).is_empty() {
            self.handle_missing(&room, &missing, now);
        }
    }

    /// Users who had an entry had none when they left or were updated: it has vanished, and perhaps
    /// those of other nodes, too. Their leaves are published when that is known.
    fn handle_missing(&mut self, room: &RoomWrite, missing: &[u64], now: Instant) {
        let users = missing.iter().filter_map(|number| room.users.get(*number as usize));
        let mut has_vanished = false;
        // The entry of a user whose join was not written before is not missing. Where the link was
        // lost as it was being written nobody knows: an event too many is better than one too few.
        let members = &self.members;
        let was_written = |user: &TopicName, write: &PendingWrite| {
            let is_gone = || members.member(&room.topic, user).is_none();
            write.by.is_none() || (write.may_be_written && is_gone())
        };
        for (user, write) in users.filter(|(user, write)| was_written(user, write)) {
            has_vanished = true;
            if write.notify > Notify::Not {
                let write = PendingWrite { notify: Notify::Always, ..*write };
                self.writes.add(&room.topic, user.clone(), write);
            }
        }
        if has_vanished {
            self.write_vanished(PartitionSet::of(&room.topic), now);
        }
    }
}
