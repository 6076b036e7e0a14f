//! SQL text that may be compressed with gzip, as `pg_dump | gzip` and `pg_dump -Z` make it.

use std::io::Write as _;

use backup_core::{Error, ErrorKind, Result};
use flate2::write::MultiGzDecoder;

/// RFC 1952, section 2.3.1. No SQL text begins with these bytes.
const MAGIC: [u8; 2] = [0x1f, 0x8b];
/// Compressed bytes decoded at a time: deflate makes at most 1,032 times as many of them.
const PIECE: usize = 4 * 1024;

/// Undoes gzip where there is any.
#[derive(Debug)]
pub(super) enum Gunzip {
    /// Not two bytes yet.
    Unknown(Vec<u8>),
    Text,
    Gzip(Box<MultiGzDecoder<Vec<u8>>>),
}

impl Default for Gunzip {
    fn default() -> Self {
        Self::Unknown(Vec::new())
    }
}

fn damaged(error: std::io::Error) -> Error {
    Error::new(ErrorKind::Corrupt, "read SQL text").message("the gzip stream is damaged").caused_by(error)
}

impl Gunzip {
    /// The text of the next bytes, in pieces of at most a few MiB.
    pub(super) fn push<'a>(&'a mut self, bytes: &'a [u8]) -> impl Iterator<Item = Result<Vec<u8>>> + 'a {
        let mut first = Vec::new();
        if let Self::Unknown(held) = self {
            held.extend_from_slice(bytes);
            if held.len() >= MAGIC.len() {
                first = std::mem::take(held);
                let gzip = first.starts_with(&MAGIC);
                *self = if gzip { Self::Gzip(Box::new(MultiGzDecoder::new(Vec::new()))) } else { Self::Text };
            }
        } else {
            first = bytes.to_vec();
        }
        let piece = if matches!(self, Self::Gzip(_)) { PIECE } else { first.len().max(1) };
        let mut at = 0;
        std::iter::from_fn(move || {
            let next = first.get(at..first.len().min(at + piece)).filter(|next| !next.is_empty())?;
            at += next.len();
            Some(match self {
                Self::Gzip(decoder) => decoder
                    .write_all(next)
                    .and_then(|()| decoder.flush())
                    .map(|()| std::mem::take(decoder.get_mut()))
                    .map_err(damaged),
                _ => Ok(next.to_vec()),
            })
        })
    }

    /// The last of the text. A stream that ends early is an error.
    pub(super) fn finish(self) -> Result<Vec<u8>> {
        match self {
            Self::Unknown(held) => Ok(held),
            Self::Text => Ok(Vec::new()),
            Self::Gzip(decoder) => decoder.finish().map_err(damaged),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::{Compression, write::GzEncoder};

    fn gunzip(bytes: &[u8], piece: usize) -> Result<Vec<u8>> {
        let mut gunzip = Gunzip::default();
        let mut text = Vec::new();
        for piece in bytes.chunks(piece) {
            for part in gunzip.push(piece) {
                text.extend(part?);
            }
        }
        text.extend(gunzip.finish()?);
        Ok(text)
    }

    #[test]
    fn text_passes_and_gzip_is_undone_whatever_the_pieces() {
        let text: Vec<u8> = (0..60_000_u32).flat_map(|i| format!("{i}\n").into_bytes()).collect();
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(&text).unwrap();
        let compressed = encoder.finish().unwrap();
        for piece in [1, 3, 10_000, 1 << 20] {
            assert_eq!(gunzip(&text, piece).unwrap(), text);
            assert_eq!(gunzip(&compressed, piece).unwrap(), text);
            let two = [compressed.as_slice(), &compressed].concat();
            assert_eq!(gunzip(&two, piece).unwrap().len(), 2 * text.len());
            assert!(gunzip(&compressed[..compressed.len() - 9], piece).is_err());
        }
        assert_eq!(gunzip(b"", 1).unwrap(), b"");
        assert_eq!(gunzip(b";", 1).unwrap(), b";");
    }
}
