//! Credentials that are fetched and renewed: an assumed role, or a program that prints them.

use std::fmt;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use chrono::{DateTime, TimeDelta, Utc};
use http::header::{ACCEPT, CONTENT_TYPE};
use object_store::aws::{AwsAuthorizer, AwsCredential, AwsCredentialProvider};
use object_store::client::{HttpClient, HttpRequestBody};
use object_store::{CredentialProvider, StaticCredentialProvider};
use serde::Deserialize;
use tokio::sync::Mutex;

use super::api::encode;
use super::profile::Way;
use crate::error::Reply;

/// Credentials are renewed this long before they end.
const EARLY: TimeDelta = TimeDelta::minutes(5);
/// Time a credential program or the token service may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// What roles are assumed with.
#[derive(Clone, Debug)]
pub(super) struct Sts {
    pub(super) client: HttpClient,
    pub(super) region: String,
    pub(super) endpoint: String,
}

/// The provider for a way; `None` where the store's client finds credentials by itself.
pub(super) fn provider(way: Way, sts: &Sts) -> Option<AwsCredentialProvider> {
    let origin = match way {
        Way::Keys { id, secret, token } => {
            let credential = AwsCredential { key_id: id, secret_key: secret, token };
            return Some(Arc::new(StaticCredentialProvider::new(credential)));
        }
        Way::Process(argv) => Origin::Process(argv),
        Way::Role { role, external_id, session, source } => Origin::Role {
            source: provider(*source, sts)?,
            role,
            external_id,
            session: session.unwrap_or_else(|| "backup".to_owned()),
            sts: sts.clone(),
        },
        Way::WebIdentity { .. } | Way::Ambient => return None,
    };
    Some(Arc::new(Renewed { origin, cached: Mutex::new(None) }))
}

enum Origin {
    Process(Vec<String>),
    Role {
        source: AwsCredentialProvider,
        role: String,
        external_id: Option<String>,
        session: String,
        sts: Sts,
    },
}

type Cached = (Arc<AwsCredential>, Option<DateTime<Utc>>);

struct Renewed {
    origin: Origin,
    cached: Mutex<Option<Cached>>,
}

impl fmt::Debug for Renewed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.origin {
            Origin::Process(_) => "Renewed(process)",
            Origin::Role { .. } => "Renewed(role)",
        })
    }
}

#[async_trait]
impl CredentialProvider for Renewed {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<AwsCredential>> {
        let mut cached = self.cached.lock().await;
        if let Some((credential, end)) = &*cached
            && end.is_none_or(|end| end - EARLY > Utc::now())
        {
            return Ok(Arc::clone(credential));
        }
        let fetched = match &self.origin {
            Origin::Process(argv) => from_process(argv).await,
            Origin::Role { source, role, external_id, session, sts } => {
                let source = source.get_credential().await?;
                sts.assume(&source, role, external_id.as_deref(), session).await
            }
        };
        let (credential, end) = fetched.map_err(|source| object_store::Error::Unauthenticated {
            path: String::new(),
            source: source.into(),
        })?;
        let credential = Arc::new(credential);
        *cached = Some((Arc::clone(&credential), end));
        Ok(credential)
    }
}

type Fetched = Result<(AwsCredential, Option<DateTime<Utc>>), String>;

/// AWS SDKs and Tools reference, "Process credential provider".
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Printed {
    version: u32,
    access_key_id: String,
    secret_access_key: String,
    session_token: Option<String>,
    expiration: Option<DateTime<Utc>>,
}

async fn from_process(argv: &[String]) -> Fetched {
    let Some((program, arguments)) = argv.split_first() else { return Err("no command".to_owned()) };
    let mut command = tokio::process::Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(PATIENCE, command.output()).await;
    let output = output
        .map_err(|_| "the credential process did not end in time".to_owned())?
        .map_err(|e| format!("the credential process cannot be run: {}", e.kind()))?;
    if !output.status.success() {
        return Err(format!("the credential process failed ({}); run it by hand", output.status));
    }
    // The parser's own message could quote a secret.
    let printed: Printed = serde_json::from_slice(&output.stdout)
        .map_err(|_| "the credential process printed something else than credentials".to_owned())?;
    if printed.version != 1 {
        return Err("the credential process speaks a version other than 1".to_owned());
    }
    let credential = AwsCredential {
        key_id: printed.access_key_id,
        secret_key: printed.secret_access_key,
        token: printed.session_token,
    };
    Ok((credential, printed.expiration))
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct AssumeRoleResponse {
    assume_role_result: AssumeRoleResult,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct AssumeRoleResult {
    credentials: Credentials,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Credentials {
    access_key_id: String,
    secret_access_key: String,
    session_token: String,
    expiration: DateTime<Utc>,
}

impl Sts {
    /// AWS Security Token Service API reference, `AssumeRole`, version 2011-06-15.
    async fn assume(
        &self,
        source: &AwsCredential,
        role: &str,
        external_id: Option<&str>,
        session: &str,
    ) -> Fetched {
        let mut form = String::from("Action=AssumeRole&Version=2011-06-15");
        let external = external_id.map(|id| ("ExternalId", id));
        for (name, value) in [("RoleArn", role), ("RoleSessionName", session)].into_iter().chain(external) {
            form.push('&');
            form.push_str(name);
            form.push('=');
            encode(&mut form, value, false);
        }
        let mut request = http::Request::post(format!("{}/", self.endpoint.trim_end_matches('/')))
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
            .header(ACCEPT, "application/xml")
            .body(HttpRequestBody::from(Bytes::from(form)))
            .map_err(|_| "the address of the token service is not a URL".to_owned())?;
        AwsAuthorizer::new(source, "sts", &self.region)
            .try_authorize(&mut request, None)
            .map_err(|_| "the request for a role cannot be signed".to_owned())?;
        let reply = async {
            let response = self.client.execute(request).await.map_err(|e| e.to_string())?;
            let status = response.status();
            let body = response.into_body().bytes().await.map_err(|e| e.to_string())?;
            Ok::<_, String>((status, body))
        };
        let (status, body) = tokio::time::timeout(PATIENCE, reply)
            .await
            .map_err(|_| "the token service did not answer in time".to_owned())??;
        let text = String::from_utf8_lossy(&body);
        if !status.is_success() {
            let reply = Reply::read(Some(status.as_u16()), &text);
            return Err(format!("the role cannot be assumed: {reply}"));
        }
        let parsed: AssumeRoleResponse = quick_xml::de::from_str(&text)
            .map_err(|_| "the token service replied something else than credentials".to_owned())?;
        let found = parsed.assume_role_result.credentials;
        let credential = AwsCredential {
            key_id: found.access_key_id,
            secret_key: found.secret_access_key,
            token: Some(found.session_token),
        };
        Ok((credential, Some(found.expiration)))
    }
}
