use super::*;
use std::io::Write as _;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::Instant;

#[test]
fn a_tag_names_its_owner_and_its_kind() {
    use OpKind::*;
    for kind in [Receive, Send, Accept, Connect, Write, Sync, Cancel] {
        for token in [0, 1, 7, 8, 1 << 40] {
            let tag = Tag::new(token, kind);
            assert_eq!((tag.token(), tag.kind()), (token, kind));
        }
    }
}

#[test]
fn not_now_is_no_error_and_everything_else_is() {
    let answer = |errno| judge(Err(io::Error::from_raw_os_error(errno)));
    assert!(judge(Ok(0)).is_ok());
    for errno in [libc::EINTR, libc::EAGAIN, libc::EBUSY, libc::ETIME] {
        assert!(answer(errno).is_ok(), "{errno}");
    }
    for errno in [libc::EBADF, libc::EBADFD, libc::EINVAL, libc::EPERM, libc::EOPNOTSUPP] {
        assert!(answer(errno).is_err(), "{errno}");
    }
}

/// What has completed in at most `turns` turns, in order.
fn completions(ring: &mut Ring, turns: usize) -> Vec<(usize, OpResult)> {
    let mut all = Vec::new();
    for _ in 0..turns {
        ring.turn().unwrap();
        while let Some(Completion { token, result, .. }) = ring.next() {
            all.push((token, result));
        }
    }
    all
}

fn received(ring: &mut Ring, outcomes: Vec<(usize, OpResult)>) -> Vec<(usize, Vec<u8>)> {
    let each = outcomes.into_iter().map(|(token, result)| match result {
        OpResult::Received(Ok(Some(buffer))) => {
            let bytes = ring.bytes(&buffer).to_vec();
            ring.give_back(buffer);
            (token, bytes)
        }
        _ => panic!("{token}: not received"),
    });
    let mut all: Vec<_> = each.collect();
    all.sort();
    all
}

/// Whatever the kernel answers when the queue is full, nothing is lost or reordered.
#[test]
fn submissions_that_find_the_queue_full_wait_for_their_turn() {
    for refusal in [None, Some(libc::EAGAIN), Some(libc::EBUSY), Some(libc::EINTR)] {
        let mut ring = Ring::sized(4, 8).unwrap();
        let pairs: Vec<_> = (0..40).map(|_| UnixStream::pair().unwrap()).collect();
        ring.refusals.extend(refusal.iter().cycle().take(50));
        for (token, (ours, _)) in pairs.iter().enumerate() {
            ring.receive(ours.as_fd(), token, false);
        }
        assert_eq!(ring.in_flight, 40);
        assert_eq!(ring.backlog.len(), if refusal.is_some() { 36 } else { 0 }, "{refusal:?}");
        // The cancel must stay behind the receives that it cancels, wherever those wait.
        ring.cancel(pairs[39].0.as_fd());
        for (token, (_, theirs)) in pairs.iter().enumerate().take(39) {
            let mut theirs = theirs;
            theirs.write_all(&[token as u8]).unwrap();
        }
        let mut outcomes = completions(&mut ring, 100);
        let canceled = outcomes.iter().position(|(token, _)| *token == 39).unwrap();
        assert!(matches!(outcomes.remove(canceled).1, OpResult::Received(Err(_))));
        let got = received(&mut ring, outcomes);
        let sent: Vec<_> = (0..39).map(|token| (token, vec![token as u8])).collect();
        assert_eq!(got, sent, "{refusal:?}");
        assert!(ring.backlog.is_empty() && ring.in_flight == 0);
    }
}

#[test]
fn a_receive_ends_with_one_buffer_and_says_whether_more_has_arrived() {
    let mut ring = Ring::new().unwrap();
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let sent: Vec<u8> = (0..100_000).map(|n| (n / 100) as u8).collect();
    theirs.write_all(&sent[..100]).unwrap();
    ring.receive(ours.as_fd(), 0, false);
    let mut got = Vec::new();
    while got.len() < sent.len() {
        ring.turn().unwrap();
        let Some(Completion { result, .. }) = ring.next() else { continue };
        let OpResult::Received(Ok(Some(buffer))) = result else { panic!("not received") };
        if got.is_empty() {
            assert_eq!(buffer.len(), 100);
            theirs.write_all(&sent[100..]).unwrap();
        }
        assert_eq!(ring.in_flight, 0);
        got.extend_from_slice(ring.bytes(&buffer));
        let more = buffer.more();
        ring.give_back(buffer);
        ring.receive(ours.as_fd(), 0, more);
    }
    assert!(got == sent);
}

