//! Listing objects.

use std::sync::Arc;

use backup_core::{Error, ErrorKind, Key, ObjectInfo, Result};
use futures::StreamExt as _;
use futures::stream::BoxStream;
use rustix::fs::Dir;
use rustix::io::Errno;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::task::JoinHandle;

use super::dirs::{self, Root, Walk, failed};
use super::read;

/// Objects handed over at a time.
const BATCH: usize = 256;
const OPERATION: &str = "list objects";

type Batch = Vec<Result<ObjectInfo>>;

/// The objects below `prefix`. A blocking thread walks the directories, a few batches ahead of the reader.
pub(super) fn list(root: Arc<Root>, prefix: Key) -> BoxStream<'static, Result<ObjectInfo>> {
    // Begins with the first poll, so a list that nobody reads costs nothing.
    futures::stream::once(async move {
        let (send, receive) = channel(2);
        let walker = tokio::task::spawn_blocking(move || {
            let mut out = Out { send, batch: Vec::new() };
            if let Err(Some(error)) = walk(&root, prefix, &mut out) {
                out.batch.push(Err(error));
            }
            let _ = out.flush();
        });
        batches(receive, walker)
    })
    .flatten()
    .boxed()
}

fn batches(receive: Receiver<Batch>, walker: JoinHandle<()>) -> BoxStream<'static, Result<ObjectInfo>> {
    futures::stream::unfold(Some((receive, walker)), |state| async move {
        let (mut receive, walker) = state?;
        if let Some(batch) = receive.recv().await {
            return Some((batch, Some((receive, walker))));
        }
        // A list cut short must not pass for a whole one.
        let lost = walker.await.err()?;
        Some((vec![Err(Error::new(ErrorKind::Internal, OPERATION).caused_by(lost))], None))
    })
    .flat_map(futures::stream::iter)
    .boxed()
}

struct Out {
    send: Sender<Batch>,
    batch: Batch,
}

impl Out {
    /// `Err(None)`: nobody listens any more.
    fn push(&mut self, info: ObjectInfo) -> Result<(), Option<Error>> {
        self.batch.push(Ok(info));
        if self.batch.len() >= BATCH { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), Option<Error>> {
        if self.batch.is_empty() {
            return Ok(());
        }
        self.send.blocking_send(std::mem::take(&mut self.batch)).map_err(|_| None)
    }
}

fn walk(root: &Root, prefix: Key, out: &mut Out) -> Result<(), Option<Error>> {
    root.check_alive(OPERATION)?;
    let mut directories = vec![prefix];
    while let Some(directory) = directories.pop() {
        let segments: Vec<&str> = directory.segments().collect();
        // Removed since it was seen, or an object's own name given as a prefix: nothing is below it.
        let Walk::Dir(dir) = root.walk(OPERATION, &segments)? else { continue };
        let refuse = |e| Some(failed(OPERATION, e).with("directory", &directory));
        for entry in Dir::read_from(&dir).map_err(refuse)? {
            let entry = entry.map_err(refuse)?;
            // What is not a valid segment was not written by a sink: `.`, `..`, `@staging`, `lost+found`.
            let Some(key) = entry.file_name().to_str().ok().and_then(|name| child(&directory, name)) else {
                continue;
            };
            match dirs::stat(&dir, key.file_name()) {
                Ok(found) if dirs::is_dir(&found) => directories.push(key),
                Ok(found) if dirs::is_file(&found) => out.push(read::info(key, &found))?,
                Ok(_) | Err(Errno::NOENT) => {}
                Err(e) => return Err(refuse(e)),
            }
        }
    }
    Ok(())
}

/// `directory/name`, if `name` is a valid segment as it stands.
fn child(directory: &Key, name: &str) -> Option<Key> {
    let name = Key::parse(name).ok().filter(|key| !key.is_root())?;
    Some(directory.append(&name))
}
