//! The admin listener: goal, metrics that strict readers of both formats take, and health checks that
//! answer whatever the cores are doing.
//!
//! Method: a scrape is read line by line by the rules of its format, and by promtool; health checks are asked while
//! a core is stuck, while the server drains, and while other admin clients hold connections.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::needs::{Need, skip, up_to_two_cores};
use crate::support::{Client, Metrics, Reply, Server, collection, numbered, request, wait_for};

/// One sample line.
struct Sample<'a> {
    name: &'a str,
    labels: BTreeMap<&'a str, &'a str>,
    value: f64,
}

/// `name{label="value",…} number`; none of this server's label values holds a quote or a comma.
fn sample(line: &str) -> Sample<'_> {
    let (series, value) = line.rsplit_once(' ').expect(line);
    if !series.contains('{') {
        let value = value.parse().expect(line);
        return Sample { name: series, labels: BTreeMap::new(), value };
    }
    let (name, labels) = series.strip_suffix('}').expect(line).split_once('{').expect(line);
    let labels = labels.split(',').map(|label| {
        let (name, value) = label.split_once('=').expect(line);
        (name, value.strip_prefix('"').and_then(|v| v.strip_suffix('"')).expect(line))
    });
    Sample { name, labels: labels.collect(), value: value.parse().expect(line) }
}

/// Series without a core.
const OF_THE_PROCESS: [&str; 34] = [
    "millrace_build_info",
    "millrace_dead_letters",
    "millrace_dead_letters_failing",
    "millrace_dead_letter_directory_bytes_limit",
    "millrace_dead_letters_uncounted_bytes",
    "millrace_disk_free_bytes",
    "millrace_disk_silent_seconds",
    "millrace_disk_size_bytes",
    "millrace_tokens_limit",
    "millrace_request_bytes_limit",
    "millrace_memory_needed_bytes",
    "millrace_address_space_needed_bytes",
    "millrace_locked_memory_needed_bytes",
    "millrace_fds_needed",
    "millrace_threads_needed",
    "millrace_file_needed_bytes",
    "millrace_tap_watchers",
    "millrace_tap_watchers_limit",
    "millrace_tap_lines",
    "millrace_tap_lines_limit",
    "millrace_tap_samples_total",
    "millrace_tap_samples_dropped_total",
    "millrace_tls_certificate_expiry_timestamp_seconds",
    "millrace_tls_reload_failing",
    "millrace_tls_reload_failures_total",
    "millrace_tokens",
    "millrace_tokens_reload_failures_total",
    "millrace_tokens_reload_failing",
    "millrace_log_lines_dropped_total",
    "millrace_dead_letter_directory_bytes",
    "millrace_batch_compression_ratio",
    "millrace_puts_per_million_payloads",
    "millrace_put_dollars_per_million_payloads",
    "millrace_put_dollars_total",
];

/// Counters that do not count things.
const NOT_WHOLE: [&str; 2] = ["millrace_put_dollars_total", "process_cpu_seconds_total"];

