use super::*;

fn address(endpoint: Option<&str>, bucket: &str, region: &str) -> Address {
    Address::new(endpoint, bucket, region, None).unwrap()
}

#[test]
fn amazon_is_addressed_by_host_and_others_by_path() {
    assert_eq!(address(None, "b", "eu-west-1").url, "https://b.s3.eu-west-1.amazonaws.com");
    assert_eq!(address(None, "b.c", "eu-west-1").url, "https://s3.eu-west-1.amazonaws.com/b.c");
    assert_eq!(address(None, "b", "cn-north-1").url, "https://b.s3.cn-north-1.amazonaws.com.cn");
    assert_eq!(address(Some("https://minio:9000/"), "b", "x").url, "https://minio:9000/b");
    let hosted = Address::new(Some("https://store.example"), "b", "x", Some(true)).unwrap();
    assert_eq!(hosted.url, "https://b.store.example");
}

#[test]
fn an_endpoint_with_a_password_or_a_hostile_bucket_is_refused() {
    for bad in ["https://id:secret@host", "ftp://host", "host", "https://host?x=secret"] {
        let error = Address::new(Some(bad), "b", "r", None).unwrap_err();
        assert!(!error.to_string().contains("secret"), "{error}");
    }
    for bad in ["b/../c", "b c", "b@evil.example/", "b#"] {
        assert!(Address::new(None, bad, "r", None).is_err(), "{bad}");
    }
}

fn with_environment(variables: &[(&str, &str)]) -> SinkBuilder<S3> {
    let environment = variables.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    SinkBuilder::with(S3 { environment, ..S3::default() })
}

#[test]
fn the_environment_configures_and_the_builder_goes_first() {
    let sink = with_environment(&[
        ("AWS_BUCKET", "from-env"),
        ("AWS_ACCESS_KEY_ID", "AKID"),
        ("AWS_SECRET_ACCESS_KEY", "very-secret"),
    ])
    .prefix("/a/")
    .build()
    .unwrap();
    assert_eq!(backup_core::Sink::id(&sink).as_str(), "s3://from-env/a");
    let sink = with_environment(&[("AWS_BUCKET", "from-env")]).bucket("mine").id("offsite").build().unwrap();
    assert_eq!(backup_core::Sink::id(&sink).as_str(), "offsite");
}

#[test]
fn no_secret_is_shown() {
    let builder =
        with_environment(&[("AWS_SECRET_ACCESS_KEY", "very-secret"), ("AWS_ACCESS_KEY_ID", "AKID")])
            .bucket("b")
            .session("AKID", "very-secret", "very-secret")
            .server_side_encryption(Encryption::Customer { key_base64: "very-secret".into() });
    assert!(
        !format!("{builder:?} {:?} {:?}", builder.provider, builder.provider.encryption)
            .contains("very-secret")
    );
    let sink = with_environment(&[("AWS_SECRET_ACCESS_KEY", "very-secret"), ("AWS_ACCESS_KEY_ID", "AKID")])
        .bucket("b")
        .build()
        .unwrap();
    assert!(!format!("{sink:?}").contains("very-secret"));
}

#[test]
fn plain_http_needs_permission_unless_it_stays_here() {
    let open =
        |endpoint: &str| with_environment(&[]).bucket("b").endpoint(endpoint).credentials("a", "b").build();
    assert!(open("http://127.0.0.1:9000").is_ok() && open("http://[::1]:9000").is_ok());
    let error = open("http://store.example").unwrap_err();
    assert!(error.to_string().contains("allow_http"), "{error}");
    assert!(
        with_environment(&[])
            .bucket("b")
            .endpoint("http://store.example")
            .allow_http()
            .credentials("a", "b")
            .build()
            .is_ok()
    );
}

#[test]
fn a_profile_gives_region_endpoint_and_keys() {
    let dir = tempfile::tempdir().unwrap();
    let (config, credentials) = (dir.path().join("config"), dir.path().join("credentials"));
    std::fs::write(&config, "[profile nas]\nregion = home\nendpoint_url = https://nas.example:9000\n")
        .unwrap();
    std::fs::write(&credentials, "[nas]\naws_access_key_id=AK\naws_secret_access_key=SK\n").unwrap();
    let environment = [
        ("AWS_CONFIG_FILE", config.to_str().unwrap()),
        ("AWS_SHARED_CREDENTIALS_FILE", credentials.to_str().unwrap()),
    ];
    assert!(with_environment(&environment).bucket("b").profile("nas").build().is_ok());
    let error = with_environment(&environment).bucket("b").profile("other").build().unwrap_err();
    assert!(error.to_string().contains("other"), "{error}");
}
