//! Every head against `aws-sigv4`, which the SDK signs with.

use std::time::{Duration, UNIX_EPOCH};

use aws_credential_types::Credentials;
use aws_sigv4::http_request::{
    PayloadChecksumKind, PercentEncodingMode, SignableBody, SignableRequest, SigningSettings,
    UriPathNormalizationMode, sign,
};
use aws_sigv4::sign::v4;
use proptest::prelude::*;

use super::*;
use crate::store::s3::direct::Identity;

/// Everything a signature depends on.
#[derive(Clone, Debug)]
struct Case {
    server: ServerAddress,
    path: String,
    prefix: String,
    options: S3Options,
    integrity: Integrity,
    key: String,
    body: Vec<u8>,
    coding: Option<Coding>,
    unix_s: u64,
    region: String,
    access_key: String,
    secret_key: String,
    token: Option<String>,
}

fn case() -> Case {
    Case {
        server: ServerAddress { https: false, host: "127.0.0.1".into(), port: 9000 },
        path: "/bucket/".into(),
        prefix: "in/".into(),
        options: S3Options {
            content_type: "application/octet-stream".into(),
            ..S3Options::default()
        },
        integrity: Integrity { checksum: Checksum::None, sign_payload: true },
        key: "1700000000000000000-00ff-0-1.json".into(),
        body: b"{}".to_vec(),
        coding: None,
        unix_s: 1_700_000_000,
        region: "us-east-1".into(),
        access_key: "AKIDEXAMPLE".into(),
        secret_key: "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY".into(),
        token: None,
    }
}

/// A head, taken apart as a server would.
struct Head {
    path: String,
    headers: Vec<(String, String)>,
}

impl Head {
    fn read(bytes: &[u8]) -> Head {
        let mut headers = [httparse::EMPTY_HEADER; 32];
        let mut request = httparse::Request::new(&mut headers);
        let length = request.parse(bytes).expect("a valid head").unwrap();
        assert_eq!(length, bytes.len(), "nothing behind the head");
        assert_eq!(request.method, Some("PUT"));
        let text = |value: &[u8]| String::from_utf8(value.to_vec()).unwrap();
        let headers = request.headers.iter().map(|h| (h.name.to_owned(), text(h.value)));
        Head { path: request.path.unwrap().to_owned(), headers: headers.collect() }
    }

    fn header(&self, name: &str) -> &str {
        let mut values = self.headers.iter().filter(|(n, _)| n == name);
        let value = values.next().unwrap_or_else(|| panic!("a header {name}"));
        assert!(values.next().is_none(), "{name} once");
        &value.1
    }
}

impl Case {
    fn template(&self) -> Template {
        let Case { server, path, prefix, .. } = self;
        Template::new(&Destination { server, path, prefix }, &self.options, self.integrity).unwrap()
    }

    fn signer(&self) -> Signer {
        let mut signer = Signer::new(&self.region, "s3");
        let who = Identity {
            access_key: &self.access_key,
            secret_key: &self.secret_key,
            session_token: self.token.as_deref(),
        };
        signer.renew(self.unix_s, 1, &who).unwrap();
        signer
    }

    fn head(&self) -> Head {
        self.head_of(&self.template(), &self.key)
    }

    fn head_of(&self, template: &Template, key: &str) -> Head {
        let mut out = Vec::new();
        self.write(template, key, &mut self.signer(), &mut out);
        Head::read(&out)
    }

    fn write(&self, template: &Template, key: &str, signer: &mut Signer, out: &mut Vec<u8>) {
        let sums = Sums::of(&self.body, self.integrity);
        let bytes = self.body.len() as u64;
        let put = Put { key, bytes, coding: self.coding, sums: &sums };
        template.write_head(&put, self.unix_s, signer, out);
    }

