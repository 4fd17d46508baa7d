//! The commands for a spool: goal, what a killed server has left on disk can be listed, checked,
//! put into a store and written out without a server, and damage costs what it hit and nothing
//! else.
//!
//! Method: a server whose store fails, killed; the binary's own `spool` commands on what it left,
//! whole, torn and with bytes changed, and beside a server that runs.

use std::collections::BTreeSet;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::Arc;

use crate::support::{Server, collection, command, contents, files, numbered, run, sorted};

/// Where the groups of a segment begin, and the unit they take.
const DATA_START: u64 = 128 << 10;
const BLOCK: u64 = 4096;

const SPOOLING: [(&str, &str); 5] = [
    ("ACK", "spooled"),
    ("SPOOL_DIR", "spool"),
    ("SPOOL_SEGMENT", "4MiB"),
    ("NODE_ID", "node"),
    ("FAULTS", "transient=1"),
];

/// A server that spools and cannot store.
fn spooling(more: &[(&'static str, &'static str)]) -> Server {
    let mut settings = SPOOLING.to_vec();
    settings.retain(|(name, _)| more.iter().all(|(other, _)| other != name));
    Server::start(&[&settings, more].concat())
}

/// A directory with what a killed server has left: one group for each of `requests`, all in one
/// segment.
fn left_by(requests: &[Vec<String>]) -> Arc<tempfile::TempDir> {
    let server = spooling(&[]);
    for payloads in requests {
        let reply = server.post(collection(payloads));
        assert_eq!(reply.status, 200, "{reply:?}");
    }
    killed(server)
}

fn killed(server: Server) -> Arc<tempfile::TempDir> {
    let dir = server.dir();
    server.signal("KILL");
    server.wait_stopped();
    dir
}

/// Three requests: `{"id":0}` to `{"id":8}`.
fn nine() -> Vec<Vec<String>> {
    vec![numbered(0..2), numbered(2..5), numbered(5..9)]
}

/// `spool ARGS` with the settings of the killed server, but for its faults.
fn spool(dir: &Path, args: &[&str]) -> Output {
    spool_with(dir, args, &[("SPOOL_DIR", "spool"), ("RETRY_BASE", "1ms")])
}

fn spool_with(dir: &Path, args: &[&str], settings: &[(&str, &str)]) -> Output {
    run(dir, &[&["spool"], args].concat(), settings)
}

fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn text(output: &Output) -> String {
    out(output) + &String::from_utf8_lossy(&output.stderr)
}

/// Exit status and everything that was said.
fn say(output: &Output) -> (Option<i32>, String) {
    (output.status.code(), text(output))
}

/// The segment that holds groups.
fn segment(dir: &Path) -> PathBuf {
    let core = dir.join("spool/node/core-0");
    let paths = std::fs::read_dir(core).unwrap().map(|entry| entry.unwrap().path());
    let segments = paths.filter(|path| path.extension().is_some_and(|kind| kind == "seg"));
    let mut used = segments.filter(|path| bytes_at(path, DATA_START, 7) == b"MRSPOOL");
    let path = used.next().expect("a segment with groups");
    assert_eq!(used.next(), None, "one segment");
    path
}

fn bytes_at(path: &Path, at: u64, count: usize) -> Vec<u8> {
    let mut file = std::fs::File::open(path).unwrap();
    file.seek(SeekFrom::Start(at)).unwrap();
    let mut bytes = vec![0; count];
    file.read_exact(&mut bytes).unwrap();
    bytes
}

fn flip(path: &Path, at: u64) {
    let byte = bytes_at(path, at, 1)[0] ^ 1;
    let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(&[byte], at).unwrap();
}

fn lines(text: &str) -> Vec<&str> {
    text.lines().collect()
}

