//! What a dump includes.

use backup_core::{ArtifactFormat, Result};

use super::tools::Tools;
use crate::ident::literal;
use crate::session::Session;
use crate::source::DumpFormat;

/// `pg_dump -Fc`.
pub(crate) const CUSTOM: ArtifactFormat = ArtifactFormat::new("pg_dump.custom", "dump");
/// The head of a custom archive with its offsets filled in; `dd conv=notrunc` puts it over the beginning of the dump.
pub(crate) const TOC: ArtifactFormat = ArtifactFormat::new("pg_dump.toc", "toc");
/// `pg_dump -Fp`.
pub(crate) const PLAIN: ArtifactFormat = ArtifactFormat::new("pg_dump.plain", "sql");
/// `pg_dumpall --globals-only`.
pub(crate) const GLOBALS: ArtifactFormat = ArtifactFormat::new("pg_dumpall.globals", "sql");
/// A custom archive without data, the beginning of a parallel backup.
pub(crate) const SCHEMA: ArtifactFormat = ArtifactFormat::new("pg_parallel.schema", "dump");
/// Rows of one table, or a part of it, as COPY text.
pub(crate) const COPY: ArtifactFormat = ArtifactFormat::new("pg_parallel.copy", "copy");
/// Rows of many small tables: a tar archive with members of COPY text.
pub(crate) const COPY_TAR: ArtifactFormat = ArtifactFormat::new("pg_parallel.tar", "tar");
/// Sequences or large objects of a parallel backup, as SQL text.
pub(crate) const EXTRA_SQL: ArtifactFormat = ArtifactFormat::new("pg_parallel.sql", "sql");

/// Which databases.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Scope {
    /// The one connected to.
    #[default]
    Connected,
    Databases(Vec<String>),
    Cluster,
}

/// Everything [`PgDump`](crate::PgDump) can be told.
#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "independent switches of a builder")]
pub(crate) struct DumpOptions {
    pub(crate) format: DumpFormat,
    pub(crate) scope: Scope,
    pub(crate) role_passwords: bool,
    pub(crate) include_tables: Vec<String>,
    pub(crate) exclude_tables: Vec<String>,
    pub(crate) include_schemas: Vec<String>,
    pub(crate) exclude_schemas: Vec<String>,
    pub(crate) exclude_table_data: Vec<String>,
    pub(crate) schema: bool,
    pub(crate) data: bool,
    pub(crate) large_objects: bool,
    pub(crate) jobs: usize,
    pub(crate) tools: Tools,
}

impl Default for DumpOptions {
    fn default() -> Self {
        Self {
            format: DumpFormat::default(),
            scope: Scope::default(),
            role_passwords: true,
            include_tables: Vec::new(),
            exclude_tables: Vec::new(),
            include_schemas: Vec::new(),
            exclude_schemas: Vec::new(),
            exclude_table_data: Vec::new(),
            schema: true,
            data: true,
            large_objects: true,
            jobs: std::thread::available_parallelism().map_or(2, usize::from).clamp(2, 16),
            tools: Tools::default(),
        }
    }
}

impl DumpOptions {
    /// Whether large objects are part of the dump: as with `pg_dump`, not when tables or schemas were chosen.
    pub(crate) fn wants_large_objects(&self) -> bool {
        self.large_objects && self.data && self.include_tables.is_empty() && self.include_schemas.is_empty()
    }

    /// The arguments of `pg_dump` that choose what is dumped.
    pub(crate) fn filters(&self) -> Vec<String> {
        let lists = [
            ("--table", &self.include_tables),
            ("--exclude-table", &self.exclude_tables),
            ("--schema", &self.include_schemas),
            ("--exclude-schema", &self.exclude_schemas),
            ("--exclude-table-data", &self.exclude_table_data),
        ];
        let mut all: Vec<String> = lists
            .into_iter()
            .flat_map(|(name, patterns)| patterns.iter().map(move |p| format!("{name}={p}")))
            .collect();
        if !self.large_objects {
            all.push("-B".to_owned());
        }
        match (self.schema, self.data) {
            (true, false) => all.push("--schema-only".to_owned()),
            (false, true) => all.push("--data-only".to_owned()),
            _ => {}
        }
        all
    }
}

/// The regular expression of one part of a pattern, as `processSQLNamePattern` in PostgreSQL's
/// `src/fe_utils/string_utils.c` makes it: parts at dots outside quotes, `*` any text, `?` any character, folding
/// to lower case outside quotes.
fn pattern_parts(pattern: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut quoted = false;
    let mut chars = pattern.chars().peekable();
    while let Some(c) = chars.next() {
        let special = "|*+?()[]{}.^$\\".contains(c);
        let Some(last) = parts.last_mut() else { continue };
        match c {
            '"' if quoted && chars.peek() == Some(&'"') => {
                chars.next();
                last.push('"');
            }
            '"' => quoted = !quoted,
            '*' if !quoted => last.push_str(".*"),
            '?' if !quoted => last.push('.'),
            '.' if !quoted => parts.push(String::new()),
            '$' => last.push_str("\\$"),
            c if quoted && special => {
                last.push('\\');
                last.push(c);
            }
            c if quoted => last.push(c),
            c => last.extend(c.to_lowercase()),
        }
    }
    parts
}

/// The oids of ordinary tables that match one of `patterns`.
pub(crate) async fn matching_tables(session: &Session, patterns: &[String]) -> Result<Vec<String>> {
    let mut all = Vec::new();
    for pattern in patterns {
        let mut parts = pattern_parts(pattern);
        let name = parts.pop().unwrap_or_default();
        let schema = match parts.pop() {
            Some(schema) => format!("n.nspname OPERATOR(pg_catalog.~) {}", literal(&format!("^({schema})$"))),
            None => "pg_catalog.pg_table_is_visible(c.oid)".to_owned(),
        };
        let sql = format!(
            "SELECT c.oid FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
             WHERE c.relkind = 'r' AND c.relname OPERATOR(pg_catalog.~) {} AND {schema}",
            literal(&format!("^({name})$"))
        );
        let rows = session.rows("find tables", &sql).await?;
        all.extend(rows.into_iter().filter_map(|row| row.into_iter().next().flatten()));
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::pattern_parts;

    #[test]
    fn patterns_become_what_psql_makes_of_them() {
        assert_eq!(pattern_parts("Public.user*"), ["public", "user.*"]);
        assert_eq!(pattern_parts("\"A.b\".\"x\"\"*\"?"), ["A\\.b", "x\"\\*."]);
    }
}
