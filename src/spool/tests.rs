use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::time::Duration;

use crate::rt;
use crate::rt::sleep;
use futures_lite::future::poll_once;

use super::batches::ledger::{Ledger, is_journal, journals_of};
use super::format::record::{IntentRecord, SpoolRecord};
use super::format::runs::MemberRun;
use super::format::scan::{ScanStep, walk};
use super::format::{Checkpoint, DATA_START, group_records, group_requests};
use super::power::{self, CutDisk, DiskEvent};
use super::reader::LOOK_EVERY;
use super::segment::{CheckpointMode, Payloads};
use super::takeover::instances::{self, Home};
use super::takeover::offers::OrphanedSpool;
use super::*;
use crate::budget::Budget;
use crate::key::{RequestSource, RequestValuesWriter};
use crate::metrics::tokens::{TokenId, TokenMetrics};
use crate::queue::job::{Job, Payload};
use crate::queue::job_queue::JobQueue;
use crate::queue::outcome::Outcome;

mod batches;

const SEGMENT_BYTES: u64 = DATA_START + 16 * 4096;

/// A spool on a disk of its own, with a queue and no workers.
struct Rig {
    spool: Rc<Spool>,
    queue: Rc<JobQueue>,
    admission: Rc<Admission>,
    bodies: Rc<Budget>,
    cells: &'static CoreCells,
    seq: Cell<u64>,
}

#[derive(Clone)]
struct Size {
    slots: usize,
    segments: u64,
    segment: u64,
    journal_reserve: u64,
    sync_fault: f64,
    checkpoint: Duration,
    linger: Duration,
}

const SMALL: Size = Size {
    slots: 1_000,
    segments: 100,
    segment: SEGMENT_BYTES,
    journal_reserve: 0,
    sync_fault: 0.0,
    checkpoint: Duration::from_millis(10),
    linger: Duration::ZERO,
};

impl Rig {
    async fn new(home: &Home, orphans: &Arc<Takeover>, node: &str, size: Size) -> Rig {
        Rig::with(home, orphans, node, size, 0, None)
    }

    /// One of two cores.
    fn with(
        home: &Home,
        orphans: &Arc<Takeover>,
        node: &str,
        size: Size,
        core: usize,
        keys: Option<&str>,
    ) -> Rig {
        let cells = &crate::metrics::cells(1)[0];
        let queue = Rc::new(JobQueue::new(size.slots));
        let admission = Admission::new(queue.clone(), 1 << 20, cells);
        let setup = SpoolSetup {
            options: SpoolOptions {
                dir: "unused".into(),
                max: size.segments * size.segment,
                segment: size.segment,
                pending: 1 << 20,
                linger: size.linger,
                checkpoint: size.checkpoint,
            },
            dir: home.core_dir(core),
            takeover: orphans.clone(),
            cores: 1,
            cells,
            journal_reserve: size.journal_reserve,
            keys: keys.map(str::to_owned),
            sync_fault: size.sync_fault,
            seed: 1,
            thread: DiskThread::spawn("test").unwrap(),
        };
        let origin = Origin::new(node.into(), core);
        let spool = Spool::open(setup, origin, admission.clone());
        let bodies = Budget::new(1 << 20, &cells.body_bytes);
        Rig { spool, queue, admission, bodies, cells, seq: Cell::new(0) }
    }

    /// Submits one request.
    fn submit(&self, payloads: &[&[u8]]) -> Result<(Stamp, Rc<Ticket>), SpoolError> {
        self.submit_with(payloads, &RequestValues::default())
    }

    fn submit_with(
        &self,
        payloads: &[&[u8]],
        values: &RequestValues,
    ) -> Result<(Stamp, Rc<Ticket>), SpoolError> {
        let body = payloads.concat();
        let mut charged = ChargedBytes::new(&self.bodies, body.len()).unwrap();
        charged.extend(&body).unwrap();
        let mut end = 0;
        let mut span = |payload: &&[u8]| {
            let start = end;
            end += payload.len() as u32;
            Span { start, end }
        };
        let spans: Vec<Span> = payloads.iter().map(&mut span).collect();
        let seq = self.seq.replace(self.seq.get() + payloads.len() as u64);
        let first = Stamp { unix_nanos: 1_000_000 + seq, seq };
        Ok((first, self.spool.submit(first, charged, &spans, values, None)?))
    }

    async fn send(&self, payloads: &[&[u8]]) -> Result<(), SpoolError> {
        let (first, ticket) = self.submit(payloads)?;
        ticket.wait(&Cell::new(false)).await.unwrap()?;
        power::note(|| DiskEvent::Acknowledged { first, count: payloads.len() as u64 });
        Ok(())
    }

    /// The next job, without completing it.
    async fn pop(&self) -> Job {
        assert!(self.queue.some(0).await, "open");
        let job = self.queue.take().expect("there is one");
        self.admission.taken(1);
        job
    }

    /// Pops all queued jobs.
    async fn hold(&self, held: &mut Vec<Job>) {
        while let Some(job) = self.queue.take() {
            self.admission.taken(1);
            held.push(job);
        }
    }

    /// Stores some of the held jobs, in random order and mostly soon. Every third payload is always
    /// a single object, also after a crash: a stored single object whose completion was lost would
    /// be stored twice if it joined a batch. The others are batched.
    async fn work(
        &self,
        random: &mut fastrand::Rng,
        held: &mut Vec<Job>,
        batches: &mut Vec<Task<()>>,
    ) {
        while !held.is_empty() && random.u8(..) < 200 {
            random.shuffle(held);
            if !held[0].stamp.seq.is_multiple_of(3) {
                batches.push(self.store_batch(random, held));
            } else {
                let job = held.swap_remove(0);
                power::note(|| DiskEvent::Stored { stamp: job.stamp });
                job.complete(Outcome::Stored);
            }
        }
        if random.u8(..) < 80 {
            sleep(Duration::from_millis(random.u64(1..5))).await;
        }
    }