#[test]
fn ls_shows_each_segment_and_what_is_not_stored() {
    let dir = left_by(&nine());
    let dir = dir.path();
    let before = files(&dir.join("spool"));
    for output in [spool(dir, &["ls"]), spool_with(dir, &["ls", "spool/node"], &[])] {
        assert_eq!(output.status.code(), Some(0), "{}", text(&output));
        let listed = out(&output);
        let file = segment(dir).file_name().unwrap().to_str().unwrap().to_owned();
        let line = listed.lines().find(|line| line.contains(&file)).expect(&listed);
        let words: Vec<&str> = line.split_whitespace().collect();
        let expected = ["node", "core-0", &file, "3", "groups", "9", "payloads", "9", "unstored"];
        assert_eq!(words[..9], expected, "{listed}");
        assert_eq!(words[9..11], ["72", "B"], "{listed}");
        assert!(line.contains("oldest") && line.ends_with("whole"), "{listed}");
        assert!(listed.contains("9 payloads, 9 unstored, 72 bytes"), "{listed}");
    }
    assert!(files(&dir.join("spool")) == before, "a look changes nothing");
}

#[test]
fn a_running_server_is_listed_and_otherwise_left_alone() {
    let server = spooling(&[]);
    assert_eq!(server.post(collection(&numbered(0..3))).status, 200);
    let dir = server.dir();
    let (status, listed) = say(&spool(dir.path(), &["ls"]));
    assert_eq!(status, Some(0), "{listed}");
    assert!(listed.contains("3 unstored") && listed.contains("in use"), "{listed}");
    for args in [&["verify"][..], &["replay"], &["export"], &["verify", "spool/node"]] {
        let output = spool(dir.path(), args);
        assert_eq!(output.status.code(), Some(0), "{args:?}: {}", text(&output));
        assert!(text(&output).contains("in use by a running server, skipped"), "{}", text(&output));
    }
    for args in [["replay", "spool/node"], ["export", "spool/node"]] {
        let (status, said) = say(&spool(dir.path(), &args));
        assert_eq!(status, Some(2), "{said}");
        assert!(said.contains("in use by a running server"), "{said}");
    }
    // It has heard nothing of all that.
    assert_eq!(server.post(collection(&numbered(3..4))).status, 200);
    let again = killed(server);
    let exported = out(&spool(again.path(), &["export"]));
    assert_eq!(sorted(&lines(&exported)), sorted(&numbered(0..4)));
}

#[test]
fn a_replay_stores_every_payload_under_its_key_and_leaves_nothing() {
    let payloads: Vec<String> = (0..40)
        .map(|n| format!("{{\"id\":{n},\r\n \"text\":\"é\\n{}\"}}", "x".repeat(n * n)))
        .collect();
    let requests: Vec<Vec<String>> = payloads.chunks(7).map(<[String]>::to_vec).collect();
    let dir = left_by(&requests);
    let dir = dir.path();
    std::fs::remove_dir_all(dir.join("dead-letter")).unwrap();
    let (status, said) = say(&spool(dir, &["replay"]));
    assert_eq!(status, Some(0), "{said}");
    assert!(said.contains("40 of 40 spooled payloads stored in file:./data"), "{said}");
    let stored = files(&dir.join("data"));
    assert_eq!(contents(&stored), sorted(&payloads), "byte for byte");
    let seqs: BTreeSet<u64> = stored
        .keys()
        .map(|key| {
            let parts: Vec<&str> = key.strip_suffix(".json").unwrap().split('-').collect();
            assert_eq!((parts.len(), parts[1], parts[2]), (4, "node", "0"), "{key}");
            parts[3].parse().unwrap()
        })
        .collect();
    assert_eq!(seqs, (0..40).collect(), "the keys they were taken in under");
    assert_eq!(files(&dir.join("spool")).into_keys().collect::<Vec<_>>(), [".lock"]);
    assert!(!dir.join("spool/node").exists());
    assert!(!dir.join("dead-letter").exists(), "it has no business there");
    let (status, said) = say(&spool(dir, &["replay"]));
    assert_eq!((status, said.contains("0 of 0")), (Some(0), true), "{said}");
}

