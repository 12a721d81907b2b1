//! Publishes to Redis: what waits to be sent ([`queue`]), and what was acknowledged and is not
//! proved to have been heard ([`unconfirmed`]).

pub mod queue;
pub mod unconfirmed;
