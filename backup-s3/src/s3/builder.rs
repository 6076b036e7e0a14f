//! [`S3Sink`]: from the usual configuration to a sink.

use std::fmt;
use std::sync::Arc;

use backup_core::{Error, Result};
use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey as ConfigKey};
use object_store::client::HttpConnector as _;
use tokio::sync::OnceCell;
use url::Url;

use super::api::Api;
use super::credentials::{self, Sts};
use super::native::S3Native;
use super::profile::{Environment, Profile, Way};
use super::settings::{Checksum, Encryption, ObjectLock};
use super::sign::Signer;
use crate::builder::{Built, SinkBuilder};
use crate::copy::Origin;
use crate::http_client::{self, Client};
use crate::parts::PartSizes;
use crate::sink::ObjectStoreSink;
use crate::tls;
use crate::wire::{Wire, WireConnector};

const OPERATION: &str = "open S3 sink";
const DEFAULT_REGION: &str = "us-east-1";

/// A sink on Amazon S3, or a store that speaks its protocol.
///
/// Configuration comes from the builder, else from the environment (`AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`,
/// `AWS_SESSION_TOKEN`, `AWS_REGION`, `AWS_DEFAULT_REGION`, `AWS_ENDPOINT_URL_S3`, `AWS_ENDPOINT_URL`, `AWS_PROFILE`,
/// `AWS_CA_BUNDLE`, …), else from the profile files of the AWS tools; credentials at last from a web identity, the
/// container or the instance.
///
/// ```no_run
/// use backup_s3::S3Sink;
/// # fn main() -> backup_core::Result<()> {
/// let offsite = S3Sink::builder().bucket("offsite").prefix("books").region("eu-central-1").build()?;
/// let minio = S3Sink::from_url("s3://backups/books")?.endpoint("https://minio.example.org").build()?;
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct S3Sink;

impl S3Sink {
    /// Begins with the environment's configuration.
    pub fn builder() -> SinkBuilder<S3> {
        SinkBuilder::with(S3 {
            environment: std::env::vars_os()
                .filter_map(|(n, v)| Some((n.into_string().ok()?, v.into_string().ok()?)))
                .collect(),
            ..S3::default()
        })
    }

    /// Begins with bucket and prefix from `s3://bucket/prefix`.
    pub fn from_url(url: &str) -> Result<SinkBuilder<S3>> {
        let (bucket, prefix) = crate::url::bucket_and_prefix(url, &["s3", "s3a"])?;
        Ok(Self::builder().bucket(bucket).prefix(prefix))
    }
}

/// What S3 needs to know beyond [`SinkBuilder`].
#[derive(Clone, Default)]
pub struct S3 {
    environment: Environment,
    bucket: Option<String>,
    region: Option<String>,
    endpoint: Option<String>,
    profile: Option<String>,
    keys: Option<Way>,
    virtual_hosted: Option<bool>,
    allow_http: bool,
    checksum: Option<Checksum>,
    encryption: Encryption,
    object_lock: ObjectLock,
    copy_digests: Option<bool>,
    certificates: Vec<Vec<u8>>,
}

impl fmt::Debug for S3 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("S3").field("bucket", &self.bucket).finish_non_exhaustive()
    }
}

impl SinkBuilder<S3> {
    /// Forgets the environment: only the builder's own settings, and instance credentials, count.
    pub fn without_environment(mut self) -> Self {
        self.provider.environment.clear();
        self
    }

    /// Reads these variables in place of the process's environment.
    pub fn environment<N: Into<String>, V: Into<String>>(
        mut self,
        variables: impl IntoIterator<Item = (N, V)>,
    ) -> Self {
        self.provider.environment =
            variables.into_iter().map(|(name, value)| (name.into(), value.into())).collect();
        self
    }

    /// The bucket.
    pub fn bucket(mut self, bucket: impl Into<String>) -> Self {
        self.provider.bucket = Some(bucket.into());
        self
    }

    /// The bucket's region; `us-east-1` unless configured elsewhere. Compatibles take most names.
    pub fn region(mut self, region: impl Into<String>) -> Self {
        self.provider.region = Some(region.into());
        self
    }

    /// The URL of a compatible store, without the bucket: `https://minio.example.org`.
    pub fn endpoint(mut self, url: impl Into<String>) -> Self {
        self.provider.endpoint = Some(url.into());
        self
    }

    /// A profile of the AWS tools; it goes before keys in the environment.
    pub fn profile(mut self, name: impl Into<String>) -> Self {
        self.provider.profile = Some(name.into());
        self
    }

