use super::*;
use crate::backplane::envelope;
use crate::backplane::message::Message;
use serde_json::Value;

const RETENTION: Retention = Retention { messages_max: 5, age_max: Duration::from_secs(60) };

/// Bytes of one message as a native frame, and as an element of a page.
const FRAME_BYTES: usize = 2 + ELEMENT_BYTES;
const ELEMENT_BYTES: usize =
    r#"{"type":"message","room_id":"t","payload":1,"epoch":"7","offset":1}"#.len();

fn body(number: u64) -> Bytes {
    let payload = number.to_string();
    let message = Message {
        topic: "r:t",
        from: None,
        info: None,
        payload: payload.as_bytes(),
        except: None,
        conflate_key: None,
        key: None,
    };
    envelope::to_bytes(&message)
}

/// Messages `1..=top`, of which five are stored.
fn log(top: u64) -> MessageLog {
    let mut log = MessageLog::new(7, 0);
    let now = Instant::now();
    (1..=top).for_each(|number| log.push(body(number), RETENTION, now));
    log
}

fn at(offset: u64) -> Position {
    Position { epoch: 7, offset }
}

/// Calls `ask` for a native run of at most so many bytes.
fn read<T>(bytes_max: usize, ask: impl FnOnce(RunRequest<'_>) -> T) -> T {
    let topic = TopicName::room("t");
    ask(RunRequest { topic: &topic, encoding: Encoding::NATIVE, bytes_max })
}

/// `<7><8>`: each message of a run; its payload must be its offset.
fn shown(json: &str) -> String {
    let message: Value = serde_json::from_str(json).unwrap();
    assert_eq!((&message["type"], &message["payload"]), (&"message".into(), &message["offset"]));
    format!("<{}>", message["offset"])
}

fn frames(run: &Run) -> String {
    let (mut rest, mut all) = (&run.bytes[..], String::new());
    while let [first, length, after @ ..] = rest {
        assert_eq!(*first, 0x81);
        let (json, after) = after.split_at(usize::from(*length));
        all += &shown(std::str::from_utf8(json).unwrap());
        rest = after;
    }
    all
}

fn text(run: Run) -> String {
    format!("{}: {}", run.messages, frames(&run))
}

fn since(log: &MessageLog, offset: u64, bytes_max: usize) -> Result<String, Unrecovered> {
    read(bytes_max, |request| log.since(at(offset), request, &mut RecentRuns::new(1 << 20)))
        .map(text)
}

#[test]
fn a_client_that_was_away_receives_what_it_missed_and_no_more() {
    let log = log(8);
    let all = 10 * FRAME_BYTES;
    assert_eq!(since(&log, 8, all), Ok("0: ".into()));
    assert_eq!(since(&log, 6, all), Ok("2: <7><8>".into()));
    assert_eq!(since(&log, 3, all), Ok("5: <4><5><6><7><8>".into()));
    assert_eq!(since(&log, 2, all), Err(Unrecovered::Trimmed));
    assert_eq!(since(&log, 9, all), Err(Unrecovered::TailLost));
    let foreign = Position { epoch: 8, offset: 8 };
    assert_eq!(
        read(all, |request| log.since(foreign, request, &mut RecentRuns::new(1 << 20))),
        Err(Unrecovered::Epoch)
    );
    assert_eq!(since(&self::log(8), 6, 2 * FRAME_BYTES - 1), Err(Unrecovered::TooMuch));
}

#[test]
fn a_user_receives_what_it_has_not_acknowledged_and_learns_what_is_trimmed() {
    use Recovery::{NotRecovered, Recovered};
    let of = |acked, bytes_max| {
        let (recovery, run) = read(bytes_max, |request| {
            log(8).unacknowledged(acked, request, &mut RecentRuns::new(1 << 20))
        });
        (recovery, frames(&run))
    };
    let brought = |acked: Option<u64>, bytes_max| {
        of(acked.map_or(AckedUpTo::NewUser, AckedUpTo::Offset), bytes_max)
    };
    let all_bytes = 10 * FRAME_BYTES;
    assert_eq!(brought(Some(6), all_bytes), (Recovered { messages: 2 }, "<7><8>".into()));
    assert_eq!(brought(Some(8), all_bytes), (Recovered { messages: 0 }, "".into()));
    assert_eq!(brought(Some(99), all_bytes), (Recovered { messages: 0 }, "".into()));
    assert_eq!(brought(Some(3), all_bytes).0, Recovered { messages: 5 });
    let all = "<4><5><6><7><8>".to_owned();
    assert_eq!(brought(Some(2), all_bytes), (NotRecovered(Unrecovered::Trimmed), all.clone()));
    assert_eq!(
        brought(None, all_bytes),
        (NotRecovered(Unrecovered::Trimmed), all.clone()),
        "a user who comes for the first time learns that the first ones are gone"
    );
    assert_eq!(of(AckedUpTo::QueueLost, all_bytes), (NotRecovered(Unrecovered::Epoch), all));
    let newest = (NotRecovered(Unrecovered::TooMuch), "<7><8>".to_owned());
    assert_eq!(brought(Some(4), 3 * FRAME_BYTES - 1), newest);
    assert_eq!(brought(Some(4), FRAME_BYTES - 1).1, "", "not even one");
    let none = read(10, |request| {
        let acked = AckedUpTo::Offset(0);
        MessageLog::new(7, 0).unacknowledged(acked, request, &mut RecentRuns::new(1 << 20))
    });
    assert_eq!(none, (Recovered { messages: 0 }, Run::default()));
}

#[test]
fn a_user_without_a_queue_before_has_nothing_to_recover() {
    let come = |messages: u64, acked| {
        let mut log = MessageLog::new(7, 0);
        (0..messages).for_each(|number| log.push(body(number), RETENTION, Instant::now()));
        let (recovery, run) =
            read(1000, |request| log.unacknowledged(acked, request, &mut RecentRuns::new(1 << 20)));
        (recovery, run.messages)
    };
    assert_eq!(come(0, AckedUpTo::NewUser), (Recovery::NotAsked, 0));
    assert_eq!(come(2, AckedUpTo::NewUser), (Recovery::NotAsked, 2), "what waits is sent");
    let lost = Recovery::NotRecovered(Unrecovered::Epoch);
    assert_eq!(come(0, AckedUpTo::QueueLost), (lost, 0));
    assert_eq!(come(2, AckedUpTo::QueueLost), (lost, 2));
}

#[test]
fn thousands_at_the_same_position_share_one_run_until_the_next_message() {
    let (mut log, mut runs) = (log(8), RecentRuns::new(1 << 20));
    let mut run = |log: &MessageLog, offset| {
        read(1000, |request| log.since(at(offset), request, &mut runs)).unwrap()
    };
    let (one, two) = (run(&log, 6), run(&log, 6));
    assert_eq!(one.bytes.as_ptr(), two.bytes.as_ptr());
    log.push(body(9), RETENTION, Instant::now());
    assert_eq!(text(run(&log, 6)), "3: <7><8><9>");
    run(&log, 4);
    run(&log, 7);
    log.drop_oldest();
    let all = 1000;
    let trimmed = read(all, |request| log.since(at(4), request, &mut runs));
    assert_eq!(trimmed, Err(Unrecovered::Trimmed));
    log.adopt(8);
    let since = Position { epoch: 8, offset: 7 };
    let later = read(all, |request| log.since(since, request, &mut runs)).unwrap();
    assert!(String::from_utf8_lossy(&later.bytes).contains(r#""epoch":"8""#));
}

#[test]
fn messages_beyond_the_retention_are_trimmed() {
    let mut log = MessageLog::new(7, 0);
    let began = Instant::now();
    for number in 1..=3 {
        log.push(body(number), RETENTION, began + Duration::from_secs(number * 20));
    }
    let each = STORED_BYTES + body(1).len();
    assert_eq!((log.first(), log.bytes()), (1, 3 * each));
    log.trim(RETENTION, began + Duration::from_secs(80));
    assert_eq!((log.first(), log.bytes()), (2, 2 * each));
    log.trim(RETENTION, began + Duration::from_secs(1000));
    assert!(log.is_empty());
    assert_eq!((log.position(), log.first(), log.bytes()), (at(3), 4, 0));
    assert_eq!(since(&log, 3, 0), Ok("0: ".into()));
}

#[test]
fn pages_go_forward_from_the_oldest_and_backward_from_the_newest() {
    let log = log(8);
    let of = |page: Page, bytes_max| {
        let run = read(bytes_max, |request| log.page(page, request)).unwrap();
        let array: Vec<Value> =
            serde_json::from_slice(&[b"[", &run.bytes[..], b"]"].concat()).unwrap();
        assert_eq!(array.len() as u64, run.messages);
        array.iter().map(|message| shown(&message.to_string())).collect::<String>()
    };
    let page = |since: Option<u64>, limit, reverse| {
        of(Page { since: since.map(at), limit, reverse }, 1000)
    };
    assert_eq!(page(None, 2, false), "<4><5>");
    assert_eq!(page(None, 2, true), "<8><7>");
    assert_eq!(page(None, 100, false), "<4><5><6><7><8>");
    assert_eq!(page(Some(5), 2, false), "<6><7>");
    assert_eq!(page(Some(7), 2, true), "<6><5>");
    assert_eq!(page(Some(1), 1, false), "<4>");
    assert_eq!(page(Some(u64::MAX), 1, false), "");
    assert_eq!(page(Some(4), 9, true), "");
    assert_eq!(page(None, 0, true), "");
    let all = Page { since: None, limit: 100, reverse: false };
    assert_eq!(of(all, 3 * ELEMENT_BYTES), "<4><5>", "as many as fit");
    assert_eq!(of(all, 0), "<4>", "one always does");
    let since = Some(Position { epoch: 1, offset: 1 });
    let foreign = Page { since, limit: 1, reverse: false };
    assert_eq!(read(1000, |request| log.page(foreign, request)), Err(Unrecovered::Epoch));
}

#[test]
fn an_unreadable_message_is_one_lost_message_in_its_place() {
    let mut log = MessageLog::new(7, 0);
    for bytes in [body(1), Bytes::from_static(b"\x63 of another version"), body(3)] {
        log.push(bytes, RETENTION, Instant::now());
    }
    let run =
        read(1000, |request| log.since(at(0), request, &mut RecentRuns::new(1 << 20))).unwrap();
    let text = String::from_utf8_lossy(&run.bytes);
    let [one, lost, three] =
        ["\"offset\":1}", r#"{"type":"lost","room_id":"t","count":1}"#, "\"offset\":3}"]
            .map(|what| text.find(what).unwrap_or_else(|| panic!("{what} is not in {text}")));
    assert!(one < lost && lost < three && run.messages == 3);
}

/// Offsets at which arithmetic could overflow.
const EDGES: [u64; 12] = [
    0,
    1,
    2,
    5,
    Position::NUMBER_MAX - 1,
    Position::NUMBER_MAX,
    Position::NUMBER_MAX + 1,
    (1 << 63) - 1,
    1 << 63,
    (1 << 63) + 1,
    u64::MAX - 1,
    u64::MAX,
];

#[test]
fn no_offset_is_too_high_to_be_asked_for() {
    for (top, messages) in EDGES.into_iter().flat_map(|top| (0..4).map(move |n| (top, n))) {
        let mut log = MessageLog::new(7, top);
        (0..messages).for_each(|number| log.push(body(number), RETENTION, Instant::now()));
        assert!(log.first() <= log.next().offset, "{top} + {messages}");
        for offset in EDGES {
            let run =
                read(1000, |request| log.since(at(offset), request, &mut RecentRuns::new(1 << 20)))
                    .unwrap_or_default();
            assert!(run.messages <= messages);
            for bytes_max in [1000, 4] {
                let acked = AckedUpTo::Offset(offset);
                let (_, run) = read(bytes_max, |request| {
                    log.unacknowledged(acked, request, &mut RecentRuns::new(1 << 20))
                });
                assert!(run.messages <= messages);
            }
            for (limit, reverse) in [(0, false), (u32::MAX, false), (2, true)] {
                let page = Page { since: Some(at(offset)), limit, reverse };
                let run = read(1000, |request| log.page(page, request)).unwrap();
                assert!(run.messages <= messages);
            }
        }
    }
}

#[test]
fn a_history_at_the_last_possible_offsets_works_as_elsewhere() {
    for top in [0, 7, Position::NUMBER_MAX - 3] {
        let mut log = MessageLog::new(7, top);
        (1..=3).for_each(|number| log.push(body(top + number), RETENTION, Instant::now()));
        assert_eq!((log.first(), log.position().offset), (top + 1, top + 3));
        assert_eq!(
            since(&log, top, 1000),
            Ok(format!("3: <{}><{}><{}>", top + 1, top + 2, top + 3))
        );
        assert_eq!(since(&log, top + 2, 1000), Ok(format!("1: <{}>", top + 3)));
        assert_eq!(since(&log, top + 3, 1000), Ok("0: ".into()));
        assert_eq!(since(&log, top + 4, 1000), Err(Unrecovered::TailLost));
        assert_eq!(since(&log, u64::MAX, 1000), Err(Unrecovered::TailLost));
    }
}
