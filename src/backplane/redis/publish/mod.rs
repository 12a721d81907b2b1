//! Publishes to Redis: the queue ([`queue`]), and acknowledged publishes that no subscriber has
//! confirmed yet ([`unconfirmed`]).

pub(super) mod queue;
pub(super) mod unconfirmed;
