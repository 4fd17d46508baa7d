//! One core's listener: takes a connection slot before it accepts, so that at `MAX_CONNECTIONS` the kernel queues the
//! rest, and survives every accept error.
//!
//! The sockets are made before the cores start: SO_REUSEPORT, the kernel's own backlog limit, and for port 0 one port
//! for all of them.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{FromRawFd, IntoRawFd};
use std::rc::Rc;
use std::time::Duration;

use futures_lite::FutureExt;
use glommio::net::TcpListener;
use glommio::timer::sleep;
use socket2::{Domain, Protocol, Socket, Type};

use crate::log::Throttle;
use crate::shard::Core;

/// While draining, how long the accept queue must stay empty before the listener closes.
const QUEUE_EMPTY_FOR: Duration = Duration::from_millis(20);
/// After an accept error (usually: out of file descriptors), how long until the next try.
const ERROR_PAUSE: Duration = Duration::from_millis(100);

/// Listening sockets on `address`, one per core; with port 0 all get the port the first one was given.
pub fn listeners(address: SocketAddr, cores: usize) -> io::Result<Vec<Socket>> {
    let backlog = backlog();
    let mut address = address;
    let mut sockets = Vec::with_capacity(cores);
    for _ in 0..cores {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(true)?;
        socket.set_tcp_nodelay(true)?;
        socket.bind(&address.into())?;
        socket.listen(backlog)?;
        address = socket.local_addr()?.as_socket().expect("an IP socket has an IP address");
        sockets.push(socket);
    }
    Ok(sockets)
}

/// The largest backlog the kernel grants.
#[expect(clippy::disallowed_methods, reason = "procfs, before the executors start")]
fn backlog() -> i32 {
    let text = std::fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap_or_default();
    text.trim().parse().unwrap_or(4096)
}

/// Accepts until the core drains and the queue is empty, or the ring closes.
pub async fn accept_loop(core: Rc<Core>, socket: Socket) {
    let listener = into_glommio(socket);
    let mut errors = Throttle::default();
    loop {
        let Some(slot) = core.connection_slot().await else { break };
        let next = async { listener.accept().await.map(Some) };
        let stop = async {
            core.until_draining().await;
            sleep(QUEUE_EMPTY_FOR).await;
            Ok(None)
        };
        match next.or(stop).await {
            Ok(None) => break,
            Ok(Some(stream)) => {
                // Inherited from the listener on Linux; set again because nothing documents it.
                let _peer_may_be_gone = stream.set_nodelay(true);
                core.spawn_connection(stream, slot);
            }
            Err(error) => {
                core.cells.accept_errors.inc();
                errors.error(|| format!("accepting a connection failed, trying on: {error}"));
                sleep(ERROR_PAUSE).await;
            }
        }
    }
}

#[expect(unsafe_code, reason = "glommio takes a socket of our own making only as a raw descriptor")]
pub fn into_glommio(socket: Socket) -> TcpListener {
    // SAFETY: `into_raw_fd` gives up `socket`'s ownership of an open descriptor, so the listener is its only owner.
    unsafe { TcpListener::from_raw_fd(socket.into_raw_fd()) }
}
