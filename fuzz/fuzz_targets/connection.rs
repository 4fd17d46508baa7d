//! A connection whose requests the fast path reads, against one that hyper reads alone: the same
//! answers, payloads and counters for the same bytes.
//!
//! How to run it is said in `segment.rs`; this target is called `connection`.
//!
//! The first byte of an input says under which settings, the second how many cuts there are, and as
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
const SETTINGS: [&[(&str, &str)]; 3] = [
    &[("MAX_LENGTH", "20KB")],
    &[("CORS_ORIGINS", "https://example.com"), ("MAX_LENGTH", "20KB")],
    &[
        ("KEY", "{header:x-tenant}/{query:site}/{unix_nanos}-{node}-{core}-{seq}.json"),
        ("META", "client,header:user-agent"),
        ("MAX_LENGTH", "20KB"),
    ],
];

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
    if bytes.len() > BYTES_MAX || has_two_lengths(bytes) {
        return;
    }
    let mut cuts: Vec<usize> =
        cuts.iter().map(|cut| (usize::from(*cut) * 64).min(bytes.len())).collect();
    cuts.sort_unstable();
    let (mut pieces, mut start) = (Vec::new(), 0);
    for cut in cuts.into_iter().chain([bytes.len()]) {
        pieces.push(bytes[start..cut].to_vec());
        start = cut;
    }
    let servers = SERVERS.lock().unwrap();
    servers.cases.send((usize::from(*settings) % SETTINGS.len(), pieces)).unwrap();
    let [fast, hyper] = servers.outcomes.recv().unwrap();
    assert_eq!(fast, hyper);
});

/// hyper does not show the length of a chunked request to what checks it if its head came in one
/// read with the request before: the one difference that is wanted.
fn has_two_lengths(bytes: &[u8]) -> bool {
    let text = bytes.to_ascii_lowercase();
    let has = |name: &[u8]| text.windows(name.len()).any(|part| part == name);
    has(b"transfer-encoding") && has(b"content-length")
}
