mod h2;
mod streams;
mod unread;

use std::sync::Arc;

use arc_swap::ArcSwap;

use super::*;
use crate::http::tokens::TokenSet;
use crate::metrics::Unavailable;
use crate::metrics::tokens::TokenMetrics;
use crate::rt::Rng;

/// Settings under which more of a head counts.
const SETTINGS: [&[(&str, &str)]; 5] = [
    &[("MAX_LENGTH", "20KB")],
    &[("TOKEN_IN_QUERY", "on"), ("TOKENS_FILE", "tokens"), ("MAX_LENGTH", "20KB")],
    &[("CORS_ORIGINS", "https://example.com,https://*.example.org"), ("MAX_LENGTH", "20KB")],
    &[
        ("KEY", "{header:x-tenant}/{query:site}/{unix_nanos}-{node}-{core}-{seq}.json"),
        ("META", "client,header:user-agent,header:x-tenant"),
        ("MAX_LENGTH", "20KB"),
    ],
    // The socket of a test has no address.
    &[("TRUST", "0.0.0.0,10.0.0.0/8"), ("META", "client"), ("MAX_LENGTH", "20KB")],
];

/// One core has all of a quota.
const ALONE: (&str, &str) = ("CORES", "0");
const LENGTH: (&str, &str) = ("MAX_LENGTH", "20KB");

/// Settings under which few requests of one client or one token's name pass.
const QUOTAS: [&[(&str, &str)]; 4] = [
    &[("CLIENT_RATE", "2/h"), ("CLIENT_BURST", "3"), ALONE, LENGTH],
    &[("CLIENT_BYTES", "1KB/h"), ("CLIENT_BURST", "100B"), ALONE, LENGTH],
    &[
        ("CLIENT_RATE", "2/h"),
        ("CLIENT_BURST", "2"),
        ("TRUST", "0.0.0.0,10.0.0.0/8"),
        ALONE,
        LENGTH,
    ],
    &[("TOKENS_FILE", "tokens"), ALONE, LENGTH],
];

fn tokens() -> SharedTokens {
    tokens_of("alpha;name=a\nbeta;name=b\n")
}

fn few_tokens() -> SharedTokens {
    tokens_of("alpha;name=a;rate=2/h;burst=2\nbeta;name=b;bytes=1KB/h;burst=50B\n")
}

fn tokens_of(file_text: &str) -> SharedTokens {
    let metrics = TokenMetrics::leaked(1);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), file_text).unwrap();
    let set = TokenSet::load(file.path(), &metrics.names).unwrap();
    SharedTokens { set: Arc::new(ArcSwap::from_pointee(set)), metrics }
}

fn lab(settings: &[(&str, &str)]) -> Lab {
    lab_with(settings, tokens)
}

fn lab_with(settings: &[(&str, &str)], tokens: fn() -> SharedTokens) -> Lab {
    let has_tokens = settings.iter().any(|(name, _)| *name == "TOKENS_FILE");
    let make: Option<fn() -> SharedTokens> = if has_tokens { Some(tokens) } else { None };
    Lab::new(Config::from_settings(settings).unwrap(), make).unwrap()
}

async fn same(lab: &Lab, pieces: &[&[u8]], what: &str) -> CaseOutcome {
    let [fast, hyper] = lab.run(pieces).await.map(without_spread);
    let sent: Vec<_> = pieces.iter().map(|piece| piece.escape_ascii().to_string()).collect();
    assert_eq!(fast, hyper, "{what}: {sent:#?}");
    fast
}

/// Without the seconds after which those that were throttled are to return, which are random.
fn without_spread(outcome: CaseOutcome) -> CaseOutcome {
    let mut answers = outcome.answers;
    for (before, after) in [("retry-after: ", "\r\n"), ("send it again in ", " s, ")] {
        let mut parts = answers.split(before);
        let mut rest = parts.next().unwrap_or_default().to_owned();
        for part in parts {
            let (seconds, behind) = part.split_once(after).expect("it is told");
            assert!(seconds.parse::<u64>().is_ok_and(|seconds| seconds > 0), "{seconds}");
            rest.extend([before, &"#".repeat(seconds.len()), after, behind]);
        }
        answers = rest;
    }
    CaseOutcome { answers, ..outcome }
}

const BODY: &str = r#"{"token":"alpha","data":[{"a":1},"b"]}"#;

fn with_body(start: &str, fields: &str, body: &str) -> Vec<u8> {
    format!("{start} HTTP/1.1\r\n{fields}content-length: {}\r\n\r\n{body}", body.len()).into()
}

