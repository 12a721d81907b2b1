//! The stages before the WebSocket, fed in every cut and with garbage: what comes of a connection
//! depends on its bytes alone, and what it holds is bounded.

use campanile::auth::Authenticator;
use campanile::config::{Config, ConfigSources};
use campanile::ids::NodeId;
use campanile::link::calls::{CallReceiver, CallSender, calls};
use campanile::net::upgrade::reject::RejectReason;
use campanile::net::upgrade::routes::Routes;
use campanile::net::upgrade::{LeftAt, Progress, StageContext, Upgrades};
use campanile::plan::{Machine, Plan, resolve};
use proptest::prelude::*;
use std::net::SocketAddr;
use std::sync::Arc;

const KEY: &str = "0123456789abcdef";
const INDEX: u32 = 5;
const BODY_BYTES_MAX: usize = 4096;
const HEAD_BYTES_MAX: usize = 1024;
/// One read of a shard.
const READ_BYTES_MAX: usize = 2048;

struct World {
    routes: Routes,
    calls: CallSender,
    _receiver: CallReceiver,
}

fn world(proxy_protocol: &'static str) -> World {
    let flags = [
        ("proxy_protocol", proxy_protocol),
        ("trusted_proxies", "10.0.0.0/8"),
        ("ops.api_key", KEY),
        ("ops.public_paths", "/v1/publish"),
        ("limits.head_bytes_max", "1024"),
        ("limits.http_body_bytes_max", "4096"),
    ];
    let flags = flags.map(|(key, value)| (key, value.to_owned())).to_vec();
    let config = Config::load(&ConfigSources { flags, ..ConfigSources::default() }).unwrap();
    let machine = Machine { node: NodeId(1), cores: vec![0], nofile: 9999, memory_bytes: None };
    let plan: Arc<Plan> = Arc::new(resolve(&config, &machine).unwrap().plan);
    let authenticator = Arc::new(Authenticator::new(&plan.auth));
    let (calls, receiver) = calls(1).unwrap();
    World { routes: Routes::new(plan, authenticator), calls, _receiver: receiver }
}

/// What a connection came to, step by step.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Outcome {
    Call(String, Vec<u8>, Option<SocketAddr>),
    Open(Option<SocketAddr>, Vec<u8>),
    Page,
    Reject(RejectReason),
    Gone,
}

/// Feeds `stream` in reads that end at `cuts`; a connection that is answered goes on.
fn run(world: &World, stream: &[u8], cuts: &[usize]) -> Vec<Outcome> {
    let mut upgrades = Upgrades::default();
    let direct = || Some("10.0.0.1:4000".parse().unwrap());
    let context = StageContext {
        routes: &world.routes,
        calls: &world.calls,
        direct: &direct,
        now_ms: 1,
        now_unix_s: 1,
    };
    let mut outcomes = Vec::new();
    let (mut from, mut cuts) = (0, cuts.iter().copied());
    while from < stream.len() {
        let wish = cuts.next().unwrap_or(stream.len());
        let to = wish.clamp(from + 1, stream.len()).min(from + READ_BYTES_MAX);
        let mut progress = upgrades.handle_read(INDEX, &stream[from..to], &context);
        from = to;
        loop {
            let longest = HEAD_BYTES_MAX.max(BODY_BYTES_MAX) + READ_BYTES_MAX;
            let held = upgrades.held_bytes();
            assert!(held <= 2 * longest, "{held} bytes are held");
            match progress {
                Progress::More | Progress::Interim(_) => break,
                Progress::Call { parts, body, named, place } => {
                    outcomes.push(Outcome::Call(parts.uri.to_string(), body.to_vec(), named));
                    assert!(upgrades.is_answering(INDEX));
                    assert_eq!(upgrades.calls(), 1);
                    drop(place);
                    progress = upgrades.handle_answered(INDEX, &context);
                }
                Progress::Open { named, rest, .. } => {
                    // What follows is the decoder's.
                    outcomes.push(Outcome::Open(named, [&rest, &stream[from..]].concat()));
                    from = stream.len();
                    break;
                }
                end => {
                    outcomes.push(match end {
                        Progress::Page(_) => Outcome::Page,
                        Progress::Reject(reason) => Outcome::Reject(reason),
                        _ => Outcome::Gone,
                    });
                    from = stream.len();
                    break;
                }
            }
        }
    }
    upgrades.forget(INDEX);
    assert_eq!((upgrades.held_bytes(), upgrades.calls()), (0, 0));
    assert_eq!(upgrades.forget(INDEX), LeftAt::Nothing);
    outcomes
}

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

proptest! {
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
