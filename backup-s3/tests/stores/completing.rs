//! The beginning and the end of a multipart upload: a reply that breaks is asked for again, or settled by the object itself.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use backup_core::{ErrorKind, Key, ObjectKind, PutOptions, Result, Sink as _};
use backup_s3::ObjectStoreSink;
use backup_testkit::{Moto, collect, http, noise};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use crate::servers::s3;

const MIB: usize = 1024 * 1024;

/// What happens to a request that begins or ends an upload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trouble {
    /// It is done; half of the reply arrives.
    DoneAndCut,
    /// It is done; the reply says 500.
    DoneAndFailed,
    /// It is not done; half of a reply arrives.
    Cut,
    /// It is not done, and refused for good.
    Refused,
    /// The beginning of the upload is done, and half of the reply arrives.
    BegunAndCut,
}

/// Passes requests on, one at a time per connection; the first of the requests in question meet trouble.
struct Gate {
    address: SocketAddr,
    seen: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Gate {
    async fn before(server: SocketAddr, trouble: Trouble, times: usize) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("bind");
        let address = listener.local_addr().expect("an address");
        let seen = Arc::new(AtomicUsize::new(0));
        let counting = Arc::clone(&seen);
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let seen = Arc::clone(&counting);
                tokio::spawn(async move {
                    let _ = serve(client, server, trouble, times, &seen).await;
                });
            }
        });
        Self { address, seen, task }
    }

    fn requests(&self) -> usize {
        self.seen.load(Ordering::SeqCst)
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(
    client: TcpStream,
    server: SocketAddr,
    trouble: Trouble,
    times: usize,
    seen: &AtomicUsize,
) -> std::io::Result<()> {
    let mut client = BufReader::new(client);
    while let Some(head) = http::Head::read(&mut client).await? {
        let mut body = vec![0; usize::try_from(head.length()).expect("a size")];
        client.read_exact(&mut body).await?;
        let in_question = if trouble == Trouble::BegunAndCut { "uploads" } else { "uploadId" };
        let hit = head.method() == "POST"
            && head.query(in_question).is_some()
            && seen.fetch_add(1, Ordering::SeqCst) < times;
        let pass = async || {
            let drop = ["host", "content-length", "connection", "expect"];
            let headers: Vec<(&str, &str)> = head
                .headers
                .iter()
                .filter(|(name, _)| !drop.contains(&name.as_str()))
                .map(|(name, value)| (name.as_str(), value.as_str()))
                .collect();
            let target = head.line.split(' ').nth(1).unwrap_or("");
            http::request(server.port(), head.method(), target, &headers, &body).await
        };
        let failed =
            "<Error><Code>InternalError</Code><Message>We encountered an internal error.</Message></Error>";
        if hit {
            if matches!(trouble, Trouble::DoneAndCut | Trouble::DoneAndFailed | Trouble::BegunAndCut) {
                pass().await?;
            }
            match trouble {
                Trouble::DoneAndCut | Trouble::BegunAndCut | Trouble::Cut => {
                    let half = "HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n<CompleteMultipart";
                    client.write_all(half.as_bytes()).await?;
                    return client.shutdown().await;
                }
                Trouble::DoneAndFailed => {
                    http::respond(&mut client, "500 Internal Server Error", &[], failed.as_bytes()).await?;
                }
                Trouble::Refused => {
                    let body = "<Error><Code>InvalidPart</Code><Message>No such part.</Message></Error>";
                    http::respond(&mut client, "400 Bad Request", &[], body.as_bytes()).await?;
                }
            }
            continue;
        }
        let (answer, body) = pass().await?;
        let status = answer.line.split_once(' ').map_or("", |(_, status)| status);
        let skip = ["content-length", "connection", "transfer-encoding"];
        let headers: Vec<(&str, &str)> = answer
            .headers
            .iter()
            .filter(|(name, _)| !skip.contains(&name.as_str()))
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        if head.method() == "HEAD" {
            // The length is the object's, not that of a body.
            let length = answer.length();
            let mut text = format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\n");
            for (name, value) in &headers {
                text.extend([name, ": ", value, "\r\n"]);
            }
            text.push_str("\r\n");
            client.write_all(text.as_bytes()).await?;
        } else {
            http::respond(&mut client, status, &headers, &body).await?;
        }
    }
    Ok(())
}

fn sink(address: SocketAddr, attributes: bool) -> ObjectStoreSink {
    let builder = s3(address);
    let builder = if attributes { builder } else { builder.without_attributes() };
    builder.build().expect("a sink")
}

async fn upload(sink: &ObjectStoreSink, name: &str) -> Result<()> {
    let key = Key::parse(name).expect("a key");
    let mut writer = sink.create(&key, PutOptions::overwrite(ObjectKind::Data)).await.expect("create");
    for piece in 0..20 {
        writer.write(noise(MIB, piece)).await.expect("write");
    }
    let info = writer.finish().await?;
    assert_eq!(info.size, 20 * MIB as u64);
    let found = collect(sink.open(&key, None).await.expect("open")).await.expect("read");
    let expected: Vec<u8> = (0..20).flat_map(|piece| noise(MIB, piece)).collect();
    assert!(found == expected, "another object");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_whose_end_was_not_heard_of_is_settled_by_the_object() {
    let Some(moto) = Moto::start().await else { return };
    moto.bucket("tests").await;
    for (trouble, times, completions) in [
        // Seen at once: nothing is asked for again.
        (Trouble::DoneAndCut, 1, 1),
        // The client asks again by itself, and is told that there is no such upload.
        (Trouble::DoneAndFailed, 1, 2),
        // Nothing is there: it is asked for again.
        (Trouble::Cut, 1, 2),
        (Trouble::Cut, 2, 3),
    ] {
        for attributes in [true, false] {
            let gate = Gate::before(moto.address(), trouble, times).await;
            let name = format!("{trouble:?}-{times}-{attributes}");
            let sink = sink(gate.address, attributes);
            upload(&sink, &name).await.unwrap_or_else(|e| panic!("{name}: {}", e.chain()));
            assert_eq!(gate.requests(), completions, "{name}");
            assert_eq!(moto.unfinished_uploads("tests").await, 0, "{name}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_end_that_fails_for_good_or_too_often_leaves_nothing() {
    let Some(moto) = Moto::start().await else { return };
    moto.bucket("tests").await;
    for (trouble, times, completions) in [(Trouble::Refused, 1, 1), (Trouble::Cut, usize::MAX, 3)] {
        let gate = Gate::before(moto.address(), trouble, times).await;
        let sink = sink(gate.address, true);
        let name = format!("{trouble:?}");
        let error = upload(&sink, &name).await.expect_err("it did not end");
        assert_ne!(error.kind(), ErrorKind::NotFound, "{}", error.chain());
        assert!(!error.is_retryable(), "it was tried often enough");
        assert_eq!(gate.requests(), completions, "{name}");
        let gone = sink.head(&Key::parse(&name).expect("a key")).await.expect_err("nothing is visible");
        assert_eq!(gone.kind(), ErrorKind::NotFound);
        // The abort of a dropped upload runs in the background.
        for _ in 0..200 {
            if moto.unfinished_uploads("tests").await == 0 {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        assert_eq!(moto.unfinished_uploads("tests").await, 0, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_whose_beginning_was_not_heard_of_is_begun_again_and_swept() {
    let Some(moto) = Moto::start().await else { return };
    moto.bucket("tests").await;
    let gate = Gate::before(moto.address(), Trouble::BegunAndCut, 2).await;
    let sink = sink(gate.address, true);
    upload(&sink, "begun").await.unwrap_or_else(|e| panic!("{}", e.chain()));
    assert_eq!(gate.requests(), 3, "each was asked for once more");
    assert_eq!(moto.unfinished_uploads("tests").await, 2, "their ids were lost");
    sink.sweep(std::time::Duration::ZERO).await.expect("sweep");
    assert_eq!(moto.unfinished_uploads("tests").await, 0);
}

/// Without metadata only the bytes tell: an older object of the same size is not taken for the new one.
#[tokio::test(flavor = "multi_thread")]
async fn an_older_object_of_the_same_name_and_size_is_not_taken_for_the_upload() {
    let Some(moto) = Moto::start().await else { return };
    moto.bucket("tests").await;
    for attributes in [true, false] {
        let name = format!("old-{attributes}");
        let key = Key::parse(&name).expect("a key");
        let straight = sink(moto.address(), attributes);
        backup_core::put_bytes(&straight, &key, noise(20 * MIB, 77), PutOptions::overwrite(ObjectKind::Data))
            .await
            .expect("an older object");
        let gate = Gate::before(moto.address(), Trouble::Cut, 1).await;
        upload(&sink(gate.address, attributes), &name).await.expect("the second try");
        assert_eq!(gate.requests(), 2, "{name}");
    }
}
