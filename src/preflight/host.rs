//! Kernel, io_uring, resource limits, cores and memory.

#![expect(clippy::disallowed_methods, reason = "runs before any executor")]

use std::fs;
use std::io;
use std::path::Path;

use bytesize::ByteSize;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::{Finding, rlimits, threads};
use crate::config::{Config, ConnectionPlacement, core_list};
use crate::limits::Limits;
use crate::net;

pub(super) fn findings(config: &Config, wanted: &Limits) -> Vec<Finding> {
    let cores = config.cores.len();
    let memlock = raise(Resource::Memlock, wanted.memlock_bytes);
    raise(Resource::Nofile, wanted.files);
    let files = DescriptorLimit::read();
    let limits = &wanted.clone().for_descriptors(files.most, cores);
    let disabled = fs::read_to_string("/proc/sys/kernel/io_uring_disabled").unwrap_or_default();
    let mut findings = rlimits::findings(limits);
    findings.extend([
        judge_kernel(&release(), config.placement),
        judge_memlock(memlock, limits.memlock_bytes, limits.memlock_least),
        judge_files(&files, wanted, limits.connections),
        judge_cores(&config.cores, cgroup_least("self", "cpu", "cpu.max", parse_cpu_max)),
        judge_memory(memory_of("self"), limits, cores),
    ]);
    // Without address space or descriptors these checks would fail too, with misleading reasons.
    if !super::failed(&findings) {
        // Only the kernel knows whether seccomp, a sysctl or a security module allows io_uring. Not
        // tested through glommio, which panics on a refusal without the reason.
        findings.push(judge_io_uring(net::probe(), disabled.trim()));
        findings.extend(threads::findings(&config.cores, limits));
    }
    findings
}

/// The same of the server that runs as process `pid`: its limits and its control group. What it has
/// done at its start, it may do.
pub(super) fn of_process(config: &Config, wanted: &Limits, pid: u32) -> Vec<Finding> {
    let found = match ProcessLimits::read(pid) {
        Ok(found) => found,
        Err(error) => {
            return vec![kernel(config), unknown_limits(&format!("process {pid}: {error}"))];
        }
    };
    // What the host has left, the server holds part of already.
    let files = DescriptorLimit::least(found.open_files, proc_number(NR_OPEN), None);
    let cores = config.cores.len();
    let limits = &wanted.clone().for_descriptors(files.most, cores);
    let own = pid.to_string();
    let mut findings = rlimits::of_process(&found, pid, limits);
    findings.extend([
        kernel(config),
        judge_memlock(found.locked_memory, limits.memlock_bytes, limits.memlock_least),
        judge_files(&files, wanted, limits.connections),
        judge_cores(&config.cores, cgroup_least(&own, "cpu", "cpu.max", parse_cpu_max)),
        judge_memory(memory_of(&own), limits, cores),
        Finding::ok("io_uring", format!("in use by process {pid}")),
        Finding::ok("threads", format!("those of process {pid} run")),
    ]);
    findings
}

/// What is known beside a server that this user may not look at.
pub(super) fn of_hidden(config: &Config, uid: u32) -> Vec<Finding> {
    vec![kernel(config), unknown_limits(&format!("it is a process of user {uid}"))]
}

fn unknown_limits(why: &str) -> Finding {
    Finding::warn(
        "limits",
        format!("the running server's limits and control group cannot be read ({why})"),
        "check as root or as the server's user, in its PID namespace",
    )
}

fn kernel(config: &Config) -> Finding {
    judge_kernel(&release(), config.placement)
}

fn release() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}

/// Bytes of memory that the process may have.
fn memory_of(process: &str) -> u64 {
    let ram = rustix::system::sysinfo();
    let ram_bytes = ram.totalram.saturating_mul(ram.mem_unit.into());
    let limit = |text: &str| text.trim().parse::<u64>().ok();
    cgroup_least(process, "memory", "memory.max", limit).unwrap_or(u64::MAX).min(ram_bytes)
}

/// The limits in force of a process, `None`: unlimited.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ProcessLimits {
    pub(super) open_files: Option<u64>,
    pub(super) locked_memory: Option<u64>,
    pub(super) address_space: Option<u64>,
    pub(super) data: Option<u64>,
    pub(super) file_size: Option<u64>,
    /// In seconds.
    pub(super) cpu_time: Option<u64>,
    /// In microseconds.
    pub(super) real_time: Option<u64>,
}

impl ProcessLimits {
    fn read(pid: u32) -> io::Result<ProcessLimits> {
        ProcessLimits::parse(&fs::read_to_string(format!("/proc/{pid}/limits"))?)
    }

