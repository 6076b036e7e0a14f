//! Slices that join: where a log goes on, where it breaks off, and which slices lead to a moment.

use std::fmt;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::log::LogPosition;
use super::pitr::usable;
use super::summary::{BackupKind, BackupSummary};
use crate::error::{Error, ErrorKind, Result};

/// How far a restore replays the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Until {
    /// Every entry up to this moment by the datastore's clock, those of the moment itself included.
    Time(DateTime<Utc>),
    /// Every entry that ends at or before this position.
    Position(LogPosition),
    /// Everything that is stored without a gap.
    End,
}

impl From<DateTime<Utc>> for Until {
    fn from(time: DateTime<Utc>) -> Self {
        Self::Time(time)
    }
}

impl From<LogPosition> for Until {
    fn from(position: LogPosition) -> Self {
        Self::Position(position)
    }
}

impl fmt::Display for Until {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Time(time) => write!(f, "{time}"),
            Self::Position(position) => write!(f, "position {position}"),
            Self::End => f.write_str("the end of the log"),
        }
    }
}

/// A stretch of the log that is missing between slices.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct LogGap {
    /// The end of the last slice before it.
    pub from: LogPosition,
    /// The beginning of the first slice after it.
    pub to: LogPosition,
    /// The moment up to which the log is complete before it.
    pub from_time: DateTime<Utc>,
    /// The moment of the first entry after it.
    pub to_time: DateTime<Utc>,
}

impl fmt::Display for LogGap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "from {} ({}) to {} ({})", self.from, self.from_time, self.to, self.to_time)
    }
}

/// A continuous log: slices that join, as runs without a gap.
#[derive(Debug)]
pub(super) struct Log<'a> {
    /// In the order of the log, apart from each other.
    pub(super) runs: Vec<Run<'a>>,
}

#[derive(Debug)]
pub(super) struct Run<'a> {
    pub(super) from: &'a LogPosition,
    pub(super) to: &'a LogPosition,
    since: DateTime<Utc>,
    pub(super) until: DateTime<Utc>,
}

impl<'a> Log<'a> {
    /// The runs of the sealed slices among `backups`.
    pub(super) fn new(backups: &'a [BackupSummary]) -> Self {
        let mut slices: Vec<_> = backups
            .iter()
            .filter(|b| b.sealed)
            .filter_map(|b| match &b.kind {
                BackupKind::Log { from, to, from_time, to_time } if from <= to => {
                    Some(Run { from, to, since: *from_time, until: *to_time })
                }
                _ => None,
            })
            .collect();
        slices.sort_by_key(|slice| (slice.from, slice.to));
        let mut runs: Vec<Run<'a>> = Vec::new();
        for slice in slices {
            match runs.last_mut() {
                Some(run) if slice.from <= run.to => {
                    run.to = run.to.max(slice.to);
                    run.until = run.until.max(slice.until);
                }
                _ => runs.push(slice),
            }
        }
        Self { runs }
    }

    /// The run that joins `position`, which may be its very end.
    fn run(&self, position: &LogPosition) -> Option<&Run<'a>> {
        let next = self.runs.partition_point(|run| run.from <= position);
        let run = self.runs.get(next.checked_sub(1)?)?;
        (position <= run.to).then_some(run)
    }

    /// The last moment that can be restored from `base` and the log.
    pub(super) fn reach(&self, base: &BackupSummary) -> Option<DateTime<Utc>> {
        self.run(base.log_position.as_ref()?).map(|run| run.until)
    }

    pub(super) fn gaps(&self) -> Vec<LogGap> {
        let pairs = self.runs.windows(2).filter_map(|pair| match pair {
            [before, after] => Some(LogGap {
                from: before.to.clone(),
                to: after.from.clone(),
                from_time: before.until,
                to_time: after.since,
            }),
            _ => None,
        });
        pairs.collect()
    }
}

/// Where following a log begins or goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Resume {
    /// From here no gap is opened.
    pub(crate) from: LogPosition,
    /// Where a new range begins if the source no longer has what follows `from`: the position of the newest base.
    pub(crate) or_else: Option<LogPosition>,
    /// The position of the newest base.
    pub(crate) base: Option<LogPosition>,
}

/// Where to go on: behind the slices that join the newest base, or else behind the last slice before it, so that the
/// stretch up to the base is not lost either. `None` where there is neither a base with a position nor a slice.
pub(crate) fn resume(backups: &[BackupSummary]) -> Option<Resume> {
    let log = Log::new(backups);
    let newest = usable(backups).into_iter().filter(|b| b.log_position.is_some());
    let base = newest.max_by_key(|b| (b.moment(), b.id)).and_then(|b| b.log_position.clone());
    let Some(position) = &base else {
        let last = log.runs.last()?;
        return Some(Resume { from: last.to.clone(), or_else: None, base });
    };
    if let Some(run) = log.run(position) {
        return Some(Resume { from: run.to.clone(), or_else: None, base });
    }
    let before = log.runs.iter().rev().find(|run| run.to < position);
    Some(match before {
        Some(run) => Resume { from: run.to.clone(), or_else: base.clone(), base },
        None => Resume { from: position.clone(), or_else: None, base },
    })
}

