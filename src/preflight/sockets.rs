//! The kernel's tables of TCP sockets, `/proc/net/tcp` and `tcp6`: they show every socket of this
//! network namespace, and whose it is, to every user.

#![expect(clippy::disallowed_methods, reason = "runs before any executor, or in a command")]

use std::fs::File;
use std::io::{self, BufRead as _, BufReader};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// One socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpRow {
    pub local: SocketAddr,
    pub remote: SocketAddr,
    pub is_listening: bool,
    /// Who has made it; root also while a connection waits to be accepted.
    pub uid: u32,
    /// 0 while a connection waits to be accepted.
    pub inode: u64,
}

/// Every socket whose own port is `port`. With 100,000 connections the kernel takes some 0.1 s.
///
/// # Errors
/// `/proc` is not there.
pub fn tcp_rows(port: u16) -> io::Result<Vec<TcpRow>> {
    let mut rows = Vec::new();
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        match File::open(table) {
            Ok(file) => {
                for line in BufReader::new(file).lines().skip(1) {
                    rows.extend(row(&line?, port));
                }
            }
            // A kernel without IPv6.
            Err(error) if error.kind() == io::ErrorKind::NotFound && table.ends_with('6') => {}
            Err(error) => return Err(error),
        }
    }
    Ok(rows)
}

/// Those that a connection to `address` would come to, or that a listener on it would collide with:
/// the ones that are bound most narrowly.
///
/// # Errors
/// `/proc` is not there.
pub fn listeners(address: SocketAddr) -> io::Result<Vec<TcpRow>> {
    let rows = tcp_rows(address.port())?;
    let mut found: Vec<(u8, TcpRow)> = rows
        .into_iter()
        .filter(|row| row.is_listening)
        .filter_map(|row| Some((rank(row.local.ip(), address.ip())?, row)))
        .collect();
    let best = found.iter().map(|(rank, _)| *rank).min();
    found.retain(|(rank, _)| Some(*rank) == best);
    Ok(found.into_iter().map(|(_, row)| row).collect())
}

/// How near a listener on `local` is to the address `wanted`, 0 the nearest; `None`: it is for
/// others.
fn rank(local: IpAddr, wanted: IpAddr) -> Option<u8> {
    let (local, wanted) = (local.to_canonical(), wanted.to_canonical());
    let is_same_family = local.is_ipv4() == wanted.is_ipv4();
    match () {
        () if local == wanted => Some(0),
        () if local.is_unspecified() && is_same_family => Some(1),
        // `::` takes IPv4 as well, unless it was told not to.
        () if local.is_unspecified() && local.is_ipv6() => Some(2),
        () if wanted.is_unspecified() && (is_same_family || wanted.is_ipv6()) => Some(3),
        () => None,
    }
}

fn row(line: &str, port: u16) -> Option<TcpRow> {
    const LISTEN: &str = "0A";
    let mut columns = line.split_ascii_whitespace();
    let local = columns.nth(1)?;
    // Most lines are of other ports.
    let (_, of_line) = local.split_once(':')?;
    if u16::from_str_radix(of_line, 16).ok()? != port {
        return None;
    }
    let local = parse_address(local)?;
    let remote = parse_address(columns.next()?)?;
    let is_listening = columns.next()? == LISTEN;
    let uid = columns.nth(3)?.parse().ok()?;
    let inode = columns.nth(1)?.parse().ok()?;
    Some(TcpRow { local, remote, is_listening, uid, inode })
}

/// An address as the kernel prints it: words of 32 bits, each in the host's byte order.
fn parse_address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let words = ip.as_bytes().chunks(8).map(|word| {
        let word = std::str::from_utf8(word).ok()?;
        Some(u32::from_str_radix(word, 16).ok()?.to_ne_bytes())
    });
    let bytes = words.collect::<Option<Vec<_>>>()?.concat();
    let ip: IpAddr = match bytes.len() {
        4 => Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).into(),
        16 => Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).into(),
        _ => return None,
    };
    Some(SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn rows_of_the_kernels_tables_are_read() {
        let line = |local: &str, state: &str| {
            format!(
                "   0: {local} 0200007F:C001 {state} 00000000:00000000 00:00000000 00000000  1000        0 4711 1 0"
            )
        };
        // The tests run where words have the least byte first.
        for (local, state, expected) in [
            ("0100007F:1F90", "0A", Some(("127.0.0.1:8080", true))),
            ("0100007F:1F90", "01", Some(("127.0.0.1:8080", false))),
            ("0100007F:1F91", "0A", None),
            ("00000000000000000000000001000000:1F90", "0A", Some(("[::1]:8080", true))),
            (
                "0000000000000000FFFF00000100007F:1F90",
                "0A",
                Some(("[::ffff:127.0.0.1]:8080", true)),
            ),
            ("xyz:1F90", "0A", None),
            ("", "", None),
        ] {
            let expected = expected.map(|(local, is_listening)| TcpRow {
                local: local.parse().unwrap(),
                remote: "127.0.0.2:49153".parse().unwrap(),
                is_listening,
                uid: 1000,
                inode: 4711,
            });
            assert_eq!(row(&line(local, state), 8080), expected, "{local} {state}");
        }
    }

    #[test]
    fn the_nearest_listener_is_the_one() {
        for (local, wanted, expected) in [
            ("127.0.0.1", "127.0.0.1", Some(0)),
            ("::ffff:127.0.0.1", "127.0.0.1", Some(0)),
            ("0.0.0.0", "0.0.0.0", Some(0)),
            ("::", "::", Some(0)),
            ("0.0.0.0", "127.0.0.1", Some(1)),
            ("::", "::1", Some(1)),
            ("::", "127.0.0.1", Some(2)),
            ("::", "0.0.0.0", Some(2)),
            ("10.0.0.1", "0.0.0.0", Some(3)),
            ("10.0.0.1", "::", Some(3)),
            ("::1", "::", Some(3)),
            ("127.0.0.1", "127.0.0.2", None),
            ("0.0.0.0", "::1", None),
            ("::1", "127.0.0.1", None),
            ("::1", "0.0.0.0", None),
        ] {
            let (local_ip, wanted_ip) = (local.parse().unwrap(), wanted.parse().unwrap());
            assert_eq!(rank(local_ip, wanted_ip), expected, "{local} {wanted}");
        }
    }

    #[test]
    fn sockets_of_this_process_are_found() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let client = TcpStream::connect(address).unwrap();
        let found = listeners(address).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].uid, rustix::process::geteuid().as_raw());
        let accepted = |row: &TcpRow| row.remote == client.local_addr().unwrap();
        assert_eq!(tcp_rows(address.port()).unwrap().iter().filter(|row| accepted(row)).count(), 1);
        drop(listener);
        assert_eq!(listeners(address).unwrap(), []);
    }
}
