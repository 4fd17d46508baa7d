//! Whether all threads can be started and pinned. Only the kernel knows which of several limits
//! applies and how much of it others use (`RLIMIT_NPROC` counts all processes of a user), so as
//! many threads as the server needs are started for a moment.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{Builder, park};

use rustix::process::{Resource, getrlimit, getuid};

use super::Finding;
use super::host::{cgroup_least, proc_number, raise_fully};
use super::rlimits::space_limits;
use crate::config::core_list;
use crate::core::pin;
use crate::limits::{Limits, STACK_BYTES};

/// Threads of [`Limits::threads`] that already run: the main one, this one, which becomes
/// control's, the log's, and the one for signals.
const RUNNING: usize = 4;

pub(super) fn findings(cores: &[usize], limits: &Limits) -> Vec<Finding> {
    let wanted = limits.threads.saturating_sub(RUNNING);
    let mut started = start_at_once(wanted);
    if started < wanted {
        raise_fully(Resource::Nproc);
        started = start_at_once(wanted);
    }
    if started < wanted {
        return vec![too_few(started, wanted, cores, &Bounds::read())];
    }
    let threads = Finding::ok("threads", format!("{wanted} more can be started"));
    let pinned = judge_pins(cores.iter().map(|core| (*core, pin_for_a_moment(*core))));
    [threads].into_iter().chain(pinned).collect()
}

/// Runs up to `wanted` threads at once and returns how many started. The kernel's reason is always
/// `EAGAIN`, so it is not returned.
fn start_at_once(wanted: usize) -> usize {
    let done = Arc::new(AtomicBool::new(false));
    let mut threads = Vec::new();
    for _ in 0..wanted {
        let done = done.clone();
        let wait = move || {
            // `park` may return early.
            while !done.load(Ordering::Acquire) {
                park();
            }
        };
        let Ok(thread) = Builder::new().stack_size(STACK_BYTES).spawn(wait) else { break };
        threads.push(thread);
    }
    let started = threads.len();
    done.store(true, Ordering::Release);
    for thread in threads {
        thread.thread().unpark();
        let _it_cannot_panic = thread.join();
    }
    started
}

fn pin_for_a_moment(core: usize) -> io::Result<()> {
    let pinned = Builder::new().spawn(move || pin(core).map(drop))?;
    pinned.join().unwrap_or_else(|_| Err(io::Error::other("panicked")))
}

/// The limits on starting threads; `None` if unlimited or unknown.
struct Bounds {
    user: u32,
    nproc: Option<u64>,
    pids_max: Option<u64>,
    threads_max: Option<u64>,
    space: Vec<String>,
}

impl Bounds {
    fn read() -> Bounds {
        let user = getuid();
        Bounds {
            user: user.as_raw(),
            // It does not apply to root.
            nproc: getrlimit(Resource::Nproc).current.filter(|_| !user.is_root()),
            pids_max: cgroup_least("self", "pids", "pids.max", |text| text.trim().parse().ok()),
            threads_max: proc_number("/proc/sys/kernel/threads-max"),
            space: space_limits(),
        }
    }

    /// `RLIMIT_NPROC is 8 for all threads of user 61234, pids.max of its cgroup is 20`.
    fn named(&self) -> String {
        let user = self.user;
        let named =
            |text: String, limit: Option<u64>| limit.map(|limit| format!("{text} is {limit}"));
        let all: Vec<String> = [
            named(format!("RLIMIT_NPROC for all threads of user {user}"), self.nproc),
            named("pids.max of the cgroup".to_owned(), self.pids_max),
            named("kernel.threads-max for all of this host".to_owned(), self.threads_max),
        ]
        .into_iter()
        .flatten()
        .chain(self.space.clone())
        .collect();
        if all.is_empty() { "no limit is known".to_owned() } else { all.join(", ") }
    }

    /// How to allow `missing` more threads.
    fn remedy(&self, missing: u64) -> String {
        let nproc = self.nproc.map(|limit| {
            let enough = limit + missing;
            format!(
                "ulimit -u {enough} (hard limit: /etc/security/limits.conf); systemd LimitNPROC={enough}; "
            )
        });
        let pids = self.pids_max.map(|limit| {
            let enough = limit + missing;
            format!("systemd TasksMax={enough}; docker run --pids-limit {enough}; ")
        });
        format!("{}{}or fewer CORES", nproc.unwrap_or_default(), pids.unwrap_or_default())
    }
}

fn too_few(started: usize, wanted: usize, cores: &[usize], bounds: &Bounds) -> Finding {
    Finding::fail(
        "threads",
        format!(
            "only {started} of the {wanted} more threads that cores {}, control and the kernel's I/O workers need can be started; {}",
            core_list(cores),
            bounds.named()
        ),
        bounds.remedy((wanted - started) as u64),
    )
}

fn judge_pins(outcomes: impl Iterator<Item = (usize, io::Result<()>)>) -> Option<Finding> {
    let refused: Vec<(usize, io::Error)> =
        outcomes.filter_map(|(core, pinned)| Some((core, pinned.err()?))).collect();
    let (_, error) = refused.first()?;
    let cores: Vec<usize> = refused.iter().map(|(core, _)| *core).collect();
    Some(Finding::fail(
        "pinning",
        format!("a thread cannot be pinned to CPU {}: {error}", core_list(&cores)),
        "set CORES to CPUs that are online and in this process's cpuset (taskset -p $$), and let seccomp allow \
         sched_setaffinity",
    ))
}

/// One sentence for a process that cannot start its first thread.
pub fn not_even_one() -> String {
    let bounds = Bounds::read();
    format!(
        "threads: not even one can be started; {}; mend: {}",
        bounds.named(),
        bounds.remedy(RUNNING as u64)
    )
}

#[cfg(test)]
mod tests {
    use super::super::{Level, expect};
    use super::*;

    fn bounds(nproc: Option<u64>, pids_max: Option<u64>) -> Bounds {
        Bounds { user: 7, nproc, pids_max, threads_max: None, space: Vec::new() }
    }

    #[test]
    fn a_refusal_names_every_limit_its_value_and_what_is_needed() {
        let judge = |started, bounds| too_few(started, 14, &[0, 1], &bounds);
        expect(
            judge(5, bounds(Some(8), None)),
            Level::Fail,
            &[
                "only 5 of the 14",
                "0-1",
                "RLIMIT_NPROC",
                "user 7 is 8",
                "ulimit -u 17",
                "LimitNPROC=17",
            ],
        );
        expect(
            judge(5, bounds(None, Some(20))),
            Level::Fail,
            &["pids.max of the cgroup is 20", "TasksMax=29", "--pids-limit 29", "CORES"],
        );
        let space = Bounds { space: vec!["RLIMIT_AS 1.0 GiB".into()], ..bounds(None, None) };
        expect(judge(0, space), Level::Fail, &["RLIMIT_AS 1.0 GiB"]);
    }

    #[test]
    fn threads_are_started_and_end() {
        assert_eq!((start_at_once(5), start_at_once(0)), (5, 0));
    }

    #[test]
    fn what_cannot_be_pinned_to_is_named() {
        let refused = || Err(io::Error::from_raw_os_error(libc::EINVAL));
        assert_eq!(judge_pins([(0, Ok(())), (1, Ok(()))].into_iter()), None);
        let finding = judge_pins([(0, Ok(())), (3, refused()), (4, refused())].into_iter());
        expect(finding.unwrap(), Level::Fail, &["CPU 3-4", "Invalid argument", "CORES"]);
        assert!(pin_for_a_moment(1023).is_err());
    }
}
