//! What `tuning/` says: goal, its files agree with each other and with the server, the check changes
//! nothing, and what is applied can be undone. Method: they are read as text and by the tools that
//! know their languages; `check.sh` looks at this host, and at made-up ones, which `apply.sh` tunes.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use millrace::internals::config::Config;
use millrace::internals::limits::Limits;
use serde_json::Value;

use crate::support::needs::{Need, allowed, skip};
use crate::support::{Server, files};

fn tuning(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tuning").join(name)
}

fn text(name: &str) -> String {
    fs::read_to_string(tuning(name)).unwrap()
}

/// What `check.sh` says of each knob: `ok`, `lacks` or `-`, and what was found.
type Knobs = BTreeMap<String, (String, String)>;

/// A script of `tuning/` with a clean environment but for these settings.
fn script(name: &str, root: Option<&Path>, settings: &[(&str, &str)]) -> Command {
    let mut command = Command::new("sh");
    command.arg(tuning(name)).env_clear().env("PATH", std::env::var_os("PATH").unwrap());
    command.env("CHECK_ROOT", root.unwrap_or(Path::new(""))).envs(settings.iter().copied());
    command
}

/// The exit status of `check.sh`, and its lines.
fn check(root: Option<&Path>, settings: &[(&str, &str)]) -> (i32, Knobs) {
    read(&script("check.sh", root, settings).output().unwrap())
}

fn read(output: &Output) -> (i32, Knobs) {
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    let printed = String::from_utf8(output.stdout.clone()).unwrap();
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

/// The value of `name` in what a process gets as its environment or command line.
fn process_file(words: &[&str]) -> String {
    words.iter().map(|word| format!("{word}\0")).collect()
}

/// A host of eight CPUs that lacks nothing for the server that runs on it with `CORES=1-7`.
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
    write(root, "proc/4711/environ", &process_file(&["HOME=/", "MILLRACE_CORES=1-7", "CORES=17"]));
    write(root, "proc/4711/cmdline", &process_file(&["/usr/bin/millrace"]));
    write(root, "proc/4711/task/4799/comm", "millrace-signal\n");
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
    write(root, "proc/cmdline", "BOOT_IMAGE=/vmlinuz quiet\n");
    let nic = "sys/class/net/eth0";
    write(root, &format!("{nic}/operstate"), "up\n");
    write(root, &format!("{nic}/device/numa_node"), "0\n");
    for queue in 0..2 {
        write(root, &format!("{nic}/queues/rx-{queue}/rps_cpus"), "00\n");
        write(root, &format!("{nic}/queues/tx-{queue}/xps_cpus"), ["55\n", "aa\n"][queue]);
    }
    // Without hardware behind it.
    write(root, "sys/class/net/lo/operstate", "up\n");
    write(root, "sys/devices/system/node/node0/cpulist", "0-7\n");
    let clocks = "sys/devices/system/clocksource/clocksource0";
    write(root, &format!("{clocks}/current_clocksource"), "tsc\n");
    write(root, &format!("{clocks}/available_clocksource"), "tsc hpet acpi_pm\n");
    let pages = "sys/kernel/mm/transparent_hugepage/enabled";
    write(root, pages, "always [madvise] never\n");
    let flaws = "sys/devices/system/cpu/vulnerabilities";
    write(root, &format!("{flaws}/meltdown"), "Not affected\n");
    write(root, &format!("{flaws}/spectre_v1"), "Mitigation: usercopy barriers\n");
}

