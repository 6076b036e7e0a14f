//! The one TLS stack: rustls with ring.

/// Makes ring the process's provider for rustls unless the program already chose one. The HTTP client is built
/// without a provider of its own (so that aws-lc-sys stays out of the tree) and panics when there is none.
pub(crate) fn install() {
    let _ = rustls::crypto::ring::default_provider().install_default();
}
