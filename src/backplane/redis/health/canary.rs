//! Does a message really come back? The only question whose answer means readiness.
//!
//! A socket may be open, a server may answer PING, and still nothing flows: a demoted master, a
//! wedged proxy, a frozen process. So this node publishes to itself, through both connections, on
//! the road that every message takes.
//!
//! Invariant: the age of the last canary that came back is the whole verdict.

use crate::backplane::redis::connection::is_text;
use crate::backplane::redis::error_reply::ErrorReply;
use crate::backplane::redis::pipeline::{PendingReply, poll_reply, send};
use crate::backplane::redis::unreadable::number;
use redis::aio::MultiplexedConnection;
use redis::{RedisResult, Value};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

/// See the module. One for each link.
pub struct Canary {
    interval: Duration,
    timeout: Duration,
    /// The newest that was sent, and when.
    last_sent: Option<(u64, Instant)>,
    /// When the last one came back, or the link began.
    back_at: Instant,
    has_come_back: bool,
    reply: Option<PendingReply<Vec<Value>>>,
    /// The replication that the server was part of when the link began.
    replication: Option<String>,
    /// The server said that the channel is elsewhere.
    is_redirected: bool,
    /// How long the last one took.
    pub rtt: Duration,
    /// How many were not back when the next one flew.
    pub missed: u64,
}

impl Canary {
    /// For a link that is ready at `now`; the first one flies at once.
    pub fn new(interval: Duration, timeout: Duration, now: Instant) -> Canary {
        Canary {
            interval,
            timeout,
            last_sent: None,
            back_at: now,
            has_come_back: false,
            reply: None,
            replication: None,
            is_redirected: false,
            rtt: Duration::ZERO,
            missed: 0,
        }
    }

    /// Whether one has come back on this link.
    pub fn has_come_back(&self) -> bool {
        self.has_come_back
    }

    /// Since one last came back.
    fn age(&self, now: Instant) -> Duration {
        now.duration_since(self.back_at)
    }

    /// Whether the server has said, since this was last asked, that the channel is elsewhere.
    pub fn take_redirected(&mut self) -> bool {
        std::mem::take(&mut self.is_redirected)
    }

    /// Lets one fly when it is time, by `publish` (`PUBLISH` or `SPUBLISH`). `Err`: none came back
    /// for too long, or the server refused one.
    pub fn poll(
        &mut self,
        cx: &mut Context<'_>,
        now: Instant,
        cmd: &MultiplexedConnection,
        publish: &'static str,
        channel: &str,
    ) -> Result<(), String> {
        if let Some(reply) = &mut self.reply
            && let Poll::Ready(answer) = poll_reply(reply, cx)
        {
            self.reply = None;
            let answers = answer.map_err(|error| format!("canary: {error}"))?;
            self.check(answers)?;
        }
        if self.age(now) > self.timeout {
            self.missed += 1;
            return Err(format!("no canary came back for {} ms", self.age(now).as_millis()));
        }
        if self.reply.is_none() && self.is_due(now) {
            let number = self.number(now);
            self.reply =
                Some(send(cx, send_probe(cmd.clone(), publish, channel.to_owned(), number)));
        }
        Ok(())
    }

    /// One came back, or something else was said on its channel. Whether it was one.
    pub fn handle_message(&mut self, body: &[u8], now: Instant) -> bool {
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
            self.rtt = now.duration_since(sent_at);
        }
        true
    }

    /// What goes well on a server that nobody else speaks to is worth nothing: it must still be the
    /// master that it was. A demoted one takes publishes, and tells its own subscribers alone.
    fn check(&mut self, answers: Vec<Value>) -> Result<(), String> {
        let nothing = [Value::Nil, Value::Nil, Value::Nil];
        let [published, role, info] = <[Value; 3]>::try_from(answers).unwrap_or(nothing);
        // Where the channel went is found out by whoever knows the Cluster; until then none comes
        // back.
        self.is_redirected |= ErrorReply::of(&published) == Some(ErrorReply::Moved);
        if !self.is_redirected {
            published.extract_error().map_err(|error| format!("canary: {error}"))?;
        }
        // Asked for by itself: whoever has a link may ask for it, and not everyone for `INFO`.
        if matches!(&role, Value::Array(parts) if !is_text(parts.first(), b"master")) {
            return Err("the server is no master any more".to_owned());
        }
        let info = match info {
            Value::BulkString(text) => String::from_utf8_lossy(&text).into_owned(),
            Value::VerbatimString { text, .. } => text,
            _ => return Ok(()), // an ACL that does not let us ask
        };
        let field = |name: &str| info.lines().find_map(|line| line.strip_prefix(name));
        let Some(replication) = field("master_replid:").map(str::trim) else { return Ok(()) };
        let known = self.replication.get_or_insert_with(|| replication.to_owned());
        if known != replication {
            return Err("the server has been a replica of another one".to_owned());
        }
        Ok(())
    }

    fn is_due(&self, now: Instant) -> bool {
        self.last_sent.is_none_or(|(_, at)| now.duration_since(at) >= self.interval)
    }

    fn number(&mut self, now: Instant) -> u64 {
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

    proptest::proptest! {
        #[test]
        fn whatever_comes_on_its_channel_or_is_answered_is_taken(
            body in hostile::text(),
            answers in proptest::collection::vec(hostile::value(), 0..5),
        ) {
            let start = Instant::now();
            let mut canary = Canary::new(Duration::from_secs(1), Duration::from_secs(3), start);
            canary.number(start);
            let is_ours = body == b"1";
            proptest::prop_assert_eq!(canary.handle_message(&body, start), is_ours);
            let _ = canary.check(answers);
        }
    }
}
