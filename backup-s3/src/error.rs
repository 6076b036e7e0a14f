//! Errors of object stores in this library's terms, without what a store's reply may repeat of a credential.
//!
//! S3 codes: Amazon S3 API reference, "Error responses". Azure: "Blob service error codes".

use std::error::Error as _;
use std::fmt;

use backup_core::{Error, ErrorKind};

/// Longest text taken over from a store, in bytes.
const MAX_TEXT: usize = 600;

/// What a store replied, cleaned: never a whole body, a query string or a header, since stores repeat tokens
/// and signatures in them.
#[derive(Debug)]
pub(crate) struct Reply {
    /// HTTP status, if there was a response.
    pub(crate) status: Option<u16>,
    /// The store's error code: `NoSuchBucket`.
    pub(crate) code: Option<String>,
    text: String,
}

impl Reply {
    /// Reads status, code and message out of the text of an error chain or of an error body.
    pub(crate) fn read(status: Option<u16>, text: &str) -> Self {
        let status = status.or_else(|| number_after(text, "status code: "));
        let code = element(text, "Code").or_else(|| between(text, "(code: ", ")"));
        let text = match (element(text, "Message"), &code) {
            (Some(message), _) => format!("{}: {}", code.as_deref().unwrap_or("error"), cut(message.trim())),
            (None, Some(code)) => code.clone(),
            // Not a store's XML: a transport error. Everything from the first tag or query string on is dropped.
            (None, None) => cut(text.split(['<', '?']).next().unwrap_or("").trim()).to_owned(),
        };
        Self { status, code, text }
    }

    pub(crate) fn code_is(&self, codes: &[&str]) -> bool {
        self.code.as_deref().is_some_and(|code| codes.contains(&code))
    }
}

impl Reply {
    /// Whether this was no answer, half a one, or a server's failure: anything else was understood and refused.
    pub(crate) fn is_passing(&self) -> bool {
        self.status.is_none_or(|status| status >= 500 || status == 408 || status == 429)
    }
}

impl fmt::Display for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.status {
            Some(status) => write!(f, "the store replied {status}, {}", self.text),
            None => f.write_str(&self.text),
        }
    }
}

impl std::error::Error for Reply {}

fn between<'a>(text: &'a str, start: &str, end: &str) -> Option<String> {
    let rest: &'a str = text.split_once(start)?.1;
    rest.split_once(end).map(|(inner, _)| inner.to_owned())
}

fn element(text: &str, name: &str) -> Option<String> {
    between(text, &format!("<{name}>"), &format!("</{name}>"))
}

fn number_after(text: &str, mark: &str) -> Option<u16> {
    text.split_once(mark)?.1.get(..3)?.parse().ok()
}

fn cut(text: &str) -> &str {
    let mut end = text.len().min(MAX_TEXT);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or("")
}

/// Whether the store's client already repeated the request for every passing reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tried {
    /// It did: trying again at once would multiply the waits.
    Enough,
    /// It does not repeat this request after a broken connection.
    Once,
}

/// The reply in an `object_store` error.
pub(crate) fn reply(error: &object_store::Error) -> Reply {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let words = cause.to_string();
        if !text.contains(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        next = cause.source();
    }
    Reply::read(None, &text)
}

/// An `object_store` error met while doing `operation`.
pub(crate) fn store_error(operation: &'static str, tried: Tried, error: &object_store::Error) -> Error {
    use object_store::Error as Store;
    let reply = reply(error);
    let fallback = match error {
        Store::NotFound { .. } => ErrorKind::NotFound,
        Store::AlreadyExists { .. } => ErrorKind::AlreadyExists,
        Store::PermissionDenied { .. } | Store::Unauthenticated { .. } => ErrorKind::PermissionDenied,
        Store::NotSupported { .. } | Store::NotImplemented { .. } => ErrorKind::Unsupported,
        Store::InvalidPath { .. } | Store::UnknownConfigurationKey { .. } => ErrorKind::InvalidInput,
        Store::Precondition { .. } | Store::NotModified { .. } => ErrorKind::Corrupt,
        _ => transport_kind(error),
    };
    described(operation, tried, fallback, reply)
}

fn transport_kind(error: &object_store::Error) -> ErrorKind {
    use object_store::client::{HttpError, HttpErrorKind};
    let mut next = error.source();
    while let Some(cause) = next {
        if let Some(http) = cause.downcast_ref::<HttpError>() {
            return match http.kind() {
                HttpErrorKind::Timeout => ErrorKind::Timeout,
                HttpErrorKind::Decode => ErrorKind::Corrupt,
                _ => ErrorKind::Unavailable,
            };
        }
        if let Some(io) = cause.downcast_ref::<std::io::Error>() {
            return match io.kind() {
                // A directory store: a name with objects below it is not an object.
                std::io::ErrorKind::IsADirectory | std::io::ErrorKind::NotADirectory => ErrorKind::NotFound,
                kind => Error::io("", std::io::Error::from(kind)).kind(),
            };
        }
        next = cause.source();
    }
    ErrorKind::Io
}

/// The error for a store's reply; `fallback` is its kind where the reply has no better.
pub(crate) fn described(operation: &'static str, tried: Tried, fallback: ErrorKind, reply: Reply) -> Error {
    let (kind, message) = meaning(&reply, fallback);
    let error = Error::new(kind, operation).message(message);
    let error = if tried == Tried::Enough && kind.is_retryable() { error.retryable(false) } else { error };
    error.caused_by(reply)
}

