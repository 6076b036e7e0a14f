//! What every verb does with slices.

use std::time::Duration;

use backup_core::{
    AesGcm, BackupKind, ErrorKind, KeepLast, Keyring, MemorySink, Repository, RetentionPolicy as _,
    Sink as _, Until, pitr_window,
};
use chrono::{TimeDelta, Utc};

use crate::support::{ALL, Log, SET, at, base, catch_up, lose, repository, restored, slices};

#[tokio::test]
async fn a_slice_is_listed_verified_exported_pinned_and_described() {
    let (log, sink) = (Log::new(), MemorySink::new());
    let repo = repository([&sink]);
    log.write(2);
    base(&repo, &log).await;
    let begin = log.file.position();
    log.write(3);
    let slice = catch_up(&repo, &log).await.newest.unwrap();
    let end = log.file.position();

    let name = format!("{SET}/log/{begin}-{end}-{slice}/");
    assert!(sink.keys().iter().any(|key| key.as_str().starts_with(&name)), "{:?}", sink.keys());
    let list = repo.backups(SET).await.unwrap();
    let kind = BackupKind::Log { from: begin, to: end, from_time: at(3), to_time: at(5) };
    assert_eq!(list.iter().find(|b| b.id == slice).unwrap().kind, kind);
    assert_eq!(repo.sets().await.unwrap().len(), 1);
    assert!(repo.verify(SET, slice).await.unwrap().is_intact());
    assert_eq!(repo.contents(SET, slice).await.unwrap().proofs()["entries"].count, 3);
    assert_eq!(repo.export(SET, slice).await.unwrap().artifacts().len(), 1);
    let notes = sink.keys().into_iter().find(|k| k.as_str() == format!("{name}RESTORE.txt")).unwrap();
    let text = backup_core::read_bytes(&sink, &notes, 1 << 20).await.unwrap();
    assert!(String::from_utf8_lossy(&text).contains("continuous log"), "{text:?}");

    repo.pin(SET, slice).await.unwrap();
    assert!(repo.backups(SET).await.unwrap().iter().any(|b| b.id == slice && b.pinned));
    repo.unpin(SET, slice).await.unwrap();
    assert!(!repo.backups(SET).await.unwrap().iter().any(|b| b.pinned));

    // A slice under the name of another stretch is not believed.
    let moved: Vec<_> = sink.keys().into_iter().filter(|k| k.as_str().starts_with(&name)).collect();
    for key in &moved {
        let bytes = backup_core::read_bytes(&sink, key, 1 << 20).await.unwrap();
        let other = key.as_str().replace(&name, &format!("{SET}/log/{}-{}-{slice}/", "00", "zz"));
        let other = backup_core::Key::parse(other).unwrap();
        let options = backup_core::PutOptions::overwrite(backup_core::ObjectKind::Note);
        backup_core::put_bytes(&sink, &other, bytes, options).await.unwrap();
        sink.delete(key).await.unwrap();
    }
    let list = repo.backups(SET).await.unwrap();
    assert!(list.iter().all(|b| !b.is_log()));
    assert_eq!((list.unreadable[0].id, list.unreadable[0].error.kind()), (slice, ErrorKind::Corrupt));
}

#[tokio::test]
async fn keys_open_rotate_and_are_checked_on_slices_too() {
    let (log, a, b) = (Log::new(), MemorySink::named("a"), MemorySink::named("b"));
    let ring = |n: u8| Keyring::builder().key([n; 32]).build().unwrap();
    let open = |key: u8| {
        Repository::builder()
            .sink(a.clone())
            .sink(b.clone())
            .transform(AesGcm::new(ring(key)))
            .build()
            .unwrap()
    };
    let repo = open(1);
    log.write(2);
    base(&repo, &log).await;
    for _ in 0..2 {
        log.write(2);
        catch_up(&repo, &log).await;
    }
    let text = log.file.text_of(6);
    assert_eq!(restored(&repo, Until::End).await, text);
    let report = repo.check_keys().await.unwrap();
    assert_eq!(report.checks.len(), 2, "the newest base and the newest slice: {report:?}");
    assert!(report.into_result().is_ok());

    let rotated = repo.rotate(SET, &ring(2)).await.unwrap();
    assert_eq!(rotated.rotated.len(), 6);
    let new = open(2);
    assert_eq!(restored(&new, Until::End).await, text);
    assert!(repo.restore(SET).until(Until::End).into(&backup_testkit::LogTarget::new()).await.is_err());

    // A slice that only the old key opens is found, although the newest base opens.
    let slice = catch_up_with(&log, &open(1)).await;
    let report = new.check_keys().await.unwrap();
    assert_eq!(report.locked_out().len(), 1, "{report:?}");
    assert!(report.checks.iter().any(|c| c.id == Some(slice) && c.opens.is_err()));
}

