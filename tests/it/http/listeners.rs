//! Goal: a server listens on every address of `LISTEN`, and none of them is at a disadvantage.
//!
//! Method: lists of IPv4 and IPv6 addresses, taken ones among them; connections that wait at several
//! addresses for the only slot; a stop with connections in every accept queue.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use crate::support::front::{free_address, free_port};
use crate::support::needs::{Need, skip, up_to_two_cores};
use crate::support::{Client, PATIENCE, Server, collection, numbered, request, run, wait_for};

fn has_v6() -> bool {
    let has = TcpListener::bind("[::1]:0").is_ok();
    if !has {
        skip(Need::Ipv6, "this host has no IPv6 loopback: listeners on IPv6 are not tested");
    }
    has
}

/// A port that is free on IPv4 and on IPv6.
fn free_on_both() -> u16 {
    loop {
        let port = free_port();
        if TcpListener::bind(("::1", port)).is_ok() {
            return port;
        }
    }
}

fn v4(port: u16) -> SocketAddr {
    ([127, 0, 0, 1], port).into()
}

fn v6(port: u16) -> SocketAddr {
    (std::net::Ipv6Addr::LOCALHOST, port).into()
}

#[test]
fn every_address_of_the_list_is_served_by_every_core() {
    let other = free_address();
    let listen = format!("127.0.0.1:0, {other}");
    let server = Server::start(&[("LISTEN", &listen), ("CORES", up_to_two_cores())]);
    assert_ne!(server.ingest, other);
    for address in [server.ingest, other] {
        for _ in 0..20 {
            assert_eq!(Client::connect(address).post(r#"{"data":[1]}"#).status, 200, "{address}");
        }
    }
    let expected = format!("http://{}/payloads, http://{other}/payloads", server.ingest);
    assert!(server.logged(&expected), "{:?}", server.log());
    server.wait("40 payloads", |m| m.sum("millrace_payloads_stored_total") == 40);
    // The kernel spreads the connections of either address over the cores.
    if up_to_two_cores() == "0,1" {
        let metrics = server.metrics();
        for core in ["0", "1"] {
            let label = format!("core=\"{core}\"");
            let accepted = metrics.sum_where("millrace_connections_accepted_total", &label);
            assert!((5..=35).contains(&accepted), "core {core}: {accepted}");
        }
    }
    server.wait_idle();
    assert_eq!(server.stop().status, 0);
}

#[test]
fn ipv4_and_ipv6_may_share_a_port() {
    if !has_v6() {
        return;
    }
    for order in
        [["0.0.0.0", "[::]"], ["[::]", "0.0.0.0"], ["127.0.0.1", "[::]"], ["[::1]", "0.0.0.0"]]
    {
        let port = free_on_both();
        let listen = order.map(|ip| format!("{ip}:{port}")).join(",");
        let server = Server::start(&[("LISTEN", &listen)]);
        for address in [v4(port), v6(port)] {
            let reply = Client::connect(address).post(r#"{"data":[1]}"#);
            assert_eq!(reply.status, 200, "{listen}: {address}");
        }
        assert_eq!(server.peer("", "127.0.0.1").unwrap()["payloads"], 1, "{listen}");
        assert_eq!(server.peer("", "::/64").unwrap()["payloads"], 1, "{listen}");
        let any_v4 = TcpStream::connect(("127.0.0.2", port)).is_ok();
        assert_eq!(any_v4, order.contains(&"0.0.0.0"), "{listen}: [::] leaves IPv4 to the other");
        // Another server may have neither.
        for part in [format!("127.0.0.1:{port}"), format!("[::1]:{port}")] {
            let dir = tempfile::tempdir().unwrap();
            let settings = [("LISTEN", part.as_str()), ("ADMIN_LISTEN", "off"), ("BIND_WAIT", "0")];
            let output = run(dir.path(), &[], &settings);
            assert_eq!(output.status.code(), Some(2), "{listen} leaves {part} to nobody");
        }
        assert_eq!(server.stop().status, 0);
    }
}

#[test]
fn an_address_that_is_taken_is_named_whichever_it_is() {
    let holder = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = holder.local_addr().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let free = free_address();
    for listen in [format!("{taken},{free}"), format!("{free},{taken}")] {
        for wait in ["0", "300ms"] {
            let settings = [("LISTEN", &*listen), ("ADMIN_LISTEN", "off"), ("BIND_WAIT", wait)];
            let output = run(dir.path(), &[], &settings);
            let text = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(2), "{text}");
            assert!(text.contains(&format!("LISTEN: {taken} is taken")), "{text}");
        }
        let settings = [("LISTEN", listen.as_str()), ("ADMIN_LISTEN", "off")];
        let output = run(dir.path(), &["check"], &settings);
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains(&format!("{taken} is taken")), "{text}");
        assert!(text.contains(&format!("{free} is free")), "{text}");
        TcpListener::bind(free).expect("a start that is refused leaves no listener");
    }
    // One that gets free in time is taken, with the other one that was free.
    let listen = format!("{free},{taken}");
    let freed = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(300));
        drop(holder);
    });
    let _server = Server::start(&[("LISTEN", &listen), ("BIND_WAIT", "1m")]);
    freed.join().unwrap();
    for address in [taken, free] {
        assert_eq!(Client::connect(address).post(r#"{"data":[1]}"#).status, 200);
    }
}

#[test]
fn what_is_no_list_of_addresses_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    for (listen, trust, said) in [
        ("127.0.0.1:1,", "", "has an entry without an address"),
        ("https://127.0.0.1:1", "", "has an https:// address: set TLS_CERT and TLS_KEY"),
        ("127.0.0.1:1?tls=on", "", "\"tls=on\" is not an option of an address"),
        ("127.0.0.1:1,127.0.0.1:1", "", "127.0.0.1:1 is listed twice"),
        ("127.0.0.1:0,[::1]:0", "", "has port 0 twice"),
        ("127.0.0.1:9090,127.0.0.1:1", "", "is already used by LISTEN"),
        ("127.0.0.1:1?proxy=10.0.0.1/8", "", "write 10.0.0.0/8 for the network"),
        ("127.0.0.1:1", "10.0.0.0/8,x", "\"x\" is not a network"),
        ("127.0.0.1:1", "10.0.0.1/8", "write 10.0.0.0/8 for the network"),
    ] {
        let mut settings = vec![("LISTEN", listen)];
        settings.extend((!trust.is_empty()).then_some(("TRUST", trust)));
        for args in [&[][..], &["check"]] {
            let output = run(dir.path(), args, &settings);
            let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
            assert_eq!(output.status.code(), Some(2), "{listen}: {text}");
            assert!(text.contains(said), "{listen}: {text}");
        }
    }
}

