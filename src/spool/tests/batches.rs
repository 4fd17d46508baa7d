//! Batches: after a crash between any two steps, every payload is stored once.

use super::super::format::runs::{RunEncoder, Runs};
use super::*;
use crate::rt;

/// A batch of these jobs, in this order.
fn members(jobs: &[Job]) -> Rc<Members> {
    let record = |job: &Job| job.record.clone().expect("spooled");
    let mut members = Members::of(record(&jobs[0]).core_dir());
    for job in jobs {
        assert!(members.push(&record(job), job));
    }
    Rc::new(members)
}

/// The payloads of a batch in doubt, in order; none is lost.
async fn read(batch: &mut BatchInDoubt) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    while let Some(payload) = batch.next().await.unwrap() {
        found.push(payload.to_vec());
    }
    assert_eq!(found.len() as u64, batch.payloads());
    found
}

impl Rig {
    async fn pops(&self, count: usize) -> Vec<Job> {
        let mut jobs = Vec::new();
        for _ in 0..count {
            jobs.push(self.pop().await);
        }
        jobs
    }

    async fn intend(&self, key: &str, jobs: &[Job]) -> Intent {
        self.spool.intend(key, "ndjson+zstd", &members(jobs)).await.unwrap()
    }

    /// Sends requests of one payload each, whose text is its number.
    async fn numbers(&self, numbers: Range<u32>) {
        for number in numbers {
            self.send(&[number.to_string().as_bytes()]).await.unwrap();
        }
    }
}

/// The process at `home` is dead; `node` takes over its spool.
fn successor(dir: &Path, home: Home, node: &str) -> (Home, Vec<Arc<OrphanedSpool>>, Arc<Takeover>) {
    drop(home);
    let home = Home::open(dir, node, &[0, 1]).unwrap();
    let (taken, orphans) = take_over(&home);
    (home, taken, orphans)
}

fn journals_at(core_dir: &Path) -> Vec<PathBuf> {
    journals_of(core_dir).unwrap()
}

fn text(number: u32) -> Vec<u8> {
    number.to_string().into_bytes()
}

#[test]
fn a_batch_in_doubt_is_uploaded_again_first_and_a_done_one_is_not() {
    run(async {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::open(dir.path(), "n", &[0]).unwrap();
        let rig = Rig::new(&home, &Arc::default(), "n", SMALL).await;
        rig.numbers(0..40).await;
        let jobs = rig.pops(40).await;
        // In an order other than the file's, and across segments.
        let mut doubt_jobs = [&jobs[2..5], &jobs[20..30], &jobs[0..1]].concat();
        doubt_jobs.swap(0, 9);
        let batch = rig.intend("in-doubt", &doubt_jobs).await;
        let finished = rig.intend("finished", &jobs[5..20]).await;
        rig.spool.complete_batch(finished);
        assert_eq!(rig.cells.spool_payloads.value(), 25);
        let home_dir = jobs[0].record.as_ref().unwrap().core_dir().clone();
        until("DONE is written", || !home_dir.has_finished()).await;
        assert!(rig.cells.spool_disk_bytes.value() > 3 * SEGMENT_BYTES, "the journal counts");
        drop((batch, jobs.clone(), home_dir));
        rig.crash().await;
        drop(jobs);
        let (home, mut taken, orphans) = successor(dir.path(), home, "m");
        let rig = Rig::new(&home, &orphans, "m", SMALL).await;
        sleep(LOOK_EVERY + Duration::from_millis(200)).await;
        assert!(rig.queue.is_empty(), "a batch in doubt comes first");
        let mut batch = rig.spool.next_in_doubt().await.unwrap();
        assert_eq!((batch.key(), batch.form()), ("in-doubt", "ndjson+zstd"));
        let expected: Vec<_> = doubt_jobs.iter().map(|job| job.payload.to_vec()).collect();
        assert_eq!(read(&mut batch).await, expected);
        assert_eq!(
            (rig.cells.payloads_taken_over.value(), rig.cells.spool_payloads.value()),
            (14, 14)
        );
        assert!(poll_once(rig.spool.next_in_doubt()).await.is_none(), "only one");
        assert!(rig.queue.is_empty());
        batch.complete().await.unwrap();
        drop(batch);
        let rest: BTreeSet<_> = rig.store(11).await.into_iter().map(|(_, p)| p).collect();
        let alone = (0..40).filter(|n| *n == 1 || *n >= 30);
        assert_eq!(rest, alone.map(text).collect());
        until("all is replayed", || orphans.bytes() == 0).await;
        assert_eq!(
            (rig.cells.payloads_taken_over.value(), rig.cells.spool_payloads.value()),
            (25, 0)
        );
        home.take_over(&mut taken, &orphans).unwrap();
        assert_eq!(instances::instances(dir.path()).unwrap(), [dir.path().join("m")]);
        rig.spool.stop_reading();
        assert!(rig.spool.next_in_doubt().await.is_none());
    });
}

