//! Where the backplane is: `memory`, or one of four ways to run Redis.
//!
//! ```text
//! redis://[user:password@]host[:port][/db]            one server
//! redis://…@h1:6379,h2:6379[/db]                      several: each has its share of the topics
//! redis+sentinel://…@s1[:26379],s2/name[,name2][/db]  masters that Sentinel names, by these sentinels
//! redis+cluster://…@h1[:6379],h2                      a Cluster, found through any of these
//! ```
//!
//! `rediss` instead of `redis` means TLS, to sentinels too. User and password are those of the
//! servers; those of sentinels stand in the query (`?sentinel_user=…&sentinel_password=…`).
//!
//! Invariant: what [`RedisServers::read`] accepts names at least one host, and none twice.

use std::fmt;
use std::net::Ipv6Addr;

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
    /// One server, several, Sentinel or a Cluster.
    pub deployment: Deployment,
    /// User, password, database and TLS; the same for all servers.
    pub login: Login,
}

/// How Redis servers are arranged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Deployment {
    /// These, each with its share of the topics: `host:port`.
    Fixed(Vec<String>),
    /// Masters, each with its share of the topics, whose addresses come from sentinels.
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
    /// `user:password@`, percent-encoded as in the URL, or nothing.
    credentials: String,
    /// `/db`, or nothing.
    db: String,
    /// `?…`, as far as it is for the Redis client.
    query: String,
}

impl Login {
    /// The URL of one server.
    pub fn url(&self, address: &str) -> String {
        let scheme = if self.is_tls { "rediss" } else { "redis" };
        format!("{scheme}://{}{address}{}{}", self.credentials, self.db, self.query)
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

/// A URL, taken apart.
struct Parts<'a> {
    is_tls: bool,
    kind: &'a str,
    credentials: String,
    hosts: Vec<&'a str>,
    path: Vec<&'a str>,
    query: &'a str,
}

impl RedisServers {
    /// Reads a URL. The error names what is wrong, without any part of the URL.
    pub fn read(text: &str) -> Result<RedisServers, String> {
        if text.contains('#') {
            return Err("Nothing may follow a #; in a password it is written %23. ".to_owned());
        }
        let parts = Parts::of(text)?;
        let port = if parts.kind == "sentinel" { 26379 } else { 6379 };
        let addresses: Vec<String> =
            parts.hosts.iter().map(|host| address(host, port)).collect::<Result<_, _>>()?;
        if has_double(&addresses, |one, other| one.eq_ignore_ascii_case(other)) {
            return Err("The URL names a host twice. ".to_owned());
        }
        let mut login = Login { is_tls: parts.is_tls, ..Login::default() };
        login.credentials.clone_from(&parts.credentials);
        let deployment = match parts.kind {
            "" => {
                login.db = db(&parts.path)?;
                login.query = query(parts.query);
                Deployment::Fixed(addresses)
            }
            "cluster" if !parts.path.is_empty() => {
                return Err("A Cluster has no numbered databases. ".to_owned());
            }
            "cluster" if !parts.query.is_empty() => {
                return Err("Nothing may follow the hosts of a Cluster. ".to_owned());
            }
            "cluster" => Deployment::Cluster(addresses),
            _ => {
                let Some((names, path)) = parts.path.split_first() else {
                    return Err("The URL names no master after the sentinels. ".to_owned());
                };
                login.db = db(path)?;
                let masters: Vec<String> = names.split(',').map(str::to_owned).collect();
                if masters.iter().any(String::is_empty) {
                    return Err("The name of a master is empty. ".to_owned());
                }
                if has_double(&masters, |one, other| one == other) {
                    return Err("The URL names a master twice. ".to_owned());
                }
                let login = understood(sentinel_login(&parts)?)?;
                Deployment::Sentinel { sentinels: addresses, masters, login }
            }
        };
        Ok(RedisServers { text: text.to_owned(), deployment, login: understood(login)? })
    }

