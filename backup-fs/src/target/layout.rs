//! Where a member goes: checked names, leading components removed, hard links whose content was not selected.

use std::collections::{BTreeSet, HashMap};

use backup_core::{Error, ErrorKind, ItemKind, ItemPath, RestorePlan, Result, Selection};
use futures::StreamExt as _;

use super::OPERATION;

/// Deepest nesting, in components: what fits in `PATH_MAX`, the longest name a program can use at once.
const MAX_DEPTH: usize = 2048;
/// More different leading components than this are not told apart when an existing tree is kept.
const MAX_PREFIXES: usize = 1024;

/// Which items are restored and where.
#[derive(Debug)]
pub(crate) struct Layout {
    selection: Selection,
    strip: usize,
    /// Items that carry the content of selected hard links but are not selected: the name of the first of
    /// these links, which gets the content.
    aliases: HashMap<Vec<u8>, Vec<u8>>,
    /// What was stripped from the selected items, to find them in an existing tree.
    prefixes: BTreeSet<Vec<u8>>,
}

/// Where an item goes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// Below the destination; empty means the destination itself.
    At(Vec<u8>),
    /// Above the destination, because of the components that were stripped.
    Above,
}

impl Layout {
    /// Reads the item list where the selection is partial.
    pub(crate) async fn for_plan(plan: &RestorePlan, strip: usize) -> Result<Self> {
        let mut layout = Self {
            selection: plan.selection.clone(),
            strip,
            aliases: HashMap::new(),
            prefixes: BTreeSet::new(),
        };
        if plan.selection.is_all() {
            return Ok(layout);
        }
        let mut items = plan.items.stream();
        while let Some(item) = items.next().await {
            let item = item?;
            if strip > 0 && layout.prefixes.len() < MAX_PREFIXES {
                layout.prefixes.extend(leading(item.path.as_bytes(), strip).map(<[u8]>::to_vec));
            }
            if item.kind != ItemKind::HardLink {
                continue;
            }
            if let Some(content) = item.link.filter(|to| !layout.selection.matches(to)) {
                let content = clean(content.as_bytes())?;
                layout.aliases.entry(content).or_insert(clean(item.path.as_bytes())?);
            }
        }
        Ok(layout)
    }

    pub(crate) fn is_partial(&self) -> bool {
        !self.selection.is_all()
    }

    pub(crate) fn selects(&self, item: &[u8]) -> bool {
        self.selection.is_all() || self.selection.matches(&ItemPath::new(item))
    }

    /// The selected hard link that takes the content of the item `content`, which is not selected itself.
    pub(crate) fn alias(&self, content: &[u8]) -> Option<&[u8]> {
        self.aliases.get(content).map(Vec::as_slice)
    }

    /// How many contents come in addition to the selected items.
    pub(crate) fn aliases(&self) -> u64 {
        self.aliases.len() as u64
    }

    /// Whether an entry of an existing tree is what a selected item would replace.
    pub(crate) fn replaces(&self, place: &[u8]) -> bool {
        if self.strip == 0 {
            return self.selects(place);
        }
        self.prefixes.iter().any(|prefix| self.selects(&[prefix.as_slice(), b"/", place].concat()))
    }

    /// The place of the item `item`, a [clean] name.
    pub(crate) fn place(&self, item: &[u8]) -> Place {
        if item == b"." {
            return if self.strip == 0 { Place::At(Vec::new()) } else { Place::Above };
        }
        let mut rest = item;
        for stripped in 0..self.strip {
            match rest.iter().position(|&b| b == b'/') {
                Some(slash) => rest = rest.get(slash + 1..).unwrap_or(&[]),
                None if stripped + 1 == self.strip => rest = &[],
                None => return Place::Above,
            }
        }
        Place::At(rest.to_vec())
    }

    /// The place of something that is not a directory and must therefore have a name of its own.
    pub(crate) fn file_place(&self, item: &[u8]) -> Result<Vec<u8>> {
        match self.place(item) {
            Place::At(place) if !place.is_empty() => Ok(place),
            _ => Err(Error::invalid(OPERATION, "no name is left of an item: strip fewer leading components")
                .with("item", ItemPath::new(item))
                .with("strip", self.strip)),
        }
    }
}

