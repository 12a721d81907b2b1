//! The cost of a run: CPU time and memory, sampled before and after.
//!
//! Invariant: a cost without both samples is absent, never zero.

use super::procfs;
use crate::load::report::{MemoryReport, ProcessMemory};

/// CPU time so far, in microseconds.
pub(crate) struct CpuSample {
    /// Of the server's processes, if `--pid` names them.
    pub server_us: Option<u64>,
    /// Of this process.
    pub generator_us: u64,
}

impl CpuSample {
    /// Samples `pids`, the server's processes, and this process.
    pub(crate) fn take(pids: &[u32]) -> CpuSample {
        let server: Option<u64> = pids.iter().map(|&pid| procfs::cpu_us(pid)).sum();
        CpuSample {
            server_us: server.filter(|_| !pids.is_empty()),
            generator_us: procfs::cpu_us(std::process::id()).unwrap_or(0),
        }
    }
}

/// Memory before the first connect.
pub(crate) struct MemoryBaseline {
    server: ProcessMemory,
    available: Option<u64>,
}

impl MemoryBaseline {
    /// Samples the server's processes; `None` if `--pid` names none.
    pub(crate) fn take(pids: &[u32]) -> Option<MemoryBaseline> {
        let server = procfs::memory(pids)?;
        Some(MemoryBaseline { server, available: procfs::memory_available() })
    }

    /// Growth since then for each of `conns` connections; `None` without a connection or a sample.
    pub(crate) fn compare(&self, pids: &[u32], conns: u64) -> Option<MemoryReport> {
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
