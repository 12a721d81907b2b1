//! The checker checked: a true day is accepted, and refused with any one thing changed.

use super::checker::{Day, Promise};
use super::tape::{At, Event, Heard, Message, Recovery, Tape};
use crate::history::Step;
use std::collections::BTreeMap;

const ROOM: &str = "k:r";

fn at(offset: u64) -> At {
    At { epoch: "e".to_owned(), offset }
}

/// Ann's message, which bears the number of its request.
fn message(number: u64, offset: u64) -> Event {
    let message = Message {
        at: Some(at(offset)),
        name: (0, number),
        body: format!("body {number}"),
        from: "ann".to_owned(),
    };
    Event::Heard(Heard::Message { room: ROOM.to_owned(), message })
}

fn says(number: u64, echo: bool) -> Event {
    let (room, body) = (ROOM.to_owned(), format!("body {number}"));
    Event::Publish { id: Some(number), room, name: (0, number), body, echo, has_key: false }
}

fn ok(id: u64, at: Option<At>) -> Event {
    Event::Heard(Heard::Ok { id: Some(id), room: None, at, recovery: None })
}

fn in_room(id: u64, at: Option<At>, recovery: Option<Recovery>) -> Event {
    Event::Heard(Heard::Ok { id: Some(id), room: Some(ROOM.to_owned()), at, recovery })
}

fn join(id: u64, since: Option<At>) -> Event {
    Event::Join { id: Some(id), room: ROOM.to_owned(), since }
}

fn lost(count: u64) -> Event {
    Event::Heard(Heard::Lost { room: ROOM.to_owned(), count })
}

/// Ann says five things, the second without echo.
fn ann() -> Vec<(Step, Event)> {
    let mut events = vec![(10, join(1, None)), (12, in_room(1, Some(at(0)), None))];
    for number in 2..=6 {
        let (step, echo) = (number * 20, number != 3);
        events.push((step, says(number, echo)));
        events.extend(echo.then(|| (step + 2, message(number, number - 1))));
        events.push((step + 3, ok(number, Some(at(number - 1)))));
    }
    events
}

/// Bob hears the first, is away for two of them and comes back for those, loses the fourth and hears
/// the fifth.
fn bob() -> Vec<(Step, Event)> {
    let recovered = Some(Recovery::Recovered { messages: 2 });
    vec![
        (10, join(1, None)),
        (12, in_room(1, Some(at(0)), None)),
        (42, message(2, 1)),
        (43, Event::Leave { id: 2, room: ROOM.to_owned() }),
        (44, in_room(2, None, None)),
        (90, join(3, Some(at(1)))),
        (92, in_room(3, Some(at(3)), recovered)),
        (93, message(3, 2)),
        (94, message(4, 3)),
        (110, lost(1)),
        (123, message(6, 5)),
    ]
}

fn day() -> Day {
    let tape = |user: &str, events| Tape { user: user.to_owned(), events, is_alive: true };
    let promise =
        Promise { history_size: 10, recovery: true, is_ample: true, recovery_bytes_max: 10_000 };
    Day {
        tapes: vec![tape("ann", ann()), tape("bob", bob())],
        rooms: BTreeMap::from([(ROOM.to_owned(), Some(promise))]),
        finals: BTreeMap::from([(ROOM.to_owned(), at(5))]),
    }
}

/// Changes one thing and answers the verdict's first line.
fn refused(change: impl FnOnce(&mut Vec<(Step, Event)>, &mut Vec<(Step, Event)>)) -> String {
    let mut day = day();
    let [ann, bob] = &mut day.tapes[..] else { unreachable!("there are two") };
    change(&mut ann.events, &mut bob.events);
    let why = day.check().expect_err("this is not what was promised");
    why.lines().next().expect("it says why").to_owned()
}

fn place(events: &[(Step, Event)], wanted: &Event) -> usize {
    events.iter().position(|(_, event)| event == wanted).expect("it is there")
}

/// Takes an event out.
fn without(events: &mut Vec<(Step, Event)>, event: &Event) {
    events.remove(place(events, event));
}

#[test]
fn a_true_day_is_accepted() {
    day().check().unwrap();
}

#[test]
fn a_message_that_is_missing_is_seen() {
    let missing = |number: u64| refused(|_, bob| without(bob, &message(number, number - 1)));
    assert!(missing(3).contains("recovering"), "{}", missing(3));
    assert!(missing(4).contains("recovering"), "{}", missing(4));
    assert!(missing(6).contains("and the end"), "{}", missing(6));
    let ann_misses = refused(|ann, _| without(ann, &message(5, 4)));
    assert!(ann_misses.contains("1 between"), "{ann_misses}");
    let tail = refused(|_, bob| bob.truncate(8));
    assert!(tail.contains("recovered less"), "{tail}");
}

#[test]
fn a_loss_that_nobody_told_of_is_seen() {
    let why = refused(|_, bob| without(bob, &lost(1)));
    assert!(why.contains("told of 0"), "{why}");
    let late = refused(|_, bob| bob.swap(9, 10));
    assert!(late.contains("told of 0"), "{late}");
}

