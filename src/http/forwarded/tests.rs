use http::header::{HeaderMap, HeaderName, HeaderValue};

use super::*;
use crate::config::Config;
use crate::rt::Rng;
use ForwardedFlaw::{Conflict, Malformed, TooManyHops};

/// The peer of every request here, which is trusted.
const PEER: &str = "10.0.0.1";

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn trusted() -> Networks {
    let config = Config::from_settings(&[("TRUST", "10.0.0.0/8,fd00::/8")]).unwrap();
    config.trust.unwrap()
}

fn found(fields: &[(&str, &[u8])]) -> ForwardedClient {
    let mut headers = HeaderMap::new();
    for (name, value) in fields {
        let name = name.parse::<HeaderName>().unwrap();
        headers.append(name, HeaderValue::from_bytes(value).unwrap());
    }
    client(&headers, ip(PEER), &trusted())
}

#[track_caller]
fn leads_to(fields: &[(&str, &[u8])], address: &str, flaw: Option<ForwardedFlaw>) {
    let expected = ForwardedClient { address: ip(address), flaw };
    let shown: Vec<_> = fields.iter().map(|(n, v)| (*n, String::from_utf8_lossy(v))).collect();
    assert_eq!(found(fields), expected, "{shown:?}");
}

#[test]
fn the_first_address_from_the_right_that_is_not_trusted() {
    for (value, address, flaw) in [
        ("192.0.2.7", "192.0.2.7", None),
        (" 192.0.2.7\t", "192.0.2.7", None),
        ("203.0.113.9, 192.0.2.7", "192.0.2.7", None),
        ("203.0.113.9,192.0.2.7,10.1.2.3 , 10.0.0.9", "192.0.2.7", None),
        ("192.0.2.7, fd00::5", "192.0.2.7", None),
        ("192.0.2.7, ::ffff:10.0.0.3", "192.0.2.7", None),
        ("::ffff:192.0.2.7", "192.0.2.7", None),
        ("192.0.2.7:1234", "192.0.2.7", None),
        ("2001:db8::7", "2001:db8::7", None),
        ("[2001:db8::7]", "2001:db8::7", None),
        ("[2001:db8::7]:1234", "2001:db8::7", None),
        // All of them are trusted: the first one.
        ("10.9.9.9, 10.0.0.3", "10.9.9.9", None),
        // Nobody tells.
        ("unknown", PEER, None),
        ("192.0.2.7, Unknown, 10.0.0.3", "10.0.0.3", None),
        ("192.0.2.7, _hidden, 10.0.0.3", "10.0.0.3", None),
        // Empty elements are none.
        ("", PEER, None),
        (" , ,", PEER, None),
        ("192.0.2.7,, ,", "192.0.2.7", None),
        // What is left of the client does not count, whatever it is.
        ("\"\\, x, 192.0.2.7", "192.0.2.7", None),
        ("10.0.0.3, bad, 192.0.2.7", "192.0.2.7", None),
        // What cannot be read ends the walk.
        ("192.0.2.7, bad", PEER, Some(Malformed)),
        ("192.0.2.7, 192.0.2, 10.0.0.3", "10.0.0.3", Some(Malformed)),
        ("192.0.2.07", PEER, Some(Malformed)),
        ("192.0.2.7:", PEER, Some(Malformed)),
        ("192.0.2.7:x", PEER, Some(Malformed)),
        ("192.0.2.7:123456", PEER, Some(Malformed)),
        ("192.0.2.7 192.0.2.8", PEER, Some(Malformed)),
        ("[2001:db8::7", PEER, Some(Malformed)),
        ("[2001:db8::7]1", PEER, Some(Malformed)),
        ("[192.0.2.7]", PEER, Some(Malformed)),
        ("fe80::1%1", PEER, Some(Malformed)),
        ("\"192.0.2.7\"", PEER, Some(Malformed)),
        ("for=192.0.2.7", PEER, Some(Malformed)),
        ("0.0.0.0", PEER, Some(Malformed)),
        ("::", PEER, Some(Malformed)),
        ("_", PEER, Some(Malformed)),
        ("localhost", PEER, Some(Malformed)),
    ] {
        leads_to(&[("x-forwarded-for", value.as_bytes())], address, flaw);
    }
    leads_to(&[("x-forwarded-for", b"192.0.2.7, \xff")], PEER, Some(Malformed));
    leads_to(&[], PEER, None);
    leads_to(&[("x-forwarded-host", b"192.0.2.7")], PEER, None);
}

