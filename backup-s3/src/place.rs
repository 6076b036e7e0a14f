//! Where in a bucket a sink lives: keys below a prefix.

use backup_core::{Error, Key, Result};
use object_store::path::Path;

/// Objects of the sink's own, below its prefix; never listed.
pub(crate) const OWN: &str = ".probe";

/// The prefix of a sink in its bucket.
#[derive(Clone, Debug, Default)]
pub(crate) struct Place {
    /// Without a slash at either end; may be empty.
    prefix: String,
}

impl Place {
    pub(crate) fn new(prefix: &str) -> Result<Self> {
        let prefix = prefix.trim_matches('/');
        Path::parse(prefix).map_err(|e| {
            Error::invalid("open object store", "the prefix is not a valid object name")
                .with("prefix", prefix)
                .caused_by(e)
        })?;
        Ok(Self { prefix: prefix.to_owned() })
    }

    /// The full name of an object.
    pub(crate) fn path(&self, key: &Key) -> Result<Path> {
        if key.is_root() {
            return Err(Error::invalid("use object", "the root of a sink is not the name of an object"));
        }
        self.path_of(key.as_str())
    }

    /// The full name of one of the sink's own objects.
    pub(crate) fn own(&self, name: &str) -> Result<Path> {
        self.path_of(&format!("{OWN}/{name}"))
    }

    fn path_of(&self, tail: &str) -> Result<Path> {
        let full = if self.prefix.is_empty() { tail.to_owned() } else { format!("{}/{tail}", self.prefix) };
        Path::parse(&full).map_err(|e| Error::invalid("use object", "not a valid object name").caused_by(e))
    }

    /// What every full name strictly below `prefix` begins with: empty, or ending in a slash.
    pub(crate) fn listing(&self, prefix: &Key) -> String {
        match (self.prefix.is_empty(), prefix.is_root()) {
            (true, true) => String::new(),
            (false, true) => format!("{}/", self.prefix),
            (true, false) => format!("{prefix}/"),
            (false, false) => format!("{}/{prefix}/", self.prefix),
        }
    }

    /// The key of a full name; `None` for what is not ours or not a key.
    pub(crate) fn key(&self, full: &str) -> Option<Key> {
        let tail = if self.prefix.is_empty() {
            full
        } else {
            full.strip_prefix(self.prefix.as_str())?.strip_prefix('/')?
        };
        if tail.is_empty() || tail == OWN || tail.strip_prefix(OWN).is_some_and(|t| t.starts_with('/')) {
            return None;
        }
        Key::parse(tail).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_survives_its_way_through_the_bucket() {
        for prefix in ["", "a", "/a/b/"] {
            let place = Place::new(prefix).unwrap();
            for key in ["x", "x/y", "%2E%2E/%C3%BC", "-._/..."] {
                let key = Key::parse(key).unwrap();
                let path = place.path(&key).unwrap();
                assert_eq!(place.key(path.as_ref()).as_ref(), Some(&key));
                assert!(path.as_ref().starts_with(&place.listing(&Key::root())));
            }
        }
    }

    #[test]
    fn foreign_names_are_not_keys() {
        let place = Place::new("ours").unwrap();
        for foreign in
            ["theirs/x", "oursx", "ours", "ours/", "ours/a//b", "ours/dir/", "ours/a b", "ours/.probe/x"]
        {
            assert_eq!(place.key(foreign), None, "{foreign}");
        }
        assert!(Place::new("a//b").is_err());
    }
}
