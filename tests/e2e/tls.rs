//! `rediss://user:password@`: a Redis that only speaks TLS to users it knows.
//!
//! The server is Debian's, the certificates are openssl's, and the user may do no more than the README
//! says is needed.

use crate::client::Client;
use crate::node::Node;
use crate::redis::{Redis, free_port, wait_until};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A server with a certificate of its own authority, and one user.
struct Guarded {
    redis: Redis,
    folder: PathBuf,
    tls_port: u16,
}

impl Guarded {
    fn start(name: &str) -> Guarded {
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR"))
            .join(format!("tls-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a temporary folder");
        certificates(&folder);
        let tls_port = free_port();
        let file = |name: &str| folder.join(name).display().to_string();
        let redis = Redis::start_with(&[
            "--tls-port",
            &tls_port.to_string(),
            "--tls-cert-file",
            &file("redis.crt"),
            "--tls-key-file",
            &file("redis.key"),
            "--tls-auth-clients",
            "no",
        ]);
        let rules = "ACL SETUSER bell on >s3cret/pass ~campanile:* &campanile:* +@all -@dangerous \
                     +role +info +config|get +client|id +client|list";
        assert_eq!(redis.command(&rules.split_whitespace().collect::<Vec<_>>()), "OK");
        Guarded { redis, folder, tls_port }
    }

    /// With whatever stands for user and password.
    fn url(&self, user: &str) -> String {
        format!("rediss://{user}@127.0.0.1:{}", self.tls_port)
    }

    fn authority(&self) -> String {
        self.folder.join("ca.crt").display().to_string()
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// An authority, and a certificate for 127.0.0.1 that it has signed.
fn certificates(folder: &Path) {
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    std::fs::write(folder.join("san"), "subjectAltName = IP:127.0.0.1\n").expect("a file");
    for command in [
        format!("req -x509 {key} -days 2 -subj /CN=authority -keyout ca.key -out ca.crt"),
        format!("req {key} -subj /CN=redis -keyout redis.key -out redis.csr"),
        "x509 -req -in redis.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -extfile san \
         -out redis.crt"
            .to_owned(),
    ] {
        let words = command.split_whitespace();
        let made = Command::new("openssl").current_dir(folder).args(words).output();
        let made = made.expect("openssl starts (apt-get install openssl)");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    }
}

/// The password as a URL writes it.
const USER: &str = "bell:s3cret%2Fpass";

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
        a.samples("campanile_redis_own_memory_bytes").len() == 1
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
