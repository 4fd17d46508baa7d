//! Counters per token name, and the names themselves.
//!
//! A name gets its place when a tokens file that has it is first accepted, and keeps it until the
//! process ends, so its counters survive every reload, also one that drops the name and one that
//! brings it back. The name of a client's certificate gets its place with the first request. Names beyond the first [`TOKEN_NAMES_MAX`] share one place. Each core has its
//! own cells for all places; the places are few, so nothing is allocated or looked up by name while
//! requests are served.

use std::collections::HashMap;
use std::fmt;
use std::sync::OnceLock;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::{Acquire, Release};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use super::{Cell64, STATUSES};

/// Most names with counters of their own. Each needs 136 bytes per core, and up to a dozen lines of
/// a scrape.
pub const TOKEN_NAMES_MAX: usize = 1_000;

/// What is known of a request's token: the place of its name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TokenId(u16);

impl TokenId {
    /// No accepted token: the server asks for none, or the request was refused before or because
    /// of it.
    pub const NONE: TokenId = TokenId(0);
    /// A token without a name.
    pub const UNNAMED: TokenId = TokenId(1);
    /// A token whose name is not among the first [`TOKEN_NAMES_MAX`].
    pub const OTHER: TokenId = TokenId(2);
    const FIRST_NAMED: usize = 3;

    /// Number of all values.
    const COUNT: usize = TokenId::FIRST_NAMED + TOKEN_NAMES_MAX;

    /// The id of the name that came as number `at`, from 0.
    pub fn of_name(at: usize) -> TokenId {
        if at < TOKEN_NAMES_MAX { TokenId((TokenId::FIRST_NAMED + at) as u16) } else { Self::OTHER }
    }
}

/// The names that have a place. One thread at a time adds names; all may read them.
pub struct TokenNames {
    places: Box<[OnceLock<Box<str>>]>,
    /// Set while a thread adds names.
    adding: AtomicBool,
}

impl Default for TokenNames {
    fn default() -> TokenNames {
        let places = (0..TOKEN_NAMES_MAX).map(|_| OnceLock::new()).collect();
        TokenNames { places, adding: AtomicBool::new(false) }
    }
}

impl TokenNames {
    /// The name of a request's token as metrics and pages show it. What is in parentheses is no
    /// name that a file can give. `None` for [`TokenId::NONE`].
    pub fn shown(&self, id: TokenId) -> Option<&str> {
        match id {
            TokenId::NONE => None,
            TokenId::UNNAMED => Some("(unnamed)"),
            TokenId::OTHER => Some("(other)"),
            TokenId(at) => {
                self.places[usize::from(at) - TokenId::FIRST_NAMED].get().map(AsRef::as_ref)
            }
        }
    }

    fn known(&self) -> impl Iterator<Item = &str> {
        self.places.iter().map_while(|name| name.get().map(AsRef::as_ref))
    }

    /// Starts to read a file whose names are added only if the file is accepted.
    pub fn draft(&self) -> NameDraft<'_> {
        // Cores add a name in microseconds.
        while self.adding.swap(true, Acquire) {
            std::thread::yield_now();
        }
        let known = self.known().enumerate();
        let ids: HashMap<_, _> =
            known.map(|(at, name)| (name.into(), TokenId::of_name(at))).collect();
        NameDraft { names: self, known: ids.len(), ids, fresh: Vec::new() }
    }
}

impl TokenNames {
    /// The id of `name`, which gets a place if it has none; without one left, [`TokenId::OTHER`].
    /// `None` while a file is read. It compares `name` with all that have a place.
    pub fn place_of(&self, name: &str) -> Option<TokenId> {
        if let Some(at) = self.known().position(|known| known == name) {
            return Some(TokenId::of_name(at));
        }
        if self.adding.swap(true, Acquire) {
            return None;
        }
        // Another thread may have added it, or others, since.
        let at = self.known().position(|known| known == name);
        let at = at.unwrap_or_else(|| {
            let next = self.known().count();
            if let Some(place) = self.places.get(next) {
                place.set(name.into()).expect("only one thread adds names");
            }
            next
        });
        self.adding.store(false, Release);
        Some(TokenId::of_name(at))
    }
}

impl fmt::Debug for TokenNames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.known()).finish()
    }
}

/// The names of a file that is being read. It holds no more names than there are places.
pub struct NameDraft<'a> {
    names: &'a TokenNames,
    known: usize,
    ids: HashMap<Box<str>, TokenId>,
    fresh: Vec<Box<str>>,
}

impl NameDraft<'_> {
    /// The id that `name` has or will have.
    pub fn id(&mut self, name: &str) -> TokenId {
        if let Some(id) = self.ids.get(name) {
            return *id;
        }
        let id = TokenId::of_name(self.known + self.fresh.len());
        if id != TokenId::OTHER {
            self.ids.insert(name.into(), id);
            self.fresh.push(name.into());
        }
        id
    }

    /// The file is accepted: its new names get their places.
    pub fn commit(mut self) {
        let fresh = std::mem::take(&mut self.fresh);
        for (place, name) in self.names.places[self.known..].iter().zip(fresh) {
            place.set(name).expect("only one thread adds names");
        }
    }
}

