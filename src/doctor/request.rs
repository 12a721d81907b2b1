//! What the doctor is asked.

use crate::config::Config;

/// What is asked.
#[derive(Clone, Debug)]
pub struct DoctorRequest {
    /// For how many connections of one node.
    pub connections: u64,
    /// With which configuration.
    pub config: Config,
}