fn post(fields: &str) -> Vec<u8> {
    with_body("POST /payloads", &format!("host: x\r\n{fields}"), BODY)
}

/// Requests of every kind, good and bad ones.
fn requests() -> Vec<Vec<u8>> {
    let long = format!("{{\"token\":\"alpha\",\"data\":[\"{}\"]}}", "x".repeat(18_000));
    let too_long = format!("{{\"data\":[\"{}\"]}}", "x".repeat(21_000));
    let mut all = vec![
        post(""),
        post("Content-Type: application/json\r\nUser-Agent: curl/8\r\nAccept: */*\r\n"),
        post("connection: keep-alive\r\n"),
        post("Connection: Keep-Alive\r\n"),
        post("connection: close\r\n"),
        post("CONNECTION: CLOSE\r\n"),
        post("connection: close, keep-alive\r\n"),
        post("connection: keep-alive\r\nconnection: close\r\n"),
        post("connection: x\r\n"),
        post("connection:\r\n"),
        post("x-api-key: alpha\r\n"),
        post("X-API-Key: wrong\r\n"),
        post("x-api-key: alpha\r\nx-api-key: alpha\r\n"),
        post("authorization: Bearer alpha\r\n"),
        post("authorization: Basic alpha\r\n"),
        post("authorization: Bearer alpha\r\nx-api-key: beta\r\n"),
        post("millrace-ack: queued\r\n"),
        post("millrace-ack: spooled\r\n"),
        post("millrace-ack: queued\r\nmillrace-ack: queued\r\n"),
        post("content-type: application/x-ndjson\r\n"),
        post("content-type: text/plain\r\ncontent-type: application/x-ndjson\r\n"),
        post("content-encoding: identity\r\n"),
        post("content-encoding: gzip\r\n"),
        post("content-encoding: br\r\n"),
        post("origin: https://example.com\r\n"),
        post("origin: https://evil.example\r\n"),
        post("origin: https://example.com\r\nconnection: close\r\n"),
        post("origin: https://example.com\r\nx-api-key: wrong\r\n"),
        post("x-tenant: a\r\nuser-agent: b\r\nX-Tenant: c\r\n"),
        post("x-tenant: \u{fc}\r\nuser-agent: \"\\\t\"\r\n"),
        post("x-forwarded-for: 192.0.2.7\r\nforwarded: for=192.0.2.7\r\n"),
        post("x-forwarded-for: 192.0.2.7\r\nforwarded: for=192.0.2.8\r\n"),
        post("x-forwarded-for: 192.0.2.8, 10.1.2.3\r\nx-forwarded-for: 10.0.0.3\r\n"),
        post("X-Forwarded-For: 2001:db8::7\r\nx-api-key: wrong\r\n"),
        post("x-forwarded-for: 192.0.2.8\r\nconnection: close\r\n"),
        post("x-forwarded-for: nobody\r\n"),
        post("forwarded: for=\"[2001:db8::7]:1\";proto=https, for=10.0.0.3\r\n"),
        post("forwarded: for=192.0.2.8\r\nexpect: 100-continue\r\n"),
        post("expect: 100-continue\r\n"),
        post("upgrade: h2c\r\n"),
        post("te: trailers\r\nkeep-alive: timeout=5\r\ntrailer: x\r\n"),
        post("x: y \t\r\n"),
        post("x:y\r\nempty:\r\nblank: \t \r\n"),
        post("x: y\n"),
        post("x : y\r\n"),
        post("x: y\r\n z\r\n"),
        post(&"x: y\r\n".repeat(97)),
        post(&"x: y\r\n".repeat(98)),
        post(&"x: y\r\n".repeat(99)),
        post(&format!("x: {}\r\n", "y".repeat(15_000))),
        post(&format!("x: {}\r\n", "y".repeat(16_384))),
        with_body("POST /payloads?site=a&token=alpha", "host: x\r\n", BODY),
        with_body("POST /payloads?token=wrong", "host: x\r\n", BODY),
        with_body("POST /payloads?a=%zz&token=%61lpha?b", "host: x\r\n", BODY),
        with_body("POST /payloads?a=\"<>", "host: x\r\n", BODY),
        with_body("POST /payloads?a#b", "host: x\r\n", BODY),
        with_body("POST /payloads#b", "host: x\r\n", BODY),
        with_body("POST /pay%6coads", "host: x\r\n", BODY),
        with_body("POST /nowhere", "host: x\r\n", BODY),
        with_body("POST //payloads", "host: x\r\n", BODY),
        with_body("POST http://x/payloads", "host: x\r\n", BODY),
        with_body("POST  /payloads", "host: x\r\n", BODY),
        with_body("POST /payloads ", "host: x\r\n", BODY),
        with_body("PUT /payloads", "host: x\r\n", BODY),
        with_body("post /payloads", "host: x\r\n", BODY),
        with_body("POST /payloads", "", BODY),
        with_body("POST /payloads", "host:\r\n", BODY),
        with_body("POST /payloads", "Host: [::1]:80\r\n", BODY),
        with_body("POST /payloads", "host: a b\r\n", BODY),
        with_body("POST /payloads", "host: x\r\nhost: x\r\n", BODY),
        with_body("POST /payloads", "host: x\r\n", ""),
        with_body("POST /payloads", "host: x\r\n", "{}"),
        with_body("POST /payloads", "host: x\r\n", "[1,2"),
        with_body("POST /payloads", "host: x\r\n", r#"{"token":"beta","data":[]}"#),
        with_body("POST /payloads", "host: x\r\n", &long),
        with_body("POST /payloads", "host: x\r\n", &too_long),
        b"POST /payloads HTTP/1.1\r\nhost: x\r\n\r\n".to_vec(),
        b"POST /payloads HTTP/1.0\r\nhost: x\r\ncontent-length: 12\r\n\r\n{\"data\":[1]}".to_vec(),
        b"GET /payloads HTTP/1.1\r\nhost: x\r\n\r\n".to_vec(),
        b"OPTIONS /payloads HTTP/1.1\r\nhost: x\r\norigin: https://example.com\r\n\
          access-control-request-method: POST\r\n\r\n"
            .to_vec(),
        b"POST /payloads HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n\
          c\r\n{\"data\":[1]}\r\n0\r\n\r\n"
            .to_vec(),
        b"\r\nPOST /payloads HTTP/1.1\r\nhost: x\r\ncontent-length: 12\r\n\r\n{\"data\":[1]}"
            .to_vec(),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        b"POST\r\n\r\n".to_vec(),
    ];
    let bare = |length: &str| {
        let head = format!("POST /payloads HTTP/1.1\r\nhost: x\r\n{length}\r\n\r\n");
        [head.as_bytes(), br#"{"data":[1]}"#].concat()
    };
    let lengths = [
        "content-length: 012",
        "content-length:\t12",
        "content-length: 12 ",
        "content-length: 12\r\ncontent-length: 12",
        "content-length: 12\r\ncontent-length: 13",
        "content-length: 12, 12",
        "content-length: +12",
        "content-length: -1",
        "content-length: 1e1",
        "content-length:",
        "content-length: 999999999999999",
        "content-length: 9999999999999999",
        "content-length: 18446744073709551615",
        "content-length: 18446744073709551628",
    ];
    all.extend(lengths.map(bare));
    all
}

/// Each request alone, after and before another one.
#[test]
fn every_request_has_the_same_outcome() {
    for settings in SETTINGS {
        rt::run_test(async {
            let (lab, good) = (lab(settings), post("x-api-key: alpha\r\n"));
            for request in requests() {
                let what = format!("{settings:?}");
                same(&lab, &[&request], &what).await;
                same(&lab, &[&good, &request, &good], &what).await;
                same(&lab, &[&[&good[..], &request, &good].concat()], &what).await;
                let cut = request.len() / 2;
                same(&lab, &[&request[..cut], &request[cut..]], &what).await;
            }
        });
    }
}

/// Each request behind and in front of others that use up quotas.
#[test]
fn every_request_has_the_same_outcome_for_its_quota() {
    for settings in QUOTAS {
        rt::run_test(async {
            let (mut throttled, mut passed) = (0, 0);
            for request in requests() {
                let lab = lab_with(settings, few_tokens);
                let one = post("x-api-key: alpha\r\nx-forwarded-for: 192.0.2.7\r\n");
                let two = post("x-api-key: beta\r\nx-forwarded-for: 192.0.2.8\r\n");
                let what = format!("{settings:?}");
                let all = [&one[..], &request, &two, &one].concat();
                let cut = one.len() + request.len() / 2;
                for pieces in [
                    &[&one[..], &request, &two, &one][..],
                    &[&all],
                    &[&all[..cut], &all[cut..]],
                    &[&request, &two],
                ] {
                    let outcome = same(&lab, pieces, &what).await;
                    throttled += outcome.answers.matches("HTTP/1.1 429 ").count();
                    passed += outcome.answers.matches("HTTP/1.1 200 ").count();
                }
            }
            assert!(throttled > 100 && passed > 100, "{settings:?}: {throttled} {passed}");
        });
    }
}

/// Requests of a connection that begins with a PROXY header, which may be bad.
#[test]
fn every_request_has_the_same_outcome_behind_a_proxy_header() {
    const HEADERS: [&str; 5] = [
        "PROXY TCP4 192.0.2.7 192.0.2.1 4711 8080\r\n",
        "PROXY TCP6 2001:db8::7 2001:db8::1 4711 8080\r\n",
        "PROXY UNKNOWN\r\n",
        "PROXY TCP4 192.0.2.7\r\n",
        "",
    ];
    let quota = [("CLIENT_RATE", "20/h"), ("CLIENT_BURST", "20")];
    let listen = ("LISTEN", "127.0.0.1:0?proxy=0.0.0.0/32");
    let trust = ("TRUST", "192.0.2.0/24");
    for settings in [
        &[listen, LENGTH][..],
        &[listen, LENGTH, trust],
        &[listen, LENGTH, ALONE, quota[0], quota[1]],
    ] {
        rt::run_test(async {
            let (lab, good) = (lab(settings), post("x-forwarded-for: 198.51.100.7\r\n"));
            for request in requests() {
                for header in HEADERS {
                    let what = format!("{settings:?} {header:?}");
                    let header = header.as_bytes();
                    let all = [header, &request[..], &good].concat();
                    same(&lab, &[&all], &what).await;
                    let cut = header.len() / 2 + 1;
                    same(&lab, &[&all[..cut], &all[cut..]], &what).await;
                }
            }
        });
    }
}

#[test]
fn it_does_not_matter_where_a_request_is_cut() {
    rt::run_test(async {
        let lab = lab(SETTINGS[1]);
        let requests = [
            post("x-api-key: alpha\r\nconnection: keep-alive\r\n"),
            post("authorization: Bearer wrong\r\nx: y\r\n z\r\n"),
            post("transfer-encoding: gzip\r\n"),
            // These begin like those of the fast path.
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
            with_body("PUT /payloads", "host: x\r\n", BODY),
            with_body("POST nowhere", "host: x\r\n", BODY),
        ];
        for request in &requests {
            for first in 1..request.len() {
                same(&lab, &[&request[..first], &request[first..]], "two").await;
                let second = first + (request.len() - first) / 2;
                let cut = [&request[..first], &request[first..second], &request[second..]];
                same(&lab, &cut, "three").await;
            }
            let bytes: Vec<&[u8]> = request.chunks(1).collect();
            same(&lab, &bytes, "byte by byte").await;
        }
        let two = requests[0].repeat(2);
        for at in 1..two.len() {
            let outcome = same(&lab, &[&two[..at], &two[at..]], "pipelined").await;
            assert_eq!(outcome.answers.matches(" 200 OK").count(), 2, "cut at {at}");
        }
    });
}

/// More answers than are kept for a client that does not read, and than one poll makes.
#[test]
fn many_pipelined_requests_are_all_answered() {
    rt::run_test(async {
        let lab = lab(SETTINGS[0]);
        let many = post("").repeat(600);
        let outcome = same(&lab, &[&many], "pipelined").await;
        assert_eq!(outcome.answers.matches(" 200 OK").count(), 600);
        assert_eq!(outcome.payloads.len(), 1200);
    });
}

/// Whether a body comes with its head or later, it is refused as soon as it needs memory.
#[test]
fn a_body_that_finds_no_memory_is_refused() {
    rt::run_test(async {
        let (lab, whole) = (lab(SETTINGS[0]), post(""));
        let full = [&lab.fast, &lab.hyper].map(|bench| {
            let memory = &bench.server.bodies.memory;
            std::iter::from_fn(|| memory.buffer_of(4 << 10).ok()).collect::<Vec<_>>()
        });
        let head = whole.len() - BODY.len();
        let two = whole.repeat(2);
        let cases: [&[&[u8]]; 4] = [
            &[&whole],
            &[&whole[..head], &whole[head..]],
            &[&whole[..head + 1], &whole[head + 1..]],
            &[&two],
        ];
        for pieces in cases {
            let outcome = same(&lab, pieces, "no memory").await;
            assert!(outcome.answers.starts_with("HTTP/1.1 503 "), "{}", outcome.answers);
            assert!(outcome.answers.contains("connection: close\r\n"), "{}", outcome.answers);
            assert_eq!(outcome.answers.matches("HTTP/1.1").count(), 1, "{}", outcome.answers);
            assert!(outcome.payloads.is_empty());
        }
        let refused = lab.fast.cells.unavailable[Unavailable::BodyMemory as usize].value();
        assert_eq!(refused, cases.len() as u64);
        drop(full);
        for pieces in cases {
            let outcome = same(&lab, pieces, "memory again").await;
            assert!(outcome.answers.starts_with("HTTP/1.1 200 "), "{}", outcome.answers);
        }
        assert_eq!(lab.fast.cells.body_bytes.value(), 0);
    });
}

/// What follows a request and begins as a TLS handshake does is mostly the rest of a body that is longer
/// than its length.
#[test]
fn a_handshake_is_what_a_connection_begins_with() {
    rt::run_test(async {
        let lab = lab(SETTINGS[0]);
        let (good, hello) = (post(""), b"\x16\x03\x01\x02\0\r\n\r\n");
        let both = [&good, &hello[..]].concat();
        let cases: [(&[&[u8]], u64); 4] =
            [(&[&both], 0), (&[&good, hello], 0), (&[hello], 1), (&[&hello[..1], &hello[1..]], 1)];
        for (pieces, counted) in cases {
            let before = lab.fast.cells.tls_on_plain.value();
            let outcome = same(&lab, pieces, "a handshake").await;
            assert!(outcome.answers.contains("HTTP/1.1 400 "), "{}", outcome.answers);
            assert_eq!(lab.fast.cells.tls_on_plain.value() - before, counted, "{pieces:?}");
        }
    });
}

/// What the fast path does not see in one head: as with hyper, which does not see it in one read.
fn has_two_lengths(bytes: &[u8]) -> bool {
    let text = String::from_utf8_lossy(bytes).to_lowercase();
    text.contains("transfer-encoding") && text.contains("content-length")
}

#[test]
fn mutated_requests_have_the_same_outcome() {
    let seed = crate::http::peers::tests::seed();
    let mut rng = Rng::with_seed(seed);
    let all = requests();
    for settings in SETTINGS {
        rt::run_test(async {
            let lab = lab(settings);
            for _ in 0..400 {
                let count = rng.usize(1..4);
                let mut bytes: Vec<u8> = Vec::new();
                for _ in 0..count {
                    let request = &all[rng.usize(..all.len())];
                    if request.len() < 2_000 {
                        bytes.extend_from_slice(request);
                    }
                }
                for _ in 0..rng.usize(..4) {
                    mutate(&mut bytes, &mut rng);
                }
                if bytes.is_empty() || has_two_lengths(&bytes) {
                    continue;
                }
                let mut cuts: Vec<usize> =
                    (0..rng.usize(..4)).map(|_| rng.usize(..bytes.len())).collect();
                cuts.sort_unstable();
                let (mut pieces, mut start) = (Vec::new(), 0);
                for cut in cuts.into_iter().chain([bytes.len()]) {
                    pieces.push(&bytes[start..cut]);
                    start = cut;
                }
                same(&lab, &pieces, &format!("seed {seed} {settings:?}")).await;
            }
        });
    }
}

fn mutate(bytes: &mut Vec<u8>, rng: &mut Rng) {
    if bytes.is_empty() {
        return;
    }
    let at = rng.usize(..bytes.len());
    const ODD: &[u8] = b"\r\n \t:,;\0\x7f\xff/?#%0A";
    let odd = ODD[rng.usize(..ODD.len())];
    match rng.u8(..6) {
        0 => bytes[at] = odd,
        1 => bytes[at] ^= 1 << rng.u8(..8),
        2 => bytes.insert(at, odd),
        3 => drop(bytes.remove(at)),
        4 => bytes.truncate(at),
        _ => {
            let end = (at + rng.usize(1..40)).min(bytes.len());
            let copy = bytes[at..end].to_vec();
            bytes.splice(at..at, copy);
        }
    }
}

/// A silent connection holds its task, its state and its socket's entry: 2 kB together.
#[test]
fn the_task_of_a_connection_is_small() {
    rt::run_test(async {
        let lab = lab(SETTINGS[0]);
        let (ours, _client) = UnixStream::pair().unwrap();
        let stream = lab.fast.server.net.stream(ours);
        let entrance = Rc::new(Entrance { number: 0, tls: None });
        let task = serve(lab.fast.server, stream, entrance, Readers::Both);
        let bytes = size_of_val(&task);
        assert!(bytes <= 800, "{bytes}");
    });
}
