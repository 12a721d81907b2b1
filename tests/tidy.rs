//! What keeps this tree as it was meant, checked by reading it: who may know whom, where the unsafe
//! is, and what may not be written. `documents.rs` does the same for the documents.
//!
//! Each rule is a function from sources to complaints, and each has a test in which it complains:
//! a rule that cannot fail holds nothing. A new exception stands in a list here, with its reason.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

// --- the tree ---

/// One file.
struct Source {
    /// From the root of the repository.
    path: String,
    text: String,
}

impl Source {
    /// Its lines with their numbers, without comments and without unit tests.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        let is_test = self.path.ends_with("/tests.rs") || self.path.contains("/tests/");
        let lines = self.text.lines().enumerate().map(|(at, line)| (at + 1, line));
        lines
            .take_while(move |(_, line)| !is_test && line.trim() != "#[cfg(test)]")
            .map(|(number, line)| (number, without_comment(line)))
            .filter(|(_, line)| !line.trim().is_empty())
    }

    /// All of that as one text.
    fn code_text(&self) -> String {
        self.code().fold(String::new(), |text, (_, line)| text + line + "\n")
    }

    fn is_in(&self, folder: &str) -> bool {
        self.path.starts_with(folder)
    }

    /// A complaint about one line.
    fn at(&self, line: usize, what: &str) -> String {
        format!("{}:{line}: {what}", self.path)
    }
}

fn without_comment(line: &str) -> &str {
    match line.trim_start().starts_with("//") {
        true => "",
        // `https://…` in a string is no comment; a blank comes before one.
        false => line.find(" // ").map_or(line, |at| &line[..at]),
    }
}

/// This file says all the words that it forbids.
const ITSELF: &str = "tests/tidy.rs";

fn sources(folders: &[&str]) -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    let mut waiting: Vec<PathBuf> = folders.iter().map(|folder| root.join(folder)).collect();
    while let Some(folder) = waiting.pop() {
        let entries = std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("{folder:?}: {e}"));
        for entry in entries {
            let path = entry.expect("a readable folder").path();
            let name = path.strip_prefix(root).expect("below the root").display().to_string();
            if path.is_dir() {
                waiting.push(path);
            } else if name.ends_with(".rs") && name != ITSELF {
                let text = std::fs::read_to_string(&path).expect("UTF-8");
                found.push(Source { path: name, text });
            }
        }
    }
    assert!(found.len() > 4, "that cannot be the tree");
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

fn hold(complaints: Vec<String>) {
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}

fn snippet(path: &str, text: &str) -> Vec<Source> {
    vec![Source { path: path.to_owned(), text: text.to_owned() }]
}

/// Asserts that a rule complains about each of these, and not about those.
fn complains(rule: fn(&[Source]) -> Vec<String>, bad: &[(&str, &str)], good: &[(&str, &str)]) {
    for (path, text) in bad {
        assert!(!rule(&snippet(path, text)).is_empty(), "no complaint about {path}: {text}");
    }
    for (path, text) in good {
        assert_eq!(rule(&snippet(path, text)), [] as [String; 0], "{path}: {text}");
    }
}

/// Whether `word` stands in `line` as a whole word.
fn has_word(line: &str, word: &str) -> bool {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(at, _)| {
        !line[..at].ends_with(is_part) && !line[at + word.len()..].starts_with(is_part)
    })
}

// --- who may know whom ---

