//! Goal: no bytes are ever understood in two ways. A request whose end can be told in more than one
//! way is refused or served once, and in both cases the connection closes; what hides inside of it
//! is never served, neither here nor behind HAProxy or nginx.
//!
//! Method: a matrix of framings. Each carries a payload of its own, hides a request with another
//! one where a second reading would find it, and is followed by a third. What was answered is
//! compared with what was stored.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::support::front::{Front, daemon};
use crate::support::needs::{Need, skip};
use crate::support::{Client, PATIENCE, Server, request, wait_for};

/// What may become of a case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    /// One answer that is no 200, or none, and the end of the connection.
    Refused,
    /// As `Refused`, or served once; the end of the connection in both cases.
    Closed,
    /// Its end is beyond doubt: served, and what follows as well; or refused, by a server that is
    /// stricter than it must be.
    Either,
    /// Served, and what follows as well: no doubt, and no reason to be strict.
    Served,
}
use Wanted::{Closed, Either, Refused, Served};

/// Name, what is wanted, and the bytes behind `POST /payloads HTTP/1.1` and a host, or the whole of
/// them. `{J}` is a body, `{L}` its length, `{X}` the same in hexadecimal; `{C}` the body in
/// chunks, `{H}` the request that hides, `{A}` the length of both together.
type Case = (&'static str, Wanted, &'static str);

/// Where content-length and transfer-encoding disagree.
const BOTH: [Case; 5] = [
    ("CL.TE", Closed, "content-length: {A}\r\ntransfer-encoding: chunked\r\n\r\n{C}{H}"),
    ("TE.CL", Closed, "transfer-encoding: chunked\r\ncontent-length: {A}\r\n\r\n{C}{H}"),
    ("TE.CL, short", Closed, "transfer-encoding: chunked\r\ncontent-length: 4\r\n\r\n{C}"),
    ("TE.CL, zero", Closed, "content-length: 0\r\ntransfer-encoding: chunked\r\n\r\n{C}"),
    ("CL.TE, LF", Closed, "content-length: {A}\r\nx: y\ntransfer-encoding: chunked\r\n\r\n{C}{H}"),
];

/// Ways to write a transfer-encoding that one of two parties may not see. Each is sent alone, where
/// a party that does not see it finds a body of no bytes, and with a content-length.
const TRANSFER_ENCODINGS: [(&str, Wanted); 30] = [
    ("transfer-encoding: xchunked", Refused),
    ("transfer-encoding: chunked-x", Refused),
    ("transfer-encoding: chunk", Refused),
    ("transfer-encoding: cow", Refused),
    ("transfer-encoding:", Refused),
    ("transfer-encoding: identity", Refused),
    ("transfer-encoding: \"chunked\"", Refused),
    ("transfer-encoding: chunked;q=1", Refused),
    ("transfer-encoding: chunked,", Refused),
    ("transfer-encoding: chunked, identity", Refused),
    ("transfer-encoding: chunked\r\ntransfer-encoding: x", Refused),
    ("transfer-encoding: chunked\r\ntransfer-encoding: identity", Refused),
    ("transfer-encoding: chunked\u{b}", Refused),
    ("transfer-encoding: \u{b}chunked", Refused),
    ("transfer-encoding: chun\0ked", Refused),
    ("transfer-encoding: \r\n chunked", Refused),
    ("transfer-encoding: chunked\r\n x", Refused),
    ("transfer-encoding : chunked", Refused),
    ("transfer-encoding\t: chunked", Refused),
    (" transfer-encoding: chunked", Refused),
    ("transfer\0-encoding: chunked", Refused),
    ("x: y\rtransfer-encoding: chunked", Refused),
    ("transfer-encoding: gzip, chunked", Either),
    ("transfer-encoding: identity, chunked", Either),
    ("transfer-encoding: chunked, chunked", Either),
    ("transfer-encoding: ,chunked", Either),
    ("transfer-encoding: x\r\ntransfer-encoding: chunked", Either),
    ("transfer-encoding: CHUNKED", Either),
    ("transfer-encoding:\tchunked \t", Either),
    ("x: y\ntransfer-encoding: chunked", Either),
];

