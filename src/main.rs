//! The tower, from the ground up: parse, plan, window, threads, signals, the end.

use campanile::api::OpsSetup;
use campanile::cli::{self, Order, World};
use campanile::config::Config;
use campanile::link::channel::window;
use campanile::link::load_table::LoadTable;
use campanile::node::shutdown;
use campanile::node::startup::{self, Failure};
use campanile::plan::{Plan, Planned};
use campanile::{api, backplane, doctor, load, net, plan, sys, terminal};
use campanile::{auth::Gate, link::health::Health, net::ShardSetup};
use std::process::ExitCode;
use std::sync::{Arc, Barrier};
use std::time::{SystemTime, UNIX_EPOCH};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let world = World {
        // What is not UTF-8 is not left out: a secret that is ignored would open the door.
        env: std::env::vars_os()
            .map(|(name, value)| (name.to_string_lossy().into(), value.to_string_lossy().into()))
            .collect(),
        read_file: &|path| std::fs::read_to_string(path),
        now_unix_s: now,
    };
    let code = match cli::order(std::env::args_os(), &world) {
        Ok(Order::Serve(config)) => serve(&config).unwrap_or_else(|failure| failure.tell()),
        Ok(Order::Load(args)) => load::run(*args),
        Ok(Order::Doctor(question)) => doctor::run(&question),
        Ok(Order::Print(text)) => terminal::print(&text),
        Err(refusal) => refusal.tell(),
    };
    terminal::flush();
    code
}

/// Serves until a signal. Everything that can be refused is refused before the first thread.
fn serve(config: &Config) -> Result<ExitCode, Failure> {
    startup::log(config);
    startup::abort_on_panic();
    let signals = shutdown::signals()?;
    let machine = startup::machine()?;
    let Planned { mut plan, notices } = plan::resolve(config, &machine)?;
    startup::say(&notices);
    startup::files(&plan)?;
    sys::probe_io_uring().map_err(Failure::machine)?;
    let ports = startup::ports(&mut plan)?;
    let tower = build(Arc::new(plan), ports)?;
    Ok(shutdown::until_the_end(tower, signals))
}

/// Starts every thread. All bells exist before the first one, and every file table is split before
/// anything is opened that would have to be closed: a copy in another table keeps a socket alive.
fn build(plan: Arc<Plan>, ports: startup::Ports) -> Result<shutdown::Tower, Failure> {
    let shards = plan.shards.len() as u16;
    let limits = &plan.limits;
    let (ends, backplane_end, ops_end) =
        window(shards, limits.uplink_items_max, limits.downlink_items_max)
            .map_err(Failure::machine)?;
    let gate = Arc::new(Gate::new(&plan.auth));
    let health = Arc::new(Health::default());
    let spread = Arc::new(LoadTable::new(shards));
    let shard_mirrors: Vec<_> = (0..shards).map(|_| Arc::default()).collect();
    let backplane_mirror = Arc::default();
    let tables_split = Arc::new(Barrier::new(usize::from(shards) + 1));

    let mut shard_threads = Vec::new();
    for (end, mirror) in ends.into_iter().zip(&shard_mirrors) {
        let shard = plan.shards[usize::from(end.id.0)];
        let setup = ShardSetup {
            plan: plan.clone(),
            shard,
            end,
            gate: gate.clone(),
            mirror: Arc::clone(mirror),
            health: health.clone(),
            spread: spread.clone(),
        };
        let tables_split = tables_split.clone();
        let run = move || {
            startup::settle_shard(&setup.plan, &setup.shard)?;
            tables_split.wait();
            net::run_shard(setup)
        };
        shard_threads.push(startup::thread(format!("shard-{}", shard.id.0), &health, run)?);
    }
    tables_split.wait();

    let (own_plan, mirror, own_health) =
        (plan.clone(), Arc::clone(&backplane_mirror), health.clone());
    let backplane = startup::thread("backplane".into(), &health, move || {
        startup::settle_backplane(&own_plan);
        backplane::run(own_plan, backplane_end, mirror, own_health);
        Ok(())
    })?;

    let setup = OpsSetup {
        plan: plan.clone(),
        listener: ports.ops,
        end: ops_end.clone(),
        shards: shard_mirrors,
        backplane: backplane_mirror,
        health: health.clone(),
    };
    startup::thread("ops".into(), &health, move || {
        startup::settle(setup.plan.scheduling, &setup.plan.other_cores);
        api::run(setup)
    })?;
    let (ops, shards, held) = (ops_end, shard_threads, ports.held);
    Ok(shutdown::Tower { plan, health, ops, shards, backplane, held })
}
