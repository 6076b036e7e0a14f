//! What a file name says of how the file was made.

use std::borrow::Cow;

use super::sniff::Expected;
use crate::source::{ArtifactFormat, ArtifactMeta};

/// Something that was done to the plain bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layer {
    Gzip,
    Openssl,
    Gpg,
}

/// Most layers of one file.
const MAX_LAYERS: usize = 4;

/// A file name taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Layers {
    /// The outermost first.
    pub(super) layers: Vec<Layer>,
    /// What is left when all are undone.
    pub(super) meta: ArtifactMeta,
}

impl Layers {
    /// `config.tar.gz.gpg` is a tar archive in gzip in gpg.
    pub(super) fn of(name: &str) -> Self {
        let mut layers = Vec::new();
        let mut rest: Cow<'_, str> = name.into();
        while layers.len() < MAX_LAYERS {
            let Some((stem, extension)) = rest.rsplit_once('.').filter(|(stem, _)| !stem.is_empty()) else {
                break;
            };
            let (layer, stem) = match extension.to_ascii_lowercase().as_str() {
                "gz" => (Layer::Gzip, stem.to_owned()),
                "tgz" => (Layer::Gzip, format!("{stem}.tar")),
                "enc" => (Layer::Openssl, stem.to_owned()),
                "gpg" | "pgp" | "asc" => (Layer::Gpg, stem.to_owned()),
                _ => break,
            };
            layers.push(layer);
            rest = stem.into();
        }
        let usable = |e: &str| (1..=16).contains(&e.len()) && e.bytes().all(|b| b.is_ascii_alphanumeric());
        let (stem, extension) = match rest.rsplit_once('.') {
            Some((stem, extension)) if !stem.is_empty() && usable(extension) => (stem, extension),
            _ => (rest.as_ref(), "bin"),
        };
        let format = match extension {
            "tar" => ArtifactFormat::TAR,
            "bin" => ArtifactFormat::BYTES,
            other => ArtifactFormat { name: other.to_owned().into(), extension: other.to_owned().into() },
        };
        Self { meta: ArtifactMeta::new(stem.to_owned(), format), layers }
    }

    /// What the bytes must look like once the layer at `place` is undone.
    pub(super) fn expected_after(&self, place: usize) -> Option<Expected> {
        match self.layers.get(place + 1) {
            Some(Layer::Gzip) => Expected::of("gz"),
            Some(Layer::Openssl) => Some(Expected::Begins(b"Salted__")),
            Some(Layer::Gpg) => None,
            None => Expected::of(&self.meta.format.extension),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_taken_apart() {
        for (name, layers, stem, extension) in [
            ("ai_book_20241224.sql.gz", &[Layer::Gzip][..], "ai_book_20241224", "sql"),
            ("backup_20241224.sql.gz.enc", &[Layer::Openssl, Layer::Gzip], "backup_20241224", "sql"),
            ("config_1.tar.gz.gpg", &[Layer::Gpg, Layer::Gzip], "config_1", "tar"),
            ("files.TGZ", &[Layer::Gzip], "files", "tar"),
            ("bookreader_2025-10-24.dump", &[], "bookreader_2025-10-24", "dump"),
            ("noextension", &[], "noextension", "bin"),
            (".gz", &[], ".gz", "bin"),
            ("a.b c", &[], "a.b c", "bin"),
            ("v1.2.gz", &[Layer::Gzip], "v1", "2"),
        ] {
            let found = Layers::of(name);
            assert_eq!(found.layers, layers, "{name}");
            assert_eq!((&*found.meta.name, &*found.meta.format.extension), (stem, extension), "{name}");
        }
    }
}
