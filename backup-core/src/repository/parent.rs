//! What an incremental builds upon.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{FutureExt as _, StreamExt as _, TryStreamExt as _};
use serde_json::Value;

use super::catalog::{Catalog, Found, Opened, READ_AT_ONCE};
use super::contents::Contents;
use super::ranges::Pieces;
use super::{Inner, Repository};
use crate::engine::fanout::Numbered;
use crate::engine::store::Failures;
use crate::error::{Error, ErrorKind, Result};
use crate::item::Item;
use crate::layout::BackupDir;
use crate::manifest::Manifest;
use crate::name::{BackupId, SinkId};
use crate::observer::Event;
use crate::retention::BackupKind;
use crate::sink::Sink;
use crate::source::{ParentReader, SourceReport, Warning};

/// The parent of an incremental, opened.
#[derive(Debug)]
pub(super) struct Parent {
    contents: Contents,
    /// Its manifest and those of all it refers to.
    backups: BTreeMap<BackupId, Arc<Manifest>>,
}

/// Manifests, and the sinks that hold them.
type Ground = BTreeMap<BackupId, (Arc<Manifest>, Vec<Arc<dyn Sink>>)>;

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
    /// The manifests of those, and perhaps more.
    pub(super) backups: BTreeMap<BackupId, Arc<Manifest>>,
}

impl Inner {
    /// What a backup made of `opened` as its parent may refer to: itself, and all that it refers to.
    async fn ground(&self, catalog: &Catalog<'_>, opened: &Opened) -> Result<Ground> {
        let own = (opened.manifest.id, (Arc::clone(&opened.manifest), opened.copies.clone()));
        let open =
            opened.manifest.references.iter().copied().filter(|id| *id != opened.manifest.id).map(|id| {
                async move { catalog.open(id).await.map(|found| (id, (found.manifest, found.copies))) }
                    .boxed()
            });
        let opening: Vec<BoxFuture<'_, _>> = open.collect();
        let mut ground: Ground = futures::stream::iter(opening).buffered(READ_AT_ONCE).try_collect().await?;
        ground.extend([own]);
        Ok(ground)
    }

    /// Those of `sinks` that do not hold every object of `ground`, in its right size.
    async fn lacking(&self, catalog: &Catalog<'_>, ground: &Ground, sinks: &[Numbered]) -> Vec<SinkId> {
        let looking: Vec<BoxFuture<'_, _>> = sinks
            .iter()
            .map(|(_, sink)| {
                let holds = async move {
                    for (manifest, copies) in ground.values() {
                        if !copies.iter().any(|copy| copy.id() == sink.id())
                            || !self.holds(catalog, manifest, sink).await?
                        {
                            return Ok(false);
                        }
                    }
                    Ok::<_, Error>(true)
                };
                async move { (!holds.await.unwrap_or(false)).then(|| sink.id().clone()) }.boxed()
            })
            .collect();
        futures::future::join_all(looking).await.into_iter().flatten().collect()
    }

    /// Whether a sink lists every object of a backup in its right size.
    async fn holds(&self, catalog: &Catalog<'_>, manifest: &Manifest, sink: &Arc<dyn Sink>) -> Result<bool> {
        let dir = BackupDir::new(&catalog.set, manifest.id)?;
        let access = self.access(sink, &catalog.watch);
        let listed = access.list(dir.prefix()).await?;
        let sizes: BTreeMap<_, _> = listed.iter().map(|object| (&object.key, object.size)).collect();
        for (object, size, _) in manifest.objects() {
            if sizes.get(&dir.object(&object)?) != Some(&size) {
                return Ok(false);
            }
        }
        Ok(true)
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
        let backups = parent.map(|parent| parent.backups.clone()).unwrap_or_default();
        Ok((References { ids: references, pieces, backups }, failures))
    }
}

impl Repository {
    /// The backup before `before` that an incremental of a `kind` source is to build upon: the newest that is, with
    /// all it refers to, on every one of `sinks`. A sink that lacks something of it would hold an incremental that
    /// cannot be restored from it alone; so the newest of all is healed first where that is possible.
    pub(super) async fn parent(
        &self,
        catalog: &Catalog<'_>,
        found: &Found,
        before: BackupId,
        kind: &str,
        sinks: &[Numbered],
    ) -> Result<Option<Parent>> {
        let inner = &self.0;
        let mut healed = false;
        // A host that cannot read its own backups builds on the one whose details it kept.
        let readable = inner.chain.can_decode();
        let kept = if readable { None } else { inner.kept_id(&catalog.set).await };
        let usable = |id: &BackupId| *id < before && (readable || kept == Some(*id));
        for id in found.bases().map(|(id, _)| *id).filter(usable) {
            let Ok(mut opened) = catalog.open(id).await else { continue };
            if opened.manifest.source.kind != kind || matches!(opened.manifest.kind, BackupKind::Log { .. }) {
                continue;
            }
            let Ok(mut ground) = inner.ground(catalog, &opened).await else { continue };
            let mut lacking = inner.lacking(catalog, &ground, sinks).await;
            if !lacking.is_empty() && !std::mem::replace(&mut healed, true) {
                let mut heal = self.replicate(catalog.set.as_str(), id);
                for sink in &lacking {
                    heal = heal.to(sink);
                }
                // What could not be healed shows when it is looked at again.
                drop(heal.report().await);
                (opened, ground) = match catalog.open(id).await {
                    Ok(again) => match inner.ground(catalog, &again).await {
                        Ok(ground) => (again, ground),
                        Err(_) => continue,
                    },
                    Err(_) => continue,
                };
                lacking = inner.lacking(catalog, &ground, sinks).await;
            }
            if lacking.is_empty() {
                let contents = if readable {
                    Contents::of(inner, opened, &catalog.watch).await?
                } else {
                    match inner.kept(opened).await {
                        Ok(contents) => contents,
                        Err(error) => {
                            let warning = Warning::new("state-not-usable", error.chain());
                            catalog.watch.event(&Event::Warning(&warning));
                            return Ok(None);
                        }
                    }
                };
                let backups = ground.into_iter().map(|(id, (manifest, _))| (id, manifest)).collect();
                return Ok(Some(Parent { contents, backups }));
            }
        }
        Ok(None)
    }
}
