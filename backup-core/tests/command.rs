//! Programs as sources and targets.

use std::error::Error as _;
use std::time::{Duration, Instant};

use backup_core::{
    ArtifactFormat, ArtifactMeta, ArtifactReader, Atomicity, CommandFailure, CommandLine, CommandSource,
    CommandTarget, Error, ErrorKind, MemorySink, MemorySource, MemoryTarget, Outcome, Repository,
    RestoreTarget as _, SnapshotRequest, Source as _, WHOLE_BYTES, whole_proof,
};
use backup_testkit::{SourceSuite, TargetSuite, capture, noise, skip};
use futures::StreamExt as _;

fn sh(script: &str) -> CommandLine {
    CommandLine::from(["sh", "-c", script])
}

fn failure(error: &Error) -> &CommandFailure {
    error.source().and_then(|e| e.downcast_ref()).expect("a command's failure is the source of its error")
}

/// Whether a process with this id exists and is not a zombie.
fn alive(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().is_some_and(|rest| !rest.is_empty() && !rest.trim_start().starts_with(['Z', 'X']))
}

async fn gone(pid: &str) -> bool {
    let limit = Instant::now() + Duration::from_secs(10);
    while alive(pid) {
        if Instant::now() > limit {
            return false;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    true
}

#[tokio::test]
async fn a_command_keeps_the_contract_of_sources() {
    let source = CommandSource::new(sh("i=0; while [ $i -lt 40000 ]; do echo line $i; i=$((i+1)); done"));
    SourceSuite::new().run(&source, async || ()).await;
}

#[tokio::test]
async fn what_a_program_prints_is_the_artifact_and_its_proof() {
    let source = CommandSource::new(CommandLine::from(["printf", "%s", "a 'quoted' $HOME *"]))
        .artifact("text", ArtifactFormat::new("text", "txt"));
    let taken = capture(&source).await.unwrap();
    let (meta, bytes) = &taken.artifacts[0];
    assert_eq!((&*meta.name, &bytes[..]), ("text", &b"a 'quoted' $HOME *"[..]), "no shell touched it");
    let digest = backup_core::Digest::of(bytes);
    assert_eq!(taken.report.proofs[WHOLE_BYTES], whole_proof("text", &digest));
    assert_eq!(taken.items[0].sha256, Some(digest));
}

#[tokio::test]
async fn a_git_bundle_is_a_source() {
    let dir = tempfile::tempdir().unwrap();
    let git = |args: &[&str]| {
        std::process::Command::new("git")
            .args(["-c", "user.name=t", "-c", "user.email=t@example.org"])
            .args(args)
            .current_dir(dir.path())
            .output()
    };
    let Ok(init) = git(&["init", "-q", "."]) else {
        skip("git is not installed");
        return;
    };
    assert!(init.status.success());
    std::fs::write(dir.path().join("file"), noise(300_000, 1)).unwrap();
    assert!(git(&["add", "."]).unwrap().status.success());
    assert!(git(&["commit", "-qm", "one"]).unwrap().status.success());
    let line = CommandLine::from(["git", "bundle", "create", "-", "--all"]).current_dir(dir.path());
    let source = CommandSource::new(line).artifact("repo", ArtifactFormat::new("git.bundle", "bundle"));
    assert!(source.check().await.unwrap().is_ok());
    let taken = capture(&source).await.unwrap();

    // Back through a target that writes it to a file, which git itself then verifies.
    let bundle = dir.path().join("back.bundle");
    let target = CommandTarget::new(sh("cat > \"$OUT\"").env("OUT", &bundle))
        .empty_when(CommandLine::from(["test", "!", "-e"]).arg(&bundle))
        .prove_with(CommandLine::new("cat").arg(&bundle));
    let restore = target.begin(&taken.plan(false)).await.unwrap();
    restore.artifact(taken.readers().remove(0)).await.unwrap();
    assert_eq!(restore.prove().await.unwrap(), taken.report.proofs);
    let (report, undo) = restore.commit().await.unwrap();
    assert_eq!(report.bytes, taken.artifacts[0].1.len() as u64);
    assert!(undo.is_none());
    assert!(git(&["bundle", "verify", "-q", "back.bundle"]).unwrap().status.success());
}

#[tokio::test]
async fn a_program_that_fails_after_any_part_of_its_output_is_no_backup() {
    for (what, script) in [
        ("no output", "echo no connection >&2; exit 3"),
        ("half", "head -c 100000 /dev/zero; echo lost connection >&2; exit 3"),
        ("all", "head -c 200000 /dev/zero; echo checksum wrong >&2; exit 3"),
    ] {
        let error = capture(&CommandSource::new(sh(script))).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::SourceFailed, "{what}");
        let failure = failure(&error);
        assert_eq!(failure.status().unwrap().code(), Some(3), "{what}");
        assert!(
            !failure.stderr().is_empty() && error.chain().contains("exit status: 3"),
            "{}",
            error.chain()
        );
    }
    let error = capture(&CommandSource::new(sh("echo x; kill -9 $$"))).await.unwrap_err();
    assert!(error.chain().contains("signal: 9"), "{}", error.chain());
}

#[tokio::test]
async fn a_program_that_writes_everything_and_fails_leaves_nothing_listed() {
    let sink = MemorySink::new();
    let repository = Repository::builder().sink(sink.clone()).build().unwrap();
    let source = |status: u8| CommandSource::new(sh(&format!("head -c 3000000 /dev/zero; exit {status}")));
    let error = repository.backup("dump", &source(1)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::SourceFailed, "{}", error.chain());
    assert!(repository.backups("dump").await.unwrap().is_empty());
    assert_eq!(sink.keys(), []);
    // The same output with status 0 is a backup.
    repository.backup("dump", &source(0)).await.unwrap();
    assert_eq!(repository.backups("dump").await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_missing_program_is_found_by_check_and_named_by_the_backup() {
    let source = CommandSource::new(["no-such-program-here"]);
    assert!(!source.check().await.unwrap().is_ok());
    let error = capture(&source).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::SourceFailed);
    assert!(error.to_string().contains("no-such-program-here"), "{error}");
    let nowhere = CommandSource::new(sh("true").current_dir("/no/such/directory"));
    assert!(!nowhere.check().await.unwrap().is_ok());
}

#[tokio::test]
async fn an_exit_code_can_be_accepted_with_a_warning() {
    let source = CommandSource::new(sh("echo data; echo file changed >&2; exit 1")).accept_exit_code(1);
    let taken = capture(&source).await.unwrap();
    assert_eq!(taken.report.warnings[0].code, "command-exit-code");
    assert_eq!(taken.report.details["stderr"], "file changed");
}

#[tokio::test]
async fn a_flood_on_the_standard_error_blocks_nothing_and_its_end_is_kept() {
    let script = "head -c 5000000 /dev/zero | tr '\\0' x >&2; echo out; printf 'last words' >&2; exit 1";
    let error = capture(&CommandSource::new(sh(script))).await.unwrap_err();
    let failure = failure(&error);
    assert_eq!(failure.stderr_total(), 5_000_010);
    assert_eq!(failure.stderr().len(), 64 * 1024);
    assert!(failure.stderr().ends_with(b"xlast words"));
    assert!(error.chain().len() < 4096, "the message itself stays short");
}

#[tokio::test]
async fn no_secret_of_the_environment_is_printed() {
    const SECRET: &str = "s3ntinel-value";
    let line = sh("test \"$TOKEN\" = s3ntinel-value && echo ok; exit 1").env("TOKEN", SECRET);
    let source = CommandSource::new(line.clone()).accept_exit_code(1);
    assert_eq!(capture(&source).await.unwrap().artifacts[0].1, "ok\n");
    let error = capture(&CommandSource::new(line.clone())).await.unwrap_err();
    for text in [
        format!("{line:?}{source:?}{:?}", CommandTarget::new(line.clone())),
        format!("{error:?}{}", error.chain()),
    ] {
        assert!(!text.contains(SECRET), "{text}");
    }
}

#[tokio::test]
async fn giving_up_kills_the_program_and_its_helpers() {
    // The shell prints its own id and that of a helper that would live for a minute.
    let source = CommandSource::new(sh("sleep 60 & echo $$ $!; wait"));
    for close in [true, false] {
        let mut snapshot = source.snapshot(SnapshotRequest::full()).await.unwrap();
        let mut artifact = snapshot.next().await.unwrap().unwrap();
        let line = artifact.data.next().await.unwrap().unwrap();
        let line = String::from_utf8(line.to_vec()).unwrap();
        let pids: Vec<&str> = line.split_whitespace().collect();
        assert!(pids.len() == 2 && pids.iter().all(|pid| alive(pid)));
        drop(artifact);
        if close {
            snapshot.close(Outcome::Aborted).await.unwrap();
        }
        for pid in pids {
            assert!(gone(pid).await, "process {pid} lives on");
        }
    }
}

#[tokio::test]
async fn a_cancelled_command_stops_at_once_even_when_it_prints_nothing() {
    let request = SnapshotRequest::full();
    let cancel = request.cancelled.clone();
    let mut snapshot = CommandSource::new(["sleep", "60"]).snapshot(request).await.unwrap();
    let mut artifact = snapshot.next().await.unwrap().unwrap();
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(50)).await;
        cancel.cancel();
    });
    let error = artifact.data.next().await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled);
    assert!(snapshot.finish().await.is_err());
}