#[test]
fn networks_that_hold_everybody_are_warned_about() {
    let dir = tempfile::tempdir().unwrap();
    let settings =
        [("LISTEN", "127.0.0.1:0?proxy=0.0.0.0/0"), ("ADMIN_LISTEN", "off"), ("TRUST", "::/0")];
    let output = run(dir.path(), &["check"], &settings);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("the proxy= of 127.0.0.1:0 holds every address"), "{text}");
    assert!(text.contains("it holds every address: any client may name another one"), "{text}");
}

/// The slot is free again and again while connections wait at both addresses.
#[test]
fn a_crowd_at_one_address_does_not_keep_another_one_waiting() {
    const CROWD: usize = 30;
    let other = free_address();
    let listen = format!("127.0.0.1:0,{other}");
    let server = Server::start(&[("LISTEN", &listen), ("MAX_CONNECTIONS", "1")]);
    // It holds the only slot in the middle of a body, where it is not closed for others.
    let mut holder = server.connect();
    let body = request(br#"{"data":["holder"]}"#, "connection: close\r\n");
    holder.send(&body[..body.len() - 1]);
    server.wait("the holder", |m| m.sum("millrace_body_bytes") > 0);
    let send = |address: SocketAddr, payload: usize| {
        let mut client = Client::connect(address);
        let body = collection(&numbered([payload]));
        client.send(request(body.as_bytes(), "connection: close\r\n"));
        client
    };
    let crowd: Vec<Client> = (0..CROWD).map(|id| send(server.ingest, id)).collect();
    // Two of the crowd at most are ahead: one that waits already, and one whose turn it may be.
    server.wait("one to wait", |m| m.sum("millrace_connections_waiting") == 1);
    let few: Vec<Client> = (0..3).map(|id| send(other, CROWD + id)).collect();
    std::thread::sleep(Duration::from_millis(200));
    holder.send(&body[body.len() - 1..]);
    for mut client in crowd.into_iter().chain(few).chain([holder]) {
        assert_eq!(client.reply().status, 200);
    }
    server.wait("all", |m| m.sum("millrace_payloads_stored_total") == CROWD as u64 + 4);
    // Keys ascend with the time of the request.
    let order: Vec<String> =
        server.stored().into_values().map(|bytes| String::from_utf8(bytes).unwrap()).collect();
    let place = |id: usize| {
        let text = format!(r#"{{"id":{id}}}"#);
        order.iter().position(|found| *found == text).unwrap()
    };
    for id in 0..3 {
        let at = place(CROWD + id);
        assert!(at <= 3 + 2 * (id + 1), "{id} is at {at} of {order:?}");
    }
    server.wait_idle();
}

#[test]
fn a_stop_serves_what_waits_at_every_address_and_closes_all() {
    let other = free_address();
    let listen = format!("127.0.0.1:0,{other}");
    let mut in_time = 0;
    while in_time < 5 {
        let server = Server::start(&[("LISTEN", &listen), ("DRAIN_TIMEOUT", "20s")]);
        let addresses = [server.ingest, other];
        let mut clients: Vec<Client> =
            (0..60).map(|at| Client::connect(addresses[at % 2])).collect();
        let signalled = Instant::now();
        server.signal("TERM");
        let sent =
            clients.iter_mut().all(|client| client.try_send(request(br#"{"data":[1]}"#, "")));
        if signalled.elapsed() > Duration::from_millis(400) {
            // An idle connection is not waited for that long.
            continue;
        }
        assert!(sent);
        in_time += 1;
        let mut answered = 0;
        for client in &mut clients {
            answered += usize::from(client.try_reply().is_some_and(|reply| reply.status == 200));
        }
        // All were connected before the stop.
        assert_eq!(answered, 60);
        let started = Instant::now();
        let stopped = server.wait_stopped();
        assert_eq!((stopped.status, stopped.accepted, stopped.stored), (0, 60, 60));
        assert!(started.elapsed() < PATIENCE);
        for address in addresses {
            wait_for("nobody to listen", || TcpStream::connect(address).is_err());
        }
    }
}

#[test]
fn a_list_may_be_in_the_file_and_on_the_command_line() {
    let dir = std::sync::Arc::new(tempfile::tempdir().unwrap());
    let (first, second) = (free_address(), free_address());
    let text =
        format!("listen = \"{first}, {second}?proxy=127.0.0.0/8\"\ntrust = \"10.0.0.0/8\"\n");
    std::fs::write(dir.path().join("m.toml"), text).unwrap();
    let server = Server::start_by(dir, &[("MILLRACE_CONFIG", "m.toml")], |command| {
        command.env_remove("MILLRACE_LISTEN");
    });
    assert_eq!(server.ingest, first);
    assert_eq!(Client::connect(first).post(r#"{"data":[1]}"#).status, 200);
    let mut client = Client::connect(second);
    client.send("PROXY TCP4 192.0.2.7 127.0.0.1 1 2\r\n");
    assert_eq!(client.post(r#"{"data":[2]}"#).status, 200);
    assert_eq!(server.peer("", "192.0.2.7").unwrap()["payloads"], 1);
    assert_eq!(v4(first.port()), first);
}
