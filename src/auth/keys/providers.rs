//! Tokens in the shapes in which identity providers issue them, with keys that are made here.

use super::tests::{NOW, Signing, curve, named, plan, rsa, set, token};
use crate::auth::{AuthError, AuthPlan, Authenticator, ClaimNames, Identity};
use crate::policy::grants::RoomAction;
use ring::signature::ECDSA_P256_SHA256_FIXED_SIGNING;
use serde_json::{Value, json};

/// A provider as it is configured here, with a key of its set.
struct Provider {
    key: Signing,
    algorithm: &'static str,
    plan: AuthPlan,
}

impl Provider {
    fn new(
        (key, algorithm): (Signing, &'static str),
        issuer: &str,
        audience: Option<&str>,
        claims: ClaimNames,
    ) -> Provider {
        let keys = set(&[
            named(&key, "key-1"),
            named(&curve("P-256", &ECDSA_P256_SHA256_FIXED_SIGNING), "key-2"),
        ]);
        let (issuer, audience) = (Some(issuer.to_owned()), audience.map(str::to_owned));
        Provider { key, algorithm, plan: AuthPlan { issuer, audience, claims, ..plan(keys) } }
    }

    fn admit(&self, claims: &Value) -> Result<Identity, AuthError> {
        let header = json!({"alg": self.algorithm, "kid": "key-1", "typ": "JWT"});
        let token = token(&self.key, &header, claims);
        Authenticator::new(&self.plan).admit(Some(&token), NOW)
    }

    /// With one claim as it is here; null: without it.
    fn admit_with(&self, claims: &Value, claim: &str, value: Value) -> Result<Identity, AuthError> {
        let mut claims = claims.clone();
        match value {
            Value::Null => _ = claims.as_object_mut().expect("an object").remove(claim),
            value => claims[claim] = value,
        }
        self.admit(&claims)
    }
}

fn user(identity: Result<Identity, AuthError>) -> String {
    identity.expect("it is good").user.expect("a user").into()
}

fn may_join(identity: &Identity, room: &str) -> Option<bool> {
    let user = identity.user.as_deref().expect("a user");
    identity.grants.as_ref().and_then(|grants| grants.allow(RoomAction::Join, room, user))
}

fn names() -> ClaimNames {
    ClaimNames::default()
}

#[test]
fn auth0() {
    let issuer = "https://example.eu.auth0.com/";
    let claims = names().with("rooms", Some("https://example.com/rooms"));
    let auth0 = Provider::new((rsa(), "RS256"), issuer, Some("https://chat.example.com"), claims);
    let access = json!({
        "https://example.com/rooms": {"join": ["chat:*", "dm:{user}:*"]},
        "iss": issuer, "sub": "auth0|5f7c8ec7c33c6c004bbafe82",
        "aud": ["https://chat.example.com", "https://example.eu.auth0.com/userinfo"],
        "iat": NOW - 10, "exp": NOW + 86_400, "azp": "my_client_id", "scope": "openid profile email",
    });
    let identity = auth0.admit(&access).expect("it is good");
    assert_eq!(identity.user.as_deref(), Some("auth0|5f7c8ec7c33c6c004bbafe82"));
    let rooms = ["chat:a", "dm:auth0|5f7c8ec7c33c6c004bbafe82:bob", "dm:eve:bob"];
    assert_eq!(rooms.map(|room| may_join(&identity, room)), [true, true, false].map(Some));
    assert!(identity.mark.is_some(), "it can be revoked by its age");
    let other = auth0.admit_with(&access, "aud", json!(["https://example.eu.auth0.com/userinfo"]));
    assert_eq!(other, Err(AuthError::WrongAudience));
    let tenant = auth0.admit_with(&access, "iss", json!("https://evil.eu.auth0.com/"));
    assert_eq!(tenant, Err(AuthError::WrongIssuer));
    let own = auth0.admit_with(&access, "rooms", json!(["**"])).expect("it is good");
    assert_eq!(may_join(&own, "vip"), Some(false), "a claim that nobody configured gives nothing");
}

#[test]
fn keycloak() {
    let issuer = "https://sso.example.com/realms/main";
    let claims = names()
        .with("rights", Some("resource_access.campanile.roles"))
        .requiring("azp=web,typ=Bearer")
        .expect("two claims");
    let keycloak = Provider::new((rsa(), "RS256"), issuer, None, claims);
    let access = json!({
        "exp": NOW + 300, "iat": NOW, "jti": "0c1a4b6e-1c5e-4a53-a6d5-3f1e5f3f2d55", "iss": issuer,
        "aud": "account", "sub": "f0e8f1c2-52a4-4a5a-9d7b-0d1a0c7a5a10", "typ": "Bearer",
        "azp": "web", "sid": "c1", "acr": "1", "allowed-origins": ["https://app.example.com"],
        "realm_access": {"roles": ["offline_access", "uma_authorization"]},
        "resource_access": {"campanile": {"roles": ["publish", "broadcast", "moderator"]}},
        "scope": "openid email", "email_verified": true, "preferred_username": "ann",
    });
    let identity = keycloak.admit(&access).expect("it is good");
    assert_eq!(identity.rights.names(), ["publish", "broadcast"]);
    assert_eq!(keycloak.admit_with(&access, "azp", json!("admin")), Err(AuthError::LacksClaim));
    assert_eq!(keycloak.admit_with(&access, "typ", json!("ID")), Err(AuthError::LacksClaim));
    let roleless = keycloak.admit_with(&access, "resource_access", Value::Null).expect("good");
    assert_eq!(roleless.rights, keycloak.plan.user_rights);
    let by_name = names().with("sub", Some("preferred_username"));
    let by_name = Provider::new((rsa(), "PS256"), issuer, Some("account"), by_name);
    assert_eq!(user(by_name.admit(&access)), "ann");
    let anonymous = by_name.admit_with(&access, "preferred_username", json!("anon-1"));
    assert_eq!(anonymous, Err(AuthError::Invalid), "that is a name of clients without a token");
    let nameless = by_name.admit_with(&access, "preferred_username", Value::Null);
    assert_eq!(nameless, Err(AuthError::Invalid));
}

#[test]
fn cognito() {
    let issuer = "https://cognito-idp.eu-central-1.amazonaws.com/eu-central-1_AbCdEfGhI";
    let only_access = names().requiring("token_use=access, client_id=3n4b5urk1ft4fl3mg5e62d9ado");
    let cognito = Provider::new((rsa(), "RS256"), issuer, None, only_access.expect("two claims"));
    let access = json!({
        "sub": "a1b2c3d4-5678-90ab-cdef-EXAMPLE11111", "cognito:groups": ["staff"], "iss": issuer,
        "version": 2, "client_id": "3n4b5urk1ft4fl3mg5e62d9ado", "origin_jti": "o", "jti": "j-1",
        "event_id": "e", "token_use": "access", "scope": "openid", "auth_time": NOW - 5,
        "exp": NOW + 3600, "iat": NOW - 5, "username": "ann",
    });
    assert_eq!(user(cognito.admit(&access)), "a1b2c3d4-5678-90ab-cdef-EXAMPLE11111");
    assert_eq!(cognito.admit_with(&access, "token_use", json!("id")), Err(AuthError::LacksClaim));
    assert_eq!(cognito.admit_with(&access, "client_id", json!("x")), Err(AuthError::LacksClaim));
    let ids = names().with("sub", Some("cognito:username")).with("rooms", Some("custom:rooms"));
    let ids = Provider::new((rsa(), "RS256"), issuer, Some("3n4b5urk1ft4fl3mg5e62d9ado"), ids);
    let id = json!({
        "sub": "a1b2c3d4-5678-90ab-cdef-EXAMPLE11111", "iss": issuer, "token_use": "id",
        "cognito:username": "ann", "aud": "3n4b5urk1ft4fl3mg5e62d9ado", "email_verified": true,
        "custom:rooms": ["chat:*"], "exp": NOW + 3600, "iat": NOW - 5,
    });
    let identity = ids.admit(&id).expect("it is good");
    assert_eq!(
        (identity.user.as_deref(), may_join(&identity, "chat:a")),
        (Some("ann"), Some(true))
    );
    assert_eq!(ids.admit(&access), Err(AuthError::Invalid), "it has no such name");
}

#[test]
fn firebase() {
    let issuer = "https://securetoken.google.com/my-project";
    let staff = names().requiring("email_verified=true").expect("one claim");
    let firebase = Provider::new((rsa(), "RS256"), issuer, Some("my-project"), staff);
    let id = json!({
        "iss": issuer, "aud": "my-project", "auth_time": NOW - 60, "user_id": "Xk3vYwq2",
        "sub": "Xk3vYwq2", "iat": NOW - 60, "exp": NOW + 3540, "email": "ann@example.com",
        "email_verified": true, "rooms": ["chat:*"],
        "firebase": {"identities": {"email": ["ann@example.com"]}, "sign_in_provider": "password"},
    });
    let identity = firebase.admit(&id).expect("it is good");
    assert_eq!(
        (identity.user.as_deref(), may_join(&identity, "vip")),
        (Some("Xk3vYwq2"), Some(false))
    );
    let other = firebase.admit_with(&id, "aud", json!("another-project"));
    assert_eq!(other, Err(AuthError::WrongAudience));
    let unverified = firebase.admit_with(&id, "email_verified", json!(false));
    assert_eq!(unverified, Err(AuthError::LacksClaim));
    assert_eq!(firebase.admit_with(&id, "exp", json!(NOW - 60)), Err(AuthError::Expired));
}

#[test]
fn supabase() {
    let issuer = "https://abcdefgh.supabase.co/auth/v1";
    let claims = names().with("rooms", Some("app_metadata.rooms"));
    let key = (curve("P-256", &ECDSA_P256_SHA256_FIXED_SIGNING), "ES256");
    let supabase = Provider::new(key, issuer, Some("authenticated"), claims);
    let access = json!({
        "iss": issuer, "sub": "2f0a4b1e-0d3c-4a7c-8f3e-0a3c6a1d9b11", "aud": "authenticated",
        "exp": NOW + 3600, "iat": NOW, "email": "ann@example.com", "phone": "",
        "app_metadata": {"provider": "email", "providers": ["email"], "rooms": ["chat:*"]},
        "user_metadata": {"rooms": ["**"]}, "role": "authenticated", "aal": "aal1",
        "amr": [{"method": "password", "timestamp": NOW}], "session_id": "s", "is_anonymous": false,
    });
    let identity = supabase.admit(&access).expect("it is good");
    // What users may write themselves (user_metadata) opens nothing.
    assert_eq!(["chat:a", "vip"].map(|room| may_join(&identity, room)), [Some(true), Some(false)]);
    let service = supabase.admit_with(&access, "aud", json!("anon"));
    assert_eq!(service, Err(AuthError::WrongAudience));
}
