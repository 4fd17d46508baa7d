use super::*;
use crate::rt::{self, sleep, yield_now};

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::task::{Context, Poll, Wake, ready};
use std::thread;
use std::time::Instant;

use futures_lite::future::{poll_once, zip};
use futures_lite::{AsyncReadExt, AsyncWriteExt, FutureExt};
use socket2::SockRef;

const PATIENCE: Duration = Duration::from_secs(60);

/// Runs `test` on an executor with its sockets, for at most [`PATIENCE`]. Afterwards no socket may
/// be left.
fn with_net<T>(test: impl AsyncFnOnce(&Rc<Net>) -> T) -> T {
    rt::run_test(async {
        let net = Net::here().unwrap();
        assert!(Rc::ptr_eq(&net, &Net::here().unwrap()), "one for the executor");
        let late = async {
            sleep(PATIENCE).await;
            panic!("the test hangs")
        };
        let outcome = test(&net).or(late).await;
        while !net.sockets.borrow().is_empty() {
            sleep(Duration::from_millis(1)).or(late_again()).await;
        }
        outcome
    })
}

async fn late_again() {
    sleep(PATIENCE).await;
    panic!("a socket was not closed");
}

fn listen(net: &Rc<Net>) -> (Listener, SocketAddr) {
    let socket = crate::http::accept::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    (net.listener(socket), address)
}

/// One of our streams and its peer.
async fn pair(net: &Rc<Net>) -> (Stream, TcpStream) {
    let (listener, address) = listen(net);
    let theirs = TcpStream::connect(address).unwrap();
    theirs.set_read_timeout(Some(PATIENCE)).unwrap();
    (listener.accept().await.unwrap(), theirs)
}

fn noise(length: usize) -> Vec<u8> {
    let mut rng = fastrand::Rng::with_seed(length as u64);
    (0..length).map(|_| rng.u8(..)).collect()
}

#[test]
fn bytes_arrive_whole_and_in_order_both_ways() {
    with_net(async |net| {
        let (listener, address) = listen(net);
        let (ours, theirs) = zip(net.connect(address), listener.accept()).await;
        let (mut ours, mut theirs) = (ours.unwrap(), theirs.unwrap());
        let bytes = noise(5 << 20);
        let send = async {
            ours.write_all(&bytes).await.unwrap();
            ours.close().await.unwrap();
            let mut back = Vec::new();
            ours.read_to_end(&mut back).await.unwrap();
            assert!(back == bytes);
        };
        let echo = async {
            let mut all = Vec::new();
            theirs.read_to_end(&mut all).await.unwrap();
            // The beginning is copied, the rest is sent by reference.
            let length = all.len();
            let (all, start) = (Slice::new(SharedBytes::new(all, ()), 0..length), 100_000);
            theirs.write_all(&all[..start]).await.unwrap();
            let taken = poll_fn(|cx| match theirs.poll_send_shared(cx, &all, start) {
                Poll::Ready(Ok(0)) => Poll::Pending,
                taken => taken,
            });
            assert_eq!(taken.await.unwrap(), length - start);
            theirs.close().await.unwrap();
        };
        zip(send, echo).await;
    });
}

#[test]
fn a_send_without_a_copy_waits_for_the_one_before() {
    with_net(async |net| {
        let (ours, mut theirs) = pair(net).await;
        let (mut first, mut second) = (noise(4 << 20), b"second".to_vec());
        let all = [first.as_slice(), &second].concat();
        assert!(ours.send_whole(&mut first));
        assert!(first.is_empty() && !ours.send_whole(&mut second), "the first is in flight");
        let reader = thread::spawn(move || {
            let mut got = vec![0; all.len()];
            theirs.read_exact(&mut got).unwrap();
            assert!(got == all);
            theirs
        });
        poll_fn(|cx| ours.poll_sent(cx)).await.unwrap();
        assert!(ours.send_whole(&mut second));
        poll_fn(|cx| ours.poll_sent(cx)).await.unwrap();
        let theirs = reader.join().unwrap();
        drop(theirs);
    });
}

