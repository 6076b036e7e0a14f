//! LZF, the compression of strings in an RDB. Source: `lzf_d.c` of `LibLZF` by Marc Lehmann.
//!
//! A control byte below 32 is followed by that many bytes and one, as they are. Any other begins a reference:
//! its upper 3 bits are the length less two (7: one more length byte follows), the lower 5 and the next byte the
//! distance less one. Distances reach 8192 bytes back, so a stream decoder needs no more memory than that.

use super::error::RdbError;

const DAMAGED: RdbError = RdbError::malformed("a compressed string is damaged");

/// Farthest reference back, in bytes.
const REACH: usize = 8192;

/// Appends the decompressed bytes of `input`, which must be exactly `plain` bytes, to `out`.
///
/// The caller has bounded `plain`; see [`super::length::head`] for the bound by the size of the input.
pub(crate) fn decompress(input: &[u8], plain: usize, out: &mut Vec<u8>) -> Result<(), RdbError> {
    let start = out.len();
    let end = start.checked_add(plain).ok_or(DAMAGED)?;
    out.reserve(plain);
    let mut rest = input;
    while let Some((&control, after)) = rest.split_first() {
        if control < 32 {
            let (literal, after) = after.split_at_checked(usize::from(control) + 1).ok_or(DAMAGED)?;
            out.extend_from_slice(literal);
            rest = after;
        } else {
            let (length, distance, after) = reference(control, after).ok_or(DAMAGED)?;
            if distance > out.len() - start || out.len() + length > end {
                return Err(DAMAGED);
            }
            copy_back(out, distance, length);
            rest = after;
        }
        if out.len() > end {
            return Err(DAMAGED);
        }
    }
    if out.len() == end { Ok(()) } else { Err(DAMAGED) }
}

/// Repeats `length` bytes from `distance` back; they may overlap what is being written.
fn copy_back(out: &mut Vec<u8>, distance: usize, length: usize) {
    let from = out.len() - distance;
    if distance >= length {
        out.extend_from_within(from..from + length);
    } else {
        // The pattern repeats: copy all of it that exists, as often as needed.
        let end = out.len() + length;
        while out.len() < end {
            let piece = (end - out.len()).min(out.len() - from);
            out.extend_from_within(from..from + piece);
        }
    }
}

/// Length, distance, and what follows; `None` if the input ends inside.
fn reference(control: u8, rest: &[u8]) -> Option<(usize, usize, &[u8])> {
    let mut length = usize::from(control >> 5) + 2;
    let mut rest = rest;
    if length == 9 {
        let (&more, after) = rest.split_first()?;
        length += usize::from(more);
        rest = after;
    }
    let (&low, after) = rest.split_first()?;
    Some((length, ((usize::from(control & 0x1f) << 8) | usize::from(low)) + 1, after))
}

/// Decompresses a string that arrives in pieces, in bounded memory.
#[derive(Debug, Default)]
pub(crate) struct LzfStream {
    /// The last bytes made, at least [`REACH`] of them once there are so many.
    window: Vec<u8>,
    /// Bytes of the window that were passed on already.
    passed: usize,
    /// A reference whose bytes have not all arrived.
    partial: Vec<u8>,
    /// Bytes of a literal run still to come.
    literal: usize,
    made: u64,
    plain: u64,
}

/// Bytes the window may hold before what is beyond [`REACH`] is dropped.
const WINDOW: usize = 64 * 1024;

impl LzfStream {
    pub(crate) fn new(plain: u64) -> Self {
        Self { plain, ..Self::default() }
    }

    /// Takes compressed bytes; passes plain ones to `out`.
    pub(crate) fn push(
        &mut self,
        input: &[u8],
        out: &mut impl FnMut(&[u8]) -> Result<(), RdbError>,
    ) -> Result<(), RdbError> {
        let mut rest = input;
        while let Some((&next, after)) = rest.split_first() {
            if self.literal > 0 {
                let (run, after) = rest.split_at_checked(self.literal.min(rest.len())).ok_or(DAMAGED)?;
                // A run is at most 32 bytes.
                self.window.extend_from_slice(run);
                self.literal -= run.len();
                self.count(run.len())?;
                rest = after;
            } else if !self.partial.is_empty() || next >= 32 {
                self.partial.push(next);
                rest = after;
                let Some((&control, tail)) = self.partial.split_first() else { continue };
                if let Some((length, distance, _)) = reference(control, tail) {
                    self.partial.clear();
                    if distance > self.window.len() {
                        return Err(DAMAGED);
                    }
                    copy_back(&mut self.window, distance, length);
                    self.count(length)?;
                }
            } else {
                self.literal = usize::from(next) + 1;
                rest = after;
            }
            if self.window.len() >= WINDOW {
                self.flush(out)?;
            }
        }
        self.flush(out)
    }

