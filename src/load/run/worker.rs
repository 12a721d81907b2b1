//! One thread of the generator: an epoll loop over its own connections.
//!
//! It takes orders from the coordinator and reports to it, both over channels; workers tell each
//! other only about copies that arrived for a room somebody else publishes to. A turn is: wait,
//! read everything that is ready, publish what is due, write once per connection.
//!
//! Invariant: everything a worker touches is its own; orders and reports are the only way in and
//! out.

use super::plan::RunPlan;
use super::publish::{PublishPace, PublishSchedule, PublishSlot};
use crate::load::client::connections::ClientConnections;
use crate::load::client::stamp::{BROADCAST_ROOM, Stamp};
use crate::load::report::latency;
use crate::load::report::tally::Tally;
use crate::load::sys::{self, ClientEpoll, SocketEvents};
use hdrhistogram::Histogram;
use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};
use std::time::Duration;

/// The bell's key: no connection has it.
const BELL: u64 = u64::MAX;
const REPORT_EVERY: Duration = Duration::from_millis(100);
/// Few enough that a turn stays short, many enough that a thousand members need few waits.
const EVENTS_PER_TURN: usize = 512;

/// What a worker is told.
pub enum WorkerCommand {
    /// Connect all.
    Connect,
    /// Publish from `start_ns` since time zero on.
    Publish {
        /// How.
        pace: PublishPace,
        /// From when.
        start_ns: u64,
    },
    /// Talk, as the brief says.
    Talk,
    /// Publish and talk no more.
    Hush,
    /// Report counts and latencies, and begin new latencies.
    Mark,
    /// Send one message to everybody from one joined connection.
    Shout,
    /// Cut all connections and connect them again.
    Cut {
        /// With a reset instead of a plain close.
        reset: bool,
    },
    /// Copies of messages of your rooms have arrived at another worker: room, number, how many.
    Arrived(Vec<(u32, u32, u32)>),
    /// End all connections, report and return.
    Finish,
}

/// What a worker says.
pub enum WorkerReport {
    /// It has its file table and its epoll set, or it cannot run.
    Ready(Result<(), String>),
    /// Where it is.
    Progress(Tally),
    /// The answer to `Mark`.
    Marked(Tally, Histogram<u64>),
    /// The last word.
    Done(Tally),
}

/// How to give a worker an order.
#[derive(Clone)]
pub struct WorkerHandle {
    /// The way in.
    pub orders: Sender<WorkerCommand>,
    /// Wakes it.
    pub bell: Arc<File>,
}

impl WorkerHandle {
    /// Gives the order, and wakes the worker. One that is gone has reported why.
    pub fn tell(&self, order: WorkerCommand) {
        if self.orders.send(order).is_ok() {
            // Full means rung already.
            let _ = (&*self.bell).write(&1u64.to_ne_bytes());
        }
    }
}

/// One worker's half of its channels, and its number.
pub struct WorkerConfig {
    /// Which worker.
    pub number: usize,
    /// Its orders.
    pub orders: Receiver<WorkerCommand>,
    /// Its bell.
    pub bell: Arc<File>,
    /// To the coordinator, with the worker's number.
    pub reports: Sender<(usize, WorkerReport)>,
    /// All workers, itself included.
    pub peers: Vec<WorkerHandle>,
    /// For masks and jitter.
    pub seed: u64,
}

/// A worker's whole life.
pub fn run(brief: Arc<RunPlan>, seat: WorkerConfig) {
    match Worker::begin(brief, &seat) {
        Ok(mut worker) => {
            say(&seat, WorkerReport::Ready(Ok(())));
            worker.work(&seat);
        }
        Err(error) => say(&seat, WorkerReport::Ready(Err(error))),
    }
}

/// A coordinator that has gone away has no use for the report.
fn say(seat: &WorkerConfig, report: WorkerReport) {
    let _ = seat.reports.send((seat.number, report));
}

struct Worker {
    number: usize,
    brief: Arc<RunPlan>,
    conns: ClientConnections,
    publishing: Option<PublishSchedule>,
    latencies: Histogram<u64>,
    /// Copies of other workers' messages in this turn, by worker, room and number.
    abroad: HashMap<(usize, u32, u32), u32>,
    due: Vec<PublishSlot>,
    next_report_ns: u64,
    finished: bool,
}

