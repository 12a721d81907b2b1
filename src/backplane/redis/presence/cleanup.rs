//! Removes the presence entries of a dead node.
//!
//! One node at a time does it: the first to claim it. It walks all partitions, some at a time and
//! all servers at once ([`cleanup_walk`]), reads in each the rooms of the dead node, and calls the
//! script that removes its users and publishes their leaves. Each step is complete in itself: an
//! aborted walk leaves nothing half done, and what is left to do is listed beside the rooms.
//!
//! ```text
//! Claiming ──► Walking ──► Ending ──► done, or to be tried again
//!     └── another node has the claim: done
//! ```
//!
//! Partitions whose server is down, or has just come up, are left out. Then, and after any error,
//! the claim is released and expires within a moment: the next node may reach what this one could
//! not. A claim that could not be released (the server of the claims is down) stays with its node
//! until it expires.
//!
//! Invariant: a node is removed from the list of nodes only after every partition was walked
//! without an error.
//!
//! [`cleanup_walk`]: crate::backplane::redis::presence::cleanup_walk

use crate::backplane::redis::partition_set::PartitionSet;
use crate::backplane::redis::pipeline::{PendingReply, poll_reply, send};
use crate::backplane::redis::presence::cleanup_walk::{ServerWalk, WalkContext};
use crate::backplane::redis::presence::context::LivenessContext;
use crate::backplane::redis::presence::keys::{CONTROL, Keys};
use redis::aio::MultiplexedConnection;
use redis::{RedisResult, pipe};
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Seconds for which a node can find the notice that it was removed.
const NOTICE_TTL_S: u64 = 24 * 60 * 60;
/// How long a claim lasts without a renewal.
const CLAIM_TTL: Duration = Duration::from_millis(30_000);
/// The same after the walk was aborted. Not zero: many nodes would all walk in one second.
const RETRY_AFTER_ABORT: Duration = Duration::from_millis(1_000);
/// The owner of a released claim.
const NOBODY: &str = "nobody";

/// The removal of one dead node.
pub(super) struct Cleanup {
    claim: Claim,
    walk: WalkContext,
    /// Partitions that may be walked now.
    parts: PartitionSet,
    step: CleanupStep,
}

enum CleanupStep {
    /// The claim is taken, and the notice left.
    Claiming(PendingReply<bool>),
    /// The partitions are walked, while the claim is renewed.
    Walking(Walk),
    /// The notice is left again, and the claim ends.
    Ending { walked: RedisResult<bool>, ended: PendingReply<()> },
}

/// The walk over all servers.
struct Walk {
    servers: Vec<ServerWalk>,
    renewed_at: Instant,
    renewal: Option<PendingReply<()>>,
}

/// The claim to remove a node, and the notice for it.
#[derive(Clone)]
struct Claim {
    cmd: MultiplexedConnection,
    keys: Keys,
    node: String,
}

impl Cleanup {
    /// Claims a dead node. `None`: the server of the claims is down.
    pub(super) fn begin(
        cx: &mut Context<'_>,
        context: &LivenessContext<'_>,
        node: String,
    ) -> Option<Cleanup> {
        let (route, keys) = (context.route.clone(), context.keys.clone());
        let cmd = route.cmd(route.server_of(CONTROL))?.clone();
        let claim = Claim { cmd, keys: keys.clone(), node: node.clone() };
        let walk = WalkContext { route, keys, rules: context.rules.clone(), node };
        let step = CleanupStep::Claiming(send(cx, claim.clone().take()));
        Some(Cleanup { claim, walk, parts: context.settled, step })
    }

    /// Makes progress. Ready: whether this node did it, and nothing is left.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, now: Instant) -> Poll<RedisResult<bool>> {
        loop {
            match &mut self.step {
                CleanupStep::Claiming(claimed) => {
                    let Poll::Ready(claimed) = poll_reply(claimed, cx) else {
                        return Poll::Pending;
                    };
                    match claimed {
                        Ok(true) => self.step = CleanupStep::Walking(self.walk(now)),
                        other => return Poll::Ready(other),
                    }
                }
                CleanupStep::Walking(walk) => {
                    let Poll::Ready(walked) = walk.poll(cx, now, &self.walk, &self.claim) else {
                        return Poll::Pending;
                    };
                    let walked = walked.map(|is_whole| is_whole && self.parts == PartitionSet::ALL);
                    let is_whole = walked.as_ref().is_ok_and(|is_whole| *is_whole);
                    let ended = send(cx, self.claim.clone().end(is_whole));
                    self.step = CleanupStep::Ending { walked, ended };
                }
                CleanupStep::Ending { walked, ended } => {
                    let Poll::Ready(ended) = poll_reply(ended, cx) else { return Poll::Pending };
                    return Poll::Ready(ended.and(std::mem::replace(walked, Ok(false))));
                }
            }
        }
    }

    fn walk(&self, now: Instant) -> Walk {
        let servers = 0..self.walk.route.servers();
        let servers = servers.map(|server| ServerWalk::new(server, self.parts, &self.walk));
        Walk { servers: servers.collect(), renewed_at: now, renewal: None }
    }
}

