//! What `Cargo.toml` says about profiles: a release build saves its time where no payload passes,
//! and what is measured is optimised alike for all servers.

use std::path::Path;

use toml::{Table, Value};

/// Crates that run for every request, payload or upload. The standard library is optimised in any
/// case.
const DATA_PATH: &[&str] = &[
    "arc-swap",
    "atomic-waker",
    "bytes",
    "concurrent-queue",
    "crc-fast",
    "crossbeam-utils",
    "digest",
    "fastrand",
    "flate2",
    "flume",
    "fnv",
    "form_urlencoded",
    "futures-core",
    "futures-io",
    "futures-lite",
    "futures-rustls",
    "futures-util",
    "glommio",
    "h2",
    "hashbrown",
    "hmac",
    "http",
    "http-body",
    "http-body-util",
    "httparse",
    "hyper",
    "indexmap",
    "io-uring",
    "itoa",
    "libmimalloc-sys",
    "lockfree",
    "memchr",
    "millrace",
    "mimalloc",
    "nix",
    "pin-project-lite",
    "ring",
    "rustix",
    "rustls",
    "rustls-webpki",
    "ryu",
    "scoped-tls",
    "send_wrapper",
    "serde",
    "serde_core",
    "serde_json",
    "sha2",
    "simd-json",
    "simdutf8",
    "slab",
    "smallvec",
    "smol-hyper",
    "socket2",
    "subtle",
    "time",
    "tokio",
    "tokio-util",
    "tracing",
    "tracing-core",
    "value-trait",
    "zlib-rs",
    "zmij",
    "zstd",
    "zstd-safe",
    "zstd-sys",
];

fn file(name: &str) -> Table {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    std::fs::read_to_string(path).unwrap().parse().unwrap()
}

fn profile(manifest: &Table, name: &str) -> Table {
    manifest["profile"][name].as_table().unwrap().clone()
}

/// The overrides per package of profile `name`.
fn overrides(manifest: &Table, name: &str) -> Table {
    profile(manifest, name)
        .get("package")
        .map_or_else(Table::new, |p| p.as_table().unwrap().clone())
}

/// Crates of `overrides` that are on the data path or not in the lock file, and an optimisation
/// level for all crates at once.
fn faults(overrides: &Table, locked: &[String]) -> Vec<String> {
    let lowered = |settings: &Value| settings.get("opt-level").is_some();
    let wrong = overrides.iter().filter(|(name, settings)| match name.as_str() {
        "*" => lowered(settings),
        name => {
            let on_data_path = DATA_PATH.contains(&name) && lowered(settings);
            on_data_path || !locked.iter().any(|locked| locked == name)
        }
    });
    wrong.map(|(name, _)| name.clone()).collect()
}

fn locked_crates() -> Vec<String> {
    let lock = file("Cargo.lock");
    let packages = lock["package"].as_array().unwrap();
    packages.iter().map(|package| package["name"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_release_optimises_what_payloads_pass_through() {
    let locked = locked_crates();
    for name in DATA_PATH {
        assert!(locked.iter().any(|locked| locked == name), "{name} is no dependency");
    }
    let manifest = file("Cargo.toml");
    assert!(!overrides(&manifest, "release").is_empty());
    for name in ["release", "dist"] {
        let faults = faults(&overrides(&manifest, name), &locked);
        assert!(faults.is_empty(), "[profile.{name}.package]: {faults:?}");
        let level = profile(&manifest, name).get("opt-level").cloned();
        assert!(level.is_none_or(|level| level == Value::Integer(3)), "[profile.{name}]");
    }
}

#[test]
fn an_override_of_the_data_path_would_be_noticed() {
    let table: Table = "zstd-sys.opt-level = 2\nclap_builder.opt-level = 0\ngone.debug = false\n\
        ring.debug = false\n'*'.opt-level = 1"
        .parse()
        .unwrap();
    let mut faults = faults(&table, &locked_crates());
    faults.sort();
    assert_eq!(faults, ["*", "gone", "zstd-sys"]);
}

/// Overrides are inherited with a profile, so the chains of what is measured must not reach one
/// that has any.
#[test]
fn what_is_measured_has_no_overrides() {
    let manifest = file("Cargo.toml");
    for measured in ["compare", "bench"] {
        let mut name = measured.to_owned();
        loop {
            let chain = profile(&manifest, &name);
            assert!(chain.get("package").is_none(), "{measured} inherits the overrides of {name}");
            match chain.get("inherits") {
                Some(parent) => name = parent.as_str().unwrap().to_owned(),
                None => break,
            }
        }
        assert_eq!(name, "dev", "an end of the chain of {measured} that has no overrides");
    }
    let (compare, release) = (profile(&manifest, "compare"), profile(&manifest, "release"));
    assert_eq!(compare["opt-level"], Value::Integer(3));
    for off in ["debug-assertions", "overflow-checks", "incremental"] {
        assert_eq!(compare[off], Value::Boolean(false), "{off}");
    }
    for same in ["codegen-units", "debug", "panic"] {
        assert_eq!(compare.get(same), release.get(same), "{same}");
    }
    // The servers are measured as they are shipped.
    assert_eq!(compare["lto"], profile(&manifest, "dist")["lto"]);
}

#[test]
fn what_is_shipped_has_no_debug_information() {
    let manifest = file("Cargo.toml");
    let dist = profile(&manifest, "dist");
    assert_eq!((&dist["inherits"], &dist["strip"]), (&"release".into(), &"debuginfo".into()));
    let dockerfile = Path::new(env!("CARGO_MANIFEST_DIR")).join("Dockerfile");
    let dockerfile = std::fs::read_to_string(dockerfile).unwrap();
    assert!(dockerfile.contains("--profile dist") && dockerfile.contains("target/dist/millrace"));
}
