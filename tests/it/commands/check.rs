//! `check`: goal, it says what a start would find, and changes nothing on the host, nor in the
//! store without `--put`. Method: the directory it ran in, the requests a bucket saw, and its
//! table.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use serde_json::Value;

use crate::support::needs::{Need, skip};
use crate::support::s3::{ACCESS_KEY, BUCKET, Fault, S3Server, SECRET_KEY};
use crate::support::{Server, command, run};

const OWN: [(&str, &str); 4] = [
    ("LISTEN", "127.0.0.1:0"),
    ("ADMIN_LISTEN", "127.0.0.1:0"),
    ("CORES", "0"),
    ("HOME", "/nonexistent"),
];

/// Exit status and everything that was said.
fn say(dir: &Path, args: &[&str], settings: &[(&str, &str)]) -> (Option<i32>, String) {
    let output = run(dir, args, &[&OWN, settings].concat());
    let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    (output.status.code(), text)
}

/// Everything below `dir`, with what a change would show in.
fn tree(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let about = fs::metadata(&path).unwrap();
        let (mode, changed) = (about.permissions().mode(), about.modified().unwrap());
        found.push(format!("{} {mode:o} {} {changed:?}", path.display(), about.len()));
        if about.is_dir() {
            found.extend(tree(&path));
        }
    }
    found.sort();
    found
}

#[test]
fn nothing_on_the_host_is_changed_by_looking() {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let settings = [
        ("STORE", "file:a/data"),
        ("DEAD_LETTER_DIR", "b/dead"),
        ("SPOOL_DIR", "spool"),
        ("SPOOL_MAX", "16MiB"),
        ("SPOOL_SEGMENT", "4MiB"),
    ];
    let commands: [&[&str]; 5] = [
        &["check"],
        &["check", "--put"],
        &["dead-letter", "ls"],
        &["dead-letter", "replay"],
        &["spool", "ls"],
    ];
    for args in commands {
        let (status, text) = say(dir.path(), args, &settings);
        match args {
            ["spool", ..] => assert_eq!(status, Some(2), "{text}"),
            // A replay writes to the store, so it makes what that needs.
            ["dead-letter", "replay"] => {
                assert_eq!(status, Some(0), "{text}");
                fs::remove_dir_all(dir.path().join("a")).unwrap();
            }
            _ => assert_eq!(status, Some(0), "{args:?}: {text}"),
        }
        assert_eq!(tree(dir.path()), [""; 0], "{args:?}");
        if args[0] == "check" {
            for name in ["STORE", "DEAD_LETTER_DIR", "SPOOL_DIR"] {
                let row = text.lines().find(|line| line.contains(&format!("  {name} ")));
                let row = row.unwrap_or_else(|| panic!("{name} in {text}"));
                assert!(row.contains("does not exist; the server creates it"), "{row}");
            }
        }
    }
    // A start makes all of it, and then too nothing is changed.
    let server = Server::start_in(dir.clone(), &settings);
    assert_eq!(server.stop().status, 0);
    let before = tree(dir.path());
    assert!(before.len() > 4, "{before:?}");
    for args in [&["check"][..], &["dead-letter", "ls"], &["spool", "ls"], &["spool", "verify"]] {
        let (status, text) = say(dir.path(), args, &settings);
        assert_eq!(status, Some(0), "{args:?}: {text}");
        assert_eq!(tree(dir.path()), before, "{args:?}");
    }
}

