//! `monitoring/`: goal, rules and a dashboard that work as they are, on what this server shows.
//!
//! Method: promtool checks the rules and runs their tests; the files are compared with a scrape and
//! with the documents; and a Prometheus with the rules scrapes three servers (a busy one, one whose
//! store fails while its spool fills, one whose store refuses every object) and answers every query
//! of the dashboard.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;

use crate::support::front::free_address;
use crate::support::needs::{Need, skip};
use crate::support::tls::{Authority, HOST};
use crate::support::{Metrics, SPOOLED, Server, collection, numbered, request, wait_within};

fn file(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn text(path: &str) -> String {
    fs::read_to_string(file(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Whether `program` of Debian's package prometheus can be run.
fn is_there(program: &str, need: Need) -> bool {
    let there = Command::new(program).arg("--version").output().is_ok();
    if !there {
        skip(need, format!("there is no {program} (Debian: prometheus)"));
    }
    there
}

fn promtool(args: &[&str]) -> String {
    let output =
        Command::new("promtool").args(args).current_dir(file("monitoring")).output().unwrap();
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert_eq!(output.status.code(), Some(0), "{said}");
    said
}

#[test]
fn promtool_accepts_the_rules_and_their_tests() {
    if !is_there("promtool", Need::Promtool) {
        return;
    }
    let said = promtool(&["check", "rules", "records.yml", "alerts.yml"]);
    assert_eq!(said.matches("SUCCESS").count(), 2, "{said}");
    let said = promtool(&["test", "rules", "tests/records.yml", "tests/alerts.yml"]);
    assert_eq!(said.matches("SUCCESS").count(), 2, "{said}");
}

/// The values of this key in a YAML file, each on a line of its own.
fn values<'a>(yaml: &'a str, key: &str) -> Vec<&'a str> {
    let value = |line: &'a str| {
        let line = line.trim_start();
        line.strip_prefix("- ").unwrap_or(line).strip_prefix(key)?.strip_prefix(": ")
    };
    yaml.lines().filter_map(value).map(|value| value.trim().trim_matches(['\'', '"'])).collect()
}

/// The names of metrics, recorded ones included, in `text`.
fn metrics_in(text: &str) -> BTreeSet<&str> {
    let is_of_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    let names = text.split(|c| !is_of_name(c));
    let names = names.map(|name| name.trim_end_matches(':'));
    names
        .filter(|name| {
            name.starts_with("millrace_")
                || name.starts_with("process_")
                || name.contains(":millrace_")
        })
        .collect()
}

/// Comments cut out.
fn code(yaml: &str) -> String {
    let lines = yaml.lines().filter(|line| !line.trim_start().starts_with('#'));
    lines.collect::<Vec<_>>().join("\n")
}

fn dashboard() -> Value {
    serde_json::from_str(&text("monitoring/dashboard.json")).unwrap()
}

/// Title of the panel and query, of every target of the dashboard, of its annotations, and of its
/// variables.
fn queries(dashboard: &Value) -> Vec<(String, String)> {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let mut found = Vec::new();
    for panel in list(&dashboard["panels"]) {
        let title = panel["title"].as_str().unwrap();
        for target in list(&panel["targets"]) {
            found.push((title.to_owned(), target["expr"].as_str().unwrap().to_owned()));
        }
    }
    for annotation in list(&dashboard["annotations"]["list"]) {
        if let Some(expr) = annotation["expr"].as_str() {
            found.push((annotation["name"].as_str().unwrap().to_owned(), expr.to_owned()));
        }
    }
    found
}

#[test]
fn every_metric_of_rules_and_dashboard_is_one_of_this_server() {
    let server = Server::start(&[]);
    let scrape = server.metrics().0;
    let mut known: BTreeSet<String> = BTreeSet::new();
    for declared in scrape.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let (name, kind) = declared.split_once(' ').unwrap();
        let suffixes: &[&str] =
            if kind == "histogram" { &["_bucket", "_sum", "_count"] } else { &[""] };
        known.extend(suffixes.iter().map(|suffix| format!("{name}{suffix}")));
    }
    let records = text("monitoring/records.yml");
    let recorded = values(&records, "record");
    assert!(recorded.len() > 30, "{recorded:?}");
    known.extend(recorded.iter().map(|name| (*name).to_owned()));
    // Queries, and what texts name: a family without its suffix.
    let exprs: Vec<String> = queries(&dashboard()).into_iter().map(|(_, expr)| expr).collect();
    let alerts = text("monitoring/alerts.yml");
    let (mut seen, mut unknown) = (0, Vec::new());
    for (place, text) in
        [("records", code(&records)), ("alerts", code(&alerts)), ("dashboard", exprs.join("\n"))]
    {
        for name in metrics_in(&text) {
            seen += 1;
            if !known.contains(name) {
                unknown.push(format!("{place}: {name}"));
            }
        }
    }
    assert!(unknown.is_empty(), "{unknown:#?}");
    assert!(seen > 150, "{seen}");
}

