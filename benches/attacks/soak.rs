//! Many attacks at once for minutes, with a bound on the memory: whether the node lives, stays within
//! it, and whether an honest client loses anything without being notified.
//!
//! Half of the attackers have one address, each of the others one of its own. Loopback is exempt from
//! limits of addresses, so the memory and the rates of connections are all that there is.

use super::kinds::ATTACKS;
use super::report::BEYOND_MIB;
use super::server::Server;
use super::{Options, attackers, wire};
use serde_json::Value;
use std::collections::BTreeSet;
use std::error::Error;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// From one honest message to the next.
const INTERVAL: Duration = Duration::from_millis(20);
/// How long the last messages may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Attacks that want memory; from one address, and from many.
const OF_ONE: [&str; 5] = ["echoes", "histories", "many-rooms", "large-publishes", "fragments"];
const OF_MANY: [&str; 5] = ["fresh-rooms", "keys", "never-reads", "user-messages", "presences"];

/// What became of what an honest client has published.
#[derive(Default)]
struct Honest {
    stream: Option<TcpStream>,
    inbox: Vec<u8>,
    next: u64,
    waiting: BTreeSet<u64>,
    received: u64,
    /// Answered with an error, announced as lost, or cut off with the connection.
    notified: u64,
    connects: u64,
}

/// Attacks for so long, and prints one line. Fails where something does not hold.
pub(super) fn run(options: &Options) -> Result<(), Box<dyn Error>> {
    let bound_mib = options.bound_mib;
    let bound = (bound_mib << 20).to_string();
    let mut flags = vec!["--limits-memory-bytes-max".into(), bound.into()];
    flags.extend(options.server_flags.iter().cloned());
    let server = Server::start(&options.server, &flags, false)?;
    let mut all = Vec::new();
    for (names, many) in [(OF_ONE, false), (OF_MANY, true)] {
        for name in names {
            let attack = ATTACKS.iter().find(|attack| attack.name == name).expect("an attack");
            all.push(attackers::spawn(attack, server.address, options.length, many)?);
        }
    }
    let end = Instant::now() + options.length;
    let mut honest = Honest::default();
    let mut peak_mib = 0;
    while Instant::now() < end {
        honest.publish(server.address);
        honest.read();
        peak_mib = peak_mib.max(server.rss_mib());
        std::thread::sleep(INTERVAL);
    }
    all.iter_mut().for_each(|child| _ = child.wait());
    let patience = Instant::now() + PATIENCE;
    while !honest.waiting.is_empty() && Instant::now() < patience {
        honest.read();
        std::thread::sleep(INTERVAL);
    }
    let (alive, lost, sent) = (server.is_alive(), honest.waiting.len(), honest.next);
    let Honest { received, notified, connects, .. } = honest;
    println!(
        "{} s: alive {alive}; RSS at most {peak_mib} MiB of {bound_mib} MiB, {} MiB afterwards; an \
         honest client published {sent}, received {received}, was notified of {notified}, lost \
         {lost} silently, connected {connects} times",
        options.length.as_secs(),
        server.rss_mib(),
    );
    match alive && lost == 0 && peak_mib <= bound_mib + BEYOND_MIB && received > 0 {
        true => Ok(()),
        false => Err("it does not hold".into()),
    }
}

impl Honest {
    fn publish(&mut self, server: SocketAddr) {
        if self.stream.is_none() {
            self.inbox.clear();
            self.stream = join(server).ok();
            self.connects += u64::from(self.stream.is_some());
        }
        let Some(stream) = &mut self.stream else { return };
        let number = self.next;
        let json = format!(r#"{{"room_id":"honest","payload":{number},"id":{number}}}"#);
        let mut out = Vec::new();
        wire::text(json.as_bytes(), &mut out);
        match stream.write_all(&out) {
            Ok(()) => {
                self.next += 1;
                self.waiting.insert(number);
            }
            Err(_) => self.cut(),
        }
    }

    fn read(&mut self) {
        let mut chunk = [0; 65536];
        loop {
            let Some(stream) = &mut self.stream else { return };
            match stream.read(&mut chunk) {
                Ok(0) => self.cut(),
                Ok(len) => {
                    self.inbox.extend_from_slice(&chunk[..len]);
                    self.frames();
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(_) => self.cut(),
            }
        }
    }

    fn frames(&mut self) {
        while let Some((first, payload)) = next_frame(&mut self.inbox) {
            match first & 0x0f {
                8 => return self.cut(),
                9 => self.pong(&payload),
                _ => self.event(&serde_json::from_slice(&payload).unwrap_or(Value::Null)),
            }
        }
    }

    fn pong(&mut self, payload: &[u8]) {
        let mut out = Vec::new();
        wire::frame(0x8a, payload, &mut out);
        if let Some(stream) = &mut self.stream {
            let _ = stream.write_all(&out); // A connection that is gone is noticed by the next read.
        }
    }

    fn event(&mut self, event: &Value) {
        match event["type"].as_str() {
            Some("message") => {
                let is_own = event["payload"].as_u64().is_some_and(|it| self.waiting.remove(&it));
                self.received += u64::from(is_own);
            }
            Some("error") => {
                let is_own = event["id"].as_u64().is_some_and(|it| self.waiting.remove(&it));
                self.notified += u64::from(is_own);
                if event["code"] == "not_joined" || event["id"] == "join" {
                    self.cut(); // Its join was refused: it comes again.
                }
            }
            Some("lost") => self.give_up(),
            _ => {}
        }
    }

    /// The connection has ended: what has not come may be lost, and that is known.
    fn cut(&mut self) {
        self.stream = None;
        self.give_up();
    }

    fn give_up(&mut self) {
        self.notified += self.waiting.len() as u64;
        self.waiting.clear();
    }
}

fn join(server: SocketAddr) -> std::io::Result<TcpStream> {
    let mut stream = TcpStream::connect_timeout(&server, Duration::from_secs(1))?;
    stream.set_nodelay(true)?;
    let mut out = wire::handshake("/ws");
    wire::text(br#"{"type":"join","room_id":"honest","id":"join"}"#, &mut out);
    stream.write_all(&out)?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    // The head byte by byte: what follows is a frame.
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    if !head.starts_with(b"HTTP/1.1 101") {
        return Err(ErrorKind::ConnectionRefused.into());
    }
    stream.set_nonblocking(true)?;
    Ok(stream)
}

/// The first whole frame, which is taken out: its first byte and its payload (RFC 6455 §5.2).
fn next_frame(inbox: &mut Vec<u8>) -> Option<(u8, Vec<u8>)> {
    let (first, length) = (*inbox.first()?, *inbox.get(1)?);
    let (from, length) = match length {
        126 => (4, u64::from(u16::from_be_bytes(inbox.get(2..4)?.try_into().ok()?))),
        127 => (10, u64::from_be_bytes(inbox.get(2..10)?.try_into().ok()?)),
        short => (2, u64::from(short)),
    };
    let end = from + length as usize;
    let payload = inbox.get(from..end)?.to_vec();
    inbox.drain(..end);
    Some((first, payload))
}
