//! The few fields of a certificate that rustls does not tell: until when it is valid, the common name
//! and the IP addresses of its subject, and whether it is an authority's (X.509, RFC 5280, in DER).

use std::net::IpAddr;

/// Bytes that are not the DER that was expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MalformedDer;

/// What is read of a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DerFacts {
    /// Seconds since 1970 from which it is valid, …
    pub not_before: i64,
    /// … and until which it is.
    pub not_after: i64,
    /// The subject's common name. `None` if it has none, several, or one that is not text.
    pub common_name: Option<String>,
}

const BOOLEAN: u8 = 0x01;
const INTEGER: u8 = 0x02;
const OCTET_STRING: u8 = 0x04;
const OBJECT_ID: u8 = 0x06;
const UTF8_STRING: u8 = 0x0c;
const PRINTABLE_STRING: u8 = 0x13;
const TELETEX_STRING: u8 = 0x14;
const IA5_STRING: u8 = 0x16;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
/// `[0] EXPLICIT`, the version.
const VERSION: u8 = 0xa0;
/// `[3] EXPLICIT`.
const EXTENSIONS: u8 = 0xa3;

/// 2.5.4.3, `id-at-commonName`.
const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];
/// 2.5.29.17, `id-ce-subjectAltName`.
const SUBJECT_ALT_NAME: &[u8] = &[0x55, 0x1d, 0x11];
/// 2.5.29.19, `id-ce-basicConstraints`.
const BASIC_CONSTRAINTS: &[u8] = &[0x55, 0x1d, 0x13];
/// `[7] IMPLICIT OCTET STRING`, the `iPAddress` of an alternative name.
const IP_ADDRESS: u8 = 0x87;

/// Reads a certificate.
///
/// # Errors
/// It is not a certificate, or is cut.
pub fn facts(certificate: &[u8]) -> Result<DerFacts, MalformedDer> {
    let mut outer = DerReader(certificate);
    let mut certificate = outer.enter(SEQUENCE)?;
    let mut fields = certificate.enter(SEQUENCE)?;
    fields.skip_if(VERSION)?;
    // The serial number, the signature's algorithm and the issuer.
    fields.enter(INTEGER)?;
    fields.enter(SEQUENCE)?;
    fields.enter(SEQUENCE)?;
    let mut validity = fields.enter(SEQUENCE)?;
    let (not_before, not_after) = (validity.time()?, validity.time()?);
    let common_name = common_name(fields.enter(SEQUENCE)?)?;
    Ok(DerFacts { not_before, not_after, common_name })
}

/// Whether it is the certificate of an authority: its basic constraints say so (RFC 5280, section
/// 4.2.1.9). In version 1, which cannot say it, one that names itself as its issuer is.
///
/// # Errors
/// It is not a certificate, or is cut.
pub fn is_authority(certificate: &[u8]) -> Result<bool, MalformedDer> {
    let mut fields = DerReader(certificate).enter(SEQUENCE)?.enter(SEQUENCE)?;
    let is_version_1 = !fields.skip_if(VERSION)?;
    // The serial number and the signature's algorithm.
    fields.enter(INTEGER)?;
    fields.enter(SEQUENCE)?;
    let issuer = fields.enter(SEQUENCE)?;
    // The validity.
    fields.enter(SEQUENCE)?;
    let subject = fields.enter(SEQUENCE)?;
    if is_version_1 {
        return Ok(issuer.0 == subject.0);
    }
    let Some(mut constraints) = extension(fields, BASIC_CONSTRAINTS)? else { return Ok(false) };
    let first = constraints.enter(SEQUENCE)?.next();
    Ok(matches!(first, Ok((BOOLEAN, DerReader([0xff])))))
}

/// The IP addresses among the alternative names of its subject (RFC 5280, section 4.2.1.6).
///
/// # Errors
/// It is not a certificate, or is cut.
pub fn ip_addresses(certificate: &[u8]) -> Result<Vec<IpAddr>, MalformedDer> {
    let fields = DerReader(certificate).enter(SEQUENCE)?.enter(SEQUENCE)?;
    let mut found = Vec::new();
    let Some(mut value) = extension(fields, SUBJECT_ALT_NAME)? else { return Ok(found) };
    let mut names = value.enter(SEQUENCE)?;
    while !names.0.is_empty() {
        let (tag, DerReader(name)) = names.next()?;
        let v4 = || <[u8; 4]>::try_from(name).map(IpAddr::from).ok();
        let v6 = || <[u8; 16]>::try_from(name).map(IpAddr::from).ok();
        found.extend((tag == IP_ADDRESS).then(|| v4().or_else(v6)).flatten());
    }
    Ok(found)
}

