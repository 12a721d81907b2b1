//! `campanile doctor` and `tuning/`, as they are run: the binary on this host, the scripts on hosts
//! that are laid out in a folder. Nothing here changes the host.

use campanile::plan::ByteSize;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn doctor(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_campanile"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("CAMPANILE_")) {
        command.env_remove(name);
    }
    command.arg("doctor").args(args).output().unwrap()
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr[..]].concat()).into_owned()
}

/// The line about `what`, and whether a fix follows it.
fn finding<'a>(told: &'a str, what: &str) -> Option<&'a str> {
    told.lines().find(|line| line.contains(&format!("  {what}: wanted")))
}

/// The hard limit on open files, as everybody's own `/proc` says it.
fn hard_limit() -> u64 {
    let limits = fs::read_to_string("/proc/self/limits").unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    line.split_whitespace().nth(4).unwrap().parse().unwrap()
}

#[test]
fn the_exit_code_says_what_the_lines_say() {
    for connections in ["1", "100000", "100000000"] {
        let output = doctor(&["--connections", connections]);
        let told = text(&output);
        let is_red = told.contains("  MISSING  ");
        assert_eq!(output.status.code(), Some(i32::from(is_red)), "{told}");
        assert_eq!(told.contains("Nothing is missing."), !is_red, "{told}");
        for what in ["open files (ulimit -Hn)", "fs.file-max", "io_uring", "net.core.somaxconn"] {
            assert!(finding(&told, what).is_some(), "{what}: {told}");
        }
        let fixes = told.lines().filter(|line| line.contains("           -> ")).count();
        let lacks = told.lines().filter(|line| !line.contains("  good     "));
        assert_eq!(lacks.filter(|line| line.contains(": wanted ")).count(), fixes, "{told}");
    }
    assert_eq!(
        doctor(&["--connections", "100000000"]).status.code(),
        Some(1),
        "more than any machine has memory for"
    );
}

#[test]
fn the_limit_on_open_files_is_this_processes_own_and_counts_by_table() {
    let hard = hard_limit();
    // With four shards, a little more than one table has room for and far less than four have.
    let connections = hard.min(50_000_000).to_string();
    let shared = doctor(&["--connections", &connections, "--shards", "4"]);
    let told = text(&shared);
    let line = finding(&told, "open files (ulimit -Hn)").unwrap();
    assert!(line.contains(&format!("found {hard} ")), "{line}");
    if hard < 50_000_000 {
        assert!(line.contains("MISSING"), "{line}");
        assert_eq!(shared.status.code(), Some(1));
        assert!(told.contains("--private-fd-tables true"), "{told}");
    }
    let own =
        doctor(&["--connections", &connections, "--shards", "4", "--private-fd-tables", "true"]);
    let told = text(&own);
    let line = finding(&told, "open files (ulimit -Hn)").unwrap();
    assert!(line.contains("good") && line.contains("for each shard"), "{line}");
}

#[test]
fn memory_is_told_in_the_same_words_as_at_start() {
    let told = text(&doctor(&["--connections", "1"]));
    let wanted = format!("at least {}", ByteSize(128 * 1024 * 1024 + 5 * 1024));
    assert!(finding(&told, "memory").unwrap().contains(&wanted), "{told}");
}

/// A host in a folder, for the scripts; gone with its test.
struct Host(PathBuf);

