//! What a run found: for people, and as JSON (`docs/benchmarks.md` documents it). Both say of what
//! kind the latency is, and when the figures are those of the generator rather than the server.

use std::io::{self, Write};
use std::time::Duration;

use hdrhistogram::Histogram;
use serde_json::{Map, Value, json};

use super::client::{LoadPlan, LoadRun};
use super::tally::{LoadError, LoadTally};
use crate::log::CountOf;

/// From which share of its time on a busy thread may be the limit.
const BUSY: f64 = 0.9;
/// From which share of their time on threads that wait for a CPU matter.
const STARVED: f64 = 0.05;
/// From which own delay (p99) on the latencies of an open loop are wrong.
const DELAYED: Duration = Duration::from_millis(1);
/// A request that waits longer for a connection says that the server does not keep up.
const BEHIND: Duration = Duration::from_millis(10);

/// Figures of a run.
pub(super) struct LoadReport<'a> {
    pub(super) url: &'a str,
    pub(super) run: &'a LoadRun,
    pub(super) tally: &'a LoadTally,
    pub(super) warm_up: Duration,
    pub(super) interrupted: bool,
}

/// What the threads used, as shares of the measured part.
struct Use {
    /// Of the busiest thread.
    busy: f64,
    /// All threads together, in seconds.
    cpu_seconds: Option<f64>,
    /// Of the thread that waited for a CPU for longest.
    cpu_wait: Option<f64>,
}

