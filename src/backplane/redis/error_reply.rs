//! Why a server does not do what it was asked, and whether it will.
//!
//! Most refusals are of the moment: a replica is being promoted, topics are moving to another server,
//! a restarted server has to be told its scripts again. Whatever was refused was not done, so it may
//! be sent again, however often.
//!
//! Invariant: an answer that is no error is no refusal.

use redis::Value;
use std::time::Duration;

/// What only keys are told of that we did not write.
const FOREIGN: [&str; 3] =
    ["WRONGTYPE", "equal or smaller than the target stream", "exhausted the last possible ID"];

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorReply {
    /// It does not know the script.
    ScriptMissing,
    /// The topic is on another server of the Cluster, or on its way there.
    Moved,
    /// It is a replica now.
    Demoted,
    /// It cannot at the moment: it has too few replicas, or reads its data.
    NotYet,
    /// What it has there is nothing that we wrote ([`crate::backplane::redis::unreadable`]).
    Unreadable,
    /// It will not: no memory, no permission, or something that this version does not know.
    Permanent,
}

impl ErrorReply {
    /// What an answer refuses.
    pub fn of(answer: &Value) -> Option<ErrorReply> {
        let Value::ServerError(error) = answer else { return None };
        Some(ErrorReply::from_words(error.code(), error.details()))
    }

    /// By the first word of an error, and the others. A stream says only there that its last message
    /// is none of ours; before Redis 7 whatever goes wrong in a script stands there.
    pub fn from_words(code: &str, others: Option<&str>) -> ErrorReply {
        let contains = |text: &&str| others.is_some_and(|others| others.contains(text));
        match ErrorReply::from_code(code) {
            ErrorReply::Permanent if FOREIGN.iter().any(contains) => ErrorReply::Unreadable,
            refusal => refusal,
        }
    }

    /// By the first word of an error.
    pub fn from_code(code: &str) -> ErrorReply {
        match code {
            "NOSCRIPT" => ErrorReply::ScriptMissing,
            "MOVED" | "ASK" | "TRYAGAIN" | "CLUSTERDOWN" | "CROSSSLOT" => ErrorReply::Moved,
            "READONLY" => ErrorReply::Demoted,
            "NOREPLICAS" | "LOADING" | "MASTERDOWN" | "BUSY" => ErrorReply::NotYet,
            "UNREADABLE" | "WRONGTYPE" => ErrorReply::Unreadable,
            _ => ErrorReply::Permanent,
        }
    }

    /// Whether the same may be asked again.
    pub fn is_transient(self) -> bool {
        !matches!(self, ErrorReply::Unreadable | ErrorReply::Permanent)
    }

    /// After how long.
    pub fn retry_after(self) -> Duration {
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
    fn what_will_be_done_later_is_told_from_what_will_not() {
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
