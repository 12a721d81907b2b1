//! Publishes to Redis: the queue ([`queue`]) with its lanes ([`lane`]), and acknowledged publishes
//! that no subscriber has confirmed yet ([`unconfirmed`]). What may be in flight together is in
//! [`order`].

pub(super) mod item;
mod lane;
mod order;
pub(super) mod queue;
mod refusal_log;
pub(super) mod unconfirmed;
