//! What `tuning/` says: goal, its files agree with each other and with the server, and the check changes nothing.
//! Method: they are read as text; `check.sh` looks at this host, and at made-up ones.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use millrace::internals::config::Config;
use millrace::internals::limits::Limits;
use serde_json::Value;

use crate::support::files;

fn tuning(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tuning").join(name)
}

fn text(name: &str) -> String {
    fs::read_to_string(tuning(name)).unwrap()
}

/// The exit status, and the printed lines by knob: whether it is `ok`, `lacks` or `-`, and what was found.
fn check(root: Option<&Path>, cores: &str) -> (i32, BTreeMap<String, (String, String)>) {
    let mut command = Command::new("sh");
    command.arg(tuning("check.sh"));
    for name in ["MAX_CONNECTIONS", "MAX_WORKERS"] {
        command.env_remove(name).env_remove(format!("MILLRACE_{name}"));
    }
    // The prefixed name counts.
    command.env("MILLRACE_CORES", cores).env("CORES", "17");
    command.env("CHECK_ROOT", root.unwrap_or(Path::new("")));
    let output = command.output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    let printed = String::from_utf8(output.stdout).unwrap();
    let mut knobs = BTreeMap::new();
    for line in printed.lines() {
        let (state, name, found) = (line[..7].trim(), line[7..44].trim(), line[44..].trim());
        if state.is_empty() {
            assert!(found.starts_with("mend: "), "{line}");
        } else {
            let twice = knobs.insert(name.to_owned(), (state.to_owned(), found.to_owned()));
            assert_eq!(twice, None, "{line}");
        }
    }
    let mends = printed.lines().filter(|line| line.contains(" mend: ")).count();
    assert_eq!(mends, knobs.values().filter(|(state, _)| state == "lacks").count(), "{printed}");
    (output.status.code().unwrap(), knobs)
}

/// `key = value` or `key=value` lines.
fn assignments(text: &str) -> Vec<(&str, &str)> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines.filter_map(|line| line.split_once('=')).map(|(k, v)| (k.trim(), v.trim())).collect()
}

/// The one value that the unit gives `key`.
fn unit_value(key: &str) -> String {
    let unit = text("millrace.service");
    let values: Vec<_> = assignments(&unit).into_iter().filter(|(k, _)| *k == key).collect();
    assert_eq!(values.len(), 1, "{key}: {values:?}");
    values[0].1.to_owned()
}

fn write(root: &Path, path: &str, text: &str) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

/// A host of eight CPUs that lacks nothing for `CORES=1-7`.
fn tuned_host(root: &Path) {
    write(root, "proc/sys/kernel/osrelease", "6.1.0-28-amd64\n");
    for (key, value) in assignments(&text("99-millrace.conf")) {
        let path = key.trim_start_matches('-').replace('.', "/");
        write(root, &format!("proc/sys/{path}"), &format!("{value}\n"));
    }
    let limits = "Limit  Soft Limit  Hard Limit  Units\n\
                  Max open files            1024                 1048576              files     \n\
                  Max locked memory         unlimited            unlimited            bytes     \n";
    write(root, "proc/4711/comm", "millrace\n");
    write(root, "proc/4711/limits", limits);
    write(root, "sys/devices/system/cpu/online", "0-7\n");
    for knob in ["isolated", "nohz_full"] {
        write(root, &format!("sys/devices/system/cpu/{knob}"), "1-7\n");
    }
    for core in 0..8 {
        let path = format!("sys/devices/system/cpu/cpu{core}/cpufreq/scaling_governor");
        write(root, &path, "performance\n");
    }
    write(root, "proc/irq/24/smp_affinity_list", "0\n");
    write(root, "proc/irq/24/eth0/unused", "");
    write(root, "proc/swaps", "Filename  Type  Size  Used  Priority\n");
}

#[test]
fn this_host_is_told_a_line_per_knob() {
    let (status, knobs) = check(None, "0");
    let lacks = knobs.values().any(|(state, _)| state == "lacks");
    assert_eq!(status, i32::from(lacks), "{knobs:?}");
    let readme = text("README.md");
    for name in knobs.keys() {
        assert!(readme.contains(&format!("### `{name}`")), "no section on {name}");
    }
}