/// Lengths that are none, or more than one.
const LENGTHS: [(&str, Wanted); 29] = [
    ("content-length: {L}\r\ncontent-length: {A}", Refused),
    ("content-length: {A}\r\ncontent-length: {L}", Refused),
    ("content-length: 0\r\ncontent-length: {L}", Refused),
    ("content-length: {L}, {A}", Refused),
    ("content-length: {L},", Refused),
    ("content-length: +{L}", Refused),
    ("content-length: -{L}", Refused),
    ("content-length: -0", Refused),
    ("content-length: 0x{X}", Refused),
    ("content-length: {L}.0", Refused),
    ("content-length: {L}e0", Refused),
    ("content-length: 2 2", Refused),
    ("content-length: 2_2", Refused),
    ("content-length:", Refused),
    ("content-length: {L};", Refused),
    ("content-length: \"{L}\"", Refused),
    ("content-length: {L}\0", Refused),
    ("content-length: \u{b}{L}", Refused),
    ("content-length: \u{662}\u{662}", Refused),
    // 2^64 and as much as is there.
    ("content-length: 18446744073709551638", Refused),
    ("content-length: 99999999999999999999999999", Refused),
    ("content-length: \r\n {L}", Refused),
    ("content-length: {L}\r\n 0", Refused),
    ("content-length : {L}", Refused),
    ("content-length: {L}\r\ncontent-length: {L}", Either),
    ("content-length: {L}, {L}", Either),
    ("content-length: 000{L}", Either),
    ("content-length:\t{L} \t", Either),
    ("x: y\ncontent-length: {L}", Either),
];

/// Chunks, behind `transfer-encoding: chunked`.
const CHUNKS: [(&str, Wanted); 36] = [
    ("{X}\r\n{J}\r\n0\r\n\r\n", Served),
    ("{X};a=b;c=\"d\"\r\n{J}\r\n0;e\r\n\r\n", Served),
    ("0x{X}\r\n{J}\r\n0\r\n\r\n", Refused),
    ("+{X}\r\n{J}\r\n0\r\n\r\n", Refused),
    ("-{X}\r\n{J}\r\n0\r\n\r\n", Refused),
    (" {X}\r\n{J}\r\n0\r\n\r\n", Refused),
    ("1_6\r\n{J}\r\n0\r\n\r\n", Refused),
    ("{X}h\r\n{J}\r\n0\r\n\r\n", Refused),
    ("\u{ff11}\u{ff16}\r\n{J}\r\n0\r\n\r\n", Refused),
    ("\r\n{J}\r\n0\r\n\r\n", Refused),
    (";a\r\n{J}\r\n0\r\n\r\n", Refused),
    // 2^64, 2^63 and as much as is there.
    ("100000000000000{X}\r\n{J}\r\n0\r\n\r\n", Refused),
    ("10000000000000000000{X}\r\n{J}\r\n0\r\n\r\n", Refused),
    ("80000000000000{X}\r\n{J}\r\n0\r\n\r\n", Refused),
    ("fffffffffffffff\r\n{J}\r\n0\r\n\r\n", Refused),
    ("{X}\n{J}\r\n0\r\n\r\n", Refused),
    ("{X}\r{J}\r\n0\r\n\r\n", Refused),
    ("{X}\r\r\n{J}\r\n0\r\n\r\n", Refused),
    ("{X}\r\n{J}\n0\r\n\r\n", Refused),
    ("{X}\r\n{J}0\r\n\r\n", Refused),
    ("{X}\r\n{J}xx0\r\n\r\n", Refused),
    ("15\r\n{J}\r\n0\r\n\r\n", Refused),
    ("17\r\n{J}\r\n0\r\n\r\n", Refused),
    ("{X};a\n{J}\r\n0\r\n\r\n", Refused),
    ("{X};a=\"\n\"\r\n{J}\r\n0\r\n\r\n", Refused),
    ("{X};a\rb\r\n{J}\r\n0\r\n\r\n", Refused),
    ("{X}\0\r\n{J}\r\n0\r\n\r\n", Refused),
    ("{X}\r\n{J}\r\n0\n\n", Refused),
    ("{X}\r\n{J}\r\n0\r\nno colon\r\n\r\n", Refused),
    ("{X}\r\n{J}\r\n0\r\n\r \r\n\r\n", Refused),
    ("{X}\r\n{J}\r\n0\r\nx : y\r\n\r\n", Either),
    ("{X}\r\n{J}\r\n0\r\ncontent-length: 5\r\n\r\n", Either),
    ("{X}\r\n{J}\r\n0\r\ntransfer-encoding: chunked\r\n\r\n", Either),
    ("{X} \r\n{J}\r\n0\r\n\r\n", Either),
    ("{X}\t;a\r\n{J}\r\n0\r\n\r\n", Either),
    ("0000000000000000000000{X}\r\n{J}\r\n0000\r\n\r\n", Either),
];

