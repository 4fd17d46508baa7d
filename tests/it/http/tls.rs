//! Goal: over TLS 1.2 and 1.3 a request is served as over plain HTTP, by the fast path and by hyper;
//! each end is told apart from a cut; handshakes are bounded in number and time; who does not speak
//! what the port speaks is told so.
//!
//! Method: rustls as the client, raw bytes where the handshake itself is the matter.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_rustls::rustls::{
    ClientConfig, ClientConnection, StreamOwned, SupportedProtocolVersion, version,
};

use crate::support::front::free_address;
use crate::support::needs::{Need, skip, two_cores};
use crate::support::tls::{Authority, HOST, TlsClient, write};
use crate::support::{Client, PATIENCE, Server, request, wait_for};

const VERSIONS: [&[&SupportedProtocolVersion]; 2] = [&[&version::TLS13], &[&version::TLS12]];

/// A server with TLS at [`Server::ingest`], and the authority of its certificate.
fn start(more: &[(&str, &str)]) -> (Server, Authority) {
    let (authority, dir) = (Authority::new("root"), Arc::new(tempfile::tempdir().unwrap()));
    write(dir.path(), "cert.pem", authority.server(&[HOST]));
    let mut settings = vec![("LISTEN", "https://127.0.0.1:0"), ("TLS_CERT", "cert.pem")];
    settings.retain(|(name, _)| more.iter().all(|(set, _)| set != name));
    settings.extend_from_slice(more);
    (Server::start_in(dir, &settings), authority)
}

fn config(
    authority: &Authority,
    versions: &'static [&'static SupportedProtocolVersion],
) -> Arc<ClientConfig> {
    let mut options = authority.trust();
    options.versions = versions;
    options.config()
}

fn refusals(server: &Server, reason: &str) -> u64 {
    let label = format!("reason=\"{reason}\"");
    server.metrics().sum_where("millrace_tls_refusals_total", &label)
}

fn payloads(server: &Server) -> Vec<String> {
    let stored = server.stored().into_values().map(|bytes| String::from_utf8(bytes).unwrap());
    let mut stored: Vec<_> = stored.collect();
    stored.sort();
    stored
}

