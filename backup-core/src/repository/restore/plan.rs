//! Planning a restore: which items, which artifacts of which backups, and whether they can be read.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use futures::stream::BoxStream;
use futures::{StreamExt as _, TryStreamExt as _};

use super::super::Inner;
use super::super::catalog::{Catalog, Opened};
use super::super::contents::Contents;
use super::super::ranges::{Pieces, Place};
use super::Options;
use crate::error::{Error, ErrorKind, Result};
use crate::item::{Item, ItemKind, ItemPath};
use crate::key::Key;
use crate::manifest::{StoredArtifact, StoredObject};
use crate::name::BackupId;
use crate::proof::Proofs;
use crate::selection::Selection;
use crate::sink::{Availability, Sink};
use crate::target::{ItemList, PlannedArtifact, Restore, RestorePlan};

/// What is known before the target is asked.
pub(super) struct Planned {
    pub(super) plan: RestorePlan,
    /// The backup itself and those its items refer to.
    pub(super) backups: BTreeMap<BackupId, Contents>,
    /// Items outside the selection whose content selected hard links need.
    links: BTreeSet<ItemPath>,
    items: Arc<dyn ItemList>,
    /// Artifacts that hold at least one item, selected or not.
    with_items: BTreeSet<Place>,
    prefer: Vec<Arc<dyn Sink>>,
}

/// The parts of each artifact to be read; `None` is the whole.
pub(super) type Parts = BTreeMap<Place, Option<Vec<Range<u64>>>>;

/// Objects that no sink has at hand, and where each could be asked for.
pub(super) type Frozen = Vec<(Key, Arc<dyn Sink>, Availability)>;

/// Selected items of a stored backup.
struct Selected {
    items: Arc<dyn ItemList>,
    selection: Selection,
}

impl ItemList for Selected {
    fn stream(&self) -> BoxStream<'static, Result<Item>> {
        let selection = self.selection.clone();
        self.items
            .stream()
            .try_filter(move |item| futures::future::ready(selection.matches(&item.path)))
            .boxed()
    }
}