/// For each room, what of the crate it may name. A room that is not here may name everything.
const MAY_NAME: &[(&str, &[&str])] = &[
    ("ids", &[]),
    ("policy", &["policy", "ids"]),
    ("metrics", &["metrics"]),
    ("sys", &[]),
    ("operator_files", &[]),
    ("slab", &["ids"]),
    ("ws", &["ws"]),
    ("protocol", &["protocol", "ids"]),
    ("framing", &["protocol", "ws::encode"]),
    (
        "auth",
        &[
            "auth",
            "ids",
            "policy::grants",
            "policy::revocations::TokenMark",
            "policy::rights",
            "protocol::INFO_BYTES_MAX",
            "protocol::Info",
        ],
    ),
    (
        "link",
        &[
            "link",
            "ids",
            "policy::revocations::Revocation",
            "protocol::dialect::Encoding",
            "protocol::run::Run",
            "protocol::Roster",
            "protocol::Info",
            "protocol::Page",
            "protocol::Recovery",
            "protocol::RequestId",
            "protocol::Unrecovered",
            "policy::grants",
            "policy::rights::Rights",
        ],
    ),
    (
        "shard",
        &["shard", "ws", "protocol", "framing", "link", "auth", "ids", "slab", "metrics", "policy"],
    ),
    (
        "net",
        &[
            "net",
            "policy",
            "shard",
            "ws",
            "protocol::dialect",
            "link",
            "auth",
            "ids",
            "metrics",
            "plan",
            "sys",
        ],
    ),
    (
        "backplane",
        &[
            "backplane",
            "link",
            "protocol",
            "framing",
            "ws::encode",
            "ids",
            "slab",
            "metrics",
            "policy",
            "plan",
            "dial",
            "tls_trust",
        ],
    ),
    (
        "api",
        &[
            "api",
            "auth::FetchedKeys",
            "hooks::jwks",
            "link",
            "protocol",
            "ids",
            "metrics",
            "policy",
            "plan",
            "sys",
            "terminal",
        ],
    ),
    (
        "node",
        &[
            "node",
            "api",
            "hooks",
            "tls_trust",
            "net",
            "backplane",
            "auth",
            "link",
            "ids",
            "metrics",
            "plan",
            "policy::revocations::Revocations",
            "config",
            "sys",
            "operator_files",
            "terminal",
        ],
    ),
    (
        "hooks",
        &[
            "hooks",
            "link",
            "auth::grants",
            "auth::FetchedKeys",
            "auth::JwksPlan",
            "auth::VerifyingKeys",
            "protocol::Info",
            "protocol::INFO_BYTES_MAX",
            "ids",
            "metrics",
            "policy",
            "plan",
            "dial",
            "tls_trust",
        ],
    ),
    ("tls_trust", &["operator_files"]),
    ("dial", &[]),
    ("doctor", &["doctor", "plan", "config", "sys", "terminal"]),
    ("config", &["config", "ids", "policy"]),
    (
        "plan",
        &[
            "plan",
            "config",
            "auth::AuthPlan",
            "auth::ClaimNames",
            "auth::JwksPlan",
            "auth::VerifyingKeys",
            "ids",
            "policy",
        ],
    ),
    ("terminal", &["link::log_queue", "metrics"]),
    // The load generator is a client: it may not share an opinion with the server.
    ("load", &["load", "terminal", "ws::mask"]),
];

fn directions(sources: &[Source]) -> Vec<String> {
    let mut complaints = Vec::new();
    for source in sources.iter().filter(|source| source.is_in("src/")) {
        let Some((_, allowed)) = MAY_NAME.iter().find(|(name, _)| *name == room(&source.path))
        else {
            continue;
        };
        let code = source.code_text();
        for path in crate_paths(&code).into_iter().chain(paths_out_of_room(&source.path, &code)) {
            let is_allowed = allowed.iter().any(|allowed| {
                path.strip_prefix(allowed)
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with(':'))
            });
            if !is_allowed {
                complaints.push(format!("{} names crate::{path}", source.path));
            }
        }
    }
    complaints
}

/// `src/ws/mask.rs` and `src/ws.rs` are both of the room `ws`.
fn room(path: &str) -> &str {
    let below = path.strip_prefix("src/").unwrap_or(path);
    below.split(['/', '.']).next().expect("split gives at least one")
}

/// Everything that is named by `crate::…`, groups taken apart.
fn crate_paths(code: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (at, start) in code.match_indices("crate::") {
        if !code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '$') {
            expand("", &code[at + start.len()..], &mut found);
        }
    }
    found
}

/// What `super::…` names outside of a file's own room.
fn paths_out_of_room(file: &str, code: &str) -> Vec<String> {
    let below = file.trim_start_matches("src/").trim_end_matches(".rs").trim_end_matches("/mod");
    let depth = below.split('/').count();
    let mut found = Vec::new();
    for (at, _) in code.match_indices("super::") {
        let rest = code[at..].trim_start_matches("super::");
        let climbed = (code.len() - at - rest.len()) / "super::".len();
        if climbed >= depth && !code[..at].ends_with("super::") {
            expand("", rest, &mut found);
        }
    }
    found
}

