//! The way back after a replacing restore.

use async_trait::async_trait;
use backup_core::{Error, ErrorKind, Result, Undo};
use bytes::Bytes;

use super::build::Manner;
use super::functions;
use super::load::Loader;
use super::safety::Safety;
use super::stage::{empty, swap};
use crate::connect::Connection;
use crate::discover::connect_to;

async fn connect(loader: &Loader) -> Result<Connection> {
    match loader.nodes.first() {
        Some(node) => Ok(connect_to(&loader.config, node).await?.0),
        None => Err(Error::new(ErrorKind::Internal, "undo Redis restore")),
    }
}

/// Loads the functions there were on every node.
async fn functions_back(loader: &Loader, version: u32, old: Option<&[Bytes]>) -> Result<()> {
    let Some(old) = old else { return Ok(()) };
    for node in &loader.nodes {
        let (mut connection, _) = connect_to(&loader.config, node).await?;
        functions::load(&mut connection, old, version, "FLUSH").await?;
    }
    Ok(())
}

/// Old databases wait in spare ones.
#[derive(Debug)]
pub(super) struct SwapBack {
    pub(super) loader: Loader,
    pub(super) version: u32,
    /// Each restored database and the spare one it came from.
    pub(super) pairs: Vec<(u64, u64)>,
    /// Those of them whose spare one holds something.
    pub(super) kept: Vec<(u64, u64)>,
    pub(super) functions: Option<Vec<Bytes>>,
}

#[async_trait]
impl Undo for SwapBack {
    async fn undo(self: Box<Self>) -> Result<()> {
        let mut connection = connect(&self.loader).await?;
        // Backwards: a spare database of one may be the database of another.
        let pairs: Vec<_> = self.pairs.iter().rev().copied().collect();
        swap(&mut connection, &pairs, false).await?;
        for (_, spare) in &self.pairs {
            empty(&mut connection, *spare).await?;
        }
        functions_back(&self.loader, self.version, self.functions.as_deref()).await
    }

    async fn drop_old(self: Box<Self>) -> Result<()> {
        let mut connection = connect(&self.loader).await?;
        for (_, spare) in &self.kept {
            empty(&mut connection, *spare).await?;
        }
        Ok(())
    }
}

/// The old state is in files.
#[derive(Debug)]
pub(super) struct PutBack {
    pub(super) loader: Loader,
    pub(super) manner: Manner,
    pub(super) safety: Safety,
    pub(super) functions: Option<Vec<Bytes>>,
}

#[async_trait]
impl Undo for PutBack {
    async fn undo(self: Box<Self>) -> Result<()> {
        self.safety.put_back(&self.loader, &self.manner).await?;
        functions_back(&self.loader, self.manner.version, self.functions.as_deref()).await?;
        self.safety.remove().await
    }

    async fn drop_old(self: Box<Self>) -> Result<()> {
        self.safety.remove().await
    }
}
