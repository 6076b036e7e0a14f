//! POSIX ACLs: the kernel's binary form, and the text form that tar archives carry.
//!
//! `getxattr` gives `system.posix_acl_access` and `system.posix_acl_default` as a version (2, u32) and entries of
//! eight bytes: tag u16, permissions u16, id u32, all little-endian (`linux/posix_acl_xattr.h`). Archives hold
//! `SCHILY.acl.access` and `SCHILY.acl.default` as comma-separated short text of `acl_from_text(3)`, here with
//! numeric ids only, so that a restore does not depend on the other machine's names:
//! `user::rw-,user:1001:r--,group::r--,mask::r--,other::---`.

const VERSION: u32 = 2;
/// Entries a reader accepts. The kernel's own limit is what fits in one attribute of 64 KiB.
const MAX_ENTRIES: usize = 8190;
const NO_ID: u32 = u32::MAX;

/// Tag, its word, and whether it names an id (`linux/posix_acl.h`).
const TAGS: [(u16, &str, bool); 6] = [
    (0x01, "user", false),
    (0x02, "user", true),
    (0x04, "group", false),
    (0x08, "group", true),
    (0x10, "mask", false),
    (0x20, "other", false),
];

/// The text of a binary ACL; `None` if it is not one this version knows.
pub(crate) fn to_text(binary: &[u8]) -> Option<String> {
    let (version, entries) = binary.split_first_chunk::<4>()?;
    if u32::from_le_bytes(*version) != VERSION || entries.len() % 8 != 0 {
        return None;
    }
    let mut text = String::with_capacity(entries.len() * 2);
    for entry in entries.chunks_exact(8) {
        let [t0, t1, p0, p1, id @ ..] = entry else { return None };
        let (tag, permissions) = (u16::from_le_bytes([*t0, *t1]), u16::from_le_bytes([*p0, *p1]));
        let id = u32::from_le_bytes(id.try_into().ok()?);
        let (_, word, named) = TAGS.iter().find(|(t, ..)| *t == tag)?;
        // Only what comes back the same is turned into text.
        if permissions > 7 || *named == (id == NO_ID) {
            return None;
        }
        if !text.is_empty() {
            text.push(',');
        }
        text.push_str(word);
        text.push(':');
        if *named {
            text.push_str(&id.to_string());
        }
        text.push(':');
        for (bit, letter) in [(4, 'r'), (2, 'w'), (1, 'x')] {
            text.push(if permissions & bit != 0 { letter } else { '-' });
        }
    }
    (!text.is_empty()).then_some(text)
}

/// The binary form of an ACL in text, as [`to_text`] writes it. Names instead of numeric ids are not looked up:
/// `None`, as for anything else that is not understood.
pub(crate) fn from_text(text: &str) -> Option<Vec<u8>> {
    let mut binary = VERSION.to_le_bytes().to_vec();
    for (n, entry) in text.split([',', '\n']).filter(|entry| !entry.is_empty()).enumerate() {
        let mut parts = entry.split(':');
        let (word, id, letters) = (parts.next()?, parts.next()?, parts.next()?);
        if n >= MAX_ENTRIES {
            return None;
        }
        let (tag, ..) = TAGS.iter().find(|(_, known, named)| *known == word && *named != id.is_empty())?;
        // star appends the numeric id as a fourth field after a name.
        let id = match (id.is_empty(), parts.next()) {
            (true, None) => NO_ID,
            (false, None) => id.parse().ok()?,
            (false, Some(number)) => number.parse().ok()?,
            (true, Some(_)) => return None,
        };
        if parts.next().is_some() || letters.len() != 3 {
            return None;
        }
        let mut permissions = 0u16;
        for (letter, (bit, set)) in letters.chars().zip([(4, 'r'), (2, 'w'), (1, 'x')]) {
            match letter {
                '-' => {}
                c if c == set => permissions |= bit,
                _ => return None,
            }
        }
        binary.extend_from_slice(&tag.to_le_bytes());
        binary.extend_from_slice(&permissions.to_le_bytes());
        binary.extend_from_slice(&id.to_le_bytes());
    }
    (binary.len() > 4).then_some(binary)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_text_is_what_acl_from_text_reads() {
        let text = "user::rw-,user:1001:r--,group::r--,group:7:-w-,mask::r-x,other::---";
        let binary = from_text(text).unwrap();
        assert_eq!(binary.len(), 4 + 6 * 8);
        assert_eq!(to_text(&binary).unwrap(), text);
        assert_eq!(
            from_text("user::rw-,user:alice:r--:1001,other::---"),
            from_text("user::rw-,user:1001:r--,other::---")
        );
    }

    #[test]
    fn what_is_not_an_acl_is_left_alone() {
        for bad in ["", "user", "user::rwz", "user:alice:rwx", "mask:1:rwx", "user::rw-:0", "role::rwx"] {
            assert_eq!(from_text(bad), None, "{bad}");
        }
        assert_eq!(to_text(b""), None);
        assert_eq!(to_text(&[2, 0, 0, 0]), None);
        assert_eq!(to_text(&[3, 0, 0, 0, 1, 0, 7, 0, 255, 255, 255, 255]), None);
    }

    proptest! {
        #[test]
        fn whatever_becomes_text_comes_back_the_same(
            entries in proptest::collection::vec((0usize..6, 0u8..8, any::<u32>()), 1..20),
        ) {
            let mut binary = VERSION.to_le_bytes().to_vec();
            for (tag, permissions, id) in entries {
                let (tag, _, named) = TAGS[tag];
                let id = if named { id.min(NO_ID - 1) } else { NO_ID };
                binary.extend_from_slice(&tag.to_le_bytes());
                binary.extend_from_slice(&[permissions, 0]);
                binary.extend_from_slice(&id.to_le_bytes());
            }
            let text = to_text(&binary).unwrap();
            prop_assert_eq!(from_text(&text).unwrap(), binary);
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80), text in ".{0,60}") {
            let _ = to_text(&bytes);
            let _ = from_text(&text);
        }
    }
}
