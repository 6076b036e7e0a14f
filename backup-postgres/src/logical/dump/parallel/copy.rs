//! Rows by `COPY … TO STDOUT` on the snapshot.

use std::sync::Arc;

use backup_core::{ByteStream, Bytes, CancellationToken, Error, ErrorKind, Result};
use bytes::BytesMut;
use futures::TryStreamExt as _;
use serde_json::{Value, json};

use super::tables::{Slice, Table};
use crate::error;
use crate::ident::literal;
use crate::logical::collected::{Collected, TableData};
use crate::logical::dump::Database;
use crate::logical::flow::{Out, flow};
use crate::logical::rows::{Counted, RowCounter};
use crate::session::Session;

/// Bytes gathered before they are given on: the server sends rows one by one.
const CHUNK: usize = 256 * 1024;
/// Bytes of rows in one member of a tar archive, which must know its size beforehand.
const MEMBER: usize = 1024 * 1024;
const TAR_BLOCK: usize = 512;

/// Reads one slice, calls `on_chunk` with whole rows, and returns what was counted.
async fn read<F>(
    session: &Session,
    sql: &str,
    chunk: usize,
    mut on_chunk: impl FnMut(Bytes) -> F,
) -> Result<Counted>
where
    F: Future<Output = Result<()>>,
{
    let mut rows = std::pin::pin!(session.copy_out(sql).await?);
    let mut counter = RowCounter::default();
    let mut gathered = BytesMut::with_capacity(chunk + 16 * 1024);
    while let Some(row) =
        rows.try_next().await.map_err(|e| error::source("read table", e).with("statement", sql))?
    {
        counter.push(&row);
        gathered.extend_from_slice(&row);
        if gathered.len() >= chunk {
            on_chunk(gathered.split().freeze()).await?;
            gathered.reserve(chunk + 16 * 1024);
        }
    }
    if !gathered.is_empty() {
        on_chunk(gathered.freeze()).await?;
    }
    Ok(counter.finish())
}

async fn open(database: &Database) -> Result<Session> {
    let session = database.exported.join(&database.config).await?;
    if database.encoding() == "SQL_ASCII" {
        session.exec("prepare session", "SET client_encoding = 'SQL_ASCII'").await?;
    }
    Ok(session)
}

/// A part of a large table, alone in its artifact.
pub(super) fn large(
    database: Arc<Database>,
    name: String,
    table: Table,
    slice: Slice,
    collected: Collected,
    cancelled: CancellationToken,
) -> ByteStream {
    flow(cancelled, move |out| async move {
        let session = open(&database).await?;
        let counted = read(&session, &table.copy_out(&slice), CHUNK, |chunk| out.send(chunk)).await?;
        let mut details = database.artifact_details();
        details.insert("table".to_owned(), table_json(&table));
        details.insert("part".to_owned(), json!(slice.number));
        details.insert("parts".to_owned(), json!(slice.of));
        let mut inner = collected.lock();
        let data = TableData {
            table: table.name,
            columns: table.columns,
            artifact: name.clone(),
            start: 0,
            end: counted.bytes,
            counted,
        };
        inner.table(&database.prefix, &data)?;
        inner.done(&name, details);
        Ok(())
    })
}

fn table_json(table: &Table) -> Value {
    json!({ "schema": table.name.schema, "name": table.name.name, "columns": table.columns })
}

