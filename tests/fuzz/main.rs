//! Replays the corpora: inputs that libFuzzer found to reach each a part of the code that no other one
//! does, and those that once were a bug. `tests/run.sh fuzz` explores and adds to them.

mod targets;

use std::fs;
use std::path::{Path, PathBuf};
use targets::TARGETS;

/// All corpora together: they are in every clone.
const CORPORA_BYTES_MAX: u64 = 2 * 1024 * 1024;

fn corpora() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus")
}

/// In the order of their names.
fn entries(folder: &Path) -> Vec<PathBuf> {
    let listed = fs::read_dir(folder).unwrap_or_else(|error| panic!("{folder:?}: {error}"));
    let mut paths: Vec<PathBuf> = listed.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

/// Names each input first, so that the one that fails is the last one in the output.
fn replay(name: &str) -> usize {
    let (_, target) = TARGETS.iter().find(|(target, _)| *target == name).expect("a target");
    let inputs = entries(&corpora().join(name));
    for path in &inputs {
        println!("{}", path.display());
        target(&fs::read(path).unwrap());
    }
    inputs.len()
}

macro_rules! replays {
    ($($test:ident: $target:literal;)*) => {
        const REPLAYED: &[&str] = &[$($target),*];
        $(#[test]
        fn $test() {
            assert!(replay($target) >= 20, "an empty corpus asserts nothing");
        })*
    };
}

replays! {
    requests_for_the_api_are_carried_out_only_for_those_who_may: "api";
    what_nodes_send_each_other_is_read_as_it_was_written: "envelope";
    frames_are_decoded_as_their_model_does: "frames";
    what_comes_of_a_connection_depends_on_its_bytes_alone: "http_head";
    a_message_is_json_and_means_what_serde_json_reads: "json";
    the_verdict_on_a_proxy_header_stays: "proxy_header";
    replies_of_redis_are_the_same_in_every_cut: "resp";
}

#[test]
fn each_target_has_a_corpus_that_is_replayed_and_all_are_small() {
    let targets: Vec<&str> = TARGETS.iter().map(|(name, _)| *name).collect();
    assert_eq!(REPLAYED, targets);
    let folders = entries(&corpora());
    let names: Vec<&str> =
        folders.iter().map(|path| path.file_name().unwrap().to_str().unwrap()).collect();
    assert_eq!(names, targets);
    let inputs = folders.iter().flat_map(|folder| entries(folder));
    let bytes: u64 = inputs.map(|path| fs::metadata(path).unwrap().len()).sum();
    assert!(bytes <= CORPORA_BYTES_MAX, "{bytes} bytes");
}
