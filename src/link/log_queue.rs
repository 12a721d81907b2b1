//! Log lines on their way from the threads that log to the one that writes them.
//!
//! Standard error may be a full disk, a pipe whose reader has gone, or a pipe that nobody reads. A
//! thread that serves clients must neither fail nor block on it, so it queues its line. The queue
//! is bounded in bytes. A line that does not fit is dropped, and so is a line that the writer
//! cannot write; both are counted, and the writer logs their number once it can write again.
//!
//! Invariant: [`LogQueue::push`] never blocks, and never fails.

use crossbeam_channel::{Receiver, Sender, unbounded};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

/// Bytes of lines that may wait, the queue's own included. About 4,000 lines of 200 bytes, which is
/// more than a burst at a working sink leaves waiting.
pub const QUEUE_BYTES_MAX: usize = 1024 * 1024;

/// What a line takes beside its text: its place in the channel and its allocation.
const LINE_BYTES: usize = 64;

/// The producers' end, shared by all threads that log.
#[derive(Debug)]
pub struct LogQueue {
    to_writer: Sender<Entry>,
    counted: Arc<Counted>,
}

/// The writer's end.
#[derive(Debug)]
pub struct LogQueueEnd {
    from_threads: Receiver<Entry>,
    counted: Arc<Counted>,
}

#[derive(Debug)]
enum Entry {
    Line(Box<[u8]>),
    /// Dropped when everything before it has been written or given up.
    Flush(#[allow(dead_code, reason = "its drop is the answer")] Sender<()>),
}

/// Written by every thread that logs and by the writer. Lines are too rare for false sharing to
/// matter.
#[derive(Debug, Default)]
struct Counted {
    waiting_bytes: AtomicUsize,
    dropped_full: AtomicU64,
    dropped_failed: AtomicU64,
}

/// What has become of the lines so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogNumbers {
    /// Bytes of lines that are not written yet.
    pub waiting_bytes: u64,
    /// Lines dropped because too many waited.
    pub dropped_full: u64,
    /// Lines dropped because they could not be written.
    pub dropped_failed: u64,
}

/// A queue with its two ends.
pub fn log_queue() -> (LogQueue, LogQueueEnd) {
    // The bytes are the bound; a channel with a number of places would take the memory of all of them.
    let (to_writer, from_threads) = unbounded();
    let counted = Arc::<Counted>::default();
    (LogQueue { to_writer, counted: counted.clone() }, LogQueueEnd { from_threads, counted })
}

