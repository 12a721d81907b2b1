//! What a setting's value may be, and how it is read from text and written back.
//!
//! Flags and environment are text; values of the file are brought into the same text first, so
//! there is one parser a kind. [`ValueKind`] judges ranges, [`Value`] turns text into the field's
//! type.

use crate::config::backplane::{BackplaneUrl, RedisServers};
use crate::ids::is_name;
use crate::policy::namespaces::{NAMESPACE_SETTINGS, Namespaces};
use crate::policy::networks::{BadNetwork, Network};
use crate::policy::rights::Rights;
use crate::policy::setting::{SettingRange, SettingValue, words};
use std::net::SocketAddr;

/// What values a setting takes.
#[derive(Clone, Copy, Debug)]
pub enum ValueKind {
    /// An IP address and a port.
    Address,
    /// `memory` or where Redis is.
    Backplane,
    /// A number, a word or `true` and `false`.
    Plain(SettingRange),
    /// `true`, `false` or `auto`.
    BoolAuto,
    /// Text that no message and no log ever shows.
    Secret,
    /// Cores, such as `0-3,6`.
    Cores,
    /// A path that begins with a slash, or nothing.
    HttpPath,
    /// The path of a file, or nothing.
    File,
    /// A list of origins.
    Origins,
    /// A list of networks.
    Networks,
    /// `http://…` or `https://…`, or nothing.
    Url,
    /// A list of names of HTTP header lines.
    HeaderNames,
    /// A list of paths of the operators' API.
    ApiPaths,
    /// A name as in [`is_name`], or nothing.
    Name,
    /// The beginning of Redis keys.
    Prefix,
    /// A list of rights.
    Rights,
    /// A list of rights, or `auto`.
    RightsAuto,
    /// Namespaces and their settings.
    Namespaces,
}

impl ValueKind {
    /// What would be right, for the operator; with an example where that is clearer.
    pub fn wanted(&self) -> String {
        match self {
            ValueKind::Address => {
                "an IP address and a port, such as 0.0.0.0:8080 or [::]:8080; a port alone is 0.0.0.0:port"
                    .into()
            }
            ValueKind::Backplane => "memory, redis://[user:password@]host[:port][,host…][/db], \
                 redis+sentinel://[…@]sentinel[:port][,…]/master[,…][/db], \
                 redis+cluster://[…@]host[:port][,…], redis+unix:///path[?db=…]; or rediss… (TLS)"
                .into(),
            ValueKind::Plain(range) => range.wanted(),
            ValueKind::BoolAuto => "true, false or auto".into(),
            ValueKind::Secret => "text, at least 16 bytes of it".into(),
            ValueKind::Cores => "core numbers and ranges, such as 0-3,6".into(),
            ValueKind::HttpPath => "a path such as /echo, without query".into(),
            ValueKind::File => "the path of a file, or nothing".into(),
            ValueKind::Origins => {
                "origins of the form scheme://host[:port], such as https://example.org, or * for any"
                    .into()
            }
            ValueKind::Url => "http://host[:port]/path or https://…, without user and password".into(),
            ValueKind::HeaderNames => {
                "names of HTTP header lines, such as cookie,x-tenant".into()
            }
            ValueKind::ApiPaths => "paths below /v1, such as /v1/publish".into(),
            ValueKind::Networks => {
                "addresses and networks, such as 10.0.0.0/8 or 2001:db8::1".into()
            }
            ValueKind::Name => "1 to 255 bytes without invisible characters or blanks around it".into(),
            ValueKind::Prefix => {
                "1 to 64 letters, digits, dots, dashes, underscores or colons".into()
            }
            ValueKind::Rights => format!("a list out of {}", Rights::NAMES.join(", ")),
            ValueKind::Namespaces => {
                let keys: Vec<_> = NAMESPACE_SETTINGS.iter().map(|setting| setting.key).collect();
                format!("chat: history_size=100, join=users; default: … with {}", keys.join(", "))
            }
            ValueKind::RightsAuto => format!("auto, or a list out of {}", Rights::NAMES.join(", ")),
        }
    }

    /// Whether the file may (and the sample does) write the value as a list.
    pub fn is_list(&self) -> bool {
        matches!(
            self,
            ValueKind::Origins
                | ValueKind::Networks
                | ValueKind::ApiPaths
                | ValueKind::HeaderNames
                | ValueKind::Rights
                | ValueKind::RightsAuto
        )
    }

    /// Whether the file writes the value without quotes.
    pub fn is_bare(&self) -> bool {
        matches!(self, ValueKind::Plain(SettingRange::Number { .. } | SettingRange::Bool))
    }

    /// Judges what the field's type alone cannot. The error, if any, adds to [`ValueKind::wanted`].
    pub(super) fn check(&self, text: &str) -> Result<(), String> {
        let good = match self {
            ValueKind::Plain(range) => range.takes(text),
            ValueKind::HttpPath => text.is_empty() || is_path(text),
            ValueKind::File => !text.contains(char::is_control),
            ValueKind::Name => text.is_empty() || is_name(text),
            ValueKind::Prefix => is_prefix(text),
            ValueKind::ApiPaths => split_list(text).all(is_api_path),
            ValueKind::Url => text.is_empty() || is_url(text),
            ValueKind::HeaderNames => split_list(text).all(is_header_name),
            _ => true,
        };
        if good { Ok(()) } else { Err(String::new()) }
    }
}

