//! Topics with a history, in process and through Redis.

use crate::redis::wait_until;
use crate::world::{Received, Shard, World, conn_id, payload_of};
use campanile::ids::{Position, TopicName};
use campanile::link::{HistoryError, HistoryRequest, PublishOutcome, ReplyTo, Uplink};
use campanile::protocol::dialect::Encoding;
use campanile::protocol::{Page, Recovery, RequestId, Unrecovered};

fn room(name: &str) -> TopicName {
    TopicName::room(name)
}

/// Publishes so many numbers and waits for each; returns the position of the last one.
fn publish_numbers(
    shard: &Shard,
    topic: &TopicName,
    numbers: std::ops::RangeInclusive<u64>,
) -> Position {
    let mut last = None;
    for number in numbers {
        shard.publish_keyed(topic, &number.to_string(), number, None);
        last = accepted(shard, number);
    }
    last.expect("at least one")
}

/// Waits for the reply to a publish, and skips deliveries.
fn accepted(shard: &Shard, wanted: u64) -> Option<Position> {
    loop {
        match shard.receive() {
            Received::Ack { id, outcome: PublishOutcome::Accepted(position), .. }
                if id == Some(wanted) =>
            {
                return Some(position.expect("the topic keeps a history"));
            }
            Received::Frame { .. } => {}
            other => panic!("not the answer: {other:?}"),
        }
    }
}

fn texts(numbers: std::ops::RangeInclusive<u64>) -> Vec<String> {
    numbers.map(|number| number.to_string()).collect()
}

pub fn every_join_learns_the_position_and_deliveries_go_on_from_there(world: World) {
    let (speaker, receiver) = world.two_shards();
    let topic = room("kept:a");
    let first = publish_numbers(speaker, &topic, 1..=3);
    assert_eq!(first.offset, 3);
    receiver.join_and_receive(&topic, 5);
    let (position, recovery, missed) = receiver.recover_and_receive(&topic, 5, None);
    assert_eq!((position, recovery, missed), (first, Recovery::NotAsked, vec![]));
    publish_numbers(speaker, &topic, 4..=5);
    for offset in 4..=5 {
        let Received::Frame { to: 5, json, .. } = receiver.receive() else {
            panic!("a frame is next")
        };
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(json["offset"], offset);
        assert_eq!(json["epoch"], position.epoch.to_string());
    }
}

pub fn a_client_that_was_away_receives_what_it_missed(world: World) {
    let (speaker, receiver) = world.two_shards();
    let topic = room("kept:a");
    let at = publish_numbers(speaker, &topic, 1..=10);
    receiver.join_and_receive(&topic, 5);
    let since = |offset| Some(Position { offset, ..at });
    let answer = receiver.recover_and_receive(&topic, 5, since(4));
    assert_eq!(answer, (at, Recovery::Recovered { messages: 6 }, texts(5..=10)));
    let answer = receiver.recover_and_receive(&topic, 5, since(0));
    assert_eq!(answer, (at, Recovery::Recovered { messages: 10 }, texts(1..=10)));
    let answer = receiver.recover_and_receive(&topic, 5, since(10));
    assert_eq!(answer, (at, Recovery::Recovered { messages: 0 }, vec![]));
}

pub fn messages_that_cannot_be_recovered_are_reported_with_the_reason(world: World) {
    let (speaker, receiver) = world.two_shards();
    let (three, deaf) = (room("three:a"), room("deaf:a"));
    let at = publish_numbers(speaker, &three, 1..=5);
    publish_numbers(speaker, &deaf, 1..=5);
    receiver.join_and_receive(&three, 5);
    receiver.join_and_receive(&deaf, 6);
    let reason = |topic: &TopicName, key, since| {
        let (_, recovery, missed) = receiver.recover_and_receive(topic, key, Some(since));
        assert_eq!(missed, Vec::<String>::new());
        match recovery {
            Recovery::NotRecovered(why) => why,
            other => panic!("it was brought back: {other:?}"),
        }
    };
    assert_eq!(reason(&three, 5, Position { offset: 1, ..at }), Unrecovered::Trimmed);
    assert_eq!(reason(&three, 5, Position { offset: 6, ..at }), Unrecovered::TailLost);
    assert_eq!(reason(&three, 5, Position { epoch: 7, offset: 4 }), Unrecovered::Epoch);
    assert_eq!(reason(&deaf, 6, Position { epoch: 7, offset: 4 }), Unrecovered::NotEnabled);
    let answer = receiver.recover_and_receive(&three, 5, Some(Position { offset: 2, ..at }));
    assert_eq!(answer, (at, Recovery::Recovered { messages: 3 }, texts(3..=5)));
}

