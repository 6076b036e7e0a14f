//! Reads keys back right after they were written: where other keys are beside them, no sum over all can prove them.

use std::collections::BTreeMap;

use backup_core::{Error, ErrorKind, Result};
use bytes::Bytes;
use chrono::Utc;
use tokio::sync::mpsc::channel;

use super::batch::Expected;
use crate::connect::Connection;
use crate::discover::Server;
use crate::feed::Feed;
use crate::rdb::canonical::{Canonical, Hashed, LargeKey};
use crate::rdb::{RdbReader, Record, Visitor};
use crate::scan::Scan;

/// A key that expires within this time, in milliseconds, may be gone already.
const MARGIN: i64 = 5_000;

/// Reads `keys` of database `db` (the one selected on the connection) and compares them with what is expected.
pub(crate) async fn verify(
    connection: Connection,
    server: &Server,
    db: u64,
    keys: Vec<(Bytes, Expected)>,
) -> Result<Connection> {
    let names: Vec<Bytes> = keys.iter().map(|(key, _)| key.clone()).collect();
    let (chunks, mut passed) = channel(2);
    let mut scan = Scan::new(connection, server, chunks);
    let compare =
        Compare { expected: keys.into_iter().map(|(k, e)| (k.to_vec(), e)).collect(), ..Compare::default() };
    let mut feed = Feed::start(RdbReader::new(), compare);
    let reading = async {
        scan.dump(db, &names).await?;
        scan.finish().await?;
        Ok::<_, Error>(scan.into_connection())
    };
    let comparing = async {
        while let Some(chunk) = passed.recv().await {
            feed.push(chunk?).await?;
        }
        feed.finish().await
    };
    let (connection, compare) = tokio::try_join!(reading, comparing)?;
    let now = Utc::now().timestamp_millis();
    match compare.expected.iter().find(|(_, e)| e.expires_at.is_none_or(|at| at > now + MARGIN)) {
        None => Ok(connection),
        Some((key, _)) => Err(mismatch(key, "is not there")),
    }
}

fn mismatch(key: &[u8], what: &'static str) -> Error {
    Error::new(ErrorKind::ProofMismatch, "read back Redis keys")
        .message("a key that was just restored differs from the backup: another client may have written it")
        .with("key", String::from_utf8_lossy(key))
        .with("found", what)
}

/// Hashes keys as they come and takes those that are right off the list.
#[derive(Default)]
struct Compare {
    expected: BTreeMap<Vec<u8>, Expected>,
    canonical: Canonical,
    large: Option<(LargeKey, Vec<u8>)>,
}

impl Compare {
    /// The record as it is to be hashed: in the database the backup names, and with the exact expiry where the
    /// server tells it only to the second.
    fn adjusted<'a>(&self, record: &Record<'a>) -> Result<(Record<'a>, Vec<u8>, u64)> {
        let key = record.key.to_vec()?;
        let mut record = *record;
        let Some(expected) = self.expected.get(&key) else {
            return Err(mismatch(&key, "it was not asked for"));
        };
        if let (Some(found), Some(wanted)) = (record.expires_at, expected.expires_at)
            && (found - wanted).abs() <= 1000
        {
            record.expires_at = Some(wanted);
        }
        Ok((record, key, expected.db))
    }

    fn compare(&mut self, key: &[u8], hashed: &Hashed) -> Result<()> {
        match self.expected.remove(key) {
            // Fields of a hash that expired meanwhile, and values too packed to compare, are let pass.
            Some(expected)
                if expected.digest == hashed.digest
                    || expected.opaque
                    || hashed.opaque
                    || hashed.changes_at != expected.expires_at =>
            {
                Ok(())
            }
            _ => Err(mismatch(key, "another value")),
        }
    }
}

impl Visitor for Compare {
    fn value(&mut self, record: &Record<'_>, value: &[u8]) -> Result<()> {
        let (record, key, db) = self.adjusted(record)?;
        let hashed = self.canonical.whole(&record, db, value)?;
        self.compare(&key, &hashed)
    }

    fn large(&mut self, record: &Record<'_>) -> Result<()> {
        let (record, key, db) = self.adjusted(record)?;
        self.large = Some((LargeKey::begin(&mut self.canonical, &record, db)?, key));
        Ok(())
    }

    fn piece(&mut self, bytes: &[u8]) -> Result<()> {
        match &mut self.large {
            Some((large, _)) => Ok(large.piece(&mut self.canonical, bytes)?),
            None => Ok(()),
        }
    }

    fn large_end(&mut self) -> Result<()> {
        let Some((large, key)) = self.large.take() else { return Ok(()) };
        let hashed = large.end(&mut self.canonical)?;
        self.compare(&key, &hashed)
    }
}
