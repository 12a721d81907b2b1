//! One suite for all backplanes: what holds in process must hold through Redis, however that is
//! deployed, and the other way.
//!
//! `suite`, `histories` and `presences` tell each story once; here it is run in every world: in
//! process, through one server, through three that share the topics, through a master that
//! sentinels name, and through a Cluster. `redis_only` has what only a server can do to us: die,
//! stand still, come back, say nonsense.

#[path = "../common/cluster.rs"]
mod cluster;
mod foreign;
mod foreign_presence;
mod histories;
mod kept_faults;
mod kept_races;
mod presence_faults;
mod presences;
#[path = "../common/proxy.rs"]
mod proxy;
mod queues;
#[path = "../common/redis.rs"]
mod redis;
mod redis_only;
#[path = "../common/sentinel.rs"]
mod sentinel;
mod suite;
mod topology_faults;
mod world;

use campanile::policy::limits::Limits;
use world::Build;

fn usual() -> Build {
    Build::usual()
}

/// What is sent to users is kept.
fn queued() -> Build {
    Build { namespaces: "@users: history_size=10", ..Build::usual() }
}

/// Channels so small that a test fills them, and nothing behind them.
fn cramped() -> Build {
    let limits = Limits { downlink_backlog_bytes_max: 0, ..Limits::PRODUCTION };
    Build { downlink_items_max: 8, limits, ..Build::usual() }
}

/// Channels so small that a test fills them, and a backlog behind them.
fn backed() -> Build {
    Build { downlink_items_max: 8, ..Build::usual() }
}

macro_rules! in_every_world {
    ($($suite:ident: $($build:ident: $story:ident,)+;)+) => {
        in_world! { embedded, in_process: $($suite: $($build: $story,)+;)+ }
        in_world! { redis, through_redis: $($suite: $($build: $story,)+;)+ }
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
    usual: who_was_away_gets_what_was_said_meanwhile,
    usual: what_cannot_be_brought_back_is_told_with_its_reason,
    usual: an_answer_stands_between_what_came_before_and_what_follows,
    usual: a_retry_under_the_same_key_is_said_once,
    usual: a_history_is_read_page_by_page_by_clients_and_operators,
    ;
    presences:
    usual: members_hear_who_comes_and_who_goes,
    usual: a_return_within_the_grace_is_no_news,
    usual: a_user_in_two_places_is_one_user,
    usual: who_comes_is_not_told_of_themselves,
    usual: a_room_with_more_users_than_are_told_of_answers_all_the_same,
    usual: what_a_user_says_of_themselves_is_listed,
    usual: what_counts_is_said_where_the_user_still_is,
    usual: an_operator_learns_who_is_there,
    ;
    queues:
    queued: what_was_not_acknowledged_is_brought_wherever_the_user_comes_back,
    queued: acknowledgements_only_rise_and_only_for_what_was_sent,
    queued: what_is_no_longer_kept_is_said_and_the_rest_is_brought,
    queued: a_retry_to_a_user_is_sent_once,
    queued: what_is_brought_stands_between_what_came_before_and_what_follows,
    ;
    suite:
    usual: every_shard_of_every_node_with_members_hears_and_no_other,
    usual: the_order_of_a_publisher_is_kept_in_its_topic,
    usual: a_sender_is_excepted_on_its_own_shard_only,
    usual: users_and_everybody_are_topics_too,
    usual: who_has_left_hears_nothing_more,
    usual: who_comes_back_is_reached_under_the_new_key,
    usual: a_join_and_leave_at_once_leaves_nothing_behind,
    cramped: a_full_shard_is_told_how_much_it_lost_and_then_hears_again,
    backed: a_burst_that_fits_the_backlog_arrives_whole_and_in_order,
    cramped: answers_wait_for_a_full_shard_instead_of_being_dropped,
    usual: success_is_told_to_those_who_asked_and_only_to_them,
    usual: a_shard_learns_when_all_that_it_published_has_ended,
    usual: a_conflate_key_comes_with_its_message_and_with_no_other,
    usual: the_ops_thread_publishes_and_is_called_back,
    usual: a_disconnected_user_is_closed_behind_its_messages_on_every_shard_and_nobody_else,
    usual: payloads_travel_byte_for_byte,
    usual: the_thread_ends_when_its_last_shard_has_ended,
    ;
}
