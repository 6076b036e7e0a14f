//! What a sink holds of a backup, and what it lacks.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use chrono::TimeDelta;
use futures::TryStreamExt as _;

use crate::digest::{Digest, Hasher};
use crate::engine::feed::RateLimit;
use crate::error::{Error, ErrorKind, Result};
use crate::key::Key;
use crate::manifest::{self, MANIFEST_LIMIT, Manifest, StoredObject};
use crate::repository::catalog::{Catalog, Opened};
use crate::repository::commit::Pending;
use crate::sink::{Availability, ObjectInfo, ObjectKind, Sink, read_bytes};

/// Objects up to this size are read and compared although only sizes were asked for: that costs no more than asking.
const SMALL: u64 = 256 * 1024;
/// Largest pending marker that is read.
const PENDING_LIMIT: u64 = 64 * 1024;
/// How long a run may take to tidy up after its manifest, beside waiting for sinks.
const FINISHING: TimeDelta = TimeDelta::minutes(10);

/// An object of a backup beside its manifest and key wraps.
#[derive(Clone, Debug)]
pub(in crate::repository) struct Part {
    pub(in crate::repository) object: StoredObject,
    pub(in crate::repository) kind: ObjectKind,
}

/// The parts of a backup, data first.
pub(in crate::repository) fn parts(manifest: &Manifest) -> Vec<Part> {
    let mut parts = Vec::new();
    let artifacts = manifest.artifacts.iter().map(|artifact| (&artifact.stored, ObjectKind::Data));
    for (object, kind) in artifacts.chain([(&manifest.details, ObjectKind::Index)]) {
        parts.push(Part { object: object.clone(), kind });
        if let Some(index) = &object.index {
            let object = StoredObject {
                object: index.object.clone(),
                size: index.size,
                sha256: index.sha256,
                plain_size: None,
                index: None,
                written_as: None,
            };
            parts.push(Part { object, kind: ObjectKind::Index });
        }
    }
    parts.extend(manifest.notes.iter().map(|note| Part { object: note.clone(), kind: ObjectKind::Note }));
    parts
}

/// How an object is on a sink.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    Good,
    Missing,
    Damaged,
}

/// What a sink holds of a backup.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) manifest: Standing,
    /// In the order of [`parts`].
    pub(super) parts: Vec<Standing>,
    pub(super) wraps: Standing,
    /// Whether a run's marker lies there.
    pub(super) pending: bool,
    /// Whether that run may have left copies of a store's that nobody verified.
    pub(super) unverified: bool,
}

impl Held {
    pub(super) fn is_whole(&self) -> bool {
        self.manifest == Standing::Good
            && self.wraps == Standing::Good
            && self.parts.iter().all(|s| *s == Standing::Good)
    }
}

/// Looks at everything `sink` holds of the backup. With `verify` every object is read.
pub(super) async fn held(
    catalog: &Catalog<'_>,
    opened: &Opened,
    parts: &[Part],
    sink: &Arc<dyn Sink>,
    verify: bool,
) -> Result<Held> {
    let found = listed(catalog, opened, sink).await?;
    let markers = opened.dir.condemned()?;
    if found.keys().any(|key| key.strip_prefix(&markers).is_some()) {
        return Err(condemned());
    }
    let pending = opened.dir.pending()?;
    let unverified = found.contains_key(&pending) && left_unverified(catalog, sink, &pending).await?;
    let verify = verify || unverified;
    let mut standings = Vec::with_capacity(parts.len());
    for part in parts {
        let key = opened.dir.object(&part.object.object)?;
        standings.push(part_standing(catalog, sink, &key, part, found.get(&key), verify).await?);
    }
    Ok(Held {
        manifest: manifest_standing(catalog, opened, sink).await?,
        parts: standings,
        wraps: super::wraps::standing(catalog, opened, sink, verify).await?,
        pending: found.contains_key(&pending),
        unverified,
    })
}

/// Looks whether what was found good is still listed; what is not counts as missing. Returns how much that is.
pub(super) async fn still_held(
    catalog: &Catalog<'_>,
    opened: &Opened,
    parts: &[Part],
    sink: &Arc<dyn Sink>,
    held: &mut Held,
) -> Result<usize> {
    let found = listed(catalog, opened, sink).await?;
    let mut lost = 0;
    for (part, standing) in parts.iter().zip(&mut held.parts) {
        if *standing == Standing::Good && !found.contains_key(&opened.dir.object(&part.object.object)?) {
            *standing = Standing::Missing;
            lost += 1;
        }
    }
    if held.manifest == Standing::Good && !found.contains_key(&opened.dir.manifest()?) {
        held.manifest = Standing::Missing;
        lost += 1;
    }
    let keys = opened.dir.keys()?;
    if opened.key.is_some() && !found.keys().any(|key| key.strip_prefix(&keys).is_some()) {
        held.wraps = Standing::Missing;
    }
    Ok(lost)
}

pub(super) fn condemned() -> Error {
    Error::new(ErrorKind::PruneRefused, "replicate")
        .message("this copy is being pruned; replicate again afterwards if the backup is still wanted")
}

async fn listed(
    catalog: &Catalog<'_>,
    opened: &Opened,
    sink: &Arc<dyn Sink>,
) -> Result<BTreeMap<Key, ObjectInfo>> {
    let take = |found: &mut BTreeMap<Key, ObjectInfo>, object: ObjectInfo| {
        found.insert(object.key.clone(), object);
        Ok(())
    };
    catalog.inner.patience.list(sink.as_ref(), opened.dir.prefix(), &catalog.watch, take).await
}

