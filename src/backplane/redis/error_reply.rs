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
pub enum Refusal {
    /// It does not know the script.
    Unloaded,
    /// The topic is on another server of the Cluster, or on its way there.
    Elsewhere,
    /// It is a replica now.
    Demoted,
    /// It cannot at the moment: it has too few replicas, or reads its data.
    NotNow,
    /// What it has there is nothing that we wrote ([`crate::backplane::redis::unreadable`]).
    Unreadable,
    /// It will not: no memory, no permission, or something that this version does not know.
    ForGood,
}

impl Refusal {
    /// What an answer refuses.
    pub fn of(answer: &Value) -> Option<Refusal> {
        let Value::ServerError(error) = answer else { return None };
        Some(Refusal::by_words(error.code(), error.details()))
    }

    /// By the first word of an error, and the others. A stream says only there that its last message
    /// is none of ours; before Redis 7 whatever goes wrong in a script stands there.
    pub fn by_words(code: &str, others: Option<&str>) -> Refusal {
        let says = |text: &&str| others.is_some_and(|others| others.contains(text));
        match Refusal::by_code(code) {
            Refusal::ForGood if FOREIGN.iter().any(says) => Refusal::Unreadable,
            refusal => refusal,
        }
    }

    /// By the first word of an error.
    pub fn by_code(code: &str) -> Refusal {
        match code {
            "NOSCRIPT" => Refusal::Unloaded,
            "MOVED" | "ASK" | "TRYAGAIN" | "CLUSTERDOWN" | "CROSSSLOT" => Refusal::Elsewhere,
            "READONLY" => Refusal::Demoted,
            "NOREPLICAS" | "LOADING" | "MASTERDOWN" | "BUSY" => Refusal::NotNow,
            "UNREADABLE" | "WRONGTYPE" => Refusal::Unreadable,
            _ => Refusal::ForGood,
        }
    }

    /// Whether the same may be asked again.
    pub fn is_for_now(self) -> bool {
        !matches!(self, Refusal::Unreadable | Refusal::ForGood)
    }

    /// After how long.
    pub fn pause(self) -> Duration {
        match self {
            Refusal::Unloaded | Refusal::Demoted => Duration::ZERO,
            Refusal::Unreadable | Refusal::ForGood => Duration::ZERO,
            Refusal::Elsewhere => Duration::from_millis(20),
            Refusal::NotNow => Duration::from_millis(100),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(line: &str) -> Option<Refusal> {
        Refusal::of(&redis::parse_redis_value(format!("{line}\r\n").as_bytes()).unwrap())
    }

    #[test]
    fn what_will_be_done_later_is_told_from_what_will_not() {
        for (line, refusal) in [
            ("+OK", None),
            (":1", None),
            ("-NOSCRIPT No matching script.", Some(Refusal::Unloaded)),
            ("-MOVED 1 127.0.0.1:1", Some(Refusal::Elsewhere)),
            ("-ASK 1 127.0.0.1:1", Some(Refusal::Elsewhere)),
            ("-TRYAGAIN Multiple keys request during rehashing of slot", Some(Refusal::Elsewhere)),
            ("-CLUSTERDOWN Hash slot not served", Some(Refusal::Elsewhere)),
            ("-READONLY You can't write against a read only replica.", Some(Refusal::Demoted)),
            ("-NOREPLICAS Not enough good replicas to write.", Some(Refusal::NotNow)),
            ("-OOM command not allowed", Some(Refusal::ForGood)),
            ("-UNREADABLE s is not as it was written", Some(Refusal::Unreadable)),
            ("-WRONGTYPE Operation against a key", Some(Refusal::Unreadable)),
            (
                "-ERR Error running script (call to f_1): @user_script:3: WRONGTYPE Operation",
                Some(Refusal::Unreadable),
            ),
            (
                "-ERR The ID specified in XADD is equal or smaller than the target stream top item \
                 script: 1, on @user_script:3.",
                Some(Refusal::Unreadable),
            ),
            ("-ERR value is not an integer", Some(Refusal::ForGood)),
            ("-NOPERM this user has no permissions", Some(Refusal::ForGood)),
        ] {
            assert_eq!(answered(line), refusal, "{line}");
        }
    }
}
