//! Reading tar: a stream of chunks becomes a sequence of [`Member`]s with their data.
//!
//! Formats: POSIX.1-2001 ("pax interchange", IEEE Std 1003.1 `pax`), ustar, v7, and what GNU tar 1.34 writes
//! (long names `L` and `K`, base-256 numbers, sparse files of the old kind and of pax versions 0.0, 0.1 and 1.0).
//!
//! Archives come from elsewhere, so the reader is strict where two readers could disagree about where a
//! member begins: a size override applies to exactly the one member its extended header precedes, members
//! that carry no data may not announce any, and two headers of one kind for one member are refused. Nothing is
//! allocated by a declared length; lengths are limits on what is read.
//!
//! The end of the stream is accepted at every member boundary, because the selected members of a larger archive
//! are such a stream. Blocks of zeros end the archive; nothing else may follow them.

mod extended;
mod field;
mod input;
mod sparse;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use backup_core::{Bytes, Error, ErrorKind, Result};

use crate::canonical::FileTime;

use extended::Extended;
use field::{BLOCK, Header};
pub(crate) use input::Chunks;
use input::Input;
pub(crate) use sparse::Extent;

/// Longest extended header, in bytes. One extended attribute may have 64 KiB, and a file may have several.
const MAX_EXTENDED: u64 = 1024 * 1024;
/// Longest name, in bytes: sixteen times what Linux resolves at once (`PATH_MAX`, 4096).
pub(crate) const MAX_PATH: u64 = 16 * 4096;

pub(crate) const OPERATION: &str = "read tar archive";

/// What a member is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MemberKind {
    File,
    HardLink,
    Symlink,
    Directory,
    Fifo,
    /// A character or block device.
    Device,
}

/// One member of an archive, without its data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Member {
    /// As recorded, without trailing slashes.
    pub(crate) path: Vec<u8>,
    pub(crate) kind: MemberKind,
    /// Permission bits and setuid, setgid, sticky: at most 0o7777.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Empty when not recorded.
    pub(crate) user: Vec<u8>,
    /// Empty when not recorded.
    pub(crate) group: Vec<u8>,
    pub(crate) mtime: FileTime,
    /// Logical size in bytes; 0 for anything but a file.
    pub(crate) size: u64,
    /// Target of a symbolic or hard link.
    pub(crate) link: Vec<u8>,
    /// Extended attributes by full name (`user.origin`).
    pub(crate) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// POSIX access list in text form, as `SCHILY.acl.access` records it.
    pub(crate) acl_access: Option<Vec<u8>>,
    /// POSIX default access list of a directory.
    pub(crate) acl_default: Option<Vec<u8>>,
    /// Where data is, for a sparse file: ascending, not overlapping, inside `size`. The member's data are these
    /// extents, one after the other.
    pub(crate) sparse: Option<Vec<Extent>>,
}

/// Reads members from chunks of an archive.
pub(crate) struct Archive<C> {
    input: Input<C>,
    global: Extended,
    /// Data of the current member that was not read yet, and the padding after it.
    remaining: u64,
    padding: u64,
    ended: bool,
}

/// Headers that precede the member they speak about.
#[derive(Default)]
struct Pending {
    extended: Option<Extended>,
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
}

impl Pending {
    fn is_empty(&self) -> bool {
        self.extended.is_none() && self.long_name.is_none() && self.long_link.is_none()
    }
}

impl<C: Chunks> Archive<C> {
    pub(crate) fn new(chunks: C) -> Self {
        Self {
            input: Input::new(chunks),
            global: Extended::default(),
            remaining: 0,
            padding: 0,
            ended: false,
        }
    }

    /// The next member. What was left of the data of the one before is skipped.
    pub(crate) fn next(&mut self) -> Result<Option<Member>> {
        if self.ended {
            return Ok(None);
        }
        self.input.skip(self.remaining)?;
        self.remaining = 0;
        self.skip_padding()?;
        let mut pending = Pending::default();
        loop {
            let start = self.input.position();
            let Some(block) = self.input.block_or_end()? else {
                self.ended = true;
                return if pending.is_empty() {
                    Ok(None)
                } else {
                    Err(Error::corrupt(OPERATION, "the archive ends between the headers of a member"))
                };
            };
            if block.iter().all(|&b| b == 0) {
                if !pending.is_empty() {
                    return Err(Error::corrupt(
                        OPERATION,
                        "the archive ends between the headers of a member",
                    ));
                }
                self.ended = true;
                self.input.only_zeros_follow()?;
                return Ok(None);
            }
            let header = Header::parse(&block).map_err(|e| e.with("offset", start))?;
            let done = self.header(&header, &mut pending).map_err(|e| e.with("offset", start))?;
            if let Some(member) = done {
                return Ok(Some(member));
            }
        }
    }

