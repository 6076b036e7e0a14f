//! How a stream of unknown length is cut into the parts of a multipart upload.
//!
//! Limits: Amazon S3 API reference, "Amazon S3 multipart upload limits": 10,000 parts of 5 MiB to 5 GiB, the
//! last of any size. Google Cloud Storage's XML API has the same; Azure allows 50,000 blocks of 4000 MiB.

use backup_core::{Error, ErrorKind, Result};

/// Most parts of one object.
pub const MAX_PARTS: u64 = 10_000;
/// Smallest part that is not the last, in bytes.
pub const MIN_PART_SIZE: u64 = 5 * MIB;
/// Largest part, in bytes.
pub const MAX_PART_SIZE: u64 = 5 * 1024 * MIB;
/// The size parts begin with unless told otherwise, in bytes.
pub const DEFAULT_PART_SIZE: u64 = 8 * MIB;

/// Parts of one size before the size doubles, where parts may differ.
const PARTS_PER_STEP: u64 = 1_000;
const MIB: u64 = 1024 * 1024;

/// Whether the parts of one object may have different sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PartSizes {
    /// The size doubles every 1,000 parts, as far as the memory of a writer allows: an object of unknown size
    /// begins with small parts and may still become terabytes.
    Growing,
    /// All parts but the last are equal, as Cloudflare R2 demands. The size comes from the size hint.
    Equal,
}

/// The sizes of the parts of one object.
///
/// ```
/// use backup_s3::{PartPlan, PartSizes};
/// const MIB: u64 = 1 << 20;
/// let plan = PartPlan::new(PartSizes::Equal, 8 * MIB, 256 * MIB, Some(1 << 40))?;
/// assert_eq!(plan.size(0), plan.size(9_999));
/// assert_eq!(plan.size(10_000), None);
/// assert!(plan.capacity() > 1 << 40);
/// # Ok::<(), backup_core::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartPlan {
    sizes: PartSizes,
    first: u64,
    largest: u64,
}

impl PartPlan {
    /// Plans an object of about `size_hint` bytes (with a fifth to spare) in parts of at least `smallest` and at
    /// most `largest` bytes; `largest` is what a writer may hold in memory, because a part is kept until the store has it.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::LimitExceeded`] when 10,000 parts of `largest` bytes cannot hold the hint.
    pub fn new(sizes: PartSizes, smallest: u64, largest: u64, size_hint: Option<u64>) -> Result<Self> {
        let largest = (largest / MIB * MIB).clamp(MIN_PART_SIZE, MAX_PART_SIZE);
        let smallest = smallest.next_multiple_of(MIB).clamp(MIN_PART_SIZE, largest);
        let plan = |first| Self { sizes, first, largest };
        let Some(hint) = size_hint else { return Ok(plan(smallest)) };
        let wanted = hint.saturating_add(hint / 5);
        let mut first = smallest;
        while plan(first).capacity() < wanted && first < largest {
            first += MIB;
        }
        if plan(first).capacity() < hint {
            let needed = hint.div_ceil(MAX_PARTS).next_multiple_of(MIB);
            return Err(Error::new(ErrorKind::LimitExceeded, "plan upload")
                .message("an object this large needs larger parts than a writer may hold; raise `upload_memory` of the sink, and the memory budget of the repository by as much")
                .with("size", hint)
                .with("needed_upload_memory", needed));
        }
        Ok(plan(first))
    }

    /// The size of the part with this index (from 0) in bytes, or `None` beyond the last possible part.
    pub fn size(&self, index: u64) -> Option<u64> {
        if index >= MAX_PARTS {
            return None;
        }
        Some(match self.sizes {
            PartSizes::Equal => self.first,
            // At most nine doublings of at most 5 GiB.
            PartSizes::Growing => (self.first << (index / PARTS_PER_STEP)).min(self.largest),
        })
    }

    /// Most bytes the plan can hold.
    pub fn capacity(&self) -> u64 {
        let step = |n: u64| self.size(n * PARTS_PER_STEP).unwrap_or(0) * PARTS_PER_STEP;
        (0..MAX_PARTS / PARTS_PER_STEP).map(step).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GIB: u64 = 1024 * MIB;
    const TIB: u64 = 1024 * GIB;

    #[test]
    fn small_memory_still_holds_two_hundred_gibibytes_of_unknown_size() {
        let plan = PartPlan::new(PartSizes::Growing, DEFAULT_PART_SIZE, 24 * MIB, None).unwrap();
        assert_eq!(plan.size(0), Some(8 * MIB));
        assert_eq!(plan.size(1_000), Some(16 * MIB));
        assert_eq!(plan.size(9_999), Some(24 * MIB));
        assert!(plan.capacity() > 210 * GIB);
    }

    #[test]
    fn five_tebibytes_are_planned_or_refused_with_the_memory_they_need() {
        let error = PartPlan::new(PartSizes::Equal, DEFAULT_PART_SIZE, 24 * MIB, Some(5 * TIB)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::LimitExceeded);
        let needed: u64 = error.context_value("needed_upload_memory").unwrap().parse().unwrap();
        let plan = PartPlan::new(PartSizes::Equal, DEFAULT_PART_SIZE, needed, Some(5 * TIB)).unwrap();
        assert!(plan.capacity() >= 5 * TIB && plan.size(0).unwrap() <= needed);
        let growing = PartPlan::new(PartSizes::Growing, DEFAULT_PART_SIZE, 2 * GIB, None).unwrap();
        assert!(growing.capacity() > 5 * TIB, "{}", growing.capacity());
    }

    proptest! {
        #[test]
        fn every_planned_object_fits_its_parts(
            hint in 0..5 * TIB,
            smallest in 1..64 * MIB,
            memory in 5 * MIB..2 * GIB,
            equal: bool,
        ) {
            let sizes = if equal { PartSizes::Equal } else { PartSizes::Growing };
            let Ok(plan) = PartPlan::new(sizes, smallest, memory, Some(hint)) else {
                prop_assert!(memory / MIB * MIB * MAX_PARTS < hint.next_multiple_of(MIB) + MIB * MAX_PARTS);
                return Ok(());
            };
            let mut held = 0;
            for index in 0..MAX_PARTS {
                let size = plan.size(index).unwrap();
                prop_assert!((MIN_PART_SIZE..=MAX_PART_SIZE).contains(&size) && size <= memory);
                prop_assert!(!equal || Some(size) == plan.size(0));
                held += size;
            }
            prop_assert_eq!(held, plan.capacity());
            prop_assert!(held >= hint);
            prop_assert_eq!(plan.size(MAX_PARTS), None);
        }
    }
}
