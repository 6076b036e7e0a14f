//! Reading objects.

use std::fs::File;
use std::ops::Range;

use backup_core::{Availability, ByteStream, Bytes, Error, ErrorKind, Key, ObjectInfo, Result};
use chrono::DateTime;
use futures::StreamExt as _;
use rustix::fs::{Advice, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::blocking;
use super::dirs::{self, Root, Walk, failed};

/// Bytes read at a time: large enough that the trip to a blocking thread does not count.
const CHUNK: u64 = 512 * 1024;

pub(super) fn open(root: &Root, key: &Key, range: Option<Range<u64>>) -> Result<ByteStream> {
    const OPERATION: &str = "read object";
    let (parents, name) = dirs::split(key).ok_or_else(|| not_found(OPERATION, key))?;
    root.check_alive(OPERATION)?;
    let Walk::Dir(dir) = root.walk(OPERATION, &parents)? else { return Err(not_found(OPERATION, key)) };
    // Non-blocking, so that a FIFO someone put there does not hang the reader.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match rustix::fs::openat(&dir, name, flags, Mode::empty()) {
        Ok(file) => File::from(file),
        // A socket someone put there says ENXIO.
        Err(Errno::NOENT | Errno::NXIO) => return Err(not_found(OPERATION, key)),
        Err(Errno::LOOP) => return Err(dirs::symlink(OPERATION, name)),
        Err(e) => return Err(failed(OPERATION, e).with("key", key)),
    };
    let found = rustix::fs::fstat(&file).map_err(|e| failed(OPERATION, e).with("key", key))?;
    if !dirs::is_file(&found) {
        return Err(not_found(OPERATION, key));
    }
    let size = size_of(&found);
    let range = match range {
        None => {
            // Doubles the kernel's read-ahead. Only advice.
            let _ = rustix::fs::fadvise(&file, 0, None, Advice::Sequential);
            0..size
        }
        Some(range) if range.start > range.end => {
            return Err(Error::invalid(OPERATION, "the range ends before it begins")
                .with("key", key)
                .with("range", format_args!("{}..{}", range.start, range.end)));
        }
        // Ranges come from manifests and indexes, which know how long the object was when it was written.
        Some(range) if range.start > size => {
            return Err(Error::corrupt(OPERATION, "the object is shorter than it was: it was cut off")
                .with("key", key)
                .with("range", format_args!("{}..{}", range.start, range.end))
                .with("size", size));
        }
        Some(range) => range.start..range.end.min(size),
    };
    Ok(stream(file, key.clone(), range))
}

fn stream(file: File, key: Key, range: Range<u64>) -> ByteStream {
    futures::stream::unfold(Some((file, key, range)), |state| async move {
        let (file, key, range) = state?;
        if range.is_empty() {
            return None;
        }
        let read = blocking(move || {
            let chunk = read_at(&file, &key, &range)?;
            Ok((chunk, file, key, range))
        });
        Some(match read.await {
            Ok((chunk, file, key, range)) => {
                let rest = range.start + chunk.len() as u64..range.end;
                (Ok(chunk), Some((file, key, rest)))
            }
            Err(e) => (Err(e), None),
        })
    })
    .boxed()
}

fn read_at(file: &File, key: &Key, range: &Range<u64>) -> Result<Bytes> {
    let wanted = usize::try_from((range.end - range.start).min(CHUNK)).unwrap_or(usize::MAX);
    let mut buffer = Vec::with_capacity(wanted);
    while buffer.len() < wanted {
        let at = range.start + buffer.len() as u64;
        let spare = rustix::buffer::spare_capacity(&mut buffer);
        match rustix::io::pread(file, spare, at) {
            Ok(0) => {
                return Err(Error::corrupt("read object", "the file became shorter while it was read")
                    .with("key", key)
                    .with("size", at));
            }
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => return Err(failed("read object", e).with("key", key).with("offset", at)),
        }
    }
    // The allocator may have given more room than was asked for, and the file may have more bytes.
    buffer.truncate(wanted);
    Ok(buffer.into())
}

pub(super) fn head(root: &Root, key: &Key) -> Result<ObjectInfo> {
    const OPERATION: &str = "look up object";
    let (parents, name) = dirs::split(key).ok_or_else(|| not_found(OPERATION, key))?;
    root.check_alive(OPERATION)?;
    let Walk::Dir(dir) = root.walk(OPERATION, &parents)? else { return Err(not_found(OPERATION, key)) };
    match dirs::stat(&dir, name) {
        Ok(found) if dirs::is_file(&found) => Ok(info(key.clone(), &found)),
        Ok(found) if dirs::is_symlink(&found) => Err(dirs::symlink(OPERATION, name)),
        Ok(_) | Err(Errno::NOENT) => Err(not_found(OPERATION, key)),
        Err(e) => Err(failed(OPERATION, e).with("key", key)),
    }
}

pub(super) fn info(key: Key, found: &Stat) -> ObjectInfo {
    let nanoseconds = u32::try_from(found.st_mtime_nsec).unwrap_or(0);
    ObjectInfo {
        key,
        size: size_of(found),
        modified: DateTime::from_timestamp(found.st_mtime, nanoseconds),
        availability: Availability::Ready,
    }
}

fn size_of(found: &Stat) -> u64 {
    u64::try_from(found.st_size).unwrap_or(0)
}

fn not_found(operation: &'static str, key: &Key) -> Error {
    Error::new(ErrorKind::NotFound, operation).with("key", key)
}
