//! The steps of a start, in their order. What can be wrong with a host or a configuration is found
//! here, before the first thread, and reported with what to change.

use super::error::StartError;
use super::reload::Reloader;
use super::{log, ports, scheduling, shutdown, threads};
use crate::api::{self, OpsSetup};
use crate::auth::{AnonymousSecret, Authenticator, FetchedKeys};
use crate::config::{Config, ConfigOrigin};
use crate::hooks::client::check_url;
use crate::hooks::dispatcher::{self, HooksSetup};
use crate::ids::NodeId;
use crate::link::calls::calls;
use crate::link::channel::{BackplaneEnd, OpsEnd, WindowLimits, window_within};
use crate::link::exchange::{Exchange, ExchangeReader};
use crate::link::health::Health;
use crate::link::hooks::{HookPlaces, HookReceiver, HookSender, hooks};
use crate::link::key_requests::KeyRequests;
use crate::link::ledger::{Account, Ledger, MemoryCalls};
use crate::link::load_table::LoadTable;
use crate::metrics::{BackplaneMirror, HookMirror, SchedulingMirror};
use crate::net::{self, ShardSetup};
use crate::plan::{
    self, BackplanePlan, Machine, NoticeLevel, Plan, Planned, Scheduling, StartupNotice,
};
use crate::policy::revocations::Revocations;
use crate::{backplane, sys, terminal, tls_trust};
use std::process::ExitCode;
use std::sync::{Arc, Barrier};
use std::thread::JoinHandle;

type KeyEnds = (Arc<Exchange<FetchedKeys>>, Arc<KeyRequests>);

/// Serves until a signal. Everything that can be refused is refused before the first thread.
/// `origin`: where the configuration was read from, and is read again at SIGHUP.
pub fn serve(config: &Config, origin: ConfigOrigin) -> Result<ExitCode, StartError> {
    let log_level = log::log(config);
    threads::abort_on_panic();
    let signals = shutdown::signals()?;
    let machine = machine()?;
    let Planned { mut plan, notices } = plan::resolve(config, &machine)?;
    say(&notices);
    files(&plan)?;
    sys::probe_io_uring().map_err(StartError::machine)?;
    let ports = ports::ports(&mut plan)?;
    let plan = Arc::new(plan);
    let reloader = Reloader {
        origin,
        config: config.clone(),
        machine,
        plan: Arc::new(Exchange::new(plan.clone())),
        log_level,
        mirror: Arc::default(),
    };
    let node = build(plan, ports, reloader)?;
    Ok(shutdown::until_the_end(node, signals))
}

/// Prints what a start with this configuration would do here, and starts nothing.
pub fn print_plan(config: &Config) -> Result<ExitCode, StartError> {
    let planned = plan::resolve(config, &machine()?)?;
    Ok(terminal::print(&plan::print::print(&planned)))
}