impl Worker {
    fn begin(brief: Arc<RunPlan>, seat: &WorkerConfig) -> Result<Worker, String> {
        if let Some(&core) = brief.cores.get(seat.number % brief.cores.len().max(1)) {
            sys::pin_to(core).map_err(|error| format!("cannot pin to core {core}: {error}"))?;
        }
        match sys::own_file_table() {
            Err(error) if brief.needs_own_files => {
                return Err(format!(
                    "a thread cannot have a file table of its own (unshare: {error}), and the \
                     limit of open files is too low for one table. Likely cause: a container's \
                     seccomp profile. Raise the limit (ulimit -n) or allow unshare"
                ));
            }
            Ok(()) | Err(_) => {}
        }
        let epoll = ClientEpoll::new().map_err(|error| format!("epoll: {error}"))?;
        epoll.add(&*seat.bell, BELL).map_err(|error| format!("epoll: {error}"))?;
        let (lo, hi) = (brief.bounds[seat.number], brief.bounds[seat.number + 1]);
        let conns = ClientConnections::new(Arc::clone(&brief.client), lo, hi, epoll, seat.seed);
        Ok(Worker {
            number: seat.number,
            brief,
            conns,
            publishing: None,
            latencies: latency::new_histogram(),
            abroad: HashMap::new(),
            due: Vec::new(),
            next_report_ns: 0,
            finished: false,
        })
    }

    fn work(&mut self, seat: &WorkerConfig) {
        let mut events = SocketEvents::with_capacity(EVENTS_PER_TURN);
        while !self.finished {
            let timeout = Duration::from_nanos(self.next_wake_ns());
            if let Err(error) = self.conns.epoll().wait(&mut events, timeout) {
                return say(seat, WorkerReport::Ready(Err(format!("epoll_pwait2: {error}"))));
            }
            for i in 0..events.len() {
                let ready = events.get(i);
                if ready.key == BELL {
                    self.take_orders(seat);
                } else {
                    self.conns.handle_ready(ready);
                }
            }
            self.settle_arrivals();
            self.publish_due();
            self.conns.begin_connects();
            self.conns.flush_all();
            self.tell_abroad(seat);
            self.report_progress(seat);
        }
        self.conns.end_all();
        say(seat, WorkerReport::Done(self.tally()));
    }

    /// Nanoseconds until something must be done without an event.
    fn next_wake_ns(&self) -> u64 {
        let publish = self.publishing.as_ref().and_then(PublishSchedule::next_due_ns);
        let connect = self.conns.next_connect_ns();
        let next = [publish, connect].into_iter().flatten().fold(self.next_report_ns, u64::min);
        next.saturating_sub(self.brief.now_ns())
    }

    fn take_orders(&mut self, seat: &WorkerConfig) {
        let mut count = [0; 8];
        // Empty means that an earlier turn has read it with the orders behind it.
        let _ = (&*seat.bell).read(&mut count);
        while let Ok(order) = seat.orders.try_recv() {
            match order {
                WorkerCommand::Connect => self.conns.connect_all(),
                WorkerCommand::Publish { pace, start_ns } => {
                    self.start_publishing(seat, pace, start_ns)
                }
                WorkerCommand::Talk => self.conns.start_bursts(),
                WorkerCommand::Hush => self.hush(),
                WorkerCommand::Mark => self.mark(seat),
                WorkerCommand::Shout => self.shout(),
                WorkerCommand::Cut { reset } => self.conns.cut_all(reset),
                WorkerCommand::Arrived(arrived) => self.handle_abroad(&arrived),
                WorkerCommand::Finish => self.finished = true,
            }
        }
    }

    fn start_publishing(&mut self, seat: &WorkerConfig, pace: PublishPace, start_ns: u64) {
        let (lo, hi) = (self.brief.bounds[seat.number], self.brief.bounds[seat.number + 1]);
        let owned = self.brief.rooms().beginning_in(lo, hi);
        let members = owned.clone().map(|room| self.brief.hearers(room));
        let total = self.brief.rooms().count();
        let stall_ns = self.brief.stall.as_nanos() as u64;
        self.publishing =
            Some(PublishSchedule::new(pace, owned.start, members, total, start_ns, stall_ns));
    }

