//! Encryption to `age` recipients: the format against the `age` command, ranges, hostile headers, and manifests sealed by
//! signature (promises 4 and 9).
#![cfg(feature = "age")]
#![allow(clippy::unwrap_used, reason = "helpers of tests are not seen as tests")]

use std::process::Command;
use std::sync::Arc;

use backup_core::{
    Age, Chain, ErrorKind, Gzip, Key, MemorySink, MemorySource, MemoryTarget, Repository, Result, SigningKey,
    Transform, VerifyingKey,
};
use backup_testkit::tools;
use backup_testkit::transform::{Integrity, World, chain_conforms, sample};

const SET: &str = "app/data";

/// A key pair of the age tool: its recipient and its identity.
struct Pair {
    recipient: String,
    identity: String,
}

/// Two fixed pairs, made by `age-keygen`.
fn pairs() -> [Pair; 2] {
    let pair = |recipient: &str, identity: &str| Pair {
        recipient: recipient.to_owned(),
        identity: identity.to_owned(),
    };
    [pair(PAIRS[0].0, PAIRS[0].1), pair(PAIRS[1].0, PAIRS[1].1)]
}

const PAIRS: [(&str, &str); 2] = [
    (
        "age19f3uuqkqrv7cmzx9pn9tzqh6q7ay5qwsq27myypwwhkuwnzqv5js6eszz4",
        "AGE-SECRET-KEY-18JUH7JG2YPJZWV9490UWDDHNES0V034Z2T02ER7MPYG4FVJJ0K2QZ783YA",
    ),
    (
        "age12mda2g69ea07pc7cynq8sy2s6kqvuxytntykcyryj4848vvzycpq6r69tn",
        "AGE-SECRET-KEY-1UQCCFVHA2NJ7WT6544GFNY49CN2FPKDD4CEUPPZCTYA546V40DWQ96ZG0N",
    ),
];

fn signing() -> SigningKey {
    SigningKey::from_seed([9; 32]).unwrap()
}

fn producer(to: &[&Pair]) -> Age {
    let builder = to.iter().fold(Age::builder(), |builder, pair| builder.recipient(&pair.recipient));
    builder.sign_with(signing()).build().unwrap()
}

fn reader(pair: &Pair, trusted: VerifyingKey) -> Age {
    Age::builder().identity(&pair.identity).trust(trusted).build().unwrap()
}

fn both(pair: &Pair) -> Age {
    Age::builder().recipient(&pair.recipient).identity(&pair.identity).sign_with(signing()).build().unwrap()
}

fn chain(transforms: Vec<Arc<dyn Transform>>) -> Chain {
    Chain::new(transforms).unwrap()
}

fn has_age(test: &str) -> bool {
    tools::available("tools", "age", &["--version"], test)
}

/// What the `age` command makes of a file, given an identity.
fn age_decrypts(identity: &str, stored: &[u8]) -> Vec<u8> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), identity).unwrap();
    tools::filter(Command::new("age").args(["--decrypt", "--identity"]).arg(file.path()), stored)
}

#[test]
fn it_conforms_alone_and_behind_a_compression() {
    let [pair, other] = pairs();
    let several =
        Age::builder().recipient(&other.recipient).recipient(&pair.recipient).identity(&pair.identity);
    let several = several.sign_with(signing()).build().unwrap();
    chain_conforms(&chain(vec![Arc::new(both(&pair))]), Integrity::Authenticated);
    chain_conforms(&chain(vec![Arc::new(Gzip::default()), Arc::new(several)]), Integrity::Authenticated);
}

