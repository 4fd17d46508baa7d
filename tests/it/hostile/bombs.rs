//! Goal: whatever is made to be large or slow once it is decompressed is refused with its one
//! status, in bounded memory, and others are served meanwhile.
//!
//! Method: bombs in every shape the two formats allow, each posted once for its answer and then
//! again and again with a good client beside it. `http/compression.rs` has the bodies that are to
//! be taken, and those that are cut or bent.

use std::io::Write as _;
use std::sync::LazyLock;

use super::support::{Attack, Raid, beside, nothing_left};
use crate::support::{PATIENCE, Reply, Server, gzip, request};

const MIB: usize = 1 << 20;

/// What the server of this file takes.
const MAX_LENGTH: usize = MIB / 4;

/// Resident memory may grow by the body budget, as much again for the decoders' windows and the
/// parser's scratch, and what the allocator keeps.
const MEMORY_BOUND: u64 = 40 << 20;

fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::bulk::compress(bytes, 19).unwrap()
}

/// A zstd frame with a window of 2^`log` bytes.
fn zstd_window(bytes: &[u8], log: u32) -> Vec<u8> {
    let mut encoder = zstd::stream::Encoder::new(Vec::new(), 3).unwrap();
    encoder.window_log(log).unwrap();
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// A zstd frame of `blocks` blocks that say "128 KiB of the same byte" in four bytes each.
fn zstd_run_lengths(blocks: usize) -> Vec<u8> {
    // Magic, no flags, a window of 128 KiB.
    let mut frame = vec![0x28, 0xB5, 0x2F, 0xFD, 0, 7 << 3];
    for n in 1..=blocks {
        // Last block, two bits of type, length.
        let header = u32::from(n == blocks) | (1 << 1) | ((128 << 10) << 3);
        frame.extend_from_slice(&header.to_le_bytes()[..3]);
        frame.push(b' ');
    }
    frame
}

/// A zstd frame that says it holds four gigabytes, and then holds nothing.
fn zstd_announces() -> Vec<u8> {
    // A size of four bytes, one segment; an empty last block.
    let mut frame = vec![0x28, 0xB5, 0x2F, 0xFD, 0b1010_0000];
    frame.extend_from_slice(&u32::MAX.to_le_bytes());
    frame.extend_from_slice(&[1, 0, 0]);
    frame
}

/// The head of a skippable frame of `length` bytes, and `given` of them.
fn zstd_skippable(length: u32, given: usize) -> Vec<u8> {
    let head = [0x184D_2A50_u32.to_le_bytes(), length.to_le_bytes()].concat();
    [head, vec![0; given]].concat()
}

/// A gzip head whose file name has no end.
fn gzip_endless_name() -> Vec<u8> {
    [&[0x1f, 0x8b, 8, 8, 0, 0, 0, 0, 0, 3][..], &[b'n'; 200_000]].concat()
}

/// As many payloads as fit, and with `tail` behind them.
fn dense(bytes: usize, tail: &str) -> Vec<u8> {
    format!(r#"{{"data":[{}1]{tail}}}"#, "1,".repeat(bytes / 2)).into_bytes()
}

/// Name, encoding, body and the one right status.
type Bomb = (&'static str, &'static str, Vec<u8>, u16);

/// Made once: that takes seconds.
static BOMBS: LazyLock<Vec<Bomb>> = LazyLock::new(|| {
    let zeros = vec![0; 16 * MIB];
    let blanks = vec![b' '; 16 * MIB];
    let large = dense(16 * MIB, "");
    let many = dense(MAX_LENGTH - 100, "");
    let twice = dense(MAX_LENGTH - 100, r#","data":[]"#);
    let not_closed = dense(MAX_LENGTH - 100, ",");
    let nested = |tail: &str| {
        let ones = "1,".repeat(MAX_LENGTH / 2 - 100);
        format!(r#"{{"x":[{ones}1],"data":[]{tail}}}"#).into_bytes()
    };
    let cut = |bytes: Vec<u8>| bytes[..bytes.len() / 2].to_vec();
    vec![
        ("zeros", "gzip", gzip(&zeros), 413),
        ("zeros", "zstd", zstd(&zeros), 413),
        ("blanks", "gzip", gzip(&blanks), 413),
        ("blanks", "zstd", zstd(&blanks), 413),
        ("dense JSON", "gzip", gzip(&large), 413),
        ("dense JSON", "zstd", zstd(&large), 413),
        ("dense JSON within the length", "gzip", gzip(&many), 413),
        ("dense JSON within the length", "zstd", zstd(&many), 413),
        ("dense JSON, refused at its end", "gzip", gzip(&twice), 413),
        ("dense JSON, refused at its end", "zstd", zstd(&twice), 413),
        ("dense JSON, not JSON at its end", "zstd", zstd(&not_closed), 413),
        ("dense member, refused at its end", "gzip", gzip(&nested(r#","data":[]"#)), 400),
        ("dense member, refused at its end", "zstd", zstd(&nested(r#","data":[]"#)), 400),
        ("dense member, not JSON at its end", "zstd", zstd(&nested(",")), 400),
        ("depth", "zstd", zstd(&[b'['; MAX_LENGTH]), 400),
        ("gzip in gzip", "gzip", gzip(&gzip(&blanks)), 400),
        ("zstd in zstd", "zstd", zstd(&zstd(&blanks)), 400),
        ("gzip in zstd", "zstd", zstd(&gzip(&blanks)), 400),
        ("10,000 empty members", "gzip", gzip(b"").repeat(10_000), 400),
        ("10,000 empty frames", "zstd", zstd(b"").repeat(10_000), 400),
        ("2,000 members", "gzip", gzip(&[b' '; 1024]).repeat(2000), 413),
        ("2,000 frames", "zstd", zstd(&[b' '; 1024]).repeat(2000), 413),
        ("20,000 skippable frames", "zstd", zstd_skippable(1, 1).repeat(20_000), 400),
        ("a skippable frame of 4 GiB", "zstd", zstd_skippable(u32::MAX, 200_000), 400),
        ("a run of 256 MiB", "zstd", zstd_run_lengths(2048), 413),
        ("4 GiB announced", "zstd", zstd_announces(), 400),
        ("a window of 128 MiB", "zstd", zstd_window(&blanks, 27), 400),
        ("a window of 8 MiB", "zstd", zstd_window(&blanks, 23), 413),
        ("a file name without an end", "gzip", gzip_endless_name(), 400),
        ("cut", "gzip", cut(gzip(&many)), 400),
        ("cut", "zstd", cut(zstd(&many)), 400),
    ]
});

fn server() -> Server {
    let length = MAX_LENGTH.to_string();
    let settings = [("STORE", "null:"), ("MAX_LENGTH", &length), ("MAX_BODY_BYTES", "8MiB")];
    Server::start(&settings)
}

fn post(server: &Server, encoding: &str, body: &[u8]) -> Reply {
    let mut client = server.connect();
    client.try_send(request(body, &format!("content-encoding: {encoding}\r\n")));
    client.reply()
}

#[test]
fn each_bomb_has_its_answer() {
    let server = server();
    let before = server.resident();
    for (name, encoding, body, status) in BOMBS.iter() {
        let reply = post(&server, encoding, body);
        assert_eq!(reply.status, *status, "{name}, {encoding}: {reply:?}");
        assert!(!reply.error().is_empty());
    }
    let grown = server.resident().saturating_sub(before);
    assert!(grown < MEMORY_BOUND, "{grown} bytes more than before");
    server.wait_idle();
    assert_eq!(server.metrics().sum("millrace_payloads_accepted_total"), 0);
}

/// All bombs one after another, on several connections at a time.
fn throw(raid: &mut Raid) {
    let bombs = &*BOMBS;
    let mut turn = 0;
    while raid.turn() {
        let mut clients = raid.connect_all();
        let start = turn;
        for client in &mut clients {
            let (_, encoding, body, _) = &bombs[turn % bombs.len()];
            client.stream.set_write_timeout(Some(PATIENCE)).unwrap();
            client.stream.set_read_timeout(Some(PATIENCE)).unwrap();
            client.try_send(request(body, &format!("content-encoding: {encoding}\r\n")));
            turn += 1;
        }
        for (client, at) in clients.iter_mut().zip(start..) {
            let (name, encoding, _, status) = &bombs[at % bombs.len()];
            let reply = client.reply();
            assert_eq!(reply.status, *status, "{name}, {encoding}: {reply:?}");
        }
    }
}

#[test]
fn bombs_thrown_by_the_dozen_cost_the_others_nothing() {
    let attack = Attack { name: "bombs", connections: 8, per_second: 20, run: throw };
    LazyLock::force(&BOMBS);
    let server = server();
    let before = server.resident();
    let outcome = beside(&server, &attack);
    let grown = server.resident().saturating_sub(before);
    assert!(grown < MEMORY_BOUND, "{grown} bytes more than before");
    nothing_left(&server, &[outcome]);
}