/// More completions than the shared queue holds, unread, while submissions go on.
#[test]
fn a_completion_queue_that_overflows_loses_nothing() {
    let mut ring = Ring::sized(4, 8).unwrap();
    let pairs: Vec<_> = (0..60).map(|_| UnixStream::pair().unwrap()).collect();
    for (token, (ours, theirs)) in pairs.iter().enumerate() {
        let mut theirs = theirs;
        theirs.write_all(&[token as u8]).unwrap();
        ring.receive(ours.as_fd(), token, false);
        ring.turn().unwrap();
    }
    let outcomes = completions(&mut ring, 100);
    let sent: Vec<_> = (0..60).map(|token| (token, vec![token as u8])).collect();
    assert_eq!(received(&mut ring, outcomes), sent);
}

#[test]
fn a_chain_waits_whole() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    rt::run_test(async {
        std::fs::write(&path, [0; 4096]).unwrap();
        let near = glommio::io::DmaFile::open(&path).await.unwrap();
        let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
        let mut ring = Ring::sized(4, 8).unwrap();
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        // Room for one of the two entries of a synced write.
        for _ in 0..3 {
            ring.cancel(ours.as_fd());
        }
        ring.refusals.extend([libc::EBUSY; 3]);
        let mut bytes = near.alloc_dma_buffer(4096);
        bytes.as_bytes_mut().fill(9);
        ring.write_synced(file.as_fd(), 5, bytes, 0);
        assert_eq!(ring.backlog.len(), 1);
        // Must not overtake.
        ring.receive(ours.as_fd(), 6, false);
        assert_eq!(ring.backlog.len(), 2);
        theirs.write_all(b"x").unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        let mut outcomes = Vec::new();
        while outcomes.len() < 2 {
            assert!(Instant::now() < deadline);
            outcomes.extend(completions(&mut ring, 1));
        }
        outcomes.sort_by_key(|(token, _)| *token);
        assert!(matches!(outcomes[0], (5, OpResult::Synced(Ok(())))));
        assert!(matches!(outcomes[1], (6, OpResult::Received(Ok(_)))));
        assert_eq!(std::fs::read(&path).unwrap(), [9; 4096]);
        near.close().await.unwrap();
    });
}

#[test]
fn a_ring_that_is_refused_says_so_in_its_next_turn() {
    let mut ring = Ring::sized(4, 8).unwrap();
    let (ours, _theirs) = UnixStream::pair().unwrap();
    ring.refusals.extend([libc::EBADFD; 2]);
    for _ in 0..5 {
        ring.cancel(ours.as_fd());
    }
    assert_eq!(ring.turn().unwrap_err().raw_os_error(), Some(libc::EBADFD));
}

#[test]
fn the_buffers_used_last_are_used_first() {
    let mut ring = Ring::new().unwrap();
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let mut used = std::collections::BTreeSet::new();
    for n in 0..10 * BUFFERS {
        theirs.write_all(&n.to_le_bytes()).unwrap();
        ring.receive(ours.as_fd(), 0, true);
        ring.turn().unwrap();
        let Some(OpResult::Received(Ok(Some(buffer)))) = ring.next().map(|ended| ended.result)
        else {
            panic!("not received")
        };
        assert_eq!(ring.bytes(&buffer), n.to_le_bytes());
        used.insert(buffer.id);
        ring.give_back(buffer);
    }
    assert!(used.len() <= usize::from(BUFFERS) / 2, "{used:?}");
}

#[test]
fn completions_that_are_not_read_take_no_more_buffers() {
    let mut ring = Ring::new().unwrap();
    let pairs: Vec<_> = (0..BUFFERS).map(|_| UnixStream::pair().unwrap()).collect();
    for (token, (ours, _)) in pairs.iter().enumerate() {
        ring.receive(ours.as_fd(), token, false);
    }
    ring.turn().unwrap();
    for (_, theirs) in &pairs {
        let mut theirs = theirs;
        theirs.write_all(b"x").unwrap();
    }
    for _ in 0..100 {
        ring.turn().unwrap();
    }
    let unread = ring.uring.completion().len();
    assert!((UNREAD_ENOUGH..usize::from(BUFFERS) / 2).contains(&unread), "{unread}");
    // They come once there is room, each with its buffer.
    let mut left = pairs.len();
    while left > 0 {
        let ended = completions(&mut ring, 1);
        left -= ended.len();
        received(&mut ring, ended);
    }
}

#[test]
fn what_many_sockets_lend_is_listed_in_small_pieces() {
    use crate::alloc::largest::{PIECE_BYTES_MAX, largest_in};
    let mut ring = Ring::sized(4, 8).unwrap();
    let largest = largest_in(|| {
        for token in 0..10_000 {
            let bytes = vec![token as u8; token % 3];
            ring.lend(token, Lent::Bytes(Outgoing::Buffer(bytes)));
        }
    });
    assert!(largest <= PIECE_BYTES_MAX, "{largest}");
    for token in (0..10_000).rev() {
        let Lent::Bytes(bytes) = ring.take_back(token) else { panic!("not lent") };
        assert_eq!(bytes.into_buffer().unwrap(), vec![token as u8; token % 3]);
    }
}
