//! What became of a request whose reply is in doubt: found out by a look at the object itself.

use std::time::Duration;

use backup_core::{Digest, Hasher, Result};
use futures::TryStreamExt as _;

use super::Writer;
use crate::read;

/// The wait before the first repetition of a request in doubt; doubled each time.
pub(super) const FIRST_WAIT: Duration = Duration::from_millis(100);

/// What a look at the name says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The object is the one this writer was given.
    Ours,
    /// One of the same bytes, on a store that does not say who wrote it.
    Same,
    /// Another object.
    Another,
    Nothing,
    /// The look failed.
    Unknown,
}

impl Writer {
    /// Whose object lies there: by its writer's token; on a store without metadata by its bytes, where this writer hashed
    /// what it was given.
    pub(super) async fn look(&self) -> Outcome {
        let found = match self.shared.find(&self.path).await {
            Ok(found) => found,
            Err(object_store::Error::NotFound { .. }) => return Outcome::Nothing,
            Err(_) => return Outcome::Unknown,
        };
        match (&found.writer, &self.written) {
            (Some(writer), _) if *writer == self.token && found.meta.size == self.total => Outcome::Ours,
            (None, Some(written)) if found.meta.size == self.total => match self.read_back().await {
                Ok(there) if there == written.clone().finish() => Outcome::Same,
                Ok(_) => Outcome::Another,
                Err(_) => Outcome::Unknown,
            },
            _ => Outcome::Another,
        }
    }

    async fn read_back(&self) -> Result<Digest> {
        let stream = read::open(self.shared.clone(), &self.key, None).await?;
        let hash = |mut hasher: Hasher, bytes: backup_core::Bytes| async move {
            hasher.update(&bytes);
            Ok(hasher)
        };
        Ok(stream.try_fold(Hasher::new(), hash).await?.finish())
    }
}
