//! Whom one client trusts: one TLS configuration for all its connections.
//!
//! The file of the authorities is read again only when it has changed: a storm of connections does not
//! read it each time, and a TLS session can be resumed as long as it stays.

use crate::link::exchange::Exchange;
use crate::tls_trust::{self, AuthorityError};
use rustls::ClientConfig;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::time::SystemTime;

/// Shared by the connections of one client.
pub(super) struct TlsTrust {
    ca_file: Option<Box<str>>,
    read: Exchange<Option<ReadTrust>>,
}

/// What was read, of which file.
struct ReadTrust {
    /// `None`: Mozilla's list.
    file: Option<FileState>,
    config: Arc<ClientConfig>,
}

/// By this a file is known to be the one that was read: when it was changed, its length, its number.
type FileState = (SystemTime, u64, u64);

impl TlsTrust {
    /// The authorities of the file `ca_file`, or else Mozilla's list. Nothing is read yet.
    pub(super) fn new(ca_file: Option<&str>) -> TlsTrust {
        TlsTrust { ca_file: ca_file.map(Into::into), read: Exchange::new(Arc::new(None)) }
    }

    /// How a client connects now.
    pub(super) fn client_config(&self) -> Result<Arc<ClientConfig>, AuthorityError> {
        // Seen before the file is read: what changes in between is read once more.
        let file = self.ca_file.as_deref().map(file_state).transpose()?;
        match &*self.read.get() {
            Some(read) if read.file == file => return Ok(read.config.clone()),
            _ => {}
        }
        let config = Arc::new(tls_trust::client_config(self.ca_file.as_deref())?);
        self.read.set(Arc::new(Some(ReadTrust { file, config: config.clone() })));
        Ok(config)
    }
}

fn file_state(path: &str) -> Result<FileState, AuthorityError> {
    let unreadable = |error: std::io::Error| AuthorityError::Unreadable(error.to_string());
    let metadata = std::fs::metadata(path).map_err(unreadable)?;
    Ok((metadata.modified().map_err(unreadable)?, metadata.len(), metadata.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Nobody has its key.
    const AUTHORITY: &str = "-----BEGIN CERTIFICATE-----\n\
        MIIBeTCCAR+gAwIBAgIUQ+27kJivNaOratt0/XRTv4YounUwCgYIKoZIzj0EAwIw\n\
        ETEPMA0GA1UEAwwGYS50ZXN0MCAXDTI2MTIwMTE2NTYxM1oYDzIxMjYxMTA3MTY1\n\
        NjEzWjARMQ8wDQYDVQQDDAZhLnRlc3QwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNC\n\
        AAQV9Hj7SvHgoypc7/ZCaD4Owiktk7t7pAFLAKz6aqekIDkQfGIbQIRkVL2fzjZ9\n\
        pzEkOllNjkjRvf7PdgUMIrLZo1MwUTAdBgNVHQ4EFgQUg7bTiI1smPLzFRO8/z5S\n\
        hm2cBtIwHwYDVR0jBBgwFoAUg7bTiI1smPLzFRO8/z5Shm2cBtIwDwYDVR0TAQH/\n\
        BAUwAwEB/zAKBggqhkjOPQQDAgNIADBFAiAbjZ8kDqFdhGPhCASW+bv/NhQzgdgY\n\
        s/8Q0sO2V4E6MwIhAKY8EDczTM7UOmKwEMTIu/kS4pE0SSw5+hOjTJLAOAYk\n\
        -----END CERTIFICATE-----\n";

    #[test]
    fn the_file_is_read_again_only_when_it_has_changed() {
        let path = std::env::temp_dir().join(format!("campanile-trust-{}", std::process::id()));
        let name = path.to_str().expect("UTF-8");
        std::fs::write(&path, AUTHORITY).unwrap();
        let trust = TlsTrust::new(Some(name));
        let first = trust.client_config().expect("a good file");
        assert!(Arc::ptr_eq(&first, &trust.client_config().expect("the same file")));
        std::fs::write(&path, AUTHORITY.repeat(2)).unwrap();
        let second = trust.client_config().expect("another one");
        assert!(!Arc::ptr_eq(&first, &second));
        std::fs::write(&path, "no certificate").unwrap();
        assert!(trust.client_config().is_err(), "the old authorities are not trusted any more");
        std::fs::remove_file(&path).unwrap();
        assert!(matches!(trust.client_config(), Err(AuthorityError::Unreadable(_))));
        let public = TlsTrust::new(None);
        let [one, other] = [0, 1].map(|_| public.client_config().expect("the built-in list"));
        assert!(Arc::ptr_eq(&one, &other));
    }
}
