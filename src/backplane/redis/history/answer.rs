//! Answers to requests for a topic's history.
//!
//! Invariant: each request is answered once, or returned.

use crate::backplane::history::log::{MessageLog, RunRequest};
use crate::backplane::local::Local;
use crate::backplane::redis::history::follower::{FollowedTopic, LocalCopy};
use crate::backplane::redis::history::lineage::Lineage;
use crate::backplane::redis::history::request::TopicRequest;
use crate::ids::{Position, ShardId, TopicKind};
use crate::link::{
    HistoryError, HistoryPage, HistoryRequest, RecoveryReply, RecoveryRequest, Unrecoverable,
};
use crate::protocol::run::Run;
use crate::protocol::{Page, Recovery, Unrecovered};

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
        let LocalCopy::Known(log) = &mut self.copy else { return Some(request) };
        if !may_answer {
            return Some(request);
        }
        let is_complete = log.first() <= self.oldest_available;
        match request {
            TopicRequest::Recover(shard, ask) if matches!(self.name.kind(), TopicKind::User(_)) => {
                if is_short {
                    return Some(TopicRequest::Recover(shard, ask));
                }
                let run_request =
                    RunRequest { topic: &self.name, encoding: ask.encoding, bytes_max };
                let (recovery, missed) = log.unacknowledged(self.acked, run_request);
                send_reply(shard, *ask, log.position(), recovery, missed, local);
            }
            TopicRequest::Recover(shard, ask) => {
                let run_request =
                    RunRequest { topic: &self.name, encoding: ask.encoding, bytes_max };
                let found = match ask.since {
                    None => Ok(None),
                    Some(_) if !self.recovery => Err(Unrecovered::NotEnabled),
                    Some(since) => self
                        .lineage
                        .translate(since, log.position().epoch)
                        .and_then(|since| log.since(since, run_request))
                        .map(Some),
                };
                if found == Err(Unrecovered::Trimmed) && !is_complete {
                    return Some(TopicRequest::Recover(shard, ask));
                }
                // A client that has received more than this node knows makes it read again before
                // that is denied: this node's connection may be dead, and not noticed yet.
                if found == Err(Unrecovered::TailLost) && !is_fresh {
                    return Some(TopicRequest::Recover(shard, ask));
                }
                match found {
                    Err(Unrecovered::TailLost) => {
                        let instead = superseding_run(&ask, log, &self.lineage, run_request);
                        if instead == Some(Err(Unrecovered::Trimmed)) && !is_complete {
                            return Some(TopicRequest::Recover(shard, ask));
                        }
                        tail_lost(shard, *ask, log.position(), instead, local);
                    }
                    found => reply_recovery(shard, *ask, log.position(), found, local),
                }
            }
            // A publisher that has just received a position finds its message there: it may not be
            // in the copy yet, because it arrives on another connection. So each page is read for.
            TopicRequest::History(ask) if !is_complete => {
                return Some(TopicRequest::History(ask));
            }
            TopicRequest::History(ask) => {
                let run_request =
                    RunRequest { topic: &self.name, encoding: ask.encoding, bytes_max };
                let found = page(&ask, log, &self.lineage, run_request);
                local.reply_history(ask.topic, ask.to, found);
            }
        }
        None
    }
}

/// What was published in place of the messages that the client received last. `None`: those were of
/// this epoch.
fn superseding_run(
    ask: &RecoveryRequest,
    log: &mut MessageLog,
    lineage: &Lineage,
    run_request: RunRequest<'_>,
) -> Option<Result<Run, Unrecovered>> {
    let Position { epoch, .. } = log.position();
    let since = ask.since.filter(|since| since.epoch != epoch)?;
    let offset = lineage.end_of(since.epoch)?;
    Some(log.since(Position { epoch, offset }, run_request))
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