/// Takes one use tree apart; answers what follows it.
fn expand<'a>(before: &str, tree: &'a str, found: &mut Vec<String>) -> &'a str {
    let tree = tree.trim_start();
    if let Some(mut inside) = tree.strip_prefix('{') {
        loop {
            inside = inside.trim_start().trim_start_matches(',').trim_start();
            match inside.strip_prefix('}') {
                Some(after) => return after,
                None if inside.is_empty() => return inside,
                None => inside = expand(before, inside, found),
            }
        }
    }
    let end = tree.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(tree.len());
    let (name, after) = tree.split_at(end.max(usize::from(end == 0 && !tree.is_empty())));
    let path = if before.is_empty() { name.to_owned() } else { format!("{before}::{name}") };
    match after.strip_prefix("::") {
        Some(after) => expand(&path, after, found),
        None => {
            found.push(path);
            after
        }
    }
}

#[test]
fn rooms_name_only_those_they_may_know() {
    hold(directions(&sources(&["src"])));
    complains(
        directions,
        &[
            ("src/ws/mask.rs", "use crate::protocol::Command;"),
            ("src/protocol/json.rs", "fn f() { crate::ws::mask::apply() }"),
            ("src/shard/mod.rs", "use crate::{ids::ConnId, net::{socket, door}};"),
            ("src/shard/mod.rs", "use crate::{\n    ids::ConnId,\n    backplane,\n};"),
            ("src/backplane/local.rs", "use crate::ws::decoder::Decoder;"),
            ("src/load/client/connections/receive.rs", "use crate::ws::encode;"),
            ("src/ids.rs", "use crate::policy::limits::Limits;"),
            ("src/ids.rs", "use super::policy::limits::Limits;"),
            ("src/ws/decoder/mod.rs", "use super::super::{protocol::Command, ws};"),
        ],
        &[
            ("src/ws/decoder/mod.rs", "use super::header::Header;"),
            ("src/net/reactor.rs", "use crate::shard::Shard;"),
            ("src/backplane/local.rs", "use crate::link::{self, channel::Window};"),
            ("src/shard/mod.rs", "use crate::{ids::{ConnId, TopicId}, ws};"),
            ("src/ws/mask.rs", "// crate::protocol is next door"),
            ("src/ws/mask.rs", "#[cfg(test)]\nmod tests { use crate::policy::limits::Limits; }"),
        ],
    );
}

/// A word, the places that may say it, and why only they.
struct Belongs {
    word: &'static str,
    to: &'static [&'static str],
    because: &'static str,
}

const BELONGS: &[Belongs] = &[
    Belongs {
        word: "tokio",
        to: &["src/backplane/", "src/api/", "src/hooks/", "src/dial.rs"],
        because: "a shard's runtime is monoio",
    },
    Belongs {
        word: "redis::",
        to: &["src/backplane/redis/", "src/backplane/mod.rs"],
        because: "one room knows the crate (backplane/mod.rs names its module of that name)",
    },
    Belongs { word: "monoio", to: &["src/net/"], because: "the shard names no runtime" },
    Belongs { word: "monoio_http", to: &["src/net/"], because: "the shard names no runtime" },
    Belongs { word: "axum", to: &["src/api/"], because: "HTTP for operators is made in one room" },
    Belongs {
        word: "hyper",
        to: &["src/api/", "src/hooks/"],
        because: "HTTP is served in one room, and asked in one",
    },
];

fn belongings(sources: &[Source]) -> Vec<String> {
    let mut complaints = Vec::new();
    for source in sources.iter().filter(|source| source.is_in("src/")) {
        for Belongs { word, to, because } in BELONGS {
            if to.iter().any(|place| source.is_in(place)) {
                continue;
            }
            let (name, colons) = word.split_at(word.trim_end_matches(':').len());
            for (number, line) in source.code() {
                // As a module path, not as the last part of one: `backplane::redis`.
                let used = has_word(line, name)
                    && (colons.is_empty()
                        || line.match_indices(word).any(|(at, _)| !line[..at].ends_with(':')));
                if used {
                    complaints.push(
                        source.at(number, &format!("{word} does not belong here: {because}")),
                    );
                }
            }
        }
    }
    complaints
}

