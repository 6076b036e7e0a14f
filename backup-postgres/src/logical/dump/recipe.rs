//! How to restore with PostgreSQL's own programs: the lines of `RESTORE.txt`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use backup_core::Recipe;
use serde_json::{Map, Value};

use super::Database;
use crate::ident::{Qualified, column_list, shell};
use crate::logical::options::{DumpOptions, Scope};
use crate::source::DumpFormat;

pub(super) fn recipe(
    databases: &[Arc<Database>],
    options: &DumpOptions,
    artifacts: &BTreeMap<String, Map<String, Value>>,
) -> Recipe {
    let mut recipe = Recipe::default();
    if options.scope == Scope::Cluster {
        recipe.commands.insert("globals".to_owned(), "psql -X -d postgres".to_owned());
    }
    for database in databases {
        let target = shell(&format!("{}_restored", database.config.database()));
        recipe.before.push(format!("createdb --template=template0{} {target}", locale(database)));
        let psql = format!("psql -X -q -v ON_ERROR_STOP=1 -d {target}");
        match options.format {
            DumpFormat::Custom => {
                let name = database.artifact_name("database");
                recipe.commands.insert(name, format!("pg_restore --exit-on-error --dbname={target}"));
            }
            DumpFormat::Plain => {
                recipe.commands.insert(database.artifact_name("database"), psql);
            }
            DumpFormat::Parallel => parallel(&mut recipe, database, artifacts, &target, &psql),
        }
    }
    recipe
}

fn locale(database: &Database) -> String {
    let text = |name: &str| database.details.get(name).and_then(Value::as_str);
    let mut all = String::new();
    for (option, name) in [("encoding", "encoding"), ("lc-collate", "collate"), ("lc-ctype", "ctype")] {
        if let Some(value) = text(name) {
            let _ = write!(all, " --{option}={}", shell(value));
        }
    }
    if text("locale_provider") == Some("i")
        && let Some(locale) = text("locale")
    {
        let _ = write!(all, " --locale-provider=icu --icu-locale={}", shell(locale));
    }
    all
}

fn parallel(
    recipe: &mut Recipe,
    database: &Database,
    artifacts: &BTreeMap<String, Map<String, Value>>,
    target: &str,
    psql: &str,
) {
    let own = Value::from(database.config.database());
    let file = shell(&format!("{}.dump", database.artifact_name("schema")));
    for (name, details) in artifacts.iter().filter(|(_, d)| d.get("database") == Some(&own)) {
        let command = if let Some(table) = details.get("table") {
            let text = |name: &str| table.get(name).and_then(Value::as_str).unwrap_or_default();
            let columns: Vec<String> = table
                .get("columns")
                .and_then(Value::as_array)
                .map(|all| all.iter().filter_map(Value::as_str).map(ToOwned::to_owned).collect())
                .unwrap_or_default();
            let list =
                if columns.is_empty() { String::new() } else { format!(" ({})", column_list(&columns)) };
            let copy =
                format!("COPY {}{list} FROM STDIN", Qualified::new(text("schema"), text("name")).sql());
            format!("{psql} -c {}", shell(&copy))
        } else if details.contains_key("tables") {
            let directory = shell(name);
            format!("mkdir {directory} && tar -xf - -C {directory} && (cd {directory} && {psql} -f load.sql)")
        } else if details.contains_key("holds") {
            psql.to_owned()
        } else {
            format!("cat > {file} && pg_restore --exit-on-error --section=pre-data --dbname={target} {file}")
        };
        recipe.commands.insert(name.clone(), command);
    }
    recipe.after.push(format!("pg_restore --exit-on-error --section=post-data --dbname={target} {file}"));
    let schema = artifacts.get(&database.artifact_name("schema"));
    for view in schema.and_then(|d| d.get("refresh")).and_then(Value::as_array).into_iter().flatten() {
        let text = |name: &str| view.get(name).and_then(Value::as_str).unwrap_or_default();
        let refresh =
            format!("REFRESH MATERIALIZED VIEW {}", Qualified::new(text("schema"), text("name")).sql());
        recipe.after.push(format!("{psql} -c {}", shell(&refresh)));
    }
}