/// Whole heads.
const HEADS: [Case; 20] = [
    ("plain", Served, "content-length: {L}\r\n\r\n{J}"),
    ("obs-fold", Refused, "content-length: {L}\r\nx: y\r\n z\r\n\r\n{J}"),
    ("obs-fold of a length", Refused, "content-length:\r\n {L}\r\n\r\n{J}"),
    ("NUL in a value", Refused, "content-length: {L}\r\nx: a\0b\r\n\r\n{J}"),
    ("NUL in a name", Refused, "content-length: {L}\r\nx\0: a\r\n\r\n{J}"),
    ("space before a colon", Refused, "content-length: {L}\r\nx : a\r\n\r\n{J}"),
    ("no colon", Refused, "content-length: {L}\r\nxyz\r\n\r\n{J}"),
    ("no name", Refused, "content-length: {L}\r\n: a\r\n\r\n{J}"),
    ("CR in a value", Refused, "content-length: {L}\r\nx: a\rb\r\n\r\n{J}"),
    ("CR at the end", Refused, "content-length: {L}\r\n\r{J}"),
    ("LF at the end", Either, "content-length: {L}\r\n\n{J}"),
    ("LF everywhere", Either, "POST /payloads HTTP/1.1\nhost: x\ncontent-length: {L}\n\n{J}"),
    (
        "space before the first field",
        Refused,
        "POST /payloads HTTP/1.1\r\n x: y\r\nhost: x\r\ncontent-length: {L}\r\n\r\n{J}",
    ),
    (
        "spaces around the target",
        Refused,
        "POST  /payloads  HTTP/1.1\r\nhost: x\r\ncontent-length: {L}\r\n\r\n{J}",
    ),
    (
        "a version that there is not",
        Refused,
        "POST /payloads HTTP/1.2\r\nhost: x\r\ncontent-length: {L}\r\n\r\n{J}",
    ),
    (
        "chunked in 1.0",
        Closed,
        "POST /payloads HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n{C}{H}",
    ),
    (
        "chunked in 1.0, kept alive",
        Closed,
        "POST /payloads HTTP/1.0\r\nconnection: keep-alive\r\ntransfer-encoding: chunked\r\n\r\n{C}{H}",
    ),
    (
        "both in 1.0, kept alive",
        Closed,
        "POST /payloads HTTP/1.0\r\nconnection: keep-alive\r\ncontent-length: {L}\r\n\
         transfer-encoding: chunked\r\n\r\n{J}",
    ),
    (
        "connection: content-length",
        Either,
        "connection: content-length\r\ncontent-length: {L}\r\n\r\n{J}",
    ),
    (
        "connection: transfer-encoding",
        Either,
        "connection: transfer-encoding\r\ntransfer-encoding: chunked\r\n\r\n{C}",
    ),
];

