//! The embedded service, as a process: it takes data, backs it up by itself, shows it, and ends when told to.

#![allow(clippy::unwrap_used, reason = "helpers of tests are not seen as tests")]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use backup_core::{Repository, Zstd};
use backup_fs::{DirectoryTarget, LocalSink};
use serde_json::Value;

/// The running service; stopped when dropped.
struct Running {
    child: Child,
    address: String,
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn start(dir: &Path) -> Running {
    let mut child = Command::new(env!("CARGO_BIN_EXE_embedded"))
        .arg(dir.join("data"))
        .arg(dir.join("backups"))
        .args(["--listen", "127.0.0.1:0", "--every", "1"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let address = line.trim().strip_prefix("listening on ").unwrap().to_owned();
    Running { child, address }
}

impl Running {
    /// Sends a request; returns the status and the body.
    fn ask(&self, request: &str, body: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let length = body.len();
        write!(
            stream,
            "{request} HTTP/1.1\r\nhost: test\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }

    /// The JSON of `path` as soon as `wanted` is content with it.
    fn wait_for(&self, path: &str, wanted: impl Fn(u16, &Value) -> bool) -> Value {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let (status, body) = self.ask(&format!("GET {path}"), "");
            let value = serde_json::from_str(&body).unwrap();
            if wanted(status, &value) {
                return value;
            }
            assert!(Instant::now() < deadline, "{path} still says {status} {body}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

#[test]
fn a_service_backs_up_its_own_data_and_shows_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut service = start(dir.path());
    assert_eq!(service.ask("PUT /notes/first", "remember this").0, 200);
    assert_eq!(service.ask("GET /notes/first", ""), (200, "remember this".to_owned()));
    assert_eq!(service.ask("GET /notes/none", "").0, 404);
    assert_eq!(service.ask("PUT /notes/..%2Fescape", "x").0, 400);

    let count = |value: &Value| value.as_array().map_or(0, Vec::len);
    let before = count(&service.wait_for("/backups", |_, _| true));
    // One that began after the note was taken.
    let list = service.wait_for("/backups", |_, list| count(list) >= before + 2);
    let newest = &list[0];
    assert_eq!((&newest["set"], &newest["source_kind"]), (&"embedded/notes".into(), &"directory".into()));
    assert_eq!(newest["degraded"], false);
    assert!(newest["started"].as_str() > list[1]["started"].as_str());
    let health = service.wait_for("/health", |status, health| status == 200 && health["ok"] == true);
    assert!(health["newest"].is_string() && health["trouble"].is_null(), "{health}");

    let pid = service.child.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    assert!(service.child.wait().unwrap().success());

    // What it showed is there, and the note is in it; nothing half-done was left.
    let back = dir.path().join("back");
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let sink = LocalSink::open(dir.path().join("backups")).unwrap();
        let repo = Repository::builder().sink(sink).transform(Zstd::default()).build().unwrap();
        repo.restore("embedded/notes").latest().into(&DirectoryTarget::new(&back)).await.unwrap();
        let complete = repo.backups("embedded/notes").await.unwrap().len();
        let directories = std::fs::read_dir(dir.path().join("backups/embedded/notes")).unwrap().count();
        assert_eq!(directories, complete);
    });
    assert_eq!(std::fs::read_to_string(back.join("first.txt")).unwrap(), "remember this");
}

#[test]
fn a_service_whose_backups_fail_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let service = start(dir.path());
    service.wait_for("/health", |status, _| status == 200);
    // What a lost disk looks like.
    std::fs::rename(dir.path().join("backups"), dir.path().join("elsewhere")).unwrap();
    std::fs::remove_dir_all(dir.path().join("data")).unwrap();
    let health = service.wait_for("/health", |status, _| status == 503);
    assert_eq!(health["ok"], false);
}
