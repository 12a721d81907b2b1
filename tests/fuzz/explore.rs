//! The targets of `tests/fuzz` with libFuzzer in front of them: `tests/run.sh fuzz` builds and runs it.
//!
//! Which target is in `FUZZ_TARGET`. Any other build than that command's is this program without its
//! engine.
#![cfg_attr(libfuzzer, no_main)]
#![cfg_attr(libfuzzer, allow(unsafe_code))] // the names by which libFuzzer calls are not mangled

#[path = "targets/mod.rs"]
mod targets;

#[cfg(libfuzzer)]
libfuzzer_sys::fuzz_target!(|input: &[u8]| targets::of_environment()(input));

#[cfg(not(libfuzzer))]
fn main() {
    eprintln!("built without libFuzzer: run `tests/run.sh fuzz`");
    std::process::exit(2);
}