    /// proc_pid_limits(5): name, soft limit, hard limit, unit.
    fn parse(text: &str) -> io::Result<ProcessLimits> {
        let soft = |name: &str| {
            let row = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            match row.and_then(|row| row.split_ascii_whitespace().next()) {
                Some("unlimited") => Ok(None),
                Some(number) if number.parse::<u64>().is_ok() => Ok(number.parse().ok()),
                _ => Err(io::Error::other(format!("its limits do not say \"{name}\""))),
            }
        };
        Ok(ProcessLimits {
            open_files: soft("Max open files")?,
            locked_memory: soft("Max locked memory")?,
            address_space: soft("Max address space")?,
            data: soft("Max data size")?,
            file_size: soft("Max file size")?,
            cpu_time: soft("Max cpu time")?,
            real_time: soft("Max realtime timeout")?,
        })
    }
}

/// The oldest kernel with everything that [`crate::net`] needs of io_uring; glommio alone would run
/// on 5.8.
const KERNEL_LEAST: (u32, u32) = (6, 1);

/// The first kernel that honours SO_INCOMING_CPU among listeners that share a port.
const PLACEMENT_LEAST: (u32, u32) = (6, 2);

fn judge_kernel(release: &str, placement: ConnectionPlacement) -> Finding {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|n| n.parse().ok());
    let (least_major, least_minor) = KERNEL_LEAST;
    match (numbers.next(), numbers.next()) {
        (Some(major), Some(minor))
            if placement == ConnectionPlacement::Cpu
                && (KERNEL_LEAST..PLACEMENT_LEAST).contains(&(major, minor)) =>
        {
            Finding::warn(
                "kernel",
                format!("{release} ignores CONNECTION_PLACEMENT=cpu: connections go by the hash"),
                "run on Linux 6.2 or newer, or leave CONNECTION_PLACEMENT at hash",
            )
        }
        (Some(major), Some(minor)) if (major, minor) >= KERNEL_LEAST => {
            Finding::ok("kernel", release)
        }
        (Some(_), Some(_)) => Finding::fail(
            "kernel",
            format!(
                "{release} is older than {least_major}.{least_minor}, the oldest with the io_uring that millrace needs"
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

/// Raises the soft limit to `wanted`, or as far as the hard one allows, and returns the limit then
/// in force; `None` is unlimited. Not simply to the hard limit, because some libraries iterate over
/// all possible descriptors, which may be a billion.
fn raise(resource: Resource, wanted: u64) -> Option<u64> {
    let Rlimit { current, maximum } = getrlimit(resource);
    let soft = current?;
    let target = wanted.min(maximum.unwrap_or(u64::MAX));
    if soft >= target {
        return Some(soft);
    }
    match setrlimit(resource, Rlimit { current: Some(target), maximum }) {
        Ok(()) => Some(target),
        // The kernel refuses a hard limit above fs.nr_open, even an unchanged one.
        Err(_) if resource == Resource::Nofile => {
            let nr_open = proc_number(NR_OPEN)?;
            let (current, maximum) = (Some(target.min(nr_open)), Some(nr_open));
            setrlimit(resource, Rlimit { current, maximum }).map_or(Some(soft), |()| current)
        }
        Err(_) => Some(soft),
    }
}

/// Raises the soft limit to the hard one and returns the limit then in force; `None` is unlimited.
pub(super) fn raise_fully(resource: Resource) -> Option<u64> {
    let Rlimit { current, maximum } = getrlimit(resource);
    if current == maximum {
        return current;
    }
    setrlimit(resource, Rlimit { current: maximum, maximum }).map_or(current, |()| maximum)
}

const NR_OPEN: &str = "/proc/sys/fs/nr_open";

/// A number in a file of `/proc`; `None` if there is none.
pub(super) fn proc_number(path: &str) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// How many files this process may have open at once; `None` is unlimited.
pub fn descriptors() -> Option<u64> {
    DescriptorLimit::read().most
}

/// The lowest of the limits on open files.
struct DescriptorLimit {
    most: Option<u64>,
    /// The name of that limit.
    by: &'static str,
}

impl DescriptorLimit {
    const PROCESS: &'static str = "RLIMIT_NOFILE";
    /// The highest possible `RLIMIT_NOFILE` of any process.
    const HOST_EACH: &'static str = "fs.nr_open";
    /// The limit for all processes together.
    const HOST_ALL: &'static str = "fs.file-max";

    fn read() -> DescriptorLimit {
        let soft = getrlimit(Resource::Nofile).current;
        let file_nr = fs::read_to_string("/proc/sys/fs/file-nr").unwrap_or_default();
        DescriptorLimit::least(soft, proc_number(NR_OPEN), parse_file_nr(&file_nr))
    }

    fn least(soft: Option<u64>, nr_open: Option<u64>, free: Option<u64>) -> DescriptorLimit {
        let all = [(soft, Self::PROCESS), (nr_open, Self::HOST_EACH), (free, Self::HOST_ALL)];
        let least = all.into_iter().filter_map(|(limit, by)| Some((limit?, by))).min();
        let (most, by) = least.map_or((None, Self::PROCESS), |(most, by)| (Some(most), by));
        DescriptorLimit { most, by }
    }
}

/// Files that may still be opened on the whole host: `allocated 0 maximum`.
fn parse_file_nr(text: &str) -> Option<u64> {
    let mut numbers = text.split_whitespace().map(|number| number.parse::<u64>());
    let allocated = numbers.next()?.ok()?;
    let maximum = numbers.nth(1)?.ok()?;
    Some(maximum.saturating_sub(allocated))
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
            format!("{limit} allowed, but the executors need at least {least} to start"),
            remedy,
        )
    } else if limit < wanted {
        let detail = format!(
            "{limit} allowed, {wanted} needed to register every core's I/O buffers; without it I/O costs slightly more"
        );
        Finding::warn(name, detail, remedy)
    } else {
        Finding::ok(name, format!("{limit} allowed, {wanted} wanted"))
    }
}

/// `limits` are those configured; `connections` is how many per core the descriptors suffice for.
fn judge_files(found: &DescriptorLimit, limits: &Limits, connections: usize) -> Finding {
    let name = "open files";
    let (wanted, least) = (limits.files, limits.files_least);
    let Some(most) = found.most else { return Finding::ok(name, "unlimited") };
    let by = found.by;
    let missing = wanted.saturating_sub(most);
    let remedy = match by {
        DescriptorLimit::HOST_ALL => format!("sysctl -w {by}=$(($(sysctl -n {by}) + {missing}))"),
        DescriptorLimit::HOST_EACH => format!("sysctl -w {by}={wanted}"),
        _ => format!(
            "ulimit -n {wanted} (hard limit: /etc/security/limits.conf); docker run --ulimit \
             nofile={wanted}; systemd LimitNOFILE={wanted}"
        ),
    } + if most < least {
        "; or lower MAX_WORKERS or CORES"
    } else {
        "; or lower MAX_CONNECTIONS"
    };
    if most < least {
        let detail =
            format!("{most} allowed ({by}), but the workers and a few clients need {least}");
        Finding::fail(name, detail, remedy)
    } else if most < wanted {
        let detail = format!(
            "{most} allowed ({by}), {wanted} wanted: MAX_CONNECTIONS is {connections} per core instead of {}",
            limits.connections
        );
        Finding::warn(name, detail, remedy)
    } else {
        Finding::ok(name, format!("{most} allowed, {wanted} wanted"))
    }
}

/// `quota` is in cores. A pinned executor whose cgroup is throttled stalls for whole scheduler
/// periods.
fn judge_cores(cores: &[usize], quota: Option<f64>) -> Finding {
    let pinned = core_list(cores);
    let Some(quota) = quota.filter(|quota| *quota < cores.len() as f64) else {
        return Finding::ok("cores", format!("{pinned} pinned"));
    };
    let fewer = match quota as usize {
        0 => "raise the quota to one CPU at least".to_owned(),
        whole => format!("set CORES={}", core_list(&cores[..whole])),
    };
    Finding::warn(
        "cores",
        format!(
            "{pinned} pinned, but a CPU quota allows {quota:.1} cores' time: cores will stall for \
             whole periods"
        ),
        format!(
            "{fewer}; better, give it whole CPUs and no quota: docker run --cpuset-cpus instead of \
             --cpus, systemd AllowedCPUs= instead of CPUQuota=, Kubernetes cpuManagerPolicy=static \
             and as many whole CPUs requested as the limit has"
        ),
    )
}

fn judge_memory(available: u64, limits: &Limits, cores: usize) -> Finding {
    let wanted = ByteSize(limits.core_memory_bytes.saturating_mul(cores as u64));
    let available = ByteSize(available);
    let detail = format!("{available} available, {wanted} needed when every limit is reached");
    if wanted <= available {
        return Finding::ok("memory", detail);
    }
    Finding::warn(
        "memory",
        detail,
        "lower MAX_QUEUE_BYTES, MAX_BODY_BYTES, MAX_CONNECTIONS (56 KiB each) or CORES",
    )
}

/// The lowest value of `file` in the cgroup of `process` (`self`, or its number) and its ancestors:
/// of version 2, or of version 1 if `controller` is mounted that way; else `None`.
pub(super) fn cgroup_least<T: PartialOrd>(
    process: &str,
    controller: &str,
    file: &str,
    parse: impl Fn(&str) -> Option<T>,
) -> Option<T> {
    let own = fs::read_to_string(format!("/proc/{process}/cgroup")).ok()?;
    let groups = own.lines().filter_map(|line| {
        let (_, line) = line.split_once(':')?;
        let (controllers, group) = line.split_once(":/")?;
        match controllers {
            "" => Some((Path::new("/sys/fs/cgroup").to_owned(), group)),
            list if list.split(',').any(|name| name == controller) => {
                Some((Path::new("/sys/fs/cgroup").join(list), group))
            }
            _ => None,
        }
    });
    let values = groups.flat_map(|(mount, group)| {
        Path::new(group)
            .ancestors()
            .filter_map(|group| parse(&fs::read_to_string(mount.join(group).join(file)).ok()?))
            .collect::<Vec<T>>()
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
    use super::super::{Level, expect};
    use super::*;

    #[test]
    fn the_limits_of_a_process_are_read() {
        let text = "\
Limit                     Soft Limit           Hard Limit           Units     
Max cpu time              unlimited            unlimited            seconds   
Max file size             1048576              unlimited            bytes     
Max data size             unlimited            unlimited            bytes     
Max stack size            8388608              unlimited            bytes     
Max locked memory         8388608              8388608              bytes     
Max open files            1024                 524288               files     
Max address space         unlimited            unlimited            bytes     
Max realtime timeout      200000               unlimited            us        
";
        let expected = ProcessLimits {
            open_files: Some(1024),
            locked_memory: Some(8 << 20),
            file_size: Some(1 << 20),
            real_time: Some(200_000),
            ..ProcessLimits::default()
        };
        assert_eq!(ProcessLimits::parse(text).unwrap(), expected);
        assert!(ProcessLimits::parse("").unwrap_err().to_string().contains("Max"));
        let own = ProcessLimits::read(std::process::id()).unwrap();
        assert_eq!(own.open_files, getrlimit(Resource::Nofile).current);
        assert_eq!(own.locked_memory, getrlimit(Resource::Memlock).current);
    }

    /// What this process may open says nothing about another one.
    #[test]
    fn a_running_server_is_judged_by_its_own_limits() {
        let config = Config::from_settings(&[("CORES", "0")]).unwrap();
        let wanted = Limits::new(&config);
        let mut child = std::process::Command::new("sh")
            .args(["-c", "ulimit -n 64; ulimit -l 64; ulimit -v 1000000; exec sleep 60"])
            .spawn()
            .unwrap();
        let judged = || of_process(&config, &wanted, child.id());
        let is_limited = |findings: &[Finding]| {
            findings.iter().any(|f| f.name == "open files" && f.detail.starts_with("64 allowed"))
        };
        let mut found = judged();
        while !is_limited(&found) || !found.iter().any(|f| f.detail.contains("RLIMIT_AS")) {
            std::thread::sleep(std::time::Duration::from_millis(10));
            found = judged();
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let failing = |name: &str| {
            found.iter().any(|finding| finding.name == name && finding.level == Level::Fail)
        };
        for name in ["open files", "locked memory", "address space"] {
            assert!(failing(name), "{name}: {found:#?}");
        }
        // It has ended.
        let gone = of_process(&config, &wanted, child.id());
        assert!(gone.iter().any(|f| f.name == "limits" && f.level == Level::Warn), "{gone:#?}");
    }

    fn limits() -> Limits {
        let mut config = Config::from_settings(&[]).unwrap();
        config.cores = vec![0, 1];
        Limits::new(&config)
    }

    #[test]
    fn kernels() {
        for release in ["6.1.0-28-amd64", "6.18.44-fc", "10.0-rc1", "6.8"] {
            expect(judge_kernel(release, ConnectionPlacement::Hash), Level::Ok, &[release]);
        }
        for release in ["6.0.19", "5.15.0-131-generic", "4.19.0-26-cloud", "3.10.0-1160.el7"] {
            expect(
                judge_kernel(release, ConnectionPlacement::Hash),
                Level::Fail,
                &[release, "older than 6.1"],
            );
        }
        expect(judge_kernel("mystery", ConnectionPlacement::Hash), Level::Warn, &["mystery"]);
        let by_cpu = |release| judge_kernel(release, ConnectionPlacement::Cpu);
        expect(by_cpu("6.1.0-18-amd64"), Level::Warn, &["6.1.0", "ignores CONNECTION_PLACEMENT"]);
        expect(by_cpu("6.2.0"), Level::Ok, &["6.2.0"]);
        expect(by_cpu("5.15.0"), Level::Fail, &["older than 6.1"]);
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

    /// The finding for two cores with this descriptor limit, and the connections of each.
    fn judged(most: Option<u64>, by: &'static str) -> (Finding, usize) {
        let wanted = limits();
        let connections = wanted.clone().for_descriptors(most, 2).connections;
        (judge_files(&DescriptorLimit { most, by }, &wanted, connections), connections)
    }

    #[test]
    fn open_files() {
        let (l, by) = (limits(), DescriptorLimit::PROCESS);
        expect(judged(None, by).0, Level::Ok, &[]);
        expect(judged(Some(l.files), by).0, Level::Ok, &[]);
        let (short, connections) = judged(Some(l.files - 2000), by);
        assert_eq!(connections, 15_384);
        let says = ["MAX_CONNECTIONS is 15384 per core instead of 16384", "LimitNOFILE=33152"];
        expect(short, Level::Warn, &says);
        let (least, connections) = judged(Some(l.files_least), by);
        assert_eq!(connections, 16);
        expect(least, Level::Warn, &["is 16 per core"]);
        expect(
            judged(Some(l.files_least - 1), by).0,
            Level::Fail,
            &["a few clients need", "RLIMIT_NOFILE"],
        );
        expect(
            judged(Some(900), "fs.nr_open").0,
            Level::Warn,
            &["(fs.nr_open)", "sysctl -w fs.nr_open="],
        );
    }

    /// 1024, the soft limit of most shells and often the hard one of containers, must suffice for
    /// the defaults.
    #[test]
    fn a_thousand_files_are_enough_to_start_two_cores() {
        expect(judged(Some(1024), DescriptorLimit::PROCESS).0, Level::Warn, &["ulimit -n"]);
    }

    #[test]
    fn the_least_of_what_limits_descriptors_counts() {
        for (soft, nr_open, free, most, by) in [
            (Some(300), Some(1 << 20), Some(u64::MAX), Some(300), "RLIMIT_NOFILE"),
            (None, Some(1 << 20), None, Some(1 << 20), "fs.nr_open"),
            (Some(900), Some(1 << 20), Some(800), Some(800), "fs.file-max"),
            (None, None, None, None, "RLIMIT_NOFILE"),
        ] {
            let least = DescriptorLimit::least(soft, nr_open, free);
            assert_eq!((least.most, least.by), (most, by));
        }
        assert_eq!(parse_file_nr("1120\t0\t9223372036854775807\n"), Some(i64::MAX as u64 - 1120));
        assert_eq!(parse_file_nr("1120\t0\t1000\n"), Some(0));
        assert_eq!(parse_file_nr(""), None);
    }

    #[test]
    fn quotas_and_memory() {
        assert_eq!(parse_cpu_max("max 100000\n"), None);
        assert_eq!(parse_cpu_max("150000 100000\n"), Some(1.5));
        let all: Vec<usize> = (0..8).collect();
        for (quota, remedy) in [
            (1.5, "set CORES=0;"),
            (4.0, "set CORES=0-3;"),
            (7.9, "set CORES=0-6;"),
            (0.5, "raise the quota to one CPU"),
        ] {
            let found = judge_cores(&all, Some(quota));
            let says = format!("allows {quota:.1} cores' time");
            expect(found, Level::Warn, &["0-7 pinned", &says, remedy, "--cpuset-cpus"]);
        }
        let odd = judge_cores(&[1, 3, 5], Some(2.0));
        expect(odd, Level::Warn, &["1,3,5 pinned", "set CORES=1,3;"]);
        expect(judge_cores(&[0, 1], Some(2.0)), Level::Ok, &["0-1"]);
        expect(judge_cores(&[3], None), Level::Ok, &["3"]);
        let wanted = limits().core_memory_bytes * 2;
        expect(judge_memory(wanted, &limits(), 2), Level::Ok, &["2.3 GiB"]);
        expect(judge_memory(wanted - 1, &limits(), 2), Level::Warn, &["MAX_QUEUE_BYTES"]);
    }
}
