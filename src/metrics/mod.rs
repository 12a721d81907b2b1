//! What is counted, and how it leaves the thread that counts.
//!
//! A thread counts in plain `u64` fields of a struct it owns: no atomic, no lock, no map on the way
//! of a delivery. On a tick it copies them into a mirror of atomics (plain stores) that the ops
//! thread reads. So a number in `/metrics` is at most one tick old, and counting costs an addition.
//! What there is a changing number of (Redis servers) crosses as a whole, in [`servers::Picture`].
//!
//! Each field is declared once, with its metric name, kind and help text; the ops room renders
//! [`Described`] lists and knows no field by name.
//!
//! What we count is always known (`u64`). What somebody else counts may not be (`Option<u64>`): an
//! unknown number is left out of every list, because a 0 that nobody measured is a lie.

/// What a number may be, for the table of each file.
mod cell {
    pub use std::sync::atomic::{AtomicU64, Ordering};

    /// A number that may not be known.
    pub trait Number: Copy {
        /// Unless it is not known.
        fn known(self) -> Option<u64>;
    }

    impl Number for u64 {
        fn known(self) -> Option<u64> {
            Some(self)
        }
    }

    impl Number for Option<u64> {
        fn known(self) -> Option<u64> {
            self
        }
    }
}

/// What kind of number a metric is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
}

/// One number of one thread, described.
#[derive(Clone, Copy, Debug)]
pub struct Described {
    /// The metric's name without `campanile_`.
    pub name: &'static str,
    /// `reason="…"`-style label, or none.
    pub label: Option<(&'static str, &'static str)>,
    /// What it says.
    pub help: &'static str,
    /// Its kind.
    pub kind: Kind,
    /// Its value now.
    pub value: u64,
}

/// Numbers with their names and meanings.
macro_rules! numbers {
    (
        $(#[$doc:meta])* $plain:ident of $number:ty {
            $( $field:ident : $kind:ident $name:literal $([$key:literal = $label:literal])? $help:literal ),+ $(,)?
        }
    ) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub struct $plain {
            $( #[doc = $help] pub $field: $number, )+
        }

        impl $plain {
            /// Every number that is known, with its name and meaning.
            pub fn describe(&self) -> Vec<$crate::metrics::Described> {
                use $crate::metrics::{Described, Kind, cell::Number};
                let all = [ $( Number::known(self.$field).map(|value| Described {
                    name: $name,
                    label: numbers!(@label $($key $label)?),
                    help: $help,
                    kind: Kind::$kind,
                    value,
                }), )+ ];
                all.into_iter().flatten().collect()
            }
        }
    };
    (@label) => { None };
    (@label $key:literal $label:literal) => { Some(($key, $label)) };
}

/// The same with a mirror, for what a thread counts all the time.
macro_rules! counters {
    (
        $(#[$doc:meta])* $plain:ident, $mirror:ident {
            $( $field:ident : $kind:ident $name:literal $([$key:literal = $label:literal])? $help:literal ),+ $(,)?
        }
    ) => {
        numbers! {
            $(#[$doc])* $plain of u64 {
                $( $field : $kind $name $([$key = $label])? $help ),+
            }
        }

        /// What the ops thread reads: the same numbers, at most one tick old. Aligned like
        /// `CachePadded`, so that no two shards' ticks write to one line.
        #[derive(Debug, Default)]
        #[repr(align(128))]
        pub struct $mirror {
            $( $field: $crate::metrics::cell::AtomicU64, )+
        }

        impl $mirror {
            /// Copies the owner's numbers out. Called on the owner's tick.
            pub fn publish(&self, from: &$plain) {
                use $crate::metrics::cell::Ordering;
                $( self.$field.store(from.$field, Ordering::Relaxed); )+
            }

            /// The numbers as they were at the last tick.
            pub fn read(&self) -> $plain {
                use $crate::metrics::cell::Ordering;
                $plain { $( $field: self.$field.load(Ordering::Relaxed), )+ }
            }
        }
    };
}

pub mod redis;
pub mod servers;

use self::servers::Picture;
use arc_swap::ArcSwap;
use std::sync::Arc;

