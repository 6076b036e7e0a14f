//! Where keys go: into their databases, or into spare ones that change places with them at the end.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use backup_core::{Error, ErrorKind, Result};
use chrono::{Duration, Utc};

use crate::connect::Connection;
use crate::resp::Reply;

/// The key that marks a database as the staging place of a restore. Its value is when the restore began, in
/// milliseconds since 1970.
pub(crate) const MARKER: &[u8] = b"backup-redis:staging";
/// Staging places older than this are left over from a process that died.
const STALE: Duration = Duration::hours(24);
/// Databases looked for; servers have 16 unless configured otherwise.
const MOST: u64 = 1024;

/// Which database the keys of a database go to.
#[derive(Clone, Debug)]
pub(crate) struct Databases(Arc<Mutex<Plan>>);

#[derive(Debug)]
struct Plan {
    staged: bool,
    spare: Vec<u64>,
    taken: BTreeMap<u64, u64>,
}

impl Databases {
    /// Keys go into their own databases.
    pub(crate) fn in_place() -> Self {
        Self(Arc::new(Mutex::new(Plan { staged: false, spare: Vec::new(), taken: BTreeMap::new() })))
    }

    /// Keys go into one spare database for each.
    pub(crate) fn staged(spare: Vec<u64>) -> Self {
        Self(Arc::new(Mutex::new(Plan { staged: true, spare, taken: BTreeMap::new() })))
    }

    /// Where the keys of `db` go.
    pub(crate) fn of(&self, db: u64) -> Result<u64> {
        let mut plan = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(to) = plan.taken.get(&db) {
            return Ok(*to);
        }
        let to = if plan.staged { plan.spare.pop().ok_or_else(no_spare)? } else { db };
        plan.taken.insert(db, to);
        Ok(to)
    }

    /// Databases of the backup that were met, and where their keys went.
    pub(crate) fn taken(&self) -> BTreeMap<u64, u64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).taken.clone()
    }

    /// Every database that was set aside.
    pub(crate) fn all_spare(&self) -> Vec<u64> {
        let plan = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !plan.staged {
            return Vec::new();
        }
        plan.spare.iter().chain(plan.taken.values()).copied().collect()
    }
}

pub(crate) fn no_spare() -> Error {
    Error::new(ErrorKind::StoreInadequate, "stage Redis restore").message(
        "there are not enough empty databases to restore beside the present data: raise `databases` on the server, \
         or restore in place with a safety backup",
    )
}

/// A database of the server.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Database {
    pub(crate) number: u64,
    pub(crate) keys: i64,
    /// When the restore that it stages began, if it is a staging place.
    pub(crate) staging_since: Option<i64>,
}

/// All databases of the server.
pub(crate) async fn databases(connection: &mut Connection) -> Result<Vec<Database>> {
    let mut found = Vec::new();
    for number in 0..MOST {
        if matches!(connection.command(&["SELECT", &number.to_string()]).await?, Reply::Error(_)) {
            break;
        }
        let keys = connection.call("count Redis keys", &["DBSIZE"]).await?.int().unwrap_or(0);
        let mut staging_since = None;
        if keys > 0
            && let Reply::Bulk(since) = connection.command(&[b"GET", MARKER]).await?
        {
            staging_since = Some(std::str::from_utf8(&since).ok().and_then(|t| t.parse().ok()).unwrap_or(0));
        }
        found.push(Database { number, keys, staging_since });
    }
    connection.call("count Redis keys", &["SELECT", "0"]).await?;
    Ok(found)
}

/// Empties staging places that a process left behind when it died. Returns how many.
pub(crate) async fn sweep(connection: &mut Connection, databases: &mut [Database]) -> Result<u64> {
    let stale = (Utc::now() - STALE).timestamp_millis();
    let mut swept = 0;
    for database in databases.iter_mut().filter(|d| d.staging_since.is_some_and(|since| since < stale)) {
        empty(connection, database.number).await?;
        *database = Database { number: database.number, keys: 0, staging_since: None };
        swept += 1;
    }
    Ok(swept)
}

/// Marks empty databases as staging places.
pub(crate) async fn mark(connection: &mut Connection, databases: &[u64]) -> Result<()> {
    let now = Utc::now().timestamp_millis().to_string();
    for db in databases {
        connection.call("stage Redis restore", &["SELECT", &db.to_string()]).await?;
        let set = connection.call("stage Redis restore", &[b"SET", MARKER, now.as_bytes(), b"NX"]).await?;
        let keys = connection.call("stage Redis restore", &["DBSIZE"]).await?.int().unwrap_or(0);
        if set == Reply::Nil || keys != 1 {
            return Err(Error::new(ErrorKind::TargetFailed, "stage Redis restore")
                .message("a database that was empty a moment ago is in use now: try again")
                .with("database", db)
                .retryable(true));
        }
    }
    connection.call("stage Redis restore", &["SELECT", "0"]).await?;
    Ok(())
}

/// Removes all keys of a database.
pub(crate) async fn empty(connection: &mut Connection, db: u64) -> Result<()> {
    connection.call("empty Redis database", &["SELECT", &db.to_string()]).await?;
    connection.call("empty Redis database", &["FLUSHDB"]).await?;
    connection.call("empty Redis database", &["SELECT", "0"]).await?;
    Ok(())
}

/// Exchanges databases, all in one step. With `unmark`, the second of each pair is a staging place no longer.
pub(crate) async fn swap(connection: &mut Connection, pairs: &[(u64, u64)], unmark: bool) -> Result<()> {
    const SWAP: &str = "exchange Redis databases";
    connection.call(SWAP, &["MULTI"]).await?;
    for (db, spare) in pairs {
        let (db, spare) = (db.to_string(), spare.to_string());
        if unmark {
            connection.call(SWAP, &["SELECT", &spare]).await?;
            connection.call(SWAP, &[b"DEL", MARKER]).await?;
        }
        connection.call(SWAP, &["SWAPDB", &spare, &db]).await?;
    }
    connection.call(SWAP, &["SELECT", "0"]).await?;
    let results = connection.call(SWAP, &["EXEC"]).await?;
    for result in results.array() {
        if let Reply::Error(e) = result {
            return Err(e.clone().into_error(SWAP, ErrorKind::TargetFailed));
        }
    }
    if matches!(results, Reply::Array(_)) {
        Ok(())
    } else {
        Err(Error::new(ErrorKind::TargetFailed, SWAP).message("the server did not carry the exchange out"))
    }
}
