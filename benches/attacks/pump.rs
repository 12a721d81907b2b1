//! Attackers: connections that send as fast as the server takes it, all from one thread.

use super::kinds::Attack;
use super::wire;
use socket2::{Domain, SockRef, Socket, Type};
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// Bytes that one connection sends before the next has its turn.
const TURN_BYTES: usize = 32 * 1024;
/// The pause after a turn in which no connection could do anything.
const PAUSE: Duration = Duration::from_micros(500);
const CONNECT_MAX: Duration = Duration::from_millis(200);

/// What an attacker knows when it makes up its next bytes.
pub(super) struct Attacker {
    /// Its number, from 0.
    pub(super) index: usize,
    /// How often it was asked before, over all of its connections.
    pub(super) step: u64,
}

#[derive(Default)]
pub(super) struct Totals {
    pub(super) connects: u64,
    pub(super) refused: u64,
    pub(super) closed: u64,
    pub(super) bytes: u64,
}

struct Conn {
    attacker: Attacker,
    stream: Option<TcpStream>,
    out: Vec<u8>,
    at: usize,
}

/// Attacks until `end`, from one address or from `many`.
pub(super) fn run(attack: &Attack, server: SocketAddr, end: Instant, many: bool) -> Totals {
    let attackers = (0..attack.connections).map(|index| Attacker { index, step: 0 });
    let mut conns: Vec<Conn> =
        attackers.map(|attacker| Conn { attacker, stream: None, out: Vec::new(), at: 0 }).collect();
    let (mut totals, mut scratch) = (Totals::default(), vec![0; 64 * 1024]);
    while Instant::now() < end {
        let mut has_moved = false;
        for conn in &mut conns {
            has_moved |= conn.turn(attack, (server, many), &mut totals, &mut scratch);
        }
        if !has_moved {
            std::thread::sleep(PAUSE);
        }
    }
    totals
}

impl Conn {
    /// Whether anything could be done.
    fn turn(
        &mut self,
        attack: &Attack,
        (server, many): (SocketAddr, bool),
        totals: &mut Totals,
        scratch: &mut [u8],
    ) -> bool {
        if self.stream.is_none() {
            let from = many.then_some(self.attacker.index);
            let Ok(stream) = connect(server, from) else {
                totals.refused += 1;
                return false;
            };
            totals.connects += 1;
            self.stream = Some(stream);
            self.out = attack.path.map_or_else(Vec::new, wire::handshake);
            (attack.begin)(&self.attacker, &mut self.out);
            self.at = 0;
        }
        let sent = self.send(attack, totals);
        let read = (attack.reads)(&self.attacker).then(|| self.read(scratch));
        match (sent, read) {
            (Some(bytes), None) => bytes > 0,
            (Some(bytes), Some(Some(more))) => bytes > 0 || more > 0,
            // Closed by the server, or by the attack.
            (None, _) | (_, Some(None)) => {
                totals.closed += 1;
                self.stream = None;
                true
            }
        }
    }

    /// Sends what there is and what the attack adds. `None`: the connection has ended.
    fn send(&mut self, attack: &Attack, totals: &mut Totals) -> Option<usize> {
        let mut stream = self.stream.as_ref()?;
        let mut sent = 0;
        while sent < TURN_BYTES {
            if self.at == self.out.len() {
                self.out.clear();
                self.at = 0;
                let goes_on = (attack.more)(&self.attacker, &mut self.out);
                self.attacker.step += 1;
                if !goes_on {
                    return None;
                }
                if self.out.is_empty() {
                    break;
                }
            }
            match stream.write(&self.out[self.at..]) {
                Ok(0) => return None,
                Ok(bytes) => {
                    (self.at, sent) = (self.at + bytes, sent + bytes);
                    totals.bytes += bytes as u64;
                    if attack.is_dripping {
                        break;
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => return None,
            }
        }
        Some(sent)
    }

    /// Reads and drops. `None`: the connection has ended.
    fn read(&mut self, scratch: &mut [u8]) -> Option<usize> {
        match self.stream.as_ref()?.read(scratch) {
            Ok(0) => None,
            Ok(bytes) => Some(bytes),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Some(0),
            Err(_) => None,
        }
    }
}

/// It ends with a reset: a thousand a second would otherwise use up the ports of the attackers' host.
fn connect(server: SocketAddr, from: Option<usize>) -> std::io::Result<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    if let Some(number) = from {
        let address =
            SocketAddr::from(([127, 0, 1 + (number / 250) as u8, 1 + (number % 250) as u8], 0));
        socket.bind(&address.into())?;
    }
    socket.connect_timeout(&server.into(), CONNECT_MAX)?;
    let stream = TcpStream::from(socket);
    SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
    stream.set_nodelay(true)?;
    stream.set_nonblocking(true)?;
    Ok(stream)
}
