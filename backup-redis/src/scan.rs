//! The way round where replication is forbidden: `SCAN` and `DUMP`, written as an RDB.

use std::collections::HashSet;
use std::hash::{BuildHasher as _, RandomState};

use backup_core::{ByteStream, CancellationToken, Error, ErrorKind, Result};
use bytes::{Buf as _, Bytes};
use chrono::Utc;
use futures::StreamExt as _;
use tokio::sync::mpsc::{Sender, channel};

use crate::connect::Connection;
use crate::discover::{Server, info, rdb_version};
use crate::error::{closed, protocol};
use crate::rdb::crc64::Crc64;
use crate::rdb::writer::RdbWriter;
use crate::resp::{self, Reply};

const SCAN_KEYS: &str = "scan Redis keys";
/// Keys asked for at a time.
const BATCH: &str = "512";
/// Bytes after a value in the reply to `DUMP`: version and checksum.
const FOOTER: u64 = 10;
/// Bytes gathered before they are passed on.
const CHUNK: usize = 256 * 1024;
/// Databases looked at where the server does not say how many have keys.
const DATABASES: u64 = 16;

/// The bytes of an RDB made by reading all keys of all databases.
pub(crate) async fn bytes(
    mut connection: Connection,
    server: &Server,
    cancelled: CancellationToken,
) -> Result<ByteStream> {
    let databases = databases(&mut connection, server).await?;
    let (chunks, passed) = channel(4);
    let mut scan = Scan::new(connection, server, chunks.clone());
    tokio::spawn(async move {
        let done = tokio::select! {
            biased;
            () = cancelled.cancelled() => Err(Error::cancelled(SCAN_KEYS)),
            () = chunks.closed() => return,
            done = scan.run(databases) => done,
        };
        if let Err(e) = done {
            // A reader that is gone wants no error either.
            let _ = chunks.send(Err(e)).await;
        }
    });
    Ok(futures::stream::unfold(passed, |mut passed| async { passed.recv().await.map(|item| (item, passed)) })
        .boxed())
}

/// Numbers of the databases that have keys.
async fn databases(connection: &mut Connection, server: &Server) -> Result<Vec<u64>> {
    if server.cluster {
        return Ok(vec![0]);
    }
    let known: Vec<u64> = info(connection, "keyspace")
        .await?
        .keys()
        .filter_map(|name| name.strip_prefix("db")?.parse().ok())
        .collect();
    if !known.is_empty() {
        return Ok(known);
    }
    // Empty, or INFO is forbidden: try them one after the other.
    let mut found = Vec::new();
    for db in 0..DATABASES {
        if matches!(connection.command(&["SELECT", &db.to_string()]).await?, Reply::Error(_)) {
            break;
        }
        found.push(db);
    }
    Ok(found)
}

/// Reads keys and writes them as an RDB into a channel.
pub(crate) struct Scan {
    pub(crate) connection: Connection,
    chunks: Sender<Result<Bytes>>,
    writer: Option<RdbWriter>,
    /// Keys written: `SCAN` may give one twice, and a server refuses an RDB with a key in it twice.
    seen: HashSet<(u64, u64)>,
    hashers: (RandomState, RandomState),
    /// Whether the server knows `PEXPIRETIME` (7.0).
    exact_expiry: bool,
    server: Server,
}

impl Scan {
    pub(crate) fn new(connection: Connection, server: &Server, chunks: Sender<Result<Bytes>>) -> Self {
        Self {
            connection,
            chunks,
            writer: None,
            seen: HashSet::new(),
            hashers: (RandomState::new(), RandomState::new()),
            exact_expiry: true,
            server: server.clone(),
        }
    }

    async fn run(&mut self, databases: Vec<u64>) -> Result<()> {
        for db in databases {
            self.connection.call(SCAN_KEYS, &["SELECT", &db.to_string()]).await?;
            self.seen.clear();
            let mut cursor = "0".to_owned();
            loop {
                let reply = self.connection.call(SCAN_KEYS, &["SCAN", &cursor, "COUNT", BATCH]).await?;
                let (Some(next), Some(keys)) =
                    (reply.array().first().and_then(Reply::text), reply.array().get(1))
                else {
                    return Err(protocol(SCAN_KEYS, "the reply to SCAN cannot be read"));
                };
                let keys: Vec<Bytes> = keys
                    .array()
                    .iter()
                    .filter_map(|key| match key {
                        Reply::Bulk(key) => Some(key.clone()),
                        _ => None,
                    })
                    .filter(|key| {
                        self.seen.insert((self.hashers.0.hash_one(key), self.hashers.1.hash_one(key)))
                    })
                    .collect();
                self.dump(db, &keys).await?;
                if next == "0" {
                    break;
                }
                next.clone_into(&mut cursor);
            }
        }
        self.functions().await?;
        self.finish().await
    }

    /// Ends the RDB.
    pub(crate) async fn finish(&mut self) -> Result<()> {
        let last = self.writer(None).finish();
        self.pass(last).await
    }

    /// The writer; made when the version of the server's values is known. `None`: there is no value to tell it.
    fn writer(&mut self, version: Option<u32>) -> RdbWriter {
        self.writer.take().unwrap_or_else(|| {
            let mut writer = RdbWriter::new(version.unwrap_or(9));
            writer.aux("redis-ver", &self.server.version);
            writer.aux("ctime", &Utc::now().timestamp().to_string());
            writer
        })
    }

    async fn pass(&mut self, bytes: Vec<u8>) -> Result<()> {
        if !bytes.is_empty() && self.chunks.send(Ok(bytes.into())).await.is_err() {
            return Err(Error::cancelled(SCAN_KEYS));
        }
        Ok(())
    }

