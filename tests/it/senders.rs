//! The configurations in `examples/senders`: goal, what each sender was given is in the store, once,
//! also if the server refuses some of it meanwhile.
//!
//! Method: the senders that can be installed here run with these files, of which only addresses,
//! tokens and directories are changed. One that is not there is skipped, loudly.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::front::free_address;
use crate::support::needs::{Need, skip};
use crate::support::{Client, PATIENCE, Server, contents, signal, sorted, wait_for};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/senders")
}

/// The text of an example with parts of it replaced, each of which must be there.
fn example(name: &str, changes: &[(&str, &str)]) -> String {
    let mut text = std::fs::read_to_string(folder().join(name)).unwrap();
    for (from, to) in changes {
        assert!(text.contains(from), "{name} has no {from}");
        text = text.replace(from, to);
    }
    text
}

/// Where `name` is; Debian has daemons where not every user looks.
fn found(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let directories = std::env::split_paths(&path).chain(["/usr/sbin".into()]);
    directories.map(|directory| directory.join(name)).find(|file| file.is_file())
}

/// A daemon in a directory of its own; ended when dropped.
struct Daemon {
    child: Child,
    dir: tempfile::TempDir,
}

impl Daemon {
    /// Starts `command` and waits until it listens on `address`.
    fn start(mut command: Command, dir: tempfile::TempDir, address: SocketAddr) -> Daemon {
        let log = std::fs::File::create(dir.path().join("log")).unwrap();
        command.current_dir(dir.path()).stdin(Stdio::null());
        command.stdout(log.try_clone().unwrap()).stderr(log);
        let daemon = Daemon { child: command.spawn().unwrap(), dir };
        let deadline = Instant::now() + PATIENCE;
        while Client::try_connect(address).is_none() {
            assert!(Instant::now() < deadline, "it does not listen: {}", daemon.log());
            std::thread::sleep(Duration::from_millis(20));
        }
        daemon
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // nginx ends its workers with it, which a SIGKILL would not let it.
        signal(&self.child, "TERM");
        let _reaped = self.child.wait();
    }
}

const TOKEN: &str = "sender-token";

/// A server with settings and, if they name it, a `TOKENS_FILE` with [`TOKEN`].
fn server(settings: &[(&str, &str)]) -> Server {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    std::fs::write(dir.path().join("tokens"), format!("{TOKEN}\n")).unwrap();
    Server::start_in(dir, settings)
}

/// A queue that an outage fills soon.
const SMALL: [(&str, &str); 2] = [("MAX_QUEUE", "800"), ("TOKENS_FILE", "tokens")];

/// What `send` returns, which begins in an outage of the store that lasts until something was
/// refused: however fast the machine is, what is sent meets a full queue.
fn through_refusals<T: Send>(server: &Server, send: impl FnOnce() -> T + Send) -> T {
    server.break_store();
    std::thread::scope(|scope| {
        let sender = scope.spawn(send);
        server.wait("requests to be refused", |metrics| metrics.requests(503) > 0);
        server.mend_store();
        sender.join().unwrap()
    })
}

/// JSON texts of about `bytes` bytes each, all different.
fn events(count: usize, bytes: usize) -> Vec<String> {
    let text = "x".repeat(bytes);
    (0..count).map(|id| format!(r#"{{"id":{id},"text":"{text}"}}"#)).collect()
}

fn ended(command: &mut Command, stdin: &str) -> Output {
    for proxy in ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"] {
        command.env_remove(proxy);
    }
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut pipe = child.stdin.take().unwrap();
    let stdin = stdin.to_owned();
    let writer = std::thread::spawn(move || pipe.write_all(stdin.as_bytes()));
    let output = child.wait_with_output().unwrap();
    let _all_or_some = writer.join().unwrap();
    output
}

fn assert_ended_well(output: &Output) {
    let said = String::from_utf8_lossy(&output.stderr);
    let more = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}: {said}\n{more}", output.status);
}

