//! What codecs need around them, and sample data.

use std::ops::Range;

use backup_core::{BackupId, BackupKey, Bytes, Chain, CodecContext, Emit, Frame, Result, SetName, Workers};

/// A set, a backup, a key and workers.
#[derive(Debug)]
pub struct World {
    set: SetName,
    id: BackupId,
    key: BackupKey,
    workers: Workers,
}

/// An encoded object, and the boundaries in it.
#[derive(Debug)]
pub struct Encoded {
    /// The stored bytes.
    pub bytes: Vec<u8>,
    /// The compressing layer's frames.
    pub frames: Vec<Frame>,
}

impl Default for World {
    fn default() -> Self {
        Self::new()
    }
}

impl World {
    /// A world with a random key and two workers.
    pub fn new() -> Self {
        let fine = "a fixed, valid name";
        Self {
            set: SetName::parse("testkit/transform").expect(fine),
            id: "20261120T020000Z-00c0de".parse().expect(fine),
            key: BackupKey::generate().expect("the system has random numbers"),
            workers: Workers::new(2).expect("threads can be started"),
        }
    }

    /// The context of an artifact in it.
    pub fn context<'a>(&'a self, artifact: &'a str) -> CodecContext<'a> {
        CodecContext { set: &self.set, id: self.id, artifact, key: Some(&self.key), workers: &self.workers }
    }

    /// Encodes `plain`, pushed in pieces cut at `cuts`.
    pub fn encode(&self, chain: &Chain, plain: &[u8], cuts: &[usize]) -> Encoded {
        let mut bytes = Vec::new();
        let mut encoder = chain.encoder(&self.context("object")).expect("an encoder");
        for piece in pieces(plain, cuts) {
            encoder.push(piece, &mut bytes).expect("encoding");
        }
        let frames = encoder.finish(&mut bytes).expect("encoding");
        Encoded { bytes, frames }
    }

    /// Decodes a whole object, pushed in pieces cut at `cuts`.
    pub fn decode(
        &self,
        chain: &Chain,
        stored: &[u8],
        cuts: &[usize],
        plain_size: Option<u64>,
    ) -> Result<Vec<u8>> {
        let mut plain = Vec::new();
        self.decode_to(chain, stored, cuts, plain_size, &mut plain)?;
        Ok(plain)
    }

    /// Decodes a whole object into `out`, which keeps what came before an error.
    pub fn decode_to(
        &self,
        chain: &Chain,
        stored: &[u8],
        cuts: &[usize],
        plain_size: Option<u64>,
        out: &mut dyn Emit,
    ) -> Result<()> {
        let mut decoder = chain.decoder(&self.context("object"), plain_size)?;
        for piece in pieces(stored, cuts) {
            decoder.push(piece, out)?;
        }
        decoder.finish(out)
    }

    /// Reads a plain range, pushing only the stored bytes that belong to it.
    pub fn decode_range(&self, chain: &Chain, from: &Encoded, range: Range<u64>) -> Result<Vec<u8>> {
        let located = chain.locate(range, &from.frames, from.bytes.len() as u64);
        let at = |n: u64| usize::try_from(n).expect("an offset in memory");
        let mut decoder = chain.range_decoder(&self.context("object"), &located)?;
        let mut plain = Vec::new();
        let prefix = &from.bytes[..at(located.prefix)];
        let stored = &from.bytes[at(located.stored.start)..at(located.stored.end)];
        for piece in [prefix, stored].into_iter().flat_map(|part| part.chunks(100_000)) {
            decoder.push(Bytes::copy_from_slice(piece), &mut plain)?;
        }
        decoder.finish(&mut plain)?;
        Ok(plain)
    }
}

/// Largest piece that is pushed at once; an engine pushes stored blocks of at most 4 MiB.
const MAX_PIECE: usize = 3 << 20;

fn pieces(bytes: &[u8], cuts: &[usize]) -> Vec<Bytes> {
    let mut cuts: Vec<usize> = cuts.iter().map(|c| *c.min(&bytes.len())).collect();
    cuts.extend((0..bytes.len()).step_by(MAX_PIECE));
    cuts.extend([0, bytes.len()]);
    cuts.sort_unstable();
    cuts.windows(2).map(|pair| Bytes::copy_from_slice(&bytes[pair[0]..pair[1]])).collect()
}

/// `len` bytes that look like a backup: runs of text, of random bytes, and of zeros. The same for the same seed.
pub fn sample(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(len + 200_000);
    let mut state = seed;
    let mut next = move || {
        // SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014).
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    while bytes.len() < len {
        let run = next() % 150_000 + 500;
        let until = bytes.len() + usize::try_from(run).expect("a short run");
        match next() % 4 {
            0 => {
                while bytes.len() < until {
                    bytes.extend_from_slice(&next().to_le_bytes());
                }
            }
            1 => bytes.resize(until, 0),
            _ => {
                while bytes.len() < until {
                    let n = next();
                    bytes.extend_from_slice(
                        format!("{}\tuser{}\tseen\t{}\n", n >> 44, n % 97, n % 7).as_bytes(),
                    );
                }
            }
        }
    }
    bytes.truncate(len);
    bytes
}
