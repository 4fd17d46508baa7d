use super::*;
use crate::coding::{Coding, Compression};

/// A batch with no parts, of one payload of one byte.
fn batch(kind: BatchKind) -> Batch {
    Batch {
        key: "key".to_owned(),
        stem: "stem".to_owned(),
        form: BatchFormat { compression: Compression::None, header: false },
        parts: Vec::new(),
        sums: Sums::of(&[], Integrity::NONE),
        payloads: 1,
        payload_bytes: 1,
        kind,
        roster: Roster::default(),
        values: RequestValues::default(),
        shared: EncoderShared::new(),
        _charge: None,
    }
}

fn stamp(unix_nanos: u64, seq: u64) -> Stamp {
    Stamp { unix_nanos, seq }
}

#[test]
fn a_roster_gives_back_every_stamp_in_order() {
    let stamps =
        [(5, 1), (5, 2), (5, 3), (6, 4), (6, 5), (6, 9), (5, 10)].map(|(t, n)| stamp(t, n));
    let mut roster = Roster::default();
    stamps.into_iter().for_each(|stamp| roster.note_stamp(stamp));
    assert!(roster.stamps().eq(stamps));
    assert_eq!(roster.stamps.len(), 4, "one for each run");
}

#[test]
fn a_roster_counts_the_payloads_of_each_request() {
    let request_outcomes = [RequestOutcome::of(3), RequestOutcome::of(1)];
    let mut roster = Roster::default();
    for at in [0, 0, 1, 0] {
        roster.note_request(request_outcomes[at].clone());
    }
    let counts: Vec<u32> = roster.request_outcomes.iter().map(|(_, count)| *count).collect();
    assert_eq!(counts, [2, 1, 1]);
}

#[test]
fn a_form_is_read_as_it_is_written() {
    let compressions = [
        (Compression::None, "none"),
        (Compression::Gzip(6), "gzip:6"),
        (Compression::Zstd(-5), "zstd:-5"),
    ];
    for (compression, text) in compressions {
        for header in [false, true] {
            let form = BatchFormat { compression, header };
            let text = format!("{text}{}", if header { " header" } else { "" });
            assert_eq!(form.to_string(), text);
            assert_eq!(text.parse(), Ok(form));
        }
    }
    for bad in ["", "zip", "zstd", "zstd:", "zstd:x", "none:1", "none  header", "gzip:1 head"] {
        assert!(bad.parse::<BatchFormat>().is_err(), "{bad}");
    }
}

#[test]
fn an_object_says_how_it_is_compressed_in_one_place() {
    let of = |compression, header| {
        let form = BatchFormat { compression, header };
        (form.ext(), form.coding())
    };
    assert_eq!(of(Compression::Zstd(1), false), ("ndjson.zst", None));
    assert_eq!(of(Compression::Zstd(1), true), ("ndjson", Some(Coding::Zstd)));
    assert_eq!(of(Compression::Gzip(1), false), ("ndjson.gz", None));
    assert_eq!(of(Compression::None, true), ("ndjson", None));
}

#[test]
fn a_single_object_gives_its_one_job_in_memory_only() {
    let payload = Payload::uncharged(b"7".to_vec(), RequestValues::of_version("1.2"));
    let batch = batch(BatchKind::SingleObject(Job::queued(payload, stamp(5, 9))));
    assert!(!batch.is_spooled(), "as when its segment file was removed");
    let jobs = batch.jobs();
    let [job] = jobs.as_slice() else { panic!("{} jobs", jobs.len()) };
    assert_eq!((job.stamp, &*job.payload), (stamp(5, 9), &b"7"[..]));
    assert_eq!(job.payload.values(), &RequestValues::of_version("1.2"));
    assert!(job.record.is_none() && job.request_outcome.is_none());
}