async fn part_standing(
    catalog: &Catalog<'_>,
    sink: &Arc<dyn Sink>,
    key: &Key,
    part: &Part,
    info: Option<&ObjectInfo>,
    verify: bool,
) -> Result<Standing> {
    let Some(info) = info else { return Ok(Standing::Missing) };
    if info.size != part.object.size {
        return Ok(Standing::Damaged);
    }
    if !verify && (info.size > SMALL || info.availability != Availability::Ready) {
        return Ok(Standing::Good);
    }
    match digest(catalog, sink, key, None).await {
        Ok(digest) if digest == part.object.sha256 => Ok(Standing::Good),
        Ok(_) => Ok(Standing::Damaged),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Standing::Missing),
        Err(error) => Err(error),
    }
}

/// The digest of an object as the sink gives it back now.
pub(super) async fn digest(
    catalog: &Catalog<'_>,
    sink: &Arc<dyn Sink>,
    key: &Key,
    limit: Option<&RateLimit>,
) -> Result<Digest> {
    let patience = catalog.inner.patience;
    let once = || async {
        let mut hasher = Hasher::new();
        let mut stream = patience.bound(sink.open(key, None)).await?;
        // Large objects take longer than a single operation may: each chunk is timed for itself.
        while let Some(bytes) = patience.bound(async { stream.try_next().await }).await? {
            hasher.update(&bytes);
            if let Some(limit) = limit {
                limit.take(bytes.len()).await;
            }
        }
        Ok::<_, Error>(hasher.finish())
    };
    let mut tries = patience.tries(sink.id(), &catalog.watch);
    loop {
        match once().await {
            Ok(digest) => return Ok(digest),
            Err(error) => tries.again(error).await?,
        }
    }
}

/// Whether the run whose marker this is may have left copies that nobody verified. A marker that cannot be understood may
/// be one of those.
async fn left_unverified(catalog: &Catalog<'_>, sink: &Arc<dyn Sink>, pending: &Key) -> Result<bool> {
    match catalog.read(sink, pending, PENDING_LIMIT).await {
        Ok(bytes) => Ok(Pending::parse(&bytes).map_or(true, |pending| pending.unverified)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) if error.kind() == ErrorKind::LimitExceeded => Ok(true),
        Err(error) => Err(error),
    }
}

/// Whether the manifest is ours, missing or damaged.
///
/// # Errors
///
/// One that is whole but another is never replaced: somebody must decide which of the two is right.
async fn manifest_standing(catalog: &Catalog<'_>, opened: &Opened, sink: &Arc<dyn Sink>) -> Result<Standing> {
    let bytes = match catalog.read(sink, &opened.dir.manifest()?, MANIFEST_LIMIT).await {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Standing::Missing),
        Err(error) if error.kind() == ErrorKind::LimitExceeded => return Ok(Standing::Damaged),
        Err(error) => return Err(error),
    };
    if Digest::of(&bytes) == opened.digest {
        return Ok(Standing::Good);
    }
    let refuse = |error: Error| {
        error.message(
            "this sink holds another manifest of the same backup that is whole; find out which one is right and \
             remove the other by hand",
        )
    };
    let signatures = catalog.inner.signatures.as_ref();
    match manifest::open(&bytes, opened.key.as_ref(), signatures, &catalog.set, opened.manifest.id) {
        Err(error) if error.kind() == ErrorKind::Corrupt => Ok(Standing::Damaged),
        Err(error) => Err(refuse(Error::new(error.kind(), "replicate")).caused_by(error)),
        Ok(_) => Err(refuse(Error::new(ErrorKind::AlreadyExists, "replicate"))),
    }
}

/// The exact bytes of the trusted manifest.
pub(super) async fn manifest_bytes(
    catalog: &Catalog<'_>,
    opened: &Opened,
    sources: &[Arc<dyn Sink>],
) -> Result<Bytes> {
    let mut last =
        Error::new(ErrorKind::NotFound, "replicate").message("no sink holds the manifest any more");
    for sink in sources {
        match catalog.read(sink, &opened.dir.manifest()?, MANIFEST_LIMIT).await {
            Ok(bytes) if Digest::of(&bytes) == opened.digest => return Ok(bytes),
            Ok(_) => {
                last = Error::corrupt("replicate", "the manifest changed while it was read")
                    .with("sink", sink.id());
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Refuses a backup whose run has written its manifest but not finished: it may still be removing what it left on
/// sinks that failed.
pub(super) async fn refuse_unfinished(
    catalog: &Catalog<'_>,
    opened: &Opened,
    trusted: &[Arc<dyn Sink>],
) -> Result<()> {
    let patience = catalog.inner.patience;
    let finishing = FINISHING + TimeDelta::from_std(patience.stall * 2).unwrap_or_default();
    if catalog.inner.clock.now() - opened.manifest.finished > finishing {
        return Ok(());
    }
    let key = opened.dir.pending()?;
    for sink in trusted {
        let read = || read_bytes(sink.as_ref(), &key, PENDING_LIMIT);
        let bytes = match patience.retry(sink.id(), &catalog.watch, read).await {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        let over = serde_json::from_slice::<Pending>(&bytes)
            .is_ok_and(|p| p.replica || p.expires < catalog.inner.clock.now());
        if !over {
            return Err(Error::new(ErrorKind::Unavailable, "replicate")
                .message(
                    "the run that made this backup is just finishing; replicate again in some minutes, or say \
                     `take_over` if that run is dead",
                )
                .with("sink", sink.id()));
        }
    }
    Ok(())
}
