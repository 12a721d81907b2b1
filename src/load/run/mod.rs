//! The worker threads of a run, their plan and their coordinator.
//!
//! `fleet` (the coordinator) uses `worker` (one thread), which uses `publish` (what is due) and
//! `plan`. `measure` and `procfs` read what the server and the generator cost.

pub mod fleet;
pub mod measure;
pub mod plan;
pub mod procfs;
pub mod publish;
pub mod worker;