impl Walk {
    /// Ready: whether nothing is left on servers that are up.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        now: Instant,
        context: &WalkContext,
        claim: &Claim,
    ) -> Poll<RedisResult<bool>> {
        if let Some(renewal) = &mut self.renewal
            && poll_reply(renewal, cx).is_ready()
        {
            // A lost claim does no harm: another node may walk, too.
            self.renewal = None;
        }
        if self.renewal.is_none() && now.duration_since(self.renewed_at) >= CLAIM_TTL / 3 {
            self.renewed_at = now;
            self.renewal = Some(send(cx, claim.clone().renew()));
        }
        let mut is_pending = false;
        for server in &mut self.servers {
            is_pending |= server.poll(cx, now, context).is_pending();
        }
        if is_pending {
            return Poll::Pending;
        }
        let walked: RedisResult<Vec<bool>> =
            self.servers.drain(..).map(ServerWalk::result).collect();
        Poll::Ready(walked.map(|walked| walked.into_iter().all(|is_whole| is_whole)))
    }
}

impl Claim {
    /// Whether the claim is ours, now or still. The notice is written first: if the node lives and
    /// writes while its entries are removed, it finds the notice afterwards and writes them again.
    async fn take(self) -> RedisResult<bool> {
        let (key, mut cmd) = (self.keys.cleanup_of(&self.node), self.cmd.clone());
        let mut claim = redis::cmd("SET");
        claim.arg(&key).arg(&self.keys.me).arg("NX").arg("PX").arg(CLAIM_TTL.as_millis() as u64);
        let claimed: Option<String> = claim.query_async(&mut cmd).await?;
        if claimed.is_none() {
            let by: Option<Vec<u8>> = redis::cmd("GET").arg(&key).query_async(&mut cmd).await?;
            if by.as_deref() != Some(self.keys.me.as_bytes()) {
                return Ok(false);
            }
            self.clone().renew().await?;
        }
        self.leave_notice().await?;
        Ok(true)
    }

    /// Ends the removal: the node is taken out of the list if nothing of it is left; if not, the
    /// next node may try.
    async fn end(mut self, is_whole: bool) -> RedisResult<()> {
        // If the node continued during the walk, it found the first notice before the walk ended.
        self.leave_notice().await?;
        let key = self.keys.cleanup_of(&self.node);
        let mut end = pipe();
        if is_whole {
            end.cmd("SREM").arg(self.keys.nodes()).arg(&self.node);
            end.cmd("DEL").arg(key);
        } else {
            let pause_ms = RETRY_AFTER_ABORT.as_millis() as u64;
            end.cmd("SET").arg(key).arg(NOBODY).arg("PX").arg(pause_ms);
        }
        end.exec_async(&mut self.cmd).await
    }

    /// The notice has a new value each time, so that it is found; also if earlier ones have expired
    /// and counting would begin at one again.
    ///
    /// A value that cannot be incremented is deleted: one that is too high, or no number.
    async fn leave_notice(&self) -> RedisResult<()> {
        if self.count_notice().await.is_ok() {
            return Ok(());
        }
        let mut cmd = self.cmd.clone();
        redis::cmd("DEL").arg(self.keys.removed(&self.node)).exec_async(&mut cmd).await?;
        self.count_notice().await
    }

    async fn count_notice(&self) -> RedisResult<()> {
        let (key, mut notice) = (self.keys.removed(&self.node), pipe());
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        notice.atomic().cmd("SET").arg(&key).arg(now as u64).arg(&["NX", "EX"]).arg(NOTICE_TTL_S);
        notice.cmd("INCR").arg(&key).cmd("EXPIRE").arg(&key).arg(NOTICE_TTL_S);
        notice.exec_async(&mut self.cmd.clone()).await
    }

    async fn renew(mut self) -> RedisResult<()> {
        let mut renew = redis::cmd("PEXPIRE");
        renew.arg(self.keys.cleanup_of(&self.node)).arg(CLAIM_TTL.as_millis() as u64);
        renew.exec_async(&mut self.cmd).await
    }
}
