//! Making a token: for `campanile token`, and for tests.

use crate::ids::{ANONYMOUS_PREFIX, is_name, is_user_name};
use crate::policy::grants::{BYTES_MAX, GrantTexts, Grants, PATTERNS_MAX, RoomTexts};
use crate::policy::rights::Rights;
use crate::protocol::INFO_BYTES_MAX;
use jsonwebtoken::{EncodingKey, Header, encode};
use serde::Serialize;
use serde_json::value::RawValue;

/// The claims of the token to be made.
#[derive(Clone, Debug)]
pub struct TokenRequest {
    /// `sub`: 1 to 255 bytes without invisible characters or blanks around it.
    pub user: String,
    /// The rights; `None`: whatever the server gives to users.
    pub rights: Option<Rights>,
    /// Patterns of the only rooms that it opens; empty: those that are open to users.
    pub rooms: Vec<String>,
    /// Patterns of users to whom it may send, beside the right to send to all.
    pub send: Vec<String>,
    /// What others are shown of the user: any JSON value.
    pub info: Option<String>,
    /// When it is made, in seconds since 1970.
    pub issued_unix_s: u64,
    /// When it expires, in seconds since 1970.
    pub expires_unix_s: u64,
}

#[derive(Serialize)]
struct Claims<'a> {
    sub: &'a str,
    iat: u64,
    exp: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    rights: Option<Vec<&'static str>>,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    rooms: &'a [String],
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    send: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    info: Option<&'a RawValue>,
}

/// A signed token, or why the server would not take it.
pub fn mint(request: &TokenRequest, secret: &str) -> Result<String, String> {
    if !is_name(&request.user) {
        let wanted = "a user is 1 to 255 bytes, without invisible characters or blanks around it";
        return Err(wanted.to_owned());
    }
    if !is_user_name(&request.user) {
        return Err(format!("names that begin with {ANONYMOUS_PREFIX} are for anonymous clients"));
    }
    let rooms = (!request.rooms.is_empty()).then(|| RoomTexts::for_all(request.rooms.clone()));
    if Grants::new(&GrantTexts { rooms, send: request.send.clone() }).is_none() {
        return Err(format!(
            "a token has at most {PATTERNS_MAX} patterns and {BYTES_MAX} bytes of them"
        ));
    }
    let info = request.info.as_deref().map(json).transpose()?;
    super::crypto::install();
    let claims = Claims {
        sub: &request.user,
        iat: request.issued_unix_s,
        exp: request.expires_unix_s,
        rights: request.rights.map(Rights::names),
        rooms: &request.rooms,
        send: &request.send,
        info,
    };
    encode(&Header::default(), &claims, &EncodingKey::from_secret(secret.as_bytes()))
        .map_err(|error| error.to_string())
}

fn json(info: &str) -> Result<&RawValue, String> {
    let value: Option<&RawValue> = serde_json::from_str(info).ok();
    value
        .filter(|value| value.get().len() <= INFO_BYTES_MAX)
        .ok_or_else(|| format!("info is a JSON value of at most {INFO_BYTES_MAX} bytes"))
}
