//! Answers to requests for a topic's history.
//!
//! Invariant: each request is answered once, or returned.

use crate::backplane::history::log::{MessageLog, RunRequest};
use crate::backplane::local::Local;
use crate::backplane::redis::history::follower::FollowedTopic;
use crate::backplane::redis::history::lineage::fork_offset_of;
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
        let is_recover = matches!(request, TopicRequest::Recover(..));
        let must_hear = is_recover && !self.is_subscribed;
        let is_fresh = self.reads >= after;
        // The user may have acknowledged on another node: that is read for each connection.
        let must_read = is_recover && self.is_user() && !is_fresh;
        let is_known = self.is_synced && !must_hear && !must_read;
        let is_short = self.first_missing_unacknowledged().is_some();
        let Some(log) = self.log.as_mut().filter(|_| is_known) else { return Some(request) };
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
                    Some(since) => translate(since, log, &self.lineage)
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
            // A publisher that was just told a position finds its message there: it may not be in
            // the copy yet, because it arrives on another connection.
            TopicRequest::History(ask) if !is_complete || !is_fresh => {
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

/// A position of an earlier epoch as one of the current epoch.
fn translate(
    since: Position,
    log: &MessageLog,
    lineage: &[(u64, u64)],
) -> Result<Position, Unrecovered> {
    let epoch = log.position().epoch;
    if since.epoch == epoch {
        return Ok(since);
    }
    match fork_offset_of(lineage, since.epoch) {
        None => Err(Unrecovered::Epoch),
        Some(fork_offset) if since.offset > fork_offset => Err(Unrecovered::TailLost),
        Some(_) => Ok(Position { epoch, offset: since.offset }),
    }
}

/// What was published in place of the messages that the client received last. `None`: those were of
/// this epoch.
fn superseding_run(
    ask: &RecoveryRequest,
    log: &mut MessageLog,
    lineage: &[(u64, u64)],
    run_request: RunRequest<'_>,
) -> Option<Result<Run, Unrecovered>> {
    let Position { epoch, .. } = log.position();
    let since = ask.since.filter(|since| since.epoch != epoch)?;
    let offset = fork_offset_of(lineage, since.epoch)?;
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

/// Joins without the missed messages: too many ask, or Redis does not answer. Without a known
/// position the client cannot recover later from here.
pub(super) fn reply_overload(
    shard: ShardId,
    ask: RecoveryRequest,
    position: Option<Position>,
    local: &mut Local,
) {
    let position = position.unwrap_or(Position { epoch: 0, offset: 0 });
    reply_recovery(shard, ask, position, Err(Unrecovered::Overload), local);
}

/// Refuses a request: the stored history is unreadable.
pub(super) fn reply_unreadable(request: TopicRequest, local: &mut Local) {
    match request {
        TopicRequest::History(ask) => {
            local.reply_history(ask.topic, ask.to, Err(HistoryError::Unreadable))
        }
        TopicRequest::Recover(shard, ask) => {
            let RecoveryRequest { at, conn, ticket, .. } = *ask;
            local.refuse_recovery(shard, Unrecoverable { at, conn, ticket });
        }
    }
}

fn page(
    ask: &HistoryRequest,
    log: &MessageLog,
    lineage: &[(u64, u64)],
    run_request: RunRequest<'_>,
) -> Result<HistoryPage, HistoryError> {
    let since = ask.page.since.map(|since| translate(since, log, lineage)).transpose();
    let messages = since.and_then(|since| log.page(Page { since, ..ask.page }, run_request));
    match messages {
        Ok(messages) => Ok(HistoryPage { position: log.position(), messages }),
        Err(why) => Err(HistoryError::Unrecovered(why)),
    }
}
