//! Who may come in, and that nobody is somebody else.

use crate::client::{CLOSE, Client, FIN};
use crate::node::Node;
use crate::redis::{Redis, wait_until};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use campanile::auth::{TokenRequest, mint};
use campanile::policy::rights::Rights;
use jsonwebtoken::{EncodingKey, Header, encode};
use serde_json::json;
use std::time::{SystemTime, UNIX_EPOCH};

const SECRET: &str = "a secret of the tests";

/// HS256 over `{"sub":"zoe","rights":["publish","send","broadcast"]}` with [`SECRET`], made by
/// Python's hmac and not by us.
const FROM_ELSEWHERE: &str = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.\
    eyJzdWIiOiJ6b2UiLCJyaWdodHMiOlsicHVibGlzaCIsInNlbmQiLCJicm9hZGNhc3QiXX0.\
    Iao2ZPCtAnFwR2SWLQqErnJmmTsTftc7ycxHWYiGvVI";

fn node() -> Node {
    Node::start_ready(&["--shards", "2", "--auth-hmac-secret", SECRET])
}

fn token(user: &str, rights: Option<Rights>, expires_in_s: i64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is past 1970").as_secs();
    let expires_unix_s = now.saturating_add_signed(expires_in_s);
    mint(
        &TokenRequest {
            user: user.to_owned(),
            rights,
            rooms: Vec::new(),
            send: Vec::new(),
            info: None,
            issued_unix_s: now,
            expires_unix_s,
        },
        SECRET,
    )
    .expect("a good wish")
}

/// A token with claims of all kinds.
fn signed(claims: &serde_json::Value) -> String {
    token("whoever", None, 1); // It installs what tokens are signed with.
    let key = EncodingKey::from_secret(SECRET.as_bytes());
    encode(&Header::default(), claims, &key).expect("JSON")
}

fn status(node: &Node, query: &str, headers: &str) -> u16 {
    match Client::try_open(node.addr, &format!("/ws{query}"), headers) {
        Ok(_) => 101,
        Err(reply) => {
            assert_eq!(reply.header("Connection"), Some("close"));
            reply.status
        }
    }
}

