//! An object in one put.

use backup_core::{ErrorKind, PutMode, Result};
use object_store::{PutOptions, PutPayload};

use super::Writer;
use super::settle::{FIRST_WAIT, Outcome};
use crate::error::{Tried, reply};

/// Tries of a conditional put whose outcome is in doubt. `object_store` does not repeat these by itself.
const TRIES: u32 = 6;
const OPERATION: &str = "put object";

impl Writer {
    /// Puts everything that was written in one request.
    pub(super) async fn put_whole(&mut self) -> Result<()> {
        let mut pieces = std::mem::take(&mut self.waiting);
        pieces.push(std::mem::take(&mut self.filling).into());
        // One contiguous piece stays one: the client then sends it without a stream in between.
        let payload: PutPayload = pieces.into_iter().filter(|piece| !piece.is_empty()).collect();
        let extensions = self.shared.lock(self.options.retain_until).await?;
        let mode = match self.options.mode {
            PutMode::CreateNew => object_store::PutMode::Create,
            PutMode::Overwrite => object_store::PutMode::Overwrite,
        };
        let mut doubted = false;
        for attempt in 0.. {
            let options = PutOptions {
                mode: mode.clone(),
                tags: self.shared.tags(),
                attributes: self.shared.attributes(&self.options, &self.token),
                extensions: extensions.clone(),
            };
            let Err(error) = self.shared.store.put_opts(&self.path, payload.clone(), options).await else {
                return Ok(());
            };
            let mapped = self.shared.error(OPERATION, Tried::Enough, &self.key, &error);
            let refused = mapped.kind() == ErrorKind::AlreadyExists;
            // Without an answer, or with a server's error: the object may be there or not.
            let in_doubt = matches!(mapped.kind(), ErrorKind::Unavailable | ErrorKind::Timeout);
            if self.options.mode == PutMode::Overwrite || !(refused || in_doubt) {
                return Err(mapped);
            }
            doubted |= in_doubt;
            // Two conditional puts at once: the store may tell both to come again (409), and keep neither.
            let collided =
                refused && reply(&error).code_is(&["ConditionalRequestConflict", "OperationAborted"]);
            match self.look().await {
                Outcome::Ours => return Ok(()),
                // Equal bytes alone are another writer's, unless a request of this one may have arrived.
                Outcome::Same if doubted => return Ok(()),
                Outcome::Same | Outcome::Another => {
                    return Err(crate::sink::already_exists(OPERATION, &self.shared, &self.key));
                }
                Outcome::Unknown if refused && !collided => return Err(mapped),
                Outcome::Nothing | Outcome::Unknown if attempt + 1 < TRIES => {
                    tokio::time::sleep(FIRST_WAIT * 2u32.pow(attempt)).await;
                }
                Outcome::Nothing | Outcome::Unknown => return Err(mapped),
            }
        }
        Ok(())
    }
}
