//! Goal: any client can post: collections, arrays, lines of JSON and single objects, on every path
//! that the operator names.
//!
//! Method: one request after another, each with a content type or none, plain and compressed; what
//! was taken must be stored byte for byte, and of what was refused nothing. Which bytes are taken is
//! for the unit tests; here every form goes its whole way.

use std::sync::Arc;

use crate::support::{Client, Reply, Server, request, sorted};

/// Posts `body` with a content type; empty: with none.
fn post(client: &mut Client, content_type: &str, body: impl AsRef<[u8]>) -> Reply {
    client.send(request(body.as_ref(), &header(content_type)));
    client.reply()
}

fn header(content_type: &str) -> String {
    match content_type {
        "" => String::new(),
        _ => format!("content-type: {content_type}\r\n"),
    }
}

const NDJSON: &str = "application/x-ndjson";

/// Content type, body, and the payloads; `None`: refused.
type Case = (&'static str, &'static str, Option<&'static [&'static str]>);

/// What means the same whatever `BODY` says.
const ALWAYS: &[Case] = &[
    ("", "[1,{\"a\":[2]}]", Some(&["1", "{\"a\":[2]}"])),
    ("", " \r\n[ \"x\" , null ]\n", Some(&["\"x\"", "null"])),
    ("", "[]", Some(&[])),
    ("application/json", "[7]", Some(&["7"])),
    ("application/json; charset=utf-8", "[8]", Some(&["8"])),
    // What curl -d sends, and other types that say nothing.
    ("application/x-www-form-urlencoded", "[9]", Some(&["9"])),
    ("text/plain", "[10]", Some(&["10"])),
    ("multipart/x", "[11]", Some(&["11"])),
    (
        NDJSON,
        "{\"a\":1}\n\n \r\n{\"a\":2}\r\n[3]\n\"four\"\n5",
        Some(&["{\"a\":1}", "{\"a\":2}", "[3]", "\"four\"", "5"]),
    ),
    ("application/jsonl", "{\"data\":[1]}\n", Some(&["{\"data\":[1]}"])),
    ("application/jsonlines", "true", Some(&["true"])),
    ("application/ndjson", "false\n", Some(&["false"])),
    ("Application/X-NDJSON ;a=b", " 12 \n", Some(&["12"])),
    (NDJSON, "", Some(&[])),
    (NDJSON, "\n\r\n", Some(&[])),
    (
        "application/cloudevents+json",
        "{\"id\":\"e\",\"data\":[1]}",
        Some(&["{\"id\":\"e\",\"data\":[1]}"]),
    ),
    ("application/cloudevents+json; charset=UTF-8", "\n{ }\n", Some(&["{ }"])),
    ("application/cloudevents-batch+json", "[{\"id\":\"f\"},{}]", Some(&["{\"id\":\"f\"}", "{}"])),
    ("application/cloudevents-batch+json", "[]", Some(&[])),
    ("application/cloudevents-batch+json", "{\"data\":[1]}", None),
    ("application/cloudevents+json", "[{}]", None),
    ("application/cloudevents+json", "1", None),
    ("application/cloudevents+json", "", None),
    (NDJSON, "{\"a\":1}\n{\"a\":\n2}\n", None),
    (NDJSON, "1\n2 3\n", None),
    (NDJSON, "{\"a\":1},\n{\"a\":2}\n", None),
    ("", "", None),
    ("", "1", None),
    ("", "\"a string\"", None),
    ("", "null", None),
    ("", "[1,2", None),
    ("", "[1]\n[2]", None),
    ("", "{\"a\":1}\n{\"a\":2}\n", None),
    ("", "a=b", None),
    // Types that differ in what they mean.
    ("application/json, application/x-ndjson", "{\"data\":[1]}", None),
    ("application/json\r\ncontent-type: application/x-ndjson", "{\"data\":[1]}", None),
];