#[test]
fn the_age_command_reads_our_files_and_we_read_its_own() {
    if !has_age("the_age_command_reads_our_files_and_we_read_its_own") {
        return;
    }
    let [pair, other] = pairs();
    let (world, one) = (World::new(), both(&pair));
    let ours = chain(vec![Arc::new(producer(&[&other, &pair]))]);
    let reads = chain(vec![Arc::new(one)]);
    // Around the size of a segment, where the last one is full, short or missing.
    for len in [0, 1, 65_535, 65_536, 65_537, 131_072, 1_200_000] {
        let plain = sample(len as u64, len);
        let stored = world.encode(&ours, &plain, &[len / 3]).bytes;
        for pair in [&pair, &other] {
            assert!(age_decrypts(&pair.identity, &stored) == plain, "{len} bytes");
        }
        let theirs = tools::filter(
            Command::new("age").args(["--recipient", &other.recipient, "--recipient", &pair.recipient]),
            &plain,
        );
        assert!(
            world.decode(&reads, &theirs, &[7, 100, 70_000], Some(len as u64)).unwrap() == plain,
            "{len} bytes"
        );
    }
}

#[test]
fn another_identity_opens_nothing_and_says_so() {
    let [pair, other] = pairs();
    let world = World::new();
    let stored = world.encode(&chain(vec![Arc::new(both(&pair))]), b"precious", &[]).bytes;
    let decode = |age: Age| world.decode(&chain(vec![Arc::new(age)]), &stored, &[], None);
    let error = decode(both(&other)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WrongKey, "{}", error.chain());
    let error = decode(producer(&[&pair])).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WrongKey, "{}", error.chain());
}

/// Headers as an attacker would write them: refused by kind, without a panic and before anything large is done.
#[test]
fn hostile_headers_are_refused_by_kind() {
    let [pair, _] = pairs();
    let world = World::new();
    let reads = chain(vec![Arc::new(both(&pair))]);
    let good = String::from_utf8_lossy(&world.encode(&reads, b"", &[]).bytes).into_owned();
    let stanza: Vec<&str> = good.lines().skip(1).take(2).collect();
    let line = format!("{}\n{}\n", stanza[0], stanza[1]);
    let header = |stanzas: &str| {
        format!("age-encryption.org/v1\n{stanzas}--- {}\n0123456789abcdef0123456789abcdef", "A".repeat(43))
            .into_bytes()
    };
    let kind = |bytes: &[u8]| world.decode(&reads, bytes, &[10, 50], None).map_err(|e| e.kind());
    let cases: [(&str, Vec<u8>, ErrorKind); 13] = [
        ("another version", good.replacen("/v1", "/v2", 1).into_bytes(), ErrorKind::Unsupported),
        ("a passphrase", header("-> scrypt c2FsdHNhbHRzYWx0c2FsdA 22\nAAAA\n"), ErrorKind::Unsupported),
        ("a huge work factor", header("-> scrypt c2FsdHNhbHRzYWx0c2FsdA 63\nAAAA\n"), ErrorKind::Unsupported),
        ("a false MAC", header(&line), ErrorKind::Corrupt),
        ("no recipient", header(""), ErrorKind::WrongKey),
        ("only others", header("-> grease 1 2 3\nAAAA\n-> X 1\n\n"), ErrorKind::WrongKey),
        ("no body", header("-> X25519 AAAA\n"), ErrorKind::Corrupt),
        ("a short share", header(&format!("-> X25519 AAAA\n{}\n", stanza[1])), ErrorKind::Corrupt),
        ("a long body", header(&format!("{}\n{}\nAAAA\n", stanza[0], "A".repeat(64))), ErrorKind::Corrupt),
        ("a line too long", header(&format!("{}\n{}\n", stanza[0], "A".repeat(65))), ErrorKind::Corrupt),
        ("another argument", header(&line.replacen('\n', " x\n", 1)), ErrorKind::Corrupt),
        ("many recipients", header(&line.repeat(257)), ErrorKind::LimitExceeded),
        (
            "no end",
            [b"age-encryption.org/v1\n".to_vec(), vec![b'A'; 200_000]].concat(),
            ErrorKind::LimitExceeded,
        ),
    ];
    for (what, bytes, expected) in cases {
        assert_eq!(kind(&bytes), Err(expected), "{what}");
    }
    // A share of small order, with which everybody could compute the key.
    let zero = header(&format!("-> X25519 {}\n{}\n", "A".repeat(43), "A".repeat(43)));
    assert_eq!(kind(&zero), Err(ErrorKind::WrongKey));
}

