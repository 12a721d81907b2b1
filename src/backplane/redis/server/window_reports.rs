//! The repair window of a server: what the nodes report to each other so that it ends as soon as
//! they have put back what the server has lost.
//!
//! A server of a new generation ([`crate::backplane::redis::connection::generation`]) may lack
//! the end of its histories, or everything. Nothing new is stored before the nodes have put back
//! what they have. Who has what is known to nobody, so the window waits for every node that may
//! have something:
//!
//! 1. *Who is waited for.* Each node remembers which others lived when it last read the records
//!    of nodes ([`crate::backplane::redis::presence`]); what is in Redis may be gone with the
//!    rest. When it connects, it reports itself and all of those to the window of each of the
//!    server's partitions. The first report begins the window, later ones add to it, in whatever
//!    order they come. A node that died before the server did is in no list.
//! 2. *Followed*: a node has read all histories of which it has messages and has put back what
//!    the server lacked, and each publish of its own that no canary has proved was appended, or
//!    refused because messages before it are missing
//!    ([`crate::backplane::redis::publish::unconfirmed`]). Such a publish may follow what another
//!    node puts back, so nothing is decided yet.
//! 3. When all nodes have *followed*, what is still missing is with nobody. Publishes behind a
//!    gap are appended now, the first of each history before the next, with empty entries in the
//!    gap.
//! 4. *Done*: a node has nothing left. The report of the last one ends the window.
//!
//! A node that does not report delays the end by 5 s at most ([`REPAIR_MS_MAX`]): longer than a
//! loaded host holds up a process, and shorter than a publish may wait
//! (`limits.publish_queue_ms_max`). One that connects at the last moment has a second. After the
//! end, whatever a node still puts back is taken in every history in which nothing new was
//! stored.
//!
//! *Versions.* A node names in its record that it reports. For one that does not, the window is
//! as long as it was before there were reports: 600 ms ([`REPAIR_MS`]). Such a node also shortens
//! a window that is longer to that when it connects or publishes. The window then goes by time,
//! as it did.
//!
//! *What it costs.* Nothing while no server changes its generation: publishes compare their
//! history's generation with the server's, and look at the window only if they differ. Where one
//! does, each node sends two or three reports for all partitions of the server, 128 in one
//! script, or one in a Cluster, whose partitions are in different slots; rooms do not count. A
//! window is two fields of a hash, about 80 bytes and 20 for each node, until it is over.
//!
//! A window also begins with the first command that finds another generation, where no node
//! reports: when a partition of a Cluster moves to a server that was there before, or `FLUSHALL`
//! has emptied one. It goes by time.
//!
//! Invariant: what is reported is true of all partitions of the server on this link.
//!
//! [`REPAIR_MS`]: crate::backplane::redis::scripts::REPAIR_MS

use crate::backplane::redis::names::Names;
use crate::backplane::redis::partition_set::PartitionSet;
use crate::backplane::redis::pipeline::{PendingReply, poll_reply, send};
use crate::backplane::redis::scripts::{
    REPAIR_MS_MAX, RepairStage, WindowReply, WindowReport, report_window,
};
use redis::aio::MultiplexedConnection;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

/// Pause before a report that was refused is sent again. A server without its replicas refuses.
const RETRY_PAUSE: Duration = Duration::from_millis(30);
/// How long reports are sent again: no window is longer.
const RETRIED_FOR: Duration = Duration::from_millis(2 * REPAIR_MS_MAX);

/// Where a report goes.
pub(super) struct ReportContext<'a> {
    /// The connection for commands.
    pub cmd: &'a MultiplexedConnection,
    /// Names of keys.
    pub names: &'a Names,
    /// The server's generation.
    pub generation: &'a str,
    /// The other nodes, as [`WindowReport`] names them.
    pub others: &'a str,
}

/// See the module. Owned by the link.
pub(super) struct WindowReports {
    /// What the server knows, or is being sent, in all partitions but `unreported`.
    stage: RepairStage,
    /// Partitions whose window is not known to be over.
    open: PartitionSet,
    /// Those of them in which the stage was not accepted yet.
    unreported: PartitionSet,
    sent: Option<PendingReply<Vec<(u16, WindowReply)>>>,
    due: Instant,
    until: Instant,
    is_wrong_generation: bool,
}

impl WindowReports {
    /// The server has answered this to the report that the node is connected.
    pub(super) fn new(answered: Vec<(u16, WindowReply)>, now: Instant) -> WindowReports {
        let mut reports = WindowReports {
            stage: RepairStage::Linked,
            open: answered.iter().map(|(part, _)| *part).collect(),
            unreported: PartitionSet::default(),
            sent: None,
            due: now,
            until: now + RETRIED_FOR,
            is_wrong_generation: false,
        };
        reports.take(answered, now);
        reports
    }

