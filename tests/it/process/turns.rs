//! Goal: no kind of load keeps a core from its sockets for long. Method: a server under each kind,
//! one after another; its own metric says for how long the core's thread ran without a look at its
//! sockets. Time in which the thread did not run is not counted, so a busy machine does not matter.

use std::time::Duration;

use crate::support::h2::{DATA, END_STREAM, H2Client, frame, post};
use crate::support::{Client, Server, collection, gzip, numbered, request};

/// How often a load is tried: the thread's time includes what an interrupt or a neighbour of the
/// virtual machine took of it.
const TRIES: usize = 4;

/// A debug build is ten times slower than a release build, which stays below 5 ms.
const RAN_MAX: Duration = Duration::from_millis(if cfg!(debug_assertions) { 100 } else { 10 });

struct Load {
    name: &'static str,
    settings: &'static [(&'static str, &'static str)],
    put_on: fn(&Server),
}

const LOADS: [Load; 9] = [
    Load { name: "many small requests at once", settings: &[], put_on: small_requests },
    Load { name: "large bodies", settings: &[], put_on: large_bodies },
    // They enter the queue together: all of them or none.
    Load { name: "a million payloads in one request", settings: &[], put_on: a_million_payloads },
    Load { name: "compressed bodies", settings: &[], put_on: compressed_bodies },
    Load {
        name: "compressed batches",
        settings: &[
            ("OBJECT", "batch"),
            ("COMPRESSION", "zstd"),
            ("BATCH_AGE", "50ms"),
            ("BATCH_BYTES", "1MiB"),
        ],
        put_on: large_bodies,
    },
    Load {
        name: "the spool",
        settings: &[("SPOOL_DIR", "spool"), ("ACK", "spooled")],
        put_on: large_bodies,
    },
    Load { name: "connections that come and go", settings: &[], put_on: connections },
    Load {
        name: "many clients with quotas",
        settings: &[("CLIENT_RATE", "1000000/s")],
        put_on: small_requests,
    },
    Load {
        name: "the requests of an HTTP/2 connection",
        settings: &[("H2", "all"), ("H2_STREAMS", "500"), ("MAX_BODY_BYTES", "256MiB")],
        put_on: streams_of_one_connection,
    },
];

#[test]
fn no_load_keeps_a_core_from_its_sockets() {
    for load in &LOADS {
        let long: Vec<String> = (0..TRIES).map_while(|_| long_turns(load)).collect();
        let (name, tries) = (load.name, long.len());
        assert!(tries < TRIES, "{name}: turns of more than {RAN_MAX:?} each time: {long:#?}");
    }
}

/// The turns of more than [`RAN_MAX`] under this load; `None`: there was none.
fn long_turns(load: &Load) -> Option<String> {
    let Load { name, settings, put_on } = load;
    let mut all = vec![
        ("STORE", "null:"),
        ("LOG", "info,millrace::core=debug"),
        ("MAX_LENGTH", "4MiB"),
        ("MAX_QUEUE", "2000000"),
        ("MAX_QUEUE_BYTES", "1GiB"),
        ("ENQUEUE_WAIT", "1m"),
    ];
    all.extend_from_slice(settings);
    let server = Server::start(&all);
    put_on(&server);
    server.wait_idle();
    let metrics = server.metrics();
    let turns = metrics.sum("millrace_core_turn_ran_seconds_count");
    // The core goes on while it is read, and this one is read first.
    assert!(turns >= metrics.sum("millrace_core_turn_seconds_count"), "{name}");
    assert!(turns > 100, "{name}: {turns} turns");
    let within = |ms: &&f64| {
        let bound = format!("le=\"{}\"", *ms / 1e3);
        metrics.sum_where("millrace_core_turn_ran_seconds_bucket", &bound) == turns
    };
    let ms = [1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 50.0, 100.0, 200.0, 500.0];
    println!("{name}: all turns within {:?} ms", ms.iter().find(within));
    let bound = format!("le=\"{}\"", RAN_MAX.as_secs_f64());
    let short = metrics.sum_where("millrace_core_turn_ran_seconds_bucket", &bound);
    let stopped = server.stop();
    assert_eq!((stopped.status, stopped.lost), (0, 0), "{name}");
    let long = stopped.log.iter().filter(|line| line.to_string().contains("long turn"));
    (short != turns).then(|| format!("{} turns: {:#?}", turns - short, long.collect::<Vec<_>>()))
}

/// As many bodies as a connection may have whose last bytes arrive together.
fn streams_of_one_connection(server: &Server) {
    let body = collection(&numbered(0..6_000));
    let (most, last) = body.split_at(body.len() - 1);
    let mut client = H2Client::connect(server.ingest);
    for _ in 0..2 {
        let streams: Vec<_> = (0..500)
            .map(|_| {
                let stream = client.head(&post(&[]), false);
                client.data(stream, most.as_bytes(), false);
                stream
            })
            .collect();
        let whole = (500 * most.len()) as u64;
        server.wait("they are read", |now| now.sum("millrace_body_bytes") >= whole);
        let ends = streams.iter().map(|stream| frame(DATA, END_STREAM, *stream, last.as_bytes()));
        client.send(ends.collect::<Vec<_>>().concat());
        for stream in streams {
            assert_eq!(client.answer(stream).status, 200);
        }
    }
}

/// 128 clients whose requests are there before any of them is answered, several times.
fn small_requests(server: &Server) {
    let body = collection(&numbered(0..10));
    let wanted = request(body.as_bytes(), "");
    let mut clients: Vec<Client> = (0..128).map(|_| server.connect()).collect();
    for _ in 0..8 {
        for client in &mut clients {
            client.send(&wanted);
        }
        for client in &mut clients {
            assert_eq!(client.reply().status, 200);
        }
    }
}

/// Bodies of a MiB with many payloads, and small ones beside them.
fn large_bodies(server: &Server) {
    let body = large_body();
    let mut clients: Vec<Client> = (0..3).map(|_| server.connect()).collect();
    for client in &mut clients {
        client.send(request(body.as_bytes(), ""));
    }
    small_requests(server);
    for client in &mut clients {
        assert_eq!(client.reply().status, 200);
    }
}

fn compressed_bodies(server: &Server) {
    let body = gzip(large_body().as_bytes());
    let mut clients: Vec<Client> = (0..3).map(|_| server.connect()).collect();
    for client in &mut clients {
        client.send(request(&body, "content-encoding: gzip\r\n"));
    }
    small_requests(server);
    for client in &mut clients {
        assert_eq!(client.reply().status, 200);
    }
}

fn large_body() -> String {
    collection(&numbered(0..80_000))
}

fn a_million_payloads(server: &Server) {
    let mut client = server.connect();
    client.send(request(collection(&vec!["1"; 1_000_000]).as_bytes(), ""));
    small_requests(server);
    assert_eq!(client.reply().status, 200);
}

/// Connections that are opened together, each with one request, and closed together.
fn connections(server: &Server) {
    let body = collection(&numbered(0..2));
    for _ in 0..3 {
        let mut clients: Vec<Client> = (0..300).map(|_| server.connect()).collect();
        for client in &mut clients {
            client.send(request(body.as_bytes(), ""));
        }
        for client in &mut clients {
            assert_eq!(client.reply().status, 200);
        }
    }
}
