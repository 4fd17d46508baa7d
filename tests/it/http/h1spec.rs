//! Goal: the cases of uNetworking's h1spec, a collection that HTTP servers are compared by, as a
//! table of this server.
//!
//! Method: each case as a `GET` of a page and as a `POST` of payloads, because two readers share the
//! work: a `POST` in the usual form is read by the fast path, everything else by hyper. A
//! fragment must be waited for, and be served once the rest has come.

use std::time::Duration;

use crate::support::{Client, Server};

/// How a request begins, and what it has beside the fields of its case.
#[derive(Clone, Copy, Debug)]
struct Kind {
    start: &'static str,
    fields: &'static str,
    body: &'static str,
}

const KINDS: [Kind; 2] = [
    Kind { start: "GET /healthz", fields: "", body: "" },
    Kind { start: "POST /payloads", fields: "Content-Length: 12\r\n", body: r#"{"data":[1]}"# },
];

/// Name, request and status. `{S}`, `{F}` and `{B}` stand for the parts of a [`Kind`].
const CASES: [(&str, &str, u16); 18] = [
    ("a request without an HTTP version", "{S} \r\n\r\n", 400),
    (
        "a request with an expectation",
        "{S} HTTP/1.1\r\nHost: example.com\r\nExpect: 100-continue\r\n{F}\r\n{B}",
        200,
    ),
    ("a valid request", "{S} HTTP/1.1\r\nHost: example.com\r\n{F}\r\n{B}", 200),
    (
        "a valid request at the edges",
        "{S} HTTP/1.1\r\nhoSt:\texample.com\r\nempty:\r\n{F}\r\n{B}",
        200,
    ),
    (
        "invalid characters in a name",
        "{S} HTTP/1.1\r\nHost: example.com\r\nX-Invalid[]: test\r\n{F}\r\n{B}",
        400,
    ),
    ("no host", "{S} HTTP/1.1\r\n{F}\r\n{B}", 400),
    ("several hosts", "{S} HTTP/1.1\r\nHost: example.com\r\nHost: example.org\r\n{F}\r\n{B}", 400),
    (
        "a negative length that overflows",
        "{S} HTTP/1.1\r\nHost: example.com\r\nContent-Length: -123456789123456789123456789\r\n\r\n",
        400,
    ),
    (
        "a negative length",
        "{S} HTTP/1.1\r\nHost: example.com\r\nContent-Length: -1234\r\n\r\n",
        400,
    ),
    (
        "a length that is no number",
        "{S} HTTP/1.1\r\nHost: example.com\r\nContent-Length: abc\r\n\r\n",
        400,
    ),
    ("an empty value", "{S} HTTP/1.1\r\nHost: example.com\r\nX-Empty-Header: \r\n{F}\r\n{B}", 200),
    (
        "a control character in a value",
        "{S} HTTP/1.1\r\nHost: example.com\r\nX-Bad-Control-Char: test\u{7}\r\n{F}\r\n{B}",
        400,
    ),
    ("an unknown version", "{S} HTTP/9.9\r\nHost: example.com\r\n{F}\r\n{B}", 400),
    ("something before the request", "Extra line{S} HTTP/1.1\r\nHost: example.com\r\n\r\n", 400),
    (
        "a broken line end",
        "{S} HTTP/1.1\r\nHost: example.com\r\n\rSome-Header: Test\r\n{F}\r\n{B}",
        400,
    ),
    (
        "a body that is no collection",
        "POST /payloads HTTP/1.1\r\nHost: example.com\r\nContent-Length: 5\r\n\r\nhello",
        400,
    ),
    (
        "two lengths",
        "{S} HTTP/1.1\r\nHost: example.com\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n",
        400,
    ),
    (
        "two lengths, in the other order",
        "{S} HTTP/1.1\r\nHost: example.com\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        400,
    ),
];

fn whole(request: &str, kind: Kind) -> String {
    request.replace("{S}", kind.start).replace("{F}", kind.fields).replace("{B}", kind.body)
}

#[test]
fn every_case_is_answered_as_it_must_be() {
    let server = Server::start(&[("INGEST_HEALTH", "on")]);
    let mut accepted = 0;
    for kind in KINDS {
        for (name, request, status) in CASES {
            let request = whole(request, kind);
            let mut client = server.connect();
            client.send(&request);
            let reply = match client.reply() {
                reply if reply.status == 100 => client.reply(),
                reply => reply,
            };
            assert_eq!(reply.status, status, "{name}: {request:?}");
            accepted += usize::from(status == 200 && request.starts_with("POST"));
        }
    }
    server.wait_idle();
    assert_eq!(server.stored().len(), accepted);
}

#[test]
fn every_fragment_is_waited_for() {
    let server = Server::start(&[("INGEST_HEALTH", "on")]);
    let request = "{S} HTTP/1.1\r\nHost: localhost\r\n{F}\r\n{B}";
    let mut open: Vec<(Client, String)> = Vec::new();
    for kind in KINDS {
        let whole = whole(request, kind);
        for at in 1..whole.len() {
            let mut client = server.connect();
            client.send(&whole[..at]);
            open.push((client, whole[at..].to_owned()));
        }
    }
    // As long as h1spec waits.
    std::thread::sleep(Duration::from_millis(500));
    for (client, rest) in &mut open {
        client.stream.set_nonblocking(true).unwrap();
        let error = client.stream.peek(&mut [0]).expect_err("an answer to a fragment");
        assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock, "before {rest:?}");
        client.stream.set_nonblocking(false).unwrap();
        client.send(&rest);
        assert_eq!(client.reply().status, 200, "before {rest:?}");
    }
    drop(open);
    server.wait_idle();
}
