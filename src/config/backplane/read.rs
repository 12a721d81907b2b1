//! Reads the URL of a Redis backplane.
//!
//! An error ends in a blank, because what would be right follows it. It shows the part that is
//! wrong, unless that may belong to a user or password: an `@` behind the hosts, a second one, or a
//! port that is no number where nothing stands before an `@`.

use crate::config::backplane::parameters::Parameters;
use crate::config::backplane::{Deployment, Login, RedisServers, percent};
use std::net::Ipv6Addr;

/// The highest number of a database: a server reads it as an `int`.
const DB_MAX: u32 = i32::MAX as u32;
/// Bytes of the path of a Unix socket (`sun_path` of unix(7), without its end).
const SOCKET_PATH_BYTES_MAX: usize = 107;
/// Bytes of a host's name (RFC 1035 §2.3.4).
const HOST_BYTES_MAX: usize = 253;
/// Characters of a part that an error shows.
const SHOWN_CHARS_MAX: usize = 40;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Fixed,
    Sentinel,
    Cluster,
    Socket,
}

/// A URL, taken apart and not looked at any further.
struct Parts<'a> {
    form: Form,
    is_tls: bool,
    credentials: Option<&'a str>,
    hosts: &'a str,
    path: &'a str,
    query: Option<&'a str>,
}

impl RedisServers {
    /// Reads a URL. The error says what is wrong with it; it shows nothing that may be a part of a
    /// user or password.
    pub fn read(text: &str) -> Result<RedisServers, String> {
        let parts = Parts::of(text)?;
        let (deployment, login) = match parts.form {
            Form::Fixed => fixed(&parts)?,
            Form::Sentinel => sentinel(&parts)?,
            Form::Cluster => cluster(&parts)?,
            Form::Socket => socket(&parts)?,
        };
        Ok(RedisServers { text: text.to_owned(), deployment, login })
    }
}

fn fixed(parts: &Parts<'_>) -> Result<(Deployment, Login), String> {
    let addresses = parts.addresses(6379)?;
    let login = Login { db: db(&steps(parts.path)?)?, ..parts.login()? };
    only_resp3(&mut Parameters::read(parts.query, &["protocol"])?)?;
    Ok((Deployment::Fixed(addresses), login))
}

fn sentinel(parts: &Parts<'_>) -> Result<(Deployment, Login), String> {
    let sentinels = parts.addresses(26379)?;
    let path = steps(parts.path)?;
    let (names, path) =
        path.split_first().ok_or("The URL names no master after the sentinels. ")?;
    let masters = masters(names)?;
    let login = Login { db: db(path)?, ..parts.login()? };
    let mut parameters = Parameters::read(parts.query, &["sentinel_user", "sentinel_password"])?;
    let (user, password) = (parameters.take("sentinel_user"), parameters.take("sentinel_password"));
    if password.is_empty() && !user.is_empty() {
        return Err("sentinel_user needs a sentinel_password. ".to_owned());
    }
    let sentinel_login = Login { is_tls: parts.is_tls, db: 0, user, password };
    Ok((Deployment::Sentinel { sentinels, masters, login: sentinel_login }, login))
}

fn cluster(parts: &Parts<'_>) -> Result<(Deployment, Login), String> {
    let addresses = parts.addresses(6379)?;
    match db(&steps(parts.path)?)? {
        0 => {}
        db => {
            return Err(format!(
                "A Cluster has only database 0: leave out /{db}, and give each system a \
                 redis.prefix of its own. "
            ));
        }
    }
    Parameters::read(parts.query, &[])?;
    Ok((Deployment::Cluster(addresses), parts.login()?))
}

fn socket(parts: &Parts<'_>) -> Result<(Deployment, Login), String> {
    if !parts.hosts.is_empty() || parts.credentials.is_some() {
        return Err("Nothing stands before the path of a Unix socket: write redis+unix:///path. "
            .to_owned());
    }
    let path = socket_path(parts.path)?;
    let mut parameters = Parameters::read(parts.query, &["db", "user", "password", "protocol"])?;
    only_resp3(&mut parameters)?;
    let (user, password) = (parameters.take("user"), parameters.take("password"));
    if password.is_empty() && !user.is_empty() {
        return Err("user needs a password. ".to_owned());
    }
    let number = parameters.take("db");
    let db = if number.is_empty() { 0 } else { db_number(&number)? };
    Ok((Deployment::Fixed(vec![path]), Login { is_tls: false, db, user, password }))
}

