//! What this server relies on in glommio, hyper and io_uring beyond what they document. A test that
//! fails after an update says which of our assumptions has gone, and where it is made.

#![expect(clippy::disallowed_methods, reason = "tests block: they are not on a core")]

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::{Future, pending, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::mpsc;
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::{Duration, Instant};

use futures_lite::future::{poll_once, yield_now};
use glommio::{LocalExecutorBuilder, Placement};
use hyper::body::{Body as _, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use millrace::internals::rt::Executor;
use rustix::thread::gettid;

const SOON: Duration = Duration::from_millis(500);
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs `test` on an executor without `rt::waking`, on a thread of its own; again if it sleeps for
/// ever, as such an executor may (see the first fact).
fn on_executor(test: impl AsyncFn() + Clone + Send + 'static) {
    for _ in 0..5 {
        let test = test.clone();
        let (say, hear) = mpsc::channel();
        thread::spawn(move || {
            let builder = LocalExecutorBuilder::new(Placement::Unbound).io_memory(64 << 10);
            let executor = builder.make().expect("io_uring is allowed here");
            executor.run(test());
            say.send(()).unwrap();
        });
        match hear.recv_timeout(PATIENCE) {
            Ok(()) => return,
            Err(mpsc::RecvTimeoutError::Timeout) => {}
            Err(mpsc::RecvTimeoutError::Disconnected) => panic!("see the thread's own message"),
        }
    }
    panic!("it slept five times out of five");
}

mod glommio_facts {
    use super::*;

    /// Why `rt::Executor` has a thread that wakes it (`rt::waking`): an executor whose time slice
    /// is over when it first looks at its tasks goes to sleep, although some are ready. A slice of
    /// a nanosecond makes that almost certain. If this fails, glommio has mended it, and that
    /// thread can go.
    #[test]
    fn an_executor_sleeps_with_ready_tasks_when_its_slice_is_over_at_the_first_look() {
        let slept = (0..20).any(|_| {
            let (say, hear) = mpsc::channel();
            let (say_tid, tid) = mpsc::channel();
            // Sleeps for ever: it ends with the process.
            thread::spawn(move || {
                let builder = LocalExecutorBuilder::new(Placement::Unbound)
                    .io_memory(64 << 10)
                    .preempt_timer(Duration::from_nanos(1));
                let executor = builder.make().expect("io_uring is allowed here");
                say_tid.send(gettid()).unwrap();
                executor.run(async move { say.send(()) })
            });
            let tid = tid.recv_timeout(PATIENCE).unwrap();
            let ran = hear.recv_timeout(SOON).is_ok();
            !ran && state(tid) == Some('S')
        });
        assert!(slept, "its main task ran 20 times out of 20");
    }

    /// The state of a thread of this process, `S` for asleep.
    fn state(thread: rustix::thread::Pid) -> Option<char> {
        let path = format!("/proc/self/task/{}/stat", thread.as_raw_pid());
        let stat = std::fs::read_to_string(path).ok()?;
        stat.rsplit(") ").next()?.chars().next()
    }

    /// The wake-ups of an executor that has ended are never taken. After 32,767 of them, 27 minutes
    /// at the rate of `rt::waking`, glommio aborts the process.
    #[test]
    fn no_wake_thread_outlives_its_executor() {
        let wake_threads = || {
            let tasks = std::fs::read_dir("/proc/self/task").unwrap();
            let name = |task: io::Result<std::fs::DirEntry>| {
                std::fs::read_to_string(task.unwrap().path().join("comm")).unwrap_or_default()
            };
            tasks.map(name).filter(|name| name.trim() == "millrace-wake").count()
        };
        // A thread names itself once it runs, and is listed for a moment after it was joined.
        let wait_for = |count, when| {
            let begun = Instant::now();
            while wake_threads() != count {
                assert!(begun.elapsed() < PATIENCE, "{when}: not {count}");
                thread::sleep(Duration::from_millis(1));
            }
        };
        let executor = || Executor::small().unwrap();
        let never_run = executor();
        wait_for(1, "before it runs");
        drop(never_run);
        wait_for(0, "never run");
        executor().run(async { wait_for(1, "running") });
        wait_for(0, "ended");
        let panics = move || executor().run(async { panic!("as the test wants it") });
        thread::spawn(panics).join().unwrap_err();
        wait_for(0, "panicked");
    }

    /// `rt::waking` and the blocking threads of a spool (`spool::disk`) wake tasks from other
    /// threads, also while the executor sleeps in the kernel.
    #[test]
    fn a_waker_called_on_another_thread_ends_the_executors_sleep() {
        on_executor(async || {
            let (send, receive) = mpsc::channel::<Waker>();
            let waking = thread::spawn(move || {
                let waker = receive.recv().unwrap();
                // Until it has gone to sleep.
                for _ in 0..5 {
                    thread::sleep(Duration::from_millis(20));
                    waker.wake_by_ref();
                }
            });
            let mut polls = 0;
            let sleep_twice = poll_fn(|cx| {
                polls += 1;
                if polls == 1 {
                    send.send(cx.waker().clone()).unwrap();
                }
                if polls < 3 { Poll::Pending } else { Poll::Ready(()) }
            });
            sleep_twice.await;
            waking.join().unwrap();
        });
    }

    /// `rt::is_idle`: reading the statistics resets them, and between two yields of the task queue
    /// every ready task runs once, so a count of one is the task that asks. `net` sleeps in its own
    /// ring only then.
    #[test]
    fn tasks_executed_counts_the_tasks_that_ran_between_two_yields() {
        on_executor(async || {
            let count = async || {
                let executor = glommio::executor();
                executor.yield_task_queue_now().await;
                let _reset = executor.executor_stats();
                executor.yield_task_queue_now().await;
                executor.executor_stats().tasks_executed()
            };
            assert!(count().await <= 1, "alone");
            let busy = glommio::spawn_local(async {
                loop {
                    yield_now().await;
                }
            });
            assert!(count().await > 1, "beside a task that is always ready");
            // One that waits for something is none that wants to run.
            busy.cancel().await;
            let _waits = glommio::spawn_local(pending::<()>());
            count().await;
            assert!(count().await <= 1);
        });
    }

    /// `store::faulty` yields before it panics, because a new task is first polled inside
    /// `spawn_local`.
    #[test]
    fn a_new_task_is_polled_inside_spawn_local() {
        on_executor(async || {
            let polled = Rc::new(Cell::new(false));
            let seen = polled.clone();
            let task = glommio::spawn_local(async move { seen.set(true) });
            let at_once = polled.get();
            task.await;
            assert!(at_once && polled.get());
        });
    }

    /// Sets its flag when it is dropped.
    struct Dropped(Rc<Cell<bool>>);

    impl Drop for Dropped {
        fn drop(&mut self) {
            self.0.set(true);
        }
    }

    /// A stop cancels the workers (`core::drain`) and afterwards takes what they held out of
    /// `Core`: by then their futures must be gone.
    #[test]
    fn when_cancel_returns_the_tasks_future_has_been_dropped() {
        on_executor(async || {
            let dropped = Rc::new(Cell::new(false));
            let held = Dropped(dropped.clone());
            let task = glommio::spawn_local(async move {
                let _held = held;
                pending::<()>().await;
            });
            yield_now().await;
            assert!(!dropped.get());
            assert_eq!(task.cancel().await, None);
            assert!(dropped.get());
        });
    }

    /// A connection's dial (`store::s3::race`) and the stop of a core end tasks by dropping them;
    /// `rt::spawn(…).detach()` does not.
    #[test]
    fn a_dropped_task_is_cancelled_and_a_detached_one_goes_on() {
        on_executor(async || {
            let turns = Rc::new(Cell::new(0));
            let count = |turns: Rc<Cell<u32>>| async move {
                for _ in 0..10 {
                    turns.set(turns.get() + 1);
                    yield_now().await;
                }
            };
            drop(glommio::spawn_local(count(turns.clone())));
            for _ in 0..20 {
                yield_now().await;
            }
            assert!(turns.get() <= 1, "{} turns", turns.get());
            turns.set(0);
            glommio::spawn_local(count(turns.clone())).detach().await.unwrap();
            assert_eq!(turns.get(), 10);
        });
    }

    /// `rt::blocking`: its result wakes an executor that sleeps. Dropped early (a stop cancels a
    /// worker that writes a dead letter), the work is done all the same, and the thread serves the
    /// next caller.
    #[test]
    fn blocking_work_wakes_the_executor_and_is_done_even_if_nobody_waits() {
        on_executor(async || {
            let slow = || {
                thread::sleep(Duration::from_millis(30));
                7
            };
            assert_eq!(glommio::executor().spawn_blocking(slow).await, 7);
            let (done, seen) = mpsc::channel();
            let work = move || {
                thread::sleep(Duration::from_millis(10));
                done.send(()).unwrap();
            };
            {
                let mut left = pin!(glommio::executor().spawn_blocking(work));
                assert!(poll_once(&mut left).await.is_none());
            }
            assert_eq!(glommio::executor().spawn_blocking(|| 8).await, 8);
            assert_eq!(seen.recv_timeout(PATIENCE), Ok(()));
        });
    }
}

mod hyper_facts {
    use super::*;

    /// A socket that gives one piece a read, then its end or nothing more, and keeps what is
    /// written to it.
    #[derive(Clone, Default)]
    struct Script(Rc<RefCell<Io>>);

    #[derive(Default)]
    struct Io {
        pieces: VecDeque<Vec<u8>>,
        ends: bool,
        written: Vec<u8>,
    }

    impl Script {
        fn of(pieces: &[&str], ends: bool) -> Script {
            let pieces = pieces.iter().map(|piece| piece.as_bytes().to_vec()).collect();
            Script(Rc::new(RefCell::new(Io { pieces, ends, written: Vec::new() })))
        }

        fn written(&self) -> String {
            String::from_utf8(self.0.borrow().written.clone()).unwrap()
        }
    }

    impl hyper::rt::Read for Script {
        fn poll_read(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            mut buf: hyper::rt::ReadBufCursor<'_>,
        ) -> Poll<io::Result<()>> {
            let mut io = self.0.borrow_mut();
            match io.pieces.pop_front() {
                Some(mut piece) => {
                    let rest = piece.split_off(piece.len().min(buf.remaining()));
                    if !rest.is_empty() {
                        io.pieces.push_front(rest);
                    }
                    buf.put_slice(&piece);
                }
                None if io.ends => {}
                None => return Poll::Pending,
            }
            Poll::Ready(Ok(()))
        }
    }

    impl hyper::rt::Write for Script {
        fn poll_write(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            buf: &[u8],
        ) -> Poll<io::Result<usize>> {
            self.0.borrow_mut().written.extend_from_slice(buf);
            Poll::Ready(Ok(buf.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    /// As `http::conn` sets it up.
    fn builder() -> http1::Builder {
        let mut builder = http1::Builder::new();
        builder.half_close(true).header_read_timeout(None).max_buf_size(16 << 10);
        builder
    }

    /// Polls a connection until nothing moves; its outcome, if it has ended.
    fn serve<F: Future<Output = Result<Response<String>, Infallible>>>(
        builder: &http1::Builder,
        script: &Script,
        service: impl Fn(Request<Incoming>) -> F,
    ) -> Option<hyper::Result<()>> {
        let mut connection = pin!(builder.serve_connection(script.clone(), service_fn(service)));
        let mut cx = Context::from_waker(Waker::noop());
        (0..20).find_map(|_| match connection.as_mut().poll(&mut cx) {
            Poll::Ready(outcome) => Some(outcome),
            Poll::Pending => None,
        })
    }

    /// The body as text.
    async fn text(mut body: Incoming) -> String {
        let mut text = String::new();
        while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
            if let Ok(data) = frame.unwrap().into_data() {
                text.push_str(std::str::from_utf8(&data).unwrap());
            }
        }
        text
    }

    /// `http::body` reserves as much as `content-length` says and appends without looking at the
    /// sum.
    #[test]
    fn hyper_hands_out_no_more_of_a_body_than_was_announced() {
        let head = "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\n";
        for pieces in [&[head, "abcdef"][..], &[&format!("{head}abcdef")], &[head, "ab", "cdef"]] {
            let bodies = RefCell::new(Vec::new());
            serve(&builder(), &Script::of(pieces, true), async |request| {
                let body = text(request.into_body()).await;
                bodies.borrow_mut().push(body);
                Ok(Response::new(String::new()))
            });
            assert_eq!(bodies.into_inner(), ["abc"], "{pieces:?}");
        }
    }

    const GET: &str = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";

    /// A client that has closed its half gets its answer (`http::conn::drive`), also when that
    /// takes a while.
    #[test]
    fn a_half_closed_connection_is_answered() {
        let slow = async |_| {
            yield_now().await;
            yield_now().await;
            Ok(Response::new("late".to_owned()))
        };
        let script = Script::of(&[GET], true);
        assert!(serve(&builder(), &script, slow).is_some(), "and ends");
        assert!(script.written().ends_with("late"), "{}", script.written());
    }

    /// What `http::conn::Arrived` counts: hyper reads ahead into its own buffer, so a connection
    /// whose hyper part is dropped between requests (`End::Quiet`) would lose the beginning of the
    /// next head if nobody had looked.
    #[test]
    fn hyper_reads_past_the_end_of_a_request() {
        let script = Script::of(&[&format!("{GET}GET /sec")], false);
        let served = Cell::new(0);
        let outcome = serve(&builder(), &script, async |_| {
            served.set(served.get() + 1);
            Ok(Response::new(String::new()))
        });
        assert!(outcome.is_none(), "it goes on");
        assert_eq!(served.get(), 1);
        assert!(script.0.borrow().pieces.is_empty(), "taken, and nobody can see it");
    }

    /// A timer that has always come.
    struct AlwaysDue;

    struct Due;

    impl Future for Due {
        type Output = ();
        fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
            Poll::Ready(())
        }
    }

    impl hyper::rt::Sleep for Due {}

    impl hyper::rt::Timer for AlwaysDue {
        fn sleep(&self, _: Duration) -> Pin<Box<dyn hyper::rt::Sleep>> {
            Box::pin(Due)
        }
        fn sleep_until(&self, _: Instant) -> Pin<Box<dyn hyper::rt::Sleep>> {
            Box::pin(Due)
        }
    }

    /// Why `http::conn` has a deadline of its own for heads: hyper's closes without a word, and our
    /// clients get a 408.
    #[test]
    fn hypers_header_timeout_sends_no_reply() {
        let mut builder = builder();
        builder.timer(AlwaysDue).header_read_timeout(SOON);
        let script = Script::of(&["GET / HTT"], false);
        let outcome = serve(&builder, &script, async |_| Ok(Response::new(String::new())));
        assert!(outcome.is_some_and(|outcome| outcome.is_err_and(|error| error.is_timeout())));
        assert_eq!(script.written(), "");
    }

    /// `http::conn::refused_by_hyper` counts the answers that hyper gives by itself, by the kind of
    /// its error.
    #[test]
    fn hyper_answers_heads_that_it_cannot_take() {
        let long = format!("GET / HTTP/1.1\r\nlong: {}\r\n", "x".repeat(8 << 10));
        let rest = "x".repeat(8 << 10);
        let h2 = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
        let of = |pieces: &[&str]| {
            let script = Script::of(pieces, false);
            let outcome = serve(&builder(), &script, async |_| Ok(Response::new(String::new())));
            let error = outcome.expect("it ends").unwrap_err();
            (error, script.written())
        };
        let (error, written) = of(&[&long, &rest, &rest]);
        assert!(error.is_parse_too_large() && written.starts_with("HTTP/1.1 431 "), "{written}");
        let (error, written) = of(&["nonsense\r\n\r\n"]);
        assert!(error.is_parse() && written.starts_with("HTTP/1.1 400 "), "{written}");
        let (error, written) = of(&[h2]);
        assert!(error.is_parse_version_h2() && written.is_empty(), "{written}");
    }
}

mod io_uring_facts {
    use super::*;
    use io_uring::types::{CancelBuilder, Fd, FsyncFlags};
    use io_uring::{IoUring, opcode, squeue};
    use rustix::event::{EventfdFlags, eventfd};
    use std::fs::File;
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;

    /// A ring as `net::ring` makes it.
    fn ring() -> IoUring {
        let mut builder = IoUring::builder();
        builder.setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag().setup_submit_all();
        builder.build(8).expect("io_uring is allowed here")
    }

    /// Hands over `entries` and waits for `count` completions: their numbers and results, in order.
    /// Then there are no more.
    fn complete(ring: &mut IoUring, entries: &[squeue::Entry], count: usize) -> Vec<(u64, i32)> {
        // SAFETY: what the entries name lives in the callers, which wait for the completions here.
        unsafe { ring.submission().push_multiple(entries) }.expect("the queue has room");
        let mut found = Vec::new();
        while found.len() < count {
            ring.submit_and_wait(1).unwrap();
            found.extend(ring.completion().map(|entry| (entry.user_data(), entry.result())));
        }
        thread::sleep(Duration::from_millis(20));
        ring.submit().unwrap();
        found.extend(ring.completion().map(|entry| (entry.user_data(), entry.result())));
        found
    }

    const WRITE: u64 = 1;
    const SYNC: u64 = 2;

    /// A write and the sync linked behind it, of which only the last or a failure is told.
    fn write_synced(file: &File, bytes: &[u8]) -> [squeue::Entry; 2] {
        let fd = Fd(file.as_raw_fd());
        let write = opcode::Write::new(fd, bytes.as_ptr(), bytes.len() as u32).build();
        let write = write.flags(squeue::Flags::IO_LINK | squeue::Flags::SKIP_SUCCESS);
        let sync = opcode::Fsync::new(fd).flags(FsyncFlags::DATASYNC).build();
        [write.user_data(WRITE), sync.user_data(SYNC)]
    }

    /// `net::ring::write_synced`, the spool's commit: one completion, which says that the bytes are
    /// written and synced.
    #[test]
    fn a_sync_that_is_linked_behind_a_write_completes_for_both() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let file = File::create(&path).unwrap();
        let bytes = b"payload";
        let found = complete(&mut ring(), &write_synced(&file, bytes), 1);
        assert_eq!(found, [(SYNC, 0)]);
        assert_eq!(std::fs::read(&path).unwrap(), bytes);
    }

    /// The same, when the write fails: that is told, and nothing of a sync which would seem to have
    /// succeeded. The pending write is over then, so its buffer may be freed.
    #[test]
    fn a_write_that_fails_completes_alone_and_its_sync_is_not_done() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        File::create(&path).unwrap();
        // For reading only.
        let file = File::open(&path).unwrap();
        let found = complete(&mut ring(), &write_synced(&file, b"payload"), 1);
        assert_eq!(found, [(WRITE, -libc::EBADF)]);
    }

    /// `net::Net::abandon`: a cancel by descriptor ends what is in flight on it, and every
    /// operation still has a completion of its own, before which its memory is not freed.
    #[test]
    fn a_cancelled_receive_still_completes() {
        const RECEIVE: u64 = 3;
        const CANCEL: u64 = 4;
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let (mut ring, mut room) = (ring(), [0u8; 8]);
        let fd = Fd(ours.as_raw_fd());
        let receive = opcode::Recv::new(fd, room.as_mut_ptr(), room.len() as u32).build();
        let cancel = opcode::AsyncCancel2::new(CancelBuilder::fd(fd).all()).build();
        let entries = [receive.user_data(RECEIVE), cancel.user_data(CANCEL)];
        let mut found = complete(&mut ring, &entries, 2);
        found.sort_unstable();
        // The cancel says how many it has found.
        assert_eq!(found, [(RECEIVE, -libc::ECANCELED), (CANCEL, 1)]);
    }

    /// `net::ring::Ring::announce`: while the driver looks by itself, completions must not cost a
    /// wake-up by the eventfd.
    #[test]
    fn the_eventfd_is_silent_while_it_is_disabled() {
        let mut ring = ring();
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
        ring.submitter().register_eventfd(event.as_raw_fd()).unwrap();
        let mut count = [0; 8];
        let nop = [opcode::Nop::new().build()];
        ring.completion().disable_eventfd();
        complete(&mut ring, &nop, 1);
        assert_eq!(rustix::io::read(&event, &mut count), Err(rustix::io::Errno::AGAIN));
        ring.completion().enable_eventfd();
        complete(&mut ring, &nop, 1);
        assert_eq!(rustix::io::read(&event, &mut count), Ok(8));
        assert_eq!(u64::from_ne_bytes(count), 1);
    }
}