#[test]
fn a_head_and_a_body_leave_in_one_send() {
    with_net(async |net| {
        let (ours, mut theirs) = pair(net).await;
        let (mut head, mut second) = (b"head".to_vec(), b"second".to_vec());
        let body = Slice::new(SharedBytes::new(noise(4 << 20), ()), 3..(4 << 20) - 5);
        let all = [&head, &body[..], &second, &body[..]].concat();
        assert!(ours.send_pair(&mut head, &body));
        assert!(head.is_empty() && !ours.send_pair(&mut second, &body), "the first is in flight");
        assert_eq!(second, b"second");
        let reader = thread::spawn(move || {
            let mut got = vec![0; all.len()];
            theirs.read_exact(&mut got).unwrap();
            assert!(got == all);
            theirs
        });
        poll_fn(|cx| ours.poll_sent(cx)).await.unwrap();
        assert!(ours.send_pair(&mut second, &body));
        poll_fn(|cx| ours.poll_sent(cx)).await.unwrap();
        drop(reader.join().unwrap());
    });
}

#[test]
fn a_silent_stream_receives_ahead_of_its_reader() {
    with_net(async |net| {
        let (ours, mut theirs) = pair(net).await;
        assert!(ours.is_silent() && ours.is_silent());
        theirs.write_all(b"x").unwrap();
        while ours.is_silent() {
            yield_now().await;
        }
        let take = |bytes: &[u8]| bytes.len();
        assert_eq!(poll_fn(|cx| ours.poll_read_with(cx, take)).await.unwrap(), 1);
        assert!(ours.is_silent());
        drop(theirs);
        while ours.is_silent() {
            yield_now().await;
        }
        assert_eq!(poll_fn(|cx| ours.poll_read_with(cx, take)).await.unwrap(), 0);
    });
}

#[test]
fn only_a_send_that_is_waited_for_wakes_a_task() {
    #[derive(Default)]
    struct Woken(AtomicUsize);
    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Relaxed);
        }
    }
    with_net(async |net| {
        let (ours, mut theirs) = pair(net).await;
        let (mut long, mut short) = (noise(4 << 20), b"short".to_vec());
        let length = long.len() + short.len();
        let reader = thread::spawn(move || theirs.read_exact(&mut vec![0; length]).unwrap());
        let sent = async || {
            while !ours.has_sent() {
                sleep(Duration::from_millis(1)).await;
            }
        };
        let woken = Arc::new(Woken::default());
        assert!(ours.send_whole(&mut long));
        let waker = woken.clone().into();
        assert!(ours.poll_sent(&mut Context::from_waker(&waker)).is_pending());
        sent().await;
        assert_eq!(woken.0.load(Relaxed), 1);
        assert!(ours.send_whole(&mut short));
        sent().await;
        assert_eq!(woken.0.load(Relaxed), 1);
        reader.join().unwrap();
    });
}

#[test]
fn what_is_left_of_lent_bytes_stays_before_what_arrives_meanwhile() {
    with_net(async |net| {
        let (mut ours, mut theirs) = pair(net).await;
        // The receive stays, if the kernel can do that.
        theirs.write_all(b"first").unwrap();
        ours.read_exact(&mut [0; 5]).await.unwrap();
        for round in 0..3 {
            theirs.write_all(b"abc").unwrap();
            poll_fn(|cx| {
                let mut lent = match ours.poll_received(cx) {
                    Poll::Ready(lent) => lent.unwrap().unwrap(),
                    Poll::Pending => return Poll::Pending,
                };
                lent.take(1);
                theirs.write_all(b"def").unwrap();
                // Long enough for loopback.
                thread::sleep(Duration::from_millis(20));
                net.turn_now();
                Poll::Ready(())
            })
            .await;
            let mut rest = [0; 5];
            ours.read_exact(&mut rest).await.unwrap();
            assert_eq!(&rest, b"bcdef", "{round}");
        }
    });
}

/// A task that takes a turn of the sockets in between does not hide what the look has brought.
#[test]
fn a_turn_between_two_looks_hides_nothing_that_a_look_has_brought() {
    with_net(async |net| {
        for brought in [true, false] {
            rt::looked(brought);
            net.turn_now();
            assert_eq!(rt::look_brought_work(), brought);
        }
        let (mut ours, mut theirs) = pair(net).await;
        theirs.write_all(b"first").unwrap();
        ours.read_exact(&mut [0; 5]).await.unwrap();
        // Somebody waits for what comes now.
        let reading = rt::spawn(async move { ours.read_exact(&mut [0; 5]).await });
        rt::looked(false);
        theirs.write_all(b"other").unwrap();
        let began = rt::now();
        while !rt::look_brought_work() {
            assert!(rt::since(began) < Duration::from_secs(10), "it has woken its reader");
            net.turn_now();
        }
        reading.await.unwrap();
    });
}