#[test]
fn requests_are_served_over_both_versions() {
    let (server, authority) =
        start(&[("MAX_LENGTH", "8MiB"), ("MAX_BODY_BYTES", "32MiB"), ("MAX_QUEUE_BYTES", "64MiB")]);
    let mut expected = Vec::new();
    for (number, versions) in VERSIONS.into_iter().enumerate() {
        let mut client = TlsClient::connect(server.ingest, &config(&authority, versions));
        let mut posts = |payload: String| {
            let reply = client.post(format!(r#"{{"data":[{payload}]}}"#));
            assert_eq!(reply.status, 200, "{}", reply.body);
            expected.push(payload);
        };
        for length in [1, 100, 4_000, 16_300, 16_400, 70_000, 1_000_000, 7_000_000] {
            posts(format!(r#""{number}{}""#, "x".repeat(length)));
        }
        // Two requests in one record, one in many, and a chunked one, which hyper reads.
        let [one, two, three] = [1, 2, 3].map(|n| format!(r#""{number} {n}""#));
        let body = |payload: &str| format!(r#"{{"data":[{payload}]}}"#);
        client.send(
            [request(body(&one).as_bytes(), ""), request(body(&two).as_bytes(), "")].concat(),
        );
        for byte in request(body(&three).as_bytes(), "") {
            client.send([byte]);
        }
        let text = body(&format!(r#""{number} chunked""#));
        client.send(format!(
            "POST /payloads HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n{text}\r\n0\r\n\r\n",
            text.len()
        ));
        for _ in 0..4 {
            assert_eq!(client.reply().status, 200);
        }
        expected.extend([one, two, three, format!(r#""{number} chunked""#)]);
        // The last answer of a connection that wants to be closed, and an end that is no cut.
        client.send(request(b"{\"data\":[]}", "connection: close\r\n"));
        assert_eq!(client.reply().header("connection"), Some("close"));
        assert_eq!(client.rest().unwrap(), b"");
    }
    server.wait("all are stored", |m| {
        m.sum("millrace_payloads_stored_total") == expected.len() as u64
    });
    expected.sort();
    assert!(payloads(&server) == expected);
    let metrics = server.metrics();
    for version in ["1.2", "1.3"] {
        let labels = format!("version=\"{version}\",resumed=\"no\"");
        assert_eq!(metrics.sum_where("millrace_tls_handshakes_total", &labels), 1, "{version}");
    }
    server.wait_idle();
    assert_eq!(server.stop().status, 0);
}

/// As with plain HTTP, for the same reasons.
#[test]
fn refusals_and_deadlines_reach_the_client() {
    let (server, authority) =
        start(&[("HEADER_TIMEOUT", "1500ms"), ("IDLE_TIMEOUT", "2s"), ("MAX_LENGTH", "1KiB")]);
    let config = config(&authority, VERSIONS[0]);
    let connect = || TlsClient::connect(server.ingest, &config);
    let mut client = connect();
    client.send("POST /payloads HTTP/1.1\r\nhost: x\r\nx-slow");
    assert_eq!(client.reply().status, 408);
    assert_eq!(client.rest().unwrap(), b"");
    let mut client = connect();
    client.send(request(&[b'x'; 100_000], ""));
    assert_eq!(client.reply().status, 413);
    assert_eq!(client.rest().unwrap(), b"", "although it was still sending");
    let mut client = connect();
    client.send("BREW /payloads HTTP/1.1\r\nhost: x\r\n\r\n");
    assert_eq!(client.reply().status, 405);
    // A connection that is idle for long, and one that has sent nothing: an end, not a cut.
    assert_eq!(client.rest().unwrap(), b"");
    assert_eq!(connect().rest().unwrap(), b"");
    server.wait_idle();
}

#[test]
fn a_client_that_closes_its_half_gets_its_answer() {
    let (server, authority) = start(&[]);
    let config = config(&authority, VERSIONS[0]);
    // With close_notify, and by FIN alone.
    for says in [true, false] {
        let mut client = TlsClient::connect(server.ingest, &config);
        client.send(request(b"{\"data\":[1]}", ""));
        if says {
            client.stream.conn.send_close_notify();
            client.stream.flush().unwrap();
        }
        client.stream.sock.shutdown(Shutdown::Write).unwrap();
        assert_eq!(client.reply().status, 200, "{says}");
    }
    // In the middle of a body nothing is taken, whatever it is called.
    let mut client = TlsClient::connect(server.ingest, &config);
    let whole = request(b"{\"data\":[2]}", "");
    client.send(&whole[..whole.len() - 1]);
    client.stream.conn.send_close_notify();
    client.stream.flush().unwrap();
    client.stream.sock.shutdown(Shutdown::Write).unwrap();
    assert_eq!(client.reply().status, 400);
    assert_eq!(client.rest().unwrap(), b"");
    server.wait_idle();
    assert_eq!(server.metrics().sum("millrace_payloads_accepted_total"), 2);
}

/// Bytes that were changed on the way end the connection, and nothing of them is taken.
#[test]
fn a_changed_record_ends_the_connection() {
    let (server, authority) = start(&[]);
    for versions in VERSIONS {
        let mut client = TlsClient::connect(server.ingest, &config(&authority, versions));
        client.stream.conn.writer().write_all(&request(b"{\"data\":[1]}", "")).unwrap();
        let mut record = Vec::new();
        client.stream.conn.write_tls(&mut record).unwrap();
        let last = record.len() - 1;
        record[last] ^= 1;
        client.stream.sock.write_all(&record).unwrap();
        let error = client.rest().unwrap_err();
        assert!(error.to_string().contains("BadRecordMac"), "{error}");
    }
    server.wait_idle();
    assert_eq!(server.metrics().sum("millrace_payloads_accepted_total"), 0);
}

#[test]
fn http_1_1_is_agreed_on_or_nothing() {
    let (server, authority) = start(&[]);
    let with = |protocols: &[&str]| {
        let mut options = authority.trust();
        options.protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
        TlsClient::try_connect(server.ingest, &options.config(), HOST)
    };
    for (offers, agreed) in [(&[][..], None), (&["http/1.1"], Some(&b"http/1.1"[..]))] {
        let mut client = with(offers).unwrap();
        assert_eq!(client.stream.conn.alpn_protocol(), agreed);
        assert_eq!(client.post(b"{\"data\":[]}").status, 200);
    }
    for both in [["h2", "http/1.1"], ["http/1.1", "h2"]] {
        let client = with(&both).unwrap();
        assert_eq!(client.stream.conn.alpn_protocol(), Some(&b"h2"[..]), "the server prefers it");
    }
    assert_eq!(
        with(&["x", "http/1.1"]).unwrap().stream.conn.alpn_protocol(),
        Some(&b"http/1.1"[..])
    );
    let error = with(&["spdy/3"]).err().unwrap();
    assert!(error.to_string().contains("NoApplicationProtocol"), "{error}");
    server.wait("it is counted", |_| refusals(&server, "incompatible") == 1);
    server.wait_logged("offers other protocols than this server speaks");
}

/// Whichever core a client comes to: the ticket of one is good for all.
#[test]
fn tickets_are_accepted_by_every_core() {
    let Some(cores) = two_cores() else { return };
    let (server, authority) = start(&[("CORES", cores)]);
    for (versions, version) in VERSIONS.into_iter().zip(["1.3", "1.2"]) {
        let mut options = authority.trust();
        (options.resumes, options.versions) = (true, versions);
        let config = options.config();
        for n in 0..40 {
            let mut client = TlsClient::connect(server.ingest, &config);
            assert_eq!(client.post(b"{\"data\":[]}").status, 200);
            assert_eq!(client.is_resumed(), n > 0, "{version} {n}");
        }
        let metrics = server.metrics();
        for core in [0, 1] {
            let labels = format!("core=\"{core}\",version=\"{version}\",resumed=\"yes\"");
            let count = metrics.sum_where("millrace_tls_handshakes_total", &labels);
            assert!(count > 0, "core {core} has continued none of 39 sessions");
        }
        let labels = format!("version=\"{version}\",resumed=\"no\"");
        assert_eq!(metrics.sum_where("millrace_tls_handshakes_total", &labels), 1);
    }
}

/// They are a send of their own only if no request has come along with the end of the handshake.
#[test]
fn tickets_go_with_the_answer() {
    let (server, authority) = start(&[("FAULTS", "delay=3s")]);
    let config = config(&authority, VERSIONS[0]);
    for comes_along in [false, true] {
        let mut socket = TcpStream::connect(server.ingest).unwrap();
        let host = HOST.to_owned().try_into().unwrap();
        let mut tls = ClientConnection::new(config.clone(), host).unwrap();
        tls.write_tls(&mut socket).unwrap();
        while tls.is_handshaking() {
            tls.read_tls(&mut socket).unwrap();
            tls.process_new_packets().unwrap();
        }
        if comes_along {
            let stored = request(b"{\"data\":[1]}", "millrace-ack: stored\r\n");
            tls.writer().write_all(&stored).unwrap();
        }
        let mut all = Vec::new();
        while tls.wants_write() {
            tls.write_tls(&mut all).unwrap();
        }
        socket.write_all(&all).unwrap();
        let patience = if comes_along { Duration::from_millis(400) } else { PATIENCE };
        socket.set_read_timeout(Some(patience)).unwrap();
        assert_eq!(socket.peek(&mut [0]).is_ok(), !comes_along, "{comes_along}");
        if comes_along {
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            let mut answer = [0; 12];
            StreamOwned::new(tls, socket).read_exact(&mut answer).unwrap();
            assert_eq!(&answer, b"HTTP/1.1 200");
        }
    }
    server.wait_idle();
}

#[test]
fn a_plain_request_is_told_that_the_port_speaks_tls() {
    let (server, _) = start(&[]);
    for text in ["GET / HTTP/1.1\r\nhost: x\r\n\r\n", "POST /payloads HTTP/1.1\r\nhost: x\r\n"] {
        let mut client = server.connect();
        client.send(text);
        let reply = client.reply();
        assert_eq!(reply.status, 400);
        assert!(reply.body.contains("this port speaks TLS"), "{}", reply.body);
        assert!(client.closed());
    }
    server.wait("both to be counted", |_| refusals(&server, "plain_http") == 2);
    server.wait_logged("it began with a plain HTTP request");
    // Neither is anything else served.
    for bytes in [&b"\0\0\0\0"[..], b"\x15\x03\x01\0\x02\x02\x28", b"\x80\x2e\x01\x03\x01"] {
        let mut client = server.connect();
        client.send(bytes);
        assert!(client.closed());
    }
    server.wait("all to be counted", |_| refusals(&server, "not_tls") == 3);
    server.wait_idle();
}

#[test]
fn a_handshake_on_a_plain_port_is_counted_and_explained() {
    let (_, authority) = start(&[]);
    let server = Server::start(&[]);
    let config = config(&authority, VERSIONS[0]);
    for _ in 0..3 {
        let error = TlsClient::try_connect(server.ingest, &config, HOST).err().unwrap();
        assert!(error.to_string().contains("corrupt message"), "{error}");
    }
    // In pieces.
    let mut client = server.connect();
    for byte in b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03\r\n\r\n" {
        client.send([*byte]);
    }
    assert_eq!(client.reply().status, 400);
    server.wait("they are counted", |m| m.sum("millrace_tls_on_plain_port_total") == 4);
    server.wait_logged("began a TLS handshake on an address that is plain HTTP");
    assert_eq!(server.count_logged("began a TLS handshake"), 1, "a line a minute");
    let mut client = server.connect();
    client.send("BAD\r\n\r\n");
    assert_eq!(client.reply().status, 400);
    assert_eq!(server.metrics().sum("millrace_tls_on_plain_port_total"), 4);
}

/// A PROXY header comes before the handshake, and a forwarded header in the request.
#[test]
fn who_the_client_is_may_be_said_before_the_handshake_and_in_it() {
    let address = free_address();
    let listen = format!("https://{address}?proxy=127.0.0.1/32");
    let (server, authority) = start(&[("LISTEN", &listen), ("TRUST", "192.0.2.7/32")]);
    let config = config(&authority, VERSIONS[0]);
    for (header, named, seen) in [
        ("PROXY TCP4 192.0.2.9 127.0.0.1 1 2\r\n", "", "192.0.2.9"),
        (
            "PROXY TCP4 192.0.2.7 127.0.0.1 1 2\r\n",
            "x-forwarded-for: 198.51.100.3\r\n",
            "198.51.100.3",
        ),
    ] {
        let mut socket = TcpStream::connect(address).unwrap();
        socket.write_all(header.as_bytes()).unwrap();
        let mut client = TlsClient::over(socket, &config, HOST).unwrap();
        client.send(request(b"{\"data\":[1]}", named));
        assert_eq!(client.reply().status, 200);
        drop(client);
        wait_for("the peer", || server.peer("", seen).is_some_and(|row| row["requests"] == 1));
    }
    // Without the header there is no handshake.
    assert!(TlsClient::try_connect(address, &config, HOST).is_err());
    let label = "reason=\"malformed\"";
    assert_eq!(server.metrics().sum_where("millrace_proxy_refusals_total", label), 1);
    server.wait_idle();
}

/// The first bytes of a ClientHello that goes on.
fn hello(config: &Arc<ClientConfig>) -> Vec<u8> {
    let host = HOST.to_owned().try_into().unwrap();
    let mut client = ClientConnection::new(config.clone(), host).unwrap();
    let mut hello = Vec::new();
    client.write_tls(&mut hello).unwrap();
    hello
}

#[test]
fn a_handshake_has_its_time() {
    let (server, authority) = start(&[("TLS_HANDSHAKE_TIMEOUT", "1s")]);
    let config = config(&authority, VERSIONS[0]);
    let hello = hello(&config);
    let started = Instant::now();
    for sent in [&b""[..], &hello[..1], &hello[..100], &hello] {
        let mut client = server.connect();
        client.send(sent);
        // It may have got the server's part of the handshake.
        client.stream.read_to_end(&mut Vec::new()).unwrap();
        let took = started.elapsed();
        assert!(took >= Duration::from_secs(1), "{took:?}");
    }
    // The silent one has begun none.
    server.wait("three to be counted", |_| refusals(&server, "timeout") == 3);
    server.wait_logged("not complete within TLS_HANDSHAKE_TIMEOUT");
    let mut client = server.connect();
    client.send(&hello[..50]);
    client.stream.shutdown(Shutdown::Write).unwrap();
    assert!(client.closed());
    server.wait("it to be counted", |_| refusals(&server, "closed") == 1);
    server.wait_idle();
}

/// With as many handshakes in progress as may be, one that has had its time gives way; before that,
/// the new one is closed. Good clients come through all the while.
#[test]
fn handshakes_in_progress_are_bounded() {
    let (server, authority) = start(&[("TLS_HANDSHAKES", "4"), ("TLS_HANDSHAKE_TIMEOUT", "30s")]);
    let config = config(&authority, VERSIONS[0]);
    assert_eq!(server.metrics().sum("millrace_tls_handshakes_limit"), 4);
    let hello = hello(&config);
    let began = Instant::now();
    let mut stalled: Vec<Client> = (0..4)
        .map(|_| {
            let mut client = server.connect();
            client.send(&hello[..hello.len() / 2]);
            client
        })
        .collect();
    server.wait("they are in progress", |m| m.sum("millrace_tls_handshakes_open") == 4);
    let refused = TlsClient::try_connect(server.ingest, &config, HOST);
    if began.elapsed() < Duration::from_millis(900) {
        assert!(refused.is_err(), "none has had its time");
        assert_eq!(refusals(&server, "busy"), 1);
        server.wait_logged("4 handshakes are in progress on this core (TLS_HANDSHAKES)");
    }
    std::thread::sleep(Duration::from_millis(1_100));
    for n in 1..=4 {
        let mut client = TlsClient::connect(server.ingest, &config);
        assert_eq!(client.post(b"{\"data\":[]}").status, 200);
        server.wait("the next one gives way", |_| refusals(&server, "gave_way") == 1);
        // Its place is free again.
        assert_eq!(server.metrics().sum("millrace_tls_handshakes_open"), 3, "{n}");
    }
    assert!(stalled[0].closed(), "the oldest");
    server.wait_logged("it was the oldest of 4 handshakes in progress");
    drop(stalled);
    server.wait_idle();
}

/// A signature of RSA 4096 takes some milliseconds. However many clients come at once, the core looks
/// at its sockets after each.
#[test]
fn handshakes_that_come_at_once_do_not_make_one_long_turn() {
    const CLIENTS: usize = 24;
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let args = [
        "req",
        "-x509",
        "-newkey",
        "rsa:4096",
        "-nodes",
        "-subj",
        "/CN=x",
        "-addext",
        "subjectAltName=DNS:ingest.test",
        "-keyout",
        "key.pem",
        "-out",
        "cert.pem",
    ];
    let made = Command::new("openssl").args(args).current_dir(dir.path()).output();
    if !made.is_ok_and(|made| made.status.success()) {
        return skip(Need::Openssl, "no openssl(1), and rcgen makes no RSA keys");
    }
    let settings =
        [("LISTEN", "https://127.0.0.1:0"), ("TLS_CERT", "cert.pem"), ("TLS_KEY", "key.pem")];
    let server = Server::start_in(dir, &settings);
    let hello = hello(&config(&Authority::new("none"), VERSIONS[0]));
    let mut clients: Vec<Client> = (0..CLIENTS).map(|_| server.connect()).collect();
    server.wait("they are open", |m| m.sum("millrace_connections") == CLIENTS as u64);
    // On a busy host another thread may have had most of the turn.
    let long = |server: &Server| {
        let metrics = server.metrics();
        let turns = ["connection", "descheduled"].map(|task| {
            let label = format!("task=\"{task}\"");
            metrics.sum_where("millrace_core_long_turns_total", &label)
        });
        turns.iter().sum::<u64>()
    };
    let before = long(&server);
    // What the kernel has of all of them is seen in one look.
    server.signal("STOP");
    clients.iter_mut().for_each(|client| client.send(&hello));
    server.signal("CONT");
    for client in &mut clients {
        let mut first = [0];
        client.stream.read_exact(&mut first).unwrap();
        assert_eq!(first, [0x16], "the server's part of the handshake");
    }
    let turns = long(&server) - before;
    assert!(turns >= CLIENTS as u64 / 3, "{turns} long turns for {CLIENTS} handshakes");
    drop(clients);
    server.wait_idle();
}

#[test]
fn a_stop_waits_for_the_requests_of_tls_clients() {
    let (server, authority) = start(&[]);
    let config = config(&authority, VERSIONS[0]);
    let (mut busy, mut idle) =
        (TlsClient::connect(server.ingest, &config), TlsClient::connect(server.ingest, &config));
    assert_eq!(idle.post(b"{\"data\":[1]}").status, 200);
    let whole = request(b"{\"data\":[2]}", "");
    busy.send(&whole[..whole.len() - 4]);
    server.wait("both are there", |m| m.sum("millrace_connections") == 2);
    server.signal("TERM");
    assert_eq!(idle.rest().unwrap(), b"", "an end, not a cut: the core knows of the stop");
    busy.send(&whole[whole.len() - 4..]);
    let reply = busy.reply();
    assert_eq!((reply.status, reply.header("connection")), (200, Some("close")));
    assert_eq!(busy.rest().unwrap(), b"");
    let stopped = server.wait_stopped();
    assert_eq!((stopped.status, stopped.stored), (0, 2));
}

/// What `limits` promises, and what the issue asks for: 14 kB.
#[test]
fn a_silent_tls_connection_is_small() {
    const CONNECTIONS: usize = 600;
    let (server, authority) = start(&[("IDLE_TIMEOUT", "5m")]);
    for versions in VERSIONS {
        let config = config(&authority, versions);
        let open = |count: usize| -> Vec<TlsClient> {
            (0..count)
                .map(|_| {
                    let mut client = TlsClient::connect(server.ingest, &config);
                    assert_eq!(client.post(b"{\"data\":[]}").status, 200);
                    client
                })
                .collect()
        };
        let warm = open(100);
        std::thread::sleep(Duration::from_millis(300));
        let before = server.resident();
        let clients = open(CONNECTIONS);
        // Buffers go once a connection has been silent for a while.
        wait_for("connections of 14 kB", || {
            std::thread::sleep(Duration::from_millis(500));
            let each = server.resident().saturating_sub(before) as usize / CONNECTIONS;
            println!("{each} bytes each");
            each <= 14_000
        });
        drop((warm, clients));
        server.wait_idle();
    }
}

/// The admin pages over TLS; the rest stays as it is.
#[test]
fn the_admin_pages_may_have_tls() {
    let (authority, dir) = (Authority::new("root"), Arc::new(tempfile::tempdir().unwrap()));
    write(dir.path(), "cert.pem", authority.server(&[HOST]));
    let admin: SocketAddr = free_address();
    let listen = format!("https://{admin}");
    let server = Server::start_in(dir, &[("ADMIN_LISTEN", &listen), ("TLS_CERT", "cert.pem")]);
    assert_eq!(server.post_payloads(&["1"]).status, 200, "LISTEN is plain");
    for versions in VERSIONS {
        let mut client = TlsClient::connect(admin, &config(&authority, versions));
        for (path, says) in [
            ("/healthz", "ok"),
            (
                "/metrics",
                "millrace_tls_certificate_expiry_timestamp_seconds{file=\"cert.pem\",name=\"ingest.test\"} 4733510400",
            ),
        ] {
            client.send(format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n"));
            let reply = client.reply();
            assert!(reply.status == 200 && reply.body.contains(says), "{}", reply.body);
        }
    }
    let mut plain = Client::connect(admin);
    plain.send("GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n");
    assert!(plain.reply().body.contains("this port speaks TLS"));
}
