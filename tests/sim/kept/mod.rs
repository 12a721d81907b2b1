//! Rooms that remember: does everybody hear everything once, in order, or learn that they did not?
//!
//! One node, everything of it real between the bytes of its clients: shards, the window, lanes,
//! interest, histories. Only sockets, the clock and the loops of the threads are played.
//!
//! | file | what |
//! |---|---|
//! | `node.rs` | the backplane thread, one step at a time |
//! | `tape.rs` | what one connection said and heard, as plain data |
//! | `checker.rs` | the claims, over tapes alone |
//! | `rooms.rs` | what the checker knows of a room: what stands where |
//! | `checked.rs` | the checker checked: tapes with one thing changed must be refused |
//! | `people.rs` | clients that remember where they were and come back there |
//! | `days.rs` | long random days |
//! | `stories.rs` | small days with a title |
//!
//! A failing day prints its seed; `SIM_SEED=<seed> cargo test --test sim kept::days` lives it again,
//! `SIM_DAYS=<n>` lives more of them. `tests/breaks.sh` breaks the server on purpose and asks whether
//! the days notice.

mod checked;
mod checker;
mod days;
pub mod node;
mod people;
mod rooms;
mod stories;
mod tape;