/// One thing that is worse than on a tuned host: the file, its text, the knob that is lacking, and
/// whether `apply.sh` can mend it.
const WORSE: &[(&str, &str, &str, bool)] = &[
    ("proc/sys/kernel/osrelease", "5.15.0", "kernel", false),
    ("proc/sys/kernel/io_uring_disabled", "2\n", "kernel.io_uring_disabled", true),
    ("proc/sys/net/core/somaxconn", "4096\n", "net.core.somaxconn", true),
    ("proc/sys/net/ipv4/tcp_tw_reuse", "2\n", "net.ipv4.tcp_tw_reuse", true),
    ("sys/devices/system/cpu/isolated", "2-7\n", "isolcpus", false),
    ("sys/devices/system/cpu/nohz_full", "\n", "nohz_full", false),
    ("sys/devices/system/cpu/cpu3/cpufreq/scaling_governor", "schedutil\n", "governor", true),
    ("proc/irq/24/smp_affinity_list", "0-7\n", "interrupts", true),
    ("proc/swaps", "Filename\n/dev/sda2 partition 1 0 -2\n", "swap", false),
    ("proc/815/comm", "irqbalance\n", "irqbalance", false),
    ("sys/class/net/eth0/queues/rx-1/rps_cpus", "ff\n", "rps", true),
    ("sys/devices/system/node/node0/cpulist", "0-3\n", "numa", false),
    ("sys/class/net/eth0/device/numa_node", "1\n", "numa", false),
    (
        "sys/devices/system/clocksource/clocksource0/current_clocksource",
        "hpet\n",
        "clock source",
        true,
    ),
    ("sys/devices/system/cpu/vulnerabilities/meltdown", "Vulnerable\n", "mitigations", false),
    ("proc/4711/limits", "Max open files  1  1000  files\n", "open files", false),
];

/// Changes a tuned host; returns what undoes it.
fn worsen(root: &Path, path: &str, worse: &str) -> impl FnOnce() {
    let path = root.join(path);
    let good = fs::read_to_string(&path).ok();
    write(root, path.strip_prefix(root).unwrap().to_str().unwrap(), worse);
    if path.ends_with("numa_node") || path.ends_with("cpulist") {
        write(root, "sys/devices/system/node/node1/cpulist", "4-7\n");
    }
    let root = root.to_owned();
    move || {
        match good {
            Some(good) => fs::write(&path, good).unwrap(),
            None => fs::remove_dir_all(path.parent().unwrap()).unwrap(),
        }
        let _if_there = fs::remove_dir_all(root.join("sys/devices/system/node/node1"));
    }
}

#[test]
fn this_host_is_told_a_line_per_knob() {
    let (status, knobs) = check(None, &[("CORES", "17"), ("MILLRACE_CORES", "0")]);
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
    let (status, tuned) = check(Some(root), &[]);
    assert_eq!(status, 0, "{tuned:?}");
    assert!(tuned.values().all(|(state, _)| state == "ok"), "{tuned:?}");
    assert_eq!(files(root), before, "it only reads");
    for (path, worse, knob, _) in WORSE {
        let mend = worsen(root, path, worse);
        let (status, knobs) = check(Some(root), &[]);
        let lacking: Vec<_> = knobs.iter().filter(|(_, (state, _))| state == "lacks").collect();
        assert_eq!(status, 1, "{path}: {knobs:?}");
        assert_eq!(lacking.len(), 1, "{path}: {lacking:?}");
        assert_eq!(lacking[0].0, knob);
        mend();
    }
    assert_eq!(files(root), before);
    // An irqbalance that was told to keep off.
    write(root, "proc/815/comm", "irqbalance\n");
    write(root, "proc/815/environ", &process_file(&["IRQBALANCE_BANNED_CPULIST=1-7"]));
    assert_eq!(check(Some(root), &[]).1["irqbalance"].0, "ok");
    write(root, "proc/cmdline", "quiet mitigations=off\n");
    write(root, "sys/devices/system/cpu/vulnerabilities/meltdown", "Vulnerable\n");
    assert_eq!(check(Some(root), &[]).1["mitigations"].0, "ok");
}

/// Cards with queues: how many there should be, and which CPU sends to which.
#[test]
fn the_queues_of_a_card_are_judged_by_the_cpus_that_handle_them() {
    for (cores, receive, maps, lacking) in [
        ("1-7", 1, &["01"][..], &[][..]),
        ("2-7", 1, &["01"], &["nic queues"]),
        ("2-7", 2, &["55", "aa"], &[]),
        ("2-7", 4, &["55", "aa"], &[]),
        // Without a control core, the cores themselves handle them.
        ("all", 2, &["55", "aa"], &["nic queues"]),
        ("all", 8, &["55", "aa"], &[]),
        ("1-7", 2, &["00", "00"], &["xps"]),
        ("1-7", 2, &["00", "01"], &[]),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        tuned_host(root);
        let queues = "sys/class/net/eth0/queues";
        fs::remove_dir_all(root.join(queues)).unwrap();
        for queue in 0..receive {
            write(root, &format!("{queues}/rx-{queue}/rps_cpus"), "00\n");
        }
        for (queue, map) in maps.iter().enumerate() {
            write(root, &format!("{queues}/tx-{queue}/xps_cpus"), map);
        }
        let environ = process_file(&[&format!("MILLRACE_CORES={cores}")]);
        write(root, "proc/4711/environ", &environ);
        let (_, knobs) = check(Some(root), &[]);
        let found: Vec<_> = ["nic queues", "rps", "xps"]
            .into_iter()
            .filter(|knob| knobs[*knob].0 == "lacks")
            .collect();
        assert_eq!(found, lacking, "{cores}, {receive} queues, {maps:?}: {knobs:?}");
    }
}

