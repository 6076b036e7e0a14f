//! One stream of `pg_dump`, read as it passes.

use std::sync::{Arc, Mutex, PoisonError};

use backup_core::{ByteStream, CancellationToken, Result};

use super::Database;
use crate::logical::collected::Collected;
use crate::logical::flow::flow;
use crate::logical::meter::{ArchiveMeter, SqlMeter};
use crate::logical::tools::Tool;
use crate::source::DumpFormat;

/// Heads with their offsets, by the name of the dump they belong to.
pub(super) type Tocs = Arc<Mutex<Vec<(String, Vec<u8>)>>>;

enum Meter {
    Archive(ArchiveMeter),
    Sql(SqlMeter),
}

impl Meter {
    fn push(&mut self, bytes: &[u8]) -> Result<()> {
        match self {
            Self::Archive(meter) => meter.push(bytes),
            Self::Sql(meter) => meter.push(bytes),
        }
    }
}

/// The output of `pg_dump` for one database. It ends well only if the program did.
pub(super) fn dump(
    database: Arc<Database>,
    pg_dump: Tool,
    name: String,
    collected: Collected,
    tocs: Tocs,
    cancelled: CancellationToken,
) -> ByteStream {
    flow(cancelled, move |out| async move {
        let plain = database.options.format == DumpFormat::Plain;
        let mut arguments = vec![
            if plain { "--format=plain" } else { "--format=custom" }.to_owned(),
            format!("--snapshot={}", database.exported.id),
            format!("--encoding={}", database.encoding()),
            "--no-password".to_owned(),
        ];
        if !plain {
            arguments.push("--compress=0".to_owned());
        }
        arguments.extend(database.options.filters());
        let mut running = pg_dump.start(&database.config, &arguments, false)?;
        let mut meter = if plain { Meter::Sql(SqlMeter::new()) } else { Meter::Archive(ArchiveMeter::new()) };
        loop {
            let bytes = running.read().await?;
            if bytes.is_empty() {
                break;
            }
            meter.push(&bytes)?;
            out.send(bytes).await?;
        }
        let said = running.finish().await?;
        let mut inner = collected.lock();
        inner.said(&said);
        match meter {
            Meter::Sql(meter) => meter.finish(&mut inner, &database.prefix, &name)?,
            Meter::Archive(meter) => {
                if let Some(toc) = meter.finish(&mut inner, &database.prefix, &name)? {
                    tocs.lock().unwrap_or_else(PoisonError::into_inner).push((name.clone(), toc));
                }
            }
        }
        inner.done(&name, database.artifact_details());
        Ok(())
    })
}
