use super::*;
use crate::auth::AnonymousSecret;
use crate::ids::{NodeId, ShardId};
use crate::link::Uplink;
use crate::policy::grants::{GrantTexts, Grants, RoomActions, RoomTexts};
use crate::policy::limits::Limits;
use crate::policy::namespaces::Namespaces;
use crate::policy::rights::Rights;
use crate::protocol::dialect::Encoding;
use crate::shard::delivery::batch::SendBatch;
use crate::shard::{Opening, ShardConfig};
use bytes::Bytes;
use std::sync::Arc;

fn shard_with(limits: Limits) -> Shard {
    let spaces = "vip: join=token; log: history_size=9, join=token";
    let mut shard = Shard::new(ShardConfig {
        id: ShardId(0),
        node: NodeId(1),
        node_name: "n".into(),
        limits: Limits { ping_interval_ms: 3_600_000, topics_per_shard_max: 1000, ..limits },
        namespaces: Arc::new(Namespaces::read(spaces).expect("they are good")),
        anonymous_secret: AnonymousSecret::new([0; 16]),
    });
    shard.handle_expiry_notice(60);
    shard
}

fn shard() -> Shard {
    shard_with(Limits::TINY)
}

fn identity(user: &str, rooms: Option<&[&str]>) -> Identity {
    let grants = rooms.map(|rooms| {
        let list = rooms.iter().map(|room| (*room).to_owned()).collect();
        let texts = GrantTexts { rooms: Some(RoomTexts::for_all(list)), send: Vec::new() };
        Arc::new(Grants::new(&texts).expect("few patterns"))
    });
    let user = (!user.is_empty()).then(|| user.into());
    Identity { user, rights: Rights::NONE, expires_unix_s: None, grants, info: None, mark: None }
}

fn open(shard: &mut Shard, user: &str, rooms: &[&str], expires_at_ms: Option<u64>) -> ConnId {
    let conn = shard.handle_accept(7, 0).expect("there is room");
    let rooms = rooms.iter().map(|room| (*room).to_owned()).collect();
    let (response, encoding) = (Bytes::from_static(b""), Encoding::NATIVE);
    let identity = identity(user, None);
    shard.handle_open(conn, Opening { identity, response, rooms, encoding });
    if let Some(at_ms) = expires_at_ms {
        shard.handle_expiry(conn, at_ms);
    }
    received(shard);
    conn
}

/// Topics are ready as soon as they are joined.
fn answer_joins(shard: &mut Shard) {
    while let Some(item) = shard.poll_uplink() {
        if let Uplink::Join { at, .. } = item {
            shard.handle_downlink(crate::link::Downlink::Joined { at }, 0);
        }
    }
}

/// What was sent since, as text. One client.
fn received(shard: &mut Shard) -> String {
    answer_joins(shard);
    let mut batch = SendBatch::default();
    let mut bytes = Vec::new();
    while shard.has_sends() {
        shard.take_batch(&mut batch);
        let ops = batch.ops().iter();
        ops.flat_map(|op| batch.bufs(op)).for_each(|buf| bytes.extend_from_slice(buf));
        batch.finish();
    }
    let text = String::from_utf8_lossy(&bytes).into_owned();
    text.replace("\u{fffd}\0", "") // pings
}

fn say(shard: &mut Shard, conn: ConnId, json: &str) {
    let mut frame = vec![0x81];
    match json.len() {
        len @ 0..=125 => frame.push(0x80 | len as u8),
        len => {
            frame.push(0x80 | 126);
            frame.extend_from_slice(&(len as u16).to_be_bytes());
        }
    }
    frame.extend_from_slice(&[0; 4]);
    frame.extend_from_slice(json.as_bytes());
    shard.handle_read(conn, &mut frame);
}

fn verdict_of_user(identity: Identity, expires_at_ms: Option<u64>) -> TokenVerdict {
    TokenVerdict::User { identity, expires_at_ms }
}

fn verdict_of_room(
    user: &str,
    room: &str,
    actions: RoomActions,
    expires_at_ms: Option<u64>,
) -> TokenVerdict {
    let (user, room, expires_unix_s) = (user.into(), room.into(), None);
    let admission = RoomAdmission { user, room, actions, mark: None, expires_unix_s };
    TokenVerdict::Room { admission, expires_at_ms }
}

const AUTH: &str = r#"{"type":"auth","token":"a.b.c","id":1}"#;

