//! zstd frames to plain bytes: short frames on all cores, long ones as a stream.

use bytes::{Buf as _, Bytes, BytesMut};
use zstd::zstd_safe::{DCtx, DParameter, InBuffer, OutBuffer};

use super::context;
use super::frame::{Begin, BlockScan, MAX_WINDOW_LOG, Scanned, begin, failed};
use crate::error::{Error, ErrorKind, Result};
use crate::transform::frames::{BlockDecoder, MAX_BLOCK, MAX_ENCODED, STREAM_PIECE};
use crate::transform::{Codec, Emit};
use crate::workers::Workers;

/// Decodes a sequence of zstd frames.
pub(super) struct Decoder {
    blocks: BlockDecoder,
    buffer: BytesMut,
    state: State,
    frames: u64,
}

enum State {
    /// Between frames.
    Start,
    /// Collecting a short frame.
    Collect(BlockScan),
    /// Inside a skippable frame, with this many bytes to come.
    Skip(u64),
    /// Inside a frame that is decoded piece by piece.
    Stream(DCtx<'static>),
}

/// Whether a step did something or waits for input.
enum Step {
    Done,
    NeedsInput,
}

impl Decoder {
    pub(super) fn new(workers: &Workers) -> Self {
        Self {
            blocks: BlockDecoder::new(workers, decode_frame),
            buffer: BytesMut::new(),
            state: State::Start,
            frames: 0,
        }
    }

    fn step(&mut self, out: &mut dyn Emit) -> Result<Step> {
        match &mut self.state {
            _ if self.buffer.is_empty() => Ok(Step::NeedsInput),
            State::Start => self.begin(out),
            State::Collect(scan) => match scan.walk(&self.buffer)? {
                Scanned::Whole(len) | Scanned::Needs(len) if len > MAX_ENCODED => self.stream(out),
                Scanned::Whole(len) => {
                    let frame = self.buffer.split_to(len).freeze();
                    self.state = State::Start;
                    self.frames += 1;
                    self.blocks.submit(frame, out)?;
                    Ok(Step::Done)
                }
                Scanned::Needs(len) => {
                    self.buffer.reserve(len.saturating_sub(self.buffer.len()));
                    Ok(Step::NeedsInput)
                }
            },
            State::Skip(left) => {
                let now = usize::try_from(*left).unwrap_or(usize::MAX).min(self.buffer.len());
                self.buffer.advance(now);
                *left -= now as u64;
                if *left == 0 {
                    self.state = State::Start;
                }
                Ok(Step::Done)
            }
            State::Stream(context) => {
                if stream(context, &mut self.buffer, out)? {
                    self.state = State::Start;
                    self.frames += 1;
                }
                Ok(Step::Done)
            }
        }
    }

    fn begin(&mut self, out: &mut dyn Emit) -> Result<Step> {
        match begin(&self.buffer)? {
            None => Ok(Step::NeedsInput),
            Some(Begin::Skippable(len)) => {
                self.state = State::Skip(len);
                Ok(Step::Done)
            }
            Some(Begin::Frame(header)) => {
                if header.content.is_none_or(|size| size > MAX_BLOCK as u64) {
                    return self.stream(out);
                }
                self.state = State::Collect(BlockScan::new(&header));
                Ok(Step::Done)
            }
        }
    }

    /// Turns to decoding the frame at the beginning of the buffer as a stream.
    fn stream(&mut self, out: &mut dyn Emit) -> Result<Step> {
        self.blocks.drain(out)?;
        let mut context = DCtx::try_create().ok_or_else(|| {
            Error::new(ErrorKind::LimitExceeded, "decompress zstd")
                .message("there is no memory for a zstd context")
        })?;
        context
            .set_parameter(DParameter::WindowLogMax(MAX_WINDOW_LOG))
            .map_err(|code| failed(ErrorKind::Internal, "set up zstd", code))?;
        self.state = State::Stream(context);
        Ok(Step::Done)
    }
}

/// Decodes what `buffer` holds of a frame. `true`: the frame is complete.
fn stream(context: &mut DCtx<'static>, buffer: &mut BytesMut, out: &mut dyn Emit) -> Result<bool> {
    loop {
        let mut plain = Vec::with_capacity(STREAM_PIECE);
        let mut input = InBuffer::around(buffer);
        let hint = context
            .decompress_stream(&mut OutBuffer::around(&mut plain), &mut input)
            .map_err(|code| failed(ErrorKind::Corrupt, "decompress zstd", code))?;
        let taken = input.pos();
        buffer.advance(taken);
        let full = plain.len() == plain.capacity();
        let stuck = taken == 0 && plain.is_empty();
        if !plain.is_empty() {
            out.data(plain.into())?;
        }
        if hint == 0 {
            return Ok(true);
        }
        // A full piece means that more output may be ready without more input.
        if (buffer.is_empty() && !full) || stuck {
            return Ok(false);
        }
    }
}

impl Codec for Decoder {
    fn push(&mut self, input: Bytes, out: &mut dyn Emit) -> Result<()> {
        self.buffer.extend_from_slice(&input);
        drop(input);
        while let Step::Done = self.step(out)? {}
        Ok(())
    }

    fn finish(mut self: Box<Self>, out: &mut dyn Emit) -> Result<()> {
        self.blocks.drain(out)?;
        if !self.buffer.is_empty() || !matches!(self.state, State::Start) {
            return Err(corrupt("the data ends in the middle of a zstd frame: it was cut off"));
        }
        if self.frames == 0 {
            return Err(corrupt("there is nothing to decompress; even an empty stream has a zstd frame"));
        }
        Ok(())
    }
}

/// Decodes one whole frame of at most [`MAX_BLOCK`] plain bytes.
fn decode_frame(frame: &[u8]) -> Result<Bytes> {
    match begin(frame)? {
        Some(Begin::Frame(header)) => {
            let size = header.content.and_then(|n| usize::try_from(n).ok()).filter(|n| *n <= MAX_BLOCK);
            context::decompress(frame, size.ok_or_else(|| corrupt("a frame does not say its size"))?)
        }
        _ => Err(corrupt("this is not a zstd frame")),
    }
}

fn corrupt(why: &'static str) -> Error {
    Error::corrupt("decompress zstd", why)
}