    /// Takes some of the held jobs, all of one directory, and stores them as one object.
    fn store_batch(&self, random: &mut fastrand::Rng, held: &mut Vec<Job>) -> Task<()> {
        let home = held[0].record.as_ref().unwrap().core_dir().clone();
        let (mut members, mut seqs) = (Members::of(&home), Vec::new());
        let size = random.usize(1..8);
        held.retain(|job| {
            let record = job.record.as_ref().unwrap();
            let takes = Rc::ptr_eq(record.core_dir(), &home)
                && !job.stamp.seq.is_multiple_of(3)
                && seqs.len() < size;
            if takes {
                assert!(members.push(record, job));
                seqs.push(job.stamp.seq);
            }
            !takes
        });
        let (spool, members) = (self.spool.clone(), Rc::new(members));
        let key = format!("batch-{:016x}", random.u64(..));
        BATCHES.with_borrow_mut(|batches| batches.insert(key.clone(), seqs.clone()));
        let (before, after) = (random.u64(..2), random.u64(..3));
        rt::spawn(async move {
            let intent = loop {
                match spool.intend(&key, "form", &members).await {
                    Ok(intent) => break intent,
                    Err(error) => assert!(matches!(error, SpoolError::Failed(_)), "{error}"),
                }
                sleep(Duration::from_millis(1)).await;
            };
            sleep(Duration::from_millis(before)).await;
            power::note(|| DiskEvent::Put { key, seqs });
            sleep(Duration::from_millis(after)).await;
            spool.complete_batch(intent);
        })
    }

    /// Pops and completes `count` jobs. Returns their keys and payloads.
    async fn store(&self, count: usize) -> Vec<(String, Vec<u8>)> {
        let mut stored = Vec::new();
        for _ in 0..count {
            let job = self.pop().await;
            stored.push((
                job.origin(&self.spool.origin).key(job.stamp, &job.payload),
                job.payload.to_vec(),
            ));
            power::note(|| DiskEvent::Stored { stamp: job.stamp });
            job.complete(Outcome::Stored);
        }
        stored
    }

    async fn stop(&self, rest: &mut Vec<Job>) {
        self.spool.stop_reading();
        self.admission.close();
        self.spool.close();
        self.spool.stop(rest, &[], || None).await;
    }

    /// Ends its tasks as if the process had died; files stay as they are.
    async fn crash(self) {
        for task in self.spool.tasks.take() {
            task.cancel().await;
        }
        // A call that it was in also holds locks; the end of a process ends it.
        self.spool.disk.thread.run(|| Ok(())).await.unwrap();
        // They hold the locks of orphaned spools, and each other.
        while self.queue.take().is_some() {}
        self.spool.dirs().iter().for_each(|dir| dir.leave());
    }
}

/// The disk for segments that belong to no spool.
fn disk() -> Rc<super::disk::SpoolDisk> {
    let health = DiskHealth::new(&crate::metrics::cells(1)[0], "unused".into());
    Rc::new(super::disk::SpoolDisk::new(DiskThread::spawn("test").unwrap(), health))
}

fn run<T>(test: impl Future<Output = T>) -> T {
    rt::run_test(test)
}

fn segments(home: &Home) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> =
        fs::read_dir(home.core_dir(0)).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

/// The segments in the first core's directory of the orphaned spool of `node`, oldest first.
fn orphaned_segments(spool_dir: &Path, node: &str) -> Vec<PathBuf> {
    let prefix = format!("{node}~");
    let mut spools = fs::read_dir(spool_dir).unwrap().map(|entry| entry.unwrap());
    let spool = spools.find(|entry| entry.file_name().to_string_lossy().starts_with(&prefix));
    let files = fs::read_dir(spool.unwrap().path().join("core-0")).unwrap();
    let mut files: Vec<_> = files
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == instances::SEGMENT))
        .collect();
    files.sort();
    files
}

/// What `home` takes over now.
fn take_over(home: &Home) -> (Vec<Arc<OrphanedSpool>>, Arc<Takeover>) {
    let (mut taken, orphans) = (Vec::new(), Arc::<Takeover>::default());
    home.take_over(&mut taken, &orphans).unwrap();
    (taken, orphans)
}

async fn until(what: &str, mut done: impl FnMut() -> bool) {
    for _ in 0..2_000 {
        if done() {
            return;
        }
        sleep(Duration::from_millis(5)).await;
    }
    panic!("timed out waiting until {what}");
}

#[test]
fn an_acknowledged_payload_is_on_disk_until_it_is_stored() {
    run(async {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::open(dir.path(), "n", &[0]).unwrap();
        let rig = Rig::new(&home, &Arc::default(), "n", SMALL).await;
        let (_, ticket) = rig.submit(&[b"1", b"[2]"]).unwrap();
        assert!(rig.queue.is_empty(), "not before its sync");
        ticket.wait(&Cell::new(false)).await.unwrap().unwrap();
        assert_eq!((rig.queue.len(), rig.cells.spool_payloads.value()), (2, 2));
        assert_eq!(rig.cells.spool_bytes.value(), 4, "of the payloads, not of the files");
        let stored = rig.store(2).await;
        assert_eq!(stored[0], ("1000000-n-0-0.json".into(), b"1".to_vec()));
        assert_eq!(stored[1], ("1000000-n-0-1.json".into(), b"[2]".to_vec()));
        assert_eq!((rig.cells.spool_payloads.value(), rig.cells.spool_bytes.value()), (0, 0));
        assert_eq!(rig.cells.spool_pending_bytes.value(), 0);
        rig.stop(&mut Vec::new()).await;
        assert_eq!(segments(&home), Vec::<PathBuf>::new());
        home.leave();
        assert!(!dir.path().join("n").exists());
    });
}

