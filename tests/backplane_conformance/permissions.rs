//! What an ACL user must be allowed to do: without any one permission of the table no node is ready
//! and says which line allows it; with that line it is ready.

use crate::cluster::Cluster;
use crate::redis::{Redis, wait_until};
use crate::world::{Build, World};
use campanile::backplane::redis::permissions::table::{Feature, PERMISSIONS, Probe, rules};

const PREFIX: &str = "test";

/// The features of [`Build::usual`].
const ONE_SERVER: &[Feature] =
    &[Feature::OneServer, Feature::History, Feature::Presence, Feature::Replicated];
const CLUSTER: &[Feature] =
    &[Feature::Cluster, Feature::History, Feature::Presence, Feature::Replicated];

fn set_user(server: &Redis, rules: &[String]) {
    let words = ["ACL", "SETUSER", "bell"].into_iter().chain(rules.iter().map(String::as_str));
    assert_eq!(server.command(&words.collect::<Vec<_>>()), "OK", "{rules:?}");
}

/// A user that may do what the table lists for these features, and nothing else.
pub fn minimal_user(server: &Redis, features: &[Feature], prefix: &str) {
    let beginning = ["reset", "on", ">s3cret", "-@all"].map(str::to_owned);
    set_user(server, &[&beginning[..], &rules(features, prefix)].concat());
}

/// What takes a rule away.
fn without(rule: &str) -> String {
    match rule.as_bytes()[0] {
        b'~' => "resetkeys".to_owned(),
        b'&' => "resetchannels".to_owned(),
        _ => rule.replacen('+', "-", 1),
    }
}

/// The rules of the line that a text says to write.
fn rules_to_write(text: &str) -> Option<Vec<String>> {
    let (_, line) = text.split_once("ACL SETUSER bell ")?;
    Some(line.split(' ').map(|word| word.trim_matches('\'').to_owned()).collect())
}

/// Takes one rule away after the other, and gives it back as the node says.
fn each_is_reported(world: &World, servers: &[&Redis], rules: &[String]) {
    let node = &world.nodes[0];
    for rule in rules {
        servers.iter().for_each(|server| set_user(server, &[without(rule)]));
        servers.iter().for_each(|server| _ = server.command(&["CLIENT", "KILL", "USER", "bell"]));
        let expected = vec![vec![rule.clone()]; servers.len()];
        let mut written = Vec::new();
        // What is shown is a tick old.
        wait_until(&format!("the node says to write {rule}"), || {
            let shown = node.redis_servers();
            let refused = shown.iter().filter(|server| server.reason == Some("permission"));
            written = refused.filter_map(|server| rules_to_write(&server.detail)).collect();
            written == expected
        });
        assert!(node.health.ready(0).is_err(), "without {rule}");
        servers.iter().zip(&written).for_each(|(server, line)| set_user(server, line));
        wait_until("the node is ready again", || node.health.ready(0).is_ok());
    }
}

#[test]
fn without_any_one_permission_a_node_is_not_ready_and_with_the_line_that_it_says_it_is() {
    let redis = Redis::start();
    minimal_user(&redis, ONE_SERVER, PREFIX);
    let url = redis.url().replace("://", "://bell:s3cret@");
    let build = Build { nodes: 1, shards: 1, ..Build::usual() };
    let world = World::over(build, &url, PREFIX);
    each_is_reported(&world, &[&redis], &rules(ONE_SERVER, PREFIX));
    let failures = world.nodes[0].counters().failed_permission;
    assert!(failures >= rules(ONE_SERVER, PREFIX).len() as u64, "{failures}");
    assert_eq!(redis.command(&["KEYS", "*:probe:*"]), "", "no probe is left");
}

#[test]
fn all_missing_permissions_are_in_one_line() {
    let redis = Redis::start();
    set_user(&redis, &["reset", "on", ">s3cret"].map(str::to_owned));
    let url = redis.url().replace("://", "://bell:s3cret@");
    let build = Build { nodes: 1, shards: 1, ..Build::usual() };
    let world = World::begin(build, &url, PREFIX);
    let node = &world.nodes[0];
    let mut lines = Vec::new();
    // Redis judges keys and channels only of a command that it allows: two lines are enough.
    wait_until("the node is ready", || {
        let server = node.redis_servers().first().cloned();
        let line = server.and_then(|server| rules_to_write(&server.detail));
        if let Some(line) = line.filter(|line| lines.last() != Some(line)) {
            set_user(&redis, &line);
            lines.push(line);
        }
        node.health.ready(0).is_ok()
    });
    let mut written = lines.concat();
    assert_eq!(lines.len(), 2, "{lines:?}");
    written.sort();
    let mut needed = rules(ONE_SERVER, PREFIX);
    needed.sort();
    assert_eq!(written, needed);
}

#[test]
fn only_what_is_configured_is_needed() {
    let redis = Redis::start();
    minimal_user(&redis, &[Feature::OneServer], PREFIX);
    let url = redis.url().replace("://", "://bell:s3cret@");
    let build = Build { nodes: 1, shards: 1, namespaces: "", ..Build::usual() };
    World::over(build, &url, PREFIX);
}

#[test]
fn in_a_cluster_the_commands_of_its_own_are_reported_too() {
    let cluster = Cluster::start(0);
    for server in &cluster.servers {
        minimal_user(server, CLUSTER, PREFIX);
    }
    let url = cluster.url().replace("://", "://bell:s3cret@");
    let build = Build { nodes: 1, shards: 1, ..Build::usual() };
    let world = World::over(build, &url, PREFIX);
    let is_own = |rule: &String| {
        let permission = PERMISSIONS.iter().find(|permission| permission.rule == rule);
        permission.is_none_or(|it| it.features == [Feature::Cluster] && it.probe != Probe::Earlier)
    };
    let own: Vec<String> = rules(CLUSTER, PREFIX).into_iter().filter(is_own).collect();
    assert!(own.len() >= 5, "{own:?}");
    let masters: Vec<&Redis> = cluster.servers[..3].iter().collect();
    each_is_reported(&world, &masters, &own);
    for server in &cluster.servers {
        set_user(server, &["-cluster|nodes".to_owned()]);
    }
    let node = &world.nodes[0];
    let nodes = Some(vec!["+cluster|nodes".to_owned()]);
    wait_until("the map cannot be read", || {
        let trouble = node.cluster_error().unwrap_or_default();
        trouble.split("; ").all(|text| rules_to_write(text) == nodes)
    });
}
