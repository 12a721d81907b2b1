use super::*;
use crate::auth::{AuthError, AuthPlan, Authenticator, ClaimNames};
use crate::policy::rights::Rights;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use ring::rand::SystemRandom;
use ring::signature::{self, EcdsaKeyPair, Ed25519KeyPair, KeyPair, RsaKeyPair};
use serde_json::{Value, json};
use std::io::Write;
use std::process::{Command, Stdio};

pub(super) const NOW: u64 = 1_700_000_000;

fn base64(bytes: impl AsRef<[u8]>) -> String {
    BASE64.encode(bytes)
}

/// A key that signs, with what its provider shows of it.
pub(super) struct Signing {
    /// Its PKCS #8.
    der: Vec<u8>,
    jwk: Value,
    sign: Box<Sign>,
}

/// Signs a message with the algorithm of this name.
type Sign = dyn Fn(&str, &[u8]) -> Vec<u8>;

fn openssl(args: &[&str], input: &[u8]) -> Vec<u8> {
    let mut command = Command::new("openssl");
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().expect("openssl(1)");
    child.stdin.take().expect("it is piped").write_all(input).expect("it reads");
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success(), "openssl {args:?}");
    output.stdout
}

/// The PKCS #8 of a new key.
fn generated(kind: &[&str]) -> Vec<u8> {
    let pem = openssl(&[&["genpkey", "-algorithm"], kind].concat(), b"");
    openssl(&["pkcs8", "-topk8", "-nocrypt", "-outform", "DER"], &pem)
}

pub(super) fn rsa() -> Signing {
    let der = generated(&["RSA", "-pkeyopt", "rsa_keygen_bits:2048"]);
    let pair = RsaKeyPair::from_pkcs8(&der).expect("a key of openssl");
    let public = signature::RsaPublicKeyComponents::<Vec<u8>>::from(pair.public());
    let jwk = json!({"kty": "RSA", "n": base64(&public.n), "e": base64(&public.e)});
    let sign = move |algorithm: &str, message: &[u8]| {
        let padding: &dyn signature::RsaEncoding = match algorithm {
            "RS256" => &signature::RSA_PKCS1_SHA256,
            "RS384" => &signature::RSA_PKCS1_SHA384,
            "RS512" => &signature::RSA_PKCS1_SHA512,
            "PS256" => &signature::RSA_PSS_SHA256,
            "PS384" => &signature::RSA_PSS_SHA384,
            _ => &signature::RSA_PSS_SHA512,
        };
        let mut signed = vec![0; pair.public().modulus_len()];
        pair.sign(padding, &SystemRandom::new(), message, &mut signed).expect("it signs");
        signed
    };
    Signing { der, jwk, sign: Box::new(sign) }
}

pub(super) fn curve(name: &str, kind: &'static signature::EcdsaSigningAlgorithm) -> Signing {
    let der = generated(&["EC", "-pkeyopt", &format!("ec_paramgen_curve:{name}")]);
    let pair = EcdsaKeyPair::from_pkcs8(kind, &der, &SystemRandom::new()).expect("the same key");
    let (x, y) = pair.public_key().as_ref()[1..].split_at(pair.public_key().as_ref().len() / 2);
    let jwk = json!({"kty": "EC", "crv": name, "x": base64(x), "y": base64(y)});
    let sign = move |_: &str, message: &[u8]| {
        pair.sign(&SystemRandom::new(), message).expect("it signs").as_ref().to_vec()
    };
    Signing { der, jwk, sign: Box::new(sign) }
}

fn edwards() -> Signing {
    let der = generated(&["ED25519"]);
    let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(&der).expect("a key of openssl");
    let jwk = json!({"kty": "OKP", "crv": "Ed25519", "x": base64(pair.public_key())});
    Signing { der, jwk, sign: Box::new(move |_, message| pair.sign(message).as_ref().to_vec()) }
}

/// Every kind of key, and the algorithms that it is for.
fn all() -> Vec<(Signing, &'static [&'static str])> {
    vec![
        (rsa(), &["RS256", "RS384", "RS512", "PS256", "PS384", "PS512"]),
        (curve("P-256", &signature::ECDSA_P256_SHA256_FIXED_SIGNING), &["ES256"]),
        (curve("P-384", &signature::ECDSA_P384_SHA384_FIXED_SIGNING), &["ES384"]),
        (edwards(), &["EdDSA"]),
    ]
}

pub(super) fn token(signing: &Signing, header: &Value, claims: &Value) -> String {
    let message = format!("{}.{}", base64(header.to_string()), base64(claims.to_string()));
    let algorithm = header["alg"].as_str().expect("a name");
    let signature = (signing.sign)(algorithm, message.as_bytes());
    format!("{message}.{}", base64(signature))
}

