//! What an error of the network, of TLS or of the server means.
//!
//! Invariant: an error that is not recognised is an [`Outage`] with the server's own words.

use crate::backplane::redis::failure::link_error::{LinkError, Outage, SetupError};
use redis::{ErrorKind, RedisError, ServerErrorKind};
use std::io;

/// The user of a connection, whom its errors concern.
#[derive(Clone, Debug)]
pub(crate) struct LinkUser {
    /// The ACL user of the connection.
    pub user: String,
    /// The name of a connection that may be lost.
    pub connection: &'static str,
}

impl LinkUser {
    /// The user of a URL, on the connection with this name.
    pub(crate) fn new(user: Option<&str>, connection: &'static str) -> LinkUser {
        LinkUser { user: user.unwrap_or("default").to_owned(), connection }
    }

    /// An error of the redis crate.
    pub(crate) fn failure(&self, error: &RedisError) -> LinkError {
        if error.is_connection_refusal() {
            return Outage::Refused(error.to_string()).into();
        }
        if error.is_timeout() {
            return Outage::Timeout("").into();
        }
        match error.kind() {
            ErrorKind::InvalidClientConfig => SetupError::Url(error.to_string()).into(),
            ErrorKind::RESP3NotSupported => too_old("HELLO"),
            ErrorKind::AuthenticationFailed => self.unauthenticated(&error.to_string()),
            ErrorKind::Server(ServerErrorKind::ReadOnly) => Outage::Demoted.into(),
            ErrorKind::Server(_) | ErrorKind::Extension => {
                let details = error.detail().unwrap_or_default();
                self.rejected(&format!("{} {details}", error.code().unwrap_or("ERR")))
            }
            ErrorKind::Parse | ErrorKind::UnexpectedReturnType => {
                Outage::Protocol(error.to_string()).into()
            }
            _ => self.lost(&error.to_string()),
        }
    }

    /// An error reply, with its code.
    pub(crate) fn rejected(&self, text: &str) -> LinkError {
        match text.split_whitespace().next().unwrap_or_default() {
            "WRONGPASS" | "NOAUTH" => self.unauthenticated(text),
            "READONLY" => Outage::Demoted.into(),
            "NOPERM" => match forbidden_command(text) {
                Some(command) => self.forbidden(vec![format!("+{command}")]),
                None => Outage::Rejected(text.to_owned()).into(),
            },
            _ => match unknown_command(text) {
                Some(command) => too_old(&command),
                None => Outage::Rejected(text.to_owned()).into(),
            },
        }
    }

    /// The user lacks these rules.
    pub(crate) fn forbidden(&self, rules: Vec<String>) -> LinkError {
        SetupError::Forbidden { user: self.user.clone(), rules }.into()
    }

    /// The connection was lost.
    pub(crate) fn lost(&self, error: &str) -> LinkError {
        Outage::Lost { what: self.connection, error: error.to_owned() }.into()
    }

    fn unauthenticated(&self, error: &str) -> LinkError {
        let (user, error) = (self.user.clone(), error.to_owned());
        SetupError::Unauthenticated { user, error }.into()
    }
}

/// An error of connecting a socket.
pub(crate) fn of_connect(error: &io::Error) -> LinkError {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => Outage::Refused(error.to_string()).into(),
        io::ErrorKind::TimedOut => Outage::Timeout("").into(),
        _ => Outage::Unreachable(error.to_string()).into(),
    }
}

fn too_old(command: &str) -> LinkError {
    SetupError::TooOld { command: command.to_owned() }.into()
}

/// The command that an error says the user may not run.
fn forbidden_command(text: &str) -> Option<&str> {
    let (_, behind) = text.split_once("run the '")?;
    Some(behind.split_once('\'')?.0)
}

/// The command that an error says the server does not know. Quotes differ between versions.
fn unknown_command(text: &str) -> Option<String> {
    let (_, behind) = text.split_once("unknown command")?;
    let word = behind.split_whitespace().next()?;
    Some(word.trim_matches(['\'', '`', '"', ',']).to_uppercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(line: &str) -> RedisError {
        let value = redis::parse_redis_value(format!("-{line}\r\n").as_bytes()).unwrap();
        value.extract_error().unwrap_err()
    }

    #[test]
    fn an_error_of_the_server_is_named_by_who_has_to_act() {
        let user = LinkUser::new(Some("bell"), "commanding");
        for (line, reason, text) in [
            ("WRONGPASS invalid pair", "authentication", "ACL SETUSER bell on"),
            ("NOAUTH Authentication required.", "authentication", "password"),
            (
                "NOPERM User bell has no permissions to run the 'client|id' command",
                "permission",
                "ACL SETUSER bell '+client|id'",
            ),
            ("NOPERM No permissions to access a key", "rejected", "access a key"),
            ("ERR unknown command 'HELLO', with args", "version", "does not know HELLO"),
            ("ERR unknown command `spublish`, with", "version", "does not know SPUBLISH"),
            ("LOADING Redis is loading", "rejected", "LOADING"),
            ("READONLY You can't write", "not_master", "no longer a master"),
            ("OOM command not allowed", "rejected", "OOM"),
        ] {
            for failure in [user.failure(&reply(line)), user.rejected(line)] {
                assert_eq!(failure.reason().name(), reason, "{line}");
                assert!(failure.to_string().contains(text), "{failure}");
            }
        }
    }

    #[test]
    fn an_error_of_the_network_is_named_by_what_does_not_answer() {
        let user = LinkUser::new(None, "commanding");
        for (kind, reason) in
            [(io::ErrorKind::ConnectionRefused, "refused"), (io::ErrorKind::TimedOut, "timeout")]
        {
            assert_eq!(of_connect(&kind.into()).reason().name(), reason);
            assert_eq!(user.failure(&io::Error::from(kind).into()).reason().name(), reason);
        }
        let kind = io::ErrorKind::HostUnreachable;
        assert_eq!(of_connect(&kind.into()).reason().name(), "unreachable");
        let lost = user.failure(&io::Error::from(io::ErrorKind::BrokenPipe).into());
        assert_eq!(lost.reason().name(), "connection_lost");
    }
}
