//! What one thread of the generator has counted; the threads' counts are added up at the end.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;

use super::answer::LoadAnswer;

/// Why a request, or an attempt to connect, got no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum LoadError {
    /// No connection: refused, unreachable, not within the time.
    Connect,
    /// No TLS session.
    Tls,
    /// The connection was lost before there was a whole answer.
    Lost,
    /// No answer within `--timeout`.
    Timeout,
    /// What arrived was not an answer.
    BadAnswer,
    /// Still in progress when the run was ended early.
    Unfinished,
}

impl LoadError {
    pub(super) const ALL: [LoadError; 6] = [
        LoadError::Connect,
        LoadError::Tls,
        LoadError::Lost,
        LoadError::Timeout,
        LoadError::BadAnswer,
        LoadError::Unfinished,
    ];

    /// The key in the JSON report.
    pub(super) fn name(self) -> &'static str {
        match self {
            LoadError::Connect => "connect",
            LoadError::Tls => "tls",
            LoadError::Lost => "lost",
            LoadError::Timeout => "timeout",
            LoadError::BadAnswer => "bad_answer",
            LoadError::Unfinished => "unfinished",
        }
    }

    pub(super) fn text(self) -> &'static str {
        match self {
            LoadError::Connect => "could not connect",
            LoadError::Tls => "no TLS session",
            LoadError::Lost => "connection lost",
            LoadError::Timeout => "timed out",
            LoadError::BadAnswer => "bad answer",
            LoadError::Unfinished => "unfinished",
        }
    }
}

/// Requests due in the measured part, by what became of them.
#[derive(Default)]
pub(super) struct LoadOutcomes {
    pub(super) answers: BTreeMap<u16, u64>,
    pub(super) errors: BTreeMap<LoadError, u64>,
    /// What the first answer of each status other than 2xx said, and the first error of each kind,
    /// measured or not. One of each at most.
    pub(super) said: BTreeMap<String, String>,
    /// Payloads and bytes of bodies that were answered with 2xx.
    pub(super) payloads: u64,
    pub(super) body_bytes: u64,
}

/// What open loops did beside their timetable, and closed ones because they were refused.
#[derive(Default)]
pub(super) struct LoadKeeping {
    /// Requests due and never sent, because no connection became free.
    pub(super) unsent: u64,
    /// Longest time that a request waited for a free connection.
    pub(super) behind: Duration,
    /// Time that connections paused as refusals asked for.
    pub(super) paused: Duration,
    /// Time that sending was late although a connection was free, in nanoseconds: the generator's
    /// own fault.
    pub(super) own_delay: Option<Histogram<u64>>,
}

/// What a thread used in the measured part.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ThreadCost {
    pub(super) elapsed: Duration,
    /// Asleep, or with nothing to do.
    pub(super) idle: Duration,
    /// On a CPU, and ready but waiting for one; none where the kernel does not tell.
    pub(super) cpu: Option<(Duration, Duration)>,
}

/// All that a thread counts.
pub(super) struct LoadTally {
    pub(super) outcomes: LoadOutcomes,
    /// Nanoseconds to the end of a 2xx. Requests that had no answer count with the time that they
    /// had waited: without them a server that stalls would look better than one that is slow.
    pub(super) latency: Histogram<u64>,
    /// The same of other answers. A server that refuses fast would look fast.
    pub(super) refusals: Histogram<u64>,
    pub(super) keeping: LoadKeeping,
    /// One for each thread.
    pub(super) costs: Vec<ThreadCost>,
    /// Connections that were ever open, one for each.
    pub(super) opened: usize,
}

/// A histogram of nanoseconds: 1 µs to `longest`, three digits; anything longer counts as that.
pub(super) fn latency_histogram(longest: Duration) -> Histogram<u64> {
    let high = longest.max(Duration::from_secs(60)).as_nanos() as u64;
    Histogram::new_with_bounds(1_000, high, 3).expect("these bounds are valid")
}

impl LoadTally {
    /// For requests that take at most `longest`.
    pub(super) fn new(longest: Duration) -> LoadTally {
        LoadTally {
            outcomes: LoadOutcomes::default(),
            latency: latency_histogram(longest),
            refusals: latency_histogram(longest),
            keeping: LoadKeeping::default(),
            costs: Vec::new(),
            opened: 0,
        }
    }

    /// A request of the measured part was answered.
    pub(super) fn answered(&mut self, answer: LoadAnswer, latency: Duration, body_bytes: usize) {
        *self.outcomes.answers.entry(answer.status).or_default() += 1;
        let nanos = latency.as_nanos() as u64;
        if is_success(answer.status) {
            self.latency.saturating_record(nanos);
            self.outcomes.body_bytes += body_bytes as u64;
            self.outcomes.payloads += answer.accepted.unwrap_or_default();
        } else {
            self.refusals.saturating_record(nanos);
        }
    }

    /// Remembers what an answer or an error said, if it is the first of its kind.
    pub(super) fn remember(&mut self, kind: &str, text: impl FnOnce() -> String) {
        if !self.outcomes.said.contains_key(kind) {
            self.outcomes.said.insert(kind.to_owned(), text());
        }
    }