/// With `CONNECTION_PLACEMENT=cpu` a connection is served where its packets are handled.
#[test]
fn packets_belong_on_the_cores_where_they_place_connections() {
    for (handlers, steering, lacking) in [
        (&["1", "2", "3"][..], "00\n", &[][..]),
        (&["1-3", "1-3", "1-3"], "0e\n", &[]),
        (&["1", "2", "2"], "0e\n", &["interrupts"]),
        (&["0", "0", "0"], "00\n", &["interrupts"]),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        tuned_host(root);
        let words = ["MILLRACE_CORES=1-3", "MILLRACE_CONNECTION_PLACEMENT=cpu"];
        write(root, "proc/4711/environ", &process_file(&words));
        for (nth, cpus) in handlers.iter().enumerate() {
            let irq = format!("proc/irq/{}", 24 + nth);
            write(root, &format!("{irq}/smp_affinity_list"), &format!("{cpus}\n"));
            write(root, &format!("{irq}/eth0/unused"), "");
            let queue = format!("sys/class/net/eth0/queues/rx-{nth}");
            write(root, &format!("{queue}/rps_cpus"), steering);
        }
        let (_, knobs) = check(Some(root), &[]);
        let found: Vec<_> = ["interrupts", "irqbalance", "nic queues", "rps"]
            .into_iter()
            .filter(|knob| knobs[*knob].0 == "lacks")
            .collect();
        assert_eq!(found, lacking, "{handlers:?}: {knobs:?}");
        let before = files(root);
        let applied = apply(root, &["--apply"], &[]);
        assert!(said(&applied).contains("belong on CORES"), "{}", said(&applied));
        assert_eq!(files(root), before);
    }
}

