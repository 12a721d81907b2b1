//! A host that forbids io_uring, in part or whole, ends the start with the likely cause.

use std::process::Command;

const IO_URING_SETUP: i32 = 425;
const IO_URING_ENTER: i32 = 426;
const EPERM: i32 = 1;
const ENOSYS: i32 = 38;

/// What `campanile serve` says where a system call fails, and its exit code.
fn start_without(call: i32, errno: i32) -> (Option<i32>, String) {
    let forbid = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients/forbid.py");
    let output = Command::new("python3")
        .args([forbid, &call.to_string(), &errno.to_string(), env!("CARGO_BIN_EXE_campanile")])
        .args(["serve", "--listen", "127.0.0.1:0", "--ops-listen", "127.0.0.1:0"])
        .output()
        .expect("python3 is there: tests/run.sh installs it");
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn a_host_without_io_uring_ends_the_start_with_the_likely_cause() {
    for (call, errno, name) in [
        (IO_URING_SETUP, EPERM, "EPERM"),
        (IO_URING_SETUP, ENOSYS, "ENOSYS"),
        (IO_URING_ENTER, EPERM, "EPERM"),
    ] {
        let (code, said) = start_without(call, errno);
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains(&format!("io_uring is not available ({name})")), "{said}");
        assert!(said.contains("seccomp") && said.contains("tuning/README.md"), "{said}");
    }
}
