//! A disk that is full: goal, `spooled` requests are refused and say so, everything else goes on, and what was
//! acknowledged before is stored.
//!
//! Method: the server runs in a mount namespace of its own, where the spool's directory is a small tmpfs; a file that
//! fills it is made and removed through `/proc/PID/root`. A host that allows no such namespace skips this.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use crate::support::{Server, collection, contents, numbered, sorted, wait_for};

/// Mounts the tmpfs on `spool` in the working directory and becomes the command behind it.
const ON_TMPFS: &str = r#"mount -t tmpfs -o size=6m tmpfs spool && exec "$@""#;

/// The options of `unshare` for a mount namespace of one's own, if this host allows one.
fn namespace(dir: &Path) -> Option<&'static str> {
    std::fs::create_dir_all(dir.join("spool")).unwrap();
    // As root without a user namespace, whose limits would be others.
    ["-m", "-Urm"].into_iter().find(|options| {
        let mut tried = Command::new("unshare");
        tried.current_dir(dir).args([options, "sh", "-c", ON_TMPFS, "sh", "true"]);
        tried.stderr(Stdio::null()).status().is_ok_and(|status| status.success())
    })
}

/// Becomes the same command in a namespace with a small disk.
fn on_tmpfs(command: &mut Command, options: &str) {
    let mut wrapped = Command::new("unshare");
    wrapped.args([options, "sh", "-c", ON_TMPFS, "sh"]).arg(command.get_program());
    wrapped.args(command.get_args()).current_dir(command.get_current_dir().unwrap());
    wrapped.env_clear().stdin(Stdio::null());
    wrapped.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    *command = wrapped;
}

#[test]
fn spool_on_a_full_disk_refuses_and_recovers() {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let Some(options) = namespace(dir.path()) else {
        eprintln!("skipped: this host allows no mount namespace");
        return;
    };
    let settings = [
        ("SPOOL_DIR", "spool"),
        ("SPOOL_SEGMENT", "1MiB"),
        ("MAX_LENGTH", "64KiB"),
        ("SPOOL_PROGRESS", "300ms"),
        ("RETRY_BASE", "5ms"),
        ("RETRY_MAX", "50ms"),
        ("LOG_FORMAT", "json"),
    ];
    let server = Server::start_by(dir, &settings, |command| on_tmpfs(command, options));
    server.break_store();
    let inside = format!("/proc/{}/root{}", server.pid(), server.path("spool").display());
    let filler = PathBuf::from(inside).join("filler");
    // Room for two files or three.
    std::fs::write(&filler, vec![0; 3 << 20]).unwrap();

    let text = "f".repeat(50_000);
    let payload = |id: usize| format!(r#"["{text}",{id}]"#);
    let mut client = server.connect();
    let mut sent = Vec::new();
    let refused = loop {
        let payload = payload(sent.len());
        let reply = client.spool(&[&payload]);
        if reply.status != 200 {
            break reply;
        }
        sent.push(payload);
        assert!(sent.len() < 100, "6 MiB are more than they say");
    };
    assert_eq!((refused.status, refused.header("retry-after")), (503, Some("5")));
    assert!(refused.error().contains("cannot be written"), "{}", refused.error());
    assert!(sent.len() >= 16, "one file at least: {}", sent.len());
    let reasons = server.wait_ready(503);
    assert!(reasons.contains("core 0: the spool cannot be written"), "{reasons}");
    assert!(server.logged("No space left"), "{:#?}", server.log());
    assert_eq!(client.post(collection(&numbered(0..1))).status, 200, "queued needs no disk");
    sent.extend(numbered(0..1));

    std::fs::remove_file(&filler).unwrap();
    server.wait_ready(200);
    let more = payload(1_000);
    wait_for("the spool to take requests again", || client.spool(&[&more]).status == 200);
    sent.push(more);
    drop(client);
    server.mend_store();
    server.wait_spool_empty();
    assert!(contents(&server.stored()) == sorted(&sent), "each exactly once");
    assert_eq!(server.metrics().sum("millrace_payloads_lost_total"), 0);
    let stopped = server.stop();
    assert_eq!((stopped.status, stopped.dead_lettered), (0, 0), "{}", stopped.log_text());
}