#[test]
fn each_foreign_crate_stays_in_its_room() {
    hold(belongings(&sources(&["src"])));
    complains(
        belongings,
        &[
            ("src/shard/mod.rs", "use monoio::time::sleep;"),
            ("src/net/tasks.rs", "tokio::spawn(task);"),
            ("src/api/mod.rs", "use redis::AsyncCommands;"),
            ("src/net/upgrade/routes.rs", "use axum::Json;"),
        ],
        &[
            ("src/net/tasks.rs", "monoio::spawn(task);"),
            ("src/config/value.rs", r#"url.starts_with("redis://")"#),
            ("src/plan.rs", "// monoio is built elsewhere"),
        ],
    );
}

/// The only file that decides by the dialect of a connection.
const DECIDES_BY_DIALECT: &str = "src/protocol/dialect.rs";

/// Decisions by the dialect elsewhere: arms of a `match`, comparisons, `matches!`. A dialect may be
/// chosen for a connection, and what it means is asked of it.
fn decisions_by_dialect(sources: &[Source]) -> Vec<String> {
    let mut complaints = Vec::new();
    let elsewhere = |source: &&Source| source.is_in("src/") && source.path != DECIDES_BY_DIALECT;
    for source in sources.iter().filter(elsewhere) {
        for (number, line) in source.code() {
            let Some((before, after)) = line.split_once("Dialect::") else { continue };
            let is_variant = after.starts_with(|c: char| c.is_uppercase());
            let decides = after.contains("=>")
                || ["== ", "!= "].iter().any(|sign| before.ends_with(sign))
                || [" ==", " !="].iter().any(|sign| after.contains(sign))
                || ["matches!", "if let ", "let "]
                    .iter()
                    .any(|word| before.trim_start().contains(word))
                    && !before.contains(" = ")
                || after.trim_start_matches(char::is_alphanumeric).trim_start().starts_with('|');
            if is_variant && decides {
                complaints.push(source.at(number, "what a dialect means is asked of it"));
            }
        }
    }
    complaints
}

#[test]
fn one_file_decides_by_the_dialect() {
    hold(decisions_by_dialect(&sources(&["src"])));
    complains(
        decisions_by_dialect,
        &[
            ("src/shard/conn.rs", "            Dialect::Native => native::write(event),"),
            ("src/shard/conn.rs", "if conn.dialect() == Dialect::Echo {"),
            ("src/shard/conn.rs", "if Dialect::Echo != conn.dialect() {"),
            ("src/backplane/local.rs", "matches!(encoding.dialect(), Dialect::Native)"),
            ("src/backplane/local.rs", "            Dialect::Native | Dialect::Lines"),
        ],
        &[
            (DECIDES_BY_DIALECT, "            Dialect::Native => native::write(event),"),
            ("src/net/upgrade/routes.rs", "let it = if echo { Dialect::Echo } else { other };"),
            ("src/api/presence.rs", "Dialect::Native.write(&event, &mut body);"),
            ("src/shard/conn.rs", "// Dialect::Native => is decided elsewhere"),
        ],
    );
}

/// Rooms to which time is an argument.
const TIMELESS: &[&str] = &[
    "src/ws/",
    "src/protocol/",
    "src/shard/",
    "src/auth/",
    "src/config",
    "src/plan",
    "src/ids.rs",
];

fn clocks(sources: &[Source]) -> Vec<String> {
    let timeless = sources.iter().filter(|source| TIMELESS.iter().any(|place| source.is_in(place)));
    let mut complaints = Vec::new();
    for source in timeless {
        for (number, line) in source.code() {
            if line.contains("Instant::now") || line.contains("SystemTime::now") {
                complaints.push(source.at(number, "time is an argument here"));
            }
        }
    }
    complaints
}

#[test]
fn state_machines_look_at_no_clock() {
    hold(clocks(&sources(&["src"])));
    complains(
        clocks,
        &[
            ("src/shard/lifecycle.rs", "let now = Instant::now();"),
            ("src/auth/mod.rs", "std::time::SystemTime::now()"),
        ],
        &[("src/net/reactor.rs", "let now = Instant::now();")],
    );
}

// --- what may not be written ---

/// A text, where it may stand all the same, and what to do instead.
struct Banned {
    text: &'static str,
    but: &'static [&'static str],
    instead: &'static str,
}

const BANNED: &[Banned] = &[
    Banned { text: ".unwrap()", but: &[], instead: "say the belief: expect(\"…\")" },
    Banned { text: "Mutex", but: &[], instead: "decide who owns it, and pass &mut" },
    Banned { text: "RwLock", but: &[], instead: "decide who owns it, and pass &mut" },
    Banned { text: "RefCell", but: &[], instead: "decide who owns it, and pass &mut" },
    Banned {
        text: "Atomic",
        but: &["src/link/", "src/metrics/"],
        instead: "what threads share is declared in link/",
    },
    Banned { text: "todo!", but: &[], instead: "do it, or leave it out" },
    Banned { text: "unimplemented!", but: &[], instead: "do it, or leave it out" },
    Banned { text: "dbg!", but: &[], instead: "tracing" },
    Banned { text: "println!", but: &[], instead: "terminal::, or tracing: it panics unheard" },
    Banned { text: "print!", but: &[], instead: "terminal::, or tracing: it panics unheard" },
];