/// Small tables, one after the other, in a tar archive: first `load.sql`, then each table's rows in members of
/// about 1 MiB.
pub(super) fn small(
    database: Arc<Database>,
    name: String,
    tables: Vec<Table>,
    collected: Collected,
    cancelled: CancellationToken,
) -> ByteStream {
    flow(cancelled, move |out| async move {
        let session = open(&database).await?;
        let mut offset = 0;
        let list: Vec<Value> = tables.iter().map(table_json).collect();
        for (number, table) in tables.into_iter().enumerate() {
            let start = offset;
            let mut members = Members { out: out.clone(), table: number + 1, next: 1, written: 0 };
            let counted = {
                let members = &mut members;
                let (sender, mut receiver) = tokio::sync::mpsc::channel::<Bytes>(1);
                let sql = table.copy_out(&Slice::default());
                let reading = async {
                    let sender = sender;
                    read(&session, &sql, MEMBER, |chunk| {
                        let sender = sender.clone();
                        async move { sender.send(chunk).await.map_err(|_| Error::cancelled("read table")) }
                    })
                    .await
                };
                let writing = async {
                    while let Some(chunk) = receiver.recv().await {
                        members.write(chunk).await?;
                    }
                    Ok(())
                };
                let (counted, ()) = tokio::try_join!(reading, writing)?;
                counted
            };
            offset += members.written;
            let data = TableData {
                table: table.name,
                columns: table.columns,
                artifact: name.clone(),
                start,
                end: offset,
                counted,
            };
            collected.lock().table(&database.prefix, &data)?;
        }
        out.send(load_script(&list)?).await?;
        out.send(tar_end()).await?;
        let mut details = database.artifact_details();
        details.insert("tables".to_owned(), list.into());
        collected.lock().done(&name, details);
        Ok(())
    })
}

struct Members {
    out: Out,
    table: usize,
    next: u32,
    written: u64,
}

impl Members {
    async fn write(&mut self, rows: Bytes) -> Result<()> {
        let header = tar_header(&format!("{:06}/{:06}.copy", self.table, self.next), rows.len())?;
        let padding = Bytes::from(vec![0; rows.len().next_multiple_of(TAR_BLOCK) - rows.len()]);
        self.next += 1;
        self.written += (header.len() + rows.len() + padding.len()) as u64;
        self.out.send(header).await?;
        self.out.send(rows).await?;
        self.out.send(padding).await
    }
}

/// The last member: a script for psql that loads what was unpacked beside it.
fn load_script(tables: &[Value]) -> Result<Bytes> {
    let mut script = String::from("\\set ON_ERROR_STOP on\n");
    for (number, table) in tables.iter().enumerate() {
        let text = |name: &str| table.get(name).and_then(Value::as_str).unwrap_or_default();
        let columns: Vec<String> = table
            .get("columns")
            .and_then(Value::as_array)
            .map(|all| all.iter().filter_map(Value::as_str).map(ToOwned::to_owned).collect())
            .unwrap_or_default();
        let list = crate::ident::column_list(&columns);
        let list = if list.is_empty() { list } else { format!(" ({list})") };
        let table = crate::ident::Qualified::new(text("schema"), text("name")).sql();
        // An empty table has no directory; `cat` then gives nothing. psql reads to the end of the line only.
        let program = literal(&format!("cat {:06}/*.copy 2>/dev/null || true", number + 1));
        let line = format!("\\copy {table}{list} FROM PROGRAM {program}").replace('\n', " ");
        script.push_str(&line);
        script.push('\n');
    }
    let mut member = tar_header("load.sql", script.len())?.to_vec();
    member.extend_from_slice(script.as_bytes());
    member.resize(member.len().next_multiple_of(TAR_BLOCK), 0);
    Ok(member.into())
}

/// The two empty blocks that end a tar archive.
fn tar_end() -> Bytes {
    Bytes::from(vec![0; 2 * TAR_BLOCK])
}

/// A POSIX ustar header of a regular file that anyone may read.
fn tar_header(name: &str, size: usize) -> Result<Bytes> {
    let mut header = vec![0_u8; TAR_BLOCK];
    let mut put = |at: usize, text: &[u8]| {
        if let Some(field) = header.get_mut(at..at + text.len()) {
            field.copy_from_slice(text);
        }
    };
    if size >= 1 << 33 {
        return Err(Error::new(ErrorKind::LimitExceeded, "write tar").message("a row has more than 8 GiB"));
    }
    put(0, name.as_bytes());
    put(100, b"0000644\0");
    put(108, b"0000000\0");
    put(116, b"0000000\0");
    put(124, format!("{size:011o}\0").as_bytes());
    put(136, b"00000000000\0");
    put(148, b"        ");
    put(156, b"0");
    put(257, b"ustar\x0000");
    let sum: u32 = header.iter().map(|&b| u32::from(b)).sum();
    if let Some(field) = header.get_mut(148..156) {
        field.copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
    Ok(header.into())
}
