//! A second copy of every backup in another region, made by a job of its own: the host that makes the backups need not
//! reach the second region, and a region that was away gets what it missed.
//!
//! `cross_region SET s3://bucket/prefix REGION s3://bucket/prefix REGION [ENDPOINT ENDPOINT]`
//!
//! Credentials come from where the AWS tools look for them. Endpoints are for compatible stores; `-` for Amazon's own.
//! What is encrypted stays so: without `BACKUP_KEYRING` (64 hexadecimal digits of a key) only unencrypted backups
//! can be checked and copied.
#![expect(clippy::print_stdout, reason = "this program talks to a person")]

use backup_core::{Keyring, Repository, Result, Sink as _};
use backup_s3::{ObjectStoreSink, S3Sink};

type Fallible<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn region(url: &str, region: &str, endpoint: Option<&String>) -> Result<ObjectStoreSink> {
    let builder = S3Sink::from_url(url)?.region(region).id(format!("{region}:{url}"));
    match endpoint.filter(|endpoint| *endpoint != "-") {
        Some(endpoint) => builder.endpoint(endpoint).build(),
        None => builder.build(),
    }
}

#[tokio::main]
async fn main() -> Fallible<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [set, from_url, from_region, to_url, to_region, endpoints @ ..] = words.as_slice() else {
        return Err("cross_region SET FROM-URL REGION TO-URL REGION [ENDPOINT ENDPOINT]".into());
    };
    let from = region(from_url, from_region, endpoints.first())?;
    let to = region(to_url, to_region, endpoints.get(1))?;
    // Says what the role may not do, or what is unwise about the bucket, before anything is copied.
    for warning in to.probe().await? {
        println!("{to_region}: {}: {}", warning.code, warning.message);
    }
    let (from_id, to_id) = (from.id().clone(), to.id().clone());
    let mut builder = Repository::builder().sink(from).sink(to).require_copies(1).memory_budget(128 << 20);
    if let Ok(key) = std::env::var("BACKUP_KEYRING") {
        builder = builder.transform(backup_core::AesGcm::new(keyring(&key)?));
    }
    let repository = builder.build()?;

    // Backups that are there already cost one listing; each object is verified while it is copied.
    let report = repository.replicate_all(set).from(&from_id).to(&to_id).report().await?;
    for replica in &report.replicas {
        println!(
            "{}: {} objects copied, {} there already, {} bytes{}",
            replica.id,
            replica.copied.len() + replica.healed.len(),
            replica.kept,
            replica.bytes,
            if replica.whole { "" } else { ", not whole" },
        );
    }
    report.into_result()?;
    Ok(())
}

fn keyring(hex: &str) -> Fallible<Keyring> {
    let mut key = [0; 32];
    if hex.len() != 64 || !hex.is_ascii() {
        return Err("BACKUP_KEYRING must be 64 hexadecimal digits".into());
    }
    for (index, byte) in key.iter_mut().enumerate() {
        let digits = hex.get(index * 2..index * 2 + 2).unwrap_or_default();
        *byte = u8::from_str_radix(digits, 16).map_err(|_| "BACKUP_KEYRING must be hexadecimal")?;
    }
    Ok(Keyring::builder().key(key).build()?)
}
