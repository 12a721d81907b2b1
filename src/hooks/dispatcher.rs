//! The thread that asks: takes questions of shards, and answers each of them.
//!
//! ```text
//!   question ─► remembered? ─► circuit open? ─► waits ─► asked ─► answer ─► verdict to the shard
//!                 verdict       on_failure      │                   └─ none: on_failure
//!                                               └─ too long: on_failure
//! ```
//!
//! One task owns everything here. At most `concurrency_max` questions are under way; how many wait is
//! bounded by their places ([`crate::link::hooks`]).
//!
//! Invariant: each question is answered once, within `waiting_timeout_ms` and `timeout_ms`: its
//! connection is not read until then.

use crate::hooks::answer::{self, AskedAbout, HookError};
use crate::hooks::cache::AnswerCache;
use crate::hooks::circuit::{AskPass, Circuit, CircuitChange};
use crate::hooks::client::{AskLimits, HttpAnswer, HttpClient, HttpError, check_url};
use crate::hooks::question::{self, SIGNATURE, Written};
use crate::ids::{ConnId, ShardId};
use crate::link::Downlink;
use crate::link::channel::OpsEnd;
use crate::link::hooks::{HookAsk, HookPlace, HookQuestion, HookReceiver, HookReply};
use crate::link::hooks::{HookVerdict, HookedAction};
use crate::link::ledger::{Ledger, LedgerHold};
use crate::metrics::{HookCounters, HookMirror};
use crate::plan::HooksPlan;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use hyper::Uri;
use hyper::body::Bytes;
use std::collections::VecDeque;
use std::future::Future;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// How often counters are published, and what has waited too long is answered.
const TICK: Duration = Duration::from_millis(100);
/// The pause after a shard's channel was full.
const RETRY: Duration = Duration::from_millis(5);

/// What the thread is given.
pub struct HooksSetup {
    /// Whom to ask.
    pub plan: HooksPlan,
    /// Questions.
    pub asks: HookReceiver,
    /// The way back to the shards.
    pub end: OpsEnd,
    /// Where its numbers go.
    pub mirror: Arc<HookMirror>,
    /// Where what it holds is counted.
    pub ledger: Arc<Ledger>,
}

/// Asks until the process ends.
pub fn run(setup: HooksSetup) -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async move {
        let HooksSetup { plan, asks, end, mirror, ledger } = setup;
        Dispatcher::new(plan, end, mirror, &ledger).serve(&asks).await
    })
}

/// One kind of question: whom to ask, and how that went.
struct HookService {
    name: &'static str,
    url: Option<Uri>,
    circuit: Circuit,
}

/// A question that is not asked yet.
struct WaitingQuestion {
    service: usize,
    to: Asker,
    written: Written,
    since: Instant,
}

/// Whose question it is.
struct Asker {
    shard: ShardId,
    conn: ConnId,
    _place: HookPlace,
}

/// A question that was asked.
struct AskedQuestion {
    service: usize,
    to: Asker,
    key: Bytes,
    pass: AskPass,
    since: Instant,
    answer: Result<HttpAnswer, HttpError>,
}

type Running = FuturesUnordered<Pin<Box<dyn Future<Output = AskedQuestion>>>>;

struct Dispatcher {
    plan: HooksPlan,
    client: HttpClient,
    services: [HookService; 3],
    cache: AnswerCache,
    /// Of the cache, and of questions. What is read of answers has its own ([`HttpClient`]).
    held: LedgerHold,
    waiting: VecDeque<WaitingQuestion>,
    running: Running,
    end: OpsEnd,
    /// Answers for shards whose channels were full.
    unsent: VecDeque<(ShardId, Downlink)>,
    counters: HookCounters,
    mirror: Arc<HookMirror>,
}

impl Dispatcher {
    fn new(
        plan: HooksPlan,
        end: OpsEnd,
        mirror: Arc<HookMirror>,
        ledger: &Arc<Ledger>,
    ) -> Dispatcher {
        let open_for = Duration::from_millis(plan.circuit_open_ms);
        let service = |name, url: &Option<String>| HookService {
            name,
            url: url.as_deref().and_then(|url| check_url(url).ok()),
            circuit: Circuit::new(plan.circuit_failures, open_for),
        };
        Dispatcher {
            client: HttpClient::new(plan.tls_ca_file.as_deref(), plan.concurrency_max, ledger),
            held: LedgerHold::new(ledger.clone()),
            services: [
                service("connect", &plan.connect_url),
                service("join", &plan.join_url),
                service("publish", &plan.publish_url),
            ],
            cache: AnswerCache::new(plan.cache_bytes_max),
            waiting: VecDeque::new(),
            running: FuturesUnordered::new(),
            end,
            unsent: VecDeque::new(),
            counters: HookCounters::default(),
            mirror,
            plan,
        }
    }

