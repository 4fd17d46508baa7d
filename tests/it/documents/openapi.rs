//! `docs/openapi.yaml`: goal, it says what the server does, and the server does what it says.
//!
//! Method: its paths, statuses and names are compared with the server's own. Then schemathesis, a
//! Python package, sends requests made from it, right and wrong ones, to running servers of several
//! settings, and holds every answer against it: status, content type, headers, body, and that what
//! is wrong is refused. `MILLRACE_TEST_SEED` repeats a run; `MILLRACE_TEST_PYTHON` names another
//! interpreter.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use http::StatusCode;
use millrace::internals::config::{Ack, SETTINGS};
use millrace::internals::http::peers::Measure;

use super::{root, sources, text};
use crate::support::Server;
use crate::support::needs::{Need, skip};

const OPENAPI: &str = "docs/openapi.yaml";

/// The mappings of a YAML file in block style: the path of each key from the top, and what stands
/// behind it in its line. Enough for this file; lists are skipped.
fn outline(yaml: &str) -> Vec<(Vec<String>, String)> {
    let mut found: Vec<(Vec<String>, String)> = Vec::new();
    let mut open: Vec<(usize, String)> = Vec::new();
    let mut skipped_from = None;
    for line in yaml.lines() {
        let indent = line.len() - line.trim_start().len();
        if line.trim().is_empty() || skipped_from.is_some_and(|from| indent > from) {
            continue;
        }
        skipped_from = None;
        let line = line.trim_start();
        if line.starts_with('#') {
            continue;
        }
        if line.starts_with("- ") {
            skipped_from = Some(indent);
            continue;
        }
        // A key may hold colons itself: `text/plain; charset=utf-8` does not, a description may.
        let Some((key, value)) = line.split_once(": ").or(line.strip_suffix(':').map(|k| (k, "")))
        else {
            panic!("{OPENAPI}: no key in {line:?}");
        };
        while open.last().is_some_and(|(at, _)| *at >= indent) {
            open.pop();
        }
        open.push((indent, key.trim_matches('\'').to_owned()));
        // Texts of several lines, and flow style that goes on.
        let goes_on = value == "|" || (value.starts_with('[') && !value.ends_with(']'));
        if goes_on {
            skipped_from = Some(indent);
        }
        found.push((open.iter().map(|(_, key)| key.clone()).collect(), value.to_owned()));
    }
    found
}

/// What the file says, as far as it can be compared.
struct OpenApi {
    outline: Vec<(Vec<String>, String)>,
}

impl OpenApi {
    fn read() -> OpenApi {
        OpenApi { outline: outline(&text(OPENAPI)) }
    }

    /// The keys right below `path`.
    fn below(&self, path: &[&str]) -> BTreeSet<String> {
        let is_below = |key: &&Vec<String>| {
            key.len() == path.len() + 1 && key.iter().zip(path).all(|(key, path)| key == path)
        };
        self.outline
            .iter()
            .map(|(key, _)| key)
            .filter(is_below)
            .map(|k| k[path.len()].clone())
            .collect()
    }

    /// The words of `[a, b, c]` at `path`.
    fn list(&self, path: &[&str]) -> BTreeSet<String> {
        let found = self.outline.iter().find(|(key, _)| key == path);
        let (_, value) = found.unwrap_or_else(|| panic!("{OPENAPI} has no {path:?}"));
        let words = value.strip_prefix('[').and_then(|value| value.strip_suffix(']'));
        let words = words.unwrap_or_else(|| panic!("{path:?} is no list: {value}"));
        words.split(", ").map(str::to_owned).collect()
    }

    /// The paths of operations with this tag.
    fn paths(&self, tag: &str) -> BTreeSet<String> {
        let all = self.below(&["paths"]).into_iter();
        all.filter(|path| {
            let methods = self.below(&["paths", path]);
            let tagged = |method: &String| {
                self.outline.iter().any(|(key, value)| {
                    *key == ["paths", path, method, "tags"] && value.contains(tag)
                })
            };
            methods.iter().any(tagged)
        })
        .collect()
    }

    /// Every status of an operation of these paths.
    fn statuses(&self, paths: &BTreeSet<String>) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        for path in paths {
            for method in self.below(&["paths", path]) {
                found.extend(self.below(&["paths", path, &method, "responses"]));
            }
        }
        found
    }
}