impl Form {
    fn of(scheme: &str) -> Result<(Form, bool), String> {
        Ok(match scheme {
            "redis" => (Form::Fixed, false),
            "rediss" => (Form::Fixed, true),
            "redis+sentinel" => (Form::Sentinel, false),
            "rediss+sentinel" => (Form::Sentinel, true),
            "redis+cluster" => (Form::Cluster, false),
            "rediss+cluster" => (Form::Cluster, true),
            "redis+unix" => (Form::Socket, false),
            "rediss+unix" => {
                return Err("There is no TLS through a Unix socket: write redis+unix. ".to_owned());
            }
            _ => return Err(format!("Scheme {} is unknown. ", shown(scheme))),
        })
    }
}

impl<'a> Parts<'a> {
    fn of(text: &'a str) -> Result<Parts<'a>, String> {
        let (scheme, rest) = text.split_once("://").ok_or_else(String::new)?;
        let (form, is_tls) = Form::of(scheme)?;
        if rest.contains('#') {
            return Err("Nothing may follow a #; in a password it is written %23. ".to_owned());
        }
        let (rest, query) = match rest.split_once('?') {
            Some((rest, query)) => (rest, Some(query)),
            None => (rest, None),
        };
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        if path.contains('@') || query.is_some_and(|query| query.contains('@')) {
            return Err("An @ stands behind the hosts. In users, passwords and paths \
                        @ is written %40, / is %2F and ? is %3F. "
                .to_owned());
        }
        let (credentials, hosts) = match authority.rsplit_once('@') {
            Some((credentials, hosts)) => (Some(credentials), hosts),
            None => (None, authority),
        };
        if credentials.is_some_and(|credentials| credentials.contains('@')) {
            return Err("An @ stands there twice: user and password are written once, before the \
                        first host, and an @ in them is %40. "
                .to_owned());
        }
        Ok(Parts { form, is_tls, credentials, hosts, path, query })
    }

    /// User and password of the servers.
    fn login(&self) -> Result<Login, String> {
        let Some(credentials) = self.credentials else {
            return Ok(Login { is_tls: self.is_tls, ..Login::default() });
        };
        let (user, password) = credentials.split_once(':').unwrap_or((credentials, ""));
        if password.is_empty() {
            return Err(
                "No password stands before the @: write user:password@ or :password@. ".to_owned()
            );
        }
        let decode = |what: &str, text: &str| {
            percent::decode(text).map_err(|error| format!("The {what} {}. ", error.reason()))
        };
        let (user, password) = (decode("user", user)?, decode("password", password)?);
        Ok(Login { is_tls: self.is_tls, db: 0, user, password })
    }

    /// Each `host:port`, the port filled in.
    fn addresses(&self, port: u16) -> Result<Vec<String>, String> {
        if self.hosts.is_empty() {
            return Err("The URL names no host. ".to_owned());
        }
        let mut addresses: Vec<String> = Vec::new();
        for (at, host) in self.hosts.split(',').enumerate() {
            let address = address(host, at + 1, port, self.credentials.is_some())?;
            if addresses.iter().any(|other| other.eq_ignore_ascii_case(&address)) {
                return Err(format!("The URL names {address} twice. "));
            }
            addresses.push(address);
        }
        Ok(addresses)
    }
}

/// Host number `at`. `is_behind_login`: it cannot be a user and password whose host is missing.
fn address(host: &str, at: usize, port: u16, is_behind_login: bool) -> Result<String, String> {
    let (name, own) = match host.rsplit_once(':') {
        Some((name, own)) if name.ends_with(']') || !host.starts_with('[') => (name, Some(own)),
        _ => (host, None),
    };
    if name.is_empty() {
        return Err(format!("Host {at} has no name. "));
    }
    if name.contains(':') && !name.starts_with('[') {
        return Err(format!(
            "Host {at} has several colons: an IPv6 address stands in brackets, such as [::1]:6379. "
        ));
    }
    let port = match own {
        None => port,
        Some(own) => own_port(own, at, is_behind_login)?,
    };
    Ok(format!("{}:{port}", host_name(name)?))
}

fn own_port(text: &str, at: usize, is_behind_login: bool) -> Result<u16, String> {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    match text.parse::<u16>() {
        Ok(port @ 1..) if is_number => Ok(port),
        _ => {
            let is_shown = is_number || is_behind_login;
            let port = if is_shown { format!("Port {}", shown(text)) } else { "The port".into() };
            Err(format!("{port} of host {at} is not a number from 1 to 65535. "))
        }
    }
}

/// The name, or the address in its shortest form.
fn host_name(name: &str) -> Result<String, String> {
    if let Some(rest) = name.strip_prefix('[') {
        let address = rest.strip_suffix(']').and_then(|it| it.parse::<Ipv6Addr>().ok());
        let address = address.ok_or(format!("{} is no IPv6 address. ", shown(name)))?;
        return match address.is_unspecified() {
            true => Err(format!("{name} is every address, and not one of a server. ")),
            false => Ok(format!("[{address}]")),
        };
    }
    if name == "0.0.0.0" {
        return Err(format!("{name} is every address, and not one of a server. "));
    }
    let is_name = name.len() <= HOST_BYTES_MAX
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte));
    match is_name {
        true => Ok(name.to_owned()),
        false => Err(format!("{} is no name of a host. ", shown(name))),
    }
}

