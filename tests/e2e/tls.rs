//! `rediss://user:password@`: a Redis that only speaks TLS to users it knows.
//!
//! The server is Debian's, the certificates are openssl's, and the user may do no more than
//! docs/redis.md says is needed.

use crate::client::Client;
use crate::guarded::{Guarded, USER};
use crate::node::Node;
use crate::redis::wait_until;
use std::path::PathBuf;
use std::process::Command;

#[test]
fn instances_speak_through_tls_as_a_user_with_few_rights() {
    let guarded = Guarded::start("speak");
    let (url, authority) = (guarded.url(USER), guarded.authority());
    let args = ["--shards", "1", "--backplane", &url, "--redis-tls-ca-file", &authority];
    let [a, b] = [(); 2].map(|()| Node::start_ready(&args));
    let mut ann = Client::join(a.addr, &["tower"]);
    let mut bob = Client::join(b.addr, &["tower"]);
    ann.say(r#"{"room_id":"tower","payload":"through tls"}"#);
    assert_eq!(bob.hear_payload(), "through tls");
    wait_until("the user may ask all of the monitor's questions", || {
        a.samples("campanile_redis_own_output_bytes").len() == 1
    });
    assert_eq!(a.metric("campanile_redis_monitor_up"), 1);
    assert!(!a.samples("campanile_redis_min_replicas_to_write").is_empty());
    let clients = guarded.redis.command(&["CLIENT", "LIST", "TYPE", "pubsub"]);
    let ours = clients.lines().filter(|line| line.contains("user=bell")).count();
    assert_eq!(ours, 2, "both subscribe as that user: {clients}");
    let log = a.logged();
    assert!(!log.contains("s3cret"), "{log}");
    assert!(!log.contains("NoPerm"), "{log}");
}

#[test]
fn a_certificate_or_a_password_that_is_not_right_is_named_in_the_log() {
    let guarded = Guarded::start("refuse");
    let (url, authority) = (guarded.url(USER), guarded.authority());
    let stranger = Node::start(&["--shards", "1", "--backplane", &url]);
    wait_until("the certificate is refused", || stranger.logged().contains("UnknownIssuer"));
    assert!(!stranger.is_ready());
    let wrong = guarded.url("bell:guessed-it");
    let args = ["--shards", "1", "--backplane", &wrong, "--redis-tls-ca-file", &authority];
    let guesser = Node::start(&args);
    wait_until("the password is refused", || guesser.logged().contains("WRONGPASS"));
    assert!(!guesser.is_ready());
    assert!(!guesser.logged().contains("guessed-it"), "{}", guesser.logged());
}

#[test]
fn a_file_of_authorities_that_is_none_ends_the_start_and_is_named() {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let empty = folder.join(format!("no-authority-{}", std::process::id()));
    std::fs::write(&empty, "nothing of that kind\n").expect("a file");
    for (path, why) in [(&empty, "no certificate"), (&folder.join("nowhere"), "No such file")] {
        let path = path.display().to_string();
        let output = Command::new(env!("CARGO_BIN_EXE_campanile"))
            .args(["serve", "--listen", "127.0.0.1:0", "--ops-listen", "127.0.0.1:0"])
            .args(["--backplane", "rediss://127.0.0.1:1", "--redis-tls-ca-file", &path])
            .output()
            .expect("our own binary starts");
        assert_eq!(output.status.code(), Some(1));
        let said = String::from_utf8_lossy(&output.stderr);
        for part in ["redis.tls_ca_file", &path, why] {
            assert!(said.contains(part), "{part}: {said}");
        }
    }
    std::fs::remove_file(&empty).expect("it was just made");
}
