//! Heads, good and bad, and the answers byte for byte.

use super::*;

/// A line of a head.
type Line = (&'static str, &'static str);

const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

/// The head of RFC 6455 §1.2.
const GOOD: [Line; 5] = [
    ("Host", "server.example.com"),
    ("Upgrade", "websocket"),
    ("Connection", "Upgrade"),
    ("Sec-WebSocket-Key", KEY),
    ("Sec-WebSocket-Version", "13"),
];

fn head(headers: &[(&str, &str)]) -> http::request::Parts {
    let request = headers
        .iter()
        .fold(http::Request::get("/chat"), |request, (name, value)| request.header(*name, *value));
    request.body(()).unwrap().into_parts().0
}

/// The good head without `name`, and with `added`.
fn instead(name: &str, added: &[(&str, &str)]) -> http::request::Parts {
    let others = GOOD.iter().filter(|(other, _)| *other != name);
    head(&others.chain(added).copied().collect::<Vec<_>>())
}

fn status(head: &http::request::Parts) -> u16 {
    check(head).map_or_else(|refusal| refusal.status, |_| 101)
}

#[test]
fn the_example_of_the_rfc_gets_its_answer() {
    let head = head(&GOOD);
    let upgrade = check(&head).unwrap();
    assert_eq!(&upgrade.accept, b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    assert_eq!(upgrade.protocols, [""; 0]);
    let mut out = Vec::new();
    write_accept(&upgrade, None, &mut out);
    let wanted = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\
                  Connection: Upgrade\r\n\
                  Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
    assert_eq!(String::from_utf8(out).unwrap(), wanted);
}

#[test]
fn only_get_over_http_1_1_opens_a_websocket() {
    let methods = ["POST", "HEAD", "PUT", "OPTIONS", "DELETE", "get", "BREW"];
    for method in methods {
        let mut head = head(&GOOD);
        head.method = Method::from_bytes(method.as_bytes()).unwrap();
        assert_eq!(status(&head), 405, "{method}");
    }
    for version in [Version::HTTP_09, Version::HTTP_10, Version::HTTP_2, Version::HTTP_3] {
        let mut head = head(&GOOD);
        head.version = version;
        assert_eq!(status(&head), 505, "{version:?}");
    }
}

#[test]
fn every_header_of_the_handshake_is_checked() {
    let table: &[(&str, &[Line], u16)] = &[
        ("Host", &[], 400),
        ("Host", &[("Host", "a"), ("Host", "a")], 400),
        ("Host", &[("Host", "[::1]:80")], 101),
        ("Upgrade", &[], 426),
        ("Upgrade", &[("Upgrade", "h2c")], 426),
        ("Upgrade", &[("Upgrade", "websockets")], 426),
        ("Upgrade", &[("Upgrade", "WebSocket")], 101),
        ("Upgrade", &[("Upgrade", "h2c, WEBSOCKET")], 101),
        ("Upgrade", &[("Upgrade", "h2c"), ("Upgrade", "websocket")], 101),
        ("Connection", &[], 400),
        ("Connection", &[("Connection", "keep-alive")], 400),
        ("Connection", &[("Connection", "not-upgrade, upgraded")], 400),
        ("Connection", &[("Connection", "keep-alive, Upgrade")], 101),
        ("Connection", &[("Connection", "keep-alive,,\tuPGRADE ,")], 101),
        ("Connection", &[("Connection", "keep-alive"), ("Connection", "upgrade")], 101),
        ("Sec-WebSocket-Version", &[], 426),
        ("Sec-WebSocket-Version", &[("Sec-WebSocket-Version", "8")], 426),
        ("Sec-WebSocket-Version", &[("Sec-WebSocket-Version", "013")], 426),
        ("Sec-WebSocket-Version", &[("Sec-WebSocket-Version", "13, 8")], 426),
        ("", &[("Sec-WebSocket-Version", "13")], 426),
        ("Sec-WebSocket-Key", &[], 400),
        ("Sec-WebSocket-Key", &[("Sec-WebSocket-Key", "")], 400),
        ("Sec-WebSocket-Key", &[("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ")], 400),
        ("Sec-WebSocket-Key", &[("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQA=")], 400),
        ("Sec-WebSocket-Key", &[("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQAA")], 400),
        ("Sec-WebSocket-Key", &[("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25j")], 400),
        ("Sec-WebSocket-Key", &[("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25j*Q==")], 400),
        ("Sec-WebSocket-Key", &[("Sec-WebSocket-Key", "AAAAAAAAAAAAAAAAAAAAAA==")], 101),
        ("", &[("Sec-WebSocket-Key", KEY)], 400),
        ("", &[("Content-Length", "0")], 101),
        ("", &[("Content-Length", "5")], 400),
        ("", &[("Content-Length", "-0")], 400),
        ("", &[("Content-Length", "0"), ("Content-Length", "0")], 400),
        ("", &[("Transfer-Encoding", "chunked")], 400),
        ("", &[("Transfer-Encoding", "identity")], 400),
        ("", &[("Sec-WebSocket-Extensions", "permessage-deflate; client_max_window_bits")], 101),
        ("", &[("Sec-WebSocket-Extensions", "=;garbage,,")], 101),
        ("", &[("Sec-WebSocket-Protocol", "chat room")], 400),
        ("", &[("Sec-WebSocket-Protocol", "a, b;q=1")], 400),
        ("", &[("Sec-WebSocket-Protocol", "caf\u{e9}")], 400),
    ];
    for (name, added, wanted) in table {
        assert_eq!(status(&instead(name, added)), *wanted, "{name:?} -> {added:?}");
    }
}

#[test]
fn a_browser_is_answered_with_what_this_endpoint_is() {
    let refusal = check(&head(&[("Host", "a")])).map(|_| ()).unwrap_err();
    assert_eq!(refusal.status, 426);
    assert!(refusal.reason.contains("Upgrade: websocket"));
}

#[test]
fn subprotocols_keep_the_clients_order_over_all_lines() {
    let offers = [
        ("Sec-WebSocket-Protocol", "campanile.v1, pusher"),
        ("Sec-WebSocket-Protocol", ",graphql-ws ,, x!#$%&'*+-.^_`|~"),
    ];
    let head = instead("", &offers);
    let upgrade = check(&head).unwrap();
    assert_eq!(upgrade.protocols, ["campanile.v1", "pusher", "graphql-ws", "x!#$%&'*+-.^_`|~"]);
    let mut out = Vec::new();
    write_accept(&upgrade, Some("pusher"), &mut out);
    let text = String::from_utf8(out).unwrap();
    assert!(text.ends_with("xOo=\r\nSec-WebSocket-Protocol: pusher\r\n\r\n"), "{text}");
}

fn refusal(status: u16, reason: &str, extra_headers: &[(&str, &str)]) -> String {
    let mut out = b"before".to_vec();
    write_refusal(status, reason, extra_headers, &mut out);
    String::from_utf8(out.split_off(6)).unwrap()
}

#[test]
fn a_refusal_is_a_complete_answer() {
    let wanted = "HTTP/1.1 503 Service Unavailable\r\n\
                  Content-Type: text/plain; charset=utf-8\r\nContent-Length: 5\r\n\
                  Connection: close\r\nRetry-After: 3\r\n\r\nfull\n";
    assert_eq!(refusal(503, "full", &[("Retry-After", "3")]), wanted);
}

#[test]
fn a_status_that_asks_for_headers_gets_them() {
    assert!(refusal(405, "", &[]).contains("\r\nAllow: GET\r\nConnection: close\r\n"));
    let upgrade = refusal(426, "", &[]);
    for line in ["Upgrade: websocket", "Sec-WebSocket-Version: 13", "Connection: close, Upgrade"] {
        assert!(upgrade.contains(&format!("\r\n{line}\r\n")), "{upgrade}");
    }
}

#[test]
fn every_status_that_is_used_has_its_phrase() {
    let table = [
        (400, "Bad Request"),
        (401, "Unauthorized"),
        (403, "Forbidden"),
        (404, "Not Found"),
        (405, "Method Not Allowed"),
        (408, "Request Timeout"),
        (413, "Payload Too Large"),
        (426, "Upgrade Required"),
        (429, "Too Many Requests"),
        (431, "Request Header Fields Too Large"),
        (500, "Internal Server Error"),
        (503, "Service Unavailable"),
        (505, "HTTP Version Not Supported"),
    ];
    for (status, phrase) in table {
        let line = format!("HTTP/1.1 {status} {phrase}\r\n");
        assert!(refusal(status, "x", &[]).starts_with(&line), "{line}");
    }
}

#[test]
fn a_host_that_another_program_may_read_as_another_one_is_refused() {
    let of = |host: &'static str| status(&instead("Host", &[("Host", host)]));
    for good in
        ["a", "example.org:80", "a_b.internal", "[::1]:8080", "[fe80::1]", "a:", "127.0.0.1:1"]
    {
        assert_eq!(of(good), 101, "{good}");
    }
    let bad =
        ["", "a/b", "u@a", "a b", "a:b", "a:65536", "a:1:2", "[::1", "[]", "[::1]x", ":80", "a#b"];
    for bad in bad.into_iter().chain(["a?b", "a\\b", "[a/b]", "\u{e9}"]) {
        assert_eq!(of(bad), 400, "{bad}");
    }
}
