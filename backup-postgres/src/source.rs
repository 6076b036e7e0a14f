//! [`PgDump`]: a PostgreSQL database, several, or a whole cluster as a source.

use std::path::PathBuf;

use async_trait::async_trait;
use backup_core::{CheckReport, Result, Snapshot, SnapshotRequest, Source};

use crate::config::PgConfig;
use crate::logical::check;
use crate::logical::dump::PgSnapshot;
use crate::logical::options::{DumpOptions, Scope};

/// How a dump is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum DumpFormat {
    /// `pg_dump`'s custom archive, uncompressed: the backup's own chain compresses it. One stream. Single tables can be
    /// read by ranges, and `pg_restore` reads it.
    #[default]
    Custom,
    /// SQL text, for `psql`. One stream.
    Plain,
    /// The schema as a custom archive, and the rows by concurrent COPY on the same snapshot: large tables in parts of
    /// their own, small ones together in a tar archive. The fastest way to back up and to restore.
    Parallel,
}

/// Backs up with SQL and `pg_dump`: a logical backup, which restores into any later major version.
///
/// ```no_run
/// use backup_postgres::{DumpFormat, PgDump};
///
/// let books = PgDump::connect("postgres://backup@db.example/books?sslmode=verify-full")?
///     .format(DumpFormat::Parallel)
///     .exclude_table_data("public.sessions");
/// # Ok::<(), backup_core::Error>(())
/// ```
///
/// # Consistency
///
/// Everything of one database is read at one exported snapshot. Sequences are not transactional in PostgreSQL and
/// are read at about that time. Several databases are each consistent in themselves, not with each other.
///
/// # Role
///
/// The least that can do it is a role with `LOGIN`, `CONNECT` on the database and membership in `pg_read_all_data`
/// (PostgreSQL 14 and later), plus `BYPASSRLS` where tables have row security. Large objects need their owner
/// or a superuser. [`check`](Source::check) names what is missing.
#[derive(Clone, Debug)]
pub struct PgDump {
    pub(crate) config: PgConfig,
    pub(crate) options: DumpOptions,
}

impl PgDump {
    /// The database of a connection URL; see [`PgConfig::parse`].
    pub fn connect(url: impl AsRef<str>) -> Result<Self> {
        Ok(Self::new(PgConfig::parse(url.as_ref())?))
    }

    /// The database of a configuration.
    pub fn new(config: PgConfig) -> Self {
        Self { config, options: DumpOptions::default() }
    }

    /// Sets the format.
    pub fn format(mut self, format: DumpFormat) -> Self {
        self.options.format = format;
        self
    }

    /// Backs up these databases of the server instead of the one connected to.
    pub fn databases<S: Into<String>>(mut self, names: impl IntoIterator<Item = S>) -> Self {
        self.options.scope = Scope::Databases(names.into_iter().map(Into::into).collect());
        self
    }

    /// Backs up every database that allows connections, except templates, and the globals: roles, memberships and
    /// tablespaces.
    pub fn cluster(mut self) -> Self {
        self.options.scope = Scope::Cluster;
        self
    }

    /// Whether the globals of a cluster include the (hashed) passwords of roles: yes unless set. Reading them needs a
    /// superuser or `pg_read_all_data`.
    pub fn role_passwords(mut self, yes: bool) -> Self {
        self.options.role_passwords = yes;
        self
    }

    /// Includes only tables (views, sequences) that match; may be given several times. A pattern of
    /// `pg_dump -t`: `public.user*`, `"Mixed Case"`.
    pub fn include_table(mut self, pattern: impl Into<String>) -> Self {
        self.options.include_tables.push(pattern.into());
        self
    }

    /// Leaves out tables that match: `pg_dump -T`.
    pub fn exclude_table(mut self, pattern: impl Into<String>) -> Self {
        self.options.exclude_tables.push(pattern.into());
        self
    }

    /// Includes only schemas that match: `pg_dump -n`.
    pub fn include_schema(mut self, pattern: impl Into<String>) -> Self {
        self.options.include_schemas.push(pattern.into());
        self
    }

    /// Leaves out schemas that match: `pg_dump -N`.
    pub fn exclude_schema(mut self, pattern: impl Into<String>) -> Self {
        self.options.exclude_schemas.push(pattern.into());
        self
    }

    /// Keeps the definition but leaves out the rows of tables that match: `pg_dump --exclude-table-data`.
    pub fn exclude_table_data(mut self, pattern: impl Into<String>) -> Self {
        self.options.exclude_table_data.push(pattern.into());
        self
    }

    /// Backs up definitions only, no rows.
    pub fn schema_only(mut self) -> Self {
        self.options.schema = true;
        self.options.data = false;
        self
    }

    /// Backs up rows only, no definitions.
    pub fn data_only(mut self) -> Self {
        self.options.schema = false;
        self.options.data = true;
        self
    }

    /// Whether large objects are included: yes unless set.
    pub fn large_objects(mut self, yes: bool) -> Self {
        self.options.large_objects = yes;
        self
    }

    /// How many connections a [`DumpFormat::Parallel`] backup reads with: one per core unless set.
    pub fn jobs(mut self, jobs: usize) -> Self {
        self.options.jobs = jobs.max(1);
        self
    }

    /// Uses this `pg_dump`, or the programs of this directory, instead of the newest found on the machine.
    pub fn pg_dump(mut self, path: impl Into<PathBuf>) -> Self {
        self.options.tools.path = Some(path.into());
        self
    }

    /// Runs PostgreSQL's programs through other programs: `["docker", "exec", "-i", "-e", "PGPASSWORD", "db"]`. The
    /// password is in the environment of the first of them only; to hand it on (as `-e PGPASSWORD` does here), or to
    /// keep a pass-file on the other side, is up to the prefix.
    pub fn command_prefix<S: Into<String>>(mut self, argv: impl IntoIterator<Item = S>) -> Self {
        self.options.tools.prefix = argv.into_iter().map(Into::into).collect();
        self
    }

    /// How PostgreSQL's programs reach the server, where that differs from how this process does: inside a container
    /// that is often `postgres://role@localhost`.
    pub fn programs_connect_to(mut self, config: PgConfig) -> Self {
        self.options.tools.reach = Some(config);
        self
    }
}

#[async_trait]
impl Source for PgDump {
    fn kind(&self) -> &'static str {
        "postgres"
    }

    async fn check(&self) -> Result<CheckReport> {
        check::check(&self.config, &self.options).await
    }

    async fn snapshot(&self, request: SnapshotRequest<'_>) -> Result<Box<dyn Snapshot>> {
        Ok(Box::new(
            PgSnapshot::begin(&self.config, &self.options, request.selection, request.cancelled).await?,
        ))
    }
}