/// Checks `text` against OpenMetrics 1.0, as far as counters, gauges and histograms go, and gives
/// the families' types.
fn check_open_metrics(text: &str) -> BTreeMap<&str, &str> {
    let text = text.strip_suffix("# EOF\n").expect("ends with # EOF");
    let mut types: BTreeMap<&str, &str> = BTreeMap::new();
    let (mut family, mut seen) = ("", BTreeSet::new());
    let mut histograms: BTreeMap<(&str, &str), Vec<(f64, f64)>> = BTreeMap::new();
    let mut counts = BTreeMap::new();
    for line in text.lines() {
        if let Some(meta) = line.strip_prefix("# ") {
            let mut words = meta.splitn(3, ' ');
            let mut word = || words.next().unwrap_or_else(|| panic!("cut: {line}"));
            let (kind, name, rest) = (word(), word(), word());
            if name != family {
                assert!(!types.contains_key(name), "families must not interleave: {line}");
                family = name;
            }
            match kind {
                "HELP" => assert!(rest.ends_with(|c: char| c.is_alphanumeric() || c == ')')),
                "TYPE" => assert_eq!(types.insert(name, rest), None, "{line}"),
                "UNIT" => assert!(name.ends_with(&format!("_{rest}")), "{line}"),
                _ => panic!("unknown: {line}"),
            }
            continue;
        }
        let Sample { name, labels, value } = sample(line);
        let kind = types[family];
        let suffix = name.strip_prefix(family).unwrap_or_else(|| panic!("undeclared: {line}"));
        assert!(seen.insert(line.rsplit_once(' ').unwrap().0), "twice: {line}");
        let of_process = name.starts_with("process_") || OF_THE_PROCESS.contains(&name);
        assert!(name.starts_with("millrace_") || name.starts_with("process_"), "{line}");
        assert_eq!(labels.contains_key("core"), !of_process, "{line}");
        match (kind, suffix) {
            ("counter", "_total") if NOT_WHOLE.contains(&name) => {
                assert!(value >= 0.0, "{line}");
            }
            ("counter", "_total") => assert!(value >= 0.0 && value.fract() == 0.0, "{line}"),
            ("gauge", "") | ("histogram", "_sum") => {}
            ("histogram", "_bucket") => {
                let bound = labels["le"].parse().expect(line);
                histograms.entry((family, labels["core"])).or_default().push((bound, value));
            }
            ("histogram", "_count") => {
                counts.insert((family, labels["core"]), value);
            }
            _ => panic!("a {kind} has no {suffix:?}: {line}"),
        }
    }
    for (series, buckets) in &histograms {
        let ascending = |(a, b): (&(f64, f64), &(f64, f64))| a.0 < b.0 && a.1 <= b.1;
        assert!(buckets.iter().zip(&buckets[1..]).all(ascending), "{series:?} {buckets:?}");
        let last = buckets.last().unwrap();
        assert_eq!((last.0, Some(&last.1)), (f64::INFINITY, counts.get(series)), "{series:?}");
    }
    assert_eq!(histograms.len(), counts.len());
    types
}

/// What Prometheus sends, …
const OPEN_METRICS: &str =
    "application/openmetrics-text;version=1.0.0;q=0.6,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
/// … and what older scrapers do.
const CLASSIC: &str = "text/plain;version=0.0.4";

fn scrape(server: &Server, accept: &str) -> Reply {
    let mut client = Client::connect(server.admin);
    client.send(format!("GET /metrics HTTP/1.1\r\nhost: x\r\naccept: {accept}\r\n\r\n"));
    let reply = client.reply();
    let kind = match accept {
        OPEN_METRICS => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        _ => "text/plain; version=0.0.4; charset=utf-8",
    };
    assert_eq!((reply.status, reply.header("content-type")), (200, Some(kind)), "{accept}");
    assert_eq!(reply.header("vary"), Some("accept"));
    reply
}

/// Checks `text` against the classic text format 0.0.4, as far as it differs from OpenMetrics: every
/// family has one HELP and one TYPE, in this order, under the name of its samples, and nothing else
/// begins with `#`.
fn check_classic(text: &str) -> BTreeMap<&str, &str> {
    assert!(text.ends_with('\n') && !text.contains("\r"));
    let mut types = BTreeMap::new();
    let (mut helped, mut family) = (BTreeSet::new(), "");
    for line in text.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (name, help) = help.split_once(' ').expect(line);
            assert!(helped.insert(name) && !help.is_empty(), "{line}");
            family = name;
        } else if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').expect(line);
            assert_eq!(name, family, "TYPE follows its HELP");
            assert_eq!(types.insert(name, kind), None, "{line}");
        } else {
            assert!(!line.starts_with('#'), "{line}");
            let suffix = sample(line).name.strip_prefix(family).expect(line);
            let allowed: &[&str] = match types[family] {
                "histogram" => &["_bucket", "_sum", "_count"],
                "counter" | "gauge" => &[""],
                kind => panic!("{kind}: {line}"),
            };
            assert!(allowed.contains(&suffix), "{line}");
        }
    }
    assert!(types.iter().all(|(name, kind)| name.ends_with("_total") == (*kind == "counter")));
    types
}