fn reader(bytes: bytes::Bytes) -> ArtifactReader {
    ArtifactReader::from_bytes(ArtifactMeta::new("data", ArtifactFormat::BYTES), bytes)
}

async fn feed(line: CommandLine, bytes: bytes::Bytes) -> backup_core::Result<()> {
    let plan = capture(&MemorySource::new().artifact("data", bytes.clone())).await?.plan(true);
    CommandTarget::new(line).begin(&plan).await?.artifact(reader(bytes)).await
}

#[tokio::test]
async fn a_target_that_does_not_read_or_fails_is_an_error_with_its_words() {
    let large = noise(4_000_000, 1);
    let error = feed(sh("exec <&-; echo not today >&2; exit 7"), large.clone()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TargetFailed);
    assert_eq!(failure(&error).status().unwrap().code(), Some(7));
    assert!(error.chain().contains("not today"), "{}", error.chain());
    // Even with status 0: it cannot have restored what it did not read.
    let error = feed(sh("head -c 10 > /dev/null"), large.clone()).await.unwrap_err();
    assert!(error.to_string().contains("stopped reading"), "{error}");
    // It reads everything, and fails at the end.
    let error = feed(sh("cat > /dev/null; echo disk full >&2; exit 1"), large.clone()).await.unwrap_err();
    assert!(error.chain().contains("disk full"), "{}", error.chain());
    feed(sh("cat > /dev/null"), large).await.unwrap();
    feed(sh("cat > /dev/null"), bytes::Bytes::new()).await.unwrap();
}

