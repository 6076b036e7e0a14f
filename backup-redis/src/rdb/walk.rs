//! Walks a value by its layout, over bytes as they arrive.

use super::encoding::{Encoding, Op, Role};
use super::error::RdbError;
use super::length::{Head, head, number};
use super::string::StoredString;

/// Receives what a walk meets, in order. Every method does nothing unless overridden, so that a plain skip costs
/// nothing.
pub(crate) trait Tokens {
    /// A string that lies whole in the input.
    #[inline]
    fn string(&mut self, _role: Role, _string: StoredString<'_>) -> Result<(), RdbError> {
        Ok(())
    }
    /// A string begins whose body comes in [`Tokens::piece`]s.
    #[inline]
    fn begin(&mut self, _role: Role, _head: Head) -> Result<(), RdbError> {
        Ok(())
    }
    /// The next bytes of the string begun.
    #[inline]
    fn piece(&mut self, _body: &[u8]) -> Result<(), RdbError> {
        Ok(())
    }
    /// The string begun is complete.
    #[inline]
    fn end(&mut self) -> Result<(), RdbError> {
        Ok(())
    }
    /// A number.
    #[inline]
    fn number(&mut self, _role: Role, _n: u64) -> Result<(), RdbError> {
        Ok(())
    }
    /// Bytes of fixed length.
    #[inline]
    fn fixed(&mut self, _role: Role, _bytes: &[u8]) -> Result<(), RdbError> {
        Ok(())
    }
    /// A score that was stored as text.
    #[inline]
    fn score(&mut self, _score: f64) -> Result<(), RdbError> {
        Ok(())
    }
    /// A repetition begins.
    #[inline]
    fn count(&mut self, _role: Role, _n: u64) -> Result<(), RdbError> {
        Ok(())
    }
}

/// Tokens that nobody wants.
pub(crate) struct Skip;
impl Tokens for Skip {}

#[derive(Clone, Copy, Debug)]
struct Frame {
    body: &'static [Op],
    at: usize,
    left: u64,
}

/// Deepest nesting of [`Op::Repeat`]: stream, groups, consumers, their pending entries.
const DEPTH: usize = 4;

/// A walk through one value. Stops where the input ends and goes on with the next.
#[derive(Clone, Debug)]
pub(crate) struct Walker {
    frames: [Frame; DEPTH],
    depth: usize,
    /// Bytes of a string's body still to come.
    body: u64,
    /// Whether the layout stays at its step after that body: a string among a module's values.
    stay: bool,
}

impl Walker {
    pub(crate) fn new(encoding: Encoding) -> Self {
        let idle = Frame { body: &[], at: 0, left: 0 };
        Self {
            frames: [Frame { body: encoding.layout(), at: 0, left: 1 }, idle, idle, idle],
            depth: 1,
            body: 0,
            stay: false,
        }
    }

    /// Takes what it can of `input`. Returns how much, and whether the value is complete. What is left over is at
    /// most a header that is not complete yet; it must be the beginning of the next input.
    pub(crate) fn walk<T: Tokens>(
        &mut self,
        input: &[u8],
        tokens: &mut T,
    ) -> Result<(usize, bool), RdbError> {
        let mut rest = input;
        if self.body > 0 {
            let (piece, after) = split(rest, self.body);
            tokens.piece(piece)?;
            self.body -= piece.len() as u64;
            rest = after;
            if self.body > 0 {
                return Ok((input.len(), false));
            }
            tokens.end()?;
            self.advance();
        }
        loop {
            let Some(op) = self.op() else { return Ok((input.len() - rest.len(), true)) };
            let more = Ok((input.len() - rest.len(), false));
            match op {
                Op::Str(role) => {
                    let Some((head, used)) = head(rest)? else { return more };
                    let after = rest.get(used..).unwrap_or_default();
                    if head.body() <= after.len() as u64 {
                        let (body, after) = split(after, head.body());
                        tokens.string(role, StoredString { head, body })?;
                        rest = after;
                    } else if matches!(head, Head::Integer(_)) {
                        return more;
                    } else {
                        self.begin(role, head, after, tokens)?;
                        return Ok((input.len(), false));
                    }
                }
                Op::Fixed(n, role) => {
                    let Some((bytes, after)) = rest.split_at_checked(usize::from(n)) else { return more };
                    tokens.fixed(role, bytes)?;
                    rest = after;
                }
                Op::Number(role) => {
                    let Some((n, used)) = number(rest)? else { return more };
                    tokens.number(role, n)?;
                    rest = rest.get(used..).unwrap_or_default();
                }
                Op::ScoreText => {
                    let Some((score, after)) = score_text(rest)? else { return more };
                    tokens.score(score)?;
                    rest = after;
                }
                Op::Repeat(body, role) => {
                    let Some((n, used)) = number(rest)? else { return more };
                    tokens.count(role, n)?;
                    rest = rest.get(used..).unwrap_or_default();
                    if n > 0 {
                        self.enter(body, n)?;
                        continue;
                    }
                }
                Op::Module => match self.module(rest, tokens)? {
                    ModuleStep::End(after) => rest = after,
                    ModuleStep::Value(after) => {
                        rest = after;
                        continue;
                    }
                    ModuleStep::Body => return Ok((input.len(), false)),
                    ModuleStep::More => return more,
                },
            }
            self.advance();
        }
    }