/// A slice made with other keys than those of everything before it.
async fn catch_up_with(log: &Log, repo: &Repository) -> backup_core::BackupId {
    let here = log.file.position();
    log.write(1);
    // Ids tell seconds apart.
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    let source = log.file.source();
    let follow = repo.follow(SET, &source).starting_at(here).slice(Duration::from_secs(60), ALL);
    follow.once().await.unwrap().newest.unwrap()
}

#[tokio::test]
async fn replicate_copies_and_heals_slices() {
    let (log, a, b) = (Log::new(), MemorySink::named("a"), MemorySink::named("b"));
    let alone = repository([&a]);
    log.write(2);
    base(&alone, &log).await;
    for _ in 0..3 {
        log.write(2);
        catch_up(&alone, &log).await;
    }
    let both = repository([&a, &b]);
    both.replicate_all(SET).await.unwrap();
    assert_eq!(restored(&repository([&b]), Until::End).await, log.file.text_of(8));
    let slice = slices(&both).await[1].2.id;
    lose(&a, slice).await;
    both.replicate(SET, slice).await.unwrap();
    assert_eq!(restored(&repository([&a]), Until::End).await, log.file.text_of(8));
}

#[tokio::test]
async fn a_prune_with_a_window_opens_no_gap_and_takes_what_only_older_bases_need() {
    let (log, sink) = (Log::new(), MemorySink::new());
    let repo = repository([&sink]);
    // Three bases with slices between them; the log's clock lies years back, so that windows are told apart in seconds.
    let mut bases = Vec::new();
    for n in 0..3 {
        log.write(2);
        let state = log.file.state();
        bases.push(repo.backup(SET, &state).started_at(at(2 + 6 * n)).await.unwrap().id);
        for _ in 0..2 {
            log.write(2);
            catch_up(&repo, &log).await;
        }
    }
    let seconds = 18;
    assert_eq!(repo.pitr_ranges(SET).await.unwrap()[0].to, at(seconds));
    let now = Utc::now() + TimeDelta::minutes(1);
    // The second base is at 8 s. A window of 8 s reaches from 10 s on and needs it.
    let policy = KeepLast::new(1).or(pitr_window(Duration::from_secs(8)));
    let plan = repo.prune(SET, &policy).now(now).allow_mass_delete().plan().await.unwrap();
    let report = plan.execute().await.unwrap().into_result().unwrap();
    let gone: Vec<_> = report.deleted.iter().map(|d| d.id).collect();
    assert!(gone.contains(&bases[0]) && !gone.contains(&bases[1]) && !gone.contains(&bases[2]), "{gone:?}");
    assert_eq!(slices(&repo).await.len(), 4, "slices of the first base go, all others stay");
    let ranges = repo.pitr_ranges(SET).await.unwrap();
    assert!(ranges.gaps.is_empty() && ranges.len() == 1);
    assert_eq!((ranges[0].from, ranges[0].to), (at(8), at(seconds)));
    for second in 8..=seconds {
        assert_eq!(restored(&repo, at(second)).await, log.file.text_until(at(second)));
    }
    // And the log goes on.
    log.write(1);
    catch_up(&repo, &log).await;
    assert_eq!(restored(&repo, Until::End).await, log.file.text_of(19));
}

#[tokio::test]
async fn what_a_killed_slice_left_is_swept() {
    let (log, sink) = (Log::new(), MemorySink::new());
    let repo = repository([&sink]);
    base(&repo, &log).await;
    log.write(2);
    let slice = catch_up(&repo, &log).await.newest.unwrap();
    let manifest = |key: &backup_core::Key| {
        key.as_str().contains(&slice.to_string()) && key.file_name() == "manifest.json"
    };
    let key = sink.keys().into_iter().find(manifest).unwrap();
    sink.delete(&key).await.unwrap();
    assert!(slices(&repo).await.is_empty());
    let early = repo.sweep(SET).await.unwrap();
    assert!(early.removed.is_empty());
    let report = repo.sweep(SET).now(Utc::now() + TimeDelta::days(7)).await.unwrap();
    assert_eq!(report.removed.iter().map(|s| s.id).collect::<Vec<_>>(), [slice]);
    assert!(!sink.keys().iter().any(|key| key.as_str().contains("/log/")));
    // Nothing was lost: it is taken again.
    catch_up(&repo, &log).await;
    assert_eq!(restored(&repo, Until::End).await, log.file.text_of(2));
}
