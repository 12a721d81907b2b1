//! Publishes to Redis: the queue ([`queue`]) with its lanes ([`lane`]), and acknowledged publishes
//! that no subscriber has confirmed yet ([`unconfirmed`]).

pub(super) mod item;
mod lane;
pub(super) mod queue;
mod refusal_log;
pub(super) mod unconfirmed;