#[test]
fn whoever_does_not_ask_for_open_metrics_gets_classic_text_with_the_same_in_it() {
    let server = Server::start(&[("OBJECT", "batch"), ("SPOOL_DIR", "spool")]);
    assert_eq!(server.post(collection(&numbered(0..5))).status, 200);
    assert_eq!(server.post("no json").status, 400);
    server.wait_idle();
    let open_metrics = scrape(&server, OPEN_METRICS).body;
    for accept in [CLASSIC, "*/*", "text/html", "application/openmetrics-text;q=0"] {
        let text = scrape(&server, accept).body;
        let types = check_classic(&text);
        let declared = check_open_metrics(&open_metrics).into_iter().map(|(name, kind)| {
            let total = if kind == "counter" { "_total" } else { "" };
            (format!("{name}{total}"), kind.to_owned())
        });
        let declared: BTreeMap<String, String> = declared.collect();
        let types: BTreeMap<String, String> =
            types.into_iter().map(|(name, kind)| (name.to_owned(), kind.to_owned())).collect();
        assert_eq!(types, declared);
        let series = |text: &str| -> Vec<String> {
            let samples = text.lines().filter(|line| !line.starts_with('#'));
            samples.map(|line| line.rsplit_once(' ').unwrap().0.to_owned()).collect()
        };
        assert_eq!(series(&text), series(&open_metrics), "{accept}");
    }
    assert_eq!(server.admin("/metrics").header("content-type"), {
        Some("text/plain; version=0.0.4; charset=utf-8")
    });
}