fn bucket_settings(server: &S3Server) -> [(&'static str, String); 5] {
    [
        ("AWS_ENDPOINT_URL_S3", server.url()),
        ("AWS_REGION", "us-east-1".into()),
        ("AWS_ACCESS_KEY_ID", ACCESS_KEY.into()),
        ("AWS_SECRET_ACCESS_KEY", SECRET_KEY.into()),
        ("STORE", format!("s3://{BUCKET}/p/")),
    ]
}

fn check_bucket(server: &S3Server, args: &[&str], more: &[(&str, &str)]) -> (Option<i32>, String) {
    let dir = tempfile::tempdir().unwrap();
    let settings = bucket_settings(server);
    let settings: Vec<_> = settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let said = say(dir.path(), args, &[&settings, more].concat());
    assert_eq!(tree(dir.path()), [""; 0]);
    said
}

/// The methods that the bucket saw.
fn methods(server: &S3Server) -> Vec<String> {
    server.requests().iter().map(|seen| seen.method.to_string()).collect()
}

#[test]
fn without_put_a_bucket_is_only_asked() {
    let server = S3Server::start();
    let (status, text) = check_bucket(&server, &["check"], &[]);
    assert_eq!(status, Some(0), "{text}");
    assert!(text.contains("not tried: `millrace check --put` writes one probe object"), "{text}");
    assert_eq!(methods(&server), ["GET"]);
}

#[test]
fn put_writes_one_object_and_deletes_it() {
    for more in [
        &[][..],
        &[("S3_CLIENT", "sdk")],
        &[("S3_IF_NONE_MATCH", "true"), ("NODE_ID", "fixed")],
        &[("OBJECT", "batch"), ("COMPRESSION", "zstd")],
    ] {
        let server = S3Server::start();
        let (status, text) = check_bucket(&server, &["check", "--put"], more);
        assert_eq!(status, Some(0), "{more:?}: {text}");
        assert!(text.contains(&format!("s3://{BUCKET}/p/millrace-check-put-")), "{text}");
        assert!(text.contains("was written, and deleted again"), "{text}");
        assert_eq!(methods(&server), ["GET", "PUT", "DELETE"], "{more:?}");
        assert!(server.objects().is_empty(), "{:?}", server.objects());
    }
}

#[test]
fn a_key_that_may_only_read_is_refused_with_the_permission() {
    for client in ["direct", "sdk"] {
        let server = S3Server::start();
        server.fail_when(|seen| {
            let denied = || Fault::error_with(403, "AccessDenied", "read only", &[]);
            (seen.method == "PUT").then(denied)
        });
        let client = [("S3_CLIENT", client)];
        assert_eq!(check_bucket(&server, &["check"], &client).0, Some(0), "it is not tried");
        let (status, text) = check_bucket(&server, &["check", "--put"], &client);
        assert_eq!(status, Some(2), "{text}");
        assert!(text.contains("could not be written: AccessDenied: read only"), "{text}");
        assert!(
            text.contains(&format!("allow s3:PutObject on arn:aws:s3:::{BUCKET}/p/*")),
            "{text}"
        );
    }
}

#[test]
fn a_role_that_may_only_put_passes_and_leaves_the_object() {
    let server = S3Server::start();
    server.fail_when(|seen| {
        let denied = || Fault::error_with(403, "AccessDenied", "put only", &[]);
        (seen.method != "PUT").then(denied)
    });
    let (status, text) = check_bucket(&server, &["check", "--put"], &[]);
    assert_eq!(status, Some(0), "{text}");
    assert!(text.contains("deleting it was refused: AccessDenied: put only"), "{text}");
    let key = server.objects().into_keys().next().expect("it is still there");
    assert!(text.contains(&format!("aws s3 rm s3://{BUCKET}/{key}")), "{text}");
}

#[test]
fn put_into_a_directory_and_into_nothing() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("data")).unwrap();
    let (status, text) = say(dir.path(), &["check", "--put"], &[]);
    assert_eq!(status, Some(0), "{text}");
    assert!(text.contains("a file was written to ./data, and removed again"), "{text}");
    assert_eq!(fs::read_dir(dir.path().join("data")).unwrap().count(), 0);
    let (status, text) = say(dir.path(), &["check", "--put"], &[("STORE", "null:")]);
    assert_eq!(status, Some(0), "{text}");
    assert!(text.contains("null: keeps nothing, so nothing was written"), "{text}");
}

#[test]
fn what_others_may_write_to_is_a_warning() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    for name in ["store", "dead", "spool"] {
        fs::create_dir(path(name)).unwrap();
    }
    fs::write(path("tokens"), "t\n").unwrap();
    fs::write(path("m.toml"), "tokens_file = \"tokens\"\n").unwrap();
    let settings = [
        ("STORE", "file:store"),
        ("DEAD_LETTER_DIR", "dead"),
        ("SPOOL_DIR", "spool"),
        ("MILLRACE_CONFIG", "m.toml"),
    ];
    let open = |mode: u32, names: &[&str]| {
        for name in names {
            fs::set_permissions(path(name), fs::Permissions::from_mode(mode)).unwrap();
        }
        let (status, text) = say(dir.path(), &["check"], &settings);
        assert_eq!(status, Some(0), "{text}");
        text
    };
    let all = ["store", "dead", "spool", "tokens", "m.toml"];
    open(0o700, &all[..3]);
    let text = open(0o600, &all[3..]);
    assert!(!text.contains("may be"), "{text}");
    let text = open(0o644, &all[3..]);
    assert!(text.contains("tokens (mode 0644) may be read by every user"), "{text}");
    assert!(!text.contains("m.toml (mode"), "there is no secret in it: {text}");
    let text = open(0o777, &all);
    for (name, file) in [
        ("STORE", "store"),
        ("DEAD_LETTER_DIR", "dead"),
        ("SPOOL_DIR", "spool"),
        ("TOKENS_FILE", "tokens"),
        ("config file", "m.toml"),
    ] {
        let said = format!("{file} (mode 0777) may be written to by every user of this host");
        let warning =
            |line: &str| line.starts_with("warn") && line.contains(name) && line.contains(&said);
        assert!(text.lines().any(warning), "{name} in {text}");
        assert!(text.contains(&format!("mend: chmod go-w {file}")), "{text}");
    }
}

