//! Roles: what each policy of `docs/object-storage.md` allows, with moto's access control on.

use std::path::Path;

use backup_core::{
    ErrorKind, KeepLast, Key, MemorySource, ObjectKind, PutOptions, Repository, Sink as _, put_bytes,
};
use backup_s3::ObjectStoreSink;
use backup_testkit::{Moto, noise};

use crate::servers::s3;

/// The JSON of a role in the documentation, for the bucket of the tests.
fn policy(role: &str) -> String {
    let guide = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/object-storage.md");
    let guide = std::fs::read_to_string(guide).expect("docs/object-storage.md");
    let section =
        guide.split("\n### ").find(|s| s.starts_with(role)).unwrap_or_else(|| panic!("no role {role}"));
    let json =
        section.split_once("```json\n").and_then(|(_, rest)| rest.split_once("```")).expect("a policy").0;
    json.replace("BUCKET", "tests").replace("PREFIX", "books")
}

fn between(text: &str, name: &str) -> String {
    let rest = text.split_once(&format!("<{name}>")).unwrap_or_else(|| panic!("{name} in {text}")).1;
    rest.split_once('<').expect("an end").0.to_owned()
}

fn encoded(text: &str) -> String {
    use std::fmt::Write as _;
    text.bytes().fold(String::new(), |mut out, b| {
        let _ = write!(out, "%{b:02X}");
        out
    })
}

/// A server where only users with the policies of these roles may do anything, and a sink for each.
async fn as_roles<const N: usize>(roles: [&str; N]) -> Option<(Moto, [ObjectStoreSink; N])> {
    // The bucket; then user, policy and key of each role.
    let set_up = 1 + 3 * u32::try_from(N).expect("a few roles");
    let moto = Moto::start_with_policies(set_up).await?;
    moto.bucket("tests").await;
    let scope = "Credential=x/20261120/us-east-1/iam/aws4_request";
    let authorization = format!("AWS4-HMAC-SHA256 {scope}, SignedHeaders=host, Signature=x");
    let headers =
        [("authorization", authorization.as_str()), ("content-type", "application/x-www-form-urlencoded")];
    let iam = async |form: String| {
        let (status, body) = moto.request("POST", "/", &headers, &form).await;
        assert_eq!(status, 200, "{form}: {body}");
        body
    };
    let mut sinks = Vec::new();
    for role in roles {
        iam(format!("Action=CreateUser&Version=2010-05-08&UserName={role}")).await;
        let document = encoded(&policy(role));
        iam(format!(
            "Action=PutUserPolicy&Version=2010-05-08&UserName={role}&PolicyName=p&PolicyDocument={document}"
        ))
        .await;
        let key = iam(format!("Action=CreateAccessKey&Version=2010-05-08&UserName={role}")).await;
        let (id, secret) = (between(&key, "AccessKeyId"), between(&key, "SecretAccessKey"));
        sinks.push(s3(moto.address()).prefix("books").credentials(id, secret).build().expect("a sink"));
    }
    let sinks = sinks.try_into().unwrap_or_else(|_| panic!("one sink a role"));
    Some((moto, sinks))
}

fn codes(warnings: &[backup_core::Warning]) -> Vec<&str> {
    warnings.iter().map(|w| w.code.as_ref()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_without_delete_backs_up_and_is_told_who_must_prune() {
    let Some((_moto, [sink, pruner])) = as_roles(["Writer", "Pruner"]).await else { return };
    let warnings = sink.probe().await.expect("probe");
    assert!(codes(&warnings).contains(&"delete-denied"), "{warnings:?}");
    assert!(!codes(&warnings).contains(&"read-only"), "{warnings:?}");
    let repository = Repository::builder().sink(sink.clone()).build().expect("a repository");
    let source = MemorySource::new().artifact("large", noise(30 * 1024 * 1024, 1)).artifact("small", "x");
    let days_ago = |days| chrono::Utc::now() - chrono::TimeDelta::days(days);
    let small = MemorySource::new().artifact("small", "y");
    for days in [3, 2] {
        repository.backup("set", &small).started_at(days_ago(days)).await.expect("an older backup");
    }
    let done = repository.backup("set", &source).await.expect("a backup");
    let report = repository.verify("set", done.id).await.expect("verify");
    assert!(report.is_intact(), "{report:?}");

    let error = repository.prune("set", &KeepLast::new(2)).await.expect_err("a writer may not delete");
    assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{}", error.chain());
    assert!(error.chain().contains("run the prune with an account that may"), "{}", error.chain());
    let list = repository.backups("set").await.expect("list");
    assert_eq!((list.len(), list.unreadable.len()), (3, 0), "nothing is gone, and nothing half deleted");

    let pruning = Repository::builder().sink(pruner).build().expect("a repository");
    // A writer cannot delete the markers of its runs: the pruner waits until they have expired.
    let later = chrono::Utc::now() + chrono::TimeDelta::days(4);
    let report = pruning.prune("set", &KeepLast::new(2)).now(later).await;
    let report = report.and_then(backup_core::PruneReport::into_result).expect("a pruner may");
    assert_eq!(report.deleted.len(), 1, "{report}");
    let listed: Vec<_> = repository.backups("set").await.expect("list").iter().map(|b| b.id).collect();
    assert_eq!(listed, [list[0].id, list[1].id]);
    for id in listed {
        assert!(repository.verify("set", id).await.expect("verify").is_intact());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restorer_reads_and_cannot_write() {
    let Some((_moto, [sink])) = as_roles(["Restorer"]).await else { return };
    let warnings = sink.probe().await.expect("a restorer may open the sink");
    assert!(codes(&warnings).contains(&"read-only"), "{warnings:?}");
    let key = Key::parse("x").expect("a key");
    let error = put_bytes(&sink, &key, "x".into(), PutOptions::create_new(ObjectKind::Note))
        .await
        .expect_err("denied");
    assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{}", error.chain());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pruner_deletes_and_sweeps() {
    let Some((_moto, [sink])) = as_roles(["Pruner"]).await else { return };
    sink.delete(&Key::parse("set/x").expect("a key")).await.expect("a pruner may delete");
    sink.sweep(std::time::Duration::ZERO).await.expect("a pruner may sweep");
    let key = Key::parse("set/condemned").expect("a key");
    put_bytes(&sink, &key, "x".into(), PutOptions::create_new(ObjectKind::Note)).await.expect("a marker");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_secret_is_named_and_not_shown() {
    let Some((moto, _)) = as_roles(["Writer"]).await else { return };
    let sink = s3(moto.address()).credentials("AKIAUNKNOWN", "very-secret").build().expect("a sink");
    let error = sink.probe().await.expect_err("nobody knows this key");
    assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{}", error.chain());
    assert!(error.to_string().contains("credentials"), "{error}");
    assert!(!format!("{error:?}{}", error.chain()).contains("very-secret"));
}