    /// Fixed keys.
    pub fn credentials(mut self, key_id: impl Into<String>, secret: impl Into<String>) -> Self {
        self.provider.keys = Some(Way::Keys { id: key_id.into(), secret: secret.into(), token: None });
        self
    }

    /// Fixed temporary keys.
    pub fn session(
        mut self,
        key_id: impl Into<String>,
        secret: impl Into<String>,
        token: impl Into<String>,
    ) -> Self {
        let (id, secret, token) = (key_id.into(), secret.into(), Some(token.into()));
        self.provider.keys = Some(Way::Keys { id, secret, token });
        self
    }

    /// Whether the bucket is part of the host name. The default is yes on Amazon's own endpoints (unless the bucket's
    /// name has a dot) and no, "path style", elsewhere.
    pub fn virtual_hosted_style(mut self, yes: bool) -> Self {
        self.provider.virtual_hosted = Some(yes);
        self
    }

    /// Allows an endpoint without TLS. On this machine it needs no permission.
    pub fn allow_http(mut self) -> Self {
        self.provider.allow_http = true;
        self
    }

    /// Trusts a certificate authority, in PEM, beside the system's.
    pub fn root_certificate(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.provider.certificates.push(pem.into());
        self
    }

    /// What requests carry against bytes changed on the way.
    pub fn checksum(mut self, checksum: Checksum) -> Self {
        self.provider.checksum = Some(checksum);
        self
    }

    /// Encryption by the store.
    pub fn server_side_encryption(mut self, encryption: Encryption) -> Self {
        self.provider.encryption = encryption;
        self
    }

    /// How objects are locked until the time their retention promises.
    pub fn object_lock(mut self, lock: ObjectLock) -> Self {
        self.provider.object_lock = lock;
        self
    }

    /// Whether the store computes the SHA-256 of a copy it makes over the bytes it wrote, and replies it. The default is
    /// yes on Amazon's own endpoints and no elsewhere: then `replicate` reads back what the store copied.
    pub fn copy_digests(mut self, yes: bool) -> Self {
        self.provider.copy_digests = Some(yes);
        self
    }

    /// Opens the sink. Does not connect: [`probe`](backup_core::Sink::probe) does.
    ///
    /// # Errors
    ///
    /// When something is missing, contradictory, or in a profile this library cannot use; each says what to do.
    pub fn build(mut self) -> Result<ObjectStoreSink> {
        tls::install();
        let s3 = &mut self.provider;
        let profile = s3.read_profile()?;
        let from_environment = s3.environment_builder();
        let setting = |key: ConfigKey| from_environment.get_config_value(&key).filter(|v| !v.is_empty());
        let profiled = |name: &str| profile.as_ref().and_then(|p| p.get(name)).map(str::to_owned);
        let or_profile = |env: Option<String>, name: &str| {
            // A profile asked for by name goes before the environment.
            if s3.profile.is_some() { profiled(name).or(env) } else { env.or_else(|| profiled(name)) }
        };
        let bucket = s3.bucket.clone().or_else(|| setting(ConfigKey::Bucket)).filter(|b| !b.is_empty());
        let bucket = bucket.ok_or_else(|| Error::invalid(OPERATION, "name the bucket with `bucket`"))?;
        let region = s3.region.clone();
        let region = region.or_else(|| {
            let env = s3.environment.get("AWS_REGION").or_else(|| s3.environment.get("AWS_DEFAULT_REGION"));
            or_profile(env.cloned(), "region")
        });
        let region = region.unwrap_or_else(|| DEFAULT_REGION.to_owned());
        let endpoint = s3.endpoint.clone().or_else(|| {
            let env = setting(ConfigKey::S3Endpoint).or_else(|| setting(ConfigKey::Endpoint));
            or_profile(env, "endpoint_url")
        });
        let address = Address::new(endpoint.as_deref(), &bucket, &region, s3.virtual_hosted)?;
        let allow_http = http_client::check_http(
            &address.url,
            s3.allow_http
                || setting(ConfigKey::Client(object_store::ClientConfigKey::AllowHttp)).as_deref()
                    == Some("true"),
        )?;
        s3.add_ca_bundle()?;
        let client = Client {
            timeout: self.options.request_timeout(),
            allow_http,
            certificates: &s3.certificates,
            environment: &|key| setting(ConfigKey::Client(key)),
        };
        let options = client.options()?;
        let wire = Arc::new(Wire::default());
        let connect = || {
            let connected = WireConnector(Arc::clone(&wire)).connect(&options);
            connected.map_err(|e| crate::error::store_error(OPERATION, crate::error::Tried::Enough, &e))
        };
        let mut builder = from_environment
            .clone()
            .with_bucket_name(&bucket)
            .with_region(&region)
            .with_virtual_hosted_style_request(address.virtual_hosted)
            .with_retry(client.retry())
            .with_client_options(options.clone())
            // One DELETE per object: its refusal is told plainly, and every compatible knows it.
            .with_disable_bulk_delete(true)
            .with_http_connector(WireConnector(Arc::clone(&wire)));
        if address.custom {
            let base = if address.virtual_hosted { &address.url } else { &address.base };
            builder = builder.with_endpoint(base).with_config(ConfigKey::S3Endpoint, base);
        }
        if let Some(way) = s3.way(profile.as_ref(), &from_environment)? {
            let endpoint = setting(ConfigKey::StsEndpoint);
            let endpoint = endpoint.unwrap_or_else(|| format!("https://sts.{region}.amazonaws.com"));
            builder = with_way(builder, way, &Sts { client: connect()?, region: region.clone(), endpoint });
        }
        let checksum = s3.checksum(setting(ConfigKey::Checksum).as_deref())?;
        builder = s3.dress(builder, checksum);
        let unsigned = setting(ConfigKey::SkipSignature).as_deref() == Some("true");
        let store: Arc<AmazonS3> = Arc::new(
            builder
                .build()
                .map_err(|e| crate::error::store_error(OPERATION, crate::error::Tried::Enough, &e))?,
        );
        // Set once, just created: there is nothing to replace.
        let _ = wire.signer.set(Signer::new(store.credentials(), &region));
        let api = Api {
            client: connect()?,
            credentials: (!unsigned).then(|| Arc::clone(store.credentials())),
            region,
            endpoint: address.url.clone(),
            bucket: bucket.clone(),
        };
        let native = S3Native {
            api: Arc::new(api),
            encryption: s3.encryption.clone(),
            object_lock: s3.object_lock,
            checksum,
            copy_digests: s3.copy_digests.unwrap_or(address.amazon.is_some()),
            tags: self.options.tags.clone(),
            bucket_locks: OnceCell::new(),
        };
        let r2 = address.url.contains(".r2.cloudflarestorage.com");
        Built {
            multipart: Some(Arc::clone(&store) as _),
            store,
            native: Some(Arc::new(native)),
            part_sizes: if r2 { PartSizes::Equal } else { PartSizes::Growing },
            skew: wire.skew.clone(),
            origin: Origin { store: address.store(), bucket: bucket.clone() },
            url: format!("s3://{bucket}"),
        }
        .finish(self.options)
    }
}

