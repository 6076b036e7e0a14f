//! One thing to restore: what was recorded of it, and what it is to become here.

use backup_core::ItemKind;

use super::notes::{ACL_UNKNOWN, Notes, OWNER_LEFT, SETUID_DROPPED, TIME_NOT_KEPT, XATTR_FOREIGN};
use super::owners::{Planned, Resolver};
use super::times::Times;
use crate::acl;
use crate::canonical::{ACL_ACCESS, ACL_DEFAULT, FileTime, Xattrs, is_recorded_xattr};
use crate::tar::read::Member;

const SETUID: u32 = 0o4000;
const SETGID: u32 = 0o2000;
/// An access list of just owner, group and others says no more than the mode; file systems do not keep it.
/// Four bytes of version and three entries of eight (`linux/posix_acl_xattr.h`).
const PLAIN_ACL: usize = 4 + 3 * 8;

/// Metadata as the backup recorded it, and as it is planned to be on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// The item's name in the backup.
    pub(crate) item: Vec<u8>,
    /// Where it goes, below the destination; empty for the destination itself.
    pub(crate) place: Vec<u8>,
    pub(crate) kind: ItemKind,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: FileTime,
    /// Of a symbolic link its target, of a hard link the item that carries the content.
    pub(crate) link: Vec<u8>,
    pub(crate) xattrs: Xattrs,
    pub(crate) planned: PlannedMeta,
}

/// What deviates from the record on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PlannedMeta {
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: FileTime,
    /// Whether the owner has to be set.
    pub(crate) set_owner: bool,
}

impl Entry {
    pub(crate) fn new(
        member: Member,
        kind: ItemKind,
        item: Vec<u8>,
        place: Vec<u8>,
        owners: &Resolver,
        times: &Times,
        notes: &Notes,
    ) -> Self {
        let owner = owners.plan(&member);
        let same = owner.same_user && owner.same_group;
        if !(owner.set || same) {
            notes.add(OWNER_LEFT, &item);
        }
        let planned = PlannedMeta {
            mode: planned_mode(member.mode, kind, owner, notes, &item),
            uid: owner.uid,
            gid: owner.gid,
            mtime: times.kept(member.mtime),
            set_owner: owner.set,
        };
        if planned.mtime != member.mtime {
            notes.add(TIME_NOT_KEPT, &item);
        }
        let (mode, uid, gid, mtime) = (member.mode, member.uid, member.gid, member.mtime);
        let link = member.link.clone();
        let xattrs = attributes(member, owners, notes, &item);
        Self { item, place, kind, mode, uid, gid, mtime, link, xattrs, planned }
    }
}

/// A setuid program must not become one of somebody else's.
fn planned_mode(mode: u32, kind: ItemKind, owner: Planned, notes: &Notes, item: &[u8]) -> u32 {
    // On directories setgid only says who owns what is created in them.
    if kind != ItemKind::File {
        return mode;
    }
    let mut planned = mode;
    if !owner.same_user {
        planned &= !SETUID;
    }
    if !owner.same_group {
        planned &= !SETGID;
    }
    if planned != mode {
        notes.add(SETUID_DROPPED, item);
    }
    planned
}

/// The attributes that belong to the data, access lists among them in the kernel's form.
fn attributes(member: Member, owners: &Resolver, notes: &Notes, item: &[u8]) -> Xattrs {
    let mut xattrs = member.xattrs;
    xattrs.retain(|name, _| {
        let recorded = is_recorded_xattr(name);
        if !recorded {
            notes.add(XATTR_FOREIGN, item);
        }
        recorded
    });
    for (name, text) in [(ACL_ACCESS, member.acl_access), (ACL_DEFAULT, member.acl_default)] {
        let Some(text) = text.filter(|text| !text.is_empty()) else { continue };
        let binary = owners.numeric_acl(&text).and_then(|text| acl::from_text(&text));
        match binary {
            Some(binary) if name == ACL_ACCESS && binary.len() <= PLAIN_ACL => {}
            Some(binary) => {
                xattrs.insert(name.to_vec(), binary);
            }
            None => notes.add(ACL_UNKNOWN, item),
        }
    }
    xattrs
}
