//! Writing members: what comes before and after a file's content.

use super::header::{BLOCK, Header, LARGE_LIMIT, NAME_MAX, OWNER_MAX, SMALL_LIMIT, TypeFlag, split_name};
use super::pax::{self, Records};
use crate::acl;
use crate::canonical::{ACL_ACCESS, ACL_DEFAULT, FileTime, Xattrs};

/// The two zero blocks that end an archive.
pub(crate) const END: [u8; 2 * BLOCK] = [0; 2 * BLOCK];

/// Everything about a member but its content.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Member<'a> {
    pub(crate) body: Body<'a>,
    /// Without trailing slash.
    pub(crate) path: &'a [u8],
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Empty if unknown.
    pub(crate) user: &'a [u8],
    pub(crate) group: &'a [u8],
    pub(crate) mtime: FileTime,
    pub(crate) xattrs: &'a Xattrs,
}

/// What a member is, and what follows its header.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Body<'a> {
    /// `size` bytes of content.
    File {
        size: u64,
    },
    /// An encoded [`SparseMap`](super::sparse::SparseMap) and its data, `stored` bytes together.
    Sparse {
        size: u64,
        stored: u64,
    },
    Directory,
    /// The target.
    Symlink(&'a [u8]),
    /// Path of the member with the content.
    HardLink(&'a [u8]),
    Fifo,
}

impl Body<'_> {
    /// Bytes that follow the header, without padding.
    pub(crate) fn stored(&self) -> u64 {
        match *self {
            Self::File { size } => size,
            Self::Sparse { stored, .. } => stored,
            _ => 0,
        }
    }
}

/// Zero bytes after content of `stored` bytes, up to the next block.
pub(crate) fn padding(stored: u64) -> usize {
    let over = stored % BLOCK as u64;
    if over == 0 { 0 } else { BLOCK - usize::try_from(over).unwrap_or(0) }
}

impl Member<'_> {
    /// Bytes of the whole member, of which `headers` are headers.
    pub(crate) fn length(&self, headers: usize) -> u64 {
        let stored = self.body.stored();
        headers as u64 + stored + padding(stored) as u64
    }

    /// The headers: an extended one if it is needed, and the member's own.
    pub(crate) fn headers(&self) -> Vec<u8> {
        let mut directory_name;
        let mut name = self.path;
        let (typeflag, link): (_, &[u8]) = match self.body {
            Body::File { .. } | Body::Sparse { .. } => (TypeFlag::Regular, b""),
            Body::Directory => {
                directory_name = self.path.to_vec();
                directory_name.push(b'/');
                name = &directory_name;
                (TypeFlag::Directory, b"")
            }
            Body::Symlink(target) => (TypeFlag::Symlink, target),
            Body::HardLink(path) => (TypeFlag::HardLink, path),
            Body::Fifo => (TypeFlag::Fifo, b""),
        };
        let records = self.records(name, link);

        let sparse_name;
        if let Body::Sparse { .. } = self.body {
            // What a reader that does not know the format extracts must not pass for the file itself.
            sparse_name = [b"GNUSparseFile.0/", shortened(name, 64)].concat();
            name = &sparse_name;
        }
        let header = Header {
            typeflag,
            // A cut that happens to end in a slash would make a file look like a directory: only the last
            // component is cut.
            name: if split_name(name).is_some() { name } else { shortened(name, NAME_MAX) },
            mode: self.mode,
            uid: self.uid.into(),
            gid: self.gid.into(),
            size: self.body.stored(),
            mtime: self.mtime.seconds,
            link,
            user: fitting(self.user),
            group: fitting(self.group),
        };
        let mut out = Vec::with_capacity(3 * BLOCK);
        if !records.is_empty() {
            let extended = Header {
                typeflag: TypeFlag::Extended,
                name: &[b"PaxHeaders/", shortened(self.path, 80)].concat(),
                mode: 0o644,
                uid: 0,
                gid: 0,
                size: records.as_bytes().len() as u64,
                mtime: 0,
                link: b"",
                user: b"",
                group: b"",
            };
            out.extend_from_slice(&extended.encode());
            out.extend_from_slice(records.as_bytes());
            out.resize(out.len().next_multiple_of(BLOCK), 0);
        }
        out.extend_from_slice(&header.encode());
        out
    }

    /// What the header block has no room for. `name` is the one in the archive.
    fn records(&self, name: &[u8], link: &[u8]) -> Records {
        let mut records = Records::default();
        if let Body::Sparse { size, .. } = self.body {
            records.push(b"GNU.sparse.major", b"1");
            records.push(b"GNU.sparse.minor", b"0");
            records.push(b"GNU.sparse.name", name);
            records.push(b"GNU.sparse.realsize", size.to_string().as_bytes());
        } else if split_name(name).is_none() {
            records.push(b"path", name);
        }
        if link.len() > NAME_MAX {
            records.push(b"linkpath", link);
        }
        let stored = self.body.stored();
        if stored >= LARGE_LIMIT {
            records.push(b"size", stored.to_string().as_bytes());
        }
        for (keyword, id) in [(&b"uid"[..], self.uid), (b"gid", self.gid)] {
            if u64::from(id) >= SMALL_LIMIT {
                records.push(keyword, id.to_string().as_bytes());
            }
        }
        for (keyword, owner) in [(&b"uname"[..], self.user), (b"gname", self.group)] {
            if owner.len() > OWNER_MAX {
                records.push(keyword, owner);
            }
        }
        // A reader gives a hard link no attributes of its own.
        if let Body::HardLink(_) = self.body {
            return records;
        }
        let fits = u64::try_from(self.mtime.seconds).is_ok_and(|seconds| seconds < LARGE_LIMIT);
        if self.mtime.nanos != 0 || !fits {
            records.push(b"mtime", pax::time(self.mtime).as_bytes());
        }
        for (attribute, keyword) in
            [(ACL_ACCESS, &b"SCHILY.acl.access"[..]), (ACL_DEFAULT, b"SCHILY.acl.default")]
        {
            if let Some(text) = self.xattrs.get(attribute).and_then(|binary| acl::to_text(binary)) {
                records.push(keyword, text.as_bytes());
            }
        }
        for (attribute, value) in self.xattrs {
            let is_acl = attribute == ACL_ACCESS || attribute == ACL_DEFAULT;
            if !is_acl || acl::to_text(value).is_none() {
                records.push_xattr(attribute, value);
            }
        }
        records
    }
}

