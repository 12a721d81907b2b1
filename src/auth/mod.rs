//! Authentication: which clients are admitted, and with which rights.
//!
//! A client sends a token (a JWT) or none. The [`Authenticator`] checks it before any upgrade, from
//! the token and the time alone, and each further token that a connection brings: the [`Identity`]
//! travels with the connection. An invalid token is refused even where anonymous clients are allowed,
//! because a client that takes itself for Ann must not silently be anonymous.
//!
//! Invariant: pure. No clock, no socket; and no secret ever leaves this room, not even by `Debug`.

mod anonymous;
mod claim_names;
mod crypto;
pub mod grants;
mod keys;
mod plan;
mod room;
mod token;

pub use anonymous::AnonymousSecret;
pub use claim_names::ClaimNames;
pub use keys::{FetchedKeys, VerifyingKeys};
pub use room::{RoomAdmission, RoomTokenRequest, mint_for_room};
pub use token::{TokenRequest, mint};

/// What user names of tokens may not begin with: such names are given to anonymous clients, and
/// no user may be mistaken for one of them.
pub use crate::ids::ANONYMOUS_PREFIX;
use crate::ids::{is_name, is_user_name};
use crate::policy::grants::{Grants, RoomActions};
use crate::policy::revocations::TokenMark;
use crate::policy::rights::Rights;
use crate::protocol::{INFO_BYTES_MAX, Info};
use jsonwebtoken::{AlgorithmFamily, Header, Validation, decode, decode_header};
use keys::VerifyingKey;
pub use plan::{AuthPlan, JwksPlan};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use std::fmt;
use std::sync::Arc;

/// Who a client is, and what it may do. Travels with the connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The authenticated user; `None` for an anonymous client, which gets a generated name.
    pub user: Option<Box<str>>,
    /// What it may do; from the token, or the configured default.
    pub rights: Rights,
    /// When their token is good no longer, in whole seconds since 1970, leeway included. `None`: it
    /// does not expire.
    pub expires_unix_s: Option<u64>,
    /// What its token allows in rooms and towards users, if it says so.
    pub grants: Option<Arc<Grants>>,
    /// What its token says about its user, for others.
    pub info: Option<Info>,
    /// What revocations are compared with, if its token has `jti` or `iat`.
    pub mark: Option<TokenMark>,
}

/// Why a client is not admitted. Answered with HTTP 401 before any upgrade.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuthError {
    /// No token, and anonymous clients are not allowed.
    Missing,
    /// Not a token of ours.
    Invalid,
    /// It names a key that is not known, and that the identity provider may have made since its keys
    /// were read.
    UnknownKey,
    /// Its `exp` has passed, leeway included.
    Expired,
    /// Its `exp` is in milliseconds: it would be good for fifty thousand years.
    ExpInMilliseconds,
    /// Its `iss` is not `auth.issuer`.
    WrongIssuer,
    /// Its `aud` is not `auth.audience`, and does not have it.
    WrongAudience,
    /// It lacks what `auth.required_claims` asks for.
    LacksClaim,
    /// It was revoked.
    Revoked,
    /// It has more patterns of rooms and users than a token may have.
    TooManyGrants,
    /// Its `info` has more than [`INFO_BYTES_MAX`] bytes.
    InfoTooLong,
    /// It is for one room, and shows nobody who a client is.
    OnlyForRoom,
    /// It is for no room, where one for a room is asked for.
    NotForRoom,
}

/// An `exp` from here on is no number of seconds: it would be in the year 5138. Milliseconds have
/// been beyond it since 1973.
const EXP_MAX_S: f64 = 1e11;

/// Decides who is admitted, from the token alone. Pure: time is an argument.
pub struct Authenticator {
    anonymous: Option<Rights>,
    keys: VerifyingKeys,
    has_jwks: bool,
    issuer: Option<String>,
    audience: Option<String>,
    claim_names: ClaimNames,
    leeway_s: u64,
    user_rights: Rights,
}

/// RFC 7519 §4.1.3: one, or several.
#[derive(Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Several(Vec<String>),
}

impl Audience {
    fn has(&self, wanted: &str) -> bool {
        match self {
            Audience::One(one) => one == wanted,
            Audience::Several(all) => all.iter().any(|one| one == wanted),
        }
    }
}