/// In a buffer of the pool, which nobody else sees meanwhile, and in a copy.
#[test]
fn what_is_written_to_lent_bytes_is_what_is_read() {
    with_net(async |net| {
        let (mut ours, mut theirs) = pair(net).await;
        let (mut others, mut their_other) = pair(net).await;
        for copied in [false, true] {
            theirs.write_all(b"abcdef").unwrap();
            poll_fn(|cx| {
                ready!(ours.poll_readable(cx));
                if copied {
                    let mut sockets = net.sockets.borrow_mut();
                    sockets[ours.token].receive.copy_unread(&mut net.ring.borrow_mut());
                }
                let Poll::Ready(Ok(Some(mut lent))) = ours.poll_received(cx) else {
                    panic!("it is readable")
                };
                assert!(others.is_silent(), "it gets the next buffer");
                lent.take(1);
                assert_eq!(lent.bytes_mut(), b"bcdef");
                lent.bytes_mut()[1] = b'X';
                their_other.write_all(b"other").unwrap();
                thread::sleep(Duration::from_millis(20));
                net.turn_now();
                lent.bytes_mut()[3] = b'Y';
                assert_eq!(&*lent, b"bXdYf");
                Poll::Ready(())
            })
            .await;
            let mut rest = [0; 5];
            ours.read_exact(&mut rest).await.unwrap();
            assert_eq!(&rest, b"bXdYf", "{copied}");
            others.read_exact(&mut rest).await.unwrap();
            assert_eq!(&rest, b"other", "{copied}");
        }
    });
}

/// More connections hold unread bytes than there are buffers.
#[test]
fn readers_that_do_not_come_keep_no_buffers_from_the_others() {
    with_net(async |net| {
        let count = 2 * usize::from(ring::BUFFERS) + 10;
        let (listener, address) = listen(net);
        let mut pairs = Vec::new();
        for n in 0..count {
            let mut theirs = TcpStream::connect(address).unwrap();
            theirs.write_all(&(n as u64).to_le_bytes()).unwrap();
            pairs.push((listener.accept().await.unwrap(), theirs));
        }
        for (ours, _) in &pairs {
            assert!(poll_once(poll_fn(|cx| ours.poll_readable(cx))).await.is_none());
        }
        for (ours, _) in &pairs {
            poll_fn(|cx| ours.poll_readable(cx)).await;
        }
        for (n, (ours, theirs)) in pairs.iter_mut().enumerate() {
            theirs.write_all(b"more").unwrap();
            let mut bytes = [0; 12];
            ours.read_exact(&mut bytes).await.unwrap();
            assert_eq!(bytes, *[&(n as u64).to_le_bytes()[..], b"more"].concat());
        }
    });
}

/// Nearly all buffers are lent to readers, and the peers of many sockets send at once: their
/// receives find no buffer. Each is repeated when there is one for it, not in every turn until then.
#[test]
fn receives_that_find_no_buffer_are_repeated_once() {
    const FREE: usize = 4;
    const WAITING: usize = 200;
    with_net(async |net| {
        let pair = || {
            let (ours, theirs) = UnixStream::pair().unwrap();
            ours.set_nonblocking(true).unwrap();
            (net.stream(ours), theirs)
        };
        let held: Vec<_> = (0..usize::from(ring::BUFFERS) - FREE).map(|_| pair()).collect();
        let mut lent = Vec::new();
        for (ours, theirs) in &held {
            let mut theirs = theirs;
            theirs.write_all(b"lent").unwrap();
            lent.push(poll_fn(|cx| ours.poll_received(cx)).await.unwrap().unwrap());
        }
        let (mut readers, mut peers) = (Vec::new(), Vec::new());
        let before = net.ring.borrow().receives;
        for n in 0..WAITING {
            let (mut ours, theirs) = pair();
            readers.push(rt::spawn(async move {
                let mut bytes = [0; 8];
                ours.read_exact(&mut bytes).await.unwrap();
                assert_eq!(u64::from_le_bytes(bytes), n as u64);
            }));
            peers.push(theirs);
        }
        net.run_tasks_and_turn().await;
        for (n, theirs) in peers.iter_mut().enumerate() {
            theirs.write_all(&(n as u64).to_le_bytes()).unwrap();
        }
        for reader in readers {
            reader.await;
        }
        let receives = net.ring.borrow().receives - before;
        assert!(receives > WAITING, "there were buffers for all");
        assert!(receives <= 2 * WAITING, "{receives} receives of {WAITING} sockets");
        assert!(lent.iter().all(|bytes| &bytes[..] == b"lent"));
    });
}

