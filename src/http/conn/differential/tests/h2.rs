//! Connections that speak HTTP/2: the seeds of the fuzz target `h2`, as they are and changed at random.

use super::*;
use crate::http::h2::H2_PREFACE;

/// Of the seeds those that admit payloads, and how many.
const ADMITTED: [(&str, usize); 9] = [
    ("plain", 2),
    ("preface", 2),
    ("two", 4),
    ("length", 2),
    ("trailers", 2),
    ("continued", 2),
    ("goaway", 2),
    ("windows", 2),
    ("padded", 2),
];

/// The name of each seed and its bytes; without those that are steps to make bytes from.
fn seeds() -> Vec<(String, Vec<u8>)> {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/seeds/h2");
    let read = |entry: io::Result<std::fs::DirEntry>| {
        let entry = entry.unwrap();
        let bytes = std::fs::read(entry.path()).unwrap();
        let is_steps = H2Input::read(&bytes).expect("a seed means something").is_steps();
        (!is_steps).then(|| (entry.file_name().into_string().unwrap(), bytes))
    };
    let mut all: Vec<_> = std::fs::read_dir(directory).unwrap().filter_map(read).collect();
    all.sort();
    all
}

#[test]
fn seeds_admit_what_is_whole_wherever_they_are_cut_and_nothing_is_held() {
    rt::run_test(async {
        let labs = H2Input::labs();
        // What a fuzzer has found is named by its digest.
        let named = seeds().into_iter().filter(|(name, _)| name.len() < 40);
        for (name, seed) in named {
            let input = H2Input::read(&seed).unwrap();
            let sends = input.pieces(input.rest).concat();
            let of_name = ADMITTED.iter().find(|(of, _)| *of == name);
            let admitted = of_name.map_or(0, |(_, admitted)| *admitted);
            for piece in [sends.len(), 1, 7, 50] {
                let pieces: Vec<&[u8]> = sends.chunks(piece).collect();
                let outcome = labs[input.lab()].run_h2(&pieces).await;
                let flaw = outcome.flaw(&sends, input.is_wrapped());
                assert_eq!(
                    (flaw, outcome.payloads.len()),
                    (None, admitted),
                    "{name} in pieces of {piece}"
                );
            }
        }
    });
}

#[test]
fn whatever_is_sent_nothing_is_held_and_nothing_is_answered_wrongly() {
    let seed = crate::http::peers::tests::seed();
    let mut rng = Rng::with_seed(seed);
    rt::run_test(async move {
        let (labs, seeds) = (H2Input::labs(), seeds());
        for _ in 0..400 {
            let input = H2Input::read(&seeds[rng.usize(..seeds.len())].1).unwrap();
            let mut sends = input.pieces(input.rest).concat();
            let lab = &labs[input.lab()];
            for _ in 0..rng.usize(1..5) {
                mutate(&mut sends, &mut rng);
            }
            let cut = rng.usize(..sends.len() + 1);
            let (first, second) = sends.split_at(cut);
            let cut_up = lab.run_h2(&[first, second]).await;
            let whole = lab.run_h2(&[&sends]).await;
            let case = format!("seed {seed} {} {cut} {}", input.lab(), sends.escape_ascii());
            for outcome in [&cut_up, &whole] {
                assert_eq!(outcome.flaw(&sends, input.is_wrapped()), None, "{case}");
            }
            let is_calm = [&cut_up, &whole].iter().all(|outcome| outcome.is_calm(&sends));
            if is_calm && !input.is_timed() {
                assert_eq!(cut_up.payloads, whole.payloads, "{case}");
            }
        }
    });
}

/// Each flaw is seen in an outcome that has it, and none in one without.
#[test]
fn a_wrong_outcome_is_told_from_a_right_one() {
    let frame = |kind: u8, flags: u8, stream: u32, payload: &[u8]| {
        let length = (payload.len() as u32).to_be_bytes();
        let head = [&length[1..], &[kind, flags], &stream.to_be_bytes()].concat();
        [&head, payload].concat()
    };
    let (settings, head) = (frame(4, 0, 0, b""), frame(1, 4, 1, b"\x88"));
    let answer = frame(0, 1, 1, br#"{"accepted":1,"ack":"queued"}"#);
    let goodbye = |last: u32| frame(7, 0, 0, &[last.to_be_bytes(), [0; 4]].concat());
    let padded = frame(0, 9, 1, b"\x02{\"data\":[12]}\0\0");
    let opening = [&H2_PREFACE[..], &settings].concat();
    let sent = [&opening[..], &frame(1, 4, 1, b"\x83"), &padded].concat();
    let outcome = |answers: &[&[u8]], payloads: &[&[u8]]| H2Outcome {
        held: [0; 3],
        payloads: payloads.iter().map(|payload| payload.to_vec()).collect(),
        answers: answers.concat(),
    };
    let good: &[&[u8]] = &[&settings, &head, &answer];
    for (what, answers, payloads, flaw) in [
        ("right", good, &[&b"12"[..]][..], ""),
        ("lost", good, &[], "1 were accepted, 0 admitted"),
        ("of nobody", good, &[b"13"], "nobody has sent 13"),
        ("no settings", &[&head, &answer], &[b"12"], "it begins with"),
        ("twice", &[&settings, &head, &answer, &answer], &[b"12"], "a frame 0 on stream 1"),
        ("two heads", &[&settings, &head, &head, &answer], &[b"12"], "a frame 1 on stream 1"),
        ("no head", &[&settings, &answer], &[b"12"], "a frame 0 on stream 1"),
        ("not asked", &[&settings, &frame(1, 5, 3, b"")], &[], "a frame 1 on stream 3"),
        ("reset", &[&settings, &frame(3, 0, 1, &[0; 4]), &head], &[], "a frame 1 on stream 1"),
        ("goodbye", &[&settings, &goodbye(1), &goodbye(3)], &[], "goodbye to 3, then to 1"),
        ("cut", &[&settings, &goodbye(3), &goodbye(1)[..12]], &[], ""),
    ] {
        let found = outcome(answers, payloads).flaw(&sent, false).unwrap_or_default();
        assert!(found.starts_with(flaw) && found.is_empty() == flaw.is_empty(), "{what}: {found}");
    }
    let held = H2Outcome { held: [0, 1, 0], ..outcome(good, &[b"12"]) };
    assert!(held.flaw(&sent, false).is_some());
    let wrapped = outcome(good, &[br#"{"meta":{},"payload":12}"#]);
    assert_eq!(wrapped.flaw(&sent, true), None);
    assert!(outcome(good, &[b"12"]).is_calm(&sent));
    assert!(!outcome(&[&settings, &goodbye(3)], &[]).is_calm(&sent));
    assert!(!outcome(&[&settings[..5]], &[]).is_calm(&sent));
    assert!(!outcome(good, &[]).is_calm(&[&sent[..], &frame(3, 0, 1, &[0; 4])].concat()));
}
