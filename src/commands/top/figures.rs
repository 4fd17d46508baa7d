//! From the texts of `/metrics` to figures: what `control/page/figures.js` does in the browser.

use std::collections::{BTreeMap, VecDeque};

/// Figures of the past that are kept, one per column of the widest chart.
const HISTORY_MAX: usize = 240;

/// The samples of a scrape in the classic text format.
#[derive(Debug, Default)]
pub(super) struct Scrape {
    series: BTreeMap<String, Vec<Sampled>>,
    /// What HELP says.
    help: BTreeMap<String, String>,
    /// Values of the label `core`, in the order of the scrape.
    pub(super) cores: Vec<String>,
}

#[derive(Debug)]
struct Sampled {
    labels: Vec<(String, String)>,
    value: f64,
}

impl Sampled {
    fn label(&self, name: &str) -> Option<&str> {
        self.labels.iter().find(|(of, _)| of == name).map(|(_, value)| value.as_str())
    }

    fn is_of(&self, core: Option<&str>) -> bool {
        core.is_none_or(|core| self.label("core") == Some(core))
    }
}

impl Scrape {
    /// # Errors
    /// It cannot be read, or is not that of a millrace.
    pub(super) fn parse(text: &str) -> Result<Scrape, String> {
        let mut scrape = Scrape::default();
        for line in text.lines() {
            if let Some((name, help)) =
                line.strip_prefix("# HELP ").and_then(|help| help.split_once(' '))
            {
                scrape.help.insert(name.to_owned(), help.to_owned());
            }
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (name, sample) =
                sample_of(line).ok_or_else(|| format!("/metrics cannot be read: {line:.80}"))?;
            scrape.series.entry(name.to_owned()).or_default().push(sample);
        }
        let of_cores = scrape.series.get("millrace_connections").map_or(&[][..], |of| of);
        scrape.cores =
            of_cores.iter().filter_map(|of| of.label("core").map(str::to_owned)).collect();
        if scrape.cores.is_empty() {
            return Err("the answer of /metrics is not that of a millrace".to_owned());
        }
        Ok(scrape)
    }

    fn samples(&self, name: &str) -> &[Sampled] {
        let ours = self.series.get(&format!("millrace_{name}"));
        ours.or_else(|| self.series.get(name)).map_or(&[], |found| found)
    }

    /// The sum over the samples of one core, or of all, that `keep` accepts.
    fn sum_where(
        &self,
        name: &str,
        core: Option<&str>,
        keep: impl Fn(&Sampled) -> bool,
    ) -> Option<f64> {
        let kept = self.samples(name).iter().filter(|of| of.is_of(core) && keep(of));
        kept.map(|of| of.value).reduce(|all, of| all + of)
    }

    pub(super) fn sum(&self, name: &str, core: Option<&str>) -> Option<f64> {
        self.sum_where(name, core, |_| true)
    }

    /// The greatest of them.
    fn max(&self, name: &str, core: Option<&str>) -> Option<f64> {
        let found = self.samples(name).iter().filter(|of| of.is_of(core));
        found.map(|of| of.value).reduce(f64::max)
    }

    /// Whether the process behind it is another one than that behind `before`.
    pub(super) fn is_restart_of(&self, before: &Scrape) -> bool {
        let started = "process_start_time_seconds";
        if let (Some(then), Some(now)) = (before.sum(started, None), self.sum(started, None)) {
            return then != now;
        }
        let is_counter =
            |name: &str| ["_total", "_bucket", "_count"].iter().any(|end| name.ends_with(end));
        self.series.iter().filter(|(name, _)| is_counter(name)).any(|(name, now)| {
            // In the same order: a process adds series at the end.
            let then = before.series.get(name).into_iter().flatten();
            now.iter()
                .zip(then)
                .any(|(now, then)| then.labels == now.labels && then.value > now.value)
        })
    }

    /// Observations since `before` by upper bound, ascending, each count that of its own bucket.
    fn observed_since(&self, before: &Scrape, name: &str, core: Option<&str>) -> Vec<(f64, f64)> {
        let name = format!("{name}_bucket");
        let mut cumulated: Vec<(f64, f64)> = Vec::new();
        for (scrape, sign) in [(self, 1.0), (before, -1.0)] {
            for of in scrape.samples(&name).iter().filter(|of| of.is_of(core)) {
                let Some(bound) = of.label("le").and_then(number) else { continue };
                match cumulated.iter_mut().find(|(known, _)| *known == bound) {
                    Some((_, count)) => *count += sign * of.value,
                    None => cumulated.push((bound, sign * of.value)),
                }
            }
        }
        cumulated.sort_by(|(a, _), (b, _)| a.total_cmp(b));
        let mut less = 0.0;
        for (_, count) in &mut cumulated {
            (*count, less) = (*count - less, *count);
        }
        cumulated
    }

