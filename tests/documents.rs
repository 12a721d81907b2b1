//! The documents say what the program says: settings, metrics, flags, paths of the API; and what they
//! name in this repository exists.
//!
//! `CAMPANILE_WRITE_DOCS=1 cargo test --test documents` writes the tables that are made from the
//! program. Each rule has a test in which it complains.

#[path = "common/documents.rs"]
mod documents;

use campanile::policy::limits::LIMIT_SETTINGS;
use documents::{Document, documents, root};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

/// Flags of other programs that documents mention.
const FOREIGN_FLAGS: &[&str] = &[
    // cargo
    "--release",
    "--test",
    "--bench",
    "--lib",
    "--locked",
    "--path",
    "--nocapture",
    "--no-deps",
    "--document-private-items",
    "--open",
    "--all-targets",
    // redis-server
    "--port",
    // Scripts in tuning/.
    "--apply",
    "--undo",
    // Scripts in benches/.
    "--floor",
    "--rounds",
    // tests/run.sh chaos
    "--minutes",
    "--seed",
    "--count",
    "--faults",
    "--on",
];

/// Top-level folders and files that a document may name by path.
const AT_THE_ROOT: [&str; 7] =
    ["src/", "tests/", "benches/", "docs/", "tuning/", ".ci/", "target/"];

fn hold(complaints: Vec<String>) {
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn campanile(args: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_campanile"))
        .args(args)
        .env("COLUMNS", "1000")
        .output()
        .expect("our own binary starts");
    String::from_utf8(output.stdout).expect("UTF-8")
}

// --- tables that are made from the program ---

/// What stands between `<!-- name -->` and `<!-- /name -->`, and around it.
fn section<'a>(text: &'a str, name: &str) -> Option<[&'a str; 3]> {
    let (begin, end) = (format!("<!-- {name} -->\n"), format!("<!-- /{name} -->"));
    let from = text.find(&begin)? + begin.len();
    let to = from + text[from..].find(&end)?;
    Some([&text[..from], &text[from..to], &text[to..]])
}

/// Compares a section of a document with what the program says, or writes it.
fn agrees(path: &str, name: &str, printed: &str) {
    let text = read(path);
    let [before, written, after] =
        section(&text, name).unwrap_or_else(|| panic!("{path} has <!-- {name} -->"));
    if written.trim() == printed.trim() {
        return;
    }
    if std::env::var_os("CAMPANILE_WRITE_DOCS").is_some() {
        let text = format!("{before}{}\n{after}", printed.trim());
        return std::fs::write(root().join(path), text).expect("a file of ours");
    }
    let new: Vec<&str> = printed.lines().filter(|line| !written.contains(line)).collect();
    panic!(
        "{path} differs from the program; CAMPANILE_WRITE_DOCS=1 cargo test --test documents writes \
         it. New lines:\n{}",
        new.join("\n")
    );
}

#[test]
fn the_table_of_settings_is_the_one_that_the_program_prints() {
    agrees("docs/configuration.md", "config", &campanile(&["config", "--markdown"]));
    assert_eq!(section("a\n<!-- x -->\nb\n<!-- /x -->\nc", "x").map(|all| all[1]), Some("b\n"));
    assert_eq!(section("a\n<!-- x -->\nb\n", "x"), None);
}

#[test]
fn the_table_of_reloads_has_every_key() {
    agrees("docs/configuration.md", "reload", &campanile::config::reload_markdown());
}

#[test]
fn the_permissions_of_a_redis_user_are_those_that_are_tried() {
    agrees(
        "docs/redis.md",
        "permissions",
        &campanile::backplane::redis::permissions::table::markdown(),
    );
    let document = read("docs/redis.md");
    for reason in campanile::backplane::redis::failure::FailureReason::ALL {
        let name = format!("`{}`", reason.name());
        assert!(document.contains(&name), "docs/redis.md explains {name}");
    }
}

/// One metric of the source.
#[derive(Debug, PartialEq, Eq)]
struct Metric {
    name: String,
    kind: String,
    /// Key and values of its label.
    label: Option<(String, Vec<String>)>,
    help: String,
}

/// The declarations of a file of `src/metrics/`: for each table what it counts, and its metrics. A
/// row is `field: Kind "name"["key" = "value"] "help"`; the label may be missing, and a number that is
/// divided says by what behind its kind. A histogram has no kind.
fn declared(source: &str) -> Vec<(String, Vec<Metric>)> {
    let mut tables: Vec<(String, Vec<Metric>)> = Vec::new();
    let mut doc = "";
    for line in source.lines().map(str::trim) {
        if let Some(text) = line.strip_prefix("/// ") {
            doc = text;
        } else if line.ends_with('{') && !line.contains('"') && !line.starts_with("histograms") {
            tables.push((doc.trim_end_matches('.').to_owned(), Vec::new()));
        } else if let Some((metric, (_, metrics))) = row(line).zip(tables.last_mut()) {
            add(metrics, metric);
        }
    }
    tables.retain(|(_, metrics)| !metrics.is_empty());
    tables
}