impl Planned {
    pub(super) async fn make(
        inner: &Inner,
        catalog: &Catalog<'_>,
        contents: Contents,
        options: &Options,
        selection: Selection,
    ) -> Result<Self> {
        let manifest = Arc::clone(&contents.opened.manifest);
        let items: Arc<dyn ItemList> = contents.item_list();
        let mut logical_bytes = 0;
        let mut matched = 0_u64;
        let mut selected_proofs = Proofs::new();
        let mut with_items = BTreeSet::new();
        let mut wanted = BTreeSet::new();
        let mut links = BTreeSet::new();
        let mut stream = items.stream();
        while let Some(item) = stream.try_next().await? {
            let place = (item.origin.unwrap_or(manifest.id), item.artifact.to_string());
            let selected = selection.matches(&item.path);
            if selected {
                matched += 1;
                logical_bytes += if item.kind == ItemKind::HardLink { 0 } else { item.size };
                if let Some(proof) = &item.proof {
                    selected_proofs.entry(proof.of.to_string()).or_default().merge(&proof.proof);
                }
                if let (ItemKind::HardLink, Some(link)) = (item.kind, &item.link)
                    && !selection.matches(link)
                {
                    links.insert(link.clone());
                }
                if !wanted.contains(&place) {
                    wanted.insert(place.clone());
                }
            }
            if !with_items.contains(&place) {
                with_items.insert(place);
            }
        }
        if !selection.is_all() && matched == 0 {
            return Err(Error::new(ErrorKind::NotFound, "plan restore")
                .message("nothing in the backup matches the selection; list its contents to see the names")
                .with("selection", format_args!("{selection:?}")));
        }
        if !links.is_empty() {
            let mut stream = items.stream();
            while let Some(item) = stream.try_next().await? {
                if links.contains(&item.path) {
                    wanted.insert((item.origin.unwrap_or(manifest.id), item.artifact.to_string()));
                    logical_bytes += item.size;
                }
            }
        }

        let mut backups = BTreeMap::new();
        for origin in wanted.iter().map(|(origin, _)| *origin).filter(|origin| *origin != manifest.id) {
            if let std::collections::btree_map::Entry::Vacant(entry) = backups.entry(origin) {
                let opened = catalog.open(origin).await?;
                entry.insert(Contents::of(inner, opened, &catalog.watch).await?);
            }
        }
        let proofs = if selection.is_all() { contents.proofs().clone() } else { selected_proofs };
        let details = contents.details().clone();
        let own = manifest.id;
        backups.insert(own, contents);

        let mut artifacts = Vec::new();
        for (origin, backup) in &backups {
            for artifact in &backup.manifest().artifacts {
                let place = (*origin, artifact.meta.name.to_string());
                let itemless = *origin == own && !with_items.contains(&place);
                if wanted.contains(&place) || itemless || (selection.is_all() && *origin == own) {
                    artifacts.push(PlannedArtifact {
                        origin: *origin,
                        meta: artifact.meta.clone(),
                        plain_size: artifact.stored.plain_size.unwrap_or(0),
                        details: backup.artifact_details(&artifact.meta.name).cloned().unwrap_or_default(),
                    });
                }
            }
        }
        artifacts.sort_by_key(|a| a.meta.phase);

        let plan = RestorePlan {
            set: manifest.set.clone(),
            id: manifest.id,
            source_kind: manifest.source.kind.clone(),
            server_version: manifest.source.server_version.clone(),
            artifacts,
            log_position: manifest.log_position.clone(),
            log: Vec::new(),
            until: None,
            selection: selection.clone(),
            replace: options.replace,
            proofs,
            details,
            logical_bytes,
            items: Arc::new(Selected { items: Arc::clone(&items), selection }),
        };
        let prefer = match &options.from {
            Some(id) => vec![Arc::clone(&inner.sinks[inner.sink_number(id)?])],
            None => Vec::new(),
        };
        Ok(Self { plan, backups, links, items, with_items, prefer })
    }

    /// The copies of a backup in the order in which to read them.
    pub(super) fn copies(&self, inner: &Inner, opened: &Opened) -> Vec<Arc<dyn Sink>> {
        let mut copies = opened.readable(inner);
        copies.sort_by_key(|sink| !self.prefer.iter().any(|p| p.id() == sink.id()));
        copies
    }

    /// The stored artifact behind a planned one.
    pub(super) fn stored(&self, artifact: &PlannedArtifact) -> Result<(&Contents, &StoredArtifact)> {
        self.backups
            .get(&artifact.origin)
            .and_then(|backup| Some((backup, backup.manifest().artifact(&artifact.meta.name)?)))
            .ok_or_else(|| {
                Error::corrupt("plan restore", "an item lies in an artifact that its backup does not have")
                    .with("artifact", &artifact.meta.name)
                    .with("backup", artifact.origin)
            })
    }

    /// Checks that every object needed is on some sink, whole and readable, before anything is touched. With `thaw`, asks
    /// for those that are archived.
    pub(super) async fn preflight(&self, inner: &Inner, catalog: &Catalog<'_>, thaw: bool) -> Result<()> {
        let mut archived = Frozen::new();
        for artifact in &self.plan.artifacts {
            let (backup, stored) = self.stored(artifact)?;
            archived.append(&mut self.frozen(inner, catalog, &backup.opened, &stored.stored).await?);
        }
        if archived.is_empty() { Ok(()) } else { Err(ask(inner, catalog, archived, thaw).await?) }
    }