    /// What is limited, fullest first, each on the core that is fullest.
    pub(super) fn fullness(&self) -> Vec<Fullness> {
        let limits = self.series.keys().filter_map(|name| match name.as_str() {
            "process_max_fds" => Some((name, "process_max_fds")),
            name_of => Some((name, name_of.strip_prefix("millrace_")?.strip_suffix("_limit")?)),
        });
        let mut rows: Vec<Fullness> = limits
            .filter_map(|(name, base)| {
                let used = match base {
                    "puts" => "puts_in_flight",
                    "process_max_fds" => "process_open_fds",
                    "spool_disk_bytes" if !self.samples("spool_filled_bytes").is_empty() => {
                        "spool_filled_bytes"
                    }
                    base => base,
                };
                let all = self.series[name].iter().filter_map(|limit| {
                    let core = limit.label("core");
                    let value = self.sum(used, core)?;
                    let share = value / limit.value;
                    (limit.value > 0.0).then_some((value, limit.value, share, core))
                });
                let (value, limit, share, core) = all.max_by(|a, b| a.2.total_cmp(&b.2))?;
                let help = self.help.get(&format!("millrace_{used}"));
                let help = help.or_else(|| self.help.get(used)).cloned();
                Some(Fullness {
                    what: help.unwrap_or_else(|| used.replace('_', " ")),
                    is_bytes: used.contains("bytes"),
                    may_be_full: ["puts_in_flight", "workers_busy"].contains(&used),
                    core: core.map(str::to_owned),
                    value,
                    limit,
                    share,
                })
            })
            .collect();
        rows.extend(self.disks());
        rows.sort_by(|a, b| b.share.total_cmp(&a.share));
        rows
    }

    fn disks(&self) -> impl Iterator<Item = Fullness> {
        self.samples("disk_size_bytes").iter().filter_map(|size| {
            let directory = size.label("directory")?;
            let is_it = |of: &Sampled| of.label("directory") == Some(directory);
            let free = self.sum_where("disk_free_bytes", None, is_it)?;
            let (value, limit) = (size.value - free, size.value);
            (limit > 0.0).then(|| Fullness {
                what: format!("Disk of {directory}"),
                is_bytes: true,
                may_be_full: false,
                core: None,
                value,
                limit,
                share: value / limit,
            })
        })
    }
}

/// How much of a limit is used.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Fullness {
    pub(super) what: String,
    pub(super) is_bytes: bool,
    /// It is no alarm.
    pub(super) may_be_full: bool,
    pub(super) core: Option<String>,
    pub(super) value: f64,
    pub(super) limit: f64,
    pub(super) share: f64,
}

fn number(text: &str) -> Option<f64> {
    match text {
        "+Inf" => Some(f64::INFINITY),
        "-Inf" => Some(f64::NEG_INFINITY),
        text => text.parse().ok(),
    }
}

/// Name, labels and value of a line.
fn sample_of(line: &str) -> Option<(&str, Sampled)> {
    let end = line.find(['{', ' ']).filter(|end| *end > 0)?;
    let (name, mut rest) = line.split_at(end);
    let mut labels = Vec::new();
    if let Some(inner) = rest.strip_prefix('{') {
        rest = inner;
        while let Some((label, after)) = label_of(rest) {
            labels.push(label);
            rest = after.strip_prefix(',').unwrap_or(after);
        }
        rest = rest.strip_prefix('}')?;
    }
    // A timestamp may follow.
    let value = number(rest.trim().split(' ').next()?)?;
    Some((name, Sampled { labels, value }))
}

/// `name="value"` at the beginning of `text`, and the rest.
fn label_of(text: &str) -> Option<((String, String), &str)> {
    let (name, rest) = text.split_once("=\"")?;
    if name.contains(['}', '"']) {
        return None;
    }
    let mut value = String::new();
    let mut chars = rest.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some(((name.to_owned(), value), &rest[at + 1..])),
            '\\' => match chars.next()?.1 {
                'n' => value.push('\n'),
                c => value.push(c),
            },
            c => value.push(c),
        }
    }
    None
}

