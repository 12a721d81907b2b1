//! Parses what Redis reports of itself.
//!
//! `INFO` is text for people: lines of `key:value`, some with fields of their own. Servers of
//! different versions leave keys out, add others, and write words for numbers. So each key that
//! matters is looked for, and a value that is not as expected is absent.
//!
//! Two kinds of line are different: an error that never happened and a command that was never
//! called have no line. There the section's heading shows that the server does count them.
//!
//! Invariant: any bytes are parsed, and no number is invented.

use crate::metrics::redis::RedisNumbers;

/// How a value becomes a number.
#[derive(Clone, Copy)]
enum As {
    /// A whole number.
    Whole,
    /// A number with a fraction, times this.
    Times(f64),
    /// 1 for this word, 0 for any other.
    Is(&'static str),
    /// 1 for a word that begins like this, 0 for any other.
    Begins(&'static str),
    /// `7.0.15`.
    Version,
}

/// The field for a number.
type Place = fn(&mut RedisNumbers) -> &mut Option<u64>;

/// A key, its form, and its field.
type Field = (&'static str, As, Place);

/// A section of `INFO` and what is taken from it. Each is asked for by itself: only Redis 7 takes
/// several names in one command.
pub(crate) struct Section {
    /// The argument of `INFO`.
    pub name: &'static str,
    fields: &'static [Field],
    read_line: Option<fn(&mut RedisNumbers, &str, &str)>,
    begin: Option<fn(&mut RedisNumbers)>,
}

const fn plain(name: &'static str, fields: &'static [Field]) -> Section {
    Section { name, fields, read_line: None, begin: None }
}

/// All sections that are asked for, in order.
pub(crate) const SECTIONS: &[Section] = &[
    plain(
        "server",
        &[
            ("redis_version", As::Version, |n| &mut n.version),
            ("redis_mode", As::Is("cluster"), |n| &mut n.is_cluster),
        ],
    ),
    plain("memory", MEMORY),
    plain("stats", STATS),
    Section {
        name: "replication",
        fields: REPLICATION,
        read_line: Some(read_replica),
        begin: None,
    },
    plain("cpu", &[]),
    plain(
        "persistence",
        &[
            ("rdb_last_bgsave_status", As::Is("ok"), |n| &mut n.is_rdb_ok),
            ("aof_enabled", As::Whole, |n| &mut n.is_aof_on),
            ("aof_last_write_status", As::Is("ok"), |n| &mut n.is_aof_ok),
        ],
    ),
    Section {
        name: "errorstats",
        fields: &[],
        read_line: Some(read_error),
        begin: Some(begin_errors),
    },
    Section {
        name: "commandstats",
        fields: &[],
        read_line: Some(read_command),
        begin: Some(begin_commands),
    },
];

const MEMORY: &[Field] = &[
    ("used_memory", As::Whole, |n| &mut n.memory_used_bytes),
    ("used_memory_rss", As::Whole, |n| &mut n.memory_rss_bytes),
    ("maxmemory", As::Whole, |n| &mut n.memory_max_bytes),
    ("maxmemory_policy", As::Begins("allkeys-"), |n| &mut n.evicts_all),
    ("maxmemory_policy", As::Begins("volatile-"), |n| &mut n.evicts_volatile),
    ("total_system_memory", As::Whole, |n| &mut n.memory_system_bytes),
];

const STATS: &[Field] = &[
    ("rejected_connections", As::Whole, |n| &mut n.rejected),
    ("evicted_keys", As::Whole, |n| &mut n.evicted_keys),
    ("latest_fork_usec", As::Whole, |n| &mut n.fork_us),
];

const REPLICATION: &[Field] = &[("connected_slaves", As::Whole, |n| &mut n.replicas)];

/// Kinds of error that are reported.
const ERRORS: &[(&str, Place)] = &[
    ("OOM", |n| &mut n.errors_oom),
    ("NOREPLICAS", |n| &mut n.errors_noreplicas),
    ("READONLY", |n| &mut n.errors_readonly),
];

/// Commands whose time is reported, in microseconds.
const COMMANDS: &[(&str, Place)] = &[
    ("publish", |n| &mut n.publish_us),
    ("spublish", |n| &mut n.spublish_us),
    ("subscribe", |n| &mut n.subscribe_us),
    ("evalsha", |n| &mut n.evalsha_us),
];

/// Parses the reply to `INFO <section>`.
pub(crate) fn read(section: &Section, answer: &[u8], numbers: &mut RedisNumbers) {
    for line in lines(answer) {
        if line.starts_with('#') {
            section.begin.inspect(|begin| begin(numbers));
        }
        let Some((key, value)) = line.split_once(':') else { continue };
        for (_, way, place) in section.fields.iter().filter(|(name, ..)| *name == key) {
            *place(numbers) = number(value, *way);
        }
        section.read_line.inspect(|read_line| read_line(numbers, key, value));
    }
    match section.name {
        "cpu" => read_main_thread(answer, numbers),
        "replication" => read_lag(answer, numbers),
        _ => {}
    }
}

/// The lines that are UTF-8.
fn lines(answer: &[u8]) -> impl Iterator<Item = &str> {
    answer
        .split(|byte| *byte == b'\n')
        .filter_map(|line| Some(std::str::from_utf8(line).ok()?.trim()))
}

fn number(text: &str, way: As) -> Option<u64> {
    match way {
        As::Whole => text.parse().ok(),
        As::Times(factor) => {
            let number = text.parse::<f64>().ok()? * factor;
            (number.is_finite() && number >= 0.0).then_some(number.round() as u64)
        }
        As::Is(word) => Some(u64::from(text == word)),
        As::Begins(beginning) => Some(u64::from(text.starts_with(beginning))),
        As::Version => version(text),
    }
}

/// `7.0.15` is 70015. What follows the third number (`7.4.0-rc1`) does not count.
fn version(text: &str) -> Option<u64> {
    let mut parts = text.split(['.', '-']).map(|part| part.parse::<u64>().ok());
    let [major, minor] = [parts.next()??, parts.next()??];
    let patch = parts.next().flatten().unwrap_or(0);
    let is_sane = major < 1000 && minor < 100 && patch < 100;
    is_sane.then_some(major * 10_000 + minor * 100 + patch)
}

/// A number among `name=value,name=value`.
fn field<T: std::str::FromStr>(fields: &str, name: &str) -> Option<T> {
    let named = fields.split(',').find_map(|field| field.strip_prefix(name)?.strip_prefix('='));
    named?.trim().parse().ok()
}

/// The value of a key, wherever it stands.
fn value<'a>(answer: &'a [u8], key: &str) -> Option<&'a str> {
    lines(answer).find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))
}

