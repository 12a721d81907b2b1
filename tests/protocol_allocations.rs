//! Reading a plain request and writing an event into room that is there allocate nothing. Counted,
//! because a timing would not notice.

#[path = "common/counting.rs"]
mod counting;

use campanile::ids::{Position, TopicKind};
use campanile::protocol::{Event, Recovery, RequestId, Unrecovered, native};
use counting::allocations_of;

fn allocations_of_parsing(message: &str) -> usize {
    let mut message = message.as_bytes().to_vec();
    let (allocations, request) = allocations_of(|| native::parse(&mut message, 64));
    assert!(request.is_ok(), "{request:?}");
    allocations
}

#[test]
fn the_count_counts() {
    let (allocations, grown) = allocations_of(|| {
        let mut bytes = std::hint::black_box(vec![1u8]);
        bytes.resize(1000, 0);
        bytes
    });
    assert_eq!((allocations, grown.len()), (2, 1000));
}

#[test]
fn a_plain_request_is_read_without_an_allocation() {
    let deep = format!("{}{}", "[".repeat(60), "]".repeat(60));
    for payload in ["1", r#""a \" b \ud83d""#, r#"{"a":[1.0,{"b":null}],"a":"é"}"#, &deep] {
        for request in [
            r#"{"type":"publish","room_id":"r","id":7,"echo":false,"payload":"#,
            r#"{"room_id":"r","payload":"#,
            r#"{"target_user_id":"u","x":{"y":[]},"payload":"#,
            r#"{"type":"broadcast","payload":"#,
            r#"{"room\u005fid":"r","payload":"#,
        ] {
            let message = format!("{request}{payload}}}");
            assert_eq!(allocations_of_parsing(&message), 0, "{message}");
        }
    }
    for message in [
        r#"{"type":"join","room_id":"r","id":18446744073709551615}"#,
        r#"{"type":"leave","room_id":"r"}"#,
        r#"{"type":"ping"}"#,
    ] {
        assert_eq!(allocations_of_parsing(message), 0, "{message}");
    }
}

#[test]
fn an_id_that_is_a_text_costs_its_own_two_allocations_and_no_other() {
    assert_eq!(allocations_of_parsing(r#"{"type":"ping","id":"seven"}"#), 2);
}

#[test]
fn a_key_costs_its_own_allocation_and_no_other() {
    let keyed = r#"{"type":"publish","room_id":"r","key":"k","payload":1}"#;
    assert_eq!(allocations_of_parsing(keyed), 1);
}

#[test]
fn an_event_is_written_without_an_allocation_where_there_is_room() {
    let id = RequestId::Number(u64::MAX);
    let (topic, from, payload) = (TopicKind::Room("a \"room\"\n"), Some("ann"), b"[1]".as_slice());
    let position = Some(Position { epoch: 1, offset: u64::MAX });
    let recovery = Recovery::NotRecovered(Unrecovered::Trimmed);
    let events = [
        Event::Message { topic, from, info: None, payload, position },
        Event::Ok { id: Some(&id), room: Some("r"), position, recovery, missed: None },
        Event::Lost { topic: TopicKind::All, count: 12 },
    ];
    let mut out = Vec::with_capacity(1024);
    for event in &events {
        out.clear();
        let (allocations, bytes) = allocations_of(|| {
            native::write(event, &mut out);
            native::encoded_len(event)
        });
        assert_eq!((allocations, bytes), (0, out.len()), "{event:?}");
    }
}
