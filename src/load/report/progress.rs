//! A line on the terminal that shows how far a run is.
//!
//! Invariant: nothing is written if standard error is not a terminal.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// The line. It is erased when this is dropped.
pub(crate) struct ProgressLine {
    shown: bool,
    terminal: bool,
    last: Instant,
}

impl ProgressLine {
    /// A line that is not shown yet.
    pub(crate) fn new() -> ProgressLine {
        let last = Instant::now();
        ProgressLine { shown: false, terminal: std::io::stderr().is_terminal(), last }
    }

    /// Rewrites the line, at most ten times a second.
    pub(crate) fn show(&mut self, text: impl FnOnce() -> String) {
        if !self.terminal || (self.shown && self.last.elapsed() < Duration::from_millis(100)) {
            return;
        }
        (self.shown, self.last) = (true, Instant::now());
        let mut stderr = std::io::stderr().lock();
        // Progress that cannot be written is not an error.
        let _ = write!(stderr, "\r\x1b[K{}", text());
        let _ = stderr.flush();
    }
}

impl Drop for ProgressLine {
    fn drop(&mut self) {
        if self.shown {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}
