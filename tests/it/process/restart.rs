//! Goal: an address has one server, and a start right after the end of another, however it ended,
//! succeeds.
//!
//! Method: servers killed with many connections open and started again at once; servers started at
//! the same moment; addresses that others hold, for a while or for good.

use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Resource, getrlimit};

use crate::support::front::free_address;
use crate::support::needs::{Need, skip};
use crate::support::{PATIENCE, Server, command, kill_command, run, wait_for};

/// An address that was free a moment ago.
fn free() -> String {
    free_address().to_string()
}

/// Connections that this process and the server have descriptors for, up to as many as were seen to
/// take 0.3 s.
fn many() -> usize {
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    usize::try_from(limit.saturating_sub(500)).unwrap().min(4000)
}

#[test]
fn a_server_that_was_killed_with_many_connections_is_followed_at_once() {
    let address = free();
    let admin = free();
    let settings = [("LISTEN", address.as_str()), ("ADMIN_LISTEN", &admin), ("CORES", "all")];
    let mut server = Server::start(&settings);
    for _ in 0..3 {
        let clients: Vec<_> = (0..many()).map(|_| TcpStream::connect(&address).unwrap()).collect();
        server
            .wait("all to be accepted", |m| m.sum("millrace_connections") == clients.len() as u64);
        let dir = server.kill().dir;
        server = Server::start_in(dir, &settings);
        assert_eq!(server.post_payloads(&["1"]).status, 200);
    }
    assert_eq!(server.stop().status, 0);
}

fn spawn(listen: &str, admin: &str, wait: &str) -> (Child, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let settings =
        [("LISTEN", listen), ("ADMIN_LISTEN", admin), ("CORES", "all"), ("BIND_WAIT", wait)];
    let mut command = command(dir.path(), &[], &settings);
    (command.stderr(Stdio::piped()).spawn().unwrap(), dir)
}

#[test]
fn of_two_that_start_at_the_same_moment_one_serves() {
    for (admin, wait) in [("off", "0"), ("off", "0"), ("off", "200ms"), ("127.0.0.1:0", "0")] {
        let listen = free();
        let mut servers: Vec<_> = (0..3).map(|_| spawn(&listen, admin, wait)).collect();
        wait_for("one to serve", || TcpStream::connect(&listen).is_ok());
        wait_for("the others to be refused", || {
            servers.iter_mut().filter_map(|(server, _)| server.try_wait().unwrap()).count() == 2
        });
        let mut statuses = Vec::new();
        for (mut server, _dir) in servers {
            if server.try_wait().unwrap().is_none() {
                let pid = server.id().to_string();
                assert!(kill_command().arg(&pid).status().unwrap().success());
            }
            let output = server.wait_with_output().unwrap();
            let text = String::from_utf8(output.stderr).unwrap();
            let refused = text.contains(&format!("LISTEN: {listen} is taken by another listener"));
            assert_eq!(refused, output.status.code() == Some(2), "{text}");
            statuses.push(output.status.code());
        }
        statuses.sort_unstable();
        assert_eq!(statuses, [Some(0), Some(2), Some(2)]);
    }
}

#[test]
fn an_address_that_gets_free_in_time_is_taken() {
    for name in ["LISTEN", "ADMIN_LISTEN"] {
        let holder = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = holder.local_addr().unwrap().to_string();
        let (listen, admin) = match name {
            "LISTEN" => (address.clone(), free()),
            _ => (free(), address.clone()),
        };
        let (mut server, _dir) = spawn(&listen, &admin, "1m");
        std::thread::sleep(Duration::from_millis(500));
        assert_eq!(server.try_wait().unwrap(), None, "{name}");
        drop(holder);
        wait_for("the start", || {
            TcpStream::connect(&listen).is_ok() && TcpStream::connect(&admin).is_ok()
        });
        let pid = server.id().to_string();
        wait_for("an orderly end", || {
            // A stop before it serves would be one as well.
            kill_command().arg(&pid).status().unwrap();
            server.try_wait().unwrap().is_some()
        });
        assert_eq!(server.wait().unwrap().code(), Some(0));
    }
}