impl S3 {
    fn environment_builder(&self) -> AmazonS3Builder {
        let mut builder = AmazonS3Builder::new();
        for (name, value) in &self.environment {
            if name.starts_with("AWS_")
                && let Ok(key) = name.to_ascii_lowercase().parse::<ConfigKey>()
            {
                builder = builder.with_config(key, value);
            }
        }
        builder
    }

    fn read_profile(&self) -> Result<Option<Profile>> {
        let named = self.profile.as_ref().or_else(|| self.environment.get("AWS_PROFILE"));
        let profile = Profile::read(named.map_or("default", String::as_str), &self.environment)?;
        match (named, &profile) {
            (Some(name), None) => Err(Error::invalid(
                OPERATION,
                "the profile is in neither ~/.aws/config nor ~/.aws/credentials",
            )
            .with("profile", name)),
            _ => Ok(profile),
        }
    }

    /// How to come by credentials, where `object_store` does not find them by itself.
    fn way(&self, profile: Option<&Profile>, environment: &AmazonS3Builder) -> Result<Option<Way>> {
        if self.keys.is_some() {
            return Ok(self.keys.clone());
        }
        let has = |key: ConfigKey| environment.get_config_value(&key).is_some_and(|value| !value.is_empty());
        let from_environment = has(ConfigKey::AccessKeyId)
            || has(ConfigKey::WebIdentityTokenFile)
            || has(ConfigKey::ContainerCredentialsRelativeUri)
            || has(ConfigKey::ContainerCredentialsFullUri)
            || has(ConfigKey::SkipSignature);
        if from_environment && self.profile.is_none() {
            return Ok(None);
        }
        profile.map(|profile| profile.way(&self.environment)).transpose()
    }

    fn add_ca_bundle(&mut self) -> Result<()> {
        if let Some(path) = self.environment.get("AWS_CA_BUNDLE").filter(|path| !path.is_empty()) {
            let pem = std::fs::read(path).map_err(|e| Error::io(OPERATION, e).with("AWS_CA_BUNDLE", path))?;
            self.certificates.push(pem);
        }
        Ok(())
    }

