//! Goal: a request that a trusted proxy forwards counts for the client that the proxy names, each
//! request of a connection for its own; nobody else can name a client.
//!
//! Method: requests with `forwarded` and `x-forwarded-for` from trusted and other addresses, and
//! `/peers`, which must account for each of them.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::support::front::free_address;
use crate::support::{Client, Server, request};

const TRUSTED: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 0, 2));
const OTHER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 0, 9));

fn start(more: &[(&str, &str)]) -> Server {
    Server::start(&[&[("TRUST", "127.0.0.2, 10.0.0.0/8")], more].concat())
}

fn figure(server: &Server, peer: &str, name: &str) -> u64 {
    server.peer("", peer).map_or(0, |row| row[name].as_u64().unwrap())
}

fn flaws(server: &Server) -> [u64; 3] {
    let metrics = server.metrics();
    ["malformed", "conflict", "too_many_hops"].map(|reason| {
        let label = format!("reason=\"{reason}\"");
        metrics.sum_where("millrace_forwarded_flaws_total", &label)
    })
}

#[test]
fn every_request_of_a_connection_counts_for_its_own_client() {
    let server = start(&[]);
    let mut client = Client::connect_from(TRUSTED, server.ingest);
    let mut sent = [0_usize; 5];
    for round in 0..40 {
        let who = round % 5;
        let header = match round % 2 {
            0 => format!("x-forwarded-for: 203.0.113.1, 192.0.2.{who}, 10.0.0.{round}\r\n"),
            _ => format!("forwarded: for=203.0.113.1, for=192.0.2.{who};proto=http\r\n"),
        };
        let body = format!(r#"{{"data":[{}1]}}"#, "1,".repeat(who));
        let bytes = request(body.as_bytes(), &header);
        client.send(&bytes);
        assert_eq!(client.reply().status, 200);
        sent[who] += bytes.len();
    }
    for (who, bytes) in sent.iter().enumerate() {
        let row = server.peer("", &format!("192.0.2.{who}")).unwrap();
        let found = ["requests", "payloads", "bytes"].map(|name| row[name].as_u64().unwrap());
        assert_eq!(found, [8, 8 * (who as u64 + 1), *bytes as u64], "{row}");
        assert_eq!(row["connections"], 0, "it is the proxy's");
    }
    assert!(server.peer("", "127.0.0.2").is_none(), "the proxy has sent nothing itself");
    assert!(server.peer("", "203.0.113.1").is_none(), "anybody may have written that");
    assert_eq!(server.peer("?by=connections", "127.0.0.2").unwrap()["connections"], 1);
    // Its own requests, and what no request is, are the proxy's.
    assert_eq!(client.post(r#"{"data":[1]}"#).status, 200);
    client.send("\r\nnonsense\r\n\r\n");
    assert_eq!(client.reply().status, 400);
    assert_eq!(figure(&server, "127.0.0.2", "requests"), 2);
    assert_eq!(flaws(&server), [0, 0, 0]);
    drop(client);
    server.wait_idle();
}

#[test]
fn refusals_count_for_the_client() {
    let server = start(&[("MAX_LENGTH", "64KiB"), ("BODY_TIMEOUT", "500ms")]);
    let mut client = Client::connect_from(TRUSTED, server.ingest);
    let header = "x-forwarded-for: 192.0.2.1\r\n";
    client.send(request(b"nonsense", header));
    assert_eq!(client.reply().status, 400);
    client.send(format!("GET /none HTTP/1.1\r\nhost: x\r\n{header}\r\n"));
    assert_eq!(client.reply().status, 404);
    // Those that end the connection.
    client.send(format!(
        "POST /payloads HTTP/1.1\r\nhost: x\r\n{header}content-length: 70000\r\n\r\n"
    ));
    assert_eq!(client.reply().status, 413);
    let mut client = Client::connect_from(TRUSTED, server.ingest);
    client
        .send(format!("POST /payloads HTTP/1.1\r\nhost: x\r\n{header}content-length: 7\r\n\r\n1"));
    assert_eq!(client.reply().status, 408);
    let mut client = Client::connect_from(TRUSTED, server.ingest);
    client.send(format!("GET / HTTP/1.1\r\nhost: x\r\nhost: y\r\n{header}\r\n"));
    assert_eq!(client.reply().status, 400);
    drop(client);
    server.wait_idle();
    let row = server.peer("", "192.0.2.1").unwrap();
    assert_eq!((&row["requests"], &row["refusals"]), (&5.into(), &5.into()), "{row}");
    assert!(server.peer("", "127.0.0.2").is_none());
}

/// A request that is still coming in when its connection ends has its bytes counted.
#[test]
fn a_request_that_is_cut_counts_for_its_client() {
    let server = start(&[]);
    let mut client = Client::connect_from(TRUSTED, server.ingest);
    let head = "POST /payloads HTTP/1.1\r\nhost: x\r\nx-forwarded-for: 192.0.2.1\r\ncontent-length: 9999\r\n\r\n";
    client.send(head);
    client.send([b' '; 5000]);
    server.wait("the body", |m| m.sum("millrace_body_bytes") > 0);
    // What has come so far is shown while it is coming in.
    let shown = server.peer("?by=bytes", "192.0.2.1").unwrap()["bytes"].as_u64().unwrap();
    assert!(shown >= head.len() as u64, "{shown}");
    drop(client);
    server.wait("its end", |m| m.sum("millrace_connections") == 0);
    let shown = server.peer("?by=bytes", "192.0.2.1").unwrap()["bytes"].as_u64().unwrap();
    assert_eq!(shown, head.len() as u64 + 5000);
    assert!(server.peer("?by=bytes", "127.0.0.2").is_none());
}

#[test]
fn nobody_else_can_name_a_client() {
    let server = start(&[]);
    let without = Server::start(&[]);
    let headers = "x-forwarded-for: 192.0.2.1\r\nforwarded: for=192.0.2.1\r\n";
    for (server, source) in [(&server, OTHER), (&without, TRUSTED), (&without, OTHER)] {
        let mut client = Client::connect_from(source, server.ingest);
        client.send(request(br#"{"data":[1]}"#, headers));
        assert_eq!(client.reply().status, 200);
        assert_eq!(figure(server, &source.to_string(), "requests"), 1);
        assert!(server.peer("", "192.0.2.1").is_none());
        assert_eq!(flaws(server), [0, 0, 0]);
    }
}

#[test]
fn headers_that_leave_a_doubt_are_counted() {
    let server = start(&[]);
    let mut client = Client::connect_from(TRUSTED, server.ingest);
    let chain = format!("x-forwarded-for: 192.0.2.1{}\r\n", ",10.0.0.1".repeat(40));
    for (headers, peer, counted) in [
        ("x-forwarded-for: 192.0.2.1, x\r\n", "127.0.0.2", [1, 0, 0]),
        ("x-forwarded-for: 192.0.2.1, x, 10.0.0.7\r\n", "10.0.0.7", [2, 0, 0]),
        ("forwarded: for=192.0.2.1;for=192.0.2.1\r\n", "127.0.0.2", [3, 0, 0]),
        ("x-forwarded-for: 192.0.2.1\r\nforwarded: for=192.0.2.2\r\n", "127.0.0.2", [3, 1, 0]),
        ("x-forwarded-for: 192.0.2.3\r\nforwarded: for=192.0.2.3\r\n", "192.0.2.3", [3, 1, 0]),
        ("x-forwarded-for: 192.0.2.1\r\nX-Forwarded-For: 192.0.2.4\r\n", "192.0.2.4", [3, 1, 0]),
        ("x-forwarded-for: unknown\r\n", "127.0.0.2", [3, 1, 0]),
        ("forwarded: for=_secret\r\n", "127.0.0.2", [3, 1, 0]),
        (&chain, "10.0.0.1", [3, 1, 1]),
    ] {
        let before = figure(&server, peer, "requests");
        client.send(request(br#"{"data":[1]}"#, headers));
        assert_eq!(client.reply().status, 200, "{headers}");
        assert_eq!(figure(&server, peer, "requests"), before + 1, "{headers}");
        assert_eq!(flaws(&server), counted, "{headers}");
    }
    assert!(server.peer("", "192.0.2.1").is_none() && server.peer("", "192.0.2.2").is_none());
}

/// A balancer that only relays in front of a proxy that speaks HTTP.
#[test]
fn the_address_of_a_proxy_header_is_the_one_that_is_trusted() {
    let proxied: SocketAddr = free_address();
    let listen = format!("127.0.0.1:0,{proxied}?proxy=127.0.0.0/8");
    let server = start(&[("LISTEN", &listen)]);
    for (source, peer) in
        [("10.1.1.1", "192.0.2.1"), ("127.0.0.2", "192.0.2.1"), ("198.51.100.1", "198.51.100.1")]
    {
        let before = figure(&server, peer, "requests");
        let mut client = Client::connect_from(TRUSTED, proxied);
        client.send(format!("PROXY TCP4 {source} 127.0.0.1 1 2\r\n"));
        client.send(request(br#"{"data":[1]}"#, "x-forwarded-for: 192.0.2.1\r\n"));
        assert_eq!(client.reply().status, 200);
        assert_eq!(figure(&server, peer, "requests"), before + 1, "{source}");
    }
}

/// Pipelined requests of several clients: each is answered and counted in its turn.
#[test]
fn pipelined_requests_count_for_their_clients() {
    let server = start(&[]);
    let mut client = Client::connect_from(TRUSTED, server.ingest);
    let all: Vec<u8> = (0..60)
        .flat_map(|n| {
            let header = format!("x-forwarded-for: 192.0.2.{}\r\n", n % 6);
            request(br#"{"data":[1]}"#, &header)
        })
        .collect();
    client.send(&all);
    assert!((0..60).all(|_| client.reply().status == 200));
    // The bytes of a read count for the request that it began with.
    let mut bytes = 0;
    for who in 0..6 {
        let row = server.peer("", &format!("192.0.2.{who}")).unwrap();
        assert_eq!((&row["requests"], &row["payloads"]), (&10.into(), &10.into()), "{row}");
        bytes += row["bytes"].as_u64().unwrap();
    }
    assert_eq!(bytes, all.len() as u64);
    std::thread::sleep(Duration::from_millis(1));
    drop(client);
    server.wait_idle();
}

/// Quotas are each client's, and `META` has its exact address, whoever shares the connection.
#[test]
fn quotas_and_stored_addresses_are_those_of_the_client() {
    let proxied: SocketAddr = free_address();
    let listen = format!("127.0.0.1:0,{proxied}?proxy=127.0.0.0/8");
    let settings = [("LISTEN", listen.as_str()), ("META", "client"), ("CLIENT_RATE", "2/h")];
    let server = start(&[&settings[..], &[("CLIENT_BURST", "2")]].concat());
    let mut shared = Client::connect_from(TRUSTED, server.ingest);
    let forwarded = ["192.0.2.1", "192.0.2.2", "2001:db8::7", "2001:db8:0:1::7"];
    for round in 0..3 {
        for address in forwarded {
            let body = format!(r#"{{"data":["{address}"]}}"#);
            let header = format!("x-forwarded-for: {address}\r\n");
            shared.send(request(body.as_bytes(), &header));
            assert_eq!(shared.reply().status, if round < 2 { 200 } else { 429 }, "{address}");
        }
    }
    let named = ["198.51.100.1", "198.51.100.2"];
    for address in named {
        let mut client = Client::connect(proxied);
        client.send(format!("PROXY TCP4 {address} 127.0.0.1 1 2\r\n"));
        let statuses = [0; 3].map(|_| client.post(format!(r#"{{"data":["{address}"]}}"#)).status);
        assert_eq!(statuses, [200, 200, 429], "{address}");
    }
    server.wait("all", |m| m.sum("millrace_payloads_stored_total") == 12);
    let mut stored = server.stored_texts();
    stored.dedup();
    let whole = |address| format!(r#"{{"meta":{{"client":"{address}"}},"payload":"{address}"}}"#);
    let mut expected: Vec<String> = forwarded.into_iter().chain(named).map(whole).collect();
    expected.sort();
    assert_eq!(stored, expected);
    // The proxy has used up nothing of its own.
    assert_eq!(shared.post(r#"{"data":[]}"#).status, 200);
}
