use std::time::Duration;

use backup_core::{AesGcm, KeepLast, Key, MemorySink, MemoryTarget, Repository};
use backup_testkit::noise;
use chrono::{TimeDelta, Utc};

use crate::support::*;

fn two() -> [MemorySink; 2] {
    [MemorySink::new(), MemorySink::new()]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_run_is_gone_on_with_and_only_the_rest_is_read() {
    let content = content();
    for done in 0..=ALL {
        let case = format!("after {done}");
        let sinks = dead(&two(), &content, done).await;
        let before: Vec<_> = sinks.iter().map(named_fork).collect();
        let (report, read) = resume(&over(sinks.clone()), &content).await;
        let report = report.unwrap();
        assert_eq!(report.adopted, done, "{case}");
        assert_eq!(read, names(done..ALL), "{case}");
        assert_eq!(report.plain_size, 5_370_001, "{case}");
        assert_whole(&sinks, &content, report.id, &case).await;
        // Whether the other run is dead cannot be known: nothing of it was touched.
        for (sink, before) in sinks.iter().zip(before) {
            assert!(before.keys().iter().all(|key| sink.get(key) == before.get(key)), "{case}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_failed_leaves_what_it_finished_and_the_next_clears_it_away() {
    let (content, sinks) = (content(), two());
    dead(&sinks, &content, 3).await;
    for sink in &sinks {
        assert!(over([sink.clone()]).backups(SET).await.unwrap().is_empty());
        let id = ids(sink)[0];
        assert!(!objects(sink, id).contains(&"pending.json".to_owned()), "a run that is over says so");
    }
    let (report, read) = resume(&over(sinks.clone()), &content).await;
    let report = report.unwrap();
    assert_eq!((report.adopted, read), (3, names(3..ALL)));
    assert_whole(&sinks, &content, report.id, "failed").await;
    assert_eq!(ids(&sinks[0]), [report.id], "nothing is left of the run that failed");
    assert_eq!(ids(&sinks[1]), [report.id]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_without_the_option_takes_over_and_leaves_nothing() {
    let content = content();
    let sinks = dead(&two(), &content, 3).await;
    let repo = over(sinks.clone());
    let watched = Watched::new(source(&content));
    let report = repo.backup(SET, &watched).await.unwrap();
    assert_eq!((report.adopted, watched.read()), (0, names(0..ALL)));
    assert_whole(&sinks, &content, report.id, "without").await;

    let sinks = two();
    let first = over(sinks.clone()).backup(SET, &source(&content)).resume().await.unwrap();
    assert_eq!(first.adopted, 0);
    assert_whole(&sinks, &content, first.id, "first").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn content_that_changed_is_never_taken_over_for_its_name() {
    let before = content();
    let sinks = dead(&two(), &before, ALL).await;
    let mut after = before;
    after.insert("part1".to_owned(), noise(5_000_000, 77));
    after.insert("part3".to_owned(), "2".into());
    after.remove("part4");
    after.insert("part9".to_owned(), "new".into());
    let (report, read) = resume(&over(sinks.clone()), &after).await;
    let report = report.unwrap();
    assert_eq!(report.adopted, 2);
    assert_eq!(read, ["part1", "part3", "part9"]);
    assert_whole(&sinks, &after, report.id, "changed").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_went_on_and_died_again_is_gone_on_with() {
    let content = content();
    let sinks = dead(&two(), &content, 1).await;
    let sinks = dead(&sinks, &content, 3).await;
    let (report, read) = resume(&over(sinks.clone()), &content).await;
    let report = report.unwrap();
    assert_eq!((report.adopted, read), (3, names(3..ALL)));
    assert_whole(&sinks, &content, report.id, "twice").await;
    // Wherever it is copied to, and however it is wrapped then.
    let third = MemorySink::new();
    let all = over([sinks[0].clone(), third.clone()]);
    all.replicate(SET, report.id).await.unwrap();
    assert_whole(std::slice::from_ref(&third), &content, report.id, "replicated").await;
    all.rotate(SET, &ring(&[2])).await.unwrap();
    let repo = Repository::builder().sink(third).transform(AesGcm::new(ring(&[2]))).build().unwrap();
    let target = MemoryTarget::new();
    repo.restore(SET).latest().into(&target).await.unwrap();
    assert_eq!(target.get("part1").as_ref(), content.get("part1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_keys_a_run_is_gone_on_with_as_well() {
    let (content, sink) = (content(), MemorySink::new());
    let repo = |sink: &MemorySink| Repository::builder().sink(sink.clone()).build().unwrap();
    repo(&sink).backup(SET, &Watched::dying(source(&content), 4)).resume().await.unwrap_err();
    let (report, read) = resume(&repo(&sink), &content).await;
    let report = report.unwrap();
    assert_eq!((report.adopted, read), (4, names(4..ALL)));
    assert!(repo(&sink).verify(SET, report.id).await.unwrap().is_intact());
    let target = MemoryTarget::new();
    repo(&sink).restore(SET).latest().into(&target).await.unwrap();
    assert!(content.iter().all(|(name, bytes)| target.get(name).as_ref() == Some(bytes)));
}

#[tokio::test(flavor = "multi_thread")]
async fn another_key_or_another_chain_begins_afresh() {
    let content = content();
    let dead = dead(&two(), &content, 3).await;
    let other = |sink: &MemorySink, key: u8, gzip: bool| {
        let builder = Repository::builder().sink(sink.clone());
        let builder = if gzip { builder.transform(backup_core::Gzip::default()) } else { builder };
        builder.transform(AesGcm::new(ring(&[key]))).build().unwrap()
    };
    for (key, gzip) in [(2, true), (1, false)] {
        let sink = named_fork(&dead[0]);
        let repo = other(&sink, key, gzip);
        let (report, read) = resume(&repo, &content).await;
        let report = report.unwrap();
        assert_eq!((report.adopted, read), (0, names(0..ALL)), "key {key}, gzip {gzip}");
        assert!(repo.verify(SET, report.id).await.unwrap().is_intact());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sinks_that_hold_different_artifacts_share_what_both_have() {
    let content = content();
    let sinks = dead(&two(), &content, 4).await;
    let id = ids(&sinks[0])[0];
    let note = |n: usize| Key::parse(format!("{SET}/{id}/part{n}.finished.json")).unwrap();
    sinks[0].remove(&note(0)).unwrap();
    sinks[1].remove(&note(2)).unwrap();
    let (report, read) = resume(&over(sinks.clone()), &content).await;
    let report = report.unwrap();
    assert_eq!(report.adopted, 2);
    assert_eq!(read, ["part0", "part2", "part4"]);
    assert_eq!(report.copies.len(), 2);
    assert_whole(&sinks, &content, report.id, "different").await;

    // A sink that has nothing of it: everything is read again, for both.
    let sinks = dead(&two(), &content, 4).await;
    let sinks = [sinks[0].clone(), MemorySink::new()];
    let (report, read) = resume(&over(sinks.clone()), &content).await;
    let report = report.unwrap();
    assert_eq!((report.adopted, read.len()), (0, ALL));
    assert_whole(&sinks, &content, report.id, "new sink").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_marker_that_ran_out_hinders_nothing_and_a_sweep_takes_the_rest() {
    let content = content();
    let sinks = dead(&two(), &content, 3).await;
    let id = ids(&sinks[0])[0];
    for sink in &sinks {
        let pending = Key::parse(format!("{SET}/{id}/pending.json")).unwrap();
        let expired = format!(
            r#"{{"format":1,"set":"{SET}","id":"{id}","expires":"{}"}}"#,
            (Utc::now() - TimeDelta::days(9)).to_rfc3339()
        );
        sink.replace(&pending, expired);
    }
    let swept: Vec<_> = sinks.iter().map(named_fork).collect();
    let repo = over(sinks.clone());
    let (report, read) = resume(&repo, &content).await;
    let report = report.unwrap();
    assert_eq!((report.adopted, read), (3, names(3..ALL)));
    let far = Utc::now() + TimeDelta::days(5);
    drop(repo.sweep(SET).now(far).grace(Duration::from_secs(60)).await.unwrap().into_result().unwrap());
    assert_eq!(ids(&sinks[0]), [report.id]);
    drop(repo.prune(SET, &KeepLast::new(1)).await.unwrap().into_result().unwrap());
    assert_whole(&sinks, &content, report.id, "after sweep and prune").await;

    // The sweep came first.
    let repo = over(swept.clone());
    drop(repo.sweep(SET).now(far).grace(Duration::from_secs(60)).await.unwrap().into_result().unwrap());
    assert!(ids(&swept[0]).is_empty());
    let (report, read) = resume(&repo, &content).await;
    assert_eq!((report.unwrap().adopted, read.len()), (0, ALL));
}
