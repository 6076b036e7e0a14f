//! What an incremental's `RESTORE.txt` takes out of the artifacts of other backups.
//!
//! By ranges of bytes and not by the names of members: numbers need no quoting, `tar` need not compare each member
//! with each name of a list, and no name of an encrypted backup gets readable.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::ops::Range;
use std::sync::Arc;

use super::file_name;
use crate::error::{Error, Result};
use crate::layout::RANGES;
use crate::manifest::{Manifest, StoredArtifact};
use crate::name::BackupId;
use crate::repository::ranges::{Pieces, Place, Ranges};
use crate::transform::TransformSpec;

/// The shell function that takes the listed ranges out of an artifact. The rest is read, too: the program before it in
/// the pipe has to see its input to the end to vouch for it.
pub(super) const TAKE: &str = r#"
take() { # backup, artifact: of the plain bytes on standard input, the ranges that RANGES lists
    {
        awk -v from="$1 $2" '$1 " " $2 == from { print $3, $4 }' RANGES | while read -r skip count; do
            dd bs=1M iflag=fullblock,skip_bytes,count_bytes skip="$skip" count="$count" status=none <&3
        done
    } 3<&0
    cat > /dev/null
}
"#;

/// Parts of an artifact of another backup.
pub(in crate::repository) struct Borrowed {
    pub(super) id: BackupId,
    pub(super) chain: Vec<TransformSpec>,
    pub(super) artifact: StoredArtifact,
    /// In its plain bytes, ascending.
    ranges: Vec<Range<u64>>,
}

/// What `pieces` are, with what the manifests say of their artifacts.
pub(in crate::repository) fn borrowed(
    pieces: Pieces,
    backups: &BTreeMap<BackupId, Arc<Manifest>>,
) -> Result<Vec<Borrowed>> {
    let find = |((id, name), ranges): (Place, Ranges)| {
        let manifest = backups.get(&id);
        let found = manifest.and_then(|m| Some((m.chain.clone(), m.artifact(&name)?.clone())));
        let (chain, artifact) = found.ok_or_else(|| {
            Error::corrupt("write RESTORE.txt", "an item lies in an artifact that its backup does not have")
                .with("artifact", &name)
                .with("backup", id)
        })?;
        Ok(Borrowed { id, chain, artifact, ranges: ranges.merged() })
    };
    pieces.into_iter().map(find).collect()
}

impl Borrowed {
    /// Where the object lies, seen from the directory of the incremental.
    pub(super) fn path(&self) -> String {
        format!("../{}/{}", self.id, file_name(&self.artifact.stored.object))
    }

    pub(super) fn name(&self) -> String {
        file_name(&self.artifact.meta.name)
    }

    /// Lines of `RANGES`.
    pub(super) fn list(&self, text: &mut String) {
        let name = self.name();
        let mut at = 0;
        for range in &self.ranges {
            let _ = writeln!(text, "{} {name} {} {}", self.id, range.start - at, range.end - range.start);
            at = range.end;
        }
    }
}

/// The head of `RANGES`.
pub(super) fn head() -> String {
    format!("# {RANGES}: backup, artifact, plain bytes to skip, plain bytes to take\n")
}
