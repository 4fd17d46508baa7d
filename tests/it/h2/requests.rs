//! Goal: a request over HTTP/2 is the request that it is over HTTP/1.1: the same answers, payloads and
//! counters, many at once on one connection; `:authority` takes the place of `host`.
//!
//! Method: a client of frames, with prior knowledge and over TLS, beside one of HTTP/1.1.

use std::sync::Arc;

use crate::support::h2::{
    DATA, END_HEADERS, END_STREAM, GOAWAY, H2Answer, H2Client, HEADERS, NO_ERROR, PREFACE,
    REFUSED_STREAM, SETTINGS, StreamEnd, block, frame, post, settings,
};
use crate::support::tls::{Authority, HOST, TlsClient, write};
use crate::support::{PATIENCE, Server, collection, gzip, numbered, request, sorted, wait_for};

pub fn start(more: &[(&str, &str)]) -> Server {
    Server::start(&[&[("H2", "all")], more].concat())
}

/// A server with TLS, and the authority of its certificate.
pub fn start_tls(more: &[(&str, &str)]) -> (Server, Authority) {
    let (authority, dir) = (Authority::new("root"), Arc::new(tempfile::tempdir().unwrap()));
    write(dir.path(), "cert.pem", authority.server(&[HOST]));
    let settings = [("LISTEN", "https://127.0.0.1:0"), ("TLS_CERT", "cert.pem")];
    (Server::start_in(dir, &[&settings, more].concat()), authority)
}

