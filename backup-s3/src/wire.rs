//! Between `object_store` and the network: adds signed headers a caller asks for, and takes along response
//! headers `object_store` has no place for.

use std::sync::Arc;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpRequest, HttpResponse, HttpService, ReqwestConnector,
};

use crate::class::Tier;
use crate::clock::Skew;

/// What all connections of a sink share.
#[derive(Debug, Default)]
pub(crate) struct Wire {
    pub(crate) skew: Skew,
    #[cfg(feature = "s3")]
    pub(crate) signer: std::sync::OnceLock<crate::s3::Signer>,
}

impl Wire {
    fn saw(&self, response: &HttpResponse) {
        let date = response.headers().get("date").and_then(|d| d.to_str().ok());
        if let Some(date) = date.and_then(|d| DateTime::parse_from_rfc2822(d).ok()) {
            self.skew.set((date.to_utc() - Utc::now()).num_seconds());
        }
    }
}

/// Connects through a [`Wire`].
#[derive(Debug)]
pub(crate) struct WireConnector(pub(crate) Arc<Wire>);

impl HttpConnector for WireConnector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let inner = ReqwestConnector::default().connect(options)?;
        Ok(HttpClient::new(Service { inner, wire: Arc::clone(&self.0) }))
    }
}

#[derive(Debug)]
struct Service {
    inner: HttpClient,
    wire: Arc<Wire>,
}

#[async_trait]
impl HttpService for Service {
    #[cfg_attr(not(feature = "s3"), expect(unused_mut, reason = "only S3 changes requests"))]
    async fn call(&self, mut request: HttpRequest) -> Result<HttpResponse, HttpError> {
        #[cfg(feature = "s3")]
        crate::s3::add_headers(self.wire.signer.get(), &mut request).await?;
        let mut response = self.inner.execute(request).await?;
        self.wire.saw(&response);
        let headers = response.headers();
        let tier = Tier::from_headers(|name| headers.get(name).and_then(|value| value.to_str().ok()));
        response.extensions_mut().insert(tier);
        Ok(response)
    }
}
