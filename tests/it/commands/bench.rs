//! `bench`: goal, its figures are those of the server, and where they are not it says so; whatever
//! stands in the way of a run is named with a remedy. Method: the binary against the real server,
//! and against one that stalls, refuses, breaks off and talks nonsense on purpose.
//!
//! Nothing here depends on how fast the machine is: counts are exact, times are lower bounds.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::front::free_address;
use crate::support::tls::{Authority, write};
use crate::support::{Server, command, run, signal, wait_for};

const NULL: (&str, &str) = ("STORE", "null:");

/// What the stub does with a request.
enum Step {
    Say(&'static str),
    /// The answer, after this time.
    After(Duration, &'static str),
    /// The answer, and the end of the connection.
    Last(&'static str),
    HangUp,
    /// Neither an answer nor the end.
    Nothing,
}

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
const BUSY: &str = "HTTP/1.1 503 Busy\r\nretry-after: 1\r\ncontent-length: 9\r\n\r\nno room\r\n";

/// A server that does with its `n`th request, the probe being 0, what it is told.
struct Stub {
    address: SocketAddr,
    requests: Arc<AtomicUsize>,
}

impl Stub {
    fn start(step: impl Fn(usize) -> Step + Send + Sync + 'static) -> Stub {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(AtomicUsize::new(0));
        let (step, counted) = (Arc::new(step), requests.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (step, counted) = (step.clone(), counted.clone());
                std::thread::spawn(move || serve(stream, &*step, &counted));
            }
        });
        Stub { address, requests }
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The report of a run against it, and its exit status.
    fn bench(&self, args: &[&str]) -> (i32, Value) {
        let dir = tempfile::tempdir().unwrap();
        report(&bench(dir.path(), &[&[self.url().as_str(), "--warm-up", "0s"], args].concat(), &[]))
    }
}

fn serve(stream: TcpStream, step: &dyn Fn(usize) -> Step, counted: &AtomicUsize) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut stream = stream;
    while skip_request(&mut reader).is_some() {
        let said = match step(counted.fetch_add(1, SeqCst)) {
            Step::Say(text) => stream.write_all(text.as_bytes()),
            Step::After(time, text) => {
                std::thread::sleep(time);
                stream.write_all(text.as_bytes())
            }
            Step::Last(text) => {
                let _it_may_be_gone = stream.write_all(text.as_bytes());
                return;
            }
            Step::HangUp => return,
            Step::Nothing => Ok(()),
        };
        if said.is_err() {
            return;
        }
    }
}

/// Reads one request; none at the end.
fn skip_request(reader: &mut impl BufRead) -> Option<()> {
    let mut length = 0;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        if let Some(value) = line.strip_prefix("content-length: ") {
            length = value.trim().parse().unwrap();
        }
        if line == "\r\n" {
            break;
        }
    }
    reader.read_exact(&mut vec![0; length]).ok()
}

fn bench(dir: &Path, args: &[&str], settings: &[(&str, &str)]) -> Output {
    run(dir, &[&["bench", "--json"], args].concat(), settings)
}

fn report(output: &Output) -> (i32, Value) {
    let status = output.status.code().unwrap();
    let report = serde_json::from_slice(&output.stdout);
    let said = String::from_utf8_lossy(&output.stderr);
    (status, report.unwrap_or_else(|error| panic!("{error}, {status}: {said}")))
}

/// The message of a run that was refused.
fn refused(output: &Output) -> String {
    let said = String::from_utf8([&output.stdout[..], &output.stderr].concat()).unwrap();
    assert_eq!(output.status.code(), Some(2), "{said}");
    said
}

fn warnings(report: &Value) -> String {
    report["warnings"].to_string()
}

