//! Which message is due next, and which are outstanding.
//!
//! Two ways to publish. *Rate* (open loop): message number `g` of the whole run is due at `g /
//! rate` and goes to room `g mod rooms`, whether or not earlier ones have arrived. Latency counts
//! from that time, so a server that stalls cannot hide it (no coordinated omission). *Window*
//! (closed loop): each room has at most so many messages outstanding; one that has reached every
//! member allows the next.
//!
//! Time is an argument; nothing here uses a socket.
//!
//! Invariant: the messages of a room are numbered from 1 without gaps, and each is completed once:
//! by its last delivery, or given up after the timeout.

use std::collections::VecDeque;

/// When messages are published.
#[derive(Clone, Copy, Debug)]
pub enum PublishPace {
    /// So many messages a second, in all rooms of the run together.
    Rate(f64),
    /// So many messages outstanding in each room.
    Window(u32),
}

/// One message that is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PublishSlot {
    /// Index of the room.
    pub room: u32,
    /// Number of the turn; the publishers of a room take turns.
    pub turn: u32,
    /// Sequence number in the room, from 1.
    pub seq: u32,
    /// When it was due, in nanoseconds since the run began.
    pub intended_ns: u64,
}

/// The publishes of the rooms whose publishers one worker has. That worker owns it.
#[derive(Debug)]
pub(crate) struct PublishSchedule {
    pace: PublishPace,
    start_ns: u64,
    timeout_ns: u64,
    rooms_total: u32,
    rooms: Vec<RoomSchedule>,
    first_room: u32,
    /// Rate: complete rounds over all rooms.
    round: u64,
    /// Rate: the room whose turn it is in this round.
    next: usize,
    /// Window: rooms that may have fewer messages outstanding than the window allows.
    rooms_to_fill: Vec<u32>,
    /// Window: when to look for overdue messages again.
    timeout_check_ns: u64,
    given_up: u64,
}

#[derive(Debug)]
struct RoomSchedule {
    members: u32,
    sent: u32,
    /// Sequence number of the first of `messages`.
    first_seq: u32,
    /// From the oldest outstanding message on; some may be complete.
    messages: VecDeque<OutstandingMessage>,
    /// Messages that are not complete.
    outstanding: u32,
}

#[derive(Debug)]
struct OutstandingMessage {
    deliveries_left: u32,
    sent_ns: u64,
}

impl PublishSchedule {
    /// For the rooms from `first_room` on, each with so many receiving `members`, out of
    /// `rooms_total` in the run.
    pub(crate) fn new(
        pace: PublishPace,
        first_room: u32,
        members: impl Iterator<Item = u32>,
        rooms_total: u32,
        start_ns: u64,
        timeout_ns: u64,
    ) -> PublishSchedule {
        let rooms: Vec<RoomSchedule> = members
            .map(|members| RoomSchedule {
                members,
                sent: 0,
                first_seq: 1,
                messages: VecDeque::new(),
                outstanding: 0,
            })
            .collect();
        let rooms_to_fill = (0..rooms.len() as u32).collect();
        PublishSchedule {
            pace,
            start_ns,
            timeout_ns,
            rooms_total,
            rooms,
            first_room,
            round: 0,
            next: 0,
            rooms_to_fill,
            timeout_check_ns: start_ns + timeout_ns,
            given_up: 0,
        }
    }

    /// Appends everything that is due at `now_ns` to `due`.
    pub(crate) fn take_due(&mut self, now_ns: u64, due: &mut Vec<PublishSlot>) {
        if now_ns < self.start_ns || self.rooms.is_empty() {
            return;
        }
        match self.pace {
            PublishPace::Rate(rate) => self.take_rate(rate, now_ns, due),
            PublishPace::Window(window) => self.take_window(window, now_ns, due),
        }
    }

    /// When a message is due next, if ever. A full window is due when its messages may time out.
    pub(crate) fn next_due_ns(&self) -> Option<u64> {
        match self.pace {
            _ if self.rooms.is_empty() => None,
            PublishPace::Rate(rate) => Some(self.rate_due_ns(rate)),
            PublishPace::Window(_) if self.rooms_to_fill.is_empty() => Some(self.timeout_check_ns),
            PublishPace::Window(_) => Some(self.start_ns),
        }
    }

    /// Further deliveries of a message have arrived.
    pub(crate) fn handle_delivered(&mut self, room: u32, seq: u32, deliveries: u32) {
        let PublishPace::Window(_) = self.pace else { return };
        let index = room.wrapping_sub(self.first_room);
        let Some(state) = self.rooms.get_mut(index as usize) else { return };
        // A message that was given up may still arrive; the next one has its place then.
        let Some(index_in_room) = seq.checked_sub(state.first_seq) else { return };
        let Some(message) = state.messages.get_mut(index_in_room as usize) else { return };
        let before = message.deliveries_left;
        message.deliveries_left = before.saturating_sub(deliveries);
        if before > 0 && message.deliveries_left == 0 {
            state.outstanding -= 1;
            state.drop_finished();
            self.rooms_to_fill.push(index);
        }
    }

    /// Whether it needs calls of [`PublishSchedule::handle_delivered`].
    pub(crate) fn needs_delivery_counts(&self) -> bool {
        matches!(self.pace, PublishPace::Window(_))
    }

    /// Messages whose last delivery did not come before the timeout.
    pub(crate) fn given_up(&self) -> u64 {
        self.given_up
    }

