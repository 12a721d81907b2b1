//! The coordinator of a run and its workers.
//!
//! The coordinator has no connection: it sends commands to workers, and reads their reports until
//! their sum is what it waits for, or until a deadline.
//!
//! Invariant: when [`Fleet::start`] returns, every worker that needs a file table of its own has
//! it, so descriptors opened later belong to one worker.

use super::plan::RunPlan;
use super::worker::{self, WorkerCommand, WorkerConfig, WorkerHandle, WorkerReport};
use crate::load::error::LoadError;
use crate::load::report::latency;
use crate::load::report::tally::Tally;
use crate::load::sys;
use hdrhistogram::Histogram;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// The worker threads of a run, owned by the scenario.
pub(crate) struct Fleet {
    plan: Arc<RunPlan>,
    handles: Vec<WorkerHandle>,
    threads: Vec<JoinHandle<()>>,
    reports: Receiver<(usize, WorkerReport)>,
    /// The last tally of each worker.
    tallies: Vec<Tally>,
    /// Workers that have ended.
    finished: usize,
}

impl Fleet {
    /// Starts the workers. They wait for commands.
    pub(crate) fn start(plan: RunPlan) -> Result<Fleet, LoadError> {
        let plan = Arc::new(plan);
        let workers = plan.workers();
        let (report, reports) = mpsc::channel();
        let (mut handles, mut receivers) = (Vec::new(), Vec::new());
        for _ in 0..workers {
            let (commands, receiver) = mpsc::channel();
            let bell = sys::eventfd().map_err(|e| LoadError::Host(format!("eventfd: {e}")))?;
            handles.push(WorkerHandle { commands, bell: Arc::new(bell) });
            receivers.push(receiver);
        }
        let mut threads = Vec::new();
        for (number, commands) in receivers.into_iter().enumerate() {
            let config = WorkerConfig {
                number,
                commands,
                bell: Arc::clone(&handles[number].bell),
                reports: report.clone(),
                peers: handles.clone(),
                seed: (u64::from(plan.client.run_id) << 32) | (number as u64 + 1),
            };
            let plan = Arc::clone(&plan);
            let thread = thread::Builder::new()
                .name(format!("load-{number}"))
                .spawn(move || worker::run(plan, config))
                .map_err(|e| LoadError::Host(format!("cannot start a thread: {e}")))?;
            threads.push(thread);
        }
        let tallies = vec![Tally::default(); workers];
        let fleet = Fleet { plan, handles, threads, reports, tallies, finished: 0 };
        let mut missing = workers;
        while missing > 0 {
            match fleet.reports.recv() {
                Ok((_, WorkerReport::Ready(Ok(())))) => missing -= 1,
                Ok((_, WorkerReport::Ready(Err(why)))) => return Err(LoadError::Host(why)),
                // Some report progress while others still start.
                Ok(_) => {}
                Err(_) => {
                    return Err(LoadError::Host("a worker ended before it had started".into()));
                }
            }
        }
        Ok(fleet)
    }

    /// The plan of the run.
    pub(crate) fn plan(&self) -> &RunPlan {
        &self.plan
    }

    /// Sends a command to every worker.
    pub(crate) fn send_all(&self, mut command: impl FnMut() -> WorkerCommand) {
        for handle in &self.handles {
            handle.send(command());
        }
    }

    /// Sends a command to the first worker with a joined connection; `false` if there is none.
    pub(crate) fn send_to_one_joined(&self, command: WorkerCommand) -> bool {
        let found = self.tallies.iter().position(|tally| tally.joined > 0);
        found.inspect(|&worker| self.handles[worker].send(command)).is_some()
    }

    /// The sum of the last reports.
    pub(crate) fn tally(&self) -> Tally {
        let mut sum = Tally::default();
        self.tallies.iter().for_each(|tally| sum.add(tally));
        sum
    }

    /// Reads reports until `is_enough` returns true or the deadline has passed; returns the former.
    pub(crate) fn wait_until(
        &mut self,
        deadline: Instant,
        mut is_enough: impl FnMut(&Tally) -> bool,
    ) -> Result<bool, LoadError> {
        loop {
            if is_enough(&self.tally()) {
                return Ok(true);
            }
            let until = deadline.min(Instant::now() + Duration::from_millis(50));
            if !self.receive(until)? && Instant::now() >= deadline {
                return Ok(is_enough(&self.tally()));
            }
            // With many workers: take all reports before the next sum.
            while self.receive(Instant::now())? {}
        }
    }

    /// The counts of all workers now, and the latencies since the last snapshot.
    pub(crate) fn snapshot(&mut self) -> Result<(Tally, Histogram<u64>), LoadError> {
        self.send_all(|| WorkerCommand::Snapshot);
        let mut latencies = latency::new_histogram();
        let mut missing = self.handles.len();
        while missing > 0 {
            match self.reports.recv_timeout(Duration::from_secs(30)) {
                Ok((worker, WorkerReport::Snapshot(tally, theirs))) => {
                    self.tallies[worker] = tally;
                    latencies.add(&theirs).expect("all histograms have the same bounds");
                    missing -= 1;
                }
                Ok((worker, other)) => self.handle_report(worker, other)?,
                Err(_) => return Err(LoadError::Host("a worker does not answer".into())),
            }
        }
        Ok((self.tally(), latencies))
    }

    /// Closes all connections and ends all threads. Returns the final counts.
    pub(crate) fn finish(mut self) -> Result<Tally, LoadError> {
        self.send_all(|| WorkerCommand::Finish);
        let deadline = Instant::now() + Duration::from_secs(60);
        while self.finished < self.handles.len() && Instant::now() < deadline {
            self.receive(deadline)?;
        }
        for thread in self.threads.drain(..) {
            thread.join().map_err(|_| LoadError::Host("a worker panicked".into()))?;
        }
        Ok(self.tally())
    }

    /// Handles one report; `false` if none comes before `until`.
    fn receive(&mut self, until: Instant) -> Result<bool, LoadError> {
        match self.reports.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok((worker, report)) => self.handle_report(worker, report).map(|()| true),
            Err(RecvTimeoutError::Timeout) => Ok(false),
            Err(RecvTimeoutError::Disconnected) => {
                Err(LoadError::Host("all workers have ended".into()))
            }
        }
    }

    fn handle_report(&mut self, worker: usize, report: WorkerReport) -> Result<(), LoadError> {
        match report {
            WorkerReport::Progress(tally) | WorkerReport::Snapshot(tally, _) => {
                self.tallies[worker] = tally
            }
            WorkerReport::Done(tally) => {
                self.tallies[worker] = tally;
                self.finished += 1;
            }
            WorkerReport::Ready(Err(why)) => return Err(LoadError::Host(why)),
            WorkerReport::Ready(Ok(())) => {}
        }
        Ok(())
    }
}
