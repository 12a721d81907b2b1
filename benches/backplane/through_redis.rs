//! From node to node: two backplane threads with a shard each, and a redis-server between them.

use super::alone::{self, Alone, Hops};
use super::node::{Backplane, MinimalShard, measure, payload};
use super::redis_server::Redis;
use super::{Size, Statistics};
use campanile::config::Config;
use campanile::ids::TopicName;
use campanile::link::channel::ShardEnd;
use campanile::plan::{BackplanePlan, RedisPlan, RedisServers};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::Instant;

/// Rooms with a member on the second node.
const ROOMS: usize = 100;
/// Messages that may be in flight when many are sent.
const OUTSTANDING: u64 = 8 * 1024;

/// Who carries one message at a time.
const SINGLES: [&str; 3] =
    ["campanile", "bare PUBLISH to SUBSCRIBE", "bare, with a thread more at each end"];

pub fn bench(size: &Size) {
    let redis = Redis::start();
    let (port, payload) = (redis.port, payload());
    let mut latencies: [Vec<[f64; 2]>; 3] = Default::default();
    let mut rates: [Vec<Rate>; 2] = Default::default();
    for round in 0..size.rounds {
        // Every other round in reverse order: drift affects all alike.
        let order = if round % 2 == 0 { [0, 1, 2] } else { [2, 1, 0] };
        for who in order {
            let took_ns = match who {
                0 => singles(&redis, size),
                1 => alone::singles(port, &payload, size.singles, Hops::None),
                _ => alone::singles(port, &payload, size.singles, Hops::Two),
            };
            latencies[who].push(quantiles_us(took_ns));
        }
        for who in order.into_iter().filter(|who| *who < 2) {
            rates[who].push(if who == 0 { many(&redis, size) } else { alone_many(&redis, size) });
        }
    }
    print_latencies(&latencies);
    print_rates(&rates);
}

fn print_latencies(latencies: &[Vec<[f64; 2]>; 3]) {
    println!("node to node, one message at a time: µs from publish to the other node's shard");
    for (name, times) in SINGLES.iter().zip(latencies) {
        let of = |which: usize| Statistics::of(times.iter().map(|time| time[which]).collect());
        let ratio = |which: usize| {
            let pairs = latencies[0].iter().zip(times);
            Statistics::of(pairs.map(|(ours, other)| ours[which] / other[which]).collect())
        };
        println!(
            "  {name:36}  p50 {:.0}, p99 {:.0}; campanile / this: p50 {:.2}, p99 {:.2}",
            of(0),
            of(1),
            ratio(0),
            ratio(1)
        );
    }
}

fn print_rates([ours, alone]: &[Vec<Rate>; 2]) {
    println!(
        "many messages: by second of the processor time of the thread that sends or takes them"
    );
    for (name, rates) in [("campanile", ours), ("redis crate alone", alone)] {
        let of = |value: fn(&Rate) -> f64| Statistics::of(rates.iter().map(value).collect());
        println!(
            "  {name:18} out {:.0}/s, in {:.0}/s; by the clock {:.0}/s",
            of(|rate| rate.messages / rate.out_cpu_s),
            of(|rate| rate.messages / rate.in_cpu_s),
            of(|rate| rate.messages / rate.seconds),
        );
    }
}

/// Median and 99th percentile, in microseconds.
fn quantiles_us(mut took_ns: Vec<u64>) -> [f64; 2] {
    took_ns.sort_unstable();
    let at = |part: f64| took_ns[((took_ns.len() - 1) as f64 * part) as usize] as f64 / 1e3;
    [at(0.5), at(0.99)]
}

/// Messages that arrived, and what they cost.
struct Rate {
    messages: f64,
    out_cpu_s: f64,
    in_cpu_s: f64,
    seconds: f64,
}

/// Two nodes that know each other: one to publish, one with the members.
fn nodes(redis: &Redis) -> [(ShardEnd, Backplane); 2] {
    let config = Config::default();
    let plan = RedisPlan {
        servers: Box::new(RedisServers::read(&redis.url()).unwrap()),
        prefix: "bench".into(),
        linger_ms: config.redis_linger_ms,
        canary_interval_ms: config.redis_canary_interval_ms,
        canary_timeout_ms: config.redis_canary_timeout_ms,
        timeout_ms: config.redis_timeout_ms,
        backoff_ms_max: config.redis_backoff_ms_max,
        tls_ca_file: None,
        monitor_interval_ms: config.redis_monitor_interval_ms,
        keeps_history: false,
    };
    [1, 2].map(|node| {
        let (mut ends, backplane) = Backplane::start(1, BackplanePlan::Redis(plan.clone()), node);
        backplane.await_up();
        (ends.remove(0), backplane)
    })
}

