//! Starts that are cut short: goal, a 200 is never given by a server that then forgets it. Method:
//! clients post from the first moment the port answers, and the signal comes with the first 200.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::support::front::free_port;
use crate::support::{PATIENCE, command, files, request, signal};

/// The status of one POST, or `None` when the server is not there (any more).
fn try_post(port: u16) -> Option<u16> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(&request(br#"{"data":["first"]}"#, "connection: close\r\n")).ok()?;
    let mut reply = String::new();
    stream.read_to_string(&mut reply).ok()?;
    reply.get(9..12)?.parse().ok()
}

#[test]
fn a_signal_with_the_first_200_loses_nothing() {
    for cores in ["0", "all"].repeat(5) {
        let dir = tempfile::tempdir().unwrap();
        let listen = format!("127.0.0.1:{}", free_port());
        let port = listen.rsplit_once(':').unwrap().1.parse().unwrap();
        let settings = [("LISTEN", listen.as_str()), ("ADMIN_LISTEN", "off"), ("CORES", cores)];
        let mut server = command(dir.path(), &[], &settings).stderr(Stdio::null()).spawn().unwrap();
        let deadline = Instant::now() + PATIENCE;
        while try_post(port) != Some(200) {
            assert!(Instant::now() < deadline, "no 200 in time");
            assert!(server.try_wait().unwrap().is_none(), "ended before it served");
        }
        signal(&server, "TERM");
        assert_eq!(server.wait().unwrap().code(), Some(0));
        let stored: Vec<_> = files(&dir.path().join("data")).into_values().collect();
        assert_eq!(stored, [b"\"first\""]);
    }
}

#[test]
fn a_signal_at_any_moment_of_the_start_is_an_orderly_end() {
    for after_ms in [5, 10, 15, 20, 30, 50] {
        let dir = tempfile::tempdir().unwrap();
        let settings = [("LISTEN", "127.0.0.1:0"), ("ADMIN_LISTEN", "off")];
        let mut server = command(dir.path(), &[], &settings).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(after_ms));
        signal(&server, "TERM");
        // Before `main` has begun the signal ends the process as it always does.
        let code = server.wait().unwrap().code();
        assert!(matches!(code, None | Some(0)), "{after_ms} ms: {code:?}");
    }
}