#[test]
fn what_a_replay_could_not_store_is_left_and_what_it_could_is_noted() {
    let dir = left_by(&[numbered(0..100), numbered(100..160)]);
    let dir = dir.path();
    let before = files(&dir.join("spool"));
    let with = |faults| {
        let settings = [("SPOOL_DIR", "spool"), ("RETRY_BASE", "1ms"), ("FAULTS", faults)];
        spool_with(dir, &["replay"], &settings)
    };
    let (status, said) = say(&with("store_wide=1"));
    assert_eq!(status, Some(1), "{said}");
    assert!(said.contains("0 of 160 spooled payloads"), "{said}");
    assert!(said.contains("nothing more is tried") && lines(&said).len() < 20, "{said}");
    let path = segment(dir);
    let name = path.strip_prefix(dir.join("spool")).unwrap().to_str().unwrap();
    assert!(files(&dir.join("spool"))[name] == before[name], "nothing is noted of nothing");

    let (status, said) = say(&with("seed=4,object=0.3"));
    assert_eq!(status, Some(1), "{said}");
    let stored = files(&dir.join("data"));
    assert!(!stored.is_empty() && stored.len() < 160);
    assert!(said.contains(&format!("{} of 160 spooled payloads", stored.len())), "{said}");
    assert_eq!(said.matches("left in the spool").count(), 160 - stored.len(), "{said}");

    // What is stored is neither written out nor put again.
    let exported = out(&spool(dir, &["export"]));
    let left = 160 - stored.len();
    assert_eq!(lines(&exported).len(), left);
    assert_eq!(
        sorted(
            &[contents(&stored), lines(&exported).iter().map(|l| l.to_string()).collect()].concat()
        ),
        sorted(&numbered(0..160))
    );
    let all = out(&spool(dir, &["export", "--all"]));
    assert_eq!(lines(&all), numbered(0..160), "in the order in which they came");
    assert!(out(&spool(dir, &["ls"])).contains(&format!("160 payloads, {left} unstored")));
    let (status, said) = say(&spool(dir, &["replay"]));
    assert_eq!(status, Some(0), "{said}");
    assert!(said.contains(&format!("{left} of {left} spooled payloads")), "{said}");
    assert_eq!(contents(&files(&dir.join("data"))), sorted(&numbered(0..160)));
}

#[test]
fn a_server_takes_over_what_a_replay_has_left() {
    let dir = left_by(&[numbered(0..60)]);
    let settings = [("SPOOL_DIR", "spool"), ("FAULTS", "seed=2,object=0.5")];
    assert_eq!(spool_with(dir.path(), &["replay"], &settings).status.code(), Some(1));
    let before = files(&dir.path().join("data")).len();
    assert!(before > 0 && before < 60, "{before}");
    let mut settings = SPOOLING.to_vec();
    settings.retain(|(name, _)| *name != "FAULTS");
    let server = Server::start_in(dir, &settings);
    server.wait("the rest", |_| server.stored().len() == 60);
    server.wait("their count", |m| m.sum("millrace_payloads_stored_total") == 60 - before as u64);
    assert_eq!(contents(&server.stored()), sorted(&numbered(0..60)));
}

