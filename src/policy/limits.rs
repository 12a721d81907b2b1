//! Everything that is bounded, and how far.
//!
//! One struct, two named sets: [`Limits::PRODUCTION`] is what `serve` starts from (each one a key of
//! the configuration file), [`Limits::TINY`] is for tests, small enough that they reach every limit.
//! What happens at a limit is said beside it: the verdict is part of the limit.

/// Every limit of a node. Byte counts are payload bytes unless said otherwise.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Connections of one shard, those in their handshake included. Beyond: HTTP 503 with
    /// Retry-After.
    pub connections_per_shard_max: usize,
    /// Handshakes under way in one shard. Beyond: HTTP 503 with Retry-After.
    pub handshakes_max: usize,
    /// Connections that one shard accepts in a second, on average. Beyond: HTTP 503 with Retry-After.
    pub accepts_per_s_max: u64,
    /// Connections that one shard accepts at once, after a quieter time. Beyond: the same.
    pub accepts_burst_max: u64,
    /// An HTTP request head. Beyond: 431.
    pub head_bytes_max: usize,
    /// The body of a request for the API on the public port. Beyond: 413.
    pub http_body_bytes_max: usize,
    /// From the end of such a request's head to the end of its body. Looked at every
    /// [`Limits::handshake_timeout_ms`]. Beyond: 408.
    pub http_body_timeout_ms: u64,
    /// Such requests that are received or carried out at a time, of the whole node. Beyond: 503 with
    /// Retry-After.
    pub http_calls_max: usize,
    /// From accept to the last byte of the request head. Beyond: 408.
    pub handshake_timeout_ms: u64,
    /// A client's message, fragments added up. Beyond: close 1009.
    pub message_bytes_max: usize,
    /// The same on the echo path, where an outbox may hold [`Limits::echo_outbox_bytes_max`].
    pub echo_message_bytes_max: usize,
    /// Nesting of arrays and objects in a client's JSON. Beyond: error `bad_json`.
    pub json_depth_max: usize,
    /// Rooms one connection may be in. A join looks through them one by one, so the configuration
    /// takes no more than 1024. Beyond: error `too_many_rooms`.
    pub rooms_per_connection_max: usize,
    /// Questions of one connection that wait for the answers to those before them (`history`,
    /// `presence`, joins with `since`). At so many the connection is not read until half of them are
    /// asked. Beyond, in one message: error `overloaded`.
    pub questions_waiting_max: usize,
    /// Topics of one shard (rooms and users with a member here). Beyond: error `overloaded`.
    pub topics_per_shard_max: usize,
    /// What one connection still has to hear. Beyond: close 1013.
    pub outbox_bytes_max: usize,
    /// From our close frame to the end of the connection. Beyond: the socket is cut.
    pub close_timeout_ms: u64,
    /// One sweep over all connections: each is pinged once in it, and must have been heard since the
    /// last one, or is closed.
    pub ping_interval_ms: u64,
    /// Items in the channel from one shard to the backplane. Beyond: the shard reads no more.
    pub uplink_items_max: usize,
    /// Items in the channel from the backplane to one shard. Beyond: they wait on the backplane's
    /// side, and the shard is asked for no more.
    pub downlink_items_max: usize,
    /// Bytes that wait there for one shard. Beyond: the delivery is dropped, counted, and the topic's
    /// members hear `lost`.
    pub downlink_backlog_bytes_max: usize,
    /// Deliveries that one turn of a shard writes before others have their turn.
    pub send_batch_max: usize,
    /// Bytes one connection may be read for before others have their turn.
    pub read_turn_bytes_max: usize,
    /// Publishes that wait for Redis, all of the node. Beyond: error `backplane_unavailable`.
    pub publish_queue_bytes_max: usize,
    /// How long such a publish may wait. Beyond: error `backplane_unavailable`.
    pub publish_queue_ms_max: u64,
    /// Histories of the whole node, without Redis. Beyond: the one that was silent longest is given
    /// up; who was there hears `recovered:false`.
    pub history_bytes_max: usize,
    /// Histories that a node reads from one Redis server in a second. Beyond: they wait, and after
    /// ten seconds `recovered:false`, `overload`.
    pub history_reads_per_s_max: u64,
    /// What one join may bring back of what was missed. Beyond: `recovered:false`, `too_much`.
    pub recovery_bytes_max: usize,
}

impl Limits {
    /// What one connection of the echo path still has to hear: its messages may each be larger than
    /// [`Limits::outbox_bytes_max`]. Beyond: close 1013.
    pub const fn echo_outbox_bytes_max(&self) -> usize {
        self.echo_message_bytes_max.saturating_mul(4)
    }

    /// What a node starts from.
    pub const PRODUCTION: Limits = Limits {
        connections_per_shard_max: 1_000_000,
        handshakes_max: 4096,
        // A core accepts some tens of thousands a second: by default its own speed is the limit.
        accepts_per_s_max: 100_000,
        accepts_burst_max: 100_000,
        head_bytes_max: 8 * 1024,
        http_body_bytes_max: 2 * 1024 * 1024,
        http_body_timeout_ms: 15_000,
        // Below the turns of the operators' own port, so that its callers have some as well.
        http_calls_max: 32,
        handshake_timeout_ms: 5_000,
        message_bytes_max: 64 * 1024,
        echo_message_bytes_max: 16 * 1024 * 1024,
        json_depth_max: 64,
        rooms_per_connection_max: 128,
        questions_waiting_max: 16,
        topics_per_shard_max: 4_000_000,
        outbox_bytes_max: 1024 * 1024,
        close_timeout_ms: 5_000,
        ping_interval_ms: 25_000,
        uplink_items_max: 4096,
        downlink_items_max: 4096,
        downlink_backlog_bytes_max: 16 * 1024 * 1024,
        send_batch_max: 1024,
        read_turn_bytes_max: 256 * 1024,
        publish_queue_bytes_max: 64 * 1024 * 1024,
        publish_queue_ms_max: 10_000,
        history_bytes_max: 1024 * 1024 * 1024,
        history_reads_per_s_max: 100_000,
        recovery_bytes_max: 768 * 1024,
    };

    /// Small enough that a test reaches every one of them.
    pub const TINY: Limits = Limits {
        connections_per_shard_max: 6,
        handshakes_max: 3,
        accepts_per_s_max: 10,
        accepts_burst_max: 5,
        head_bytes_max: 1024,
        http_body_bytes_max: 2048,
        http_body_timeout_ms: 1_000,
        http_calls_max: 2,
        handshake_timeout_ms: 500,
        message_bytes_max: 1024,
        echo_message_bytes_max: 4096,
        json_depth_max: 8,
        rooms_per_connection_max: 3,
        questions_waiting_max: 3,
        topics_per_shard_max: 12,
        outbox_bytes_max: 2048,
        close_timeout_ms: 500,
        ping_interval_ms: 2_000,
        uplink_items_max: 4,
        downlink_items_max: 4,
        downlink_backlog_bytes_max: 1024,
        send_batch_max: 4,
        read_turn_bytes_max: 512,
        publish_queue_bytes_max: 2048,
        publish_queue_ms_max: 1_000,
        history_bytes_max: 4096,
        history_reads_per_s_max: 50,
        recovery_bytes_max: 1024,
    };
}
