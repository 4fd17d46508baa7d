//! Goal: gzip and zstd bodies are what they decompress to: stored exactly, capped, charged, and
//! refused when broken.
//!
//! Method: bodies made by the usual libraries in every framing they allow, then cut, bent and
//! inflated.

use std::io::Write;
use std::time::{Duration, Instant};

use flate2::{Compression, GzBuilder};

use crate::support::{Client, Reply, Server, chunked_request, gzip, request};

const MIB: usize = 1 << 20;

/// One frame with its size in the head, and a checksum at the end.
fn zstd_sized(bytes: &[u8]) -> Vec<u8> {
    let mut compressor = zstd::bulk::Compressor::new(3).unwrap();
    compressor.include_checksum(true).unwrap();
    compressor.compress(bytes).unwrap()
}

/// One frame that does not say how much it holds.
fn zstd_stream(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = zstd::stream::Encoder::new(Vec::new(), 3).unwrap();
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn post(client: &mut Client, encoding: &str, body: &[u8]) -> Reply {
    client.send(request(body, &format!("content-encoding: {encoding}\r\n")));
    client.reply()
}

#[test]
fn every_form_of_compression_is_taken() {
    let server = Server::start(&[]);
    let mut client = server.connect();
    let payload = format!(r#"{{ "text":"{}" }}"#, "so much of the same, ".repeat(4000));
    let body = format!(r#"{{"data":[{payload}]}}"#);
    let body = body.as_bytes();
    let (start, end) = body.split_at(1234);
    let named = {
        let builder = GzBuilder::new().filename("a.json").comment("c").extra(vec![1, 2, 3]);
        let mut encoder = builder.write(Vec::new(), Compression::fast());
        encoder.write_all(body).unwrap();
        encoder.finish().unwrap()
    };
    // A frame of the kind that decoders skip: magic, length, anything.
    let skippable = [&0x184D_2A50_u32.to_le_bytes()[..], &5_u32.to_le_bytes(), b"aside"].concat();
    let empty_members = [gzip(b""), gzip(body), gzip(b"")].concat();
    let forms: [(&str, Vec<u8>); 12] = [
        ("gzip", gzip(body)),
        ("x-gzip", gzip(body)),
        ("GZip", named),
        ("gzip", [gzip(start), gzip(end)].concat()),
        ("gzip", empty_members),
        ("zstd", zstd_sized(body)),
        ("zstd", zstd_stream(body)),
        (" ZSTD\t", [zstd_stream(start), zstd_sized(end)].concat()),
        ("zstd", [skippable.clone(), zstd_sized(body), skippable].concat()),
        ("identity", body.to_vec()),
        ("Identity", body.to_vec()),
        ("", body.to_vec()),
    ];
    for (encoding, bytes) in &forms {
        let reply = post(&mut client, encoding, bytes);
        assert_eq!(reply.status, 200, "{encoding}: {reply:?}");
        let pieces: Vec<&[u8]> = bytes.chunks(bytes.len() / 50 + 1).collect();
        client.send(chunked_request(&pieces, &format!("content-encoding: {encoding}\r\n")));
        let reply = client.reply();
        assert_eq!(reply.status, 200, "{encoding}, chunked: {reply:?}");
    }
    drop(client);
    server.wait_idle();
    let stored = server.stored_texts();
    assert_eq!(stored.len(), 2 * forms.len());
    assert!(stored.iter().all(|text| *text == payload), "byte for byte");
}

#[test]
fn unknown_and_stacked_encodings_get_415() {
    let server = Server::start(&[]);
    for headers in [
        "content-encoding: br\r\n",
        "content-encoding: deflate\r\n",
        "content-encoding: gzip, zstd\r\n",
        "content-encoding: gzip, gzip\r\n",
        "content-encoding: identity, gzip\r\n",
        "content-encoding: gzip\r\ncontent-encoding: gzip\r\n",
        "content-encoding: gzip;q=1\r\n",
        "content-encoding: \u{e9}\r\n",
    ] {
        let mut client = server.connect();
        client.send(request(br#"{"data":[1]}"#, headers));
        let reply = client.last_reply();
        assert_eq!(reply.status, 415, "{headers}");
        assert_eq!(reply.header("accept-encoding"), Some("gzip, zstd, identity"));
        assert!(reply.error().contains("content-encoding"));
    }
    server.wait_idle();
    assert!(server.stored().is_empty());
}

#[test]
fn broken_compression_gets_400_and_harms_nobody() {
    let server = Server::start(&[]);
    let body = format!(
        r#"{{"data":[{}]}}"#,
        (0..300).map(|n| n.to_string()).collect::<Vec<_>>().join(",")
    );
    let body = body.as_bytes();
    let mut client = server.connect();
    let mut refused = 0;
    for (encoding, whole) in
        [("gzip", gzip(body)), ("zstd", zstd_sized(body)), ("zstd", zstd_stream(body))]
    {
        let mut refuse = |what: &str, bytes: &[u8]| {
            let reply = post(&mut client, encoding, bytes);
            assert_eq!(reply.status, 400, "{encoding}, {what}: {reply:?}");
            assert!(!reply.error().is_empty());
            assert_eq!(reply.header("connection"), None, "the body was read whole: kept alive");
            refused += 1;
        };
        for at in (0..whole.len()).step_by(7).chain(whole.len() - 9..whole.len()) {
            refuse(&format!("cut at {at}"), &whole[..at]);
        }
        for garbage in [&b"x"[..], b"xy", b"garbage", b"{\"data\":[1]}", &[0; 30], &[0x1f, 0x8b]] {
            refuse(&format!("followed by {garbage:?}"), &[&whole[..], garbage].concat());
        }
        refuse("followed by half of itself", &[&whole[..], &whole[..whole.len() / 2]].concat());
        refuse("not compressed at all", body);
        // The checksum, and for gzip the length, are the last bytes.
        let checked =
            if encoding == "gzip" { 8 } else { usize::from(whole == zstd_sized(body)) * 4 };
        for back in 1..=checked {
            let mut bent = whole.clone();
            let at = bent.len() - back;
            bent[at] ^= 0x10;
            refuse(&format!("bent at -{back}"), &bent);
        }
        assert_eq!(post(&mut client, encoding, &whole).status, 200, "the next one is fine");
    }
    drop(client);
    server.wait_idle();
    assert_eq!(server.stored().len(), 900);
    assert_eq!(server.metrics().requests(400), refused);
}

#[test]
fn the_cap_counts_decompressed_bytes() {
    let server = Server::start(&[("MAX_LENGTH", "64KiB")]);
    let mut body = br#"{"data":[1]"#.to_vec();
    body.resize(65535, b' ');
    body.push(b'}');
    let over = [&body[..], b" "].concat();
    for (encoding, compress) in
        [("gzip", gzip as fn(&[u8]) -> Vec<u8>), ("zstd", zstd_sized), ("zstd", zstd_stream)]
    {
        let mut client = server.connect();
        assert_eq!(post(&mut client, encoding, &compress(&body)).status, 200, "{encoding}");
        let reply = post(&mut client, encoding, &compress(&over));
        assert_eq!(reply.status, 413, "{encoding}: {reply:?}");
        assert!(reply.error().contains("MAX_LENGTH (65536 bytes)"));
    }
    // A frame that wants more memory to decode than a core gives.
    let mut encoder = zstd::stream::Encoder::new(Vec::new(), 3).unwrap();
    encoder.window_log(27).unwrap();
    encoder.write_all(&body).unwrap();
    let reply = post(&mut server.connect(), "zstd", &encoder.finish().unwrap());
    assert_eq!(reply.status, 400, "{reply:?}");
    server.wait_idle();
    assert_eq!(server.stored().len(), 3);
}

#[test]
fn bombs_are_refused_without_being_unfolded() {
    let server = Server::start(&[("MAX_LENGTH", "1MiB"), ("MAX_BODY_BYTES", "4MiB")]);
    let zeros = vec![b' '; 64 * MIB];
    let bombs =
        [("gzip", gzip(&zeros)), ("zstd", zstd_stream(&zeros)), ("zstd", zstd_sized(&zeros))];
    drop(zeros);
    let mut clients: Vec<Client> = (0..30).map(|_| server.connect()).collect();
    let send = |clients: &mut [Client]| {
        for (n, client) in clients.iter_mut().enumerate() {
            let (encoding, bomb) = &bombs[n % 3];
            assert!(bomb.len() < MIB / 4);
            client.send(request(bomb, &format!("content-encoding: {encoding}\r\n")));
        }
        let refused = |client: &mut Client| match client.reply().status {
            status @ (413 | 503) => status,
            other => panic!("{other}"),
        };
        clients.iter_mut().map(refused).filter(|status| *status == 413).count()
    };
    // Once to warm up: the decoders keep their windows.
    assert!(send(&mut clients[..3]) > 0);
    drop(clients.drain(..3));
    let before = server.resident();
    assert!(send(&mut clients) > 0);
    let grown = server.resident().saturating_sub(before) as usize;
    assert!(grown < 16 * MIB, "{grown} bytes for bodies of 64 MiB");
    drop(clients);
    server.wait_idle();
    assert!(server.stored().is_empty());
}

#[test]
fn others_are_answered_while_a_large_body_is_decompressed() {
    let settings =
        [("MAX_LENGTH", "64MiB"), ("MAX_BODY_BYTES", "256MiB"), ("MAX_QUEUE_BYTES", "64MiB")];
    let server = Server::start(&settings);
    // Before the connections, which may not be silent for as long as this takes.
    let bomb = gzip(&vec![b' '; 65 * MIB]);
    // A client that did not run for a while may have had its answer long before it saw it.
    let seen: Vec<_> = (0..5).map_while(|_| answers_beside(&server, &bomb).err()).collect();
    assert!(seen.len() < 5, "answers, the longest, the body's: {seen:?}");
    server.wait_idle();
}

/// Asks while `bomb` is decompressed; an error says how many were answered, how long the longest
/// took, and the body.
fn answers_beside(server: &Server, bomb: &[u8]) -> Result<(), (usize, Duration, Duration)> {
    let (mut large, mut other) = (server.connect(), server.connect());
    let (during, longest, took) = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            let started = Instant::now();
            let reply = post(&mut large, "gzip", bomb);
            assert_eq!(reply.status, 413);
            started.elapsed()
        });
        let (mut during, mut longest) = (0, Duration::ZERO);
        while !waiting.is_finished() {
            let started = Instant::now();
            assert_eq!(other.post(r#"{"data":[]}"#).status, 200);
            longest = longest.max(started.elapsed());
            during += 1;
        }
        (during, longest, waiting.join().unwrap())
    });
    if during >= 10 && longest < took / 2 { Ok(()) } else { Err((during, longest, took)) }
}

#[test]
fn compressed_bodies_wait_their_turn_and_leave_it() {
    let settings = [("BODY_TIMEOUT", "1s"), ("MAX_LENGTH", "64MiB"), ("MAX_BODY_BYTES", "512MiB")];
    let server = Server::start(&settings);
    let bomb = gzip(&vec![b' '; 65 * MIB]);
    // Each takes a while and they take turns; those whose deadline comes while waiting or in the
    // middle go.
    let mut clients: Vec<Client> = (0..12).map(|_| server.connect()).collect();
    for client in &mut clients {
        client.send(request(&bomb, "content-encoding: gzip\r\n"));
    }
    for (n, client) in clients.into_iter().enumerate() {
        if n % 2 == 0 {
            continue;
        }
        let mut client = client;
        // 503 if those before it took too long, as they may in this build.
        let status = client.reply().status;
        assert!([408, 413, 503].contains(&status), "{status}");
    }
    // The others have their turns too, and these have a deadline.
    server.wait("all to be through", |m| m.sum("millrace_body_bytes") == 0);
    let mut client = server.connect();
    assert_eq!(post(&mut client, "gzip", &gzip(br#"{"data":[1]}"#)).status, 200);
    assert_eq!(post(&mut client, "zstd", &zstd_sized(br#"{"data":[2]}"#)).status, 200);
    drop(client);
    server.wait_idle();
    assert_eq!(server.stored_texts(), ["1", "2"]);
}