fn row(line: &str) -> Option<Metric> {
    let (field, rest) = line.split_once(": ")?;
    let is_field = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
    let (kind, texts) = rest.split_once('"')?;
    let kind = match kind.split([' ', '/']).next()? {
        "" => "histogram",
        "Counter" => "counter",
        "Gauge" => "gauge",
        _ => return None,
    };
    if !field.bytes().all(is_field) || !line.ends_with("\",") {
        return None;
    }
    let texts: Vec<&str> = texts.split('"').step_by(2).collect();
    let (name, label, help) = match texts[..] {
        [name, help] => (name, None, help),
        [name, key, value, help] => (name, Some((key.to_owned(), vec![value.to_owned()])), help),
        _ => return None,
    };
    let (name, kind, help) = (name.to_owned(), kind.to_owned(), help.to_owned());
    Some(Metric { name, kind, label, help })
}

/// Rows of one name are one metric with several values of its label.
fn add(metrics: &mut Vec<Metric>, metric: Metric) {
    match metrics.iter_mut().find(|known| known.name == metric.name) {
        None => metrics.push(metric),
        Some(known) => {
            if let (Some((_, values)), Some((_, more))) = (&mut known.label, metric.label) {
                values.extend(more);
            }
        }
    }
}

fn table(title: &str, metrics: &[Metric]) -> String {
    let mut out =
        format!("### {title}\n\n| metric | kind | label | meaning |\n|---|---|---|---|\n");
    for Metric { name, kind, label, help } in metrics {
        let label = label.as_ref().map_or(String::new(), |(key, values)| {
            let values: Vec<String> = values.iter().map(|value| format!("`{value}`")).collect();
            format!("`{key}`: {}", values.join(", ")).trim_end_matches(": ").to_owned()
        });
        let help = help.replace('|', "\\|");
        out += &format!("| `{name}` | {kind} | {label} | {help} |\n");
    }
    out + "\n"
}

#[test]
fn the_table_of_metrics_is_what_the_source_declares() {
    let files = ["src/metrics/mod.rs", "src/metrics/servers.rs", "src/metrics/redis.rs"];
    let all: Vec<_> = files.iter().flat_map(|file| declared(&read(file))).collect();
    assert!(all.iter().map(|(_, metrics)| metrics.len()).sum::<usize>() > 100);
    let printed: String = all.iter().map(|(title, metrics)| table(title, metrics)).collect();
    agrees("docs/metrics.md", "metrics", &printed);
    let source = "/// What is counted.\nT of u64 {\na: Gauge \"a\" \"Of a\",\n\
                  b: Counter / 1_000 \"b_total\"[\"k\" = \"x\"] \"Of b\",\n\
                  c: Counter \"b_total\"[\"k\" = \"y\"] \"-\",\n}\nhistograms {\n\
                  d: \"d_seconds\" \"Of d\",\n}";
    let [(title, metrics)] = &declared(source)[..] else { panic!("one table") };
    assert_eq!((title.as_str(), metrics.len()), ("What is counted", 3));
    let both = Some(("k".to_owned(), vec!["x".to_owned(), "y".to_owned()]));
    assert_eq!((metrics[1].name.as_str(), &metrics[1].label), ("b_total", &both));
    assert_eq!((metrics[2].kind.as_str(), metrics[2].help.as_str()), ("histogram", "Of d"));
}

/// What the tables of docs/metrics.md say of each name. Several threads may count under one name.
fn rows_of_metrics(document: &str) -> BTreeMap<String, String> {
    let mut rows = BTreeMap::<String, String>::new();
    for line in document.lines() {
        if let Some((name, row)) = line.strip_prefix("| `").and_then(|row| row.split_once("` |")) {
            *rows.entry(name.to_owned()).or_default() += row;
        }
    }
    rows
}

/// Labels that every metric of a thread or server has, and no row.
const LABELS_OF_OWNERS: [&str; 2] = ["shard", "server"];

