//! The permissions that an ACL user needs, and what each is needed for.
//!
//! Words of a probe that begin with `%` stand for a name under the prefix, or for a setting of the
//! connection ([`crate::backplane::redis::permissions::probe`]).

use Feature::{Always, Cluster, Database, History, OneServer, Presence, Replicated};
use Probe::{Commands, Earlier, Subscriber};
use std::fmt::Write;

/// What of the configuration needs a permission.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feature {
    /// Every node.
    Always,
    /// Every deployment but a Cluster.
    OneServer,
    /// A Cluster.
    Cluster,
    /// A database other than 0 in the URL.
    Database,
    /// A namespace, or users, with `history_size`.
    History,
    /// A namespace with `presence`.
    Presence,
    /// A namespace with `durability = "replicated"`.
    Replicated,
}

impl Feature {
    const ALL: [Feature; 7] = [Always, OneServer, Cluster, Database, History, Presence, Replicated];

    /// As the documentation names it.
    fn name(self) -> &'static str {
        match self {
            Always => "always",
            OneServer => "without Cluster",
            Cluster => "Cluster",
            Database => "a database in the URL",
            History => "`history_size`",
            Presence => "`presence`",
            Replicated => "`durability = \"replicated\"`",
        }
    }
}

/// How it is found out whether a command is allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probe {
    /// It is run on the connection for commands.
    Commands(&'static [&'static str]),
    /// It is run on the subscribing connection.
    Subscriber(&'static [&'static str]),
    /// It is run before there is a link: by the connection itself, or by the source of the topology.
    Earlier,
}

/// A command that a user must be allowed to run.
#[derive(Clone, Copy, Debug)]
pub struct Permission {
    /// The rule for `ACL SETUSER`.
    pub rule: &'static str,
    /// Any one of these needs it.
    pub features: &'static [Feature],
    /// How it is tried.
    pub probe: Probe,
}

const STORED: &[Feature] = &[History, Presence];

const fn permission(rule: &'static str, features: &'static [Feature], probe: Probe) -> Permission {
    Permission { rule, features, probe }
}

/// All of them, in the order in which they are tried: what is between MULTI and EXEC is in one
/// transaction.
pub const PERMISSIONS: &[Permission] = &[
    permission("+client|setname", &[Always], Commands(&["CLIENT", "SETNAME", "%client"])),
    permission("+role", &[Always], Commands(&["ROLE"])),
    permission("+select", &[Database], Earlier),
    permission("+ping", &[Always], Subscriber(&["PING", "%token"])),
    permission("+publish", &[OneServer], Commands(&["PUBLISH", "%channel", "0"])),
    permission("+spublish", &[Cluster], Commands(&["SPUBLISH", "%channel", "0"])),
    permission("+subscribe", &[Always], Subscriber(&["SUBSCRIBE", "%channel"])),
    permission("+unsubscribe", &[Always], Subscriber(&["UNSUBSCRIBE", "%channel"])),
    permission("+ssubscribe", &[Cluster], Subscriber(&["SSUBSCRIBE", "%channel"])),
    permission("+sunsubscribe", &[Cluster], Subscriber(&["SUNSUBSCRIBE", "%channel"])),
    permission("+cluster|nodes", &[Cluster], Earlier),
    permission("+info", &[History], Commands(&["INFO", "server"])),
    permission("+script|load", STORED, Commands(&["SCRIPT", "LOAD", "return 1"])),
    permission("+evalsha", STORED, Commands(&["EVALSHA", "%return_1", "0"])),
    permission("+eval", &[Always], Commands(&["EVAL", "return 1", "0"])),
    permission("+time", &[Always], Commands(&["TIME"])),
    permission("+set", &[Always], Commands(&["SET", "%string", "1", "PX", "1"])),
    permission("+get", &[Always], Commands(&["GET", "%string"])),
    permission("+multi", &[Always], Commands(&["MULTI"])),
    permission("+hset", &[Always], Commands(&["HSET", "%hash", "f", "1"])),
    permission("+expire", &[Always], Commands(&["EXPIRE", "%hash", "10"])),
    permission("+hget", &[Always], Commands(&["HGET", "%hash", "f"])),
    permission("+hmget", STORED, Commands(&["HMGET", "%hash", "f"])),
    permission("+hdel", &[Always], Commands(&["HDEL", "%hash", "g"])),
    permission("+zadd", &[Always], Commands(&["ZADD", "%sorted", "1", "m"])),
    permission("+zscore", &[Always], Commands(&["ZSCORE", "%sorted", "m"])),
    permission("+zcard", &[Always], Commands(&["ZCARD", "%sorted"])),
    permission("+zrangebyscore", &[Always], Commands(&["ZRANGEBYSCORE", "%sorted", "1", "1"])),
    permission("+zrem", &[Always], Commands(&["ZREM", "%sorted", "n"])),
    permission("+xadd", &[History], Commands(&["XADD", "%stream", "1-0", "d", "1"])),
    permission("+xrevrange", &[History], Commands(&["XREVRANGE", "%stream", "+", "-"])),
    permission("+exists", &[Presence], Commands(&["EXISTS", "%hash"])),
    permission("+hexists", &[Presence], Commands(&["HEXISTS", "%hash", "f"])),
    permission("+hkeys", &[Presence], Commands(&["HKEYS", "%hash"])),
    permission("+hlen", &[Presence], Commands(&["HLEN", "%hash"])),
    permission("+hscan", &[Presence], Commands(&["HSCAN", "%hash", "0"])),
    permission("+incr", &[Presence], Commands(&["INCR", "%number"])),
    permission("+pexpire", &[Presence], Commands(&["PEXPIRE", "%hash", "10000"])),
    permission("+sadd", &[Presence], Commands(&["SADD", "%set", "m"])),
    permission("+smembers", &[Presence], Commands(&["SMEMBERS", "%set"])),
    permission("+srandmember", &[Presence], Commands(&["SRANDMEMBER", "%set", "1"])),
    permission("+srem", &[Presence], Commands(&["SREM", "%set", "n"])),
    permission(
        "+del",
        &[Always],
        Commands(&["DEL", "%hash", "%stream", "%number", "%set", "%sorted"]),
    ),
    permission("+exec", &[Always], Commands(&["EXEC"])),
    permission("+wait", &[Replicated], Commands(&["WAIT", "0", "1"])),
];