/// The matrix: name, what is wanted, bytes.
fn matrix() -> Vec<(String, Wanted, Vec<u8>)> {
    let mut cases: Vec<(String, Wanted, String)> = Vec::new();
    for (name, wanted, text) in BOTH.iter().chain(&HEADS) {
        cases.push(((*name).to_owned(), *wanted, (*text).to_owned()));
    }
    for (field, wanted) in TRANSFER_ENCODINGS {
        cases.push((field.to_owned(), wanted, format!("{field}\r\n\r\n{{C}}")));
        // What is beyond doubt alone is not so beside a length.
        let wanted = if wanted == Refused { Refused } else { Closed };
        let text = format!("content-length: {{A}}\r\n{field}\r\n\r\n{{C}}{{H}}");
        cases.push((format!("{field}, and a length"), wanted, text));
    }
    for (field, wanted) in LENGTHS {
        cases.push((field.to_owned(), wanted, format!("{field}\r\n\r\n{{J}}")));
    }
    for (chunks, wanted) in CHUNKS {
        let text = format!("transfer-encoding: chunked\r\n\r\n{chunks}");
        cases.push((chunks.to_owned(), wanted, text));
    }
    let fill = |(id, (name, wanted, text)): (usize, (String, Wanted, String))| {
        (name.escape_debug().to_string(), wanted, filled(&text, id))
    };
    cases.into_iter().enumerate().map(fill).collect()
}

/// The payloads of case `id`: its own, the hidden one and the one that follows. All of one length.
fn payloads(id: usize) -> [String; 3] {
    ["first", "hidde", "behin"].map(|word| format!("\"{word}-{id:03}\""))
}

