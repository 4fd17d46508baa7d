//! Bytes that have arrived on a socket, lent to its reader where they lie.
#![expect(unsafe_code, reason = "bytes of the pool are used while the ring is not borrowed")]

use std::io;
use std::mem;
use std::ops::Deref;
use std::task::{Context, Poll, ready};

use super::ring::Buffer;
use super::socket::UnreadBytes;
use super::stream::Stream;

/// Bytes that have arrived and are unread. What is not taken of them when this is dropped is read
/// again.
///
/// Unlike a read with [`Stream::poll_read_with`], the reader may use other sockets and files
/// meanwhile, but must not read this socket.
pub struct Received<'a> {
    stream: &'a Stream,
    lent: LentBytes,
    taken: usize,
}

enum LentBytes {
    /// A buffer of the pool, and its bytes.
    Buffer(Buffer, *mut [u8]),
    Copied(Vec<u8>),
}

impl Stream {
    /// Waits for bytes and lends them. `None` is the peer's end.
    pub fn poll_received(&self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Received<'_>>>> {
        ready!(self.poll_readable(cx));
        let mut sockets = self.net.sockets.borrow_mut();
        let receive = &mut sockets[self.token].receive;
        let (lent, taken) = match mem::take(&mut receive.unread) {
            UnreadBytes::Held(buffer, taken) => {
                let bytes = self.net.ring.borrow().bytes_of(&buffer);
                (LentBytes::Buffer(buffer, bytes), taken)
            }
            UnreadBytes::Copied(bytes, taken) => (LentBytes::Copied(bytes), taken),
            UnreadBytes::Nothing => {
                return Poll::Ready(receive.ended().expect("it is readable").map(|()| None));
            }
        };
        Poll::Ready(Ok(Some(Received { stream: self, lent, taken })))
    }
}

impl Received<'_> {
    /// The bytes, to decrypt them where they lie. What is written to those that are not taken is
    /// read again.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        let all = match &mut self.lent {
            // SAFETY: as in `deref`. No other reference to these bytes exists: `self` is borrowed
            // exclusively, and the ring lends a buffer that was taken out of the socket's state to
            // nobody else.
            LentBytes::Buffer(_, bytes) => unsafe { &mut **bytes },
            LentBytes::Copied(bytes) => bytes,
        };
        &mut all[self.taken..]
    }

    /// Marks the next `bytes` bytes as read.
    pub fn take(&mut self, bytes: usize) {
        assert!(bytes <= self.len(), "no more than there are");
        self.taken += bytes;
    }
}

impl Deref for Received<'_> {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        let all = match &self.lent {
            // SAFETY: the pool's memory is mapped for as long as the ring lives, which `Net` owns
            // and `stream` keeps. The kernel writes to a buffer only after `Ring::give_back`, which
            // takes it by value: `drop` calls it, when no borrow of these bytes is left.
            LentBytes::Buffer(_, bytes) => unsafe { &**bytes },
            LentBytes::Copied(bytes) => bytes,
        };
        &all[self.taken..]
    }
}

impl Drop for Received<'_> {
    fn drop(&mut self) {
        let is_rest = !self.is_empty();
        let lent = mem::replace(&mut self.lent, LentBytes::Copied(Vec::new()));
        let mut sockets = self.stream.net.sockets.borrow_mut();
        let receive = &mut sockets[self.stream.token].receive;
        let rest = match lent {
            LentBytes::Buffer(buffer, _) if is_rest => UnreadBytes::Held(buffer, self.taken),
            LentBytes::Buffer(buffer, _) => {
                self.stream.net.ring.borrow_mut().give_back(buffer);
                return;
            }
            LentBytes::Copied(bytes) if is_rest => UnreadBytes::Copied(bytes, self.taken),
            LentBytes::Copied(_) => return,
        };
        receive.put_back(rest, &mut self.stream.net.ring.borrow_mut());
    }
}
