//! Copies that a store makes by itself, where the source and the destination lie in the same store.
//!
//! A copy counts once its digest is the manifest's: as the store computed it while it wrote, or as it is read back.
//! Anything else, refused, failed, or of another digest, is streamed as if no store could copy.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use super::copy::Work;
use super::inspect::{self, Part};
use crate::engine::fanout::Numbered;
use crate::engine::retry::Patience;
use crate::engine::store::Failures;
use crate::error::{ErrorKind, Result};
use crate::key::Key;
use crate::sink::{PutOptions, Sink, StoreAddress, StoreCopy};

/// Smaller objects are streamed: that takes no more requests than a copy and its proof.
const WORTH_A_COPY: u64 = 256 * 1024;
/// Bytes a second of the slowest store that is waited for.
const SLOWEST: u64 = 16 * 1024 * 1024;

impl Work<'_> {
    /// Whether any of these sinks shares a store with a source.
    pub(super) fn stores_may_copy(&self, to: &[Numbered]) -> bool {
        let Ok(key) = self.opened.dir.manifest() else { return false };
        to.iter().any(|(_, sink)| self.sources.iter().any(|source| share_a_store(source, sink, &key)))
    }

    /// Has stores copy `part` where they can. Returns the sinks that hold it now, verified, and those that are given up
    /// because their store may be copying still: it must not replace what would be streamed meanwhile.
    pub(super) async fn copied_by_stores(
        &self,
        part: &Part,
        key: &Key,
        to: &[Numbered],
    ) -> (BTreeSet<usize>, Failures) {
        let (mut copied, mut in_doubt) = (BTreeSet::new(), Failures::new());
        if part.object.size <= WORTH_A_COPY {
            return (copied, in_doubt);
        }
        let copying = to.iter().map(|(number, sink)| async move {
            for source in self.sources.iter().filter(|source| share_a_store(source, sink, key)) {
                match self.copied_by_store(part, key, source, sink).await {
                    Ok(true) => return (*number, Ok(true)),
                    Err(error) if error.kind() == ErrorKind::Timeout => return (*number, Err(error)),
                    // What is wrong with source or destination, streaming finds out, too.
                    Ok(false) | Err(_) => {}
                }
            }
            (*number, Ok(false))
        });
        for (number, result) in futures::future::join_all(copying).await {
            match result {
                Ok(true) => drop(copied.insert(number)),
                Ok(false) => {}
                Err(error) => in_doubt.push((number, error)),
            }
        }
        if copied.len() == to.len() {
            // Else streaming counts them.
            let bytes = usize::try_from(part.object.size).unwrap_or(usize::MAX);
            self.catalog.watch.stored(bytes);
            self.catalog.watch.plain(bytes);
        }
        (copied, in_doubt)
    }

    async fn copied_by_store(
        &self,
        part: &Part,
        key: &Key,
        source: &Arc<dyn Sink>,
        sink: &Arc<dyn Sink>,
    ) -> Result<bool> {
        let (from, size) = (source.address(key), part.object.size);
        let copying = copy_by_store(self.inner.patience, from, size, sink, key, self.put_options(part));
        let Some(copy) = copying.await? else { return Ok(false) };
        let digest = match copy.sha256 {
            Some(digest) => digest,
            None => inspect::digest(self.catalog, sink, key, self.limit).await?,
        };
        Ok(digest == part.object.sha256)
    }
}

/// Has a store copy `size` bytes from `from` to `to`, and waits as long as that may take it. `None`: it cannot.
pub(in crate::repository) async fn copy_by_store(
    patience: Patience,
    from: Option<StoreAddress>,
    size: u64,
    sink: &Arc<dyn Sink>,
    to: &Key,
    options: PutOptions,
) -> Result<Option<StoreCopy>> {
    let Some(from) = from else { return Ok(None) };
    let patience = patience.for_work(Duration::from_secs(size / SLOWEST));
    patience.bound_finish(sink.copy_from(&from, size, to, options)).await
}

fn share_a_store(source: &Arc<dyn Sink>, sink: &Arc<dyn Sink>, key: &Key) -> bool {
    // Onto itself a damaged object is not healed.
    source.id() != sink.id()
        && source
            .address(key)
            .zip(sink.address(key))
            .is_some_and(|(from, to)| from.store == to.store && from != to)
}