    /// Reads and writes these keys; those that are gone by now are left out.
    pub(crate) async fn dump(&mut self, db: u64, keys: &[Bytes]) -> Result<()> {
        let mut out = Vec::new();
        let expiry = if self.exact_expiry { &b"PEXPIRETIME"[..] } else { b"PTTL" };
        for key in keys {
            resp::command(&mut out, &[expiry, key]);
            resp::command(&mut out, &[b"DUMP", &key[..]]);
        }
        self.connection.send(&out).await?;
        for key in keys {
            let expires = match self.connection.reply().await? {
                Reply::Error(e) if e.is_unknown_command() && self.exact_expiry => {
                    // The rest of this batch has the same answer: take it again the other way.
                    return self.without_expiretime(db, keys, key).await;
                }
                Reply::Error(e) => return Err(e.into_error(SCAN_KEYS, ErrorKind::SourceFailed)),
                reply => reply.int().unwrap_or(-1),
            };
            let expires = match expires {
                ..0 => None,
                at if self.exact_expiry => Some(at),
                left => Some(Utc::now().timestamp_millis().saturating_add(left)),
            };
            self.value(db, key, expires).await?;
        }
        Ok(())
    }

    /// Drains a batch that asked with a command the server does not have, and takes it with `PTTL`.
    async fn without_expiretime(&mut self, db: u64, keys: &[Bytes], first: &Bytes) -> Result<()> {
        debug_assert_eq!(keys.first(), Some(first));
        for n in 0..keys.len() {
            if n > 0 {
                self.connection.reply().await?;
            }
            if let Ok(length) = self.connection.long_string().await? {
                self.skip(length + 2).await?;
            }
        }
        self.exact_expiry = false;
        Box::pin(self.dump(db, keys)).await
    }

    async fn skip(&mut self, mut n: u64) -> Result<()> {
        while n > 0 {
            self.connection.fill(1).await?;
            let here = usize::try_from(n).unwrap_or(usize::MAX).min(self.connection.input.len());
            self.connection.input.advance(here);
            n -= here as u64;
        }
        Ok(())
    }

    /// Reads the reply to `DUMP` and writes the key. The value passes in pieces, so that its size does not matter.
    async fn value(&mut self, db: u64, key: &Bytes, expires: Option<i64>) -> Result<()> {
        let length = match self.connection.long_string().await? {
            Ok(length) => length,
            // Deleted or expired meanwhile.
            Err(Reply::Nil) => return Ok(()),
            Err(Reply::Error(e)) => return Err(e.into_error(SCAN_KEYS, ErrorKind::SourceFailed)),
            Err(_) => return Err(protocol(SCAN_KEYS, "the reply to DUMP cannot be read")),
        };
        let Some(mut left) = length.checked_sub(FOOTER).filter(|&n| n > 0) else {
            return Err(protocol(SCAN_KEYS, "the reply to DUMP is too short"));
        };
        // The first value tells the version, unless it is too long to look at its end.
        let small = length <= CHUNK as u64;
        let version = if self.writer.is_none() {
            Some(if small { self.footer_version(length).await? } else { rdb_version(&self.server) })
        } else {
            None
        };
        let mut writer = self.writer(version);
        let mut crc = Crc64::new();
        self.connection.fill(1).await?;
        let code = self.connection.input.first().copied().unwrap_or_default();
        crc.update(&[code]);
        self.connection.input.advance(1);
        left -= 1;
        writer.key(db, expires, code, key);
        while left > 0 {
            self.connection.fill(1).await?;
            let here = usize::try_from(left).unwrap_or(usize::MAX).min(self.connection.input.len());
            let piece = self.connection.input.split_to(here);
            crc.update(&piece);
            writer.raw(&piece);
            left -= here as u64;
            if writer.len() >= CHUNK {
                let chunk = writer.take();
                self.pass(chunk).await?;
            }
        }
        self.writer = Some(writer);
        let footer = usize::try_from(FOOTER).unwrap_or_default();
        self.connection.fill(footer + 2).await?;
        let footer = self.connection.input.split_to(footer + 2);
        if let Some((version, rest)) = footer.split_first_chunk::<2>() {
            crc.update(version);
            let stored = rest.first_chunk::<8>().map_or(0, |b| u64::from_le_bytes(*b));
            if stored != 0 && stored != crc.value() {
                return Err(Error::corrupt(SCAN_KEYS, "the checksum of a dumped value is wrong"));
            }
        }
        Ok(())
    }

    /// The version in the footer of the value that is next in the input.
    async fn footer_version(&mut self, length: u64) -> Result<u32> {
        let length = usize::try_from(length).map_err(|_| closed(SCAN_KEYS))?;
        self.connection.fill(length).await?;
        let footer = length - usize::try_from(FOOTER).unwrap_or_default();
        Ok(self
            .connection
            .input
            .get(footer..)
            .and_then(|b| b.first_chunk::<2>())
            .map_or(9, |b| u32::from(u16::from_le_bytes(*b))))
    }

    /// Libraries of functions, where the server has them and lets them be read.
    async fn functions(&mut self) -> Result<()> {
        let reply = self.connection.command(&["FUNCTION", "LIST", "WITHCODE"]).await?;
        for library in reply.array() {
            let code = library
                .array()
                .chunks_exact(2)
                .find(|pair| pair.first().and_then(Reply::text) == Some("library_code"))
                .and_then(|pair| pair.get(1))
                .and_then(Reply::bytes);
            if let Some(code) = code {
                let mut writer = self.writer(Some(10));
                writer.function(code);
                self.writer = Some(writer);
            }
        }
        Ok(())
    }
}

impl Scan {
    /// The connection, to go on with.
    pub(crate) fn into_connection(self) -> Connection {
        self.connection
    }
}