    /// Requests of the measured part that were never sent, the oldest of which was due `longest`
    /// before the end: they are spread evenly over that time.
    pub(super) fn never_sent(&mut self, count: u64, longest: Duration) {
        /// Steps to spread them in; more would not be seen in a histogram.
        const STEPS_MAX: u64 = 10_000;
        self.keeping.unsent += count;
        if count > 0 {
            self.keeping.behind = self.keeping.behind.max(longest);
        }
        let steps = count.min(STEPS_MAX);
        for step in 0..steps {
            let here = count * (step + 1) / steps - count * step / steps;
            let waited = longest.mul_f64((steps - step) as f64 / steps as f64);
            self.latency.saturating_record_n(waited.as_nanos() as u64, here);
        }
    }

    pub(super) fn add(&mut self, other: LoadTally) {
        let LoadTally { outcomes, latency, refusals, keeping, costs, opened } = other;
        outcomes.answers.into_iter().for_each(|(status, n)| {
            *self.outcomes.answers.entry(status).or_default() += n;
        });
        outcomes.errors.into_iter().for_each(|(kind, n)| {
            *self.outcomes.errors.entry(kind).or_default() += n;
        });
        for (kind, text) in outcomes.said {
            self.outcomes.said.entry(kind).or_insert(text);
        }
        self.outcomes.payloads += outcomes.payloads;
        self.outcomes.body_bytes += outcomes.body_bytes;
        self.latency.add(latency).expect("all have the same bounds");
        self.refusals.add(refusals).expect("all have the same bounds");
        self.keeping.unsent += keeping.unsent;
        self.keeping.behind = self.keeping.behind.max(keeping.behind);
        self.keeping.paused += keeping.paused;
        match (&mut self.keeping.own_delay, keeping.own_delay) {
            (Some(all), Some(own)) => all.add(own).expect("all have the same bounds"),
            (all, own) => *all = all.take().or(own),
        }
        self.costs.extend(costs);
        self.opened += opened;
    }

    /// Answers with 2xx.
    pub(super) fn successes(&self) -> u64 {
        let answers = self.outcomes.answers.iter();
        answers.filter(|(status, _)| is_success(**status)).map(|(_, n)| n).sum()
    }
}

pub(super) fn is_success(status: u16) -> bool {
    (200..300).contains(&status)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONGEST: Duration = Duration::from_secs(60);

    #[test]
    fn refusals_do_not_improve_the_latency() {
        let mut tally = LoadTally::new(LONGEST);
        let answer = |status| LoadAnswer { status, accepted: Some(3), ..LoadAnswer::default() };
        tally.answered(answer(200), Duration::from_millis(100), 50);
        (0..9).for_each(|_| tally.answered(answer(503), Duration::from_millis(1), 50));
        assert_eq!(tally.latency.value_at_quantile(0.5) / 1_000_000, 100);
        assert_eq!(tally.refusals.value_at_quantile(0.5) / 1_000_000, 1);
        assert_eq!((tally.successes(), tally.outcomes.payloads), (1, 3));
        assert_eq!(tally.outcomes.body_bytes, 50);
    }

    #[test]
    fn what_was_never_sent_counts_with_the_time_that_it_had_waited() {
        for count in [1, 3, 9_999, 1_000_000] {
            let mut tally = LoadTally::new(LONGEST);
            tally.never_sent(count, Duration::from_secs(10));
            assert_eq!((tally.keeping.unsent, tally.latency.len()), (count, count));
            let max = tally.latency.max() as f64 / 1e9;
            assert!((9.9..10.1).contains(&max), "{count}: {max}");
            if count > 100 {
                let half = tally.latency.value_at_quantile(0.5) as f64 / 1e9;
                assert!((4.9..5.1).contains(&half), "{count}: {half}");
            }
        }
        let mut tally = LoadTally::new(LONGEST);
        tally.never_sent(0, Duration::ZERO);
        assert_eq!(tally.latency.len(), 0);
    }

    #[test]
    fn tallies_add_up() {
        let mut all = LoadTally::new(LONGEST);
        for status in [200, 200, 429] {
            let mut tally = LoadTally::new(LONGEST);
            let answer = LoadAnswer { status, accepted: Some(2), ..LoadAnswer::default() };
            tally.answered(answer, Duration::from_millis(5), 10);
            tally.remember("429", || format!("said {status}"));
            *tally.outcomes.errors.entry(LoadError::Lost).or_default() += 1;
            tally.keeping.behind = Duration::from_millis(u64::from(status));
            tally.keeping.own_delay = Some(latency_histogram(LONGEST));
            tally.costs.push(ThreadCost::default());
            tally.opened = 4;
            all.add(tally);
        }
        assert_eq!(all.outcomes.answers, BTreeMap::from([(200, 2), (429, 1)]));
        assert_eq!(all.outcomes.errors, BTreeMap::from([(LoadError::Lost, 3)]));
        assert_eq!(all.outcomes.said["429"], "said 200");
        assert_eq!((all.latency.len(), all.refusals.len(), all.opened), (2, 1, 12));
        assert_eq!(all.keeping.behind, Duration::from_millis(429));
        assert_eq!((all.costs.len(), all.keeping.own_delay.is_some()), (3, true));
    }
}
