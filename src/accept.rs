//! One core's listener: takes a connection slot before it accepts, so that at `MAX_CONNECTIONS` the kernel queues the
//! rest, and survives every accept error.
//!
//! The sockets are made before the cores start: SO_REUSEPORT, the kernel's own backlog limit, and for port 0 one port
//! for all of them.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{FromRawFd, IntoRawFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use futures_lite::FutureExt;
use futures_lite::future::poll_once;
use glommio::net::TcpStream;
use glommio::sync::StaticPermit;
use glommio::timer::sleep;
use socket2::{Domain, Protocol, Socket, Type};

use crate::log::Throttle;
use crate::net::Stream;
use crate::shard::Core;

/// While draining, how long the accept queue must stay empty before the listener closes.
const QUEUE_EMPTY_FOR: Duration = Duration::from_millis(20);
/// While draining, how long newcomers can keep the listener open by leaving it no such pause.
const QUEUE_DRAIN_MAX: Duration = Duration::from_secs(1);
/// After an accept error (usually: out of file descriptors), how long until the next try.
const ERROR_PAUSE: Duration = Duration::from_millis(100);

/// Listening sockets on `address`, one per core; with port 0 all get the port the first one was given.
pub fn listeners(address: SocketAddr, cores: usize) -> io::Result<Vec<Socket>> {
    let mut address = address;
    let mut sockets = Vec::with_capacity(cores);
    for _ in 0..cores {
        let socket = bind(address, true)?;
        address = socket.local_addr()?.as_socket().expect("an IP socket has an IP address");
        sockets.push(socket);
    }
    Ok(sockets)
}

/// One listening socket on `address`; without `share` nobody else may have the port.
pub fn bind(address: SocketAddr, share: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(share)?;
    socket.bind(&address.into())?;
    socket.listen(backlog())?;
    Ok(socket)
}

/// The largest backlog the kernel grants.
#[expect(clippy::disallowed_methods, reason = "procfs, before the executors start")]
fn backlog() -> i32 {
    let text = std::fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap_or_default();
    text.trim().parse().unwrap_or(4096)
}

/// Accepts until the core drains and the queue is empty, or the ring closes; then stops listening.
pub async fn accept_loop(core: Rc<Core>, socket: Socket) {
    let handle = socket.try_clone().expect("descriptors suffice at start");
    let listener = core.net.listener(socket);
    let mut errors = Throttle::default();
    let mut drain_end = None;
    loop {
        if core.draining.get()
            && Instant::now() > *drain_end.get_or_insert_with(|| Instant::now() + QUEUE_DRAIN_MAX)
        {
            break;
        }
        let Some(slot) = core.connection_slot().await else { break };
        let next = async { listener.accept().await.map(Some) };
        let stop = async {
            core.draining.wait().await;
            sleep(QUEUE_EMPTY_FOR).await;
            Ok(None)
        };
        match next.or(stop).await {
            Ok(None) => {
                // It may have come just now.
                core.net.hand_over().await;
                if let Some(Ok(stream)) = poll_once(listener.accept()).await {
                    serve(&core, stream, slot);
                }
                break;
            }
            Ok(Some(stream)) => serve(&core, stream, slot),
            Err(error) => {
                core.cells.accept_errors.inc();
                errors.error(|| format!("accepting a connection failed, trying on: {error}"));
                sleep(ERROR_PAUSE).await;
            }
        }
    }
    // Closing would not do: control holds the socket as well, to take it from a core that dies.
    let _not_listening = handle.shutdown(std::net::Shutdown::Both);
}

fn serve(core: &Rc<Core>, stream: Stream, slot: StaticPermit) {
    let _peer_may_be_gone = stream.set_nodelay();
    core.spawn_connection(stream, slot);
}

/// Any connected stream socket, also one end of a pair: what is TCP about glommio's stream is not used by readers.
#[expect(unsafe_code, reason = "glommio takes sockets of our own making only as raw descriptors")]
pub fn into_glommio_stream(socket: Socket) -> TcpStream {
    // SAFETY: `into_raw_fd` gives up `socket`'s ownership of an open descriptor, so the stream is its only owner.
    unsafe { TcpStream::from_raw_fd(socket.into_raw_fd()) }
}
