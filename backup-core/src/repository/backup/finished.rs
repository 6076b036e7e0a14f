//! Leaving notes beside finished artifacts, for a run that takes them over.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Map;

use super::run::Run;
use crate::digest::Digest;
use crate::error::Result;
use crate::layout::{finished_details, finished_object, index_object};
use crate::manifest::{FORMAT, Manifest, SourceInfo, StoredArtifact, Totals, seal_finished};
use crate::repository::contents::{ArtifactDetails, DetailsHead};
use crate::retention::BackupKind;
use crate::sink::{ObjectKind, PutOptions};
use crate::source::Finished;

impl Run<'_> {
    /// Notes on every sink that `artifact` is finished and what it holds: a manifest of this artifact alone, under a name
    /// and a seal that make no backup, with details of this artifact alone. They are removed when the backup exists, so
    /// they are never locked.
    pub(super) async fn note_finished(
        &mut self,
        artifact: &StoredArtifact,
        sha256: Digest,
        finished: Finished,
    ) -> Result<()> {
        let name = artifact.meta.name.as_ref();
        let (note, details) =
            (finished_object(name), finished_details(name, &self.pipeline.chain.extension()));
        let Ok(key) = self.dir.object(&note) else { return Ok(()) };
        if self.dir.object(&index_object(&details)).is_err() {
            // The name of the artifact leaves no room for a longer one.
            return Ok(());
        }
        let items = finished.items.len();
        let head = DetailsHead {
            format: 1,
            artifacts: BTreeMap::from([(name.to_owned(), ArtifactDetails::new(sha256))]),
            proofs: finished.proofs,
            state: finished.state,
            details: Map::new(),
            warnings: Vec::new(),
        };
        let options = PutOptions::overwrite(ObjectKind::Index);
        let details = self.list(details, head, finished.items, None, options).await?;
        let manifest = Manifest {
            format: FORMAT,
            set: self.set.clone(),
            id: self.id,
            kind: BackupKind::Full,
            source: SourceInfo { kind: self.origin.kind().to_owned(), server_version: None },
            started: self.started,
            finished: self.started,
            consistent_at: None,
            log_position: None,
            keep_until: None,
            software: concat!("backup-core ", env!("CARGO_PKG_VERSION")).to_owned(),
            chain: self.pipeline.chain.specs(),
            artifacts: vec![artifact.clone()],
            details,
            notes: Vec::new(),
            references: BTreeSet::new(),
            labels: BTreeMap::new(),
            previous: None,
            totals: Totals {
                plain: artifact.stored.plain_size.unwrap_or(0),
                stored: artifact.stored.size,
                items,
            },
            required_copies: 0,
            good_copies: 0,
            other: Map::new(),
        };
        let bytes = seal_finished(&manifest, self.inner.sealer(self.key.as_ref()))?;
        self.taken.note(&self.dir, &manifest)?;
        self.put_with(&key, bytes, &PutOptions::overwrite(ObjectKind::Note)).await
    }
}
