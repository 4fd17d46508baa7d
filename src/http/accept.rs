//! A core's listeners, one for each address. At `MAX_CONNECTIONS` each it accepts one connection more,
//! which waits for a slot while the kernel queues the rest. It survives every accept error.
//!
//! The sockets are created before the cores start, with SO_REUSEPORT and the largest backlog that
//! the kernel grants. With port 0 all of them share one port.

use std::io;
use std::io::ErrorKind::AddrInUse;
use std::net::SocketAddr;
use std::os::fd::{FromRawFd, IntoRawFd};
use std::rc::Rc;
use std::time::Duration;

use crate::rt;
use crate::rt::sleep;
use futures_lite::FutureExt;
use futures_lite::future::poll_once;
use glommio::net::TcpStream;
use socket2::{Domain, Protocol, SockFilter, Socket, Type};

use super::conn;
use super::secured::Entrance;
use super::server::Server;
use crate::config::Placement;
use crate::throttle::Throttle;

/// While draining, how long the accept queue must stay empty before the listener closes.
const QUEUE_EMPTY_FOR: Duration = Duration::from_millis(20);
/// While draining, how long new connections can keep the listener open by leaving no such pause.
const QUEUE_DRAIN_MAX: Duration = Duration::from_secs(1);
/// Pause after an accept error, usually a lack of file descriptors.
const ERROR_PAUSE: Duration = Duration::from_millis(100);
/// How often an address is tried before it counts as taken.
const CLAIM_TRIES: usize = 4;
/// The longest pause between two of these tries.
const CLAIM_PAUSE_MAX: Duration = Duration::from_millis(4);

/// Listening sockets on `address`, one for each of `cores` (CPU ids); with port 0 all get the same
/// port. With `only_v6` the address, `[::]`, leaves IPv4 to another listener.
///
/// With [`Placement::Cpu`] each asks for the connections whose packets its CPU handles, by
/// SO_INCOMING_CPU (socket(7)); a connection whose CPU is of no listener goes by the hash. Among
/// sockets that share a port the kernel honours it from Linux 6.2 on, and ignores it before.
///
/// # Errors
/// For example `AddrInUse` while any other socket listens there or on an overlapping address, even
/// one that shares its port by SO_REUSEPORT.
pub fn listeners(
    address: SocketAddr,
    only_v6: bool,
    cores: &[usize],
    placement: Placement,
) -> io::Result<Vec<Socket>> {
    let owner = in_a_few_tries(|| claim(address, only_v6))?;
    let address = owner.local_addr()?.as_socket().expect("an IP socket has an IP address");
    // The owner is dropped after the others listen, so there is always a listener.
    let listener = |core: &usize| {
        let socket = bound(address, only_v6, true)?;
        if placement == Placement::Cpu {
            // As `CORES` has it, an id that this process may use, so it fits.
            rustix::net::sockopt::set_socket_incoming_cpu(&socket, *core as u32)?;
        }
        listen(socket)
    };
    cores.iter().map(listener).collect()
}

/// What `claim` returns, after a few tries: it can say `AddrInUse` although nobody gets the address.
/// A socket counts as listening a moment before the kernel has checked that it may, so two that begin
/// at once can refuse each other. Random pauses keep them from meeting again.
#[expect(clippy::disallowed_methods, reason = "sleeps before the cores start")]
fn in_a_few_tries<T>(mut claim: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    for _ in 1..CLAIM_TRIES {
        match claim() {
            Err(error) if error.kind() == AddrInUse => {}
            outcome => return outcome,
        }
        std::thread::sleep(CLAIM_PAUSE_MAX.mul_f64(rt::random_fraction()));
    }
    claim()
}

/// Claims `address` for this server. The kernel lets only one socket without SO_REUSEPORT listen
/// there, among all processes, users and containers of the network namespace, and knows which
/// addresses overlap (wildcards, IPv4 in IPv6). So if several servers start at the same moment, one
/// gets the address, and the others are refused as long as it has any listener.
///
/// Afterwards the socket shares its port, so that the cores' listeners can join. It is not one of
/// them: the kernel balances connections only over sockets that had SO_REUSEPORT when they began to
/// listen.
fn claim(address: SocketAddr, only_v6: bool) -> io::Result<Socket> {
    let socket = bound(address, only_v6, false)?;
    // No connection may end up here. The SYN of a client in these microseconds is dropped; TCP
    // repeats it after a second.
    let _or_a_connection_is_reset = socket.attach_filter(&[DROP_ALL]);
    socket.listen(1)?;
    socket.set_reuse_port(true)?;
    Ok(socket)
}

