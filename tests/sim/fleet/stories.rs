//! What a publish, churn, a restart of Redis and a dead node cost two hundred nodes, counted and
//! compared with the formulas.
//!
//! Two kinds of comparison. With a naive model of who is where a count agrees exactly. With a formula
//! it agrees as far as chance allows: within five standard deviations, so that a seed that fails by
//! itself would be one in a million.

use super::model;
use super::world::{Build, Fleet, TICK_MS};
use crate::rng::Rng;
use campanile::backplane::redis::connection::subscriptions::CHANNELS_PER_BATCH;
use campanile::metrics::{BackplaneCounters, ShardCounters};
use std::collections::{BTreeMap, HashMap, HashSet};

/// Beside its topics a node listens to everybody's, and Redis has its canary and the ingest channel.
const EVERYBODY: usize = 1;
const FIXED: usize = 2;

/// Prints the seed with which a story can be lived again.
fn seed(usual: u64) -> u64 {
    let seed = std::env::var("FLEET_SEED").ok().map(|text| text.parse().expect("a number"));
    let seed = seed.unwrap_or(usual);
    println!("FLEET_SEED={seed}");
    seed
}

/// A fleet, its rooms and who is in them.
struct Town {
    fleet: Fleet,
    rooms: Vec<(String, Vec<usize>)>,
}

/// The mix that everything here is planned for: a tenth alone in a room, eight tenths in rooms of 10
/// to 1000, a tenth in one huge room; anywhere.
fn town(seed: u64, build: Build, clients_per_node: usize) -> Town {
    let mut fleet = Fleet::new(seed, build);
    let clients = build.nodes * clients_per_node;
    let (alone, huge) = (clients / 10, clients / 10);
    let mut sizes: Vec<usize> = vec![1; alone];
    let mut left = clients - alone - huge;
    for size in [10, 30, 100, 300, 1000].into_iter().cycle() {
        if left == 0 {
            break;
        }
        sizes.push(size.min(left));
        left -= size.min(left);
    }
    sizes.push(huge);
    let mut rooms = Vec::new();
    for (number, size) in sizes.into_iter().enumerate() {
        let room = format!("room{number}");
        let members: Vec<usize> = (0..size)
            .map(|_| {
                let who = fleet.client(&format!("user{}", fleet.clients.len()), &[&room]);
                fleet.connect(who);
                if who.is_multiple_of(4000) {
                    fleet.run();
                }
                who
            })
            .collect();
        rooms.push((room, members));
    }
    fleet.run();
    for who in 0..fleet.clients.len() {
        let user = format!("u:{}", fleet.clients[who].user);
        fleet.owe(who, &user);
        fleet.owe(who, "*");
    }
    Town { fleet, rooms }
}

/// The huge room.
fn huge(rooms: &[(String, Vec<usize>)]) -> &(String, Vec<usize>) {
    rooms.last().expect("there is one")
}

/// The nodes, and the shards, on which these clients are.
fn places(fleet: &Fleet, clients: &[usize]) -> (usize, usize) {
    let at = |who: &usize| (fleet.clients[*who].node, fleet.clients[*who].tower);
    let shards: HashSet<_> = clients.iter().map(at).collect();
    let nodes: HashSet<_> = shards.iter().map(|(node, _)| *node).collect();
    (nodes.len(), shards.len())
}

fn sum_nodes(fleet: &Fleet, of: fn(&BackplaneCounters) -> u64) -> u64 {
    fleet.nodes.iter().map(|node| of(&node.local.counters)).sum()
}

fn sum_shards(fleet: &Fleet, of: fn(&ShardCounters) -> u64) -> u64 {
    let towers = fleet.nodes.iter().flat_map(|node| &node.towers);
    towers.map(|it| of(&it.shard.counters)).sum()
}

/// Whether a count is what a formula says, as far as chance allows.
fn agrees(what: &str, counted: u64, mean: f64, variance: f64) {
    let off = (counted as f64 - mean).abs();
    println!("{what}: counted {counted}, the formula says {mean:.1} ± {:.1}", variance.sqrt());
    assert!(off <= 5.0 * variance.sqrt() + 1.0, "{what}: {counted} is not {mean:.1}");
}

