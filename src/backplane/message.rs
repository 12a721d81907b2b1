//! A message between the nodes: what a publish becomes, and what an event for members is made from.

use crate::backplane::envelope;
use crate::ids::{ConflateKey, Position, TopicKind, TopicName};
use crate::link::{Origin, Publish};
use crate::protocol::Event;
use bytes::Bytes;

/// A message of a topic, still in the bytes it came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message<'a> {
    /// The topic's whole name.
    pub topic: &'a str,
    /// The authenticated user who sent it, if one did.
    pub from: Option<&'a str>,
    /// The payload, byte for byte.
    pub payload: &'a [u8],
    /// A connection that must not receive it.
    pub except: Option<Origin>,
    /// What it is about, in a room that conflates for slow members.
    pub conflate_key: Option<ConflateKey>,
    /// What makes a retry of it harmless, where it is stored.
    pub key: Option<&'a str>,
}

impl<'a> Message<'a> {
    /// A publish as its receivers see it.
    pub fn of(publish: &'a Publish) -> Message<'a> {
        Message {
            topic: publish.topic.as_str(),
            from: publish.from.as_ref().and_then(user),
            payload: &publish.payload,
            except: publish.except,
            conflate_key: publish.conflate_key,
            key: publish.key.as_deref(),
        }
    }

    /// As the members of the topic receive it.
    pub fn event<'b>(&self, topic: TopicKind<'b>, position: Option<Position>) -> Event<'b>
    where
        'a: 'b,
    {
        Event::Message { topic, from: self.from, payload: self.payload, position }
    }

    /// As it is stored, and as it travels between nodes.
    pub fn stored(&self) -> Bytes {
        let mut body = Vec::new();
        envelope::write(self, &mut body);
        Bytes::from(body)
    }
}

/// A stored message as the members of its topic receive it. One that this version of us cannot read
/// is one lost message.
pub fn stored_event<'a>(topic: &'a TopicName, body: &'a [u8], at: Position) -> Event<'a> {
    match envelope::read(topic.as_str(), body) {
        Ok(message) => message.event(topic.kind(), Some(at)),
        Err(_) => Event::Lost { topic: topic.kind(), count: 1 },
    }
}

/// The user of a `u:<user>` topic.
fn user(topic: &TopicName) -> Option<&str> {
    match topic.kind() {
        TopicKind::User(user) => Some(user),
        TopicKind::Room(_) | TopicKind::All => None,
    }
}