/// Wherever the server has `CORES` from, in the server's own order.
#[test]
fn the_settings_are_those_of_the_running_server() {
    let with_file = "MILLRACE_CONFIG=m.toml";
    let as_root = "MILLRACE_CONFIG=/etc/m.toml";
    let flag = &["millrace", "--cores", "3", "serve"][..];
    for (cmdline, environ, toml, cores) in [
        (&["millrace"][..], &["A=b"][..], "", "0,1,2,3,4,5,6,7"),
        (&["millrace"], &["CORES=2"], "", "2"),
        (&["millrace"], &["CORES=2", "MILLRACE_CORES=1-3"], "", "1,2,3"),
        (&["millrace"], &[with_file], "cores = \"4-5\" # two\n", "4,5"),
        (&["millrace"], &[as_root], "store = 'null:'\ncores=[1, 6]\n", "1,6"),
        (&["millrace", "--config=m.toml"], &["A=b"], "cores = 7\n", "7"),
        (&["millrace", "--config", "m.toml"], &["CORES=5"], "cores = 7\n", "5"),
        (flag, &["MILLRACE_CORES=1"], "", "3"),
        (&["millrace", "--cores=3-4"], &["MILLRACE_CORES=1"], "", "3,4"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        tuned_host(root);
        write(root, "proc/4711/cmdline", &process_file(cmdline));
        write(root, "proc/4711/environ", &process_file(environ));
        write(root, "proc/4711/cwd/m.toml", toml);
        write(root, "proc/4711/root/etc/m.toml", toml);
        // The shell's own are another's.
        let (_, knobs) = check(Some(root), &[("MILLRACE_CORES", "6")]);
        let expected = format!("CORES {cores}, of process 4711");
        assert_eq!(knobs["settings"].1, expected, "{cmdline:?} {environ:?} {toml}");
        // And whatever they say, the threads that run have the last word.
        // The kernel cuts their names; their helpers have the same, and run elsewhere.
        for (task, name, cpus) in [
            ("4712", "millrace-core-2", "2"),
            ("4713", "millrace-core-1", "11"),
            ("4714", "millrace-core-2", "0"),
            ("4715", "millrace-core-1", "0,3-4"),
            ("4716", "millrace-contro", "5"),
        ] {
            write(root, &format!("proc/4711/task/{task}/comm"), &format!("{name}\n"));
            let status = format!("Name:\tx\nCpus_allowed_list:\t{cpus}\n");
            write(root, &format!("proc/4711/task/{task}/status"), &status);
        }
        let (_, knobs) = check(Some(root), &[]);
        assert_eq!(knobs["settings"].1, "CORES 2,11, of process 4711");
    }
}

/// Of several servers the cores of all count, and what only looks at them is none.
#[test]
fn the_cores_of_all_servers_are_kept_free() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    tuned_host(root);
    write(root, "proc/12/comm", "millrace\n");
    write(root, "proc/12/cmdline", &process_file(&["millrace", "top", "--cores=5"]));
    // By itself it is no server either.
    fs::remove_file(root.join("proc/4711/comm")).unwrap();
    let (_, knobs) = check(Some(root), &[("MILLRACE_CORES", "6")]);
    assert_eq!(knobs["settings"].1, "CORES 6, of this shell and the defaults");
    write(root, "proc/4711/comm", "millrace\n");
    // One that starts has no cores yet.
    write(root, "proc/1000/comm", "millrace\n");
    write(root, "proc/1000/environ", &process_file(&["MILLRACE_CORES=7"]));
    write(root, "proc/1000/task/1001/comm", "millrace-signal\n");
    let (_, knobs) = check(Some(root), &[]);
    assert_eq!(knobs["settings"].1, "CORES 7, of process 1000");
    for (pid, core) in [("4711", "2"), ("4811", "3")] {
        write(root, &format!("proc/{pid}/comm"), "millrace\n");
        write(root, &format!("proc/{pid}/task/9/comm"), "millrace-signal\n");
        write(root, &format!("proc/{pid}/task/1/comm"), &format!("millrace-core-{core}\n"));
        let status = format!("Cpus_allowed_list:\t{core}\n");
        write(root, &format!("proc/{pid}/task/1/status"), &status);
    }
    let (_, knobs) = check(Some(root), &[]);
    assert_eq!(knobs["settings"].1, "CORES 2,3, of process 4711");
    let (_, knobs) = read(&script("check.sh", Some(root), &[]).arg("4811").output().unwrap());
    assert!(knobs["control core"].1.ends_with("beside CORES 3"), "{knobs:?}");
}

/// A real one, with a real TOML file.
#[test]
fn a_running_server_is_found_with_its_settings() {
    let dir = std::sync::Arc::new(tempfile::tempdir().unwrap());
    fs::write(dir.path().join("m.toml"), "max_workers = 7\nmax_connections = 100\n").unwrap();
    let server = Server::start_in(dir, &[("MILLRACE_CONFIG", "m.toml")]);
    let mut command = script("check.sh", None, &[]);
    let pid = server.pid().to_string();
    let (_, knobs) = read(&command.arg(&pid).output().unwrap());
    assert_eq!(knobs["settings"].1, format!("CORES 0, of process {pid}"));
    let mut config = Config::from_settings(&[]).unwrap();
    (config.max_workers, config.max_connections) = (7, 100);
    config.cores = vec![0];
    let wanted = format!(" {} wanted", Limits::new(&config).files);
    assert!(knobs["open files"].1.contains(&wanted), "{knobs:?}");
    assert_eq!(server.stop().status, 0);
}

/// Rows: a line of the TOML file; the connections that count.
#[test]
fn numbers_are_read_as_toml_has_them_and_never_stop_the_check() {
    let default = Config::from_settings(&[]).unwrap().max_connections;
    for (line, connections) in [
        ("max_connections = 20_000 # many", 20_000),
        ("max_connections = 20000", 20_000),
        ("max_connections = \"2000\"", 2_000),
        ("max_connections = \"many\"", default),
        ("max_connections = 0x10", default),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        tuned_host(root);
        write(root, "proc/4711/environ", &process_file(&["MILLRACE_CONFIG=m.toml"]));
        write(root, "proc/4711/cwd/m.toml", &format!("cores = \"1-7\"\n{line}\n"));
        let mut config = Config::from_settings(&[]).unwrap();
        (config.max_connections, config.cores) = (connections, (1..8).collect());
        let wanted = format!(" {} wanted", Limits::new(&config).files);
        let (_, knobs) = check(Some(root), &[]);
        assert!(knobs["open files"].1.contains(&wanted), "{line}: {knobs:?}");
        assert!(knobs.contains_key("swap"), "{line}: the last one is looked at");
    }
}

