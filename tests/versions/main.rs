//! Nodes of two versions in one system, under load: a rolling upgrade, and the way back.
//!
//! `tests/run.sh versions` builds the older binary from git and runs this. Without that binary the
//! tests are ignored: cargo says so.

#[path = "../common/client.rs"]
mod client;
#[path = "../common/http.rs"]
mod http;
#[path = "../common/node.rs"]
mod node;
mod publisher;
#[path = "../common/redis.rs"]
mod redis;

use client::Client;
use node::Node;
use publisher::Publisher;
use redis::{Redis, wait_until};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Messages published in each stage, at least, in each of the two rooms.
const STAGE: u64 = 100;
const KEPT: &str = "kept:a";
const PLAIN: &str = "plain:a";
const HERE: &str = "here:a";

/// The binary of the older version.
fn older() -> PathBuf {
    let path = std::env::var_os("OLDER_BINARY").map(PathBuf::from);
    path.expect("OLDER_BINARY names the binary of the older version: use tests/run.sh versions")
}

/// A node of a version, ready.
fn start(binary: &Path, redis: &Redis) -> Node {
    let node = Node::start_of(
        binary,
        &[
            "--shards",
            "2",
            "--backplane",
            &redis.url(),
            "--namespaces",
            "kept: history_size=10000; here: presence=true, presence_grace_ms=100",
            "--auth-anonymous-rights",
            "publish,publish_unjoined,send,broadcast",
            "--drain-ms",
            "100",
        ],
    );
    wait_until("the node is ready", || node.is_ready());
    node
}

/// A user in the room with presence, who sees who joins and leaves.
struct User {
    client: Client,
    id: String,
}

impl User {
    fn join(node: &Node) -> User {
        let (client, welcome) = Client::greeted(node.addr, &[HERE], "");
        User { client, id: welcome["user_id"].as_str().expect("a name").to_owned() }
    }

    /// Waits until these users, and no others, are in the room as this one's node sees it.
    fn sees(&mut self, users: &[String]) {
        wait_until("the users are there", || {
            self.client.say(json!({"type":"presence","room_id":HERE,"id":"p"}).to_string());
            let reply = self.client.hear_type("presence");
            let listed = reply["users"].as_array().expect("a list").iter();
            let mut listed: Vec<&str> =
                listed.map(|user| user["user_id"].as_str().expect("a name")).collect();
            listed.sort_unstable();
            listed == users && reply["count"] == users.len()
        });
    }

    /// The next event of a user who joined or left.
    fn event(&mut self) -> Value {
        let value = self.client.hear();
        let (kind, user) = (&value["type"], &value["user_id"]);
        json!([kind, user])
    }
}

/// The names of users, in order.
fn names(users: &[&User]) -> Vec<String> {
    let mut names: Vec<String> = users.iter().map(|user| user.id.clone()).collect();
    names.sort_unstable();
    names
}

