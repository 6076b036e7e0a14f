//! What was lost is said, and never skipped in silence.

use backup_core::{ErrorKind, MemorySink};

use crate::support::{Gaps, Log, SET, at, base, catch_up, follow, lose, repository, restored, slices};

#[tokio::test]
async fn without_a_base_there_is_nothing_to_follow() {
    let (log, sink) = (Log::new(), MemorySink::new());
    let repo = repository([&sink]);
    log.write(2);
    let error = follow(&repo, &log).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{}", error.chain());
    let here = log.file.position();
    log.write(2);
    let source = log.file.source();
    let report = repo.follow(SET, &source).starting_at(here.clone()).once().await.unwrap();
    assert_eq!((report.slices, &slices(&repo).await[0].0), (1, &here));
}

#[tokio::test]
async fn a_log_that_lost_its_beginning_stops_the_loop_until_a_new_base_begins_a_new_range() {
    for truncate in [false, true] {
        let (log, sink, gaps) = (Log::new(), MemorySink::new(), Gaps::default());
        let repo = repository([&sink]);
        log.write(2);
        base(&repo, &log).await;
        log.write(3);
        let end = catch_up(&repo, &log).await.position.unwrap();
        log.write(2);
        if truncate {
            log.file.truncate();
            log.write(1);
            log.file.rotate();
        } else {
            log.file.rotate();
            log.file.forget();
        }
        log.write(2);

        let source = log.file.source();
        let error = repo.follow(SET, &source).observer(gaps.clone()).once().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::LogGap, "{}", error.chain());
        assert_eq!(gaps.take(), [(None, end.clone(), None)]);
        assert_eq!(slices(&repo).await.len(), 1, "something was stored after a gap");

        base(&repo, &log).await;
        let begin = log.file.position();
        log.write(4);
        let report = repo.follow(SET, &source).observer(gaps.clone()).once().await.unwrap();
        assert_eq!(report.gaps, [(end.clone(), begin.clone())]);
        assert_eq!(gaps.take(), [(None, end.clone(), Some(begin.clone()))]);
        let last = i64::try_from(log.file.len()).unwrap();
        assert_eq!(restored(&repo, at(last)).await, log.file.text_until(at(last)));
        let ranges = repo.pitr_ranges(SET).await.unwrap();
        let found: Vec<_> = ranges.iter().map(|r| (r.from, r.to)).collect();
        assert_eq!(found, [(at(2), at(5)), (at(last - 4), at(last))]);
        assert_eq!((&ranges.gaps[0].from, &ranges.gaps[0].to), (&end, &begin));
    }
}

#[tokio::test]
async fn a_new_base_does_not_open_a_gap_while_the_source_still_has_the_log() {
    let (log, sink) = (Log::new(), MemorySink::new());
    let repo = repository([&sink]);
    base(&repo, &log).await;
    log.write(3);
    catch_up(&repo, &log).await;
    // Nobody follows for a while, and a base is made.
    log.write(3);
    base(&repo, &log).await;
    log.write(3);
    catch_up(&repo, &log).await;
    for second in 1..=9 {
        assert_eq!(restored(&repo, at(second)).await, log.file.text_until(at(second)));
    }
}

#[tokio::test]
async fn a_slice_that_vanished_everywhere_is_taken_again() {
    let (log, sink) = (Log::new(), MemorySink::new());
    let repo = repository([&sink]);
    base(&repo, &log).await;
    for _ in 0..3 {
        log.write(3);
        catch_up(&repo, &log).await;
    }
    lose(&sink, slices(&repo).await[1].2.id).await;
    log.write(1);
    catch_up(&repo, &log).await;
    assert!(repo.pitr_ranges(SET).await.unwrap().gaps.is_empty());
    for second in 1..=10 {
        assert_eq!(restored(&repo, at(second)).await, log.file.text_until(at(second)));
    }
}
