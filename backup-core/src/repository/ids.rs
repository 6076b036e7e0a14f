//! The names of new backups.

use std::sync::{Mutex, PoisonError};

use chrono::{DateTime, Utc};
use ring::rand::{SecureRandom as _, SystemRandom};

use crate::error::{Error, ErrorKind, Result};
use crate::name::BackupId;

/// The id of a run that starts at `started`.
///
/// Ids sort by the second; within one, those that this process made sort by the order in which it asked for them, so that
/// the newest is the one that was started last. Those that several processes start in one second have no order.
pub(super) fn new_id(started: DateTime<Utc>) -> Result<BackupId> {
    static LAST: Mutex<Option<BackupId>> = Mutex::new(None);
    let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
    let id = next(*last, BackupId::new(started, random()?));
    *last = Some(id);
    Ok(id)
}

/// `drawn`, or an id above `last` where both are of the same second and there is one.
fn next(last: Option<BackupId>, drawn: BackupId) -> BackupId {
    const LIMIT: u32 = 0x00ff_ffff;
    match last {
        Some(last) if last.time() == drawn.time() && last.random() < LIMIT => {
            // Small steps leave room for more; random ones keep two processes apart.
            let room = LIMIT - last.random();
            BackupId::new(drawn.time(), last.random() + 1 + drawn.random() % room.div_ceil(64))
        }
        _ => drawn,
    }
}

fn random() -> Result<u32> {
    let mut bytes = [0; 4];
    SystemRandom::new().fill(&mut bytes).map_err(|_| {
        Error::new(ErrorKind::Io, "make backup id").message("the system has no random numbers")
    })?;
    Ok(u32::from_le_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_one_second_ascend_in_the_order_they_were_asked_for() {
        let now = Utc::now();
        let mut last = next(None, BackupId::new(now, 0x00c0_ffee));
        for n in 0..500_u32 {
            let id = next(Some(last), BackupId::new(now, n.wrapping_mul(0x9e37_79b9)));
            assert!(id > last, "{last} then {id}, the {n}th");
            last = id;
        }
    }

    #[test]
    fn the_last_id_of_a_second_does_not_stop_the_next_run() {
        let now = Utc::now();
        let drawn = BackupId::new(now, 7);
        assert_eq!(next(Some(BackupId::new(now, 0x00ff_ffff)), drawn), drawn);
        let earlier = BackupId::new(now - chrono::TimeDelta::seconds(1), 0x00ff_fff0);
        assert_eq!(next(Some(earlier), drawn), drawn);
    }
}
