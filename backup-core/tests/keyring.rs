//! Keyrings: what opens, what does not, and how it says so.

use backup_core::{BackupId, BackupKey, Bytes, ErrorKind, Keyring, SetName};

type Files = Vec<(String, Bytes)>;

fn set() -> SetName {
    SetName::parse("books/postgres").expect("a valid set name")
}

fn id() -> BackupId {
    "20261120T020000Z-00c0de".parse().expect("a valid id")
}

fn key(byte: u8) -> Keyring {
    Keyring::builder().key([byte; 32]).build().expect("a keyring of one key")
}

/// Whether two backup keys are the same, without looking at them.
fn same(a: &BackupKey, b: &BackupKey) -> bool {
    let seal = a.seal(b"x").expect("a seal");
    b.verify_seal(b"x", &seal).is_ok()
}

fn edit(files: &Files, change: impl Fn(&mut String)) -> Files {
    let edited = |(name, bytes): &(String, Bytes)| {
        let mut text = String::from_utf8(bytes.to_vec()).expect("JSON is text");
        change(&mut text);
        (name.clone(), Bytes::from(text))
    };
    files.iter().map(edited).collect()
}

/// Changes one hexadecimal digit of a field.
fn damage(files: &Files, field: &str) -> Files {
    edit(files, |text| {
        let at = text.rfind(&format!("\"{field}\": \"")).expect("the field") + field.len() + 5;
        let other = if text.as_bytes()[at] == b'0' { "1" } else { "0" };
        text.replace_range(at..=at, other);
    })
}

#[test]
fn a_backup_opens_with_the_key_it_was_wrapped_with() {
    let backup = BackupKey::generate().unwrap();
    let files = key(1).wrap(&set(), id(), &backup).unwrap();
    assert_eq!(files.len(), 1);
    assert_eq!(files[0].0, format!("{}.json", key(1).key_ids()[0]));
    assert!(same(&backup, &key(1).unwrap(&set(), id(), &files).unwrap()));
}

#[test]
fn a_wrong_key_is_named_together_with_the_right_one() {
    let files = key(1).wrap(&set(), id(), &BackupKey::generate().unwrap()).unwrap();
    let error = key(2).unwrap(&set(), id(), &files).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WrongKey);
    assert_eq!(error.context_value("backup_keys"), Some(key(1).key_ids()[0].as_str()));
    assert_eq!(error.context_value("our_keys"), Some(key(2).key_ids()[0].as_str()));
    assert_eq!(key(1).unwrap(&set(), id(), &[]).unwrap_err().kind(), ErrorKind::WrongKey);
}

#[test]
fn a_damaged_wrap_is_damage_and_not_a_wrong_key() {
    let files = key(1).wrap(&set(), id(), &BackupKey::generate().unwrap()).unwrap();
    let cases = [
        damage(&files, "nonce"),
        damage(&files, "sealed"),
        edit(&files, |text| text.truncate(text.len() / 2)),
        edit(&files, String::clear),
        edit(&files, |text| *text = text.replace("\"key\": \"k-", "\"key\": \"k-f")),
    ];
    for damaged in cases {
        let error = key(1).unwrap(&set(), id(), &damaged).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{}", error.chain());
    }
    let newer = edit(&files, |text| *text = text.replace("\"format\": 1", "\"format\": 2"));
    assert_eq!(key(1).unwrap(&set(), id(), &newer).unwrap_err().kind(), ErrorKind::Unsupported);
}

#[test]
fn a_wrap_opens_only_in_its_own_set_and_backup() {
    let files = key(1).wrap(&set(), id(), &BackupKey::generate().unwrap()).unwrap();
    let other = SetName::parse("books/other").unwrap();
    assert_eq!(key(1).unwrap(&other, id(), &files).unwrap_err().kind(), ErrorKind::Corrupt);
    let later = "20261120T020001Z-00c0de".parse().unwrap();
    assert_eq!(key(1).unwrap(&set(), later, &files).unwrap_err().kind(), ErrorKind::Corrupt);
}

#[test]
fn the_first_key_wraps_and_any_key_opens() {
    let both = Keyring::builder().key([2; 32]).key([1; 32]).build().unwrap();
    let backup = BackupKey::generate().unwrap();
    let old = key(1).wrap(&set(), id(), &backup).unwrap();
    assert!(same(&backup, &both.unwrap(&set(), id(), &old).unwrap()));

    let new = both.wrap(&set(), id(), &backup).unwrap();
    assert_eq!(new.len(), 1);
    assert!(key(2).unwrap(&set(), id(), &new).is_ok() && key(1).unwrap(&set(), id(), &new).is_err());

    let all = Keyring::builder().key([2; 32]).key([1; 32]).wrap_with_all().build().unwrap();
    let files = all.wrap(&set(), id(), &backup).unwrap();
    assert!(key(2).unwrap(&set(), id(), &files).is_ok() && key(1).unwrap(&set(), id(), &files).is_ok());
    // One damaged wrap does not matter while another opens.
    let (first, second) = (damage(&files[..1].to_vec(), "sealed"), files[1..].to_vec());
    assert!(all.unwrap(&set(), id(), &[first, second].concat()).is_ok());
}

