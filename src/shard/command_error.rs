//! What a client is answered whose request cannot be carried out.

use crate::policy::rights::NotAllowed;
use crate::protocol::ErrorCode;

/// An answer that is an error.
pub(in crate::shard) struct CommandError(
    pub(in crate::shard) ErrorCode,
    pub(in crate::shard) &'static str,
);

impl From<NotAllowed> for CommandError {
    fn from(denied: NotAllowed) -> CommandError {
        match denied {
            NotAllowed::Forbidden(why) => CommandError(ErrorCode::Forbidden, why),
            NotAllowed::NotEnabled(why) => CommandError(ErrorCode::NotEnabled, why),
            NotAllowed::NotJoined(why) => CommandError(ErrorCode::NotJoined, why),
            NotAllowed::AskHook => {
                CommandError(ErrorCode::Forbidden, "this has to be asked about first")
            }
        }
    }
}