/// An owner's name if the header can hold it.
fn fitting(owner: &[u8]) -> &[u8] {
    if owner.len() <= OWNER_MAX { owner } else { b"" }
}

/// The beginning of a path's last component, for names that only people read.
fn shortened(path: &[u8], most: usize) -> &[u8] {
    let trimmed = path.strip_suffix(b"/").unwrap_or(path);
    let last = trimmed.rsplit(|&b| b == b'/').next().unwrap_or(trimmed);
    &last[..last.len().min(most)]
}

#[cfg(test)]
mod tests {
    use super::*;

    static NONE: Xattrs = Xattrs::new();

    fn member<'a>(path: &'a [u8], body: Body<'a>) -> Member<'a> {
        Member {
            body,
            path,
            mode: 0o644,
            uid: 0,
            gid: 0,
            user: b"root",
            group: b"root",
            mtime: FileTime { seconds: 7, nanos: 0 },
            xattrs: &NONE,
        }
    }

    #[test]
    fn a_plain_member_has_one_header_block() {
        let plain = member(b"a", Body::File { size: 513 });
        let headers = plain.headers();
        assert_eq!(headers.len(), BLOCK);
        assert_eq!(plain.length(headers.len()), 512 + 1024);
        assert_eq!(&member(b"a", Body::Directory).headers()[..3], b"a/\0");
    }

    #[test]
    fn what_does_not_fit_goes_into_records() {
        let long = [b'n'; 101];
        let big = Member {
            uid: u32::MAX,
            user: &[b'u'; 32],
            mtime: FileTime { seconds: -1, nanos: 1 },
            ..member(&long, Body::File { size: 1 << 33 })
        };
        let headers = big.headers();
        assert_eq!(headers[156], b'x');
        let text = String::from_utf8_lossy(&headers).into_owned();
        for record in [
            "111 path=nnn",
            "19 size=8589934592\n",
            "18 uid=4294967295\n",
            "42 uname=uuuu",
            "22 mtime=-0.999999999\n",
        ] {
            assert!(text.contains(record), "{record} in {text:?}");
        }
        assert_eq!(headers.len() % BLOCK, 0);
    }

    #[test]
    fn an_attribute_name_may_hold_what_separates_records() {
        let xattrs = Xattrs::from([(b"user.a=b%".to_vec(), b"\0\n".to_vec())]);
        let headers = Member { xattrs: &xattrs, ..member(b"a", Body::Fifo) }.headers();
        assert!(headers[512..].starts_with(b"33 SCHILY.xattr.user.a%3Db%25=\0\n\n"));
    }
}
