//! What a joined buffer is made from, and the frame that stands for what was dropped.

use crate::framing;
use crate::ids::{ConflateKey, TopicId, TopicName};
use crate::protocol::Event;
use crate::protocol::dialect::Encoding;
use bytes::Bytes;
use std::sync::Arc;

/// What a frame of a room says, as far as it matters when it gives way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameKind {
    /// A message, and what it is about.
    Message(Option<ConflateKey>),
    /// So many messages were lost before they came here.
    Lost(u64),
}

/// A whole frame.
#[derive(Clone, Debug)]
pub struct FramePart {
    /// The frame.
    pub bytes: Bytes,
    /// What it says.
    pub kind: FrameKind,
}

/// What a buffer is made from, in its order.
#[derive(Clone, Debug)]
pub(crate) struct BatchSource {
    /// Whose frames.
    pub at: TopicId,
    /// The frames.
    pub pieces: Arc<[FramePart]>,
}

/// The frame that says how many messages of a room were dropped.
pub(super) fn loss_marker(topic: &TopicName, encoding: Encoding, count: u64) -> Bytes {
    framing::frame(&Event::Lost { topic: topic.kind(), count }, encoding)
}

/// The longest such frame.
pub(super) fn loss_marker_bytes_max(topic: &TopicName, encoding: Encoding) -> usize {
    framing::frame_len(&Event::Lost { topic: topic.kind(), count: u64::MAX }, encoding)
}
