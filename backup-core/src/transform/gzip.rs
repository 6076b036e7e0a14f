//! gzip (RFC 1952) over deflate (RFC 1951): [`Gzip`].

mod decode;
mod deflate;
mod member;

use std::ops::Range;

use super::frames::{self, BlockEncoder};
use super::{Codec, CodecContext, Frame, Located, Stage, Transform, TransformSpec};
use crate::error::{Error, Result};
use crate::workers::Workers;

/// gzip, compressed on all cores, readable by any `gunzip`.
///
/// Each mebibyte of plain bytes becomes a member of its own, whose header says how long it is (a subfield that other
/// programs skip), so that decoding uses all cores too. Stretches that do not compress are stored. Reads files of
/// other gzip programs as well, on one core.
#[derive(Clone, Copy, Debug)]
pub struct Gzip {
    level: u32,
}

impl Gzip {
    /// Its id in manifests.
    pub const ID: &'static str = "gzip";

    /// gzip at `level`, from 1 (fast) to 9 (small).
    pub fn level(level: u32) -> Result<Self> {
        if (1..=9).contains(&level) {
            Ok(Self { level })
        } else {
            Err(Error::invalid("configure gzip", "the level of gzip is a number from 1 to 9")
                .with("level", level))
        }
    }
}

impl Default for Gzip {
    /// Level 6, as `gzip` itself.
    fn default() -> Self {
        Self { level: 6 }
    }
}

impl Transform for Gzip {
    fn spec(&self) -> TransformSpec {
        TransformSpec::new(Self::ID).with("level", self.level)
    }

    fn extension(&self) -> &'static str {
        "gz"
    }

    fn stage(&self) -> Stage {
        Stage::Compress
    }

    fn memory(&self, workers: &Workers) -> usize {
        BlockEncoder::memory(workers) + workers.threads() * deflate::STATE
    }

    fn encoder(&self, cx: &CodecContext<'_>) -> Result<Box<dyn Codec>> {
        let level = self.level;
        Ok(Box::new(BlockEncoder::new(cx.workers, move |block| deflate::member(block, level))))
    }

    fn decoder(
        &self,
        _spec: &TransformSpec,
        cx: &CodecContext<'_>,
        _at: Option<&Located>,
    ) -> Result<Box<dyn Codec>> {
        Ok(Box::new(decode::Decoder::new(cx.workers)))
    }

    fn locate(
        &self,
        _spec: &TransformSpec,
        plain: Range<u64>,
        frames: &[Frame],
        encoded_size: Option<u64>,
    ) -> Option<Located> {
        frames::locate(&plain, frames, encoded_size)
    }
}
