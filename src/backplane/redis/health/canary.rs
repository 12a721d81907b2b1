//! The canary: a message that this node publishes to itself, through both connections, on the path
//! that every message takes. Its return means that the server works.
//!
//! A socket may be open and a server may answer PING while no message arrives: a demoted master, a
//! wedged proxy, a frozen process.
//!
//! Invariant: the age of the last canary that came back is the whole verdict.

use crate::backplane::redis::connection::generation::{Replication, replication_id};
use crate::backplane::redis::connection::link::ServerLink;
use crate::backplane::redis::connection::reply::is_master;
use crate::backplane::redis::error_reply::ErrorReply;
use crate::backplane::redis::failure::classify::LinkUser;
use crate::backplane::redis::failure::{LinkError, Outage};
use crate::backplane::redis::pipeline::{PendingReply, poll_reply, send};
use crate::backplane::redis::unreadable::number;
use redis::aio::MultiplexedConnection;
use redis::{RedisResult, Value};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

/// The canary of one link, which owns it.
pub(crate) struct Canary {
    interval: Duration,
    timeout: Duration,
    /// Number of the last canary sent, and when.
    last_sent: Option<(u64, Instant)>,
    /// When the last one came back, or the link began.
    back_at: Instant,
    has_come_back: bool,
    /// When the newest that came back was sent.
    proved_at: Option<Instant>,
    reply: Option<PendingReply<Vec<Value>>>,
    /// The server's replication id, where the link has no generation.
    replication: Option<String>,
    /// Another replication id that the server has chosen for the same data.
    renamed: Option<String>,
    /// The next one is sent at once.
    is_wanted: bool,
    /// The server has redirected the channel.
    is_redirected: bool,
    /// How long the last one took.
    pub rtt: Duration,
    /// Number of canaries that were not back when the next one was sent.
    pub missed: u64,
}

impl Canary {
    /// For a link that begins at `now`; the first canary is sent at once.
    pub(crate) fn new(interval: Duration, timeout: Duration, now: Instant) -> Canary {
        Canary {
            interval,
            timeout,
            last_sent: None,
            back_at: now,
            has_come_back: false,
            proved_at: None,
            reply: None,
            replication: None,
            renamed: None,
            is_wanted: false,
            is_redirected: false,
            rtt: Duration::ZERO,
            missed: 0,
        }
    }

    /// Whether one has come back on this link.
    pub(crate) fn has_come_back(&self) -> bool {
        self.has_come_back
    }

    /// When the newest that came back was sent: all that was published before has arrived.
    pub(crate) fn proved_at(&self) -> Option<Instant> {
        self.proved_at
    }

    /// Time since one last came back.
    fn age(&self, now: Instant) -> Duration {
        now.duration_since(self.back_at)
    }

    /// Another replication id that the server has chosen for the data that it has, since the last
    /// call.
    pub(crate) fn take_renamed(&mut self) -> Option<String> {
        self.renamed.take()
    }

    /// Sends the next one at once: something about the server is not as it was believed to be.
    pub(crate) fn hurry(&mut self) {
        self.is_wanted = true;
    }

    /// Whether the server has redirected the channel since the last call.
    pub(crate) fn take_redirected(&mut self) -> bool {
        std::mem::take(&mut self.is_redirected)
    }

    /// Sends one when it is due, with `publish` (`PUBLISH` or `SPUBLISH`). `Err`: none came back
    /// for too long, or the server refused one.
    pub(crate) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        now: Instant,
        link: &ServerLink,
        publish: &'static str,
        channel: &str,
    ) -> Result<(), LinkError> {
        if let Some(reply) = &mut self.reply
            && let Poll::Ready(answer) = poll_reply(reply, cx)
        {
            self.reply = None;
            let answers = answer.map_err(|error| link.user.failure(&error))?;
            self.check(answers, &link.user, &link.generation)?;
        }
        if self.age(now) > self.timeout {
            self.missed += 1;
            return Err(Outage::Canary { silent_ms: self.age(now).as_millis() }.into());
        }
        if self.reply.is_none() && self.is_due(now) {
            let number = self.number(now);
            self.reply =
                Some(send(cx, send_probe(link.cmd.clone(), publish, channel.to_owned(), number)));
        }
        Ok(())
    }

    /// Whether a message is a canary, of this link or of an earlier one.
    pub(crate) fn is_one(body: &[u8]) -> bool {
        number(body).is_some()
    }

    /// Handles a message on the canary's channel. Returns whether it was one of ours.
    pub(crate) fn handle_message(&mut self, body: &[u8], now: Instant) -> bool {
        let (Some(number), Some((newest, sent_at))) = (number(body), self.last_sent) else {
            return false;
        };
        if !(1..=newest).contains(&number) {
            return false;
        }
        // An older one counts as well: under load it may take longer than the interval.
        self.back_at = now;
        self.has_come_back = true;
        if number == newest {
            self.proved_at = Some(sent_at);
            self.rtt = now.duration_since(sent_at);
        }
        true
    }

    /// Checks that the server is still the master that it was. A demoted one accepts publishes, and
    /// sends them to its own subscribers only.
    fn check(
        &mut self,
        answers: Vec<Value>,
        user: &LinkUser,
        generation: &str,
    ) -> Result<(), LinkError> {
        let nothing = [Value::Nil, Value::Nil, Value::Nil];
        let [published, role, info] = <[Value; 3]>::try_from(answers).unwrap_or(nothing);
        // The topology finds out where the channel went; until then none comes back.
        self.is_redirected |= ErrorReply::of(&published) == Some(ErrorReply::Moved);
        if !self.is_redirected {
            published.extract_error().map_err(|error| user.failure(&error))?;
        }
        // ROLE, because a user with a link may call it; INFO may be forbidden.
        if matches!(role, Value::Array(_)) && !is_master(&role) {
            return Err(Outage::Demoted.into());
        }
        let info = match info {
            Value::BulkString(text) => String::from_utf8_lossy(&text).into_owned(),
            Value::VerbatimString { text, .. } => text,
            _ => return Ok(()), // an ACL that forbids INFO
        };
        let Some(Replication { id, is_promoted }) = Replication::of(&info) else { return Ok(()) };
        let known = match replication_id(generation) {
            Some(known) => known,
            None => self.replication.get_or_insert_with(|| id.clone()),
        };
        if known == id {
            return Ok(());
        }
        if is_promoted {
            return Err(Outage::Replaced.into());
        }
        self.replication = Some(id.clone());
        self.renamed = Some(id);
        Ok(())
    }

    fn is_due(&self, now: Instant) -> bool {
        self.is_wanted
            || self.last_sent.is_none_or(|(_, at)| now.duration_since(at) >= self.interval)
    }

    fn number(&mut self, now: Instant) -> u64 {
        self.is_wanted = false;
        let number = self.last_sent.map_or(1, |(number, _)| number + 1);
        if self.last_sent.is_some_and(|(_, at)| self.back_at < at) {
            self.missed += 1;
        }
        self.last_sent = Some((number, now));
        number
    }
}

