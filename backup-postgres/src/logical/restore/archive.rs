//! Loads a custom archive: definitions through `pg_restore`'s printed SQL, rows straight into COPY.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use backup_core::{ArtifactReader, ByteStream, Bytes, Error, ErrorKind, Result};
use bytes::{BufMut as _, BytesMut};
use futures::{SinkExt as _, TryStreamExt as _};
use tokio::io::AsyncWriteExt as _;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::parallel::copy_in;
use super::script::{Parts, Script, copy_failed};
use super::traffic::Traffic;
use super::{RestoreOptions, Warnings};
use crate::config::PgConfig;
use crate::ident::Qualified;
use crate::logical::archive::{BlockEvent, BlockKind, Blocks, Entry, Head, HeadReader, Progress};
use crate::logical::collected::parse_copy;
use crate::logical::sql::{Splitter, SqlEvent, Statement};
use crate::session::Session;

/// Bytes of rows gathered before they are handed to a connection.
const CHUNK: usize = 128 * 1024;
/// Chunks that wait for a connection.
const WAITING: usize = 4;
/// Bytes of a large object written by one statement.
const PIECE: usize = 64 * 1024;

/// What a loader needs.
#[derive(Clone, Debug)]
pub(super) struct Loader {
    pub(super) config: PgConfig,
    pub(super) options: RestoreOptions,
    pub(super) warnings: Warnings,
    /// Statements for every session that loads rows.
    pub(super) prepare: String,
    /// Settings of every session while nobody uses what it fills; empty where somebody does.
    pub(super) staging: &'static str,
    /// Who works on which table of it.
    pub(super) traffic: Traffic,
    /// The tables whose rows are wanted; `None` is all.
    pub(super) only: Option<Arc<BTreeSet<Qualified>>>,
    /// The schema all tables go to, instead of their own.
    pub(super) schema: Option<String>,
}

impl Loader {
    pub(super) async fn session(&self) -> Result<Session> {
        let session = Session::canonical(&self.config).await?;
        session.exec("prepare session", self.staging).await?;
        // A locale that does not exist here is a matter of printing only; rows say whether they arrived.
        let _ = session.try_exec(&self.prepare).await;
        Ok(session)
    }

    /// Where a table of the backup is here.
    pub(super) fn place(&self, table: &Qualified) -> Qualified {
        match &self.schema {
            Some(schema) => Qualified::new(schema, &table.name),
            None => table.clone(),
        }
    }

    fn wants(&self, table: &Qualified) -> bool {
        self.only.as_ref().is_none_or(|only| only.contains(table))
    }

    /// Runs what was asked for: definitions, rows, or both.
    pub(super) async fn script(&self) -> Result<Script> {
        self.script_of(Parts { definitions: self.options.schema, rows: self.options.data }).await
    }

    /// Runs definitions, also where only rows are restored and the definitions are those of the database that exists.
    pub(super) async fn definer(&self) -> Result<Script> {
        self.script_of(Parts { definitions: true, rows: false }).await
    }

    /// Runs these parts of SQL text.
    pub(super) async fn script_of(&self, parts: Parts) -> Result<Script> {
        let session = Session::connect(&self.config).await?;
        session.exec("prepare session", self.staging).await?;
        let mut script = Script::new(
            self.config.clone(),
            session,
            self.options.clone(),
            parts,
            Arc::clone(&self.warnings),
            self.traffic.clone(),
        );
        script.also_set(self.staging);
        if let Some(only) = self.only.clone() {
            // Rows of tables that were not chosen are absent, and a reference to them would not hold.
            let names: BTreeSet<String> = only.iter().map(Qualified::sql).collect();
            script.foreign_keys_only(Arc::new(move |text| foreign_key_within(text, &names)));
        }
        Ok(script)
    }

    /// Runs what `pg_restore` prints of one section of an archive without data.
    pub(super) async fn section(&self, script: &mut Script, head: &[u8], section: &str) -> Result<()> {
        let arguments = [format!("--section={section}"), "--file=-".to_owned()];
        self.through_pg_restore(script, &arguments, futures::stream::iter([Ok(Bytes::copy_from_slice(head))]))
            .await
    }