fn is_path(text: &str) -> bool {
    text.starts_with('/') && text.bytes().all(|b| b.is_ascii_graphic() && !b"?#%\"".contains(&b))
}

/// An absolute URL of HTTP. What only a client of HTTP can judge is judged at the start.
fn is_url(text: &str) -> bool {
    let rest = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://"));
    let is_plain = text.bytes().all(|b| b.is_ascii_graphic() && !b"\"#<>\\^`{|}".contains(&b));
    let authority = rest.and_then(|rest| rest.split(['/', '?']).next()).unwrap_or("");
    is_plain && !authority.is_empty() && !authority.contains('@')
}

/// RFC 9110 §5.6.2: a token.
fn is_header_name(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
}

/// All paths that require the key are below `/v1`; those that answer without one must not be public.
fn is_api_path(text: &str) -> bool {
    is_path(text) && text.len() > "/v1/".len() && text.starts_with("/v1/") && !text.ends_with('/')
}

/// No braces: they are Redis hash tags, which this server sets itself.
fn is_prefix(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-:".contains(&b))
}

/// Pages' origins as browsers write them (RFC 6454 §6.1): scheme, host, and the port where it is not
/// the scheme's own; or `*`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origins(pub Vec<String>);

impl Value for Origins {
    fn read(text: &str) -> Result<Origins, String> {
        split_list(text).map(normal_origin).collect::<Result<_, _>>().map(Origins)
    }
    fn write(&self) -> String {
        self.0.join(",")
    }
}

/// What a browser would send for it, or what to write instead.
fn normal_origin(text: &str) -> Result<String, String> {
    if text == "*" || text == "null" {
        return Ok(text.to_owned());
    }
    let lower = text.to_lowercase();
    let (scheme, rest) = lower.split_once("://").unwrap_or(("", &lower));
    let authority = rest.strip_suffix('/').unwrap_or(rest);
    let wrong = |what: &str| Err(format!("{text:?} {what}. "));
    if scheme.is_empty()
        || !scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b))
    {
        return wrong("has no scheme, such as https://");
    }
    if authority.contains('@') || authority.contains(['?', '#', ' ']) {
        return wrong("has more than a scheme, a host and a port");
    }
    if let Some((authority, _)) = authority.split_once('/') {
        return wrong(&format!("has a path: an origin has none, so write {scheme}://{authority}"));
    }
    if authority.contains('*') {
        return wrong("has a wildcard: name each origin, or write * alone for any");
    }
    if !authority.is_ascii() {
        return wrong("has a host that is not ASCII: browsers send it as xn--…, so write that");
    }
    let (name, port) = split_port(authority);
    if name.is_empty() || port.is_some_and(|port| port.parse::<u16>().is_err()) {
        return wrong("has no host, or a port that is none");
    }
    let usual = match scheme {
        "http" | "ws" => Some("80"),
        "https" | "wss" => Some("443"),
        _ => None,
    };
    let authority = if port.is_some() && port == usual { name } else { authority };
    Ok(format!("{scheme}://{authority}"))
}

/// Host and port; an IPv6 address keeps its brackets.
fn split_port(authority: &str) -> (&str, Option<&str>) {
    let end = authority.rfind(']').map_or(0, |at| at + 1);
    match authority[end..].rfind(':') {
        Some(at) => (&authority[..end + at], Some(&authority[end + at + 1..])),
        None => (authority, None),
    }
}

fn split_list(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|item| !item.is_empty())
}

/// A type of field that is read from and written to text.
pub(super) trait Value: Sized {
    /// The value, or what an error has to add to [`ValueKind::wanted`].
    fn read(text: &str) -> Result<Self, String>;
    /// What `read` would read.
    fn write(&self) -> String;
}

impl<T: SettingValue> Value for T {
    fn read(text: &str) -> Result<T, String> {
        SettingValue::read(text).ok_or_else(String::new)
    }
    fn write(&self) -> String {
        SettingValue::write(self)
    }
}

impl Value for SocketAddr {
    fn read(text: &str) -> Result<SocketAddr, String> {
        let text = text.trim();
        let with_host = match text.strip_prefix(':') {
            Some(port) => format!("0.0.0.0:{port}"),
            None if text.bytes().all(|byte| byte.is_ascii_digit()) => format!("0.0.0.0:{text}"),
            None => match text.strip_prefix("localhost:") {
                Some(port) => format!("127.0.0.1:{port}"),
                None => text.to_owned(),
            },
        };
        with_host.parse().map_err(|_| String::new())
    }
    fn write(&self) -> String {
        self.to_string()
    }
}

