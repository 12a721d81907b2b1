//! Bounds: of requests that wait, of reads without a reason, and of what is reported as lost.

use crate::backplane::redis::history::ask::PENDING_TIME_MAX;
use crate::backplane::redis::history::tests::rig::{Story, answer, at};
use crate::ids::TopicName;
use crate::link::{Downlink, HistoryError};
use crate::policy::limits::Limits;
use crate::protocol::{Page, Recovery, Unrecovered};
use std::time::Duration;

#[test]
fn a_join_whose_position_cannot_be_read_in_time_is_refused_and_has_none() {
    for topic in [TopicName::room("chat:a"), TopicName::user("ann")] {
        let mut story = Story::begin(topic);
        story.recover(None);
        story.recover(Some(at((7, 1))));
        story.history(Page { since: None, limit: 1, reverse: false });
        story.pass(PENDING_TIME_MAX - Duration::from_millis(1));
        assert!(story.received().is_empty(), "not yet");
        story.pass(Duration::from_secs(1));
        let unavailable = |received: &Downlink| match received {
            Downlink::Unrecoverable(refused) => refused.why == HistoryError::Unavailable,
            Downlink::History(reply) => reply.page == Err(HistoryError::Unavailable),
            _ => false,
        };
        assert_eq!(story.received().iter().filter(|received| unavailable(received)).count(), 3);
        assert_eq!(story.histories.waiting(), 0);
    }
}

#[test]
fn a_join_whose_missed_messages_cannot_be_read_in_time_has_the_position_without_them() {
    let mut story = Story::begin(TopicName::room("chat:a"));
    story.read(&answer(7, 3, "", None, &[]));
    story.recover(Some(at((7, 1))));
    story.pass(PENDING_TIME_MAX);
    let [Downlink::Recovered(reply)] = story.received() else { panic!("not answered") };
    let overload = Unrecovered::Overload;
    let expected = (at((7, 3)), Recovery::NotRecovered(overload));
    assert_eq!((reply.position, reply.recovery), expected);
}

#[test]
fn requests_beyond_the_limit_are_refused_and_one_topic_takes_half_of_the_places() {
    let mut story = Story::begin(TopicName::room("chat:a"));
    let places = Limits::TINY.history_requests_waiting_max;
    let refused = |story: &mut Story| {
        let is_refused = |received: &&Downlink| match received {
            Downlink::Unrecoverable(refused) => refused.why == HistoryError::Overloaded,
            Downlink::History(reply) => reply.page == Err(HistoryError::Overloaded),
            _ => false,
        };
        story.received().iter().filter(is_refused).count()
    };
    (0..places).for_each(|_| story.recover(None));
    assert_eq!((story.histories.waiting(), refused(&mut story)), (places / 2, places / 2));
    // Other topics have the other half, and topics without members are not followed for nothing.
    for other in 0..places {
        story.topic = TopicName::room(&format!("chat:{other}"));
        story.history(Page { since: None, limit: 1, reverse: false });
    }
    assert_eq!((story.histories.waiting(), refused(&mut story)), (places, places));
    assert_eq!(story.local.counters.history_requests_refused, places as u64);
    assert_eq!(story.histories.topics(), 1 + places / 2);
    // They have their places back when they are answered.
    story.read(&answer(7, 3, "", None, &[1, 2, 3]));
    assert_eq!(story.histories.waiting(), 0);
}

#[test]
fn messages_of_a_new_history_are_delivered_from_the_first_one_that_arrived() {
    let mut story = Story::begin(TopicName::room("chat:a"));
    story.read(&answer(7, 9, "", None, &[8, 9]));
    for offset in 1..=3 {
        story.message(at((8, offset)), b"\x01\x001");
    }
    story.read(&answer(8, 3, "", None, &[]));
    assert_eq!(story.histories.to_read(), 1, "what was published before is not in that reply");
    story.message(at((8, 4)), b"\x01\x001");
    story.read(&answer(8, 4, "", None, &[1, 2, 3, 4]));
    story.message(at((8, 5)), b"\x01\x001");
    let received = story.received();
    assert!(matches!(received[0], Downlink::Lost { count: 0, .. }));
    let is_message = |it: &Downlink| matches!(it, Downlink::DeliverWith(_));
    assert_eq!((received[1..].iter().filter(|it| is_message(it)).count(), received.len()), (5, 6));
}

#[test]
fn a_message_of_an_unknown_earlier_epoch_makes_the_history_be_read_once() {
    let mut story = Story::begin(TopicName::room("chat:a"));
    story.read(&answer(7, 3, "6:2 ", None, &[3]));
    story.message(at((6, 2)), b"\x01\x001");
    assert_eq!(story.histories.to_read(), 0, "that epoch is known to be over");
    story.message(at((5, 2)), b"\x01\x001");
    story.message(at((5, 3)), b"\x01\x001");
    assert_eq!(story.histories.to_read(), 1);
    story.read(&answer(7, 3, "6:2 ", None, &[3]));
    assert_eq!((story.histories.to_read(), story.received().len()), (0, 0));
    story.message(at((5, 4)), b"\x01\x001");
    story.read(&answer(5, 4, "", None, &[3, 4]));
    assert!(
        matches!(story.received(), [Downlink::Lost { .. }]),
        "the history was replaced by hand"
    );
}

#[test]
fn a_second_of_a_hundred_thousand_quiet_topics_reads_a_hundred() {
    let mut story = Story::begin(TopicName::room("chat:a"));
    for topic in 0..100_000 {
        let topic = TopicName::room(&format!("chat:quiet-{topic}"));
        story.histories.follow_from(&topic, at((7, 0)));
    }
    story.pass(Duration::ZERO);
    let before = story.histories.to_read();
    story.pass(Duration::from_secs(1));
    assert_eq!(story.histories.to_read() - before, 100);
}

#[test]
fn a_topic_to_which_a_message_arrived_is_audited_a_minute_later_however_many_are_quiet() {
    let mut story = Story::begin(TopicName::room("chat:a"));
    for topic in 0..100_000 {
        let topic = TopicName::room(&format!("chat:quiet-{topic}"));
        story.histories.follow_from(&topic, at((7, 0)));
    }
    let active = TopicName::room("chat:quiet-99999");
    story.topic = active.clone();
    story.message(at((7, 1)), b"\x01\x001");
    for second in 1..=60 {
        let waiting = story.histories.to_read.iter().any(|(name, _)| *name == active);
        assert!(!waiting, "after {second} seconds");
        story.pass(Duration::from_secs(1));
    }
    assert!(story.histories.to_read.iter().any(|(name, _)| *name == active));
}
