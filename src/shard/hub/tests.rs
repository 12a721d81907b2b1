use super::*;
use crate::protocol::dialect::Encoding;
use crate::shard::conn::Conn;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

/// What may happen to a hub.
#[derive(Clone, Debug)]
enum Op {
    Join {
        conn: usize,
        topic: usize,
    },
    Leave {
        conn: usize,
        topic: usize,
    },
    /// A round of the walked topic begins, in place of the one before.
    Walk {
        topic: usize,
    },
    /// It goes on by some members.
    Tell {
        members: usize,
    },
}

const CONNS: usize = 12;
const TOPICS: usize = 4;

fn op() -> impl Strategy<Value = Op> {
    let (conn, topic) = (0..CONNS, 0..TOPICS);
    prop_oneof![
        4 => (conn.clone(), topic.clone()).prop_map(|(conn, topic)| Op::Join { conn, topic }),
        3 => (conn, topic.clone()).prop_map(|(conn, topic)| Op::Leave { conn, topic }),
        1 => topic.prop_map(|topic| Op::Walk { topic }),
        2 => (1..4usize).prop_map(|members| Op::Tell { members }),
    ]
}

fn name(topic: usize) -> TopicName {
    TopicName::room(&format!("room {topic}"))
}

/// The naive model: sets of numbers, and the members that the walk has not reached.
#[derive(Default)]
struct Model {
    topics: BTreeMap<usize, BTreeSet<usize>>,
    walked: Option<usize>,
    to_tell: BTreeSet<usize>,
}

struct Subject {
    hub: Hub,
    conns: Slab<Conn>,
    ids: Vec<SlotId>,
    walk: Option<(TopicId, Walk)>,
}

impl Subject {
    fn new() -> Subject {
        let mut conns = Slab::with_max(CONNS);
        let put = |socket_key| conns.insert(Conn::new(socket_key)).expect("there is room for all");
        let ids = (0..CONNS as u32).map(put).collect();
        Subject { hub: Hub::with_max(TOPICS), conns, ids, walk: None }
    }

    fn join(&mut self, conn: usize, topic: usize) {
        let id = self
            .hub
            .open(&name(topic), Encoding::NATIVE, SlowConsumer::Close)
            .expect("there is room for all");
        let conn = self.conns.get_mut(self.ids[conn]).expect("nobody is removed");
        self.hub.join(id, conn.socket_key, conn);
    }

    fn leave(&mut self, conn: usize, topic: usize) -> bool {
        let id = self.hub.find(&name(topic), Encoding::NATIVE).expect("it has a member");
        let index = self.ids[conn].index;
        let joined = &self.conns.at(index).expect("nobody is removed").joined;
        let slot = joined.find(id.0.index).expect("it is a member");
        let walk = self.walk.as_mut().filter(|(walked, _)| *walked == id).map(|(_, walk)| walk);
        let is_last = self.hub.leave(&mut self.conns, index, slot, walk);
        if is_last {
            self.walk = self.walk.take().filter(|(walked, _)| *walked != id);
            self.hub.close(id).expect("it lived a moment ago");
        }
        is_last
    }

    fn begin_walk(&mut self, topic: usize) {
        let id = self.hub.find(&name(topic), Encoding::NATIVE);
        let walk =
            |id| (id, Walk { at: 0, end: self.hub.get(id).map_or(0, |t| t.members().len()) });
        self.walk = id.map(walk);
    }

    fn tell_one(&mut self) -> Option<usize> {
        let (id, walk) = self.walk.as_mut()?;
        if walk.at == walk.end {
            return None;
        }
        let member = self.hub.get(*id)?.members()[walk.at];
        walk.at += 1;
        Some(member.conn as usize)
    }
}

proptest! {
    #[test]
    fn it_agrees_with_plain_sets_and_a_walk_tells_exactly_those_who_were_there_and_stayed(
        ops in prop::collection::vec(op(), 1..200)
    ) {
        let (mut model, mut subject) = (Model::default(), Subject::new());
        for op in ops {
            match op {
                Op::Join { conn, topic } => {
                    if model.topics.get(&topic).is_some_and(|set| set.contains(&conn)) {
                        continue;
                    }
                    model.topics.entry(topic).or_default().insert(conn);
                    subject.join(conn, topic);
                }
                Op::Leave { conn, topic } => {
                    let Some(set) = model.topics.get_mut(&topic) else { continue };
                    if !set.remove(&conn) {
                        continue;
                    }
                    let is_last = set.is_empty();
                    model.topics.retain(|_, set| !set.is_empty());
                    if model.walked == Some(topic) {
                        model.to_tell.remove(&conn);
                    }
                    prop_assert_eq!(subject.leave(conn, topic), is_last);
                }
                Op::Walk { topic } => {
                    model.walked = Some(topic);
                    model.to_tell = model.topics.get(&topic).cloned().unwrap_or_default();
                    subject.begin_walk(topic);
                }
                Op::Tell { members } => {
                    for _ in 0..members {
                        match subject.tell_one() {
                            Some(conn) => prop_assert!(model.to_tell.remove(&conn), "{conn}"),
                            None => prop_assert!(model.to_tell.is_empty(), "a member is skipped"),
                        }
                    }
                }
            }
            subject.hub.check(&subject.conns);
            prop_assert_eq!(subject.hub.topics_len(), model.topics.len());
            for (topic, set) in &model.topics {
                let id = subject.hub.find(&name(*topic), Encoding::NATIVE).expect("it has members");
                let members = subject.hub.get(id).expect("just found").members();
                let members: BTreeSet<usize> = members.iter().map(|m| m.conn as usize).collect();
                prop_assert_eq!(&members, set);
            }
        }
    }
}
