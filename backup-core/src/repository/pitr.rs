//! Which moments can be restored.

use std::fmt;
use std::ops::Deref;

use super::catalog::{BackupList, Unreadable};
use crate::error::Error;
use crate::name::SinkId;
use crate::retention::{BackupSummary, LogGap, PitrRange, pitr_gaps, pitr_ranges};

/// Which moments of a set can be restored. Dereferences to the intervals, oldest first, in which every moment can be restored
/// from all sinks together.
#[derive(Debug)]
#[non_exhaustive]
pub struct PitrReport {
    ranges: Vec<PitrRange>,
    /// The stretches of the log that no sink has, oldest first.
    pub gaps: Vec<LogGap>,
    /// What each sink could restore if it were the only one left.
    pub sinks: Vec<SinkPitr>,
    /// Backups and slices that cannot be read or trusted, and therefore take no part.
    pub unreadable: Vec<Unreadable>,
    /// Sinks that could not be listed: what only they hold is missing here.
    pub unreachable: Vec<(SinkId, Error)>,
}

/// Which moments can be restored from one sink alone.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SinkPitr {
    /// The sink.
    pub sink: SinkId,
    /// The intervals, oldest first.
    pub ranges: Vec<PitrRange>,
    /// The stretches of the log it lacks between the slices it has, oldest first.
    pub gaps: Vec<LogGap>,
}

impl PitrReport {
    pub(super) fn new<'a>(mut list: BackupList, sinks: impl Iterator<Item = &'a SinkId>) -> Self {
        let alone = |sink: &SinkId| {
            let held: Vec<BackupSummary> = list.iter().filter(|b| b.copies.contains(sink)).cloned().collect();
            SinkPitr { sink: sink.clone(), ranges: pitr_ranges(&held), gaps: pitr_gaps(&held) }
        };
        Self {
            ranges: pitr_ranges(&list),
            gaps: pitr_gaps(&list),
            sinks: sinks
                .filter(|sink| list.unreachable.iter().all(|(away, _)| away != *sink))
                .map(alone)
                .collect(),
            unreadable: std::mem::take(&mut list.unreadable),
            unreachable: std::mem::take(&mut list.unreachable),
        }
    }
}

impl Deref for PitrReport {
    type Target = [PitrRange];
    fn deref(&self) -> &[PitrRange] {
        &self.ranges
    }
}

impl fmt::Display for PitrReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let write = |f: &mut fmt::Formatter<'_>, ranges: &[PitrRange], gaps: &[LogGap]| {
            for range in ranges {
                write!(f, "\n  {} to {}", range.from, range.to)?;
            }
            for gap in gaps {
                write!(f, "\n  the log lacks what is {gap}")?;
            }
            if ranges.is_empty() { f.write_str("\n  nothing") } else { Ok(()) }
        };
        f.write_str("restorable from all sinks:")?;
        write(f, &self.ranges, &self.gaps)?;
        for sink in &self.sinks {
            write!(f, "\nfrom {} alone:", sink.sink)?;
            write(f, &sink.ranges, &sink.gaps)?;
        }
        for (sink, error) in &self.unreachable {
            write!(f, "\n{sink} cannot be listed: {error}")?;
        }
        Ok(())
    }
}
