//! What a file proves: the canonical form of one directory entry.
//!
//! The source computes it from what it read, the target from what it staged; both add it to the proof named
//! [`PROOF_NAME`]. The fields, in this order, are handed to [`Proof::of`], which puts each one's length before it:
//!
//! | # | field    | bytes |
//! |---|----------|-------|
//! | 1 | version  | `files/1` |
//! | 2 | path     | raw bytes of the item's path: relative, `/`-separated, no trailing `/`; the nameless root is `.` |
//! | 3 | kind     | `file`, `dir`, `symlink`, `hardlink` or `fifo` |
//! | 4 | mode     | permission bits with setuid, setgid and sticky (`& 0o7777`), u32 little-endian; symlinks: `0o777` |
//! | 5 | uid      | u32 little-endian |
//! | 6 | gid      | u32 little-endian |
//! | 7 | mtime    | seconds since 1970 UTC as i64 little-endian, then nanoseconds 0..10⁹ as u32 little-endian |
//! | 8 | link     | raw target of a symbolic link; of a hard link, the path of the item that carries the content |
//! | 9 | sha256   | the 32 bytes of the content's digest for regular files, else empty |
//! | 10 | xattrs  | their number as u64 little-endian |
//! | 11… | name, value | of each extended attribute, in ascending byte order of the names |
//!
//! A hard link is only a further name: of it, only version, path, kind and link are filled, the numbers are zero,
//! mtime is zero and it has no attributes. What it leads to is proved by the item it names; a target proves the
//! link by finding both names on the same inode.
//!
//! Which extended attributes count is decided by [`is_recorded_xattr`]. POSIX ACLs are among them, in the binary
//! form the kernel gives for `system.posix_acl_access` and `system.posix_acl_default`.

use std::collections::BTreeMap;

use backup_core::{Digest, ItemKind, Proof};

/// The proof that all entries add to.
pub(crate) const PROOF_NAME: &str = "files";

/// The attribute that holds a POSIX access ACL.
pub(crate) const ACL_ACCESS: &[u8] = b"system.posix_acl_access";
/// The attribute that holds a directory's default ACL.
pub(crate) const ACL_DEFAULT: &[u8] = b"system.posix_acl_default";

const VERSION: &[u8] = b"files/1";

/// Extended attributes by name, sorted by its bytes.
pub(crate) type Xattrs = BTreeMap<Vec<u8>, Vec<u8>>;

/// Whether an extended attribute belongs to the data: `user.*`, `trusted.*`, `security.capability` and POSIX ACLs.
///
/// Labels that the host's policy computes (`security.selinux`, `security.ima`, `security.evm`) and file systems'
/// virtual attributes are not: they would differ on every other machine.
pub(crate) fn is_recorded_xattr(name: &[u8]) -> bool {
    name.starts_with(b"user.")
        || name.starts_with(b"trusted.")
        || name == b"security.capability"
        || name == ACL_ACCESS
        || name == ACL_DEFAULT
}

/// A file's time as the kernel has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct FileTime {
    /// Seconds since 1970 UTC, rounded down.
    pub(crate) seconds: i64,
    /// Nanoseconds after `seconds`, below 10⁹.
    pub(crate) nanos: u32,
}

impl FileTime {
    /// Nanoseconds since 1970 UTC, saturating in the years 1677 and 2262. For the item list.
    pub(crate) fn as_nanos(self) -> i64 {
        let nanos = i128::from(self.seconds) * 1_000_000_000 + i128::from(self.nanos);
        i64::try_from(nanos).unwrap_or(if nanos < 0 { i64::MIN } else { i64::MAX })
    }
}

/// One directory entry, as far as it is proved.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Canonical<'a> {
    pub(crate) path: &'a [u8],
    pub(crate) kind: ItemKind,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: FileTime,
    /// Empty where there is no link.
    pub(crate) link: &'a [u8],
    /// Of regular files.
    pub(crate) sha256: Option<Digest>,
    /// Only attributes for which [`is_recorded_xattr`] holds.
    pub(crate) xattrs: &'a Xattrs,
}

