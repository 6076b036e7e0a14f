//! A list is whole or an error: what is not listed is taken for absent.

use backup_core::{ErrorKind, Key, ObjectInfo, Result, Sink as _};
use backup_testkit::http;
use futures::TryStreamExt as _;
use tokio::io::BufReader;
use tokio::net::TcpListener;

use crate::servers::s3;

/// Lists from a server that answers requests one after the other with these pages.
async fn list(pages: &[&str]) -> Result<Vec<ObjectInfo>> {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("an address");
    let pages: Vec<String> = pages.iter().map(|page| (*page).to_owned()).collect();
    let server = tokio::spawn(async move {
        let mut pages = pages.into_iter();
        while let Ok((mut client, _)) = listener.accept().await {
            let mut reader = BufReader::new(&mut client);
            while let Ok(Some(_)) = http::Head::read(&mut reader).await {
                let page = pages.next().expect("a page for each request");
                let _ = http::respond(&mut reader, "200 OK", &[], page.as_bytes()).await;
            }
        }
    });
    let sink = s3(address).build().expect("a sink");
    let listed = sink.list(&Key::root()).try_collect().await;
    server.abort();
    listed
}

fn page(name: &str, rest: &str) -> String {
    format!("<ListBucketResult><Contents><Key>{name}</Key><Size>1</Size></Contents>{rest}</ListBucketResult>")
}

#[tokio::test]
async fn pages_are_followed_to_the_last() {
    let first = page("a", "<IsTruncated>true</IsTruncated><NextContinuationToken>t</NextContinuationToken>");
    let last = page("b", "<IsTruncated>false</IsTruncated>");
    assert_eq!(list(&[&first, &last]).await.expect("a list").len(), 2);
}

#[tokio::test]
async fn a_list_cut_short_is_an_error() {
    let goes_on = "<IsTruncated>true</IsTruncated>";
    let again = "<IsTruncated>true</IsTruncated><NextContinuationToken>t</NextContinuationToken>";
    let cut = page("a", "<IsTruncated>false</IsTruncated>");
    let cases: [(&str, Vec<String>); 5] = [
        ("no token", vec![page("a", goes_on)]),
        ("the same token", vec![page("a", again), page("b", again)]),
        ("not said whether it goes on", vec![page("a", "")]),
        ("a page of another kind", vec!["<html><body>Please log in</body></html>".to_owned()]),
        ("half a document", vec![cut[..cut.len() - 20].to_owned()]),
    ];
    for (what, pages) in cases {
        let pages: Vec<&str> = pages.iter().map(String::as_str).collect();
        let error = list(&pages).await.expect_err(what);
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{what}: {}", error.chain());
    }
}