#[test]
fn one_name_is_shown_as_it_will_be() {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let key = ("KEY", "{field:/tenant|none}/{unix_ms}-{node}-{core}-{seq}.json");
    let node = ("NODE_ID", "n7");
    let (_, text) = say(dir.path(), &["check"], &[key, node]);
    assert!(text.contains("objects are named like file:./data/none/1"), "{text}");
    let server = Server::start_in(dir, &[key, node]);
    let summary = server.log().into_iter().find(|line| line.get("example_key").is_some());
    let shown = summary.expect("a summary")["example_key"].as_str().unwrap().to_owned();
    assert!(shown.starts_with("file:./data/none/1") && shown.ends_with("-n7-0-0.json"), "{shown}");
    let bucket = S3Server::start();
    for (store, level) in [("s3://payloads/p/q", "warn"), ("s3://payloads/p/q/", "ok  ")] {
        let (status, text) = check_bucket(&bucket, &["check"], &[("STORE", store)]);
        assert_eq!(status, Some(0), "{text}");
        let row = text.lines().find(|line| line.contains("objects are named like")).unwrap();
        assert!(row.starts_with(level) && row.contains(&format!("{store}1")), "{row}");
        assert_eq!(row.contains("does not end in /"), level == "warn", "{row}");
    }
}

#[test]
fn names_of_other_programs_are_not_shown_and_prefixed_ones_win() {
    let dir = tempfile::tempdir().unwrap();
    let check = |args: &[&str], variables: &[(&str, &str)]| {
        let mut command = command(dir.path(), args, &OWN);
        let output = command.envs(variables.iter().copied()).output().unwrap();
        let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        (output.status.code(), text)
    };
    for args in [&["check"][..], &[]] {
        let (status, text) = check(args, &[("KEY", "secret123"), ("STORE", "secret123")]);
        assert_eq!(status, Some(2), "{text}");
        assert!(!text.contains("secret123"), "{text}");
        for name in ["KEY", "STORE"] {
            let said = format!("{name} (environment variable {name}, text not shown): ");
            assert!(text.contains(&said), "{text}");
            assert!(text.contains(&format!("set MILLRACE_{name}, even to nothing")), "{text}");
        }
    }
    let mended = [("KEY", "secret123"), ("MILLRACE_KEY", ""), ("NODE_ID", "secret123")];
    let (status, text) = check(&["check"], &mended);
    assert_eq!(status, Some(0), "{text}");
    let listed = text.lines().find(|line| line.contains("NODE_ID")).unwrap();
    assert!(listed.contains("text not shown") && !listed.contains("secret123"), "{listed}");
    // A secret of another program would be asked for.
    let token = ("ADMIN_TOKEN", "secret123-secret123");
    for (variables, warns) in [
        (&[token][..], true),
        (&[token, ("MILLRACE_ADMIN_TOKEN", "")], false),
        (&[("MILLRACE_ADMIN_TOKEN", "secret123-secret123")], false),
    ] {
        let (status, text) = check(&["check"], variables);
        assert_eq!(status, Some(0), "{text}");
        let said = "environment variable ADMIN_TOKEN may belong to another program";
        let warned = text.lines().any(|line| line.starts_with("warn") && line.contains(said));
        assert!(warned == warns && !text.contains("secret123"), "{variables:?}: {text}");
    }
    // What Kubernetes adds for a service of this name, and a slip.
    let unknown = [("MILLRACE_PORT", "tcp://10.0.0.1:80"), ("MILLRACE_STOR", "null:")];
    let (status, text) = check(&["check"], &unknown);
    assert_eq!(status, Some(0), "{text}");
    let said = "unknown settings: MILLRACE_PORT, MILLRACE_STOR (did you mean MILLRACE_STORE?)";
    assert_eq!(text.matches(said).count(), 1, "{text}");
    assert!(text.lines().any(|line| line.starts_with("warn") && line.contains(said)), "{text}");
}