#[test]
fn a_passphrase_opens_its_backups_with_nothing_but_their_own_files() {
    let writer = Keyring::from_passphrase("correct horse").unwrap();
    let backup = BackupKey::generate().unwrap();
    assert!(writer.needs_preparation());
    assert!(writer.wrap(&set(), id(), &backup).is_err(), "not before the keyring is prepared");

    let update = writer.prepare(&[]).unwrap();
    assert_eq!(update.store.len(), 1);
    assert!(!writer.needs_preparation());
    let files = writer.wrap(&set(), id(), &backup).unwrap();
    assert_eq!(files[0].0, update.store[0].0, "a wrap is named like its keyring entry");

    let reader = Keyring::from_passphrase("correct horse").unwrap();
    assert!(same(&backup, &reader.unwrap(&set(), id(), &files).unwrap()));

    // A second process finds the entry and makes no other.
    let second = Keyring::from_passphrase("correct horse").unwrap();
    assert!(second.prepare(&update.store).unwrap().store.is_empty());
    let more = second.wrap(&set(), id(), &backup).unwrap();
    assert!(same(&backup, &reader.unwrap(&set(), id(), &more).unwrap()));
}

#[test]
fn a_wrong_passphrase_is_refused_for_reading_and_for_writing() {
    let writer = Keyring::from_passphrase("correct horse").unwrap();
    let ring = writer.prepare(&[]).unwrap().store;
    let files = writer.wrap(&set(), id(), &BackupKey::generate().unwrap()).unwrap();

    let typo = Keyring::from_passphrase("correct hose").unwrap();
    assert_eq!(typo.unwrap(&set(), id(), &files).unwrap_err().kind(), ErrorKind::WrongKey);
    assert_eq!(typo.prepare(&ring).unwrap_err().kind(), ErrorKind::WrongKey);

    let meant = Keyring::builder().passphrase("another").allow_new_passphrase().build().unwrap();
    assert_eq!(meant.prepare(&ring).unwrap().store.len(), 1);

    // Rotation: the new passphrase first, the old one behind it.
    let rotated = Keyring::builder().passphrase("new").passphrase("correct horse").build().unwrap();
    assert_eq!(rotated.prepare(&ring).unwrap().store.len(), 1);
    assert!(rotated.unwrap(&set(), id(), &files).is_ok());
}

#[test]
fn a_damaged_keyring_entry_is_damage_and_is_not_replaced_in_silence() {
    let writer = Keyring::from_passphrase("correct horse").unwrap();
    let ring = writer.prepare(&[]).unwrap().store;
    let files = writer.wrap(&set(), id(), &BackupKey::generate().unwrap()).unwrap();
    let reader = || Keyring::from_passphrase("correct horse").unwrap();

    for field in ["salt", "nonce", "sealed"] {
        // The last occurrence is inside the entry that the wrap carries.
        let error = reader().unwrap(&set(), id(), &damage(&files, field)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{field}: {}", error.chain());
        let error = reader().prepare(&damage(&ring, field)).unwrap_err();
        assert_eq!(error.context_value("damaged_entries"), Some("1"));
    }
    let mut both = damage(&ring, "sealed");
    both[0].0 = "p-0000000000000000.json".to_owned();
    both.extend(ring);
    let update = reader().prepare(&both).unwrap();
    assert_eq!((update.store.len(), update.damaged.len()), (0, 1));
}

#[test]
fn numbers_of_rounds_out_of_bounds_are_refused_at_build() {
    for rounds in [599_999, 10_000_001] {
        let refused = Keyring::builder().passphrase("x").pbkdf2_rounds(rounds).build();
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::InvalidInput);
    }
}

#[test]
fn a_passphrase_is_computed_once_per_process() {
    let writer = Keyring::from_passphrase("correct horse").unwrap();
    writer.prepare(&[]).unwrap();
    let files = writer.wrap(&set(), id(), &BackupKey::generate().unwrap()).unwrap();
    let reader = Keyring::from_passphrase("correct horse").unwrap();
    let wrong = Keyring::from_passphrase("wrong").unwrap();
    let time = |n: u32| {
        let started = std::time::Instant::now();
        for _ in 0..n {
            assert!(reader.clone().unwrap(&set(), id(), &files).is_ok());
            assert!(wrong.clone().unwrap(&set(), id(), &files).is_err());
        }
        started.elapsed()
    };
    let first = time(1);
    let later = time(50);
    assert!(later < first, "50 later openings took {later:?}, the first {first:?}");
}

#[test]
fn keys_are_taken_from_files_and_nothing_is_shown() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("key");
    std::fs::write(&path, format!("{}\n", "01".repeat(32))).unwrap();
    restrict(&path);
    let ring = Keyring::from_key_file(&path).unwrap();
    assert_eq!(ring.key_ids(), key(1).key_ids());

    std::fs::write(&path, "sentinel-passphrase\n").unwrap();
    let from_file = Keyring::builder().passphrase_file(&path).build().unwrap();
    let typed = Keyring::from_passphrase("sentinel-passphrase").unwrap();
    assert!(typed.prepare(&from_file.prepare(&[]).unwrap().store).unwrap().store.is_empty());

    let error = Keyring::from_key_file(&path).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    for text in [error.chain(), format!("{error:?}"), format!("{from_file:?}"), format!("{ring:?}")] {
        assert!(!text.contains("sentinel") && !text.contains("0101"), "{text}");
    }
    for refused in [
        Keyring::builder().build(),
        Keyring::from_passphrase(""),
        Keyring::from_env("BACKUP_TEST_NO_SUCH_VARIABLE"),
    ] {
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::InvalidInput);
    }
    assert_eq!(Keyring::from_key_file(dir.path().join("none")).unwrap_err().kind(), ErrorKind::NotFound);
}

#[cfg(unix)]
fn restrict(path: &std::path::Path) {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).expect("an own file");
}

#[cfg(not(unix))]
fn restrict(_path: &std::path::Path) {}