counters! {
    /// What one shard counts.
    ShardCounters, ShardMirror {
        connections: Gauge "connections" "Open WebSocket connections",
        handshaking: Gauge "connections_handshaking" "Connections that have not finished their HTTP request",
        closing: Gauge "connections_closing" "Connections that are being closed",
        topics: Gauge "topics" "Topics (rooms and users) with a member on this node",
        members: Gauge "members" "Memberships: connections times the topics they are in",
        questions_waiting: Gauge "questions_waiting" "Questions of clients that wait for the answers to those before them",
        connections_paused: Gauge "connections_paused" "Connections that are not read for now, because what they ask for has to wait",
        input_paused_bytes: Gauge "input_paused_bytes" "Bytes that were read of paused connections and wait to be used",
        reads_paused: Counter "reads_paused_total" "Pauses of connections",
        outbox_bytes: Gauge "outbox_bytes" "Bytes that wait for slow clients",
        acks_members: Gauge "acks_members" "Memberships that acknowledge what they hear",
        acks_lagging: Gauge "acks_lagging" "Of them, those that have not acknowledged a message within ack_timeout_ms",
        uplink_waiting: Gauge "uplink_waiting" "Items on the way to the backplane that it has not taken yet",
        downlink_waiting: Gauge "downlink_waiting" "Items that wait for this shard",
        accepted: Counter "accepted_total" "Connections accepted by the listener",
        accepted_elsewhere: Counter "accepted_elsewhere_total" "Connections received on another core than their shard's; steering = cpu",
        opened: Counter "opened_total" "Connections that became WebSockets",
        refused_limit: Counter "refused_total"["reason" = "limit"] "Connections refused before an upgrade",
        refused_handshakes: Counter "refused_total"["reason" = "handshakes"] "Connections refused before an upgrade",
        refused_pace: Counter "refused_total"["reason" = "pace"] "Connections refused before an upgrade",
        refused_files: Counter "refused_total"["reason" = "no_files"] "Connections refused before an upgrade",
        refused_http: Counter "refused_total"["reason" = "bad_request"] "Connections refused before an upgrade",
        refused_auth: Counter "refused_total"["reason" = "auth"] "Connections refused before an upgrade",
        refused_timeout: Counter "refused_total"["reason" = "timeout"] "Connections refused before an upgrade",
        refused_gone: Counter "refused_total"["reason" = "gone"] "Connections refused before an upgrade",
        http_requests: Counter "http_requests_total" "Plain HTTP requests on the public port",
        joins: Counter "joins_total" "Joins of rooms",
        leaves: Counter "leaves_total" "Leaves of rooms, disconnects included",
        acks: Counter "acks_total"["of" = "rooms"] "Acknowledgements from clients",
        acks_of_users: Counter "acks_total"["of" = "users"] "Acknowledgements from clients",
        bytes_in: Counter "bytes_in_total" "Bytes read from clients",
        messages_in: Counter "messages_in_total" "Whole messages read from clients",
        publishes: Counter "publishes_total" "Messages that clients sent on to the backplane",
        requests_rejected: Counter "requests_rejected_total" "Requests answered with an error",
        frames_in: Counter "downlink_frames_total" "Frames that the backplane handed to this shard",
        deliveries: Counter "deliveries_total" "Frames times the members they were for",
        sends: Counter "sends_total" "Writes to sockets",
        bytes_out: Counter "bytes_out_total" "Bytes given to sockets or outboxes",
        sends_short: Counter "sends_short_total" "Writes that the kernel took in part or not at all",
        pings: Counter "pings_total" "Pings sent",
        dropped_stale: Counter "drops_total"["reason" = "topic_left"] "Deliveries nobody was left to hear",
        lost: Counter "drops_total"["reason" = "channel_full"] "Deliveries dropped on the way; their members were told",
        removed_for_loss: Counter "members_removed_for_loss_total" "Members taken out of a topic, or closed, because messages of it were lost",
        slow_dropped: Counter "slow_given_up_total"["policy" = "drop_oldest"] "Messages given up for slow members, who were told",
        slow_conflate_dropped: Counter "slow_given_up_total"["policy" = "conflate"] "Messages given up for slow members, who were told",
        slow_conflated: Counter "slow_conflated_total" "Messages that a newer one of the same conflate_key replaced for a slow member",
        slow_notices: Counter "slow_notices_total" "Times a slow member was told that messages gave way",
        closed_normal: Counter "closes_total"["reason" = "client"] "Connections ended, by reason",
        closed_gone: Counter "closes_total"["reason" = "gone"] "Connections ended, by reason",
        closed_protocol: Counter "closes_total"["reason" = "protocol"] "Connections ended, by reason",
        closed_too_big: Counter "closes_total"["reason" = "too_big"] "Connections ended, by reason",
        closed_unsupported: Counter "closes_total"["reason" = "unsupported"] "Connections ended, by reason",
        closed_slow: Counter "closes_total"["reason" = "slow"] "Connections ended, by reason",
        closed_silent: Counter "closes_total"["reason" = "silent"] "Connections ended, by reason",
        closed_drain: Counter "closes_total"["reason" = "drain"] "Connections ended, by reason",
        closed_token_expired: Counter "closes_total"["reason" = "token_expired"] "Connections ended, by reason",
        closed_lost: Counter "closes_total"["reason" = "lost"] "Connections ended, by reason",
        closed_overloaded: Counter "closes_total"["reason" = "overloaded"] "Connections ended, by reason",
        closed_error: Counter "closes_total"["reason" = "io_error"] "Connections ended, by reason",
        loop_turns: Counter "loop_turns_total" "Turns of the shard's loop",
        loop_ns: Counter "loop_busy_ns_total" "Time spent in visits to the shard",
        loop_ns_max: Gauge "loop_visit_ns_max" "The longest visit to the shard in the last 10 to 20 seconds",
        loop_over_1ms: Counter "loop_visits_over_total"["ms" = "1"] "Visits to the shard that took longer",
        loop_over_10ms: Counter "loop_visits_over_total"["ms" = "10"] "Visits to the shard that took longer",
        loop_over_100ms: Counter "loop_visits_over_total"["ms" = "100"] "Visits to the shard that took longer",
    }
}

