//! Everything that a connection sends before it is a WebSocket: what comes of it depends on its bytes
//! alone and not on their cuts, and what it holds is bounded (asserted by the driver).

use super::pieces::cuts;
use super::stages::{HEAD_BYTES_MAX, Outcome, World, run, world};

thread_local! {
    /// Made once: a configuration takes longer to read than a head.
    static WORLDS: [World; 3] = [world("off"), world("optional"), world("required")];
}

/// First byte: which setting of `proxy_protocol`; second: how the stream is cut.
pub fn check(input: &[u8]) {
    let [setting, seed, stream @ ..] = input else { return };
    WORLDS.with(|worlds| {
        let world = &worlds[usize::from(*setting) % worlds.len()];
        let outcomes = run(world, stream, &[]);
        assert_eq!(run(world, stream, &cuts(*seed, stream.len())), outcomes, "cut in pieces");
        if setting % 3 == 0
            && let Some(Outcome::Open(..)) = outcomes.first()
        {
            check_handshake(stream);
        }
    });
}

/// What is opened is a handshake that any reader of RFC 9112 sees as one.
fn check_handshake(stream: &[u8]) {
    let stream = stream.strip_prefix(b"\r\n").unwrap_or(stream);
    let end = stream.windows(4).position(|four| four == b"\r\n\r\n").expect("a whole head");
    assert!(end + 4 <= HEAD_BYTES_MAX, "a head of {end} bytes");
    let head = String::from_utf8_lossy(&stream[..end]).to_ascii_lowercase();
    let lines: Vec<&str> = head.split("\r\n").collect();
    assert!(lines.iter().all(|line| !line.contains(['\r', '\n', '\0'])), "a bare line break");
    assert!(lines[0].starts_with("get /ws") && lines[0].ends_with(" http/1.1"), "{}", lines[0]);
    let count = |name: &str| lines.iter().filter(|line| line.starts_with(name)).count();
    assert_eq!(count("host:"), 1, "hosts");
    assert_eq!(count("sec-websocket-key:"), 1, "keys");
    assert_eq!(count("sec-websocket-version:"), 1, "versions");
    assert!(count("origin:") <= 1, "origins");
    assert!(count("upgrade:") >= 1 && count("connection:") >= 1, "no upgrade");
}