#[test]
fn every_sender_says_how_far_it_was_tried() {
    let clients = std::fs::read_to_string(folder().join("../../docs/clients.md")).unwrap();
    let this = include_str!("senders.rs");
    let mut seen = 0;
    for entry in std::fs::read_dir(folder()).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let text = std::fs::read_to_string(folder().join(&name)).unwrap();
        let head: String = text.lines().take(16).collect::<Vec<_>>().join("\n");
        let is_run = head.contains("Run by the tests with ");
        let is_read = head.contains("Not run: read from the source of ");
        assert!(is_run != is_read, "{name} says either how it is run or what was read");
        assert_eq!(this.contains(&format!("\"{name}\"")), is_run, "{name}");
        let row = clients.lines().find(|line| line.contains(&format!("examples/senders/{name}")));
        let row = row.unwrap_or_else(|| panic!("docs/clients.md has no {name}"));
        assert_eq!(row.contains("| run by the tests"), is_run, "{row}");
        seen += 1;
    }
    assert!(seen >= 9, "{seen}");
}

#[test]
fn curl_sends_a_file_of_lines() {
    if found("curl").is_none() {
        skip(Need::Curl, "there is no curl here");
        return;
    }
    let server = server(&SMALL);
    let events = events(1500, 180);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("events.ndjson");
    std::fs::write(&file, events.join("\n") + "\n").unwrap();
    let send = |token: &str| {
        let mut command = Command::new("bash");
        command.arg(folder().join("curl.sh")).arg(&file);
        command.arg(format!("http://{}/payloads", server.ingest)).env("MILLRACE_TOKEN", token);
        ended(&mut command, "")
    };
    let refused = send("wrong");
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && said.contains("unknown"), "{said}");
    assert_ended_well(&through_refusals(&server, || send(TOKEN)));
    server.wait_idle();
    assert_eq!(server.stored_texts(), sorted(&events));
}

#[test]
fn syslog_ng_outlasts_an_outage() {
    let module = Path::new("/usr/lib/syslog-ng");
    let is_there = std::fs::read_dir(module).is_ok_and(|mut versions| {
        versions.any(|version| version.is_ok_and(|v| v.path().join("libhttp.so").exists()))
    });
    let Some(binary) = found("syslog-ng").filter(|_| is_there) else {
        skip(Need::Syslogng, "there is no syslog-ng with its HTTP module here");
        return;
    };
    // So few that the queue is full soon, and requests are refused until the store is back.
    let server = server(&[("MAX_QUEUE", "100"), ("TOKENS_FILE", "tokens"), ("ENQUEUE_WAIT", "0s")]);
    let input = free_address();
    let dir = tempfile::tempdir().unwrap();
    let here = dir.path().to_str().unwrap().to_owned();
    let config = example(
        "syslog-ng.conf",
        &[
            ("127.0.0.1:8080", &server.ingest.to_string()),
            ("port(6514)", &format!("port({})", input.port())),
            ("Bearer TOKEN", &format!("Bearer {TOKEN}")),
            ("/var/lib/syslog-ng", &here),
            ("time-reopen(2)", "time-reopen(1)"),
            ("batch-lines(1000)", "batch-lines(50)"),
        ],
    );
    std::fs::write(dir.path().join("conf"), config).unwrap();
    let mut command = Command::new(binary);
    command.args(["--foreground", "--no-caps", "--stderr", "--cfgfile", "conf"]);
    for (option, name) in
        [("--persist-file", "persist"), ("--control", "ctl"), ("--pidfile", "pid")]
    {
        command.arg(option).arg(dir.path().join(name));
    }
    let daemon = Daemon::start(command, dir, input);

    server.break_store();
    let mut stream = TcpStream::connect(input).unwrap();
    let mut lines = String::new();
    for id in 0..600 {
        writeln!(lines, "<13>Nov 30 08:00:00 host shop[7]: order {id} \"quoted\"").unwrap();
    }
    stream.write_all(lines.as_bytes()).unwrap();
    server.wait("requests to be refused", |metrics| metrics.requests(503) > 5);
    server.mend_store();
    server.wait("all of it", |metrics| metrics.sum("millrace_payloads_stored_total") >= 600);
    let log = daemon.log();
    // It keeps its connections.
    drop(daemon);
    server.wait_idle();
    let stored = server.stored_texts();
    let messages: Vec<String> = stored
        .iter()
        .map(|text| {
            let value: Value = serde_json::from_str(text).unwrap();
            assert_eq!(value["program"], "shop", "{text}");
            value["message"].as_str().unwrap().to_owned()
        })
        .collect();
    let expected: Vec<String> = (0..600).map(|id| format!("order {id} \"quoted\"")).collect();
    assert_eq!(sorted(&messages), sorted(&expected), "{log}");
}

