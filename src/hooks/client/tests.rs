use super::*;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::thread::JoinHandle;

/// A server that answers one connection with these bytes, and then waits until it is closed.
/// Answers its port, and what it has read.
fn server(answer: Vec<u8>) -> (u16, JoinHandle<Vec<u8>>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = listener.local_addr().expect("it is bound").port();
    let thread = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a client");
        let mut read = Vec::new();
        let mut buffer = [0; 4096];
        while !read.windows(4).any(|part| part == b"\r\n\r\n") {
            let bytes = stream.read(&mut buffer).expect("it sends");
            read.extend_from_slice(&buffer[..bytes]);
            if bytes == 0 {
                return read;
            }
        }
        let _ = stream.write_all(&answer);
        while stream.read(&mut buffer).is_ok_and(|bytes| bytes > 0) {}
        read
    });
    (port, thread)
}

fn ledger() -> Arc<Ledger> {
    Arc::new(Ledger::new(u64::MAX, 0))
}

fn ask(port: u16, timeout_ms: u64, path: &str) -> Result<HttpAnswer, HttpError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let url: Uri = format!("http://127.0.0.1:{port}{path}").parse().unwrap();
    let limits = AskLimits { timeout: Duration::from_millis(timeout_ms), body_bytes_max: 1000 };
    runtime.block_on(async {
        HttpClient::new(None, 1, &ledger())
            .post_json(&url, &[], Bytes::from_static(b"{}"), limits)
            .await
    })
}

fn answer(head: &str, body_bytes: usize) -> Vec<u8> {
    [head.as_bytes(), &vec![b'x'; body_bytes]].concat()
}

#[test]
fn an_answer_of_any_status_is_one_and_a_redirect_is_not_followed() {
    let head = "HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 3\r\n\r\n";
    let (port, thread) = server(answer(head, 3));
    let found = ask(port, 10_000, "/hook?a=b").expect("an answer");
    assert_eq!((found.status.as_u16(), &found.body[..]), (302, &b"xxx"[..]));
    let asked = String::from_utf8(thread.join().unwrap()).unwrap();
    assert!(asked.starts_with("POST /hook?a=b HTTP/1.1\r\n"), "{asked}");
    assert!(asked.contains("content-type: application/json\r\n"), "{asked}");
}

#[test]
fn a_body_that_is_longer_than_it_may_be_is_not_read_to_its_end() {
    let head = "HTTP/1.1 200 OK\r\nContent-Length: 1001\r\n\r\n";
    let (port, _thread) = server(answer(head, 1001));
    let too_large = HttpError::TooLarge { body_bytes_max: 1000 };
    assert_eq!(ask(port, 10_000, "/").unwrap_err(), too_large);
    // One that does not say its length: as many chunks as it likes.
    let chunk = format!("200\r\n{}\r\n", "x".repeat(0x200));
    let head = format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{}", chunk.repeat(9));
    let (port, _thread) = server(answer(&head, 0));
    assert_eq!(ask(port, 10_000, "/").unwrap_err(), too_large);
    // A head without an end.
    let head = format!("HTTP/1.1 200 OK\r\n{}", "a: b\r\n".repeat(HEAD_BYTES_MAX));
    let (port, _thread) = server(answer(&head, 0));
    assert!(matches!(ask(port, 10_000, "/"), Err(HttpError::Broken(_))));
}

#[test]
fn half_a_body_and_silence_end_with_the_timeout() {
    let head = "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n";
    let (port, _thread) = server(answer(head, 5));
    assert_eq!(ask(port, 100, "/").unwrap_err(), HttpError::Timeout);
    let (port, _thread) = server(Vec::new());
    assert_eq!(ask(port, 100, "/").unwrap_err(), HttpError::Timeout);
}

#[test]
fn a_server_that_is_not_there_or_speaks_no_http_is_named() {
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let error = ask(closed, 10_000, "/").unwrap_err();
    assert!(matches!(&error, HttpError::Connect(why) if why.contains("refused")), "{error}");
    let (port, _thread) = server(b"220 smtp.example ESMTP\r\n".to_vec());
    assert!(matches!(ask(port, 10_000, "/"), Err(HttpError::Broken(_))));
}

#[test]
fn urls_that_cannot_be_asked_say_why() {
    for good in ["http://127.0.0.1:8000/hook", "https://example.com", "http://[::1]:1/a?b=c"] {
        assert!(check_url(good).is_ok(), "{good}");
    }
    for bad in ["", "example.com/a", "ftp://a/b", "/hook", "http://user:word@a/", "http://a b/"] {
        assert!(check_url(bad).is_err(), "{bad}");
    }
}