#[test]
fn a_publish_is_one_message_into_redis_and_one_out_for_each_node_with_a_member() {
    let Town { mut fleet, rooms } = town(seed(1), Build::large(), 200);
    let clients = fleet.clients.len();
    let before = sum_shards(&fleet, |c| c.frames_in);
    fleet.redis.take_counts();
    let (mut publishes, mut nodes, mut shards, mut members) = (0, 0, 0, 0);
    let mut by_size: BTreeMap<usize, (u64, u64)> = BTreeMap::new();
    for (room, inside) in rooms.iter().filter(|(_, m)| m.len() > 1).chain(&rooms[..500]) {
        fleet.publish(inside[0], &format!("r:{room}"), true);
        let (on_nodes, on_shards) = places(&fleet, inside);
        let counted = by_size.entry(inside.len()).or_default();
        *counted = (counted.0 + 1, counted.1 + on_nodes as u64);
        publishes += 1;
        (nodes, shards, members) = (nodes + on_nodes, shards + on_shards, members + inside.len());
    }
    for who in (0..clients).step_by(100) {
        let user = format!("u:{}", fleet.clients[(who * 7 + 1) % clients].user);
        fleet.publish(who, &user, true);
        publishes += 1;
        (nodes, shards, members) = (nodes + 1, shards + 1, members + 1);
    }
    fleet.publish(0, "*", true);
    publishes += 1;
    (nodes, shards, members) = (nodes + 200, shards + 400, members + clients);
    fleet.run();

    let counts = fleet.redis.take_counts();
    assert_eq!(counts.publishes, publishes);
    assert_eq!(counts.messages_out, nodes as u64, "only to nodes with a member");
    assert_eq!((counts.subscribes, counts.unsubscribes), (0, 0));
    assert_eq!(sum_nodes(&fleet, |c| c.received), nodes as u64);
    assert_eq!(sum_nodes(&fleet, |c| c.unwanted), 0, "no node without members heard one");
    assert_eq!(sum_nodes(&fleet, |c| c.delivered), shards as u64);
    assert_eq!(sum_shards(&fleet, |c| c.frames_in) - before, shards as u64);
    assert_eq!(sum_shards(&fleet, |c| c.dropped_stale), 0, "and no shard without members");
    assert_eq!(sum_shards(&fleet, |c| c.deliveries), members as u64);
    fleet.judge();
    let heard: u64 = fleet.clients.iter().flat_map(|c| &c.ears).map(|(_, ear)| ear.heard).sum();
    assert_eq!(heard, members as u64);
    for (size, (rooms, on_nodes)) in by_size {
        let (n, s, rooms) = (200.0, size as f64, rooms as f64);
        let mean = rooms * model::nodes_with_a_member(n, s);
        agrees(
            &format!("nodes with a member, rooms of {size}"),
            on_nodes,
            mean,
            rooms * model::variance(n, s),
        );
    }
}

/// What a naive model remembers of one room on one node.
#[derive(Default)]
struct Seat {
    members: usize,
    empty_since_ms: u64,
    is_subscribed: bool,
}

/// Time goes by in steps where people come and go by chance.
const STEP_MS: u64 = 500;

/// How long something takes that happens by chance, once in a span of 1 on average.
fn chance_span(rng: &mut Rng) -> f64 {
    let chance = (rng.next() >> 11) as f64 / (1u64 << 53) as f64;
    -(1.0 - chance).ln()
}

