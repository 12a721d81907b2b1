//! The API's router with any request: it answers in JSON with a reason, carries nothing to the
//! backplane that a client could not have sent, and nothing at all without its key.
//!
//! The input is a request in a form of its own: a byte of settings, then lines, `METHOD /path` first and
//! headers behind it, an empty line, and the body. `KEY` in a header stands for the key.

use campanile::api::fuzzing::SocketlessApi;
use campanile::config::{Config, ConfigSources};
use campanile::ids::{NodeId, Position, is_name};
use campanile::link::channel::{BackplaneEnd, ShardEnd, window};
use campanile::link::{
    ConnectionPage, Downlink, HistoryError, HistoryPage, Inspect, PublishOutcome, RevokeOutcome,
    RoomPage, Uplink, UserReport,
};
use campanile::plan::{Machine, resolve};
use campanile::policy::revocations::MOMENT_MAX_S;
use campanile::protocol::native::{KEY_BYTES_MAX, LIMIT_MAX};
use campanile::protocol::run::Run;
use http::{HeaderMap, Request, Response};
use serde_json::Value;
use serde_json::value::RawValue;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use tokio::runtime::Runtime;

const KEY: &str = "0123456789abcdef";
const MESSAGE_BYTES_MAX: usize = 4096;
/// A request waits for each shard, and for the backplane with each message of a batch.
const TURNS_MAX: usize = 3000;

/// A node whose shards and backplane are played here.
struct Node {
    api: SocketlessApi,
    shards: Vec<ShardEnd>,
    backplane: BackplaneEnd,
}

thread_local! {
    /// Never run: handlers make timers, which need one.
    static RUNTIME: Runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    /// Without a key and with one.
    static NODES: [Node; 2] = [node(&[]), node(&[("ops.api_key", KEY)])];
}

