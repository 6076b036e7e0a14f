//! One block to one gzip member.
//!
//! A deflate stream is a sequence of blocks, so a member may mix compressed and stored stretches. Media, archives and
//! encrypted files inside a backup would cost the full price of compression and gain nothing; pieces that look random
//! are therefore stored.

use std::cell::RefCell;

use bytes::Bytes;
use flate2::{Compress, Compression, FlushCompress, Status};

use super::member::{OUR_HEADER, header, trailer};
use crate::error::{Error, ErrorKind, Result};

/// What one thread keeps to compress: the deflate state (window, hash chains, pending output) and its second instance
/// for trials.
pub(super) const STATE: usize = 1 << 20;

/// Pieces are judged one by one.
const PIECE: usize = 64 << 10;
/// How much of a piece that looks random is compressed on trial.
const TRIAL: usize = 8 << 10;
/// Most bytes in a stored block (RFC 1951, section 3.2.4).
const MAX_STORED: usize = 0xffff;

struct Deflater {
    level: u32,
    compress: Compress,
    scratch: Vec<u8>,
}

thread_local! {
    static DEFLATER: RefCell<Option<Deflater>> = const { RefCell::new(None) };
    static TRIAL_DEFLATER: RefCell<Option<Compress>> = const { RefCell::new(None) };
}

/// Compresses `plain` (at most a block) to a whole member.
pub(super) fn member(plain: &[u8], level: u32) -> Result<Bytes> {
    DEFLATER.with_borrow_mut(|slot| {
        let mut deflater = match slot.take() {
            Some(deflater) if deflater.level == level => deflater,
            _ => Deflater {
                level,
                compress: Compress::new(Compression::new(level), false),
                scratch: Vec::new(),
            },
        };
        let member = deflater.member(plain)?;
        // Put back only when its stream was ended: see `shrinks` for why an unended one must not be used again.
        *slot = Some(deflater);
        Ok(member)
    })
}

impl Deflater {
    fn member(&mut self, plain: &[u8]) -> Result<Bytes> {
        self.scratch.clear();
        self.scratch.extend_from_slice(&[0; OUR_HEADER]);
        let mut rest = plain;
        while !rest.is_empty() {
            let (random, len) = next_run(rest);
            let (run, after) = rest.split_at(len);
            if random {
                store(run, after.is_empty(), &mut self.scratch);
            } else {
                self.deflate(run, after.is_empty())?;
            }
            rest = after;
        }
        if plain.is_empty() {
            self.deflate(plain, true)?;
        }
        let plain_len = u32::try_from(plain.len()).map_err(|_| internal("a block is too long"))?;
        self.scratch.extend_from_slice(&trailer(crc32fast::hash(plain), plain_len));
        let len = u32::try_from(self.scratch.len()).map_err(|_| internal("a member is too long"))?;
        self.scratch[..OUR_HEADER].copy_from_slice(&header(len));
        // A copy of the exact size: the scratch keeps its capacity, the member holds no more than it needs.
        Ok(Bytes::copy_from_slice(&self.scratch))
    }

    /// Appends `run` as deflate blocks that refer to nothing before it and end at a byte boundary.
    fn deflate(&mut self, run: &[u8], last: bool) -> Result<()> {
        self.compress.reset();
        let flush = if last { FlushCompress::Finish } else { FlushCompress::Sync };
        loop {
            let taken = usize::try_from(self.compress.total_in()).unwrap_or(usize::MAX);
            let input = run.get(taken..).unwrap_or_default();
            // Room for the worst case of the remaining input and a little more, so that one round is enough.
            self.scratch.reserve(input.len() + input.len() / 8 + 256);
            let status = self
                .compress
                .compress_vec(input, &mut self.scratch, flush)
                .map_err(|e| internal("deflate failed").caused_by(e))?;
            let all_taken = self.compress.total_in() == run.len() as u64;
            let room_left = self.scratch.len() < self.scratch.capacity();
            match status {
                Status::StreamEnd => return Ok(()),
                // A flush is complete when there was room left after it (zlib.h, `deflate`).
                Status::Ok | Status::BufError if !last && all_taken && room_left => return Ok(()),
                Status::Ok => {}
                Status::BufError if !room_left => {}
                Status::BufError => return Err(internal("deflate made no progress")),
            }
        }
    }
}

/// Appends `run` uncompressed.
fn store(run: &[u8], last: bool, to: &mut Vec<u8>) {
    let mut blocks = run.chunks(MAX_STORED).peekable();
    while let Some(block) = blocks.next() {
        let len = u16::try_from(block.len()).unwrap_or(u16::MAX);
        to.push(u8::from(last && blocks.peek().is_none()));
        to.extend_from_slice(&len.to_le_bytes());
        to.extend_from_slice(&(!len).to_le_bytes());
        to.extend_from_slice(block);
    }
}

/// The next stretch of pieces of one kind: whether they look random, and its length in bytes.
fn next_run(bytes: &[u8]) -> (bool, usize) {
    let mut pieces = bytes.chunks(PIECE);
    let Some(first) = pieces.next() else { return (false, 0) };
    let random = looks_random(first);
    // The trial costs more than the histogram, and once in a run of random pieces is enough of it.
    let continues = |piece: &&[u8]| if random { evenly_spread(piece) } else { !looks_random(piece) };
    let more = pieces.take_while(continues).map(<[u8]>::len).sum::<usize>();
    (random, first.len() + more)
}

/// Whether compressing `piece` would gain next to nothing.
fn looks_random(piece: &[u8]) -> bool {
    piece.len() >= TRIAL && evenly_spread(piece) && !shrinks(&piece[(piece.len() - TRIAL) / 2..][..TRIAL])
}

/// Whether all byte values are about equally frequent: the collision entropy is above 7.8 bits a byte.
fn evenly_spread(piece: &[u8]) -> bool {
    // Four histograms, so that equal neighbours do not wait for each other's counter.
    let mut counts = [[0u32; 256]; 4];
    for four in piece.chunks(4) {
        for (count, byte) in counts.iter_mut().zip(four) {
            count[usize::from(*byte)] += 1;
        }
    }
    let [a, b, c, d] = counts;
    let squares: u64 =
        a.iter().zip(b).zip(c).zip(d).map(|(((a, b), c), d)| u64::from(a + b + c + d).pow(2)).sum();
    // Σp² < 2^-7.8 = 1/222.86, written without floating point.
    let len = piece.len() as u64;
    squares * 223 < len * len
}

/// Whether `sample` compresses by more than a hundredth; finds repetitions that the histogram cannot see.
fn shrinks(sample: &[u8]) -> bool {
    TRIAL_DEFLATER.with_borrow_mut(|slot| {
        let compress = slot.get_or_insert_with(|| Compress::new(Compression::fast(), false));
        compress.reset();
        // Room for all of it, although it is of no interest beyond its size: zlib-rs 0.6.8 keeps its place in the
        // pending output across a reset when a stream was not ended, and panics some streams later.
        let mut out = [0; 2 * TRIAL];
        let ended = compress.compress(sample, &mut out, FlushCompress::Finish);
        matches!(ended, Ok(Status::StreamEnd)) && compress.total_out() < (TRIAL - TRIAL / 100) as u64
    })
}

fn internal(why: &'static str) -> Error {
    Error::new(ErrorKind::Internal, "compress gzip").message(why)
}
