//! Spares a server the compression of a snapshot that is only read back.
//!
//! Compression of strings (`rdbcompression`, on by default) takes a server's child most of its time, and what is read
//! back is proved and thrown away. The child keeps the setting it was born with, so it is put back as soon as the
//! snapshot has begun: it is away until the server has waited for further replicas (`repl-diskless-sync-delay`) and forked, or, where the server makes a file before
//! it sends (`repl-diskless-sync no`), for that file.

use std::time::Duration;

use backup_core::{Error, Result};

use crate::config::RedisConfig;
use crate::connect::Connection;
use crate::discover::connect_to;
use crate::resp::{self, Reply};

const NAME: &str = "rdbcompression";
const SET_BACK: [&str; 4] = ["CONFIG", "SET", NAME, "yes"];
const BACK: &str = "set Redis option back";
/// How long a dropped read-back waits for the server to take the setting back.
const PATIENCE: Duration = Duration::from_secs(30);

/// A server that does not compress, until this is ended or dropped.
#[derive(Debug)]
pub(super) struct Uncompressed {
    connection: Option<Connection>,
}

impl Uncompressed {
    /// Switches compression off where it is on and this user may. Elsewhere the server stays as it is.
    pub(super) async fn begin(mut connection: Connection) -> Result<Self> {
        let reply = connection.command(&["CONFIG", "GET", NAME]).await?;
        if reply.array().get(1).and_then(Reply::text) != Some("yes") {
            return Ok(Self { connection: None });
        }
        // From here on a drop puts it back, also while the answer is waited for.
        let mut this = Self { connection: Some(connection) };
        if let Some(connection) = &mut this.connection
            && matches!(connection.command(&["CONFIG", "SET", NAME, "no"]).await?, Reply::Error(_))
        {
            this.connection = None;
        }
        Ok(this)
    }

    /// Switches it on again, if it was; on another connection if this one is gone.
    pub(super) async fn end(mut self, config: &RedisConfig) -> Result<()> {
        let Some(connection) = &mut self.connection else { return Ok(()) };
        let done = match connection.call(BACK, &SET_BACK).await {
            Err(e) if e.is_retryable() => match connect_to(config, &connection.address).await {
                Ok((mut again, _)) => again.call(BACK, &SET_BACK).await,
                Err(e) => Err(e),
            },
            done => done,
        };
        self.connection = None;
        done.map(|_| ()).map_err(|e| {
            Error::new(e.kind(), BACK)
                .message("strings stay uncompressed until the server starts again: run `CONFIG SET rdbcompression yes`")
                .caused_by(e)
        })
    }
}

impl Drop for Uncompressed {
    fn drop(&mut self) {
        let (Some(mut connection), Ok(runtime)) =
            (self.connection.take(), tokio::runtime::Handle::try_current())
        else {
            return;
        };
        runtime.spawn(async move {
            let mut out = Vec::new();
            // On the same connection, so that it comes after what was sent before.
            resp::command(&mut out, &SET_BACK);
            resp::command(&mut out, &["QUIT"]);
            let putting_back = async {
                if connection.send(&out).await.is_ok() {
                    // Until the server closes: what is closed on this side first may not be read any more.
                    while connection.reply().await.is_ok() {}
                }
            };
            let _ = tokio::time::timeout(PATIENCE, putting_back).await;
        });
    }
}
