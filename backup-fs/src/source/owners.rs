//! Names of users and groups, from `/etc/passwd` and `/etc/group`.
//!
//! Read once per backup, so that one name stands for one number throughout. Directory services are not asked:
//! the numbers, which decide, are always recorded.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;

/// Bytes of such a file that are read.
const MAX_FILE: u64 = 16 * 1024 * 1024;

/// Names by number.
#[derive(Debug, Default)]
pub(crate) struct Owners {
    users: HashMap<u32, Vec<u8>>,
    groups: HashMap<u32, Vec<u8>>,
}

impl Owners {
    /// The host's names; none where the files are missing.
    pub(crate) fn of_host() -> Self {
        Self { users: read(Path::new("/etc/passwd")), groups: read(Path::new("/etc/group")) }
    }

    /// The name of a user, or nothing.
    pub(crate) fn user(&self, uid: u32) -> &[u8] {
        self.users.get(&uid).map_or(b"", Vec::as_slice)
    }

    /// The name of a group, or nothing.
    pub(crate) fn group(&self, gid: u32) -> &[u8] {
        self.groups.get(&gid).map_or(b"", Vec::as_slice)
    }
}

/// Both files begin their lines with `name:password:number:`; the first line of a number counts.
fn read(path: &Path) -> HashMap<u32, Vec<u8>> {
    let mut names = HashMap::new();
    let Ok(file) = File::open(path) else { return names };
    for line in BufReader::new(file.take(MAX_FILE)).split(b'\n').map_while(Result::ok) {
        let mut fields = line.split(|&b| b == b':');
        let (name, number) = (fields.next(), fields.nth(1));
        let number = number.and_then(|n| std::str::from_utf8(n).ok()).and_then(|n| n.parse().ok());
        if let (Some(name), Some(number)) = (name, number)
            && !name.is_empty()
        {
            names.entry(number).or_insert_with(|| name.to_vec());
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_name_of_a_number_counts_and_odd_lines_do_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("passwd");
        std::fs::write(&path, "root:x:0:0::/:/bin/sh\ntoor:x:0:0:::\n# note\n+::::::\nbin:x:two:2\n")
            .unwrap();
        assert_eq!(read(&path), HashMap::from([(0, b"root".to_vec())]));
        assert_eq!(read(&dir.path().join("none")), HashMap::new());
    }
}
