//! Who waits for whom on one shard, counted in writes: a shard's loop makes one batch a visit, and
//! between two batches it reads, takes from the backplane and tells the time. So what stands behind
//! a hundred thousand writes has to wait for one batch of them, not for all.

use crate::bare::{Bare, limits};
use crate::peer::server_frame;
use bytes::Bytes;
use campanile::link::Downlink;
use campanile::link::connections::everybody;
use campanile::policy::limits::Limits;
use campanile::protocol::dialect::Encoding;

/// As many sends as others have to wait for: `send_batch_max` of production.
const CHUNK: usize = Limits::PRODUCTION.send_batch_max;

/// `members` in each of `rooms` rooms (`r0`, `r1`…), everybody in one of them; at rest.
fn rooms(rooms: usize, members: usize) -> Bare {
    let mut bare = Bare::new(limits());
    for n in 0..rooms * members {
        bare.open(&format!("u{n}"), &[&format!("r{}", n % rooms)]);
        if n % 10_000 == 0 {
            bare.settle();
        }
    }
    bare.settle();
    bare
}

fn deliver(bare: &mut Bare, topic: &str, text: &str) {
    let to = bare.topics[topic];
    let frame = Bytes::from(server_frame(text));
    let now_ms = bare.now_ms;
    bare.shard.handle_downlink(Downlink::Deliver { to, frame, except: None }, now_ms);
}

/// Whether a write holds a text.
fn says(buf: &Bytes, text: &str) -> bool {
    buf.windows(text.len()).any(|window| window == text.as_bytes())
}

/// Makes writes until `who` has heard `text`; answers how many were made, that one included.
fn writes_until(bare: &mut Bare, who: usize, text: &str) -> usize {
    let (mut writes, mut at) = (0, None);
    while at.is_none() {
        let made = bare.write(|socket_key, buf| {
            if socket_key == who && says(buf, text) {
                at = Some(writes + 1);
            }
        });
        assert!(made > 0, "{who} never heard {text}");
        assert!(made <= CHUNK, "a batch has its limit");
        writes += made;
    }
    writes
}

#[test]
fn a_ping_or_a_join_behind_a_hundred_thousand_waits_for_one_batch_at_most() {
    let mut bare = rooms(1, 100_000);
    let (member, other) = (99_999, bare.open("other", &["small"]));
    bare.settle();
    deliver(&mut bare, "r:r0", "\"huge\"");
    for stage in 0..90 {
        assert_eq!(bare.write(|_, _| ()), CHUNK, "the delivery is under way");
        let who = if stage % 2 == 0 { member } else { other };
        let (text, answer) = match stage % 3 {
            0 => (r#"{"type":"ping"}"#.to_owned(), "pong"),
            1 => (format!(r#"{{"type":"join","room_id":"new{stage}","id":1}}"#), r#""type":"ok""#),
            _ => (r#"{"type":"join","room_id":"r0","id":1}"#.to_owned(), r#""type":"ok""#),
        };
        bare.read(who, 1, text.as_bytes());
        // What a join needs of the backplane gets through: the window is open all the time.
        assert!(bare.shard.frames_waiting() < limits().downlink_items_max);
        bare.confirm();
        let writes = writes_until(&mut bare, who, answer);
        assert!(writes <= CHUNK, "stage {stage}: {writes} writes until the answer");
        if !bare.shard.has_sends() {
            deliver(&mut bare, "r:r0", "\"huge\"");
        }
    }
}

#[test]
fn a_ping_behind_several_large_deliveries_waits_no_longer_than_behind_one() {
    let mut bare = rooms(5, 20_000);
    for room in 0..5 {
        deliver(&mut bare, &format!("r:r{room}"), "\"large\"");
    }
    let frame = Bytes::from(server_frame("\"everybody\""));
    let to = everybody(Encoding::NATIVE);
    bare.shard.handle_downlink(Downlink::Deliver { to, frame, except: None }, 0);
    let mut pings = 0;
    while bare.shard.has_sends() {
        bare.read(pings, 1, br#"{"type":"ping"}"#);
        assert!(writes_until(&mut bare, pings, "pong") <= CHUNK);
        pings += 1;
    }
    assert!(pings >= 2 * 100_000 / CHUNK, "{pings} pings were answered meanwhile");
}

#[test]
fn a_small_room_behind_several_large_ones_waits_for_one_batch_of_each() {
    let mut bare = rooms(5, 20_000);
    let small = bare.open("small", &["small"]);
    bare.settle();
    for room in 0..5 {
        deliver(&mut bare, &format!("r:r{room}"), "\"large\"");
    }
    for _ in 0..10 {
        bare.write(|_, _| ());
        deliver(&mut bare, "r:small", "\"little\"");
        let writes = writes_until(&mut bare, small, "little");
        assert!(writes <= 6 * CHUNK, "{writes} writes until it was heard");
    }
    let to = everybody(Encoding::NATIVE);
    let frame = Bytes::from(server_frame("\"everybody\""));
    bare.shard.handle_downlink(Downlink::Deliver { to, frame, except: None }, 0);
    bare.write(|_, _| ());
    deliver(&mut bare, "r:small", "\"little\"");
    assert!(writes_until(&mut bare, small, "little") <= 7 * CHUNK, "everybody is one more");
}

#[test]
fn large_rooms_take_turns_chunk_by_chunk() {
    let (count, members) = (4, 10_000);
    let mut bare = rooms(count, members);
    for room in 0..count {
        deliver(&mut bare, &format!("r:r{room}"), &format!("\"for r{room}\""));
    }
    let mut told = vec![0; count];
    while bare.write(|socket_key, _| told[socket_key % count] += 1) > 0 {
        let (least, most) = (told.iter().min().unwrap(), told.iter().max().unwrap());
        assert!(most - least <= CHUNK, "{told:?}");
    }
    assert_eq!(told, vec![members; count]);
}

#[test]
fn a_room_that_never_stops_talking_does_not_keep_others_from_being_heard() {
    let mut bare = rooms(1, 20_000);
    let small = bare.open("small", &["small"]);
    bare.settle();
    // Far more than is joined into one buffer, and more all the time.
    let long = format!("\"{}\"", "x".repeat(4096));
    for _ in 0..300 {
        deliver(&mut bare, "r:r0", &long);
    }
    for _ in 0..60 {
        bare.write(|_, _| ());
        deliver(&mut bare, "r:r0", &long);
        deliver(&mut bare, "r:small", "\"little\"");
        let writes = writes_until(&mut bare, small, "little");
        assert!(writes <= 2 * CHUNK, "{writes} writes until it was heard");
    }
}
