//! Credentials from profiles: a role that is assumed, and a program that prints them.

use std::os::unix::fs::PermissionsExt as _;

use backup_core::{ErrorKind, Key, ObjectKind, PutOptions, Sink as _, put_bytes};
use backup_s3::S3Sink;
use backup_testkit::Moto;

fn write(path: &std::path::Path, text: &str) {
    std::fs::write(path, text).expect("write");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_is_assumed_and_a_credential_process_is_asked() {
    let Some(moto) = Moto::start().await else { return };
    moto.bucket("tests").await;
    let dir = tempfile::tempdir().expect("a directory");
    let (config, credentials, program) =
        (dir.path().join("config"), dir.path().join("credentials"), dir.path().join("print keys"));
    write(
        &config,
        &format!(
            "[profile role]\nrole_arn = arn:aws:iam::123456789012:role/backup\nsource_profile = base\n\
            [profile process]\ncredential_process = \"{0}\" good\n[profile broken]\ncredential_process = \"{0}\" bad\n",
            program.display()
        ),
    );
    write(&credentials, "[base]\naws_access_key_id = AK\naws_secret_access_key = SK\n");
    write(
        &program,
        "#!/bin/sh\n[ \"$1\" = good ] || { echo '{\"SecretAccessKey\": \"very-secret\"'; exit 0; }\n\
        echo '{\"Version\": 1, \"AccessKeyId\": \"AK\", \"SecretAccessKey\": \"SK\", \"SessionToken\": \"T\"}'\n",
    );
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).expect("make it runnable");
    let sts = moto.url();
    let sink = |profile: &str| {
        S3Sink::builder()
            .endpoint(moto.url())
            .bucket("tests")
            .environment([
                ("AWS_CONFIG_FILE", config.to_str().expect("text")),
                ("AWS_SHARED_CREDENTIALS_FILE", credentials.to_str().expect("text")),
                ("AWS_ENDPOINT_URL_STS", sts.as_str()),
            ])
            .profile(profile)
            .build()
            .expect("a sink")
    };
    let key = Key::parse("x").expect("a key");
    for profile in ["role", "process"] {
        put_bytes(&sink(profile), &key, "x".into(), PutOptions::overwrite(ObjectKind::Note))
            .await
            .unwrap_or_else(|e| panic!("{profile}: {}", e.chain()));
        assert_eq!(sink(profile).sweep(std::time::Duration::ZERO).await.expect("a request of our own"), 0);
    }
    let error = sink("broken").head(&key).await.expect_err("no credentials");
    assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{}", error.chain());
    assert!(error.chain().contains("credential process"), "{}", error.chain());
    assert!(!format!("{error:?}{}", error.chain()).contains("very-secret"));
}