fn rooms() -> Vec<TopicName> {
    (0..ROOMS).map(|n| TopicName::room(&format!("room{n}"))).collect()
}

/// One message at a time: the nanoseconds from the publish to the other node's shard.
fn singles(redis: &Redis, size: &Size) -> Vec<u64> {
    let [(here, near), (there, far)] = nodes(redis);
    let (heard_out, heard) = mpsc::channel();
    let (ready_out, ready) = mpsc::channel();
    let listener = std::thread::spawn(move || {
        let shard = MinimalShard::join(there, rooms());
        ready_out.send(()).expect("the publisher waits for it");
        let tell = |_: &_| heard_out.send(Instant::now()).expect("the publisher waits for it");
        while shard.drain(tell).is_some() {
            shard.sleep_unless_something_came();
        }
    });
    ready.recv().expect("it joins");
    let (shard, rooms, payload) = (MinimalShard::join(here, Vec::new()), rooms(), payload());
    let took_ns = (0..size.singles).map(|number| {
        let topic = rooms[number % ROOMS].clone();
        let begun = Instant::now();
        assert!(shard.publish_to(topic, payload.as_bytes()), "one fits");
        shard.end.ring();
        let heard = heard.recv().expect("every message arrives");
        heard.duration_since(begun).as_nanos() as u64
    });
    let took_ns = took_ns.collect();
    near.stop(1);
    far.stop(1);
    listener.join().expect("the listener did not panic");
    took_ns
}

/// As many as go through.
fn many(redis: &Redis, size: &Size) -> Rate {
    let [(here, near), (there, far)] = nodes(redis);
    let heard = Arc::new(AtomicU64::new(0));
    let (ready_out, ready) = mpsc::channel();
    let listener = {
        let heard = heard.clone();
        std::thread::spawn(move || {
            let shard = MinimalShard::join(there, rooms());
            ready_out.send(()).expect("the publisher waits for it");
            while let Some(taken) = shard.drain(|_| ()) {
                heard.store(heard.load(Ordering::Relaxed) + taken, Ordering::Relaxed);
                shard.sleep_unless_something_came();
            }
        })
    };
    ready.recv().expect("it joins");
    let publisher = {
        let heard = heard.clone();
        std::thread::spawn(move || publish_many(MinimalShard::join(here, Vec::new()), &heard))
    };
    let cpu = |backplane: &Backplane| backplane.cpu_ns() as f64 / 1e9;
    let read = || (heard.load(Ordering::Relaxed) as f64, cpu(&near), cpu(&far));
    let rate = rate(measure(size, read));
    near.stop(1);
    publisher.join().expect("the publisher did not panic");
    far.stop(1);
    listener.join().expect("the listener did not panic");
    rate
}

fn publish_many(shard: MinimalShard, heard: &AtomicU64) {
    let (rooms, payload) = (rooms(), payload());
    let mut published = 0;
    while shard.drain(|_| ()).is_some() {
        let before = published;
        while published - heard.load(Ordering::Relaxed) < OUTSTANDING
            && shard.publish_to(rooms[published as usize % ROOMS].clone(), payload.as_bytes())
        {
            published += 1;
        }
        if published > before {
            shard.end.ring();
        }
        // The other node does not ring us: look again in a moment.
        std::thread::sleep(std::time::Duration::from_micros(200));
    }
}

fn alone_many(redis: &Redis, size: &Size) -> Rate {
    let alone = Alone::start(&redis.url(), &payload());
    let rate = rate(measure(size, || alone.read()));
    alone.stop();
    rate
}

type Reading = (f64, f64, f64);

fn rate((before, after, time): (Reading, Reading, std::time::Duration)) -> Rate {
    let messages = after.0 - before.0;
    assert!(messages > 0.0, "nothing arrived");
    Rate {
        messages,
        out_cpu_s: after.1 - before.1,
        in_cpu_s: after.2 - before.2,
        seconds: time.as_secs_f64(),
    }
}
