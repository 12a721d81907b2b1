//! A panic ends the process, whatever standard error is: after its message, where that can be written.
//!
//! This binary runs itself: in the child the test below installs the real hook and panics.

use std::fs::File;
use std::io::{PipeReader, PipeWriter, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// Names the child.
const MARK: &str = "CAMPANILE_TEST_PANICS";
const SIGABRT: i32 = 6;

#[test]
fn the_child() {
    if std::env::var_os(MARK).is_some() {
        campanile::node::threads::abort_on_panic();
        panic!("the bell has fallen");
    }
}

fn child(stderr: impl Into<Stdio>) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["the_child", "--exact", "--nocapture", "--test-threads", "1"])
        .env(MARK, "")
        .stdout(Stdio::null())
        .stderr(stderr)
        .spawn()
        .unwrap()
}

fn ended(mut child: Child) -> ExitStatus {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        if Instant::now() > deadline {
            let _ = child.kill();
            panic!("a panic does not end the process");
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn a_panic_is_told_and_ends_the_process() {
    let child = child(Stdio::piped());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.signal(), Some(SIGABRT));
    let said = String::from_utf8_lossy(&output.stderr);
    for part in
        ["thread 'the_child'", "panicked at tests/panics.rs:", "the bell has fallen", "a bug"]
    {
        assert!(said.contains(part), "{part}: {said}");
    }
}

/// A pipe in which nothing fits any more.
fn full() -> (PipeReader, PipeWriter) {
    let (reader, writer) = std::io::pipe().unwrap();
    let mut filler = writer.try_clone().unwrap();
    std::thread::spawn(move || while filler.write_all(&[b'.'; 4096]).is_ok() {});
    (reader, writer)
}

#[test]
fn a_panic_that_cannot_be_told_ends_the_process_all_the_same() {
    let disk = File::options().write(true).open("/dev/full").unwrap();
    assert_eq!(ended(child(disk)).signal(), Some(SIGABRT));

    let (reader, gone) = std::io::pipe().unwrap();
    drop(reader);
    assert_eq!(ended(child(gone)).signal(), Some(SIGABRT));

    let (mut reader, unread) = full();
    assert_eq!(ended(child(unread)).signal(), Some(SIGABRT));
    assert_eq!(reader.read(&mut [0; 1]).unwrap(), 1, "it was full, not closed");
}