#[test]
fn churn_costs_redis_two_commands_for_each_room_that_was_empty_on_a_node_longer_than_it_lingers() {
    const STAY_S: f64 = 300.0;
    const SPAN_S: u64 = 900;
    let (build, seed) = (Build::large(), seed(2));
    let mut fleet = Fleet::new(seed, build);
    let mut rng = Rng::new(!seed);
    // Rooms of 20, 200 and 2000: a tenth of a member a node, one, and ten.
    let classes = [(20, 400), (200, 40), (2000, 2)];
    let room = |class: usize, number: usize| format!("c{class}-{number}");
    let mut seats: HashMap<(String, usize), Seat> = HashMap::new();
    let mut moves: BTreeMap<(u64, usize), usize> = BTreeMap::new();
    let stay_ms = |rng: &mut Rng| (chance_span(rng) * STAY_S * 1000.0) as u64;
    for (class, (size, count)) in classes.into_iter().enumerate() {
        for _ in 0..size * count {
            let room = room(class, rng.below(count));
            let who = fleet.client(&format!("user{}", fleet.clients.len()), &[&room]);
            fleet.connect(who);
            let seat = seats.entry((room, fleet.clients[who].node)).or_default();
            (seat.members, seat.is_subscribed) = (seat.members + 1, true);
            moves.insert((stay_ms(&mut rng), who), class);
            if who.is_multiple_of(2000) {
                fleet.run();
            }
        }
    }
    fleet.run();
    fleet.redis.take_counts();
    let (mut added, mut removed) = (0, 0);
    while fleet.now_ms < SPAN_S * 1000 {
        fleet.now_ms += STEP_MS;
        let now_ms = fleet.now_ms;
        let later = moves.split_off(&(now_ms + 1, 0));
        for ((_, who), class) in std::mem::replace(&mut moves, later) {
            let (old, _) = fleet.clients[who].rooms[0].clone();
            let node = fleet.clients[who].node;
            let new = room(class, rng.below(classes[class].1));
            moves.insert((now_ms + stay_ms(&mut rng), who), class);
            fleet.leave(who, &old);
            let seat = seats.get_mut(&(old, node)).expect("it was there");
            (seat.members, seat.empty_since_ms) = (seat.members - 1, now_ms);
            fleet.join(who, &new);
            let seat = seats.entry((new, node)).or_default();
            added += u64::from(!seat.is_subscribed);
            (seat.members, seat.is_subscribed) = (seat.members + 1, true);
        }
        fleet.run();
        for seat in seats.values_mut().filter(|seat| seat.is_subscribed && seat.members == 0) {
            if now_ms - seat.empty_since_ms >= build.linger_ms {
                (seat.is_subscribed, removed) = (false, removed + 1);
            }
        }
    }
    let counts = fleet.redis.take_counts();
    assert_eq!((counts.channels_added, counts.channels_removed), (added, removed));
    assert_eq!(counts.repeated, 0);
    fleet.judge();
    // Time goes by half seconds here, so a topic lingers a quarter longer on average.
    let linger_s = build.linger_ms as f64 / 1000.0 + STEP_MS as f64 / 2000.0;
    let of = |(size, count): (usize, usize)| {
        let a_node = model::subscriptions_per_s(200.0, size as f64, STAY_S, linger_s);
        200.0 * count as f64 * a_node * SPAN_S as f64
    };
    let mean: f64 = classes.map(of).iter().sum();
    // Renewals vary less than independent events would, whose variance is their mean. The first
    // subscriptions need no linger before them: at most one linger's worth more.
    agrees("subscriptions by churn", added, mean, mean);
    let joins = sum_shards(&fleet, |c| c.joins) - fleet.clients.len() as u64;
    println!("{joins} joins and as many leaves, {added} subscriptions, {removed} unsubscriptions");
    assert!(counts.subscribes < added, "neighbours share a command");
}

#[test]
fn a_page_that_reloads_costs_redis_nothing_on_its_node_and_two_changes_a_topic_elsewhere() {
    let mut fleet = Fleet::new(seed(3), Build::large());
    let clients = 4000;
    for n in 0..clients {
        let who = fleet.client(&format!("user{n}"), &[]);
        fleet.connect(who);
    }
    fleet.run();
    fleet.redis.take_counts();
    let places: Vec<_> = fleet.clients.iter().map(|c| (c.node, c.tower)).collect();
    // Everybody is away for ten seconds, and comes back to where it was.
    (0..clients).for_each(|who| fleet.cut(who));
    fleet.run();
    fleet.now_ms += 10_000;
    fleet.run();
    for (who, place) in places.iter().enumerate() {
        assert!(fleet.knock(who, *place));
        fleet.open(who);
    }
    fleet.now_ms += 60_000;
    fleet.run();
    assert_eq!(fleet.redis.take_counts(), Default::default(), "nothing was asked of Redis");
    // Now the balancer chooses again.
    (0..clients).for_each(|who| fleet.cut(who));
    (0..clients).for_each(|who| fleet.connect(who));
    fleet.run();
    let moved: Vec<usize> =
        (0..clients).filter(|who| fleet.clients[*who].node != places[*who].0).collect();
    let counts = fleet.redis.take_counts();
    assert_eq!((counts.channels_added, counts.channels_removed), (moved.len() as u64, 0));
    agrees(
        "on another node",
        moved.len() as u64,
        4000.0 * 199.0 / 200.0,
        4000.0 * 199.0 / 40_000.0,
    );
    // While the old topics linger, the old nodes still hear what nobody there wants.
    for who in &moved[..100] {
        let user = format!("u:{}", fleet.clients[*who].user);
        fleet.publish(0, &user, true);
    }
    fleet.run();
    assert_eq!(fleet.redis.take_counts().messages_out, 200);
    assert_eq!(sum_nodes(&fleet, |c| c.unwanted), 100);
    assert_eq!(sum_nodes(&fleet, |c| c.delivered), 100);
    fleet.now_ms += 15_000;
    fleet.run();
    assert_eq!(fleet.redis.take_counts().channels_removed, moved.len() as u64);
    let everyone = clients + 200 * (EVERYBODY + FIXED);
    assert_eq!(fleet.redis.subscriptions(), everyone);
}