impl Value for String {
    fn read(text: &str) -> Result<String, String> {
        Ok(text.to_owned())
    }
    fn write(&self) -> String {
        self.clone()
    }
}

/// Empty text is none.
impl Value for Option<String> {
    fn read(text: &str) -> Result<Option<String>, String> {
        Ok((!text.is_empty()).then(|| text.to_owned()))
    }
    fn write(&self) -> String {
        self.clone().unwrap_or_default()
    }
}

macro_rules! or_auto {
    ($($type:ty),+) => { $(
        impl Value for Option<$type> {
            fn read(text: &str) -> Result<Option<$type>, String> {
                if text == "auto" { Ok(None) } else { <$type as Value>::read(text).map(Some) }
            }
            fn write(&self) -> String {
                self.as_ref().map_or_else(|| "auto".to_owned(), Value::write)
            }
        }
    )+ };
}

or_auto!(bool, Rights);

impl Value for Vec<String> {
    fn read(text: &str) -> Result<Vec<String>, String> {
        Ok(split_list(text).map(str::to_owned).collect())
    }
    fn write(&self) -> String {
        self.join(",")
    }
}

impl Value for Rights {
    fn read(text: &str) -> Result<Rights, String> {
        let mut rights = Rights::NONE;
        for name in split_list(text) {
            rights = rights.with(name).ok_or_else(|| format!("{name:?} is not a right. "))?;
        }
        Ok(rights)
    }
    fn write(&self) -> String {
        self.names().join(",")
    }
}

/// Core numbers: `0-3,6`. Written one by one.
impl Value for Vec<usize> {
    fn read(text: &str) -> Result<Vec<usize>, String> {
        let mut cores = Vec::new();
        for part in split_list(text) {
            let number = <usize as Value>::read;
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (number(first)?, number(last)?);
            if first > last || last >= 4096 {
                return Err(format!("{part:?} is not a range of cores. "));
            }
            cores.extend(first..=last);
        }
        let distinct: std::collections::HashSet<_> = cores.iter().collect();
        if distinct.len() < cores.len() {
            return Err("A core is named twice. ".to_owned());
        }
        Ok(cores)
    }
    fn write(&self) -> String {
        self.iter().map(usize::to_string).collect::<Vec<_>>().join(",")
    }
}

/// Addresses and networks. Written each with its number of bits.
impl Value for Vec<Network> {
    fn read(text: &str) -> Result<Vec<Network>, String> {
        let read = |item: &str| {
            item.parse::<Network>().map_err(|bad| match bad {
                BadNetwork::Syntax => format!("{item:?} is not a network. "),
                BadNetwork::HostBits => {
                    format!("{item:?} has bits set behind those that the number after / counts. ")
                }
            })
        };
        split_list(text).map(read).collect()
    }
    fn write(&self) -> String {
        self.iter().map(Network::to_string).collect::<Vec<_>>().join(",")
    }
}

impl Value for Namespaces {
    fn read(text: &str) -> Result<Namespaces, String> {
        Namespaces::read(text)
    }
    fn write(&self) -> String {
        Namespaces::write(self)
    }
}

words! {
    /// How log lines are written.
    LogFormat {
        /// For people.
        Text = "text",
        /// One JSON object a line.
        Json = "json",
    }
}

words! {
    /// What becomes of what a hook could not be asked.
    HookFailure {
        /// It is refused.
        Deny = "deny",
        /// It is allowed.
        Allow = "allow",
    }
}

words! {
    /// How the kernel schedules our threads.
    Scheduling {
        /// The one or the other, by what the kernel counts of each thread.
        Auto = "auto",
        /// `SCHED_BATCH`: a thread that wakes does not preempt a running one.
        Batch = "batch",
        /// `SCHED_OTHER`: the kernel's default.
        Other = "other",
    }
}

words! {
    /// How a WebSocket is refused that may not connect.
    RejectedHandshakes {
        /// With an HTTP status, which scripts of a browser do not see.
        Http = "http",
        /// It is accepted, receives an error, and is closed with a code.
        Close = "close",
    }
}

words! {
    /// Whether connections begin with a PROXY header.
    ProxyProtocol {
        /// They do not; one that does is refused.
        Off = "off",
        /// Those of trusted proxies may.
        Optional = "optional",
        /// All do.
        Required = "required",
    }
}

words! {
    /// Which shard gets a new connection.
    SteeringMode {
        /// The one that has fewer.
        Even = "even",
        /// The one on the core that received it.
        Cpu = "cpu",
        /// The kernel's hash decides.
        Kernel = "kernel",
    }
}

impl Value for BackplaneUrl {
    fn read(text: &str) -> Result<BackplaneUrl, String> {
        match text {
            "memory" => Ok(BackplaneUrl::Memory),
            _ => RedisServers::read(text).map(|servers| BackplaneUrl::Redis(Box::new(servers))),
        }
    }
    fn write(&self) -> String {
        match self {
            BackplaneUrl::Memory => "memory".to_owned(),
            BackplaneUrl::Redis(servers) => servers.text().to_owned(),
        }
    }
}
