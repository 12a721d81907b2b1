//! The checker refuses what it must refuse, and nothing else.

use crate::checker::{AckedPublish, Entry, Event, LossReport, MessagePosition, Record, check};

const HISTORY: u64 = 2;

/// A small language for logs: `@1:5` joins there, `1:6=a` hears a message, and so on.
fn log(text: &str) -> Vec<Entry> {
    let words = text.split_whitespace().enumerate();
    words
        .map(|(n, word)| Entry { at_us: 10 * (n as u64 + 1), room: 0, event: event(word) })
        .collect()
}

fn place(text: &str) -> MessagePosition {
    let (epoch, offset) = text.split_once(':').expect("epoch:offset");
    MessagePosition {
        epoch: epoch.parse().expect("a number"),
        offset: offset.parse().expect("a number"),
    }
}

/// `@at`, `@at<since+messages`, `@at<since!reason`, `@at<since!reason>messages`, `lost3`, `away`,
/// `at=id`.
fn event(word: &str) -> Event {
    if word == "away" {
        return Event::Away;
    }
    if let Some(count) = word.strip_prefix("lost") {
        return Event::Lost { count: count.parse().expect("a number") };
    }
    let Some(join) = word.strip_prefix('@') else {
        let (at, id) = word.split_once('=').expect("at=id");
        return Event::Heard { at: place(at), id: u64::from(id.as_bytes()[0]) };
    };
    let Some((at, since)) = join.split_once('<') else {
        return Event::Joined { at: place(join), since: None, reports: LossReport::Fresh };
    };
    let (since, reports) = match since.split_once('+') {
        Some((since, n)) => {
            (since, LossReport::Recovered { messages: n.parse().expect("a number") })
        }
        None => {
            let (since, reason) = since.split_once('!').expect("+messages or !reason");
            let (reason, messages) = reason.split_once('>').unwrap_or((reason, "0"));
            let messages = messages.parse().expect("a number");
            (since, LossReport::NotRecovered { reason: reason.into(), messages })
        }
    };
    Event::Joined { at: place(at), since: Some(place(since)), reports }
}

/// `at=id`, sent at 15 µs: after the first entry of a log.
fn acked(text: &str) -> Vec<AckedPublish> {
    let one = |word: &str| {
        let Event::Heard { at, id } = event(word) else { panic!("{word}") };
        AckedPublish { room: 0, id, at, sent_us: 15 }
    };
    text.split_whitespace().map(one).collect()
}

fn complaints(ok: &str, logs: &[&str]) -> Vec<String> {
    let members = logs.iter().map(|text| log(text)).collect();
    let verdict = check(&Record { acked: acked(ok), members, history: HISTORY, is_strict: false });
    verdict.violations.into_iter().map(|violation| violation.why).collect()
}

fn refused(why: &str, ok: &str, logs: &[&str]) {
    let complaints = complaints(ok, logs);
    assert!(complaints.iter().any(|it| it.contains(why)), "{why}: {ok} {logs:?}: {complaints:?}");
}

fn fine(ok: &str, logs: &[&str]) {
    assert_eq!(complaints(ok, logs), [] as [String; 0], "{ok} {logs:?}");
}

#[test]
fn a_correct_record_is_not_refused() {
    fine("1:1=a 1:2=b", &["@1:0 1:1=a 1:2=b", "@1:0 1:1=a 1:2=b"]);
    // Away, and back to what was missed.
    fine("1:1=a 1:2=b 1:3=c", &["@1:0 1:1=a away @1:3<1:1+2 1:2=b 1:3=c"]);
    // The connection dies in the middle of it.
    fine("1:1=a 1:2=b", &["@1:0 away @1:2<1:0+2 1:1=a away @1:2<1:1+1 1:2=b"]);
    // Another epoch goes on, and what is recovered may be called by either.
    fine(
        "1:1=a 1:2=b 2:3=c",
        &["@1:0 1:1=a 1:2=b 2:3=c", "@1:0 away @2:3<1:0+3 2:1=a 2:2=b 2:3=c"],
    );
    // A message nobody acknowledged may come or not.
    fine("", &["@1:0 1:1=a"]);
}

#[test]
fn a_reported_loss_is_no_violation() {
    fine("1:1=a 1:2=b 1:3=c", &["@1:0 1:1=a lost1 1:3=c"]);
    fine("1:1=a 1:2=b 1:3=c", &["@1:0 1:1=a lost0 1:3=c"]);
    fine("1:1=a 1:2=b", &["@1:0 1:1=a lost0"]);
    fine("1:1=a 1:2=b", &["@1:0 away @1:2<1:0!trimmed"]);
    // The history was lost, and another one has begun.
    fine("1:1=a 1:2=b 2:1=c", &["@1:0 1:1=a lost0 2:1=c"]);
    fine("1:1=a 1:2=b 2:1=c", &["@1:0 1:1=a away @2:1<1:1!epoch"]);
    // After `lost` it joins with where it was: what came meanwhile comes again.
    fine("1:1=a 1:2=b 1:3=c", &["@1:0 1:1=a lost1 1:3=c @1:3<1:1+2 1:2=b 1:3=c"]);
    // What this member has heard last was said by a master that was one no more.
    fine("2:2=c 2:3=d", &["@1:0 1:1=a 1:2=b away @2:3<1:2!tail_lost>2 2:2=c 2:3=d"]);
    // Of one place of a history nothing is left, and what is recovered says so there.
    fine("1:1=a 1:3=c", &["@1:0 away @1:3<1:0+3 1:1=a lost1 1:3=c"]);
    // Redis lost what this member has heard; it is said again under the key it had.
    fine("2:1=a", &["@1:0 1:1=a away @2:0<1:1!tail_lost 2:1=a"]);
}