    /// What `aws-sigv4` makes of the request that `head` is.
    fn expected_authorization(&self, head: &Head) -> String {
        let credentials =
            Credentials::new(&self.access_key, &self.secret_key, self.token.clone(), None, "test");
        let identity = credentials.into();
        let mut settings = SigningSettings::default();
        settings.percent_encoding_mode = PercentEncodingMode::Single;
        settings.payload_checksum_kind = PayloadChecksumKind::XAmzSha256;
        settings.uri_path_normalization_mode = UriPathNormalizationMode::Disabled;
        let params = v4::SigningParams::builder()
            .identity(&identity)
            .region(&self.region)
            .name("s3")
            .time(UNIX_EPOCH + Duration::from_secs(self.unix_s))
            .settings(settings)
            .build()
            .unwrap()
            .into();
        // Of what is sent, everything that S3 wants signed, and what says how the object is to be
        // stored.
        let signed = |name: &str| {
            ["content-encoding", "content-type", "if-none-match"].contains(&name)
                || name.starts_with("x-amz-")
        };
        let headers = head.headers.iter().filter(|(name, _)| signed(name));
        let headers = headers.map(|(name, value)| (name.as_str(), value.as_str()));
        let scheme = if self.server.https { "https" } else { "http" };
        let uri = format!("{scheme}://{}{}", head.header("host"), head.path);
        let body = match self.integrity.sign_payload {
            true => SignableBody::Bytes(&self.body),
            false => SignableBody::UnsignedPayload,
        };
        // It appends its own; twice the same header would be signed as a list.
        let own = ["x-amz-date", "x-amz-content-sha256", "x-amz-security-token"];
        let headers = headers.filter(|(name, _)| !own.contains(name));
        let request = SignableRequest::new("PUT", uri, headers, body).unwrap();
        let (instructions, _) = sign(request, &params).unwrap().into_parts();
        let (headers, _) = instructions.into_parts();
        for header in &headers {
            if header.name() != "authorization" {
                assert_eq!(head.header(header.name()), header.value(), "{}", header.name());
            }
        }
        let found = headers.iter().find(|header| header.name() == "authorization");
        found.expect("a signature").value().to_owned()
    }

    fn check(&self) {
        let head = self.head();
        assert_eq!(head.header("content-length"), self.body.len().to_string());
        match self.coding {
            Some(coding) => assert_eq!(head.header("content-encoding"), coding.name()),
            None => assert!(head.headers.iter().all(|(name, _)| name != "content-encoding")),
        }
        assert_eq!(head.header("authorization"), self.expected_authorization(&head));
    }
}

#[test]
fn the_head_in_full() {
    let mut case = case();
    case.options.storage_class = Some("STANDARD_IA".into());
    case.integrity = Integrity { checksum: Checksum::Crc32c, sign_payload: false };
    case.token = Some("a token".into());
    let mut out = b"kept".to_vec();
    case.write(&case.template(), "a key", &mut case.signer(), &mut out);
    let text = String::from_utf8(out).unwrap();
    let (head, signature) = text.split_once("Signature=").unwrap();
    assert_eq!(signature.len(), 64 + 4);
    let version = env!("CARGO_PKG_VERSION");
    let expected = [
        "keptPUT /bucket/in/a%20key HTTP/1.1".to_owned(),
        "host: 127.0.0.1:9000".to_owned(),
        format!("user-agent: millrace/{version}"),
        "content-type: application/octet-stream".to_owned(),
        "x-amz-storage-class: STANDARD_IA".to_owned(),
        "content-length: 2".to_owned(),
        "x-amz-date: 20231114T221320Z".to_owned(),
        "x-amz-checksum-crc32c: KXvQqg==".to_owned(),
        "x-amz-content-sha256: UNSIGNED-PAYLOAD".to_owned(),
        "x-amz-security-token: a token".to_owned(),
        "authorization: AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20231114/us-east-1/s3/aws4_request, \
         SignedHeaders=content-type;host;x-amz-checksum-crc32c;x-amz-content-sha256;x-amz-date;\
         x-amz-security-token;x-amz-storage-class, "
            .to_owned(),
    ];
    assert_eq!(head, expected.join("\r\n"));
    case.key = "a key".into();
    case.check();
}

