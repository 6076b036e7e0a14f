//! [`LocalSink`]: a directory on a mounted file system.
//!
//! Layout: the marker `@repository.json`, the staging directory `@staging`, and the objects, one file each, at the path
//! their key spells. No key holds an `@`, so neither name can be an object.

mod copy;
mod dirs;
mod list;
mod marker;
mod probe;
mod read;
mod staging;
mod writer;

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use backup_core::{
    ByteStream, Error, ErrorKind, Key, ObjectInfo, PutMode, PutOptions, Result, Sink, SinkId, SinkWriter,
    Space, StoreAddress, StoreCopy, Warning,
};
use futures::stream::BoxStream;

use dirs::{Root, Walk};
use staging::Staged;

/// A sink in a local (or network-mounted) directory.
///
/// * Objects are written to a staging file, synced, and given their name by link(2) or rename(2); then every
///   directory above is synced. What [`SinkWriter::finish`] confirmed survives a power cut.
/// * Files have mode 0600, directories 0700, whatever the umask allows beyond.
/// * Opening needs the marker that [`LocalSink::init`] wrote. The empty mount point of an absent disk has none, and is
///   refused with [`ErrorKind::WrongPlace`] instead of being filled. There is deliberately no "open or
///   else initialise": it would undo this protection.
/// * The file system is tried out at open: one that cannot create exclusively, rename or sync is refused with
///   [`ErrorKind::StoreInadequate`]. One mounted read-only opens, and refuses only to write.
/// * No symbolic link below the directory is followed.
/// * The directory stays open while the sink lives; its file system cannot be unmounted until then.
///
/// Cloning gives another handle to the same directory. Opening and initialising block for a few system calls
/// and syncs.
///
/// ```
/// # let dir = tempfile::tempdir().unwrap();
/// # let path = dir.path().join("backups");
/// use backup_fs::LocalSink;
///
/// let id = LocalSink::init(&path)?.repository_id().to_owned();   // once, when the disk is set up
/// let sink = LocalSink::open(&path)?.expect_id(&id)?;            // every other time
/// # Ok::<(), backup_core::Error>(())
/// ```
#[derive(Clone)]
pub struct LocalSink {
    id: SinkId,
    path: PathBuf,
    root: Arc<Root>,
    repository_id: String,
    warnings: Vec<Warning>,
}

impl LocalSink {
    /// Makes `path` a repository and opens it. The directory is created if it does not exist (its parent must) and has
    /// to be empty; `lost+found` does not count.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::AlreadyExists`] when it is a repository, [`ErrorKind::TargetNotEmpty`] when it holds anything else.
    pub fn init(path: impl AsRef<Path>) -> Result<Self> {
        marker::init(path.as_ref(), marker::Contents::MustBeEmpty)?;
        Self::open(path)
    }

    /// Writes a new marker into a directory that lost its own, for example a copy made file by file, and opens it.
    /// Nothing else is changed.
    pub fn adopt(path: impl AsRef<Path>) -> Result<Self> {
        marker::init(path.as_ref(), marker::Contents::Kept)?;
        Self::open(path)
    }

    /// Opens a repository that [`LocalSink::init`] made, and tries out its file system.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::WrongPlace`] when the directory or its marker is missing, [`ErrorKind::StoreInadequate`] when the
    /// file system cannot keep what a sink promises.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = std::path::absolute(path.as_ref()).map_err(|e| Error::io("open local sink", e))?;
        let mut root = Root::open(&path)?;
        let repository_id = marker::read(&root)?;
        let warnings = probe::probe(&mut root)?;
        Ok(Self {
            id: SinkId::new(format!("local:{}", path.display())),
            path,
            root: Arc::new(root),
            repository_id,
            warnings,
        })
    }

    /// Gives the sink another id than `local:<path>`.
    pub fn named(mut self, id: impl Into<String>) -> Self {
        self.id = SinkId::new(id);
        self
    }

    /// Makes sure that this is the repository with this id, and not another disk under the same mount point.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::WrongPlace`] when the ids differ.
    pub fn expect_id(self, id: &str) -> Result<Self> {
        if self.repository_id == id {
            return Ok(self);
        }
        Err(Error::new(ErrorKind::WrongPlace, "open local sink")
            .message(
                "this is another repository than expected; mount the right disk, or correct the expected id",
            )
            .with("path", self.path.display())
            .with("expected", id)
            .with("found", &self.repository_id))
    }

    /// The random id in the marker: 32 hexadecimal digits.
    pub fn repository_id(&self) -> &str {
        &self.repository_id
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    async fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce(&Arc<Root>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let root = Arc::clone(&self.root);
        blocking(move || job(&root)).await
    }
}

