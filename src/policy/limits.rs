//! Everything that is bounded, and how far.
//!
//! Each limit is one row: its type, what `serve` starts from ([`Limits::PRODUCTION`], a key of the
//! configuration file each), a value so small that tests reach it ([`Limits::TINY`]), what an operator
//! may write, and what it means. What happens at a limit is part of its meaning.

use crate::policy::setting::{SettingRange, bytes, count, ms};

/// One limit, as an operator sets it.
pub struct LimitSetting {
    /// Its key in the configuration: `limits.<name>`.
    pub key: &'static str,
    /// The values that it takes.
    pub range: SettingRange,
    /// What it means, and what happens beyond it.
    pub doc: &'static str,
    /// Reads it.
    pub get: fn(&Limits) -> u64,
    /// Sets it. The number must be in the range.
    pub set: fn(&mut Limits, u64),
}

macro_rules! limits {
    ($(
        $name:ident: $type:ty = $production:expr, in tests $tiny:expr, $range:expr, $doc:literal;
    )+) => {
        /// Every limit of a node. Byte counts are payload bytes.
        // Limits are described for a terminal.
        #[allow(rustdoc::bare_urls, rustdoc::broken_intra_doc_links)]
        #[derive(Clone, Copy, Debug, PartialEq)]
        pub struct Limits {
            $( #[doc = $doc] pub $name: $type, )+
        }

        impl Limits {
            /// What a node starts from.
            pub const PRODUCTION: Limits = Limits { $( $name: $production, )+ };

            /// Small enough that a test reaches every one of them.
            pub const TINY: Limits = Limits { $( $name: $tiny, )+ };
        }

        /// All of them, in the order in which they are printed.
        pub const LIMIT_SETTINGS: &[LimitSetting] = &[
            $( LimitSetting {
                key: concat!("limits.", stringify!($name)),
                range: $range,
                doc: $doc,
                get: |limits| limits.$name as u64,
                set: |limits, number| limits.$name = number as $type,
            }, )+
        ];
    };
}

impl Limits {
    /// Items of the ops thread that wait for the backplane, at most: the largest batch of the API
    /// fits, and no client waits behind it.
    pub fn ops_items_max(&self) -> usize {
        self.uplink_items_max.max(4096)
    }
}

const MIB: u64 = 1024 * 1024;
const MINUTE_MS: u64 = 60_000;

limits! {
    memory_bytes_max: usize = 0, in tests 64 * 1024 * 1024, bytes(0, 1024 * 1024 * MIB),
        "Memory of the whole process. 0: three quarters of what the machine or the cgroup has. Near it, in this order: connections that hold much are not read, requests get error overloaded, the connections that hold most are closed (1013), new ones get HTTP 503, and at last /readyz says no.";
    connections_per_shard_max: usize = 1_000_000, in tests 6, count(1, 16_000_000, "connections"),
        "Connections of one shard, handshakes included. Beyond: HTTP 503 with Retry-After. Lowered at start to what the limit on open files allows.";
    handshakes_max: usize = 4096, in tests 3, count(1, 1_000_000, "handshakes"),
        "Handshakes under way in one shard. Beyond: HTTP 503 with Retry-After.";
    // A core accepts some tens of thousands a second: by default its own speed is the limit.
    accepts_per_s_max: u64 = 100_000, in tests 10, count(1, 1_000_000, "connections"),
        "Connections one shard accepts in a second, on average. Beyond: HTTP 503 with Retry-After, before its request is looked at. The default is more than a core can do; lower it to protect the services behind it.";
    accepts_burst_max: u64 = 100_000, in tests 5, count(1, 1_000_000, "connections"),
        "Connections one shard accepts at once, after a time in which fewer came than limits.accepts_per_s_max.";
    head_bytes_max: usize = 8 * 1024, in tests 1024, bytes(1024, 64 * 1024),
        "An HTTP request head. Beyond: 431.";
    http_body_bytes_max: usize = 2 * 1024 * 1024, in tests 2048, bytes(1024, 64 * MIB),
        "The body of a request for the API on the public port. Beyond: 413.";
    http_body_timeout_ms: u64 = 15_000, in tests 1_000, ms(100, 10 * MINUTE_MS),
        "From the end of such a request's head to the end of its body. One shorter than limits.handshake_timeout_ms may be looked at only after that. Beyond: 408.";
    // Below the turns of the operators' own port, so that its callers have some as well.
    http_calls_max: usize = 32, in tests 2, count(1, 4096, "requests"),
        "Such requests that are received or carried out at a time, of the whole node. Beyond: 503 with Retry-After.";
    handshake_timeout_ms: u64 = 5_000, in tests 500, ms(100, 10 * MINUTE_MS),
        "From accept to the end of the request head. Beyond: 408.";
    message_bytes_max: usize = 64 * 1024, in tests 1024, bytes(128, 16 * MIB),
        "A client's message, fragments added up; also a payload on the ops API. Beyond: close 1009.";
    echo_message_bytes_max: usize = 16 * 1024 * 1024, in tests 4096, bytes(128, 1024 * MIB),
        "A message on the echo path, where four of them may wait for a client instead of limits.outbox_bytes_max. Beyond: close 1009.";
    json_depth_max: usize = 64, in tests 8, count(2, 128, "levels"),
        "Nesting of arrays and objects in JSON. Beyond: error bad_json.";
    rooms_per_connection_max: usize = 128, in tests 3, count(1, 1024, "rooms"),
        "Rooms one connection may be in; each join looks through them. Beyond: error too_many_rooms.";
    questions_waiting_max: usize = 16, in tests 3, count(1, 65_536, "requests"),
        "Requests of one connection (history, presence, a join with since) that wait for the answers to earlier ones: one is answered at a time, when the client has taken the last answer. At so many the connection is not read until half of them are sent; beyond, in one message: error overloaded.";
    topics_per_shard_max: usize = 4_000_000, in tests 12, count(1, 64_000_000, "topics"),
        "Rooms and users with a member in one shard. Beyond: error overloaded.";
    outbox_bytes_max: usize = 1024 * 1024, in tests 2048, bytes(1024, 1024 * MIB),
        "Bytes that wait for one connection. Beyond: close 1013.";
    socket_unsent_bytes_max: usize = 64 * 1024, in tests 64 * 1024, bytes(16 * 1024, 64 * MIB),
        "Bytes for one client that the kernel takes before it has sent them (TCP_NOTSENT_LOWAT). Beyond: they wait in the node, where limits.outbox_bytes_max and the room's slow_consumer apply.";
    stall_timeout_ms: u64 = 30_000, in tests 3_000, ms(1_000, 60 * MINUTE_MS),
        "How long a client may take nothing of what waits for it, in its kernel (TCP_USER_TIMEOUT) or in the node, where it is looked at every limits.ping_interval_ms. Beyond: the connection ends, whether it answers pings or not.";
    close_timeout_ms: u64 = 5_000, in tests 500, ms(100, 10 * MINUTE_MS),
        "From the server's close frame to the end of the connection. Beyond: the socket is closed.";
    ping_interval_ms: u64 = 25_000, in tests 2_000, ms(100, 60 * MINUTE_MS),
        "How often each client is pinged. One that sends nothing for a whole interval after that is closed.";
    uplink_items_max: usize = 256, in tests 4, count(1, 1_000_000, "items"),
        "Items from one shard that wait for the backplane. Beyond: the shard reads no more from its clients.";
    uplink_bytes_max: usize = 8 * 1024 * 1024, in tests 64 * 1024, bytes(64 * 1024, 16 * 1024 * MIB),
        "Bytes from one shard that wait for the backplane; one message may exceed it. Beyond: the shard reads no more from its clients.";
    downlink_items_max: usize = 4096, in tests 4, count(1, 1_000_000, "items"),
        "Items in the channel to one shard. Beyond: they wait in its backlog, and nothing more is taken from its clients.";
    downlink_bytes_max: usize = 8 * 1024 * 1024, in tests 64 * 1024, bytes(64 * 1024, 16 * 1024 * MIB),
        "Bytes in the channel to one shard, and as many that it has taken and not written; one answer may exceed it. Beyond: they wait in its backlog, and nothing more is taken from its clients.";
    downlink_backlog_bytes_max: usize = 16 * 1024 * 1024, in tests 1024, bytes(0, 16 * 1024 * MIB),
        "Deliveries that wait for one shard beyond its channel. Beyond: they are dropped and counted, and the members receive `lost`.";
    send_batch_max: usize = 1024, in tests 4, count(1, 32_768, "sends"),
        "Sends of one turn of a shard before reading goes on.";
    read_turn_bytes_max: usize = 256 * 1024, in tests 512, bytes(512, 16 * MIB),
        "Bytes read from one connection in its turn, while no other waits; while others wait, 16 KiB, 64 messages or 0.1 ms. Who has just become readable is read before those who have more than one turn's worth. Connections of one client address, where it is known, have one turn together. Beyond: the others are read first.";
    publish_queue_bytes_max: usize = 64 * 1024 * 1024, in tests 2048, bytes(1024, 16 * 1024 * MIB),
        "Publishes of the whole node that wait for Redis. Beyond: error backplane_unavailable.";
    publish_queue_ms_max: u64 = 10_000, in tests 1_000, ms(100, 10 * MINUTE_MS),
        "How long a publish may wait for Redis. Beyond: error backplane_unavailable.";
    history_bytes_max: usize = 1024 * 1024 * 1024, in tests 4096, bytes(MIB, MIB * MIB),
        "Histories of the whole node, without Redis. A user has an eighth of them at most, a client without a token a 64th, all of those a half together, all clients three quarters. Beyond: a message that would begin a history gets error overloaded and is not sent, and in one that exists the oldest messages of the same room are dropped; a new history of the HTTP API takes the place of an older one of the HTTP API.";
    idempotency_keys_max: usize = 256 * 1024, in tests 4096, count(8, 100_000_000, "keys"),
        "Idempotency keys of the whole node, without Redis, each remembered for five minutes. A user has an eighth of them at most, a client without a token a 64th, all of those a half together, all clients three quarters. Beyond: error overloaded, the message is not sent.";
    redis_histories_begun_max: usize = 1_000_000, in tests 100_000, count(64, 100_000_000, "histories"),
        "Histories in Redis that clients of this node have begun, each until its position is forgotten (history_ttl_s and a day). A user has an eighth of them at most, a client without a token a 64th, all of those a half together, all clients three quarters. Beyond: a message that would begin a history gets error overloaded and is not sent.";
    redis_keys_begun_max: usize = 4_000_000, in tests 100_000, count(64, 1_000_000_000, "keys"),
        "Idempotency keys in Redis that clients of this node have used, each remembered for five minutes, with the same shares. Beyond: a message with a new key gets error overloaded and is not sent.";
    revocations_max: usize = 10_000, in tests 4, count(1, 100_000, "revocations"),
        "Revocations of tokens that are remembered until they are over, of the whole system. Beyond: HTTP 507, it does not hold.";
    history_reads_per_s_max: u64 = 100_000, in tests 50, count(1, 10_000_000, "reads"),
        "Histories read from one Redis server in a second, when many clients return and this node lacks the messages that they missed. Beyond: they wait, and after ten seconds recovered false, overload, or error backplane_unavailable where no position is known.";
    history_requests_waiting_max: usize = 1_000_000, in tests 16, count(2, 100_000_000, "requests"),
        "Joins and history requests of the whole node that wait for a read from Redis, divided among the servers; one room or user takes half of them at most. Beyond: error overloaded.";
    recovery_bytes_max: usize = 768 * 1024, in tests 1024, bytes(1024, 1024 * MIB),
        "Bytes of missed messages in the answer to one join with `since`. Beyond: recovered false, too_much.";
    messages_per_s_max: u64 = 1000, in tests 1000, count(0, 1_000_000_000, "messages"),
        "Messages of one connection in a second, on average, pings included; 0: no limit. Beyond: it is not read until its rate allows more; after a second it receives error rate_limited, and after limits.rate_limited_timeout_ms close 1008.";
    messages_burst_max: u64 = 2000, in tests 2000, count(1, 1_000_000_000, "messages"),
        "Messages of one connection at once, after a time in which fewer came than limits.messages_per_s_max.";
    received_bytes_per_s_max: u64 = 8 * MIB, in tests 8 * MIB, bytes(0, MIB * MIB),
        "Bytes that one connection sends in a second, on average; 0: no limit. Beyond: as with limits.messages_per_s_max.";
    received_bytes_burst_max: u64 = 16 * MIB, in tests 16 * MIB, bytes(1, MIB * MIB),
        "Bytes that one connection sends at once, after a time in which fewer came than limits.received_bytes_per_s_max.";
    joins_per_s_max: u64 = 100, in tests 1000, count(0, 1_000_000_000, "joins"),
        "Joins of one connection in a second, on average; 0: no limit. Beyond: as with limits.messages_per_s_max; further joins in one message: error rate_limited.";
    joins_burst_max: u64 = 256, in tests 1000, count(1, 1_000_000_000, "joins"),
        "Joins of one connection at once: all its rooms, when it comes back.";
    requests_per_s_max: u64 = 50, in tests 1000, count(0, 1_000_000_000, "requests"),
        "Requests for history or presence of one connection in a second, on average; 0: no limit. Beyond: as with limits.joins_per_s_max.";
    requests_burst_max: u64 = 256, in tests 1000, count(1, 1_000_000_000, "requests"),
        "Requests for history or presence of one connection at once.";
    token_checks_per_s_max: u64 = 20, in tests 1000, count(0, 1_000_000_000, "tokens"),
        "Tokens that one connection sends in a second after it has connected, on average: `auth`, and joins with a token; 0: no limit. A signature takes up to 100 µs to verify. Beyond: as with limits.joins_per_s_max.";
    token_checks_burst_max: u64 = 64, in tests 1000, count(1, 1_000_000_000, "tokens"),
        "Tokens that one connection sends at once.";
    connections_per_address_max: u64 = 4096, in tests 4096, count(0, 1_000_000, "connections"),
        "Connections of one client address (of one /64 of IPv6) to this node, handshakes included; 0: no limit. Only where addresses are known to be clients': see listen_direct. Beyond: HTTP 429 with Retry-After.";
    handshakes_per_address_max: u64 = 512, in tests 512, count(0, 4000, "handshakes"),
        "Handshakes of one client address under way; 0: no limit. Beyond: HTTP 429 with Retry-After.";
    connects_per_address_per_s_max: u64 = 100, in tests 100, count(0, 1000, "connections"),
        "Connections of one client address in a second, on average; 0: no limit. Beyond: HTTP 429 with Retry-After.";
    connects_per_address_burst_max: u64 = 1000, in tests 1000, count(1, 1_000_000, "connections"),
        "Connections of one client address at once, after a time in which fewer came than limits.connects_per_address_per_s_max.";
    // Tabs and devices of a person are tens; a fleet of workers or screens with one name, hundreds.
    connections_per_user_max: u64 = 1024, in tests 0, count(0, 1_000_000, "connections"),
        "Connections of one user with a token to this node; 0: no limit. Beyond: HTTP 429 with Retry-After. Costs 8 bytes a connection, and a table of 4 MiB.";
    rate_limited_timeout_ms: u64 = MINUTE_MS, in tests 5_000, ms(0, 24 * 60 * MINUTE_MS),
        "How long a connection may send faster than its rates allow without a second's rest; 0: forever. Beyond: close 1008.";
}

impl Limits {
    /// What one connection of the echo path still has to receive: its messages may each be larger
    /// than [`Limits::outbox_bytes_max`]. Beyond: close 1013.
    pub const fn echo_outbox_bytes_max(&self) -> usize {
        self.echo_message_bytes_max.saturating_mul(4)
    }
}
