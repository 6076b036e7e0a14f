//! As much HTTP/1.1 as the stand-ins and the server helpers need.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io;

use backup_core::Bytes;
use tokio::io::{
    AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader,
};
use tokio::net::TcpStream;

/// Largest head of a message, in bytes.
const MAX_HEAD: u64 = 64 * 1024;

/// The first line and the headers of a request or response.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// `PUT /bucket/key?x=y HTTP/1.1`, or `HTTP/1.1 200 OK`.
    pub line: String,
    /// Headers by lower-case name.
    pub headers: BTreeMap<String, String>,
}

impl Head {
    /// Reads a head; `None` at the end of the connection.
    pub async fn read(from: &mut (impl tokio::io::AsyncBufRead + Unpin)) -> io::Result<Option<Self>> {
        let mut head = Self::default();
        let mut limited = from.take(MAX_HEAD);
        loop {
            let mut line = String::new();
            if limited.read_line(&mut line).await? == 0 {
                return Ok(None);
            }
            let line = line.trim_end();
            if head.line.is_empty() {
                line.clone_into(&mut head.line);
            } else if line.is_empty() {
                return Ok(Some(head));
            } else if let Some((name, value)) = line.split_once(':') {
                head.headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
            }
        }
    }

    /// The method of a request.
    pub fn method(&self) -> &str {
        self.line.split(' ').next().unwrap_or("")
    }

    /// The target of a request, without its query.
    pub fn path(&self) -> &str {
        self.target().split('?').next().unwrap_or("")
    }

    /// A parameter of the query, as sent; empty for one without a value.
    pub fn query(&self, name: &str) -> Option<&str> {
        let (_, query) = self.target().split_once('?')?;
        query
            .split('&')
            .map(|p| p.split_once('=').unwrap_or((p, "")))
            .find(|(n, _)| *n == name)
            .map(|(_, v)| v)
    }

    fn target(&self) -> &str {
        self.line.split(' ').nth(1).unwrap_or("")
    }

    /// The status of a response.
    pub fn status(&self) -> u16 {
        self.line.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0)
    }

    /// The declared length of the body.
    pub fn length(&self) -> u64 {
        self.headers.get("content-length").and_then(|l| l.parse().ok()).unwrap_or(0)
    }
}

/// Writes a response with a body.
pub async fn respond(
    to: &mut (impl AsyncWrite + Unpin),
    status: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> io::Result<()> {
    let mut head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n", body.len());
    for (name, value) in headers {
        let _ = write!(head, "{name}: {value}\r\n");
    }
    head.push_str("\r\n");
    to.write_all(head.as_bytes()).await?;
    to.write_all(body).await?;
    to.flush().await
}

/// Reads and drops a body.
pub async fn discard(from: &mut (impl AsyncRead + Unpin), length: u64) -> io::Result<u64> {
    tokio::io::copy(&mut from.take(length), &mut tokio::io::sink()).await
}

/// One request to a server on this machine; answers the head of the response and its body.
pub async fn request(
    port: u16,
    method: &str,
    target: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> io::Result<(Head, Bytes)> {
    let stream = TcpStream::connect(("127.0.0.1", port)).await?;
    let mut stream = BufReader::new(stream);
    let mut head = format!(
        "{method} {target} HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\nconnection: close\r\ncontent-length: {}\r\n",
        body.len()
    );
    for (name, value) in headers {
        let _ = write!(head, "{name}: {value}\r\n");
    }
    head.push_str("\r\n");
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body).await?;
    let head = Head::read(&mut stream).await?.ok_or(io::ErrorKind::UnexpectedEof)?;
    let mut body = Vec::new();
    stream.read_to_end(&mut body).await?;
    Ok((head, body.into()))
}
