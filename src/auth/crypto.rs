//! The cryptography of tokens, over ring: HMAC, RSA, ECDSA and Ed25519 (RFC 7518 §3, RFC 8037 §3.1).
//!
//! jsonwebtoken reads tokens and leaves the cryptography to a provider. Its own bring RSA of the
//! RustCrypto project along, whose private-key operations leak through timing (RUSTSEC-2023-0071),
//! and ring is here already, for TLS. Tokens are verified with all algorithms that ring has (it has
//! no P-521, and so no ES512), and signed with HMAC alone.

use jsonwebtoken::crypto::{CryptoProvider, JwtSigner, JwtVerifier, KeyUtils};
use jsonwebtoken::errors::{ErrorKind, Result, new_error};
use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey, DecodingKeyKind};
use ring::signature::{self as ring_signature, RsaPublicKeyComponents, UnparsedPublicKey};
use ring::{hmac, signature::VerificationAlgorithm};
use signature::{Error, Signer, Verifier};

/// Installs the provider for this process. Repeated calls change nothing.
pub(super) fn install() {
    // An error says that there is one already, and only this function installs any.
    let _ = PROVIDER.install_default();
}

static PROVIDER: CryptoProvider = CryptoProvider {
    signer_factory: |algorithm, key| {
        Ok(Box::new(Hmac::of(*algorithm, key.family(), key.as_bytes())?))
    },
    verifier_factory: |algorithm, key| match key.family() {
        AlgorithmFamily::Hmac => {
            Ok(Box::new(Hmac::of(*algorithm, key.family(), key.try_get_as_bytes()?)?))
        }
        _ => Ok(Box::new(PublicKey::of(*algorithm, key)?)),
    },
    key_utils: KeyUtils::new_unimplemented(),
};

struct Hmac {
    algorithm: Algorithm,
    key: hmac::Key,
}

impl Hmac {
    fn of(algorithm: Algorithm, family: AlgorithmFamily, secret: &[u8]) -> Result<Hmac> {
        if family != AlgorithmFamily::Hmac {
            return Err(new_error(ErrorKind::InvalidKeyFormat));
        }
        let kind = match algorithm {
            Algorithm::HS256 => hmac::HMAC_SHA256,
            Algorithm::HS384 => hmac::HMAC_SHA384,
            Algorithm::HS512 => hmac::HMAC_SHA512,
            _ => return Err(new_error(ErrorKind::InvalidAlgorithm)),
        };
        Ok(Hmac { algorithm, key: hmac::Key::new(kind, secret) })
    }
}

impl Signer<Vec<u8>> for Hmac {
    fn try_sign(&self, message: &[u8]) -> std::result::Result<Vec<u8>, Error> {
        Ok(hmac::sign(&self.key, message).as_ref().to_vec())
    }
}

impl Verifier<Vec<u8>> for Hmac {
    /// In constant time.
    fn verify(&self, message: &[u8], tag: &Vec<u8>) -> std::result::Result<(), Error> {
        hmac::verify(&self.key, message, tag).map_err(|_| Error::new())
    }
}

impl JwtSigner for Hmac {
    fn algorithm(&self) -> Algorithm {
        self.algorithm
    }
}

impl JwtVerifier for Hmac {
    fn algorithm(&self) -> Algorithm {
        self.algorithm
    }
}

/// A key that only verifies.
struct PublicKey {
    algorithm: Algorithm,
    key: DecodingKey,
}

impl PublicKey {
    /// The algorithm must be of the key's family: what a token says of its algorithm does not make a
    /// public key of one kind another's secret.
    fn of(algorithm: Algorithm, key: &DecodingKey) -> Result<PublicKey> {
        if algorithm.family() != key.family() {
            return Err(new_error(ErrorKind::InvalidAlgorithm));
        }
        Ok(PublicKey { algorithm, key: key.clone() })
    }

    fn is_signed(&self, message: &[u8], signature: &[u8]) -> bool {
        match (self.key.kind(), rsa_of(self.algorithm)) {
            (DecodingKeyKind::RsaModulusExponent { n, e }, Some(parameters)) => {
                let key = RsaPublicKeyComponents { n, e };
                key.verify(parameters, message, signature).is_ok()
            }
            (DecodingKeyKind::SecretOrDer(key), Some(parameters)) => {
                UnparsedPublicKey::new(parameters, key).verify(message, signature).is_ok()
            }
            (DecodingKeyKind::SecretOrDer(key), None) => {
                let Some(algorithm) = curve_of(self.algorithm) else { return false };
                UnparsedPublicKey::new(algorithm, key).verify(message, signature).is_ok()
            }
            (DecodingKeyKind::RsaModulusExponent { .. }, None) => false,
        }
    }
}

fn rsa_of(algorithm: Algorithm) -> Option<&'static ring_signature::RsaParameters> {
    Some(match algorithm {
        Algorithm::RS256 => &ring_signature::RSA_PKCS1_2048_8192_SHA256,
        Algorithm::RS384 => &ring_signature::RSA_PKCS1_2048_8192_SHA384,
        Algorithm::RS512 => &ring_signature::RSA_PKCS1_2048_8192_SHA512,
        Algorithm::PS256 => &ring_signature::RSA_PSS_2048_8192_SHA256,
        Algorithm::PS384 => &ring_signature::RSA_PSS_2048_8192_SHA384,
        Algorithm::PS512 => &ring_signature::RSA_PSS_2048_8192_SHA512,
        _ => return None,
    })
}

fn curve_of(algorithm: Algorithm) -> Option<&'static dyn VerificationAlgorithm> {
    Some(match algorithm {
        Algorithm::ES256 => &ring_signature::ECDSA_P256_SHA256_FIXED,
        Algorithm::ES384 => &ring_signature::ECDSA_P384_SHA384_FIXED,
        Algorithm::EdDSA => &ring_signature::ED25519,
        _ => return None,
    })
}

impl Verifier<Vec<u8>> for PublicKey {
    fn verify(&self, message: &[u8], signature: &Vec<u8>) -> std::result::Result<(), Error> {
        self.is_signed(message, signature).then_some(()).ok_or_else(Error::new)
    }
}

impl JwtVerifier for PublicKey {
    fn algorithm(&self) -> Algorithm {
        self.algorithm
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
    use jsonwebtoken::{DecodingKey, EncodingKey};

    /// RFC 7515 A.1: the key, what is signed, and the signature.
    #[test]
    fn the_example_of_the_standard_is_signed_and_verified() {
        install();
        let key = BASE64
            .decode(
                "AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow",
            )
            .unwrap();
        let message = "eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkz\
                       ODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ";
        let signature = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";
        let (sign, verify) = (jsonwebtoken::crypto::sign, jsonwebtoken::crypto::verify);
        let by = EncodingKey::from_secret(&key);
        let signed = sign(message.as_bytes(), &by, Algorithm::HS256).unwrap();
        assert_eq!(signed, signature);
        let with = DecodingKey::from_secret(&key);
        let is_good = |signature: &str, algorithm| {
            verify(signature, message.as_bytes(), &with, algorithm).unwrap_or(false)
        };
        assert!(is_good(signature, Algorithm::HS256));
        assert!(!is_good(signature, Algorithm::HS384) && !is_good(signature, Algorithm::RS256));
        assert!(!is_good(&signature.replace('d', "e"), Algorithm::HS256));
        assert!(!is_good("", Algorithm::HS256));
    }
}