#[test]
fn an_export_is_one_payload_a_line() {
    let pretty = "{\r\n  \"id\": 1,\n  \"t\": \"a\\nb\"\n}".to_owned();
    let dir = left_by(&[vec!["1.50".into(), pretty], vec!["\"é\"".into()], numbered(0..300)]);
    let output = spool(dir.path(), &["export"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    let exported = out(&output);
    let mut expected =
        vec!["1.50".into(), "{  \"id\": 1,  \"t\": \"a\\nb\"}".into(), "\"é\"".into()];
    expected.extend(numbered(0..300));
    assert_eq!(lines(&exported), expected);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("303 payloads exported"), "{said}");
}

#[test]
fn a_reader_that_has_seen_enough_ends_an_export() {
    let large = format!("\"{}\"", "x".repeat(300_000));
    let dir = left_by(&[vec![large.clone(), large.clone(), large]]);
    // An export that is cut short is not whole, which its status says; a list has nothing more to
    // say.
    for (args, status) in [(["spool", "export", "spool"], 1), (["spool", "ls", "spool"], 0)] {
        let mut command = command(dir.path(), &args, &[]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(status), "{}", text(&output));
        assert_eq!(text(&output), "", "nobody's mistake");
    }
}

#[test]
fn damage_costs_the_group_it_hit_and_the_file_is_put_aside() {
    let dir = left_by(&nine());
    let dir = dir.path();
    let path = segment(dir);
    let whole = spool(dir, &["verify"]);
    assert_eq!(whole.status.code(), Some(0), "{}", text(&whole));
    assert!(out(&whole).contains("3 whole groups, 0 damaged"), "{}", text(&whole));
    flip(&path, DATA_START + BLOCK + 180);

    let (start, end) = (DATA_START + BLOCK, DATA_START + 2 * BLOCK);
    let damage =
        format!("damaged from byte {start} to {end}: the checksum of a group does not match");
    let verified = spool(dir, &["verify"]);
    assert_eq!(verified.status.code(), Some(1), "{}", text(&verified));
    let line = format!("{}: {damage}", path.canonicalize().unwrap().display());
    assert!(lines(&out(&verified)).contains(&line.as_str()), "{}", text(&verified));
    assert!(out(&verified).contains("lost of what was in it: 3 payloads"), "{}", text(&verified));
    assert!(out(&verified).contains("2 whole groups, 1 damaged"), "{}", text(&verified));
    assert!(out(&spool(dir, &["ls"])).contains(&damage));

    let exported = spool(dir, &["export"]);
    assert_eq!(exported.status.code(), Some(1), "{}", text(&exported));
    let rest = [numbered(0..2), numbered(5..9)].concat();
    assert_eq!(lines(&out(&exported)), rest);
    assert!(text(&exported).contains(&damage), "{}", text(&exported));

    let bytes = std::fs::read(&path).unwrap();
    let (status, said) = say(&spool(dir, &["replay"]));
    assert_eq!(status, Some(1), "payloads are lost: {said}");
    assert!(
        said.contains(&damage) && said.contains("lost of what was in it: 3 payloads"),
        "{said}"
    );
    assert!(said.contains("6 of 6 spooled payloads"), "{said}");
    assert_eq!(contents(&files(&dir.join("data"))), sorted(&rest));
    let aside = files(&dir.join("spool/quarantine"));
    assert_eq!(aside.len(), 1);
    assert!(aside.values().all(|aside| *aside == bytes), "as it was");
    assert!(!dir.join("spool/node").exists());
    let (status, listed) = say(&spool(dir, &["ls"]));
    assert_eq!((status, listed.contains("1 file in quarantine")), (Some(0), true), "{listed}");
}

#[test]
fn a_torn_tail_is_no_damage() {
    let dir = left_by(&nine());
    let dir = dir.path();
    let at = DATA_START + 2 * BLOCK;
    flip(&segment(dir), at + 200);
    let torn = format!("torn at byte {at}");
    for (args, said) in [(["ls"], &torn), (["verify"], &torn)] {
        let output = spool(dir, &args);
        assert_eq!(output.status.code(), Some(0), "{}", text(&output));
        assert!(out(&output).contains(said), "{}", text(&output));
    }
    let (status, said) = say(&spool(dir, &["replay"]));
    assert_eq!(status, Some(0), "{said}");
    assert_eq!(contents(&files(&dir.join("data"))), sorted(&numbered(0..5)));
    assert!(!dir.join("spool/node").exists() && !dir.join("spool/quarantine").exists());
}

#[test]
fn what_is_no_spool_is_named_and_not_touched() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    std::fs::create_dir_all(dir.join("home/user/docs")).unwrap();
    let mut file = std::fs::File::create(dir.join("home/user/docs/7.seg")).unwrap();
    file.write_all(&[b'x'; 9_000]).unwrap();
    let before = files(dir);
    for command in ["ls", "verify", "replay", "export"] {
        for (args, settings, said) in [
            (&[command][..], &[][..], "SPOOL_DIR"),
            (&[command, "nowhere"], &[], "nowhere"),
            (&[command, "home"], &[], "home is not a spool"),
            (&[command], &[("SPOOL_DIR", "home")], "home is not a spool"),
            (&[command, "home/user/docs"], &[], "docs is not a spool"),
        ] {
            let (status, text) = say(&spool_with(dir, args, settings));
            assert_eq!(status, Some(2), "{args:?}: {text}");
            assert!(text.contains(said), "{args:?}: {text}");
        }
    }
    assert!(files(dir) == before, "nothing was made or moved");
    for args in [&[][..], &["rm"], &["ls", "a", "b"], &["ls", "--all"]] {
        let (status, text) = say(&spool_with(dir, args, &[]));
        assert_eq!(status, Some(2), "{args:?}: {text}");
    }
}