/// The quantile `q` in seconds, by a straight line within its bucket; beyond the last finite bound it
/// is that bound. `None` without observations.
fn quantile(buckets: &[(f64, f64)], q: f64) -> Option<f64> {
    let rank = q * buckets.iter().map(|(_, count)| count).sum::<f64>();
    let (mut seen, mut least) = (0.0, 0.0);
    for (bound, count) in buckets {
        if *count > 0.0 && seen + count >= rank {
            let is_last = bound.is_infinite();
            return Some(if is_last {
                least
            } else {
                least + (bound - least) * (rank - seen) / count
            });
        }
        seen += count;
        if bound.is_finite() {
            least = *bound;
        }
    }
    None
}

/// What is shown of one core, or of all. Rates are per second between two scrapes, and `None` without
/// an earlier one.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Shown {
    pub(super) accepted: Option<f64>,
    pub(super) accepted_bytes: Option<f64>,
    pub(super) stored: Option<f64>,
    pub(super) stored_bytes: Option<f64>,
    pub(super) puts: Option<f64>,
    pub(super) requests: Option<f64>,
    pub(super) refused: Option<f64>,
    pub(super) unavailable: Option<f64>,
    pub(super) retries: Option<f64>,
    pub(super) latency: Latencies,
    pub(super) put_latency: Latencies,
    pub(super) levels: Levels,
}

/// In seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Latencies {
    pub(super) p50: Option<f64>,
    pub(super) p99: Option<f64>,
}

/// What is shown as it is.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Levels {
    pub(super) queue: Option<f64>,
    pub(super) unfinished: Option<f64>,
    pub(super) in_flight: Option<f64>,
    pub(super) in_flight_limit: Option<f64>,
    pub(super) awaiting_retry: Option<f64>,
    pub(super) spool_bytes: Option<f64>,
    pub(super) spool_payloads: Option<f64>,
    pub(super) connections: Option<f64>,
    pub(super) dead_lettered: Option<f64>,
    pub(super) dead_letter_bytes: Option<f64>,
    pub(super) lost: Option<f64>,
    /// Age of the oldest payload that is not stored, in seconds.
    pub(super) oldest: Option<f64>,
}

impl Shown {
    /// `before` is the scrape `seconds` earlier, of the same process.
    pub(super) fn of(before: Option<(&Scrape, f64)>, now: &Scrape, core: Option<&str>) -> Shown {
        let any: fn(&Sampled) -> bool = |_| true;
        let rate_where = |name: &str, keep: fn(&Sampled) -> bool| {
            let (before, seconds) = before.filter(|(_, seconds)| *seconds > 0.0)?;
            let grown = now.sum_where(name, core, keep)? - before.sum_where(name, core, keep)?;
            (grown >= 0.0).then(|| grown / seconds)
        };
        let rate = |name: &str| rate_where(name, any);
        let latencies = |name: &str| {
            let Some((before, _)) = before else { return Latencies::default() };
            let buckets = now.observed_since(before, name, core);
            Latencies { p50: quantile(&buckets, 0.5), p99: quantile(&buckets, 0.99) }
        };
        let level = |name: &str| now.sum(name, core);
        Shown {
            accepted: rate("payloads_accepted_total"),
            accepted_bytes: rate("bytes_accepted_total"),
            stored: rate("payloads_stored_total"),
            stored_bytes: rate("bytes_stored_total"),
            puts: rate("put_latency_seconds_count"),
            requests: rate("requests_total"),
            refused: rate_where("requests_total", |of| {
                of.label("status").is_some_and(|status| status.starts_with('4'))
            }),
            unavailable: rate_where("requests_total", |of| of.label("status") == Some("503")),
            retries: rate("put_retries_total"),
            latency: latencies("request_latency_seconds"),
            put_latency: latencies("put_latency_seconds"),
            levels: Levels {
                queue: level("queue_depth"),
                unfinished: level("payloads_unfinished"),
                in_flight: level("puts_in_flight"),
                in_flight_limit: level("puts_limit"),
                awaiting_retry: level("puts_awaiting_retry"),
                spool_bytes: level("spool_bytes"),
                spool_payloads: level("spool_payloads"),
                connections: level("connections"),
                dead_lettered: level("payloads_dead_lettered_total"),
                dead_letter_bytes: now.sum("dead_letter_directory_bytes", None),
                lost: level("payloads_lost_total"),
                oldest: now.max("oldest_unstored_payload_age_seconds", core),
            },
        }
    }
}

