//! Starts the log. How a line is written and what becomes of one that cannot be: [`terminal`].

use crate::config::{Config, LogFormat};
use crate::terminal;
use std::io::{self, Write};

/// Starts the log, on stderr, best effort ([`terminal`]). Of libraries only warnings and errors are
/// logged, whatever our own level is: the debug lines of an HTTP library are of no use to an
/// operator.
pub(super) fn log(config: &Config) {
    let ours = &config.log_level;
    let theirs = if ours == "error" { "error" } else { "warn" };
    let filter = tracing_subscriber::EnvFilter::new(format!("{theirs},campanile={ours}"));
    // It reports a line that it cannot write with `eprintln!`, which panics.
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(|| LogWriter)
        .log_internal_errors(false);
    match config.log_format {
        LogFormat::Text => builder.with_ansi(false).init(),
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
}

/// One event of the log, which is written as a whole.
struct LogWriter;

impl Write for LogWriter {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        terminal::log_line(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
