//! A fault at every sink call of a run that takes over: a right backup or a loud failure, and the next run is right.

use std::time::Duration;

use backup_core::{AesGcm, ErrorKind, Gzip, MemorySink, Repository, Sink};
use backup_testkit::{Fault, FaultySink, Rule};
use futures::StreamExt as _;

use crate::support::*;

const FAULTS: [Fault; 5] = [
    Fault::Fail { kind: ErrorKind::Io, retryable: false },
    Fault::LostReply { retryable: false },
    Fault::Hang,
    Fault::Cut,
    Fault::Short { kind: ErrorKind::StorageFull },
];
/// Far above what the slowest case needs; reached only by a run that hangs.
const HUNG: Duration = Duration::from_secs(60);

fn impatient(sink: impl Sink + 'static) -> Repository {
    let builder = Repository::builder().sink(sink);
    let builder = builder.transform(Gzip::default()).transform(AesGcm::new(ring(&[1])));
    builder.stall_timeout(Duration::from_millis(250)).retries(0, Duration::from_millis(1)).build().unwrap()
}

async fn judge(dead: MemorySink, fault: Fault, nth: u64) -> bool {
    let (content, case) = (content(), format!("{fault:?} at call {nth}"));
    let faulty = FaultySink::new(dead.clone());
    faulty.arm(Rule::nth(nth).fault(fault));
    let (result, read) = resume(&impatient(faulty.clone()), &content).await;
    match &result {
        Ok(report) => {
            assert_eq!(report.adopted + read.len(), ALL, "{case}");
            let list = over([dead.clone()]).backups(SET).await.unwrap();
            assert_eq!(list.len(), 1, "{case}");
            assert!(over([dead.clone()]).verify(SET, report.id).await.unwrap().is_intact(), "{case}");
        }
        Err(error) => {
            assert_ne!(error.kind(), ErrorKind::Internal, "{case}: {}", error.chain());
            assert!(faulty.faults() > 0, "{case}: {}", error.chain());
        }
    }
    let (again, _) = resume(&over([dead.clone()]), &content).await;
    let again = again.unwrap_or_else(|e| panic!("after {case}: {}", e.chain()));
    assert_whole(&[dead], &content, again.id, &case).await;
    result.is_err()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fault_at_any_call_leaves_a_whole_backup_or_a_loud_failure() {
    let template = dead(&[MemorySink::new()], &content(), 3).await.remove(0);
    let counting = FaultySink::new(named_fork(&template));
    let (report, _) = resume(&over([counting.clone()]), &content()).await;
    assert_eq!(report.unwrap().adopted, 3);
    let calls = counting.total();
    let cases = (1..=calls).flat_map(|nth| FAULTS.map(|fault| (fault, nth)));
    let running = cases.map(|(fault, nth)| {
        let sink = named_fork(&template);
        async move {
            let work = tokio::spawn(tokio::time::timeout(HUNG, judge(sink, fault, nth)));
            work.await.unwrap().unwrap_or_else(|_| panic!("{fault:?} at call {nth} hangs"))
        }
    });
    let failed: Vec<bool> = futures::stream::iter(running).buffer_unordered(16).collect().await;
    let loud = failed.iter().filter(|failed| **failed).count();
    assert!(failed.len() >= 200 && loud * 4 > failed.len(), "{loud} of {} failed", failed.len());
}
