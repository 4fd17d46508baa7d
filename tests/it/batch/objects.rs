//! Batches: goal, with `OBJECT=batch` every payload is one line of one object, byte for byte,
//! however objects are closed, compressed, marked and put; and the metrics say what is there.
//!
//! Method: payloads of every kind and size through every compression, mark, store and client; the
//! objects are decoded strictly (one frame, one member, every line ended) and compared with what
//! was posted, then with each figure.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::store::bulk::payload;
use crate::support::batches::{Batches, Packing, all_lines, batches, in_bucket, s3_settings};
use crate::support::s3::S3Server;
use crate::support::{Server, collection, numbered, sorted, wait_for};

/// Payloads of every kind: most below 1 kB, some of which a few fill the smallest `BATCH_BYTES`.
fn mixed(count: usize, seed: u64) -> Vec<String> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut payloads: Vec<String> = (0..count).map(|id| payload(id, &mut rng)).collect();
    for (id, large) in payloads.iter_mut().step_by(23).enumerate() {
        let random: String = std::iter::repeat_with(|| rng.alphanumeric()).take(30_000).collect();
        *large = format!(r#"{{"large":{id},"text":"{random}"}}"#);
    }
    payloads
}

/// Posts `payloads` in requests of seven.
fn post_all(server: &Server, payloads: &[String]) {
    post_by(server, payloads, 7);
}

/// Posts `payloads` in requests of `each`.
fn post_by(server: &Server, payloads: &[String], each: usize) {
    let mut client = server.connect();
    for some in payloads.chunks(each) {
        let reply = client.post(collection(some));
        assert_eq!(reply.status, 200, "{reply:?}");
    }
}

/// The stores and clients a batch may go through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Via {
    Directory,
    Direct,
    Sdk,
}

/// 290 payloads through one way to make, mark and put objects, closed for size, count and age.
fn round_trip(via: Via, compression: &str, level: &str, mark: &str) {
    let s3 = S3Server::start();
    let url = s3.url();
    let mut settings = match via {
        Via::Directory => vec![],
        Via::Direct | Via::Sdk => s3_settings(&url),
    };
    settings.extend([
        ("S3_CLIENT", if via == Via::Sdk { "sdk" } else { "direct" }),
        ("COMPRESSION", compression),
        ("COMPRESSION_MARK", mark),
        ("BATCH_BYTES", "64KiB"),
        ("BATCH_COUNT", "50"),
        ("BATCH_AGE", "300ms"),
    ]);
    settings.extend((!level.is_empty()).then_some(("COMPRESSION_LEVEL", level)));
    let server = Server::start_batching(&settings);
    let payloads = mixed(290, 5);
    // Each request fills a batch and more, so that one is full however slowly they come.
    post_by(&server, &payloads, 97);
    let read = || if via == Via::Directory { server.stored() } else { in_bucket(&s3) };
    let metrics = server.check_figures(&payloads, read);
    let what = format!("{via:?} {compression}:{level} {mark}");
    let reasons: Vec<&str> = metrics.closed_by_reason().iter().map(|(reason, _)| *reason).collect();
    assert!(reasons.contains(&"age") && reasons.contains(&"size"), "{what}: {reasons:?}");

    let objects = read();
    let seen = headers_by_key(&s3);
    let mut lines = Batches::new();
    for (key, bytes) in &objects {
        let packing = match (mark, seen.get(key)) {
            ("header", Some((coding, _))) => Packing::of_coding(coding.as_deref()),
            _ => Packing::of_key(key),
        };
        let expected = match compression {
            "gzip" => Packing::Gzip,
            "zstd" => Packing::Zstd,
            _ => Packing::Plain,
        };
        assert_eq!(packing, expected, "{what}: {key}");
        if let Some((coding, content_type)) = seen.get(key) {
            let expected = match (mark, compression) {
                (_, "none") => (None, "application/x-ndjson"),
                ("suffix", "gzip") => (None, "application/gzip"),
                ("suffix", _) => (None, "application/zstd"),
                _ => (Some(compression), "application/x-ndjson"),
            };
            assert_eq!((coding.as_deref(), content_type.as_str()), expected, "{what}: {key}");
        } else {
            assert_eq!(via, Via::Directory, "{key} was put");
        }
        assert_eq!(key.ends_with(".ndjson"), mark == "header" || compression == "none", "{key}");
        lines.insert(key.clone(), packing.lines(bytes));
    }
    assert!(all_lines(&lines) == sorted(&payloads), "{what}: each payload once, byte for byte");
    let largest = lines.values().map(Vec::len).max();
    assert!(largest <= Some(50), "{what}: BATCH_COUNT");
    let stopped = server.stop();
    assert_eq!((stopped.status, stopped.stored), (0, 290), "{}", stopped.log_text());
}

