//! The TLS client settings both S3 clients use: rustls with ring, the host's roots, `http/1.1`
//! only.
//!
//! Reads files, so it is built once on the control executor and handed to the cores.

mod remedy;
mod verifier;

use std::path::PathBuf;
use std::sync::Arc;

use futures_rustls::pki_types::CertificateDer;
use futures_rustls::rustls::crypto::ring;
use futures_rustls::rustls::{ClientConfig, RootCertStore};
use rustls_native_certs::{CertificateResult, Error, ErrorKind};

use crate::log::pem_flaw;
use crate::store::s3::environment::path_variable;

pub(crate) use remedy::remedy;

/// Client settings trusting the host's roots (`SSL_CERT_FILE`/`SSL_CERT_DIR` or the system's),
/// those of `AWS_CA_BUNDLE`, and `extra`; a certificate among these is also trusted when a server
/// presents it as its own.
///
/// # Errors
/// An `AWS_CA_BUNDLE` that cannot be used, in one sentence.
pub fn client_config(extra: &[CertificateDer<'static>]) -> Result<Arc<ClientConfig>, String> {
    let mut trusted = system_roots().certs;
    if let Some(path) = path_variable("AWS_CA_BUNDLE") {
        let bundle = rustls_native_certs::load_certs_from_paths(Some(path.as_ref()), None);
        let (added, _) =
            RootCertStore::empty().add_parsable_certificates(bundle.certs.iter().cloned());
        if added == 0 {
            let why = bundle.errors.first().map(|e| format!(": {}", said(e))).unwrap_or_default();
            return Err(format!("AWS_CA_BUNDLE={} contains no certificate{why}", path.display()));
        }
        trusted.extend(bundle.certs);
    }
    for root in extra {
        RootCertStore::empty()
            .add(root.clone())
            .map_err(|e| format!("a given root certificate is invalid: {e}"))?;
        trusted.push(root.clone());
    }
    let provider = Arc::new(ring::default_provider());
    let verifier = verifier::Verifier::new(trusted, &provider);
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| format!("TLS cannot be set up: {e}"))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// The host's roots. `SSL_CERT_FILE` and `SSL_CERT_DIR` replace the system's paths. Blanks and line
/// ends around them are ignored; blank variables count as not set.
fn system_roots() -> CertificateResult {
    let names = ["SSL_CERT_FILE", "SSL_CERT_DIR"];
    let [file, dirs] = names.map(path_variable);
    let is_given = file.is_some() || dirs.is_some();
    let as_given = names.map(std::env::var_os) == [file.clone(), dirs.clone()];
    let roots = match (as_given, is_given) {
        (true, _) => rustls_native_certs::load_native_certs(),
        (false, true) => {
            let dirs = dirs.map(|dirs| std::env::split_paths(&dirs).collect()).unwrap_or_default();
            load(file.map(PathBuf::from), dirs)
        }
        (false, false) => {
            let system = openssl_probe::probe();
            load(system.cert_file, system.cert_dir)
        }
    };
    if let Some(error) = roots.errors.first().filter(|_| is_given && roots.certs.is_empty()) {
        let (names, error) = (names.join(" and "), said(error));
        tracing::warn!("{names} contain no root certificate: {error}");
    }
    roots
}

/// What a message says about `error`.
fn said(error: &Error) -> String {
    match &error.kind {
        ErrorKind::Pem(flaw) => pem_flaw(flaw).to_owned(),
        _ => error.to_string(),
    }
}

fn load(file: Option<PathBuf>, dirs: Vec<PathBuf>) -> CertificateResult {
    let mut all = rustls_native_certs::load_certs_from_paths(file.as_deref(), None);
    for dir in dirs.iter().filter(|dir| !dir.as_os_str().is_empty()) {
        let more = rustls_native_certs::load_certs_from_paths(None, Some(dir));
        all.certs.extend(more.certs);
        all.errors.extend(more.errors);
    }
    all
}
