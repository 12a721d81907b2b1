//! What reads bytes from outside, one target each: a function that takes any bytes and asserts what
//! must hold of them. `tests/fuzz/main.rs` replays the corpora, `tests/run.sh fuzz` explores.

pub mod api;
pub mod envelope;
pub mod frames;
pub mod http_head;
pub mod json;
mod pieces;
pub mod proxy_header;
pub mod resp;
#[path = "../../common/stages.rs"]
mod stages;

/// Asserts what must hold of these bytes.
pub type Target = fn(&[u8]);

/// Each target by the name of its corpus.
pub const TARGETS: &[(&str, Target)] = &[
    ("api", api::check),
    ("envelope", envelope::check),
    ("frames", frames::check),
    ("http_head", http_head::check),
    ("json", json::check),
    ("proxy_header", proxy_header::check),
    ("resp", resp::check),
];

/// The target that the environment names.
///
/// # Panics
/// When it names none.
#[allow(dead_code)] // used by the explorer
pub fn of_environment() -> Target {
    let name = std::env::var("FUZZ_TARGET").unwrap_or_default();
    let found = TARGETS.iter().find(|(target, _)| *target == name);
    found.unwrap_or_else(|| panic!("FUZZ_TARGET={name:?} is none of {TARGETS:?}")).1
}