/// The issuer and the subject of a certificate, both in DER.
///
/// # Errors
/// It is not a certificate, or is cut.
pub fn issuer_and_subject(certificate: &[u8]) -> Result<(&[u8], &[u8]), MalformedDer> {
    let mut fields = DerReader(certificate).enter(SEQUENCE)?.enter(SEQUENCE)?;
    fields.skip_if(VERSION)?;
    // The serial number and the signature's algorithm.
    fields.enter(INTEGER)?;
    fields.enter(SEQUENCE)?;
    let issuer = fields.enter(SEQUENCE)?.0;
    // The validity.
    fields.enter(SEQUENCE)?;
    Ok((issuer, fields.enter(SEQUENCE)?.0))
}

/// The subject of a certificate and its public key, both in DER.
///
/// # Errors
/// It is not a certificate, or is cut.
pub fn name_and_key(certificate: &[u8]) -> Result<(&[u8], &[u8]), MalformedDer> {
    let mut fields = DerReader(certificate).enter(SEQUENCE)?.enter(SEQUENCE)?;
    fields.skip_if(VERSION)?;
    // The serial number, the signature's algorithm, the issuer and the validity.
    fields.enter(INTEGER)?;
    for _ in 0..3 {
        fields.enter(SEQUENCE)?;
    }
    Ok((fields.enter(SEQUENCE)?.0, fields.enter(SEQUENCE)?.0))
}

/// The value of the extension `id`, if it is among the fields of a certificate.
fn extension<'a>(
    mut fields: DerReader<'a>,
    id: &[u8],
) -> Result<Option<DerReader<'a>>, MalformedDer> {
    while !fields.0.is_empty() {
        let (tag, mut contents) = fields.next()?;
        if tag != EXTENSIONS {
            continue;
        }
        let mut extensions = contents.enter(SEQUENCE)?;
        while !extensions.0.is_empty() {
            let mut extension = extensions.enter(SEQUENCE)?;
            if extension.enter(OBJECT_ID)?.0 == id {
                // Whether it is critical.
                extension.skip_if(BOOLEAN)?;
                return extension.enter(OCTET_STRING).map(Some);
            }
        }
    }
    Ok(None)
}

fn common_name(mut subject: DerReader<'_>) -> Result<Option<String>, MalformedDer> {
    let mut names = Vec::new();
    while !subject.0.is_empty() {
        let mut attributes = subject.enter(SET)?;
        while !attributes.0.is_empty() {
            let mut attribute = attributes.enter(SEQUENCE)?;
            let is_name = attribute.enter(OBJECT_ID)?.0 == COMMON_NAME;
            let (tag, value) = attribute.next()?;
            if is_name {
                let is_text =
                    [UTF8_STRING, PRINTABLE_STRING, TELETEX_STRING, IA5_STRING].contains(&tag);
                names.push(str::from_utf8(value.0).ok().filter(|_| is_text));
            }
        }
    }
    Ok(match names.as_slice() {
        [Some(name)] => Some((*name).to_owned()),
        _ => None,
    })
}

/// The rest of a sequence of elements.
struct DerReader<'a>(&'a [u8]);

impl<'a> DerReader<'a> {
    /// The next element: its tag and its contents.
    fn next(&mut self) -> Result<(u8, DerReader<'a>), MalformedDer> {
        let [tag, length, rest @ ..] = self.0 else { return Err(MalformedDer) };
        let (length, rest) = match length {
            0..=0x7f => (usize::from(*length), rest),
            // The length follows in one to three bytes: no certificate has more.
            0x81..=0x83 => {
                let (bytes, rest) =
                    rest.split_at_checked(usize::from(*length & 0x7f)).ok_or(MalformedDer)?;
                (bytes.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte)), rest)
            }
            _ => return Err(MalformedDer),
        };
        let (contents, rest) = rest.split_at_checked(length).ok_or(MalformedDer)?;
        self.0 = rest;
        Ok((*tag, DerReader(contents)))
    }

    /// The contents of the next element, which has this tag.
    fn enter(&mut self, tag: u8) -> Result<DerReader<'a>, MalformedDer> {
        match self.next()? {
            (found, contents) if found == tag => Ok(contents),
            _ => Err(MalformedDer),
        }
    }

    /// Skips the next element if it has this tag, and says so.
    fn skip_if(&mut self, tag: u8) -> Result<bool, MalformedDer> {
        let is_there = self.0.first() == Some(&tag);
        if is_there {
            self.next()?;
        }
        Ok(is_there)
    }

    /// `YYMMDDHHMMSSZ` or `YYYYMMDDHHMMSSZ` (RFC 5280, section 4.1.2.5).
    fn time(&mut self) -> Result<i64, MalformedDer> {
        let (tag, DerReader(text)) = self.next()?;
        let text = text.strip_suffix(b"Z").ok_or(MalformedDer)?;
        let pair = |at: usize| match text.get(at..at + 2) {
            Some([tens @ b'0'..=b'9', ones @ b'0'..=b'9']) => {
                Ok(i64::from(tens - b'0') * 10 + i64::from(ones - b'0'))
            }
            _ => Err(MalformedDer),
        };
        let (year, rest) = match (tag, text.len()) {
            (UTC_TIME, 12) => match pair(0)? {
                year @ 50.. => (1900 + year, 2),
                year => (2000 + year, 2),
            },
            (GENERALIZED_TIME, 14) => (pair(0)? * 100 + pair(2)?, 4),
            _ => return Err(MalformedDer),
        };
        let date = [pair(rest)?, pair(rest + 2)?];
        let time = [pair(rest + 4)?, pair(rest + 6)?, pair(rest + 8)?];
        unix_seconds(year, date, time).ok_or(MalformedDer)
    }
}

