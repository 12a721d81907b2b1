//! One thread of the generator: an epoll loop over its own connections.
//!
//! It receives commands from the coordinator and sends reports to it, both over channels. Workers
//! send each other only counts of deliveries, to the worker that has the publishers of the room. A
//! turn of the loop: wait, read everything that is ready, publish what is due, write once for each
//! connection.
//!
//! Invariant: a worker shares no state; commands and reports are the only way in and out.

use super::plan::RunPlan;
use super::publish::{PublishPace, PublishSchedule, PublishSlot};
use crate::load::client::connections::ClientConnections;
use crate::load::client::stamp::{BROADCAST_ROOM, Stamp};
use crate::load::report::latency;
use crate::load::report::tally::Tally;
use crate::load::sys::{self, ClientEpoll, ReadySockets};
use hdrhistogram::Histogram;
use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};
use std::time::Duration;

/// The bell's key in epoll; no connection has it.
const BELL: u64 = u64::MAX;
/// The interval at which a worker reports its counts.
const REPORT_INTERVAL: Duration = Duration::from_millis(100);
/// Few enough that a turn stays short, many enough that a thousand members need few waits.
const EVENTS_PER_TURN: usize = 512;

/// A command to a worker.
pub(crate) enum WorkerCommand {
    /// Connect all connections of the worker, at its rate.
    Connect,
    /// Publish, to the rooms whose publishers are here.
    Publish {
        /// At which rate, or with which window.
        pace: PublishPace,
        /// From this time on, in nanoseconds since the run began.
        start_ns: u64,
    },
    /// Send bursts on all connections.
    StartBursts,
    /// Begin no further publish and no further burst.
    StopPublishing,
    /// Report counts and latencies, and start a new histogram.
    Snapshot,
    /// Publish one message to all connections, from one that has joined.
    Broadcast,
    /// Close all connections and connect them again.
    Reconnect {
        /// With a reset instead of a plain close.
        reset: bool,
    },
    /// Deliveries that another worker has received, of messages published here.
    CountDeliveries(Vec<DeliveryCount>),
    /// Close all connections, report and end.
    Finish,
}

/// Deliveries of one message.
pub(crate) struct DeliveryCount {
    /// Index of the room.
    pub room: u32,
    /// Sequence number of the message.
    pub seq: u32,
    /// Deliveries of it that the reporting worker received.
    pub deliveries: u32,
}

/// A report of a worker.
pub(crate) enum WorkerReport {
    /// The worker has started, or cannot run: why.
    Ready(Result<(), String>),
    /// Its counts, every [`REPORT_INTERVAL`].
    Progress(Tally),
    /// The reply to [`WorkerCommand::Snapshot`].
    Snapshot(Tally, Histogram<u64>),
    /// Its final counts; it has ended.
    Done(Tally),
}

/// The sending side of a worker's commands.
#[derive(Clone)]
pub(crate) struct WorkerHandle {
    /// Read by the worker in its next turn.
    pub commands: Sender<WorkerCommand>,
    /// Eventfd that wakes the worker.
    pub bell: Arc<File>,
}

impl WorkerHandle {
    /// Sends a command and wakes the worker. A worker that has ended has reported why.
    pub(crate) fn send(&self, command: WorkerCommand) {
        if self.commands.send(command).is_ok() {
            // A full eventfd wakes the worker too.
            let _ = (&*self.bell).write(&1u64.to_ne_bytes());
        }
    }
}

/// What one worker gets when it starts, besides the plan.
pub(crate) struct WorkerConfig {
    /// Index of the worker.
    pub number: usize,
    /// Commands of the coordinator and of other workers.
    pub commands: Receiver<WorkerCommand>,
    /// Eventfd that wakes this worker.
    pub bell: Arc<File>,
    /// Reports to the coordinator, with the index of the worker.
    pub reports: Sender<(usize, WorkerReport)>,
    /// All workers, this one included.
    pub peers: Vec<WorkerHandle>,
    /// For masks and retry delays.
    pub seed: u64,
}

/// Runs a worker until [`WorkerCommand::Finish`]: the body of its thread.
pub(crate) fn run(plan: Arc<RunPlan>, config: WorkerConfig) {
    match Worker::start(plan, &config) {
        Ok(mut worker) => {
            report(&config, WorkerReport::Ready(Ok(())));
            worker.run_loop(&config);
        }
        Err(error) => report(&config, WorkerReport::Ready(Err(error))),
    }
}

/// If the coordinator has ended, nobody needs the report.
fn report(config: &WorkerConfig, report: WorkerReport) {
    let _ = config.reports.send((config.number, report));
}