    #[inline]
    fn op(&self) -> Option<Op> {
        let frame = self.frames.get(self.depth.checked_sub(1)?)?;
        frame.body.get(frame.at).copied()
    }

    fn enter(&mut self, body: &'static [Op], left: u64) -> Result<(), RdbError> {
        let frame =
            self.frames.get_mut(self.depth).ok_or(RdbError::malformed("a value is nested too deeply"))?;
        *frame = Frame { body, at: 0, left };
        self.depth += 1;
        Ok(())
    }

    /// To the next step, out of repetitions that are over.
    #[inline]
    fn advance(&mut self) {
        if std::mem::take(&mut self.stay) {
            return;
        }
        while let Some(frame) = self.depth.checked_sub(1).and_then(|top| self.frames.get_mut(top)) {
            frame.at += 1;
            if frame.at < frame.body.len() {
                return;
            }
            frame.left -= 1;
            if frame.left > 0 {
                frame.at = 0;
                return;
            }
            self.depth -= 1;
        }
    }

    fn begin<T: Tokens>(
        &mut self,
        role: Role,
        head: Head,
        first: &[u8],
        tokens: &mut T,
    ) -> Result<(), RdbError> {
        tokens.begin(role, head)?;
        tokens.piece(first)?;
        self.body = head.body() - first.len() as u64;
        Ok(())
    }

    /// One value of a module: `RDB_MODULE_OPCODE_*` in `rdb.h`.
    fn module<'a, T: Tokens>(&mut self, input: &'a [u8], tokens: &mut T) -> Result<ModuleStep<'a>, RdbError> {
        let Some((code, used)) = number(input)? else { return Ok(ModuleStep::More) };
        let rest = input.get(used..).unwrap_or_default();
        let fixed = match code {
            0 => return Ok(ModuleStep::End(rest)),
            1 | 2 => match number(rest)? {
                None => return Ok(ModuleStep::More),
                Some((_, used)) => used,
            },
            3 => 4,
            4 => 8,
            5 => {
                let Some((head, used)) = head(rest)? else { return Ok(ModuleStep::More) };
                let after = rest.get(used..).unwrap_or_default();
                if head.body() <= after.len() as u64 {
                    let (body, after) = split(after, head.body());
                    tokens.string(Role::ModulePart, StoredString { head, body })?;
                    return Ok(ModuleStep::Value(after));
                }
                if matches!(head, Head::Integer(_)) {
                    return Ok(ModuleStep::More);
                }
                self.begin(Role::ModulePart, head, after, tokens)?;
                self.stay = true;
                return Ok(ModuleStep::Body);
            }
            _ => return Err(RdbError::malformed("a module value has an unknown opcode")),
        };
        Ok(match rest.split_at_checked(fixed) {
            None => ModuleStep::More,
            Some((_, after)) => ModuleStep::Value(after),
        })
    }
}

enum ModuleStep<'a> {
    /// The end mark; then this follows.
    End(&'a [u8]),
    /// A value; then this follows.
    Value(&'a [u8]),
    /// A string whose body takes all that is left and more.
    Body,
    /// The input ends inside a header.
    More,
}

/// At most `n` bytes, and the rest.
#[inline]
fn split(bytes: &[u8], n: u64) -> (&[u8], &[u8]) {
    let n = usize::try_from(n).unwrap_or(usize::MAX).min(bytes.len());
    bytes.split_at_checked(n).unwrap_or((bytes, &[]))
}

/// `rdbLoadDoubleValue`: a length byte and text, or a special length byte.
fn score_text(input: &[u8]) -> Result<Option<(f64, &[u8])>, RdbError> {
    let Some((&n, rest)) = input.split_first() else { return Ok(None) };
    let score = match n {
        253 => f64::NAN,
        254 => f64::INFINITY,
        255 => f64::NEG_INFINITY,
        _ => {
            let Some((text, after)) = rest.split_at_checked(usize::from(n)) else { return Ok(None) };
            let score = std::str::from_utf8(text)
                .ok()
                .and_then(|t| t.trim().parse().ok())
                .ok_or(RdbError::malformed("a score is not a number"))?;
            return Ok(Some((score, after)));
        }
    };
    Ok(Some((score, rest)))
}
