//! What times the destination's file system keeps: found out by trying before anything is restored.

use std::os::fd::AsFd as _;

use rustix::fs::fstat;
use rustix::io::Errno;

use super::metadata::Handle;
use crate::canonical::FileTime;

const SECOND: i128 = 1_000_000_000;
/// Granularities in use, in nanoseconds, finest first: Linux' own, NTFS and SMB, network file systems, FAT's creation times,
/// ext2 and ext3, FAT.
const GRANULARITIES: [i128; 7] = [1, 100, 1_000, 1_000_000, 10_000_000, SECOND, 2 * SECOND];
/// An odd second in 2001, in the range of every file system, with digits in every place.
const SAMPLE: FileTime = FileTime { seconds: 1_000_000_001, nanos: 987_654_321 };
/// Seconds from 1970 beyond the range of nearly every file system.
const FAR: i64 = 1 << 60;

/// See the [module](self).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Times {
    granularity: i128,
    /// Seconds of the first and the last time, where there are such.
    first: Option<i64>,
    last: Option<i64>,
}

impl Times {
    /// Tries out with a file of the staging directory.
    pub(crate) fn of(file: &std::fs::File) -> Self {
        Self::probe(|time| {
            Handle::Open(file.as_fd()).set_mtime(time)?;
            let stat = fstat(file)?;
            let nanos = u32::try_from(stat.st_mtime_nsec).unwrap_or_default();
            Ok(FileTime { seconds: stat.st_mtime, nanos })
        })
    }

    /// `set` sets a time and says what became of it. What cannot be found out counts as kept exactly: the proof will tell.
    fn probe(mut set: impl FnMut(FileTime) -> Result<FileTime, Errno>) -> Self {
        let seen = set(SAMPLE);
        let fits = |granularity: &i128| seen == Ok(rounded(SAMPLE, *granularity));
        let granularity = GRANULARITIES.into_iter().find(fits).unwrap_or(1);
        let mut bound = |far: i64, step: i64| {
            let bound = set(FileTime { seconds: far, nanos: 0 }).ok()?;
            // A time that was cut to fewer bits is no bound: the one beyond it is another one then.
            let beyond = set(FileTime { seconds: bound.seconds.checked_add(step)?, nanos: 0 }).ok()?;
            (bound.seconds != far && beyond == bound).then_some(bound.seconds)
        };
        let (first, last) = (bound(-FAR, -2), bound(FAR, 2));
        Self { granularity, first, last }
    }

    /// What a file has after it was given `time`.
    pub(crate) fn kept(&self, time: FileTime) -> FileTime {
        let whole = |seconds| FileTime { seconds, nanos: 0 };
        match (self.first, self.last) {
            // The kernel leaves no fraction at the bounds themselves (`timestamp_truncate`).
            (Some(first), _) if time.seconds <= first => whole(first),
            (_, Some(last)) if time.seconds >= last => whole(last),
            _ => rounded(time, self.granularity),
        }
    }
}

/// Rounded down.
fn rounded(time: FileTime, granularity: i128) -> FileTime {
    let total = i128::from(time.seconds) * SECOND + i128::from(time.nanos);
    let total = total - total.rem_euclid(granularity);
    FileTime {
        seconds: i64::try_from(total.div_euclid(SECOND)).unwrap_or(time.seconds),
        nanos: u32::try_from(total.rem_euclid(SECOND)).unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file system of some granularity and range.
    fn system(granularity: i128, first: i64, last: i64) -> impl FnMut(FileTime) -> Result<FileTime, Errno> {
        move |time| {
            let seconds = time.seconds.clamp(first, last);
            let nanos = if seconds == first || seconds == last { 0 } else { time.nanos };
            Ok(rounded(FileTime { seconds, nanos }, granularity))
        }
    }

    #[test]
    fn granularity_and_range_are_found_out() {
        let limits = [(i64::MIN, i64::MAX), (-(1 << 31), (1 << 34) - 1), (315_532_800, 4_354_819_198)];
        for granularity in GRANULARITIES {
            for (first, last) in limits {
                let mut set = system(granularity, first, last);
                let times = Times::probe(&mut set);
                assert_eq!(times.granularity, granularity);
                for seconds in
                    [-(1 << 50), -5_000_000_000, -1, 0, 1, 5, 1_700_000_001, 5_000_000_001, 1 << 50]
                {
                    for nanos in [0, 1, 123_456_789, 999_999_999] {
                        let time = FileTime { seconds, nanos };
                        let both = (times.kept(time), set(time).unwrap());
                        assert_eq!(both.0, both.1, "{time:?} by {granularity} in {first}..{last}");
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_no_rule_is_not_taken_for_one() {
        let exact = Times { granularity: 1, first: None, last: None };
        assert_eq!(Times::probe(|_| Err(Errno::PERM)), exact);
        assert_eq!(Times::probe(|_| Ok(FileTime { seconds: 7, nanos: 1 })).granularity, 1);
        // Seconds cut to 32 bits.
        let cut = |time: FileTime| {
            let low = u32::try_from(time.seconds & 0xffff_ffff).unwrap();
            Ok(FileTime { seconds: i64::from(low.cast_signed()), nanos: time.nanos })
        };
        assert_eq!(Times::probe(cut), exact);
    }

    #[test]
    fn the_file_system_of_this_test_does_as_it_was_found_out() {
        let file = tempfile::tempfile().unwrap();
        let times = Times::of(&file);
        for seconds in [-5_000_000_000, -1, 0, 1_700_000_001, 1 << 40] {
            let time = FileTime { seconds, nanos: 123_456_789 };
            Handle::Open(file.as_fd()).set_mtime(time).unwrap();
            let stat = fstat(&file).unwrap();
            let nanos = u32::try_from(stat.st_mtime_nsec).unwrap();
            assert_eq!(FileTime { seconds: stat.st_mtime, nanos }, times.kept(time));
        }
    }
}