#[tokio::test]
async fn a_staged_target_keeps_the_contract_up_to_replacing() {
    let dir = tempfile::tempdir().unwrap();
    let count = std::sync::atomic::AtomicU32::new(0);
    let place = || {
        let n = count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let place = dir.path().join(n.to_string());
        std::fs::create_dir_all(&place).unwrap();
        place
    };
    let target_in = |place: &std::path::Path| {
        let line = |script| sh(script).current_dir(place);
        CommandTarget::new(line("mkdir -p stage && cat > stage/$BACKUP_ARTIFACT"))
            .staged(line("mkdir -p stage && mv -T stage real"), line("rm -rf stage"))
            .empty_when(line("test ! -e real"))
            .prove_with(line("cat stage/$BACKUP_ARTIFACT"))
    };
    let source =
        |seed| MemorySource::new().artifact("one", noise(500_000, seed)).artifact("two", noise(10, seed));
    let captured = capture(&source(1)).await.unwrap();

    // The parts of the suite that need no undo, which commands do not have.
    let content = |place: &std::path::Path| {
        let read = |dir: std::fs::ReadDir| {
            dir.map(|e| e.unwrap())
                .map(|e| (e.file_name().into_string().unwrap(), std::fs::read(e.path()).unwrap().into()))
        };
        std::fs::read_dir(place.join("real")).map(|dir| read(dir).collect()).unwrap_or_default()
    };
    let made = std::cell::RefCell::new(std::path::PathBuf::new());
    TargetSuite::new()
        .cannot_see_what_is_there()
        .run(
            async || {
                *made.borrow_mut() = place();
                target_in(&made.borrow())
            },
            async |_| content(&made.borrow()),
            [&captured, &captured],
        )
        .await;

    let place = place();
    let target = target_in(&place);
    assert_eq!(target.atomicity(), Atomicity::Swap);
    let restore = target.begin(&captured.plan(false)).await.unwrap();
    for reader in captured.readers() {
        restore.artifact(reader).await.unwrap();
    }
    restore.commit().await.unwrap();
    assert_eq!(content(&place).len(), 2);
    let error = target.begin(&captured.plan(false)).await.err().unwrap();
    assert_eq!(error.kind(), ErrorKind::TargetNotEmpty);

    // What was staged and then damaged is not proved.
    std::fs::remove_dir_all(place.join("real")).unwrap();
    let restore = target.begin(&captured.plan(false)).await.unwrap();
    for reader in captured.readers() {
        restore.artifact(reader).await.unwrap();
    }
    std::fs::write(place.join("stage/two"), "damaged").unwrap();
    assert_ne!(restore.prove().await.unwrap(), captured.report.proofs);
    // Dropping it removes the stage.
    drop(restore);
    let limit = Instant::now() + Duration::from_secs(10);
    while place.join("stage").exists() && Instant::now() < limit {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(!place.join("stage").exists());
}

#[tokio::test]
async fn a_target_that_cannot_look_restores_only_when_asked_to_replace() {
    let captured = capture(&MemorySource::new().artifact("data", "x")).await.unwrap();
    let in_place = CommandTarget::new(["cat"]);
    for target in [in_place.clone(), in_place.staged(["true"], ["true"])] {
        let error = target.begin(&captured.plan(false)).await.err().unwrap();
        assert_eq!(error.kind(), ErrorKind::TargetNotEmpty);
        target.begin(&captured.plan(true)).await.unwrap().abort().await.unwrap();
    }
}

/// Promise 5: in place means that a failure leaves a half, so it takes more than one word to get there.
#[tokio::test(flavor = "multi_thread")]
async fn a_command_overwrites_only_when_asked_and_with_a_safety_backup() {
    let dir = tempfile::tempdir().unwrap();
    let live = dir.path().join("live");
    std::fs::write(&live, "precious").unwrap();
    let repo = Repository::builder().sink(MemorySink::new()).build().unwrap();
    repo.backup("app", &MemorySource::new().artifact("data", "new")).await.unwrap();
    let target = CommandTarget::new(sh("cat > live").current_dir(dir.path()));
    let present = CommandSource::new(sh("cat live").current_dir(dir.path()));

    let error = repo.restore("app").into(&target).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TargetNotEmpty, "{error}");
    let error = repo.restore("app").into(&target).replace().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    let error = repo.restore("app").into(&target).replace().allow_partial().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    assert_eq!(std::fs::read(&live).unwrap(), b"precious");

    let done = repo.restore("app").into(&target).replace().allow_partial();
    let done = done.safety_backup("app/before", &present).await.unwrap();
    assert_eq!(std::fs::read(&live).unwrap(), b"new");
    let before = MemoryTarget::new();
    repo.restore("app/before").id(done.safety_backup.unwrap()).into(&before).await.unwrap();
    assert_eq!(before.get(&before.names()[0]).unwrap(), "precious");
}

/// Stopped between two steps of its commit, a target would be neither old nor new.
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_began_is_finished_whoever_stops_waiting() {
    for dropped in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("live"), "old").unwrap();
        let repo = Repository::builder().sink(MemorySink::new()).build().unwrap();
        repo.backup("app", &MemorySource::new().artifact("data", "new")).await.unwrap();
        let line = |script| sh(script).current_dir(dir.path());
        let target = CommandTarget::new(line("cat > staged"))
            .staged(line("mv live before; sleep 1; mv staged live"), line("rm -f staged"));
        let moved = async {
            while !dir.path().join("before").exists() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let restore = repo.restore("app").into(&target).replace();
        if dropped {
            tokio::select! {
                _ = restore.into_future() => panic!("the commit takes longer than that"),
                () = moved => {}
            }
        } else {
            restore.run_until(moved).await.unwrap();
        }
        let limit = Instant::now() + Duration::from_secs(20);
        while !dir.path().join("live").exists() && Instant::now() < limit {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(std::fs::read(dir.path().join("live")).unwrap(), b"new");
    }
}
