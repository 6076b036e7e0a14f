//! Reads `pg_dump`'s output as it passes: which rows of which table are where, and what they prove.

use std::collections::HashMap;

use backup_core::{ErrorKind, Hasher, Proof, Result, Warning};

use super::archive::{BlockEvent, BlockKind, Blocks, Entry, Head, HeadReader, Progress};
use super::collected::{
    Inner, SequenceValue, TableData, large_object_proof, parse_copy, parse_setval, string_literal,
};
use super::rows::{Counted, RowCounter};
use super::sql::{Splitter, SqlEvent};
use crate::ident::Qualified;

/// Watches a custom archive.
#[derive(Debug)]
pub(crate) struct ArchiveMeter {
    state: ArchiveState,
    current: Option<(i32, u64, RowCounter)>,
    tables: Vec<(i32, std::ops::Range<u64>, Counted)>,
    objects: LargeObjects,
    offsets: HashMap<i32, u64>,
}

#[derive(Debug)]
enum ArchiveState {
    Head(HeadReader),
    Blocks(Box<Head>, Blocks),
    /// A version this build does not know: the bytes pass unseen.
    Unknown,
}

/// Large objects as they pass.
#[derive(Debug, Default)]
struct LargeObjects {
    open: Option<(u32, Hasher)>,
    proof: Proof,
    bytes: u64,
    range: Option<std::ops::Range<u64>>,
}

impl LargeObjects {
    fn begin(&mut self, oid: u32) {
        self.open = Some((oid, Hasher::new()));
    }

    fn data(&mut self, data: &[u8]) {
        if let Some((_, hasher)) = &mut self.open {
            hasher.update(data);
            self.bytes += data.len() as u64;
        }
    }

    fn end(&mut self) {
        if let Some((oid, hasher)) = self.open.take() {
            self.proof.merge(&large_object_proof(oid, &hasher.finish()));
        }
    }
}

impl ArchiveMeter {
    pub(crate) fn new() -> Self {
        Self {
            state: ArchiveState::Head(HeadReader::default()),
            current: None,
            tables: Vec::new(),
            objects: LargeObjects::default(),
            offsets: HashMap::new(),
        }
    }

    /// Sees the next bytes.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Result<()> {
        match &mut self.state {
            ArchiveState::Unknown => Ok(()),
            ArchiveState::Blocks(..) => self.blocks(bytes),
            ArchiveState::Head(reader) => match reader.push(bytes) {
                Ok(Progress::More) => Ok(()),
                Ok(Progress::Complete(head, _)) if !head.uncompressed => {
                    self.state = ArchiveState::Unknown;
                    Ok(())
                }
                Ok(Progress::Complete(head, rest)) => {
                    let blocks = Blocks::behind(&head);
                    self.state = ArchiveState::Blocks(head, blocks);
                    self.blocks(&rest)
                }
                Err(error) if error.kind() == ErrorKind::Unsupported => {
                    self.state = ArchiveState::Unknown;
                    Ok(())
                }
                Err(error) => Err(error),
            },
        }
    }

    fn blocks(&mut self, bytes: &[u8]) -> Result<()> {
        let ArchiveState::Blocks(_, blocks) = &mut self.state else { return Ok(()) };
        let (current, tables, objects, offsets) =
            (&mut self.current, &mut self.tables, &mut self.objects, &mut self.offsets);
        blocks.push(bytes, |event| {
            match event {
                BlockEvent::Begin { dump_id, kind, offset } => {
                    offsets.insert(dump_id, offset);
                    match kind {
                        BlockKind::Table => *current = Some((dump_id, offset, RowCounter::default())),
                        BlockKind::LargeObjects => {
                            let start = objects.range.as_ref().map_or(offset, |r| r.start);
                            objects.range = Some(start..offset);
                        }
                    }
                }
                BlockEvent::LargeObject { oid } => objects.begin(oid),
                BlockEvent::LargeObjectEnd => objects.end(),
                BlockEvent::Data(data) => match current {
                    Some((_, _, counter)) => counter.push(data),
                    None => objects.data(data),
                },
                BlockEvent::End { offset } => match current.take() {
                    Some((dump_id, start, counter)) => {
                        tables.push((dump_id, start..offset, counter.finish()));
                    }
                    None => {
                        if let Some(range) = &mut objects.range {
                            range.end = offset;
                        }
                    }
                },
            }
            Ok(())
        })
    }

    /// Records what passed. Returns the head with its offsets filled in, unless the version is unknown.
    pub(crate) fn finish(self, into: &mut Inner, database: &str, artifact: &str) -> Result<Option<Vec<u8>>> {
        let (head, blocks) = match self.state {
            ArchiveState::Blocks(head, blocks) => (head, blocks),
            ArchiveState::Head(_) => {
                return Err(super::collected::incomplete("the archive ended within its table of contents"));
            }
            ArchiveState::Unknown => {
                into.report.warnings.push(Warning::new(
                    "archive-version-unknown",
                    "this pg_dump writes an archive version this build cannot read: no proof of rows, no table offsets",
                ));
                return Ok(None);
            }
        };
        blocks.finish()?;
        let by_id: HashMap<i32, &Entry> = head.entries.iter().map(|e| (e.dump_id, e)).collect();
        for (dump_id, range, counted) in self.tables {
            let Some(entry) = by_id.get(&dump_id).filter(|e| e.desc == "TABLE DATA") else { continue };
            let columns = parse_copy(&entry.copy).map(|(_, columns)| columns).unwrap_or_default();
            into.table(
                database,
                &TableData {
                    table: Qualified::new(&entry.namespace, &entry.tag),
                    columns,
                    artifact: artifact.to_owned(),
                    start: range.start,
                    end: range.end,
                    counted,
                },
            )?;
        }
        let sequences = head.entries.iter().filter(|e| e.desc == "SEQUENCE SET");
        for value in sequences.filter_map(|e| parse_setval(&e.defn)) {
            into.sequence(database, artifact, &value)?;
        }
        if let Some(range) = self.objects.range {
            into.large_objects(database, artifact, range, self.objects.bytes, self.objects.proof)?;
        }
        Ok(Some(head.with_offsets(|id| self.offsets.get(&id).copied())))
    }
}

