//! Signed requests to a bucket, with retries.

use std::fmt;
use std::time::Duration;

use backup_core::{Error, ErrorKind, Result};
use bytes::{Bytes, BytesMut};
use futures::StreamExt as _;
use http::header::HeaderName;
use http::{Method, StatusCode};
use object_store::aws::{AwsAuthorizer, AwsCredentialProvider};
use object_store::client::{HttpClient, HttpErrorKind, HttpRequestBody, HttpResponse};

use crate::error::{Reply, Tried, described};

/// Most bytes of a reply: a listing page of 1,000 names of 1,024 bytes, with room.
const MAX_REPLY: usize = 8 * 1024 * 1024;
const TRIES: u32 = 6;
const FIRST_WAIT: Duration = Duration::from_millis(100);

/// A bucket as requests address it.
pub(crate) struct Api {
    pub(crate) client: HttpClient,
    /// `None` for a store without authentication.
    pub(crate) credentials: Option<AwsCredentialProvider>,
    pub(crate) region: String,
    pub(crate) bucket: String,
    /// The bucket's URL without a slash at the end.
    pub(crate) endpoint: String,
}

impl fmt::Debug for Api {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Api")
            .field("bucket", &self.bucket)
            .field("region", &self.region)
            .finish_non_exhaustive()
    }
}

/// One request. Repeating it must be harmless.
#[derive(Clone, Debug)]
pub(crate) struct Request<'a> {
    method: Method,
    object: &'a str,
    query: Vec<(&'static str, String)>,
    headers: Vec<(HeaderName, String)>,
    body: Bytes,
}

impl<'a> Request<'a> {
    /// A request about the bucket itself.
    pub(crate) fn bucket(method: Method) -> Self {
        Self::object(method, "")
    }

    /// A request about an object by its full name.
    pub(crate) fn object(method: Method, object: &'a str) -> Self {
        Self { method, object, query: Vec::new(), headers: Vec::new(), body: Bytes::new() }
    }

    pub(crate) fn query(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.query.push((name, value.into()));
        self
    }

