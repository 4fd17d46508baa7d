//! The dead letter: goal, what the store refuses is kept whole on disk, can be listed and put again
//! under its own key, and what finds no room there is lost loudly.
//!
//! Method: payloads that the store refuses by name (`FAULTS=poison=object`) or that a stop left
//! unstored, the binary's own `dead-letter` commands beside the running server and after it, and
//! directories that fill up or vanish.

use std::fs::DirEntry;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Output, Stdio};
use std::sync::Arc;

use crate::support::{
    Server, Stopped, chunked_request, collection, command, contents, dead_letters, files, numbered,
    request, run, sorted, wait_for,
};

/// A server that refuses `count` payloads, each `{"poison":N}`, and has dead-lettered them.
fn with_letters(count: usize, more: &[(&'static str, &'static str)]) -> Server {
    let server = Server::start(&[&[("FAULTS", "poison=object")], more].concat());
    let payloads: Vec<String> = (0..count).map(poison).collect();
    assert_eq!(server.post(collection(&payloads)).status, 200);
    server.wait_idle();
    server
}

fn poison(id: usize) -> String {
    format!(r#"{{"poison":{id}}}"#)
}

/// `dead-letter replay` beside `server`, with other faults.
fn replay(server: &Server, faults: &str) -> Output {
    server.command_beside(&["dead-letter", "replay"], &[("FAULTS", faults)]).output().unwrap()
}

fn text(output: &Output) -> String {
    let both = [&output.stdout[..], &output.stderr].concat();
    String::from_utf8(both).unwrap()
}

#[test]
fn a_letter_holds_the_bytes_and_what_is_known_and_ls_shows_it() {
    let server = with_letters(2, &[]);
    let letters = server.dead_letters();
    assert_eq!(letters.len(), 2);
    for (meta, payload) in &letters {
        let key = meta["key"].as_str().unwrap();
        assert!(key.ends_with(".json") && key.split('-').count() == 4, "{key}");
        assert_eq!(meta["bytes"], payload.len());
        assert_eq!(meta["attempts"], 1);
        assert_eq!(meta["store"], "file:./data");
        assert_eq!(meta["error"], "Injected: a seeded object fault");
        let age = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs()
            - meta["unix_seconds"].as_u64().unwrap();
        assert!(age < 60, "{meta}");
    }
    let mut dead: Vec<_> = letters.iter().map(|(_, payload)| payload.clone()).collect();
    dead.sort();
    assert_eq!(dead, [poison(0).into_bytes(), poison(1).into_bytes()]);
    let output = server.run_beside(&["dead-letter", "ls"]);
    assert_eq!(output.status.code(), Some(0));
    let listed = text(&output);
    for (meta, _) in &letters {
        let line = listed.lines().find(|line| line.contains(meta["key"].as_str().unwrap()));
        let line = line.unwrap_or_else(|| panic!("{listed}"));
        assert!(line.contains("seeded object fault") && line.contains("1 tries"), "{line}");
    }
    assert!(listed.contains("2 dead letters, 24 bytes"), "{listed}");
}

#[test]
fn a_replay_beside_the_server_stores_under_the_recorded_keys_and_removes() {
    let server = with_letters(40, &[]);
    let letters = server.dead_letters();
    let output = replay(&server, "");
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    assert!(text(&output).contains("40 of 40 dead letters stored in file:./data"));
    let stored = server.stored();
    assert_eq!(stored.len(), 40);
    for (meta, payload) in &letters {
        assert_eq!(stored.get(meta["key"].as_str().unwrap()), Some(payload));
    }
    assert_eq!(server.dead_letters(), []);
    // The server has gone on meanwhile and writes the next letter as ever.
    assert_eq!(server.post_payloads(&[&poison(99), "1"]).status, 200);
    server.wait_idle();
    assert_eq!((server.dead_letters().len(), server.stored().len()), (1, 41));
    let empty = replay(&server, "");
    assert!(text(&empty).contains("1 of 1 dead letter stored"), "{}", text(&empty));
    assert!(text(&replay(&server, "")).contains("0 of 0 dead letters"));
    assert_eq!(server.stop().status, 0, "dead letters from earlier do not change the status");
}

#[test]
fn of_two_replays_at_once_one_refuses() {
    let server = with_letters(3, &[]);
    let children: Vec<_> = (0..2)
        .map(|_| {
            let mut command =
                server.command_beside(&["dead-letter", "replay"], &[("FAULTS", "delay=3s")]);
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
        })
        .collect();
    let mut outputs: Vec<Output> =
        children.into_iter().map(|child| child.wait_with_output().unwrap()).collect();
    outputs.sort_by_key(|output| output.status.code());
    assert_eq!(outputs[0].status.code(), Some(0), "{}", text(&outputs[0]));
    assert_eq!(outputs[1].status.code(), Some(2), "{}", text(&outputs[1]));
    assert!(text(&outputs[1]).contains("another replay"), "{}", text(&outputs[1]));
    assert_eq!((server.stored().len(), server.dead_letters().len()), (3, 0));
}

#[test]
fn a_replay_leaves_what_the_store_still_refuses() {
    let server = with_letters(3, &[("RETRY_BASE", "1ms")]);
    let before = server.dead_letters();
    for faults in ["object=1", "transient=1", "store_wide=1"] {
        let output = replay(&server, faults);
        assert_eq!(output.status.code(), Some(1), "{faults}: {}", text(&output));
        assert!(text(&output).contains("0 of 3 dead letters"), "{}", text(&output));
        for (meta, _) in &before {
            assert!(text(&output).contains(meta["key"].as_str().unwrap()), "{}", text(&output));
        }
        assert_eq!(server.dead_letters(), before);
    }
    assert_eq!(server.stored().len(), 0);
}

#[test]
fn a_letter_that_cannot_be_read_is_named_and_does_not_hold_up_the_others() {
    let server = with_letters(2, &[]);
    std::fs::write(server.path("dead-letter/cut.json"), r#"{"key":"#).unwrap();
    for command in ["ls", "replay"] {
        let output = server.command_beside(&["dead-letter", command], &[("FAULTS", "")]);
        let output = { output }.output().unwrap();
        assert!(text(&output).contains("cut.json"), "{}", text(&output));
        assert_eq!(output.status.code(), Some(i32::from(command == "replay")));
    }
    assert_eq!(contents(&server.stored()), sorted(&[poison(0), poison(1)]));
}

#[test]
fn a_full_directory_loses_loudly_until_a_replay_makes_room() {
    let server = with_letters(2, &[("DEAD_LETTER_MAX", "1100B")]);
    let large = format!(r#""poison{}""#, "x".repeat(600));
    assert_eq!(server.admin("/readyz").status, 200);
    assert_eq!(server.post_payloads(&[&large]).status, 200);
    server.wait("the loss", |m| m.sum("millrace_payloads_lost_total") == 1);
    server.wait_idle();
    server.wait_logged("payload lost");
    let line = server.log().into_iter().find(|line| line["message"] == "payload lost").unwrap();
    assert_eq!(line["level"], "ERROR");
    assert!(line["key"].as_str().unwrap().ends_with("-2.json"), "{line}");
    assert!(line["why"].as_str().unwrap().contains("DEAD_LETTER_MAX"), "{line}");
    assert!(server.wait_ready(503).contains("dead-letter directory"));
    assert_eq!(server.dead_letters().len(), 2);
    assert_eq!(replay(&server, "").status.code(), Some(0));
    server.wait_ready(200);
    assert_eq!(server.post_payloads(&[&large]).status, 200);
    server.wait_idle();
    assert_eq!(server.dead_letters().len(), 1);
    let stopped = server.stop();
    let figures = (stopped.status, stopped.accepted, stopped.dead_lettered, stopped.lost);
    assert_eq!(figures, (1, 4, 3, 1), "a loss at any time decides the status");
}

#[test]
fn a_directory_that_cannot_be_written_loses_loudly_until_it_can() {
    let server = with_letters(1, &[]);
    let (directory, away) = (server.path("dead-letter"), server.path("away"));
    std::fs::rename(&directory, &away).unwrap();
    std::fs::write(&directory, "in the way").unwrap();
    assert_eq!(server.post_payloads(&[&poison(1), "1"]).status, 200);
    server.wait("the loss", |m| m.sum("millrace_payloads_lost_total") == 1);
    server.wait_idle();
    server.wait_logged("payload lost");
    assert!(server.wait_ready(503).contains("dead-letter directory"));
    assert_eq!(contents(&server.stored()), ["1"], "others are stored all the same");
    std::fs::remove_file(&directory).unwrap();
    std::fs::rename(&away, &directory).unwrap();
    server.wait_ready(200);
    assert_eq!(server.post_payloads(&[&poison(2)]).status, 200);
    server.wait_idle();
    assert_eq!(dead_letters(&directory).len(), 2);
    assert_eq!(server.stop().status, 1);
}

/// A server stopped with the payloads `{"id":0}` to `{"id":count - 1}` unstored: one file holds
/// them.
fn stopped_with_letters(count: usize) -> Stopped {
    let server = Server::start(&[
        ("FAULTS", "hang=1"),
        ("PUT_TIMEOUT", "10m"),
        ("MAX_WORKERS", "4"),
        ("DRAIN_TIMEOUT", "3s"),
    ]);
    assert_eq!(server.post(collection(&numbered(0..count))).status, 200);
    let stopped = server.stop();
    let figures = (stopped.status, stopped.dead_lettered, stopped.lost);
    assert_eq!(figures, (1, count as u64, 0), "{}", stopped.log_text());
    assert_eq!(letter_files(stopped.dir.path()).len(), 1);
    stopped
}

/// Names and bytes of what is in `dead-letter` but for the lock.
fn letter_files(dir: &Path) -> Vec<(String, Vec<u8>)> {
    files(&dir.join("dead-letter")).into_iter().filter(|(name, _)| !name.starts_with('.')).collect()
}

/// `dead-letter replay` after the server.
fn replay_in(dir: &Path, faults: &str) -> Output {
    run(dir, &["dead-letter", "replay"], &[("FAULTS", faults), ("RETRY_BASE", "1ms")])
}

#[test]
fn a_replay_takes_what_it_stored_out_of_the_file_of_a_stop() {
    let stopped = stopped_with_letters(60);
    let dir = stopped.dir.path();
    let keys = |letters: &[(serde_json::Value, Vec<u8>)]| -> Vec<String> {
        letters.iter().map(|(meta, _)| meta["key"].as_str().unwrap().to_owned()).collect()
    };
    let before = letter_files(dir);
    let none = replay_in(dir, "store_wide=1");
    assert_eq!(none.status.code(), Some(1), "{}", text(&none));
    assert_eq!(letter_files(dir), before, "nothing was stored, so nothing is rewritten");

    let some = replay_in(dir, "seed=4,object=0.3");
    assert_eq!(some.status.code(), Some(1), "{}", text(&some));
    let left = dead_letters(&dir.join("dead-letter"));
    let stored = files(&dir.join("data"));
    assert!(!left.is_empty() && !stored.is_empty(), "{}", text(&some));
    assert!(text(&some).contains(&format!("{} of 60 dead letters", stored.len())));
    assert_eq!(left.len() + stored.len(), 60);
    assert!(keys(&left).iter().all(|key| !stored.contains_key(key)));
    assert_eq!(letter_files(dir).len(), 1, "no temporary file is left");

    let rest = replay_in(dir, "");
    assert_eq!(rest.status.code(), Some(0), "{}", text(&rest));
    assert_eq!(contents(&files(&dir.join("data"))), sorted(&numbered(0..60)));
    assert_eq!(letter_files(dir), []);
}

#[test]
fn a_replay_that_was_killed_is_repeated_under_the_same_keys() {
    let stopped = stopped_with_letters(60);
    let dir = stopped.dir.path();
    let mut command = command(dir, &["dead-letter", "replay"], &[("FAULTS", "delay=2s")]);
    let mut child = command.stdout(Stdio::null()).spawn().unwrap();
    // Not by their contents: the preflight's own file comes and goes.
    let is_object = |entry: std::io::Result<DirEntry>| {
        entry.is_ok_and(|entry| !entry.file_name().as_encoded_bytes().starts_with(b"."))
    };
    wait_for("some objects", || {
        std::fs::read_dir(dir.join("data")).is_ok_and(|mut entries| entries.any(is_object))
    });
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(dead_letters(&dir.join("dead-letter")).len(), 60, "killed too late to tell");
    let again = replay_in(dir, "");
    assert!(text(&again).contains("60 of 60 dead letters"), "{}", text(&again));
    assert_eq!(contents(&files(&dir.join("data"))), sorted(&numbered(0..60)));
    assert_eq!(letter_files(dir), []);
}

#[test]
fn of_a_damaged_file_what_is_before_the_damage_is_put_and_the_rest_kept() {
    let stopped = stopped_with_letters(9);
    let dir = stopped.dir.path();
    let (name, mut bytes) = letter_files(dir).remove(0);
    let text_of_it = String::from_utf8(bytes.clone()).unwrap();
    let at = text_of_it.find(r#"{"id":5}"#).unwrap();
    let start = text_of_it[..at].trim_end().rfind('\n').unwrap() + 1;
    bytes[at + 6] = b'6';
    let path = dir.join("dead-letter").join(&name);
    std::fs::write(&path, &bytes).unwrap();
    let before = bytes[..start].iter().filter(|byte| **byte == b'\n').count() / 2;
    assert!(before > 0 && before < 9);
    let where_ = format!("{name}: damaged at byte {start}");

    let ls = run(dir, &["dead-letter", "ls"], &[]);
    assert!(text(&ls).contains(&where_), "{}", text(&ls));
    assert!(text(&ls).contains(&format!("{before} dead letters")), "{}", text(&ls));
    let put = replay_in(dir, "");
    assert_eq!(put.status.code(), Some(1));
    assert!(text(&put).contains(&where_), "{}", text(&put));
    assert_eq!(files(&dir.join("data")).len(), before);
    assert!(std::fs::read(&path).unwrap() == bytes[start..], "the damaged rest is not touched");
}

#[test]
fn letters_for_another_store_are_left_unless_any_store_is_said() {
    let server = with_letters(3, &[]);
    let before = server.dead_letters();
    let other = [("FAULTS", ""), ("STORE", "file:./other")];
    let left = server.command_beside(&["dead-letter", "replay"], &other).output().unwrap();
    assert_eq!(left.status.code(), Some(1), "{}", text(&left));
    assert!(text(&left).contains("0 of 3 dead letters stored in file:./other"), "{}", text(&left));
    assert!(text(&left).contains("skipped for file:./data: 3 dead letters"), "{}", text(&left));
    assert_eq!((server.dead_letters(), files(&server.path("other")).len()), (before, 0));
    let args = ["dead-letter", "replay", "--any-store"];
    let put = server.command_beside(&args, &other).output().unwrap();
    assert_eq!(put.status.code(), Some(0), "{}", text(&put));
    assert_eq!(contents(&files(&server.path("other"))), sorted(&[0, 1, 2].map(poison)));
    assert_eq!(server.dead_letters(), []);

    let stopped = stopped_with_letters(3);
    let dir = stopped.dir.path();
    let before = letter_files(dir);
    let left = run(dir, &["dead-letter", "replay"], &[("STORE", "null:")]);
    assert_eq!(left.status.code(), Some(1), "{}", text(&left));
    assert!(text(&left).contains("skipped for file:./data: 3 dead letters"), "{}", text(&left));
    assert_eq!(letter_files(dir), before);
}

#[test]
fn what_is_private_stays_private() {
    let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
    let server = with_letters(1, &[]);
    assert_eq!(mode(&server.path("dead-letter")), 0o700);
    for name in files(&server.path("dead-letter")).keys() {
        assert_eq!(mode(&server.path("dead-letter").join(name)), 0o600, "{name}");
    }
    let stopped = stopped_with_letters(1);
    let directory = stopped.dir.path().join("dead-letter");
    assert_eq!(mode(&directory.join(&letter_files(stopped.dir.path())[0].0)), 0o600);
}

#[test]
fn no_patience_at_all_still_holds_payloads_through_an_outage() {
    let server = Server::start(&[("RETRY_FOR", "0s"), ("RETRY_MAX", "100ms")]);
    server.break_store();
    assert_eq!(server.post(collection(&numbered(0..5))).status, 200);
    server.wait("all to have failed twice", |m| m.sum("millrace_put_retries_total") >= 10);
    assert_eq!(server.dead_letters(), []);
    server.mend_store();
    server.wait_idle();
    assert_eq!(contents(&server.stored()), sorted(&numbered(0..5)));
    assert_eq!(server.stop().status, 0);
}

/// Two of 4 dead letters on their own and two in the file of a stop, and their keys.
fn of_both_kinds() -> (Arc<tempfile::TempDir>, Vec<String>) {
    let server = with_letters(2, &[]);
    let dir = server.dir();
    assert_eq!(server.stop().status, 0);
    // With time to write them: what finds none is lost.
    let settings = [("FAULTS", "hang=1"), ("PUT_TIMEOUT", "10m"), ("DRAIN_TIMEOUT", "3s")];
    let server = Server::start_in(dir.clone(), &settings);
    assert_eq!(server.post(collection(&numbered(0..2))).status, 200);
    let stopped = server.stop();
    assert_eq!((stopped.dead_lettered, stopped.lost), (2, 0), "{}", stopped.log_text());
    let letters = dead_letters(&dir.path().join("dead-letter"));
    let mut keys: Vec<String> =
        letters.iter().map(|(meta, _)| meta["key"].as_str().unwrap().to_owned()).collect();
    keys.sort();
    assert_eq!(keys.len(), 4);
    let files = files(&dir.path().join("dead-letter"));
    assert_eq!(files.keys().filter(|name| name.ends_with(".letters")).count(), 1);
    (dir, keys)
}

fn letter_command(dir: &Path, args: &[&str]) -> (Option<i32>, String) {
    let output = run(dir, &[&["dead-letter"], args].concat(), &[("FAULTS", "")]);
    (output.status.code(), text(&output))
}

#[test]
fn show_gives_what_is_known_or_the_payload_of_either_kind() {
    let (dir, keys) = of_both_kinds();
    let show = |args: &[&str]| letter_command(dir.path(), &[&["show"], args].concat());
    for key in &keys {
        let (status, said) = show(&[key]);
        let meta: serde_json::Value = serde_json::from_str(&said).unwrap();
        assert_eq!((status, meta["key"].as_str()), (Some(0), Some(&**key)), "{said}");
        assert!(meta["error"].is_string() && meta["attempts"].is_u64(), "{said}");
        let (status, payload) = show(&["--payload", key]);
        assert_eq!(status, Some(0), "{payload}");
        let is_one = payload.starts_with("{\"poison\":") || payload.starts_with("{\"id\":");
        assert!(is_one && payload.len() as u64 == meta["bytes"].as_u64().unwrap(), "{payload}");
    }
    let (status, said) = show(&[&keys[0], "nothing.json"]);
    assert_eq!(status, Some(1), "{said}");
    assert!(said.contains("nothing.json: no dead letter has this key"), "{said}");
    assert!(said.contains(&keys[0]), "{said}");
}

#[test]
fn a_payload_that_cannot_be_read_is_said_once() {
    let server = with_letters(1, &[]);
    let dir = server.dir();
    assert_eq!(server.stop().status, 0);
    let letters = dead_letters(&dir.path().join("dead-letter"));
    let key = letters[0].0["key"].as_str().unwrap();
    let directory = dir.path().join("dead-letter");
    let name = files(&directory).into_keys().find(|name| name.ends_with(".payload")).unwrap();
    std::fs::remove_file(directory.join(&name)).unwrap();
    std::fs::create_dir(directory.join(&name)).unwrap();
    let (status, said) = letter_command(dir.path(), &["show", "--payload", key]);
    assert_eq!((status, said.lines().count()), (Some(1), 1), "{said}");
    assert!(said.contains("its payload cannot be read"), "{said}");
}

/// Keys of this `KEY` say nothing of the time.
#[test]
fn the_oldest_is_listed_first() {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    for name in ["z", "a"] {
        let key = format!("{name}/{{unix_nanos}}-{{node}}-{{core}}-{{seq}}.json");
        let server = Server::start_in(dir.clone(), &[("KEY", &key), ("FAULTS", "poison=object")]);
        assert_eq!(server.post(collection(&[poison(0)])).status, 200);
        server.wait_idle();
        assert_eq!(server.stop().status, 0);
        // Letters know whole seconds.
        std::thread::sleep(std::time::Duration::from_millis(1100));
    }
    let (_, said) = letter_command(dir.path(), &["ls"]);
    let names: Vec<usize> = ["  z/", "  a/"].map(|name| said.find(name).unwrap()).to_vec();
    assert!(names.is_sorted(), "{said}");
}

#[test]
fn filters_choose_what_is_listed_replayed_and_removed() {
    let (dir, keys) = of_both_kinds();
    let list = |args: &[&str]| {
        let (status, said) = letter_command(dir.path(), &[&["ls"], args].concat());
        assert_eq!(status, Some(0), "{said}");
        let count = said.lines().last().unwrap().split(' ').next().unwrap().to_owned();
        (count, said)
    };
    assert_eq!(list(&[]).0, "4");
    assert_eq!(list(&["--older", "1h"]).0, "0");
    assert_eq!(list(&["--older", "0s"]).0, "4");
    let (count, said) = list(&["--error", "SEEDED OBJECT"]);
    assert!(count == "2" && said.matches("seeded object fault").count() == 2, "{said}");
    // The others are neither uploaded nor counted as left.
    let (status, said) = letter_command(dir.path(), &["replay", "--error", "seeded object"]);
    assert_eq!(status, Some(0), "{said}");
    assert!(said.contains("2 of 2 dead letters stored"), "{said}");
    assert!(said.contains("not asked for, and left in place: 2 dead letters"), "{said}");
    assert_eq!(files(&dir.path().join("data")).len(), 2);
    assert_eq!(list(&[]).0, "2");
    // One out of the file of a stop: the other stays readable.
    let left: Vec<&String> = {
        let said = list(&[]).1;
        keys.iter().filter(|key| said.contains(key.as_str())).collect()
    };
    let (status, said) = letter_command(dir.path(), &["rm", left[0]]);
    assert_eq!(status, Some(0), "{said}");
    assert!(said.contains("1 dead letter removed"), "{said}");
    let (count, said) = list(&[]);
    assert!(count == "1" && said.contains(left[1]), "{said}");
    let (status, said) = letter_command(dir.path(), &["rm", left[0]]);
    assert_eq!(status, Some(1), "{said}");
    assert!(
        said.contains("no dead letter has this key") && said.contains("0 dead letters removed")
    );
    // Without a choice nothing is removed.
    let (status, said) = letter_command(dir.path(), &["rm"]);
    assert_eq!(status, Some(2), "{said}");
    assert_eq!(list(&[]).0, "1");
    assert_eq!(letter_command(dir.path(), &["rm", "--older", "1h"]).0, Some(0));
    assert_eq!(list(&[]).0, "1");
    let (status, said) = letter_command(dir.path(), &["rm", "--all"]);
    assert_eq!(status, Some(0), "{said}");
    assert_eq!(list(&[]).0, "0");
    let kept: Vec<String> = files(&dir.path().join("dead-letter")).into_keys().collect();
    assert_eq!(kept, [".replay.lock"]);
}

/// W3C's example.
const TRACE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

#[test]
fn a_letter_has_the_trace_of_its_request() {
    let server = Server::start(&[("FAULTS", "object=1"), ("LOG", "debug")]);
    let send = |request: Vec<u8>| {
        let mut client = server.connect();
        client.send(request);
        assert_eq!(client.reply().status, 200);
    };
    const BODY: &[u8] = br#"{"data":[1,2]}"#;
    let post = |headers: &str| send(request(BODY, headers));
    post("");
    post(&format!("traceparent: {TRACE}\r\n"));
    // By hyper, too, in any case of the name.
    let other = format!("TraceParent: {}\r\n", TRACE.replace("-01", "-00"));
    send(chunked_request(&[BODY], &other));
    post("traceparent: 00-nonsense-01\r\n");
    post(&format!("traceparent: {TRACE}\r\ntraceparent: {TRACE}\r\n"));
    server.wait_idle();
    let letters = server.dead_letters();
    assert_eq!(letters.len(), 10);
    let traced = |trace: &str| {
        let expected = serde_json::json!([trace]);
        letters.iter().filter(|(meta, _)| meta["traceparents"] == expected).count()
    };
    assert_eq!((traced(TRACE), traced(&TRACE.replace("-01", "-00"))), (2, 2));
    let plain = letters.iter().filter(|(meta, _)| meta.get("traceparents").is_none()).count();
    assert_eq!(plain, 6, "{letters:?}");
    server.wait_logged("request of a trace admitted");
    let admitted = |line: &&serde_json::Value| line["message"] == "request of a trace admitted";
    let log = server.log();
    let lines: Vec<_> = log.iter().filter(admitted).collect();
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert_eq!((&lines[0]["traceparent"], &lines[0]["payloads"]), (&TRACE.into(), &2.into()));
    // Its time leads to the keys.
    let nanos = lines[0]["unix_nanos"].as_u64().unwrap().to_string();
    let of_trace =
        letters.iter().filter(|(meta, _)| meta["key"].as_str().unwrap().starts_with(&nanos));
    assert_eq!(of_trace.count(), 2);
}

/// A batch has many requests; a spool keeps traces beyond a crash.
#[test]
fn traces_of_batches_and_of_crashed_servers_are_kept() {
    let trace = |n: usize| TRACE.replacen("0af7", &format!("{n:04x}"), 1);
    let post = |server: &Server, n: usize, more: &str| {
        let mut client = server.connect();
        let headers = format!("traceparent: {}\r\n{more}", trace(n));
        client.send(request(br#"{"data":[{"x":1}]}"#, &headers));
        assert_eq!(client.reply().status, 200);
    };
    let batch = [("OBJECT", "batch"), ("BATCH_AGE", "1s"), ("FAULTS", "object=1")];
    let server = Server::start(&batch);
    for n in 1..=20 {
        post(&server, n, "");
        post(&server, n, "");
    }
    server.wait_idle();
    let letters = server.dead_letters();
    let first: Vec<String> = (1..=16).map(trace).collect();
    let all: Vec<serde_json::Value> = letters
        .iter()
        .flat_map(|(meta, _)| meta["traceparents"].as_array().unwrap().clone())
        .collect();
    match letters.len() {
        // All came within a second.
        1 => assert_eq!(all, first),
        _ => assert!(first.iter().all(|trace| all.contains(&trace.as_str().into())), "{all:?}"),
    }
    drop(server);

    let spool = [("SPOOL_DIR", "spool"), ("SPOOL_SEGMENT", "4MiB"), ("SPOOL_MAX", "32MiB")];
    let server = Server::start(&[&spool[..], &[("FAULTS", "transient=1")]].concat());
    post(&server, 7, "millrace-ack: spooled\r\n");
    let left = server.kill();
    let server = Server::start_in(left.dir, &[&spool[..], &[("FAULTS", "object=1")]].concat());
    wait_for("the dead letter of a crashed server's payload", || server.dead_letters().len() == 1);
    assert_eq!(server.dead_letters()[0].0["traceparents"], serde_json::json!([trace(7)]));
}
