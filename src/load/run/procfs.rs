//! CPU time and memory of processes, read from `/proc`.
//!
//! Invariant: a number that could not be read is absent, never zero.

use crate::load::report::ProcessMemory;
use crate::load::sys;
use std::fs;

/// CPU time of a process so far, user and system, all threads, in microseconds. The kernel counts
/// in ticks of usually 10 ms, so windows shorter than a second are inaccurate.
pub(crate) fn cpu_us(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let ticks = cpu_ticks(&stat)?;
    Some(ticks * 1_000_000 / sys::ticks_per_second())
}

/// Fields 14 and 15 of `/proc/PID/stat`. The name in field 2 may have blanks and brackets.
fn cpu_ticks(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

/// Memory of all of `pids` together; `None` if there are none or one has ended.
pub(crate) fn memory(pids: &[u32]) -> Option<ProcessMemory> {
    let mut sum = ProcessMemory::default();
    for pid in pids {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        sum.rss += kib_line(&status, "VmRSS:")? * 1024;
        sum.anon += kib_line(&status, "RssAnon:")? * 1024;
    }
    (!pids.is_empty()).then_some(sum)
}

/// `MemAvailable` of the machine, in bytes.
pub(crate) fn memory_available() -> Option<u64> {
    kib_line(&fs::read_to_string("/proc/meminfo").ok()?, "MemAvailable:").map(|kib| kib * 1024)
}

fn kib_line(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    line.trim().trim_end_matches("kB").trim().parse().ok()
}

/// Number of ephemeral ports for each pair of addresses; 28,000 if it cannot be read.
pub(crate) fn local_ports() -> u32 {
    let read = || {
        let range = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").ok()?;
        let mut ends = range.split_ascii_whitespace().map(str::parse::<u32>);
        let (low, high) = (ends.next()?.ok()?, ends.next()?.ok()?);
        high.checked_sub(low)
    };
    read().unwrap_or(28_000).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_read_after_a_name_with_brackets() {
        let stat = "7 (a ) b) R 1 2 3 4 5 6 7 8 9 10 250 50 0 0 20 0";
        assert_eq!(cpu_ticks(stat), Some(300));
        assert_eq!(cpu_ticks("garbage"), None);
    }

    #[test]
    fn this_process_has_memory_and_a_missing_one_has_none() {
        let own = memory(&[std::process::id()]).expect("our own /proc entry");
        assert!(own.rss >= own.anon);
        assert!(own.anon > 0);
        assert_eq!(memory(&[u32::MAX]), None);
        assert_eq!(memory(&[]), None);
    }
}