#[test]
fn opentelemetry_sends_each_export_as_one_payload() {
    let python = std::env::var("MILLRACE_TEST_PYTHON").unwrap_or_else(|_| "python3".into());
    let asked =
        Command::new(&python).args(["-c", "import opentelemetry.exporter.otlp.json.http"]).output();
    if !asked.is_ok_and(|output| output.status.success()) {
        let why = "has no opentelemetry-exporter-otlp-json-http";
        skip(Need::Opentelemetry, format!("{python} {why}"));
        return;
    }
    let settings = [
        ("PATHS", "/payloads,/v1/logs"),
        ("BODY", "object"),
        ("MAX_QUEUE", "2"),
        ("MAX_WORKERS", "1"),
        ("TOKENS_FILE", "tokens"),
    ];
    let server = server(&settings);
    let lines: Vec<String> = (0..3000).map(|id| format!("order {id} \"quoted\"")).collect();
    let mut command = Command::new(&python);
    command.arg(folder().join("opentelemetry_logs.py"));
    command.arg(format!("http://{}/v1/logs", server.ingest)).env("MILLRACE_TOKEN", TOKEN);
    let sent = lines.join("\n") + "\n";
    let output = through_refusals(&server, || ended(&mut command, &sent));
    assert_ended_well(&output);
    server.wait_idle();
    let mut bodies = Vec::new();
    for text in server.stored_texts() {
        let export: Value = serde_json::from_str(&text).unwrap();
        for resource in export["resourceLogs"].as_array().unwrap() {
            for scope in resource["scopeLogs"].as_array().unwrap() {
                for record in scope["logRecords"].as_array().unwrap() {
                    bodies.push(record["body"]["stringValue"].as_str().unwrap().to_owned());
                }
            }
        }
    }
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(sorted(&bodies), sorted(&lines), "{said}");
}

/// Four clients send through `front`, of `proxy`, to two servers, of which one stops meanwhile; then
/// the other one is asked whose a request was.
fn behind(proxy: Daemon, front: SocketAddr, one: Server, two: &Server) {
    // They send until the server has stopped: a proxy that misses its first check of a server
    // leaves that one out for a while.
    let enough = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..4)
        .map(|client| {
            let enough = enough.clone();
            std::thread::spawn(move || {
                let mut answers = BTreeMap::new();
                let mut connection = Client::connect(front);
                for request in 0.. {
                    if request >= 100 && enough.load(Relaxed) {
                        break;
                    }
                    let id = format!(r#""{client}-{request}""#);
                    connection.send(request_of(&format!("[{id}]")));
                    let reply = connection.try_reply();
                    let ends =
                        reply.as_ref().is_none_or(|r| r.header("connection") == Some("close"));
                    if ends {
                        connection = Client::connect(front);
                    }
                    answers.insert(id, reply.map_or(0, |reply| reply.status));
                    std::thread::sleep(Duration::from_millis(10));
                }
                answers
            })
        })
        .collect();
    wait_for("requests at both", || {
        [&one, two].iter().all(|server| server.metrics().requests(200) > 10)
    });
    let stopped = one.stop();
    assert_eq!((stopped.status, stopped.lost), (0, 0));
    enough.store(true, Relaxed);
    let answers: BTreeMap<String, u16> =
        clients.into_iter().flat_map(|client| client.join().unwrap()).collect();
    is_known_behind(front, "127.0.0.7", two);
    // It keeps its connections to the servers.
    drop(proxy);
    two.wait_idle();
    let mut copies: BTreeMap<String, usize> = BTreeMap::new();
    for text in contents(&stopped.stored()).into_iter().chain(two.stored_texts()) {
        *copies.entry(text).or_default() += 1;
    }
    let mut unsure = 0;
    for (id, status) in &answers {
        let copies = copies.get(id).copied().unwrap_or(0);
        match status {
            200 => assert_eq!(copies, 1, "{id}"),
            // A request that met the end of a connection between the proxy and the server.
            0 | 502 | 504 => unsure += 1,
            _ => panic!("{id}: {status}"),
        }
        assert!(copies <= 1, "{id}: {copies} copies");
    }
    assert!(answers.len() >= 400 && unsure <= 8, "{unsure} of {} are unsure", answers.len());
}

