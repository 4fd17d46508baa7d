//! What is measured. A new one is one entry in [`OPS`]; setting up is not part of it.

use std::rc::Rc;

use futures_lite::future::block_on;
use millrace::admit::{Admission, Need, Permit};
use millrace::config::{Checksum, Config};
use millrace::job::{Job, Origin, Payload, Stamp};
use millrace::parse::{Scratch, Span, parse};
use millrace::ring::Ring;
use millrace::store::direct::{Identity, Place, Put, Signer, Template};
use millrace::store::{Integrity, Sums, dial};
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

/// `spans` is the library's split, `raw` the same by `serde_json` into a struct of `RawValue`s.
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
    Op { name: "ring/push-and-pop-64", make: ring },
    Op { name: "admit/request-of-10", make: admit },
    Op { name: "key/default", make: key },
    Op { name: "sign/head-of-512B", make: || sign(512) },
    Op { name: "sign/head-of-256kB", make: || sign(256_000) },
];

/// A collection of `payloads` objects of `payload_bytes` bytes each: members, then records, as clients send them.
fn body(payloads: usize, payload_bytes: usize) -> Vec<u8> {
    let payload = |seed: usize| {
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
    };
    let data: Vec<String> = (0..payloads).map(|n| payload(n * 104_729)).collect();
    format!(r#"{{"version":"1.0","token":"0123456789abcdef","data":[{}]}}"#, data.join(",")).into()
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
    let mut scratch = Scratch::default();
    let found = parse(&body, &mut scratch).expect("the body is a collection").payloads;
    let found: Vec<&[u8]> = found.iter().map(|span| &body[span.range()]).collect();
    let envelope: Envelope<'_> = serde_json::from_slice(&body).expect("the body is a collection");
    assert!(found.into_iter().eq(envelope.data.iter().map(|raw| raw.get().as_bytes())));
    let throughput = Amount::Bytes(body.len());
    let run = move || {
        let collection = parse(&body, &mut scratch).expect("parsed before");
        assert_eq!(collection.payloads.len(), payloads);
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

/// Fills a ring half and empties it again, in order.
fn ring() -> Made {
    let ring = Ring::new(128);
    let run = move || {
        for n in 0..64_u64 {
            ring.push(n).expect("there is room");
        }
        block_on(async {
            for n in 0..64 {
                assert_eq!(ring.pop(0).await, Some(n));
            }
        });
    };
    Made { run: Box::new(run), throughput: Amount::Elements(64) }
}

/// A request of ten payloads from its permit to the end of its last job.
fn admit() -> Made {
    let cells = &millrace::metrics::cells(1)[0];
    let ring = Rc::new(Ring::new(1_000));
    let admission = Admission::new(ring.clone(), 1 << 20, cells);
    let spans = [Span { start: 0, end: 0 }; 10];
    let run = move || {
        let need = Need::of(spans.len(), 1_700);
        let permit = admission.admit_now(need).expect("it could fit").expect("there is room");
        let payloads = Payload::split(Vec::new(), permit, &spans, None);
        let stamp = Stamp { unix_nanos: 1, seq: 2 };
        Permit::push_all(&admission, payloads.map(|payload| Job::queued(payload, stamp)));
        assert_eq!((ring.len(), cells.ring_bytes.value()), (10, need.bytes as u64));
        while let Some(job) = ring.take() {
            admission.popped();
            drop(job);
        }
        assert_eq!(cells.ring_bytes.value(), 0);
    };
    Made { run: Box::new(run), throughput: Amount::Elements(10) }
}

fn key() -> Made {
    let origin = Origin::new("0123456789abcdef".into(), 3);
    let mut seq = 0;
    let run = move || {
        seq += 1;
        let key = origin.key(Stamp { unix_nanos: 1_780_000_000_000_000_000, seq });
        assert!(key.len() > 40);
    };
    Made { run: Box::new(run), throughput: Amount::Elements(1) }
}

/// The whole head of a PUT, its body's hash and the signature included.
fn sign(body_bytes: usize) -> Made {
    const KEY: &str = "1780000000000000000-0123456789abcdef-3-42.json";
    let config = Config::from_settings(&[]).expect("the defaults are valid");
    let origin = dial::Origin { https: false, host: "127.0.0.1".into(), port: 9000 };
    let place = Place { origin: &origin, path: "/bucket/", prefix: "in/" };
    let integrity = Integrity { checksum: Checksum::None, sign_payload: true };
    let template = Template::new(&place, &config.s3, integrity).expect("the options can be sent");
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
