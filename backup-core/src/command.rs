//! Any program as a source or a target: [`CommandSource`] reads what it prints, [`CommandTarget`] feeds it.
//!
//! Programs are started from an argument vector, never through a shell, so nothing is quoted, expanded or
//! injected. The exit status decides about success, and the end of what the program said on its standard error
//! is kept in the error ([`CommandFailure`]).
//!
//! Each runs in a process group of its own. When a run is given up, the whole group is killed, so that the
//! helpers a program started end with it; the runtime then reaps it. Should this process itself be killed, the programs
//! end with the broken pipe.

mod failure;
pub(crate) mod running;
mod source;
mod target;

pub use failure::CommandFailure;
pub use source::CommandSource;
pub use target::CommandTarget;

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::{Path, PathBuf};

/// The environment variable that tells a command which artifact it is about.
pub const ARTIFACT_VARIABLE: &str = "BACKUP_ARTIFACT";

/// A program, its arguments, environment and directory.
///
/// Arguments can be seen by every user of the machine while the program runs: give secrets through
/// [`env`](CommandLine::env) or a file. `Debug` shows the program, the number of arguments and the names of the variables.
///
/// ```
/// use backup_core::CommandLine;
/// let dump = CommandLine::new("sqlite3").args(["/srv/app.db", ".dump"]).env("TZ", "UTC");
/// let short = CommandLine::from(["git", "bundle", "create", "-", "--all"]).current_dir("/srv/repo");
/// ```
#[derive(Clone)]
pub struct CommandLine {
    program: OsString,
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    clear_env: bool,
    current_dir: Option<PathBuf>,
}

impl CommandLine {
    /// A program: a path, or a name that is looked up in `PATH`.
    pub fn new(program: impl Into<OsString>) -> Self {
        Self {
            program: program.into(),
            args: Vec::new(),
            env: Vec::new(),
            clear_env: false,
            current_dir: None,
        }
    }

    /// Adds an argument.
    pub fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// Adds arguments.
    pub fn args<S: Into<OsString>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Sets an environment variable. Its value is never printed.
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// Starts with an empty environment instead of this process's own.
    pub fn env_clear(mut self) -> Self {
        self.clear_env = true;
        self
    }

    /// Sets the directory to run in.
    pub fn current_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.current_dir = Some(dir.into());
        self
    }

    /// The program's name, for errors.
    fn name(&self) -> String {
        Path::new(&self.program).file_name().unwrap_or(&self.program).to_string_lossy().into_owned()
    }

    fn to_std(&self) -> std::process::Command {
        let mut command = std::process::Command::new(&self.program);
        command.args(&self.args);
        if self.clear_env {
            command.env_clear();
        }
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        if let Some(dir) = &self.current_dir {
            command.current_dir(dir);
        }
        command
    }

    /// Why the program cannot be started, as far as it can be told without starting it.
    pub(crate) fn obstacle(&self) -> Option<String> {
        if let Some(dir) = self.current_dir.as_ref().filter(|dir| !dir.is_dir()) {
            return Some(format!("its working directory {} does not exist", dir.display()));
        }
        let executable = |path: &Path| {
            use std::os::unix::fs::PermissionsExt as _;
            path.metadata().is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
        };
        let program = Path::new(&self.program);
        let found = if self.program.as_encoded_bytes().contains(&b'/') {
            executable(&self.current_dir.as_deref().unwrap_or(Path::new("")).join(program))
        } else {
            let own_path =
                self.env.iter().rev().find(|(name, _)| name == "PATH").map(|(_, path)| path.clone());
            let path =
                own_path.or_else(|| std::env::var_os("PATH")).unwrap_or_else(|| "/bin:/usr/bin".into());
            !self.program.is_empty() && std::env::split_paths(&path).any(|dir| executable(&dir.join(program)))
        };
        (!found).then(|| format!("{} is not installed, not in PATH or not executable", self.name()))
    }
}

impl<S: AsRef<OsStr>, const N: usize> From<[S; N]> for CommandLine {
    /// The first is the program, the others its arguments.
    fn from(argv: [S; N]) -> Self {
        let mut argv = argv.iter().map(|part| part.as_ref().to_owned());
        Self::new(argv.next().unwrap_or_default()).args(argv)
    }
}

impl fmt::Debug for CommandLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let variables: Vec<_> = self.env.iter().map(|(name, _)| name).collect();
        f.debug_struct("CommandLine")
            .field("program", &self.program)
            .field("args", &self.args.len())
            .field("env", &variables)
            .field("clear_env", &self.clear_env)
            .field("current_dir", &self.current_dir)
            .finish()
    }
}