impl<'a> Canonical<'a> {
    /// A hard link at `path` to the content carried by the item `link`.
    pub(crate) fn hard_link(path: &'a [u8], link: &'a [u8]) -> Self {
        static NONE: Xattrs = Xattrs::new();
        Self {
            path,
            kind: ItemKind::HardLink,
            mode: 0,
            uid: 0,
            gid: 0,
            mtime: FileTime::default(),
            link,
            sha256: None,
            xattrs: &NONE,
        }
    }

    /// The proof of this entry alone.
    pub(crate) fn proof(&self) -> Proof {
        let kind: &[u8] = match self.kind {
            ItemKind::File => b"file",
            ItemKind::Directory => b"dir",
            ItemKind::Symlink => b"symlink",
            ItemKind::HardLink => b"hardlink",
            ItemKind::Fifo => b"fifo",
            _ => b"other",
        };
        let mode = match self.kind {
            ItemKind::Symlink => 0o777,
            _ => self.mode & 0o7777,
        }
        .to_le_bytes();
        let (uid, gid) = (self.uid.to_le_bytes(), self.gid.to_le_bytes());
        let mut mtime = [0; 12];
        mtime[..8].copy_from_slice(&self.mtime.seconds.to_le_bytes());
        mtime[8..].copy_from_slice(&self.mtime.nanos.to_le_bytes());
        let sha256 = self.sha256.as_ref().map_or(&[][..], |digest| digest.as_bytes());
        let xattrs = (self.xattrs.len() as u64).to_le_bytes();
        let fixed: [&[u8]; 10] =
            [VERSION, self.path, kind, &mode, &uid, &gid, &mtime, self.link, sha256, &xattrs];
        let attributes = self.xattrs.iter().flat_map(|(name, value)| [name.as_slice(), value.as_slice()]);
        Proof::of(fixed.into_iter().chain(attributes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table above, spelled out by hand.
    #[test]
    fn the_canonical_form_is_the_documented_one() {
        let xattrs = Xattrs::from([(b"user.b".to_vec(), b"2".to_vec()), (b"user.a".to_vec(), b"1".to_vec())]);
        let file = Canonical {
            path: b"a/b",
            kind: ItemKind::File,
            mode: 0o104_755,
            uid: 1,
            gid: 2,
            mtime: FileTime { seconds: -1, nanos: 5 },
            link: b"",
            sha256: Some(Digest::of(b"x")),
            xattrs: &xattrs,
        };
        let by_hand = Proof::of([
            &b"files/1"[..],
            b"a/b",
            b"file",
            &[0o355, 0o11, 0, 0],
            &[1, 0, 0, 0],
            &[2, 0, 0, 0],
            &[255, 255, 255, 255, 255, 255, 255, 255, 5, 0, 0, 0],
            b"",
            Digest::of(b"x").as_bytes(),
            &[2, 0, 0, 0, 0, 0, 0, 0],
            b"user.a",
            b"1",
            b"user.b",
            b"2",
        ]);
        assert_eq!(file.proof(), by_hand);
    }

    #[test]
    fn every_field_counts() {
        let none = Xattrs::new();
        let base = Canonical { kind: ItemKind::Fifo, ..Canonical::hard_link(b"p", b"l") };
        let some = Xattrs::from([(b"user.a".to_vec(), Vec::new())]);
        let others = [
            Canonical { path: b"q", ..base },
            Canonical { kind: ItemKind::Directory, ..base },
            Canonical { mode: 1, ..base },
            Canonical { uid: 1, ..base },
            Canonical { gid: 1, ..base },
            Canonical { mtime: FileTime { seconds: 0, nanos: 1 }, ..base },
            Canonical { link: b"m", ..base },
            Canonical { sha256: Some(Digest::of(b"")), ..base },
            Canonical { xattrs: &some, ..base },
        ];
        for other in others {
            assert_ne!(other.proof(), base.proof(), "{other:?}");
        }
        assert_eq!(Canonical { xattrs: &none, ..base }.proof(), base.proof());
    }

    #[test]
    fn a_time_out_of_range_saturates() {
        assert_eq!(FileTime { seconds: -1, nanos: 999_999_999 }.as_nanos(), -1);
        assert_eq!(FileTime { seconds: i64::MAX, nanos: 0 }.as_nanos(), i64::MAX);
        assert_eq!(FileTime { seconds: i64::MIN, nanos: 0 }.as_nanos(), i64::MIN);
    }
}
