//! The claims `rooms` and `send` of a token.
//!
//! A claim of another shape than these makes the token invalid: one that was misread must not allow
//! more than was meant.

use crate::auth::AuthError;
use crate::policy::grants::{GrantTexts, Grants, RoomTexts};
use serde::Deserialize;
use std::sync::Arc;

/// One list for all actions, or a list for each. Actions that are not named are not allowed; those of
/// later versions are skipped.
#[derive(Deserialize)]
#[serde(untagged)]
pub enum RoomsClaim {
    /// Patterns for all actions.
    ForAll(Vec<String>),
    /// Patterns for each action.
    ByAction {
        /// To be a member.
        #[serde(default)]
        join: Vec<String>,
        /// To publish.
        #[serde(default)]
        publish: Vec<String>,
        /// To read the history.
        #[serde(default)]
        history: Vec<String>,
        /// To see who is there.
        #[serde(default)]
        presence: Vec<String>,
    },
}

/// What the claims allow; `None`: the token says nothing of rooms and users.
///
/// # Errors
/// They have more patterns than may be.
pub fn granted(
    rooms: Option<RoomsClaim>,
    send: Option<Vec<String>>,
) -> Result<Option<Arc<Grants>>, AuthError> {
    if rooms.is_none() && send.is_none() {
        return Ok(None);
    }
    let rooms = rooms.map(|claim| match claim {
        RoomsClaim::ForAll(list) => RoomTexts::for_all(list),
        RoomsClaim::ByAction { join, publish, history, presence } => {
            RoomTexts { join, publish, history, presence }
        }
    });
    let texts = GrantTexts { rooms, send: send.unwrap_or_default() };
    Grants::new(&texts).map(|grants| Some(Arc::new(grants))).ok_or(AuthError::TooManyGrants)
}
