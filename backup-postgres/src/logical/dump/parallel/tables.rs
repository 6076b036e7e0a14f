//! Which rows there are to read, and how they are divided.

use std::collections::HashSet;

use backup_core::{Result, Warning};

use super::Database;
use crate::ident::{Qualified, column_list};
use crate::logical::collected::Collected;
use crate::logical::options::matching_tables;

/// A table whose rows are read.
#[derive(Clone, Debug)]
pub(crate) struct Table {
    pub(crate) name: Qualified,
    /// Its columns, without generated ones.
    pub(crate) columns: Vec<String>,
    /// Size on disk with TOAST, in bytes.
    pub(crate) bytes: u64,
    /// Pages of its heap; 0 where it cannot be read by pages.
    pages: u64,
    /// ` WHERE …` of an extension's configuration table.
    condition: String,
}

/// A range of pages of a table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Slice {
    /// The first page.
    from: Option<u64>,
    /// The page behind the last.
    to: Option<u64>,
    /// Its share of the table's bytes.
    pub(crate) bytes: u64,
    /// Which part of how many, from 1.
    pub(crate) number: u64,
    pub(crate) of: u64,
}

impl Table {
    /// A table of which name, columns and size are known.
    pub(crate) fn new(name: Qualified, columns: Vec<String>, bytes: u64, pages: u64) -> Self {
        Self { name, columns, bytes, pages, condition: String::new() }
    }

    /// Divides the table into parts of about `part` bytes on disk.
    pub(crate) fn slices(&self, part: u64) -> Vec<Slice> {
        let count = self.bytes.div_ceil(part.max(1)).clamp(1, self.pages.max(1));
        let bound =
            |i: u64| (i > 0 && i < count).then(|| self.pages / count * i + self.pages % count * i / count);
        (0..count)
            .map(|i| Slice {
                from: bound(i),
                to: bound(i + 1),
                bytes: self.bytes / count,
                number: i + 1,
                of: count,
            })
            .collect()
    }

    /// The statement that reads `slice`.
    pub(crate) fn copy_out(&self, slice: &Slice) -> String {
        let mut condition = self.condition.clone();
        let page = |n: u64| format!("'({n},0)'::pg_catalog.tid");
        let bounds = [
            slice.from.map(|n| format!("ctid OPERATOR(pg_catalog.>=) {}", page(n))),
            slice.to.map(|n| format!("ctid OPERATOR(pg_catalog.<) {}", page(n))),
        ];
        let bounds: Vec<String> = bounds.into_iter().flatten().collect();
        if !bounds.is_empty() {
            condition.push_str(" WHERE ");
            condition.push_str(&bounds.join(" AND "));
        }
        let list = column_list(&self.columns);
        if condition.is_empty() {
            let list = if list.is_empty() { list } else { format!(" ({list})") };
            return format!("COPY {}{list} TO STDOUT", self.name.sql());
        }
        format!("COPY (SELECT {list} FROM ONLY {}{condition}) TO STDOUT", self.name.sql())
    }
}

/// The tables among `dumped` that have rows of their own, and the configuration tables of extensions.
pub(super) async fn find(
    database: &Database,
    dumped: &[Qualified],
    collected: &Collected,
) -> Result<Vec<Table>> {
    let session = &database.exported.session;
    let options = &database.options;
    let dumped: HashSet<&Qualified> = dumped.iter().collect();
    let without: HashSet<String> =
        matching_tables(session, &options.exclude_table_data).await?.into_iter().collect();
    let whole = options.include_tables.is_empty() && options.include_schemas.is_empty();
    let rows = session
        .rows(
            "list tables",
            "SELECT c.oid, n.nspname, c.relname, c.relpersistence, pg_catalog.pg_table_size(c.oid), \
               CASE WHEN am.amname = 'heap' THEN pg_catalog.pg_relation_size(c.oid) \
                 / pg_catalog.current_setting('block_size')::bigint ELSE 0 END, \
               (SELECT pg_catalog.json_agg(a.attname ORDER BY a.attnum) FROM pg_catalog.pg_attribute a \
                 WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''), \
               x.condition, x.condition IS NOT NULL \
             FROM pg_catalog.pg_class c \
             JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
             LEFT JOIN pg_catalog.pg_am am ON am.oid = c.relam \
             LEFT JOIN (SELECT u.oid, u.condition FROM pg_catalog.pg_extension e, \
               LATERAL ROWS FROM (pg_catalog.unnest(e.extconfig), pg_catalog.unnest(e.extcondition)) u(oid, condition)) x ON x.oid = c.oid \
             WHERE c.relkind = 'r' AND n.nspname NOT IN ('pg_catalog', 'information_schema') \
               AND c.relpersistence <> 't'",
        )
        .await?;
    let mut tables = Vec::new();
    let mut unlogged = 0_u64;
    for row in rows {
        let [oid, Some(schema), Some(name), persistence, bytes, pages, columns, condition, config] =
            row.as_slice()
        else {
            continue;
        };
        let name = Qualified::new(schema, name);
        let is_config = config.as_deref() == Some("t");
        if !(dumped.contains(&name) || (is_config && whole))
            || oid.as_ref().is_some_and(|o| without.contains(o))
        {
            continue;
        }
        if persistence.as_deref() == Some("u") && database.exported.on_standby {
            unlogged += 1;
            continue;
        }
        let number = |text: &Option<String>| text.as_deref().and_then(|t| t.parse().ok()).unwrap_or(0);
        let columns = columns.as_deref().and_then(|c| serde_json::from_str(c).ok()).unwrap_or_default();
        let condition = match condition.as_deref().map(str::trim) {
            Some(condition) if !condition.is_empty() => format!(" {condition}"),
            _ => String::new(),
        };
        tables.push(Table {
            name,
            columns,
            bytes: number(bytes),
            // A condition of its own and bounds of pages would be two WHERE clauses.
            pages: if condition.is_empty() { number(pages) } else { 0 },
            condition,
        });
    }
    if unlogged > 0 {
        collected.lock().report.warnings.push(Warning::new(
            "unlogged-on-standby",
            format!(
                "{unlogged} unlogged tables have no rows in the backup: a standby does not have their content"
            ),
        ));
    }
    Ok(tables)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn table(bytes: u64, pages: u64) -> Table {
        Table {
            name: Qualified::new("s", "t"),
            columns: vec!["a".to_owned()],
            bytes,
            pages,
            condition: String::new(),
        }
    }

    #[test]
    fn a_table_that_fits_one_part_is_read_whole() {
        let t = table(100, 10);
        let slices = t.slices(1000);
        assert_eq!(slices.len(), 1);
        assert_eq!(t.copy_out(&slices[0]), "COPY \"s\".\"t\" (\"a\") TO STDOUT");
    }

    proptest! {
        #[test]
        fn parts_meet_without_gap_or_overlap(bytes in 1u64..1_000_000, pages in 0u64..5_000, part in 1u64..100_000) {
            let slices = table(bytes, pages).slices(part);
            prop_assert_eq!(slices.first().unwrap().from, None);
            prop_assert_eq!(slices.last().unwrap().to, None);
            for pair in slices.windows(2) {
                prop_assert_eq!(pair[0].to, pair[1].from);
                prop_assert!(pair[0].from.unwrap_or(0) < pair[1].from.unwrap());
            }
        }
    }
}
