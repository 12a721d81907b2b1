//! The machine on virtual time: every interleaving of replies, errors, losses and time, beside a
//! naive model.

mod model;
mod rig;

use crate::backplane::redis::error_reply::ErrorReply;
use crate::backplane::redis::pipeline::batch::OutgoingBatch;
use crate::backplane::redis::pipeline::connection::BatchSender;
use crate::backplane::redis::pipeline::fake::FakeConnection;
use crate::backplane::redis::pipeline::item_reply::ItemReply;
use crate::backplane::redis::pipeline::machine::{BatchPipeline, RetryOrder};
use model::Model;
use proptest::prelude::*;
use redis::Value;
use rig::{Answer, Rig, SCRIPTS, error};
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

/// Something happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    Push,
    /// The oldest batch without an answer gets one.
    Oldest(Answer),
    /// The replies to the newest batch are there first.
    NewestOk,
    LinkLost,
    /// 20 ms pass.
    Wait,
    /// The user pauses, or resumes.
    TogglePause,
}

const EVENTS: [Event; 14] = [
    Event::Push,
    Event::Oldest(Answer::Ok),
    Event::Oldest(Answer::MovedFirst),
    Event::Oldest(Answer::NotYetLast),
    Event::Oldest(Answer::NoScript),
    Event::Oldest(Answer::NoScriptNorLoad),
    Event::Oldest(Answer::OomFirst),
    Event::Oldest(Answer::Demoted),
    Event::Oldest(Answer::Broken),
    Event::Oldest(Answer::OutOfStep),
    Event::NewestOk,
    Event::LinkLost,
    Event::Wait,
    Event::TogglePause,
];

struct Story {
    rig: Rig,
    model: Model,
    events: Vec<Event>,
}

impl Story {
    /// Five items: two batches are in flight, and one item waits.
    fn begin(order: RetryOrder) -> Story {
        let mut story =
            Story { rig: Rig::new(order), model: Model::new(order), events: Vec::new() };
        for _ in 0..5 {
            story.rig.push();
            story.model.push();
        }
        story.turn();
        story
    }

    fn turn(&mut self) {
        self.model.turn(self.rig.now);
        self.rig.turn();
        self.model.check(&self.rig, &self.events);
    }

    /// Whether the event can happen; if so, it has.
    fn happens(&mut self, event: Event) -> bool {
        self.events.push(event);
        let unanswered = |batch: &rig::ServerBatch| !batch.is_answered;
        let oldest = self.rig.batches.iter().position(unanswered);
        let newest = self.rig.batches.iter().rposition(unanswered);
        match event {
            Event::Push => {
                self.rig.push();
                self.model.push();
            }
            Event::Oldest(answer) => {
                let Some(oldest) = oldest else { return false };
                self.rig.answer(oldest, answer);
                self.model.answer(oldest, answer);
            }
            Event::NewestOk => {
                let Some(newest) = newest.filter(|newest| Some(*newest) != oldest) else {
                    return false;
                };
                self.rig.answer(newest, Answer::Ok);
                self.model.answer(newest, Answer::Ok);
            }
            Event::LinkLost => {
                self.rig.lose_link();
                self.model.lose_link(self.rig.now, None);
            }
            Event::Wait => self.rig.pass(Duration::from_millis(20)),
            Event::TogglePause => {
                self.model.is_paused = !self.model.is_paused;
                self.rig.pipeline.set_paused(self.model.is_paused);
            }
        }
        self.turn();
        true
    }

    /// The server recovers, and answers everything.
    fn end(mut self) {
        if self.model.is_paused {
            assert!(self.happens(Event::TogglePause));
        }
        for _ in 0..100 {
            if self.rig.pipeline.is_idle() && self.rig.waiting.is_empty() {
                break;
            }
            if !self.happens(Event::Oldest(Answer::Ok)) {
                assert!(self.happens(Event::Wait));
            }
        }
        assert_eq!(self.rig.pipeline.refused_since(), None);
        let mut ended: Vec<u32> = self.rig.ended.iter().map(|(item, _)| *item).collect();
        ended.sort_unstable();
        let pushed: Vec<u32> = (0..ended.len() as u32).collect();
        assert_eq!(ended, pushed, "each item ends exactly once: {:?}", self.events);
    }
}

/// Plays all stories of this many events. Returns their number.
fn play_all(order: RetryOrder, begun: &mut Vec<Event>, depth: usize) -> usize {
    let mut played = 0;
    for event in EVENTS {
        let mut story = Story::begin(order);
        assert!(begun.iter().all(|event| story.happens(*event)));
        if !story.happens(event) {
            continue;
        }
        played += 1;
        story.end();
        if depth > 1 {
            begun.push(event);
            played += play_all(order, begun, depth - 1);
            begun.pop();
        }
    }
    played
}

#[test]
fn every_short_story_of_a_lane_that_holds_its_order_is_as_in_the_model() {
    assert!(play_all(RetryOrder::InOrder, &mut Vec::new(), 4) > 10_000);
}

#[test]
fn every_short_story_of_items_that_are_sent_again_one_by_one_is_as_in_the_model() {
    assert!(play_all(RetryOrder::Each, &mut Vec::new(), 4) > 10_000);
}

proptest! {
    #[test]
    fn long_stories_are_as_in_the_model(
        is_in_order: bool,
        events in proptest::collection::vec(proptest::sample::select(&EVENTS[..]), 1..80),
    ) {
        let order = if is_in_order { RetryOrder::InOrder } else { RetryOrder::Each };
        let mut story = Story::begin(order);
        for event in events {
            story.happens(event);
        }
        story.end();
    }
}

