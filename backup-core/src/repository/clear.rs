//! Removing the objects of a backup that has no manifest any more.

use futures::StreamExt as _;

use super::access::Access;
use super::commit::{PENDING_LIMIT, Pending};
use super::prune::condemned::{Condemned, marker_name};
use crate::error::{Error, ErrorKind, Result};
use crate::key::Key;
use crate::layout::{BackupDir, CONDEMNED, MANIFEST, PENDING};
use crate::name::{BackupId, SetName};
use crate::sink::ObjectInfo;

/// Deletions under way at once.
const AT_ONCE: usize = 8;
/// Lists of one directory before giving up. A second one finds what a writer on its way out or a list that was cut
/// short left; a directory that keeps filling is somebody's at work.
const PASSES: usize = 4;

/// What was removed.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Cleared {
    pub(super) objects: u64,
    pub(super) bytes: u64,
}

/// Marks a directory as about to be cleared, for replications to see. `None` where the sink is too full for a marker:
/// clearing is how it gets space again.
pub(super) async fn condemn(
    access: &Access<'_>,
    set: &SetName,
    id: BackupId,
    dir: &BackupDir,
) -> Result<Option<Key>> {
    let key = dir.condemned()?.join(marker_name()?)?;
    match access.put(&key, &Condemned::to_bytes(set, id, access.inner.clock.now())?).await {
        Ok(()) => Ok(Some(key)),
        Err(error) if error.kind() == ErrorKind::StorageFull => Ok(None),
        Err(error) => Err(error),
    }
}

/// Removes what a run left on a sink where it wrote no manifest, although it did on another: unless the manifest is
/// there after all, or a replication has begun to make the copy whole.
pub(super) async fn clear_failed_copy(
    access: &Access<'_>,
    set: &SetName,
    id: BackupId,
    dir: &BackupDir,
) -> Result<()> {
    if access.exists(&dir.manifest()?).await? {
        return Ok(());
    }
    let marker = condemn(access, set, id, dir).await?;
    let pending = access.read(&dir.pending()?, PENDING_LIMIT).await?;
    let ours = pending.is_none_or(|bytes| Pending::parse(&bytes).is_ok_and(|pending| !pending.replica));
    if !ours || access.exists(&dir.manifest()?).await? {
        return match marker {
            Some(marker) => access.release(&marker).await,
            None => Ok(()),
        };
    }
    clear(access, dir, &mut Cleared::default()).await
}

/// Removes every object listed below `dir`: the pending marker after all others, the markers of pruners last, so that
/// a run that is killed on the way is recognised and finished by the next.
///
/// Never touches a manifest. If one is there, a copy is being made, and this stops with
/// [`ErrorKind::AlreadyExists`].
pub(super) async fn clear(access: &Access<'_>, dir: &BackupDir, cleared: &mut Cleared) -> Result<()> {
    for _ in 0..PASSES {
        let listed = access.list(dir.prefix()).await?;
        let order = |object: &ObjectInfo| place(dir, &object.key);
        if listed.iter().any(|object| order(object) == Order::Manifest) {
            return Err(Error::new(ErrorKind::AlreadyExists, "delete backup")
                .message(
                    "a manifest appeared while the objects were being deleted; somebody copies this backup",
                )
                .with("directory", dir.prefix()));
        }
        let (objects, markers): (Vec<_>, Vec<_>) =
            listed.into_iter().partition(|object| order(object) == Order::First);
        let last_pass = objects.is_empty();
        remove(access, objects, cleared).await?;
        if last_pass {
            let (pending, condemned): (Vec<_>, Vec<_>) =
                markers.into_iter().partition(|object| order(object) == Order::Pending);
            remove(access, pending, cleared).await?;
            // The markers of prunes are no part of what the backup took.
            return remove(access, condemned, &mut Cleared::default()).await;
        }
    }
    Err(Error::new(ErrorKind::AlreadyExists, "delete backup")
        .message("objects keep appearing in the directory; somebody writes there, or the sink does not list what it holds")
        .with("directory", dir.prefix()))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Order {
    First,
    Pending,
    Condemned,
    Manifest,
}

fn place(dir: &BackupDir, key: &Key) -> Order {
    let below = key.strip_prefix(dir.prefix());
    let mut segments = below.iter().flat_map(Key::segments);
    match (segments.next(), segments.next()) {
        (Some(MANIFEST), None) => Order::Manifest,
        (Some(PENDING), None) => Order::Pending,
        (Some(CONDEMNED), Some(_)) => Order::Condemned,
        _ => Order::First,
    }
}

/// Deletes `objects`; goes on after an error, and returns the first.
async fn remove(access: &Access<'_>, objects: Vec<ObjectInfo>, cleared: &mut Cleared) -> Result<()> {
    let deletions = objects.into_iter().map(|object| async move {
        access.delete(&object.key).await.map(|()| object.size).map_err(|e| e.with("key", &object.key))
    });
    let results: Vec<_> = futures::stream::iter(deletions).buffer_unordered(AT_ONCE).collect().await;
    let mut failed = None;
    for result in results {
        match result {
            Ok(size) => {
                cleared.objects += 1;
                cleared.bytes += size;
            }
            Err(error) => failed = failed.or(Some(error)),
        }
    }
    failed.map_or(Ok(()), Err)
}