/// Members of both rooms with messages, on one node.
struct Member {
    node: &'static str,
    rooms: [(&'static str, Client); 2],
    /// The first message of each room that it must receive: one before may have been on its way when
    /// it joined.
    from: [u64; 2],
}

impl Member {
    /// Joins, and must receive what is published from now on.
    fn join(name: &'static str, node: &Node, publishers: &[Publisher; 2]) -> Member {
        let rooms = [KEPT, PLAIN].map(|room| (room, Client::join(node.addr, &[room])));
        let from = publishers.each_ref().map(|publisher| publisher.published() + 2);
        Member { node: name, rooms, from }
    }

    /// Reads up to message `last` of each room: each once, in order, and no loss.
    fn has_received_all(&mut self, last: [u64; 2]) {
        for (((room, client), from), last) in self.rooms.iter_mut().zip(self.from).zip(last) {
            let mut next = None;
            while next.is_none_or(|next| next <= last) {
                let value = client.hear();
                assert_eq!(value["type"], "message", "{room} on the {} node: {value}", self.node);
                let number = value["payload"].as_u64().expect("a number");
                let wanted = next.unwrap_or(number);
                assert_eq!(number, wanted, "{room} on the {} node", self.node);
                assert!(next.is_some() || number <= from, "{room}: {number} after {from}");
                next = Some(number + 1);
            }
        }
    }
}

/// Two nodes of one version are replaced, one after the other, by two of another.
fn roll(from: &Path, to: &Path) {
    let redis = Redis::start();
    let [first, second] = [start(from, &redis), start(from, &redis)];
    let publishers = [KEPT, PLAIN].map(|room| Publisher::start(room, &[&first, &second]));
    let more = |publishers: &[Publisher; 2]| {
        publishers.iter().for_each(|it| it.wait_for_more(STAGE));
    };
    let (ann, mut bob) = (User::join(&first), User::join(&second));
    bob.sees(&names(&[&ann, &bob]));
    let mut stays = Member::join("second", &second, &publishers);
    more(&publishers);

    // One is there of each version.
    let third = start(to, &redis);
    publishers.iter().for_each(|it| it.publish_over(&[&first, &second, &third]));
    let mut newcomer = Member::join("third", &third, &publishers);
    let mut cid = User::join(&third);
    let all = names(&[&ann, &bob, &cid]);
    bob.sees(&all);
    cid.sees(&all);
    more(&publishers);
    stop(first, &publishers, &[&second, &third]);
    assert_eq!(bob.event(), json!(["joined", cid.id]));
    assert_eq!(bob.event(), json!(["left", ann.id]));
    assert_eq!(cid.event(), json!(["left", ann.id]));
    let both = names(&[&bob, &cid]);
    bob.sees(&both);
    cid.sees(&both);
    more(&publishers);

    // And the last one of the other version goes.
    let fourth = start(to, &redis);
    publishers.iter().for_each(|it| it.publish_over(&[&second, &third, &fourth]));
    let mut last = Member::join("fourth", &fourth, &publishers);
    let mut dan = User::join(&fourth);
    let all = names(&[&bob, &cid, &dan]);
    dan.sees(&all);
    cid.sees(&all);
    more(&publishers);
    publishers.iter().for_each(|it| it.publish_over(&[&third, &fourth]));
    stays.has_received_all(publishers.each_ref().map(Publisher::published));
    stop(second, &publishers, &[&third, &fourth]);
    assert_eq!(cid.event(), json!(["joined", dan.id]));
    for user in [&mut cid, &mut dan] {
        assert_eq!(user.event(), json!(["left", bob.id]));
    }
    let both = names(&[&cid, &dan]);
    cid.sees(&both);
    dan.sees(&both);
    more(&publishers);

    let published = publishers.map(Publisher::stop);
    for member in [&mut newcomer, &mut last] {
        member.has_received_all(published);
    }
    for user in [&mut cid, &mut dan] {
        user.client.nothing_more();
    }
    // What both versions have stored is one history.
    let mut client = Client::open(fourth.addr, "/ws");
    assert_eq!(client.hear()["type"], "welcome");
    client.say(json!({"type":"join","room_id":KEPT,"id":1}).to_string());
    assert_eq!(client.hear_type("ok")["offset"], published[0]);
}

/// A node ends as its orchestrator ends it; publishers have left it before.
fn stop(mut node: Node, publishers: &[Publisher; 2], left: &[&Node]) {
    publishers.iter().for_each(|it| it.publish_over(left));
    node.signal("-TERM");
    assert!(node.ended().success());
}

#[test]
#[ignore = "needs the binary of an older version: tests/run.sh versions"]
fn an_upgrade_node_by_node_loses_and_doubles_nothing() {
    roll(&older(), &node::binary());
}

#[test]
#[ignore = "needs the binary of an older version: tests/run.sh versions"]
fn the_way_back_node_by_node_loses_and_doubles_nothing() {
    roll(&node::binary(), &older());
}