/// Watches SQL text.
#[derive(Debug)]
pub(crate) struct SqlMeter {
    splitter: Splitter,
    found: SqlFound,
}

#[derive(Debug, Default)]
struct SqlFound {
    current: Option<(Qualified, Vec<String>, u64, RowCounter)>,
    tables: Vec<(Qualified, Vec<String>, std::ops::Range<u64>, Counted)>,
    sequences: Vec<SequenceValue>,
    objects: LargeObjects,
}

impl SqlMeter {
    pub(crate) fn new() -> Self {
        Self { splitter: Splitter::default(), found: SqlFound::default() }
    }

    /// Sees the next bytes.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Result<()> {
        let found = &mut self.found;
        self.splitter.push(bytes, |event| {
            found.on(&event);
            Ok(())
        })
    }

    /// Records what passed.
    pub(crate) fn finish(self, into: &mut Inner, database: &str, artifact: &str) -> Result<()> {
        let Self { splitter, mut found } = self;
        splitter.finish(|event| {
            found.on(&event);
            Ok(())
        })?;
        for (table, columns, range, counted) in found.tables {
            let data = TableData {
                table,
                columns,
                artifact: artifact.to_owned(),
                start: range.start,
                end: range.end,
                counted,
            };
            into.table(database, &data)?;
        }
        for value in &found.sequences {
            into.sequence(database, artifact, value)?;
        }
        if found.objects.proof.count > 0 {
            into.large_objects(database, artifact, 0..0, found.objects.bytes, found.objects.proof)?;
        }
        Ok(())
    }
}

impl SqlFound {
    fn on(&mut self, event: &SqlEvent<'_>) {
        match event {
            SqlEvent::CopyBegin { statement, offset } => {
                self.current = parse_copy(&statement.text)
                    .map(|(table, columns)| (table, columns, *offset, RowCounter::default()));
            }
            SqlEvent::CopyData(data) => {
                if let Some((_, _, _, counter)) = &mut self.current {
                    counter.push(data);
                }
            }
            SqlEvent::CopyEnd { offset } => {
                if let Some((table, columns, start, counter)) = self.current.take() {
                    self.tables.push((table, columns, start..*offset, counter.finish()));
                }
            }
            SqlEvent::Statement(statement) => match statement.entry.as_str() {
                "SEQUENCE SET" => self.sequences.extend(parse_setval(&statement.text)),
                "BLOBS" => self.large_object(&statement.text),
                _ => {}
            },
            SqlEvent::Command(_) => {}
        }
    }

    /// `SELECT pg_catalog.lo_open('16410', 131072)`, `…lowrite(0, '\x00ff')`, `…lo_close(0)`.
    fn large_object(&mut self, statement: &str) {
        if let Some(rest) = statement.strip_prefix("SELECT pg_catalog.lo_open(") {
            if let Some(oid) = string_literal(rest).and_then(|(oid, _)| oid.parse().ok()) {
                self.objects.begin(oid);
            }
        } else if let Some(rest) = statement.strip_prefix("SELECT pg_catalog.lowrite(0, ") {
            let hex = string_literal(rest).map(|(text, _)| text);
            if let Some(data) =
                hex.as_deref().and_then(|t| t.strip_prefix("\\x").or(t.strip_prefix("\\\\x"))).and_then(unhex)
            {
                self.objects.data(&data);
            }
        } else if statement.starts_with("SELECT pg_catalog.lo_close(") {
            self.objects.end();
        }
    }
}

/// Bytes from hexadecimal digits.
pub(crate) fn unhex(digits: &str) -> Option<Vec<u8>> {
    let digit = |b: u8| char::from(b).to_digit(16).and_then(|d| u8::try_from(d).ok());
    let bytes = digits.as_bytes();
    if !bytes.len().is_multiple_of(2) {
        return None;
    }
    bytes
        .chunks_exact(2)
        .map(|pair| match pair {
            [high, low] => Some(digit(*high)? * 16 + digit(*low)?),
            _ => None,
        })
        .collect()
}
