//! The ring entries of passphrases, which are shared by all backups of a sink.

use std::collections::BTreeMap;

use super::Run;
use crate::engine::store::Failures;
use crate::error::Result;
use crate::key::Key;
use crate::keys::Keyring;
use crate::layout::KEYRING;
use crate::repository::wrap::ring_files;
use crate::sink::{ObjectKind, PutOptions};

impl Run<'_> {
    /// Gives every destination the ring entries it lacks. No backup needs them, as each carries its own; but without
    /// them a mistyped passphrase would not be noticed where only that sink is left.
    pub(super) async fn ring(&mut self) {
        if self.inner.keyring.as_ref().is_none_or(|keyring| !keyring.has_passphrase()) {
            return;
        }
        match self.copy_ring().await {
            Ok(failures) => {
                for (number, error) in failures {
                    let sink = self.inner.sinks.get(number).map(|s| s.id().clone());
                    self.fail(None, sink, error);
                }
            }
            Err(error) => self.fail(None, None, error),
        }
    }

    async fn copy_ring(&self) -> Result<Failures> {
        let (patience, watch) = (self.inner.patience, &self.catalog.watch);
        let directory = Key::root().join(KEYRING)?;
        let mut entries = BTreeMap::new();
        for sink in &self.from {
            // A source that cannot be read is reported where a backup is wanted from it.
            if let Ok(found) =
                patience.retry(sink.id(), watch, || ring_files(sink.as_ref(), &directory)).await
            {
                entries.extend(found.into_iter().filter(|(name, bytes)| Keyring::is_ring_entry(name, bytes)));
            }
        }
        let mut failures = Failures::new();
        for (number, sink) in &self.to {
            let found = match patience.retry(sink.id(), watch, || ring_files(sink.as_ref(), &directory)).await
            {
                Ok(found) => found,
                Err(error) => {
                    failures.push((*number, error));
                    continue;
                }
            };
            for (name, bytes) in &entries {
                if found.iter().any(|(n, b)| n == name && Keyring::is_ring_entry(n, b)) {
                    continue;
                }
                let key = directory.append(&Key::parse(name.clone())?);
                let options = PutOptions::overwrite(ObjectKind::Note);
                if let Err(error) = self.inner.put_one(sink, &key, bytes, &options, watch).await {
                    failures.push((*number, error));
                }
            }
        }
        Ok(failures)
    }
}
