//! The page at `/`, in a real browser: two tabs on two instances talk.

use crate::instances::nodes;
use crate::other_clients::node_js;
use crate::redis::Redis;

#[test]
fn two_tabs_on_two_instances_talk_to_each_other() {
    let redis = Redis::start();
    let [a, b] = nodes(&redis, &[]);
    let picture = concat!(env!("CARGO_TARGET_TMPDIR"), "/page.png");
    let output = node_js("page/two_tabs.js")
        .args([format!("http://{}/", a.addr), format!("http://{}/", b.addr)])
        .arg(picture)
        .output()
        .expect("node starts");
    let said = String::from_utf8_lossy(&output.stdout);
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}\n{complained}");
    assert!(std::fs::read(picture).expect("a picture was taken").starts_with(b"\x89PNG"));
}
