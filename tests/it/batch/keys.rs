//! Keys from templates: goal, an object's key says what the template asks of its payloads, and
//! nothing else; a payload goes into the batch of its partition, and after a crash under the key it
//! would have had, whatever `KEY` says by then.
//!
//! Method: payloads with fields, versions and times of every form into directories and buckets, by
//! themselves and in batches; the keys are worked out again from the payloads found in the objects.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::support::batches::{Packing, all_lines, batches, in_bucket, s3_settings};
use crate::support::needs::up_to_two_cores;
use crate::support::s3::S3Server;
use crate::support::{Server, collection, contents, request, sorted};

const STAMP: &str = "{unix_nanos}-{node}-{core}-{seq}";

/// A payload's tenant as a key has it, worked out from its text.
fn tenant(payload: &str) -> String {
    let value: Value = serde_json::from_str(payload).unwrap();
    match &value["tenant"] {
        Value::String(text) if !text.is_empty() => {
            let safe: String = text
                .chars()
                .map(|char| if char.is_control() || "/\\".contains(char) { '_' } else { char })
                .collect();
            if safe.chars().all(|char| char == '.') { "_".repeat(safe.len()) } else { safe }
        }
        Value::Number(number) => number.to_string(),
        Value::Bool(bool) => bool.to_string(),
        _ => "nobody".to_owned(),
    }
}

