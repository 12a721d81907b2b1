//! The stages before the WebSocket, fed in every cut and with garbage: what comes of a connection
//! depends on its bytes alone, and what it holds is bounded.

#[path = "common/stages.rs"]
mod stages;

use campanile::auth::{AuthError, TokenRequest, mint};
use campanile::net::upgrade::reject::RejectReason;
use proptest::prelude::*;
use stages::{KEY, Outcome, run, world, world_with};

fn call(n: usize, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "POST /v1/publish?{n} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n\
         Content-Length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

const UPGRADE: &[u8] = b"GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\n\
    Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
    Sec-WebSocket-Version: 13\r\nX-Forwarded-For: 6.6.6.6, 192.0.2.7\r\n\r\n";

/// A masked frame with a mask of zeros.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let len = payload.len() as u16;
    let len = match len {
        0..=125 => vec![0x80 | len as u8],
        _ => [&[0x80 | 126][..], &len.to_be_bytes()].concat(),
    };
    [&[first][..], &len, &[0; 4], payload].concat()
}

proptest! {
    #[test]
    fn a_first_message_is_read_however_it_is_cut_and_nothing_else_opens_the_connection(
        pings in 0..4usize,
        is_good in any::<bool>(),
        rest in prop::collection::vec(any::<u8>(), 0..100),
        mut cuts in prop::collection::vec(0..900usize, 0..60),
    ) {
        let secret = "a secret of the tests";
        let settings = [("auth.hmac_secret", secret), ("auth.first_message_timeout_ms", "1000")];
        let world = world_with(&settings);
        let request = TokenRequest {
            user: "ann".to_owned(),
            rights: None,
            rooms: Vec::new(),
            send: Vec::new(),
            info: None,
            issued_unix_s: 900,
            expires_unix_s: 1000,
        };
        let token = mint(&request, if is_good { secret } else { "another secret" }).unwrap();
        let auth = format!(r#"{{"type":"auth","token":"{token}"}}"#);
        let mut stream = UPGRADE.to_vec();
        (0..pings).for_each(|_| stream.extend(frame(0x89, b"?")));
        stream.extend(frame(0x81, auth.as_bytes()));
        stream.extend_from_slice(&rest);
        cuts.sort_unstable();
        let outcomes = run(&world, &stream, &cuts);
        let wanted = match is_good {
            true => Outcome::Open(Some("192.0.2.7:0".parse().unwrap()), rest),
            false => Outcome::Reject(RejectReason::Token(AuthError::Invalid)),
        };
        prop_assert_eq!(outcomes, vec![wanted]);
    }

    #[test]
    fn what_comes_of_a_connection_does_not_depend_on_how_its_bytes_are_cut(
        header in prop::sample::select(vec![
            (&b""[..], None),
            (b"PROXY TCP4 203.0.113.9 10.0.0.1 77 80\r\n", Some("203.0.113.9:77")),
            (b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\x0a\x00\x00\x07\x0a\0\0\x01\0\x4d\0\x50", None),
            (b"PROXY UNKNOWN\r\n", None),
        ]),
        bodies in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..3000), 0..4),
        rest in prop::collection::vec(any::<u8>(), 0..100),
        // Most stages change within the first bytes.
        mut cuts in prop::collection::vec(prop_oneof![0..14_000usize, 0..150usize], 0..60),
    ) {
        let world = world("optional");
        let mut stream = header.0.to_vec();
        bodies.iter().enumerate().for_each(|(n, body)| stream.extend(call(n, body)));
        stream.extend_from_slice(UPGRADE);
        stream.extend_from_slice(&rest);
        cuts.sort_unstable();
        let outcomes = run(&world, &stream, &cuts);
        prop_assert_eq!(&outcomes, &run(&world, &stream, &[]));
        prop_assert_eq!(&outcomes, &run(&world, &stream, &(0..200).collect::<Vec<_>>()));
        for (n, body) in bodies.iter().enumerate() {
            let Outcome::Call(uri, carried, _) = &outcomes[n] else { panic!("{outcomes:?}") };
            prop_assert_eq!((uri, carried), (&format!("/v1/publish?{n}"), body));
        }
        // A client that the PROXY header names is not believed when it names another one.
        let client = header.1.unwrap_or("192.0.2.7:0");
        let open = Outcome::Open(Some(client.parse().unwrap()), rest);
        prop_assert_eq!(&outcomes[bodies.len()..], &[open]);
    }

    #[test]
    fn garbage_breaks_nothing_and_holds_little(
        setting in prop::sample::select(vec!["off", "optional", "required"]),
        start in prop::sample::select(vec![
            b"".to_vec(),
            b"PROXY TCP4 203.0.113.9 10.0.0.1 77 80\r\n".to_vec(),
            b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0".to_vec(),
            call(0, &[7; 3000])[..400].to_vec(),
            [b"PROXY UNKNOWN\r\n", &call(0, b"x")[..]].concat(),
            b"GET /ws HTTP/1.1\r\n".to_vec(),
        ]),
        garbage in prop::collection::vec(any::<u8>(), 0..8000),
        at in any::<prop::sample::Index>(),
        cuts in prop::collection::vec(prop_oneof![0..8_000usize, 0..150usize], 0..30),
    ) {
        let world = world(setting);
        let mut stream = start;
        stream.extend(garbage);
        if !stream.is_empty() {
            let at = at.index(stream.len());
            stream[at] ^= 0x20;
        }
        let mut cuts = cuts;
        cuts.sort_unstable();
        run(&world, &stream, &cuts);
    }
}
