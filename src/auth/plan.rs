//! Authentication as configured.

use crate::policy::rights::Rights;
use std::fmt;

/// Who is admitted, and with which rights.
#[derive(Clone)]
pub struct AuthPlan {
    /// Whether clients without a token may.
    pub anonymous: bool,
    /// The HS256 secret, if tokens are accepted.
    pub hmac_secret: Option<String>,
    /// What an anonymous client may do.
    pub anonymous_rights: Rights,
    /// The rights of a user whose token has no `rights`.
    pub user_rights: Rights,
}

impl fmt::Debug for AuthPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthPlan")
            .field("anonymous", &self.anonymous)
            .field("hmac_secret", &self.hmac_secret.is_some())
            .field("anonymous_rights", &self.anonymous_rights.names())
            .field("user_rights", &self.user_rights.names())
            .finish()
    }
}
