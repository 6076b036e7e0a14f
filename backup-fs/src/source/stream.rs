//! Large files: read in their turn, straight into the archive.

use backup_core::{Digest, Hasher, Result};
use rustix::fs::{Advice, SeekFrom, fadvise, fstat, seek};
use rustix::io::Errno;

use super::entry::{Opened, same};
use super::output::Output;
use crate::tar::sparse::{MAX_RUNS, SparseMap};

/// Unit of `st_blocks` (`stat(2)`).
const STAT_BLOCK: u64 = 512;
/// Zero bytes hashed at once for a hole.
static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];

/// What a large file turned out to be.
#[derive(Debug)]
pub(crate) struct Streamed {
    /// Digest of what the archive holds.
    pub(crate) sha256: Digest,
    /// What happened to it meanwhile, if anything.
    pub(crate) trouble: Option<Trouble>,
}

/// Why the archive does not hold the file as it was at one moment.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// Its size or times are others than before.
    Changed,
    /// It had fewer bytes than announced; the rest is zeros.
    Shrunk,
    /// It could not be read further; the rest is zeros.
    Unreadable(Errno),
}

/// Where an open file has data, if it has holes worth keeping.
pub(crate) fn holes(opened: &Opened, size: u64) -> Option<SparseMap> {
    let allocated = u64::try_from(opened.stat.st_blocks).unwrap_or(0).saturating_mul(STAT_BLOCK);
    if allocated >= size {
        return None;
    }
    let mut map = SparseMap { runs: Vec::new(), size };
    let mut at = 0;
    while at < size {
        let from = match seek(&opened.file, SeekFrom::Data(at)) {
            Ok(from) if from < size => from,
            // Nothing but a hole up to the end.
            Ok(_) | Err(Errno::NXIO) => break,
            // The file system does not tell.
            Err(_) => return None,
        };
        let to = match seek(&opened.file, SeekFrom::Hole(from)) {
            Ok(to) if to > from && map.runs.len() + 1 < MAX_RUNS => to.min(size),
            Ok(_) => size,
            Err(_) => return None,
        };
        map.runs.push((from, to - from));
        at = to;
    }
    (map.data() < size).then_some(map)
}

/// Appends the content of a file: `size` bytes, or the runs of `map`. Exactly what was announced is written, whatever
/// happens to the file.
pub(crate) fn copy(
    opened: &Opened,
    size: u64,
    map: Option<&SparseMap>,
    out: &mut Output,
) -> Result<Streamed> {
    // A hint only: it makes the kernel read further ahead.
    let _ = fadvise(&opened.file, 0, None, Advice::Sequential);
    let mut hasher = Hasher::new();
    let mut trouble = None;
    let whole = [(0, size)];
    let mut position = 0;
    for &(from, length) in map.map_or(&whole[..], |map| &map.runs) {
        hash_zeros(&mut hasher, from - position, out)?;
        let mut done = 0;
        while done < length && trouble.is_none() {
            match out.write_from(&opened.file, from + done, length - done, |bytes| hasher.update(bytes))? {
                Ok(0) => trouble = Some(Trouble::Shrunk),
                Ok(count) => done += count,
                Err(errno) => trouble = Some(Trouble::Unreadable(errno)),
            }
        }
        out.write_zeros(length - done)?;
        hash_zeros(&mut hasher, length - done, out)?;
        position = from + length;
    }
    hash_zeros(&mut hasher, size - position, out)?;
    if trouble.is_none() && !fstat(&opened.file).is_ok_and(|after| same(&opened.stat, &after)) {
        trouble = Some(Trouble::Changed);
    }
    Ok(Streamed { sha256: hasher.finish(), trouble })
}

/// A hole takes no room in the archive, but its digest takes time: it can be told to stop.
fn hash_zeros(hasher: &mut Hasher, mut count: u64, out: &Output) -> Result<()> {
    while count > 0 {
        out.check()?;
        let now = usize::try_from(count).unwrap_or(usize::MAX).min(ZEROS.len());
        hasher.update(&ZEROS[..now]);
        count -= now as u64;
    }
    Ok(())
}
