//! One payload as a slice of its request's body, and the stamp that makes its key. The queue holds
//! those of a request together, as a [`Run`].
//!
//! A slice keeps the whole body alive, so the body carries the permit that was charged for it. When
//! the last slice is dropped, the bytes return to the core's budget. Nothing here crosses cores.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::ops::{Deref, Range};
use std::rc::Rc;

use crate::key::{DEFAULT_PAYLOAD, EventTime, KeyOf, KeyTemplate, Partition, RequestValues};
use crate::net::{Share, SharedBytes, Slice};
use crate::queue::admission::Permit;
use crate::queue::event_times::UnreadableTimes;
use crate::queue::outcome::{Outcome, RequestOutcome};
use crate::queue::run::{InCommon, Run, Spans};
use crate::rt;
use crate::spool::SpooledRequest;

/// Fixed charge per payload on top of its body's bytes. In the queue a payload is a [`Span`] of 8
/// bytes, and its request takes up to 160 (see [`SLOT_BYTES`](super::run::SLOT_BYTES)). As a `Job` of
/// its own it takes 48. What it has besides while it waits for a retry (its key, its last error and
/// some 300 bytes) is not charged; the queue's slots bound it.
/// Without this charge a body of a million `0,` would cost nothing but its text.
pub const JOB_COST_BYTES: usize = 64;

/// One payload on its way to the store.
#[derive(Clone)]
pub struct Job {
    pub payload: Payload,
    pub stamp: Stamp,
    /// Where its payload is in the spool, if it is spooled.
    pub record: Option<Rc<SpooledRequest>>,
    /// Gets the outcome of this payload; `None` if no request waits for it.
    pub request_outcome: Option<Rc<RequestOutcome>>,
}

impl Job {
    /// A job of a payload that is in memory only, and that no request waits for.
    pub fn queued(payload: Payload, stamp: Stamp) -> Job {
        Job { payload, stamp, record: None, request_outcome: None }
    }

    /// The origin in its key: `own`, the core's, unless another process received the payload.
    pub fn origin<'a>(&'a self, own: &'a Origin) -> &'a Origin {
        self.record.as_ref().and_then(|record| record.origin()).unwrap_or(own)
    }

    /// Whether it survives this process.
    pub fn is_spooled(&self) -> bool {
        self.record.as_ref().is_some_and(|record| !record.is_removed())
    }

    /// Completes the payload, for the request that waits for it and in the spool. A
    /// spooled payload whose dead letter failed stays in the spool.
    pub fn complete(&self, outcome: Outcome) {
        if let Some(request_outcome) = &self.request_outcome {
            request_outcome.add(outcome, 1);
        }
        if let Some(record) = &self.record
            && outcome != Outcome::Lost
        {
            record.complete(self.stamp, 1, self.payload.len() as u64);
        }
    }
}

const _: () = assert!(size_of::<Job>() <= JOB_COST_BYTES, "a job is charged what it takes");

/// What makes a payload's key unique. Set at admission, so a retry writes the same key again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// Wall clock at admission, nanoseconds since 1970, for humans and sorting. Uniqueness within
    /// one process does not depend on it.
    pub unix_nanos: u64,
    /// The core's counter, which never resets while the process lives.
    pub seq: u64,
}

impl Stamp {
    /// The wall clock, for [`Stamp::unix_nanos`]; a clock set before 1970 counts as 1970.
    pub fn unix_nanos_now() -> u64 {
        rt::unix_nanos()
    }
}

/// The source of one core's stamps.
#[derive(Debug, Default)]
pub struct Stamps {
    /// Number of stamps taken so far.
    seq: Cell<u64>,
}

impl Stamps {
    /// Takes `count` consecutive stamps with the current time; returns the first.
    pub fn take(&self, count: usize) -> Stamp {
        self.take_at(count, Stamp::unix_nanos_now())
    }

    /// The same with another time.
    pub fn take_at(&self, count: usize, unix_nanos: u64) -> Stamp {
        let seq = self.seq.replace(self.seq.get() + count as u64);
        Stamp { unix_nanos, seq }
    }
}

