//! Goal: with `TOKENS_FILE` only requests that have one of its tokens are served, whichever way the
//! token comes; a wrong header is refused before the body is read; a bad file is refused at start;
//! requests are counted by their token's name.
//!
//! Method: right, wrong and missing tokens in every form that headers and JSON can give them, with
//! bodies that never come; files that hold no usable token; a scrape.

use std::io::Read as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::support::{Client, Metrics, Reply, Server, request, run, wait_for};

#[test]
fn only_known_tokens_are_admitted() {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    std::fs::write(dir.path().join("tokens"), "# ours\nalpha\n\nβ-🔑\r\n").unwrap();
    let server = Server::start_in(dir, &[("TOKENS_FILE", "tokens")]);
    let mut client = server.connect();
    for right in [r#""alpha""#, r#""\u0061lpha""#, r#""β-🔑""#, r#""\u03b2-\ud83d\udd11""#] {
        let reply = client.post(format!(r#"{{"data":["taken"],"token":{right}}}"#));
        assert_eq!(reply.status, 200, "{right}: {reply:?}");
    }
    let wrong = [
        r#""token":"wrong","#,
        r#""token":"","#,
        r#""token":"Alpha","#,
        r#""token":" alpha","#,
        r#""token":"alpha\n","#,
        r##""token":"# ours","##,
        r#""token":"alph","#,
        r#""Token":"alpha","#,
        r#""version":"alpha","#,
        "",
    ];
    for wrong in wrong {
        let reply = client.post(format!(r#"{{{wrong}"data":["no"]}}"#));
        assert_eq!(reply.status, 401, "{wrong}");
        assert_eq!(reply.header("www-authenticate"), Some("Bearer"));
        assert_eq!(reply.header("content-type"), Some("application/json"));
        assert!(reply.error().contains("token"), "{}", reply.error());
        assert!(!reply.body.contains("alpha"), "an answer never shows a token");
    }
    // The token counts also where there is nothing to admit, and only the envelope's does.
    assert_eq!(client.post(r#"{"data":[]}"#).status, 401);
    assert_eq!(client.post(r#"{"data":[{"token":"alpha"}]}"#).status, 401);
    // What is no collection is 400, whoever sends it.
    assert_eq!(client.post(r#"{"token":"alpha","data":1}"#).status, 400);
    assert_eq!(client.post(r#"{"token":1,"data":[]}"#).status, 400);
    drop(client);
    server.wait_idle();
    assert_eq!(server.stored_texts(), ["\"taken\""; 4]);
    assert_eq!(server.metrics().requests(401), wrong.len() as u64 + 2);
    assert!(!server.logged("alpha"), "a log never shows a token");
}

/// Header lines, and what they are: right, wrong, or none.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Header {
    Right,
    Wrong,
    None,
}

/// Bytes, because some are not UTF-8.
const HEADERS: [(&[u8], Header); 22] = [
    (b"", Header::None),
    (b"proxy-authorization: Bearer alpha\r\n", Header::None),
    (b"authorization: Bearer alpha\r\n", Header::Right),
    (b"Authorization:bearer  alpha\t\r\n", Header::Right),
    (b"AUTHORIZATION: BEARER beta\r\n", Header::Right),
    (b"x-api-key: alpha\r\n", Header::Right),
    (b"X-API-Key:beta \r\n", Header::Right),
    (b"x-api-key: beta\r\nauthorization: Bearer beta\r\n", Header::Right),
    (b"authorization: Bearer wrong\r\n", Header::Wrong),
    (b"authorization: Bearer Alpha\r\n", Header::Wrong),
    (b"authorization: alpha\r\n", Header::Wrong),
    (b"authorization: Basic YWxwaGE6YWxwaGE=\r\n", Header::Wrong),
    (b"authorization: Bearer\r\n", Header::Wrong),
    (b"authorization:\r\n", Header::Wrong),
    (b"authorization: Bearer alpha\r\nauthorization: Bearer alpha\r\n", Header::Wrong),
    (b"authorization: Bearer alpha, Bearer beta\r\n", Header::Wrong),
    (b"authorization: Bearer alpha\xc3\xa9\r\n", Header::Wrong),
    (b"x-api-key: wrong\r\n", Header::Wrong),
    (b"x-api-key:\r\n", Header::Wrong),
    (b"x-api-key: alpha\r\nx-api-key: beta\r\n", Header::Wrong),
    (b"x-api-key: alpha\r\nauthorization: Bearer beta\r\n", Header::Wrong),
    (b"x-api-key: alpha\r\nauthorization: Basic YWxwaGE=\r\n", Header::Wrong),
];

fn post_with(client: &mut Client, headers: &[u8], body: &str) -> Reply {
    let length = format!("content-length: {}\r\n\r\n", body.len());
    client.send([START, headers, length.as_bytes(), body.as_bytes()].concat());
    client.reply()
}

const START: &[u8] = b"POST /payloads HTTP/1.1\r\nhost: x\r\n";

#[test]
fn a_header_decides_and_without_one_the_envelope_does_where_it_may() {
    let bodies = [
        (r#"{"data":[],"token":"alpha"}"#, true),
        (r#"{"data":[],"token":"wrong"}"#, false),
        (r#"{"data":[]}"#, false),
    ];
    for in_body in ["on", "off"] {
        let dir = Arc::new(tempfile::tempdir().unwrap());
        std::fs::write(dir.path().join("tokens"), "alpha\nbeta;name=b\n").unwrap();
        let settings = [("TOKENS_FILE", "tokens"), ("TOKEN_IN_BODY", in_body)];
        let server = Server::start_in(dir, &settings);
        for (headers, kind) in HEADERS {
            let shown = String::from_utf8_lossy(headers);
            for (body, is_right) in bodies {
                let expected = match kind {
                    Header::Right => 200,
                    Header::None if in_body == "on" && is_right => 200,
                    _ => 401,
                };
                let reply = post_with(&mut server.connect(), headers, body);
                assert_eq!(reply.status, expected, "{shown}{body} {in_body}: {reply:?}");
                if reply.status == 401 {
                    let challenge = reply.header("www-authenticate").unwrap();
                    // Without a bearer token there is nothing that could be invalid.
                    let is_other =
                        shown.contains("Basic") || shown.starts_with("authorization: alpha");
                    let expected = match kind {
                        Header::Wrong if !is_other => r#"Bearer error="invalid_token""#,
                        _ => "Bearer",
                    };
                    assert_eq!(challenge, expected, "{shown}");
                    assert!(!reply.body.contains("alpha") && !reply.body.contains("beta"));
                }
            }
            // A wrong header is refused on the spot, and so is none where there must be one: …
            let is_refused = kind == Header::Wrong || (kind == Header::None && in_body == "off");
            for expect in [&b""[..], b"expect: 100-continue\r\n"] {
                let mut client = server.connect();
                let rest = b"content-length: 100000\r\n\r\n";
                client.send([START, headers, expect, rest].concat());
                if is_refused {
                    let reply = client.last_reply();
                    assert_eq!((reply.status, reply.header("connection")), (401, Some("close")));
                } else if !expect.is_empty() {
                    // … anybody else is asked for the body, …
                    let mut asked = [0; 25];
                    client.stream.read_exact(&mut asked).unwrap();
                    assert_eq!(&asked, b"HTTP/1.1 100 Continue\r\n\r\n", "{shown}");
                } else {
                    // … or waited for.
                    client.stream.set_read_timeout(Some(Duration::from_millis(30))).unwrap();
                    assert!(client.stream.read(&mut [0]).is_err(), "{shown}");
                }
            }
        }
        assert!(!server.logged("alpha"), "a log never shows a token");
        server.wait_idle();
    }
}

#[test]
fn without_a_tokens_file_headers_mean_nothing() {
    let server = Server::start(&[]);
    for (headers, _) in HEADERS {
        let reply = post_with(&mut server.connect(), headers, r#"{"data":[],"token":"any"}"#);
        assert_eq!(reply.status, 200, "{}", String::from_utf8_lossy(headers));
    }
}

/// A client that sends a large body to its end before it reads.
#[test]
fn an_early_401_reaches_a_client_that_is_still_sending() {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    std::fs::write(dir.path().join("tokens"), "alpha\n").unwrap();
    let server = Server::start_in(dir, &[("TOKENS_FILE", "tokens")]);
    let total = 900 << 10;
    let head = format!(
        "POST /payloads HTTP/1.1\r\nhost: x\r\nx-api-key: wrong\r\ncontent-length: {total}\r\n\r\n"
    );
    let send = || {
        let began = Instant::now();
        let mut client = server.connect();
        client.send(&head);
        for _ in 0..total / (16 << 10) {
            let is_sent = client.try_send(vec![b' '; 16 << 10]);
            // The server reads on for two seconds; a busy machine may need longer.
            if began.elapsed() > Duration::from_millis(1_800) {
                return None;
            }
            assert!(is_sent, "reset");
            // What is tested is a client slower than the server's answer.
            std::thread::sleep(Duration::from_millis(2));
        }
        assert!(client.try_send(vec![b' '; total % (16 << 10)]));
        Some(client.last_reply())
    };
    let reply = (0..10).find_map(|_| send()).expect("this machine sends that in time");
    assert_eq!((reply.status, reply.header("connection")), (401, Some("close")));
    server.wait_idle();
}

/// The value of a sample of the whole process.
fn figure(metrics: &Metrics, series: &str) -> Option<u64> {
    let line = metrics.0.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.map(|value| value.parse().unwrap())
}

#[test]
fn requests_are_counted_by_the_name_of_their_token() {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let write = |text: &str| std::fs::write(dir.path().join("tokens"), text).unwrap();
    write("a1;name=a\nb1;name=b\nplain\n");
    let settings = [("TOKENS_FILE", "tokens"), ("CORES", "all"), ("SPOOL_DIR", "spool")];
    let server = Server::start_in(dir.clone(), &settings);
    let post = |token: &str, body: &str, more: &str| {
        let headers = format!("authorization: Bearer {token}\r\n{more}");
        post_with(&mut server.connect(), headers.as_bytes(), body).status
    };
    let count = |token: &str, status: u16| {
        let labels = format!("{{token=\"{token}\",status=\"{status}\"}}");
        figure(&server.metrics(), &format!("millrace_token_requests_total{labels}"))
    };
    let accepted = |what: &str, token: &str| {
        let series = format!("millrace_token_{what}_accepted_total{{token=\"{token}\"}}");
        figure(&server.metrics(), &series)
    };
    assert_eq!(
        (count("a", 200), count("b", 200), count("(unnamed)", 200)),
        (Some(0), Some(0), None)
    );
    for ack in ["", "millrace-ack: stored\r\n", "millrace-ack: spooled\r\n"] {
        assert_eq!(post("a1", r#"{"data":[1,22]}"#, ack), 200);
    }
    // By the envelope as well.
    assert_eq!(server.post(r#"{"data":[4444],"token":"a1"}"#).status, 200);
    assert_eq!(post("b1", "no json", ""), 400);
    assert_eq!(post("b1", r#"{"data":[1]}"#, "content-encoding: br\r\n"), 415);
    assert_eq!(post("plain", r#"{"data":[]}"#, ""), 200);
    assert_eq!(post("wrong", r#"{"data":[1]}"#, ""), 401);
    let all = [count("a", 200), count("b", 400), count("b", 415), count("(unnamed)", 200)];
    assert_eq!(all, [Some(4), Some(1), Some(1), Some(1)]);
    assert_eq!((count("a", 401), count("(unnamed)", 401)), (None, None));
    assert_eq!((accepted("payloads", "a"), accepted("bytes", "a")), (Some(7), Some(13)));
    assert_eq!((accepted("payloads", "b"), accepted("bytes", "b")), (Some(0), Some(0)));

    // Rotation: another token of the same name; and a name that comes back later.
    let reload = |text: &str, said: &str| {
        write(text);
        let before = server.count_logged(said);
        server.signal("HUP");
        wait_for(said, || server.count_logged(said) > before);
    };
    reload("new;name=c\na2;name=a\n", "2 tokens are accepted from now on");
    assert_eq!((post("a1", r#"{"data":[1]}"#, ""), post("b1", r#"{"data":[1]}"#, "")), (401, 401));
    assert_eq!((post("a2", r#"{"data":[1]}"#, ""), post("new", r#"{"data":[1]}"#, "")), (200, 200));
    reload("b2;name=b\na2;name=a\nx;name=c\n", "3 tokens are accepted from now on");
    assert_eq!((post("b2", r#"{"data":[1]}"#, ""), post("x", r#"{"data":[1]}"#, "")), (200, 200));
    assert_eq!((count("a", 200), count("b", 200), count("c", 200)), (Some(5), Some(1), Some(2)));
    assert_eq!(figure(&server.metrics(), "millrace_tokens"), Some(3));
    server.wait_idle();
}

#[test]
fn a_bad_tokens_file_is_refused_at_start() {
    let dir = tempfile::tempdir().unwrap();
    let files: [(&str, &[u8], &str); 9] = [
        ("empty", b"", "no token"),
        ("comments", b"# nothing\n\n", "no token"),
        ("two-words", b"fine\nhush hush\n", "line 2"),
        ("binary", b"fine\n\xff\xfe\n", "line 2"),
        ("rate", b"fine\nhush;name=a;rate=5\n", "line 2: rate must be a whole number from 1 to"),
        ("later", b"fine\nhush;name=a;streams=s\n", "line 2: streams is not supported"),
        ("digest", b"fine\nsha256=hush\n", "line 2: a digest is written sha256="),
        ("twice", b"hush;name=a\n\nhush;name=b\n", "line 3 repeats the token of line 1"),
        ("missing", b"", "cannot be read"),
    ];
    for (name, bytes, says) in files {
        if name != "missing" {
            std::fs::write(dir.path().join(name), bytes).unwrap();
        }
        let settings = [
            ("TOKENS_FILE", name),
            ("LISTEN", "127.0.0.1:0"),
            ("ADMIN_LISTEN", "off"),
            ("CORES", "0"),
        ];
        let output = run(dir.path(), &[], &settings);
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{name}: {text}");
        assert!(text.contains("TOKENS_FILE") && text.contains(says), "{name}: {text}");
        assert!(!text.contains("hush"), "{text}");
    }
}

#[test]
fn headers_only_needs_tokens() {
    let dir = tempfile::tempdir().unwrap();
    for (settings, says) in [
        (&[("TOKEN_IN_BODY", "off")][..], "needs tokens: set TOKENS_FILE"),
        (&[("TOKEN_IN_BODY", "no"), ("TOKENS_FILE", "tokens")], "give on or off"),
    ] {
        let output = run(dir.path(), &["check"], settings);
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(text.contains("TOKEN_IN_BODY") && text.contains(says), "{text}");
    }
}

#[test]
fn a_public_listener_without_tokens_is_a_warning() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("tokens"), "alpha\n").unwrap();
    for (listen, tokens, is_warned) in [
        ("0.0.0.0:0", None, true),
        ("[::]:0", None, true),
        ("127.0.0.1:0", None, false),
        ("0.0.0.0:0", Some(("TOKENS_FILE", "tokens")), false),
    ] {
        let settings = [("LISTEN", listen), ("ADMIN_LISTEN", "off"), ("CORES", "0")];
        let settings: Vec<_> = settings.into_iter().chain(tokens).collect();
        let output = run(dir.path(), &["check"], &settings);
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(0), "{text}");
        let warned = text.lines().any(|line| {
            line.starts_with("warn") && line.contains("takes payloads from everybody who can reach")
        });
        assert_eq!(warned, is_warned, "{listen}: {text}");
        assert_eq!(text.contains("mend: set TOKENS_FILE"), is_warned, "{text}");
    }
}

/// What counts payloads by token agrees with the total at any time, whatever becomes of the answer.
#[test]
fn payloads_are_counted_by_token_when_they_are_accepted() {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    std::fs::write(dir.path().join("tokens"), "alpha;name=ours\n").unwrap();
    let settings = [
        ("TOKENS_FILE", "tokens"),
        ("SPOOL_DIR", "spool"),
        ("FAULTS", "hang=1"),
        ("PUT_TIMEOUT", "10m"),
        ("DRAIN_TIMEOUT", "1s"),
    ];
    let server = Server::start_in(dir, &settings);
    let mut accepted = 0;
    for ack in ["queued", "spooled", "stored"] {
        let mut client = server.connect();
        let headers = format!("x-api-key: alpha\r\nmillrace-ack: {ack}\r\n");
        client.send(request(br#"{"data":[1,2]}"#, &headers));
        accepted += 2;
        if ack != "stored" {
            assert_eq!(client.reply().status, 200);
        } else {
            // It waits for the store, and then it goes.
            server.wait("the request waits", |m| m.sum("millrace_ack_waiters") == 1);
        }
        let metrics = server.metrics();
        let of_token = metrics.sum("millrace_token_payloads_accepted_total");
        let total = metrics.sum("millrace_payloads_accepted_total");
        assert_eq!((of_token, total), (accepted, accepted), "{ack}");
        let bytes = metrics.sum("millrace_token_bytes_accepted_total");
        assert_eq!(bytes, metrics.sum("millrace_bytes_accepted_total"), "{ack}");
    }
}