/// `content-encoding` and `content-type` of every object below the prefix, by key.
fn headers_by_key(s3: &S3Server) -> BTreeMap<String, (Option<String>, String)> {
    let puts = s3.requests().into_iter().filter(|seen| seen.method == "PUT");
    let told = puts.filter_map(|seen| {
        let key = seen.path.split('?').next()?.strip_prefix("/payloads/in/")?.to_owned();
        let header = |name| seen.header(name).map(str::to_owned);
        Some((key, (header("content-encoding"), header("content-type")?)))
    });
    told.collect()
}

#[test]
fn every_compression_in_a_directory() {
    for (compression, level) in [("none", ""), ("gzip", ""), ("gzip", "1"), ("zstd", "-7")] {
        round_trip(Via::Directory, compression, level, "suffix");
    }
    round_trip(Via::Directory, "zstd", "", "suffix");
}

#[test]
fn every_compression_and_mark_in_a_bucket() {
    for (compression, mark) in
        [("none", "suffix"), ("gzip", "suffix"), ("gzip", "header"), ("zstd", "header")]
    {
        round_trip(Via::Direct, compression, "", mark);
    }
    round_trip(Via::Direct, "zstd", "9", "suffix");
}

#[test]
fn both_clients_put_the_same_objects() {
    for (compression, mark) in [("none", "suffix"), ("gzip", "header"), ("zstd", "suffix")] {
        round_trip(Via::Sdk, compression, "", mark);
    }
}

/// The sums a store checks are those of the object as stored, whoever makes them.
#[test]
fn checksums_are_those_of_the_object() {
    for (client, kind) in
        [("direct", "crc32c"), ("direct", "sha256"), ("direct", "crc64nvme"), ("sdk", "sha256")]
    {
        let s3 = S3Server::start();
        let url = s3.url();
        let mut settings = s3_settings(&url);
        settings.extend([
            ("S3_CLIENT", client),
            ("S3_CHECKSUM", kind),
            ("S3_SIGN_PAYLOAD", "never"),
            ("COMPRESSION", "zstd"),
            ("BATCH_COUNT", "100"),
            ("BATCH_AGE", "200ms"),
        ]);
        let server = Server::start_batching(&settings);
        let payloads = mixed(250, 6);
        post_all(&server, &payloads);
        server.check_figures(&payloads, || in_bucket(&s3));
        assert!(all_lines(&batches(&in_bucket(&s3))) == sorted(&payloads), "{client} {kind}");
        let header = format!("x-amz-checksum-{kind}");
        let puts = s3.requests().into_iter().filter(|seen| seen.path.contains(".ndjson"));
        assert!(puts.map(|put| put.header(&header).map(str::len)).all(|sum| sum.is_some()));
    }
}

#[test]
fn a_batch_is_closed_by_whichever_limit_comes_first() {
    let payload = |id: usize| format!("{id:0100}").replace('0', "1");
    for (limit, reason, objects) in [
        (("BATCH_COUNT", "64"), "count", 10),
        // With its line feed a payload is 101 bytes, so 649 of them.
        (("BATCH_RAW_BYTES", "64KiB"), "raw_size", 0),
        (("BATCH_BYTES", "64KiB"), "size", 0),
    ] {
        let server = Server::start_batching(&[limit, ("BATCH_AGE", "10m")]);
        let payloads: Vec<String> = (0..640).map(payload).collect();
        post_all(&server, &payloads);
        server.wait("all taken in", |m| m.sum("millrace_queue_depth") == 0);
        let metrics = server.metrics();
        let open = u64::from(reason != "count");
        assert_eq!(metrics.sum("millrace_batches_open"), open, "{reason}");
        assert_eq!(metrics.closed(reason), objects, "{reason}");
        // A dozen more, and the limits in bytes are reached as well.
        let more: Vec<String> = (640..652).map(payload).collect();
        post_all(&server, &more);
        let full = objects + u64::from(reason != "count");
        server.wait("a full one is stored", |m| m.sum("millrace_objects_stored_total") == full);
        assert_eq!(server.metrics().closed_by_reason(), [(reason, full)]);
        let each = server.batches().into_values().map(|lines| lines.len());
        let expected = if reason == "count" { vec![64; 10] } else { vec![649] };
        assert_eq!(each.collect::<Vec<_>>(), expected, "{reason}");
        let stopped = server.stop();
        assert_eq!((stopped.status, stopped.accepted, stopped.stored), (0, 652, 652));
        assert!(all_lines(&stopped.batches()) == sorted(&[payloads, more].concat()));
    }
}

