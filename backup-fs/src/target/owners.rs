//! Who owns what is restored.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError};

use backup_core::{Error, Result};
use rustix::process::{getegid, geteuid};

use super::OPERATION;
use crate::tar::read::Member;

/// Who is to own restored files.
///
/// Anything but [`Leave`](Owners::Leave) needs the right to give files away, which is root's. Numbers in POSIX access
/// lists are restored as they were recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Owners {
    /// The user and group of the recorded name where this machine knows it, else those of the recorded number.
    ByName,
    /// The recorded numbers.
    Numeric,
    /// Some users and groups become others; the rest is restored [`ByName`](Owners::ByName).
    Mapped(OwnerMap),
    /// Everything belongs to one user and one group, each given as name or number.
    All {
        /// The user.
        user: String,
        /// The group.
        group: String,
    },
    /// Owners are not set: everything belongs to the user who restores.
    Leave,
}

impl Owners {
    /// Everything belongs to `user` and `group`, each given as name or number.
    pub fn all(user: impl Into<String>, group: impl Into<String>) -> Self {
        Self::All { user: user.into(), group: group.into() }
    }
}

/// Which recorded users and groups become which others. Names or numbers on both sides.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OwnerMap {
    users: BTreeMap<String, String>,
    groups: BTreeMap<String, String>,
}

impl OwnerMap {
    /// A map that changes nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// What belonged to the user `recorded` will belong to `local`.
    pub fn user(mut self, recorded: impl Into<String>, local: impl Into<String>) -> Self {
        self.users.insert(recorded.into(), local.into());
        self
    }

    /// What belonged to the group `recorded` will belong to `local`.
    pub fn group(mut self, recorded: impl Into<String>, local: impl Into<String>) -> Self {
        self.groups.insert(recorded.into(), local.into());
        self
    }
}

/// What an entry will belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Planned {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Whether the owner has to be set; otherwise the entry keeps the owner it was created with.
    pub(crate) set: bool,
    /// Whether user and group are who was recorded, so that setuid and setgid mean the same here.
    pub(crate) same_user: bool,
    pub(crate) same_group: bool,
}

/// Longest user or group name there is, in bytes (`LOGIN_NAME_MAX`).
const MAX_NAME: usize = 256;

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Space {
    User,
    Group,
}

/// What the system answered about names: a number, or that it knows none.
type Names = HashMap<(Space, Vec<u8>), Option<u32>>;

/// Decides owners, remembering names that were looked up.
#[derive(Debug)]
pub(crate) struct Resolver {
    rule: Rule,
    uid: u32,
    gid: u32,
    names: Mutex<Names>,
}

#[derive(Debug)]
enum Rule {
    ByName,
    Numeric,
    Mapped { users: BTreeMap<Vec<u8>, u32>, groups: BTreeMap<Vec<u8>, u32> },
    All(u32, u32),
    Leave,
}

impl Resolver {
    pub(crate) fn new(owners: Option<&Owners>) -> Result<Self> {
        let rule = match owners {
            None if geteuid().is_root() => Rule::ByName,
            None | Some(Owners::Leave) => Rule::Leave,
            Some(Owners::ByName) => Rule::ByName,
            Some(Owners::Numeric) => Rule::Numeric,
            Some(Owners::All { user, group }) => {
                Rule::All(local(Space::User, user)?, local(Space::Group, group)?)
            }
            Some(Owners::Mapped(map)) => {
                let resolve = |space, names: &BTreeMap<String, String>| -> Result<BTreeMap<Vec<u8>, u32>> {
                    names.iter().map(|(from, to)| Ok((from.as_bytes().to_vec(), local(space, to)?))).collect()
                };
                Rule::Mapped {
                    users: resolve(Space::User, &map.users)?,
                    groups: resolve(Space::Group, &map.groups)?,
                }
            }
        };
        Ok(Self { rule, uid: geteuid().as_raw(), gid: getegid().as_raw(), names: Mutex::new(HashMap::new()) })
    }

    pub(crate) fn plan(&self, member: &Member) -> Planned {
        let set =
            |(uid, same_user), (gid, same_group)| Planned { uid, gid, set: true, same_user, same_group };
        let user = || (self.known(Space::User, &member.user).unwrap_or(member.uid), true);
        let group = || (self.known(Space::Group, &member.group).unwrap_or(member.gid), true);
        match &self.rule {
            Rule::Leave => Planned {
                uid: self.uid,
                gid: self.gid,
                set: false,
                same_user: self.uid == member.uid,
                same_group: self.gid == member.gid,
            },
            Rule::Numeric => set((member.uid, true), (member.gid, true)),
            Rule::ByName => set(user(), group()),
            Rule::All(uid, gid) => set((*uid, *uid == member.uid), (*gid, *gid == member.gid)),
            Rule::Mapped { users, groups } => {
                let mapped = |map: &BTreeMap<Vec<u8>, u32>, name: &Vec<u8>, number: u32| {
                    let id = map.get(name).or_else(|| map.get(number.to_string().as_bytes())).copied()?;
                    Some((id, id == number))
                };
                set(
                    mapped(users, &member.user, member.uid).unwrap_or_else(user),
                    mapped(groups, &member.group, member.gid).unwrap_or_else(group),
                )
            }
        }
    }

    /// Numbers instead of names in the text of an access list; `None` if a name is unknown.
    pub(crate) fn numeric_acl(&self, text: &[u8]) -> Option<String> {
        let text = str::from_utf8(text).ok()?;
        let mut out = Vec::new();
        for entry in text.split([',', '\n']).filter(|e| !e.trim().is_empty()) {
            let parts: Vec<&str> = entry.trim().split(':').collect();
            let (&tag, &name) = (parts.first()?, parts.get(1)?);
            let is_name = !name.is_empty() && !name.bytes().all(|b| b.is_ascii_digit());
            let space = if tag == "group" { Space::Group } else { Space::User };
            if is_name && let Some(id) = self.known(space, name.as_bytes()) {
                out.push(format!("{tag}:{id}:{}", parts.get(2)?));
            } else {
                out.push(parts.join(":"));
            }
        }
        Some(out.join(","))
    }

    fn known(&self, space: Space, name: &[u8]) -> Option<u32> {
        // Archives can give names of any length, and they are remembered here.
        if name.is_empty() || name.len() > MAX_NAME {
            return None;
        }
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = names.get(&(space, name.to_vec())) {
            return *known;
        }
        let found = str::from_utf8(name).ok().and_then(|name| look_up(space, name).ok().flatten());
        // Archives can name any number of users; only so many are remembered.
        if names.len() < 4096 {
            names.insert((space, name.to_vec()), found);
        }
        found
    }
}

/// The number of a user or group of this machine, given as name or number.
fn local(space: Space, text: &str) -> Result<u32> {
    let what = if space == Space::User { "user" } else { "group" };
    match look_up(space, text) {
        Ok(Some(id)) => Ok(id),
        Err(e) => Err(Error::io("look up owner", e).with(what, text)),
        Ok(None) => match text.parse() {
            Ok(id) if id != u32::MAX => Ok(id),
            _ => Err(Error::invalid(
                OPERATION,
                "this machine does not know the owner files are to get; create it or give a number",
            )
            .with(what, text)),
        },
    }
}

/// Asks the system's user database (the name service switch).
fn look_up(space: Space, name: &str) -> std::io::Result<Option<u32>> {
    Ok(match space {
        Space::User => nix::unistd::User::from_name(name)?.map(|user| user.uid.as_raw()),
        Space::Group => nix::unistd::Group::from_name(name)?.map(|group| group.gid.as_raw()),
    })
}