counters! {
    /// What the backplane counts.
    BackplaneCounters, CountersMirror {
        up: Gauge "backplane_up" "1 while the backplane delivers",
        topics: Gauge "backplane_topics" "Topics this node listens for, lingering ones included",
        subscriptions: Gauge "backplane_subscriptions" "Topics confirmed by Redis, on all servers",
        publish_queue_bytes: Gauge "backplane_publish_queue_bytes" "Publishes that wait for Redis",
        backlog_bytes: Gauge "downlink_backlog_bytes" "Bytes of deliveries that wait for shards whose channels are full",
        in_flight: Gauge "backplane_publishes_in_flight" "Publishes sent to Redis and not answered yet",
        histories: Gauge "histories" "Topics whose messages are kept on this node",
        histories_bytes: Gauge "histories_bytes" "Bytes that they take",
        histories_given_up: Counter "histories_given_up_total" "Histories that were given up because limits.history_bytes_max was reached",
        histories_unreadable: Counter "unreadable_total"["of" = "histories"] "Answers of Redis that this server cannot have written",
        presence_unreadable: Counter "unreadable_total"["of" = "presence"] "Answers of Redis that this server cannot have written",
        history_reads: Counter "history_reads_total" "Reads of histories from Redis",
        history_reads_waiting: Gauge "history_reads_waiting" "Reads of histories that wait for their turn (limits.history_reads_per_s_max)",
        recoveries_waited: Counter "recoveries_waited_total" "Joins that were not answered from this node's copy but waited for a read from Redis",
        holes_repaired: Counter "history_holes_total"["end" = "repaired"] "Holes found in histories, by what became of them",
        holes_lost: Counter "history_holes_total"["end" = "lost"] "Holes found in histories, by what became of them",
        recovered: Counter "recoveries_total"["result" = "recovered"] "Joins with since, by what came of them",
        unrecovered: Counter "recoveries_total"["result" = "not_recovered"] "Joins with since, by what came of them",
        acks_waiting: Gauge "user_acks_waiting" "Acknowledgements of users that Redis does not have yet",
        acks_stored: Counter "user_acks_total"["end" = "stored"] "Acknowledgements of users, by what became of them",
        acks_ignored: Counter "user_acks_total"["end" = "ignored"] "Acknowledgements of users, by what became of them",
        acks_given_up: Counter "user_acks_total"["end" = "given_up"] "Acknowledgements of users, by what became of them",
        presences: Gauge "presences" "Users in rooms with presence on this node, counted in each of their rooms",
        presence_joined: Counter "presence_news_total"["news" = "joined"] "News of who came and who left, handed to members on this node",
        presence_left: Counter "presence_news_total"["news" = "left"] "News of who came and who left, handed to members on this node",
        presence_reaped: Counter "presence_nodes_reaped_total" "Dead nodes whose users this node has told as gone",
        canary_rtt_us: Gauge "canary_rtt_us" "The last canary's way to Redis and back; of several servers, the longest",
        canary_age_ms: Gauge "canary_age_ms" "Since a canary last came back; of several servers, the longest",
        publishes: Counter "backplane_publishes_total" "Messages given to the backplane",
        publishes_failed: Counter "backplane_publishes_failed_total"["reason" = "unavailable"] "Publishes that failed",
        publishes_unknown: Counter "backplane_publishes_failed_total"["reason" = "unknown"] "Publishes that failed",
        publishes_unreplicated: Counter "backplane_publishes_unreplicated_total" "Publishes that no replica was known to have in time",
        publishes_ingested: Counter "backplane_publishes_ingested_total" "Messages that other services published straight to Redis",
        publishes_malformed: Counter "backplane_publishes_failed_total"["reason" = "malformed"] "Publishes that failed",
        received: Counter "backplane_messages_total" "Messages received from the backplane",
        unwanted: Counter "drops_total"["reason" = "no_member"] "Messages for topics nobody here listens to any more",
        frames_made: Counter "backplane_frames_made_total" "Frames written, one for each message and encoding with members here",
        delivered: Counter "backplane_deliveries_total" "Frames handed to shards",
        dropped: Counter "drops_total"["reason" = "shard_full"] "Frames dropped because a shard's channel was full",
        reconnects: Counter "backplane_reconnects_total" "Times a connection to a Redis server was lost or given up",
        canaries_missed: Counter "canaries_missed_total" "Canaries that did not come back in time",
        moves: Counter "backplane_moves_total" "Times that partitions moved between Redis servers",
        partitions_moved: Counter "backplane_partitions_moved_total" "Partitions that moved, of 1024 with all topics",
        move_waiting_ms: Gauge "backplane_move_waiting_ms" "For how long partitions have been about to move; 0: none is",
        astray: Counter "backplane_astray_total" "Answers of Redis that something is on another server (MOVED, ASK, TRYAGAIN)",
        switches: Counter "backplane_switches_total" "Times that sentinels named another master, and it was followed",
    }
}