/// A POST of a JSON array.
fn request_of(body: &str) -> Vec<u8> {
    crate::support::request(body.as_bytes(), "content-type: application/json\r\n")
}

/// What a client at `client` sends through `front` counts as its own at the server.
fn is_known_behind(front: SocketAddr, client: &str, server: &Server) {
    let mut curl = Command::new("curl");
    curl.args(["-sS", "--interface", client, "-d", "[\"mine\"]"]);
    // What a client says of others does not count.
    curl.args(["-H", "x-forwarded-for: 192.0.2.1", "-H", "forwarded: for=192.0.2.2"]);
    let output = ended(curl.arg(format!("http://{front}/payloads")), "");
    assert_ended_well(&output);
    assert!(String::from_utf8_lossy(&output.stdout).contains("accepted"), "{output:?}");
    let peers = server.admin("/peers").body;
    assert!(peers.lines().any(|line| line.starts_with(client)), "{peers}");
    assert!(!peers.contains("192.0.2."), "{peers}");
}

/// Settings of a server behind the proxies of the examples.
const BEHIND: [(&str, &str); 2] = [("TRUST", "127.0.0.1/32"), ("INGEST_HEALTH", "on")];

/// HAProxy with the example, in front of servers at `http` and, by the PROXY protocol, `tcp`.
fn haproxy(
    binary: &Path,
    http: [SocketAddr; 2],
    tcp: [SocketAddr; 2],
) -> (Daemon, [SocketAddr; 2]) {
    let fronts = [free_address(), free_address()];
    let config = example(
        "haproxy.cfg",
        &[
            ("127.0.0.1:8000", &fronts[0].to_string()),
            ("127.0.0.1:8001", &fronts[1].to_string()),
            ("one 127.0.0.1:8080", &format!("one {}", http[0])),
            ("two 127.0.0.1:8090", &format!("two {}", http[1])),
            ("one 127.0.0.1:8081", &format!("one {}", tcp[0])),
            ("two 127.0.0.1:8091", &format!("two {}", tcp[1])),
        ],
    );
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("haproxy.cfg"), config).unwrap();
    let mut command = Command::new(binary);
    command.args(["-db", "-f", "haproxy.cfg"]);
    (Daemon::start(command, dir, fronts[0]), fronts)
}

#[test]
fn haproxy_passes_requests_on_once_and_says_whose_they_are() {
    let (Some(binary), Some(_)) = (found("haproxy"), found("curl")) else {
        skip(Need::Haproxy, "there is no haproxy or no curl here");
        return;
    };
    let tcp = [free_address(), free_address()];
    let [one, two] = tcp.map(|tcp| {
        let listen = format!("127.0.0.1:0, {tcp}?proxy=127.0.0.1/32");
        Server::start(&[&BEHIND[..], &[("LISTEN", &listen)]].concat())
    });
    let (proxy, [http_front, tcp_front]) = haproxy(&binary, [one.ingest, two.ingest], tcp);
    // Each way with its own clients; one of the servers is down for all but the last.
    drop(one.stop());
    wait_for("the stopped server to be left out", || {
        (0..4).all(|_| answers(http_front) && answers(tcp_front))
    });
    is_known_behind(http_front, "127.0.0.5", &two);
    is_known_behind(tcp_front, "127.0.0.6", &two);
    drop(proxy);
    two.wait_idle();

    let one = Server::start(&BEHIND);
    let three = Server::start(&BEHIND);
    let (proxy, [front, _]) = haproxy(&binary, [one.ingest, three.ingest], tcp);
    behind(proxy, front, one, &three);
}

