//! Goal: `/peers` says who sends, in bounded memory, whatever the cores are doing.
//!
//! Method: clients with source addresses of their own, which on Linux are all of 127.0.0.0/8.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::needs::{Need, skip, up_to_two_cores};
use crate::support::{Client, Reply, Server, collection, numbered, request, wait_for};

/// A connection that comes from `source`.
fn connect_from(source: [u8; 4], server: &Server) -> Client {
    Client::connect_from(source.into(), server.ingest)
}

fn get(server: &Server, query: &str, accept: &str) -> Reply {
    let mut client = Client::connect(server.admin);
    client
        .send(format!("GET /peers{query} HTTP/1.1\r\nhost: localhost\r\naccept: {accept}\r\n\r\n"));
    client.reply()
}

/// The page as JSON.
fn peers(server: &Server, query: &str) -> Value {
    let reply = get(server, query, "application/json");
    assert_eq!((reply.status, reply.header("content-type")), (200, Some("application/json")));
    serde_json::from_str(&reply.body).unwrap()
}

fn row<'a>(page: &'a Value, peer: &str) -> &'a Value {
    let rows = page["peers"].as_array().unwrap();
    rows.iter().find(|row| row["peer"] == peer).unwrap_or_else(|| panic!("no {peer} in {page}"))
}

#[test]
fn every_peer_has_its_requests_payloads_bytes_and_refusals() {
    let server = Server::start(&[("CORES", up_to_two_cores()), ("MAX_LENGTH", "64KiB")]);
    let (mut requests, mut payloads, mut bytes, mut refusals) = ([0; 4], [0; 4], [0; 4], [0; 4]);
    let mut open = Vec::new();
    for round in 0..3 {
        for peer in 1..4_usize {
            let mut client = connect_from([127, 0, 0, peer as u8 + 1], &server);
            for _ in 0..peer {
                let body = request(collection(&numbered(0..10 * peer)).as_bytes(), "");
                client.send(&body);
                assert_eq!(client.reply().status, 200);
                (requests[peer], payloads[peer]) = (requests[peer] + 1, payloads[peer] + 10 * peer);
                bytes[peer] += body.len();
            }
            if round == 0 {
                // Its refusals; the connection stays open.
                let nowhere = b"GET /nowhere HTTP/1.1\r\nhost: x\r\n\r\n".to_vec();
                for bad in [request(b"{}", ""), nowhere] {
                    client.send(&bad);
                    assert!(client.reply().status >= 400);
                    (requests[peer], refusals[peer]) = (requests[peer] + 1, refusals[peer] + 1);
                    bytes[peer] += bad.len();
                }
                open.push(client);
            }
        }
    }
    // hyper's own refusal, and one by the head's length alone.
    for bad in [
        &b"junk\r\n\r\n"[..],
        b"POST /payloads HTTP/1.1\r\nhost: x\r\ncontent-length: 99999\r\n\r\n",
    ] {
        let mut client = connect_from([127, 0, 0, 4], &server);
        client.send(bad);
        assert!(client.last_reply().status >= 400);
        (requests[3], refusals[3]) = (requests[3] + 1, refusals[3] + 1);
        bytes[3] += bad.len();
    }
    server.wait("the closed ones are gone", |m| m.sum("millrace_connections") == 3);
    let page = peers(&server, "?by=payloads");
    let order: Vec<&Value> =
        page["peers"].as_array().unwrap().iter().map(|row| &row["peer"]).collect();
    assert_eq!(order, ["127.0.0.4", "127.0.0.3", "127.0.0.2"], "sorted: {page}");
    for peer in 1..4 {
        let row = row(&page, &format!("127.0.0.{}", peer + 1));
        for (name, expected) in [
            ("requests", requests[peer]),
            ("payloads", payloads[peer]),
            ("bytes", bytes[peer]),
            ("refusals", refusals[peer]),
        ] {
            assert_eq!(row[name], expected, "{name} {row}");
            assert_eq!(row[format!("{name}_max")], expected, "exact: {row}");
        }
        assert_eq!(row["connections"], 1);
        assert!(row["last_seen_ms_ago"].as_u64().unwrap() < 20_000);
    }
    let kinds = &row(&page, "127.0.0.4")["refused_for"];
    assert_eq!(kinds, &json!({ "malformed": 2, "not_found": 1, "too_large": 1 }));
    drop(open);
    server.wait_idle();
}