#[test]
fn segments_are_reused_within_spool_max() {
    run(async {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::open(dir.path(), "n", &[0]).unwrap();
        let size = Size { segments: 3, ..SMALL };
        let rig = Rig::new(&home, &Arc::default(), "n", size).await;
        // 16 groups fill a segment.
        for round in 0..200 {
            rig.send(&[b"\"payload\""]).await.unwrap();
            rig.store(1).await;
            assert!(segments(&home).len() <= 3, "{round}");
        }
        for _ in 0..2 {
            let mut sent = 0;
            let full = loop {
                match rig.send(&[b"\"held\""]).await {
                    Ok(()) => sent += 1,
                    Err(error) => break error,
                }
            };
            assert_eq!(full, SpoolError::Full);
            assert!((32..=48).contains(&sent), "{sent}");
            assert!(!rig.cells.spool_is_failing(), "full is not broken");
            assert!(not_ready(rig.cells).unwrap().contains("SPOOL_MAX"));
            rig.store(sent).await;
            until("there is room again", || rig.spool.own.has_spare()).await;
        }
    });
}

/// Rows: what fills the spool for a while. Then it has room, and takes no more trouble to get some.
#[test]
fn what_was_full_once_has_room_again() {
    for filled_by in ["payloads", "an orphaned file", "a file of its own"] {
        run(async {
            let dir = tempfile::tempdir().unwrap();
            let mut home = Home::open(dir.path(), "n", &[0]).unwrap();
            let (mut orphans, mut _taken) = (Arc::<Takeover>::default(), Vec::new());
            if filled_by == "an orphaned file" {
                let rig = Rig::new(&home, &orphans, "n", SMALL).await;
                rig.send(&[b"\"left\""]).await.unwrap();
                rig.crash().await;
                drop(home);
                home = Home::open(dir.path(), "m", &[0]).unwrap();
                (_taken, orphans) = take_over(&home);
            }
            let size = Size { segments: 3, ..SMALL };
            let rig = Rig::new(&home, &orphans, "m", size).await;
            // What is there under the name of a file that could not be removed.
            let stubborn = |file: &Path| {
                fs::remove_file(file).unwrap();
                fs::create_dir(file).unwrap();
                file.to_owned()
            };
            let mut in_the_way = None;
            match filled_by {
                "payloads" => {}
                "an orphaned file" => {
                    until("it is read", || rig.queue.len() == 1).await;
                    let segments = rig.spool.taken.segments();
                    in_the_way = Some(stubborn(segments[0].path()));
                    drop(segments);
                    rig.store(1).await;
                    until("it is finished", || rig.spool.taken.segments().is_empty()).await;
                    sleep(Duration::from_millis(50)).await;
                    assert!(orphans.bytes() > 0, "it is still there");
                }
                _ => {
                    until("there is a spare", || rig.spool.own.has_spare()).await;
                    let spare = rig.spool.own.next_spare().unwrap();
                    rig.spool.own.remove_spare(&spare);
                    in_the_way = Some(stubborn(spare.path()));
                    rig.spool.discard(&spare).await;
                }
            }
            let mut sent = 0;
            while rig.send(&[b"\"held\""]).await.is_ok() {
                sent += 1;
            }
            let segments = if in_the_way.is_some() { 2 } else { 3 };
            let most = 16 * segments;
            assert!((most - 16..=most).contains(&sent), "{filled_by}: {sent}");
            assert!(rig.spool.own.is_short(), "{filled_by}");
            rig.store(sent).await;
            if let Some(path) = in_the_way {
                fs::remove_dir(path).unwrap();
            }
            until("there is room", || not_ready(rig.cells).is_none()).await;
            rig.send(&[b"1"]).await.unwrap();
            until("nothing is short", || !rig.spool.own.is_short()).await;
            until("nothing counts", || orphans.bytes() == 0).await;
            until("all of it is there again", || {
                rig.spool.undiscarded_bytes() == 0 && rig.spool.own.undiscarded.borrow().is_empty()
            })
            .await;
        });
    }
}

/// Rows: whether something else has the name of a file that is away at first. It is read once it can be, and those behind
/// it are not kept waiting.
#[test]
fn an_orphaned_segment_that_cannot_be_read_is_tried_again() {
    for has_other in [false, true] {
        run(async {
            let dir = tempfile::tempdir().unwrap();
            let home = Home::open(dir.path(), "n", &[0]).unwrap();
            let rig = Rig::new(&home, &Arc::default(), "n", SMALL).await;
            for number in 0..20 {
                rig.send(&[format!("\"{number}\"").as_bytes()]).await.unwrap();
            }
            assert!(segments(&home).len() >= 2, "there is one behind it");
            rig.crash().await;
            drop(home);
            let home = Home::open(dir.path(), "m", &[0]).unwrap();
            let (_taken, orphans) = take_over(&home);
            let file = orphaned_segments(dir.path(), "n").swap_remove(0);
            let aside = dir.path().join("aside");
            fs::rename(&file, &aside).unwrap();
            if has_other {
                fs::create_dir(&file).unwrap();
            }
            let rig = Rig::new(&home, &orphans, "m", SMALL).await;
            until("it is seen", || rig.cells.spool_unreadable.value() == 1).await;
            until("the one behind it is read", || rig.queue.len() == 4).await;
            if has_other {
                fs::remove_dir(&file).unwrap();
            }
            fs::rename(&aside, &file).unwrap();
            until("all are read", || rig.queue.len() == 20).await;
            until("none waits", || rig.cells.spool_unreadable.value() == 0).await;
            rig.store(20).await;
            until("nothing is left", || orphans.bytes() == 0).await;
        });
    }
}