/// Metrics that a document names and the program does not have.
fn unknown_metrics(document: &Document, known: &BTreeMap<String, String>) -> Vec<String> {
    let mut complaints = Vec::new();
    for (at, line) in document.text.lines().enumerate() {
        for (from, prefix) in line.match_indices("campanile_") {
            let rest = &line[from + prefix.len()..];
            let is_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
            let (name, behind) = rest.split_at(rest.find(|c| !is_name(c)).unwrap_or(rest.len()));
            // `campanile_…` and `campanile_redis_…` stand for many.
            let is_one = !name.is_empty() && !name.ends_with('_');
            if is_one && !row_of(name, known).is_some_and(|row| has_label(row, behind)) {
                let what = format!("no metric is called {name}, or it has another label");
                complaints.push(format!("{}:{}: {what}", document.path, at + 1));
            }
        }
    }
    complaints
}

/// The row of a metric, or of the histogram that it is a part of.
fn row_of<'a>(name: &str, known: &'a BTreeMap<String, String>) -> Option<&'a String> {
    let parts = ["", "_bucket", "_sum", "_count"].iter();
    parts.filter_map(|part| known.get(name.strip_suffix(part)?)).next()
}

/// Whether a row has the label that stands behind its name: `{reason="slow"}`, or none.
fn has_label(row: &str, behind: &str) -> bool {
    let label = behind.strip_prefix('{').and_then(|rest| rest.split_once("=\""));
    label.is_none_or(|(key, rest)| {
        let value = rest.split('"').next().expect("split gives at least one");
        let is_written = |word: &str| row.contains(&format!("`{word}`"));
        LABELS_OF_OWNERS.contains(&key) || (is_written(key) && is_written(value))
    })
}

#[test]
fn every_metric_that_a_document_names_exists() {
    let known = rows_of_metrics(&read("docs/metrics.md"));
    assert!(known.len() > 100, "{known:?}");
    for document in documents() {
        hold(unknown_metrics(&document, &known));
    }
    let known = rows_of_metrics("| `a_total` | counter | `reason`: `slow` | x |\n| x |");
    let of = |text| unknown_metrics(&Document::of(text), &known).len();
    assert_eq!(of("`campanile_a_total`, `campanile_…`, `campanile_a_total_bucket`"), 0);
    assert_eq!(of("`campanile_a_total{reason=\"slow\"}`, `campanile_a_total{server=\"x\"}`"), 0);
    assert_eq!(of("`campanile_b_total{reason=\"slow\"}`"), 1);
    assert_eq!(of("`campanile_a_total{reason=\"quick\"}`, `campanile_a_total{x=\"slow\"}`"), 2);
}

// --- the protocol and the limits ---

/// Words of the protocol in the source: `Type::Variant => "word"`.
fn words<'a>(source: &'a str, kind: &str) -> Vec<&'a str> {
    let arm = format!("{kind}::");
    let arms = source.lines().filter_map(|line| line.trim().strip_prefix(&arm));
    arms.filter_map(|arm| arm.split_once("=> \"")?.1.split_once('"'))
        .map(|(word, _)| word)
        .collect()
}

/// Numbers of close codes in the source: `(1003, "reason")`.
fn close_codes(source: &str) -> Vec<&str> {
    let arms = source.lines().filter_map(|line| line.trim().strip_prefix("Farewell::"));
    arms.filter_map(|arm| arm.split_once("=> (")?.1.split_once(", \""))
        .map(|(code, _)| code)
        .collect()
}

#[test]
fn the_protocol_has_every_error_reason_and_close_code_of_the_source() {
    let (source, document) = (read("src/protocol/mod.rs"), read("docs/protocol.md"));
    let (codes, reasons) = (words(&source, "ErrorCode"), words(&source, "Unrecovered"));
    assert!(codes.len() > 8 && reasons.len() > 4, "{codes:?} {reasons:?}");
    for word in codes.iter().chain(&reasons) {
        assert!(document.contains(&format!("`{word}`")), "docs/protocol.md lacks `{word}`");
    }
    let dialect = read("src/protocol/dialect.rs");
    let numbers = close_codes(&dialect);
    assert!(numbers.len() > 5, "{numbers:?}");
    for number in numbers {
        assert!(document.contains(&format!("| {number} |")), "docs/protocol.md lacks {number}");
    }
    assert_eq!(words("  E::A => \"a_b\",\n  F::B => \"b\",", "E"), ["a_b"]);
    assert_eq!(close_codes("  Farewell::Slow => (1013, \"too slow\"),"), ["1013"]);
}

/// Limits that a document does not have in backticks.
fn limits_without_a_row<'a>(keys: &[&'a str], document: &str) -> Vec<&'a str> {
    let names = keys.iter().map(|key| key.trim_start_matches("limits."));
    names.filter(|name| !document.contains(&format!("`{name}`"))).collect()
}

