//! Questions that are under way, and those that wait for them; see `shard/questions.rs`.

use crate::ids::{ConnId, TopicId};
use crate::link::Uplink;
use std::collections::{HashMap, VecDeque};

/// Connections with an open question. Empty nearly always.
#[derive(Debug, Default)]
pub(in crate::shard) struct Questions {
    pub(in crate::shard) of: HashMap<ConnId, Asked>,
    /// Questions that wait, of all connections.
    pub(in crate::shard) waiting: usize,
    /// Whose answers were handed to the writes since the last look.
    pub(in crate::shard) answered: Vec<ConnId>,
}

#[derive(Debug)]
pub(in crate::shard) struct Asked {
    pub(in crate::shard) step: QuestionStep,
    /// In the order in which they were asked; each goes up as it is.
    pub(in crate::shard) waiting: VecDeque<Uplink>,
    /// So many wait that the connection is not read.
    pub(in crate::shard) is_enough: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::shard) enum QuestionStep {
    /// The backplane has a question: which, where it is a join.
    UnderWay { ticket: Option<u64> },
    /// The answer was made, and may not have been taken by the socket yet.
    Answered,
}

impl Questions {
    /// Questions that wait for those before them.
    pub(in crate::shard) fn waiting(&self) -> usize {
        self.waiting
    }

    /// The answer to a connection's question was handed to the writes.
    pub(in crate::shard) fn note_answered(&mut self, conn: ConnId) {
        self.answered.push(conn);
    }

    /// Whether it is this join that is under way.
    pub(in crate::shard) fn is_under_way(&self, conn: ConnId, ticket: u64) -> bool {
        let step = QuestionStep::UnderWay { ticket: Some(ticket) };
        self.of.get(&conn).is_some_and(|asked| asked.step == step)
    }

    /// A connection asks nothing more. Answers the topics of its joins that were still waiting.
    pub(in crate::shard) fn forget(&mut self, conn: ConnId) -> Vec<TopicId> {
        let waiting = self.of.remove(&conn).map(|asked| asked.waiting).unwrap_or_default();
        self.waiting -= waiting.len();
        let joins = waiting.into_iter().filter_map(|question| match question {
            Uplink::Recover(ask) => Some(ask.at),
            _ => None,
        });
        joins.collect()
    }
}
