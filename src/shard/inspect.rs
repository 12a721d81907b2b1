//! Answers to operators' questions about rooms, users and connections of this shard.
//!
//! Invariant: an answer changes nothing, and its work is bounded by the constants of
//! `link::inspect`, however many connections and rooms there are.

use crate::ids::ConnId;
use crate::ids::{SlotId, TopicKind, TopicName};
use crate::link::inspect::{
    LISTED_ROOMS_MAX, PAGE_CONNECTIONS_MAX, PAGE_PLACES_MAX, USER_MEMBERSHIPS_MAX,
};
use crate::link::{
    AckReport, ConnectionOrder, ConnectionPage, ConnectionReport, Inspect, RoomPage, RoomReport,
    UserReport,
};
use crate::protocol::dialect::Encoding;
use crate::shard::conn::{Conn, OPENED_UNIT_MS};
use crate::shard::{Shard, hub};
use std::net::SocketAddr;

impl Shard {
    /// Answers a question. `address_of` returns the peer's address for the caller's number of a
    /// socket; where a proxy has named the client, that is the address.
    pub fn inspect(&mut self, question: Inspect, address_of: impl Fn(u32) -> Option<SocketAddr>) {
        match question {
            Inspect::Rooms { prefix, from, max, reply } => {
                reply.call(self.report_rooms(&prefix, from, max));
            }
            Inspect::Room { room, reply } => reply.call(self.report_room(&room)),
            Inspect::User { topic, reply } => reply.call(self.report_user(&topic)),
            Inspect::Connections { from, max, reply } => {
                reply.call(self.report_connections(from, max, address_of));
            }
            Inspect::TopConnections { from, by, reply } => {
                reply.call(self.report_top(from, by, address_of));
            }
        }
    }

    fn report_rooms(&self, prefix: &str, from: u32, max: usize) -> RoomPage {
        let end = self.hub.places();
        let stop = end.min(from.saturating_add(PAGE_PLACES_MAX));
        let mut page = RoomPage::default();
        for place in from..stop {
            if page.rooms.len() == max {
                page.next = Some(place);
                return page;
            }
            let Some(topic) = self.hub.at_place(place) else { continue };
            if matches!(topic.name().kind(), TopicKind::Room(room) if room.starts_with(prefix)) {
                page.rooms.extend(report(topic));
            }
        }
        page.next = (stop < end).then_some(stop);
        page
    }

    /// A room over all encodings in which it has members here.
    fn report_room(&mut self, room: &str) -> Option<RoomReport> {
        let mut all: Option<RoomReport> = None;
        for encoding in Encoding::ALL {
            let Some(id) = self.hub.find_room(room, encoding) else { continue };
            let Some(found) = self.hub.get(id).and_then(report) else { continue };
            let found = RoomReport { acks: self.ack_report(id), ..found };
            all = Some(match all {
                None => found,
                Some(all) => all.with(&found),
            });
        }
        all
    }

    /// A user over all encodings.
    fn report_user(&self, user: &TopicName) -> UserReport {
        let mut all = UserReport::default();
        let mut looked_at = 0;
        for encoding in Encoding::ALL {
            let topic = self.hub.find(user, encoding).and_then(|id| self.hub.get(id));
            let members = topic.map_or(&[][..], hub::Topic::members);
            all.connections += members.len();
            for member in members {
                if looked_at >= USER_MEMBERSHIPS_MAX {
                    all.is_truncated = true;
                    break;
                }
                let conn = self.conns.at(member.conn).expect("a member is a connection");
                looked_at += conn.joined.len();
                all.rooms.extend(self.rooms_of(conn).take(USER_MEMBERSHIPS_MAX).cloned());
            }
        }
        all.connections += self.queues.waiting_of(user).count();
        all.rooms.sort_unstable();
        all.rooms.dedup();
        all
    }

