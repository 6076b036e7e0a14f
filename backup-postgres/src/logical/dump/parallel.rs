//! The parallel format: the schema by `pg_dump`, the rows by concurrent COPY on the same snapshot.

mod copy;
mod extras;
mod tables;

use std::sync::Arc;

use backup_core::{Artifact, ArtifactMeta, Bytes, CancellationToken, Result};
use serde_json::json;

use super::Database;
use crate::ident::Qualified;
use crate::logical::archive::{HeadReader, Progress};
use crate::logical::collected::{Collected, SequenceValue, incomplete};
use crate::logical::flow::at_hand;
use crate::logical::options::{COPY, COPY_TAR, EXTRA_SQL, SCHEMA};
use crate::logical::tools::Tool;

pub(crate) use extras::refreshed;
pub(crate) use tables::{Slice, Table};

/// Tables larger than this on disk, in bytes, are an artifact of their own.
const SMALL_TABLE: u64 = 8 * 1024 * 1024;
/// Bytes on disk of one part of a large table.
const PART: u64 = 128 * 1024 * 1024;
/// Most parts of one backup, so that the parts of a very large one are larger.
const MAX_PARTS: u64 = 2_000;
/// Bytes of small tables from which on another stream is worth it.
const SMALL_STREAM: u64 = 64 * 1024 * 1024;

/// One artifact of a parallel backup.
#[derive(Debug)]
pub(super) enum Part {
    /// The custom archive without data.
    Schema {
        bytes: Bytes,
        /// Materialized views to fill afterwards, in order.
        views: Vec<Qualified>,
        /// Kept beside the schema too, for restores of single tables, which do not read the artifact of sequences.
        sequences: Vec<SequenceValue>,
    },
    /// Small tables in a tar archive.
    Small(u32, Vec<Table>),
    /// A part of a large table.
    Large(u32, Table, Slice),
    /// The states of sequences.
    Sequences(Vec<SequenceValue>),
    /// Large objects with their owners and privileges.
    LargeObjects,
}

/// Dumps the schema and decides who reads which rows.
pub(super) async fn plan(
    database: &Arc<Database>,
    pg_dump: &Tool,
    collected: &Collected,
) -> Result<Vec<Part>> {
    let options = &database.options;
    let (schema, found) = dump_schema(database, pg_dump, collected).await?;
    let mut parts = Vec::new();
    if !options.data {
        parts.push(Part::Schema { bytes: schema, views: Vec::new(), sequences: Vec::new() });
        return Ok(parts);
    }
    let views = refreshed(&database.exported.session, &found.views).await?;
    let sequences = extras::sequences(&database.exported.session, &found.sequences).await?;
    if options.schema {
        parts.push(Part::Schema { bytes: schema, views, sequences: sequences.clone() });
    }
    let mut tables = tables::find(database, &found.tables, collected).await?;
    tables.sort_by(|a, b| b.bytes.cmp(&a.bytes).then_with(|| a.name.cmp(&b.name)));
    let (large, small): (Vec<_>, Vec<_>) = tables.into_iter().partition(|t| t.bytes > SMALL_TABLE);
    let total: u64 = large.iter().map(|t| t.bytes).sum();
    let part = PART.max(total / MAX_PARTS);
    let mut number = 0;
    let mut slices = Vec::new();
    for table in large {
        for slice in table.slices(part) {
            number += 1;
            slices.push(Part::Large(number, table.clone(), slice));
        }
    }
    let small_bytes: u64 = small.iter().map(|t| t.bytes).sum();
    let streams = usize::try_from(small_bytes / SMALL_STREAM).unwrap_or(usize::MAX).clamp(1, options.jobs);
    let mut groups = vec![Vec::new(); streams];
    for (i, table) in small.into_iter().enumerate() {
        if let Some(group) = groups.get_mut(i % streams) {
            group.push(table);
        }
    }
    let groups = groups.into_iter().filter(|g: &Vec<Table>| !g.is_empty());
    parts.extend(groups.zip(1..).map(|(group, n)| Part::Small(n, group)));
    parts.extend(slices);
    if !sequences.is_empty() {
        parts.push(Part::Sequences(sequences));
    }
    if options.wants_large_objects() && extras::has_large_objects(&database.exported.session).await? {
        parts.push(Part::LargeObjects);
    }
    Ok(parts)
}

/// What the schema names.
#[derive(Debug, Default)]
struct Found {
    tables: Vec<Qualified>,
    sequences: Vec<Qualified>,
    views: Vec<Qualified>,
}