    /// Whether there is nothing more to report on this link.
    pub(super) fn are_over(&self) -> bool {
        let is_reported = self.stage == RepairStage::Done && self.unreported.is_empty();
        self.open.is_empty() || (is_reported && self.sent.is_none())
    }

    /// Whether the server has another generation than this node believes. Reset by the call.
    pub(super) fn take_wrong_generation(&mut self) -> bool {
        std::mem::take(&mut self.is_wrong_generation)
    }

    /// Reports how far this node is, and handles replies. Returns whether there was work.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        now: Instant,
        reached: RepairStage,
        context: &ReportContext<'_>,
    ) -> bool {
        if let Some(sent) = &mut self.sent {
            let Poll::Ready(answered) = poll_reply(sent, cx) else { return false };
            self.sent = None;
            // Without a reply the link is about to end.
            self.take(answered.unwrap_or_default(), now);
        }
        let Some(parts) = self.next(now, reached) else { return false };
        let report = WindowReport::Stage { stage: self.stage, others: context.others };
        let ReportContext { cmd, names, generation, .. } = *context;
        self.sent = Some(send(cx, report_window(cmd.clone(), names, &parts, generation, report)));
        true
    }

    /// The partitions of the next report, if there is one.
    fn next(&mut self, now: Instant, reached: RepairStage) -> Option<PartitionSet> {
        if self.sent.is_some() || self.are_over() {
            return None;
        }
        if now > self.until {
            self.open = PartitionSet::default();
            return None;
        }
        if reached > self.stage {
            (self.stage, self.unreported, self.due) = (reached, self.open, now);
        }
        if self.unreported.is_empty() || now < self.due {
            return None;
        }
        Some(std::mem::take(&mut self.unreported))
    }

    fn take(&mut self, answered: Vec<(u16, WindowReply)>, now: Instant) {
        for (part, reply) in answered {
            match reply {
                WindowReply::Open => {}
                WindowReply::Over => self.open.remove(part),
                WindowReply::WrongGeneration | WindowReply::Refused => {
                    self.is_wrong_generation |= reply == WindowReply::WrongGeneration;
                    self.unreported.insert(part);
                    self.due = now + RETRY_PAUSE;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(reports: &mut WindowReports, now: Instant, reached: RepairStage) -> Vec<u16> {
        reports.next(now, reached).map_or(Vec::new(), |parts| parts.iter().collect())
    }

    #[test]
    fn where_no_window_is_open_nothing_is_reported() {
        let now = Instant::now();
        let mut reports = WindowReports::new(Vec::new(), now);
        assert!(reports.are_over());
        assert!(parts(&mut reports, now, RepairStage::Done).is_empty());
    }

    #[test]
    fn each_stage_is_reported_once_where_windows_are_open() {
        use RepairStage::{Done, Followed, Linked};
        let now = Instant::now();
        let mut reports =
            WindowReports::new(vec![(1, WindowReply::Open), (2, WindowReply::Open)], now);
        assert!(parts(&mut reports, now, Linked).is_empty(), "that is known");
        assert_eq!(parts(&mut reports, now, Followed), [1, 2]);
        reports.take(vec![(1, WindowReply::Over), (2, WindowReply::Open)], now);
        assert!(parts(&mut reports, now, Followed).is_empty());
        assert_eq!(parts(&mut reports, now, Done), [2]);
        assert!(reports.are_over(), "its reply is not waited for: {:?}", reports.unreported);
        reports.take(vec![(2, WindowReply::Open)], now);
        assert!(parts(&mut reports, now, Done).is_empty());
        // From the first to the last at once.
        let mut quick = WindowReports::new(vec![(1, WindowReply::Open)], now);
        assert_eq!(parts(&mut quick, now, Done), [1]);
    }

    #[test]
    fn what_is_refused_is_reported_again_after_a_pause_and_not_for_ever() {
        let now = Instant::now();
        let refused = vec![(1, WindowReply::Open), (2, WindowReply::Refused)];
        let mut reports = WindowReports::new(refused, now);
        assert!(parts(&mut reports, now, RepairStage::Linked).is_empty(), "a pause");
        assert_eq!(parts(&mut reports, now + RETRY_PAUSE, RepairStage::Linked), [2]);
        reports.take(vec![(2, WindowReply::WrongGeneration)], now + RETRY_PAUSE);
        assert!(reports.take_wrong_generation() && !reports.take_wrong_generation());
        assert_eq!(parts(&mut reports, now + RETRY_PAUSE, RepairStage::Done), [1, 2], "at once");
        reports.take(vec![(1, WindowReply::Refused), (2, WindowReply::Refused)], now);
        let late = now + RETRIED_FOR + Duration::from_millis(1);
        assert!(parts(&mut reports, late, RepairStage::Done).is_empty());
        assert!(reports.are_over());
    }
}
