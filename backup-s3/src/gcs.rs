//! Google Cloud Storage.
//!
//! Not tested against a server: none that speaks the XML interface can be had. Requests are checked against a stub.

use std::fmt;
use std::sync::Arc;

use backup_core::{Error, Result};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};

use crate::builder::{Built, SinkBuilder};
use crate::copy::Origin;
use crate::error::{Tried, store_error};
use crate::http_client::Client;
use crate::parts::PartSizes;
use crate::sink::ObjectStoreSink;
use crate::tls;
use crate::wire::{Wire, WireConnector};

const OPERATION: &str = "open GCS sink";

/// A sink on Google Cloud Storage.
///
/// Credentials come from the builder, else from `GOOGLE_SERVICE_ACCOUNT`, `GOOGLE_APPLICATION_CREDENTIALS` and the
/// like, else from the machine's own identity.
#[derive(Debug)]
pub struct GcsSink;

impl GcsSink {
    /// Begins with the environment's configuration.
    pub fn builder() -> SinkBuilder<Gcs> {
        SinkBuilder::with(Gcs { builder: GoogleCloudStorageBuilder::from_env(), bucket: None })
    }

    /// Begins with bucket and prefix from `gs://bucket/prefix`.
    pub fn from_url(url: &str) -> Result<SinkBuilder<Gcs>> {
        let (bucket, prefix) = crate::url::bucket_and_prefix(url, &["gs"])?;
        Ok(Self::builder().bucket(bucket).prefix(prefix))
    }
}

/// What GCS needs to know beyond [`SinkBuilder`].
#[derive(Clone)]
pub struct Gcs {
    builder: GoogleCloudStorageBuilder,
    bucket: Option<String>,
}

impl fmt::Debug for Gcs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gcs").field("bucket", &self.bucket).finish_non_exhaustive()
    }
}

impl SinkBuilder<Gcs> {
    /// The bucket.
    pub fn bucket(mut self, bucket: impl Into<String>) -> Self {
        self.provider.bucket = Some(bucket.into());
        self
    }

    /// The path of a service account's key file.
    pub fn service_account_path(mut self, path: impl Into<String>) -> Self {
        self.provider.builder = self.provider.builder.with_service_account_path(path);
        self
    }

    /// The text of a service account's key file.
    pub fn service_account_key(mut self, json: impl Into<String>) -> Self {
        self.provider.builder = self.provider.builder.with_service_account_key(json);
        self
    }

    /// Opens the sink. Does not connect: [`probe`](backup_core::Sink::probe) does.
    pub fn build(self) -> Result<ObjectStoreSink> {
        tls::install();
        let Gcs { builder, bucket } = self.provider;
        let bucket = bucket.or_else(|| builder.get_config_value(&GoogleConfigKey::Bucket));
        let bucket = bucket.ok_or_else(|| Error::invalid(OPERATION, "name the bucket with `bucket`"))?;
        let environment = |key| builder.get_config_value(&GoogleConfigKey::Client(key));
        let client = Client {
            timeout: self.options.request_timeout(),
            allow_http: environment(object_store::ClientConfigKey::AllowHttp).as_deref() == Some("true"),
            certificates: &[],
            environment: &environment,
        };
        let wire = Arc::new(Wire::default());
        let store = builder
            .clone()
            .with_bucket_name(&bucket)
            .with_retry(client.retry())
            .with_client_options(client.options()?)
            .with_http_connector(WireConnector(Arc::clone(&wire)))
            .build()
            .map_err(|e| store_error(OPERATION, Tried::Enough, &e))?;
        let store = Arc::new(store);
        Built {
            multipart: Some(Arc::clone(&store) as _),
            store,
            native: None,
            part_sizes: PartSizes::Growing,
            skew: wire.skew.clone(),
            origin: Origin { store: format!("gs://{bucket}"), bucket: String::new() },
            url: format!("gs://{bucket}"),
        }
        .finish(self.options)
    }
}
