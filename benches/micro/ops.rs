//! What is measured. A new one is one entry in [`OPS`]; setting up is not part of it.

use std::rc::Rc;
use std::sync::Arc;

use millrace::internals::batch::encoder::{Encoder, EncoderShared, lines};
use millrace::internals::budget::Padded;
use millrace::internals::coding::Compression;
use millrace::internals::commands::bench::event::event;
use millrace::internals::config::{Checksum, Config, ObjectBody};
use millrace::internals::http::head::{BodyFraming, HeadTracker, check};
use millrace::internals::http::parse::{BodyForm, Scratch, parse};
use millrace::internals::http::peer::Peer;
use millrace::internals::http::peers::{Activity, Measure, Sketch, Tally};
use millrace::internals::http::tokens::TokenSet;
use millrace::internals::key::{EventTime, KeyOf, KeyTemplate, Partition, RequestValues};
use millrace::internals::metrics::tokens::{TokenId, TokenNames};
use millrace::internals::queue::admission::{Admission, Need};
use millrace::internals::queue::job::{Origin, Payload, Span, Stamp};
use millrace::internals::queue::job_queue::JobQueue;
use millrace::internals::queue::run::{InCommon, Run};
use millrace::internals::quota::board::Board;
use millrace::internals::quota::keeper::Keeper;
use millrace::internals::quota::table::{QuotaTable, QuotaVerdict, slots};
use millrace::internals::quota::{Quota, TICK};
use millrace::internals::store::s3::dial;
use millrace::internals::store::s3::direct::{Destination, Identity, Put, Signer, Template};
use millrace::internals::store::{Integrity, Sums};
use serde::Deserialize;
use serde_json::value::RawValue;

/// One operation: `group/name`, and how to make it ready to run.
pub struct Op {
    pub name: &'static str,
    pub make: fn() -> Made,
}

/// Something to run any number of times. It panics if its answer is wrong.
pub struct Made {
    pub run: Box<dyn FnMut()>,
    pub throughput: Amount,
}

/// What one run gets through.
pub enum Amount {
    Bytes(usize),
    Elements(usize),
}

/// `spans` is the library's split, `raw` the same by `serde_json` into a struct of `RawValue`s;
/// `array` and `ndjson` are the library's split of the same payloads in an array and on lines.
pub const OPS: &[Op] = &[
    Op { name: "parse/spans-1x200B", make: || spans(1, 150) },
    Op { name: "parse/raw-1x200B", make: || raw(1, 150) },
    Op { name: "parse/spans-10x1.7kB", make: || spans(10, 160) },
    Op { name: "parse/raw-10x1.7kB", make: || raw(10, 160) },
    Op { name: "parse/spans-100x16kB", make: || spans(100, 160) },
    Op { name: "parse/raw-100x16kB", make: || raw(100, 160) },
    Op { name: "parse/spans-1x256kB", make: || spans(1, 256_000) },
    Op { name: "parse/raw-1x256kB", make: || raw(1, 256_000) },
    Op { name: "parse/spans-100x1MB", make: || spans(100, 10_000) },
    Op { name: "parse/raw-100x1MB", make: || raw(100, 10_000) },
    Op { name: "parse/array-10x1.7kB", make: || array(10, 160) },
    Op { name: "parse/array-100x16kB", make: || array(100, 160) },
    Op { name: "parse/array-100x1MB", make: || array(100, 10_000) },
    Op { name: "parse/ndjson-10x1.7kB", make: || ndjson(10, 160) },
    Op { name: "parse/ndjson-100x16kB", make: || ndjson(100, 160) },
    Op { name: "parse/ndjson-100x1MB", make: || ndjson(100, 10_000) },
    Op { name: "parse/refused-at-its-end-1MB", make: refused },
    Op { name: "http/head-of-6-fields", make: head },
    Op { name: "http/tally", make: tally },
    Op { name: "peers/hand-over-of-1000", make: peers },
    Op { name: "token/find-in-1", make: || token(1) },
    Op { name: "token/find-in-100k", make: || token(100_000) },
    Op { name: "quota/of-a-token", make: || quota(1) },
    Op { name: "quota/of-token-and-peer", make: || quota(2) },
    Op { name: "queue/64-of-1", make: || queue(1) },
    Op { name: "queue/64-of-8", make: || queue(8) },
    Op { name: "admit/request-of-10", make: admit },
    Op { name: "admit/request-of-10-at-once", make: admit_run },
    Op { name: "key/default", make: key },
    Op { name: "key/one-field-of-1kB", make: key_of_field },
    Op { name: "batch/plain-64x1kB", make: || batch(Compression::None) },
    Op { name: "batch/plain-10x150B", make: batch_of_requests },
    Op { name: "batch/zstd1-64x1kB", make: || batch(Compression::Zstd(1)) },
    Op { name: "sign/head-of-512B", make: || sign(512) },
    Op { name: "sign/head-of-256kB", make: || sign(256_000) },
];

