//! Damage of every kind to every kind of object, under every chain: verify reports it, and a restore gives the right
//! bytes or none.
//!
//! Seeded; `BACKUP_TORTURE=10` makes ten times as many cases.
#![allow(clippy::unwrap_used, reason = "helpers of tests are not seen as tests")]
#![allow(dead_code, reason = "the shared file serves several test programs")]

#[path = "prune/support.rs"]
mod support;

use backup_core::{
    AesGcm, BackupId, Bytes, ErrorKind, Gzip, Key, Keyring, MemorySink, MemorySource, MemoryTarget,
    Repository, RepositoryBuilder, Zstd,
};
use backup_testkit::noise;

const SET: &str = "app";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Chain {
    Plain,
    Gzip,
    Zstd,
    ZstdAes,
}

impl Chain {
    const ALL: [Self; 4] = [Self::Plain, Self::Gzip, Self::Zstd, Self::ZstdAes];

    fn repository(self, sinks: &[MemorySink]) -> Repository {
        let mut builder = Repository::builder();
        for sink in sinks {
            builder = builder.sink(sink.clone());
        }
        match self {
            Self::Plain => builder,
            Self::Gzip => builder.transform(Gzip::default()),
            Self::Zstd => builder.transform(Zstd::default()),
            Self::ZstdAes => with_keys(builder.transform(Zstd::default()), &[1]),
        }
        .build()
        .unwrap()
    }
}

fn with_keys(builder: RepositoryBuilder, keys: &[u8]) -> RepositoryBuilder {
    let ring = keys.iter().fold(Keyring::builder(), |ring, byte| ring.key([*byte; 32])).wrap_with_all();
    builder.transform(AesGcm::new(ring.build().unwrap()))
}

#[derive(Clone, Copy, Debug)]
enum Damage {
    Delete,
    Truncate(u64),
    Append(u64),
    Flip(u64),
    Swap,
}

/// A small generator with the seed in sight (splitmix64, Steele et al. 2014).
struct Seeded(u64);

impl Seeded {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

impl Damage {
    fn some(seeded: &mut Seeded, rounds: u64) -> Vec<Self> {
        let mut all = vec![Self::Delete, Self::Swap, Self::Truncate(0), Self::Truncate(u64::MAX)];
        for _ in 0..rounds {
            all.extend([
                Self::Truncate(seeded.next()),
                Self::Append(seeded.next()),
                Self::Flip(seeded.next()),
                Self::Flip(seeded.next()),
                Self::Flip(seeded.next()),
            ]);
        }
        all
    }

