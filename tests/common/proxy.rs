//! A wire that can be bad: TCP between a node of ours and a server, which a test blackholes, slows
//! down, cuts or refuses.
//!
//! Bounded: so many connections at a time, two threads each, which look at the mode every few
//! milliseconds. Nothing that was sent is altered or left out: a blackhole holds bytes back, as a
//! network does that lost its way, and they arrive when it is over unless the connection has ended.
#![allow(dead_code)] // each test binary uses its part

use socket2::SockRef;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering::SeqCst};
use std::time::Duration;

const CONNECTIONS_MAX: u32 = 256;
const GLANCE: Duration = Duration::from_millis(5);

/// What becomes of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Wire {
    Good,
    /// Nothing goes to the server.
    DeadUp,
    /// Nothing comes from the server.
    DeadDown,
    Dead,
    /// Nothing more goes to the server from who has subscribed to something.
    DeadUpOfSubscribers,
    /// New connections are reset at once.
    Refusing,
}

const WIRES: [Wire; 6] = [
    Wire::Good,
    Wire::DeadUp,
    Wire::DeadDown,
    Wire::Dead,
    Wire::DeadUpOfSubscribers,
    Wire::Refusing,
];

struct Shared {
    socket_key: AtomicU8,
    delay_ms: AtomicU64,
    /// Connections of an earlier generation are reset.
    generation: AtomicU32,
    connections: AtomicU32,
    stop: AtomicBool,
}

impl Shared {
    fn socket_key(&self) -> Wire {
        WIRES[usize::from(self.socket_key.load(SeqCst))]
    }
}

pub struct Proxy {
    pub port: u16,
    shared: Arc<Shared>,
}

impl Proxy {
    /// Listens on a free port for `port`.
    pub fn start(upstream: u16) -> Proxy {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, super::redis::free_port()));
        let listener = listener.expect("a free port");
        let port = listener.local_addr().expect("it is bound").port();
        listener.set_nonblocking(true).expect("a live socket");
        let shared = Arc::new(Shared {
            socket_key: AtomicU8::new(Wire::Good as u8),
            delay_ms: AtomicU64::new(0),
            generation: AtomicU32::new(0),
            connections: AtomicU32::new(0),
            stop: AtomicBool::new(false),
        });
        let at_work = shared.clone();
        std::thread::spawn(move || accept(&listener, upstream, &at_work));
        Proxy { port, shared }
    }

    pub fn set(&self, socket_key: Wire) {
        self.shared.socket_key.store(socket_key as u8, SeqCst);
    }

    /// Everything takes so much longer, each way. 0: as usual.
    pub fn delay(&self, ms: u64) {
        self.shared.delay_ms.store(ms, SeqCst);
    }

    /// Resets every connection there is.
    pub fn reset(&self) {
        self.shared.generation.fetch_add(1, SeqCst);
    }

    /// As usual again.
    pub fn heal(&self) {
        self.set(Wire::Good);
        self.delay(0);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.stop.store(true, SeqCst);
    }
}

fn accept(listener: &TcpListener, upstream: u16, shared: &Arc<Shared>) {
    while !shared.stop.load(SeqCst) {
        let Ok((client, _)) = listener.accept() else {
            std::thread::sleep(GLANCE);
            continue;
        };
        let is_full = shared.connections.load(SeqCst) >= CONNECTIONS_MAX;
        let server = match is_full || shared.socket_key() == Wire::Refusing {
            true => None,
            false => TcpStream::connect((Ipv4Addr::LOCALHOST, upstream)).ok(),
        };
        let Some(server) = server else {
            cut(&client);
            continue;
        };
        for stream in [&client, &server] {
            stream.set_nonblocking(false).expect("a live socket");
            stream.set_nodelay(true).expect("a live socket");
            stream.set_read_timeout(Some(GLANCE)).expect("not zero");
            stream.set_write_timeout(Some(GLANCE)).expect("not zero");
        }
        let copies = (client.try_clone(), server.try_clone());
        let (Ok(client_too), Ok(server_too)) = copies else { continue };
        shared.connections.fetch_add(1, SeqCst);
        let mut up = Pump {
            is_up: true,
            subscribes: false,
            generation: shared.generation.load(SeqCst),
            shared: shared.clone(),
        };
        let mut down = Pump { is_up: false, ..up.clone() };
        std::thread::spawn(move || {
            up.run(client, server);
            up.shared.connections.fetch_sub(1, SeqCst);
        });
        std::thread::spawn(move || down.run(server_too, client_too));
    }
}

/// Resets a connection: whoever reads it hears of it at once.
fn cut(stream: &TcpStream) {
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

/// One direction of one connection.
#[derive(Clone)]
struct Pump {
    is_up: bool,
    /// A subscription went this way.
    subscribes: bool,
    generation: u32,
    shared: Arc<Shared>,
}

impl Pump {
    fn run(&mut self, mut from: TcpStream, mut to: TcpStream) {
        let mut bytes = vec![0; 65536];
        loop {
            if !self.may_go_on() {
                // Without a shutdown before: that would be a polite end.
                cut(&from);
                cut(&to);
                return;
            }
            if self.is_held() {
                std::thread::sleep(GLANCE);
                continue;
            }
            let read = match from.read(&mut bytes) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) if is_patience(error.kind()) => continue,
                Err(_) => break,
            };
            let verb = b"SUBSCRIBE\r\n";
            self.subscribes |= bytes[..read].windows(verb.len()).any(|word| word == verb);
            let delay_ms = self.shared.delay_ms.load(SeqCst);
            std::thread::sleep(Duration::from_millis(delay_ms));
            if !self.hand_over(&mut to, &bytes[..read]) {
                break;
            }
        }
        if !self.may_go_on() {
            return;
        }
        let _ = to.shutdown(std::net::Shutdown::Both);
        let _ = from.shutdown(std::net::Shutdown::Both);
    }

    /// What was read is handed over whole, however long that takes. `false`: it cannot be.
    fn hand_over(&self, to: &mut TcpStream, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() {
            if !self.may_go_on() {
                cut(to);
                return false;
            }
            // The wire died while this was on it.
            if self.is_held() {
                std::thread::sleep(GLANCE);
                continue;
            }
            match to.write(bytes) {
                Ok(0) => return false,
                Ok(written) => bytes = &bytes[written..],
                Err(error) if is_patience(error.kind()) => {}
                Err(_) => return false,
            }
        }
        true
    }

    fn may_go_on(&self) -> bool {
        !self.shared.stop.load(SeqCst) && self.generation == self.shared.generation.load(SeqCst)
    }

    fn is_held(&self) -> bool {
        match self.shared.socket_key() {
            Wire::Good | Wire::Refusing => false,
            Wire::DeadUp => self.is_up,
            Wire::DeadUpOfSubscribers => self.is_up && self.subscribes,
            Wire::DeadDown => !self.is_up,
            Wire::Dead => true,
        }
    }
}

fn is_patience(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}
