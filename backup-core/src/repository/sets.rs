//! Which sets there are.

use std::collections::BTreeSet;
use std::ops::Deref;

use super::Inner;
use crate::engine::progress::Watch;
use crate::error::{Error, Result};
use crate::key::{Key, decode_segment};
use crate::layout::{LOG, MANIFEST, SliceName};
use crate::name::{BackupId, SetName, SinkId};
use crate::sink::ObjectInfo;

/// The sets of a repository, sorted. Dereferences to a slice of [`SetName`].
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct SetList {
    sets: Vec<SetName>,
    /// Sinks that could not be listed: sets that only they hold are missing here.
    pub unreachable: Vec<(SinkId, Error)>,
}

impl Deref for SetList {
    type Target = [SetName];
    fn deref(&self) -> &[SetName] {
        &self.sets
    }
}

impl Inner {
    /// The sets that have a backup on any sink.
    pub(super) async fn sets(&self, watch: &Watch) -> Result<SetList> {
        let mut sets = BTreeSet::new();
        let mut unreachable = Vec::new();
        for sink in &self.sinks {
            let take = |found: &mut BTreeSet<SetName>, object: ObjectInfo| {
                found.extend(set_of(&object.key));
                Ok(())
            };
            match self.patience.list(sink.as_ref(), &Key::root(), watch, take).await {
                Ok(found) => sets.extend(found),
                Err(error) => unreachable.push((sink.id().clone(), error)),
            }
        }
        if unreachable.len() == self.sinks.len()
            && let Some((_, error)) = unreachable.pop()
        {
            return Err(error);
        }
        Ok(SetList { sets: sets.into_iter().collect(), unreachable })
    }
}

/// The set of `<set>/<id>/manifest.json` or `<set>/log/<from>-<to>-<id>/manifest.json`.
fn set_of(key: &Key) -> Option<SetName> {
    let mut segments = key.segments();
    if segments.next_back()? != MANIFEST {
        return None;
    }
    let directory = segments.next_back()?;
    if SliceName::parse(directory).is_some() {
        (segments.next_back()? == LOG).then_some(())?;
    } else {
        directory.parse::<BackupId>().ok()?;
    }
    let names: Option<Vec<String>> =
        segments.map(|s| String::from_utf8(decode_segment(s).ok()?).ok()).collect();
    SetName::parse(names?.join("/")).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_is_what_lies_above_a_backup() {
        let of = |key: &str| set_of(&Key::parse(key).unwrap()).map(|set| set.as_str().to_owned());
        assert_eq!(of("b%C3%BCcher/pg/20261120T020000Z-00c0de/manifest.json").as_deref(), Some("bücher/pg"));
        assert_eq!(of("a/20261120T020000Z-00c0de/manifest.json").as_deref(), Some("a"));
        assert_eq!(of("20261120T020000Z-00c0de/manifest.json"), None);
        assert_eq!(of("a/20261120T020000Z-00c0de/details.jsonl"), None);
        assert_eq!(of("keyring/20261120T020000Z-00c0de/manifest.json"), None);
        assert_eq!(of("a/other/manifest.json"), None);
        assert_eq!(of("a/log/1-2-20261120T020000Z-00c0de/manifest.json").as_deref(), Some("a"));
        assert_eq!(of("a/1-2-20261120T020000Z-00c0de/manifest.json"), None);
        assert_eq!(of("log/1-2-20261120T020000Z-00c0de/manifest.json"), None);
    }
}