    /// The next piece of the current member's data, at most `limit` bytes; `None` at its end.
    pub(crate) fn data(&mut self, limit: usize) -> Result<Option<Bytes>> {
        if self.remaining == 0 {
            self.skip_padding()?;
            return Ok(None);
        }
        let limit = usize::try_from(self.remaining).unwrap_or(usize::MAX).min(limit);
        let piece = self.input.take(limit)?;
        self.remaining -= piece.len() as u64;
        Ok(Some(piece))
    }

    /// All of the current member's data in one piece, of which there are at most `limit` bytes.
    pub(crate) fn whole(&mut self, limit: usize) -> Result<Bytes> {
        let Some(first) = self.data(limit)? else { return Ok(Bytes::new()) };
        if self.remaining == 0 {
            return Ok(first);
        }
        let mut all = first.to_vec();
        while let Some(piece) = self.data(limit.saturating_sub(all.len()).max(1))? {
            if all.len() + piece.len() > limit {
                return Err(Error::new(ErrorKind::Internal, OPERATION)
                    .message("a member was read whole that is larger than its limit"));
            }
            all.extend_from_slice(&piece);
        }
        Ok(all.into())
    }

    fn skip_padding(&mut self) -> Result<()> {
        let padding = std::mem::take(&mut self.padding);
        self.input.skip(padding)
    }

    /// Acts on one header: gathers it if it speaks about the next member, or makes the member.
    fn header(&mut self, header: &Header<'_>, pending: &mut Pending) -> Result<Option<Member>> {
        match header.typeflag() {
            b'x' => {
                let records = self.payload(header, MAX_EXTENDED)?;
                once(&mut pending.extended, Extended::parse(&records)?, "extended headers")?;
            }
            b'g' => {
                if !pending.is_empty() {
                    return Err(Error::corrupt(
                        OPERATION,
                        "a global header stands between a member and its headers",
                    ));
                }
                let records = self.payload(header, MAX_EXTENDED)?;
                self.global.merge_global(Extended::parse(&records)?)?;
            }
            b'L' => {
                let name = text(self.payload(header, MAX_PATH + 1)?);
                once(&mut pending.long_name, name, "long names")?;
            }
            b'K' => {
                let link = text(self.payload(header, MAX_PATH + 1)?);
                once(&mut pending.long_link, link, "long link targets")?;
            }
            // A volume label of GNU tar: a name without content.
            b'V' => no_data(header.size()?)?,
            _ => return self.member(header, std::mem::take(pending)).map(Some),
        }
        Ok(None)
    }

    /// The data of a header that is not a member. Its size stands in that header alone, never in an extended one.
    fn payload(&mut self, header: &Header<'_>, limit: u64) -> Result<Vec<u8>> {
        let size = header.size()?;
        if size > limit {
            return Err(Error::new(ErrorKind::LimitExceeded, OPERATION)
                .message("a header is longer than any real one")
                .with("bytes", size)
                .with("limit", limit));
        }
        let payload = self.input.read_vec(size)?;
        self.input.skip(padding_of(size))?;
        Ok(payload)
    }