/// Every limit stands beside what it bounds, under its name and `_limit`. Two are called otherwise, and
/// one has no figure beside it.
#[test]
fn every_limit_has_its_use_beside_it() {
    let server = Server::start(&[]);
    let metrics = server.metrics();
    let gauges: BTreeSet<&str> = metrics.gauges().into_iter().collect();
    let limits: Vec<&str> = gauges.iter().filter_map(|name| name.strip_suffix("_limit")).collect();
    assert!(limits.len() > 12, "{limits:?}");
    for of in limits {
        let alone = ["millrace_puts", "millrace_tls_handshakes", "millrace_request_bytes"];
        let alone = alone.contains(&of);
        assert!(gauges.contains(of) != alone, "{of}");
    }
    for (limit, value) in [
        ("connections", None),
        ("workers_busy", Some(32)),
        ("queue_depth", Some(10_000)),
        ("queue_bytes", Some(64 << 20)),
        ("batches_open", Some(0)),
        ("spool_disk_bytes", Some(0)),
        ("spool_pending_bytes", Some(0)),
        ("dead_letter_directory_bytes", None),
        ("request_bytes", Some(1 << 20)),
    ] {
        let found = metrics.sum(&format!("millrace_{limit}_limit"));
        assert!(value.map_or(found > 0, |value| found == value), "{limit}: {found}");
    }
    let server = Server::start(&[
        ("OBJECT", "batch"),
        ("MAX_PARTITIONS", "7"),
        ("MAX_WORKERS", "3"),
        ("SPOOL_DIR", "spool"),
        ("SPOOL_MAX", "200MiB"),
        ("SPOOL_PENDING", "5MiB"),
    ]);
    let metrics = server.metrics();
    for (limit, value) in [
        ("batches_open", 7),
        ("workers_busy", 3),
        ("spool_disk_bytes", 200 << 20),
        ("spool_pending_bytes", 5 << 20),
    ] {
        assert_eq!(metrics.sum(&format!("millrace_{limit}_limit")), value, "{limit}");
    }
}

#[test]
fn every_alert_says_what_to_do_and_is_tested() {
    let (alerts, tests) = (text("monitoring/alerts.yml"), text("monitoring/tests/alerts.yml"));
    let troubleshooting = text("docs/troubleshooting.md");
    let mut blocks = alerts.split("\n      - alert: ");
    blocks.next();
    let (mut names, mut severities) = (BTreeSet::new(), BTreeSet::new());
    for block in blocks {
        let name = block.lines().next().unwrap();
        assert!(names.insert(name), "{name} is there twice");
        for key in ["summary", "description", "runbook_url"] {
            assert_eq!(values(block, key).len(), 1, "{name}: {key}");
        }
        assert!(values(block, "description")[0].len() > 60, "{name}");
        severities.extend(values(block, "labels"));
        let runbook = format!("docs/troubleshooting.md#{}", name.to_lowercase());
        assert_eq!(values(block, "runbook_url"), [runbook.as_str()]);
        assert!(troubleshooting.contains(&format!("\n### {name}\n")), "no heading {name}");
        assert!(tests.contains(&format!("  - name: {name}\n")), "{name} is not tested");
        let fires = format!("exp_samples: [{{labels: '{{alertname=\"{name}\"}}', value: 1}}]");
        assert!(tests.contains(&fires), "{name}: no test sees it fire");
    }
    assert!(names.len() > 20, "{names:?}");
    assert_eq!(severities, BTreeSet::from(["{severity: page}", "{severity: ticket}"]));
    let headings = troubleshooting.lines().filter_map(|line| line.strip_prefix("### Millrace"));
    for heading in headings {
        assert!(names.contains(format!("Millrace{heading}").as_str()), "no alert {heading}");
    }
    // A server that lacks a metric fires nothing either, and would prove nothing.
    let (_, healthy) = tests.split_once("- name: healthy").unwrap();
    let (healthy, _) = healthy.split_once("promql_expr_test").unwrap();
    let (healthy, records) = (metrics_in(healthy), text("monitoring/records.yml"));
    let exprs = without_texts(&code(&alerts)) + &code(&records);
    let looked_at = metrics_in(&exprs);
    let lacking: Vec<_> =
        looked_at.iter().filter(|name| !name.contains(':') && !healthy.contains(*name)).collect();
    assert!(lacking.is_empty(), "the healthy server has no {lacking:#?}");
}

