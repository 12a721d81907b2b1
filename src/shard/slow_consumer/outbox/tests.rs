use super::*;
use crate::ids::SlotId;
use crate::policy::namespaces::Namespaces;
use crate::shard::slow_consumer::outbox::chunk::CHUNK_BYTES_MAX;
use crate::ws::encode::{Opcode, frame, payload_of};

/// An outbox, what is counted, and what has left it.
struct TestOutbox {
    outbox: Outbox,
    counters: ShardCounters,
    left: Vec<u8>,
    namespaces: Namespaces,
    bytes_max: usize,
}

fn framed(text: &str) -> Bytes {
    let mut out = Vec::new();
    frame(Opcode::Text, text.as_bytes(), &mut out);
    Bytes::from(out)
}

fn key(text: &str) -> Option<ConflateKey> {
    ConflateKey::of(text)
}

impl TestOutbox {
    fn new(namespaces: &str, bytes_max: usize) -> TestOutbox {
        TestOutbox {
            outbox: Outbox::default(),
            counters: ShardCounters::default(),
            left: Vec::new(),
            namespaces: Namespaces::read(namespaces).unwrap(),
            bytes_max,
        }
    }

    fn fixed(&mut self, text: &str) -> Pushed {
        self.outbox.push(framed(text), self.bytes_max, &mut self.counters)
    }

    fn reply(&mut self, text: &str) {
        assert_eq!(self.fixed(text), Pushed::Queued);
    }

    fn pieces(&mut self, room: &str, pieces: &[FramePart]) -> Pushed {
        let name = TopicName::room(room);
        let index = room.bytes().map(u32::from).sum();
        let at = TopicId(SlotId { index, generation: 0 });
        let place =
            self.outbox.room(at, &name, Encoding::NATIVE, self.namespaces.policy_of_room(room));
        self.outbox.push_droppable(place, pieces, self.bytes_max, &mut self.counters)
    }

    fn kind(&mut self, room: &str, text: &str, kind: FrameKind) -> Pushed {
        self.pieces(room, &[FramePart { bytes: framed(text), kind }])
    }

    fn message(&mut self, room: &str, text: &str) {
        assert_eq!(self.kind(room, text, FrameKind::Message(None)), Pushed::Queued);
    }

    fn about(&mut self, room: &str, text: &str, about: &str) {
        assert_eq!(self.kind(room, text, FrameKind::Message(key(about))), Pushed::Queued);
    }

    /// The socket takes so many bytes, or all.
    fn take(&mut self, bytes: usize) {
        let next: Vec<u8> = self.outbox.slices(64).flatten().copied().take(bytes).collect();
        self.outbox.advance(next.len());
        self.left.extend(next);
    }

    /// Everything leaves; the texts of all frames that have left so far.
    fn received(&mut self) -> Vec<String> {
        while !self.outbox.is_empty() {
            self.take(usize::MAX);
        }
        let mut texts = Vec::new();
        let mut rest = &self.left[..];
        while !rest.is_empty() {
            let payload = usize::from(rest[1]);
            let (whole, after) = rest.split_at(2 + payload);
            assert_eq!(whole[0], 0x81, "a frame begins where the last one ends");
            texts.push(String::from_utf8(payload_of(whole).to_vec()).unwrap());
            rest = after;
        }
        texts
    }
}

