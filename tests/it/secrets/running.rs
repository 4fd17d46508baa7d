//! Servers and commands that work, or fail while they run. Every secret is in use: the store is
//! behind a proxy that wants a password, the store quotes the credentials that it was sent, clients
//! send tokens that are known and others that are not, and workers and connections panic.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::{Arc, Mutex};

use super::canaries::{
    ACCESS_KEY, ADMIN_TOKEN, CLIENT_TOKEN, HEADER, PRIVATE_KEY, PROXY_PASSWORD, QUERY,
    REFUSED_BODY, SECRET_KEY, SESSION_TOKEN, STORED_BODY, Search, UNKNOWN_TOKEN, percent,
};
use crate::support::front::free_port;
use crate::support::proxy::ProxyServer;
use crate::support::s3::{BUCKET, Fault, S3Server, Seen};
use crate::support::tls::{self, Authority, TlsClient, ed25519};
use crate::support::{Client, SPOOLED, command, files, gzip, request, signal, wait_for};

/// Not a loopback address, which no request reaches through a proxy; nobody can resolve it.
const HOST: &str = "s3.corp.invalid";

/// How a server is run.
#[derive(Clone, Copy)]
struct Way {
    level: &'static str,
    format: &'static str,
    client: &'static str,
}

/// Every level in both formats; the store's other client where most is logged.
fn ways() -> Vec<Way> {
    let mut ways = Vec::new();
    for level in ["trace", "debug", "info", "warn", "error", "off"] {
        for format in ["text", "json"] {
            ways.push(Way { level, format, client: "direct" });
            if level == "trace" {
                ways.push(Way { level, format, client: "sdk" });
            }
        }
    }
    // A library by its name.
    let level = "aws_smithy_runtime=trace,aws_config=trace,hyper=trace,rustls=trace";
    ways.push(Way { level, format: "text", client: "sdk" });
    ways
}

#[test]
fn no_server_and_no_command_shows_a_secret() {
    let left = Mutex::new(ways());
    let found = Mutex::new(Search::default());
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                loop {
                    let Some(way) = left.lock().unwrap().pop() else { break };
                    let search = exercise(way);
                    found.lock().unwrap().merge(search);
                }
            });
        }
    });
    found.into_inner().unwrap().end(15 * 50);
}

