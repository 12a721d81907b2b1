//! Every dependency's licence permits what ours promise to whoever uses this program.
//!
//! The licences are those of the packages' own manifests, as `cargo metadata` reads them without a
//! network: everything that is compiled for this platform, for tests and benchmarks as well.

use serde_json::Value;
use std::process::Command;

/// Licences (SPDX) that allow use, change and distribution with no more than a notice.
const ALLOWED: &[&str] = &[
    "0BSD",
    "Apache-2.0",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CDLA-Permissive-2.0", // of data: the certificates of webpki-roots
    "ISC",
    "MIT",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

/// Whether a licence expression of SPDX can be met with the licences that are allowed. `/` is the old
/// way to write `OR`. What cannot be read is an error.
fn is_allowed(expression: &str) -> Result<bool, String> {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut rest = words.as_slice();
    let allowed = any_of(&mut rest)?;
    match rest {
        [] => Ok(allowed),
        [word, ..] => Err(format!("{expression:?}: {word:?} was not expected")),
    }
}

fn any_of(words: &mut &[&str]) -> Result<bool, String> {
    let mut allowed = all_of(words)?;
    while let ["OR", rest @ ..] = *words {
        *words = rest;
        allowed |= all_of(words)?;
    }
    Ok(allowed)
}

fn all_of(words: &mut &[&str]) -> Result<bool, String> {
    let mut allowed = one(words)?;
    while let ["AND", rest @ ..] = *words {
        *words = rest;
        allowed &= one(words)?;
    }
    Ok(allowed)
}

fn one(words: &mut &[&str]) -> Result<bool, String> {
    match *words {
        ["(", rest @ ..] => {
            *words = rest;
            let allowed = any_of(words)?;
            let [")", rest @ ..] = *words else { return Err("a bracket is not closed".into()) };
            *words = rest;
            Ok(allowed)
        }
        // An exception only ever allows more.
        [name, "WITH", _, rest @ ..] => {
            *words = rest;
            Ok(ALLOWED.contains(name))
        }
        [name, rest @ ..] if !["OR", "AND", "WITH", ")"].contains(name) => {
            *words = rest;
            Ok(ALLOWED.contains(name))
        }
        _ => Err("a licence is missing".into()),
    }
}

/// What is wrong with the licences of these packages.
fn complaints(packages: &[Value]) -> Vec<String> {
    let judge = |package: &Value| {
        let (name, version) = (package["name"].as_str(), package["version"].as_str());
        let name = format!("{} {}", name.unwrap_or("?"), version.unwrap_or("?"));
        let Some(licence) = package["license"].as_str() else {
            return Some(format!("{name} names no licence"));
        };
        match is_allowed(licence) {
            Ok(true) => None,
            Ok(false) => Some(format!("{name}: {licence} is not on the list")),
            Err(why) => Some(format!("{name}: {licence}: {why}")),
        }
    };
    packages.iter().filter_map(judge).collect()
}

fn output_of(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {complained}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// Every package that is compiled here.
fn packages() -> Vec<Value> {
    let about = output_of(Command::new("rustc").arg("-vV"));
    let platform = about.lines().find_map(|line| line.strip_prefix("host: ")).expect("it says so");
    let text = output_of(
        Command::new(env!("CARGO"))
            .args(["metadata", "--offline", "--locked", "--format-version", "1"])
            .args(["--filter-platform", platform])
            .current_dir(env!("CARGO_MANIFEST_DIR")),
    );
    let all: Value = serde_json::from_str(&text).expect("JSON");
    // Without a platform everything is listed; with one, the graph has what is used.
    let used: Vec<&Value> = all["resolve"]["nodes"]
        .as_array()
        .expect("a graph")
        .iter()
        .map(|node| &node["id"])
        .collect();
    let packages = all["packages"].as_array().expect("packages").iter();
    packages.filter(|package| used.contains(&&package["id"])).cloned().collect()
}

#[test]
fn every_dependency_has_a_licence_that_is_allowed() {
    let packages = packages();
    assert!(packages.len() > 100, "{} packages cannot be all", packages.len());
    let found = complaints(&packages);
    assert!(found.is_empty(), "\n{}\n", found.join("\n"));
}

#[test]
fn a_licence_that_is_not_allowed_is_found() {
    for good in [
        "MIT",
        "MIT OR Apache-2.0",
        "Apache-2.0/MIT",
        "GPL-3.0-only OR MIT",
        "(MIT OR Apache-2.0) AND Unicode-3.0",
        "Apache-2.0 WITH LLVM-exception OR MIT",
        "MIT OR GPL-3.0-only AND ISC",
    ] {
        assert_eq!(is_allowed(good), Ok(true), "{good}");
    }
    for bad in ["GPL-3.0-only", "MIT AND AGPL-3.0-only", "(GPL-2.0 OR AGPL-3.0) AND MIT", "mit"] {
        assert_eq!(is_allowed(bad), Ok(false), "{bad}");
    }
    for unreadable in ["", "MIT OR", "(MIT", "MIT Apache-2.0", "AND MIT", "MIT)"] {
        assert!(is_allowed(unreadable).is_err(), "{unreadable}");
    }
    let package = |licence: Value| serde_json::json!({"name":"x","version":"1","license":licence});
    assert_eq!(complaints(&[package("MIT".into())]), [] as [String; 0]);
    assert_eq!(complaints(&[package("GPL-3.0-only".into()), package(Value::Null)]).len(), 2);
}
