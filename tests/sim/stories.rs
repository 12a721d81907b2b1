//! Small days with a title: one behaviour each.

use crate::peer::{Frame, server_frame};
use crate::world::{Say, World};
use bytes::Bytes;
use campanile::ids::ConnId;
use campanile::link::connections::everybody;
use campanile::link::{Downlink, PublishOutcome};
use campanile::policy::limits::Limits;
use campanile::protocol::RequestId;
use campanile::protocol::dialect::Encoding;

fn frame(text: &str) -> Bytes {
    Bytes::from(server_frame(text))
}

/// A delivery to a room of the first shard, straight into its window.
fn deliver(world: &mut World, room: &str, text: &str, except: Option<ConnId>) {
    let to = world.topic_id(0, &format!("r:{room}"));
    world.say_down(0, Downlink::Deliver { to, frame: frame(text), except });
}

fn types(world: &mut World, who: usize) -> Vec<String> {
    world.heard_texts(who)
}

/// Many members of one room on one shard, batches of four.
fn crowd(members: usize) -> (World, Vec<usize>) {
    let limits = Limits {
        connections_per_shard_max: members + 2,
        handshakes_max: members + 2,
        topics_per_shard_max: 2 * members + 8,
        ..Limits::TINY
    };
    let mut world = World::with(limits);
    let crowd: Vec<usize> =
        (0..members).map(|n| world.connect_to(0, &format!("user{n}"), &["r"])).collect();
    for who in &crowd {
        assert_eq!(world.heard_texts(*who), ["welcome", "ok r"]);
    }
    world.towers[0].writes.clear();
    (world, crowd)
}