#[test]
fn an_address_that_stays_taken_is_refused_after_the_wait_with_the_remedy() {
    let holder = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = holder.local_addr().unwrap();
    let taken = address.to_string();
    for (name, other) in [("LISTEN", "ADMIN_LISTEN"), ("ADMIN_LISTEN", "LISTEN")] {
        for (wait, least) in [("0", 0), ("700ms", 700)] {
            let dir = tempfile::tempdir().unwrap();
            let settings = [(name, taken.as_str()), (other, "127.0.0.1:0"), ("BIND_WAIT", wait)];
            let started = Instant::now();
            let output = run(dir.path(), &[], &settings);
            let took = started.elapsed();
            let text = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(2), "{text}");
            assert!(took >= Duration::from_millis(least) && took < PATIENCE, "{took:?}");
            let port = address.port();
            for part in [
                format!("{name}: {taken} is taken by another listener"),
                format!("ss -ltnp 'sport = :{port}' shows it; stop it or set {name}"),
            ] {
                assert!(text.contains(&part), "{part} is not in {text}");
            }
            assert_eq!(text.contains("for BIND_WAIT=700ms now"), least > 0, "{text}");
            // `check` does not wait.
            let started = Instant::now();
            let settings = [(name, taken.as_str()), (other, "127.0.0.1:0"), ("BIND_WAIT", "5m")];
            let output = run(dir.path(), &["check"], &settings);
            let text = String::from_utf8(output.stdout).unwrap();
            assert_eq!(output.status.code(), Some(2), "{text}");
            assert!(text.contains(&format!("{taken} is taken")), "{text}");
            assert!(started.elapsed() < PATIENCE);
        }
    }
}

/// Options of `unshare` for a network of one's own; processes are, too, so that none is left.
fn namespace() -> Option<&'static str> {
    // Its loopback device is to be brought up.
    Command::new("ip").arg("-V").stdout(Stdio::null()).status().ok()?;
    ["-npf", "-Urnpf"].into_iter().find(|options| {
        let tried = Command::new("unshare").args([options, "true"]).stderr(Stdio::null()).status();
        tried.is_ok_and(|status| status.success())
    })
}

/// Runs `script` there, with the binary as its first argument.
fn alone(options: &str, script: &str) -> std::process::Output {
    let script = format!("set -e; ip link set lo up; {script}");
    let binary = env!("CARGO_BIN_EXE_millrace");
    let mut command = Command::new("timeout");
    // unshare(1) takes no notice of SIGTERM.
    command.args([
        "--signal=KILL",
        "150",
        "unshare",
        options,
        "--kill-child",
        "sh",
        "-c",
        &script,
        "sh",
        binary,
    ]);
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command.output().unwrap()
}

/// A server on one address keeps others of the same port away exactly where the kernel would mix
/// them up, also when they run as another user.
#[test]
fn addresses_that_overlap_have_one_owner() {
    let Some(options) = namespace() else {
        skip(Need::Netns, "this host allows no network namespace, or has no ip(8)");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().display();
    for (first, second, as_other, refused) in [
        ("127.0.0.1:80", "127.0.0.1:80", false, true),
        ("0.0.0.0:8080", "127.0.0.1:8080", false, true),
        ("127.0.0.1:8080", "0.0.0.0:8080", false, true),
        ("[::]:8080", "127.0.0.1:8080", false, true),
        ("127.0.0.1:8080", "[::]:8080", false, true),
        ("[::]:8080", "0.0.0.0:8080", false, true),
        ("[::1]:8080", "[::]:8080", false, true),
        ("0.0.0.0:8080", "0.0.0.0:8080", true, true),
        ("127.0.0.1:8080", "127.0.0.2:8080", false, false),
        ("127.0.0.1:8080", "[::1]:8080", false, false),
        ("0.0.0.0:8080", "0.0.0.0:8081", false, false),
    ] {
        if as_other && options.contains('U') {
            skip(Need::Root, "only root can run a server as another user");
            continue;
        }
        let other = match as_other {
            true => "setpriv --reuid=65534 --regid=65534 --clear-groups",
            false => "",
        };
        let script = format!(
            r#"rm -rf {dir}/* && mkdir {dir}/a {dir}/b && chmod 777 {dir} {dir}/a {dir}/b
            export ADMIN_LISTEN=off CORES=0 BIND_WAIT=0
            (cd {dir}/a && LISTEN={first} exec "$1") 2>{dir}/first & first=$!
            until grep -q serving {dir}/first; do sleep 0.02; done
            (cd {dir}/b && LISTEN={second} exec {other} "$1") 2>{dir}/second & second=$!
            until grep -qE 'serving|ERROR' {dir}/second; do sleep 0.02; done
            cat {dir}/second; kill $first; kill $second 2>/dev/null || true; wait"#
        );
        let output = alone(options, &script);
        let text = String::from_utf8(output.stdout).unwrap();
        let all =
            format!("{first}, then {second}: {text}{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(text.contains(&format!("{second} is taken by another")), refused, "{all}");
        assert_eq!(text.contains("serving; a 200"), !refused, "{all}");
    }
}