    async fn serve(mut self, asks: &HookReceiver) -> std::io::Result<()> {
        let bell = listen(asks)?;
        let mut tick = tokio::time::interval(TICK);
        loop {
            while let Some(ask) = asks.try_recv() {
                self.take(ask);
            }
            self.ask_waiting();
            if !asks.may_sleep() {
                continue;
            }
            tokio::select! {
                rung = bell.readable() => {
                    asks.clear();
                    rung?.clear_ready();
                }
                Some(asked) = self.running.next(), if !self.running.is_empty() => {
                    self.handle_asked(asked);
                }
                () = tokio::time::sleep(RETRY), if !self.unsent.is_empty() => self.send_unsent(),
                _ = tick.tick() => self.tick(asks),
            }
        }
    }

    /// A new question: answered at once, if it can be.
    fn take(&mut self, ask: HookAsk) {
        let HookAsk { question, shard, conn, since, place } = ask;
        let (to, now) = (Asker { shard, conn, _place: place }, Instant::now());
        let service = match &question {
            HookQuestion::Connect(_) => 0,
            HookQuestion::Room(room) if room.action == HookedAction::Join => 1,
            HookQuestion::Room(_) => 2,
        };
        let Some(written) = question::write(&question) else {
            return self.fail(to, "no_json");
        };
        if let Some(verdict) = self.cache.get(&written.key, now) {
            let verdict = verdict.clone();
            self.counters.cached += 1;
            return self.reply(to, verdict);
        }
        if self.services[service].circuit.refuses(now) {
            self.counters.circuit_refused += 1;
            return self.fail(to, "circuit");
        }
        self.waiting.push_back(WaitingQuestion { service, to, written, since });
    }

    /// Asks as many as may be under way.
    fn ask_waiting(&mut self) {
        let now = Instant::now();
        let waiting_max = Duration::from_millis(self.plan.waiting_timeout_ms);
        while self.running.len() < self.plan.concurrency_max {
            let Some(waiting) = self.waiting.pop_front() else { return };
            let WaitingQuestion { service, to, written, since } = waiting;
            if now.saturating_duration_since(since) > waiting_max {
                self.counters.overdue += 1;
                self.fail(to, "overdue");
                continue;
            }
            let HookService { url, circuit, .. } = &mut self.services[service];
            let (Some(url), Some(pass)) = (url.clone(), circuit.pass(now)) else {
                self.counters.circuit_refused += 1;
                self.fail(to, "circuit");
                continue;
            };
            self.counters.asked += 1;
            let (client, plan) = (self.client.clone(), &self.plan);
            let limits = AskLimits {
                timeout: Duration::from_millis(plan.timeout_ms),
                body_bytes_max: plan.answer_bytes_max,
            };
            let signed = plan
                .secret
                .as_deref()
                .map(|secret| (SIGNATURE, question::signature(secret, &written.body, unix_s())));
            let headers: Vec<_> = signed.into_iter().collect();
            self.running.push(Box::pin(async move {
                let Written { body, key } = written;
                let answer = client.post_json(&url, &headers, body, limits).await;
                AskedQuestion { service, to, key, pass, since: now, answer }
            }));
        }
    }

    fn handle_asked(&mut self, asked: AskedQuestion) {
        let AskedQuestion { service, to, key, pass, since, answer } = asked;
        let now = Instant::now();
        self.counters.duration.record(now.saturating_duration_since(since));
        let HookService { name, circuit, .. } = &mut self.services[service];
        let about = match service {
            0 => AskedAbout::Connect,
            1 => AskedAbout::Join,
            _ => AskedAbout::Publish { payload_bytes_max: self.plan.payload_bytes_max },
        };
        match answer::read(answer, about) {
            Ok((verdict, ttl)) => {
                if circuit.succeeded(pass) == Some(CircuitChange::Closed) {
                    tracing::info!(hook = name, "the hook answers again");
                }
                match &verdict {
                    HookVerdict::Deny { .. } => self.counters.denied += 1,
                    _ => self.counters.allowed += 1,
                }
                if let Some(ttl) = ttl {
                    self.cache.put(&key, &verdict, ttl, now);
                }
                self.reply(to, verdict);
            }
            Err(error) => {
                self.note_failure(service, pass, &error, now);
                self.fail(to, "failed");
            }
        }
    }

