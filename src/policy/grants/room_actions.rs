//! What is done in a room, and what a token for one room allows there.

/// What is done in a room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RoomAction {
    /// To be a member.
    Join,
    /// To publish.
    Publish,
    /// To read its history.
    History,
    /// To see who is there.
    Presence,
}

/// Actions in a room, in one byte.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RoomActions(u8);

impl RoomActions {
    /// All of them.
    pub const ALL: RoomActions = RoomActions(0b1111);

    /// How actions are called in tokens.
    pub const NAMES: [&'static str; 4] = ["join", "publish", "history", "presence"];

    /// None.
    pub const NONE: RoomActions = RoomActions(0);

    /// These and one more; `None`: there is no action of that name.
    pub fn with(self, name: &str) -> Option<RoomActions> {
        let place = RoomActions::NAMES.iter().position(|known| *known == name)?;
        Some(RoomActions(self.0 | 1 << place))
    }

    /// Whether an action is one of them.
    pub fn allow(self, action: RoomAction) -> bool {
        self.0 >> action as u8 & 1 == 1
    }

    /// The names of these actions.
    pub fn names(self) -> Vec<&'static str> {
        let held = |place: &usize| self.0 >> place & 1 == 1;
        (0..RoomActions::NAMES.len()).filter(held).map(|place| RoomActions::NAMES[place]).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn actions_are_called_in_tokens_as_they_are_meant() {
        let actions = [RoomAction::Join, RoomAction::Publish, RoomAction::History];
        for (action, name) in
            actions.into_iter().chain([RoomAction::Presence]).zip(RoomActions::NAMES)
        {
            let one = RoomActions::NONE.with(name).expect("an action");
            assert!(one.allow(action) && RoomActions::ALL.allow(action), "{name}");
            assert!(!RoomActions::NONE.allow(action), "{name}");
            assert_eq!(one.names(), [name]);
        }
        assert_eq!(RoomActions::NONE.with("fly"), None);
        assert_eq!(RoomActions::ALL.names(), RoomActions::NAMES);
    }
}
