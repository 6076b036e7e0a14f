//! Whether a server would overwrite or ignore a file placed in its directory.

use std::path::Path;

use backup_core::{Error, ErrorKind, Result};

use super::{FILE, shown};
use crate::config::RedisConfig;
use crate::discover::connect;

const STOP: &str = "a server runs there, and its save at shutdown would overwrite the file: stop it first with \
                    `redis-cli CONFIG SET save \"\"`, `redis-cli CONFIG SET appendonly no` and \
                    `redis-cli SHUTDOWN NOSAVE`";

/// Refuses if the server answers.
pub(super) async fn is_not_answering(config: &RedisConfig) -> Result<()> {
    match connect(config).await {
        Ok((connection, _)) => {
            Err(Error::new(ErrorKind::TargetFailed, FILE).message(STOP).with("server", &connection.address))
        }
        // Nobody listens: that is what is wanted.
        Err(e) if e.kind() == ErrorKind::Unavailable => Ok(()),
        Err(e) => Err(e),
    }
}

/// Refuses if a process of this machine works in `directory` and is a server. Servers change into their `dir`; of
/// processes whose directory this user may not see nothing is known.
pub(super) fn running_in(directory: &Path) -> Result<()> {
    let Ok(directory) = directory.canonicalize() else { return Ok(()) };
    let Ok(processes) = std::fs::read_dir("/proc") else { return Ok(()) };
    for process in processes.flatten() {
        let path = process.path();
        let is_there = std::fs::read_link(path.join("cwd")).is_ok_and(|cwd| cwd == directory);
        if is_there && is_server(&std::fs::read(path.join("cmdline")).unwrap_or_default()) {
            return Err(Error::new(ErrorKind::TargetFailed, FILE)
                .message(STOP)
                .with("directory", shown(&directory))
                .with("pid", process.file_name().to_string_lossy()));
        }
    }
    Ok(())
}

/// Whether a command line is a server's. Servers rewrite theirs to `redis-server 127.0.0.1:6379`.
fn is_server(command_line: &[u8]) -> bool {
    let text = String::from_utf8_lossy(command_line);
    ["redis-server", "valkey-server", "keydb-server"].iter().any(|name| text.contains(name))
}

/// Refuses if the directory holds an append-only file: `appendonlydir` since 7.0, `appendonly.aof` before.
pub(super) fn appends_only(directory: &Path) -> Result<()> {
    let in_parts =
        std::fs::read_dir(directory.join("appendonlydir")).is_ok_and(|mut files| files.next().is_some());
    if !in_parts && !directory.join("appendonly.aof").exists() {
        return Ok(());
    }
    Err(Error::new(ErrorKind::TargetFailed, FILE)
        .message(
            "there is an append-only file, and a server with `appendonly yes` loads that and ignores the RDB: move \
             it away, start the server with `appendonly no` so that it loads the RDB, and then turn it on again \
             with `redis-cli CONFIG SET appendonly yes`",
        )
        .with("directory", shown(directory)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_told_from_other_processes() {
        assert!(is_server(b"/usr/bin/redis-server 127.0.0.1:6379\0\0"));
        assert!(is_server(b"valkey-server *:6379"));
        assert!(!is_server(b"vi\0redis.conf\0"));
    }
}
