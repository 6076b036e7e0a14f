//! What a backup of files has to tell: counts, warnings, and what could not be read.

use backup_core::{Error, ErrorKind, Item, ItemKind, ItemPath, Result, Warning};
use serde_json::{Map, Value, json};

use super::entry::Problem;
use crate::config::Config;

/// Warnings, and paths in the details, that are kept one by one; further ones are counted.
const MAX_LISTED: usize = 1000;
/// Paths named in an error.
const MAX_IN_ERROR: usize = 10;

/// Gathers what is to be told at the end.
#[derive(Debug, Default)]
pub(crate) struct Notes {
    warnings: Vec<Warning>,
    unlisted: u64,
    unreadable: Vec<String>,
    unreadable_count: u64,
    hidden_xattrs: u64,
    first_hidden: Option<String>,
    pub(crate) files: u64,
    pub(crate) unchanged: u64,
    pub(crate) directories: u64,
    pub(crate) symlinks: u64,
    pub(crate) hard_links: u64,
    pub(crate) fifos: u64,
    pub(crate) sockets: u64,
    pub(crate) devices: u64,
    /// Logical bytes of all files, and of those that were not read.
    pub(crate) bytes: u64,
    pub(crate) unchanged_bytes: u64,
}

impl Notes {
    /// Keeps a warning.
    pub(crate) fn warn(&mut self, warning: Warning) {
        if self.warnings.len() < MAX_LISTED {
            self.warnings.push(warning);
        } else {
            self.unlisted += 1;
        }
    }

    /// An entry that lies in an archive that is taken over.
    pub(crate) fn count(&mut self, item: &Item) {
        match item.kind {
            ItemKind::File => {
                self.files += 1;
                self.bytes += item.size;
            }
            ItemKind::Directory => self.directories += 1,
            ItemKind::Symlink => self.symlinks += 1,
            ItemKind::Fifo => self.fifos += 1,
            // No archive with further names is taken over.
            _ => {}
        }
    }

    /// A file that was not quiet while it was read.
    pub(crate) fn changed(&mut self, path: &[u8], how: &str) {
        let path = ItemPath::new(path);
        self.warn(Warning::new("file-changed-while-read", format!("{path}: {how}")));
    }

    /// A further name of a file that is no longer what was archived under its first one.
    pub(crate) fn unlinked(&mut self, path: &[u8]) {
        let path = ItemPath::new(path);
        let message = format!(
            "{path}: the file changed since another name of it was archived; it is archived as a file of its own"
        );
        self.warn(Warning::new("hard-link-not-kept", message));
    }

    /// An entry with extended attributes that could not be read.
    pub(crate) fn hidden_xattrs(&mut self, path: &[u8]) {
        self.hidden_xattrs += 1;
        self.first_hidden.get_or_insert_with(|| ItemPath::new(path).to_string());
    }

    /// A device node that was left out.
    pub(crate) fn device(&mut self, path: &[u8]) {
        self.devices += 1;
        let path = ItemPath::new(path);
        self.warn(Warning::new("device-skipped", format!("{path}: device nodes are not backed up")));
    }

    /// An entry that could not be archived. Only a lack of resources ends the run.
    pub(crate) fn problem(&mut self, path: &[u8], problem: &Problem) -> Result<()> {
        let shown = ItemPath::new(path);
        let why = match problem {
            Problem::Vanished => {
                let message = format!("{shown}: it vanished before it could be read");
                self.warn(Warning::new("file-vanished", message));
                return Ok(());
            }
            Problem::System(errno) => {
                return Err(Error::io("read directory tree", (*errno).into())
                    .message("the system has no resources left for this; raise the limit of open files")
                    .with("path", shown));
            }
            Problem::Unreadable(errno) => errno.to_string(),
            Problem::TooManyAttributes => "its extended attributes exceed 960 KiB".to_owned(),
        };
        self.unreadable_count += 1;
        let line = format!("{shown}: {why}");
        if self.unreadable.len() < MAX_LISTED {
            self.unreadable.push(line.clone());
        }
        self.warn(Warning::new("file-unreadable", line));
        Ok(())
    }

    /// The warnings and details of a run that may succeed.
    pub(crate) fn finish(mut self, config: &Config) -> Result<(Vec<Warning>, Map<String, Value>)> {
        if self.unreadable_count > 0 && !config.allow_unreadable {
            let named = self.unreadable.get(..MAX_IN_ERROR.min(self.unreadable.len())).unwrap_or_default();
            return Err(Error::new(ErrorKind::SourceFailed, "read directory tree")
                .message(
                    "some files or directories could not be read; give access, exclude them, or accept it with \
                     `allow_unreadable`",
                )
                .with("count", self.unreadable_count)
                .with("first", named.join("; ")));
        }
        if let Some(first) = &self.first_hidden {
            let entries = if self.hidden_xattrs == 1 { "entry" } else { "entries" };
            let message = format!(
                "extended attributes of {} {entries}, such as {first}, may not be read and are not archived; run as root",
                self.hidden_xattrs
            );
            self.warnings.push(Warning::new("xattr-unreadable", message));
        }
        if self.unlisted > 0 {
            let message = format!("{} further warnings are not listed", self.unlisted);
            self.warnings.push(Warning::new("warnings-not-listed", message));
        }
        let roots: Vec<Value> = config
            .roots
            .iter()
            .map(|root| json!({ "name": ItemPath::new(root.name.clone()), "path": root.path.to_string_lossy() }))
            .collect();
        let mut details = Map::new();
        details.insert("consistency".to_owned(), "per-file".into());
        details.insert("roots".to_owned(), roots.into());
        for (name, count) in [
            ("files", self.files),
            ("files_unchanged", self.unchanged),
            ("directories", self.directories),
            ("symlinks", self.symlinks),
            ("hard_links", self.hard_links),
            ("fifos", self.fifos),
            ("sockets_skipped", self.sockets),
            ("devices_skipped", self.devices),
            ("bytes", self.bytes),
            ("bytes_unchanged", self.unchanged_bytes),
            ("unreadable_count", self.unreadable_count),
        ] {
            details.insert(name.to_owned(), count.into());
        }
        details.insert("unreadable".to_owned(), self.unreadable.into());
        Ok((self.warnings, details))
    }
}
