//! One log line per reason for which requests are refused with 503, and one for quotas (429), at
//! most one of each every [`LOGGED_EVERY`]. It reads the counters, so a refusal costs nothing for it and none is left out.

use std::time::{Duration, Instant};

use crate::metrics::{Cell64, CoreCells, QuotaKind, Unavailable};

/// Time between two lines about the same reason.
const LOGGED_EVERY: Duration = Duration::from_secs(60);

/// What was logged of one core's refusals.
pub struct RefusalLog {
    core: usize,
    lines: [Line; Unavailable::ALL.len()],
    quotas: [Line; QuotaKind::NAMES.len()],
}

/// The last line about one reason.
#[derive(Clone, Copy, Default)]
struct Line {
    /// Refusals that it and those before it have reported.
    reported: u64,
    at: Option<Instant>,
}

impl RefusalLog {
    /// Nothing was refused yet on the core with this id.
    pub fn new(core: usize) -> RefusalLog {
        RefusalLog { core, lines: Default::default(), quotas: Default::default() }
    }

    /// Logs what is due; to be called once a second.
    pub fn look(&mut self, cells: &CoreCells, now: Instant) {
        let core = self.core;
        for (reason, refused) in self.due(cells, now) {
            let (name, why) = (reason.name(), cause_and_remedy(reason));
            if reason == Unavailable::Stopping {
                tracing::info!(core, reason = name, refused, "requests refused with 503: {why}");
            } else {
                tracing::warn!(core, reason = name, refused, "requests refused with 503: {why}");
            }
        }
        for (quota, refused) in self.quotas_due(cells, now) {
            tracing::info!(
                core,
                quota,
                refused,
                "requests throttled with 429: a quota was used up; /peers and millrace_token_requests_total show whose"
            );
        }
    }

    /// The quotas that are to be logged now, likewise.
    fn quotas_due(&mut self, cells: &CoreCells, now: Instant) -> Vec<(&'static str, u64)> {
        let totals = cells.quota_refusals.iter().map(Cell64::value);
        let lines = self.quotas.iter_mut().zip(QuotaKind::NAMES).zip(totals);
        lines.filter_map(|((line, name), total)| Some((name, line.due(total, now)?))).collect()
    }

    /// The reasons that are to be logged now, each with the refusals since its last line.
    fn due(&mut self, cells: &CoreCells, now: Instant) -> Vec<(Unavailable, u64)> {
        let is_due = |reason: &Unavailable| {
            let total = cells.unavailable[*reason as usize].value();
            Some((*reason, self.lines[*reason as usize].due(total, now)?))
        };
        Unavailable::ALL.iter().filter_map(is_due).collect()
    }
}

impl Line {
    /// Of `total` refusals, those since the last line, if a line is due now.
    fn due(&mut self, total: u64, now: Instant) -> Option<u64> {
        let is_early = self.at.is_some_and(|at| now.saturating_duration_since(at) < LOGGED_EVERY);
        if total == self.reported || is_early {
            return None;
        }
        self.at = Some(now);
        Some(total - std::mem::replace(&mut self.reported, total))
    }
}

/// Why requests are refused, and what can be done about it.
fn cause_and_remedy(reason: Unavailable) -> &'static str {
    match reason {
        Unavailable::QueueFull => {
            "the queue is full (MAX_QUEUE, MAX_QUEUE_BYTES), with OBJECT=batch because batches that \
             are not stored yet use up BATCH_MEMORY: the store takes less than clients send; if it \
             could take more, raise MAX_WORKERS; if bursts are short, raise the limits"
        }
        Unavailable::BodyMemory => {
            "request bodies that arrive or wait for room use up MAX_BODY_BYTES: raise it, or lower \
             MAX_LENGTH or BODY_TIMEOUT"
        }
        Unavailable::LargeBodies => {
            "bodies over 64 KiB, which are decompressed and parsed one at a time, come faster than \
             this core handles them: give it more CORES, lower MAX_LENGTH, or limit what one address \
             may send in front of this server"
        }
        Unavailable::SpoolFull => {
            "payloads that the store has not taken use up SPOOL_MAX: check the store, or raise it"
        }
        Unavailable::SpoolPending => {
            "requests that wait for the spool's disk use up SPOOL_PENDING: raise it, or use a \
             faster disk for SPOOL_DIR"
        }
        Unavailable::SpoolFailing => {
            "the spool cannot be written: check the disk of SPOOL_DIR; an error above says what it \
             reported"
        }
        Unavailable::Stopping => "the server is stopping: clients go to another one",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::SETTINGS;

    #[test]
    fn one_line_per_reason_and_interval_with_all_refusals() {
        let cells = &crate::metrics::cells(1)[0];
        let mut log = RefusalLog::new(0);
        let start = Instant::now();
        assert_eq!(log.due(cells, start), []);
        (0..3).for_each(|_| cells.count_unavailable(Unavailable::QueueFull));
        assert_eq!(log.due(cells, start), [(Unavailable::QueueFull, 3)], "at once");
        cells.count_unavailable(Unavailable::QueueFull);
        cells.count_unavailable(Unavailable::BodyMemory);
        let soon = start + LOGGED_EVERY / 2;
        assert_eq!(log.due(cells, soon), [(Unavailable::BodyMemory, 1)], "each for itself");
        cells.count_unavailable(Unavailable::QueueFull);
        let later = start + LOGGED_EVERY;
        assert_eq!(log.due(cells, later), [(Unavailable::QueueFull, 2)], "none is left out");
        assert_eq!(log.due(cells, later + LOGGED_EVERY), [], "nothing happened since");
        let client_rate = &cells.quota_refusals[QuotaKind::ClientRequests as usize];
        (0..5).for_each(|_| client_rate.inc());
        assert_eq!(log.quotas_due(cells, start), [("client-requests", 5)]);
        client_rate.inc();
        assert_eq!(log.quotas_due(cells, soon), []);
        assert_eq!(log.quotas_due(cells, later), [("client-requests", 1)]);
    }

    #[test]
    fn every_reason_but_a_stop_names_a_setting() {
        for reason in Unavailable::ALL {
            let text = cause_and_remedy(reason);
            let names = SETTINGS.iter().any(|setting| text.contains(setting.name));
            assert_eq!(names, reason != Unavailable::Stopping, "{text}");
        }
    }
}
