//! System calls of the shard's thread: sockets, the epoll set, batched writes, and the runtime that
//! drives it all. The only files below `net/` with `unsafe` in them.

pub mod epoll;
pub mod runtime;
pub mod send;
pub mod socket;
