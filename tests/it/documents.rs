//! The documents: goal, what they say can be done, names what is there, and is complete.
//!
//! Method: every shell block of README, CONTRIBUTING and `docs/` is run by bash against the real
//! binary, and lines of it that begin with `# ` must be in its output. How is said by an HTML
//! comment right above the block (invisible to readers):
//!
//! ```text
//! <!-- test: plain -->                     the block as it is
//! <!-- test: server NAME=VALUE … -->       against a server with these settings
//! <!-- test: serves -->                    `millrace` without arguments serves until it is ready, and is stopped
//! <!-- test: crashed NAME=VALUE … -->      where a killed server with these settings has left spooled payloads
//! s3                                       with any of them: my-bucket is there, and the AWS names are set
//! file:NAME:TEXT                           a file is there
//! with NAME                                the document's last TOML block is there under this name
//! status N …                               with these exit statuses instead of 0
//! ```
//!
//! A block that cannot be run says so to its readers: its first line is `# not tested here:
//! REASON`. TOML blocks and `docs/samples` must pass `millrace check`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use crate::support::needs::{Need, skip};
use crate::support::s3::{ACCESS_KEY, BUCKET, S3Server, SECRET_KEY};
use crate::support::{Server, command};

mod openapi;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

fn root(path: &str) -> PathBuf {
    Path::new(ROOT).join(path)
}

