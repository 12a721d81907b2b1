//! The state of a followed history, and every way from one state to another.
//!
//! ```text
//!                       ┌──────────────┐ Subscribed       ┌─────────┐
//!   followed  ────────► │ Unsubscribed │ ───────────────► │ Syncing │ ◄─────────────┐
//!                       └──────────────┘                  └─────────┘               │
//!                          ▲ LinkLost,                     │       ▲                │
//!                          │ Unsubscribed             Taken│       │GapSeen,        │GapSeen,
//!                          │ (from every state)            ▼       │FoundFork       │FoundFork
//!                          │                              ┌─────────┐  FoundAhead  ┌───────────┐
//!                          ├───────────────────────────── │ Synced  │ ───────────► │ Overtaken │
//!                          │                              └─────────┘ ◄─────────── └───────────┘
//!                          │     Taken (corrected)          ▲             Taken
//!                          │  ┌─────────────────────────────┘
//!                          │  │
//!                       ┌────────────┐ FoundUnreadable (from every subscribed state)
//!                       │ Unreadable │ ◄─────────────────
//!                       └────────────┘
//! ```
//!
//! Each of them has a read of the stream that is idle, waits for its turn, or is in flight
//! ([`ReadState`]). What a state is for:
//!
//! * **Unsubscribed**: nothing that arrives proves anything. Pages of history can be read.
//! * **Syncing**: the channel is subscribed, but a message may be missing before what arrives, so
//!   that is held until a read has closed the gap. There is always a read under way.
//! * **Synced**: a message at the next offset is delivered, any other one shows a gap.
//! * **Overtaken**: as Synced; but a read has shown messages that the channel has not brought yet.
//! * **Unreadable**: the stored history is not one that this server wrote. Requests are refused.
//!
//! [`FollowState::after`] is the only function that makes a state of another one. `transitions.txt`
//! lists all its cells; a test compares them.
//!
//! Invariant: [`FollowState::is_possible`].

use std::time::Instant;

/// How far this node follows a history. See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FollowState {
    /// The channel is not subscribed on this link, or there is no link.
    Unsubscribed(ReadState),
    /// The channel is subscribed; a read has to show what is missing.
    Syncing(ReadState),
    /// The stored history was unreadable so many times in a row.
    Unreadable {
        /// How many times.
        times: u32,
        /// Finds out whether it is corrected.
        read: ReadState,
    },
    /// Everything up to the end of the copy was delivered, and the next message is expected.
    Synced(ReadState),
    /// The same, while a read has shown later messages than those that have arrived.
    Overtaken {
        /// Those messages.
        gap: ReadAheadGap,
        /// Finds out whether they are lost.
        read: ReadState,
    },
}

/// The read of a history's stream. There is at most one at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReadState {
    /// Nothing is to be read.
    Idle,
    /// It is in the queue of reads, or in the queue of those that are sent again later.
    Waiting(ReadPurpose),
    /// It was sent, or a creation or repair that it has led to.
    InFlight(SentRead),
    /// It was sent before the channel was subscribed: its reply proves nothing.
    Outdated(SentRead),
}

/// What a read is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum ReadPurpose {
    /// Requests wait for it. In a user's history only the acknowledged offset is wanted.
    Answer,
    /// Finds messages that were lost without a trace.
    Audit,
}

/// What was known when a read was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SentRead {
    /// The lowest offset that it asks for; `u64::MAX`: none. A later request may need lower ones.
    pub(super) from: u64,
    /// The next offset of the copy; `u64::MAX`: there was none.
    pub(super) next: u64,
    /// Number of messages that were held.
    pub(super) held: usize,
    /// What it is for.
    pub(super) purpose: ReadPurpose,
}

/// Messages that a read has shown and the channel has not brought yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ReadAheadGap {
    /// Since when none of them has arrived.
    pub(super) since: Instant,
    /// The offset that was delivered last.
    pub(super) known: u64,
    /// The last offset of the first read that has shown them.
    pub(super) top: u64,
}

