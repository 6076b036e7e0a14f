//! Whether the keys at hand open what there is.

use std::sync::Arc;

use super::Inner;
use super::catalog::Catalog;
use super::contents::Contents;
use crate::error::{Error, ErrorKind, Result};
use crate::keys::Keyring;
use crate::layout::BackupDir;
use crate::name::{BackupId, SetName, SinkId};

/// What [`Repository::check_keys`](crate::Repository::check_keys) found.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct KeyReport {
    /// One entry per set and key; two where the set has log slices.
    pub checks: Vec<KeyCheck>,
    /// Sinks that could not be listed.
    pub unreachable: Vec<(SinkId, Error)>,
}

/// One key, tried on the newest backup, or the newest log slice, of one set.
#[derive(Debug)]
#[non_exhaustive]
pub struct KeyCheck {
    /// The set.
    pub set: SetName,
    /// Its newest backup or log slice; `None` when the set could not be listed.
    pub id: Option<BackupId>,
    /// The key: its id, `passphrase` and its place in the keyring, or the recipient of an age identity. `no key` when there
    /// is none.
    pub key: String,
    /// The sinks whose copy it opens, or why it opens none.
    pub opens: Result<Vec<SinkId>>,
}

impl KeyReport {
    /// The sets whose newest backup or newest log slice no key opens.
    pub fn locked_out(&self) -> Vec<&SetName> {
        let opened = |check: &KeyCheck| {
            self.checks.iter().any(|c| c.set == check.set && c.id == check.id && c.opens.is_ok())
        };
        let mut sets: Vec<_> = self.checks.iter().filter(|c| !opened(c)).map(|c| &c.set).collect();
        sets.dedup();
        sets
    }

    /// The report, or an error that names the first set that no key opens.
    pub fn into_result(self) -> Result<Self> {
        let Some(set) = self.locked_out().first().map(|set| (*set).clone()) else { return Ok(self) };
        let cause = self.checks.into_iter().find(|c| c.set == set).and_then(|c| c.opens.err());
        let error = Error::new(ErrorKind::WrongKey, "check keys")
            .message("no key at hand opens the newest backup of a set; find its key while there is time")
            .with("set", set);
        Err(match cause {
            Some(cause) => error.caused_by(cause),
            None => error,
        })
    }
}

impl Inner {
    pub(super) async fn check_keys(&self) -> Result<KeyReport> {
        let watch = self.watch(Vec::new());
        let sets = self.sets(&watch).await?;
        let single = self.each_key();
        let mut report = KeyReport::default();
        for set in sets.iter() {
            let catalog = self.catalog_watched(set.clone(), watch.clone());
            // Those who follow a log may be configured with other keys than those who make backups. Nothing is found
            // where everything was pruned in this moment.
            let newest = match catalog.ids().await {
                Ok(found) => found.newest(),
                Err(error) => {
                    report.checks.push(KeyCheck {
                        set: set.clone(),
                        id: None,
                        key: String::new(),
                        opens: Err(error),
                    });
                    continue;
                }
            };
            for (id, dir) in newest {
                for (key, inner) in &single {
                    let catalog = inner.catalog_watched(set.clone(), watch.clone());
                    report.checks.push(KeyCheck {
                        set: set.clone(),
                        id: Some(id),
                        key: key.clone(),
                        opens: inner.opens(&catalog, dir.clone(), id).await,
                    });
                }
            }
        }
        report.unreachable = sets.unreachable;
        Ok(report)
    }

    /// Each key alone in a repository like this one.
    fn each_key(&self) -> Vec<(String, Inner)> {
        let own: Vec<_> = self.known.iter().filter(|t| t.each_key().is_empty()).cloned().collect();
        let of_ring = |(name, ring): (String, _)| {
            (name, Inner { keyring: Some(ring), known: own.clone(), ..self.clone() })
        };
        let mut single: Vec<_> = self.keyring.iter().flat_map(Keyring::each).map(of_ring).collect();
        for (place, transform) in self.known.iter().enumerate() {
            for (name, alone) in transform.each_key() {
                let mut inner = Inner { keyring: None, ..self.clone() };
                if let Some(slot) = inner.known.get_mut(place) {
                    *slot = Arc::from(alone);
                }
                single.push((name, inner));
            }
        }
        if single.is_empty() {
            single.push(("no key".to_owned(), self.clone()));
        }
        single
    }

    /// The sinks whose copy of a backup opens.
    async fn opens(&self, catalog: &Catalog<'_>, dir: BackupDir, id: BackupId) -> Result<Vec<SinkId>> {
        let opened = catalog.open_on(dir, id, &self.sinks).await?;
        let mut opens = Vec::new();
        let mut failed = None;
        for copy in &opened.copies {
            // A manifest that is sealed by a key is proof of that key. A signature is none of the key to read with.
            let read = match &opened.key {
                None if opened.manifest.encrypted() => {
                    let (opened, copies) = (opened.clone(), [Arc::clone(copy)]);
                    Contents::from_copies(self, opened, &copies, &catalog.watch).await.map(drop)
                }
                _ => Ok(()),
            };
            match read {
                Ok(()) => opens.push(copy.id().clone()),
                Err(error) => failed = Some(error),
            }
        }
        match failed {
            Some(error) if opens.is_empty() => Err(error),
            _ => Ok(opens),
        }
    }
}
