//! The files of TLS: what the certificates are, or why they cannot be used.

use super::{Finding, exposed};
use crate::config::{Config, TlsOptions};
use crate::tls::{TlsFlaw, TlsSnapshot, unix_now};

/// The findings for `TLS_CERT`, `TLS_KEY` and `TLS_CLIENT_CA`; none if no address has TLS.
pub(super) fn findings(config: &Config) -> Vec<Finding> {
    let Some(options) = &config.tls else { return Vec::new() };
    let snapshot = match TlsSnapshot::read(options, config.tokens_file.is_none(), None) {
        Ok(snapshot) => snapshot,
        Err(error) => {
            let detail = format!("{} {}", error.path.display(), error.problem);
            let remedy = format!("ls -l {}; set {}", error.path.display(), error.setting);
            return vec![Finding::fail(error.setting, detail, remedy)];
        }
    };
    let now = unix_now();
    let mut findings = Vec::new();
    for of in &snapshot.certificates {
        let shown = of.path.display();
        findings.push(Finding::ok("TLS_CERT", format!("{shown}: {}", of.summary(now))));
    }
    for TlsFlaw { setting, path, text } in snapshot.flaws(now) {
        let (shown, detail) = (path.display(), format!("{}: {text}", path.display()));
        let remedy = format!("openssl x509 -noout -text -in {shown}");
        findings.push(Finding::warn(setting, detail, remedy));
    }
    findings.extend(exposed_keys(options));
    if let Some(path) = &options.client_ca {
        let count = snapshot.authorities();
        let detail = format!("{} holds {count} authorities of client certificates", path.display());
        findings.push(Finding::ok("TLS_CLIENT_CA", detail));
        findings.extend(exposed::file("TLS_CLIENT_CA", path));
        let plain = config.listen.iter().find(|listen| !listen.tls);
        if let (Some(plain), None) = (plain, &config.tokens_file) {
            findings.push(Finding::warn(
                "TLS_CLIENT_CA",
                format!(
                    "{} is plain HTTP: without a certificate and TOKENS_FILE its requests get 401",
                    plain.address
                ),
                "set TOKENS_FILE, give the address as https://, or leave it out",
            ));
        }
    }
    findings
}

fn exposed_keys(options: &TlsOptions) -> Vec<Finding> {
    let exposed = options.pairs.iter().filter_map(|pair| {
        let name = if pair.key == pair.cert { "TLS_CERT" } else { "TLS_KEY" };
        exposed::secret_file(name, &pair.key)
    });
    exposed.collect()
}
