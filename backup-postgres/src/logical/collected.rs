//! What was learnt while the data flowed, until the report is made of it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use backup_core::{
    Error, ErrorKind, Item, ItemKind, ItemPath, ItemProof, Proof, Result, SourceReport, Warning,
};
use serde_json::{Map, Value, json};

use super::rows::Counted;
use crate::ident::Qualified;

/// The proof that all sequences of a database add to.
pub(crate) const SEQUENCES: &str = "sequences";
/// The proof that all large objects of a database add to.
pub(crate) const LARGE_OBJECTS: &str = "large-objects";

/// One table's rows, or a part of them.
#[derive(Clone, Debug)]
pub(crate) struct TableData {
    pub(crate) table: Qualified,
    pub(crate) columns: Vec<String>,
    pub(crate) artifact: String,
    /// Range of the artifact's bytes.
    pub(crate) start: u64,
    pub(crate) end: u64,
    pub(crate) counted: Counted,
}

/// The state of a sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SequenceValue {
    pub(crate) name: Qualified,
    pub(crate) last_value: String,
    pub(crate) is_called: bool,
}

impl SequenceValue {
    /// Its canonical item: name, last value, `t` or `f`.
    pub(crate) fn proof(&self) -> Proof {
        let called: &[u8] = if self.is_called { b"t" } else { b"f" };
        Proof::of([self.name.display().as_bytes(), self.last_value.as_bytes(), called])
    }
}

/// The proof of one large object: its oid in decimal digits, and the SHA-256 of its bytes.
pub(crate) fn large_object_proof(oid: u32, sha256: &backup_core::Digest) -> Proof {
    Proof::of([oid.to_string().as_bytes(), sha256.as_bytes()])
}

/// What the streams of one snapshot found, shared among them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Collected(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
pub(crate) struct Inner {
    pub(crate) report: SourceReport,
    tables: u64,
}

impl Collected {
    pub(crate) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The name of an item of `database`, which is empty where a backup holds one database only.
pub(crate) fn item_name(database: &str, name: &str) -> String {
    if database.is_empty() { name.to_owned() } else { format!("{database}/{name}") }
}

impl Inner {
    /// Records a stream's good end with its details.
    pub(crate) fn done(&mut self, artifact: &str, details: Map<String, Value>) {
        if !details.is_empty() {
            self.report.artifacts.insert(artifact.to_owned(), details);
        }
    }

    /// Records rows of a table.
    pub(crate) fn table(&mut self, database: &str, data: &TableData) -> Result<()> {
        let name = item_name(database, &data.table.display());
        self.report.proofs.entry(name.clone()).or_default().merge(&data.counted.proof);
        self.tables += 1;
        let mut attributes = Map::new();
        attributes.insert("schema".to_owned(), json!(data.table.schema));
        attributes.insert("table".to_owned(), json!(data.table.name));
        attributes.insert("columns".to_owned(), json!(data.columns));
        attributes.insert("rows".to_owned(), json!(data.counted.proof.count));
        if !database.is_empty() {
            attributes.insert("database".to_owned(), json!(database));
        }
        self.report.items.push(&Item {
            path: ItemPath::from(name.as_str()),
            kind: ItemKind::Table,
            origin: None,
            artifact: data.artifact.clone().into(),
            offset: data.start,
            length: data.end.saturating_sub(data.start),
            size: data.counted.bytes,
            sha256: None,
            proof: Some(ItemProof { of: name.into(), proof: data.counted.proof }),
            link: None,
            attributes,
        })
    }

    /// Records a sequence.
    pub(crate) fn sequence(&mut self, database: &str, artifact: &str, value: &SequenceValue) -> Result<()> {
        let name = item_name(database, &value.name.display());
        let of = item_name(database, SEQUENCES);
        let mut attributes = Map::new();
        attributes.insert("what".to_owned(), json!("sequence"));
        attributes.insert("schema".to_owned(), json!(value.name.schema));
        attributes.insert("sequence".to_owned(), json!(value.name.name));
        if !database.is_empty() {
            attributes.insert("database".to_owned(), json!(database));
        }
        self.other(&name, of, artifact, 0..0, 0, value.proof(), attributes)
    }

