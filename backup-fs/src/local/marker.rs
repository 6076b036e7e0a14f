//! The file that tells a repository from an empty directory.

use std::io::Read as _;
use std::os::fd::AsFd as _;
use std::path::Path;

use backup_core::{Error, ErrorKind, Result};
use chrono::Utc;
use rustix::fs::{AtFlags, Dir, Mode, OFlags, RenameFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::dirs::{self, Root, failed};
use super::staging;

/// Not a valid key, so never listed and never an object.
pub(super) const MARKER: &str = "@repository.json";
/// What this build writes and reads.
const FORMAT: u32 = 1;
/// More than a marker ever has, in bytes.
const MAX_MARKER: u64 = 64 * 1024;

#[derive(Serialize, Deserialize)]
struct Marker {
    format: u32,
    id: String,
    created: String,
}

/// Whether a directory may hold something before it becomes a repository.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Contents {
    MustBeEmpty,
    Kept,
}

/// Writes a marker, create-new: of two processes, one wins.
pub(super) fn init(path: &Path, contents: Contents) -> Result<()> {
    const OPERATION: &str = "initialise local sink";
    let refuse = |e| failed(OPERATION, e).with("path", path.display());
    let mut made = false;
    if contents == Contents::MustBeEmpty {
        match rustix::fs::mkdir(path, Mode::RWXU) {
            Ok(()) => made = true,
            Err(Errno::EXIST) => {}
            Err(e) => return Err(refuse(e)),
        }
    }
    let root = Root::open(path)?;
    if dirs::stat(root.dir(), MARKER).is_ok() {
        return Err(exists(path));
    }
    if contents == Contents::MustBeEmpty {
        for entry in Dir::read_from(root.dir()).map_err(refuse)? {
            let entry = entry.map_err(refuse)?;
            // `@staging` is another initialisation on its way, or one that was killed.
            if ![&b"."[..], b"..", b"lost+found", staging::STAGING.as_bytes()]
                .contains(&entry.file_name().to_bytes())
            {
                return Err(Error::new(ErrorKind::TargetNotEmpty, OPERATION)
                    .message("the directory is not empty; give an empty or a new one, or `adopt` a repository without marker")
                    .with("path", path.display()));
            }
        }
    }
    let marker = Marker { format: FORMAT, id: staging::random_name()?, created: Utc::now().to_rfc3339() };
    let text = serde_json::to_string_pretty(&marker)
        .map_err(|e| Error::new(ErrorKind::Internal, OPERATION).caused_by(e))?;
    let staging_dir = dirs::ensure_dir(root.dir(), staging::STAGING).map_err(refuse)?;
    let name = staging::random_name()?;
    let mut file = staging::create_file(&staging_dir, &name).map_err(refuse)?;
    let written = std::io::Write::write_all(&mut file, format!("{text}\n").as_bytes())
        .and_then(|()| file.sync_all())
        .map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO));
    let placed = written.and_then(|()| {
        match rustix::fs::linkat(&staging_dir, &name, root.dir(), MARKER, AtFlags::empty()) {
            // No hard links here.
            Err(Errno::PERM | Errno::NOTSUP | Errno::NOSYS) => {
                rustix::fs::renameat_with(&staging_dir, &name, root.dir(), MARKER, RenameFlags::NOREPLACE)
            }
            other => other,
        }
    });
    let _ = rustix::fs::unlinkat(&staging_dir, &name, AtFlags::empty());
    match placed {
        Ok(()) => {}
        Err(Errno::EXIST) => return Err(exists(path)),
        Err(e) => return Err(refuse(e)),
    }
    dirs::sync_dir(root.dir()).map_err(refuse)?;
    if made { sync_parent(path).map_err(refuse) } else { Ok(()) }
}

/// Makes the name of a new directory durable.
fn sync_parent(path: &Path) -> Result<(), Errno> {
    let path = std::path::absolute(path).map_err(|_| Errno::INVAL)?;
    let Some(parent) = path.parent() else { return Ok(()) };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    dirs::sync_dir(rustix::fs::open(parent, flags, Mode::empty())?.as_fd())
}

fn exists(path: &Path) -> Error {
    Error::new(ErrorKind::AlreadyExists, "initialise local sink")
        .message("this is a repository already; use `LocalSink::open`")
        .with("path", path.display())
}

/// The id in the marker.
pub(super) fn read(root: &Root) -> Result<String> {
    const OPERATION: &str = "open local sink";
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = rustix::fs::openat(root.dir(), MARKER, flags, Mode::empty()).map_err(|e| match e {
        Errno::NOENT => Error::new(ErrorKind::WrongPlace, OPERATION).message(
            "there is no repository here: if it is on another disk, mount it; to begin a new one, run `LocalSink::init`",
        ),
        e => failed(OPERATION, e),
    })?;
    let mut text = Vec::new();
    std::fs::File::from(file).take(MAX_MARKER).read_to_end(&mut text).map_err(|e| Error::io(OPERATION, e))?;
    let marker: Marker = serde_json::from_slice(&text).map_err(|e| {
        Error::corrupt(
            OPERATION,
            "the marker `@repository.json` cannot be read; remove it and `adopt` the directory",
        )
        .caused_by(e)
    })?;
    if marker.format != FORMAT {
        return Err(Error::new(ErrorKind::Unsupported, OPERATION)
            .message("the marker has a format this version does not know; use a newer version")
            .with("format", marker.format));
    }
    Ok(marker.id)
}
