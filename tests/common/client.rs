//! A small blocking WebSocket client, written from RFC 6455 without a look at `src/ws`.
//!
//! It can be impolite: raw bytes, wrong frames, silence. It answers pings, so that it stays alive.
#![allow(dead_code)] // each test binary uses its part

use super::http::{self, Reply};
use serde_json::Value;
use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

pub const CONTINUATION: u8 = 0;
pub const TEXT: u8 = 1;
pub const BINARY: u8 = 2;
pub const CLOSE: u8 = 8;
pub const PING: u8 = 9;
pub const PONG: u8 = 10;

/// FIN.
pub const FIN: u8 = 0x80;

const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];
/// The example of RFC 6455 §1.3.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// A frame as it came.
#[derive(Debug, PartialEq, Eq)]
pub struct Frame {
    /// FIN, reserved bits, opcode.
    pub first: u8,
    pub payload: Vec<u8>,
}

impl Frame {
    pub fn opcode(&self) -> u8 {
        self.first & 0x0f
    }
}

pub struct Client {
    pub stream: TcpStream,
    inbox: Vec<u8>,
    read: usize,
    /// What came while something else was waited for.
    aside: VecDeque<Value>,
    /// The head of the 101 answer.
    pub head: String,
}

/// The head of a proper request for a WebSocket.
pub fn request_head(addr: SocketAddr, path: &str, headers: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: {addr}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Version: 13\r\n{headers}\r\n"
    )
}

/// A masked frame. `first`: FIN, reserved bits, opcode.
pub fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = header(first, payload.len() as u64);
    out[1] |= 0x80;
    out.extend_from_slice(&MASK);
    out.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    out
}

/// First byte and length, without a mask.
pub fn header(first: u8, bytes: u64) -> Vec<u8> {
    let mut out = vec![first];
    match bytes {
        0..=125 => out.push(bytes as u8),
        126..=65535 => {
            out.push(126);
            out.extend_from_slice(&(bytes as u16).to_be_bytes());
        }
        _ => {
            out.push(127);
            out.extend_from_slice(&bytes.to_be_bytes());
        }
    }
    out
}

impl Client {
    /// Opens `path`, such as `/ws?room_id=a`.
    pub fn open(addr: SocketAddr, path: &str) -> Client {
        Client::try_open(addr, path, "")
            .unwrap_or_else(|reply| panic!("{path} was not opened: {reply:?}"))
    }

    /// The same with more headers (each with its line end); an answer that is no 101 is an error.
    pub fn try_open(addr: SocketAddr, path: &str, headers: &str) -> Result<Client, Reply> {
        Client::over(http::connect(addr), addr, path, headers)
    }

    /// The same over a connection that exists.
    pub fn over(
        mut stream: TcpStream,
        addr: SocketAddr,
        path: &str,
        headers: &str,
    ) -> Result<Client, Reply> {
        stream.write_all(request_head(addr, path, headers).as_bytes()).expect("it reads heads");
        let mut client = Client {
            stream,
            inbox: Vec::new(),
            read: 0,
            aside: VecDeque::new(),
            head: String::new(),
        };
        let head = client.read_head().unwrap_or_else(|| panic!("no answer to {path}"));
        if !head.starts_with("HTTP/1.1 101 ") {
            let mut rest = std::mem::take(&mut client.inbox);
            let _ = client.stream.read_to_end(&mut rest);
            return Err(Reply::parse(&[head.as_bytes(), &rest].concat()).expect("it has a head"));
        }
        let reply = Reply::parse(head.as_bytes()).expect("it has a head");
        assert_eq!(reply.header("Sec-WebSocket-Accept"), Some(ACCEPT));
        assert_eq!(reply.header("Sec-WebSocket-Extensions"), None);
        client.head = head;
        Ok(client)
    }

    /// Opens the native protocol and takes the welcome.
    pub fn join(addr: SocketAddr, rooms: &[&str]) -> Client {
        Client::greeted(addr, rooms, "").0
    }

    /// The same as a user; answers the welcome too.
    pub fn greeted(addr: SocketAddr, rooms: &[&str], token: &str) -> (Client, Value) {
        let mut path = "/ws?".to_owned();
        if !token.is_empty() {
            path += &format!("token={token}&");
        }
        rooms.iter().for_each(|room| path += &format!("room_id={room}&"));
        let mut client = Client::open(addr, &path);
        let welcome = client.hear();
        assert_eq!(welcome["type"], "welcome");
        for _ in rooms {
            client.hear_type("ok");
        }
        (client, welcome)
    }

    /// Sends a text message.
    pub fn say(&mut self, text: impl AsRef<str>) {
        self.send(FIN | TEXT, text.as_ref().as_bytes());
    }

    /// Sends a masked frame.
    pub fn send(&mut self, first: u8, payload: &[u8]) {
        self.send_raw(&frame(first, payload));
    }

    pub fn send_raw(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("the server reads");
    }