#[test]
fn a_frame_for_a_room_left_meanwhile_reaches_nobody() {
    let mut world = World::tiny();
    let ann = world.connect("ann");
    world.join(ann, "r");
    deliver(&mut world, "r", r#"{"type":"late"}"#, None);
    world.backplane_sleeps = true;
    world.send_leave(ann, "r");
    while world.read(ann, 1000) {}
    world.run();
    assert_eq!(types(&mut world, ann), ["welcome", "ok r", "ok r"]);
    assert_eq!(world.towers[0].shard.counters.dropped_stale, 1);
}

#[test]
fn the_last_member_who_leaves_tells_the_backplane_and_only_the_last() {
    let mut world = World::tiny();
    let (ann, bob) = (world.connect("ann"), world.connect("bob"));
    world.join(ann, "r");
    world.join(bob, "r");
    world.leave(ann, "r");
    assert_eq!(world.listened_for(), ["r:r", "u:ann", "u:bob"]);
    world.backplane_sleeps = true;
    world.leave(bob, "r");
    assert_eq!(world.up(0), ["leave r:r"]);
}

#[test]
fn a_join_is_answered_only_when_the_backplane_listens() {
    let mut world = World::tiny();
    let ann = world.connect("ann");
    world.heard(ann);
    world.backplane_sleeps = true;
    world.join(ann, "r");
    assert_eq!(types(&mut world, ann), [""; 0]);
    world.backplane_sleeps = false;
    world.run();
    assert_eq!(types(&mut world, ann), ["ok r"]);
    let bob = world.connect("bob");
    world.backplane_sleeps = true;
    world.join(bob, "r");
    assert_eq!(types(&mut world, bob), ["welcome", "ok r"], "it listens already");
}

#[test]
fn a_join_that_was_left_again_before_its_time_is_answered_all_the_same() {
    let mut world = World::tiny();
    let (ann, bob) = (world.connect("ann"), world.connect("bob"));
    world.heard(ann);
    world.backplane_sleeps = true;
    world.send_join(ann, "alone");
    world.leave(ann, "alone");
    assert_eq!(types(&mut world, ann), ["error not_joined", "ok alone"]);
    world.send_join(bob, "shared");
    world.send_join(ann, "shared");
    world.leave(ann, "shared");
    world.backplane_sleeps = false;
    world.run();
    assert_eq!(types(&mut world, ann), ["ok shared", "error not_joined"]);
    assert_eq!(types(&mut world, bob), ["welcome", "ok shared"]);
    world.history().judge().unwrap();
}

#[test]
fn joins_that_come_and_go_while_the_backplane_is_away_do_not_pile_up() {
    let mut world = World::tiny();
    let (ann, bob) = (world.connect("ann"), world.connect("bob"));
    world.backplane_sleeps = true;
    world.join(bob, "r");
    for _ in 0..500 {
        world.send_join(ann, "r");
        world.send_leave(ann, "r");
    }
    world.run();
    let answered = world.heard(ann).len();
    assert!(answered > 900, "only {answered} are answered, the rest waits");
    for _ in 0..100 {
        world.send_join(bob, "r");
    }
    world.run();
    let refused = types(&mut world, bob).iter().filter(|t| *t == "error overloaded").count();
    assert!(refused > 70, "{refused}");
    world.backplane_sleeps = false;
    world.run();
    world.history().judge().unwrap();
}

#[test]
fn two_messages_in_one_visit_leave_as_one_write() {
    let mut world = World::tiny();
    let ann = world.connect("ann");
    world.join(ann, "r");
    world.heard(ann);
    world.towers[0].writes.clear();
    deliver(&mut world, "r", r#"{"type":"one"}"#, None);
    deliver(&mut world, "r", r#"{"type":"two"}"#, None);
    world.take_downlinks(0);
    assert_eq!(world.towers[0].writes, [1]);
    world.run();
    assert_eq!(types(&mut world, ann), ["one", "two"]);
    assert_eq!(world.towers[0].writes, [1]);
}

#[test]
fn all_answers_to_one_read_leave_as_one_write() {
    let mut world = World::tiny();
    let ann = world.connect("ann");
    world.towers[0].writes.clear();
    for _ in 0..50 {
        world.send_frame(ann, true, 9, b"?");
    }
    world.read(ann, usize::MAX);
    world.run();
    assert_eq!(world.towers[0].writes, [1]);
    assert_eq!(world.heard(ann).iter().filter(|f| **f == Frame::Pong(b"?".to_vec())).count(), 50);
}

#[test]
fn a_member_excepted_from_one_message_gets_its_own_join_and_others_pay_nothing() {
    let (mut world, crowd) = crowd(3);
    let except = world.clients[crowd[1]].conn;
    deliver(&mut world, "r", r#"{"type":"one"}"#, None);
    deliver(&mut world, "r", r#"{"type":"two"}"#, except);
    deliver(&mut world, "r", r#"{"type":"three"}"#, None);
    world.take_downlinks(0);
    assert_eq!(world.towers[0].writes, [3], "one write each");
    world.run();
    assert_eq!(types(&mut world, crowd[0]), ["one", "two", "three"]);
    assert_eq!(types(&mut world, crowd[1]), ["one", "three"]);
    assert_eq!(types(&mut world, crowd[2]), ["one", "two", "three"]);
}

#[test]
fn a_member_of_two_topics_of_one_visit_gets_one_write_in_order() {
    let mut world = World::tiny();
    let ann = world.connect("ann");
    world.join(ann, "r");
    world.join(ann, "s");
    world.heard(ann);
    world.towers[0].writes.clear();
    deliver(&mut world, "r", r#"{"type":"first"}"#, None);
    deliver(&mut world, "s", r#"{"type":"second"}"#, None);
    world.take_downlinks(0);
    assert_eq!(world.towers[0].writes, [1]);
    world.run();
    assert_eq!(world.towers[0].writes, [1]);
    assert_eq!(types(&mut world, ann), ["first", "second"]);
}

#[test]
fn a_slow_member_is_closed_with_1013_and_delays_nobody() {
    let (mut world, crowd) = crowd(3);
    let (ann, slow, bob) = (crowd[0], crowd[1], crowd[2]);
    world.clients[slow].down_max = 100;
    world.clients[slow].pace = 0;
    let say = Say { bytes: 300, ..Say::default() };
    let sent: Vec<u64> = (0..12)
        .map(|_| {
            let number = world.send_message(ann, "r:r", say);
            world.run();
            assert_eq!(world.heard_numbers(bob), [number], "at once, whatever others do");
            number
        })
        .collect();
    world.clients[slow].pace = usize::MAX;
    world.run();
    assert_eq!(world.close_code(slow), Some(1013));
    assert!(!world.clients[slow].is_torn());
    let heard = world.heard_numbers(slow);
    assert_eq!(heard, sent[..heard.len()], "a beginning, in order, then goodbye");
    assert_eq!(world.towers[0].shard.counters.closed_slow, 1);
    assert_eq!(world.towers[0].shard.counters.outbox_bytes, 0);
}

#[test]
fn a_frame_that_was_half_written_is_completed_before_the_close_frame() {
    let mut world = World::tiny();
    let ann = world.connect("ann");
    world.join(ann, "r");
    world.heard(ann);
    world.clients[ann].down_max = 5;
    world.clients[ann].pace = 0;
    deliver(&mut world, "r", r#"{"type":"half"}"#, None);
    world.take_downlinks(0);
    world.send_frame(ann, true, 2, b"binary is not spoken here");
    world.run();
    world.clients[ann].pace = 3;
    world.run();
    let heard = world.heard(ann);
    assert!(matches!(&heard[..], [Frame::Text(_), Frame::Close(1003, _)]), "{heard:?}");
}

#[test]
fn whoever_joins_and_leaves_in_the_middle_of_a_round_skips_nobody_and_nobody_hears_twice() {
    // Every pair of somebody who leaves and somebody who stays, at every stage of the round.
    for stage in 0..4 {
        for leaver in 0..14 {
            let (mut world, crowd) = crowd(14);
            world.backplane_sleeps = true;
            deliver(&mut world, "r", r#"{"type":"round"}"#, None);
            world.take_downlinks(0);
            for _ in 0..stage {
                world.write_on(0);
            }
            world.send_leave(crowd[leaver], "r");
            while world.read(crowd[leaver], 1000) {}
            let late = world.connect_to(0, "late", &["r"]);
            assert!(!world.towers[0].shard.has_sends());
            assert_eq!(types(&mut world, late), ["welcome", "ok r"], "the round had begun");
            for (place, who) in crowd.iter().enumerate() {
                let rounds = types(&mut world, *who).iter().filter(|t| *t == "round").count();
                let wanted = if place == leaver { rounds.min(1) } else { 1 };
                assert_eq!(rounds, wanted, "stage {stage}, {leaver} left, {place}");
            }
        }
    }
}

#[test]
fn who_comes_in_the_middle_of_a_round_takes_the_place_of_nobody_who_leaves() {
    for leavers in [[3, 4], [13, 12], [29, 20], [28, 0], [0, 29]] {
        let (mut world, crowd) = crowd(30);
        deliver(&mut world, "r", r#"{"type":"round"}"#, None);
        world.take_downlinks(0);
        world.write_on(0);
        let late = world.knock(0);
        world.open(late, Some("late"), &["r"], Encoding::NATIVE);
        for leaver in leavers {
            let frame = br#"{"type":"leave","room_id":"r"}"#;
            world.send_frame(crowd[leaver], true, 1, frame);
            world.read(crowd[leaver], 1000);
        }
        assert!(world.towers[0].shard.has_sends(), "all of this was in the middle");
        world.run();
        assert_eq!(types(&mut world, late), ["welcome", "ok r"]);
        for (place, who) in crowd.iter().enumerate() {
            let rounds = types(&mut world, *who).iter().filter(|t| *t == "round").count();
            let left = leavers.contains(&place);
            assert!(rounds == 1 || left && rounds == 0, "{leavers:?}: {place} heard {rounds}");
        }
    }
}

#[test]
fn frames_that_come_while_a_round_is_written_reach_everyone_after_it() {
    let (mut world, crowd) = crowd(10);
    for n in 0..3 {
        deliver(&mut world, "r", &format!(r#"{{"type":"{n}"}}"#), None);
        world.take_downlinks(0);
    }
    world.run();
    for who in crowd {
        assert_eq!(types(&mut world, who), ["0", "1", "2"]);
    }
}

#[test]
fn a_broadcast_reaches_everyone_but_echo_connections() {
    let mut world = World::tiny();
    let (ann, bob, echo) = (world.connect("ann"), world.connect(""), world.connect_echo());
    for who in [ann, bob] {
        world.heard(who);
    }
    let number = world.send_message(ann, "*", Say::default());
    world.run();
    assert_eq!(world.heard_numbers(ann), [number]);
    assert_eq!(world.heard_numbers(bob), [number]);
    assert_eq!(world.heard(echo), []);
    world.say_down(0, Downlink::Lost { to: everybody(Encoding::NATIVE), count: 2 });
    world.run();
    assert_eq!(types(&mut world, bob), ["lost 2"]);
    assert_eq!(world.heard(echo), []);
}

#[test]
fn a_message_for_a_user_reaches_all_connections_of_that_user_and_no_other() {
    let mut world = World::new(1, 2, 2, Limits::TINY);
    let anns: Vec<usize> = (0..4).map(|at| world.connect_to(at, "ann", &[])).collect();
    let bob = world.connect_to(3, "bob", &[]);
    world.heard(bob);
    let number = world.send_message(bob, "u:ann", Say::default());
    world.run();
    for ann in anns {
        assert_eq!(world.heard_numbers(ann), [number]);
    }
    assert_eq!(world.heard(bob), []);
    world.history().judge().unwrap();
}

#[test]
fn a_full_window_pauses_reading_and_nothing_grows_or_is_lost() {
    let mut world = World::with(Limits { downlink_items_max: 64, ..Limits::TINY });
    let ann = world.connect("ann");
    world.join(ann, "r");
    world.heard(ann);
    world.backplane_sleeps = true;
    let sent: Vec<u64> = (0..40).map(|_| world.send_message(ann, "r:r", Say::default())).collect();
    world.run();
    assert_eq!(world.up(0).len(), world.limits.uplink_items_max);
    assert!(world.towers[0].shard.uplink_waiting() <= 2, "what one small read held");
    world.backplane_sleeps = false;
    world.run();
    assert_eq!(world.heard_numbers(ann), sent);
}

#[test]
fn more_rooms_than_allowed_are_refused_and_a_join_of_an_old_one_is_not() {
    let mut world = World::tiny();
    let ann = world.connect_to(0, "ann", &["a", "b"]);
    for room in ["c", "d", "a"] {
        world.join(ann, room);
    }
    let expected = ["welcome", "ok a", "ok b", "ok c", "error too_many_rooms", "ok a"];
    assert_eq!(types(&mut world, ann), expected);
    assert_eq!(world.listened_for(), ["r:a", "r:b", "r:c", "u:ann"]);
}

#[test]
fn more_topics_than_allowed_are_refused_and_one_that_exists_is_not() {
    let mut world = World::with(Limits { topics_per_shard_max: 2, ..Limits::TINY });
    let ann = world.connect_to(0, "ann", &["a"]);
    world.join(ann, "b");
    assert_eq!(types(&mut world, ann), ["welcome", "ok a", "error overloaded"]);
    let bob = world.connect("bob");
    assert_eq!(world.close_code(bob), Some(1013), "not even a topic for the user itself");
    let other = world.connect_to(0, "ann", &["a"]);
    assert_eq!(types(&mut world, other), ["welcome", "ok a"]);
}

#[test]
fn more_connections_than_allowed_are_not_taken() {
    let mut world = World::tiny();
    for _ in 0..world.limits.connections_per_shard_max {
        let who = world.connect("ann");
        assert!(world.clients[who].conn.is_some());
    }
    let who = world.connect("ann");
    assert!(world.clients[who].conn.is_none());
    let mut world = World::tiny();
    for _ in 0..world.limits.handshakes_max {
        world.knock(0);
    }
    let who = world.knock(0);
    assert!(world.clients[who].conn.is_none());
}

#[test]
fn a_handshake_that_does_not_come_ends_in_time() {
    let mut world = World::tiny();
    let who = world.knock(0);
    world.pass(world.limits.handshake_timeout_ms - 1);
    assert!(!world.clients[who].half_closed);
    world.pass(101);
    assert!(world.clients[who].half_closed);
    world.run();
    assert!(world.clients[who].gone);
    assert_eq!(world.towers[0].shard.connections(), 0);
    assert_eq!(world.towers[0].shard.counters.refused_timeout, 1);
}

#[test]
fn who_breaks_the_protocol_is_closed_with_1002_and_ends_even_if_it_talks_forever() {
    let mut world = World::tiny();
    let ann = world.connect("ann");
    world.clients[ann].answers_close = false;
    world.send_bytes(ann, &[0xFF; 8]);
    world.run();
    assert_eq!(world.close_code(ann), Some(1002));
    // The client's half stays open, and it goes on: only the deadline ends it.
    let mut world = World::tiny();
    let ann = world.connect("ann");
    world.clients[ann].pace = 0;
    for _ in 0..world.limits.close_timeout_ms / 100 + 2 {
        world.send_bytes(ann, &[0xFF; 64]);
        world.pass(100);
    }
    assert!(world.clients[ann].gone);
    assert_eq!(world.towers[0].shard.counters.closed_protocol, 1);
}

#[test]
fn a_client_that_says_goodbye_hears_it_back_and_is_gone() {
    let mut world = World::tiny();
    let ann = world.connect("ann");
    world.join(ann, "r");
    world.send_close(ann);
    world.send_text(ann, r#"{"room_id":"r","payload":"after the end"}"#);
    world.run();
    assert_eq!(world.close_code(ann), Some(1000));
    assert!(world.clients[ann].gone);
    assert_eq!(world.listened_for(), [""; 0]);
    assert_eq!(world.backplane.said.len(), 0);
    assert_eq!(world.towers[0].shard.counters.closed_normal, 1);
}

#[test]
fn a_goodbye_with_the_end_right_behind_it_is_answered_with_its_own_code() {
    let mut world = World::tiny();
    for code in [1000, 3000, 4999] {
        let ann = world.connect("ann");
        world.join(ann, "r");
        world.send_text(ann, r#"{"type":"ping"}"#);
        world.send_frame(ann, true, 8, &u16::to_be_bytes(code));
        world.end_up(ann);
        world.run();
        assert_eq!(world.close_code(ann), Some(code));
        assert!(types(&mut world, ann).contains(&"pong".to_owned()));
        assert!(world.clients[ann].gone);
    }
    assert_eq!(world.towers[0].shard.counters.closed_normal, 3);
}

#[test]
fn what_a_client_asked_before_its_end_is_answered_also_through_a_slow_socket() {
    let mut world = World::tiny();
    let ann = world.connect("ann");
    world.heard(ann);
    world.clients[ann].down_max = 7;
    world.clients[ann].pace = 0;
    world.send_text(ann, r#"{"type":"ping"}"#);
    world.end_up(ann);
    world.run();
    assert!(!world.clients[ann].gone, "the rest of the answer waits");
    world.clients[ann].pace = 2;
    world.run();
    assert_eq!(types(&mut world, ann), ["pong"]);
    assert!(world.clients[ann].gone);
    assert_eq!(world.towers[0].shard.counters.closed_gone, 1);
}

#[test]
fn a_slow_client_that_says_goodbye_hears_what_was_begun_and_the_goodbye() {
    let mut world = World::tiny();
    let ann = world.connect("ann");
    world.join(ann, "r");
    world.heard(ann);
    world.clients[ann].down_max = 7;
    world.clients[ann].pace = 0;
    deliver(&mut world, "r", r#"{"type":"slowly"}"#, None);
    world.run();
    world.send_close(ann);
    world.run();
    assert!(!world.clients[ann].gone);
    world.clients[ann].pace = 2;
    world.run();
    assert!(matches!(&world.heard(ann)[..], [Frame::Text(_), Frame::Close(1000, _)]));
    assert!(world.clients[ann].gone);
}

#[test]
fn a_goodbye_that_was_half_written_is_completed_before_the_end() {
    let mut world = World::tiny();
    let ann = world.connect("ann");
    world.heard(ann);
    world.clients[ann].down_max = 2;
    world.clients[ann].pace = 0;
    world.send_close(ann);
    world.run();
    assert!(!world.clients[ann].gone, "two bytes of four have left");
    world.clients[ann].pace = 1;
    world.run();
    assert!(matches!(&world.heard(ann)[..], [Frame::Close(1000, _)]));
    assert!(world.clients[ann].gone);
}

#[test]
fn what_waits_for_a_slow_client_stays_within_its_limit_even_when_it_is_sent_away() {
    let mut world = World::tiny();
    let ann = world.connect("ann");
    world.clients[ann].down_max = 10;
    world.clients[ann].pace = 0;
    for _ in 0..40 {
        world.send_text(ann, r#"{"a":1}"#); // Answered by an error of some hundred bytes.
    }
    world.send_frame(ann, true, 2, b"binary");
    world.clients[ann].down_max = 10;
    world.read(ann, 20); // The first answer waits.
    world.read(ann, usize::MAX);
    world.run(); // Every visit looks at the limit.
    world.clients[ann].pace = usize::MAX;
    world.run();
    assert_eq!(world.close_code(ann), Some(1003));
}

#[test]
fn a_client_that_is_sent_away_has_time_to_answer_in_the_middle_of_a_message() {
    let mut world = World::tiny();
    let ann = world.connect("ann");
    world.clients[ann].answers_close = false;
    // Half of a frame, then the server's goodbye, then the other half and the client's own.
    let frame = crate::peer::client_frame(true, 1, br#"{"type":"ping"}"#, [1, 2, 3, 4]);
    world.send_bytes(ann, &frame[..9]);
    world.run();
    world.say_down(0, Downlink::Drain { over_ms: 0 });
    world.run();
    assert_eq!(world.close_code(ann), Some(1001));
    assert!(!world.clients[ann].half_closed, "the client's goodbye is waited for");
    world.send_bytes(ann, &frame[9..]);
    world.send_close(ann);
    world.run();
    assert!(world.clients[ann].gone);
    assert!(!world.clients[ann].half_closed, "it was understood");
}

#[test]
fn a_client_that_does_not_answer_a_close_frame_is_cut() {
    let mut world = World::tiny();
    let ann = world.connect("ann");
    world.clients[ann].answers_close = false;
    world.send_frame(ann, true, 2, b"binary");
    world.pass(world.limits.close_timeout_ms - 100);
    assert_eq!(world.close_code(ann), Some(1003));
    assert!(!world.clients[ann].gone);
    world.pass(200);
    assert!(world.clients[ann].gone);
    assert_eq!(world.towers[0].shard.counters.closed_unsupported, 1);
}

#[test]
fn nothing_follows_a_close_frame_not_even_an_answer_that_was_on_its_way() {
    let mut world = World::tiny();
    let ann = world.connect("ann");
    world.join(ann, "r");
    world.clients[ann].answers_close = false;
    world.backplane_sleeps = true;
    let acked = Say { wants_ack: true, ..Say::default() };
    world.send_message(ann, "r:r", acked);
    world.send_join(ann, "s");
    world.send_frame(ann, true, 2, b"binary");
    world.run();
    assert_eq!(world.close_code(ann), Some(1003));
    world.backplane_sleeps = false;
    world.run(); // `Peer` fails if anything comes after the close frame.
    assert!(matches!(world.heard(ann).last(), Some(Frame::Close(1003, _))));
}

#[test]
fn a_socket_that_failed_is_not_listened_to_even_if_bytes_of_it_are_left() {
    use campanile::shard::conn::CloseReason;
    let mut world = World::tiny();
    let ann = world.connect("ann");
    world.join(ann, "r");
    let conn = world.clients[ann].conn.unwrap();
    let text = br#"{"target_user_id":"bob","payload":1}"#;
    let mut bytes = crate::peer::client_frame(true, 1, text, [0; 4]);
    // One event says that a socket is writable and readable; the write fails, the read does not.
    world.visit(0, |shard| {
        shard.handle_peer_gone(conn, CloseReason::Io);
        shard.handle_read(conn, &mut bytes);
    });
    world.run();
    assert_eq!(world.backplane.said.len(), 0);
    assert_eq!(world.towers[0].shard.counters.closed_error, 1);
}

#[test]
fn a_ping_is_answered_with_the_same_payload_also_between_fragments() {
    let mut world = World::tiny();
    let ann = world.connect("ann");
    world.heard(ann);
    world.send_frame(ann, false, 1, br#"{"type":"#);
    world.send_frame(ann, true, 9, b"are you there?");
    world.send_frame(ann, true, 0, br#""ping"}"#);
    world.run();
    let heard = world.heard(ann);
    assert_eq!(heard[0], Frame::Pong(b"are you there?".to_vec()));
    assert!(matches!(&heard[1], Frame::Text(json) if json["type"] == "pong"));
}

#[test]
fn what_was_lost_is_announced_before_what_comes_next() {
    let mut world = World::tiny();
    let (ann, bob) = (world.connect("ann"), world.connect("bob"));
    for who in [ann, bob] {
        world.join(who, "r");
        world.heard(who);
    }
    let step = world.tick_step();
    world.backplane_sleeps = true;
    for _ in 0..3 {
        world.publish(bob, "r");
    }
    for _ in 0..3 {
        world.backplane.take(&mut world.windows, 0, 0, step);
    }
    world.backplane.break_link(&mut world.windows, 0, step);
    world.backplane.mend_link(0);
    world.backplane_sleeps = false;
    world.publish(bob, "r");
    assert_eq!(types(&mut world, ann), ["lost r", "message r"]);
    assert_eq!(types(&mut world, bob), ["lost r", "message r"]);
    world.history().judge().unwrap();
}

#[test]
fn a_failed_publish_is_told_even_to_those_who_did_not_ask() {
    let mut world = World::tiny();
    let ann = world.connect("ann");
    world.heard(ann);
    let conn = world.clients[ann].conn.unwrap();
    let outcomes =
        [PublishOutcome::Accepted(None), PublishOutcome::Unavailable, PublishOutcome::Unknown];
    for outcome in outcomes {
        world.say_down(0, Downlink::Ack { conn, id: None, outcome });
        world.say_down(0, Downlink::Ack { conn, id: Some(RequestId::Number(7)), outcome });
    }
    world.run();
    let expected = [
        "ok",
        "error backplane_unavailable",
        "error backplane_unavailable",
        "error outcome_unknown",
        "error outcome_unknown",
    ];
    assert_eq!(types(&mut world, ann), expected);
}

#[test]
fn anonymous_clients_have_names_that_differ() {
    let mut world = World::new(1, 2, 2, Limits::TINY);
    let mut names = std::collections::HashSet::new();
    for at in 0..4 {
        for _ in 0..3 {
            let who = world.connect_to(at, "", &[]);
            assert!(names.insert(world.lives[who].user.clone()));
            world.end_up(who);
            world.run(); // The next one gets the same place.
        }
    }
}

#[test]
fn a_room_joined_again_has_a_new_key_and_frames_for_the_old_one_are_dropped() {
    let mut world = World::tiny();
    let ann = world.connect("ann");
    world.join(ann, "r");
    let old = world.topic_id(0, "r:r");
    world.leave(ann, "r");
    world.join(ann, "r");
    assert_ne!(world.topic_id(0, "r:r"), old);
    world.heard(ann);
    world.say_down(0, Downlink::Deliver { to: old, frame: frame("{}"), except: None });
    world.say_down(0, Downlink::Lost { to: old, count: 1 });
    world.run();
    assert_eq!(world.heard(ann), []);
    assert_eq!(world.towers[0].shard.counters.dropped_stale, 1);
}

#[test]
fn an_echo_connection_hears_its_own_bytes_and_nothing_else() {
    let mut world = World::tiny();
    let echo = world.connect_echo();
    world.send_frame(echo, true, 1, b"not JSON");
    world.send_frame(echo, false, 2, &[0; 700]);
    world.send_frame(echo, true, 0, &[1; 700]);
    world.run();
    let binary = [[0; 700], [1; 700]].concat();
    let text = Frame::Text("not JSON".into());
    assert_eq!(world.heard(echo), [text, Frame::Binary(binary)]);
    world.send_frame(echo, true, 2, &[0; 4097]);
    world.run();
    assert_eq!(world.close_code(echo), Some(1009));
}

#[test]
fn everyone_is_pinged_once_in_an_interval_and_no_moment_carries_more_than_its_share() {
    let (mut world, crowd) = crowd(40);
    let interval_ms = world.limits.ping_interval_ms;
    let tick_ms = 50u64;
    let share = (40 * tick_ms).div_ceil(interval_ms) + 1;
    world.pass(2 * interval_ms); // The first intervals place everyone.
    for who in &crowd {
        world.clients[*who].pings_ms.clear();
    }
    for _ in 0..3 * interval_ms / tick_ms {
        let before = world.towers[0].shard.counters.pings;
        world.now_ms += tick_ms;
        world.tick();
        world.run();
        let pings = world.towers[0].shard.counters.pings - before;
        assert!(pings <= share, "{pings} in one tick");
    }
    for who in crowd {
        let pings = &world.clients[who].pings_ms;
        assert_eq!(pings.len(), 3);
        assert!(pings.windows(2).all(|w| w[1] - w[0] == interval_ms), "{pings:?}");
    }
}

#[test]
fn a_crowd_that_comes_at_once_neither_shortens_anyones_interval_nor_makes_a_burst() {
    let limits = Limits {
        connections_per_shard_max: 500,
        handshakes_max: 500,
        topics_per_shard_max: 1000,
        ..Limits::TINY
    };
    let mut world = World::with(limits);
    let first: Vec<usize> = (0..20).map(|_| world.connect("ann")).collect();
    world.pass(limits.ping_interval_ms - 100);
    for who in &first {
        // Their answers take a third of an interval.
        world.clients[*who].answers_pings = false;
    }
    let crowd: Vec<usize> = (0..400).map(|_| world.connect("bob")).collect();
    let before = world.towers[0].shard.counters.pings;
    world.pass(100);
    assert!(world.towers[0].shard.counters.pings - before < 40, "a burst");
    world.pass(limits.ping_interval_ms / 3);
    for who in first.iter().chain(&crowd) {
        assert_eq!(world.close_code(*who), None, "{who} had no time to answer");
    }
}

#[test]
fn a_silent_client_is_closed_within_two_intervals_and_others_are_not() {
    let mut world = World::tiny();
    let (silent, ann) = (world.connect("silent"), world.connect("ann"));
    world.clients[silent].answers_pings = false;
    world.pass(2 * world.limits.ping_interval_ms + 100);
    assert_eq!(world.close_code(silent), Some(1001));
    assert_eq!(world.towers[0].shard.counters.closed_silent, 1);
    world.pass(5 * world.limits.ping_interval_ms);
    assert_eq!(world.close_code(ann), None);
}

#[test]
fn a_clock_that_stood_still_closes_nobody() {
    let mut world = World::tiny();
    let all: Vec<usize> = (0..6).map(|_| world.connect("ann")).collect();
    for wait_ms in [300, 1_000, 1_900, 2_100, 7_777, 60_000] {
        world.now_ms += wait_ms;
        for _ in 0..3 {
            world.tick(); // Nobody has time to answer between these.
            world.now_ms += 20;
        }
        world.pass(500);
    }
    for who in all {
        assert_eq!(world.close_code(who), None);
    }
}

#[test]
fn a_drain_tells_everyone_to_reconnect_spread_over_its_time() {
    let (mut world, crowd) = crowd(20);
    world.say_down(0, Downlink::Drain { over_ms: 1_000 });
    world.run();
    let late = world.knock(0);
    assert!(world.clients[late].conn.is_none(), "nobody comes in any more");
    let closed =
        |world: &World| crowd.iter().filter(|who| world.close_code(**who) == Some(1001)).count();
    for tenth in 1..=10 {
        world.pass(100);
        assert_eq!(closed(&world), 2 * tenth);
    }
    for who in crowd {
        assert_eq!(types(&mut world, who), ["reconnect"]);
    }
    assert!(world.towers[0].shard.is_drained());
    assert_eq!(world.listened_for(), [""; 0]);
}

#[test]
fn a_shard_has_not_ended_while_what_it_was_told_waits_for_room_in_the_window() {
    let mut world = World::tiny();
    let ann = world.connect_to(0, "ann", &["a"]);
    world.backplane_sleeps = true;
    (0..6).for_each(|_| _ = world.send_message(ann, "r:a", Say::default()));
    world.send_close(ann);
    assert!(world.read(ann, 10_000), "all of it at once");
    world.say_down(0, Downlink::Drain { over_ms: 0 });
    world.run();
    assert!(world.clients[ann].gone);
    assert!(world.towers[0].shard.uplink_waiting() > 0);
    assert!(!world.towers[0].shard.is_drained(), "it would take all of that with it");
    world.backplane_sleeps = false;
    world.run();
    assert_eq!(world.backplane.said.len(), 6);
    assert!(world.towers[0].shard.is_drained());
}