impl Host {
    fn new(name: &str, files: &[(&str, &str)]) -> Host {
        let folder = format!("campanile-tuning-{}-{name}", std::process::id());
        let host = Host(std::env::temp_dir().join(folder));
        for (path, text) in files {
            let path = host.0.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, format!("{text}\n")).unwrap();
        }
        host
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.0.join(path)).unwrap().trim().to_owned()
    }

    fn undo(&self) -> PathBuf {
        self.0.join("undo")
    }

    /// Runs a script of `tuning/` on this host.
    fn run(&self, script: &str, args: &[&str]) -> Output {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tuning").join(script);
        let mut command = Command::new("bash");
        command.arg(script).args(args);
        command.arg("--root").arg(&self.0).arg("--undo-file").arg(self.undo());
        command.output().unwrap()
    }

    /// The same, and it must end well; what it said.
    fn must(&self, script: &str, args: &[&str]) -> String {
        let output = self.run(script, args);
        assert_eq!(output.status.code(), Some(0), "{args:?}: {}", text(&output));
        text(&output)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// What a Linux of 24 GiB begins with, and two things of which it has more than is asked.
const UNTUNED: &[(&str, &str)] = &[
    ("proc/meminfo", "MemTotal:       24684088 kB"),
    ("proc/sys/net/core/somaxconn", "4096"),
    ("proc/sys/net/ipv4/tcp_max_syn_backlog", "2048"),
    ("proc/sys/fs/nr_open", "1073741816"),
    ("proc/sys/fs/file-max", "9223372036854775807"),
    ("proc/sys/net/ipv4/tcp_mem", "287898\t383867\t575796"),
    ("proc/sys/net/ipv4/tcp_rmem", "4096\t131072\t33554432"),
    ("proc/sys/net/ipv4/tcp_wmem", "1024\t16384\t4194304"),
    ("proc/sys/net/ipv4/ip_local_port_range", "32768\t60999"),
];

#[test]
fn what_would_be_applied_is_shown_and_nothing_is_changed() {
    let host = Host::new("show", UNTUNED);
    let told = host.must("apply.sh", &[]);
    assert!(told.contains("would be  net.core.somaxconn: 4096 -> 65535"), "{told}");
    assert!(told.contains("Nothing was changed"), "{told}");
    assert!(told.contains("missing   net.netfilter.nf_conntrack_max"), "{told}");
    for (path, before) in UNTUNED {
        assert_eq!(host.read(path), *before, "{path}");
    }
    assert!(!host.undo().exists());
}

#[test]
fn applying_only_raises_can_be_repeated_and_is_undone_to_the_last_number() {
    let host = Host::new("apply", UNTUNED);
    let told = host.must("apply.sh", &["--apply"]);
    assert!(told.contains(host.undo().to_str().unwrap()), "it says where the undo file is: {told}");
    for (path, after) in [
        ("proc/sys/net/core/somaxconn", "65535"),
        ("proc/sys/fs/nr_open", "1073741816"),
        ("proc/sys/fs/file-max", "9223372036854775807"),
        // An eighth, a quarter and a half of 24684088 KiB, in pages.
        ("proc/sys/net/ipv4/tcp_mem", "771377 1542755 3085511"),
        ("proc/sys/net/ipv4/tcp_rmem", "4096\t131072\t33554432"),
        ("proc/sys/net/ipv4/tcp_wmem", "4096 16384 4194304"),
        ("proc/sys/net/ipv4/ip_local_port_range", "10240 65535"),
    ] {
        assert_eq!(host.read(path), after, "{path}");
    }
    let noted = fs::read_to_string(host.undo()).unwrap();
    let told = host.must("apply.sh", &["--apply"]);
    assert!(told.contains("Nothing to change."), "{told}");
    assert_eq!(fs::read_to_string(host.undo()).unwrap(), noted, "still as it was before the first");

    host.must("apply.sh", &["--undo"]);
    for (path, before) in UNTUNED {
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(words(&host.read(path)), words(before), "{path}");
    }
    assert!(!host.undo().exists());
    let told = host.must("apply.sh", &["--undo"]);
    assert!(told.contains("Nothing to undo"), "{told}");
}

#[test]
fn after_applying_the_doctor_misses_none_of_what_apply_sets() {
    // The doctor's fixes that begin with sysctl name keys; each of them must be in sysctl.conf.
    let conf = Path::new(env!("CARGO_MANIFEST_DIR")).join("tuning/sysctl.conf");
    let conf = fs::read_to_string(conf).unwrap();
    let judge = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/doctor/checks.rs");
    let judge = fs::read_to_string(judge).unwrap();
    let mut keys: Vec<&str> = judge
        .split("sysctl -w ")
        .skip(1)
        .filter_map(|rest| rest.split_once('='))
        .map(|(key, _)| key)
        .filter(|key| key.contains('.') && !key.starts_with("kernel."))
        .collect();
    keys.extend(["net.ipv4.tcp_rmem", "net.ipv4.tcp_wmem"]);
    assert!(keys.len() >= 7, "{keys:?}");
    for key in keys {
        assert!(conf.lines().any(|line| line.starts_with(&format!("{key} = "))), "{key}");
    }
}

#[test]
fn every_line_of_the_settings_has_its_reason_and_how_its_lack_shows() {
    let conf = Path::new(env!("CARGO_MANIFEST_DIR")).join("tuning/sysctl.conf");
    let conf = fs::read_to_string(conf).unwrap();
    let mut settings = 0;
    for paragraph in conf.split("\n\n").skip(1) {
        let (reason, lines): (Vec<_>, Vec<_>) =
            paragraph.lines().partition(|line| line.starts_with('#'));
        assert!(reason.iter().any(|line| line.starts_with("# Missing: ")), "{paragraph}");
        assert!(reason.len() > 1, "no reason: {paragraph}");
        settings += lines.len();
    }
    assert!(settings >= 9, "{settings}");
}

fn service() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tuning/campanile.service");
    fs::read_to_string(path).unwrap()
}

