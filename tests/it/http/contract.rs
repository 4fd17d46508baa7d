//! Goal: every row of the contract table, as a client sees it: status, headers, body, and what is
//! stored.
//!
//! Method: one request after another against a server with small limits; what was refused must have
//! left no payload, what was taken must be stored byte for byte.

use std::time::{Duration, Instant};

use crate::support::{Client, Reply, Server, chunked_request, request};

/// An error reply is JSON with one member, and says something.
fn assert_error(reply: &Reply, status: u16, says: &str) {
    assert_eq!(reply.status, status, "{reply:?}");
    assert_eq!(reply.header("content-type"), Some("application/json"), "{reply:?}");
    let text = reply.error();
    assert!(text.contains(says), "{text:?} does not say {says:?}");
}

#[test]
fn accepted_collections_are_counted_and_acknowledged() {
    let server = Server::start(&[]);
    let mut client = server.connect();
    for (body, accepted) in [
        (r#"{"version":"1","token":"t","data":[1,2,3]}"#, 3),
        (r#"{"data":[null]}"#, 1),
        (r#"{"version":"","data":[{}],"token":""}"#, 1),
        (r#"{"data":[]}"#, 0),
        ("\r\n\t {\"data\" : [ ] , \"x\":[1,{\"data\":[2]}]} \n", 0),
        (r#"{"unknown":{"data":[9]},"data":["a","b"],"Data":[9]}"#, 2),
        (r#"{"d\u0061ta":[true]}"#, 1),
    ] {
        let reply = client.post(body);
        assert_eq!(reply.status, 200, "{body}: {reply:?}");
        assert_eq!(reply.header("content-type"), Some("application/json"));
        assert_eq!(reply.header("connection"), None, "kept alive");
        assert_eq!(reply.body, format!(r#"{{"accepted":{accepted},"ack":"queued"}}"#), "{body}");
    }
    drop(client);
    server.wait_idle();
    let stored = server.stored_texts();
    assert_eq!(stored, ["\"a\"", "\"b\"", "1", "2", "3", "null", "true", "{}"]);
    let metrics = server.metrics();
    assert_eq!(metrics.requests(200), 7);
    assert_eq!(metrics.sum("millrace_payloads_accepted_total"), 8);
    assert_eq!(metrics.sum("millrace_bytes_accepted_total"), 3 + 4 + 2 + 6 + 4);
}

#[test]
fn any_content_type_is_taken() {
    let server = Server::start(&[]);
    let mut client = server.connect();
    for header in ["", "application/json", "text/plain; charset=latin1", "", "multipart/x", "??"] {
        let header = format!("content-type: {header}\r\n");
        client.send(request(br#"{"data":[1]}"#, &header));
        assert_eq!(client.reply().status, 200, "{header}");
    }
    client.send(request(br#"{"data":[1]}"#, ""));
    assert_eq!(client.reply().status, 200);
    drop(client);
    server.wait_idle();
    assert_eq!(server.stored().len(), 7);
}

#[test]
fn payloads_are_stored_exactly_as_received() {
    let payloads = [
        "{ \"b\" : 1.0 ,\r\n\t\"a\":[ 1 , 2 ] , \"b\":2 }",
        "123456789012345678901234567890123456789012345678901234567890",
        "-0",
        "1.10",
        "1E+400",
        "0.1000000000000000055511151231257827021181583404541015625",
        r#""\u0041\/\n\ud83d\ude00""#,
        r#""\ud800""#,
        "\"snow ☃ and 😀 \u{7f} é\"",
        r#"{"data":[1,2],"version":3,"token":null}"#,
        r#""]},{[""#,
        "[ ]",
        "{ }",
        "[[[[[\"deep\"]]]]]",
        "\"\"",
        "true",
    ];
    let server = Server::start(&[]);
    let body = format!("{{\"data\" :[\n {} \t]}}", payloads.join(" \r\n,\t "));
    let reply = server.post(&body);
    assert_eq!(reply.body, format!(r#"{{"accepted":{},"ack":"queued"}}"#, payloads.len()));
    server.wait_idle();
    let mut expected = payloads.map(str::to_owned).to_vec();
    expected.sort();
    assert_eq!(server.stored_texts(), expected);
}

#[test]
fn bad_bodies_get_400_saying_what_and_where() {
    let server = Server::start(&[]);
    let mut client = server.connect();
    let deep = format!(r#"{{"data":[{}1{}]}}"#, "[".repeat(126), "]".repeat(126));
    let mut not_utf8 = br#"{"data":["x"]}"#.to_vec();
    not_utf8[10] = 0xff;
    let cases: &[(&[u8], &str)] = &[
        (b"", "the body is empty; wanted: {\"data\":[...]} or [...]"),
        (b" \r\n", "line 2"),
        (b"{", "line 1 column 1"),
        (b"------WebKitFormBoundaryA\r\n", "a multipart form, not JSON; send {\"data\":[...]}"),
        (b"-1", "neither an object nor an array"),
        (b"- -", "neither an object nor an array"),
        (b"data=1&x=y", "not JSON"),
        (b"{\"data\":[1,]}", "column 12"),
        (b"{\"data\":[1]", "EOF"),
        (b"{\"data\":[1]}x", "trailing"),
        (b"{\"data\":[1]}{\"data\":[1]}", "trailing"),
        (b"{'data':[1]}", "not JSON"),
        (b"{\"data\":[01]}", "not JSON"),
        (b"{\"data\":[NaN]}", "not JSON"),
        (b"{\"data\":[\"\x01\"]}", "not JSON"),
        (b"{\"data\":[1]}\0", "trailing"),
        (b"\xef\xbb\xbf{\"data\":[1]}", "byte order mark"),
        (&not_utf8, "not UTF-8 at line 1 column 11"),
        (deep.as_bytes(), "127 levels"),
        (
            b"\"data\"",
            "neither an object nor an array, at line 1 column 1; wanted: {\"data\":[...]}",
        ),
        (b"{}", "\"data\" is missing"),
        (b"{\"version\":\"1\",\"token\":\"t\"}", "\"data\" is missing"),
        (b"{\"data\":{}}", "\"data\" is not an array, at line 1 column 9"),
        (b"{\"data\":null}", "\"data\" is not an array"),
        (b"{\"data\":[1],\"version\":1}", "\"version\" is not a string"),
        (b"{\"data\":[1],\n\"token\":7}", "\"token\" is not a string, at line 2 column 9"),
        (b"{\"token\":\"\\ud800\",\"data\":[1]}", "surrogate"),
        (b"{\"data\":[1],\"data\":[2]}", "second \"data\" at line 1 column 13"),
        (b"{\"data\":[1],\"d\\u0061ta\":[2]}", "second \"data\""),
        (b"{\"version\":\"1\",\"data\":[1],\"version\":\"1\"}", "second \"version\""),
        (b"{\"token\":\"1\",\"token\":\"1\",\"data\":[1]}", "second \"token\""),
    ];
    for (body, says) in cases {
        let reply = client.post(body);
        assert_error(&reply, 400, says);
        assert_eq!(reply.header("connection"), None, "the body was read whole: kept alive");
    }
    assert_eq!(client.post(r#"{"data":[7]}"#).status, 200, "the connection still works");
    drop(client);
    server.wait_idle();
    assert_eq!(server.stored_texts(), ["7"], "nothing of a refused request is admitted");
    assert_eq!(server.metrics().requests(400), cases.len() as u64);
}

#[test]
fn other_methods_get_405_and_other_paths_404() {
    let server = Server::start(&[]);
    let mut client = server.connect();
    for method in ["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW", "post"] {
        client.send(format!("{method} /payloads HTTP/1.1\r\nhost: x\r\n\r\n"));
        let reply = client.reply();
        assert_error(&reply, 405, "POST");
        assert_eq!(reply.header("allow"), Some("POST"));
        assert_eq!(reply.header("connection"), None, "{method} has no body: kept alive");
    }
    client.send("HEAD /payloads HTTP/1.1\r\nhost: x\r\n\r\n");
    let reply = client.bodiless_reply();
    assert_eq!((reply.status, reply.header("allow")), (405, Some("POST")));
    let mut others = 0;
    for path in ["/", "/payload", "/payloads/", "/payloads/x", "/Payloads", "//payloads", "*"] {
        for method in ["GET", "POST", "HEAD"] {
            client.send(format!("{method} {path} HTTP/1.1\r\nhost: x\r\n\r\n"));
            if method == "HEAD" {
                assert_eq!(client.bodiless_reply().status, 404);
            } else {
                assert_error(&client.reply(), 404, "/payloads");
            }
            others += 1;
        }
    }
    // The path is what counts: a query and the proxy form of the URI name the same one.
    for target in ["/payloads?debug=1", "http://example.org/payloads"] {
        client.send(format!(
            "POST {target} HTTP/1.1\r\nhost: x\r\ncontent-length: 12\r\n\r\n{{\"data\":[1]}}"
        ));
        assert_eq!(client.reply().status, 200, "{target}");
    }
    drop(client);
    // A body nobody reads cannot be told from the next request, so the connection ends.
    let mut client = server.connect();
    client.send("PUT /payloads HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\n\r\nabc");
    assert_error(&client.last_reply(), 405, "POST");
    drop(client);
    let mut client = server.connect();
    client.send("POST /x HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n");
    assert_error(&client.last_reply(), 404, "/payloads");
    drop(client);
    server.wait_idle();
    assert_eq!(server.stored().len(), 2);
    let metrics = server.metrics();
    assert_eq!((metrics.requests(405), metrics.requests(404)), (10, others + 1));
}

#[test]
fn what_http_refuses_is_answered_closed_and_counted() {
    let server = Server::start(&[]);
    let long = "x".repeat(17 << 10);
    let cases: [(String, u16); 10] = [
        ("GARBAGE\r\n\r\n".to_owned(), 400),
        ("POST /payloads\r\n\r\n".to_owned(), 400),
        ("POST /payloads HTTP/3.7\r\nhost: x\r\n\r\n".to_owned(), 400),
        ("POST /payloads HTTP/1.1\r\nno colon\r\n\r\n".to_owned(), 400),
        ("POST /payloads HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n".to_owned(), 400),
        (
            "POST /payloads HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n"
                .to_owned(),
            400,
        ),
        ("POST /payloads HTTP/1.1\r\nhost: x\r\ntransfer-encoding: gzip\r\n\r\n".to_owned(), 400),
        ("\u{16}\u{3}\u{1}\u{2}\0\u{1}\0\u{1}\u{fc}\u{3}\u{3}".to_owned(), 400),
        (format!("POST /payloads HTTP/1.1\r\nhost: x\r\nlong: {long}\r\n\r\n"), 431),
        // Longer than any head may be, and hyper looks at that first: 414 is for URIs that fit.
        (format!("POST /{long} HTTP/1.1\r\nhost: x\r\n\r\n"), 431),
    ];
    for (head, status) in &cases {
        let mut client = server.connect();
        client.send(head);
        let reply = client.last_reply();
        assert_eq!(reply.status, *status, "{head:.60}");
    }
    server.wait_idle();
    let metrics = server.metrics();
    assert_eq!(metrics.requests(400), 8);
    assert_eq!(metrics.sum_where("millrace_requests_total", "status=\"431\""), 2);
}

#[test]
fn an_announced_length_over_the_limit_is_refused_before_a_byte_of_it() {
    let server = Server::start(&[("MAX_LENGTH", "64KiB"), ("MAX_QUEUE_BYTES", "1MiB")]);
    for length in ["65537", "1048576", "99999999999", "9223372036854775807"] {
        let mut client = server.connect();
        client.send(format!(
            "POST /payloads HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n"
        ));
        assert_error(&client.last_reply(), 413, "MAX_LENGTH (65536 bytes)");
    }
    // The largest body that is allowed, to the byte.
    let pad = " ".repeat(65536 - r#"{"data":[1]}"#.len());
    assert_eq!(server.post(format!(r#"{{"data":[1]{pad}}}"#)).status, 200);
    let reply = server.post(format!(r#"{{"data":[1]{pad} }}"#));
    assert_error(&reply, 413, "MAX_LENGTH");
    server.wait_idle();
    assert_eq!(server.stored_texts(), ["1"]);
    assert_eq!(server.metrics().requests(413), 5);
}

#[test]
fn a_chunked_body_over_the_limit_is_refused_as_it_is_counted() {
    let server = Server::start(&[("MAX_LENGTH", "64KiB"), ("MAX_QUEUE_BYTES", "1MiB")]);
    let piece = [b' '; 10_000];
    let chunk = [b"2710\r\n", &piece[..], b"\r\n"].concat();
    let mut client = server.connect();
    client.send("POST /payloads HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n");
    for _ in 0..7 {
        client.send(&chunk);
    }
    // The seventh chunk brings 70,000 bytes; the body has not ended and never will.
    assert_error(&client.last_reply(), 413, "MAX_LENGTH (65536 bytes)");
    drop(client);
    // A chunk is also refused by the size it announces, as soon as the bytes over the limit come.
    let mut client = server.connect();
    client.send(
        "POST /payloads HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nffffffff\r\n",
    );
    client.send(" ".repeat(65_537));
    assert_error(&client.last_reply(), 413, "MAX_LENGTH");
    drop(client);
    // Exactly the limit is taken.
    let pad = vec![b' '; 65536 - r#"{"data":[1]}"#.len()];
    let mut client = server.connect();
    client.send(chunked_request(&[br#"{"data":"#, &pad, b"[1", b"]}"], ""));
    assert_eq!(client.reply().status, 200);
    drop(client);
    server.wait_idle();
    assert_eq!(server.stored_texts(), ["1"]);
}

#[test]
fn what_no_empty_ring_could_hold_is_413_naming_the_limit() {
    let settings = [("MAX_QUEUE", "4"), ("MAX_QUEUE_BYTES", "64KiB"), ("MAX_LENGTH", "64KiB")];
    let server = Server::start(&settings);
    let mut client = server.connect();
    assert_error(&client.post(r#"{"data":[1,2,3,4,5]}"#), 413, "MAX_QUEUE (4)");
    assert_eq!(client.post(r#"{"data":[1,2,3,4]}"#).status, 200, "kept alive, and exactly full");
    // The body fits MAX_LENGTH but not with the fixed cost of a second payload.
    let pad = " ".repeat(65536 - r#"{"data":[1,2]}"#.len());
    let reply = client.post(format!(r#"{{"data":[1,2]{pad}}}"#));
    assert_error(&reply, 413, "MAX_QUEUE_BYTES");
    server.wait("an empty ring", |m| m.sum("millrace_queue_bytes") == 0);
    // One payload always fits, also in the smallest MAX_QUEUE_BYTES there may be.
    assert_eq!(client.post(format!(r#"{{"data":["5"]{pad}}}"#)).status, 200);
    server.wait("an empty ring", |m| m.sum("millrace_queue_bytes") == 0);
    assert_eq!(client.post(r#"{"data":[9]}"#).status, 200);
    drop(client);
    server.wait_idle();
    assert_eq!(server.stored_texts(), ["\"5\"", "1", "2", "3", "4", "9"]);
}

#[test]
fn a_full_ring_is_503_with_retry_after_and_admits_nothing() {
    let settings =
        [("MAX_WORKERS", "1"), ("MAX_QUEUE", "4"), ("RETRY_BASE", "5ms"), ("RETRY_MAX", "50ms")];
    let server = Server::start(&settings);
    server.break_store();
    let mut client = server.connect();
    assert_eq!(client.post(r#"{"data":["first"]}"#).status, 200);
    server.wait("the worker has it", |m| m.sum("millrace_put_retries_total") > 0);
    assert_eq!(client.post(r#"{"data":[1,2,3]}"#).status, 200);
    let reply = client.post(r#"{"data":["no","none"]}"#);
    assert_error(&reply, 503, "full");
    let seconds: u64 = reply.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=60).contains(&seconds), "{seconds}");
    assert_eq!(reply.header("connection"), None, "the body was read: kept alive");
    assert_eq!(client.post(r#"{"data":[4]}"#).status, 200, "one slot is left for who needs one");
    server.mend_store();
    drop(client);
    server.wait_idle();
    assert_eq!(server.stored_texts(), ["\"first\"", "1", "2", "3", "4"]);
    assert_eq!(server.metrics().requests(503), 1);
}

#[test]
fn a_request_may_wait_for_room() {
    let settings = [
        ("MAX_WORKERS", "1"),
        ("MAX_QUEUE", "1"),
        ("ENQUEUE_WAIT", "15s"),
        ("FAULTS", "delay=300ms"),
    ];
    let server = Server::start(&settings);
    let clients: Vec<Client> = (0..4)
        .map(|n| {
            let mut client = server.connect();
            client.send(request(format!(r#"{{"data":[{n}]}}"#).as_bytes(), ""));
            client
        })
        .collect();
    for mut client in clients {
        assert_eq!(client.reply().status, 200);
    }
    server.wait_idle();
    assert_eq!(server.stored_texts(), ["0", "1", "2", "3"]);
}

#[test]
fn while_draining_answers_say_close() {
    let settings = [("FAULTS", "delay=700ms"), ("DRAIN_TIMEOUT", "8s")];
    let server = Server::start(&settings);
    let mut open = server.connect();
    assert_eq!(open.post(r#"{"data":["before"]}"#).status, 200);
    server.signal("TERM");
    server.wait_ready(503);
    // The cores are told after `/readyz` has changed; each answers on its own until then.
    let deadline = Instant::now() + Duration::from_secs(5);
    let mut accepted = 1;
    loop {
        open.send(request(br#"{"data":["during"]}"#, ""));
        let reply = open.reply();
        assert_eq!(reply.status, 200, "{reply:?}");
        accepted += 1;
        if reply.header("connection") == Some("close") {
            break;
        }
        assert!(Instant::now() < deadline, "the drain does not begin");
    }
    assert!(open.closed(), "open after an answer that says close");
    drop(open);
    let stopped = server.wait_stopped();
    assert_eq!((stopped.status, stopped.accepted, stopped.stored), (0, accepted, accepted));
}
