//! A Redis that speaks TLS with a certificate of its own authority, and knows one user.
//!
//! The certificates are openssl's. A binary that includes this includes `redis.rs` as its module
//! `redis`.
#![allow(dead_code)] // each test binary uses its part

use crate::redis::{Redis, free_port};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The password as a URL writes it.
pub const USER: &str = "bell:s3cret%2Fpass";

/// What the user may do, and no more. docs/redis.md says that it suffices.
pub const RIGHTS: &str = "~campanile:* &campanile:* +@all -@dangerous \
                          +role +info +config|get +client|id +client|list";

/// A server with a certificate of its own authority, and one user.
pub struct Guarded {
    pub redis: Redis,
    folder: PathBuf,
    tls_port: u16,
}

impl Guarded {
    pub fn start(name: &str) -> Guarded {
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
        let rules = format!("ACL SETUSER bell on >s3cret/pass {RIGHTS}");
        assert_eq!(redis.command(&rules.split_whitespace().collect::<Vec<_>>()), "OK");
        Guarded { redis, folder, tls_port }
    }

    /// With whatever stands for user and password.
    pub fn url(&self, user: &str) -> String {
        format!("rediss://{user}@127.0.0.1:{}", self.tls_port)
    }

    pub fn authority(&self) -> String {
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