#[test]
fn a_dropped_batch_is_left_to_the_next_process_in_either_phase() {
    run(async {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::open(dir.path(), "n", &[0]).unwrap();
        let rig = Rig::new(&home, &Arc::default(), "n", SMALL).await;
        rig.numbers(0..10).await;
        let jobs = rig.pops(10).await;
        drop((rig.intend("a", &jobs[..3]).await, rig.intend("b", &jobs[3..6]).await, jobs));
        rig.crash().await;
        // One batch is completed, one only read.
        let (home, _taken, orphans) = successor(dir.path(), home, "m");
        let rig = Rig::new(&home, &orphans, "m", SMALL).await;
        let mut a = rig.spool.next_in_doubt().await.unwrap();
        let mut b = rig.spool.next_in_doubt().await.unwrap();
        read(&mut a).await;
        read(&mut b).await;
        a.complete().await.unwrap();
        drop((a, b));
        rig.crash().await;
        drop((_taken, orphans));
        // Now the other one; some of the remaining payloads are batched.
        let (home, _taken, orphans) = successor(dir.path(), home, "o");
        let rig = Rig::new(&home, &orphans, "o", SMALL).await;
        let mut b = rig.spool.next_in_doubt().await.unwrap();
        assert_eq!(b.key(), "b");
        assert_eq!(read(&mut b).await, [text(3), text(4), text(5)]);
        b.complete().await.unwrap();
        let jobs = rig.pops(4).await;
        let c = rig.intend("c", &jobs[..1]).await;
        let d = rig.intend("d", &jobs[1..2]).await;
        rig.spool.complete_batch(c);
        rig.spool.flush(jobs[0].record.as_ref().unwrap().core_dir()).await.unwrap();
        drop((b, d, jobs));
        rig.crash().await;
        drop((_taken, orphans));
        let (home, _taken, orphans) = successor(dir.path(), home, "p");
        let rig = Rig::new(&home, &orphans, "p", SMALL).await;
        let mut d = rig.spool.next_in_doubt().await.unwrap();
        assert_eq!(d.key(), "d");
        assert_eq!(read(&mut d).await, [text(7)]);
        d.complete().await.unwrap();
        let rest: Vec<_> = rig.store(2).await.into_iter().map(|(_, p)| p).collect();
        assert_eq!(rest, [text(8), text(9)]);
        until("all is replayed", || orphans.bytes() == 0).await;
        assert!(rig.queue.is_empty());
    });
}

/// One of its segments is away for a while, and payloads of the one before it are lost for good, which
/// is counted once.
#[test]
fn a_batch_that_cannot_be_read_is_read_again_from_its_beginning() {
    run(async {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::open(dir.path(), "n", &[0]).unwrap();
        let rig = Rig::new(&home, &Arc::default(), "n", SMALL).await;
        // 16 groups fill a segment.
        rig.numbers(0..30).await;
        let jobs = rig.pops(30).await;
        drop((rig.intend("a", &jobs).await, jobs));
        rig.crash().await;
        let (home, _taken, orphans) = successor(dir.path(), home, "m");
        let files = orphaned_segments(dir.path(), "n");
        let mut bytes = fs::read(&files[0]).unwrap();
        // Each group takes a block.
        bytes[DATA_START as usize + 3 * 4096 + 20] ^= 1;
        fs::write(&files[0], bytes).unwrap();
        let aside = dir.path().join("aside");
        fs::rename(&files[1], &aside).unwrap();
        let rig = Rig::new(&home, &orphans, "m", SMALL).await;
        let mut a = rig.spool.next_in_doubt().await.unwrap();
        let mut found = Vec::new();
        for round in 0..3 {
            let is_away = round < 2;
            if !is_away {
                fs::rename(&aside, &files[1]).unwrap();
            }
            found.clear();
            let failed = loop {
                match a.next().await {
                    Ok(Some(payload)) => found.push(payload.to_vec()),
                    Ok(None) => break false,
                    Err(error) if error.kind() == io::ErrorKind::InvalidData => {}
                    Err(_) => break true,
                }
            };
            assert_eq!(failed, is_away);
            if is_away {
                assert!((10..16).contains(&found.len()), "of the first segment: {}", found.len());
                a.rewind();
                assert_eq!(rig.cells.spool_bytes.value(), 0);
            } else {
                let all: Vec<_> = (0..30).filter(|number| *number != 3).map(text).collect();
                assert_eq!(found, all);
            }
            assert_eq!(rig.cells.payloads_lost.value(), 1);
        }
        assert_eq!(rig.cells.spool_payloads.value(), 29);
        a.complete().await.unwrap();
        assert_eq!((rig.cells.spool_payloads.value(), rig.cells.spool_bytes.value()), (0, 0));
    });
}