/// The parts of the path between its slashes.
fn steps(path: &str) -> Result<Vec<&str>, String> {
    let path = path.strip_suffix('/').unwrap_or(path);
    if path.is_empty() {
        return Ok(Vec::new());
    }
    let steps: Vec<&str> = path.split('/').collect();
    match steps.iter().any(|step| step.is_empty()) {
        true => Err("Nothing stands between two slashes of the path. ".to_owned()),
        false => Ok(steps),
    }
}

fn db(path: &[&str]) -> Result<u32, String> {
    match path {
        [] => Ok(0),
        [number] => db_number(number),
        [_, more, ..] => Err(format!("{} behind the database has no meaning. ", shown(more))),
    }
}

fn db_number(text: &str) -> Result<u32, String> {
    let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
    match text.parse::<u32>() {
        Ok(number @ ..=DB_MAX) if is_number => Ok(number),
        _ => Err(format!("Database {} is not a number from 0 to {DB_MAX}. ", shown(text))),
    }
}

fn masters(names: &str) -> Result<Vec<String>, String> {
    let mut masters: Vec<String> = Vec::new();
    for name in names.split(',') {
        if name.is_empty() {
            return Err("The name of a master is empty. ".to_owned());
        }
        if !name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'%') {
            return Err(format!("{} cannot be the name of a master. ", shown(name)));
        }
        if masters.iter().any(|other| other == name) {
            return Err(format!("The URL names master {} twice. ", shown(name)));
        }
        masters.push(name.to_owned());
    }
    Ok(masters)
}

/// The absolute path of a Unix socket, from what follows its first slash.
fn socket_path(text: &str) -> Result<String, String> {
    let path = percent::decode(text).map_err(|error| format!("The path {}. ", error.reason()))?;
    if path.is_empty() || path.ends_with('/') {
        return Err("The URL names no socket: write redis+unix:///path. ".to_owned());
    }
    if path.contains(char::is_control) {
        return Err(format!("The path /{} has a control character. ", path.escape_debug()));
    }
    let path = format!("/{path}");
    match path.len() {
        ..=SOCKET_PATH_BYTES_MAX => Ok(path),
        len => Err(format!(
            "The path has {len} bytes; that of a Unix socket has at most {SOCKET_PATH_BYTES_MAX}. "
        )),
    }
}

/// `protocol` may be there as for other programs, with the one value that is spoken.
fn only_resp3(parameters: &mut Parameters) -> Result<(), String> {
    match parameters.take("protocol").as_str() {
        "" | "resp3" | "3" => Ok(()),
        other => Err(format!("Parameter protocol is {}; only resp3 is spoken. ", shown(other))),
    }
}

/// A part of the URL in quotes, cut to a length.
fn shown(text: &str) -> String {
    match text.char_indices().nth(SHOWN_CHARS_MAX) {
        None => format!("{text:?}"),
        Some((end, _)) => format!("{:?}…", &text[..end]),
    }
}
