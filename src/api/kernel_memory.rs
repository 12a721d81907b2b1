//! The memory that the kernel holds for TCP sockets: none of ours, and bounded by the host.
//!
//! Beyond `net.ipv4.tcp_mem` the kernel drops what arrives, for every process of the host. So a node
//! warns before that, with what to do.

use crate::sys::{TcpMemory, tcp_memory_below};
use std::path::Path;
use std::time::Duration;
use tokio::time::{Instant, MissedTickBehavior, interval};

/// From one look to the next.
const LOOK_INTERVAL: Duration = Duration::from_secs(10);
/// From one warning to the next.
const WARN_INTERVAL: Duration = Duration::from_secs(600);

/// The number as of now, of this host.
pub(super) fn tcp_memory() -> Option<TcpMemory> {
    tcp_memory_below(Path::new("/"))
}

/// Looks from time to time, and warns.
pub(super) async fn watch() {
    let mut looks = interval(LOOK_INTERVAL);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut warned: Option<Instant> = None;
    loop {
        let now = looks.tick().await;
        let Some(memory) = tcp_memory().filter(|memory| is_short(*memory)) else { continue };
        if warned.is_none_or(|warned| now.duration_since(warned) >= WARN_INTERVAL) {
            warned = Some(now);
            let (used_mib, max_mib) = (memory.used_bytes >> 20, memory.max_bytes >> 20);
            tracing::warn!(
                used_mib,
                max_mib,
                "the kernel's memory for TCP sockets runs out (net.ipv4.tcp_mem), then it drops what \
                 arrives: raise it with tuning/apply.sh --apply, or lower limits.socket_unsent_bytes_max"
            );
        }
    }
}

/// From three quarters of the bound on.
fn is_short(memory: TcpMemory) -> bool {
    memory.used_bytes >= memory.max_bytes / 4 * 3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_short_from_three_quarters_on() {
        let at = |used_bytes| is_short(TcpMemory { used_bytes, max_bytes: 4000 });
        assert_eq!([0, 2999, 3000, 5000].map(at), [false, false, true, true]);
    }

    #[test]
    fn the_kernel_of_this_host_says_how_much_there_is() {
        let memory = tcp_memory().expect("Linux with IPv4");
        assert!(memory.max_bytes > 0);
    }

    #[test]
    fn both_files_are_read_as_the_kernel_writes_them() {
        let root = std::env::temp_dir().join(format!("campanile-sockstat-{}", std::process::id()));
        let write = |path: &str, text: &str| {
            let path = root.join(path);
            std::fs::create_dir_all(path.parent().expect("it is below root")).expect("a folder");
            std::fs::write(path, text).expect("a file");
        };
        let tcp = "TCP: inuse 7 orphan 0 tw 12 alloc 9 mem 3";
        write("proc/net/sockstat", &format!("sockets: used 100\n{tcp}\nUDP: inuse 1 mem 9\n"));
        assert_eq!(tcp_memory_below(&root), None, "the bound is not known");
        write("proc/sys/net/ipv4/tcp_mem", "10\t20\t30\n");
        let memory = tcp_memory_below(&root).expect("both are there");
        std::fs::remove_dir_all(&root).expect("ours");
        assert_eq!(memory.used_bytes * 10, memory.max_bytes);
    }
}
