//! The command line: goal, an operator's mistake is named with its remedy before anything runs, and
//! what a server is going to do is said once when it starts.
//!
//! Method: the binary's exit status, standard output and standard error, for each kind of mistake.

use std::net::TcpListener;
use std::path::Path;
use std::process::Output;

use crate::support::needs::{Need, skip};
use crate::support::{PATIENCE, Server, run};

fn all(output: &Output) -> String {
    String::from_utf8([&output.stdout[..], b"\n", &output.stderr].concat()).unwrap()
}

/// Runs the binary on ports of its own, and gives its exit status and everything it said.
fn say(dir: &Path, args: &[&str], settings: &[(&str, &str)]) -> (i32, String) {
    let mut everything =
        vec![("LISTEN", "127.0.0.1:0"), ("ADMIN_LISTEN", "127.0.0.1:0"), ("BIND_WAIT", "0")];
    everything.retain(|(name, _)| settings.iter().all(|(set, _)| set != name));
    everything.extend_from_slice(settings);
    let output = run(dir, args, &everything);
    (output.status.code().expect("it ended by itself"), all(&output))
}

#[test]
fn help_and_version() {
    let dir = tempfile::tempdir().unwrap();
    let (status, help) = say(dir.path(), &["--help"], &[]);
    assert_eq!(status, 0);
    let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
    for setting in millrace::internals::config::SETTINGS {
        let has_flag = help.contains(&format!("--{} ", setting.flag()));
        assert_eq!(has_flag, !setting.is_secret, "{}", setting.name);
        if setting.is_secret {
            continue;
        }
        assert!(help.contains(&format!("[env: {}]", setting.env())), "{}", setting.name);
    }
    for command in ["serve", "check", "dead-letter", "--config"] {
        assert!(help.contains(command), "{command}");
    }
    let version = say(dir.path(), &["--version"], &[]);
    assert_eq!((version.0, version.1.trim()), (0, concat!("millrace ", env!("CARGO_PKG_VERSION"))));
    assert_eq!(dir.path().read_dir().unwrap().count(), 0, "asking changes nothing");
}

#[test]
fn bad_usage_and_bad_values_exit_2_and_say_what_is_allowed() {
    let dir = tempfile::tempdir().unwrap();
    for (args, said) in [
        (&["--max-worker", "3"][..], "error: unexpected argument '--max-worker'"),
        (&["serv"], "error: unrecognized subcommand 'serv'"),
        (&["dead-letter"], "Usage: millrace dead-letter [OPTIONS] <COMMAND>"),
        (&["--max-queue"], "error: a value is required for '--max-queue"),
    ] {
        let (status, text) = say(dir.path(), args, &[]);
        assert_eq!(status, 2, "{args:?}: {text}");
        assert!(text.contains(said), "{args:?}: {text}");
    }
    for (name, given, allowed) in [
        ("MAX_WORKERS", "0", "4096"),
        ("MAX_WORKERS", "many", "4096"),
        ("MAX_QUEUE_BYTES", "64", "MiB"),
        ("DRAIN_TIMEOUT", "25", "25s"),
        ("LISTEN", "localhost", "IP address"),
        ("STORE", "ftp://x", "file:"),
        ("LOG_FORMAT", "xml", "json"),
        ("NODE_ID", "a b", "A-Z"),
        ("FAULTS", "boom=1", "transient"),
        ("CORES", "0-", "0-3"),
        ("CORES", "9999", "9999"),
    ] {
        let (status, text) = say(dir.path(), &[], &[(name, given)]);
        assert_eq!(status, 2, "{name}={given}: {text}");
        let line = text.lines().find(|line| line.contains(name)).unwrap_or_default();
        assert!(line.contains(given), "{name}={given}: {text}");
        assert!(line.contains(allowed), "{name}={given} should speak of {allowed}: {text}");
    }
    let two_mistakes = [("MAX_WORKERS", "0"), ("MAX_QUEUE", "0")];
    let (_, text) = say(dir.path(), &[], &two_mistakes);
    assert!(text.contains("MAX_WORKERS") && text.contains("MAX_QUEUE"), "{text}");
    assert_eq!(dir.path().read_dir().unwrap().count(), 0, "a refused start changes nothing");
}

#[test]
fn a_core_outside_the_allowed_set_is_refused_with_the_set() {
    let dir = tempfile::tempdir().unwrap();
    let taskset = std::process::Command::new("taskset")
        .args(["-c", "0", env!("CARGO_BIN_EXE_millrace"), "check", "--cores", "0-1"])
        .current_dir(dir.path())
        .env_clear()
        .output();
    let Ok(output) = taskset else {
        skip(Need::Tools, "no taskset (util-linux) to restrict the cores with");
        return;
    };
    let text = all(&output);
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(text.contains("CORES") && text.contains("0-1"), "{text}");
}