impl LogQueue {
    /// Queues a line, or drops and counts it.
    pub fn push(&self, line: &[u8]) {
        let bytes = line.len() + LINE_BYTES;
        let waiting = self.counted.waiting_bytes.fetch_add(bytes, Ordering::Relaxed);
        if waiting + bytes > QUEUE_BYTES_MAX {
            self.counted.waiting_bytes.fetch_sub(bytes, Ordering::Relaxed);
            self.counted.dropped_full.fetch_add(1, Ordering::Relaxed);
        } else if self.to_writer.send(Entry::Line(line.into())).is_err() {
            // There is no writer: its thread could not be started.
            self.counted.waiting_bytes.fetch_sub(bytes, Ordering::Relaxed);
            self.counted.dropped_failed.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Queues the last message of a process, beyond the bound. `false`: there is no writer.
    pub fn push_last(&self, text: &[u8]) -> bool {
        self.counted.waiting_bytes.fetch_add(text.len() + LINE_BYTES, Ordering::Relaxed);
        self.to_writer.send(Entry::Line(text.into())).is_ok()
    }

    /// Waits until everything queued before has been written or dropped, at most this long.
    pub fn flush(&self, at_most: Duration) {
        let (done, is_done) = crossbeam_channel::bounded(0);
        if self.to_writer.send(Entry::Flush(done)).is_ok() {
            // Nothing is ever sent: the channel is disconnected, or time runs out.
            let _ = is_done.recv_timeout(at_most);
        }
    }

    /// What has become of the lines so far.
    pub fn numbers(&self) -> LogNumbers {
        self.counted.read()
    }
}

impl Counted {
    fn read(&self) -> LogNumbers {
        LogNumbers {
            waiting_bytes: self.waiting_bytes.load(Ordering::Relaxed) as u64,
            dropped_full: self.dropped_full.load(Ordering::Relaxed),
            dropped_failed: self.dropped_failed.load(Ordering::Relaxed),
        }
    }
}

impl LogQueueEnd {
    /// Writes lines until the other end is dropped. Once lines can be written again and none waits,
    /// calls `say_lost` with the number of lines that were dropped since its last call; what it
    /// logs is queued as every other line.
    pub fn run(
        self,
        mut write: impl FnMut(&[u8]) -> io::Result<()>,
        mut say_lost: impl FnMut(u64),
    ) {
        let (mut reported, mut can_write) = (0, true);
        while let Ok(entry) = self.from_threads.recv() {
            // A `Flush` is dropped at the end of this turn, and its sender with it.
            if let Entry::Line(line) = &entry {
                can_write = write(line).is_ok();
                self.counted.dropped_failed.fetch_add(u64::from(!can_write), Ordering::Relaxed);
                self.counted.waiting_bytes.fetch_sub(line.len() + LINE_BYTES, Ordering::Relaxed);
            }
            let LogNumbers { dropped_full, dropped_failed, .. } = self.counted.read();
            let lost = dropped_full + dropped_failed;
            if lost > reported && can_write && self.from_threads.is_empty() {
                say_lost(lost - reported);
                reported = lost;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    const LONG: Duration = Duration::from_secs(20);

    type Written = io::Result<()>;

    /// A sink that writes what it is let write, one permission a line.
    fn gated() -> (Sender<Written>, Receiver<String>, impl FnMut(&[u8]) -> Written) {
        let (permit, permits) = unbounded::<Written>();
        let (wrote, written) = unbounded();
        let write = move |line: &[u8]| {
            permits.recv().unwrap_or(Ok(()))?;
            let _ = wrote.send(String::from_utf8_lossy(line).into_owned());
            Ok(())
        };
        (permit, written, write)
    }

    #[test]
    fn a_sink_that_is_stuck_holds_up_nobody_and_costs_lines_that_are_counted() {
        let (queue, end) = log_queue();
        let (permit, written, write) = gated();
        let (lost, is_lost) = unbounded();
        let writer = std::thread::spawn(move || end.run(write, |count| lost.send(count).unwrap()));
        let line = [b'x'; 1000];
        let fit = QUEUE_BYTES_MAX / (line.len() + LINE_BYTES);
        (0..fit + 7).for_each(|_| queue.push(&line));
        let waiting_bytes = (fit * (line.len() + LINE_BYTES)) as u64;
        let dropped = LogNumbers { waiting_bytes, dropped_full: 7, dropped_failed: 0 };
        assert_eq!(queue.numbers(), dropped);
        let began = Instant::now();
        queue.flush(Duration::from_millis(1));
        assert!(began.elapsed() < LONG, "the end of the process does not wait for it");

        // It moves again: everything that fitted is written, and what was lost is reported once.
        drop(permit);
        assert_eq!(is_lost.recv_timeout(LONG), Ok(7));
        queue.flush(LONG);
        assert_eq!(written.len(), fit);
        assert_eq!(queue.numbers(), LogNumbers { waiting_bytes: 0, ..dropped });
        drop(queue);
        writer.join().unwrap();
        assert!(is_lost.is_empty());
    }

    #[test]
    fn a_line_that_cannot_be_written_is_counted_and_the_next_one_is_tried() {
        let (queue, end) = log_queue();
        let (permit, written, write) = gated();
        let (lost, is_lost) = unbounded();
        let writer = std::thread::spawn(move || end.run(write, |count| lost.send(count).unwrap()));
        for result in [Err(io::ErrorKind::StorageFull.into()), Ok(()), Ok(())] {
            permit.send(result).unwrap();
        }
        ["a", "b"].iter().for_each(|line| queue.push(line.as_bytes()));
        assert_eq!(is_lost.recv_timeout(LONG), Ok(1));
        assert!(queue.push_last(b"c"));
        queue.flush(LONG);
        assert_eq!(written.try_iter().collect::<Vec<_>>(), ["b", "c"]);
        let numbers = LogNumbers { waiting_bytes: 0, dropped_full: 0, dropped_failed: 1 };
        assert_eq!(queue.numbers(), numbers);
        drop(queue);
        writer.join().unwrap();
        assert!(is_lost.is_empty(), "what was reported is not reported again");
    }

    #[test]
    fn without_a_writer_lines_are_counted_and_nobody_waits() {
        let (queue, end) = log_queue();
        drop(end);
        queue.push(b"lost");
        queue.flush(LONG);
        let numbers = LogNumbers { waiting_bytes: 0, dropped_full: 0, dropped_failed: 1 };
        assert_eq!(queue.numbers(), numbers);
        assert!(!queue.push_last(b"written to stderr"));
    }
}
