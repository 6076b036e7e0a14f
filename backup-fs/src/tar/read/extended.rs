//! Extended ("pax") headers: records `length keyword=value\n` (POSIX.1-2001 `pax`, section "pax Extended Header").

use std::collections::BTreeMap;

use backup_core::{Error, ErrorKind, Result};

use super::OPERATION;
use super::field::{decimal, id, size, time};
use super::sparse::PaxSparse;
use crate::canonical::FileTime;

/// What an extended header says about a member.
#[derive(Debug, Default)]
pub(super) struct Extended {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) user: Option<Vec<u8>>,
    pub(super) group: Option<Vec<u8>>,
    pub(super) mtime: Option<FileTime>,
    pub(super) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub(super) acl_access: Option<Vec<u8>>,
    pub(super) acl_default: Option<Vec<u8>>,
    pub(super) sparse: PaxSparse,
}

impl Extended {
    pub(super) fn parse(mut records: &[u8]) -> Result<Self> {
        let mut all = Self::default();
        while !records.is_empty() {
            let (record, rest) = split_record(records)?;
            let (keyword, value) = record;
            all.record(keyword, value)?;
            records = rest;
        }
        Ok(all)
    }

    fn record(&mut self, keyword: &[u8], value: &[u8]) -> Result<()> {
        match keyword {
            b"path" => set_name(&mut self.path, value)?,
            b"linkpath" => set_name(&mut self.link, value)?,
            b"size" => {
                let new = size(decimal(value)?)?;
                if self.size.replace(new).is_some_and(|old| old != new) {
                    return Err(twice());
                }
            }
            b"uid" => self.uid = Some(id(decimal(value)?)?),
            b"gid" => self.gid = Some(id(decimal(value)?)?),
            b"uname" => self.user = Some(no_nul(value)?),
            b"gname" => self.group = Some(no_nul(value)?),
            b"mtime" => self.mtime = Some(time(value)?),
            b"SCHILY.acl.access" => self.acl_access = Some(value.to_vec()),
            b"SCHILY.acl.default" => self.acl_default = Some(value.to_vec()),
            _ => {
                if let Some(name) = keyword.strip_prefix(b"SCHILY.xattr.") {
                    self.xattrs.insert(attribute_name(name), value.to_vec());
                } else if let Some(what) = keyword.strip_prefix(b"GNU.sparse.") {
                    self.sparse.record(what, value)?;
                }
                // Times of access and change, comments and vendors' own records have no meaning for a restore.
            }
        }
        Ok(())
    }

    /// Takes over the records of a global header: defaults for all members that follow.
    pub(super) fn merge_global(&mut self, new: Self) -> Result<()> {
        if new.path.is_some() || new.link.is_some() || new.size.is_some() || new.sparse.is_any() {
            return Err(Error::new(ErrorKind::Unsupported, OPERATION)
                .message("a global header gives all members one name or size; this is never right"));
        }
        // Each member would get a copy: a small archive would take any amount of memory.
        if !new.xattrs.is_empty() || new.acl_access.is_some() || new.acl_default.is_some() {
            return Err(Error::new(ErrorKind::Unsupported, OPERATION).message(
                "a global header gives all members extended attributes or an access list; no known program writes this",
            ));
        }
        let old = std::mem::replace(self, new);
        self.inherit(&old);
        Ok(())
    }

    /// Fills what is not said here with what `defaults` say.
    pub(super) fn inherit(&mut self, defaults: &Self) {
        self.uid = self.uid.or(defaults.uid);
        self.gid = self.gid.or(defaults.gid);
        self.mtime = self.mtime.or(defaults.mtime);
        inherit_value(&mut self.user, defaults.user.as_ref());
        inherit_value(&mut self.group, defaults.group.as_ref());
    }
}

fn inherit_value(own: &mut Option<Vec<u8>>, default: Option<&Vec<u8>>) {
    if own.is_none() {
        *own = default.cloned();
    }
}

type Record<'a> = (&'a [u8], &'a [u8]);

/// The first record, as keyword and value, and what follows it.
fn split_record(records: &[u8]) -> Result<(Record<'_>, &[u8])> {
    let malformed = || Error::corrupt(OPERATION, "an extended header is malformed");
    let space = records.iter().take(8).position(|&b| b == b' ').ok_or_else(malformed)?;
    let (digits, _) = records.split_at(space);
    let length = usize::try_from(decimal(digits)?).map_err(|_| malformed())?;
    let (record, rest) = records.split_at_checked(length).ok_or_else(malformed)?;
    let body = record.get(space + 1..).and_then(|b| b.strip_suffix(b"\n")).ok_or_else(malformed)?;
    let equals = body.iter().position(|&b| b == b'=').filter(|&at| at > 0).ok_or_else(malformed)?;
    let (keyword, value) = body.split_at(equals);
    Ok(((keyword, value.get(1..).unwrap_or(&[])), rest))
}

/// An empty value takes a name back to the one in the header.
fn set_name(slot: &mut Option<Vec<u8>>, value: &[u8]) -> Result<()> {
    if value.is_empty() {
        return Ok(());
    }
    let value = no_nul(value)?;
    if slot.as_ref().is_some_and(|old| *old != value) {
        return Err(twice());
    }
    *slot = Some(value);
    Ok(())
}

fn no_nul(value: &[u8]) -> Result<Vec<u8>> {
    if value.contains(&0) {
        return Err(Error::corrupt(OPERATION, "a name contains a NUL byte"));
    }
    Ok(value.to_vec())
}

fn twice() -> Error {
    Error::corrupt(OPERATION, "an extended header gives two different values for one keyword")
}

/// GNU tar writes `%` and `=` in the names of attributes as `%25` and `%3D`.
fn attribute_name(mut raw: &[u8]) -> Vec<u8> {
    let mut name = Vec::with_capacity(raw.len());
    while let Some((&first, rest)) = raw.split_first() {
        let (byte, used) = match raw.get(..3) {
            Some(b"%3D") => (b'=', 3),
            Some(b"%25") => (b'%', 3),
            _ => (first, 1),
        };
        name.push(byte);
        raw = if used == 1 { rest } else { raw.get(used..).unwrap_or(&[]) };
    }
    name
}