    /// The builder's choice, else that of `AWS_CHECKSUM_ALGORITHM`.
    fn checksum(&self, environment: Option<&str>) -> Result<Checksum> {
        let known = |name: &str| match name.to_ascii_lowercase().as_str() {
            "sha256" => Ok(Checksum::Sha256),
            "crc64nvme" => Ok(Checksum::Crc64Nvme),
            _ => Err(Error::invalid(OPERATION, "AWS_CHECKSUM_ALGORITHM must be sha256 or crc64nvme")),
        };
        let checksum = match self.checksum {
            Some(checksum) => checksum,
            None => environment.map_or(Ok(Checksum::default()), known)?,
        };
        if checksum == Checksum::None
            && matches!(self.object_lock, ObjectLock::Governance | ObjectLock::Compliance)
        {
            return Err(Error::invalid(OPERATION, "locked objects need a checksum; choose one"));
        }
        Ok(checksum)
    }

    fn dress(&self, mut builder: AmazonS3Builder, checksum: Checksum) -> AmazonS3Builder {
        builder = match checksum {
            Checksum::Sha256 => builder.with_checksum_algorithm(object_store::aws::Checksum::SHA256),
            Checksum::Crc64Nvme => builder.with_checksum_algorithm(object_store::aws::Checksum::CRC64NVME),
            Checksum::None => builder,
        };
        match &self.encryption {
            Encryption::BucketDefault => builder,
            Encryption::S3 => match "aws_server_side_encryption".parse() {
                Ok(key) => builder.with_config(key, "AES256"),
                Err(_) => builder,
            },
            Encryption::Kms { key_id, bucket_key } => {
                builder.with_sse_kms_encryption(key_id).with_bucket_key(*bucket_key)
            }
            Encryption::Customer { key_base64 } => builder.with_ssec_encryption(key_base64),
        }
    }
}

fn with_way(builder: AmazonS3Builder, way: Way, sts: &Sts) -> AmazonS3Builder {
    match way {
        Way::WebIdentity { role, token_file } => builder
            .with_config(ConfigKey::RoleArn, role)
            .with_config(ConfigKey::WebIdentityTokenFile, token_file),
        way => match credentials::provider(way, sts) {
            Some(provider) => builder.with_credentials(provider),
            None => builder,
        },
    }
}

/// Where the bucket answers.
#[derive(Debug, PartialEq, Eq)]
struct Address {
    /// Has to be told to `object_store`, which does not make it up by itself.
    custom: bool,
    /// One of Amazon's own: the part of the host's name all its regions share.
    amazon: Option<&'static str>,
    /// The store's URL, without the bucket.
    base: String,
    /// The bucket's URL.
    url: String,
    virtual_hosted: bool,
}

impl Address {
    fn new(endpoint: Option<&str>, bucket: &str, region: &str, virtual_hosted: Option<bool>) -> Result<Self> {
        let plain = |c: char| c.is_ascii_alphanumeric() || ".-_".contains(c);
        if !bucket.chars().all(plain) || !region.chars().all(plain) {
            return Err(Error::invalid(
                OPERATION,
                "bucket and region hold letters, digits, `.`, `-` and `_` only",
            )
            .with("bucket", bucket.escape_debug())
            .with("region", region.escape_debug()));
        }
        let custom = endpoint.is_some();
        // A certificate for `*.s3.…` does not cover names with another dot.
        let virtual_hosted = virtual_hosted.unwrap_or(!custom && !bucket.contains('.'));
        let suffix = if region.starts_with("cn-") { "amazonaws.com.cn" } else { "amazonaws.com" };
        let base = endpoint.map_or_else(|| format!("https://s3.{region}.{suffix}"), str::to_owned);
        let base = base.trim_end_matches('/').to_owned();
        let refuse = || {
            Error::invalid(
                OPERATION,
                "the endpoint must be a URL like https://host:port, without bucket, query or password",
            )
        };
        let parsed = Url::parse(&base).map_err(|_| refuse())?;
        let clean = parsed.username().is_empty() && parsed.password().is_none() && parsed.query().is_none();
        if !clean || !matches!(parsed.scheme(), "http" | "https") || parsed.host_str().is_none() {
            return Err(refuse());
        }
        let url = if virtual_hosted {
            base.replacen("://", &format!("://{bucket}."), 1)
        } else {
            format!("{base}/{bucket}")
        };
        // object_store makes up China's hosts with Amazon's general suffix.
        let amazon = (!custom).then_some(suffix);
        Ok(Self { custom: custom || suffix != "amazonaws.com", amazon, base, url, virtual_hosted })
    }

    /// The store whose buckets can be copied from one to another. Amazon copies between regions, too.
    fn store(&self) -> String {
        format!("s3 {}", self.amazon.unwrap_or(&self.base))
    }
}

#[cfg(test)]
mod tests;
