//! What the doctor is asked.

use crate::config::Config;

/// What is asked.
#[derive(Clone, Debug)]
pub struct DoctorRequest {
    /// Connections of one node for which the host is checked.
    pub connections: u64,
    /// The configuration with which the node will start.
    pub config: Config,
}
