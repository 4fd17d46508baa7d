//! Kernel, io_uring, resource limits, cores and memory.

#![expect(clippy::disallowed_methods, reason = "runs before any executor")]

use std::fs;
use std::io;
use std::path::Path;

use bytesize::ByteSize;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::Finding;
use crate::config::{Config, core_list};
use crate::limits::Limits;
use crate::net;

pub(super) fn findings(config: &Config, limits: &Limits) -> Vec<Finding> {
    let cores = config.cores.len();
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let memlock = raise(Resource::Memlock, limits.memlock_bytes);
    let files = raise(Resource::Nofile, limits.files);
    let disabled = fs::read_to_string("/proc/sys/kernel/io_uring_disabled").unwrap_or_default();
    let ram = rustix::system::sysinfo();
    let ram_bytes = ram.totalram.saturating_mul(ram.mem_unit.into());
    let memory_max = cgroup_least("memory.max", |text| text.trim().parse::<u64>().ok());
    vec![
        judge_kernel(&release),
        judge_memlock(memlock, limits.memlock_bytes, limits.memlock_least),
        // Only the kernel knows whether seccomp, a sysctl or a security module lets io_uring through. Not by way of glommio,
        // which panics on a refusal and keeps the reason to itself.
        judge_io_uring(net::probe(), disabled.trim()),
        judge_files(files, limits, cores),
        judge_cores(&config.cores, cgroup_least("cpu.max", parse_cpu_max)),
        judge_memory(memory_max.unwrap_or(u64::MAX).min(ram_bytes), limits, cores),
    ]
}

/// Oldest kernel with all that [`crate::net`] needs of io_uring; glommio alone would run on 5.8.
const KERNEL_LEAST: (u32, u32) = (6, 1);

fn judge_kernel(release: &str) -> Finding {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|n| n.parse().ok());
    let (least_major, least_minor) = KERNEL_LEAST;
    match (numbers.next(), numbers.next()) {
        (Some(major), Some(minor)) if (major, minor) >= KERNEL_LEAST => {
            Finding::ok("kernel", release)
        }
        (Some(_), Some(_)) => Finding::fail(
            "kernel",
            format!(
                "{release} is older than {least_major}.{least_minor}, which io_uring needs here"
            ),
            "run on a newer kernel: Debian 12, Ubuntu 24.04, Amazon Linux 2023 or later have one",
        ),
        _ => Finding::warn(
            "kernel",
            format!("release {release:?} has no version number"),
            format!("make sure that it is {least_major}.{least_minor} or newer"),
        ),
    }
}

/// `disabled` is `/proc/sys/kernel/io_uring_disabled`, empty where the kernel has no such switch.
fn judge_io_uring(outcome: io::Result<()>, disabled: &str) -> Finding {
    use rustix::io::Errno;
    let Err(error) = outcome else {
        return Finding::ok("io_uring", "allowed");
    };
    let errno = error.raw_os_error().map(Errno::from_raw_os_error);
    let denied = matches!(errno, Some(Errno::PERM | Errno::ACCESS));
    let (why, remedy) = match (errno, disabled) {
        _ if denied && matches!(disabled, "1" | "2") => (
            format!("switched off on this host: kernel.io_uring_disabled = {disabled}"),
            "sysctl -w kernel.io_uring_disabled=0 (on the host; keep it in /etc/sysctl.d)",
        ),
        _ if denied => (
            format!("refused ({error}), most likely by a seccomp profile such as Docker's default"),
            "docker run --security-opt seccomp=tuning/seccomp.json (in millrace's source), or any profile that allows \
             io_uring_setup, io_uring_enter and io_uring_register",
        ),
        (Some(Errno::NOSYS), _) => (
            "not in this kernel, or hidden by a sandbox such as gVisor".into(),
            "run on a Linux kernel with CONFIG_IO_URING, outside such a sandbox",
        ),
        (Some(Errno::NOMEM), _) => (
            format!("refused for lack of locked memory ({error})"),
            "ulimit -l unlimited; docker run --ulimit memlock=-1; systemd LimitMEMLOCK=infinity",
        ),
        (Some(Errno::MFILE | Errno::NFILE), _) => {
            (format!("refused for lack of file descriptors ({error})"), "ulimit -n 65536")
        }
        _ => (
            format!("refused: {error}"),
            "strace -f -e io_uring_setup millrace check shows the call",
        ),
    };
    Finding::fail("io_uring", why, remedy)
}

