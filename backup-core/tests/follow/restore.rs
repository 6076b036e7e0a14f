//! Restores to a moment, to a position, and to the end.

use backup_core::{ErrorKind, MemorySink, MemoryTarget, Until};
use backup_testkit::LogTarget;

use crate::support::{Log, SET, at, base, catch_up, lose, repository, restored, slices};

#[tokio::test]
async fn every_moment_between_and_within_slices_can_be_restored() {
    let (log, sink) = (Log::new(), MemorySink::new());
    let repo = repository([&sink]);
    log.write(5);
    base(&repo, &log).await;
    let mut ends = vec![log.file.position()];
    for n in 0..4 {
        log.write(7);
        if n == 1 {
            log.file.rotate();
            log.write(3);
        }
        ends.push(log.file.position());
        assert_eq!(catch_up(&repo, &log).await.slices, 1);
        if n == 2 {
            // A later base in between: moments before it need the earlier one.
            base(&repo, &log).await;
        }
    }
    let lines = log.file.len();
    for second in 5..=i64::try_from(lines).unwrap() {
        assert_eq!(restored(&repo, at(second)).await, log.file.text_until(at(second)), "second {second}");
    }
    for end in &ends {
        assert_eq!(restored(&repo, end.clone()).await, log.file.text_to(end), "{end}");
    }
    assert_eq!(restored(&repo, Until::End).await, log.file.text_of(lines));

    let ranges = repo.pitr_ranges(SET).await.unwrap();
    assert_eq!((ranges[0].from, ranges[0].to), (at(5), at(i64::try_from(lines).unwrap())), "{ranges}");
    assert!(ranges.len() == 1 && ranges.gaps.is_empty());

    let target = LogTarget::new();
    for (until, kind) in [(at(4), ErrorKind::NotFound), (at(1_000), ErrorKind::LogGap)] {
        let error = repo.restore(SET).until(until).into(&target).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{}", error.chain());
    }
    assert_eq!(target.text(), None);
}

#[tokio::test]
async fn a_restore_across_a_gap_is_refused_before_anything_is_touched() {
    let (log, sink) = (Log::new(), MemorySink::new());
    let repo = repository([&sink]);
    log.write(2);
    let first = base(&repo, &log).await;
    for _ in 0..3 {
        log.write(2);
        catch_up(&repo, &log).await;
    }
    let all = slices(&repo).await;
    lose(&sink, all[1].2.id).await;
    let target = LogTarget::new();
    let error = repo.restore(SET).id(first).until(at(7)).into(&target).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::LogGap, "{}", error.chain());
    assert_eq!(error.context_value("reached"), Some(all[0].1.as_str()));
    assert_eq!(target.text(), None);
    assert_eq!(restored(&repo, at(4)).await, log.file.text_of(4));

    let report = repo.pitr_ranges(SET).await.unwrap();
    assert_eq!((report[0].from, report[0].to), (at(2), at(4)));
    assert_eq!((&report.gaps[0].from, &report.gaps[0].to), (&all[0].1, &all[2].0));
    assert!(report.to_string().contains("the log lacks"), "{report}");
}

#[tokio::test]
async fn slices_that_overlap_are_applied_once() {
    let (log, a, b) = (Log::new(), MemorySink::named("a"), MemorySink::named("b"));
    log.write(3);
    // Two that follow the same log without knowing of each other, into what becomes one repository.
    let (left, right) = (repository([&a]), repository([&b]));
    base(&left, &log).await;
    right.backup(SET, &log.file.state()).await.unwrap();
    log.write(4);
    catch_up(&left, &log).await;
    log.write(3);
    catch_up(&right, &log).await;
    log.write(2);
    catch_up(&left, &log).await;
    let both = repository([&a, &b]);
    // From the fourth line to the seventh, and to the tenth; from the eighth to the last.
    assert_eq!(slices(&both).await.len(), 3);
    for second in 3..=12 {
        assert_eq!(restored(&both, at(second)).await, log.file.text_until(at(second)));
    }
    let report = both.pitr_ranges(SET).await.unwrap();
    assert_eq!((report.len(), report[0].to), (1, at(12)));
    assert_eq!(report.sinks.iter().map(|s| s.ranges[0].to).collect::<Vec<_>>(), [at(12), at(10)]);
}

#[tokio::test]
async fn what_cannot_be_replayed_is_refused() {
    let (log, sink) = (Log::new(), MemorySink::new());
    let repo = repository([&sink]);
    base(&repo, &log).await;
    log.write(3);
    let slice = catch_up(&repo, &log).await.newest.unwrap();
    let target = LogTarget::new();
    let alone = repo.restore(SET).id(slice).into(&target).await.unwrap_err();
    assert_eq!(alone.kind(), ErrorKind::InvalidInput, "{}", alone.chain());
    // A target that knows nothing of logs.
    let other = MemoryTarget::new();
    let error = repo.restore(SET).until(Until::End).into(&other).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{}", error.chain());
    assert!(other.is_empty());
    let latest = repo.restore(SET).latest().into(&target).await.unwrap();
    assert!(latest.replayed.is_none(), "latest is a backup, not a slice");
}
