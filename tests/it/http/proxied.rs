//! Goal: on a listener with `proxy=` each connection says whose it is, in a PROXY header that may
//! arrive in any pieces; whatever is no such header, or comes from somebody else, is closed and
//! counted, and nothing of it is served.
//!
//! Method: raw bytes against a listener with `proxy=` beside one without. Clients come from
//! addresses of their own, which on Linux are all of 127.0.0.0/8.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use crate::support::front::free_address;
use crate::support::h2::{H2Client, HEADER_TABLE_SIZE, PREFACE, SETTINGS, frame, settings};
use crate::support::{Client, PATIENCE, Server, request};

/// A server with a plain listener ([`Server::ingest`]) and one for proxies at 127.0.0.1.
fn start(more: &[(&str, &str)]) -> (Server, SocketAddr) {
    let proxied = free_address();
    let listen = format!("127.0.0.1:0, {proxied}?proxy=127.0.0.1/32");
    let settings = [&[("LISTEN", listen.as_str())], more].concat();
    (Server::start(&settings), proxied)
}

const CLIENT: &str = "192.0.2.7";

fn line() -> Vec<u8> {
    format!("PROXY TCP4 {CLIENT} 127.0.0.1 4711 8080\r\n").into_bytes()
}

/// Version 2 with a block.
fn binary(command: u8, family: u8, block: &[u8]) -> Vec<u8> {
    let length = u16::try_from(block.len()).unwrap().to_be_bytes();
    [b"\r\n\r\n\0\r\nQUIT\n", &[0x20 | command, family][..], &length, block].concat()
}

/// The block of a connection of [`CLIENT`], with two TLVs.
fn block() -> Vec<u8> {
    [&[192, 0, 2, 7, 127, 0, 0, 1, 0x12, 0x67, 0x1f, 0x90][..], &[1, 0, 2, b'h', b'2'], &[4, 0, 0]]
        .concat()
}

fn refusals(server: &Server) -> [u64; 3] {
    let metrics = server.metrics();
    ["stranger", "malformed", "timeout"].map(|reason| {
        let label = format!("reason=\"{reason}\"");
        metrics.sum_where("millrace_proxy_refusals_total", &label)
    })
}

/// Whether the server has closed the connection without a word; a reset is an end as well.
fn is_closed(client: &mut Client) -> bool {
    use std::io::Read as _;
    match client.stream.read(&mut [0; 64]) {
        Ok(n) => n == 0,
        Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
    }
}

