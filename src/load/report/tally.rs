//! The counters of a worker. It sends a copy to the coordinator ten times a second, so no counter
//! is shared between threads.
//!
//! Invariant: the sum of all workers' tallies is the tally of the run.

use std::collections::BTreeMap;
use std::io;

/// Why an attempt to connect failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ConnectFailure {
    /// Connection refused: no listener.
    Refused,
    /// The peer reset the connection before it had joined.
    Reset,
    /// Not joined within the handshake timeout.
    Timeout,
    /// HTTP 503.
    Busy,
    /// HTTP 408, 429, or 5xx other than 503: a retry may succeed.
    Overloaded,
    /// Any other HTTP status, a wrong accept value, or no HTTP at all: not retried.
    Status,
    /// The server closed the connection before it had joined.
    ClosedEarly,
    /// No local port is left for this pair of addresses.
    NoPort,
    /// No file descriptor is left: not retried.
    NoFile,
    /// Anything else.
    Other,
}

impl ConnectFailure {
    /// Number of variants.
    pub(crate) const COUNT: usize = 10;

    /// Names in the report, in the order of the variants.
    pub(crate) const NAMES: [&'static str; ConnectFailure::COUNT] = [
        "connection_refused",
        "connection_reset",
        "handshake_timeout",
        "http_503",
        "http_overloaded",
        "http_status",
        "closed_before_joined",
        "no_local_port",
        "no_descriptor",
        "other",
    ];

    /// What an error of the socket means.
    pub(crate) fn of(error: &io::Error) -> ConnectFailure {
        match error.raw_os_error() {
            Some(libc::ECONNREFUSED) => ConnectFailure::Refused,
            Some(libc::ECONNRESET | libc::EPIPE) => ConnectFailure::Reset,
            Some(libc::ETIMEDOUT) => ConnectFailure::Timeout,
            Some(libc::EADDRNOTAVAIL | libc::EADDRINUSE) => ConnectFailure::NoPort,
            Some(libc::EMFILE | libc::ENFILE) => ConnectFailure::NoFile,
            _ => ConnectFailure::Other,
        }
    }
}

/// The counters of one worker, or their sum.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    /// Connects begun.
    pub attempts: u64,
    /// Connections that are joined now.
    pub joined: u64,
    /// Connections whose last attempt failed, by [`ConnectFailure`].
    pub failed: [u64; ConnectFailure::COUNT],
    /// Attempts that failed and are retried, by [`ConnectFailure`].
    pub retried: [u64; ConnectFailure::COUNT],
    /// Joined connections that the server or the network ended.
    pub lost: u64,
    /// When the last connection joined, in nanoseconds since the run began.
    pub last_joined_ns: u64,
    /// Bytes read after the handshake.
    pub bytes_in: u64,
    /// Messages published.
    pub published: u64,
    /// Deliveries that these messages must cause.
    pub expected: u64,
    /// Deliveries received.
    pub received: u64,
    /// Bytes of their frames, headers included.
    pub received_bytes: u64,
    /// When the last delivery was received, in nanoseconds since the run began.
    pub last_received_ns: u64,
    /// Deliveries that came twice or after a later one, where messages are ordered.
    pub out_of_order: u64,
    /// Messages that could not be published: the publisher was not joined, or its socket full.
    pub unsent: u64,
    /// Messages of a window whose last delivery did not come in time.
    pub given_up: u64,
    /// WebSocket pings received; each is answered.
    pub pings: u64,
    /// Questions sent at the end of bursts.
    pub questions_sent: u64,
    /// Of them, questions that were answered.
    pub questions_answered: u64,
    /// Non-reading connections that the server closed.
    pub non_reading_closed: u64,
    /// Error frames received.
    pub errors: u64,
    /// The first failure, as text.
    pub first_failure: Option<String>,
    /// The beginning of the first delivery, as received.
    pub sample: Option<String>,
}

impl Tally {
    /// Connections whose last attempt failed.
    pub(crate) fn failures(&self) -> u64 {
        self.failed.iter().sum()
    }

    /// Adds the tally of another worker.
    pub(crate) fn add(&mut self, other: &Tally) {
        self.attempts += other.attempts;
        self.joined += other.joined;
        for (mine, theirs) in self.failed.iter_mut().zip(&other.failed) {
            *mine += theirs;
        }
        for (mine, theirs) in self.retried.iter_mut().zip(&other.retried) {
            *mine += theirs;
        }
        self.lost += other.lost;
        self.last_joined_ns = self.last_joined_ns.max(other.last_joined_ns);
        self.bytes_in += other.bytes_in;
        self.published += other.published;
        self.expected += other.expected;
        self.received += other.received;
        self.received_bytes += other.received_bytes;
        self.last_received_ns = self.last_received_ns.max(other.last_received_ns);
        self.out_of_order += other.out_of_order;
        self.unsent += other.unsent;
        self.given_up += other.given_up;
        self.pings += other.pings;
        self.questions_sent += other.questions_sent;
        self.questions_answered += other.questions_answered;
        self.non_reading_closed += other.non_reading_closed;
        self.errors += other.errors;
        self.first_failure = self.first_failure.take().or_else(|| other.first_failure.clone());
        self.sample = self.sample.take().or_else(|| other.sample.clone());
    }

    /// Records `what` if nothing has failed before.
    pub(crate) fn note_failure(&mut self, what: impl FnOnce() -> String) {
        if self.first_failure.is_none() {
            self.first_failure = Some(what());
        }
    }
}

/// Counts by name, without zeros.
pub(crate) fn by_name(counts: &[u64; ConnectFailure::COUNT]) -> BTreeMap<&'static str, u64> {
    ConnectFailure::NAMES.iter().copied().zip(*counts).filter(|&(_, count)| count > 0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tallies_add_up_and_keep_the_first_failure() {
        let mut one = Tally { joined: 2, last_joined_ns: 5, ..Tally::default() };
        let mut two = Tally { joined: 3, last_joined_ns: 4, ..Tally::default() };
        two.failed[ConnectFailure::Busy as usize] = 7;
        two.note_failure(|| "first".into());
        two.note_failure(|| "second".into());
        one.add(&two);
        assert_eq!((one.joined, one.last_joined_ns, one.failures()), (5, 5, 7));
        assert_eq!(one.first_failure.as_deref(), Some("first"));
        assert_eq!(by_name(&one.failed).into_iter().collect::<Vec<_>>(), [("http_503", 7)]);
    }
}
