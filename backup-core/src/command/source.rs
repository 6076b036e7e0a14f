//! [`CommandSource`].

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::BytesMut;
use futures::StreamExt as _;
use serde_json::Value;
use tokio::io::AsyncReadExt as _;
use tokio::process::ChildStdout;
use tokio_util::sync::CancellationToken;

use super::CommandLine;
use super::failure::printable;
use super::running::{Connect, PIPE, Running};
use crate::digest::{Digest, Hasher};
use crate::error::{Error, ErrorKind, Result};
use crate::item::ItemPath;
use crate::source::{
    Artifact, ArtifactFormat, ArtifactMeta, ByteStream, CheckReport, Finding, Outcome, Snapshot,
    SnapshotRequest, Source, SourceReport, Warning,
};
use crate::whole::{WHOLE_BYTES, whole_item, whole_proof};

/// How much of what a successful program said is kept in the details, in bytes.
const KEPT: usize = 16 * 1024;

/// What a program prints, as one artifact.
///
/// The backup succeeds only if the program ends with status 0 after its output was read to the end. The content is
/// proved as a whole ([`WHOLE_BYTES`]). What the program said on its standard error is kept in the details of the
/// backup (the last 16 KiB), or in the error (the last 64 KiB).
///
/// ```
/// use backup_core::{ArtifactFormat, CommandLine, CommandSource};
/// let line = CommandLine::from(["git", "bundle", "create", "-", "--all"]).current_dir("/srv/repo");
/// let source = CommandSource::new(line).artifact("repo", ArtifactFormat::new("git.bundle", "bundle"));
/// ```
#[derive(Clone, Debug)]
pub struct CommandSource {
    line: CommandLine,
    meta: ArtifactMeta,
    accepted: BTreeSet<i32>,
}

impl CommandSource {
    /// The output of a program, as an artifact `output.bin` of unknown structure.
    pub fn new(line: impl Into<CommandLine>) -> Self {
        Self {
            line: line.into(),
            meta: ArtifactMeta::new("output", ArtifactFormat::BYTES),
            accepted: BTreeSet::new(),
        }
    }

    /// Sets the name and the format of the artifact.
    pub fn artifact(mut self, name: impl Into<Cow<'static, str>>, format: ArtifactFormat) -> Self {
        self.meta = ArtifactMeta { size_hint: self.meta.size_hint, ..ArtifactMeta::new(name, format) };
        self
    }

    /// Sets how many bytes to expect.
    pub fn size_hint(mut self, bytes: u64) -> Self {
        self.meta.size_hint = Some(bytes);
        self
    }

    /// Lets this exit code count as success too, with a warning: GNU tar, for one, ends with 1 when a file changed
    /// while it was read.
    pub fn accept_exit_code(mut self, code: i32) -> Self {
        self.accepted.insert(code);
        self
    }
}

#[async_trait]
impl Source for CommandSource {
    fn kind(&self) -> &'static str {
        "command"
    }

    /// Looks whether the program exists. It is not run.
    async fn check(&self) -> Result<CheckReport> {
        let obstacle = self.line.obstacle().map(|message| Finding {
            fatal: true,
            code: "command-not-found".into(),
            message,
        });
        Ok(CheckReport {
            estimated_bytes: self.meta.size_hint,
            findings: obstacle.into_iter().collect(),
            ..CheckReport::default()
        })
    }

    async fn snapshot(&self, request: SnapshotRequest<'_>) -> Result<Box<dyn Snapshot>> {
        let selected = request.selection.matches(&ItemPath::new(self.meta.name.as_bytes()));
        Ok(Box::new(CommandSnapshot {
            source: self.clone(),
            stage: if selected { Stage::Waiting } else { Stage::Nothing },
            drained: Arc::default(),
            cancelled: request.cancelled,
        }))
    }
}

/// A program whose output was read to its end: it, the size and the digest.
type Drained = Arc<Mutex<Option<(Running, u64, Digest)>>>;

fn lock(drained: &Drained) -> MutexGuard<'_, Option<(Running, u64, Digest)>> {
    drained.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The selection leaves the artifact out.
    Nothing,
    Waiting,
    Started,
}

