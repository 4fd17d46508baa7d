//! What is shipped beside the sources: goal, the package, the image, the chart and the plain
//! manifests agree with the server and with each other. Method: they are read as text; the chart is
//! rendered by Helm's engine and judged by Kubernetes' schemas, and the settings in all of them by
//! `millrace check`. `packaging/test.sh` installs the package and builds the image.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use millrace::internals::config::{Config, SETTINGS};
use millrace::internals::limits::Limits;
use serde_json::Value;

use crate::support::needs::{Need, allowed, skip};
use crate::support::run;

const VERSION: &str = env!("CARGO_PKG_VERSION");

fn root(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn text(path: &str) -> String {
    fs::read_to_string(root(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The interpreter that has the packages.
fn python() -> String {
    std::env::var("MILLRACE_TEST_PYTHON").unwrap_or_else(|_| "python3".into())
}

/// The output of `deploy/render.py`; `None` where its packages are missing.
fn render(args: &[&str]) -> Option<std::process::Output> {
    for (module, need) in [("helm_python", Need::Helm), ("kubernetes_validate", Need::Kubernetes)] {
        if !allowed(&[&python(), "-c", &format!("import {module}")]) {
            skip(need, format!("{} has no {module}", python()));
            return None;
        }
    }
    Some(Command::new(python()).arg(root("deploy/render.py")).args(args).output().unwrap())
}

#[test]
fn the_chart_renders_what_kubernetes_takes_and_the_manifests_are_it() {
    let Some(output) = render(&[]) else { return };
    let said = String::from_utf8_lossy(&[&*output.stdout, &*output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{said}");
    assert!(said.contains("valid for Kubernetes 1.30 and "), "{said}");
}

/// The one object of this kind.
fn object<'a>(objects: &'a [Value], kind: &str) -> &'a Value {
    let mut found = objects.iter().filter(|object| object["kind"] == kind);
    let object = found.next().unwrap_or_else(|| panic!("no {kind}"));
    assert!(found.next().is_none(), "several {kind}");
    object
}

/// The TOML file of the manifests: a block scalar, that is the lines that are indented further than
/// its key.
fn chart_settings() -> String {
    let manifest = text("deploy/kubernetes/millrace.yaml");
    let (_, rest) = manifest.split_once("  millrace.toml: |\n").unwrap();
    let lines = rest.lines().map_while(|line| line.strip_prefix("    "));
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn a_pod_has_cpus_of_its_own_time_to_stop_and_a_profile() {
    let Some(output) = render(&["--json"]) else { return };
    let objects: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    let set = &object(&objects, "StatefulSet")["spec"];
    let pod = &set["template"]["spec"];
    let container = &pod["containers"][0];
    assert_eq!(pod["containers"].as_array().unwrap().len(), 1);
    // Guaranteed: every limit is a request; exclusive CPUs: a whole number of them.
    let resources = &container["resources"];
    assert_eq!(resources["requests"], resources["limits"]);
    assert!(resources["limits"]["cpu"].as_u64().is_some_and(|cpus| cpus > 0), "{resources}");
    let gib: u64 = resources["limits"]["memory"]
        .as_str()
        .and_then(|memory| memory.strip_suffix("Gi")?.parse().ok())
        .unwrap();
    let toml: toml::Table = chart_settings().parse().unwrap();
    let settings: Vec<_> =
        toml.iter().map(|(key, value)| (key.to_uppercase(), value.as_str().unwrap())).collect();
    let settings: Vec<_> = settings.iter().map(|(name, value)| (name.as_str(), *value)).collect();
    let mut config = Config::from_settings(&settings).unwrap();
    let cpus = resources["limits"]["cpu"].as_u64().unwrap();
    config.cores = (0..cpus as usize).collect();
    // What `check` says is needed, and a GiB for the page cache.
    let needed = (Limits::new(&config).core_memory_bytes * cpus).div_ceil(1 << 30) + 1;
    assert!(gib >= needed, "{gib} GiB for {cpus} cores, which need {needed}");

    let env = container["env"].as_array().unwrap();
    let drain = env.iter().find(|variable| variable["name"] == "MILLRACE_DRAIN_TIMEOUT").unwrap();
    let drain: u64 = drain["value"].as_str().unwrap().strip_suffix('s').unwrap().parse().unwrap();
    assert_eq!(drain, Config::from_settings(&[]).unwrap().drain_timeout.as_secs());
    let sleep = container["lifecycle"]["preStop"]["sleep"]["seconds"].as_u64().unwrap();
    let grace = pod["terminationGracePeriodSeconds"].as_u64().unwrap();
    assert_eq!(grace, sleep + drain + 10, "{grace} s for {sleep} s and {drain} s");

    // What no other pod of the cluster has. A variable is replaced in those that follow it.
    let place = |name: &str| env.iter().position(|variable| variable["name"] == name).unwrap();
    let node = place("MILLRACE_NODE_ID");
    assert_eq!(env[node]["value"], "$(POD_NAMESPACE).$(POD_NAME)");
    for (name, field) in [("POD_NAMESPACE", "metadata.namespace"), ("POD_NAME", "metadata.name")] {
        assert!(place(name) < node, "{name}");
        assert_eq!(env[place(name)]["valueFrom"]["fieldRef"]["fieldPath"], field);
    }
    for id in ["a-namespace.millrace-0", "cluster-1.ns.millrace-999"] {
        assert_eq!(Config::from_settings(&[("NODE_ID", id)]).unwrap().node_id, id);
    }

    assert_eq!(pod["enableServiceLinks"], false);
    assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "Localhost");
    assert_eq!(container["securityContext"]["readOnlyRootFilesystem"], true);
    for (probe, path) in
        [("startupProbe", "/healthz"), ("readinessProbe", "/readyz"), ("livenessProbe", "/healthz")]
    {
        let get = &container[probe]["httpGet"];
        assert_eq!((get["path"].as_str(), get["port"].as_str()), (Some(path), Some("admin")));
    }
    let claims = set["volumeClaimTemplates"].as_array().unwrap();
    let claim = &claims[0]["metadata"]["name"];
    let mounts = container["volumeMounts"].as_array().unwrap();
    assert!(mounts.iter().any(|m| m["name"] == *claim && m["mountPath"] == "/var/lib/millrace"));
    assert_eq!(set["persistentVolumeClaimRetentionPolicy"]["whenDeleted"], "Retain");
    let budget = &object(&objects, "PodDisruptionBudget")["spec"];
    assert_eq!(budget["maxUnavailable"], 1);
    assert_eq!(budget["unhealthyPodEvictionPolicy"], "IfHealthyBudget");
    // The monitor finds the service that has the port.
    let monitor = &object(&objects, "ServiceMonitor")["spec"];
    let wanted = monitor["selector"]["matchLabels"].as_object().unwrap();
    let services = objects.iter().filter(|object| object["kind"] == "Service");
    let found: Vec<_> = services
        .filter(|service| {
            wanted.iter().all(|(name, value)| service["metadata"]["labels"][name] == *value)
        })
        .collect();
    assert_eq!(found.len(), 1, "{wanted:?}");
    assert_eq!(found[0]["spec"]["ports"][0]["name"], monitor["endpoints"][0]["port"]);
}

/// `check` with the settings of a file, but for the places, which are not of this host.
fn check(toml: &str) -> String {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("m.toml"), toml).unwrap();
    let places = [
        ("MILLRACE_CONFIG", "m.toml"),
        ("STORE", "null:"),
        ("LISTEN", "127.0.0.1:0"),
        ("ADMIN_LISTEN", "127.0.0.1:0"),
        ("SPOOL_DIR", "spool"),
        ("DEAD_LETTER_DIR", "dead-letter"),
        ("CORES", "0"),
    ];
    let output = run(dir.path(), &["check"], &places);
    let said = String::from_utf8_lossy(&[&*output.stdout, &*output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{said}");
    said
}

#[test]
fn the_settings_of_package_and_chart_are_settings() {
    check(&text("packaging/deb/millrace.toml"));
    // And all of them, once their signs of a comment are gone.
    let package = text("packaging/deb/millrace.toml");
    let keys: Vec<_> = package.lines().filter_map(|line| line.split_once(" = ")).collect();
    assert!(keys.len() > 10);
    for (key, _) in keys {
        let key = key.trim_start_matches("# ");
        assert!(SETTINGS.iter().any(|s| s.name.eq_ignore_ascii_case(key)), "{key}");
    }
    let toml = chart_settings();
    assert!(toml.contains("store = \"s3://"), "{toml}");
    let said = check(&toml);
    assert!(said.contains("ACK=\"spooled\""), "{said}");
}

#[test]
fn the_image_sets_what_is_a_setting_and_asks_the_binary_whether_it_is_well() {
    let dockerfile = text("Dockerfile").replace("\\\n", " ");
    let (_, last) = dockerfile.split_once("FROM gcr.io/").unwrap();
    let instruction = |name: &str| {
        let mut found = last.lines().filter_map(|line| line.strip_prefix(&format!("{name} ")));
        let instruction = found.next().unwrap_or_else(|| panic!("no {name}"));
        assert_eq!(found.next(), None, "several {name}");
        instruction
    };
    for assignment in instruction("ENV").split_whitespace() {
        let (name, _) = assignment.split_once('=').unwrap();
        assert!(SETTINGS.iter().any(|s| s.env() == name), "{name}");
    }
    let entry: Vec<String> = serde_json::from_str(instruction("ENTRYPOINT")).unwrap();
    let (_, health) = instruction("HEALTHCHECK").split_once("CMD ").unwrap();
    let health: Vec<String> = serde_json::from_str(health).unwrap();
    assert_eq!(health, [&*entry, &["health".to_owned()]].concat());
    assert_eq!(instruction("STOPSIGNAL"), "SIGTERM");
    let labels = instruction("LABEL");
    for label in ["title", "description", "revision", "created", "licenses", "base.name"] {
        assert!(labels.contains(&format!("org.opencontainers.image.{label}=")), "{label}");
    }
    assert!(labels.contains(&format!("org.opencontainers.image.version=\"{VERSION}\"")));
    let base = last.lines().next().unwrap();
    assert!(labels.contains(&format!("base.name=\"gcr.io/{base}\"")), "{base}");
}

/// Another toolchain than that of rust-toolchain.toml would be downloaded with every build.
#[test]
fn the_image_is_built_with_the_toolchain_of_the_sources() {
    let toolchain: toml::Table = text("rust-toolchain.toml").parse().unwrap();
    let channel = toolchain["toolchain"]["channel"].as_str().unwrap();
    let dockerfile = text("Dockerfile");
    assert!(dockerfile.contains(&format!("\nFROM rust:{channel}-bookworm AS rust\n")), "{channel}");
    assert!(dockerfile.contains(&format!("\nENV RUSTUP_TOOLCHAIN={channel}\n")), "{channel}");
    assert_eq!(dockerfile.matches("FROM rust:").count(), 1, "another toolchain");
}

#[test]
fn everything_has_the_version_of_the_server() {
    let chart = text("deploy/helm/millrace/Chart.yaml");
    assert!(chart.contains(&format!("\nversion: {VERSION}\n")), "{chart}");
    assert!(chart.contains(&format!("\nappVersion: \"{VERSION}\"\n")), "{chart}");
    assert!(
        text("deploy/kubernetes/millrace.yaml")
            .contains(&format!("image: \"millrace:{VERSION}\"\n"))
    );
}

/// What the package is made of is there; the rest is made by packaging/build.sh.
#[test]
fn the_package_names_files_that_are_there() {
    let manifest: toml::Table = text("Cargo.toml").parse().unwrap();
    let deb = &manifest["package"]["metadata"]["deb"];
    let assets = deb["assets"].as_array().unwrap();
    let build = text("packaging/build.sh");
    for asset in assets {
        let source = asset[0].as_str().unwrap();
        let (directory, pattern) = source.rsplit_once('/').unwrap_or((".", source));
        if let Some(made) = directory.strip_prefix("target/package") {
            let made = made.trim_start_matches('/');
            assert!(build.contains(&format!("$stage/{made}")), "{source}");
            continue;
        }
        let wanted = pattern.replace('*', "");
        let found = fs::read_dir(root(directory)).unwrap().filter_map(Result::ok).any(|entry| {
            let name = entry.file_name().into_string().unwrap();
            if pattern.contains('*') { name.ends_with(&wanted) } else { name == pattern }
        });
        assert!(found, "{source}");
    }
    // The profile that is shipped, everywhere.
    assert!(build.contains("--profile dist") && text("Dockerfile").contains("--profile dist"));
}