#[test]
fn a_closed_loop_counts_what_the_server_counts() {
    let server = Server::start(&[NULL]);
    let dir = tempfile::tempdir().unwrap();
    let url = format!("http://{}", server.ingest);
    for (args, payloads) in [
        (&["--payloads", "7"][..], 7),
        (&["--form", "ndjson", "--compress", "zstd"], 10),
        (&["--form", "array", "--shape", "events", "--compress", "gzip", "--payloads", "3"], 3),
    ] {
        let before = server.metrics();
        let usual = [&url, "-c", "4", "-t", "2", "-d", "200ms", "--warm-up", "100ms"];
        let (status, report) = report(&bench(dir.path(), &[&usual[..], args].concat(), &[]));
        assert_eq!(status, 0, "{report:#}");
        let accepted = &report["accepted"];
        let requests = accepted["requests"].as_u64().unwrap();
        assert!(requests > 0, "{report:#}");
        assert_eq!(report["answers"], serde_json::json!({ "200": requests }), "{report:#}");
        assert!(report["errors"].as_object().unwrap().values().all(|n| n == 0), "{report:#}");
        assert_eq!(report["latency_ms"]["count"], requests, "{report:#}");
        assert!(report["schedule"].is_null() && report["refusals_ms"].is_null(), "{report:#}");
        assert_eq!(report["connections_opened"], 4, "{report:#}");
        let rate = |name: &str| accepted[name].as_f64().unwrap();
        let per_request = rate("payloads_per_second") / rate("requests_per_second");
        assert!((per_request - f64::from(payloads)).abs() < 1e-6, "{report:#}");
        // The server has also those of the warm-up, and the first one.
        server.wait_idle();
        let after = server.metrics();
        let all = after.requests(200) - before.requests(200);
        assert!(all > requests, "{all} {requests}");
        let counted =
            |metrics: &crate::support::Metrics| metrics.sum("millrace_payloads_accepted_total");
        assert_eq!(counted(&after) - counted(&before), all * payloads as u64);
    }
}

