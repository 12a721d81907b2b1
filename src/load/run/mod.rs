//! The worker threads of a run, their plan and their coordinator.

pub mod fleet;
pub mod measure;
pub mod plan;
pub mod procfs;
pub mod publish;
pub mod worker;
