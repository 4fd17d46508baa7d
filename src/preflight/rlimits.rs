//! Resource limits that would end the process in the middle of its work: without address space the
//! allocator aborts, and `RLIMIT_RTTIME` kills. So a limit that is too low refuses the start. The
//! signals of `RLIMIT_FSIZE` and of a soft `RLIMIT_CPU` are ignored (`signals`), so that a write
//! beyond `RLIMIT_FSIZE` fails like one on a full disk.
//!
//! Other limits do not matter: `RLIMIT_STACK`, because all threads except the main one, which does
//! nothing, have stacks of a fixed size; `RLIMIT_CORE`; and the limits of what is not used here
//! (`MSGQUEUE`, `LOCKS`, `RSS`, `SIGPENDING`, `NICE`).

use std::io;

use bytesize::ByteSize;
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};
use rustix::process::{Resource, getrlimit};

use super::Finding;
use super::host::{ProcessLimits, raise_fully};
use crate::limits::Limits;

pub(super) fn findings(limits: &Limits) -> Vec<Finding> {
    let space = [("RLIMIT_AS", Resource::As), ("RLIMIT_DATA", Resource::Data)]
        .map(|(name, resource)| (name, raise_fully(resource)));
    let room = if space.iter().all(|(_, limit)| limit.is_none()) {
        Ok(())
    } else {
        can_map(limits.address_space_bytes)
    };
    vec![
        judge_space(space, room, limits.address_space_bytes),
        judge_file_size(raise_fully(Resource::Fsize), limits.file_bytes),
        judge_cpu_time(raise_fully(Resource::Cpu)),
        judge_real_time(raise_fully(Resource::Rttime), is_real_time(0)),
    ]
}

/// The same of a process whose limits were `found`.
pub(super) fn of_process(found: &ProcessLimits, pid: u32, limits: &Limits) -> Vec<Finding> {
    let space = [("RLIMIT_AS", found.address_space), ("RLIMIT_DATA", found.data)];
    let least = space.iter().filter_map(|(_, limit)| *limit).min();
    let has_room = least.is_none_or(|least| least >= limits.address_space_bytes);
    let room = if has_room { Ok(()) } else { Err(io::ErrorKind::OutOfMemory.into()) };
    vec![
        judge_space(space, room, limits.address_space_bytes),
        judge_file_size(found.file_size, limits.file_bytes),
        judge_cpu_time(found.cpu_time),
        judge_real_time(found.real_time, is_real_time(pid as libc::pid_t)),
    ]
}

/// The limits on address space that are set, for refusals that they may have caused.
pub(super) fn space_limits() -> Vec<String> {
    [("RLIMIT_AS", Resource::As), ("RLIMIT_DATA", Resource::Data)]
        .into_iter()
        .filter_map(|(name, resource)| Some((name, getrlimit(resource).current?)))
        .map(|(name, limit)| format!("{name} {}", ByteSize(limit)))
        .collect()
}

/// Whether `bytes` more of address space are allowed; no memory is used.
#[expect(unsafe_code, reason = "mapping memory")]
fn can_map(bytes: u64) -> io::Result<()> {
    let length = usize::try_from(bytes).map_err(|_| io::ErrorKind::OutOfMemory)?;
    let (access, flags) =
        (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE | MapFlags::NORESERVE);
    // SAFETY: a new mapping at an address that the kernel chooses touches no other memory, and
    // nothing else knows it, so it can be unmapped.
    unsafe {
        let start = mmap_anonymous(std::ptr::null_mut(), length, access, flags)?;
        munmap(start, length)?;
    }
    Ok(())
}

fn judge_space(limits: [(&str, Option<u64>); 2], room: io::Result<()>, wanted: u64) -> Finding {
    let name = "address space";
    let set: Vec<String> = limits
        .iter()
        .filter_map(|(name, limit)| Some(format!("{name} is {}", ByteSize((*limit)?))))
        .collect();
    let wanted = ByteSize(wanted);
    match room {
        Ok(()) if set.is_empty() => Finding::ok(name, "unlimited"),
        Ok(()) => Finding::ok(name, format!("{}, {wanted} wanted", set.join(", "))),
        Err(_no_memory) => Finding::fail(
            name,
            format!(
                "{}, which leaves less than the {wanted} needed when every limit is reached; a process that gets no more memory is aborted",
                set.join(", ")
            ),
            "ulimit -v unlimited -d unlimited; systemd LimitAS=infinity LimitDATA=infinity; or lower \
             MAX_CONNECTIONS, MAX_QUEUE_BYTES, MAX_BODY_BYTES or CORES",
        ),
    }
}

