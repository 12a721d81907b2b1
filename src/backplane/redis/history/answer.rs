//! Answers to requests for a topic's history.
//!
//! Invariant: each request is answered once, or returned.

use crate::backplane::history::log::{MessageLog, RunRequest};
use crate::backplane::history::recent_runs::RecentRuns;
use crate::backplane::local::Local;
use crate::backplane::redis::history::follower::{FollowedTopic, LocalCopy};
use crate::backplane::redis::history::lineage::Lineage;
use crate::backplane::redis::history::request::TopicRequest;
use crate::ids::{Position, ShardId};
use crate::link::{
    HistoryError, HistoryPage, HistoryRequest, RecoveryReply, RecoveryRequest, Unrecoverable,
};
use crate::protocol::run::Run;
use crate::protocol::{Page, Recovery, Unrecovered};

/// A copy from which a request is answered.
struct AnswerSource<'a> {
    log: &'a MessageLog,
    lineage: &'a Lineage,
    /// The copy begins with the oldest message that there is.
    is_complete: bool,
    /// It was read after the request had come.
    is_fresh: bool,
    request: RunRequest<'a>,
}

impl FollowedTopic {
    /// Answers from the copy, or returns the request.
    pub(super) fn answer(
        &mut self,
        request: TopicRequest,
        after: u64,
        bytes_max: usize,
        local: &mut Local,
    ) -> Option<TopicRequest> {
        let is_fresh = self.reads >= after;
        let may_answer = match &request {
            // The user may have acknowledged on another node: that is read for each connection.
            TopicRequest::Recover(..) => self.state().is_synced() && (!self.is_user() || is_fresh),
            TopicRequest::History(_) => is_fresh,
        };
        let is_short = self.first_missing_unacknowledged().is_some();
        let (is_user, acked, recovery) = (self.is_user(), self.acked_up_to(), self.recovery);
        let LocalCopy::Known(log) = &mut self.copy else { return Some(request) };
        let encoding = match &request {
            TopicRequest::Recover(_, ask) => ask.encoding,
            TopicRequest::History(ask) => ask.encoding,
        };
        let mut source = AnswerSource {
            is_complete: log.first() <= self.oldest_available,
            is_fresh,
            request: RunRequest { topic: &self.name, encoding, bytes_max },
            lineage: &self.lineage,
            log,
        };
        match request {
            request if !may_answer => Some(request),
            TopicRequest::Recover(..) if is_user && is_short => Some(request),
            TopicRequest::Recover(shard, ask) if is_user => {
                let (recovery, missed) =
                    source.log.unacknowledged(acked, source.request, &mut local.runs);
                send_reply(shard, *ask, source.log.position(), recovery, missed, local);
                None
            }
            TopicRequest::Recover(shard, ask) => {
                let ask = source.answer_join(shard, ask, recovery, local)?;
                Some(TopicRequest::Recover(shard, ask))
            }
            // A publisher that has just received a position finds its message there: it may not be
            // in the copy yet, because it arrives on another connection. So each page is read for.
            TopicRequest::History(_) if !source.is_complete => Some(request),
            TopicRequest::History(ask) => {
                let found = page(&ask, source.log, source.lineage, source.request);
                local.reply_history(ask.topic, ask.to, found);
                None
            }
        }
    }
}

impl AnswerSource<'_> {
    /// Answers the join of a room, or returns it. `recovery`: whether the room has it.
    fn answer_join(
        &mut self,
        shard: ShardId,
        ask: Box<RecoveryRequest>,
        recovery: bool,
        local: &mut Local,
    ) -> Option<Box<RecoveryRequest>> {
        let position = self.log.position();
        let found = match ask.since {
            None => Ok(None),
            Some(_) if !recovery => Err(Unrecovered::NotEnabled),
            Some(since) => self
                .lineage
                .translate(since, position.epoch)
                .and_then(|since| self.log.since(since, self.request, &mut local.runs))
                .map(Some),
        };
        if found == Err(Unrecovered::Trimmed) && !self.is_complete {
            return Some(ask);
        }
        if found != Err(Unrecovered::TailLost) {
            reply_recovery(shard, *ask, position, found, local);
            return None;
        }
        // A client that has received more than this node knows makes it read again before that is
        // denied: this node's connection may be dead, and not noticed yet.
        if !self.is_fresh {
            return Some(ask);
        }
        let instead = superseding_run(&ask, self.log, self.lineage, self.request, &mut local.runs);
        if instead == Some(Err(Unrecovered::Trimmed)) && !self.is_complete {
            return Some(ask);
        }
        tail_lost(shard, *ask, position, instead, local);
        None
    }
}

