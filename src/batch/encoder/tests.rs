use std::io::{BufRead, Read};
use std::time::Instant;

use proptest::prelude::*;

use super::super::chunks::CHUNK_BYTES;
use super::*;

const COMPRESSIONS: [Compression; 6] = [
    Compression::None,
    Compression::Gzip(1),
    Compression::Gzip(6),
    Compression::Zstd(1),
    Compression::Zstd(5),
    Compression::Zstd(-3),
];

fn concat(parts: &[Payload]) -> Vec<u8> {
    parts.iter().flat_map(|part| part.to_vec()).collect()
}

/// What a reader gets that stops after one frame or member. Nothing may follow it.
fn decoded(compression: Compression, object: &[u8]) -> Vec<u8> {
    let mut text = Vec::new();
    match compression {
        Compression::None => text.extend_from_slice(object),
        Compression::Gzip(_) => {
            let mut decoder = flate2::bufread::GzDecoder::new(object);
            decoder.read_to_end(&mut text).unwrap();
            assert_eq!(decoder.into_inner(), b"", "one member");
        }
        Compression::Zstd(_) => {
            let decoder = zstd::stream::read::Decoder::with_buffer(object).unwrap();
            let mut decoder = decoder.single_frame();
            decoder.read_to_end(&mut text).unwrap();
            assert_eq!(decoder.finish().fill_buf().unwrap(), b"", "one frame");
        }
    }
    text
}

fn drain(encoder: &mut Encoder, out: &mut dyn FnMut(&[u8])) {
    while encoder.work(out) {}
}

/// Finishes an object and returns its parts.
fn object(mut encoder: Encoder) -> Vec<Payload> {
    encoder.finish();
    drain(&mut encoder, &mut |_| {});
    encoder.into_parts()
}

/// Bytes really allocated for `encoder`.
fn allocated(encoder: &Encoder) -> usize {
    let state = encoder.compressor.as_ref().map_or(0, Compressor::memory);
    encoder.chunks.capacities() + encoder.staged.capacity() + state
}