/// Starts every thread. All bells exist before the first one, and every file table is split before
/// anything is opened that would have to be closed: a copy in another table keeps a socket open.
fn build(
    plan: Arc<Plan>,
    ports: ports::Ports,
    reloader: Reloader,
) -> Result<shutdown::RunningNode, StartError> {
    let (shards, limits) = (plan.shards.len() as u16, &plan.limits);
    let (ends, backplane_end, ops_end) =
        window_within(shards, window_limits(&plan)).map_err(StartError::machine)?;
    let ledger = Arc::new(Ledger::new(limits.memory_bytes_max as u64, usize::from(shards) + 1));
    let account = |number: usize| account(&ledger, number);
    let (call_sender, call_receiver) =
        calls(limits.http_calls_max, ledger.clone()).map_err(StartError::machine)?;
    let (hook_sender, hook_receiver) = hook_ends(&plan)?;
    let authenticator = Arc::new(Authenticator::new(&plan.auth));
    let (hook_mirror, anonymous_secret) = (Arc::default(), AnonymousSecret::new(random()?));
    let (health, revocations) = (Arc::<Health>::default(), Arc::new(Exchange::new(Arc::default())));
    let keys = keys(&plan, &health)?;
    let (load_table, shares) = (Arc::new(LoadTable::new(shards)), Arc::new(net::shares(&plan)));
    let shard_mirrors: Vec<_> = (0..shards).map(|_| Arc::default()).collect();
    let (backplane_mirror, scheduled) = (Arc::default(), scheduling::mirror());
    let tables_split = Arc::new(Barrier::new(usize::from(shards) + 1));

    let mut shard_threads = Vec::new();
    for (end, mirror) in ends.into_iter().zip(&shard_mirrors) {
        let shard = plan.shards[usize::from(end.id.0)];
        let setup = ShardSetup {
            plan: plan.clone(),
            shard,
            end,
            calls: call_sender.clone(),
            hooks: hook_sender.clone(),
            authenticator: authenticator.clone(),
            reloads: ExchangeReader::new(reloader.plan.clone()),
            revocations: ExchangeReader::new(revocations.clone()),
            keys: (ExchangeReader::new(keys.0.clone()), keys.1.clone()),
            anonymous_secret,
            mirror: Arc::clone(mirror),
            health: health.clone(),
            account: account(usize::from(shard.id.0))?,
            load_table: load_table.clone(),
            shares: shares.clone(),
        };
        shard_threads.push(start_shard(setup, tables_split.clone(), &health)?);
    }
    tables_split.wait();

    let (mirror, account) = (Arc::clone(&backplane_mirror), account(usize::from(shards))?);
    let backplane =
        start_backplane(plan.clone(), backplane_end, mirror, &health, (account, revocations))?;
    let setup = OpsSetup {
        plan: reloader.plan.clone(),
        reloads: reloader.mirror.clone(),
        listener: ports.ops,
        end: ops_end.clone(),
        calls: call_receiver,
        shards: shard_mirrors,
        backplane: backplane_mirror,
        hooks: Arc::clone(&hook_mirror),
        health: health.clone(),
        scheduled: scheduled.clone(),
        ledger: ledger.clone(),
        keys,
    };
    start_ops(&plan, setup)?;
    start_hooks(&plan, hook_receiver, ops_end.clone(), (hook_mirror, ledger), &health)?;
    start_scheduling(&plan, scheduled, &health)?;
    let (ops, shards, held) = (ops_end, shard_threads, ports.held);
    Ok(shutdown::RunningNode { reloader, health, ops, shards, backplane, held })
}

/// Where keys of `auth.jwks_url` go, and who asks for them. With keys in a file, tokens are verified
/// from the start, and the node is ready without others.
fn keys(plan: &Plan, health: &Health) -> Result<KeyEnds, StartError> {
    health.set_keys_missing(plan.auth.jwks.is_some() && plan.auth.keys.is_empty());
    let requests = KeyRequests::new().map_err(StartError::machine)?;
    Ok((Arc::new(Exchange::new(Arc::default())), Arc::new(requests)))
}

/// One shard's thread. It serves nobody before all threads have a file table of their own.
fn start_shard(
    setup: ShardSetup,
    tables_split: Arc<Barrier>,
    health: &Arc<Health>,
) -> Result<JoinHandle<()>, StartError> {
    threads::thread(format!("shard-{}", setup.shard.id.0), health, move || {
        threads::settle_shard(&setup.plan, &setup.shard)?;
        tables_split.wait();
        net::run_shard(setup)
    })
}

fn start_backplane(
    plan: Arc<Plan>,
    end: BackplaneEnd,
    mirror: Arc<BackplaneMirror>,
    health: &Arc<Health>,
    (account, revocations): (Account, Arc<Exchange<Revocations>>),
) -> Result<JoinHandle<()>, StartError> {
    let own_health = health.clone();
    threads::thread("backplane".into(), health, move || {
        threads::settle_backplane(&plan);
        backplane::run(plan, end, mirror, own_health, account, revocations);
        Ok(())
    })
}

fn start_ops(plan: &Plan, setup: OpsSetup) -> Result<(), StartError> {
    let (scheduling, other_cores) = (plan.scheduling, plan.other_cores.clone());
    let health = setup.health.clone();
    let run = move || {
        threads::settle(scheduling, &other_cores);
        api::run(setup)
    };
    threads::thread("ops".into(), &health, run).map(|_| ())
}

/// Both ends of the channel for questions to hooks.
fn hook_ends(plan: &Plan) -> Result<(HookSender, HookReceiver), StartError> {
    let (questions_max, bytes_max) = (plan.hooks.waiting_max, plan.hooks.waiting_bytes_max);
    hooks(HookPlaces { questions_max, bytes_max }).map_err(StartError::machine)
}