#[test]
fn bodies_of_all_lengths_arrive_with_and_without_tls() {
    const SETTINGS: [(&str, &str); 3] =
        [("MAX_LENGTH", "8MiB"), ("MAX_BODY_BYTES", "32MiB"), ("MAX_QUEUE_BYTES", "64MiB")];
    let lengths = [1, 100, 4_000, 16_350, 16_400, 70_000, 1_000_000, 7_000_000];
    let (tls, authority) = start_tls(&SETTINGS);
    let mut options = authority.trust();
    options.protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let secured = TlsClient::connect(tls.ingest, &options.config());
    assert_eq!(secured.stream.conn.alpn_protocol(), Some(&b"h2"[..]));
    let plain = start(&SETTINGS);
    let mut expected = Vec::new();
    let mut over_plain = H2Client::connect(plain.ingest);
    let mut over_tls = H2Client::over(secured.stream, &[]);
    for (number, length) in lengths.into_iter().enumerate() {
        let payload = format!(r#""{number}{}""#, "x".repeat(length));
        for answer in
            [over_plain.post(collection(&[&payload])), over_tls.post(collection(&[&payload]))]
        {
            assert_eq!(
                (answer.status, answer.body.as_str()),
                (200, r#"{"accepted":1,"ack":"queued"}"#)
            );
        }
        expected.push(payload);
    }
    for server in [&plain, &tls] {
        let all = lengths.len() as u64;
        server.wait("all are stored", |now| now.sum("millrace_payloads_stored_total") == all);
        assert_eq!(server.stored_texts(), sorted(&expected));
        assert_eq!(server.metrics().sum("millrace_h2_connections"), 1);
    }
    drop((over_plain, over_tls));
    for server in [&plain, &tls] {
        server.wait_idle();
        let now = server.metrics();
        assert_eq!(now.sum("millrace_h2_connections"), 0);
        assert_eq!(now.sum_where("millrace_h2_closed_total", ""), 0, "{}", now.0);
    }
}

#[test]
fn a_hundred_requests_go_on_at_once() {
    let server = start(&[]);
    let mut client = H2Client::connect(server.ingest);
    let payloads = numbered(0..100);
    let bodies: Vec<_> = payloads.iter().map(|payload| collection(&[payload])).collect();
    let streams: Vec<_> = bodies.iter().map(|_| client.head(&post(&[]), false)).collect();
    // Beyond the limit a stream is refused, and can be sent again.
    let refused = client.begin_post(&bodies[0], &[]);
    assert_eq!(client.end_of(refused), StreamEnd::Reset(REFUSED_STREAM));
    wait_for("all of them are there", || server.metrics().sum("millrace_h2_requests") == 100);
    for (stream, body) in streams.iter().zip(&bodies) {
        client.data(*stream, &body.as_bytes()[..5], false);
    }
    for (stream, body) in streams.iter().zip(&bodies).rev() {
        client.data(*stream, &body.as_bytes()[5..], true);
    }
    for stream in streams {
        assert_eq!(client.answer(stream).status, 200);
    }
    drop(client);
    server.wait_idle();
    assert_eq!(server.stored_texts(), sorted(&payloads));
    let now = server.metrics();
    assert_eq!((now.requests(200), now.sum("millrace_h2_requests")), (100, 0));
    assert_eq!(now.sum("millrace_connections_accepted_total"), 1);
}

#[test]
fn answers_are_those_of_http_1() {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    std::fs::write(dir.path().join("tokens"), "secret;name=me\nslow;name=slow;rate=1/h\n").unwrap();
    let settings = [
        ("H2", "all"),
        ("TOKENS_FILE", "tokens"),
        ("TOKEN_IN_QUERY", "on"),
        ("INGEST_HEALTH", "on"),
        ("CORS_ORIGINS", "https://example.com"),
        ("MAX_LENGTH", "64KiB"),
        ("MAX_BODY_BYTES", "1MiB"),
        ("MAX_QUEUE", "100"),
    ];
    let server = Server::start_in(dir, &settings);
    let good = br#"{"data":[1,2]}"#.to_vec();
    let token = ("authorization", "Bearer secret");
    let long = format!(r#"{{"data":["{}"]}}"#, "x".repeat(70_000)).into_bytes();
    let many = format!(r#"{{"data":[{}1]}}"#, "1,".repeat(200)).into_bytes();
    type Case<'a> = (&'a str, Vec<(&'a str, &'a str)>, Vec<u8>);
    let cases: Vec<Case<'_>> = vec![
        ("a collection", vec![token], good.clone()),
        ("a token in the envelope", vec![], br#"{"token":"secret","data":[1]}"#.to_vec()),
        ("a token in the query", vec![(":path", "/payloads?token=secret")], good.clone()),
        ("no token", vec![], good.clone()),
        ("a wrong token", vec![("x-api-key", "wrong")], good.clone()),
        ("an unknown path", vec![(":path", "/nope"), token], good.clone()),
        ("another method", vec![(":method", "PUT"), token], good.clone()),
        ("no JSON", vec![token], b"nonsense".to_vec()),
        ("an empty body", vec![token], Vec::new()),
        ("lines", vec![token, ("content-type", "application/x-ndjson")], b"1\n2\n3\n".to_vec()),
        ("compressed", vec![token, ("content-encoding", "gzip")], gzip(&good)),
        ("an unknown coding", vec![token, ("content-encoding", "br")], good.clone()),
        ("a broken coding", vec![token, ("content-encoding", "gzip")], good.clone()),
        ("stored", vec![token, ("millrace-ack", "stored")], good.clone()),
        ("an unknown level", vec![token, ("millrace-ack", "never")], good.clone()),
        ("no spool", vec![token, ("millrace-ack", "spooled")], good.clone()),
        ("too long", vec![token], long),
        ("too many payloads", vec![token], many),
        ("a quota", vec![("x-api-key", "slow")], good.clone()),
        ("a health check", vec![(":method", "GET"), (":path", "/healthz")], Vec::new()),
        ("a check without a body", vec![(":method", "HEAD"), (":path", "/healthz")], Vec::new()),
        (
            "a preflight",
            vec![
                (":method", "OPTIONS"),
                ("origin", "https://example.com"),
                ("access-control-request-method", "POST"),
            ],
            Vec::new(),
        ),
    ];
    let mut client = H2Client::connect(server.ingest);
    // The one request of that quota.
    let first = client.begin_post(&good, &[("x-api-key", "slow")]);
    assert_eq!(client.answer(first).status, 200);
    let mut different = Vec::new();
    for (name, fields, body) in cases {
        let value = |wanted: &str, or| {
            fields.iter().find(|(name, _)| *name == wanted).map_or(or, |(_, value)| *value)
        };
        let mut head = format!(
            "{} {} HTTP/1.1\r\nhost: x\r\n",
            value(":method", "POST"),
            value(":path", "/payloads")
        );
        for (name, value) in fields.iter().filter(|(name, _)| !name.starts_with(':')) {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str(&format!("content-length: {}\r\n\r\n", body.len()));
        let mut old = server.connect();
        old.send([head.as_bytes(), &body].concat());
        // With and without its length in the head.
        let (one, others) = match name {
            "a preflight" | "a check without a body" => {
                let two = client.head(&post(&fields), true);
                (old.bodiless_reply(), vec![client.answer(two)])
            }
            _ => {
                let length = body.len().to_string();
                let with_length = [&fields[..], &[("content-length", length.as_str())]].concat();
                let two = client.begin_post(&body, &fields);
                let three = client.begin_post(&body, &with_length);
                (old.reply(), vec![client.answer(two), client.answer(three)])
            }
        };
        // When a quota has room again changes with every request.
        let told = |text: &str| text.split("send it again in").next().unwrap().to_owned();
        let expected = (one.status, told(&one.body));
        for other in others {
            if (other.status, told(&other.body)) != expected {
                different.push(format!("{name}: {other:?} instead of {} {}", one.status, one.body));
            }
        }
    }
    assert!(different.is_empty(), "{different:#?}");
    drop(client);
    server.wait_idle();
    let now = server.metrics();
    assert_eq!(now.sum_where("millrace_h2_closed_total", ""), 0, "all on one connection");
}

#[test]
fn the_authority_is_the_host() {
    let server = start(&[]);
    let mut client = H2Client::connect(server.ingest);
    let with = |client: &mut H2Client, fields: &[(&str, &str)]| {
        let mut head = post(&[]);
        head.retain(|(name, _)| *name != ":authority");
        let at = head.len();
        head.extend_from_slice(fields);
        head[at..].sort_by_key(|(name, _)| !name.starts_with(':'));
        let stream = client.head(&head, false);
        client.data(stream, br#"{"data":[1]}"#, true);
        client.end_of(stream)
    };
    for (fields, wanted) in [
        (&[(":authority", "a.test")][..], Ok(())),
        (&[(":authority", "a.test:8080")], Ok(())),
        (&[(":authority", "[::1]:1")], Ok(())),
        (&[("host", "a.test")], Ok(())),
        (&[(":authority", "a.test"), ("host", "A.test")], Ok(())),
        (&[], Err("neither :authority nor a host")),
        (&[(":authority", "a.test"), ("host", "b.test")], Err("differs from :authority")),
        (&[("host", "a.test"), ("host", "a.test")], Err("more than one host")),
        (&[(":authority", "me@a.test")], Err("not a host")),
        (&[("host", "a test")], Err("not a host")),
        (&[("host", "")], Err("not a host")),
    ] {
        match (with(&mut client, fields), wanted) {
            (StreamEnd::Answered(H2Answer { status: 200, .. }), Ok(())) => {}
            (StreamEnd::Answered(H2Answer { status: 400, body }), Err(why))
                if body.contains(why) => {}
            (end, wanted) => panic!("{fields:?}: {end:?} instead of {wanted:?}"),
        }
    }
}

/// As a client sends that writes each line by itself, or each byte. The library bounds how many such
/// frames wait for their reader by the window of the connection, which little memory makes small.
#[test]
fn a_body_in_many_small_frames_is_a_body() {
    const LEAST: [(&str, &str); 2] = [("MAX_LENGTH", "64KiB"), ("MAX_BODY_BYTES", "1MiB")];
    for (settings, frame_bytes) in [(&[][..], 1), (&LEAST, 1), (&LEAST, 20), (&LEAST, 200)] {
        let server = start(&[&[("STORE", "null:"), ("CORES", "0")], settings].concat());
        let mut client = H2Client::connect(server.ingest);
        let body = [br#"{"data":[1]}"#, &[b' '; 10_000][..]].concat();
        let streams = [0; 3].map(|_| client.head(&post(&[]), false));
        // All streams by turns, and all of it at once.
        let mut bytes = Vec::new();
        for piece in body.chunks(frame_bytes) {
            streams.iter().for_each(|stream| bytes.extend(frame(DATA, 0, *stream, piece)));
        }
        streams.iter().for_each(|stream| bytes.extend(frame(DATA, END_STREAM, *stream, b"")));
        client.send(bytes);
        for stream in streams {
            let end = client.end_of(stream);
            let is_accepted = matches!(&end, StreamEnd::Answered(answer) if answer.status == 200);
            assert!(is_accepted, "{settings:?}, {frame_bytes}: {end:?}");
        }
    }
}

#[test]
fn each_stream_of_a_proxy_is_its_own_clients() {
    let server = start(&[("TRUST", "127.0.0.0/8"), ("META", "client")]);
    let mut client = H2Client::connect(server.ingest);
    let of = ["192.0.2.1", "192.0.2.2", "192.0.2.3"];
    // All of them begin before any ends.
    let streams = of.map(|address| client.head(&post(&[("x-forwarded-for", address)]), false));
    for (number, stream) in streams.into_iter().enumerate().rev() {
        client.data(stream, collection(&[number.to_string()]).as_bytes(), true);
    }
    for stream in streams {
        assert_eq!(client.answer(stream).status, 200);
    }
    drop(client);
    server.wait_idle();
    let whole =
        |(number, address)| format!(r#"{{"meta":{{"client":"{address}"}},"payload":{number}}}"#);
    let expected: Vec<_> = of.into_iter().enumerate().map(whole).collect();
    assert_eq!(server.stored_texts(), sorted(&expected));
    for address in of {
        let peer = server.peer("", address).unwrap_or_else(|| panic!("{address} is not listed"));
        assert_eq!(peer["requests"], 1, "{peer}");
    }
}

/// What is learnt of the bodies of a proxy's clients is kept by client, whatever comes in between.
#[test]
fn bodies_without_a_length_are_charged_as_their_client_has_sent_them_before() {
    let server = start(&[
        ("TRUST", "127.0.0.0/8"),
        ("CLIENT_RATE", "10000/min"),
        ("CLIENT_BYTES", "160KiB/h"),
        ("CLIENT_BURST", "10000,160KiB"),
        ("STORE", "null:"),
        ("CORES", "0"),
    ]);
    let mut client = H2Client::connect(server.ingest);
    let body = [vec![b' '; 8_000], br#"{"data":[1]}"#.to_vec()].concat();
    for _ in 0..8 {
        for (address, body) in [("192.0.2.1", &body[..]), ("192.0.2.2", &body[8_000..])] {
            let stream = client.begin_post(body, &[("x-forwarded-for", address)]);
            assert_eq!(client.answer(stream).status, 200);
        }
    }
    // 96 KiB are left, and a body is expected to have 5 KiB; the other's are short.
    let mut begin = |address| -> Vec<u32> {
        (0..40).map(|_| client.head(&post(&[("x-forwarded-for", address)]), false)).collect()
    };
    begin("192.0.2.2");
    begin("192.0.2.1");
    wait_for("all have begun", || {
        let now = server.metrics();
        now.sum("millrace_h2_requests") + now.requests(429) == 80
    });
    wait_for("some are refused", || server.metrics().requests(429) >= 15);
    // Longer than a request waits for its quota.
    std::thread::sleep(std::time::Duration::from_millis(500));
    let refused = server.metrics().requests(429);
    assert!((15..30).contains(&refused), "{refused}");
}

/// Beyond the burst of a client that nobody knew before, requests wait until control has looked at its
/// bucket, which happens every 100 ms.
#[test]
fn a_request_that_waits_for_its_quota_holds_up_no_other_of_its_connection() {
    // Their frames are more than one look at the socket takes.
    const WAITING: usize = 150;
    let server = start(&[
        ("TRUST", "127.0.0.0/8"),
        ("CLIENT_RATE", "8/h"),
        ("CLIENT_BURST", "8"),
        ("H2_STREAMS", "200"),
        ("STORE", "null:"),
        ("CORES", "0"),
    ]);
    let mut client = H2Client::connect(server.ingest);
    let mut round = 0;
    for (pieces, with_length) in [(1, true), (1, false), (4, true), (4, false)] {
        let body = [br#"{"data":[1]}"#, &[b' '; 300][..]].concat();
        let length = body.len().to_string();
        // Nobody waits in a round in which control looks at that very moment.
        wait_for("an answer before those that wait", || {
            round += 1;
            let mut bytes = Vec::new();
            let mut begin = |address: &str| {
                let stream = client.new_stream();
                let mut fields = post(&[("x-forwarded-for", address)]);
                if with_length {
                    fields.push(("content-length", &length));
                }
                bytes.extend(frame(HEADERS, END_HEADERS, stream, &block(&fields)));
                for piece in body.chunks(body.len() / pieces) {
                    bytes.extend(frame(DATA, 0, stream, piece));
                }
                bytes.extend(frame(DATA, END_STREAM, stream, b""));
                stream
            };
            let [many, other] =
                [1, 2].map(|net| format!("10.{net}.{}.{}", round / 256, round % 256));
            let waiting: Vec<_> = (0..WAITING).map(|_| begin(&many)).collect();
            let other = begin(&other);
            client.send(bytes);
            assert_eq!(client.answer(other).status, 200);
            let overtaken = waiting.iter().filter(|stream| !client.has_ended(**stream)).count();
            for stream in waiting {
                assert!([200, 429].contains(&client.answer(stream).status));
            }
            overtaken > 0
        });
    }
    drop(client);
    server.wait_idle();
}

/// Each of the requests that wait has more of a body than one look takes, so that what is not read of
/// one of them would keep the next one from beginning to wait.
#[test]
fn a_body_is_not_late_because_others_of_its_connection_wait_for_quotas() {
    const WAITING: usize = 14;
    let server = start(&[
        ("TRUST", "127.0.0.0/8"),
        ("CLIENT_RATE", "1/h"),
        ("CLIENT_BURST", "1"),
        ("BODY_TIMEOUT", "1s"),
        ("STORE", "null:"),
        ("CORES", "0"),
    ]);
    let mut client = H2Client::connect(server.ingest);
    fn of(address: &str) -> [(&str, &str); 1] {
        [("x-forwarded-for", address)]
    }
    let body = client.head(&post(&of("192.0.2.1")), false);
    client.data(body, br#"{"data":["#, false);
    let long = [br#"{"data":[1]}"#, &[b' '; 60_000][..]].concat();
    let waiting: Vec<_> = (0..WAITING)
        .map(|number| {
            let address = format!("10.0.0.{number}");
            let first = client.begin_post(br#"{"data":[1]}"#, &of(&address));
            (first, client.begin_post(&long, &of(&address)))
        })
        .collect();
    client.data(body, b"1]}", true);
    let answer = client.answer(body);
    assert_eq!(answer.status, 200, "{}", answer.body);
    for (first, second) in waiting {
        assert_eq!((client.answer(first).status, client.answer(second).status), (200, 429));
    }
    drop(client);
    server.wait_idle();
}

#[test]
fn who_finds_all_connections_taken_gets_http_1() {
    let (server, authority) = start_tls(&[("H2", "all"), ("H2_CONNECTIONS", "1"), ("CORES", "0")]);
    let connect = || {
        let mut options = authority.trust();
        options.protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        TlsClient::connect(server.ingest, &options.config())
    };
    let mut first = H2Client::over(connect().stream, &[]);
    assert_eq!(first.post(r#"{"data":[1]}"#).status, 200);
    let mut second = connect();
    assert_eq!(second.stream.conn.alpn_protocol(), Some(&b"http/1.1"[..]));
    assert_eq!(second.post(r#"{"data":[1]}"#).status, 200);
    assert_eq!(server.metrics().sum("millrace_h2_not_offered_total"), 1);
    // One that speaks nothing else is told so.
    let mut only = authority.trust();
    only.protocols = vec![b"h2".to_vec()];
    assert!(TlsClient::try_connect(server.ingest, &only.config(), HOST).is_err());
    server.wait_logged("h2 unless H2=off or H2_CONNECTIONS are open");
    assert_eq!(server.metrics().sum("millrace_h2_not_offered_total"), 2);
    drop(first);
    server.wait("it is closed", |now| now.sum("millrace_h2_connections") == 0);
    assert_eq!(connect().stream.conn.alpn_protocol(), Some(&b"h2"[..]));

    let server = start(&[("H2_CONNECTIONS", "1"), ("CORES", "0")]);
    let mut first = H2Client::connect(server.ingest);
    assert_eq!(first.post(r#"{"data":[1]}"#).status, 200);
    let mut second = H2Client::connect(server.ingest);
    assert_eq!(second.end(), Some(NO_ERROR), "it may come again");
    assert_eq!(server.metrics().sum_where("millrace_h2_closed_total", "reason=\"full\""), 1);
    server.wait_logged("H2_CONNECTIONS");
    assert_eq!(first.post(r#"{"data":[1]}"#).status, 200);
}

#[test]
fn where_it_is_not_spoken_it_is_refused() {
    let server = Server::start(&[]);
    let mut client = H2Client::connect(server.ingest);
    assert_eq!(client.end(), None);
    assert_eq!(server.post(r#"{"data":[1]}"#).status, 200);
    let (server, authority) = start_tls(&[("H2", "off")]);
    let mut options = authority.trust();
    options.protocols = vec![b"h2".to_vec()];
    assert!(TlsClient::try_connect(server.ingest, &options.config(), HOST).is_err());
    // Where it is, HTTP/1.1 is still there; also to a client whose first bytes come one by one.
    let server = start(&[]);
    let mut client = server.connect();
    for byte in request(br#"{"data":[1]}"#, "") {
        client.send([byte]);
    }
    assert_eq!(client.reply().status, 200);
    let mut client = H2Client::silent(std::net::TcpStream::connect(server.ingest).unwrap());
    for byte in PREFACE {
        client.send([*byte]);
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    client.send(frame(SETTINGS, 0, 0, &settings(&[(1, 0)])));
    assert_eq!(client.post(r#"{"data":[1]}"#).status, 200);
    // However the preface is cut: it is spoken here, and there closed without an answer or refused.
    let without = Server::start(&[]);
    for cut in 1..PREFACE.len() {
        for server in [&server, &without] {
            let stream = std::net::TcpStream::connect(server.ingest).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            let mut client = H2Client::silent(stream);
            client.send(&PREFACE[..cut]);
            std::thread::sleep(std::time::Duration::from_millis(3));
            let settings = frame(SETTINGS, 0, 0, &settings(&[(1, 0)]));
            let _or_it_is_closed = client.try_send([&PREFACE[cut..], &settings].concat());
            if std::ptr::eq(server, &without) {
                let mut text = Vec::new();
                let read = std::io::Read::read_to_end(&mut client.stream, &mut text);
                let is_refused = cut > 1 && text.starts_with(b"HTTP/1.1 400");
                assert!(text.is_empty() || is_refused, "{cut}: {read:?} {text:?}");
            } else {
                assert_eq!(client.post(r#"{"data":[1]}"#).status, 200, "{cut}");
            }
        }
    }
}

#[test]
fn a_refused_body_that_is_still_sent_does_not_cost_the_answer() {
    let server = start(&[("MAX_LENGTH", "64KiB"), ("MAX_BODY_BYTES", "1MiB")]);
    let mut client = H2Client::connect(server.ingest);
    // More than the first window, of which the server reads nothing into memory.
    let stream = client.head(&post(&[("content-length", "500000")]), false);
    for _ in 0..500 {
        client.data(stream, &[b' '; 1_000], false);
    }
    client.data(stream, b"", true);
    let answer = client.answer(stream);
    assert_eq!(answer.status, 413, "{}", answer.body);
    // One that goes on for longer than that is reset in the end, without an error.
    let stream = client.head(&post(&[("content-length", "99000000")]), false);
    assert_eq!(client.answer(stream).status, 413);
    for _ in 0..200 {
        if !client.has_ended(stream) {
            client.data(stream, &[b' '; 16_000], false);
        }
    }
    assert_eq!(client.end_of(stream), StreamEnd::Reset(NO_ERROR));
    assert_eq!(client.post(r#"{"data":[1]}"#).status, 200);
    assert_eq!(server.metrics().sum("millrace_body_bytes"), 0);
}

#[test]
fn a_stop_finishes_what_is_in_progress() {
    let server = start(&[("DRAIN_TIMEOUT", "10s")]);
    let mut client = H2Client::connect(server.ingest);
    let mut idle = H2Client::connect(server.ingest);
    assert_eq!(idle.post(r#"{"data":[0]}"#).status, 200);
    let streams: Vec<_> = (0..10).map(|_| client.head(&post(&[]), false)).collect();
    wait_for("they are there", || server.metrics().sum("millrace_h2_requests") == 10);
    server.signal("TERM");
    let went_away = client.next_frame_of(GOAWAY);
    assert_eq!(went_away.reason(), 0);
    for (number, stream) in streams.iter().enumerate() {
        client.send(frame(DATA, END_STREAM, *stream, collection(&[number.to_string()]).as_bytes()));
        assert_eq!(client.answer(*stream).status, 200);
    }
    assert_eq!((client.end(), idle.end()), (Some(0), Some(0)));
    let stopped = server.wait_stopped();
    assert_eq!(stopped.stored().len(), 11);
}
