//! The stop of one core: open connections, then uploads, then what is left to the spool or the dead letter.

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

/// The stop of one core, see [`crate::limits::StopSchedule`] for its times. `tasks` are those that hold payloads.
pub async fn drain(core: &Core, limits: &Limits, tasks: Vec<Task<()>>, hurry: &Flag) {
    let started = rt::now();
    core.cells.set_state(CoreState::Draining);
    core.stop.begin(started);
    // Idle connections have their lame-duck time from now on.
    core.server.conns.wake_all();
    let Pipeline { spool, uploader, .. } = &core.pipeline;
    if let Some(spool) = spool {
        spool.stop_reading();
    }
    let quiet = || !core.server.conns.is_accepting() && core.cells.connections.value() == 0;
    wait_until(quiet, started + limits.stop.queue_close, hurry).await;

    core.close();
    let idle = || {
        // What is spooled does not wait for a store that fails, or that takes everything but this.
        let fails = || core.cells.store_failing_since.value() != 0 || core.cells.spool_is_failing();
        uploader.holds_nothing()
            || uploader.holds_spooled_only() && (fails() || uploader.holds_failed_only())
    };
    wait_until(idle, started + limits.stop.upload_stop, hurry).await;
    // Answers still on their way get the time a lingering connection has.
    let answered = || core.cells.connections.value() == 0;
    let linger = (rt::now() + LINGER_TIME_MAX).min(started + limits.stop.upload_stop);
    wait_until(answered, linger, hurry).await;

    for task in tasks {
        task.cancel().await;
    }
    core.stop.uploads_ended.set(true);
    core.server.conns.wake_all();
    // A last answer to those who wait for the store, and to those whose request was turned away just now.
    core.net.run_tasks_and_turn().await;
    let exit = started + limits.stop.exit;
    // Left for dead letters, their sync, and control's own last words.
    let write_until = exit - (exit.saturating_duration_since(rt::now()) / 4);
    if let Some(spool) = spool {
        strictly_within(NAMES_MAX, spool.check_all(), || ()).await;
    }
    let mut rest = take_rest(&core.pipeline);
    if let Some(spool) = spool {
        let left = write_until.saturating_duration_since(rt::now()) / 2;
        let Unstored { jobs, batches, .. } = &mut rest;
        let members: Vec<_> = batches.iter().filter_map(|batch| batch.members().cloned()).collect();
        let next = || {
            let last = batches.iter().rposition(|batch| batch.members().is_none())?;
            let batch = batches.remove(last);
            let (key, form) = (batch.key().to_owned(), batch.form());
            Some(UnspooledBatch { key, form, jobs: batch.jobs() })
        };
        strictly_within(left, spool.stop(jobs, &members, next), || ()).await;
    }
    bury(uploader, rest, write_until);
}

/// Longest look at the names of the spool's files, which a disk that hangs does not give.
const NAMES_MAX: Duration = Duration::from_millis(500);
/// How often a drain looks whether it can go on; nothing else is delayed by it.
const DRAIN_LOOK: Duration = Duration::from_millis(5);

async fn wait_until(done: impl Fn() -> bool, deadline: Instant, hurry: &Flag) {
    while !done() && !hurry.get() && rt::now() < deadline {
        sleep(DRAIN_LOOK).or(hurry.wait()).await;
    }
}

/// What is unstored and not in the spool.
struct Unstored {
    jobs: Vec<Job>,
    batches: Vec<Rc<Batch>>,
    /// What was put at least once, by stem.
    tried: HashMap<String, Option<Failures>>,
}

/// Puts in flight and those that wait for a retry included.
fn take_rest(pipeline: &Pipeline) -> Unstored {
    let mut rest = Unstored { jobs: Vec::new(), batches: Vec::new(), tried: HashMap::new() };
    let Pipeline { uploader, batches, .. } = pipeline;
    for InProgress { upload, failures } in pipeline.take_tried() {
        rest.tried.insert(upload.stem(&uploader.origin), failures);
        match upload {
            Upload::Payload(job) => rest.jobs.push(job),
            Upload::Batch(batch) => rest.batches.push(batch),
        }
    }
    if let Some(batches) = batches {
        let (jobs, batches) = batches.take_rest();
        rest.jobs.extend(jobs);
        rest.batches.extend(batches);
    }
    rest.jobs.extend(pipeline.take_queued());
    rest.jobs.retain(|job| !job.is_spooled());
    rest.batches.retain(|batch| !batch.is_spooled());
    uploader.cells.queue_depth.set(0);
    rest
}

/// The last step without a spool, or with one that failed: what is unstored goes to the dead letter, into one file with
/// one sync, a batch as the object it would have been. Blocks the core, which has nothing else left to do.
fn bury(uploader: &Uploader, rest: Unstored, write_until: Instant) {
    let Unstored { jobs, batches, tried } = rest;
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
        upload.write_key(&uploader.origin, &mut key);
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
        let letter = DeadLetter::now(&object, upload.payloads(), store, error, attempts);
        match bundle.append(&stem, &letter, object.body) {
            Ok(()) => written.push(upload),
            Err(error) => record_loss(&upload, &key, &error.to_string()),
        }
    }
    let published = bundle.publish();
    let mut record_losses = |uploads: &[Upload], why: &str| {
        for upload in uploads {
            upload.write_key(&uploader.origin, &mut key);
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
    // The sync waits for a disk that may be busy; should it not end in time, control says what is at stake.
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