/// What the charts show, oldest first; `None` where nothing is known.
#[derive(Debug, Default)]
pub(super) struct Past(VecDeque<Option<Shown>>);

impl Past {
    pub(super) fn push(&mut self, shown: Option<Shown>) {
        if self.0.len() == HISTORY_MAX {
            self.0.pop_front();
        }
        self.0.push_back(shown);
    }

    /// The newest `columns` values.
    pub(super) fn values(
        &self,
        columns: usize,
        pick: impl Fn(&Shown) -> Option<f64>,
    ) -> Vec<Option<f64>> {
        let skipped = self.0.len().saturating_sub(columns);
        self.0.iter().skip(skipped).map(|shown| shown.as_ref().and_then(&pick)).collect()
    }
}

/// Three digits that count and a letter; whole numbers below 10,000 are exact.
pub(super) fn count(value: Option<f64>) -> String {
    match value {
        None => "–".to_owned(),
        Some(value) if value.fract() == 0.0 && value.abs() < 10_000.0 => format!("{value:.0}"),
        Some(value) => scaled(value, 1000.0, &["", "k", "M", "G", "T"]),
    }
}

pub(super) fn bytes(value: Option<f64>) -> String {
    match value {
        None => "–".to_owned(),
        Some(value) if value < 1023.5 => format!("{value:.0} B"),
        Some(value) => scaled(value, 1024.0, &["", " KiB", " MiB", " GiB", " TiB", " PiB"]),
    }
}

pub(super) fn seconds(value: Option<f64>) -> String {
    match value {
        None => "–".to_owned(),
        Some(0.0) => "0 s".to_owned(),
        Some(value) if value < 0.9995e-3 => digits(value * 1e6) + " µs",
        Some(value) if value < 0.9995 => digits(value * 1e3) + " ms",
        Some(value) if value < 99.5 => digits(value) + " s",
        Some(value) => {
            humantime::format_duration(std::time::Duration::from_secs(value as u64)).to_string()
        }
    }
}

fn scaled(mut value: f64, step: f64, units: &[&str]) -> String {
    let mut unit = 0;
    while value.abs() >= step - 0.5 && unit + 1 < units.len() {
        (value, unit) = (value / step, unit + 1);
    }
    digits(value) + units[unit]
}

