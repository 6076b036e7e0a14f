//! A connection for SQL and COPY: [`Session`].

use std::time::{Duration, Instant};

use backup_core::{Error, ErrorKind, Result};
use bytes::Bytes;
use tokio::task::JoinHandle;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, CopyInSink, CopyOutStream, SimpleQueryMessage};

use crate::config::{PgConfig, connector};
use crate::error;

/// The settings under which rows have their canonical text, whatever the server, database and role are set to.
/// `search_path` is empty so that names of types, tables and functions in values are complete.
const CANONICAL: &str = "SET timezone = 'UTC'; SET datestyle = 'ISO, MDY'; SET intervalstyle = 'postgres'; \
     SET extra_float_digits = 3; SET search_path = ''; SET statement_timeout = 0; SET lock_timeout = 0; \
     SET idle_in_transaction_session_timeout = 0; SET standard_conforming_strings = on; SET bytea_output = 'hex'; \
     SET client_min_messages = 'warning'; SET row_security = off; SET synchronize_seqscans = off";

/// Rows of text; `None` is NULL.
pub(crate) type Rows = Vec<Vec<Option<String>>>;

/// One connection. Dropping it closes the socket, and the server ends whatever it was doing for it.
pub(crate) struct Session {
    client: Client,
    connection: JoinHandle<()>,
}

impl Session {
    /// Connects, and keeps trying for [`PgConfig::patience`] while the server wakes, starts or is out of slots.
    pub(crate) async fn connect(config: &PgConfig) -> Result<Self> {
        let deadline = Instant::now() + config.wait();
        let mut pause = Duration::from_millis(100);
        let tls = connector(config)?;
        loop {
            let mut driver = config.driver();
            if driver.get_application_name().is_none() {
                driver.application_name("backup-postgres");
            }
            let failure = match driver.connect(tls.clone()).await {
                Ok((client, connection)) => {
                    let connection = tokio::spawn(async move {
                        // Whoever uses the client gets the error.
                        let _ = connection.await;
                    });
                    return Ok(Self { client, connection });
                }
                Err(failure) => failure,
            };
            let wakes = match failure.code() {
                // A certificate that is refused comes as invalid data, and stays refused.
                None => std::error::Error::source(&failure)
                    .and_then(|e| e.downcast_ref::<std::io::Error>())
                    .is_some_and(|e| e.kind() != std::io::ErrorKind::InvalidData),
                Some(code) => {
                    *code == SqlState::CANNOT_CONNECT_NOW || *code == SqlState::TOO_MANY_CONNECTIONS
                }
            };
            if !wakes || Instant::now() + pause > deadline {
                return Err(error::source("connect to PostgreSQL", failure)
                    .with("server", format_args!("{config:?}")));
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(2));
        }
    }

    /// Connects, and sets everything that changes how values are printed.
    pub(crate) async fn canonical(config: &PgConfig) -> Result<Self> {
        let session = Self::connect(config).await?;
        session.exec("prepare session", CANONICAL).await?;
        Ok(session)
    }

    /// Runs statements without parameters and returns the rows of the last that had some.
    pub(crate) async fn rows(&self, operation: &'static str, sql: &str) -> Result<Rows> {
        let messages = self.client.simple_query(sql).await.map_err(|e| error::database(operation, e))?;
        Ok(messages
            .into_iter()
            .filter_map(|message| match message {
                SimpleQueryMessage::Row(row) => {
                    Some((0..row.len()).map(|i| row.get(i).map(ToOwned::to_owned)).collect())
                }
                _ => None,
            })
            .collect())
    }

    /// The first column of the first row.
    pub(crate) async fn value(&self, operation: &'static str, sql: &str) -> Result<Option<String>> {
        Ok(self
            .rows(operation, sql)
            .await?
            .into_iter()
            .next()
            .and_then(|row| row.into_iter().next())
            .flatten())
    }

    /// Runs statements that return nothing of interest.
    pub(crate) async fn exec(&self, operation: &'static str, sql: &str) -> Result<()> {
        self.client
            .batch_execute(sql)
            .await
            .map_err(|e| error::database(operation, e).with("statement", error::quotable(sql)))
    }

    /// Runs statements; the error is the driver's, so that its code can be looked at.
    pub(crate) async fn try_exec(&self, sql: &str) -> std::result::Result<(), tokio_postgres::Error> {
        self.client.batch_execute(sql).await
    }

    /// Begins `COPY … TO STDOUT`.
    pub(crate) async fn copy_out(&self, sql: &str) -> Result<CopyOutStream> {
        self.client
            .copy_out(sql)
            .await
            .map_err(|e| error::source("read table", e).with("statement", error::quotable(sql)))
    }

    /// Begins `COPY … FROM STDIN`.
    pub(crate) async fn copy_in(&self, sql: &str) -> Result<CopyInSink<Bytes>> {
        self.client
            .copy_in(sql)
            .await
            .map_err(|e| error::database("load table", e).with("statement", error::quotable(sql)))
    }

    /// The server's version as a number: 150018 is 15.18.
    pub(crate) async fn version(&self) -> Result<u32> {
        let text = self.value("read server version", "SHOW server_version_num").await?.unwrap_or_default();
        text.parse().map_err(|_| {
            Error::new(ErrorKind::Unsupported, "read server version")
                .message("the server does not say its version as PostgreSQL does")
                .with("version", text.escape_debug())
        })
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Session")
    }
}