#[test]
fn a_journal_is_renewed_again_and_again_and_keeps_open_batches() {
    run(async {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::open(dir.path(), "n", &[0]).unwrap();
        let rig = Rig::new(&home, &Arc::default(), "n", SMALL).await;
        rig.numbers(0..2).await;
        let jobs = rig.pops(2).await;
        let open = [rig.intend("open-0", &jobs[..1]).await, rig.intend("open-1", &jobs[1..]).await];
        for round in 0..300 {
            rig.numbers(round..round + 1).await;
            let jobs = rig.pops(1).await;
            let intent = rig.intend(&format!("round-{round}"), &jobs).await;
            rig.spool.complete_batch(intent);
            assert!(journals_at(&home.core_dir(0)).len() <= 2);
        }
        let own = rig.spool.own.dir().clone();
        // 16 groups fill it, so it keeps at most that many batches.
        assert!(own.batches() <= 2 + 17, "{} batches are kept", own.batches());
        rig.spool.flush(&own).await.unwrap();
        drop((open, jobs, own));
        rig.crash().await;
        let (home, _taken, orphans) = successor(dir.path(), home, "m");
        let rig = Rig::new(&home, &orphans, "m", SMALL).await;
        for number in 0..2 {
            let mut batch = rig.spool.next_in_doubt().await.unwrap();
            assert_eq!(batch.key(), format!("open-{number}"));
            assert_eq!(read(&mut batch).await, [text(number)]);
            batch.complete().await.unwrap();
        }
        until("all is replayed", || orphans.bytes() == 0).await;
        assert!(rig.queue.is_empty(), "nothing else was open");
    });
}

/// The first journal is made when payloads have filled the spool, and the second one while it is
/// still full.
#[test]
fn journals_have_room_in_a_spool_that_payloads_have_filled() {
    run(async {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::open(dir.path(), "n", &[0]).unwrap();
        let size = Size { segments: 6, journal_reserve: 2 * SEGMENT_BYTES, ..SMALL };
        let rig = Rig::new(&home, &Arc::default(), "n", size).await;
        let on_disk = || {
            let files = segments(&home);
            files.iter().filter_map(|file| file.metadata().ok()).map(|file| file.len()).sum::<u64>()
        };
        let mut sent = 0;
        while rig.send(&[b"\"held\""]).await.is_ok() {
            sent += 1;
        }
        assert!((48..=64).contains(&sent), "16 groups fill a segment: {sent}");
        let mut most = 0;
        // All are uploaded, then all are done: nothing leaves the spool before.
        let mut intents = Vec::new();
        for number in 0..sent {
            let jobs = rig.pops(1).await;
            intents.push(rig.intend(&format!("{number}"), &jobs).await);
            most = most.max(journals_at(&home.core_dir(0)).len());
            let (bytes, counted) = (on_disk(), rig.cells.spool_disk_bytes.value());
            assert!(bytes <= 6 * SEGMENT_BYTES, "{number}: {bytes}");
            assert!(counted <= 6 * SEGMENT_BYTES, "{number}: {counted} counted");
            // Open batches fill a journal of this size with 16 intents, and then need a larger one.
            if number == 14 {
                for intent in intents.drain(..) {
                    rig.spool.complete_batch(intent);
                }
                rig.spool.flush(rig.spool.own.dir()).await.unwrap();
            }
            if number == 28 {
                break;
            }
        }
        assert_eq!(most, 2);
        assert_eq!(rig.cells.spool_journal_bytes.value(), 2 * SEGMENT_BYTES);
    });
}

/// Its batch is named by the journal, and keeps it open.
#[test]
fn a_removed_segment_takes_no_space_although_it_is_open() {
    run(async {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::open(dir.path(), "n", &[0]).unwrap();
        let rig = Rig::new(&home, &Arc::default(), "n", SMALL).await;
        // 16 groups fill a segment, and two are kept when they are finished.
        rig.numbers(0..100).await;
        let jobs = rig.pops(100).await;
        let intent = rig.intend("of six segments", &jobs).await;
        drop(jobs);
        rig.spool.complete_batch(intent);
        let own = rig.spool.own.dir().clone();
        rig.spool.flush(&own).await.unwrap();
        until("they are finished", || rig.spool.own.segments().len() <= 1).await;
        assert_eq!(own.batches(), 1);
        let mut open = Vec::new();
        for entry in fs::read_dir("/proc/self/fd").unwrap() {
            // One that was closed meanwhile has no target.
            let path = entry.unwrap().path();
            let Ok(target) = fs::read_link(&path) else { continue };
            if target.starts_with(home.core_dir(0))
                && target.to_string_lossy().ends_with(" (deleted)")
            {
                open.push(fs::metadata(&path).unwrap().len());
            }
        }
        assert!(open.len() >= 3, "{open:?}");
        assert!(open.iter().all(|bytes| *bytes == 0), "{open:?}");
    });
}

