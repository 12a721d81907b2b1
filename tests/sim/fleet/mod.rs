//! Two hundred nodes: where the capacity model bends, counted.
//!
//! Between the bytes of clients and those of Redis everything is real: shards, the window, interest,
//! lanes, the batches of subscriptions, channel names and envelopes. Only what waits is played:
//! sockets, Redis itself, and the loop around them. Clients are few (hundreds a node instead of
//! hundreds of thousands), rooms are as large as ever; what is counted depends on how many share a
//! node, not on how long it takes, and is compared with the formulas of `benches/README.md`.
//!
//! | file | what |
//! |---|---|
//! | `redis.rs` | a naive Redis: who listens to what, and how much it had to do |
//! | `node.rs` | one node: real shards and backplane, a played loop |
//! | `ledger.rs` | what was said, and the judge over who heard it |
//! | `world.rs` | all nodes, their clients, a balancer and a clock |
//! | `model.rs` | the formulas |
//! | `stories.rs` | what a publish, churn, a restart and a dead node cost |
//! | `days.rs` | long random days on a few nodes: does every member hear everything once, in order? |
//!
//! A failing day prints its seed; `FLEET_SEED=<seed> cargo test --test sim fleet` lives it again.

mod days;
mod ledger;
mod model;
mod node;
mod redis;
mod stories;
mod world;