impl LoadReport<'_> {
    fn plan(&self) -> &LoadPlan {
        &self.run.plan
    }

    /// Length of the measured part.
    fn seconds(&self) -> f64 {
        self.run.clock.measured().as_secs_f64()
    }

    fn per_second(&self, count: u64) -> f64 {
        count as f64 / self.seconds()
    }

    fn is_open(&self) -> bool {
        self.plan().rate.is_some()
    }

    /// Payloads of requests with 2xx; none if nobody knows how many there were.
    fn payloads(&self) -> Option<u64> {
        let payloads = self.tally.outcomes.payloads;
        (self.plan().requests.payloads.is_some() || payloads > 0).then_some(payloads)
    }

    fn errors(&self, kind: LoadError) -> u64 {
        self.tally.outcomes.errors.get(&kind).copied().unwrap_or(0)
    }

    fn spent(&self) -> Use {
        let costs = &self.tally.costs;
        let share = |part: Duration, of: Duration| part.as_secs_f64() / of.as_secs_f64().max(1e-9);
        let busy = costs.iter().map(|c| 1.0 - share(c.idle, c.elapsed)).fold(0.0, f64::max);
        let cpu: Option<Vec<_>> = costs.iter().map(|c| c.cpu.zip(Some(c.elapsed))).collect();
        Use {
            busy: busy.clamp(0.0, 1.0),
            cpu_seconds: cpu.as_ref().map(|all| all.iter().map(|c| c.0.0.as_secs_f64()).sum()),
            cpu_wait: cpu.map(|all| all.iter().map(|c| share(c.0.1, c.1)).fold(0.0, f64::max)),
        }
    }

    /// Share of the connections' time in which a closed loop did not send, as it was told.
    fn paused(&self) -> f64 {
        let all = self.seconds() * self.plan().connections as f64;
        (self.tally.keeping.paused.as_secs_f64() / all.max(1e-9)).min(1.0)
    }

    /// What a reader must know before the figures.
    pub(super) fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        let Use { busy, cpu_wait, .. } = self.spent();
        let keeping = &self.tally.keeping;
        let own_delay = keeping.own_delay.as_ref().map(|own| nanos(own.value_at_quantile(0.99)));
        if busy >= BUSY {
            warnings.push(format!(
                "the load generator was the limit: its busiest thread had work for {:.0} % of the time; the server may \
                 do more. Give it more --threads, or another host",
                busy * 100.0
            ));
        }
        if let Some(wait) = cpu_wait
            && wait >= STARVED
        {
            warnings.push(format!(
                "the load generator waited for a CPU for {:.0} % of the time: it shares its cores, with the server \
                 perhaps, and latencies include that. Run it on another host, or pin both (taskset, CORES)",
                wait * 100.0
            ));
        }
        if let Some(delay) = own_delay
            && delay >= DELAYED
        {
            warnings.push(format!(
                "the load generator sent late although connections were free (p99 {}): latencies are its own as well. \
                 Give it more --threads or a lower --rate",
                shown(delay)
            ));
        }
        if keeping.unsent > 0 || keeping.behind >= BEHIND {
            warnings.push(format!(
                "behind schedule by up to {}, {} requests never sent: all {} connections were waiting for answers. The \
                 server does not keep up with this rate, or more --connections are needed",
                shown(keeping.behind),
                keeping.unsent,
                self.plan().connections
            ));
        }
        if self.tally.opened < self.plan().connections {
            warnings.push(format!(
                "only {} of {} connections were ever open",
                self.tally.opened,
                self.plan().connections
            ));
        }
        if self.paused() > 0.0 {
            warnings.push(format!(
                "refused connections paused as retry-after says, {:.0} % of their time: the rate is what the server \
                 asked for, not what it was offered. With --rate refusals change nothing",
                self.paused() * 100.0
            ));
        }
        warnings
    }

    /// # Errors
    /// `out` cannot be written.
    pub(super) fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        self.write_setting(out)?;
        let LoadTally { outcomes, latency, refusals, keeping, .. } = self.tally;
        write!(out, "accepted  {:.0} requests/s", self.per_second(self.tally.successes()))?;
        if let Some(payloads) = self.payloads() {
            write!(out, ", {:.0} payloads/s", self.per_second(payloads))?;
        }
        writeln!(out, ", {:.2} MB/s of bodies", self.per_second(outcomes.body_bytes) / 1e6)?;
        let answers: Vec<String> =
            outcomes.answers.iter().map(|(status, n)| format!("{status}: {n}")).collect();
        let answers = if answers.is_empty() { "none".to_owned() } else { answers.join(", ") };
        writeln!(out, "answers   {answers}")?;
        let errors: Vec<String> = LoadError::ALL
            .into_iter()
            .filter(|kind| self.errors(*kind) > 0)
            .map(|kind| format!("{}: {}", kind.text(), self.errors(kind)))
            .collect();
        let errors = if errors.is_empty() { "none".to_owned() } else { errors.join(", ") };
        writeln!(out, "errors    {errors}")?;
        for (kind, text) in &outcomes.said {
            writeln!(out, "          the first {}: {text}", kind.replace('_', " "))?;
        }
        writeln!(out, "latency   {}", quantiles(latency))?;
        let what = if self.is_open() {
            "response time: from when a request was due to the end of its answer, the wait for a connection included"
        } else {
            "service time under load: from sending to the end of the answer. A closed loop asks a slow server less \
             often, so it does not see what waits; --rate does"
        };
        writeln!(out, "          {what}")?;
        if !refusals.is_empty() {
            writeln!(out, "refusals  {}", quantiles(refusals))?;
        }
        if let (Some(rate), Some(own)) = (self.plan().rate, &keeping.own_delay) {
            writeln!(
                out,
                "schedule  {rate} requests/s: {} sent, {} never; behind by up to {}, own delay p99 {}, max {}",
                own.len(),
                keeping.unsent,
                shown(keeping.behind),
                shown(nanos(own.value_at_quantile(0.99))),
                shown(nanos(own.max()))
            )?;
        }
        let Use { busy, cpu_seconds, cpu_wait } = self.spent();
        write!(out, "client    busiest thread {:.0} %", busy * 100.0)?;
        if let (Some(cpu), Some(wait)) = (cpu_seconds, cpu_wait) {
            write!(
                out,
                ", {:.2} CPUs used, {:.1} % of the time waiting for one",
                cpu / self.seconds(),
                wait * 100.0
            )?;
        }
        writeln!(out)?;
        self.warnings().iter().try_for_each(|warning| writeln!(out, "warning   {warning}"))
    }

    fn write_setting(&self, out: &mut dyn Write) -> io::Result<()> {
        let LoadPlan { requests, connections, threads, rate, .. } = self.plan();
        write!(out, "POST {}: {:.0} bytes", self.url, requests.body_bytes())?;
        match requests.payloads {
            Some(payloads) => writeln!(out, " with {} a request", CountOf(payloads, "payload"))?,
            None => writeln!(out, " of your own a request")?,
        }
        match rate {
            Some(rate) => write!(out, "open loop at {rate} requests/s")?,
            None => write!(out, "closed loop")?,
        }
        writeln!(
            out,
            ", {}, {}, {:.1} s after {:.1} s of warm-up{}",
            CountOf(*connections, "connection"),
            CountOf(*threads, "thread"),
            self.seconds(),
            self.warm_up.as_secs_f64(),
            if self.interrupted { " (interrupted)" } else { "" }
        )
    }

    pub(super) fn json(&self) -> Value {
        let LoadTally { outcomes, latency, refusals, keeping, .. } = self.tally;
        let plan = self.plan();
        let answers: Map<String, Value> =
            outcomes.answers.iter().map(|(status, n)| (status.to_string(), json!(n))).collect();
        let errors: Map<String, Value> = LoadError::ALL
            .into_iter()
            .map(|kind| (kind.name().to_owned(), json!(self.errors(kind))))
            .collect();
        let schedule = keeping.own_delay.as_ref().map(|own| {
            json!({
                "sent": own.len(),
                "unsent": keeping.unsent,
                "behind_ms_max": millis(keeping.behind),
                "own_delay_ms_p99": millis(nanos(own.value_at_quantile(0.99))),
                "own_delay_ms_max": millis(nanos(own.max())),
            })
        });
        let Use { busy, cpu_seconds, cpu_wait } = self.spent();
        json!({
            "url": self.url,
            "loop": if self.is_open() { "open" } else { "closed" },
            "rate": plan.rate,
            "connections": plan.connections,
            "connections_opened": self.tally.opened,
            "threads": plan.threads,
            "warm_up_seconds": self.warm_up.as_secs_f64(),
            "seconds": self.seconds(),
            "interrupted": self.interrupted,
            "payloads_per_request": plan.requests.payloads,
            "body_bytes_per_request": plan.requests.body_bytes(),
            "accepted": {
                "requests": self.tally.successes(),
                "requests_per_second": self.per_second(self.tally.successes()),
                "payloads_per_second": self.payloads().map(|n| self.per_second(n)),
                "body_bytes_per_second": self.per_second(outcomes.body_bytes),
            },
            "answers": answers,
            "errors": errors,
            "said": outcomes.said,
            "latency_ms": latencies(latency),
            "refusals_ms": latencies(refusals),
            "schedule": schedule,
            "paused_share": self.paused(),
            "client": {
                "busy_share": busy,
                "cpu_seconds": cpu_seconds,
                "cpu_wait_share": cpu_wait,
            },
            "warnings": self.warnings(),
        })
    }
}