#[test]
fn what_keeps_an_object_from_being_replaced_is_signed() {
    let mut case = case();
    let plain = case.head();
    assert!(plain.headers.iter().all(|(name, _)| name != "if-none-match"));
    case.options.if_none_match = true;
    case.options.acl = Some("private".into());
    let head = case.head();
    assert_eq!(head.header("if-none-match"), "*");
    let signed = "SignedHeaders=content-type;host;if-none-match;x-amz-acl;x-amz-content-sha256;";
    assert!(head.header("authorization").contains(signed), "{}", head.header("authorization"));
    case.check();
    let redirected = case.template().redirected(&case.server, "/k", None);
    assert_eq!(case.head_of(&redirected, "").header("if-none-match"), "*");
}

#[test]
fn a_coding_is_sent_and_signed_before_all_other_names() {
    let mut case = case();
    let plain = case.head();
    for (coding, token) in [(Coding::Gzip, None), (Coding::Zstd, Some("a token".to_owned()))] {
        (case.coding, case.token) = (Some(coding), token);
        let head = case.head();
        assert_eq!(head.headers.len(), plain.headers.len() + 1 + usize::from(case.token.is_some()));
        let signed = "SignedHeaders=content-encoding;content-type;host;x-amz-content-sha256;";
        assert!(head.header("authorization").contains(signed), "{}", head.header("authorization"));
        case.check();
        // A redirect sends the same object, so it says the same of it.
        let mut redirected = case.clone();
        redirected.server.host = "elsewhere.example".into();
        let query = Some("rk=e2c69a31");
        let head = case.head_of(&case.template().redirected(&redirected.server, "/k", query), "");
        assert_eq!(head.header("content-encoding"), coding.name());
        assert_eq!(head.header("authorization"), redirected.expected_authorization(&head));
    }
    // The same template and signer go back and forth.
    let (template, mut signer, mut out) = (case.template(), case.signer(), Vec::new());
    for coding in [None, Some(Coding::Gzip), None] {
        case.coding = coding;
        out.clear();
        case.write(&template, &case.key, &mut signer, &mut out);
        let head = Head::read(&out);
        assert_eq!(head.header("authorization"), case.expected_authorization(&head));
    }
}

#[test]
#[should_panic(expected = "summed as this template wants it")]
fn sums_made_for_another_store_are_not_sent() {
    let case = case();
    let sums = Sums::of(&case.body, Integrity::NONE);
    let put = Put { key: "k", bytes: 2, coding: None, sums: &sums };
    case.template().write_head(&put, case.unix_s, &mut case.signer(), &mut Vec::new());
}

#[test]
fn every_character_of_a_key() {
    let mut case = case();
    // All of ASCII, then characters whose bytes are all that UTF-8 has beyond it.
    let ascii = (0..=127u8).map(char::from);
    let lead_2 = (0x80..0x800u32).filter_map(char::from_u32);
    let lead_3 = (0x800..0x1_0000u32).step_by(97).filter_map(char::from_u32);
    let lead_4 = (0x1_0000..0x11_0000u32).step_by(1009).filter_map(char::from_u32);
    let all: Vec<char> = ascii.chain(lead_2).chain(lead_3).chain(lead_4).collect();
    let mut bytes: Vec<u8> = all.iter().collect::<String>().into_bytes();
    bytes.sort_unstable();
    bytes.dedup();
    // 0xC0, 0xC1 and 0xF5 to 0xFF occur in no UTF-8.
    assert_eq!(bytes.len(), 256 - 13);
    for group in all.chunks(100) {
        case.key = group.iter().collect();
        case.check();
    }
}