fn lost(room: &str, count: u64) -> String {
    format!(r#"{{"type":"lost","room_id":"{room}","count":{count}}}"#)
}

#[test]
fn what_leaves_is_what_was_queued_in_whatever_pieces() {
    let (mut outbox, mut counters) = (Outbox::default(), ShardCounters::default());
    let mut left = Vec::new();
    for piece in [&b"hello"[..], b" ", b"world"] {
        let pushed = outbox.push(Bytes::copy_from_slice(piece), 11, &mut counters);
        assert_eq!(pushed, Pushed::Queued);
    }
    assert_eq!(outbox.push(Bytes::from_static(b"!"), 11, &mut counters), Pushed::Full);
    while !outbox.is_empty() {
        let next: Vec<u8> = outbox.slices(64).flatten().copied().take(3).collect();
        outbox.advance(next.len());
        left.extend(next);
    }
    assert_eq!(left, b"hello world");
    assert_eq!(outbox.bytes(), 0);
}

#[test]
fn a_frame_that_has_begun_is_never_cut_off() {
    let mut outbox = Outbox::default();
    outbox.push_always(Bytes::from_static(b"begun"));
    outbox.push_always(Bytes::from(vec![b'x'; CHUNK_BYTES_MAX]));
    outbox.push_always(Bytes::from_static(b"later"));
    outbox.advance(2);
    outbox.keep_first();
    assert_eq!(outbox.slices(9).collect::<Vec<_>>(), [b"gun"]);
    assert_eq!(outbox.bytes(), 3);
}

#[test]
fn small_pieces_share_a_chunk_and_large_ones_have_a_slice_of_their_own() {
    let mut outbox = Outbox::default();
    let mut all = Vec::new();
    for (n, length) in [10, CHUNK_BYTES_MAX - 10, 1, CHUNK_BYTES_MAX + 1, 3, 4].iter().enumerate() {
        let piece = vec![n as u8; *length];
        outbox.push_always(Bytes::from(piece.clone()));
        all.extend(piece);
    }
    let slices: Vec<usize> = outbox.slices(9).map(<[u8]>::len).collect();
    assert_eq!(slices, [CHUNK_BYTES_MAX, 1, CHUNK_BYTES_MAX + 1, 7]);
    assert_eq!(outbox.slices(9).flatten().copied().collect::<Vec<_>>(), all);
    assert_eq!(outbox.bytes(), all.len());
}

#[test]
fn the_oldest_of_a_room_give_way_and_their_number_stands_where_they_stood() {
    let mut outbox = TestOutbox::new("d: slow_consumer=drop_oldest, slow_bytes_max=256", 2000);
    let text = |n: u32| format!("{n:0>98}");
    outbox.reply("before");
    for n in 0..7 {
        outbox.message("d:x", &text(n));
        outbox.reply(&format!("reply {n}"));
    }
    assert_eq!((outbox.counters.slow_dropped, outbox.counters.slow_notices), (5, 1));
    let wanted = ["before", "reply 0", "reply 1", "reply 2", "reply 3", &lost("d:x", 5)];
    let rest = ["reply 4", &text(5), "reply 5", &text(6), "reply 6"];
    assert_eq!(outbox.received(), [&wanted[..], &rest].concat());
}

#[test]
fn what_has_begun_is_not_dropped_and_a_later_loss_has_a_notice_of_its_own() {
    let mut outbox = TestOutbox::new("d: slow_consumer=drop_oldest, slow_bytes_max=256", 2000);
    let text = |n: u32| format!("{n:0>98}");
    outbox.message("d:x", &text(0));
    outbox.take(1);
    for n in 1..5 {
        outbox.message("d:x", &text(n));
    }
    outbox.take(99 + 3); // The notice has begun.
    outbox.message("d:x", &text(5));
    let wanted = [text(0), lost("d:x", 2), lost("d:x", 1), text(4), text(5)];
    assert_eq!(outbox.received(), wanted);
    assert_eq!((outbox.counters.slow_dropped, outbox.counters.slow_notices), (3, 2));
}

#[test]
fn only_the_newest_of_each_key_waits_and_there_is_no_notice() {
    let mut outbox = TestOutbox::new("t: slow_consumer=conflate", 2000);
    outbox.about("t:x", "A1", "A");
    outbox.about("t:x", "B1", "B");
    outbox.message("t:x", "1");
    outbox.take(1);
    for n in 2..200 {
        outbox.about("t:x", &format!("A{n}"), "A");
        outbox.message("t:x", &n.to_string());
        assert!(outbox.outbox.queue.len() < 4 * EMPTY_SPARE, "what is empty goes");
        assert!(outbox.outbox.rooms[0].droppable.len() < 4 * EMPTY_SPARE);
    }
    outbox.about("t:y", "other", "A");
    assert_eq!(outbox.counters.slow_conflated, 2 * 198 - 1);
    assert_eq!(outbox.received(), ["A1", "B1", "A199", "199", "other"]);
    assert_eq!(outbox.counters.slow_notices, 0);
    outbox.about("t:x", "A200", "A");
    assert_eq!(outbox.received().last().unwrap(), "A200", "what has left is not replaced");
}

#[test]
fn one_hot_key_with_nothing_else_waiting_keeps_no_memory() {
    let mut test = TestOutbox::new("t: slow_consumer=conflate", 2000);
    for n in 0..10_000 {
        test.about("t:x", &n.to_string(), "A");
    }
    let outbox = &test.outbox;
    assert_eq!((outbox.queue.len(), outbox.rooms[0].droppable.len()), (1, 1));
    assert_eq!(test.received(), ["9999"]);
}

#[test]
fn more_keys_than_may_wait_are_dropped_with_a_notice() {
    let mut outbox = TestOutbox::new("t: slow_consumer=conflate, slow_bytes_max=256", 2000);
    for n in 0..10 {
        outbox.about("t:x", &format!("{n:0>98}"), &n.to_string());
    }
    assert_eq!(outbox.counters.slow_conflate_dropped, 8);
    let received = outbox.received();
    assert_eq!(received, [lost("t:x", 8), format!("{:0>98}", 8), format!("{:0>98}", 9)]);
}

#[test]
fn what_was_lost_before_it_came_here_is_counted_too() {
    let mut outbox = TestOutbox::new("d: slow_consumer=drop_oldest, slow_bytes_max=256", 2000);
    let text = |n: u32| format!("{n:0>98}");
    outbox.message("d:x", &text(0));
    let _queued = outbox.kind("d:x", &lost("d:x", 10), FrameKind::Lost(10));
    for n in 1..4 {
        outbox.message("d:x", &text(n));
    }
    assert_eq!(outbox.received(), [lost("d:x", 12), text(2), text(3)]);
    assert_eq!(outbox.counters.slow_dropped, 2);
}

/// A history that was replaced by another one has lost an unknown number of messages.
#[test]
fn a_loss_of_unknown_size_is_dropped_like_any_other_with_a_notice() {
    let mut outbox = TestOutbox::new("d: slow_consumer=drop_oldest, slow_bytes_max=256", 2000);
    let text = |n: u32| format!("{n:0>110}");
    outbox.reply("before");
    let _queued = outbox.kind("d:x", &lost("d:x", 0), FrameKind::Lost(0));
    outbox.message("d:x", &text(0));
    outbox.message("d:x", &text(1));
    assert_eq!(outbox.received(), ["before", &lost("d:x", 0), &text(0), &text(1)]);
    assert_eq!(outbox.counters.slow_dropped, 0);
}

#[test]
fn what_is_loose_gives_way_to_replies_and_only_replies_fill_an_outbox() {
    let mut outbox = TestOutbox::new("default: slow_consumer=drop_oldest", 500);
    let text = |n: u32| format!("{n:0>98}");
    for n in 0..9 {
        outbox.message(["x", "y"][n as usize % 2], &text(n));
    }
    assert!(outbox.outbox.bytes() <= 500);
    let mut replies = 0;
    while outbox.fixed(&text(100 + replies)) == Pushed::Queued {
        replies += 1;
        assert!(outbox.outbox.bytes() <= 500);
    }
    let received = outbox.received();
    assert_eq!(
        received.iter().filter(|text| text.ends_with(&format!("10{}", replies - 1))).count(),
        1
    );
    assert_eq!(replies, 4);
    let sum = received.iter().filter(|text| text.contains("lost")).count();
    assert_eq!((sum, received.len()), (2, 6), "{received:?}");
}

#[test]
fn a_message_for_which_there_is_no_room_at_all_is_reported_as_lost() {
    let mut outbox = TestOutbox::new("default: slow_consumer=drop_oldest", 300);
    outbox.message("x", "first");
    for n in 0..2 {
        outbox.reply(&format!("{n:0>98}"));
    }
    for _ in 0..3 {
        outbox.message("x", &format!("{:0>98}", "much"));
    }
    let received = outbox.received();
    assert_eq!(received[received.len() - 1], lost("x", 4));
    assert_eq!(received.len(), 3);
}

#[test]
fn rooms_that_come_and_go_leave_nothing_behind() {
    let mut outbox = TestOutbox::new("default: slow_consumer=drop_oldest", 500);
    outbox.reply("something that does not leave");
    outbox.take(3);
    for n in 0..100 {
        outbox.message(&"x".repeat(n + 1), "hello");
        let before = outbox.outbox.bytes();
        outbox.take(before - 1);
        outbox.reply("more");
        outbox.take(1 + 1);
    }
    assert!(outbox.outbox.rooms.len() <= 2, "{}", outbox.outbox.rooms.len());
}

struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) % end
    }
}