#[test]
fn the_page_is_a_table_for_people_and_json_for_programs() {
    let server = Server::start(&[]);
    let empty = get(&server, "", "*/*");
    assert_eq!((empty.status, empty.body.lines().count()), (200, 2), "{empty:?}");
    for peer in [2, 3, 4] {
        let mut client = connect_from([127, 0, 0, peer], &server);
        for _ in 0..peer {
            assert_eq!(client.post(r#"{"data":[1,2]}"#).status, 200);
        }
    }
    let reply = get(&server, "?limit=2", "text/html, */*");
    assert_eq!(reply.header("content-type"), Some("text/plain; charset=utf-8"));
    let lines: Vec<&str> = reply.body.lines().collect();
    assert_eq!(lines[0], "# busiest peers by requests since the start: 2 of 3");
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let columns = words(lines[1]);
    assert_eq!(columns[..3], ["peer", "requests", "payloads"]);
    assert_eq!(words(lines[2])[..3], ["127.0.0.4", "4", "8"]);
    assert_eq!(words(lines[3])[..3], ["127.0.0.3", "3", "6"]);
    assert_eq!(lines.len(), 4);
    for line in &lines[2..] {
        assert_eq!(words(line).len(), columns.len(), "{line}");
    }
    let page = peers(&server, "?by=bytes&limit=1");
    assert_eq!((&page["by"], &page["known"]), (&json!("bytes"), &json!(3)));
    assert_eq!(page["peers"].as_array().unwrap().len(), 1);
    assert_eq!(page["cores"][0]["core"], 0);
    for (query, says) in [
        ("?by=speed", "by must be one of requests, payloads, bytes, refusals, connections"),
        ("?limit=0", "limit must be 1 to 1000"),
        ("?limit=1001", "limit must be 1 to 1000"),
        ("?top=3", "only by=NAME and limit=N are known"),
    ] {
        let reply = get(&server, query, "application/json");
        assert_eq!((reply.status, reply.body.trim_end()), (400, says), "{query}");
    }
    let mut client = Client::connect(server.admin);
    client.send("POST /peers HTTP/1.1\r\nhost: localhost\r\ncontent-length: 0\r\n\r\n");
    assert_eq!(client.reply().status, 405);
    client.send("HEAD /peers HTTP/1.1\r\nhost: localhost\r\n\r\n");
    assert_eq!(client.bodiless_reply().status, 200);
}

#[test]
fn thousands_of_peers_do_not_hide_the_busiest_nor_grow_the_table() {
    const PEERS: usize = 2_500;
    let server = Server::start(&[("STORE", "null:")]);
    let body = request(br#"{"data":[1]}"#, "");
    let one_request = |source: [u8; 4]| {
        let mut client = connect_from(source, &server);
        client.send(&body);
        assert_eq!(client.reply().status, 200);
    };
    let source = |n: usize| [127, 1, (n / 200) as u8, (n % 200) as u8 + 1];
    // The busy one sends now and then, 1/26 of all.
    let mut busy = 0;
    for n in 0..PEERS {
        one_request(source(n));
        if n.is_multiple_of(25) {
            one_request([127, 9, 9, 9]);
            busy += 1;
        }
    }
    server.wait("all are gone", |m| m.sum("millrace_connections") == 0);
    let page = peers(&server, "?limit=1000");
    let rows = page["peers"].as_array().unwrap();
    // 256 rows for each measure, of which refusals have none.
    assert!((256..=768).contains(&rows.len()), "{}", rows.len());
    assert_eq!(page["known"], rows.len());
    assert_eq!(rows[0]["peer"], "127.9.9.9", "{}", rows[0]);
    let range = |row: &Value, name: &str| {
        row[name].as_u64().unwrap()..=row[format!("{name}_max")].as_u64().unwrap()
    };
    let total = PEERS + busy;
    for (name, each) in [("requests", 1), ("payloads", 1), ("bytes", body.len())] {
        let share = (total * each / 256) as u64;
        for row in rows {
            let true_count = if row["peer"] == "127.9.9.9" { busy * each } else { each } as u64;
            let range = range(row, name);
            assert!(range.contains(&true_count), "{name} {row}");
            assert!(range.end() - range.start() <= share, "{name} {share} {row}");
        }
    }
    for row in rows {
        assert_eq!((row["refusals"].as_u64(), row["refusals_max"].as_u64()), (Some(0), Some(0)));
    }
}

#[test]
fn the_tokens_of_a_peer_are_there_by_name_and_never_themselves() {
    let dir = std::sync::Arc::new(tempfile::tempdir().unwrap());
    let tokens = "hush-1;name=shop\nhush-2;name=till\nhush-3\n";
    std::fs::write(dir.path().join("tokens"), tokens).unwrap();
    let server = Server::start_in(dir, &[("TOKENS_FILE", "tokens")]);
    let mut client = connect_from([127, 0, 0, 6], &server);
    for (token, times, status) in
        [("hush-2", 3, 200), ("hush-1", 5, 200), ("hush-3", 1, 200), ("wrong", 9, 401)]
    {
        for _ in 0..times {
            // By the envelope, so that the connection stays open.
            let body = format!(r#"{{"token":"{token}","data":[1]}}"#);
            assert_eq!(client.post(body).status, status);
        }
    }
    let page = peers(&server, "");
    let row = row(&page, "127.0.0.6");
    assert_eq!(row["tokens"], json!(["shop", "till", "(unnamed)"]), "most used first");
    assert_eq!(row["refused_for"], json!({ "unauthorized": 9 }));
    let text = get(&server, "", "*/*").body;
    assert!(text.contains("  shop,till,(unnamed)\n") && !text.contains("hush"), "{text}");
}

#[test]
fn who_holds_connections_without_a_request_is_seen() {
    let server = Server::start(&[]);
    let idle: Vec<Client> = (0..9).map(|_| connect_from([127, 0, 0, 7], &server)).collect();
    let one = connect_from([127, 0, 0, 8], &server);
    server.wait("all are open", |m| m.sum("millrace_connections") == 10);
    let page = peers(&server, "?by=connections");
    assert_eq!(page["peers"][0]["peer"], "127.0.0.7");
    assert_eq!(page["peers"][0]["connections"], 9);
    assert_eq!(row(&page, "127.0.0.8")["connections"], 1);
    assert_eq!(peers(&server, "")["known"], 0, "none has made a request");
    drop((idle, one));
    server.wait_idle();
    assert_eq!(peers(&server, "?by=connections")["known"], 0);
}

#[test]
fn ipv6_peers_are_networks_and_mapped_ones_are_ipv4() {
    if std::net::TcpListener::bind("[::1]:0").is_err() {
        return skip(Need::Ipv6, "this host has no IPv6 loopback: peers of IPv6 are not tested");
    }
    let server = Server::start(&[("LISTEN", "[::]:0")]);
    let port = server.ingest.port();
    for address in [format!("[::1]:{port}"), format!("127.0.0.1:{port}")] {
        let mut client = Client::connect(address.parse().unwrap());
        assert_eq!(client.post(r#"{"data":[1]}"#).status, 200);
    }
    let page = peers(&server, "");
    assert_eq!(row(&page, "::/64")["payloads"], 1);
    assert_eq!(row(&page, "127.0.0.1")["payloads"], 1);
}

#[test]
fn a_stuck_core_is_named_and_its_last_figures_stay() {
    let server = Server::start(&[("FAULTS", "core_stuck=1")]);
    let mut client = connect_from([127, 0, 0, 5], &server);
    assert_eq!(client.post("{}").status, 400);
    let page = peers(&server, "");
    assert_eq!(row(&page, "127.0.0.5")["refusals"], 1);
    client.send(request(br#"{"data":[1]}"#, ""));
    wait_for("the core to be stuck", || server.logged("this core is stuck"));
    let asked = Instant::now();
    let reply = get(&server, "", "*/*");
    // Two seconds for the cores, and room for a busy machine.
    assert!(asked.elapsed() < Duration::from_secs(20), "{:?}", asked.elapsed());
    assert!(reply.body.contains("# core 0 has not answered: its figures are "), "{reply:?}");
    assert!(reply.body.contains("\n127.0.0.5 "), "{reply:?}");
    assert_eq!(server.admin("/healthz").status, 200);
}
