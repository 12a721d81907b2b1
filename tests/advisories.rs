//! No package with a known vulnerability is part of this program.
//!
//! A package that Cargo.lock names may still be no part of the program: a dependency asks for it and
//! nothing of it is called. Those are listed here with the reason, and the binary is searched for the
//! paths of their source files, which everything that is linked leaves behind (in panic messages and
//! line tables). `tests/run.sh` asks the same of the release binary (`TEST_BINARY`).

use std::path::PathBuf;

/// Packages that must not even be named.
const NEVER: &[(&str, &str)] = &[
    ("rsa", "RUSTSEC-2023-0071: private keys leak through timing"),
    ("openssl-sys", "one TLS library is enough, and this one is not rustls"),
];

/// Named, and not linked: package, version, and why it is there.
const NOT_LINKED: &[(&str, &str, &str)] = &[
    (
        "rustls-webpki",
        "0.101.",
        "RUSTSEC-2026-0098, -0099, -0104; of monoio-rustls, which monoio-http asks for and of which only \
         the decoder of request heads is used here",
    ),
    ("monoio-rustls", "0.", "likewise"),
    ("rustls", "0.21.", "of monoio-rustls"),
];

/// Name and version of every package of Cargo.lock.
fn locked() -> Vec<(String, String)> {
    let text = std::fs::read_to_string("Cargo.lock").expect("it is committed");
    let lock: toml::Table = text.parse().expect("Cargo wrote it");
    let packages = lock["package"].as_array().expect("a list");
    let field =
        |package: &toml::Value, name: &str| package[name].as_str().expect("text").to_owned();
    packages.iter().map(|package| (field(package, "name"), field(package, "version"))).collect()
}

fn has(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

/// The directory of a package's sources, as it stands in a binary.
fn source_path(name: &str, version: &str) -> String {
    format!("/{name}-{version}/src/")
}

#[test]
fn packages_with_known_vulnerabilities_are_not_used() {
    let locked = locked();
    for (name, why) in NEVER {
        assert!(!locked.iter().any(|(package, _)| package == name), "{name}: {why}");
    }
}

#[test]
fn what_a_dependency_asks_for_in_vain_is_not_linked() {
    let path = std::env::var_os("TEST_BINARY")
        .map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_campanile")), PathBuf::from);
    let binary = std::fs::read(&path).expect("it was built");
    let locked = locked();
    let linked = |name: &str, versions: &str| -> Vec<bool> {
        let of_it = locked
            .iter()
            .filter(|(package, version)| package == name && version.starts_with(versions));
        of_it.map(|(name, version)| has(&binary, &source_path(name, version))).collect()
    };
    for (name, versions, why) in NOT_LINKED {
        let found = linked(name, versions);
        assert!(!found.is_empty(), "{name} {versions} is gone from Cargo.lock: strike it here");
        assert!(found.iter().all(|is_linked| !is_linked), "{name} {versions} is linked: {why}");
    }
    // What is used shows, so this test can fail.
    for (name, versions) in
        [("monoio-http", "0."), ("rustls", "0.23."), ("rustls-webpki", "0.103.")]
    {
        assert_eq!(linked(name, versions), [true], "{name} {versions}");
    }
}
