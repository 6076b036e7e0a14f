//! What no copy holds undamaged any more, for a restore that is to bring back the rest.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures::TryStreamExt as _;

use super::super::Inner;
use super::super::catalog::Catalog;
use super::super::contents::Contents;
use super::super::ranges::Place;
use super::RestoreOutcome;
use crate::engine::decode::PlainReader;
use crate::error::{Error, ErrorKind, Result};
use crate::item::{Item, ItemKind, ItemPath};
use crate::name::BackupId;
use crate::selection::Selection;
use crate::target::ItemList;

/// Plain bytes tried at once where an artifact is damaged; items in a damaged stretch are then tried one by one.
const STRETCH: u64 = 1024 * 1024;
/// Items named in an error.
const NAMED: usize = 20;

/// An item that a restore with [`allow_losses`](super::RestoreTo::allow_losses) could not bring back.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Loss {
    /// Its name.
    pub item: ItemPath,
    /// Its logical size in bytes.
    pub size: u64,
    /// Why it cannot be read from any sink.
    pub why: String,
}

impl RestoreOutcome {
    /// Whether everything that was selected was restored.
    pub fn is_complete(&self) -> bool {
        self.losses.is_empty()
    }

    /// The outcome, or an error that says what is lost although the rest was restored.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Corrupt`] when anything is lost.
    pub fn into_result(self) -> Result<Self> {
        if self.is_complete() {
            return Ok(self);
        }
        let named: Vec<String> = self.losses.iter().take(NAMED).map(|loss| loss.item.to_string()).collect();
        Err(Error::corrupt(
            "restore",
            "the rest was restored, but no sink holds these items undamaged; look for them in older backups",
        )
        .with("id", self.id)
        .with("restored", self.report.items)
        .with("lost", self.losses.len())
        .with("items", named.join(", ")))
    }
}

/// How an artifact can be read.
enum Standing {
    Whole,
    /// Parts of it, by the number of a stretch.
    Damaged {
        reader: Box<PlainReader>,
        stretches: BTreeMap<u64, bool>,
        why: String,
    },
    Gone(String),
}

struct Search<'a> {
    inner: &'a Inner,
    catalog: &'a Catalog<'a>,
    own: &'a Contents,
    /// The backups that items refer to.
    origins: BTreeMap<BackupId, Option<Contents>>,
    artifacts: BTreeMap<Place, Standing>,
}

/// Reads everything that `selection` needs, from any copy, and returns what cannot be read.
///
/// # Errors
///
/// Those of sinks that may pass: what cannot be reached is not lost.
pub(super) async fn find(
    inner: &Inner,
    catalog: &Catalog<'_>,
    own: &Contents,
    selection: &Selection,
) -> Result<Vec<Loss>> {
    let items: Arc<dyn ItemList> = own.item_list();
    let mut linked = BTreeSet::new();
    let mut stream = items.stream();
    while let Some(item) = stream.try_next().await? {
        if let (ItemKind::HardLink, Some(link)) = (item.kind, item.link)
            && selection.matches(&item.path)
        {
            linked.insert(link);
        }
    }
    let mut search = Search { inner, catalog, own, origins: BTreeMap::new(), artifacts: BTreeMap::new() };
    let mut losses: BTreeMap<ItemPath, Loss> = BTreeMap::new();
    let mut stream = items.stream();
    while let Some(item) = stream.try_next().await? {
        if (selection.matches(&item.path) || linked.contains(&item.path))
            && let Some(why) = search.lost(&item).await?
        {
            losses.insert(item.path.clone(), Loss { item: item.path, size: item.size, why });
        }
    }
    let mut stream = items.stream();
    while let Some(item) = stream.try_next().await? {
        if let (ItemKind::HardLink, Some(link)) = (item.kind, &item.link)
            && selection.matches(&item.path)
            && let Some(content) = losses.get(link)
        {
            let why = format!("it is a link to {link}: {}", content.why);
            losses.entry(item.path.clone()).or_insert(Loss { item: item.path, size: item.size, why });
        }
    }
    Ok(losses.into_values().filter(|loss| selection.matches(&loss.item)).collect())
}