#[test]
fn the_report_for_people_says_what_the_figures_are() {
    let server = Server::start(&[NULL]);
    let dir = tempfile::tempdir().unwrap();
    let url = format!("http://{}/payloads", server.ingest);
    let usual = ["bench", &url, "-c", "2", "-d", "200ms", "--warm-up", "0s"];
    for (args, loops, latency) in [
        (&[][..], "closed loop, 2 connections, 1 thread, 0.2 s", "service time under load"),
        (&["-r", "50"], "open loop at 50 requests/s, 2 connections", "response time: from when"),
    ] {
        let output = run(dir.path(), &[&usual[..], args].concat(), &[]);
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(0), "{text}");
        assert!(text.starts_with(&format!("POST {url}: ")), "{text}");
        for part in
            [loops, latency, "with 10 payloads a request", "errors    none", "p99.9", "client "]
        {
            assert!(text.contains(part), "{part}:\n{text}");
        }
        assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

/// Every request that is due in the measured part is in the report, however slow the machine is.
#[test]
fn an_open_loop_keeps_its_rate() {
    let server = Server::start(&[NULL]);
    let dir = tempfile::tempdir().unwrap();
    let url = format!("http://{}", server.ingest);
    let args = [&url, "-r", "200", "-c", "8", "-t", "2", "-d", "500ms", "--warm-up", "100ms"];
    let (status, report) = report(&bench(dir.path(), &args, &[]));
    assert_eq!(status, 0, "{report:#}");
    let schedule = &report["schedule"];
    let sent = schedule["sent"].as_u64().unwrap();
    assert_eq!(sent + schedule["unsent"].as_u64().unwrap(), 100, "{report:#}");
    assert_eq!(report["answers"]["200"], sent, "{report:#}");
    assert_eq!(report["latency_ms"]["count"], 100, "{report:#}");
    assert_eq!((&report["loop"], &report["rate"]), (&"open".into(), &200.into()));
}

/// One pause of 400 ms. A closed loop asks nothing meanwhile, so it sees one slow request; an open
/// loop sees all that were due.
#[test]
fn a_server_that_pauses_is_seen_by_those_who_would_have_asked() {
    let pause = Duration::from_millis(400);
    let pausing =
        || Stub::start(move |n| if n == 20 { Step::After(pause, OK) } else { Step::Say(OK) });
    let (status, closed) = pausing().bench(&["-c", "1", "-d", "700ms"]);
    assert_eq!(status, 0, "{closed:#}");
    let (status, open) = pausing().bench(&["-c", "1", "-d", "800ms", "-r", "100"]);
    assert_eq!(status, 0, "{open:#}");
    let latency = |report: &Value, name: &str| report["latency_ms"][name].as_f64().unwrap();
    for report in [&closed, &open] {
        assert!(latency(report, "max") >= 400.0, "{report:#}");
    }
    // Due in the first 200 ms of the pause: 20 of 80, each of which waits for 200 ms or more.
    assert_eq!(latency(&open, "count"), 80.0, "{open:#}");
    assert!(latency(&open, "p90") >= 200.0, "{open:#}");
    assert!(latency(&closed, "p90") < latency(&open, "p90"), "{closed:#}\n{open:#}");
    assert!(open["schedule"]["behind_ms_max"].as_f64().unwrap() >= 350.0, "{open:#}");
    assert!(warnings(&open).contains("behind schedule"), "{open:#}");
}

/// What was due and never sent counts as well, with the time that it had waited.
#[test]
fn a_server_that_never_answers_again_does_not_look_fast() {
    let stub = Stub::start(|n| if n < 10 { Step::Say(OK) } else { Step::Nothing });
    let (status, report) =
        stub.bench(&["-c", "2", "-d", "600ms", "-r", "100", "--timeout", "300ms"]);
    assert_eq!(status, 0, "{report:#}");
    let number = |value: &Value| value.as_u64().unwrap();
    assert_eq!(number(&report["answers"]["200"]), 9, "{report:#}");
    let timeouts = number(&report["errors"]["timeout"]);
    let unsent = number(&report["schedule"]["unsent"]);
    assert!(timeouts > 0 && unsent > 0, "{report:#}");
    assert_eq!(9 + timeouts + unsent, 60, "{report:#}");
    assert_eq!(report["latency_ms"]["count"], 60, "{report:#}");
    assert!(report["latency_ms"]["p50"].as_f64().unwrap() > 50.0, "{report:#}");
    assert!(warnings(&report).contains("requests never sent"), "{report:#}");
}

#[test]
fn refusals_are_counted_and_not_hammered() {
    let stub = Stub::start(|n| if n == 0 { Step::Say(OK) } else { Step::Say(BUSY) });
    // Each connection asks once, and again after a second, which is over by then.
    let (status, closed) = stub.bench(&["-c", "4", "-d", "500ms"]);
    assert_eq!(status, 1, "{closed:#}");
    assert_eq!(closed["answers"], serde_json::json!({ "503": 4 }), "{closed:#}");
    assert_eq!(stub.requests.load(SeqCst), 5);
    assert!(closed["latency_ms"].is_null(), "a refusal is no latency: {closed:#}");
    assert_eq!(
        (&closed["refusals_ms"]["count"], &closed["said"]["503"]),
        (&4.into(), &"no room".into())
    );
    assert!(closed["paused_share"].as_f64().unwrap() > 0.0, "{closed:#}");
    assert!(warnings(&closed).contains("retry-after"), "{closed:#}");
    // Clients of an open loop are others.
    let (status, open) = stub.bench(&["-c", "4", "-d", "500ms", "-r", "100"]);
    assert_eq!(status, 1, "{open:#}");
    let sent = open["schedule"]["sent"].as_u64().unwrap();
    assert_eq!(open["answers"], serde_json::json!({ "503": sent }), "{open:#}");
    assert!(sent > 4, "{open:#}");
    assert_eq!(open["paused_share"], 0.0, "{open:#}");
}

#[test]
fn what_goes_wrong_is_counted_by_its_kind_and_the_run_goes_on() {
    const CUT: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n";
    type Flaw = fn() -> Step;
    let flaws: [(Flaw, &str, &str); 4] = [
        (|| Step::HangUp, "lost", "closed the connection before an answer"),
        (|| Step::Last(CUT), "lost", "before the end of an answer"),
        (|| Step::Say("220 smtp\r\n"), "bad_answer", "not an answer of HTTP/1.1"),
        (|| Step::Nothing, "timeout", "no answer within 100ms"),
    ];
    for (flaw, kind, said) in flaws {
        let stub = Stub::start(move |n| if n % 4 == 3 { flaw() } else { Step::Say(OK) });
        let (status, report) = stub.bench(&["-c", "2", "-d", "400ms", "--timeout", "100ms"]);
        assert_eq!(status, 0, "{kind}: {report:#}");
        assert!(report["answers"]["200"].as_u64().unwrap() > 2, "{kind}: {report:#}");
        for (name, count) in report["errors"].as_object().unwrap() {
            assert_eq!(count.as_u64().unwrap() > 0, name == kind, "{kind}: {report:#}");
        }
        assert!(report["said"][kind].as_str().unwrap().contains(said), "{report:#}");
    }
    // A server that closes after each answer is slow, not wrong.
    let closing = "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok";
    for answer in [closing, "HTTP/1.1 200 OK\r\n\r\nto the end"] {
        let stub = Stub::start(move |_| Step::Last(answer));
        let (status, report) = stub.bench(&["-c", "2", "-d", "200ms"]);
        assert_eq!(status, 0, "{report:#}");
        assert!(report["errors"].as_object().unwrap().values().all(|n| n == 0), "{report:#}");
        assert!(report["answers"]["200"].as_u64().unwrap() > 2, "{report:#}");
    }
}

#[test]
fn a_token_comes_from_a_file_or_the_environment_and_is_not_shown() {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    std::fs::write(dir.path().join("tokens"), "right-token\n").unwrap();
    std::fs::write(dir.path().join("wrong"), "wrong-token\n").unwrap();
    let server = Server::start_in(dir.clone(), &[NULL, ("TOKENS_FILE", "tokens")]);
    let url = format!("http://{}", server.ingest);
    let usual = [url.as_str(), "-c", "1", "-d", "100ms", "--warm-up", "0s"];
    for (args, env, said) in [
        (&[][..], None, Some("give a token in MILLRACE_TOKEN or with --token-file")),
        (&["--token-file", "wrong"], None, Some("does not accept this token")),
        (&[], Some("wrong-token"), Some("does not accept this token")),
        (&["--token-file", "missing"], None, Some("--token-file missing: No such file")),
        (&["-H", "authorization: Bearer right-token"], None, Some("use --token-file")),
        (&["--token-file", "tokens"], None, None),
        (&[], Some("right-token"), None),
    ] {
        let settings: Vec<_> = env.iter().map(|token| ("MILLRACE_TOKEN", *token)).collect();
        let output = bench(dir.path(), &[&usual[..], args].concat(), &settings);
        let text = String::from_utf8([&output.stdout[..], &output.stderr].concat()).unwrap();
        if !args.contains(&"-H") {
            assert!(!text.contains("right-token") && !text.contains("wrong-token"), "{text}");
        }
        match said {
            Some(said) => assert!(refused(&output).contains(said), "{args:?}: {text}"),
            None => assert_eq!(report(&output).0, 0, "{args:?}: {text}"),
        }
    }
}

#[test]
fn what_cannot_work_is_said_before_the_run_with_a_remedy() {
    let server = Server::start(&[NULL, ("MAX_LENGTH", "64KiB")]);
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("body"), "not JSON").unwrap();
    let nobody = format!("http://{}", free_address());
    let url = format!("http://{}", server.ingest);
    let (other, tls) = (format!("{url}/other"), format!("https://{}", server.ingest));
    let smtp = Stub::start(|_| Step::Say("220 smtp\r\n")).url();
    let silent = Stub::start(|_| Step::Nothing).url();
    let redirect = "HTTP/1.1 301 Moved\r\ncontent-length: 0\r\n\r\n";
    let moved = Stub::start(move |_| Step::Say(redirect)).url();
    for (args, said) in [
        (&[nobody.as_str()][..], "Connection refused"),
        (&[&nobody], "is the server running, and is this its host and port?"),
        (&["localhost:8080"], "the URL is not a URL of HTTP: give http://"),
        (&["http://nobody.invalid"], "nobody.invalid: "),
        (&[&other], "give the path that takes POSTs, such as /payloads"),
        (&[&url, "--payloads", "1000"], "give fewer --payloads"),
        (&[&url, "--body-file", "body"], "the server takes other bodies"),
        (&[&url, "--body-file", "missing"], "--body-file missing: No such file"),
        (&[&url, "--histogram", "missing/file"], "--histogram missing/file: No such file"),
        (&[&url, "--insecure"], "are for https://"),
        (&[&tls], "no TLS session"),
        (&[&smtp], "does it speak HTTP/1.1"),
        (&[&silent, "--timeout", "200ms"], "no answer within 200ms: give it a longer --timeout"),
        (&[&moved], "redirects are not followed"),
    ] {
        let output = bench(dir.path(), args, &[]);
        let text = refused(&output);
        assert!(text.contains(said), "{args:?}: {text}");
        assert_eq!(text.lines().count(), 1, "{args:?}: {text}");
    }
}