#[test]
fn users_of_one_connection_that_all_miss_a_script_load_it_once() {
    let (connection, now) = (FakeConnection::default(), Instant::now());
    let mut cx = Context::from_waker(Waker::noop());
    connection.scripts().note_load(SCRIPTS.owner);
    let mut users: Vec<BatchPipeline<u32, _>> =
        (0..3).map(|_| BatchPipeline::new(1, RetryOrder::InOrder)).collect();
    let mut loads = Vec::new();
    for round in 0..3 {
        for (number, user) in users.iter_mut().enumerate() {
            let mut batch = OutgoingBatch::with_scripts(1, &connection, &SCRIPTS);
            loads.push(batch.commands.len());
            let item = user.take_due(now).next().unwrap_or(number as u32);
            batch.commands.cmd("EVALSHA");
            batch.items.push(item);
            user.send(&mut cx, now, &connection, batch);
        }
        let sent = connection.take_sent();
        for (user, sent) in users.iter_mut().zip(sent) {
            let mut replies = vec![Value::Int(1); sent.commands.len()];
            if round == 0 {
                replies[0] = error("NOSCRIPT No matching script.");
            }
            sent.reply.deliver(Ok(replies));
            for (item, reply) in user.poll_answered(&mut cx).unwrap().expect("it was answered") {
                if let ItemReply::Again(refusal) = reply {
                    user.send_again(item, refusal, now);
                }
            }
            assert!(user.poll_answered(&mut cx).unwrap().is_none());
        }
    }
    assert_eq!(loads, [0, 0, 0, SCRIPTS.texts.len(), 0, 0, 0, 0, 0]);
}

#[test]
fn a_connection_that_has_loaded_nothing_begins_with_the_scripts() {
    let connection = FakeConnection::default();
    let batch = OutgoingBatch::<u32>::with_scripts(1, &connection, &SCRIPTS);
    assert_eq!(batch.commands.len(), SCRIPTS.texts.len());
    let plain = OutgoingBatch::<u32>::new(1);
    assert_eq!(plain.commands.len(), 0);
}

#[test]
fn each_item_gets_the_replies_of_its_commands_and_the_last_command_its_own() {
    let (connection, now) = (FakeConnection::default(), Instant::now());
    let mut cx = Context::from_waker(Waker::noop());
    let mut pipeline = BatchPipeline::new(1, RetryOrder::Each);
    let mut batch = OutgoingBatch::with_scripts(3, &connection, &SCRIPTS).commands_per_item(2);
    for item in 0..3 {
        batch.commands.cmd("HMGET").cmd("EXEC");
        batch.items.push(item);
    }
    batch.end_with(redis::cmd("WAIT"));
    pipeline.send(&mut cx, now, &connection, batch);
    let sent = connection.take_sent().pop().unwrap();
    let loads = vec![Value::Okay; SCRIPTS.texts.len()];
    let (refused, aborted) = (error("MOVED 1 127.0.0.1:1"), error("EXECABORT discarded"));
    let of_items = vec![
        [Value::Int(10), Value::Int(11)],
        [refused, aborted],
        [Value::Int(30), error("OOM command not allowed")],
    ];
    let replies = loads.into_iter().chain(of_items.into_iter().flatten()).chain([Value::Int(99)]);
    sent.reply.deliver(Ok(replies.collect()));
    let mut batch = pipeline.poll_answered(&mut cx).unwrap().expect("it was answered");
    assert_eq!((batch.sent_at(), batch.take_last()), (now, Some(Value::Int(99))));
    let mut next = || batch.next().unwrap();
    assert!(matches!(next(), (0, ItemReply::Ended(Value::Int(11)))));
    let (item, reply) = next();
    let ItemReply::Again(refusal) = reply else { panic!("{reply:?}") };
    assert_eq!((item, refusal.kind), (1, ErrorReply::Moved), "the first error is the reason");
    assert!(matches!(next(), (2, ItemReply::Permanent(_))));
    assert!(batch.next().is_none());
}

#[test]
#[should_panic(expected = "each reply belongs to something")]
fn a_batch_whose_replies_could_not_be_assigned_is_not_sent() {
    let mut pipeline = BatchPipeline::new(1, RetryOrder::Each);
    let mut batch = OutgoingBatch::new(1);
    batch.commands.cmd("HMGET").cmd("EXEC");
    batch.items.push(0);
    let mut cx = Context::from_waker(Waker::noop());
    pipeline.send(&mut cx, Instant::now(), &FakeConnection::default(), batch);
}

#[test]
fn items_leave_the_refused_ones_from_the_front_or_by_choice_in_order() {
    let now = Instant::now();
    let mut pipeline = BatchPipeline::<u32, rig::Reply>::new(1, RetryOrder::InOrder);
    (0..6).for_each(|item| pipeline.send_at(item, now + Duration::from_secs(1), now));
    assert_eq!(pipeline.pop_refused_if(|item| *item == 1), None);
    assert_eq!(pipeline.pop_refused_if(|item| *item == 0), Some(0));
    assert_eq!(pipeline.extract_refused(|item| item % 2 == 1), [1, 3, 5]);
    assert_eq!((pipeline.take_due(now).count(), pipeline.refused_since()), (0, Some(now)));
    assert_eq!(pipeline.extract_refused(|_| true), [2, 4]);
    assert!(pipeline.is_idle());
    assert_eq!(pipeline.refused_since(), None);
}
