use super::*;
use jsonwebtoken::Algorithm;
use jsonwebtoken::{EncodingKey, Header, encode};
use serde_json::{Value, json};

const LEEWAY_S: u64 = 2;
const NOW: u64 = 1_700_000_000;
const SECRET: &str = "a secret of the right length, so it is";
const USER_RIGHTS: Rights = Rights { publish: true, send: true, ..Rights::NONE };
const ANON_RIGHTS: Rights = Rights { publish: true, ..Rights::NONE };

fn authenticator(anonymous: bool, secret: Option<&str>) -> Authenticator {
    Authenticator::new(&AuthPlan {
        anonymous,
        hmac_secret: secret.map(str::to_owned),
        anonymous_rights: ANON_RIGHTS,
        user_rights: USER_RIGHTS,
        keys: VerifyingKeys::default(),
        issuer: None,
        audience: None,
        claims: ClaimNames::default(),
        jwks: None,
        leeway_s: LEEWAY_S,
        first_message_timeout_ms: 0,
        expiry_notice_s: 0,
    })
}

fn signed(algorithm: Algorithm, secret: &str, claims: &Value) -> String {
    encode(&Header::new(algorithm), claims, &EncodingKey::from_secret(secret.as_bytes())).unwrap()
}

fn admitted(claims: &Value) -> Result<Identity, AuthError> {
    authenticator(false, Some(SECRET)).admit(Some(&signed(Algorithm::HS256, SECRET, claims)), NOW)
}

/// The same identity, whenever it has to go.
fn forever(identity: Identity) -> Identity {
    Identity { expires_unix_s: None, mark: None, ..identity }
}

fn judge(claims: Value) -> Result<Identity, AuthError> {
    admitted(&claims).map(forever)
}

fn ann(rights: Rights) -> Result<Identity, AuthError> {
    Ok(Identity {
        user: Some("ann".into()),
        rights,
        expires_unix_s: None,
        grants: None,
        info: None,
        mark: None,
    })
}

#[test]
fn time_decides_with_a_small_leeway_on_both_sides() {
    for (claims, verdict) in [
        (json!({"sub": "ann"}), ann(USER_RIGHTS)),
        (json!({"sub": "ann", "exp": NOW + 1}), ann(USER_RIGHTS)),
        (json!({"sub": "ann", "exp": NOW + 1 - LEEWAY_S}), ann(USER_RIGHTS)),
        (json!({"sub": "ann", "exp": NOW as f64 + 0.5 - LEEWAY_S as f64}), ann(USER_RIGHTS)),
        (json!({"sub": "ann", "exp": NOW - LEEWAY_S}), Err(AuthError::Expired)),
        (json!({"sub": "ann", "exp": 0}), Err(AuthError::Expired)),
        (json!({"sub": "ann", "exp": -1}), Err(AuthError::Expired)),
        (json!({"sub": "ann", "exp": "tomorrow"}), Err(AuthError::Invalid)),
        (json!({"sub": "ann", "nbf": NOW}), ann(USER_RIGHTS)),
        (json!({"sub": "ann", "nbf": NOW + LEEWAY_S}), ann(USER_RIGHTS)),
        (json!({"sub": "ann", "nbf": NOW + LEEWAY_S + 1}), Err(AuthError::Invalid)),
    ] {
        assert_eq!(judge(claims.clone()), verdict, "{claims}");
    }
}

#[test]
fn a_token_says_when_its_connection_ends_and_milliseconds_are_no_seconds() {
    let expires = |claims: Value| admitted(&claims).map(|identity| identity.expires_unix_s);
    for (claims, verdict) in [
        (json!({"sub": "ann"}), Ok(None)),
        (json!({"sub": "ann", "exp": NOW + 60}), Ok(Some(NOW + 60 + LEEWAY_S))),
        (json!({"sub": "ann", "exp": NOW as f64 + 60.5}), Ok(Some(NOW + 61 + LEEWAY_S))),
        (json!({"sub": "ann", "exp": 99_999_999_999u64}), Ok(Some(99_999_999_999 + LEEWAY_S))),
        (json!({"sub": "ann", "exp": (NOW + 60) * 1000}), Err(AuthError::ExpInMilliseconds)),
        (json!({"sub": "ann", "exp": 1e300}), Err(AuthError::ExpInMilliseconds)),
        (json!({"sub": "ann", "exp": u64::MAX}), Err(AuthError::ExpInMilliseconds)),
    ] {
        assert_eq!(expires(claims.clone()), verdict, "{claims}");
    }
}

