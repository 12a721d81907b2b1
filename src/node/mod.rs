//! The life of the process: its start, its threads, signals and its end.

pub mod error;
mod log;
mod ports;
pub mod reload;
mod scheduling;
pub mod shutdown;
pub mod startup;
pub mod threads;