fn filled(text: &str, id: usize) -> Vec<u8> {
    let [body, hidden, behind] = payloads(id).map(|payload| format!(r#"{{"data":[{payload}]}}"#));
    // Several texts have these lengths in them.
    assert_eq!(body.len(), 22);
    let [hidden, behind] =
        [hidden, behind].map(|body| String::from_utf8(request(body.as_bytes(), "")).unwrap());
    let chunks = format!("16\r\n{body}\r\n0\r\n\r\n");
    let head = if text.starts_with("POST") { "" } else { "POST /payloads HTTP/1.1\r\nhost: x\r\n" };
    let text = text
        .replace("{A}", &(chunks.len() + hidden.len()).to_string())
        .replace("{L}", "22")
        .replace("{X}", "16")
        .replace("{J}", &body)
        .replace("{C}", &chunks)
        .replace("{H}", &hidden);
    format!("{head}{text}{behind}").into_bytes()
}

/// What came back for a case.
#[derive(Debug)]
struct Answers {
    statuses: Vec<u16>,
    /// The last answer says that the connection closes.
    says_close: bool,
}

/// Everything that is answered before the end.
fn answers(client: &mut Client) -> Answers {
    let mut answers = Answers { statuses: Vec::new(), says_close: false };
    while let Some(reply) = client.try_reply() {
        answers.statuses.push(reply.status);
        answers.says_close = reply.header("connection") == Some("close");
    }
    answers
}

/// Whether `answers` and what is stored of a case are what is wanted of it.
fn is_right(wanted: Wanted, answers: &Answers, stored: [bool; 3]) -> bool {
    let closed = answers.statuses.is_empty() || answers.says_close;
    let refused = answers.statuses.len() <= 1
        && answers.statuses.iter().all(|status| *status >= 400)
        && closed
        && stored == [false; 3];
    let once = answers.statuses == [200] && closed && stored == [true, false, false];
    let served = answers.statuses == [200, 200] && stored == [true, false, true];
    match wanted {
        Refused => refused,
        Closed => refused || once,
        Either => refused || once || served,
        Served => served,
    }
}

#[test]
fn nothing_is_understood_in_two_ways() {
    let server = Server::start(&[]);
    let cases = matrix();
    let mut all = Vec::new();
    for (_, _, bytes) in &cases {
        let mut client = server.connect();
        client.try_send(bytes);
        // Whoever waits for more learns that there is none.
        client.half_close();
        all.push(answers(&mut client));
    }
    server.wait_idle();
    let stored: BTreeSet<String> = server.stored_texts().into_iter().collect();
    let mut wrong = Vec::new();
    for (id, ((name, wanted, _), answers)) in cases.iter().zip(&all).enumerate() {
        let stored = payloads(id).map(|payload| stored.contains(&payload));
        if !is_right(*wanted, answers, stored) {
            wrong.push(format!("{name}: wanted {wanted:?}, {answers:?}, stored {stored:?}"));
        }
    }
    assert!(wrong.is_empty(), "{} of {}: {wrong:#?}", wrong.len(), cases.len());
    // Whatever was stored was answered with a 200, and the other way around.
    let answered = all.iter().flat_map(|a| &a.statuses).filter(|status| **status == 200).count();
    assert_eq!(answered, stored.len());
}

/// Sends the matrix to `front`, with a good client's request behind each case: on the connections
/// to the server that they share, nothing of a case may be left for it.
fn behind(server: &Server, front: &Front) {
    let cases = matrix();
    let mut taken = 0;
    for (id, (name, _, bytes)) in cases.iter().enumerate() {
        let mut client = Client::connect(front.address);
        // A proxy may take a half-closed client for one that has gone, so the end is a silence.
        client.stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        client.try_send(bytes);
        taken += usize::from(first_status(&mut client) == Some(200));
        let mut good = Client::connect(front.address);
        good.stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let reply = good.post(format!(r#"{{"data":["good-{id:03}","good"]}}"#));
        assert_eq!(
            (reply.status, reply.body.as_str()),
            (200, r#"{"accepted":2,"ack":"queued"}"#),
            "behind {name}: {reply:?}"
        );
    }
    // The two that are beyond doubt, at least.
    assert!(taken >= 2, "{taken} of {} were taken", cases.len());
    wait_for("everything to be stored", || {
        let metrics = server.metrics();
        metrics.sum("millrace_payloads_stored_total")
            == metrics.sum("millrace_payloads_accepted_total")
    });
    let stored = server.stored_texts();
    let hidden: Vec<&String> = stored.iter().filter(|text| text.contains("hidde")).collect();
    assert!(hidden.is_empty(), "{hidden:?}");
    for (id, (name, ..)) in cases.iter().enumerate() {
        let good = format!("\"good-{id:03}\"");
        assert_eq!(stored.iter().filter(|text| **text == good).count(), 1, "behind {name}");
        let [first, _, behind] = payloads(id);
        for payload in [first, behind] {
            let copies = stored.iter().filter(|text| **text == payload).count();
            assert!(copies <= 1, "{name}: {copies} copies");
        }
    }
}

/// The status of the first answer, if there is one before the silence.
fn first_status(client: &mut Client) -> Option<u16> {
    use std::io::Read as _;
    let mut buffer = [0; 4096];
    let n = client.stream.read(&mut buffer).ok()?;
    let text = std::str::from_utf8(&buffer[..n]).ok()?;
    text.split(' ').nth(1)?.parse().ok()
}

#[test]
fn nothing_is_understood_in_two_ways_behind_haproxy() {
    let Some(binary) = daemon("haproxy") else {
        skip(Need::Haproxy, "there is no haproxy here");
        return;
    };
    let server = Server::start(&[]);
    let dir = tempfile::tempdir().unwrap();
    let defaults = "mode http\n option http-keep-alive\n http-reuse always";
    let backend = format!("server s {}", server.ingest);
    behind(&server, &Front::haproxy(&binary, dir.path(), defaults, &backend));
}

#[test]
fn nothing_is_understood_in_two_ways_behind_nginx() {
    let Some(binary) = daemon("nginx") else {
        skip(Need::Nginx, "there is no nginx here");
        return;
    };
    let server = Server::start(&[]);
    let dir = tempfile::tempdir().unwrap();
    behind(&server, &Front::nginx(&binary, dir.path(), server.ingest, ""));
}