/// Standard output, which must be one JSON document, and the exit status.
fn json(dir: &Path, args: &[&str], settings: &[(&str, &str)]) -> (Option<i32>, Value) {
    let output = run(dir, args, &[&OWN, settings].concat());
    let text = String::from_utf8(output.stdout).unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(said, "", "{args:?}");
    (output.status.code(), serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}")))
}

/// The findings called `name`.
fn named<'a>(report: &'a Value, name: &str) -> Vec<&'a Value> {
    report["findings"].as_array().unwrap().iter().filter(|row| row["name"] == name).collect()
}

#[test]
fn json_has_the_schema_that_the_documents_show() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("file"), "x").unwrap();
    std::fs::write(dir.path().join("m.toml"), "max_worker = 3\n").unwrap();
    // A host may have warnings of its own.
    let (_, bare) = json(dir.path(), &["check", "--json"], &[]);
    let host_warns = bare["warnings"] != 0;
    for (args, settings, status, verdict, finding) in [
        (&["check", "--json"][..], &[][..], 0, "ok", "kernel"),
        (&["check", "--json"], &[("STORE", "null:")], 0, "warn", "STORE"),
        (&["check", "--json", "--deny-warnings"], &[("STORE", "null:")], 1, "warn", "STORE"),
        (&["check", "--json", "--deny-warnings"], &[], 0, "ok", "STORE"),
        (&["check", "--json"], &[("STORE", "file:file")], 2, "fail", "STORE"),
        (&["check", "--json", "--deny-warnings"], &[("STORE", "file:file")], 2, "fail", "STORE"),
        // Before there are any findings.
        (&["check", "--json"], &[("MAX_WORKERS", "0")], 2, "fail", "MAX_WORKERS"),
        (&["check", "--json"], &[("MILLRACE_CONFIG", "m.toml")], 2, "fail", "config file"),
    ] {
        let (exit, report) = json(dir.path(), args, settings);
        let what = format!("{args:?} {settings:?}: {report:#}");
        let (status, verdict) = match (status, verdict) {
            (0, "ok") if host_warns => (i32::from(args.contains(&"--deny-warnings")), "warn"),
            as_given => as_given,
        };
        assert_eq!((exit, &report["verdict"]), (Some(status), &verdict.into()), "{what}");
        assert_eq!(
            (&report["schema"], &report["version"]),
            (&1.into(), &env!("CARGO_PKG_VERSION").into())
        );
        let rows = report["findings"].as_array().unwrap();
        for (level, count) in [("warn", "warnings"), ("fail", "failures")] {
            let found = rows.iter().filter(|row| row["level"] == level).count();
            assert_eq!(report[count], found, "{what}");
        }
        for row in rows {
            let is_known = ["ok", "warn", "fail"].iter().any(|level| row["level"] == *level);
            assert!(is_known && row["name"].is_string() && row["detail"].is_string(), "{what}");
            assert!(row["remedy"].is_string() || row["remedy"].is_null(), "{what}");
            assert!(row["level"] != "warn" || row["remedy"].is_string(), "{what}");
        }
        let row = named(&report, finding);
        assert!(!row.is_empty(), "{what}");
    }
    // The example of the documents has the same members.
    let document = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/operations.md"));
    let document = document.unwrap();
    let example = document.split("```json\n").find(|block| block.contains("\"verdict\"")).unwrap();
    let example: Value = serde_json::from_str(example.split("```").next().unwrap()).unwrap();
    let (_, report) = json(dir.path(), &["check", "--json"], &[]);
    let members = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(members(&example), members(&report));
    assert_eq!(members(&example["findings"][0]), members(&report["findings"][0]));
}

#[test]
fn warnings_are_denied_by_status_alone() {
    let dir = tempfile::tempdir().unwrap();
    let null = [("STORE", "null:")];
    let (status, table) = say(dir.path(), &["check"], &null);
    assert_eq!(status, Some(0), "{table}");
    let (status, denied) = say(dir.path(), &["check", "--deny-warnings"], &null);
    assert_eq!(status, Some(1), "{denied}");
    assert!(denied.contains("warn  STORE"), "{denied}");
}

