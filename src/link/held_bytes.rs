//! What an item in a channel keeps alive: itself, and what it alone points to.
//!
//! Names of topics are shared with the tables that they stand in, and a roster with all who asked for
//! it: they count where they are stored. Items of the ops thread are few (`http_calls_max`) and count
//! nothing.

use crate::link::{Delivery, Downlink, HistoryPage, HistoryReply, Publish, RecoveryReply, Uplink};

/// About what `info` of a presence takes.
const INFO_BYTES: usize = 256;

impl Publish {
    /// Bytes of what it says: its payload, key and `info`.
    #[inline]
    pub fn content_bytes(&self) -> usize {
        let key = self.key.as_ref().map_or(0, |key| key.len());
        self.payload.len() + key + self.info.as_ref().map_or(0, |info| info.len())
    }
}

impl Uplink {
    /// Bytes that it keeps alive while it waits.
    #[inline]
    pub fn held_bytes(&self) -> u64 {
        let more = match self {
            Uplink::Publish(publish) => publish.content_bytes(),
            Uplink::Recover(_) => size_of::<crate::link::RecoveryRequest>(),
            Uplink::History(_) => size_of::<crate::link::HistoryRequest>(),
            Uplink::Presence(_) => size_of::<crate::link::PresenceRequest>(),
            Uplink::PresenceUpdate(update) => size_of_val(&**update) + INFO_BYTES,
            Uplink::Join { .. }
            | Uplink::Leave { .. }
            | Uplink::Disconnect(_)
            | Uplink::Revoke(_)
            | Uplink::Settle
            | Uplink::Acknowledge { .. } => 0,
        };
        (size_of::<Uplink>() + more) as u64
    }
}

impl Downlink {
    /// Bytes that it keeps alive while it waits.
    #[inline]
    pub fn held_bytes(&self) -> u64 {
        let more = match self {
            Downlink::Deliver { frame, .. } => frame.len(),
            Downlink::DeliverWith(delivery) => size_of::<Delivery>() + delivery.frame.len(),
            Downlink::Recovered(reply) => size_of::<RecoveryReply>() + reply.missed.bytes.len(),
            Downlink::History(reply) => size_of::<HistoryReply>() + page_bytes(reply.page.as_ref()),
            Downlink::HttpReply(_)
            | Downlink::Hook(_)
            | Downlink::Inspect(_)
            | Downlink::Drain { .. } => return 0,
            Downlink::Joined { .. }
            | Downlink::Lost { .. }
            | Downlink::Ack { .. }
            | Downlink::Settled
            | Downlink::Unrecoverable(_)
            | Downlink::Presence(_)
            | Downlink::Disconnect { .. } => 0,
        };
        (size_of::<Downlink>() + more) as u64
    }
}

fn page_bytes<E>(page: Result<&HistoryPage, E>) -> usize {
    page.map_or(0, |page| page.messages.bytes.len())
}
