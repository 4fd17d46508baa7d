//! Per-core budgets, the process's needs and the stop's schedule, derived once from [`Config`].
//!
//! Every bound is a setting or a constant of the module that it belongs to, with the reason for its
//! size. The constants here belong to executors and the process, which `core` and `control`, above
//! this module, create. The relations that other code relies on are asserted; `Config` has already
//! refused what would break them.

use std::time::Duration;

use crate::alloc;
use crate::batch;
use crate::budget::BODY_PADDING;
use crate::config::{Config, S3Client};
use crate::deadletter::DEAD_LETTER_HEAD_BYTES;
use crate::http::CONNECTION_BYTES;
use crate::http::body::DECODERS_BYTES_MAX;
use crate::http::h2::h2_bytes;
use crate::http::quotas::quota_bytes;
use crate::http::split::splitter_bytes;
use crate::net;
use crate::queue::job::JOB_COST_BYTES;
use crate::queue::run::SLOT_BYTES;
use crate::rt::{IO_MEMORY_BYTES, RINGS_PER_EXECUTOR};
use crate::spool;
use crate::tls::{CLIENT_CHAIN_BYTES, TLS_CONNECTION_BYTES, TLS_HANDSHAKE_BYTES};
use crate::upload::FILES_PER_WORKER;
use crate::upload::restore::RESTORERS;

/// Connections to the admin listener in total: a few scrapers, a load balancer's health checks, a
/// browser.
pub const ADMIN_CONNECTIONS_MAX: usize = 64;

/// Submission and completion queues of one executor's rings, including the sockets' ring. The
/// kernel counts them as locked memory of an unprivileged user. Measured on 6.18: three executors
/// need 576 KiB.
pub const QUEUES_BYTES: usize = 192 << 10;

/// glommio does not start an executor below this soft limit, even with privileges.
const GLOMMIO_MEMLOCK_LEAST: usize = 512 << 10;

/// File descriptors of one core besides connections and puts: 3 rings, eventfds, timers, the
/// listener, a connection that waits for a slot, open directories and the files of shared syncs
/// (about 20 counted, rounded up). [`FILES_PER_LISTENER`] has those of further addresses.
pub const CORE_FILES: usize = 64;

/// File descriptors of each address of `LISTEN` after the first, on each core: the listener,
/// control's duplicate of it, and a connection that waits for a slot.
pub const FILES_PER_LISTENER: usize = 3;

/// Descriptors of the process outside the data cores: standard streams, configuration, trust store,
/// name resolution, the control executor's own rings.
pub const PROCESS_FILES: usize = 64;

/// Threads of one executor: its own, glommio's blocking thread, the one that wakes it (see
/// `rt::waking`), and two workers that the kernel starts for operations that would block, one for
/// files and one for everything else. It starts more of those if it can.
pub const THREADS_PER_EXECUTOR: usize = 5;

/// Threads of the process outside the executors: the main one, the log writer, and those for
/// signals, reloads, free memory and the space on disks.
pub const PROCESS_THREADS: usize = 6;

/// Stack of the threads that this process starts: Rust's default, which does not depend on
/// `RLIMIT_STACK`.
pub const STACK_BYTES: usize = 2 << 20;

/// Address space of one executor besides its budgets: glommio's rings and registered memory, its
/// heap, and what the allocator reserves for a thread (a segment of 32 MiB, aligned).
pub const EXECUTOR_MAPPINGS_BYTES: usize = 96 << 20;