/// Not even in comments.
const WORDS_OF_THE_UNFINISHED: [&str; 3] = ["TODO", "FIXME", "XXX"];

fn bans(sources: &[Source]) -> Vec<String> {
    let mut complaints = Vec::new();
    for source in sources {
        for (at, line) in source.text.lines().enumerate() {
            for word in WORDS_OF_THE_UNFINISHED.iter().filter(|word| has_word(line, word)) {
                complaints.push(source.at(at + 1, &format!("{word}: do it, or leave it out")));
            }
        }
        if !source.is_in("src/") {
            continue;
        }
        for Banned { text, but, instead } in BANNED {
            if but.iter().any(|place| source.is_in(place)) {
                continue;
            }
            for (number, line) in source.code().filter(|(_, line)| line.contains(text)) {
                complaints.push(source.at(number, &format!("{text}: {instead}: {line}")));
            }
        }
    }
    complaints
}

#[test]
fn what_is_banned_is_not_written() {
    hold(bans(&sources(&["src", "tests", "benches"])));
    complains(
        bans,
        &[
            ("src/ws/mask.rs", "let x = y.unwrap();"),
            ("src/shard/hub.rs", "use std::cell::RefCell;"),
            ("src/api/mod.rs", "static LOCK: std::sync::Mutex<()> = …"),
            ("src/net/reactor.rs", "use std::sync::atomic::AtomicU64;"),
            ("src/net/reactor.rs", "println!(\"here\");"),
            ("src/net/reactor.rs", "dbg!(x);"),
            ("src/net/reactor.rs", "// TODO: later"),
            ("src/net/door.rs", "use std::sync::atomic::AtomicU64;"),
            ("src/net/door.rs", "println!(\"here\");"),
            ("src/load/mod.rs", "eprint!(\"{error}\");"),
            ("src/net/door.rs", "dbg!(x);"),
            ("src/net/door.rs", "// TODO: later"),
            ("tests/e2e/main.rs", "// FIXME"),
        ],
        &[
            ("src/link/bell.rs", "use std::sync::atomic::AtomicBool;"),
            ("src/ws/mask.rs", "#[cfg(test)]\nmod tests { fn f() { x.unwrap(); } }"),
            ("src/config/tests.rs", "x.unwrap();"),
            ("tests/e2e/main.rs", "x.unwrap();"),
        ],
    );
}

/// Everyone who may be unsafe, and what for.
const UNSAFE: &[(&str, &str)] = &[
    ("src/link/bell.rs", "eventfd: make, ring, clear"),
    ("src/net/io/epoll.rs", "epoll_create1, epoll_ctl, epoll_wait"),
    ("src/net/io/send.rs", "ring entries that point into buffers the batch keeps alive"),
    (
        "src/net/io/socket.rs",
        "recv, sendmsg, accept4, getpeername, setsockopt, shutdown, close, dup on plain descriptors",
    ),
    ("src/sys.rs", "affinity, rlimits, unshare: system calls that std lacks"),
    ("src/load/sys.rs", "the same for the load generator, which shares nothing with the server"),
    ("tests/common/counting.rs", "an allocator that counts"),
    ("tests/common/stepper.rs", "fork and ptrace of its own child"),
    ("tests/layout.rs", "an allocator that notes addresses"),
    ("benches/bell.rs", "a bare eventfd, as the floor"),
    ("benches/backplane/node.rs", "poll on a bell, as the shard's runtime does"),
    ("benches/floor/floor.rs", "a bare ring, as the floor"),
    ("benches/floor/buffers.rs", "its ring of receive buffers"),
    ("benches/floor/work.rs", "its loop"),
];

/// Word by word, so that this file does not count.
const UNSAFE_WORD: &str = "unsafe";

fn dangers(sources: &[Source]) -> Vec<String> {
    let mut complaints = Vec::new();
    for source in sources {
        let listed = UNSAFE.iter().any(|(path, _)| *path == source.path);
        let lines: Vec<&str> = source.text.lines().collect();
        for (at, line) in lines.iter().enumerate() {
            let code = without_comment(line);
            if !has_word(code, UNSAFE_WORD) {
                continue;
            }
            if !listed {
                complaints.push(source.at(at + 1, "this file may not be unsafe (see UNSAFE)"));
            }
            let opens_a_block = code.contains("unsafe {");
            if opens_a_block && !is_explained(&lines[..at]) {
                complaints.push(source.at(at + 1, "no `// SAFETY:` in the 4 lines before"));
            }
        }
    }
    complaints
}

