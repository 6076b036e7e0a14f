//! Trying a repository and a source out before they are relied on.

use super::Inner;
use crate::engine::progress::Watch;
use crate::error::{Error, ErrorKind, Result};
use crate::name::SinkId;
use crate::sink::Space;
use crate::source::{CheckReport, Source, Warning};

/// What [`Repository::check`](crate::Repository::check) found.
#[derive(Debug)]
#[non_exhaustive]
#[must_use = "a check may have found what makes the next backup fail: look at it or call `into_result`"]
pub struct Checkup {
    /// What the source says of itself; an error where it could not be asked at all.
    pub source: Result<CheckReport>,
    /// Every sink, in the order of the repository.
    pub sinks: Vec<SinkCheck>,
    /// What is unwise about the sinks together, and about their space.
    pub warnings: Vec<Warning>,
}

/// What was found about one sink.
#[derive(Debug)]
#[non_exhaustive]
pub struct SinkCheck {
    /// The sink.
    pub sink: SinkId,
    /// What it does not allow or what is unwise about it; an error where it cannot be used.
    pub probe: Result<Vec<Warning>>,
    /// Its space, where the place has such a thing and tells.
    pub space: Option<Space>,
}

impl Checkup {
    /// Whether a backup can be expected to succeed on every sink. Warnings do not count.
    pub fn is_ok(&self) -> bool {
        self.source.as_ref().is_ok_and(CheckReport::is_ok) && self.sinks.iter().all(|s| s.probe.is_ok())
    }

    /// The findings, or an error that names the first thing that would make a backup fail.
    pub fn into_result(self) -> Result<Self> {
        if self.is_ok() {
            return Ok(self);
        }
        for sink in self.sinks {
            if let Err(error) = sink.probe {
                return Err(error.with("sink", sink.sink));
            }
        }
        let error = Error::new(ErrorKind::SourceFailed, "check source");
        Err(match self.source?.findings.into_iter().find(|finding| finding.fatal) {
            Some(finding) => error.message(finding.message).with("code", finding.code),
            None => error,
        })
    }
}

impl Inner {
    pub(super) async fn check(&self, source: &dyn Source, watch: &Watch) -> Checkup {
        let sinks = self.sinks.iter().map(|sink| async move {
            let probe = self.patience.retry(sink.id(), watch, || sink.probe()).await;
            // A place that does not tell its space can still be written to.
            let space = self.patience.bound(sink.space()).await.ok().flatten();
            SinkCheck { sink: sink.id().clone(), probe, space }
        });
        let sinks = futures::future::join_all(sinks).await;
        let source = self.patience.bound_source(source.check()).await;
        let needed = source.as_ref().ok().and_then(|report| report.estimated_bytes);
        let tight = sinks.iter().filter_map(|sink| {
            let (needed, space) = (needed?, sink.space?);
            let message = format!(
                "{} has {} bytes left and the source has {needed}: unless they compress well, the backup will not fit",
                sink.sink, space.available
            );
            (space.available < needed).then(|| Warning::new("sink-may-be-too-small", message))
        });
        let warnings = self.warnings.iter().cloned().chain(tight).collect();
        Checkup { source, sinks, warnings }
    }
}