#[test]
fn hosts_say_their_port_only_where_it_is_not_the_schemes() {
    for (https, host, port, expected) in [
        (false, "store.example", 80, "store.example"),
        (false, "store.example", 443, "store.example:443"),
        (true, "store.example", 443, "store.example"),
        (true, "::1", 9000, "[::1]:9000"),
    ] {
        let server = ServerAddress { https, host: host.into(), port };
        let case = Case { server, ..case() };
        assert_eq!(case.head().header("host"), expected);
        case.check();
    }
}

#[test]
fn a_redirects_address_is_taken_as_it_is() {
    let mut case = case();
    case.options.acl = Some("private".into());
    let server = ServerAddress { https: true, host: "bucket.s3-x.amazonaws.com".into(), port: 443 };
    let first = case.template();
    for (path, query, sent) in [
        ("/in/a%20key", None, "/in/a%20key"),
        ("", None, "/"),
        ("/k", Some("rk=e2c69a31"), "/k?rk=e2c69a31"),
        ("/k", Some("b=2&a=%2F&a=1&c&d=x+y~z"), "/k?b=2&a=%2F&a=1&c&d=x+y~z"),
    ] {
        let head = case.head_of(&first.redirected(&server, path, query), "");
        assert_eq!(head.path, sent);
        assert_eq!(head.header("host"), "bucket.s3-x.amazonaws.com");
        case.server = server.clone();
        assert_eq!(head.header("authorization"), case.expected_authorization(&head));
    }
}

#[test]
fn one_signer_goes_through_seconds_days_and_credentials() {
    let (mut case, mut out) = (case(), Vec::new());
    let (template, mut signer) = (case.template(), Signer::new("us-east-1", "s3"));
    for step in 0..200u64 {
        case.unix_s += step * 37 + u64::from(step == 100) * 86_400;
        case.token = (step / 50 % 2 == 1).then(|| format!("token {step}"));
        case.access_key = format!("AKID{}", step / 10);
        case.key = format!("k{step}");
        let who = Identity {
            access_key: &case.access_key,
            secret_key: &case.secret_key,
            session_token: case.token.as_deref(),
        };
        let renewed = Identity { session_token: who.session_token, ..who };
        // The token changes in every step, so every step is a generation.
        if !signer.is_current(case.unix_s, step) {
            signer.renew(case.unix_s, step, &renewed).unwrap();
        }
        out.clear();
        case.write(&template, &case.key, &mut signer, &mut out);
        let head = Head::read(&out);
        assert_eq!(head.header("authorization"), case.expected_authorization(&head));
    }
}

#[test]
fn what_no_header_can_carry_is_refused() {
    let mut case = case();
    case.options.storage_class = Some("X\r\nx-evil: 1".into());
    let destination = Destination { server: &case.server, path: "/", prefix: "" };
    let refused = Template::new(&destination, &case.options, case.integrity).unwrap_err();
    assert_eq!(refused, Unsendable { what: "x-amz-storage-class" });
}

#[test]
fn an_owner_is_signed_between_the_date_and_the_token() {
    let mut case = case();
    case.options.expected_owner = Some("123456789012".into());
    case.options.tags = Some("team=data%20eng&env=prod".into());
    for (token, between) in [(None, ""), (Some("t".to_owned()), "x-amz-security-token;")] {
        case.token = token;
        let head = case.head();
        assert_eq!(head.header("x-amz-expected-bucket-owner"), "123456789012");
        assert_eq!(head.header("x-amz-tagging"), "team=data%20eng&env=prod");
        let signed = format!(";x-amz-date;x-amz-expected-bucket-owner;{between}x-amz-tagging,");
        assert!(head.header("authorization").contains(&signed), "{}", head.header("authorization"));
        case.check();
    }
}

