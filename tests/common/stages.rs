//! Connections before they are WebSockets, driven without sockets.

use campanile::auth::Authenticator;
use campanile::config::{Config, ConfigSources};
use campanile::ids::NodeId;
use campanile::link::calls::{CallReceiver, CallSender, calls};
use campanile::link::hooks::{HookPlaces, HookReceiver, HookSender, hooks};
use campanile::link::ledger::Ledger;
use campanile::net::upgrade::reject::RejectReason;
use campanile::net::upgrade::routes::Routes;
use campanile::net::upgrade::{LeftAt, Progress, StageContext, Upgrades};
use campanile::plan::{Machine, Plan, resolve};
use std::net::SocketAddr;
use std::sync::Arc;

pub const KEY: &str = "0123456789abcdef";
const INDEX: u32 = 5;
pub const BODY_BYTES_MAX: usize = 4096;
pub const HEAD_BYTES_MAX: usize = 1024;
/// One read of a shard.
const READ_BYTES_MAX: usize = 2048;

/// A listener and what its connections need.
pub struct World {
    routes: Routes,
    calls: CallSender,
    hooks: HookSender,
    _receivers: (CallReceiver, HookReceiver),
}

/// With this setting of `proxy_protocol`.
pub fn world(proxy_protocol: &'static str) -> World {
    world_with(&[("proxy_protocol", proxy_protocol)])
}

/// With these settings.
pub fn world_with(more: &[(&'static str, &str)]) -> World {
    let flags = [
        ("trusted_proxies", "10.0.0.0/8"),
        ("ops.api_key", KEY),
        ("ops.public_paths", "/v1/publish"),
        ("limits.head_bytes_max", "1024"),
        ("limits.http_body_bytes_max", "4096"),
    ];
    let flags = flags.iter().chain(more);
    let flags = flags.map(|(key, value)| (*key, (*value).to_owned())).collect();
    let config = Config::load(&ConfigSources { flags, ..ConfigSources::default() }).unwrap();
    let machine = Machine { node: NodeId(1), cores: vec![0], nofile: 9999, memory_bytes: None };
    let plan: Arc<Plan> = Arc::new(resolve(&config, &machine).unwrap().plan);
    let authenticator = Arc::new(Authenticator::new(&plan.auth));
    let (calls, receiver) = calls(1, Arc::new(Ledger::new(u64::MAX, 0))).unwrap();
    let (hooks, asks) = hooks(HookPlaces { questions_max: 1, bytes_max: 1 << 20 }).unwrap();
    let routes = Routes::new(plan, authenticator);
    World { routes, calls, hooks, _receivers: (receiver, asks) }
}

/// What a connection came to, step by step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Call(String, Vec<u8>, Option<SocketAddr>),
    Open(Option<SocketAddr>, Vec<u8>),
    Page,
    Reject(RejectReason),
    Gone,
}

/// Feeds `stream` in reads that end at `cuts`; a connection that is answered goes on.
pub fn run(world: &World, stream: &[u8], cuts: &[usize]) -> Vec<Outcome> {
    let mut upgrades = Upgrades::default();
    let direct = || Some("10.0.0.1:4000".parse().unwrap());
    let context = StageContext {
        routes: &world.routes,
        calls: &world.calls,
        hooks: &world.hooks,
        direct: &direct,
        now_ms: 1,
        now_unix_s: 1,
    };
    let mut outcomes = Vec::new();
    let (mut from, mut cuts) = (0, cuts.iter().copied());
    while from < stream.len() {
        let end = cuts.next().unwrap_or(stream.len());
        let to = end.clamp(from + 1, stream.len()).min(from + READ_BYTES_MAX);
        let mut progress = upgrades.handle_read(INDEX, &stream[from..to], &context);
        from = to;
        loop {
            let longest = HEAD_BYTES_MAX.max(BODY_BYTES_MAX) + READ_BYTES_MAX;
            let held = upgrades.held_bytes();
            assert!(held <= 2 * longest, "{held} bytes are held");
            match progress {
                Progress::More | Progress::Interim(_) | Progress::AwaitToken { .. } => break,
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
                        Progress::Refuse(refusal) => Outcome::Reject(refusal.reason),
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
