//! Who else is there: the users that other nodes have in a room.
//!
//! This node's own users are known here, so a room that no other node has costs one look at its set
//! of nodes. All who ask for a room while it is being read share one answer.
//!
//! What happens in a room while it is read is put on top of what was read: news and answers come over
//! different connections, and news that came before the answer must not be undone by it.
//!
//! Invariant: every question is answered once, the last time when the link is lost.

use super::keys::Keys;
use crate::backplane::presence::{News, Presence};
use crate::backplane::redis::link::{Reply, poll_reply, send};
use crate::ids::{TopicName, is_name};
use crate::link::AskPresence;
use crate::protocol::{Attendee, Here, Info};
use hashbrown::{HashMap, HashSet};
use redis::aio::MultiplexedConnection;
use redis::{RedisResult, pipe};
use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll};

/// Rooms that are read at the same time.
const READS_MAX: usize = 16;

/// See the module.
#[derive(Default)]
pub struct Reads {
    line: VecDeque<TopicName>,
    asks: HashMap<TopicName, Vec<AskPresence>>,
    under_way: Vec<Read>,
}

struct Read {
    topic: TopicName,
    reply: Reply<Others>,
    /// Who has come or gone since; without the info of who has gone.
    since: Vec<(TopicName, Option<Option<Info>>)>,
}

/// The users of other nodes.
#[derive(Default)]
struct Others {
    /// All of them.
    users: HashSet<TopicName>,
    /// Connections and info of those that may be listed.
    known: HashMap<TopicName, (u64, Option<Info>)>,
}

/// An answer, and for whom.
pub struct Answer {
    /// Those who asked.
    pub asks: Vec<AskPresence>,
    /// Who is there; `None`: it could not be read.
    pub here: RedisResult<Arc<Here>>,
}

impl Reads {
    /// Somebody wants to know.
    pub fn ask(&mut self, ask: AskPresence) {
        if !self.asks.contains_key(&ask.topic) {
            self.line.push_back(ask.topic.clone());
        }
        self.asks.entry(ask.topic.clone()).or_default().push(ask);
    }

    /// Somebody came to a room, or left it.
    pub fn hear(&mut self, topic: &str, news: &News<'_>) {
        for read in self.under_way.iter_mut().filter(|read| read.topic.as_str() == topic) {
            read.since.push(match news {
                News::Joined { user, info, .. } => {
                    (TopicName::user(user), Some(info.map(Into::into)))
                }
                News::Left { user } => (TopicName::user(user), None),
            });
        }
    }

    /// Begins reads, within bounds. Whether any was begun.
    pub fn begin(
        &mut self,
        cx: &mut Context<'_>,
        cmd: &MultiplexedConnection,
        keys: &Keys,
        dead: &Arc<[String]>,
        members: &Presence,
    ) -> bool {
        let mut is_busy = false;
        while self.under_way.len() < READS_MAX
            && let Some(topic) = self.line.pop_front()
        {
            let wanted = members.members(&topic).take(Here::USERS_MAX);
            let wanted: Vec<TopicName> = wanted.map(|(user, _)| user.clone()).collect();
            let reading = read(cmd.clone(), keys.clone(), topic.clone(), dead.clone(), wanted);
            let reply = send(cx, reading);
            self.under_way.push(Read { topic, reply, since: Vec::new() });
            is_busy = true;
        }
        is_busy
    }

    /// The next answer that is there.
    pub fn poll(&mut self, cx: &mut Context<'_>, members: &Presence) -> Option<Answer> {
        for at in 0..self.under_way.len() {
            let Poll::Ready(others) = poll_reply(&mut self.under_way[at].reply, cx) else {
                continue;
            };
            let Read { topic, since, .. } = self.under_way.swap_remove(at);
            let asks = self.asks.remove(&topic).unwrap_or_default();
            let here = others.map(|mut others| {
                since.into_iter().for_each(|(user, is)| others.change(user, is, &topic, members));
                Arc::new(others.with(&topic, members))
            });
            return Some(Answer { asks, here });
        }
        None
    }

    /// Gives up: all who asked.
    pub fn take_all(&mut self) -> Vec<AskPresence> {
        self.line.clear();
        self.under_way.clear();
        self.asks.drain().flat_map(|(_, asks)| asks).collect()
    }
}

impl Others {
    /// Somebody came or left after the question was sent. This node's own users are known better.
    fn change(
        &mut self,
        user: TopicName,
        is: Option<Option<Info>>,
        topic: &TopicName,
        members: &Presence,
    ) {
        match is {
            _ if members.member(topic, &user).is_some() => {}
            Some(info) => {
                self.known.entry(user.clone()).or_insert((1, info));
                self.users.insert(user);
            }
            None => {
                self.users.remove(&user);
                self.known.remove(&user);
            }
        }
    }

