//! Why a source does not say where the servers are.

use crate::backplane::redis::failure::LinkError;
use std::fmt;

/// Why there is no answer, or none that can be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum TopologyError {
    /// The source is not reached.
    Link(LinkError),
    /// None of these nodes of a Cluster answers.
    NoAnswer(Vec<(String, LinkError)>),
    /// A sentinel does not report this master.
    UnknownMaster {
        /// Its name.
        name: String,
        /// The sentinel's error.
        error: Box<TopologyError>,
    },
    /// A slot of a Cluster has no master.
    SlotWithoutMaster(u16),
    /// The answer has no such part.
    Incomplete(&'static str),
    /// The node is about to end.
    Ending,
}

impl From<LinkError> for TopologyError {
    fn from(error: LinkError) -> TopologyError {
        TopologyError::Link(error)
    }
}

impl fmt::Display for TopologyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TopologyError::Link(error) => error.fmt(f),
            TopologyError::NoAnswer(all) => {
                for (at, (address, error)) in all.iter().enumerate() {
                    let gap = if at == 0 { "" } else { "; " };
                    write!(f, "{gap}{address}: {error}")?;
                }
                Ok(())
            }
            TopologyError::UnknownMaster { name, error } => write!(f, "{name}: {error}"),
            TopologyError::SlotWithoutMaster(slot) => write!(f, "slot {slot} has no master"),
            TopologyError::Incomplete(part) => write!(f, "the answer has no {part}"),
            TopologyError::Ending => f.write_str("the node is about to end"),
        }
    }
}