    fn note_failure(&mut self, service: usize, pass: AskPass, error: &HookError, now: Instant) {
        self.counters.failed += 1;
        let HookService { name, circuit, .. } = &mut self.services[service];
        if circuit.failed(pass, now) == Some(CircuitChange::Opened) {
            self.counters.circuit_opened += 1;
            let verdict = if self.plan.allows_on_failure { "allowed" } else { "refused" };
            tracing::warn!(
                hook = name,
                %error,
                verdict,
                "the hook has failed {} times in a row: it is not asked until it answers a probe \
                 every {} ms (hooks.circuit_failures, hooks.circuit_open_ms)",
                self.plan.circuit_failures,
                self.plan.circuit_open_ms,
            );
        } else {
            tracing::debug!(hook = name, %error, "a hook has failed");
        }
    }

    /// Answers a question that could not be asked.
    fn fail(&mut self, to: Asker, why: &'static str) {
        tracing::trace!(why, "a hook was not asked");
        let verdict = match self.plan.allows_on_failure {
            true => HookVerdict::Allow(None),
            false => HookVerdict::Failed,
        };
        self.reply(to, verdict);
    }

    fn reply(&mut self, to: Asker, verdict: HookVerdict) {
        let item = Downlink::Hook(Box::new(HookReply { conn: to.conn, verdict }));
        match self.unsent.is_empty() {
            true => {
                if let Err(item) = self.end.try_send(to.shard, item) {
                    self.unsent.push_back((to.shard, item));
                }
            }
            false => self.unsent.push_back((to.shard, item)),
        }
    }

    /// Those of one shard stay in order; a full channel holds up no other shard.
    fn send_unsent(&mut self) {
        let mut full = Vec::new();
        for (shard, item) in std::mem::take(&mut self.unsent) {
            if full.contains(&shard) {
                self.unsent.push_back((shard, item));
            } else if let Err(item) = self.end.try_send(shard, item) {
                full.push(shard);
                self.unsent.push_back((shard, item));
            }
        }
    }

    fn tick(&mut self, asks: &HookReceiver) {
        let now = Instant::now();
        self.send_unsent();
        self.cache.forget_oldest(now);
        self.answer_overdue(now);
        let (questions, bytes) = asks.taken();
        let counters = &mut self.counters;
        counters.waiting = questions as u64;
        counters.waiting_bytes = bytes as u64;
        counters.cache_bytes = self.cache.bytes() as u64;
        self.held.set(counters.waiting_bytes + counters.cache_bytes);
        let open = self.services.iter().filter(|service| service.circuit.is_open());
        counters.circuits_open = open.count() as u64;
        self.mirror.publish(&self.counters);
    }

    /// All calls may hang: what waits behind them is answered all the same. The oldest are in front.
    fn answer_overdue(&mut self, now: Instant) {
        let waiting_max = Duration::from_millis(self.plan.waiting_timeout_ms);
        let is_overdue =
            |it: &WaitingQuestion| now.saturating_duration_since(it.since) > waiting_max;
        while self.waiting.front().is_some_and(is_overdue) {
            let WaitingQuestion { to, .. } = self.waiting.pop_front().expect("it was looked at");
            self.counters.overdue += 1;
            self.fail(to, "overdue");
        }
        // A circuit that has opened answers what waits for it.
        for waiting in std::mem::take(&mut self.waiting) {
            match self.services[waiting.service].circuit.refuses(now) {
                true => {
                    self.counters.circuit_refused += 1;
                    self.fail(waiting.to, "circuit");
                }
                false => self.waiting.push_back(waiting),
            }
        }
    }
}

/// The bell as tokio waits for it: a descriptor of its own for the same eventfd.
#[allow(deprecated)] // its danger is a descriptor that closes too early; this one is owned
fn listen(asks: &HookReceiver) -> std::io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(asks.as_fd().try_clone_to_owned()?, Interest::READABLE)
}

fn unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