#[test]
fn every_limit_has_a_row_that_says_what_happens_at_it() {
    let keys: Vec<&str> = LIMIT_SETTINGS.iter().map(|setting| setting.key).collect();
    assert!(keys.len() > 20);
    assert_eq!(limits_without_a_row(&keys, &read("docs/limits.md")), [] as [&str; 0]);
    assert_eq!(limits_without_a_row(&["limits.a_max"], "`b_max`"), ["a_max"]);
}

/// A constant of the source whose name says that it is a bound.
#[derive(Debug, PartialEq, Eq)]
struct Bound {
    path: String,
    name: String,
    /// Its number, where it is a product of numbers.
    value: Option<u64>,
}

/// The bounds of a file, those of its tests not among them.
fn bounds_of(path: &str, text: &str) -> Vec<Bound> {
    let text = text.split("#[cfg(test)]").next().expect("split gives at least one");
    let bound = |line: &str| {
        let (name, rest) = line.split_once("const ")?.1.split_once(": ")?;
        let is_bound =
            name.ends_with("_MAX") && name.chars().all(|c| c.is_ascii_uppercase() || c == '_');
        let (kind, value) = rest.split_once(" = ")?;
        let is_number = ["usize", "u64", "u32"].contains(&kind);
        let factors = value.trim_end_matches(';').split(" * ");
        let value = factors.map(|factor| factor.replace('_', "").parse::<u64>().ok()).product();
        (is_bound && is_number).then(|| Bound { path: path.into(), name: name.into(), value })
    };
    text.lines().filter(|line| !line.trim_start().starts_with("//")).filter_map(bound).collect()
}

/// Bounds of our own work, such as what is done in one turn or asked at once, and of what the operator
/// writes: nobody else can make us hold more by them.
const BOUNDS_OF_OUR_OWN: &[(&str, &[&str])] = &[
    ("src/api/connections.rs", &["QUESTIONS_MAX"]),
    ("src/api/publish.rs", &["AROUND_BYTES_MAX"]),
    ("src/api/users.rs", &["REASON_BYTES_MAX"]),
    ("src/backplane/disconnect.rs", &["REASON_BYTES_MAX"]),
    ("src/backplane/mod.rs", &["TURNS_MAX"]),
    ("src/backplane/redis/connection/link.rs", &["PIPELINES_MAX"]),
    ("src/backplane/redis/connection/subscriptions.rs", &["BATCHES_MAX"]),
    ("src/backplane/redis/history/batch.rs", &["BATCHES_MAX", "BATCHES_WITH_FOLLOW_UPS_MAX"]),
    ("src/backplane/redis/history/lineage.rs", &["EPOCHS_MAX"]),
    ("src/backplane/redis/history/rotation.rs", &["FORGOTTEN_MAX"]),
    ("src/backplane/redis/presence/query.rs", &["LOOKS_MAX", "READS_MAX"]),
    ("src/backplane/redis/presence/records.rs", &["RECORD_BYTES_MAX"]),
    ("src/backplane/redis/publish/lane.rs", &["BATCHES_MAX", "REPLICA_MS_MAX"]),
    ("src/backplane/redis/scripts.rs", &["REPAIR_MS_MAX"]),
    ("src/backplane/redis/publish/queue.rs", &["WAITING_BYTES_MAX", "WAITING_MAX"]),
    ("src/backplane/redis/server/supervisor.rs", &["DRAIN_TURNS_MAX"]),
    ("src/backplane/redis/topology/cluster.rs", &["ASKED_AT_ONCE_MAX"]),
    ("src/backplane/redis/topology/sentinel.rs", &["REPORTS_MAX"]),
    ("src/backplane/redis/unreadable.rs", &["SHOWN_BYTES_MAX"]),
    (
        "src/config/backplane/read.rs",
        &["DB_MAX", "HOST_BYTES_MAX", "SHOWN_CHARS_MAX", "SOCKET_PATH_BYTES_MAX"],
    ),
    ("src/hooks/answer.rs", &["REASON_BYTES_MAX", "TTL_S_MAX"]),
    ("src/ids.rs", &["NUMBER_MAX"]),
    (
        "src/link/inspect.rs",
        &["LISTED_ROOMS_MAX", "PAGE_CONNECTIONS_MAX", "PAGE_PLACES_MAX", "USER_MEMBERSHIPS_MAX"],
    ),
    ("src/link/shares/count_table.rs", &["COUNTED_HANDSHAKES_MAX"]),
    ("src/net/accept/rate.rs", &["RETRY_S_MAX"]),
    ("src/net/io/epoll.rs", &["EVENTS_MAX"]),
    ("src/net/io/socket.rs", &["SLICES_MAX"]),
    ("src/net/memory.rs", &["ADDRESSES_MAX"]),
    ("src/net/reactor.rs", &["OUTBOX_SLICES_MAX", "READS_MAX"]),
    ("src/net/read_queue.rs", &["SPARE_MAX"]),
    ("src/net/upgrade/first_message.rs", &["JSON_DEPTH_MAX"]),
    ("src/policy/namespaces.rs", &["NAMESPACES_MAX"]),
    ("src/protocol/json.rs", &["DEPTH_MAX"]),
    ("src/protocol/native/parse.rs", &["TYPE_SHOWN_CHARS_MAX"]),
    ("src/shard/delivery/batch.rs", &["BUFS_MAX"]),
    ("src/shard/delivery/mod.rs", &["BATCH_BYTES_MAX"]),
    ("src/shard/delivery/replies.rs", &["REPLY_COPIED_BYTES_MAX"]),
    ("src/shard/delivery/walk.rs", &["EMPTY_SLOTS_MAX"]),
    ("src/shard/disconnect.rs", &["CLOSES_MAX"]),
    ("src/shard/memory.rs", &["LARGE_BYTES_MAX"]),
    ("src/shard/slow_consumer/outbox/chunk.rs", &["CHUNK_BYTES_MAX"]),
    ("src/shard/state/deliveries.rs", &["JOIN_BYTES_MAX", "PORTIONS_MAX"]),
    ("src/shard/state/mod.rs", &["ARENA_FRAME_BYTES_MAX"]),
    ("src/shard/state/rates.rs", &["BURSTS_PER_S_MAX"]),
    ("src/ws/encode.rs", &["CONTROL_BYTES_MAX"]),
    ("src/ws/header.rs", &["HEADER_BYTES_MAX"]),
];

