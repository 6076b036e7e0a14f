//! Roles, memberships and tablespaces: `pg_dumpall --globals-only`.

use backup_core::{ByteStream, CancellationToken};
use serde_json::Map;

use crate::config::PgConfig;
use crate::logical::collected::Collected;
use crate::logical::flow::flow;
use crate::logical::options::DumpOptions;
use crate::logical::tools::Tool;

pub(super) fn stream(
    config: &PgConfig,
    options: &DumpOptions,
    pg_dump: &Tool,
    collected: &Collected,
    cancelled: CancellationToken,
) -> ByteStream {
    let (config, options, major) = (config.clone(), options.clone(), pg_dump.major);
    let collected = collected.clone();
    flow(cancelled, move |out| async move {
        let program = options.tools.find("pg_dumpall", major).await?;
        let mut arguments = vec!["--globals-only".to_owned(), "--no-password".to_owned()];
        if !options.role_passwords {
            arguments.push("--no-role-passwords".to_owned());
        }
        let mut running = program.start(&config, &arguments, false)?;
        loop {
            let bytes = running.read().await?;
            if bytes.is_empty() {
                break;
            }
            out.send(bytes).await?;
        }
        let said = running.finish().await?;
        let mut inner = collected.lock();
        inner.said(&said);
        inner.done("globals", Map::new());
        Ok(())
    })
}
