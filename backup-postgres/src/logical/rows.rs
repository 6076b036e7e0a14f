//! Rows as COPY text: counting and proving them as they pass.

use backup_core::{Digest, Hasher, Proof};
use ring::digest::{SHA256, digest};

/// Splits COPY text into rows and adds each to a proof, whatever pieces it comes in.
///
/// The canonical item of a row is its COPY text without the newline, and its hash the SHA-256 of exactly those
/// bytes: a row has one field only, so nothing needs to tell fields apart, and a row of a gigabyte needs no memory.
/// A newline inside a value is written `\n` by COPY, so each newline byte ends a row. `\.` alone ends the data
/// where SQL text and archives carry it.
#[derive(Clone, Debug, Default)]
pub(crate) struct RowCounter {
    proof: Proof,
    bytes: u64,
    open: Option<OpenRow>,
    ended: bool,
}

#[derive(Clone, Debug)]
struct OpenRow {
    hasher: Hasher,
    /// The first bytes, enough to know `\.`.
    head: [u8; 3],
    length: u64,
}

/// What was counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counted {
    pub(crate) proof: Proof,
    /// Bytes of COPY text, newlines included.
    pub(crate) bytes: u64,
}

impl RowCounter {
    /// Takes the next bytes.
    pub(crate) fn push(&mut self, mut bytes: &[u8]) {
        if self.ended {
            return;
        }
        if self.open.is_some() {
            match memchr::memchr(b'\n', bytes) {
                None => return self.open_row(bytes),
                Some(end) => {
                    let (tail, rest) = bytes.split_at(end);
                    self.open_row(tail);
                    self.close_row();
                    bytes = rest.get(1..).unwrap_or(&[]);
                }
            }
        }
        while let Some(end) = memchr::memchr(b'\n', bytes) {
            if self.ended {
                return;
            }
            let (row, rest) = bytes.split_at(end);
            self.row(row);
            bytes = rest.get(1..).unwrap_or(&[]);
        }
        if !bytes.is_empty() && !self.ended {
            self.open_row(bytes);
        }
    }

    /// What was counted; a last row without a newline counts.
    pub(crate) fn finish(mut self) -> Counted {
        if self.open.is_some() {
            self.close_row();
        }
        Counted { proof: self.proof, bytes: self.bytes }
    }

    fn row(&mut self, row: &[u8]) {
        if row == b"\\." {
            self.ended = true;
            return;
        }
        let mut hash = [0; 32];
        hash.copy_from_slice(digest(&SHA256, row).as_ref());
        self.proof.add_hashed(&Digest::from(hash));
        self.bytes += row.len() as u64 + 1;
    }

    fn open_row(&mut self, piece: &[u8]) {
        let open =
            self.open.get_or_insert_with(|| OpenRow { hasher: Hasher::new(), head: [0; 3], length: 0 });
        open.hasher.update(piece);
        let at = usize::try_from(open.length).unwrap_or(usize::MAX);
        if let Some(free) = open.head.get_mut(at..) {
            free.iter_mut().zip(piece).for_each(|(to, from)| *to = *from);
        }
        open.length += piece.len() as u64;
    }

    fn close_row(&mut self) {
        let Some(open) = self.open.take() else { return };
        if open.length == 2 && open.head.starts_with(b"\\.") {
            self.ended = true;
            return;
        }
        self.proof.add_hashed(&open.hasher.finish());
        self.bytes += open.length + 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn count(pieces: &[&[u8]]) -> Counted {
        let mut counter = RowCounter::default();
        for piece in pieces {
            counter.push(piece);
        }
        counter.finish()
    }

    #[test]
    fn the_end_mark_is_not_a_row_but_rows_without_columns_are() {
        assert_eq!(count(&[b"1\tx\n2\ty\n\\.\n\n\n"]), count(&[b"1\tx\n2\ty\n"]));
        assert_eq!(count(&[b"\n\n\n"]).proof.count, 3);
        assert_eq!(count(&[b"\\\\.\n"]).proof.count, 1);
        assert_eq!(count(&[]), Counted::default());
    }

    proptest! {
        #[test]
        fn pieces_do_not_matter(text in "[a\\\\.\n]{0,40}", cuts in proptest::collection::vec(0usize..41, 0..6)) {
            let bytes = text.as_bytes();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|c| c.min(bytes.len())).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|w| &bytes[w[0]..w[1]]).collect();
            prop_assert_eq!(count(&pieces), count(&[bytes]));
        }
    }
}
