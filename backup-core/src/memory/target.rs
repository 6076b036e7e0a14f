//! [`MemoryTarget`].

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::TryStreamExt as _;

use super::lock;
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::proof::{Proof, Proofs};
use crate::reader::ArtifactReader;
use crate::source::ArtifactFormat;
use crate::target::{Atomicity, Restore, RestorePlan, RestoreReport, RestoreTarget, Undo};
use crate::whole::{WHOLE_BYTES, whole_proof};

/// A target that keeps restored artifacts in memory. Cloning gives another handle to the same content.
///
/// It takes any format as plain bytes, so it can prove only backups whose source proves artifacts as a whole
/// ([`MemorySource`](crate::MemorySource), [`CommandSource`](crate::CommandSource)); others are refused at `begin`.
/// A replacing restore of a selection replaces the selected artifacts and leaves the others.
#[derive(Clone, Default)]
pub struct MemoryTarget {
    content: Arc<Mutex<Content>>,
}

type Content = BTreeMap<String, Bytes>;

impl MemoryTarget {
    /// An empty target.
    pub fn new() -> Self {
        Self::default()
    }

    /// A committed artifact.
    pub fn get(&self, name: &str) -> Option<Bytes> {
        lock(&self.content).get(name).cloned()
    }

    /// The names of all committed artifacts, sorted.
    pub fn names(&self) -> Vec<String> {
        lock(&self.content).keys().cloned().collect()
    }

    /// Whether nothing was committed yet.
    pub fn is_empty(&self) -> bool {
        lock(&self.content).is_empty()
    }

    /// Puts something there, as if it had been restored or was there before.
    pub fn put(&self, name: impl Into<String>, bytes: impl Into<Bytes>) {
        lock(&self.content).insert(name.into(), bytes.into());
    }
}

impl fmt::Debug for MemoryTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MemoryTarget")?;
        f.debug_map().entries(lock(&self.content).iter().map(|(name, bytes)| (name, bytes.len()))).finish()
    }
}

fn not_empty() -> Error {
    Error::new(ErrorKind::TargetNotEmpty, "restore into memory")
        .message("the target already holds artifacts; restore into another one, or ask for `replace`")
}

#[async_trait]
impl RestoreTarget for MemoryTarget {
    fn accepts(&self, _format: &ArtifactFormat) -> bool {
        true
    }

    fn atomicity(&self) -> Atomicity {
        Atomicity::Swap
    }

    async fn begin(&self, plan: &RestorePlan) -> Result<Box<dyn Restore>> {
        if let Some(foreign) = plan.proofs.keys().find(|name| *name != WHOLE_BYTES) {
            return Err(Error::new(ErrorKind::Unsupported, "restore into memory")
                .message("this backup proves its content in a way only its own kind of target can repeat")
                .with("source", &plan.source_kind)
                .with("proof", foreign));
        }
        if !plan.replace && !self.is_empty() {
            return Err(not_empty());
        }
        Ok(Box::new(MemoryRestore {
            content: Arc::clone(&self.content),
            staged: Mutex::default(),
            replace: plan.replace,
            whole: plan.selection.is_all(),
            expected: plan.proofs.keys().map(|name| (name.clone(), Proof::empty())).collect(),
        }))
    }
}

struct MemoryRestore {
    content: Arc<Mutex<Content>>,
    staged: Mutex<Content>,
    replace: bool,
    whole: bool,
    /// The proofs the plan names, empty: what a restore of nothing proves.
    expected: Proofs,
}

#[async_trait]
impl Restore for MemoryRestore {
    fn max_open(&self) -> usize {
        4
    }

    async fn artifact(&self, reader: ArtifactReader) -> Result<()> {
        let mut bytes = BytesMut::new();
        let mut stream = reader.selected().await?;
        while let Some(chunk) = stream.try_next().await? {
            bytes.extend_from_slice(&chunk);
        }
        lock(&self.staged).insert(reader.meta().name.to_string(), bytes.freeze());
        Ok(())
    }

    async fn prove(&self) -> Result<Proofs> {
        let mut proofs = self.expected.clone();
        for (name, bytes) in lock(&self.staged).iter() {
            let proof = whole_proof(name, &Digest::of(bytes));
            proofs.entry(WHOLE_BYTES.to_owned()).or_default().merge(&proof);
        }
        Ok(proofs)
    }

    async fn commit(self: Box<Self>) -> Result<(RestoreReport, Option<Box<dyn Undo>>)> {
        let staged = std::mem::take(&mut *lock(&self.staged));
        let report = RestoreReport {
            items: staged.len() as u64,
            bytes: staged.values().map(|bytes| bytes.len() as u64).sum(),
            ..RestoreReport::default()
        };
        let mut content = lock(&self.content);
        if content.is_empty() {
            *content = staged;
            return Ok((report, None));
        }
        if !self.replace {
            return Err(not_empty());
        }
        let old = content.clone();
        if self.whole {
            *content = staged;
        } else {
            content.extend(staged);
        }
        let undo = MemoryUndo { content: Arc::clone(&self.content), old };
        Ok((RestoreReport { old_kept_at: Some("memory".to_owned()), ..report }, Some(Box::new(undo))))
    }

    async fn abort(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}

struct MemoryUndo {
    content: Arc<Mutex<Content>>,
    old: Content,
}

impl fmt::Debug for MemoryUndo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MemoryUndo({} artifacts)", self.old.len())
    }
}

#[async_trait]
impl Undo for MemoryUndo {
    async fn undo(self: Box<Self>) -> Result<()> {
        *lock(&self.content) = self.old;
        Ok(())
    }

    async fn drop_old(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}