#[test]
fn a_completed_batch_in_doubt_stays_done_when_the_journal_is_renewed() {
    run(async {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::open(dir.path(), "n", &[0]).unwrap();
        let rig = Rig::new(&home, &Arc::default(), "n", SMALL).await;
        rig.numbers(0..60).await;
        let jobs = rig.pops(60).await;
        drop((rig.intend("in-doubt", &jobs[..1]).await, jobs));
        rig.crash().await;
        let (home, _taken, orphans) = successor(dir.path(), home, "m");
        let rig = Rig::new(&home, &orphans, "m", SMALL).await;
        let mut batch = rig.spool.next_in_doubt().await.unwrap();
        batch.complete().await.unwrap();
        drop(batch);
        let jobs = rig.pops(59).await;
        for (number, job) in jobs[..40].iter().enumerate() {
            let intent = rig.intend(&format!("{number}"), std::slice::from_ref(job)).await;
            rig.spool.complete_batch(intent);
        }
        let left = jobs[0].record.as_ref().unwrap().core_dir().clone();
        rig.spool.flush(&left).await.unwrap();
        assert!(left.batches() < 1 + 18, "{} batches are kept", left.batches());
        drop((jobs, left));
        rig.crash().await;
        drop((_taken, orphans));
        let (home, _taken, orphans) = successor(dir.path(), home, "o");
        let rig = Rig::new(&home, &orphans, "o", SMALL).await;
        assert!(poll_once(rig.spool.next_in_doubt()).await.is_none(), "it is done");
        let rest: BTreeSet<_> = rig.store(19).await.into_iter().map(|(_, p)| p).collect();
        assert_eq!(rest, (41..60).map(text).collect());
        until("all is replayed", || orphans.bytes() == 0).await;
        assert!(rig.queue.is_empty());
    });
}

#[test]
fn a_power_cut_does_not_revert_a_synced_checkpoint() {
    run(async {
        let dir = tempfile::tempdir().unwrap();
        power::start();
        let path = dir.path().join("1.seg");
        let segment = Segment::create(&path, SEGMENT_BYTES, SEGMENT_BYTES, disk()).await.unwrap();
        segment.begin(1);
        segment.extend(0, Payloads { count: 1_000, bytes: 0 });
        // Enough ranges to take several sectors.
        (0..200).for_each(|number| segment.complete(4 * number..4 * number + 1, 0));
        assert!(segment.write_checkpoint(CheckpointMode::Synced).await.unwrap());
        for more in 1..4 {
            (0..100).map(|number| 4 * number + more).for_each(|at| segment.complete(at..at + 1, 0));
            segment.write_checkpoint(CheckpointMode::Unsynced).await.unwrap();
        }
        let events = power::stop();
        let disk = CutDisk::after(&BTreeMap::new(), &events, events.len());
        let mut random = fastrand::Rng::with_seed(3);
        for _ in 0..2_000 {
            let kept: Vec<bool> = disk.unsynced.iter().map(|_| random.bool()).collect();
            let file = &disk.with(|number| kept[number])[&path];
            let checkpoint = Checkpoint::read(&file[..DATA_START as usize]).expect("one is whole");
            let has = |ordinal| checkpoint.done.iter().any(|range| range.contains(&ordinal));
            assert!((0..200).all(|number| has(4 * number)));
        }
    });
}

/// Once the journal has dropped a batch, only checkpoints record its completion.
#[test]
fn a_checkpoint_that_does_not_fit_leaves_the_one_before() {
    run(async {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("1.seg");
        let segment = Segment::create(&path, SEGMENT_BYTES, SEGMENT_BYTES, disk()).await.unwrap();
        segment.begin(1);
        segment.extend(0, Payloads { count: 2_000_000, bytes: 0 });
        let before = 1_500_000..1_500_010;
        segment.complete_run(before.clone());
        assert!(segment.write_checkpoint(CheckpointMode::Synced).await.unwrap());
        (0..10_000).for_each(|number| segment.complete(2 * number..2 * number + 1, 0));
        for how in [CheckpointMode::Unsynced, CheckpointMode::Synced, CheckpointMode::Unsynced] {
            assert!(
                !segment.write_checkpoint(how).await.unwrap(),
                "10,001 ranges up to 1.5 million"
            );
        }
        let checkpoint = Checkpoint::read(&fs::read(&path).unwrap()[..DATA_START as usize]);
        assert_eq!(checkpoint.unwrap().done, std::slice::from_ref(&before));
        segment.complete_run(0..20_000);
    });
}

#[test]
fn intents_that_wait_share_a_sync() {
    run(async {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::open(dir.path(), "n", &[0]).unwrap();
        let rig = Rig::new(&home, &Arc::default(), "n", SMALL).await;
        rig.numbers(0..30).await;
        let jobs = rig.pops(30).await;
        drop(rig.intend("first", &jobs[..1]).await);
        let before = rig.cells.spool_syncs.value();
        let intents: Vec<_> = (1..30)
            .map(|n| {
                let (spool, members) = (rig.spool.clone(), members(&jobs[n..n + 1]));
                let intend = async move { spool.intend(&format!("{n}"), "", &members).await };
                rt::spawn(intend)
            })
            .collect();
        for intent in intents {
            rig.spool.complete_batch(intent.await.unwrap());
        }
        let syncs = rig.cells.spool_syncs.value() - before;
        // A few more if a checkpoint is due meanwhile.
        assert!((1..=8).contains(&syncs), "{syncs} syncs for 29 intents");
    });
}

