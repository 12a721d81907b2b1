//! Removes the presence entries of a dead node.
//!
//! One node at a time does it: the first to claim it. It walks all partitions, some at a time and
//! all servers at once, reads in each the rooms of the dead node, and calls the script that removes
//! its users and publishes their leaves. Each step is complete in itself: an aborted walk leaves
//! nothing half done, and what is left to do is listed beside the rooms.
//!
//! Partitions whose server is down, or has just come up, are left out. Then, and after any error,
//! the claim is released and expires within a moment: the next node may reach what this one could
//! not. A claim that could not be released (the server of the claims is down) stays with its node
//! until it expires.
//!
//! Invariant: a node is removed from the list of nodes only after every partition was walked
//! without an error.

use crate::backplane::partition::partition;
use crate::backplane::redis::pipeline::execute_on;
use crate::backplane::redis::presence::context::{LivenessContext, PresenceRules};
use crate::backplane::redis::presence::keys::{CONTROL, Keys, topic_in};
use crate::backplane::redis::presence::partition_set::PartitionSet;
use crate::backplane::redis::presence::scripts::{self, PresenceScript};
use crate::backplane::redis::topology::routes::ServerRoutes;
use crate::ids::TopicName;
use futures_util::future::{Either, join_all, select};
use redis::aio::MultiplexedConnection;
use redis::{FromRedisValue, RedisError, RedisResult, pipe};
use std::pin::pin;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Seconds for which a node can find the notice that it was removed.
const NOTICE_TTL_S: u64 = 24 * 60 * 60;
/// How long a claim lasts without a renewal.
const CLAIM_TTL: Duration = Duration::from_millis(30_000);
/// The same after the walk was aborted. Not zero: many nodes would all walk in one second.
const RETRY_AFTER_ABORT: Duration = Duration::from_millis(1_000);
/// The owner of a released claim.
const NOBODY: &str = "nobody";
/// Partitions in one step.
const PARTS_PER_STEP: usize = 64;
/// Rooms of a partition that one reply lists.
const ROOMS_PER_LOOK: usize = 64;
/// Rooms removed in one step.
const ROOMS_PER_STEP: usize = 64;

struct NodeCleanup {
    route: ServerRoutes,
    parts: PartitionSet,
    keys: Keys,
    rules: PresenceRules,
    node: String,
}

/// Removes the entries of a dead node. Returns whether this node did it and nothing is left.
pub(super) fn begin(
    context: &LivenessContext<'_>,
    node: String,
) -> impl Future<Output = RedisResult<bool>> + 'static {
    let (route, parts) = (context.route.clone(), context.settled);
    let (keys, rules) = (context.keys.clone(), context.rules.clone());
    NodeCleanup { route, parts, keys, rules, node }.run()
}

impl NodeCleanup {
    async fn run(self) -> RedisResult<bool> {
        let control = self.route.cmd(self.route.server_of(CONTROL)).cloned();
        let Some(mut cmd) = control else { return Ok(false) };
        if !self.claim(&mut cmd).await? {
            return Ok(false);
        }
        let walked = self.walk_all(&mut cmd).await;
        // If the node has continued meanwhile, it found the first notice before the walk ended.
        self.leave_notice(&mut cmd).await?;
        if walked.as_ref().is_ok_and(|is_whole| *is_whole) {
            let mut end = pipe();
            end.cmd("SREM").arg(self.keys.nodes()).arg(&self.node);
            end.cmd("DEL").arg(self.keys.cleanup_of(&self.node));
            end.exec_async(&mut cmd).await?;
        } else {
            let mut release = redis::cmd("SET");
            release.arg(self.keys.cleanup_of(&self.node)).arg(NOBODY);
            release
                .arg("PX")
                .arg(RETRY_AFTER_ABORT.as_millis() as u64)
                .exec_async(&mut cmd)
                .await?;
        }
        walked
    }

    /// Whether the claim is ours, now or still. The notice is written first: if the node lives and
    /// writes while its entries are removed, it finds the notice afterwards and writes them again.
    async fn claim(&self, cmd: &mut MultiplexedConnection) -> RedisResult<bool> {
        let (key, me) = (self.keys.cleanup_of(&self.node), &self.keys.me);
        let mut claim = redis::cmd("SET");
        claim.arg(&key).arg(me).arg("NX").arg("PX").arg(CLAIM_TTL.as_millis() as u64);
        let claimed: Option<String> = claim.query_async(cmd).await?;
        if claimed.is_none() {
            let by: Option<Vec<u8>> = redis::cmd("GET").arg(&key).query_async(cmd).await?;
            if by.as_deref() != Some(me.as_bytes()) {
                return Ok(false);
            }
            self.renew(cmd).await?;
        }
        self.leave_notice(cmd).await?;
        Ok(true)
    }

    /// The notice has a new value each time, so that it is found; also if earlier ones have expired
    /// and counting would begin at one again.
    ///
    /// A value that cannot be incremented is deleted: one that is too high, or no number.
    async fn leave_notice(&self, cmd: &mut MultiplexedConnection) -> RedisResult<()> {
        if self.count_notice(cmd).await.is_ok() {
            return Ok(());
        }
        redis::cmd("DEL").arg(self.keys.removed(&self.node)).exec_async(cmd).await?;
        self.count_notice(cmd).await
    }

