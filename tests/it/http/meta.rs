//! Goal: with `META` every payload is stored with what its request said, its own bytes unchanged;
//! meta survives the disk, a crash and the dead letters; keys still read the payload that was sent;
//! secrets are never stored.
//!
//! Method: requests with headers of every form, tokens and large collections; objects are read back
//! and taken apart.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;
use serde_json::value::RawValue;

use crate::support::{Reply, Server, collection, numbered, request, run, sorted};

const STAMP: &str = "{unix_nanos}-{node}-{core}-{seq}";

/// A stored payload.
#[derive(serde::Deserialize)]
struct Wrapped {
    meta: serde_json::Map<String, Value>,
    payload: Box<RawValue>,
}

impl Wrapped {
    fn of(text: &str) -> Wrapped {
        let wrapped: Wrapped = serde_json::from_str(text).unwrap_or_else(|e| panic!("{text}: {e}"));
        let whole = format!(
            "{{\"meta\":{},\"payload\":{}}}",
            &text[8..text.len() - 12 - wrapped.payload.get().len()],
            wrapped.payload
        );
        assert_eq!(whole, text, "nothing else is there");
        wrapped
    }

    fn received_at(&self) -> &str {
        let text = self.meta["received_at"].as_str().unwrap();
        let shape: String =
            text.chars().map(|char| if char.is_ascii_digit() { '9' } else { char }).collect();
        assert_eq!(shape, "9999-99-99T99:99:99.999999Z", "{text}");
        text
    }
}

/// All payloads in the objects, with the names of their directories.
fn all(objects: &BTreeMap<String, Vec<u8>>) -> Vec<(String, Wrapped)> {
    let lines = objects.iter().flat_map(|(key, bytes)| {
        let folder = key.rsplit_once('/').map_or("", |(folder, _)| folder);
        std::str::from_utf8(bytes)
            .unwrap()
            .lines()
            .map(move |line| (folder.into(), Wrapped::of(line)))
    });
    lines.collect()
}

fn payloads(all: &[(String, Wrapped)]) -> Vec<String> {
    let texts: Vec<&str> = all.iter().map(|(_, wrapped)| wrapped.payload.get()).collect();
    sorted(&texts)
}

fn post(server: &Server, body: &str, headers: &[u8]) -> Reply {
    let mut client = server.connect();
    let length = format!("content-length: {}\r\n\r\n", body.len());
    client.send(
        [b"POST /payloads HTTP/1.1\r\nhost: x\r\n", headers, length.as_bytes(), body.as_bytes()]
            .concat(),
    );
    client.reply()
}

