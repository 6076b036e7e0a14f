//! The map of a sparse file (GNU tar manual, "Sparse Formats: PAX Format, Version 1.0").

use super::header::BLOCK;

/// Runs of data a map may have; beyond them, the rest of the file is taken as data. It bounds the map's memory
/// on both sides.
pub(crate) const MAX_RUNS: usize = 16_384;

/// Where a sparse file has data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SparseMap {
    /// Offset and length of each run of data, ascending, not overlapping.
    pub(crate) runs: Vec<(u64, u64)>,
    /// Logical size of the file in bytes.
    pub(crate) size: u64,
}

impl SparseMap {
    /// Bytes of data, without holes.
    pub(crate) fn data(&self) -> u64 {
        self.runs.iter().map(|(_, length)| length).sum()
    }

    /// The map as it precedes the data in the member's content, padded to a block.
    pub(crate) fn encode(&self) -> Vec<u8> {
        // A hole at the end is told by an empty run there; an empty map is not understood by all readers.
        let ends_with_data = self.runs.last().is_some_and(|(at, length)| at + length == self.size);
        let tail = (!ends_with_data).then_some((self.size, 0));
        let count = self.runs.len() + usize::from(tail.is_some());
        let mut map = format!("{count}\n").into_bytes();
        for (at, length) in self.runs.iter().copied().chain(tail) {
            map.extend_from_slice(format!("{at}\n{length}\n").as_bytes());
        }
        map.resize(map.len().next_multiple_of(BLOCK), 0);
        map
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hole_at_the_end_is_told() {
        let map = SparseMap { runs: vec![(4096, 512)], size: 1 << 20 };
        assert!(map.encode().starts_with(b"2\n4096\n512\n1048576\n0\n\0"));
        assert_eq!(map.encode().len(), 512);
        assert_eq!(map.data(), 512);
        let map = SparseMap { runs: vec![(4096, 4096)], size: 8192 };
        assert!(map.encode().starts_with(b"1\n4096\n4096\n\0"));
        assert!(SparseMap { runs: vec![], size: 9 }.encode().starts_with(b"1\n9\n0\n\0"));
    }
}