/// What is shown of a histogram.
const QUANTILES: [(&str, f64); 4] = [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999)];

fn quantiles(latency: &Histogram<u64>) -> String {
    if latency.is_empty() {
        return "none: no answer".to_owned();
    }
    let at = |q| shown(nanos(latency.value_at_quantile(q)));
    let shares: Vec<String> = QUANTILES.map(|(name, q)| format!("{name} {}", at(q))).into();
    format!("{}, max {}", shares.join(", "), shown(nanos(latency.max())))
}

fn latencies(latency: &Histogram<u64>) -> Option<Value> {
    let mut object = Map::new();
    object.insert("count".to_owned(), json!(latency.len()));
    object.insert("mean".to_owned(), json!(latency.mean() / 1e6));
    for (name, q) in QUANTILES {
        object.insert(name.to_owned(), json!(millis(nanos(latency.value_at_quantile(q)))));
    }
    object.insert("max".to_owned(), json!(millis(nanos(latency.max()))));
    (!latency.is_empty()).then_some(Value::Object(object))
}

fn nanos(nanos: u64) -> Duration {
    Duration::from_nanos(nanos)
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Three digits.
fn shown(time: Duration) -> String {
    let (value, unit) = match time.as_secs_f64() {
        s if s < 1e-3 => (s * 1e6, "µs"),
        s if s < 1.0 => (s * 1e3, "ms"),
        s => (s, "s"),
    };
    let digits = if value < 9.995 { 2 } else { usize::from(value < 99.95) };
    format!("{value:.digits$} {unit}")
}