/// What happens to a followed history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// Its channel is subscribed on this link.
    Subscribed,
    /// It is no longer: the server has revoked it, or the last member left.
    Unsubscribed,
    /// The link is lost, or the topic has moved to another server.
    LinkLost,
    /// The stream has to be read.
    ReadWanted(ReadPurpose),
    /// Its turn has come. The purpose is that of the waiting read.
    ReadSent(SentRead),
    /// The read has shown that there is no history, and one is being created.
    CreationSent,
    /// The reply shows nothing: it was refused, or outdated, or the history was just repaired.
    ReadAgain,
    /// The stored history is unreadable.
    FoundUnreadable,
    /// The reply has messages that the channel has not brought yet.
    FoundAhead(ReadAheadGap),
    /// The history has forked before the end of the copy, which now ends there.
    FoundFork,
    /// The copy has everything that was read.
    Taken,
    /// A message arrived that is not the next one.
    GapSeen,
}

impl FollowState {
    /// A topic that has just been followed.
    pub(super) const NEW: FollowState = FollowState::Unsubscribed(ReadState::Idle);

    /// The state after an event; `None`: the event is impossible in this state.
    #[must_use]
    pub(super) fn after(self, event: Event) -> Option<FollowState> {
        use FollowState::{Overtaken, Synced, Syncing, Unreadable, Unsubscribed};
        let read = self.read();
        Some(match (event, self) {
            // It has to be read after a pause, whatever channel brings its messages.
            (Event::Subscribed, Unreadable { read: ReadState::Waiting(_), .. }) => self,
            (Event::Subscribed, _) => Syncing(read.before_subscription()),
            (Event::Unsubscribed, _) => Unsubscribed(read.without_subscription()),
            (Event::LinkLost, _) => Unsubscribed(ReadState::Idle),
            (Event::ReadWanted(purpose), _) => self.with(read.wanted(purpose)),
            (Event::ReadSent(sent), _) => self.with(read.sent(sent)?),
            (Event::CreationSent, _) => self.with(read.creating()?),
            (Event::ReadAgain, _) => self.with(read.again()?),
            (Event::FoundUnreadable, Unsubscribed(_)) => Unsubscribed(read.taken()?),
            (Event::FoundUnreadable, Unreadable { times, .. }) => {
                Unreadable { times: times.saturating_add(1), read: read.again()? }
            }
            (Event::FoundUnreadable, _) => Unreadable { times: 1, read: read.again()? },
            (Event::FoundAhead(gap), Synced(_) | Overtaken { .. }) => {
                Overtaken { gap, read: read.again()? }
            }
            (Event::FoundAhead(_), _) => return None,
            (Event::FoundFork | Event::Taken, _) if read.is_outdated() => return None,
            (Event::FoundFork, Unsubscribed(_)) => Unsubscribed(read.again()?),
            (Event::FoundFork, _) => Syncing(read.again()?),
            (Event::Taken, Unsubscribed(_)) => Unsubscribed(read.taken()?),
            (Event::Taken, _) => Synced(read.taken()?),
            (Event::GapSeen, Synced(_) | Overtaken { .. }) => {
                Syncing(read.wanted(ReadPurpose::Answer))
            }
            (Event::GapSeen, Unsubscribed(_) | Syncing(_) | Unreadable { .. }) => self,
        })
    }

    /// The read of this state.
    pub(super) fn read(self) -> ReadState {
        match self {
            FollowState::Unsubscribed(read)
            | FollowState::Syncing(read)
            | FollowState::Synced(read)
            | FollowState::Unreadable { read, .. }
            | FollowState::Overtaken { read, .. } => read,
        }
    }

