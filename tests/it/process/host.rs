//! Odd hosts: goal, with any resource limit, with `/sys` or `/proc` away, the server either serves
//! and stores or refuses the start in one sentence that names limit and remedy; it never panics and
//! no signal ends it.
//!
//! Method: the binary behind `prlimit`, `setpriv`, `chrt` and `unshare`. What this host does not
//! allow is skipped, see `support::needs`.

use std::os::unix::fs::{MetadataExt as _, chown};
use std::sync::Arc;

use rustix::process::{Resource, Rlimit, getrlimit, getuid, setrlimit};

use crate::support::needs::{Need, allowed, skip};
use crate::support::{Client, Server, Stopped, command, wait_for, wrap};

/// Starts behind `prefix`, stores a payload and stops.
fn serves(prefix: &[&str], dir: Arc<tempfile::TempDir>, settings: &[(&str, &str)]) -> Stopped {
    let server = Server::start_by(dir, settings, |command| wrap(command, prefix));
    assert_eq!(server.post_payloads(&["1"]).status, 200, "{prefix:?}");
    wait_for("the payload to be stored", || server.stored().len() == 1);
    let stopped = server.stop();
    assert_eq!((stopped.status, stopped.stored), (0, 1), "{prefix:?}\n{}", stopped.log_text());
    stopped
}

/// Refuses the start behind `prefix`, in a line that says all of `needles`.
fn refuses(prefix: &[&str], dir: &std::path::Path, needles: &[&str]) {
    let settings = [("LISTEN", "127.0.0.1:0"), ("ADMIN_LISTEN", "off"), ("CORES", "0")];
    let mut command = command(dir, &[], &settings);
    wrap(&mut command, prefix);
    let output = command.output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{prefix:?}: {:?}\n{text}", output.status);
    for bad in ["panicked", "os error", "overflow"] {
        assert!(!text.contains(bad), "{prefix:?}: {text}");
    }
    let one = text.lines().any(|line| needles.iter().all(|needle| line.contains(needle)));
    assert!(one, "{prefix:?}: {needles:?} in one line of\n{text}");
}

/// mimalloc asks for huge pages, and the kernel would fill up what was returned to it.
#[test]
fn the_server_has_no_huge_pages_whatever_the_host_says() {
    let server = Server::start(&[("STORE", "null:")]);
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    let Some(line) = status.lines().find(|line| line.starts_with("THP_enabled:")) else {
        // A kernel without them.
        return;
    };
    assert_eq!(line, "THP_enabled:\t0");
}

#[test]
fn every_resource_limit_is_served_with_or_refused_by_name() {
    if !allowed(&["prlimit", "--core=0", "true"]) {
        skip(Need::Tools, "no prlimit (util-linux)");
        return;
    }
    for limit in [
        "--as=9000000000:9000000000",
        // What the hard limit allows is taken.
        "--as=300000000:",
        "--data=9000000000:9000000000",
        "--data=300000000:",
        "--fsize=100000000:100000000",
        "--fsize=4096:",
        "--cpu=1:",
        "--core=0:0",
        "--memlock=600000:600000",
        "--nofile=300:300",
        "--stack=16384:16384",
        "--stack=65536:65536",
        "--stack=67108864:",
        "--rttime=200000:200000",
        "--rss=1000:1000",
        "--locks=0:0",
        "--msgqueue=0:0",
        "--sigpending=0:0",
    ] {
        if !allowed(&["prlimit", limit, "true"]) {
            skip(Need::Limits, format!("prlimit {limit} is not allowed here"));
            continue;
        }
        serves(&["prlimit", limit], Arc::new(tempfile::tempdir().unwrap()), &[]);
    }
    let dir = tempfile::tempdir().unwrap();
    for (limit, needles) in [
        ("--as=300000000:300000000", &["RLIMIT_AS", "286.1 MiB", "ulimit -v"][..]),
        ("--data=300000000:300000000", &["RLIMIT_DATA", "286.1 MiB", "LimitDATA=infinity"]),
        ("--fsize=1000000:1000000", &["RLIMIT_FSIZE", "976.6 KiB", "ulimit -f"]),
        ("--cpu=1000:1000", &["RLIMIT_CPU", "1000 s", "ulimit -t"]),
        ("--memlock=65536:65536", &["locked memory", "64.0 KiB", "ulimit -l"]),
        ("--nofile=64:64", &["RLIMIT_NOFILE", "64 allowed", "ulimit -n"]),
        ("--nofile=16:16", &["RLIMIT_NOFILE", "16 allowed", "ulimit -n"]),
    ] {
        refuses(&["prlimit", limit], dir.path(), needles);
    }
    if allowed(&["chrt", "-f", "1", "true"]) {
        let prefix = ["prlimit", "--rttime=500000:500000", "chrt", "-f", "1"];
        refuses(&prefix, dir.path(), &["RLIMIT_RTTIME", "500000 µs", "LimitRTTIME=infinity"]);
    } else {
        skip(Need::Realtime, "chrt -f 1 is not allowed here");
    }
}

