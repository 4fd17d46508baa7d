use std::fs;

use super::*;
use crate::key::RequestValues;
use crate::spool::format::scan::SegmentEnd;
use crate::spool::format::{
    BLOCK, HEAD_BYTES, Label, finish_group, group_bytes, record_bytes, write_record,
};

/// A file with one group for each of `groups`, which is its number of payloads. A payload's text is
/// its number in the segment.
fn write(path: &Path, id: u64, groups: &[u32]) -> Vec<u8> {
    let mut bytes = vec![0; DATA_START as usize];
    let mut ordinal = 0;
    for (number, count) in (0..).zip(groups) {
        let payloads: Vec<String> = (ordinal..ordinal + count).map(|n| n.to_string()).collect();
        let body = record_bytes(
            payloads.len(),
            payloads.iter().map(String::len).sum(),
            &RequestValues::default(),
        );
        let mut group = vec![0; group_bytes(body) as usize];
        let first = Stamp { unix_nanos: 7, seq: 100 + u64::from(ordinal) };
        write_record(
            &mut group[HEAD_BYTES..],
            first,
            &RequestValues::default(),
            payloads.iter().map(String::as_bytes),
        );
        let label = Label { segment_bytes: 0, id, core: 1, node: "n".into() };
        finish_group(&mut group, &label, number, ordinal, body);
        bytes.extend(group);
        ordinal += count;
    }
    bytes.resize(bytes.len() + BLOCK as usize, 0);
    fs::write(path, &bytes).unwrap();
    bytes
}

/// The unstored payloads, and the end.
fn unstored(file: &mut SegmentFile) -> (Vec<u32>, SegmentEnd) {
    let mut found = Vec::new();
    loop {
        match file.find_next().unwrap() {
            ScanStep::Group(_, group) => {
                for payload in file.payloads(&group) {
                    assert_eq!(payload.bytes, payload.ordinal.to_string().as_bytes());
                    assert_eq!(payload.stamp.seq, 100 + u64::from(payload.ordinal));
                    if !payload.is_stored {
                        found.push(payload.ordinal);
                    }
                }
            }
            ScanStep::Damage(_) => {}
            ScanStep::End(end) => return (found, end),
            ScanStep::NeedBytes => unreachable!(),
        }
    }
}

#[test]
fn completed_payloads_are_stored_for_the_next_reader() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("1.seg");
    write(&path, 5, &[3, 4, 1]);
    let mut file = SegmentFile::open(&path).unwrap();
    assert!(!file.was_used());
    assert_eq!(unstored(&mut file), ((0..8).collect(), SegmentEnd::Clean));
    assert!(file.was_used());
    for left in [vec![0, 1, 3, 5, 6, 7], vec![3, 7], vec![]] {
        for ordinal in (0..8).filter(|ordinal| !left.contains(ordinal)) {
            file.complete(ordinal);
        }
        file.write_checkpoints().unwrap();
        file = SegmentFile::open(&path).unwrap();
        assert_eq!(unstored(&mut file), (left, SegmentEnd::Clean));
    }
    assert_eq!(file.checkpoint.serial, 3);
    assert_eq!((file.checkpoint.id, file.checkpoint.groups, file.missing()), (5, 3, 0));
}

#[test]
fn payloads_lost_to_corruption_are_counted_unless_they_were_stored() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("1.seg");
    let mut bytes = write(&path, 5, &[3, 4, 1]);
    let mut file = SegmentFile::open(&path).unwrap();
    unstored(&mut file);
    file.complete(4);
    file.write_checkpoints().unwrap();
    bytes =
        [&fs::read(&path).unwrap()[..DATA_START as usize], &bytes[DATA_START as usize..]].concat();
    bytes[(DATA_START + BLOCK) as usize + 160] ^= 1;
    fs::write(&path, bytes).unwrap();
    let mut file = SegmentFile::open(&path).unwrap();
    assert_eq!(unstored(&mut file), (vec![0, 1, 2, 7], SegmentEnd::Clean));
    assert_eq!(file.missing(), 3);
}

#[test]
fn the_next_generation_of_a_file_begins_with_nothing_stored() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("1.seg");
    let mut bytes = write(&path, 6, &[2]);
    let before = Checkpoint { id: 5, serial: 9, complete: true, ..Checkpoint::default() };
    let at = before.offset() as usize;
    before.write(&mut bytes[at..at + before.bytes()]);
    fs::write(&path, &bytes).unwrap();
    let mut file = SegmentFile::open(&path).unwrap();
    assert_eq!(unstored(&mut file), (vec![0, 1], SegmentEnd::Clean));
    file.complete(1);
    file.write_checkpoints().unwrap();
    let mut file = SegmentFile::open(&path).unwrap();
    assert_eq!(unstored(&mut file), (vec![0], SegmentEnd::Clean));
    assert_eq!((file.checkpoint.id, file.checkpoint.serial), (6, 10));
}

#[test]
fn a_corrupt_checkpoint_is_reported_and_loses_no_payload() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("1.seg");
    let mut bytes = write(&path, 5, &[2]);
    assert!(!SegmentFile::open(&path).unwrap().checkpoint_is_lost());
    bytes[16] = 1;
    fs::write(&path, &bytes).unwrap();
    let mut file = SegmentFile::open(&path).unwrap();
    assert!(file.checkpoint_is_lost());
    assert_eq!(unstored(&mut file), (vec![0, 1], SegmentEnd::Clean));
    for bytes in [0, 1, 5_000] {
        fs::write(&path, vec![0; bytes]).unwrap();
        let mut file = SegmentFile::open(&path).unwrap();
        assert_eq!(unstored(&mut file), (vec![], SegmentEnd::Clean));
        assert!(!file.was_used());
    }
}
