//! Files of `src` import each other in one direction only, so that each can be read after those
//! that it imports: no circle, `super::` paths included. Some rooms hold to more: no import from a
//! folder's own `mod.rs`, no `super::` path at all.
//!
//! Checked by reading the sources, as `tidy.rs` does; each rule has a test in which it complains.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// The rooms that hold to more.
const STRICT: &[&str] = &["backplane"];

/// Rooms that know nothing of those that implement them: (room, what it may not import).
const INDEPENDENT: &[(&str, &[&str])] =
    &[("backplane", &["backplane::redis", "backplane::embedded"])];

/// Rooms that implement the same thing in different ways: neither imports the other.
const APART: &[(&str, &str)] = &[("backplane::redis", "backplane::embedded")];

/// The files that put a room together and so may import everything.
const ASSEMBLIES: &[&str] = &["backplane", "backplane::embedded", "backplane::redis"];

/// Text by module: `src/backplane/redis/mod.rs` is `backplane::redis`.
type Modules = BTreeMap<String, String>;

fn modules(folder: &Path, src: &Path, into: &mut Modules) {
    for entry in std::fs::read_dir(folder).expect("a folder of the tree") {
        let path = entry.expect("a readable folder").path();
        let file = path.file_name().expect("it has a name").to_string_lossy().into_owned();
        if path.is_dir() {
            modules(&path, src, into);
        } else if file.ends_with(".rs") && file != "tests.rs" {
            let below = path.strip_prefix(src).expect("below src").with_extension("");
            let name = below.display().to_string().replace('/', "::");
            let name = name.strip_suffix("::mod").map_or(name.clone(), str::to_owned);
            into.insert(name, std::fs::read_to_string(&path).expect("UTF-8"));
        }
    }
}

/// The code without comments and without unit tests.
fn code(text: &str) -> String {
    let text = text.split("#[cfg(test)]\nmod tests {").next().expect("split gives at least one");
    let lines = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    let code = lines.fold(String::new(), |code, line| code + line + "\n");
    without_visibilities(&code)
}

/// `pub(in crate::shard)` names a module and imports nothing of it.
fn without_visibilities(code: &str) -> String {
    let mut parts = code.split("pub(in ");
    let first = parts.next().expect("split gives at least one").to_owned();
    parts.fold(first, |code, part| {
        code + "pub" + part.split_once(')').map_or(part, |(_, after)| after)
    })
}

/// The modules that a module imports or names.
fn imports(module: &str, text: &str, all: &Modules) -> BTreeSet<String> {
    let code = code(text);
    let mut paths = Vec::new();
    for (at, start) in code.match_indices("crate::") {
        expand("", &code[at + start.len()..], &mut paths);
    }
    for (at, _) in code.match_indices("super::") {
        let mut above = module;
        let mut rest = &code[at..];
        // The first of several stands for all of them.
        while let Some(after) =
            rest.strip_prefix("super::").filter(|_| !code[..at].ends_with("super::"))
        {
            above = above.rsplit_once("::").map_or("", |(above, _)| above);
            rest = after;
        }
        if rest.len() < code[at..].len() && !above.is_empty() {
            expand(above, rest, &mut paths);
        }
    }
    for line in code.lines() {
        let used = line.trim_start().trim_start_matches("pub ").strip_prefix("use ");
        if let Some(path) = used.filter(|path| !path.starts_with("crate::")) {
            let mut relative = Vec::new();
            expand("", path, &mut relative);
            paths.extend(relative.iter().map(|path| format!("{module}::{path}")));
        }
    }
    let found = paths.iter().filter_map(|path| longest_module(path, all));
    found.filter(|found| found != module).collect()
}

fn longest_module(path: &str, all: &Modules) -> Option<String> {
    let mut path = path.trim_end_matches("::self");
    loop {
        if all.contains_key(path) {
            return Some(path.to_owned());
        }
        path = path.rsplit_once("::")?.0;
    }
}

