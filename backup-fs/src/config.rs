//! What a [`DirectorySource`] archives, and how: its builder.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use backup_core::{Error, ItemPath, Result, Selection};

use crate::source::DirectorySource;
use crate::source::filter::Filter;

/// Plain bytes of an archive after which the next one is begun: 1 GiB.
const ARTIFACT_SIZE: u64 = 1 << 30;
/// Reader threads. More of them do not make a warm cache faster, but keep a disk's queue filled.
const READERS: usize = 4;
/// Bytes of file content read ahead.
const READ_AHEAD: u64 = 8 * 1024 * 1024;

/// One tree or file to archive.
#[derive(Clone, Debug)]
pub(crate) struct Root {
    /// Its name in the archive; `.` for the nameless one.
    pub(crate) name: Vec<u8>,
    /// Where it is.
    pub(crate) path: PathBuf,
    /// Whether it is a single file.
    pub(crate) is_file: bool,
}

/// A checked configuration.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    /// In the order of the walk.
    pub(crate) roots: Vec<Root>,
    pub(crate) filter: Filter,
    pub(crate) one_file_system: bool,
    pub(crate) allow_unreadable: bool,
    pub(crate) artifact_size: u64,
    pub(crate) readers: usize,
    pub(crate) read_ahead: u64,
}

impl Config {
    /// `roots`, already checked, with default options.
    pub(crate) fn new(roots: Vec<Root>) -> Self {
        Self {
            roots,
            filter: Filter::default(),
            one_file_system: false,
            allow_unreadable: false,
            artifact_size: ARTIFACT_SIZE,
            readers: READERS,
            read_ahead: READ_AHEAD,
        }
    }
}

/// Builds a [`DirectorySource`].
#[derive(Clone, Debug, Default)]
pub struct DirectorySourceBuilder {
    roots: Vec<Root>,
    include: Vec<String>,
    exclude: Vec<String>,
    ignore_files: Vec<String>,
    skip_caches: bool,
    one_file_system: bool,
    allow_unreadable: bool,
    artifact_size: Option<u64>,
    readers: Option<usize>,
    read_ahead: Option<u64>,
}

impl DirectorySourceBuilder {
    /// Adds the directory `path` with all below it, under `name` in the archive: the file `path/a/b` becomes
    /// `name/a/b`. A `path` that is a symbolic link is followed; links below it are not.
    ///
    /// `name` is relative and may have several components; those above the last are not archived themselves. The
    /// name `.` stands for no name (`path/a/b` becomes `a/b`) and is possible for a single root.
    pub fn root(self, name: impl AsRef<[u8]>, path: impl Into<PathBuf>) -> Self {
        self.add(name.as_ref(), path.into(), false)
    }

    /// Adds the single file `path` under `name`. A `path` that is a symbolic link is followed.
    pub fn file(self, name: impl AsRef<[u8]>, path: impl Into<PathBuf>) -> Self {
        self.add(name.as_ref(), path.into(), true)
    }

    fn add(mut self, name: &[u8], path: PathBuf, is_file: bool) -> Self {
        self.roots.push(Root { name: name.to_vec(), path, is_file });
        self
    }

    /// Archives only what matches one of these globs, and the directories that lead there. The patterns are those of
    /// [`Selection::globs`], over names in the archive: `content/**/*.md`.
    pub fn include<S: Into<String>>(mut self, patterns: impl IntoIterator<Item = S>) -> Self {
        self.include.extend(patterns.into_iter().map(Into::into));
        self
    }

    /// Leaves out what matches one of these globs, with all below it, even if it is included. The patterns are those
    /// of [`Selection::globs`], over names in the archive: `**/*.tmp`, `content/cache`.
    pub fn exclude<S: Into<String>>(mut self, patterns: impl IntoIterator<Item = S>) -> Self {
        self.exclude.extend(patterns.into_iter().map(Into::into));
        self
    }

    /// Follows files of this name (`.backupignore`) wherever they lie in a tree: each holds patterns in the syntax of
    /// `gitignore(5)` for its own directory and those below it. The files themselves are archived.
    pub fn ignore_file(mut self, name: impl Into<String>) -> Self {
        self.ignore_files.push(name.into());
        self
    }

    /// Leaves out the contents of directories that hold a valid `CACHEDIR.TAG`, as `tar --exclude-caches` does. The
    /// directory and its tag are archived.
    pub fn skip_caches(mut self) -> Self {
        self.skip_caches = true;
        self
    }

    /// Stays on the file system of each root. Directories on which another one is mounted are archived empty.
    pub fn one_file_system(mut self) -> Self {
        self.one_file_system = true;
        self
    }

