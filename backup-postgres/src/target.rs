//! [`PgRestore`]: a PostgreSQL database as a target.

use std::path::PathBuf;

use async_trait::async_trait;
use backup_core::{ArtifactFormat, Atomicity, Restore, RestorePlan, RestoreTarget, Result};

use crate::config::PgConfig;
use crate::logical::options::{COPY, COPY_TAR, CUSTOM, EXTRA_SQL, GLOBALS, PLAIN, SCHEMA, TOC};
use crate::logical::restore::{DatabasesRestore, Into as Place, RestoreOptions, TablesRestore};

/// Restores logical backups made by [`PgDump`](crate::PgDump), and files made by `pg_dump`.
///
/// ```no_run
/// use backup_postgres::PgRestore;
///
/// let copy = PgRestore::database("postgres://admin@db.example/postgres", "books_copy")?
///     .role("books_owner", "books_copy_owner")
///     .jobs(4);
/// # Ok::<(), backup_core::Error>(())
/// ```
///
/// # How a restore goes
///
/// A database is restored under a name of its own (`books_restoring_1a2b3c4d`), proved by reading every row back, and
/// renamed. Into a database that exists: if it is empty, the restored one takes its place; otherwise only with
/// `replace`, and the old one stays as `books_old_20261120t020000z` until it is dropped. The owner, privileges,
/// settings, limit, comment, encoding and locale of an existing database are kept. The role needs `CREATEDB`, and must
/// be a member of the roles that own what it restores, or a superuser; see [`no_owner`](Self::no_owner).
///
/// With a selection, all definitions are restored, rows of the selected tables only, and foreign keys among them.
#[derive(Clone, Debug)]
pub struct PgRestore {
    config: PgConfig,
    place: Place,
    options: RestoreOptions,
}

impl PgRestore {
    /// Into the database `name` of the server at `url`. The URL's own database is only used to connect to.
    pub fn database(url: impl AsRef<str>, name: impl Into<String>) -> Result<Self> {
        Ok(Self::new(PgConfig::parse(url.as_ref())?, name))
    }

    /// Into the database `name` of a server.
    pub fn new(config: PgConfig, name: impl Into<String>) -> Self {
        Self { config, place: Place::Database(name.into()), options: RestoreOptions::default() }
    }

    /// Every database of a backup under its own name, after creating the roles and tablespaces that are missing.
    pub fn cluster(url: impl AsRef<str>) -> Result<Self> {
        let config = PgConfig::parse(url.as_ref())?;
        Ok(Self { config, place: Place::Cluster, options: RestoreOptions::default() })
    }

    /// Selected tables into the database of the URL, while it is in use. What happens to tables that are there:
    ///
    /// * by default nothing: the restored tables, with their indexes, constraints and sequences, are put into a
    ///   schema of their own ([`side_schema`](Self::side_schema));
    /// * with `replace`, the rows of each table are exchanged in one transaction. The table itself stays, and with
    ///   it views, triggers, policies and privileges. Foreign keys that refer to it are taken off and put on again,
    ///   which checks every row; nothing is ever removed by `CASCADE`. The old rows stay in a dated schema until
    ///   they are dropped. A table that does not exist is created as the backup has it;
    /// * with [`insert_missing`](Self::insert_missing), only rows whose key is absent are added.
    ///
    /// Works with all three formats; in SQL text, all of it is read to find the definitions.
    pub fn tables(url: impl AsRef<str>) -> Result<Self> {
        let config = PgConfig::parse(url.as_ref())?;
        Ok(Self { config, place: Place::Tables, options: RestoreOptions::default() })
    }

    /// With [`tables`](Self::tables): the schema that takes the restored tables. It must not exist yet.
    /// `restored_<time>_<random>` unless set.
    pub fn side_schema(mut self, name: impl Into<String>) -> Self {
        self.options.side_schema = Some(name.into());
        self
    }

    /// With [`tables`](Self::tables): inserts the rows whose key is missing (`ON CONFLICT DO NOTHING`) and changes
    /// nothing else. The table needs a primary key or a unique constraint.
    pub fn insert_missing(mut self) -> Self {
        self.options.insert_missing = true;
        self
    }

    /// Which database of a backup of several to restore.
    pub fn from_database(mut self, name: impl Into<String>) -> Self {
        self.options.from_database = Some(name.into());
        self
    }

    /// How many connections load rows, build indexes and prove: one per core unless set.
    pub fn jobs(mut self, jobs: usize) -> Self {
        self.options.jobs = jobs.max(1);
        self
    }

    /// Gives everything to the restoring role instead of its owners.
    pub fn no_owner(mut self) -> Self {
        self.options.owners = false;
        self
    }

    /// Restores no `GRANT`s.
    pub fn no_privileges(mut self) -> Self {
        self.options.privileges = false;
        self
    }

    /// Uses role `to` wherever the backup names role `from`. May be given several times.
    pub fn role(mut self, from: impl Into<String>, to: impl Into<String>) -> Self {
        self.options.roles.insert(from.into(), to.into());
        self
    }

    /// Restores definitions only. Rows are then neither restored nor proved.
    pub fn schema_only(mut self) -> Self {
        (self.options.schema, self.options.data) = (true, false);
        self
    }

    /// Restores rows only, into the definitions of the database that exists: they are copied into the staged database, and
    /// tables the backup has no rows of come out empty. Needs `replace`, because what is there is replaced as a whole.
    /// With [`tables`](Self::tables), rows are what is restored anyway, and a table that does not exist is refused.
    pub fn data_only(mut self) -> Self {
        (self.options.schema, self.options.data) = (false, true);
        self
    }

    /// Goes on after a statement that failed, and reports it as a warning. The proof still has to hold.
    pub fn continue_on_error(mut self) -> Self {
        self.options.stop_at_errors = false;
        self
    }

    /// Lets `replace` bar new sessions from the database and end those that use it. Otherwise they are named in an
    /// error and nothing is replaced.
    pub fn disconnect_others(mut self) -> Self {
        self.options.disconnect_others = true;
        self
    }

    /// Uses this `pg_restore`, or the programs of this directory, instead of the newest found on the machine.
    pub fn pg_restore(mut self, path: impl Into<PathBuf>) -> Self {
        self.options.tools.path = Some(path.into());
        self
    }
}

#[async_trait]
impl RestoreTarget for PgRestore {
    fn accepts(&self, format: &ArtifactFormat) -> bool {
        [CUSTOM, TOC, PLAIN, GLOBALS, SCHEMA, COPY, COPY_TAR, EXTRA_SQL].contains(format)
    }

    fn atomicity(&self) -> Atomicity {
        Atomicity::Swap
    }

    async fn begin(&self, plan: &RestorePlan) -> Result<Box<dyn Restore>> {
        if matches!(self.place, Place::Tables) {
            return Ok(Box::new(TablesRestore::begin(&self.config, &self.options, plan).await?));
        }
        Ok(Box::new(DatabasesRestore::begin(&self.config, &self.options, &self.place, plan).await?))
    }
}