#[test]
fn flags_go_before_the_environment_and_that_before_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let file = "max_workers = 3\nmax_queue = 30\nmax_length = \"2KiB\"\n";
    std::fs::write(dir.path().join("m.toml"), file).unwrap();
    // The summary says what counts.
    let summary = {
        let settings = [
            ("LISTEN", "127.0.0.1:0"),
            ("ADMIN_LISTEN", "127.0.0.1:0"),
            ("LOG_FORMAT", "json"),
            ("CORES", "0"),
            ("MAX_WORKERS", "4"),
            ("MAX_QUEUE", "40"),
            ("MAX_BODY_BYTES", ""),
        ];
        let args = ["--config", "m.toml", "--max-workers", "5"];
        let mut child = crate::support::command(dir.path(), &args, &settings)
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let lines = std::io::BufRead::lines(std::io::BufReader::new(child.stderr.take().unwrap()));
        let summary = lines
            .map_while(Result::ok)
            .filter_map(|line| serde_json::from_str::<serde_json::Value>(&line).ok())
            .find(|line| line.get("listen").is_some());
        child.kill().unwrap();
        child.wait().unwrap();
        summary.expect("a summary")
    };
    assert_eq!(summary["workers_per_core"], 5, "the flag");
    assert_eq!(summary["queue_per_core"], 40, "the environment");
    assert_eq!(summary["body_bytes_per_core"], 64 << 20, "set but empty is not set");
    // From the file alone: a body limit of 2 KiB shows in the refusal of a smaller queue.
    let (status, text) =
        say(dir.path(), &["check", "--config", "m.toml"], &[("MAX_QUEUE_BYTES", "1KiB")]);
    assert_eq!(status, 2, "{text}");
    assert!(text.contains("max_length in m.toml"), "{text}");
}

#[test]
fn files_with_unknown_keys_or_no_file_at_all_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("m.toml"), "max_worker = 3\n").unwrap();
    let (status, text) = say(dir.path(), &["--config", "m.toml"], &[]);
    assert_eq!(status, 2, "{text}");
    assert!(text.contains("unknown setting max_worker; did you mean max_workers?"), "{text}");
    let (status, text) = say(dir.path(), &["--config", "none.toml"], &[]);
    assert_eq!(status, 2, "{text}");
    assert!(text.contains("none.toml"), "{text}");
}

#[test]
fn check_prints_a_table_and_says_whether_a_server_would_start() {
    let dir = tempfile::tempdir().unwrap();
    let (status, text) = say(dir.path(), &["check"], &[]);
    assert_eq!(status, 0, "{text}");
    for row in ["kernel", "io_uring", "LISTEN", "STORE", "DEAD_LETTER_DIR", "key", "put"] {
        assert!(text.lines().any(|line| line.contains(row)), "{row} is not in\n{text}");
    }
    assert!(!text.contains("FAIL"), "{text}");
    std::fs::write(dir.path().join("file"), "x").unwrap();
    let (status, text) = say(dir.path(), &["check"], &[("STORE", "file:./file")]);
    assert_eq!(status, 2, "{text}");
    assert!(text.contains("FAIL  STORE") && text.contains("a file is in the way"), "{text}");
}

/// Rows: a command, what is wrong and the exit status. What went wrong is plain text on standard error,
/// also where the command has a log.
#[test]
fn commands_say_what_is_wrong_in_plain_lines() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("file"), "x").unwrap();
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (nobody, page) = (format!("http://{gone}"), format!("http://{gone}/payloads"));
    let lacking = ("MAX_WORKERS", "many");
    for (args, setting, status, said) in [
        (&["check"][..], lacking, 2, "MAX_WORKERS"),
        (&["health"], lacking, 1, "MAX_WORKERS"),
        (&["tap"], lacking, 2, "MAX_WORKERS"),
        (&["top"], lacking, 2, "MAX_WORKERS"),
        (&["debug", "bundle", "-o", "-"], lacking, 2, "MAX_WORKERS"),
        (&["dead-letter", "ls"], lacking, 2, "MAX_WORKERS"),
        (&["dead-letter", "replay"], lacking, 2, "MAX_WORKERS"),
        (&["spool", "ls"], lacking, 2, "MAX_WORKERS"),
        (&["spool", "replay"], lacking, 2, "MAX_WORKERS"),
        (&["health", &nobody], ("LOG", "info"), 1, "refused"),
        (&["tap", &nobody], ("LOG", "info"), 2, "refused"),
        (&["tap", "nowhere"], ("LOG", "info"), 2, "the URL"),
        (&["top", &nobody], ("LOG", "info"), 2, "terminal"),
        (&["debug", "bundle", "-o", "file"], ("LOG", "info"), 2, "file: File exists"),
        (&["debug", "bundle", "nowhere"], ("LOG", "info"), 2, "the URL"),
        (&["bench", &page], ("LOG", "info"), 2, "refused"),
        (&["man", "file"], ("LOG", "info"), 2, "file"),
        (&["dead-letter", "ls"], ("DEAD_LETTER_DIR", "file"), 2, "file"),
        (&["dead-letter", "replay"], ("STORE", "file:./file"), 2, "STORE"),
        (&["dead-letter", "show", "k"], ("LOG", "info"), 1, "no dead letter has this key"),
        (&["spool", "ls", "none"], ("LOG", "info"), 2, "none"),
        (&["spool", "verify", "file"], ("LOG", "info"), 2, "file"),
        (&["spool", "export", "file"], ("LOG", "info"), 2, "file"),
        (&["spool", "replay", "file"], ("LOG", "info"), 2, "file"),
        (&["spool", "bench", "file"], ("LOG", "info"), 2, "file"),
    ] {
        let output = run(dir.path(), args, &[setting, ("LOG_FORMAT", "json")]);
        let text = String::from_utf8(output.stderr.clone()).unwrap();
        assert_eq!(output.status.code(), Some(status), "{args:?} {setting:?}: {text}");
        let everything = all(&output);
        assert!(everything.contains(said), "{args:?} {setting:?}: {everything}");
        assert!(!text.contains("timestamp") && !text.contains('{'), "{args:?} {setting:?}: {text}");
    }
}

