//! The independent decoder in `docs/` opens what this library writes.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use backup_core::{AesGcm, BackupId, BackupKey, Bytes, Chain, CodecContext, Keyring, SetName, Workers};
use backup_testkit::tools::{available, filter};
use backup_testkit::transform::sample;

const ID: &str = "20261120T020000Z-00c0de";
const SET: &str = "books/postgres";
const PASSPHRASE: &str = "correct horse, façade";

struct Stored {
    dir: tempfile::TempDir,
    object: Vec<u8>,
}

/// Encrypts `plain` under a new backup key that `keyring` wraps; lays out what a sink would hold.
fn store(keyring: &Keyring, plain: &[u8]) -> Stored {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let set = SetName::parse(SET).expect("a set name");
    let id: BackupId = ID.parse().expect("an id");
    let key = BackupKey::generate().expect("a key");
    keyring.prepare(&[]).expect("a prepared keyring");
    std::fs::create_dir(dir.path().join("keys")).expect("a new directory");
    for (name, bytes) in keyring.wrap(&set, id, &key).expect("wraps") {
        std::fs::write(dir.path().join("keys").join(name), bytes).expect("a written file");
    }
    let workers = Workers::new(1).expect("a worker");
    let cx = CodecContext { set: &set, id, artifact: "main", key: Some(&key), workers: &workers };
    let chain = Chain::new(vec![Arc::new(AesGcm::new(keyring.clone()))]).expect("a chain");
    let mut object = Vec::new();
    let mut encoder = chain.encoder(&cx).expect("an encoder");
    encoder.push(Bytes::copy_from_slice(plain), &mut object).expect("encoding");
    encoder.finish(&mut object).expect("encoding");
    Stored { dir, object }
}

fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/decrypt.py")
}

fn decrypt(stored: &Stored, artifact: &str) -> Command {
    let mut command = Command::new("python3");
    command.arg(script()).arg("--keys").arg(stored.dir.path().join("keys"));
    command.args(["--set", SET, "--id", ID, "--artifact", artifact]);
    command
}

fn with_passphrase(mut command: Command, passphrase: &str) -> Command {
    command.args(["--passphrase-env", "OUR_PASSPHRASE"]).env("OUR_PASSPHRASE", passphrase);
    command
}

/// Runs the decoder on damaged input, which must fail; returns what it wrote before.
fn refused(mut command: Command, dir: &Path, input: &[u8]) -> Vec<u8> {
    let path = dir.join("input");
    std::fs::write(&path, input).expect("a written file");
    let input = std::fs::File::open(&path).expect("the file just written");
    let output = command.stdin(Stdio::from(input)).output().expect("python3 runs");
    assert!(!output.status.success());
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(message.starts_with("decrypt.py: ") && !message.contains("Traceback"), "{message}");
    output.stdout
}

fn python(test: &str) -> bool {
    available("python", "python3", &["-c", "import cryptography"], test)
}

#[test]
fn the_python_decoder_opens_objects_of_every_size_by_key_file() {
    if !python("the_python_decoder_opens_objects_of_every_size_by_key_file") {
        return;
    }
    let keyring = Keyring::builder().key([0xa5; 32]).build().unwrap();
    for len in [0, 1, 65_535, 65_536, 65_537, 300_000] {
        let plain = sample(31, len);
        let stored = store(&keyring, &plain);
        let key_file = stored.dir.path().join("key");
        for key in [vec![0xa5; 32], "a5".repeat(32).into_bytes()] {
            std::fs::write(&key_file, key).unwrap();
            let out = filter(decrypt(&stored, "main").arg("--key-file").arg(&key_file), &stored.object);
            assert!(out == plain, "{len} bytes");
        }
    }
}

#[test]
fn the_python_decoder_opens_objects_by_passphrase() {
    if !python("the_python_decoder_opens_objects_by_passphrase") {
        return;
    }
    let keyring = Keyring::builder().passphrase(PASSPHRASE).key([1; 32]).wrap_with_all().build().unwrap();
    let plain = sample(32, 100_000);
    let stored = store(&keyring, &plain);
    assert_eq!(filter(&mut with_passphrase(decrypt(&stored, "main"), PASSPHRASE), &stored.object), plain);

    let wrong = with_passphrase(decrypt(&stored, "main"), "wrong");
    assert!(refused(wrong, stored.dir.path(), &stored.object).is_empty());
    let renamed = with_passphrase(decrypt(&stored, "other"), PASSPHRASE);
    assert!(refused(renamed, stored.dir.path(), &stored.object).is_empty());
}

#[test]
fn the_python_decoder_notices_damage() {
    if !python("the_python_decoder_notices_damage") {
        return;
    }
    let keyring = Keyring::builder().key([0xa5; 32]).build().unwrap();
    let plain = sample(33, 200_000);
    let stored = store(&keyring, &plain);
    let key_file = stored.dir.path().join("key");
    std::fs::write(&key_file, [0xa5; 32]).unwrap();

    let object = &stored.object;
    let flipped = |at: usize| {
        let mut damaged = object.clone();
        damaged[at] ^= 1;
        damaged
    };
    let whole_segments = 88 + 2 * 65_552;
    let cases = [
        Vec::new(),
        object[..50].to_vec(),
        object[..88].to_vec(),
        object[..object.len() - 1].to_vec(),
        object[..whole_segments].to_vec(),
        [&object[..], &[0]].concat(),
        flipped(20),
        flipped(85),
        flipped(100),
        flipped(object.len() - 1),
    ];
    for damaged in cases {
        let mut command = decrypt(&stored, "main");
        command.arg("--key-file").arg(&key_file);
        let out = refused(command, stored.dir.path(), &damaged);
        assert!(plain.starts_with(&out), "unverified bytes came out");
    }
}