impl Drop for NameDraft<'_> {
    fn drop(&mut self) {
        self.names.adding.store(false, Release);
    }
}

/// One core's counters of one name.
#[derive(Debug, Default)]
pub struct TokenCells {
    responses: [Cell64; STATUSES.len()],
    payloads: Cell64,
    bytes: Cell64,
}

/// One core's counters of every name.
#[derive(Clone, Copy, Debug)]
pub struct CoreTokenCells(&'static [TokenCells]);

impl CoreTokenCells {
    /// Counts the response to a request with this token; none without one.
    pub fn count_response(self, id: TokenId, status: u16) {
        if id != TokenId::NONE {
            let at = STATUSES.iter().position(|s| *s == status).unwrap_or(STATUSES.len() - 1);
            self.0[usize::from(id.0)].responses[at].inc();
        }
    }

    /// Where the payloads of requests with this token are counted.
    pub fn accepted(self, id: TokenId) -> AcceptedCells {
        AcceptedCells(&self.0[usize::from(id.0)])
    }
}

/// One core's counters of the accepted payloads of one name.
#[derive(Clone, Copy, Debug)]
pub struct AcceptedCells(&'static TokenCells);

impl AcceptedCells {
    /// Counts the payloads of an admitted request; to be called where the totals are counted.
    pub fn add(self, payloads: u64, bytes: u64) {
        self.0.payloads.add(payloads);
        self.0.bytes.add(bytes);
    }

    /// The payloads counted so far, and their bytes.
    #[cfg(test)]
    pub fn counted(self) -> (u64, u64) {
        (self.0.payloads.value(), self.0.bytes.value())
    }
}

/// All figures about tokens.
#[derive(Debug)]
pub struct TokenMetrics {
    pub names: TokenNames,
    cores: Box<[Box<[TokenCells]>]>,
    /// Number of accepted tokens. This and the next two are written by the thread that reads the
    /// file.
    pub tokens: Cell64,
    pub reload_failures: Cell64,
    /// 1 while the newest file is refused, so that an older one is in effect.
    pub reload_failing: Cell64,
}

impl TokenMetrics {
    /// The figures of `cores` cores. They are never freed, as the cells of the cores.
    pub fn leaked(cores: usize) -> &'static TokenMetrics {
        let cells = || (0..TokenId::COUNT).map(|_| TokenCells::default()).collect();
        Box::leak(Box::new(TokenMetrics {
            names: TokenNames::default(),
            cores: (0..cores).map(|_| cells()).collect(),
            tokens: Cell64::default(),
            reload_failures: Cell64::default(),
            reload_failing: Cell64::default(),
        }))
    }

    /// The counters of the core with this index.
    pub fn core(&'static self, index: usize) -> CoreTokenCells {
        CoreTokenCells(&self.cores[index])
    }

    /// The sum of a cell over all cores.
    fn sum(&self, id: TokenId, read: impl Fn(&TokenCells) -> u64) -> u64 {
        self.cores.iter().map(|cells| read(&cells[usize::from(id.0)])).sum()
    }

    /// Every name that has a place, and of the two collective ones those that were used.
    fn shown(&self) -> Vec<(TokenId, &str)> {
        let ids = (0..TokenId::COUNT as u16).map(TokenId);
        let responses = |cells: &TokenCells| cells.responses.iter().map(Cell64::value).sum();
        ids.filter_map(|id| Some((id, self.names.shown(id)?)))
            .filter(|(id, _)| {
                usize::from(id.0) >= TokenId::FIRST_NAMED || self.sum(*id, responses) > 0
            })
            .collect()
    }
}

/// Adds the figures about tokens to a scrape.
#[derive(Debug)]
pub struct TokenCollector(pub &'static TokenMetrics);

impl Collector for TokenCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let (metrics, shown) = (self.0, self.0.shown());
        let help = "Responses to requests with an accepted token, by its name and status";
        let mut family =
            encoder.encode_descriptor("token_requests", help, None, MetricType::Counter)?;
        for (id, name) in &shown {
            for (at, status) in STATUSES.iter().enumerate() {
                let count = metrics.sum(*id, |cells| cells.responses[at].value());
                // A line for each status that never occurred would be most of the scrape.
                if count > 0 || *status == 200 {
                    let status = if *status == 0 { "other".to_owned() } else { status.to_string() };
                    let labels = [("token", (*name).to_owned()), ("status", status)];
                    ConstCounter::new(count).encode(family.encode_family(&labels)?)?;
                }
            }
        }
        type Read = fn(&TokenCells) -> u64;
        let counters: [(&str, &str, Read); 2] = [
            ("token_payloads_accepted", "Payloads admitted, by the token's name", |cells| {
                cells.payloads.value()
            }),
            ("token_bytes_accepted", "Payload bytes admitted, by the token's name", |cells| {
                cells.bytes.value()
            }),
        ];
        for (name, help, read) in counters {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for (id, name) in &shown {
                let labels = [("token", *name)];
                ConstCounter::new(metrics.sum(*id, read)).encode(family.encode_family(&labels)?)?;
            }
        }
        let gauges = [
            ("tokens", "Accepted tokens", &metrics.tokens),
            (
                "tokens_reload_failing",
                "1 while the newest TOKENS_FILE is refused and an older one is in effect",
                &metrics.reload_failing,
            ),
        ];
        for (name, help, cell) in gauges {
            let gauge = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            ConstGauge::new(i64::try_from(cell.value()).unwrap_or(i64::MAX)).encode(gauge)?;
        }
        let help = "Reloads of TOKENS_FILE that failed; the tokens read before stayed accepted";
        let counter =
            encoder.encode_descriptor("tokens_reload_failures", help, None, MetricType::Counter)?;
        ConstCounter::new(metrics.reload_failures.value()).encode(counter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The ids that a file with these names gets.
    fn read(names: &TokenNames, file: &[&str], accepted: bool) -> Vec<TokenId> {
        let mut draft = names.draft();
        let ids = file.iter().map(|name| draft.id(name)).collect();
        if accepted {
            draft.commit();
        }
        ids
    }

    #[test]
    fn a_name_keeps_its_place_whatever_later_files_hold() {
        let names = TokenNames::default();
        let first = read(&names, &["a", "b", "a"], true);
        assert_eq!(first[0], first[2]);
        assert_ne!(first[0], first[1]);
        // A refused file leaves nothing.
        read(&names, &["refused"], false);
        let second = read(&names, &["c", "b"], true);
        assert_eq!(second[1], first[1]);
        assert_eq!(read(&names, &["a", "c"], true), [first[0], second[0]]);
        let shown: Vec<_> = names.known().collect();
        assert_eq!(shown, ["a", "b", "c"]);
        assert_eq!(names.shown(second[0]), Some("c"));
        assert_eq!(names.shown(TokenId::NONE), None);
    }

    #[test]
    fn names_beyond_the_bound_share_a_place() {
        let names = TokenNames::default();
        let many: Vec<String> = (0..TOKEN_NAMES_MAX + 5).map(|n| format!("n{n}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        for _ in 0..2 {
            let ids = read(&names, &many, true);
            assert_eq!(names.shown(ids[TOKEN_NAMES_MAX - 1]), Some("n999"));
            assert_eq!(ids[TOKEN_NAMES_MAX..], [TokenId::OTHER; 5]);
        }
        assert_eq!(names.known().count(), TOKEN_NAMES_MAX);
    }

    #[test]
    fn a_scrape_sums_the_cores_and_leaves_out_what_never_was() {
        let metrics = TokenMetrics::leaked(2);
        let ids = read(&metrics.names, &["crawler", "silent"], true);
        for (core, id, status) in
            [(0, ids[0], 200), (1, ids[0], 200), (1, ids[0], 503), (0, TokenId::UNNAMED, 200)]
        {
            metrics.core(core).count_response(id, status);
        }
        metrics.core(0).count_response(TokenId::NONE, 401);
        metrics.core(0).accepted(ids[0]).add(3, 70);
        metrics.core(1).accepted(ids[0]).add(2, 7);
        metrics.tokens.set(4);
        let mut registry = prometheus_client::registry::Registry::with_prefix("millrace");
        registry.register_collector(Box::new(TokenCollector(metrics)));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        let lines: Vec<&str> = text.lines().filter(|line| line.starts_with("millrace")).collect();
        let expected = [
            r#"millrace_token_requests_total{token="(unnamed)",status="200"} 1"#,
            r#"millrace_token_requests_total{token="crawler",status="200"} 2"#,
            r#"millrace_token_requests_total{token="crawler",status="503"} 1"#,
            r#"millrace_token_requests_total{token="silent",status="200"} 0"#,
            r#"millrace_token_payloads_accepted_total{token="(unnamed)"} 0"#,
            r#"millrace_token_payloads_accepted_total{token="crawler"} 5"#,
            r#"millrace_token_payloads_accepted_total{token="silent"} 0"#,
            r#"millrace_token_bytes_accepted_total{token="(unnamed)"} 0"#,
            r#"millrace_token_bytes_accepted_total{token="crawler"} 77"#,
            r#"millrace_token_bytes_accepted_total{token="silent"} 0"#,
            "millrace_tokens 4",
            "millrace_tokens_reload_failing 0",
            "millrace_tokens_reload_failures_total 0",
        ];
        assert_eq!(lines, expected);
    }
}
