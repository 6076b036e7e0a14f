//! Runs the statements of a dump: in order, and side by side where order does not matter.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use backup_core::{Bytes, Error, ErrorKind, Result, Warning};
use bytes::BytesMut;
use futures::SinkExt as _;
use tokio_postgres::CopyInSink;
use tokio_postgres::error::SqlState;

use super::statement::prepared;
use super::traffic::{Access, Traffic};
use super::{RestoreOptions, Warnings, warn};
use crate::config::PgConfig;
use crate::error::{self, PgError, quotable};
use crate::logical::sql::{Splitter, SqlEvent, Statement};
use crate::session::Session;

/// Bytes of rows gathered before they are sent.
const CHUNK: usize = 64 * 1024;

/// What of SQL text is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Parts {
    pub(super) definitions: bool,
    pub(super) rows: bool,
}

/// Statements that may run beside others of the same kind: building an index or a constraint looks at one table,
/// and takes nearly all of the time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Index,
    ForeignKey,
}

fn kind_of(entry: &str) -> Option<Kind> {
    match entry {
        "INDEX" | "CONSTRAINT" => Some(Kind::Index),
        "FK CONSTRAINT" => Some(Kind::ForeignKey),
        _ => None,
    }
}

/// Statements that belong together.
#[derive(Debug)]
struct Job {
    entry_number: u64,
    statements: Vec<String>,
}

/// Decides whether a foreign key is wanted, by its statement.
pub(super) type KeepKey = Arc<dyn Fn(&str) -> bool + Send + Sync>;

/// A COPY that is being fed: where rows go, its statement, rows gathered.
type OpenCopy = (Pin<Box<CopyInSink<Bytes>>>, String, BytesMut);

/// Runs SQL in a database that is being restored.
pub(super) struct Script {
    config: PgConfig,
    session: Session,
    options: RestoreOptions,
    parts: Parts,
    warnings: Warnings,
    /// Settings at the beginning of the text, for further sessions.
    preamble: Vec<String>,
    tablespace: Option<String>,
    pending: Vec<Job>,
    pending_kind: Option<Kind>,
    copy: Option<OpenCopy>,
    skipping_copy: bool,
    skip_foreign_keys_except: Option<KeepKey>,
    traffic: Traffic,
}

impl std::fmt::Debug for Script {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Script").field("config", &self.config).finish_non_exhaustive()
    }
}

enum Owned {
    Statement(Statement),
    CopyBegin(Statement),
    CopyData(BytesMut),
    CopyEnd,
    Command(String),
}

impl Script {
    pub(super) fn new(
        config: PgConfig,
        session: Session,
        options: RestoreOptions,
        parts: Parts,
        warnings: Warnings,
        traffic: Traffic,
    ) -> Self {
        Self {
            config,
            session,
            options,
            parts,
            warnings,
            preamble: Vec::new(),
            tablespace: None,
            pending: Vec::new(),
            pending_kind: None,
            copy: None,
            skipping_copy: false,
            skip_foreign_keys_except: None,
            traffic,
        }
    }

    /// Further sessions begin with this setting.
    pub(super) fn also_set(&mut self, setting: &str) {
        self.preamble.push(setting.to_owned());
    }

    /// Leaves out foreign keys whose statement `keep` does not want.
    pub(super) fn foreign_keys_only(&mut self, keep: KeepKey) {
        self.skip_foreign_keys_except = Some(keep);
    }

    pub(super) fn session(&self) -> &Session {
        &self.session
    }

    /// Runs what is in `bytes`; `splitter` keeps what is not complete yet.
    pub(super) async fn feed(&mut self, splitter: &mut Splitter, bytes: &[u8]) -> Result<()> {
        let mut events = VecDeque::new();
        splitter.push(bytes, |event| {
            collect(&mut events, event);
            Ok(())
        })?;
        self.run(events).await
    }

    /// Runs the rest, and waits for everything.
    pub(super) async fn finish(&mut self, splitter: Splitter) -> Result<()> {
        let mut events = VecDeque::new();
        splitter.finish(|event| {
            collect(&mut events, event);
            Ok(())
        })?;
        self.run(events).await?;
        self.flush().await
    }