#[test]
fn a_dropped_stream_is_closed_while_it_waits() {
    with_net(async |net| {
        let (mut ours, mut theirs) = pair(net).await;
        assert!(poll_once(ours.read(&mut [0; 8])).await.is_none());
        sleep(Duration::from_millis(5)).await;
        assert_eq!(net.sockets.borrow().len(), 1);
        drop(ours);
        sleep(Duration::from_millis(5)).await;
        assert_eq!(theirs.read(&mut [0; 8]).unwrap(), 0);
    });
}

#[test]
fn the_peers_end_and_failures_are_told() {
    with_net(async |net| {
        let (mut ours, theirs) = pair(net).await;
        drop(theirs);
        assert_eq!(ours.read(&mut [0; 8]).await.unwrap(), 0);
        assert_eq!(ours.read(&mut [0; 8]).await.unwrap(), 0, "and again");
        // The peer answers the first write with a reset, which the next write reports.
        let failure = loop {
            if let Err(error) = ours.write_all(b"anybody?").await {
                break error;
            }
            sleep(Duration::from_millis(1)).await;
        };
        let kinds = [io::ErrorKind::BrokenPipe, io::ErrorKind::ConnectionReset];
        assert!(kinds.contains(&failure.kind()), "{failure}");
        assert!(ours.flush().await.is_err());

        let (listener, address) = listen(net);
        drop(listener);
        sleep(Duration::from_millis(5)).await;
        let refused = net.connect(address).await.err().unwrap();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    });
}

/// Arms a continuous receive of ours.
async fn receive_continuously(ours: &Stream) {
    ours.receive_continuously();
    assert!(ours.is_silent());
    sleep(Duration::from_millis(20)).await;
}

#[test]
fn a_continuous_receive_brings_one_message_after_another_and_the_end() {
    with_net(async |net| {
        let (mut ours, mut theirs) = pair(net).await;
        receive_continuously(&ours).await;
        for n in 0..1000_u64 {
            theirs.write_all(&n.to_le_bytes()).unwrap();
            let mut bytes = [0; 8];
            ours.read_exact(&mut bytes).await.unwrap();
            assert_eq!(u64::from_le_bytes(bytes), n);
        }
        assert_eq!(net.ring.borrow().receives, 1);
        theirs.write_all(b"last").unwrap();
        drop(theirs);
        let mut rest = Vec::new();
        ours.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, b"last");
    });
}

/// Closes the connection with a reset.
fn reset(theirs: TcpStream) {
    SockRef::from(&theirs).set_linger(Some(Duration::ZERO)).unwrap();
    drop(theirs);
}

/// Kernels without the mend of CVE-2026-23473 tell a continuous receive of the bytes only.
#[test]
fn a_reset_that_comes_with_bytes_is_found_behind_them() {
    with_net(async |net| {
        for is_continuous in [false, true] {
            let (mut ours, mut theirs) = pair(net).await;
            if is_continuous {
                receive_continuously(&ours).await;
            }
            // Both arrive before the driver looks.
            theirs.write_all(b"half of an ans").unwrap();
            reset(theirs);
            let mut bytes = [0; 14];
            ours.read_exact(&mut bytes).await.unwrap();
            assert_eq!(&bytes, b"half of an ans");
            let error = ours.read_exact(&mut bytes).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{is_continuous}");
        }
    });
}

/// The reset came with an answer that was read whole, and the next request finds it.
#[test]
fn a_reader_hears_of_a_send_that_fails_after_a_reset() {
    with_net(async |net| {
        let (mut ours, mut theirs) = pair(net).await;
        receive_continuously(&ours).await;
        theirs.write_all(b"answer").unwrap();
        reset(theirs);
        let mut bytes = [0; 6];
        ours.read_exact(&mut bytes).await.unwrap();
        assert!(ours.send_whole(&mut b"next".to_vec()));
        let error = ours.read_exact(&mut bytes).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    });
}

