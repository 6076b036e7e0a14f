//! Proves what a server holds by reading all of it back.

use std::collections::{BTreeMap, BTreeSet};

use backup_core::{CancellationToken, Error, ErrorKind, Proof, Result};
use chrono::Utc;
use futures::StreamExt as _;

use super::build::Proving;
use super::stage::MARKER;
use super::uncompressed::Uncompressed;
use crate::config::{Address, RedisConfig};
use crate::discover::connect_to;
use crate::feed::Feed;
use crate::rdb::proof::Sums;
use crate::rdb::{Class, Prover, RdbReader};
use crate::scan;
use crate::transfer::Transfer;

/// Keys that expire within this time, in milliseconds, may be gone already: server and client read their clocks at
/// different moments.
const MARGIN: i64 = 5_000;

/// The sums of the databases in `map` (number on the server, number to count as), over all `nodes`.
pub(crate) async fn read_back(
    config: &RedisConfig,
    nodes: &[Address],
    map: &BTreeMap<u64, u64>,
    opaque: &BTreeSet<(u64, Vec<u8>)>,
) -> Result<Sums> {
    let mut sums = Sums::default();
    for node in nodes {
        let (connection, server) = connect_to(config, node).await?;
        let uncompressed = Uncompressed::begin(connect_to(config, node).await?.0).await?;
        let begun = Transfer::start(connection, CancellationToken::new()).await;
        uncompressed.end(config).await?;
        let bytes = match begun {
            Ok(transfer) => transfer.bytes(),
            // What was just written is not written to by others: reading key by key gives the same.
            Err(e) if matches!(e.kind(), ErrorKind::PermissionDenied | ErrorKind::Unsupported) => {
                let (connection, _) = connect_to(config, node).await?;
                scan::bytes(connection, &server, CancellationToken::new()).await?
            }
            Err(e) => return Err(e),
        };
        let prover = Prover::new().mapped(map.clone(), Some(MARKER)).with_opaque(opaque.clone());
        let mut feed = Feed::start(RdbReader::new(), prover);
        let mut bytes = bytes;
        while let Some(chunk) = bytes.next().await {
            feed.push(chunk?).await?;
        }
        sums.merge(feed.finish().await?.sums());
    }
    Ok(sums)
}

/// Compares what was written with what was read back. Keys that expired meanwhile may be missing; of values that
/// cannot be compared, only the number is.
pub(crate) fn compare(written: &Sums, found: &Sums, proving: Proving) -> Result<()> {
    let (wanted, there) = (written.parts(), found.parts());
    let items: BTreeSet<_> = wanted.keys().chain(there.keys()).copied().collect();
    for item in items {
        let (db, kind, class) = item;
        let (wanted, there) =
            (wanted.get(&item).copied().unwrap_or_default(), there.get(&item).copied().unwrap_or_default());
        let same = match class {
            // Not all of them were hashed when they were written: `compare_lasting` is for these.
            Class::Lasting if proving == Proving::Backup => true,
            Class::Lasting => wanted == there,
            Class::Opaque => wanted.count == there.count,
            Class::Expiring => there.count <= wanted.count,
        };
        if !same {
            return Err(differs(wanted, there).with("database", db).with("type", kind.name()));
        }
    }
    if !written.changes().survive_in(found.changes(), Utc::now().timestamp_millis() + MARGIN) {
        return Err(Error::new(ErrorKind::ProofMismatch, "prove Redis restore")
            .message("keys that expire later are missing or differ: did another client write?")
            .with("keys_expected", written.changes().count())
            .with("keys_found", found.changes().count()));
    }
    Ok(())
}

/// Compares what was read back of the keys that stay with the backup's own proof of them.
pub(crate) fn compare_lasting(backup: Proof, found: Proof) -> Result<()> {
    if backup == found { Ok(()) } else { Err(differs(backup, found)) }
}

fn differs(wanted: Proof, found: Proof) -> Error {
    Error::new(ErrorKind::ProofMismatch, "prove Redis restore")
        .message("what the server holds now is not what was restored: did another client write?")
        .with("keys_expected", wanted.count)
        .with("keys_found", found.count)
}
