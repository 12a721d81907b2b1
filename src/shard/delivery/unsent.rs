//! What is on its way to one connection and has not reached its outbox: in the caller's batch, as
//! replies, and in rounds of its topics that have not come to it. For a connection that is taken
//! out of the shard as a whole.

use crate::ids::{ConnId, TopicId};
use crate::link::connections::encoding_of_everybody;
use crate::protocol::dialect::Encoding;
use crate::shard::conn::Conn;
use crate::shard::delivery::batch::SendBatch;
use crate::shard::hub::RoundId;
use crate::shard::slow_consumer::frames::{BatchSource, FramePart};
use crate::shard::state::Shard;
use crate::shard::state::deliveries::Follows;
use crate::shard::state::deliveries::{Deliveries, JoinedFrames, QueuedReply, RoundItem};
use bytes::Bytes;
use std::collections::HashMap;

/// Bytes that have to leave next, in their order.
#[derive(Clone, Debug)]
pub(in crate::shard) struct UnsentFrames {
    pub(in crate::shard) bytes: Bytes,
    /// What they are made from, where they may be dropped one by one.
    pub(in crate::shard) source: Option<BatchSource>,
}

/// A connection as its topics' rounds see it.
struct Receiver<'a> {
    conn: ConnId,
    encoding: Encoding,
    /// Its places, by topic index.
    places: &'a HashMap<u32, usize>,
}

impl Deliveries {
    /// Whether an answer of a connection's question waits among the replies.
    fn has_answer(&self, conn: ConnId) -> bool {
        let is_it = |reply: &&QueuedReply| reply.conn == conn && reply.follows == Follows::Question;
        self.replies.iter().any(|reply| is_it(&reply))
    }

    fn take_replies_of(&mut self, conn: ConnId, into: &mut Vec<UnsentFrames>) {
        let is_its = |bytes: &Bytes| UnsentFrames { bytes: bytes.clone(), source: None };
        let mine = self.replies.iter().filter(|reply| reply.conn == conn);
        into.extend(mine.map(|reply| is_its(&reply.bytes)));
        let bytes_waiting = &mut self.bytes_waiting;
        self.replies.retain(|reply| {
            let stays = reply.conn != conn;
            *bytes_waiting -= if stays { 0 } else { reply.bytes.len() };
            stays
        });
    }

    /// What of a round a receiver has not received. `at`: the topic, if its messages may be dropped.
    fn unsent_of_round(
        &mut self,
        id: RoundId,
        receiver: &Receiver<'_>,
        at: Option<TopicId>,
        into: &mut Vec<UnsentFrames>,
    ) {
        let round = self.round(id);
        let is_everybody = encoding_of_everybody(round.to).is_some();
        let place = match is_everybody {
            true => Some(receiver.conn.0.index as usize),
            false => receiver.places.get(&round.to.0.index).copied(),
        };
        let Some(place) = place else { return };
        if let Some(current) = &round.current
            && (current.walk.at..current.walk.end).contains(&place)
        {
            let own = current.own.iter().find(|(conn, _)| *conn == receiver.conn);
            let by_encoding = || {
                let mut of = current.by_encoding.iter();
                of.find(|(encoding, _)| *encoding == receiver.encoding).map(|(_, join)| join)
            };
            let join = match (own, is_everybody) {
                (Some((_, own)), _) => Some(own),
                (None, true) => by_encoding(),
                (None, false) => Some(&current.join),
            };
            into.extend(join.and_then(unsent_join));
        }
        let frames = round.items.iter().filter_map(|item| match item {
            RoundItem::Frame(frame) => Some(frame),
            RoundItem::ForEverybody(frame, encoding) if *encoding == receiver.encoding => {
                Some(frame)
            }
            RoundItem::ForEverybody(..) | RoundItem::Joiner(_) | RoundItem::Loss => None,
        });
        for frame in frames.filter(|frame| frame.except != Some(receiver.conn)) {
            let part = FramePart { bytes: frame.bytes.clone(), kind: frame.kind };
            let source = at.map(|at| BatchSource { at, pieces: [part].into() });
            into.push(UnsentFrames { bytes: frame.bytes.clone(), source });
        }
    }
}

fn unsent_join(join: &JoinedFrames) -> Option<UnsentFrames> {
    let (bytes, source) = (join.bytes.clone(), join.source.clone());
    (!bytes.is_empty()).then_some(UnsentFrames { bytes, source })
}

impl Shard {
    /// Whether the answer to a connection's question was made and waits to be written.
    pub(in crate::shard) fn has_answer_waiting(&self, conn: ConnId) -> bool {
        self.deliveries.has_answer(conn)
    }

    /// Whether a topic of a connection has lost something for which its members have to leave, or a
    /// walk has found it too slow.
    pub(in crate::shard) fn has_loss_waiting(&mut self, conn: &[TopicId]) -> bool {
        conn.iter().any(|at| {
            let round = self.hub.get(*at).and_then(|topic| topic.round);
            round.is_some_and(|round| self.deliveries.has_loss(round))
        })
    }

    /// Takes what is on its way to a connection that is about to go. Frames of its topics stay in
    /// their rounds for the others.
    pub(in crate::shard) fn take_unsent(
        &mut self,
        conn: ConnId,
        batch: &SendBatch,
    ) -> Vec<UnsentFrames> {
        debug_assert!(batch.is_empty(), "a portion is written before the shard is entered again");
        let mut unsent = Vec::new();
        let c = self.conns.get(conn.0).expect("it is looked at");
        if batch.is_at(c.place, conn.0.index) {
            let bufs = batch.sourced_bufs(batch.at(c.place));
            let frames = |(bytes, source): (&Bytes, Option<&BatchSource>)| UnsentFrames {
                bytes: bytes.clone(),
                source: source.cloned(),
            };
            unsent.extend(bufs.map(frames));
        }
        self.deliveries.take_replies_of(conn, &mut unsent);
        let c = self.conns.get(conn.0).expect("it is looked at");
        let (encoding, places) = (c.encoding, places(c));
        let receiver = Receiver { conn, encoding, places: &places };
        let rounds: Vec<RoundId> = self.deliveries.queue.iter().copied().collect();
        for id in rounds {
            let to = self.deliveries.round(id).to;
            let at = self.droppable(to);
            self.deliveries.unsent_of_round(id, &receiver, at, &mut unsent);
        }
        unsent.retain(|unsent| !unsent.bytes.is_empty());
        unsent
    }
}

fn places(conn: &Conn) -> HashMap<u32, usize> {
    conn.joined.iter().map(|membership| (membership.topic, membership.place as usize)).collect()
}