/// `None`: there is no such time.
fn unix_seconds(
    year: i64,
    [month, day]: [i64; 2],
    [hour, minute, second]: [i64; 3],
) -> Option<i64> {
    let month = time::Month::try_from(u8::try_from(month).ok()?).ok()?;
    let date = time::Date::from_calendar_date(year as i32, month, day as u8).ok()?;
    // A leap second counts as the one before.
    let time = time::Time::from_hms(hour as u8, minute as u8, (second as u8).min(59)).ok()?;
    Some(time::PrimitiveDateTime::new(date, time).assume_utc().unix_timestamp())
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DistinguishedName, DnType, DnValue, KeyPair};

    use super::*;

    fn certificate(name: DistinguishedName, years: [i32; 2]) -> Vec<u8> {
        let mut params = CertificateParams::new(vec!["x.test".to_owned()]).unwrap();
        params.distinguished_name = name;
        params.not_before = rcgen::date_time_ymd(years[0], 2, 3);
        params.not_after = rcgen::date_time_ymd(years[1], 12, 31);
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
    }

    fn named(names: &[(DnType, DnValue)]) -> Vec<u8> {
        let mut name = DistinguishedName::new();
        names.iter().for_each(|(kind, value)| name.push(kind.clone(), value.clone()));
        certificate(name, [2024, 2034])
    }

    #[test]
    fn the_times_are_those_of_the_certificate() {
        for (years, expected) in [
            ([1970, 2049], [33 * 86_400, 2_524_521_600]),
            ([2024, 2050], [1_706_918_400, 2_556_057_600]),
        ] {
            let found = facts(&certificate(DistinguishedName::new(), years)).unwrap();
            assert_eq!([found.not_before, found.not_after], expected, "{years:?}");
        }
    }

    #[test]
    fn the_common_name_is_there_once_and_is_text() {
        let utf8 = |text: &str| DnValue::Utf8String(text.to_owned());
        let printable = DnValue::PrintableString("gate-7".try_into().unwrap());
        let cn = || DnType::CommonName;
        let wide = DnValue::BmpString("gate-7".try_into().unwrap());
        for (names, expected) in [
            (vec![(cn(), utf8("gate-7"))], Some("gate-7")),
            (vec![(cn(), printable)], Some("gate-7")),
            (vec![(DnType::OrganizationName, utf8("acme")), (cn(), utf8("a"))], Some("a")),
            (vec![(cn(), utf8("grün"))], Some("grün")),
            (vec![(DnType::OrganizationName, utf8("acme"))], None),
            (vec![], None),
            (vec![(cn(), wide)], None),
        ] {
            let found = facts(&named(&names)).unwrap().common_name;
            assert_eq!(found.as_deref(), expected, "{names:?}");
        }
        // Two of them: neither is the one.
        let attribute = |name: &[u8]| {
            let mut value = vec![UTF8_STRING, name.len() as u8];
            value.extend_from_slice(name);
            let mut attribute = vec![OBJECT_ID, 3, 0x55, 4, 3];
            attribute.extend(value);
            let sequence = [&[SEQUENCE, attribute.len() as u8], &attribute[..]].concat();
            [&[SET, sequence.len() as u8], &sequence[..]].concat()
        };
        let two = [attribute(b"a"), attribute(b"b")].concat();
        assert_eq!(common_name(DerReader(&attribute(b"a"))), Ok(Some("a".to_owned())));
        assert_eq!(common_name(DerReader(&two)), Ok(None));
    }

    /// A certificate of version 1 with this issuer and subject, whose signature nobody looks at.
    fn version_1(issuer: &[u8], subject: &[u8]) -> Vec<u8> {
        let element = |tag: u8, contents: &[u8]| [&[tag, contents.len() as u8], contents].concat();
        let time = element(UTC_TIME, b"200101000000Z");
        let fields = [
            element(INTEGER, &[1]),
            element(SEQUENCE, &[]),
            element(SEQUENCE, issuer),
            element(SEQUENCE, &time.repeat(2)),
            element(SEQUENCE, subject),
            element(SEQUENCE, &[]),
        ];
        element(SEQUENCE, &element(SEQUENCE, &fields.concat()))
    }

    #[test]
    fn an_authority_says_that_it_is_one() {
        use rcgen::{BasicConstraints, CustomExtension, IsCa};
        let key = KeyPair::generate().unwrap();
        let of = |is_ca: IsCa, extensions: Vec<CustomExtension>| {
            let mut params = CertificateParams::new(vec!["x.test".to_owned()]).unwrap();
            (params.is_ca, params.custom_extensions) = (is_ca, extensions);
            params.self_signed(&key).unwrap().der().to_vec()
        };
        let constraints = |critical: bool, contents: &[u8]| {
            let mut extension =
                CustomExtension::from_oid_content(&[2, 5, 29, 19], contents.to_vec());
            extension.set_criticality(critical);
            of(IsCa::NoCa, vec![extension])
        };
        let none = {
            let params = CertificateParams::new(Vec::new()).unwrap();
            params.self_signed(&key).unwrap().der().to_vec()
        };
        for (certificate, expected) in [
            (of(IsCa::Ca(BasicConstraints::Unconstrained), Vec::new()), true),
            (of(IsCa::Ca(BasicConstraints::Constrained(0)), Vec::new()), true),
            (of(IsCa::ExplicitNoCa, Vec::new()), false),
            (of(IsCa::NoCa, Vec::new()), false),
            (none, false),
            (constraints(false, &[SEQUENCE, 3, BOOLEAN, 1, 0xff]), true),
            (constraints(true, &[SEQUENCE, 3, BOOLEAN, 1, 0xff]), true),
            (constraints(true, &[SEQUENCE, 3, BOOLEAN, 1, 0]), false),
            (constraints(true, &[SEQUENCE, 0]), false),
            (constraints(true, &[SEQUENCE, 3, INTEGER, 1, 0]), false),
            (version_1(b"\x31\0", b"\x31\0"), true),
            (version_1(b"\x31\0", b""), false),
        ] {
            assert_eq!(is_authority(&certificate), Ok(expected), "{certificate:?}");
            for length in 0..certificate.len() {
                assert_eq!(is_authority(&certificate[..length]), Err(MalformedDer), "{length}");
            }
        }
    }

    #[test]
    fn ip_addresses_are_those_of_the_alternative_names() {
        for (names, expected) in [
            (&["192.0.2.7"][..], &["192.0.2.7"][..]),
            (&["a.test", "2001:db8::7", "127.0.0.1"], &["2001:db8::7", "127.0.0.1"]),
            (&["a.test"], &[]),
            (&[], &[]),
        ] {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            let params = CertificateParams::new(names.clone()).unwrap();
            let der = params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec();
            let expected = expected.iter().map(|ip| ip.parse().unwrap()).collect();
            assert_eq!(ip_addresses(&der), Ok(expected), "{names:?}");
            for length in 0..der.len() {
                assert_eq!(ip_addresses(&der[..length]), Err(MalformedDer), "{length}");
            }
        }
    }

    /// Every cut and every changed byte: a verdict, never a panic.
    #[test]
    fn what_is_no_certificate_is_malformed() {
        let whole = named(&[(DnType::CommonName, DnValue::Utf8String("a".to_owned()))]);
        for length in 0..whole.len() {
            assert_eq!(facts(&whole[..length]), Err(MalformedDer), "{length}");
        }
        for at in 0..whole.len() {
            for bits in [0x01, 0x80, 0xff] {
                let mut changed = whole.clone();
                changed[at] ^= bits;
                let _any_verdict = (
                    facts(&changed),
                    is_authority(&changed),
                    ip_addresses(&changed),
                    issuer_and_subject(&changed).is_ok(),
                );
            }
        }
        for text in [&b""[..], b"\x30", b"\x30\x80\0\0", b"\x30\x84\0\0\0\0", b"-----BEGIN"] {
            assert_eq!(facts(text), Err(MalformedDer), "{text:?}");
        }
    }
}
