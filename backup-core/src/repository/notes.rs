//! The objects a person reads when this library is not at hand: `RESTORE.txt`, `SHA256SUMS`, `decrypt.py`.

mod borrowed;

use std::collections::BTreeSet;
use std::fmt::Write as _;

use bytes::Bytes;

use crate::layout::{DECRYPT_PY, MANIFEST, RANGES, RESTORE_TXT, RESTORED, SHA256SUMS};
use crate::manifest::{StoredArtifact, StoredObject};
use crate::name::{BackupId, SetName};
use crate::retention::BackupKind;
use crate::source::Recipe;
use crate::transform::TransformSpec;

pub(super) use borrowed::{Borrowed, borrowed};

/// The decoder that opens our encryption with nothing but Python and its `cryptography` package.
const DECODER: &str = include_str!("../../assets/decrypt.py");

/// What the notes are written from.
pub(super) struct Notes<'a> {
    pub(super) set: &'a SetName,
    pub(super) id: BackupId,
    pub(super) kind: &'a BackupKind,
    pub(super) chain: &'a [TransformSpec],
    pub(super) artifacts: &'a [StoredArtifact],
    pub(super) details: &'a StoredObject,
    pub(super) recipe: &'a Recipe,
    /// What lies in artifacts of other backups.
    pub(super) borrowed: Vec<Borrowed>,
}

