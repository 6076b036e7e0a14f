//! Writing a `dump.rdb` for a server to start from: [`RdbFileTarget`].

mod server;

use std::io;
use std::os::unix::fs::{MetadataExt as _, chown};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use async_trait::async_trait;
use backup_core::{
    ArtifactFormat, ArtifactMeta, ArtifactReader, Atomicity, Error, ErrorKind, Proofs, Restore, RestorePlan,
    RestoreReport, RestoreTarget, Result, Undo, Warning,
};
use futures::StreamExt as _;
use tokio::fs::{File, OpenOptions};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use self::server::{appends_only, running_in};
use crate::config::RedisConfig;
use crate::feed::{Feed, Slot};
use crate::rdb::RdbReader;
use crate::source::RDB;
use crate::tally::Tally;

const FILE: &str = "restore RDB file";
const CHUNK: usize = 256 * 1024;

/// Writes a backup as the file that a server loads when it starts (`dbfilename` in `dir`), with the owner and
/// mode the server needs. The file appears whole or not at all.
///
/// It refuses where the file would have no effect: while a server runs in that directory (its save at shutdown
/// overwrites the file), and where the directory holds an append-only file (a server with `appendonly yes` loads that
/// and ignores the RDB). The errors name the commands that help.
#[derive(Clone, Debug)]
pub struct RdbFileTarget {
    path: PathBuf,
    owner: Option<(u32, u32)>,
    mode: u32,
    shard: Option<String>,
    server: Option<RedisConfig>,
}

impl RdbFileTarget {
    /// To the file at `path`, usually `/var/lib/redis/dump.rdb`.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), owner: None, mode: 0o660, shard: None, server: None }
    }

    /// The user and group that the file is to belong to. By default those of its directory, which is the server's.
    pub fn owner(mut self, user: u32, group: u32) -> Self {
        self.owner = Some((user, group));
        self
    }

    /// The mode of the file, 0660 by default.
    pub fn mode(mut self, mode: u32) -> Self {
        self.mode = mode & 0o777;
        self
    }

    /// Of a cluster's backup: the artifact of this shard (`shard-000`).
    pub fn shard(mut self, name: impl Into<String>) -> Self {
        self.shard = Some(name.into());
        self
    }

    /// The server that will load the file: asked whether it runs, where its process cannot be seen (another
    /// container, another user).
    pub fn server(mut self, config: RedisConfig) -> Self {
        self.server = Some(config);
        self
    }

    fn takes(&self, meta: &ArtifactMeta) -> bool {
        self.shard.as_ref().is_none_or(|shard| *shard == meta.name)
    }

    fn io(&self) -> impl Fn(io::Error) -> Error + use<> {
        let path = self.path.display().to_string();
        move |e| Error::io(FILE, e).with("file", &path)
    }
}

#[async_trait]
impl RestoreTarget for RdbFileTarget {
    fn accepts(&self, format: &ArtifactFormat) -> bool {
        format.name == RDB.name
    }

    fn atomicity(&self) -> Atomicity {
        Atomicity::Swap
    }

    async fn begin(&self, plan: &RestorePlan) -> Result<Box<dyn Restore>> {
        if !plan.selection.is_all() {
            return Err(Error::invalid(
                FILE,
                "a file holds all keys or none: select when restoring into a live server",
            ));
        }
        let taken: Vec<_> = plan.artifacts.iter().filter(|a| self.takes(&a.meta)).collect();
        let [artifact] = taken[..] else {
            let names: Vec<_> = plan.artifacts.iter().map(|a| a.meta.name.to_string()).collect();
            return Err(Error::invalid(FILE, "a file holds one shard of a cluster: name it with `shard`")
                .with("shards", names.join(" ")));
        };
        let directory = match self.path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        let meta = tokio::fs::metadata(&directory).await.map_err(self.io())?;
        if let Some(config) = &self.server {
            server::is_not_answering(config).await?;
        }
        running_in(&directory)?;
        appends_only(&directory)?;
        if !plan.replace && tokio::fs::try_exists(&self.path).await.map_err(self.io())? {
            return Err(Error::new(ErrorKind::TargetNotEmpty, FILE)
                .message("the file exists already: ask to replace it")
                .with("file", self.path.display()));
        }
        let space = rustix::fs::statvfs(&directory).map_err(|e| self.io()(e.into()))?;
        let free = space.f_bavail.saturating_mul(space.f_frsize);
        if free < artifact.plain_size {
            return Err(Error::new(ErrorKind::StorageFull, FILE)
                .message("the directory's file system has too little space")
                .with("needed", artifact.plain_size)
                .with("free", free));
        }
        Ok(Box::new(Staged {
            beside: self.path.with_extension(format!("rdb.restoring-{}", plan.id)),
            kept: self.path.with_extension(format!("rdb.before-{}", plan.id)),
            owner: self.owner.unwrap_or((meta.uid(), meta.gid())),
            target: self.clone(),
            directory,
            whole: taken.len() == plan.artifacts.len(),
            wanted: plan.proofs.clone(),
            tally: Slot::empty(),
            done: Mutex::new(false),
        }))
    }
}

struct Staged {
    target: RdbFileTarget,
    directory: PathBuf,
    beside: PathBuf,
    kept: PathBuf,
    owner: (u32, u32),
    /// Whether the artifact is all of the backup.
    whole: bool,
    wanted: Proofs,
    tally: Slot<Tally>,
    done: Mutex<bool>,
}

