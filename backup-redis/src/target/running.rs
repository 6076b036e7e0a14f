//! A restore under way.

use std::collections::BTreeSet;
use std::time::Duration;

use async_trait::async_trait;
use backup_core::{
    ArtifactReader, Error, ErrorKind, Proof, Proofs, Restore, RestoreReport, Result, Undo, Warning,
};
use bytes::Bytes;
use tokio::sync::Mutex;

use super::build::{Filter, Manner, Proving};
use super::functions;
use super::load::Loader;
use super::pipe::Written;
use super::readback::{compare, compare_lasting, read_back};
use super::safety::Safety;
use super::stage::{Databases, MARKER, empty, swap};
use super::undo::{PutBack, SwapBack};
use super::{OnConflict, Way};
use crate::connect::Connection;
use crate::discover::connect_to;
use crate::rdb::proof::Sums;
use crate::rdb::{FUNCTIONS, KEYS};

/// How long an abort waits for a server that was lost.
const PATIENCE: Duration = Duration::from_secs(30);

/// What `begin` found and prepared.
#[derive(Debug)]
pub(super) struct State {
    pub(super) way: Way,
    pub(super) loader: Loader,
    pub(super) manner: Manner,
    pub(super) filter: Filter,
    pub(super) from_cluster: bool,
    pub(super) stage: Databases,
    /// Databases of the backup that held keys.
    pub(super) occupied: BTreeSet<u64>,
    pub(super) safety: Option<Safety>,
    /// The functions there were; `None` where the server has none at all.
    pub(super) libraries: Option<Vec<Bytes>>,
    pub(super) wanted_proofs: Proofs,
    pub(super) swept: u64,
}

/// What was done so far.
#[derive(Default)]
struct Progress {
    /// Whether the databases to overwrite were emptied.
    emptied: bool,
    delivered: Sums,
    written: Sums,
    functions: Vec<Vec<u8>>,
    functions_proof: Proof,
    opaque: BTreeSet<(u64, Vec<u8>)>,
    keys: Written,
    bytes: u64,
    expired: u64,
    left_out: u64,
    module_data: u64,
}

pub(super) struct Running {
    /// Taken by commit and abort; what is left is undone on drop.
    inner: Option<Inner>,
}

struct Inner {
    state: State,
    progress: Mutex<Progress>,
}

impl Running {
    pub(super) fn new(state: State) -> Self {
        Self { inner: Some(Inner { state, progress: Mutex::default() }) }
    }

    fn inner(&self) -> Result<&Inner> {
        self.inner.as_ref().ok_or_else(|| Error::new(ErrorKind::Internal, "restore Redis"))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let (Some(inner), Ok(runtime)) = (self.inner.take(), tokio::runtime::Handle::try_current()) {
            runtime.spawn(async move { inner.abort().await });
        }
    }
}

#[async_trait]
impl Restore for Running {
    async fn artifact(&self, reader: ArtifactReader) -> Result<()> {
        let inner = self.inner()?;
        let state = &inner.state;
        let mut progress = inner.progress.lock().await;
        if !progress.emptied && state.way == Way::InPlace {
            for db in &state.occupied {
                state.empty_everywhere(*db).await?;
            }
        }
        progress.emptied = true;
        let prefix = if state.from_cluster { format!("{}/", reader.meta().name) } else { String::new() };
        let filter = Filter { prefix, ..state.filter.clone() };
        let (built, written) = state.loader.load(&reader, filter, &state.manner, &state.stage).await?;
        progress.delivered.merge(&built.delivered);
        progress.written.merge(&built.written);
        progress.functions_proof.merge(&built.functions_proof);
        for library in built.functions {
            // The shards of a cluster all carry the same libraries.
            if !progress.functions.contains(&library) {
                progress.functions.push(library);
            }
        }
        progress.opaque.extend(built.opaque);
        progress.keys.merge(written);
        progress.bytes += built.bytes;
        progress.expired += built.expired;
        progress.left_out += built.left_out;
        progress.module_data += built.module_data;
        Ok(())
    }

