//! What operators ask of a shard is bounded, however many connections it has.

use crate::bare::{Bare, limits};
use campanile::ids::TopicName;
use campanile::link::inspect::{LISTED_ROOMS_MAX, PAGE_CONNECTIONS_MAX, PAGE_PLACES_MAX};
use campanile::link::{
    ConnectionPage, Disconnect, Downlink, Inspect, ReplyTo, RoomPage, UserReport,
};
use std::cell::Cell;
use std::sync::mpsc;

fn page(bare: &mut Bare, from: u32, max: usize) -> ConnectionPage {
    let (tell, told) = mpsc::channel();
    let reply = ReplyTo::Call(Box::new(move |page| tell.send(page).expect("it is waited for")));
    bare.shard.inspect(Inspect::Connections { from, max, reply }, |_| None);
    told.try_recv().expect("it is answered at once")
}

fn user(bare: &mut Bare, user: &str) -> UserReport {
    let (tell, told) = mpsc::channel();
    let reply = ReplyTo::Call(Box::new(move |report| tell.send(report).expect("it is waited for")));
    bare.shard.inspect(Inspect::User { topic: TopicName::user(user), reply }, |_| None);
    told.try_recv().expect("it is answered at once")
}

#[test]
fn a_page_describes_a_few_connections_and_looks_at_a_few_places_whatever_is_asked() {
    let mut bare = Bare::new(limits());
    let many = 3 * PAGE_PLACES_MAX as usize;
    for who in 0..many {
        bare.open(&format!("user{who}"), &[]);
    }
    bare.settle();
    let first = page(&mut bare, 0, usize::MAX);
    assert_eq!(first.connections.len(), PAGE_CONNECTIONS_MAX);
    assert_eq!(first.next, Some(PAGE_CONNECTIONS_MAX as u32));
    // Nearly everybody leaves: what is left to look through are holes.
    for who in 1..many - 1 {
        bare.cut(who);
    }
    let looked_up = Cell::new(0);
    let (tell, told) = mpsc::channel();
    let reply = ReplyTo::Call(Box::new(move |page: ConnectionPage| {
        tell.send(page).expect("it is waited for")
    }));
    let question = Inspect::Connections { from: 0, max: 64, reply };
    bare.shard.inspect(question, |_| {
        looked_up.set(looked_up.get() + 1);
        None
    });
    let holes = told.try_recv().expect("it is answered at once");
    assert_eq!((holes.connections.len(), looked_up.get()), (1, 1));
    assert_eq!(holes.next, Some(PAGE_PLACES_MAX));
    let (mut users, mut from) = (Vec::new(), Some(0));
    while let Some(place) = from {
        let page = page(&mut bare, place, 1);
        users.extend(page.connections.into_iter().map(|it| it.user.expect("a user")));
        from = page.next;
    }
    let expected = [TopicName::user("user0"), TopicName::user(&format!("user{}", many - 1))];
    assert_eq!(users, expected);
}

#[test]
fn a_list_of_rooms_looks_at_a_part_of_the_table_at_a_time() {
    let mut bare = Bare::new(limits());
    let many = 2 * PAGE_PLACES_MAX as usize;
    for who in 0..many {
        bare.open(&format!("user{who}"), &[&format!("room{}", who / 1000)]);
    }
    bare.settle();
    let (mut names, mut from, mut pages) = (Vec::new(), Some(0), 0);
    while let Some(place) = from {
        let (tell, told) = mpsc::channel();
        let reply = ReplyTo::Call(Box::new(move |page: RoomPage| {
            tell.send(page).expect("it is waited for")
        }));
        let (prefix, max) = ("room".into(), 3);
        bare.shard.inspect(Inspect::Rooms { prefix, from: place, max, reply }, |_| None);
        let page = told.try_recv().expect("it is answered at once");
        assert!(page.rooms.len() <= max);
        assert!(page.next.is_none_or(|next| next > place && next <= place + PAGE_PLACES_MAX));
        names.extend(page.rooms.into_iter().map(|room| room.room));
        (from, pages) = (page.next, pages + 1);
    }
    names.sort_unstable();
    let expected: Vec<String> = (0..9).map(|n| format!("room{n}")).collect();
    assert_eq!(names, expected, "each once");
    assert!(pages > 2, "a table of {many} users is too large for one answer");
}

#[test]
fn the_rooms_of_a_connection_are_counted_and_only_some_of_them_listed() {
    let mut bare = Bare::new(limits());
    let names: Vec<String> = (0..LISTED_ROOMS_MAX + 3).map(|n| format!("room{n:02}")).collect();
    let rooms: Vec<&str> = names.iter().map(String::as_str).collect();
    bare.open("ann", &rooms);
    bare.open("ann", &rooms[..1]);
    bare.settle();
    let page = page(&mut bare, 0, 64);
    let [first, second] = &page.connections[..] else { panic!("{page:?}") };
    assert_eq!((first.rooms, first.listed_rooms.len()), (rooms.len(), LISTED_ROOMS_MAX));
    assert_eq!((second.rooms, second.listed_rooms.len()), (1, 1));
    let ann = user(&mut bare, "ann");
    assert_eq!((ann.connections, ann.rooms.len(), ann.is_truncated), (2, rooms.len(), false));
    assert_eq!(user(&mut bare, "bob"), UserReport::default());
}

#[test]
fn a_user_with_many_connections_is_closed_a_part_at_a_time_and_newcomers_stay() {
    let mut bare = Bare::new(limits());
    for _ in 0..1000 {
        bare.open("ann", &["room"]);
    }
    bare.open("bob", &["room"]);
    bare.settle();
    let at = bare.topics["u:ann"];
    let close = Disconnect { code: 4001, reason: "".into() };
    bare.shard.handle_downlink(Downlink::Disconnect { at, close: close.into() }, 0);
    let open = |bare: &Bare| bare.shard.counters.connections;
    assert_eq!(open(&bare), 1001 - 256, "no more in one visit");
    let newest = bare.open("ann", &["room"]);
    for tick in 1..10 {
        bare.now_ms += 100;
        bare.shard.handle_timeout(bare.now_ms);
        bare.settle();
        assert!(open(&bare) >= 1001u64.saturating_sub(256 * (tick + 1)));
    }
    assert_eq!(open(&bare), 2, "Bob, and Ann's newest connection");
    let listed = page(&mut bare, 0, 64).connections;
    let left: Vec<_> = listed.iter().map(|it| it.id.conn).collect();
    assert!(left.contains(&bare.conns[newest]), "{left:?}");
}
