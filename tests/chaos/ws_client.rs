//! A WebSocket to a node that may die at any moment: everything answers `Disconnected` instead of
//! failing the test, and nothing is waited for without a limit.

use crate::client::{self, CLOSE, FIN, PING, PONG, TEXT};
use serde_json::Value;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

const CONNECT: Duration = Duration::from_secs(2);
const WRITE: Duration = Duration::from_secs(5);
const HEAD_BYTES_MAX: usize = 8192;

/// The connection has ended, or never began.
#[derive(Debug)]
pub struct Disconnected;

impl From<std::io::Error> for Disconnected {
    fn from(_: std::io::Error) -> Disconnected {
        Disconnected
    }
}

pub struct WsClient {
    stream: TcpStream,
    inbox: Vec<u8>,
    read: usize,
    patience: Duration,
}

impl WsClient {
    pub fn open(port: u16, path: &str) -> Result<WsClient, Disconnected> {
        let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let mut stream = TcpStream::connect_timeout(&addr, CONNECT)?;
        stream.set_nodelay(true)?;
        stream.set_write_timeout(Some(WRITE))?;
        stream.set_read_timeout(Some(WRITE))?;
        stream.write_all(client::request_head(addr, path, "").as_bytes())?;
        let mut line = WsClient { stream, inbox: Vec::new(), read: 0, patience: WRITE };
        let end = loop {
            if let Some(end) = line.inbox.windows(4).position(|four| four == b"\r\n\r\n") {
                break end + 4;
            }
            if !line.fill()? || line.inbox.len() > HEAD_BYTES_MAX {
                return Err(Disconnected);
            }
        };
        if !line.inbox.starts_with(b"HTTP/1.1 101 ") {
            return Err(Disconnected);
        }
        line.inbox.drain(..end);
        Ok(line)
    }

    pub fn send(&mut self, text: &str) -> Result<(), Disconnected> {
        Ok(self.stream.write_all(&client::frame(FIN | TEXT, text.as_bytes()))?)
    }

    /// The next message; `None` when none comes in time.
    pub fn receive(&mut self, patience: Duration) -> Result<Option<Value>, Disconnected> {
        let until = Instant::now() + patience;
        loop {
            while let Some((opcode, payload)) = self.take_frame() {
                match opcode {
                    TEXT => return Ok(serde_json::from_slice(&payload).ok()),
                    PING => self.stream.write_all(&client::frame(FIN | PONG, &payload))?,
                    CLOSE => return Err(Disconnected),
                    _ => {}
                }
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            // Not below a millisecond, and the same again is no system call.
            let left = Duration::from_millis(left.as_millis().max(1) as u64);
            if left != self.patience {
                self.stream.set_read_timeout(Some(left))?;
                self.patience = left;
            }
            self.fill()?;
        }
    }

    /// The next frame, if all of it is here.
    fn take_frame(&mut self) -> Option<(u8, Vec<u8>)> {
        let bytes = &self.inbox[self.read..];
        let (from, length) = match *bytes.get(1)? {
            126 => (4, u64::from(u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?))),
            127 => (10, u64::from_be_bytes(bytes.get(2..10)?.try_into().ok()?)),
            short => (2, u64::from(short)),
        };
        let payload = bytes.get(from..from + length as usize)?.to_vec();
        let opcode = bytes[0] & 0x0f;
        self.read += from + payload.len();
        if self.read == self.inbox.len() {
            self.inbox.clear();
            self.read = 0;
        }
        Some((opcode, payload))
    }

    /// Reads on. `false`: nothing came in time.
    fn fill(&mut self) -> Result<bool, Disconnected> {
        if self.read > 1 << 18 {
            self.inbox.drain(..self.read);
            self.read = 0;
        }
        let mut bytes = [0; 16384];
        match self.stream.read(&mut bytes) {
            Ok(0) => Err(Disconnected),
            Ok(n) => {
                self.inbox.extend_from_slice(&bytes[..n]);
                Ok(true)
            }
            Err(error) => match error.kind() {
                ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted => Ok(false),
                _ => Err(Disconnected),
            },
        }
    }
}