#[test]
fn a_message_that_comes_twice_or_too_early_is_seen() {
    let twice = refused(|_, bob| bob.push((130, message(6, 5))));
    assert!(twice.contains("after At"), "{twice}");
    let swapped = refused(|_, bob| bob.swap(7, 8));
    assert!(swapped.contains("recovering"), "{swapped}");
    let old = refused(|_, bob| bob.insert(2, (13, message(6, 0))));
    assert!(old.contains("stands at"), "{old}");
}

#[test]
fn a_place_that_is_given_twice_is_seen() {
    let why = refused(|ann, _| {
        let place = place(ann, &ok(4, Some(at(3))));
        ann[place].1 = ok(4, Some(at(2)));
    });
    assert!(why.contains("for one and"), "{why}");
}

#[test]
fn a_message_that_is_not_what_was_said_is_seen() {
    let changed = refused(|_, bob| match &mut bob[2].1 {
        Event::Heard(Heard::Message { message, .. }) => message.body.push('!'),
        other => panic!("{other:?}"),
    });
    assert!(changed.contains("is not what was said"), "{changed}");
    let forged = refused(|_, bob| match &mut bob[2].1 {
        Event::Heard(Heard::Message { message, .. }) => message.from = "bob".to_owned(),
        other => panic!("{other:?}"),
    });
    assert!(forged.contains("is not who said"), "{forged}");
    let made_up = refused(|_, bob| bob.push((130, message(9, 6))));
    assert!(made_up.contains("made up"), "{made_up}");
    let denied = refused(|ann, _| {
        let place = place(ann, &ok(6, Some(at(5))));
        let code = "backplane_unavailable".to_owned();
        ann[place].1 = Event::Heard(Heard::Error { id: Some(6), code });
    });
    assert!(denied.contains("told that it was not sent"), "{denied}");
}

#[test]
fn who_is_not_in_hears_nothing_and_nobody_hears_what_they_asked_not_to() {
    let after = refused(|_, bob| bob.insert(5, (62, message(3, 2))));
    assert!(after.contains("without being in"), "{after}");
    let before = refused(|_, bob| bob.swap(1, 2));
    assert!(before.contains("without being in"), "{before}");
    let own = refused(|ann, _| ann.insert(6, (63, message(3, 2))));
    assert!(own.contains("in spite of echo"), "{own}");
}

#[test]
fn a_recovery_that_is_denied_without_need_is_seen() {
    for reason in ["trimmed", "too_much", "epoch", "tail_lost", "not_enabled", "overload"] {
        let why = refused(|_, bob| {
            let denied = Recovery::NotRecovered { why: reason.to_owned() };
            bob[6].1 = in_room(3, Some(at(3)), Some(denied));
            bob.drain(7..9);
        });
        assert!(why.contains(&format!("not recovered, {reason}")), "{why}");
    }
    let counted_wrong = refused(|_, bob| {
        bob[6].1 = in_room(3, Some(at(3)), Some(Recovery::Recovered { messages: 1 }));
    });
    assert!(counted_wrong.contains("1 from"), "{counted_wrong}");
    let suppressed = refused(|_, bob| bob[6].1 = in_room(3, Some(at(3)), None));
    assert!(suppressed.contains("answered None"), "{suppressed}");
}

#[test]
fn an_answer_that_is_missing_doubled_or_of_another_epoch_is_seen() {
    let missing = refused(|ann, _| without(ann, &ok(3, Some(at(2)))));
    assert!(missing.contains("never answered"), "{missing}");
    let twice = refused(|ann, _| ann.push((200, ok(3, Some(at(2))))));
    assert!(twice.contains("answered twice"), "{twice}");
    let unasked = refused(|_, bob| bob.push((200, ok(77, None))));
    assert!(unasked.contains("nobody asked"), "{unasked}");
    let other = At { epoch: "f".to_owned(), offset: 1 };
    let returns = refused(|_, bob| {
        bob[1].1 = in_room(1, Some(at(0)), None);
        bob.insert(2, (13, join(9, None)));
        bob.insert(3, (14, in_room(9, Some(other), None)));
    });
    assert!(returns.contains("comes back"), "{returns}");
}

#[test]
fn a_message_after_a_position_that_includes_it_is_seen() {
    let why = refused(|_, bob| {
        bob.insert(2, (41, join(9, None)));
        bob.insert(3, (41, in_room(9, Some(at(1)), None)));
    });
    assert!(why.contains("after it was told to be at"), "{why}");
}

#[test]
fn an_acknowledged_message_that_a_member_never_heard_is_seen_though_no_place_is_missing() {
    let mut day = day();
    // Without positions nothing but the acknowledgement says that something is missing.
    day.rooms = BTreeMap::from([(ROOM.to_owned(), None)]);
    for tape in &mut day.tapes {
        for (_, event) in &mut tape.events {
            match event {
                Event::Heard(Heard::Ok { at, recovery, .. }) => (*at, *recovery) = (None, None),
                Event::Heard(Heard::Message { message, .. }) => message.at = None,
                Event::Join { since, .. } => *since = None,
                _ => {}
            }
        }
    }
    day.check().unwrap();
    day.tapes[0].events.retain(|(step, _)| *step != 5 * 20 + 2);
    let why = day.check().expect_err("ann never heard her fourth message");
    assert!(why.contains("acknowledged and never heard"), "{why}");
}
