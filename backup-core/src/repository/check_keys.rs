//! Whether the keys at hand open what there is.

use super::Inner;
use crate::engine::progress::Watch;
use crate::error::{Error, ErrorKind, Result};
use crate::name::{BackupId, SetName, SinkId};

/// What [`Repository::check_keys`](crate::Repository::check_keys) found.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct KeyReport {
    /// One entry per set and key of the keyring.
    pub checks: Vec<KeyCheck>,
    /// Sinks that could not be listed.
    pub unreachable: Vec<(SinkId, Error)>,
}

/// One key, tried on the newest backup of one set.
#[derive(Debug)]
#[non_exhaustive]
pub struct KeyCheck {
    /// The set.
    pub set: SetName,
    /// Its newest backup; `None` when the set could not be listed.
    pub id: Option<BackupId>,
    /// The key: its id, or `passphrase` and its place in the keyring. `no key` when there is no keyring.
    pub key: String,
    /// The sinks whose copy it opens, or why it opens none.
    pub opens: Result<Vec<SinkId>>,
}

impl KeyReport {
    /// The sets whose newest backup no key opens.
    pub fn locked_out(&self) -> Vec<&SetName> {
        let mut sets: Vec<_> = self.checks.iter().filter(|c| c.opens.is_err()).map(|c| &c.set).collect();
        sets.dedup();
        sets.retain(|set| !self.checks.iter().any(|c| c.set == **set && c.opens.is_ok()));
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
        let watch = Watch::new(self.observers.clone());
        let sets = self.sets(&watch).await?;
        // Each key alone in a repository like this one.
        let single: Vec<(String, Inner)> = match &self.keyring {
            Some(keyring) => keyring
                .each()
                .into_iter()
                .map(|(name, ring)| (name, Inner { keyring: Some(ring), ..self.clone() }))
                .collect(),
            None => vec![("no key".to_owned(), self.clone())],
        };
        let mut report = KeyReport::default();
        for set in sets.iter() {
            let newest = match self.catalog_watched(set.clone(), watch.clone()).ids().await {
                Ok(found) => Ok(found.backups.into_keys().next_back()),
                Err(error) => Err(error),
            };
            let newest = match newest {
                Ok(Some(id)) => id,
                // Pruned in this moment.
                Ok(None) => continue,
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
            for (key, inner) in &single {
                let catalog = inner.catalog_watched(set.clone(), watch.clone());
                let opens = catalog.open(newest).await;
                report.checks.push(KeyCheck {
                    set: set.clone(),
                    id: Some(newest),
                    key: key.clone(),
                    opens: opens.map(|opened| opened.copies.iter().map(|s| s.id().clone()).collect()),
                });
            }
        }
        report.unreachable = sets.unreachable;
        Ok(report)
    }
}