/// What clients put where a tenant's name is wanted.
fn tenants() -> Vec<String> {
    let values = [
        r#""acme""#,
        r#""Zoë 日本""#,
        r#""..""#,
        r#""../../etc/passwd""#,
        r#""a\u0000b\nc""#,
        "7",
        "-1.5",
        "true",
        "null",
        r#"{"name":"x"}"#,
        r#""""#,
        r#""a\\b""#,
        r#"".""#,
    ];
    let with = |value: &&str| format!(r#"{{"tenant":{value},"n":1}}"#);
    let mut payloads: Vec<String> = values.iter().map(with).collect();
    payloads.extend([r#"{"n":2}"#.to_owned(), "[]".to_owned(), "17".to_owned()]);
    payloads
}

#[test]
fn payloads_by_themselves_are_put_under_their_fields_in_a_directory_and_a_bucket() {
    let s3 = S3Server::start();
    let url = s3.url();
    let key = format!("t={{field:/tenant|nobody}}/{STAMP}.json");
    for (store, client) in [(false, "direct"), (true, "direct"), (true, "sdk")] {
        let mut settings = if store { s3_settings(&url) } else { vec![] };
        settings.extend([("KEY", key.as_str()), ("NODE_ID", client), ("S3_CLIENT", client)]);
        let server = Server::start(&settings);
        let payloads = tenants();
        assert_eq!(server.post(collection(&payloads)).status, 200);
        server.wait("all stored", |m| m.sum("millrace_payloads_stored_total") == 16);
        server.wait_idle();
        let objects = if store { in_bucket(&s3) } else { server.stored() };
        let mine = format!("-{client}-0-");
        let objects: BTreeMap<_, _> =
            objects.into_iter().filter(|(key, _)| key.contains(&mine)).collect();
        assert_eq!(contents(&objects), sorted(&payloads), "byte for byte");
        for (key, bytes) in &objects {
            let folder = key.rsplit_once('/').unwrap().0;
            let payload = std::str::from_utf8(bytes).unwrap();
            assert_eq!(folder, format!("t={}", tenant(payload)), "{payload}");
        }
    }
}

#[test]
fn batches_hold_one_partition_each() {
    let key = format!("t={{field:/tenant|nobody}}/{STAMP}-{{count}}.{{ext}}");
    let server =
        Server::start_batching(&[("KEY", &key), ("BATCH_AGE", "200ms"), ("COMPRESSION", "zstd")]);
    let payloads: Vec<String> = (0..10).flat_map(|_| tenants()).collect();
    assert_eq!(server.post(collection(&payloads)).status, 200);
    server.check_figures(&payloads, || server.stored());
    let batches = server.batches();
    assert!(all_lines(&batches) == sorted(&payloads));
    let distinct: BTreeSet<String> = payloads.iter().map(|payload| tenant(payload)).collect();
    assert_eq!(batches.len(), distinct.len());
    for (key, lines) in &batches {
        assert!(lines.iter().all(|line| key.starts_with(&format!("t={}/", tenant(line)))), "{key}");
        assert!(key.ends_with(&format!("-{}.ndjson.zst", lines.len())), "{key}");
    }
}

#[test]
fn versions_are_a_partition_and_come_back_after_a_crash() {
    for object in ["payload", "batch"] {
        let ext = if object == "batch" { "{ext}" } else { "json" };
        let key = format!("v={{version}}/{STAMP}.{ext}");
        let settings = [
            ("OBJECT", object),
            ("KEY", &key),
            ("ACK", "spooled"),
            ("SPOOL_DIR", "spool"),
            ("BATCH_AGE", "100ms"),
            ("NODE_ID", "node"),
        ];
        let server = Server::start(&[&settings[..], &[("FAULTS", "transient=1")]].concat());
        for version in ["1.2", "a/b", ""] {
            let body = format!(r#"{{"version":"{version}","data":["v{version}"]}}"#);
            assert_eq!(server.post(body).status, 200);
        }
        assert_eq!(server.post_payloads(&[r#""none""#]).status, 200);
        server.wait("all are tried", |m| m.sum("millrace_payloads_retried_total") == 4);
        let stopped = server.kill();
        let server = Server::start_in(stopped.dir.clone(), &settings);
        server.wait_spool_empty();
        let stored = server.stored().into_iter().map(|(key, bytes)| {
            let folder = key.split_once('/').unwrap().0.to_owned();
            (folder, String::from_utf8(bytes).unwrap().trim_end().to_owned())
        });
        let mut stored: Vec<(String, String)> = stored.collect();
        if object == "batch" {
            // Those without a version share a batch.
            let both = stored.iter_mut().find(|(folder, _)| folder == "v=unknown").unwrap();
            let (first, second) = both.1.split_once('\n').unwrap();
            let (first, second) = (first.to_owned(), second.to_owned());
            both.1 = first;
            stored.push(("v=unknown".to_owned(), second));
        }
        stored.sort();
        let expected = [
            ("v=1.2", r#""v1.2""#),
            ("v=a_b", r#""va/b""#),
            ("v=unknown", r#""none""#),
            ("v=unknown", r#""v""#),
        ];
        let expected = expected.map(|(folder, text)| (folder.to_owned(), text.to_owned()));
        assert_eq!(stored, expected, "{object}");
        assert_eq!(server.stop().status, 0);
    }
}

/// The same time in every form, and where it belongs.
const TIMES: [(&str, &str); 13] = [
    ("1700000000", "2023/11/14/22"),
    ("1700000000.5", "2023/11/14/22"),
    ("1700000000123", "2023/11/14/22"),
    ("1700000000123456", "2023/11/14/22"),
    ("1700000000123456789", "2023/11/14/22"),
    (r#""2023-11-14T22:13:20Z""#, "2023/11/14/22"),
    (r#""2023-11-15T01:13:20.25+03:00""#, "2023/11/14/22"),
    (r#""1709164800""#, "2024/02/29/00"),
    // ISO 8601 as many libraries write it.
    (r#""2023-11-14T22:13:20+0000""#, "2023/11/14/22"),
    (r#""2023-11-15T01:13:20+03""#, "2023/11/14/22"),
    (r#""2023-11-14 22:13:20,5""#, "2023/11/14/22"),
    (r#""20231114T221320.123456789123Z""#, "2023/11/14/22"),
    (r#""2016-12-31T23:59:60z""#, "2016/12/31/23"),
];

#[test]
fn event_times_decide_the_folder_and_unreadable_ones_are_counted() {
    for object in ["payload", "batch"] {
        let key = format!("{{date:%Y/%m/%d}}/{{hour}}/{STAMP}.{{ext}}");
        let server = Server::start(&[
            ("OBJECT", object),
            ("KEY", &key),
            ("EVENT_TIME", "/ts"),
            ("BATCH_AGE", "100ms"),
        ]);
        let with = |(ts, _): &(&str, &str)| format!(r#"{{"ts":{ts}}}"#);
        let mut payloads: Vec<String> = TIMES.iter().map(with).collect();
        let unreadable = [r#"{"ts":"yesterday"}"#, r#"{"ts":null}"#, r#"{"t":1}"#, "[]"];
        payloads.extend(unreadable.map(str::to_owned));
        assert_eq!(server.post(collection(&payloads)).status, 200);
        server.wait("all stored", |m| m.sum("millrace_payloads_stored_total") == 17);
        server.wait_idle();
        let mut found = BTreeMap::new();
        for (key, bytes) in server.stored() {
            let folder = key.rsplit_once('/').unwrap().0.to_owned();
            for line in String::from_utf8(bytes).unwrap().lines() {
                found.insert(line.to_owned(), folder.clone());
            }
        }
        for (payload, (ts, folder)) in payloads.iter().zip(TIMES) {
            assert_eq!(found[payload], folder, "{object}: {ts}");
        }
        for payload in unreadable {
            let year = found[payload].split('/').next().unwrap().parse::<u32>().unwrap();
            assert!(year >= 2025, "{object}: {payload} under the time it came: {}", found[payload]);
        }
        assert_eq!(server.metrics().sum("millrace_event_times_unreadable_total"), 4);
        let stopped = server.stop();
        assert_eq!(stopped.status, 0);
        // One line a minute, with what was there and no word of it.
        let log = stopped.log_text();
        let said: Vec<&str> =
            log.lines().filter(|line| line.contains("EVENT_TIME finds")).collect();
        assert_eq!(said.len(), 1, "{log}");
        assert!(
            said[0].contains("finds the text \\\"aaaaaaaaa\\\", which is neither"),
            "{}",
            said[0]
        );
        assert!(!log.contains("yesterday"), "{log}");
    }
}

#[test]
fn an_unreadable_time_is_counted_once_though_its_payload_waits_for_a_place() {
    let key = format!("{{field:/part}}/{{hour}}/{STAMP}.{{ext}}");
    let server = Server::start_batching(&[
        ("KEY", &key),
        ("EVENT_TIME", "/ts"),
        ("BATCH_AGE", "10m"),
        ("MAX_PARTITIONS", "1"),
    ]);
    let payloads: Vec<String> = (0..20).map(|id| format!(r#"{{"part":{id}}}"#)).collect();
    assert_eq!(server.post(collection(&payloads)).status, 200);
    server.wait("all but one stored", |m| m.sum("millrace_payloads_stored_total") == 19);
    let metrics = server.metrics();
    assert_eq!(metrics.closed_by_reason(), [("partitions", 19)]);
    assert_eq!(metrics.sum("millrace_event_times_unreadable_total"), 20);
}

/// What a killed server has put, or would have put, is put by the next one under the very same key.
#[test]
fn keys_are_those_of_the_process_that_took_the_payload_in() {
    let first = format!("t={{field:/tenant|nobody}}/{{date:%H-%M}}/{{hash:2}}-{STAMP}.json");
    let then = format!("other/{STAMP}.json");
    let settings = |key: &'static str, faults: &'static str| {
        [("KEY", key), ("FAULTS", faults), ("ACK", "spooled"), ("SPOOL_DIR", "spool")]
    };
    let first: &'static str = Box::leak(first.into_boxed_str());
    let then: &'static str = Box::leak(then.into_boxed_str());
    let server = Server::start(&[&settings(first, "late=1")[..], &[("EVENT_TIME", "/n")]].concat());
    let payloads = tenants();
    assert_eq!(server.post(collection(&payloads)).status, 200);
    server.wait("all are there, unconfirmed", |m| m.sum("millrace_payloads_retried_total") == 16);
    let before = server.stored();
    assert_eq!(before.len(), 16);
    let stopped = server.kill();
    // The next one is killed as well, having added some of its own.
    let server = Server::start_in(stopped.dir, &settings(then, "transient=1"));
    assert_eq!(server.post_payloads(&["1", "2"]).status, 200);
    let stopped = server.kill();
    let server = Server::start_in(stopped.dir, &settings("{unix_ms}/{node}/{core}/{seq}", ""));
    server.wait_spool_empty();
    let after = server.stored();
    assert_eq!(after.len(), 18);
    for (key, bytes) in &before {
        assert_eq!(after.get(key), Some(bytes), "{key}");
    }
    let own: Vec<&str> =
        after.keys().map(String::as_str).filter(|key| !before.contains_key(*key)).collect();
    assert!(own.iter().all(|key| key.starts_with("other/")), "{own:?}");
    assert_eq!(server.stop().status, 0);
}

#[test]
fn a_replay_by_hand_puts_payloads_under_the_keys_they_would_have_had() {
    let key = format!("t={{field:/tenant|nobody}}/{STAMP}.json");
    let settings =
        [("KEY", key.as_str()), ("ACK", "spooled"), ("SPOOL_DIR", "spool"), ("FAULTS", "late=1")];
    let server = Server::start(&settings);
    assert_eq!(server.post(collection(&tenants())).status, 200);
    server.wait("all are there, unconfirmed", |m| m.sum("millrace_payloads_retried_total") == 16);
    let before = server.stored();
    let mut replay = server.command_beside(&["spool", "replay"], &[("FAULTS", ""), ("KEY", "")]);
    let stopped = server.kill();
    let output = replay.output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(stopped.stored() == before, "the same objects under the same keys");
}

#[test]
fn hashes_spread_and_are_the_rest_of_the_keys() {
    let key = format!("{{hash:1}}/{STAMP}.{{ext}}");
    let server = Server::start_batching(&[("KEY", &key), ("BATCH_COUNT", "1")]);
    let payloads: Vec<String> = (0..300).map(|id| id.to_string()).collect();
    assert_eq!(server.post(collection(&payloads)).status, 200);
    server.check_figures(&payloads, || server.stored());
    let mut folders = BTreeMap::<String, usize>::new();
    for key in server.stored().into_keys() {
        *folders.entry(key.split('/').next().unwrap().to_owned()).or_default() += 1;
    }
    assert_eq!(folders.len(), 16, "{folders:?}");
    assert!(folders.values().all(|count| *count < 60), "{folders:?}");
    assert!(all_lines(&batches(&server.stored())) == sorted(&payloads));
}

/// Two cores and fixed names: no key is anybody else's, though all batches are opened together.
#[test]
fn no_two_batches_share_a_key_across_cores_and_starts() {
    let cores = up_to_two_cores();
    let key = "{date:%Y}/{unix_ms}/{node}/{core}/{seq}.{ext}";
    let mut dir = None;
    let mut posted = 0;
    for start in 0..3 {
        let settings = [("KEY", key), ("CORES", cores), ("NODE_ID", "n"), ("BATCH_COUNT", "2")];
        let server = match dir.take() {
            None => Server::start_batching(&settings),
            Some(dir) => Server::start_batching_in(dir, &settings),
        };
        for id in 0..40 {
            let some = [format!("{start}"), format!("{id}")];
            let mut client = server.connect();
            client.send(request(collection(&some).as_bytes(), "connection: close\r\n"));
            assert_eq!(client.reply().status, 200);
            posted += 2;
        }
        let stopped = server.stop();
        assert_eq!((stopped.status, stopped.stored), (0, 80));
        let lines = stopped.stored().into_values().map(|b| Packing::Plain.lines(&b).len());
        assert_eq!(lines.sum::<usize>(), posted, "nothing was replaced");
        dir = Some(stopped.dir);
    }
}
