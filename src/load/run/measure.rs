//! What a run costs: processor time and memory, read before and after.
//!
//! Invariant: a cost of which one reading is missing is absent, never zero.

use super::procfs;
use crate::load::report::{MemoryReport, ProcessMemory};

/// Processor time so far, in microseconds.
pub struct CpuSample {
    /// Of the server, if its process is known.
    pub server_us: Option<u64>,
    /// Of the generator.
    pub generator_us: u64,
}

impl CpuSample {
    /// Of these processes and of this one.
    pub fn take(pids: &[u32]) -> CpuSample {
        let server: Option<u64> = pids.iter().map(|&pid| procfs::cpu_us(pid)).sum();
        CpuSample {
            server_us: server.filter(|_| !pids.is_empty()),
            generator_us: procfs::cpu_us(std::process::id()).unwrap_or(0),
        }
    }
}

/// Memory before the first connection.
pub struct MemoryBaseline {
    server: ProcessMemory,
    available: Option<u64>,
}

impl MemoryBaseline {
    /// If there is a process to look at.
    pub fn take(pids: &[u32]) -> Option<MemoryBaseline> {
        let server = procfs::memory(pids)?;
        Some(MemoryBaseline { server, available: procfs::memory_available() })
    }

    /// What has been added for each of `conns`.
    pub fn compare(&self, pids: &[u32], conns: u64) -> Option<MemoryReport> {
        let after = procfs::memory(pids)?;
        let available = procfs::memory_available();
        let by_conn = |before: u64, after: u64| (after as f64 - before as f64) / conns as f64;
        if conns == 0 {
            return None;
        }
        Some(MemoryReport {
            before: self.server,
            after,
            rss_per_conn: by_conn(self.server.rss, after.rss),
            anon_per_conn: by_conn(self.server.anon, after.anon),
            machine_per_conn: by_conn(available?, self.available?),
        })
    }
}