    fn hush(&mut self) {
        self.conns.stop_bursts();
        if let Some(publishing) = self.publishing.take() {
            self.conns.tally.given_up += publishing.given_up();
        }
    }

    fn mark(&mut self, seat: &WorkerConfig) {
        // What has arrived in this turn belongs to the time before the mark.
        self.settle_arrivals();
        let latencies = std::mem::replace(&mut self.latencies, latency::new_histogram());
        say(seat, WorkerReport::Marked(self.tally(), latencies));
    }

    fn shout(&mut self) {
        let Some(conn) = self.conns.any_joined() else { return };
        let intended_ns = self.brief.now_ns();
        let stamp = Stamp { run: self.brief.client.run, room: BROADCAST_ROOM, seq: 1, intended_ns };
        if self.conns.publish(conn, stamp) {
            self.conns.tally.sent += 1;
        }
    }

    fn publish_due(&mut self) {
        let Some(publishing) = self.publishing.as_mut() else { return };
        let mut due = std::mem::take(&mut self.due);
        publishing.take_due(self.brief.now_ns(), &mut due);
        for shot in due.drain(..) {
            let readers = self.brief.client.readers(shot.room);
            let publisher = shot.turn % self.brief.publishers.min(readers);
            let conn = self.brief.rooms().member(shot.room, publisher);
            let stamp = Stamp {
                run: self.brief.client.run,
                room: shot.room,
                seq: shot.seq,
                intended_ns: shot.intended_ns,
            };
            if self.conns.publish(conn, stamp) {
                self.conns.tally.sent += 1;
                self.conns.tally.expected += u64::from(self.brief.hearers(shot.room));
            } else {
                self.conns.tally.unsent += 1;
            }
        }
        self.due = due;
    }

    /// Times what has arrived, and tells the room's publisher.
    fn settle_arrivals(&mut self) {
        let mut arrivals = std::mem::take(&mut self.conns.arrivals);
        for arrival in arrivals.drain(..) {
            let Stamp { room, seq, intended_ns, .. } = arrival.stamp;
            latency::record(&mut self.latencies, arrival.at_ns.saturating_sub(intended_ns));
            let Some(publishing) = self.publishing.as_mut().filter(|p| p.counts_copies()) else {
                continue;
            };
            if room == BROADCAST_ROOM {
                continue;
            }
            match self.brief.owner(room) {
                owner if owner == self.number => publishing.handle_arrived(room, seq, 1),
                owner => *self.abroad.entry((owner, room, seq)).or_insert(0) += 1,
            }
        }
        self.conns.arrivals = arrivals;
    }

    fn tell_abroad(&mut self, seat: &WorkerConfig) {
        if self.abroad.is_empty() {
            return;
        }
        let mut letters: HashMap<usize, Vec<(u32, u32, u32)>> = HashMap::new();
        for ((owner, room, seq), copies) in self.abroad.drain() {
            letters.entry(owner).or_default().push((room, seq, copies));
        }
        for (owner, arrived) in letters {
            seat.peers[owner].tell(WorkerCommand::Arrived(arrived));
        }
    }

    fn handle_abroad(&mut self, arrived: &[(u32, u32, u32)]) {
        let Some(publishing) = &mut self.publishing else { return };
        for &(room, seq, copies) in arrived {
            publishing.handle_arrived(room, seq, copies);
        }
    }

    fn report_progress(&mut self, seat: &WorkerConfig) {
        let now_ns = self.brief.now_ns();
        if now_ns < self.next_report_ns {
            return;
        }
        self.next_report_ns = now_ns + REPORT_EVERY.as_nanos() as u64;
        self.conns.expire_handshakes();
        say(seat, WorkerReport::Progress(self.tally()));
    }

    fn tally(&self) -> Tally {
        let mut tally = self.conns.tally.clone();
        tally.given_up += self.publishing.as_ref().map_or(0, PublishSchedule::given_up);
        tally
    }
}
