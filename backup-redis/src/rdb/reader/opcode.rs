//! What stands between keys: `RDB_OPCODE_*` in `rdb.h`.

use backup_core::{Error, Result};

use super::{CHECKSUM_SINCE, RdbReader, State};
use crate::rdb::encoding::Encoding;
use crate::rdb::error::RdbError;
use crate::rdb::length::number;
use crate::rdb::string::{StoredString, little_endian};
use crate::rdb::visit::Visitor;
use crate::rdb::walk::Walker;

/// Bytes from here on are opcodes, not types.
pub(super) const FIRST: u8 = SLOT_INFO;

const SLOT_INFO: u8 = 244;
const FUNCTION: u8 = 245;
const MODULE_AUX: u8 = 247;
const IDLE: u8 = 248;
const FREQUENCY: u8 = 249;
const AUX: u8 = 250;
const RESIZE: u8 = 251;
const EXPIRES_MS: u8 = 252;
const EXPIRES: u8 = 253;
const SELECT: u8 = 254;
const END: u8 = 255;

impl RdbReader {
    /// One opcode; `None` when the input ends inside it.
    pub(super) fn opcode<'a, V: Visitor>(
        &mut self,
        code: u8,
        input: &'a [u8],
        offset: u64,
        visitor: &mut V,
    ) -> Result<Option<&'a [u8]>> {
        let at = |e: RdbError| Error::from(e.shifted(offset));
        match code {
            EXPIRES_MS => {
                let Some((bytes, after)) = input.split_at_checked(8) else { return Ok(None) };
                self.next.expires_at = Some(little_endian(bytes));
                Ok(Some(after))
            }
            EXPIRES => {
                let Some((bytes, after)) = input.split_at_checked(4) else { return Ok(None) };
                self.next.expires_at = Some(little_endian(bytes).saturating_mul(1000));
                Ok(Some(after))
            }
            FREQUENCY => {
                let Some((&frequency, after)) = input.split_first() else { return Ok(None) };
                self.next.frequency = Some(frequency);
                Ok(Some(after))
            }
            IDLE => {
                let Some(([idle], after)) = numbers::<1>(input).map_err(at)? else { return Ok(None) };
                self.next.idle = Some(idle);
                Ok(Some(after))
            }
            SELECT => {
                let Some(([db], after)) = numbers::<1>(input).map_err(at)? else { return Ok(None) };
                self.db = db;
                Ok(Some(after))
            }
            RESIZE => {
                let Some(([keys, expires], after)) = numbers::<2>(input).map_err(at)? else {
                    return Ok(None);
                };
                visitor.resize(self.db, keys, expires)?;
                Ok(Some(after))
            }
            SLOT_INFO => Ok(numbers::<3>(input).map_err(at)?.map(|(_, after)| after)),
            AUX => {
                let Some((name, rest)) = self.name(input, "auxiliary field").map_err(at)? else {
                    return Ok(None);
                };
                let Some((value, after)) = self.name(rest, "auxiliary field").map_err(at)? else {
                    return Ok(None);
                };
                let (mut a, mut b) = (Vec::new(), Vec::new());
                visitor.aux(name.plain(&mut a).map_err(at)?, value.plain(&mut b).map_err(at)?)?;
                Ok(Some(after))
            }
            FUNCTION => {
                let Some((library, after)) = self.name(input, "library of functions").map_err(at)? else {
                    return Ok(None);
                };
                visitor.function(library.plain(&mut Vec::new()).map_err(at)?)?;
                Ok(Some(after))
            }
            MODULE_AUX => {
                // Its first number is the module, as in a value of a module: the same walk skips both.
                let Some(([module], _)) = numbers::<1>(input).map_err(at)? else { return Ok(None) };
                visitor.module_aux(module)?;
                self.state = State::ModuleAux { walker: Walker::new(Encoding::Module) };
                Ok(Some(input))
            }
            END => {
                self.end = Some(offset + 1);
                self.state =
                    if self.version >= CHECKSUM_SINCE { State::Trailer } else { State::Ended { stored: 0 } };
                Ok(Some(input))
            }
            _ => Err(RdbError::UnknownType { offset, code }.into()),
        }
    }

    /// A string of bounded length that must be whole.
    fn name<'a>(
        &self,
        input: &'a [u8],
        what: &'static str,
    ) -> Result<Option<(StoredString<'a>, &'a [u8])>, RdbError> {
        let Some((string, after)) = StoredString::cut(input)? else {
            self.limit(input, what)?;
            return Ok(None);
        };
        if string.plain_len() > self.name_limit as u64 {
            return Err(self.too_long(what));
        }
        Ok(Some((string, after)))
    }
}

/// Numbers and what follows them.
type Numbers<'a, const N: usize> = Option<([u64; N], &'a [u8])>;

/// `N` numbers in a row, and what follows; `None` when the input ends inside.
fn numbers<const N: usize>(input: &[u8]) -> Result<Numbers<'_, N>, RdbError> {
    let mut found = [0; N];
    let mut rest = input;
    for slot in &mut found {
        let Some((n, used)) = number(rest)? else { return Ok(None) };
        *slot = n;
        rest = rest.get(used..).unwrap_or_default();
    }
    Ok(Some((found, rest)))
}
