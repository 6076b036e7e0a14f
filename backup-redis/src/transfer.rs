//! Receiving an RDB as a replica does.

use std::fmt;

use backup_core::{ByteStream, CancellationToken, Error, ErrorKind, Result};
use bytes::Bytes;
use futures::{FutureExt as _, StreamExt as _};

use crate::connect::Connection;
use crate::replication::{Event, Framing};
use crate::resp::{self, Reply};

/// Bytes gathered before they are passed on, while more are there already.
const CHUNK: usize = 256 * 1024;

/// A full synchronisation under way: the server has begun to send.
pub(crate) struct Transfer {
    connection: Connection,
    framing: Framing,
    cancelled: CancellationToken,
    /// Length of the RDB, where the server knows it.
    pub(crate) length: Option<u64>,
    /// The server's replication id and offset at the snapshot.
    pub(crate) position: (String, i64),
}

impl fmt::Debug for Transfer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transfer").field("connection", &self.connection).finish_non_exhaustive()
    }
}

impl Transfer {
    /// Asks for a full synchronisation and waits until the RDB begins, which is when the server forked.
    pub(crate) async fn start(mut connection: Connection, cancelled: CancellationToken) -> Result<Self> {
        // `eof`: the server may send without writing a file of its own first.
        connection.call("start replication", &["REPLCONF", "capa", "eof"]).await?;
        // Since 6.2: it closes after the RDB. An older one goes on with its command stream; we close.
        if let Reply::Error(error) = connection.command(&["REPLCONF", "rdb-only", "1"]).await?
            && matches!(error.code(), "NOPERM" | "NOAUTH")
        {
            return Err(error.into_error("start replication", ErrorKind::PermissionDenied));
        }
        let mut out = Vec::new();
        resp::command(&mut out, &["PSYNC", "?", "-1"]);
        connection.send(&out).await?;
        let mut transfer = Self {
            connection,
            framing: Framing::new(),
            cancelled,
            length: None,
            position: (String::new(), -1),
        };
        loop {
            match transfer.framing.next(&mut transfer.connection.input).map_err(|e| transfer.at(e))? {
                Some(Event::Agreed { id, offset }) => transfer.position = (id, offset),
                Some(Event::Begins(length)) => {
                    transfer.length = length;
                    return Ok(transfer);
                }
                Some(Event::Data(_) | Event::End) => {
                    return Err(Error::new(ErrorKind::Internal, "start replication"));
                }
                None => transfer.more().await?,
            }
        }
    }

    fn at(&self, error: Error) -> Error {
        error.with("server", &self.connection.address)
    }

    async fn more(&mut self) -> Result<()> {
        let n = tokio::select! {
            biased;
            () = self.cancelled.cancelled() => return Err(Error::cancelled("read replication stream")),
            n = self.connection.read() => n?,
        };
        if n == 0 {
            return Err(self.at(self.framing.closed()));
        }
        while self.connection.input.len() < CHUNK {
            match self.connection.read().now_or_never() {
                Some(Ok(n)) if n > 0 => {}
                // An error or an end will be met again when what is here was passed on.
                _ => break,
            }
        }
        Ok(())
    }

    async fn next(&mut self) -> Result<Option<Bytes>> {
        loop {
            match self.framing.next(&mut self.connection.input)? {
                Some(Event::Data(bytes)) => return Ok(Some(bytes)),
                Some(Event::End) => return Ok(None),
                Some(_) => {}
                None => self.more().await?,
            }
        }
    }

    /// The bytes of the RDB. Dropping them ends the connection, and with it the server's child process.
    pub(crate) fn bytes(self) -> ByteStream {
        futures::stream::unfold(Some(self), |transfer| async {
            let mut transfer = transfer?;
            match transfer.next().await {
                Ok(Some(bytes)) => Some((Ok(bytes), Some(transfer))),
                Ok(None) => None,
                Err(e) => Some((Err(e), None)),
            }
        })
        .boxed()
    }
}
