//! What this machine is, and the few things that only the operating system can do for a thread.
//!
//! Facts are read once at start (and by `campanile doctor`) and handed on as values, so that what
//! is decided from them (`plan.rs`) is a pure function. Where the kernel says no, the error says
//! the likely cause and what to do about it.
//!
//! Invariant: nothing here keeps state.
#![allow(unsafe_code)] // sched_setaffinity, sched_setscheduler, setpriority, unshare, setrlimit, sysconf, mi_collect: calls that std lacks

use std::fs;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// The limit on open files of one table (one process, unless a thread has a table of its own).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nofile {
    /// What counts now.
    pub soft: u64,
    /// The hard limit, to which this process may raise it.
    pub hard: u64,
}

/// The limit on open files.
pub fn nofile() -> io::Result<Nofile> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a whole rlimit that outlives the call, which writes nothing else.
    match unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) } {
        0 => Ok(Nofile { soft: limit.rlim_cur, hard: limit.rlim_max }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Raises the soft limit on open files to the hard one, which needs no privilege.
pub fn raise_nofile() -> io::Result<Nofile> {
    let Nofile { hard, .. } = nofile()?;
    let limit = libc::rlimit { rlim_cur: hard, rlim_max: hard };
    // SAFETY: the call reads one whole rlimit that outlives it.
    match unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) } {
        0 => nofile(),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Gives the calling thread a table of open files of its own: a copy of the present one. Whatever
/// another thread opens, or closes, from now on does not show here, so this comes first in the life
/// of a thread, and descriptors that threads share exist before.
pub fn unshare_files() -> io::Result<()> {
    // SAFETY: takes no pointers. Descriptors that are open stay valid in both tables, and no code of
    // ours closes, in one table, a descriptor that it opened in another.
    match unsafe { libc::unshare(libc::CLONE_FILES) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Pins the calling thread to these cores. None: leaves it as it is.
pub fn pin_to_cores(cores: &[usize]) -> io::Result<()> {
    if cores.is_empty() {
        return Ok(());
    }
    let mut set = empty_cpu_set();
    for &core in cores {
        if core >= libc::CPU_SETSIZE as usize {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // SAFETY: `core` is within the set, as was just checked; the macro's code sets one bit.
        unsafe { libc::CPU_SET(core, &mut set) };
    }
    // SAFETY: reads one whole set of the given size. 0 means the calling thread.
    match unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Pins the calling thread to one core.
pub fn pin_to_core(core: usize) -> io::Result<()> {
    pin_to_cores(&[core])
}

/// Whether a thread of this process lets others finish before it runs: a woken thread of
/// `SCHED_BATCH` does not preempt a running one, one of `SCHED_OTHER` may (sched(7)). 0 means the
/// calling thread. Needs no privilege.
pub fn schedule_in_batches(thread: i32, in_batches: bool) -> io::Result<()> {
    let class = if in_batches { libc::SCHED_BATCH } else { libc::SCHED_OTHER };
    let param = libc::sched_param { sched_priority: 0 };
    // SAFETY: reads one whole sched_param that outlives the call.
    match unsafe { libc::sched_setscheduler(thread, class, &param) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Whether a thread of this process is of `SCHED_BATCH`. 0 means the calling thread.
pub fn is_scheduled_in_batches(thread: i32) -> io::Result<bool> {
    // SAFETY: takes no pointers.
    match unsafe { libc::sched_getscheduler(thread) } {
        -1 => Err(io::Error::last_os_error()),
        class => Ok(class & !libc::SCHED_RESET_ON_FORK == libc::SCHED_BATCH),
    }
}

/// A thread of this process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnThread {
    /// Its number, as the kernel has it.
    pub id: i32,
    /// Its name, cut off after 15 bytes.
    pub name: String,
    /// The cores that it may run on.
    pub cores: Vec<usize>,
}

/// The threads of this process. One that ends while they are looked at may be missing.
pub fn own_threads() -> io::Result<Vec<OwnThread>> {
    let mut threads = Vec::new();
    for entry in fs::read_dir("/proc/self/task")? {
        let entry = entry?;
        let id = entry.file_name().to_str().and_then(|name| name.parse().ok());
        let name = fs::read_to_string(entry.path().join("comm")).ok();
        if let (Some(id), Some(name)) = (id, name)
            && let Ok(cores) = cores_of(id)
        {
            threads.push(OwnThread { id, name: name.trim_end().to_owned(), cores });
        }
    }
    Ok(threads)
}

/// What the kernel counts of a thread since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ThreadTimes {
    /// It ran for so long, in nanoseconds.
    pub ran_ns: u64,
    /// It was ready and waited for a core for so long, in nanoseconds.
    pub waited_ns: u64,
}

/// The times of a thread of this process, of the file `schedstat`. `None`: it has ended, or this
/// kernel does not count them.
pub fn thread_times(thread: i32) -> Option<ThreadTimes> {
    let text = fs::read_to_string(format!("/proc/self/task/{thread}/schedstat")).ok()?;
    let mut numbers = text.split_whitespace().map(|number| number.parse().ok());
    Some(ThreadTimes { ran_ns: numbers.next()??, waited_ns: numbers.next()?? })
}

/// Puts the calling thread before others that are ready on the same core: a nice value of `-by`
/// (setpriority(2)). Needs CAP_SYS_NICE, or `LimitNICE=` of systemd.
pub fn go_first(by: u8) -> io::Result<()> {
    // SAFETY: takes no pointers. On Linux 0 means the calling thread, not its process.
    match unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, -i32::from(by)) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The cores that this process may use, in order.
pub fn available_cores() -> io::Result<Vec<usize>> {
    cores_of(0)
}

/// The cores that a thread of this process may run on, in order. 0 means the calling thread.
fn cores_of(thread: i32) -> io::Result<Vec<usize>> {
    let mut set = empty_cpu_set();
    // SAFETY: writes at most one whole set of the given size.
    if unsafe { libc::sched_getaffinity(thread, size_of::<libc::cpu_set_t>(), &mut set) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: every index is within the set.
    let is_set = |core: &usize| unsafe { libc::CPU_ISSET(*core, &set) };
    Ok((0..libc::CPU_SETSIZE as usize).filter(is_set).collect())
}

fn empty_cpu_set() -> libc::cpu_set_t {
    // SAFETY: a cpu_set_t is an array of integers, for which all zeroes is a value: no core.
    unsafe { std::mem::zeroed() }
}

/// Memory that this process holds (RSS), in bytes.
pub fn resident_bytes() -> io::Result<u64> {
    ResidentMemory::open()?.bytes().ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Memory this process may use, in bytes: the machine's, or less where a cgroup says so.
pub fn memory_bytes() -> io::Result<u64> {
    memory_bytes_below(Path::new("/"))
}

/// The same, of the host whose `/proc` and `/sys` are below `root`.
pub fn memory_bytes_below(root: &Path) -> io::Result<u64> {
    let total = meminfo_bytes(root, "MemTotal:").ok_or(io::ErrorKind::InvalidData)?;
    // "max", or a group that is not visible from inside a container, is no limit.
    let limits =
        cgroup_folders(root, "memory").into_iter().filter_map(|CgroupFolder { path, is_v2 }| {
            read_number(&path.join(if is_v2 { "memory.max" } else { "memory.limit_in_bytes" }))
        });
    Ok(limits.min().map_or(total, |bytes| bytes.min(total)))
}

/// The memory that this process has, as the kernel counts it.
#[derive(Debug)]
pub struct ResidentMemory {
    statm: fs::File,
    page_bytes: u64,
}

impl ResidentMemory {
    /// Opens what it is read from, once: a thread that has no descriptor left can still read.
    pub fn open() -> io::Result<ResidentMemory> {
        Ok(ResidentMemory { statm: fs::File::open("/proc/self/statm")?, page_bytes: page_bytes() })
    }

    /// The resident size now, in bytes. One system call.
    pub fn bytes(&self) -> Option<u64> {
        let mut text = [0; 64];
        let len = self.statm.read_at(&mut text, 0).ok()?;
        let text = std::str::from_utf8(&text[..len]).ok()?;
        let pages: u64 = text.split(' ').nth(1)?.parse().ok()?;
        Some(pages * self.page_bytes)
    }
}

/// Gives back to the machine what the calling thread's allocator holds and does not use.
pub fn return_free_memory() {
    // SAFETY: takes no pointers; frees only what no allocation is in.
    unsafe { libmimalloc_sys::mi_collect(true) }
}

fn page_bytes() -> u64 {
    // SAFETY: takes no pointers.
    unsafe { libc::sysconf(libc::_SC_PAGESIZE) as u64 }
}

/// What the kernel holds for TCP sockets, of all processes in this network namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpMemory {
    /// Now, in bytes.
    pub used_bytes: u64,
    /// The last number of `net.ipv4.tcp_mem`, in bytes: beyond it what arrives is dropped.
    pub max_bytes: u64,
}

/// What the kernel holds for TCP sockets, of the host whose `/proc` is below `root`.
pub fn tcp_memory_below(root: &Path) -> Option<TcpMemory> {
    let sockstat = fs::read_to_string(root.join("proc/net/sockstat")).ok()?;
    let tcp = sockstat.lines().find_map(|line| line.strip_prefix("TCP:"))?;
    let mut words = tcp.split_whitespace();
    words.find(|word| *word == "mem")?;
    let used_pages: u64 = words.next()?.parse().ok()?;
    let tcp_mem = fs::read_to_string(root.join("proc/sys/net/ipv4/tcp_mem")).ok()?;
    let max_pages: u64 = tcp_mem.split_whitespace().nth(2)?.parse().ok()?;
    let bytes = |pages: u64| pages.saturating_mul(page_bytes());
    Some(TcpMemory { used_bytes: bytes(used_pages), max_bytes: bytes(max_pages) })
}

/// A line of `/proc/meminfo` below `root`, such as `MemAvailable:`, in bytes.
pub fn meminfo_bytes(root: &Path, key: &str) -> Option<u64> {
    let meminfo = fs::read_to_string(root.join("proc/meminfo")).ok()?;
    let rest = meminfo.lines().find_map(|line| line.strip_prefix(key))?;
    Some(rest.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024)
}

/// A folder of one cgroup that bounds this process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CgroupFolder {
    /// The directory of its files.
    pub path: PathBuf,
    /// Whether they are those of version 2.
    pub is_v2: bool,
}

/// Our cgroup and all above it, innermost first, of either version, as far as they have `controller`
/// and can be seen from here. `root` is `/` but for tests.
pub fn cgroup_folders(root: &Path, controller: &str) -> Vec<CgroupFolder> {
    let cgroups = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let top = root.join("sys/fs/cgroup");
    let mut found = Vec::new();
    for line in cgroups.lines() {
        // hierarchy-ID:controller-list:cgroup-path (cgroups(7)); version 2 lists no controllers.
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        let is_v2 = controllers.is_empty();
        let base = match is_v2 {
            // Next to version 1 it has a folder of its own.
            true if top.join("unified").is_dir() => top.join("unified"),
            true => top.clone(),
            false if controllers.split(',').any(|name| name == controller) => top.join(controller),
            false => continue,
        };
        let ours = base.join(path.trim_start_matches('/'));
        let levels = ours.ancestors().take_while(|level| level.starts_with(&base));
        found.extend(levels.map(|level| CgroupFolder { path: level.to_owned(), is_v2 }));
    }
    found
}

/// A file that holds one number, such as those under `/proc/sys`.
pub fn read_number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// Sets a ring up, as every shard will, sends one request through it and takes it down again: a
/// sandbox may allow the one and forbid the other, and monoio would spin on that in silence.
pub fn probe_io_uring() -> io::Result<()> {
    let nop = io_uring::opcode::Nop::new().build();
    let round_trip = || -> io::Result<()> {
        let mut ring = io_uring::IoUring::new(8)?;
        // SAFETY: a NOP points to nothing.
        unsafe { ring.submission().push(&nop) }.expect("an empty queue has room");
        ring.submit_and_wait(1)?;
        match ring.completion().next().map(|completion| completion.result()) {
            Some(0) => Ok(()),
            Some(error) => Err(io::Error::from_raw_os_error(-error)),
            None => Err(io::Error::other("a request was taken and never completed")),
        }
    };
    round_trip().map_err(|error| io::Error::new(error.kind(), io_uring_advice(&error)))
}

/// What a failed `io_uring_setup` or `io_uring_enter` most likely means, for the person at 3 a.m.
pub fn io_uring_advice(error: &io::Error) -> String {
    let (name, cause) = match error.raw_os_error() {
        Some(libc::EPERM) => {
            ("EPERM", "kernel.io_uring_disabled=2 or the container's seccomp profile")
        }
        Some(libc::ENOSYS) => (
            "ENOSYS",
            "a kernel before 5.1 or without CONFIG_IO_URING, or the container's seccomp profile",
        ),
        Some(libc::ENOMEM) => ("ENOMEM", "the limit on locked memory (ulimit -l) is too low"),
        Some(libc::EMFILE | libc::ENFILE) => {
            ("EMFILE", "the limit on open files (ulimit -n) is too low")
        }
        Some(libc::EINVAL) => {
            ("EINVAL", "a kernel before 5.11, or a sandbox that emulates io_uring")
        }
        _ => return format!("io_uring is not available ({error}). See tuning/README.md"),
    };
    format!("io_uring is not available ({name}). Likely cause: {cause}. See tuning/README.md")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_pins_itself_where_it_may_run() {
        let cores = available_cores().unwrap();
        let last = *cores.last().unwrap();
        let pinned = std::thread::spawn(move || {
            pin_to_core(last).unwrap();
            available_cores().unwrap()
        });
        assert_eq!(pinned.join().unwrap(), [last]);
        assert_eq!(available_cores().unwrap(), cores, "only that thread");
        assert!(pin_to_core(100_000).is_err());
    }

    #[test]
    fn what_a_thread_with_its_own_table_opens_nobody_else_sees() {
        use std::os::fd::AsRawFd;
        let fd = std::thread::spawn(|| {
            unshare_files().unwrap();
            let file = fs::File::open("/proc/self/status").unwrap();
            // Far above what the other tests of this process have open.
            // SAFETY: a copy of a descriptor of ours; it ends with this thread's table.
            unsafe { libc::fcntl(file.as_raw_fd(), libc::F_DUPFD, 900) }
        });
        let fd = fd.join().unwrap();
        assert!(fd >= 900);
        // SAFETY: only asks; a descriptor that is not open is an error, not a fault.
        assert_eq!(unsafe { libc::fcntl(fd, libc::F_GETFD) }, -1);
    }

    #[test]
    fn the_soft_limit_on_files_rises_to_the_hard_one() {
        let raised = raise_nofile().unwrap();
        assert_eq!(raised.soft, raised.hard);
        assert_eq!(nofile().unwrap(), raised);
    }

    #[test]
    fn the_tightest_cgroup_counts() {
        let root = std::env::temp_dir().join(format!("campanile-cgroup-{}", std::process::id()));
        let write = |path: &str, text: &str| {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let limit = || memory_bytes_below(&root).unwrap();
        write("proc/meminfo", "MemTotal:        2048 kB\nMemAvailable:    1024 kB\n");
        assert_eq!(limit(), 2 << 20, "no cgroup at all");
        write("sys/fs/cgroup/outer/inner/memory.max", "max\n");
        write("sys/fs/cgroup/outer/memory.max", "1048576\n");
        write("sys/fs/cgroup/memory/v1/memory.limit_in_bytes", "524288\n");
        write("proc/self/cgroup", "0::/outer/inner\n");
        assert_eq!(limit(), 1_048_576, "the group above ours");
        write("proc/self/cgroup", "0::/\n");
        assert_eq!(limit(), 2 << 20);
        write("proc/self/cgroup", "3:cpu,memory:/v1\n2:pids:/\n0::/outer/inner\n");
        assert_eq!(limit(), 524_288, "both versions");
        fs::create_dir_all(root.join("sys/fs/cgroup/unified")).unwrap();
        let folders = cgroup_folders(&root, "cpu");
        assert_eq!(folders.iter().filter(|folder| folder.is_v2).count(), 3);
        assert!(folders[2].path.ends_with("unified/outer/inner"), "{folders:?}");
        assert_eq!(meminfo_bytes(&root, "MemAvailable:"), Some(1 << 20));
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn a_refused_ring_names_its_likely_cause() {
        let advice = io_uring_advice(&io::Error::from_raw_os_error(libc::EPERM));
        assert!(advice.contains("EPERM"), "{advice}");
        assert!(advice.contains("kernel.io_uring_disabled"), "{advice}");
        assert!(advice.contains("seccomp"), "{advice}");
    }
}
