//! gzip to plain bytes: members of known length on all cores, others as a stream.

use std::cell::RefCell;

use bytes::{Buf as _, Bytes, BytesMut};
use flate2::{Decompress, FlushDecompress, Status};

use super::member::{self, TRAILER};
use crate::error::{Error, Result};
use crate::transform::frames::{BlockDecoder, MAX_BLOCK, MAX_ENCODED, STREAM_PIECE};
use crate::transform::{Codec, Emit};
use crate::workers::Workers;

/// Decodes a sequence of gzip members.
pub(super) struct Decoder {
    blocks: BlockDecoder,
    buffer: BytesMut,
    stream: Option<Stream>,
    members: u64,
}

/// A member that is decoded piece by piece.
struct Stream {
    inflate: Decompress,
    crc: crc32fast::Hasher,
    ended: bool,
}

impl Decoder {
    pub(super) fn new(workers: &Workers) -> Self {
        Self {
            blocks: BlockDecoder::new(workers, inflate_member),
            buffer: BytesMut::new(),
            stream: None,
            members: 0,
        }
    }

    /// Begins the next member if enough of it is here. `false`: more input is needed.
    fn begin(&mut self, out: &mut dyn Emit) -> Result<bool> {
        if self.buffer.is_empty() {
            return Ok(false);
        }
        let Some(header) = member::parse(&self.buffer)? else { return Ok(false) };
        if let Some(len) = header.member.filter(|len| *len <= MAX_ENCODED) {
            if len < header.len + TRAILER {
                return Err(corrupt("a member says it is shorter than its own header"));
            }
            if self.buffer.len() < len {
                self.buffer.reserve(len - self.buffer.len());
                return Ok(false);
            }
            self.blocks.submit(self.buffer.split_to(len).freeze(), out)?;
            self.members += 1;
            return Ok(true);
        }
        self.blocks.drain(out)?;
        self.buffer.advance(header.len);
        self.stream =
            Some(Stream { inflate: Decompress::new(false), crc: crc32fast::Hasher::new(), ended: false });
        Ok(true)
    }
}

impl Stream {
    /// Decodes from `buffer`. `true`: the member is complete.
    fn advance(&mut self, buffer: &mut BytesMut, out: &mut dyn Emit) -> Result<bool> {
        while !self.ended {
            let mut plain = Vec::with_capacity(STREAM_PIECE);
            let before = self.inflate.total_in();
            let status = self
                .inflate
                .decompress_vec(buffer, &mut plain, FlushDecompress::None)
                .map_err(|e| corrupt("the compressed data is damaged").caused_by(e))?;
            let taken = usize::try_from(self.inflate.total_in() - before).unwrap_or(usize::MAX);
            buffer.advance(taken.min(buffer.len()));
            self.ended = status == Status::StreamEnd;
            let waits = plain.len() < plain.capacity() && buffer.is_empty();
            let stuck = taken == 0 && plain.is_empty();
            self.crc.update(&plain);
            if !plain.is_empty() {
                out.data(plain.into())?;
            }
            if !self.ended && (waits || stuck) {
                return Ok(false);
            }
        }
        let Some(trailer) = buffer.first_chunk::<TRAILER>() else { return Ok(false) };
        let (crc, size) = member::read_trailer(*trailer);
        // The size is stored modulo 2³².
        let decoded = self.inflate.total_out().to_le_bytes();
        if self.crc.clone().finalize() != crc || size.to_le_bytes() != decoded[..4] {
            return Err(corrupt("the checksum or size of the decompressed bytes does not match"));
        }
        buffer.advance(TRAILER);
        Ok(true)
    }
}

impl Codec for Decoder {
    fn push(&mut self, input: Bytes, out: &mut dyn Emit) -> Result<()> {
        self.buffer.extend_from_slice(&input);
        drop(input);
        loop {
            if let Some(stream) = &mut self.stream {
                if !stream.advance(&mut self.buffer, out)? {
                    return Ok(());
                }
                self.stream = None;
                self.members += 1;
            } else if !self.begin(out)? {
                return Ok(());
            }
        }
    }

    fn finish(mut self: Box<Self>, out: &mut dyn Emit) -> Result<()> {
        self.blocks.drain(out)?;
        if self.members == 0 && self.buffer.is_empty() && self.stream.is_none() {
            return Err(corrupt("there is nothing to decompress; even an empty stream has a gzip header"));
        }
        if self.stream.is_some() || !self.buffer.is_empty() {
            return Err(corrupt("the data ends in the middle of a gzip member: it was cut off"));
        }
        Ok(())
    }
}

/// Decodes one whole member of at most [`MAX_BLOCK`] plain bytes.
fn inflate_member(bytes: &[u8]) -> Result<Bytes> {
    thread_local! {
        static INFLATER: RefCell<Option<Decompress>> = const { RefCell::new(None) };
    }
    let header = member::parse(bytes)?.ok_or_else(|| corrupt("a member is too short"))?;
    let body = bytes.get(header.len..).unwrap_or_default();
    let Some((deflated, trailer)) = body.split_last_chunk::<TRAILER>() else {
        return Err(corrupt("a member is too short"));
    };
    let (crc, size) = member::read_trailer(*trailer);
    let size = size as usize;
    if size > MAX_BLOCK {
        return Err(corrupt("a member claims more plain bytes than any encoder puts into one"));
    }
    INFLATER.with_borrow_mut(|slot| {
        let inflate = slot.get_or_insert_with(|| Decompress::new(false));
        inflate.reset(false);
        // One byte more than there may be, so that a longer member is noticed.
        let mut plain = Vec::with_capacity(size + 1);
        let status = inflate
            .decompress_vec(deflated, &mut plain, FlushDecompress::Finish)
            .map_err(|e| corrupt("the compressed data is damaged").caused_by(e))?;
        if status != Status::StreamEnd || inflate.total_in() != deflated.len() as u64 {
            return Err(corrupt("a member does not end where its header says"));
        }
        if plain.len() != size || crc32fast::hash(&plain) != crc {
            return Err(corrupt("the checksum or size of the decompressed bytes does not match"));
        }
        Ok(plain.into())
    })
}

fn corrupt(why: &'static str) -> Error {
    Error::corrupt("decompress gzip", why)
}
