//! stub

/// What the client asked for, if it asked properly.
#[derive(Debug, PartialEq, Eq)]
pub struct Upgrade<'a> {
    /// The answer to its key (RFC 6455 §4.2.2).
    pub accept: [u8; 28],
    /// The subprotocols it offers, in its order.
    pub protocols: Vec<&'a str>,
}

/// Why there will be no upgrade.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The HTTP status.
    pub status: u16,
    /// One line saying what is wrong.
    pub reason: &'static str,
}

/// Judges a request head that was routed to a WebSocket endpoint (RFC 6455 §4.2.1).
pub fn check<'a>(_head: &'a http::request::Parts) -> Result<Upgrade<'a>, Refusal> {
    todo!()
}

/// Appends the `101 Switching Protocols` answer.
pub fn write_accept(_upgrade: &Upgrade<'_>, _protocol: Option<&str>, _out: &mut Vec<u8>) {
    todo!()
}