#[test]
fn a_journal_whose_syncs_fail_loses_no_batch_and_stores_none_twice() {
    for seed in 0..6 {
        let dir = tempfile::tempdir().unwrap();
        run(async {
            let home = Home::open(dir.path(), "n", &[0]).unwrap();
            let mut random = fastrand::Rng::with_seed(seed);
            power::start();
            let size = Size { sync_fault: 0.2, checkpoint: Duration::from_millis(2), ..SMALL };
            let rig = Rig::new(&home, &Arc::default(), "n", size).await;
            let (mut held, mut batches) = (Vec::new(), Vec::new());
            let mut failed = 0;
            while rig.seq.get() < 150 {
                let (seq, count) = (rig.seq.get(), random.u64(1..4));
                let payloads: Vec<_> = (seq..seq + count).map(payload).collect();
                let slices: Vec<&[u8]> = payloads.iter().map(Vec::as_slice).collect();
                if rig.send(&slices).await.is_err() {
                    failed += 1;
                    until("it is retried", || !rig.cells.spool_is_failing()).await;
                }
                rig.hold(&mut held).await;
                rig.work(&mut random, &mut held, &mut batches).await;
            }
            assert!(failed > 3, "{failed}");
            drop((held, batches));
            let world = World::default().after(&power::stop());
            rig.crash().await;
            world.check_after(&contents(dir.path()), &format!("seed {seed}"));
        });
    }
}

/// All files of the cores below.
fn contents(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for instance in instances::instances(dir).unwrap() {
        for core in instances::core_dirs(&instance).unwrap() {
            for entry in fs::read_dir(core).unwrap() {
                let path = entry.unwrap().path();
                // What was being removed when its process died may go only now.
                if let Ok(bytes) = fs::read(&path) {
                    found.insert(path, bytes);
                }
            }
        }
    }
    found
}