#[test]
fn after_a_restart_of_redis_every_node_subscribes_all_it_wants_once_in_large_commands() {
    let build = Build::large();
    let Town { mut fleet, rooms } = town(seed(4), build, 600);
    let topics: Vec<usize> = fleet.nodes.iter().map(|node| node.local.interest.count()).collect();
    let clients = fleet.clients.len() as f64;
    let mean = clients
        + rooms.iter().map(|(_, m)| model::nodes_with_a_member(200.0, m.len() as f64)).sum::<f64>();
    let spread = rooms.iter().map(|(_, m)| model::variance(200.0, m.len() as f64)).sum();
    agrees("topics of all nodes", (topics.iter().sum::<usize>() - 200) as u64, mean, spread);
    fleet.redis.take_counts();

    for at in 0..build.nodes {
        fleet.break_link(at);
    }
    assert_eq!(fleet.redis.subscriptions(), 0);
    let (room, members) = huge(&rooms).clone();
    let room = format!("r:{room}");
    // They come back one by one, and somebody on the first never stops talking.
    let talker = *members.iter().find(|who| fleet.clients[**who].node == 0).expect("of 12,000");
    for (at, topics) in topics.into_iter().enumerate() {
        fleet.nodes[at].connect();
        fleet.run();
        assert!(fleet.nodes[at].is_up());
        let counts = fleet.redis.take_counts();
        let commands = 1 + topics.div_ceil(CHANNELS_PER_BATCH);
        assert_eq!(counts.subscribes, commands as u64, "one for its own channels, then by 512");
        assert_eq!(counts.channels_added, (FIXED + topics) as u64, "each once");
        assert_eq!((counts.unsubscribes, counts.repeated), (0, 0));
        fleet.publish(talker, &room, true);
        fleet.run();
        assert_eq!(fleet.redis.take_counts().messages_out, at as u64 + 1);
    }
    fleet.judge();
    // Who was still away missed what was said meanwhile, and nothing else.
    for who in members {
        let ear = fleet.ear(who, &room).expect("it is in it");
        assert_eq!(ear.cut_off, fleet.clients[who].node as u64, "as many as nodes came before");
        assert_eq!(ear.heard + ear.cut_off, 200);
    }
}

/// The topics of everybody who is connected, by node.
fn topics(fleet: &Fleet) -> HashSet<(usize, String)> {
    let of = |who: usize| {
        let client = &fleet.clients[who];
        let rooms = client.rooms.iter().map(|(room, _)| format!("r:{room}"));
        let topics = rooms.chain([format!("u:{}", client.user)]);
        topics.map(|topic| (client.node, topic)).collect::<Vec<_>>()
    };
    let here = (0..fleet.clients.len()).filter(|who| fleet.clients[*who].conn.is_some());
    here.flat_map(of).collect()
}