#[test]
fn a_taken_port_and_directories_in_the_way_are_refused_before_anything_starts() {
    let dir = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    std::fs::write(dir.path().join("file"), "x").unwrap();
    for (name, given, expected) in [
        ("LISTEN", address.as_str(), "taken"),
        ("ADMIN_LISTEN", address.as_str(), "taken"),
        ("STORE", "file:./file/below", "a file is in the way"),
        ("DEAD_LETTER_DIR", "./file", "a file is in the way"),
        ("TOKENS_FILE", "./none", "cannot be read"),
    ] {
        let (status, text) = say(dir.path(), &[], &[(name, given)]);
        assert_eq!(status, 2, "{name}={given}: {text}");
        assert!(text.contains(name) && text.contains(expected), "{name}={given}: {text}");
        assert!(!text.contains("serving"), "{text}");
    }
}

#[test]
fn a_second_server_on_the_port_is_refused() {
    let server = Server::start(&[]);
    let address = server.ingest.to_string();
    let dir = tempfile::tempdir().unwrap();
    let (status, text) = say(dir.path(), &[], &[("LISTEN", &address)]);
    assert_eq!(status, 2, "{text}");
    assert!(text.contains(&address), "{text}");
    assert_eq!(server.post_payloads(&["1"]).status, 200);
}

#[test]
fn the_start_is_summed_up_once() {
    let server = Server::start(&[("MAX_WORKERS", "7"), ("NODE_ID", "n-1")]);
    let summaries: Vec<_> =
        server.log().into_iter().filter(|line| line.get("listen").is_some()).collect();
    assert_eq!(summaries.len(), 1, "within {PATIENCE:?}");
    let summary = &summaries[0];
    assert_eq!(summary["level"], "INFO");
    assert_eq!(summary["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(summary["cores"], "0");
    assert_eq!(summary["store"], "file:./data");
    assert_eq!(summary["node"], "n-1");
    for (field, value) in [
        ("workers_per_core", 7),
        ("queue_per_core", 10_000),
        ("queue_bytes_per_core", 64 << 20),
        ("body_bytes_per_core", 64 << 20),
        ("connections_per_core", 16_384),
    ] {
        assert_eq!(summary[field], value, "{field}");
    }
    let message = summary["message"].as_str().unwrap();
    assert!(message.contains("a 200 means"), "{message}");
    assert_eq!(server.post_payloads(&["1"]).status, 200);
    server.wait_idle();
    let key = server.stored().into_keys().next().unwrap();
    assert!(key.contains("-n-1-0-0.json"), "{key}");
}

/// What packages run, in an environment that no server would start in.
#[test]
fn man_pages_and_completions_are_made_without_settings() {
    let dir = tempfile::tempdir().unwrap();
    let bad = [("MAX_WORKERS", "0")];
    let (status, text) = say(dir.path(), &["man", "share/man1"], &bad);
    assert_eq!(status, 0, "{text}");
    let pages = dir.path().join("share/man1").read_dir().unwrap().count();
    assert!(pages > 10 && text.starts_with(&format!("{pages} pages")), "{pages}: {text}");
    let page = std::fs::read_to_string(dir.path().join("share/man1/millrace-check.1")).unwrap();
    assert!(page.contains("deny\\-warnings"), "{page}");
    let (status, text) = say(dir.path(), &["man", "share/man1/millrace.1/below"], &bad);
    assert_eq!(status, 2, "{text}");
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let (status, script) = say(dir.path(), &["completion", shell], &bad);
        assert_eq!(status, 0, "{script}");
        assert!(script.contains("dead-letter") && script.contains("max-workers"), "{shell}");
    }
    let (_, script) = say(dir.path(), &["completion", "bash"], &[]);
    std::fs::write(dir.path().join("millrace.bash"), script).unwrap();
    let complete = "source ./millrace.bash; COMP_WORDS=(millrace spool ver); COMP_CWORD=2; \
                    _millrace millrace ver spool; echo \"${COMPREPLY[*]}\"";
    let bash =
        std::process::Command::new("bash").args(["-c", complete]).current_dir(dir.path()).output();
    let Ok(output) = bash else {
        skip(Need::Tools, "no bash to complete with");
        return;
    };
    assert_eq!(all(&output).trim(), "verify");
}
