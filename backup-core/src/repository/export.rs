//! Reading artifacts without restoring them: for other tools.

use super::Inner;
use super::contents::Contents;
use crate::error::{Error, ErrorKind, Result};
use crate::manifest::Manifest;
use crate::name::{BackupId, SetName};
use crate::reader::ArtifactReader;
use std::sync::Arc;

/// The plain artifacts of a backup, verified while they are read.
#[derive(Debug)]
pub struct Export {
    contents: Contents,
    readers: Vec<ArtifactReader>,
}

impl Export {
    pub(super) async fn open(inner: &Inner, set: SetName, id: BackupId) -> Result<Self> {
        let contents = Contents::open(inner, set, id).await?;
        let watch = inner.watch(Vec::new());
        let mut readers = Vec::new();
        for artifact in &contents.manifest().artifacts {
            let sha256 = contents.head.artifacts.get(artifact.meta.name.as_ref()).map(|a| a.sha256);
            let copies = &contents.opened.readable(inner);
            let reader = inner
                .plain_reader(&contents.opened, &artifact.meta.name, &artifact.stored, sha256, copies, &watch)
                .await?;
            readers.push(ArtifactReader::new(
                artifact.meta.clone(),
                reader.plain_size,
                None,
                Arc::new(reader),
            ));
        }
        Ok(Self { contents, readers })
    }

    /// The manifest.
    pub fn manifest(&self) -> &Manifest {
        self.contents.manifest()
    }

    /// Its artifacts, in the order of the manifest.
    pub fn artifacts(&self) -> &[ArtifactReader] {
        &self.readers
    }

    /// One artifact by name.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`] when the backup has no such artifact.
    pub fn artifact(&self, name: &str) -> Result<&ArtifactReader> {
        self.readers.iter().find(|r| r.meta().name == name).ok_or_else(|| {
            Error::new(ErrorKind::NotFound, "export artifact")
                .message("the backup has no artifact of this name; its manifest lists them")
                .with("artifact", name)
        })
    }
}
