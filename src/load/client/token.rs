//! Tokens for servers that accept JSON Web Tokens signed with a shared secret (HS256, RFC 7519).
//!
//! Invariant: written from the RFC, not with the code by which the server checks tokens.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, Mac};
use sha2::Sha256;

/// `{"alg":"HS256","typ":"JWT"}`
const HEADER: &str = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9";
/// In the year 2100.
const EXPIRES_UNIX_S: u64 = 4_102_444_800;

/// A token for `user`. It names no rights, so the server grants its defaults.
pub(crate) fn sign(user: &[u8], secret: &str) -> String {
    let user = String::from_utf8_lossy(user);
    let claims = serde_json::json!({ "sub": user, "exp": EXPIRES_UNIX_S }).to_string();
    let text = format!("{HEADER}.{}", URL_SAFE_NO_PAD.encode(claims));
    let key = Hmac::<Sha256>::new_from_slice(secret.as_bytes());
    let key = key.expect("a secret of any length is a key (RFC 2104)");
    let signature = key.chain_update(&text).finalize().into_bytes();
    format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature))
}
