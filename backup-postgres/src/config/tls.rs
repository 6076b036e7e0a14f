//! TLS by rustls with ring, with libpq's meanings of `sslmode`.

use std::path::Path;
use std::sync::Arc;

use backup_core::{Error, ErrorKind, Result};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{
    CryptoProvider, ring::default_provider, verify_tls12_signature, verify_tls13_signature,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::{PgConfig, TlsMode};

/// Makes TLS connections as `config` asks.
pub(crate) fn connector(config: &PgConfig) -> Result<MakeRustlsConnect> {
    let failed = |e: rustls::Error| Error::new(ErrorKind::InvalidInput, "prepare TLS").caused_by(e);
    let provider = Arc::new(default_provider());
    let trust = match (config.tls, &config.root_cert) {
        (TlsMode::Disable | TlsMode::Prefer, _) | (TlsMode::Require, None) => Trust::Anyone,
        (TlsMode::VerifyFull, roots) => Trust::Host(verifier(roots.as_deref(), &provider)?),
        (_, roots) => Trust::Chain(verifier(roots.as_deref(), &provider)?),
    };
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(failed)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Verifier { trust, provider }));
    let client = match &config.client_cert {
        None => builder.with_no_client_auth(),
        Some((cert, key)) => {
            let chain = certificates(cert)?;
            let key = PrivateKeyDer::from_pem_file(key).map_err(|e| unreadable(key, e))?;
            builder.with_client_auth_cert(chain, key).map_err(failed)?
        }
    };
    Ok(MakeRustlsConnect::new(client))
}

fn unreadable(path: &Path, error: rustls::pki_types::pem::Error) -> Error {
    Error::invalid("read certificate", "the PEM file cannot be read")
        .with("path", path.display())
        .caused_by(error)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|e| unreadable(path, e))
}

fn verifier(roots: Option<&Path>, provider: &Arc<CryptoProvider>) -> Result<Arc<WebPkiServerVerifier>> {
    let mut store = RootCertStore::empty();
    let found = match roots {
        Some(path) if path != Path::new("system") => certificates(path)?,
        _ => rustls_native_certs::load_native_certs().certs,
    };
    store.add_parsable_certificates(found);
    WebPkiServerVerifier::builder_with_provider(Arc::new(store), Arc::clone(provider)).build().map_err(|e| {
        Error::invalid("prepare TLS", "no usable root certificate; set sslrootcert to a PEM file")
            .caused_by(e)
    })
}

/// Whom to believe.
#[derive(Debug)]
enum Trust {
    /// Encryption against listeners only.
    Anyone,
    /// A trusted authority, whatever the host.
    Chain(Arc<WebPkiServerVerifier>),
    /// A trusted authority, for this host.
    Host(Arc<WebPkiServerVerifier>),
}

#[derive(Debug)]
struct Verifier {
    trust: Trust,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let ask = |v: &WebPkiServerVerifier| {
            v.verify_server_cert(end_entity, intermediates, server_name, ocsp, now)
        };
        match &self.trust {
            Trust::Anyone => Ok(ServerCertVerified::assertion()),
            Trust::Host(inner) => ask(inner),
            // The name is the last thing the inner verifier looks at: the chain was good.
            Trust::Chain(inner) => match ask(inner) {
                Err(rustls::Error::InvalidCertificate(
                    CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
                )) => Ok(ServerCertVerified::assertion()),
                other => other,
            },
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
