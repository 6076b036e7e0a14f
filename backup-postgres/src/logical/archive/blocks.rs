//! The data blocks behind the head of an archive.

use backup_core::{Error, Result};

use super::toc::{Head, read_int};

/// What kind of data a block holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BlockKind {
    /// Rows of a table.
    Table,
    /// Large objects.
    LargeObjects,
}

/// What [`Blocks::push`] meets, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BlockEvent<'a> {
    /// A block begins at this offset of the archive.
    Begin { dump_id: i32, kind: BlockKind, offset: u64 },
    /// A large object begins.
    LargeObject { oid: u32 },
    /// The next bytes of the table or large object.
    Data(&'a [u8]),
    /// The large object is complete.
    LargeObjectEnd,
    /// The block is complete; the offset is that of the first byte behind it.
    End { offset: u64 },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Between blocks.
    Type,
    /// The block's id comes next.
    Id(BlockKind),
    /// The length of a chunk comes next; zero ends the table, or the large object.
    Length(BlockKind),
    /// The id of a large object comes next; zero ends the block.
    Oid,
    /// So many bytes of a chunk are to come.
    Chunk(BlockKind, usize),
}

/// Walks the blocks of an archive, given in pieces of any size.
#[derive(Debug)]
pub(crate) struct Blocks {
    state: State,
    offset: u64,
    began: u64,
    int_size: usize,
    held: [u8; 9],
    held_len: usize,
}

impl Blocks {
    /// A walker for what follows `head`.
    pub(crate) fn behind(head: &Head) -> Self {
        Self::at(head, head.bytes.len() as u64)
    }

    /// A walker that begins at `offset`, at the beginning of a block.
    pub(crate) fn at(head: &Head, offset: u64) -> Self {
        Self { state: State::Type, offset, began: offset, int_size: head.int_size, held: [0; 9], held_len: 0 }
    }

    /// Takes the next bytes.
    pub(crate) fn push(
        &mut self,
        mut bytes: &[u8],
        mut on_event: impl FnMut(BlockEvent<'_>) -> Result<()>,
    ) -> Result<()> {
        while let Some(&first) = bytes.first() {
            match self.state {
                State::Type => {
                    let kind = match first {
                        1 => BlockKind::Table,
                        3 => BlockKind::LargeObjects,
                        _ => return Err(damaged("a block begins with an unknown type")),
                    };
                    self.began = self.offset;
                    self.advance(&mut bytes, 1);
                    self.state = State::Id(kind);
                }
                State::Chunk(kind, left) => {
                    let n = left.min(bytes.len());
                    if let Some(data) = bytes.get(..n) {
                        on_event(BlockEvent::Data(data))?;
                    }
                    self.advance(&mut bytes, n);
                    self.state = if n == left { State::Length(kind) } else { State::Chunk(kind, left - n) };
                }
                State::Id(_) | State::Length(_) | State::Oid => {
                    if let Some(value) = self.int(&mut bytes)? {
                        self.on_int(value, &mut on_event)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// The input is complete.
    pub(crate) fn finish(&self) -> Result<()> {
        if self.state == State::Type { Ok(()) } else { Err(damaged("the archive ends inside a block")) }
    }

    fn on_int(&mut self, value: i32, on_event: &mut impl FnMut(BlockEvent<'_>) -> Result<()>) -> Result<()> {
        match self.state {
            State::Id(kind) => {
                on_event(BlockEvent::Begin { dump_id: value, kind, offset: self.began })?;
                self.state = match kind {
                    BlockKind::Table => State::Length(kind),
                    BlockKind::LargeObjects => State::Oid,
                };
            }
            State::Oid | State::Length(BlockKind::Table) if value == 0 => {
                self.state = State::Type;
                on_event(BlockEvent::End { offset: self.offset })?;
            }
            State::Oid => {
                // An oid has 32 bits without a sign; archives store it as a number with one.
                on_event(BlockEvent::LargeObject { oid: value.cast_unsigned() })?;
                self.state = State::Length(BlockKind::LargeObjects);
            }
            State::Length(BlockKind::LargeObjects) if value == 0 => {
                self.state = State::Oid;
                on_event(BlockEvent::LargeObjectEnd)?;
            }
            State::Length(kind) => {
                let length =
                    usize::try_from(value).map_err(|_| damaged("a chunk of data has a negative length"))?;
                self.state = State::Chunk(kind, length);
            }
            State::Type | State::Chunk(..) => {}
        }
        Ok(())
    }

    fn advance(&mut self, bytes: &mut &[u8], n: usize) {
        *bytes = bytes.get(n..).unwrap_or(&[]);
        self.offset += n as u64;
    }

    /// An integer, once all its bytes have come.
    fn int(&mut self, bytes: &mut &[u8]) -> Result<Option<i32>> {
        let size = 1 + self.int_size;
        if self.held_len == 0
            && let Some(whole) = bytes.get(..size)
        {
            let value = read_int(whole)?;
            self.advance(bytes, size);
            return Ok(Some(value));
        }
        let n = (size - self.held_len).min(bytes.len());
        if let (Some(to), Some(from)) = (self.held.get_mut(self.held_len..self.held_len + n), bytes.get(..n))
        {
            to.copy_from_slice(from);
        }
        self.held_len += n;
        self.advance(bytes, n);
        if self.held_len < size {
            return Ok(None);
        }
        self.held_len = 0;
        self.held.get(..size).map(read_int).transpose()
    }
}

fn damaged(why: &'static str) -> Error {
    Error::corrupt("read archive", why)
}
