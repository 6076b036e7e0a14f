//! Two sinks, one of which fails or loses slices.

use backup_core::{MemorySink, Until};
use backup_testkit::{Fault, FaultySink, Operation, Rule};

use crate::support::{ALL, Gaps, Log, SET, at, base, catch_up, lose, repository, restored, slices};

#[tokio::test]
async fn a_sink_that_fails_for_some_slices_gets_them_later_and_the_source_keeps_them_until_then() {
    let (log, a, inner) = (Log::new(), MemorySink::named("a"), MemorySink::named("b"));
    let b = FaultySink::new(inner.clone());
    let repo = repository([&a, &b]);
    log.write(2);
    base(&repo, &log).await;
    let source = log.file.source();
    let follow = || repo.follow(SET, &source).slice(std::time::Duration::from_secs(60), ALL).once();
    log.write(2);
    let first = follow().await.unwrap();
    assert_eq!((first.slices, first.degraded), (1, 0));
    let safe = source.released();
    assert_eq!(safe, first.position);

    b.arm(Rule::always().on(Operation::Create).fault(Fault::permanent()));
    let mut ends = Vec::new();
    for _ in 0..3 {
        log.write(2);
        let report = follow().await.unwrap();
        assert_eq!((report.slices, report.degraded), (1, 1));
        assert!(report.lacking.len() > ends.len(), "{:?}", report.lacking);
        ends.push(report.position.unwrap());
        assert_eq!(source.released(), safe, "the source was told to forget what only one sink has");
    }
    // Not behind because of the other.
    assert_eq!(restored(&repository([&a]), Until::End).await, log.file.text_of(10));

    b.disarm();
    log.write(2);
    let report = follow().await.unwrap();
    assert!(report.lacking.is_empty(), "{:?}", report.lacking);
    assert_eq!(source.released(), report.position);
    for sink in [&a, &inner] {
        let alone = repository([sink]);
        assert_eq!(restored(&alone, Until::End).await, log.file.text_of(12));
        for slice in slices(&alone).await {
            assert!(alone.verify(SET, slice.2.id).await.unwrap().is_intact());
        }
    }
}

#[tokio::test]
async fn a_slice_missing_on_one_sink_is_named_and_replicated() {
    let (log, a, b) = (Log::new(), MemorySink::named("a"), MemorySink::named("b"));
    let repo = repository([&a, &b]);
    base(&repo, &log).await;
    for _ in 0..4 {
        log.write(3);
        catch_up(&repo, &log).await;
    }
    let all = slices(&repo).await;
    lose(&b, all[1].2.id).await;
    lose(&b, all[2].2.id).await;
    let report = repo.pitr_ranges(SET).await.unwrap();
    assert!(report.gaps.is_empty() && report.sinks[0].gaps.is_empty());
    assert_eq!((&report.sinks[1].gaps[0].from, &report.sinks[1].gaps[0].to), (&all[0].1, &all[3].0));
    assert_eq!(report.sinks[1].ranges[0].to, at(3));

    let (gaps, source) = (Gaps::default(), log.file.source());
    log.write(1);
    repo.follow(SET, &source).observer(gaps.clone()).once().await.unwrap();
    assert_eq!(gaps.take(), [(Some("b".to_owned()), all[1].0.clone(), Some(all[2].1.clone()))]);
    assert_eq!(restored(&repository([&b]), Until::End).await, log.file.text_of(13));
}
