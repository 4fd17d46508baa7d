//! TLS on addresses given as `https://`: certificates, the authority of client certificates, and
//! the bounds of handshakes.

use std::path::PathBuf;
use std::time::Duration;

use super::value::{self, Parsed, count, optional, time};
use super::{Config, MILLISECOND, MINUTE, SettingsReader};

/// Most certificates with their keys.
const PAIRS_MAX: usize = 64;

/// What TLS needs, if any address has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsOptions {
    /// Never empty. The first one is for clients that name no host, or one that no certificate has.
    pub pairs: Vec<PairFiles>,
    /// Authorities whose client certificates `LISTEN` accepts. `None`: it asks for none.
    pub client_ca: Option<PathBuf>,
    /// From the beginning of a connection to the end of its handshake.
    pub handshake_timeout: Duration,
    /// Most handshakes in progress on one core.
    pub handshakes_max: usize,
}

/// The files of one certificate and its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PairFiles {
    pub cert: PathBuf,
    /// The same file as `cert` if `TLS_KEY` is not set.
    pub key: PathBuf,
}

/// Reads the settings. `None`: no certificate is given.
pub(super) fn read(r: &mut SettingsReader<'_>) -> Option<TlsOptions> {
    let certs = r.take("TLS_CERT", optional(files)).unwrap_or_default();
    let keys = r.take("TLS_KEY", optional(files));
    let client_ca = r.take("TLS_CLIENT_CA", optional(value::path));
    let handshake_timeout = r.take("TLS_HANDSHAKE_TIMEOUT", time(MILLISECOND..=MINUTE));
    let handshakes_max = r.take("TLS_HANDSHAKES", count(1..=1_000_000));
    let given = keys.as_ref().map_or(0, Vec::len);
    r.require(keys.is_none() || !certs.is_empty(), "TLS_KEY", "TLS_CERT", |_| {
        "needs its certificate: set TLS_CERT".into()
    });
    let fit = keys.is_none() || certs.is_empty() || given == certs.len();
    r.require(fit, "TLS_KEY", "TLS_CERT", |_| {
        format!(
            "has {given} files and TLS_CERT {}: give one key for each certificate, in the same order",
            certs.len()
        )
    });
    let keys = keys.unwrap_or_else(|| certs.clone());
    let pairs: Vec<_> =
        certs.into_iter().zip(keys).map(|(cert, key)| PairFiles { cert, key }).collect();
    (!pairs.is_empty()).then_some(TlsOptions {
        pairs,
        client_ca,
        handshake_timeout,
        handshakes_max,
    })
}

/// Checks what the addresses and the certificates want of each other.
pub(super) fn check(r: &mut SettingsReader<'_>, c: &Config) {
    let listens = c.listen.iter().any(|listen| listen.tls);
    let given = c.tls.is_some();
    for (name, wants) in [("LISTEN", listens), ("ADMIN_LISTEN", c.admin_tls)] {
        r.require(given || !wants, name, "TLS_CERT", |_| {
            "has an https:// address: set TLS_CERT and TLS_KEY, or give http://".into()
        });
    }
    r.require(!given || listens || c.admin_tls, "TLS_CERT", "LISTEN", |_| {
        "is for no address: give LISTEN or ADMIN_LISTEN as https://IP:PORT, or remove TLS_CERT"
            .into()
    });
    let asks = r.effective.get("TLS_CLIENT_CA").text.is_empty();
    r.require(asks || listens, "TLS_CLIENT_CA", "LISTEN", |_| {
        "needs TLS: give an address of LISTEN as https://IP:PORT".into()
    });
}

/// Files of keys, or of certificates with their keys, with commas in between.
fn files(text: &str) -> Parsed<Vec<PathBuf>> {
    let files: Vec<_> = text.split(',').map(|file| value::secret_path(file.trim())).collect();
    if files.len() > PAIRS_MAX {
        return Err(format!("has more than {PAIRS_MAX} files: leave some out"));
    }
    let files: Parsed<Vec<_>> = files.into_iter().collect();
    files.map_err(|why| format!("{why}, or several with commas in between"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HTTPS: (&str, &str) = ("LISTEN", "https://127.0.0.1:8443");

    #[test]
    fn pairs_are_matched_by_their_order() {
        let read = |settings: &[(&str, &str)]| {
            Config::from_settings(&[settings, &[HTTPS]].concat()).unwrap().tls.unwrap()
        };
        let both = read(&[("TLS_CERT", "a.pem, b.pem"), ("TLS_KEY", "a.key,b.key")]);
        let pair = |cert: &str, key: &str| PairFiles { cert: cert.into(), key: key.into() };
        assert_eq!(both.pairs, [pair("a.pem", "a.key"), pair("b.pem", "b.key")]);
        assert_eq!(both.handshake_timeout, Duration::from_secs(10));
        assert_eq!((both.handshakes_max, both.client_ca), (512, None));
        assert_eq!(read(&[("TLS_CERT", "both.pem")]).pairs, [pair("both.pem", "both.pem")]);
        assert_eq!(Config::from_settings(&[]).unwrap().tls, None);
        let admin = [("ADMIN_LISTEN", "https://127.0.0.1:9443"), ("TLS_CERT", "a.pem")];
        let config = Config::from_settings(&admin).unwrap();
        assert!(config.admin_tls && config.tls.is_some() && !config.listen[0].tls);
    }

    #[test]
    fn what_is_missing_or_left_over_is_refused_once_with_the_remedy() {
        let many = vec!["a.pem"; PAIRS_MAX + 1].join(",");
        for (settings, name, remedy) in [
            (&[HTTPS][..], "LISTEN", "set TLS_CERT and TLS_KEY, or give http://"),
            (&[("ADMIN_LISTEN", "https://127.0.0.1:1")], "ADMIN_LISTEN", "set TLS_CERT"),
            (&[("TLS_CERT", "a")], "TLS_CERT", "give LISTEN or ADMIN_LISTEN as https://"),
            (&[("TLS_KEY", "a")], "TLS_KEY", "set TLS_CERT"),
            (&[HTTPS, ("TLS_CERT", "a,b"), ("TLS_KEY", "c")], "TLS_KEY", "one key for each"),
            (&[HTTPS, ("TLS_CERT", "a,,b")], "TLS_CERT", "several with commas in between"),
            (&[HTTPS, ("TLS_CERT", &many)], "TLS_CERT", "more than 64 files"),
            (&[("TLS_CLIENT_CA", "a")], "TLS_CLIENT_CA", "give an address of LISTEN as https://"),
            (
                &[HTTPS, ("TLS_CERT", "a"), ("TLS_HANDSHAKE_TIMEOUT", "2m")],
                "TLS_HANDSHAKE_TIMEOUT",
                "to 1m",
            ),
            (&[HTTPS, ("TLS_CERT", "a"), ("TLS_HANDSHAKES", "0")], "TLS_HANDSHAKES", "from 1 to"),
        ] {
            let text = Config::from_settings(settings).unwrap_err().to_string();
            assert_eq!(text.lines().count(), 1, "{text}");
            assert!(text.starts_with(name) && text.contains(remedy), "{text}");
        }
    }
}
