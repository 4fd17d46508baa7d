//! Goal: a quota of a token's name or of an address holds for the process, whatever the cores, the
//! connections and the form of a request; who is above it gets 429 with what it needs to return,
//! and can go on with its connection.
//!
//! Method: requests of every form on both sides of small quotas; clients that send as fast as they
//! can, on one connection and on 64, whose answers are counted; many source addresses, which on
//! Linux are all of 127.0.0.0/8. `MILLRACE_QUOTA_SECONDS` is how long it is counted (3).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::needs::up_to_two_cores;
use crate::support::{Client, Reply, Server, chunked_request, gzip, request, run, wait_for};

const EMPTY: &[u8] = br#"{"data":[]}"#;

fn with_tokens(text: &str, settings: &[(&str, &str)]) -> Server {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    std::fs::write(dir.path().join("tokens"), text).unwrap();
    let settings = [&[("TOKENS_FILE", "tokens"), ("CORES", up_to_two_cores())], settings].concat();
    Server::start_in(dir, &settings)
}

/// A connection that comes from `source`.
fn connect_from(source: [u8; 4], server: &Server) -> Client {
    Client::connect_from(source.into(), server.ingest)
}

/// Requests without payloads until one is refused; that refusal, and how many passed.
fn until_refused(client: &mut Client, headers: &str) -> (Reply, usize) {
    for passed in 0..1_000 {
        client.send(request(EMPTY, headers));
        let reply = client.reply();
        if reply.status != 200 {
            return (reply, passed);
        }
    }
    panic!("never refused");
}

/// The integer behind `name=` of the item `policy` in a structured list.
fn parameter(reply: &Reply, field: &str, policy: &str, name: &str) -> Option<u64> {
    let text = reply.header(field)?;
    let item = text.split(", ").find(|item| item.starts_with(&format!("\"{policy}\";")))?;
    let value = item.split(';').find_map(|part| part.strip_prefix(&format!("{name}=")))?;
    value.parse().ok()
}

/// What every refusal by a quota has. Others than `policy` may be named: those of which this core
/// has nothing left either, and control says that there is less of it than is asked for.
fn assert_throttled(reply: &Reply, policy: &str) {
    assert_eq!(reply.status, 429, "{reply:?}");
    let retry_after: u64 = reply.header("retry-after").unwrap().parse().unwrap();
    let body: Value = serde_json::from_str(&reply.body).unwrap();
    let found: Vec<&str> =
        body["violated-policies"].as_array().unwrap().iter().map(|v| v.as_str().unwrap()).collect();
    assert!(found.contains(&policy), "{policy}: {reply:?}");
    for policy in found {
        assert_eq!(parameter(reply, "ratelimit", policy, "r"), Some(0), "{reply:?}");
        let reset = parameter(reply, "ratelimit", policy, "t").unwrap();
        assert!((1..=retry_after).contains(&reset), "{reply:?}");
        assert!(parameter(reply, "ratelimit-policy", policy, "q").unwrap() > 0);
        assert!(parameter(reply, "ratelimit-policy", policy, "w").unwrap() > 0);
    }
    assert!(reply.error().contains("quota"), "{}", reply.error());
    assert!(reply.error().contains(&format!("{retry_after} s")), "{}", reply.error());
    assert_eq!(reply.header("content-type"), Some("application/json"));
}