/// The statuses that these sources name, as `StatusCode::NAME`.
fn named(is_there: impl Fn(&Path) -> bool) -> BTreeSet<String> {
    let mut codes = BTreeMap::new();
    for code in (100..600).filter_map(|code| StatusCode::from_u16(code).ok()) {
        let name = code.canonical_reason().unwrap_or_default();
        codes.insert(name.to_uppercase().replace([' ', '-'], "_"), code.as_u16().to_string());
    }
    let mut found = BTreeSet::new();
    for (path, code) in sources() {
        let path = path.strip_prefix(root("src")).unwrap();
        for rest in code.split("StatusCode::").skip(1).filter(|_| is_there(path)) {
            let name = rest.split(|c: char| !(c.is_ascii_uppercase() || c == '_')).next().unwrap();
            // A function of the type, or an import.
            if !name.is_empty() {
                found.insert(codes.get(name).unwrap_or_else(|| panic!("{name}")).clone());
            }
        }
    }
    found
}

#[test]
fn the_openapi_has_every_status_of_the_server() {
    let openapi = OpenApi::read();
    let ingest = openapi.statuses(&openapi.paths("ingest"));
    let of_ingest = named(|path| path.starts_with("http"));
    assert!(of_ingest.len() >= 11, "{of_ingest:?}");
    let missing: Vec<_> = of_ingest.difference(&ingest).collect();
    assert!(missing.is_empty(), "{OPENAPI} lacks {missing:?}, which the ingest listener answers");

    // 200 is what an answer is by itself, and hyper answers a head that is too large.
    let by_itself: BTreeSet<String> = ["200", "431"].map(str::to_owned).into();
    let known: BTreeSet<String> = &of_ingest | &by_itself;
    let unknown: Vec<_> = ingest.difference(&known).collect();
    assert!(unknown.is_empty(), "{OPENAPI} has {unknown:?}, which nothing answers");

    // What is said for all paths at once is in the text at the top.
    let document = text(OPENAPI);
    let (top, _) = document.split_once("\ntags:").unwrap();
    let of_admin =
        named(|path| ["admin.rs", "peers.rs", "tap.rs"].iter().any(|name| path.ends_with(name)));
    assert!(of_admin.len() >= 5, "{of_admin:?}");
    let admin = openapi.statuses(&openapi.paths("admin"));
    for status in of_admin {
        let is_said = admin.contains(&status) || top.contains(&format!("`{status}`"));
        assert!(is_said, "{OPENAPI} lacks {status}, which the admin listener answers");
    }

    // The server counts its answers by the statuses that it knows.
    let server = Server::start(&[]);
    let scrape = server.metrics().0;
    let counted = scrape.lines().filter(|line| line.starts_with("millrace_requests_total{"));
    let counted: BTreeSet<String> = counted
        .filter_map(|line| Some(line.split("status=\"").nth(1)?.split('"').next()?.to_owned()))
        .collect();
    assert!(counted.len() > 10, "{counted:?}");
    for status in counted {
        // 500 is a defect.
        let is_known = ingest.contains(&status) || ["other", "500"].contains(&status.as_str());
        assert!(is_known, "{OPENAPI} lacks {status}, which the server counts");
    }
}

#[test]
fn the_openapi_has_the_paths_and_names_of_the_server() {
    let openapi = OpenApi::read();
    let server = Server::start(&[]);
    let said = server.admin("/no-page").body;
    let pages = said.split([' ', ',', '\n']).filter(|word| word.starts_with('/'));
    let pages: BTreeSet<String> = pages.map(str::to_owned).collect();
    assert!(pages.len() >= 4, "{said}");
    assert_eq!(openapi.paths("admin"), pages);

    let paths = SETTINGS.iter().find(|setting| setting.name == "PATHS");
    let paths = paths.map_or("/payloads", |setting| setting.default);
    let ingest = openapi.paths("ingest");
    for path in paths.split(',').map(str::trim) {
        assert!(ingest.contains(path), "{OPENAPI} lacks {path}");
        assert!(openapi.below(&["paths", path]).contains("post"), "{path}");
    }

    let levels: BTreeSet<String> = Ack::ALL.iter().map(|ack| ack.name().to_owned()).collect();
    assert_eq!(openapi.list(&["components", "schemas", "AckLevel", "enum"]), levels);
    let mut measures: BTreeSet<String> = Measure::NAMES.map(str::to_owned).into();
    measures.insert("connections".to_owned());
    assert_eq!(openapi.list(&["components", "parameters", "By", "schema", "enum"]), measures);
    let by = ["components", "schemas", "Peers", "properties", "by", "enum"];
    assert_eq!(openapi.list(&by), measures);
}