#[test]
fn what_cannot_work_is_refused_when_built_and_shows_no_secret() {
    let [pair, _] = pairs();
    let invalid = |result: Result<Age>| result.unwrap_err().kind();
    let public = signing().verifying_key();
    assert_eq!(invalid(Age::builder().build()), ErrorKind::InvalidInput);
    assert_eq!(
        invalid(Age::builder().recipient(&pair.recipient).trust(public).build()),
        ErrorKind::InvalidInput
    );
    assert_eq!(invalid(Age::builder().identity(&pair.identity).build()), ErrorKind::InvalidInput);
    assert_eq!(
        invalid(Age::builder().identity(&pair.identity).sign_with(signing()).build()),
        ErrorKind::InvalidInput
    );
    let sealed = || Age::builder().sign_with(signing());
    assert_eq!(invalid(sealed().recipient(&pair.identity).build()), ErrorKind::InvalidInput);
    assert_eq!(invalid(sealed().recipient("age1pq1qqqq").build()), ErrorKind::Unsupported);
    assert_eq!(invalid(sealed().recipient("ssh-ed25519 AAAA").build()), ErrorKind::Unsupported);

    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), format!("# created: today\n# public key: …\n{}\n", pair.identity)).unwrap();
    let from_file = || Age::builder().identity_file(file.path()).trust(public).build();
    from_file().unwrap();
    std::fs::set_permissions(file.path(), std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    assert_eq!(invalid(from_file()), ErrorKind::PermissionDenied);

    let age = both(&pair);
    let error = invalid_text(&pair.identity.replace('2', "3"));
    for text in [format!("{age:?}"), format!("{:?}", Age::builder().identity(&pair.identity)), error] {
        assert!(!text.contains(&pair.identity[20..40]), "{text}");
    }
}

fn invalid_text(identity: &str) -> String {
    Age::builder().identity(identity).trust(signing().verifying_key()).build().unwrap_err().chain()
}

