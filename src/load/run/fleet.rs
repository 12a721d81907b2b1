//! The workers of a run, seen from the coordinator.
//!
//! The coordinator never touches a connection: it tells all workers what to do, and listens until
//! the sum of what they say is what it waits for, or until a deadline.
//!
//! Invariant: when a fleet has begun, every worker has its own file table where it needs one; so
//! descriptors opened later are nobody else's.

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

/// Threads that hold connections.
pub struct Fleet {
    brief: Arc<RunPlan>,
    handles: Vec<WorkerHandle>,
    threads: Vec<JoinHandle<()>>,
    reports: Receiver<(usize, WorkerReport)>,
    tallies: Vec<Tally>,
    done: usize,
}

impl Fleet {
    /// Starts the workers; none of them connects yet.
    pub fn begin(brief: RunPlan) -> Result<Fleet, LoadError> {
        let brief = Arc::new(brief);
        let workers = brief.workers();
        let (report, reports) = mpsc::channel();
        let (mut handles, mut inboxes) = (Vec::new(), Vec::new());
        for _ in 0..workers {
            let (orders, inbox) = mpsc::channel();
            let bell = sys::eventfd().map_err(|e| LoadError::Host(format!("eventfd: {e}")))?;
            handles.push(WorkerHandle { orders, bell: Arc::new(bell) });
            inboxes.push(inbox);
        }
        let mut threads = Vec::new();
        for (number, orders) in inboxes.into_iter().enumerate() {
            let seat = WorkerConfig {
                number,
                orders,
                bell: Arc::clone(&handles[number].bell),
                reports: report.clone(),
                peers: handles.clone(),
                seed: (u64::from(brief.client.run) << 32) | (number as u64 + 1),
            };
            let brief = Arc::clone(&brief);
            let thread = thread::Builder::new()
                .name(format!("load-{number}"))
                .spawn(move || worker::run(brief, seat))
                .map_err(|e| LoadError::Host(format!("cannot start a thread: {e}")))?;
            threads.push(thread);
        }
        let tallies = vec![Tally::default(); workers];
        let fleet = Fleet { brief, handles, threads, reports, tallies, done: 0 };
        let mut missing = workers;
        while missing > 0 {
            match fleet.reports.recv() {
                Ok((_, WorkerReport::Ready(Ok(())))) => missing -= 1,
                Ok((_, WorkerReport::Ready(Err(why)))) => return Err(LoadError::Host(why)),
                // The quick ones report while others are still getting ready.
                Ok(_) => {}
                Err(_) => return Err(LoadError::Host("a worker ended before it began".into())),
            }
        }
        Ok(fleet)
    }

    /// What the workers know.
    pub fn brief(&self) -> &RunPlan {
        &self.brief
    }

    /// Tells every worker.
    pub fn tell_all(&self, mut order: impl FnMut() -> WorkerCommand) {
        for handle in &self.handles {
            handle.tell(order());
        }
    }

    /// Tells the first worker that has a joined connection, if there is one.
    pub fn tell_one_joined(&self, order: WorkerCommand) -> bool {
        let found = self.tallies.iter().position(|tally| tally.joined > 0);
        found.inspect(|&worker| self.handles[worker].tell(order)).is_some()
    }

    /// The sum of what the workers said last.
    pub fn tally(&self) -> Tally {
        let mut sum = Tally::default();
        self.tallies.iter().for_each(|tally| sum.add(tally));
        sum
    }

    /// Listens until `enough` says so or the deadline is there; true if it said so.
    pub fn listen(
        &mut self,
        deadline: Instant,
        mut enough: impl FnMut(&Tally) -> bool,
    ) -> Result<bool, LoadError> {
        loop {
            if enough(&self.tally()) {
                return Ok(true);
            }
            let until = deadline.min(Instant::now() + Duration::from_millis(50));
            if !self.hear(until)? && Instant::now() >= deadline {
                return Ok(enough(&self.tally()));
            }
            // Many workers: take all that has been said before adding it up again.
            while self.hear(Instant::now())? {}
        }
    }

    /// Counts and latencies of all workers as of now; latencies begin anew.
    pub fn mark(&mut self) -> Result<(Tally, Histogram<u64>), LoadError> {
        self.tell_all(|| WorkerCommand::Mark);
        let mut latencies = latency::new_histogram();
        let mut missing = self.handles.len();
        while missing > 0 {
            match self.reports.recv_timeout(Duration::from_secs(30)) {
                Ok((worker, WorkerReport::Marked(tally, theirs))) => {
                    self.tallies[worker] = tally;
                    latencies.add(&theirs).expect("all histograms have the same bounds");
                    missing -= 1;
                }
                Ok((worker, other)) => self.take(worker, other)?,
                Err(_) => return Err(LoadError::Host("a worker does not answer".into())),
            }
        }
        Ok((self.tally(), latencies))
    }

    /// Ends all connections and threads; the last word of all.
    pub fn finish(mut self) -> Result<Tally, LoadError> {
        self.tell_all(|| WorkerCommand::Finish);
        let deadline = Instant::now() + Duration::from_secs(60);
        while self.done < self.handles.len() && Instant::now() < deadline {
            self.hear(deadline)?;
        }
        for thread in self.threads.drain(..) {
            thread.join().map_err(|_| LoadError::Host("a worker panicked".into()))?;
        }
        Ok(self.tally())
    }

    /// Takes one report, if one comes in time.
    fn hear(&mut self, until: Instant) -> Result<bool, LoadError> {
        match self.reports.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok((worker, report)) => self.take(worker, report).map(|()| true),
            Err(RecvTimeoutError::Timeout) => Ok(false),
            Err(RecvTimeoutError::Disconnected) => {
                Err(LoadError::Host("all workers have ended".into()))
            }
        }
    }

    fn take(&mut self, worker: usize, report: WorkerReport) -> Result<(), LoadError> {
        match report {
            WorkerReport::Progress(tally) | WorkerReport::Marked(tally, _) => {
                self.tallies[worker] = tally
            }
            WorkerReport::Done(tally) => {
                self.tallies[worker] = tally;
                self.done += 1;
            }
            WorkerReport::Ready(Err(why)) => return Err(LoadError::Host(why)),
            WorkerReport::Ready(Ok(())) => {}
        }
        Ok(())
    }
}
