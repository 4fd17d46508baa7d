//! The clients in `examples/clients`: goal, each retries what may be sent again, and nothing else,
//! and everything it was given is stored.
//!
//! Method: the clients as processes against a listener that answers as it is told to, and against
//! the real server with a small queue and a slow store. A client whose tools are not there is
//! skipped, loudly.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use crate::support::needs::{Need, skip};
use crate::support::s3::silent_port;
use crate::support::{Server, numbered, sorted};

/// One answer of a listener that does as it is told.
#[derive(Clone, Copy)]
enum Step {
    /// With this status; 503, 429 and 408 with `retry-after: 1`.
    Answer(u16),
    /// 503 without `retry-after`.
    Busy,
    /// 502 with the figures of a `stored` request that was not.
    NotStored,
    /// Reads the request and closes without a word.
    Close,
}

/// One request as it came.
struct Came {
    at: Instant,
    content_type: Option<String>,
    ack: Option<String>,
    body: String,
}

/// A listener with a script, and what it has seen.
struct Scripted {
    address: SocketAddr,
    came: Arc<Mutex<Vec<Came>>>,
}

impl Scripted {
    fn start(steps: &'static [Step]) -> Scripted {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let came = Arc::new(Mutex::new(Vec::new()));
        let (seen, mut steps) = (came.clone(), steps.iter().copied());
        std::thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                while let Some(request) = read_request(&stream) {
                    seen.lock().unwrap().push(request);
                    // Beyond the script everything is fine.
                    if !act(&stream, steps.next().unwrap_or(Step::Answer(200))) {
                        break;
                    }
                }
            }
        });
        Scripted { address, came }
    }
}

fn read_request(stream: &TcpStream) -> Option<Came> {
    let mut reader = BufReader::new(stream);
    let (mut length, mut ack, mut content_type) = (0, None, None);
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|read| *read > 0)?;
    assert!(line.starts_with("POST /payloads "), "{line}");
    loop {
        line.clear();
        reader.read_line(&mut line).ok()?;
        match line.trim().split_once(": ") {
            Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                length = value.parse().unwrap();
            }
            Some((name, value)) if name.eq_ignore_ascii_case("millrace-ack") => {
                ack = Some(value.to_owned());
            }
            Some((name, value)) if name.eq_ignore_ascii_case("content-type") => {
                content_type = Some(value.to_owned());
            }
            Some(_) => {}
            None => break,
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let body = String::from_utf8(body).unwrap();
    Some(Came { at: Instant::now(), content_type, ack, body })
}

/// False when the connection is to end.
fn act(mut stream: &TcpStream, step: Step) -> bool {
    let (status, body) = match step {
        Step::Close => return false,
        Step::NotStored => (502, r#"{"error":"x","accepted":3,"stored":2,"dead_lettered":1}"#),
        Step::Busy => (503, r#"{"error":"told so"}"#),
        Step::Answer(200) => (200, r#"{"accepted":3,"ack":"queued"}"#),
        Step::Answer(status) => (status, r#"{"error":"told so"}"#),
    };
    let retry =
        if matches!(step, Step::Answer(408 | 429 | 503)) { "retry-after: 1\r\n" } else { "" };
    let length = body.len();
    let head = format!("HTTP/1.1 {status} X\r\n{retry}content-length: {length}\r\n\r\n{body}");
    stream.write_all(head.as_bytes()).is_ok()
}

fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/clients").join(name)
}

/// The Go client, built once.
fn built_go() -> Option<PathBuf> {
    static BUILT: OnceLock<Option<(tempfile::TempDir, PathBuf)>> = OnceLock::new();
    let built = BUILT.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let client = dir.path().join("client");
        let mut go = Command::new("go");
        go.arg("build").arg("-o").arg(&client).arg(example("client.go"));
        go.env("GOCACHE", dir.path().join("cache")).env("GO111MODULE", "off");
        let output = go.output().ok()?;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Some((dir, client))
    });
    built.as_ref().map(|(_, client)| client.clone())
}

/// The clients whose tools are there, each by its name and command.
fn clients() -> Vec<(&'static str, Vec<PathBuf>)> {
    let mut found = Vec::new();
    for (name, tool, need) in [
        ("client.py", "python3", Need::Python),
        ("client.sh", "bash", Need::Curl),
        ("client.mjs", "node", Need::Node),
    ] {
        let wanted = if tool == "bash" { "bash && command -v curl" } else { tool };
        let there = Command::new("sh").args(["-c", &format!("command -v {wanted}")]).output();
        match there.unwrap().status.success() {
            true => found.push((name, vec![tool.into(), example(name)])),
            false => skip(need, format!("{name} needs {wanted}")),
        }
    }
    match built_go() {
        Some(client) => found.push(("client.go", vec![client])),
        None => skip(Need::Go, "client.go needs go"),
    }
    found
}

/// Runs `client` with `payloads` on its standard input.
fn run(client: &[PathBuf], options: &[&str], address: SocketAddr, payloads: &[String]) -> Output {
    run_with(client, options, &[], address, payloads)
}

/// The same with `env` in the environment.
fn run_with(
    client: &[PathBuf],
    options: &[&str],
    env: &[(&str, &str)],
    address: SocketAddr,
    payloads: &[String],
) -> Output {
    let mut command = Command::new("timeout");
    command.arg("180").args(client).args(options).arg(format!("http://{address}/payloads"));
    // A proxy of the host is not asked for loopback.
    for proxy in ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"] {
        command.env_remove(proxy);
    }
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.env_remove("MILLRACE_TOKEN").envs(env.iter().copied());
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let lines = payloads.iter().map(|payload| format!("{payload}\n")).collect::<String>();
    let writer = std::thread::spawn(move || stdin.write_all(lines.as_bytes()));
    let output = child.wait_with_output().unwrap();
    // A client that has given up does not read the rest.
    let _all_or_some = writer.join().unwrap();
    output
}

