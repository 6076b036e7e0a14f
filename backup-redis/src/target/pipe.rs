//! Sends batches to one node, many under way at once, and takes the replies.

use std::collections::HashMap;

use backup_core::{Error, ErrorKind, Result};
use bytes::Bytes;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::task::JoinSet;

use super::batch::Batch;
use super::verify::verify;
use crate::config::{Address, RedisConfig};
use crate::connect::Connection;
use crate::discover::{Server, connect_to};
use crate::error::ServerError;
use crate::resp::{self, Reply};

/// Batches sent whose replies have not come: a few hundred KiB each.
const UNDER_WAY: usize = 4;
/// Names of refused keys that are kept for the error.
const NAMED: usize = 20;
/// How often a redirected command follows before it is given up.
const REDIRECTS: usize = 8;

/// What to do about keys that exist already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Existing {
    /// There are none: one is an error.
    None,
    /// They stay as they are.
    Keep,
    /// They are replaced.
    Replace,
}

/// What became of the keys sent.
#[derive(Debug, Default)]
pub(crate) struct Written {
    pub(crate) keys: u64,
    /// Left as they were because they existed.
    pub(crate) kept: u64,
    refused: u64,
    named: Vec<String>,
}

impl Written {
    pub(crate) fn merge(&mut self, other: Self) {
        self.keys += other.keys;
        self.kept += other.kept;
        self.refused += other.refused;
        self.named.extend(other.named);
        self.named.truncate(NAMED);
    }

    /// Notes a key that the server, or this build on its behalf, cannot take.
    pub(crate) fn refuse(&mut self, key: &[u8], why: &str) {
        self.refused += 1;
        if self.named.len() < NAMED {
            self.named.push(format!("{}: {why}", String::from_utf8_lossy(key)));
        }
    }

    /// An error that names the refused keys, if there are any.
    pub(crate) fn check(&self) -> Result<()> {
        if self.refused == 0 {
            return Ok(());
        }
        let more = self.refused - self.named.len() as u64;
        let mut names = self.named.join("; ");
        if more > 0 {
            names = format!("{names}; and {more} more");
        }
        Err(Error::new(ErrorKind::TargetFailed, "restore Redis keys")
            .message("this server cannot take some keys: use a server of the version they come from, or leave them out by pattern")
            .with("count", self.refused)
            .with("keys", names))
    }

    /// Notes the reply to a write of `key`. `Err` is a reply after which going on has no sense.
    pub(crate) fn note(&mut self, key: &[u8], error: Option<ServerError>, existing: Existing) -> Result<()> {
        let Some(error) = error else {
            self.keys += 1;
            return Ok(());
        };
        match error.code() {
            "BUSYKEY" if existing == Existing::Keep => self.kept += 1,
            "BUSYKEY" => {
                return Err(error
                    .into_error("restore Redis keys", ErrorKind::TargetNotEmpty)
                    .with("key", String::from_utf8_lossy(key)));
            }
            "OOM" | "READONLY" | "MISCONF" | "NOPERM" | "NOAUTH" | "LOADING" | "CLUSTERDOWN"
            | "MASTERDOWN" => {
                return Err(error
                    .into_error("restore Redis keys", ErrorKind::TargetFailed)
                    .with("key", String::from_utf8_lossy(key)));
            }
            _ => self.refuse(key, &error.0),
        }
        Ok(())
    }
}

/// Starts sending to a node, on a task of `tasks`; the batches go into what is returned. With `verified`, each batch
/// is read back before the next is sent.
pub(crate) fn start(
    tasks: &mut JoinSet<Result<Written>>,
    connection: Connection,
    server: Server,
    config: RedisConfig,
    existing: Existing,
    verified: bool,
) -> Sender<Batch> {
    let (batches, waiting) = channel(2);
    let node = Node { config, server, existing, elsewhere: HashMap::new(), written: Written::default() };
    tasks.spawn(async move {
        if verified {
            node.one_by_one(connection, waiting).await
        } else {
            node.at_once(connection, waiting).await
        }
    });
    batches
}

struct Node {
    config: RedisConfig,
    server: Server,
    existing: Existing,
    elsewhere: HashMap<Address, Connection>,
    written: Written,
}

