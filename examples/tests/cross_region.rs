//! The job that copies backups to another region, as a process between two servers.

#![allow(clippy::unwrap_used, reason = "helpers of tests are not seen as tests")]

use std::process::{Command, Output};

use backup_core::{MemorySource, MemoryTarget, Repository};
use backup_s3::{ObjectStoreSink, S3Sink};
use backup_testkit::{Moto, noise};

const SET: &str = "books/data";
const LARGE: usize = 20 * 1024 * 1024;

fn sink(server: &Moto, bucket: &str) -> ObjectStoreSink {
    S3Sink::builder()
        .without_environment()
        .endpoint(server.url())
        .bucket(bucket)
        .prefix("backups")
        .credentials("test-id", "test-secret")
        .build()
        .unwrap()
}

fn run(from: &Moto, to: &Moto) -> Output {
    Command::new(env!("CARGO_BIN_EXE_cross_region"))
        .args([SET, "s3://frankfurt/backups", "eu-central-1", "s3://stockholm/backups", "eu-north-1"])
        .args([from.url(), to.url()])
        .env("AWS_ACCESS_KEY_ID", "test-id")
        .env("AWS_SECRET_ACCESS_KEY", "test-secret")
        .output()
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_backup_of_one_region_is_copied_to_the_other_and_stands_there_alone() {
    let (Some(frankfurt), Some(stockholm)) = (Moto::start().await, Moto::start().await) else { return };
    frankfurt.bucket("frankfurt").await;
    stockholm.bucket("stockholm").await;
    let here = Repository::builder().sink(sink(&frankfurt, "frankfurt")).build().unwrap();
    let source = MemorySource::new().artifact("large", noise(LARGE, 1)).artifact("small", "x");
    let done = here.backup(SET, &source).await.unwrap();

    let output = run(&frankfurt, &stockholm);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains(&done.id.to_string()) && !text.contains("not whole"), "{text}");

    let there = Repository::builder().sink(sink(&stockholm, "stockholm")).build().unwrap();
    assert!(there.verify(SET, done.id).await.unwrap().is_intact());
    let target = MemoryTarget::new();
    there.restore(SET).latest().into(&target).await.unwrap();
    assert!(target.get("large").unwrap() == noise(LARGE, 1));

    let again = run(&frankfurt, &stockholm);
    let text = String::from_utf8_lossy(&again.stdout).into_owned();
    assert!(again.status.success() && text.contains("0 objects copied"), "{text}");

    // With the region away the job says so, and fails.
    stockholm.kill();
    assert!(!run(&frankfurt, &stockholm).status.success());
}
