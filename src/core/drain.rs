//! The stop of one core: it finishes connections, then uploads, and writes what is left to the
//! spool or to dead letters.

use std::collections::HashMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

use futures_lite::FutureExt;

use super::Core;
use super::pipeline::Pipeline;
use crate::batch::Batch;
use crate::deadletter::DeadLetter;
use crate::deadline::strictly_within;
use crate::http::LINGER_TIME_MAX;
use crate::limits::Limits;
use crate::metrics::CoreState;
use crate::queue::job::Job;
use crate::rt::{self, Task, sleep};
use crate::spool::UnspooledBatch;
use crate::sync::Flag;
use crate::upload::source::Upload;
use crate::upload::{Failures, InProgress, Uploader, record_loss};

/// Stops one core. [`crate::limits::StopSchedule`] has the times. `tasks` are those that hold
/// payloads; `force_stop` skips every wait.
pub async fn drain(core: &Core, limits: &Limits, tasks: Vec<Task<()>>, force_stop: &Flag) {
    let started = rt::now();
    core.cells.set_state(CoreState::Draining);
    core.stop.begin(started);
    // The idle grace of a stop begins for idle connections.
    core.server.conns.wake_all();
    let Pipeline { spool, uploader, .. } = &core.pipeline;
    if let Some(spool) = spool {
        spool.stop_reading();
    }
    let no_connections =
        || !core.server.conns.is_accepting() && core.cells.connections.value() == 0;
    wait_until(no_connections, started + limits.stop.queue_close, force_stop).await;

    core.close();
    let idle = || {
        // Spooled payloads are safe, so they do not wait for a store that fails, or that accepts
        // everything but them.
        let store_fails =
            || core.cells.store_failing_since.value() != 0 || core.cells.spool_is_failing();
        uploader.holds_nothing()
            || uploader.holds_spooled_only() && (store_fails() || uploader.holds_failed_only())
    };
    wait_until(idle, started + limits.stop.upload_stop, force_stop).await;
    // Answers that are being sent get the time that a lingering connection has.
    let answered = || core.cells.connections.value() == 0;
    let linger = (rt::now() + LINGER_TIME_MAX).min(started + limits.stop.upload_stop);
    wait_until(answered, linger, force_stop).await;

    for task in tasks {
        task.cancel().await;
    }
    core.stop.uploads_ended.set(true);
    core.server.conns.wake_all();
    // Requests that wait for the store, and those turned away just now, get their answer.
    core.net.run_tasks_and_turn().await;
    let exit = started + limits.stop.exit;
    // A quarter of the time left is kept for the sync of the dead letters and for control's last
    // log lines.
    let write_until = exit - (exit.saturating_duration_since(rt::now()) / 4);
    if let Some(spool) = spool {
        strictly_within(NAME_CHECK_MAX, spool.check_all(), || ()).await;
    }
    let mut unstored = take_unstored(&core.pipeline);
    if let Some(spool) = spool {
        // Half of the time, so that dead letters can follow if the spool fails.
        let left = write_until.saturating_duration_since(rt::now()) / 2;
        let UnstoredWork { jobs, batches, .. } = &mut unstored;
        let members: Vec<_> = batches.iter().filter_map(|batch| batch.members().cloned()).collect();
        let next = || {
            let last = batches.iter().rposition(|batch| batch.members().is_none())?;
            let batch = batches.remove(last);
            let (key, form) = (batch.key().to_owned(), batch.form());
            Some(UnspooledBatch { key, form, jobs: batch.jobs() })
        };
        strictly_within(left, spool.stop(jobs, &members, next), || ()).await;
    }
    dead_letter_all(uploader, unstored, write_until);
}

/// Longest check of the names of the spool's files, because a hanging disk does not answer.
const NAME_CHECK_MAX: Duration = Duration::from_millis(500);
/// How often a drain checks whether it can proceed. Nothing else is delayed by it.
const DRAIN_POLL: Duration = Duration::from_millis(5);

async fn wait_until(done: impl Fn() -> bool, deadline: Instant, force_stop: &Flag) {
    while !done() && !force_stop.get() && rt::now() < deadline {
        sleep(DRAIN_POLL).or(force_stop.wait()).await;
    }
}