    fn report_connections(
        &self,
        from: u32,
        max: usize,
        address_of: impl Fn(u32) -> Option<SocketAddr>,
    ) -> ConnectionPage {
        let (max, end) = (max.min(PAGE_CONNECTIONS_MAX), self.conns.capacity_used() as u32);
        let stop = end.min(from.saturating_add(PAGE_PLACES_MAX));
        let mut page = ConnectionPage::default();
        for place in from..stop {
            if page.connections.len() == max {
                page.next = Some(place);
                return page;
            }
            let Some(id) = self.conns.id_at(place) else { continue };
            let conn = self.conns.at(place).expect("its key was just found");
            if conn.is_open() {
                let named = self.named_peers.get(place);
                let address = named.or_else(|| address_of(conn.socket_key));
                page.connections.push(self.report_connection(id, conn, address));
            }
        }
        page.next = (stop < end).then_some(stop);
        page
    }

    /// The places that have most; only those that are listed are described.
    fn report_top(
        &self,
        from: u32,
        by: ConnectionOrder,
        address_of: impl Fn(u32) -> Option<SocketAddr>,
    ) -> ConnectionPage {
        let end = self.conns.capacity_used() as u32;
        let stop = end.min(from.saturating_add(PAGE_PLACES_MAX));
        let open = (from..stop).filter_map(|place| Some((place, self.conns.at(place)?)));
        let all = open.filter(|(_, conn)| conn.is_open());
        let mut most: Vec<(u64, u32)> =
            all.map(|(place, conn)| (self.amount(conn, by), place)).filter(|it| it.0 > 0).collect();
        most.sort_unstable_by_key(|(amount, place)| (std::cmp::Reverse(*amount), *place));
        most.truncate(PAGE_CONNECTIONS_MAX);
        let report = |(_, place): (u64, u32)| {
            let (id, conn) = (self.conns.id_at(place)?, self.conns.at(place)?);
            let named = self.named_peers.get(place);
            let address = named.or_else(|| address_of(conn.socket_key));
            Some(self.report_connection(id, conn, address))
        };
        let connections = most.into_iter().filter_map(report).collect();
        ConnectionPage { connections, next: (stop < end).then_some(stop) }
    }

    /// How much a connection has of what is put in order.
    fn amount(&self, conn: &Conn, by: ConnectionOrder) -> u64 {
        let usage = self.usage_of(conn.usage);
        match by {
            ConnectionOrder::QueuedBytes => {
                conn.outbox.as_ref().map_or(0, |outbox| outbox.bytes()) as u64
            }
            ConnectionOrder::Messages => usage.messages,
            ConnectionOrder::ReceivedBytes => usage.bytes,
            ConnectionOrder::LimitedMs => usage.limited_ms,
            ConnectionOrder::Rooms => self.rooms_of(conn).count() as u64,
        }
    }

    fn report_connection(
        &self,
        id: SlotId,
        conn: &Conn,
        address: Option<SocketAddr>,
    ) -> ConnectionReport {
        let dialect = conn.encoding.dialect();
        ConnectionReport {
            id: self.origin(ConnId(id)),
            address,
            user: dialect.has_topics().then(|| self.user_of(ConnId(id))),
            age_ms: self.life.now_ms.saturating_sub(u64::from(conn.since) * OPENED_UNIT_MS),
            rooms: self.rooms_of(conn).count(),
            listed_rooms: self.rooms_of(conn).take(LISTED_ROOMS_MAX).cloned().collect(),
            queued_bytes: conn.outbox.as_ref().map_or(0, |outbox| outbox.bytes()),
            dialect: dialect.label(),
            usage: self.usage_of(conn.usage),
        }
    }

    fn rooms_of(&self, conn: &Conn) -> impl Iterator<Item = &TopicName> {
        let topics = conn.joined.iter().map(|membership| self.hub.at(membership.topic).name());
        topics.filter(|name| matches!(name.kind(), TopicKind::Room(_)))
    }
}

fn report(topic: &hub::Topic) -> Option<RoomReport> {
    match topic.name().kind() {
        TopicKind::Room(room) => {
            let (room, members) = (room.to_owned(), topic.members().len());
            Some(RoomReport { room, members, acks: AckReport::default() })
        }
        _ => None,
    }
}
