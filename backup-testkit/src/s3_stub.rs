//! [`S3Stub`]: an S3 that keeps nothing but counts and digests.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use backup_core::{Digest, Hasher};
use tokio::io::{AsyncReadExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use crate::http::{Head, respond};

/// Bytes read at a time.
const CHUNK: usize = 128 * 1024;

/// A part, or an object put at once, as the stub saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeenPart {
    /// Bytes.
    pub size: u64,
    /// SHA-256 of its bytes.
    pub digest: Digest,
}

/// A server that takes uploads as S3 does, hashes and counts what it gets, and throws it away. It checks neither
/// signatures nor conditions; `x-amz-checksum-sha256` it checks.
#[derive(Debug)]
pub struct S3Stub {
    address: SocketAddr,
    state: Arc<State>,
    task: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct State {
    inner: Mutex<Inner>,
    next: AtomicU64,
}

#[derive(Debug, Default)]
struct Inner {
    /// Parts of complete objects, by path.
    objects: BTreeMap<String, Vec<SeenPart>>,
    uploads: BTreeMap<String, BTreeMap<u64, SeenPart>>,
    requests: Vec<Head>,
}

impl State {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl S3Stub {
    /// Starts a stub on a free port of the loopback interface.
    pub async fn start() -> Self {
        let listener =
            TcpListener::bind(("127.0.0.1", 0)).await.expect("bind a port of the loopback interface");
        let address = listener.local_addr().expect("a bound socket has an address");
        let state = Arc::new(State::default());
        let serving = Arc::clone(&state);
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                while connections.try_join_next().is_some() {}
                let state = Arc::clone(&serving);
                connections.spawn(async move {
                    // A client that goes away is no failure of the stub.
                    let _ = serve(client, &state).await;
                });
            }
        });
        Self { address, state, task }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The parts of a complete object, in order, by its path `/bucket/key`.
    pub fn object(&self, path: &str) -> Option<Vec<SeenPart>> {
        self.state.lock().objects.get(path).cloned()
    }

    /// Uploads that were neither completed nor aborted.
    pub fn open_uploads(&self) -> usize {
        self.state.lock().uploads.len()
    }

    /// The heads of all requests so far.
    pub fn requests(&self) -> Vec<Head> {
        self.state.lock().requests.clone()
    }
}

impl Drop for S3Stub {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(client: TcpStream, state: &State) -> io::Result<()> {
    client.set_nodelay(true)?;
    let mut client = BufReader::with_capacity(CHUNK, client);
    while let Some(head) = Head::read(&mut client).await? {
        let seen = take(&mut client, head.length()).await?;
        state.lock().requests.push(head.clone());
        let (status, e_tag, body) = answer(&head, seen, state);
        let headers = [("etag", e_tag.as_str()), ("x-amz-request-id", "stub")];
        respond(&mut client, status, &headers, body.as_bytes()).await?;
    }
    Ok(())
}

async fn take(client: &mut BufReader<TcpStream>, length: u64) -> io::Result<SeenPart> {
    let (mut left, mut hasher, mut buffer) = (length, Hasher::new(), vec![0; CHUNK]);
    while left > 0 {
        let room = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
        let n = client.read(buffer.get_mut(..room).unwrap_or_default()).await?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        hasher.update(buffer.get(..n).unwrap_or_default());
        left -= n as u64;
    }
    Ok(SeenPart { size: length, digest: hasher.finish() })
}

fn answer(head: &Head, seen: SeenPart, state: &State) -> (&'static str, String, String) {
    let e_tag = format!("\"{}\"", seen.digest);
    let error = |code: &str| format!("<Error><Code>{code}</Code><Message>{code}</Message></Error>");
    let not_found = |code: &str| ("404 Not Found", String::new(), error(code));
    let ok = |body: String| ("200 OK", e_tag.clone(), body);
    if let Some(checksum) = head.headers.get("x-amz-checksum-sha256")
        && *checksum != base64(seen.digest.as_bytes())
    {
        return ("400 Bad Request", String::new(), error("BadDigest"));
    }
    let mut inner = state.lock();
    let path = head.path().to_owned();
    match (head.method(), head.query("uploadId"), head.query("partNumber")) {
        ("POST", None, _) if head.query("uploads").is_some() => {
            let id = format!("upload-{}", state.next.fetch_add(1, Ordering::Relaxed));
            inner.uploads.insert(id.clone(), BTreeMap::new());
            let tag = "InitiateMultipartUploadResult";
            ok(format!("<{tag}><Bucket>b</Bucket><Key>k</Key><UploadId>{id}</UploadId></{tag}>"))
        }
        ("PUT", Some(id), Some(number)) => match (inner.uploads.get_mut(id), number.parse()) {
            (Some(parts), Ok(number)) => {
                parts.insert(number, seen);
                ok(String::new())
            }
            _ => not_found("NoSuchUpload"),
        },
        ("POST", Some(id), _) => match inner.uploads.remove(id) {
            Some(parts) => {
                inner.objects.insert(path, parts.into_values().collect());
                let tag = "CompleteMultipartUploadResult";
                ok(format!("<{tag}><Bucket>b</Bucket><Key>k</Key><ETag>{e_tag}</ETag></{tag}>"))
            }
            None => not_found("NoSuchUpload"),
        },
        ("DELETE", Some(id), _) => match inner.uploads.remove(id) {
            Some(_) => ("204 No Content", String::new(), String::new()),
            None => not_found("NoSuchUpload"),
        },
        ("PUT", None, _) => {
            inner.objects.insert(path, vec![seen]);
            ok(String::new())
        }
        ("DELETE", None, _) => {
            inner.objects.remove(&path);
            ("204 No Content", String::new(), String::new())
        }
        ("GET", None, _) if head.query("list-type").is_some() => {
            ok("<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>".to_owned())
        }
        // What was taken is gone.
        _ => not_found("NoSuchKey"),
    }
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::new();
    for group in bytes.chunks(3) {
        let at = |i: usize| u32::from(group.get(i).copied().unwrap_or(0));
        let bits = at(0) << 16 | at(1) << 8 | at(2);
        for i in 0..4 {
            let digit = (bits >> (18 - 6 * i)) as usize & 63;
            let digit = if i <= group.len() { DIGITS.get(digit).copied() } else { None };
            out.push(char::from(digit.unwrap_or(b'=')));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    #[test]
    fn base64_is_the_one_of_rfc_4648() {
        for (plain, coded) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")]
        {
            assert_eq!(super::base64(plain.as_bytes()), coded);
        }
    }
}