/// Everything that is neither stored nor in the spool.
struct UnstoredWork {
    jobs: Vec<Job>,
    batches: Vec<Rc<Batch>>,
    /// The failures of uploads that were tried at least once, by stem.
    tried: HashMap<String, Option<Failures>>,
}

/// Takes everything unstored out of the pipeline: uploads in flight, those that wait for a retry,
/// open batches and the queue.
fn take_unstored(pipeline: &Pipeline) -> UnstoredWork {
    let mut unstored =
        UnstoredWork { jobs: Vec::new(), batches: Vec::new(), tried: HashMap::new() };
    let Pipeline { uploader, batches, .. } = pipeline;
    for InProgress { upload, failures } in pipeline.take_tried() {
        unstored.tried.insert(upload.stem(&uploader.origin), failures);
        match upload {
            Upload::Payload(job) => unstored.jobs.push(job),
            Upload::Batch(batch) => unstored.batches.push(batch),
        }
    }
    if let Some(batches) = batches {
        let (jobs, batches) = batches.take_rest();
        unstored.jobs.extend(jobs);
        unstored.batches.extend(batches);
    }
    unstored.jobs.extend(pipeline.take_queued());
    unstored.jobs.retain(|job| !job.is_spooled());
    unstored.batches.retain(|batch| !batch.is_spooled());
    uploader.cells.queue_depth.set(0);
    unstored
}

/// The last step without a spool, or with one that failed: writes everything unstored as dead
/// letters, into one file with one sync, a batch as the object that it would have been. Blocks the
/// core, which has nothing else left to do.
fn dead_letter_all(uploader: &Uploader, unstored: UnstoredWork, write_until: Instant) {
    let UnstoredWork { jobs, batches, tried } = unstored;
    let store_error = uploader.health.last_error();
    let uploads =
        jobs.into_iter().map(Upload::Payload).chain(batches.into_iter().map(Upload::Batch));
    let mut bundle = uploader.dead_letters.directory.bundle();
    let mut written: Vec<Upload> = Vec::new();
    let mut key = String::new();
    let record_loss = |upload: &Upload, key: &str, why: &str| {
        record_loss(uploader.cells, key, upload.payloads(), upload.payload_bytes(), why);
    };
    for upload in uploads {
        let _read_or_not = upload.write_key(&uploader.origin, &mut key);
        if rt::now() > write_until {
            record_loss(&upload, &key, "DRAIN_TIMEOUT left no time to write its dead letter");
            continue;
        }
        let stem = upload.stem(&uploader.origin);
        let own = tried.get(&stem);
        let failures = own.and_then(Option::as_ref);
        let (error, attempts) = Failures::of_a_stop(failures, own.is_some(), store_error.as_ref());
        let object = upload.object(&key);
        let store = uploader.dead_letters.store_name.clone();
        let letter = DeadLetter::now(&object, upload.payloads(), store, error, attempts)
            .traced(upload.traces());
        match bundle.append(&stem, &letter, object.body) {
            Ok(()) => written.push(upload),
            Err(error) => record_loss(&upload, &key, &error.to_string()),
        }
    }
    let published = bundle.publish();
    let mut record_losses = |uploads: &[Upload], why: &str| {
        for upload in uploads {
            let _read_or_not = upload.write_key(&uploader.origin, &mut key);
            record_loss(upload, &key, why);
        }
    };
    let (written, unwritten) = written.split_at(published.letters);
    if let Some(error) = &published.error {
        record_losses(unwritten, &format!("its dead letter could not be written: {error}"));
    }
    if written.is_empty() {
        return;
    }
    // The sync waits for a disk that may be busy. If it does not end in time, control reports this
    // count.
    let payloads = written.iter().map(Upload::payloads).sum();
    let cells = uploader.cells;
    cells.unsynced_at_stop.set(payloads);
    match published.sync() {
        Ok(()) => {
            cells.payloads_dead_lettered.add(payloads);
            cells.bytes_dead_lettered.add(written.iter().map(Upload::payload_bytes).sum());
            cells.dead_lettered_at_stop.add(payloads);
        }
        Err(error) => {
            record_losses(written, &format!("its dead letter could not be synced: {error}"));
        }
    }
    cells.unsynced_at_stop.set(0);
}