numbers! {
    /// What is counted of the log, by whoever logs and by the thread that writes it.
    LogCounters of u64 {
        queue_bytes: Gauge "log_queue_bytes" "Bytes of log lines that wait to be written to stderr",
        dropped_full: Counter "log_lines_dropped_total"["reason" = "queue_full"] "Log lines that were dropped",
        dropped_failed: Counter "log_lines_dropped_total"["reason" = "write_failed"] "Log lines that were dropped",
    }
}

counters! {
    /// What is counted of the operators' port.
    OpsCounters, OpsMirror {
        connections: Gauge "ops_connections" "Open connections of the operators' port",
        evicted: Counter "ops_closes_total"["reason" = "evicted"] "Connections of the operators' port that the node ended",
        slow_head: Counter "ops_closes_total"["reason" = "slow_head"] "Connections of the operators' port that the node ended",
        silent: Counter "ops_closes_total"["reason" = "silent"] "Connections of the operators' port that the node ended",
    }
}

/// What the ops thread reads of the backplane. Redis servers come and go, so what is known of them
/// is exchanged as a whole, and only when something about them is new.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct BackplaneMirror {
    counters: CountersMirror,
    redis: ArcSwap<Picture>,
}

impl BackplaneMirror {
    /// Copies the backplane's numbers out. Called on its tick.
    pub fn publish(&self, from: &BackplaneCounters) {
        self.counters.publish(from);
    }

    /// The numbers as they were at the last tick.
    pub fn read(&self) -> BackplaneCounters {
        self.counters.read()
    }

    /// Shows another picture of the Redis servers from now on.
    pub fn show(&self, picture: Arc<Picture>) {
        self.redis.store(picture);
    }

    /// The newest picture of the Redis servers.
    pub fn redis(&self) -> Arc<Picture> {
        self.redis.load_full()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_arrives_under_its_name() {
        let mirror = ShardMirror::default();
        let counters = ShardCounters { closed_slow: 3, ..ShardCounters::default() };
        mirror.publish(&counters);
        let slow =
            mirror.read().describe().into_iter().find(|d| d.label == Some(("reason", "slow")));
        assert_eq!(slow.unwrap().value, 3);
    }
}