/// Starts the thread that asks hooks, if there are any.
fn start_hooks(
    plan: &Plan,
    asks: HookReceiver,
    end: OpsEnd,
    (mirror, ledger): (Arc<HookMirror>, Arc<Ledger>),
    health: &Arc<Health>,
) -> Result<(), StartError> {
    if plan.hooks.urls().next().is_none() {
        return Ok(());
    }
    let setup = HooksSetup { plan: plan.hooks.clone(), asks, end, mirror, ledger };
    let (scheduling, other_cores) = (plan.scheduling, plan.other_cores.clone());
    let run = move || {
        threads::settle(scheduling, &other_cores);
        dispatcher::run(setup)
    };
    threads::thread("hooks".into(), health, run).map(|_| ())
}

fn start_scheduling(
    plan: &Plan,
    mirror: Arc<SchedulingMirror>,
    health: &Arc<Health>,
) -> Result<(), StartError> {
    if plan.scheduling != Scheduling::Auto {
        return Ok(());
    }
    threads::thread("scheduling".into(), health, move || scheduling::watch(&mirror)).map(|_| ())
}

/// How much the channels take.
fn window_limits(plan: &Plan) -> WindowLimits {
    let limits = &plan.limits;
    WindowLimits {
        ops_items_max: limits.ops_items_max(),
        uplink_items_max: limits.uplink_items_max,
        uplink_bytes_max: limits.uplink_bytes_max as u64,
        downlink_items_max: limits.downlink_items_max,
        downlink_bytes_max: limits.downlink_bytes_max as u64,
    }
}

/// The account of one thread. Opens what the resident size is read from, in the table of files that
/// all threads begin with.
fn account(ledger: &Arc<Ledger>, number: usize) -> Result<Account, StartError> {
    let resident = sys::ResidentMemory::open().map_err(StartError::machine)?;
    let resident = Box::new(move || resident.bytes());
    let calls = MemoryCalls { resident, give_back: sys::return_free_memory };
    Ok(Account::new(ledger.clone(), number, calls))
}

/// What this machine is. Raises the limit on open files as far as it goes.
fn machine() -> Result<Machine, StartError> {
    let nofile = sys::raise_nofile().map_err(StartError::machine)?;
    Ok(Machine {
        node: NodeId(u64::from_ne_bytes(random()?)),
        cores: sys::available_cores().map_err(StartError::machine)?,
        nofile: nofile.soft,
        memory_bytes: sys::memory_bytes().ok(),
    })
}

fn random<const N: usize>() -> Result<[u8; N], StartError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|error| {
        StartError::Machine(format!("the kernel gives no random bytes: {error}"))
    })?;
    Ok(bytes)
}

/// Logs what the plan has to say.
fn say(notices: &[StartupNotice]) {
    for notice in notices {
        match notice.level {
            NoticeLevel::Warning => tracing::warn!("{}", notice.text),
            NoticeLevel::Info => tracing::info!("{}", notice.text),
            NoticeLevel::Debug => tracing::debug!("{}", notice.text),
        }
    }
}

/// Makes sure that what the plan names as files and URLs can be used, before a thread meets it.
fn files(plan: &Plan) -> Result<(), StartError> {
    if let BackplanePlan::Redis(redis) = &plan.backplane {
        authorities("redis.tls_ca_file", redis.tls_ca_file.as_deref())?;
    }
    authorities("hooks.tls_ca_file", plan.hooks.tls_ca_file.as_deref())?;
    let jwks = plan.auth.jwks.as_ref();
    authorities("auth.jwks_tls_ca_file", jwks.and_then(|jwks| jwks.tls_ca_file.as_deref()))?;
    let jwks = jwks.map(|jwks| ("auth.jwks_url", &jwks.url[..]));
    for (key, url) in plan.hooks.urls().chain(jwks) {
        check_url(url).map_err(|why| StartError::Machine(format!("{key} = {url}: {why}")))?;
    }
    Ok(())
}

fn authorities(key: &str, path: Option<&str>) -> Result<(), StartError> {
    let Some(path) = path else { return Ok(()) };
    let refused = |error| {
        let advice = "Write the path of a file with certificates in PEM, or leave it out";
        StartError::Machine(format!("{key} = {path}: {error}. {advice}"))
    };
    tls_trust::client_config(Some(path)).map(|_| ()).map_err(refused)
}