#[test]
fn promtool_has_nothing_to_say() {
    let there = Command::new("promtool").arg("--version").output();
    if there.is_err() {
        return skip(Need::Promtool, "there is no promtool (Debian: prometheus)");
    }
    for settings in [&[][..], &[("OBJECT", "batch"), ("SPOOL_DIR", "spool")]] {
        let server = Server::start(settings);
        assert_eq!(server.post(collection(&numbered(0..5))).status, 200);
        assert_eq!(server.post("no json").status, 400);
        server.wait_idle();
        let text = scrape(&server, CLASSIC).body;
        let mut promtool = Command::new("promtool")
            .args(["check", "metrics"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        promtool.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        let output = promtool.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert_eq!((output.status.code(), said.as_str()), (Some(0), ""), "{text}");
    }
}

#[test]
fn metrics_are_valid_open_metrics_with_every_stage_in_them() {
    let server = Server::start(&[
        ("CORES", up_to_two_cores()),
        ("FAULTS", "seed=9,transient=0.2,object=0.1"),
        ("RETRY_BASE", "1ms"),
    ]);
    for ids in numbered(0..50).chunks(5) {
        assert_eq!(server.post(collection(ids)).status, 200);
    }
    assert_eq!(server.post("no json").status, 400);
    server.wait_idle();
    let reply = scrape(&server, OPEN_METRICS);
    let types = check_open_metrics(&reply.body);
    for (name, kind) in [
        ("requests", "counter"),
        ("payloads_accepted", "counter"),
        ("bytes_accepted", "counter"),
        ("payloads_stored", "counter"),
        ("bytes_stored", "counter"),
        ("put_retries", "counter"),
        ("payloads_retried", "counter"),
        ("bytes_retried", "counter"),
        ("payloads_dead_lettered", "counter"),
        ("bytes_dead_lettered", "counter"),
        ("payloads_lost", "counter"),
        ("bytes_lost", "counter"),
        ("dead_letter_directory_bytes", "gauge"),
        ("objects_stored", "counter"),
        ("object_bytes_stored", "counter"),
        ("batches_closed", "counter"),
        ("batch_stored_size_bytes", "histogram"),
        ("batch_raw_size_bytes", "histogram"),
        ("batch_compression_ratio", "gauge"),
        ("puts_per_million_payloads", "gauge"),
        ("put_dollars", "counter"),
        ("queue_depth", "gauge"),
        ("queue_bytes", "gauge"),
        ("connections", "gauge"),
        ("workers_busy", "gauge"),
        ("request_latency_seconds", "histogram"),
        ("put_latency_seconds", "histogram"),
    ] {
        assert_eq!(types.get(format!("millrace_{name}").as_str()), Some(&kind), "{name}");
    }
    let metrics = Metrics(reply.body);
    assert_eq!((metrics.requests(200), metrics.requests(400)), (10, 1));
    let (accepted, stored, dead) = (
        metrics.sum("millrace_payloads_accepted_total"),
        metrics.sum("millrace_payloads_stored_total"),
        metrics.sum("millrace_payloads_dead_lettered_total"),
    );
    assert_eq!((accepted, stored + dead), (50, 50));
    // `{"id":0}` to `{"id":49}`.
    let bytes = |of: &str| metrics.sum(&format!("millrace_bytes_{of}_total"));
    assert_eq!(bytes("accepted"), 10 * 8 + 40 * 9);
    assert_eq!(bytes("stored") + bytes("dead_lettered"), bytes("accepted"));
    let buried: usize = server.dead_letters().iter().map(|(_, payload)| payload.len()).sum();
    assert_eq!((bytes("dead_lettered"), bytes("lost")), (buried as u64, 0));
    let retried = metrics.sum("millrace_payloads_retried_total");
    assert!(retried > 0 && retried <= metrics.sum("millrace_put_retries_total"));
    assert!((8 * retried..=9 * retried).contains(&bytes("retried")));
    let held: u64 = std::fs::read_dir(server.path("dead-letter"))
        .unwrap()
        .map(|entry| entry.unwrap().metadata().unwrap().len())
        .sum();
    let line = format!("millrace_dead_letter_directory_bytes {held}");
    assert!(metrics.0.lines().any(|l| l == line), "{line}\n{}", metrics.0);
    assert_eq!(metrics.sum("millrace_request_latency_seconds_count"), 11);
    let puts = metrics.sum("millrace_put_latency_seconds_count");
    assert_eq!(puts, 50 + metrics.sum("millrace_put_retries_total"));
}

#[test]
fn paths_and_methods() {
    let server = Server::start(&[]);
    let health = server.admin("/healthz");
    assert_eq!((health.status, health.body.as_str()), (200, "ok\n"));
    assert_eq!(health.header("content-type"), Some("text/plain; charset=utf-8"));
    assert_eq!(server.wait_ready(200), "ready\n");
    assert_eq!(server.admin("/index.html").status, 404);
    assert_eq!(server.admin("/payloads").status, 404);
    assert_eq!(server.admin("/healthz?verbose").status, 200);
    for method in ["POST", "PUT", "DELETE"] {
        let mut client = Client::connect(server.admin);
        client.send(format!("{method} /metrics HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n"));
        let reply = client.reply();
        assert_eq!((reply.status, reply.header("allow")), (405, Some("GET, HEAD")));
    }
    // A HEAD has the headers of a GET and no body.
    let mut client = Client::connect(server.admin);
    client.send("HEAD /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    let mut text = String::new();
    client.stream.read_to_string(&mut text).unwrap();
    assert!(text.starts_with("HTTP/1.1 200 OK\r\n") && text.ends_with("\r\n\r\n"), "{text}");
    assert_eq!(Client::connect(server.ingest).post(r#"{"data":[]}"#).status, 200);
}

#[test]
fn a_stuck_core_does_not_keep_the_admin_pages_from_answering() {
    let server = Server::start(&[("FAULTS", "core_stuck=1"), ("DRAIN_TIMEOUT", "1m")]);
    let mut client = server.connect();
    client.send(request(br#"{"data":[1]}"#, ""));
    wait_for("the core to be stuck", || server.logged("this core is stuck"));
    let mut other = server.connect();
    other.send("GET /nothing HTTP/1.1\r\nhost: localhost\r\n\r\n");
    let asked = Instant::now();
    assert_eq!(server.admin("/healthz").status, 200);
    assert_eq!(server.admin("/readyz").status, 200);
    check_open_metrics(&scrape(&server, OPEN_METRICS).body);
    server.signal("TERM");
    server.wait_ready(503);
    let answered = asked.elapsed();
    // The core was stuck all the while: the other connection has no answer yet.
    other.stream.set_nonblocking(true).unwrap();
    let nothing = other.stream.peek(&mut [0]).unwrap_err();
    assert_eq!(nothing.kind(), ErrorKind::WouldBlock, "asked for {answered:?}");
    other.stream.set_nonblocking(false).unwrap();
    assert_eq!((client.reply().status, other.reply().status), (200, 404));
    drop((client, other));
    assert_eq!(server.wait_stopped().status, 0);
}

#[test]
fn a_core_that_does_not_run_is_seen_and_seen_to_run_again() {
    let server = Server::start(&[
        ("FAULTS", "core_stuck=1,stuck_for=9s"),
        ("INGEST_HEALTH", "on"),
        ("STORE", "null:"),
    ]);
    assert_eq!(server.wait_ready(200), "ready\n");
    let mut client = server.connect();
    client.send(request(br#"{"data":[1]}"#, ""));
    wait_for("the core to be stuck", || server.logged("this core is stuck"));
    let said = server.wait_ready(503);
    for part in ["core 0 has not run for ", "`millrace debug bundle`, then restart the server"] {
        assert!(said.contains(part), "{part} in {said}");
    }
    assert!(server.metrics().sum("millrace_core_silent_seconds") >= 5);
    assert!(server.logged("a core has not run for 5s"));
    assert_eq!(client.reply().status, 200);
    assert_eq!(server.wait_ready(200), "ready\n");
    server.wait("it runs", |metrics| metrics.sum("millrace_core_silent_seconds") == 0);
    server.wait_logged("a core runs again after");
    drop(client);
    assert_eq!(server.stop().status, 0);
}

#[test]
fn ready_says_no_while_draining_and_health_says_yes() {
    let server = Server::start(&[("DRAIN_TIMEOUT", "20s")]);
    let held = server.connect();
    server.wait("it is open", |m| m.sum("millrace_connections") == 1);
    server.signal("TERM");
    let reasons = server.wait_ready(503);
    assert!(reasons.contains("stopping"), "{reasons}");
    assert_eq!(server.admin("/healthz").status, 200);
    check_open_metrics(&scrape(&server, OPEN_METRICS).body);
    drop(held);
    assert_eq!(server.wait_stopped().status, 0);
}

/// Whatever is asked and whoever asks: no browser may take an answer for what it is not.
#[test]
fn every_answer_says_that_its_type_is_not_to_be_guessed() {
    const TOKEN: &str = "0123456789abcdef";
    let bearer = format!("authorization: Bearer {TOKEN}\r\n");
    let paths = [
        "/",
        "/metrics",
        "/healthz",
        "/readyz",
        "/peers",
        "/settings",
        "/logs",
        "/tap",
        "/nothing",
        "/peers?by=nothing",
        "/peers?top=x",
        "/tap?rate=0",
        "/favicon.ico",
        "//",
    ];
    for settings in [&[("TAP", "on")][..], &[], &[("TAP", "on"), ("ADMIN_TOKEN", TOKEN)]] {
        let server = Server::start(settings);
        let mut statuses = BTreeSet::new();
        for (method, path) in ["GET", "HEAD", "POST", "OPTIONS"]
            .into_iter()
            .flat_map(|method| paths.iter().map(move |path| (method, *path)))
        {
            for headers in ["", bearer.as_str(), "authorization: Bearer wrong-wrong-wrong\r\n"] {
                let mut client = Client::connect(server.admin);
                let host = if headers.is_empty() { "host.example" } else { "localhost" };
                client.send(format!("{method} {path} HTTP/1.1\r\nhost: {host}\r\n{headers}\r\n"));
                // The head alone: /tap has no end.
                let mut head = Vec::new();
                let mut byte = [0];
                while !head.ends_with(b"\r\n\r\n") && client.stream.read(&mut byte).unwrap() == 1 {
                    head.push(byte[0]);
                }
                let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
                let case = format!("{method} {path} {headers}: {head}");
                assert!(head.contains("\r\nx-content-type-options: nosniff\r\n"), "{case}");
                assert!(head.contains("\r\ncontent-type: "), "{case}");
                statuses.insert(head[9..12].to_owned());
            }
        }
        let expected: &[&str] = match settings.len() {
            2 => &["200", "400", "401", "404", "405"],
            1 => &["200", "400", "403", "404", "405"],
            _ => &["200", "400", "403", "404", "405"],
        };
        assert_eq!(statuses.iter().map(String::as_str).collect::<Vec<_>>(), expected);
        assert_eq!(server.stop().status, 0);
    }
}

/// A `HEAD` has the status and the headers of a `GET`.
#[test]
fn a_head_of_the_tap_says_whether_it_could_be_read() {
    for (settings, path, status, kind) in [
        (&[("TAP", "on")][..], "/tap", 200, "application/x-ndjson"),
        (&[("TAP", "on")], "/tap?rate=0", 400, "text/plain; charset=utf-8"),
        (&[], "/tap", 404, "text/plain; charset=utf-8"),
    ] {
        let server = Server::start(settings);
        let mut client = Client::connect(server.admin);
        client.send(format!("HEAD {path} HTTP/1.1\r\nhost: localhost\r\n\r\n"));
        let reply = client.bodiless_reply();
        assert_eq!((reply.status, reply.header("content-type")), (status, Some(kind)), "{path}");
        assert_eq!(server.metrics().sum("millrace_tap_watchers"), 0);
    }
}

#[test]
fn off_means_no_listener() {
    let server = Server::start(&[("ADMIN_LISTEN", "off")]);
    let summary = server.log().into_iter().find(|line| line.get("listen").is_some()).unwrap();
    assert_eq!(summary["admin"], "off");
    assert_eq!(server.post_payloads(&["1"]).status, 200);
    // The one listening socket of this process is the ingest's.
    let sockets = std::fs::read_dir(format!("/proc/{}/fd", server.pid())).unwrap();
    let inodes: BTreeSet<String> = sockets
        .filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok())
        .filter_map(|link| {
            let link = link.to_str()?.to_owned();
            Some(link.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned())
        })
        .collect();
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let listening = table.lines().skip(1).filter(|line| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        columns[3] == "0A" && inodes.contains(columns[9])
    });
    assert_eq!(listening.count(), 1);
    assert_eq!(server.stop().status, 0);
}

#[test]
fn held_connections_do_not_keep_health_checks_waiting() {
    let server = Server::start(&[]);
    let mut slow = Client::connect(server.admin);
    slow.send("GET /metr");
    let mut kept = Client::connect(server.admin);
    kept.send("GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n");
    assert_eq!(kept.reply().status, 200);
    let mut held: Vec<Client> = (0..62).map(|_| Client::connect(server.admin)).collect();
    kept.send("GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n");
    assert_eq!(kept.reply().status, 200);
    // Every place is taken. Whoever comes now takes that of the one that has been idle for longest.
    let asked = Instant::now();
    assert_eq!(server.admin("/healthz").status, 200);
    assert!(asked.elapsed() < Duration::from_secs(4), "{:?}", asked.elapsed());
    assert!(slow.closed(), "the first to go");
    kept.send("GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n");
    assert_eq!(kept.reply().status, 200, "it has asked since");
    // Also when twice as many come.
    let more: Vec<TcpStream> =
        (0..128).map(|_| TcpStream::connect(server.admin).unwrap()).collect();
    let asked = Instant::now();
    assert_eq!(server.admin("/healthz").status, 200);
    assert!(asked.elapsed() < Duration::from_secs(4), "{:?}", asked.elapsed());
    assert!(held.iter_mut().all(Client::closed));
    // Payloads never depend on this listener.
    assert_eq!(server.post_payloads(&["1"]).status, 200);
    drop(more);
}

#[test]
fn admin_connections_that_ask_nothing_are_closed() {
    let server = Server::start(&[]);
    let mut kept = Client::connect(server.admin);
    kept.send("GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n");
    assert_eq!(kept.reply().status, 200);
    let opened = Instant::now();
    let (mut silent, mut slow) = (Client::connect(server.admin), Client::connect(server.admin));
    slow.send("GET /metr");
    assert!(silent.closed() && slow.closed());
    let held = opened.elapsed();
    assert!((4..60).contains(&held.as_secs()), "{held:?}");
    kept.send("GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n");
    assert_eq!(kept.reply().status, 200, "a scraper comes back every fifteen seconds or so");
}
