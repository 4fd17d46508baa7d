//! The files of `TLS_CERT`, `TLS_KEY` and `TLS_CLIENT_CA` while the server runs: read again on
//! SIGHUP, and once any of them has changed and all have stayed the same for one poll, because a
//! certificate and its key are replaced one after the other. What is read holds for connections that
//! begin later. If any file is refused, everything stays as it was, and an error says why.
//!
//! The times of the certificates in effect are metrics, and a remark of `/readyz` when one expires
//! soon.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;

use super::file_state::FileState;
use crate::config::{Config, TlsOptions};
use crate::metrics::Cell64;
use crate::tls::{SharedTls, TlsError, TlsSnapshot, unix_now};

/// What is known of the files, for the scrape and `/readyz`.
#[derive(Clone)]
pub struct Certificates {
    pub shared: SharedTls,
    pub reloads: Arc<ReloadCells>,
}

/// Written by the thread that reads the files.
#[derive(Debug, Default)]
pub struct ReloadCells {
    failures: Cell64,
    /// 1 while the newest files are refused and older ones are in effect.
    failing: Cell64,
}

/// The files, and what is published of them.
pub(super) struct CertificateFiles {
    options: TlsOptions,
    /// Clients that are asked for a certificate must have one.
    needs_certificate: bool,
    of: Certificates,
    /// The files as they were when they were last read, whether or not they were accepted.
    read: FileStates,
    /// The files as the last poll saw them.
    seen: FileStates,
    /// When files that were refused will do, in seconds since 1970.
    will_do_from: Option<i64>,
}

type FileStates = Vec<Option<FileState>>;

impl CertificateFiles {
    /// Reads the files for the start. `None` if no address has TLS.
    ///
    /// # Errors
    /// The first file that cannot be used.
    pub(super) fn open(config: &Config) -> Result<Option<CertificateFiles>, TlsError> {
        let Some(options) = config.tls.clone() else { return Ok(None) };
        // Seen before they are read: if one changes meanwhile, a poll finds that out.
        let state = states(&options);
        let needs_certificate = config.tokens_file.is_none();
        let snapshot = TlsSnapshot::read(&options, needs_certificate, None)?;
        warn_of_flaws(&snapshot);
        let of = Certificates { shared: SharedTls::new(snapshot), reloads: Arc::default() };
        let (read, seen) = (state.clone(), state);
        let will_do_from = None;
        Ok(Some(CertificateFiles { options, needs_certificate, of, read, seen, will_do_from }))
    }

    /// What is in effect.
    pub(super) fn certificates(&self) -> Certificates {
        self.of.clone()
    }

    /// Reads the files now, and says in one line what is in effect.
    pub(super) fn reload(&mut self) {
        let state = states(&self.options);
        self.read = state.clone();
        self.seen = state;
        self.will_do_from = None;
        let before = self.of.shared.load();
        match TlsSnapshot::read(&self.options, self.needs_certificate, Some(&before)) {
            Ok(snapshot) => {
                tracing::info!("reload: new connections get {}", in_effect(&snapshot));
                warn_of_flaws(&snapshot);
                self.of.shared.publish(snapshot);
                self.of.reloads.failing.set(0);
            }
            Err(error) => {
                self.will_do_from = error.will_do_from();
                self.of.reloads.failures.inc();
                self.of.reloads.failing.set(1);
                tracing::error!(
                    "reload: {error}; new connections get the certificates read before"
                );
            }
        }
    }

    /// Reads the files if one has changed and all are steady, and once a certificate that was refused
    /// has become valid.
    pub(super) fn poll(&mut self) {
        let state = states(&self.options);
        let is_steady = std::mem::replace(&mut self.seen, state.clone()) == state;
        let will_do = self.will_do_from.is_some_and(|from| unix_now() >= from);
        if is_steady && (will_do || state != self.read) {
            self.reload();
        }
    }
}

fn states(options: &TlsOptions) -> FileStates {
    let pairs = options.pairs.iter().flat_map(|pair| [pair.cert.as_path(), pair.key.as_path()]);
    let files = pairs.chain(options.client_ca.as_deref());
    files.map(|path: &Path| FileState::of(path).filter(|state| !state.is_stream)).collect()
}

fn in_effect(snapshot: &TlsSnapshot) -> String {
    let now = unix_now();
    let each = snapshot
        .certificates
        .iter()
        .map(|of| format!("TLS_CERT {}: {}", of.path.display(), of.summary(now)));
    let each = each.collect::<Vec<_>>().join("; ");
    let authorities = match snapshot.authorities() {
        0 => String::new(),
        count => format!("; TLS_CLIENT_CA has {count} authorities"),
    };
    each + &authorities
}

fn warn_of_flaws(snapshot: &TlsSnapshot) {
    for flaw in snapshot.flaws(unix_now()) {
        tracing::warn!("{flaw}");
    }
}

impl Certificates {
    /// What an operator should know, a line each. Not a reason against traffic.
    pub fn remarks(&self) -> String {
        let snapshot = self.shared.load();
        let flaws = snapshot.flaws(unix_now()).into_iter();
        let mut text: String = flaws.map(|flaw| format!("{flaw}\n")).collect();
        if self.reloads.failing.value() != 0 {
            text += "TLS files are refused since their last change, see the log; new connections get the certificates read before\n";
        }
        text
    }
}

impl fmt::Debug for Certificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.reloads.fmt(f)
    }
}

/// Adds the figures about certificates to a scrape.
#[derive(Debug)]
pub struct CertificateCollector(pub Option<Certificates>);

impl Collector for CertificateCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let in_effect = self.0.as_ref().map(|of| of.shared.load());
        let certificates = in_effect.iter().flat_map(|of| &of.certificates);
        let read = |of: fn(&ReloadCells) -> &Cell64| {
            self.0.as_ref().map_or(0, |certificates| of(&certificates.reloads).value())
        };
        let help =
            "When the certificate expires, in seconds since 1970, by its file and first name";
        let mut family = encoder.encode_descriptor(
            "tls_certificate_expiry_timestamp",
            help,
            Some(&Unit::Seconds),
            MetricType::Gauge,
        )?;
        for of in certificates {
            let name = of.names.first().cloned().unwrap_or_default();
            let labels = [("file", of.path.display().to_string()), ("name", name)];
            ConstGauge::new(of.not_after).encode(family.encode_family(&labels)?)?;
        }
        let help = "1 while the newest TLS files are refused and older ones are in effect";
        let gauge =
            encoder.encode_descriptor("tls_reload_failing", help, None, MetricType::Gauge)?;
        let failing = read(|cells| &cells.failing);
        ConstGauge::new(i64::try_from(failing).unwrap_or(1)).encode(gauge)?;
        let help =
            "Reloads of TLS files that failed; the certificates read before stayed in effect";
        let name = "tls_reload_failures";
        let counter = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        ConstCounter::new(read(|cells| &cells.failures)).encode(counter)
    }
}