/// Takes one use tree apart; returns what follows it.
fn expand<'a>(before: &str, tree: &'a str, found: &mut Vec<String>) -> &'a str {
    let tree = tree.trim_start();
    if let Some(mut inside) = tree.strip_prefix('{') {
        loop {
            inside = inside.trim_start_matches([' ', '\n', ',']);
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

/// What is wrong with the imports of these modules.
fn complaints(all: &Modules) -> Vec<String> {
    let graph: BTreeMap<&str, BTreeSet<String>> =
        all.iter().map(|(name, text)| (name.as_str(), imports(name, text, all))).collect();
    let mut complaints = Vec::new();
    for (name, imported) in &graph {
        complaints.extend(circle_through(name, &graph).map(|circle| {
            let circle = circle.join(" → ");
            format!("a circle: {circle}")
        }));
        complaints.extend(dependences(name, imported));
        if !STRICT.iter().any(|room| is_in(name, room)) {
            continue;
        }
        if code(&all[*name]).contains("super::") {
            complaints.push(format!("{name} has a super:: path"));
        }
        for other in imported.iter().filter(|other| name.starts_with(&format!("{other}::"))) {
            complaints.push(format!("{name} imports from its own folder's {other}"));
        }
    }
    complaints
}

fn is_in(name: &str, room: &str) -> bool {
    name == room || name.starts_with(&format!("{room}::"))
}

/// Imports of what a general room may not know.
fn dependences(name: &str, imported: &BTreeSet<String>) -> Vec<String> {
    let mut complaints = Vec::new();
    for (room, forbidden) in INDEPENDENT {
        let is_general = is_in(name, room) && !forbidden.iter().any(|it| is_in(name, it));
        if !is_general || ASSEMBLIES.contains(&name) {
            continue;
        }
        let known = imported.iter().filter(|other| forbidden.iter().any(|it| is_in(other, it)));
        complaints.extend(known.map(|other| format!("{name} is general and imports {other}")));
    }
    let both_ways = APART.iter().flat_map(|(one, other)| [(one, other), (other, one)]);
    for (room, other) in both_ways.filter(|(room, _)| is_in(name, room)) {
        let known = imported.iter().filter(|import| is_in(import, other));
        complaints.extend(known.map(|import| format!("{name} of {room} imports {import}")));
    }
    complaints
}

/// The shortest way from a module back to itself, if there is one.
fn circle_through(start: &str, graph: &BTreeMap<&str, BTreeSet<String>>) -> Option<Vec<String>> {
    let mut ways = vec![vec![start.to_owned()]];
    let mut seen = BTreeSet::new();
    while !ways.is_empty() {
        let mut longer = Vec::new();
        for way in ways {
            let last = way.last().expect("a way has a beginning");
            for next in &graph[last.as_str()] {
                let further = way.iter().chain([next]).cloned().collect::<Vec<_>>();
                if next == start {
                    return Some(further);
                }
                if seen.insert(next.clone()) {
                    longer.push(further);
                }
            }
        }
        ways = longer;
    }
    None
}

fn snippets(files: &[(&str, &str)]) -> Modules {
    files.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect()
}

#[test]
fn imports_have_one_direction() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut all = Modules::new();
    modules(&src, &src, &mut all);
    assert!(all.len() > 150, "that cannot be all of src");
    let complaints = complaints(&all);
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}

#[test]
fn every_rule_can_fail() {
    let bad: &[&[(&str, &str)]] = &[
        &[("a::x", "use crate::a::y::Y;"), ("a::y", "use crate::a::x::{self, X};")],
        &[("a", "mod x;\nuse x::X;"), ("a::x", "fn f() { crate::a::g() }")],
        &[("a", "use x::X;"), ("a::x", "use super::T;")],
        &[("a::x", "use super::y::{Y};"), ("a::y", "fn f() { super::x::g() }")],
        &[("a::b::x", "use super::super::y::Y;"), ("a::y", "use super::b::x::X;")],
        &[("backplane", "mod x;"), ("backplane::x", "use crate::backplane::T;")],
        &[("backplane::x", "use super::y::Y;"), ("backplane::y", "")],
        &[("backplane::local", "use crate::backplane::redis::names::N;"), ("backplane::redis", "")],
        &[("backplane::redis", "use crate::backplane::embedded::E;"), ("backplane::embedded", "")],
        &[
            ("backplane::embedded", "fn f() { crate::backplane::redis::g() }"),
            ("backplane::redis", ""),
        ],
        &[("backplane::redis::x", "use crate::backplane::embedded;"), ("backplane::embedded", "")],
    ];
    for files in bad {
        assert!(!complaints(&snippets(files)).is_empty(), "no complaint about {files:?}");
    }
    let good: &[&[(&str, &str)]] = &[
        &[("a::x", "use crate::a::y::{\n    Y,\n};"), ("a::y", "// crate::a::x is next door")],
        &[("a", "mod x;\nuse x::X;"), ("a::x", "use std::io;")],
        &[("a", "pub use x::X;"), ("a::x", "pub(in crate::a) struct X(pub(in crate::a) u8);")],
        &[("a::x", "use super::y::Y;"), ("a::y", "")],
        &[("a", "mod x;"), ("a::x", "use crate::a::T;")],
        &[("a::x", "#[cfg(test)]\nmod tests {\n    use super::*;\n}"), ("a::y", "")],
        &[("backplane", "use crate::backplane::redis::R;"), ("backplane::redis", "")],
    ];
    for files in good {
        assert_eq!(complaints(&snippets(files)), [] as [String; 0], "{files:?}");
    }
}