#[test]
fn over_tls_the_server_must_be_who_it_says() {
    let (authority, dir) = (Authority::new("root"), Arc::new(tempfile::tempdir().unwrap()));
    write(dir.path(), "cert.pem", authority.server(&["127.0.0.1"]));
    write(dir.path(), "ca.pem", authority.pem());
    write(dir.path(), "other.pem", Authority::new("other").pem());
    let settings = [NULL, ("LISTEN", "https://127.0.0.1:0"), ("TLS_CERT", "cert.pem")];
    let server = Server::start_in(dir.clone(), &settings);
    let (url, other) = (
        format!("https://{}", server.ingest),
        format!("https://localhost:{}", server.ingest.port()),
    );
    let usual = ["-c", "2", "-d", "200ms", "--warm-up", "0s"];
    for (args, works) in [
        (&[url.as_str()][..], false),
        (&[&url, "--ca", "other.pem"], false),
        (&[&other, "--ca", "ca.pem"], false),
        (&[&url, "--ca", "ca.pem"], true),
        (&[&other, "--insecure"], true),
    ] {
        let output = bench(dir.path(), &[args, &usual].concat(), &[]);
        if works {
            let (status, report) = report(&output);
            assert_eq!(status, 0, "{args:?}: {report:#}");
            assert!(report["errors"].as_object().unwrap().values().all(|n| n == 0), "{report:#}");
        } else {
            let text = refused(&output);
            assert!(text.contains("certificate") && text.contains("--ca FILE names"), "{text}");
        }
    }
}

