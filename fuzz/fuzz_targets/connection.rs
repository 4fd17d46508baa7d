//! A connection whose requests the fast path reads, against one that hyper reads alone: the same
//! answers, payloads and counters for the same bytes. Behind a PROXY header both answer what they
//! answer without one.
//!
//! How to run it is said in `segment.rs`; this target is called `connection`.
//!
//! The first byte of an input says under which settings, with those of a proxy also which header comes
//! first by itself, the second how many cuts there are, and as
//! many bytes as that where they are, in sixteenths of a kilobyte; the rest is what the client sends.

#![no_main]

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{LazyLock, Mutex};
use std::thread;

use libfuzzer_sys::fuzz_target;
use millrace::internals::config::Config;
use millrace::internals::http::differential::{CaseOutcome, Lab};
use millrace::internals::rt::Executor;

/// Settings under which more of a head counts.
const SETTINGS: [&[(&str, &str)]; 4] = [
    PLAIN,
    &[("CORS_ORIGINS", "https://example.com"), ("MAX_LENGTH", "20KB")],
    &[
        ("KEY", "{header:x-tenant}/{query:site}/{unix_nanos}-{node}-{core}-{seq}.json"),
        ("META", "client,header:user-agent"),
        ("MAX_LENGTH", "20KB"),
    ],
    // The socket of a test has no address.
    &[("LISTEN", "0.0.0.0:1?proxy=0.0.0.0&proxy=10.0.0.0/8"), ("MAX_LENGTH", "20KB")],
];
const PLAIN: &[(&str, &str)] = &[("MAX_LENGTH", "20KB")];
/// Those of [`SETTINGS`] with a proxy.
const PROXIED: usize = 3;

/// PROXY headers: of version 1, and of version 2 with a field, for a client and for the proxy itself.
const PROXY_HEADERS: [&[u8]; 4] = [
    b"PROXY TCP4 192.0.2.7 192.0.2.1 4711 80\r\n",
    b"PROXY UNKNOWN what ever\r\n",
    b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x10\xc0\0\x02\x07\xc0\0\x02\x01\x12\x67\0\x50\x04\0\x01x",
    b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0",
];
/// In the first byte: one of these comes first by itself; in the two bits below it, which one.
const WITH_HEADER: u8 = 0x80;

const CUTS_MAX: usize = 8;

/// Longest input: more would be more of the same.
const BYTES_MAX: usize = 40 << 10;

/// What is sent, in pieces, and under which settings.
type Case = (usize, Vec<Vec<u8>>);

/// The servers run on an executor of their own, which one thread has for all cases.
struct Servers {
    cases: Sender<Case>,
    outcomes: Receiver<[CaseOutcome; 2]>,
}

static SERVERS: LazyLock<Mutex<Servers>> = LazyLock::new(|| {
    let (cases, to_do) = channel::<Case>();
    let (done, outcomes) = channel();
    thread::spawn(move || {
        Executor::small().unwrap().run(async {
            let lab = |settings: &[(&str, &str)]| {
                Lab::new(Config::from_settings(settings).unwrap(), None).unwrap()
            };
            let labs = SETTINGS.map(lab);
            // It blocks its executor between two cases, where nothing else is to be done.
            while let Ok((settings, pieces)) = to_do.recv() {
                let pieces: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
                done.send(labs[settings].run(&pieces).await).unwrap();
            }
        });
    });
    Mutex::new(Servers { cases, outcomes })
});

fuzz_target!(|input: &[u8]| {
    let [settings, count, rest @ ..] = input else { return };
    let count = usize::from(*count) % (CUTS_MAX + 1);
    let Some((cuts, bytes)) = rest.split_at_checked(count) else { return };
    if bytes.len() > BYTES_MAX || has_two_lengths(bytes) || has_late_preface(bytes) {
        return;
    }
    let mut cuts: Vec<usize> =
        cuts.iter().map(|cut| (usize::from(*cut) * 64).min(bytes.len())).collect();
    cuts.sort_unstable();
    let number = usize::from(settings & !WITH_HEADER);
    let header = (settings & WITH_HEADER != 0).then_some(PROXY_HEADERS[number >> 5]);
    let number = number % SETTINGS.len();
    let (mut pieces, mut start) = (Vec::new(), 0);
    for cut in cuts.into_iter().chain([bytes.len()]) {
        pieces.push(bytes[start..cut].to_vec());
        start = cut;
    }
    let servers = SERVERS.lock().unwrap();
    let run = |settings: usize, pieces: Vec<Vec<u8>>| {
        servers.cases.send((settings, pieces)).unwrap();
        let [fast, hyper] = servers.outcomes.recv().unwrap();
        assert_eq!(fast, hyper);
        fast
    };
    let Some(header) = header.filter(|_| number == PROXIED) else {
        run(number, pieces);
        return;
    };
    let plain = run(0, pieces.clone());
    // In one piece with what follows it.
    pieces[0] = [header, &pieces[0]].concat();
    let proxied = run(number, pieces);
    assert_eq!((plain.answers, plain.payloads), (proxied.answers, proxied.payloads));
});

/// hyper does not show the length of a chunked request to what checks it if its head came in one
/// read with the request before: a difference that is wanted.
fn has_two_lengths(bytes: &[u8]) -> bool {
    let text = bytes.to_ascii_lowercase();
    let has = |name: &[u8]| text.windows(name.len()).any(|part| part == name);
    has(b"transfer-encoding") && has(b"content-length")
}

/// hyper closes without a word if it refuses a head and then finds the preface of HTTP/2, also where
/// that came behind the head and in one read with it: a difference that does no harm.
fn has_late_preface(bytes: &[u8]) -> bool {
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    bytes.windows(preface.len()).skip(1).any(|part| part == preface)
}
