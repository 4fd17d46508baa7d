//! How much of what was sent its peer has acknowledged.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::rc::Weak;
use std::time::Duration;

use socket2::SockRef;

use super::Net;

/// Reads how much of what was sent on one socket its peer has acknowledged.
#[derive(Clone)]
pub struct Acknowledged {
    pub(super) net: Weak<Net>,
    pub(super) token: usize,
    pub(super) number: u64,
}

impl Acknowledged {
    /// The socket's number and the bytes acknowledged so far, or `None` once it is closed. One
    /// system call.
    pub fn read(&self) -> Option<(u64, u64)> {
        let net = self.net.upgrade()?;
        let sockets = net.sockets.borrow();
        let entry = sockets.get(self.token).filter(|entry| entry.number == self.number)?;
        Some((self.number, bytes_acknowledged(entry.fd.as_fd()).ok()?))
    }

    /// Makes closing the socket discard what it has not sent yet. Otherwise the kernel keeps
    /// sending up to 4 MiB (`tcp_wmem`) over a link that may already be too slow.
    pub fn discard_on_close(&self) {
        let Some(net) = self.net.upgrade() else { return };
        let sockets = net.sockets.borrow();
        if let Some(entry) = sockets.get(self.token).filter(|entry| entry.number == self.number) {
            let _socket_may_be_gone = SockRef::from(&entry.fd).set_linger(Some(Duration::ZERO));
        }
    }
}

/// `tcpi_bytes_acked` of `TCP_INFO` (RFC 4898, `tcpEStatsAppHCThruOctetsAcked`). These bytes have
/// reached the peer, not only the socket buffer.
fn bytes_acknowledged(socket: BorrowedFd<'_>) -> io::Result<u64> {
    Ok(tcp_info(socket)?.tcpi_bytes_acked)
}

#[expect(unsafe_code, reason = "neither socket2 nor rustix has TCP_INFO")]
pub(super) fn tcp_info(socket: BorrowedFd<'_>) -> io::Result<libc::tcp_info> {
    // SAFETY: the structure holds plain numbers, for which all zeros is a value.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut size = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `size` bytes to `info`, which is that long.
    let done = unsafe {
        let info = (&raw mut info).cast();
        libc::getsockopt(socket.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, info, &raw mut size)
    };
    match done {
        0 => Ok(info),
        _ => Err(io::Error::last_os_error()),
    }
}