/// The first `components` of a path, if there are more.
fn leading(path: &[u8], components: usize) -> Option<&[u8]> {
    let mut slashes = path.iter().enumerate().filter(|(_, b)| **b == b'/').map(|(at, _)| at);
    slashes.nth(components.checked_sub(1)?).and_then(|at| path.get(..at))
}

/// The name of an item without `.` components and doubled slashes; `.` for the nameless root.
///
/// # Errors
///
/// [`ErrorKind::InvalidInput`] for names that lead out of a directory: absolute ones and those with `..`.
pub(crate) fn clean(raw: &[u8]) -> Result<Vec<u8>> {
    let refuse = |why: &'static str| {
        Error::invalid(OPERATION, why)
            .with("name", ItemPath::new(raw.get(..256.min(raw.len())).unwrap_or(&[])))
    };
    if raw.is_empty() || raw.contains(&0) {
        return Err(refuse("the archive has a member with an empty name or a NUL byte in it: refused"));
    }
    if raw.starts_with(b"/") {
        return Err(refuse("the archive has a member with an absolute name: refused"));
    }
    let mut clean = Vec::with_capacity(raw.len());
    let mut depth = 0;
    for component in raw.split(|&b| b == b'/') {
        match component {
            b"" | b"." => continue,
            b".." => return Err(refuse("the archive has a member with `..` in its name: refused")),
            _ => {}
        }
        depth += 1;
        if !clean.is_empty() {
            clean.push(b'/');
        }
        clean.extend_from_slice(component);
    }
    if depth > MAX_DEPTH {
        return Err(Error::new(ErrorKind::LimitExceeded, OPERATION)
            .message("a member is nested deeper than can be restored")
            .with("depth", depth)
            .with("limit", MAX_DEPTH));
    }
    if clean.is_empty() {
        clean.push(b'.');
    }
    Ok(clean)
}

/// Splits a place into its directory (empty for the destination) and its name.
pub(crate) fn split(place: &[u8]) -> (&[u8], &[u8]) {
    match place.iter().rposition(|&b| b == b'/') {
        Some(slash) => {
            let (dir, name) = place.split_at(slash);
            (dir, name.get(1..).unwrap_or(&[]))
        }
        None => (&[], place),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(strip: usize) -> Layout {
        Layout { selection: Selection::all(), strip, aliases: HashMap::new(), prefixes: BTreeSet::new() }
    }

    #[test]
    fn names_that_lead_out_are_refused_and_others_made_plain() {
        for bad in [&b""[..], b"/etc/passwd", b"..", b"a/../../b", b"a/..", b"a\0b", b"//x"] {
            assert_eq!(clean(bad).unwrap_err().kind(), ErrorKind::InvalidInput, "{bad:?}");
        }
        for (raw, plain) in
            [("./a//b/./c/", "a/b/c"), (".", "."), ("./", "."), ("a", "a"), ("..a/b..", "..a/b..")]
        {
            assert_eq!(clean(raw.as_bytes()).unwrap(), plain.as_bytes());
        }
        assert_eq!(clean(&b"a/".repeat(2500)).unwrap_err().kind(), ErrorKind::LimitExceeded);
    }

    #[test]
    fn stripping_leaves_the_destination_itself_and_nothing_above_it() {
        let at = |place: &str| Place::At(place.as_bytes().to_vec());
        assert_eq!(layout(0).place(b"."), at(""));
        assert_eq!(layout(0).place(b"a/b"), at("a/b"));
        assert_eq!(layout(1).place(b"a/b"), at("b"));
        assert_eq!(layout(1).place(b"a"), at(""));
        assert_eq!(layout(1).place(b"."), Place::Above);
        assert_eq!(layout(2).place(b"a"), Place::Above);
        assert_eq!(layout(2).place(b"a/b"), at(""));
        assert!(layout(1).file_place(b"a").is_err());
        assert_eq!(leading(b"a/b/c", 1), Some(&b"a"[..]));
        assert_eq!(leading(b"a/b/c", 2), Some(&b"a/b"[..]));
        assert_eq!(leading(b"a/b/c", 3), None);
    }
}
