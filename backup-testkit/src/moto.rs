//! [`Moto`]: an S3 server for tests.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use crate::servers::{Found, Server, ServerCommand, find_server};
use crate::{free_port, http};

const SOMEBODY: &str =
    "AWS4-HMAC-SHA256 Credential=x/20261120/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=x";

/// A moto server (Python): S3 with conditions, versions, locks, lifecycle rules and access policies.
#[derive(Debug)]
pub struct Moto {
    server: Server,
}

impl Moto {
    /// Starts one, from `BACKUP_TEST_MOTO` (the program `moto_server`) or the `PATH`; `None` skips the test.
    pub async fn start() -> Option<Self> {
        Self::start_with(&[]).await
    }

    /// Starts one with access control: after `free` requests, each must be signed by a user whose policies allow it.
    pub async fn start_with_policies(free: u32) -> Option<Self> {
        Self::start_with(&[("INITIAL_NO_AUTH_ACTION_COUNT", &free.to_string())]).await
    }

    async fn start_with(environment: &[(&str, &str)]) -> Option<Self> {
        let program = std::env::var("BACKUP_TEST_MOTO").unwrap_or_else(|_| "moto_server".to_owned());
        // Not a server that runs already: tests set its policies and kill it.
        let Found::Binary(program) = find_server("moto", &[&program])? else { return None };
        let mut command = ServerCommand::new(program).args(["-H", "127.0.0.1", "-p", "{port}"]);
        for (name, value) in environment {
            command = command.env(name, value);
        }
        // Ready once it accepts: a request would count against the free ones.
        let server = command
            .start(async |port| tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok())
            .await;
        Some(Self { server })
    }

    /// Kills it at once, with everything it holds: its memory is all it has.
    pub fn kill(&self) {
        self.server.kill();
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.server.port()))
    }

    /// Its URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.address())
    }

    /// One request as somebody, with a signature that only a server without access control takes; answers status and
    /// body.
    pub async fn request(
        &self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> (u16, String) {
        let (head, body) = self.exchange(method, target, headers, body).await;
        (head.status(), body)
    }

    /// The headers of an object, by lower-case name.
    pub async fn headers(&self, target: &str) -> BTreeMap<String, String> {
        self.exchange("HEAD", target, &[], "").await.0.headers
    }

    async fn exchange(
        &self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> (http::Head, String) {
        let mut headers = headers.to_vec();
        if !headers.iter().any(|(name, _)| *name == "authorization") {
            headers.push(("authorization", SOMEBODY));
        }
        let (head, body) = http::request(self.server.port(), method, target, &headers, body.as_bytes())
            .await
            .unwrap_or_else(|e| panic!("{method} {target}: {e}\n{}", self.server.log()));
        (head, String::from_utf8_lossy(&body).into_owned())
    }

    /// Makes a bucket.
    pub async fn bucket(&self, name: &str) {
        let (status, body) = self.request("PUT", &format!("/{name}"), &[], "").await;
        assert_eq!(status, 200, "create bucket {name}: {body}");
    }

    /// The number of unfinished multipart uploads in a bucket.
    pub async fn unfinished_uploads(&self, bucket: &str) -> usize {
        let (status, body) = self.request("GET", &format!("/{bucket}?uploads"), &[], "").await;
        assert_eq!(status, 200, "{body}");
        body.matches("<UploadId>").count()
    }
}

/// An address of the loopback interface where nobody listens.
pub fn dead_address() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], free_port()))
}
