//! Roles: what each policy of `docs/object-storage.md` allows, with moto's access control on.

use std::path::Path;

use backup_core::{ErrorKind, Key, MemorySource, ObjectKind, PutOptions, Repository, Sink as _, put_bytes};
use backup_s3::ObjectStoreSink;
use backup_testkit::{Moto, noise};

use crate::servers::s3;

/// Requests that set up bucket, user, policy and key before access control begins.
const SET_UP: u32 = 4;

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

/// A server where only a user with this role's policy may do anything.
async fn as_role(role: &str) -> Option<(Moto, ObjectStoreSink)> {
    let moto = Moto::start_with_policies(SET_UP).await?;
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
    iam("Action=CreateUser&Version=2010-05-08&UserName=u".to_owned()).await;
    let document = encoded(&policy(role));
    iam(format!("Action=PutUserPolicy&Version=2010-05-08&UserName=u&PolicyName=p&PolicyDocument={document}"))
        .await;
    let key = iam("Action=CreateAccessKey&Version=2010-05-08&UserName=u".to_owned()).await;
    let (id, secret) = (between(&key, "AccessKeyId"), between(&key, "SecretAccessKey"));
    let sink = s3(moto.address()).prefix("books").credentials(id, secret).build().expect("a sink");
    Some((moto, sink))
}

fn codes(warnings: &[backup_core::Warning]) -> Vec<&str> {
    warnings.iter().map(|w| w.code.as_ref()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_without_delete_backs_up_and_is_told_who_must_prune() {
    let Some((_moto, sink)) = as_role("Writer").await else { return };
    let warnings = sink.probe().await.expect("probe");
    assert!(codes(&warnings).contains(&"delete-denied"), "{warnings:?}");
    assert!(!codes(&warnings).contains(&"read-only"), "{warnings:?}");
    let repository = Repository::builder().sink(sink.clone()).build().expect("a repository");
    let source = MemorySource::new().artifact("large", noise(30 * 1024 * 1024, 1)).artifact("small", "x");
    let done = repository.backup("set", &source).await.expect("a backup");
    let report = repository.verify("set", done.id).await.expect("verify");
    assert!(report.is_intact(), "{report:?}");
    let object =
        Key::parse("set").and_then(|k| k.join(done.id.to_string())).and_then(|k| k.join("manifest.json"));
    let error = sink.delete(&object.expect("a key")).await.expect_err("a writer may not delete");
    assert_eq!(error.kind(), ErrorKind::PermissionDenied);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restorer_reads_and_cannot_write() {
    let Some((_moto, sink)) = as_role("Restorer").await else { return };
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
    let Some((_moto, sink)) = as_role("Pruner").await else { return };
    sink.delete(&Key::parse("set/x").expect("a key")).await.expect("a pruner may delete");
    sink.sweep(std::time::Duration::ZERO).await.expect("a pruner may sweep");
    let key = Key::parse("set/condemned").expect("a key");
    put_bytes(&sink, &key, "x".into(), PutOptions::create_new(ObjectKind::Note)).await.expect("a marker");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_secret_is_named_and_not_shown() {
    let Some((moto, _)) = as_role("Writer").await else { return };
    let sink = s3(moto.address()).credentials("AKIAUNKNOWN", "very-secret").build().expect("a sink");
    let error = sink.probe().await.expect_err("nobody knows this key");
    assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{}", error.chain());
    assert!(error.to_string().contains("credentials"), "{error}");
    assert!(!format!("{error:?}{}", error.chain()).contains("very-secret"));
}