/// A segment fills under a store that takes everything, and is used again.
#[test]
fn a_spool_is_full_soon_only_if_payloads_stay_in_it() {
    run(async {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::open(dir.path(), "n", &[0]).unwrap();
        let rig = Rig::new(&home, &Arc::default(), "n", SMALL).await;
        let start = rt::now();
        let at = |second: u64| start + Duration::from_secs(second);
        for second in 0..30 {
            rig.send(&[b"1", b"2"]).await.unwrap();
            rig.store(2).await;
            assert_eq!(rig.spool.sample(at(second)), None, "after {second} s");
        }
        let mut said = None;
        for second in 30..60 {
            rig.send(&[b"1", b"2"]).await.unwrap();
            rig.store(1).await;
            said = rig.spool.sample(at(second));
        }
        assert!(said.is_some_and(|left| left > Duration::from_secs(60)), "{said:?}");
    });
}

/// The keeper looks only when it is told to, so the group that fills half of a segment tells it.
#[test]
fn the_next_segment_is_created_when_one_is_half_full() {
    run(async {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::open(dir.path(), "n", &[0]).unwrap();
        let (segment, checkpoint) = (DATA_START + 64 * 4096, Duration::from_secs(3_600));
        let size = Size { segment, checkpoint, ..SMALL };
        let rig = Rig::new(&home, &Arc::default(), "n", size).await;
        // Each group takes a block, and the first ones of a segment hold its head.
        let (heads, blocks) = (DATA_START / 4096, segment / 4096);
        // The keeper may have begun one more while there was none at all.
        rig.send(&[b"1"]).await.unwrap();
        sleep(Duration::from_millis(20)).await;
        for spare in rig.spool.own.take_spares() {
            rig.spool.discard(&spare).await;
        }
        for group in 2..=blocks - heads {
            assert!(!rig.spool.own.has_spare() && !rig.spool.needs_spare(), "{group}");
            rig.send(&[b"1"]).await.unwrap();
            let is_half_full = 2 * (heads + group) > blocks;
            assert_eq!(rig.spool.own.filling().unwrap().is_half_full(), is_half_full, "{group}");
            if is_half_full {
                break;
            }
            sleep(Duration::from_millis(5)).await;
        }
        until("there is a spare", || rig.spool.own.has_spare()).await;
        assert!(!rig.spool.needs_spare());
        let groups = rig.queue.len();
        assert!(2 * (heads + groups as u64) > blocks && 2 * (heads + groups as u64 - 1) <= blocks);
        rig.store(groups).await;
    });
}

/// Groups are written faster than a segment is prepared, in its first generation and in later ones.
#[test]
fn segments_are_prepared_while_they_are_filled() {
    run(async {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::open(dir.path(), "n", &[0]).unwrap();
        let size = Size { slots: 10, segments: 3, segment: DATA_START + (4 << 20), ..SMALL };
        let rig = Rig::new(&home, &Arc::default(), "n", size.clone()).await;
        assert!(not_ready(rig.cells).unwrap().contains("being prepared"));
        let current = || rig.spool.own.last().unwrap();
        rig.send(&[b"\"first\""]).await.unwrap();
        assert!(
            current().zeros.prepared.get() < size.segment / 2,
            "the request does not wait for it"
        );
        rig.store(1).await;
        until("it is ready", || not_ready(rig.cells).is_none()).await;
        let text = |n: u64| format!("\"{n}-{}\"", "x".repeat(n as usize % 20_000)).into_bytes();
        // Each round fills a segment, so the third round reuses one.
        for round in 0..3 {
            let numbers = round * 400..round * 400 + 400;
            for n in numbers.clone() {
                rig.send(&[&text(n)]).await.unwrap();
            }
            let stored: BTreeSet<_> = rig.store(400).await.into_iter().map(|(_, p)| p).collect();
            assert!(stored == numbers.map(text).collect(), "round {round}");
        }
        until("all is prepared", || {
            let segments = [rig.spool.own.segments(), rig.spool.own.spares()];
            segments.concat().iter().all(|segment| segment.zeros.prepared.get() == size.segment)
        })
        .await;
        // A crash in a new segment.
        let numbers = 2_000..2_300;
        for n in numbers.clone() {
            rig.send(&[&text(n)]).await.unwrap();
        }
        rig.crash().await;
        drop(home);
        let home = Home::open(dir.path(), "m", &[0]).unwrap();
        let (_taken, orphans) = take_over(&home);
        let rig = Rig::new(&home, &orphans, "m", size).await;
        let stored: BTreeSet<_> = rig.store(300).await.into_iter().map(|(_, p)| p).collect();
        assert!(stored == numbers.map(text).collect());
        until("all is replayed", || orphans.bytes() == 0).await;
        assert_eq!((rig.cells.payloads_lost.value(), rig.cells.spool_bytes.value()), (0, 0));
        assert!(rig.queue.is_empty());
    });
}

/// Zeros never overwrite a group: the writer waits for a step in flight, and a dropped step ends
/// the segment.
#[test]
fn zeros_never_land_on_a_group() {
    run(async {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("1.seg");
        let bytes = DATA_START + (1 << 20);
        let segment = Rc::new(Segment::create(&path, bytes, DATA_START, disk()).await.unwrap());
        let step = rt::spawn({
            let segment = segment.clone();
            async move { segment.prepare_step().await }
        });
        futures_lite::future::yield_now().await;
        assert!(segment.zeros.in_flight.get());
        segment.claim(DATA_START + 4096).await.unwrap();
        assert!(!segment.zeros.in_flight.get(), "waited for");
        step.await.unwrap();
        let prepared = segment.zeros.prepared.get();
        assert_eq!(prepared, DATA_START + (8 << 10), "by the step");
        segment.claim(prepared + (64 << 10)).await.unwrap();
        assert_eq!(
            segment.zeros.prepared.get(),
            prepared + (64 << 10),
            "the next step goes on behind"
        );
        assert!(poll_once(segment.prepare_step()).await.is_none(), "dropped in flight");
        assert!(segment.claim(bytes).await.is_err());
        segment.claim(prepared).await.expect("what was claimed before stays so");
    });
}

