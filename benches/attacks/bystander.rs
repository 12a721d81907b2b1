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

/// Sorted, in microseconds.
pub(super) struct Latencies {
    us: Vec<u64>,
    pub(super) lost: usize,
}

impl Latencies {
    /// In microseconds; infinite where nothing came.
    pub(super) fn quantile_us(&self, share: f64) -> f64 {
        let at = (self.us.len() as f64 * share).ceil() as usize;
        self.us.get(at.max(1) - 1).map_or(f64::INFINITY, |us| *us as f64)
    }
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
        let us = std::thread::scope(|scope| {
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
        Latencies { lost: count as usize - us.len(), us }
    }

    /// Until so many messages have come, or none comes any more.
    fn receive(&self, count: usize) -> Vec<u64> {
        const MARK: &[u8] = b"due:";
        let (mut us, mut rest, mut chunk) = (Vec::new(), Vec::new(), [0; 65536]);
        while us.len() < count {
            let Ok(len @ 1..) = (&self.stream).read(&mut chunk) else { break };
            let now = self.began.elapsed().as_micros() as u64;
            rest.extend_from_slice(&chunk[..len]);
            while let Some(at) = find(&rest, MARK) {
                let Some(digits) = rest.get(at + MARK.len()..at + MARK.len() + 12) else { break };
                let due = std::str::from_utf8(digits).ok().and_then(|text| text.parse().ok());
                us.push(now.saturating_sub(due.unwrap_or(0)));
                rest.drain(..at + MARK.len() + 12);
            }
        }
        us.sort_unstable();
        us
    }
}

fn contains(bytes: &[u8], what: &[u8]) -> bool {
    find(bytes, what).is_some()
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}