#[test]
fn every_quota_refuses_with_its_policy() {
    let tokens = "r;rate=2/min;name=crawler\nb;bytes=1KiB/min;burst=1KiB\nfree\n";
    let settings =
        [("CLIENT_RATE", "3/min"), ("CLIENT_BYTES", "4KiB/min"), ("CLIENT_BURST", "3,4KiB")];
    let server = with_tokens(tokens, &settings);
    let header = |token: &str| format!("x-api-key: {token}\r\n");
    let mut source = 0;
    let mut fresh = || {
        source += 1;
        connect_from([127, 7, 0, source], &server)
    };
    // `rate` of a name: one a minute after the first, whoever sends.
    let (reply, passed) = until_refused(&mut fresh(), &header("r"));
    assert_throttled(&reply, "requests");
    assert_eq!(passed, 1);
    assert_eq!(parameter(&reply, "ratelimit-policy", "requests", "q"), Some(2));
    assert_eq!(parameter(&reply, "ratelimit-policy", "requests", "w"), Some(60));
    assert_eq!(parameter(&reply, "ratelimit-policy", "client-requests", "q"), Some(3));
    assert!(reply.header("ratelimit-policy").unwrap().ends_with(r#";qu="content-bytes""#));
    assert_throttled(&until_refused(&mut fresh(), &header("r")).0, "requests");
    // `bytes` of a token: a body of more than the burst passes, and is owed.
    let mut client = fresh();
    let large = format!(r#"{{"data":["{}"]}}"#, "x".repeat(3_000));
    client.send(request(large.as_bytes(), &header("b")));
    assert_eq!(client.reply().status, 200);
    client.send(request(EMPTY, &header("b")));
    let reply = client.reply();
    assert_throttled(&reply, "bytes");
    let retry_after: u64 = reply.header("retry-after").unwrap().parse().unwrap();
    // Until control has looked, what other cores may have of the burst is not counted.
    assert!((100..=177).contains(&retry_after), "2 KiB at 1 KiB a minute: {retry_after}");
    // The same address, with a token that has no quota: one of its three has passed.
    assert!(until_refused(&mut client, &header("free")).1 <= 2);
    drop(client);
    // An address: three at once, whatever its connections.
    let passed: usize = (0..4)
        .map(|_| until_refused(&mut connect_from([127, 7, 1, 1], &server), &header("free")).1)
        .sum();
    assert_eq!(passed, 3);
    let (reply, _) = until_refused(&mut connect_from([127, 7, 1, 1], &server), &header("free"));
    assert_throttled(&reply, "client-requests");
    // Its bytes, after decompression.
    let mut client = connect_from([127, 7, 1, 2], &server);
    let dense = gzip(format!(r#"{{"data":["{}"]}}"#, "x".repeat(9_000)).as_bytes());
    client.send(request(&dense, "content-encoding: gzip\r\nx-api-key: free\r\n"));
    assert_eq!(client.reply().status, 200);
    client.send(request(EMPTY, &header("free")));
    assert_throttled(&client.reply(), "client-bytes");
    drop(client);
    server.wait_idle();
    let metrics = server.metrics();
    for reason in ["requests", "bytes", "client-requests", "client-bytes"] {
        let of = format!("reason=\"{reason}\"");
        assert!(metrics.sum_where("millrace_quota_refusals_total", &of) > 0, "{reason}");
    }
    assert_eq!(metrics.requests(503), 0);
    let by_name =
        metrics.sum_where("millrace_token_requests_total", r#"token="crawler",status="429""#);
    assert_eq!(by_name, 2);
    assert!(server.admin("/peers").body.contains("throttled="));
    server.wait_logged("requests throttled with 429");
}

/// What is refused by its head or its token costs nothing, and what has no quota says nothing of
/// one.
#[test]
fn only_accepted_requests_count_and_success_says_nothing() {
    let server =
        with_tokens("t;rate=2/h;burst=2\n", &[("CLIENT_RATE", "2/h"), ("CLIENT_BURST", "2")]);
    let mut client = server.connect();
    for _ in 0..5 {
        client.send("GET /nowhere HTTP/1.1\r\nhost: x\r\n\r\n");
        assert_eq!(client.reply().status, 404);
        client.send(request(b"", "x-api-key: wrong\r\n"));
        assert_eq!(client.reply().status, 401);
        client.send(request(b"", "x-api-key: t\r\nmillrace-ack: never\r\n"));
        assert_eq!(client.reply().status, 400);
    }
    let mut client = server.connect();
    client.send(request(EMPTY, "x-api-key: t\r\n"));
    let reply = client.reply();
    assert_eq!((reply.status, reply.header("ratelimit")), (200, None));
    // A body that is no collection was read, so it counts.
    client.send(request(b"nonsense", "x-api-key: t\r\n"));
    assert_eq!(client.reply().status, 400);
    client.send(request(EMPTY, "x-api-key: t\r\n"));
    assert_throttled(&client.reply(), "requests");
}

/// A body that its `content-length` refuses costs nothing either, however large that is.
#[test]
fn a_body_over_max_length_costs_nothing_of_a_quota() {
    let settings = [
        ("CLIENT_RATE", "1/h"),
        ("CLIENT_BYTES", "1MiB/h"),
        ("MAX_LENGTH", "2000"),
        ("CORES", up_to_two_cores()),
    ];
    let server = with_tokens("t;rate=1/h;bytes=1MiB/h;burst=1\n", &settings);
    let token = "x-api-key: t\r\n";
    for length in ["2001", "4294967296", "9223372036854775808", "18446744073709551613"] {
        for expect in ["", "expect: 100-continue\r\n"] {
            let mut client = server.connect();
            client.send(format!(
                "POST /payloads HTTP/1.1\r\nhost: x\r\n{token}{expect}content-length: {length}\r\n\r\n"
            ));
            assert_eq!(client.last_reply().status, 413, "{length}");
        }
    }
    let mut client = server.connect();
    client.send(request(EMPTY, token));
    assert_eq!(client.reply().status, 200);
    client.send(request(EMPTY, token));
    assert_throttled(&client.reply(), "requests");
}

/// What others send changes nothing in what a client is charged before its body is known.
#[test]
fn dense_bodies_of_others_use_up_nothing() {
    let settings = [("CLIENT_BYTES", "1MiB/s"), ("STORE", "null:"), ("CORES", up_to_two_cores())];
    let server = Server::start(&settings);
    let dense = gzip(format!(r#"{{"data":["{}"]}}"#, "x".repeat(1_000_000)).as_bytes());
    for source in 1..=25 {
        let mut client = connect_from([127, 7, 2, source], &server);
        client.send(request(&dense, "content-encoding: gzip\r\n"));
        assert_eq!(client.reply().status, 200);
    }
    let small = request(&gzip(br#"{"data":["small"]}"#), "content-encoding: gzip\r\n");
    let (begin, end) = small.split_at(small.len() - 1);
    let mut clients: Vec<Client> = (0..40).map(|_| connect_from([127, 7, 3, 1], &server)).collect();
    // All have begun before the first is whole.
    clients.iter_mut().for_each(|client| client.send(begin));
    std::thread::sleep(Duration::from_millis(600));
    for client in &mut clients {
        client.send(end);
        let reply = client.reply();
        assert_eq!(reply.status, 200, "{reply:?}");
    }
}

#[test]
fn a_throttled_connection_stays_if_its_body_is_small() {
    let server = with_tokens("t;rate=1/h\nfree\n", &[("BODY_TIMEOUT", "1s")]);
    let mut client = server.connect();
    let (token, free) = ("x-api-key: t\r\n", "x-api-key: free\r\n");
    assert_eq!(until_refused(&mut client, token).1, 1);
    let spaces = |count| [EMPTY, &vec![b' '; count]].concat();
    for length in [0, 1, 1_000, (64 << 10) - EMPTY.len()] {
        client.send(request(&spaces(length), token));
        let reply = client.reply();
        assert_throttled(&reply, "requests");
        assert_eq!(reply.header("connection"), None, "{length}");
        // And is as good as before.
        client.send(request(EMPTY, free));
        assert_eq!(client.reply().status, 200, "{length}");
    }
    // Several at once.
    client.send([request(EMPTY, token), request(EMPTY, free), request(EMPTY, token)].concat());
    assert_eq!([client.reply(), client.reply(), client.reply()].map(|r| r.status), [429, 200, 429]);
    client.send(request(b"", token));
    assert_throttled(&client.reply(), "requests");
    drop(client);
    // Nothing of these bodies is read.
    let head = "POST /payloads HTTP/1.1\r\nhost: x\r\nx-api-key: t\r\n";
    for rest in [
        format!("content-length: {}\r\n\r\n", (64 << 10) + 1),
        "content-length: 900000\r\n\r\n".to_owned(),
        "transfer-encoding: chunked\r\n\r\n".to_owned(),
        "content-length: 10\r\nexpect: 100-continue\r\n\r\n".to_owned(),
    ] {
        let mut client = server.connect();
        client.send(format!("{head}{rest}"));
        assert_throttled(&client.last_reply(), "requests");
    }
    // One that does not come ends as any other.
    let mut client = server.connect();
    client.send(format!("{head}content-length: 100\r\n\r\nhalf"));
    let reply = client.last_reply();
    assert_throttled(&reply, "requests");
    drop(client);
    server.wait_idle();
    assert_eq!(server.metrics().requests(408), 0);
}

#[test]
fn a_token_in_the_envelope_has_its_quota_too() {
    let server = with_tokens(
        "t;name=n;rate=3/h;burst=3\nu;name=n;burst=3;rate=3/h\nlarge;bytes=1KiB/h\n",
        &[],
    );
    let mut statuses = Vec::new();
    for token in ["t", "u", "t", "u", "t"] {
        // On connections of their own, so on any core.
        let reply = server.post(format!(r#"{{"token":"{token}","data":[1]}}"#));
        if reply.status == 429 {
            assert_throttled(&reply, "requests");
        }
        statuses.push(reply.status);
    }
    assert_eq!(statuses, [200, 200, 200, 429, 429], "one quota for both");
    let mut client = server.connect();
    client.send(request(br#"{"data":[2]}"#, "x-api-key: u\r\n"));
    assert_throttled(&client.reply(), "requests");
    let large = format!(r#"{{"token":"large","data":["{}"]}}"#, "x".repeat(100_000));
    let chunks: Vec<&[u8]> = large.as_bytes().chunks(30_000).collect();
    client.send(chunked_request(&chunks, ""));
    assert_eq!(client.reply().status, 200);
    client.send(chunked_request(&chunks, ""));
    let reply = client.reply();
    assert_throttled(&reply, "bytes");
    assert_eq!(reply.header("connection"), None, "the body was read");
    drop(client);
    server.wait_idle();
    assert_eq!(server.stored().len(), 4, "nothing of what was refused");
}

#[test]
fn a_reload_changes_quotas_and_forgives_nothing() {
    let server = with_tokens("t;name=n;rate=2/h;burst=2\n", &[]);
    let write = |text: &str| {
        let new = server.path("tokens.new");
        std::fs::write(&new, text).unwrap();
        std::fs::rename(new, server.path("tokens")).unwrap();
        let before = server.count_logged("tokens are accepted from now on");
        server.signal("HUP");
        wait_for("the reload", || server.count_logged("tokens are accepted from now on") > before);
    };
    let header = |token: &str| format!("x-api-key: {token}\r\n");
    let began = Instant::now();
    assert_eq!(until_refused(&mut server.connect(), &header("t")).1, 2);
    // The same name, another token and another quota: what is left is what was left.
    write("u;name=n;rate=3600/h;burst=100\nt;name=n;rate=3600/h;burst=100\n");
    server.wait_logged("2 of them with a quota");
    let (_, passed) = until_refused(&mut server.connect(), &header("u"));
    let earned = began.elapsed().as_secs() as usize;
    assert!(passed <= 10 + earned, "no fresh burst: {passed}");
    // One a second comes now.
    let began = Instant::now();
    wait_for("one more", || {
        let mut client = server.connect();
        client.send(request(EMPTY, &header("t")));
        client.reply().status == 200
    });
    assert!(began.elapsed() < Duration::from_secs(30));
    // Without a quota nothing is refused, and a refused file changes nothing.
    write("t;name=n\n");
    let mut client = server.connect();
    for _ in 0..300 {
        client.send(request(EMPTY, &header("t")));
        assert_eq!(client.reply().status, 200);
    }
    std::fs::write(server.path("tokens"), "t;name=n;rate=0/s\n").unwrap();
    server.signal("HUP");
    server.wait_logged("line 1: rate must be a whole number from 1");
    client.send(request(EMPTY, &header("t")));
    assert_eq!(client.reply().status, 200);
}

#[test]
fn bad_quotas_are_refused_at_the_start_and_by_check() {
    for (settings, says) in [
        (&[("CLIENT_RATE", "1000")][..], "per s, min or h"),
        (&[("CLIENT_BYTES", "0/s")], "from 1B"),
        (&[("CLIENT_BURST", "10")], "no rate"),
        (&[("TOKENS_FILE", "tokens")], "line 2 and line 1 have the same name"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("tokens"), "hush;name=n;rate=1/s\nhush2;name=n\n").unwrap();
        let common = [("LISTEN", "127.0.0.1:0"), ("ADMIN_LISTEN", "127.0.0.1:0"), ("CORES", "0")];
        let settings = [&common, settings].concat();
        for args in [&[][..], &["check"]] {
            let output = run(dir.path(), args, &settings);
            let text = String::from_utf8_lossy(&output.stderr).into_owned()
                + &String::from_utf8_lossy(&output.stdout);
            assert_eq!(output.status.code(), Some(2), "{text}");
            assert!(text.contains(says) && !text.contains("hush"), "{text}");
        }
    }
}

/// Sends as fast as it can on each of `connections` until told to stop; counts what passes.
struct Flood {
    stop: Arc<AtomicBool>,
    passed: Arc<AtomicU64>,
    refused: Arc<AtomicU64>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Flood {
    fn start(server: &Server, connections: usize, body: Vec<u8>) -> Flood {
        let flood = Flood {
            stop: Arc::default(),
            passed: Arc::default(),
            refused: Arc::default(),
            threads: Vec::new(),
        };
        let threads = (0..connections).map(|_| {
            let (stop, passed, refused) =
                (flood.stop.clone(), flood.passed.clone(), flood.refused.clone());
            let mut client = server.connect();
            let bytes = request(&body, "x-api-key: t\r\n");
            std::thread::spawn(move || {
                while !stop.load(Relaxed) {
                    client.send(&bytes);
                    let reply = client.reply();
                    match reply.status {
                        200 => passed.fetch_add(1, Relaxed),
                        429 => refused.fetch_add(1, Relaxed),
                        _ => panic!("{reply:?}"),
                    };
                    if connections > 1 {
                        std::thread::sleep(Duration::from_millis(5));
                    }
                }
            })
        });
        let threads = threads.collect();
        Flood { threads, ..flood }
    }

    /// Requests a second that passed and that were refused, for `counted` after `first`.
    fn rates(self, first: Duration, counted: Duration) -> [f64; 2] {
        let counts = || [self.passed.load(Relaxed), self.refused.load(Relaxed)];
        std::thread::sleep(first);
        let (before, began) = (counts(), Instant::now());
        std::thread::sleep(counted);
        let (after, seconds) = (counts(), began.elapsed().as_secs_f64());
        self.stop.store(true, Relaxed);
        self.threads.into_iter().for_each(|thread| thread.join().unwrap());
        [0, 1].map(|at| (after[at] - before[at]) as f64 / seconds)
    }
}

/// The quotas are a part of what this machine does just now, and one that was interrupted gets more
/// chances; `--nocapture` shows the figures.
#[test]
fn one_connection_gets_the_quota_and_64_get_no_more() {
    let seconds = std::env::var("MILLRACE_QUOTA_SECONDS").ok().and_then(|s| s.parse().ok());
    let counted = Duration::from_secs(seconds.unwrap_or(3));
    let large = format!(r#"{{"data":["{}"]}}"#, "x".repeat(10_000 - 13)).into_bytes();
    let measure = |quota: &str, connections, body: &[u8], counted| {
        let server = with_tokens(&format!("t{quota}\n"), &[("STORE", "null:")]);
        let first = Duration::from_secs(u64::from(!quota.is_empty()));
        Flood::start(&server, connections, body.to_vec()).rates(first, counted)
    };
    for (body, most) in [(EMPTY, 200.0), (large.as_slice(), 100.0)] {
        for connections in [1, 64] {
            let mut shares = Vec::new();
            let met = (0..5).any(|_| {
                let [possible, _] = measure("", connections, body, Duration::from_millis(500));
                let wanted = (possible / 3.0).clamp(10.0, most).floor();
                let quota = if body == EMPTY {
                    format!(";rate={wanted}/s")
                } else {
                    format!(";bytes={}/s", 10_000 * wanted as u64)
                };
                let [passed, refused] = measure(&quota, connections, body, counted);
                let share = passed / wanted;
                println!("{quota}, {connections} connections: {:.1} %", 100.0 * share);
                shares.push((quota, share, refused));
                refused > 0.0 && (0.7..=1.15).contains(&share)
            });
            assert!(met, "{connections} connections: quota, share of it, refused/s: {shares:?}");
        }
    }
}

/// Addresses without end neither slow the server nor make it forget who owes.
#[test]
fn many_addresses_do_not_reset_a_quota() {
    let settings = [("CLIENT_RATE", "2/h"), ("CLIENT_BURST", "2"), ("CORES", up_to_two_cores())];
    let server = Server::start(&settings);
    let owing = [127, 9, 9, 9];
    assert_eq!(until_refused(&mut connect_from(owing, &server), "").1, 2);
    for n in 0..1_000_u32 {
        let [_, _, high, low] = n.to_be_bytes();
        let mut client = connect_from([127, 10, high, low.max(1)], &server);
        client.send(request(EMPTY, ""));
        assert!(low == 0 || client.reply().status == 200, "{n}");
    }
    let mut client = connect_from(owing, &server);
    client.send(request(EMPTY, ""));
    assert_throttled(&client.reply(), "client-requests");
    // The gauge is set once a second.
    wait_for("the addresses to be counted", || {
        server.metrics().sum("millrace_quota_client_buckets") > 990
    });
    assert_eq!(server.metrics().sum("millrace_quota_client_overflows_total"), 0);
    assert_eq!(server.stop().status, 0);
}

/// A stop does not wait for those that wait for a quota, and serves with it to the end.
#[test]
fn a_stop_is_as_quick_with_quotas() {
    let server = with_tokens("t;rate=1/h\n", &[("STORE", "null:"), ("DRAIN_TIMEOUT", "1m")]);
    let flood = Flood::start(&server, 1, EMPTY.to_vec());
    server.wait("one to be refused", |m| m.requests(429) > 0);
    flood.stop.store(true, Relaxed);
    flood.threads.into_iter().for_each(|thread| thread.join().unwrap());
    let stopped = server.stop();
    assert_eq!(stopped.status, 0);
    assert!(stopped.took < Duration::from_secs(20), "{:?}", stopped.took);
}