    async fn run(&mut self, events: VecDeque<Owned>) -> Result<()> {
        for event in events {
            match event {
                Owned::Statement(statement) => self.statement(statement).await?,
                Owned::CopyBegin(statement) => {
                    if self.parts.rows {
                        self.flush().await?;
                        let sink = self.session.copy_in(&statement.text).await?;
                        self.copy = Some((Box::pin(sink), statement.text, BytesMut::new()));
                    } else {
                        self.skipping_copy = true;
                    }
                }
                Owned::CopyData(data) => {
                    if let Some((sink, text, gathered)) = &mut self.copy {
                        gathered.unsplit(data);
                        if gathered.len() >= CHUNK {
                            let full = gathered.split().freeze();
                            sink.send(full).await.map_err(|e| copy_failed(e, text))?;
                        }
                    }
                }
                Owned::CopyEnd => {
                    self.skipping_copy = false;
                    if let Some((mut sink, text, gathered)) = self.copy.take() {
                        if !gathered.is_empty() {
                            sink.send(gathered.freeze()).await.map_err(|e| copy_failed(e, &text))?;
                        }
                        sink.as_mut().finish().await.map_err(|e| copy_failed(e, &text))?;
                    }
                }
                Owned::Command(line) => self.command(&line)?,
            }
        }
        Ok(())
    }

    /// psql's own lines: `\restrict` guards psql against its other commands and means nothing here.
    fn command(&self, line: &str) -> Result<()> {
        let word = line.trim_start_matches('\\').split_whitespace().next().unwrap_or("");
        match word {
            "restrict" | "unrestrict" => Ok(()),
            "connect" | "c" => {
                warn(
                    &self.warnings,
                    Warning::new(
                        "connect-ignored",
                        "the text changes database with \\connect; everything goes into the one being restored",
                    ),
                );
                Ok(())
            }
            _ => Err(Error::new(ErrorKind::Unsupported, "replay SQL")
                .message("this psql command is not something a dump contains; run the file with psql")
                .with("command", word.escape_debug())),
        }
    }

    async fn statement(&mut self, statement: Statement) -> Result<()> {
        let Some(text) = prepared(&statement, &self.options) else { return Ok(()) };
        let setting = text.starts_with("SET ") || text.starts_with("SELECT pg_catalog.set_config(");
        if setting && statement.entry.is_empty() {
            self.preamble.push(text.clone());
        }
        if text.starts_with("SET default_tablespace") {
            self.tablespace = Some(text.clone());
        }
        let is_row = matches!(
            statement.entry.as_str(),
            "SEQUENCE SET" | "BLOBS" | "BLOB" | "BLOB METADATA" | "TABLE DATA"
        );
        if !setting && !(if is_row { self.parts.rows } else { self.parts.definitions }) {
            return Ok(());
        }
        if ["CREATE DATABASE ", "DROP DATABASE ", "ALTER DATABASE "].iter().any(|s| text.starts_with(s)) {
            return Ok(());
        }
        if statement.entry == "FK CONSTRAINT"
            && let Some(keep) = &self.skip_foreign_keys_except
            && !keep(&text)
        {
            return Ok(());
        }
        match kind_of(&statement.entry) {
            Some(kind) => {
                if self.pending_kind.is_some_and(|pending| pending != kind) {
                    self.flush().await?;
                }
                self.pending_kind = Some(kind);
                match self.pending.last_mut() {
                    Some(job) if job.entry_number == statement.entry_number => job.statements.push(text),
                    _ => {
                        let mut statements: Vec<String> = self.tablespace.iter().cloned().collect();
                        statements.push(text);
                        self.pending.push(Job { entry_number: statement.entry_number, statements });
                    }
                }
                Ok(())
            }
            // A comment follows what it is about.
            None if statement.entry == "COMMENT" && !self.pending.is_empty() => {
                if let Some(job) = self.pending.last_mut() {
                    job.statements.push(text);
                }
                Ok(())
            }
            None => {
                if !setting {
                    self.flush().await?;
                }
                let result = execute(&self.session, &text).await;
                settle(result, &text, &statement.entry, &self.options, &self.warnings)
            }
        }
    }

