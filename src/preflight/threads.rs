//! Whether all threads can be made and pinned. Which of several limits is in the way, and how much of it others use, only
//! the kernel knows (`RLIMIT_NPROC` counts all processes of a user), so as many threads as the server wants are started
//! for a moment.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{Builder, park};

use rustix::process::{Resource, getrlimit, getuid};

use super::Finding;
use super::host::{cgroup_least, proc_number, raise_fully};
use super::rlimits::space_limits;
use crate::config::core_list;
use crate::limits::{Limits, STACK_BYTES};
use crate::shard::pin;

/// Threads of [`Limits::threads`] that run already: the main one, this one, which will be control's, and the log's.
const RUNNING: usize = 3;

pub(super) fn findings(cores: &[usize], limits: &Limits) -> Vec<Finding> {
    let wanted = limits.threads.saturating_sub(RUNNING);
    let mut started = start_at_once(wanted);
    if started.0 < wanted {
        raise_fully(Resource::Nproc);
        started = start_at_once(wanted);
    }
    let (started, refused) = started;
    let threads = judge_threads(started, wanted, cores.len(), refused, &Bounds::read());
    let pinned = judge_pins(cores.iter().map(|core| (*core, pin_for_a_moment(*core))));
    [threads].into_iter().chain(pinned).collect()
}

/// Has up to `wanted` threads run at once: how many came, and why not all.
fn start_at_once(wanted: usize) -> (usize, Option<io::Error>) {
    let done = Arc::new(AtomicBool::new(false));
    let mut threads = Vec::new();
    let mut refused = None;
    for _ in 0..wanted {
        let done = done.clone();
        let wait = move || {
            while !done.load(Ordering::Acquire) {
                park();
            }
        };
        match Builder::new().stack_size(STACK_BYTES).spawn(wait) {
            Ok(thread) => threads.push(thread),
            Err(error) => {
                refused = Some(error);
                break;
            }
        }
    }
    let started = threads.len();
    done.store(true, Ordering::Release);
    for thread in threads {
        thread.thread().unpark();
        let _it_cannot_panic = thread.join();
    }
    (started, refused)
}

fn pin_for_a_moment(core: usize) -> io::Result<()> {
    let pinned = Builder::new().spawn(move || pin(core).map(drop))?;
    pinned.join().unwrap_or_else(|_| Err(io::Error::other("panicked")))
}

/// What may keep a process from making threads; `None` where it is unlimited or not told.
struct Bounds {
    user: u32,
    nproc: Option<u64>,
    pids_max: Option<u64>,
    threads_max: Option<u64>,
    space: Vec<String>,
}

impl Bounds {
    fn read() -> Bounds {
        Bounds {
            user: getuid().as_raw(),
            nproc: getrlimit(Resource::Nproc).current,
            pids_max: cgroup_least("pids", "pids.max", |text| text.trim().parse().ok()),
            threads_max: proc_number("/proc/sys/kernel/threads-max"),
            space: space_limits(),
        }
    }

    /// `RLIMIT_NPROC 8 for all processes of user 61234, pids.max 20 of its cgroup`.
    fn named(&self) -> String {
        let nproc = self
            .nproc
            .map(|limit| format!("RLIMIT_NPROC {limit} for all threads of user {}", self.user));
        let pids = self.pids_max.map(|limit| format!("pids.max {limit} of its cgroup"));
        let all = self.threads_max.map(|limit| format!("kernel.threads-max {limit} for this host"));
        let all: Vec<String> =
            nproc.into_iter().chain(pids).chain(all).chain(self.space.clone()).collect();
        if all.is_empty() { "no limit is known".to_owned() } else { all.join(", ") }
    }
}

fn judge_threads(
    started: usize,
    wanted: usize,
    cores: usize,
    refused: Option<io::Error>,
    bounds: &Bounds,
) -> Finding {
    let Some(error) = refused else {
        return Finding::ok("threads", format!("{wanted} more can be started"));
    };
    let missing = (wanted - started) as u64;
    let nproc = bounds.nproc.map_or("unlimited".to_owned(), |limit| (limit + missing).to_string());
    let pids = bounds.pids_max.map_or("infinity".to_owned(), |limit| (limit + missing).to_string());
    Finding::fail(
        "threads",
        format!(
            "only {started} of {wanted} more threads can be started, which {cores} cores, control and the kernel's \
             I/O workers need ({error}); what limits them: {}",
            bounds.named()
        ),
        format!(
            "ulimit -u {nproc} (hard limit: /etc/security/limits.conf); systemd LimitNPROC={nproc} TasksMax={pids}; \
             docker run --pids-limit {pids}; or fewer CORES"
        ),
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

/// One sentence on a thread that could not be started.
pub fn refused(error: &io::Error) -> String {
    format!(
        "not even one thread can be started ({error}); what limits them: {}; raise it (ulimit -u, -v; systemd \
         LimitNPROC, TasksMax, LimitAS; docker run --pids-limit)",
        Bounds::read().named()
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
        let again = || Some(io::Error::from_raw_os_error(libc::EAGAIN));
        expect(judge_threads(14, 14, 2, None, &bounds(None, None)), Level::Ok, &["14"]);
        expect(
            judge_threads(5, 14, 2, again(), &bounds(Some(8), None)),
            Level::Fail,
            &[
                "only 5 of 14",
                "2 cores",
                "RLIMIT_NPROC 8",
                "user 7",
                "ulimit -u 17",
                "LimitNPROC=17",
            ],
        );
        expect(
            judge_threads(5, 14, 2, again(), &bounds(None, Some(20))),
            Level::Fail,
            &["pids.max 20", "TasksMax=29", "--pids-limit 29"],
        );
        let space = Bounds { space: vec!["RLIMIT_AS 1.0 GiB".into()], ..bounds(None, None) };
        expect(judge_threads(0, 1, 1, again(), &space), Level::Fail, &["RLIMIT_AS 1.0 GiB"]);
    }

    #[test]
    fn threads_are_started_and_end() {
        assert!(matches!(start_at_once(5), (5, None)));
        assert!(matches!(start_at_once(0), (0, None)));
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
