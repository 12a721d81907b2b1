//! A whole building on virtual time: shards, clients, the wires between them and a backplane.
//!
//! | file | what |
//! |---|---|
//! | `rng.rs` | chance, from a seed |
//! | `peer.rs` | a naive client: its own frame writer and reader |
//! | `backplane.rs` | a naive backplane: one log, delays, full windows, broken links |
//! | `world.rs` | everything together, moved one step at a time as `net/reactor.rs` does |
//! | `history.rs` | what was said, heard and dropped; and the judge over it |
//! | `stories.rs` | small days with a title, one behaviour each |
//! | `rates.rs` | connections that send faster than they may |
//! | `shares.rs` | strangers who fill what belongs to others |
//! | `hooks.rs` | joins and publishes that a hook is asked about |
//! | `queue.rs` | what is kept for users, on a real backplane |
//! | `acks.rs` | members who acknowledge what they hear, on a real backplane |
//! | `slow.rs` | members who read too slowly where messages may give way |
//! | `days.rs` | long random days, and broken histories that the judge must refuse |
//! | `bare.rs` | one shard with nothing around it, for what takes a million connections |
//! | `heartbeats.rs` | how even a million pings are |
//! | `fairness.rs` | who waits for whom on one shard |
//! | `moves.rs` | connections that move to another slot or shard, and what may keep them from it |
//! | `dialects.rs` | clients of two dialects in the same rooms |
//! | `kept/` | rooms with a history on a real backplane, and a checker that knows only what people say |
//! | `fleet/` | two hundred nodes with the real backplane, counted beside the capacity model |
//!
//! A failing day prints its seed; `SIM_SEED=<seed> cargo test --test sim` lives it again, exactly.
//! `SIM_DAYS=<n>` lives more of them.

mod acks;
mod admin;
mod backplane;
mod bare;
mod days;
mod dialects;
mod fairness;
mod fleet;
mod heartbeats;
mod history;
mod hooks;
mod kept;
mod memory;
mod moves;
mod peer;
mod questions;
mod queue;
mod rates;
mod rng;
mod shares;
mod slow;
mod stories;
mod world;
