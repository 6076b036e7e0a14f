//! What is neither schema nor rows of tables: sequences and large objects, as SQL text.

use std::fmt::Write as _;
use std::sync::Arc;

use backup_core::{ByteStream, CancellationToken, Error, ErrorKind, Proof, Result};

use crate::ident::{Qualified, literal, quote};
use crate::logical::collected::{Collected, SequenceValue, large_object_proof};
use crate::logical::dump::Database;
use crate::logical::flow::flow;
use crate::logical::meter::unhex;
use crate::session::Session;

/// Bytes of a large object read, and written in one statement, at a time.
const PIECE: u64 = 128 * 1024;
/// Sequences asked for in one statement.
const BATCH: usize = 200;

/// The states of these sequences.
pub(super) async fn sequences(session: &Session, names: &[Qualified]) -> Result<Vec<SequenceValue>> {
    let mut all = Vec::with_capacity(names.len());
    for batch in names.chunks(BATCH) {
        let selects: Vec<String> = batch
            .iter()
            .enumerate()
            .map(|(i, name)| format!("SELECT {i}, last_value, is_called FROM {}", name.sql()))
            .collect();
        let rows = session.rows("read sequences", &selects.join(" UNION ALL ")).await?;
        for row in rows {
            let [Some(number), Some(last_value), Some(called)] = row.as_slice() else { continue };
            let Some(name) = number.parse().ok().and_then(|i: usize| batch.get(i)) else { continue };
            all.push(SequenceValue {
                name: name.clone(),
                last_value: last_value.clone(),
                is_called: called == "t",
            });
        }
    }
    if all.len() != names.len() {
        return Err(Error::new(ErrorKind::SourceFailed, "read sequences")
            .message("the server did not tell the state of every sequence"));
    }
    Ok(all)
}

/// The materialized views among `dumped` that are populated, each behind those it reads.
pub(crate) async fn refreshed(session: &Session, dumped: &[Qualified]) -> Result<Vec<Qualified>> {
    // A view that reads another reaches all that the other reaches, and itself: counting sorts them.
    let rows = session
        .rows(
            "list materialized views",
            "WITH RECURSIVE reach(root, rel) AS ( \
               SELECT c.oid, c.oid FROM pg_catalog.pg_class c WHERE c.relkind = 'm' AND c.relispopulated \
               UNION SELECT reach.root, d.refobjid FROM reach \
                 JOIN pg_catalog.pg_rewrite r ON r.ev_class = reach.rel \
                 JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass \
                   AND d.objid = r.oid AND d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass) \
             SELECT n.nspname, c.relname FROM reach JOIN pg_catalog.pg_class c ON c.oid = reach.root \
               JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
               JOIN pg_catalog.pg_class m ON m.oid = reach.rel AND m.relkind = 'm' \
             GROUP BY 1, 2 ORDER BY pg_catalog.count(*), 1, 2",
        )
        .await?;
    let all = rows.into_iter().filter_map(|row| {
        let mut row = row.into_iter().flatten();
        Some(Qualified::new(row.next()?, row.next()?))
    });
    Ok(all.filter(|name| dumped.contains(name)).collect())
}

/// The statement that sets a sequence, as `pg_dump` writes it.
pub(super) fn setval(value: &SequenceValue) -> String {
    format!(
        "SELECT pg_catalog.setval({}, {}, {});\n",
        literal(&value.name.sql()),
        value.last_value,
        value.is_called
    )
}

pub(super) async fn has_large_objects(session: &Session) -> Result<bool> {
    let any = session
        .value("look for large objects", "SELECT EXISTS (SELECT FROM pg_catalog.pg_largeobject_metadata)")
        .await?;
    Ok(any.as_deref() == Some("t"))
}

/// Every large object: created, owned, granted, commented and filled.
pub(super) fn large_objects(
    database: Arc<Database>,
    name: String,
    collected: Collected,
    cancelled: CancellationToken,
) -> ByteStream {
    flow(cancelled, move |out| async move {
        let session = database.exported.join(&database.config).await?;
        let list = session
            .rows(
                "list large objects",
                "SELECT m.oid, pg_catalog.pg_get_userbyid(m.lomowner), \
                   pg_catalog.obj_description(m.oid, 'pg_largeobject'), \
                   (SELECT pg_catalog.json_agg(pg_catalog.json_build_array(\
                      CASE WHEN a.grantee = 0 THEN '' ELSE pg_catalog.pg_get_userbyid(a.grantee) END, \
                      a.privilege_type, a.is_grantable)) \
                    FROM pg_catalog.aclexplode(m.lomacl) a WHERE a.grantee <> m.lomowner) \
                 FROM pg_catalog.pg_largeobject_metadata m ORDER BY m.oid",
            )
            .await?;
        let mut proof = Proof::empty();
        let mut size = 0;
        let mut written = 0;
        for row in list {
            let [Some(oid), Some(owner), comment, grants] = row.as_slice() else { continue };
            let Ok(number) = oid.parse::<u32>() else { continue };
            let mut sql = format!("SELECT pg_catalog.lo_create({});\n", literal(oid));
            let _ = writeln!(sql, "ALTER LARGE OBJECT {oid} OWNER TO {};", quote(owner));
            if let Some(comment) = comment {
                let _ = writeln!(sql, "COMMENT ON LARGE OBJECT {oid} IS {};", literal(comment));
            }
            let grants: Vec<(String, String, bool)> =
                grants.as_deref().and_then(|g| serde_json::from_str(g).ok()).unwrap_or_default();
            for (grantee, privilege, grantable) in grants {
                let to = if grantee.is_empty() { "PUBLIC".to_owned() } else { quote(&grantee) };
                let option = if grantable { " WITH GRANT OPTION" } else { "" };
                let _ = writeln!(sql, "GRANT {privilege} ON LARGE OBJECT {oid} TO {to}{option};");
            }
            let mut hasher = backup_core::Hasher::new();
            let mut offset = 0;
            loop {
                let piece = session
                    .value(
                        "read large object",
                        &format!(
                            "SELECT pg_catalog.encode(pg_catalog.lo_get({oid}, {offset}, {PIECE}), 'hex')"
                        ),
                    )
                    .await
                    .map_err(|e| e.with("large object", oid))?
                    .unwrap_or_default();
                let data = unhex(&piece).unwrap_or_default();
                if data.is_empty() {
                    break;
                }
                hasher.update(&data);
                let _ = writeln!(sql, "SELECT pg_catalog.lo_put({oid}, {offset}, '\\x{piece}');");
                offset += data.len() as u64;
                written += sql.len() as u64;
                out.send(std::mem::take(&mut sql).into()).await?;
                if (data.len() as u64) < PIECE {
                    break;
                }
            }
            written += sql.len() as u64;
            out.send(sql.into()).await?;
            proof.merge(&large_object_proof(number, &hasher.finish()));
            size += offset;
        }
        let mut inner = collected.lock();
        inner.large_objects(&database.prefix, &name, 0..written, size, proof)?;
        let mut details = database.artifact_details();
        details.insert("holds".to_owned(), serde_json::json!("large objects"));
        inner.done(&name, details);
        Ok(())
    })
}