/// `RLIMIT_NPROC` counts all threads of a user, so it takes one that has no others; and root has no
/// such limit.
#[test]
fn a_limit_on_threads_is_served_with_or_refused_by_name() {
    const USER: &str = "--reuid=61234";
    let binary = env!("CARGO_BIN_EXE_millrace");
    let setpriv = ["setpriv", USER, "--regid=61234", "--clear-groups"];
    if !getuid().is_root() || !allowed(&[&setpriv[..], &[binary, "--version"]].concat()) {
        skip(Need::Root, "not root, or the binary lies where others cannot read");
        return;
    }
    let dir = Arc::new(tempfile::tempdir().unwrap());
    chown(dir.path(), Some(61234), Some(61234)).unwrap();
    let limited = |limit: &'static str| [&setpriv[..], &["prlimit", limit]].concat();
    for limit in ["--nproc=1:1", "--nproc=2:2", "--nproc=6:6"] {
        let named = ["threads: ", "RLIMIT_NPROC", "user 61234", "ulimit -u", "LimitNPROC"];
        refuses(&limited(limit), dir.path(), &named);
    }
    serves(&limited("--nproc=6:200"), dir, &[]);
    let dir = Arc::new(tempfile::tempdir().unwrap());
    chown(dir.path(), Some(61234), Some(61234)).unwrap();
    serves(&limited("--nproc=16:16"), dir, &[]);
}

/// What root makes in a directory of another user must be that user's: the server that runs as that user
/// could otherwise neither read nor remove it.
#[test]
fn what_root_makes_belongs_to_the_owner_of_the_directory() {
    if !getuid().is_root() {
        skip(Need::Root, "not root");
        return;
    }
    let dir = Arc::new(tempfile::tempdir().unwrap());
    chown(dir.path(), Some(61234), Some(61235)).unwrap();
    let below = [
        ("ACK", "spooled"),
        ("KEY", "{date:%Y}/{node}-{core}-{seq}.json"),
        ("STORE", "file:./data"),
    ];
    let settings =
        [&below[..], &[("SPOOL_DIR", "a/spool"), ("DEAD_LETTER_DIR", "b/letters")]].concat();
    serves(&["env"], dir.clone(), &settings);
    let mut found = Vec::new();
    let mut unread = vec![dir.path().to_owned()];
    while let Some(next) = unread.pop() {
        for entry in std::fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            let about = path.symlink_metadata().unwrap();
            let name = path.strip_prefix(dir.path()).unwrap().display().to_string();
            found.push((name, about.uid(), about.gid()));
            if about.is_dir() {
                unread.push(path);
            }
        }
    }
    let is_theirs = |(_, user, group): &(String, u32, u32)| (*user, *group) == (61234, 61235);
    assert!(found.iter().all(is_theirs), "{found:#?}");
    for part in ["data/2", ".json", "b/letters", "a/spool"] {
        assert!(found.iter().any(|(name, ..)| name.contains(part)), "{part}: {found:#?}");
    }
}

#[test]
fn without_what_sys_and_proc_tell_it_serves() {
    let Some(options) = ["-m", "-Urm"]
        .into_iter()
        .find(|options| allowed(&["unshare", options, "mount", "-t", "tmpfs", "none", "/sys"]))
    else {
        skip(Need::Mount, "this host allows no mount namespace");
        return;
    };
    for script in [
        "mount -t tmpfs none /sys",
        "mount -t tmpfs none /proc",
        "mount -t tmpfs none /sys && mount -t tmpfs none /proc",
        "mount -t tmpfs none /sys/devices/system/cpu",
        "mount -t tmpfs none /sys/devices/system/node",
        "mount -t tmpfs none /sys/fs/cgroup",
        "mount -t tmpfs none /proc/sys",
        "mount -t proc -o hidepid=2 proc /proc",
        "mount -t proc -o subset=pid proc /proc",
    ] {
        if !allowed(&["unshare", options, "sh", "-c", script]) {
            let need = if script.contains("-t proc") { Need::Procfs } else { Need::Mount };
            skip(need, format!("{script} is not allowed here"));
            continue;
        }
        let script = format!("{script} && exec \"$@\"");
        let settings = [("SPOOL_DIR", "spool"), ("SPOOL_SEGMENT", "4MiB")];
        let dir = Arc::new(tempfile::tempdir().unwrap());
        serves(&["unshare", options, "sh", "-c", &script, "sh"], dir, &settings);
    }
}

/// What clients hold are connections, not the descriptors of the admin listener and the store.
#[test]
fn with_few_descriptors_fewer_connections_are_taken_and_everything_else_works() {
    const CONNECTIONS: usize = 1_000;
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).unwrap();
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let prefix = ["prlimit", "--nofile=300:300"];
    let server = Server::start_by(dir, &[], |command| wrap(command, &prefix));
    assert!(
        server.logged("MAX_CONNECTIONS is 44 per core instead of 16384"),
        "{:#?}",
        server.log()
    );
    assert_eq!(server.metrics().sum("millrace_connections_limit"), 44);
    let mut clients: Vec<Client> = (0..CONNECTIONS).map(|_| server.connect()).collect();
    // Those that have never sent a byte have given way to the last ones.
    server.wait("all are accepted", |m| {
        m.sum("millrace_connections_accepted_total") == CONNECTIONS as u64
    });
    assert_eq!(server.metrics().sum("millrace_connections"), 44);
    let clients_left = clients.iter_mut().rev().take(20);
    for (id, client) in clients_left.enumerate() {
        assert_eq!(server.admin("/healthz").status, 200);
        assert_eq!(server.admin("/metrics").status, 200);
        assert_eq!(client.post(format!(r#"{{"data":[{id}]}}"#)).status, 200);
    }
    wait_for("all to be stored", || server.stored().len() == 20);
    let metrics = server.metrics();
    assert_eq!(metrics.sum("millrace_put_retries_total"), 0);
    assert_eq!(metrics.sum("millrace_accept_errors_total"), 0);
    assert_eq!(metrics.sum("millrace_connections"), 44);
    drop(clients);
    server.wait_idle();
    assert_eq!(server.stop().status, 0);
}