fn meaning(reply: &Reply, fallback: ErrorKind) -> (ErrorKind, &'static str) {
    if reply.code_is(&["NoSuchBucket", "ContainerNotFound"]) {
        return (
            ErrorKind::WrongPlace,
            "the bucket does not exist; create it, or correct the bucket, region or endpoint",
        );
    }
    if reply.code_is(&["RequestTimeTooSkewed"]) {
        return (
            ErrorKind::PermissionDenied,
            "this machine's clock is more than 15 minutes away from the store's; set it (NTP), then run again",
        );
    }
    if reply.code_is(&["InvalidObjectState", "BlobArchived"]) {
        return (
            ErrorKind::Unavailable,
            "the object lies in an archive class; ask for it with `thaw` and come back when it is ready",
        );
    }
    if reply.code_is(&["ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "InvalidToken"]) {
        return (
            ErrorKind::PermissionDenied,
            "the session token is no longer valid; renew the temporary credentials",
        );
    }
    if reply.code_is(&["InvalidAccessKeyId", "SignatureDoesNotMatch", "AuthenticationFailed"]) {
        return (
            ErrorKind::PermissionDenied,
            "the store does not accept these credentials; check key, secret and region",
        );
    }
    if reply.code_is(&[
        "PermanentRedirect",
        "AuthorizationHeaderMalformed",
        "IllegalLocationConstraintException",
    ]) {
        return (ErrorKind::WrongPlace, "the bucket lies in another region; set its region");
    }
    if reply.code_is(&["BlobImmutableDueToPolicy", "RetentionPolicyNotMet", "ObjectLocked"]) {
        return (
            ErrorKind::PermissionDenied,
            "the object is locked until its retention ends; it can be deleted after that",
        );
    }
    if reply.code_is(&["QuotaExceeded", "XMinioStorageFull", "InsufficientStorage", "StorageQuotaExceeded"]) {
        return (ErrorKind::StorageFull, "the store or its quota is full; free space or raise the quota");
    }
    if reply.code_is(&["BadDigest", "XAmzContentSHA256Mismatch", "ContentSHA256Mismatch", "InvalidDigest"]) {
        return (ErrorKind::Corrupt, "the bytes were changed on their way to the store");
    }
    if reply.code_is(&["NotImplemented", "InvalidStorageClass"]) {
        return (ErrorKind::Unsupported, "the store does not know this request; see docs/object-storage.md");
    }
    match (fallback, reply.status) {
        (ErrorKind::NotFound, _) => (ErrorKind::NotFound, "there is no such object"),
        (ErrorKind::AlreadyExists, _) => (ErrorKind::AlreadyExists, "an object of this name exists"),
        (ErrorKind::PermissionDenied, _) | (_, Some(401 | 403)) => (
            ErrorKind::PermissionDenied,
            "the store denied it; docs/object-storage.md lists the permissions each role needs",
        ),
        (_, Some(507)) => (ErrorKind::StorageFull, "the store is full; free space or raise the quota"),
        (_, Some(408 | 429 | 500..)) => {
            (ErrorKind::Unavailable, "the store failed or asked to slow down, again and again")
        }
        (ErrorKind::Unavailable, _) => {
            (ErrorKind::Unavailable, "the store cannot be reached, or the connection broke again and again")
        }
        (ErrorKind::Timeout, _) => {
            (ErrorKind::Timeout, "the store did not answer in time; raise `request_timeout` on a slow link")
        }
        (ErrorKind::Corrupt, _) => (ErrorKind::Corrupt, "the object is not what it was a moment ago"),
        (kind, _) => (kind, "the store refused the request"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_a_store_repeats_of_a_credential_survives() {
        let body = "Server returned non-2xx status code: 400 Bad Request: <?xml version=\"1.0\"?><Error><Code>ExpiredToken</Code>\
            <Message>The provided token has expired.</Message><Token-0>FQoGZXIvYXdzEHoa</Token-0>\
            <StringToSign>AWS4-HMAC</StringToSign></Error>";
        let error = described("put object", Tried::Enough, ErrorKind::Io, Reply::read(None, body));
        assert_eq!(error.kind(), ErrorKind::PermissionDenied);
        let shown = format!("{} {error:?}", error.chain());
        assert!(!shown.contains("FQoG") && !shown.contains("AWS4"), "{shown}");
        assert!(shown.contains("has expired") && shown.contains("400"), "{shown}");

        let url =
            "error sending request for https://x.blob.core.windows.net/c/o?sig=c2VjcmV0&se=2027: refused";
        assert!(!Reply::read(None, url).to_string().contains("c2Vj"));
    }

    #[test]
    fn a_missing_bucket_is_not_a_missing_object() {
        let kind = |code: &str| {
            let body = format!("<Error><Code>{code}</Code><Message>m</Message></Error>");
            described("head", Tried::Enough, ErrorKind::NotFound, Reply::read(Some(404), &body)).kind()
        };
        assert_eq!(kind("NoSuchBucket"), ErrorKind::WrongPlace);
        assert_eq!(kind("NoSuchKey"), ErrorKind::NotFound);
    }

    #[test]
    fn an_archived_object_is_not_worth_a_retry() {
        let body = "<Error><Code>InvalidObjectState</Code></Error>";
        let error =
            described("read", Tried::Enough, ErrorKind::PermissionDenied, Reply::read(Some(403), body));
        assert!(
            error.kind() == ErrorKind::Unavailable
                && !error.is_retryable()
                && error.to_string().contains("thaw")
        );
    }
}