fn text(path: &str) -> String {
    fs::read_to_string(root(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// README, CONTRIBUTING, SECURITY, and everything in `docs/`.
fn documents() -> Vec<String> {
    let mut found = ["README.md", "CONTRIBUTING.md", "SECURITY.md"].map(str::to_owned).to_vec();
    for entry in fs::read_dir(root("docs")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if name.ends_with(".md") {
            found.push(format!("docs/{name}"));
        }
    }
    found.sort();
    found
}

/// A block between fences.
#[derive(Debug)]
struct Block {
    document: String,
    line: usize,
    language: String,
    marker: Option<String>,
    text: String,
}

fn blocks(document: &str) -> Vec<Block> {
    let mut found: Vec<Block> = Vec::new();
    let (mut inside, mut marker) = (false, None);
    for (number, line) in text(document).lines().enumerate() {
        if let Some(language) = line.strip_prefix("```") {
            if inside {
                inside = false;
            } else {
                inside = true;
                found.push(Block {
                    document: document.to_owned(),
                    line: number + 1,
                    language: language.to_owned(),
                    marker: marker.take(),
                    text: String::new(),
                });
            }
        } else if inside {
            writeln!(found.last_mut().unwrap().text, "{line}").unwrap();
        } else {
            let said = line.strip_prefix("<!-- test: ").and_then(|rest| rest.strip_suffix(" -->"));
            marker = said.map(str::to_owned);
        }
    }
    assert!(!inside, "{document} ends inside a block");
    found
}

/// Lines outside of blocks.
fn prose(document: &str) -> Vec<String> {
    let mut inside = false;
    let text = text(document);
    let lines = text.lines().filter(|line| {
        let fence = line.starts_with("```");
        inside ^= fence;
        !fence && !inside
    });
    lines.map(str::to_owned).collect()
}

/// What stands between backticks in `line`.
fn spans(line: &str) -> Vec<&str> {
    line.split('`').skip(1).step_by(2).collect()
}

#[test]
fn the_readme_is_a_page_and_names_what_a_build_needs() {
    let readme = text("README.md");
    let (lines, words) = (readme.lines().count(), readme.split_whitespace().count());
    assert!(lines <= 150 && words <= 1200, "{lines} lines, {words} words");
    // tests/fresh/run.sh installs these packages and nothing else.
    assert!(readme.contains("`apt-get install gcc libc6-dev git`"));
    let ci = text(".ci/run");
    let tests = |line: &&str| line.contains("cargo test");
    assert!(readme.lines().any(|line| line.starts_with("cargo test")));
    let all = "cargo test --locked --features top";
    assert!(ci.lines().filter(tests).any(|line| line.ends_with(all)), "{ci}");
}

#[test]
fn every_relative_link_leads_somewhere() {
    let mut broken = Vec::new();
    let more = ["CHANGELOG.md", "benches/README.md", "tuning/README.md"].map(str::to_owned);
    for document in documents().into_iter().chain(more) {
        let directory = Path::new(&document).parent().unwrap().to_owned();
        for line in prose(&document) {
            for rest in line.split("](").skip(1) {
                let link = rest.split(')').next().unwrap();
                if link.contains("://") {
                    continue;
                }
                let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
                let target = match path {
                    "" => PathBuf::from(&document),
                    path => directory.join(path),
                };
                let whole = root(target.to_str().unwrap());
                if !whole.exists() {
                    broken.push(format!("{document}: {link}"));
                } else if !anchor.is_empty() && !anchors(&whole).contains(anchor) {
                    broken.push(format!("{document}: no heading {link}"));
                }
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

/// The names that headings have as GitHub makes them.
fn anchors(path: &Path) -> BTreeSet<String> {
    let name = |heading: &str| -> String {
        let kept = heading.trim().to_lowercase();
        let kept = kept.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
        kept.map(|c| if c == ' ' { '-' } else { c }).collect()
    };
    let text = fs::read_to_string(path).unwrap();
    text.lines()
        .filter(|line| line.starts_with('#'))
        .map(|line| name(line.trim_start_matches('#')))
        .collect()
}

#[test]
fn every_table_is_whole() {
    for document in documents() {
        let mut columns = None;
        for line in prose(&document) {
            if !line.starts_with('|') {
                columns = None;
                continue;
            }
            assert!(line.ends_with('|'), "{document}: {line}");
            let cells = line.replace("\\|", "").matches('|').count();
            assert_eq!(*columns.get_or_insert(cells), cells, "{document}: {line}");
        }
    }
}

#[test]
fn every_document_is_linked_from_the_readme() {
    let readme = text("README.md");
    for document in documents() {
        assert!(document == "README.md" || readme.contains(&format!("({document}")), "{document}");
    }
}

#[test]
fn paths_of_the_source_that_documents_name_are_there() {
    for document in documents() {
        for line in prose(&document) {
            for span in spans(&line) {
                let source =
                    ["src/", "tests/", "benches/", "tuning/", "monitoring/", "fuzz/", "examples/"];
                let is_path = source.iter().any(|start| span.starts_with(start));
                // A test is named as `FILE::NAME`.
                let span = span.split("::").next().unwrap();
                if is_path && !span.contains(['*', '<', '{', '…', ' ']) {
                    assert!(root(span).exists(), "{document}: {span} is not there");
                }
            }
        }
    }
}

/// Every row of the threat model names tests, and each of them is there, by its name.
#[test]
fn the_tests_that_the_threat_model_names_are_there() {
    let document = text("SECURITY.md");
    let (_, model) = document.split_once("\n## Threat model\n").unwrap();
    let (model, _) = model.split_once("\n## ").unwrap();
    let (mut rows, mut named) = (0, 0);
    for line in model.lines() {
        let tests: Vec<_> = spans(line).iter().filter_map(|span| span.split_once("::")).collect();
        for (file, name) in &tests {
            let code = text(file);
            let at =
                code.find(&format!("fn {name}(")).unwrap_or_else(|| panic!("{file}: no {name}"));
            // A test by its attribute, or one of a list that is run with both clients of the store.
            let before = code[..at].trim_end();
            let is_listed =
                code.contains("on_both_clients!(") && code.contains(&format!("{name},"));
            assert!(before.ends_with("#[test]") || is_listed, "{file}: {name} is no test");
            named += 1;
        }
        let is_row = line.starts_with("| ") && !line.starts_with("| it can |");
        let is_excused = line.ends_with("| – |") && line.contains("not defended against");
        assert!(!is_row || !tests.is_empty() || is_excused, "without a test: {line}");
        rows += usize::from(is_row);
    }
    assert!(rows > 25 && named > 30, "{rows} rows, {named} tests");
}

#[test]
fn settings_that_documents_name_are_settings() {
    // Names of others: the system's, AWS's, the compiler's, and what only tests and the
    // example clients read.
    const STARTS: [&str; 6] =
        ["AWS_", "RLIMIT_", "SSL_CERT_", "CONFIG_", "C_INCLUDE_", "STANDARD_"];
    const ENDS: [&str; 1] = ["_PROXY"];
    const OTHERS: [&str; 10] = [
        "SO_REUSEPORT",
        "COMMIT",
        "NOTIFY_SOCKET",
        "CONFIG",
        "TEST_STRICT",
        "TOKEN",
        "WRITE_SETTINGS",
        "PID",
        "SOAK",
        "NO_COLOR",
    ];
    let is_setting =
        |name: &str| millrace::internals::config::SETTINGS.iter().any(|s| s.name == name);
    let is_others = |name: &str| {
        STARTS.iter().any(|start| name.starts_with(start))
            || ENDS.iter().any(|end| name.ends_with(end))
            || OTHERS.contains(&name)
    };
    let not_of_a_name = |c: char| !(c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_');
    let mut seen = 0;
    for document in documents() {
        let prefixed = text(&document);
        let prefixed = prefixed.split("MILLRACE_").skip(1);
        let prefixed = prefixed.map(|rest| rest.split(not_of_a_name).next().unwrap().to_owned());
        let prose = prose(&document);
        let named = prose.iter().flat_map(|line| spans(line)).filter_map(|span| {
            let name = span.strip_prefix("MILLRACE_").unwrap_or(span).split(['=', ' ']).next()?;
            (name.len() > 2 && name.contains('_') && !name.contains(not_of_a_name))
                .then(|| name.to_owned())
        });
        for name in prefixed.chain(named).filter(|name| !name.is_empty()) {
            assert!(is_setting(&name) || is_others(&name), "{document}: {name} is no setting");
            seen += 1;
        }
    }
    assert!(seen > 200, "{seen}");
}

#[test]
fn the_metric_reference_is_what_a_scrape_shows() {
    let server = Server::start(&[]);
    let scrape = server.metrics().0;
    let mut shown = BTreeMap::new();
    for line in scrape.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let (name, kind) = line.split_once(' ').unwrap();
        shown.insert(name.to_owned(), kind.to_owned());
    }
    let document = text("docs/operations.md");
    let mut documented = BTreeMap::new();
    for line in document.lines() {
        let Some((name, rest)) = line.strip_prefix("| `").and_then(|l| l.split_once("` | ")) else {
            continue;
        };
        let kind = rest.split([' ', ',']).next().unwrap();
        if ["counter", "gauge", "histogram"].contains(&kind) {
            let twice = documented.insert(name.to_owned(), kind.to_owned());
            assert_eq!(twice, None, "{name}");
            let whole_process = rest.starts_with(&format!("{kind}, process |"));
            let sample = scrape.lines().find(|line| line.starts_with(name)).unwrap_or_default();
            // Of what is absent nothing tells.
            let is_absent = sample.is_empty() && !whole_process;
            let of_core = sample.contains("core=\"");
            assert!(is_absent || of_core != whole_process, "{name}: {sample}");
        }
    }
    assert!(shown.len() > 50, "{shown:?}");
    assert_eq!(documented, shown);
    // Any metric that a document names is one of them.
    for document in documents() {
        for line in prose(&document) {
            for span in spans(&line).into_iter().filter(|span| span.starts_with("millrace_")) {
                let name = span.split('{').next().unwrap();
                assert!(shown.contains_key(name), "{document}: {name}");
            }
        }
    }
    for (name, document) in [
        ("millrace_batches_closed_total", "docs/batches.md"),
        ("millrace_requests_total", "docs/operations.md"),
        ("millrace_connections_evicted_total", "docs/operations.md"),
    ] {
        let text = text(document);
        let samples = scrape.lines().filter(|line| line.starts_with(name));
        let reasons: Vec<&str> =
            samples.filter_map(|line| line.split("reason=\"").nth(1)?.split('"').next()).collect();
        assert!(reasons.len() > 2, "{name}: {reasons:?}");
        for reason in reasons {
            assert!(text.contains(&format!("`{reason}`")), "{document} has no {reason}");
        }
    }
}

/// The sources without their tests, with the texts in them as they are shown: lines joined, escapes
/// resolved.
fn sources() -> BTreeMap<PathBuf, String> {
    fn walk(dir: &Path, into: &mut BTreeMap<PathBuf, String>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                if path.file_name().unwrap() != "tests" {
                    walk(&path, into);
                }
            } else if path.extension().is_some_and(|e| e == "rs") && !path.ends_with("tests.rs") {
                let text = fs::read_to_string(&path).unwrap();
                let code = text.split("#[cfg(test)]\nmod tests").next().unwrap();
                let mut joined = String::new();
                let mut pieces = code.split("\\\n");
                joined.push_str(pieces.next().unwrap());
                pieces.for_each(|piece| joined.push_str(piece.trim_start()));
                let words: Vec<&str> = joined.split_whitespace().collect();
                into.insert(path, words.join(" "));
            }
        }
    }
    let mut found = BTreeMap::new();
    walk(&root("src"), &mut found);
    found
}

/// A literal as it is shown.
fn shown(literal: &str) -> String {
    literal.replace("\\\"", "\"").replace("{{", "{").replace("}}", "}")
}

/// What `docs/troubleshooting.md` quotes in its tables: each span, in pieces between its ellipses.
fn quoted() -> Vec<Vec<String>> {
    let document = text("docs/troubleshooting.md");
    let (_, from_there) = document.split_once("\n## Configuration").unwrap();
    let rows = from_there.lines().filter(|line| line.starts_with('|'));
    let quoted = rows.flat_map(|row| spans(row).into_iter().map(str::to_owned).collect::<Vec<_>>());
    let pieces = |span: String| {
        let pieces = span.split('…').map(|piece| piece.trim().to_owned());
        pieces.filter(|piece| piece.len() > 2).collect::<Vec<_>>()
    };
    // Names, statuses and commands are not messages.
    let is_message = |span: &String| {
        let command = [
            "millrace ",
            "spool ",
            "ulimit",
            "sysctl",
            "openssl ",
            "docker",
            "setcap",
            "fuser",
            "chmod",
            "dead-letter ",
        ];
        span.contains(' ') && !command.iter().any(|start| span.starts_with(start))
    };
    quoted.filter(is_message).map(pieces).filter(|pieces| !pieces.is_empty()).collect()
}

#[test]
fn messages_that_troubleshooting_quotes_are_in_the_source() {
    let sources: Vec<String> = sources().into_values().map(|code| shown(&code)).collect();
    let quoted = quoted();
    assert!(quoted.len() > 150, "{}", quoted.len());
    let unknown: Vec<_> = quoted
        .iter()
        .flatten()
        .filter(|piece| !sources.iter().any(|code| code.contains(piece.as_str())))
        .collect();
    assert!(unknown.is_empty(), "docs/troubleshooting.md quotes what nothing says: {unknown:#?}");
}

#[test]
fn troubleshooting_knows_every_warning_and_error() {
    const STARTS: [&str; 5] = [
        "tracing::error!(",
        "tracing::warn!(",
        "#[error(",
        ".error(|| format!(",
        ".warn(|| format!(",
    ];
    let quoted = quoted();
    let is_known = |literal: &str| {
        quoted.iter().any(|pieces| pieces.iter().any(|piece| literal.contains(piece.as_str())))
    };
    let mut unknown = Vec::new();
    let mut messages = 0;
    for (path, code) in sources() {
        for start in STARTS {
            for (at, _) in code.match_indices(start) {
                let Some(literal) = longest_literal(&code[at + start.len()..]) else { continue };
                let literal = shown(&literal);
                // A message of placeholders only is somebody else's, and no word by itself is
                // looked for.
                let own = literal.split(['{', '}']).step_by(2).map(str::trim);
                if own.map(str::len).max().unwrap_or(0) < 6 || !literal.contains(' ') {
                    continue;
                }
                messages += 1;
                if !is_known(&literal) {
                    let path = path.strip_prefix(ROOT).unwrap().display().to_string();
                    unknown.push(format!("{path}: {literal}"));
                }
            }
        }
    }
    assert!(messages > 120, "{messages}");
    assert!(unknown.is_empty(), "docs/troubleshooting.md lacks: {unknown:#?}");
}

/// The longest string literal up to the parenthesis that closes what `code` begins in; values of
/// fields apart.
fn longest_literal(code: &str) -> Option<String> {
    let (mut depth, mut longest) = (1, None::<String>);
    let (mut chars, mut is_value) = (code.chars(), false);
    while let Some(c) = chars.next() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            '"' => {
                let mut literal = String::new();
                while let Some(c) = chars.next().filter(|c| *c != '"') {
                    literal.push(c);
                    if c == '\\' {
                        literal.extend(chars.next());
                    }
                }
                let is_longer = longest.as_ref().is_none_or(|known| known.len() < literal.len());
                if is_longer && !is_value {
                    longest = Some(literal);
                }
            }
            _ => {}
        }
        if depth == 0 {
            break;
        }
        if !c.is_whitespace() {
            is_value = c == '=';
        }
    }
    longest
}

#[test]
fn every_block_can_be_run_or_says_why_not() {
    for document in documents() {
        for block in blocks(&document) {
            let Block { line, language, marker, text, .. } = &block;
            let excuse = text.lines().next().and_then(|l| l.strip_prefix("# not tested here: "));
            match language.as_str() {
                "sh" => {
                    let known = marker.is_some() != excuse.is_some_and(|why| why.len() > 10);
                    assert!(known, "{document}:{line} has either a marker or an excuse");
                }
                "json" => {
                    serde_json::from_str::<serde_json::Value>(text).unwrap();
                }
                // `http/browsers.rs` shows the pages to a browser.
                "toml" | "text" | "html" => {}
                // `monitoring.rs` starts a Prometheus with such a file.
                "yaml" => {}
                other => {
                    panic!(
                        "{document}:{line}: a block of {other:?}: sh, toml, json, yaml, text or html"
                    )
                }
            }
        }
    }
}

/// `None`, with the reason printed, when `tool` is not there.
fn tool(tool: &str) -> Option<()> {
    let found = Command::new("sh").args(["-c", &format!("command -v {tool}")]).output().unwrap();
    if found.status.success() {
        return Some(());
    }
    let need = match tool {
        "python3" => Need::Python,
        "curl" => Need::Curl,
        _ => Need::Tools,
    };
    skip(need, format!("there is no {tool}"));
    None
}

/// What a block is run with.
#[derive(Default)]
struct Setting {
    server: Option<Server>,
    store: Option<S3Server>,
    dir: Option<Arc<tempfile::TempDir>>,
    statuses: Vec<i32>,
}

impl Setting {
    fn of(marker: &str, toml: Option<&str>) -> Setting {
        let dir = Arc::new(tempfile::tempdir().unwrap());
        for name in ["docs", "examples", "tuning"] {
            symlink(root(name), dir.path().join(name)).unwrap();
        }
        let mut setting = Setting { statuses: vec![0], ..Setting::default() };
        let mut settings = Vec::new();
        let mut kind = "";
        let mut words = marker.split_whitespace().peekable();
        while let Some(word) = words.next() {
            match word {
                "plain" | "server" | "serves" | "crashed" => kind = word,
                "s3" => setting.store = Some(S3Server::start()),
                "with" => {
                    let file = dir.path().join(words.next().unwrap());
                    fs::write(file, any_port(toml.expect("a TOML block above"))).unwrap();
                }
                "status" => {
                    setting.statuses.clear();
                    while let Some(Ok(status)) = words.peek().map(|word| word.parse()) {
                        setting.statuses.push(status);
                        words.next();
                    }
                }
                word => match word.strip_prefix("file:") {
                    Some(file) => {
                        let (name, text) = file.split_once(':').unwrap();
                        fs::write(dir.path().join(name), format!("{text}\n")).unwrap();
                    }
                    None => settings.push(word.split_once('=').expect("NAME=VALUE")),
                },
            }
        }
        match kind {
            "server" => setting.server = Some(Server::start_in(dir.clone(), &settings)),
            "crashed" => {
                settings.push(("FAULTS", "transient=1"));
                let server = Server::start_in(dir.clone(), &settings);
                assert_eq!(server.spool(&["1", "2"]).status, 200);
                server.kill();
            }
            _ => {}
        }
        setting.dir = Some(dir);
        setting
    }

    fn run(&self, script: &str) -> Output {
        let dir = self.dir.as_ref().unwrap().path();
        let bin = dir.join("bin");
        fs::create_dir(&bin).unwrap();
        let millrace = bin.join("millrace");
        fs::write(&millrace, WRAPPER.replace("MILLRACE", env!("CARGO_BIN_EXE_millrace"))).unwrap();
        fs::set_permissions(&millrace, fs::Permissions::from_mode(0o755)).unwrap();
        let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
        let mut script = script.to_owned();
        let mut command = Command::new("timeout");
        command.args(["180", "bash", "-euo", "pipefail", "-s"]).current_dir(dir).env_clear();
        command.env("PATH", path).env("HOME", dir).env("MILLRACE_CORES", "0");
        command.env("AWS_EC2_METADATA_DISABLED", "true");
        if let Some(server) = &self.server {
            script = script.replace("localhost:8080", &server.ingest.to_string());
            script = script.replace("localhost:9090", &server.admin.to_string());
            command.env("MILLRACE_PID", server.pid().to_string());
        }
        if !script.contains("--config") {
            command.env("MILLRACE_LISTEN", "127.0.0.1:0");
            command.env("MILLRACE_ADMIN_LISTEN", "127.0.0.1:0");
        }
        if let Some(store) = &self.store {
            script = with_store(&script, store);
            command.env("AWS_ENDPOINT_URL", store.url());
            command.env("AWS_ACCESS_KEY_ID", ACCESS_KEY).env("AWS_SECRET_ACCESS_KEY", SECRET_KEY);
            command.env("AWS_REGION", "eu-central-1");
        }
        let file = dir.join("block.sh");
        fs::write(&file, script).unwrap();
        command.stdin(fs::File::open(file).unwrap()).stdout(Stdio::piped());
        command.output().unwrap()
    }
}

/// Serves without arguments until it is ready, and is told to stop; with arguments it is the
/// binary.
const WRAPPER: &str = r#"#!/bin/bash
[ $# = 0 ] || exec MILLRACE "$@"
MILLRACE 2>serve.log &
server=$!
for _ in {1..600}; do
    grep -q 'serving; a 200 means' serve.log && break
    kill -0 $server || break
    sleep 0.1
done
grep -q 'serving; a 200 means' serve.log || { cat serve.log >&2; exit 99; }
kill -TERM $server
wait $server
"#;

/// A configuration for ports that may be taken.
fn any_port(text: &str) -> String {
    text.replace("0.0.0.0:8080", "127.0.0.1:0").replace("127.0.0.1:9090", "127.0.0.1:0")
}

fn with_store(text: &str, store: &S3Server) -> String {
    text.replace("my-bucket", BUCKET)
        .replace("http://127.0.0.1:9000", &store.url())
        .replace("AWS_ACCESS_KEY_ID=access", &format!("AWS_ACCESS_KEY_ID={ACCESS_KEY}"))
        .replace("AWS_SECRET_ACCESS_KEY=secret", &format!("AWS_SECRET_ACCESS_KEY={SECRET_KEY}"))
}

#[test]
fn what_documents_tell_readers_to_run_works() {
    if ["bash", "timeout", "curl", "gzip", "python3"].into_iter().any(|name| tool(name).is_none()) {
        return;
    }
    let mut run = 0;
    for document in documents() {
        let mut toml = None;
        for block in blocks(&document) {
            if block.language == "toml" {
                toml = Some(block.text.clone());
            }
            let Some(marker) = &block.marker else { continue };
            let Block { document, line, text, .. } = &block;
            let setting = Setting::of(marker, toml.as_deref());
            let output = setting.run(text);
            let said = String::from_utf8_lossy(&output.stdout).replace('\r', "");
            let error = String::from_utf8_lossy(&output.stderr);
            let status = output.status.code().unwrap_or(-1);
            let place = format!("{document}:{line}, status {status}:\n{text}\n{said}\n{error}");
            assert!(setting.statuses.contains(&status), "{place}");
            for promised in text.lines().filter_map(|line| line.strip_prefix("# ")) {
                assert!(said.lines().any(|line| line.contains(promised)), "{promised}? {place}");
            }
            run += 1;
        }
    }
    assert!(run >= 15, "{run}");
}

/// Runs `millrace check` in `dir`, which stands in for `/var/lib/millrace`.
fn check(dir: &Path, args: &[&str], settings: &[(&str, &str)]) -> (i32, String) {
    let mut command = command(dir, args, settings);
    let output =
        command.env("HOME", dir).env("AWS_EC2_METADATA_DISABLED", "true").output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&said).into_owned())
}

fn check_toml(place: &str, toml: &str, store: &S3Server) {
    let dir = tempfile::tempdir().unwrap();
    let here = dir.path().to_str().unwrap();
    let toml = with_store(&any_port(toml), store).replace("/var/lib/millrace", here);
    fs::write(dir.path().join("millrace.toml"), &toml).unwrap();
    let url = store.url();
    let settings = [
        ("AWS_ENDPOINT_URL", url.as_str()),
        ("AWS_REGION", "eu-central-1"),
        ("AWS_ACCESS_KEY_ID", ACCESS_KEY),
        ("AWS_SECRET_ACCESS_KEY", SECRET_KEY),
    ];
    let (status, said) = check(dir.path(), &["check", "--config", "millrace.toml"], &settings);
    assert_eq!(status, 0, "{place}:\n{toml}\n{said}");
}

#[test]
fn configurations_in_documents_and_samples_pass_check() {
    let store = S3Server::start();
    for document in documents() {
        for block in blocks(&document).iter().filter(|block| block.language == "toml") {
            check_toml(&format!("{document}:{}", block.line), &block.text, &store);
        }
    }
    check_toml("docs/samples/millrace.toml", &text("docs/samples/millrace.toml"), &store);

    let dir = tempfile::tempdir().unwrap();
    let here = dir.path().to_str().unwrap();
    let sample = with_store(&any_port(&text("docs/samples/millrace.env")), &store);
    let sample = sample.replace("/var/lib/millrace", here);
    let lines = sample.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let mut settings: Vec<(&str, &str)> = lines.map(|line| line.split_once('=').unwrap()).collect();
    let url = store.url();
    settings.push(("AWS_ENDPOINT_URL", &url));
    let (status, said) = check(dir.path(), &["check"], &settings);
    assert_eq!(status, 0, "{said}");
    assert!(!said.contains("warn  environment"), "{said}");
}
