//! Standard output and standard error, best effort: a write that fails or blocks stops no thread.
//!
//! `println!` and `eprintln!` panic when a write fails, and a panic ends the node; a write to a
//! full pipe blocks. So nothing in this crate uses them (`tests/tidy.rs`). One thread writes
//! standard error, from a bounded queue ([`log_queue`]): the log, the errors of a start, the
//! message of a panic. [`flush`] waits until it has written everything, for [`FLUSH_MAX`] at most.
//!
//! tracing-appender's `non_blocking` does this too. It bounds lines and not bytes, does not count
//! lines that its writer fails to write, and its guard prints with `println!` when the writer is
//! stuck.
//!
//! Invariant: nothing here panics, and only [`print()`], the answer of a command, waits for a reader.

use crate::link::log_queue::{LogQueue, LogQueueEnd, log_queue};
use crate::metrics::LogCounters;
use std::io::{self, ErrorKind, Write};
use std::process::ExitCode;
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

/// How long the end of the process waits for standard error.
const FLUSH_MAX: Duration = Duration::from_secs(1);

static LOG: OnceLock<LogQueue> = OnceLock::new();

fn log() -> &'static LogQueue {
    LOG.get_or_init(|| {
        let (queue, end) = log_queue();
        // Where no thread can be started, lines are counted as lost.
        let _ = thread::Builder::new().name("log".into()).spawn(move || write_log(end));
        queue
    })
}

fn write_log(lines: LogQueueEnd) {
    let mut stderr = LineWriter { sink: io::stderr(), is_torn: false };
    lines.run(
        |line| stderr.write(line),
        |lines| tracing::warn!(lines, "log lines were dropped: they could not be written"),
    );
}

/// Queues a line of the log for standard error. Never blocks; a line that does not fit is counted.
pub fn log_line(line: &[u8]) {
    log().push(line);
}

/// Writes a message to standard error after all that was logged, and flushes.
pub fn print_error(text: &str) {
    if log().push_last(text.as_bytes()) {
        log().flush(FLUSH_MAX);
    } else {
        let _ = io::stderr().write_all(text.as_bytes());
    }
}

/// Waits until everything that was logged is written, for [`FLUSH_MAX`] at most.
pub fn flush() {
    if let Some(log) = LOG.get() {
        log.flush(FLUSH_MAX);
    }
}

/// The numbers of the log, for `/metrics`.
pub fn log_counters() -> LogCounters {
    let numbers = LOG.get().map(LogQueue::numbers).unwrap_or_default();
    LogCounters {
        queue_bytes: numbers.waiting_bytes,
        dropped_full: numbers.dropped_full,
        dropped_failed: numbers.dropped_failed,
    }
}

/// Prints what a command was asked for; answers the exit code. A reader who has had enough
/// (`… | head`) is no error; a disk that is full is one.
pub fn print(text: &str) -> ExitCode {
    let mut out = io::stdout().lock();
    match writeln!(out, "{}", text.trim_end()).and_then(|()| out.flush()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.kind() == ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            print_error(&format!("campanile: cannot write to standard output: {error}.\n"));
            ExitCode::FAILURE
        }
    }
}

/// Prints a line to standard output without waiting for its reader.
pub fn announce(line: String) {
    let announcing = move || {
        let mut out = io::stdout();
        let _ = writeln!(out, "{line}").and_then(|()| out.flush());
    };
    // A thread that waits for a reader ends with the process.
    let _ = thread::Builder::new().name("announce".into()).spawn(announcing);
}

/// Writes whole lines: a line that a full disk has cut short is ended before the next one.
struct LineWriter<W> {
    sink: W,
    is_torn: bool,
}

impl<W: Write> LineWriter<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        if self.is_torn {
            self.sink.write_all(b"\n")?;
            self.is_torn = false;
        }
        let mut rest = line;
        while !rest.is_empty() {
            match self.sink.write(rest) {
                Ok(0) => return Err(self.torn(line, rest, ErrorKind::WriteZero.into())),
                Ok(count) => rest = &rest[count..],
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(self.torn(line, rest, error)),
            }
        }
        Ok(())
    }

    fn torn(&mut self, line: &[u8], rest: &[u8], error: io::Error) -> io::Error {
        self.is_torn = rest.len() < line.len();
        error
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A disk with so much room.
    struct Disk {
        written: Vec<u8>,
        room: usize,
    }

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let count = bytes.len().min(self.room);
            if count == 0 {
                return Err(ErrorKind::StorageFull.into());
            }
            self.room -= count;
            self.written.extend_from_slice(&bytes[..count]);
            Ok(count)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_line_that_was_cut_short_ends_before_the_next_one_begins() {
        let sink = Disk { written: Vec::new(), room: 10 };
        let mut writer = LineWriter { sink, is_torn: false };
        assert!(writer.write(b"whole\n").is_ok());
        assert!(writer.write(b"cut short\n").is_err());
        assert!(writer.write(b"no room\n").is_err());
        writer.sink.room = 100;
        assert!(writer.write(b"again\n").is_ok());
        assert!(writer.write(b"whole\n").is_ok());
        assert_eq!(String::from_utf8_lossy(&writer.sink.written), "whole\ncut \nagain\nwhole\n");
    }
}