/// The milliseconds that a client says it waits, one for each attempt but the first.
fn pauses(said: &str) -> Vec<u64> {
    let said = said.lines().filter(|line| line.contains("; attempt "));
    said.map(|line| {
        let pause = line.rsplit_once(" in ").and_then(|(_, pause)| pause.strip_suffix(" ms"));
        pause.and_then(|pause| pause.parse().ok()).unwrap_or_else(|| panic!("{line}"))
    })
    .collect()
}

/// An answer script, options, the exit status wanted, and the requests that are to come.
type Case = (&'static [Step], &'static [&'static str], i32, usize);

#[test]
fn each_client_sends_again_what_may_be_sent_again_and_nothing_else() {
    use Step::{Answer, Busy, Close, NotStored};
    const RESEND: &[&str] = &["--resend-undecided"];
    const CASES: &[Case] = &[
        (&[Answer(503), Answer(200)], &["--ack", "stored"], 0, 2),
        (&[Answer(408), Answer(200)], &["--form", "array"], 0, 2),
        (&[Answer(429), Answer(200)], &["--form", "lines"], 0, 2),
        (&[Answer(400)], &["--form", "lines"], 1, 1),
        (&[Answer(504)], &[], 4, 1),
        (&[Close], &[], 4, 1),
        (&[Answer(502)], &[], 4, 1),
        (&[Answer(504), Close, Answer(500), Answer(200)], RESEND, 0, 4),
        (&[NotStored], RESEND, 1, 1),
        (&[Answer(400)], RESEND, 1, 1),
        (&[Answer(413)], RESEND, 1, 1),
        (&[Answer(501)], RESEND, 1, 1),
        (&[Busy, Busy, Busy, Busy, Answer(503), Answer(503)], &[], 0, 7),
        (&[Answer(503), Answer(503)], &["--attempts", "2"], 3, 2),
        (&[Close, Answer(503)], &["--attempts", "2", "--resend-undecided"], 4, 2),
    ];
    let payloads = ["{\"id\":1}", "\"two\"", "3"].map(str::to_owned);
    let run_all = |name: &str, client: &[PathBuf]| {
        for (steps, options, status, requests) in CASES {
            let scripted = Scripted::start(steps);
            let output = run(client, options, scripted.address, &payloads);
            let said = String::from_utf8_lossy(&output.stderr);
            let came = scripted.came.lock().unwrap();
            let case = format!("{name} {options:?} {status}, {} requests: {said}", came.len());
            assert_eq!(output.status.code(), Some(*status), "{case}");
            assert_eq!(came.len(), *requests, "{case}");
            for request in came.iter() {
                let (content_type, body) = match options {
                    ["--form", "lines"] => ("application/x-ndjson", "{\"id\":1}\n\"two\"\n3\n"),
                    ["--form", "array"] => ("application/json", r#"[{"id":1},"two",3]"#),
                    _ => ("application/json", r#"{"data":[{"id":1},"two",3]}"#),
                };
                assert_eq!(request.body, body, "{case}");
                assert_eq!(request.content_type.as_deref(), Some(content_type), "{case}");
                assert_eq!(request.ack.is_some(), options.contains(&"--ack"), "{case}");
            }
            // Which pauses they choose, whatever the waiting itself took.
            let pauses = pauses(&said);
            assert_eq!(pauses.len(), requests - 1, "{case}");
            for (attempt, (pause, step)) in pauses.iter().zip(steps.iter()).enumerate() {
                let allowed = match step {
                    Answer(503 | 429 | 408) => 1000..=1250,
                    _ => 0..=100 << (attempt + 1),
                };
                assert!(allowed.contains(pause), "{case}: {pause} ms after attempt {attempt}");
            }
            for (at, step) in steps.iter().enumerate().take(requests - 1) {
                let waited = came[at + 1].at - came[at].at;
                let asked =
                    Duration::from_millis(990 * u64::from(matches!(step, Answer(503 | 429 | 408))));
                assert!(waited >= asked, "{case}: {waited:?}");
            }
        }
    };
    std::thread::scope(|scope| {
        for (name, client) in clients() {
            scope.spawn(move || run_all(name, &client));
        }
    });
}

#[test]
fn a_client_that_nobody_listens_to_says_that_nothing_was_sent() {
    let (_nobody, closed) = silent_port();
    for (name, client) in clients() {
        let output = run(&client, &["--attempts", "2"], closed, &["1".to_owned()]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(3), "{name}: {said}");
    }
}

#[test]
fn the_token_is_an_option_or_in_the_environment() {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    std::fs::write(dir.path().join("tokens"), "a-\"token\"\n").unwrap();
    let server = Server::start_in(dir, &[("TOKENS_FILE", "tokens")]);
    const RIGHT: &str = "a-\"token\"";
    for (name, client) in clients() {
        for (option, variable, status) in [
            (None, None, 1),
            (None, Some("wrong"), 1),
            (None, Some(RIGHT), 0),
            (Some(RIGHT), Some("wrong"), 0),
            (Some("wrong"), Some(RIGHT), 1),
        ] {
            let options: Vec<&str> = option.map_or(vec![], |token| vec!["--token", token]);
            let env: Vec<_> = variable.map(|token| ("MILLRACE_TOKEN", token)).into_iter().collect();
            let output = run_with(&client, &options, &env, server.ingest, &["1".to_owned()]);
            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!(
                output.status.code(),
                Some(status),
                "{name} {option:?} {variable:?}: {said}"
            );
            assert!(!said.contains(RIGHT) && !said.contains("wrong"), "{name}: {said}");
        }
    }
}

#[test]
fn a_server_that_is_full_at_times_gets_everything_once() {
    std::thread::scope(|scope| {
        for (name, client) in clients() {
            scope.spawn(move || fill(name, &client));
        }
    });
}

/// The queue holds one of two requests, and the store is slower than any client.
fn fill(name: &str, client: &[PathBuf]) {
    let settings = [
        ("MAX_QUEUE", "500"),
        ("MAX_WORKERS", "1"),
        ("FAULTS", "delay=1ms"),
        ("TOKENS_FILE", "tokens"),
    ];
    let dir = Arc::new(tempfile::tempdir().unwrap());
    std::fs::write(dir.path().join("tokens"), "a-\"token\"\n").unwrap();
    let server = Server::start_in(dir, &settings);
    // So that a drain rate is known: at the first payloads `retry-after` would be a minute.
    let payloads = numbered(0..1_500);
    let first = format!(r#"{{"token":"a-\"token\"","data":[{}]}}"#, payloads[..500].join(","));
    assert_eq!(server.post(first).status, 200);
    server
        .wait("the first payloads", |metrics| metrics.sum("millrace_payloads_stored_total") == 500);

    let form = match name {
        "client.py" => "lines",
        "client.sh" => "array",
        _ => "collection",
    };
    let options = ["--form", form, "--token", "a-\"token\"", "--attempts", "30"];
    let output = run(client, &options, server.ingest, &payloads[500..]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{name}: {said}");
    assert!(said.contains("1000 payloads accepted"), "{name}: {said}");
    assert!(server.metrics().requests(503) > 0, "{name}: {said}");
    server.wait_idle();
    assert_eq!(server.stored_texts(), sorted(&payloads), "{name}");
    assert_eq!(server.stop().status, 0, "{name}");
}
