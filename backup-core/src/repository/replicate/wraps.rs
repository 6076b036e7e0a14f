//! The wraps of a backup's key: whether a copy can be opened, and which wraps to give it.
//!
//! Wraps are not in the manifest, because rotation changes them; what proves a wrap is that it opens to the key under
//! which the manifest is sealed. Wraps for keys that are not ours cannot be proved, only that they are well-formed.

use std::sync::Arc;

use bytes::Bytes;

use super::inspect::Standing;
use crate::error::{Error, ErrorKind, Result};
use crate::keys::{BackupKey, Keyring};
use crate::name::{BackupId, SetName};
use crate::repository::catalog::{Catalog, Opened};
use crate::sink::Sink;

/// Name, without its directory, and content of a wrap.
pub(in crate::repository) type Wrap = (String, Bytes);

/// Whether the wraps on `sink` open its copy. With `strict`, no wrap may be damaged.
pub(super) async fn standing(
    catalog: &Catalog<'_>,
    opened: &Opened,
    sink: &Arc<dyn Sink>,
    strict: bool,
) -> Result<Standing> {
    let (Some(key), Some(keyring)) = (&opened.key, &catalog.inner.keyring) else { return Ok(Standing::Good) };
    let found = catalog.wraps(sink, &opened.dir.keys()?).await?;
    if found.is_empty() {
        return Ok(Standing::Missing);
    }
    let (mut opens, mut damaged) = (false, false);
    for wrap in found {
        match open(keyring, &catalog.set, opened.manifest.id, wrap).await {
            Ok(Some(found)) if found.is_same(key) => opens = true,
            Ok(None) => {}
            _ => damaged = true,
        }
    }
    Ok(if opens && !(strict && damaged) { Standing::Good } else { Standing::Damaged })
}

/// The wraps of the first source that can be opened with them. Damaged ones are left out.
pub(super) async fn trusted(
    catalog: &Catalog<'_>,
    opened: &Opened,
    sources: &[Arc<dyn Sink>],
) -> Result<Vec<Wrap>> {
    let (Some(key), Some(keyring)) = (&opened.key, &catalog.inner.keyring) else { return Ok(Vec::new()) };
    let mut last = None;
    for sink in sources {
        let found = match catalog.wraps(sink, &opened.dir.keys()?).await {
            Ok(found) => found,
            Err(error) => {
                last = Some(error);
                continue;
            }
        };
        let (mut good, mut opens) = (Vec::new(), false);
        for wrap in found {
            match open(keyring, &catalog.set, opened.manifest.id, wrap.clone()).await {
                Ok(Some(found)) if found.is_same(key) => {
                    opens = true;
                    good.push(wrap);
                }
                Ok(None) => good.push(wrap),
                _ => {}
            }
        }
        if opens {
            return Ok(good);
        }
    }
    Err(last.unwrap_or_else(|| {
        Error::new(ErrorKind::NotFound, "replicate")
            .message("no sink holds a key wrap that opens this backup")
    }))
}

/// Opens one wrap; `None` when it is well-formed but made for a key that is not ours.
pub(in crate::repository) async fn open(
    keyring: &Keyring,
    set: &SetName,
    id: BackupId,
    wrap: Wrap,
) -> Result<Option<BackupKey>> {
    let (keyring, set) = (keyring.clone(), set.clone());
    // A passphrase takes a good part of a second to turn into a key.
    tokio::task::spawn_blocking(move || keyring.open_wrap(&set, id, &wrap))
        .await
        .map_err(|e| Error::new(ErrorKind::Internal, "open backup key").caused_by(e))?
}
