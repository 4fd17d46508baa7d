//! The reader of the spool's files, segments and journals, on some that are not as they were
//! written: it ends, does not panic, and yields no record that nobody wrote.
//!
//! ```sh
//! cargo install cargo-fuzz
//! cargo +nightly fuzz run --dev --sanitizer none segment corpus/segment seeds/segment -- -max_total_time=60
//! ```
//!
//! Without cargo-fuzz, in `fuzz/`:
//!
//! ```sh
//! P=-Cllvm-args=-sanitizer-coverage
//! export RUSTFLAGS="-Cpasses=sancov-module $P-level=4 $P-inline-8bit-counters $P-pc-table $P-trace-compares"
//! cargo +nightly build --target x86_64-unknown-linux-gnu
//! mkdir -p corpus/segment && target/x86_64-unknown-linux-gnu/debug/segment corpus/segment seeds/segment -max_total_time=60
//! ```
//!
//! The toolchain of the repository will do instead of a nightly, with `RUSTC_BOOTSTRAP=1`.
//!
//! New inputs go to the first directory; `seeds/` has some of each target to begin with. Those that are
//! named by a digest come from runs: the first 40, as they cover most, of
//! `segment -set_cover_merge=1 -use_counters=0 least seeds/segment corpus/segment`.
//!
//! The first byte of an input says what the rest is: a whole file, the groups of a file, the records
//! of a group whose checksums match, the runs of a batch, or patches to a file that is whole.
//! Patches leave the checksums alone: a fuzzer that sees comparisons learns to forge a CRC, and
//! whoever can do that writes records. Without it, that a changed group passes is one chance in four
//! billion.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use millrace::internals::key::{RequestSource, RequestValues, RequestValuesWriter};
use millrace::internals::queue::job::Stamp;
use millrace::internals::spool::format::record::{
    SpoolRecord, done_bytes, intent_record, write_done,
};
use millrace::internals::spool::format::runs::{RunEncoder, Runs};
use millrace::internals::spool::format::scan::{ScanStep, walk};
use millrace::internals::spool::format::{
    CHECKPOINT_BYTES, Checkpoint, DATA_START, HEAD_BYTES, Label, finish_group, group_bytes,
    group_records, keys_bytes, record_bytes, write_keys, write_record,
};

/// Bytes of one patch at most, and patches of one input.
const PATCH_BYTES: usize = 4;
const PATCHES_MAX: usize = 8;
/// The id of the use before, and of the current one.
const BEFORE: u64 = 1;
const NOW: u64 = 2;
/// Of a record: its length, kind, and zeros.
const START_BYTES: u32 = 8;

fuzz_target!(|input: &[u8]| {
    let Some((kind, rest)) = input.split_first() else { return };
    match kind % 4 {
        0 if kind & 4 != 0 => runs(rest),
        0 => drop(read(rest)),
        1 if kind & 4 != 0 => records(*kind, rest),
        1 => drop(read(&[&vec![0; DATA_START as usize], rest].concat())),
        // Most of the time where there is something to be found.
        _ => patched(*kind, rest),
    }
});

/// A record as it was written or read: the use of the file, the number of its first payload or of
/// the next, and what it says.
type Record = (u64, u32, Said);

#[derive(Debug, PartialEq)]
enum Said {
    Request(Stamp, RequestValues, Vec<Vec<u8>>),
    Keys(String),
    /// Key, form, and the runs of members.
    Begun(String, String, Vec<u8>),
    OrdinalSet(String),
}

/// Before the requests of every group.
const KEYS: &str = "{version}/{header:x-tenant}/{seq}";

struct Segment {
    file: Vec<u8>,
    records: Vec<Record>,
    /// Where checksums are.
    checksums: Vec<usize>,
}

/// The second use of a file, shorter than the first, whose last groups still lie behind it.
static WHOLE: LazyLock<Segment> = LazyLock::new(|| {
    let mut segment =
        Segment { file: vec![0; DATA_START as usize], records: Vec::new(), checksums: Vec::new() };
    segment.write_groups(BEFORE, &[3, 1, 1, 4, 2, 3, 2]);
    let completed = Checkpoint { id: BEFORE, serial: 6, complete: true, ..Checkpoint::default() };
    segment.note(&completed);
    let end = segment.file.len();
    let before = segment.file.split_off(DATA_START as usize);
    segment.write_groups(NOW, &[2, 1, 3, 1]);
    let written = segment.file.len();
    assert!(written < end, "groups of the first use are left");
    segment.file.extend_from_slice(&before[written - DATA_START as usize..]);
    segment.file.resize(end + (64 << 10), 0);
    segment
});