    /// Runs what `pg_restore` prints when it is fed `input`.
    async fn through_pg_restore(
        &self,
        script: &mut Script,
        arguments: &[String],
        input: impl futures::Stream<Item = Result<Bytes>> + Send,
    ) -> Result<()> {
        let program = self.options.tools.find("pg_restore", 0).await?;
        let mut running = program.start(&self.config, arguments, true)?;
        let mut stdin = running.stdin.take();
        let feeding = async {
            let mut input = std::pin::pin!(input);
            while let Some(bytes) = input.try_next().await? {
                let Some(pipe) = &mut stdin else { continue };
                // It may stop reading when it has what it needs; its exit status says whether all is well.
                if pipe.write_all(&bytes).await.is_err() {
                    stdin = None;
                }
            }
            drop(stdin.take());
            Ok(())
        };
        let replaying = async {
            let mut splitter = Splitter::default();
            loop {
                let bytes = running.read().await?;
                if bytes.is_empty() {
                    break;
                }
                script.feed(&mut splitter, &bytes).await?;
            }
            script.finish(splitter).await
        };
        tokio::try_join!(feeding, replaying)?;
        running.finish().await.map_err(|e| {
            Error::new(ErrorKind::TargetFailed, "run pg_restore")
                .message("pg_restore cannot read the archive")
                .caused_by(e)
        })?;
        Ok(())
    }

    /// Restores a custom archive: all of it, or the wanted tables by ranges.
    pub(super) async fn archive(&self, reader: &ArtifactReader) -> Result<()> {
        let mut stream = reader.stream().await?;
        let Some((head, rest)) = read_head(&mut stream).await? else {
            drop(stream);
            if self.only.is_some() {
                return Err(Error::new(ErrorKind::Unsupported, "restore tables").message(
                    "this archive's version or compression is not known, so single tables cannot be read from it; restore \
                     the whole into another database",
                ));
            }
            let mut script = self.script().await?;
            let stream = reader.stream().await?;
            return self.through_pg_restore(&mut script, &["--file=-".to_owned()], stream).await;
        };
        let bare = head.without_data();
        let mut script = self.script().await?;
        if self.options.schema {
            self.section(&mut script, &bare, "pre-data").await?;
        }
        if self.options.data {
            // Sequences, and from version 17 on the large objects, without their content.
            self.section(&mut script, &bare, "data").await?;
            if self.only.is_some() && reader.parts().is_some() {
                drop(stream);
                self.parts(&head, reader).await?;
            } else {
                self.blocks(&head, rest, head.bytes.len() as u64, stream).await?;
            }
        }
        if self.options.schema {
            self.section(&mut script, &bare, "post-data").await?;
        }
        Ok(())
    }

    /// Loads the selected parts of an archive by ranges.
    pub(super) async fn parts(&self, head: &Head, reader: &ArtifactReader) -> Result<()> {
        let begin = head.bytes.len() as u64;
        let whole = std::slice::from_ref(&(begin..reader.plain_size())).to_vec();
        for part in reader.parts().unwrap_or(&whole).iter().filter(|p| p.start >= begin && p.end > p.start) {
            let stream = reader.range(part.clone()).await?;
            self.blocks(head, Vec::new(), part.start, stream).await?;
        }
        Ok(())
    }

    /// The statements `pg_restore` prints for one section of an archive without data.
    pub(super) async fn statements(&self, head: &[u8], section: &str) -> Result<Vec<Statement>> {
        let program = self.options.tools.find("pg_restore", 0).await?;
        let arguments = [format!("--section={section}"), "--file=-".to_owned()];
        let mut running = program.start(&self.config, &arguments, true)?;
        let stdin = running.stdin.take();
        let feeding = async {
            if let Some(mut pipe) = stdin {
                // It stops reading when it has what it needs; its exit status says whether all is well.
                let _ = pipe.write_all(head).await;
            }
            Ok(())
        };
        let mut all = Vec::new();
        let reading = async {
            let mut splitter = Splitter::default();
            let mut on = |event: SqlEvent<'_>| {
                if let SqlEvent::Statement(statement) = event {
                    all.push(statement);
                }
                Ok(())
            };
            loop {
                let bytes = running.read().await?;
                if bytes.is_empty() {
                    return splitter.finish(on);
                }
                splitter.push(&bytes, &mut on)?;
            }
        };
        tokio::try_join!(feeding, reading)?;
        running.finish().await?;
        Ok(all)
    }

    /// Loads data blocks, several tables at a time.
    async fn blocks(&self, head: &Head, rest: Vec<u8>, offset: u64, mut stream: ByteStream) -> Result<()> {
        let entries: HashMap<i32, &Entry> = head.entries.iter().map(|e| (e.dump_id, e)).collect();
        let mut blocks = Blocks::at(head, offset);
        let mut loading =
            Loading { loader: self, running: Vec::new(), current: Current::Nothing, objects: None };
        let mut next = Some(Bytes::from(rest));
        while let Some(bytes) = next {
            let mut steps = Vec::new();
            blocks.push(&bytes, |event| {
                step(&mut steps, event, &bytes);
                Ok(())
            })?;
            for step in steps {
                loading.take(step, &entries).await?;
            }
            next = stream.try_next().await?;
        }
        blocks.finish()?;
        loading.finish().await
    }
}