/// Per-core budgets, the process's needs, and the stop's schedule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Queue slots.
    pub queue_slots: usize,
    /// Bytes of admitted, unfinished requests, [`JOB_COST_BYTES`] per payload included.
    pub queue_bytes: usize,
    /// Bytes of bodies being read, decompressed or waiting for queue space.
    pub body_bytes: usize,
    /// Longest decompressed body.
    pub request_bytes: usize,
    /// Longest payload as it is stored.
    pub wrapped_payload_bytes: usize,
    pub connections: usize,
    /// Most memory of one connection, that of TLS included if any address has it.
    connection_bytes: usize,
    pub workers: usize,
    /// Most memory one core's clients can make it hold: budgets, connections, queue slots, the
    /// buffers of parsing and decompressing, and what is freed and not yet unmapped.
    pub core_memory_bytes: u64,
    /// File descriptors that the whole process needs when every limit is reached.
    pub files: u64,
    /// The fewest file descriptors with which a start makes sense: all workers, sixteen clients per
    /// core.
    pub files_least: u64,
    /// Threads of the whole process, the kernel's workers included.
    pub threads: usize,
    /// Address space of the whole process when every limit is reached, besides its code and what it
    /// uses at the start.
    pub address_space_bytes: u64,
    /// The longest file that it may have to write: an object, a spool segment, or the dead letters
    /// of a core at a stop.
    pub file_bytes: u64,
    /// Locked memory for every ring and for registering all I/O memory.
    pub memlock_bytes: u64,
    /// Locked memory without which the executors do not start.
    pub memlock_least: u64,
    pub stop: StopSchedule,
}

/// Times after the stop signal, ascending.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StopSchedule {
    /// Open connections are served until this time; then the queue closes and requests get 503.
    pub queue_close: Duration,
    /// Uploads stop; what is not stored is dead-lettered.
    pub upload_stop: Duration,
    /// The process has exited: `DRAIN_TIMEOUT`.
    pub exit: Duration,
}

impl Limits {
    /// # Panics
    /// If `config` breaks a relation that [`Config`] guarantees.
    pub fn new(config: &Config) -> Limits {
        let c = config;
        assert!(!c.cores.is_empty(), "a server without cores serves nothing");
        assert!(c.max_queue_bytes >= c.max_length, "a longest request must fit an empty queue");
        assert!(c.max_body_bytes / 2 >= c.max_length, "a body and its decompressed form must fit");
        // `MAX_QUEUE_BYTES` may equal `MAX_LENGTH`, and a body of that length with one payload must
        // still fit. So must two bodies, or one beside its payload with `META`, in `MAX_BODY_BYTES`.
        let (body, payload) = (c.max_length + BODY_PADDING, c.payload_bytes_max());
        let queue_bytes = c.max_queue_bytes.max(body.max(payload) + JOB_COST_BYTES);
        let body_bytes = c.max_body_bytes.max(body + body.max(payload));
        let tls = c.tls.as_ref().filter(|_| c.listen.iter().any(|listen| listen.tls));
        let secured_bytes = tls.map_or(0, |tls| {
            TLS_CONNECTION_BYTES + tls.client_ca.as_ref().map_or(0, |_| CLIENT_CHAIN_BYTES)
        });
        let connection_bytes = CONNECTION_BYTES + secured_bytes;
        let handshakes =
            tls.map_or(0, |tls| tls.handshakes_max.min(c.max_connections) * TLS_HANDSHAKE_BYTES);
        let connections = c.max_connections * connection_bytes;
        let slots = c.max_queue * SLOT_BYTES;
        let spool = c
            .spool
            .as_ref()
            .map_or(0, |spool| spool.pending + BODY_PADDING + spool::memory(c.request_bytes_max()));
        let batches = c.batch.as_ref().map_or(0, |batch| {
            let journal = c.spool.as_ref().map_or(0, |_| spool::JOURNAL_MEMORY);
            // Batches uploaded again after a crash, and a dead letter being written. The SDK's
            // client copies what it uploads.
            let copies = RESTORERS + 1;
            let copies = match c.s3.client {
                S3Client::Direct => copies,
                S3Client::Sdk => copies + RESTORERS + c.max_workers,
            };
            batch.memory + batch::MEMORY_BESIDE_BYTES + journal + copies * batch.bytes as usize
        });
        let spool_files = c.spool.as_ref().map_or(0, spool::files);
        let parsing = splitter_bytes(c.max_queue, c.max_length);
        let kept = parsing
            + DECODERS_BYTES_MAX
            + net::POOL_BYTES
            + quota_bytes(c)
            + h2_bytes(c)
            + alloc::WAITING_MAX;
        let core_files = |connections: usize| {
            let listeners = (c.listen.len() - 1) * FILES_PER_LISTENER;
            connections + c.max_workers * FILES_PER_WORKER + CORE_FILES + listeners + spool_files
        };
        let process_files = ADMIN_CONNECTIONS_MAX + PROCESS_FILES;
        let files = |connections| (c.cores.len() * core_files(connections) + process_files) as u64;
        // The control executor registers I/O memory like the cores.
        let executors = c.cores.len() + 1;
        let core_memory_bytes =
            (queue_bytes + body_bytes + connections + handshakes + slots + kept + spool + batches)
                as u64;
        // With a spool, one thread for each core's disk and one for orphaned spools.
        let spool_threads = c.spool.as_ref().map_or(0, |_| c.cores.len() + 1);
        let threads = executors * THREADS_PER_EXECUTOR + PROCESS_THREADS + spool_threads;
        let mapped = threads * STACK_BYTES + executors * EXECUTOR_MAPPINGS_BYTES;
        let core_memory = core_memory_bytes * c.cores.len() as u64;
        let held_at_stop = queue_bytes
            + c.max_queue * DEAD_LETTER_HEAD_BYTES
            + c.batch.as_ref().map_or(0, |batch| batch.memory);
        let segment = c.spool.as_ref().map_or(0, |spool| spool.segment);
        Limits {
            queue_slots: c.max_queue,
            queue_bytes,
            body_bytes,
            request_bytes: c.max_length,
            wrapped_payload_bytes: c.payload_bytes_max(),
            connections: c.max_connections,
            connection_bytes,
            workers: c.max_workers,
            core_memory_bytes,
            files: files(c.max_connections),
            files_least: files(c.max_connections.min(16)),
            threads,
            // A quarter more, because allocators leave gaps.
            address_space_bytes: core_memory + core_memory / 4 + mapped as u64,
            file_bytes: (held_at_stop as u64).max(segment),
            memlock_bytes: (executors * (RINGS_PER_EXECUTOR * IO_MEMORY_BYTES + QUEUES_BYTES))
                as u64,
            memlock_least: (executors * QUEUES_BYTES).max(GLOMMIO_MEMLOCK_LEAST) as u64,
            stop: StopSchedule::new(c.drain_timeout),
        }
    }

