//! Tokens for one room: who may enter it, and what may be done there.
//!
//! Such a token has the claim `room`, and is signed and judged as any other. It opens that room for
//! the user whom it names, whatever else that user may do, and it is no token to connect with. A
//! client without a token has a name too, and may be given one.

use crate::auth::crypto;
use crate::ids::is_name;
use crate::policy::grants::RoomActions;
use crate::policy::revocations::TokenMark;
use jsonwebtoken::{EncodingKey, Header, encode};
use serde::Serialize;

/// What a token for a room says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoomAdmission {
    /// The only user who may use it.
    pub user: Box<str>,
    /// The only room that it opens.
    pub room: Box<str>,
    /// What it allows there.
    pub actions: RoomActions,
    /// What revocations are compared with, if it has `jti` or `iat`.
    pub mark: Option<TokenMark>,
    /// When it is good no longer, in whole seconds since 1970, leeway included. `None`: it does not
    /// expire.
    pub expires_unix_s: Option<u64>,
}

/// The claims of a token for a room that is to be made.
#[derive(Clone, Debug)]
pub struct RoomTokenRequest {
    /// `sub`: the name of a user, or of a client without a token.
    pub user: String,
    /// `room`: its name, as it is.
    pub room: String,
    /// What it allows there.
    pub actions: RoomActions,
    /// When it expires, in seconds since 1970.
    pub expires_unix_s: u64,
}

#[derive(Serialize)]
struct RoomClaims<'a> {
    sub: &'a str,
    room: &'a str,
    actions: Vec<&'static str>,
    exp: u64,
}

/// A signed token for a room, or why the server would not take it.
pub fn mint_for_room(request: &RoomTokenRequest, secret: &str) -> Result<String, String> {
    let RoomTokenRequest { user, room, actions, expires_unix_s } = request;
    if !is_name(user) || !is_name(room) {
        let wanted = "users and rooms are 1 to 255 bytes, without invisible characters or blanks \
                      around them";
        return Err(wanted.to_owned());
    }
    crypto::install();
    let claims = RoomClaims { sub: user, room, actions: actions.names(), exp: *expires_unix_s };
    encode(&Header::default(), &claims, &EncodingKey::from_secret(secret.as_bytes()))
        .map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::{AuthError, AuthPlan, Authenticator, VerifyingKeys};
    use crate::policy::grants::RoomAction;
    use crate::policy::rights::Rights;

    const SECRET: &str = "a secret of the tests";

    fn authenticator() -> Authenticator {
        Authenticator::new(&AuthPlan {
            anonymous: true,
            hmac_secret: Some(SECRET.to_owned()),
            keys: VerifyingKeys::default(),
            issuer: None,
            audience: None,
            jwks: None,
            claims: Default::default(),
            leeway_s: 2,
            first_message_timeout_ms: 0,
            expiry_notice_s: 0,
            anonymous_rights: Rights::NONE,
            user_rights: Rights::NONE,
        })
    }

    fn request(user: &str) -> RoomTokenRequest {
        let actions = RoomActions::NONE.with("join").and_then(|join| join.with("history"));
        let (user, room) = (user.to_owned(), "vip:a".to_owned());
        RoomTokenRequest { user, room, actions: actions.expect("actions"), expires_unix_s: 100 }
    }

    #[test]
    fn a_token_for_a_room_says_for_whom_and_what_it_allows_until_it_expires() {
        let authenticator = authenticator();
        for user in ["ann", "anon-8c1f"] {
            let token = mint_for_room(&request(user), SECRET).expect("good claims");
            let admission = authenticator.admit_to_room(&token, 50).expect("it is good");
            assert_eq!((&*admission.user, &*admission.room), (user, "vip:a"));
            assert_eq!(admission.expires_unix_s, Some(102), "leeway included");
            assert!(admission.actions.allow(RoomAction::History));
            assert!(!admission.actions.allow(RoomAction::Publish));
            assert_eq!(authenticator.admit_to_room(&token, 102), Err(AuthError::Expired));
            let other = mint_for_room(&request(user), "another secret").expect("good claims");
            assert_eq!(authenticator.admit_to_room(&other, 50), Err(AuthError::Invalid));
        }
        let unnamed = RoomTokenRequest { room: String::new(), ..request("ann") };
        assert!(mint_for_room(&unnamed, SECRET).is_err());
    }

    #[test]
    fn a_token_for_a_room_opens_no_connection_and_one_for_a_connection_no_room() {
        let authenticator = authenticator();
        let of_room = mint_for_room(&request("ann"), SECRET).expect("good claims");
        assert_eq!(authenticator.admit(Some(&of_room), 50), Err(AuthError::OnlyForRoom));
        let claims = serde_json::json!({"sub": "ann", "exp": 100});
        let key = EncodingKey::from_secret(SECRET.as_bytes());
        let of_user = encode(&Header::default(), &claims, &key).expect("JSON");
        assert!(authenticator.admit(Some(&of_user), 50).is_ok());
        assert_eq!(authenticator.admit_to_room(&of_user, 50), Err(AuthError::NotForRoom));
    }
}
