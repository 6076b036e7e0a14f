//! Extended attributes of an open file, or of an entry that cannot be opened (a symbolic link, a pipe).

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use rustix::buffer::spare_capacity;
use rustix::fs::{fgetxattr, flistxattr, lgetxattr, llistxattr};
use rustix::io::Errno;

use super::entry::Problem;
use crate::canonical::{Xattrs, is_recorded_xattr};
use crate::tar::pax::MAX_RECORDS;

/// Linux' limit for the list of names, and for one value (`XATTR_LIST_MAX`, `XATTR_SIZE_MAX`).
const LIMIT: usize = 64 * 1024;
/// What nearly all lists and values fit in.
const USUAL: usize = 1024;

/// Bytes of attributes a member may have; the rest of the records needs some room.
const MAX_TOTAL: usize = MAX_RECORDS - 64 * 1024;

/// The extended attributes of an entry.
#[derive(Debug, Default)]
pub(crate) struct Attributes {
    pub(crate) xattrs: Xattrs,
    /// Whether there are others, which this process may not read.
    pub(crate) hidden: bool,
}

/// The attributes of an open file or directory.
pub(crate) fn of_file(file: impl AsFd) -> Result<Attributes, Problem> {
    collect(
        |list| flistxattr(&file, spare_capacity(list)),
        |name, value| fgetxattr(&file, name, spare_capacity(value)),
    )
}

/// The attributes of an entry itself, even if it is a symbolic link.
pub(crate) fn of_path(dir: &OwnedFd, name: &CString) -> Result<Attributes, Problem> {
    // There is no `llistxattrat` before Linux 6.13; the kernel resolves this path to the same directory.
    let path = [format!("/proc/self/fd/{}/", dir.as_raw_fd()).as_bytes(), name.as_bytes()].concat();
    let found = collect(
        |list| llistxattr(&path, spare_capacity(list)),
        |name, value| lgetxattr(&path, name, spare_capacity(value)),
    );
    match found {
        // Without `/proc` there is no way to them; links and pipes hardly ever have any.
        Err(Problem::Vanished) if !Path::new("/proc/self/fd").exists() => Ok(Attributes::default()),
        found => found,
    }
}

fn collect(
    mut list: impl FnMut(&mut Vec<u8>) -> Result<usize, Errno>,
    mut get: impl FnMut(&[u8], &mut Vec<u8>) -> Result<usize, Errno>,
) -> Result<Attributes, Problem> {
    let mut found = Attributes::default();
    let names = match whole(&mut list) {
        Ok(names) => names,
        // The file system has none.
        Err(Errno::OPNOTSUPP) => return Ok(found),
        Err(errno) => return Err(errno.into()),
    };
    let mut total = 0;
    for name in names.split(|&b| b == 0).filter(|name| is_recorded_xattr(name)) {
        match whole(|value| get(name, value)) {
            Ok(value) => {
                // Three bytes for one where the name needs it, the record's own, and an ACL's as text.
                let text = if name.starts_with(b"system.") { 4 } else { 1 };
                total += value.len() * text + name.len() * 3 + 64;
                if total > MAX_TOTAL {
                    return Err(Problem::TooManyAttributes);
                }
                found.xattrs.insert(name.to_vec(), value);
            }
            // Removed since it was listed, or listed by a file system that does not have it.
            Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
            Err(Errno::PERM) => found.hidden = true,
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(found)
}

/// Reads a list or value, into a larger buffer if it does not fit.
fn whole(mut read: impl FnMut(&mut Vec<u8>) -> Result<usize, Errno>) -> Result<Vec<u8>, Errno> {
    let mut buffer = Vec::with_capacity(USUAL);
    match read(&mut buffer) {
        Err(Errno::RANGE) => {
            buffer.reserve(LIMIT);
            read(&mut buffer)?;
        }
        result => drop(result?),
    }
    Ok(buffer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attribute_that_may_not_be_read_is_noticed_and_the_others_are_kept() {
        let found = collect(
            |list| {
                list.extend_from_slice(b"user.a\0user.hidden\0user.gone\0security.selinux\0");
                Ok(list.len())
            },
            |name, value| match name {
                b"user.hidden" => Err(Errno::PERM),
                b"user.gone" => Err(Errno::NODATA),
                _ => {
                    value.extend_from_slice(b"value");
                    Ok(value.len())
                }
            },
        )
        .unwrap();
        assert!(found.hidden);
        assert_eq!(found.xattrs, Xattrs::from([(b"user.a".to_vec(), b"value".to_vec())]));
    }
}
