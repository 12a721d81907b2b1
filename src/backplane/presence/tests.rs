//! Joins and leaves against a model without graces.

use super::*;
use crate::ids::{ConnId, NodeId, ShardId, SlotId};
use proptest::prelude::*;
use std::collections::BTreeMap;

const GRACE: Duration = Duration::from_secs(5);

fn by(number: u32) -> Origin {
    let conn = ConnId(SlotId { index: number, generation: 0 });
    Origin { node: NodeId(1), shard: ShardId(0), conn }
}

fn attend(room: &str, user: &str, deed: PresenceChange) -> PresenceUpdate {
    PresenceUpdate { topic: TopicName::room(room), user: TopicName::user(user), deed }
}

fn came(info: Option<&str>) -> PresenceChange {
    PresenceChange::Joined { by: by(7), info: info.map(Into::into) }
}

/// Joins and leaves as `+user` and `-user`, in order.
fn events(presence: &mut Presence) -> Vec<String> {
    let mut events = Vec::new();
    while let Some(changed) = presence.poll_event() {
        let user = user_name(&changed.user);
        match changed.change {
            Transition::Joined(origin) => {
                assert_eq!(origin, by(7));
                events.push(format!("+{user}"));
            }
            Transition::Updated => {}
            Transition::Left => events.push(format!("-{user}")),
        }
    }
    events
}

fn listed(presence: &Presence, room: &str) -> Vec<(String, u64, Option<String>)> {
    let roster = presence.roster(&TopicName::room(room));
    assert_eq!(roster.count, roster.users.len() as u64);
    let list = roster.users.iter().map(|roster_entry| {
        let info = roster_entry.info.as_deref().map(str::to_owned);
        (user_name(&roster_entry.user).to_owned(), roster_entry.connections, info)
    });
    list.collect()
}

#[test]
fn a_user_joins_once_however_many_connections_they_have() {
    let (mut presence, now) = (Presence::default(), Instant::now());
    for _ in 0..3 {
        presence.handle(attend("r", "ann", came(None)), GRACE, now);
    }
    presence.handle(attend("r", "bob", came(None)), GRACE, now);
    assert_eq!(events(&mut presence), ["+ann", "+bob"]);
    assert_eq!(listed(&presence, "r"), [("ann".into(), 3, None), ("bob".into(), 1, None)]);
    for _ in 0..3 {
        presence.handle(attend("r", "ann", PresenceChange::Left), GRACE, now);
    }
    presence.handle_timeout(now + GRACE - Duration::from_millis(1));
    assert_eq!(events(&mut presence), Vec::<String>::new(), "the grace runs");
    assert_eq!(listed(&presence, "r")[0], ("ann".into(), 0, None), "and so long they are there");
    presence.handle_timeout(now + GRACE);
    assert_eq!(events(&mut presence), ["-ann"]);
    assert_eq!(listed(&presence, "r"), [("bob".into(), 1, None)]);
}

#[test]
fn a_user_who_returns_within_the_grace_has_not_left() {
    let (mut presence, start) = (Presence::default(), Instant::now());
    let at = |s| start + Duration::from_secs(s);
    presence.handle(attend("r", "ann", came(Some("1"))), GRACE, at(0));
    presence.handle(attend("r", "ann", PresenceChange::Left), GRACE, at(10));
    presence.handle(attend("r", "ann", came(None)), GRACE, at(12));
    presence.handle_timeout(at(16));
    presence.handle(attend("r", "ann", PresenceChange::Left), GRACE, at(17));
    presence.handle_timeout(at(21));
    assert_eq!(events(&mut presence), ["+ann"]);
    assert_eq!(listed(&presence, "r"), [("ann".into(), 0, Some("1".into()))], "and is the same");
    presence.handle_timeout(at(22));
    assert_eq!(events(&mut presence), ["-ann"]);
    assert_eq!((presence.users(), presence.rooms().count()), (0, 0));
}

#[test]
fn a_held_room_keeps_all_users_and_releases_them_in_order() {
    let (mut presence, start) = (Presence::default(), Instant::now());
    let at = |s| start + Duration::from_secs(s);
    for (second, user) in [(0, "ann"), (1, "bob"), (2, "cid")] {
        presence.handle(attend("held", user, came(None)), GRACE, at(0));
        presence.handle(attend("held", user, PresenceChange::Left), GRACE, at(second));
    }
    presence.handle(attend("free", "dan", came(None)), GRACE, at(0));
    presence.handle(attend("free", "dan", PresenceChange::Left), GRACE, at(0));
    let held = TopicName::room("held");
    let mut pass = |second| {
        let until = |topic: &TopicName| (*topic == held).then(|| at(second + 1));
        presence.handle_timeout_unless(at(second), until);
    };
    [5, 6, 7, 9].into_iter().for_each(&mut pass);
    presence.handle(attend("held", "bob", came(None)), GRACE, at(9));
    presence.handle_timeout(at(20));
    assert_eq!(events(&mut presence), ["+ann", "+bob", "+cid", "+dan", "-dan", "-ann", "-cid"]);
}

#[test]
fn the_latest_info_counts_and_a_join_without_info_keeps_it() {
    let (mut presence, now) = (Presence::default(), Instant::now());
    for (deed, info) in [
        (came(Some("1")), "1"),
        (came(None), "1"),
        (PresenceChange::InfoChanged("2".into()), "2"),
        (came(Some("3")), "3"),
        (PresenceChange::Left, "3"),
    ] {
        presence.handle(attend("r", "ann", deed), GRACE, now);
        assert_eq!(listed(&presence, "r")[0].2.as_deref(), Some(info));
    }
}

