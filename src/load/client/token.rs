//! Tokens for servers that accept JSON Web Tokens signed with a shared secret (HS256, RFC 7519).
//!
//! Invariant: written from the RFC, not with the code by which the server checks tokens.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, Mac};
use sha2::Sha256;

/// `{"alg":"HS256","typ":"JWT"}`
const HEADER: &str = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9";
/// A token with these claims, a JSON object.
pub(crate) fn sign(claims: &[u8], secret: &str) -> String {
    let text = format!("{HEADER}.{}", URL_SAFE_NO_PAD.encode(claims));
    let key = Hmac::<Sha256>::new_from_slice(secret.as_bytes());
    let key = key.expect("a secret of any length is a key (RFC 2104)");
    let signature = key.chain_update(&text).finalize().into_bytes();
    format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature))
}
