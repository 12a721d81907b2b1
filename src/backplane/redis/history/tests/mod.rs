//! Histories of one node between clients that ask anything and a server that answers anything.

mod bounds;
mod rig;

use crate::backplane::redis::history::ask::PENDING_TIME_MAX;
use crate::backplane::redis::history::batch::BatchKind;
use crate::backplane::redis::hostile;
use crate::ids::{Position, TopicName, UpTo};
use crate::link::{Downlink, HistoryError};
use crate::protocol::{Page, Recovery, Unrecovered};
use proptest::prelude::*;
use redis::Value;
use rig::{Story, answer, at, recovered};
use std::time::Duration;

#[derive(Clone, Debug)]
enum Deed {
    Recover(Option<(u64, u64)>),
    History(Option<(u64, u64)>, u32, bool),
    Message(u64, u64, bool),
    Acknowledge(Option<u64>, u64),
    /// The server's reply.
    FetchedHistory(u64, u64, Option<(u64, u64)>, Option<u64>, Vec<u64>),
    ReadAnything(Value),
    LoseLink,
    Pass(u64),
}

fn deed() -> impl Strategy<Value = Deed> {
    let number = || prop_oneof![3 => 0..8u64, 1 => hostile::edge()];
    let epoch = || prop_oneof![3 => 1..4u64, 1 => hostile::edge()];
    let topic_ref = move || prop::option::of((epoch(), number()));
    prop_oneof![
        topic_ref().prop_map(Deed::Recover),
        (topic_ref(), 0..9u32, any::<bool>())
            .prop_map(|(at, limit, back)| Deed::History(at, limit, back)),
        (epoch(), number(), any::<bool>()).prop_map(|(e, o, good)| Deed::Message(e, o, good)),
        (prop::option::of(epoch()), number()).prop_map(|(e, o)| Deed::Acknowledge(e, o)),
        (
            epoch(),
            number(),
            topic_ref(),
            prop::option::of(number()),
            prop::collection::btree_set(number(), 0..6),
        )
            .prop_map(|(e, s, l, a, all)| Deed::FetchedHistory(
                e,
                s,
                l,
                a,
                all.into_iter().collect()
            )),
        (hostile::value(), hostile::value())
            .prop_map(|(one, two)| Deed::ReadAnything(Value::Array(vec![one, two]))),
        hostile::error().prop_map(Deed::ReadAnything),
        Just(Deed::LoseLink),
        (0..70_000u64).prop_map(Deed::Pass),
    ]
}