/// What a unit says of a setting. Of one that stands there twice systemd takes the last.
fn setting<'a>(unit: &'a str, key: &str) -> Option<&'a str> {
    let lines = unit.lines().filter(|line| !line.starts_with('#'));
    lines.filter_map(|line| line.split_once('=')).rfind(|(found, _)| *found == key).map(|(_, v)| v)
}

/// What in a unit would make a bad minute worse.
fn complaints(unit: &str) -> Vec<&'static str> {
    let number = |key: &str, suffix: &str| -> Option<u64> {
        setting(unit, key)?.trim_end_matches(suffix).parse().ok()
    };
    let config = campanile::config::Config::default();
    // And a second for the last line of the log.
    let ending_ms = config.drain_ms + 2 * config.limits.close_timeout_ms + 1000;
    let (high, max) = (number("MemoryHigh", "%"), number("MemoryMax", "%"));
    let oom_score = setting(unit, "OOMScoreAdjust").map_or(Ok(0), str::parse::<i32>);
    let checks = [
        (
            "it is given up after some failed starts",
            number("StartLimitIntervalSec", "s") == Some(0),
        ),
        (
            "it starts again too often or too late",
            (1..=10).contains(&number("RestartSec", "s").unwrap_or(0)),
        ),
        ("a crash is its end", setting(unit, "Restart") == Some("on-failure")),
        (
            "a wrong configuration is tried again and again",
            number("RestartPreventExitStatus", "") == Some(2),
        ),
        ("a drain is cut short", number("TimeoutStopSec", "s") > Some(ending_ms / 1000)),
        ("others are killed in its place", oom_score.is_ok_and(|score| score >= 0)),
        ("nothing bounds its memory", high < max && max < Some(100) && high.is_some()),
    ];
    checks.into_iter().filter(|(_, is_good)| !is_good).map(|(complaint, _)| complaint).collect()
}

#[test]
fn the_unit_outlives_a_bad_minute_and_costs_no_other_service_its_memory() {
    let unit = service();
    assert_eq!(complaints(&unit), [""; 0]);
    let mut wrong = Command::new(env!("CARGO_BIN_EXE_campanile"));
    wrong.args(["serve", "--shards", "x"]);
    assert_eq!(wrong.output().unwrap().status.code(), Some(2), "RestartPreventExitStatus");
    // Each of them can complain.
    for bad in [
        "StartLimitIntervalSec=60",
        "RestartSec=0",
        "Restart=no",
        "RestartPreventExitStatus=1",
        "TimeoutStopSec=20",
        "OOMScoreAdjust=-500",
        "MemoryMax=infinity",
        "MemoryHigh=95%",
    ] {
        assert_eq!(complaints(&format!("{unit}\n{bad}\n")).len(), 1, "{bad}");
    }
    let old = unit.replace("StartLimitIntervalSec=0\n", "").replace("MemoryHigh=80%\n", "");
    assert_eq!(complaints(&old).len(), 2, "what is not written is not good");
}

