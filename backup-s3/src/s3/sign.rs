//! Signature version 4 for requests `object_store` does not make, or not with these headers.

use std::fmt;
use std::sync::Weak;

use http::header::{AUTHORIZATION, HeaderName, HeaderValue};
use object_store::CredentialProvider;
use object_store::aws::{AwsAuthorizer, AwsCredential, AwsCredentialProvider};
use object_store::client::{HttpError, HttpErrorKind, HttpRequest};

const PAYLOAD_DIGEST: &str = "x-amz-content-sha256";

/// Headers to put on a request, by its extensions.
#[derive(Clone, Debug)]
pub(crate) struct ExtraHeaders(pub(crate) Vec<(HeaderName, HeaderValue)>);

/// Who signs.
pub(crate) struct Signer {
    /// Weak: the provider may itself connect through the wire this signer hangs on.
    credentials: Weak<dyn CredentialProvider<Credential = AwsCredential>>,
    region: String,
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signer").field("region", &self.region).finish_non_exhaustive()
    }
}

impl Signer {
    pub(crate) fn new(credentials: &AwsCredentialProvider, region: &str) -> Self {
        Self { credentials: std::sync::Arc::downgrade(credentials), region: region.to_owned() }
    }
}

/// Adds the headers a request's extensions ask for and signs it anew.
pub(crate) async fn add_headers(signer: Option<&Signer>, request: &mut HttpRequest) -> Result<(), HttpError> {
    let Some(ExtraHeaders(extra)) = request.extensions_mut().get::<ExtraHeaders>().cloned() else {
        return Ok(());
    };
    for (name, value) in extra {
        request.headers_mut().insert(name, value);
    }
    // A request nobody signed goes to a store without authentication.
    if request.headers_mut().remove(AUTHORIZATION).is_none() {
        return Ok(());
    }
    let signer = signer.and_then(|signer| Some((signer.credentials.upgrade()?, &signer.region)));
    let Some((credentials, region)) = signer else {
        return Err(failed(std::io::Error::other("the sink of this request is gone")));
    };
    let credential = credentials.get_credential().await.map_err(failed)?;
    let digest = request.headers().get(PAYLOAD_DIGEST).and_then(|v| hex::decode(v).ok());
    AwsAuthorizer::new(&credential, "s3", region)
        .with_sign_payload(digest.is_some())
        .try_authorize(request, digest.as_deref())
        .map_err(failed)
}

fn failed(error: impl std::error::Error + Send + Sync + 'static) -> HttpError {
    HttpError::new(HttpErrorKind::Unknown, error)
}
