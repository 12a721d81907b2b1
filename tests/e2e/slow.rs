//! A client that does not read, and the others who do.

use crate::client::Client;
use crate::node::Node;
use serde_json::json;

#[test]
fn a_slow_client_is_closed_with_1013_while_the_others_hear_everything() {
    let args = [
        "--shards",
        "1",
        "--limits-outbox-bytes-max",
        "200000",
        "--limits-close-timeout-ms",
        "30000",
    ];
    let node = Node::start_ready(&args);
    let mut quick: Vec<Client> = (0..3).map(|_| Client::join(node.addr, &["tower"])).collect();
    let mut slow = Client::join(node.addr, &["tower"]);
    let filling = "x".repeat(50_000);
    let mut rounds = 0;
    let closed = || node.metric_where("campanile_closes_total", r#"reason="slow""#);
    let being_closed = || node.metric("campanile_connections_closing") + closed();
    // The kernel's buffers take some, then ours up to its limit.
    while being_closed() == 0 {
        quick[0].say(format!(r#"{{"room_id":"tower","payload":[{rounds},"{filling}"]}}"#));
        for client in &mut quick {
            assert_eq!(client.hear_payload()[0], rounds, "in order, and none is missing");
        }
        rounds += 1;
        assert!(rounds < 2000, "100 MB wait for one client and nobody minds");
    }
    node.wait_for("campanile_connections", 3);
    for heard in 0.. {
        let frame = slow.next_frame().expect("it ended without a close frame");
        if frame.opcode() == 8 {
            assert_eq!(frame.payload[..2], 1013u16.to_be_bytes());
            break;
        }
        let message: serde_json::Value = serde_json::from_slice(&frame.payload).expect("whole");
        assert_eq!(message["payload"][0], json!(heard), "what it did hear is a beginning");
    }
    drop(slow);
    node.wait_for_fresh_metrics();
    node.wait_for("campanile_connections_closing", 0);
    assert_eq!(closed(), 1);
    node.wait_for("campanile_outbox_bytes", 0);
    quick[0].say(r#"{"room_id":"tower","payload":["after",0]}"#);
    for client in &mut quick {
        assert_eq!(client.hear_payload()[0], "after");
    }
}