/// Bounds that no row of the document has: `NAME` in `path`.
fn bounds_without_a_row(
    bounds: &[Bound],
    document: &str,
    of_our_own: &[(&str, &[&str])],
) -> Vec<String> {
    let rows = rows_of_limits(document);
    let mut complaints = Vec::new();
    for Bound { path, name, value } in bounds {
        if of_our_own.iter().any(|(ours, names)| ours == path && names.contains(&&name[..])) {
            continue;
        }
        let words = [format!("`{name}`"), format!("`{path}`")];
        // Two types of a file may have a bound of one name.
        let is_named = |row: &&Vec<&str>| words.iter().all(|word| row[0].contains(word));
        let defaults: Vec<&str> = rows.iter().filter(is_named).map(|row| row[1]).collect();
        let is_value = |value: &u64| {
            let mut numbers = defaults.iter().flat_map(|default| default.split([' ', ',']));
            numbers.any(|word| word == value.to_string())
        };
        if defaults.is_empty() {
            let [name, path] = &words;
            complaints.push(format!("docs/limits.md has no row with {name} in {path}"));
        } else if !value.as_ref().is_none_or(is_value) {
            complaints.push(format!("{name} in {path} is {value:?}, not {defaults:?}"));
        }
    }
    complaints
}

/// All bounds of the server. The load generator and the host checks hold nothing for others.
fn bounds_of_source() -> Vec<Bound> {
    let mut bounds = Vec::new();
    let mut folders = vec![root().join("src")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("a folder of ours").flatten() {
            let path = entry.path();
            let name =
                path.strip_prefix(root()).expect("below it").to_str().expect("UTF-8").to_owned();
            let is_ours =
                !["src/load", "src/doctor"].contains(&&name[..]) && !name.contains("tests");
            if path.is_dir() && is_ours {
                folders.push(path);
            } else if name.ends_with(".rs") && is_ours {
                bounds.extend(bounds_of(
                    &name,
                    &std::fs::read_to_string(&path).expect("a file of ours"),
                ));
            }
        }
    }
    bounds
}