fn node(flags: &[(&'static str, &str)]) -> Node {
    let more = [
        ("namespaces", "held: history_size=10, presence=true"),
        ("limits.message_bytes_max", "4096"),
    ];
    let flags = flags.iter().chain(&more).map(|(key, value)| (*key, (*value).to_owned()));
    let sources = ConfigSources { flags: flags.collect(), ..ConfigSources::default() };
    let config = Config::load(&sources).unwrap();
    let machine = Machine { node: NodeId(1), cores: vec![0, 1], nofile: 9999, memory_bytes: None };
    let plan = resolve(&config, &machine).unwrap().plan;
    assert_eq!(plan.limits.message_bytes_max, MESSAGE_BYTES_MAX);
    let (shards, backplane, end) = window(2, 8, 8).unwrap();
    Node { api: SocketlessApi::new(Arc::new(plan), end), shards, backplane }
}

/// What a byte of the input decides.
#[derive(Clone, Copy)]
struct Settings {
    has_key: bool,
    is_public: bool,
    is_remote: bool,
    outcome: PublishOutcome,
}

impl Settings {
    fn of(byte: u8) -> Settings {
        let outcomes = [
            PublishOutcome::Accepted(None),
            PublishOutcome::Accepted(Some(Position { epoch: 7, offset: 9 })),
            PublishOutcome::Unavailable,
            PublishOutcome::Unknown,
        ];
        let is = |bit: u8| byte & bit != 0;
        let outcome = outcomes[usize::from(byte >> 3) % outcomes.len()];
        Settings { has_key: is(1), is_public: is(2), is_remote: is(4), outcome }
    }

    /// Whether a request with these headers may be carried out; without a key a page or a proxy may
    /// still be refused.
    fn admits(self, headers: &HeaderMap) -> bool {
        let shows_key = || {
            let shown = headers.get(http::header::AUTHORIZATION).map(|shown| shown.to_str());
            let Some(Ok(shown)) = shown else { return false };
            let Some((scheme, shown)) = shown.split_once(' ') else { return false };
            scheme.eq_ignore_ascii_case("bearer") && shown.trim() == KEY
        };
        if self.has_key { shows_key() } else { !self.is_public && !self.is_remote }
    }
}

/// See the module.
pub fn check(input: &[u8]) {
    let [byte, text @ ..] = input else { return };
    let (Some(request), settings) = (request_of(text), Settings::of(*byte)) else { return };
    let address = if settings.is_remote { "192.0.2.7:1" } else { "127.0.0.1:1" };
    let is_admitted = settings.admits(request.headers());
    let (path, is_head) = (request.uri().path().to_owned(), request.method() == "HEAD");
    NODES.with(|nodes| {
        let node = &nodes[usize::from(settings.has_key)];
        let (response, carried) = node.call(request, address.parse().unwrap(), settings);
        assert!(carried == 0 || is_admitted, "carried out for anybody: {path}");
        let Some(response) = response else {
            // A wrong key is answered late.
            assert!(settings.has_key && !is_admitted, "no answer: {path}");
            return;
        };
        if path.starts_with("/v1/") && !is_head {
            check_response(&response, is_admitted);
        }
        if path.starts_with("/v1/") && settings.is_public && !settings.has_key {
            // Not there, or there for another method.
            assert!(matches!(response.status().as_u16(), 404 | 405), "{}", response.status());
        }
    });
}

fn check_response(response: &Response<bytes::Bytes>, is_admitted: bool) {
    let status = response.status();
    let body: Value = serde_json::from_slice(response.body())
        .unwrap_or_else(|error| panic!("{status}, no JSON: {error}: {:?}", response.body()));
    assert_ne!(status.as_u16(), 500, "{body}");
    if status.is_success() {
        assert!(is_admitted, "answered to anybody: {body}");
    } else {
        let text = |key: &str| body["error"][key].as_str().is_some_and(|text| !text.is_empty());
        assert!(text("code") && text("message"), "{status} without a reason: {body}");
    }
}

/// `None`: hyper would not have read it as a request.
fn request_of(text: &[u8]) -> Option<Request<bytes::Bytes>> {
    let (head, body) = match text.windows(2).position(|two| two == b"\n\n") {
        Some(end) => (&text[..end], &text[end + 2..]),
        None => (text, &b""[..]),
    };
    let mut lines = head.split(|byte| *byte == b'\n');
    let mut words = lines.next()?.splitn(2, |byte| *byte == b' ');
    let (method, path) = (words.next()?, words.next()?);
    path.starts_with(b"/").then_some(())?;
    let mut request = Request::builder().method(method).uri(path);
    for line in lines {
        let colon = line.iter().position(|byte| *byte == b':')?;
        let value = String::from_utf8_lossy(line[colon + 1..].trim_ascii()).replace("KEY", KEY);
        request = request.header(&line[..colon], value.as_bytes());
    }
    request.body(bytes::Bytes::copy_from_slice(body)).ok()
}

impl Node {
    /// The answer, and how many items it sent to shards and backplane. No answer: it waits for a
    /// timer, and its caller has gone.
    fn call(
        &self,
        request: Request<bytes::Bytes>,
        peer: SocketAddr,
        settings: Settings,
    ) -> (Option<Response<bytes::Bytes>>, usize) {
        RUNTIME.with(|runtime| {
            let _entered = runtime.enter();
            let mut answer = Box::pin(self.api.call(request, peer, settings.is_public));
            let mut context = Context::from_waker(Waker::noop());
            let mut carried = 0;
            for _ in 0..TURNS_MAX {
                // What the router leaves to its runtime's budget, it does by itself here.
                let polled = answer.as_mut().poll(&mut context);
                let now = self.answer_all(settings);
                carried += now;
                match polled {
                    Poll::Ready(response) => return (Some(response), carried),
                    Poll::Pending if now == 0 => return (None, carried),
                    Poll::Pending => {}
                }
            }
            panic!("a request took {TURNS_MAX} turns");
        })
    }

    /// Plays shards and backplane. Answers for how many items it did.
    fn answer_all(&self, settings: Settings) -> usize {
        let mut count = 0;
        while let Some(item) = self.backplane.try_recv_ops() {
            answer_uplink(item, settings.outcome);
            count += 1;
        }
        for shard in &self.shards {
            while let Some(item) = shard.try_recv() {
                let Downlink::Inspect(question) = item else { panic!("no shard expects that") };
                answer_inspect(*question);
                count += 1;
            }
        }
        count
    }
}

fn answer_uplink(item: Uplink, outcome: PublishOutcome) {
    match item {
        Uplink::Publish(publish) => {
            let (_, name) = publish.topic.as_str().split_once(':').unwrap_or(("*", "all"));
            assert!(is_name(name), "a message to {name:?}");
            assert!(publish.payload.len() <= MESSAGE_BYTES_MAX, "a long payload");
            assert!(serde_json::from_slice::<&RawValue>(&publish.payload).is_ok(), "no JSON");
            let is_key = |key: &str| (1..=KEY_BYTES_MAX).contains(&key.len());
            assert!(publish.key.as_deref().is_none_or(is_key), "a long key");
            assert!(publish.from.is_none() && publish.except.is_none(), "it is of a client");
            publish.done.call(outcome);
        }
        Uplink::History(asked) => {
            assert!(asked.page.limit <= LIMIT_MAX, "{} messages", asked.page.limit);
            let position = Position { epoch: 7, offset: 9 };
            let page = HistoryPage { position, messages: Run::default() };
            let is_there = matches!(outcome, PublishOutcome::Accepted(_));
            asked.to.call(if is_there { Ok(page) } else { Err(HistoryError::Overloaded) });
        }
        Uplink::Presence(asked) => {
            let is_there = matches!(outcome, PublishOutcome::Accepted(_));
            asked.to.call(is_there.then(Arc::default));
        }
        Uplink::Disconnect(asked) => {
            assert!(asked.close.reason.len() <= 123, "it does not fit into a close frame");
            asked.reply.call(outcome);
        }
        Uplink::Revoke(asked) => {
            let key = asked.revocation.subject.key();
            assert!(key.len() <= 257 && asked.revocation.until_s <= MOMENT_MAX_S);
            asked.reply.call(match outcome {
                PublishOutcome::Accepted(_) => RevokeOutcome::Stored,
                PublishOutcome::Full(_) => RevokeOutcome::Full,
                PublishOutcome::Unavailable => RevokeOutcome::Unavailable,
                PublishOutcome::Unknown => RevokeOutcome::Unknown,
            });
        }
        other => panic!("the API never sends {other:?}"),
    }
}

fn answer_inspect(question: Inspect) {
    match question {
        Inspect::Rooms { reply, .. } => reply.call(RoomPage::default()),
        Inspect::Room { reply, .. } => reply.call(None),
        Inspect::User { reply, .. } => reply.call(UserReport::default()),
        Inspect::Connections { reply, .. } | Inspect::TopConnections { reply, .. } => {
            reply.call(ConnectionPage::default());
        }
    }
}