pub fn a_reply_is_ordered_between_earlier_and_later_messages(world: World) {
    let (speaker, receiver) = world.two_shards();
    let topic = room("kept:a");
    receiver.join_and_receive(&topic, 5);
    let (mut position, ..) = receiver.recover_and_receive(&topic, 5, None);
    for number in 1..=200 {
        speaker.publish(&topic, &number.to_string());
        if number % 20 == 0 {
            receiver.recover(&topic, 5, number, Some(position));
        }
    }
    // Whatever came between: a reply's position is that of the last frame before it.
    let mut answers = 0;
    while position.offset < 200 || answers < 10 {
        match receiver.receive() {
            Received::Frame { json, .. } => {
                position.offset += 1;
                assert_eq!(payload_of(&json), position.offset.to_string());
            }
            Received::Recovered { position: told, .. } => {
                answers += 1;
                assert_eq!(told, position);
            }
            other => panic!("neither: {other:?}"),
        }
    }
}

pub fn a_retry_under_the_same_key_is_stored_once(world: World) {
    let (speaker, receiver) = world.two_shards();
    let topic = room("kept:a");
    receiver.join_and_receive(&topic, 5);
    receiver.recover_and_receive(&topic, 5, None); // as every member does
    let mut positions = Vec::new();
    for (id, key) in [(1, "a"), (2, "a"), (3, "b"), (4, "a")] {
        speaker.publish_keyed(&topic, &id.to_string(), id, Some(key));
        positions.push(accepted(speaker, id).unwrap().offset);
    }
    assert_eq!(positions, [1, 1, 2, 1]);
    assert_eq!(receiver.receive_payloads(5, 2), ["1", "3"]);
    speaker.publish_keyed(&room("kept:b"), "5", 5, Some("a"));
    assert_eq!(accepted(speaker, 5).unwrap().offset, 1, "a key is known in its own topic only");
}

pub fn a_history_is_read_page_by_page_by_clients_and_operators(world: World) {
    let topic = room("kept:a");
    let page = |since: Option<Position>, limit, reverse| Page { since, limit, reverse };
    let (speaker, receiver) = world.two_shards();
    let at = publish_numbers(speaker, &topic, 1..=10);
    let read = |page: Page| {
        let to = ReplyTo::Conn {
            shard: receiver.end.id,
            conn: conn_id(7),
            id: Some(RequestId::Number(3)),
            turn: false,
        };
        receiver.send(Uplink::History(Box::new(HistoryRequest {
            topic: topic.clone(),
            page,
            encoding: Encoding::NATIVE,
            to,
        })));
        let Received::History { id: Some(3), said } = receiver.receive() else {
            panic!("not the answer")
        };
        said.map(|(position, texts)| {
            assert_eq!(position, at);
            texts.iter().map(|json| payload_of(json)).collect::<Vec<_>>()
        })
    };
    assert_eq!(read(page(None, 3, false)), Ok(texts(1..=3)));
    assert_eq!(read(page(None, 2, true)), Ok(vec!["10".into(), "9".into()]));
    let five = Some(Position { offset: 5, ..at });
    assert_eq!(read(page(five, 2, false)), Ok(texts(6..=7)));
    assert_eq!(read(page(five, 2, true)), Ok(vec!["4".into(), "3".into()]));
    assert_eq!(read(page(None, 0, false)), Ok(vec![]));
    let foreign = Some(Position { epoch: 7, offset: 1 });
    let refused = Err(HistoryError::Unrecovered(Unrecovered::Epoch));
    assert_eq!(read(page(foreign, 2, false)), refused);

    let (tell, told) = std::sync::mpsc::channel();
    let to = ReplyTo::Call(Box::new(move |said| tell.send(said).unwrap()));
    let page = page(None, 100, false);
    let ask = Uplink::History(Box::new(HistoryRequest {
        topic: topic.clone(),
        page,
        encoding: Encoding::NATIVE,
        to,
    }));
    world.nodes[0].ops.try_publish(ask).expect("there is room");
    let mut said = None;
    wait_until("the operator is answered", || {
        said = said.take().or_else(|| told.try_recv().ok());
        said.is_some()
    });
    assert_eq!(said.unwrap().unwrap().messages.messages, 10);
}
