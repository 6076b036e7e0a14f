//! Names of objects on a sink.

use std::fmt;

use crate::error::{Error, Result};

/// Longest segment of a key, in bytes: the limit of common file systems.
pub(crate) const MAX_SEGMENT: usize = 255;

/// The name of an object on a sink: one or more segments joined by `/`, relative to the sink's own prefix.
///
/// A segment holds `[A-Za-z0-9._-]` and `%XX` escapes, is not empty, not `.` or `..`, and has at most
/// 255 bytes. Every key that comes from a sink or a manifest passes through [`Key::parse`], so a key can never
/// climb out of its place. The empty key is the sink's root and is valid only as a prefix.
///
/// ```
/// use backup_core::Key;
/// let dir = Key::root().join("books")?.join("naïve name")?;
/// assert_eq!(dir.as_str(), "books/na%C3%AFve%20name");
/// assert!(Key::parse("a/../b").is_err());
/// # Ok::<(), backup_core::Error>(())
/// ```
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(String);

impl Key {
    /// The empty key: the root of a sink, for [`list`](crate::Sink::list).
    pub fn root() -> Self {
        Self(String::new())
    }

    /// Checks and takes a key as it was stored.
    pub fn parse(text: impl Into<String>) -> Result<Self> {
        let text = text.into();
        if !text.is_empty() {
            for segment in text.split('/') {
                check_segment(segment).map_err(|why| {
                    Error::invalid("read object name", why).with("name", text.escape_debug())
                })?;
            }
        }
        Ok(Self(text))
    }

    /// This key with one more segment; every byte outside `[A-Za-z0-9._-]` is %-encoded.
    pub fn join(&self, segment: impl AsRef<[u8]>) -> Result<Self> {
        let encoded = encode_segment(segment.as_ref());
        check_segment(&encoded)
            .map_err(|why| Error::invalid("make object name", why).with("segment", encoded.escape_debug()))?;
        Ok(Self(if self.0.is_empty() { encoded } else { format!("{}/{encoded}", self.0) }))
    }

    /// This key followed by all segments of `tail`.
    pub fn append(&self, tail: &Key) -> Self {
        match (self.0.is_empty(), tail.0.is_empty()) {
            (true, _) => tail.clone(),
            (_, true) => self.clone(),
            _ => Self(format!("{}/{}", self.0, tail.0)),
        }
    }

    /// The key as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether this is the root.
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// The segments, still encoded.
    pub fn segments(&self) -> impl DoubleEndedIterator<Item = &str> {
        self.0.split('/').filter(|s| !s.is_empty())
    }

    /// The last segment, still encoded; empty for the root.
    pub fn file_name(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or("")
    }

    /// What follows `prefix`, if this key lies strictly below it (by whole segments).
    pub fn strip_prefix(&self, prefix: &Key) -> Option<Key> {
        if prefix.is_root() {
            return (!self.is_root()).then(|| self.clone());
        }
        let rest = self.0.strip_prefix(prefix.as_str())?.strip_prefix('/')?;
        Some(Self(rest.to_owned()))
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({})", self.0)
    }
}

fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-')
}

/// Encodes one segment: bytes outside `[A-Za-z0-9._-]` become `%XX`; so do the dots of `.` and `..`.
pub fn encode_segment(raw: &[u8]) -> String {
    use std::fmt::Write as _;
    let dots = raw == b"." || raw == b"..";
    let mut out = String::with_capacity(raw.len());
    for &byte in raw {
        if is_plain(byte) && !dots {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

/// Undoes [`encode_segment`].
pub fn decode_segment(segment: &str) -> Result<Vec<u8>> {
    check_segment(segment)
        .map_err(|why| Error::invalid("read object name", why).with("segment", segment.escape_debug()))?;
    let mut out = Vec::with_capacity(segment.len());
    let mut bytes = segment.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let mut digit = || bytes.next().and_then(|b| char::from(b).to_digit(16)).unwrap_or(0);
            let value = digit() * 16 + digit();
            out.push(u8::try_from(value).unwrap_or(0));
        } else {
            out.push(byte);
        }
    }
    Ok(out)
}

fn check_segment(segment: &str) -> Result<(), &'static str> {
    if segment.is_empty() {
        return Err("a segment is empty");
    }
    if segment == "." || segment == ".." {
        return Err("a segment is `.` or `..`");
    }
    if segment.len() > MAX_SEGMENT {
        return Err("a segment has more than 255 bytes");
    }
    let mut bytes = segment.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let hex = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_digit() || (b'A'..=b'F').contains(&b));
            if !(hex(bytes.next()) && hex(bytes.next())) {
                return Err("a `%` is not followed by two upper-case hexadecimal digits");
            }
        } else if !is_plain(byte) {
            return Err("a character is outside [A-Za-z0-9._%-]");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn hostile_names_are_refused() {
        for bad in
            ["/", "a//b", "/a", "a/", ".", "..", "a/../b", "a\\b", "a b", "ä", "%", "%2", "%2g", "%2f", "a\0"]
        {
            assert!(Key::parse(bad).is_err(), "{bad:?} was accepted");
        }
        assert!(Key::parse("x".repeat(256)).is_err());
        assert!(Key::parse("x".repeat(255)).is_ok());
    }

    #[test]
    fn a_prefix_is_matched_by_whole_segments() {
        let key = Key::parse("a/bc/d").unwrap();
        assert_eq!(key.strip_prefix(&Key::parse("a/bc").unwrap()).unwrap().as_str(), "d");
        assert!(key.strip_prefix(&Key::parse("a/b").unwrap()).is_none());
        assert!(key.strip_prefix(&key).is_none());
    }

    proptest! {
        #[test]
        fn any_bytes_survive_encoding(raw in proptest::collection::vec(any::<u8>(), 1..80)) {
            let encoded = encode_segment(&raw);
            prop_assert!(Key::parse(encoded.clone()).is_ok());
            prop_assert_eq!(decode_segment(&encoded).unwrap(), raw);
        }
    }
}