#[test]
fn what_is_left_unread_ends_a_continuous_receive_and_comes_nevertheless() {
    with_net(async |net| {
        let (mut ours, mut theirs) = pair(net).await;
        receive_continuously(&ours).await;
        let sent = noise(1 << 20).repeat(16);
        let expected = sent.clone();
        let sender = thread::spawn(move || theirs.write_all(&sent).unwrap());
        let unread = || net.sockets.borrow()[ours.token].receive.arrived();
        while net.sockets.borrow()[ours.token].receive.is_continuous {
            sleep(Duration::from_millis(1)).await;
        }
        sleep(Duration::from_millis(50)).await;
        // The bound, and what the kernel may post in the turn in which it is reached.
        assert!(unread() <= (64 << 10) + ring::MEMORY_BYTES, "{}", unread());
        let mut all = Vec::new();
        ours.read_to_end(&mut all).await.unwrap();
        assert!(all == expected);
        sender.join().unwrap();
    });
}

#[test]
fn an_accept_given_up_loses_no_connection() {
    with_net(async |net| {
        let (listener, address) = listen(net);
        assert!(poll_once(listener.accept()).await.is_none());
        let _theirs = TcpStream::connect(address).unwrap();
        sleep(Duration::from_millis(5)).await;
        assert!(poll_once(listener.accept()).await.is_some());
    });
}

/// The driver sleeps on glommio between any two of these. The kernel or a submission wakes it.
#[test]
fn a_sleeping_driver_is_woken_by_either_side() {
    with_net(async |net| {
        let (mut ours, mut theirs) = pair(net).await;
        let answer = thread::spawn(move || {
            for _ in 0..50 {
                let mut byte = [0];
                theirs.read_exact(&mut byte).unwrap();
                thread::sleep(Duration::from_millis(2));
                theirs.write_all(&byte).unwrap();
            }
        });
        for n in 0..50 {
            ours.write_all(&[n]).await.unwrap();
            let mut byte = [0];
            ours.read_exact(&mut byte).await.unwrap();
            assert_eq!(byte, [n]);
            sleep(Duration::from_millis(2)).await;
        }
        answer.join().unwrap();
    });
}

/// A buffer for direct I/O, filled with `byte`.
async fn blocks(near: &glommio::io::DmaFile, count: usize, byte: u8) -> glommio::io::DmaBuffer {
    let mut buffer = near.alloc_dma_buffer(count * 4096);
    buffer.as_bytes_mut().fill(byte);
    buffer
}

/// A file of zeros, open for direct writes, and its path.
async fn direct_file(
    dir: &tempfile::TempDir,
) -> (std::path::PathBuf, OwnedFd, glommio::io::DmaFile) {
    use std::os::unix::fs::OpenOptionsExt;
    let path = dir.path().join("file");
    std::fs::write(&path, vec![0; 16 * 4096]).unwrap();
    let direct = rustix::fs::OFlags::DIRECT.bits() as i32;
    let file = std::fs::OpenOptions::new().write(true).custom_flags(direct).open(&path).unwrap();
    let near = glommio::io::DmaFile::open(&path).await.unwrap();
    (path, file.into(), near)
}

#[test]
fn a_synced_write_is_in_the_file_when_it_has_ended() {
    let dir = tempfile::tempdir().unwrap();
    with_net(async |net| {
        let (path, fd, near) = direct_file(&dir).await;
        let file = net.file(fd);
        for turn in 0..20_u8 {
            let at = u64::from(turn % 8) * 2 * 4096;
            file.write_synced(blocks(&near, 2, turn + 1).await, at).await.unwrap();
            let written = std::fs::read(&path).unwrap();
            let range = at as usize..at as usize + 2 * 4096;
            assert!(written[range].iter().all(|byte| *byte == turn + 1));
            assert_eq!(written.len(), 16 * 4096);
        }
        near.close().await.unwrap();
        drop(file);
        assert!(net.files.borrow().is_empty());
    });
}

#[test]
fn a_write_that_fails_says_why_and_the_file_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    with_net(async |net| {
        let (_, fd, near) = direct_file(&dir).await;
        let file = net.file(fd);
        // Direct I/O must be aligned.
        let error = file.write_synced(blocks(&near, 1, 1).await, 7).await.unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EINVAL), "{error}");
        file.write_synced(blocks(&near, 1, 1).await, 4096).await.unwrap();
        let read_only = std::fs::File::open(dir.path().join("file")).unwrap();
        let read_only = net.file(read_only.into());
        let error = read_only.write_synced(blocks(&near, 1, 1).await, 0).await.unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EBADF), "{error}");
        near.close().await.unwrap();
    });
}

