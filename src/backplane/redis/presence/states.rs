//! Every state of presence with every event, as `states.txt` has them.

use crate::backplane::redis::presence::node_life::{LifeEvent, NodeLife};
use crate::backplane::redis::presence::removal_notice::{NoticeEvent, RemovalNotice};
use crate::backplane::redis::presence::server_state::{ServerEvent, ServerState};
use crate::backplane::redis::presence::watch::{Watch, WatchEvent};
use std::fmt::Debug;
use std::time::Instant;

/// What a cell has where the event cannot happen.
const IMPOSSIBLE: &str = "–";

/// A table: a row for each state, a column for each event.
fn table(
    title: &str,
    states: &[&str],
    events: &[&str],
    cell: impl Fn(usize, usize) -> String,
) -> String {
    let line = |first: &str, cells: Vec<String>| {
        let cells: String = cells.iter().map(|cell| format!(" {cell:<14}")).collect();
        format!("{first:<12}{cells}").trim_end().to_owned() + "\n"
    };
    let names = events.iter().map(|name| (*name).to_owned()).collect();
    let mut text = line(title, names);
    for (at, state) in states.iter().enumerate() {
        text += &line(state, (0..events.len()).map(|event| cell(at, event)).collect());
    }
    text
}

/// The name of a variant, without its fields.
fn name(state: &impl Debug) -> String {
    let text = format!("{state:?}");
    text.split([' ', '{', '(']).next().expect("a variant has a name").to_owned()
}

fn shown(state: Option<String>) -> String {
    state.unwrap_or_else(|| IMPOSSIBLE.to_owned())
}

fn link() -> String {
    let until = Instant::now();
    let states = [Watch::Down, Watch::Settling { until }, Watch::Watching];
    let events = [WatchEvent::ServerUp { until }, WatchEvent::ServerDown, WatchEvent::Settled];
    let cell = |state: usize, event: usize| {
        shown(states[state].after(events[event]).map(|state| name(&state)))
    };
    let names = states.map(|state| name(&state));
    let events = events.map(|event| name(&event));
    table(
        "link",
        &names.each_ref().map(String::as_str),
        &events.each_ref().map(String::as_str),
        cell,
    )
}

fn node() -> String {
    use LifeEvent::{NotSeen, RemovalBegan, RemovalDone, RemovalFailed, Seen, Unlisted};
    use NodeLife::{Alive, Dead, Forgotten, Missing, Removing, Returned};
    let states = [Alive, Missing, Dead, Removing, Returned, Forgotten];
    let events = [Seen, NotSeen, Unlisted, RemovalBegan, RemovalDone, RemovalFailed];
    let cell = |state: usize, event: usize| {
        shown(states[state].after(events[event]).map(|state| name(&state)))
    };
    let (names, events) = (states.map(|it| name(&it)), events.map(|it| name(&it)));
    table(
        "node",
        &names.each_ref().map(String::as_str),
        &events.each_ref().map(String::as_str),
        cell,
    )
}

fn notice() -> String {
    let text = || b"1".to_vec();
    let state = |at: usize| match at {
        0 => RemovalNotice::None,
        1 => RemovalNotice::Fresh { notice: text(), reads: 1 },
        2 => RemovalNotice::Fresh { notice: text(), reads: 2 },
        _ => RemovalNotice::ActedOn { notice: text() },
    };
    let events = [NoticeEvent::Absent, NoticeEvent::Same, NoticeEvent::Other];
    let shown_state = |state: RemovalNotice| match state {
        RemovalNotice::Fresh { reads, .. } => format!("Fresh{reads}"),
        other => name(&other),
    };
    let cell =
        |at: usize, event: usize| shown(state(at).after(events[event], text()).map(shown_state));
    let names = [0, 1, 2, 3].map(|at| shown_state(state(at)));
    let events = events.map(|event| name(&event));
    table(
        "notice",
        &names.each_ref().map(String::as_str),
        &events.each_ref().map(String::as_str),
        cell,
    )
}

fn server() -> String {
    let states = [ServerState::Down, ServerState::Idle, ServerState::Writing];
    let events =
        [ServerEvent::WentUp, ServerEvent::WentDown, ServerEvent::Sent, ServerEvent::Answered];
    let cell = |state: usize, event: usize| {
        shown(states[state].after(events[event]).map(|state| name(&state)))
    };
    let (names, events) = (states.map(|it| name(&it)), events.map(|it| name(&it)));
    let [names, events] =
        [&names[..], &events[..]].map(|all| all.iter().map(String::as_str).collect::<Vec<_>>());
    table("server", &names, &events, cell)
}

#[test]
fn every_state_with_every_event_is_as_it_is_drawn() {
    let printed = [link(), node(), notice(), server()].join("\n");
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/backplane/redis/presence/states.txt");
    if std::env::var_os("CAMPANILE_WRITE_DOCS").is_some() {
        return std::fs::write(path, printed).expect("a file of ours");
    }
    let written = std::fs::read_to_string(path).expect("a file of ours");
    assert_eq!(
        printed, written,
        "CAMPANILE_WRITE_DOCS=1 cargo test --lib every_state_with_every_event writes it"
    );
}