    /// Records the large objects of a range of an artifact.
    pub(crate) fn large_objects(
        &mut self,
        database: &str,
        artifact: &str,
        range: std::ops::Range<u64>,
        size: u64,
        proof: Proof,
    ) -> Result<()> {
        let name = item_name(database, LARGE_OBJECTS);
        let mut attributes = Map::new();
        attributes.insert("what".to_owned(), json!("large objects"));
        if !database.is_empty() {
            attributes.insert("database".to_owned(), json!(database));
        }
        self.other(&name, name.clone(), artifact, range, size, proof, attributes)
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of an item, gathered in one place")]
    fn other(
        &mut self,
        name: &str,
        of: String,
        artifact: &str,
        range: std::ops::Range<u64>,
        size: u64,
        proof: Proof,
        attributes: Map<String, Value>,
    ) -> Result<()> {
        self.report.proofs.entry(of.clone()).or_default().merge(&proof);
        self.report.items.push(&Item {
            path: ItemPath::from(name),
            kind: ItemKind::Other,
            origin: None,
            artifact: artifact.to_owned().into(),
            offset: range.start,
            length: range.end.saturating_sub(range.start),
            size,
            sha256: None,
            proof: Some(ItemProof { of: of.into(), proof }),
            link: None,
            attributes,
        })
    }

    /// Turns what a program said on standard error into warnings.
    pub(crate) fn said(&mut self, lines: &[String]) {
        let lines = lines.iter().filter(|l| !l.trim().is_empty());
        self.report.warnings.extend(lines.map(|l| Warning::new("pg-dump-says", l.clone())));
    }
}

/// The value of a sequence from `SELECT pg_catalog.setval('public.s', 42, true);`.
pub(crate) fn parse_setval(statement: &str) -> Option<SequenceValue> {
    let inner = statement
        .trim()
        .trim_end_matches(';')
        .strip_prefix("SELECT pg_catalog.setval(")?
        .strip_suffix(')')?;
    let (name, rest) = string_literal(inner)?;
    let (qualified, "") = crate::ident::read_qualified(&name)? else { return None };
    let mut parts = rest.strip_prefix(',')?.split(',').map(str::trim);
    let (value, called, None) = (parts.next()?, parts.next()?, parts.next()) else { return None };
    value.parse::<i64>().ok()?;
    Some(SequenceValue { name: qualified, last_value: value.to_owned(), is_called: called == "true" })
}

/// A string literal at the beginning, as PostgreSQL's programs quote, and what follows it.
pub(crate) fn string_literal(text: &str) -> Option<(String, &str)> {
    let escapes = text.starts_with('E');
    let rest = text.strip_prefix('E').unwrap_or(text).strip_prefix('\'')?;
    let mut value = String::new();
    let mut chars = rest.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        match c {
            '\'' if chars.peek().is_some_and(|(_, c)| *c == '\'') => {
                chars.next();
                value.push('\'');
            }
            '\'' => return Some((value, rest.get(at + 1..)?)),
            '\\' if escapes => value.push(chars.next()?.1),
            c => value.push(c),
        }
    }
    None
}

/// Table and columns of `COPY public.t (a, b) FROM stdin;`.
pub(crate) fn parse_copy(statement: &str) -> Option<(Qualified, Vec<String>)> {
    let (table, rest) = crate::ident::read_qualified(statement.trim().strip_prefix("COPY ")?)?;
    let mut rest = rest.trim_start();
    let mut columns = Vec::new();
    if let Some(mut list) = rest.strip_prefix('(') {
        loop {
            list = list.trim_start();
            if let Some(after) = list.strip_prefix(')') {
                rest = after;
                break;
            }
            let (column, after) = crate::ident::read(list)?;
            columns.push(column);
            list = after.trim_start().strip_prefix(',').unwrap_or(after);
        }
    }
    rest.trim().trim_end_matches(';').eq_ignore_ascii_case("FROM stdin").then_some((table, columns))
}

/// An error for a stream that must not be taken for complete.
pub(crate) fn incomplete(message: &'static str) -> Error {
    Error::new(ErrorKind::SourceFailed, "finish snapshot").message(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_statements_of_pg_dump_are_read() {
        let (table, columns) =
            parse_copy("COPY public.\"Ünï x\" (a, \"b c\", \"d\"\"e\") FROM stdin;\n").unwrap();
        assert_eq!(table, Qualified::new("public", "Ünï x"));
        assert_eq!(columns, ["a", "b c", "d\"e"]);
        assert_eq!(parse_copy("COPY public.none  FROM stdin").unwrap().1, Vec::<String>::new());
        assert!(parse_copy("COPY public.t TO stdout").is_none());

        let value = parse_setval("SELECT pg_catalog.setval('public.\"it''s\"', -5, false);\n").unwrap();
        assert_eq!(value.name, Qualified::new("public", "it's"));
        assert_eq!((value.last_value.as_str(), value.is_called), ("-5", false));
        assert!(parse_setval("SELECT 1").is_none());
    }
}