#[test]
fn a_message_reported_lost_that_arrives_again_is_counted() {
    let untrue = |text: &str| {
        let members = vec![log(text)];
        check(&Record { members, ..Record::default() }).notices.not_lost_at_all
    };
    assert_eq!(untrue("@1:0 1:1=a 1:2=b away @1:1<1:2!tail_lost 1:2=b 1:3=c"), 1);
    assert_eq!(untrue("@1:0 1:1=a 1:2=b away @1:1<1:2!tail_lost 2:2=c"), 0);
    assert_eq!(untrue("@1:0 1:1=a lost1 1:3=c @1:3<1:1+2 1:2=b 1:3=c"), 0);
}

#[test]
fn a_gap_is_refused() {
    refused("a hole of 1", "", &["@1:0 1:1=a 1:3=c"]);
    refused("a hole of 1", "", &["@1:0 1:1=a 2:3=c"]);
    refused("told of 1, missed 2", "", &["@1:0 1:1=a lost1 1:4=d"]);
    refused("recovering", "", &["@1:0 away @1:3<1:0+3 1:1=a 1:3=c"]);
    refused("recovering", "", &["@1:0 away @1:4<1:0+4 1:1=a lost1 1:4=d"]);
    refused("recovering", "", &["@1:0 1:1=a 1:2=b away @2:3<1:2!tail_lost>2 2:3=d"]);
    refused("recovered from", "", &["@1:0 away @1:3<1:0+2"]);
}

#[test]
fn an_acknowledged_message_that_never_arrives_is_refused() {
    refused("never heard", "1:1=a 1:2=b", &["@1:0 1:1=a"]);
    refused("never heard", "1:2=b", &["@1:0 away @1:0<1:0+0"]);
    // The end of one epoch was lost, and the next goes on in its place.
    refused("never heard", "1:2=b 2:2=c", &["@1:0 1:1=a 2:2=c"]);
    // The gap that was told of is another one.
    refused("never heard", "1:1=a 1:2=b 1:4=d", &["@1:0 1:1=a lost1 1:3=c"]);
    refused("never heard", "1:3=c", &["@1:0 away @1:2<1:0!trimmed"]);
}

#[test]
fn an_acknowledged_message_reported_lost_is_refused_if_nothing_may_be_lost() {
    for text in ["@1:0 1:1=a lost1 1:3=c", "@1:0 away @1:3<1:0+3 1:1=a lost1 1:3=c"] {
        let (acked, members) = (acked("1:2=b"), vec![log(text)]);
        let record = Record { acked, members, is_strict: true, ..Record::default() };
        let violations = check(&record).violations;
        assert!(violations[0].why.contains("never heard"), "{violations:?}");
    }
}

#[test]
fn a_reason_that_does_not_hold_is_refused() {
    refused("trimmed, and only 1", "", &["@1:0 1:1=a away @1:2<1:1!trimmed"]);
    fine("", &["@1:0 1:1=a away @1:3<1:1!trimmed"]);
    // There is a hole in the history, of which somebody else heard.
    fine("", &["@1:0 1:1=a away @1:2<1:1!trimmed", "@1:0 1:1=a lost1"]);
}

#[test]
fn a_message_delivered_twice_is_refused() {
    refused("and was at", "", &["@1:0 1:1=a 1:2=a"]);
    refused("and was at", "", &["@1:0 1:1=a away @1:2<1:1+1 1:2=a"]);
}

#[test]
fn going_back_is_refused() {
    refused("after", "", &["@1:0 1:1=a 1:2=b 1:1=a"]);
    refused("without a word", "", &["@1:0 1:1=a 1:2=b 2:1=c"]);
    refused("without being in", "", &["@1:0 1:1=a away 1:2=b"]);
}

#[test]
fn two_messages_at_one_position_are_refused() {
    refused("for one and", "", &["@1:0 1:1=a", "@1:0 1:1=b"]);
    refused("for one and", "1:1=b", &["@1:0 1:1=a"]);
    refused("for one and", "1:1=a 1:1=b", &[]);
}

#[test]
fn two_orders_are_refused() {
    refused("order of epochs", "", &["@1:0 1:1=a 2:2=b", "@1:0 2:1=a 1:2=b"]);
    refused("comes back", "", &["@1:0 1:1=a 2:2=b 1:3=c"]);
}
