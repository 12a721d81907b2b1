//! The cryptography of tokens: HMAC with SHA-2, over ring.
//!
//! jsonwebtoken reads tokens and leaves the cryptography to a provider. Its own bring RSA of the
//! RustCrypto project along, whose private-key operations leak through timing (RUSTSEC-2023-0071),
//! and ring is here already, for TLS. Only what a node accepts is provided: every other algorithm is
//! refused before a key is looked at.

use jsonwebtoken::crypto::{CryptoProvider, JwtSigner, JwtVerifier, KeyUtils};
use jsonwebtoken::errors::{ErrorKind, Result, new_error};
use jsonwebtoken::{Algorithm, AlgorithmFamily};
use ring::hmac;
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
    verifier_factory: |algorithm, key| {
        Ok(Box::new(Hmac::of(*algorithm, key.family(), key.try_get_as_bytes()?)?))
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