/// The writer waits for at most one of many steps in a row.
#[test]
fn a_claim_waits_for_one_step() {
    run(async {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("1.seg");
        let bytes = DATA_START + (8 << 20);
        let segment = Rc::new(Segment::create(&path, bytes, DATA_START, disk()).await.unwrap());
        let preparing = rt::spawn({
            let segment = segment.clone();
            async move {
                while segment.zeros.prepared.get() < bytes {
                    segment.prepare_step().await.unwrap();
                }
            }
        });
        futures_lite::future::yield_now().await;
        for _ in 0..20 {
            let before = segment.zeros.prepared.get();
            segment.claim(before + 4096 * 10).await.unwrap();
            assert_eq!(segment.zeros.prepared.get(), before + 4096 * 10, "not after more steps");
            sleep(Duration::from_millis(1)).await;
        }
        preparing.await;
    });
}

#[test]
fn with_a_full_queue_payloads_wait_on_disk_in_order() {
    run(async {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::open(dir.path(), "n", &[0]).unwrap();
        let size = Size { slots: 5, ..SMALL };
        let rig = Rig::new(&home, &Arc::default(), "n", size).await;
        let mut expected = Vec::new();
        for request in 0..100 {
            let payloads = [format!("[{request},1]"), format!("[{request},2]")];
            rig.send(&[payloads[0].as_bytes(), payloads[1].as_bytes()]).await.unwrap();
            expected.extend(payloads);
        }
        assert_eq!(rig.cells.spool_overflowing.value(), 1);
        assert!(rig.queue.len() <= 5);
        assert_eq!(rig.cells.payloads_accepted.value(), 200);
        let stored = rig.store(200).await;
        let payloads: Vec<_> =
            stored.iter().map(|(_, p)| String::from_utf8(p.clone()).unwrap()).collect();
        assert_eq!(payloads, expected);
        let keys: BTreeSet<_> = stored.iter().map(|(key, _)| key).collect();
        assert_eq!(keys.len(), 200);
        until("the reader has caught up", || rig.cells.spool_overflowing.value() == 0).await;
        assert_eq!((rig.cells.spool_payloads.value(), rig.cells.queue_bytes.value()), (0, 0));
        rig.send(&[b"7"]).await.unwrap();
        assert_eq!(rig.store(1).await[0].1, b"7", "and it is queued directly again");
    });
}

#[test]
fn payloads_are_counted_by_token_although_nobody_waits_for_them() {
    run(async {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::open(dir.path(), "n", &[0]).unwrap();
        let rig = Rig::new(&home, &Arc::default(), "n", SMALL).await;
        let tokens = TokenMetrics::leaked(1).core(0).accepted(TokenId::UNNAMED);
        let mut body = ChargedBytes::new(&rig.bodies, 3).unwrap();
        body.extend(b"123").unwrap();
        let spans = [Span { start: 0, end: 1 }, Span { start: 1, end: 3 }];
        let first = Stamp { unix_nanos: 1, seq: 0 };
        drop(
            rig.spool.submit(first, body, &spans, &RequestValues::default(), Some(tokens)).unwrap(),
        );
        assert_eq!(tokens.counted(), (0, 0));
        until("they are accepted", || rig.cells.payloads_accepted.value() == 2).await;
        assert_eq!(tokens.counted(), (2, 3));
    });
}

#[test]
fn all_requests_that_linger_share_one_sync() {
    run(async {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::open(dir.path(), "n", &[0]).unwrap();
        let size = Size { linger: Duration::from_millis(20), ..SMALL };
        let rig = Rig::new(&home, &Arc::default(), "n", size).await;
        for syncs in [1, 2] {
            let tickets: Vec<_> = (0..40).map(|_| rig.submit(&[b"1"]).unwrap().1).collect();
            for ticket in tickets {
                ticket.wait(&Cell::new(false)).await.unwrap().unwrap();
            }
            assert_eq!(rig.cells.spool_syncs.value(), syncs);
        }
    });
}

#[test]
fn a_failed_sync_uploads_nothing_and_is_not_replayed() {
    run(async {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::open(dir.path(), "n", &[0]).unwrap();
        let size = Size { sync_fault: 0.3, ..SMALL };
        let rig = Rig::new(&home, &Arc::default(), "n", size).await;
        let (mut acknowledged, mut failed) = (BTreeSet::new(), 0);
        for n in 0..200 {
            let payload = n.to_string().into_bytes();
            match rig.send(&[&payload]).await {
                Ok(()) => drop(acknowledged.insert(payload)),
                Err(error) => {
                    assert!(matches!(error, SpoolError::Failed(_)), "{error}");
                    failed += 1;
                    until("it is retried", || !rig.cells.spool_is_failing()).await;
                }
            }
        }
        assert!(failed > 20, "{failed}");
        assert_eq!(rig.queue.len(), acknowledged.len());
        until("a checkpoint is written", || {
            rig.spool.own.segments().iter().all(|segment| !segment.is_dirty())
        })
        .await;
        sleep(Duration::from_millis(50)).await;
        rig.crash().await;
        drop(home);
        let home = Home::open(dir.path(), "m", &[0]).unwrap();
        let (_taken, orphans) = take_over(&home);
        let rig = Rig::new(&home, &orphans, "m", SMALL).await;
        let replayed: BTreeSet<_> =
            rig.store(acknowledged.len()).await.into_iter().map(|(_, payload)| payload).collect();
        assert!(replayed == acknowledged);
        until("all is replayed", || orphans.bytes() == 0).await;
        assert!(rig.queue.is_empty());
    });
}

