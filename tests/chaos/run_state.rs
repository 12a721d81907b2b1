//! What the threads of a run know of each other: which nodes are up, whether it is quiet, how far
//! everybody is. Numbers only; logs go to the director over a channel.

use crate::checker::{AckedPublish, Entry};
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

/// What a thread tells the director.
pub enum ClientLog {
    Member {
        who: usize,
        entry: Entry,
    },
    AckedPublish(AckedPublish),
    /// Something that may not be, and that no log shows.
    Trouble(String),
}

/// One node of ours, as the others see it.
#[derive(Default)]
pub struct MemberProgress {
    /// 0: it is not up.
    pub port: AtomicU16,
    pub ops: AtomicU16,
    pub is_ready: AtomicBool,
}

pub struct RunState {
    began: Instant,
    pub progress: Vec<MemberProgress>,
    pub stop: AtomicBool,
    /// Publishers rest, members stay.
    pub quiet: AtomicBool,
    /// Publishers with something that is not acknowledged.
    pub busy: AtomicUsize,
    /// By room: when the latest that was acknowledged was sent.
    pub acked_sent_us: Vec<AtomicU64>,
    /// By member and room: what was heard last.
    pub heard_last: Vec<Vec<AtomicU64>>,
    /// How long this process was kept waiting by its machine, in all.
    pub stalled_us: AtomicU64,
}

impl RunState {
    pub fn new(nodes: usize, members: usize, rooms: usize) -> RunState {
        let zeros = || (0..rooms).map(|_| AtomicU64::new(0)).collect::<Vec<_>>();
        RunState {
            began: Instant::now(),
            progress: (0..nodes).map(|_| MemberProgress::default()).collect(),
            stop: AtomicBool::new(false),
            quiet: AtomicBool::new(false),
            busy: AtomicUsize::new(0),
            acked_sent_us: zeros(),
            heard_last: (0..members).map(|_| zeros()).collect(),
            stalled_us: AtomicU64::new(0),
        }
    }

    /// Microseconds since the run began, never 0.
    pub fn now_us(&self) -> u64 {
        self.began.elapsed().as_micros() as u64 + 1
    }

    pub fn is_over(&self) -> bool {
        self.stop.load(SeqCst)
    }

    pub fn is_quiet(&self) -> bool {
        self.quiet.load(SeqCst)
    }

    /// The public port of a node, from a number out of a hat. `None`: it is not up.
    pub fn port(&self, lot: u64) -> Option<u16> {
        let progress = &self.progress[(lot % self.progress.len() as u64) as usize];
        Some(progress.port.load(SeqCst)).filter(|port| *port != 0)
    }

    /// Rests, but not beyond the end of the run.
    pub fn rest(&self, ms: u64) {
        let until = Instant::now() + Duration::from_millis(ms);
        while !self.is_over() && Instant::now() < until {
            let left = until.saturating_duration_since(Instant::now());
            std::thread::sleep(left.min(Duration::from_millis(20)));
        }
    }

    /// Rests, but not when it becomes quiet.
    pub fn rest_unless_quiet(&self, ms: u64) {
        let until = Instant::now() + Duration::from_millis(ms);
        while !self.is_over() && !self.is_quiet() && Instant::now() < until {
            let left = until.saturating_duration_since(Instant::now());
            std::thread::sleep(left.min(Duration::from_millis(20)));
        }
    }
}
