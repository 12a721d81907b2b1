//! Keys by which tokens of identity providers are verified: a JWK Set (RFC 7517 §5), or public keys
//! and certificates in PEM.
//!
//! A key is bound to its algorithms: those that it names, or those of its kind. So a token cannot have
//! a public key taken for an HMAC secret. A token that names its key (`kid`) is verified with that one
//! alone; one that names none with each that its algorithm allows, and there are at most [`KEYS_MAX`].
//!
//! Invariant: immutable; reading is pure, and no key is ever shown.

use crate::auth::crypto;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey, Header};
use serde::Deserialize;
use std::fmt;

/// Keys of one set, at most.
pub(super) const KEYS_MAX: usize = 64;
/// Bytes of a set, at most.
pub(super) const SET_BYTES_MAX: usize = 256 * 1024;

const RSA: &[Algorithm] = &[
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
];
const HMAC: &[Algorithm] = &[Algorithm::HS256, Algorithm::HS384, Algorithm::HS512];
const BEGIN: &str = "-----BEGIN ";

/// One key.
#[derive(Clone)]
pub(super) struct VerifyingKey {
    id: Option<String>,
    algorithms: Vec<Algorithm>,
    pub(super) key: DecodingKey,
}

/// A set of keys.
#[derive(Clone, Default)]
pub struct VerifyingKeys(Vec<VerifyingKey>);

#[derive(Deserialize)]
struct Set {
    keys: Vec<serde_json::Value>,
}

impl VerifyingKey {
    /// A secret that both sides have.
    pub(super) fn secret(secret: &[u8]) -> VerifyingKey {
        let key = DecodingKey::from_secret(secret);
        VerifyingKey { id: None, algorithms: HMAC.to_vec(), key }
    }

    fn fits(&self, header: &Header) -> bool {
        self.algorithms.contains(&header.alg)
    }
}

/// Keys that were read from a URL.
#[derive(Debug, Default)]
pub struct FetchedKeys {
    /// All that can be used here.
    pub keys: VerifyingKeys,
    /// Which reading has found them, from 1; 0: none has.
    pub reading: u64,
}

impl VerifyingKeys {
    /// Reads a JWK Set, or keys in PEM. Keys of kinds that are not for signatures, or not known here,
    /// are skipped, because sets hold such; a set in which no other is left is an error.
    pub fn read(text: &str) -> Result<VerifyingKeys, String> {
        crypto::install();
        if text.len() > SET_BYTES_MAX {
            return Err(format!("it is larger than {SET_BYTES_MAX} bytes"));
        }
        let keys = match text.trim_start().starts_with('{') {
            true => of_set(text)?,
            false => of_pem(text)?,
        };
        match keys.len() {
            0 => {
                Err("no key in it can verify a token here: RSA, P-256, P-384, Ed25519 and HMAC can"
                    .into())
            }
            1..=KEYS_MAX => Ok(VerifyingKeys(keys)),
            _ => Err(format!("it has more than {KEYS_MAX} keys")),
        }
    }

    /// Reads a JWK Set of public keys: secrets in it are skipped.
    pub fn read_public(text: &str) -> Result<VerifyingKeys, String> {
        if !text.trim_start().starts_with('{') {
            return Err("not a JWK Set: it is not JSON".to_owned());
        }
        let mut keys = VerifyingKeys::read(text)?;
        keys.0.retain(|key| !key.algorithms.iter().any(|algorithm| HMAC.contains(algorithm)));
        match keys.is_empty() {
            true => Err("no key in it is a public one that can verify a token here".to_owned()),
            false => Ok(keys),
        }
    }