impl fmt::Debug for LocalSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalSink").field("id", &self.id).field("path", &self.path).finish_non_exhaustive()
    }
}

/// Runs `job` on a thread that may block.
async fn blocking<T: Send + 'static>(job: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(job).await.map_err(|e| {
        if e.is_cancelled() {
            Error::cancelled("use local sink")
        } else {
            Error::new(ErrorKind::Internal, "use local sink").caused_by(e)
        }
    })?
}

#[backup_core::async_trait]
impl Sink for LocalSink {
    fn id(&self) -> &SinkId {
        &self.id
    }

    async fn create(&self, key: &Key, options: PutOptions) -> Result<Box<dyn SinkWriter>> {
        let key = key.clone();
        let staged = self
            .run(move |root| {
                refuse_occupied(root, &key, options.mode)?;
                Staged::create(root, key, options.mode)
            })
            .await?;
        Ok(Box::new(writer::LocalWriter::new(staged)))
    }

    async fn open(&self, key: &Key, range: Option<Range<u64>>) -> Result<ByteStream> {
        let key = key.clone();
        self.run(move |root| read::open(root, &key, range)).await
    }

    async fn head(&self, key: &Key) -> Result<ObjectInfo> {
        let key = key.clone();
        self.run(move |root| read::head(root, &key)).await
    }

    fn list(&self, prefix: &Key) -> BoxStream<'static, Result<ObjectInfo>> {
        list::list(Arc::clone(&self.root), prefix.clone())
    }

    async fn delete(&self, key: &Key) -> Result<()> {
        let key = key.clone();
        self.run(move |root| root.delete(&key)).await
    }

    fn writer_memory(&self) -> usize {
        writer::BUFFER
    }

    /// The device the directory lies on.
    fn failure_domain(&self) -> Option<String> {
        let found = rustix::fs::fstat(self.root.dir()).ok()?;
        Some(format!("file system {}", found.st_dev))
    }

    /// Tries the file system out again, and returns what is unwise about it.
    async fn probe(&self) -> Result<Vec<Warning>> {
        let path = self.path.clone();
        let mut warnings = blocking(move || {
            let mut root = Root::open(&path)?;
            marker::read(&root)?;
            probe::probe(&mut root)
        })
        .await?;
        warnings
            .extend(self.warnings.iter().filter(|old| !warnings.contains(old)).cloned().collect::<Vec<_>>());
        Ok(warnings)
    }

    async fn space(&self) -> Result<Option<Space>> {
        self.run(|root| root.space().map(Some)).await
    }

    /// Within this repository alone: what another one on the same file system shared with it would be lost with it.
    fn address(&self, key: &Key) -> Option<StoreAddress> {
        Some(StoreAddress { store: copy::store(&self.root)?, object: key.to_string() })
    }

    /// A hard link: objects never change, so that it is as good as a copy, and takes no space.
    async fn copy_from(
        &self,
        from: &StoreAddress,
        _size: u64,
        to: &Key,
        options: PutOptions,
    ) -> Result<Option<StoreCopy>> {
        if copy::store(&self.root).as_ref() != Some(&from.store) || options.mode == PutMode::CreateNew {
            return Ok(None);
        }
        let (from, to) = (Key::parse(from.object.as_str())?, to.clone());
        let linked = self.run(move |root| copy::copy(root, &from, &to)).await?;
        Ok(linked.then(StoreCopy::default))
    }

    async fn sweep(&self, older_than: Duration) -> Result<u64> {
        self.run(move |root| staging::sweep(root, older_than)).await
    }
}

/// Fails early where finishing would fail anyway: before gigabytes are written.
fn refuse_occupied(root: &Root, key: &Key, mode: PutMode) -> Result<()> {
    let Some((parents, name)) = dirs::split(key) else {
        return Err(Error::invalid("put object", "the root of a sink is not the name of an object"));
    };
    root.check_alive("put object")?;
    match root.walk("put object", &parents)? {
        Walk::Absent => Ok(()),
        Walk::File => Err(dirs::file_in_the_way(key)),
        Walk::Dir(dir) => match dirs::stat(&dir, name) {
            Err(rustix::io::Errno::NOENT) => Ok(()),
            Err(e) => Err(dirs::failed("put object", e).with("key", key)),
            Ok(found) if dirs::is_dir(&found) => Err(dirs::directory_in_the_way(key)),
            Ok(_) if mode == PutMode::CreateNew => Err(dirs::already_exists(key)),
            Ok(_) => Ok(()),
        },
    }
}
