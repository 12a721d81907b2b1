//! Whom TLS to other servers trusts: Redis, and the services that are asked over HTTP.
//!
//! The authorities that may have signed a server's certificate are in a file, or else those of
//! Mozilla's list. A certificate is always checked, and no setting changes that.

use crate::operator_files::read_again;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use std::fmt;
use std::sync::Arc;

/// What is wrong with the file of the authorities.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AuthorityError {
    /// It cannot be read.
    Unreadable(String),
    /// It is no PEM file.
    NotPem(String),
    /// A certificate in it is refused.
    Refused(String),
    /// It has no certificate.
    Empty,
}

impl fmt::Display for AuthorityError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AuthorityError::Unreadable(error)
            | AuthorityError::NotPem(error)
            | AuthorityError::Refused(error) => f.write_str(error),
            AuthorityError::Empty => f.write_str("there is no certificate in it"),
        }
    }
}

/// How a client connects that trusts the authorities of the file `ca_file`, or else Mozilla's list.
pub fn client_config(ca_file: Option<&str>) -> Result<ClientConfig, AuthorityError> {
    let mut roots = RootCertStore::empty();
    match ca_file {
        Some(path) => add_authorities(&mut roots, path)?,
        None => roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring knows the default versions");
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}

fn add_authorities(roots: &mut RootCertStore, path: &str) -> Result<(), AuthorityError> {
    let text = read_again(path).map_err(|error| AuthorityError::Unreadable(error.to_string()))?;
    for certificate in CertificateDer::pem_slice_iter(&text) {
        let certificate = certificate.map_err(|error| AuthorityError::NotPem(error.to_string()))?;
        roots.add(certificate).map_err(|error| AuthorityError::Refused(error.to_string()))?;
    }
    match roots.is_empty() {
        true => Err(AuthorityError::Empty),
        false => Ok(()),
    }
}