/// How many messages of a room were sent, and how many of them surely do not come.
#[derive(Default)]
struct Sent {
    numbers: u64,
    fixed: u64,
}

fn random_step(outbox: &mut TestOutbox, random: &mut Random, sent: &mut [Sent; 3]) -> Pushed {
    let rooms = ["d:a", "d:b", "t:c"];
    let which = random.below(3) as usize;
    let mut pieces = Vec::new();
    match random.below(10) {
        0..=5 => {
            for _ in 0..=random.below(4) {
                let Sent { numbers, .. } = &mut sent[which];
                let pad = " ".repeat(random.below(60) as usize);
                let about = key(&random.below(4).to_string()).filter(|_| which == 2);
                let (mut text, mut kind) =
                    (format!("{} {numbers} {pad}", rooms[which]), FrameKind::Message(about));
                if random.below(12) == 0 {
                    (text, kind) = (lost(rooms[which], 3), FrameKind::Lost(3));
                }
                *numbers += if let FrameKind::Lost(count) = kind { count } else { 1 };
                pieces.push(FramePart { bytes: framed(&text), kind });
            }
            outbox.pieces(rooms[which], &pieces)
        }
        6 => {
            sent[0].fixed += 1;
            outbox.fixed(&format!("fixed {}", sent[0].fixed))
        }
        _ => {
            outbox.take(random.below(150) as usize);
            Pushed::Queued
        }
    }
}

