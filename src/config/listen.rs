//! `LISTEN`: a list of addresses, each with options of its own.
//!
//! ```text
//! 0.0.0.0:8080, [::]:8080, 10.0.0.1:8081?proxy=10.0.0.0/8&proxy=192.168.7.0/24
//! ```
//!
//! An entry is `[http://|https://]IP:PORT[?NAME=VALUE[&NAME=VALUE…]]`; `https://` is TLS.

use std::net::{IpAddr, SocketAddr};

use super::networks::Networks;
use super::value::{self, Parsed};

/// Most addresses of the list. Each core has a socket for each.
const ADDRESSES_MAX: usize = 16;

/// One address that the cores listen on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenAddress {
    pub address: SocketAddr,
    /// It is `[::]`, and an IPv4 address with the same port is listed as well.
    pub only_v6: bool,
    /// Connections are TLS.
    pub tls: bool,
    /// Only proxies in these networks may connect, and each connection begins with a PROXY header.
    /// `None`: anybody may, and none does.
    pub proxies: Option<Networks>,
}

/// Parses the list.
pub(super) fn list(text: &str) -> Parsed<Vec<ListenAddress>> {
    let mut listed: Vec<ListenAddress> = Vec::new();
    for entry in text.split(',').map(str::trim) {
        if entry.is_empty() {
            return Err("has an entry without an address: give addresses with a comma between \
                        them, such as 0.0.0.0:8080, 10.0.0.1:8081"
                .into());
        }
        let next = parse_entry(entry)?;
        for before in &listed {
            can_both_be_bound(before, &next)?;
        }
        if listed.len() == ADDRESSES_MAX {
            return Err(format!("has more than {ADDRESSES_MAX} addresses: leave some out"));
        }
        listed.push(next);
    }
    let v4_ports: Vec<u16> = listed
        .iter()
        .filter(|entry| entry.address.ip().to_canonical().is_ipv4())
        .map(|entry| entry.address.port())
        .collect();
    for entry in &mut listed {
        let address = entry.address;
        let is_any = address.is_ipv6() && address.ip().is_unspecified();
        entry.only_v6 = is_any && v4_ports.contains(&address.port());
        can_be_reached(entry)?;
    }
    Ok(listed)
}

fn parse_entry(entry: &str) -> Parsed<ListenAddress> {
    let (address, options) = match entry.split_once('?') {
        Some((address, options)) => (address, Some(options)),
        None => (entry, None),
    };
    let (address, tls) = without_scheme(address).map_err(|why| format!("{entry}: {why}"))?;
    let address = value::address(address).map_err(|allowed| format!("{entry}: {allowed}"))?;
    let mut proxies = Vec::new();
    for option in options.into_iter().flat_map(|options| options.split('&')) {
        match option.split_once('=') {
            Some(("proxy", network)) => proxies.push(network),
            _ => {
                return Err(format!(
                    "{entry}: {option:?} is not an option of an address: give proxy=CIDR, several \
                     with & between them"
                ));
            }
        }
    }
    let proxies = match proxies.as_slice() {
        [] => None,
        networks => {
            let networks = Networks::of(networks.iter().copied());
            Some(networks.map_err(|why| format!("{entry}: proxy: {why}"))?)
        }
    };
    Ok(ListenAddress { address, only_v6: false, tls, proxies })
}

/// `ADMIN_LISTEN`: `[http://|https://]IP:PORT` or `off`, and whether it has TLS.
pub(super) fn admin(text: &str) -> Parsed<(Option<SocketAddr>, bool)> {
    if text == "off" {
        return Ok((None, false));
    }
    let (address, tls) = without_scheme(text)?;
    let address = value::address(address).map_err(|allowed| format!("{allowed}, or off"))?;
    Ok((Some(address), tls))
}

/// The text behind the scheme, and whether that is `https://`.
fn without_scheme(text: &str) -> Parsed<(&str, bool)> {
    match text.split_once("://") {
        None => Ok((text, false)),
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => Ok((rest, false)),
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("https") => Ok((rest, true)),
        Some((scheme, rest)) => {
            Err(format!("{scheme}:// is unknown: give http://{rest} or https://{rest}"))
        }
    }
}

