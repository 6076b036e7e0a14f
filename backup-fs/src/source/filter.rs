//! What is archived and what is left out.

use std::ffi::{CStr, OsStr};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::Arc;

use backup_core::{ItemPath, Selection};
use ignore::Match;
use ignore::gitignore::{Gitignore, GitignoreBuilder};
use rustix::buffer::spare_capacity;
use rustix::fs::{Mode, OFlags, openat};

/// Bytes of an ignore file, or of a cache directory's tag, that are read.
const MAX_IGNORE_FILE: usize = 1024 * 1024;
/// Name and first bytes of the file that marks a cache (Cache Directory Tagging Specification 0.6).
pub(crate) const CACHE_TAG: &CStr = c"CACHEDIR.TAG";
const CACHE_SIGNATURE: &[u8] = b"Signature: 8a477f597d28d172789f06886806bc55";

/// The configured rules.
#[derive(Clone, Debug, Default)]
pub(crate) struct Filter {
    /// Everything, or what matches.
    pub(crate) include: Selection,
    /// What matches is left out, with all below it.
    pub(crate) exclude: Option<Selection>,
    /// Names of files with rules for the directory they are in, and below.
    pub(crate) ignore_files: Vec<Vec<u8>>,
    /// Whether the contents of directories tagged as caches are left out.
    pub(crate) skip_caches: bool,
}

impl Filter {
    /// Whether `path` is left out, whatever is included.
    pub(crate) fn excludes(&self, path: &ItemPath) -> bool {
        self.exclude.as_ref().is_some_and(|exclude| exclude.matches(path))
    }
}

/// The rules of one directory's ignore files, and those of the directories above.
#[derive(Debug)]
pub(crate) struct Rules {
    /// Bytes of the archive path up to the directory, with the slash.
    depth: usize,
    own: Gitignore,
    above: Option<Arc<Rules>>,
}

impl Rules {
    /// Reads the ignore file `name` in `dir`. Lines that are not understood are told to `complain` and skipped.
    pub(crate) fn read(
        dir: &OwnedFd,
        name: &CStr,
        depth: usize,
        above: Option<Arc<Rules>>,
        mut complain: impl FnMut(String),
    ) -> Option<Arc<Self>> {
        let text = match read_up_to(dir, name, MAX_IGNORE_FILE + 1) {
            Ok(text) if text.len() <= MAX_IGNORE_FILE => text,
            Ok(_) => {
                complain("it is larger than 1 MiB and was not followed".to_owned());
                return above;
            }
            Err(errno) => {
                complain(format!("it could not be read and was not followed: {errno}"));
                return above;
            }
        };
        let mut builder = GitignoreBuilder::new("");
        for (number, line) in text.split(|&b| b == b'\n').enumerate() {
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            let added = match std::str::from_utf8(line) {
                Ok(line) => builder.add_line(None, line).map(|_| ()).map_err(|e| e.to_string()),
                Err(_) => Err("it is not UTF-8".to_owned()),
            };
            if let Err(why) = added {
                complain(format!("line {} was not followed: {why}", number + 1));
            }
        }
        match builder.build() {
            Ok(own) => Some(Arc::new(Self { depth, own, above })),
            Err(error) => {
                complain(format!("it was not followed: {error}"));
                above
            }
        }
    }

    /// Whether the entry at the archive path `path` is to be left out: the nearest directory's last matching line
    /// decides.
    pub(crate) fn ignores(&self, path: &[u8], is_dir: bool) -> bool {
        let below = path.get(self.depth..).unwrap_or_default();
        match self.own.matched(Path::new(OsStr::from_bytes(below)), is_dir) {
            Match::Ignore(_) => true,
            Match::Whitelist(_) => false,
            Match::None => self.above.as_ref().is_some_and(|above| above.ignores(path, is_dir)),
        }
    }
}

/// Whether the file `CACHEDIR.TAG` in `dir` is what its name says.
pub(crate) fn is_cache(dir: &OwnedFd) -> bool {
    read_up_to(dir, CACHE_TAG, CACHE_SIGNATURE.len()).is_ok_and(|head| head == CACHE_SIGNATURE)
}

fn read_up_to(dir: &OwnedFd, name: &CStr, most: usize) -> rustix::io::Result<Vec<u8>> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = openat(dir, name, flags, Mode::empty())?;
    let mut text = Vec::new();
    while text.len() < most {
        text.reserve_exact((most - text.len()).min(8 * 1024));
        if rustix::io::read(&file, spare_capacity(&mut text))? == 0 {
            break;
        }
    }
    text.truncate(most);
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_ignore_file_decides() {
        let base = tempfile::tempdir().unwrap();
        let inner = base.path().join("a");
        std::fs::create_dir(&inner).unwrap();
        std::fs::write(base.path().join(".ignore"), "# all logs\n*.log\n/top\ncache/\nbad{\n").unwrap();
        std::fs::write(inner.join(".ignore"), "!keep.log\r\n").unwrap();
        let open = |path: &Path| OwnedFd::from(std::fs::File::open(path).unwrap());
        let mut complaints = Vec::new();
        let outer =
            Rules::read(&open(base.path()), c".ignore", 2, None, |line| complaints.push(line)).unwrap();
        let nested =
            Rules::read(&open(&inner), c".ignore", 4, Some(Arc::clone(&outer)), |_| panic!("no complaint"))
                .unwrap();
        assert_eq!(complaints.len(), 1, "{complaints:?}");
        assert!(complaints[0].starts_with("line 5 "), "{complaints:?}");
        for (rules, path, is_dir, expected) in [
            (&outer, "r/x.log", false, true),
            (&outer, "r/b/x.log", false, true),
            (&outer, "r/top", false, true),
            (&outer, "r/b/top", false, false),
            (&outer, "r/b/cache", true, true),
            (&outer, "r/b/cache", false, false),
            (&nested, "r/a/x.log", false, true),
            (&nested, "r/a/keep.log", false, false),
        ] {
            assert_eq!(rules.ignores(path.as_bytes(), is_dir), expected, "{path}");
        }
    }

    #[test]
    fn a_cache_is_known_by_its_signature_not_by_the_name_alone() {
        let base = tempfile::tempdir().unwrap();
        let dir = OwnedFd::from(std::fs::File::open(base.path()).unwrap());
        assert!(!is_cache(&dir));
        std::fs::write(base.path().join("CACHEDIR.TAG"), "Signature: something else").unwrap();
        assert!(!is_cache(&dir));
        let tag = [CACHE_SIGNATURE, b"\n# more"].concat();
        std::fs::write(base.path().join("CACHEDIR.TAG"), tag).unwrap();
        assert!(is_cache(&dir));
    }
}