/// What surrounds a server: its store and the way there, its files, and what it has written.
struct Scene {
    name: String,
    store: S3Server,
    proxy: ProxyServer,
    dir: Arc<tempfile::TempDir>,
    /// Standard output and standard error of every process, by door.
    written: tempfile::TempDir,
    /// Who has signed the server's certificate.
    authority: Authority,
    settings: Vec<(&'static str, String)>,
}

impl Scene {
    fn new(way: Way) -> Scene {
        let store = S3Server::start();
        store.add_keys(ACCESS_KEY, SECRET_KEY);
        let proxy = ProxyServer::start(&[(HOST, store.addr())]);
        let dir = Arc::new(tempfile::tempdir().unwrap());
        // Port 0 may be there once.
        let secured = SocketAddr::from(([127, 0, 0, 3], free_port()));
        let settings = vec![
            ("MILLRACE_CONFIG", "m.toml".to_owned()),
            ("LISTEN", format!("127.0.0.1:0,https://{secured}")),
            ("TLS_CERT", "cert.pem".to_owned()),
            ("TLS_KEY", "key.pem".to_owned()),
            // Another address than the ingest listener's, by which its port is found.
            ("ADMIN_LISTEN", "127.0.0.2:0".to_owned()),
            ("LOG_FORMAT", way.format.to_owned()),
            ("CORES", "0".to_owned()),
            ("STORE", format!("s3://{BUCKET}/in/")),
            ("AWS_ENDPOINT_URL_S3", format!("http://{HOST}:9000")),
            ("AWS_ACCESS_KEY_ID", ACCESS_KEY.to_owned()),
            ("AWS_SECRET_ACCESS_KEY", SECRET_KEY.to_owned()),
            ("AWS_SESSION_TOKEN", SESSION_TOKEN.to_owned()),
            ("AWS_EC2_METADATA_DISABLED", "true".to_owned()),
            ("HOME", "/nonexistent".to_owned()),
            ("HTTP_PROXY", proxy.url_of(&format!("me:{PROXY_PASSWORD}"))),
            ("S3_CLIENT", way.client.to_owned()),
            ("TOKENS_FILE", "tokens".to_owned()),
            ("TOKEN_IN_QUERY", "on".to_owned()),
            ("ADMIN_TOKEN", ADMIN_TOKEN.to_owned()),
            ("SPOOL_DIR", "spool".to_owned()),
            ("SPOOL_SEGMENT", "2MiB".to_owned()),
            ("SPOOL_MAX", "8MiB".to_owned()),
            ("MAX_LENGTH", "16KiB".to_owned()),
            ("MAX_WORKERS", "2".to_owned()),
            ("RETRY_BASE", "10ms".to_owned()),
            ("RETRY_MAX", "20ms".to_owned()),
            ("ACK_TIMEOUT", "500ms".to_owned()),
            ("DRAIN_TIMEOUT", "1s".to_owned()),
        ];
        fs::write(dir.path().join("m.toml"), format!("log = \"{}\"\n", way.level)).unwrap();
        fs::write(dir.path().join("tokens"), format!("{CLIENT_TOKEN};name=friend\n")).unwrap();
        let (authority, key) = (Authority::new("root"), ed25519(PRIVATE_KEY));
        fs::write(dir.path().join("cert.pem"), authority.server_with(&[tls::HOST], &key)).unwrap();
        fs::write(dir.path().join("key.pem"), key).unwrap();
        let name = format!("{} {} {}", way.level, way.format, way.client);
        let written = tempfile::tempdir().unwrap();
        Scene { name, store, proxy, dir, written, authority, settings }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The binary, whose output is kept as that of `door`.
    fn command(&self, door: &str, args: &[&str], more: &[(&str, &str)]) -> Command {
        let settings = self.settings.iter().map(|(name, value)| (*name, value.as_str()));
        let settings: Vec<_> = settings.chain(more.iter().copied()).collect();
        let mut command = command(self.dir.path(), args, &settings);
        command.env("RUST_BACKTRACE", "0");
        let file = |of: &str| {
            let path = self.written.path().join(format!("{door}, {of}"));
            File::options().create(true).append(true).open(path).unwrap()
        };
        command.stdout(file("stdout")).stderr(file("stderr"));
        command
    }

    /// Runs a command to its end.
    fn run(&self, args: &[&str]) {
        let door = format!("`{}`", args.join(" "));
        self.command(&door, args, &[]).status().unwrap();
    }

    fn serve(&self, door: &str, more: &[(&str, &str)]) -> Running {
        let child = self.command(door, &[], more).spawn().unwrap();
        let mut running =
            Running { child, ingest: unknown(), secured: unknown(), admin: unknown() };
        wait_for("a server that listens", || {
            if let Some(status) = running.child.try_wait().unwrap() {
                let said = fs::read_to_string(self.written.path().join(format!("{door}, stderr")));
                panic!("{}: {door} ended, {status}: {said:?}", self.name);
            }
            for address in listening(running.child.id()) {
                match address.ip().to_string().as_str() {
                    "127.0.0.1" => running.ingest = address,
                    "127.0.0.3" => running.secured = address,
                    _ => running.admin = address,
                }
            }
            let all = [running.ingest, running.secured, running.admin];
            !all.contains(&unknown()) && running.is_ready()
        });
        running
    }

    /// Has the store refuse every PUT, quoting the head of the request.
    fn refuse(&self, status: u16, code: &'static str) {
        self.store.fail_when(move |seen| {
            (seen.method == "PUT").then(|| {
                let quoted = quoted(seen);
                Fault::error_with(status, code, &quoted, &[("x-amz-request-id", &quoted)])
            })
        });
    }

    /// Searches all that the processes have written and left.
    fn search(&self, search: &mut Search) {
        for (door, bytes) in files(self.written.path()) {
            // It exports payloads.
            let allowed: &[&str] = if door.contains("export") && door.ends_with("stdout") {
                &[STORED_BODY]
            } else {
                &[]
            };
            search.look(&format!("{}: {door}", self.name), bytes, allowed);
        }
        for (name, bytes) in files(self.dir.path()) {
            search.look(&format!("{}: name of {name}", self.name), &name, &[]);
            // The payloads of dead letters and spool segments are what clients sent.
            let is_ours = name.starts_with("dead-letter") && name.ends_with(".json");
            let is_journal = name.starts_with("spool") && name.contains("journal");
            if is_ours || is_journal {
                search.look(&format!("{}: {name}", self.name), bytes, &[]);
            } else if name.starts_with("dead-letter") || name.starts_with("spool") {
                search.look(&format!("{}: {name}", self.name), bytes, &[STORED_BODY]);
            }
        }
        for (key, bytes) in self.store.objects() {
            search.look(&format!("{}: object {key}", self.name), bytes, &[STORED_BODY]);
        }
    }
}

/// What a store may quote: the credentials, as they come in a request and escaped.
fn quoted(seen: &Seen) -> String {
    let header = |name| seen.header(name).unwrap_or_default().to_owned();
    let [token, proxy, request] =
        ["x-amz-security-token", "proxy-authorization", "authorization"].map(header);
    let escaped = [token.replace('/', "\\/"), percent(&token, true), percent(&token, false)];
    let all = [token, proxy, escaped.join(" "), request];
    all.join(" ").chars().take(390).collect()
}

fn unknown() -> SocketAddr {
    ([127, 0, 0, 1], 0).into()
}

/// A server; killed when dropped.
struct Running {
    child: Child,
    ingest: SocketAddr,
    /// With TLS.
    secured: SocketAddr,
    admin: SocketAddr,
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ended_already = self.child.kill();
        let _reaped_already = self.child.wait();
    }
}

impl Running {
    fn is_ready(&self) -> bool {
        self.get("/readyz", "").is_some_and(|page| page.starts_with(b"HTTP/1.1 200"))
    }

