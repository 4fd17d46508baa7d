//! The upload workers: pop from the one queue, put, and again, until it is closed and empty. Retry is theirs.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use async_channel::Receiver;

use crate::admit::Job;
use crate::serve::Server;
use crate::store::Uploader;

pub async fn worker_loop(server: Arc<Server>, jobs: Receiver<Job>) {
    let mut uploader = server.store.uploader();
    while let Ok(job) = jobs.recv().await {
        server.admission.popped();
        match deliver(&server, &mut uploader, &job).await {
            Ok(()) => server.counts.stored.fetch_add(1, Relaxed),
            Err(error) => {
                tracing::error!(%error, "payload lost");
                server.counts.lost.fetch_add(1, Relaxed)
            }
        };
        drop(job);
        // A store that answers at once would let one worker empty the queue while nobody else runs.
        tokio::task::consume_budget().await;
    }
}

/// Puts until the store confirms or `RETRY_FOR` is over.
async fn deliver(server: &Server, uploader: &mut Uploader, job: &Job) -> Result<(), String> {
    let key = server.origin.key(job.stamp);
    let config = &server.config;
    let started = Instant::now();
    let mut attempts = 0_u32;
    loop {
        let put = uploader.put(&key, &job.payload);
        let error = match tokio::time::timeout(config.put_timeout, put).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => error,
            Err(_) => "no answer within PUT_TIMEOUT".to_owned(),
        };
        tracing::warn!(key, error, "a put failed and will be tried again");
        if started.elapsed() >= config.retry_for {
            return Err(error);
        }
        let doubled = config.retry_base.saturating_mul(1 << attempts.min(20));
        let jitter = f64::from(started.elapsed().subsec_nanos() % 1_000) / 1_000.0;
        let backoff = doubled.min(config.retry_max).mul_f64(jitter);
        tokio::time::sleep(backoff.max(Duration::from_millis(1))).await;
        attempts += 1;
    }
}