/// What a body is whose content type is application/json.
const JSON: BodyForm = BodyForm::ByFirstByte(ObjectBody::Collection);

/// `count` objects of `bytes` bytes each.
fn payloads_of(count: usize, bytes: usize) -> Vec<String> {
    (0..count).map(|n| payload(n * 104_729, bytes)).collect()
}

/// A collection of `payloads` objects of `payload_bytes` bytes each.
fn body(payloads: usize, payload_bytes: usize) -> Vec<u8> {
    let data = payloads_of(payloads, payload_bytes).join(",");
    format!(r#"{{"version":"1.0","token":"0123456789abcdef","data":[{data}]}}"#).into()
}

/// Members, then records, as clients send them.
fn payload(seed: usize, payload_bytes: usize) -> String {
    let mut text = format!(r#"{{"id":"{seed:08x}","ok":true,"items":["#);
    let mut at = seed;
    while text.len() + 60 < payload_bytes {
        at += 7_919;
        let comma = if text.ends_with('[') { "" } else { "," };
        text += &format!(r#"{comma}{{"at":{at},"kind":"view","value":{}.25}}"#, at % 1_000);
    }
    text += r#"],"note":""#;
    text += &"x".repeat(payload_bytes.saturating_sub(text.len() + 2));
    text + r#""}"#
}

#[derive(Deserialize)]
struct Envelope<'a> {
    #[expect(dead_code, reason = "parsed, as the contract has it")]
    version: Option<&'a str>,
    #[expect(dead_code, reason = "parsed, as the contract has it")]
    token: Option<&'a str>,
    #[serde(borrow)]
    data: Vec<&'a RawValue>,
}

fn spans(payloads: usize, payload_bytes: usize) -> Made {
    let body = body(payloads, payload_bytes);
    let envelope: Envelope<'_> = serde_json::from_slice(&body).expect("the body is a collection");
    let data: Vec<String> = envelope.data.iter().map(|raw| raw.get().to_owned()).collect();
    splits(body, JSON, data)
}

fn array(payloads: usize, payload_bytes: usize) -> Made {
    let data = payloads_of(payloads, payload_bytes);
    splits(format!("[{}]", data.join(",")).into(), JSON, data)
}

fn ndjson(payloads: usize, payload_bytes: usize) -> Made {
    let data = payloads_of(payloads, payload_bytes);
    splits(
        data.iter().map(|line| format!("{line}\n")).collect::<String>().into(),
        BodyForm::Lines,
        data,
    )
}

/// Splits `body`, whose payloads are `data`.
fn splits(mut body: Vec<u8>, form: BodyForm, data: Vec<String>) -> Made {
    let mut scratch = Scratch::default();
    let padded = Padded::behind(&mut body);
    let found = parse(padded, form, &mut scratch).expect("the body is valid").payloads;
    let found = found.iter().map(|span| &body[span.range()]);
    assert!(found.eq(data.iter().map(String::as_bytes)));
    let (throughput, payloads) = (Amount::Bytes(body.len()), data.len());
    let run = move || {
        let padded = Padded::behind(&mut body);
        let found = parse(padded, form, &mut scratch).expect("parsed before");
        assert_eq!(found.payloads.len(), payloads);
    };
    Made { run: Box::new(run), throughput }
}

fn raw(payloads: usize, payload_bytes: usize) -> Made {
    let body = body(payloads, payload_bytes);
    let throughput = Amount::Bytes(body.len());
    let run = move || {
        let envelope: Envelope<'_> = serde_json::from_slice(&body).expect("a collection");
        assert_eq!(envelope.data.len(), payloads);
    };
    Made { run: Box::new(run), throughput }
}

/// What the server does with each head beside hyper.
fn head() -> Made {
    const HEAD: &[u8] = b"POST /payloads HTTP/1.1\r\nhost: ingest.example:8080\r\n\
        user-agent: millrace-bench\r\naccept: */*\r\ncontent-type: application/json\r\n\
        accept-encoding: gzip, deflate\r\ncontent-length: 1700\r\n\r\n";
    let mut request = http::Request::post("/payloads");
    for line in str::from_utf8(HEAD).expect("ASCII").lines().skip(1) {
        if let Some((name, value)) = line.split_once(": ") {
            request = request.header(name, value);
        }
    }
    let request = request.body(()).expect("a request");
    let tracker = HeadTracker::default();
    let run = move || {
        tracker.part_of_head(HEAD);
        let content_length = tracker.has_content_length();
        assert!(content_length);
        assert_eq!(check(&request, BodyFraming { chunked: false, content_length }), Ok(()));
        assert!(tracker.end_of_request(Some(0)));
    };
    Made { run: Box::new(run), throughput: Amount::Elements(1) }
}

/// What a request adds for the table of peers.
fn tally() -> Made {
    let (tally, now, mut sent) = (Tally::default(), std::time::Instant::now(), 0);
    let run = move || {
        tally.received_more(1_700);
        tally.request(now, 200, 10, TokenId::NONE);
        sent += 1_700;
        assert_eq!(tally.received(), sent);
    };
    Made { run: Box::new(run), throughput: Amount::Elements(1) }
}

/// What a connection adds when it ends: 1,000 peers in turn, of which each table holds a quarter.
fn peers() -> Made {
    let mut tables = Measure::ALL.map(Sketch::new);
    let (mut turn, mut total) = (0_u64, 0);
    let run = move || {
        turn += 1;
        let activity =
            Activity { requests: 1 + turn % 7, payloads: 10, bytes: 1_700, ..Activity::default() };
        for table in &mut tables {
            table.add(Peer::V4((turn % 1_000) as u32), &activity);
        }
        total += activity.requests;
        if turn.is_multiple_of(10_000) {
            let counted: u64 = tables[0].rows().iter().map(|row| row.count).sum();
            assert_eq!(counted, total);
        }
    };
    Made { run: Box::new(run), throughput: Amount::Elements(1) }
}

/// Looks up a token that a file of `count` tokens has, and one that it does not have.
fn token(count: usize) -> Made {
    let text: String = (0..count).map(|n| format!("token-{n:012}\n")).collect();
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(file.path(), text).expect("there is room for it");
    let set = TokenSet::load(file.path(), &TokenNames::default()).expect("a tokens file");
    assert_eq!(set.len(), count);
    let mut turn = 0;
    let run = move || {
        turn = (turn + 7_919) % count;
        let mut token = *b"token-000000000000";
        for (digit, at) in (6..18).rev().zip(0..) {
            token[digit] += (turn / 10_usize.pow(at) % 10) as u8;
        }
        assert!(set.find(&token).is_some());
        token[0] = b'T';
        assert!(set.find(&token).is_none());
    };
    Made { run: Box::new(run), throughput: Amount::Elements(2) }
}

/// What a request with a quota is judged and charged by, in `tables` of them, and every 1,000
/// requests a tick of control.
fn quota(tables: usize) -> Made {
    const KEY: u64 = 0x0123_4567_89ab_cdef;
    let mut now = std::time::Instant::now();
    let quota = Quota::parse(Some("10000000/s"), Some("1TiB/s"), None).expect("a quota");
    let make = || {
        let board = Arc::new(Board::new(2, slots(1_000), now));
        (QuotaTable::new(board.clone(), 0, 1_000), Keeper::new(board))
    };
    let mut all: Vec<(QuotaTable, Keeper)> = (0..tables).map(|_| make()).collect();
    let ids: Vec<_> = all.iter().map(|(table, _)| table.find(KEY, &quota, 1)).collect();
    let mut requests = 0_u64;
    let run = move || {
        for (nth, (table, _)) in all.iter().enumerate() {
            // A token is found by its key, a connection remembers its peer's bucket.
            let id = if nth == 0 { table.find(KEY, &quota, 1) } else { ids[nth] };
            assert!(table.is_current(id));
            table.want(id);
            assert_eq!(table.judge(id, now), QuotaVerdict::Pass);
            table.spend(id, 1_700);
            table.correct(id, 0);
        }
        requests += 1;
        if requests.is_multiple_of(1_000) {
            now += TICK;
            all.iter_mut().for_each(|(_, keeper)| keeper.tick(now));
        }
    };
    Made { run: Box::new(run), throughput: Amount::Elements(1) }
}

/// The densest body, refused for its last member.
fn refused() -> Made {
    let mut body = format!("{{\"data\":[{}1],\"data\":[]}}", "1,".repeat(500_000)).into_bytes();
    let throughput = Amount::Bytes(body.len());
    let mut scratch = Scratch::default();
    let run = move || assert!(parse(Padded::behind(&mut body), JSON, &mut scratch).is_err());
    Made { run: Box::new(run), throughput }
}

/// Admits requests of `payloads` payloads each to an empty queue until it has 64, and takes them one
/// by one.
fn queue(payloads: usize) -> Made {
    let admission = admission();
    let spans: Vec<Span> = (0..64).map(|at| Span { start: at, end: at + 1 }).collect();
    let run = move || {
        for spans in spans.chunks(payloads) {
            push(&admission, spans);
        }
        for span in &spans {
            let job = admission.queue().take().expect("it was pushed");
            admission.taken(1);
            assert_eq!(*job.payload, [span.start as u8]);
        }
        assert!(admission.queue().is_empty());
    };
    Made { run: Box::new(run), throughput: Amount::Elements(64) }
}

/// A request of ten payloads from its permit to the end of its last payload, one by one.
fn admit() -> Made {
    let admission = admission();
    let spans: Vec<Span> = (0..10).map(|at| Span { start: at, end: at + 1 }).collect();
    let run = move || {
        push(&admission, &spans);
        assert_eq!(admission.queue().len(), 10);
        while let Some(job) = admission.queue().take() {
            admission.taken(1);
            drop(job);
        }
    };
    Made { run: Box::new(run), throughput: Amount::Elements(10) }
}

/// The same, taken together, with their keys.
fn admit_run() -> Made {
    let admission = admission();
    let spans: Vec<Span> = (0..10).map(|at| Span { start: at, end: at + 1 }).collect();
    let origin = Origin::new("0123456789abcdef".into(), 3);
    let mut key = String::new();
    let run = move || {
        push(&admission, &spans);
        let mut bytes = 0;
        while let Some(run) = admission.queue().take_run(128) {
            admission.taken(run.count());
            origin.write_keys(&run, &mut key, |payload, key, _| bytes += payload.len() * key.len());
        }
        assert!(bytes > 10 * 40, "{key}");
    };
    Made { run: Box::new(run), throughput: Amount::Elements(10) }
}

fn admission() -> Rc<Admission> {
    let cells = &millrace::internals::metrics::cells(1)[0];
    Admission::new(Rc::new(JobQueue::new(1_000)), 1 << 20, cells)
}

/// Admits a request with these payloads.
fn push(admission: &Rc<Admission>, spans: &[Span]) {
    let need = Need::of(spans.len(), 64);
    let permit = admission.admit_now(need).expect("it could fit").expect("there is room");
    let first = Stamp { unix_nanos: 1_780_000_000_000_000_000, seq: 2 };
    let common = InCommon::of(first, RequestValues::default());
    admission.push(Run::new((0..64).collect(), permit, spans, common));
}

fn key() -> Made {
    let origin = Origin::new("0123456789abcdef".into(), 3);
    let payload = Payload::from(b"{}".to_vec());
    let mut seq = 0;
    let run = move || {
        seq += 1;
        let key = origin.key(Stamp { unix_nanos: 1_780_000_000_000_000_000, seq }, &payload);
        assert!(key.len() > 40);
    };
    Made { run: Box::new(run), throughput: Amount::Elements(1) }
}

/// Which batch a payload belongs to, and a key with that; the field is the payload's last.
fn key_of_field() -> Made {
    let template = KeyTemplate::parse("{field:/tenant}/{seq}-{node}-{core}.{ext}", None);
    let template = template.expect("a template");
    let values = RequestValues::default();
    let payloads: Vec<String> = (0..64)
        .map(|n| {
            payload(n * 104_729, 1_000).replace(r#""note""#, &format!(r#""tenant":"t {n}","note""#))
        })
        .collect();
    let (mut partition, mut key, mut turn) = (Partition::default(), String::new(), 0);
    let run = move || {
        turn = (turn + 1) % payloads.len();
        let time = template.write_partition(payloads[turn].as_bytes(), &values, 1, &mut partition);
        assert_eq!(time, EventTime::NotAsked);
        let (partition, node) = (partition.text(), "0123456789abcdef");
        let of =
            KeyOf { partition, unix_nanos: 1, node, core: 3, seq: 42, count: 1, ext: "ndjson" };
        template.write_key(&of, &mut key);
        let tenant = key.strip_suffix("/42-0123456789abcdef-3.ndjson");
        let tenant = tenant.and_then(|text| text.strip_prefix("t ")?.parse().ok());
        assert_eq!(tenant, Some(turn), "{key}");
    };
    Made { run: Box::new(run), throughput: Amount::Elements(1) }
}

/// An object of 64 payloads from its first line to its end.
fn batch(compression: Compression) -> Made {
    let mut rng = fastrand::Rng::with_seed(1);
    let payloads: Vec<String> = (0..64).map(|_| event(&mut rng, 1_000)).collect();
    let raw_bytes: usize = payloads.iter().map(|payload| payload.len() + 1).sum();
    let shared = EncoderShared::new();
    let encode = move |payloads: &[String]| {
        let mut encoder = Encoder::new(compression, &shared);
        let mut shown = 0;
        for payload in payloads {
            encoder.push(payload.as_bytes());
            while encoder.work(&mut |bytes| shown += bytes.len()) {}
        }
        encoder.finish();
        while encoder.work(&mut |bytes| shown += bytes.len()) {}
        let parts = encoder.into_parts();
        assert_eq!(parts.iter().map(|part| part.len()).sum::<usize>(), shown);
        (parts, shown, shared.clone())
    };
    let mut found = Vec::new();
    let (parts, stored_bytes, _) = encode(&payloads);
    lines(compression, &parts, |line| found.push(String::from_utf8(line.to_vec()).expect("UTF-8")));
    assert_eq!(found, payloads);
    // Where a block ends depends on how fast the last ones went.
    let likely_bytes = stored_bytes - stored_bytes / 10..=stored_bytes + stored_bytes / 10;
    let run = move || {
        let (parts, stored_bytes, shared) = encode(&payloads);
        assert!(likely_bytes.contains(&stored_bytes));
        shared.give_back(parts);
    };
    Made { run: Box::new(run), throughput: Amount::Bytes(raw_bytes) }
}

/// The payloads of a request, which join an object together, as half a megabyte of others have.
fn batch_of_requests() -> Made {
    const REQUESTS: usize = 340;
    let mut body = body(10, 150);
    let mut scratch = Scratch::default();
    let padded = Padded::behind(&mut body);
    let found = parse(padded, JSON, &mut scratch).expect("a collection").payloads.to_vec();
    let bytes: usize = found.iter().map(|span| span.range().len() + 1).sum();
    let shared = EncoderShared::new();
    let make = move || Encoder::new(Compression::None, &shared);
    let (mut encoder, mut requests) = (make(), 0_usize);
    let run = move || {
        encoder.push_all(&body, &found);
        requests += 1;
        while requests.is_multiple_of(4) && encoder.work(&mut |_| {}) {}
        if requests == REQUESTS {
            assert_eq!(encoder.raw_bytes(), (REQUESTS * bytes) as u64);
            encoder.finish();
            while encoder.work(&mut |_| {}) {}
            let ended = std::mem::replace(&mut encoder, make());
            let shared = ended.shared().clone();
            shared.give_back(ended.into_parts());
            requests = 0;
        }
    };
    Made { run: Box::new(run), throughput: Amount::Bytes(bytes) }
}

/// The whole head of a PUT, its body's hash and the signature included.
fn sign(body_bytes: usize) -> Made {
    const KEY: &str = "1780000000000000000-0123456789abcdef-3-42.json";
    let config = Config::from_settings(&[]).expect("the defaults are valid");
    let server = dial::ServerAddress { https: false, host: "127.0.0.1".into(), port: 9000 };
    let destination = Destination { server: &server, path: "/bucket/", prefix: "in/" };
    let integrity = Integrity { checksum: Checksum::None, sign_payload: true };
    let template =
        Template::new(&destination, &config.s3, integrity).expect("the options can be sent");
    let mut signer = Signer::new("us-east-1", "s3");
    // AWS's own example keys.
    let (access_key, secret_key) =
        ("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY");
    let who = Identity { access_key, secret_key, session_token: None };
    let now_s = 1_780_000_000;
    signer.renew(now_s, 0, &who).expect("the keys can be sent");
    let body = vec![b'x'; body_bytes];
    let mut head = Vec::new();
    let run = move || {
        head.clear();
        let sums = Sums::of(&body, integrity);
        let put = Put { key: KEY, bytes: body.len() as u64, coding: None, sums: &sums };
        template.write_head(&put, now_s, &mut signer, &mut head);
        assert!(head.starts_with(b"PUT /bucket/in/1780") && head.ends_with(b"\r\n\r\n"));
    };
    Made { run: Box::new(run), throughput: Amount::Bytes(body_bytes) }
}
