//! What the kernel says about the host and about the server's process. Nothing here holds an
//! argument or a variable of a process.

#![expect(clippy::disallowed_methods, reason = "a command, without an executor")]

use std::fs::File;
use std::io::{self, Read as _};

use crate::control::COMMIT;

/// Most bytes of one file: interrupts of hundreds of CPUs take a few hundred KiB.
const FILE_BYTES_MAX: u64 = 2 << 20;
/// Most threads that are looked at.
const THREADS_MAX: usize = 512;

/// Files of the host.
const HOST: &[&str] = &[
    "/proc/loadavg",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/interrupts",
    "/proc/softirqs",
    "/proc/diskstats",
    "/proc/net/softnet_stat",
    "/proc/net/dev",
    "/proc/net/snmp",
    "/proc/net/netstat",
    "/proc/net/sockstat",
    "/proc/pressure/cpu",
    "/proc/pressure/io",
    "/proc/pressure/memory",
];

/// Kernel settings that `tuning/` or `check` judge, and their neighbours, below `/proc/sys`.
const SYSCTLS: &[&str] = &[
    "fs/file-max",
    "fs/nr_open",
    "kernel/io_uring_disabled",
    "kernel/numa_balancing",
    "kernel/pid_max",
    "kernel/threads-max",
    "net/core/busy_poll",
    "net/core/busy_read",
    "net/core/netdev_budget",
    "net/core/netdev_max_backlog",
    "net/core/rmem_max",
    "net/core/somaxconn",
    "net/core/wmem_max",
    "net/ipv4/ip_local_port_range",
    "net/ipv4/tcp_congestion_control",
    "net/ipv4/tcp_max_syn_backlog",
    "net/ipv4/tcp_mem",
    "net/ipv4/tcp_rmem",
    "net/ipv4/tcp_slow_start_after_idle",
    "net/ipv4/tcp_syncookies",
    "net/ipv4/tcp_tw_reuse",
    "net/ipv4/tcp_wmem",
    "vm/dirty_background_ratio",
    "vm/dirty_ratio",
    "vm/max_map_count",
    "vm/overcommit_memory",
    "vm/swappiness",
];

/// Files of `/sys`.
const SYSTEM: &[&str] = &[
    "/sys/kernel/mm/transparent_hugepage/enabled",
    "/sys/devices/system/clocksource/clocksource0/current_clocksource",
    "/sys/devices/system/cpu/online",
    "/sys/devices/system/cpu/isolated",
    "/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor",
    "/sys/devices/system/node/online",
];

/// Files of a process below `/proc/PID`.
const PROCESS: &[&str] =
    &["status", "limits", "cgroup", "stat", "statm", "io", "schedstat", "smaps_rollup"];

/// Files of a control group (version 2).
const CGROUP: &[&str] = &[
    "cpu.max",
    "cpu.stat",
    "cpuset.cpus.effective",
    "io.max",
    "io.stat",
    "memory.current",
    "memory.events",
    "memory.high",
    "memory.max",
    "pids.current",
    "pids.max",
];

/// Versions of what the server runs on.
pub(super) fn versions() -> String {
    let kernel = rustix::system::uname();
    let mut text = format!(
        "millrace {} ({} build, commit {})\nkernel {} {} {}\nC library {}\n",
        env!("CARGO_PKG_VERSION"),
        if cfg!(debug_assertions) { "debug" } else { "release" },
        COMMIT,
        kernel.release().to_string_lossy(),
        kernel.version().to_string_lossy(),
        kernel.machine().to_string_lossy(),
        c_library(),
    );
    let cpu = read_bounded("/proc/cpuinfo").unwrap_or_default();
    let model = cpu.lines().find(|line| line.starts_with("model name")).unwrap_or("unknown CPU");
    let cpus = cpu.lines().filter(|line| line.starts_with("processor")).count();
    text.push_str(&format!("{cpus} CPUs, {model}\n"));
    section(&mut text, "/etc/os-release");
    text
}

/// The name and version of the C library that is in use.
#[cfg(target_env = "gnu")]
#[expect(unsafe_code, reason = "the C library alone knows its version")]
fn c_library() -> String {
    // SAFETY: `gnu_get_libc_version(3)` takes nothing and returns a pointer to a static string that
    // ends in NUL and never changes.
    let version = unsafe { std::ffi::CStr::from_ptr(libc::gnu_get_libc_version()) };
    format!("glibc {}", version.to_string_lossy())
}

#[cfg(not(target_env = "gnu"))]
fn c_library() -> String {
    "not glibc".to_owned()
}

/// The files above, of the host and of the process `server`.
pub(super) fn read(server: Option<u32>) -> String {
    let mut text = String::new();
    HOST.iter().for_each(|path| section(&mut text, path));
    for name in SYSCTLS {
        line(&mut text, &format!("/proc/sys/{name}"));
    }
    SYSTEM.iter().for_each(|path| line(&mut text, path));
    let Some(pid) = server else { return text };
    for name in PROCESS {
        section(&mut text, &format!("/proc/{pid}/{name}"));
    }
    let group = read_bounded(&format!("/proc/{pid}/cgroup")).unwrap_or_default();
    // `0::/PATH`: version 2.
    if let Some(path) = group.lines().find_map(|line| line.strip_prefix("0::")) {
        let directory = format!("/sys/fs/cgroup{}", path.trim_end_matches('/'));
        CGROUP.iter().for_each(|name| section(&mut text, &format!("{directory}/{name}")));
    }
    threads(&mut text, pid);
    text
}

/// Name, CPUs and times of each thread.
fn threads(text: &mut String, pid: u32) {
    let tasks = format!("/proc/{pid}/task");
    let entries = std::fs::read_dir(&tasks).into_iter().flatten().filter_map(Result::ok);
    text.push_str("== threads: stat, then what they may run on\n");
    for entry in entries.take(THREADS_MAX) {
        let task = entry.path();
        let read =
            |name: &str| read_bounded(&task.join(name).to_string_lossy()).unwrap_or_default();
        let status = read("status");
        let cpus = status.lines().find(|line| line.starts_with("Cpus_allowed_list"));
        text.push_str(&format!("{} {}\n", read("stat").trim_end(), cpus.unwrap_or_default()));
    }
}

/// Adds a file under its path.
fn section(text: &mut String, path: &str) {
    match read_bounded(path) {
        Ok(found) => text.push_str(&format!("== {path}\n{}\n", found.trim_end())),
        Err(error) => text.push_str(&format!("== {path}: {error}\n")),
    }
}

/// Adds a file of one line.
fn line(text: &mut String, path: &str) {
    match read_bounded(path) {
        Ok(found) => text.push_str(&format!("{path} = {}\n", found.trim_end())),
        Err(error) => text.push_str(&format!("{path}: {error}\n")),
    }
}

fn read_bounded(path: &str) -> io::Result<String> {
    let mut bytes = Vec::new();
    File::open(path)?.take(FILE_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_and_its_host_are_described() {
        let text = read(Some(std::process::id()));
        for part in ["== /proc/interrupts\n", "/proc/sys/net/core/somaxconn = ", "VmRSS:"] {
            assert!(text.contains(part), "{part}");
        }
        assert!(text.contains("Max open files") && text.contains("Cpus_allowed_list"));
        assert!(!read(None).contains("VmRSS:"));
        let versions = versions();
        for part in ["millrace ", "kernel ", "C library glibc 2.", " CPUs, "] {
            assert!(versions.contains(part), "{part}: {versions}");
        }
    }
}