impl Search<'_> {
    /// Why an item cannot be read, if that is so.
    async fn lost(&mut self, item: &Item) -> Result<Option<String>> {
        let place = (item.origin.unwrap_or(self.own.manifest().id), item.artifact.to_string());
        if !self.artifacts.contains_key(&place) {
            let standing = self.standing(&place).await?;
            self.artifacts.insert(place.clone(), standing);
        }
        match self.artifacts.get_mut(&place) {
            None | Some(Standing::Whole) => Ok(None),
            Some(Standing::Gone(why)) => Ok(Some(why.clone())),
            Some(Standing::Damaged { reader, stretches, why }) => {
                let end = item.offset.saturating_add(item.length).min(reader.plain_size);
                let mut good = end > item.offset || reader.plain_size > 0;
                for number in item.offset / STRETCH..end.div_ceil(STRETCH) {
                    let known = stretches.get(&number).copied();
                    let readable = if let Some(readable) = known {
                        readable
                    } else {
                        let to = (number + 1).saturating_mul(STRETCH).min(reader.plain_size);
                        let readable = reads(reader, Some(number * STRETCH..to)).await?.is_none();
                        stretches.insert(number, readable);
                        readable
                    };
                    good &= readable;
                }
                if good {
                    return Ok(None);
                }
                if reader.plain_size == 0 {
                    return Ok(Some(why.clone()));
                }
                reads(reader, Some(item.offset..end)).await
            }
        }
    }

    async fn standing(&mut self, place: &Place) -> Result<Standing> {
        let (origin, name) = place;
        if *origin != self.own.manifest().id && !self.origins.contains_key(origin) {
            let opened = match self.catalog.open(*origin).await {
                Ok(opened) => Contents::of(self.inner, opened, &self.catalog.watch).await,
                Err(error) => Err(error),
            };
            let contents = match opened {
                Ok(contents) => Some(contents),
                Err(error) if is_loss(&error) => None,
                Err(error) => return Err(error),
            };
            self.origins.insert(*origin, contents);
        }
        let contents = match self.origins.get(origin) {
            None => self.own,
            Some(Some(contents)) => contents,
            Some(None) => {
                return Ok(Standing::Gone(format!("the backup {origin}, which holds it, cannot be opened")));
            }
        };
        let Some(artifact) = contents.manifest().artifact(name) else {
            return Ok(Standing::Gone("its backup does not have the artifact it lies in".to_owned()));
        };
        let (copies, watch) = (contents.opened.readable(self.inner), &self.catalog.watch);
        let reader =
            self.inner.plain_reader(&contents.opened, name, &artifact.stored, None, &copies, watch).await;
        let reader = match reader {
            Ok(reader) => Box::new(reader),
            // Without its index nothing of it can be verified block by block.
            Err(error) if is_loss(&error) => return Ok(Standing::Gone(error.chain())),
            Err(error) => return Err(error),
        };
        Ok(match reads(&reader, None).await? {
            None => Standing::Whole,
            Some(why) => Standing::Damaged { reader, stretches: BTreeMap::new(), why },
        })
    }
}

/// Whether an error says that something is lost, and not only out of reach.
fn is_loss(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::NotFound)
}

/// Reads and drops plain bytes; returns why they cannot be read, if they cannot.
async fn reads(reader: &PlainReader, range: Option<std::ops::Range<u64>>) -> Result<Option<String>> {
    let mut plain = reader.stream(range);
    loop {
        match plain.try_next().await {
            Ok(Some(_)) => {}
            Ok(None) => return Ok(None),
            Err(error) if is_loss(&error) => return Ok(Some(error.chain())),
            Err(error) => return Err(error),
        }
    }
}
