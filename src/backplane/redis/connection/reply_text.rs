//! The text of a reply on the connection that subscribes.

use crate::backplane::redis::connection::resp::RespValue;

/// The text of an error reply, with its code.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ErrorReplyText(pub(super) String);

/// A reply as text, the parts of an array in a line each. An error in any part is the reply. Its
/// depth is bounded by the parser (`DEPTH_MAX`).
pub(super) fn reply_text(item: RespValue<'_>) -> Result<String, ErrorReplyText> {
    let lossy = |text: &[u8]| String::from_utf8_lossy(text).into_owned();
    Ok(match item {
        RespValue::Error(error) => return Err(ErrorReplyText(lossy(error))),
        RespValue::Simple(text)
        | RespValue::Bulk(text)
        | RespValue::Verbatim(text)
        | RespValue::BigNumber(text) => lossy(text),
        RespValue::Int(number) => number.to_string(),
        RespValue::Double(number) => number.to_string(),
        RespValue::Bool(yes) => yes.to_string(),
        RespValue::Null => String::new(),
        RespValue::Array(parts)
        | RespValue::Set(parts)
        | RespValue::Map(parts)
        | RespValue::Push(parts) => {
            let lines: Result<Vec<String>, ErrorReplyText> = parts.map(reply_text).collect();
            lines?.join("\n")
        }
    })
}
