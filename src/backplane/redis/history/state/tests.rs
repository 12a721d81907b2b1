//! Every cell of the table of states and events.

use super::*;
use std::collections::BTreeSet;
use std::fmt::Write as _;

/// The table as it stands in the repository.
const TRANSITIONS: &str = include_str!("transitions.txt");

const SENT: SentRead = SentRead { from: 1, next: 1, held: 0, purpose: ReadPurpose::Answer };

fn gap() -> ReadAheadGap {
    ReadAheadGap { since: Instant::now(), known: 1, top: 2 }
}

fn states() -> Vec<FollowState> {
    let reads = [
        StreamRead::Idle,
        StreamRead::Waiting(ReadPurpose::Answer),
        StreamRead::InFlight(SENT),
        StreamRead::Outdated(SENT),
    ];
    let gap = gap();
    let of = |read| {
        [
            FollowState::Unsubscribed(read),
            FollowState::Syncing(read),
            FollowState::Unreadable { times: 1, read },
            FollowState::Synced(read),
            FollowState::Overtaken { gap, read },
        ]
    };
    let mut all: Vec<_> = reads.into_iter().flat_map(of).collect();
    all.retain(|state| state.is_possible());
    all.sort_by_key(|state| name(*state));
    all
}

fn events() -> [HistoryEvent; 13] {
    [
        HistoryEvent::Subscribed,
        HistoryEvent::Unsubscribed,
        HistoryEvent::LinkLost,
        HistoryEvent::ReadWanted(ReadPurpose::Answer),
        HistoryEvent::ReadWanted(ReadPurpose::Audit),
        HistoryEvent::ReadSent(SENT),
        HistoryEvent::CreationSent,
        HistoryEvent::ReadAgain,
        HistoryEvent::FoundUnreadable,
        HistoryEvent::FoundAhead(gap()),
        HistoryEvent::FoundMore,
        HistoryEvent::Taken,
        HistoryEvent::GapSeen,
    ]
}

fn name(state: FollowState) -> String {
    let read = match state.read() {
        StreamRead::Idle => "Idle",
        StreamRead::Waiting(ReadPurpose::Answer) => "Waiting",
        StreamRead::Waiting(ReadPurpose::Audit) => "Waiting for audit",
        StreamRead::InFlight(sent) if sent.purpose == ReadPurpose::Audit => "In flight for audit",
        StreamRead::InFlight(_) => "In flight",
        StreamRead::Outdated(_) => "Outdated",
    };
    let of = match state {
        FollowState::Unsubscribed(_) => "Unsubscribed",
        FollowState::Syncing(_) => "Syncing",
        FollowState::Unreadable { .. } => "Unreadable",
        FollowState::Synced(_) => "Synced",
        FollowState::Overtaken { .. } => "Overtaken",
    };
    format!("{of}, {read}")
}

fn event_name(event: HistoryEvent) -> String {
    let text = format!("{event:?}");
    match event {
        HistoryEvent::ReadWanted(_) => text,
        _ => text.split(|c: char| !c.is_alphabetic()).next().unwrap_or_default().to_owned(),
    }
}

/// What `transitions.txt` has to be.
fn table() -> String {
    let mut table = String::new();
    for state in states() {
        let (mut impossible, mut unchanged) = (Vec::new(), Vec::new());
        writeln!(table, "{}", name(state)).unwrap();
        for event in events() {
            match state.after(event) {
                None => impossible.push(event_name(event)),
                Some(next) if next == state => unchanged.push(event_name(event)),
                Some(next) => {
                    writeln!(table, "    {:<20} -> {}", event_name(event), name(next)).unwrap();
                }
            }
        }
        for (what, events) in [("unchanged", unchanged), ("impossible", impossible)] {
            if !events.is_empty() {
                writeln!(table, "    {what}: {}", events.join(" ")).unwrap();
            }
        }
        table.push('\n');
    }
    table
}

#[test]
fn every_cell_is_as_the_table_in_the_repository_has_it() {
    if std::env::var_os("CAMPANILE_WRITE_DOCS").is_some() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/backplane/redis/history/state");
        let path = format!("{folder}/transitions.txt");
        std::fs::write(path, table()).expect("the repository can be written");
        return;
    }
    assert_eq!(
        table(),
        TRANSITIONS,
        "CAMPANILE_WRITE_DOCS=1 cargo test --lib history::state writes it; read the difference"
    );
}

#[test]
fn no_event_leads_to_an_impossible_state_and_every_possible_one_is_reached() {
    assert_eq!(states().len(), 13);
    let mut reached = BTreeSet::from([name(FollowState::NEW)]);
    let mut waiting = vec![FollowState::NEW];
    while let Some(state) = waiting.pop() {
        for next in events().into_iter().filter_map(|event| state.after(event)) {
            assert!(next.is_possible(), "{state:?} leads to {next:?}");
            if reached.insert(name(next)) {
                waiting.push(next);
            }
        }
    }
    for state in states() {
        assert!(reached.contains(&name(state)), "{state:?} is never reached");
    }
}

#[test]
fn every_event_is_possible_in_some_state_and_every_state_has_an_impossible_one() {
    for event in events() {
        assert!(states().iter().any(|state| state.after(event).is_some()), "{event:?}");
    }
    for state in states() {
        assert!(events().iter().any(|event| state.after(*event).is_none()), "{state:?}");
    }
}

#[test]
fn an_audit_that_is_wanted_stays_wanted_until_its_reply_is_taken() {
    let mut state = FollowState::Synced(StreamRead::InFlight(SENT));
    for event in [
        HistoryEvent::ReadWanted(ReadPurpose::Audit),
        HistoryEvent::ReadWanted(ReadPurpose::Answer),
        HistoryEvent::ReadAgain,
        HistoryEvent::ReadSent(SENT),
        HistoryEvent::FoundAhead(gap()),
        HistoryEvent::ReadSent(SENT),
    ] {
        state = state.after(event).expect("possible");
        let purpose = match state.read() {
            StreamRead::Waiting(purpose) => purpose,
            read => read.in_flight().expect("it is not idle").purpose,
        };
        assert_eq!(purpose, ReadPurpose::Audit, "after {event:?}");
    }
    assert_eq!(state.after(HistoryEvent::Taken), Some(FollowState::Synced(StreamRead::Idle)));
}
