//! The end of a multipart upload.

use backup_core::{PutMode, Result};

use super::Writer;
use super::settle::{FIRST_WAIT, Outcome};
use super::upload::TRIES;
use crate::error::reply;

impl Writer {
    /// Makes the uploaded parts an object. An error only once the store has said that it did not, or has not been heard
    /// of for long: the parts are paid for, and a sink that fails here is lost for a whole run.
    pub(super) async fn complete_upload(&mut self) -> Result<()> {
        if let Some(upload) = &mut self.upload {
            upload.arrived().await?;
        }
        if self.options.mode == PutMode::CreateNew {
            self.refuse_existing().await?;
        }
        for attempt in 1.. {
            let Some(upload) = &mut self.upload else { break };
            let Err(error) = upload.complete().await else { break };
            let (mapped, repeatable) = (upload.completion_error(&error), upload.is_repeatable());
            let reply = reply(&error);
            // A repeated request finds no upload when the first one's reply was lost: then the object is there.
            let ended = reply.code_is(&["NoSuchUpload"]);
            let passing = reply.is_passing();
            let again = match self.look().await {
                Outcome::Ours | Outcome::Same => break,
                Outcome::Another if self.options.mode == PutMode::CreateNew => {
                    return Err(crate::sink::already_exists("complete upload", &self.shared, &self.key));
                }
                Outcome::Unknown => ended || (passing && repeatable),
                Outcome::Another | Outcome::Nothing => passing && repeatable && !ended,
            };
            if !again || attempt >= TRIES {
                return Err(mapped);
            }
            tokio::time::sleep(FIRST_WAIT * 2u32.pow(attempt)).await;
        }
        if let Some(upload) = &mut self.upload {
            upload.completed();
        }
        Ok(())
    }
}