#[test]
fn a_token_names_a_user_who_may_be_one() {
    let too_long = "x".repeat(256);
    for (claims, is_good) in [
        (json!({"sub": "ann", "aud": "others", "iss": "them", "iat": 1, "x": {}}), true),
        (json!({"sub": "Ännchen 7"}), true),
        (json!({}), false),
        (json!({"sub": 7}), false),
        (json!({"sub": null}), false),
        (json!({"sub": ""}), false),
        (json!({"sub": "a\nb"}), false),
        (json!({"sub": too_long}), false),
        (json!({"sub": "anon-7"}), false),
        (json!({"sub": "anonymous"}), true),
        (json!(["ann"]), false),
    ] {
        let verdict = judge(claims.clone());
        assert_eq!(verdict.is_ok(), is_good, "{claims}");
        assert!(is_good || verdict == Err(AuthError::Invalid), "{claims}");
    }
}

#[test]
fn rights_in_a_token_replace_the_default_ones() {
    let all = Rights { publish: true, publish_unjoined: true, send: true, broadcast: true };
    for (rights, verdict) in [
        (json!(["broadcast"]), ann(Rights { broadcast: true, ..Rights::NONE })),
        (json!(["publish", "publish_unjoined", "send", "broadcast"]), ann(all)),
        (json!([]), ann(Rights::NONE)),
        (json!(["fly", "send"]), ann(Rights { send: true, ..Rights::NONE })),
        (json!(null), ann(USER_RIGHTS)),
        (json!("broadcast"), Err(AuthError::Invalid)),
        (json!([1]), Err(AuthError::Invalid)),
    ] {
        assert_eq!(judge(json!({"sub": "ann", "rights": rights})), verdict, "{rights}");
    }
}

#[test]
fn a_token_may_name_rooms_and_users_in_two_forms_and_in_no_others() {
    use crate::policy::grants::RoomAction::{Join, Publish};
    let granted = |claims: Value| judge(claims).map(|identity| identity.grants);
    let of = |rooms: Value| {
        let grants = granted(json!({"sub": "ann", "rooms": rooms})).expect("a good token")?;
        Some([Join, Publish].map(|action| grants.allow(action, "chat:a", "ann")))
    };
    assert_eq!(of(json!(["chat:*"])), Some([Some(true); 2]));
    assert_eq!(of(json!({"join": ["chat:*"], "fly": 7})), Some([Some(true), Some(false)]));
    assert_eq!(of(json!({})), Some([Some(false); 2]));
    assert_eq!(of(json!([])), Some([Some(false); 2]));
    assert_eq!(of(json!(null)), None, "it says nothing of rooms");
    for wrong in [json!("chat:*"), json!([1]), json!({"join": "chat:*"}), json!(true)] {
        let claims = json!({"sub": "ann", "rooms": wrong});
        assert_eq!(granted(claims.clone()), Err(AuthError::Invalid), "{claims}");
    }
    let send = granted(json!({"sub": "ann", "send": ["team-*"]})).unwrap().expect("it says so");
    assert!(send.allow_send("team-a", "ann") && !send.allow_send("bob", "ann"));
    assert_eq!(send.allow(Join, "chat:a", "ann"), None);
    assert_eq!(granted(json!({"sub": "ann", "send": "bob"})), Err(AuthError::Invalid));
    let many: Vec<String> = (0..65).map(|n| n.to_string()).collect();
    assert_eq!(granted(json!({"sub": "ann", "rooms": many})), Err(AuthError::TooManyGrants));
}

#[test]
fn only_our_signature_counts() {
    let authenticator = authenticator(false, Some(SECRET));
    let claims = json!({"sub": "ann"});
    let good = signed(Algorithm::HS256, SECRET, &claims);
    assert_eq!(authenticator.admit(Some(&good), NOW), ann(USER_RIGHTS));
    for algorithm in [Algorithm::HS384, Algorithm::HS512] {
        let good = signed(algorithm, SECRET, &claims);
        assert_eq!(authenticator.admit(Some(&good), NOW), ann(USER_RIGHTS));
    }

    let (head, rest) = good.split_once('.').unwrap();
    let (body, signature) = rest.split_once('.').unwrap();
    let mut flipped = signature.to_owned();
    let first = if flipped.starts_with('A') { "B" } else { "A" };
    flipped.replace_range(..1, first);
    // {"alg":"none"} and {"alg":"NONE","typ":"JWT"}
    let (none, shouted) = ("eyJhbGciOiJub25lIn0", "eyJhbGciOiJOT05FIiwidHlwIjoiSldUIn0");
    let other_body = signed(Algorithm::HS256, "another", &json!({"sub": "bob"}));
    let bob = other_body.split('.').nth(1).unwrap();
    for (what, token) in [
        ("another secret", signed(Algorithm::HS256, "another secret", &claims)),
        ("another secret", signed(Algorithm::HS512, "another secret", &claims)),
        ("no algorithm", format!("{none}.{body}.")),
        ("no algorithm", format!("{shouted}.{body}.")),
        ("no algorithm, signed", format!("{none}.{body}.{signature}")),
        ("a changed signature", format!("{head}.{body}.{flipped}")),
        ("no signature", format!("{head}.{body}.")),
        ("no signature", format!("{head}.{body}")),
        ("another body", format!("{head}.{bob}.{signature}")),
        ("too many parts", format!("{good}.{signature}")),
        ("a space", format!(" {good}")),
        ("nothing", String::new()),
        ("garbage", "…".to_owned()),
    ] {
        assert_eq!(authenticator.admit(Some(&token), NOW), Err(AuthError::Invalid), "{what}");
    }
}