#[test]
fn payloads_are_replayed_once_under_their_keys_after_several_crashes() {
    run(async {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::open(dir.path(), "n", &[0]).unwrap();
        let size = Size { slots: 20, ..SMALL };
        let rig = Rig::new(&home, &Arc::default(), "n", size.clone()).await;
        for n in 0..100_u32 {
            rig.send(&[n.to_string().as_bytes(), b"\"b\""]).await.unwrap();
        }
        let mut stored: BTreeMap<_, _> = rig.store(30).await.into_iter().collect();
        let (mut home, mut rig) = (home, rig);
        let mut taken = Vec::new();
        for process in 0..3 {
            let dirty = |rig: &Rig| {
                let all = [rig.spool.own.segments(), rig.spool.taken.segments()];
                all.concat().iter().any(|segment| segment.is_dirty())
            };
            until("a checkpoint is written", || !dirty(&rig)).await;
            // It stops being dirty when the write starts, not when it ends.
            sleep(Duration::from_millis(50)).await;
            rig.crash().await;
            taken.clear();
            drop(home);
            // All but the last have the same name.
            let node = if process == 2 { "m" } else { "n" };
            home = Home::open(dir.path(), node, &[0]).unwrap();
            let orphans;
            (taken, orphans) = take_over(&home);
            rig = Rig::new(&home, &orphans, node, size.clone()).await;
            let count = if process == 2 { 200 - stored.len() } else { 40 };
            for (key, payload) in rig.store(count).await {
                assert!(key.contains("-n-0-"), "its original key: {key}");
                assert!(stored.insert(key, payload).is_none(), "once");
            }
            if process == 2 {
                until("all is replayed", || orphans.bytes() == 0).await;
                assert!(rig.queue.is_empty());
                assert_eq!(rig.cells.payloads_taken_over.value(), count as u64);
            }
        }
        let expected = |n: u64| match n % 2 {
            0 => (n / 2).to_string().into_bytes(),
            _ => b"\"b\"".to_vec(),
        };
        for (key, payload) in &stored {
            let seq = key.rsplit('-').next().unwrap().trim_end_matches(".json").parse().unwrap();
            assert_eq!(*payload, expected(seq), "{key}");
        }
        home.take_over(&mut taken, &Takeover::default()).unwrap();
        let left: Vec<_> = instances::instances(dir.path()).unwrap();
        assert_eq!(left, [dir.path().join("m")], "orphaned spools are removed");
    });
}

