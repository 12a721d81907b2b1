//! What holds here: limits, what is configured for which rooms, rates, and who may do what.
//!
//! Plain values and pure rules. Configuration makes them, every other room reads them.

pub mod api_key;
pub mod limits;
pub mod namespaces;
pub mod networks;
pub mod rights;
pub mod setting;
pub mod token_bucket;