/// Under random operations: what arrives of a room is in order, each gap in it is as large as the
/// notices in it add up to, and nothing that may not be dropped is missing.
#[test]
fn every_gap_has_a_notice_in_its_place_and_with_its_size() {
    let policies = "d: slow_consumer=drop_oldest, slow_bytes_max=300; \
                    t: slow_consumer=conflate, slow_bytes_max=300";
    for seed in 0..300 {
        let (mut random, mut sent) = (Random(seed), <[Sent; 3]>::default());
        let mut outbox = TestOutbox::new(policies, 800);
        let mut is_full = false;
        for _ in 0..400 {
            is_full = random_step(&mut outbox, &mut random, &mut sent) == Pushed::Full;
            assert!(outbox.outbox.bytes() <= 800, "seed {seed}");
            if is_full {
                outbox.outbox.keep_first();
                break;
            }
        }
        let received = outbox.received();
        let mut next = [0u64; 3];
        let mut fixed = 0;
        let mut lost_in_c = 0;
        for text in &received {
            let place = ["d:a", "d:b", "t:c"].iter().position(|room| text.contains(room));
            let Some(place) = place else {
                fixed += 1;
                assert_eq!(*text, format!("fixed {fixed}"), "seed {seed}");
                continue;
            };
            let last = |mark: &str| text.rsplit_once(mark).map(|(_, last)| last);
            if let Some(count) = last("\"count\":") {
                let count: u64 = count.trim_end_matches('}').parse().unwrap();
                next[place] += count;
                lost_in_c += if place == 2 { count } else { 0 };
                continue;
            }
            let number: u64 = text.split(' ').nth(1).unwrap().parse().unwrap();
            match place {
                2 => assert!(number >= next[2], "seed {seed}: {received:#?}"),
                _ => assert_eq!(number, next[place], "seed {seed}: {received:#?}"),
            }
            next[place] = number + 1;
        }
        if is_full {
            continue;
        }
        assert_eq!([next[0], next[1]], [sent[0].numbers, sent[1].numbers], "seed {seed}");
        assert_eq!(fixed, sent[0].fixed, "seed {seed}");
        let of_c = received.iter().filter(|text| text.starts_with("t:c")).count() as u64;
        let conflated = outbox.counters.slow_conflated;
        assert_eq!(of_c + lost_in_c + conflated, sent[2].numbers, "seed {seed}: {received:#?}");
    }
}
