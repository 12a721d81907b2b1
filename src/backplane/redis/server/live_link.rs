//! A link, and what belongs to it alone: subscriptions, canary, and when the server last answered.

use crate::backplane::local::Local;
use crate::backplane::redis::connection::generation::renamed;
use crate::backplane::redis::connection::link::ServerLink;
use crate::backplane::redis::connection::subscriptions::Subscriptions;
use crate::backplane::redis::failure::{LinkError, Outage};
use crate::backplane::redis::health::canary::Canary;
use crate::backplane::redis::inbound::InboundHandler;
use crate::backplane::redis::names::Names;
use crate::backplane::redis::partition_set::PartitionSet;
use crate::backplane::redis::pipeline::{
    CommandConnection, PendingReply, ScriptOwner, poll_reply, send,
};
use crate::backplane::redis::scripts::{WindowReply, WindowReport, report_window};
use crate::backplane::redis::server::window_reports::WindowReports;
use crate::backplane::redis::shared::{ServerAssignment, SharedContext};
use std::task::Context;
use std::time::{Duration, Instant};

/// Messages taken in one turn.
const PUSHES_PER_TURN: usize = 4096;

/// See the module. Owned by its server.
pub(super) struct LiveLink {
    /// The connections.
    pub link: ServerLink,
    /// `link.cmd` for all senders of batches.
    pub cmd: CommandConnection,
    /// `link.replicated` for batches.
    pub replicated: Option<CommandConnection>,
    /// What is subscribed.
    pub subscriptions: Subscriptions,
    /// `None` until everything is subscribed.
    pub canary: Option<Canary>,
    /// `None`: the server has no topics.
    pub canary_channel: Option<String>,
    /// When it began.
    pub since: Instant,
    /// Whether the channel for publishes of other services is subscribed, or about to be.
    takes_ingest: bool,
    /// When the server last answered while an answer was pending.
    replied_at: Instant,
    /// What is reported of repair windows.
    pub reports: WindowReports,
    /// The server's partitions.
    owns: PartitionSet,
    /// The windows of all partitions are being continued under another generation.
    renaming: Option<PendingReply<Vec<(u16, WindowReply)>>>,
}

impl LiveLink {
    /// Nothing is subscribed yet. `loaded`: whose scripts the server has. `places`: the end of the
    /// slab indices of existing topics.
    pub(super) fn new(
        mut link: ServerLink,
        loaded: &[ScriptOwner],
        assignment: ServerAssignment,
        names: &Names,
        places: u32,
        now: Instant,
    ) -> LiveLink {
        let ServerAssignment { number, first, owns, takes_ingest, .. } = assignment;
        let reports = WindowReports::new(std::mem::take(&mut link.windows), now);
        let canary_channel = first.map(|partition| names.canary(partition));
        let ingest = takes_ingest.then(|| names.ingest.clone());
        let fixed = canary_channel.iter().cloned().chain(ingest).collect();
        let cmd = CommandConnection::new(link.cmd.clone(), loaded);
        let replicated = link.replicated.clone().map(|it| CommandConnection::new(it, loaded));
        LiveLink {
            link,
            cmd,
            replicated,
            subscriptions: Subscriptions::new(number, fixed, places),
            canary: None,
            canary_channel,
            since: now,
            takes_ingest,
            replied_at: now,
            reports,
            owns,
            renaming: None,
        }
    }

    /// The map has changed. Returns how many canaries were missed on a channel that is left.
    pub(super) fn set_assignment(&mut self, assignment: ServerAssignment, names: &Names) -> u64 {
        self.subscriptions.set_server(assignment.number);
        self.owns = assignment.owns;
        let mut missed = 0;
        let channel = assignment.first.map(|partition| names.canary(partition));
        if self.canary_channel != channel {
            let left = self.canary_channel.take();
            left.into_iter().for_each(|old| self.subscriptions.remove_fixed(old));
            channel.iter().for_each(|new| self.subscriptions.add_fixed(new.clone()));
            self.canary_channel = channel;
            // The next one counts from zero on the new channel.
            missed = self.canary.take().map_or(0, |canary| canary.missed);
        }
        if self.takes_ingest != assignment.takes_ingest {
            self.takes_ingest = assignment.takes_ingest;
            match assignment.takes_ingest {
                true => self.subscriptions.add_fixed(names.ingest.clone()),
                false => self.subscriptions.remove_fixed(names.ingest.clone()),
            }
        }
        missed
    }

