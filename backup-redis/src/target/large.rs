//! Values too large to hold: read a second time and passed straight on.

use backup_core::{ArtifactReader, Error, ErrorKind, Result};
use futures::StreamExt as _;

use super::build::{AROUND, Deferred, Manner, Proving};
use super::pipe::{Existing, Written, is_redirect, redirect_target};
use super::rebuild::Rebuild;
use super::verify::verify;
use crate::config::RedisConfig;
use crate::connect::Connection;
use crate::discover::{Server, connect_to};
use crate::rdb::Encoding;
use crate::rdb::decode::Decoder;
use crate::resp;

const RESTORE: &str = "restore large Redis value";
/// How often a value follows redirections.
const REDIRECTS: usize = 4;

/// Writes values one after the other to the node of `connection`.
pub(crate) struct LargeValues<'a> {
    pub(crate) connection: Connection,
    pub(crate) server: &'a Server,
    pub(crate) config: &'a RedisConfig,
    pub(crate) manner: &'a Manner,
    pub(crate) reader: &'a ArtifactReader,
}

impl LargeValues<'_> {
    pub(crate) async fn write(mut self, values: &[Deferred], written: &mut Written) -> Result<()> {
        for value in values {
            self.connection.call(RESTORE, &["SELECT", &value.db.to_string()]).await?;
            let length = value.range.end - value.range.start + AROUND;
            let fresh = if value.encoding.since() > self.manner.version || length > self.manner.max_bulk {
                self.rebuild(value, written).await?
            } else {
                self.restore(value, length, written).await?
            };
            if let Some(expected) = value.expected
                && fresh
                && self.manner.proving == Proving::EachBatch
            {
                let expected = vec![(value.key.clone().into(), expected)];
                self.connection = verify(self.connection, self.server, value.db, expected).await?;
            }
        }
        Ok(())
    }

    /// One `RESTORE`, its value streamed. Whether the key was written here.
    async fn restore(&mut self, value: &Deferred, length: u64, written: &mut Written) -> Result<bool> {
        for _ in 0..REDIRECTS {
            let more = value.options.arguments();
            let mut head = Vec::new();
            resp::header(&mut head, b'*', 4 + more.len() as u64);
            resp::bulk(&mut head, b"RESTORE");
            resp::bulk(&mut head, &value.key);
            resp::bulk(&mut head, value.options.ttl().as_bytes());
            resp::header(&mut head, b'$', length);
            head.push(value.encoding.code());
            self.connection.send(&head).await?;
            let mut bytes = self.reader.range(value.range.clone()).await?;
            while let Some(chunk) = bytes.next().await {
                self.connection.send(&chunk?).await?;
            }
            let version = u16::try_from(self.manner.version).unwrap_or(u16::MAX).to_le_bytes();
            let mut crc = value.crc.clone();
            crc.update(&version);
            let mut tail = version.to_vec();
            tail.extend_from_slice(&crc.value().to_le_bytes());
            tail.extend_from_slice(b"\r\n");
            for argument in more {
                resp::bulk(&mut tail, argument.as_bytes());
            }
            self.connection.send(&tail).await?;
            match self.connection.outcome().await? {
                Some(error) if is_redirect(&error) => match redirect_target(&error) {
                    Some(address) => {
                        self.connection = connect_to(self.config, &address).await?.0;
                        if error.code() == "ASK" {
                            self.connection.call(RESTORE, &["ASKING"]).await?;
                        }
                    }
                    None => tokio::time::sleep(std::time::Duration::from_millis(100)).await,
                },
                error => {
                    let fresh = error.is_none();
                    written.note(&value.key, error, self.manner.existing)?;
                    return Ok(fresh);
                }
            }
        }
        Err(Error::new(ErrorKind::Unavailable, RESTORE).message("the cluster redirects without end"))
    }

    /// By the commands that build such a value up. Whether the key was written.
    async fn rebuild(&mut self, value: &Deferred, written: &mut Written) -> Result<bool> {
        if value.encoding == Encoding::Module {
            written.refuse(&value.key, "a module's value longer than `proto-max-bulk-len`");
            return Ok(false);
        }
        let exists = self.connection.call(RESTORE, &[b"EXISTS", &value.key[..]]).await?.int() == Some(1);
        match self.manner.existing {
            Existing::Keep if exists => {
                written.kept += 1;
                return Ok(false);
            }
            Existing::None if exists => {
                return Err(Error::new(ErrorKind::TargetNotEmpty, RESTORE)
                    .with("key", String::from_utf8_lossy(&value.key)));
            }
            _ => {}
        }
        self.connection.call(RESTORE, &[b"DEL", &value.key[..]]).await?;
        let mut decoder = Decoder::new(value.encoding);
        let mut rebuild = Rebuild::new(value.key.clone(), value.encoding.kind(), self.manner.version);
        let mut bytes = self.reader.range(value.range.clone()).await?;
        while let Some(chunk) = bytes.next().await {
            decoder.push_cut(&chunk?, &mut rebuild)?;
            self.flush(&mut rebuild, value).await?;
        }
        if !decoder.is_done() {
            return Err(Error::corrupt(RESTORE, "a value ends early"));
        }
        rebuild.finish(value.options.expires_at);
        self.flush(&mut rebuild, value).await?;
        written.keys += 1;
        Ok(true)
    }

    async fn flush(&mut self, rebuild: &mut Rebuild, value: &Deferred) -> Result<()> {
        let (wire, commands) = rebuild.take();
        if commands == 0 {
            return Ok(());
        }
        self.connection.send(&wire).await?;
        for _ in 0..commands {
            if let Some(error) = self.connection.outcome().await? {
                return Err(error
                    .into_error(RESTORE, ErrorKind::TargetFailed)
                    .with("key", String::from_utf8_lossy(&value.key)));
            }
        }
        Ok(())
    }
}