    /// Reads back what was written and compares it with what was to be. What the backup held, left-out and expired
    /// keys included, is then what is proved: a server cannot hold an expired key.
    async fn prove(&self) -> Result<Proofs> {
        let inner = self.inner()?;
        let state = &inner.state;
        let progress = inner.progress.lock().await;
        let mut proofs = progress.delivered.proofs();
        // A merge has compared every batch already.
        if !matches!(state.way, Way::Merge(_)) {
            let map = state.stage.taken().into_iter().map(|(db, to)| (to, db)).collect();
            let found = read_back(&state.loader.config, &state.loader.nodes, &map, &progress.opaque).await?;
            let proving = state.manner.proving;
            compare(&progress.written, &found, proving)?;
            if proving == Proving::Backup {
                let lasting = found.proofs().get(KEYS).copied().unwrap_or_default();
                compare_lasting(state.wanted_proofs.get(KEYS).copied().unwrap_or_default(), lasting)?;
                proofs.insert(KEYS.to_owned(), lasting);
            }
        }
        if progress.functions_proof.count > 0 {
            proofs.insert(FUNCTIONS.to_owned(), progress.functions_proof);
        }
        proofs.retain(|name, proof| proof.count > 0 || state.wanted_proofs.contains_key(name));
        Ok(proofs)
    }

    async fn commit(mut self: Box<Self>) -> Result<(RestoreReport, Option<Box<dyn Undo>>)> {
        let Some(inner) = self.inner.take() else {
            return Err(Error::new(ErrorKind::Internal, "restore Redis"));
        };
        match inner.commit().await {
            Ok(done) => Ok(done),
            Err(e) => {
                // What went wrong is the error to tell; the undoing's own is added to it.
                match inner.abort().await {
                    Ok(()) => Err(e),
                    Err(undoing) => Err(e.with("undoing_failed", undoing.chain())),
                }
            }
        }
    }

    async fn abort(mut self: Box<Self>) -> Result<()> {
        match self.inner.take() {
            Some(inner) => inner.abort().await,
            None => Ok(()),
        }
    }
}

impl State {
    pub(super) async fn connect(&self) -> Result<Connection> {
        let Some(node) = self.loader.nodes.first() else {
            return Err(Error::new(ErrorKind::Internal, "restore Redis"));
        };
        Ok(connect_to(&self.loader.config, node).await?.0)
    }

    async fn empty_everywhere(&self, db: u64) -> Result<()> {
        for node in &self.loader.nodes {
            let (mut connection, _) = connect_to(&self.loader.config, node).await?;
            empty(&mut connection, db).await?;
        }
        Ok(())
    }

    async fn load_functions<B: AsRef<[u8]>>(&self, libraries: &[B], policy: &str) -> Result<()> {
        for node in &self.loader.nodes {
            let (mut connection, _) = connect_to(&self.loader.config, node).await?;
            functions::load(&mut connection, libraries, self.manner.version, policy).await?;
        }
        Ok(())
    }
}

impl Inner {
    async fn commit(&self) -> Result<(RestoreReport, Option<Box<dyn Undo>>)> {
        let state = &self.state;
        let progress = self.progress.lock().await;
        let brings = !progress.functions.is_empty();
        let old = state.libraries.as_deref().unwrap_or_default();
        if brings {
            let policy = match state.way {
                Way::Swap | Way::InPlace => "FLUSH",
                Way::Merge(OnConflict::Replace) => "REPLACE",
                Way::Merge(OnConflict::Keep) => "APPEND",
            };
            // A merge that keeps what is there keeps libraries of the same name.
            let keeps = state.way == Way::Merge(OnConflict::Keep);
            let is_there =
                |library: &[u8]| old.iter().any(|o| functions::name(o) == functions::name(library));
            let load: Vec<_> =
                progress.functions.iter().filter(|library| !keeps || !is_there(library.as_slice())).collect();
            state.load_functions(&load, policy).await?;
            let now = functions::present(&mut state.connect().await?).await?.unwrap_or_default();
            let whole = if matches!(state.way, Way::Merge(_)) {
                load.iter().all(|library| now.iter().any(|n| n == *library))
            } else {
                functions::proof(&now) == functions::proof(&progress.functions)
            };
            if !whole {
                return Err(Error::new(ErrorKind::ProofMismatch, "restore Redis functions")
                    .message("the server's functions are not those of the backup"));
            }
        }
        let mut report = progress.report(state);
        let replaced_functions = brings && !old.is_empty();
        let undo: Option<Box<dyn Undo>> = if state.way == Way::Swap {
            let pairs: Vec<(u64, u64)> = state.stage.taken().into_iter().collect();
            let mut connection = state.connect().await?;
            swap(&mut connection, &pairs, true).await?;
            for spare in state.stage.all_spare() {
                // Those that were not needed are unmarked; the others hold no mark any more.
                connection.call("end Redis restore", &["SELECT", &spare.to_string()]).await?;
                connection.call("end Redis restore", &[b"DEL", MARKER]).await?;
            }
            let kept: Vec<(u64, u64)> =
                pairs.iter().copied().filter(|(db, _)| state.occupied.contains(db)).collect();
            if kept.is_empty() && !replaced_functions {
                None
            } else {
                let places: Vec<_> = kept.iter().map(|(db, at)| format!("db{db} in db{at}")).collect();
                report.old_kept_at = Some(places.join(", ")).filter(|p| !p.is_empty());
                Some(Box::new(SwapBack {
                    loader: state.loader.clone(),
                    version: state.manner.version,
                    pairs,
                    kept,
                    functions: brings.then(|| old.to_vec()),
                }))
            }
        } else if let Some(safety) = &state.safety {
            report.old_kept_at = Some(safety.names());
            Some(Box::new(PutBack {
                loader: state.loader.clone(),
                manner: state.manner.clone(),
                safety: Safety {
                    files: safety.files.clone(),
                    databases: safety
                        .databases
                        .iter()
                        .copied()
                        .chain(state.stage.taken().into_keys())
                        .collect(),
                },
                functions: brings.then(|| old.to_vec()),
            }))
        } else {
            None
        };
        Ok((report, undo))
    }