    /// Everybody, this node's own included.
    fn with(mut self, topic: &TopicName, members: &Presence) -> Here {
        let both = self.users.iter().filter(|user| members.member(topic, user).is_some()).count();
        let count = members.count(topic) + self.users.len() - both;
        let mut listed = Vec::new();
        for (user, member) in members.members(topic).take(Here::USERS_MAX) {
            let (there, their_info) = self.known.remove(user).unwrap_or_default();
            let connections = u64::from(member.connections) + there;
            let info = member.info.clone().or(their_info);
            listed.push(Attendee { user: user.clone(), connections, info });
        }
        for (user, (connections, info)) in self.known {
            if members.member(topic, &user).is_none() {
                listed.push(Attendee { user, connections, info });
            }
        }
        Here::new(listed, count as u64)
    }
}

/// Reads a room: its nodes, all names there, and then no more of them than are listed.
async fn read(
    mut cmd: MultiplexedConnection,
    keys: Keys,
    topic: TopicName,
    dead: Arc<[String]>,
    mut wanted: Vec<TopicName>,
) -> RedisResult<Others> {
    let mut nodes: Vec<String> =
        redis::cmd("SMEMBERS").arg(keys.nodes_of(topic.as_str())).query_async(&mut cmd).await?;
    nodes.retain(|node| *node != keys.me && !dead.contains(node));
    if nodes.is_empty() {
        return Ok(Others::default());
    }
    let mut all = pipe();
    for node in &nodes {
        all.cmd("HKEYS").arg(keys.users(topic.as_str(), node));
    }
    let all: Vec<Vec<String>> = all.query_async(&mut cmd).await?;
    let names = all.into_iter().flatten().filter(|name| is_name(name));
    let users: HashSet<TopicName> = names.map(|name| TopicName::user(&name)).collect();
    let mine: HashSet<TopicName> = wanted.iter().cloned().collect();
    let more = Here::USERS_MAX - wanted.len();
    wanted.extend(users.difference(&mine).take(more).cloned());
    if users.is_empty() {
        return Ok(Others::default());
    }
    let mut some = pipe();
    for node in &nodes {
        some.cmd("HMGET").arg(keys.users(topic.as_str(), node));
        wanted.iter().for_each(|user| _ = some.arg(&user.as_str()[2..]));
    }
    let values: Vec<Vec<Option<String>>> = some.query_async(&mut cmd).await?;
    let mut known = HashMap::new();
    for (user, value) in values.iter().flat_map(|values| wanted.iter().zip(values)) {
        let Some((connections, info)) = value.as_deref().and_then(value_read) else { continue };
        let place = known.entry(user.clone()).or_insert((0, None));
        place.0 += connections;
        place.1 = place.1.take().or(info);
    }
    Ok(Others { users, known })
}

/// What stands beside a user's name: `connections` or `connections|info`.
pub fn value_written(connections: u32, info: Option<&str>) -> String {
    match info {
        Some(info) => format!("{connections}|{info}"),
        None => connections.to_string(),
    }
}

fn value_read(value: &str) -> Option<(u64, Option<Info>)> {
    match value.split_once('|') {
        Some((connections, info)) => Some((connections.parse().ok()?, Some(info.into()))),
        None => Some((value.parse().ok()?, None)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{ConnId, NodeId, ShardId, SlotId};
    use crate::link::{Attend, Deed, Origin};
    use std::time::{Duration, Instant};

    fn user(name: &str) -> TopicName {
        TopicName::user(name)
    }

    fn members(names: &[&str]) -> Presence {
        let mut members = Presence::default();
        let conn = ConnId(SlotId { index: 0, generation: 0 });
        let by = Origin { node: NodeId(1), shard: ShardId(0), conn };
        for name in names {
            let deed = Deed::Came { by, info: None };
            let attend = Attend { topic: TopicName::room("r"), user: user(name), deed };
            members.handle(attend, Duration::ZERO, Instant::now());
        }
        members
    }

    #[test]
    fn users_here_and_there_are_added_up_and_news_put_on_top() {
        let (topic, members) = (TopicName::room("r"), members(&["ann", "bob"]));
        let mut others = Others::default();
        for (name, connections) in [("bob", 2), ("cid", 1), ("eve", 1)] {
            others.users.insert(user(name));
            others.known.insert(user(name), (connections, None));
        }
        others.change(user("dan"), Some(Some("7".into())), &topic, &members);
        others.change(user("cid"), None, &topic, &members);
        others.change(user("bob"), None, &topic, &members); // is here, whatever was said
        let here = others.with(&topic, &members);
        let list: Vec<_> =
            here.users.iter().map(|a| (&a.user.as_str()[2..], a.connections)).collect();
        assert_eq!(list, [("ann", 1), ("bob", 3), ("dan", 1), ("eve", 1)]);
        assert_eq!(here.count, 4);
        assert_eq!(here.users[2].info.as_deref(), Some("7"));
    }

    #[test]
    fn a_value_comes_apart_as_it_was_put_together() {
        for info in [None, Some(r#""a|b""#)] {
            let value = value_written(3, info);
            assert_eq!(value_read(&value), Some((3, info.map(Into::into))), "{value}");
        }
        assert_eq!(value_read("x"), None);
    }
}