impl Node {
    /// Writing and reading go on beside each other.
    async fn at_once(mut self, connection: Connection, mut waiting: Receiver<Batch>) -> Result<Written> {
        let (mut replies, mut commands) = connection.split();
        let (sent, mut under_way) = channel::<(Batch, bool)>(UNDER_WAY);
        let sending = async move {
            let mut db = None;
            while let Some(batch) = waiting.recv().await {
                let selects = select(&mut commands, &mut db, batch.db).await?;
                commands.send(&batch.wire).await?;
                if sent.send((batch, selects)).await.is_err() {
                    break;
                }
            }
            Ok(())
        };
        let receiving = async {
            while let Some((batch, selects)) = under_way.recv().await {
                if selects {
                    selected(replies.reply().await?)?;
                }
                let mut moved = Vec::new();
                for n in 0..batch.starts.len() {
                    match replies.outcome().await? {
                        None => self.written.keys += 1,
                        Some(e) if is_redirect(&e) => moved.push((n, e)),
                        error => self.written.note(batch.key(n), error, self.existing)?,
                    }
                }
                for (n, error) in moved {
                    self.redirect(&batch, n, error).await?;
                }
            }
            Ok::<_, Error>(())
        };
        tokio::try_join!(sending, receiving)?;
        Ok(self.written)
    }

    /// Each batch is written, answered and read back before the next.
    async fn one_by_one(
        mut self,
        mut connection: Connection,
        mut waiting: Receiver<Batch>,
    ) -> Result<Written> {
        let mut db = None;
        while let Some(batch) = waiting.recv().await {
            if select(&mut connection, &mut db, batch.db).await? {
                selected(connection.reply().await?)?;
            }
            connection.send(&batch.wire).await?;
            let mut errors = Vec::with_capacity(batch.starts.len());
            for _ in 0..batch.starts.len() {
                errors.push(connection.outcome().await?);
            }
            let mut fresh = Vec::new();
            for (n, error) in errors.into_iter().enumerate() {
                let existed = error.as_ref().is_some_and(|e| e.code() == "BUSYKEY");
                if let Some(error) = error.as_ref().filter(|e| is_redirect(e)) {
                    // Written elsewhere: its node is not asked again, the reply has to do.
                    self.redirect(&batch, n, error.clone()).await?;
                    continue;
                }
                self.written.note(batch.key(n), error, self.existing)?;
                if !existed && let Some(expected) = batch.expected.get(n) {
                    fresh.push((Bytes::copy_from_slice(batch.key(n)), *expected));
                }
            }
            self.written.check()?;
            connection = verify(connection, &self.server, batch.db, fresh).await?;
        }
        Ok(self.written)
    }

    /// Follows `MOVED` and `ASK` with one command.
    async fn redirect(&mut self, batch: &Batch, n: usize, error: ServerError) -> Result<()> {
        let mut error = error;
        for _ in 0..REDIRECTS {
            let Some(target) = redirect_target(&error) else { break };
            let connection = match self.elsewhere.entry(target.clone()) {
                std::collections::hash_map::Entry::Occupied(known) => known.into_mut(),
                std::collections::hash_map::Entry::Vacant(new) => {
                    new.insert(connect_to(&self.config, &target).await?.0)
                }
            };
            let mut out = Vec::new();
            let asking = error.code() == "ASK";
            if asking {
                resp::command(&mut out, &["ASKING"]);
            }
            out.extend_from_slice(batch.command(n));
            connection.send(&out).await?;
            if asking {
                connection.reply().await?;
            }
            match connection.outcome().await? {
                Some(again) if is_redirect(&again) => error = again,
                Some(again) if again.code() == "TRYAGAIN" => {
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                }
                other => return self.written.note(batch.key(n), other, self.existing),
            }
        }
        Err(error.into_error("restore Redis keys", ErrorKind::Unavailable))
    }
}

/// Sends `SELECT` if another database was selected before. Its reply is then the caller's to read.
async fn select(commands: &mut Connection, current: &mut Option<u64>, db: u64) -> Result<bool> {
    // A connection begins in database 0, which is the only one of a cluster.
    if current.unwrap_or(0) == db {
        return Ok(false);
    }
    *current = Some(db);
    let mut out = Vec::new();
    resp::command(&mut out, &["SELECT", &db.to_string()]);
    commands.send(&out).await?;
    Ok(true)
}

fn selected(reply: Reply) -> Result<()> {
    match reply.failure() {
        None => Ok(()),
        Some(e) => Err(e.into_error("select Redis database", ErrorKind::TargetFailed)),
    }
}

pub(crate) fn is_redirect(error: &ServerError) -> bool {
    matches!(error.code(), "MOVED" | "ASK" | "TRYAGAIN")
}

/// Where `MOVED 3999 host:port` or `ASK …` points.
pub(crate) fn redirect_target(error: &ServerError) -> Option<Address> {
    let place = error.0.split(' ').nth(2)?;
    let (host, port) = place.rsplit_once(':')?;
    Some(Address { host: host.to_owned(), port: port.parse().ok()? })
}