/// What we read of a token. Other claims are ignored.
#[derive(Deserialize)]
struct Claims {
    sub: String,
    iss: Option<String>,
    aud: Option<Audience>,
    // RFC 7519 §2: a NumericDate may have a fraction.
    exp: Option<f64>,
    nbf: Option<f64>,
    // Of whatever shape: what cannot be read is as if it were not there.
    #[serde(default)]
    iat: Value,
    #[serde(default)]
    jti: Value,
    rights: Option<Vec<String>>,
    rooms: Option<grants::RoomsClaim>,
    send: Option<Vec<String>>,
    info: Option<Box<RawValue>>,
    room: Option<String>,
    actions: Option<Vec<String>>,
    /// It lacks a claim that it must have.
    #[serde(skip)]
    is_lacking: bool,
}

impl Authenticator {
    /// As planned.
    pub fn new(plan: &AuthPlan) -> Authenticator {
        Authenticator::with_fetched(plan, &VerifyingKeys::default())
    }

    /// As planned, with the keys that were read from `auth.jwks_url`.
    pub fn with_fetched(plan: &AuthPlan, fetched: &VerifyingKeys) -> Authenticator {
        crypto::install();
        let secret = plan.hmac_secret.as_ref();
        let keys = plan.keys.clone().and(fetched);
        let keys = match secret.map(|secret| VerifyingKey::secret(secret.as_bytes())) {
            Some(secret) => keys.with(secret),
            None => keys,
        };
        Authenticator {
            anonymous: plan.anonymous.then_some(plan.anonymous_rights),
            keys,
            has_jwks: plan.jwks.is_some(),
            issuer: plan.issuer.clone(),
            audience: plan.audience.clone(),
            claim_names: plan.claims.clone(),
            leeway_s: plan.leeway_s,
            user_rights: plan.user_rights,
        }
    }

    /// Checks a token (from `?token=` or `Authorization: Bearer`), `now` in seconds since 1970.
    ///
    /// 1. None: anonymous, if that is allowed. Without a secret, `undefined`, `null` and nothing are
    ///    none.
    /// 2. A good one: its user, with the rights it names, or the default ones if it names none.
    ///    A token without `exp` does not expire. Rights of unknown names give nothing. `rooms` and
    ///    `send` say where they hold ([`Grants`]).
    /// 3. Anything else is denied, an `exp` in milliseconds included, also where anonymous clients
    ///    are allowed.
    pub fn admit(&self, token: Option<&str>, now_unix_s: u64) -> Result<Identity, AuthError> {
        let Some(token) = token.filter(|token| !self.is_no_token(token)) else {
            let rights = self.anonymous.ok_or(AuthError::Missing)?;
            return Ok(Identity {
                user: None,
                rights,
                expires_unix_s: None,
                grants: None,
                info: None,
                mark: None,
            });
        };
        let claims = self.good_claims(token, now_unix_s)?;
        if claims.room.is_some() {
            return Err(AuthError::OnlyForRoom);
        }
        if !is_user_name(&claims.sub) {
            return Err(AuthError::Invalid);
        }
        let grants = grants::granted(claims.rooms, claims.send)?;
        let rights = claims.rights.map_or(self.user_rights, |names| granted(&names));
        let expires_unix_s = claims.exp.map(|exp| exp.ceil() as u64 + self.leeway_s);
        let info = claims.info.as_deref().map(info).transpose()?;
        let mark = mark_of(&claims.iat, &claims.jti);
        let user = Some(claims.sub.into());
        Ok(Identity { user, rights, expires_unix_s, grants, info, mark })
    }

    /// Checks a token for one room, which comes with a join, `now` in seconds since 1970. Without the
    /// claim `actions` it allows all; actions of unknown names give nothing. That room and user are
    /// the right ones is the caller's to see.
    pub fn admit_to_room(&self, token: &str, now_unix_s: u64) -> Result<RoomAdmission, AuthError> {
        let claims = self.good_claims(token, now_unix_s)?;
        let room = claims.room.ok_or(AuthError::NotForRoom)?;
        if !is_name(&claims.sub) || !is_name(&room) {
            return Err(AuthError::Invalid);
        }
        let named = |names: Vec<String>| {
            let all = names.iter();
            all.fold(RoomActions::NONE, |actions, name| actions.with(name).unwrap_or(actions))
        };
        Ok(RoomAdmission {
            user: claims.sub.into(),
            room: room.into(),
            actions: claims.actions.map_or(RoomActions::ALL, named),
            mark: mark_of(&claims.iat, &claims.jti),
            expires_unix_s: claims.exp.map(|exp| exp.ceil() as u64 + self.leeway_s),
        })
    }