struct CommandSnapshot {
    source: CommandSource,
    stage: Stage,
    drained: Drained,
    cancelled: CancellationToken,
}

#[async_trait]
impl Snapshot for CommandSnapshot {
    async fn next(&mut self) -> Result<Option<Artifact>> {
        if self.stage != Stage::Waiting {
            return Ok(None);
        }
        let meta = self.source.meta.clone();
        let mut running =
            Running::start(&self.source.line, &meta.name, Connect::Output, ErrorKind::SourceFailed)?;
        self.stage = Stage::Started;
        let flow = Flow {
            stdout: running.take_stdout()?,
            running,
            buffer: BytesMut::new(),
            size: 0,
            hasher: Hasher::new(),
            drained: Arc::clone(&self.drained),
            cancelled: self.cancelled.clone(),
        };
        Ok(Some(Artifact { meta, data: flow.stream() }))
    }

    fn estimate(&self) -> Option<u64> {
        self.source.meta.size_hint
    }

    async fn finish(&mut self) -> Result<SourceReport> {
        let mut report = SourceReport::default();
        if self.stage == Stage::Nothing {
            return Ok(report);
        }
        let Some((mut running, size, sha256)) = lock(&self.drained).take() else {
            return Err(Error::new(ErrorKind::SourceFailed, "finish command")
                .message("the output of the program was not read to its end"));
        };
        let status = tokio::select! {
            biased;
            () = self.cancelled.cancelled() => return Err(Error::cancelled("finish command")),
            status = running.wait() => status?,
        };
        if !status.success() {
            if !status.code().is_some_and(|code| self.source.accepted.contains(&code)) {
                let message = "the program failed, so what it printed is not taken for a backup";
                return Err(running.failure("run command", message, Some(status)));
            }
            report.warnings.push(Warning::new(
                "command-exit-code",
                format!("{} ended with {status}, which was to be accepted", self.source.line.name()),
            ));
        }
        let name = &self.source.meta.name;
        report.items.push(&whole_item(name, size, sha256))?;
        report.proofs.insert(WHOLE_BYTES.to_owned(), whole_proof(name, &sha256));
        report.details.insert("program".to_owned(), Value::from(self.source.line.name()));
        let (said, _) = running.said();
        if !said.is_empty() {
            let end = said.get(said.len().saturating_sub(KEPT)..).unwrap_or_default();
            report.details.insert("stderr".to_owned(), Value::from(printable(end)));
        }
        Ok(report)
    }

    async fn close(self: Box<Self>, _outcome: Outcome) -> Result<()> {
        let running = lock(&self.drained).take();
        if let Some((running, ..)) = running {
            running.stop().await;
        }
        Ok(())
    }
}

/// The output of a program on its way. Dropping it kills the program.
struct Flow {
    stdout: ChildStdout,
    running: Running,
    buffer: BytesMut,
    size: u64,
    hasher: Hasher,
    drained: Drained,
    cancelled: CancellationToken,
}

impl Flow {
    fn stream(self) -> ByteStream {
        futures::stream::unfold(Some(self), |state| async move {
            let mut flow = state?;
            flow.buffer.reserve(PIPE);
            let cancelled = flow.cancelled.clone();
            let read = tokio::select! {
                biased;
                () = cancelled.cancelled() => return Some((Err(Error::cancelled("run command")), None)),
                read = flow.stdout.read_buf(&mut flow.buffer) => read,
            };
            match read {
                Ok(0) => {
                    *lock(&flow.drained) = Some((flow.running, flow.size, flow.hasher.finish()));
                    None
                }
                Ok(_) => {
                    let chunk = flow.buffer.split().freeze();
                    flow.size += chunk.len() as u64;
                    flow.hasher.update(&chunk);
                    Some((Ok(chunk), Some(flow)))
                }
                Err(e) => Some((
                    Err(Error::new(ErrorKind::SourceFailed, "run command")
                        .message("the output of the program cannot be read")
                        .caused_by(e)),
                    None,
                )),
            }
        })
        .boxed()
    }
}