/// Whether a foreign key connects two of `names` (quoted, qualified).
fn foreign_key_within(text: &str, names: &BTreeSet<String>) -> bool {
    let Some((_, references)) = text.split_once(" REFERENCES ") else { return false };
    let Some((target, _)) = crate::ident::read_qualified(references) else { return false };
    let table = text.strip_prefix("ALTER TABLE ").map(|t| t.strip_prefix("ONLY ").unwrap_or(t));
    let Some((table, _)) = table.and_then(crate::ident::read_qualified) else { return false };
    names.contains(&target.sql()) && names.contains(&table.sql())
}

/// The head of an archive and the bytes behind it; `None` where this build cannot read the rows.
pub(super) async fn read_head(stream: &mut ByteStream) -> Result<Option<(Box<Head>, Vec<u8>)>> {
    let mut reader = HeadReader::default();
    while let Some(bytes) = stream.try_next().await? {
        match reader.push(&bytes) {
            Ok(Progress::More) => {}
            Ok(Progress::Complete(head, rest)) => return Ok(head.uncompressed.then_some((head, rest))),
            Err(error) if error.kind() == ErrorKind::Unsupported => return Ok(None),
            Err(error) => return Err(error),
        }
    }
    Err(Error::corrupt("read archive", "the archive ends within its table of contents"))
}

enum Step {
    Begin(i32, BlockKind),
    Object(u32),
    ObjectEnd,
    Data(BytesMut),
    End,
}

fn step(steps: &mut Vec<Step>, event: BlockEvent<'_>, bytes: &Bytes) {
    match event {
        BlockEvent::Begin { dump_id, kind, .. } => steps.push(Step::Begin(dump_id, kind)),
        BlockEvent::LargeObject { oid } => steps.push(Step::Object(oid)),
        BlockEvent::LargeObjectEnd => steps.push(Step::ObjectEnd),
        BlockEvent::End { .. } => steps.push(Step::End),
        // Archives have a chunk per row: gather them.
        BlockEvent::Data(data) => {
            if let Some(Step::Data(gathered)) = steps.last_mut() {
                gathered.put_slice(data);
            } else {
                let mut gathered = BytesMut::with_capacity(bytes.len().min(CHUNK).max(data.len()));
                gathered.put_slice(data);
                steps.push(Step::Data(gathered));
            }
        }
    }
}

enum Current {
    Nothing,
    Skip,
    Table(mpsc::Sender<Bytes>),
    Statements(Box<Script>, Splitter),
    Object { oid: u32, offset: u64, gathered: BytesMut },
}

struct Loading<'a> {
    loader: &'a Loader,
    running: Vec<Task>,
    current: Current,
    objects: Option<Session>,
}

