use super::*;
use crate::backplane::redis::connection::client::open;
use crate::backplane::redis::connection::resp::tests::tree;
use crate::backplane::redis::failure::classify::LinkUser;
use proptest::prelude::*;
use redis::{IntoConnectionInfo, Value};
use std::task::Waker;
use std::time::Duration;

const LIMITS: ReplyLimits = ReplyLimits { string_bytes_max: 1000, reply_bytes_max: 5000 };

/// A stream that is read in pieces of these sizes, and then ends.
struct Pieces {
    bytes: Vec<u8>,
    at: usize,
    sizes: Box<dyn FnMut() -> usize>,
}

impl AsyncRead for Pieces {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let rest = &this.bytes[this.at..];
        let len = (this.sizes)().min(rest.len()).min(into.remaining());
        into.put_slice(&rest[..len]);
        this.at += len;
        Poll::Ready(Ok(()))
    }
}

/// A stream that begins like this and then repeats that for ever.
struct Endless {
    head: &'static [u8],
    pattern: &'static [u8],
    /// Bytes that were read of it.
    read: usize,
}

impl AsyncRead for Endless {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.read == 0 && !this.head.is_empty() {
            into.put_slice(this.head);
            this.read = this.head.len();
            return Poll::Ready(Ok(()));
        }
        // As a socket does from time to time, so that no loop reads for ever.
        if this.read.is_multiple_of(7) {
            this.read += 1;
            return Poll::Pending;
        }
        while into.remaining() >= this.pattern.len() {
            into.put_slice(this.pattern);
            this.read += this.pattern.len();
        }
        Poll::Ready(Ok(()))
    }
}

/// Everything that is passed on until the end, or why there is none; read in pieces of `room`.
fn passed_on(stream: Pieces, limits: ReplyLimits, room: usize) -> (Vec<u8>, io::Result<()>) {
    let mut bounded = Bounded::new(stream, limits);
    let mut cx = Context::from_waker(Waker::noop());
    let (mut passed, mut buffer) = (Vec::new(), vec![0; room]);
    loop {
        let mut into = ReadBuf::new(&mut buffer);
        match Pin::new(&mut bounded).poll_read(&mut cx, &mut into) {
            Poll::Ready(Ok(())) if into.filled().is_empty() => return (passed, Ok(())),
            Poll::Ready(Ok(())) => passed.extend_from_slice(into.filled()),
            Poll::Ready(Err(error)) => return (passed, Err(error)),
            Poll::Pending => panic!("it is all there"),
        }
    }
}

/// What is passed on, and the error that ends it.
fn all_of(bytes: &[u8], limits: ReplyLimits) -> (Vec<u8>, Option<String>) {
    let stream = Pieces { bytes: bytes.to_vec(), at: 0, sizes: Box::new(|| usize::MAX) };
    let (passed, end) = passed_on(stream, limits, 4096);
    (passed, end.err().map(|error| error.to_string()))
}

proptest! {
    #[test]
    fn what_is_within_the_limits_is_passed_on_byte_for_byte(
        trees in prop::collection::vec(tree(), 0..4),
        sizes in prop::collection::vec(1..60usize, 1..8),
        room in 1..60usize,
    ) {
        let bytes: Vec<u8> = trees.iter().flat_map(|tree| tree.bytes()).collect();
        let mut sizes = sizes.into_iter().cycle();
        let sizes = Box::new(move || sizes.next().unwrap_or(1));
        let stream = Pieces { bytes: bytes.clone(), at: 0, sizes };
        let limits = ReplyLimits { string_bytes_max: 1000, reply_bytes_max: 1 << 20 };
        let (passed, end) = passed_on(stream, limits, room);
        if trees.iter().all(|tree| tree.levels() < LEVELS_MAX) {
            prop_assert!(end.is_ok(), "{:?}", end);
            prop_assert_eq!(passed, bytes);
        } else {
            prop_assert!(bytes.starts_with(&passed));
        }
    }

    #[test]
    fn no_bytes_bring_it_down(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = all_of(&bytes, LIMITS);
        let _ = all_of(&[&b"*3\r\n$1001\r\n"[..], &bytes].concat(), LIMITS);
    }

    #[test]
    fn wherever_a_long_string_is_cut_a_null_takes_its_place(
        len in 1001..3000usize,
        sizes in prop::collection::vec(1..700usize, 1..8),
    ) {
        let body = "x".repeat(len);
        let bytes = format!("*3\r\n:1\r\n${len}\r\n{body}\r\n+b\r\n$1\r\nc\r\n").into_bytes();
        let mut sizes = sizes.into_iter().cycle();
        let sizes = Box::new(move || sizes.next().unwrap_or(1));
        let (passed, end) = passed_on(Pieces { bytes, at: 0, sizes }, LIMITS, 64);
        prop_assert!(end.is_ok());
        prop_assert_eq!(passed, b"*3\r\n:1\r\n$-1\r\n+b\r\n$1\r\nc\r\n".to_vec());
    }
}

