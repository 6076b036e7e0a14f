//! The codecs of a chain at work.

use std::ops::Range;

use bytes::Bytes;

use crate::error::{Error, Result};
use crate::transform::{Codec, Emit, Frame, Located, Stage};

/// Encodes one object through all layers of a chain.
pub struct ChainEncoder {
    links: Vec<Link>,
}

struct Link {
    codec: Box<dyn Codec>,
    meter: Meter,
}

/// What became of a layer's output.
struct Meter {
    compresses: bool,
    emitted: u64,
    frames: Vec<Frame>,
}

/// The output of one layer: into the next one, or out.
struct Onward<'a> {
    meter: &'a mut Meter,
    rest: &'a mut [Link],
    out: &'a mut dyn Emit,
}

impl Emit for Onward<'_> {
    fn data(&mut self, bytes: Bytes) -> Result<()> {
        self.meter.emitted += bytes.len() as u64;
        push(self.rest, bytes, self.out)
    }

    fn boundary(&mut self, plain_offset: u64) -> Result<()> {
        if self.meter.compresses {
            self.meter.frames.push(Frame { plain: plain_offset, encoded: self.meter.emitted });
        }
        Ok(())
    }
}

fn push(links: &mut [Link], input: Bytes, out: &mut dyn Emit) -> Result<()> {
    match links.split_first_mut() {
        None => out.data(input),
        Some((link, rest)) => link.codec.push(input, &mut Onward { meter: &mut link.meter, rest, out }),
    }
}

impl ChainEncoder {
    pub(super) fn new(codecs: Vec<(Box<dyn Codec>, Stage)>) -> Self {
        let link = |(codec, stage)| {
            let meter = Meter { compresses: stage == Stage::Compress, emitted: 0, frames: Vec::new() };
            Link { codec, meter }
        };
        Self { links: codecs.into_iter().map(link).collect() }
    }

    /// Takes plain bytes, passes on stored bytes. `out` is told no boundaries; [`finish`](Self::finish) returns them.
    pub fn push(&mut self, input: Bytes, out: &mut dyn Emit) -> Result<()> {
        push(&mut self.links, input, out)
    }

    /// The plain bytes are complete. Returns the frames of the compressing layer: offsets in plain
    /// bytes and in that layer's output. None when nothing compresses.
    pub fn finish(self, out: &mut dyn Emit) -> Result<Vec<Frame>> {
        let mut frames = Vec::new();
        let mut links = self.links;
        while !links.is_empty() {
            let Link { codec, mut meter } = links.remove(0);
            codec.finish(&mut Onward { meter: &mut meter, rest: &mut links, out })?;
            frames.append(&mut meter.frames);
        }
        Ok(frames)
    }
}

impl std::fmt::Debug for ChainEncoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ChainEncoder({} layers)", self.links.len())
    }
}

/// Decodes one object, or a part of it, through all layers of a chain.
pub struct ChainDecoder {
    /// In reading order: the outermost first.
    links: Vec<DecodeLink>,
    /// Cuts what the first layer of the chain yields to what was asked for.
    trim: Trim,
}

struct DecodeLink {
    codec: Box<dyn Codec>,
    /// Cuts this layer's input to what it asked for of the layer around it; idle on the outermost.
    trim: Trim,
}

/// Passes on a part of a stream.
struct Trim {
    skip: u64,
    /// Bytes that may still pass.
    left: Option<u64>,
    /// Whether more is an error or is dropped.
    whole: bool,
}

impl Trim {
    fn none() -> Self {
        Self { skip: 0, left: None, whole: false }
    }

    /// Passes on `wanted` of a stream that begins at `start`.
    fn part(start: u64, wanted: &Range<u64>) -> Self {
        let skip = wanted.start.saturating_sub(start);
        Self { skip, left: Some(wanted.end.saturating_sub(wanted.start)), whole: false }
    }