#[test]
fn elements_of_forwarded() {
    for (value, address, flaw) in [
        ("for=192.0.2.7", "192.0.2.7", None),
        ("For=\"192.0.2.7\"", "192.0.2.7", None),
        ("FOR=192.0.2.7;proto=http;by=10.0.0.1", "192.0.2.7", None),
        ("by=10.0.0.1;proto=https;for=192.0.2.7", "192.0.2.7", None),
        ("proto=http; for=192.0.2.7 ; by=x", "192.0.2.7", None),
        (";for=192.0.2.7;;", "192.0.2.7", None),
        ("for=\"192.0.2.7:4711\"", "192.0.2.7", None),
        ("for=\"192.0.2.7:_port\"", "192.0.2.7", None),
        ("for=\"[2001:db8::7]\"", "2001:db8::7", None),
        ("for=\"[2001:db8:cafe::17]:4711\"", "2001:db8:cafe::17", None),
        ("for=\"[::ffff:192.0.2.7]\"", "192.0.2.7", None),
        ("for=\"\\1\\92.0.2.7\"", "192.0.2.7", None),
        ("for=203.0.113.9, for=192.0.2.7,for=10.0.0.3", "192.0.2.7", None),
        ("for=192.0.2.7;host=\"a, for=203.0.113.9\"", "192.0.2.7", None),
        ("for=192.0.2.7;host=\"a\\\", for=203.0.113.9\"", "192.0.2.7", None),
        ("for=192.0.2.7;host=\"a\\\\\"", "192.0.2.7", None),
        ("for=192.0.2.7;host=\"a;for=203.0.113.9\"", "192.0.2.7", None),
        // Nobody tells.
        ("for=unknown", PEER, None),
        ("for=UNKNOWN", PEER, None),
        ("for=\"unknown:80\"", PEER, None),
        ("for=_hidden", PEER, None),
        ("for=\"_SEVKISEK:_1\"", PEER, None),
        ("for=192.0.2.7, proto=http", PEER, None),
        ("for=192.0.2.7, for=_x, for=10.0.0.3", "10.0.0.3", None),
        ("", PEER, None),
        (",, ", PEER, None),
        // What is left of the client does not count, whatever it is.
        ("for=\", for=192.0.2.7", "192.0.2.7", None),
        ("for=\"a, for=\"[2001:db8::7]\"", "2001:db8::7", None),
        ("\\, for=192.0.2.7", "192.0.2.7", None),
        ("\"\\, for=\"192.0.2.7\"", "192.0.2.7", None),
        ("for=203.0.113.9;host=\", for=192.0.2.7;host=\"x\"", "192.0.2.7", None),
        // What cannot be read ends the walk.
        ("for=192.0.2.7, for=", PEER, Some(Malformed)),
        ("for=192.0.2.7, for", PEER, Some(Malformed)),
        ("for=192.0.2.7, 203.0.113.9", PEER, Some(Malformed)),
        ("for=bad, for=10.0.0.3", "10.0.0.3", Some(Malformed)),
        ("for=192.0.2.7:80", PEER, Some(Malformed)),
        ("for=[2001:db8::7]", PEER, Some(Malformed)),
        ("for=\"2001:db8::7\"", PEER, Some(Malformed)),
        ("for=\"192.0.2.7", PEER, Some(Malformed)),
        ("for=192.0.2.7\"", PEER, Some(Malformed)),
        ("for=\"192.0.2.7\"x", PEER, Some(Malformed)),
        ("for =192.0.2.7", PEER, Some(Malformed)),
        ("for= 192.0.2.7", PEER, Some(Malformed)),
        ("for=192.0.2.7 by=x", PEER, Some(Malformed)),
        ("for=192.0.2.7;for=203.0.113.9", PEER, Some(Malformed)),
        ("for=192.0.2.7;=x", PEER, Some(Malformed)),
        ("for=\"192.0.2.7:123456\"", PEER, Some(Malformed)),
        ("for=\"0.0.0.0\"", PEER, Some(Malformed)),
        ("for=\"[::]\"", PEER, Some(Malformed)),
        ("for=_", PEER, Some(Malformed)),
        ("for=_a/b", PEER, Some(Malformed)),
        ("for=\"_a b\"", PEER, Some(Malformed)),
    ] {
        leads_to(&[("forwarded", value.as_bytes())], address, flaw);
    }
    leads_to(&[("forwarded", b"for=\"\xff\"")], PEER, Some(Malformed));
}

#[test]
fn repeated_fields_are_one_list_in_their_order() {
    let xff = "x-forwarded-for";
    leads_to(&[(xff, b"203.0.113.9"), (xff, b"192.0.2.7")], "192.0.2.7", None);
    leads_to(&[(xff, b"203.0.113.9, 192.0.2.7"), (xff, b"10.0.0.3")], "192.0.2.7", None);
    leads_to(&[(xff, b"192.0.2.7"), (xff, b""), (xff, b"10.0.0.3, 10.0.0.4")], "192.0.2.7", None);
    leads_to(&[("forwarded", b"for=\""), ("forwarded", b"for=192.0.2.7")], "192.0.2.7", None);
    leads_to(&[("forwarded", b"for=192.0.2.7"), ("forwarded", b"\"")], PEER, Some(Malformed));
}

