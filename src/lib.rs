//! Campanile: a WebSocket server whose nodes act as one.
//!
//! This page is the architecture: which threads there are, what each owns, how a message travels,
//! what must stay true, and where to begin to read. How it is used is in `README.md` and `docs/`;
//! why it is built this way is in `docs/decisions.md`, and what a word means in `docs/glossary.md`.
//! The crate is one program; its modules are public so that tests and benchmarks can use them, and
//! are no stable interface.
//!
//! # Threads
//!
//! ```text
//!         clients                                                Redis
//!            │ TCP, one listener for each shard                    ▲
//!            │                                                     │ tokio
//!  ┌─────────▼─────────────────┐                      ┌────────────▼──────────────┐
//!  │ shard thread (one a core) │   Uplink  ────────►  │ backplane thread (one)    │
//!  │                           │                      │                           │
//!  │  net::      io_uring,     │   bounded channels,  │  interest   which shards  │
//!  │             epoll, tasks  │   one bell for each  │  local      encode once,  │
//!  │  ┌─────────────────────┐  │   thread that sleeps │             hand out      │
//!  │  │ shard::Shard        │  │                      │  Transport  embedded, or  │
//!  │  │ ws::  protocol::    │  │  ◄──────  Downlink   │             redis         │
//!  │  └─────────────────────┘  │                      │                           │
//!  └─────────────▲─────────────┘                      └────────────▲──────────────┘
//!                │ Inspect (Drain: main)                           │ Publish, History, Presence
//!  ┌─────────────┴─────────────────────────────────────────────────┴──────────────┐
//!  │ ops thread: HTTP for backends and operators, /metrics, /readyz               │
//!  └──────────────────────────────────────────────────────────────────────────────┘
//!    main thread: start, signals, drain        log thread: writes lines to stderr
//! ```
//!
//! * A **shard** thread ([`net`]) has its own io_uring runtime (monoio), listener, connections,
//!   rooms, queues and timers. Shards share no lock and no connection; there are as many as cores,
//!   unless `shards` is configured.
//! * The **backplane** thread ([`backplane`]) is the only one that is connected to Redis. It stores
//!   which shards have members of which topic, puts the messages of each topic in one order (or lets
//!   Redis do it), encodes each message once, and hands the bytes to the shards.
//! * The **ops** thread ([`api`]) answers HTTP. It publishes by the same channels as shards do, and
//!   reads copies of the others' counters ([`metrics`]).
//! * The **main** thread ([`node`]) starts the others, waits for signals, and ends them. A thread that
//!   fails ends the process: half a node that passes health checks is worse than none.
//!
//! # Modules
//!
//! | module | what it is for |
//! |---|---|
//! | [`ids`], [`slab`] | names and numbers of things; a slab with generations |
//! | [`policy`] | limits, namespaces, rights, token buckets: plain values and pure rules |
//! | [`ws`] | RFC 6455 between bytes and messages; no rooms, no JSON |
//! | [`protocol`] | client protocols: bytes to `Command`, `Event` to bytes; no sockets, no frames |
//! | [`framing`] | an `Event` as finished bytes: dialect and WebSocket header |
//! | [`auth`] | tokens: who a client is and what it may do; time is an argument |
//! | [`link`] | what crosses a thread: `Uplink`, `Downlink`, channels, bells, health |
//! | [`shard`] | connections, topics, deliveries as a state machine; no runtime, no sockets |
//! | [`net`] | moves bytes between sockets and the shard, decides nothing |
//! | [`backplane`] | from node to node: the trait `Transport`, and what all its kinds share |
//! | [`api`] | HTTP for backends and operators |
//! | [`hooks`] | HTTP questions to services of the operator |
//! | [`config`], [`plan`] | every setting once; what it means on this machine |
//! | [`node`], [`cli`], [`doctor`] | start and end of the process, the command line, host checks |
//! | [`sys`], [`terminal`] | system calls; output that cannot block |
//! | [`operator_files`] | reading the files that an operator names, within bounds |
//! | [`dial`] | streams to other servers |
//! | [`tls_trust`] | whom TLS to other servers trusts |
//! | [`metrics`] | what is counted, and how it leaves the thread that counts |
//! | [`load`] | the load generator: a client that shares no code with the server |
//!
//! `tests/tidy.rs` holds which module may name which, in one table.
//!
//! # The shard is a state machine
//!
//! [`Shard`](shard::Shard) has four kinds of methods:
//!
//! 1. `handle_*`: something happened. A socket was accepted
//!    ([`handle_accept`](shard::Shard::handle_accept)), bytes were read
//!    ([`handle_read`](shard::Shard::handle_read)), a write was short
//!    ([`handle_short_write`](shard::Shard::handle_short_write)), the backplane sent an item
//!    ([`handle_downlink`](shard::Shard::handle_downlink)), time has passed
//!    ([`handle_timeout`](shard::Shard::handle_timeout)). Time is an argument.
//! 2. `poll_*` and `take_*`: what is to be done. Items for the backplane
//!    ([`poll_uplink`](shard::Shard::poll_uplink)), a batch of writes
//!    ([`take_batch`](shard::Shard::take_batch)), sockets to close
//!    ([`poll_closed`](shard::Shard::poll_closed)), connections to read again
//!    ([`poll_resumed`](shard::Shard::poll_resumed)). The order is in the module's documentation.
//! 3. Questions by `&self`: how many connections, what waits.
//! 4. Sessions: one connection as plain data, taken out of one slot and put into another
//!    ([`take_session`](shard::Shard::take_session), [`put_session`](shard::Shard::put_session)).
//!
//! `net::reactor` is the one entrance: a *visit* is a synchronous closure over the shard, so nobody
//! holds it across an await, and each visit ends with a complete drain of the second kind. In tests
//! (`tests/sim`) the same methods are driven on virtual time by a seed, several shards with a
//! backplane between them, and days of a whole system run in seconds.
//!
//! # Publish: a message on its way up
//!
//! ```text
//!  socket ─recv─► scratch ─Decoder─► text ─Dialect::parse─► Command ─rights, limits─► Uplink::Publish
//!                                                                                       │ bell
//!                          Transport::publish ◄── backplane: one turn takes what is ready ◄──┘
//!                              │ embedded: in the same turn   redis: pipelines to the topic's server
//!                              ▼
//!                          PublishOutcome ──► Downlink::Ack ──► `ok` to the publisher
//! ```
//!
//! 1. The shard's epoll set reports a readable socket. `net` receives into one scratch buffer of the
//!    shard, so an idle connection has none of its own.
//! 2. [`Decoder`](ws::decoder::Decoder) unmasks in place and answers whole messages;
//!    [`Dialect::parse`](protocol::dialect::Dialect::parse) reads the request and leaves the payload
//!    as the bytes that came.
//! 3. `shard::commands` checks rights, the namespace and limits, and queues
//!    [`Uplink::Publish`](link::Uplink::Publish) with the only copy of the payload on the way up.
//! 4. The drain puts it into the channel and rings the backplane's [`Bell`](link::bell::Bell), which
//!    is a system call only if that thread sleeps. A full channel keeps the item in the shard and
//!    stops the shard's reads, so pressure reaches the clients' TCP windows.
//! 5. The backplane hands it to the transport. With Redis, publishes to one server leave in pipelines,
//!    in order. A topic without history is a `PUBLISH` (in a Cluster `SPUBLISH`); one with history
//!    is a script that appends to a stream, assigns the position, and publishes in one step.
//! 6. Each publish ends in exactly one [`PublishOutcome`](link::PublishOutcome): accepted, unavailable
//!    (it was not sent), or unknown (the connection broke while it was under way).
//!
//! The publisher's shard takes no short cut to its own members: everybody, the publisher included,
//! receives the one order that Redis (or the embedded transport) gave to the topic.
//!
//! # Fan-out: a message on its way down
//!
//! ```text
//!  Transport ──► Local ──► Interest: shards with members, by encoding   (one hash a message)
//!                                     │ framing::frame, once for each encoding
//!                                     ▼
//!              Downlink::Deliver { topic key, frame } to each such shard, one bell each
//!                                     │
//!              round of the topic: frames joined into one buffer
//!                                     │ walk over members
//!                                     ▼
//!              batch: one entry a member ──► io_uring, up to `send_batch_max` writes a system call
//!                                     └─ short write ──► outbox of this one connection
//! ```
//!
//! 1. [`Local`](backplane::local::Local) looks the topic up in
//!    `backplane/interest.rs`, which has for each topic the shards with members, and in which
//!    encodings. Where there are none it is dropped and counted.
//! 2. The message is written as a finished frame once for each encoding ([`framing`]), and handed as
//!    [`Downlink::Deliver`](link::Downlink::Deliver) with the shard's own key of the topic, so no
//!    shard looks up a name. A full channel turns into a bounded backlog, then into a drop that is
//!    announced to members as `lost`; an answer is never dropped.
//! 3. In the shard everything that arrived for one topic since its last turn is a *round*: its frames
//!    are joined into one buffer, so a member costs one write however many messages the round has.
//!    Rounds of large rooms are written in portions and take turns with all others.
//! 4. A *batch* has one entry for each member: socket, connection, buffer. What a second topic has for
//!    the same connection is chained to the same write. `net` submits the batch to its own ring.
//! 5. Only a socket that did not take everything gets an *outbox*. It is bounded; beyond the bound the
//!    connection is closed, or older messages are dropped and announced, or only the newest waits, as
//!    the namespace says (`shard::slow_consumer`).
//!
//! A delivery to one member costs one look at the connection and one entry in the batch: no hash, no
//! atomic operation, no allocation, no copy. `tests/budget.rs` and `tests/layout.rs` count it.
//!
//! # Joins, histories, presence
//!
//! * The first member of a topic on a shard sends [`Uplink::Join`](link::Uplink::Join); the backplane
//!   subscribes, unless another shard has, and answers [`Downlink::Joined`](link::Downlink::Joined).
//!   Only then does the client receive `ok`: from there on a lost message is reported.
//! * In a topic with history the answer to a join is a position and what was missed
//!   ([`RecoveryReply`](link::RecoveryReply)), in the order of deliveries: what was delivered before
//!   it is up to the position, what follows comes after it. It is served from the node's copy of the
//!   history, which is read from Redis at most once for all that ask.
//! * After a failover the new server is fenced: it accepts nothing new for a history until nodes had
//!   the time to put back what it lacks. `docs/redis.md` has the whole story.
//! * Presence is a list of users for each room, node by node, with a heartbeat for each node; a node
//!   that stops is cleaned up by the others.
//! * Questions with long answers are answered one at a time for a connection; one that asks more than
//!   may wait is paused: its socket is not read, and nobody else waits for it.
//!
//! # Closing
//!
//! A connection ends by one [`CloseReason`](shard::conn::CloseReason), which decides the close code,
//! the counter and the log line. It leaves all topics at once, its close frame is queued behind what
//! has begun to leave, and a deadline runs. When the last byte has left and the peer has answered, or
//! the deadline has passed, the caller closes the socket and the slot is freed, in one place.
//!
//! # Invariants
//!
//! 1. Everything of a shard is owned by [`Shard`](shard::Shard) and reached by `&mut`. No `RefCell`,
//!    no `Mutex`.
//! 2. What threads share is declared in [`link`] and [`metrics`], and nowhere else. The sleep protocol
//!    of the bell is checked under every interleaving (`tests/loom.rs`).
//! 3. Within one topic every member on every node receives the same order.
//! 4. After a client has received the `ok` of its join, a message of that topic is delivered to it,
//!    or `lost` is, or its connection ends.
//! 5. A publish ends exactly once, and a failure is always reported.
//! 6. Everything that can wait is bounded in items or bytes ([`Limits`](policy::limits::Limits)), and
//!    what happens at the bound is part of the limit's documentation.
//! 7. No byte from outside, be it from a client, the HTTP API, Redis or a file, causes a panic. An
//!    assertion that fails is our own fault, and ends the process.
//! 8. A closing connection is in no topic, and nothing follows its close frame.
//! 9. "Ready" is evidence: a canary message has come back through Redis within its timeout.
//!
//! # Where to begin to read
//!
//! 1. [`ids`], [`slab`], [`policy::limits`]: the nouns, and everything that is bounded.
//! 2. [`link`]: what crosses between threads, and the bell that wakes them.
//! 3. [`shard`]: its table of files, then `conn.rs`, `hub/`, `commands.rs`, `delivery/`,
//!    `lifecycle.rs`: what the server does, without a socket in sight.
//! 4. [`ws::decoder`], [`protocol::dialect`], [`protocol::native`]: from bytes to requests and back.
//! 5. `src/net/reactor.rs`, `tasks.rs`, `io/send.rs`: how the state machine meets io_uring.
//! 6. [`backplane`], [`backplane::local`], [`backplane::embedded`], then [`backplane::redis`]: how
//!    nodes become one.
//! 7. [`config`], [`plan`], [`node`], [`api`], [`doctor`]: how it is started, watched and ended.
//! 8. `tests/tidy.rs` and `tests/e2e/`: what must stay true; `tests/chaos/`: what must stay true
//!    whatever happens to Redis and to nodes.

#![warn(unreachable_pub)]

pub mod api;
pub mod auth;
pub mod backplane;
pub mod cli;
pub mod config;
pub mod dial;
pub mod doctor;
pub mod framing;
pub mod hooks;
pub mod ids;
pub mod link;
pub mod load;
pub mod metrics;
pub mod net;
pub mod node;
pub mod operator_files;
pub mod plan;
pub mod policy;
pub mod protocol;
pub mod shard;
pub mod slab;
pub mod sys;
pub mod terminal;
pub mod tls_trust;
pub mod ws;