#[test]
fn a_proxy_is_told_the_whole_address_and_the_signature_stays() {
    let mut case = case();
    case.token = Some("a token".into());
    for (host, port, authority) in [
        ("s3.corp", 9000, "s3.corp:9000"),
        ("s3.corp", 80, "s3.corp"),
        ("fd12::1", 80, "[fd12::1]"),
    ] {
        case.server = ServerAddress { https: false, host: host.into(), port };
        let direct = case.head();
        for authorization in [None, Some("Basic dTpw")] {
            let template = case.template().by_proxy(&case.server, authorization);
            let head = case.head_of(&template, &case.key);
            assert_eq!(head.path, format!("http://{authority}{}", direct.path));
            let sent = head.headers.iter().find(|(name, _)| name == "proxy-authorization");
            assert_eq!(sent.map(|(_, value)| value.as_str()), authorization);
            let same = |head: &Head| {
                let own = head.headers.iter().filter(|(name, _)| name != "proxy-authorization");
                own.cloned().collect::<Vec<_>>()
            };
            assert_eq!(same(&head), same(&direct), "signature and all");
            assert!(!format!("{template:?}").contains("66, 97, 115"), "the password is not shown");
            // A redirect has to be asked for in its own right.
            let elsewhere = template.redirected(&case.server, "/k", Some("a=1"));
            let head = case.head_of(&elsewhere, "");
            assert_eq!(head.path, "/k?a=1");
            let mut head = case.head_of(&elsewhere.by_proxy(&case.server, authorization), "");
            assert_eq!(head.path, format!("http://{authority}/k?a=1"));
            head.path = "/k?a=1".into();
            assert_eq!(head.header("authorization"), case.expected_authorization(&head));
        }
    }
}

fn integrity() -> impl Strategy<Value = Integrity> {
    let checksum = prop::sample::select(vec![
        Checksum::None,
        Checksum::Crc32c,
        Checksum::Crc64Nvme,
        Checksum::Sha256,
    ]);
    (checksum, any::<bool>())
        .prop_map(|(checksum, sign_payload)| Integrity { checksum, sign_payload })
}

prop_compose! {
    fn any_case()(
        (https, host, port) in (any::<bool>(), "[a-z][a-z0-9-]{0,20}(\\.[a-z]{2,5})?", 1..=u16::MAX),
        (path, prefix, key) in (prop_oneof!["/", "/[a-z0-9.-]{3,20}/"], any::<String>(), "\\PC{1,40}|.{1,40}"),
        (acl, storage_class) in (prop::option::of("[a-z-]{1,20}"), prop::option::of("[A-Z_]{1,12}")),
        (sse, kms_key_id) in (prop::option::of("aws:kms|AES256"), prop::option::of("[ -~]{1,60}")),
        bucket_key in prop::option::of(any::<bool>()),
        (tags, expected_owner) in (prop::option::of("[a-z]{1,9}=[a-z%2F]{0,9}"), prop::option::of("[0-9]{12}")),
        (content_type, if_none_match) in ("[a-z]{1,10}/[ -~]{1,30}", any::<bool>()),
        integrity in integrity(),
        body in prop::collection::vec(any::<u8>(), 0..600),
        coding in prop::sample::select(vec![None, Some(Coding::Gzip), Some(Coding::Zstd)]),
        unix_s in 0..253_402_300_800u64,
        (region, access_key, secret_key) in ("[a-z]{2}-[a-z]{4,9}-[0-9]", "[A-Z0-9]{16,20}", "[ -~]{1,80}"),
        token in prop::option::of("[A-Za-z0-9+/=]{1,1200}"),
    ) -> Case {
        let options = S3Options {
            acl, storage_class, sse, kms_key_id, bucket_key, tags, expected_owner, content_type, if_none_match,
            ..S3Options::default()
        };
        let server = ServerAddress { https, host, port };
        Case { server, path, prefix, options, integrity, key, body, coding, unix_s, region, access_key, secret_key, token }
    }
}

proptest! {
    #[test]
    fn any_request_is_signed_as_the_sdk_signs_it(case in any_case()) {
        case.check();
    }
}