/// Commands without which only numbers of the server are missing.
pub const MONITORING: &[&str] = &["+info", "+config|get", "+client|id", "+client|list"];

impl Permission {
    /// Whether a configuration with these features needs it.
    pub fn is_needed(&self, features: &[Feature]) -> bool {
        self.features.iter().any(|feature| *feature == Always || features.contains(feature))
    }
}

/// The rules that a user needs for these features, with the keys and channels of a prefix.
pub fn rules(features: &[Feature], prefix: &str) -> Vec<String> {
    let needed = PERMISSIONS.iter().filter(|permission| permission.is_needed(features));
    let commands = needed.map(|permission| permission.rule.to_owned());
    [keys_rule(prefix), channels_rule(prefix)].into_iter().chain(commands).collect()
}

/// The rule for all keys of a prefix.
pub fn keys_rule(prefix: &str) -> String {
    format!("~{prefix}:*")
}

/// The rule for all channels of a prefix.
pub fn channels_rule(prefix: &str) -> String {
    format!("&{prefix}:*")
}

/// The table of the documentation: for each set of features what it needs.
pub fn markdown() -> String {
    let mut text = "| needed | rules |\n|---|---|\n".to_owned();
    let (keys, channels) = (keys_rule("campanile"), channels_rule("campanile"));
    let mut sets: Vec<&[Feature]> = Vec::new();
    for permission in PERMISSIONS {
        if !sets.contains(&permission.features) {
            sets.push(permission.features);
        }
    }
    sets.sort_by_key(|set| Feature::ALL.iter().position(|feature| *feature == set[0]));
    for set in sets {
        let names: Vec<&str> = set.iter().map(|feature| feature.name()).collect();
        let of_set = PERMISSIONS.iter().filter(|permission| permission.features == set);
        let mut rules: Vec<String> =
            of_set.map(|permission| format!("`{}`", permission.rule)).collect();
        if set == [Always] {
            rules.splice(0..0, [format!("`{keys}`"), format!("`{channels}`")]);
        }
        let rules = rules.join(" ").replace('|', "\\|");
        writeln!(text, "| {} | {rules} |", names.join(" or ")).expect("a String takes everything");
    }
    let numbers: Vec<String> =
        MONITORING.iter().map(|rule| format!("`{}`", rule.replace('|', "\\|"))).collect();
    let what = "only for the numbers of [Watching Redis](#watching-redis)";
    writeln!(text, "| {what} | {} |", numbers.join(" ")).expect("a String takes everything");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_stands_in_the_table_once() {
        for (at, permission) in PERMISSIONS.iter().enumerate() {
            let twice = PERMISSIONS[at + 1..].iter().any(|other| other.rule == permission.rule);
            assert!(!twice, "{}", permission.rule);
        }
    }

    #[test]
    fn only_what_is_configured_is_needed() {
        let plain = rules(&[OneServer], "p");
        assert!(plain.contains(&"+publish".to_owned()) && plain.contains(&"~p:*".to_owned()));
        for rule in ["+spublish", "+xadd", "+sadd", "+wait", "+info"] {
            assert!(!plain.contains(&rule.to_owned()), "{rule}");
        }
        assert!(rules(&[OneServer, Presence], "p").contains(&"+sadd".to_owned()));
        assert!(rules(&[Cluster], "p").contains(&"+spublish".to_owned()));
        assert!(rules(&[Replicated], "p").contains(&"+wait".to_owned()));
    }
}
