//! Networks of addresses, as `TRUST` and `proxy=` of `LISTEN` name them: an address and the length
//! of its prefix (RFC 4632 section 3.1, RFC 4291 section 2.3).
//!
//! An IPv4 address that is mapped into IPv6 is the IPv4 address, here as everywhere. So `::/0` holds
//! no IPv4 address.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::value::Parsed;

/// Most networks of one list. The largest lists that content delivery networks publish of their own
/// addresses have a few hundred.
const NETWORKS_MAX: usize = 1000;

/// A set of networks; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Networks {
    /// First and last address of each, ascending. None overlap: of two networks, either one is part
    /// of the other, and then only the larger one is here, or they have nothing in common.
    ranges: Vec<(IpAddr, IpAddr)>,
}

impl Networks {
    /// The networks in `texts`.
    ///
    /// # Errors
    /// The first text that is no network, and what to write instead.
    pub(super) fn of<'a>(texts: impl Iterator<Item = &'a str>) -> Parsed<Networks> {
        let mut ranges = Vec::new();
        for text in texts {
            let range = range(text)?;
            if ranges.contains(&range) {
                return Err(format!("{text} is listed twice: list it once"));
            }
            if ranges.len() == NETWORKS_MAX {
                return Err(format!("has more than {NETWORKS_MAX} networks: give larger ones"));
            }
            ranges.push(range);
        }
        // A network comes behind the larger ones that it is part of.
        ranges.sort_unstable_by_key(|(first, last)| (*first, std::cmp::Reverse(*last)));
        ranges.dedup_by(|next, before| next.1 <= before.1);
        Ok(Networks { ranges })
    }

    /// `CIDR,CIDR,…`
    pub(super) fn list(text: &str) -> Parsed<Networks> {
        Networks::of(text.split(',').map(str::trim))
    }

    /// Whether one of them holds `address`.
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        let behind = self.ranges.partition_point(|(first, _)| *first <= address);
        behind.checked_sub(1).is_some_and(|at| address <= self.ranges[at].1)
    }

    /// Whether they hold any IPv4 or any IPv6 address.
    pub fn has_family(&self, of: fn(&IpAddr) -> bool) -> bool {
        self.ranges.iter().any(|(first, _)| of(first))
    }

    /// Whether they hold all addresses of IPv4 or of IPv6.
    pub fn hold_everybody(&self) -> bool {
        const V4: (IpAddr, IpAddr) =
            (IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V4(Ipv4Addr::BROADCAST));
        const V6: (IpAddr, IpAddr) =
            (IpAddr::V6(Ipv6Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::from_bits(u128::MAX)));
        self.ranges.contains(&V4) || self.ranges.contains(&V6)
    }
}

/// First and last address of a network. An address without a prefix length is a network of one.
fn range(text: &str) -> Parsed<(IpAddr, IpAddr)> {
    let (address, length) = match text.split_once('/') {
        Some((address, length)) => (address, Some(length)),
        None => (text, None),
    };
    let Ok(address) = address.parse::<IpAddr>() else {
        return Err(format!(
            "{text:?} is not a network: give an address and the length of its prefix, such as \
             10.0.0.0/8 or fd00::/8"
        ));
    };
    let bits = if address.is_ipv4() { 32 } else { 128 };
    let Some(length) = length.map_or(Some(bits), |length| prefix_length(length, bits)) else {
        return Err(format!(
            "{text:?} has no prefix length that an address of {bits} bits can have: give 0 to \
             {bits} after the /"
        ));
    };
    let (address, bits, length) = match address.to_canonical() {
        // A mapped address, and all of them if the prefix is as long as theirs.
        canonical @ IpAddr::V4(_) if bits == 128 && length >= 96 => (canonical, 32, length - 96),
        _ => (address, bits, length),
    };
    // Shifted by all of its bits if the prefix is empty.
    let (first, last) = match address {
        IpAddr::V4(address) => {
            let host = u32::MAX.checked_shr(length).unwrap_or(0);
            let first = address.to_bits() & !host;
            (Ipv4Addr::from_bits(first).into(), Ipv4Addr::from_bits(first | host).into())
        }
        IpAddr::V6(address) => {
            let host = u128::MAX.checked_shr(length).unwrap_or(0);
            let first = address.to_bits() & !host;
            (Ipv6Addr::from_bits(first).into(), Ipv6Addr::from_bits(first | host).into())
        }
    };
    if first != address {
        return Err(format!(
            "{text} has bits set behind its prefix: write {first}/{length} for the network, or \
             {address}/{bits} for the one address"
        ));
    }
    Ok((first, last))
}

