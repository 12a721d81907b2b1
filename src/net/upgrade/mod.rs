//! What happens on a connection before it is a WebSocket.

pub mod http_head;
pub mod routes;
