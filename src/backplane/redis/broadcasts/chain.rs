//! The numbers of messages to everybody, as one node receives them.

use crate::ids::Position;

/// The number before the first message.
pub(super) const NONE: u64 = 1;

/// What a node knows of the messages that it has sent itself.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::backplane::redis) struct SentBroadcasts {
    /// The number of the newest that the server has acknowledged; 0: none since this was last taken.
    pub newest: u64,
    /// One was in flight when a link broke.
    pub is_unknown: bool,
}

impl SentBroadcasts {
    /// The server has acknowledged a message with this number.
    pub(in crate::backplane::redis) fn note_acknowledged(&mut self, number: u64) {
        self.newest = self.newest.max(number);
    }
}

/// What a node knows. It outlives links.
#[derive(Debug, Default)]
pub(super) struct BroadcastChain {
    /// The last number received or read; `None`: nothing was read yet.
    known: Option<u64>,
    /// The newest number that was acknowledged to this node, whether the message came or not.
    sent: u64,
    /// A message is missing, and nobody was notified of it yet.
    has_gap: bool,
    /// Other nodes may be missing a message without seeing it in the numbers.
    has_fork: bool,
    /// A message had no number.
    has_unnumbered: bool,
}

impl BroadcastChain {
    /// The last number received or read.
    fn known(&self) -> u64 {
        self.known.unwrap_or(NONE)
    }

    /// The last number that the server has to know.
    pub(super) fn to_restore(&self) -> u64 {
        self.known().max(self.sent)
    }

    /// Messages were sent by this node.
    pub(super) fn note_sent(&mut self, sent: SentBroadcasts) {
        self.sent = self.sent.max(sent.newest);
        self.has_fork |= sent.is_unknown;
    }

    /// Takes the numbers of a message: `epoch` is that of the one before it.
    pub(super) fn receive(&mut self, numbers: Option<Position>) {
        let Some(Position { epoch: before, offset: this }) = numbers else {
            self.has_unnumbered = true;
            return;
        };
        if let Some(known) = self.known {
            self.has_gap |= before > known;
            // The server did not know the last one that was received here.
            self.has_fork |= before < known;
        }
        self.known = Some(self.known().max(this));
    }

    /// What was to be taken for a fork was not taken.
    pub(super) fn suspect(&mut self) {
        self.has_fork = true;
    }

    /// Whether other nodes have to be made to see a gap. Reset by the call.
    pub(super) fn take_fork(&mut self) -> bool {
        std::mem::take(&mut self.has_fork)
    }

    /// Whether a gap was seen in what arrived. Reset by the call.
    pub(super) fn take_gap(&mut self) -> bool {
        std::mem::take(&mut self.has_gap)
    }

    /// The server's number is this, and all messages up to it have arrived that were to arrive.
    /// Returns whether one is missing. What was read first is where the chain begins.
    pub(super) fn is_missing_at(&mut self, read: u64) -> bool {
        let is_first = self.known.is_none();
        let is_behind = self.known() < read;
        self.known = Some(self.known().max(read));
        let is_unsure = std::mem::take(&mut self.has_unnumbered) | self.take_gap();
        !is_first && (is_behind || is_unsure)
    }

    /// Whether other nodes have to be made to see a gap.
    pub(super) fn has_fork(&self) -> bool {
        self.has_fork
    }

    /// Whether nothing was read yet.
    pub(super) fn is_new(&self) -> bool {
        self.known.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn after(before: u64, this: u64) -> Option<Position> {
        Some(Position { epoch: before, offset: this })
    }

    #[test]
    fn messages_in_a_row_leave_nothing_missing() {
        let mut chain = BroadcastChain::default();
        assert!(!chain.is_missing_at(NONE), "nobody ever published");
        assert!(!chain.is_missing_at(NONE), "nor later");
        chain.receive(after(NONE, 100));
        chain.receive(after(100, 250));
        assert!(!chain.is_missing_at(250) && !chain.take_gap() && !chain.take_fork());
    }

    #[test]
    fn a_number_that_was_not_received_is_missing_once() {
        let mut chain = BroadcastChain::default();
        assert!(!chain.is_missing_at(100), "what was before the node does not concern it");
        assert!(chain.is_missing_at(200));
        assert!(!chain.is_missing_at(200));
        chain.receive(after(300, 400));
        assert!(chain.take_gap() && !chain.take_gap());
        assert!(!chain.is_missing_at(400));
    }

    #[test]
    fn a_server_that_lacks_what_was_received_here_is_a_fork() {
        let mut chain = BroadcastChain::default();
        chain.is_missing_at(100);
        chain.receive(after(100, 200));
        chain.receive(after(100, 300));
        assert!(chain.take_fork() && !chain.take_gap());
        assert!(!chain.is_missing_at(300), "here nothing is missing");
    }

    #[test]
    fn after_a_message_without_a_number_an_outage_counts_as_a_loss() {
        let mut chain = BroadcastChain::default();
        chain.is_missing_at(100);
        chain.receive(None);
        assert!(!chain.take_gap());
        assert!(chain.is_missing_at(100));
        assert!(!chain.is_missing_at(100));
    }

    proptest! {
        /// A server numbers messages, and loses the last ones in failovers; nodes are cut off.
        #[test]
        fn a_node_that_misses_a_message_sees_it(
            steps in proptest::collection::vec((0u8..4, 0usize..3), 1..40),
        ) {
            let mut nodes: [Played; 3] = Default::default();
            let (mut server, mut now) = (NONE, 100);
            nodes.iter_mut().for_each(|node| _ = node.chain.is_missing_at(server));
            for (what, which) in steps {
                now += 10;
                match what {
                    0 => nodes[which].is_cut_off = true,
                    1 => nodes.iter_mut().for_each(|node| node.reconnect(&mut server, now)),
                    _ => {
                        let this = (server + 1).max(now);
                        let sent = SentBroadcasts { newest: this, is_unknown: false };
                        nodes[which].chain.note_sent(sent);
                        for node in &mut nodes {
                            node.missed |= node.is_cut_off;
                            if !node.is_cut_off {
                                node.chain.receive(after(server, this));
                                node.is_notified |= node.chain.take_gap();
                            }
                        }
                        server = this;
                        // A failover to a replica that lacks the last message cuts everybody off.
                        if what == 3 {
                            server = server.saturating_sub(10).max(NONE);
                            nodes.iter_mut().for_each(|node| node.is_cut_off = true);
                        }
                    }
                }
            }
            // Nodes put back what they know before anybody judges.
            nodes.iter().for_each(|node| server = server.max(node.chain.to_restore()));
            for node in &mut nodes {
                node.is_notified |= node.chain.is_missing_at(server);
                prop_assert!(node.is_notified || !node.missed);
            }
        }
    }

    #[derive(Default)]
    struct Played {
        chain: BroadcastChain,
        is_cut_off: bool,
        missed: bool,
        is_notified: bool,
    }

    impl Played {
        fn reconnect(&mut self, server: &mut u64, now: u64) {
            self.is_cut_off = false;
            *server = (*server).max(self.chain.to_restore());
            if self.chain.take_fork() {
                *server = (*server + 1).max(now);
            }
        }
    }
}