    pub(crate) fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((HeaderName::from_static(name), value.into()));
        self
    }

    pub(crate) fn headers(mut self, headers: &[(&'static str, String)]) -> Self {
        self.headers
            .extend(headers.iter().map(|(name, value)| (HeaderName::from_static(name), value.clone())));
        self
    }

    /// Metadata of the object, by name without `x-amz-meta-`.
    pub(crate) fn metadata(mut self, pairs: &[(&'static str, String)]) -> Self {
        self.headers.extend(pairs.iter().filter_map(|(name, value)| {
            let name = HeaderName::from_bytes(format!("x-amz-meta-{name}").as_bytes());
            name.ok().map(|name| (name, value.clone()))
        }));
        self
    }

    pub(crate) fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self
    }
}

/// Why a request failed.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) kind: ErrorKind,
    pub(crate) reply: Reply,
}

impl Failure {
    fn new(kind: ErrorKind, text: &str) -> Self {
        Self { kind, reply: Reply::read(None, text) }
    }

    pub(crate) fn is_passing(&self) -> bool {
        self.kind.is_retryable() || self.reply.code_is(&["SlowDown", "InternalError", "RequestTimeout"])
    }

    pub(crate) fn error(self, operation: &'static str) -> Error {
        described(operation, Tried::Enough, self.kind, self.reply)
    }
}

impl Api {
    /// Sends until it succeeds, fails for good, or the tries are used up.
    pub(crate) async fn send(&self, request: &Request<'_>) -> Result<Bytes, Failure> {
        let mut attempt = 0;
        loop {
            match self.once(request).await {
                Err(failure) if failure.is_passing() && attempt + 1 < TRIES => {
                    tokio::time::sleep(FIRST_WAIT * 2u32.pow(attempt)).await;
                    attempt += 1;
                }
                result => return result,
            }
        }
    }

    async fn once(&self, request: &Request<'_>) -> Result<Bytes, Failure> {
        let invalid = |text: &str| Failure::new(ErrorKind::InvalidInput, text);
        let mut http = http::Request::builder().method(request.method.clone()).uri(self.url(request));
        for (name, value) in &request.headers {
            http = http.header(name, value);
        }
        if request.method != Method::GET {
            http = http.header(http::header::CONTENT_LENGTH, request.body.len());
        }
        let mut http = http
            .body(HttpRequestBody::from(request.body.clone()))
            .map_err(|_| invalid("a name or setting of this request cannot be sent in a header or URL"))?;
        if let Some(credentials) = &self.credentials {
            let unsigned = |_| Failure::new(ErrorKind::PermissionDenied, "no credentials could be had");
            let credential = credentials.get_credential().await.map_err(unsigned)?;
            AwsAuthorizer::new(&credential, "s3", &self.region)
                .try_authorize(&mut http, None)
                .map_err(|_| invalid("the request cannot be signed"))?;
        }
        let response = self.client.execute(http).await.map_err(|e| {
            let kind = match e.kind() {
                HttpErrorKind::Timeout => ErrorKind::Timeout,
                _ => ErrorKind::Unavailable,
            };
            Failure::new(kind, &e.to_string())
        })?;
        let status = response.status();
        let body = body(response).await?;
        let text = String::from_utf8_lossy(&body);
        // A copy that fails after its headers went out says so in the body of a 200.
        let failed_late = status.is_success() && request.method != Method::GET && text.contains("<Error>");
        if status.is_success() && !failed_late {
            return Ok(body);
        }
        let kind = match status {
            StatusCode::NOT_FOUND => ErrorKind::NotFound,
            StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED => ErrorKind::PermissionDenied,
            StatusCode::CONFLICT | StatusCode::PRECONDITION_FAILED => ErrorKind::AlreadyExists,
            StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT => ErrorKind::Unavailable,
            StatusCode::NOT_IMPLEMENTED => ErrorKind::Unsupported,
            status if status.is_server_error() || failed_late => ErrorKind::Unavailable,
            _ => ErrorKind::Io,
        };
        Err(Failure { kind, reply: Reply::read(Some(status.as_u16()), &text) })
    }

    fn url(&self, request: &Request<'_>) -> String {
        let mut url = self.endpoint.clone();
        if !request.object.is_empty() {
            url.push('/');
            encode(&mut url, request.object, true);
        }
        for (i, (name, value)) in request.query.iter().enumerate() {
            url.push(if i == 0 { '?' } else { '&' });
            encode(&mut url, name, false);
            url.push('=');
            encode(&mut url, value, false);
        }
        url
    }
}

async fn body(response: HttpResponse) -> Result<Bytes, Failure> {
    let mut stream = response.into_body().bytes_stream();
    let mut all = BytesMut::new();
    while let Some(chunk) = stream.next().await {
        let chunk = chunk.map_err(|e| Failure::new(ErrorKind::Unavailable, &e.to_string()))?;
        if all.len() + chunk.len() > MAX_REPLY {
            return Err(Failure::new(
                ErrorKind::LimitExceeded,
                "the store's reply is longer than any should be",
            ));
        }
        all.extend_from_slice(&chunk);
    }
    Ok(all.freeze())
}

/// Percent-encodes as signature version 4 wants it: all but `A-Z a-z 0-9 - . _ ~`.
pub(crate) fn encode(out: &mut String, text: &str, keep_slash: bool) {
    use fmt::Write as _;
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) || (keep_slash && byte == b'/') {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
}

/// Undoes the `encoding-type=url` of listings.
pub(crate) fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        let escaped = match (first, tail) {
            (b'%', [a, b, after @ ..]) => {
                let digit = |d: u8| char::from(d).to_digit(16);
                digit(*a).zip(digit(*b)).and_then(|(a, b)| u8::try_from(a * 16 + b).ok()).map(|v| (v, after))
            }
            _ => None,
        };
        match escaped {
            Some((value, after)) => {
                bytes.push(value);
                rest = after;
            }
            None => bytes.push(if *first == b'+' { b' ' } else { *first }),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn names_survive_url_encoding(name in ".{0,40}") {
            let mut encoded = String::new();
            encode(&mut encoded, &name, true);
            prop_assert!(encoded.bytes().all(|b| b.is_ascii_graphic()));
            prop_assert_eq!(decode(&encoded), name);
        }

        #[test]
        fn any_text_can_be_decoded(text in "\\PC{0,40}") {
            decode(&text);
        }
    }
}