/// The base from which `until` is reached, and the slices to replay on it, oldest first. With `only`, that base.
///
/// Each slice begins at or before the end of the one before it: entries that were replayed already are to be skipped.
///
/// # Errors
///
/// [`ErrorKind::LogGap`] with what is missing, or [`ErrorKind::NotFound`] where no base is old enough.
pub(crate) fn choose<'a>(
    backups: &'a [BackupSummary],
    until: &Until,
    only: impl Fn(&BackupSummary) -> bool,
) -> Result<(&'a BackupSummary, Vec<&'a BackupSummary>)> {
    let mut bases: Vec<_> = usable(backups).into_iter().filter(|b| only(b)).collect();
    bases.retain(|base| match until {
        Until::Time(time) => base.moment() <= *time,
        Until::Position(end) => base.log_position.as_ref().is_some_and(|start| start <= end),
        Until::End => base.log_position.is_some(),
    });
    bases.sort_by_key(|base| std::cmp::Reverse((base.moment(), base.id)));
    let mut first_gap = None;
    for base in &bases {
        match slices(backups, base, until) {
            Ok(slices) => return Ok((base, slices)),
            Err(error) => first_gap = first_gap.or(Some(error)),
        }
    }
    Err(first_gap.unwrap_or_else(|| {
        Error::new(ErrorKind::NotFound, "choose backup")
            .message("no backup of this set is old enough, and knows its place in the log; `pitr_ranges` lists what can be restored")
            .with("until", until)
    }))
}

/// The slices from a base up to `until`.
fn slices<'a>(
    backups: &'a [BackupSummary],
    base: &BackupSummary,
    until: &Until,
) -> Result<Vec<&'a BackupSummary>> {
    let alone = matches!(until, Until::Time(time) if base.moment() == *time);
    let Some(start) = &base.log_position else {
        return if alone { Ok(Vec::new()) } else { Err(broken(base.id, until, None)) };
    };
    let mut sorted: Vec<_> = backups.iter().filter(|b| b.sealed).filter_map(Slice::of).collect();
    sorted.sort_by_key(|slice| slice.from);
    let mut rest = sorted.into_iter().peekable();
    let (mut reached, mut reached_time) = (start, base.moment());
    let mut chain = Vec::new();
    loop {
        let done = match until {
            Until::Position(end) => reached >= end,
            Until::Time(_) | Until::End => false,
        };
        if done {
            return Ok(chain);
        }
        // Of those that join, the one that leads farthest.
        let mut next: Option<Slice<'a>> = None;
        while let Some(slice) = rest.next_if(|slice| slice.from <= reached) {
            if slice.to > reached && next.as_ref().is_none_or(|best| slice.to > best.to) {
                next = Some(slice);
            }
        }
        let beyond = |slice: &Slice<'_>| matches!(until, Until::Time(time) if slice.from_time > *time);
        match next {
            // Nothing of this slice is wanted, but it joins: no entry before it is missing.
            Some(slice) if beyond(&slice) => return Ok(chain),
            Some(slice) => {
                reached = slice.to;
                reached_time = reached_time.max(slice.to_time);
                chain.push(slice.summary);
            }
            None => {
                let enough = match until {
                    Until::End => true,
                    Until::Time(time) => alone || reached_time >= *time,
                    Until::Position(_) => false,
                };
                return if enough {
                    Ok(chain)
                } else {
                    Err(broken(base.id, until, Some((reached, reached_time))))
                };
            }
        }
    }
}

struct Slice<'a> {
    summary: &'a BackupSummary,
    from: &'a LogPosition,
    to: &'a LogPosition,
    from_time: DateTime<Utc>,
    to_time: DateTime<Utc>,
}

impl<'a> Slice<'a> {
    fn of(summary: &'a BackupSummary) -> Option<Self> {
        match &summary.kind {
            BackupKind::Log { from, to, from_time, to_time } => {
                Some(Self { summary, from, to, from_time: *from_time, to_time: *to_time })
            }
            _ => None,
        }
    }
}

fn broken(
    base: crate::name::BackupId,
    until: &Until,
    reached: Option<(&LogPosition, DateTime<Utc>)>,
) -> Error {
    let error = Error::new(ErrorKind::LogGap, "choose backup")
        .message("the log does not lead from the base to there without a gap; `pitr_ranges` lists what can be restored")
        .with("until", until)
        .with("base", base);
    match reached {
        Some((position, time)) => error.with("reached", position).with("reached_time", time),
        None => error.with("reached", "nothing: the base does not know its place in the log"),
    }
}
