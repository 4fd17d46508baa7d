//! Goal: a request whose host or framing is not exactly what HTTP/1.1 wants is refused with the
//! reason, closes its connection and starts nothing behind it, whatever its path and method and
//! whether it is the first on its connection or not.
//!
//! Method: tables of heads and chunked bodies, each sent first, after another request, pipelined
//! behind one in the same write, and a byte at a time.

use crate::support::{Client, Reply, Server, chunked_request, request};

const CHUNKS: &str = "c\r\n{\"data\":[1]}\r\n0\r\n\r\n";

/// How a request comes to the server.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    First,
    AfterAnother,
    Pipelined,
    ByteByByte,
}

const WAYS: [Way; 4] = [Way::First, Way::AfterAnother, Way::Pipelined, Way::ByteByByte];

/// Sends `bytes` and gives the answer to them. What is behind them is never served.
fn answer(server: &Server, way: Way, bytes: &[u8]) -> Reply {
    let mut client = server.connect();
    let good = request(br#"{"data":[]}"#, "");
    let behind = request(br#"{"data":["behind"]}"#, "");
    match way {
        Way::First => client.send([bytes, &behind].concat()),
        Way::AfterAnother => {
            client.send(&good);
            assert_eq!(client.reply().status, 200);
            client.send([bytes, &behind].concat());
        }
        Way::Pipelined => {
            client.send([&good, bytes, &behind].concat());
            assert_eq!(client.reply().status, 200);
        }
        // The last bytes may come after the answer.
        Way::ByteByByte => {
            let _whole = bytes.iter().all(|byte| client.try_send([*byte]));
        }
    }
    let reply = client.try_reply();
    let reply = reply.unwrap_or_else(|| panic!("no answer: {way:?} {}", bytes.escape_ascii()));
    assert_eq!(reply.header("connection"), Some("close"), "{reply:?}");
    assert!(client.closed(), "open after {reply:?}");
    reply
}

/// Checks a refusal. `says` is empty for those that hyper answers itself, without a text.
#[track_caller]
fn refused(reply: &Reply, status: u16, says: &str, what: &str) {
    assert_eq!(reply.status, status, "{what}: {reply:?}");
    if says.is_empty() {
        assert_eq!(reply.body, "", "{what}");
    } else {
        let error = reply.error();
        assert!(error.contains(says) && !error.contains('\n'), "{what}: {error}");
    }
}

const NO_HOST: &str = "has no host header";
const TWO_HOSTS: &str = "more than one host header";
const BAD_HOST: &str = "not a host with an optional port";
const NOT_CHUNKED: &str =
    "transfer-encoding must be one header field with the single value chunked";

/// Header fields, and how every request with them is refused. `chunked` bodies follow where there
/// is a transfer-encoding.
const HEADS: [(&str, u16, &str); 28] = [
    ("", 400, NO_HOST),
    ("x-host: x\r\n", 400, NO_HOST),
    ("host: x\r\nhost: x\r\n", 400, TWO_HOSTS),
    ("host: x\r\nHOST: y\r\n", 400, TWO_HOSTS),
    ("host:\r\nhost: x\r\n", 400, TWO_HOSTS),
    ("host: a b\r\n", 400, BAD_HOST),
    ("host: a, b\r\n", 400, BAD_HOST),
    ("host: http://x\r\n", 400, BAD_HOST),
    ("host: x/payloads\r\n", 400, BAD_HOST),
    ("host: user@x\r\n", 400, BAD_HOST),
    ("host: :80\r\n", 400, BAD_HOST),
    ("host: x:80x\r\n", 400, BAD_HOST),
    ("host: [::1\r\n", 400, BAD_HOST),
    ("host: a%zz\r\n", 400, BAD_HOST),
    ("host: \u{e4}\r\n", 400, BAD_HOST),
    // hyper's own answers.
    ("host : x\r\n", 400, ""),
    ("host: x\r\n y\r\n", 400, ""),
    ("host: x\r\ntransfer-encoding: gzip\r\n", 400, ""),
    ("host: x\r\ntransfer-encoding: identity\r\n", 400, ""),
    ("host: x\r\ntransfer-encoding: xchunked\r\n", 400, ""),
    ("host: x\r\ntransfer-encoding:\r\n chunked\r\n", 400, ""),
    ("host: x\r\ntransfer-encoding: \u{b}chunked\r\n", 400, ""),
    ("host: x\r\ntransfer-encoding: gzip, chunked\r\n", 501, "other than chunked"),
    ("host: x\r\ntransfer-encoding: xchunked, chunked\r\n", 501, "other than chunked"),
    ("host: x\r\ntransfer-encoding: chunked, chunked\r\n", 400, NOT_CHUNKED),
    ("host: x\r\ntransfer-encoding: identity, chunked\r\n", 400, NOT_CHUNKED),
    ("host: x\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n", 400, NOT_CHUNKED),
    ("host: x\r\ntransfer-encoding: gzip\r\ntransfer-encoding: chunked\r\n", 400, NOT_CHUNKED),
];

/// Fields with two lengths, in both orders.
const TWO_LENGTHS: [&str; 4] = [
    "host: x\r\ncontent-length: 12\r\ntransfer-encoding: chunked\r\n",
    "host: x\r\ntransfer-encoding: chunked\r\ncontent-length: 12\r\n",
    "Content-Length: 0\r\nhost: x\r\nTransfer-Encoding: Chunked\r\n",
    "host: x\r\ntransfer-encoding: chunked\r\nCONTENT-LENGTH:junk\r\n",
];

const TARGETS: [&str; 7] = [
    "POST /payloads",
    "POST /nowhere",
    "GET /payloads",
    "PUT /payloads",
    "OPTIONS *",
    "POST http://x/payloads",
    "CONNECT x:80",
];

fn head(target: &str, fields: &str) -> Vec<u8> {
    let body = if fields.to_lowercase().contains("transfer-encoding") { CHUNKS } else { "" };
    format!("{target} HTTP/1.1\r\n{fields}\r\n{body}").into()
}

#[test]
fn a_wrong_head_is_refused_before_its_path_and_method_are_looked_at() {
    let server = Server::start(&[]);
    let mut sent = 0;
    for target in TARGETS {
        for (fields, status, says) in HEADS {
            let ways = match target {
                "POST /payloads" => &WAYS[..],
                // hyper may drop a last answer to CONNECT while the one before is being sent.
                "CONNECT x:80" => &[Way::First],
                _ => &[Way::Pipelined],
            };
            for way in ways {
                let what = format!("{target} {fields:?} {way:?}");
                refused(&answer(&server, *way, &head(target, fields)), status, says, &what);
                sent += 1;
            }
        }
    }
    server.wait_idle();
    assert!(server.stored().is_empty(), "nothing behind was served");
    let metrics = server.metrics();
    assert_eq!(metrics.requests(400) + metrics.requests(501), sent);
}

#[test]
fn two_lengths_are_refused_where_they_are_seen() {
    let server = Server::start(&[]);
    for fields in TWO_LENGTHS {
        for target in TARGETS {
            for way in [Way::First, Way::AfterAnother, Way::ByteByByte] {
                let what = format!("{target} {fields:?} {way:?}");
                let reply = answer(&server, way, &head(target, fields));
                refused(&reply, 400, "both transfer-encoding and content-length", &what);
            }
        }
    }
    server.wait_idle();
    assert!(server.stored().is_empty());
    // Behind a request that the fast path has served as well.
    for fields in TWO_LENGTHS {
        let reply = answer(&server, Way::Pipelined, &head(TARGETS[0], fields));
        refused(&reply, 400, "both transfer-encoding and content-length", fields);
    }
    server.wait_idle();
    assert!(server.stored().is_empty());
    // hyper removes the length, and a head that comes with a request before it that hyper reads is
    // seen by hyper only. The chunks count, as RFC 9112 section 6.3 has it, and the connection is
    // closed.
    let ignored = &TWO_LENGTHS[..3];
    for fields in ignored {
        let mut client = server.connect();
        let before = chunked_request(&[br#"{"data":[]}"#], "");
        client.send([before, head(TARGETS[0], fields)].concat());
        assert_eq!(client.reply().status, 200);
        assert_eq!(client.last_reply().status, 200, "{fields:?}");
    }
    server.wait_idle();
    assert_eq!(server.stored_texts(), ["1"; 3]);
}

#[test]
fn what_http_allows_is_served() {
    let server = Server::start(&[]);
    let body = r#"{"data":[1]}"#;
    let of = |line: &str, fields: &str| {
        format!("{line}\r\n{fields}content-length: 12\r\n\r\n{body}").into_bytes()
    };
    let (new, absolute) = ("POST /payloads HTTP/1.1", "POST http://x:8080/payloads HTTP/1.1");
    let chunked = |value: &str| {
        let fields = format!("host: x\r\ntransfer-encoding:{value}\r\n");
        format!("{new}\r\n{fields}\r\n{CHUNKS}").into_bytes()
    };
    let requests = [
        of(new, "host: ingest.example\r\n"),
        of(new, "Host:\t x:8080 \t\r\n"),
        of(new, "host: x:\r\n"),
        of(new, "host: 127.0.0.1:80\r\n"),
        of(new, "host: [2001:db8::7]:8080\r\n"),
        of(new, "host: a_b%2Dc\r\n"),
        // No authority in the target: RFC 9112 section 3.2 has the client send this.
        of(new, "host:\r\n"),
        of(absolute, "host: x:8080\r\n"),
        // Ignored beside an absolute target (section 3.2.2).
        of(absolute, "host: other\r\n"),
        of("POST /payloads HTTP/1.0", "connection: keep-alive\r\n"),
        of("POST /payloads HTTP/1.0", "host: x\r\nconnection: keep-alive\r\n"),
        chunked(" chunked"),
        chunked("CHUNKED"),
        chunked("\t chunked \t"),
    ];
    let mut client = server.connect();
    for request in &requests {
        client.send(request);
        let reply = client.reply();
        assert_eq!(reply.status, 200, "{} {reply:?}", request.escape_ascii());
    }
    client.send(requests.concat());
    for request in &requests {
        assert_eq!(client.reply().status, 200, "{}", request.escape_ascii());
    }
    // An absolute target without a host in the field.
    client.send(of(absolute, "host:\r\n"));
    refused(&client.last_reply(), 400, "the request target has a host", "empty");
    let mut client = server.connect();
    client.send(of("POST /payloads HTTP/1.0", "host: x\r\nhost: x\r\n"));
    refused(&client.last_reply(), 400, TWO_HOSTS, "HTTP/1.0");
    drop(client);
    server.wait_idle();
    assert_eq!(server.stored().len(), 2 * requests.len());
}

#[test]
fn broken_chunks_are_called_by_their_name() {
    const SIZE_LINE: &str = "a size line is malformed";
    const NO_LINE_END: &str = "data is not followed by CRLF";
    const TRAILERS: &str = "the trailers are malformed";
    let data = r#"{"data":[1]}"#;
    let last = format!("c\r\n{data}\r\n0\r\n");
    let cases: Vec<(String, &str)> = vec![
        ("x\r\n".into(), SIZE_LINE),
        ("\r\n".into(), SIZE_LINE),
        ("-1\r\n".into(), SIZE_LINE),
        ("+c\r\n".into(), SIZE_LINE),
        ("0xc\r\n".into(), SIZE_LINE),
        ("c c\r\n".into(), SIZE_LINE),
        ("c\n".into(), SIZE_LINE),
        ("c\rx".into(), SIZE_LINE),
        (format!("c\r\n{data}\r\n\r\n"), SIZE_LINE),
        (format!("c\r\n{data}0\r\n"), NO_LINE_END),
        (format!("c\r\n{data}\n0\r\n"), NO_LINE_END),
        (format!("c\r\n{data}\rx"), NO_LINE_END),
        (format!("b\r\n{data}\r\n"), NO_LINE_END),
        ("10000000000000000\r\n".into(), "does not fit into 64 bits"),
        ("fffffffffffffffff\r\n".into(), "does not fit into 64 bits"),
        (format!("c;{}", "x".repeat(17 << 10)), "extensions are over 16 KiB"),
        (format!("1;{}\r\n{{\r\n1;{}", "x".repeat(9 << 10), "x".repeat(9 << 10)), "over 16 KiB"),
        ("c;a=b\nc\r\n".into(), "extension has a line feed"),
        (format!("{last}no colon\r\n\r\n"), TRAILERS),
        (format!("{last}a b: c\r\n\r\n"), TRAILERS),
        (format!("{last}a: b\rx"), TRAILERS),
        (format!("{last}a: b\nc: d\r\n\r\n"), TRAILERS),
        (format!("{last}\rx"), TRAILERS),
        (format!("{last}a: {}", "x".repeat(17 << 10)), "trailers are over 16 KiB or 100 fields"),
        (format!("{last}{}\r\n", "a: b\r\n".repeat(101)), "trailers are over 16 KiB or 100 fields"),
    ];
    let server = Server::start(&[]);
    let head = "POST /payloads HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n";
    for (chunks, says) in &cases {
        for way in WAYS {
            if way == Way::ByteByByte && chunks.len() > 1_000 {
                continue;
            }
            let what = format!("{chunks:.40?} {way:?}");
            let reply = answer(&server, way, format!("{head}{chunks}").as_bytes());
            refused(&reply, 400, says, &what);
            refused(&reply, 400, "the chunked body is malformed: ", &what);
        }
    }
    server.wait_idle();
    assert!(server.stored().is_empty());
}

#[test]
fn a_body_that_really_ends_early_is_called_so() {
    let server = Server::start(&[]);
    let head = |fields: &str| format!("POST /payloads HTTP/1.1\r\nhost: x\r\n{fields}\r\n\r\n");
    let chunked = head("transfer-encoding: chunked");
    for cut in [
        head("content-length: 12") + "{\"data\"",
        chunked.clone() + "c",
        chunked.clone() + "c\r\n{\"data\"",
        chunked.clone() + "c\r\n{\"data\":[1]}",
        chunked.clone() + "c\r\n{\"data\":[1]}\r\n0\r\n",
        chunked + "c\r\n{\"data\":[1]}\r\n0\r\na: b",
    ] {
        let mut client: Client = server.connect();
        client.send(&cut);
        client.half_close();
        let reply = client.last_reply();
        refused(&reply, 400, "the body ended early: the client closed the connection", &cut);
    }
    server.wait_idle();
    assert!(server.stored().is_empty());
}

#[test]
fn the_admin_listener_wants_the_same_heads() {
    let server = Server::start(&[]);
    for (fields, status, says) in HEADS {
        let mut client = Client::connect(server.admin);
        client.send(head("GET /healthz", fields));
        let reply = client.last_reply();
        assert_eq!(reply.status, status, "{fields:?} {reply:?}");
        assert!(reply.body.contains(says), "{fields:?} {reply:?}");
    }
    let mut client = Client::connect(server.admin);
    client.send("GET /healthz HTTP/1.0\r\n\r\n");
    assert_eq!(client.reply().status, 200);
}
