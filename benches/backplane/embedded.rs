//! A single node: every message goes up to the backplane thread and comes down again.

use super::node::{Backplane, MinimalShard, measure, payload};
use super::{Size, Statistics};
use campanile::ids::TopicName;
use campanile::plan::BackplanePlan;
use crossbeam_utils::CachePadded;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Barrier};

/// Where the members of a topic are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Spans {
    /// On one shard; topics are dealt out to shards in turn, and each shard publishes to its own.
    OneShard,
    /// On every shard; the first one publishes.
    AllShards,
}

/// Topics of the run.
const TOPICS: usize = 600;
/// Messages in flight, over all shards.
const OUTSTANDING: u64 = 2048;

/// One counter for each shard.
type Heard = Arc<Vec<CachePadded<AtomicU64>>>;

pub fn bench(size: &Size) {
    println!("one backplane thread, embedded: messages by second of its processor time");
    for spans in [Spans::OneShard, Spans::AllShards] {
        let shards = [1, 2, 60];
        let mut runs: Vec<Vec<Run>> = shards.iter().map(|_| Vec::new()).collect();
        for round in 0..size.rounds {
            // Every other round in reverse order: drift affects all alike.
            let order: Vec<usize> = match round % 2 {
                0 => (0..shards.len()).collect(),
                _ => (0..shards.len()).rev().collect(),
            };
            for which in order {
                runs[which].push(run(shards[which], spans, size));
            }
        }
        for (shards, runs) in shards.iter().zip(runs) {
            let of = |value: fn(&Run) -> f64| Statistics::of(runs.iter().map(value).collect());
            println!(
                "  {shards:2} shards, members on {}: {:.0}/s of its CPU, {:.3} µs each, \
                 {:.0} deliveries/s of its CPU; by the clock {:.0}/s",
                if spans == Spans::OneShard { "one" } else { "all" },
                of(Run::per_cpu_second),
                of(|run| 1e6 / run.per_cpu_second()).median,
                of(|run| run.deliveries / run.cpu_s).median,
                of(|run| run.messages / run.seconds).median,
            );
        }
    }
}

struct Run {
    messages: f64,
    deliveries: f64,
    cpu_s: f64,
    seconds: f64,
}

impl Run {
    fn per_cpu_second(&self) -> f64 {
        self.messages / self.cpu_s
    }
}

fn run(shards: u16, spans: Spans, size: &Size) -> Run {
    let (ends, backplane) = Backplane::start(shards, BackplanePlan::Memory, 1);
    backplane.await_up();
    let heard: Heard = Arc::new((0..shards).map(|_| CachePadded::default()).collect());
    let begin = Arc::new(Barrier::new(usize::from(shards) + 1));
    let threads: Vec<_> = ends
        .into_iter()
        .map(|end| {
            let (heard, begin) = (heard.clone(), begin.clone());
            std::thread::spawn(move || {
                let mine = |topic: &usize| match spans {
                    Spans::OneShard => topic % usize::from(shards) == usize::from(end.id.0),
                    Spans::AllShards => true,
                };
                let topics: Vec<_> = (0..TOPICS).filter(mine).map(room).collect();
                let shard = MinimalShard::join(end, topics);
                begin.wait();
                live(shard, spans, &heard);
            })
        })
        .collect();
    begin.wait();
    let read = || {
        let heard = heard.iter().map(|heard| heard.load(Ordering::Relaxed)).sum::<u64>();
        (heard as f64, backplane.cpu_ns() as f64 / 1e9)
    };
    let (before, after, time) = measure(size, read);
    backplane.stop(shards);
    threads.into_iter().for_each(|thread| thread.join().expect("a shard did not panic"));
    let deliveries = after.0 - before.0;
    let copies = if spans == Spans::OneShard { 1.0 } else { f64::from(shards) };
    assert!(deliveries > 0.0, "nothing arrived");
    let (cpu_s, seconds) = (after.1 - before.1, time.as_secs_f64());
    Run { messages: deliveries / copies, deliveries, cpu_s, seconds }
}

fn room(number: usize) -> TopicName {
    TopicName::room(&format!("room{number}"))
}

/// Publishes as much as may be outstanding, takes what arrives, sleeps while nothing does.
fn live(mut shard: MinimalShard, spans: Spans, heard: &Heard) {
    let (own, payload) = (usize::from(shard.end.id.0), payload());
    let shards = heard.len() as u64;
    let mut published = 0u64;
    let window = match spans {
        Spans::OneShard => (OUTSTANDING / shards).max(1),
        Spans::AllShards if own == 0 => OUTSTANDING / 8,
        Spans::AllShards => 0,
    };
    loop {
        let Some(taken) = shard.drain(|_| ()) else { return };
        // One writer each, so no read-modify-write.
        let mine = heard[own].load(Ordering::Relaxed) + taken;
        heard[own].store(mine, Ordering::Relaxed);
        let complete = match spans {
            Spans::OneShard => mine,
            // A message is complete when the slowest shard has it.
            Spans::AllShards if own == 0 => {
                heard.iter().map(|heard| heard.load(Ordering::Relaxed)).min().expect("one shard")
            }
            Spans::AllShards => 0,
        };
        let before = published;
        while window > 0 && published - complete < window && shard.publish(payload.as_bytes()) {
            published += 1;
        }
        if published > before {
            shard.end.ring();
        } else if window > 0 && complete < mine {
            // Others are behind, and do not ring when they have caught up.
            std::thread::yield_now();
            continue;
        }
        shard.sleep_unless_something_came();
    }
}
