//! Files that an operator names: the configuration, secrets, keys, certificates.
//!
//! They are read whole, so how much of one is read is bounded: `/dev/zero` has no end. While the node
//! runs, nothing is read but regular files: a pipe would be waited for by the thread that also waits
//! for SIGTERM.

use std::fs::File;
use std::io::{Error, ErrorKind, Read as _, Result};
use std::path::Path;

/// The longest file, in bytes.
pub const FILE_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// Reads a file at the start. It may be a pipe, such as `<(…)` of a shell.
pub fn read_text(path: impl AsRef<Path>) -> Result<String> {
    let not_utf8 = |_| Error::new(ErrorKind::InvalidData, "it is not UTF-8");
    String::from_utf8(read_bytes(File::open(path)?)?).map_err(not_utf8)
}

/// Reads a file again while the node runs.
pub fn read_text_again(path: impl AsRef<Path>) -> Result<String> {
    check_is_file(path.as_ref())?;
    read_text(path)
}

/// The same where it need not be text.
pub fn read_again(path: impl AsRef<Path>) -> Result<Vec<u8>> {
    check_is_file(path.as_ref())?;
    read_bytes(File::open(path)?)
}

fn check_is_file(path: &Path) -> Result<()> {
    let metadata = path.metadata()?;
    match metadata.is_file() || metadata.is_dir() {
        true => Ok(()), // Reading a directory fails at once, and says so.
        false => Err(Error::new(ErrorKind::InvalidInput, "it is not a regular file")),
    }
}

fn read_bytes(file: File) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    match bytes.len() as u64 > FILE_BYTES_MAX {
        true => Err(Error::new(ErrorKind::FileTooLarge, "it is longer than 16 MiB")),
        false => Ok(bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_end_is_given_up_and_a_device_is_not_read_again() {
        let endless = read_text("/dev/zero").expect_err("it has no end");
        assert_eq!(endless.to_string(), "it is longer than 16 MiB");
        for path in ["/dev/zero", "/dev/null"] {
            assert_eq!(read_text_again(path).expect_err(path).kind(), ErrorKind::InvalidInput);
        }
        assert!(read_text("/nonexistent").is_err() && read_again("/").is_err());
        let own = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
        assert_eq!(read_text(own).unwrap(), read_text_again(own).unwrap());
        assert_eq!(read_again(own).unwrap(), read_text(own).unwrap().into_bytes());
    }
}
