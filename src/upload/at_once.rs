//! Payloads for a store that completes at once (`null:`): adjacent ones are stored together, without
//! a future, a timer, a place among the PUTs in flight or a catch of panics for each.
//!
//! There is no await in between, so a stop never finds any of them half done; and since nothing is
//! in flight, the limit on PUTs has nothing to learn. Everything else is as for single PUTs: each
//! payload gets its key, its outcome and its place in the counts, which are added once per run.

use std::time::Duration;

use super::uploader::Uploader;
use crate::key::EventTime;
use crate::queue::outcome::Outcome;
use crate::queue::run::Run;
use crate::rt;
use crate::store::Object;

/// Payloads that are stored before the worker looks whether other tasks of the core shall run: with
/// the default key less than 10 µs.
pub(super) const AT_ONCE_MAX: usize = 128;

/// Stores the payloads of `run` and completes them. `key` is a buffer.
pub(super) fn store_at_once(uploader: &Uploader, run: &Run, key: &mut String) {
    let Uploader { cells, store, .. } = uploader;
    let origin = run.origin(&uploader.origin);
    let mut bytes = 0;
    origin.write_keys(run, key, |payload, key, time| {
        if time == EventTime::Unreadable {
            cells.event_times_unreadable.inc();
            origin.log_unreadable_time(payload);
        }
        bytes += payload.len() as u64;
        store.put_at_once(&Object::of(key, payload));
    });
    let payloads = run.count() as u64;
    let now = rt::now();
    // What a PUT takes that only returns is less than a clock can tell.
    cells.put_latency.observe_all(Duration::ZERO, payloads);
    uploader.health.succeeded(now);
    cells.objects_stored.add(payloads);
    cells.object_bytes_stored.add(bytes);
    cells.payloads_stored.add(payloads);
    cells.bytes_stored.add(bytes);
    run.complete(Outcome::Stored);
}
