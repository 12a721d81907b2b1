//! Limits, settings of namespaces, rights and rates.
//!
//! Plain values and pure rules. Configuration makes them, every other room reads them.

pub mod api_key;
pub mod grants;
pub mod limits;
pub mod namespaces;
pub mod networks;
pub mod revocations;
pub mod rights;
pub mod setting;
pub mod token_bucket;
