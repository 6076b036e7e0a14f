//! Sparse files: where their data is (GNU tar manual, appendix "Storing Sparse Files").

use backup_core::{Error, ErrorKind, Result};

use super::OPERATION;
use super::field::{BLOCK, Header, decimal, number, size};
use super::input::{Chunks, Input};

/// Most extents a sparse file may have: 16 MiB of memory.
const MAX_EXTENTS: usize = 1024 * 1024;

/// A run of data in a sparse file, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

/// The `GNU.sparse.*` records of one extended header: versions 0.0, 0.1 and 1.0.
#[derive(Debug, Default)]
pub(super) struct PaxSparse {
    any: bool,
    major: Option<u64>,
    minor: Option<u64>,
    pub(super) name: Option<Vec<u8>>,
    /// `size` of version 0, `realsize` of version 1.
    size: Option<u64>,
    map: Vec<Extent>,
    /// An offset whose length has not come yet (version 0.0).
    open: Option<u64>,
}

impl PaxSparse {
    pub(super) fn record(&mut self, what: &[u8], value: &[u8]) -> Result<()> {
        self.any = true;
        let length = || size(decimal(value)?);
        match what {
            b"major" => self.major = Some(length()?),
            b"minor" => self.minor = Some(length()?),
            b"name" if !value.is_empty() && !value.contains(&0) => self.name = Some(value.to_vec()),
            b"size" | b"realsize" => self.size = Some(length()?),
            // The number of extents is implied by their list.
            b"numblocks" => {}
            b"offset" => {
                if self.open.replace(length()?).is_some() {
                    return Err(malformed());
                }
            }
            b"numbytes" => {
                let offset = self.open.take().ok_or_else(malformed)?;
                push(&mut self.map, offset, length()?)?;
            }
            b"map" => {
                let mut numbers = value.split(|&b| b == b',');
                while let Some(offset) = numbers.next() {
                    let length = numbers.next().ok_or_else(malformed)?;
                    push(&mut self.map, size(decimal(offset)?)?, size(decimal(length)?)?)?;
                }
            }
            _ => return Err(malformed()),
        }
        Ok(())
    }

    pub(super) fn is_any(&self) -> bool {
        self.any
    }

    /// Sparse records make no sense here.
    pub(super) fn refuse(&self) -> Result<()> {
        if self.any { Err(malformed()) } else { Ok(()) }
    }

    /// Version 1.0: the map stands at the beginning of the data.
    pub(super) fn is_in_data(&self) -> bool {
        self.major == Some(1)
    }

    /// Versions 0.0 and 0.1: the map stands in the header.
    pub(super) fn take_map(&mut self) -> Result<Option<Vec<Extent>>> {
        if !self.any {
            return Ok(None);
        }
        if self.open.is_some() {
            return Err(malformed());
        }
        if self.major.unwrap_or(0) != 0 {
            return Err(Error::new(ErrorKind::Unsupported, OPERATION)
                .message("a sparse file is stored in a version of the format that is not known"));
        }
        Ok(Some(std::mem::take(&mut self.map)))
    }

    pub(super) fn real_size(&self) -> Result<u64> {
        if self.major == Some(1) && self.minor != Some(0) {
            return Err(Error::new(ErrorKind::Unsupported, OPERATION)
                .message("a sparse file is stored in a version of the format that is not known"));
        }
        self.size.ok_or_else(malformed)
    }
}

/// The map of an old GNU sparse member: four extents in the header, then blocks of 21 while they last.
pub(super) fn read_old_gnu<C: Chunks>(
    header: &Header<'_>,
    input: &mut Input<C>,
) -> Result<(u64, Vec<Extent>)> {
    let mut map = Vec::new();
    let real = size(number(header.field(483, 12))?)?;
    push_table(&mut map, header.field(386, 4 * 24))?;
    let mut more = header.field(482, 1) != [0];
    while more {
        let block = input.block()?;
        let (table, flag) = block.split_at(21 * 24);
        push_table(&mut map, table)?;
        more = flag.first().is_some_and(|&b| b != 0);
    }
    Ok((real, map))
}

fn push_table(map: &mut Vec<Extent>, table: &[u8]) -> Result<()> {
    for entry in table.chunks_exact(24) {
        let (offset, length) = entry.split_at(12);
        // An empty field ends the list.
        if length.first() == Some(&0) {
            break;
        }
        push(map, size(number(offset)?)?, size(number(length)?)?)?;
    }
    Ok(())
}

/// The map of version 1.0: decimal numbers, one a line, first their count; padded to a whole block.
pub(super) fn read_in_data<C: Chunks>(input: &mut Input<C>, remaining: &mut u64) -> Result<Vec<Extent>> {
    let mut lines = Lines { input, remaining, block: [0; BLOCK], at: BLOCK };
    let count = lines.number()?;
    let mut map = Vec::new();
    for _ in 0..count {
        let offset = lines.number()?;
        push(&mut map, offset, lines.number()?)?;
    }
    Ok(map)
}

struct Lines<'a, C> {
    input: &'a mut Input<C>,
    remaining: &'a mut u64,
    block: [u8; BLOCK],
    at: usize,
}

impl<C: Chunks> Lines<'_, C> {
    fn number(&mut self) -> Result<u64> {
        let mut digits = Vec::new();
        loop {
            let Some(&byte) = self.block.get(self.at) else {
                *self.remaining = self.remaining.checked_sub(BLOCK as u64).ok_or_else(malformed)?;
                self.block = self.input.block()?;
                self.at = 0;
                continue;
            };
            self.at += 1;
            if byte == b'\n' {
                return size(decimal(&digits)?);
            }
            digits.push(byte);
            if digits.len() > 20 {
                return Err(malformed());
            }
        }
    }
}

fn push(map: &mut Vec<Extent>, offset: u64, length: u64) -> Result<()> {
    if map.len() >= MAX_EXTENTS {
        return Err(Error::new(ErrorKind::LimitExceeded, OPERATION)
            .message("a sparse file has more extents than any real one")
            .with("limit", MAX_EXTENTS));
    }
    map.push(Extent { offset, length });
    Ok(())
}

/// Extents ascend, do not overlap, lie inside the file, and add up to the data that is stored.
pub(super) fn check(map: &[Extent], size: u64, stored: u64) -> Result<()> {
    let (mut end, mut sum) = (0, 0u64);
    for extent in map {
        let after = extent.offset.checked_add(extent.length).ok_or_else(malformed)?;
        if extent.offset < end || after > size {
            return Err(malformed());
        }
        end = after;
        // Cannot overflow: the extents lie side by side inside a size of 63 bits.
        sum += extent.length;
    }
    if sum == stored { Ok(()) } else { Err(malformed()) }
}

fn malformed() -> Error {
    Error::corrupt(OPERATION, "the map of a sparse file is malformed")
}