#[test]
fn a_corrupt_segment_is_replayed_and_quarantined() {
    run(async {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::open(dir.path(), "n", &[0]).unwrap();
        let rig = Rig::new(&home, &Arc::default(), "n", SMALL).await;
        for n in 0..5_u32 {
            rig.send(&[n.to_string().as_bytes()]).await.unwrap();
        }
        rig.crash().await;
        let file = segments(&home)[0].clone();
        let mut bytes = fs::read(&file).unwrap();
        bytes[DATA_START as usize + 2 * 4096 + 130] ^= 1;
        fs::write(&file, bytes).unwrap();
        fs::write(home.core_dir(0).join("stranger"), vec![b'x'; 200_000]).unwrap();
        drop(home);
        let home = Home::open(dir.path(), "m", &[0]).unwrap();
        let (_taken, orphans) = take_over(&home);
        let rig = Rig::new(&home, &orphans, "m", SMALL).await;
        let payloads: BTreeSet<_> = rig.store(4).await.into_iter().map(|(_, p)| p).collect();
        assert_eq!(payloads, [b"0", b"1", b"3", b"4"].map(|p| p.to_vec()).into());
        until("all is replayed", || orphans.bytes() == 0).await;
        assert_eq!(
            (rig.cells.payloads_lost.value(), rig.cells.payloads_taken_over.value()),
            (1, 5)
        );
        assert_eq!((rig.cells.spool_payloads.value(), rig.cells.spool_bytes.value()), (0, 0));
        let mut aside: Vec<_> = fs::read_dir(dir.path().join("quarantine"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        aside.sort();
        assert_eq!(aside.len(), 2, "{aside:?}");
        assert!(aside.iter().all(|name| name.starts_with("n~")), "{aside:?}");
        assert!(aside[1].ends_with("_core-0_stranger"), "{aside:?}");
    });
}

#[test]
fn a_stop_spools_unstored_payloads_even_queued_ones() {
    run(async {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::open(dir.path(), "n", &[0]).unwrap();
        let rig = Rig::new(&home, &Arc::default(), "n", SMALL).await;
        rig.send(&[b"\"spooled\""]).await.unwrap();
        let queued = |seq: u64| Job {
            payload: Payload::from(seq.to_string().into_bytes()),
            stamp: Stamp { unix_nanos: 5 + seq / 3, seq },
            record: None,
            request_outcome: None,
        };
        let mut rest: Vec<Job> = [10, 11, 12, 20, 7].map(queued).into();
        rig.stop(&mut rest).await;
        assert!(rest.is_empty());
        assert_eq!(rig.cells.spool_payloads.value(), 6);
        assert_eq!(rig.submit(&[b"1"]).err(), Some(SpoolError::Closed));
        drop(home);
        let home = Home::open(dir.path(), "n", &[0]).unwrap();
        let (_taken, orphans) = take_over(&home);
        let rig = Rig::new(&home, &orphans, "n", SMALL).await;
        let mut keys: Vec<_> = rig.store(6).await.into_iter().map(|(key, _)| key).collect();
        keys.sort();
        let expected =
            ["1000000-n-0-0", "11-n-0-20", "7-n-0-7", "8-n-0-10", "8-n-0-11", "9-n-0-12"];
        assert_eq!(keys, expected.map(|stem| format!("{stem}.json")));
    });
}

#[test]
fn a_directory_in_use_is_refused_and_not_taken_over() {
    let dir = tempfile::tempdir().unwrap();
    let home = Home::open(dir.path(), "n", &[0, 3]).unwrap();
    fs::write(home.core_dir(3).join("1.seg"), "x").unwrap();
    let refused = Home::open(dir.path(), "n", &[0]).err().unwrap().to_string();
    assert!(refused.contains("n is in use") && refused.contains("NODE_ID"), "{refused}");
    let other = Home::open(dir.path(), "m", &[0]).unwrap();
    let (taken, orphans) = take_over(&other);
    assert!(taken.is_empty() && orphans.take().is_none());
    drop(home);
    let (mut taken, orphans) = take_over(&other);
    assert_eq!(orphans.bytes(), 1);
    let orphan = orphans.take().unwrap();
    assert!(orphans.take().is_none());
    fs::remove_file(&orphan.path).unwrap();
    orphan.finished();
    other.take_over(&mut taken, &orphans).unwrap();
    assert!(!dir.path().join("n").exists(), "emptied and gone");
}

/// What a process started on some files would take over.
#[derive(Default)]
struct Recovered {
    /// Single payloads.
    single: Vec<Stamp>,
    /// Batches in doubt: their keys and the numbers of their members.
    in_doubt: Vec<(String, Vec<u64>)>,
}

fn recovered(files: &BTreeMap<PathBuf, Vec<u8>>) -> Recovered {
    let dirs: BTreeSet<&Path> = files.keys().filter_map(|path| path.parent()).collect();
    let mut found = Recovered::default();
    for dir in dirs {
        let here = || files.iter().filter(|(path, _)| path.parent() == Some(dir));
        let (mut ledger, mut members) = (Ledger::default(), BTreeMap::new());
        for (_, file) in here().filter(|(path, _)| is_journal(path)) {
            walk(file, |what, bytes| match what {
                ScanStep::Group(_, group) => {
                    group_records(&group.head, bytes).for_each(|entry| ledger.add(entry));
                }
                ScanStep::End(end) => assert_eq!(end.problem(), None),
                what => panic!("a power cut damages no journal: {what:?}"),
            });
        }
        let completed = ledger.members();
        for (_, file) in here().filter(|(path, _)| !is_journal(path)) {
            let checkpoint = Checkpoint::read(&file[..DATA_START as usize]).unwrap_or_default();
            walk(file, |what, bytes| {
                let ScanStep::Group(_, group) = what else { return };
                let id = group.head.label.id;
                let mut ordinal = group.head.first_ordinal;
                for record in group_requests(&group.head, bytes) {
                    for (span, index) in record.spans().zip(0..) {
                        let stamp = Stamp { seq: record.first.seq + index, ..record.first };
                        let here = &record.payloads[span.range()];
                        assert_eq!(here, payload(stamp.seq), "another payload for {stamp:?}");
                        let done = checkpoint.id == id
                            && checkpoint.done.iter().any(|range| range.contains(&ordinal));
                        members.insert((id, ordinal), stamp.seq);
                        if !done && !completed.contains(id, ordinal) {
                            found.single.push(stamp);
                        }
                        ordinal += 1;
                    }
                }
            });
        }
        found.in_doubt.extend(ledger.in_doubt().map(|(key, batch)| {
            let ordinals = |run: MemberRun| (run.first..run.end()).map(move |n| (run.segment, n));
            let seqs = batch.runs().iter().flat_map(ordinals).map(|place| members[&place]);
            (key.to_owned(), seqs.collect())
        }));
    }
    found
}

/// The payload with this number.
fn payload(seq: u64) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seq);
    let length = if random.u8(..) < 16 { random.usize(3_000..9_000) } else { random.usize(1..60) };
    (0..length).map(|_| random.alphanumeric() as u8).collect()
}

thread_local! {
    /// The numbers of the payloads of every batch, by its key.
    static BATCHES: RefCell<BTreeMap<String, Vec<u64>>> = RefCell::default();
}

/// What clients were promised and what is in the store, according to some events.
#[derive(Clone, Default)]
struct World {
    owed: BTreeSet<u64>,
    /// The numbers of the payloads in each object.
    objects: BTreeMap<String, Vec<u64>>,
}

impl World {
    fn after(mut self, events: &[DiskEvent]) -> World {
        for event in events {
            match event {
                DiskEvent::Acknowledged { first, count } => {
                    self.owed.extend(first.seq..first.seq + count)
                }
                DiskEvent::Stored { stamp } => self.put(stamp.seq.to_string(), vec![stamp.seq]),
                DiskEvent::Put { key, seqs } => self.put(key.clone(), seqs.clone()),
                _ => {}
            }
        }
        self
    }

    fn put(&mut self, key: String, seqs: Vec<u64>) {
        if let Some(before) = self.objects.insert(key.clone(), seqs) {
            assert_eq!(before, self.objects[&key], "another object under {key}");
        }
    }

    /// Checks that every acknowledged payload is in one object, and none is in two.
    fn check(&self, what: &str) {
        let mut seen = BTreeMap::new();
        for (key, seqs) in &self.objects {
            for seq in seqs {
                let other = seen.insert(*seq, key);
                assert_eq!(other, None, "{what}: {seq} is in {key} as well");
            }
        }
        let lost: Vec<_> = self.owed.iter().filter(|seq| !seen.contains_key(seq)).collect();
        assert!(lost.is_empty(), "{what}: lost {lost:?}");
    }

    /// Lets a process take over `files` and store everything, and then checks the store.
    fn check_after(&self, files: &BTreeMap<PathBuf, Vec<u8>>, what: &str) {
        let mut world = self.clone();
        let Recovered { single, in_doubt } = recovered(files);
        for (key, seqs) in in_doubt {
            world.put(key, seqs);
        }
        for stamp in single {
            world.put(stamp.seq.to_string(), vec![stamp.seq]);
        }
        world.check(what);
    }
}