/// One event as clients send them, about 0.9 kB: few words, hundreds of hosts, agents and pages,
/// numbers and ids without end.
fn event(rng: &mut fastrand::Rng) -> Vec<u8> {
    const WORDS: [&str; 16] = [
        "checkout", "login", "search", "error", "timeout", "payment", "retry", "session", "cart",
        "upload", "preview", "profile", "settings", "logout", "refresh", "cancel",
    ];
    let mut text = format!(
        r#"{{"id":"{:032x}","ts":{},"tenant":"t-{}","kind":"{}","host":"ip-10-0-{}-{}.internal","#,
        rng.u128(..),
        1_700_000_000_000_u64 + rng.u64(..1_000_000_000),
        rng.u32(..200),
        WORDS[rng.usize(..16)],
        rng.u8(..),
        rng.u8(..),
    );
    // Only a large window finds one of these again.
    let mut agent = fastrand::Rng::with_seed(rng.u64(..500));
    let mut page = fastrand::Rng::with_seed(rng.u64(..2000));
    text.push_str(&format!(
        r#""user_agent":"Mozilla/5.0 (X11; Linux x86_64) Chrome/{}.0.{}.{}","url":"https://shop.example/"#,
        agent.u8(90..140),
        agent.u16(4000..7000),
        agent.u8(..),
    ));
    text.extend((0..60).map(|_| page.lowercase()));
    text.push_str(r#"","message":""#);
    for _ in 0..40 {
        text.push_str(WORDS[rng.usize(..16)]);
        text.push(' ');
    }
    text.push_str(r#"","metrics":["#);
    for _ in 0..24 {
        text.push_str(&format!("{:.3},", rng.f64() * 1000.0));
    }
    text.push_str("0]}");
    text.into_bytes()
}

fn random(rng: &mut fastrand::Rng) -> Vec<u8> {
    let mut text = vec![b'"'];
    text.extend((0..998).map(|_| rng.u8(b'#'..=b'Z')));
    text.push(b'"');
    text
}

fn repetitive(_: &mut fastrand::Rng) -> Vec<u8> {
    format!("[{}1]", "1,".repeat(498)).into_bytes()
}

fn any_compression() -> impl Strategy<Value = Compression> {
    prop::sample::select(COMPRESSIONS.as_slice())
}

/// A payload and its line: a string of any size, now and then with raw line breaks around it and
/// always with an escaped one inside.
fn payload() -> impl Strategy<Value = (Vec<u8>, Vec<u8>)> {
    let size = prop_oneof![
        6 => 1..40_usize,
        6 => 40..5_000_usize,
        2 => 5_000..100_000_usize,
        1 => Just(1_048_576_usize),
    ];
    (size, any::<u64>(), 0..4_u8, any::<bool>()).prop_map(|(size, seed, breaks, varied)| {
        if size < 6 {
            return (vec![b'1'; size], vec![b'1'; size]);
        }
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut value = b"\"\\n \t".to_vec();
        value.truncate(4);
        value.resize(size - 1, b'x');
        if varied {
            value[4..].fill_with(|| rng.u8(b'a'..=b'z'));
        }
        value.push(b'"');
        let payload = match breaks {
            0 => [b"\r\n ".as_slice(), &value, b"\n"].concat(),
            _ => value.clone(),
        };
        (payload, value)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Any payloads, each followed by any number of `work` calls.
    #[test]
    fn an_object_is_its_payloads_on_lines(
        compression in any_compression(),
        steps in prop::collection::vec((payload(), 0..5_usize), 1..24),
    ) {
        let shared = EncoderShared::new();
        let mut encoder = Encoder::new(compression, &shared);
        let (mut expected, mut seen) = (Vec::new(), Vec::new());
        for ((payload, line), calls) in steps {
            encoder.push(&payload);
            expected.extend_from_slice(&line);
            expected.push(b'\n');
            for _ in 0..calls {
                encoder.work(&mut |bytes| seen.extend_from_slice(bytes));
                prop_assert!(encoder.memory() >= allocated(&encoder));
            }
            prop_assert_eq!(encoder.raw_bytes(), expected.len() as u64);
        }
        encoder.finish();
        drain(&mut encoder, &mut |bytes| seen.extend_from_slice(bytes));
        prop_assert!(!encoder.work(&mut |_| panic!("all has been seen")));
        let stored = encoder.stored_bytes();
        let parts = encoder.into_parts();
        let object = concat(&parts);
        prop_assert!(object == seen, "what was reported is what there is");
        prop_assert_eq!(object.len() as u64, stored);
        prop_assert!(decoded(compression, &object) == expected);
        prop_assert!(lines_of(|each| lines(compression, &parts, each)) == expected);
    }

    /// At any point: nothing compressed, some, finishing, complete.
    #[test]
    fn lines_come_out_again_at_any_time(
        compression in any_compression(),
        payloads in prop::collection::vec(payload(), 1..12),
        calls in 0..40_usize,
        finishes in any::<bool>(),
    ) {
        let shared = EncoderShared::new();
        let mut encoder = Encoder::new(compression, &shared);
        let mut expected = Vec::new();
        for (payload, line) in &payloads {
            encoder.push(payload);
            expected.extend_from_slice(line);
            expected.push(b'\n');
        }
        if finishes {
            encoder.finish();
        }
        for _ in 0..calls {
            encoder.work(&mut |_| {});
        }
        prop_assert!(lines_of(|each| encoder.lines(each)) == expected);
    }
}

/// All that `show` shows, with line feeds.
fn lines_of(show: impl FnOnce(&mut dyn FnMut(&[u8]))) -> Vec<u8> {
    let mut all = Vec::new();
    show(&mut |line| {
        all.extend_from_slice(line);
        all.push(b'\n');
    });
    all
}

#[test]
fn an_object_closed_by_its_size_has_that_size() {
    const BATCH_BYTES: u64 = 1 << 20;
    let shared = EncoderShared::new();
    for compression in COMPRESSIONS {
        for (name, make) in [
            ("events", event as fn(&mut fastrand::Rng) -> Vec<u8>),
            ("random", random),
            ("repetitive", repetitive),
            // After this object the ratio of the last object is far off.
            ("random", random),
        ] {
            let mut rng = fastrand::Rng::with_seed(7);
            let mut encoder = Encoder::new(compression, &shared);
            while encoder.stored_bytes() < BATCH_BYTES && encoder.raw_bytes() < 24 << 20 {
                encoder.push(&make(&mut rng));
                drain(&mut encoder, &mut |_| {});
            }
            let closed_by_size = encoder.stored_bytes() >= BATCH_BYTES;
            let estimate = encoder.stored_bytes();
            let parts = object(encoder);
            let stored: u64 = parts.iter().map(|part| part.len() as u64).sum();
            let what = format!("{compression:?}, {name}: {stored} bytes, {estimate} estimated");
            assert!(stored.abs_diff(estimate) * 20 <= stored, "{what}");
            if closed_by_size {
                assert!(stored.abs_diff(BATCH_BYTES) * 20 <= BATCH_BYTES, "{what}");
                assert!(stored <= BATCH_BYTES + 1001 + SLICE_BYTES_MAX as u64, "{what}");
            } else {
                assert_eq!(name, "repetitive", "{what}");
            }
            shared.give_back(parts);
        }
    }
}

#[test]
fn an_open_batch_of_few_payloads_takes_little_memory() {
    for compression in COMPRESSIONS {
        let shared = EncoderShared::new();
        let mut encoder = Encoder::new(compression, &shared);
        assert_eq!(encoder.memory(), 0, "nothing before the first line");
        for _ in 0..10 {
            encoder.push(&[b'1'; 100]);
            drain(&mut encoder, &mut |_| {});
        }
        assert!(encoder.memory() <= 5 << 10, "{compression:?}: {}", encoder.memory());
        let parts = object(encoder);
        assert_eq!(parts.len(), 1);
        assert_eq!(decoded(compression, &concat(&parts)).len(), 1010);
    }
}

/// See the table at `ZSTD_WINDOW_LOG`. A release of zstd that takes more memory must fail here.
#[test]
fn a_compressor_state_has_the_size_that_is_documented() {
    for (level, kib_max) in ZSTD_STATE_KIB {
        let shared = EncoderShared::new();
        let mut encoder = Encoder::new(Compression::Zstd(level), &shared);
        encoder.push(&vec![b'1'; SLICE_BYTES_MAX]);
        drain(&mut encoder, &mut |_| {});
        let state = encoder.compressor.as_ref().expect("a slice was staged").memory();
        assert!(state <= kib_max << 10, "level {level}: {} KiB", state >> 10);
    }
}

/// Level and most KiB, slightly more than measured.
const ZSTD_STATE_KIB: [(i32, usize); 5] = [(-3, 960), (1, 1000), (3, 1700), (9, 1600), (19, 2800)];

#[test]
fn returned_chunks_and_states_are_reused() {
    let shared = EncoderShared::new();
    let mut rng = fastrand::Rng::with_seed(1);
    let compression = Compression::Zstd(1);
    let mut kept = 0;
    for round in 0..3 {
        let mut encoder = Encoder::new(compression, &shared);
        let mut expected = Vec::new();
        for _ in 0..700 {
            let payload = random(&mut rng);
            encoder.push(&payload);
            expected.extend_from_slice(&payload);
            expected.push(b'\n');
            drain(&mut encoder, &mut |_| {});
        }
        let held = encoder.memory();
        assert!(held > 2 * CHUNK_BYTES);
        let parts = object(encoder);
        assert!(decoded(compression, &concat(&parts)) == expected, "round {round}");
        shared.give_back(parts);
        assert!(shared.memory() > 2 * CHUNK_BYTES && shared.memory() <= held);
        assert!(round == 0 || shared.memory() == kept, "no more than the round before");
        kept = shared.memory();
    }
    assert_eq!(shared.compressors.borrow().len(), 1);
    let parts = vec![Payload::from(vec![1; CHUNK_BYTES])];
    let in_use = parts.clone();
    shared.give_back(parts);
    assert_eq!((shared.memory(), in_use[0].len()), (kept, CHUNK_BYTES), "it is still in use");
}

#[test]
fn the_pool_of_states_is_bounded() {
    let shared = EncoderShared::new();
    let mut open: Vec<Encoder> = Vec::new();
    for _ in 0..COMPRESSORS_POOLED_MAX + 2 {
        let mut encoder = Encoder::new(Compression::Gzip(1), &shared);
        encoder.push(&vec![b'1'; SLICE_BYTES_MAX]);
        drain(&mut encoder, &mut |_| {});
        assert!(encoder.compressor.is_some());
        open.push(encoder);
    }
    open.into_iter().for_each(|encoder| drop(object(encoder)));
    assert_eq!(shared.compressors.borrow().len(), COMPRESSORS_POOLED_MAX);
}

#[test]
fn staging_memory_follows_what_is_staged() {
    let mut encoder = Encoder::new(Compression::Zstd(1), &EncoderShared::new());
    encoder.push(&[b'1'; 700]);
    encoder.push(&vec![b'1'; 8 << 20]);
    assert!(encoder.memory() >= 8 << 20);
    drain(&mut encoder, &mut |_| {});
    assert!(encoder.staged_bytes() > 0, "less than a slice waits for more");
    for _ in 0..2000 {
        assert!(
            encoder.staged.capacity() <= STAGED_KEPT_BYTES_MAX,
            "{}",
            encoder.staged.capacity()
        );
        encoder.push(&[b'1'; 700]);
        drain(&mut encoder, &mut |_| {});
    }
}

#[test]
fn without_lines_there_is_no_object() {
    for compression in COMPRESSIONS {
        let mut encoder = Encoder::new(compression, &EncoderShared::new());
        encoder.finish();
        assert!(!encoder.work(&mut |_| panic!("nothing to show")));
        assert!(encoder.into_parts().is_empty());
    }
}

#[test]
fn a_gzip_object_is_the_same_whenever_and_wherever_it_is_made() {
    let mut encoder = Encoder::new(Compression::Gzip(6), &EncoderShared::new());
    encoder.push(b"{}");
    let object = concat(&object(encoder));
    assert_eq!(object[..10], [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255]);
}

#[test]
fn the_slice_follows_the_time_it_takes() {
    let shared = EncoderShared::new();
    let slice = |bytes, took| {
        shared.learn(bytes, Duration::from_micros(took));
        shared.slice_bytes.get()
    };
    assert_eq!(slice(8192, 80), 8192);
    assert_eq!(slice(8192, 100), 6553);
    assert_eq!(slice(8192, 1), 16384, "doubled at most");
    assert_eq!(slice(8192, 4000), 4096, "halved at most");
    assert_eq!(slice(2048, 4000), SLICE_BYTES_LEAST);
    assert_eq!(slice(60_000, 10), SLICE_BYTES_MAX);
}

/// `cargo test --release --lib batch -- --ignored --nocapture` prints raw MB/s, the ratio, how long
/// `work` takes, and what an open batch holds beside its chunks.
#[test]
#[ignore = "a measurement"]
fn speed() {
    let mut rng = fastrand::Rng::with_seed(3);
    let payloads: Vec<Vec<u8>> = (0..20_000).map(|_| event(&mut rng)).collect();
    let bytes: usize = payloads.iter().map(Vec::len).sum();
    println!("{} payloads of {} bytes", payloads.len(), bytes / payloads.len());
    let levels = [-3, 1, 3, 5, 9, 19].map(Compression::Zstd);
    let all = [Compression::None].into_iter().chain(levels).chain([1, 6, 9].map(Compression::Gzip));
    for compression in all {
        let shared = EncoderShared::new();
        measure(compression, &shared, &payloads[..1000], false);
        measure(compression, &shared, &payloads, true);
    }
}

fn measure(
    compression: Compression,
    shared: &Rc<EncoderShared>,
    payloads: &[Vec<u8>],
    tells: bool,
) {
    let mut times_ns = Vec::with_capacity(1 << 20);
    let mut raw = 0;
    let (mut stored, mut beside) = (0, 0);
    let started = Instant::now();
    while raw < 100_000_000 && (raw == 0 || started.elapsed() < Duration::from_secs(3)) {
        let mut encoder = Encoder::new(compression, shared);
        let mut work = |encoder: &mut Encoder| {
            loop {
                let started = Instant::now();
                let more = encoder.work(&mut |_| {});
                times_ns.push(started.elapsed().as_nanos() as u64);
                if !more {
                    break;
                }
            }
        };
        for payload in payloads {
            encoder.push(payload);
            work(&mut encoder);
        }
        beside = encoder.memory() - encoder.chunks.memory();
        encoder.finish();
        work(&mut encoder);
        (raw, stored) = (raw + encoder.raw_bytes(), stored + encoder.stored_bytes());
        shared.give_back(encoder.into_parts());
    }
    let seconds = started.elapsed().as_secs_f64();
    times_ns.retain(|&ns| ns > 1000);
    times_ns.sort_unstable();
    let us = |share: f64| match times_ns.len() {
        0 => 0.0,
        calls => times_ns[((calls as f64 * share) as usize).min(calls - 1)] as f64 / 1e3,
    };
    if tells {
        println!(
            "{compression:?}: {:.0} MB/s, ratio {:.2}, slice {}, work µs p50 {:.0} p99 {:.0} p99.9 {:.0} max {:.0}, {} KiB",
            raw as f64 / 1e6 / seconds,
            raw as f64 / stored as f64,
            shared.slice_bytes.get(),
            us(0.5),
            us(0.99),
            us(0.999),
            us(1.0),
            beside >> 10,
        );
    }
}
