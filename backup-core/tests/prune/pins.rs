//! Pins.

use backup_core::{ErrorKind, KeepLast, MemorySink};

use crate::support::*;

#[tokio::test]
async fn a_pinned_backup_stays_until_it_is_unpinned() {
    let (first, second) = (MemorySink::new(), MemorySink::new());
    let repo = repository([&first, &second]);
    let mut ids = Vec::new();
    for day in 0..4 {
        ids.push(full(&repo, day).await);
    }
    repo.pin(SET, ids[0]).await.unwrap();
    repo.pin(SET, ids[0]).await.unwrap();
    let list = repo.backups(SET).await.unwrap();
    assert_eq!(list.iter().filter(|b| b.pinned).map(|b| b.id).collect::<Vec<_>>(), [ids[0]]);
    assert!(repo.verify(SET, ids[0]).await.unwrap().is_intact());

    let plan = repo.prune(SET, &KeepLast::new(2)).now(at(5)).plan().await.unwrap();
    assert!(plan.to_string().contains("pinned"), "{plan}");
    plan.execute().await.unwrap().into_result().unwrap();
    assert_eq!(held(&first), [ids[0], ids[2], ids[3]]);
    assert_eq!(held(&second), held(&first));

    repo.unpin(SET, ids[0]).await.unwrap();
    repo.unpin(SET, ids[0]).await.unwrap();
    repo.prune(SET, &KeepLast::new(2)).now(at(5)).await.unwrap().into_result().unwrap();
    assert_eq!(held(&second), ids[2..]);
    assert_tidy(&second);
}

#[tokio::test]
async fn a_pin_on_one_sink_keeps_the_copies_on_the_others() {
    let (first, second) = (MemorySink::new(), MemorySink::new());
    let both = repository([&first, &second]);
    let pinned = full(&both, 0).await;
    full(&both, 1).await;
    full(&both, 2).await;
    repository([&first]).pin(SET, pinned).await.unwrap();
    both.prune(SET, &KeepLast::new(1)).now(at(3)).await.unwrap().into_result().unwrap();
    assert!(held(&first).contains(&pinned) && held(&second).contains(&pinned));
}

#[tokio::test]
async fn a_pin_set_after_the_plan_was_made_is_respected() {
    let (sink, ids) = daily(0..4).await;
    let repo = repository([&sink]);
    let plan = repo.prune(SET, &KeepLast::new(2)).now(at(4)).plan().await.unwrap();
    repo.pin(SET, ids[0]).await.unwrap();
    let report = plan.execute().await.unwrap().into_result().unwrap();
    assert_eq!(report.spared.len(), 1);
    assert!(report.spared[0].why.contains("pinned"), "{}", report.spared[0].why);
    assert_eq!(held(&sink), [ids[0], ids[2], ids[3]]);
    assert!(!sink.keys().iter().any(|key| key.as_str().contains("condemned")), "its marker is taken back");
}

#[tokio::test]
async fn what_is_not_there_or_about_to_go_is_not_pinned_silently() {
    let (sink, ids) = daily(0..2).await;
    let repo = repository([&sink]);
    let nothing = backup_core::BackupId::new(at(9), 9);
    assert_eq!(repo.pin(SET, nothing).await.unwrap_err().kind(), ErrorKind::NotFound);
    assert!(!traces(&sink).contains(&nothing));
    sink.replace(&object(ids[0], "condemned/0123456789abcdef.json"), "{}");
    assert_eq!(repo.pin(SET, ids[0]).await.unwrap_err().kind(), ErrorKind::PruneRefused);
    assert!(repo.backups(SET).await.unwrap()[1].pinned, "if the prune is dead, the pin holds");
}