async fn send_probe(
    mut cmd: MultiplexedConnection,
    publish: &'static str,
    channel: String,
    number: u64,
) -> RedisResult<Vec<Value>> {
    let mut pipeline = redis::pipe();
    pipeline.cmd(publish).arg(channel).arg(number);
    pipeline.cmd("ROLE");
    pipeline.cmd("INFO").arg("replication");
    cmd.send_packed_commands(&pipeline, 0, 3).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backplane::redis::hostile;

    #[test]
    fn only_a_canary_that_was_sent_is_a_sign_of_life() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut canary = Canary::new(Duration::from_secs(1), Duration::from_secs(3), start);
        assert!(!canary.handle_message(b"1", at(1)), "none was sent");
        assert!(canary.is_due(start));
        assert_eq!(canary.number(at(2)), 1);
        assert!(!canary.is_due(at(3)));
        assert!(!canary.handle_message(b"nonsense", at(3)));
        assert!(!canary.handle_message(b"7", at(3)));
        assert!(!canary.has_come_back());
        assert!(canary.handle_message(b"1", at(5)));
        assert!(canary.has_come_back());
        assert_eq!(
            (canary.rtt, canary.age(at(9))),
            (Duration::from_millis(3), Duration::from_millis(4))
        );
        assert_eq!(canary.missed, 0);
        assert_eq!((canary.number(at(1002)), canary.number(at(2002))), (2, 3));
        assert_eq!(canary.missed, 1);
        assert!(canary.handle_message(b"2", at(2010)));
        assert_eq!(canary.age(at(2010)), Duration::ZERO, "late, but back");
    }

    #[test]
    fn a_server_that_was_promoted_is_left_and_one_with_another_id_for_its_data_is_not() {
        let start = Instant::now();
        let (one, two, none) = ("1".repeat(40), "2".repeat(40), "0".repeat(40));
        let answers = |id: &str, before: &str| {
            let info = format!("role:master\r\nmaster_replid:{id}\r\nmaster_replid2:{before}\r\n");
            vec![Value::Int(0), Value::Nil, Value::BulkString(info.into())]
        };
        let user = LinkUser::new(None, "commanding");
        let generation = "a".repeat(16) + &one[..16];
        for generation in [&generation[..], ""] {
            let canary = || Canary::new(Duration::from_secs(1), Duration::from_secs(3), start);
            let mut checked = canary();
            checked.check(answers(&one, &none), &user, generation).expect("as it was");
            assert_eq!(checked.take_renamed(), None);
            checked.check(answers(&two, &none), &user, generation).expect("the same data");
            assert_eq!(checked.take_renamed().as_deref(), Some(&two[..16]));
            let mut checked = canary();
            checked.check(answers(&one, &none), &user, generation).expect("as it was");
            assert!(checked.check(answers(&two, &one), &user, generation).is_err(), "promoted");
        }
        // An id that changed between the link's beginning and its first canary.
        let mut first = Canary::new(Duration::from_secs(1), Duration::from_secs(3), start);
        first.check(answers(&two, &none), &user, &generation).expect("the same data");
        assert_eq!(first.take_renamed().as_deref(), Some(&two[..16]));
    }

    proptest::proptest! {
        #[test]
        fn any_message_and_any_reply_is_handled(
            body in hostile::text(),
            answers in proptest::collection::vec(hostile::value(), 0..5),
        ) {
            let start = Instant::now();
            let mut canary = Canary::new(Duration::from_secs(1), Duration::from_secs(3), start);
            canary.number(start);
            let is_ours = body == b"1";
            proptest::prop_assert_eq!(canary.handle_message(&body, start), is_ours);
            let _ = canary.check(answers, &LinkUser::new(None, "commanding"), "");
        }
    }
}