#[test]
fn every_bound_of_the_source_has_a_row_or_is_of_our_own_work() {
    let bounds = bounds_of_source();
    assert!(bounds.len() > 60, "{}", bounds.len());
    hold(bounds_without_a_row(&bounds, &read("docs/limits.md"), BOUNDS_OF_OUR_OWN));
    for (path, names) in BOUNDS_OF_OUR_OWN {
        for name in *names {
            let is_there = bounds.iter().any(|bound| bound.path == *path && bound.name == *name);
            assert!(is_there, "{name} in {path} is no bound any more");
        }
    }
    let source = "pub const A_MAX: usize = 4 * 1_024;\nconst B_MAX: u32 = A * 2;\nconst C: u32 = 1;\n\
                  // const D_MAX: u32 = 1;\n#[cfg(test)]\nconst E_MAX: u32 = 1;";
    let bounds = bounds_of("x.rs", source);
    let found: Vec<_> = bounds.iter().map(|bound| (&bound.name[..], bound.value)).collect();
    assert_eq!(found, [("A_MAX", Some(4096)), ("B_MAX", None)]);
    let of = |row: &str| {
        let table = format!("| limit | default | x |\n|---|\n{row}\n");
        bounds_without_a_row(&bounds, &table, &[("x.rs", &["B_MAX"])]).len()
    };
    assert_eq!(of("| `A_MAX` in `x.rs` | 4096 bytes | x | – | – |"), 0);
    assert_eq!(of("| `A_MAX` in `x.rs` | 40960 bytes | x | – | – |"), 1);
    assert_eq!(of("| `A_MAX` in `y.rs` | 4096 bytes | x | – | – |"), 1);
}

/// The rows of tables of limits, by cells: limit, default, verdict, counter, test.
fn rows_of_limits(document: &str) -> Vec<Vec<&str>> {
    let mut rows = Vec::new();
    let mut in_table = false;
    for line in document.lines() {
        in_table = line.starts_with("| limit | default |") || in_table && line.starts_with('|');
        let is_row = in_table && line.starts_with("| ") && !line.starts_with("| limit |");
        if is_row {
            rows.push(line.trim_matches(['|', ' ']).split(" | ").collect());
        }
    }
    rows
}

/// What is wrong with a row. `defaults`: of each limit; `tests`: the names of all tests.
fn complaints_of_limit(
    cells: &[&str],
    defaults: &BTreeMap<String, u64>,
    tests: &BTreeSet<String>,
) -> Vec<String> {
    let [limit, default, _, counter, test] = cells else {
        return vec![format!("{cells:?} has not five cells")];
    };
    let mut complaints = Vec::new();
    let of_namespace = limit.contains("of a namespace");
    let names = limit.split('`').skip(1).step_by(2);
    for (name, value) in names.filter_map(|name| defaults.get_key_value(name)) {
        let has_default = default.split([' ', ',']).any(|word| word == value.to_string());
        if !of_namespace && !has_default {
            complaints.push(format!("the default of {name} is {value}, not {default}"));
        }
    }
    // What only orders turns is counted nowhere.
    let name = test.trim_matches('`');
    if !tests.contains(name) && (*test != "–" || *counter != "–") {
        complaints.push(format!("{limit}: no test is called {name}"));
    }
    complaints
}

/// The names of all tests of this repository.
fn test_names() -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let mut folders = vec![root().join("src"), root().join("tests")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("a folder of ours").flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|ending| ending == "rs") {
                let text = std::fs::read_to_string(&path).expect("a file of ours");
                let functions = text.split("#[test]").skip(1).filter_map(|rest| {
                    rest.split_once("fn ")?.1.split_once('(').map(|(name, _)| name.to_owned())
                });
                names.extend(functions);
            }
        }
    }
    names
}

#[test]
fn the_row_of_a_limit_has_its_default_and_a_test_that_exists() {
    let defaults: BTreeMap<String, u64> = LIMIT_SETTINGS
        .iter()
        .map(|setting| {
            let name = setting.key.trim_start_matches("limits.").to_owned();
            (name, (setting.get)(&campanile::policy::limits::Limits::PRODUCTION))
        })
        .collect();
    let (tests, document) = (test_names(), read("docs/limits.md"));
    let rows = rows_of_limits(&document);
    assert!(tests.len() > 500 && rows.len() > 40, "{} tests, {} rows", tests.len(), rows.len());
    hold(rows.iter().flat_map(|row| complaints_of_limit(row, &defaults, &tests)).collect());
    let defaults = BTreeMap::from([("a_max".to_owned(), 7)]);
    let tests = BTreeSet::from(["it_is".to_owned()]);
    let of = |text| {
        let table = format!("| limit | default | x |\n|---|\n{text}\n\n| other |");
        let rows = rows_of_limits(&table);
        assert_eq!(rows.len(), 1);
        complaints_of_limit(&rows[0], &defaults, &tests).len()
    };
    assert_eq!(of("| `a_max` | 7 bytes | close | `c` | `it_is` |"), 0);
    assert_eq!(of("| `a_max` | 70 bytes | close | `c` | `it_is` |"), 1);
    assert_eq!(of("| `a_max` | 7 bytes | close | `c` | `it_was` |"), 1);
    assert_eq!(of("| `a_max` | 7 bytes | close | `c` | – |"), 1);
    assert_eq!(of("| turns | fixed | later | – | – |"), 0);
    assert_eq!(of("| `a_max` | 7 bytes | close | `c` |"), 1);
}

