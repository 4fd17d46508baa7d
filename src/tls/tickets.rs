//! Tickets of sessions in which clients have shown certificates.
//!
//! rustls writes the client's certificates into the ticket and from there into each ticket that
//! follows, and verifies them no more. So a ticket whose certificates have expired is not accepted:
//! the handshake goes on without it, and the client's certificate, perhaps a new one, is verified.

use std::sync::Arc;

use futures_rustls::rustls::server::ProducesTickets;

use super::der;
use super::pair::unix_now;

/// Makes tickets that are good no longer than the certificates in them.
#[derive(Debug)]
pub struct CertifiedTickets(pub Arc<dyn ProducesTickets>);

impl ProducesTickets for CertifiedTickets {
    fn enabled(&self) -> bool {
        self.0.enabled()
    }

    fn lifetime(&self) -> u32 {
        self.0.lifetime()
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        self.0.encrypt(plain)
    }

    fn decrypt(&self, cipher: &[u8]) -> Option<Vec<u8>> {
        self.0.decrypt(cipher).filter(|plain| is_current(plain, unix_now()))
    }
}

/// Whether all certificates in what a ticket holds are valid at `now`, in seconds since 1970. Not if it
/// cannot be read, so that another version of rustls with another form costs full handshakes.
fn is_current(plain: &[u8], now: i64) -> bool {
    certificates(plain).is_some_and(|certificates| {
        certificates.iter().all(|certificate| {
            der::facts(certificate)
                .is_ok_and(|facts| (facts.not_before..=facts.not_after).contains(&now))
        })
    })
}

/// The certificates in a session as rustls encodes it (`ServerSessionValue`).
fn certificates(plain: &[u8]) -> Option<Vec<&[u8]>> {
    let mut fields = TicketReader(plain);
    if fields.flag()? {
        // The host name.
        fields.counted(1)?;
    }
    // The version and the cipher, the secret, and whether it is an extended one.
    fields.take(4)?;
    fields.counted(1)?;
    fields.flag()?;
    let mut certificates = Vec::new();
    if fields.flag()? {
        let mut chain = TicketReader(fields.counted(3)?);
        while !chain.0.is_empty() {
            certificates.push(chain.counted(3)?);
        }
    }
    Some(certificates)
}

struct TicketReader<'a>(&'a [u8]);

impl<'a> TicketReader<'a> {
    fn take(&mut self, bytes: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(bytes)?;
        self.0 = rest;
        Some(taken)
    }

    fn flag(&mut self) -> Option<bool> {
        match self.take(1)? {
            [0] => Some(false),
            [1] => Some(true),
            _ => None,
        }
    }

    /// Bytes behind their number, which has `width` bytes.
    fn counted(&mut self, width: usize) -> Option<&'a [u8]> {
        let number = self.take(width)?;
        self.take(number.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte)))
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    fn certificate(years: [i32; 2]) -> Vec<u8> {
        let mut params = CertificateParams::new(vec!["x.test".to_owned()]).unwrap();
        params.not_before = rcgen::date_time_ymd(years[0], 1, 1);
        params.not_after = rcgen::date_time_ymd(years[1], 1, 1);
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
    }

    /// A session of this host with these certificates, and what follows them.
    fn session(host: Option<&str>, chain: Option<&[&[u8]]>) -> Vec<u8> {
        let counted = |bytes: &[u8]| [&(bytes.len() as u32).to_be_bytes()[1..], bytes].concat();
        let mut plain = match host {
            None => vec![0],
            Some(host) => [&[1, host.len() as u8], host.as_bytes()].concat(),
        };
        plain.extend([3, 4, 0x13, 1, 2, 7, 7, 1]);
        match chain {
            None => plain.push(0),
            Some(chain) => {
                plain.push(1);
                let certificates: Vec<_> = chain.iter().flat_map(|der| counted(der)).collect();
                plain.extend(counted(&certificates));
            }
        }
        // No protocol, no data, the time and the offset of the age.
        plain.extend([0; 1 + 2 + 8 + 4]);
        plain
    }

    #[test]
    fn a_session_counts_while_its_certificates_do() {
        let (short, long) = (certificate([2020, 2030]), certificate([2010, 2040]));
        let [in_2005, in_2015, in_2025, in_2035] =
            [5, 15, 25, 35].map(|years| (30 + years) * 31_556_952);
        for (chain, now, expected) in [
            (None, in_2035, true),
            (Some(&[][..]), in_2035, true),
            (Some(&[&short[..]]), in_2025, true),
            (Some(&[&short[..]]), in_2035, false),
            (Some(&[&short[..]]), in_2015, false),
            (Some(&[&short[..], &long]), in_2025, true),
            (Some(&[&long[..], &short]), in_2035, false),
            (Some(&[&long[..], &long]), in_2035, true),
            (Some(&[&long[..]]), in_2005, false),
            (Some(&[&b"no certificate"[..]]), in_2025, false),
        ] {
            for host in [None, Some("a.test")] {
                assert_eq!(is_current(&session(host, chain), now), expected, "{chain:?} {now}");
            }
        }
        // Cut before the certificates end, and of an unknown form.
        let whole = session(Some("a.test"), Some(&[&short]));
        for length in 0..whole.len() - 15 {
            assert!(!is_current(&whole[..length], in_2025), "{length}");
        }
        assert!(!is_current(&[2, 0], in_2025));
    }
}