/// A card with two queues, a virtio one's names, four cores.
const CARD: &[(&str, &str)] = &[
    ("sys/devices/system/cpu/online", "0-3"),
    ("sys/class/net/eth0/device/msi_irqs/40", "msix"),
    ("sys/class/net/eth0/device/msi_irqs/41", "msix"),
    ("sys/class/net/eth0/device/msi_irqs/42", "msix"),
    ("sys/class/net/eth0/device/msi_irqs/43", "msix"),
    ("sys/class/net/eth0/device/msi_irqs/44", "msix"),
    (
        "proc/interrupts",
        "     CPU0\n 40: 0 PCI 0-edge virtio2-config\n 41: 1 PCI 1-edge virtio2-input.0\n \
         42: 1 PCI 2-edge virtio2-output.0\n 43: 1 PCI 3-edge virtio2-input.1\n \
         44: 1 PCI 4-edge virtio2-output.1",
    ),
    ("proc/irq/40/smp_affinity", "f"),
    ("proc/irq/41/smp_affinity", "f"),
    ("proc/irq/42/smp_affinity", "f"),
    ("proc/irq/43/smp_affinity", "f"),
    ("proc/irq/44/smp_affinity", "2"),
    ("proc/sys/net/core/rps_sock_flow_entries", "0"),
    ("sys/class/net/eth0/queues/rx-0/rps_cpus", "0"),
    ("sys/class/net/eth0/queues/rx-0/rps_flow_cnt", "0"),
    ("sys/class/net/eth0/queues/rx-1/rps_cpus", "0"),
    ("sys/class/net/eth0/queues/rx-1/rps_flow_cnt", "0"),
    ("sys/class/net/eth0/queues/tx-0/xps_cpus", "0"),
    ("sys/class/net/eth0/queues/tx-1/xps_cpus", "0"),
];

#[test]
fn a_cards_work_goes_to_the_cores_of_shards_and_back() {
    let host = Host::new("card", CARD);
    let told = host.must("nic.sh", &["eth0"]);
    assert!(told.contains("undo: echo f > /proc/irq/41/smp_affinity"), "{told}");
    assert!(!told.contains("virtio2-config"), "it carries no packets: {told}");
    for (path, before) in CARD.iter().filter(|(path, _)| !path.contains("interrupts")) {
        assert_eq!(host.read(path), *before, "{path}");
    }

    host.must("nic.sh", &["eth0", "--apply"]);
    for (path, after) in [
        ("proc/irq/40/smp_affinity", "f"),
        ("proc/irq/41/smp_affinity", "00000001"),
        ("proc/irq/42/smp_affinity", "00000001"),
        ("proc/irq/43/smp_affinity", "00000002"),
        ("proc/irq/44/smp_affinity", "2"),
        ("sys/class/net/eth0/queues/rx-1/rps_cpus", "0000000f"),
        ("sys/class/net/eth0/queues/rx-1/rps_flow_cnt", "16384"),
        ("sys/class/net/eth0/queues/tx-0/xps_cpus", "00000005"),
        ("sys/class/net/eth0/queues/tx-1/xps_cpus", "0000000a"),
    ] {
        assert_eq!(host.read(path), after, "{path}");
    }
    let told = host.must("nic.sh", &["eth0", "--apply"]);
    assert!(told.contains("Nothing to change."), "{told}");

    host.must("nic.sh", &["eth0", "--undo"]);
    for (path, before) in CARD.iter().filter(|(path, _)| !path.contains("interrupts")) {
        assert_eq!(host.read(path), *before, "{path}");
    }
}

#[test]
fn with_a_queue_for_each_shard_packets_are_not_passed_on() {
    let host = Host::new("enough", CARD);
    host.must("nic.sh", &["eth0", "--cores", "2,35", "--apply"]);
    assert_eq!(host.read("proc/irq/41/smp_affinity"), "00000004");
    assert_eq!(host.read("proc/irq/43/smp_affinity"), "00000008,00000000");
    assert_eq!(host.read("sys/class/net/eth0/queues/rx-0/rps_cpus"), "0");
    assert_eq!(host.read("proc/sys/net/core/rps_sock_flow_entries"), "0");
}

#[test]
fn a_wrong_word_is_refused_before_anything_is_touched() {
    let host = Host::new("wrong", CARD);
    for (script, args, code) in [
        ("nic.sh", vec!["eth7"], 1),
        ("nic.sh", vec!["eth0", "--cores", "many"], 1),
        ("nic.sh", vec!["eth0", "--fly"], 2),
        ("nic.sh", vec!["../eth0"], 2),
        ("apply.sh", vec!["--fly"], 2),
    ] {
        let output = host.run(script, &args);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {}", text(&output));
    }
    for (path, before) in CARD.iter().filter(|(path, _)| !path.contains("interrupts")) {
        assert_eq!(host.read(path), *before, "{path}");
    }
}