/// The part that all keys of one core share: `{node}-{core}`.
#[derive(Clone, Debug)]
pub struct Origin {
    node: String,
    core: usize,
    name: String,
    /// The same between dashes, as in a key.
    middle: String,
    /// `None`: the default key, which needs no template.
    keys: Option<Rc<Keys>>,
    /// Its payloads become single objects under these keys, also if this process makes batches.
    is_single_object: bool,
}

/// A template, and a buffer for the partition of a payload.
#[derive(Debug)]
struct Keys {
    template: KeyTemplate,
    partition: RefCell<Partition>,
    unreadable: UnreadableTimes,
}

impl Origin {
    pub fn new(node: String, core: usize) -> Origin {
        let name = format!("{node}-{core}");
        Origin {
            middle: format!("-{name}-"),
            name,
            node,
            core,
            keys: None,
            is_single_object: false,
        }
    }

    /// With the keys of single objects, made from the template with this text. `None`: the payloads
    /// are for batches.
    pub fn with_keys(self, keys: Option<&str>) -> Origin {
        let template = keys.map(KeyTemplate::of_text).transpose().unwrap_or_else(|error| {
            tracing::error!("{}: payloads were spooled for keys that this version does not make, so they get the default key: {error}", self.name);
            None
        });
        let template = template.filter(|t| t.texts() != (DEFAULT_PAYLOAD, None));
        let with_room = |template| {
            let (partition, unreadable) = Default::default();
            Rc::new(Keys { template, partition, unreadable })
        };
        Origin { is_single_object: keys.is_some(), keys: template.map(with_room), ..self }
    }

    /// The same origin, whose payloads become single objects even if they were spooled for batches.
    pub fn for_single_objects(self) -> Origin {
        Origin { is_single_object: true, ..self }
    }

    /// Whether its payloads have keys of their own already: they were spooled to become single
    /// objects, and may be in the store.
    pub fn is_single_object(&self) -> bool {
        self.is_single_object
    }

    /// The text of the template that keys are made from; `None`: the default key.
    pub fn keys(&self) -> Option<String> {
        self.keys.as_ref().map(|keys| keys.template.text())
    }

    /// Node and core.
    pub fn parts(&self) -> (&str, u32) {
        (&self.node, self.core as u32)
    }

    /// `{node}-{core}`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// `{unix_nanos}-{node}-{core}-{seq}`: the key without its suffix, and the name of a dead
    /// letter.
    pub fn stem(&self, stamp: Stamp) -> String {
        let mut stem = String::new();
        self.write_stem(stamp, &mut stem);
        stem
    }

    /// The key of `payload` as a single object, relative to the store's prefix.
    pub fn key(&self, stamp: Stamp, payload: &Payload) -> String {
        let mut key = String::new();
        let _read_or_not = self.write_key(stamp, payload, &mut key);
        key
    }

    /// Replaces the content of `key` with that key. A format string and a new allocation would cost
    /// 0.2 µs per payload. Without a readable event time the key has the time of admission, in
    /// every attempt alike.
    pub fn write_key(&self, stamp: Stamp, payload: &Payload, key: &mut String) -> EventTime {
        key.clear();
        let Some(keys) = &self.keys else {
            self.write_stem(stamp, key);
            key.push_str(".json");
            return EventTime::NotAsked;
        };
        let Stamp { unix_nanos, seq } = stamp;
        let (mut partition, values) = (keys.partition.borrow_mut(), payload.values());
        let time = keys.template.write_partition(payload, values, unix_nanos, &mut partition);
        let (node, core, partition) = (&*self.node, self.core, partition.text());
        let of = KeyOf { partition, unix_nanos, node, core, seq, count: 1, ext: "json" };
        keys.template.write_key(&of, key);
        time
    }