/// Whether a `// SAFETY:` comment ends at most 4 lines before the end of `lines`.
fn is_explained(lines: &[&str]) -> bool {
    let is_comment = |line: &&&str| line.trim_start().starts_with("//");
    let near = lines.iter().rev().take(4);
    let Some(skipped) = near.clone().position(|line| is_comment(&line)) else { return false };
    let comment = lines.iter().rev().skip(skipped).take_while(is_comment);
    comment.into_iter().any(|line| line.contains("SAFETY:"))
}

fn dangers_gone(sources: &[Source]) -> Vec<String> {
    let is_unsafe = |path: &str| {
        let source = sources.iter().find(|source| source.path == path);
        source.is_some_and(|source| {
            source.text.lines().any(|line| has_word(without_comment(line), UNSAFE_WORD))
        })
    };
    let gone = UNSAFE.iter().filter(|(path, _)| !is_unsafe(path));
    gone.map(|(path, _)| format!("{path} is not unsafe any more: strike it from UNSAFE")).collect()
}

#[test]
fn unsafe_is_where_it_is_listed_and_says_why_it_holds() {
    let tree = sources(&["src", "tests", "benches"]);
    hold(dangers(&tree));
    hold(dangers_gone(&tree));
    let explained = "// SAFETY: it holds,\n// for two reasons.\nlet x = unsafe { f() };";
    complains(
        dangers,
        &[
            ("src/shard/mod.rs", explained),
            ("src/sys.rs", "let x = unsafe { f() };"),
            ("src/sys.rs", "// SAFETY: of old\n\n\n\n\nlet x = unsafe { f() };"),
            ("src/sys.rs", "// some other remark\nlet x = unsafe { f() };"),
            ("tests/common/redis.rs", "unsafe impl Send for X {}"),
        ],
        &[
            ("src/sys.rs", explained),
            ("src/shard/mod.rs", "#![deny(unsafe_code)]"),
            ("src/shard/mod.rs", "// nothing unsafe here"),
        ],
    );
    assert_eq!(dangers_gone(&[]).len(), UNSAFE.len());
}

// --- names ---

/// The files in which each type that others can see is declared, by its name.
fn visible_types(sources: &[Source]) -> BTreeMap<&str, BTreeSet<&str>> {
    let mut types = BTreeMap::<&str, BTreeSet<&str>>::new();
    for source in sources.iter().filter(|source| source.is_in("src/")) {
        for name in source.code().filter_map(|(_, line)| visible_type(line)) {
            types.entry(name).or_default().insert(&source.path);
        }
    }
    types
}

/// `pub(super) struct Name<T> {` declares `Name`.
fn visible_type(line: &str) -> Option<&str> {
    let rest = line.trim_start().strip_prefix("pub")?;
    let rest = match rest.strip_prefix('(') {
        Some(scoped) => scoped.split_once(')')?.1,
        None => rest,
    };
    let (keyword, rest) = rest.strip_prefix(' ')?.split_once(' ')?;
    let declares = ["struct", "enum", "trait", "type", "union"].contains(&keyword);
    let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
    (declares && end > 0).then(|| &rest[..end])
}

fn shared_type_names(sources: &[Source]) -> Vec<String> {
    let types = visible_types(sources);
    let shared = types.iter().filter(|(_, files)| files.len() > 1);
    shared.map(|(name, files)| format!("{name} is a type in each of {files:?}")).collect()
}

#[test]
fn a_type_name_means_one_thing() {
    let tree = sources(&["src"]);
    hold(shared_type_names(&tree));
    let two = |first: &str, second: &str| {
        let file = |path: &str, text: &str| Source { path: path.into(), text: text.into() };
        shared_type_names(&[file("src/a.rs", first), file("src/b.rs", second)]).len()
    };
    assert_eq!(two("pub struct Zone;", "pub enum Zone {}"), 1);
    assert_eq!(two("pub(super) struct Zone<T>(T);", "    pub(crate) type Zone = u8;"), 1);
    assert_eq!(two("pub struct Zone;", "struct Zone;"), 0, "nobody else sees the second");
    assert_eq!(two("pub struct Zone;", "#[cfg(test)]\npub struct Zone;"), 0);
    assert_eq!(two("pub struct Zone;", "pub struct Zones;\npub fn zone(zone: Zone) {}"), 0);
}