#[test]
fn a_connection_ends_with_its_token_and_says_so() {
    let node = node();
    let mut short = Client::greeted(node.addr, &["tower"], &token("ann", None, 1)).0;
    let mut long = Client::greeted(node.addr, &["tower"], &token("bob", None, 600)).0;
    assert_eq!(short.close_frame(), (4401, "token_expired".to_owned()));
    short.send(FIN | CLOSE, &4401u16.to_be_bytes());
    assert_eq!(short.next_frame(), None);
    long.say(r#"{"room_id":"tower","payload":"still here"}"#);
    assert_eq!(long.hear_payload(), "still here");
    let closes =
        || node.metric_where("campanile_connections_closed_total", r#"reason="token_expired""#);
    wait_until("it is counted", || closes() == 1);
    node.wait_for("campanile_connections", 1);
}

#[test]
fn a_token_whose_exp_is_in_milliseconds_is_refused_with_the_reason() {
    let node = node();
    let in_ms = token("ann", None, 1_000_000_000_000);
    let Err(reply) = Client::try_open(node.addr, &format!("/ws?token={in_ms}"), "") else {
        panic!("it would be good for ever");
    };
    assert_eq!(reply.status, 401);
    assert!(reply.body.contains("exp of this token is in milliseconds"), "{}", reply.body);
}

#[test]
fn nobody_comes_in_without_a_good_token() {
    let node = node();
    let good = token("ann", None, 60);
    let expired = token("ann", None, -60);
    let (head, signature) = good.rsplit_once('.').expect("three parts");
    let forged = format!("{head}.{}", signature.chars().rev().collect::<String>());
    let unsigned = "eyJhbGciOiJub25lIn0.eyJzdWIiOiJhbm4ifQ.";
    assert_eq!(status(&node, "", ""), 401);
    assert_eq!(status(&node, "?token=", ""), 401);
    for bad in [expired.as_str(), &forged, head, unsigned, "nonsense"] {
        assert_eq!(status(&node, &format!("?token={bad}"), ""), 401, "{bad}");
        assert_eq!(status(&node, "", &format!("Authorization: Bearer {bad}\r\n")), 401, "{bad}");
    }
    assert_eq!(status(&node, "", &format!("Authorization: Basic {good}\r\n")), 401);
    assert_eq!(status(&node, &format!("?token={good}"), ""), 101);
    assert_eq!(status(&node, "", &format!("Authorization: Bearer {good}\r\n")), 101);
    let refused = 2 + 2 * 5 + 1;
    node.wait_for("campanile_connections_upgraded_total", 2);
    // Two shards refused, and each tells its own share on its own tick.
    node.wait_for_fresh_metrics();
    assert_eq!(
        node.metric_where("campanile_connections_rejected_total", r#"reason="auth""#),
        refused
    );
}

#[test]
fn a_token_made_elsewhere_is_understood() {
    let node = node();
    let (mut zoe, welcome) = Client::greeted(node.addr, &["tower"], FROM_ELSEWHERE);
    assert_eq!(welcome["user_id"], "zoe");
    zoe.say(r#"{"type":"broadcast","payload":1}"#);
    assert_eq!(zoe.hear_type("message")["from"], "zoe");
}

#[test]
fn from_is_the_user_of_the_token_whatever_the_client_says() {
    let node = node();
    let (mut ann, _) = Client::greeted(node.addr, &["tower"], &token("ann", None, 60));
    let (mut bob, _) = Client::greeted(node.addr, &["tower"], &token("bob", None, 60));
    ann.say(r#"{"room_id":"tower","payload":{"from":"bob"},"from":"bob","user_id":"bob"}"#);
    let heard = bob.hear_type("message");
    assert_eq!((&heard["from"], &heard["payload"]), (&json!("ann"), &json!({"from":"bob"})));
    let rights = Rights { send: true, ..Rights::NONE };
    let (mut sender, _) = Client::greeted(node.addr, &[], &token("cid", Some(rights), 60));
    sender.say(r#"{"target_user_id":"bob","payload":1,"from":"bob"}"#);
    assert_eq!(bob.hear_type("message")["from"], "cid");
}

#[test]
fn a_user_is_reached_on_all_connections_and_only_that_user() {
    let node = node();
    let phone = token("ann", None, 60);
    let mut anns: Vec<Client> = (0..6).map(|_| Client::greeted(node.addr, &[], &phone).0).collect();
    let rights = Rights { send: true, ..Rights::NONE };
    let (mut bob, _) = Client::greeted(node.addr, &[], &token("bob", Some(rights), 60));
    bob.say(r#"{"target_user_id":"ann","payload":"ring","id":1}"#);
    assert_eq!(bob.hear_type("ok")["id"], 1);
    for ann in &mut anns {
        assert_eq!(ann.hear_payload(), "ring");
    }
    bob.nothing_more();
}

#[test]
fn rights_are_what_the_token_says() {
    let node = node();
    let all = Rights { publish: true, publish_unjoined: true, send: true, broadcast: true };
    let ask = |rights: Option<Rights>, request: &str| {
        let (mut client, _) = Client::greeted(node.addr, &["tower"], &token("ann", rights, 60));
        client.say(request);
        let (ok, error) = (json!("ok"), json!("error"));
        loop {
            let heard = client.hear();
            if heard["type"] == ok {
                return String::new();
            } else if heard["type"] == error {
                return heard["code"].as_str().expect("a code").to_owned();
            }
        }
    };
    let publish = r#"{"type":"publish","room_id":"tower","payload":0,"id":1}"#;
    let unjoined = r#"{"type":"publish","room_id":"other","payload":0,"id":1}"#;
    let send = r#"{"type":"send","target_user_id":"bob","payload":0,"id":1}"#;
    let broadcast = r#"{"type":"broadcast","payload":0,"id":1}"#;
    for (request, by_default) in
        [(publish, ""), (unjoined, "not_joined"), (send, "forbidden"), (broadcast, "forbidden")]
    {
        assert_eq!(ask(None, request), by_default, "{request}");
        assert_eq!(ask(Some(all), request), "", "{request}");
        assert_eq!(ask(Some(Rights::NONE), request), "forbidden", "{request}");
    }
}

#[test]
fn without_tokens_nobody_sends_to_users_or_to_everybody_unless_configured() {
    let send = r#"{"type":"send","target_user_id":"bob","payload":0,"id":1}"#;
    let broadcast = r#"{"type":"broadcast","payload":0,"id":1}"#;
    let answers = |args: &[&str]| {
        let node = Node::start_ready(&[&["--shards", "1"], args].concat());
        let mut client = Client::join(node.addr, &["tower"]);
        [send, broadcast].map(|request| {
            client.say(request);
            let mut answer = client.hear();
            while answer["id"] != 1 {
                answer = client.hear();
            }
            answer["code"].as_str().unwrap_or("").to_owned()
        })
    };
    assert_eq!(answers(&[]), ["forbidden", "forbidden"]);
    assert_eq!(answers(&["--auth-anonymous-rights", "send"]), ["", "forbidden"]);
    assert_eq!(answers(&["--auth-user-rights", "send,broadcast"]), ["", ""]);
}

#[test]
fn what_a_token_says_of_its_user_is_shown_on_every_node_and_in_histories() {
    let redis = Redis::start();
    let url = redis.url();
    let spaces = "chat: presence=true, message_info=true, history_size=5";
    let args = ["--auth-hmac-secret", SECRET, "--namespaces", spaces, "--backplane", &url];
    let nodes = [Node::start_ready(&args), Node::start_ready(&args)];
    let with_info = signed(&json!({"sub": "ann", "info": {"name": "Ann"}}));
    let room = ["chat:a", "plain"];
    let (mut ann, _) = Client::greeted(nodes[0].addr, &room, &with_info);
    let (mut bob, _) = Client::greeted(nodes[1].addr, &room, &token("bob", None, 60));
    ann.say(r#"{"room_id":"chat:a","payload":1}"#);
    ann.say(r#"{"room_id":"plain","payload":2}"#);
    // Rooms are not in order with each other.
    let messages = [bob.hear_type("message"), bob.hear_type("message")];
    let message = |payload: u64| {
        messages.iter().find(|message| message["payload"] == payload).expect("each comes once")
    };
    assert_eq!(message(1)["info"], json!({"name": "Ann"}));
    assert_eq!(message(2)["info"], json!(null));
    bob.say(r#"{"type":"history","room_id":"chat:a","id":1}"#);
    assert_eq!(bob.hear_type("history")["messages"][0]["info"], json!({"name": "Ann"}));
    bob.say(r#"{"type":"presence","room_id":"chat:a","id":2}"#);
    let here = bob.hear_type("presence");
    assert_eq!(
        here["users"][0],
        json!({"user_id": "ann", "connections": 1, "info": {"name": "Ann"}})
    );
    ann.say(r#"{"type":"join","room_id":"chat:a","info":7,"id":3}"#);
    assert_eq!(ann.hear_type("error")["code"], "forbidden");
    let history = nodes[1].get("/v1/rooms/chat:a/history").body;
    assert!(history.contains(r#""info":{"name":"Ann"}"#), "{history}");
}

#[test]
fn a_token_opens_the_rooms_that_it_names() {
    let args = ["--auth-hmac-secret", SECRET, "--namespaces", "vip: join=token, history_size=5"];
    let node = Node::start_ready(&args);
    let claims = json!({
        "sub": "ann",
        "rooms": {"join": ["vip:*", "dm:{user}:*"], "publish": ["vip:a"]},
        "send": ["bob"],
    });
    let (mut ann, _) = Client::greeted(node.addr, &["vip:a"], &signed(&claims));
    let mut code = |request: &str| {
        ann.say(request);
        loop {
            let value = ann.hear();
            match value["type"].as_str() {
                Some("ok") => return String::new(),
                Some("error") => return value["code"].as_str().expect("a code").to_owned(),
                _ => {}
            }
        }
    };
    for (request, wanted) in [
        (r#"{"type":"join","room_id":"vip:b","id":1}"#, ""),
        (r#"{"type":"join","room_id":"dm:ann:bob","id":1}"#, ""),
        (r#"{"type":"join","room_id":"dm:bob:ann","id":1}"#, "forbidden"),
        (r#"{"type":"join","room_id":"lobby","id":1}"#, "forbidden"),
        (r#"{"type":"publish","room_id":"vip:a","payload":1,"id":1}"#, ""),
        (r#"{"type":"publish","room_id":"vip:b","payload":1,"id":1}"#, "forbidden"),
        (r#"{"type":"history","room_id":"vip:a","id":1}"#, "forbidden"),
        (r#"{"type":"send","target_user_id":"bob","payload":1,"id":1}"#, ""),
    ] {
        assert_eq!(code(request), wanted, "{request}");
    }
    // Others with a token have no way in.
    let (mut bob, _) = Client::greeted(node.addr, &[], &token("bob", None, 60));
    bob.say(r#"{"type":"join","room_id":"vip:a","id":1}"#);
    assert_eq!(bob.hear_type("error")["code"], "forbidden");
    let many: Vec<String> = (0..65).map(|n| format!("room-{n}")).collect();
    let path = format!("/ws?token={}", signed(&json!({"sub": "ann", "rooms": many})));
    let refusal = Client::try_open(node.addr, &path, "").err().expect("too many patterns");
    assert_eq!(refusal.status, 401);
    assert!(refusal.body.contains("at most 64"), "{}", refusal.body);
}

/// The set as a provider publishes it, with secrets so that the test can sign.
#[test]
fn keys_of_a_provider_are_rotated_in_their_file() {
    let folder = std::env::temp_dir().join(format!("campanile-keys-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    let path = folder.join("jwks.json");
    let secret = |id: &str| format!("the secret of the key that is called {id}");
    let publish = |ids: &[&str]| {
        let key = |id: &&str| {
            let k = URL_SAFE_NO_PAD.encode(secret(id));
            json!({"kty": "oct", "alg": "HS256", "kid": id, "k": k})
        };
        let keys: Vec<_> = ids.iter().map(key).collect();
        std::fs::write(&path, json!({"keys": keys}).to_string()).expect("a file");
    };
    let of = |id: &str| {
        let header = Header { kid: Some(id.to_owned()), ..Header::default() };
        signed(&json!({})); // It installs what tokens are signed with.
        let key = EncodingKey::from_secret(secret(id).as_bytes());
        format!("?token={}", encode(&header, &json!({"sub": "ann"}), &key).expect("JSON"))
    };
    publish(&["old"]);
    let file = path.to_str().expect("ours");
    let node = Node::start_ready(&["--auth-keys-file", file]);
    assert_eq!((status(&node, &of("old"), ""), status(&node, &of("new"), "")), (101, 401));
    assert_eq!(status(&node, "", ""), 401, "keys are a reason to ask for a token");
    let (mut open, _) = Client::greeted(node.addr, &["tower"], &of("old")["?token=".len()..]);
    publish(&["old", "new"]);
    node.signal("-HUP");
    wait_until("the new key is known", || status(&node, &of("new"), "") == 101);
    assert_eq!(status(&node, &of("old"), ""), 101);
    publish(&["new"]);
    node.signal("-HUP");
    wait_until("the old key is gone", || status(&node, &of("old"), "") == 401);
    std::fs::write(&path, "{").expect("a file");
    node.signal("-HUP");
    wait_until("what is no set is refused", || node.logged().contains("auth.keys_file"));
    assert_eq!(status(&node, &of("new"), ""), 101, "and nothing has changed");
    open.say(r#"{"room_id":"tower","payload":"still here"}"#);
    assert_eq!(open.hear_payload(), "still here");
    std::fs::remove_dir_all(&folder).expect("ours");
}

#[test]
fn only_pages_of_allowed_origins_may_connect() {
    let node = Node::start_ready(&["--origins", "https://good.example"]);
    assert_eq!(status(&node, "", "Origin: https://good.example\r\n"), 101);
    assert_eq!(status(&node, "", "Origin: https://evil.example\r\n"), 403);
    assert_eq!(status(&node, "", ""), 101, "programs have no origin");
}

#[test]
fn a_strange_page_may_connect_with_a_token_and_not_without_where_none_is_needed() {
    let elsewhere = "Origin: https://elsewhere.example\r\n";
    let needs_token = node();
    let bearer = format!("{elsewhere}Authorization: Bearer {}\r\n", token("ann", None, 60));
    assert_eq!(status(&needs_token, "", &bearer), 101);
    let open = Node::start_ready(&[]);
    assert_eq!(status(&open, "", elsewhere), 403);
    for near in ["http://localhost:3000".to_owned(), format!("http://{}", open.addr)] {
        assert_eq!(status(&open, "", &format!("Origin: {near}\r\n")), 101, "{near}");
    }
    let any = Node::start_ready(&["--origins", "*"]);
    assert_eq!(status(&any, "", elsewhere), 101);
}

#[test]
fn what_is_not_a_bearer_token_is_somebody_elses() {
    let node = node();
    let query = format!("?token={}", token("ann", None, 60));
    let basic = "Authorization: Basic cHJveHk6cGFzcw==\r\n";
    assert_eq!(status(&node, &query, basic), 101, "a proxy's; the query counts");
    assert_eq!(status(&node, "", basic), 401);
    assert_eq!(status(&node, &query, "Authorization: Bearer\r\n"), 400, "an empty one is one");
    let twice = format!("{basic}{basic}");
    assert_eq!(status(&node, &query, &twice), 400);
    for none in ["?token=", "?token=undefined", "?token=null"] {
        assert_eq!(status(&node, none, ""), 401, "{none}: a token is needed here");
        assert_eq!(status(&Node::start_ready(&[]), none, ""), 101, "{none}: none is good here");
    }
}

#[test]
fn names_of_clients_without_a_token_cannot_be_guessed() {
    let node = Node::start_ready(&["--shards", "1"]);
    let names: Vec<String> = (0..3)
        .map(|_| {
            let mut client = Client::open(node.addr, "/ws");
            let welcome = client.hear_type("welcome");
            let connection = welcome["connection_id"].as_str().expect("an id").to_owned();
            let name = welcome["user_id"].as_str().expect("a name").to_owned();
            assert!(name.starts_with("anon-") && !name.contains(&connection), "{welcome}");
            name
        })
        .collect();
    let distinct: std::collections::HashSet<_> = names.iter().collect();
    assert_eq!(distinct.len(), names.len());
}