#[test]
fn payloads_are_stored_with_what_their_request_said() {
    for object in ["payload", "batch"] {
        let dir = Arc::new(tempfile::tempdir().unwrap());
        std::fs::write(dir.path().join("tokens"), "alpha;name=crawler\nbeta\n").unwrap();
        let server = Server::start_in(
            dir,
            &[
                ("OBJECT", object),
                ("BATCH_AGE", "100ms"),
                ("TOKENS_FILE", "tokens"),
                ("META", "received_at,client,token,header:X-Request-Id"),
                ("EVENT_TIME", "received_at"),
                ("KEY", &format!("{{date:%Y-%m-%dT%H:%M:%S}}/{STAMP}.{{ext}}")),
            ],
        );
        let sent =
            [r#"{ "a" : 1.50, "u":"\u00e9" }"#, "1e400", "\"x\"", "[ ]", "null", r#"{"meta":1}"#];
        let body = format!(r#"{{"token":"alpha","data":[{}]}}"#, sent.join(" , "));
        assert_eq!(post(&server, &body, b"x-request-id: r-1\r\n").status, 200);
        let odd = b"X-REQUEST-ID: a\"b\\c\r\nauthorization: Bearer beta\r\nx-request-id: \xff\r\n";
        assert_eq!(post(&server, r#"{"data":[7]}"#, odd).status, 200);
        assert_eq!(post(&server, r#"{"data":[]}"#, b"x-api-key: beta\r\n").status, 200);
        assert_eq!(post(&server, r#"{"data":[8]}"#, b"x-api-key: wrong\r\n").status, 401);
        server.wait("all stored", |m| m.sum("millrace_payloads_stored_total") == 7);
        server.wait_idle();
        let stored = all(&server.stored());
        assert_eq!(payloads(&stored), sorted(&[&sent[..], &["7"]].concat()), "byte for byte");
        for (folder, wrapped) in &stored {
            let meta = &wrapped.meta;
            let names: Vec<&String> = meta.keys().collect();
            assert_eq!(names.len(), 4, "{names:?}");
            assert_eq!(*folder, wrapped.received_at()[..19], "the key and the meta say one time");
            assert_eq!(meta["client"], "127.0.0.1");
            let (token, id) = match wrapped.payload.get() {
                "7" => (Value::Null, "a\"b\\c, \u{fffd}"),
                _ => (Value::from("crawler"), "r-1"),
            };
            assert_eq!((&meta["token"], &meta["header:x-request-id"]), (&token, &Value::from(id)));
        }
        // What is counted is what is stored.
        let metrics = server.metrics();
        let accepted = metrics.sum("millrace_bytes_accepted_total");
        assert_eq!(accepted, metrics.sum("millrace_bytes_stored_total"));
        assert_eq!(accepted, metrics.sum("millrace_token_bytes_accepted_total"));
        let text: usize = server.stored_texts().iter().map(|text| text.trim_end().len()).sum();
        let feeds = if object == "batch" { stored.len() - server.stored().len() } else { 0 };
        assert_eq!(accepted, (text - feeds) as u64);
        assert_eq!(server.stop().status, 0);
    }
}

#[test]
fn fields_and_event_times_are_those_of_the_payload_that_was_sent() {
    let server = Server::start_batching(&[
        ("META", "header:x-a"),
        ("EVENT_TIME", "/ts"),
        ("KEY", &format!("t={{field:/tenant|none}}/{{date:%Y}}/{STAMP}.{{ext}}")),
        ("BATCH_AGE", "100ms"),
    ]);
    let sent = [
        r#"{"tenant":"acme","ts":1700000000}"#,
        r#"{"tenant":"zoo","ts":"2024-01-01"}"#,
        r#"{"meta":{"tenant":"no"},"payload":{"tenant":"no"},"ts":0}"#,
    ];
    let meta = r#"},"payload":{"tenant":"forged"}}"#;
    assert_eq!(
        post(&server, &collection(&sent), format!("x-a: {meta}\r\n").as_bytes()).status,
        200
    );
    server.wait("all stored", |m| m.sum("millrace_payloads_stored_total") == 3);
    server.wait_idle();
    let stored = all(&server.stored());
    let mut folders: Vec<&str> = stored.iter().map(|(folder, _)| folder.as_str()).collect();
    folders.sort_unstable();
    assert_eq!(folders, ["t=acme/2023", "t=none/1970", "t=zoo/2024"]);
    assert!(stored.iter().all(|(_, wrapped)| wrapped.meta["header:x-a"] == meta));
    assert_eq!(server.metrics().sum("millrace_event_times_unreadable_total"), 0);
}

#[test]
fn meta_survives_a_crash_whatever_the_next_process_is_told() {
    for (object, next) in [("payload", "client"), ("batch", "client"), ("batch", "")] {
        let first = [
            ("OBJECT", object),
            ("META", "header:x-request-id,received_at"),
            ("KEY", &*format!("t={{field:/tenant}}/{STAMP}.json")),
            ("ACK", "spooled"),
            ("SPOOL_DIR", "spool"),
            ("BATCH_AGE", "100ms"),
        ]
        .map(|(name, text)| (name, text.to_owned()));
        let first: Vec<(&str, &str)> = first.iter().map(|(name, text)| (*name, &**text)).collect();
        let server = Server::start(&[&first[..], &[("FAULTS", "transient=1")]].concat());
        for id in 0..3 {
            let body = collection(&[format!(r#"{{"tenant":"t{id}"}}"#), "[1]".to_owned()]);
            let header = format!("x-request-id: r{id}\r\n");
            assert_eq!(post(&server, &body, header.as_bytes()).status, 200);
        }
        server.wait("all are tried", |m| m.sum("millrace_payloads_retried_total") >= 4);
        let stopped = server.kill();
        let mut second = first.clone();
        second.retain(|(name, _)| *name != "META");
        second.extend((!next.is_empty()).then_some(("META", next)));
        let server = Server::start_in(stopped.dir, &second);
        assert_eq!(server.post(r#"{"data":[{"tenant":"own"}]}"#).status, 200);
        server.wait_spool_empty();
        let (mut own, mut earlier) = (Vec::new(), Vec::new());
        for (key, bytes) in server.stored() {
            let text = String::from_utf8(bytes).unwrap();
            for line in text.lines() {
                match key.starts_with("t=own/") {
                    true => own.push(line.to_owned()),
                    false => earlier.push((key.clone(), Wrapped::of(line))),
                }
            }
        }
        assert_eq!(earlier.len(), 6, "{object}");
        for (key, wrapped) in &earlier {
            let id = wrapped.meta["header:x-request-id"].as_str().unwrap();
            wrapped.received_at();
            let folder = match wrapped.payload.get() {
                "[1]" => "t=unknown/".to_owned(),
                text => {
                    assert_eq!(text, format!(r#"{{"tenant":"t{}"}}"#, &id[1..]));
                    format!("t=t{}/", &id[1..])
                }
            };
            assert!(key.starts_with(&folder), "{object}: {key} has {}", wrapped.payload);
        }
        let own_wrapped =
            format!(r#"{{"meta":{{"client":"127.0.0.1"}},"payload":{{"tenant":"own"}}}}"#);
        assert_eq!(own, [if next.is_empty() { r#"{"tenant":"own"}"#.into() } else { own_wrapped }]);
        assert_eq!(server.stop().status, 0);
    }
}

#[test]
fn dead_letters_have_the_meta_and_a_replay_stores_it() {
    for object in ["payload", "batch"] {
        let key = format!("{{field:/t}}/{{header:x-a}}/{STAMP}.json");
        let settings = [
            ("OBJECT", object),
            ("META", "header:x-a"),
            ("KEY", &key),
            ("BATCH_AGE", "50ms"),
            ("RETRY_BASE", "1ms"),
            ("RETRY_MAX", "1ms"),
        ];
        let server = Server::start(&[&settings[..], &[("FAULTS", "object=1")]].concat());
        assert_eq!(post(&server, r#"{"data":[{"t":"x"}]}"#, b"x-a: v\r\n").status, 200);
        server.wait("a dead letter", |m| m.sum("millrace_payloads_dead_lettered_total") == 1);
        let letters = server.dead_letters();
        let text = r#"{"meta":{"header:x-a":"v"},"payload":{"t":"x"}}"#;
        let letter = String::from_utf8(letters[0].1.clone()).unwrap();
        assert_eq!(letter.trim_end(), text, "{object}");
        let mut replay = server.command_beside(&["dead-letter", "replay"], &[("FAULTS", "")]);
        assert_eq!(replay.output().unwrap().status.code(), Some(0));
        let stored = server.stored();
        let (key, bytes) = stored.first_key_value().unwrap();
        assert!(key.starts_with("x/v/"), "{key}");
        assert_eq!(std::str::from_utf8(bytes).unwrap().trim_end(), text);
        assert_eq!(server.stop().status, 0);
    }
}

/// A small body of many payloads, and large ones: their wrapped form is made in slices.
#[test]
fn collections_of_every_size_are_wrapped_and_wait_for_room() {
    let settings = [
        ("META", "client,header:x-long"),
        ("MAX_QUEUE", "6000"),
        ("MAX_LENGTH", "4MiB"),
        ("STORE", "null:"),
    ];
    let server = Server::start(&settings);
    let long = format!("x-long: {}\r\n", "y".repeat(400));
    let large = format!("\"{}\"", "z".repeat(3 << 20));
    let many = numbered(0..5_000);
    let mut accepted = 0;
    for payloads in [&many[..], &many[..100], &[large], &many[..1]] {
        let reply = post(&server, &collection(payloads), long.as_bytes());
        assert_eq!(reply.status, 200, "{reply:?}");
        accepted += payloads.iter().map(|payload| payload.len() + 461).sum::<usize>();
    }
    server.wait_idle();
    assert_eq!(server.metrics().sum("millrace_bytes_accepted_total"), accepted as u64);
    assert_eq!(server.stop().status, 0);
    // A store that takes nothing for a second: most requests wait for room, wrapped.
    let server = Server::start(&[
        ("META", "client,header:x-long"),
        ("MAX_QUEUE", "40"),
        ("MAX_WORKERS", "8"),
        ("FAULTS", "delay=20ms"),
        ("ENQUEUE_WAIT", "20s"),
    ]);
    let some = numbered(0..20);
    std::thread::scope(|scope| {
        for client in 0..8 {
            let (server, some, long) = (&server, &some, &long);
            scope.spawn(move || {
                for round in 0..4 {
                    let pad = " ".repeat(if (client + round) % 2 == 0 { 0 } else { 70_000 });
                    let body = format!("{}{pad}", collection(some));
                    let reply = post(server, &body, long.as_bytes());
                    assert_eq!(reply.status, 200, "{reply:?}");
                }
            });
        }
    });
    server.wait("all stored", |m| m.sum("millrace_payloads_stored_total") == 32 * 20);
    server.wait_idle();
    let stored = all(&server.stored());
    let expected: Vec<String> = (0..32).flat_map(|_| some.clone()).collect();
    assert_eq!(payloads(&stored), sorted(&expected));
    assert_eq!(server.stop().status, 0);
}

#[test]
fn payloads_that_become_too_long_are_refused_before_memory_is_taken() {
    let server = Server::start(&[
        ("META", "header:x-long"),
        ("MAX_LENGTH", "128KiB"),
        ("MAX_BODY_BYTES", "1MiB"),
        ("MAX_QUEUE_BYTES", "4MiB"),
        ("STORE", "null:"),
    ]);
    let long = format!("x-long: {}\r\n", "\"".repeat(500));
    let reply = post(&server, &collection(&numbered(0..1_000)), long.as_bytes());
    assert_eq!(reply.status, 413, "{reply:?}");
    let error = reply.error();
    assert!(
        error.contains("bytes with their META, more than a request may") && error.contains("split"),
        "{error}"
    );
    // The same without the long header, and a longest body with it.
    assert_eq!(post(&server, &collection(&numbered(0..1_000)), b"").status, 200);
    let longest = format!(r#"{{"data":["{}"]}}"#, "z".repeat((128 << 10) - 13));
    assert_eq!(longest.len(), 128 << 10);
    assert_eq!(post(&server, &longest, long.as_bytes()).status, 200);
    server.wait_idle();
    assert_eq!(server.metrics().sum("millrace_payloads_accepted_total"), 1_001);
    assert_eq!(server.stop().status, 0);
}

#[test]
fn secrets_and_mistakes_are_refused_at_start() {
    let dir = tempfile::tempdir().unwrap();
    for (settings, expected) in [
        (
            &[("META", "header:authorization")][..],
            "which is a secret, and secrets are never stored",
        ),
        (&[("META", "client,header:Cookie")], "which is a secret"),
        (&[("META", "ip")], "which is no entry: give received_at, client, token or header:NAME"),
        (&[("META", "client,")], "has an empty entry: remove the comma"),
        (&[("META", "client, client")], "twice: name it once"),
        (&[("META", "token")], "contains token, but requests need no token: set TOKENS_FILE"),
        (&[("KEY", "{token}/{unix_nanos}-{node}-{core}-{seq}")], "contains {token}, but requests"),
        (&[("KEY", "{header:x-api-key}/{seq}")], "is a secret, and secrets are never stored"),
        (&[("KEY", "{query:token}/{seq}")], "is a secret, and secrets are never stored"),
        (
            &[("META", "client"), ("MAX_BODY_BYTES", "2MiB")],
            "which a payload of MAX_LENGTH needs with its META: raise it or lower MAX_LENGTH",
        ),
        (
            &[("META", "client"), ("MAX_QUEUE_BYTES", "1MiB")],
            "which a payload of MAX_LENGTH needs with its META: raise it or lower MAX_LENGTH",
        ),
    ] {
        for args in [&["check"][..], &[]] {
            let output = run(dir.path(), args, settings);
            let text = String::from_utf8_lossy(&output.stderr).into_owned()
                + &String::from_utf8_lossy(&output.stdout);
            assert_ne!(output.status.code(), Some(0), "{settings:?}: {text}");
            assert!(text.contains(expected), "{settings:?}: {text}");
        }
    }
}

/// Without `META` nothing is added, whatever a request says.
#[test]
fn without_meta_payloads_are_stored_as_received() {
    let server = Server::start(&[]);
    server.connect().send(request(b"{\"data\":[ 1 ]}", "x-request-id: r\r\n"));
    server.wait("it is stored", |m| m.sum("millrace_payloads_stored_total") == 1);
    assert_eq!(server.stored_texts(), ["1"]);
}