    /// Runs the statements that wait, on as many connections as allowed.
    pub(super) async fn flush(&mut self) -> Result<()> {
        let jobs = std::mem::take(&mut self.pending);
        let kind = self.pending_kind.take();
        if jobs.is_empty() {
            return Ok(());
        }
        let workers = self.options.jobs.min(jobs.len());
        // A foreign key locks out writers only, and its check reads both tables.
        let access = |job: &Job| match kind {
            Some(Kind::Index) => Access::of_indexes(&job.statements),
            _ => Access::Unknown,
        };
        let jobs: VecDeque<_> = jobs.into_iter().map(|job| (access(&job), job)).collect();
        self.traffic.announce(jobs.iter().map(|(access, _)| access));
        let queue = Mutex::new(jobs);
        let mut sessions = Vec::new();
        for _ in 1..workers {
            let session = Session::connect(&self.config).await?;
            for setting in &self.preamble {
                let result = execute(&session, setting).await;
                settle(result, setting, "", &self.options, &self.warnings)?;
            }
            sessions.push(session);
        }
        let entry = if kind == Some(Kind::ForeignKey) { "FK CONSTRAINT" } else { "INDEX" };
        let all = std::iter::once(&self.session).chain(&sessions);
        let running =
            all.map(|session| work(session, &queue, &self.traffic, entry, &self.options, &self.warnings));
        futures::future::try_join_all(running).await?;
        Ok(())
    }
}

async fn work(
    session: &Session,
    queue: &Mutex<VecDeque<(Access, Job)>>,
    traffic: &Traffic,
    entry: &str,
    options: &RestoreOptions,
    warnings: &Warnings,
) -> Result<()> {
    while let Some((job, _pass)) = traffic.take(queue).await {
        for text in &job.statements {
            let mut result = execute(session, text).await;
            // Two foreign keys between the same tables may lock them in opposite order.
            for _ in 0..5 {
                match &result {
                    Err(e) if e.code() == Some(&SqlState::T_R_DEADLOCK_DETECTED) => {
                        result = execute(session, text).await;
                    }
                    _ => break,
                }
            }
            settle(result, text, entry, options, warnings)?;
        }
    }
    Ok(())
}

async fn execute(session: &Session, text: &str) -> std::result::Result<(), tokio_postgres::Error> {
    session.try_exec(text).await
}

/// Decides what a failed statement means.
fn settle(
    result: std::result::Result<(), tokio_postgres::Error>,
    text: &str,
    entry: &str,
    options: &RestoreOptions,
    warnings: &Warnings,
) -> Result<()> {
    let Err(failure) = result else { return Ok(()) };
    // A newer pg_dump sets what an older server does not have.
    if text.starts_with("SET ") && failure.code() == Some(&SqlState::UNDEFINED_OBJECT) {
        return Ok(());
    }
    let denied = failure.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE);
    if (denied && text.starts_with("COMMENT ON EXTENSION"))
        || (!options.stop_at_errors && failure.code().is_some())
    {
        let said = PgError::from(failure);
        warn(warnings, Warning::new("statement-failed", format!("{}: {said}", quotable(text))));
        return Ok(());
    }
    let missing_role = failure.code() == Some(&SqlState::UNDEFINED_OBJECT)
        && failure.as_db_error().is_some_and(|e| e.message().starts_with("role "));
    let message = if missing_role {
        "a role the backup names does not exist here; restore the globals first, map the role with `role`, or leave \
         owners and privileges out with `no_owner` and `no_privileges`"
    } else {
        "a statement of the backup failed"
    };
    let kind = match error::kind_of(&failure) {
        kind @ (ErrorKind::Unavailable | ErrorKind::StorageFull | ErrorKind::PermissionDenied) => kind,
        _ => ErrorKind::TargetFailed,
    };
    Err(Error::new(kind, "replay SQL")
        .message(message)
        .with("entry", entry)
        .with("statement", quotable(text))
        .caused_by(PgError::from(failure)))
}

pub(super) fn copy_failed(failure: tokio_postgres::Error, statement: &str) -> Error {
    error::database("load table", failure).with("statement", quotable(statement))
}

fn collect(events: &mut VecDeque<Owned>, event: SqlEvent<'_>) {
    match event {
        SqlEvent::Statement(statement) => events.push_back(Owned::Statement(statement)),
        SqlEvent::CopyBegin { statement, .. } => events.push_back(Owned::CopyBegin(statement)),
        SqlEvent::CopyData(data) => match events.back_mut() {
            Some(Owned::CopyData(gathered)) => gathered.extend_from_slice(data),
            _ => events.push_back(Owned::CopyData(BytesMut::from(data))),
        },
        SqlEvent::CopyEnd { .. } => events.push_back(Owned::CopyEnd),
        SqlEvent::Command(line) => events.push_back(Owned::Command(line)),
    }
}
