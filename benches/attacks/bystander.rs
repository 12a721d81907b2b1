//! An honest client: publishes to a room of its own at a fixed rate, and measures when each message
//! comes back.
//!
//! A message's time begins when it was due, not when it was sent: a client that waits for one answer
//! before it asks again would not notice what it waits for.

use super::wire;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// From one message to the next.
const INTERVAL: Duration = Duration::from_millis(4);
/// How long a message may take before it counts as lost.
const PATIENCE: Duration = Duration::from_secs(2);

pub(super) struct Bystander {
    stream: TcpStream,
    began: Instant,
}

/// How long messages took, by the second in which each was due.
#[derive(Default)]
pub(super) struct Latencies {
    /// In microseconds, each second sorted.
    seconds: Vec<Vec<u64>>,
    pub(super) lost: usize,
}

impl Latencies {
    /// Adds those of another measurement.
    pub(super) fn add(&mut self, other: Latencies) {
        self.seconds.extend(other.seconds);
        self.lost += other.lost;
    }

    /// The p99 of a second that is in the middle, if seconds are sorted by it; in microseconds,
    /// infinite where nothing came. A host that stands still for a moment spoils one second of many.
    pub(super) fn p99_us(&self) -> f64 {
        let mut all: Vec<f64> = self.seconds.iter().map(|second| p99(second)).collect();
        all.sort_unstable_by(f64::total_cmp);
        all.get(all.len() / 2).copied().unwrap_or(f64::INFINITY)
    }

    /// The p99 of all messages together, the moments at which the host stood still included.
    pub(super) fn p99_of_all_us(&self) -> f64 {
        let mut all = self.seconds.concat();
        all.sort_unstable();
        p99(&all)
    }
}

/// Of sorted microseconds.
fn p99(sorted: &[u64]) -> f64 {
    let at = (sorted.len() as f64 * 0.99).ceil() as usize;
    sorted.get(at.max(1) - 1).map_or(f64::INFINITY, |us| *us as f64)
}

/// Connects and joins.
pub(super) fn join(server: SocketAddr) -> io::Result<Bystander> {
    let mut stream = TcpStream::connect(server)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut out = wire::handshake("/ws");
    wire::text(br#"{"type":"join","room_id":"bystander","id":1}"#, &mut out);
    stream.write_all(&out)?;
    let mut received = Vec::new();
    let mut chunk = [0; 4096];
    while !contains(&received, br#""type":"ok""#) {
        match stream.read(&mut chunk)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            len => received.extend_from_slice(&chunk[..len]),
        }
    }
    Ok(Bystander { stream, began: Instant::now() })
}

impl Bystander {
    /// Publishes for so long.
    pub(super) fn measure(&self, length: Duration) -> Latencies {
        let start = Instant::now();
        let count = (length.as_nanos() / INTERVAL.as_nanos()) as u32;
        let due = |n: u32| start + INTERVAL * n;
        let received = std::thread::scope(|scope| {
            let receiver = scope.spawn(|| self.receive(count as usize));
            for n in 0..count {
                std::thread::sleep(due(n).saturating_duration_since(Instant::now()));
                let due_us = due(n).duration_since(self.began).as_micros();
                let mut out = Vec::new();
                let json = format!(r#"{{"room_id":"bystander","payload":"due:{due_us:012}"}}"#);
                wire::text(json.as_bytes(), &mut out);
                if (&self.stream).write_all(&out).is_err() {
                    break;
                }
            }
            receiver.join().expect("it returns what it has")
        });
        let start_us = start.duration_since(self.began).as_micros() as u64;
        let mut seconds = vec![Vec::new(); (length.as_millis() as usize).div_ceil(1000)];
        for (due_us, took_us) in &received {
            seconds[(due_us.saturating_sub(start_us) / 1_000_000) as usize].push(*took_us);
        }
        seconds.iter_mut().for_each(|second| second.sort_unstable());
        Latencies { lost: count as usize - received.len(), seconds }
    }

    /// Until so many messages have come, or none comes any more: when each was due, and how long it took.
    fn receive(&self, count: usize) -> Vec<(u64, u64)> {
        const MARK: &[u8] = b"due:";
        let (mut received, mut rest, mut chunk) = (Vec::new(), Vec::new(), [0; 65536]);
        while received.len() < count {
            let Ok(len @ 1..) = (&self.stream).read(&mut chunk) else { break };
            let now = self.began.elapsed().as_micros() as u64;
            rest.extend_from_slice(&chunk[..len]);
            while let Some(at) = find(&rest, MARK) {
                let Some(digits) = rest.get(at + MARK.len()..at + MARK.len() + 12) else { break };
                let due = std::str::from_utf8(digits).ok().and_then(|text| text.parse().ok());
                let due: u64 = due.expect("it comes back as it was published");
                received.push((due, now.saturating_sub(due)));
                rest.drain(..at + MARK.len() + 12);
            }
        }
        received
    }
}

fn contains(bytes: &[u8], what: &[u8]) -> bool {
    find(bytes, what).is_some()
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}