#[test]
fn what_is_not_visible_is_said_and_is_no_lack() {
    let dir = tempfile::tempdir().unwrap();
    let (status, knobs) = check(Some(dir.path()), &[]);
    assert_eq!(status, 0, "{knobs:?}");
    for (name, (state, found)) in &knobs {
        assert!(state == "-" && found.starts_with("not visible here"), "{name}: {state} {found}");
    }
}

fn apply(root: &Path, args: &[&str], settings: &[(&str, &str)]) -> Output {
    script("apply.sh", Some(root), settings).args(args).output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&[&*output.stdout, &*output.stderr].concat()).into_owned()
}

#[test]
fn what_is_lacking_is_applied_after_a_look_and_undone() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    tuned_host(root);
    let mends: Vec<_> = WORSE.iter().filter(|(.., mends)| *mends).collect();
    for (path, worse, ..) in &mends {
        write(root, path, worse);
    }
    let before = files(root);
    // By itself it only shows.
    let shown = apply(root, &[], &[]);
    assert!(shown.status.success(), "{}", said(&shown));
    assert_eq!(files(root), before);
    for (path, ..) in &mends {
        assert!(said(&shown).contains(&format!("to /{path} (now ")), "{path}: {}", said(&shown));
    }
    assert_eq!(said(&shown).lines().count(), mends.len(), "{}", said(&shown));

    let saved = "run/millrace-tuning/saved";
    for _ in 0..2 {
        let applied = apply(root, &["--apply"], &[]);
        assert!(applied.status.success(), "{}", said(&applied));
        let mut now = files(root);
        // Twice over, what was saved first stays.
        assert_eq!(now.remove(saved).unwrap().iter().filter(|b| **b == b'\n').count(), mends.len());
        assert_eq!(now["sys/class/net/eth0/queues/rx-1/rps_cpus"], b"1\n");
        let (status, knobs) = check(Some(root), &[]);
        assert_eq!(status, 0, "{knobs:?}");
    }
    let undone = apply(root, &["--undo"], &[]);
    assert!(undone.status.success(), "{}", said(&undone));
    assert_eq!(files(root), before);
    let nothing = apply(root, &["--undo"], &[]);
    assert!(nothing.status.success() && said(&nothing).contains("nothing was applied"));
}

#[test]
fn irqbalance_is_stopped_and_started_again() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    tuned_host(root);
    write(root, "proc/815/comm", "irqbalance\n");
    write(root, "systemctl", "#!/bin/sh\necho \"$@\" >>\"$CHECK_ROOT/asked\"\n");
    let systemctl = root.join("systemctl");
    fs::set_permissions(&systemctl, fs::Permissions::from_mode(0o755)).unwrap();
    let settings = [("SYSTEMCTL", systemctl.to_str().unwrap())];
    assert!(said(&apply(root, &[], &settings)).contains("would stop irqbalance"));
    assert!(!root.join("asked").exists());
    for args in ["--apply", "--undo"] {
        let done = apply(root, &[args], &settings);
        assert!(done.status.success(), "{}", said(&done));
    }
    let asked = fs::read_to_string(root.join("asked")).unwrap();
    assert_eq!(asked, "stop irqbalance\nstart irqbalance\n");
}