    /// The string is complete.
    pub(crate) fn finish(&self) -> Result<(), RdbError> {
        if self.made == self.plain && self.literal == 0 && self.partial.is_empty() {
            Ok(())
        } else {
            Err(DAMAGED)
        }
    }

    fn count(&mut self, made: usize) -> Result<(), RdbError> {
        self.made += made as u64;
        if self.made > self.plain { Err(DAMAGED) } else { Ok(()) }
    }

    fn flush(&mut self, out: &mut impl FnMut(&[u8]) -> Result<(), RdbError>) -> Result<(), RdbError> {
        out(self.window.get(self.passed..).unwrap_or_default())?;
        self.window.drain(..self.window.len().saturating_sub(REACH));
        self.passed = self.window.len();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A plain, greedy compressor: enough to make every kind of token.
    fn compress(plain: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        let mut literal: Vec<u8> = Vec::new();
        let flush = |literal: &mut Vec<u8>, out: &mut Vec<u8>| {
            for run in literal.chunks(32) {
                out.push(u8::try_from(run.len() - 1).unwrap());
                out.extend_from_slice(run);
            }
            literal.clear();
        };
        let mut at = 0;
        while at < plain.len() {
            let mut best = (0, 0);
            for distance in 1..=at.min(300) {
                let length =
                    (at..plain.len()).take(264).take_while(|&i| plain[i] == plain[i - distance]).count();
                if length > best.0 {
                    best = (length, distance);
                }
            }
            if best.0 >= 3 {
                flush(&mut literal, &mut out);
                let (length, distance) = (best.0 - 2, best.1 - 1);
                let high = u8::try_from(distance >> 8).unwrap();
                if length < 7 {
                    out.push((u8::try_from(length).unwrap() << 5) | high);
                } else {
                    out.push((7 << 5) | high);
                    out.push(u8::try_from(length - 7).unwrap());
                }
                out.push(distance.to_le_bytes()[0]);
                at += best.0;
            } else {
                literal.push(plain[at]);
                at += 1;
            }
        }
        flush(&mut literal, &mut out);
        out
    }

    fn streamed(packed: &[u8], plain: usize, step: usize) -> Result<Vec<u8>, RdbError> {
        let mut stream = LzfStream::new(plain as u64);
        let mut out = Vec::new();
        for piece in packed.chunks(step.max(1)) {
            stream.push(piece, &mut |bytes| {
                out.extend_from_slice(bytes);
                Ok(())
            })?;
        }
        stream.finish()?;
        Ok(out)
    }

    proptest! {
        #[test]
        fn both_decoders_give_back_what_was_compressed(
            words in proptest::collection::vec("[a-c]{1,4}", 0..200), step in 1usize..50,
        ) {
            let plain = words.concat().repeat(2).into_bytes();
            let packed = compress(&plain);
            let mut out = b"before".to_vec();
            decompress(&packed, plain.len(), &mut out).unwrap();
            prop_assert_eq!(&out[6..], &plain[..]);
            prop_assert_eq!(streamed(&packed, plain.len(), step).unwrap(), plain);
        }

        #[test]
        fn both_decoders_agree_about_any_bytes(packed in proptest::collection::vec(any::<u8>(), 0..60), plain in 0usize..500, step in 1usize..9) {
            let mut whole = Vec::new();
            let one = decompress(&packed, plain, &mut whole).map(|()| whole);
            prop_assert_eq!(one.is_ok(), streamed(&packed, plain, step).is_ok());
            if let Ok(whole) = one {
                prop_assert_eq!(whole, streamed(&packed, plain, step).unwrap());
            }
        }
    }

    #[test]
    fn a_long_string_is_streamed_in_little_memory() {
        let mut packed = vec![0, b'x'];
        let references = 20_000;
        for _ in 0..references {
            packed.extend_from_slice(&[7 << 5, 255, 0]);
        }
        let plain = 1 + references * 264;
        let mut stream = LzfStream::new(plain as u64);
        let mut made = 0;
        for piece in packed.chunks(4096) {
            stream
                .push(piece, &mut |bytes| {
                    assert!(bytes.len() <= WINDOW + 264 && bytes.iter().all(|&b| b == b'x'));
                    made += bytes.len();
                    Ok(())
                })
                .unwrap();
        }
        stream.finish().unwrap();
        assert_eq!(made, plain);
        assert!(stream.window.capacity() < 4 * WINDOW);
    }
}