#[test]
fn a_large_room_is_listed_in_part_and_counted_whole() {
    let (mut presence, now) = (Presence::default(), Instant::now());
    for user in 0..Roster::USERS_MAX + 5 {
        presence.handle(attend("r", &user.to_string(), came(None)), GRACE, now);
    }
    let roster = presence.roster(&TopicName::room("r"));
    assert_eq!(
        (roster.users.len(), roster.count),
        (Roster::USERS_MAX, Roster::USERS_MAX as u64 + 5)
    );
    assert!(roster.is_truncated());
}

#[test]
fn users_in_their_grace_are_bounded() {
    let (mut presence, now) = (Presence::default(), Instant::now());
    for user in 0..=LEAVING_MAX {
        let user = user.to_string();
        presence.handle(attend("r", &user, came(None)), GRACE, now);
        presence.handle(attend("r", &user, PresenceChange::Left), GRACE, now);
        presence.events.clear();
        presence.make_room();
    }
    assert_eq!(events(&mut presence), ["-0"], "the first one goes early");
}

#[test]
fn a_room_with_more_users_than_the_limit_has_no_events() {
    let (mut presence, now) = (Presence::default(), Instant::now());
    let mut event = Vec::new();
    for user in ["ann", "bob", "cid"] {
        presence.handle(attend("r", user, came(Some("1"))), Duration::ZERO, now);
    }
    for user in ["cid", "bob"] {
        presence.handle(attend("r", user, PresenceChange::Left), Duration::ZERO, now);
        presence.handle_timeout(now);
    }
    while let Some(changed) = presence.poll_event() {
        let member = PresentUser { info: Some("1".into()), ..PresentUser::default() };
        event
            .extend(changed.event(Some(&member), 2).map(|event| format!("{:?}", event.event("r"))));
    }
    assert_eq!(
        event,
        [
            r#"Joined { room: "r", user: "ann", info: Some("1") }"#,
            r#"Joined { room: "r", user: "bob", info: Some("1") }"#,
            r#"Left { room: "r", user: "bob" }"#,
        ]
    );
}

#[derive(Clone, Debug)]
enum Op {
    Come { room: u8, user: u8 },
    Leave { room: u8, user: u8 },
    Wait { ms: u64 },
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        (0u8..2, 0u8..3).prop_map(|(room, user)| Op::Come { room, user }),
        (0u8..2, 0u8..3).prop_map(|(room, user)| Op::Leave { room, user }),
        (0u64..4000).prop_map(|ms| Op::Wait { ms }),
    ];
    proptest::collection::vec(op, 0..200)
}

proptest! {
    /// The model: each user's connections, and since when there is none. A user is present while
    /// they have one or are in their grace; the events add up to exactly that at any time.
    #[test]
    fn the_events_add_up_to_the_users_present(ops in ops()) {
        let (mut presence, mut now) = (Presence::default(), Instant::now());
        let mut model: BTreeMap<(u8, u8), (u32, Instant)> = BTreeMap::new();
        let mut counts: BTreeMap<(String, String), i32> = BTreeMap::new();
        for op in ops.into_iter().chain([Op::Wait { ms: 5000 }]) {
            match op {
                Op::Come { room, user } => {
                    let (room_name, user_name) = (room.to_string(), user.to_string());
                    presence.handle(attend(&room_name, &user_name, came(None)), GRACE, now);
                    model.entry((room, user)).or_insert((0, now)).0 += 1;
                }
                Op::Leave { room, user } => {
                    let Some(known) = model.get_mut(&(room, user)).filter(|(n, _)| *n > 0) else {
                        continue;
                    };
                    *known = (known.0 - 1, now);
                    let (room, user) = (room.to_string(), user.to_string());
                    presence.handle(attend(&room, &user, PresenceChange::Left), GRACE, now);
                }
                Op::Wait { ms } => {
                    now += Duration::from_millis(ms);
                    presence.handle_timeout(now);
                    model.retain(|_, (n, since)| *n > 0 || now < *since + GRACE);
                }
            }
            while let Some(changed) = presence.poll_event() {
                let key = (changed.topic.as_str().to_owned(), changed.user.as_str().to_owned());
                let sum = counts.entry(key).or_default();
                *sum += match changed.change {
                    Transition::Joined(_) => 1,
                    Transition::Updated => 0,
                    Transition::Left => -1,
                };
                prop_assert!((0..=1).contains(sum), "joined and left come in turns");
            }
            let name = |(room, user): &(u8, u8)| (format!("r:{room}"), format!("u:{user}"));
            let there: Vec<_> = model.keys().map(name).collect();
            counts.retain(|_, sum| *sum > 0);
            prop_assert_eq!(counts.keys().cloned().collect::<Vec<_>>(), there);
            prop_assert_eq!(presence.users(), model.len());
            for ((room, user), (connections, _)) in &model {
                let room = TopicName::room(&room.to_string());
                let user = TopicName::user(&user.to_string());
                let member = presence.member(&room, &user).expect("the model has them");
                prop_assert_eq!(member.connections, *connections);
            }
        }
    }
}
