//! [`CommandTarget`].

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use futures::TryStreamExt as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::CommandLine;
use super::running::{Connect, PIPE, Running};
use crate::digest::{Digest, Hasher};
use crate::error::{Error, ErrorKind, Result};
use crate::proof::{Proof, Proofs};
use crate::reader::ArtifactReader;
use crate::source::ArtifactFormat;
use crate::target::{Atomicity, Restore, RestorePlan, RestoreReport, RestoreTarget, Undo};
use crate::whole::{WHOLE_BYTES, whole_proof};

const KIND: ErrorKind = ErrorKind::TargetFailed;

/// A program that is fed the artifacts of a backup: one run per artifact, the bytes on its standard input, the
/// artifact's name in `BACKUP_ARTIFACT`. It must read them to their end and exit with status 0.
///
/// What a program does with its input cannot be seen from outside, so by default nothing is promised
/// ([`Atomicity::None`]): it works in place from its first byte, an abort only kills it, and the proof is that of the
/// bytes it was fed. It is therefore only run where [`empty_when`](CommandTarget::empty_when) says that nothing is in the
/// way, or where a replacement, its being partial, and a safety backup were asked for. Three commands make more of it:
///
/// * [`staged`](CommandTarget::staged): the program writes *beside* the real place; a second command puts the result
///   in place, a third removes it. The target then counts as [`Atomicity::Swap`].
/// * [`empty_when`](CommandTarget::empty_when): tells whether something is in the way.
/// * [`prove_with`](CommandTarget::prove_with): reads an artifact back, and the proof is that of what it prints.
///
/// There is no undo: where the old state matters, let the command of `staged` keep it.
///
/// Only backups proved as a whole ([`WHOLE_BYTES`]) can be restored into a command; others are refused at `begin`.
#[derive(Clone, Debug)]
pub struct CommandTarget {
    line: CommandLine,
    format: Option<ArtifactFormat>,
    staged: Option<Staged>,
    empty_when: Option<CommandLine>,
    prove_with: Option<CommandLine>,
}

#[derive(Clone, Debug)]
struct Staged {
    commit: CommandLine,
    abort: CommandLine,
}

impl CommandTarget {
    /// A program to feed.
    pub fn new(line: impl Into<CommandLine>) -> Self {
        Self { line: line.into(), format: None, staged: None, empty_when: None, prove_with: None }
    }

    /// Accepts only artifacts of this format; without it, of any.
    pub fn format(mut self, format: ArtifactFormat) -> Self {
        self.format = Some(format);
        self
    }

    /// Declares that the program writes beside the real place, which `commit` then replaces in one step. `abort` removes
    /// what was written so far, and is also run when nothing was.
    pub fn staged(mut self, commit: impl Into<CommandLine>, abort: impl Into<CommandLine>) -> Self {
        self.staged = Some(Staged { commit: commit.into(), abort: abort.into() });
        self
    }

    /// Sets a command that exits with 0 when nothing is in the way of a restore, and with 1 when something is: `test ! -e
    /// path`, or `true` where there is nothing to be in the way of. Without it a target restores only when asked to replace.
    pub fn empty_when(mut self, test: impl Into<CommandLine>) -> Self {
        self.empty_when = Some(test.into());
        self
    }

    /// Sets a command that prints the restored (or staged) bytes of the artifact named in `BACKUP_ARTIFACT`.
    pub fn prove_with(mut self, read_back: impl Into<CommandLine>) -> Self {
        self.prove_with = Some(read_back.into());
        self
    }

    async fn refuse_occupied(&self) -> Result<()> {
        let occupied = |message: &'static str| {
            Err(Error::new(ErrorKind::TargetNotEmpty, "restore into command").message(message))
        };
        match &self.empty_when {
            Some(test) => {
                let mut running = Running::start(test, "", Connect::Nothing, KIND)?;
                let status = running.wait().await?;
                match status.code() {
                    Some(0) => Ok(()),
                    Some(1) => occupied("something is in the way; remove it, or ask for `replace`"),
                    _ => Err(running.failure(
                        "restore into command",
                        "whether something is in the way could not be found out",
                        Some(status),
                    )),
                }
            }
            None => occupied(
                "the target cannot tell whether something is in the way; give it `empty_when`, or ask for `replace`",
            ),
        }
    }
}

#[async_trait]
impl RestoreTarget for CommandTarget {
    fn accepts(&self, format: &ArtifactFormat) -> bool {
        self.format.as_ref().is_none_or(|only| only == format)
    }

    fn atomicity(&self) -> Atomicity {
        if self.staged.is_some() { Atomicity::Swap } else { Atomicity::None }
    }

    async fn begin(&self, plan: &RestorePlan) -> Result<Box<dyn Restore>> {
        if let Some(foreign) = plan.proofs.keys().find(|name| *name != WHOLE_BYTES) {
            return Err(Error::new(ErrorKind::Unsupported, "restore into command")
                .message("this backup proves its content in a way only its own kind of target can repeat; export it instead")
                .with("source", &plan.source_kind)
                .with("proof", foreign));
        }
        if let Some(obstacle) = self.line.obstacle() {
            return Err(Error::new(KIND, "restore into command").message(obstacle));
        }
        if !plan.replace {
            self.refuse_occupied().await?;
        }
        Ok(Box::new(CommandRestore {
            target: self.clone(),
            fed: Mutex::default(),
            expected: plan.proofs.keys().map(|name| (name.clone(), Proof::empty())).collect(),
            open: self.staged.is_some(),
        }))
    }
}