/// Two keys make one number: the thread that executes commands, user and system.
fn read_main_thread(answer: &[u8], numbers: &mut RedisNumbers) {
    let ms = |key| number(value(answer, key)?, As::Times(1000.0));
    let user = ms("used_cpu_user_main_thread");
    let system = ms("used_cpu_sys_main_thread");
    numbers.cpu_main_ms = user.zip(system).and_then(|(user, system)| user.checked_add(system));
}

/// `slave0:ip=…,port=…,state=online,offset=…,lag=…`
fn read_replica(numbers: &mut RedisNumbers, key: &str, value: &str) {
    if !is_replica(key) {
        if key == "role" && value == "master" {
            numbers.replicas_online.get_or_insert(0);
        }
        return;
    }
    if field::<String>(value, "state").as_deref() == Some("online") {
        *numbers.replicas_online.get_or_insert(0) += 1;
    }
    let lag = field::<u64>(value, "lag");
    numbers.replica_lag_s = numbers.replica_lag_s.max(lag);
}

fn is_replica(key: &str) -> bool {
    let number = key.strip_prefix("slave");
    number.is_some_and(|n| !n.is_empty() && n.bytes().all(|byte| byte.is_ascii_digit()))
}

/// Lag of the slowest replica, in bytes. The master's own offset stands below the replicas'.
fn read_lag(answer: &[u8], numbers: &mut RedisNumbers) {
    let Some(ours) = value(answer, "master_repl_offset").and_then(|text| text.parse::<u64>().ok())
    else {
        return;
    };
    let replicas = lines(answer).filter_map(|line| {
        let (key, value) = line.split_once(':')?;
        // A replica that is still copying the data set has no offset yet: it does not count.
        let is_online = field::<String>(value, "state").as_deref() == Some("online");
        (is_replica(key) && is_online).then(|| field::<u64>(value, "offset")).flatten()
    });
    numbers.replica_lag_bytes = replicas.map(|theirs| ours.saturating_sub(theirs)).max();
}