// --- flags and paths ---

/// `--like-this`, wherever it stands.
fn flags(text: &str) -> Vec<&str> {
    let mut found = Vec::new();
    for (at, _) in text.match_indices("--") {
        let rest = &text[at + 2..];
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '-').unwrap_or(rest.len());
        let starts = !text[..at].ends_with(|c: char| c.is_alphanumeric() || "-<!".contains(c));
        if starts && rest.starts_with(|c: char| c.is_ascii_lowercase()) {
            found.push(&text[at..at + 2 + end]);
        }
    }
    found
}

fn unknown_flags<'a>(text: &'a str, help: &str) -> Vec<&'a str> {
    let known = flags(help);
    let foreign = |flag: &&str| FOREIGN_FLAGS.contains(flag);
    flags(text).into_iter().filter(|flag| !known.contains(flag) && !foreign(flag)).collect()
}

#[test]
fn every_flag_in_the_documents_exists() {
    let mut help = campanile(&["--help"]);
    let commands = [
        "serve",
        "load idle",
        "load fanout",
        "load ingest",
        "load storm",
        "doctor",
        "token",
        "config",
    ];
    for command in commands {
        let words: Vec<&str> = command.split(' ').chain(["--help"]).collect();
        help += &campanile(&words);
    }
    assert!(flags(&help).len() > 50, "{help}");
    for document in documents() {
        assert_eq!(unknown_flags(&document.text, &help), [] as [&str; 0], "{}", document.path);
    }
    assert_eq!(
        unknown_flags("use `--no-such-thing`, --listen x", "--listen <ADDR>"),
        ["--no-such-thing"]
    );
    assert_eq!(flags("<!-- config --> a--b -- --c-1=2"), ["--c-1"]);
}

/// Paths of the operators' port that stand in the source, or in a document as `` `GET /path` ``.
fn api_paths(router: &str, document: &str) -> [BTreeSet<String>; 2] {
    let routed = router.split(".route(\"").skip(1).filter_map(|rest| rest.split('"').next());
    let of_row = |row: &str| row.split_once('`').map(|(path, _)| path.to_owned());
    let rows = document.lines().filter_map(|line| {
        line.strip_prefix("| `GET ").or_else(|| line.strip_prefix("| `POST ")).and_then(of_row)
    });
    [routed.map(str::to_owned).collect(), rows.collect()]
}

#[test]
fn the_table_of_the_http_api_has_every_path_and_no_other() {
    let router = read("src/api/router.rs");
    let document = read("docs/http-api.md");
    let [routed, written] = api_paths(&router, &document);
    assert!(routed.len() > 5, "{routed:?}");
    assert_eq!(routed, written, "docs/http-api.md has a row for each path of src/api/router.rs");
    let [routed, written] = api_paths(".route(\"/a\", get(x))", "| `GET /b` | x |\ntext");
    assert_ne!(routed, written);
}

// --- what documents name in this repository ---

/// Code in single backticks.
fn code(line: &str) -> impl Iterator<Item = &str> {
    line.split('`').skip(1).step_by(2)
}

fn is_path(code: &str) -> bool {
    let is_name = |c: char| c.is_ascii_alphanumeric() || "._-/".contains(c);
    code.chars().all(is_name)
        && (AT_THE_ROOT.iter().any(|folder| code.starts_with(folder))
            || (!code.contains('/') && code.ends_with(".md")))
}

/// A name of three words or more is taken for a test in the documents that name tests.
fn is_test_name(code: &str) -> bool {
    let is_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    code.chars().all(is_name) && code.matches('_').count() >= 3
}

/// Files and tests that a document names and that do not exist.
fn missing(document: &Document, exists: impl Fn(&str) -> bool, tests: &[String]) -> Vec<String> {
    let names_tests = ["SECURITY.md", "CONTRIBUTING.md", "made up"].contains(&&*document.path);
    let mut complaints = Vec::new();
    for (at, line) in document.prose() {
        for code in code(line) {
            let is_missing = (is_path(code) && !exists(code))
                || (names_tests && is_test_name(code) && !tests.iter().any(|name| name == code));
            if is_missing {
                complaints.push(format!("{}:{at}: `{code}` does not exist", document.path));
            }
        }
    }
    complaints
}

