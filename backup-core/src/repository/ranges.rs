//! The ranges of bytes that items take of artifacts.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::error::{Error, Result};
use crate::item::Item;
use crate::name::BackupId;

/// An artifact of some backup: whose, and which.
pub(super) type Place = (BackupId, String);

/// Ranges of some artifacts.
pub(super) type Pieces = BTreeMap<Place, Ranges>;

/// Ranges of one artifact. Those that are pushed in order and touch become one at once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Ranges(Vec<Range<u64>>);

impl Ranges {
    /// Adds the range of an item.
    pub(super) fn push(&mut self, item: &Item) -> Result<()> {
        let end = item.offset.checked_add(item.length).ok_or_else(|| {
            Error::corrupt("read items", "the range of an item overflows").with("item", &item.path)
        })?;
        match self.0.last_mut() {
            Some(last) if last.end == item.offset => last.end = end,
            _ => self.0.push(item.offset..end),
        }
        Ok(())
    }

    /// All of them, ascending; those that touch or overlap are one.
    pub(super) fn merged(mut self) -> Vec<Range<u64>> {
        self.0.sort_by_key(|range| range.start);
        let mut merged: Vec<Range<u64>> = Vec::new();
        for range in self.0 {
            match merged.last_mut() {
                Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
                _ => merged.push(range),
            }
        }
        merged
    }
}
