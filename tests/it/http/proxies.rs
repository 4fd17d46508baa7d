//! Goal: real proxies in front of the server name its clients: HAProxy by PROXY headers of both
//! versions and by `x-forwarded-for`, nginx by `x-forwarded-for`, curl by a PROXY header.
//!
//! Method: clients with source addresses of their own, keep-alive on both sides, and `/peers`.

use std::net::IpAddr;
use std::process::Command;

use crate::support::front::{Front, daemon, free_address};
use crate::support::needs::{Need, skip};
use crate::support::{Client, Server, request};

const CLIENTS: std::ops::Range<u8> = 20..25;

fn source(last: u8) -> IpAddr {
    [127, 0, 0, last].into()
}

/// Ten requests of each client through `front`, whose first one carries `spoofed`; each must count
/// for its client.
fn requests_through(front: &Front, server: &Server, spoofed: &str) {
    let mut clients: Vec<(u8, Client)> =
        CLIENTS.map(|last| (last, Client::connect_from(source(last), front.address))).collect();
    for round in 0..10 {
        for (_, client) in &mut clients {
            let headers = if round == 0 { spoofed } else { "" };
            client.send(request(br#"{"data":[1,2]}"#, headers));
            assert_eq!(client.reply().status, 200);
        }
    }
    for last in CLIENTS {
        let peer = source(last).to_string();
        let row = server.peer("", &peer).unwrap_or_else(|| panic!("no {peer}"));
        assert_eq!((&row["requests"], &row["payloads"]), (&10.into(), &20.into()), "{row}");
    }
    assert!(server.peer("", "192.0.2.66").is_none(), "no client may name another one");
}

fn haproxy() -> Option<std::path::PathBuf> {
    let found = daemon("haproxy");
    if found.is_none() {
        skip(Need::Haproxy, "there is no haproxy here");
    }
    found
}

#[test]
fn haproxy_sends_proxy_headers() {
    let Some(binary) = haproxy() else { return };
    for options in [
        "send-proxy",
        "send-proxy-v2",
        "send-proxy-v2 proxy-v2-options crc32c",
        "send-proxy-v2 proxy-v2-options crc32c,unique-id,authority",
        "send-proxy-v2 check inter 50ms",
        "send-proxy check inter 50ms",
    ] {
        let proxied = free_address();
        let listen = format!("127.0.0.1:0,{proxied}?proxy=127.0.0.1");
        let server = Server::start(&[("LISTEN", &listen)]);
        let dir = tempfile::tempdir().unwrap();
        let backend = format!("server s {proxied} {options}");
        let front = Front::haproxy(&binary, dir.path(), "mode tcp", &backend);
        requests_through(&front, &server, "x-forwarded-for: 192.0.2.66\r\n");
        let metrics = server.metrics();
        if options.contains("check") {
            server.wait("checks", |m| m.sum("millrace_connections_accepted_total") > 10);
        }
        assert_eq!(metrics.sum("millrace_proxy_refusals_total"), 0, "{options}");
        assert_eq!(server.count_logged("have this proxy send one"), 0, "{options}");
        drop(front);
        assert_eq!(server.stop().status, 0);
    }
}

/// The HTTP checks of a proxy that sends LOCAL headers are answered, and are no errors.
#[test]
fn haproxy_checks_the_server_over_proxy_headers() {
    let Some(binary) = haproxy() else { return };
    let proxied = free_address();
    let listen = format!("127.0.0.1:0,{proxied}?proxy=127.0.0.1");
    let server = Server::start(&[("LISTEN", &listen)]);
    let dir = tempfile::tempdir().unwrap();
    let defaults = "mode http\n option httpchk GET /payloads\n http-check expect status 405";
    let backend = format!("server s {proxied} send-proxy-v2 check inter 50ms fall 5 rise 1");
    let front = Front::haproxy(&binary, dir.path(), defaults, &backend);
    server.wait("ten checks", |m| m.requests(405) >= 10);
    requests_through(&front, &server, "x-forwarded-for: 192.0.2.66\r\n");
    assert_eq!(server.metrics().sum("millrace_proxy_refusals_total"), 0);
    assert!(server.peer("", "127.0.0.1").unwrap()["requests"].as_u64() >= Some(10));
}

#[test]
fn haproxy_without_a_proxy_header_is_told_what_to_do() {
    let Some(binary) = haproxy() else { return };
    let proxied = free_address();
    let listen = format!("127.0.0.1:0,{proxied}?proxy=127.0.0.1");
    let server = Server::start(&[("LISTEN", &listen)]);
    let dir = tempfile::tempdir().unwrap();
    let backend = format!("server s {proxied}");
    let front = Front::haproxy(&binary, dir.path(), "mode http", &backend);
    let mut client = Client::connect(front.address);
    assert_eq!(client.post(r#"{"data":[1]}"#).status, 502);
    server.wait_logged("its first bytes begin no PROXY header; have this proxy send one");
    assert!(server.metrics().sum("millrace_proxy_refusals_total") > 0);
}

#[test]
fn haproxy_forwards_for_clients_over_shared_connections() {
    let Some(binary) = haproxy() else { return };
    let server = Server::start(&[("TRUST", "127.0.0.1")]);
    let dir = tempfile::tempdir().unwrap();
    let defaults = "mode http\n option forwardfor\n option http-keep-alive\n http-reuse always";
    let backend = format!("server s {}", server.ingest);
    let front = Front::haproxy(&binary, dir.path(), defaults, &backend);
    requests_through(&front, &server, "x-forwarded-for: 192.0.2.66\r\n");
    let metrics = server.metrics();
    assert!(metrics.sum("millrace_connections_accepted_total") < 50, "connections are shared");
    assert_eq!(metrics.sum("millrace_forwarded_flaws_total"), 0);
    // A header that the proxy does not set comes from the client.
    let mut client = Client::connect_from(source(30), front.address);
    client.send(request(br#"{"data":[1]}"#, "forwarded: for=192.0.2.66\r\n"));
    assert_eq!(client.reply().status, 200);
    assert!(server.peer("", "192.0.2.66").is_none());
    let label = "reason=\"conflict\"";
    assert_eq!(server.metrics().sum_where("millrace_forwarded_flaws_total", label), 1);
}

#[test]
fn nginx_forwards_for_clients_over_shared_connections() {
    let Some(binary) = daemon("nginx") else {
        skip(Need::Nginx, "there is no nginx here");
        return;
    };
    for set in [
        "proxy_set_header x-forwarded-for $proxy_add_x_forwarded_for;",
        "proxy_set_header x-forwarded-for $remote_addr;",
    ] {
        let server = Server::start(&[("TRUST", "127.0.0.1")]);
        let dir = tempfile::tempdir().unwrap();
        let front = Front::nginx(&binary, dir.path(), server.ingest, set);
        requests_through(&front, &server, "x-forwarded-for: 192.0.2.66\r\n");
        let metrics = server.metrics();
        assert!(metrics.sum("millrace_connections_accepted_total") < 50, "{set}");
        assert_eq!(metrics.sum("millrace_forwarded_flaws_total"), 0, "{set}");
        drop(front);
        assert_eq!(server.stop().status, 0, "{set}");
    }
}

#[test]
fn curl_sends_a_proxy_header() {
    let has = Command::new("curl").args(["--help", "all"]).output();
    let has =
        has.is_ok_and(|help| String::from_utf8_lossy(&help.stdout).contains("--haproxy-protocol"));
    if !has {
        return skip(Need::Curl, "there is no curl with --haproxy-protocol here");
    }
    let proxied = free_address();
    let listen = format!("127.0.0.1:0,{proxied}?proxy=127.0.0.1/32");
    let server = Server::start(&[("LISTEN", &listen)]);
    let post = |address: std::net::SocketAddr, more: &[&str]| {
        let url = format!("http://{address}/payloads");
        let mut curl = Command::new("curl");
        curl.args(["-sS", "-o", "/dev/null", "-w", "%{http_code}", "-d", r#"{"data":[1]}"#]);
        let output = curl.args(more).arg(url).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(post(proxied, &["--haproxy-protocol"]), "200");
    assert_eq!(post(proxied, &[]), "000", "an empty reply");
    assert_eq!(post(server.ingest, &["--haproxy-protocol"]), "400");
    assert_eq!(post(server.ingest, &[]), "200");
}
