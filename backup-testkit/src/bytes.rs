//! Bytes for tests.

use backup_core::{ByteStream, Bytes, Result};
use futures::TryStreamExt as _;

/// `len` bytes that do not compress, the same for the same `seed`.
pub fn noise(len: usize, seed: u64) -> Bytes {
    // xorshift64* (Vigna 2016): fast, and good enough not to repeat within any test.
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        out.extend_from_slice(&state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes());
    }
    out.truncate(len);
    out.into()
}

/// All bytes of a stream.
pub async fn collect(mut stream: ByteStream) -> Result<Bytes> {
    let mut all = Vec::new();
    while let Some(chunk) = stream.try_next().await? {
        all.extend_from_slice(&chunk);
    }
    Ok(all.into())
}