    /// Sends `request` to the ingest listener; all that comes back.
    fn ask(&self, request: impl AsRef<[u8]>) -> Vec<u8> {
        ask(self.ingest, request).unwrap_or_default()
    }

    /// The same over TLS.
    fn ask_secured(&self, authority: &Authority, request: impl AsRef<[u8]>) -> Vec<u8> {
        let mut client = TlsClient::connect(self.secured, &authority.trust().config());
        // It may be answered, and closed, before it is there.
        let _ = client.try_send(request);
        client.stream.conn.send_close_notify();
        let _ = client.try_send(b"");
        client.rest().unwrap_or_default()
    }

    /// A page of the admin listener with its head; `None`: there is none yet.
    fn get(&self, path: &str, headers: &str) -> Option<Vec<u8>> {
        let head = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{headers}\r\n");
        ask(self.admin, head)
    }

    fn metric(&self, name: &str) -> u64 {
        let page = String::from_utf8(self.get("/metrics", "").unwrap()).unwrap();
        let samples = page.lines().filter(|line| line.starts_with(name));
        samples.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
    }

    fn wait_metric(&self, name: &str, more_than: u64) {
        wait_for(name, || self.metric(name) > more_than);
    }

    fn wait_ended(mut self) {
        wait_for("the end of a server", || self.child.try_wait().unwrap().is_some());
    }
}

/// Everything until the other side closes, or is silent for a while.
fn ask(address: SocketAddr, request: impl AsRef<[u8]>) -> Option<Vec<u8>> {
    use std::io::Read as _;
    let mut client = Client::try_connect(address)?;
    client.try_send(request);
    client.half_close();
    let mut answer = Vec::new();
    // A reset is an end as well.
    let _ = client.stream.read_to_end(&mut answer);
    Some(answer)
}

/// The addresses on which a process listens: its sockets, among those of its network namespace.
fn listening(pid: u32) -> Vec<SocketAddr> {
    let Ok(open) = fs::read_dir(format!("/proc/{pid}/fd")) else { return Vec::new() };
    let links = open.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    let own: Vec<String> = links.map(|link| link.display().to_string()).collect();
    let table = fs::read_to_string(format!("/proc/{pid}/net/tcp")).unwrap_or_default();
    let address = |row: &str| {
        let columns: Vec<&str> = row.split_whitespace().collect();
        let is_own = own.contains(&format!("socket:[{}]", columns.get(9)?));
        let (ip, port) = columns[1].split_once(':')?;
        // In the kernel's byte order.
        let ip = u32::from_str_radix(ip, 16).ok()?.to_le_bytes();
        let port = u16::from_str_radix(port, 16).ok()?;
        (columns[3] == "0A" && is_own).then(|| SocketAddr::from((ip, port)))
    };
    table.lines().skip(1).filter_map(address).collect()
}

/// Requests with a secret in each place that a request has.
fn requests() -> Vec<(&'static str, Vec<u8>)> {
    let body = format!(r#"{{"data":[{{"a":"{STORED_BODY}"}},{{"b":"{STORED_BODY}"}}]}}"#);
    let bearer = format!("authorization: Bearer {CLIENT_TOKEN}\r\ncookie: {HEADER}\r\n");
    let with = |headers: &str| request(body.as_bytes(), headers);
    let refused = |body: &str| request(body.as_bytes(), &bearer);
    let query = |query: &str| {
        let request = String::from_utf8(with("")).unwrap();
        request.replacen("/payloads", &format!("/payloads?{query}"), 1).into_bytes()
    };
    let raw = |text: String| text.into_bytes();
    let head = "POST /payloads HTTP/1.1\r\nhost: x\r\n";
    vec![
        ("queued", with(&bearer)),
        ("stored", with(&format!("{bearer}millrace-ack: stored\r\n"))),
        ("spooled", with(&format!("{bearer}{SPOOLED}"))),
        ("by hyper", with(&format!("{bearer}expect: 100-continue\r\nx-odd: {HEADER}\r\n"))),
        ("key", with(&format!("x-api-key: {CLIENT_TOKEN}\r\n"))),
        ("query", query(&format!("token={CLIENT_TOKEN}&q={QUERY}"))),
        (
            "envelope",
            request(
                format!(r#"{{"token":"{CLIENT_TOKEN}","data":["{STORED_BODY}"]}}"#).as_bytes(),
                "",
            ),
        ),
        ("gzip", {
            let packed = gzip(body.as_bytes());
            request(&packed, &format!("{bearer}content-encoding: gzip\r\n"))
        }),
        ("unknown token", with(&format!("authorization: Bearer {UNKNOWN_TOKEN}\r\n"))),
        ("unknown key", with(&format!("x-api-key: {UNKNOWN_TOKEN}\r\n"))),
        ("two tokens", with(&format!("{bearer}x-api-key: {UNKNOWN_TOKEN}\r\n"))),
        ("other scheme", with(&format!("authorization: Basic {UNKNOWN_TOKEN}\r\n"))),
        ("unknown in the query", query(&format!("token={UNKNOWN_TOKEN}&q={QUERY}"))),
        (
            "unknown in the envelope",
            request(format!(r#"{{"token":"{UNKNOWN_TOKEN}","data":[]}}"#).as_bytes(), ""),
        ),
        ("not JSON", refused(&format!(r#"{{"data":["{REFUSED_BODY}"]"#))),
        ("no collection", refused(&format!(r#"{{"data":"{REFUSED_BODY}"}}"#))),
        ("only a text", refused(&format!(r#""{REFUSED_BODY}""#))),
        (
            "not UTF-8",
            request(&[br#"{"data":["#, REFUSED_BODY.as_bytes(), b"\xff\"]}"].concat(), &bearer),
        ),
        ("too long", refused(&format!(r#"{{"data":["{}"]}}"#, REFUSED_BODY.repeat(800)))),
        (
            "not gzip",
            request(REFUSED_BODY.as_bytes(), &format!("{bearer}content-encoding: gzip\r\n")),
        ),
        (
            "unknown coding",
            request(REFUSED_BODY.as_bytes(), &format!("{bearer}content-encoding: {HEADER}\r\n")),
        ),
        (
            "unknown type",
            request(
                REFUSED_BODY.as_bytes(),
                &format!("{bearer}content-type: {HEADER}/x;a=\"{HEADER}\r\n"),
            ),
        ),
        ("unknown ack", with(&format!("{bearer}millrace-ack: {HEADER}\r\n"))),
        (
            "bad chunk",
            raw(format!("{head}{bearer}transfer-encoding: chunked\r\n\r\n{REFUSED_BODY}\r\n")),
        ),
        (
            "bad trailer",
            raw(format!(
                "{head}{bearer}transfer-encoding: chunked\r\n\r\n0\r\n{HEADER}\x01\r\n\r\n"
            )),
        ),
        (
            "cut body",
            raw(format!("{head}{bearer}content-length: 900\r\n\r\n{{\"data\":[\"{REFUSED_BODY}")),
        ),
        (
            "bad header",
            raw(format!("{head}{bearer}x-{HEADER}\x01: {HEADER}\r\ncontent-length: 0\r\n\r\n")),
        ),
        ("bad length", raw(format!("{head}{bearer}content-length: {HEADER}\r\n\r\n"))),
        (
            "bad method",
            raw(format!("P{HEADER} /payloads?q={QUERY} HTTP/1.1\r\nhost: x\r\n{bearer}\r\n")),
        ),
        ("bad path", raw(format!("GET /{QUERY}?q={QUERY} HTTP/1.1\r\nhost: x\r\n{bearer}\r\n"))),
        ("bad target", raw(format!("POST {QUERY}^`| HTTP/1.1\r\nhost: x\r\n{bearer}\r\n"))),
        (
            "bad host",
            raw(format!("POST /payloads HTTP/1.1\r\nhost: {HEADER}@{HEADER}\r\n{bearer}\r\n")),
        ),
        (
            "bad version",
            raw(format!("POST /payloads?q={QUERY} HTTP/7.7\r\nhost: x\r\n{bearer}\r\n")),
        ),
        ("upgrade", raw(format!("{head}{bearer}upgrade: {HEADER}\r\nconnection: upgrade\r\n\r\n"))),
        ("not HTTP", raw(format!("\x16\x03\x01{HEADER}{REFUSED_BODY}\r\n\r\n"))),
    ]
}

/// All doors of one way to run.
fn exercise(way: Way) -> Search {
    let mut search = Search::default();
    let scene = Scene::new(way);

    // Requests, with connections and puts that panic.
    let faults = [("FAULTS", "seed=3,conn_panic=0.05,panic=0.2")];
    let server = scene.serve("server with panics", &faults);
    for (name, request) in requests() {
        let answer = server.ask(request);
        search.look(&format!("{}: answer to: {name}", scene.name), answer, &[]);
    }
    server.wait_metric("millrace_payloads_stored_total", 2);
    // The same over TLS, and where a handshake belongs.
    for (name, request) in requests() {
        let plain = ask(server.secured, &request).unwrap_or_default();
        search.look(&format!("{}: answer instead of a handshake: {name}", scene.name), plain, &[]);
        let answer = server.ask_secured(&scene.authority, request);
        search.look(&format!("{}: answer over TLS to: {name}", scene.name), answer, &[]);
    }
    server.wait_metric("millrace_tls_handshakes_total", 2);
    for (name, headers) in [
        ("no token", String::new()),
        ("unknown token", format!("authorization: Bearer {UNKNOWN_TOKEN}\r\n")),
        ("admin token", format!("authorization: Bearer {ADMIN_TOKEN}\r\n")),
        ("JSON", format!("authorization: Bearer {ADMIN_TOKEN}\r\naccept: application/json\r\n")),
    ] {
        for page in [
            "/",
            "/metrics",
            "/healthz",
            "/readyz",
            "/peers",
            "/peers?by=bytes",
            "/settings",
            "/logs",
        ] {
            let page_of = format!("{}: {page} with {name}", scene.name);
            search.look(&page_of, server.get(page, &headers).unwrap(), &[]);
        }
        let odd = server.get(&format!("/peers?by={QUERY}"), &headers).unwrap();
        search.look(&format!("{}: odd page with {name}", scene.name), odd, &[QUERY]);
    }

    // Files that are changed for the worse.
    let bad = format!("{CLIENT_TOKEN}\n{UNKNOWN_TOKEN} {UNKNOWN_TOKEN}\n");
    fs::write(scene.path("tokens"), bad).unwrap();
    let key = fs::read_to_string(scene.path("key.pem")).unwrap();
    fs::write(scene.path("key.pem"), key.replace('\n', " ")).unwrap();
    let toml = fs::read_to_string(scene.path("m.toml")).unwrap();
    let broken = format!("{toml}admin_token = \"{ADMIN_TOKEN}\nx = {SECRET_KEY}\n");
    fs::write(scene.path("m.toml"), broken).unwrap();
    signal(&server.child, "HUP");
    server.wait_metric("millrace_tokens_reload_failing", 0);
    server.wait_metric("millrace_tls_reload_failing", 0);
    fs::write(scene.path("key.pem"), &key).unwrap();
    fs::write(scene.path("m.toml"), format!("{toml}max_workers = 3\n")).unwrap();
    fs::write(scene.path("tokens"), format!("{CLIENT_TOKEN};name=friend\n")).unwrap();
    signal(&server.child, "HUP");
    wait_for("good tokens", || server.metric("millrace_tokens_reload_failing") == 0);

    signal(&server.child, "TERM");
    server.wait_ended();

    // A store that refuses objects, then all of them, and a stop meanwhile.
    let server = scene.serve("server", &[]);
    let post = || {
        for (_, request) in requests().into_iter().take(3) {
            server.ask(request);
        }
    };
    scene.refuse(400, "EntityTooLarge");
    post();
    server.wait_metric("millrace_payloads_dead_lettered_total", 0);
    scene.refuse(403, "InvalidAccessKeyId");
    post();
    server.wait_metric("millrace_put_retries_total", 3);
    search.look(&format!("{}: /readyz", scene.name), server.get("/readyz", "").unwrap(), &[]);
    let admin = format!("authorization: Bearer {ADMIN_TOKEN}\r\n");
    let logs = server.get("/logs", &admin).unwrap();
    assert!(logs.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&logs));
    search.look(&format!("{}: /logs", scene.name), logs, &[]);
    // Beside the server, with all of its settings and the token; where most is logged, and by default.
    if ["trace", "info"].contains(&way.level) {
        let args = ["debug", "bundle", "--seconds", "0", "-o", "bundle.tar"];
        let admin = server.admin.to_string();
        let own = [("ADMIN_LISTEN", admin.as_str())];
        scene.command("`debug bundle`", &args, &own).status().unwrap();
        let bundle = fs::read(scene.path("bundle.tar")).unwrap();
        let holds = |text: &str| memchr::memmem::find(&bundle, text.as_bytes()).is_some();
        for name in ["settings.txt", "check.json", "metrics-2.txt", "proc-2.txt", "logs.txt"] {
            assert!(holds(name), "{}: {name}", scene.name);
        }
        search.look(&format!("{}: debug bundle", scene.name), bundle, &[]);
    }
    signal(&server.child, "TERM");
    server.wait_ended();
    let letters = files(&scene.path("dead-letter"));
    let has = |bytes: &[u8], text: &str| memchr::memmem::find(bytes, text.as_bytes()).is_some();
    // What the stop left is in the spool.
    for text in [STORED_BODY, "EntityTooLarge"] {
        assert!(letters.values().any(|bytes| has(bytes, text)), "{}: {text}", scene.name);
    }

    // Commands beside a store that refuses, and one that takes everything.
    for _ in 0..2 {
        for args in [
            &["check"][..],
            &["check", "--put"],
            &["dead-letter", "ls"],
            &["dead-letter", "replay"],
            &["spool", "ls"],
            &["spool", "verify"],
            &["spool", "export", "--all"],
            &["spool", "replay"],
            &["--help"],
            &["--version"],
        ] {
            scene.run(args);
        }
        scene.store.heal();
    }

    // A core that dies, and the process with it.
    scene.refuse(503, "SlowDown");
    let server = scene.serve("server with a dead core", &[("FAULTS", "core_panic=4")]);
    let (_, queued) = requests().swap_remove(0);
    server.ask(queued);
    server.wait_ended();

    // A crash, and another process that finds what was spooled.
    let server = scene.serve("crashed server", &[]);
    let (_, spooled) = requests().swap_remove(2);
    for _ in 0..3 {
        server.ask(&spooled);
    }
    signal(&server.child, "KILL");
    server.wait_ended();
    scene.run(&["spool", "export"]);
    scene.store.heal();
    let server = scene.serve("server after a crash", &[]);
    server.wait_metric("millrace_payloads_stored_total", 5);
    signal(&server.child, "TERM");
    server.wait_ended();

    // A proxy that quotes what it was sent.
    let secret = aws_smithy_types::base64::encode(format!("me:{PROXY_PASSWORD}"));
    scene.proxy.answer(&format!("HTTP/1.1 407 {secret}\r\ncontent-length: 0\r\n\r\n"));
    scene.run(&["check"]);
    scene.proxy.answer(&format!("{secret} {SESSION_TOKEN}\r\n\r\n"));
    scene.run(&["check"]);
    let plain = format!("HTTP/1.1 407 {PROXY_PASSWORD} is wrong\r\ncontent-length: 0\r\n\r\n");
    scene.proxy.answer(&plain);
    scene.run(&["check"]);

    // All secrets were in use.
    let seen = scene.store.requests();
    let sent = |name: &str, part: &str| {
        seen.iter().any(|seen| seen.header(name).is_some_and(|value| value.contains(part)))
    };
    assert!(sent("authorization", ACCESS_KEY) && sent("x-amz-security-token", SESSION_TOKEN));
    assert!(sent("proxy-authorization", &secret));
    assert!(scene.store.objects().values().any(|bytes| has(bytes, STORED_BODY)));
    assert_logs(&scene.written, way);
    scene.search(&mut search);
    search
}

/// What a log must hold for this to be a test: panics, and at levels that show them the failures of
/// the store and of reloads.
fn assert_logs(written: &tempfile::TempDir, way: Way) {
    let log = |door| fs::read_to_string(Path::new(written.path()).join(door)).unwrap();
    let log = log("server with panics, stderr") + &log("server, stderr");
    let mut expected = vec!["a thread panicked"];
    if way.level != "off" && !way.level.contains('=') {
        expected.extend(["reload: TOKENS_FILE", "reload: TLS_KEY"]);
    }
    if ["trace", "debug", "info", "warn"].contains(&way.level) {
        expected.extend(["dead letter", "EntityTooLarge", "InvalidAccessKeyId"]);
    }
    for part in expected {
        assert!(log.contains(part), "{} {}: no {part} in {log}", way.level, way.format);
    }
}
