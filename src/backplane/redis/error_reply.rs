//! Error replies of Redis: what they mean, and whether the command may be sent again.
//!
//! Most are transient: a replica is being promoted, topics are moving to another server, a
//! restarted server has to load its scripts. A command that was refused was not executed, so it may
//! be sent again.
//!
//! Invariant: a reply that is no error is no [`ErrorReply`].

use redis::Value;
use std::time::Duration;

/// Texts that only keys not written by this server cause.
const FOREIGN: [&str; 3] =
    ["WRONGTYPE", "equal or smaller than the target stream", "exhausted the last possible ID"];

/// The meaning of an error reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ErrorReply {
    /// NOSCRIPT: the server does not know the script.
    ScriptMissing,
    /// MOVED, ASK and the like: the topic is on another server of the Cluster, or moving there.
    Moved,
    /// READONLY: the server is a replica now.
    Demoted,
    /// NOREPLICAS, LOADING and the like: not at the moment.
    NotYet,
    /// The key was not written by this server ([`crate::backplane::redis::unreadable`]).
    Unreadable,
    /// No memory, no permission, or an error that this version does not know.
    Permanent,
}

impl ErrorReply {
    /// The error of a reply, if it is one.
    pub(super) fn of(answer: &Value) -> Option<ErrorReply> {
        let Value::ServerError(error) = answer else { return None };
        Some(ErrorReply::from_words(error.code(), error.details()))
    }

    /// By an error's code and text. Redis reports only in the text that a stream's last entry is
    /// not ours, and before version 7 any error of a script.
    pub(super) fn from_words(code: &str, others: Option<&str>) -> ErrorReply {
        let contains = |text: &&str| others.is_some_and(|others| others.contains(text));
        match ErrorReply::from_code(code) {
            ErrorReply::Permanent if FOREIGN.iter().any(contains) => ErrorReply::Unreadable,
            refusal => refusal,
        }
    }

    /// By an error's code.
    pub(super) fn from_code(code: &str) -> ErrorReply {
        match code {
            "NOSCRIPT" => ErrorReply::ScriptMissing,
            "MOVED" | "ASK" | "TRYAGAIN" | "CLUSTERDOWN" | "CROSSSLOT" => ErrorReply::Moved,
            "READONLY" => ErrorReply::Demoted,
            "NOREPLICAS" | "LOADING" | "MASTERDOWN" | "BUSY" => ErrorReply::NotYet,
            "UNREADABLE" | "WRONGTYPE" => ErrorReply::Unreadable,
            _ => ErrorReply::Permanent,
        }
    }

    /// How long to wait before it is sent again.
    pub(super) fn retry_after(self) -> Duration {
        match self {
            ErrorReply::ScriptMissing | ErrorReply::Demoted => Duration::ZERO,
            ErrorReply::Unreadable | ErrorReply::Permanent => Duration::ZERO,
            ErrorReply::Moved => Duration::from_millis(20),
            ErrorReply::NotYet => Duration::from_millis(100),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(line: &str) -> Option<ErrorReply> {
        ErrorReply::of(&redis::parse_redis_value(format!("{line}\r\n").as_bytes()).unwrap())
    }

    #[test]
    fn transient_errors_are_distinguished_from_permanent_ones() {
        for (line, refusal) in [
            ("+OK", None),
            (":1", None),
            ("-NOSCRIPT No matching script.", Some(ErrorReply::ScriptMissing)),
            ("-MOVED 1 127.0.0.1:1", Some(ErrorReply::Moved)),
            ("-ASK 1 127.0.0.1:1", Some(ErrorReply::Moved)),
            ("-TRYAGAIN Multiple keys request during rehashing of slot", Some(ErrorReply::Moved)),
            ("-CLUSTERDOWN Hash slot not served", Some(ErrorReply::Moved)),
            ("-READONLY You can't write against a read only replica.", Some(ErrorReply::Demoted)),
            ("-NOREPLICAS Not enough good replicas to write.", Some(ErrorReply::NotYet)),
            ("-OOM command not allowed", Some(ErrorReply::Permanent)),
            ("-UNREADABLE s is not as it was written", Some(ErrorReply::Unreadable)),
            ("-WRONGTYPE Operation against a key", Some(ErrorReply::Unreadable)),
            (
                "-ERR Error running script (call to f_1): @user_script:3: WRONGTYPE Operation",
                Some(ErrorReply::Unreadable),
            ),
            (
                "-ERR The ID specified in XADD is equal or smaller than the target stream top item \
                 script: 1, on @user_script:3.",
                Some(ErrorReply::Unreadable),
            ),
            ("-ERR value is not an integer", Some(ErrorReply::Permanent)),
            ("-NOPERM this user has no permissions", Some(ErrorReply::Permanent)),
        ] {
            assert_eq!(answered(line), refusal, "{line}");
        }
    }
}