impl Segment {
    /// One group for each of `sizes`: so many requests of growing payloads.
    fn write_groups(&mut self, id: u64, sizes: &[usize]) {
        let (mut ordinal, mut seq) = (0, 100 * id);
        for (number, requests) in sizes.iter().enumerate() {
            let requests: Vec<(Stamp, Vec<Vec<u8>>)> = (0..*requests)
                .map(|request| {
                    let stamp = Stamp { unix_nanos: 1_700_000_000_000_000_000 + seq, seq };
                    let size = (number + 1) * (request + 1) * 300;
                    let payloads = (0..=request).map(|_| vec![b'0' + id as u8; size]);
                    let payloads: Vec<_> = payloads.collect();
                    seq += payloads.len() as u64;
                    (stamp, payloads)
                })
                .collect();
            self.write_group(id, number as u32, ordinal, &requests);
            self.records.push((id, ordinal, Said::Keys(KEYS.into())));
            for (stamp, payloads) in requests {
                let count = payloads.len() as u32;
                self.records.push((id, ordinal, Said::Request(stamp, values(stamp), payloads)));
                ordinal += count;
            }
            self.write_batches(id, number as u32, ordinal);
        }
    }

    /// The records of batches with a group's: as in a journal, but that has no requests.
    fn write_batches(&mut self, id: u64, number: u32, ordinal: u32) {
        let mut encoder = RunEncoder::default();
        for member in 0..20 * (number + 1) {
            assert!(encoder.push_run(id + u64::from(member % 3), member * member, 1));
        }
        let (key, runs) = (format!("{id}/{number}"), encoder.finish());
        let mut body = intent_record(&key, "zstd", &runs).into_vec();
        let at = body.len();
        body.resize(at + done_bytes(&key), 0);
        write_done(&mut body[at..], &key);
        let mut group = vec![0; group_bytes(body.len()) as usize];
        group[HEAD_BYTES..HEAD_BYTES + body.len()].copy_from_slice(&body);
        self.finish_group(group, id, 2 * number + 1, ordinal, body.len());
        self.records.push((id, ordinal, Said::Begun(key.clone(), "zstd".into(), runs)));
        self.records.push((id, ordinal, Said::OrdinalSet(key)));
    }

    fn finish_group(
        &mut self,
        mut group: Vec<u8>,
        id: u64,
        number: u32,
        ordinal: u32,
        body: usize,
    ) {
        let label = Label { segment_bytes: 0, id, core: 3, node: "fuzz".into() };
        finish_group(&mut group, &label, number, ordinal, body);
        self.checksums.extend(self.file.len() + 8..self.file.len() + 16);
        self.file.extend(group);
    }

    fn write_group(
        &mut self,
        id: u64,
        number: u32,
        ordinal: u32,
        requests: &[(Stamp, Vec<Vec<u8>>)],
    ) {
        let bytes = |(stamp, payloads): &(Stamp, Vec<Vec<u8>>)| {
            let payload_bytes = payloads.iter().map(Vec::len).sum();
            record_bytes(payloads.len(), payload_bytes, &values(*stamp))
        };
        let body = keys_bytes(Some(KEYS)) + requests.iter().map(bytes).sum::<usize>();
        let mut group = vec![0; group_bytes(body) as usize];
        let mut at = HEAD_BYTES + write_keys(&mut group[HEAD_BYTES..], Some(KEYS));
        for (stamp, payloads) in requests {
            let payloads = payloads.iter().map(Vec::as_slice);
            at += write_record(&mut group[at..], *stamp, &values(*stamp), payloads);
        }
        self.finish_group(group, id, 2 * number, ordinal, body);
    }

    fn note(&mut self, progress: &Checkpoint) {
        let at = progress.offset() as usize;
        progress.write(&mut self.file[at..at + progress.bytes()]);
        self.checksums.extend(at + 8..at + 12);
    }
}

/// What a request says, if anything.
fn values(first: Stamp) -> RequestValues {
    let mut values = RequestValuesWriter::default();
    if first.seq % 3 > 0 {
        values.add(RequestSource::Version, &"v".repeat(first.seq as usize % 5));
        if first.seq % 2 > 0 {
            values.add(RequestSource::Header("x-tenant"), "acme");
            values.mark_wrapped();
        }
    }
    values.finish()
}

/// Runs that pass the check are runs, and are what they are encoded to again.
fn runs(bytes: &[u8]) {
    let Some(runs) = Runs::check(bytes) else { return };
    assert_eq!(runs.bytes(), bytes);
    if runs.payloads() > 10_000 {
        return;
    }
    let mut encoder = RunEncoder::default();
    for run in runs.iter() {
        assert!(run.count > 0 && run.first < run.end());
        assert!((run.first..run.end()).all(|ordinal| encoder.push_run(run.segment, ordinal, 1)));
    }
    let again = encoder.finish();
    let members = |runs: Runs<'_>| -> Vec<_> {
        runs.iter().flat_map(|run| (run.first..run.end()).map(move |n| (run.segment, n))).collect()
    };
    assert_eq!(members(Runs::check(&again).expect("runs")), members(runs));
}