/// A task that is stopped when it is dropped.
struct Task(JoinHandle<Result<()>>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Task {
    async fn join(mut self) -> Result<()> {
        (&mut self.0).await.map_err(|e| Error::new(ErrorKind::Internal, "load table").caused_by(e))?
    }
}

impl Loading<'_> {
    async fn take(&mut self, step: Step, entries: &HashMap<i32, &Entry>) -> Result<()> {
        match step {
            Step::Begin(_, BlockKind::LargeObjects) => {
                if self.loader.only.is_none() {
                    self.objects = Some(self.loader.session().await?);
                }
                self.current = Current::Nothing;
            }
            Step::Begin(dump_id, BlockKind::Table) => {
                let entry = entries.get(&dump_id).copied().ok_or_else(|| {
                    Error::corrupt(
                        "read archive",
                        "a block of data belongs to no entry of the table of contents",
                    )
                })?;
                self.begin(entry).await?;
            }
            Step::Object(oid) => {
                if let Some(session) = &self.objects {
                    let create = format!(
                        "SELECT pg_catalog.lo_create({oid}) WHERE NOT EXISTS \
                         (SELECT FROM pg_catalog.pg_largeobject_metadata WHERE oid = {oid})"
                    );
                    session.rows("restore large object", &create).await?;
                    self.current = Current::Object { oid, offset: 0, gathered: BytesMut::new() };
                } else {
                    self.current = Current::Skip;
                }
            }
            Step::Data(data) => match &mut self.current {
                Current::Nothing | Current::Skip => {}
                Current::Table(sender) => {
                    if sender.send(data.freeze()).await.is_err() {
                        return self.why().await;
                    }
                }
                Current::Statements(script, splitter) => script.feed(splitter, &data).await?,
                Current::Object { oid, offset, gathered } => {
                    gathered.unsplit(data);
                    while gathered.len() >= PIECE {
                        let piece = gathered.split_to(PIECE);
                        put(self.objects.as_ref(), *oid, *offset, &piece).await?;
                        *offset += piece.len() as u64;
                    }
                }
            },
            Step::ObjectEnd => {
                if let Current::Object { oid, offset, gathered } =
                    std::mem::replace(&mut self.current, Current::Nothing)
                {
                    put(self.objects.as_ref(), oid, offset, &gathered).await?;
                }
            }
            Step::End => match std::mem::replace(&mut self.current, Current::Nothing) {
                Current::Statements(mut script, splitter) => script.finish(splitter).await?,
                _ => self.objects = None,
            },
        }
        Ok(())
    }

    async fn begin(&mut self, entry: &Entry) -> Result<()> {
        let table = Qualified::new(&entry.namespace, &entry.tag);
        if !self.loader.wants(&table) {
            self.current = Current::Skip;
            return Ok(());
        }
        let Some((_, columns)) = parse_copy(&entry.copy) else {
            if self.loader.schema.is_some() {
                return Err(Error::new(ErrorKind::Unsupported, "restore tables")
                    .message(
                        "the archive has rows as INSERT statements; restore the whole into another database",
                    )
                    .with("table", table.display()));
            }
            // Rows as INSERT statements.
            self.current = Current::Statements(Box::new(self.loader.script().await?), Splitter::default());
            return Ok(());
        };
        while self.running.len() >= self.loader.options.jobs {
            self.running.remove(0).join().await?;
        }
        let (sender, receiver) = mpsc::channel(WAITING);
        // Through the partitioned parent, or wherever the dump says, unless the tables go elsewhere.
        let statement = match &self.loader.schema {
            Some(_) => copy_in(&self.loader.place(&table), &columns),
            None => entry.copy.trim().trim_end_matches(';').to_owned(),
        };
        let loader = self.loader.clone();
        self.running.push(Task(tokio::spawn(async move {
            let session = loader.session().await?;
            copy(&session, &statement, receiver).await
        })));
        self.current = Current::Table(sender);
        Ok(())
    }

    /// Why the task of the current table stopped taking rows.
    async fn why(&mut self) -> Result<()> {
        match self.running.pop() {
            Some(task) => task.join().await.and_then(|()| {
                Err(Error::new(ErrorKind::Internal, "load table")
                    .message("rows came after the end of a table"))
            }),
            None => Err(Error::new(ErrorKind::Internal, "load table")),
        }
    }

    async fn finish(mut self) -> Result<()> {
        self.current = Current::Nothing;
        for task in std::mem::take(&mut self.running) {
            task.join().await?;
        }
        Ok(())
    }
}

/// Writes a piece of a large object.
async fn put(session: Option<&Session>, oid: u32, offset: u64, data: &[u8]) -> Result<()> {
    let Some(session) = session.filter(|_| !data.is_empty()) else { return Ok(()) };
    let mut hex = String::with_capacity(data.len() * 2);
    for byte in data {
        for digit in [byte >> 4, byte & 15] {
            hex.push(char::from_digit(u32::from(digit), 16).unwrap_or('0'));
        }
    }
    let sql = format!("SELECT pg_catalog.lo_put({oid}, {offset}, '\\x{hex}')");
    session.rows("restore large object", &sql).await.map_err(|e| e.with("large object", oid))?;
    Ok(())
}

/// Loads rows that arrive in chunks.
pub(super) async fn copy(session: &Session, statement: &str, mut rows: mpsc::Receiver<Bytes>) -> Result<()> {
    let mut sink = std::pin::pin!(session.copy_in(statement).await?);
    while let Some(bytes) = rows.recv().await {
        sink.send(bytes).await.map_err(|e| copy_failed(e, statement))?;
    }
    sink.finish().await.map_err(|e| copy_failed(e, statement))?;
    Ok(())
}
