//! The HTTP client's settings, the same for every store.

use std::time::Duration;

use backup_core::{Error, Result};
use object_store::{BackoffConfig, Certificate, ClientConfigKey, ClientOptions, RetryConfig};
use url::{Host, Url};

const OPERATION: &str = "open object store";
/// Settings taken over from the environment's.
const FROM_ENVIRONMENT: [ClientConfigKey; 6] = [
    ClientConfigKey::AllowInvalidCertificates,
    ClientConfigKey::ConnectTimeout,
    ClientConfigKey::ProxyCaCertificate,
    ClientConfigKey::ProxyExcludes,
    ClientConfigKey::ProxyUrl,
    ClientConfigKey::PoolIdleTimeout,
];

pub(crate) struct Client<'a> {
    /// Longest time for one request.
    pub(crate) timeout: Duration,
    pub(crate) allow_http: bool,
    pub(crate) certificates: &'a [Vec<u8>],
    pub(crate) environment: &'a dyn Fn(ClientConfigKey) -> Option<String>,
}

impl Client<'_> {
    pub(crate) fn options(&self) -> Result<ClientOptions> {
        let mut options = ClientOptions::new().with_connect_timeout(Duration::from_secs(10));
        for key in FROM_ENVIRONMENT {
            if let Some(value) = (self.environment)(key) {
                options = options.with_config(key, value);
            }
        }
        options = options.with_timeout(self.timeout).with_allow_http(self.allow_http);
        for pem in self.certificates {
            let bundle = Certificate::from_pem_bundle(pem).map_err(|e| {
                Error::invalid(OPERATION, "a root certificate is not a PEM certificate").caused_by(e)
            })?;
            for certificate in bundle {
                options = options.with_root_certificate(certificate);
            }
        }
        Ok(options)
    }

    /// Retries of one request. Their time includes the first try's: it must not be used up by one slow part.
    pub(crate) fn retry(&self) -> RetryConfig {
        RetryConfig {
            backoff: BackoffConfig {
                init_backoff: Duration::from_millis(100),
                max_backoff: Duration::from_secs(10),
                base: 2.0,
            },
            max_retries: 8,
            retry_timeout: self.timeout * 3,
        }
    }
}

/// Whether `url` may be used without TLS: if it was allowed, or never leaves this machine.
#[cfg_attr(not(any(feature = "s3", feature = "azure")), expect(dead_code, reason = "GCS has one endpoint"))]
pub(crate) fn check_http(url: &str, allowed: bool) -> Result<bool> {
    let parsed = Url::parse(url).ok();
    if parsed.as_ref().is_some_and(|url| url.scheme() == "https") {
        return Ok(allowed);
    }
    let local = match parsed.as_ref().and_then(Url::host) {
        Some(Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    };
    if allowed || local {
        return Ok(true);
    }
    Err(Error::invalid(
        OPERATION,
        "the endpoint has no TLS: anyone on the way can read and change requests; use https, or say `allow_http`",
    ))
}