pub(super) fn named(signing: &Signing, id: &str) -> Value {
    let mut jwk = signing.jwk.clone();
    jwk["kid"] = json!(id);
    jwk
}

pub(super) fn set(keys: &[Value]) -> VerifyingKeys {
    VerifyingKeys::read(&json!({"keys": keys}).to_string()).expect("a good set")
}

pub(super) fn plan(keys: VerifyingKeys) -> AuthPlan {
    AuthPlan {
        anonymous: false,
        hmac_secret: None,
        keys,
        issuer: None,
        audience: None,
        claims: ClaimNames::default(),
        jwks: None,
        leeway_s: 2,
        first_message_timeout_ms: 0,
        expiry_notice_s: 0,
        anonymous_rights: Rights::NONE,
        user_rights: Rights::NONE,
    }
}

fn admits(keys: &VerifyingKeys, token: &str) -> bool {
    Authenticator::new(&plan(keys.clone())).admit(Some(token), NOW).is_ok()
}

#[test]
fn each_algorithm_is_verified_with_its_key_and_with_no_other() {
    let (keys, claims) = (all(), json!({"sub": "ann"}));
    let jwks: Vec<Value> =
        keys.iter().enumerate().map(|(n, (key, _))| named(key, &n.to_string())).collect();
    let known = set(&jwks);
    for (n, (key, algorithms)) in keys.iter().enumerate() {
        for algorithm in *algorithms {
            let header = json!({"alg": algorithm, "kid": n.to_string()});
            let good = token(key, &header, &claims);
            assert!(admits(&known, &good), "{algorithm}");
            assert!(admits(&known, &token(key, &json!({"alg": algorithm}), &claims)), "no kid");
            let other = json!({"alg": algorithm, "kid": ((n + 1) % 4).to_string()});
            assert!(!admits(&known, &token(key, &other, &claims)), "{algorithm}, another's kid");
            let mut without = jwks.clone();
            without.remove(n);
            assert!(!admits(&set(&without), &good), "{algorithm} of a key that is not there");
            let (message, signature) = good.rsplit_once('.').expect("three parts");
            let mut broken = BASE64.decode(signature).expect("ours");
            broken[10] ^= 1;
            assert!(!admits(&known, &format!("{message}.{}", base64(broken))), "{algorithm}");
        }
    }
}

