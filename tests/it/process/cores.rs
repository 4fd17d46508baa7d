//! Goal: every core is a server of its own, pinned, behind one address that no other server can
//! share.
//!
//! Method: `CORES=0,1`, the metrics by core, the keys of what was stored, and the kernel's view of
//! the threads. On a machine with one core there is nothing to see.

use std::collections::BTreeMap;

use crate::support::{Client, Metrics, Server, needs, request, run, wait_for};

fn two_cores(settings: &[(&str, &str)]) -> Option<Server> {
    let cores = needs::two_cores()?;
    Some(Server::start(&[&[("CORES", cores)], settings].concat()))
}

fn of_core(metrics: &Metrics, name: &str, core: usize) -> u64 {
    metrics.sum_where(name, &format!("core=\"{core}\""))
}

#[test]
fn connections_and_keys_are_spread_over_both_cores() {
    let Some(server) = two_cores(&[("NODE_ID", "node-a")]) else { return };
    let mut clients: Vec<Client> = (0..100).map(|_| server.connect()).collect();
    for _ in 0..2 {
        for client in &mut clients {
            client.send(request(br#"{"data":[1,2]}"#, ""));
        }
        for client in &mut clients {
            assert_eq!(client.reply().status, 200);
        }
    }
    let metrics = server.metrics();
    drop(clients);
    server.wait_idle();
    let mut keys: BTreeMap<usize, Vec<u64>> = BTreeMap::new();
    for key in server.stored().keys() {
        let stem = key.strip_suffix(".json").unwrap();
        let (nanos, rest) = stem.split_once("-node-a-").unwrap_or_else(|| panic!("{key}"));
        let (core, seq) = rest.split_once('-').unwrap();
        assert!(nanos.parse::<u64>().unwrap() > 1_700_000_000_000_000_000, "{key}");
        keys.entry(core.parse().unwrap()).or_default().push(seq.parse().unwrap());
    }
    assert_eq!(keys.keys().collect::<Vec<_>>(), [&0, &1]);
    for (core, mut seqs) in keys {
        // The kernel spreads by a hash of the addresses: of 100 connections, fewer than 20 would be
        // strange.
        let connections = of_core(&metrics, "millrace_connections", core);
        assert!(connections >= 20, "core {core} got {connections} of 100");
        assert_eq!(of_core(&metrics, "millrace_payloads_accepted_total", core), connections * 4);
        seqs.sort_unstable();
        assert_eq!(seqs, (0..connections * 4).collect::<Vec<_>>(), "one number a payload");
    }
    assert_eq!(metrics.requests(200), 200);
}

#[test]
fn each_core_has_its_own_workers() {
    let settings =
        [("MAX_WORKERS", "3"), ("MAX_QUEUE", "8"), ("ENQUEUE_WAIT", "0s"), ("FAULTS", "delay=3s")];
    let Some(server) = two_cores(&settings) else { return };
    // Until both cores are full; each takes 3 + 8, or a request more while workers take from the
    // ring.
    let full = |metrics: &Metrics| {
        [0, 1].iter().all(|core| {
            of_core(metrics, "millrace_workers_busy", *core) == 3
                && of_core(metrics, "millrace_queue_depth", *core) >= 4
        })
    };
    let mut clients = Vec::new();
    while !full(&server.metrics()) {
        let mut client = server.connect();
        assert!([200, 503].contains(&client.post(r#"{"data":[1,2,3,4]}"#).status));
        clients.push(client);
        assert!(clients.len() < 200, "both cores are never full");
    }
    let metrics = server.metrics();
    for core in [0, 1] {
        assert!(of_core(&metrics, "millrace_workers_busy", core) <= 3);
        assert!(of_core(&metrics, "millrace_queue_depth", core) <= 8);
    }
    drop(clients);
    server.wait_idle();
}

#[test]
fn core_threads_are_pinned_and_others_are_not() {
    let Some(server) = two_cores(&[]) else { return };
    assert_eq!(server.post_payloads(&["1"]).status, 200);
    server.wait_idle();
    let mut allowed: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for task in std::fs::read_dir(format!("/proc/{}/task", server.pid())).unwrap() {
        let path = task.unwrap().path();
        let comm = std::fs::read_to_string(path.join("comm")).unwrap();
        let status = std::fs::read_to_string(path.join("status")).unwrap();
        let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:\t"));
        allowed.entry(comm.trim().to_owned()).or_default().push(list.unwrap().to_owned());
    }
    for core in [0, 1] {
        // By this name alone scripts find them: their blocking threads, which inherit it, have
        // another one.
        let named = &allowed[&format!("millrace-core-{core}")];
        assert_eq!(*named, [core.to_string()], "{allowed:?}");
    }
    let blocking = &allowed["millrace-block"];
    let is_pinned = |list: &String| list == "0" || list == "1";
    assert!(blocking.len() == 2 && !blocking.iter().any(is_pinned), "{allowed:?}");
    let main = &allowed["millrace"][0];
    assert!(main.contains(['-', ',']), "the control executor is not pinned: {allowed:?}");
}

/// They may run on the CPU of a core.
#[test]
fn threads_that_nobody_waits_for_have_a_low_priority() {
    let server = Server::start(&[]);
    let nice = || -> BTreeMap<String, i32> {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", server.pid())).unwrap();
        let of_task = |task: std::io::Result<std::fs::DirEntry>| {
            let stat = std::fs::read_to_string(task.unwrap().path().join("stat")).unwrap();
            let (before, fields) = stat.rsplit_once(") ").unwrap();
            let (_, comm) = before.split_once('(').unwrap();
            // The 19th of proc_pid_stat(5), the 17th behind the name.
            (comm.to_owned(), fields.split(' ').nth(16).unwrap().parse().unwrap())
        };
        tasks.map(of_task).collect()
    };
    // Each thread gives way by itself when it begins.
    for background in ["millrace-disks", "millrace-memory", "millrace-reload"] {
        wait_for(background, || nice().get(background).is_some_and(|nice| *nice >= 10));
    }
    let nice = nice();
    assert!(nice["millrace-core-0"] == nice["millrace"] && nice["millrace"] < 10, "{nice:?}");
}

#[test]
fn one_port_for_all_cores_and_for_nobody_else() {
    let Some(server) = two_cores(&[]) else { return };
    assert_ne!(server.ingest.port(), 0);
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let local = format!("0100007F:{:04X} 00000000:0000 0A", server.ingest.port());
    assert_eq!(table.matches(&local).count(), 2, "a listener per core");
    let taken = server.ingest.to_string();
    let admin = server.admin.to_string();
    let dir = tempfile::tempdir().unwrap();
    for (name, settings) in [
        ("LISTEN", [("LISTEN", taken.as_str()), ("ADMIN_LISTEN", "off"), ("CORES", "0")]),
        ("ADMIN_LISTEN", [("LISTEN", "127.0.0.1:0"), ("ADMIN_LISTEN", &admin), ("CORES", "0")]),
    ] {
        let output = run(dir.path(), &[], &settings);
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(text.contains(name) && text.contains("taken by another listener"), "{text}");
    }
    assert_eq!(server.post_payloads(&["1"]).status, 200, "the first one does not notice");
    server.wait_idle();
}

#[test]
fn cores_this_process_may_not_use_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    for (cores, says) in [("4000", "4000"), ("1-0", "CORES"), ("0,x", "CORES")] {
        let settings = [("CORES", cores), ("LISTEN", "127.0.0.1:0"), ("ADMIN_LISTEN", "off")];
        let output = run(dir.path(), &[], &settings);
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{cores:?}: {text}");
        assert!(text.contains("CORES") && text.contains(says), "{cores:?}: {text}");
    }
}
