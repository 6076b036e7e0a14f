//! What the `gpg` command makes of a file.

use std::path::{Path, PathBuf};

use bytes::{Bytes, BytesMut};
use futures::StreamExt as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::ChildStdout;
use zeroize::Zeroizing;

use crate::command::CommandLine;
use crate::command::running::{Connect, PIPE, Running};
use crate::error::{Error, ErrorKind, Result};
use crate::source::ByteStream;

/// How `gpg` is called.
#[derive(Clone, Default)]
pub(super) struct Gpg {
    /// For files that a passphrase opens; without one the agent of the user is asked.
    pub(super) passphrase: Option<Zeroizing<String>>,
    pub(super) home: Option<PathBuf>,
}

/// The output of `gpg` on its way.
struct Flow {
    stdout: ChildStdout,
    running: Running,
    buffer: BytesMut,
}

impl Gpg {
    /// The decrypted bytes of a file. The passphrase goes through a pipe. The stream ends well only when `gpg` ended with
    /// success, which it does only when it found the file whole.
    pub(super) async fn decrypt(&self, file: &Path) -> Result<ByteStream> {
        let mut line = CommandLine::new("gpg").args(["--batch", "--no-tty", "--status-fd", "2"]);
        if let Some(home) = &self.home {
            line = line.arg("--homedir").arg(home);
        }
        if self.passphrase.is_some() {
            line = line.args(["--pinentry-mode", "loopback", "--passphrase-fd", "0"]);
        }
        let line = line.args(["--decrypt", "--"]).arg(file);
        if let Some(obstacle) = line.obstacle() {
            return Err(Error::new(ErrorKind::Unsupported, "import").message(
                "the file is encrypted with gpg, and the `gpg` command cannot be run; install it (Debian: gnupg)",
            )
            .with("obstacle", obstacle));
        }
        let connect = if self.passphrase.is_some() { Connect::Both } else { Connect::Output };
        let mut running = Running::start(&line, "", connect, ErrorKind::SourceFailed)?;
        if let Some(passphrase) = &self.passphrase {
            let mut stdin = running.take_stdin()?;
            // A program that does not read it says why itself.
            let _ = stdin.write_all(passphrase.as_bytes()).await;
            let _ = stdin.write_all(b"\n").await;
        }
        let flow = Flow { stdout: running.take_stdout()?, running, buffer: BytesMut::new() };
        Ok(futures::stream::unfold(Some(flow), |flow| async move {
            let mut flow = flow?;
            match flow.next().await {
                Ok(Some(bytes)) => Some((Ok(bytes), Some(flow))),
                Ok(None) => None,
                Err(error) => Some((Err(error), None)),
            }
        })
        .boxed())
    }
}

impl Flow {
    async fn next(&mut self) -> Result<Option<Bytes>> {
        self.buffer.reserve(PIPE);
        let read = self.stdout.read_buf(&mut self.buffer).await;
        if read.map_err(|e| Error::new(ErrorKind::SourceFailed, "import").caused_by(e))? > 0 {
            return Ok(Some(self.buffer.split().freeze()));
        }
        let status = self.running.wait().await?;
        let (said, _) = self.running.said();
        let said = String::from_utf8_lossy(&said);
        let says = |token: &str| {
            said.lines().any(|line| line.strip_prefix("[GNUPG:] ").is_some_and(|l| l.starts_with(token)))
        };
        if status.success() && says("DECRYPTION_OKAY") {
            return Ok(None);
        }
        let failure = self.running.failure("import", "gpg could not decrypt the file", Some(status));
        // The words of gpg's doc/DETAILS; a wrong passphrase has none of its own.
        let wrong = says("NO_SECKEY") || says("MISSING_PASSPHRASE") || said.contains("Bad session key");
        let (kind, why) = if wrong {
            (ErrorKind::WrongKey, "the passphrase is wrong, or the key for this file is not at hand")
        } else if says("BEGIN_DECRYPTION") || says("NODATA") || says("BADMDC") || says("UNEXPECTED") {
            (ErrorKind::Corrupt, "the file is damaged, cut off or nothing that gpg made")
        } else {
            return Err(failure);
        };
        Err(Error::new(kind, "import").message(why).caused_by(failure))
    }
}
