//! Files of many dead letters that are not as they were written: the reader ends, does not panic,
//! and yields no dead letter that nobody wrote. And the JSON of a single one.
//!
//! How to run it is said in `segment.rs`; this target is called `letters`.
//!
//! The first byte of an input says what the rest is: a whole file, patches to a file that is whole,
//! or the JSON of one dead letter. Patches leave the checksums alone (see `segment.rs`).

#![no_main]

use std::ops::Range;
use std::sync::LazyLock;

use flate2::Crc;
use libfuzzer_sys::fuzz_target;
use millrace::internals::deadletter::{BundleReader, BundleRecord, DeadLetter};

/// Bytes of one patch at most, and patches of one input.
const PATCH_BYTES: usize = 4;
const PATCHES_MAX: usize = 8;

const PAYLOADS: [&[u8]; 5] =
    [b"{}", b"", b"[1,\n2]\n\n{\"key\":\"x\",\"bytes\":0}\n", b"\"\xe2\x98\x83\"", b"\n"];

struct Bundle {
    file: Vec<u8>,
    letters: Vec<(DeadLetter, Vec<u8>)>,
    /// Where checksums are.
    checksums: Vec<Range<usize>>,
}

/// Written as the format is described at the head of `deadletter::bundle`, not with its code.
static WHOLE: LazyLock<Bundle> = LazyLock::new(|| {
    let mut bundle = Bundle { file: Vec::new(), letters: Vec::new(), checksums: Vec::new() };
    for (number, payload) in PAYLOADS.iter().enumerate() {
        let json = format!(
            r#"{{"key":"a/{number}.json","store":"s3://b/","error":"Code: why","attempts":{number},"unix_seconds":1700000000,"bytes":{}}}"#,
            payload.len()
        );
        let covered = json.strip_suffix('}').expect("an object");
        let mut crc = Crc::new();
        crc.update(covered.as_bytes());
        crc.update(payload);
        bundle.file.extend(covered.as_bytes());
        bundle.file.extend(br#","crc32":""#);
        let at = bundle.file.len();
        bundle.file.extend(format!("{:08x}\"}}\n", crc.sum()).bytes());
        bundle.checksums.push(at..at + 8);
        bundle.file.extend(*payload);
        bundle.file.push(b'\n');
        let letter = serde_json::from_str(&json).expect("a dead letter");
        bundle.letters.push((letter, payload.to_vec()));
    }
    assert_eq!(read(&bundle.file).len(), PAYLOADS.len());
    bundle
});

fuzz_target!(|input: &[u8]| {
    let Some((kind, rest)) = input.split_first() else { return };
    match kind % 4 {
        0 => drop(read(rest)),
        1 => json(rest),
        _ => patched(*kind, rest),
    }
});

fn json(bytes: &[u8]) {
    let Ok(letter) = serde_json::from_slice::<DeadLetter>(bytes) else { return };
    let text = serde_json::to_string(&letter).expect("plain data");
    assert_eq!(serde_json::from_str::<DeadLetter>(&text).expect("its own text"), letter);
}

/// Per patch three bytes of place, one of length, and what is put there. Some inputs cut the file.
fn patched(kind: u8, mut rest: &[u8]) {
    let whole = &*WHOLE;
    let mut file = whole.file.clone();
    for _ in 0..PATCHES_MAX {
        let Some((head, more)) = rest.split_first_chunk::<4>() else { break };
        let at = u32::from_le_bytes([head[0], head[1], head[2], 0]) as usize % file.len();
        let bytes = (usize::from(head[3]) % PATCH_BYTES + 1).min(more.len()).min(file.len() - at);
        let (patch, more) = more.split_at(bytes);
        for (at, byte) in (at..).zip(patch) {
            let in_checksum = whole.checksums.iter().any(|range| range.contains(&at));
            if !in_checksum {
                file[at] = *byte;
            }
        }
        rest = more;
    }
    if kind & 4 != 0 {
        file.truncate(file.len() - usize::from(kind >> 3).min(file.len()));
    }
    let changed = file.iter().zip(&whole.file).position(|(now, before)| now != before);
    let found = read(&file);
    for (record, (letter, payload)) in found.iter().zip(&whole.letters) {
        assert_eq!((&record.letter, &record.payload), (letter, payload));
        let span = record.span.start as usize..record.span.end as usize;
        assert!(changed.is_none_or(|at| !span.contains(&at)), "changed at {changed:?}: {span:?}");
    }
    assert!(found.len() <= whole.letters.len());
}

/// All dead letters before the first damage, in a file that may be anything.
fn read(file: &[u8]) -> Vec<BundleRecord> {
    let (mut found, mut end, mut damaged) = (Vec::<BundleRecord>::new(), 0, false);
    for record in BundleReader::new(file, file.len() as u64) {
        assert!(!damaged, "nothing is read behind damage");
        match record {
            Ok(record) => {
                assert_eq!(record.span.start, end, "they follow one another");
                assert_eq!(record.payload.len() as u64, record.letter.bytes);
                end = record.span.end;
                found.push(record);
            }
            Err(damage) => {
                assert_eq!(damage.at, end);
                damaged = true;
            }
        }
    }
    assert!(damaged || end == file.len() as u64);
    found
}