struct Worker {
    number: usize,
    plan: Arc<RunPlan>,
    connections: ClientConnections,
    publishing: Option<PublishSchedule>,
    latencies: Histogram<u64>,
    /// Deliveries of other workers' messages in this turn, by worker, room and sequence number.
    remote_deliveries: HashMap<(usize, u32, u32), u32>,
    /// Empty between turns; a field, so that its memory is reused.
    due: Vec<PublishSlot>,
    next_report_ns: u64,
    finished: bool,
}

impl Worker {
    fn start(plan: Arc<RunPlan>, config: &WorkerConfig) -> Result<Worker, String> {
        if let Some(&core) = plan.cores.get(config.number % plan.cores.len().max(1)) {
            sys::pin_to_core(core)
                .map_err(|error| format!("cannot pin to core {core}: {error}"))?;
        }
        if plan.priority > 0 {
            let _ = sys::go_first(plan.priority); // Without it the times have more noise.
        }
        match sys::unshare_file_table() {
            Err(error) if plan.needs_own_file_table => {
                return Err(format!(
                    "a thread cannot have a file table of its own (unshare: {error}), and the \
                     limit of open files is too low for one table. Likely cause: a container's \
                     seccomp profile. Raise the limit (ulimit -n) or allow unshare"
                ));
            }
            Ok(()) | Err(_) => {}
        }
        let epoll = ClientEpoll::new().map_err(|error| format!("epoll: {error}"))?;
        epoll.add(&*config.bell, BELL).map_err(|error| format!("epoll: {error}"))?;
        let (lo, hi) = (plan.bounds[config.number], plan.bounds[config.number + 1]);
        let connections =
            ClientConnections::new(Arc::clone(&plan.client), lo, hi, epoll, config.seed);
        Ok(Worker {
            number: config.number,
            plan,
            connections,
            publishing: None,
            latencies: latency::new_histogram(),
            remote_deliveries: HashMap::new(),
            due: Vec::new(),
            next_report_ns: 0,
            finished: false,
        })
    }

    fn run_loop(&mut self, config: &WorkerConfig) {
        let mut events = ReadySockets::with_capacity(EVENTS_PER_TURN);
        while !self.finished {
            let timeout = Duration::from_nanos(self.next_wake_ns());
            if let Err(error) = self.connections.epoll().wait(&mut events, timeout) {
                return report(config, WorkerReport::Ready(Err(format!("epoll_pwait2: {error}"))));
            }
            for i in 0..events.len() {
                let ready = events.get(i);
                if ready.key == BELL {
                    self.handle_commands(config);
                } else {
                    self.connections.handle_ready(ready);
                }
            }
            self.count_arrivals();
            self.publish_due();
            self.connections.begin_connects();
            self.connections.flush_all();
            self.forward_remote(config);
            self.report_progress(config);
        }
        self.connections.close_all();
        report(config, WorkerReport::Done(self.tally()));
    }

    /// Nanoseconds until something must be done without an event.
    fn next_wake_ns(&self) -> u64 {
        let publish = self.publishing.as_ref().and_then(PublishSchedule::next_due_ns);
        let connect = self.connections.next_connect_ns();
        let next = [publish, connect].into_iter().flatten().fold(self.next_report_ns, u64::min);
        next.saturating_sub(self.plan.now_ns())
    }

    fn handle_commands(&mut self, config: &WorkerConfig) {
        let mut count = [0; 8];
        // Empty if an earlier turn has read it, with all commands up to then.
        let _ = (&*config.bell).read(&mut count);
        while let Ok(command) = config.commands.try_recv() {
            match command {
                WorkerCommand::Connect => self.connections.connect_all(),
                WorkerCommand::Publish { pace, start_ns } => {
                    self.start_publishing(config, pace, start_ns)
                }
                WorkerCommand::StartBursts => self.connections.start_bursts(),
                WorkerCommand::StopPublishing => self.stop_publishing(),
                WorkerCommand::Snapshot => self.send_snapshot(config),
                WorkerCommand::Broadcast => self.broadcast(),
                WorkerCommand::Reconnect { reset } => self.connections.reconnect_all(reset),
                WorkerCommand::CountDeliveries(counts) => self.handle_remote(&counts),
                WorkerCommand::Finish => self.finished = true,
            }
        }
    }