fn begin_errors(numbers: &mut RedisNumbers) {
    ERRORS.iter().for_each(|(_, place)| *place(numbers) = Some(0));
}

/// `errorstat_OOM:count=3`
fn read_error(numbers: &mut RedisNumbers, key: &str, value: &str) {
    let Some(kind) = key.strip_prefix("errorstat_") else { return };
    // A server that met too many kinds of error stops counting them.
    if kind.starts_with("ERRORSTATS_") {
        ERRORS.iter().for_each(|(_, place)| *place(numbers) = None);
    }
    if let Some((_, place)) = ERRORS.iter().find(|(known, _)| *known == kind) {
        *place(numbers) = field(value, "count");
    }
}

fn begin_commands(numbers: &mut RedisNumbers) {
    COMMANDS.iter().for_each(|(_, us)| *us(numbers) = Some(0));
}

/// `cmdstat_publish:calls=3,usec=33,usec_per_call=11.00,…`
fn read_command(numbers: &mut RedisNumbers, key: &str, value: &str) {
    let Some(command) = key.strip_prefix("cmdstat_") else { return };
    if let Some((_, us)) = COMMANDS.iter().find(|(known, _)| *known == command) {
        *us(numbers) = field(value, "usec");
    }
}

/// The settings that are read with `CONFIG GET`.
pub(crate) const SETTINGS: &[&str] = &[
    "client-output-buffer-limit",
    "min-replicas-to-write",
    "stream-node-max-bytes",
    "save",
    "cluster-allow-pubsubshard-when-down",
    "cluster-require-full-coverage",
];

/// Parses one setting.
pub(crate) fn read_setting(name: &str, value: &[u8], numbers: &mut RedisNumbers) {
    let Ok(value) = std::str::from_utf8(value) else { return };
    match name {
        "client-output-buffer-limit" => numbers.output_limit_bytes = pubsub_limit(value),
        "min-replicas-to-write" => numbers.replicas_to_write = value.trim().parse().ok(),
        "stream-node-max-bytes" => numbers.stream_node_bytes = value.trim().parse().ok(),
        "save" => numbers.is_saving = Some(u64::from(!value.trim().is_empty())),
        "cluster-allow-pubsubshard-when-down" => numbers.says_when_down = yes_or_no(value),
        "cluster-require-full-coverage" => numbers.is_all_or_nothing = yes_or_no(value),
        _ => unreachable!("{name} is not among SETTINGS"),
    }
}

fn yes_or_no(value: &str) -> Option<u64> {
    match value.trim() {
        "yes" => Some(1),
        "no" => Some(0),
        _ => None,
    }
}

/// `normal 0 0 0 slave 268435456 67108864 60 pubsub 33554432 8388608 60`: the hard limit.
fn pubsub_limit(value: &str) -> Option<u64> {
    let mut words = value.split_ascii_whitespace().skip_while(|word| *word != "pubsub");
    words.nth(1)?.parse().ok()
}

/// Parses a line of `CLIENT LIST`: the output buffer of one connection.
pub(crate) fn read_client(answer: &[u8], numbers: &mut RedisNumbers) {
    let find = |name: &str| -> Option<u64> {
        let mut fields = lines(answer).flat_map(|line| line.split(' '));
        fields.find_map(|field| field.strip_prefix(name)?.strip_prefix('=')?.parse().ok())
    };
    // `obl` is the fixed buffer in front of the list, 16 KB at most.
    let waiting = find("omem").map(|listed| listed.saturating_add(find("obl").unwrap_or(0)));
    numbers.own_output_bytes = waiting;
}

#[cfg(test)]
mod tests;