/// Raises the soft limit to `wanted`, as far as the hard one goes; the soft limit in force then, `None` for
/// unlimited. Not simply to the hard limit: with a billion descriptors some libraries walk through them all.
fn raise(resource: Resource, wanted: u64) -> Option<u64> {
    let Rlimit { current, maximum } = getrlimit(resource);
    let soft = current?;
    let target = wanted.min(maximum.unwrap_or(u64::MAX));
    if soft >= target {
        return Some(soft);
    }
    match setrlimit(resource, Rlimit { current: Some(target), maximum }) {
        Ok(()) => Some(target),
        Err(_) => Some(soft),
    }
}

fn judge_memlock(limit: Option<u64>, wanted: u64, least: u64) -> Finding {
    let name = "locked memory";
    let kib = wanted.div_ceil(1024);
    let remedy = format!(
        "ulimit -l {kib} (hard limit: /etc/security/limits.conf); docker run --ulimit memlock=-1; \
         systemd LimitMEMLOCK=infinity"
    );
    let (limit, wanted) = match limit {
        None => return Finding::ok(name, "unlimited"),
        Some(limit) => (ByteSize(limit), ByteSize(wanted)),
    };
    if limit.0 < least {
        let least = ByteSize(least);
        Finding::fail(
            name,
            format!("{limit} allowed, the executors do not start under {least}"),
            remedy,
        )
    } else if limit < wanted {
        let detail = format!(
            "{limit} allowed, {wanted} wanted to register every core's I/O buffers; without, I/O \
             costs a little more"
        );
        Finding::warn(name, detail, remedy)
    } else {
        Finding::ok(name, format!("{limit} allowed, {wanted} wanted"))
    }
}

fn judge_files(limit: Option<u64>, limits: &Limits, cores: usize) -> Finding {
    let name = "open files";
    let (wanted, least) = (limits.files, limits.files_least);
    let remedy = format!(
        "ulimit -n {wanted} (hard limit: /etc/security/limits.conf); docker run --ulimit \
         nofile={wanted}; systemd LimitNOFILE={wanted}; or lower MAX_CONNECTIONS"
    );
    match limit {
        None => Finding::ok(name, "unlimited"),
        Some(limit) if limit < least => Finding::fail(
            name,
            format!("{limit} allowed, not even {least} for the workers and a few clients"),
            remedy,
        ),
        Some(limit) if limit < wanted => {
            let missing = (wanted - limit).div_ceil(cores as u64);
            let connections = (limits.connections as u64).saturating_sub(missing);
            let detail = format!(
                "{limit} allowed, {wanted} wanted; about {connections} of MAX_CONNECTIONS={} per \
                 core can be open",
                limits.connections
            );
            Finding::warn(name, detail, remedy)
        }
        Some(limit) => Finding::ok(name, format!("{limit} allowed, {wanted} wanted")),
    }
}

/// `quota` is in cores. A pinned executor whose cgroup is throttled stalls for whole scheduler periods.
fn judge_cores(cores: &[usize], quota: Option<f64>) -> Finding {
    let pinned = core_list(cores);
    match quota {
        Some(quota) if quota < cores.len() as f64 => Finding::warn(
            "cores",
            format!(
                "{pinned} pinned, but a CPU quota allows {quota:.1} cores' time: cores will stall"
            ),
            "set CORES to fewer, or give whole cores: docker run --cpuset-cpus instead of --cpus",
        ),
        _ => Finding::ok("cores", format!("{pinned} pinned")),
    }
}

fn judge_memory(available: u64, limits: &Limits, cores: usize) -> Finding {
    let wanted = ByteSize(limits.core_memory_bytes.saturating_mul(cores as u64));
    let available = ByteSize(available);
    let detail = format!("{available} there, {wanted} wanted when every limit is reached");
    if wanted <= available {
        return Finding::ok("memory", detail);
    }
    Finding::warn(
        "memory",
        detail,
        "lower MAX_QUEUE_BYTES, MAX_BODY_BYTES, MAX_CONNECTIONS (56 KiB each) or CORES",
    )
}

/// The least value of `file` in this process's cgroup and those above it. Version 2 only; elsewhere `None`.
fn cgroup_least<T: PartialOrd>(file: &str, parse: impl Fn(&str) -> Option<T>) -> Option<T> {
    let own = fs::read_to_string("/proc/self/cgroup").ok()?;
    let own = own.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let values = Path::new(own).ancestors().filter_map(|group| {
        let path = Path::new("/sys/fs/cgroup").join(group).join(file);
        parse(&fs::read_to_string(path).ok()?)
    });
    values.reduce(|least, value| if value < least { value } else { least })
}