    /// Checks that an object and its index are on some sink, whole and readable; returns what is archived.
    pub(super) async fn frozen(
        &self,
        inner: &Inner,
        catalog: &Catalog<'_>,
        opened: &Opened,
        stored: &StoredObject,
    ) -> Result<Frozen> {
        let mut archived = Frozen::new();
        let index = stored.index.as_ref().map(|i| (&i.object, i.size));
        for (name, size) in [(&stored.object, stored.size)].into_iter().chain(index) {
            let key = opened.dir.object(name)?;
            let mut problems = Vec::new();
            let (mut readable, mut frozen) = (false, None);
            for sink in self.copies(inner, opened) {
                let head = inner.patience.retry(sink.id(), &catalog.watch, || sink.head(&key)).await;
                match head {
                    Ok(info) if info.size != size => {
                        problems.push(format!("{}: another size", sink.id()));
                    }
                    Ok(info) if info.availability == Availability::Ready => {
                        readable = true;
                        break;
                    }
                    Ok(info) => frozen = frozen.or(Some((sink, info.availability))),
                    Err(error) => problems.push(format!("{}: {}", sink.id(), error.chain())),
                }
            }
            match frozen {
                _ if readable => {}
                Some((sink, availability)) => archived.push((key, sink, availability)),
                // A damaged size may still leave good blocks in several copies; only a missing object is final.
                None if problems.iter().any(|p| p.ends_with("another size")) => {}
                None => {
                    return Err(Error::new(ErrorKind::NotFound, "plan restore")
                        .message("an object of the backup cannot be read from any sink")
                        .with("object", key)
                        .with("sinks", problems.join("; ")));
                }
            }
        }
        Ok(archived)
    }

    /// Asks the target which artifacts and items it needs.
    pub(super) async fn parts(&self, restore: &dyn Restore) -> Result<Parts> {
        let mut needed = Pieces::new();
        let mut partial: BTreeSet<Place> = BTreeSet::new();
        let mut stream = self.items.stream();
        while let Some(item) = stream.try_next().await? {
            let place = (item.origin.unwrap_or(self.plan.id), item.artifact.to_string());
            let selected = self.plan.selection.matches(&item.path);
            let wanted =
                (selected && restore.needs(&item).await?) || (!selected && self.links.contains(&item.path));
            if wanted {
                needed.entry(place).or_default().push(&item)?;
            } else {
                partial.insert(place);
            }
        }
        let mut parts = Parts::new();
        for artifact in &self.plan.artifacts {
            let place = (artifact.origin, artifact.meta.name.to_string());
            if !restore.wants(&artifact.meta) {
                continue;
            }
            let foreign = artifact.origin != self.plan.id;
            if !foreign && !partial.contains(&place) {
                parts.insert(place, None);
            } else if let Some(ranges) = needed.remove(&place) {
                parts.insert(place, Some(ranges.merged()));
            } else if !self.with_items.contains(&place) {
                parts.insert(place, None);
            }
        }
        Ok(parts)
    }
}

/// Asks for archived objects, where that is wanted, and says what to do.
pub(super) async fn ask(inner: &Inner, catalog: &Catalog<'_>, archived: Frozen, thaw: bool) -> Result<Error> {
    let objects = archived.len();
    let under_way =
        archived.iter().filter(|(.., availability)| *availability == Availability::Thawing).count();
    let mut first = None;
    for (key, sink, _) in archived {
        if thaw {
            inner.patience.retry(sink.id(), &catalog.watch, || sink.thaw(&key)).await?;
        }
        first.get_or_insert((key, sink.id().clone()));
    }
    let message = if thaw || under_way == objects {
        "the archived objects of this backup were asked for; restore again when they are ready, which takes minutes to days"
    } else {
        "objects of this backup lie in an archive class; ask for them with `thaw`, and restore again when they are ready"
    };
    let error = Error::new(ErrorKind::Unavailable, "plan restore")
        .retryable(false)
        .message(message)
        .with("archived", objects)
        .with("thawing", if thaw { objects } else { under_way });
    Ok(match first {
        Some((key, sink)) => error.with("first", key).with("sink", sink),
        None => error,
    })
}