/// Starts a run that would take a minute.
fn long_run(url: &str) -> Child {
    let dir = tempfile::tempdir().unwrap();
    let args = ["bench", "--json", url, "-c", "2", "-d", "60s", "--warm-up", "0s"];
    let mut command = command(dir.path(), &args, &[]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

#[test]
fn an_interruption_ends_the_run_and_prints_what_there_is() {
    for (stub, name, status, unfinished) in [
        (Stub::start(|_| Step::Say(OK)), "INT", 0, 0),
        (Stub::start(|_| Step::Say(OK)), "TERM", 0, 0),
        // Answers that do not come are not waited for.
        (Stub::start(|n| if n == 0 { Step::Say(OK) } else { Step::Nothing }), "INT", 1, 2),
    ] {
        let child = long_run(&stub.url());
        wait_for("requests", || stub.requests.load(SeqCst) > 2);
        let began = Instant::now();
        signal(&child, name);
        let output = child.wait_with_output().unwrap();
        assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
        let (exit, report) = report(&output);
        assert_eq!((exit, &report["interrupted"]), (status, &true.into()), "{report:#}");
        assert_eq!(report["errors"]["unfinished"], unfinished, "{report:#}");
        assert!(report["seconds"].as_f64().unwrap() < 55.0, "{report:#}");
        assert!(String::from_utf8_lossy(&output.stderr).starts_with("interrupted: "));
    }
}

#[test]
fn an_interruption_of_the_warm_up_is_no_measurement() {
    let stub = Stub::start(|_| Step::Say(OK));
    let dir = tempfile::tempdir().unwrap();
    let url = stub.url();
    let mut command = command(dir.path(), &["bench", &url, "-c", "2", "--warm-up", "1m"], &[]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    wait_for("requests", || stub.requests.load(SeqCst) > 2);
    signal(&child, "INT");
    let text = refused(&child.wait_with_output().unwrap());
    assert!(text.contains("interrupted during the warm-up: nothing was measured"), "{text}");
}

#[test]
fn the_histogram_has_every_latency() {
    let stub = Stub::start(|n| {
        if n % 10 == 9 { Step::After(Duration::from_millis(20), OK) } else { Step::Say(OK) }
    });
    let dir = tempfile::tempdir().unwrap();
    let url = stub.url();
    let args = [&url, "-c", "2", "-d", "300ms", "--warm-up", "0s", "--histogram", "out.hgrm"];
    let (status, report) = report(&bench(dir.path(), &args, &[]));
    assert_eq!(status, 0, "{report:#}");
    let text = std::fs::read_to_string(dir.path().join("out.hgrm")).unwrap();
    assert!(text.trim_start().starts_with("Value     Percentile TotalCount"), "{text}");
    let rows: Vec<Vec<f64>> = text
        .lines()
        .skip(2)
        .take_while(|line| !line.starts_with('#'))
        .map(|line| line.split_whitespace().map(|n| n.parse().unwrap()).collect())
        .collect();
    let (last, latency) = (&rows[rows.len() - 1], &report["latency_ms"]);
    assert_eq!((last[1], last[2]), (1.0, latency["count"].as_f64().unwrap()), "{text}");
    assert!((last[0] - latency["max"].as_f64().unwrap()).abs() < 0.01, "{text}\n{report:#}");
    assert!(last[0] >= 20.0, "{text}");
    assert!(text.contains(&format!("Total count    = {:>12}]", last[2])), "{text}");
}

/// `docs/benchmarks.md` has a row for every value of the report, and none of another.
#[test]
fn the_documents_know_every_value_of_the_report() {
    fn paths(value: &Value, path: &str, into: &mut Vec<String>) {
        match value {
            Value::Object(fields) => {
                for (name, value) in fields {
                    let path =
                        if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                    paths(value, &path, into);
                }
            }
            _ => into.push(path.to_owned()),
        }
    }
    let stub = Stub::start(|n| if n % 2 == 0 { Step::Say(OK) } else { Step::Say(BUSY) });
    let (_, report) = stub.bench(&["-c", "2", "-d", "200ms", "-r", "100"]);
    let mut found = Vec::new();
    paths(&report, "", &mut found);
    // Their keys are statuses and kinds.
    let maps = ["answers", "errors", "said", "latency_ms", "refusals_ms"];
    for map in maps {
        found.retain(|path| !path.starts_with(&format!("{map}.")));
        found.push(map.to_owned());
    }
    found.sort();
    let document =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/benchmarks.md"))
            .unwrap();
    let (_, table) = document.split_once("| value | what it is |").unwrap();
    let rows = table.lines().skip(2).take_while(|line| line.starts_with('|'));
    let mut documented: Vec<String> = rows
        .flat_map(|row| row.split('|').nth(1).unwrap().split('`').skip(1).step_by(2))
        .map(str::to_owned)
        .collect();
    documented.sort();
    assert_eq!(documented, found);
}
