//! No change at all, as a transform: [`Identity`].

use std::ops::Range;

use bytes::Bytes;

use super::{Codec, CodecContext, Emit, Frame, Located, Stage, Transform, TransformSpec};
use crate::error::Result;
use crate::workers::Workers;

/// Passes bytes through unchanged. Stands where compression would, and adds no file extension.
#[derive(Clone, Copy, Debug, Default)]
pub struct Identity;

impl Identity {
    /// Its id in manifests.
    pub const ID: &'static str = "identity";
}

impl Transform for Identity {
    fn spec(&self) -> TransformSpec {
        TransformSpec::new(Self::ID)
    }

    fn extension(&self) -> &'static str {
        ""
    }

    fn stage(&self) -> Stage {
        Stage::Compress
    }

    fn memory(&self, _workers: &Workers) -> usize {
        0
    }

    fn encoder(&self, _cx: &CodecContext<'_>) -> Result<Box<dyn Codec>> {
        Ok(Box::new(PassThrough))
    }

    fn decoder(
        &self,
        _spec: &TransformSpec,
        _cx: &CodecContext<'_>,
        _at: Option<&Located>,
    ) -> Result<Box<dyn Codec>> {
        Ok(Box::new(PassThrough))
    }

    fn locate(
        &self,
        _spec: &TransformSpec,
        plain: Range<u64>,
        _frames: &[Frame],
        encoded_size: Option<u64>,
    ) -> Option<Located> {
        let to_end = encoded_size.is_some_and(|size| plain.end >= size);
        Some(Located { prefix: 0, plain_start: plain.start, encoded: plain, to_end })
    }

    fn plain_size(&self, _spec: &TransformSpec, encoded_size: u64) -> Option<u64> {
        Some(encoded_size)
    }
}

struct PassThrough;

impl Codec for PassThrough {
    fn push(&mut self, input: Bytes, out: &mut dyn Emit) -> Result<()> {
        if input.is_empty() { Ok(()) } else { out.data(input) }
    }

    fn finish(self: Box<Self>, _out: &mut dyn Emit) -> Result<()> {
        Ok(())
    }
}