#[test]
fn limits_are_exact() {
    let of = |len: usize| format!("${len}\r\n{}\r\n", "x".repeat(len)).into_bytes();
    assert_eq!(all_of(&of(1000), LIMITS), (of(1000), None));
    assert_eq!(all_of(&of(1001), LIMITS), (b"$-1\r\n".to_vec(), None));
    let levels = |levels: usize| [&b"*1\r\n".repeat(levels)[..], b":1\r\n"].concat();
    assert_eq!(all_of(&levels(LEVELS_MAX), LIMITS), (levels(LEVELS_MAX), None));
    let fails = |bytes: &[u8], why: &str| {
        let end = all_of(bytes, LIMITS).1;
        assert_eq!(end, Some(format!("Redis sent what it never does: {why}")));
    };
    fails(&levels(LEVELS_MAX + 1), "a reply of too many levels");
    fails(format!("*{}\r\n", PARTS_MAX + 1).as_bytes(), "a reply of too many parts");
    fails(b"%18446744073709551615\r\n", "a reply of too many parts");
    fails(b"*99999999999999999999\r\n", "a length that is no number");
    fails(b"$-2\r\n", "a length that is no number");
    fails(b"$+1\r\n", "a length that is no number");
    fails(b"HTTP/1.1 400 Bad Request\r\n", "a value of no known type");
    fails(b"+half\n", "a line that is no value");
    fails(&[&b"+"[..], &vec![b'x'; LINE_BYTES_MAX]].concat(), "a line without end");
    let many = [&b"*100\r\n"[..], &of(1000).repeat(100)].concat();
    fails(&many, "a reply that is too long");
    // Each reply counts for itself.
    assert_eq!(all_of(&of(1000).repeat(100), LIMITS), (of(1000).repeat(100), None));
}

#[test]
fn nothing_that_is_endless_is_stored() {
    const MUCH: usize = 16 << 20;
    let cases: [(&[u8], &[u8]); 8] = [
        (b"$1000000000\r\n", b"x"),
        (b"*2\r\n=1000000000\r\n", b"x"),
        (b"", b"*1\r\n"),
        (b"", b"|1\r\n+a\r\n"),
        (b"*1000000000\r\n", b":1\r\n"),
        (b">2000000\r\n", b":1\r\n"),
        (b"+", b"x"),
        (b"*2000000\r\n", b"$1\r\nx\r\n"),
    ];
    for (head, pattern) in cases {
        let shown = String::from_utf8_lossy(head).into_owned();
        let mut bounded = Bounded::new(Endless { head, pattern, read: 0 }, LIMITS);
        let mut cx = Context::from_waker(Waker::noop());
        let (mut passed, mut most) = (0, 0);
        let mut buffer = vec![0; 4096];
        while bounded.stream.read < MUCH {
            let mut into = ReadBuf::new(&mut buffer);
            let polled = Pin::new(&mut bounded).poll_read(&mut cx, &mut into);
            passed += into.filled().len();
            most = most.max(bounded.checked.capacity() + bounded.scanner.line.capacity());
            if matches!(polled, Poll::Ready(Err(_))) {
                break;
            }
        }
        assert!(passed <= LIMITS.reply_bytes_max + 2 * LINE_BYTES_MAX, "{shown}: {passed}");
        assert!(most <= 4 * LINE_BYTES_MAX, "{shown}: {most}");
    }
}

/// A server that sends these, one after each command, and then is silent.
fn fake(replies: Vec<Vec<u8>>) -> String {
    use std::io::{Read, Write};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!("redis://{}", listener.local_addr().expect("it is bound"));
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a client");
        let mut request = [0; 4096];
        for reply in replies {
            if !matches!(stream.read(&mut request), Ok(1..)) || stream.write_all(&reply).is_err() {
                return;
            }
        }
        let _ = stream.read(&mut request);
    });
    url
}

#[tokio::test]
async fn a_value_that_is_too_long_is_null_for_the_crate_and_its_connection_goes_on() {
    let long = format!("*2\r\n:7\r\n$1001\r\n{}\r\n", "x".repeat(1001)).into_bytes();
    let hello = b"%1\r\n+proto\r\n:3\r\n".to_vec();
    let info = fake(vec![hello, long, b"+PONG\r\n".to_vec()]).into_connection_info().unwrap();
    let settings = info.redis_settings().clone().set_protocol(redis::ProtocolVersion::RESP3);
    let info = info.set_redis_settings(settings.set_skip_set_lib_name());
    let config = redis::AsyncConnectionConfig::new().set_response_timeout(None);
    let (mut connection, _driver) = open(&info, None, config, LIMITS, &user()).await.unwrap();
    let read: Value = redis::cmd("READ").query_async(&mut connection).await.unwrap();
    assert_eq!(read, Value::Array(vec![Value::Int(7), Value::Nil]));
    let pong: Value = redis::cmd("PING").query_async(&mut connection).await.unwrap();
    assert_eq!(pong, Value::SimpleString("PONG".into()));
}

#[tokio::test]
async fn a_server_that_is_hostile_from_the_first_reply_on_is_refused() {
    let replies: [&[u8]; 4] = [
        b"*1000000000\r\n",
        b"HTTP/1.1 400 Bad Request\r\n",
        b"$99999999999999999999\r\n",
        b"x\r\n",
    ];
    for reply in replies {
        let info = fake(vec![reply.to_vec()]).into_connection_info().unwrap();
        let config = redis::AsyncConnectionConfig::new();
        let user = user();
        let opened = open(&info, None, config, LIMITS, &user);
        let opened = tokio::time::timeout(Duration::from_secs(20), opened);
        let refused = opened.await.expect("it is refused at once").err().expect("it is refused");
        let refused = refused.to_string();
        assert!(refused.contains("what it never does"), "{refused}");
    }
}

fn user() -> LinkUser {
    LinkUser::new(None, "commanding")
}
