use proptest::collection::vec;
use proptest::prelude::*;

use super::scan::{ScanStep, SegmentEnd, SegmentScan, walk};
use super::*;
use crate::key::{RequestSource, RequestValues, RequestValuesWriter};
use crate::queue::job::Stamp;

fn label(id: u64) -> Label {
    Label { segment_bytes: 1 << 20, id, core: 3, node: "node-1".into() }
}

/// A request: the stamp of its first payload, and its payloads.
type Request = (Stamp, Vec<Vec<u8>>);

fn request(seq: u64, payloads: &[&[u8]]) -> Request {
    let stamp = Stamp { unix_nanos: 1_700_000_000_000_000_000 + seq, seq };
    (stamp, payloads.iter().map(|payload| payload.to_vec()).collect())
}

/// What keys use of the request with this stamp: every third time nothing, otherwise a version,
/// sometimes an empty one, and every second time something else.
fn values(first: Stamp) -> RequestValues {
    let mut values = RequestValuesWriter::default();
    if !first.seq.is_multiple_of(3) {
        values.add(RequestSource::Version, &"é".repeat(first.seq as usize % 7));
        if first.seq.is_multiple_of(2) {
            values.add(RequestSource::Header("x-tenant"), "acme");
            values.mark_wrapped();
        }
    }
    values.finish()
}

/// The bytes of one group.
fn group(label: &Label, number: u32, first_ordinal: u32, requests: &[Request]) -> Vec<u8> {
    let size = |(stamp, payloads): &Request| {
        record_bytes(payloads.len(), payloads.iter().map(Vec::len).sum(), &values(*stamp))
    };
    let body = requests.iter().map(size).sum();
    let mut bytes = vec![0xEE; group_bytes(body) as usize];
    let mut at = HEAD_BYTES;
    for (stamp, payloads) in requests {
        let payloads = payloads.iter().map(Vec::as_slice);
        at += write_record(&mut bytes[at..], *stamp, &values(*stamp), payloads);
    }
    assert_eq!(at, HEAD_BYTES + body);
    finish_group(&mut bytes, label, number, first_ordinal, body);
    bytes
}

/// A segment with one group for each of `groups`, and zeros up to `segment_bytes`.
fn segment(label: &Label, groups: &[Vec<Request>]) -> Vec<u8> {
    let mut file = vec![0; DATA_START as usize];
    let mut ordinal = 0;
    for (number, requests) in groups.iter().enumerate() {
        file.extend(group(label, number as u32, ordinal, requests));
        ordinal += requests.iter().map(|(_, payloads)| payloads.len() as u32).sum::<u32>();
    }
    file.resize(file.len().max(label.segment_bytes as usize), 0);
    file
}

fn put_checkpoint(file: &mut [u8], checkpoint: &Checkpoint) {
    let (at, bytes) = (checkpoint.offset() as usize, checkpoint.bytes());
    checkpoint.write(&mut file[at..at + bytes]);
}

/// All results of a scan: requests with the number of their first payload, corruption, and the end.
fn read(file: &[u8]) -> (Vec<(u32, Request)>, Vec<SegmentDamage>, SegmentEnd) {
    let (mut requests, mut damages, mut end) = (Vec::new(), Vec::new(), None);
    walk(file, |found, bytes| match found {
        ScanStep::Group(_, CommitGroup { head, payloads }) => {
            let mut ordinal = head.first_ordinal;
            for record in group_requests(&head, bytes) {
                assert_eq!(record.values(), values(record.first));
                let payloads = record.spans().map(|span| record.payloads[span.range()].to_vec());
                requests.push((ordinal, (record.first, payloads.collect())));
                ordinal += record.count();
            }
            assert_eq!(ordinal - head.first_ordinal, payloads);
        }
        ScanStep::Damage(damage) => damages.push(damage),
        ScanStep::End(last) => end = Some(last),
        ScanStep::NeedBytes => unreachable!("walk does not pass it on"),
    });
    (requests, damages, end.expect("a walk ends"))
}

fn three_groups() -> Vec<Vec<Request>> {
    vec![
        vec![request(0, &[b"{\"a\":1}", b"2"]), request(2, &[b"[]"])],
        vec![request(3, &[&[b'x'; 5_000]])],
        vec![request(4, &[b"null", b"\"\n\""])],
    ]
}

fn flat(groups: &[Vec<Request>]) -> Vec<(u32, Request)> {
    let mut ordinal = 0;
    let number = |request: &Request| {
        let first = ordinal;
        ordinal += request.1.len() as u32;
        (first, request.clone())
    };
    groups.iter().flatten().map(number).collect()
}

