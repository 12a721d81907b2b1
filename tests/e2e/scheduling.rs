//! How the kernel schedules the node's threads, as it says itself.

use crate::node::Node;
use std::fs;

const SCHED_OTHER: u32 = 0;
const SCHED_BATCH: u32 = 3;

/// The scheduling policy of each thread of this name (proc_pid_stat(5), field 41).
fn classes(node: &Node, name: &str) -> Vec<u32> {
    let threads = fs::read_dir(format!("/proc/{}/task", node.pid())).expect("it runs");
    let read = |path: std::path::PathBuf| fs::read_to_string(path).expect("the thread runs");
    let named = threads.map(|thread| thread.expect("a thread").path());
    let named = named.filter(|path| {
        // One that has ended since it was listed is none of those.
        fs::read_to_string(path.join("comm")).is_ok_and(|comm| comm.trim_end() == name)
    });
    let class = |path: std::path::PathBuf| {
        let stat = read(path.join("stat"));
        let (_, fields) = stat.rsplit_once(") ").expect("the name stands in brackets");
        // The first of these is field 3.
        fields.split(' ').nth(38).expect("field 41").parse().expect("a number")
    };
    named.map(class).collect()
}

#[test]
fn threads_are_scheduled_as_configured_and_by_default_in_the_kernels_default_class_without_load() {
    let settings: [(&[&str], u32, usize); 4] = [
        (&[], SCHED_OTHER, 1),
        (&["--scheduling", "auto"], SCHED_OTHER, 1),
        (&["--scheduling", "other"], SCHED_OTHER, 0),
        (&["--scheduling", "batch"], SCHED_BATCH, 0),
    ];
    for (args, class, watching) in settings {
        let node = Node::start_ready(&[&["--shards", "1"], args].concat());
        for name in ["shard-0", "backplane"] {
            assert_eq!(classes(&node, name), [class], "{name} with {args:?}");
        }
        assert_eq!(classes(&node, "scheduling").len(), watching, "{args:?}");
        assert_eq!(node.metric("campanile_threads_batch_scheduled"), 0);
    }
}