    /// The claims of a token that one of the keys has signed and that is good now, for us.
    fn good_claims(&self, token: &str, now_unix_s: u64) -> Result<Claims, AuthError> {
        let claims = self.signed_claims(token).ok_or_else(|| self.why_unsigned(token))?;
        let now = now_unix_s as f64;
        let leeway = self.leeway_s as f64;
        if claims.exp.is_some_and(|exp| now >= exp + leeway) {
            return Err(AuthError::Expired);
        }
        if claims.exp.is_some_and(|exp| exp >= EXP_MAX_S) {
            return Err(AuthError::ExpInMilliseconds);
        }
        if claims.nbf.is_some_and(|nbf| now + leeway < nbf) {
            return Err(AuthError::Invalid);
        }
        if self.issuer.as_ref().is_some_and(|issuer| claims.iss.as_ref() != Some(issuer)) {
            return Err(AuthError::WrongIssuer);
        }
        let is_for = |wanted: &String| claims.aud.as_ref().is_some_and(|aud| aud.has(wanted));
        if !self.audience.as_ref().is_none_or(is_for) {
            return Err(AuthError::WrongAudience);
        }
        if claims.is_lacking {
            return Err(AuthError::LacksClaim);
        }
        Ok(claims)
    }

    /// Whom a token names that is signed with the key, whether or not it is good now. For logs.
    pub fn user_of(&self, token: &str) -> Option<String> {
        let user = self.signed_claims(token)?.sub;
        is_user_name(&user).then_some(user)
    }

    /// The claims of a token that one of the keys has signed. Time, `iss` and `aud` are judged by the
    /// caller; what a token says must be understood (`crit`, RFC 7515 §4.1.11), nothing here does.
    fn signed_claims(&self, token: &str) -> Option<Claims> {
        let header = decode_header(token).ok()?;
        if header.crit.is_some() {
            return None;
        }
        let mut validation = Validation::new(header.alg);
        validation.required_spec_claims.clear();
        validation.validate_exp = false;
        validation.validate_nbf = false;
        validation.validate_aud = false;
        let mut keys = self.keys.candidates(&header);
        if self.claim_names.is_empty() {
            let claims = keys.find_map(|key| decode(token, &key.key, &validation).ok());
            return claims.map(|signed| signed.claims);
        }
        let claims = keys.find_map(|key| decode(token, &key.key, &validation).ok())?;
        self.renamed(claims.claims)
    }

    /// The claims of a token whose provider has other names for them.
    fn renamed(&self, mut claims: Map<String, Value>) -> Option<Claims> {
        let is_lacking = self.claim_names.is_lacking(&claims);
        self.claim_names.rename(&mut claims);
        let claims: Claims = serde_json::from_value(Value::Object(claims)).ok()?;
        Some(Claims { is_lacking, ..claims })
    }

    /// Why there are no claims.
    fn why_unsigned(&self, token: &str) -> AuthError {
        let header = decode_header(token).ok().filter(|header| header.crit.is_none());
        let is_secret = |header: &Header| header.alg.family() == AlgorithmFamily::Hmac;
        let named = header.filter(|header| self.has_jwks && !is_secret(header));
        match named.and_then(|header| header.kid) {
            Some(id) if !self.keys.has(&id) => AuthError::UnknownKey,
            _ => AuthError::Invalid,
        }
    }

    /// Where no token is good, a page's variable that is not set is the same as none.
    fn is_no_token(&self, token: &str) -> bool {
        self.keys.is_empty() && !self.has_jwks && matches!(token, "" | "undefined" | "null")
    }
}

/// The claim `info`, byte for byte: any JSON value.
fn info(claim: &RawValue) -> Result<Info, AuthError> {
    let text = claim.get();
    if text.len() > INFO_BYTES_MAX { Err(AuthError::InfoTooLong) } else { Ok(text.into()) }
}

/// What revocations are compared with. An id that is a number is its digits.
fn mark_of(iat: &Value, jti: &Value) -> Option<TokenMark> {
    let id = match jti {
        Value::String(id) => Some(id.clone()),
        Value::Number(id) => Some(id.to_string()),
        _ => None,
    };
    TokenMark::new(id.as_deref(), iat.as_f64())
}

/// Unknown names are skipped: a token made for a newer version gives less here, never more.
fn granted(names: &[String]) -> Rights {
    names.iter().fold(Rights::NONE, |rights, name| rights.with(name).unwrap_or(rights))
}

impl fmt::Debug for Authenticator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authenticator")
            .field("anonymous", &self.anonymous)
            .field("keys", &self.keys)
            .field("user_rights", &self.user_rights)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
