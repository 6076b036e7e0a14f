//! Promises 1, 6, 9 and 12: names and manifests that somebody chose badly, or with bad intent.
#![allow(clippy::unwrap_used, reason = "helpers of tests are not seen as tests")]

use std::sync::{Arc, Mutex};

use backup_core::{
    ArtifactFormat, CommandSource, Digest, ErrorKind, Event, Key, Keyring, MemorySink, MemorySource,
    MemoryTarget, Repository,
};

fn repository(sink: &MemorySink) -> Repository {
    Repository::builder().sink(sink.clone()).build().unwrap()
}

/// Replaces a number of the manifest and seals it again, as anyone can where there is no key.
fn forge(sink: &MemorySink, object: &str, size: u64) {
    let key = sink.keys().into_iter().find(|k| k.file_name() == "manifest.json").unwrap();
    let text = String::from_utf8(sink.get(&key).unwrap().to_vec()).unwrap();
    let (document, _seal) = text.trim_end().rsplit_once('\n').unwrap();
    let at = document.find(object).unwrap();
    let start = at + document[at..].find("\"size\": ").unwrap() + "\"size\": ".len();
    let end = start + document[start..].find(|c: char| !c.is_ascii_digit()).unwrap();
    let forged = format!("{}{size}{}\n", &document[..start], &document[end..]);
    let seal = format!("{{\"seal\":\"sha256\",\"value\":\"{}\"}}\n", Digest::of(forged.as_bytes()));
    sink.replace(&key, forged + &seal);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_declared_size_is_not_believed_before_its_bytes_come() {
    for object in ["details.jsonl", "data.bin", "RESTORE.txt"] {
        for size in [5 << 20, 1 << 50, u64::MAX / 2] {
            let sink = MemorySink::new();
            let repo = repository(&sink);
            repo.backup("app", &MemorySource::new().artifact("data", "x")).await.unwrap();
            forge(&sink, &format!("\"object\": \"{object}\""), size);
            let list = repo.backups("app").await.unwrap();
            assert_eq!(list.len(), 1, "the forged manifest has a good seal: {:?}", list.unreadable);
            let report = repo.verify("app", list[0].id).await.unwrap();
            assert!(!report.is_intact(), "{object} {size}");
            if object != "RESTORE.txt" {
                let error = repo.restore("app").into(&MemoryTarget::new()).await.unwrap_err();
                let kinds = [ErrorKind::Corrupt, ErrorKind::LimitExceeded];
                assert!(kinds.contains(&error.kind()), "{object} {size}: {}", error.chain());
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_artifact_cannot_take_the_place_of_another_object() {
    let text = |extension| ArtifactFormat::new("text", extension);
    for (name, extension) in [
        ("RESTORE", "txt"),
        ("manifest", "json"),
        ("pending", "json"),
        ("pinned", "json"),
        ("decrypt", "py"),
        ("details", "bin"),
        ("a\nb", "txt"),
        ("-rf", "txt"),
    ] {
        let sink = MemorySink::new();
        let source = CommandSource::new(["echo", "precious"]).artifact(name, text(extension));
        let error = repository(&sink).backup("app", &source).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::SourceFailed, "{name}.{extension}");
        assert_eq!(sink.keys(), [], "{name}.{extension}");
    }
    // Two names that are told apart, and the objects' would not be.
    for pair in [["a", "a"], ["a.bin.idx", "a"]] {
        let source = pair.iter().fold(MemorySource::new(), |source, name| source.artifact(*name, "x"));
        let sink = MemorySink::new();
        let result = repository(&sink).backup("app", &source).await;
        match pair {
            ["a", "a"] => assert_eq!(result.unwrap_err().kind(), ErrorKind::SourceFailed),
            // `a.bin.idx.bin` is not `a.bin.idx`.
            _ => drop(result.unwrap()),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_never_becomes_a_line_of_restore_txt() {
    let sink = MemorySink::new();
    for set in ["x\ntouch oops #", "x\r", "-x", "a\u{7f}"] {
        let error = repository(&sink).backup(set, &MemorySource::new()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
    }
    assert_eq!(sink.keys(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repository_with_keys_and_no_encryption_does_not_write_what_it_could_not_read() {
    let sink = MemorySink::new();
    let keyring = Keyring::builder().key([1; 32]).build().unwrap();
    let repo = Repository::builder().sink(sink.clone()).keyring(keyring).build().unwrap();
    let error = repo.backup("app", &MemorySource::new().artifact("data", "x")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unencrypted);
    assert_eq!(sink.keys(), []);
}

/// An id is taken from the clock and 24 random bits; the one that loses must not touch the other's objects.
#[tokio::test(flavor = "multi_thread")]
async fn a_run_whose_id_is_taken_leaves_everything_alone() {
    for taken in ["pending.json", "manifest.json"] {
        let sink = MemorySink::new();
        let theirs = Arc::new(Mutex::new(Vec::new()));
        let (other, keys) = (sink.clone(), Arc::clone(&theirs));
        // The other run is a moment ahead.
        let observer = move |event: &Event<'_>| {
            if let Event::Started { id, .. } = event {
                for name in ["data.bin", taken] {
                    let key = Key::parse(format!("app/{id}/{name}")).unwrap();
                    other.replace(&key, "theirs");
                    keys.lock().unwrap().push(key);
                }
            }
        };
        let source = MemorySource::new().artifact("data", "ours");
        let error = repository(&sink).backup("app", &source).observer(observer).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AlreadyExists, "{taken}: {}", error.chain());
        assert_eq!(sink.keys(), *theirs.lock().unwrap(), "{taken}");
        assert!(sink.keys().iter().all(|key| sink.get(key).unwrap() == "theirs"), "{taken}");
    }
}
