//! Sinks on servers that tests start.

use std::net::SocketAddr;

use backup_s3::{AzureSink, ObjectStoreSink, S3, S3Sink, SinkBuilder};
use backup_testkit::{Found, Server, ServerCommand, find_server, http};
use object_store::azure::{AzureAccessKey, AzureAuthorizer, AzureCredential};
use object_store::client::HttpRequestBody;

/// A builder for bucket `tests` on an S3 server without TLS.
pub(crate) fn s3(address: SocketAddr) -> SinkBuilder<S3> {
    S3Sink::builder()
        .without_environment()
        .endpoint(format!("http://{address}"))
        .bucket("tests")
        .region("us-east-1")
        .credentials("test-id", "test-secret")
}

/// A strict S3 server with one bucket, `tests`.
pub(crate) struct S3s {
    server: Server,
}

impl S3s {
    pub(crate) async fn start() -> Option<Self> {
        let program = std::env::var("BACKUP_TEST_S3S").unwrap_or_else(|_| "s3s-fs".to_owned());
        let Found::Binary(program) = find_server("s3s", &[&program])? else { return None };
        let command = ServerCommand::new(program);
        let made = command.tool("mkdir").args(["-p", "root/tests"]).status().expect("make the bucket");
        assert!(made.success(), "make the bucket");
        let command = command.args([
            "--host",
            "127.0.0.1",
            "--port",
            "{port}",
            "--access-key",
            "test-id",
            "--secret-key",
            "test-secret",
            "{dir}/root",
        ]);
        let server = command
            .start(async |port| tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok())
            .await;
        Some(Self { server })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.server.port()))
    }
}

/// The account every Azurite has (Microsoft Learn, "Use the Azurite emulator").
const ACCOUNT: &str = "devstoreaccount1";
const KEY: &str = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

/// An Azure emulator with one container, `tests`.
pub(crate) struct Azurite {
    server: Server,
}

impl Azurite {
    pub(crate) async fn start() -> Option<Self> {
        let program = std::env::var("BACKUP_TEST_AZURITE").unwrap_or_else(|_| "azurite-blob".to_owned());
        let Found::Binary(program) = find_server("azurite", &[&program])? else { return None };
        let command = ServerCommand::new(program).args([
            "--blobHost",
            "127.0.0.1",
            "--blobPort",
            "{port}",
            "-l",
            "{dir}",
            "--disableTelemetry",
            "--skipApiVersionCheck",
        ]);
        let server = command
            .start(async |port| tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok())
            .await;
        let azurite = Self { server };
        azurite.container("tests").await;
        Some(azurite)
    }

    fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}/{ACCOUNT}", self.server.port())
    }

    async fn container(&self, name: &str) {
        let target = format!("/{ACCOUNT}/{name}?restype=container");
        let mut request = ::http::Request::put(format!("http://127.0.0.1:{}{target}", self.server.port()))
            .header("content-length", "0")
            .body(HttpRequestBody::empty())
            .expect("a request");
        let key = AzureCredential::AccessKey(AzureAccessKey::try_new(KEY).expect("a key"));
        AzureAuthorizer::new(&key, ACCOUNT).try_authorize(&mut request).expect("sign");
        let headers: Vec<(&str, &str)> = request
            .headers()
            .iter()
            .filter(|(name, _)| *name != "content-length")
            .map(|(name, value)| (name.as_str(), value.to_str().expect("text")))
            .collect();
        let (head, body) =
            http::request(self.server.port(), "PUT", &target, &headers, b"").await.expect("create container");
        assert_eq!(head.status(), 201, "{}", String::from_utf8_lossy(&body));
    }

    pub(crate) fn sink(&self, prefix: &str) -> ObjectStoreSink {
        AzureSink::builder()
            .container("tests")
            .account(ACCOUNT)
            .access_key(KEY)
            .endpoint(self.endpoint())
            .prefix(prefix)
            .build()
            .expect("a sink")
    }
}

/// A prefix no other test uses.
pub(crate) fn prefix() -> String {
    use std::sync::atomic::{AtomicUsize, Ordering};
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    format!("test/{}", NEXT.fetch_add(1, Ordering::Relaxed))
}
