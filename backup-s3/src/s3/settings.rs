//! Choices about objects on S3.

use std::fmt;

/// What a request carries so that the store notices bytes changed on the way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Checksum {
    /// `x-amz-checksum-sha256` on every put and part. Also the payload's signature.
    #[default]
    Sha256,
    /// `x-amz-checksum-crc64nvme`: for stores that do not know SHA-256.
    Crc64Nvme,
    /// None but the signature over the payload: for stores that refuse checksum headers.
    None,
}

/// Encryption by the store, beside the backup's own.
#[derive(Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Encryption {
    /// Whatever the bucket does by default.
    #[default]
    BucketDefault,
    /// SSE-S3: keys of the store.
    S3,
    /// SSE-KMS.
    Kms {
        /// Id or ARN of the key.
        key_id: String,
        /// Whether to use a bucket key, which makes fewer KMS requests.
        bucket_key: bool,
    },
    /// SSE-C: this 256-bit key, in base64. Whoever restores needs it as well.
    Customer {
        /// The key.
        key_base64: String,
    },
}

impl fmt::Debug for Encryption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BucketDefault => f.write_str("BucketDefault"),
            Self::S3 => f.write_str("S3"),
            Self::Kms { key_id, bucket_key } => {
                f.debug_struct("Kms").field("key_id", key_id).field("bucket_key", bucket_key).finish()
            }
            Self::Customer { .. } => f.write_str("Customer(…)"),
        }
    }
}

/// How objects are locked until the time their retention promises.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum ObjectLock {
    /// Governance mode where the bucket has object lock, nothing elsewhere.
    #[default]
    WhereEnabled,
    /// Governance mode: `s3:BypassGovernanceRetention` can lift it. The bucket must have object lock.
    Governance,
    /// Compliance mode: nobody can lift it. The bucket must have object lock.
    Compliance,
    /// Never.
    Off,
}
