//! What a connection may do.
//!
//! Four yes-or-no rights, named in configuration and tokens alike.

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

impl Rights {
    /// Only to listen.
    pub const NONE: Rights =
        Rights { publish: false, publish_unjoined: false, send: false, broadcast: false };

    /// How rights are called in configuration and tokens.
    pub const NAMES: [&'static str; 4] = ["publish", "publish_unjoined", "send", "broadcast"];

    /// These rights and one more; `None` when there is no right of that name.
    pub fn with(mut self, name: &str) -> Option<Rights> {
        match name {
            "publish" => self.publish = true,
            "publish_unjoined" => self.publish_unjoined = true,
            "send" => self.send = true,
            "broadcast" => self.broadcast = true,
            _ => return None,
        }
        Some(self)
    }

    /// The names of these rights.
    pub fn names(self) -> Vec<&'static str> {
        let held = [self.publish, self.publish_unjoined, self.send, self.broadcast];
        Rights::NAMES
            .into_iter()
            .zip(held)
            .filter_map(|(name, held)| held.then_some(name))
            .collect()
    }
}
