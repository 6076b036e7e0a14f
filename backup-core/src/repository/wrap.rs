//! Storing the wraps of a backup's key, and the ring entries that passphrases need.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures::TryStreamExt as _;

use super::Inner;
use super::catalog::WRAP_LIMIT;
use crate::engine::fanout::Numbered;
use crate::engine::progress::Watch;
use crate::engine::store::Failures;
use crate::error::{Error, ErrorKind, Result};
use crate::key::Key;
use crate::keys::{BackupKey, Keyring};
use crate::layout::KEYRING;
use crate::name::{BackupId, SetName};
use crate::observer::Event;
use crate::sink::{ObjectKind, PutOptions, Sink, read_bytes};
use crate::source::Warning;

impl Inner {
    /// The wraps to store with a backup, by file name, and the sinks that failed on the way.
    pub(super) async fn wrap(
        &self,
        keyring: &Keyring,
        set: &SetName,
        id: BackupId,
        key: &BackupKey,
        sinks: &[Numbered],
        watch: &Watch,
    ) -> Result<(Vec<(String, Bytes)>, Failures)> {
        let failures = if keyring.needs_preparation() {
            self.prepare(keyring, sinks, watch).await?
        } else {
            Failures::new()
        };
        Ok((keyring.wrap(set, id, key)?, failures))
    }

    /// Opens or makes the ring entries of the keyring's passphrases.
    async fn prepare(&self, keyring: &Keyring, sinks: &[Numbered], watch: &Watch) -> Result<Failures> {
        let directory = Key::root().join(KEYRING)?;
        let mut files = BTreeMap::new();
        let mut failures = Failures::new();
        for (number, sink) in sinks {
            let read = self.patience.retry(sink.id(), watch, || ring_files(sink.as_ref(), &directory));
            match read.await {
                Ok(found) => files.extend(found),
                Err(error) => failures.push((*number, error)),
            }
        }
        let (ring, files): (_, Vec<_>) = (keyring.clone(), files.into_iter().collect());
        // A passphrase takes a good part of a second to turn into a key.
        let update = tokio::task::spawn_blocking(move || ring.prepare(&files))
            .await
            .map_err(|e| Error::new(ErrorKind::Internal, "open keyring").caused_by(e))??;
        for error in &update.damaged {
            watch.event(&Event::Warning(&Warning::new("ring-entry-damaged", error.chain())));
        }
        for (name, bytes) in update.store {
            let options = PutOptions::create_new(ObjectKind::Note);
            failures.extend(self.put_each(sinks, &directory.join(&name)?, &bytes, &options, watch).await);
        }
        Ok(failures)
    }
}

/// The files of a sink's `keyring/`, with their names.
pub(super) async fn ring_files(sink: &dyn Sink, directory: &Key) -> Result<Vec<(String, Bytes)>> {
    let mut files = Vec::new();
    let mut objects = sink.list(directory);
    while let Some(object) = objects.try_next().await? {
        let bytes = read_bytes(sink, &object.key, WRAP_LIMIT).await?;
        files.push((object.key.file_name().to_owned(), bytes));
    }
    Ok(files)
}
