//! Trying out a bucket before a backup depends on it.

use backup_core::{Error, ErrorKind, Key, Result, Sink as _, Warning};
use futures::StreamExt as _;
use object_store::path::Path;
use object_store::{GetOptions, ObjectStoreExt as _, PutMode, PutOptions, PutPayload};

use crate::error::{Tried, store_error};
use crate::shared::Shared;
use crate::sink::ObjectStoreSink;

const OPERATION: &str = "probe object store";
/// The probe's object. Always the same name: a writer that may not delete leaves one, not one for every run.
const NAME: &str = "create-new";
/// A difference of clocks worth a word, in seconds. Stores refuse 15 minutes.
const SKEW: i64 = 5 * 60;

/// Tries create-new, reading, listing and deleting; reads what it may of the bucket's configuration.
///
/// What a role lacks is a warning: a writer that cannot delete and a restorer that cannot write are both wanted.
pub(crate) async fn probe(sink: &ObjectStoreSink) -> Result<Vec<Warning>> {
    let shared = sink.shared();
    let mut warnings = Vec::new();
    let path = shared.place.own(NAME)?;
    let writable = conditions_hold(shared, &path).await?;
    if !writable {
        warnings.push(Warning::new(
            "read-only",
            "objects cannot be put here: restore and verify work, backups will fail (allow s3:PutObject)",
        ));
    }
    read(shared, &path, &mut warnings).await?;
    list(sink, &mut warnings).await?;
    if writable {
        delete(shared, &path, &mut warnings).await?;
    }
    if let Some(skew) = shared.skew.get()
        && skew.abs() > SKEW
    {
        warnings.push(Warning::new(
            "clock-skew",
            format!(
                "the store's clock is {} s {} this machine's: beyond 15 minutes it will refuse requests; set the clock (NTP)",
                skew.abs(),
                if skew > 0 { "ahead of" } else { "behind" }
            ),
        ));
    }
    if let Some(native) = &shared.native {
        warnings.extend(native.bucket_warnings(&shared.place.listing(&Key::root())).await);
    }
    Ok(warnings)
}

fn failed(shared: &Shared, error: &object_store::Error) -> Error {
    store_error(OPERATION, Tried::Enough, error).with("sink", &shared.id)
}

enum Put {
    Done,
    Exists,
    Denied,
}

async fn put(shared: &Shared, path: &Path) -> Result<Put> {
    let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
    let payload = PutPayload::from_static(b"Left by a probe of the backup library; safe to delete.\n");
    match shared.store.put_opts(path, payload, options).await {
        Ok(_) => Ok(Put::Done),
        Err(e) => {
            let error = failed(shared, &e);
            match error.kind() {
                ErrorKind::AlreadyExists => Ok(Put::Exists),
                ErrorKind::PermissionDenied if is_plain_denial(&e) => Ok(Put::Denied),
                ErrorKind::Unsupported => Err(inadequate(shared).caused_by(error)),
                _ => Err(error),
            }
        }
    }
}

/// A role that lacks a permission, as opposed to credentials or a clock the store does not accept at all.
fn is_plain_denial(error: &object_store::Error) -> bool {
    let reply = crate::error::reply(error);
    let codes =
        ["AccessDenied", "AllAccessDisabled", "AuthorizationPermissionMismatch", "AuthorizationFailure"];
    reply.code_is(&codes) || (reply.code.is_none() && reply.status == Some(403))
}

/// Whether a second create-new of one name is refused. `false`: nothing can be put at all.
async fn conditions_hold(shared: &Shared, path: &Path) -> Result<bool> {
    match put(shared, path).await? {
        Put::Denied => return Ok(false),
        Put::Done | Put::Exists => {}
    }
    if let Put::Exists = put(shared, path).await? {
        return Ok(true);
    }
    // Another process may have probed, and deleted, in between. Nobody else knows this name.
    let random = shared.place.own(&crate::writer::token()?)?;
    put(shared, &random).await?;
    let second = put(shared, &random).await?;
    let _ = shared.store.delete(&random).await;
    match second {
        Put::Exists => Ok(true),
        _ => Err(inadequate(shared)),
    }
}

fn inadequate(shared: &Shared) -> Error {
    Error::new(ErrorKind::StoreInadequate, OPERATION)
        .message("the store ignores conditions: two writers can both create one object (If-None-Match has no effect), so a manifest could be replaced unnoticed; use another store, or a version of this one that honours conditional puts")
        .with("sink", &shared.id)
}

async fn read(shared: &Shared, path: &Path, warnings: &mut Vec<Warning>) -> Result<()> {
    let read = async { shared.store.get_opts(path, GetOptions::default()).await?.bytes().await };
    let Err(e) = read.await else { return Ok(()) };
    let error = failed(shared, &e);
    match error.kind() {
        // Nothing was put, or another prober deleted it meanwhile.
        ErrorKind::NotFound => Ok(()),
        ErrorKind::PermissionDenied if is_plain_denial(&e) => {
            warnings.push(Warning::new(
                "read-denied",
                "objects cannot be read here: restore, verify and incremental backups will fail (allow s3:GetObject)",
            ));
            Ok(())
        }
        _ => Err(error),
    }
}

async fn list(sink: &ObjectStoreSink, warnings: &mut Vec<Warning>) -> Result<()> {
    match sink.list(&Key::root()).next().await {
        Some(Err(e)) if e.kind() == ErrorKind::PermissionDenied => warnings.push(Warning::new(
            "list-denied",
            "objects cannot be listed here: nothing finds its backups (allow s3:ListBucket on the bucket)",
        )),
        Some(Err(e)) => return Err(e),
        Some(Ok(_)) | None => {}
    }
    Ok(())
}

async fn delete(shared: &Shared, path: &Path, warnings: &mut Vec<Warning>) -> Result<()> {
    match shared.store.delete(path).await {
        Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
        Err(e) => {
            let error = failed(shared, &e);
            if error.kind() != ErrorKind::PermissionDenied {
                return Err(error);
            }
            warnings.push(Warning::new(
                "delete-denied",
                "objects cannot be deleted here, as is right for a writer: prune must run with the pruner's role (s3:DeleteObject)",
            ));
            Ok(())
        }
    }
}
