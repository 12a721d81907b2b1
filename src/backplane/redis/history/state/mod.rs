//! The state of a followed history, and every way from one state to another.
//!
//! ```text
//!                       ┌──────────────┐ Subscribed       ┌─────────┐
//!   followed  ────────► │ Unsubscribed │ ───────────────► │ Syncing │ ◄─────────────┐
//!                       └──────────────┘                  └─────────┘               │
//!                          ▲ LinkLost,                     │       ▲                │
//!                          │ Unsubscribed             Taken│       │GapSeen,        │GapSeen,
//!                          │ (from every state)            ▼       │FoundMore       │FoundMore
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
//! ([`StreamRead`]). What a state is for:
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
    Unsubscribed(StreamRead),
    /// The channel is subscribed; a read has to show what is missing.
    Syncing(StreamRead),
    /// The stored history was unreadable so many times in a row.
    Unreadable {
        /// How many times.
        times: u32,
        /// Finds out whether it is corrected.
        read: StreamRead,
    },
    /// Everything up to the end of the copy was delivered, and the next message is expected.
    Synced(StreamRead),
    /// The same, while a read has shown later messages than those that have arrived.
    Overtaken {
        /// Those messages.
        gap: ReadAheadGap,
        /// Finds out whether they are lost.
        read: StreamRead,
    },
}

/// The read of a history's stream. There is at most one at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StreamRead {
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
pub(super) enum HistoryEvent {
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
    /// The copy ends before what was read, as after a fork: it has to be read from there.
    FoundMore,
    /// The copy has everything that was read.
    Taken,
    /// A message arrived that is not the next one.
    GapSeen,
}

impl FollowState {
    /// A topic that has just been followed.
    pub(super) const NEW: FollowState = FollowState::Unsubscribed(StreamRead::Idle);

    /// The state after an event; `None`: the event is impossible in this state.
    #[must_use]
    pub(super) fn after(self, event: HistoryEvent) -> Option<FollowState> {
        use FollowState::{Overtaken, Synced, Syncing, Unreadable, Unsubscribed};
        let read = self.read();
        Some(match (event, self) {
            // It has to be read after a pause, whatever channel brings its messages.
            (HistoryEvent::Subscribed, Unreadable { read: StreamRead::Waiting(_), .. }) => self,
            (HistoryEvent::Subscribed, _) => Syncing(read.before_subscription()),
            (HistoryEvent::Unsubscribed, _) => Unsubscribed(read.without_subscription()),
            (HistoryEvent::LinkLost, _) => Unsubscribed(StreamRead::Idle),
            (HistoryEvent::ReadWanted(purpose), _) => self.with(read.wanted(purpose)),
            (HistoryEvent::ReadSent(sent), _) => self.with(read.sent(sent)?),
            (HistoryEvent::CreationSent, _) => self.with(read.creating()?),
            (HistoryEvent::ReadAgain, _) => self.with(read.again()?),
            (HistoryEvent::FoundUnreadable, Unsubscribed(_)) => Unsubscribed(read.taken()?),
            (HistoryEvent::FoundUnreadable, Unreadable { times, .. }) => {
                Unreadable { times: times.saturating_add(1), read: read.again()? }
            }
            (HistoryEvent::FoundUnreadable, _) => Unreadable { times: 1, read: read.again()? },
            (HistoryEvent::FoundAhead(gap), Synced(_) | Overtaken { .. }) => {
                Overtaken { gap, read: read.again()? }
            }
            (HistoryEvent::FoundAhead(_), _) => return None,
            (HistoryEvent::FoundMore | HistoryEvent::Taken, _) if read.is_outdated() => {
                return None;
            }
            (HistoryEvent::FoundMore, Unsubscribed(_)) => Unsubscribed(read.again()?),
            (HistoryEvent::FoundMore, _) => Syncing(read.again()?),
            (HistoryEvent::Taken, Unsubscribed(_)) => Unsubscribed(read.taken()?),
            (HistoryEvent::Taken, _) => Synced(read.taken()?),
            (HistoryEvent::GapSeen, Synced(_) | Overtaken { .. }) => {
                Syncing(read.wanted(ReadPurpose::Answer))
            }
            (HistoryEvent::GapSeen, Unsubscribed(_) | Syncing(_) | Unreadable { .. }) => self,
        })
    }