/// Size and digest of what the program was fed, by artifact.
type Fed = BTreeMap<String, (u64, Digest)>;

struct CommandRestore {
    target: CommandTarget,
    fed: Mutex<Fed>,
    /// The proofs the plan names, empty: what a restore of nothing proves.
    expected: Proofs,
    /// Whether the abort command is still to be run if this is dropped.
    open: bool,
}

impl CommandRestore {
    fn fed(&self) -> MutexGuard<'_, Fed> {
        self.fed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Restore for CommandRestore {
    async fn artifact(&self, reader: ArtifactReader) -> Result<()> {
        let name = reader.meta().name.to_string();
        let mut stream = reader.selected().await?;
        let mut running = Running::start(&self.target.line, &name, Connect::Input, KIND)?;
        let mut stdin = running.take_stdin()?;
        let (mut size, mut hasher) = (0, Hasher::new());
        while let Some(chunk) = stream.try_next().await? {
            if let Err(e) = stdin.write_all(&chunk).await {
                return Err(stopped_reading(running, &e).await);
            }
            size += chunk.len() as u64;
            hasher.update(&chunk);
        }
        // The end of its input, for the program.
        if let Err(e) = stdin.shutdown().await {
            return Err(stopped_reading(running, &e).await);
        }
        drop(stdin);
        let status = running.wait().await?;
        if !status.success() {
            return Err(running.failure(
                "run command",
                "the program failed to take the artifact",
                Some(status),
            ));
        }
        self.fed().insert(name, (size, hasher.finish()));
        Ok(())
    }

    async fn prove(&self) -> Result<Proofs> {
        let mut proofs = self.expected.clone();
        let fed = self.fed().clone();
        for (name, (_, fed)) in fed {
            let sha256 = match &self.target.prove_with {
                Some(line) => digest_of_output(line, &name).await?,
                None => fed,
            };
            proofs.entry(WHOLE_BYTES.to_owned()).or_default().merge(&whole_proof(&name, &sha256));
        }
        Ok(proofs)
    }

    async fn commit(mut self: Box<Self>) -> Result<(RestoreReport, Option<Box<dyn Undo>>)> {
        if let Some(staged) = &self.target.staged {
            run(&staged.commit, "the command that puts the restored state in place failed").await?;
        }
        self.open = false;
        let fed = self.fed();
        let report = RestoreReport {
            items: fed.len() as u64,
            bytes: fed.values().map(|(size, _)| size).sum(),
            ..RestoreReport::default()
        };
        Ok((report, None))
    }

    async fn abort(mut self: Box<Self>) -> Result<()> {
        self.open = false;
        match &self.target.staged {
            Some(staged) => run(&staged.abort, "the command that removes the staged state failed").await,
            None => Ok(()),
        }
    }
}

impl Drop for CommandRestore {
    fn drop(&mut self) {
        if let Some(staged) = self.target.staged.take().filter(|_| self.open) {
            let mut abort = staged.abort.to_std();
            abort.stdin(std::process::Stdio::null()).stdout(std::process::Stdio::null());
            // Nobody is left to hear how it ended; the thread reaps it.
            std::thread::spawn(move || abort.status());
        }
    }
}

/// A program that closed its input, most often because it failed: its status and last words say why.
async fn stopped_reading(mut running: Running, error: &std::io::Error) -> Error {
    if error.kind() != std::io::ErrorKind::BrokenPipe {
        return running.failure("run command", "the program cannot be fed", None);
    }
    // It may live on without its input; it gets a moment to end by itself and say why.
    let patience = std::time::Duration::from_secs(5);
    let status = tokio::time::timeout(patience, running.wait()).await.ok().and_then(Result::ok);
    running.failure("run command", "the program stopped reading before the end of the artifact", status)
}

async fn run(line: &CommandLine, message: &'static str) -> Result<()> {
    let mut running = Running::start(line, "", Connect::Nothing, KIND)?;
    let status = running.wait().await?;
    if status.success() { Ok(()) } else { Err(running.failure("run command", message, Some(status))) }
}

async fn digest_of_output(line: &CommandLine, artifact: &str) -> Result<Digest> {
    let mut running = Running::start(line, artifact, Connect::Output, KIND)?;
    let mut stdout = running.take_stdout()?;
    let (mut buffer, mut hasher) = (vec![0; PIPE], Hasher::new());
    loop {
        let n = stdout.read(&mut buffer).await.map_err(|e| Error::io("read back from command", e))?;
        match buffer.get(..n) {
            Some([]) | None => break,
            Some(read) => hasher.update(read),
        }
    }
    let status = running.wait().await?;
    if status.success() {
        Ok(hasher.finish())
    } else {
        Err(running.failure(
            "run command",
            "the command that reads back the restored bytes failed",
            Some(status),
        ))
    }
}