/// The cuts of a process that takes over what a cut has left.
#[test]
fn no_power_cut_while_a_left_directory_is_replayed_stores_anything_twice_or_never() {
    let seed = std::env::var("MILLRACE_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| fastrand::u64(..));
    println!("MILLRACE_TEST_SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let (mut cuts, mut uploaded_again, mut batched_again) = (0, 0, 0);
    for _ in 0..8 {
        let events = recorded(random.u64(..), 30);
        let count = random.usize(events.len() / 3..events.len());
        let share = random.f64();
        let disk = CutDisk::after(&BTreeMap::new(), &events, count);
        let kept: Vec<bool> = disk.unsynced.iter().map(|_| random.f64() < share).collect();
        let world = World::default().after(&events[..count]);
        let files = disk.with(|number| kept[number]);
        let (files, events) = replayed(&files, &mut random);
        let puts = events.iter().filter_map(|event| match event {
            DiskEvent::Put { key, .. } => Some(world.objects.contains_key(key)),
            _ => None,
        });
        let (again, new): (Vec<bool>, Vec<bool>) = puts.partition(|again| *again);
        uploaded_again += again.len();
        batched_again += new.len();
        let sampled: Vec<bool> = (0..=events.len()).map(|_| random.u8(..) < 60).collect();
        cuts += cut(&files, &events, &world, &mut random, 4, |count| sampled[count]);
    }
    println!("{cuts} power cuts");
    assert!(cuts > 1_000 && batched_again > 20, "{cuts} {batched_again} {uploaded_again}");
}

/// What is on the disk once a process has adopted `files`, and what happens there from then on
/// until it dies as well.
fn replayed(
    files: &BTreeMap<PathBuf, Vec<u8>>,
    random: &mut fastrand::Rng,
) -> (BTreeMap<PathBuf, Vec<u8>>, Vec<DiskEvent>) {
    let dir = tempfile::tempdir().unwrap();
    let core_dir = dir.path().join("n/core-0");
    fs::create_dir_all(&core_dir).unwrap();
    for (path, bytes) in files {
        fs::write(core_dir.join(path.file_name().unwrap()), bytes).unwrap();
    }
    run(async {
        let home = Home::open(dir.path(), "m", &[0]).unwrap();
        let (_taken, orphans) = take_over(&home);
        let files = contents(dir.path());
        power::start();
        let size = Size { slots: 12, segments: 6, checkpoint: Duration::from_millis(2), ..SMALL };
        let rig = Rig::new(&home, &orphans, "m", size).await;
        rig.seq.set(1_000_000);
        let (mut held, mut batches) = (Vec::new(), Vec::new());
        for _ in 0..random.u64(20..60) {
            if let Some(Some(batch)) = poll_once(rig.spool.next_in_doubt()).await {
                batches.push(upload_again(batch, random.u64(..3)));
            }
            let seq = rig.seq.get();
            if rig.send(&[&payload(seq)]).await.is_err() {
                sleep(Duration::from_millis(1)).await;
            }
            rig.hold(&mut held).await;
            rig.work(random, &mut held, &mut batches).await;
        }
        drop((held, batches));
        rig.crash().await;
        (files, power::stop())
    })
}

/// Uploads a batch in doubt again and checks that its payloads are those of its intent, in order.
fn upload_again(mut batch: BatchInDoubt, pause: u64) -> Task<()> {
    rt::spawn(async move {
        let payloads = read(&mut batch).await;
        let key = batch.key().to_owned();
        let seqs = BATCHES.with_borrow(|batches| batches[&key].clone());
        assert!(payloads.iter().eq(&seqs.iter().map(|seq| payload(*seq)).collect::<Vec<_>>()));
        power::note(|| DiskEvent::Put { key, seqs });
        sleep(Duration::from_millis(pause)).await;
        batch.complete().await.unwrap();
    })
}

/// Several processes of two cores die one after the other, each at a random moment.
#[test]
fn crashes_in_a_row_store_everything_once() {
    let seed = std::env::var("MILLRACE_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| fastrand::u64(..));
    println!("MILLRACE_TEST_SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let mut uploaded_again = 0;
    for _ in 0..6 {
        let dir = tempfile::tempdir().unwrap();
        let mut world = World::default();
        for process in 0..5 {
            let events = one_life(dir.path(), process, &mut random);
            let known = |event: &&DiskEvent| matches!(event, DiskEvent::Put { key, .. } if world.objects.contains_key(key));
            uploaded_again += events.iter().filter(known).count();
            world = world.after(&events);
        }
        world.check("after the last");
        assert!(world.owed.len() > 100, "{}", world.owed.len());
        // The disk thread of the last process may still be removing the directory that it emptied.
        let remaining = || instances::instances(dir.path()).unwrap();
        run(until("only the last one's is left", || remaining().len() == 1));
    }
    println!("{uploaded_again} batches uploaded again");
}

/// Runs the process with this number. The first three take requests; the last one stores
/// everything.
fn one_life(dir: &Path, process: u64, random: &mut fastrand::Rng) -> Vec<DiskEvent> {
    run(async {
        let home = Home::open(dir, &format!("n{process}"), &[0, 1]).unwrap();
        let (mut taken, orphans) = take_over(&home);
        power::start();
        let size = Size { slots: 20, segments: 20, checkpoint: Duration::from_millis(2), ..SMALL };
        let node = format!("n{process}");
        let rigs = [0, 1].map(|core| Rig::with(&home, &orphans, &node, size.clone(), core, None));
        let mut work = [const { (Vec::new(), Vec::new()) }; 2];
        // Numbers that no other core or process uses.
        rigs.iter().zip(0..).for_each(|(rig, core)| rig.seq.set(process * 500 + core * 250));
        let is_last = process == 4;
        let mut rounds = 0..if is_last { 10_000 } else { random.u64(20..60) };
        while rounds.next().is_some() {
            for (rig, (held, batches)) in rigs.iter().zip(&mut work) {
                let at = rig.seq.get();
                if process < 3 && at % 250 < 240 {
                    let payloads: Vec<_> = (at..at + random.u64(1..4)).map(payload).collect();
                    let slices: Vec<&[u8]> = payloads.iter().map(Vec::as_slice).collect();
                    rig.send(&slices).await.unwrap();
                }
                if let Some(Some(batch)) = poll_once(rig.spool.next_in_doubt()).await {
                    batches.push(upload_again(batch, random.u64(..5)));
                }
                rig.hold(held).await;
                rig.work(random, held, batches).await;
            }
            if is_last && orphans.bytes() == 0 {
                home.take_over(&mut taken, &orphans).unwrap();
                if orphans.bytes() == 0 {
                    break;
                }
            }
        }
        drop(work);
        for rig in rigs {
            rig.crash().await;
        }
        assert!(rounds.next().is_some() || !is_last, "the last one came to an end");
        drop(taken);
        power::stop()
    })
}

#[test]
fn a_corrupt_journal_is_quarantined_and_loses_no_payload() {
    for damaged in [false, true] {
        run(async {
            let dir = tempfile::tempdir().unwrap();
            let home = Home::open(dir.path(), "n", &[0]).unwrap();
            let rig = Rig::new(&home, &Arc::default(), "n", SMALL).await;
            rig.numbers(0..6).await;
            let jobs = rig.pops(6).await;
            for (number, job) in jobs.iter().enumerate() {
                drop(rig.intend(&format!("batch-{number}"), std::slice::from_ref(job)).await);
            }
            drop(jobs);
            rig.crash().await;
            let journal = &journals_at(&home.core_dir(0))[0];
            let mut bytes = fs::read(journal).unwrap();
            // The third of six groups, or the last, which then looks like a torn write.
            let group = if damaged { 2 } else { 5 };
            bytes[(DATA_START + group * 4096 + 140) as usize] ^= 1;
            fs::write(journal, bytes).unwrap();
            let (home, _taken, orphans) = successor(dir.path(), home, "m");
            let rig = Rig::new(&home, &orphans, "m", SMALL).await;
            for number in (0..6_u32).filter(|number| u64::from(*number) != group) {
                let mut batch = rig.spool.next_in_doubt().await.unwrap();
                assert_eq!(batch.key(), format!("batch-{number}"));
                assert_eq!(read(&mut batch).await, [text(number)]);
                batch.complete().await.unwrap();
            }
            assert_eq!(
                rig.store(1).await[0].1,
                text(group as u32),
                "is read back as a single payload"
            );
            until("all is replayed", || orphans.bytes() == 0).await;
            assert_eq!(instances::quarantined(dir.path()), usize::from(damaged));
            assert_eq!(rig.cells.payloads_lost.value(), 0);
        });
    }
}

#[test]
fn any_flipped_byte_of_a_journal_is_truncated_or_reported_and_invents_no_batch() {
    let dir = tempfile::tempdir().unwrap();
    let mut whole = Ledger::default();
    let mut runs = RunEncoder::default();
    assert!((0..9).all(|n| runs.push(1, 2 * n)));
    let runs = runs.finish();
    let runs = Runs::check(&runs).unwrap();
    for key in ["a", "b", "c"] {
        let intent = IntentRecord { key, form: "f", runs };
        whole.add(SpoolRecord::Intent(intent));
    }
    whole.mark_done("b");
    whole.rewrite(dir.path()).unwrap();
    let path = &journals_at(dir.path())[0];
    let bytes = fs::read(path).unwrap();
    let keys = |ledger: &Ledger| {
        let batch: Vec<_> = ledger.in_doubt().map(|(key, _)| key.to_owned()).collect();
        let done: Vec<_> = ledger.done().map(|(key, _)| key.to_owned()).collect();
        (batch, done)
    };
    let read = Ledger::read(dir.path()).unwrap();
    assert_eq!(keys(&read), (vec!["a".into(), "c".into()], vec!["b".into()]));
    for at in DATA_START as usize..bytes.len() {
        let mut flipped = bytes.clone();
        flipped[at] ^= 0x10;
        fs::write(path, flipped).unwrap();
        let found = Ledger::read(dir.path()).unwrap();
        let file = &found.files()[0];
        let told = !file.problems.is_empty() || !file.notes.is_empty();
        assert!(told || keys(&found) == keys(&read), "byte {at}");
        assert!(!told || keys(&found) == (vec![], vec![]), "byte {at}");
    }
}

#[test]
fn batches_with_one_key_and_different_members_are_not_trusted() {
    let dir = tempfile::tempdir().unwrap();
    let mut ledger = Ledger::default();
    let mut encoder = RunEncoder::default();
    for (key, ordinal) in [("twice", 1), ("once", 2), ("twice", 3)] {
        assert!(encoder.push(1, ordinal));
        let runs = encoder.finish();
        let runs = Runs::check(&runs).unwrap();
        ledger.add(SpoolRecord::Intent(IntentRecord { key, form: "", runs }));
    }
    ledger.consolidate(dir.path()).unwrap();
    let batch: Vec<_> = ledger.in_doubt().map(|(key, _)| key).collect();
    assert_eq!(batch, ["once"]);
    let members = ledger.members();
    assert!(members.contains(1, 2) && !members.contains(1, 3));
}

#[test]
fn a_lost_member_is_reported_and_the_others_are_read() {
    run(async {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::open(dir.path(), "n", &[0]).unwrap();
        let rig = Rig::new(&home, &Arc::default(), "n", SMALL).await;
        rig.numbers(0..8).await;
        let jobs = rig.pops(8).await;
        drop((rig.intend("batch", &jobs[..7]).await, jobs));
        rig.crash().await;
        let segment = segments(&home).into_iter().find(|path| !is_journal(path)).unwrap();
        let mut bytes = fs::read(&segment).unwrap();
        for group in [2, 3, 5] {
            bytes[(DATA_START + group * 4096 + 130) as usize] ^= 1;
        }
        fs::write(&segment, bytes).unwrap();
        let (home, _taken, orphans) = successor(dir.path(), home, "m");
        let rig = Rig::new(&home, &orphans, "m", SMALL).await;
        let mut batch = rig.spool.next_in_doubt().await.unwrap();
        let (mut found, mut errors) = (Vec::new(), Vec::new());
        loop {
            match batch.next().await {
                Ok(Some(payload)) => found.push(payload.to_vec()),
                Ok(None) => break,
                Err(error) => errors.push(error),
            }
        }
        assert_eq!(found, [0, 1, 4, 6].map(text));
        assert!(errors.iter().all(|error| error.kind() == io::ErrorKind::InvalidData));
        assert!(errors[0].to_string().contains("2 payloads of batch"), "{errors:?}");
        assert_eq!((errors.len(), rig.cells.payloads_lost.value()), (2, 3));
        assert_eq!(rig.cells.spool_payloads.value(), 4);
        batch.complete().await.unwrap();
        drop(batch);
        assert_eq!(rig.cells.spool_payloads.value(), 0);
        assert_eq!(rig.store(1).await[0].1, text(7));
        until("all is replayed", || orphans.bytes() == 0).await;
        assert_eq!(rig.cells.payloads_lost.value(), 3, "once");
        // Five payloads are stored; the workers, which are absent here, would count them.
        assert_eq!(rig.cells.undecided_and_unsynced(), (5, 0));
    });
}

#[test]
fn a_dropped_intent_leaves_the_journal_usable() {
    run(async {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::open(dir.path(), "n", &[0]).unwrap();
        let rig = Rig::new(&home, &Arc::default(), "n", SMALL).await;
        rig.numbers(0..50).await;
        let mut jobs = rig.pops(50).await;
        let mut dropped = Vec::new();
        for round in 0..25_u32 {
            // Dropped at any of its first steps. Its members are not used again, because its intent
            // may be on the disk.
            let intended = members(&jobs[..1]);
            dropped.push(jobs.remove(0));
            let mut intend = Box::pin(rig.spool.intend("dropped", "", &intended));
            for _ in 0..round {
                if poll_once(&mut intend).await.is_some() {
                    break;
                }
                crate::rt::yield_now().await;
            }
            drop(intend);
            let kept = jobs.remove(0);
            let intent = rig.intend(&format!("kept-{round}"), &[kept]).await;
            rig.spool.complete_batch(intent);
        }
        let own = rig.spool.own.dir().clone();
        rig.spool.flush(&own).await.unwrap();
        drop((own, dropped, jobs));
        rig.crash().await;
        let ledger = Ledger::read(&home.core_dir(0)).unwrap();
        assert_eq!(ledger.in_doubt().filter(|(key, _)| *key != "dropped").count(), 0);
        let (home, _taken, orphans) = successor(dir.path(), home, "m");
        let rig = Rig::new(&home, &orphans, "m", SMALL).await;
        while let Some(Some(mut batch)) = poll_once(rig.spool.next_in_doubt()).await {
            batch.complete().await.unwrap();
        }
        until("all is replayed", || {
            while let Some(job) = rig.queue.take() {
                rig.admission.taken(1);
                let number: u32 = str::from_utf8(&job.payload).unwrap().parse().unwrap();
                assert!(number.is_multiple_of(2), "{number} was stored with a batch");
                job.complete(Outcome::Stored);
            }
            orphans.bytes() == 0
        })
        .await;
    });
}

#[test]
fn values_of_requests_and_the_key_template_are_read_back() {
    run(async {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::open(dir.path(), "n", &[0]).unwrap();
        let size = Size { slots: 2, ..SMALL };
        let keys = Some("{date:%Y}/{version}/{header:x-tenant}/{token}/{seq}\n");
        let rig = Rig::with(&home, &Arc::default(), "n", size, 0, keys);
        let mut named = RequestValuesWriter::default();
        named.add(RequestSource::Header("x-tenant"), "größer");
        named.add(RequestSource::Token, "crawler");
        let all = [
            RequestValues::default(),
            RequestValues::of_version(""),
            RequestValues::of_version("1.2"),
            named.finish(),
        ];
        for values in &all {
            let (_, ticket) = rig.submit_with(&[b"1", b"2"], values).unwrap();
            ticket.wait(&Cell::new(false)).await.unwrap().unwrap();
        }
        // The first two come straight from memory, the others are read back.
        let check = async |rig: &Rig| {
            for values in all.iter().flat_map(|values| [values; 2]) {
                let job = rig.pop().await;
                assert_eq!(job.payload.values(), values);
                let read = job.record.as_ref().unwrap().origin().map(|origin| {
                    assert_eq!(origin.keys().as_deref(), keys);
                });
                assert_eq!(read.is_some(), rig.seq.get() == 0);
            }
        };
        check(&rig).await;
        let queued = Job::queued(Payload::from(b"7".to_vec()), Stamp { unix_nanos: 7, seq: 99 });
        rig.stop(&mut vec![queued]).await;
        while rig.queue.take().is_some() {}
        drop(rig);
        let (home, _taken, orphans) = successor(dir.path(), home, "m");
        let rig = Rig::new(&home, &orphans, "m", SMALL).await;
        check(&rig).await;
        let stopped = rig.pop().await;
        assert_eq!((&*stopped.payload, stopped.payload.values()), (&b"7"[..], &all[0]));
        assert_eq!(stopped.record.unwrap().origin().unwrap().keys().as_deref(), keys);
    });
}

#[test]
fn payloads_that_may_be_single_objects_are_never_batched() {
    run(async {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::open(dir.path(), "n", &[0]).unwrap();
        // Spooled for batches.
        let rig = Rig::new(&home, &Arc::default(), "n", SMALL).await;
        rig.send(&[b"1"]).await.unwrap();
        assert!(rig.pop().await.record.unwrap().origin().is_none());
        rig.crash().await;
        let (home, taken, orphans) = successor(dir.path(), home, "m");
        let rig = Rig::new(&home, &orphans, "m", SMALL).await;
        let job = rig.pop().await;
        assert!(!job.record.as_ref().unwrap().origin().unwrap().is_single_object(), "not put yet");
        // A payload keeps what its request has in the spool, and so the directory's lock.
        drop(job);
        rig.crash().await;
        // A process without batches uploads it and is killed before the next checkpoint.
        drop((home, taken, orphans));
        let home = Home::open(dir.path(), "o", &[0]).unwrap().with_single_objects();
        let (taken, orphans) = take_over(&home);
        let rig = Rig::new(&home, &orphans, "o", SMALL).await;
        assert!(rig.pop().await.record.unwrap().origin().unwrap().is_single_object());
        rig.crash().await;
        drop((taken, orphans));
        let (home, _taken, orphans) = successor(dir.path(), home, "p");
        let rig = Rig::new(&home, &orphans, "p", SMALL).await;
        let job = rig.pop().await;
        assert!(
            job.record.as_ref().unwrap().origin().unwrap().is_single_object(),
            "it may be stored"
        );
        job.complete(Outcome::Stored);
        rig.stop(&mut Vec::new()).await;
    });
}