#[test]
fn a_host_that_has_everything_passes_and_each_lack_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    tuned_host(root);
    let before = files(root);
    let (status, tuned) = check(Some(root), "1-7");
    assert_eq!(status, 0, "{tuned:?}");
    assert!(tuned.values().all(|(state, _)| state == "ok"), "{tuned:?}");
    assert_eq!(files(root), before, "it only reads");
    for (path, worse, knob) in [
        ("proc/sys/kernel/osrelease", "5.15.0", "kernel"),
        ("proc/sys/kernel/io_uring_disabled", "2\n", "kernel.io_uring_disabled"),
        ("proc/sys/net/core/somaxconn", "4096\n", "net.core.somaxconn"),
        ("proc/sys/net/ipv4/tcp_tw_reuse", "2\n", "net.ipv4.tcp_tw_reuse"),
        ("sys/devices/system/cpu/isolated", "2-7\n", "isolcpus"),
        ("sys/devices/system/cpu/nohz_full", "\n", "nohz_full"),
        ("sys/devices/system/cpu/cpu3/cpufreq/scaling_governor", "schedutil\n", "governor"),
        ("proc/irq/24/smp_affinity_list", "0-7\n", "interrupts"),
        ("proc/swaps", "Filename\n/dev/sda2 partition 1 0 -2\n", "swap"),
    ] {
        let good = fs::read_to_string(root.join(path)).unwrap();
        fs::write(root.join(path), worse).unwrap();
        let (status, knobs) = check(Some(root), "1-7");
        let lacking: Vec<_> = knobs.iter().filter(|(_, (state, _))| state == "lacks").collect();
        assert_eq!(status, 1, "{path}: {knobs:?}");
        assert_eq!(lacking.len(), 1, "{path}: {lacking:?}");
        assert_eq!(lacking[0].0, knob);
        fs::write(root.join(path), good).unwrap();
    }
    let (status, all) = check(Some(root), "all");
    assert_eq!((status, all["control core"].0.as_str()), (1, "lacks"));
}

#[test]
fn what_is_not_visible_is_said_and_is_no_lack() {
    let dir = tempfile::tempdir().unwrap();
    let (status, knobs) = check(Some(dir.path()), "1-7");
    assert_eq!(status, 0, "{knobs:?}");
    for (name, (state, found)) in &knobs {
        assert!(state == "-" && found.starts_with("not visible here"), "{name}: {state} {found}");
    }
}

#[test]
fn settings_check_and_readme_name_the_same_sysctls() {
    let (conf, script, readme) = (text("99-millrace.conf"), text("check.sh"), text("README.md"));
    let mut set: Vec<_> = assignments(&conf)
        .into_iter()
        .map(|(key, value)| (key.trim_start_matches('-').to_owned(), value.to_owned()))
        .collect();
    let mut checked: Vec<_> = script
        .lines()
        .filter_map(|line| line.strip_prefix("check_sysctl "))
        .map(|rest| rest.split_whitespace().collect::<Vec<_>>())
        .map(|words| (words[0].to_owned(), words[2].to_owned()))
        .collect();
    let mut explained: Vec<_> = readme
        .lines()
        .filter_map(|line| line.strip_prefix("### `")?.split_once("` = "))
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect();
    for list in [&mut set, &mut checked, &mut explained] {
        list.sort();
    }
    assert!(!set.is_empty());
    assert_eq!(set, checked);
    assert_eq!(set, explained);
}

#[test]
fn files_wanted_are_those_the_server_wants() {
    let dir = tempfile::tempdir().unwrap();
    tuned_host(dir.path());
    let found = check(Some(dir.path()), "1-7").1["open files"].1.clone();
    let mut config = Config::from_settings(&[]).unwrap();
    config.cores = (1..8).collect();
    let limits = Limits::new(&config);
    assert!(found.contains(&format!(" {} wanted", limits.files)), "{found}");
    assert!(unit_value("LimitNOFILE").parse::<u64>().unwrap() >= limits.files);
    assert_eq!(unit_value("LimitMEMLOCK"), "infinity");
}

#[test]
fn the_unit_gives_the_stop_its_time_and_leaves_a_bad_configuration_alone() {
    let drain = Config::from_settings(&[]).unwrap().drain_timeout;
    let stop: u64 = unit_value("TimeoutStopSec").parse().unwrap();
    assert!(stop > drain.as_secs(), "{stop} s for {drain:?}");
    assert_eq!(unit_value("KillSignal"), "SIGTERM");
    assert_eq!(unit_value("Restart"), "on-failure");
    assert_eq!(unit_value("RestartPreventExitStatus"), "2");
    assert_eq!(unit_value("WorkingDirectory"), "%S/millrace");
}

#[test]
fn the_seccomp_profile_allows_io_uring_and_refuses_by_default() {
    let profile: Value = serde_json::from_str(&text("seccomp.json")).unwrap();
    assert_eq!(profile["defaultAction"], "SCMP_ACT_ERRNO");
    let rules = profile["syscalls"].as_array().unwrap();
    let allowing = |name: &str| {
        let names = |rule: &&Value| rule["names"].as_array().unwrap().iter().any(|n| n == name);
        let allows = |rule: &&Value| rule["action"] == "SCMP_ACT_ALLOW";
        rules.iter().filter(allows).filter(names).count()
    };
    for call in ["io_uring_setup", "io_uring_enter", "io_uring_register"] {
        assert_eq!(allowing(call), 1, "{call}");
    }
    // Some of what Docker's default refuses a container without capabilities.
    for call in ["bpf", "clone3", "keyctl", "mount", "perf_event_open", "setns", "unshare"] {
        assert_eq!(allowing(call), 0, "{call}");
    }
}