#[test]
fn a_header_may_arrive_in_any_pieces() {
    let (server, proxied) = start(&[]);
    let mut sent = 0;
    for header in [line(), binary(1, 0x11, &block())] {
        let whole = [header, request(br#"{"data":[1]}"#, "")].concat();
        // In two pieces, wherever it is cut.
        for cut in 1..whole.len() {
            let mut client = Client::connect(proxied);
            client.send(&whole[..cut]);
            if cut % 4 == 0 {
                std::thread::sleep(Duration::from_millis(2));
            }
            client.send(&whole[cut..]);
            assert_eq!(client.reply().status, 200, "cut at {cut}");
            sent += 1;
        }
        // Byte by byte.
        let mut client = Client::connect(proxied);
        for byte in &whole {
            client.send([*byte]);
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(client.reply().status, 200);
        // With several requests in one piece.
        let pipelined = request(br#"{"data":[1]}"#, "").repeat(2);
        client.send(&pipelined);
        assert_eq!((client.reply().status, client.reply().status), (200, 200));
        let mut client = Client::connect(proxied);
        client.send([&whole[..], &pipelined].concat());
        assert!((0..3).all(|_| client.reply().status == 200));
        sent += 6;
    }
    let row = server.peer("", CLIENT).unwrap();
    assert_eq!((&row["requests"], &row["payloads"]), (&sent.into(), &sent.into()));
    assert!(server.peer("", "127.0.0.1").is_none(), "the proxy has sent nothing itself");
    server.wait("all", |m| m.sum("millrace_payloads_stored_total") == sent);
    assert_eq!(server.metrics().requests(200), sent);
    assert_eq!(refusals(&server), [0, 0, 0]);
    server.wait_idle();
}

#[test]
fn http_2_may_follow_the_header_in_any_pieces() {
    let (server, proxied) = start(&[("H2", "all")]);
    let first = frame(SETTINGS, 0, 0, &settings(&[(HEADER_TABLE_SIZE, 0)]));
    let mut sent = 0;
    for header in [line(), binary(1, 0x11, &block())] {
        let whole = [&header[..], PREFACE, &first].concat();
        for cut in 1..whole.len() {
            let stream = std::net::TcpStream::connect(proxied).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            stream.set_nodelay(true).unwrap();
            let mut client = H2Client::silent(stream);
            client.send(&whole[..cut]);
            if cut % 4 == 0 {
                std::thread::sleep(Duration::from_millis(2));
            }
            client.send(&whole[cut..]);
            assert_eq!(client.post(r#"{"data":[1]}"#).status, 200, "cut at {cut}");
            sent += 1;
        }
    }
    let row = server.peer("", CLIENT).unwrap();
    assert_eq!((&row["requests"], &row["payloads"]), (&sent.into(), &sent.into()));
    assert!(server.peer("", "127.0.0.1").is_none(), "the proxy has sent nothing itself");
    server.wait_idle();
    assert_eq!(refusals(&server), [0, 0, 0]);
    assert_eq!(server.metrics().sum("millrace_h2_closed_total"), 0);
}

#[test]
fn the_client_is_the_one_that_the_header_names() {
    let (server, proxied) = start(&[]);
    let v6 = {
        let source = "2001:db8:1:2::7".parse::<std::net::Ipv6Addr>().unwrap().octets();
        let block = [&source[..], &[0; 16], &[0, 1, 0, 2]].concat();
        binary(1, 0x21, &block)
    };
    for (header, peer) in [
        (line(), CLIENT),
        (binary(1, 0x11, &block()), CLIENT),
        (v6, "2001:db8:1:2::/64"),
        (b"PROXY TCP6 2001:db8:1:3::7 ::1 1 2\r\n".to_vec(), "2001:db8:1:3::/64"),
        // Those that name none: the proxy itself.
        (b"PROXY UNKNOWN\r\n".to_vec(), "127.0.0.1"),
        (b"PROXY UNKNOWN 192.0.2.9 192.0.2.9 1 1\r\n".to_vec(), "127.0.0.1"),
        (binary(0, 0x00, b""), "127.0.0.1"),
        (binary(0, 0x11, &block()), "127.0.0.1"),
        (binary(1, 0x00, b""), "127.0.0.1"),
        (binary(1, 0x31, &[b'/'; 216]), "127.0.0.1"),
    ] {
        let count = |server: &Server| {
            server.peer("", peer).map_or(0, |row| row["requests"].as_u64().unwrap())
        };
        let before = count(&server);
        let mut client = Client::connect(proxied);
        client.send(&header);
        assert_eq!(client.post(r#"{"data":[1]}"#).status, 200, "{header:?}");
        assert_eq!(client.post("{}").status, 400, "{header:?}");
        let shown = server.peer("?by=connections", peer).unwrap();
        assert_eq!(shown["connections"], 1, "{header:?}");
        assert_eq!(count(&server), before + 2, "{header:?}");
        drop(client);
        server.wait("the end", |m| m.sum("millrace_connections") == 0);
    }
    assert_eq!(refusals(&server), [0, 0, 0]);
}

#[test]
fn whatever_is_no_header_is_closed_and_counted() {
    let (server, proxied) = start(&[]);
    let mut checksum = binary(1, 0x11, &[&block()[..], &[3, 0, 4, 1, 2, 3, 4]].concat());
    let huge = [b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff", &[0; 1000][..]].concat();
    let long = format!("PROXY UNKNOWN {}\r\n", "x".repeat(92));
    checksum.extend(request(br#"{"data":["no"]}"#, ""));
    let cases: Vec<Vec<u8>> = vec![
        request(br#"{"data":["no"]}"#, ""),
        [b"\r\n".to_vec(), line(), request(br#"{"data":["no"]}"#, "")].concat(),
        [b"proxy TCP4 192.0.2.7 127.0.0.1 1 2\r\n".to_vec(), request(br#"{"data":["no"]}"#, "")]
            .concat(),
        [b"PROXY TCP4 192.0.2.7 127.0.0.1 1 2\n".to_vec(), request(br#"{"data":["no"]}"#, "")]
            .concat(),
        [b"PROXY TCP4 192.0.2.007 127.0.0.1 1 2\r\n".to_vec(), request(br#"{"data":["no"]}"#, "")]
            .concat(),
        [
            b"PROXY TCP4 192.0.2.7 127.0.0.1 1 65536\r\n".to_vec(),
            request(br#"{"data":["no"]}"#, ""),
        ]
        .concat(),
        long.into_bytes(),
        b"PROXY UNKNOWN ".iter().chain([b'x'; 9000].iter()).copied().collect(),
        binary(2, 0x11, &block()),
        binary(1, 0x41, &block()),
        binary(1, 0x11, &block()[..11]),
        binary(1, 0x11, &[&block()[..], &[4, 0, 9, 0]].concat()),
        checksum,
        huge,
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(),
        vec![0; 70_000],
    ];
    for (at, bytes) in cases.iter().enumerate() {
        let mut client = Client::connect(proxied);
        client.try_send(bytes);
        assert!(is_closed(&mut client), "{at}");
        server.wait("its count", |_| refusals(&server) == [0, at as u64 + 1, 0]);
    }
    // One that ends within its header.
    for (at, header) in [line(), binary(1, 0x11, &block())].iter().enumerate() {
        let mut client = Client::connect(proxied);
        client.send(&header[..header.len() - 1]);
        client.half_close();
        assert!(is_closed(&mut client));
        server.wait("its count", |_| refusals(&server) == [0, (cases.len() + at) as u64 + 1, 0]);
    }
    server.wait_logged("a connection of 127.0.0.1 to 127.0.0.1:");
    assert!(server.logged(
        "its first bytes begin no PROXY header; have this proxy send one (send-proxy-v2 in HAProxy"
    ));
    // The others are counted in the next line, a minute later.
    assert_eq!(server.count_logged("have this proxy send one"), 1);
    // The other listener knows no such headers.
    let mut client = server.connect();
    client.send([line(), request(br#"{"data":["no"]}"#, "")].concat());
    assert_eq!(client.reply().status, 400);
    assert!(client.closed());
    server.wait_idle();
    assert_eq!(server.metrics().sum("millrace_payloads_accepted_total"), 0);
}

#[test]
fn only_the_networks_of_the_listener_may_connect() {
    let (server, proxied) = start(&[]);
    for last in 2..5 {
        let source = IpAddr::from([127, 0, 0, last]);
        let mut client = Client::connect_from(source, proxied);
        client.try_send([line(), request(br#"{"data":["no"]}"#, "")].concat());
        assert!(is_closed(&mut client), "{source}");
        // The listener without `proxy=` is for everybody.
        let mut client = Client::connect_from(source, server.ingest);
        assert_eq!(client.post(r#"{"data":[1]}"#).status, 200);
    }
    server.wait("their count", |_| refusals(&server) == [3, 0, 0]);
    server.wait_logged(&format!(
        "a connection of 127.0.0.2 to {proxied} was closed: it is in none of the proxy= networks"
    ));
    assert_eq!(server.count_logged("in none of the proxy= networks"), 1);
    // The network of the listener is that of the proxy, not of its client.
    let mut client = Client::connect(proxied);
    client.send(line());
    assert_eq!(client.post(r#"{"data":[1]}"#).status, 200);
    drop(client);
    server.wait_idle();
    assert_eq!(server.metrics().sum("millrace_payloads_accepted_total"), 4);
}

#[test]
fn health_checks_are_no_errors() {
    let (server, proxied) = start(&[("LOG", "info")]);
    for _ in 0..20 {
        // Connect and close, with and without a reset.
        drop(Client::connect(proxied));
        let client = Client::connect(proxied);
        socket2::SockRef::from(&client.stream).set_linger(Some(Duration::ZERO)).unwrap();
        drop(client);
        let mut client = Client::connect(proxied);
        client.half_close();
        assert!(is_closed(&mut client));
        // LOCAL, and no request.
        let mut client = Client::connect(proxied);
        client.send(binary(0, 0, b""));
        client.half_close();
        assert!(is_closed(&mut client));
    }
    server.wait_idle();
    assert_eq!(refusals(&server), [0, 0, 0]);
    let lines = server.log();
    let bad = lines.iter().filter(|line| line["level"] == "WARN" || line["level"] == "ERROR");
    let bad: Vec<_> = bad.filter(|line| line.to_string().contains("connection")).collect();
    assert!(bad.is_empty(), "{bad:?}");
}

#[test]
fn a_header_has_header_timeout() {
    let (server, proxied) = start(&[("HEADER_TIMEOUT", "600ms")]);
    let limits = Duration::from_millis(550)..PATIENCE;
    // Nothing at all, part of a header, and a byte now and then.
    for (at, sent) in [&b""[..], &line()[..20], &binary(1, 0x11, &block())[..20]].iter().enumerate()
    {
        let (started, mut client) = (Instant::now(), Client::connect(proxied));
        client.send(sent);
        assert!(is_closed(&mut client));
        assert!(limits.contains(&started.elapsed()), "{at}: {:?}", started.elapsed());
        server.wait("its count", |_| refusals(&server) == [0, 0, at as u64 + 1]);
    }
    let (mut client, started) = (Client::connect(proxied), Instant::now());
    for byte in b"PROXY UNKNOWN and so on and so forth until the end of the time" {
        client.try_send([*byte]);
        std::thread::sleep(Duration::from_millis(50));
        if started.elapsed() > Duration::from_secs(2) {
            break;
        }
    }
    assert!(is_closed(&mut client));
    server.wait("its count", |_| refusals(&server) == [0, 0, 4]);
    server.wait_logged("it sent no whole PROXY header within HEADER_TIMEOUT");
    // A header and then silence is an idle connection.
    let (started, mut client) = (Instant::now(), Client::connect(proxied));
    client.send(line());
    assert!(is_closed(&mut client));
    assert!(limits.contains(&started.elapsed()), "{:?}", started.elapsed());
    // A header and part of a request is a slow request.
    let mut client = Client::connect(proxied);
    client.send([line(), b"POST /pay".to_vec()].concat());
    assert_eq!(client.reply().status, 408);
    assert!(client.closed());
    server.wait_idle();
    assert_eq!(refusals(&server), [0, 0, 4]);
    assert_eq!(server.peer("", CLIENT).unwrap()["refusals"], 1);
}

#[test]
fn connections_without_a_header_give_way_to_others() {
    let (server, proxied) = start(&[("MAX_CONNECTIONS", "8")]);
    let slow: Vec<Client> = (0..8)
        .map(|at| {
            let mut client = Client::connect(proxied);
            client.send(&line()[..at * 4]);
            client
        })
        .collect();
    server.wait("all slots", |m| m.sum("millrace_connections") == 8);
    for _ in 0..20 {
        assert_eq!(server.post_payloads(&["1"]).status, 200);
        let mut client = Client::connect(proxied);
        client.send([line(), request(br#"{"data":[1]}"#, "connection: close\r\n")].concat());
        assert_eq!(client.reply().status, 200);
    }
    let label = "reason=\"never_sent\"";
    assert!(server.metrics().sum_where("millrace_connections_evicted_total", label) > 0);
    assert_eq!(refusals(&server), [0, 0, 0], "giving way is nobody's fault");
    drop(slow);
    server.wait_idle();
}

/// Of 6 connections through one proxy, those of the client that has most give way, not any of the
/// proxy's.
#[test]
fn the_busiest_client_gives_way_not_the_proxy() {
    let (server, proxied) = start(&[("MAX_CONNECTIONS", "6")]);
    let open = |client: &str| {
        let mut connection = Client::connect(proxied);
        connection.send(format!("PROXY TCP4 {client} 127.0.0.1 1 2\r\n"));
        assert_eq!(connection.post(r#"{"data":[1]}"#).status, 200);
        connection
    };
    let mut single: Vec<Client> = (1..4).map(|n| open(&format!("198.51.100.{n}"))).collect();
    let busiest: Vec<Client> = (0..3).map(|_| open(CLIENT)).collect();
    // Longer than a connection must have been idle.
    std::thread::sleep(Duration::from_millis(1200));
    let mut new = server.connect();
    assert_eq!(new.post(r#"{"data":[1]}"#).status, 200);
    let label = "reason=\"busiest_peer\"";
    assert_eq!(server.metrics().sum_where("millrace_connections_evicted_total", label), 1);
    for client in &mut single {
        assert_eq!(client.post(r#"{"data":[1]}"#).status, 200, "theirs are still open");
    }
    server.wait_logged(&format!("{CLIENT} has most: 3"));
    drop((single, busiest, new));
    server.wait_idle();
}

#[test]
fn a_stop_does_not_wait_for_headers() {
    let (server, proxied) = start(&[("DRAIN_TIMEOUT", "1m"), ("HEADER_TIMEOUT", "50s")]);
    let mut clients: Vec<Client> = (0..10).map(|_| Client::connect(proxied)).collect();
    clients[0].send(&line()[..9]);
    server.wait("all", |m| m.sum("millrace_connections") == 10);
    let started = Instant::now();
    server.signal("TERM");
    // One that completes its header in time is served.
    clients[1].send([line(), request(br#"{"data":[1]}"#, "")].concat());
    assert_eq!(clients[1].reply().status, 200);
    let stopped = server.wait_stopped();
    assert_eq!((stopped.status, stopped.stored), (0, 1));
    assert!(started.elapsed() < Duration::from_secs(25), "{:?}", started.elapsed());
    let text = stopped.log_text();
    assert!(!text.contains("have this proxy send one"), "a stop is nobody's fault: {text}");
}

/// Many hostile connections at once beside a good proxy.
#[test]
fn garbage_beside_a_good_proxy_changes_nothing() {
    let (server, proxied) = start(&[("HEADER_TIMEOUT", "2s")]);
    let seed = std::process::id();
    let attackers: Vec<_> = (0..4_u32)
        .map(|attacker| {
            std::thread::spawn(move || {
                let mut state = (seed * 7 + attacker) | 1;
                for _ in 0..150 {
                    let Some(mut client) = Client::try_connect(proxied) else { continue };
                    let mut bytes = if state & 8 == 0 { line() } else { binary(1, 0x11, &block()) };
                    for _ in 0..3 {
                        // xorshift
                        state ^= state << 13;
                        state ^= state >> 17;
                        state ^= state << 5;
                        let at = state as usize % bytes.len();
                        bytes[at] = (state >> 9) as u8;
                    }
                    client.try_send(&bytes);
                    client.half_close();
                }
            })
        })
        .collect();
    let started = Instant::now();
    for _ in 0..200 {
        let mut client = Client::connect(proxied);
        client.send(line());
        assert_eq!(client.post(r#"{"data":["good"]}"#).status, 200);
    }
    attackers.into_iter().for_each(|attacker| attacker.join().unwrap());
    assert!(started.elapsed() < 2 * PATIENCE);
    server.wait("the good ones", |m| m.sum("millrace_payloads_stored_total") == 200);
    server.wait_idle();
    assert_eq!(server.metrics().sum("millrace_connection_panics_total"), 0);
    assert_eq!(IpAddr::from(Ipv4Addr::LOCALHOST), server.ingest.ip());
}