/// Three digits that count, without zeros at the end.
fn digits(value: f64) -> String {
    let decimals = if value.abs() >= 100.0 {
        0
    } else if value.abs() >= 10.0 {
        1
    } else {
        2
    };
    let text = format!("{value:.decimals$}");
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scrape(lines: &[&str]) -> Scrape {
        let text = format!(
            "# HELP millrace_queue_depth Payloads queued\nmillrace_connections{{core=\"0\"}} 1\n\
             millrace_connections{{core=\"5\"}} 2\n{}\n",
            lines.join("\n")
        );
        Scrape::parse(&text).unwrap()
    }

    #[test]
    fn lines_are_read_or_refused() {
        let read = scrape(&[
            "millrace_token_requests_total{token=\"a \\\"b\\\", {c}\\\\ \\n\",status=\"200\"} 7 1700",
            "millrace_tokens 3",
            "millrace_requests_total{core=\"5\",status=\"503\",reason=\"queue_full\"} 2",
        ]);
        assert_eq!(read.cores, ["0", "5"]);
        assert_eq!(
            (read.sum("connections", None), read.sum("connections", Some("5"))),
            (Some(3.0), Some(2.0))
        );
        assert_eq!((read.sum("tokens", None), read.sum("no_such", None)), (Some(3.0), None));
        let token = &read.samples("token_requests_total")[0];
        assert_eq!((token.label("token"), token.value), (Some("a \"b\", {c}\\ \n"), 7.0));
        for text in [
            "",
            "up 1",
            "<html>",
            "millrace_connections{core=\"0\"} x",
            "millrace_connections{core=\"0} 1",
        ] {
            assert!(Scrape::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn rates_are_of_the_time_between_and_never_negative() {
        let before = scrape(&[
            "millrace_payloads_accepted_total{core=\"0\"} 10",
            "millrace_payloads_accepted_total{core=\"5\"} 0",
        ]);
        let after = scrape(&[
            "millrace_payloads_accepted_total{core=\"0\"} 30",
            "millrace_payloads_accepted_total{core=\"5\"} 1",
        ]);
        let rate = |before: Option<(&Scrape, f64)>, after: &Scrape, core| {
            Shown::of(before, after, core).accepted
        };
        assert_eq!(rate(Some((&before, 2.0)), &after, None), Some(10.5));
        assert_eq!(rate(Some((&before, 2.0)), &after, Some("0")), Some(10.0));
        assert_eq!(rate(None, &after, None), None);
        assert_eq!(rate(Some((&after, 2.0)), &before, None), None);
        assert!(before.is_restart_of(&after) && !after.is_restart_of(&before));
        let started = |at| scrape(&[&format!("process_start_time_seconds {at}")]);
        assert!(started(2).is_restart_of(&started(1)) && !started(1).is_restart_of(&started(1)));
    }

    #[test]
    fn quantiles_lie_within_their_bucket() {
        let buckets =
            |counts: [u64; 4]| {
                let bounds = ["0.001", "0.002", "0.005", "+Inf"];
                let lines: Vec<String> = bounds.iter().zip(counts).map(|(le, count)| {
                format!("millrace_request_latency_seconds_bucket{{le=\"{le}\",core=\"0\"}} {count}")
            }).collect();
                scrape(&lines.iter().map(String::as_str).collect::<Vec<_>>())
            };
        let (before, after) = (buckets([10, 10, 10, 10]), buckets([10, 60, 110, 110]));
        let shown = Shown::of(Some((&before, 1.0)), &after, None).latency;
        assert_eq!(shown.p50, Some(0.002));
        assert!((shown.p99.unwrap() - 0.00494).abs() < 1e-9, "{shown:?}");
        assert_eq!(Shown::of(Some((&after, 1.0)), &after, None).latency, Latencies::default());
        assert_eq!(quantile(&[(0.001, 0.0), (f64::INFINITY, 3.0)], 0.5), Some(0.001));
    }

    #[test]
    fn the_fullest_core_of_each_limit_is_shown_fullest_limit_first() {
        let rows = scrape(&[
            "millrace_queue_depth{core=\"0\"} 10",
            "millrace_queue_depth{core=\"5\"} 90",
            "millrace_queue_depth_limit{core=\"0\"} 100",
            "millrace_queue_depth_limit{core=\"5\"} 100",
            "millrace_puts_in_flight{core=\"0\"} 1",
            "millrace_puts_limit{core=\"0\"} 1",
            "millrace_batch_bytes{core=\"0\"} 0",
            "millrace_batch_bytes_limit{core=\"0\"} 0",
            "millrace_disk_size_bytes{directory=\"/d\"} 100",
            "millrace_disk_free_bytes{directory=\"/d\"} 50",
        ])
        .fullness();
        let seen: Vec<_> = rows
            .iter()
            .map(|row| (row.what.as_str(), row.core.as_deref(), row.share, row.may_be_full))
            .collect();
        let expected = [
            ("puts in flight", Some("0"), 1.0, true),
            ("Payloads queued", Some("5"), 0.9, false),
            ("Disk of /d", None, 0.5, false),
        ];
        assert_eq!(seen, expected);
    }

    #[test]
    fn the_past_is_bounded() {
        let mut past = Past::default();
        (0..300).for_each(|n| {
            past.push(
                (n != 298).then(|| Shown { accepted: Some(f64::from(n)), ..Shown::default() }),
            )
        });
        assert_eq!(past.0.len(), HISTORY_MAX);
        assert_eq!(past.values(3, |of| of.accepted), [Some(297.0), None, Some(299.0)]);
    }

    #[test]
    fn texts_are_short() {
        for (value, text) in [
            (0.0, "0"),
            (9999.0, "9999"),
            (12345.0, "12.3k"),
            (999_999.0, "1M"),
            (0.123, "0.12"),
            (99.96, "100"),
        ] {
            assert_eq!(count(Some(value)), text);
        }
        for (value, text) in
            [(0.0, "0 B"), (1023.0, "1023 B"), (1536.0, "1.5 KiB"), (67_108_864.0, "64 MiB")]
        {
            assert_eq!(bytes(Some(value)), text);
        }
        for (value, text) in [
            (0.0, "0 s"),
            (0.000_123, "123 µs"),
            (0.0015, "1.5 ms"),
            (0.9999, "1 s"),
            (7260.0, "2h 1m"),
        ] {
            assert_eq!(seconds(Some(value)), text);
        }
        assert_eq!(count(None) + &bytes(None) + &seconds(None), "–––");
    }
}