    fn start_publishing(&mut self, config: &WorkerConfig, pace: PublishPace, start_ns: u64) {
        let (lo, hi) = (self.plan.bounds[config.number], self.plan.bounds[config.number + 1]);
        let owned = self.plan.rooms().beginning_in(lo, hi);
        let members = owned.clone().map(|room| self.plan.receivers(room));
        let total = self.plan.rooms().count();
        let timeout_ns = self.plan.delivery_timeout.as_nanos() as u64;
        self.publishing =
            Some(PublishSchedule::new(pace, owned.start, members, total, start_ns, timeout_ns));
    }

    fn stop_publishing(&mut self) {
        self.connections.stop_bursts();
        if let Some(publishing) = self.publishing.take() {
            self.connections.tally.given_up += publishing.given_up();
        }
    }

    fn send_snapshot(&mut self, config: &WorkerConfig) {
        // What has arrived in this turn belongs to this snapshot.
        self.count_arrivals();
        let latencies = std::mem::replace(&mut self.latencies, latency::new_histogram());
        report(config, WorkerReport::Snapshot(self.tally(), latencies));
    }

    fn broadcast(&mut self) {
        let Some(conn) = self.connections.any_joined() else { return };
        let intended_ns = self.plan.now_ns();
        let stamp =
            Stamp { run_id: self.plan.client.run_id, room: BROADCAST_ROOM, seq: 1, intended_ns };
        if self.connections.publish(conn, stamp) {
            self.connections.tally.published += 1;
        }
    }

    fn publish_due(&mut self) {
        let Some(publishing) = self.publishing.as_mut() else { return };
        let mut due = std::mem::take(&mut self.due);
        publishing.take_due(self.plan.now_ns(), &mut due);
        for publish in due.drain(..) {
            let readers = self.plan.client.reading_members(publish.room);
            let publisher = publish.turn % self.plan.publishers.min(readers);
            let conn = self.plan.rooms().member(publish.room, publisher);
            let stamp = Stamp {
                run_id: self.plan.client.run_id,
                room: publish.room,
                seq: publish.seq,
                intended_ns: publish.intended_ns,
            };
            if self.connections.publish(conn, stamp) {
                self.connections.tally.published += 1;
                self.connections.tally.expected += u64::from(self.plan.receivers(publish.room));
            } else {
                self.connections.tally.unsent += 1;
            }
        }
        self.due = due;
    }

    /// Records the latency of what has arrived, and counts it for the publisher of the room.
    fn count_arrivals(&mut self) {
        let mut arrivals = std::mem::take(&mut self.connections.arrivals);
        for arrival in arrivals.drain(..) {
            let Stamp { room, seq, intended_ns, .. } = arrival.stamp;
            latency::record(&mut self.latencies, arrival.at_ns.saturating_sub(intended_ns));
            let Some(publishing) = self.publishing.as_mut().filter(|p| p.needs_delivery_counts())
            else {
                continue;
            };
            if room == BROADCAST_ROOM {
                continue;
            }
            match self.plan.publishing_worker(room) {
                own if own == self.number => publishing.handle_delivered(room, seq, 1),
                other => *self.remote_deliveries.entry((other, room, seq)).or_insert(0) += 1,
            }
        }
        self.connections.arrivals = arrivals;
    }

    /// Sends the deliveries of other workers' messages to those workers.
    fn forward_remote(&mut self, config: &WorkerConfig) {
        if self.remote_deliveries.is_empty() {
            return;
        }
        let mut by_worker: HashMap<usize, Vec<DeliveryCount>> = HashMap::new();
        for ((worker, room, seq), deliveries) in self.remote_deliveries.drain() {
            by_worker.entry(worker).or_default().push(DeliveryCount { room, seq, deliveries });
        }
        for (worker, counts) in by_worker {
            config.peers[worker].send(WorkerCommand::CountDeliveries(counts));
        }
    }

    fn handle_remote(&mut self, counts: &[DeliveryCount]) {
        let Some(publishing) = &mut self.publishing else { return };
        for &DeliveryCount { room, seq, deliveries } in counts {
            publishing.handle_delivered(room, seq, deliveries);
        }
    }

    fn report_progress(&mut self, config: &WorkerConfig) {
        let now_ns = self.plan.now_ns();
        if now_ns < self.next_report_ns {
            return;
        }
        self.next_report_ns = now_ns + REPORT_INTERVAL.as_nanos() as u64;
        self.connections.expire_handshakes();
        report(config, WorkerReport::Progress(self.tally()));
    }

    fn tally(&self) -> Tally {
        let mut tally = self.connections.tally.clone();
        tally.given_up += self.publishing.as_ref().map_or(0, PublishSchedule::given_up);
        tally
    }
}
