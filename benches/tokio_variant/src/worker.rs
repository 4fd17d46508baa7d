//! The upload workers: take from the one queue of payloads, or of closed batches, put, and again,
//! until it is closed and empty. Retry is theirs.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use async_channel::Receiver;

use crate::admit::Job;
use crate::serve::Server;
use crate::store::{Body, Held, Object, Uploader};

/// One payload after the other.
pub async fn payload_loop(server: Arc<Server>, jobs: Receiver<Job>) {
    let mut uploader = server.store.uploader();
    while let Ok(Job { payload, stamp, permit }) = jobs.recv().await {
        server.admission.popped(1);
        let object = Object {
            key: server.key(stamp, 1, "json"),
            body: Body::Whole(payload),
            sums: None,
            payloads: 1,
            _held: Held::Request(permit),
        };
        settle(&server, &mut uploader, object).await;
        // A store that answers at once would let one worker empty the queue while nobody else runs.
        tokio::task::consume_budget().await;
    }
}

/// One batch after the other.
pub async fn batch_loop(server: Arc<Server>, batches: Receiver<Object>) {
    let mut uploader = server.store.uploader();
    while let Ok(object) = batches.recv().await {
        settle(&server, &mut uploader, object).await;
        tokio::task::consume_budget().await;
    }
}

/// Puts it and counts what became of it.
async fn settle(server: &Server, uploader: &mut Uploader, object: Object) {
    match deliver(server, uploader, &object).await {
        Ok(()) => server.counts.stored.fetch_add(object.payloads, Relaxed),
        Err(error) => {
            tracing::error!(%error, key = object.key, payloads = object.payloads, "payload lost");
            server.counts.lost.fetch_add(object.payloads, Relaxed)
        }
    };
}

/// Puts until the store confirms or `RETRY_FOR` is over.
async fn deliver(server: &Server, uploader: &mut Uploader, object: &Object) -> Result<(), String> {
    let config = &server.config;
    let started = Instant::now();
    let mut attempts = 0_u32;
    loop {
        let put = uploader.put(object);
        let error = match tokio::time::timeout(config.put_timeout, put).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => error,
            Err(_) => "no answer within PUT_TIMEOUT".to_owned(),
        };
        tracing::warn!(key = object.key, error, "a put failed and will be tried again");
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
