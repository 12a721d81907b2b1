//! What a joined buffer is made from, and the frame that stands for what was dropped.

use crate::framing;
use crate::ids::{ConflateKey, TopicId, TopicName};
use crate::protocol::Event;
use crate::protocol::dialect::Encoding;
use bytes::Bytes;
use std::sync::Arc;

/// What a frame of a room carries, as far as it matters when it is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameKind {
    /// A message, and its conflate key.
    Message(Option<ConflateKey>),
    /// A loss event: so many messages were lost before they reached this shard.
    Lost(u64),
}

/// A whole frame.
#[derive(Clone, Debug)]
pub struct FramePart {
    /// The frame.
    pub bytes: Bytes,
    /// A message or a loss event.
    pub kind: FrameKind,
}

/// The frames from which a buffer is joined, in order.
#[derive(Clone, Debug)]
pub(crate) struct BatchSource {
    /// The topic of all of them.
    pub at: TopicId,
    /// The frames.
    pub pieces: Arc<[FramePart]>,
}

/// The frame with the number of messages of a room that were dropped.
pub(super) fn loss_marker(topic: &TopicName, encoding: Encoding, count: u64) -> Bytes {
    framing::frame(&Event::Lost { topic: topic.kind(), count }, encoding)
}

/// The longest such frame.
pub(super) fn loss_marker_bytes_max(topic: &TopicName, encoding: Encoding) -> usize {
    framing::frame_len(&Event::Lost { topic: topic.kind(), count: u64::MAX }, encoding)
}