/// The schema as a custom archive, held in memory: it has definitions only, a few KiB per table.
async fn dump_schema(
    database: &Arc<Database>,
    pg_dump: &Tool,
    collected: &Collected,
) -> Result<(Bytes, Found)> {
    let mut only_schema = database.options.clone();
    (only_schema.schema, only_schema.data) = (true, false);
    let mut arguments = vec![
        "--format=custom".to_owned(),
        "--compress=0".to_owned(),
        format!("--snapshot={}", database.exported.id),
        format!("--encoding={}", database.encoding()),
        "--no-password".to_owned(),
    ];
    arguments.extend(only_schema.filters());
    let mut running = pg_dump.start(&database.config, &arguments, false)?;
    let mut bytes = Vec::new();
    let mut reader = HeadReader::default();
    let mut head = None;
    loop {
        let chunk = running.read().await?;
        if chunk.is_empty() {
            break;
        }
        bytes.extend_from_slice(&chunk);
        if head.is_none()
            && let Progress::Complete(found, _) = reader.push(&chunk)?
        {
            head = Some(found);
        }
    }
    let said = running.finish().await?;
    collected.lock().said(&said);
    let head = head.ok_or_else(|| incomplete("the schema ended within its table of contents"))?;
    let named = |desc: &str| {
        let entries = head.entries.iter().filter(|e| e.desc == desc);
        entries.map(|e| Qualified::new(&e.namespace, &e.tag)).collect::<Vec<_>>()
    };
    Ok((
        bytes.into(),
        Found { tables: named("TABLE"), sequences: named("SEQUENCE"), views: named("MATERIALIZED VIEW") },
    ))
}

impl Part {
    /// The artifact, whose stream does the work when it is read.
    pub(super) fn artifact(
        self,
        database: Arc<Database>,
        collected: Collected,
        cancelled: CancellationToken,
    ) -> Artifact {
        match self {
            Self::Schema { bytes, views, sequences } => {
                let name = database.artifact_name("schema");
                let meta = ArtifactMeta::new(name.clone(), SCHEMA).phase(1).size_hint(bytes.len() as u64);
                let mut details = database.artifact_details();
                if !views.is_empty() {
                    let names = views.iter().map(|v| json!({ "schema": v.schema, "name": v.name }));
                    details.insert("refresh".to_owned(), names.collect());
                }
                if !sequences.is_empty() {
                    let values = sequences
                        .iter()
                        .map(|s| json!([s.name.schema, s.name.name, s.last_value, s.is_called]));
                    details.insert("sequences".to_owned(), values.collect());
                }
                let data = at_hand(bytes, move || {
                    collected.lock().done(&name, details);
                    Ok(())
                });
                Artifact { meta, data }
            }
            Self::Small(number, tables) => {
                let name = database.artifact_name(&format!("tables-{number:02}"));
                let bytes = tables.iter().map(|t| t.bytes).sum();
                let meta = ArtifactMeta::new(name.clone(), COPY_TAR).phase(2).size_hint(bytes);
                Artifact { meta, data: copy::small(database, name, tables, collected, cancelled) }
            }
            Self::Large(number, table, slice) => {
                let name = database.artifact_name(&format!("rows-{number:05}"));
                let meta = ArtifactMeta::new(name.clone(), COPY).phase(2).size_hint(slice.bytes);
                Artifact { meta, data: copy::large(database, name, table, slice, collected, cancelled) }
            }
            Self::Sequences(values) => {
                let name = database.artifact_name("sequences");
                let sql: String = values.iter().map(extras::setval).collect();
                let meta = ArtifactMeta::new(name.clone(), EXTRA_SQL).phase(2).size_hint(sql.len() as u64);
                let data = at_hand(sql.into(), move || {
                    let mut inner = collected.lock();
                    for value in &values {
                        inner.sequence(&database.prefix, &name, value)?;
                    }
                    let mut details = database.artifact_details();
                    details.insert("holds".to_owned(), json!("sequences"));
                    inner.done(&name, details);
                    Ok(())
                });
                Artifact { meta, data }
            }
            Self::LargeObjects => {
                let name = database.artifact_name("large-objects");
                let meta = ArtifactMeta::new(name.clone(), EXTRA_SQL).phase(2);
                Artifact { meta, data: extras::large_objects(database, name, collected, cancelled) }
            }
        }
    }
}