impl Notes<'_> {
    /// The decoder, where the chain needs it.
    pub(super) fn decoder(&self) -> Option<(&'static str, Bytes)> {
        self.encrypted().then(|| (DECRYPT_PY, Bytes::from_static(DECODER.as_bytes())))
    }

    /// `RANGES`, where something lies in other backups.
    pub(super) fn ranges(&self) -> Option<(&'static str, Bytes)> {
        if self.borrowed.is_empty() {
            return None;
        }
        let mut text = borrowed::head();
        self.borrowed.iter().for_each(|part| part.list(&mut text));
        Some((RANGES, text.into()))
    }

    /// `SHA256SUMS` over the artifacts, their indexes, the details, `also`, and the artifacts of other backups that
    /// `RESTORE.txt` reads.
    pub(super) fn sums(&self, also: &[StoredObject]) -> (&'static str, Bytes) {
        let mut text = String::new();
        let objects = self.artifacts.iter().map(|a| &a.stored).chain([self.details]).chain(also);
        for object in objects {
            let _ = writeln!(text, "{}  {}", object.sha256, file_name(&object.object));
            if let Some(index) = &object.index {
                let _ = writeln!(text, "{}  {}", index.sha256, file_name(&index.object));
            }
        }
        for part in &self.borrowed {
            let _ = writeln!(text, "{}  {}", part.artifact.stored.sha256, part.path());
        }
        (SHA256SUMS, text.into())
    }

    /// `RESTORE.txt`.
    pub(super) fn restore(&self) -> (&'static str, Bytes) {
        let mut text = String::new();
        let _ = match self.kind {
            BackupKind::Log { from, to, from_time, to_time } => writeln!(
                text,
                "# Slice {} of the continuous log of {}\n#\n# From position {from} ({from_time}) to {to} ({to_time}).\n\
                 # It is replayed on a restored backup of this set, after the slice that ends where it begins: slices are\n\
                 # named <from>-<to>-<id>, and they may overlap.",
                self.id, self.set
            ),
            _ => writeln!(text, "# Backup {} of {}", self.id, self.set),
        };
        text.push_str(
            "#\n# These commands restore it with standard tools alone. Run them in this directory, in this order,\n\
             # with `set -eo pipefail` in bash, so that no failure in a pipe goes unnoticed.\n",
        );
        if self.encrypted() {
            text.push_str(
                "#\n# The data is encrypted. You need Python 3 with its `cryptography` package, and one of the keys\n\
                 # named in keys/: set BACKUP_KEY_OPTION to `--key-file /path/to/key`, or put the passphrase in an\n\
                 # environment variable and set BACKUP_KEY_OPTION to `--passphrase-env NAME`.\n",
            );
        }
        if self.needs("age") {
            text.push_str(
                "#\n# The data is encrypted. You need the `age` command, and the identity of one of the recipients: set\n\
                 # BACKUP_IDENTITY to the path of its file.\n",
            );
        }
        self.say_where_the_rest_is(&mut text);
        text.push_str("\nset -eo pipefail\n");
        if !self.borrowed.is_empty() {
            text.push_str(borrowed::TAKE);
        }
        text.push_str("\n# 1. Is everything here and undamaged?\nsha256sum --check SHA256SUMS\n");
        text.push_str("\n# 2. Restore.\n");
        let recipes = |name: &str| self.recipe.joined.is_some() || self.recipe.commands.contains_key(name);
        if self.artifacts.iter().any(|a| !recipes(&a.meta.name)) {
            let _ = writeln!(text, "mkdir -p {RESTORED}");
        }
        for line in &self.recipe.before {
            let _ = writeln!(text, "{line}");
        }
        let mut artifacts: Vec<_> = self.artifacts.iter().collect();
        artifacts.sort_by_key(|a| a.meta.phase);
        // First, so that the metadata of directories, which are always in the backup itself, are set last.
        let mut joined: Vec<String> = self.borrowed.iter().map(|part| self.take(part)).collect();
        for artifact in artifacts {
            let decode = self.decode(&artifact.meta.name, &artifact.stored);
            let plain = format!("{}.{}", artifact.meta.name, artifact.meta.format.extension);
            let command = match (self.recipe.commands.get(artifact.meta.name.as_ref()), &self.recipe.joined) {
                (Some(command), _) => command.clone(),
                (None, Some(_)) => {
                    joined.push(decode);
                    continue;
                }
                // Beside the objects and not among them: without a chain the name is the object's own.
                (None, None) => format!("cat > {RESTORED}/{}", quote(&file_name(&plain))),
            };
            let _ = writeln!(text, "{decode} | {command}");
        }
        if let (Some(command), false) = (&self.recipe.joined, joined.is_empty()) {
            let _ = writeln!(text, "{{\n    {}\n}} | {command}", joined.join("\n    "));
        }
        for line in &self.recipe.after {
            let _ = writeln!(text, "{line}");
        }
        let _ = writeln!(
            text,
            "\n# What the backup contains, a JSON document per line:\n# {}\n# What it is: {MANIFEST}",
            self.decode("details", self.details)
        );
        (RESTORE_TXT, text.into())
    }

    fn say_where_the_rest_is(&self, text: &mut String) {
        let others: BTreeSet<_> = self.borrowed.iter().map(|part| part.id).collect();
        if others.is_empty() {
            return;
        }
        text.push_str(
            "#\n# What did not change lies in these other backups of the set. Their directories must lie beside this\n\
             # one, under their own names, as they do where they were stored:\n",
        );
        for id in others {
            let _ = writeln!(text, "#   ../{id}");
        }
    }

    fn encrypted(&self) -> bool {
        self.needs("aes-256-gcm")
    }

    /// Whether this transform must be undone, for this backup or for one it refers to.
    fn needs(&self, transform: &str) -> bool {
        let chains = self.borrowed.iter().map(|part| part.chain.as_slice());
        chains.chain([self.chain]).flatten().any(|spec| spec.id == transform)
    }

    /// The commands that give what is needed of another backup's artifact.
    fn take(&self, part: &Borrowed) -> String {
        let keys = format!("../{}/keys", part.id);
        let artifact = &part.artifact;
        let written_as = artifact.stored.written_as;
        let decode =
            self.decoded(&part.path(), &part.chain, (part.id, written_as), &keys, &artifact.meta.name);
        format!("{decode} | take {} {}", part.id, quote(&part.name()))
    }

    /// The commands that turn a stored object of this backup into its plain bytes.
    fn decode(&self, artifact: &str, stored: &StoredObject) -> String {
        let path = file_name(&stored.object);
        self.decoded(&path, self.chain, (self.id, stored.written_as), "keys", artifact)
    }

    fn decoded(
        &self,
        path: &str,
        chain: &[TransformSpec],
        (id, written_as): (BackupId, Option<BackupId>),
        keys: &str,
        artifact: &str,
    ) -> String {
        let mut line = format!("cat {}", quote(path));
        let written_as = written_as.map(|run| format!(" --written-as {run}")).unwrap_or_default();
        for spec in chain.iter().rev() {
            let _ = match spec.id.as_ref() {
                "aes-256-gcm" => write!(
                    line,
                    " | python3 {DECRYPT_PY} --keys {keys} $BACKUP_KEY_OPTION --set {} --id {id}{written_as} --artifact {}",
                    quote(self.set.as_str()),
                    quote(artifact)
                ),
                "age" => write!(line, " | age --decrypt --identity \"$BACKUP_IDENTITY\""),
                "gzip" => write!(line, " | gzip -dc"),
                "zstd" => write!(line, " | zstd -dc"),
                "identity" => Ok(()),
                other => write!(line, " | {}", quote(&format!("undo {other}"))),
            };
        }
        line
    }
}

/// The name of an object as it lies on a file system: the encoded key segment.
fn file_name(object: &str) -> String {
    crate::key::encode_segment(object.as_bytes())
}

/// Quotes a word for a POSIX shell.
pub(crate) fn quote(word: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"._-/%+=:@,".contains(&b);
    if !word.is_empty() && word.bytes().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::quote;

    #[test]
    fn a_name_cannot_end_its_quotes() {
        assert_eq!(quote("a.b-c_1"), "a.b-c_1");
        assert_eq!(quote(""), "''");
        assert_eq!(quote("a'; rm -rf $HOME #"), r"'a'\''; rm -rf $HOME #'");
    }
}
