//! What replies of the redis crate say.

use redis::Value;

/// Whether a reply is this text.
pub fn is_text(value: Option<&Value>, text: &[u8]) -> bool {
    match value {
        Some(Value::BulkString(bytes)) => bytes == text,
        Some(Value::SimpleString(string)) => string.as_bytes() == text,
        _ => false,
    }
}

/// Whether a reply to `ROLE` is a master's.
pub fn is_master(role: &Value) -> bool {
    matches!(role, Value::Array(parts) if is_text(parts.first(), b"master"))
}
