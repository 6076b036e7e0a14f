//! Segments to plain bytes.

use bytes::{Buf as _, Bytes, BytesMut};

use super::{Opener, SegmentCipher as _, TAG};
use crate::error::{Error, Result};
use crate::transform::{Codec, Emit, Located};

/// Decrypts one object, or a run of its segments.
pub(in crate::transform) struct Decoder<O: Opener> {
    opener: O,
    cipher: Option<O::Cipher>,
    buffer: BytesMut,
    /// Where to begin: length of the header, encoded offset, and whether the run reaches the end of the object.
    at: Option<(u64, u64, bool)>,
    number: u64,
}

impl<O: Opener> Decoder<O> {
    pub(in crate::transform) fn new(opener: O, at: Option<&Located>) -> Self {
        Self {
            opener,
            cipher: None,
            buffer: BytesMut::new(),
            at: at.filter(|at| at.encoded.start > 0).map(|at| (at.prefix, at.encoded.start, at.to_end)),
            number: 0,
        }
    }

    fn corrupt(&self, why: &'static str) -> Error {
        self.opener.corrupt(why).with("segment", self.number)
    }

    /// Reads the header. `false`: more bytes are needed.
    fn open(&mut self) -> Result<bool> {
        if self.cipher.is_some() {
            return Ok(true);
        }
        let Some(cipher) = self.opener.open(&self.buffer)? else { return Ok(false) };
        let header = cipher.header().len() as u64;
        self.buffer.advance(cipher.header().len());
        if let Some((prefix, start, _)) = self.at {
            let sealed = (cipher.segment() + TAG) as u64;
            let body = start.checked_sub(header).filter(|body| prefix == header && body % sealed == 0);
            self.number = body
                .map(|body| body / sealed)
                .ok_or_else(|| self.opener.corrupt("the header has other sizes than the manifest says"))?;
        }
        self.cipher = Some(cipher);
        Ok(true)
    }

    /// Decrypts one segment and passes it on.
    fn unseal(&mut self, mut sealed: BytesMut, last: bool, out: &mut dyn Emit) -> Result<()> {
        let opened = match &self.cipher {
            Some(cipher) => cipher.unseal(self.number, last, &mut sealed)?,
            None => false,
        };
        if !opened {
            return Err(self.corrupt(if last {
                "the last segment is damaged, or the object was cut off or extended"
            } else {
                "a segment is damaged, or not in its place"
            }));
        }
        self.number += 1;
        sealed.truncate(sealed.len() - TAG);
        if sealed.is_empty() { Ok(()) } else { out.data(sealed.freeze()) }
    }
}

impl<O: Opener> Codec for Decoder<O> {
    fn push(&mut self, input: Bytes, out: &mut dyn Emit) -> Result<()> {
        self.buffer.extend_from_slice(&input);
        drop(input);
        if !self.open()? {
            return Ok(());
        }
        let Some(sealed) = self.cipher.as_ref().map(|c| c.segment() + TAG) else { return Ok(()) };
        // A full segment is the last one when nothing follows it.
        while self.buffer.len() > sealed {
            let segment = self.buffer.split_to(sealed);
            self.unseal(segment, false, out)?;
        }
        Ok(())
    }

    fn finish(mut self: Box<Self>, out: &mut dyn Emit) -> Result<()> {
        let Some(sealed) = self.cipher.as_ref().map(|c| c.segment() + TAG) else {
            return Err(self.corrupt("the object ends inside its header: it was cut off"));
        };
        let to_end = self.at.is_none_or(|(_, _, to_end)| to_end);
        let rest = std::mem::take(&mut self.buffer);
        if !to_end {
            if rest.len() != sealed {
                return Err(self.corrupt("a run of segments was cut off"));
            }
            return self.unseal(rest, false, out);
        }
        if rest.len() < TAG {
            return Err(self.corrupt("the object ends inside a segment: it was cut off"));
        }
        if rest.len() == TAG && self.number > 0 {
            return Err(self.corrupt("only an empty object ends with an empty segment"));
        }
        self.unseal(rest, true, out)
    }
}
