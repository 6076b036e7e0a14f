//! Where secrets come from: files and environment variables.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use base64::Engine as _;
use zeroize::Zeroizing;

use super::Secret32;
use crate::error::{Error, ErrorKind, Result};

/// Longest file or variable that is read. A key takes 66 bytes; a passphrase is a sentence.
const MAX_LEN: usize = 16 << 10;

/// Reads a key: 32 bytes as they are, or 64 hexadecimal digits, or base64 with padding; white space around the text
/// forms does not matter.
pub(super) fn parse_key(bytes: &[u8]) -> Result<Secret32> {
    let mut key = Secret32::default();
    if bytes.len() == key.len() {
        key.copy_from_slice(bytes);
        return Ok(key);
    }
    let text = bytes.trim_ascii();
    if text.len() == 64 && hex::decode_to_slice(text, key.as_mut_slice()).is_ok() {
        return Ok(key);
    }
    // 44 characters of base64; the decoder wants room for whole groups.
    let mut decoded = Zeroizing::new([0; 33]);
    let base64 = base64::engine::general_purpose::STANDARD;
    if text.len() == 44 && base64.decode_slice(text, decoded.as_mut_slice()).is_ok_and(|len| len == 32) {
        key.copy_from_slice(&decoded[..32]);
        return Ok(key);
    }
    Err(Error::invalid(
        "read key",
        "a key is 32 bytes, given raw, as 64 hexadecimal digits or as base64; make one with `openssl rand -hex 32`",
    ))
}

/// Reads a file that only its owner may read.
pub(crate) fn read_file(path: &Path) -> Result<Zeroizing<Vec<u8>>> {
    let io = |e| Error::io("read key file", e).with("path", path.display());
    let file = File::open(path).map_err(io)?;
    refuse_shared(&file, path)?;
    // Full capacity at once: growing would leave copies of the secret behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_LEN + 1));
    file.take(MAX_LEN as u64 + 1).read_to_end(&mut bytes).map_err(io)?;
    if bytes.len() > MAX_LEN {
        return Err(Error::new(ErrorKind::LimitExceeded, "read key file")
            .message("the file is too large to be a key or a passphrase")
            .with("path", path.display()));
    }
    Ok(bytes)
}

#[cfg(unix)]
fn refuse_shared(file: &File, path: &Path) -> Result<()> {
    use std::os::unix::fs::MetadataExt as _;
    let mode =
        file.metadata().map_err(|e| Error::io("read key file", e).with("path", path.display()))?.mode();
    let others = mode & 0o077;
    if others == 0 {
        return Ok(());
    }
    Err(Error::new(ErrorKind::PermissionDenied, "read key file")
        .message("other users may read or write this file: restrict it with `chmod 600`, and replace the key if it may have been read")
        .with("path", path.display())
        .with("mode", format!("{:04o}", mode & 0o7777)))
}

#[cfg(not(unix))]
fn refuse_shared(_file: &File, _path: &Path) -> Result<()> {
    Ok(())
}

/// Reads an environment variable.
pub(crate) fn read_env(name: &str) -> Result<Zeroizing<String>> {
    let refuse =
        |why: &'static str| Err(Error::invalid("read key from environment", why).with("variable", name));
    match std::env::var(name) {
        Ok(value) if value.is_empty() => refuse("the variable is empty"),
        Ok(value) => Ok(Zeroizing::new(value)),
        Err(std::env::VarError::NotPresent) => refuse("the variable is not set"),
        Err(std::env::VarError::NotUnicode(_)) => refuse("the variable is not valid UTF-8"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_read_in_each_of_its_forms() {
        let key: [u8; 32] = std::array::from_fn(|i| u8::try_from(i).unwrap() ^ 0xa5);
        let hex = format!(" {}\n", hex::encode(key));
        let base64 = format!("{}\n", base64::engine::general_purpose::STANDARD.encode(key));
        for form in [&key[..], hex.as_bytes(), hex.to_uppercase().as_bytes(), base64.as_bytes()] {
            assert_eq!(*parse_key(form).unwrap(), key);
        }
    }

    #[test]
    fn what_is_not_a_key_is_refused_without_showing_it() {
        for bad in ["", "secret-secret", &"g".repeat(64), &"0".repeat(63), &"A".repeat(44)] {
            let error = parse_key(bad.as_bytes()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
            assert!(bad.is_empty() || !error.chain().contains(bad));
        }
    }

    #[test]
    #[cfg(unix)]
    fn a_file_others_may_read_is_refused() {
        use std::os::unix::fs::PermissionsExt as _;
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), [7; 32]).unwrap();
        for (mode, good) in [(0o600, true), (0o400, true), (0o640, false), (0o604, false), (0o620, false)] {
            std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(mode)).unwrap();
            // Root may read anything; the mode counts nevertheless.
            match read_file(file.path()) {
                Ok(bytes) => assert!(good && bytes.len() == 32, "{mode:o}"),
                Err(error) => {
                    assert!(!good && error.kind() == ErrorKind::PermissionDenied, "{mode:o}: {error}");
                }
            }
        }
    }
}
