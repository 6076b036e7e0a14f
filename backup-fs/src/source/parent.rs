//! The parent backup's items, met in the order of the walk.
//!
//! Both sides are sorted by path, component by component, so one step forward in the parent's list for each entry of
//! the tree is enough: no map of millions of names. A list in another order only finds less.

use std::cmp::Ordering;

use backup_core::{CancellationToken, Item, ItemKind, ParentReader, Result};
use serde_json::{Value, json};
use tokio::runtime::Handle;

use super::cursor::Cursor;
use super::entry::Meta;

/// Version of what [`is_unchanged`] relies on in items.
const FORMAT: u64 = 1;

/// Item attribute: the file had changed so shortly before it was read that a later change may carry the same times.
pub(crate) const RACY: &str = "racy";
/// Item attribute: the file changed while it was read.
pub(crate) const CHANGED: &str = "changed";

/// What a backup leaves for the next one.
pub(crate) fn state() -> Value {
    json!({ "format": FORMAT })
}

/// A cursor over the parent's items.
#[derive(Debug)]
pub(crate) struct Parent(Cursor);

impl Parent {
    /// A cursor, if this version understands what the parent left.
    pub(crate) fn open(
        parent: &dyn ParentReader,
        handle: Handle,
        cancelled: CancellationToken,
    ) -> Option<Self> {
        if parent.state()?.get("format")?.as_u64()? != FORMAT {
            return None;
        }
        Some(Self(Cursor::new(parent.items(), handle, cancelled)))
    }

    /// The parent's item at `path`, passing over all before it. Blocks: not for a thread of the runtime.
    pub(crate) fn find(&mut self, path: &[u8]) -> Result<Option<Item>> {
        loop {
            match self.0.peek()?.map(|item| order(item.path.as_bytes(), path)) {
                Some(Ordering::Less) => drop(self.0.take()?),
                Some(Ordering::Equal) => return self.0.take(),
                Some(Ordering::Greater) | None => return Ok(None),
            }
        }
    }
}

/// Whether a regular file is what the parent's item recorded: same size, mtime, ctime and inode. The device is left
/// aside, because its number changes when disks are found in another order.
pub(crate) fn is_unchanged(item: &Item, meta: &Meta) -> bool {
    item.kind == ItemKind::File
        && item.origin.is_some()
        && item.sha256.is_some()
        && item.proof.is_some()
        && item.size == meta.size
        && has_times_of(item, meta)
}

/// Whether an item has mtime, ctime and inode of an entry, and these can tell that nothing changed.
pub(crate) fn has_times_of(item: &Item, meta: &Meta) -> bool {
    let number = |name: &str| item.attributes.get(name);
    number("mtime").and_then(Value::as_i64) == Some(meta.mtime.as_nanos())
        && number("ctime").and_then(Value::as_i64) == Some(meta.ctime.as_nanos())
        && number("inode").and_then(Value::as_u64) == Some(meta.inode)
        && number(RACY).is_none()
        && number(CHANGED).is_none()
}

/// The order of the walk: component by component, the nameless root first.
pub(crate) fn order(a: &[u8], b: &[u8]) -> Ordering {
    fn key(path: &[u8]) -> impl Iterator<Item = u8> + '_ {
        let path = if path == b"." { b"" } else { path };
        // No name contains a NUL or a slash, so a slash can take the place of the smallest byte.
        path.iter().map(|&byte| if byte == b'/' { 0 } else { byte })
    }
    key(a).cmp(key(b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_directory_comes_before_what_is_in_it_and_that_before_its_next_sibling() {
        let mut paths = ["a.txt", "a/b", "b", "a", ".", "a/b/c", "a/b-c", "-"];
        paths.sort_by(|x, y| order(x.as_bytes(), y.as_bytes()));
        assert_eq!(paths, [".", "-", "a", "a/b", "a/b/c", "a/b-c", "a.txt", "b"]);
    }

    proptest! {
        #[test]
        fn the_order_is_that_of_components(a in "[a-c.!]{1,3}(/[a-c.!]{1,3}){0,3}", b in "[a-c.!]{1,3}(/[a-c.!]{1,3}){0,3}") {
            prop_assume!(a != "." && b != ".");
            prop_assert_eq!(order(a.as_bytes(), b.as_bytes()), a.split('/').cmp(b.split('/')));
        }
    }
}
