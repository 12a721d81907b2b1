//! Joins and publishes that a hook is asked about: nothing overtakes them, and nothing is left of them.

use crate::bare::{Bare, limits};
use campanile::link::hooks::{HookQuestion, HookReply, HookVerdict, HookedAction, RoomQuestion};
use campanile::link::{Downlink, Uplink};
use campanile::policy::namespaces::Namespaces;
use std::sync::Arc;

const TEXT: u8 = 1;

fn shard() -> Bare {
    let spaces = "asked: hook_join=true, hook_publish=true; joins: hook_join=true";
    Bare::with(limits(), Arc::new(Namespaces::read(spaces).expect("it is good")))
}

/// The shard's turn: joins are confirmed, and paused clients are read again. Answers what was written
/// to everybody, and what was published.
fn run(bare: &mut Bare) -> (String, Vec<String>) {
    let (mut written, mut published) = (Vec::new(), Vec::new());
    loop {
        while let Some(item) = bare.shard.poll_uplink() {
            match item {
                Uplink::Join { at, .. } => {
                    bare.shard.handle_downlink(Downlink::Joined { at }, bare.now_ms);
                }
                Uplink::Publish(publish) => {
                    published.push(String::from_utf8(publish.payload.to_vec()).expect("JSON"));
                }
                _ => {}
            }
        }
        let writes = bare.write(|_, bytes| written.extend_from_slice(bytes));
        let mut resumed = 0;
        while let Some(conn) = bare.shard.poll_resumed() {
            resumed += 1;
            let _ = bare.shard.begin_reading(conn);
            let _ = bare.shard.handle_rest(conn);
        }
        if writes + resumed == 0 {
            return (String::from_utf8_lossy(&written).into_owned(), published);
        }
    }
}

fn say(bare: &mut Bare, who: usize, text: &str) {
    bare.read(who, TEXT, text.as_bytes());
}

fn question(bare: &mut Bare) -> RoomQuestion {
    match bare.shard.poll_hook() {
        Some((_, HookQuestion::Room(question))) => *question,
        other => panic!("a question about a room: {other:?}"),
    }
}

fn answer(bare: &mut Bare, who: usize, verdict: HookVerdict) {
    let reply = HookReply { conn: bare.conns[who], verdict };
    bare.shard.handle_downlink(Downlink::Hook(Box::new(reply)), bare.now_ms);
}

const YES: HookVerdict = HookVerdict::Allow(None);

#[test]
fn commands_behind_a_question_wait_and_nobody_elses_do() {
    let mut bare = shard();
    let (ann, bob) = (bare.open("ann", &[]), bare.open("bob", &["plain"]));
    run(&mut bare);
    say(&mut bare, ann, r#"{"type":"join","room_id":"asked:a","id":1}"#);
    let asked = question(&mut bare);
    assert_eq!((asked.action, &*asked.user, &*asked.room), (HookedAction::Join, "ann", "asked:a"));
    assert!(asked.has_token && bare.shard.is_paused(bare.conns[ann]));
    say(&mut bare, ann, r#"{"room_id":"asked:a","payload":"first","id":2}"#);
    say(&mut bare, ann, r#"{"type":"ping","id":3}"#);
    say(&mut bare, bob, r#"{"room_id":"plain","payload":"bob's","id":4}"#);
    let (written, published) = run(&mut bare);
    assert_eq!(published, [r#""bob's""#], "he waits for nobody");
    assert!(!written.contains(r#""id":1"#) && !written.contains("pong"), "{written}");
    assert!(bare.shard.poll_hook().is_none(), "one at a time");
    answer(&mut bare, ann, YES);
    let (written, published) = run(&mut bare);
    assert!(written.contains(r#""id":1"#) && !written.contains("pong"), "{written}");
    assert!(published.is_empty());
    let asked = question(&mut bare);
    assert_eq!((asked.action, &asked.payload[..]), (HookedAction::Publish, &b"\"first\""[..]));
    answer(&mut bare, ann, YES);
    let (written, published) = run(&mut bare);
    assert_eq!(published, [r#""first""#]);
    assert!(written.contains("pong"), "{written}");
    assert!(!bare.shard.is_paused(bare.conns[ann]) && bare.shard.hooked() == 0);
}

#[test]
fn what_the_hook_does_not_allow_is_refused_with_its_reason_and_the_connection_goes_on() {
    let mut bare = shard();
    let ann = bare.open("ann", &[]);
    run(&mut bare);
    let refusals = [
        (HookVerdict::Deny { reason: "members only".into() }, "forbidden", "members only"),
        (HookVerdict::Failed, "overloaded", "not known now"),
    ];
    for (verdict, code, reason) in refusals {
        say(&mut bare, ann, r#"{"type":"join","room_id":"asked:a","id":1}"#);
        assert_eq!(question(&mut bare).action, HookedAction::Join);
        answer(&mut bare, ann, verdict);
        let (written, _) = run(&mut bare);
        assert!(written.contains(code) && written.contains(reason), "{written}");
    }
    say(&mut bare, ann, r#"{"type":"join","room_id":"asked:a","id":1}"#);
    let (conn, _) = bare.shard.poll_hook().expect("a question");
    bare.shard.handle_hook_busy(conn);
    let (written, _) = run(&mut bare);
    assert!(written.contains("overloaded") && bare.shard.hooked() == 0, "{written}");
    say(&mut bare, ann, r#"{"type":"ping","id":3}"#);
    assert!(run(&mut bare).0.contains("pong"));
}

#[test]
fn rooms_of_a_url_are_asked_about_one_after_the_other() {
    let mut bare = shard();
    let ann = bare.open("ann", &["joins:a", "joins:b", "joins:c", "plain"]);
    let (mut rooms, mut written) = (Vec::new(), String::new());
    for verdict in [YES, HookVerdict::Deny { reason: "not b".into() }, YES] {
        rooms.push(question(&mut bare).room.to_string());
        assert!(bare.shard.poll_hook().is_none());
        answer(&mut bare, ann, verdict);
        written += &run(&mut bare).0;
    }
    assert_eq!(rooms, ["joins:a", "joins:b", "joins:c"]);
    for room in ["joins:a", "joins:c", "plain"] {
        assert!(written.contains(&format!(r#""room_id":"{room}""#)), "{written}");
    }
    assert!(written.contains("not b") && !written.contains(r#""room_id":"joins:b""#), "{written}");
    say(&mut bare, ann, r#"{"room_id":"joins:a","payload":1}"#);
    assert_eq!(run(&mut bare).1, ["1"], "messages are not asked about here");
}

#[test]
fn who_leaves_while_it_waits_leaves_nothing() {
    let mut bare = shard();
    let idle_bytes = bare.shard.held_bytes();
    let ann = bare.open("ann", &["joins:a", "joins:b"]);
    run(&mut bare);
    assert_eq!(bare.shard.hooked(), 1);
    let with = bare.shard.held_bytes();
    bare.cut(ann);
    run(&mut bare);
    assert!(bare.shard.held_bytes() < with && bare.shard.hooked() == 0);
    answer(&mut bare, ann, YES);
    run(&mut bare);
    assert_eq!((bare.shard.held_bytes(), bare.shard.hooked()), (idle_bytes, 0));
}
