//! Storing the wraps of a backup's key.

use bytes::Bytes;

use super::Inner;
use crate::engine::fanout::Numbered;
use crate::engine::progress::Watch;
use crate::error::Result;
use crate::keys::{BackupKey, Keyring};
use crate::name::{BackupId, SetName};

impl Inner {
    pub(super) async fn wrap(
        &self,
        _keyring: &Keyring,
        _set: &SetName,
        _id: BackupId,
        _key: &BackupKey,
        _sinks: &[Numbered],
        _watch: &Watch,
    ) -> Result<Vec<(String, Bytes)>> {
        Ok(Vec::new())
    }
}