/// Without what alerts say to people.
fn without_texts(alerts: &str) -> String {
    let is_text = |line: &&str| {
        let line = line.trim_start();
        line.starts_with("summary: ") || line.starts_with("description: ")
    };
    let lines: Vec<&str> = alerts.lines().filter(|line| !is_text(line)).collect();
    lines.join("\n")
}

/// The parts of Grafana's model that it does not mend by itself.
#[test]
fn the_dashboard_is_laid_out() {
    let board = dashboard();
    assert!(board["schemaVersion"].as_u64().unwrap() >= 39 && board["id"].is_null(), "{board}");
    let variables = board["templating"]["list"].as_array().unwrap();
    let names: Vec<&str> = variables.iter().map(|of| of["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["datasource", "job", "instance"]);
    let (mut ids, mut taken) = (BTreeSet::new(), BTreeSet::new());
    for panel in board["panels"].as_array().unwrap() {
        let title = panel["title"].as_str().unwrap();
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{title}");
        let at = |key: &str| panel["gridPos"][key].as_u64().unwrap();
        assert!(at("x") + at("w") <= 24, "{title} is wider than the page");
        for (x, y) in (at("x")..at("x") + at("w"))
            .flat_map(|x| (at("y")..at("y") + at("h")).map(move |y| (x, y)))
        {
            assert!(taken.insert((x, y)), "{title} lies on another panel");
        }
        if panel["type"] == "row" {
            continue;
        }
        assert!(["timeseries", "stat"].contains(&panel["type"].as_str().unwrap()), "{title}");
        assert!(panel["description"].as_str().is_some_and(|text| text.len() > 10), "{title}");
        assert!(panel["fieldConfig"]["defaults"]["unit"].is_string(), "{title} has no unit");
        let targets = panel["targets"].as_array().unwrap();
        let refs: BTreeSet<_> = targets.iter().map(|of| of["refId"].as_str().unwrap()).collect();
        assert_eq!(refs.len(), targets.len(), "{title}");
        for target in targets.iter().chain([panel]) {
            assert_eq!(target["datasource"]["uid"], "${datasource}", "{title}");
        }
        for target in targets {
            let expr = target["expr"].as_str().unwrap();
            let selectors = expr.matches("instance=~\"$instance\"").count();
            let metrics = expr.matches("millrace_").count() + expr.matches("process_").count();
            assert_eq!(selectors, metrics, "{title}: {expr}");
        }
    }
}

/// A running Prometheus.
struct Prometheus {
    child: Child,
    address: SocketAddr,
    log: PathBuf,
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _may_have_ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

impl Prometheus {
    /// One that scrapes `servers` and evaluates the rules every second.
    fn start(dir: &Path, servers: &[&Server]) -> Prometheus {
        let targets: Vec<String> =
            servers.iter().map(|server| format!("'{}'", server.admin)).collect();
        let rules = ["records.yml", "alerts.yml"];
        let rules = rules.map(|name| file("monitoring").join(name).display().to_string());
        let config = format!(
            "global: {{scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}}\n\
             rule_files: ['{}', '{}']\n\
             scrape_configs:\n  - job_name: millrace\n    static_configs: [{{targets: [{}]}}]\n",
            rules[0],
            rules[1],
            targets.join(", ")
        );
        fs::write(dir.join("prometheus.yml"), config).unwrap();
        let (address, log) = (free_address(), dir.join("prometheus.log"));
        let child = Command::new("prometheus")
            .arg(format!("--web.listen-address={address}"))
            .args(["--config.file=prometheus.yml", "--storage.tsdb.path=tsdb"])
            .current_dir(dir)
            .stdout(Stdio::null())
            .stderr(fs::File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let mut prometheus = Prometheus { child, address, log };
        wait_within(Duration::from_secs(60), "Prometheus", || {
            let ended = prometheus.child.try_wait().unwrap();
            assert!(ended.is_none(), "{}", prometheus.said());
            prometheus.get("/-/ready").is_some_and(|(status, _)| status == 200)
        });
        prometheus
    }

    fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Status and body; `None` if it does not answer.
    fn get(&self, path: &str) -> Option<(u16, String)> {
        let mut stream = TcpStream::connect(self.address).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        // Of HTTP/1.0 the body ends with the connection.
        write!(stream, "GET {path} HTTP/1.0\r\nhost: {}\r\n\r\n", self.address).ok()?;
        let mut reply = String::new();
        stream.read_to_string(&mut reply).ok()?;
        let (head, body) = reply.split_once("\r\n\r\n")?;
        Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
    }

    fn api(&self, path: &str) -> Value {
        let (status, body) = self.get(&format!("/api/v1/{path}")).expect("an answer");
        let answer: Value = serde_json::from_str(&body).unwrap_or_else(|_| panic!("{body}"));
        assert_eq!((status, answer["status"].as_str()), (200, Some("success")), "{path}: {answer}");
        answer["data"].clone()
    }

    /// The samples that `expr` gives now.
    fn query(&self, expr: &str) -> Vec<Value> {
        let expr = utf8_percent_encode(expr, NON_ALPHANUMERIC);
        self.api(&format!("query?query={expr}"))["result"].as_array().unwrap().clone()
    }
}

/// Queries of the dashboard that this run need not answer, with the reason.
const MAY_BE_EMPTY: [(&str, &str); 2] =
    [("Long turns by task", "there may be none"), ("Starts", "nothing starts while it is looked")];

/// Sends to all until the spool of `failing` is known to fill.
fn load([busy, failing, refusing]: [&Server; 3]) {
    let mut clients = [busy, failing, refusing].map(Server::connect);
    let began = Instant::now();
    let mut sent = 0;
    let fills = |failing: &Server| {
        let scrape = failing.metrics().0;
        scrape.lines().any(|line| line.starts_with("millrace_spool_time_to_full_seconds{"))
    };
    // Two more scrapes after that.
    let mut until = None;
    while until.is_none_or(|until| Instant::now() < until) {
        assert!(began.elapsed() < Duration::from_secs(60), "{}", failing.metrics().0);
        let body = collection(&numbered(sent..sent + 5));
        let headers = ["x-api-key: t1\r\n", SPOOLED, ""];
        for (client, headers) in clients.iter_mut().zip(headers) {
            client.send(request(body.as_bytes(), headers));
            assert_eq!(client.reply().status, 200);
        }
        // Some of the usual mistakes.
        if sent % 50 == 0 {
            assert_eq!(busy.post(r#"{"data":[1]}"#).status, 401);
            assert_eq!(refusing.post("no json").status, 400);
        }
        sent += 5;
        if sent % 100 == 0 && until.is_none() && fills(failing) {
            until = Some(Instant::now() + Duration::from_secs(3));
        }
        std::thread::sleep(Duration::from_millis(40));
    }
}

fn servers() -> [Server; 3] {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let pem = Authority::new("ours").server(&[HOST]);
    fs::write(dir.path().join("cert.pem"), pem).unwrap();
    fs::write(dir.path().join("tokens"), "t1;name=shop\n").unwrap();
    let listen = format!("127.0.0.1:0,https://{}", free_address());
    let busy = [
        ("LISTEN", listen.as_str()),
        ("TLS_CERT", "cert.pem"),
        ("TOKENS_FILE", "tokens"),
        ("CLIENT_RATE", "1000000/s"),
        ("OBJECT", "batch"),
        ("BATCH_AGE", "200ms"),
        ("SPOOL_DIR", "spool"),
        ("FAULTS", "seed=3,transient=0.5"),
        ("RETRY_BASE", "5ms"),
    ];
    let failing = [("SPOOL_DIR", "spool"), ("FAULTS", "store_wide=1"), ("RETRY_MAX", "1s")];
    let refusing = [("FAULTS", "seed=4,object=1")];
    [Server::start_in(dir, &busy), Server::start(&failing), Server::start(&refusing)]
}

#[test]
fn a_prometheus_answers_every_query_and_evaluates_every_rule() {
    if !is_there("prometheus", Need::Prometheus) {
        return;
    }
    let servers = servers();
    let servers = servers.each_ref();
    let dir = tempfile::tempdir().unwrap();
    let prometheus = Prometheus::start(dir.path(), &servers);
    load(servers);

    let board = dashboard();
    let (mut asked, mut empty) = (0, Vec::new());
    for (title, expr) in queries(&board) {
        // As Grafana does it, for this scrape interval.
        let expr = expr.replace("$__rate_interval", "10s").replace("$__interval", "10s");
        let expr = expr.replace("$job", ".*").replace("$instance", ".*");
        assert!(!expr.contains('$'), "{title}: {expr}");
        let samples = prometheus.query(&expr);
        asked += 1;
        if samples.is_empty() && !MAY_BE_EMPTY.iter().any(|(may, _)| *may == title) {
            empty.push((title, expr));
        }
    }
    assert!(empty.is_empty(), "no answer to {empty:#?}\n{}", prometheus.said());
    assert!(asked > 80, "{asked}");
    let instances = prometheus.api("label/instance/values?match[]=millrace_build_info");
    assert_eq!(instances.as_array().unwrap().len(), 3, "{instances}");

    check_rules(&prometheus);
    check_answers(&prometheus, servers);
}

/// Every rule works, every record has samples, and what is the matter is noticed.
fn check_rules(prometheus: &Prometheus) {
    let rules = prometheus.api("rules");
    let rules: Vec<&Value> = rules["groups"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|group| group["rules"].as_array().unwrap())
        .collect();
    let states: BTreeMap<&str, &str> = rules
        .iter()
        .map(|rule| {
            assert_eq!(rule["health"], "ok", "{rule}");
            (rule["name"].as_str().unwrap(), rule["state"].as_str().unwrap_or("record"))
        })
        .collect();
    let files = ["records.yml", "alerts.yml"].map(|name| text(&format!("monitoring/{name}")));
    let names = values(&files[0], "record").into_iter().chain(values(&files[1], "alert"));
    assert_eq!(states.keys().copied().collect::<BTreeSet<_>>(), names.collect());
    for name in values(&files[0], "record") {
        assert!(!prometheus.query(name).is_empty(), "nothing is recorded as {name}");
    }
    let of: BTreeSet<String> = prometheus
        .query("count by (of) (instance_of:millrace_fullness:ratio)")
        .iter()
        .map(|sample| sample["metric"]["of"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(of.len(), files[0].matches("labels: {of: ").count(), "{of:?}");
    for (alert, states_allowed) in [
        ("MillraceDown", &["inactive"][..]),
        ("MillracePayloadsLost", &["inactive"]),
        ("MillraceDeadLetters", &["firing"]),
        ("MillraceDeadLettersWait", &["pending"]),
        ("MillraceStoreFailing", &["pending"]),
        ("MillraceStoreRefuses", &["pending"]),
        ("MillracePutErrors", &["pending"]),
        ("MillraceSpoolFull", &["inactive"]),
    ] {
        assert!(states_allowed.contains(&states[alert]), "{alert}: {}", states[alert]);
    }
    let alerts = prometheus.api("alerts")["alerts"].to_string();
    assert!(alerts.contains("writes dead letters"), "{alerts}");
    assert!(!alerts.contains("error expanding"), "{alerts}");
}

/// What Prometheus answers to some of the questions is what the servers say.
fn check_answers(prometheus: &Prometheus, [busy, failing, refusing]: [&Server; 3]) {
    let one = |expr: &str| -> f64 {
        let samples = prometheus.query(expr);
        assert_eq!(samples.len(), 1, "{expr}: {samples:?}");
        samples[0]["value"][1].as_str().unwrap().parse().unwrap()
    };
    let of = |name: &str, server: &Server| one(&format!("{name}{{instance=\"{}\"}}", server.admin));
    let letters = refusing.dead_letters().len() as f64;
    let waiting = of("millrace_dead_letters", refusing);
    assert!(waiting > 20.0 && waiting <= letters, "{waiting} of {letters}");
    assert!(of("instance:millrace_backlog_age_seconds:max", failing) > 8.0);
    assert!(of("instance:millrace_backlog_age_seconds:max", refusing) < 8.0);
    let retried = of("instance:millrace_put_retries:ratio_rate5m", busy);
    assert!((0.1..0.9).contains(&retried), "{retried}");
    assert!(of("instance:millrace_spool_time_to_full_seconds:min", failing) > 0.0);
    let age =
        one(&format!("time() - process_start_time_seconds{{instance=\"{}\"}}", failing.admin));
    assert!((5.0..120.0).contains(&age), "{age}");
}

/// The figures of what waits, while the store fails and after it has mended.
#[test]
fn ages_and_errors_tell_of_a_store_that_fails() {
    let server = Server::start(&[("RETRY_MAX", "100ms")]);
    server.break_store();
    assert_eq!(server.post_payloads(&["1"]).status, 200);
    let age = "millrace_oldest_unstored_payload_age_seconds";
    server.wait("an old payload", |metrics| metrics.sum(age) >= 2);
    assert_eq!(server.post_payloads(&["2"]).status, 200);
    let failed = |metrics: &Metrics, class: &str| {
        metrics.sum_where("millrace_put_errors_total", &format!("class=\"{class}\""))
    };
    let metrics = server.metrics();
    let retries = metrics.sum("millrace_put_retries_total");
    assert!(retries > 0, "{}", metrics.0);
    let classes = ["object", "transient", "store_wide"].map(|class| failed(&metrics, class));
    // Read after the retries: more may have failed in between.
    let failed: u64 = classes.iter().sum();
    assert!((retries..retries + 20).contains(&failed), "{retries} {classes:?}");
    server.mend_store();
    server.wait("nothing that waits", |metrics| metrics.sum(age) == 0);
    server.wait_idle();
}

#[test]
fn an_open_batch_has_an_age_and_so_have_its_payloads() {
    let server = Server::start(&[("OBJECT", "batch"), ("BATCH_AGE", "3s")]);
    assert_eq!(server.post_payloads(&["1"]).status, 200);
    let (batch, payload) =
        ("millrace_oldest_open_batch_age_seconds", "millrace_oldest_unstored_payload_age_seconds");
    server.wait("an old batch", |metrics| metrics.sum(batch) >= 1 && metrics.sum(payload) >= 1);
    server.wait("the batch stored", |metrics| metrics.sum("millrace_payloads_stored_total") == 1);
    let metrics = server.metrics();
    assert_eq!((metrics.sum(batch), metrics.sum(payload)), (0, 0));
}

/// Payloads that are on disk only, and those of a process that was killed, are as old as they are.
#[test]
fn spooled_payloads_keep_their_age_through_a_crash() {
    let settings = [
        ("SPOOL_DIR", "spool"),
        ("FAULTS", "store_wide=1"),
        ("MAX_QUEUE", "2"),
        ("MAX_WORKERS", "1"),
        ("RETRY_MAX", "1s"),
    ];
    let server = Server::start(&settings);
    let age = "millrace_oldest_unstored_payload_age_seconds";
    for id in 0..8 {
        assert_eq!(server.spool(&[id.to_string()]).status, 200);
    }
    server.wait("some on disk only", |metrics| metrics.sum("millrace_spool_overflowing") == 1);
    server.wait("an old payload", |metrics| metrics.sum(age) >= 3);
    let dir = server.dir();
    drop(server.kill());
    let server = Server::start_in(dir, &settings);
    server.wait("its age after the crash", |metrics| metrics.sum(age) >= 4);
    let metrics = server.metrics();
    assert!(metrics.sum("millrace_spool_filled_bytes") > 0, "{}", metrics.0);
    assert!(metrics.sum("process_open_fds") > 10, "{}", metrics.0);
    let free = |directory: &str| {
        let labels = format!("directory=\"{directory}\"");
        metrics.sum_where("millrace_disk_free_bytes", &labels)
    };
    assert!(free("spool") > 0 && free("dead_letter") > 0, "{}", metrics.0);
}

/// Dead letters are counted in both of their forms, by the process that writes them and by the
/// next.
#[test]
fn dead_letters_are_counted_one_by_one() {
    let settings = [("FAULTS", "poison=object"), ("DRAIN_TIMEOUT", "1s")];
    let server = Server::start(&settings);
    assert_eq!(server.post_payloads(&["\"poison 1\"", "\"poison 2\"", "3"]).status, 200);
    let waiting = |metrics: &Metrics| metrics.sum("millrace_dead_letters");
    server.wait("two dead letters", |metrics| waiting(metrics) == 2);
    server.wait_idle();
    let dir = server.dir();
    server.stop();
    // A stop with a store that fails writes the others in one file.
    let failing = [("FAULTS", "store_wide=1"), ("DRAIN_TIMEOUT", "1s")];
    let server = Server::start_in(dir.clone(), &failing);
    assert_eq!(waiting(&server.metrics()), 2);
    assert_eq!(server.post_payloads(&["4", "5", "6"]).status, 200);
    server.stop();
    let server = Server::start_in(dir, &[]);
    // Those in the file are counted once the server serves.
    server.wait("five dead letters", |metrics| waiting(metrics) == 5);
    assert_eq!(server.metrics().sum("millrace_dead_letters_uncounted_bytes"), 0);
    assert_eq!(server.dead_letters().len(), 5);
}