/// What was published in place of the messages that the client received last. `None`: those were of
/// this epoch.
fn superseding_run(
    ask: &RecoveryRequest,
    log: &MessageLog,
    lineage: &Lineage,
    run_request: RunRequest<'_>,
    runs: &mut RecentRuns,
) -> Option<Result<Run, Unrecovered>> {
    let Position { epoch, .. } = log.position();
    let since = ask.since.filter(|since| since.epoch != epoch)?;
    let offset = lineage.end_of(since.epoch)?;
    Some(log.since(Position { epoch, offset }, run_request, runs))
}

/// Sends what was published instead, if it fits.
fn tail_lost(
    shard: ShardId,
    ask: RecoveryRequest,
    position: Position,
    instead: Option<Result<Run, Unrecovered>>,
    local: &mut Local,
) {
    match instead {
        Some(Ok(run)) if run.messages > 0 => {
            let recovery = Recovery::Replaced { messages: run.messages };
            send_reply(shard, ask, position, recovery, run, local);
        }
        _ => reply_recovery(shard, ask, position, Err(Unrecovered::TailLost), local),
    }
}

fn reply_recovery(
    shard: ShardId,
    ask: RecoveryRequest,
    position: Position,
    found: Result<Option<Run>, Unrecovered>,
    local: &mut Local,
) {
    let (recovery, missed) = match found {
        Ok(None) => (Recovery::NotAsked, Run::default()),
        Ok(Some(run)) => (Recovery::Recovered { messages: run.messages }, run),
        Err(why) => (Recovery::NotRecovered(why), Run::default()),
    };
    send_reply(shard, ask, position, recovery, missed, local);
}

fn send_reply(
    shard: ShardId,
    ask: RecoveryRequest,
    position: Position,
    recovery: Recovery,
    missed: Run,
    local: &mut Local,
) {
    let RecoveryRequest { at, conn, ticket, .. } = ask;
    local.reply_recovery(shard, RecoveryReply { at, conn, ticket, position, recovery, missed });
}

/// Answers a join without the missed messages: reading them takes too long.
pub(super) fn reply_overload(
    shard: ShardId,
    ask: RecoveryRequest,
    position: Position,
    local: &mut Local,
) {
    reply_recovery(shard, ask, position, Err(Unrecovered::Overload), local);
}

/// Refuses a request.
pub(super) fn refuse(request: TopicRequest, why: HistoryError, local: &mut Local) {
    match request {
        TopicRequest::History(ask) => local.reply_history(ask.topic, ask.to, Err(why)),
        TopicRequest::Recover(shard, ask) => {
            let RecoveryRequest { at, conn, ticket, .. } = *ask;
            local.refuse_recovery(shard, Unrecoverable { at, conn, ticket, why });
        }
    }
}

fn page(
    ask: &HistoryRequest,
    log: &MessageLog,
    lineage: &Lineage,
    run_request: RunRequest<'_>,
) -> Result<HistoryPage, HistoryError> {
    let epoch = log.position().epoch;
    let since = ask.page.since.map(|since| lineage.translate(since, epoch)).transpose();
    let messages = since.and_then(|since| log.page(Page { since, ..ask.page }, run_request));
    match messages {
        Ok(messages) => Ok(HistoryPage { position: log.position(), messages }),
        Err(why) => Err(HistoryError::Unrecovered(why)),
    }
}