    /// The next message as the text it came in.
    pub fn hear_text(&mut self) -> String {
        let frame = self.next_data();
        assert_eq!(frame.first, FIN | TEXT, "{}", shown(&frame));
        String::from_utf8(frame.payload).expect("a text message is UTF-8")
    }

    /// The next message.
    pub fn hear(&mut self) -> Value {
        if let Some(value) = self.aside.pop_front() {
            return value;
        }
        self.hear_new()
    }

    /// The next message of this `type`. Others keep their turn.
    pub fn hear_type(&mut self, kind: &str) -> Value {
        if let Some(at) = self.aside.iter().position(|value| value["type"] == kind) {
            return self.aside.remove(at).expect("it was just found");
        }
        loop {
            let value = self.hear_new();
            if value["type"] == kind {
                return value;
            }
            self.aside.push_back(value);
        }
    }

    /// The payload of the next message somebody sent.
    pub fn hear_payload(&mut self) -> Value {
        self.hear_type("message")["payload"].take()
    }

    /// Asserts that nothing has come but what was heard. What the server sent before this was
    /// called, to this connection, comes before the answer to a ping.
    pub fn nothing_more(&mut self) {
        assert!(self.aside.is_empty(), "{:?}", self.aside);
        self.say(r#"{"type":"ping","id":"nothing-more"}"#);
        assert_eq!(self.hear_new(), serde_json::json!({"type":"pong","id":"nothing-more"}));
    }

    fn hear_new(&mut self) -> Value {
        let text = self.hear_text();
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    /// The next frame that is no ping; pings are answered.
    pub fn next_data(&mut self) -> Frame {
        loop {
            let frame = self.next_frame().expect("the connection has ended");
            if frame.opcode() != PING {
                return frame;
            }
            self.send(FIN | PONG, &frame.payload);
        }
    }

    /// The next frame, whatever it is; `None` when the server has closed the connection.
    pub fn next_frame(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = self.take_frame() {
                return Some(frame);
            }
            if !self.fill() {
                return None;
            }
        }
    }

    /// Code and reason of the close frame, which must come next but for messages; then the end of
    /// the connection must follow.
    pub fn closed_with(&mut self) -> (u16, String) {
        let (code, reason) = self.close_frame();
        assert_eq!(self.next_frame(), None, "nothing follows a close frame");
        (code, reason)
    }

    /// The same, but the connection stays: the server waits for our close frame.
    pub fn close_frame(&mut self) -> (u16, String) {
        loop {
            let frame = self.next_frame().expect("it ended without a close frame");
            if frame.opcode() == CLOSE {
                assert_eq!(frame.first, FIN | CLOSE);
                let (code, reason) = frame.payload.split_at_checked(2).unwrap_or((&[0, 0], &[]));
                let code = u16::from_be_bytes([code[0], code[1]]);
                return (code, String::from_utf8(reason.to_vec()).expect("UTF-8"));
            }
        }
    }

    /// The closing handshake, begun by us.
    pub fn close(mut self) {
        self.send(FIN | CLOSE, &1000u16.to_be_bytes());
        assert_eq!(self.closed_with().0, 1000);
    }

    fn take_frame(&mut self) -> Option<Frame> {
        let bytes = &self.inbox[self.read..];
        let (&first, &second) = (bytes.first()?, bytes.get(1)?);
        assert_eq!(second & 0x80, 0, "RFC 6455 §5.1: a server never masks");
        let (from, length) = match second {
            126 => (4, u64::from(u16::from_be_bytes(bytes.get(2..4)?.try_into().expect("2")))),
            127 => (10, u64::from_be_bytes(bytes.get(2..10)?.try_into().expect("8"))),
            short => (2, u64::from(short)),
        };
        let payload = bytes.get(from..from + length as usize)?.to_vec();
        self.read += from + payload.len();
        if self.read == self.inbox.len() {
            self.inbox.clear();
            self.read = 0;
        }
        Some(Frame { first, payload })
    }

    /// Reads on. `false`: there is no more.
    fn fill(&mut self) -> bool {
        if self.read > 1 << 20 {
            self.inbox.drain(..self.read);
            self.read = 0;
        }
        let mut bytes = [0; 65536];
        match self.stream.read(&mut bytes) {
            Ok(0) => false,
            Ok(n) => {
                self.inbox.extend_from_slice(&bytes[..n]);
                true
            }
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => false,
            Err(error) => panic!("waited in vain for a frame: {error}"),
        }
    }

    fn read_head(&mut self) -> Option<String> {
        loop {
            let end = self.inbox.windows(4).position(|four| four == b"\r\n\r\n");
            if let Some(end) = end {
                let head: Vec<u8> = self.inbox.drain(..end + 4).collect();
                return Some(String::from_utf8(head).expect("ASCII"));
            }
            if !self.fill() {
                return None;
            }
        }
    }
}

fn shown(frame: &Frame) -> String {
    format!("{:#x} {}", frame.first, String::from_utf8_lossy(&frame.payload))
}
