//! One suite for all backplanes: what holds in process must hold through Redis, however that is
//! deployed, and the other way round.
//!
//! `suite`, `histories`, `presences` and `queues` tell each story once; here it is run in every
//! world: in process, through one server, through one whose
//! user may do no more than is needed, through three that share the topics, through a master
//! named by sentinels, and through a Cluster. The other files have what only a server can do: die,
//! freeze, restart, lose data, and hold values of other programs.

mod broadcasts;
mod channels;
#[path = "../common/cluster.rs"]
mod cluster;
mod databases;
mod foreign;
mod foreign_presence;
mod generations;
mod histories;
mod history_faults;
mod history_races;
mod permissions;
mod presence_faults;
mod presence_vanished;
mod presences;
#[path = "../common/proxy.rs"]
mod proxy;
mod publish_order;
mod queues;
#[path = "../common/redis.rs"]
mod redis;
mod redis_only;
mod redis_shares;
mod revocations;
#[path = "../common/sentinel.rs"]
mod sentinel;
mod suite;
mod topology_faults;
mod vanished_keys;
mod versions;
mod world;

use campanile::policy::limits::Limits;
use world::Build;

fn usual() -> Build {
    Build::usual()
}

/// Users have a queue.
fn queued() -> Build {
    Build { namespaces: "@users: history_size=10", ..Build::usual() }
}

/// Channels so small that a test fills them, without a backlog.
fn cramped() -> Build {
    let limits = Limits { downlink_backlog_bytes_max: 0, ..Limits::PRODUCTION };
    Build { downlink_items_max: 8, limits, ..Build::usual() }
}

/// Channels so small that a test fills them, with the usual backlog.
fn backed() -> Build {
    Build { downlink_items_max: 8, ..Build::usual() }
}

use revocations::few;

macro_rules! in_every_world {
    ($($suite:ident: $($build:ident: $story:ident,)+;)+) => {
        in_world! { embedded, in_process: $($suite: $($build: $story,)+;)+ }
        in_world! { redis, through_redis: $($suite: $($build: $story,)+;)+ }
        in_world! { minimal, through_a_minimal_user: $($suite: $($build: $story,)+;)+ }
        in_world! { several, through_several: $($suite: $($build: $story,)+;)+ }
        in_world! { sentinel, through_sentinel: $($suite: $($build: $story,)+;)+ }
        in_world! { cluster, through_cluster: $($suite: $($build: $story,)+;)+ }
    };
}

macro_rules! in_world {
    ($world:ident, $through:ident: $($suite:ident: $($build:ident: $story:ident,)+;)+) => {
        mod $through {
            $( mod $suite {
                use crate::world::World;
                $( #[test] fn $story() { crate::$suite::$story(World::$world(crate::$build())); } )+
            } )+
        }
    };
}

in_every_world! {
    histories:
    usual: every_join_learns_the_position_and_deliveries_go_on_from_there,
    usual: a_client_that_was_away_receives_what_it_missed,
    usual: messages_that_cannot_be_recovered_are_reported_with_the_reason,
    usual: a_reply_is_ordered_between_earlier_and_later_messages,
    usual: a_retry_under_the_same_key_is_stored_once,
    usual: a_history_is_read_page_by_page_by_clients_and_operators,
    ;
    presences:
    usual: members_receive_joins_and_leaves,
    usual: a_return_within_the_grace_causes_no_event,
    usual: a_user_in_two_places_is_one_user,
    usual: a_joining_connection_receives_no_event_of_itself,
    usual: a_room_beyond_the_limit_has_no_events_and_still_a_roster,
    usual: the_info_of_a_user_is_listed,
    usual: the_info_of_the_node_where_the_user_still_is_counts,
    usual: an_operator_reads_a_roster,
    ;
    queues:
    queued: unacknowledged_messages_are_delivered_wherever_the_user_returns,
    queued: acknowledgements_only_rise_and_only_for_what_was_sent,
    queued: trimmed_messages_are_reported_and_the_rest_is_delivered,
    queued: a_retry_to_a_user_is_sent_once,
    queued: queued_messages_are_ordered_between_earlier_and_later_ones,
    ;
    revocations:
    usual: a_token_that_is_revoked_on_one_node_is_refused_on_all,
    few: beyond_the_limit_nothing_is_revoked_until_another_is_over,
    ;
    suite:
    usual: every_shard_with_members_on_every_node_receives_and_no_other,
    usual: the_order_of_a_publisher_is_kept_in_its_topic,
    usual: a_sender_is_excepted_on_its_own_shard_only,
    usual: users_and_everybody_are_topics_too,
    usual: a_shard_without_members_receives_nothing_more,
    usual: a_shard_that_joins_again_receives_under_its_new_key,
    usual: a_join_and_leave_at_once_leaves_nothing_behind,
    cramped: a_full_shard_is_told_how_much_it_lost_and_then_receives_again,
    backed: a_burst_that_fits_the_backlog_arrives_whole_and_in_order,
    cramped: replies_wait_for_a_full_shard_instead_of_being_dropped,
    usual: success_is_reported_to_publishers_that_asked_and_only_to_them,
    usual: a_shard_learns_when_all_that_it_published_has_ended,
    usual: a_conflate_key_comes_with_its_message_and_with_no_other,
    usual: the_ops_thread_publishes_and_is_called_back,
    usual: a_disconnected_user_is_closed_behind_its_messages_on_every_shard_and_nobody_else,
    usual: payloads_travel_byte_for_byte,
    usual: the_thread_ends_when_its_last_shard_has_ended,
    ;
}