/// The names of all functions below these folders.
fn function_names() -> Vec<String> {
    let mut names = Vec::new();
    let mut waiting = vec![root().join("src"), root().join("tests")];
    while let Some(folder) = waiting.pop() {
        for entry in std::fs::read_dir(folder).expect("a readable folder") {
            let path = entry.expect("a readable folder").path();
            if path.is_dir() {
                waiting.push(path);
            } else if path.extension().is_some_and(|kind| kind == "rs") {
                let text = std::fs::read_to_string(path).expect("UTF-8");
                let named = text.lines().filter_map(|line| line.trim().strip_prefix("fn "));
                names.extend(named.filter_map(|rest| Some(rest.split_once('(')?.0.to_owned())));
            }
        }
    }
    names
}

#[test]
fn files_and_tests_that_documents_name_exist() {
    let tests = function_names();
    assert!(tests.len() > 500);
    // What is installed and built is there only afterwards.
    let exists = |path: &str| path.starts_with("target/") || root().join(path).exists();
    let mut named = 0;
    for document in documents() {
        hold(missing(&document, exists, &tests));
        named += document.prose().flat_map(|(_, line)| code(line)).filter(|it| is_path(it)).count();
    }
    assert!(named > 50, "documents name files, and {named} were seen");
    let of = |text| missing(&Document::of(text), exists, &["a_b_c_d".to_owned()]).len();
    assert_eq!(of("`src/lib.rs`, `README.md`, `a_b_c_d`, `a_b`, `x.rs`, `src/{a,b}`"), 0);
    assert_eq!(of("`src/no.rs`"), 1);
    assert_eq!(of("`NO.md` and `tests/no/`"), 2);
    assert_eq!(of("`nobody_tests_this_here`"), 1);
}

// --- links ---

/// Where `[text](target)` of a line points to.
fn links(line: &str) -> impl Iterator<Item = &str> {
    line.split("](").skip(1).filter_map(|rest| Some(rest.split_once(')')?.0))
}

/// The anchors of a document, as GitHub makes them from headings.
fn anchors(text: &str) -> BTreeSet<String> {
    let document = Document::of(text);
    let headings = document.prose().filter(|(_, line)| line.starts_with('#'));
    let anchor = |(_, line): (usize, &str)| -> String {
        let kept = |c: char| c.is_alphanumeric() || c == '-' || c == '_' || c == ' ';
        let text = line.trim_start_matches('#').trim().to_lowercase();
        text.chars().filter(|c| kept(*c)).map(|c| if c == ' ' { '-' } else { c }).collect()
    };
    headings.map(anchor).collect()
}

/// Links within the repository that lead nowhere, or out of it.
fn broken_links(document: &Document) -> Vec<String> {
    let folder = Path::new(&document.path).parent().expect("a file is in a folder");
    let mut complaints = Vec::new();
    for (at, line) in document.prose() {
        for link in links(line).filter(|link| !link.starts_with("https://")) {
            let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = root().join(folder).join(path);
            let inside = target.canonicalize().is_ok_and(|real| real.starts_with(root()));
            let text = match path.is_empty() {
                true => document.text.clone(),
                false => std::fs::read_to_string(&target).unwrap_or_default(),
            };
            let is_good = path.is_empty() || inside;
            if !is_good || (!anchor.is_empty() && !anchors(&text).contains(anchor)) {
                complaints.push(format!("{}:{at}: {link} leads nowhere", document.path));
            }
        }
    }
    complaints
}

#[test]
fn links_lead_somewhere_within_the_repository() {
    let mut count = 0;
    let tuning = ["tuning/README.md", "benches/README.md"]
        .map(|path| Document { path: path.to_owned(), text: read(path) });
    for document in documents().into_iter().chain(tuning) {
        hold(broken_links(&document));
        count += document.prose().flat_map(|(_, line)| links(line)).count();
    }
    assert!(count > 50, "documents have links, and {count} were seen");
    let of = |text| broken_links(&Document::of(text)).len();
    assert_eq!(of("# Some heading: here\n[a](README.md), [b](#some-heading-here)"), 0);
    assert_eq!(of("[a](no.md)"), 1);
    assert_eq!(of("[a](#nowhere)"), 1);
    assert_eq!(of("[a](README.md#nowhere)"), 1);
    assert_eq!(of("[a](../../etc/passwd) and [b](../)"), 2);
}

#[test]
fn the_front_page_fits_into_two_hundred_lines() {
    let lines = read("README.md").lines().count();
    assert!(lines <= 200, "README.md has {lines} lines; move what is reference into docs/");
}