#[test]
fn every_form_of_a_body_is_split_and_stored_as_received() {
    let event = "{\"version\":\"v\",\"token\":\"t\", \"data\":[1,\t2]}";
    for (kind, object) in [("collection", &["1", "2"][..]), ("object", &[event])] {
        let server = Server::start(&[("BODY", kind)]);
        let mut client = server.connect();
        let (mut expected, mut refused) = (Vec::new(), 0);
        let objects =
            ["", "application/json", "text/plain"].map(|kind| (kind, event, Some(object)));
        for (content_type, body, payloads) in ALWAYS.iter().copied().chain(objects) {
            let reply = post(&mut client, content_type, body);
            let shown = format!("{content_type} {body:?}: {reply:?}");
            match payloads {
                Some(payloads) => {
                    let answer = format!(r#"{{"accepted":{},"ack":"queued"}}"#, payloads.len());
                    assert_eq!((reply.status, &reply.body), (200, &answer), "{shown}");
                    expected.extend_from_slice(payloads);
                }
                None => {
                    assert_eq!(reply.status, 400, "{shown}");
                    refused += 1;
                }
            }
            // What the head alone decides is answered before the body is read.
            let is_ambiguous = reply.body.contains("several types");
            assert_eq!(reply.header("connection"), is_ambiguous.then_some("close"), "{shown}");
            if is_ambiguous {
                client = server.connect();
            }
        }
        drop(client);
        server.wait_idle();
        assert_eq!(server.stored_texts(), sorted(&expected), "{kind}");
        assert_eq!(server.metrics().requests(400), refused);
    }
}

#[test]
fn the_text_of_a_refusal_names_the_line_and_what_is_wanted() {
    let server = Server::start(&[]);
    let mut client = server.connect();
    for (content_type, body, says) in [
        (NDJSON, "1\r\n2\r\n\r\n{\"a\":}\r\n", "not JSON: expected value at line 4 column 6"),
        (
            NDJSON,
            "1\n{\n\"a\":2}",
            "EOF while parsing an object at line 2 column 1; wanted: a JSON value on each line",
        ),
        (NDJSON, "1\n2 3", "trailing characters at line 2 column 3"),
        (NDJSON, "1\n\x1e2", "expected value at line 2 column 1"),
        (NDJSON, "\u{feff}1\n", "byte order mark"),
        ("", "\u{feff}[1]", "byte order mark"),
        ("", "[1,\n2,]", "expected value at line 2 column 3"),
        (
            "",
            "7",
            "neither an object nor an array, at line 1 column 1; wanted: {\"data\":[...]} or [...], or lines of JSON as application/x-ndjson",
        ),
        (
            "",
            "{\"a\":1}\n{\"a\":2}",
            "line 2 column 1; if each line is a payload, send it as application/x-ndjson",
        ),
        (
            "application/cloudevents+json",
            "[]",
            "not an object, at line 1 column 1; wanted: {...}, as content-type says",
        ),
        (
            "text/plain, application/jsonl",
            "1",
            "content-type names several types that differ in what the body is: send one",
        ),
    ] {
        let reply = post(&mut client, content_type, body);
        assert_eq!(reply.status, 400, "{reply:?}");
        assert!(reply.error().contains(says), "{body:?}: {}", reply.error());
    }
    drop(client);
    assert_eq!(post(&mut server.connect(), NDJSON, "1\n2").status, 200);
    server.wait_idle();
    assert_eq!(server.stored_texts(), ["1", "2"]);
}

/// `count` payloads of some hundred bytes.
fn events(count: usize) -> Vec<String> {
    (0..count)
        .map(|n| format!(r#"{{"id":{n},"text":"é, \n {}","in":[]}}"#, "x".repeat(n % 300)))
        .collect()
}

#[test]
fn large_bodies_of_every_form_are_split_plain_and_compressed() {
    let server = Server::start(&[("STORE", "file:data"), ("MAX_QUEUE", "100000")]);
    let mut client = server.connect();
    let events = events(2_000);
    let array = format!("[{}]", events.join(",\n "));
    let (lines, cut) = (events.join("\r\n"), events.join("\n"));
    for (content_type, body) in [("", &array), (NDJSON, &lines), (NDJSON, &cut)] {
        assert!(body.len() > 200 << 10);
        let zstd = zstd::bulk::compress(body.as_bytes(), 1).unwrap();
        for (bytes, coding) in [(body.as_bytes(), ""), (&zstd, "content-encoding: zstd\r\n")] {
            let headers = format!("{coding}{}", header(content_type));
            client.send(request(bytes, &headers));
            assert_eq!(client.reply().body, r#"{"accepted":2000,"ack":"queued"}"#, "{headers}");
        }
    }
    // One bad line at the end refuses them all.
    let reply = post(&mut client, NDJSON, lines + "\n{\"id\":");
    assert_eq!(reply.status, 400);
    assert!(reply.error().contains("at line 2001 column 6"), "{}", reply.error());
    drop(client);
    server.wait_idle();
    let expected: Vec<String> =
        events.iter().flat_map(|e| std::iter::repeat_n(e.clone(), 6)).collect();
    assert_eq!(server.stored_texts(), sorted(&expected));
}

#[test]
fn limits_and_acks_hold_for_every_form() {
    let settings = [("MAX_QUEUE", "10"), ("MAX_LENGTH", "256KiB"), ("SPOOL_DIR", "spool")];
    let server = Server::start(&settings);
    let mut client = server.connect();
    for (ack, payload) in [("queued", "1"), ("spooled", "2"), ("stored", "3")] {
        let headers = format!("millrace-ack: {ack}\r\n");
        for (content_type, body) in [("", format!("[{payload}]")), (NDJSON, payload.to_owned())] {
            client.send(request(body.as_bytes(), &(headers.clone() + &header(content_type))));
            assert_eq!(client.reply().body, format!(r#"{{"accepted":1,"ack":"{ack}"}}"#));
        }
        client.send(request(b"[]", &headers));
        assert_eq!(client.reply().body, format!(r#"{{"accepted":0,"ack":"{ack}"}}"#));
    }
    for count in [11, 100_000] {
        let (array, lines) = (format!("[1{}]", ",1".repeat(count - 1)), "1\n".repeat(count));
        for (content_type, body) in [("", array), (NDJSON, lines)] {
            let reply = post(&mut client, content_type, body);
            assert_eq!(reply.status, 413, "{count} {content_type}: {reply:?}");
            assert!(reply.error().contains("MAX_QUEUE"), "{}", reply.error());
        }
    }
    drop(client);
    server.wait_idle();
    assert_eq!(server.stored_texts(), ["1", "1", "2", "2", "3", "3"]);
}

#[test]
fn only_a_collection_can_hold_a_token() {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    std::fs::write(dir.path().join("tokens"), "alpha\n").unwrap();
    let right = r#"{"token":"alpha","data":[]}"#;
    for (kind, in_body) in [("collection", "on"), ("collection", "off"), ("object", "on")] {
        let settings = [("TOKENS_FILE", "tokens"), ("BODY", kind), ("TOKEN_IN_BODY", in_body)];
        let server = Server::start_in(dir.clone(), &settings);
        let takes_tokens = (kind, in_body) == ("collection", "on");
        for (content_type, body, is_right) in [
            ("", right, true),
            ("application/json", right, true),
            ("", "[]", false),
            ("", r#"[{"token":"alpha"}]"#, false),
            (NDJSON, right, false),
            ("application/cloudevents+json", right, false),
            ("application/cloudevents-batch+json", "[]", false),
        ] {
            let shown = format!("{kind} {in_body} {content_type} {body}");
            let mut client = server.connect();
            let reply = post(&mut client, content_type, body);
            assert_eq!(reply.status, if is_right && takes_tokens { 200 } else { 401 }, "{shown}");
            if reply.status == 401 {
                assert_eq!(reply.header("www-authenticate"), Some("Bearer"), "{shown}");
                assert!(reply.error().contains("authorization: Bearer TOKEN"), "{}", reply.error());
            }
            // What the head alone decides comes before the body.
            let is_known = !takes_tokens || !matches!(content_type, "" | "application/json");
            let closes = reply.header("connection") == Some("close");
            assert_eq!(closes, is_known, "{shown}");
            for (token, status) in [("alpha", 200), ("wrong", 401)] {
                let headers = format!("x-api-key: {token}\r\n{}", header(content_type));
                let mut client = server.connect();
                client.send(request(body.as_bytes(), &headers));
                assert_eq!(client.reply().status, status, "{shown}");
            }
        }
        server.wait_idle();
    }
}

/// Its spans are found again in the body, which may begin and end with a payload.
#[test]
fn large_bodies_that_wait_for_room_are_stored_as_received() {
    let settings = [
        ("MAX_WORKERS", "1"),
        ("MAX_QUEUE", "3"),
        ("ENQUEUE_WAIT", "60s"),
        ("RETRY_BASE", "5ms"),
        ("RETRY_MAX", "50ms"),
    ];
    let long = |n: usize| format!(r#"{{"id":{n},"x":"{}"}}"#, "x".repeat(40_000));
    let three = [long(1), long(2), long(3)];
    let one = format!("{{\"id\":{}}}", long(4));
    let whole = format!("{{\"data\":[{}]}}", long(5).repeat(3).replace("}{", "},{"));
    for (content_type, body, payloads) in [
        (NDJSON, three.join("\n"), three.to_vec()),
        (NDJSON, format!(" \n{}\r\n", three.join("\n \r\n\n")), three.to_vec()),
        ("", format!("[{}]", three.join(",")), three.to_vec()),
        (
            "application/cloudevents+json",
            format!("{{\"a\":{one},\"b\":{one}}}"),
            vec![format!("{{\"a\":{one},\"b\":{one}}}")],
        ),
        (NDJSON, whole.clone(), vec![whole]),
    ] {
        let server = Server::start(&settings);
        server.break_store();
        let mut first = server.connect();
        assert_eq!(post(&mut first, "", "[0]").status, 200);
        server.wait("the worker has it", |m| m.sum("millrace_put_retries_total") > 0);
        assert_eq!(post(&mut first, "", "[0,0,0]").status, 200);
        let mut waiting = server.connect();
        waiting.send(request(body.as_bytes(), &header(content_type)));
        server.wait("it waits", |metrics| metrics.sum("millrace_room_waiters") == 1);
        server.mend_store();
        assert_eq!(waiting.reply().status, 200);
        drop((first, waiting));
        server.wait_idle();
        let zeros = vec!["0".to_owned(); 4];
        assert_eq!(server.stored_texts(), sorted(&[zeros, payloads].concat()), "{content_type}");
    }
}

#[test]
fn every_path_that_is_named_takes_payloads_and_no_other_does() {
    let server = Server::start(&[("PATHS", "/v1/events, /in/,/")]);
    assert!(server.logged("/v1/events"), "the start names the first");
    let mut client = server.connect();
    let mut send = |method: &str, target: &str| {
        client
            .send(format!("{method} {target} HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\n\r\n[1]"));
        let reply = client.reply();
        // A body that nobody reads ends the connection.
        if reply.header("connection") == Some("close") {
            client = server.connect();
        }
        reply
    };
    for target in ["/v1/events", "/in/", "/", "/v1/events?a=/b", "/?", "http://x/in/", "http://x"] {
        assert_eq!(send("POST", target).status, 200, "{target}");
        for method in ["GET", "PUT", "OPTIONS", "DELETE"] {
            let reply = send(method, target);
            assert_eq!((reply.status, reply.header("allow")), (405, Some("POST")), "{target}");
        }
    }
    for target in [
        "/payloads",
        "/in",
        "/v1/events/",
        "/v1/Events",
        "//",
        "/v1//events",
        "/%76%31/events",
        "/healthz",
    ] {
        for method in ["POST", "GET"] {
            let reply = send(method, target);
            assert_eq!(reply.status, 404, "{target}");
            assert_eq!(reply.error(), "no such path; POST /v1/events");
        }
    }
    drop(client);
    server.wait_idle();
    assert_eq!(server.stored().len(), 7);
}