/// The kernel refuses some values: that is said, the rest is done, and there is nothing to undo.
#[test]
fn what_the_kernel_refuses_is_said_and_not_saved() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    tuned_host(root);
    write(root, "proc/sys/net/core/somaxconn", "4096\n");
    // A file that is read and takes nothing.
    fs::remove_file(root.join("proc/irq/24/smp_affinity_list")).unwrap();
    write(root, "proc/irq/24/effective_affinity_list", "3\n");
    symlink("/proc/version", root.join("proc/irq/24/smp_affinity_list")).unwrap();
    let done = apply(root, &["--apply"], &[]);
    assert_eq!(done.status.code(), Some(1), "{}", said(&done));
    assert!(
        said(&done).contains("/proc/irq/24/smp_affinity_list does not take 0"),
        "{}",
        said(&done)
    );
    assert_eq!(fs::read_to_string(root.join("proc/sys/net/core/somaxconn")).unwrap(), "65535\n");
    let path = root.join("run/millrace-tuning/saved");
    let saved = fs::read_to_string(&path).unwrap();
    assert_eq!(saved, "/proc/sys/net/core/somaxconn\t4096\n");

    // Undone: what is gone is skipped, and only what is refused stays.
    let refused = "/proc/irq/24/smp_affinity_list\t3\n";
    let gone = "/proc/irq/99/smp_affinity_list\t3\n";
    fs::write(&path, [gone, refused, &saved].concat()).unwrap();
    let done = apply(root, &["--undo"], &[]);
    assert_eq!(done.status.code(), Some(1), "{}", said(&done));
    assert!(said(&done).contains("/proc/irq/99/smp_affinity_list: gone"), "{}", said(&done));
    assert_eq!(fs::read_to_string(root.join("proc/sys/net/core/somaxconn")).unwrap(), "4096\n");
    assert_eq!(fs::read_to_string(&path).unwrap(), refused);
    fs::remove_file(root.join("proc/irq/24/smp_affinity_list")).unwrap();
    assert!(apply(root, &["--undo"], &[]).status.success());
    assert!(!path.exists());

    // So it is when all that was wanted had been refused, which leaves nothing saved.
    fs::write(&path, "").unwrap();
    let nothing = apply(root, &["--undo"], &[]);
    assert!(nothing.status.success() && said(&nothing).contains("nothing was applied"));
    assert!(!path.exists());
}

#[test]
fn wrong_arguments_write_nothing() {
    let dir = tempfile::tempdir().unwrap();
    tuned_host(dir.path());
    let before = files(dir.path());
    for args in [&["--aply"][..], &["--apply", "--undo"], &["now"]] {
        let done = apply(dir.path(), args, &[]);
        assert_eq!(done.status.code(), Some(2), "{}", said(&done));
        assert!(said(&done).contains("--apply or --undo"), "{}", said(&done));
    }
    assert_eq!(files(dir.path()), before);
}

