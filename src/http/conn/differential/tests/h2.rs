//! Connections that speak HTTP/2: the seeds of the fuzz target `h2`, as they are and changed at random.

use super::*;

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

const OPENING: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

fn labs() -> [Lab; 3] {
    let all = ("H2", "all");
    [
        lab(&[all, LENGTH]),
        lab(&[all, LENGTH, ("TRUST", "0.0.0.0,10.0.0.0/8"), ("META", "client")]),
        lab(&[all, LENGTH, ("H2_STREAMS", "2"), ("CLIENT_RATE", "1000/s")]),
    ]
}

/// The name of each seed, its settings and its bytes.
fn seeds() -> Vec<(String, usize, Vec<u8>)> {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/seeds/h2");
    let read = |entry: io::Result<std::fs::DirEntry>| {
        let entry = entry.unwrap();
        let bytes = std::fs::read(entry.path()).unwrap();
        let [settings, cuts, rest @ ..] = &bytes[..] else { panic!("it has two bytes") };
        let opening = if settings & 0x80 == 0 { OPENING } else { b"" };
        let sends = [opening, &rest[usize::from(*cuts)..]].concat();
        let name = entry.file_name().into_string().unwrap();
        (name, usize::from(settings & 0x7f), sends)
    };
    let mut all: Vec<_> = std::fs::read_dir(directory).unwrap().map(read).collect();
    all.sort();
    all
}

#[test]
fn seeds_admit_what_is_whole_wherever_they_are_cut_and_nothing_is_held() {
    rt::run_test(async {
        let labs = labs();
        for (name, settings, sends) in seeds() {
            let of_name = ADMITTED.iter().find(|(of, _)| *of == name);
            let admitted = of_name.map_or(0, |(_, admitted)| *admitted);
            for piece in [sends.len(), 1, 7, 50] {
                let pieces: Vec<&[u8]> = sends.chunks(piece).collect();
                let outcome = labs[settings].run_h2(&pieces).await;
                assert_eq!(outcome, ([0; 3], admitted), "{name} in pieces of {piece}");
            }
        }
    });
}

#[test]
fn whatever_is_sent_nothing_is_held() {
    let seed = crate::http::peers::tests::seed();
    let mut rng = Rng::with_seed(seed);
    rt::run_test(async move {
        let (labs, seeds) = (labs(), seeds());
        for _ in 0..400 {
            let (_, settings, mut sends) = seeds[rng.usize(..seeds.len())].clone();
            for _ in 0..rng.usize(1..5) {
                mutate(&mut sends, &mut rng);
            }
            let cut = rng.usize(..sends.len() + 1);
            let (first, second) = sends.split_at(cut);
            let (held, _) = labs[settings].run_h2(&[first, second]).await;
            assert_eq!(held, [0; 3], "seed {seed} {settings} {cut} {}", sends.escape_ascii());
        }
    });
}