    /// The read of this state.
    pub(super) fn read(self) -> StreamRead {
        match self {
            FollowState::Unsubscribed(read)
            | FollowState::Syncing(read)
            | FollowState::Synced(read)
            | FollowState::Unreadable { read, .. }
            | FollowState::Overtaken { read, .. } => read,
        }
    }

    fn with(self, read: StreamRead) -> FollowState {
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
        use StreamRead::{Idle, Outdated};
        match self {
            Unsubscribed(read) | Synced(read) => !matches!(read, Outdated(_)),
            // What is missing is found by a read.
            Syncing(read) => read != Idle,
            Unreadable { times, read } => times > 0 && !matches!(read, Idle | Outdated(_)),
            Overtaken { read, .. } => !matches!(read, Idle | Outdated(_)),
        }
    }
}

impl StreamRead {
    /// Whether it is in a queue.
    pub(super) fn is_waiting(self) -> bool {
        matches!(self, StreamRead::Waiting(_))
    }

    /// Whether it was sent before the channel was subscribed.
    pub(super) fn is_outdated(self) -> bool {
        matches!(self, StreamRead::Outdated(_))
    }

    /// What was known when it was sent; `None`: it is not in flight.
    pub(super) fn in_flight(self) -> Option<SentRead> {
        match self {
            StreamRead::InFlight(sent) | StreamRead::Outdated(sent) => Some(sent),
            StreamRead::Idle | StreamRead::Waiting(_) => None,
        }
    }

    fn before_subscription(self) -> StreamRead {
        match self {
            StreamRead::Idle => StreamRead::Waiting(ReadPurpose::Answer),
            StreamRead::Waiting(_) => self,
            StreamRead::InFlight(sent) | StreamRead::Outdated(sent) => StreamRead::Outdated(sent),
        }
    }

    fn without_subscription(self) -> StreamRead {
        match self {
            StreamRead::Outdated(sent) => StreamRead::InFlight(sent),
            StreamRead::Idle | StreamRead::Waiting(_) | StreamRead::InFlight(_) => self,
        }
    }

    fn wanted(self, purpose: ReadPurpose) -> StreamRead {
        match self {
            StreamRead::Idle => StreamRead::Waiting(purpose),
            StreamRead::Waiting(known) => StreamRead::Waiting(known.max(purpose)),
            StreamRead::InFlight(sent) => {
                StreamRead::InFlight(SentRead { purpose: sent.purpose.max(purpose), ..sent })
            }
            StreamRead::Outdated(_) => self, // it will be read again
        }
    }

    fn sent(self, sent: SentRead) -> Option<StreamRead> {
        let StreamRead::Waiting(purpose) = self else { return None };
        Some(StreamRead::InFlight(SentRead { purpose, ..sent }))
    }

    /// If another node creates the history first, nothing of it was read.
    fn creating(self) -> Option<StreamRead> {
        match self {
            StreamRead::InFlight(sent) => {
                Some(StreamRead::InFlight(SentRead { from: u64::MAX, ..sent }))
            }
            StreamRead::Outdated(_) => Some(self),
            StreamRead::Idle | StreamRead::Waiting(_) => None,
        }
    }

    fn again(self) -> Option<StreamRead> {
        Some(StreamRead::Waiting(self.in_flight()?.purpose))
    }

    fn taken(self) -> Option<StreamRead> {
        self.in_flight().map(|_| StreamRead::Idle)
    }
}

#[cfg(test)]
mod tests;