/// Whether a POST to a proxy is answered with 200.
fn answers(front: SocketAddr) -> bool {
    let mut curl = Command::new("curl");
    curl.args(["-s", "-o", "/dev/null", "-w", "%{http_code}", "-m", "5", "-d", "[]"]);
    let output = ended(curl.arg(format!("http://{front}/payloads")), "");
    output.stdout == b"200"
}

#[test]
fn nginx_passes_requests_on_once_and_says_whose_they_are() {
    let (Some(binary), Some(_)) = (found("nginx"), found("curl")) else {
        skip(Need::Nginx, "there is no nginx or no curl here");
        return;
    };
    let [one, two] = [Server::start(&BEHIND), Server::start(&BEHIND)];
    let front = free_address();
    let dir = tempfile::tempdir().unwrap();
    let here = dir.path().display();
    let mut own = format!("pid {here}/pid;\nerror_log {here}/errors;\ndaemon off;\n");
    own += "worker_processes auto;";
    let mut paths = "http {\n    access_log off;\n".to_owned();
    for kind in ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"] {
        writeln!(paths, "    {kind}_temp_path {here}/{kind};").unwrap();
    }
    let config = example(
        "nginx.conf",
        &[
            ("worker_processes auto;", &own),
            ("http {\n", &paths),
            ("server 127.0.0.1:8080", &format!("server {}", one.ingest)),
            ("server 127.0.0.1:8090", &format!("server {}", two.ingest)),
            ("listen 127.0.0.1:8000", &format!("listen {front}")),
        ],
    );
    std::fs::write(dir.path().join("nginx.conf"), config).unwrap();
    let mut command = Command::new(binary);
    command.arg("-p").arg(dir.path()).arg("-c").arg(dir.path().join("nginx.conf"));
    behind(Daemon::start(command, dir, front), front, one, &two);
}

#[test]
fn a_page_sends_what_it_has_by_fetch_and_the_rest_by_beacon() {
    if found("node").is_none() {
        skip(Need::Node, "there is no node here");
        return;
    }
    let origins = [("CORS_ORIGINS", "https://shop.example.com"), ("TOKEN_IN_QUERY", "on")];
    let server = server(&[&SMALL[..], &origins].concat());
    let events = events(2000, 10);
    // What a browser has and Node has not.
    let page = r#"
        import { createInterface } from "node:readline";
        const [module, url, token, way] = process.argv.slice(2);
        const beacons = [];
        const sendBeacon = (url, body) => beacons.push(fetch(url, { method: "POST", body })) > 0;
        Object.defineProperty(globalThis, "navigator", { value: { sendBeacon } });
        let changed;
        globalThis.document = { visibilityState: "visible", addEventListener: (_, then) => (changed = then) };
        const { Events } = await import(module);
        const events = new Events(url, token);
        for await (const line of createInterface({ input: process.stdin })) events.push(JSON.parse(line));
        if (way === "fetch") await events.flush();
        document.visibilityState = "hidden";
        changed();
        const answers = await Promise.all(beacons);
        console.log(answers.map((answer) => answer.status).join(" "));
    "#;
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("page.mjs"), page).unwrap();
    let run = |way: &str, events: &[String]| {
        let mut command = Command::new("node");
        command.arg(dir.path().join("page.mjs")).arg(folder().join("browser.mjs"));
        command.arg(format!("http://{}/payloads", server.ingest)).args([TOKEN, way]);
        let output = ended(&mut command, &(events.join("\n") + "\n"));
        assert_ended_well(&output);
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    // Fewer than a request holds are left to the beacon.
    let (by_fetch, by_beacon) = events.split_at(1950);
    assert_eq!(through_refusals(&server, || run("fetch", by_fetch)), "");
    server.wait_idle();
    assert_eq!(run("beacon", by_beacon), "200");
    server.wait_idle();
    assert_eq!(server.stored_texts(), sorted(&events));
}