/// A word for which the field has a term, and the term.
struct Metaphor {
    word: &'static str,
    instead: &'static str,
}

const METAPHORS: &[Metaphor] = &[
    Metaphor { word: "told", instead: "receives, is reported" },
    Metaphor { word: "said", instead: "sent, published, written, what it is" },
    Metaphor { word: "kept", instead: "stored, held" },
    Metaphor { word: "whoever", instead: "name the subject" },
    Metaphor { word: "somebody", instead: "name the subject" },
    Metaphor { word: "anew", instead: "again" },
    Metaphor { word: "witness", instead: "unconfirmed publishes" },
    Metaphor { word: "astray", instead: "redirected, off core" },
    Metaphor { word: "dirt", instead: "pending writes" },
    Metaphor { word: "meanwhile", instead: "in the meantime happens what? say it" },
    Metaphor { word: "door", instead: "entrance, reactor" },
    Metaphor { word: "lounge", instead: "lingering sockets" },
    Metaphor { word: "tower", instead: "node, shard" },
    Metaphor { word: "ear", instead: "inbound handler" },
    Metaphor { word: "heir", instead: "successor" },
    Metaphor { word: "wish", instead: "options, request" },
    Metaphor { word: "knob", instead: "setting" },
    Metaphor { word: "guest", instead: "client, connection" },
    Metaphor { word: "guests", instead: "clients, connections" },
    Metaphor { word: "newcomer", instead: "joiner, later member" },
    Metaphor { word: "stranger", instead: "name the subject" },
    Metaphor { word: "born", instead: "started, accepted" },
    Metaphor { word: "goodbye", instead: "close frame" },
    Metaphor { word: "heard", instead: "received" },
    Metaphor { word: "hears", instead: "receives" },
    Metaphor { word: "hear", instead: "receive" },
];

/// Names that are not ours to choose: they are no use of the words in them.
const FOREIGN_NAMES: &[&str] = &[
    "TowerToHyperService", // of the crate hyper-util
    "tower_service",       // the name of a crate
    "\"{said:",            // a placeholder that people type; deprecated, goes with version 1.0
];

/// How often each word stands in names, comments and texts of `src/`: `took_said`, `SaidNow` and
/// "what was said" count alike.
fn word_counts(sources: &[Source]) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for source in sources.iter().filter(|source| source.is_in("src/")) {
        let mut word = String::new();
        let mut was_lower = false;
        let ours =
            FOREIGN_NAMES.iter().fold(source.text.clone(), |text, name| text.replace(name, " "));
        for c in ours.chars().chain(['\n']) {
            let begins = !c.is_alphabetic() || (c.is_uppercase() && was_lower);
            if begins && !word.is_empty() {
                *counts.entry(std::mem::take(&mut word)).or_default() += 1;
            }
            if c.is_alphabetic() {
                word.extend(c.to_lowercase());
            }
            was_lower = c.is_lowercase();
        }
    }
    counts
}

fn metaphors(sources: &[Source]) -> Vec<String> {
    let counts = word_counts(sources);
    let mut complaints = Vec::new();
    for Metaphor { word, instead } in METAPHORS {
        if let Some(times) = counts.get(*word) {
            complaints.push(format!("{word:?} stands in src {times} times: {instead}"));
        }
    }
    complaints
}

#[test]
fn a_word_for_which_the_field_has_a_term_is_not_used() {
    hold(metaphors(&sources(&["src"])));
    for Metaphor { word, .. } in METAPHORS {
        let named = format!("fn take_{word}() {{}}");
        complains(
            metaphors,
            &[("src/a.rs", &named), ("src/a.rs", &format!("// a {word}.\n"))],
            &[("src/a.rs", &format!("fn x{word}x() {{}}")), ("tests/a.rs", &named)],
        );
    }
    let counted = word_counts(&snippet("src/a.rs", "SaidNow is_said SAID saids \"{said:x}"));
    assert_eq!(counted["said"], 3);
    let tree = sources(&["src"]);
    for name in FOREIGN_NAMES {
        let is_used = tree.iter().any(|source| source.text.contains(name));
        assert!(is_used, "{name} is not in src any more: strike it from FOREIGN_NAMES");
    }
}

// --- form ---