    fn member(&mut self, header: &Header<'_>, pending: Pending) -> Result<Member> {
        let mut own = pending.extended.unwrap_or_default();
        own.inherit(&self.global);

        let recorded = match own.size {
            Some(size) => size,
            None => header.size()?,
        };
        self.remaining = recorded;
        self.padding = padding_of(recorded);

        let path = agreed(own.path.take(), pending.long_name, || header.path())?;
        let kind = kind_of(header, &path)?;
        let link = match kind {
            MemberKind::HardLink | MemberKind::Symlink => {
                agreed(own.link.take(), pending.long_link, || header.link())?
            }
            _ => Vec::new(),
        };
        if path.len() as u64 > MAX_PATH || link.len() as u64 > MAX_PATH {
            return Err(Error::new(ErrorKind::LimitExceeded, OPERATION)
                .message("a name is longer than any file system allows")
                .with("bytes", path.len().max(link.len())));
        }
        if kind != MemberKind::File {
            no_data(recorded)?;
        }

        let (size, sparse) = if kind == MemberKind::File {
            self.sparse_map(header, &mut own, recorded)?
        } else {
            own.sparse.refuse()?;
            (0, None)
        };
        let path = own.sparse.name.take().unwrap_or(path);

        Ok(Member {
            path: without_trailing_slashes(path),
            kind,
            mode: header.mode()?,
            uid: own.uid.map_or_else(|| header.uid(), Ok)?,
            gid: own.gid.map_or_else(|| header.gid(), Ok)?,
            user: own.user.take().unwrap_or_else(|| header.user()),
            group: own.group.take().unwrap_or_else(|| header.group()),
            mtime: own.mtime.map_or_else(|| header.mtime(), Ok)?,
            size,
            link,
            xattrs: own.xattrs,
            acl_access: own.acl_access,
            acl_default: own.acl_default,
            sparse,
        })
    }

    /// The logical size of a file, and its extents if it is sparse.
    fn sparse_map(
        &mut self,
        header: &Header<'_>,
        own: &mut Extended,
        recorded: u64,
    ) -> Result<(u64, Option<Vec<Extent>>)> {
        let (size, map) = if header.typeflag() == b'S' {
            own.sparse.refuse()?;
            sparse::read_old_gnu(header, &mut self.input)?
        } else if own.sparse.is_in_data() {
            let size = own.sparse.real_size()?;
            let map = sparse::read_in_data(&mut self.input, &mut self.remaining)?;
            (size, map)
        } else if let Some(map) = own.sparse.take_map()? {
            (own.sparse.real_size()?, map)
        } else {
            return Ok((recorded, None));
        };
        sparse::check(&map, size, self.remaining)?;
        Ok((size, Some(map)))
    }
}

fn once<T>(slot: &mut Option<T>, value: T, what: &'static str) -> Result<()> {
    if slot.replace(value).is_some() {
        return Err(Error::corrupt(OPERATION, format!("a member has two {what}")));
    }
    Ok(())
}

/// A name from wherever it is recorded. Two different ones would let two readers see two different archives.
fn agreed(
    extended: Option<Vec<u8>>,
    long: Option<Vec<u8>>,
    short: impl FnOnce() -> Vec<u8>,
) -> Result<Vec<u8>> {
    match (extended, long) {
        (Some(a), Some(b)) if a != b => {
            Err(Error::corrupt(OPERATION, "a member has two different names of one kind"))
        }
        (Some(name), _) | (None, Some(name)) => Ok(name),
        (None, None) => Ok(short()),
    }
}

fn kind_of(header: &Header<'_>, path: &[u8]) -> Result<MemberKind> {
    Ok(match header.typeflag() {
        // Before POSIX, a directory was a file whose name ended in a slash.
        0 | b'0' if path.ends_with(b"/") => MemberKind::Directory,
        0 | b'0' | b'7' | b'S' => MemberKind::File,
        b'1' => MemberKind::HardLink,
        b'2' => MemberKind::Symlink,
        b'3' | b'4' => MemberKind::Device,
        b'5' => MemberKind::Directory,
        b'6' => MemberKind::Fifo,
        other => {
            return Err(Error::new(ErrorKind::Unsupported, OPERATION)
                .message("a member is of a type that only the tool that wrote it understands")
                .with("type", char::from(other).escape_default()));
        }
    })
}

fn no_data(size: u64) -> Result<()> {
    if size == 0 {
        return Ok(());
    }
    Err(Error::corrupt(OPERATION, "a member that has no data announces some").with("bytes", size))
}

fn padding_of(size: u64) -> u64 {
    let block = BLOCK as u64;
    (block - size % block) % block
}

/// The bytes before the first NUL.
fn text(mut bytes: Vec<u8>) -> Vec<u8> {
    if let Some(end) = bytes.iter().position(|&b| b == 0) {
        bytes.truncate(end);
    }
    bytes
}

fn without_trailing_slashes(mut path: Vec<u8>) -> Vec<u8> {
    while path.len() > 1 && path.ends_with(b"/") {
        path.pop();
    }
    path
}