    /// The limits for a process that may open `descriptors` files (`None` is unlimited): after
    /// those for workers, admin listener and store are reserved, the rest bounds the connections.
    /// `cores` is as in `config`.
    pub fn for_descriptors(self, descriptors: Option<u64>, cores: usize) -> Limits {
        let missing = self.files.saturating_sub(descriptors.unwrap_or(u64::MAX));
        let fewer = (missing.div_ceil(cores as u64) as usize).min(self.connections - 1);
        Limits {
            connections: self.connections - fewer,
            core_memory_bytes: self.core_memory_bytes - (fewer * self.connection_bytes) as u64,
            ..self
        }
    }
}

impl StopSchedule {
    /// The schedule for a `DRAIN_TIMEOUT`. The last step, writing dead letters for what is not
    /// stored, gets max(2 s, 20 %), but never more than half, so that a short timeout still leaves
    /// time to upload.
    pub fn new(drain_timeout: Duration) -> StopSchedule {
        let half = drain_timeout / 2;
        let last_step = (drain_timeout / 5).max(Duration::from_secs(2)).min(half);
        let stop = StopSchedule {
            queue_close: half,
            upload_stop: drain_timeout - last_step,
            exit: drain_timeout,
        };
        assert!(stop.queue_close <= stop.upload_stop, "the queue closes before uploads stop");
        assert!(stop.upload_stop < stop.exit, "the dead letter gets some time");
        stop
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule_ms(drain_ms: u64) -> (u128, u128, u128) {
        let s = StopSchedule::new(Duration::from_millis(drain_ms));
        (s.queue_close.as_millis(), s.upload_stop.as_millis(), s.exit.as_millis())
    }

    #[test]
    fn the_last_step_gets_two_seconds_or_a_fifth_but_never_more_than_half() {
        assert_eq!(schedule_ms(25_000), (12_500, 20_000, 25_000));
        assert_eq!(schedule_ms(10_000), (5_000, 8_000, 10_000));
        assert_eq!(schedule_ms(5_000), (2_500, 3_000, 5_000));
        assert_eq!(schedule_ms(4_000), (2_000, 2_000, 4_000));
        assert_eq!(schedule_ms(1_000), (500, 500, 1_000));
        assert_eq!(schedule_ms(3_600_000), (1_800_000, 2_880_000, 3_600_000));
    }

    #[test]
    fn defaults_on_one_core_add_up() {
        let mut config = Config::from_settings(&[]).unwrap();
        config.cores = vec![0];
        let limits = Limits::new(&config);
        // 64 MiB queue + 64 MiB bodies + 16384 connections of 56 KiB + 10000 slots of 96 bytes + two
        // zstd windows of 8 MiB + 4 MiB of receive buffers + 128 MiB that wait to be unmapped + for
        // parsing a segment of 32 KiB at 58 bytes each, 512 KiB of spans, and spans of twice 10000
        // payloads and one segment.
        let parsing = 58 * (32 << 10) + 256 + (512 << 10) + (2 * 10_000 + (16 << 10)) * 8;
        let kept = (16 << 20) + (4 << 20) + (128 << 20) + parsing;
        assert_eq!(
            limits.core_memory_bytes,
            (64 << 20) + (64 << 20) + (896 << 20) + 960_000 + kept
        );
        assert_eq!(limits.files, 16_384 + 2 * 32 + 64 + 64 + 64);
        assert_eq!(limits.files_least, 16 + 2 * 32 + 64 + 64 + 64);
        assert_eq!(limits.memlock_bytes, 2 * (3 * (512 << 10) + (192 << 10)));
        assert_eq!(limits.memlock_least, 512 << 10);
    }

    #[test]
    fn with_tls_each_connection_may_hold_more() {
        let memory = |settings: &[(&str, &str)]| {
            let mut config = Config::from_settings(settings).unwrap();
            config.cores = vec![0];
            let limits = Limits::new(&config);
            let fewer = limits.clone().for_descriptors(Some(limits.files - 1), 1);
            (limits.core_memory_bytes, limits.core_memory_bytes - fewer.core_memory_bytes)
        };
        let (plain, of_one) = memory(&[]);
        assert_eq!(of_one, CONNECTION_BYTES as u64);
        let cert = ("TLS_CERT", "a.pem");
        let off = ("H2", "off");
        let (tls, of_one) = memory(&[("LISTEN", "127.0.0.1:1,https://127.0.0.1:2"), cert, off]);
        let handshakes = 512 * TLS_HANDSHAKE_BYTES as u64;
        assert_eq!(tls - plain, 16_384 * TLS_CONNECTION_BYTES as u64 + handshakes);
        assert_eq!(of_one, (CONNECTION_BYTES + TLS_CONNECTION_BYTES) as u64);
        let settings = [
            ("LISTEN", "https://127.0.0.1:2"),
            cert,
            off,
            ("TLS_CLIENT_CA", "b.pem"),
            ("TLS_HANDSHAKES", "1"),
        ];
        let (certified, of_one) = memory(&settings);
        let each = TLS_CONNECTION_BYTES + CLIENT_CHAIN_BYTES;
        assert_eq!(of_one, (CONNECTION_BYTES + each) as u64);
        assert_eq!(certified - plain, (16_384 * each + TLS_HANDSHAKE_BYTES) as u64);
        assert_eq!(memory(&[("ADMIN_LISTEN", "https://127.0.0.1:2"), cert]).0, plain);
    }

    #[test]
    fn http_2_may_hold_more_by_its_connections_and_their_streams() {
        use crate::http::HEAD_BYTES_MAX;
        use crate::http::h2::{H2_CONNECTION_BYTES, H2_STREAM_BYTES, UNACCEPTED_RESETS_MAX};
        let memory = |settings: &[(&str, &str)]| {
            let mut config = Config::from_settings(settings).unwrap();
            config.cores = vec![0];
            Limits::new(&config).core_memory_bytes
        };
        let all = ("H2", "all");
        let more = |settings: &[(&str, &str)]| memory(settings) - memory(&[]);
        let of = |connections: usize, streams: usize, stream: usize| {
            let each = H2_CONNECTION_BYTES + streams * stream;
            (connections * each + (streams + UNACCEPTED_RESETS_MAX) * HEAD_BYTES_MAX) as u64
        };
        assert_eq!(more(&[("H2", "tls")]), 0, "no address has TLS");
        assert_eq!(more(&[all]), of(256, 100, H2_STREAM_BYTES));
        let few = [all, ("H2_CONNECTIONS", "7"), ("H2_STREAMS", "3")];
        assert_eq!(more(&few), of(7, 3, H2_STREAM_BYTES));
        let meta = ("META", "client");
        let with_meta = memory(&[all, meta]) - memory(&[meta]);
        assert_eq!(with_meta, of(256, 100, H2_STREAM_BYTES + HEAD_BYTES_MAX));
        let bounded =
            memory(&[all, ("MAX_CONNECTIONS", "10")]) - memory(&[("MAX_CONNECTIONS", "10")]);
        assert_eq!(bounded, of(10, 100, H2_STREAM_BYTES));
    }

    #[test]
    fn connections_are_as_many_as_there_are_descriptors_for() {
        let mut config = Config::from_settings(&[]).unwrap();
        for cores in [1, 2, 7] {
            config.cores = (0..cores).collect();
            let wanted = Limits::new(&config);
            let with = |files| Limits::new(&config).for_descriptors(files, cores).connections;
            assert_eq!(Limits::new(&config).for_descriptors(None, cores), wanted);
            assert_eq!(with(Some(wanted.files)), 16_384);
            assert_eq!(with(Some(wanted.files + 1)), 16_384);
            assert_eq!(with(Some(wanted.files - 1)), 16_383);
            assert_eq!(with(Some(wanted.files_least)), 16);
            assert_eq!(with(Some(0)), 1, "not started with; no panic either");
            // What is set aside stays aside: all the connections and the rest fit.
            for files in wanted.files_least..wanted.files_least + 50 {
                let rest = wanted.files - 16_384 * cores as u64;
                assert!(with(Some(files)) as u64 * cores as u64 + rest <= files);
            }
        }
        config.cores = vec![0];
        let limits = Limits::new(&config).for_descriptors(Some(300), 1);
        assert_eq!(limits.connections, 300 - 2 * 32 - 64 - 64 - 64);
        let spared = (16_384 - limits.connections) * CONNECTION_BYTES;
        assert_eq!(
            limits.core_memory_bytes + spared as u64,
            Limits::new(&config).core_memory_bytes
        );
    }

    #[test]
    fn a_longest_body_of_one_payload_fits_the_smallest_queue() {
        let sizes = [("MAX_QUEUE_BYTES", "64KiB"), ("MAX_LENGTH", "64KiB")];
        let limits = Limits::new(&Config::from_settings(&sizes).unwrap());
        assert_eq!(limits.queue_bytes, limits.request_bytes + BODY_PADDING + JOB_COST_BYTES);
        let larger = [("MAX_QUEUE_BYTES", "128KiB"), ("MAX_LENGTH", "64KiB")];
        assert_eq!(Limits::new(&Config::from_settings(&larger).unwrap()).queue_bytes, 128 << 10);
    }

    #[test]
    fn two_longest_bodies_fit_the_smallest_memory_for_bodies() {
        let least = [("MAX_BODY_BYTES", "2MiB"), ("MAX_LENGTH", "1MiB")];
        let limits = Limits::new(&Config::from_settings(&least).unwrap());
        assert_eq!(limits.body_bytes, 2 * ((1 << 20) + BODY_PADDING));
        let larger = [("MAX_BODY_BYTES", "3MiB"), ("MAX_LENGTH", "1MiB")];
        assert_eq!(Limits::new(&Config::from_settings(&larger).unwrap()).body_bytes, 3 << 20);
    }

    #[test]
    fn the_largest_settings_do_not_overflow() {
        let config = Config::from_settings(&[
            ("MAX_QUEUE", "10000000"),
            ("MAX_QUEUE_BYTES", "1TiB"),
            ("MAX_BODY_BYTES", "1TiB"),
            ("MAX_CONNECTIONS", "1000000"),
            ("MAX_WORKERS", "4096"),
            ("MAX_LENGTH", "1GiB"),
        ]);
        let limits = Limits::new(&config.unwrap());
        assert!(limits.core_memory_bytes > 2 << 40);
    }
}
