//! Loads the artifacts of a parallel backup.

use backup_core::{ArtifactReader, ByteStream, Bytes, Error, ErrorKind, Result};
use futures::TryStreamExt as _;
use serde_json::{Map, Value};
use tokio::sync::mpsc;

use super::archive::{Loader, copy};
use super::script::Parts;
use super::tar::{Member, Tar};
use crate::ident::{Qualified, column_list};
use crate::logical::sql::Splitter;
use crate::session::Session;

/// Chunks that wait for the connection.
const WAITING: usize = 4;

/// A table as an artifact's details name it.
pub(super) fn table_of(value: &Value) -> Option<(Qualified, Vec<String>)> {
    let text = |name: &str| value.get(name).and_then(Value::as_str);
    let columns = value.get("columns")?.as_array()?.iter().filter_map(Value::as_str);
    Some((Qualified::new(text("schema")?, text("name")?), columns.map(ToOwned::to_owned).collect()))
}

/// The statement that loads a table.
pub(super) fn copy_in(table: &Qualified, columns: &[String]) -> String {
    let list = column_list(columns);
    let list = if list.is_empty() { list } else { format!(" ({list})") };
    format!("COPY {}{list} FROM STDIN", table.sql())
}

fn unknown() -> Error {
    Error::corrupt("load table", "the details of an artifact do not say which table it holds")
}

impl Loader {
    /// Loads a part of a large table.
    pub(super) async fn rows(&self, reader: &ArtifactReader, details: &Map<String, Value>) -> Result<()> {
        let (table, columns) = details.get("table").and_then(table_of).ok_or_else(unknown)?;
        if self.only.as_ref().is_some_and(|only| !only.contains(&table)) {
            return Ok(());
        }
        self.load(&table, &columns, reader.stream().await?).await
    }

    /// Loads rows of one table.
    pub(super) async fn load(
        &self,
        table: &Qualified,
        columns: &[String],
        mut rows: ByteStream,
    ) -> Result<()> {
        let session = self.session().await?;
        let (sender, receiver) = mpsc::channel(WAITING);
        let statement = copy_in(&self.place(table), columns);
        let feeding = async {
            let sender = sender;
            while let Some(bytes) = rows.try_next().await? {
                if sender.send(bytes).await.is_err() {
                    // The other side says why.
                    break;
                }
            }
            Ok(())
        };
        // The COPY must not be completed when its input failed: `try_join` drops it then, which cancels it.
        let loading = copy(&session, &statement, receiver);
        both(feeding, loading).await
    }

    /// Loads small tables from a tar archive.
    pub(super) async fn small(&self, reader: &ArtifactReader, details: &Map<String, Value>) -> Result<()> {
        let tables: Vec<(Qualified, Vec<String>)> = details
            .get("tables")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(table_of)
            .collect();
        let session = self.session().await?;
        let mut tar = Tar::default();
        let mut stream = reader.selected().await?;
        let mut open: Option<Open> = None;
        let mut skipping = true;
        let mut loader = Small { session: Some(session), tables, loader: self };
        while let Some(bytes) = stream.try_next().await? {
            let mut members = Vec::new();
            tar.push(&bytes, |member| members.push(member))?;
            for member in members {
                match member {
                    Member::Begin(name) => {
                        let number = name.split_once('/').and_then(|(n, _)| n.parse::<usize>().ok());
                        let same = number.is_some() && open.as_ref().map(|o| o.number) == number;
                        if !same {
                            loader.close(open.take()).await?;
                            skipping = true;
                            if let Some(number) = number {
                                let wanted = loader.table(number)?;
                                if self.only.as_ref().is_none_or(|only| only.contains(&wanted)) {
                                    open = Some(loader.open(number)?);
                                    skipping = false;
                                }
                            }
                        }
                    }
                    Member::Data(data) if !skipping => {
                        let broken = match &open {
                            Some(open) => open.sender.send(data).await.is_err(),
                            None => false,
                        };
                        if broken {
                            loader.close(open.take()).await?;
                            return Err(Error::new(ErrorKind::Internal, "load table"));
                        }
                    }
                    Member::Data(_) => {}
                }
            }
        }
        tar.finish()?;
        loader.close(open.take()).await
    }

    /// Runs SQL text: sequences, large objects.
    pub(super) async fn sql(&self, reader: &ArtifactReader) -> Result<()> {
        // All of it is data, without the comments that would say so.
        let mut script = self.script_of(Parts { definitions: true, rows: true }).await?;
        let mut splitter = Splitter::default();
        let mut stream = reader.stream().await?;
        script.session().exec("prepare session", "SET search_path = ''").await?;
        while let Some(bytes) = stream.try_next().await? {
            script.feed(&mut splitter, &bytes).await?;
        }
        script.finish(splitter).await
    }
}

/// Runs both; an error of the first is the one reported, unless only the second has one.
async fn both(
    feeding: impl Future<Output = Result<()>>,
    loading: impl Future<Output = Result<()>>,
) -> Result<()> {
    let mut feeding = std::pin::pin!(feeding);
    let mut loading = std::pin::pin!(loading);
    tokio::select! {
        biased;
        fed = &mut feeding => {
            fed?;
            loading.await
        }
        loaded = &mut loading => loaded,
    }
}

/// A table that is being loaded.
struct Open {
    number: usize,
    sender: mpsc::Sender<Bytes>,
    task: tokio::task::JoinHandle<(Session, Result<()>)>,
}

struct Small<'a> {
    loader: &'a Loader,
    session: Option<Session>,
    tables: Vec<(Qualified, Vec<String>)>,
}

impl Small<'_> {
    fn table(&self, number: usize) -> Result<Qualified> {
        let entry = number.checked_sub(1).and_then(|i| self.tables.get(i));
        entry.map(|(table, _)| table.clone()).ok_or_else(unknown)
    }

    fn open(&mut self, number: usize) -> Result<Open> {
        let (table, columns) = number.checked_sub(1).and_then(|i| self.tables.get(i)).ok_or_else(unknown)?;
        let statement = copy_in(&self.loader.place(table), columns);
        let session = self.session.take().ok_or_else(|| Error::new(ErrorKind::Internal, "load table"))?;
        let (sender, receiver) = mpsc::channel(WAITING);
        let task = tokio::spawn(async move {
            let result = copy(&session, &statement, receiver).await;
            (session, result)
        });
        Ok(Open { number, sender, task })
    }

    async fn close(&mut self, open: Option<Open>) -> Result<()> {
        let Some(Open { sender, task, .. }) = open else { return Ok(()) };
        drop(sender);
        let (session, result) =
            task.await.map_err(|e| Error::new(ErrorKind::Internal, "load table").caused_by(e))?;
        self.session = Some(session);
        result
    }
}