#[test]
fn both_headers_must_agree() {
    let (xff, fwd) = ("x-forwarded-for", "forwarded");
    leads_to(&[(xff, b"192.0.2.7"), (fwd, b"for=192.0.2.7")], "192.0.2.7", None);
    leads_to(&[(xff, b"203.0.113.9, 192.0.2.7"), (fwd, b"for=192.0.2.7")], "192.0.2.7", None);
    // A proxy that sets one of them lets the client choose the other.
    leads_to(&[(xff, b"192.0.2.7"), (fwd, b"for=203.0.113.9")], PEER, Some(Conflict));
    leads_to(&[(xff, b"203.0.113.9"), (fwd, b"for=192.0.2.7")], PEER, Some(Conflict));
    leads_to(&[(xff, b"192.0.2.7"), (fwd, b"for=unknown")], PEER, Some(Conflict));
    leads_to(&[(xff, b"192.0.2.7"), (fwd, b"bad")], PEER, Some(Conflict));
    leads_to(&[(xff, b"unknown"), (fwd, b"for=_x")], PEER, None);
    // One without any element is not there.
    leads_to(&[(xff, b"192.0.2.7"), (fwd, b"")], "192.0.2.7", None);
    leads_to(&[(xff, b", ,"), (fwd, b"for=192.0.2.7")], "192.0.2.7", None);
}

#[test]
fn a_chain_has_an_end() {
    let chain = |hops: usize, start: &str, hop: &str| {
        let hops: String = (0..hops).map(|_| format!(",{hop}")).collect();
        format!("{start}{hops}")
    };
    for (name, start, hop) in [
        ("x-forwarded-for", "192.0.2.7", "10.0.0.3"),
        ("forwarded", "for=192.0.2.7", "for=10.0.0.3"),
    ] {
        let value = chain(HOPS_MAX - 1, start, hop);
        leads_to(&[(name, value.as_bytes())], "192.0.2.7", None);
        let value = chain(HOPS_MAX, start, hop);
        leads_to(&[(name, value.as_bytes())], "10.0.0.3", Some(TooManyHops));
        let value = chain(5000, start, "");
        leads_to(&[(name, value.as_bytes())], PEER, Some(TooManyHops));
    }
}

/// Whatever a client sends, what a trusted proxy appends to it is what counts.
#[test]
fn what_a_client_sends_never_counts() {
    let seed = crate::rt::random();
    println!("seed {seed}");
    let mut rng = Rng::with_seed(seed);
    let pieces: [&[u8]; 16] = [
        b"for=203.0.113.9",
        b"203.0.113.9",
        b",",
        b";",
        b"\"",
        b"\\",
        b" ",
        b"=",
        b"for=",
        b"10.0.0.3",
        b"for=10.0.0.3",
        b"for=\"[fd00::1]\"",
        b"host=\"",
        b"unknown",
        b"\t",
        b"\xff",
    ];
    let sent = |rng: &mut Rng| -> Vec<u8> {
        (0..rng.usize(..12)).flat_map(|_| pieces[rng.usize(..pieces.len())].to_vec()).collect()
    };
    let plain = ["192.0.2.7", "192.0.2.7:80", "[::ffff:192.0.2.7]:1"];
    let elements = [
        "for=192.0.2.7",
        "for=\"192.0.2.7:80\";proto=http",
        "by=\"a, \\\" b\";for=192.0.2.7",
        "for=192.0.2.7;host=\"x\\\\\"",
        "for=\"[::ffff:192.0.2.7]\"",
    ];
    let tails = [("", ""), (", 10.0.0.3", ", for=10.0.0.3"), (",fd00::1", ",for=\"[fd00::1]\"")];
    for _ in 0..20_000 {
        let (start, tail) = (sent(&mut rng), tails[rng.usize(..tails.len())]);
        let (name, own, tail) = match rng.bool() {
            true => ("x-forwarded-for", plain[rng.usize(..plain.len())], tail.0),
            false => ("forwarded", elements[rng.usize(..elements.len())], tail.1),
        };
        let appended = format!("{own}{tail}");
        let fields: Vec<(&str, Vec<u8>)> = match rng.bool() {
            true => vec![(name, [&start[..], b", ", appended.as_bytes()].concat())],
            false => vec![(name, start.clone()), (name, appended.into_bytes())],
        };
        // A header map holds values without blanks around them.
        let fields: Vec<(&str, &[u8])> =
            fields.iter().map(|(name, value)| (*name, value.trim_ascii())).collect();
        let expected = ForwardedClient { address: ip("192.0.2.7"), flaw: None };
        assert_eq!(found(&fields), expected, "seed {seed}: {fields:?}");
    }
}