    /// Both sets.
    pub(super) fn and(mut self, others: &VerifyingKeys) -> VerifyingKeys {
        self.0.extend(others.0.iter().cloned());
        self
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The same set with another key.
    pub(super) fn with(mut self, key: VerifyingKey) -> VerifyingKeys {
        self.0.push(key);
        self
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a key of this name is there.
    pub fn has(&self, id: &str) -> bool {
        self.0.iter().any(|key| key.id.as_deref() == Some(id))
    }

    /// The keys with which a token may be signed. One that names its key is signed with that one, or
    /// with one that has no name.
    pub(super) fn candidates(&self, header: &Header) -> impl Iterator<Item = &VerifyingKey> {
        let id = header.kid.as_deref();
        let is_known = id.is_some_and(|id| self.has(id));
        let is_named = move |key: &&VerifyingKey| match (id, &key.id) {
            (Some(id), Some(own)) => own == id,
            (Some(_), None) => !is_known,
            (None, _) => true,
        };
        self.0.iter().filter(is_named).filter(|key| key.fits(header))
    }
}

fn of_set(text: &str) -> Result<Vec<VerifyingKey>, String> {
    let set: Set = serde_json::from_str(text).map_err(|error| format!("not a JWK Set: {error}"))?;
    Ok(set.keys.into_iter().filter_map(of_jwk).collect())
}

/// `None`: not for signatures, or of a kind that is not known here.
fn of_jwk(value: serde_json::Value) -> Option<VerifyingKey> {
    let jwk: Jwk = serde_json::from_value(value).ok()?;
    if matches!(jwk.common.public_key_use, Some(PublicKeyUse::Encryption)) {
        return None;
    }
    let of_kind: &[Algorithm] = match &jwk.algorithm {
        AlgorithmParameters::RSA(_) => RSA,
        AlgorithmParameters::EllipticCurve(curve) => match curve.curve {
            EllipticCurve::P256 => &[Algorithm::ES256],
            EllipticCurve::P384 => &[Algorithm::ES384],
            _ => return None,
        },
        AlgorithmParameters::OctetKeyPair(pair) if pair.curve == EllipticCurve::Ed25519 => {
            &[Algorithm::EdDSA]
        }
        AlgorithmParameters::OctetKey(_) => HMAC,
        _ => return None,
    };
    let algorithms = match jwk.common.key_algorithm {
        None => of_kind.to_vec(),
        Some(named) => {
            let named: Algorithm = named.to_string().parse().ok()?;
            of_kind.iter().copied().filter(|algorithm| *algorithm == named).collect()
        }
    };
    let key = DecodingKey::from_jwk(&jwk).ok()?;
    (!algorithms.is_empty()).then_some(VerifyingKey { id: jwk.common.key_id, algorithms, key })
}

fn of_pem(text: &str) -> Result<Vec<VerifyingKey>, String> {
    let begins: Vec<usize> = text.match_indices(BEGIN).map(|(at, _)| at).collect();
    if begins.is_empty() {
        return Err("neither a JWK Set (RFC 7517 §5) nor keys in PEM".to_owned());
    }
    let ends = begins[1..].iter().copied().chain([text.len()]);
    let blocks = begins.iter().zip(ends).map(|(begin, end)| &text[*begin..end]);
    blocks.map(of_pem_block).collect()
}

fn of_pem_block(block: &str) -> Result<VerifyingKey, String> {
    let pem = block.as_bytes();
    if block.lines().next().is_some_and(|first| first.contains("PRIVATE")) {
        return Err("a private key is in it: only the public one is needed here".to_owned());
    }
    let key = |algorithms: &[Algorithm], key: DecodingKey| VerifyingKey {
        id: None,
        algorithms: algorithms.to_vec(),
        key,
    };
    if let Ok(rsa) = DecodingKey::from_rsa_pem(pem) {
        return Ok(key(RSA, rsa));
    }
    if let Ok(curve) = DecodingKey::from_ec_pem(pem) {
        // An uncompressed point (SEC 1 §2.3.3): its length says of which curve.
        return match curve.try_get_as_bytes().map(<[u8]>::len) {
            Ok(65) => Ok(key(&[Algorithm::ES256], curve)),
            Ok(97) => Ok(key(&[Algorithm::ES384], curve)),
            _ => {
                Err("a key of a curve that is not known here: take P-256, P-384 or Ed25519".into())
            }
        };
    }
    if let Ok(ed) = DecodingKey::from_ed_pem(pem) {
        return Ok(key(&[Algorithm::EdDSA], ed));
    }
    let first = block.lines().next().unwrap_or("");
    Err(format!("{first} begins no public key of RSA, P-256, P-384 or Ed25519"))
}

impl fmt::Debug for VerifyingKeys {
    /// Without the keys: a secret may be among them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|key| (&key.id, &key.algorithms))).finish()
    }
}

#[cfg(test)]
mod providers;
#[cfg(test)]
mod tests;