    /// When the next message is due: its number in the whole run divided by the rate.
    fn rate_due_ns(&self, rate: f64) -> u64 {
        let room = u64::from(self.first_room) + self.next as u64;
        let number = self.round * u64::from(self.rooms_total) + room;
        self.start_ns.saturating_add((number as f64 * 1e9 / rate) as u64)
    }

    fn take_rate(&mut self, rate: f64, now_ns: u64, due: &mut Vec<PublishSlot>) {
        loop {
            let intended_ns = self.rate_due_ns(rate);
            if intended_ns > now_ns {
                return;
            }
            let room = self.first_room + self.next as u32;
            let publish = self.rooms[self.next].next_publish(room, intended_ns);
            due.push(publish);
            self.next += 1;
            if self.next == self.rooms.len() {
                self.next = 0;
                self.round += 1;
            }
        }
    }

    fn take_window(&mut self, window: u32, now_ns: u64, due: &mut Vec<PublishSlot>) {
        if now_ns >= self.timeout_check_ns {
            self.give_up_overdue(now_ns);
        }
        while let Some(index) = self.rooms_to_fill.pop() {
            let room = &mut self.rooms[index as usize];
            while room.outstanding < window {
                let deliveries_left = room.members;
                room.messages.push_back(OutstandingMessage { deliveries_left, sent_ns: now_ns });
                room.outstanding += 1;
                due.push(room.next_publish(self.first_room + index, now_ns));
            }
        }
    }

    fn give_up_overdue(&mut self, now_ns: u64) {
        self.timeout_check_ns = now_ns + self.timeout_ns / 4;
        for (index, room) in self.rooms.iter_mut().enumerate() {
            for message in &mut room.messages {
                if message.deliveries_left > 0 && now_ns - message.sent_ns >= self.timeout_ns {
                    message.deliveries_left = 0;
                    room.outstanding -= 1;
                    self.given_up += 1;
                }
            }
            room.drop_finished();
            self.rooms_to_fill.push(index as u32);
        }
    }
}

impl RoomSchedule {
    fn next_publish(&mut self, room: u32, intended_ns: u64) -> PublishSlot {
        let turn = self.sent;
        self.sent += 1;
        PublishSlot { room, turn, seq: self.sent, intended_ns }
    }

    fn drop_finished(&mut self) {
        while self.messages.front().is_some_and(|message| message.deliveries_left == 0) {
            self.messages.pop_front();
            self.first_seq += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn due(publishing: &mut PublishSchedule, now_ns: u64) -> Vec<(u32, u32)> {
        let mut slots = Vec::new();
        publishing.take_due(now_ns, &mut slots);
        slots.iter().map(|publish| (publish.room, publish.seq)).collect()
    }

    #[test]
    fn messages_at_a_rate_are_due_by_the_clock_even_after_a_stall() {
        let mut two =
            PublishSchedule::new(PublishPace::Rate(10.0), 4, [3, 3].into_iter(), 10, 0, 1);
        assert_eq!(two.next_due_ns(), Some(400_000_000));
        assert_eq!(due(&mut two, 399_999_999), []);
        assert_eq!(due(&mut two, 500_000_000), [(4, 1), (5, 1)]);
        let mut slots = Vec::new();
        two.take_due(2_450_000_000, &mut slots);
        let intended: Vec<u64> =
            slots.iter().map(|publish| publish.intended_ns / 1_000_000).collect();
        assert_eq!(intended, [1400, 1500, 2400], "late ones keep the time at which they were due");
    }

    #[test]
    fn a_rate_close_to_zero_puts_the_next_message_at_the_end_of_time() {
        let mut slow = PublishSchedule::new(PublishPace::Rate(1e-300), 0, [3].into_iter(), 1, 7, 1);
        assert_eq!(due(&mut slow, 7), [(0, 1)]);
        assert_eq!(slow.next_due_ns(), Some(u64::MAX));
    }

    #[test]
    fn a_window_opens_at_the_last_delivery_in_any_order() {
        let mut room =
            PublishSchedule::new(PublishPace::Window(2), 0, [3].into_iter(), 1, 0, 1_000);
        assert_eq!(due(&mut room, 1), [(0, 1), (0, 2)]);
        room.handle_delivered(0, 2, 2);
        room.handle_delivered(0, 1, 2);
        assert_eq!(due(&mut room, 2), []);
        room.handle_delivered(0, 2, 1);
        assert_eq!(due(&mut room, 3), [(0, 3)]);
        room.handle_delivered(0, 1, 1);
        assert_eq!(due(&mut room, 4), [(0, 4)]);
        room.handle_delivered(0, 1, 1);
        assert_eq!(due(&mut room, 5), [], "a duplicate frees nothing");
    }

    #[test]
    fn a_message_that_never_arrives_is_given_up_and_counted_once() {
        let mut room =
            PublishSchedule::new(PublishPace::Window(1), 0, [2].into_iter(), 1, 0, 1_000);
        assert_eq!(due(&mut room, 0), [(0, 1)]);
        room.handle_delivered(0, 1, 1);
        assert_eq!(due(&mut room, 999), []);
        assert_eq!(due(&mut room, 1_000), [(0, 2)]);
        assert_eq!(room.given_up(), 1);
        room.handle_delivered(0, 1, 1);
        assert_eq!(
            due(&mut room, 1_001),
            [],
            "its late delivery does not count for the next message"
        );
    }
}