#[test]
fn a_file_dropped_while_it_is_written_is_closed_when_that_has_ended() {
    let dir = tempfile::tempdir().unwrap();
    with_net(async |net| {
        let (path, fd, near) = direct_file(&dir).await;
        let file = net.file(fd);
        assert!(poll_once(file.write_synced(blocks(&near, 1, 9).await, 0)).await.is_none());
        drop(file);
        while !net.files.borrow().is_empty() {
            sleep(Duration::from_millis(1)).or(late_again()).await;
        }
        assert!(std::fs::read(&path).unwrap()[..4096].iter().all(|byte| *byte == 9));
        near.close().await.unwrap();
    });
}

#[test]
fn a_nap_ends_with_what_arrives_and_holds_up_no_other_task() {
    with_net(async |net| {
        net.set_nap(Duration::from_secs(5));
        let (mut ours, mut theirs) = pair(net).await;
        let started = Instant::now();
        // There is no nap while a task is ready.
        let busy = rt::spawn(async move {
            let mut turns = 0;
            while started.elapsed() < Duration::from_millis(50) {
                rt::yield_now().await;
                turns += 1;
            }
            turns
        });
        assert!(busy.await > 100);
        let writer = thread::spawn(move || {
            thread::sleep(Duration::from_millis(50));
            theirs.write_all(b"x").unwrap();
            theirs
        });
        let mut byte = [0];
        ours.read_exact(&mut byte).await.unwrap();
        let took = started.elapsed();
        assert!(took < Duration::from_secs(3), "slept through it: {took:?}");
        // There is no nap during a wait that only glommio sees.
        net.set_nap(Duration::from_secs(5));
        let guard = rt::foreign_wait();
        let before = Instant::now();
        sleep(Duration::from_millis(20)).await;
        assert!(before.elapsed() < Duration::from_secs(3));
        drop(guard);
        assert!(!rt::has_foreign_waits());
        net.set_nap(Duration::ZERO);
        writer.join().unwrap();
    });
}

#[derive(Default)]
struct SeenTurns(RefCell<Vec<Duration>>);

impl rt::TurnObserver for SeenTurns {
    fn turn(&self, length: Duration) {
        self.0.borrow_mut().push(length);
    }
    fn long_turn(&self, _: &rt::LongTurn) {}
}

/// Goal: every stretch of work is in one turn, whatever the driver did when it began (it looked,
/// napped or slept on glommio), and waiting is in none. Method: work of random length, in random
/// pieces, behind random waits.
#[test]
fn turns_hold_all_work_once_and_no_waiting() {
    let seed = rt::random();
    println!("seed {seed}");
    let mut rng = rt::Rng::with_seed(seed);
    for (nap_ms, foreign) in [(0, false), (1, false), (1, true), (20, false)] {
        with_net(async |net| {
            net.set_nap(Duration::from_millis(nap_ms));
            let _no_nap = foreign.then(rt::foreign_wait);
            let (mut ours, mut theirs) = pair(net).await;
            sleep(Duration::from_millis(10)).await;
            let turns: &'static SeenTurns = Box::leak(Box::default());
            rt::observe_turns(turns);
            let started = Instant::now();
            let (mut worked, mut waited) = (Duration::ZERO, Duration::ZERO);
            for _ in 0..40 {
                let wait = Duration::from_millis(rng.u64(1..15));
                sleep(wait).await;
                waited += wait;
                if rng.bool() {
                    theirs.write_all(b"!").unwrap();
                    ours.read_exact(&mut [0]).await.unwrap();
                }
                let (tasks, pieces) = (rng.u32(1..20), rng.u32(1..4));
                let piece = Duration::from_micros(rng.u64(1..500));
                let work = |_| async move {
                    for _ in 0..pieces {
                        let begun = Instant::now();
                        while begun.elapsed() < piece {}
                        yield_now().await;
                    }
                };
                let ready: Vec<_> = (0..tasks).map(work).map(rt::spawn).collect();
                for task in ready {
                    task.await;
                }
                worked += tasks * pieces * piece;
            }
            // Ends the last turn.
            sleep(Duration::from_millis(10)).await;
            let awake = started.elapsed() - waited;
            let counted: Duration = turns.0.borrow().iter().sum();
            let seen = format!("worked {worked:?}, counted {counted:?}, awake {awake:?}");
            println!("{seen}, waited {waited:?}");
            assert!(counted >= worked, "{seen}");
            assert!(counted <= awake + waited / 4, "{seen}, waited {waited:?}");
        });
    }
}