/// Walks through a group of any records, which no checksum keeps from being read: per record a byte
/// of kind, two of length, and its body. In some inputs even the lengths in the records are theirs.
fn records(kind: u8, mut rest: &[u8]) {
    let mut group = vec![0; HEAD_BYTES];
    if kind & 8 != 0 {
        group.extend(rest);
        rest = &[];
    }
    while let Some((head, more)) = rest.split_first_chunk::<3>() {
        let length = usize::from(u16::from_le_bytes([head[1], head[2]])).min(more.len());
        let (body, more) = more.split_at(length);
        group.extend((START_BYTES + length as u32).to_le_bytes());
        group.extend([head[0], 0, 0, 0]);
        group.extend(body);
        rest = more;
    }
    let body = group.len() - HEAD_BYTES;
    group.resize(group_bytes(body) as usize, 0);
    let label = Label { segment_bytes: 0, id: NOW, core: 3, node: "fuzz".into() };
    finish_group(&mut group, &label, 0, 0, body);
    drop(read(&[&vec![0; DATA_START as usize], &group[..]].concat()));
}

/// Walks through the whole segment with patches: per patch three bytes of place, one of length, and
/// what is put there. Some inputs first note progress, or cut the file.
fn patched(kind: u8, mut rest: &[u8]) {
    let whole = &*WHOLE;
    let mut file = whole.file.clone();
    if kind & 4 != 0 {
        let done = vec![0..1, 3..5];
        let progress =
            Checkpoint { id: NOW, serial: 7, groups: u32::from(kind >> 5), done, ..<_>::default() };
        let at = progress.offset() as usize;
        progress.write(&mut file[at..at + progress.bytes()]);
    }
    let mut use_is_known = true;
    for _ in 0..PATCHES_MAX {
        let Some((head, more)) = rest.split_first_chunk::<4>() else { break };
        let at = u32::from_le_bytes([head[0], head[1], head[2], 0]) as usize % file.len();
        let bytes = (usize::from(head[3]) % PATCH_BYTES + 1).min(more.len()).min(file.len() - at);
        let (patch, more) = more.split_at(bytes);
        for (at, byte) in (at..).zip(patch) {
            if !whole.checksums.contains(&at) && file[at] != *byte {
                file[at] = *byte;
                use_is_known &= at >= 2 * CHECKPOINT_BYTES as usize;
            }
        }
        rest = more;
    }
    if kind & 8 != 0 {
        file.truncate(file.len() - usize::from(kind >> 4) * 3_001);
    }
    for record in read(&file) {
        assert!(whole.records.contains(&record), "nobody wrote {record:?}");
        assert!(!use_is_known || record.0 == NOW, "of an earlier use: {record:?}");
    }
}

/// All records that a walk yields, in a file that may be anything.
fn read(file: &[u8]) -> Vec<Record> {
    let (mut found, mut behind, mut ends) = (Vec::new(), 0, 0);
    walk(file, |what, bytes| match what {
        ScanStep::Group(at, group) => {
            assert!(at >= behind, "a walk goes forward");
            behind = at + group.head.group_bytes();
            let (id, mut ordinal) = (group.head.label.id, group.head.first_ordinal);
            for entry in group_records(&group.head, bytes) {
                let first = ordinal;
                let said = match entry {
                    SpoolRecord::Request(record) => {
                        ordinal = ordinal.wrapping_add(record.count());
                        let bytes =
                            record.spans().map(|span| record.payloads[span.range()].to_vec());
                        Said::Request(record.first, record.values(), bytes.collect())
                    }
                    SpoolRecord::Keys(keys) => Said::Keys(keys.into()),
                    SpoolRecord::Intent(intent) => {
                        let runs = intent.runs.bytes().to_vec();
                        Said::Begun(intent.key.into(), intent.form.into(), runs)
                    }
                    SpoolRecord::Done(key) => Said::OrdinalSet(key.into()),
                };
                found.push((id, first, said));
            }
            assert_eq!(ordinal, group.head.first_ordinal.wrapping_add(group.payloads));
        }
        ScanStep::Damage(damage) => {
            assert!(behind <= damage.at.start && damage.at.start < damage.at.end);
            assert!(damage.at.end <= file.len() as u64);
        }
        ScanStep::End(_) => ends += 1,
        ScanStep::NeedBytes => unreachable!("walk keeps it to itself"),
    });
    assert_eq!(ends, 1, "a walk ends once");
    found
}
