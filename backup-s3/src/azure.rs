//! Azure Blob Storage.

use std::fmt;
use std::sync::Arc;

use backup_core::{Error, Result};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};

use crate::builder::{Built, SinkBuilder};
use crate::copy::Origin;
use crate::error::{Tried, store_error};
use crate::http_client::{self, Client};
use crate::parts::PartSizes;
use crate::sink::ObjectStoreSink;
use crate::tls;
use crate::wire::{Wire, WireConnector};

const OPERATION: &str = "open Azure sink";

/// A sink in a container of Azure Blob Storage.
///
/// Credentials come from the builder, else from `AZURE_STORAGE_ACCOUNT_NAME`, `AZURE_STORAGE_ACCOUNT_KEY`,
/// `AZURE_STORAGE_SAS_KEY`, `AZURE_CLIENT_ID` and the like, else from the machine's managed identity. Blocks of uploads
/// that never ended disappear by themselves after 7 days: there is nothing to sweep.
#[derive(Debug)]
pub struct AzureSink;

impl AzureSink {
    /// Begins with the environment's configuration.
    pub fn builder() -> SinkBuilder<Azure> {
        SinkBuilder::with(Azure {
            builder: MicrosoftAzureBuilder::from_env(),
            container: None,
            endpoint: None,
        })
    }

    /// Begins with container and prefix from `az://container/prefix`.
    pub fn from_url(url: &str) -> Result<SinkBuilder<Azure>> {
        let (container, prefix) = crate::url::bucket_and_prefix(url, &["az", "azure"])?;
        Ok(Self::builder().container(container).prefix(prefix))
    }
}

/// What Azure needs to know beyond [`SinkBuilder`].
#[derive(Clone)]
pub struct Azure {
    builder: MicrosoftAzureBuilder,
    container: Option<String>,
    endpoint: Option<String>,
}

impl fmt::Debug for Azure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Azure").field("container", &self.container).finish_non_exhaustive()
    }
}

impl SinkBuilder<Azure> {
    /// The container.
    pub fn container(mut self, container: impl Into<String>) -> Self {
        self.provider.container = Some(container.into());
        self
    }

    /// The storage account.
    pub fn account(mut self, account: impl Into<String>) -> Self {
        self.provider.builder = self.provider.builder.with_account(account);
        self
    }

    /// The account's key, in base64.
    pub fn access_key(mut self, key: impl Into<String>) -> Self {
        self.provider.builder = self.provider.builder.with_access_key(key);
        self
    }

    /// A shared access signature, as the portal shows it.
    pub fn shared_access_signature(mut self, signature: impl Into<String>) -> Self {
        self.provider.builder = self.provider.builder.with_config(AzureConfigKey::SasKey, signature);
        self
    }

    /// The URL of the account on another cloud or an emulator: `http://127.0.0.1:10000/devstoreaccount1`.
    pub fn endpoint(mut self, url: impl Into<String>) -> Self {
        self.provider.endpoint = Some(url.into());
        self
    }

    /// Opens the sink. Does not connect: [`probe`](backup_core::Sink::probe) does.
    pub fn build(self) -> Result<ObjectStoreSink> {
        tls::install();
        let Azure { mut builder, container, endpoint } = self.provider;
        let container = container.or_else(|| builder.get_config_value(&AzureConfigKey::ContainerName));
        let container =
            container.ok_or_else(|| Error::invalid(OPERATION, "name the container with `container`"))?;
        let endpoint = endpoint.or_else(|| builder.get_config_value(&AzureConfigKey::Endpoint));
        let environment = |key| builder.get_config_value(&AzureConfigKey::Client(key));
        let allowed = environment(object_store::ClientConfigKey::AllowHttp).as_deref() == Some("true");
        let client = Client {
            timeout: self.options.request_timeout(),
            allow_http: endpoint
                .as_deref()
                .map_or(Ok(allowed), |url| http_client::check_http(url, allowed))?,
            certificates: &[],
            environment: &environment,
        };
        let account = builder.get_config_value(&AzureConfigKey::AccountName).unwrap_or_default();
        let place = endpoint.as_deref().unwrap_or_default();
        let origin = Origin { store: format!("az {place} {account} {container}"), bucket: String::new() };
        let (retry, options) = (client.retry(), client.options()?);
        if let Some(endpoint) = endpoint {
            builder = builder.with_endpoint(endpoint);
        }
        let wire = Arc::new(Wire::default());
        let store = builder
            .with_container_name(&container)
            .with_retry(retry)
            .with_client_options(options)
            .with_http_connector(WireConnector(Arc::clone(&wire)))
            .build()
            .map_err(|e| store_error(OPERATION, Tried::Enough, &e))?;
        Built {
            // Its part-by-part interface takes no metadata, storage class or tags; its upload object does.
            multipart: None,
            store: Arc::new(store),
            native: None,
            part_sizes: PartSizes::Growing,
            skew: wire.skew.clone(),
            origin,
            url: format!("az://{container}"),
        }
        .finish(self.options)
    }
}
