//! What an incremental builds upon.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures::stream::BoxStream;
use serde_json::Value;

use super::Inner;
use super::catalog::Catalog;
use super::contents::Contents;
use super::ranges::Pieces;
use crate::engine::fanout::Numbered;
use crate::engine::store::Failures;
use crate::error::{Error, ErrorKind, Result};
use crate::item::Item;
use crate::layout::BackupDir;
use crate::manifest::Manifest;
use crate::name::BackupId;
use crate::observer::Event;
use crate::retention::BackupKind;
use crate::source::{ParentReader, SourceReport, Warning};

/// The parent of an incremental, opened.
#[derive(Debug)]
pub(super) struct Parent {
    contents: Contents,
}

impl ParentReader for Parent {
    fn id(&self) -> BackupId {
        self.contents.manifest().id
    }

    fn state(&self) -> Option<&Value> {
        self.contents.state()
    }

    fn items(&self) -> BoxStream<'static, Result<Item>> {
        self.contents.items()
    }
}

/// What a new backup takes from others.
#[derive(Default)]
pub(super) struct References {
    /// The backups.
    pub(super) ids: BTreeSet<BackupId>,
    /// The parts of their artifacts, for sources that can say how to restore from parts.
    pub(super) pieces: Pieces,
    /// The manifests of those in `pieces`.
    pub(super) backups: BTreeMap<BackupId, Arc<Manifest>>,
}

impl Inner {
    /// The newest backup before `before` that an incremental of a `kind` source can build upon: one whose manifest,
    /// and those of all it refers to, are on every one of `sinks`. A sink that lacks one would hold an incremental
    /// that cannot be restored from it alone.
    pub(super) async fn parent(
        &self,
        catalog: &Catalog<'_>,
        before: BackupId,
        kind: &str,
        sinks: &[Numbered],
    ) -> Result<Option<Parent>> {
        let found = catalog.ids().await?.backups;
        // A host that cannot read its own backups builds on the one whose details it kept.
        let readable = self.chain.can_decode();
        let kept = if readable { None } else { self.kept_id(&catalog.set).await };
        let usable = |id: &BackupId| *id < before && (readable || kept == Some(*id));
        for id in found.keys().rev().filter(|id| usable(id)).copied() {
            let Ok(opened) = catalog.open(id).await else { continue };
            let manifest = &opened.manifest;
            if manifest.source.kind != kind || matches!(manifest.kind, BackupKind::Log { .. }) {
                continue;
            }
            let everywhere = |id: &BackupId| {
                let copies = found.get(id).map(Vec::as_slice).unwrap_or_default();
                sinks.iter().all(|(_, sink)| copies.iter().any(|copy| copy.id() == sink.id()))
            };
            let on_all =
                sinks.iter().all(|(_, sink)| opened.copies.iter().any(|copy| copy.id() == sink.id()));
            if on_all && manifest.references.iter().all(everywhere) {
                if readable {
                    let contents = Contents::of(self, opened, &catalog.watch).await?;
                    return Ok(Some(Parent { contents }));
                }
                return Ok(match self.kept(opened).await {
                    Ok(contents) => Some(Parent { contents }),
                    Err(error) => {
                        let warning = Warning::new("state-not-usable", error.chain());
                        catalog.watch.event(&Event::Warning(&warning));
                        None
                    }
                });
            }
        }
        Ok(None)
    }

    /// The backups that the items of `report` refer to, and the sinks that do not hold them any more.
    pub(super) async fn references(
        &self,
        catalog: &Catalog<'_>,
        report: &SourceReport,
        parent: Option<&Parent>,
        sinks: &[Numbered],
    ) -> Result<(References, Failures)> {
        let mut references = BTreeSet::new();
        let mut pieces = Pieces::new();
        for item in report.items.iter() {
            let item = item?;
            let Some(origin) = item.origin else { continue };
            references.insert(origin);
            if report.recipe.joins_items {
                pieces.entry((origin, item.artifact.to_string())).or_default().push(&item)?;
            }
        }
        let allowed = |id: &BackupId| {
            parent.is_some_and(|p| p.id() == *id || p.contents.manifest().references.contains(id))
        };
        if let Some(stranger) = references.iter().find(|id| !allowed(id)) {
            return Err(Error::new(ErrorKind::SourceFailed, "read source")
                .message("the source refers to a backup that its parent does not")
                .with("backup", stranger));
        }
        let mut failures = Failures::new();
        for id in references.iter().copied().chain(parent.map(ParentReader::id)) {
            let manifest = BackupDir::new(&catalog.set, id)?.manifest()?;
            for (number, sink) in sinks {
                let head = self.patience.retry(sink.id(), &catalog.watch, || sink.head(&manifest)).await;
                if let Err(error) = head {
                    failures.push((*number, error));
                }
            }
        }
        let mut backups = BTreeMap::new();
        for id in pieces.keys().map(|(id, _)| *id) {
            if let Entry::Vacant(entry) = backups.entry(id) {
                entry.insert(match parent {
                    Some(parent) if parent.id() == id => Arc::clone(&parent.contents.opened.manifest),
                    _ => catalog.open(id).await?.manifest,
                });
            }
        }
        Ok((References { ids: references, pieces, backups }, failures))
    }
}