/// The disk events of a small spool's run, with requests, uploads, checkpoints and reused segments.
fn recorded(seed: u64, requests: u64) -> Vec<DiskEvent> {
    run(async {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::open(dir.path(), "n", &[0]).unwrap();
        power::start();
        let mut random = fastrand::Rng::with_seed(seed);
        let size = Size { slots: 12, segments: 6, checkpoint: Duration::from_millis(2), ..SMALL };
        let rig = Rig::new(&home, &Arc::default(), "n", size).await;
        let (mut held, mut batches) = (Vec::new(), Vec::new());
        for _ in 0..requests {
            let together: Vec<_> = (0..random.usize(1..4))
                .map(|_| {
                    let seq = rig.seq.get();
                    let payloads: Vec<_> = (seq..seq + random.u64(1..4)).map(payload).collect();
                    let slices: Vec<&[u8]> = payloads.iter().map(Vec::as_slice).collect();
                    (payloads.len() as u64, rig.submit(&slices).unwrap())
                })
                .collect();
            for (count, (first, ticket)) in together {
                match ticket.wait(&Cell::new(false)).await.unwrap() {
                    Ok(()) => drop(power::note(|| DiskEvent::Acknowledged { first, count })),
                    Err(error) => assert_eq!(error, SpoolError::Full),
                }
            }
            rig.hold(&mut held).await;
            rig.work(&mut random, &mut held, &mut batches).await;
        }
        drop(batches);
        rig.crash().await;
        power::stop()
    })
}

#[test]
fn no_power_cut_loses_a_synced_record_or_yields_a_wrong_byte() {
    let seed = std::env::var("MILLRACE_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| fastrand::u64(..));
    println!("MILLRACE_TEST_SEED={seed}");
    let many = std::env::var("MILLRACE_TEST_POWER_CUTS").ok().and_then(|text| text.parse().ok());
    let samples = many.unwrap_or(4);
    let events = recorded(seed, 120);
    let used_again =
        events.iter().filter(|event| matches!(event, DiskEvent::SyncEnds { .. })).count();
    assert!(used_again > 100, "{used_again} syncs");
    let renewed = |event: &&DiskEvent| matches!(event, DiskEvent::WriteBegins { path, at: 0 | 65_536, .. } if is_journal(path));
    let renewed = events.iter().filter(renewed).count();
    assert!(renewed > 5, "a journal was renewed {renewed} times");
    let mut random = fastrand::Rng::with_seed(seed);
    let cuts = cut(&BTreeMap::new(), &events, &World::default(), &mut random, samples, |_| true);
    println!("{cuts} power cuts in {} events", events.len());
}

/// Cuts the power after those of `events` for which `here` is true, in `samples` ways besides the
/// two extremes.
fn cut(
    files: &BTreeMap<PathBuf, Vec<u8>>,
    events: &[DiskEvent],
    world: &World,
    random: &mut fastrand::Rng,
    samples: usize,
    here: impl Fn(usize) -> bool,
) -> usize {
    let mut cuts = 0;
    for count in 0..=events.len() {
        // These events alone change nothing on the disk.
        let same =
            |event| matches!(event, &DiskEvent::SyncBegins { .. } | &DiskEvent::WriteEnds { .. });
        if (count > 0 && same(&events[count - 1])) || !here(count) {
            continue;
        }
        let disk = CutDisk::after(files, events, count);
        let world = world.clone().after(&events[..count]);
        world.check_after(&disk.with(|_| false), "nothing more");
        world.check_after(&disk.with(|_| true), "everything");
        for _ in 0..samples {
            let share = random.f64();
            let kept: Vec<bool> = disk.unsynced.iter().map(|_| random.f64() < share).collect();
            world.check_after(&disk.with(|number| kept[number]), "some of it");
            cuts += 1;
        }
    }
    cuts
}

#[test]
fn every_power_cut_of_a_short_run() {
    let events = recorded(7, 40);
    let mut states = 0_u64;
    for count in 0..=events.len() {
        let disk = CutDisk::after(&BTreeMap::new(), &events, count);
        let world = World::default().after(&events[..count]);
        // The zeros of new files change nothing.
        let written = |bytes: &[u8]| bytes.iter().any(|byte| *byte != 0);
        let loose: Vec<usize> =
            (0..disk.unsynced.len()).filter(|n| written(&disk.unsynced[*n].2)).collect();
        if loose.len() > 10 {
            continue;
        }
        for subset in 0..1_u64 << loose.len() {
            let kept = |number| {
                loose.iter().position(|n| *n == number).is_some_and(|bit| subset >> bit & 1 == 1)
            };
            world.check_after(&disk.with(kept), "subset");
            states += 1;
        }
    }
    assert!(states > 1_000, "{states}");
}

/// The recorder identifies files by their path.
#[test]
fn the_recorder_tells_synced_from_unsynced() {
    power::start();
    let (a, b) = (Path::new("a"), Path::new("b"));
    let first = power::write_begins(a, 0, &[1; 1_024]);
    power::write_ends(first);
    let sync = power::sync_begins(a);
    let second = power::write_begins(a, 512, &[2; 512]);
    power::write_ends(second);
    power::write_begins(b, 0, &[3; 512]);
    power::sync_ends(sync);
    let events = power::stop();
    let disk = CutDisk::after(&BTreeMap::new(), &events, events.len());
    assert_eq!(disk.files[a], [1; 1_024]);
    assert_eq!(disk.unsynced.len(), 2, "what began after the sync did, and the other file's");
    assert_eq!(disk.with(|_| true)[a][512..], [2; 512]);
    assert_eq!(disk.with(|_| false)[b], [0; 512]);
    assert_eq!(
        CutDisk::after(&BTreeMap::new(), &events, 3).unsynced.len(),
        2,
        "before the sync has ended"
    );
}
