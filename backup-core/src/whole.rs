//! Artifacts that are one item: bytes without a structure this library knows.
//!
//! In-memory data and the output of commands are proved as a whole: one item per artifact, named like it, under
//! the proof [`WHOLE_BYTES`]. The canonical item is (name, SHA-256 of all bytes), so a source and a target
//! that both treat an artifact as plain bytes agree whatever made it.

use serde_json::Map;

use crate::digest::Digest;
use crate::item::{Item, ItemKind, ItemPath, ItemProof};
use crate::proof::Proof;

/// The name in [`Proofs`](crate::Proofs) of artifacts that are proved as a whole.
pub const WHOLE_BYTES: &str = "bytes";

/// The proof of one artifact as a whole: its name and the SHA-256 of its plain bytes.
pub fn whole_proof(name: &str, sha256: &Digest) -> Proof {
    Proof::of([name.as_bytes(), sha256.as_bytes()])
}

/// The only item of an artifact: `size` plain bytes from its beginning, with this SHA-256.
pub fn whole_item(name: &str, size: u64, sha256: Digest) -> Item {
    Item {
        path: ItemPath::new(name.as_bytes()),
        kind: ItemKind::Other,
        origin: None,
        artifact: name.to_owned().into(),
        offset: 0,
        length: size,
        size,
        sha256: Some(sha256),
        proof: Some(ItemProof { of: WHOLE_BYTES.into(), proof: whole_proof(name, &sha256) }),
        link: None,
        attributes: Map::new(),
    }
}