#[test]
fn written_requests_are_read_with_their_stamps_and_numbers() {
    let groups = three_groups();
    assert_eq!(read(&segment(&label(1), &groups)), (flat(&groups), vec![], SegmentEnd::Clean));
    let empty = segment(&label(1), &[]);
    assert_eq!(read(&empty), (vec![], vec![], SegmentEnd::Clean));
    assert_eq!(read(&[]), (vec![], vec![], SegmentEnd::Clean));
}

#[test]
fn a_torn_tail_is_truncated_and_corruption_before_an_intact_group_is_reported() {
    let groups = three_groups();
    let file = segment(&label(1), &groups);
    let starts = [DATA_START, DATA_START + BLOCK, DATA_START + 3 * BLOCK];
    let hit = |at: u64| {
        let mut file = file.clone();
        file[at as usize] ^= 1;
        read(&file)
    };
    let (found, damages, end) = hit(starts[2] + 200 - 60);
    assert_eq!((found, damages), (flat(&groups[..2]), vec![]));
    assert!(matches!(end, SegmentEnd::Torn { at, .. } if at == starts[2]), "{end:?}");
    // The second block of a group whose head is whole.
    let (found, damages, end) = hit(starts[1] + BLOCK + 7);
    assert_eq!(found, [&flat(&groups)[..2], &flat(&groups)[3..]].concat());
    assert_eq!((damages.len(), &damages[0].at), (1, &(starts[1]..starts[2])));
    assert_eq!(end, SegmentEnd::Clean);
    // Even the first group.
    let (found, damages, _) = hit(starts[0]);
    assert_eq!((found.len(), &damages[0].at), (2, &(starts[0]..starts[1])));
}

#[test]
fn any_flipped_byte_is_truncated_or_reported_and_never_yields_other_data() {
    let groups = three_groups();
    let mut file = segment(&Label { segment_bytes: DATA_START + 5 * BLOCK, ..label(1) }, &groups);
    put_checkpoint(&mut file, &Checkpoint { id: 1, serial: 1, groups: 3, ..Checkpoint::default() });
    let whole = flat(&groups);
    let used = [
        0..64,
        CHECKPOINT_BYTES as usize..CHECKPOINT_BYTES as usize + 64,
        DATA_START as usize..file.len(),
    ];
    let before = read(&file);
    assert_eq!(before, (whole.clone(), vec![], SegmentEnd::Clean));
    for at in used.into_iter().flatten() {
        for bit in [0x01, 0x80] {
            file[at] ^= bit;
            let (found, damages, end) = read(&file);
            assert!(found.iter().all(|record| whole.contains(record)), "other data, byte {at}");
            let told = !damages.is_empty() || end != SegmentEnd::Clean;
            assert!(told || found == whole, "lost silently, byte {at}");
            file[at] ^= bit;
        }
    }
}

#[test]
fn a_truncated_file_keeps_intact_groups_and_is_not_a_torn_tail() {
    let groups = three_groups();
    let file = segment(&label(1), &groups);
    for length in (0..file.len()).step_by(512) {
        let (found, damages, end) = read(&file[..length]);
        assert!(flat(&groups).starts_with(&found), "{length}");
        assert!(damages.is_empty());
        let expected_end = match length as u64 {
            bytes if bytes < DATA_START + HEAD_BYTES as u64 => SegmentEnd::Clean,
            bytes => SegmentEnd::Truncated { bytes, of: 1 << 20 },
        };
        assert_eq!(end, expected_end, "{length}");
    }
}

#[test]
fn groups_of_an_earlier_generation_are_ignored() {
    let (old, new) = (three_groups(), vec![vec![request(9, &[b"9"])]]);
    let mut file = segment(&label(1), &old);
    put_checkpoint(
        &mut file,
        &Checkpoint { id: 1, serial: 4, complete: true, ..Checkpoint::default() },
    );
    assert_eq!(read(&file), (vec![], vec![], SegmentEnd::Clean), "complete and not reused");
    let written = group(&label(2), 0, 0, &new[0]);
    let at = DATA_START as usize;
    file[at..at + written.len()].copy_from_slice(&written);
    assert_eq!(read(&file), (flat(&new), vec![], SegmentEnd::Clean));
    file[at + 130] ^= 1;
    let (found, damages, end) = read(&file);
    assert_eq!((found, damages), (vec![], vec![]));
    assert!(matches!(end, SegmentEnd::Torn { at, .. } if at == DATA_START), "{end:?}");
    // The first group of the new generation is not written at all, or only its second half.
    file[at..at + 64].fill(0xAA);
    assert_eq!(read(&file), (vec![], vec![], SegmentEnd::Clean));
}