/// `ret #0`, the BPF program that drops every packet.
const DROP_ALL: SockFilter = SockFilter::new((libc::BPF_RET | libc::BPF_K) as u16, 0, 0, 0);

/// One listening socket on `address`; no other socket may use the port.
pub fn bind(address: SocketAddr) -> io::Result<Socket> {
    listen(bound(address, false, false)?)
}

/// A socket that is bound to `address` and does not listen, so it receives nothing. With `share`,
/// other sockets of this user that do the same may use the port. SO_REUSEADDR lets a restart ignore
/// connections in TIME_WAIT.
pub fn bound(address: SocketAddr, only_v6: bool, share: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(share)?;
    if only_v6 {
        socket.set_only_v6(true)?;
    }
    socket.bind(&address.into())?;
    Ok(socket)
}

fn listen(socket: Socket) -> io::Result<Socket> {
    // Turns Nagle's algorithm off for every connection that it accepts: they inherit the option.
    socket.set_tcp_nodelay(true)?;
    socket.listen(backlog())?;
    Ok(socket)
}

/// The largest backlog the kernel grants.
#[expect(clippy::disallowed_methods, reason = "procfs, before the executors start")]
fn backlog() -> i32 {
    let text = std::fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap_or_default();
    text.trim().parse().unwrap_or(4096)
}

/// Accepts connections to the address of `entrance` until the core drains and the accept queue is
/// empty, or until [`Conns::close`]; then stops listening.
///
/// [`Conns::close`]: super::server::Conns::close
pub async fn accept_loop(server: Rc<Server>, socket: Socket, entrance: Rc<Entrance>) {
    let handle = socket.try_clone().expect("descriptors suffice at start");
    let listener = server.net.listener(socket);
    let mut errors = Throttle::default();
    let mut drain_end = None;
    loop {
        if server.stop.draining.get()
            && rt::now() > *drain_end.get_or_insert_with(|| rt::now() + QUEUE_DRAIN_MAX)
        {
            break;
        }
        let next = async { listener.accept().await.map(Some) };
        let stop = async {
            server.stop.draining.wait().await;
            sleep(QUEUE_EMPTY_FOR).await;
            Ok(None)
        };
        match next.or(stop).await {
            Ok(None) => {
                // A connection may have arrived since.
                server.net.run_tasks_and_turn().await;
                if let Some(Ok(stream)) = poll_once(listener.accept()).await
                    && let Some(slot) = server.slot().await
                {
                    conn::spawn(&server, stream, &entrance, slot);
                }
                break;
            }
            Ok(Some(stream)) => {
                let Some(slot) = server.slot().await else { break };
                conn::spawn(&server, stream, &entrance, slot);
            }
            Err(error) => {
                server.cells.accept_errors.inc();
                errors.error(|| format!("accepting a connection failed, retrying: {error}"));
                sleep(ERROR_PAUSE).await;
            }
        }
    }
    // Closing is not enough: control holds a duplicate, with which it closes the listener of a core
    // that has died.
    let _no_longer_listening = handle.shutdown(std::net::Shutdown::Both);
    server.conns.accepting_ended();
}