    /// As it was written, with its password.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whose `host:port` is to be tried first: servers or sentinels.
    pub fn addresses(&self) -> &[String] {
        match &self.deployment {
            Deployment::Fixed(addresses) | Deployment::Cluster(addresses) => addresses,
            Deployment::Sentinel { sentinels, .. } => sentinels,
        }
    }
}

impl<'a> Parts<'a> {
    fn of(text: &'a str) -> Result<Parts<'a>, String> {
        let (scheme, rest) = text.split_once("://").ok_or_else(String::new)?;
        let (tls, kind) = scheme.split_once('+').map_or((scheme, ""), |(tls, kind)| (tls, kind));
        if !["redis", "rediss"].contains(&tls) || (scheme.contains('+') && kind.is_empty()) {
            return Err(String::new());
        }
        if !["", "sentinel", "cluster"].contains(&kind) {
            return Err(String::new());
        }
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (credentials, hosts) = match authority.rsplit_once('@') {
            Some((credentials, hosts)) => (format!("{credentials}@"), hosts),
            None => (String::new(), authority),
        };
        let path = path.split('/').filter(|step| !step.is_empty()).collect();
        let hosts = hosts.split(',').collect();
        Ok(Parts { is_tls: tls == "rediss", kind, credentials, hosts, path, query })
    }
}

/// `host:port`, the port filled in.
fn address(host: &str, port: u16) -> Result<String, String> {
    let (name, own) = match host.rsplit_once(':') {
        Some((name, own)) if !host.ends_with(']') => (name, own.parse::<u16>().unwrap_or(0)),
        _ => (host, port),
    };
    match own {
        _ if name.is_empty() => Err("The URL names no host. ".to_owned()),
        0 => Err("A port is not a number from 1 to 65535. ".to_owned()),
        _ if is_host(name) => Ok(format!("{name}:{own}")),
        _ => Err("A host is no name and no address (IPv6 in brackets, no spaces). ".to_owned()),
    }
}

fn is_host(name: &str) -> bool {
    match name.strip_prefix('[').map(|rest| rest.strip_suffix(']')) {
        Some(address) => address.is_some_and(|it| it.parse::<Ipv6Addr>().is_ok()),
        None => name.chars().all(|char| char.is_alphanumeric() || "-._".contains(char)),
    }
}

fn has_double(names: &[String], is_same: impl Fn(&str, &str) -> bool) -> bool {
    let is_known = |at: usize, name: &String| names[..at].iter().any(|it| is_same(it, name));
    names.iter().enumerate().any(|(at, name)| is_known(at, name))
}

/// Credentials that are no text once they are decoded would be refused at each connect, for ever.
fn understood(login: Login) -> Result<Login, String> {
    match is_text(&login.credentials) {
        true => Ok(login),
        false => Err("User or password is not UTF-8 after percent-decoding. ".to_owned()),
    }
}

fn is_text(encoded: &str) -> bool {
    let mut parts = encoded.split('%');
    let mut bytes = parts.next().unwrap_or("").as_bytes().to_vec();
    for part in parts {
        match part.get(..2).map(|hex| u8::from_str_radix(hex, 16)) {
            Some(Ok(byte)) => {
                bytes.push(byte);
                bytes.extend(&part.as_bytes()[2..]);
            }
            _ => bytes.extend(part.as_bytes()), // a % that stands for itself
        }
    }
    std::str::from_utf8(&bytes).is_ok()
}

fn db(path: &[&str]) -> Result<String, String> {
    match path {
        [] => Ok(String::new()),
        [number] if number.parse::<u32>().is_ok() => Ok(format!("/{number}")),
        _ => Err("The database is not a number. ".to_owned()),
    }
}

fn query(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!("?{text}") }
}

/// Sentinels have users of their own.
fn sentinel_login(parts: &Parts<'_>) -> Result<Login, String> {
    let (mut user, mut password) = ("", "");
    for pair in parts.query.split('&').filter(|pair| !pair.is_empty()) {
        match pair.split_once('=') {
            Some(("sentinel_user", value)) => user = value,
            Some(("sentinel_password", value)) => password = value,
            _ => {
                let known = "sentinel_user and sentinel_password";
                return Err(format!("After the ? only {known} are known. "));
            }
        }
    }
    let credentials = match (user, password) {
        (_, "") => String::new(),
        (user, password) => format!("{user}:{password}@"),
    };
    Ok(Login { is_tls: parts.is_tls, credentials, ..Login::default() })
}

/// A URL as it may be shown: what stands before an `@` is left out, so is the query. Of one that
/// cannot be split into its parts, as one that is refused may be, nothing is shown.
pub fn redact_url(url: &str) -> String {
    let (scheme, rest) = match url.split_once("://") {
        Some((scheme, rest)) => (format!("{scheme}://"), rest),
        None => (String::new(), url),
    };
    let (hidden, hosts) = match rest.rsplit_once('@') {
        Some((before, _)) if before.contains(['?', '#']) => return format!("{scheme}***"),
        Some((_, hosts)) => ("***@", hosts),
        None => ("", rest),
    };
    let hosts = hosts.split(['?', '#']).next().unwrap_or("");
    let is_port = |text: &str| text.parse::<u16>().is_ok();
    let is_plain = |host: &str| {
        host.starts_with('[') || host.split_once(':').is_none_or(|(_, port)| is_port(port))
    };
    match hosts.split('/').next().unwrap_or("").split(',').all(is_plain) {
        true => format!("{scheme}{hidden}{hosts}"),
        false => format!("{scheme}***"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deployment(text: &str) -> Deployment {
        RedisServers::read(text).unwrap_or_else(|error| panic!("{text}: {error}")).deployment
    }

    #[test]
    fn each_way_to_run_redis_is_understood() {
        let hosts = |hosts: &[&str]| hosts.iter().map(|host| host.to_string()).collect::<Vec<_>>();
        for (text, addresses) in [
            ("redis://h", vec!["h:6379"]),
            ("rediss://u:p@h:7/1", vec!["h:7"]),
            ("redis://[::1]:7", vec!["[::1]:7"]),
            ("redis://[::1],h", vec!["[::1]:6379", "h:6379"]),
        ] {
            assert_eq!(deployment(text), Deployment::Fixed(hosts(&addresses)), "{text}");
        }
        let cluster = deployment("rediss+cluster://u:p@a,b:1");
        assert_eq!(cluster, Deployment::Cluster(hosts(&["a:6379", "b:1"])));
        let text = "redis+sentinel://u:p@a,b:1/one,two/3?sentinel_password=x";
        let login = Login { credentials: ":x@".into(), ..Login::default() };
        let (sentinels, masters) = (hosts(&["a:26379", "b:1"]), hosts(&["one", "two"]));
        assert_eq!(deployment(text), Deployment::Sentinel { sentinels, masters, login });
    }

    #[test]
    fn the_url_of_one_server_has_what_stood_before_and_behind_all_of_them() {
        for (text, url) in [
            ("rediss://u:p%40@a,b:1/3", "rediss://u:p%40@x:9/3"),
            ("redis+sentinel://:p@a/m/2?sentinel_user=s", "redis://:p@x:9/2"),
            ("redis+cluster://a", "redis://x:9"),
            ("redis://a?protocol=resp3", "redis://x:9?protocol=resp3"),
        ] {
            assert_eq!(RedisServers::read(text).unwrap().login.url("x:9"), url);
        }
    }

    #[test]
    fn whatever_names_no_servers_is_refused_without_showing_it() {
        for text in [
            "",
            "redis",
            "redis+://h",
            "redis+other://h",
            "http://h",
            "redis://",
            "redis://secret@",
            "redis://h,,i",
            "redis://:1",
            "redis://h:x",
            "redis://h:0",
            "redis://h,h:6379",
            "redis://h/secret",
            "redis+cluster://h/1",
            "redis+sentinel://h",
            "redis+sentinel://h/m,",
            "redis+sentinel://h/m,m",
            "redis://h,H",
            "redis://h,h:06379",
            "redis://h1, h2",
            "redis://::1",
            "redis://[::1",
            "redis://[h]",
            "redis://[::1]x:1",
            "redis://secret^@h x",
            "redis://:%ff@h",
            "redis+cluster://h?secret=1",
            "rediss://h#insecure",
            "redis+sentinel://h/m/secret",
            "redis+sentinel://h/m?secret=1",
        ] {
            let error = RedisServers::read(text).err().unwrap_or_else(|| panic!("{text}"));
            assert!(!error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn nothing_that_is_shown_has_a_password() {
        let text = "redis+sentinel://u:hunter2@a/m?sentinel_password=hunter2";
        let shown = format!("{:?} {:?}", RedisServers::read(text).unwrap(), deployment(text));
        assert!(!shown.contains("hunter2"), "{shown}");
    }

    /// It is shown because it is refused, and it is refused because of the password in it.
    #[test]
    fn a_password_that_should_have_been_encoded_is_not_shown_either() {
        for text in [
            "redis://:hun#ter2@h",
            "redis://:hun?ter2@h",
            "redis://u:hun/ter2@h:1/0",
            "redis://u:hun@ter2@h",
            "redis://u:hunter2",
            "redis://:hunter2,h",
            "u:hun#ter2@h",
            "redis+sentinel://a/m?sentinel_password=hun@ter2",
        ] {
            let shown = redact_url(text);
            assert!(!shown.contains("hun") && !shown.contains("ter2"), "{text}: {shown}");
        }
        assert_eq!(redact_url("redis://u:p@h:1,[::1]:2/3?x"), "redis://***@h:1,[::1]:2/3");
        assert_eq!(redact_url("redis://h:1,[::1]/3"), "redis://h:1,[::1]/3");
    }
}