#[test]
fn the_openapi_is_whole() {
    let document = text(OPENAPI);
    let openapi = OpenApi::read();
    let mut used = BTreeSet::new();
    for reference in document.split("$ref: '#/").skip(1) {
        let reference = reference.split('\'').next().unwrap();
        let parts: Vec<&str> = reference.split('/').collect();
        let (name, above) = parts.split_last().unwrap();
        assert!(openapi.below(above).contains(*name), "{reference} is not there");
        used.insert(reference.to_owned());
    }
    assert!(used.len() > 10, "{used:?}");
    for kind in openapi.below(&["components"]) {
        for name in openapi.below(&["components", &kind]) {
            let is_used = match kind.as_str() {
                "securitySchemes" => document.contains(&format!("- {name}: []")),
                _ => used.contains(&format!("components/{kind}/{name}")),
            };
            assert!(is_used, "{kind}/{name} is not used");
        }
    }
    // What looks like a setting is one.
    for word in super::spans(&document.replace('\n', " ")) {
        let name = word.split('=').next().unwrap();
        let is_name = name.len() > 2 && name.chars().all(|c| c.is_ascii_uppercase() || c == '_');
        let methods = ["GET", "HEAD", "POST", "OPTIONS"];
        if is_name && !methods.contains(&name) {
            let is_setting = SETTINGS.iter().any(|setting| setting.name == name);
            assert!(is_setting, "{OPENAPI}: {name} is no setting");
        }
    }
    // Neither anchors nor merge keys: OpenAPI wants YAML that could be JSON.
    assert!(!document.contains(": &") && !document.contains("<<"));
    // A link leads to a document, and to a heading of it.
    for link in document.split("](").skip(1) {
        let link = link.split(')').next().unwrap();
        let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
        let path = root("docs").join(file);
        assert!(path.exists(), "{link}");
        assert!(anchor.is_empty() || super::anchors(&path).contains(anchor), "{link}");
    }
}

/// The interpreter that has schemathesis; `None`, with the reason printed, where there is none.
fn python() -> Option<String> {
    let python = std::env::var("MILLRACE_TEST_PYTHON").unwrap_or_else(|_| "python3".into());
    let asked = Command::new(&python).args(["-c", "import schemathesis"]).output();
    match asked {
        Ok(output) if output.status.success() => Some(python),
        Ok(_) => {
            let why = "has no schemathesis; pip install schemathesis";
            skip(Need::Schemathesis, format!("{python} {why}"));
            None
        }
        Err(error) => {
            skip(Need::Schemathesis, format!("no {python}: {error}"));
            None
        }
    }
}

/// One run of schemathesis against `address`.
fn hold(python: &str, address: SocketAddr, options: &[&str], env: &[(&str, &str)]) {
    let seed = std::env::var("MILLRACE_TEST_SEED").unwrap_or_else(|_| "1".to_owned());
    println!("MILLRACE_TEST_SEED={seed} {options:?}");
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new("timeout");
    command.args(["300", python, "-m", "schemathesis.cli", "run"]).arg(root(OPENAPI));
    command.arg("--url").arg(format!("http://{address}")).args(["--seed", &seed]);
    command.args(["--continue-on-failure", "--no-color", "--warnings", "off"]);
    command.args(["--phases", "examples,coverage,fuzzing"]);
    // It writes what it has learned to where it runs. Of an option given twice the last one counts.
    command.args(options).current_dir(dir.path()).envs(env.iter().copied());
    command.env("SCHEMATHESIS_HOOKS", "schemathesis_hooks");
    command.env("PYTHONPATH", root("tests/described")).env("PYTHONDONTWRITEBYTECODE", "1");
    for proxy in ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"] {
        command.env_remove(proxy);
    }
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{options:?}:\n{said}\n{errors}");
    assert!(said.contains("passed") && said.contains("No issues found"), "{said}\n{errors}");
}

const POST: [&str; 2] = ["--include-operation-id", "postPayloads"];