/// The command's user and limits are not the server's.
#[test]
fn beside_a_running_server_what_this_user_may_not_do_is_no_failure() {
    use std::os::unix::process::CommandExt as _;
    const NOBODY: u32 = 65_534;
    let binary = Path::new(env!("CARGO_BIN_EXE_millrace"));
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let others = Command::new(binary).arg("--version").uid(NOBODY).gid(NOBODY).output();
    if !rustix::process::getuid().is_root() || !others.is_ok_and(|said| said.status.success()) {
        skip(Need::Root, "not root, or the binary lies where others cannot read");
        return;
    }
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let bound = (600..1024).find_map(|port| TcpListener::bind(("127.0.0.1", port)).ok());
    let listen = bound.unwrap().local_addr().unwrap().to_string();
    let settings = [("LISTEN", listen.as_str()), ("SPOOL_DIR", "spool"), ("NODE_ID", "n1")];
    let server = Server::start_in(dir, &settings);
    let admin = server.admin.to_string();
    let changed = [&settings[..], &[("ADMIN_LISTEN", admin.as_str())]].concat();
    let check = |prefix: &[&str], user: u32| {
        let mut command = server.command_beside(&["check", "--running", "--json"], &changed);
        if !prefix.is_empty() {
            crate::support::wrap(&mut command, prefix);
        }
        let output = command.uid(user).gid(user).output().unwrap();
        let report: Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{error}: {output:?}"));
        (output.status.code(), report)
    };
    let (status, report) = check(&[], NOBODY);
    assert_eq!(status, Some(0), "{report:#}");
    for (name, said) in [
        ("LISTEN", "is in use by a process of user 0"),
        ("limits", "the running server's limits"),
        ("SPOOL_DIR", "for this user; the server runs as user 0"),
    ] {
        let row = named(&report, name)[0];
        assert_eq!(row["level"], "warn", "{report:#}");
        assert!(row["detail"].as_str().unwrap().contains(said), "{row}");
    }
    assert!(named(&report, "open files").is_empty(), "{report:#}");
    // A shell with a few descriptors says nothing of the server, which has many.
    let (status, report) = check(&["sh", "-c", "ulimit -n 64; exec \"$@\"", "sh"], 0);
    assert_eq!(status, Some(0), "{report:#}");
    let row = named(&report, "open files")[0];
    assert!(row["level"] != "fail" && !row["detail"].as_str().unwrap().starts_with("64"), "{row}");
    assert!(named(&report, "io_uring")[0]["detail"].as_str().unwrap().contains("in use"));
    assert_eq!(server.stop().status, 0);
}

#[test]
fn beside_a_running_server_its_ports_and_its_spool_are_its_own() {
    let settings = [("SPOOL_DIR", "spool"), ("SPOOL_MAX", "16MiB"), ("SPOOL_SEGMENT", "4MiB")];
    let server = Server::start(&[&settings[..], &[("NODE_ID", "n1")]].concat());
    let (listen, admin) = (server.ingest.to_string(), server.admin.to_string());
    let addresses = [("LISTEN", listen.as_str()), ("ADMIN_LISTEN", admin.as_str())];
    let check = |args: &[&str], changed: &[(&str, &str)]| {
        let changed = [&addresses[..], changed].concat();
        let mut all = vec!["check", "--json"];
        all.extend_from_slice(args);
        let output = server.command_beside(&all, &changed).output().unwrap();
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        (output.status.code(), report)
    };
    let (status, report) = check(&[], &[]);
    assert_eq!(status, Some(2), "{report:#}");
    for name in ["LISTEN", "ADMIN_LISTEN", "spool lock"] {
        assert_eq!(named(&report, name)[0]["level"], "fail", "{report:#}");
    }
    let (status, report) = check(&["--running"], &[]);
    assert_eq!(status, Some(0), "{report:#}");
    let pid = format!("process {}", server.pid());
    for (name, said) in
        [("LISTEN", pid.as_str()), ("ADMIN_LISTEN", &pid), ("spool lock", "held by the running")]
    {
        let row = named(&report, name)[0];
        assert!(row["level"] == "ok" && row["detail"].as_str().unwrap().contains(said), "{row}");
    }
    // Somebody else's port is still a conflict, and one that nobody has means that nothing runs.
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = other.local_addr().unwrap().to_string();
    let (status, report) = check(&["--running"], &[("LISTEN", &taken)]);
    let row = named(&report, "LISTEN")[0];
    assert_eq!((status, &row["level"]), (Some(2), &"fail".into()), "{report:#}");
    assert!(row["detail"].as_str().unwrap().contains(&format!("process {}", std::process::id())));
    drop(other);
    let (status, report) = check(&["--running"], &[("LISTEN", &taken)]);
    let row = named(&report, "LISTEN")[0];
    assert_eq!((status, &row["level"]), (Some(0), &"warn".into()), "{report:#}");
    assert!(row["detail"].as_str().unwrap().contains("no server is running with these"), "{row}");
    assert_eq!(server.post_payloads(&["1"]).status, 200);
}