/// `150000 100000` (µs per period) is a quota of 1.5 cores; `max 100000` is none.
fn parse_cpu_max(text: &str) -> Option<f64> {
    let (quota, period) = text.trim().split_once(' ')?;
    let cores = quota.parse::<f64>().ok()? / period.parse::<f64>().ok()?;
    cores.is_finite().then_some(cores)
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    fn limits() -> Limits {
        let mut config = Config::from_settings(&[]).unwrap();
        config.cores = vec![0, 1];
        Limits::new(&config)
    }

    #[track_caller]
    fn expect(finding: Finding, level: Level, needles: &[&str]) {
        let text = format!("{} {}", finding.detail, finding.remedy.as_deref().unwrap_or(""));
        assert_eq!(finding.level, level, "{text}");
        for needle in needles {
            assert!(text.contains(needle), "{needle} in: {text}");
        }
    }

    #[test]
    fn kernels() {
        for release in ["6.1.0-28-amd64", "6.18.44-fc", "10.0-rc1", "6.8"] {
            expect(judge_kernel(release), Level::Ok, &[release]);
        }
        for release in ["6.0.19", "5.15.0-131-generic", "4.19.0-26-cloud", "3.10.0-1160.el7"] {
            expect(judge_kernel(release), Level::Fail, &[release, "older than 6.1"]);
        }
        expect(judge_kernel("mystery"), Level::Warn, &["mystery"]);
    }

    #[test]
    fn io_uring_refusals_name_their_cause() {
        use rustix::io::Errno;
        let refused = |errno: Errno| Err(errno.into());
        expect(judge_io_uring(Ok(()), "0"), Level::Ok, &[]);
        let seccomp = judge_io_uring(refused(Errno::PERM), "0");
        expect(seccomp, Level::Fail, &["seccomp", "--security-opt seccomp=tuning/seccomp.json"]);
        let sysctl = judge_io_uring(refused(Errno::PERM), "2");
        expect(sysctl, Level::Fail, &["io_uring_disabled = 2", "sysctl -w"]);
        expect(judge_io_uring(refused(Errno::NOSYS), ""), Level::Fail, &["CONFIG_IO_URING"]);
        expect(judge_io_uring(refused(Errno::NOMEM), ""), Level::Fail, &["--ulimit memlock=-1"]);
        expect(
            judge_io_uring(refused(Errno::INVAL), ""),
            Level::Fail,
            &["Invalid argument", "strace"],
        );
    }

    #[test]
    fn locked_memory() {
        let (wanted, least) = (9 << 20, 512 << 10);
        let judge_memlock = |limit, wanted| judge_memlock(limit, wanted, least);
        expect(judge_memlock(None, wanted), Level::Ok, &["unlimited"]);
        expect(judge_memlock(Some(9 << 20), wanted), Level::Ok, &["9.0 MiB"]);
        expect(judge_memlock(Some(8 << 20), wanted), Level::Warn, &["8.0 MiB", "ulimit -l 9216"]);
        let docker = judge_memlock(Some(64 << 10), wanted);
        expect(docker, Level::Fail, &["64.0 KiB", "512.0 KiB", "LimitMEMLOCK=infinity"]);
    }

    #[test]
    fn open_files() {
        let l = limits();
        expect(judge_files(None, &l, 2), Level::Ok, &[]);
        expect(judge_files(Some(l.files), &l, 2), Level::Ok, &[]);
        let short = judge_files(Some(l.files - 2000), &l, 2);
        expect(short, Level::Warn, &["about 15384 of MAX_CONNECTIONS=16384", "LimitNOFILE=33152"]);
        expect(judge_files(Some(l.files_least), &l, 2), Level::Warn, &["about 16 of"]);
        expect(judge_files(Some(l.files_least - 1), &l, 2), Level::Fail, &["not even"]);
    }

    /// 1024, the soft limit of most shells and often the hard one of containers, must do for the defaults.
    #[test]
    fn a_thousand_files_are_enough_to_start_two_cores() {
        expect(judge_files(Some(1024), &limits(), 2), Level::Warn, &["ulimit -n"]);
    }

    #[test]
    fn quotas_and_memory() {
        assert_eq!(parse_cpu_max("max 100000\n"), None);
        assert_eq!(parse_cpu_max("150000 100000\n"), Some(1.5));
        expect(judge_cores(&[0, 1], Some(1.5)), Level::Warn, &["0-1", "1.5", "--cpuset-cpus"]);
        expect(judge_cores(&[0, 1], Some(2.0)), Level::Ok, &["0-1"]);
        expect(judge_cores(&[3], None), Level::Ok, &["3"]);
        let wanted = limits().core_memory_bytes * 2;
        expect(judge_memory(wanted, &limits(), 2), Level::Ok, &["2.0 GiB"]);
        expect(judge_memory(wanted - 1, &limits(), 2), Level::Warn, &["MAX_QUEUE_BYTES"]);
    }
}
