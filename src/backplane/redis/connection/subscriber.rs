//! A connection that only subscribes, polled by the loop that uses it: no task, no channel, no
//! copy.
//!
//! Channels and bodies are handed out where they lie in the read buffer, so a message costs no
//! allocation. Redis sends three kinds of things here, which are recognized by what they are, never
//! by what was asked: messages; confirmations, which may also come unasked, as when a Cluster's slot
//! moves away (`sunsubscribe`); and replies, which come in the order of their commands. A SUBSCRIBE
//! is confirmed, or refused by an error among the replies. So a `PING token` behind it is a barrier:
//! when its token comes back, everything before it has been answered.
//!
//! # How to poll it
//!
//! [`Subscriber::poll`] writes, then reads until there is nothing more. `Ok(false)`: nothing was
//! handed out, and the task is woken when bytes come, or when a socket that was full takes more.
//! `Ok(true)`: something was handed out, or one turn's share of bytes was read; poll again before
//! sleeping, because bytes that lie in the buffer already wake nobody. A caller of
//! [`Subscriber::write`] polls afterwards: what is queued goes out then and not before.
//!
//! # What bounds it
//!
//! No queue of messages is here. One that is not polled leaves them in the kernel, whose buffers
//! fill, and then in the server, which cuts the connection at its `client-output-buffer-limit
//! pubsub`; that is a lost link, which everyone sees. The read buffer is [`BUFFER_BYTES`], grows
//! with the bytes of a bigger message as they come (to twice of what is there, and no further than
//! the message), and shrinks as soon as it is empty. A message or reply that is longer than allowed
//! is never in it: its bytes are dropped as they come, and [`SubscriberEvent::TooLong`] reports it.
//! What is queued to be written is bounded by the caller, who asks [`Subscriber::unsent`].
//!
//! Invariant: nothing is handed out twice, out of order, or in part; after an error nothing more.

pub use crate::backplane::redis::connection::buffers::BUFFER_BYTES;

use crate::backplane::redis::connection::buffers::{ReadBuffer, WriteBuffer};
use crate::backplane::redis::connection::dial::dial;
use crate::backplane::redis::connection::reply_text::{ErrorReplyText, reply_text};
use crate::backplane::redis::connection::resp::{MalformedResp, RespItems, RespValue};
use crate::backplane::redis::failure::classify::LinkUser;
use crate::backplane::redis::failure::{LinkError, Outage, SetupError};
use crate::dial::DialedStream;
use redis::{ConnectionInfo, RedisConnectionInfo};
use std::future::poll_fn;
use std::io;
use std::task::{Context, Poll};
use std::time::Duration;

/// Read in one turn, so that one big message does not keep the loop from everything else.
const BYTES_PER_POLL: usize = 1024 * 1024;

/// Something that the server sent, borrowed from the read buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SubscriberEvent<'a> {
    /// A published message (`message`, `smessage`).
    Message {
        /// The channel.
        channel: &'a [u8],
        /// The message as it was published.
        body: &'a [u8],
    },
    /// A published message that was longer than allowed, and was dropped.
    TooLong {
        /// The channel.
        channel: &'a [u8],
    },
    /// The channel is subscribed (`subscribe`, `ssubscribe`).
    Subscribed {
        /// The channel.
        channel: &'a [u8],
    },
    /// The channel is not subscribed any more, whether that was asked or not (`unsubscribe`,
    /// `sunsubscribe`).
    Unsubscribed {
        /// The channel. Empty: all were to be unsubscribed, and there were none.
        channel: &'a [u8],
    },
    /// A reply to a command other than a confirmed SUBSCRIBE, in the order of the commands.
    Reply(CommandReply<'a>),
}

