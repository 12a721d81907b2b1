//! The worker threads of a run, their plan and their coordinator.
//!
//! `fleet` (the coordinator) uses `worker` (one thread), which uses `publish` (what is due) and
//! `plan`. `measure` and `procfs` read what the server and the generator cost.

pub(super) mod fleet;
pub(super) mod measure;
pub(super) mod plan;
pub(super) mod procfs;
pub(super) mod publish;
pub(super) mod worker;