#[test]
fn nobody_comes_in_without_a_token_unless_that_is_allowed() {
    let anonymous = Ok(Identity {
        user: None,
        rights: ANON_RIGHTS,
        expires_unix_s: None,
        grants: None,
        info: None,
        mark: None,
    });
    assert_eq!(authenticator(true, None).admit(None, NOW), anonymous);
    assert_eq!(authenticator(true, Some(SECRET)).admit(None, NOW), anonymous);
    assert_eq!(authenticator(false, Some(SECRET)).admit(None, NOW), Err(AuthError::Missing));
}

#[test]
fn a_bad_token_is_denied_even_where_none_would_do() {
    let expired = signed(Algorithm::HS256, SECRET, &json!({"sub": "ann", "exp": 1}));
    assert_eq!(
        authenticator(true, Some(SECRET)).admit(Some(&expired), NOW),
        Err(AuthError::Expired)
    );
    assert_eq!(authenticator(true, Some(SECRET)).admit(Some("x"), NOW), Err(AuthError::Invalid));
    assert_eq!(authenticator(true, None).admit(Some(&expired), NOW), Err(AuthError::Invalid));
}

#[test]
fn what_is_minted_is_admitted_and_what_would_not_be_is_not_minted() {
    let request = |user: &str, rights| TokenRequest {
        user: user.to_owned(),
        rights,
        rooms: Vec::new(),
        send: Vec::new(),
        info: None,
        issued_unix_s: NOW,
        expires_unix_s: NOW + 60,
    };
    let authenticator = authenticator(false, Some(SECRET));
    let token = mint(&request("ann", None), SECRET).unwrap();
    let admit = |token: &str| authenticator.admit(Some(token), NOW).map(forever);
    assert_eq!(admit(&token), ann(USER_RIGHTS));
    assert_eq!(authenticator.admit(Some(&token), NOW + 60 + LEEWAY_S), Err(AuthError::Expired));
    let listener = mint(&request("ann", Some(Rights::NONE)), SECRET).unwrap();
    assert_eq!(admit(&listener), ann(Rights::NONE));
    let in_rooms = TokenRequest { rooms: vec!["a:*".to_owned()], ..request("ann", None) };
    let grants = admit(&mint(&in_rooms, SECRET).unwrap()).unwrap().grants.expect("it says so");
    let join = crate::policy::grants::RoomAction::Join;
    assert_eq!(
        [grants.allow(join, "a:b", "ann"), grants.allow(join, "b", "ann")],
        [Some(true), Some(false)]
    );
    assert!(mint(&TokenRequest { send: vec!["x".to_owned(); 65], ..in_rooms }, SECRET).is_err());
    assert!(mint(&request("anon-1", None), SECRET).is_err());
    assert!(mint(&request("", None), SECRET).is_err());
}

#[test]
fn a_token_describes_its_user_with_any_json_value_that_is_short() {
    let info = |text: &str| {
        let value: Value = serde_json::from_str(text).expect("JSON");
        admitted(&json!({"sub": "ann", "info": value})).map(|ann| ann.info.map(|it| it.to_string()))
    };
    for text in [r#"{"name":"Ann"}"#, "[1,2]", "7", r#""é""#, "true"] {
        assert_eq!(info(text), Ok(Some(text.to_owned())));
    }
    let (most, more) = (format!("\"{}\"", "x".repeat(510)), format!("\"{}\"", "x".repeat(511)));
    assert_eq!(info(&most), Ok(Some(most.clone())));
    assert_eq!(info(&more), Err(AuthError::InfoTooLong));
    assert_eq!(admitted(&json!({"sub": "ann"})).map(|ann| ann.info), Ok(None));
}

#[test]
fn an_authenticator_that_is_logged_shows_no_secret() {
    assert!(!format!("{:?}", authenticator(true, Some(SECRET))).contains(SECRET));
}
