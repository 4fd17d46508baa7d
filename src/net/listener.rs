//! A listening socket.

use std::future::poll_fn;
use std::io;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::task::Poll;

use super::{Net, Stream};
use crate::sync::keep_waker;

/// A listening socket.
pub struct Listener {
    pub(super) net: Rc<Net>,
    pub(super) token: usize,
}

impl Listener {
    /// The next connection. Dropping the future loses none: the next call returns a connection that
    /// arrives meanwhile.
    pub async fn accept(&self) -> io::Result<Stream> {
        let fd = poll_fn(|cx| {
            let mut sockets = self.net.sockets.borrow_mut();
            let entry = &mut sockets[self.token];
            if let Some(accepted) = entry.accepted.take() {
                return Poll::Ready(accepted);
            }
            keep_waker(&mut entry.reader, cx);
            if entry.in_flight == 0 {
                entry.in_flight += 1;
                self.net.ring.borrow_mut().accept(entry.fd.as_fd(), self.token);
                drop(sockets);
                self.net.pushed();
            }
            Poll::Pending
        })
        .await?;
        Ok(self.net.stream(fd))
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.net.abandon(self.token);
    }
}