    /// Lets a backup succeed although files or directories could not be read; they are named in its warnings and
    /// details.
    ///
    /// Without it, the backup fails once the whole tree was read, and the error says how many they are and names the first. A file that has been
    /// missing from every backup since its mode changed is otherwise found on the day it is needed.
    pub fn allow_unreadable(mut self) -> Self {
        self.allow_unreadable = true;
        self
    }

    /// Plain bytes after which the next archive is begun: 1 GiB unless set. A single file may be larger.
    pub fn artifact_size(mut self, bytes: u64) -> Self {
        self.artifact_size = Some(bytes);
        self
    }

    /// Threads that read small files ahead: 4 unless set. A store with long answer times (a network file system, a
    /// cold array of disks) gains from more.
    pub fn readers(mut self, threads: usize) -> Self {
        self.readers = Some(threads);
        self
    }

    /// Bytes of file content that may be held ahead of their turn: 8 MiB unless set.
    pub fn read_ahead(mut self, bytes: u64) -> Self {
        self.read_ahead = Some(bytes);
        self
    }

    /// Checks what was given. Whether the paths exist is checked by
    /// [`Source::check`](backup_core::Source::check) and by each backup.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidInput`](backup_core::ErrorKind::InvalidInput) for a missing root, a name that is not
    /// relative and plain, names of which one lies within the other, and patterns that are not globs.
    pub fn build(self) -> Result<DirectorySource> {
        const OPERATION: &str = "configure directory source";
        let mut roots = self.roots;
        if roots.is_empty() {
            return Err(Error::invalid(OPERATION, "name at least one directory or file to back up"));
        }
        for root in &roots {
            let plain = |part: &[u8]| !part.is_empty() && part != b"." && part != b".." && !part.contains(&0);
            let nameless = root.name == b"." && !root.is_file && roots.len() == 1;
            if !nameless && !root.name.split(|&b| b == b'/').all(plain) {
                return Err(Error::invalid(
                    OPERATION,
                    "a name in the archive is relative, without empty, `.` or `..` components; only a single \
                     directory may be named `.`",
                )
                .with("name", ItemPath::new(root.name.clone())));
            }
        }
        roots.sort_by(|a, b| crate::source::parent::order(&a.name, &b.name));
        let mut names: BTreeSet<&[u8]> = BTreeSet::new();
        for root in &roots {
            let ancestors = root.name.iter().enumerate().filter(|(_, b)| **b == b'/').map(|(at, _)| at);
            let taken = ancestors.chain([root.name.len()]).any(|end| names.contains(&root.name[..end]));
            if taken || !names.insert(&root.name) {
                return Err(Error::invalid(
                    OPERATION,
                    "this name lies within another one, so two files could get the same name",
                )
                .with("name", ItemPath::new(root.name.clone())));
            }
        }
        for name in &self.ignore_files {
            if name.is_empty() || name.contains(['/', '\0']) {
                return Err(Error::invalid(OPERATION, "the name of an ignore file is a single file name")
                    .with("name", name.escape_debug()));
            }
        }
        let selection = |patterns: Vec<String>| {
            if patterns.is_empty() { Ok(None) } else { Selection::globs(patterns).map(Some) }
        };
        let mut config = Config::new(roots);
        config.filter = Filter {
            include: selection(self.include)?.unwrap_or_default(),
            exclude: selection(self.exclude)?,
            ignore_files: self.ignore_files.into_iter().map(String::into_bytes).collect(),
            skip_caches: self.skip_caches,
        };
        config.one_file_system = self.one_file_system;
        config.allow_unreadable = self.allow_unreadable;
        config.artifact_size = self.artifact_size.unwrap_or(config.artifact_size);
        config.readers = self.readers.unwrap_or(config.readers).clamp(1, 64);
        config.read_ahead = self.read_ahead.unwrap_or(config.read_ahead);
        Ok(DirectorySource { config: Arc::new(config) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_collide_or_escape_are_refused() {
        let build = |names: &[&str]| {
            names.iter().fold(DirectorySourceBuilder::default(), |b, name| b.root(name, "/srv")).build()
        };
        let refused: [&[&str]; 9] = [
            &[],
            &[""],
            &["/a"],
            &["a/"],
            &["a/../b"],
            &["a", "."],
            &["a", "a"],
            &["a/b", "a"],
            &["a", "b", "a/c/d"],
        ];
        for bad in refused {
            assert!(build(bad).is_err(), "{bad:?}");
        }
        for good in [&["."][..], &["a", "ab", "a.b"], &["a/b", "a/c"]] {
            assert!(build(good).is_ok(), "{good:?}");
        }
    }

    #[test]
    fn a_pattern_that_is_no_glob_is_refused_at_build() {
        let builder = DirectorySourceBuilder::default().root(".", "/srv");
        assert!(builder.clone().exclude(["a["]).build().is_err());
        assert!(builder.clone().include(["a["]).build().is_err());
        assert!(builder.ignore_file("a/b").build().is_err());
    }
}