fn with<'a>(options: &[&'a str], more: &[&'a str]) -> Vec<&'a str> {
    [options, more].concat()
}

#[test]
fn every_answer_to_clients_is_as_described() {
    let Some(python) = python() else { return };
    let server = Server::start(&[("SPOOL_DIR", "spool")]);
    hold(&python, server.ingest, &with(&POST, &["--max-examples", "100"]), &[]);
    let metrics = server.metrics();
    assert!(metrics.requests(200) > 20 && metrics.requests(400) > 20, "{}", metrics.0);
    server.wait_idle();
}

#[test]
fn a_server_with_tokens_answers_as_described() {
    let Some(python) = python() else { return };
    let dir = Arc::new(tempfile::tempdir().unwrap());
    std::fs::write(dir.path().join("tokens"), "good-token;name=shop\n").unwrap();
    let settings = [("SPOOL_DIR", "spool"), ("TOKENS_FILE", "tokens")];
    let server = Server::start_in(dir, &settings);
    let options = with(&POST, &["--max-examples", "50"]);
    hold(&python, server.ingest, &options, &[("TOKENLESS", "1")]);
    let metrics = server.metrics();
    assert!(metrics.requests(401) > 20 && metrics.requests(200) == 0, "{}", metrics.0);
    let header = ["--header", "authorization: Bearer good-token"];
    hold(&python, server.ingest, &with(&options, &header), &[]);
    assert!(server.metrics().requests(200) > 20);
    server.wait_idle();
}

#[test]
fn a_server_in_trouble_answers_as_described() {
    let Some(python) = python() else { return };
    let checks = "not_a_server_error,positive_data_acceptance";
    let options = ["--mode", "positive", "--exclude-checks", checks, "--max-examples", "60"];
    for (faults, statuses) in [
        // Objects that the store refuses make a 502 of `stored`.
        ("seed=1,object=0.5", &[200, 502][..]),
        // Those that it never answers make a 504, and the full queue behind them a 503.
        ("seed=1,hang=1", &[504, 503][..]),
    ] {
        let server = Server::start(&[
            ("SPOOL_DIR", "spool"),
            ("FAULTS", faults),
            ("ACK_TIMEOUT", "200ms"),
            ("ENQUEUE_WAIT", "0s"),
            ("MAX_QUEUE", "30"),
            ("DRAIN_TIMEOUT", "2s"),
        ]);
        hold(&python, server.ingest, &with(&POST, &options), &[]);
        let metrics = server.metrics();
        for status in statuses {
            assert!(metrics.requests(*status) > 0, "no {status}: {}", metrics.0);
        }
    }
}

#[test]
fn a_server_with_quotas_answers_as_described() {
    let Some(python) = python() else { return };
    let server = Server::start(&[("SPOOL_DIR", "spool"), ("CLIENT_RATE", "1/s")]);
    let options = ["--mode", "positive", "--max-examples", "30"];
    hold(&python, server.ingest, &with(&POST, &options), &[]);
    assert!(server.metrics().requests(429) > 10, "{}", server.metrics().0);
}

#[test]
fn a_server_for_browsers_and_balancers_answers_as_described() {
    let Some(python) = python() else { return };
    let origins = ("CORS_ORIGINS", "https://app.example.com");
    let server = Server::start(&[origins, ("INGEST_HEALTH", "on"), ("SPOOL_DIR", "spool")]);
    // A preflight that lacks a header is none, so it is a 405, which says more than a 400.
    let preflight = ["--include-operation-id", "preflight", "--max-examples", "30"];
    let checks = "missing_required_header,negative_data_rejection";
    hold(&python, server.ingest, &with(&preflight, &["--exclude-checks", checks]), &[]);
    let pages = ["--include-path-regex", "^/(healthz|readyz)$", "--max-examples", "20"];
    hold(&python, server.ingest, &pages, &[]);
    hold(&python, server.ingest, &with(&POST, &["--max-examples", "20"]), &[]);
}

#[test]
fn every_page_of_operators_is_as_described() {
    let Some(python) = python() else { return };
    let server = Server::start(&[]);
    assert_eq!(server.post_payloads(&["1", "2"]).status, 200);
    let quick = ["--include-tag", "admin", "--exclude-path", "/peers", "--max-examples", "20"];
    hold(&python, server.admin, &quick, &[]);
    // This page asks the cores, which answer once a second: fewer requests, at once.
    let slow = ["--include-path", "/peers", "--max-examples", "12", "--workers", "2"];
    hold(&python, server.admin, &with(&slow, &["--phases", "examples,fuzzing"]), &[]);
}