    fn with(self, read: ReadState) -> FollowState {
        match self {
            FollowState::Unsubscribed(_) => FollowState::Unsubscribed(read),
            FollowState::Syncing(_) => FollowState::Syncing(read),
            FollowState::Synced(_) => FollowState::Synced(read),
            FollowState::Unreadable { times, .. } => FollowState::Unreadable { times, read },
            FollowState::Overtaken { gap, .. } => FollowState::Overtaken { gap, read },
        }
    }

    /// Whether the channel is subscribed on this link.
    pub(super) fn is_subscribed(self) -> bool {
        !matches!(self, FollowState::Unsubscribed(_))
    }

    /// Whether everything up to the end of the copy was delivered, and nothing is known to be
    /// missing after it.
    pub(super) fn is_synced(self) -> bool {
        matches!(self, FollowState::Synced(_) | FollowState::Overtaken { .. })
    }

    /// Whether the combination is one of the thirteen that there are.
    pub(super) fn is_possible(self) -> bool {
        use FollowState::{Overtaken, Synced, Syncing, Unreadable, Unsubscribed};
        use ReadState::{Idle, Outdated};
        match self {
            Unsubscribed(read) | Synced(read) => !matches!(read, Outdated(_)),
            // What is missing is found by a read.
            Syncing(read) => read != Idle,
            Unreadable { times, read } => times > 0 && !matches!(read, Idle | Outdated(_)),
            Overtaken { read, .. } => !matches!(read, Idle | Outdated(_)),
        }
    }
}

impl ReadState {
    /// Whether it is in a queue.
    pub(super) fn is_waiting(self) -> bool {
        matches!(self, ReadState::Waiting(_))
    }

    /// Whether it was sent before the channel was subscribed.
    pub(super) fn is_outdated(self) -> bool {
        matches!(self, ReadState::Outdated(_))
    }

    /// What was known when it was sent; `None`: it is not in flight.
    pub(super) fn in_flight(self) -> Option<SentRead> {
        match self {
            ReadState::InFlight(sent) | ReadState::Outdated(sent) => Some(sent),
            ReadState::Idle | ReadState::Waiting(_) => None,
        }
    }

    fn before_subscription(self) -> ReadState {
        match self {
            ReadState::Idle => ReadState::Waiting(ReadPurpose::Answer),
            ReadState::Waiting(_) => self,
            ReadState::InFlight(sent) | ReadState::Outdated(sent) => ReadState::Outdated(sent),
        }
    }

    fn without_subscription(self) -> ReadState {
        match self {
            ReadState::Outdated(sent) => ReadState::InFlight(sent),
            ReadState::Idle | ReadState::Waiting(_) | ReadState::InFlight(_) => self,
        }
    }

    fn wanted(self, purpose: ReadPurpose) -> ReadState {
        match self {
            ReadState::Idle => ReadState::Waiting(purpose),
            ReadState::Waiting(known) => ReadState::Waiting(known.max(purpose)),
            ReadState::InFlight(sent) => {
                ReadState::InFlight(SentRead { purpose: sent.purpose.max(purpose), ..sent })
            }
            ReadState::Outdated(_) => self, // it will be read again
        }
    }

    fn sent(self, sent: SentRead) -> Option<ReadState> {
        let ReadState::Waiting(purpose) = self else { return None };
        Some(ReadState::InFlight(SentRead { purpose, ..sent }))
    }

    /// If another node creates the history first, nothing of it was read.
    fn creating(self) -> Option<ReadState> {
        match self {
            ReadState::InFlight(sent) => {
                Some(ReadState::InFlight(SentRead { from: u64::MAX, ..sent }))
            }
            ReadState::Outdated(_) => Some(self),
            ReadState::Idle | ReadState::Waiting(_) => None,
        }
    }

    fn again(self) -> Option<ReadState> {
        Some(ReadState::Waiting(self.in_flight()?.purpose))
    }

    fn taken(self) -> Option<ReadState> {
        self.in_flight().map(|_| ReadState::Idle)
    }
}

#[cfg(test)]
mod tests;
