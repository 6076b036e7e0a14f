//! The shape of requests to Google Cloud Storage, on a stand-in: no server that speaks its XML interface can be had.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use backup_core::{ErrorKind, Key, ObjectKind, PutOptions, Sink as _, put_bytes};
use backup_s3::{GcsSink, ObjectStoreSink, StorageClasses};
use backup_testkit::{http, noise};
use tokio::io::{AsyncReadExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};

type Requests = Arc<Mutex<Vec<http::Head>>>;

/// Answers uploads in the XML interface's way and honours `x-goog-if-generation-match: 0`.
async fn stub() -> (SocketAddr, Requests, tokio::task::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("an address");
    let requests = Requests::default();
    let seen = Arc::clone(&requests);
    let objects: Arc<Mutex<BTreeMap<String, usize>>> = Arc::default();
    let task = tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            tokio::spawn(serve(client, Arc::clone(&seen), Arc::clone(&objects)));
        }
    });
    (address, requests, task)
}

async fn serve(client: TcpStream, seen: Requests, objects: Arc<Mutex<BTreeMap<String, usize>>>) {
    let mut client = BufReader::new(client);
    while let Ok(Some(head)) = http::Head::read(&mut client).await {
        let mut body = vec![0; usize::try_from(head.length()).expect("a length")];
        client.read_exact(&mut body).await.expect("the body");
        let path = head.path().to_owned();
        let exists = objects.lock().expect("lock").contains_key(&path);
        let conditional = head.headers.get("x-goog-if-generation-match").is_some_and(|v| v == "0");
        let mut respond = ("200 OK", String::new());
        match head.method() {
            "PUT" if conditional && exists => {
                respond =
                    ("412 Precondition Failed", "<Error><Code>PreconditionFailed</Code></Error>".to_owned());
            }
            "PUT" if head.query("partNumber").is_none() => {
                objects.lock().expect("lock").insert(path, body.len());
            }
            "POST" if head.query("uploads").is_some() => {
                let tag = "InitiateMultipartUploadResult";
                respond.1 = format!("<{tag}><Bucket>b</Bucket><Key>k</Key><UploadId>u1</UploadId></{tag}>");
            }
            "POST" => {
                objects.lock().expect("lock").insert(path, body.len());
                let tag = "CompleteMultipartUploadResult";
                respond.1 = format!("<{tag}><Bucket>b</Bucket><Key>k</Key><ETag>e</ETag></{tag}>");
            }
            "HEAD" | "GET" if !exists => respond = ("404 Not Found", String::new()),
            _ => {}
        }
        seen.lock().expect("lock").push(head);
        let headers = [
            ("etag", "\"e\""),
            ("x-goog-generation", "1"),
            ("last-modified", "Fri, 20 Nov 2026 00:00:00 GMT"),
        ];
        let _ = http::respond(&mut client, respond.0, &headers, respond.1.as_bytes()).await;
    }
}

fn sink(address: SocketAddr) -> ObjectStoreSink {
    let service_account = format!(
        "{{\"gcs_base_url\": \"http://{address}\", \"disable_oauth\": true, \"client_email\": \"\", \"private_key\": \"\", \"private_key_id\": \"\"}}"
    );
    GcsSink::builder()
        .bucket("tests")
        .prefix("p")
        .service_account_key(service_account)
        .storage_classes(StorageClasses::new().data("NEARLINE"))
        .build()
        .expect("a sink")
}

#[tokio::test(flavor = "multi_thread")]
async fn puts_are_conditional_and_large_objects_come_in_parts() {
    let (address, requests, server) = stub().await;
    let sink = sink(address);
    assert_eq!(sink.id().as_str(), "gs://tests/p");
    let key = |text: &str| Key::parse(text).expect("a key");
    let new = || PutOptions::create_new(ObjectKind::Manifest);
    put_bytes(&sink, &key("m"), "{}".into(), new()).await.expect("the first");
    // The stand-in's head shows no metadata: the object is another's.
    let error = put_bytes(&sink, &key("m"), "{}".into(), new()).await.expect_err("the second");
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    let mut writer =
        sink.create(&key("large"), PutOptions::overwrite(ObjectKind::Data)).await.expect("create");
    writer.write(noise(20 * 1024 * 1024, 1)).await.expect("write");
    writer.finish().await.expect("finish");

    let requests = requests.lock().expect("lock").clone();
    let first = &requests[0];
    assert_eq!((first.method(), first.path()), ("PUT", "/tests/p%2Fm"));
    assert_eq!(first.headers["x-goog-if-generation-match"], "0");
    let begin = requests.iter().find(|r| r.query("uploads").is_some()).expect("an upload begins");
    assert_eq!(begin.headers["x-goog-storage-class"], "NEARLINE");
    let parts: Vec<u64> =
        requests.iter().filter(|r| r.query("partNumber").is_some()).map(http::Head::length).collect();
    assert_eq!(parts.len(), 3);
    assert_eq!(parts.iter().sum::<u64>(), 20 * 1024 * 1024);
    let last = requests.last().expect("requests");
    assert_eq!((last.method(), last.query("uploadId")), ("POST", Some("u1")));
    server.abort();
}