fn act(story: &mut Story, deed: Deed) {
    match deed {
        Deed::Recover(since) => story.recover(since.map(at)),
        Deed::History(since, limit, reverse) => {
            story.history(Page { since: since.map(at), limit, reverse });
        }
        // Positions on a channel are checked before.
        Deed::Message(epoch, offset, is_good) => {
            if let Some(at) = Position::checked(epoch, offset) {
                story.message(at, if is_good { b"\x01\x001" } else { b"\xFF" });
            }
        }
        Deed::Acknowledge(epoch, offset) => {
            story.histories.acknowledge(&story.topic, UpTo { epoch, offset });
        }
        Deed::FetchedHistory(e, s, l, a, offsets) => {
            let l =
                l.map_or(String::new(), |(epoch, fork_offset)| format!("{epoch}:{fork_offset} "));
            story.read(&answer(e, s, &l, a, &offsets));
        }
        Deed::ReadAnything(answer) => story.read(&answer),
        Deed::LoseLink => {
            story.histories.lose_link(&mut story.local);
            story.histories.on_subscribed(&story.topic);
        }
        Deed::Pass(ms) => story.pass(Duration::from_millis(ms)),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn any_server_replies_lead_to_one_answer_for_each_request_and_no_impossible_position(
        is_user: bool,
        deeds in prop::collection::vec(deed(), 1..40),
    ) {
        let topic = if is_user { TopicName::user("ann") } else { TopicName::room("chat:a") };
        let mut story = Story::begin(topic);
        deeds.into_iter().for_each(|deed| act(&mut story, deed));
        story.pass(PENDING_TIME_MAX + Duration::from_secs(1));
        let (asked, mut answered) = (story.asked, 0);
        for received in story.received() {
            let position = match received {
                Downlink::Recovered(reply) => Some(reply.position),
                Downlink::Unrecoverable(_) => None,
                Downlink::History(reply) => reply.page.as_ref().ok().map(|page| page.position),
                _ => continue,
            };
            answered += 1;
            let is_possible = |at: Position| Position::checked(at.epoch, at.offset) == Some(at);
            prop_assert!(position.is_none_or(is_possible), "{position:?}");
        }
        prop_assert_eq!(asked, answered);
        let (mut bytes, mut waiting) = (0, 0);
        for (_, topic) in story.histories.topics.iter_mut() {
            topic.invariants();
            bytes += topic.bytes();
            waiting += topic.pending.len();
        }
        prop_assert_eq!((story.histories.bytes(), story.histories.waiting()), (bytes, waiting));
    }
}

#[test]
fn requests_for_an_unreadable_history_are_refused_until_it_is_corrected() {
    let mut story = Story::begin(TopicName::room("chat:a"));
    story.read(&answer(7, 3, "", None, &[1, 2, 3]));
    story.recover(None);
    assert!(matches!(story.received()[..], [Downlink::Recovered(_)]));
    story.pass(Duration::from_secs(61));
    story.read(&answer(7, u64::MAX, "", None, &[1, 2, 3]));
    for _ in 0..3 {
        story.recover(Some(at((7, 1))));
        story.history(Page { since: None, limit: 1, reverse: false });
    }
    let refused = |received: &Downlink| match received {
        Downlink::Unrecoverable(_) => true,
        Downlink::History(reply) => reply.page == Err(HistoryError::Unreadable),
        _ => false,
    };
    assert_eq!(story.received()[1..].iter().filter(|received| refused(received)).count(), 6);
    assert_eq!(story.local.counters.histories_unreadable, 1, "nobody reads it for each who asks");
    story.pass(Duration::from_secs(1));
    story.read(&answer(7, 4, "", None, &[1, 2, 3, 4]));
    story.recover(Some(at((7, 1))));
    let last = story.received().last();
    let Some(Downlink::Recovered(reply)) = last else { panic!("not answered") };
    assert_eq!((reply.position, reply.recovery), (at((7, 4)), recovered(3)));
}

#[test]
fn reads_of_an_unreadable_history_become_rare() {
    let mut story = Story::begin(TopicName::room("chat:a"));
    let mut reads = 0;
    for _ in 0..1200 {
        story.pass(Duration::from_millis(100));
        let before = story.local.counters.histories_unreadable;
        story.read(&answer(7, 1 << 53, "", None, &[]));
        reads += story.local.counters.histories_unreadable - before;
    }
    // In two minutes: 250 ms, 500 ms, … 16 s, and then each 30 s.
    assert!((8..=12).contains(&reads), "{reads}");
}

#[test]
fn a_message_at_a_position_that_the_history_does_not_have_is_not_waited_for() {
    let mut story = Story::begin(TopicName::room("chat:a"));
    story.read(&answer(7, 3, "", None, &[1, 2, 3]));
    for lie in [at((7, 9)), at((7, Position::NUMBER_MAX)), at((8, 1))] {
        story.message(lie, b"\x01\x001");
        story.read(&answer(7, 3, "", None, &[1, 2, 3]));
        assert_eq!(story.histories.to_read(), 0, "it is read once for {lie:?}");
        story.recover(None);
    }
    assert_eq!(story.local.counters.publishes_malformed, 3);
    let answered =
        story.received().iter().filter(|it| matches!(it, Downlink::Recovered(_))).count();
    assert_eq!(answered, 3, "and everybody is answered");
    story.message(at((7, 4)), b"\x01\x001");
    assert!(matches!(story.received().last(), Some(Downlink::DeliverWith(_))));
}

#[test]
fn a_message_that_arrives_during_a_read_is_not_taken_for_impossible() {
    let mut story = Story::begin(TopicName::room("chat:a"));
    story.read(&answer(7, 3, "", None, &[1, 2, 3]));
    story.message(at((7, 5)), b"\x01\x001");
    let topics = story.send_reads();
    // Published after the read was sent, so the reply does not have it.
    story.message(at((7, 6)), b"\x01\x001");
    story.handle_replies(topics, BatchKind::Read, &answer(7, 5, "", None, &[4, 5]), 0);
    assert_eq!(story.local.counters.publishes_malformed, 0);
    let frames = |story: &mut Story| {
        story.received().iter().filter(|it| matches!(it, Downlink::DeliverWith(_))).count()
    };
    assert_eq!(frames(&mut story), 3);
}

#[test]
fn a_history_that_was_reset_is_reported_as_lost_and_continues_from_there() {
    let mut story = Story::begin(TopicName::room("chat:a"));
    story.read(&answer(7, 5, "", None, &[4, 5]));
    story.pass(Duration::from_secs(61));
    story.read(&answer(7, 2, "", None, &[1, 2]));
    story.read(&answer(7, 2, "", None, &[1, 2])); // this node has offered a repair
    let lost = story.received().iter().filter(|it| matches!(it, Downlink::Lost { .. })).count();
    assert_eq!(lost, 1);
    story.message(at((7, 3)), b"\x01\x001");
    assert!(
        matches!(story.received().last(), Some(Downlink::DeliverWith(_))),
        "and it is received"
    );
    story.recover(Some(at((7, 5))));
    story.read(&answer(7, 3, "", None, &[1, 2, 3]));
    let Some(Downlink::Recovered(reply)) = story.received().last() else { panic!("not answered") };
    let lost = Unrecovered::TailLost;
    assert_eq!(reply.recovery, Recovery::NotRecovered(lost));
}

#[test]
fn a_member_who_joined_without_a_position_receives_messages_once_the_history_is_corrected() {
    let mut story = Story::begin(TopicName::user("ann"));
    story.recover(None);
    story.read(&answer(7, 1 << 63, "", None, &[]));
    assert!(matches!(story.received(), [Downlink::Unrecoverable(_)]));
    story.message(at((7, 2)), b"\x01\x001");
    story.pass(Duration::from_secs(1));
    story.read(&answer(7, 2, "", None, &[1, 2]));
    assert!(matches!(story.received()[1..], [Downlink::DeliverWith(_)]), "and nothing of before");
}

#[test]
fn a_recovery_has_one_epoch_that_of_its_position() {
    let mut story = Story::begin(TopicName::room("chat:a"));
    story.read(&answer(7, 3, "6:2 ", None, &[]));
    story.message(at((7, 4)), b"\x01\x001");
    story.pass(Duration::from_secs(61));
    story.read(&answer(8, 4, "7:4 6:2 ", None, &[4]));
    story.recover(Some(at((6, 1))));
    story.read(&answer(8, 4, "7:4 6:2 ", None, &[1, 2, 3, 4]));
    let Some(Downlink::Recovered(reply)) = story.received().last() else { panic!("not answered") };
    assert_eq!((reply.position, reply.recovery), (at((8, 4)), recovered(3)));
    let missed = String::from_utf8_lossy(&reply.missed.bytes).into_owned();
    let epochs: Vec<&str> = missed.split("\"epoch\":\"").skip(1).map(|rest| &rest[..1]).collect();
    assert_eq!(epochs, ["8", "8", "8"], "no epoch comes back after a later one");
}
