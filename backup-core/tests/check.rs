//! What a check says before anything depends on it.
#![allow(clippy::unwrap_used, reason = "helpers of tests are not seen as tests")]

use std::time::Duration;

use backup_core::{CommandSource, ErrorKind, MemorySink, MemorySource, Repository};
use backup_testkit::{Fault, FaultySink, Operation, Rule};

#[tokio::test]
async fn a_check_names_what_would_fail_and_writes_nothing() {
    let (first, second) = (MemorySink::named("first"), MemorySink::named("second"));
    let faulty = FaultySink::new(second.clone());
    let repo = Repository::builder().sink(first.clone()).sink(faulty.clone()).retries(0, Duration::ZERO);
    let repo = repo.build().unwrap();
    let source = MemorySource::new().artifact("data", "x");
    let good = repo.check(&source).await;
    assert!(good.is_ok(), "{good:?}");
    assert_eq!(good.sinks.len(), 2);

    let absent = CommandSource::new(["no-such-program-here"]);
    let error = repo.check(&absent).await.into_result().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::SourceFailed);
    assert!(error.to_string().contains("no-such-program-here"), "{error}");

    faulty.arm(Rule::always().on(Operation::Probe).fault(Fault::retryable()));
    let found = repo.check(&source).await;
    assert!(!found.is_ok() && found.sinks[0].probe.is_ok() && found.sinks[1].probe.is_err());
    assert!(found.into_result().unwrap_err().to_string().contains("second"));
    assert_eq!(first.keys().len() + second.keys().len(), 0);
}
