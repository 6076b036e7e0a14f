//! Copies the store makes by itself, from one sink's place to another's.

use backup_core::{Key, PutMode, PutOptions, Result, StoreAddress, StoreCopy};
use object_store::path::Path;
use object_store::{CopyMode, CopyOptions};

use crate::error::Tried;
use crate::native::Copy;
use crate::shared::Shared;
use crate::writer::token;

const OPERATION: &str = "copy object";

/// Which store a sink is part of, and where in it.
#[derive(Clone, Debug)]
pub(crate) struct Origin {
    /// Equal for sinks whose objects one request can copy.
    pub(crate) store: String,
    /// The bucket, where one store's copies reach all of its buckets; else empty.
    pub(crate) bucket: String,
}

impl Origin {
    /// An object of the bucket, as the store's copies name it.
    pub(crate) fn address(&self, name: &str) -> String {
        if self.bucket.is_empty() { name.to_owned() } else { format!("{}/{name}", self.bucket) }
    }
}

pub(crate) fn address(shared: &Shared, key: &Key) -> Option<StoreAddress> {
    if shared.native.as_ref().is_some_and(|native| !native.can_copy()) {
        return None;
    }
    let path = shared.place.path(key).ok()?;
    Some(StoreAddress { store: shared.origin.store.clone(), object: shared.origin.address(path.as_ref()) })
}

pub(crate) async fn copy_from(
    shared: &Shared,
    from: &StoreAddress,
    size: u64,
    to: &Key,
    options: &PutOptions,
) -> Result<Option<StoreCopy>> {
    // Not every store copies on a condition; a put can.
    if from.store != shared.origin.store || options.mode == PutMode::CreateNew {
        return Ok(None);
    }
    let target = shared.place.path(to)?;
    let error = |e: &object_store::Error| shared.error(OPERATION, Tried::Enough, to, e);
    let Some(native) = &shared.native else {
        let source = Path::parse(&from.object).map_err(|e| error(&e.into()))?;
        let how = CopyOptions::new().with_mode(CopyMode::Overwrite);
        shared.store.copy_opts(&source, &target, how).await.map_err(|e| error(&e))?;
        return Ok(Some(StoreCopy::default()));
    };
    if !native.can_copy() {
        return Ok(None);
    }
    let (tags, token) = (shared.tags(), token()?);
    let copy = Copy {
        from: &from.object,
        to: target.as_ref(),
        size,
        class: shared.options.classes.of(options.kind),
        tags: tags.encoded(),
        metadata: &shared.metadata(&token, options.retain_until),
        retain_until: options.retain_until,
    };
    match native.copy(copy).await {
        Ok(sha256) => Ok(Some(StoreCopy { sha256 })),
        // A reply may be lost, and the copy made.
        Err(error) => match shared.find(&target).await {
            Ok(found) if found.writer.as_deref() == Some(&token) => Ok(Some(StoreCopy::default())),
            _ => Err(error.with("to", to).with("sink", &shared.id)),
        },
    }
}
