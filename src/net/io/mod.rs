//! System calls of the shard's thread: sockets, the epoll set, batched writes, and the runtime that
//! drives it all. The only files below `net/` with `unsafe` in them.

pub(super) mod epoll;
pub(super) mod runtime;
pub(super) mod send;
pub(super) mod socket;
