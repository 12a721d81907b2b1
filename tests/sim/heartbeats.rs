//! A million heartbeats: the real sweep on virtual time, asked how even it is.
//!
//! 25 s over a million connections are 40,000 pings a second, and no second may carry half as many
//! again: what a second carries is what every core has to have in reserve. When somebody is pinged
//! depends on its place in the slab alone, so crowds that come at once do no harm; crowds that leave
//! might, because who leaves may follow a pattern (every other connection came through the same
//! proxy), and the places that stay must not all be in the same second.

use crate::bare::{Bare, limits};
use crate::rng::Rng;

const MILLION: usize = 1_000_000;
/// As the shards' threads tell the time.
const TICK_MS: u64 = 100;
/// A ping without payload, as a server writes it.
const PING: &[u8] = &[0x89, 0];

/// `conns` connections on one shard that all came within a second.
fn storm(conns: usize) -> Bare {
    let mut bare = Bare::new(limits());
    bare.now_ms = 7_000;
    for n in 0..conns {
        bare.open(&format!("u{n}"), &[]);
        if n % (conns / 10) == 0 {
            bare.now_ms += TICK_MS;
            bare.shard.handle_timeout(bare.now_ms);
            bare.settle();
        }
    }
    bare.settle();
    // Some were pinged already while others still came.
    (0..conns).for_each(|socket_key| bare.read(socket_key, 10, b""));
    bare
}

/// One interval, in which everybody answers at once. How many were pinged in each of its seconds.
fn interval(bare: &mut Bare) -> Vec<usize> {
    let seconds = limits().ping_interval_ms / 1000;
    let mut pinged = Vec::new();
    (0..seconds).map(|_| second(bare, &mut pinged)).collect()
}

fn second(bare: &mut Bare, pinged: &mut Vec<usize>) -> usize {
    let mut pings = 0;
    for _ in 0..1000 / TICK_MS {
        bare.now_ms += TICK_MS;
        bare.shard.handle_timeout(bare.now_ms);
        while bare.write(|socket_key, buf| {
            assert_eq!(&buf[..], PING, "nothing else happens here");
            pinged.push(socket_key);
        }) > 0
        {}
        pings += pinged.len();
        for socket_key in pinged.drain(..) {
            bare.read(socket_key, 10, b"");
        }
    }
    pings
}

/// No second carries more than half as much again as the mean, and nobody is left out.
fn is_even(bare: &mut Bare, here: usize, what: &str) {
    interval(bare); // Whoever has just come is placed.
    let seconds = interval(bare);
    assert_eq!(seconds.iter().sum::<usize>(), here, "{what}: everyone once in an interval");
    let (mean, most) = (here / seconds.len(), seconds.iter().max().expect("there are 25"));
    let ratio = *most as f64 / mean as f64;
    println!("{what}: {here} connections, the fullest second carries {ratio:.3} x the mean");
    assert!(ratio <= 1.5, "{what}: {seconds:?}");
    assert_eq!(bare.shard.counters.closed_silent, 0, "{what}: everybody answers");
}

#[test]
fn a_million_who_came_within_a_second_are_pinged_evenly_also_when_half_of_them_have_left() {
    let mut bare = storm(MILLION);
    is_even(&mut bare, MILLION, "after a storm");
    let mut rng = Rng::new(1);
    let mut here = MILLION;
    for socket_key in 0..MILLION {
        if rng.chance(50) {
            bare.cut(socket_key);
            here -= 1;
        }
    }
    is_even(&mut bare, here, "half have left");
}

#[test]
fn whatever_pattern_those_who_leave_follow_the_rest_are_pinged_evenly() {
    type Stays = fn(usize) -> bool;
    let patterns: [(&str, Stays); 6] = [
        ("every other stays", |n| n % 2 == 0),
        ("the others stay", |n| n % 2 == 1),
        ("every eighth stays", |n| n % 8 == 3),
        ("every 256th stays", |n| n % 256 == 77),
        ("the first half stays", |n| n < 50_000),
        ("the last half stays", |n| n >= 50_000),
    ];
    for (what, stays) in patterns {
        let conns = 100_000;
        let mut bare = storm(conns);
        (0..conns).filter(|n| !stays(*n)).for_each(|n| bare.cut(n));
        is_even(&mut bare, (0..conns).filter(|n| stays(*n)).count(), what);
    }
}

#[test]
fn sixty_shards_that_began_together_do_not_ping_together() {
    let mut shards: Vec<Bare> = (0..60).map(|n| storm(500 + 7 * n)).collect();
    let here: usize = shards.iter().map(|bare| bare.conns.len()).sum();
    shards.iter_mut().for_each(|bare| drop(interval(bare)));
    let mut seconds = vec![0; 25];
    for bare in &mut shards {
        interval(bare).iter().zip(&mut seconds).for_each(|(pings, all)| *all += pings);
    }
    assert_eq!(seconds.iter().sum::<usize>(), here);
    let most = *seconds.iter().max().expect("there are 25") as f64;
    assert!(most <= 1.5 * here as f64 / 25.0, "{seconds:?}");
}