#[test]
fn age_counts_from_the_first_payload_and_closes_without_any_more() {
    let server = Server::start_batching(&[("BATCH_AGE", "2s")]);
    let started = Instant::now();
    for id in 0..4 {
        assert_eq!(server.post(collection(&numbered([id]))).status, 200);
        std::thread::sleep(Duration::from_millis(100));
    }
    let open = server.metrics();
    assert_eq!(open.sum("millrace_batches_open"), 1);
    assert!(open.sum("millrace_batch_bytes") > 4_096, "{}", open.0);
    wait_for("the object", || !server.stored().is_empty());
    let took = started.elapsed();
    let least = Duration::from_millis(1_990);
    assert!(took >= least && took < least + Duration::from_secs(10), "{took:?}");
    server.check_figures(&numbered(0..4), || server.stored());
    assert_eq!(server.metrics().closed_by_reason(), [("age", 1)]);
    // An empty core opens nothing.
    std::thread::sleep(Duration::from_millis(2_100));
    assert_eq!(server.metrics().sum("millrace_batches_closed_total"), 1);
}

#[test]
fn raw_line_feeds_between_tokens_go_and_nothing_else_changes() {
    let server = Server::start_batching(&[("BATCH_AGE", "100ms"), ("COMPRESSION", "gzip")]);
    let changed = [
        ("{\r\n  \"a\" : [ 1.50 ,\n\t2 ]\n}", r#"{"a":[1.50,2]}"#),
        ("[\n]", "[]"),
        ("[ \"x \\n \\\" \\\\\" ,\n7 ]", r#"["x \n \" \\",7]"#),
        ("{\"é\":\n1e400}", r#"{"é":1e400}"#),
    ];
    let kept =
        [r#"{ "a" : 1.0,	"b":[ ] }"#, r#""\n\r""#, "-0.0e-7", "123456789012345678901234567890"];
    let posted: Vec<&str> = changed.iter().map(|(raw, _)| *raw).chain(kept).collect();
    assert_eq!(server.post_payloads(&posted).status, 200);
    server.wait("all stored", |m| m.sum("millrace_payloads_stored_total") == 8);
    server.wait_idle();
    let stored = all_lines(&server.batches());
    let expected: Vec<&str> = changed.iter().map(|(_, line)| *line).chain(kept).collect();
    assert_eq!(stored, sorted(&expected));
    for (raw, line) in changed.iter().take(3) {
        let [raw, line] = [raw, line].map(|text| serde_json::from_str::<Value>(text).unwrap());
        assert_eq!(raw, line);
    }
    // Counted as they came, whatever became of them.
    let metrics = server.metrics();
    let bytes: usize = posted.iter().map(|payload| payload.len()).sum();
    assert_eq!(metrics.sum("millrace_bytes_accepted_total"), bytes as u64);
    assert_eq!(metrics.sum("millrace_bytes_stored_total"), bytes as u64);
}

#[test]
fn ratio_puts_and_their_price_are_computed_from_what_was_stored() {
    let server = Server::start_batching(&[
        ("COMPRESSION", "zstd"),
        ("BATCH_COUNT", "500"),
        ("PUT_PRICE", "0.01"),
    ]);
    let payloads: Vec<String> =
        (0..2_000).map(|id| format!(r#"{{"id":{id},"text":"{}"}}"#, "ab ".repeat(50))).collect();
    post_all(&server, &payloads);
    let metrics = server.check_figures(&payloads, || server.stored());
    assert_eq!(metrics.closed_by_reason(), [("count", 4)]);
    let raw = metrics.sum("millrace_batch_raw_size_bytes_sum") as f64;
    let stored = metrics.sum("millrace_batch_stored_size_bytes_sum") as f64;
    let near = |name: &str, expected: f64| {
        let value = metrics.value(name);
        assert!((value / expected - 1.0).abs() < 1e-6, "{name} is {value}, not {expected}");
    };
    near("millrace_batch_compression_ratio", raw / stored);
    assert!(raw / stored > 5.0, "{raw} {stored}");
    near("millrace_puts_per_million_payloads", 2_000.0);
    near("millrace_put_dollars_per_million_payloads", 0.02);
    near("millrace_put_dollars_total", 4e-5);
    let below = |le: &str, name: &str| metrics.sum_where(name, &format!("le=\"{le}\""));
    assert_eq!(below("65536.0", "millrace_batch_raw_size_bytes_bucket"), 0);
    assert_eq!(below("262144.0", "millrace_batch_raw_size_bytes_bucket"), 4);
    assert_eq!(below("16384.0", "millrace_batch_stored_size_bytes_bucket"), 4);
}

#[test]
fn ratio_and_price_are_absent_before_there_is_something_to_tell() {
    let server = Server::start_batching(&[("FAULTS", "transient=1"), ("RETRY_BASE", "10ms")]);
    let names = [
        "millrace_batch_compression_ratio",
        "millrace_puts_per_million_payloads",
        "millrace_put_dollars_per_million_payloads",
    ];
    let told = || {
        let text = server.metrics().0;
        let is_told = |name: &&str| text.lines().any(|line| line.starts_with(&format!("{name} ")));
        names.into_iter().filter(is_told).collect::<Vec<_>>()
    };
    assert_eq!(told(), [""; 0]);
    // Batches have a size before they are stored; what is stored costs, and nothing is yet.
    assert_eq!(server.post_payloads(&["1"]).status, 200);
    server.wait("it is put again", |m| m.sum("millrace_put_retries_total") > 1);
    assert_eq!(told(), names[..1]);
    server.signal("TERM");
}

/// 2,000 tenants through the 256 batches that may be open cost nearly an object for each payload.
#[test]
fn batches_that_are_closed_early_and_small_are_warned_of_with_what_they_cost() {
    let key = ("KEY", "{field:/tenant}/{unix_nanos}-{node}-{core}-{seq}.{ext}");
    let payloads: Vec<String> =
        (0..3_000).map(|id| format!(r#"{{"tenant":{},"id":{id}}}"#, id * 7_919 % 500)).collect();
    for (partitions, warned) in [("64", true), ("512", false)] {
        let server = Server::start_batching(&[
            key,
            ("STORE", "null:"),
            ("CORES", "0"),
            ("MAX_PARTITIONS", partitions),
            ("BATCH_AGE", "1s"),
        ]);
        post_all(&server, &payloads);
        server.wait("all stored", |m| m.sum("millrace_payloads_stored_total") == 3_000);
        if warned {
            server.wait_logged("closed early");
        }
        let log = server.log();
        let said: Vec<String> =
            log.iter().map(ToString::to_string).filter(|l| l.contains("closed early")).collect();
        if !warned {
            assert!(said.is_empty(), "{said:?}");
            continue;
        }
        // One line a minute, from the first closes on: a payload each, as without batches.
        assert_eq!(said.len(), 1, "{said:?}");
        for part in [
            "WARN",
            "because MAX_PARTITIONS=64 were open",
            "1.0 payloads each, so the PUTs of a million payloads cost $5.00",
            "raise MAX_PARTITIONS, and BATCH_MEMORY with it",
        ] {
            assert!(said[0].contains(part), "{part} not in {}", said[0]);
        }
    }
}

#[test]
fn an_ending_written_out_names_the_objects_as_ext_does() {
    let server = Server::start_batching(&[
        ("KEY", "{unix_nanos}-{node}-{core}-{seq}.ndjson.gz"),
        ("COMPRESSION", "gzip"),
        ("BATCH_COUNT", "100"),
    ]);
    let payloads = numbered(0..100);
    post_all(&server, &payloads);
    server.check_figures(&payloads, || server.stored());
    let batches = server.batches();
    assert!(batches.keys().all(|key| key.ends_with(".ndjson.gz")), "{:?}", batches.keys());
    assert!(all_lines(&batches) == sorted(&payloads));
}