/// 0 to `max`, in digits without leading zeros.
fn prefix_length(text: &str, max: u32) -> Option<u32> {
    let is_plain = text.bytes().all(|byte| byte.is_ascii_digit());
    let is_plain = is_plain && (text == "0" || !text.starts_with('0'));
    text.parse().ok().filter(|length| is_plain && *length <= max)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rt::Rng;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn an_address_is_in_its_network_and_no_other_is() {
        let networks =
            Networks::list("10.0.0.0/8, 192.0.2.7,2001:db8::/32 , ::1/128, 198.51.100.0/25")
                .unwrap();
        for inside in [
            "10.0.0.0",
            "10.255.255.255",
            "192.0.2.7",
            "2001:db8::",
            "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff",
            "::1",
            "198.51.100.127",
            "::ffff:10.1.2.3",
        ] {
            assert!(networks.contains(ip(inside)), "{inside}");
        }
        for outside in [
            "9.255.255.255",
            "11.0.0.0",
            "192.0.2.6",
            "192.0.2.8",
            "2001:db7:ffff::",
            "2001:db9::",
            "::",
            "::2",
            "198.51.100.128",
            "0.0.0.0",
            "255.255.255.255",
            "::a00:1",
        ] {
            assert!(!networks.contains(ip(outside)), "{outside}");
        }
    }

    #[test]
    fn empty_prefixes_and_mapped_addresses() {
        let (all4, all6) = (Networks::list("0.0.0.0/0").unwrap(), Networks::list("::/0").unwrap());
        assert!(all4.contains(ip("255.1.2.3")) && all4.contains(ip("::ffff:1.2.3.4")));
        assert!(!all4.contains(ip("::1")) && all6.contains(ip("::1")));
        assert!(!all6.contains(ip("1.2.3.4")) && !all6.contains(ip("::ffff:1.2.3.4")));
        assert!(all4.hold_everybody() && all6.hold_everybody());
        assert_eq!(Networks::list("::ffff:0:0/96"), Ok(all4.clone()));
        assert_eq!(Networks::list("::ffff:10.0.0.0/104"), Networks::list("10.0.0.0/8"));
        assert!(!Networks::list("0.0.0.0/1").unwrap().hold_everybody());
        let both = Networks::list("10.0.0.0/8,fd00::/8").unwrap();
        assert!(both.has_family(IpAddr::is_ipv4) && both.has_family(IpAddr::is_ipv6));
        assert!(!all4.has_family(IpAddr::is_ipv6) && !all6.has_family(IpAddr::is_ipv4));
    }

    #[test]
    fn what_is_no_list_of_networks_is_refused_with_the_remedy() {
        for (text, remedy) in [
            ("10.0.0.1/8", "write 10.0.0.0/8 for the network, or 10.0.0.1/32"),
            ("2001:db8::1/32", "write 2001:db8::/32 for the network, or 2001:db8::1/128"),
            ("1.2.3.4/0", "write 0.0.0.0/0"),
            ("10.0.0.0/33", "give 0 to 32 after the /"),
            ("fd00::/129", "give 0 to 128 after the /"),
            ("10.0.0.0/", "give 0 to 32 after the /"),
            ("10.0.0.0/08", "give 0 to 32 after the /"),
            ("10.0.0.0/+8", "give 0 to 32 after the /"),
            ("10.0.0.0/-1", "give 0 to 32 after the /"),
            ("10.0.0.0/8/8", "give 0 to 32 after the /"),
            ("10.0.0.0/255.0.0.0", "give 0 to 32 after the /"),
            ("10.0.0.0/4294967304", "give 0 to 32 after the /"),
            ("10/8", "is not a network"),
            ("010.0.0.0/8", "is not a network"),
            ("10.0.0.0:80/8", "is not a network"),
            ("[fd00::]/8", "is not a network"),
            ("fe80::%1/64", "is not a network"),
            ("example.com", "is not a network"),
            ("/8", "is not a network"),
            ("", "is not a network"),
            ("10.0.0.0/8,", "is not a network"),
            ("10.0.0.0/8,,fd00::/8", "is not a network"),
            ("10.0.0.0/8 fd00::/8", "give 0 to 32 after the /"),
            ("10.0.0.0/8,10.0.0.0/8", "10.0.0.0/8 is listed twice"),
        ] {
            let refusal = Networks::list(text).unwrap_err();
            assert!(refusal.contains(remedy), "{text}: {refusal}");
        }
        let many: Vec<String> =
            (0..=NETWORKS_MAX).map(|n| format!("10.{}.{}.0/24", n / 256, n % 256)).collect();
        assert!(Networks::list(&many[1..].join(",")).is_ok());
        assert!(Networks::list(&many.join(",")).unwrap_err().contains("give larger ones"));
    }

    /// Against each network looked at for itself.
    #[test]
    fn sets_hold_what_their_members_hold() {
        let seed = crate::rt::random();
        println!("seed {seed}");
        let mut rng = Rng::with_seed(seed);
        for _ in 0..500 {
            let members: Vec<(u32, u32)> = (0..rng.usize(1..12))
                .map(|_| {
                    let length = rng.u32(0..=32);
                    let host = u32::MAX.checked_shr(length).unwrap_or(0);
                    // Few distinct addresses, so that networks nest.
                    ((rng.u32(0..8) << 29 | rng.u32(0..4)) & !host, length)
                })
                .collect();
            let texts: std::collections::BTreeSet<String> = members
                .iter()
                .map(|(first, length)| format!("{}/{length}", Ipv4Addr::from_bits(*first)))
                .collect();
            let networks = Networks::of(texts.iter().map(String::as_str)).unwrap();
            for _ in 0..50 {
                let (first, length) = members[rng.usize(..members.len())];
                let near = first.wrapping_add(rng.u32(0..3)).wrapping_sub(1);
                let far = first ^ u32::MAX.checked_shr(length).unwrap_or(0);
                for address in [near, far, far.wrapping_add(1), rng.u32(..)] {
                    let holds = |(first, length): &(u32, u32)| {
                        address & !u32::MAX.checked_shr(*length).unwrap_or(0) == *first
                    };
                    let found = networks.contains(Ipv4Addr::from_bits(address).into());
                    assert_eq!(found, members.iter().any(holds), "seed {seed}: {texts:?}");
                }
            }
        }
    }
}