#[test]
fn groups_that_were_never_acknowledged_are_not_read() {
    let groups = three_groups();
    let mut file = segment(&label(1), &groups);
    let cut =
        Checkpoint { id: 1, serial: 1, groups: 1, groups_end: Some(1), ..Checkpoint::default() };
    put_checkpoint(&mut file, &cut);
    assert_eq!(read(&file), (flat(&groups[..1]), vec![], SegmentEnd::Clean));
    // The search after corruption does not find them either.
    file[DATA_START as usize] ^= 1;
    let (found, damages, end) = read(&file);
    assert_eq!((found, damages), (vec![], vec![]));
    assert!(matches!(end, SegmentEnd::Lost { at, .. } if at == DATA_START), "{end:?}");
}

#[test]
fn foreign_files_and_other_versions_are_recognized() {
    assert_eq!(read(&vec![b'x'; 1 << 20]).2, SegmentEnd::Foreign);
    let mut other = segment(&label(1), &three_groups()[..1]);
    other[DATA_START as usize + 7] = 9;
    assert_eq!(read(&other), (vec![], vec![], SegmentEnd::Version(9)));
}

#[test]
fn checkpoints_alternate_and_the_newest_intact_one_counts() {
    let mut file = vec![0; DATA_START as usize];
    assert_eq!(Checkpoint::read(&file), None);
    let at = |serial| Checkpoint {
        id: 7,
        serial,
        groups: 5,
        done: vec![0..serial as u32, 1_000..1_001],
        ..Checkpoint::default()
    };
    for serial in 1..5 {
        put_checkpoint(&mut file, &at(serial));
        assert_eq!(Checkpoint::read(&file), Some(at(serial)));
    }
    file[at(4).offset() as usize + 50] ^= 1;
    assert_eq!(Checkpoint::read(&file), Some(at(3)), "a torn one does not affect the other");
    for count in [WORDS_MAX as u32, WORDS_MAX as u32 + 1, 100_000, 261_951] {
        let many = Checkpoint { done: (0..count).map(|n| 2 * n + 1..2 * n + 2).collect(), ..at(6) };
        assert!(many.fits() && many.bytes() <= CHECKPOINT_BYTES as usize, "{count}");
        put_checkpoint(&mut file, &many);
        assert_eq!(Checkpoint::read(&file), Some(many), "{count}");
    }
    let with_room = Checkpoint { done: vec![0..3, 400_000..u32::MAX], ..at(6) };
    put_checkpoint(&mut file, &with_room);
    assert_eq!(Checkpoint::read(&file), Some(with_room));
    assert!(!Checkpoint { done: (0..261_953).map(|n| 2 * n..2 * n + 1).collect(), ..at(6) }.fits());
}

#[test]
fn a_scan_may_begin_at_any_group() {
    let groups = three_groups();
    let file = segment(&label(1), &groups);
    let mut scan = SegmentScan::from(file.len() as u64, 1, DATA_START + BLOCK, 1);
    let mut numbers = Vec::new();
    loop {
        let wanted = scan.wants();
        match scan.feed(&file[wanted.start as usize..wanted.end as usize]) {
            ScanStep::NeedBytes => {}
            ScanStep::Group(at, group) => numbers.push((at, group.head.number)),
            end => break assert_eq!(end, ScanStep::End(SegmentEnd::Clean)),
        }
    }
    assert_eq!(numbers, [(DATA_START + BLOCK, 1), (DATA_START + 3 * BLOCK, 2)]);
}

proptest! {
    #[test]
    fn any_groups_are_read_back(
        groups in vec(vec(vec(vec(any::<u8>(), 0..200), 0..8), 1..5), 0..5),
        id in any::<u64>(),
        node in "[A-Za-z0-9._-]{0,64}",
    ) {
        let mut seq = 0;
        let groups: Vec<Vec<Request>> = groups.into_iter().map(|requests| {
            requests.into_iter().map(|payloads| {
                seq += payloads.len() as u64;
                (Stamp { unix_nanos: seq * 3, seq }, payloads)
            }).collect()
        }).collect();
        let label = Label { segment_bytes: 1 << 18, id, core: u32::MAX, node };
        let mut file = segment(&label, &groups);
        file.truncate(file.len().max(1 << 18));
        prop_assert_eq!(read(&file), (flat(&groups), vec![], SegmentEnd::Clean));
    }

    #[test]
    fn no_bytes_make_a_scan_panic_or_loop(
        mut file in vec(any::<u8>(), 0..5 * 4096),
        patches in vec((0_usize..40, 0_usize..128, any::<u8>()), 0..6),
    ) {
        // After intact heads, because otherwise a scan would look at nothing.
        let whole = segment(&Label { segment_bytes: 0, ..label(1) }, &three_groups());
        let at = file.len().min(whole.len());
        let mut bytes = whole;
        for (block, offset, byte) in patches {
            if let Some(hit) = bytes.get_mut(DATA_START as usize + block * 512 + offset) {
                *hit = byte;
            }
        }
        file.splice(..at, bytes);
        let (found, ..) = read(&file);
        prop_assert!(found.iter().all(|record| flat(&three_groups()).contains(record)));
    }
}
