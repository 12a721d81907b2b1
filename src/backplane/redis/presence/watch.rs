//! Whether this node may take others for dead.
//!
//! All records are on one server. While that is down nobody is dead, and for a moment after: the
//! other nodes have to reconnect, too.

use std::time::{Duration, Instant};

/// Time after a reconnection in which nobody is dead.
const SETTLING: Duration = Duration::from_millis(5_000);

/// The link to the server of the records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Watch {
    /// It is down, or its partition moves.
    #[default]
    Down,
    /// It has come up. Records are written and read, and nobody is dead.
    Settling { until: Instant },
    /// Nodes without a record die.
    Watching,
}

/// What happens to that link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WatchEvent {
    /// The server is up; until then the other nodes may be reconnecting.
    ServerUp { until: Instant },
    /// The server is down, or the partition of the records is on another one.
    ServerDown,
    /// The other nodes had the time to reconnect.
    Settled,
}

impl Watch {
    /// The state after an event. `None`: it cannot happen in this state.
    pub(super) fn after(self, event: WatchEvent) -> Option<Watch> {
        Some(match (self, event) {
            (Watch::Down, WatchEvent::ServerUp { until }) => Watch::Settling { until },
            (_, WatchEvent::ServerUp { .. }) => self,
            (_, WatchEvent::ServerDown) => Watch::Down,
            (Watch::Settling { .. }, WatchEvent::Settled) => Watch::Watching,
            (Watch::Down | Watch::Watching, WatchEvent::Settled) => return None,
        })
    }

    /// The event of a server that is up from now on.
    pub(super) fn up_at(now: Instant) -> WatchEvent {
        WatchEvent::ServerUp { until: now + SETTLING }
    }

    /// Time passes.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        if let Watch::Settling { until } = *self
            && until <= now
        {
            *self = self.after(WatchEvent::Settled).expect("it was settling");
        }
    }

    /// Whether the server is up.
    pub(super) fn is_up(self) -> bool {
        self != Watch::Down
    }
}