    /// Leaves the server as it was. Waits for one that was lost.
    async fn abort(&self) -> Result<()> {
        let give_up = tokio::time::Instant::now() + PATIENCE;
        loop {
            match self.try_abort().await {
                Err(e) if e.is_retryable() && tokio::time::Instant::now() < give_up => {
                    tokio::time::sleep(Duration::from_millis(500)).await;
                }
                Err(e) => {
                    let e = match &self.state.safety {
                        Some(safety) => e.with("safety_backup", safety.names()),
                        None => e,
                    };
                    return Err(e);
                }
                Ok(()) => return Ok(()),
            }
        }
    }

    async fn try_abort(&self) -> Result<()> {
        let state = &self.state;
        let progress = self.progress.lock().await;
        state.loader.writers.end(&state.loader.config).await?;
        if !progress.functions.is_empty() && !matches!(state.way, Way::Merge(_)) {
            // Loaded only if a commit failed after it.
            let now = functions::present(&mut state.connect().await?).await?.unwrap_or_default();
            let old = state.libraries.as_deref().unwrap_or_default();
            if functions::proof(&now) != functions::proof(old) {
                state.load_functions(old, "FLUSH").await?;
            }
        }
        match state.way {
            Way::Swap => {
                let mut connection = state.connect().await?;
                for spare in state.stage.all_spare() {
                    empty(&mut connection, spare).await?;
                }
                Ok(())
            }
            _ if !progress.emptied => match &state.safety {
                Some(safety) => safety.remove().await,
                None => Ok(()),
            },
            Way::InPlace | Way::Merge(_) => {
                let touched: BTreeSet<u64> = state.stage.taken().into_keys().collect();
                if let Some(safety) = &state.safety {
                    let databases = safety.databases.union(&touched).copied().collect();
                    let whole = Safety { files: safety.files.clone(), databases };
                    whole.put_back(&state.loader, &state.manner).await?;
                    return safety.remove().await;
                }
                if matches!(state.way, Way::Merge(_)) && !state.occupied.is_empty() {
                    return Err(Error::new(ErrorKind::TargetFailed, "undo Redis merge").message(
                        "keys that were merged already stay: there was no safety backup to put back",
                    ));
                }
                for db in touched {
                    state.empty_everywhere(db).await?;
                }
                Ok(())
            }
        }
    }
}

impl Progress {
    fn report(&self, state: &State) -> RestoreReport {
        let mut report =
            RestoreReport { items: self.keys.keys, bytes: self.bytes, ..RestoreReport::default() };
        let details = &mut report.details;
        details.insert("expired_keys".to_owned(), self.expired.into());
        details.insert("left_out_keys".to_owned(), self.left_out.into());
        details.insert("kept_keys".to_owned(), self.keys.kept.into());
        details.insert("functions".to_owned(), self.functions.len().into());
        if state.swept > 0 {
            details.insert("swept_staging_databases".to_owned(), state.swept.into());
        }
        if self.module_data > 0 {
            report.warnings.push(Warning::new(
                "module-data",
                "modules keep data beside the keys, which only a server that starts from the RDB file reads",
            ));
        }
        report
    }
}