    async fn count_notice(&self, cmd: &mut MultiplexedConnection) -> RedisResult<()> {
        let (key, mut notice) = (self.keys.removed(&self.node), pipe());
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        notice.atomic().cmd("SET").arg(&key).arg(now as u64).arg(&["NX", "EX"]).arg(NOTICE_TTL_S);
        notice.cmd("INCR").arg(&key).cmd("EXPIRE").arg(&key).arg(NOTICE_TTL_S);
        notice.exec_async(cmd).await
    }

    async fn renew(&self, cmd: &mut MultiplexedConnection) -> RedisResult<()> {
        let mut renew = redis::cmd("PEXPIRE");
        renew.arg(self.keys.cleanup_of(&self.node)).arg(CLAIM_TTL.as_millis() as u64);
        renew.exec_async(cmd).await
    }

    /// Walks all servers at once, while the claim is renewed. Returns whether nothing is left.
    async fn walk_all(&self, cmd: &mut MultiplexedConnection) -> RedisResult<bool> {
        let walks = join_all((0..self.route.servers()).map(|server| self.walk(server)));
        let renewal = async {
            loop {
                tokio::time::sleep(CLAIM_TTL / 3).await;
                // A lost claim does no harm: another node may walk, too.
                let _ = self.renew(cmd).await;
            }
        };
        match select(pin!(walks), pin!(renewal)).await {
            Either::Left((walked, _)) => {
                let walked: Vec<bool> = walked.into_iter().collect::<RedisResult<_>>()?;
                Ok(self.parts == PartitionSet::ALL && walked.into_iter().all(|is_whole| is_whole))
            }
            Either::Right((never, _)) => never,
        }
    }

    /// Walks all partitions of one server. Returns whether nothing is left there.
    async fn walk(&self, server: usize) -> RedisResult<bool> {
        let is_here = |part: &u16| self.route.server_at(*part) == server;
        let parts: Vec<u16> = self.parts.iter().filter(is_here).collect();
        if parts.is_empty() {
            return Ok(true);
        }
        let Some(mut cmd) = self.route.cmd(server).cloned() else { return Ok(false) };
        redis::cmd("SCRIPT")
            .arg("LOAD")
            .arg(PresenceScript::RemoveNode.text())
            .exec_async(&mut cmd)
            .await?;
        let mut refusal = None;
        for some in parts.chunks(PARTS_PER_STEP) {
            let mut left: PartitionSet = some.iter().copied().collect();
            while !left.is_empty() {
                let topics = self.read_nodes(&mut cmd, &mut left, &mut refusal).await?;
                for topics in topics.chunks(ROOMS_PER_STEP) {
                    self.remove(&mut cmd, topics, &mut left, &mut refusal).await?;
                }
            }
        }
        refusal.map_or(Ok(true), Err)
    }

    /// Rooms of these partitions, some of each. `left` becomes the partitions that may have more.
    async fn read_nodes(
        &self,
        cmd: &mut MultiplexedConnection,
        left: &mut PartitionSet,
        refusal: &mut Option<RedisError>,
    ) -> RedisResult<Vec<String>> {
        let mut looks = pipe();
        for part in left.iter() {
            looks.cmd("SRANDMEMBER").arg(self.keys.index(part, &self.node)).arg(ROOMS_PER_LOOK);
        }
        let answers = execute_on(cmd, &looks).await?;
        let (mut topics, mut foreign) = (Vec::new(), pipe());
        for (part, answer) in std::mem::take(left).iter().zip(answers) {
            let read = |answer| Ok(Vec::<Vec<u8>>::from_redis_value(answer)?);
            match answer.extract_error().and_then(read) {
                Ok(some) => {
                    if some.len() >= ROOMS_PER_LOOK {
                        left.insert(part);
                    }
                    for member in some {
                        match topic_in(part, &member) {
                            Some(topic) => topics.push(topic),
                            None => {
                                _ = foreign
                                    .cmd("SREM")
                                    .arg(self.keys.index(part, &self.node))
                                    .arg(member)
                            }
                        }
                    }
                }
                Err(error) => *refusal = Some(error),
            }
        }
        // A member that is no room of the partition is not removed with a room, and would be listed
        // for ever.
        if !foreign.is_empty() {
            foreign.exec_async(cmd).await?;
        }
        Ok(topics)
    }

    /// Removes the node's users of these rooms. Partitions that refuse are taken out of `left`.
    async fn remove(
        &self,
        cmd: &mut MultiplexedConnection,
        topics: &[String],
        left: &mut PartitionSet,
        refusal: &mut Option<RedisError>,
    ) -> RedisResult<()> {
        let mut step = pipe();
        for topic in topics {
            let name = TopicName::parse(topic);
            let policy = name.as_ref().map(|name| self.rules.namespaces.policy(name.kind()));
            let users_max = policy.map_or(0, |policy| policy.presence_events_users_max);
            let publish = self.route.publish();
            let room = scripts::RoomArgs { topic, users_max, dead: &[], publish };
            scripts::remove_node(&mut step, &self.keys, &self.rules.names, room, &self.node);
        }
        for (topic, answer) in topics.iter().zip(execute_on(cmd, &step).await?) {
            if let Err(error) = answer.extract_error() {
                left.remove(partition(topic));
                *refusal = Some(error);
            }
        }
        Ok(())
    }
}