/// Sends a request with a token, and the verdict over it; answers what the client receives.
fn ask(shard: &mut Shard, conn: ConnId, request: &str, verdict: TokenVerdict) -> String {
    say(shard, conn, request);
    let check = shard.poll_token_check().expect("a token is to be checked");
    assert_eq!((check.conn, &*check.token), (conn, "a.b.c"));
    assert_eq!(check.is_for_room, request.contains("room_id"));
    assert!(!format!("{check:?}").contains("a.b.c"), "tokens are never shown");
    assert_eq!(shard.poll_token_check(), None);
    shard.handle_token(conn, verdict);
    received(shard)
}

fn join(room: &str) -> String {
    format!(r#"{{"type":"join","room_id":"{room}","token":"a.b.c","id":1}}"#)
}

fn is_open(shard: &Shard, conn: ConnId) -> bool {
    shard.conns.get(conn.0).is_some_and(|c| c.is_open())
}

#[test]
fn another_token_of_the_user_holds_at_once_and_what_it_does_not_allow_is_left() {
    let mut shard = shard();
    let conn = open(&mut shard, "ann", &["a", "b"], Some(100_000));
    let rights = Rights { publish: true, ..Rights::NONE };
    let renewed = Identity { rights, ..identity("ann", Some(&["b"])) };
    let text = ask(&mut shard, conn, AUTH, verdict_of_user(renewed, Some(200_000)));
    assert!(text.contains(r#"{"type":"ok","id":1}"#), "{text}");
    let removed = r#"{"type":"removed","room_id":"a","reason":"forbidden"}"#;
    assert!(text.contains(removed) && !text.contains(r#""room_id":"b""#), "{text}");
    assert!(text.find(removed) > text.find(r#""ok""#), "the answer comes first");
    assert_eq!(shard.counters.removed_forbidden, 1);
    assert_eq!(shard.conns.get(conn.0).map(|c| c.rights), Some(rights.into()));
    say(&mut shard, conn, r#"{"type":"join","room_id":"a","id":2}"#);
    assert!(received(&mut shard).contains(r#""code":"forbidden""#));
    shard.handle_timeout(101_000);
    assert!(is_open(&shard, conn), "the first expiry is none any more");
    shard.handle_timeout(200_000);
    assert!(!is_open(&shard, conn));
}

#[test]
fn a_token_of_another_user_or_one_that_is_not_good_changes_nothing() {
    let mut shard = shard();
    let conn = open(&mut shard, "ann", &["a"], Some(100_000));
    let other = verdict_of_user(identity("bob", Some(&[])), None);
    let text = ask(&mut shard, conn, AUTH, other);
    assert!(text.contains(r#""id":1,"code":"forbidden""#), "{text}");
    let text = ask(&mut shard, conn, AUTH, TokenVerdict::Refused("this token has expired"));
    assert!(text.contains(r#""id":1,"code":"unauthorized","message":"this token has expired""#));
    assert_eq!((shard.counters.tokens_refused, shard.counters.tokens_accepted), (2, 0));
    assert_eq!(shard.session_topics(conn).len(), 2, "and it is in its room");
    shard.handle_timeout(100_000);
    assert!(!is_open(&shard, conn), "and it expires as before");
}

#[test]
fn a_client_without_a_token_cannot_become_a_user_and_nothing_is_checked() {
    let mut shard = shard();
    let conn = open(&mut shard, "", &[], None);
    say(&mut shard, conn, AUTH);
    assert_eq!(shard.poll_token_check(), None);
    assert!(received(&mut shard).contains(r#""code":"forbidden""#));
}

#[test]
fn what_comes_behind_a_token_waits_for_the_verdict() {
    let mut shard = shard();
    let conn = open(&mut shard, "ann", &[], None);
    say(&mut shard, conn, AUTH);
    say(&mut shard, conn, r#"{"type":"ping"}"#);
    assert!(shard.is_paused(conn));
    assert_eq!(received(&mut shard), "");
    let check = shard.poll_token_check().expect("one");
    shard.handle_token(check.conn, verdict_of_user(identity("ann", None), None));
    assert_eq!(shard.poll_resumed(), Some(conn));
    assert!(shard.begin_reading(conn).is_some());
    shard.handle_rest(conn);
    let text = received(&mut shard);
    assert!(text.find("pong") > text.find(r#""ok""#), "{text}");
}

#[test]
fn a_connection_that_ends_before_the_verdict_leaves_nothing() {
    let mut shard = shard();
    let conn = open(&mut shard, "ann", &[], None);
    say(&mut shard, conn, AUTH);
    shard.handle_write_error(conn);
    while shard.poll_closed().is_some() {}
    assert_eq!(shard.poll_token_check(), None);
    shard.handle_token(conn, verdict_of_user(identity("ann", None), Some(1)));
}

#[test]
fn a_client_receives_one_notice_before_its_token_expires_and_another_for_the_next_one() {
    let mut shard = shard();
    let conn = open(&mut shard, "ann", &[], Some(100_000));
    shard.handle_timeout(39_900);
    assert_eq!(received(&mut shard), "");
    shard.handle_timeout(40_000);
    assert!(received(&mut shard).contains(r#"{"type":"token_expires","in_ms":60000}"#));
    shard.handle_timeout(41_000);
    assert_eq!(received(&mut shard), "");
    let next = verdict_of_user(identity("ann", None), Some(150_000));
    ask(&mut shard, conn, AUTH, next);
    shard.handle_timeout(100_000);
    assert!(is_open(&shard, conn));
    assert!(received(&mut shard).contains(r#"{"type":"token_expires","in_ms":50000}"#));
    shard.handle_timeout(150_000);
    assert!(received(&mut shard).contains("token_expired"));
    assert_eq!(shard.counters.tokens_expiring, 2);
}

#[test]
fn a_token_for_a_room_opens_that_room_for_its_user_until_it_expires() {
    let mut shard = shard();
    let conn = open(&mut shard, "ann", &[], None);
    for (user, room, why) in [("ann", "vip:b", "another room"), ("bob", "vip:a", "another user")] {
        let verdict = verdict_of_room(user, room, RoomActions::ALL, None);
        let text = ask(&mut shard, conn, &join("vip:a"), verdict);
        assert!(text.contains(r#""code":"forbidden""#) && text.contains(why), "{text}");
    }
    let publish = RoomActions::NONE.with("publish").expect("an action");
    let text =
        ask(&mut shard, conn, &join("vip:a"), verdict_of_room("ann", "vip:a", publish, None));
    assert!(text.contains("does not allow to join"), "{text}");
    let verdict = verdict_of_room("ann", "vip:a", RoomActions::ALL, Some(5_500));
    let text = ask(&mut shard, conn, &join("vip:a"), verdict);
    assert!(text.contains(r#"{"type":"ok","id":1,"room_id":"vip:a"}"#), "{text}");
    say(&mut shard, conn, r#"{"room_id":"vip:a","payload":1}"#);
    assert!(matches!(shard.poll_uplink(), Some(Uplink::Publish(_))), "it allows that too");
    say(&mut shard, conn, r#"{"type":"join","room_id":"vip:a","id":2}"#);
    assert!(received(&mut shard).contains(r#"{"type":"ok","id":2,"room_id":"vip:a"}"#));
    shard.handle_timeout(5_900);
    assert_eq!(received(&mut shard), "");
    shard.handle_timeout(6_000);
    let removed = r#"{"type":"removed","room_id":"vip:a","reason":"token_expired"}"#;
    assert!(received(&mut shard).contains(removed));
    assert_eq!(shard.session_topics(conn).len(), 1);
    assert_eq!((shard.counters.removed_expired, shard.room_tokens.len()), (1, 0));
    say(&mut shard, conn, r#"{"type":"join","room_id":"vip:a","id":3}"#);
    assert!(received(&mut shard).contains(r#""code":"forbidden""#), "it opened it once");
}

#[test]
fn a_membership_by_a_token_for_the_room_is_renewed_by_another_one() {
    let mut shard = shard();
    let conn = open(&mut shard, "ann", &[], None);
    for at_ms in [5_000, 9_000, 7_000] {
        let verdict = verdict_of_room("ann", "vip:a", RoomActions::ALL, Some(at_ms));
        ask(&mut shard, conn, &join("vip:a"), verdict);
    }
    let refused = ask(&mut shard, conn, &join("vip:a"), TokenVerdict::Refused("no"));
    assert!(refused.contains("unauthorized"), "and it stays as it was");
    shard.handle_timeout(6_900);
    assert_eq!(received(&mut shard), "");
    shard.handle_timeout(7_000);
    assert!(received(&mut shard).contains("removed"), "the last one counts");
    shard.handle_timeout(9_000);
    assert_eq!(received(&mut shard), "");
}

#[test]
fn a_room_that_everybody_may_join_is_not_left_when_its_token_expires() {
    let mut shard = shard();
    let conn = open(&mut shard, "ann", &[], None);
    let verdict = verdict_of_room("ann", "plain", RoomActions::ALL, Some(5_000));
    ask(&mut shard, conn, &join("plain"), verdict);
    shard.handle_timeout(5_000);
    assert_eq!(received(&mut shard), "");
    assert_eq!(shard.session_topics(conn).len(), 2);
}

#[test]
fn a_client_without_a_token_joins_by_one_for_its_name() {
    let mut shard = shard();
    let conn = open(&mut shard, "", &[], None);
    let name = shard.user_of(conn);
    let TopicKind::User(name) = name.kind() else { panic!("it is a user's") };
    let verdict = |user: &str| verdict_of_room(user, "vip:a", RoomActions::ALL, None);
    assert!(ask(&mut shard, conn, &join("vip:a"), verdict("anon-1")).contains("forbidden"));
    let text = ask(&mut shard, conn, &join("vip:a"), verdict(name));
    assert!(text.contains(r#"{"type":"ok","id":1,"room_id":"vip:a"}"#), "{text}");
}

#[test]
fn a_join_of_a_room_with_a_history_keeps_its_token_while_it_waits_and_drops_it_with_the_room() {
    let mut shard = shard();
    let conn = open(&mut shard, "ann", &[], None);
    let verdict = || verdict_of_room("ann", "log:a", RoomActions::ALL, Some(5_000));
    assert_eq!(ask(&mut shard, conn, &join("log:a"), verdict()), "", "it waits for its position");
    assert_eq!(shard.room_tokens.len(), 1);
    say(&mut shard, conn, r#"{"type":"leave","room_id":"log:a","id":2}"#);
    assert!(received(&mut shard).contains(r#"{"type":"ok","id":2,"room_id":"log:a"}"#));
    assert_eq!(shard.room_tokens.len(), 0);
    ask(&mut shard, conn, &join("log:a"), verdict());
    shard.handle_timeout(5_000);
    let text = received(&mut shard);
    assert!(text.contains("not_joined") && text.contains("removed"), "{text}");
    ask(&mut shard, conn, &join("log:a"), verdict_of_room("ann", "log:a", RoomActions::ALL, None));
    shard.handle_write_error(conn);
    while shard.poll_closed().is_some() {}
    assert_eq!(shard.room_tokens.len(), 0);
}

#[test]
fn a_membership_by_a_token_for_the_room_moves_with_its_connection() {
    let (mut here, mut there) = (shard(), shard());
    let conn = open(&mut here, "ann", &[], Some(100_000));
    let verdict = verdict_of_room("ann", "vip:a", RoomActions::ALL, Some(5_000));
    ask(&mut here, conn, &join("vip:a"), verdict);
    here.handle_timeout(2_000);
    for topic in here.session_topics(conn) {
        there.hold_topic(&topic, Encoding::NATIVE).expect("there is room");
    }
    answer_joins(&mut there);
    answer_joins(&mut here);
    let session = here.take_session(conn, &SendBatch::default()).expect("it is settled");
    assert_eq!((here.room_tokens.len(), here.expiries.entries), (0, 0));
    let conn = there.put_session(Box::new(session), 8, 50_000).expect("it is held");
    there.release_held();
    there.handle_timeout(52_900);
    assert_eq!(received(&mut there), "");
    there.handle_timeout(53_000);
    assert!(received(&mut there).contains("removed"));
    there.handle_timeout(148_000);
    assert!(!is_open(&there, conn));
}

#[test]
fn tokens_have_a_rate_of_their_own() {
    let limits = Limits { token_checks_per_s_max: 1, token_checks_burst_max: 3, ..Limits::TINY };
    let mut shard = shard_with(limits);
    let conn = open(&mut shard, "ann", &[], None);
    let mut checked = 0;
    for _ in 0..10 {
        say(&mut shard, conn, AUTH);
        while let Some(check) = shard.poll_token_check() {
            checked += 1;
            shard.handle_token(check.conn, TokenVerdict::Refused("no"));
        }
        while let Some(conn) = shard.poll_resumed() {
            let _ = shard.begin_reading(conn);
            shard.handle_rest(conn);
        }
    }
    assert_eq!(checked, 3, "the others wait unread");
    assert!(shard.is_paused(conn));
    assert_eq!(shard.counters.limited_tokens, 1);
}
