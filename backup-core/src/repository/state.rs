//! What a host that cannot read its own backups keeps of the newest one, so that the next can be incremental: the plain
//! details, in `items-<id>.jsonl`, and `state.json`, which says of which backup they are.
//!
//! Losing it costs a full backup, no more. What is kept is used only for the very manifest it was written with, and only
//! when its digest matches.

use std::fs::{self, File};
use std::io::{BufWriter, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures::StreamExt as _;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::Inner;
use super::catalog::Opened;
use super::contents::Contents;
use crate::digest::{Digest, Hasher};
use crate::error::{Error, ErrorKind, Result};
use crate::name::{BackupId, SetName};
use crate::source::ByteStream;

const STATE: &str = "state.json";
/// Largest `state.json` that is read, in bytes.
const STATE_LIMIT: u64 = 64 * 1024;
/// After this time nobody is still writing a list that no `state.json` names.
const STALE: Duration = Duration::from_secs(48 * 3600);
/// Bytes read at a time.
const PIECE: usize = 256 * 1024;

/// `state.json`.
#[derive(Debug, Serialize, Deserialize)]
struct State {
    format: u32,
    set: SetName,
    id: BackupId,
    /// Digest of the manifest object.
    manifest: Digest,
    /// Size and digest of the list.
    size: u64,
    sha256: Digest,
}

/// A list being written beside a run. Dropping it removes the file.
pub(super) struct Kept {
    set: SetName,
    id: BackupId,
    directory: PathBuf,
    path: PathBuf,
    file: Option<BufWriter<File>>,
    hasher: Hasher,
    size: u64,
    /// Why there will be no list.
    failed: Option<Error>,
}

impl Inner {
    /// The directory of a set, on a host that cannot read its own backups.
    fn state_directory(&self, set: &SetName) -> Option<PathBuf> {
        let root = self.state.as_ref().filter(|_| !self.chain.can_decode())?;
        // A set's name may be too long for a file name; `state.json` says it.
        Some(root.join(Digest::of(set.as_str().as_bytes()).to_string()))
    }

    /// Begins to keep the details of a backup, where that is of use.
    pub(super) fn keep(&self, set: &SetName, id: BackupId) -> Option<Kept> {
        let directory = self.state_directory(set)?;
        let path = directory.join(items(id));
        let opened = make_directory(&directory).and_then(|()| create(&path));
        let (file, failed) = match opened {
            Ok(file) => (Some(BufWriter::new(file)), None),
            Err(error) => (None, Some(error)),
        };
        Some(Kept { set: set.clone(), id, directory, path, file, hasher: Hasher::new(), size: 0, failed })
    }

    /// The backup whose details are kept.
    pub(super) async fn kept_id(&self, set: &SetName) -> Option<BackupId> {
        let directory = self.state_directory(set)?;
        let state = tokio::task::spawn_blocking(move || read_state(&directory)).await.ok()?.ok()?;
        (state.set == *set).then_some(state.id)
    }

    /// The contents of `opened` as they were kept.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`] when they were not; [`ErrorKind::Corrupt`] when they are damaged or of another manifest.
    pub(super) async fn kept(&self, opened: Opened) -> Result<Contents> {
        let set = opened.manifest.set.clone();
        let directory = self.state_directory(&set).ok_or_else(|| {
            Error::new(ErrorKind::NotFound, "read state")
                .message("this host cannot read its backups and has no state directory")
        })?;
        let (id, manifest) = (opened.manifest.id, opened.digest);
        let checked = tokio::task::spawn_blocking(move || {
            let state = read_state(&directory)?;
            if state.set != set || state.id != id || state.manifest != manifest {
                return Err(Error::corrupt("read state", "what is kept belongs to another backup"));
            }
            let path = directory.join(items(id));
            let io = |e| Error::io("read state", e).with("path", path.display());
            let mut file = File::open(&path).map_err(io)?;
            let (mut hasher, mut size) = (Hasher::new(), 0);
            let mut piece = vec![0; PIECE];
            loop {
                let read = file.read(&mut piece).map_err(io)?;
                let Some(read) = piece.get(..read).filter(|read| !read.is_empty()) else { break };
                hasher.update(read);
                size += read.len() as u64;
            }
            if size != state.size || hasher.finish() != state.sha256 {
                return Err(Error::corrupt("read state", "the kept list of items is damaged")
                    .with("path", path.display()));
            }
            Ok(path)
        });
        let path =
            checked.await.map_err(|e| Error::new(ErrorKind::Internal, "read state").caused_by(e))??;
        Contents::kept(opened, path).await
    }
}

impl Kept {
    /// Takes the next bytes of the details. A failure only means that nothing will be kept.
    pub(super) fn write(&mut self, bytes: &[u8]) {
        let Some(file) = &mut self.file else { return };
        if let Err(error) = file.write_all(bytes) {
            self.failed = Some(Error::io("keep state", error).with("path", self.path.display()));
            self.file = None;
            return;
        }
        self.hasher.update(bytes);
        self.size += bytes.len() as u64;
    }

    /// The backup exists, with this manifest: from now on its list is the one that is kept.
    pub(super) fn commit(&mut self, manifest: Digest) -> Result<()> {
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        let io = |e| Error::io("keep state", e);
        let Some(file) = self.file.take() else { return Ok(()) };
        file.into_inner().map_err(|e| io(e.into_error()))?.sync_all().map_err(io)?;
        let state = State {
            format: 1,
            set: self.set.clone(),
            id: self.id,
            manifest,
            size: self.size,
            sha256: std::mem::take(&mut self.hasher).finish(),
        };
        let json = serde_json::to_vec_pretty(&state)
            .map_err(|e| Error::new(ErrorKind::Internal, "keep state").caused_by(e))?;
        let temporary = self.directory.join(format!("new-state-{}", self.id));
        let placed = create(&temporary).and_then(|mut file| {
            file.write_all(&json).and_then(|()| file.sync_all()).map_err(io)?;
            fs::rename(&temporary, self.directory.join(STATE)).map_err(io)
        });
        if placed.is_err() {
            let _ = fs::remove_file(&temporary);
            return placed;
        }
        let kept = std::mem::take(&mut self.path);
        clear(&self.directory, &kept);
        Ok(())
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        // Committed lists have given their path away.
        if !self.path.as_os_str().is_empty() {
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl std::fmt::Debug for Kept {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kept").field("path", &self.path).finish_non_exhaustive()
    }
}

fn items(id: BackupId) -> String {
    format!("items-{id}.jsonl")
}

/// Removes the lists of earlier backups, and what runs that died left. What cannot be removed costs space only.
fn clear(directory: &Path, kept: &Path) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    let mine = kept.file_name().unwrap_or_default();
    for entry in entries.flatten() {
        let name = entry.file_name();
        let other = name != mine
            && name.to_str().is_some_and(|n| n.starts_with("items-") || n.starts_with("new-state-"));
        // Ids sort by time: a younger list belongs to a run at work.
        let older = name.as_os_str() < mine;
        let stale = entry
            .metadata()
            .and_then(|m| m.modified())
            .is_ok_and(|time| SystemTime::now().duration_since(time).is_ok_and(|age| age > STALE));
        if other && (older || stale) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

fn read_state(directory: &Path) -> Result<State> {
    let io = |e| Error::io("read state", e).with("path", directory.display());
    let mut bytes = Vec::new();
    File::open(directory.join(STATE))
        .and_then(|f| f.take(STATE_LIMIT).read_to_end(&mut bytes))
        .map_err(io)?;
    let state: State = serde_json::from_slice(&bytes)
        .map_err(|e| Error::corrupt("read state", "`state.json` is damaged").caused_by(e))?;
    if state.format == 1 {
        Ok(state)
    } else {
        Err(Error::new(ErrorKind::Unsupported, "read state").with("format", state.format))
    }
}

fn make_directory(path: &Path) -> Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path).map_err(|e| Error::io("keep state", e).with("path", path.display()))
}

fn create(path: &Path) -> Result<File> {
    let mut options = File::options();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path).map_err(|e| Error::io("keep state", e).with("path", path.display()))
}

/// The bytes of a file, read on a thread that may block. Must be called within a tokio runtime.
pub(super) fn file_bytes(path: PathBuf) -> ByteStream {
    let (to, from) = mpsc::channel::<Result<Bytes>>(2);
    tokio::task::spawn_blocking(move || {
        let read = || {
            let mut file = File::open(&path)?;
            let mut piece = vec![0; PIECE];
            loop {
                let read = file.read(&mut piece)?;
                let Some(read) = piece.get(..read).filter(|read| !read.is_empty()) else { return Ok(()) };
                if to.blocking_send(Ok(Bytes::copy_from_slice(read))).is_err() {
                    return Ok(());
                }
            }
        };
        if let Err(error) = read() {
            // A receiver that is gone does not want the error either.
            let _ = to.blocking_send(Err(Error::io("read file", error).with("path", path.display())));
        }
    });
    futures::stream::unfold(from, |mut from| async move { from.recv().await.map(|item| (item, from)) })
        .boxed()
}