/// Every shell script of the repository that users or operators run.
#[test]
fn shellcheck_finds_nothing_in_the_scripts() {
    if !allowed(&["shellcheck", "--version"]) {
        return skip(Need::Shellcheck, "there is no shellcheck here");
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut scripts = Vec::new();
    for dir in ["tuning", "packaging", "packaging/deb", "tests/fresh", ".ci"] {
        for entry in fs::read_dir(root.join(dir)).unwrap() {
            let path = entry.unwrap().path();
            // host.sh is read by others and has no first line.
            if path.is_file() && fs::read(&path).unwrap().starts_with(b"#!")
                || path.ends_with("host.sh")
            {
                scripts.push(path);
            }
        }
    }
    assert!(scripts.len() >= 12, "{scripts:?}");
    let mut shellcheck = Command::new("shellcheck");
    shellcheck.args(["-x", "-P", "."]).args(&scripts).current_dir(root);
    let checked = shellcheck.output().unwrap();
    assert!(checked.status.success(), "{}", said(&checked));
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

/// Rows: settings of the server; in its environment, or in its TOML file as well as that has them.
#[test]
fn files_wanted_are_those_the_server_wants() {
    let spool = ("SPOOL_DIR", "/spool");
    let two = ("LISTEN", "127.0.0.1:1,[::1]:2");
    for (settings, toml) in [
        (&[][..], ""),
        (&[("MAX_WORKERS", "7")], "max_workers = 7"),
        (&[two], "listen = [\"127.0.0.1:1\", \"[::1]:2\"]"),
        (&[two], "listen = '127.0.0.1:1, [::1]:2'"),
        (&[spool], "spool_dir = \"/spool\""),
        (&[spool, ("SPOOL_MAX", "4GiB")], "spool_dir = \"/spool\"\nspool_max = \"4 gib\""),
        (&[spool, ("SPOOL_MAX", "1.5 GB")], "spool_dir = \"/spool\"\nspool_max = 1_500_000_000"),
        (&[spool, two, ("SPOOL_SEGMENT", "100000001")], ""),
        (&[spool, ("SPOOL_MAX", "2t"), ("SPOOL_SEGMENT", "1GB")], ""),
        (&[("SPOOL_MAX", "4GiB")], "spool_max = \"4GiB\""),
    ] {
        let mut config = Config::from_settings(settings).unwrap();
        config.cores = (1..8).collect();
        let wanted = format!(" {} wanted", Limits::new(&config).files);
        let mut environ = vec!["MILLRACE_CORES=1-7".to_owned()];
        let in_file = vec![environ[0].clone(), "MILLRACE_CONFIG=m.toml".to_owned()];
        environ.extend(settings.iter().map(|(name, value)| format!("MILLRACE_{name}={value}")));
        let mut places = vec![(environ, "")];
        if !toml.is_empty() {
            places.push((in_file, toml));
        }
        for (environ, toml) in places {
            let dir = tempfile::tempdir().unwrap();
            tuned_host(dir.path());
            let environ: Vec<&str> = environ.iter().map(String::as_str).collect();
            write(dir.path(), "proc/4711/environ", &process_file(&environ));
            write(dir.path(), "proc/4711/cwd/m.toml", toml);
            let found = check(Some(dir.path()), &[]).1["open files"].1.clone();
            assert!(found.contains(&wanted), "{environ:?} {toml}: {found}, and not{wanted}");
        }
    }
    let mut config = Config::from_settings(&[]).unwrap();
    config.cores = (1..8).collect();
    assert!(unit_value("LimitNOFILE").parse::<u64>().unwrap() >= Limits::new(&config).files);
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
fn the_unit_waits_until_the_server_is_ready_and_checks_before() {
    let run = unit_value("ExecStart");
    assert_eq!(unit_value("Type"), "notify");
    assert_eq!(unit_value("ExecStartPre"), format!("{run} check --starting"));
    // The lock of the spool, credentials and the answer of the store, and the cores: 10, 45 and 30 s.
    // For an address, and for what is in the spool, the server asks for more.
    let waits: u64 = unit_value("TimeoutStartSec").strip_suffix("min").unwrap().parse().unwrap();
    assert!(waits * 60 > 2 * (10 + 45 + 30), "{waits} min");
    assert_eq!(unit_value("ExecReload"), "/bin/sh -c 'kill -HUP $MAINPID'");
    assert_eq!(unit_value("Environment"), "MILLRACE_CONFIG=/etc/millrace/millrace.toml");
    // Explained, and off.
    assert!(text("millrace.service").contains("\n#WatchdogSec="));
    let user = unit_value("User");
    assert!(text("millrace.sysusers").contains(&format!("\nu {user} - ")));
}

/// Most that `systemd-analyze security` may find, in tenths: the network, /proc/sys, and users of
/// the host that it can see.
const EXPOSURE_MAX: &str = "17";

#[test]
fn systemd_understands_the_unit_and_finds_little_to_restrict() {
    if !allowed(&["systemd-analyze", "--version"]) {
        return skip(Need::Systemd, "there is no systemd-analyze here");
    }
    let dir = tempfile::tempdir().unwrap();
    // It wants to see the binary.
    let unit = text("millrace.service").replace("/usr/local/bin/millrace", "/bin/true");
    let path = dir.path().join("millrace.service");
    let analyze = |args: &[&str], unit: &str| {
        fs::write(&path, unit).unwrap();
        let mut analyze = Command::new("systemd-analyze");
        analyze.args(args).arg(&path).env("SYSTEMD_LOG_LEVEL", "warning").output().unwrap()
    };
    let verify: &[&str] = &["verify", "--man=no"];
    let verified = analyze(verify, &unit);
    assert!(verified.status.success() && said(&verified).is_empty(), "{}", said(&verified));
    let misspelt = analyze(verify, &unit.replace("LimitNOFILE", "LimitNoFiles"));
    assert!(said(&misspelt).contains("LimitNoFiles"), "{}", said(&misspelt));

    let threshold = format!("--threshold={EXPOSURE_MAX}");
    let security: &[&str] = &["security", "--offline=yes", "--no-pager", &threshold];
    let judged = analyze(security, &unit);
    assert!(judged.status.success(), "{}", said(&judged));
    let bare = analyze(security, &unit.replace("CapabilityBoundingSet=\n", ""));
    assert!(!bare.status.success(), "{}", said(&bare));
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