#[test]
fn clients_of_a_dead_node_come_back_evenly_and_only_what_they_bring_is_subscribed() {
    let (seed, dead) = (seed(5), 7);
    let mut build = Build::large();
    build.limits.handshakes_max = 1; // As many at once as a shard admits here.
    let Town { mut fleet, rooms } = town(seed, build, 600);
    let (room, members) = huge(&rooms).clone();
    let subscribed = fleet.redis.subscriptions();
    let of_dead = fleet.redis.channels_of(dead);
    let lost = fleet.kill(dead);
    let is_lost: HashSet<usize> = lost.iter().copied().collect();
    assert_eq!(fleet.redis.subscriptions(), subscribed - of_dead, "gone with its connection");
    let before = topics(&fleet);
    fleet.redis.take_counts();

    // All of them knock at once; somebody else goes on talking all the while.
    let talker = *members.iter().find(|who| fleet.clients[**who].conn.is_some()).expect("of many");
    lost.iter().for_each(|who| fleet.clients[*who].back_at_ms = Some(0));
    let (mut ticks, mut said) = (0, 0);
    let mut first = None;
    while lost.iter().any(|who| fleet.clients[*who].conn.is_none()) {
        fleet.tick();
        fleet.publish(talker, &format!("r:{room}"), true);
        (ticks, said) = (ticks + 1, said + 1);
        let inside = lost.iter().filter(|who| fleet.clients[**who].conn.is_some()).count() as u64;
        first.get_or_insert(inside);
        assert!(inside <= ticks * 199 * 2, "no shard admits more than one at a time");
        assert!(ticks < 200, "everybody is back within 20 s");
    }
    fleet.tick();
    let (m, shards) = (lost.len() as f64, 199.0 * 2.0);
    let mean = model::nodes_with_a_member(shards, m);
    agrees("admitted at once", first.expect("a tick"), mean, model::variance(shards, m));
    assert!(fleet.refused as u64 >= lost.len() as u64 - first.expect("a tick"));
    println!(
        "{} came back after {ticks} ticks of {TICK_MS} ms, {} were refused",
        lost.len(),
        fleet.refused
    );

    // Who got how many.
    let mut got: HashMap<usize, u64> = HashMap::new();
    lost.iter().for_each(|who| *got.entry(fleet.clients[*who].node).or_default() += 1);
    assert_eq!(got.values().sum::<u64>(), lost.len() as u64);
    let most = *got.values().max().expect("somebody got some") as f64;
    let mean = m / 199.0;
    println!("each got {mean:.1} on average, one got {most}");
    assert!(most <= mean + 6.0 * mean.sqrt(), "nobody is buried");

    // What they brought.
    let new: u64 = topics(&fleet).difference(&before).count() as u64;
    let counts = fleet.redis.take_counts();
    assert_eq!((counts.channels_added, counts.channels_removed), (new, 0));
    let rests = rooms.iter().map(|(_, inside)| {
        let back = inside.iter().filter(|who| is_lost.contains(who)).count() as f64;
        (inside.len() as f64 - back, inside.len() as f64)
    });
    let brought = |(rest, all): (f64, f64)| {
        model::nodes_with_a_member(199.0, all) - model::nodes_with_a_member(199.0, rest)
    };
    let rooms_new: f64 = rests.map(brought).sum();
    agrees("subscriptions that they brought", new, m + rooms_new, m);
    // Nobody else noticed.
    fleet.judge();
    assert_eq!(fleet.ear(talker, &format!("r:{room}")).expect("it talks").heard, said);
    assert_eq!(sum_nodes(&fleet, |c| c.dropped), 0);
}

#[test]
fn a_deploy_sends_clients_away_over_its_time_and_they_arrive_as_evenly() {
    let Town { mut fleet, rooms: _ } = town(seed(6), Build::large(), 300);
    let (node, over_s) = (11, 60);
    let whose: Vec<usize> =
        (0..fleet.clients.len()).filter(|who| fleet.clients[*who].node == node).collect();
    let opened = |fleet: &Fleet| sum_shards(fleet, |c| c.opened);
    fleet.drain(node, over_s * 1000);
    let mut arrivals = Vec::new();
    for _ in 0..over_s + 7 {
        let before = opened(&fleet);
        (0..1000 / TICK_MS).for_each(|_| fleet.tick());
        arrivals.push(opened(&fleet) - before);
    }
    println!("{} clients, arrivals by second: {arrivals:?}", whose.len());
    assert_eq!(arrivals.iter().sum::<u64>(), whose.len() as u64, "everybody is back");
    assert!(whose.iter().all(|who| fleet.clients[*who].conn.is_some()));
    assert!(fleet.nodes[node].towers.iter().all(|it| it.shard.is_drained()));
    let mean = whose.len() as f64 / over_s as f64;
    let most = *arrivals.iter().max().expect("there are some") as f64;
    assert!(most <= mean + 6.0 * mean.sqrt(), "{most} in a second, {mean:.1} on average");
    fleet.judge();
}
