//! What a sink and its writers and readers share.

use std::fmt;
use std::sync::Arc;

use backup_core::{Error, Key, PutOptions, Result, SinkId};
use chrono::{DateTime, SecondsFormat, Utc};
use object_store::multipart::MultipartStore;
use object_store::path::Path;
use object_store::{Attribute, Attributes, Extensions, GetOptions, ObjectMeta, ObjectStore, TagSet};

use crate::class::Tier;
use crate::clock::Skew;
use crate::copy::Origin;
use crate::error::{Tried, store_error};
use crate::native::Native;
use crate::options::Options;
use crate::parts::PartSizes;
use crate::place::Place;

/// Metadata that says which writer made an object, so that a lost reply can be told from a lost race. One word:
/// Azure allows only C# identifiers.
const WRITER: &str = "backupwriter";
/// Metadata of objects that were put with a retention of their own: these are not deleted before it ends, also where the
/// store would hide them behind a delete marker. Markers of runs in a bucket with a default retention have no such time.
const RETAINED: &str = "backupretained";

pub(crate) struct Shared {
    pub(crate) id: SinkId,
    pub(crate) store: Arc<dyn ObjectStore>,
    pub(crate) multipart: Option<Arc<dyn MultipartStore>>,
    pub(crate) native: Option<Arc<dyn Native>>,
    pub(crate) place: Place,
    pub(crate) origin: Origin,
    pub(crate) options: Options,
    pub(crate) part_sizes: PartSizes,
    pub(crate) skew: Skew,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the store: its own Debug may show how it signs.
        f.debug_struct("Shared").field("id", &self.id).finish_non_exhaustive()
    }
}

/// An object as a head request shows it.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) meta: ObjectMeta,
    pub(crate) tier: Tier,
    /// The token of the writer that made it.
    pub(crate) writer: Option<String>,
    /// The time before which the store keeps it, where that was asked for when it was put.
    pub(crate) retained_until: Option<DateTime<Utc>>,
}

impl Shared {
    pub(crate) fn attributes(&self, options: &PutOptions, writer: &str) -> Attributes {
        let kind = options.kind;
        let mut attributes = Attributes::new();
        if self.options.attributes {
            for (name, value) in self.metadata(writer, options.retain_until) {
                attributes.insert(Attribute::Metadata(name.into()), value.into());
            }
            if let Some(class) = self.options.classes.of(kind) {
                attributes.insert(Attribute::StorageClass, class.to_owned().into());
            }
        }
        attributes
    }

    /// Metadata of an object that `writer` makes, as name and value; empty for a store without.
    pub(crate) fn metadata(
        &self,
        writer: &str,
        retain_until: Option<DateTime<Utc>>,
    ) -> Vec<(&'static str, String)> {
        let writer = self.options.attributes.then(|| (WRITER, writer.to_owned()));
        let retained = retain_until.filter(|_| self.options.attributes).map(|until| (RETAINED, date(until)));
        writer.into_iter().chain(retained).collect()
    }

    pub(crate) fn tags(&self) -> TagSet {
        let mut tags = TagSet::default();
        for (name, value) in &self.options.tags {
            tags.push(name, value);
        }
        tags
    }

    /// Extensions for an object to be locked until then; empty where the store has no locks.
    pub(crate) async fn lock(&self, until: Option<DateTime<Utc>>) -> Result<Extensions> {
        match (until, &self.native) {
            (Some(until), Some(native)) => Ok(native.lock(until).await?.unwrap_or_default()),
            _ => Ok(Extensions::new()),
        }
    }

    pub(crate) async fn find(&self, path: &Path) -> Result<Found, object_store::Error> {
        let options = GetOptions { head: true, ..GetOptions::default() };
        let result = self.store.get_opts(path, options).await?;
        let tier = result.extensions.get::<Tier>().cloned().unwrap_or_default();
        let metadata = |name: &'static str| result.attributes.get(&Attribute::Metadata(name.into()));
        Ok(Found {
            writer: metadata(WRITER).map(|value| value.as_ref().to_owned()),
            retained_until: metadata(RETAINED).and(tier.locked_until()),
            tier,
            meta: result.meta,
        })
    }

    /// An error of this sink's store.
    pub(crate) fn error(
        &self,
        operation: &'static str,
        tried: Tried,
        key: &Key,
        error: &object_store::Error,
    ) -> Error {
        store_error(operation, tried, error).with("key", key).with("sink", &self.id)
    }
}

/// A time as requests and errors carry it: RFC 3339 in UTC, to the second.
pub(crate) fn date(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Secs, true)
}
