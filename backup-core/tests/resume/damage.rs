use backup_core::{ErrorKind, Key, MemorySink};

use crate::support::*;

/// Damages what a killed run left in every way, object by object: what is damaged is read from the source, and the backup
/// is right.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_damaged_is_read_again() {
    let content = content();
    let dead = dead(&[MemorySink::new()], &content, 4).await.remove(0);
    let id = ids(&dead)[0];
    let mut cases = 0;
    for name in objects(&dead, id) {
        for how in ["deleted", "cut", "longer", "flipped", "emptied"] {
            let sink = named_fork(&dead);
            let key = Key::parse(format!("{SET}/{id}/{name}")).unwrap();
            let bytes = sink.remove(&key).unwrap();
            let damaged = match how {
                "cut" => bytes.slice(..bytes.len() - 1),
                "longer" => [&bytes[..], b"x"].concat().into(),
                "flipped" => {
                    let mut bytes = bytes.to_vec();
                    let middle = bytes.len() / 2;
                    bytes[middle] ^= 1;
                    bytes.into()
                }
                _ => backup_core::Bytes::new(),
            };
            if how != "deleted" {
                sink.replace(&key, damaged);
            }
            let case = format!("{name} {how}");
            let (report, read) = resume(&over([sink.clone()]), &content).await;
            let report = report.unwrap_or_else(|e| panic!("{case}: {}", e.chain()));
            // The pending marker says nothing of what is finished, and the key has one wrap.
            let expected = match name.split('.').next().unwrap() {
                "pending" => 4,
                // It may have lost no more than its last line feed.
                part if part.starts_with("keys/") => report.adopted / 4 * 4,
                part => {
                    assert!(read.contains(&part.to_owned()), "{case}: {part} was taken over");
                    3
                }
            };
            assert_eq!((report.adopted, read.len()), (expected, ALL - expected), "{case}");
            assert_whole(&[sink], &content, report.id, &case).await;
            cases += 1;
        }
    }
    assert!(cases >= 5 * 15, "{cases}");
}

/// A note seals a manifest of one artifact. In the place of a manifest, it makes no backup.
#[tokio::test(flavor = "multi_thread")]
async fn a_note_is_no_manifest_and_a_manifest_no_note() {
    let content = content();
    let sink = dead(&[MemorySink::new()], &content, 2).await.remove(0);
    let id = ids(&sink)[0];
    let key = |id, name: &str| Key::parse(format!("{SET}/{id}/{name}")).unwrap();
    let note = sink.get(&key(id, "part0.finished.json")).unwrap();
    sink.replace(&key(id, "manifest.json"), note.clone());
    let repo = over([sink.clone()]);
    let list = repo.backups(SET).await.unwrap();
    assert!(list.is_empty());
    assert_eq!(list.unreadable[0].error.kind(), ErrorKind::Corrupt);
    sink.remove(&key(id, "manifest.json"));

    // The note of another artifact, and of another run.
    sink.replace(&key(id, "part1.finished.json"), note);
    let (report, read) = resume(&repo, &content).await;
    let report = report.unwrap();
    assert_eq!((report.adopted, read), (1, names(1..ALL)));
    let manifest = sink.get(&key(report.id, "manifest.json")).unwrap();
    for name in ["part0", "part1"] {
        sink.replace(&key(id, &format!("{name}.finished.json")), manifest.clone());
    }
    let (report, read) = resume(&repo, &content).await;
    assert_eq!((report.unwrap().adopted, read.len()), (0, ALL));
}

/// What a manifest says was written by another run opens under that run's id only.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_taken_over_cannot_be_exchanged() {
    let content = content();
    let sink = dead(&[MemorySink::new()], &content, 4).await.remove(0);
    let (report, _) = resume(&over([sink.clone()]), &content).await;
    let id = report.unwrap().id;
    let key = |name: &str| Key::parse(format!("{SET}/{id}/{name}.bin.gz.enc")).unwrap();
    let (one, other) = (sink.get(&key("part0")).unwrap(), sink.get(&key("part4")).unwrap());
    sink.replace(&key("part0"), other);
    sink.replace(&key("part4"), one);
    let report = over([sink]).verify(SET, id).await.unwrap();
    assert!(report.problems.len() >= 2, "{:?}", report.problems);
}
