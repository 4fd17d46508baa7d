//! A connection that speaks HTTP/2, whatever its client sends: it ends, does not panic, and holds nothing
//! afterwards.
//!
//! How to run it is said in `segment.rs`; this target is called `h2`.
//!
//! The first byte of an input says under which settings and whether preface and settings come first by
//! themselves, the second how many cuts there are, and as many bytes as that where they are, in sixteenths
//! of a kilobyte; the rest is what the client sends.

#![no_main]

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{LazyLock, Mutex};
use std::thread;

use libfuzzer_sys::fuzz_target;
use millrace::internals::config::Config;
use millrace::internals::http::differential::Lab;
use millrace::internals::rt::Executor;

/// Settings under which other things happen to a request.
const SETTINGS: [&[(&str, &str)]; 3] = [
    &[("H2", "all"), ("MAX_LENGTH", "20KB")],
    &[("H2", "all"), ("MAX_LENGTH", "20KB"), ("TRUST", "0.0.0.0,10.0.0.0/8"), ("META", "client")],
    &[("H2", "all"), ("MAX_LENGTH", "20KB"), ("H2_STREAMS", "2"), ("CLIENT_RATE", "1000/s")],
];

/// Preface and settings.
const OPENING: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

const CUTS_MAX: usize = 8;

/// Longest input: more would be more of the same.
const BYTES_MAX: usize = 40 << 10;

/// What is sent, in pieces, and under which settings.
type Case = (usize, Vec<Vec<u8>>);

/// The servers run on an executor of their own, which one thread has for all cases.
struct Servers {
    cases: Sender<Case>,
    held: Receiver<[u64; 3]>,
}

static SERVERS: LazyLock<Mutex<Servers>> = LazyLock::new(|| {
    let (cases, to_do) = channel::<Case>();
    let (done, held) = channel();
    thread::spawn(move || {
        Executor::small().unwrap().run(async {
            let lab = |settings: &[(&str, &str)]| {
                Lab::new(Config::from_settings(settings).unwrap(), None).unwrap()
            };
            let labs = SETTINGS.map(lab);
            // It blocks its executor between two cases, where nothing else is to be done.
            while let Ok((settings, pieces)) = to_do.recv() {
                let pieces: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
                done.send(labs[settings].run_h2(&pieces).await.0).unwrap();
            }
        });
    });
    Mutex::new(Servers { cases, held })
});

fuzz_target!(|input: &[u8]| {
    let [settings, count, rest @ ..] = input else { return };
    let count = usize::from(*count) % (CUTS_MAX + 1);
    let Some((cuts, bytes)) = rest.split_at_checked(count) else { return };
    if bytes.len() > BYTES_MAX {
        return;
    }
    let mut cuts: Vec<usize> =
        cuts.iter().map(|cut| (usize::from(*cut) * 64).min(bytes.len())).collect();
    cuts.sort_unstable();
    let mut pieces = Vec::new();
    if settings & 0x80 == 0 {
        pieces.push(OPENING.to_vec());
    }
    let mut start = 0;
    for cut in cuts.into_iter().chain([bytes.len()]) {
        pieces.push(bytes[start..cut].to_vec());
        start = cut;
    }
    let servers = SERVERS.lock().unwrap();
    servers.cases.send((usize::from(*settings & 0x7f) % SETTINGS.len(), pieces)).unwrap();
    assert_eq!(servers.held.recv().unwrap(), [0; 3], "connections, requests, bytes of bodies");
});
