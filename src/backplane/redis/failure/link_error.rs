//! The types of failures, and what they say.

use crate::backplane::redis::failure::reason::FailureReason;
use crate::tls_trust::AuthorityError;
use std::fmt;

/// Why a server is not connected, or no longer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkError {
    /// An operator has to act.
    Setup(SetupError),
    /// It may pass by itself.
    Outage(Outage),
}

/// What an operator has to change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SetupError {
    /// The URL in `backplane` cannot be used.
    Url(String),
    /// The file of the authorities cannot be used.
    Authority {
        /// `redis.tls_ca_file`
        path: String,
        /// What is wrong with it.
        error: AuthorityError,
    },
    /// There is no TLS session that could be trusted.
    Tls(String),
    /// The name in the address has no IP address.
    UnknownName {
        /// The name.
        host: String,
        /// The resolver's error.
        error: String,
    },
    /// User or password are refused.
    Unauthenticated {
        /// The ACL user.
        user: String,
        /// The server's error.
        error: String,
    },
    /// The user may not do everything that the configuration needs.
    Forbidden {
        /// The ACL user.
        user: String,
        /// The rules that it lacks, as `ACL SETUSER` takes them.
        rules: Vec<String>,
    },
    /// The connections reach different servers.
    SeveralServers,
    /// The server does not know a command.
    TooOld {
        /// The command.
        command: String,
    },
}

/// What is wrong with a server, or the way to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outage {
    /// Its address is not known yet.
    NoAddress,
    /// Nothing listens at the address.
    Refused(String),
    /// The address is not reached.
    Unreachable(String),
    /// It did not answer in time.
    Timeout(&'static str),
    /// A connection that worked was lost.
    Lost {
        /// The connection.
        what: &'static str,
        /// What is known of it.
        error: String,
    },
    /// It sent what no Redis server sends.
    Protocol(String),
    /// It refused a command: it is loading, out of memory, or the like.
    Rejected(String),
    /// No canary came back for so long.
    Canary {
        /// Milliseconds.
        silent_ms: u128,
    },
    /// It is a replica.
    NotMaster,
    /// It was the master, and is no longer.
    Demoted,
    /// It has been a replica in between.
    Replaced,
    /// The master is elsewhere now.
    MovedTo(String),
    /// The topology no longer names it.
    Departed,
    /// Some of its topics are subscribed on no server.
    Unserved,
}

impl From<SetupError> for LinkError {
    fn from(error: SetupError) -> LinkError {
        LinkError::Setup(error)
    }
}

impl From<Outage> for LinkError {
    fn from(outage: Outage) -> LinkError {
        LinkError::Outage(outage)
    }
}

impl LinkError {
    /// Its name in `/readyz`, in the log and in `/metrics`.
    pub fn reason(&self) -> FailureReason {
        match self {
            LinkError::Setup(error) => error.reason(),
            LinkError::Outage(outage) => outage.reason(),
        }
    }
}

impl SetupError {
    fn reason(&self) -> FailureReason {
        match self {
            SetupError::Url(_) => FailureReason::Configuration,
            SetupError::Authority { .. } => FailureReason::TlsCaFile,
            SetupError::Tls(_) => FailureReason::Tls,
            SetupError::UnknownName { .. } => FailureReason::UnknownName,
            SetupError::Unauthenticated { .. } => FailureReason::Authentication,
            SetupError::Forbidden { .. } => FailureReason::Permission,
            SetupError::SeveralServers => FailureReason::SeveralServers,
            SetupError::TooOld { .. } => FailureReason::Version,
        }
    }
}

impl Outage {
    fn reason(&self) -> FailureReason {
        match self {
            Outage::NoAddress => FailureReason::NoAddress,
            Outage::Refused(_) => FailureReason::Refused,
            Outage::Unreachable(_) => FailureReason::Unreachable,
            Outage::Timeout(_) => FailureReason::Timeout,
            Outage::Lost { .. } => FailureReason::ConnectionLost,
            Outage::Protocol(_) => FailureReason::Protocol,
            Outage::Rejected(_) => FailureReason::Rejected,
            Outage::Canary { .. } => FailureReason::Canary,
            Outage::NotMaster | Outage::Demoted | Outage::Replaced => FailureReason::NotMaster,
            Outage::MovedTo(_) | Outage::Departed => FailureReason::Failover,
            Outage::Unserved => FailureReason::Unserved,
        }
    }
}

impl fmt::Display for LinkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LinkError::Setup(error) => error.fmt(f),
            LinkError::Outage(outage) => outage.fmt(f),
        }
    }
}

impl fmt::Display for SetupError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SetupError::Url(error) => write!(f, "correct the URL in backplane: {error}"),
            SetupError::Authority { path, error } => {
                write!(f, "redis.tls_ca_file = {path}: {error}")
            }
            SetupError::Tls(error) => write!(
                f,
                "TLS: {error}. The certificate must be for the name or address in backplane, and \
                 signed by an authority in redis.tls_ca_file"
            ),
            SetupError::UnknownName { host, error } => {
                write!(f, "{host} has no address: {error}. Correct the name in backplane, or DNS")
            }
            SetupError::Unauthenticated { user, error } => write!(
                f,
                "HELLO: {error}. Correct the user or password in backplane, or write ACL SETUSER \
                 {user} on '><password>'"
            ),
            SetupError::Forbidden { user, rules } => {
                write!(f, "the user lacks permissions. Write ACL SETUSER {user}")?;
                rules.iter().try_for_each(|rule| write!(f, " {}", quoted(rule)))
            }
            SetupError::SeveralServers => f.write_str(
                "the connections reach different servers. Name one server, not a balancer in \
                 front of several",
            ),
            SetupError::TooOld { command } => write!(
                f,
                "the server does not know {command}. Redis 6.2 is needed, and 7.0 in a Cluster"
            ),
        }
    }
}

impl fmt::Display for Outage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outage::NoAddress => f.write_str("its address is not known yet"),
            Outage::Refused(error) => write!(f, "{error}. Is the server running?"),
            Outage::Timeout(what) => write!(f, "the server does not answer{what}"),
            Outage::Lost { what, error } => write!(f, "the {what} connection was lost: {error}"),
            Outage::Unreachable(error) | Outage::Protocol(error) | Outage::Rejected(error) => {
                f.write_str(error)
            }
            Outage::Canary { silent_ms } => write!(f, "no canary came back for {silent_ms} ms"),
            Outage::NotMaster => f.write_str("the server is not a master"),
            Outage::Demoted => f.write_str("the server is no longer a master"),
            Outage::Replaced => f.write_str("the server has been a replica of another one"),
            Outage::MovedTo(address) => write!(f, "the master is at {address} now"),
            Outage::Departed => f.write_str("it is no longer a master"),
            Outage::Unserved => f.write_str("some of its topics are on no server"),
        }
    }
}

/// A rule as a shell and `redis-cli` take it.
fn quoted(rule: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '+';
    if rule.chars().all(is_plain) { rule.to_owned() } else { format!("'{rule}'") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_permission_is_named_with_the_line_to_write() {
        let rules = ["+xadd", "+client|setname", "~campanile:*", "&campanile:*"];
        let rules = rules.map(str::to_owned).to_vec();
        let error: LinkError = SetupError::Forbidden { user: "bell".into(), rules }.into();
        assert_eq!(
            error.to_string(),
            "the user lacks permissions. Write ACL SETUSER bell +xadd '+client|setname' \
             '~campanile:*' '&campanile:*'"
        );
        assert_eq!(error.reason().name(), "permission");
    }
}