/// Makes a glommio stream of any connected stream socket, also of one end of a socket pair: reading
/// and writing need nothing that is specific to TCP.
#[expect(unsafe_code, reason = "glommio takes existing sockets only as raw descriptors")]
pub fn into_glommio_stream(socket: Socket) -> TcpStream {
    // SAFETY: `into_raw_fd` releases `socket`'s ownership of an open descriptor, so the stream is
    // its only owner.
    unsafe { TcpStream::from_raw_fd(socket.into_raw_fd()) }
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;
    use std::sync::atomic::AtomicUsize;
    use std::sync::atomic::Ordering::Relaxed;

    use super::*;

    fn loopback(port: u16) -> SocketAddr {
        ([127, 0, 0, 1], port).into()
    }

    fn port(sockets: &[Socket]) -> u16 {
        sockets[0].local_addr().unwrap().as_socket().unwrap().port()
    }

    #[test]
    fn accepted_connections_send_at_once() {
        let socket = bind(loopback(0)).unwrap();
        let _client = TcpStream::connect(socket.local_addr().unwrap().as_socket().unwrap());
        assert!(socket.accept().unwrap().0.tcp_nodelay().unwrap());
    }

    #[test]
    fn the_cores_share_one_port_and_connections_are_spread_over_them() {
        let sockets = listeners(loopback(0), false, &[0, 1, 2], Placement::Hash).unwrap();
        let port = port(&sockets);
        let clients: Vec<_> =
            (0..60).map(|_| TcpStream::connect(loopback(port)).unwrap()).collect();
        let mut counts = [0; 3];
        for (socket, count) in sockets.iter().zip(&mut counts) {
            socket.set_nonblocking(true).unwrap();
            while socket.accept().is_ok() {
                *count += 1;
            }
        }
        assert_eq!(counts.iter().sum::<usize>(), clients.len(), "none ended up elsewhere");
        assert!(counts.iter().all(|count| *count > 0), "{counts:?}");
    }

    /// On loopback the packets of a connection are handled on the CPU of the thread that sends them.
    /// Kernels before 6.2 spread them by the hash even so, see [`listeners`].
    #[test]
    fn connections_go_to_the_listener_of_their_cpu() {
        let cpus: Vec<usize> =
            core_affinity::get_core_ids().unwrap().iter().map(|c| c.id).collect();
        let (Some(&cpu), true) = (cpus.last(), cpus.len() > 1) else { return };
        let sockets = listeners(loopback(0), false, &cpus, Placement::Cpu).unwrap();
        let port = port(&sockets);
        let connect = move || {
            assert!(core_affinity::set_for_current(core_affinity::CoreId { id: cpu }));
            (0..40).map(|_| TcpStream::connect(loopback(port)).unwrap()).collect::<Vec<_>>()
        };
        let clients = std::thread::spawn(connect).join().unwrap();
        let mut counts = vec![0; cpus.len()];
        for (socket, count) in sockets.iter().zip(&mut counts) {
            socket.set_nonblocking(true).unwrap();
            while socket.accept().is_ok() {
                *count += 1;
            }
        }
        assert_eq!(counts.last(), Some(&clients.len()), "{counts:?}");
    }

    /// Even servers of one user, whose sockets could share the port, and even when all bind before
    /// any listens.
    #[test]
    fn of_servers_that_start_at_the_same_moment_one_gets_the_port() {
        const ROUNDS: usize = 200;
        const SERVERS: usize = 2;
        // An address of its own, so that no other test's port is in the way.
        let address = |round| SocketAddr::from(([127, 44, 0, 1], 20_000 + (round % 1000) as u16));
        let (ready, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
        // Spins, because threads that are woken do not start at the same moment.
        let meet = |count: &AtomicUsize, round: usize| {
            count.fetch_add(1, Relaxed);
            while count.load(Relaxed) < SERVERS * (round + 1) {
                std::thread::yield_now();
            }
        };
        let server = || {
            let start = |round| {
                meet(&ready, round);
                let outcome = listeners(address(round), false, &[0, 1], Placement::Hash);
                meet(&done, round);
                outcome.map(drop).map_err(|error| error.kind())
            };
            (0..ROUNDS).map(start).collect::<Vec<_>>()
        };
        let outcomes: Vec<_> = std::thread::scope(|scope| {
            let servers: Vec<_> = (0..SERVERS).map(|_| scope.spawn(server)).collect();
            servers.into_iter().map(|server| server.join().unwrap()).collect()
        });
        for round in 0..ROUNDS {
            let mut outcomes: Vec<_> = outcomes.iter().map(|server| server[round]).collect();
            outcomes.sort();
            assert_eq!(outcomes, [Ok(()), Err(AddrInUse)], "round {round}");
        }
    }

    #[test]
    fn only_an_address_in_use_is_tried_again() {
        let tries = |outcomes: &[Result<(), io::ErrorKind>]| {
            let mut left = outcomes.iter();
            let outcome = in_a_few_tries(|| (*left.next().unwrap()).map_err(io::Error::from));
            (outcome.map_err(|error| error.kind()), left.len())
        };
        let denied = io::ErrorKind::PermissionDenied;
        assert_eq!(tries(&[Err(AddrInUse), Ok(()), Ok(())]), (Ok(()), 1));
        assert_eq!(tries(&[Err(denied), Ok(())]), (Err(denied), 1));
        assert_eq!(tries(&[Err(AddrInUse); CLAIM_TRIES + 1]), (Err(AddrInUse), 1));
    }

    #[test]
    fn a_port_is_free_again_when_the_last_listener_is_gone() {
        let mut sockets = listeners(loopback(0), false, &[0, 1], Placement::Hash).unwrap();
        let port = port(&sockets);
        for _ in 0..2 {
            assert_eq!(
                listeners(loopback(port), false, &[0], Placement::Hash).unwrap_err().kind(),
                AddrInUse
            );
            sockets.pop();
        }
        listeners(loopback(port), false, &[0], Placement::Hash).unwrap();
        // A different address does not overlap, so it has its own owner.
        let other = listeners(([127, 0, 0, 2], port).into(), false, &[0], Placement::Hash).unwrap();
        let both = (listeners(loopback(port), false, &[0], Placement::Hash).unwrap(), other);
        drop(both);
    }
}
