//! Authentication as configured.

use crate::auth::claim_names::ClaimNames;
use crate::auth::keys::VerifyingKeys;
use crate::policy::rights::Rights;
use std::fmt;
use std::time::Duration;

/// Who is admitted, and with which rights.
#[derive(Clone)]
pub struct AuthPlan {
    /// Whether clients without a token may.
    pub anonymous: bool,
    /// The HS256 secret, if tokens are accepted.
    pub hmac_secret: Option<String>,
    /// Keys of identity providers.
    pub keys: VerifyingKeys,
    /// Where further keys are read from, while the node runs.
    pub jwks: Option<JwksPlan>,
    /// What `iss` must be, if it is looked at.
    pub issuer: Option<String>,
    /// What `aud` must be or have, if it is looked at.
    pub audience: Option<String>,
    /// Where in a token the claims stand, and which of them it must have.
    pub claims: ClaimNames,
    /// How far clocks may differ, in seconds.
    pub leeway_s: u64,
    /// How long a client that came without a token may take to send one, in milliseconds. 0: it has to
    /// come with one.
    pub first_message_timeout_ms: u64,
    /// How long before its token expires a client receives a notice, in seconds. 0: it does not.
    pub expiry_notice_s: u64,
    /// What an anonymous client may do.
    pub anonymous_rights: Rights,
    /// The rights of a user whose token has no `rights`.
    pub user_rights: Rights,
}

/// Keys at a URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JwksPlan {
    /// Where they are.
    pub url: String,
    /// The authorities that may have signed that server's certificate; `None`: public ones.
    pub tls_ca_file: Option<String>,
    /// How long reading them may take.
    pub timeout: Duration,
    /// The shortest pause between two readings.
    pub refresh_min: Duration,
    /// The longest.
    pub refresh_max: Duration,
}

impl AuthPlan {
    /// Whether a client that came without a token may send one in its first message.
    pub fn awaits_first_message(&self) -> bool {
        self.first_message_timeout_ms > 0 && !self.anonymous
    }

    /// Whether tokens are accepted at all.
    pub fn has_tokens(&self) -> bool {
        self.hmac_secret.is_some() || !self.keys.is_empty() || self.jwks.is_some()
    }
}

impl fmt::Debug for AuthPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthPlan")
            .field("anonymous", &self.anonymous)
            .field("hmac_secret", &self.hmac_secret.is_some())
            .field("keys", &self.keys)
            .field("jwks", &self.jwks)
            .field("issuer", &self.issuer)
            .field("audience", &self.audience)
            .field("claims", &self.claims)
            .field("leeway_s", &self.leeway_s)
            .field("first_message_timeout_ms", &self.first_message_timeout_ms)
            .field("expiry_notice_s", &self.expiry_notice_s)
            .field("anonymous_rights", &self.anonymous_rights.names())
            .field("user_rights", &self.user_rights.names())
            .finish()
    }
}
