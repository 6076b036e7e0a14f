//! Writes a value so that an older server reads it.

use super::decode::{Part, Parts, decode};
use super::encoding::{Encoding, Kind, Op, Role};
use super::error::RdbError;
use super::length::{write_length, write_string};
use super::string::StoredString;
use super::walk::{Tokens, Walker};

/// A value for a server that reads RDB up to `version`: its type byte, and its raw bytes in `out`. `None`: an older
/// server has nothing like it (expiry times of fields, values of modules).
///
/// Collections are written element by element, which every server reads; of streams, what newer versions added is
/// left out.
pub(crate) fn transcode(
    encoding: Encoding,
    raw: &[u8],
    version: u32,
    out: &mut Vec<u8>,
) -> Result<Option<Encoding>, RdbError> {
    out.clear();
    let plain = match encoding.kind() {
        Kind::List => Encoding::List,
        Kind::Set => Encoding::Set,
        Kind::Hash => Encoding::Hash,
        Kind::SortedSet => Encoding::SortedSet,
        Kind::Stream => return stream(encoding, raw, version, out),
        Kind::String | Kind::Module => return Ok(None),
    };
    if plain.since() > version {
        return Ok(None);
    }
    let mut counter = Counter::default();
    decode(encoding, raw, &mut counter)?;
    if counter.expiry {
        return Ok(None);
    }
    let count = if plain == Encoding::Hash { counter.strings / 2 } else { counter.strings };
    write_length(out, count);
    decode(encoding, raw, &mut Plain(out))?;
    Ok(Some(plain))
}

#[derive(Default)]
struct Counter {
    strings: u64,
    expiry: bool,
}

impl Parts for Counter {
    fn part(&mut self, part: Part<'_>) -> Result<(), RdbError> {
        match part {
            Part::Bytes(_) | Part::Begin(_) => self.strings += 1,
            Part::Expiry(_) => self.expiry = true,
            _ => {}
        }
        Ok(())
    }
}

struct Plain<'a>(&'a mut Vec<u8>);

impl Parts for Plain<'_> {
    fn part(&mut self, part: Part<'_>) -> Result<(), RdbError> {
        match part {
            Part::Bytes(bytes) => write_string(self.0, bytes),
            Part::Begin(length) => write_length(self.0, length),
            Part::Piece(bytes) => self.0.extend_from_slice(bytes),
            Part::Score(score) => self.0.extend_from_slice(&score.to_le_bytes()),
            _ => {}
        }
        Ok(())
    }
}

/// A stream with the parts that `version` knows; nodes are the same in all.
fn stream(
    encoding: Encoding,
    raw: &[u8],
    version: u32,
    out: &mut Vec<u8>,
) -> Result<Option<Encoding>, RdbError> {
    let to = match version {
        11.. => Encoding::Stream3,
        10 => Encoding::Stream2,
        9 => Encoding::Stream,
        _ => return Ok(None),
    };
    if to.since() > encoding.since() {
        return Ok(None);
    }
    let mut kept = Kept { out, to };
    let (used, done) = Walker::new(encoding).walk(raw, &mut kept)?;
    if !done || used != raw.len() {
        return Err(RdbError::malformed("a stream does not end where its bytes do"));
    }
    Ok(Some(to))
}

struct Kept<'a> {
    out: &'a mut Vec<u8>,
    to: Encoding,
}

impl Kept<'_> {
    /// Whether the layout written has a place for this.
    fn wanted(&self, role: Role) -> bool {
        fn has(layout: &[Op], wanted: Role) -> bool {
            layout.iter().any(|op| match op {
                Op::Repeat(body, role) => *role == wanted || has(body, wanted),
                Op::Str(role) | Op::Fixed(_, role) | Op::Number(role) => *role == wanted,
                Op::ScoreText | Op::Module => false,
            })
        }
        has(self.to.layout(), role)
    }
}

impl Tokens for Kept<'_> {
    fn string(&mut self, role: Role, string: StoredString<'_>) -> Result<(), RdbError> {
        if self.wanted(role) {
            write_string(self.out, string.plain(&mut Vec::new())?);
        }
        Ok(())
    }

    fn number(&mut self, role: Role, n: u64) -> Result<(), RdbError> {
        if self.wanted(role) {
            write_length(self.out, n);
        }
        Ok(())
    }

    fn count(&mut self, role: Role, n: u64) -> Result<(), RdbError> {
        self.number(role, n)
    }

    fn fixed(&mut self, role: Role, bytes: &[u8]) -> Result<(), RdbError> {
        if self.wanted(role) {
            self.out.extend_from_slice(bytes);
        }
        Ok(())
    }
}