    /// Shows `each` the payloads of `run` in order, each with its key as [`Origin::write_key`] writes
    /// it to `key`. What default keys have before their number is written once.
    pub fn write_keys(
        &self,
        run: &Run,
        key: &mut String,
        mut each: impl FnMut(&Payload, &str, EventTime),
    ) {
        let first = run.first_stamp();
        let stamps = (first.seq..).map(|seq| Stamp { seq, ..first });
        if self.keys.is_some() {
            for (payload, stamp) in run.payloads().zip(stamps) {
                let time = self.write_key(stamp, &payload, key);
                each(&payload, key, time);
            }
            return;
        }
        key.clear();
        self.write_before_seq(first.unix_nanos, key);
        let (before, mut digits) = (key.len(), itoa::Buffer::new());
        for (payload, Stamp { seq, .. }) in run.payloads().zip(stamps) {
            key.truncate(before);
            key.push_str(digits.format(seq));
            key.push_str(".json");
            each(&payload, key, EventTime::NotAsked);
        }
    }

    /// Logs that the event time of `payload` cannot be read.
    pub fn log_unreadable_time(&self, payload: &Payload) {
        if let Some(keys) = &self.keys {
            keys.unreadable.log(&keys.template, payload);
        }
    }

    fn write_stem(&self, stamp: Stamp, text: &mut String) {
        self.write_before_seq(stamp.unix_nanos, text);
        text.push_str(itoa::Buffer::new().format(stamp.seq));
    }

    fn write_before_seq(&self, unix_nanos: u64, text: &mut String) {
        text.push_str(itoa::Buffer::new().format(unix_nanos));
        text.push_str(&self.middle);
    }
}

/// A byte range of the body, half-open and never empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Offset of the first byte.
    pub start: u32,
    /// Offset behind the last byte.
    pub end: u32,
}

impl Span {
    /// The range to slice the body with.
    pub fn range(self) -> Range<usize> {
        self.start as usize..self.end as usize
    }
}

/// The bytes of one payload, exactly as received, or as wrapped at admission (`META`). Cheap to clone; keeps its request's body alive.
#[derive(Clone)]
pub struct Payload {
    body: Rc<SharedBytes<Beside>>,
    start: u32,
    end: u32,
}

/// What lives as long as a body.
pub(super) struct Beside {
    pub(super) common: InCommon,
    pub(super) spans: Spans,
    /// Released with the last slice; `None` for bytes that no budget was charged for.
    pub(super) _permit: Option<Permit>,
}

impl Payload {
    /// The payload at `span` of an admitted body.
    #[inline]
    pub(super) fn new(body: Rc<SharedBytes<Beside>>, span: Span) -> Payload {
        Payload { body, start: span.start, end: span.end }
    }

    /// A payload that owns its bytes and is charged to no budget, of a request with these `values`.
    pub fn uncharged(bytes: Vec<u8>, values: RequestValues) -> Payload {
        let end = u32::try_from(bytes.len()).expect("a payload is under 4 GiB");
        let span = Span { start: 0, end };
        let common = InCommon::of(Stamp { unix_nanos: 0, seq: 0 }, values);
        let beside = Beside { common, spans: Spans::One(span), _permit: None };
        Payload::new(SharedBytes::new(bytes, beside), span)
    }

    /// The allocation itself, for reuse; `None` while other slices of it live. Releases the permit,
    /// if there is one.
    pub fn into_bytes(self) -> Option<Vec<u8>> {
        Rc::into_inner(self.body).map(SharedBytes::into_bytes)
    }

    /// What keys use of the request it came in.
    pub fn values(&self) -> &RequestValues {
        &self.body.with().common.values
    }
}

impl From<Vec<u8>> for Payload {
    /// A payload that owns its bytes and is charged to no budget: for replay, probes and tests.
    fn from(bytes: Vec<u8>) -> Payload {
        Payload::uncharged(bytes, RequestValues::default())
    }
}

impl Deref for Payload {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.body.bytes()[self.start as usize..self.end as usize]
    }
}

impl Share for Payload {
    fn share(&self) -> Slice {
        Slice::new(self.body.clone(), self.start as usize..self.end as usize)
    }
}

impl AsRef<[u8]> for Payload {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Payload({} bytes)", self.len())
    }
}