/// Refuses two addresses that the kernel cannot tell apart.
fn can_both_be_bound(one: &ListenAddress, other: &ListenAddress) -> Parsed<()> {
    let (one, other) = (plain(one.address), plain(other.address));
    if one.port() != other.port() {
        return Ok(());
    }
    if one.port() == 0 {
        return Err(format!(
            "has port 0 twice, in {one} and {other}: give a port to all but one of them"
        ));
    }
    if one == other {
        return Err(format!("{one} is listed twice: list it once"));
    }
    // `[::]` leaves IPv4 to an IPv4 address.
    let is_part = |part: SocketAddr, of: SocketAddr| {
        of.ip().is_unspecified() && of.is_ipv4() == part.is_ipv4()
    };
    for (part, of) in [(one, other), (other, one)] {
        if is_part(part, of) {
            return Err(format!(
                "{part} is part of {of}: leave one of them out, or give it another port"
            ));
        }
    }
    Ok(())
}

/// An address as the kernel compares it: an IPv4 address in its own form.
fn plain(address: SocketAddr) -> SocketAddr {
    match address.ip().to_canonical() {
        IpAddr::V4(ip) => SocketAddr::from((ip, address.port())),
        IpAddr::V6(_) => address,
    }
}

/// Refuses an address that none of its proxies can connect to.
fn can_be_reached(entry: &ListenAddress) -> Parsed<()> {
    let Some(proxies) = &entry.proxies else { return Ok(()) };
    let address = entry.address;
    let (reaches, family): (fn(&IpAddr) -> bool, _) = match address.ip().to_canonical() {
        IpAddr::V4(_) => (IpAddr::is_ipv4, "IPv4"),
        IpAddr::V6(ip) if ip.is_unspecified() && !entry.only_v6 => return Ok(()),
        IpAddr::V6(_) => (IpAddr::is_ipv6, "IPv6"),
    };
    match proxies.has_family(reaches) {
        true => Ok(()),
        false => Err(format!(
            "{address} is reached from {family} addresses, and its proxy= has none of them: add \
             the network of the proxies that connect to it"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each address, whether it is for IPv6 only, and whether it has proxies.
    fn parsed(text: &str) -> Vec<(String, bool, bool)> {
        let listed = list(text).unwrap_or_else(|refusal| panic!("{text}: {refusal}"));
        let shown = |entry: &ListenAddress| {
            (entry.address.to_string(), entry.only_v6, entry.proxies.is_some())
        };
        listed.iter().map(shown).collect()
    }

    #[test]
    fn addresses_with_their_options() {
        let one = |address: &str| vec![(address.to_owned(), false, false)];
        assert_eq!(parsed("0.0.0.0:8080"), one("0.0.0.0:8080"));
        assert_eq!(parsed(" http://127.0.0.1:1 "), one("127.0.0.1:1"));
        assert_eq!(parsed("[::]:8080"), one("[::]:8080"), "serves IPv4 as well");
        let text = "0.0.0.0:8080, [::]:8080,10.0.0.1:8081?proxy=10.0.0.0/8&proxy=192.0.2.7";
        let expected = [("0.0.0.0:8080", false, false), ("[::]:8080", true, false)];
        let expected = expected.into_iter().chain([("10.0.0.1:8081", false, true)]);
        let expected: Vec<_> = expected.map(|(a, only, has)| (a.to_owned(), only, has)).collect();
        assert_eq!(parsed(text), expected);
        let listed = list(text).unwrap();
        let proxies = listed[2].proxies.as_ref().unwrap();
        assert!(proxies.contains("10.9.9.9".parse().unwrap()));
        assert!(proxies.contains("192.0.2.7".parse().unwrap()));
        assert!(!proxies.contains("192.0.2.8".parse().unwrap()));
        for (text, only_v6) in [
            ("[::]:1,127.0.0.1:1", vec![true, false]),
            ("[::]:1,[::ffff:127.0.0.1]:1", vec![true, false]),
            ("127.0.0.1:2,[::]:1", vec![false, false]),
            ("[::1]:1,127.0.0.1:1", vec![false, false]),
            ("127.0.0.1:1,127.0.0.2:1,127.0.0.1:2", vec![false; 3]),
            ("127.0.0.1:0,127.0.0.1:1", vec![false; 2]),
            ("[::]:1?proxy=10.0.0.0/8", vec![false]),
        ] {
            let found: Vec<bool> = list(text).unwrap().iter().map(|entry| entry.only_v6).collect();
            assert_eq!(found, only_v6, "{text}");
        }
    }

    #[test]
    fn a_scheme_says_whether_connections_are_tls() {
        let tls = |text: &str| list(text).unwrap().iter().map(|at| at.tls).collect::<Vec<_>>();
        assert_eq!(tls("127.0.0.1:1,https://127.0.0.1:2,http://127.0.0.1:3"), [false, true, false]);
        assert_eq!(tls("HTTPS://[::1]:1?proxy=fd00::/8"), [true]);
        let address = "127.0.0.1:9".parse().ok();
        for (text, expected) in [
            ("off", Ok((None, false))),
            ("127.0.0.1:9", Ok((address, false))),
            ("https://127.0.0.1:9", Ok((address, true))),
        ] {
            assert_eq!(admin(text), expected, "{text}");
        }
        for (text, why) in [
            ("ftp://127.0.0.1:9", "ftp:// is unknown"),
            ("https://off", "give an IP address and a port"),
            ("on", "or off"),
        ] {
            assert!(admin(text).unwrap_err().contains(why), "{text}");
        }
    }

    #[test]
    fn what_cannot_be_listened_on_is_refused_with_the_remedy() {
        let many: Vec<String> = (1..=ADDRESSES_MAX + 1).map(|n| format!("127.0.0.1:{n}")).collect();
        assert_eq!(parsed(&many[1..].join(",")).len(), ADDRESSES_MAX);
        for (text, remedy) in [
            ("", "give addresses with a comma between"),
            (" ", "give addresses with a comma between"),
            (",", "give addresses with a comma between"),
            ("0.0.0.0:8080,", "give addresses with a comma between"),
            ("0.0.0.0:1,,0.0.0.0:2", "give addresses with a comma between"),
            ("0.0.0.0:1 0.0.0.0:2", "give an IP address and a port"),
            ("0.0.0.0:1;0.0.0.0:2", "give an IP address and a port"),
            ("localhost:8080", "give an IP address and a port"),
            (":8080", "such as 0.0.0.0:8080 or [::]:8080"),
            ("0.0.0.0", "give an IP address and a port"),
            ("::1:8080", "give an IP address and a port"),
            ("0.0.0.0:65536", "give an IP address and a port"),
            ("http://0.0.0.0:8080/", "give an IP address and a port"),
            ("HTTPS://0.0.0.0:8443?cert=/x", "\"cert=/x\" is not an option"),
            ("https://", "give an IP address and a port"),
            ("unix:///run/x", "unix:// is unknown: give http:///run/x or https://"),
            ("https://127.0.0.1:1,127.0.0.1:1", "127.0.0.1:1 is listed twice"),
            ("0.0.0.0:1?", "\"\" is not an option of an address: give proxy=CIDR"),
            ("0.0.0.0:1?proxy", "\"proxy\" is not an option of an address: give proxy=CIDR"),
            ("0.0.0.0:1?Proxy=10.0.0.0/8", "is not an option"),
            ("0.0.0.0:1?proxies=10.0.0.0/8", "\"proxies=10.0.0.0/8\" is not an option"),
            ("0.0.0.0:1?proxy=10.0.0.0/8&", "\"\" is not an option"),
            ("0.0.0.0:1?proxy=", "proxy: \"\" is not a network"),
            ("0.0.0.0:1?proxy=10.0.0.1/8", "proxy: 10.0.0.1/8 has bits set behind its prefix"),
            ("0.0.0.0:1?proxy=10.0.0.0/8|fd00::/8", "give 0 to 32 after the /"),
            ("0.0.0.0:1?proxy=10.0.0.0/8?proxy=1.0.0.0/8", "give 0 to 32 after the /"),
            ("0.0.0.0:1?proxy=10.0.0.0/8,192.168.0.0/16", "give an IP address and a port"),
            ("0.0.0.0:1?proxy=fd00::/8", "add the network of the proxies that connect to it"),
            ("[::1]:1?proxy=10.0.0.0/8", "add the network of the proxies"),
            ("0.0.0.0:1,[::]:1?proxy=10.0.0.0/8", "[::]:1 is reached from IPv6 addresses"),
            ("127.0.0.1:1,127.0.0.1:1", "127.0.0.1:1 is listed twice"),
            ("127.0.0.1:1,127.0.0.1:1?proxy=10.0.0.0/8", "127.0.0.1:1 is listed twice"),
            ("127.0.0.1:1,[::ffff:127.0.0.1]:1", "127.0.0.1:1 is listed twice"),
            ("0.0.0.0:1,127.0.0.1:1", "127.0.0.1:1 is part of 0.0.0.0:1: leave one of them out"),
            ("[::1]:1,[::]:1", "[::1]:1 is part of [::]:1"),
            ("127.0.0.1:0,[::1]:0", "give a port to all but one of them"),
            (&many.join(","), "has more than 16 addresses"),
        ] {
            let refusal = list(text).unwrap_err();
            assert!(refusal.contains(remedy), "{text}: {refusal}");
        }
    }
}
