//! A program that runs.

use std::collections::VecDeque;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::AsyncReadExt as _;
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout};
use tokio::task::JoinHandle;

use super::failure::CommandFailure;
use super::{ARTIFACT_VARIABLE, CommandLine};
use crate::error::{Error, ErrorKind, Result};

/// Room in the pipes and size of reads, in bytes. The kernel's own 64 KiB cost four times the task switches.
pub(crate) const PIPE: usize = 256 * 1024;
/// How much of the standard error is kept.
const TAIL: usize = 64 * 1024;
/// How long to wait for the end of the standard error once the program has ended: a background process
/// it left behind may hold it open for ever.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Which streams of a program are connected.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Connect {
    /// Its standard output is read; its standard input is empty.
    Output,
    /// Its standard input is fed; its standard output goes nowhere.
    Input,
    /// Both.
    #[cfg(feature = "import")]
    Both,
    /// Neither.
    Nothing,
}

/// A started program. Dropping it kills its process group.
pub(crate) struct Running {
    child: Child,
    name: String,
    kind: ErrorKind,
    tail: Arc<Mutex<Tail>>,
    stderr: JoinHandle<()>,
}

#[derive(Default)]
struct Tail {
    bytes: VecDeque<u8>,
    total: u64,
}

impl Running {
    /// Starts `line`; errors about it will be of `kind`.
    pub(crate) fn start(
        line: &CommandLine,
        artifact: &str,
        connect: Connect,
        kind: ErrorKind,
    ) -> Result<Self> {
        use std::os::unix::process::CommandExt as _;
        #[cfg(feature = "import")]
        let both = connect == Connect::Both;
        #[cfg(not(feature = "import"))]
        let both = false;
        let piped = |wanted| if both || connect == wanted { Stdio::piped() } else { Stdio::null() };
        let mut command = line.to_std();
        command.env(ARTIFACT_VARIABLE, artifact).process_group(0);
        command.stdin(piped(Connect::Input)).stdout(piped(Connect::Output)).stderr(Stdio::piped());
        let mut child = tokio::process::Command::from(command).kill_on_drop(true).spawn().map_err(|e| {
            Error::new(kind, "start command")
                .message("the program cannot be started; check that it is installed, executable and in PATH")
                .with("program", line.name())
                .caused_by(e)
        })?;
        let tail = Arc::new(Mutex::new(Tail::default()));
        let stderr = child.stderr.take();
        let stderr = tokio::spawn(keep_tail(stderr, Arc::clone(&tail)));
        Ok(Self { child, name: line.name(), kind, tail, stderr })
    }

    pub(crate) fn take_stdout(&mut self) -> Result<ChildStdout> {
        let stdout = self.child.stdout.take().ok_or_else(|| self.not_connected())?;
        // Only a matter of speed; a user's pipe quota may forbid it.
        let _ = rustix::pipe::fcntl_setpipe_size(&stdout, PIPE);
        Ok(stdout)
    }

    pub(crate) fn take_stdin(&mut self) -> Result<ChildStdin> {
        let stdin = self.child.stdin.take().ok_or_else(|| self.not_connected())?;
        let _ = rustix::pipe::fcntl_setpipe_size(&stdin, PIPE);
        Ok(stdin)
    }

    fn not_connected(&self) -> Error {
        Error::new(ErrorKind::Internal, "start command")
            .message("a stream of the program is not connected")
            .with("program", &self.name)
    }

    /// Waits until the program has ended, and for the rest of its standard error.
    pub(crate) async fn wait(&mut self) -> Result<ExitStatus> {
        let status = self
            .child
            .wait()
            .await
            .map_err(|e| Error::io("wait for command", e).with("program", &self.name))?;
        let _ = tokio::time::timeout(LAST_WORDS, &mut self.stderr).await;
        Ok(status)
    }

    /// Kills the process group and waits until the program is gone.
    pub(crate) async fn stop(mut self) -> Option<ExitStatus> {
        self.kill();
        self.child.wait().await.ok()
    }

    fn kill(&mut self) {
        // `id` is `None` once the program was waited for: then the number may belong to someone else.
        let id = self.child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        if let Some(id) = id {
            // Fails only if the whole group ended meanwhile.
            let _ = kill_process_group(id, Signal::KILL);
        }
    }

    /// The error of a program that ended with `status`, or that is about to be stopped.
    pub(crate) fn failure(
        &self,
        operation: &'static str,
        message: &'static str,
        status: Option<ExitStatus>,
    ) -> Error {
        let (stderr, stderr_total) = self.said();
        let failure = CommandFailure { program: self.name.clone(), status, stderr, stderr_total };
        Error::new(self.kind, operation).message(message).caused_by(failure)
    }

    /// The end of the standard error so far, and how much there was of it.
    pub(crate) fn said(&self) -> (Vec<u8>, u64) {
        let tail = self.tail.lock().unwrap_or_else(PoisonError::into_inner);
        (tail.bytes.iter().copied().collect(), tail.total)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
        self.stderr.abort();
    }
}

/// Reads a standard error to its end, so that the program never waits for it, and keeps the last of it.
async fn keep_tail(stderr: Option<ChildStderr>, tail: Arc<Mutex<Tail>>) {
    let Some(mut stderr) = stderr else { return };
    let mut buffer = vec![0; 8192];
    while let Ok(n) = stderr.read(&mut buffer).await {
        let Some(said) = buffer.get(..n).filter(|said| !said.is_empty()) else { return };
        let mut tail = tail.lock().unwrap_or_else(PoisonError::into_inner);
        tail.total += said.len() as u64;
        tail.bytes.extend(said);
        let excess = tail.bytes.len().saturating_sub(TAIL);
        tail.bytes.drain(..excess);
    }
}