    fn cut(&mut self, mut bytes: Bytes) -> Result<Bytes> {
        let len = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
        let skipped = bytes.split_to(len(self.skip).min(bytes.len()));
        self.skip -= skipped.len() as u64;
        if let Some(left) = &mut self.left {
            if bytes.len() as u64 > *left && self.whole {
                return Err(corrupt("more bytes come out than the manifest says"));
            }
            bytes.truncate(len(*left));
            *left -= bytes.len() as u64;
        }
        Ok(bytes)
    }

    fn is_complete(&self) -> bool {
        self.left.is_none_or(|left| left == 0) && (self.skip == 0 || self.left.is_none())
    }
}

/// The output of one decoding layer: cut, and into the next one, or out.
struct Inward<'a> {
    rest: &'a mut [DecodeLink],
    last: &'a mut Trim,
    out: &'a mut dyn Emit,
}

impl Emit for Inward<'_> {
    fn data(&mut self, bytes: Bytes) -> Result<()> {
        pull(self.rest, self.last, bytes, self.out)
    }

    fn boundary(&mut self, _plain_offset: u64) -> Result<()> {
        Ok(())
    }
}

fn pull(links: &mut [DecodeLink], last: &mut Trim, input: Bytes, out: &mut dyn Emit) -> Result<()> {
    let Some((link, rest)) = links.split_first_mut() else {
        let plain = last.cut(input)?;
        return if plain.is_empty() { Ok(()) } else { out.data(plain) };
    };
    let input = link.trim.cut(input)?;
    if input.is_empty() { Ok(()) } else { link.codec.push(input, &mut Inward { rest, last, out }) }
}

impl ChainDecoder {
    pub(crate) fn whole(codecs: Vec<Box<dyn Codec>>, plain_size: Option<u64>) -> Self {
        let links = codecs.into_iter().rev().map(|codec| DecodeLink { codec, trim: Trim::none() });
        Self { links: links.collect(), trim: Trim { skip: 0, left: plain_size, whole: true } }
    }

    /// `codecs` in writing order with what each located in its own output.
    pub(super) fn part(codecs: Vec<(Box<dyn Codec>, Option<&Located>)>, plain: Range<u64>) -> Self {
        // Without layers the stored bytes that are read are the plain bytes asked for.
        let first_start = codecs.first().map_or(plain.start, |(_, at)| at.map_or(0, |at| at.plain_start));
        let trim = Trim::part(first_start, &plain);
        let mut links = Vec::with_capacity(codecs.len());
        let mut codecs = codecs.into_iter().peekable();
        while let Some((codec, at)) = codecs.next() {
            // What this layer asks for of the layer around it, and where that one begins to yield.
            let trim = match (codecs.peek(), at) {
                (Some((_, around)), Some(at)) => {
                    Trim::part(around.map_or(0, |around| around.plain_start), &at.encoded)
                }
                (None, _) | (Some(_), None) => Trim::none(),
            };
            links.push(DecodeLink { codec, trim });
        }
        links.reverse();
        Self { links, trim }
    }

    /// Takes stored bytes, passes on plain bytes.
    pub fn push(&mut self, input: Bytes, out: &mut dyn Emit) -> Result<()> {
        pull(&mut self.links, &mut self.trim, input, out)
    }

    /// The stored bytes are complete.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Corrupt`](crate::ErrorKind::Corrupt) when they, or the plain bytes made of them, are too few.
    pub fn finish(self, out: &mut dyn Emit) -> Result<()> {
        let (mut links, mut last) = (self.links, self.trim);
        while !links.is_empty() {
            let link = links.remove(0);
            if !link.trim.is_complete() {
                return Err(corrupt("the bytes end too early for the range that was asked for"));
            }
            link.codec.finish(&mut Inward { rest: &mut links, last: &mut last, out })?;
        }
        if last.is_complete() { Ok(()) } else { Err(corrupt("fewer bytes come out than the manifest says")) }
    }
}

impl std::fmt::Debug for ChainDecoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ChainDecoder({} layers)", self.links.len())
    }
}

fn corrupt(why: &'static str) -> Error {
    Error::corrupt("decode", why)
}
