//! Zstandard (RFC 8878): [`Zstd`].

mod context;
mod decode;
mod frame;

use std::ops::Range;

use super::frames::{self, BlockEncoder};
use super::{Codec, CodecContext, Frame, Located, Stage, Transform, TransformSpec};
use crate::error::{Error, Result};
use crate::workers::Workers;

/// Zstandard, compressed on all cores, readable by `zstd -d`.
///
/// Each mebibyte of plain bytes becomes a frame of its own, with its size and a checksum. Reads files of other zstd
/// programs as well, on one core where their frames are long; a window of up to 2²⁷ bytes is then held beside what
/// [`memory`](Transform::memory) says.
#[derive(Clone, Copy, Debug)]
pub struct Zstd {
    level: i32,
}

impl Zstd {
    /// Its id in manifests.
    pub const ID: &'static str = "zstd";

    /// Zstandard at `level`, from 1 (fast) to 19 (small).
    pub fn level(level: i32) -> Result<Self> {
        if (1..=19).contains(&level) {
            Ok(Self { level })
        } else {
            Err(Error::invalid("configure zstd", "the level of zstd is a number from 1 to 19")
                .with("level", level))
        }
    }
}

impl Default for Zstd {
    /// Level 3, as `zstd` itself.
    fn default() -> Self {
        Self { level: 3 }
    }
}

impl Transform for Zstd {
    fn spec(&self) -> TransformSpec {
        TransformSpec::new(Self::ID).with("level", self.level)
    }

    fn extension(&self) -> &'static str {
        "zst"
    }

    fn stage(&self) -> Stage {
        Stage::Compress
    }

    fn memory(&self, workers: &Workers) -> usize {
        BlockEncoder::memory(workers) + workers.threads() * context::size(self.level)
    }

    fn encoder(&self, cx: &CodecContext<'_>) -> Result<Box<dyn Codec>> {
        let level = self.level;
        Ok(Box::new(BlockEncoder::new(cx.workers, move |block| context::compress(block, level))))
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
