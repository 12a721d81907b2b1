//! A client as naive as can be: its own frame writer and reader, byte by byte, nothing of `src/ws`.
//!
//! It is the judge of what a server may write: whatever is not a whole, unmasked, final frame with
//! the shortest length, or comes after a close frame, fails the test that let it happen.

use serde_json::Value;

/// What a handshake is answered with here. No HTTP is spoken in this building.
pub const HEAD: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: here\r\n\r\n";

/// One whole frame from the server.
#[derive(Clone, Debug, PartialEq)]
pub enum Frame {
    Text(Value),
    Binary(Vec<u8>),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    Close(u16, String),
}

/// The reading half of a client.
#[derive(Default)]
pub struct Peer {
    unread: Vec<u8>,
    head_read: bool,
    pub closed: bool,
    pub is_echo: bool,
}

/// A frame as a client writes it, masked.
pub fn client_frame(fin: bool, opcode: u8, payload: &[u8], key: [u8; 4]) -> Vec<u8> {
    let mut frame = vec![if fin { 0x80 } else { 0 } | opcode];
    push_len(&mut frame, 0x80, payload.len());
    frame.extend_from_slice(&key);
    frame.extend(payload.iter().enumerate().map(|(at, byte)| byte ^ key[at % 4]));
    frame
}

/// A text frame as a server writes it.
pub fn server_frame(text: &str) -> Vec<u8> {
    let mut frame = vec![0x81];
    push_len(&mut frame, 0, text.len());
    frame.extend_from_slice(text.as_bytes());
    frame
}

fn push_len(frame: &mut Vec<u8>, mask: u8, len: usize) {
    if len < 126 {
        frame.push(mask | len as u8);
    } else if len < 65536 {
        frame.push(mask | 126);
        frame.extend_from_slice(&(len as u16).to_be_bytes());
    } else {
        frame.push(mask | 127);
        frame.extend_from_slice(&(len as u64).to_be_bytes());
    }
}

impl Peer {
    /// Takes bytes off the wire; answers the frames that became whole.
    pub fn hear(&mut self, bytes: &[u8]) -> Vec<Frame> {
        self.unread.extend_from_slice(bytes);
        let mut heard = Vec::new();
        if !self.head_read {
            let seen = self.unread.len().min(HEAD.len());
            assert_eq!(self.unread[..seen], HEAD[..seen], "the handshake's answer comes first");
            if seen < HEAD.len() {
                return heard;
            }
            self.unread.drain(..HEAD.len());
            self.head_read = true;
        }
        while let Some((frame, used)) = self.parse() {
            assert!(!self.closed, "{frame:?} came after a close frame");
            self.closed = matches!(frame, Frame::Close(..));
            self.unread.drain(..used);
            heard.push(frame);
        }
        heard
    }

    /// Whether it waits in the middle of something.
    pub fn is_torn(&self) -> bool {
        !self.unread.is_empty()
    }

    fn parse(&self) -> Option<(Frame, usize)> {
        let (&first, &second) = (self.unread.first()?, self.unread.get(1)?);
        assert_eq!(first & 0xF0, 0x80, "final, no reserved bits: {:?}", self.unread);
        assert_eq!(second & 0x80, 0, "a server does not mask");
        let (head, len) = match second {
            126 => (4, self.number(2, 2)?),
            127 => (10, self.number(2, 8)?),
            len => (2, usize::from(len)),
        };
        assert_eq!(
            head,
            if len < 126 {
                2
            } else if len < 65536 {
                4
            } else {
                10
            }
        );
        let payload = self.unread.get(head..head + len)?;
        Some((self.frame(first & 15, payload), head + len))
    }

    fn number(&self, at: usize, bytes: usize) -> Option<usize> {
        let bytes = self.unread.get(at..at + bytes)?;
        Some(bytes.iter().fold(0, |number, byte| number << 8 | usize::from(*byte)))
    }

    fn frame(&self, opcode: u8, payload: &[u8]) -> Frame {
        let text = || String::from_utf8(payload.to_vec()).expect("text is UTF-8");
        assert!(opcode < 8 || payload.len() <= 125, "a control frame is short");
        match opcode {
            1 if self.is_echo => Frame::Text(Value::String(text())),
            1 => Frame::Text(serde_json::from_slice(payload).expect("text is JSON")),
            2 => Frame::Binary(payload.to_vec()),
            8 => {
                let code = u16::from_be_bytes([payload[0], payload[1]]);
                let reason = String::from_utf8(payload[2..].to_vec());
                Frame::Close(code, reason.expect("a reason is UTF-8"))
            }
            9 => Frame::Ping(payload.to_vec()),
            10 => Frame::Pong(payload.to_vec()),
            other => panic!("opcode {other}"),
        }
    }
}