    /// The damaged bytes (`None`: no object any more), or nothing where it would change nothing.
    #[expect(clippy::option_option, reason = "no change, no object, and other bytes are three cases")]
    fn of(self, good: &Bytes, other: Option<&Bytes>) -> Option<Option<Bytes>> {
        let mut bytes = good.to_vec();
        let len = bytes.len() as u64;
        match self {
            Self::Delete => return Some(None),
            Self::Swap => bytes = other?.to_vec(),
            Self::Truncate(u64::MAX) => bytes.truncate(bytes.len().saturating_sub(1)),
            Self::Truncate(_) | Self::Flip(_) if len == 0 => return None,
            Self::Truncate(at) => bytes.truncate(usize::try_from(at % len).unwrap()),
            Self::Append(what) => {
                let more = usize::try_from(what % 40).unwrap() + 1;
                bytes.extend_from_slice(&noise(more, what));
            }
            Self::Flip(at) => {
                let bit = usize::try_from(at % (len * 8)).unwrap();
                bytes[bit / 8] ^= 1 << (bit % 8);
            }
        }
        (bytes != *good).then(|| Some(bytes.into()))
    }
}

fn torture() -> u64 {
    std::env::var("BACKUP_TORTURE").ok().and_then(|n| n.parse().ok()).unwrap_or(1)
}

fn contents(seed: u64) -> [(&'static str, Bytes); 3] {
    [("big", noise(4_300_000, seed)), ("small", noise(100, seed + 1)), ("none", Bytes::new())]
}

fn source(seed: u64) -> MemorySource {
    contents(seed).into_iter().fold(MemorySource::new(), |source, (name, bytes)| source.artifact(name, bytes))
}

/// Whether the restored bytes are exactly those of `seed`.
fn exact(target: &MemoryTarget, seed: u64) -> bool {
    target.names().len() == 3
        && contents(seed).iter().all(|(name, bytes)| target.get(name).as_ref() == Some(bytes))
}

fn put(sink: &MemorySink, key: &Key, bytes: Option<Bytes>) {
    match bytes {
        Some(bytes) => drop(sink.replace(key, bytes)),
        None => drop(sink.remove(key)),
    }
}

/// Whether a key wrap says the same as before in other letters. Wraps are replaced when keys rotate, so no digest
/// covers them: white space and the case of hexadecimal digits may change without harm.
fn still_opens(key: &Key, good: &Bytes, sink: &MemorySink) -> bool {
    let meaning = |bytes: &Bytes| {
        let text = String::from_utf8(bytes.to_vec()).ok()?.to_lowercase();
        serde_json::from_str::<serde_json::Value>(&text).ok()
    };
    let now = sink.get(key).and_then(|bytes| meaning(&bytes));
    key.as_str().contains("/keys/") && now.is_some() && now == meaning(good)
}

/// Two backups of the same names on each sink: the one to be damaged, and another.
async fn two_backups(repo: &Repository) -> (BackupId, BackupId) {
    let hours_ago = |hours| chrono::Utc::now() - chrono::TimeDelta::hours(hours);
    let other = repo.backup(SET, &source(70)).started_at(hours_ago(2)).await.unwrap().id;
    let this = repo.backup(SET, &source(7)).started_at(hours_ago(1)).await.unwrap().id;
    (this, other)
}

fn same_in(key: &Key, this: BackupId, other: BackupId) -> Key {
    Key::parse(key.as_str().replace(&this.to_string(), &other.to_string())).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_damage_is_reported_and_no_wrong_byte_is_restored() {
    let mut seeded = Seeded(3);
    let (mut cases, mut refused, mut kinds) = (0, 0, std::collections::BTreeSet::new());
    for chain in Chain::ALL {
        let sink = MemorySink::named("only");
        let repo = chain.repository(std::slice::from_ref(&sink));
        let (this, other) = two_backups(&repo).await;
        let keys: Vec<Key> =
            sink.keys().into_iter().filter(|k| k.as_str().contains(&this.to_string())).collect();
        for key in keys {
            kinds.insert(key.file_name().to_owned());
            let good = sink.get(&key).unwrap();
            let swapped = sink.get(&same_in(&key, this, other));
            for damage in Damage::some(&mut seeded, torture()) {
                let Some(bad) = damage.of(&good, swapped.as_ref()) else { continue };
                cases += 1;
                let case = format!("{chain:?}: {damage:?} of {key}");
                put(&sink, &key, bad);
                let noticed = match repo.verify(SET, this).await {
                    Ok(report) => !report.is_intact(),
                    Err(error) => {
                        assert_ne!(error.kind(), ErrorKind::Internal, "{case}: {}", error.chain());
                        true
                    }
                };
                assert!(noticed || still_opens(&key, &good, &sink), "{case}: not reported");
                let target = MemoryTarget::new();
                match repo.restore(SET).id(this).into(&target).await {
                    Ok(_) => assert!(exact(&target, 7), "{case}: other bytes were restored"),
                    Err(error) => {
                        refused += 1;
                        assert_ne!(error.kind(), ErrorKind::Internal, "{case}: {}", error.chain());
                        assert!(target.is_empty(), "{case}: {}", error.chain());
                    }
                }
                put(&sink, &key, Some(good.clone()));
            }
        }
        assert!(repo.verify(SET, this).await.unwrap().is_intact());
    }
    println!("{cases} cases, {refused} restores refused");
    assert!(cases >= 200 && refused >= 100, "{cases} cases, {refused} refused");
    for kind in ["manifest.json", "RESTORE.txt", "SHA256SUMS", "decrypt.py", "big.bin.gz.idx"] {
        assert!(kinds.contains(kind), "{kind} is not among {kinds:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn any_damage_of_one_copy_is_blamed_on_it_and_restored_from_the_other() {
    let mut seeded = Seeded(4);
    for chain in Chain::ALL {
        let sinks = [MemorySink::named("bad"), MemorySink::named("good")];
        let repo = chain.repository(&sinks);
        let (this, other) = two_backups(&repo).await;
        let keys: Vec<Key> =
            sinks[0].keys().into_iter().filter(|k| k.as_str().contains(&this.to_string())).collect();
        for key in keys {
            let good = sinks[0].get(&key).unwrap();
            let swapped = sinks[0].get(&same_in(&key, this, other));
            let all = Damage::some(&mut seeded, torture());
            let picked = 4 + usize::try_from(torture()).unwrap();
            for damage in all.into_iter().take(picked) {
                let Some(bad) = damage.of(&good, swapped.as_ref()) else { continue };
                let case = format!("{chain:?}: {damage:?} of {key}");
                put(&sinks[0], &key, bad);
                if still_opens(&key, &good, &sinks[0]) {
                    put(&sinks[0], &key, Some(good.clone()));
                    continue;
                }
                let report = repo.verify(SET, this).await.unwrap();
                assert!(!report.problems.is_empty(), "{case}: not reported");
                assert!(report.problems.iter().all(|p| p.sink.as_str() == "bad"), "{case}: {report:?}");
                assert_eq!(report.intact.len(), 1, "{case}: {report:?}");
                let target = MemoryTarget::new();
                let done = repo.restore(SET).id(this).into(&target).await;
                assert!(done.is_ok(), "{case}: {}", done.unwrap_err().chain());
                assert!(exact(&target, 7), "{case}");
                put(&sinks[0], &key, Some(good.clone()));
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_wrapped_for_two_keys_opens_with_the_one_that_is_left() {
    let sink = MemorySink::named("only");
    let open = |keys: &[u8]| with_keys(Repository::builder().sink(sink.clone()), keys).build().unwrap();
    let both = open(&[1, 2]);
    let id = both.backup(SET, &source(7)).await.unwrap().id;
    let wraps: Vec<Key> = sink.keys().into_iter().filter(|k| k.as_str().contains("/keys/")).collect();
    assert_eq!(wraps.len(), 2);
    for lost in &wraps {
        let good = sink.remove(lost).unwrap();
        let mut opened = 0;
        for byte in [1, 2] {
            let alone = open(&[byte]);
            let target = MemoryTarget::new();
            match alone.restore(SET).id(id).into(&target).await {
                Ok(_) => {
                    opened += 1;
                    assert!(exact(&target, 7));
                }
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::WrongKey, "{}", error.chain());
                    assert!(target.is_empty());
                }
            }
        }
        assert_eq!(opened, 1, "without {lost}");
        let target = MemoryTarget::new();
        both.restore(SET).id(id).into(&target).await.unwrap();
        assert!(exact(&target, 7));
        sink.replace(lost, good);
    }
    for lost in &wraps {
        sink.remove(lost);
    }
    let target = MemoryTarget::new();
    assert!(both.restore(SET).id(id).into(&target).await.is_err());
    assert!(both.verify(SET, id).await.is_err());
    assert!(target.is_empty());
}

/// An encrypted set with everything a sink can hold: a ring entry, a full, an incremental on it, a pin, and the markers of
/// a run and of a pruner that died.
async fn everything() -> (MemorySink, Repository, BackupId, BackupId) {
    let sink = MemorySink::named("only");
    let repo = Repository::builder().sink(sink.clone());
    let repo = repo.transform(Zstd::default()).transform(AesGcm::new(passphrase())).build().unwrap();
    let hours_ago = |hours| chrono::Utc::now() - chrono::TimeDelta::hours(hours);
    let parent = support::Chained::new("first");
    let parent = repo.backup(SET, &parent).incremental().started_at(hours_ago(3)).await.unwrap().id;
    let child = support::Chained::new("second");
    let child = repo.backup(SET, &child).incremental().started_at(hours_ago(2)).await.unwrap().id;
    repo.pin(SET, parent).await.unwrap();
    let run = BackupId::new(hours_ago(1), 7);
    let pending = support::pending(run, Some(child), hours_ago(-20)).replace(support::SET, SET);
    sink.replace(&Key::parse(format!("{SET}/{run}/pending.json")).unwrap(), pending);
    let condemned =
        format!(r#"{{"format":1,"set":"{SET}","id":"{parent}","at":"{}"}}"#, hours_ago(1).to_rfc3339());
    sink.replace(&Key::parse(format!("{SET}/{parent}/condemned/00ff.json")).unwrap(), condemned);
    (sink, repo, parent, child)
}

fn passphrase() -> Keyring {
    // The fewest rounds a reader accepts: one computation serves the whole test.
    let ring = Keyring::builder().passphrase("correct horse").allow_new_passphrase();
    ring.pbkdf2_rounds(600_000).build().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_of_a_parent_a_marker_or_a_ring_entry_costs_no_wrong_byte_and_no_backup() {
    let mut seeded = Seeded(5);
    let (sink, repo, parent, child) = everything().await;
    let (mut cases, mut kinds) = (0, std::collections::BTreeSet::new());
    let before = sink.keys();
    for key in &before {
        let name = key.as_str();
        let of_backup = name.contains(&parent.to_string()) || name.contains(&child.to_string());
        let marker = ["pending.json", "pinned.json", "00ff.json"].contains(&key.file_name());
        let ring = name.starts_with("keyring/");
        kinds.insert(key.segments().next_back().unwrap().to_owned());
        let good = sink.get(key).unwrap();
        for damage in Damage::some(&mut seeded, torture()) {
            let Some(bad) = damage.of(&good, None) else { continue };
            cases += 1;
            let case = format!("{damage:?} of {key}");
            put(&sink, key, bad);
            // The backups that this object belongs to, or that need the backup it belongs to.
            let mut reported = false;
            for id in [parent, child] {
                reported |= !repo.verify(SET, id).await.is_ok_and(|report| report.is_intact());
            }
            let expected = of_backup && !marker && !still_opens(key, &good, &sink);
            assert_eq!(reported, expected, "{case}");
            // What the incremental needs from its parent is needed for a restore, too: right bytes, or none.
            let target = MemoryTarget::new();
            let restored = repo.restore(SET).id(child).into(&target).await;
            if let Err(error) = restored {
                assert!(target.is_empty() && expected, "{case}: {}", error.chain());
            }
            // A marker that cannot be read protects; one that is gone cannot make a prune delete what is needed.
            let keep = backup_core::KeepLast::new(1);
            if (marker || ring) && repo.prune(SET, &keep).await.is_ok() {
                for id in [parent, child] {
                    assert!(repo.verify(SET, id).await.unwrap().is_intact(), "{case}");
                }
            }
            for key in sink.keys() {
                if !before.contains(&key) {
                    sink.remove(&key);
                }
            }
            put(&sink, key, Some(good.clone()));
        }
    }
    println!("{cases} cases over {kinds:?}");
    assert!(cases >= 100, "{cases} cases");
    for kind in ["pending.json", "pinned.json", "00ff.json", "manifest.json", "RESTORE.txt", "SHA256SUMS"] {
        assert!(kinds.contains(kind), "{kind} is not among {kinds:?}");
    }
    assert!(before.iter().any(|key| key.as_str().starts_with("keyring/")));
}
