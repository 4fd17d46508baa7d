//! HTTP/2: where it is spoken, and its bounds.

use super::value::{Parsed, count};
use super::{Config, SettingsReader};

/// Where HTTP/2 is spoken besides HTTP/1.1, and how much of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct H2Options {
    pub offer: H2Offer,
    /// Most HTTP/2 connections of one core.
    pub connections_max: usize,
    /// Most requests that one connection has in progress.
    pub streams_max: usize,
}

/// The addresses of `LISTEN` that speak HTTP/2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum H2Offer {
    Nowhere,
    /// Those with TLS, to clients that ask for it (ALPN).
    Tls,
    /// Those without TLS as well, to clients that begin with its preface.
    All,
}

impl H2Options {
    /// Whether any address of `config` speaks it.
    pub fn is_spoken(&self, config: &Config) -> bool {
        match self.offer {
            H2Offer::Nowhere => false,
            H2Offer::Tls => config.listen.iter().any(|listen| listen.tls),
            H2Offer::All => true,
        }
    }
}

pub(super) fn read(r: &mut SettingsReader<'_>) -> H2Options {
    H2Options {
        offer: r.take("H2", offer),
        connections_max: r.take("H2_CONNECTIONS", count(1..=1_000_000)),
        streams_max: r.take("H2_STREAMS", count(1..=1_000)),
    }
}

fn offer(text: &str) -> Parsed<H2Offer> {
    match text {
        "off" => Ok(H2Offer::Nowhere),
        "tls" => Ok(H2Offer::Tls),
        "all" => Ok(H2Offer::All),
        _ => Err("must be tls, all or off".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_spoken_where_the_settings_say() {
        const TLS: [(&str, &str); 2] = [("LISTEN", "https://127.0.0.1:1"), ("TLS_CERT", "a.pem")];
        for (text, plain, tls) in
            [(None, false, true), (Some("tls"), false, true), (Some("all"), true, true)]
                .into_iter()
                .chain([(Some("off"), false, false)])
        {
            let own: Vec<_> = text.map(|text| ("H2", text)).into_iter().collect();
            let spoken = |more: &[(&str, &str)]| {
                let config = Config::from_settings(&[&own, more].concat()).unwrap();
                config.h2.is_spoken(&config)
            };
            assert_eq!((spoken(&[]), spoken(&TLS)), (plain, tls), "{text:?}");
        }
    }

    #[test]
    fn bounds_are_checked() {
        let defaults = Config::from_settings(&[]).unwrap().h2;
        assert_eq!((defaults.connections_max, defaults.streams_max), (256, 100));
        for (name, bad) in [
            ("H2", "on"),
            ("H2_STREAMS", "0"),
            ("H2_STREAMS", "1001"),
            ("H2_CONNECTIONS", "0"),
            ("H2_CONNECTIONS", "1000001"),
        ] {
            let text = Config::from_settings(&[(name, bad)]).unwrap_err().to_string();
            assert!(text.starts_with(name) && text.lines().count() == 1, "{text}");
        }
    }
}