impl Staged {
    async fn sync_directory(&self) -> Result<()> {
        let io = self.target.io();
        File::open(&self.directory).await.map_err(&io)?.sync_all().await.map_err(&io)
    }

    /// Marks the staged file as no longer this restore's to remove.
    fn is_done(&self) {
        *self.done.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = true;
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if !*self.done.lock().unwrap_or_else(std::sync::PoisonError::into_inner) {
            // Nothing can be done about a file that cannot be removed here.
            let _ = std::fs::remove_file(&self.beside);
        }
    }
}

#[async_trait]
impl Restore for Staged {
    fn wants(&self, meta: &ArtifactMeta) -> bool {
        self.target.takes(meta)
    }

    async fn artifact(&self, reader: ArtifactReader) -> Result<()> {
        let io = self.target.io();
        // Left by a restore of the same backup that died.
        if tokio::fs::try_exists(&self.beside).await.map_err(&io)? {
            tokio::fs::remove_file(&self.beside).await.map_err(&io)?;
        }
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&self.beside)
            .await
            .map_err(&io)?;
        let mut bytes = reader.stream().await?;
        while let Some(chunk) = bytes.next().await {
            file.write_all(&chunk?).await.map_err(&io)?;
        }
        file.sync_all().await.map_err(&io)
    }

    async fn prove(&self) -> Result<Proofs> {
        let io = self.target.io();
        let mut file = File::open(&self.beside).await.map_err(&io)?;
        let mut feed = Feed::start(RdbReader::new(), Tally::new());
        loop {
            let mut chunk = bytes::BytesMut::with_capacity(CHUNK);
            if file.read_buf(&mut chunk).await.map_err(&io)? == 0 {
                break;
            }
            feed.push(chunk.freeze()).await?;
        }
        let tally = feed.finish().await?;
        let mut proofs = tally.prover.proofs();
        proofs.retain(|name, proof| proof.count > 0 || self.wanted.contains_key(name));
        self.tally.put(tally);
        // One shard of several cannot prove the whole: its structure and checksum were checked.
        Ok(if self.whole { proofs } else { self.wanted.clone() })
    }

    async fn commit(self: Box<Self>) -> Result<(RestoreReport, Option<Box<dyn Undo>>)> {
        let io = self.target.io();
        let (user, group) = self.owner;
        let staged = File::open(&self.beside).await.map_err(&io)?;
        let now = staged.metadata().await.map_err(&io)?;
        if (now.uid(), now.gid()) != (user, group) {
            chown(&self.beside, Some(user), Some(group)).map_err(|e| {
                self.target.io()(e)
                    .with("user", user)
                    .with("group", group)
                    .with("help", "run as root, or name an owner this user may give files to")
            })?;
        }
        let mode = std::os::unix::fs::PermissionsExt::from_mode(self.target.mode);
        tokio::fs::set_permissions(&self.beside, mode).await.map_err(&io)?;
        staged.sync_all().await.map_err(&io)?;
        let bytes = now.len();
        let replaces = tokio::fs::try_exists(&self.target.path).await.map_err(&io)?;
        if replaces {
            // The old one keeps a name of its own; then the new takes its place in one step.
            tokio::fs::hard_link(&self.target.path, &self.kept).await.map_err(&io)?;
        }
        tokio::fs::rename(&self.beside, &self.target.path).await.map_err(&io)?;
        self.is_done();
        self.sync_directory().await?;
        let mut report = RestoreReport { items: 1, bytes, ..RestoreReport::default() };
        if let Some(tally) = self.tally.take() {
            report.details.insert("keys".to_owned(), tally.statistics.total().keys.into());
        }
        report.warnings.push(Warning::new(
            "start-the-server",
            "the server loads the file when it starts, with `appendonly no`; append-only can be turned on afterwards \
             by `CONFIG SET appendonly yes`",
        ));
        let undo: Option<Box<dyn Undo>> = if replaces {
            report.old_kept_at = Some(self.kept.display().to_string());
            Some(Box::new(OldFile { path: self.target.path.clone(), kept: self.kept.clone() }))
        } else {
            None
        };
        Ok((report, undo))
    }

    async fn abort(self: Box<Self>) -> Result<()> {
        match tokio::fs::remove_file(&self.beside).await {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(self.target.io()(e)),
            _ => {
                self.is_done();
                Ok(())
            }
        }
    }
}

/// The file there was.
#[derive(Debug)]
struct OldFile {
    path: PathBuf,
    kept: PathBuf,
}

#[async_trait]
impl Undo for OldFile {
    async fn undo(self: Box<Self>) -> Result<()> {
        if let Some(directory) = self.path.parent().filter(|d| !d.as_os_str().is_empty()) {
            running_in(directory)?;
        }
        let io = |e| Error::io("undo RDB file restore", e).with("file", self.kept.display());
        tokio::fs::rename(&self.kept, &self.path).await.map_err(io)
    }

    async fn drop_old(self: Box<Self>) -> Result<()> {
        let io = |e| Error::io("remove old RDB file", e).with("file", self.kept.display());
        tokio::fs::remove_file(&self.kept).await.map_err(io)
    }
}

/// The directory as given, for messages.
fn shown(directory: &Path) -> String {
    directory.display().to_string()
}
