//! Goal: headers, query parameters and the name of the token are parts of keys as fields are: made
//! safe, bounded, a partition of batches, and the same after a crash, in another process, and in a
//! replay.
//!
//! Method: requests with values of every form over raw sockets; keys are read back.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::support::{Client, Server, sorted};

const STAMP: &str = "{unix_nanos}-{node}-{core}-{seq}";

/// One POST to `/payloads` with a query and headers, which may hold any bytes.
fn post(client: &mut Client, query: &str, headers: &[u8], body: &str) -> u16 {
    let start = format!("POST /payloads{query} HTTP/1.1\r\nhost: x\r\n");
    let length = format!("content-length: {}\r\n\r\n", body.len());
    client.send([start.as_bytes(), headers, length.as_bytes(), body.as_bytes()].concat());
    client.reply().status
}

/// The directories of all payloads.
fn folders(objects: &BTreeMap<String, Vec<u8>>) -> BTreeMap<String, Vec<String>> {
    let mut found = BTreeMap::<String, Vec<String>>::new();
    for (key, bytes) in objects {
        let folder = key.rsplit_once('/').unwrap().0.to_owned();
        let lines = std::str::from_utf8(bytes).unwrap().lines().map(str::to_owned);
        found.entry(folder).or_default().extend(lines);
    }
    found
}

/// Query, headers, and the directory of a key `h={header:x-t}/{query:q|none}`.
const REQUESTS: [(&str, &[u8], &str); 19] = [
    ("", b"", "h=unknown/none"),
    ("?q=1", b"x-t: acme\r\n", "h=acme/1"),
    ("?q=1", b"X-T:acme\t\r\n", "h=acme/1"),
    ("?q=../../etc", b"x-t: ../../etc/passwd\r\n", "h=.._.._etc_passwd/.._.._etc"),
    ("?q=%2e%2e%2F%2e%2e", b"x-t: %2e%2e%2f\r\n", "h=%2e%2e%2f/.._.."),
    ("?q=%2e%2e", b"x-t: ..\r\n", "h=__/__"),
    ("?q=.", b"x-t: .\r\n", "h=_/_"),
    ("?q=%00%0a%1f", b"x-t: a\tb\r\n", "h=a_b/___"),
    ("?q=a%5cb%7f", b"x-t: a\\b\r\n", "h=a_b/a_b_"),
    ("?q=a+b%20c%2Bd", "x-t: größe 🚀\r\n".as_bytes(), "h=größe 🚀/a b c+d"),
    ("?q=%ff%C3%A9", b"x-t: \xff\r\n", "h=\u{fffd}/\u{fffd}é"),
    ("?q=first&q=second", b"x-t: a\r\nx-t: b\r\n", "h=a, b/first"),
    ("?q=&q=second", b"x-t:\r\n", "h=unknown/none"),
    ("?q", b"x-t: \t \r\n", "h=unknown/none"),
    ("?Q=1&qq=2&x=q=3", b"x-tt: a\r\n", "h=unknown/none"),
    ("?%71=named", b"x-t: 1\r\n", "h=1/named"),
    ("?q=%zz%", b"x-t: \"\r\n", "h=\"/%zz%"),
    ("?q=a/b?c", b"x-t: a/b\r\n", "h=a_b/a_b?c"),
    ("?q=.millrace-tmp", b"x-t: .millrace-tmp\r\n", "h=.millrace-tmp/.millrace-tmp"),
];