/// The header is the sender's: it must not choose how a key is used.
#[test]
fn a_public_key_is_no_secret_and_a_key_is_bound_to_its_algorithm() {
    let (key, claims) = (rsa(), json!({"sub": "ann"}));
    let pem = openssl(&["pkey", "-inform", "DER", "-pubout"], &key.der);
    let known = VerifyingKeys::read(std::str::from_utf8(&pem).expect("PEM")).expect("a key");
    for secret in
        [&pem[..], &openssl(&["pkey", "-inform", "DER", "-pubout", "-outform", "DER"], &key.der)]
    {
        let secret = secret.to_vec();
        let hmac = Signing {
            der: Vec::new(),
            jwk: Value::Null,
            sign: Box::new(move |_, message| {
                let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &secret);
                ring::hmac::sign(&key, message).as_ref().to_vec()
            }),
        };
        assert!(!admits(&known, &token(&hmac, &json!({"alg": "HS256"}), &claims)));
    }
    let mut bound = key.jwk.clone();
    bound["alg"] = json!("RS256");
    let bound = set(&[bound]);
    assert!(admits(&bound, &token(&key, &json!({"alg": "RS256"}), &claims)));
    assert!(!admits(&bound, &token(&key, &json!({"alg": "PS256"}), &claims)));
    let unsigned = format!("{}.{}.", base64(r#"{"alg":"none"}"#), base64(claims.to_string()));
    assert!(!admits(&bound, &unsigned));
    let critical = json!({"alg": "RS256", "crit": ["exp"]});
    assert!(!admits(&bound, &token(&key, &critical, &claims)));
}

#[test]
fn keys_in_pem_are_read_as_openssl_writes_them() {
    let claims = json!({"sub": "ann"});
    let mut together = String::new();
    let keys = all();
    for (key, algorithms) in &keys {
        let pem = openssl(&["pkey", "-inform", "DER", "-pubout"], &key.der);
        let pem = String::from_utf8(pem).expect("PEM");
        let one = VerifyingKeys::read(&pem).expect("a key");
        let signed = token(key, &json!({"alg": algorithms[0]}), &claims);
        assert!(admits(&one, &signed), "{algorithms:?}");
        together += &pem;
        let private = openssl(&["pkey", "-inform", "DER"], &key.der);
        let why = VerifyingKeys::read(std::str::from_utf8(&private).expect("PEM")).unwrap_err();
        assert!(why.contains("private"), "{why}");
    }
    let together = VerifyingKeys::read(&together).expect("four keys");
    for (key, algorithms) in &keys {
        assert!(admits(&together, &token(key, &json!({"alg": algorithms[0]}), &claims)));
    }
}

#[test]
fn keys_are_rotated_by_their_names() {
    let [old, new] = [(), ()].map(|()| edwards());
    let (claims, algorithm) = (json!({"sub": "ann"}), "EdDSA");
    let of = |key: &Signing, id: &str| token(key, &json!({"alg": algorithm, "kid": id}), &claims);
    let both = set(&[named(&old, "1"), named(&new, "2")]);
    assert!(admits(&both, &of(&old, "1")) && admits(&both, &of(&new, "2")));
    assert!(!admits(&both, &of(&new, "3")), "a name that nobody knows");
    let later = set(&[named(&new, "2")]);
    assert!(!admits(&later, &of(&old, "1")) && admits(&later, &of(&new, "2")));
    assert!(both.has("1") && !later.has("1"));
    let nameless = set(std::slice::from_ref(&new.jwk));
    assert!(admits(&nameless, &of(&new, "3")), "the key has no name to differ from");
}

#[test]
fn issuer_and_audience_are_what_is_configured() {
    let key = edwards();
    let plan = AuthPlan {
        issuer: Some("https://issuer/".to_owned()),
        audience: Some("chat".to_owned()),
        ..plan(set(std::slice::from_ref(&key.jwk)))
    };
    let authenticator = Authenticator::new(&plan);
    let admit = |claims: Value| {
        let token = token(&key, &json!({"alg": "EdDSA"}), &claims);
        authenticator.admit(Some(&token), NOW).map(|identity| identity.user)
    };
    let ann = Ok(Some("ann".into()));
    let iss = "https://issuer/";
    assert_eq!(admit(json!({"sub": "ann", "iss": iss, "aud": "chat"})), ann);
    assert_eq!(admit(json!({"sub": "ann", "iss": iss, "aud": ["x", "chat"]})), ann);
    for aud in [json!("x"), json!(["x"]), json!([]), json!(null)] {
        let claims = json!({"sub": "ann", "iss": iss, "aud": aud});
        assert_eq!(admit(claims), Err(AuthError::WrongAudience));
    }
    for iss in [json!("https://other/"), json!(null)] {
        let claims = json!({"sub": "ann", "iss": iss, "aud": "chat"});
        assert_eq!(admit(claims), Err(AuthError::WrongIssuer));
    }
}

#[test]
fn what_is_no_set_of_keys_is_an_error_that_says_so_and_what_is_not_for_us_is_skipped() {
    let why = |text: &str| VerifyingKeys::read(text).unwrap_err();
    for (text, wanted) in [
        ("", "neither a JWK Set"),
        ("{}", "not a JWK Set"),
        ("{\"keys\":[]}", "no key in it"),
        ("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "begins no public key"),
        ("-----BEGIN CERTIFICATE REQUEST-----\n", "begins no public key"),
    ] {
        assert!(why(text).contains(wanted), "{text}: {}", why(text));
    }
    assert!(why(&"x".repeat(SET_BYTES_MAX + 1)).contains("larger"));
    let key = edwards();
    let mut encryption = key.jwk.clone();
    encryption["use"] = json!("enc");
    let foreign = json!({"kty": "EC", "crv": "P-521", "x": "AA", "y": "AA"});
    assert!(
        why(&json!({"keys": [encryption, foreign, {"kty": "?"}, 7]}).to_string())
            .contains("no key")
    );
    let mixed = set(&[encryption, foreign, json!({"kty": "?"}), key.jwk.clone()]);
    assert!(admits(&mixed, &token(&key, &json!({"alg": "EdDSA"}), &json!({"sub": "ann"}))));
    let many = vec![key.jwk.clone(); KEYS_MAX + 1];
    assert!(why(&json!({"keys": many}).to_string()).contains("more than"));
}

#[test]
fn keys_that_are_logged_show_none_of_them() {
    let key = json!({"kty": "oct", "k": base64("a secret of thirty-two characters")});
    let shown = format!("{:?}", set(&[key]));
    assert!(!shown.contains("secret") && shown.contains("HS256"), "{shown}");
}
