//! Journals of batches, whole and damaged: they are read without a panic, what they say of batches
//! is written and read again the same, and no batch is believed that two journals dispute.
//!
//! How to run it is said in `segment.rs`; this target is called `journal`.
//!
//! An input is the records of two journals, which checksums do not protect: per record a byte of
//! kind and journal, one of length, and its body. Some kinds are batches that are valid.

#![no_main]

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use millrace::internals::spool::batches::{JournalBatch, Ledger};
use millrace::internals::spool::format::record::{done_bytes, intent_record, write_done};
use millrace::internals::spool::format::runs::RunEncoder;
use millrace::internals::spool::format::{
    DATA_START, HEAD_BYTES, Label, finish_group, group_bytes,
};

/// Of a record: its length, kind, and zeros.
const START_BYTES: u32 = 8;
/// More would be more of the same.
const BYTES_MAX: usize = 8 << 10;

/// In memory; one directory for this process.
static DIRECTORY: LazyLock<PathBuf> = LazyLock::new(|| {
    let path = PathBuf::from(format!("/dev/shm/millrace-fuzz-journal-{}", std::process::id()));
    fs::create_dir_all(&path).expect("a directory in memory");
    path
});

fuzz_target!(|input: &[u8]| {
    if input.len() > BYTES_MAX {
        return;
    }
    let directory = &*DIRECTORY;
    for entry in fs::read_dir(directory).expect("it was made") {
        let path = entry.expect("an entry").path();
        let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
        removed.expect("it is ours");
    }
    for (number, records) in journals(input).iter().enumerate() {
        if !records.is_empty() {
            fs::write(directory.join(format!("{number}.batches")), file(records)).unwrap();
        }
    }
    let mut ledger = Ledger::read(directory).expect("readable");
    let (in_doubt, done) = said(&ledger);
    assert!(in_doubt.keys().all(|key| !done.contains_key(key)));
    ledger.members().of_segment(1).for_each(|range| assert!(range.start < range.end));
    ledger.consolidate(directory).expect("writable");
    assert_eq!(said(&ledger), (in_doubt.clone(), done.clone()), "in memory");
    let again = Ledger::read(directory).expect("readable");
    assert_eq!(said(&again), (in_doubt, done), "on the disk");
    assert!(again.files().iter().all(|file| file.problems.is_empty()), "{:?}", again.files());
});

type Batches = BTreeMap<String, JournalBatch>;

/// The batches in doubt, and those that are done.
fn said(ledger: &Ledger) -> (Batches, Batches) {
    let owned = |(key, batch): (&str, &JournalBatch)| (key.to_owned(), batch.clone());
    (ledger.in_doubt().map(owned).collect(), ledger.done().map(owned).collect())
}

fn journals(mut rest: &[u8]) -> [Vec<u8>; 2] {
    let mut journals = [Vec::new(), Vec::new()];
    while let Some((head, more)) = rest.split_first_chunk::<2>() {
        let (body, more) = more.split_at(usize::from(head[1]).min(more.len()));
        let records = &mut journals[usize::from(head[0] & 1)];
        match head[0] >> 1 & 3 {
            0 => begun(records, body),
            1 => done(records, body),
            _ => {
                records.extend((START_BYTES + body.len() as u32).to_le_bytes());
                records.extend([head[0] >> 3, 0, 0, 0]);
                records.extend(body);
            }
        }
        rest = more;
    }
    journals
}

/// A batch that is valid: one byte of key, then runs.
fn begun(records: &mut Vec<u8>, body: &[u8]) {
    let Some((key, runs)) = body.split_first() else { return };
    let mut encoder = RunEncoder::default();
    for run in runs.chunks_exact(3) {
        let (segment, first) = (u64::from(run[0] % 4), u32::from(run[1]) * 3);
        if !encoder.push_run(segment, first, 1 + u32::from(run[2] % 3)) {
            return;
        }
    }
    let key = format!("dt=2026/{}.gz", key % 8);
    records.extend(intent_record(&key, "gzip", &encoder.finish()).into_vec());
}

fn done(records: &mut Vec<u8>, body: &[u8]) {
    let Some(key) = body.first() else { return };
    let key = format!("dt=2026/{}.gz", key % 8);
    let at = records.len();
    records.resize(at + done_bytes(&key), 0);
    write_done(&mut records[at..], &key);
}

/// A journal with these records in one group.
fn file(records: &[u8]) -> Vec<u8> {
    let mut group = vec![0; group_bytes(records.len()) as usize];
    group[HEAD_BYTES..HEAD_BYTES + records.len()].copy_from_slice(records);
    let bytes = DATA_START + group.len() as u64;
    let label = Label { segment_bytes: bytes, id: 1, core: 0, node: String::new() };
    finish_group(&mut group, &label, 0, 0, records.len());
    [vec![0; DATA_START as usize], group].concat()
}
