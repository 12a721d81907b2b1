//! stub

/// What a user may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rights {
    /// Publish to rooms.
    pub publish: bool,
    /// Publish to rooms this connection is not in.
    pub publish_unjoined: bool,
    /// Send to a user.
    pub send: bool,
    /// Broadcast to everyone.
    pub broadcast: bool,
}

/// Who a client is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The authenticated user; `None` for an anonymous client, who is given a name of its own.
    pub user: Option<Box<str>>,
    /// What they may do.
    pub rights: Rights,
}

/// Why somebody may not come in. Answered with HTTP 401 before any upgrade.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denied {
    /// No token, and anonymous clients are not allowed.
    Missing,
    /// Not a token of ours.
    Invalid,
    /// It was one.
    Expired,
}

/// Tells who may come in, from the token alone. Pure: time is an argument.
#[derive(Debug)]
pub struct Gate {}

impl Gate {
    /// Judges a token (from `?token=` or `Authorization: Bearer`), `now` in seconds since 1970.
    pub fn admit(&self, _token: Option<&str>, _now_unix_s: u64) -> Result<Identity, Denied> {
        todo!()
    }
}
