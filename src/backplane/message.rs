//! A message between nodes: what a publish becomes, and what members' events are made from.

use crate::ids::{ConflateKey, Position, TopicKind, TopicName};
use crate::link::{Origin, Publish};
use crate::protocol::Event;
use std::time::Duration;

/// How long an idempotency key is remembered.
pub const IDEMPOTENCY_TTL: Duration = Duration::from_secs(300);

/// A message of a topic, borrowed from the bytes it arrived in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message<'a> {
    /// The topic's name with its prefix (`r:`, `u:`), or `*`.
    pub topic: &'a str,
    /// The authenticated user who published it, if any.
    pub from: Option<&'a str>,
    /// What the token of that user says about it, as JSON, where the topic shows it.
    pub info: Option<&'a str>,
    /// The payload, byte for byte.
    pub payload: &'a [u8],
    /// The publishing connection, if it asked not to receive its own message.
    pub except: Option<Origin>,
    /// Key under which a newer message replaces it for slow consumers.
    pub conflate_key: Option<ConflateKey>,
    /// Idempotency key: a retry with the same key is stored once.
    pub key: Option<&'a str>,
}

impl<'a> Message<'a> {
    /// The message of a publish.
    pub fn of(publish: &'a Publish) -> Message<'a> {
        Message {
            topic: publish.topic.as_str(),
            from: publish.from.as_ref().and_then(user),
            info: publish.info.as_deref(),
            payload: &publish.payload,
            except: publish.except,
            conflate_key: publish.conflate_key,
            key: publish.key.as_deref(),
        }
    }

    /// The event that members receive.
    pub fn event<'b>(&self, topic: TopicKind<'b>, position: Option<Position>) -> Event<'b>
    where
        'a: 'b,
    {
        let Message { from, info, payload, .. } = *self;
        Event::Message { topic, from, info, payload, position }
    }
}

/// The user of a `u:<user>` topic.
fn user(topic: &TopicName) -> Option<&str> {
    match topic.kind() {
        TopicKind::User(user) => Some(user),
        TopicKind::Room(_) | TopicKind::All => None,
    }
}