    /// Whether some topics have been subscribed on no server for longer than this.
    pub(super) fn is_incomplete(&mut self, now: Instant, longer_than: Duration) -> bool {
        let since = self.subscriptions.unsubscribed_since();
        since.is_some_and(|since| now.duration_since(since) > longer_than)
    }

    /// Sends subscriptions. Returns whether there were any, and the number of the batch that the
    /// server answers next.
    pub(super) fn send_subscriptions(
        &mut self,
        now: Instant,
        shared: &SharedContext,
        local: &Local,
    ) -> (bool, Option<u64>) {
        if !self.subscriptions.is_waiting() {
            self.replied_at = now;
        }
        let oldest = self.subscriptions.oldest();
        let sub = &mut self.link.sub;
        (self.subscriptions.poll(now, sub, &shared.names, &local.interest), oldest)
    }

    /// Notes whether the server answers. `oldest`: the batch that it was to answer before.
    ///
    /// During a resubscription a reply may stand behind megabytes of messages. Later the canary
    /// would, too: messages alone do not prove that the server reads from us.
    pub(super) fn check_answers(
        &mut self,
        has_received: bool,
        oldest: Option<u64>,
        is_up: bool,
        now: Instant,
        shared: &SharedContext,
    ) -> Result<(), LinkError> {
        if has_received && (!is_up || self.subscriptions.oldest() != oldest) {
            self.replied_at = now;
        }
        let timeout = shared.plan.timeout_ms.max(shared.plan.canary_timeout_ms);
        match now.duration_since(self.replied_at) > Duration::from_millis(timeout) {
            true => Err(Outage::Timeout(" on the subscribing connection").into()),
            false => Ok(()),
        }
    }

    /// Sends canaries once everything is subscribed. Returns whether one has come back; a server
    /// without topics has nothing to prove.
    pub(super) fn poll_canary(
        &mut self,
        cx: &mut Context<'_>,
        now: Instant,
        shared: &SharedContext,
    ) -> Result<bool, LinkError> {
        let Some(channel) = &self.canary_channel else { return Ok(true) };
        let canary = self.canary.get_or_insert_with(|| {
            let interval = Duration::from_millis(shared.plan.canary_interval_ms);
            Canary::new(interval, Duration::from_millis(shared.plan.canary_timeout_ms), now)
        });
        canary.poll(cx, now, &self.link, shared.names.publish(), channel)?;
        let (has_come_back, renamed) = (canary.has_come_back(), canary.take_renamed());
        if let Some(replication) = renamed {
            self.rename(&replication, cx, &shared.names);
        }
        if self.renaming.as_mut().is_some_and(|it| poll_reply(it, cx).is_ready()) {
            self.renaming = None;
        }
        Ok(has_come_back)
    }

    /// The server has chosen another replication id for the data that it has: repair windows that are
    /// over stay over, and others end as they would have.
    fn rename(&mut self, replication: &str, cx: &mut Context<'_>, names: &Names) {
        let generation = &mut self.link.generation;
        if generation.is_empty() {
            return;
        }
        let next = renamed(generation, replication);
        let before = std::mem::replace(generation, next);
        let (cmd, report) = (self.link.cmd.clone(), WindowReport::Renamed(&before));
        let renaming = report_window(cmd, names, &self.owns, generation, report);
        self.renaming = Some(send(cx, renaming));
    }
}

/// Takes what has arrived on the subscribing connection. Returns whether anything has.
pub(super) fn receive(
    link: &mut ServerLink,
    cx: &mut Context<'_>,
    mut handler: InboundHandler<'_>,
) -> Result<bool, LinkError> {
    let has_received = link.sub.poll(cx, PUSHES_PER_TURN, |event| handler.handle_event(event))?;
    match handler.failure {
        Some(failure) => Err(failure),
        None => Ok(has_received),
    }
}
