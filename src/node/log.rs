//! Starts the log. How a line is written and what becomes of one that cannot be: [`terminal`].

use crate::config::{Config, LogFormat};
use crate::terminal;
use std::io::{self, Write};
use tracing_subscriber::EnvFilter;

/// Starts the log, on stderr, best effort ([`terminal`]). Of libraries only warnings and errors are
/// logged, whatever our own level is: the debug lines of an HTTP library are of no use to an
/// operator.
pub(super) fn log(config: &Config) -> LogLevel {
    // It reports a line that it cannot write with `eprintln!`, which panics.
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter(&config.log_level))
        .with_writer(|| LogWriter)
        .log_internal_errors(false);
    // A level that is off costs no line its lock: what is off is known at each place that logs.
    match config.log_format {
        LogFormat::Text => {
            let builder = builder.with_ansi(false).with_filter_reloading();
            let handle = builder.reload_handle();
            builder.init();
            LogLevel(Box::new(move |filter| _ = handle.reload(filter)))
        }
        LogFormat::Json => {
            let builder = builder.json().flatten_event(true).with_filter_reloading();
            let handle = builder.reload_handle();
            builder.init();
            LogLevel(Box::new(move |filter| _ = handle.reload(filter)))
        }
    }
}

fn filter(ours: &str) -> EnvFilter {
    let theirs = if ours == "error" { "error" } else { "warn" };
    EnvFilter::new(format!("{theirs},campanile={ours}"))
}

/// The level of the log, which may change while lines are written.
pub struct LogLevel(Box<dyn Fn(EnvFilter) + Send>);

impl LogLevel {
    /// One that belongs to no log.
    #[cfg(test)]
    pub(super) fn none() -> LogLevel {
        LogLevel(Box::new(|_| {}))
    }

    /// From now on lines of this level and above are logged.
    pub fn set(&self, level: &str) {
        (self.0)(filter(level));
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