/// A reply of [`SubscriberEvent::Reply`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommandReply<'a> {
    /// To `PING`, for example.
    Text(&'a [u8]),
    /// To `CLIENT ID`, for example.
    Number(i64),
    /// An error as the server sent it: `MOVED 1234 host:port`, `NOPERM …`.
    Error(&'a [u8]),
    /// A type that none of our commands is answered with.
    Other,
}

/// A subscriber connection. Owned by its link.
pub struct Subscriber {
    stream: DialedStream,
    read_buffer: ReadBuffer,
    write_buffer: WriteBuffer,
    /// Of each [`Subscriber::ask`].
    timeout: Duration,
    /// The user, for errors.
    user: LinkUser,
    /// Why the connection is lost, once it is.
    lost: Option<LinkError>,
}

impl Subscriber {
    /// Connects to a master and authenticates in RESP3 with the client name `name`, all within
    /// `timeout`. `info` comes from the URL; `tls_ca_file`: the authorities that may have signed
    /// the certificate; `string_bytes_max`: the longest message or reply.
    pub async fn connect(
        info: &ConnectionInfo,
        tls_ca_file: Option<&str>,
        name: &str,
        timeout: Duration,
        string_bytes_max: usize,
    ) -> Result<Subscriber, LinkError> {
        let user = LinkUser::new(info.redis_settings().username(), "subscribing");
        let connected = async {
            let stream = dial(info.addr(), tls_ca_file).await?;
            let read_buffer = ReadBuffer::new(string_bytes_max);
            let write_buffer = WriteBuffer::default();
            let mut subscriber =
                Subscriber { stream, read_buffer, write_buffer, timeout, user, lost: None };
            subscriber.authenticate(info.redis_settings(), name).await?;
            Ok(subscriber)
        };
        tokio::time::timeout(timeout, connected).await.map_err(|_| Outage::Timeout(""))?
    }

    /// Sends one command and waits for its reply as text, one line for each part. Only before
    /// anything is subscribed: messages that arrive before the reply are lost.
    pub async fn ask(&mut self, words: &[&[u8]]) -> Result<String, LinkError> {
        let timeout = self.timeout;
        let answered = tokio::time::timeout(timeout, self.ask_in_time(words));
        answered.await.map_err(|_| Outage::Timeout(""))?
    }

    /// Sends what was written, with a `PING token` behind it, and waits for its answer. Returns the
    /// errors among the replies. Only before anything is subscribed for good, as [`Self::ask`].
    pub async fn refusals_until(&mut self, token: &str) -> Result<Vec<String>, LinkError> {
        self.write([&b"PING"[..], token.as_bytes()].into_iter());
        let timeout = self.timeout;
        let answered = async {
            let mut refusals = Vec::new();
            loop {
                match self.reply().await? {
                    Ok(text) if text == token => return Ok(refusals),
                    Ok(_) => {}
                    Err(ErrorReplyText(error)) => {
                        let is_of_ping = error.contains("'ping'");
                        refusals.push(error);
                        if is_of_ping {
                            return Ok(refusals);
                        }
                    }
                }
            }
        };
        tokio::time::timeout(timeout, answered).await.map_err(|_| Outage::Timeout(""))?
    }

    /// Queues a command, sent by the next [`Subscriber::poll`].
    pub fn write<'a>(&mut self, words: impl ExactSizeIterator<Item = &'a [u8]>) {
        self.write_buffer.push(words);
    }

    /// Bytes that are queued and that the kernel (or TLS, which keeps a few) has not taken.
    pub fn unsent(&self) -> usize {
        self.write_buffer.len()
    }

    /// Bytes that both buffers occupy.
    pub fn heap_bytes(&self) -> usize {
        self.read_buffer.heap_bytes() + self.write_buffer.heap_bytes()
    }

    /// Writes what is queued, reads what has arrived, and passes at most `events_max` events to
    /// `on_event`.
    ///
    /// The module describes the result. `Err`: why the connection is lost; everything that arrived
    /// in whole before was passed on.
    pub fn poll(
        &mut self,
        cx: &mut Context<'_>,
        events_max: usize,
        mut on_event: impl FnMut(SubscriberEvent<'_>),
    ) -> Result<bool, LinkError> {
        if let Some(why) = &self.lost {
            return Err(why.clone());
        }
        let polled = self.poll_items(cx, events_max, |item| {
            event_of(item).map(|event_of| event_of.into_iter().for_each(&mut on_event))
        });
        polled.map_err(|why| {
            let lost = match why {
                PollError::Ended(why) => self.user.lost(&why),
                PollError::Malformed(why) => Outage::Protocol(why.to_string()).into(),
            };
            self.lost.insert(lost).clone()
        })
    }

    /// The same for RESP values. Values that are no event count as well: they also take time.
    fn poll_items(
        &mut self,
        cx: &mut Context<'_>,
        items_max: usize,
        mut on_item: impl FnMut(RespValue<'_>) -> Result<(), MalformedResp>,
    ) -> Result<bool, PollError> {
        assert!(items_max > 0, "nothing would ever come");
        self.write_buffer.poll_flush(&mut self.stream, cx).map_err(io_error_text)?;
        let (mut items, mut bytes) = (0, 0);
        loop {
            while let Some(item) = self.read_buffer.next().map_err(PollError::Malformed)? {
                on_item(item).map_err(PollError::Malformed)?;
                items += 1;
                if items == items_max {
                    return Ok(true);
                }
            }
            if self.read_buffer.take_out_too_long() {
                continue;
            }
            if bytes >= BYTES_PER_POLL {
                return Ok(true);
            }
            // Until it is pending, or the waker would not be registered: bytes that TLS has already
            // taken from the socket wake nobody.
            match self.read_buffer.poll_fill(&mut self.stream, cx, BYTES_PER_POLL - bytes) {
                Poll::Pending => return Ok(items > 0),
                Poll::Ready(read) => bytes += read.map_err(io_error_text)?,
            }
        }
    }

    /// Without a timeout of its own.
    async fn ask_in_time(&mut self, words: &[&[u8]]) -> Result<String, LinkError> {
        self.write(words.iter().copied());
        self.reply().await?.map_err(|ErrorReplyText(error)| {
            let command = String::from_utf8_lossy(words.first().expect("a command"));
            match self.user.rejected(&error) {
                LinkError::Outage(Outage::Rejected(error)) => {
                    Outage::Rejected(format!("{command}: {error}")).into()
                }
                failure => failure,
            }
        })
    }

    async fn authenticate(
        &mut self,
        who: &RedisConnectionInfo,
        name: &str,
    ) -> Result<(), LinkError> {
        let mut hello: Vec<&[u8]> = vec![b"HELLO", b"3"];
        if let Some(password) = who.password() {
            let user = who.username().unwrap_or("default");
            hello.extend([&b"AUTH"[..], user.as_bytes(), password.as_bytes()]);
        }
        hello.extend([&b"SETNAME"[..], name.as_bytes()]);
        let refused = self.ask_in_time(&hello).await.map(|_| ());
        refused.map_err(|error| without_secret(error, who.password()))?;
        if who.db() != 0 {
            self.ask_in_time(&[b"SELECT", itoa::Buffer::new().format(who.db()).as_bytes()]).await?;
        }
        match self.ask_in_time(&[b"ROLE"]).await {
            Ok(role) if role.lines().next() == Some("master") => Ok(()),
            // A replica accepts subscriptions and publishes, but the other nodes do not see them.
            Ok(_) => Err(Outage::NotMaster.into()),
            // Reported on the connection for commands, with everything else that is missing.
            Err(LinkError::Setup(SetupError::Forbidden { .. })) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Waits for the next reply, which may be an error.
    async fn reply(&mut self) -> Result<Result<String, ErrorReplyText>, LinkError> {
        let mut reply = None;
        let polled = poll_fn(|cx| {
            loop {
                let polled = self.poll_items(cx, 1, |item| {
                    if !matches!(item, RespValue::Push(_)) {
                        reply = Some(reply_text(item));
                    }
                    Ok(())
                });
                match (polled, reply.take()) {
                    (Err(error), _) => return Poll::Ready(Err(error)),
                    (Ok(_), Some(reply)) => return Poll::Ready(Ok(reply)),
                    (Ok(true), None) => {}
                    (Ok(false), None) => return Poll::Pending,
                }
            }
        });
        polled.await.map_err(|error| match error {
            PollError::Ended(why) => self.user.lost(&why),
            PollError::Malformed(why) => Outage::Protocol(why.to_string()).into(),
        })
    }
}

/// Why a connection is lost.
enum PollError {
    /// The socket, or the server.
    Ended(String),
    /// It does not speak RESP.
    Malformed(MalformedResp),
}

/// `None` for kinds of pushes that none of our commands causes.
fn event_of(item: RespValue<'_>) -> Result<Option<SubscriberEvent<'_>>, MalformedResp> {
    let reply = match item {
        RespValue::Push(parts) => return push_event(parts),
        RespValue::Simple(text) | RespValue::Bulk(text) | RespValue::Verbatim(text) => {
            CommandReply::Text(text)
        }
        RespValue::Int(number) => CommandReply::Number(number),
        RespValue::Error(text) => CommandReply::Error(text),
        _ => CommandReply::Other,
    };
    Ok(Some(SubscriberEvent::Reply(reply)))
}

fn push_event(mut parts: RespItems<'_>) -> Result<Option<SubscriberEvent<'_>>, MalformedResp> {
    let Some(RespValue::Bulk(kind)) = parts.next() else {
        return Err(MalformedResp("a push has no kind"));
    };
    let event_of = match (kind, parts.next(), parts.next()) {
        (b"message" | b"smessage", Some(RespValue::Bulk(channel)), Some(RespValue::Bulk(body))) => {
            SubscriberEvent::Message { channel, body }
        }
        // A server sends no null here: it stands for what was too long.
        (b"message" | b"smessage", Some(RespValue::Bulk(channel)), Some(RespValue::Null)) => {
            SubscriberEvent::TooLong { channel }
        }
        (b"subscribe" | b"ssubscribe", Some(RespValue::Bulk(channel)), _) => {
            SubscriberEvent::Subscribed { channel }
        }
        (b"unsubscribe" | b"sunsubscribe", Some(RespValue::Bulk(channel)), _) => {
            SubscriberEvent::Unsubscribed { channel }
        }
        (b"unsubscribe" | b"sunsubscribe", Some(RespValue::Null), _) => {
            SubscriberEvent::Unsubscribed { channel: b"" }
        }
        (b"message" | b"smessage", ..)
        | (b"subscribe" | b"ssubscribe", ..)
        | (b"unsubscribe" | b"sunsubscribe", ..) => {
            return Err(MalformedResp("a push lacks what its kind says"));
        }
        _ => return Ok(None),
    };
    Ok(Some(event_of))
}

/// Proxies repeat the arguments of a command in an error, and one of those of HELLO is the
/// password, maybe truncated.
fn without_secret(error: LinkError, password: Option<&str>) -> LinkError {
    let hide = |text: String| {
        let text = text.split(", with args").next().expect("split gives at least one");
        match password {
            Some(password) if !password.is_empty() => text.replace(password, "(the password)"),
            _ => text.to_owned(),
        }
    };
    match error {
        LinkError::Outage(Outage::Rejected(text)) => Outage::Rejected(hide(text)).into(),
        LinkError::Setup(SetupError::Unauthenticated { user, error }) => {
            SetupError::Unauthenticated { user, error: hide(error) }.into()
        }
        other => other,
    }
}

fn io_error_text(error: io::Error) -> PollError {
    PollError::Ended(match error.kind() {
        io::ErrorKind::UnexpectedEof => "the server closed it".to_owned(),
        _ => error.to_string(),
    })
}
