//! Where the backplane is: `memory`, or one of five ways to run Redis.
//!
//! ```text
//! redis://[user:password@]host[:port][/db]            one server
//! redis://…@h1:6379,h2:6379[/db]                      several: each has its share of the topics
//! redis+sentinel://…@s1[:26379],s2/name[,name2][/db]  masters that Sentinel names, by these sentinels
//! redis+cluster://…@h1[:6379],h2                      a Cluster, found through any of these
//! redis+unix:///path[?db=…&user=…&password=…]         one server, through a Unix socket
//! ```
//!
//! `rediss` instead of `redis` means TLS, to sentinels too. User and password are those of the
//! servers; those of sentinels are parameters (`?sentinel_user=…&sentinel_password=…`). In all of
//! them a character that has a meaning in a URL is percent-encoded.
//!
//! Invariant: what [`RedisServers::read`] accepts names at least one host, and none twice; and each
//! URL of [`Login::url`] is accepted again, with the same meaning.

mod parameters;
mod percent;
mod read;
mod redact;
#[cfg(test)]
mod tests;

pub use redact::redact_url;

use std::fmt;

/// How instances reach each other.
#[derive(Clone, PartialEq, Eq)]
pub enum BackplaneUrl {
    /// They do not: one instance, in process.
    Memory,
    /// Through Redis.
    Redis(Box<RedisServers>),
}

/// Where Redis is. May hold a password: its `Debug` and `Display` do not show it.
#[derive(Clone, PartialEq, Eq)]
pub struct RedisServers {
    text: String,
    /// How its servers are arranged.
    pub deployment: Deployment,
    /// User, password, database and TLS; the same for all servers.
    pub login: Login,
}

/// How Redis servers are arranged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Deployment {
    /// These, each with its share of the topics: `host:port`, or the path of one Unix socket.
    Fixed(Vec<String>),
    /// Masters, each with its share of the topics, that are where sentinels say.
    Sentinel {
        /// `host:port` of each sentinel.
        sentinels: Vec<String>,
        /// What they call the masters.
        masters: Vec<String>,
        /// How to come in to the sentinels.
        login: Login,
    },
    /// A Cluster, found through any of these: `host:port`.
    Cluster(Vec<String>),
}

/// How to come in to a server.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Login {
    /// Whether connections use TLS.
    pub is_tls: bool,
    /// The number of the database.
    pub db: u32,
    /// Empty: the default user.
    user: String,
    /// Empty: the server wants none.
    password: String,
}

impl Login {
    /// The URL of one server, for the Redis client: of `host:port`, or of the path of a socket.
    pub fn url(&self, address: &str) -> String {
        if address.starts_with('/') {
            return self.socket_url(address);
        }
        let mut url = String::from(if self.is_tls { "rediss://" } else { "redis://" });
        if !self.password.is_empty() {
            let (user, password) = (&self.user, &self.password);
            url += &format!("{}:{}@", percent::encode(user), percent::encode(password));
        }
        url += address;
        if self.db != 0 {
            url += &format!("/{}", self.db);
        }
        url
    }

    fn socket_url(&self, path: &str) -> String {
        let mut url = format!("redis+unix://{}?db={}", percent::encode_path(path), self.db);
        for (name, value) in [("user", &self.user), ("pass", &self.password)] {
            if !value.is_empty() {
                url += &format!("&{name}={}", percent::encode(value));
            }
        }
        url
    }
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_tls { "Login(TLS)" } else { "Login" })
    }
}

impl fmt::Debug for RedisServers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&redact_url(&self.text))
    }
}

impl RedisServers {
    /// As it was written, with its password.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// What is to be tried first, servers or sentinels: `host:port`, or the path of a socket.
    pub fn addresses(&self) -> &[String] {
        match &self.deployment {
            Deployment::Fixed(addresses) | Deployment::Cluster(addresses) => addresses,
            Deployment::Sentinel { sentinels, .. } => sentinels,
        }
    }
}