/// What rustfmt makes of code. Prose may hang over by a short word.
const COLUMNS_MAX: usize = 103;
/// What rustfmt leaves as it is: rows of our tables, which are macros, and texts in them.
const COLUMNS_OF_A_ROW_MAX: usize = 140;

fn forms(sources: &[Source]) -> Vec<String> {
    let mut complaints = Vec::new();
    for source in sources {
        let needs_no_words = source.path.ends_with("/tests.rs") || !source.is_in("src/");
        if !needs_no_words && !source.text.starts_with("//!") {
            complaints.push(source.at(1, "a file introduces itself: begin with //!"));
        }
        for (at, line) in source.text.lines().enumerate() {
            let columns = line.chars().count();
            let is_text = line.trim_start().starts_with(['"', 'r']) && line.contains('"');
            let is_row = line.contains(['"', '$']) || line.trim_start().starts_with("#![");
            let max = if is_row { COLUMNS_OF_A_ROW_MAX } else { COLUMNS_MAX };
            if columns > max && !is_text {
                complaints.push(source.at(at + 1, &format!("{columns} columns")));
            }
        }
    }
    complaints
}

#[test]
fn files_introduce_themselves_and_fit_the_page() {
    hold(forms(&sources(&["src"])));
    let long = format!("//! {}", "x".repeat(100));
    complains(
        forms,
        &[("src/ws/mask.rs", "use std::io;"), ("src/ws/mask.rs", &long), ("tests/x.rs", &long)],
        &[
            ("src/ws/mask.rs", "//! Masking."),
            ("tests/x.rs", "use std::io;"),
            ("tests/x.rs", &format!("    \"{}\",", "x".repeat(300))),
        ],
    );
}

/// A function of this many lines no longer fits a screen.
const FUNCTION_LINES_MAX: usize = 70;

/// Functions that were longer when the rule came. This list only ever gets shorter.
const LONG_FUNCTIONS: &[(&str, &str)] = &[];

fn lengths(sources: &[Source]) -> Vec<String> {
    let mut complaints = Vec::new();
    for source in sources {
        for (name, line, length) in functions(&source.text) {
            let excused = LONG_FUNCTIONS.contains(&(source.path.as_str(), name));
            if length > FUNCTION_LINES_MAX && !excused {
                complaints.push(source.at(line, &format!("fn {name} has {length} lines")));
            }
        }
    }
    complaints
}

/// Name, line and length of every function, as rustfmt indents them.
fn functions(text: &str) -> Vec<(&str, usize, usize)> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        let code = without_comment(line);
        let Some((before, after)) = code.split_once("fn ") else { continue };
        let is_item = before.split_whitespace().all(|word| {
            word.starts_with("pub")
                || ["const", "async", "unsafe", "extern", "\"C\""].contains(&word)
        });
        if !is_item {
            continue;
        }
        let end = after.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(after.len());
        let indent = &code[..code.len() - code.trim_start().len()];
        let closes = format!("{indent}}}");
        let length = lines[at..].iter().position(|line| *line == closes).map_or(1, |n| n + 1);
        // A declaration, or a body on one line, is not closed by the next function's brace.
        let is_short = code.ends_with(';') || code.ends_with('}');
        found.push((&after[..end], at + 1, if is_short { 1 } else { length }));
    }
    found
}

fn lengths_gone(sources: &[Source]) -> Vec<String> {
    let gone = LONG_FUNCTIONS.iter().filter(|(path, name)| {
        !sources.iter().any(|source| {
            source.path == *path
                && functions(&source.text)
                    .iter()
                    .any(|(found, _, length)| found == name && *length > FUNCTION_LINES_MAX)
        })
    });
    gone.map(|(path, name)| format!("{path}: {name} is short now: strike it")).collect()
}

#[test]
fn functions_fit_a_screen() {
    let tree = sources(&["src", "tests", "benches"]);
    hold(lengths(&tree));
    hold(lengths_gone(&tree));
    let body = |lines: usize| format!("    fn f() {{\n{}    }}\n", "        x();\n".repeat(lines));
    let (long, short) = (body(FUNCTION_LINES_MAX - 1), body(FUNCTION_LINES_MAX - 2));
    complains(
        lengths,
        &[
            ("src/ws/mask.rs", &long),
            ("tests/e2e/main.rs", &long.replace("fn f", "pub async fn f")),
        ],
        &[("src/ws/mask.rs", &short), ("src/ws/mask.rs", &format!("fn g();\n{short}"))],
    );
    assert_eq!(functions(&long), [("f", 1, FUNCTION_LINES_MAX + 1)]);
}