#[test]
fn values_of_requests_are_safe_parts_of_keys_and_partitions() {
    for object in ["payload", "batch"] {
        let key = format!("h={{header:X-T}}/{{query:q|none}}/{STAMP}.{{ext}}");
        let settings = [("OBJECT", object), ("KEY", &key), ("BATCH_AGE", "300ms")];
        let server = Server::start(&settings);
        let mut client = server.connect();
        let mut expected = BTreeMap::<String, Vec<String>>::new();
        for (number, (query, headers, folder)) in REQUESTS.iter().enumerate() {
            let body = format!(r#"{{"data":[{number},"{number}"]}}"#);
            assert_eq!(post(&mut client, query, headers, &body), 200, "{query}");
            let payloads = [number.to_string(), format!("\"{number}\"")];
            expected.entry((*folder).to_owned()).or_default().extend(payloads);
        }
        // Longer than any value.
        let (long, query) = ("y".repeat(5_000), format!("?q={}", "%2F".repeat(3_000)));
        let header = format!("x-t: {long}\r\n");
        assert_eq!(post(&mut client, &query, header.as_bytes(), r#"{"data":["long"]}"#), 200);
        drop(client);
        let count = 2 * REQUESTS.len() as u64 + 1;
        server.wait("all stored", |m| m.sum("millrace_payloads_stored_total") == count);
        server.wait_idle();
        let mut found = folders(&server.stored());
        let long = found.iter().find(|(_, lines)| lines[0] == "\"long\"").unwrap().0.clone();
        found.remove(&long);
        let (h, q) = long.split_once('/').unwrap();
        assert!(h.starts_with("h=yyyyyy") && h.len() == 2 + 128, "{long}");
        assert!(q.starts_with("______") && q.len() == 128, "{long}");
        found.values_mut().for_each(|lines| lines.sort());
        expected.values_mut().for_each(|lines| *lines = sorted(lines));
        assert_eq!(found, expected, "{object}");
        assert_eq!(server.stop().status, 0);
    }
}

#[test]
fn names_of_tokens_are_partitions_wherever_the_token_is() {
    for object in ["payload", "batch"] {
        let dir = Arc::new(tempfile::tempdir().unwrap());
        let tokens = "alpha;name=a\nbeta;name=b\nplain\n";
        std::fs::write(dir.path().join("tokens"), tokens).unwrap();
        let key = format!("{{token|nobody}}/{STAMP}.{{ext}}");
        let server = Server::start_in(
            dir,
            &[("OBJECT", object), ("KEY", &key), ("TOKENS_FILE", "tokens"), ("BATCH_AGE", "100ms")],
        );
        let mut client = server.connect();
        let pad = " ".repeat(100_000);
        for (headers, body) in [
            (&b"authorization: Bearer alpha\r\n"[..], r#"{"data":["a"]}"#.to_owned()),
            (b"x-api-key: beta\r\n", r#"{"token":"alpha","data":["b"]}"#.into()),
            (b"", r#"{"token":"beta","data":["b"]}"#.into()),
            (b"", format!(r#"{{"data":["b"]{pad},"token":"beta"}}"#)),
            (b"", r#"{"token":"plain","data":["nobody"]}"#.into()),
        ] {
            assert_eq!(post(&mut client, "", headers, &body), 200);
        }
        drop(client);
        server.wait("all stored", |m| m.sum("millrace_payloads_stored_total") == 5);
        server.wait_idle();
        let found = folders(&server.stored());
        let names: Vec<(&str, usize)> =
            found.iter().map(|(folder, lines)| (folder.as_str(), lines.len())).collect();
        assert_eq!(names, [("a", 1), ("b", 3), ("nobody", 1)], "{object}");
        assert!(
            found.iter().all(|(f, lines)| lines.iter().all(|line| *line == format!("\"{f}\"")))
        );
        assert!(!server.logged("alpha"), "no log shows a token");
        assert_eq!(server.stop().status, 0);
    }
}

/// Payloads that a killed process left come out under the values of their requests: as single
/// objects under the very same keys, in batches in the partitions of the next process's template,
/// which takes no value for another.
#[test]
fn values_come_back_after_a_crash_and_are_not_mixed_up() {
    let single = format!("h={{header:x-t}}/q={{query:q}}/{STAMP}.json");
    let other = format!("q={{query:x-t}}/h={{header:x-t}}/{STAMP}.json");
    for (object, next) in
        [("payload", &single), ("payload", &other), ("batch", &single), ("batch", &other)]
    {
        let settings = |key: &str, faults: &str| {
            [
                ("OBJECT", object),
                ("KEY", key),
                ("FAULTS", faults),
                ("ACK", "spooled"),
                ("SPOOL_DIR", "spool"),
                ("BATCH_AGE", "50ms"),
                ("MAX_QUEUE", "4"),
            ]
            .map(|(name, text)| (name, text.to_owned()))
        };
        let start = |dir: Option<Arc<tempfile::TempDir>>, settings: &[(&str, String)]| {
            let all: Vec<(&str, &str)> = settings.iter().map(|(n, t)| (*n, t.as_str())).collect();
            Server::start_in(dir.unwrap_or_else(|| Arc::new(tempfile::tempdir().unwrap())), &all)
        };
        let server = start(None, &settings(&single, "transient=1"));
        let mut client = server.connect();
        for number in 0..6 {
            let (query, header) = (format!("?q=q{number}"), format!("x-t: t{number}\r\n"));
            let body = format!(r#"{{"data":["{number}","{number}"]}}"#);
            assert_eq!(post(&mut client, &query, header.as_bytes(), &body), 200);
        }
        assert_eq!(post(&mut client, "", b"", r#"{"data":["none"]}"#), 200);
        server.wait("some are tried", |m| m.sum("millrace_payloads_retried_total") > 0);
        drop(client);
        let stopped = server.kill();
        // One more that dies with them.
        let server = start(Some(stopped.dir), &settings(next, "transient=1"));
        server.wait_logged("took over the spool of");
        let stopped = server.kill();
        let server = start(Some(stopped.dir), &settings(next, ""));
        server.wait_spool_empty();
        let found = folders(&server.stored());
        let mut expected = BTreeMap::<String, Vec<String>>::new();
        // A batch in doubt keeps its key too.
        for (folder, lines) in &found {
            for line in lines {
                let value = line.trim_matches('"');
                let (first, then) = match value {
                    "none" => ("h=unknown/q=unknown".into(), "q=unknown/h=unknown".into()),
                    _ => (format!("h=t{value}/q=q{value}"), format!("q=unknown/h=t{value}")),
                };
                let is_then = object == "batch" && std::ptr::eq(next, &other) && *folder == then;
                assert!(*folder == first || is_then, "{object}: {line} is in {folder}");
                expected.entry(value.to_owned()).or_default().push(folder.clone());
            }
        }
        let counts: Vec<(&str, usize)> =
            expected.iter().map(|(value, folders)| (value.as_str(), folders.len())).collect();
        let every = [("0", 2), ("1", 2), ("2", 2), ("3", 2), ("4", 2), ("5", 2), ("none", 1)];
        assert_eq!(counts, every, "{object}");
        assert_eq!(server.stop().status, 0);
    }
}

#[test]
fn a_replay_of_the_spool_uses_the_values_of_the_requests() {
    let key = format!("h={{header:x-t}}/{{query:q|none}}/{STAMP}.json");
    let settings = [
        ("KEY", key.as_str()),
        ("ACK", "spooled"),
        ("SPOOL_DIR", "spool"),
        ("FAULTS", "late=1"),
        ("META", "header:x-t"),
    ];
    let server = Server::start(&settings);
    let mut client = server.connect();
    for tenant in ["a", "b/c", "größe"] {
        let header = format!("x-t: {tenant}\r\n");
        assert_eq!(post(&mut client, "?q=%C3%A9", header.as_bytes(), r#"{"data":[1,2]}"#), 200);
    }
    drop(client);
    server.wait("all are there, unconfirmed", |m| m.sum("millrace_payloads_retried_total") == 6);
    let before = server.stored();
    let names: Vec<String> = folders(&before).into_keys().collect();
    assert_eq!(names, ["h=a/é", "h=b_c/é", "h=größe/é"]);
    let changed = [("FAULTS", ""), ("KEY", ""), ("META", "")];
    let mut replay = server.command_beside(&["spool", "replay"], &changed);
    let stopped = server.kill();
    let output = replay.output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(stopped.stored() == before, "the same objects under the same keys");
}

/// Payloads that are only in memory at a stop go to the spool or the dead letters, with their keys.
#[test]
fn a_stop_keeps_the_values() {
    let key = format!("{{header:x-t}}/{STAMP}.json");
    let settings = [
        ("KEY", key.as_str()),
        ("SPOOL_DIR", "spool"),
        ("META", "client"),
        ("DRAIN_TIMEOUT", "1s"),
    ];
    let server = Server::start(&[&settings[..], &[("FAULTS", "transient=1")]].concat());
    let mut client = server.connect();
    for tenant in ["a", "b"] {
        let header = format!("x-t: {tenant}\r\n");
        assert_eq!(post(&mut client, "", header.as_bytes(), r#"{"data":[1,2]}"#), 200);
    }
    drop(client);
    let stopped = server.stop();
    let server = Server::start_in(stopped.dir, &settings);
    server.wait_spool_empty();
    let found = folders(&server.stored());
    let text = |n| format!(r#"{{"meta":{{"client":"127.0.0.1"}},"payload":{n}}}"#);
    for tenant in ["a", "b"] {
        assert_eq!(sorted(&found[tenant]), [text(1), text(2)], "{found:?}");
    }
    assert_eq!(found.len(), 2);
    assert_eq!(server.stop().status, 0);
}