fn judge_file_size(limit: Option<u64>, wanted: u64) -> Finding {
    let name = "file size";
    let wanted_text = ByteSize(wanted);
    match limit {
        None => Finding::ok(name, "unlimited"),
        Some(limit) if limit >= wanted => {
            Finding::ok(name, format!("RLIMIT_FSIZE is {}, {wanted_text} wanted", ByteSize(limit)))
        }
        Some(limit) => Finding::fail(
            name,
            format!(
                "RLIMIT_FSIZE is {}, but one file may need up to {wanted_text}: the dead letters of a core at a stop, or a spool segment",
                ByteSize(limit)
            ),
            "ulimit -f unlimited; systemd LimitFSIZE=infinity; or lower MAX_QUEUE_BYTES, BATCH_MEMORY or \
             SPOOL_SEGMENT",
        ),
    }
}

fn judge_cpu_time(limit: Option<u64>) -> Finding {
    match limit {
        None => Finding::ok("CPU time", "unlimited"),
        Some(limit) => Finding::fail(
            "CPU time",
            format!("RLIMIT_CPU is {limit} s, after which the kernel kills the process"),
            "ulimit -t unlimited; systemd LimitCPU=infinity",
        ),
    }
}

/// `limit` is how many microseconds a thread may run without sleeping; it applies only under a
/// real-time scheduling policy.
fn judge_real_time(limit: Option<u64>, is_real_time: bool) -> Finding {
    let name = "real-time CPU";
    match limit {
        Some(limit) if is_real_time => Finding::fail(
            name,
            format!(
                "RLIMIT_RTTIME is {limit} µs under a real-time scheduling policy: a busy core never \
                 sleeps, and the kernel kills the process"
            ),
            "systemd LimitRTTIME=infinity (prlimit --rttime=unlimited), or no real-time policy (chrt --other 0)",
        ),
        Some(limit) => {
            Finding::ok(name, format!("RLIMIT_RTTIME is {limit} µs, no real-time policy"))
        }
        None => Finding::ok(name, "unlimited"),
    }
}

/// Of the thread with this number, 0 for the calling one.
#[expect(unsafe_code, reason = "no library has this call")]
fn is_real_time(thread: libc::pid_t) -> bool {
    // SAFETY: takes a number and accesses no memory of this process.
    let policy = unsafe { libc::sched_getscheduler(thread) } & !libc::SCHED_RESET_ON_FORK;
    matches!(policy, libc::SCHED_FIFO | libc::SCHED_RR | libc::SCHED_DEADLINE)
}

#[cfg(test)]
mod tests {
    use super::super::{Level, expect};
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn address_space() {
        let none = [("RLIMIT_AS", None), ("RLIMIT_DATA", None)];
        expect(judge_space(none, Ok(()), GIB), Level::Ok, &["unlimited"]);
        let one = [("RLIMIT_AS", None), ("RLIMIT_DATA", Some(GIB))];
        expect(
            judge_space(one, Ok(()), GIB / 2),
            Level::Ok,
            &["RLIMIT_DATA is 1.0 GiB", "512.0 MiB"],
        );
        let refused = || Err(io::Error::from_raw_os_error(libc::ENOMEM));
        let both = [("RLIMIT_AS", Some(2 * GIB)), ("RLIMIT_DATA", Some(GIB))];
        expect(
            judge_space(both, refused(), 3 * GIB),
            Level::Fail,
            &[
                "RLIMIT_AS is 2.0 GiB",
                "RLIMIT_DATA is 1.0 GiB",
                "3.0 GiB",
                "LimitAS",
                "MAX_QUEUE_BYTES",
            ],
        );
        assert!(can_map(1 << 20).is_ok());
        assert!(can_map(1 << 62).is_err());
    }

    #[test]
    fn file_size_and_times() {
        expect(judge_file_size(None, GIB), Level::Ok, &[]);
        expect(judge_file_size(Some(GIB), GIB), Level::Ok, &["1.0 GiB"]);
        expect(judge_file_size(Some(GIB - 1), GIB), Level::Fail, &["RLIMIT_FSIZE", "LimitFSIZE"]);
        expect(judge_cpu_time(None), Level::Ok, &[]);
        expect(judge_cpu_time(Some(60)), Level::Fail, &["RLIMIT_CPU is 60 s", "ulimit -t"]);
        expect(judge_real_time(None, true), Level::Ok, &[]);
        expect(judge_real_time(Some(200_000), false), Level::Ok, &["200000"]);
        expect(judge_real_time(Some(200_000), true), Level::Fail, &["RLIMIT_RTTIME", "infinity"]);
        assert!(!is_real_time(0));
    }
}
