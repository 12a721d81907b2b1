//! What is counted, and how it leaves the thread that counts.
//!
//! A thread counts in plain `u64` fields of a struct it owns: no atomic, no lock, no map on the way
//! of a delivery. On a tick it copies them into a mirror of atomics (plain stores) that the ops
//! thread reads. So a number in `/metrics` is at most one tick old, and counting costs an addition.
//! Redis servers, whose number changes, cross as a whole, in [`servers::RedisSnapshot`].
//!
//! Each field is declared once, with its metric name, kind and help text; `/metrics` renders
//! [`Metric`] lists and names no field. Names follow Prometheus: base units (seconds,
//! bytes), the unit in the name, `_total` for what only grows. A field may count in a smaller
//! unit (`Gauge / 1000` of milliseconds); what is exposed is divided.
//!
//! What we count is always known (`u64`). What a server reports may not be (`Option<u64>`): an
//! unknown number is left out of every list, because a 0 that was not measured is wrong.

pub mod histogram;
mod metric;

/// What a number may be, for the table of each file.
mod cell {
    pub(super) use std::sync::atomic::{AtomicU64, Ordering};

    /// A number that may not be known.
    pub(super) trait Number: Copy {
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

pub use metric::{Metric, MetricKind, MetricValue};

/// Numbers with their names and meanings.
macro_rules! numbers {
    (
        $(#[$doc:meta])* $plain:ident of $number:ty {
            $( $field:ident : $kind:ident $(/ $per:literal)? $name:literal $([$key:literal = $label:literal])? $help:literal ),+ $(,)?
        }
        $( histograms { $( $histogram:ident : $hname:literal $hhelp:literal ),+ $(,)? } )?
    ) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub struct $plain {
            $( #[doc = $help] pub $field: $number, )+
            $( $( #[doc = $hhelp] pub $histogram: $crate::metrics::histogram::Histogram, )+ )?
        }

        impl $plain {
            /// Every number that is known and every histogram, with its name and meaning.
            pub fn describe(&self) -> Vec<$crate::metrics::Metric> {
                use $crate::metrics::{Metric, MetricKind, MetricValue, cell::Number};
                let all = [ $( Number::known(self.$field).map(|count| Metric {
                    name: $name,
                    label: numbers!(@label $($key $label)?),
                    help: $help,
                    kind: MetricKind::$kind,
                    value: MetricValue::Number { count, per: numbers!(@per $($per)?) },
                }), )+ ];
                let numbers = all.into_iter().flatten();
                $( let numbers = numbers.chain([ $( Metric {
                    name: $hname,
                    label: None,
                    help: $hhelp,
                    kind: MetricKind::Histogram,
                    value: MetricValue::Histogram(Box::new(self.$histogram.clone())),
                }, )+ ]); )?
                numbers.collect()
            }
        }
    };
    (@label) => { None };
    (@label $key:literal $label:literal) => { Some(($key, $label)) };
    (@per) => { 1 };
    (@per $per:literal) => { $per };
}

/// The same with a mirror, for what a thread counts all the time.
macro_rules! counters {
    (
        $(#[$doc:meta])* $plain:ident, $mirror:ident {
            $( $field:ident : $kind:ident $(/ $per:literal)? $name:literal $([$key:literal = $label:literal])? $help:literal ),+ $(,)?
        }
        $( histograms { $( $histogram:ident : $hname:literal $hhelp:literal ),+ $(,)? } )?
    ) => {
        numbers! {
            $(#[$doc])* $plain of u64 {
                $( $field : $kind $(/ $per)? $name $([$key = $label])? $help ),+
            }
            $( histograms { $( $histogram : $hname $hhelp ),+ } )?
        }

        /// What the ops thread reads: the same numbers, at most one tick old. Aligned like
        /// `CachePadded`, so that no two shards' ticks write to one line.
        #[derive(Debug, Default)]
        #[repr(align(128))]
        pub struct $mirror {
            $( $field: $crate::metrics::cell::AtomicU64, )+
            $( $( $histogram: $crate::metrics::histogram::HistogramMirror, )+ )?
        }

        impl $mirror {
            /// Copies the owner's numbers out. Called on the owner's tick.
            pub fn publish(&self, from: &$plain) {
                use $crate::metrics::cell::Ordering;
                $( self.$field.store(from.$field, Ordering::Relaxed); )+
                $( $( self.$histogram.publish(&from.$histogram); )+ )?
            }

            /// The numbers as they were at the last tick.
            pub fn read(&self) -> $plain {
                use $crate::metrics::cell::Ordering;
                $plain {
                    $( $field: self.$field.load(Ordering::Relaxed), )+
                    $( $( $histogram: self.$histogram.read(), )+ )?
                }
            }
        }
    };
}

pub mod redis;
pub mod servers;

use self::servers::RedisSnapshot;
use arc_swap::ArcSwap;
use std::sync::Arc;

counters! {
    /// What the thread counts that asks hooks.
    HookCounters, HookMirror {
        asked: Counter "hook_requests_total" "Requests sent to hooks",
        allowed: Counter "hook_answers_total"["outcome" = "allowed"] "Requests to hooks that have ended, by outcome",
        denied: Counter "hook_answers_total"["outcome" = "denied"] "Requests to hooks that have ended, by outcome",
        failed: Counter "hook_answers_total"["outcome" = "failed"] "Requests to hooks that have ended, by outcome",
        cached: Counter "hook_cached_total" "Questions for hooks that a remembered answer has settled",
        circuit_refused: Counter "hook_not_asked_total"["reason" = "circuit_open"] "Questions for hooks that were not asked, by reason",
        overdue: Counter "hook_not_asked_total"["reason" = "overdue"] "Questions for hooks that were not asked, by reason",
        circuit_opened: Counter "hook_circuit_opened_total" "Times that a hook was given up because it has failed again and again",
        circuits_open: Gauge "hook_circuits_open" "Hooks that are not asked, because they have failed again and again",
        waiting: Gauge "hook_questions" "Questions for hooks that are not answered",
        waiting_bytes: Gauge "hook_question_bytes" "Bytes of questions for hooks that are not answered",
        cache_bytes: Gauge "hook_cache_bytes" "Bytes of answers of hooks that are remembered",
    }
    histograms {
        duration: "hook_duration_seconds" "From a request to a hook to its whole answer, or to its failure",
    }
}

counters! {
    /// What one shard counts. Written by the shard's thread alone.
    ShardCounters, ShardMirror {
        connections: Gauge "connections" "Open WebSocket connections",
        handshaking: Gauge "connections_handshaking" "Connections that have not finished their HTTP request",
        closing: Gauge "connections_closing" "Connections that are being closed",
        topics: Gauge "topics" "Topics (rooms and users) with a member on this node",
        members: Gauge "members" "Memberships: connections times the topics they are in",
        questions_waiting: Gauge "requests_waiting" "Requests of clients that wait for the answers to earlier ones",
        connections_paused: Gauge "connections_paused" "Connections that are not read for now, because their requests have to wait",
        input_paused_bytes: Gauge "input_paused_bytes" "Bytes read from paused connections and not processed yet",
        memory_pauses: Counter "connection_memory_pauses_total" "Connections paused because memory is short and they hold much",
        half_message_bytes: Gauge "half_message_bytes" "Bytes of messages that are not complete",
        reads_paused: Counter "connection_pauses_total" "Times that a connection was paused",
        limited_messages: Counter "rate_limited_total"["rule" = "messages"] "Times that a rate was exceeded, by rule",
        limited_bytes: Counter "rate_limited_total"["rule" = "bytes"] "Times that a rate was exceeded, by rule",
        limited_joins: Counter "rate_limited_total"["rule" = "joins"] "Times that a rate was exceeded, by rule",
        limited_requests: Counter "rate_limited_total"["rule" = "requests"] "Times that a rate was exceeded, by rule",
        limited_tokens: Counter "rate_limited_total"["rule" = "tokens"] "Times that a rate was exceeded, by rule",
        limited_rooms: Counter "rate_limited_total"["rule" = "publishes_to_room"] "Times that a rate was exceeded, by rule",
        rated_connections: Gauge "rated_connections" "Connections that have used some of a rate and are not idle yet",
        outbox_bytes: Gauge "outbox_bytes" "Bytes that wait for slow clients (outboxes)",
        acks_members: Gauge "acks_members" "Memberships that acknowledge messages",
        acks_lagging: Gauge "acks_lagging" "Memberships that have not acknowledged a message within ack_timeout_ms",
        uplink_waiting: Gauge "uplink_items" "Items queued from this shard to the backplane",
        downlink_waiting: Gauge "downlink_items" "Items queued from the backplane to this shard",
        accepted: Counter "connections_accepted_total" "Connections accepted by the listener",
        accepted_elsewhere: Counter "connections_off_core_total" "Connections received on another core than their shard's",
        opened: Counter "connections_upgraded_total" "Connections that became WebSockets",
        refused_limit: Counter "connections_rejected_total"["reason" = "limit"] "Connections rejected before an upgrade, by reason",
        refused_handshakes: Counter "connections_rejected_total"["reason" = "handshakes"] "Connections rejected before an upgrade, by reason",
        refused_pace: Counter "connections_rejected_total"["reason" = "accept_rate"] "Connections rejected before an upgrade, by reason",
        refused_memory: Counter "connections_rejected_total"["reason" = "memory"] "Connections rejected before an upgrade, by reason",
        refused_address: Counter "connections_rejected_total"["reason" = "address_limit"] "Connections rejected before an upgrade, by reason",
        refused_address_handshakes: Counter "connections_rejected_total"["reason" = "address_handshakes"] "Connections rejected before an upgrade, by reason",
        refused_address_rate: Counter "connections_rejected_total"["reason" = "address_rate"] "Connections rejected before an upgrade, by reason",
        refused_user: Counter "connections_rejected_total"["reason" = "user_limit"] "Connections rejected before an upgrade, by reason",
        address_uncounted: Counter "connections_uncounted_total" "Connections that the full table of addresses does not count",
        refused_files: Counter "connections_rejected_total"["reason" = "no_files"] "Connections rejected before an upgrade, by reason",
        refused_http: Counter "connections_rejected_total"["reason" = "bad_request"] "Connections rejected before an upgrade, by reason",
        refused_auth: Counter "connections_rejected_total"["reason" = "auth"] "Connections rejected before an upgrade, by reason",
        refused_timeout: Counter "connections_rejected_total"["reason" = "timeout"] "Connections rejected before an upgrade, by reason",
        refused_auth_timeout: Counter "connections_rejected_total"["reason" = "auth_timeout"] "Connections rejected before an upgrade, by reason",
        refused_proxy_missing: Counter "connections_rejected_total"["reason" = "proxy_missing"] "Connections rejected before an upgrade, by reason",
        refused_proxy_unexpected: Counter "connections_rejected_total"["reason" = "proxy_unexpected"] "Connections rejected before an upgrade, by reason",
        refused_proxy_untrusted: Counter "connections_rejected_total"["reason" = "proxy_untrusted"] "Connections rejected before an upgrade, by reason",
        refused_proxy_malformed: Counter "connections_rejected_total"["reason" = "proxy_malformed"] "Connections rejected before an upgrade, by reason",
        refused_calls: Counter "connections_rejected_total"["reason" = "http_calls"] "Connections rejected before an upgrade, by reason",
        refused_hook: Counter "connections_rejected_total"["reason" = "hook_denied"] "Connections rejected before an upgrade, by reason",
        refused_hook_failed: Counter "connections_rejected_total"["reason" = "hook_failed"] "Connections rejected before an upgrade, by reason",
        refused_hooks_full: Counter "connections_rejected_total"["reason" = "hooks_busy"] "Connections rejected before an upgrade, by reason",
        refused_body: Counter "connections_rejected_total"["reason" = "body_too_large"] "Connections rejected before an upgrade, by reason",
        refused_body_timeout: Counter "connections_rejected_total"["reason" = "body_timeout"] "Connections rejected before an upgrade, by reason",
        refused_gone: Counter "connections_rejected_total"["reason" = "connection_lost"] "Connections rejected before an upgrade, by reason",
        probes: Counter "connection_probes_total" "Connections that ended before they sent a request: health checks",
        handshake_bytes: Gauge "handshake_bytes" "Bytes held of PROXY headers, request heads and bodies that are not complete",
        hook_waiting: Gauge "connections_waiting_for_hook" "Connections that are not read until a hook has answered",
        key_waiting: Gauge "connections_waiting_for_keys" "Connections that are not read until the keys of auth.jwks_url were read",
        hooks_busy: Counter "hook_questions_refused_total" "Joins and messages refused because too many questions for hooks wait",
        http_calls: Gauge "http_calls" "Requests for the API on the public port that are received or carried out",
        http_calls_total: Counter "http_calls_total" "Requests for the API on the public port that were carried out",
        http_body_bytes: Counter "http_body_bytes_total" "Bytes of their bodies",
        http_requests: Counter "http_requests_total" "Plain HTTP requests answered on the public port",
        joins: Counter "joins_total" "Joins of rooms",
        leaves: Counter "leaves_total" "Leaves of rooms, disconnects included",
        acks: Counter "acks_total"["of" = "rooms"] "Acknowledgements received from clients",
        acks_of_users: Counter "acks_total"["of" = "users"] "Acknowledgements received from clients",
        bytes_in: Counter "received_bytes_total" "Bytes read from clients",
        messages_in: Counter "messages_received_total" "Complete WebSocket messages read from clients",
        publishes: Counter "publishes_total" "Messages from clients handed to the backplane",
        tokens_accepted: Counter "token_checks_total"["result" = "accepted"] "Tokens that open connections have sent, by result",
        tokens_refused: Counter "token_checks_total"["result" = "refused"] "Tokens that open connections have sent, by result",
        removed_expired: Counter "rooms_removed_total"["reason" = "token_expired"] "Memberships ended because no token allows them any more, by reason",
        removed_forbidden: Counter "rooms_removed_total"["reason" = "forbidden"] "Memberships ended because no token allows them any more, by reason",
        tokens_expiring: Counter "token_expiry_notices_total" "Notices to clients that their token is about to expire",
        requests_rejected: Counter "request_errors_total" "Requests of clients answered with an error",
        frames_in: Counter "downlink_frames_total" "Frames handed from the backplane to this shard",
        deliveries: Counter "deliveries_total" "Frames times the members that they were for",
        sends: Counter "socket_writes_total" "Writes to sockets",
        bytes_out: Counter "sent_bytes_total" "Bytes given to sockets or outboxes",
        sends_short: Counter "socket_writes_short_total" "Writes of which the kernel took a part or nothing",
        pings: Counter "pings_total" "Pings sent to clients",
        dropped_stale: Counter "messages_dropped_total"["reason" = "topic_left"] "Messages dropped on their way to members, by reason",
        lost: Counter "messages_dropped_total"["reason" = "channel_full"] "Messages dropped on their way to members, by reason",
        removed_for_loss: Counter "members_removed_for_loss_total" "Members removed or closed because messages of their topic were lost",
        slow_dropped: Counter "slow_consumer_dropped_messages_total"["policy" = "drop_oldest"] "Messages dropped, by policy",
        slow_conflate_dropped: Counter "slow_consumer_dropped_messages_total"["policy" = "conflate"] "Messages dropped, by policy",
        slow_conflated: Counter "slow_consumer_conflated_messages_total" "Messages replaced by a newer one of the same conflate_key",
        slow_notices: Counter "slow_consumer_loss_events_total" "Loss events sent to slow consumers",
        closed_normal: Counter "connections_closed_total"["reason" = "client"] "WebSocket connections closed, by reason",
        closed_gone: Counter "connections_closed_total"["reason" = "connection_lost"] "WebSocket connections closed, by reason",
        closed_protocol: Counter "connections_closed_total"["reason" = "protocol"] "WebSocket connections closed, by reason",
        closed_too_big: Counter "connections_closed_total"["reason" = "too_big"] "WebSocket connections closed, by reason",
        closed_unsupported: Counter "connections_closed_total"["reason" = "unsupported"] "WebSocket connections closed, by reason",
        closed_slow: Counter "connections_closed_total"["reason" = "slow_consumer"] "WebSocket connections closed, by reason",
        closed_stalled: Counter "connections_closed_total"["reason" = "stalled"] "WebSocket connections closed, by reason",
        closed_silent: Counter "connections_closed_total"["reason" = "ping_timeout"] "WebSocket connections closed, by reason",
        closed_drain: Counter "connections_closed_total"["reason" = "drain"] "WebSocket connections closed, by reason",
        closed_token_expired: Counter "connections_closed_total"["reason" = "token_expired"] "WebSocket connections closed, by reason",
        closed_token_revoked: Counter "connections_closed_total"["reason" = "token_revoked"] "WebSocket connections closed, by reason",
        closed_not_admitted: Counter "connections_closed_total"["reason" = "not_admitted"] "WebSocket connections closed, by reason",
        closed_lost: Counter "connections_closed_total"["reason" = "messages_lost"] "WebSocket connections closed, by reason",
        closed_disconnected: Counter "connections_closed_total"["reason" = "disconnected"] "WebSocket connections closed, by reason",
        closed_overloaded: Counter "connections_closed_total"["reason" = "overloaded"] "WebSocket connections closed, by reason",
        closed_memory: Counter "connections_closed_total"["reason" = "memory"] "WebSocket connections closed, by reason",
        closed_rate_limited: Counter "connections_closed_total"["reason" = "rate_limited"] "WebSocket connections closed, by reason",
        closed_error: Counter "connections_closed_total"["reason" = "io_error"] "WebSocket connections closed, by reason",
    }
    histograms {
        visit_time: "shard_visit_seconds" "Time of one visit to the shard, during which its other connections wait",
        handshake_time: "websocket_handshake_seconds" "Time from accepting a connection to its WebSocket answer",
    }
}

counters! {
    /// What the backplane counts. Written by its thread alone.
    BackplaneCounters, CountersMirror {
        memory_held_bytes: Gauge "memory_held_bytes" "Bytes that all threads keep alive, as they add it up",
        memory_bytes_max: Gauge "memory_limit_bytes" "limits.memory_bytes_max",
        memory_pressure: Gauge "memory_pressure" "How near memory is to its limit: 0, or the last step taken (1 to 4)",
        answers_refused: Counter "memory_refused_answers_total" "Long answers that were not sent because memory is short",
        up: Gauge "backplane_up" "1 while the backplane delivers",
        topics: Gauge "backplane_topics" "Topics that this node subscribes to, including those that linger without members",
        subscriptions: Gauge "backplane_subscriptions" "Topics whose subscription Redis has confirmed, on all servers",
        publish_queue_bytes: Gauge "backplane_publish_queue_bytes" "Bytes of publishes that wait for Redis",
        backlog_bytes: Gauge "downlink_backlog_bytes" "Bytes of deliveries that wait for shards whose channels are full",
        in_flight: Gauge "backplane_publishes_in_flight" "Publishes sent to Redis and not answered yet",
        histories: Gauge "histories" "Topics whose history is held on this node",
        histories_bytes: Gauge "history_bytes" "Bytes of the histories held on this node",
        histories_given_up: Counter "histories_evicted_total" "Histories dropped to make room for others of the same owner or class",
        history_messages_dropped: Counter "history_messages_dropped_total" "Messages dropped early: their history's owner has no more room",
        histories_unreadable: Counter "backplane_invalid_replies_total"["of" = "histories"] "Values in Redis that no node can have written",
        presence_unreadable: Counter "backplane_invalid_replies_total"["of" = "presence"] "Values in Redis that no node can have written",
        history_reads: Counter "history_reads_total" "Reads of histories from Redis",
        history_reads_waiting: Gauge "history_reads_waiting" "Reads of histories that wait (limits.history_reads_per_s_max)",
        history_requests_waiting: Gauge "history_requests_waiting" "Joins and history requests that wait for a read from Redis",
        history_requests_refused: Counter "history_requests_refused_total" "Joins and history requests refused because too many wait",
        recoveries_waited: Counter "recoveries_from_redis_total" "Joins answered by a read from Redis, not from this node's copy",
        holes_repaired: Counter "history_gaps_total"["result" = "repaired"] "Gaps found in histories, by result",
        holes_lost: Counter "history_gaps_total"["result" = "lost"] "Gaps found in histories, by result",
        recovered: Counter "recoveries_total"["result" = "recovered"] "Joins with since, by result",
        unrecovered: Counter "recoveries_total"["result" = "not_recovered"] "Joins with since, by result",
        acks_waiting: Gauge "user_acks_waiting" "Acknowledgements of users that are not stored in Redis yet",
        acks_stored: Counter "user_acks_total"["result" = "stored"] "Acknowledgements of users, by result",
        acks_ignored: Counter "user_acks_total"["result" = "ignored"] "Acknowledgements of users, by result",
        acks_given_up: Counter "user_acks_total"["result" = "dropped"] "Acknowledgements of users, by result",
        revocations: Gauge "revocations" "Revocations of tokens that this node knows of and that are not over",
        revocations_refused: Counter "revocations_refused_total" "Revocations that were refused because there are limits.revocations_max",
        revocations_unreadable: Counter "backplane_invalid_replies_total"["of" = "revocations"] "Values in Redis that no node can have written",
        presences: Gauge "presence_users" "Users in rooms with presence on this node, counted in each of their rooms",
        presence_writes_waiting: Gauge "presence_writes_waiting" "Changes of presence that are not written to Redis yet",
        presence_writes_dropped: Counter "presence_writes_dropped_total" "Changes of presence beyond those that may wait",
        presence_joined: Counter "presence_events_total"["event" = "joined"] "Presence events handed to members on this node",
        presence_left: Counter "presence_events_total"["event" = "left"] "Presence events handed to members on this node",
        presence_reaped: Counter "presence_dead_nodes_total" "Dead nodes whose users this node has reported as left",
        presence_vanished: Counter "presence_vanished_partitions_total" "Partitions whose presence vanished from Redis",
        presence_rejected: Counter "presence_requests_rejected_total" "Requests for presence refused because too many waited for Redis",
        nodes: Gauge "backplane_nodes" "Living nodes that this node knows of, itself included; 0 while Redis is unavailable",
        wire_version: Gauge "backplane_wire_version" "Version in which this node writes to Redis: what the oldest living node reads",
        canary_rtt_us: Gauge / 1_000_000 "canary_rtt_seconds" "Round trip of the last canary; of several servers, the longest",
        canary_age_ms: Gauge / 1000 "canary_age_seconds" "Time since a canary last came back; of several servers, the longest",
        publishes: Counter "backplane_publishes_total" "Messages published on this node",
        publishes_failed: Counter "backplane_publishes_failed_total"["reason" = "unavailable"] "Publishes that failed, by reason",
        publishes_unknown: Counter "backplane_publishes_failed_total"["reason" = "unknown"] "Publishes that failed, by reason",
        publishes_overloaded: Counter "backplane_publishes_failed_total"["reason" = "idempotency_keys"] "Publishes that failed, by reason",
        publishes_without_room: Counter "backplane_publishes_failed_total"["reason" = "histories"] "Publishes that failed, by reason",
        publishes_unreplicated: Counter "backplane_publishes_unreplicated_total" "Publishes that no replica confirmed in time",
        publishes_overtaken: Counter "backplane_publishes_overtaken_total" "Publishes refused because a later one was stored first",
        publishes_ingested: Counter "backplane_publishes_ingested_total" "Messages that other services published through Redis",
        publishes_malformed: Counter "backplane_publishes_failed_total"["reason" = "malformed"] "Publishes that failed, by reason",
        unknown_versions: Counter "backplane_publishes_failed_total"["reason" = "unknown_version"] "Publishes that failed, by reason",
        received: Counter "backplane_messages_received_total" "Messages received from the backplane",
        unwanted: Counter "messages_dropped_total"["reason" = "no_member"] "Messages dropped on their way to members, by reason",
        broadcasts_complete: Counter "backplane_broadcast_checks_total"["result" = "complete"] "Checks for missed broadcasts, by result",
        broadcasts_missed: Counter "backplane_broadcast_checks_total"["result" = "missed"] "Checks for missed broadcasts, by result",
        frames_made: Counter "backplane_frames_encoded_total" "Frames encoded, one for each message and encoding with members here",
        delivered: Counter "backplane_deliveries_total" "Frames handed to shards",
        dropped: Counter "messages_dropped_total"["reason" = "shard_full"] "Messages dropped on their way to members, by reason",
        reconnects: Counter "backplane_reconnects_total" "Connections to Redis servers that were lost or given up",
        failed_configuration: Counter "redis_connection_failures_total"["reason" = "configuration"] "Failed Redis links, by reason",
        failed_tls_ca_file: Counter "redis_connection_failures_total"["reason" = "tls_ca_file"] "Failed Redis links, by reason",
        failed_tls: Counter "redis_connection_failures_total"["reason" = "tls"] "Failed Redis links, by reason",
        failed_unknown_name: Counter "redis_connection_failures_total"["reason" = "unknown_name"] "Failed Redis links, by reason",
        failed_authentication: Counter "redis_connection_failures_total"["reason" = "authentication"] "Failed Redis links, by reason",
        failed_permission: Counter "redis_connection_failures_total"["reason" = "permission"] "Failed Redis links, by reason",
        failed_several_servers: Counter "redis_connection_failures_total"["reason" = "several_servers"] "Failed Redis links, by reason",
        failed_version: Counter "redis_connection_failures_total"["reason" = "version"] "Failed Redis links, by reason",
        failed_no_address: Counter "redis_connection_failures_total"["reason" = "no_address"] "Failed Redis links, by reason",
        failed_refused: Counter "redis_connection_failures_total"["reason" = "refused"] "Failed Redis links, by reason",
        failed_unreachable: Counter "redis_connection_failures_total"["reason" = "unreachable"] "Failed Redis links, by reason",
        failed_timeout: Counter "redis_connection_failures_total"["reason" = "timeout"] "Failed Redis links, by reason",
        failed_connection_lost: Counter "redis_connection_failures_total"["reason" = "connection_lost"] "Failed Redis links, by reason",
        failed_protocol: Counter "redis_connection_failures_total"["reason" = "protocol"] "Failed Redis links, by reason",
        failed_rejected: Counter "redis_connection_failures_total"["reason" = "rejected"] "Failed Redis links, by reason",
        failed_canary: Counter "redis_connection_failures_total"["reason" = "canary"] "Failed Redis links, by reason",
        failed_not_master: Counter "redis_connection_failures_total"["reason" = "not_master"] "Failed Redis links, by reason",
        failed_failover: Counter "redis_connection_failures_total"["reason" = "failover"] "Failed Redis links, by reason",
        failed_unserved: Counter "redis_connection_failures_total"["reason" = "unserved"] "Failed Redis links, by reason",
        canaries_missed: Counter "canaries_missed_total" "Canaries that did not come back in time",
        moves: Counter "backplane_reassignments_total" "Reassignments of partitions to other Redis servers",
        partitions_moved: Counter "backplane_partitions_reassigned_total" "Partitions reassigned to other Redis servers, of 1024",
        move_waiting_ms: Gauge / 1000 "backplane_reassignment_wait_seconds" "How long a reassignment has been waiting; 0: there is none",
        redirects: Counter "backplane_redirects_total" "Redirects from Redis (MOVED, ASK, TRYAGAIN)",
        switches: Counter "backplane_failovers_total" "Times that Sentinel named another master and it was followed",
    }
    histograms {
        delivery_time: "publish_delivery_seconds" "From taking a publish to handing its message to the shards here; sampled",
        publish_round_trip: "backplane_publish_round_trip_seconds" "Time from sending a batch of publishes to Redis to its reply",
    }
}

numbers! {
    /// What is counted of the log, by the threads that log and the one that writes.
    LogCounters of u64 {
        queue_bytes: Gauge "log_queue_bytes" "Bytes of log lines that wait to be written to stderr",
        dropped_full: Counter "log_lines_dropped_total"["reason" = "queue_full"] "Log lines that were dropped, by reason",
        dropped_failed: Counter "log_lines_dropped_total"["reason" = "write_failed"] "Log lines that were dropped, by reason",
    }
}

counters! {
    /// What is counted of the operators' port.
    OpsCounters, OpsMirror {
        connections: Gauge "ops_connections" "Open connections of the operators' port",
        evicted: Counter "ops_connections_closed_total"["reason" = "evicted"] "Connections of the ops port closed by the node",
        slow_head: Counter "ops_connections_closed_total"["reason" = "slow_head"] "Connections of the ops port closed by the node",
        silent: Counter "ops_connections_closed_total"["reason" = "idle"] "Connections of the ops port closed by the node",
    }
}

counters! {
    /// What is counted of requests for the API.
    AccessCounters, AccessMirror {
        wrong_key: Counter "ops_requests_refused_total"["reason" = "wrong_key"] "Requests for the API that were refused, by reason",
        too_many: Counter "ops_requests_refused_total"["reason" = "too_many"] "Requests for the API that were refused, by reason",
        slow_body: Counter "ops_requests_refused_total"["reason" = "slow_body"] "Requests for the API that were refused, by reason",
    }
}

counters! {
    /// What is counted of how threads are scheduled (`scheduling = "auto"`).
    SchedulingCounters, SchedulingMirror {
        in_batches: Gauge "threads_batch_scheduled" "Threads that scheduling = auto has put into SCHED_BATCH",
        changes: Counter "scheduling_changes_total" "Times that scheduling = auto has changed how a thread is scheduled",
    }
}

counters! {
    /// What is counted of the keys that are read from `auth.jwks_url`.
    JwksCounters, JwksMirror {
        keys: Gauge "jwks_keys" "Keys that were read from auth.jwks_url and can verify tokens",
        read_ok: Counter "jwks_reads_total"["result" = "ok"] "Readings of auth.jwks_url, by result",
        read_failed: Counter "jwks_reads_total"["result" = "failed"] "Readings of auth.jwks_url, by result",
        last_unix_s: Gauge "jwks_last_read_timestamp_seconds" "When auth.jwks_url was last read, in seconds since 1970; 0: never",
    }
}

counters! {
    /// What is counted of reloads of the configuration (SIGHUP).
    ReloadCounters, ReloadMirror {
        applied: Counter "config_reloads_total"["result" = "applied"] "Reloads of the configuration, by result",
        refused: Counter "config_reloads_total"["result" = "refused"] "Reloads of the configuration, by result",
        last_unix_s: Gauge "config_last_reload_timestamp_seconds" "When a reload was last applied, in seconds since 1970; 0: never",
    }
}

/// What the ops thread reads of the backplane. Redis servers come and go, so what is known of them
/// is exchanged as a whole, and only when something about them is new.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct BackplaneMirror {
    counters: CountersMirror,
    redis: ArcSwap<RedisSnapshot>,
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

    /// Replaces the snapshot of the Redis servers. Only the backplane does.
    pub fn show(&self, snapshot: Arc<RedisSnapshot>) {
        self.redis.store(snapshot);
    }

    /// The newest snapshot of the Redis servers.
    pub fn redis(&self) -> Arc<RedisSnapshot> {
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
        let slow = mirror
            .read()
            .describe()
            .into_iter()
            .find(|d| d.label == Some(("reason", "slow_consumer")));
        assert_eq!(slow.unwrap().value, MetricValue::Number { count: 3, per: 1 });
    }
}