fn repository(sinks: &[MemorySink], age: Age) -> Repository {
    let writes = !age.recipients().is_empty();
    let builder = sinks.iter().fold(Repository::builder(), |builder, sink| builder.sink(sink.clone()));
    if writes { builder.transform(Gzip::default()).transform(age) } else { builder.reads(age) }
        .build()
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_verb_works_where_it_can_and_says_why_where_it_cannot() {
    let [pair, other] = pairs();
    let sinks = [MemorySink::named("a"), MemorySink::named("b")];
    let writes = repository(&sinks, producer(&[&pair]));
    let reads = repository(&sinks, reader(&pair, signing().verifying_key()));
    let big = sample(1, 6_000_000);
    let source = MemorySource::new().artifact("big", big.clone()).artifact("small", "hello");
    let done = writes.backup(SET, &source).await.unwrap();
    assert!(sinks[0].keys().iter().any(|k| k.as_str().ends_with("/big.bin.gz.age")));
    assert!(
        sinks[0].keys().iter().all(|k| !k.as_str().contains("/keys/") && !k.as_str().contains("decrypt"))
    );

    // The producer lists, checks stored bytes, replicates, and reads nothing.
    assert_eq!(writes.backups(SET).await.unwrap()[0].id, done.id);
    assert!(writes.backups(SET).await.unwrap()[0].encrypted);
    let wrong =
        |error: backup_core::Error| assert_eq!(error.kind(), ErrorKind::WrongKey, "{}", error.chain());
    wrong(writes.verify(SET, done.id).await.unwrap_err());
    wrong(writes.contents(SET, done.id).await.unwrap_err());
    wrong(writes.export(SET, done.id).await.unwrap_err());
    wrong(writes.restore(SET).latest().into(&MemoryTarget::new()).await.unwrap_err());
    assert_eq!(writes.check_keys().await.unwrap().locked_out().len(), 1);
    let stored = writes.verify(SET, done.id).stored_only().await.unwrap();
    assert!(stored.is_intact() && stored.plain_read == 0 && stored.stored_read > 6_000_000);
    let victim = sinks[1].keys().into_iter().find(|k| k.as_str().ends_with("/big.bin.gz.age")).unwrap();
    let mut bytes = sinks[1].get(&victim).unwrap().to_vec();
    bytes[3_000_000] ^= 1;
    sinks[1].replace(&victim, bytes);
    assert!(!writes.verify(SET, done.id).stored_only().await.unwrap().is_intact());
    writes.replicate(SET, done.id).verify_existing().await.unwrap();
    assert!(writes.verify(SET, done.id).stored_only().await.unwrap().is_intact());

    // The reader does the rest, and writes nothing.
    let verified = reads.verify(SET, done.id).await.unwrap();
    assert!(verified.is_intact() && verified.plain_read > 6_000_000);
    let export = reads.export(SET, done.id).await.unwrap();
    let artifact = export.artifact("big").unwrap();
    let part: Vec<u8> = futures::TryStreamExt::try_fold(
        artifact.range(5_000_000..5_000_100).await.unwrap(),
        Vec::new(),
        |mut all, piece| async move {
            all.extend_from_slice(&piece);
            Ok(all)
        },
    )
    .await
    .unwrap();
    assert_eq!(part, big[5_000_000..5_000_100]);
    let target = MemoryTarget::new();
    reads.restore(SET).latest().into(&target).await.unwrap();
    assert_eq!(target.get("small").unwrap(), "hello");
    assert_eq!(reads.contents(SET, done.id).await.unwrap().manifest().id, done.id);
    let keys = reads.check_keys().await.unwrap().into_result().unwrap();
    assert_eq!(keys.checks[0].key, pair.recipient);
    assert_eq!(keys.checks[0].opens.as_ref().unwrap().len(), 2);
    assert_eq!(reads.backup(SET, &source).await.unwrap_err().kind(), ErrorKind::Unencrypted);

    // Somebody else's identity lists, since it trusts the producer, and reads nothing.
    let stranger = repository(&sinks, reader(&other, signing().verifying_key()));
    assert_eq!(stranger.backups(SET).await.unwrap().len(), 1);
    assert!(!stranger.verify(SET, done.id).await.unwrap().is_intact());
    assert_eq!(stranger.check_keys().await.unwrap().into_result().unwrap_err().kind(), ErrorKind::WrongKey);

    // The sheet names what is needed, and holds the identity only when asked to.
    let sheet = reads.recovery_sheet().await.unwrap();
    assert!(sheet.expose().contains(&pair.recipient) && !sheet.expose().contains(&pair.identity));
    assert!(sheet.expose().contains(&signing().verifying_key().to_string()));
    assert!(reads.recovery_sheet().include_secrets().await.unwrap().expose().contains(&pair.identity));

    // No rotation changes whom it was encrypted to.
    let ring = backup_core::Keyring::builder().key([3; 32]).build().unwrap();
    let error = writes.rotate(SET, &ring).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{}", error.chain());
    assert!(error.chain().contains("re-wrapped"), "{}", error.chain());
}

/// The last line of the manifest replaced by `seal`, the rest by `document`.
fn forged(bytes: &[u8], document: impl Fn(&str) -> String, seal: impl Fn(&str, &str) -> String) -> Vec<u8> {
    let text = std::str::from_utf8(bytes).unwrap().trim_end_matches('\n');
    let (before, line) = text.rsplit_once('\n').unwrap();
    let document = document(&format!("{before}\n"));
    let line = seal(&document, line);
    format!("{document}{line}\n").into_bytes()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_that_is_moved_replayed_stripped_or_signed_by_another_is_refused() {
    let [pair, _] = pairs();
    let sink = MemorySink::named("a");
    let sinks = [sink.clone()];
    let writes = repository(&sinks, producer(&[&pair]));
    let trust = signing().verifying_key();
    let reads = repository(&sinks, reader(&pair, trust));
    let done = writes.backup(SET, &MemorySource::new().artifact("a", "hello")).await.unwrap();
    let id = done.id;
    let manifest = Key::parse(format!("{SET}/{id}/manifest.json")).unwrap();
    let good = sink.get(&manifest).unwrap();
    let same = |text: &str| text.to_owned();
    let kept = |_: &str, line: &str| line.to_owned();
    let refused = async |bytes: Vec<u8>, kind: ErrorKind, what: &str| {
        sink.replace(&manifest, bytes);
        for repo in [&reads, &writes] {
            let error = repo.verify(SET, id).stored_only().await.unwrap_err();
            assert_eq!(error.kind(), kind, "{what}: {}", error.chain());
            let list = repo.backups(SET).await.unwrap();
            assert!(list.is_empty() && list.unreadable.len() == 1, "{what}");
            let error = repo.restore(SET).latest().into(&MemoryTarget::new()).await.unwrap_err();
            assert!([kind, ErrorKind::NotFound].contains(&error.kind()), "{what}: {}", error.chain());
        }
        sink.replace(&manifest, good.clone());
    };

    let sha256 = |document: &str, _: &str| {
        format!(r#"{{"seal":"sha256","value":"{}"}}"#, backup_core::Digest::of(document.as_bytes()))
    };
    refused(forged(&good, same, sha256), ErrorKind::Unencrypted, "stripped of its seal").await;
    refused(forged(&good, |t| t.replace("\"a\"", "\"b\""), kept), ErrorKind::Corrupt, "changed").await;
    refused(
        forged(&good, same, |_, line| line.replacen(&trust.to_string(), &"0".repeat(64), 1)),
        ErrorKind::WrongKey,
        "another key's name",
    )
    .await;
    let stranger = SigningKey::generate().unwrap();
    let theirs = MemorySink::named("theirs");
    let age = Age::builder().recipient(&pair.recipient).sign_with(stranger.clone()).build().unwrap();
    let forger = repository(std::slice::from_ref(&theirs), age);
    let other = forger.backup(SET, &MemorySource::new().artifact("a", "false")).await.unwrap();
    let signed = theirs.get(&Key::parse(format!("{SET}/{}/manifest.json", other.id)).unwrap()).unwrap();
    let renamed = forged(&signed, |t| t.replace(&other.id.to_string(), &id.to_string()), kept);
    refused(renamed, ErrorKind::WrongKey, "signed by another key").await;
    // Their signature under the trusted name.
    let claimed = forged(&signed, same, |_, line| {
        line.replacen(&stranger.verifying_key().to_string(), &trust.to_string(), 1)
    });
    refused(claimed, ErrorKind::Corrupt, "signed by another key, in our name").await;
    let hmac = |_: &str, _: &str| format!(r#"{{"seal":"hmac-sha256","value":"{}"}}"#, "0".repeat(64));
    refused(forged(&good, same, hmac), ErrorKind::WrongKey, "another kind of seal").await;
    refused(
        forged(&good, same, |_, line| line[..line.len() - 8].to_owned() + "\"}"),
        ErrorKind::Corrupt,
        "a short seal",
    )
    .await;

    // Moved to another set, and replayed under a later id, with everything that belongs to it.
    let later = "20991120T020000Z-00c0de";
    for place in [format!("app/other/{id}"), format!("{SET}/{later}")] {
        for key in sink.keys() {
            if let Some(name) = key.as_str().strip_prefix(&format!("{SET}/{id}/")) {
                let bytes = sink.get(&key).unwrap();
                sink.replace(&Key::parse(format!("{place}/{name}")).unwrap(), bytes);
            }
        }
    }
    for (set, at) in [("app/other", id), (SET, later.parse().unwrap())] {
        let error = reads.verify(set, at).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{}", error.chain());
    }
    let target = MemoryTarget::new();
    assert_eq!(reads.restore(SET).latest().into(&target).await.unwrap().id, id);
    // Who trusts nobody opens nothing.
    let blind = Repository::builder().sink(sink.clone()).build().unwrap();
    assert_eq!(blind.verify(SET, id).await.unwrap_err().kind(), ErrorKind::WrongKey);
}

#[tokio::test(flavor = "multi_thread")]
async fn openssl_checks_a_seal_by_hand() {
    if !tools::available("tools", "openssl", &["version"], "openssl_checks_a_seal_by_hand") {
        return;
    }
    let [pair, _] = pairs();
    let sink = MemorySink::named("a");
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let openssl = |args: &[&str]| tools::filter(Command::new("openssl").args(args), b"");
    openssl(&["genpkey", "-algorithm", "ed25519", "-out", &at("key")]);
    openssl(&["pkey", "-in", &at("key"), "-pubout", "-out", &at("pub")]);
    let key = SigningKey::from_file(at("key")).unwrap();
    assert_eq!(key.verifying_key(), VerifyingKey::from_file(at("pub")).unwrap());
    let age = Age::builder().recipient(&pair.recipient).sign_with(key).build().unwrap();
    let repo = repository(std::slice::from_ref(&sink), age);
    let id = repo.backup(SET, &MemorySource::new().artifact("a", "hello")).await.unwrap().id;
    let bytes = sink.get(&Key::parse(format!("{SET}/{id}/manifest.json")).unwrap()).unwrap();
    let text = std::str::from_utf8(&bytes).unwrap().trim_end();
    let (document, line) = text.rsplit_once('\n').unwrap();
    let value = line.rsplit_once("\"value\":\"").unwrap().1.trim_end_matches("\"}");
    let signature: Vec<u8> =
        (0..64).map(|n| u8::from_str_radix(&value[2 * n..2 * n + 2], 16).unwrap()).collect();
    std::fs::write(at("signature"), signature).unwrap();
    std::fs::write(at("document"), format!("{document}\n")).unwrap();
    let verify = ["pkeyutl", "-verify", "-pubin", "-inkey", &at("pub"), "-rawin", "-in", &at("document")];
    openssl(&[&verify[..], &["-sigfile", &at("signature")]].concat());
}

/// From keys of our own to age and back: what was written before is read with what is given beside.
#[tokio::test(flavor = "multi_thread")]
async fn a_repository_reads_what_it_wrote_with_another_encryption() {
    use backup_core::{AesGcm, Keyring};
    let [pair, _] = pairs();
    let sink = MemorySink::named("a");
    let ring = Keyring::builder().key([3; 32]).build().unwrap();
    let aes = Repository::builder().sink(sink.clone()).transform(AesGcm::new(ring.clone())).build().unwrap();
    let source = MemorySource::new().artifact("a", "hello");
    let first = aes.backup(SET, &source).await.unwrap();
    let age = Repository::builder()
        .sink(sink.clone())
        .keyring(ring.clone())
        .transform(both(&pair))
        .build()
        .unwrap();
    let second = age.backup(SET, &source).await.unwrap();
    let back = Repository::builder()
        .sink(sink.clone())
        .transform(AesGcm::new(ring))
        .reads(reader(&pair, signing().verifying_key()))
        .build()
        .unwrap();
    let third = back.backup(SET, &source).await.unwrap();
    for id in [first.id, second.id, third.id] {
        for repo in [&age, &back] {
            assert!(repo.verify(SET, id).await.unwrap().is_intact(), "{id}");
        }
    }
    // Each key alone opens its own and not the others'.
    let report = back.check_keys().await.unwrap();
    let opened: Vec<_> = report.checks.iter().map(|c| c.opens.is_ok()).collect();
    assert_eq!(opened, [true, false], "{report:?}");
}
