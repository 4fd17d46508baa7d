//! The admin page `/peers`: the busiest peers of all cores in one table.
//!
//! Each core has tables of its own ([`crate::http::peers`]). Here they are merged, as in Agarwal et
//! al., "Mergeable Summaries", 2012: counts and bounds add up, and a core whose table does not have
//! a peer may still have seen as much of it as its table's least row has.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use serde_json::{Value, json};

use crate::http::peer::Peer;
use crate::http::peers::{Measure, PeerBoard, PeersSnapshot, RefusalKind, TopTokens};
use crate::metrics::tokens::TokenId;
use crate::rt::{self, sleep};

/// How long a page waits for the cores, which look once a second. A core that is busy or stuck for
/// longer is shown with the figures that it published last.
const CORES_WAIT: Duration = Duration::from_secs(2);
/// How often the page looks whether they have published.
const CORES_POLL: Duration = Duration::from_millis(10);
/// Rows of a page without `limit`.
const LIMIT_DEFAULT: usize = 20;
/// Most rows of a page.
const LIMIT_MAX: usize = 1000;
/// What `by` names beside the measures.
const CONNECTIONS: &str = "connections";

/// The page and where it gets its figures.
pub(super) struct PeersPage {
    /// One of each core, and its id.
    pub(super) boards: Vec<(usize, Arc<PeerBoard>)>,
    /// The name of a token.
    pub(super) token_name: Box<dyn Fn(TokenId) -> String>,
}

/// What a core has published, and when.
type Published = Option<Arc<PeersSnapshot>>;

impl PeersPage {
    /// The answer to `GET /peers`; `None` to any other request.
    pub(super) async fn answer<B>(&self, request: &Request<B>) -> Option<Response<Full<Bytes>>> {
        let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
        if request.uri().path() != "/peers" || !is_read {
            return None;
        }
        let wanted = match PeersQuery::of(request.uri().query().unwrap_or_default()) {
            Ok(wanted) => wanted,
            Err(text) => return Some(page(StatusCode::BAD_REQUEST, TEXT, text)),
        };
        let accepted = request.headers().get_all(ACCEPT).iter();
        let accepts_json = |value: &HeaderValue| {
            value.to_str().is_ok_and(|value| value.contains("application/json"))
        };
        let as_json = accepted.into_iter().any(accepts_json);
        let cores = self.collect().await;
        let snapshots: Vec<&PeersSnapshot> =
            cores.iter().filter_map(|(_, published)| published.as_deref()).collect();
        let mut rows = merge(&snapshots);
        rows.retain(|row| wanted.by.value(row) > 0);
        rows.sort_by_key(|row| {
            (std::cmp::Reverse((wanted.by.value(row), wanted.by.value_max(row))), row.peer)
        });
        let known = rows.len();
        rows.truncate(wanted.limit);
        let table = Table { by: wanted.by, known, rows, cores, now: rt::now() };
        Some(match as_json {
            true => page(StatusCode::OK, "application/json", table.json(&self.token_name)),
            false => page(StatusCode::OK, TEXT, table.text(&self.token_name)),
        })
    }

    /// Asks every core and waits up to [`CORES_WAIT`] for what it publishes.
    async fn collect(&self) -> Vec<(usize, Published)> {
        let asked = rt::now();
        self.boards.iter().for_each(|(_, board)| board.ask());
        let is_new = |board: &PeerBoard| board.latest().is_some_and(|of| of.taken >= asked);
        while rt::since(asked) < CORES_WAIT && !self.boards.iter().all(|(_, board)| is_new(board)) {
            sleep(CORES_POLL).await;
        }
        self.boards.iter().map(|(id, board)| (*id, board.latest())).collect()
    }
}

const TEXT: &str = "text/plain; charset=utf-8";

fn page(status: StatusCode, kind: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

/// What the rows are sorted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    Measure(Measure),
    Connections,
}

impl By {
    fn name(self) -> &'static str {
        match self {
            By::Measure(measure) => Measure::NAMES[measure as usize],
            By::Connections => CONNECTIONS,
        }
    }

    /// At least this much was counted, …
    fn value(self, row: &PeerRow) -> u64 {
        match self {
            By::Measure(measure) => row.counted[measure as usize],
            By::Connections => row.connections.into(),
        }
    }

    /// … and at most this much is possible.
    fn value_max(self, row: &PeerRow) -> u64 {
        match self {
            By::Measure(measure) => row.at_most[measure as usize],
            By::Connections => row.connections.into(),
        }
    }
}

/// What a page was asked for.
#[derive(Debug, PartialEq, Eq)]
struct PeersQuery {
    by: By,
    limit: usize,
}

impl PeersQuery {
    /// # Errors
    /// What is wrong with the query, and what is allowed.
    fn of(query: &str) -> Result<PeersQuery, String> {
        let mut wanted = PeersQuery { by: By::Measure(Measure::Requests), limit: LIMIT_DEFAULT };
        for part in query.split('&').filter(|part| !part.is_empty()) {
            match part.split_once('=') {
                Some(("by", CONNECTIONS)) => wanted.by = By::Connections,
                Some(("by", name)) => {
                    let at = Measure::NAMES.iter().position(|of| *of == name);
                    let names = Measure::NAMES.join(", ");
                    let at = at.ok_or(format!("by must be one of {names}, {CONNECTIONS}\n"))?;
                    wanted.by = By::Measure(Measure::ALL[at]);
                }
                Some(("limit", number)) => {
                    let number =
                        number.parse().ok().filter(|number| (1..=LIMIT_MAX).contains(number));
                    wanted.limit = number.ok_or(format!("limit must be 1 to {LIMIT_MAX}\n"))?;
                }
                _ => return Err("only by=NAME and limit=N are known\n".to_owned()),
            }
        }
        Ok(wanted)
    }
}

/// One peer, summed over the cores.
#[derive(Clone, Debug)]
struct PeerRow {
    peer: Peer,
    /// By [`Measure`]: what was counted for this peer, …
    counted: [u64; Measure::ALL.len()],
    /// … and the most that its total can be. Equal if the peer never left a table.
    at_most: [u64; Measure::ALL.len()],
    refusals: [u64; RefusalKind::NAMES.len()],
    tokens: TopTokens,
    last: Option<Instant>,
    connections: u32,
}

impl PeerRow {
    fn new(peer: Peer, at_most: [u64; Measure::ALL.len()]) -> PeerRow {
        PeerRow {
            peer,
            counted: Default::default(),
            at_most,
            refusals: Default::default(),
            tokens: TopTokens::default(),
            last: None,
            connections: 0,
        }
    }
}

/// All peers of these cores' tables, each once, in no order.
fn merge(cores: &[&PeersSnapshot]) -> Vec<PeerRow> {
    let floor = |measure: Measure| cores.iter().map(|of| of.tables[measure as usize].least).sum();
    let floor: [u64; Measure::ALL.len()] = Measure::ALL.map(floor);
    let mut merged: HashMap<Peer, PeerRow> = HashMap::new();
    for core in cores {
        let least = core.tables.each_ref().map(|table| table.least);
        for (peer, of_core) in rows_of(core, least) {
            let row = merged.entry(peer).or_insert_with(|| PeerRow::new(peer, floor));
            for (sum, more) in row.counted.iter_mut().zip(of_core.counted) {
                *sum += more;
            }
            // This core's part of the floor is replaced by what it knows.
            for (sum, (most, least)) in
                row.at_most.iter_mut().zip(of_core.at_most.iter().zip(least))
            {
                *sum += most - least;
            }
            for (sum, more) in row.refusals.iter_mut().zip(of_core.refusals) {
                *sum += more;
            }
            row.tokens.merge(&of_core.tokens);
            row.last = row.last.max(of_core.last);
            row.connections += of_core.connections;
        }
    }
    merged.into_values().collect()
}

/// The peers of one core. A peer may have entered its four tables at different times, so of every
/// figure the greatest is taken.
fn rows_of(core: &PeersSnapshot, least: [u64; Measure::ALL.len()]) -> HashMap<Peer, PeerRow> {
    let mut rows: HashMap<Peer, PeerRow> = HashMap::new();
    for (measure, table) in Measure::ALL.into_iter().zip(&core.tables) {
        for of in &table.rows {
            let row = rows.entry(of.peer).or_insert_with(|| PeerRow::new(of.peer, least));
            row.at_most[measure as usize] = of.count;
            // The tokens come with the requests they were counted by.
            if of.seen.requests >= row.counted[Measure::Requests as usize] {
                row.tokens = of.seen.tokens;
            }
            if of.seen.of(Measure::Refusals) >= row.counted[Measure::Refusals as usize] {
                row.refusals = of.seen.refusals;
            }
            row.last = row.last.max(of.seen.last);
            for (counted, measure) in row.counted.iter_mut().zip(Measure::ALL) {
                *counted = of.seen.of(measure).max(*counted);
            }
        }
    }
    for (peer, connections) in &core.connections {
        let row = rows.entry(*peer).or_insert_with(|| PeerRow::new(*peer, least));
        row.connections = *connections;
    }
    for row in rows.values_mut() {
        for (at_most, counted) in row.at_most.iter_mut().zip(row.counted) {
            *at_most = counted.max(*at_most);
        }
    }
    rows
}

/// One page.
struct Table {
    by: By,
    /// Rows before `limit`.
    known: usize,
    rows: Vec<PeerRow>,
    cores: Vec<(usize, Published)>,
    now: Instant,
}

impl Table {
    fn age(&self, then: Instant) -> Duration {
        self.now.saturating_duration_since(then)
    }

    fn refusals_of(row: &PeerRow) -> impl Iterator<Item = (&'static str, u64)> {
        RefusalKind::NAMES.into_iter().zip(row.refusals).filter(|(_, count)| *count > 0)
    }

    /// A table for people: columns end below each other, a peer a line, `-` for nothing.
    fn text(&self, token_name: &dyn Fn(TokenId) -> String) -> String {
        let mut text = format!(
            "# busiest peers by {} since the start: {} of {}\n",
            self.by.name(),
            self.rows.len(),
            self.known
        );
        for (id, published) in &self.cores {
            let _infallible = match published {
                None => writeln!(text, "# core {id} has not answered: its peers are missing"),
                Some(of) if self.age(of.taken) > CORES_WAIT => {
                    let age = self.age(of.taken).as_secs();
                    writeln!(text, "# core {id} has not answered: its figures are {age} s old")
                }
                Some(_) => Ok(()),
            };
        }
        let mut lines = vec![COLUMNS.map(str::to_owned)];
        lines.extend(self.rows.iter().map(|row| self.cells(row, token_name)));
        let width = |at: usize| lines.iter().map(|line| line[at].len()).max().unwrap_or(0);
        let widths: [usize; COLUMNS.len()] = std::array::from_fn(width);
        for line in &lines {
            for (at, (cell, width)) in line.iter().zip(widths).enumerate() {
                let _infallible = match at {
                    0 => write!(text, "{cell:<width$}"),
                    REFUSED_FOR => write!(text, "  {cell:<width$}"),
                    TOKENS => write!(text, "  {cell}"),
                    _ => write!(text, "  {cell:>width$}"),
                };
            }
            text.push('\n');
        }
        text
    }

    fn cells(
        &self,
        row: &PeerRow,
        token_name: &dyn Fn(TokenId) -> String,
    ) -> [String; COLUMNS.len()] {
        let or_dash = |text: String| if text.is_empty() { "-".to_owned() } else { text };
        let [requests, payloads, bytes, refused] = row.counted.map(|count| count.to_string());
        let may_be_more = self.by.value_max(row) - self.by.value(row);
        let last =
            row.last.map_or_else(String::new, |last| format!("{}s", self.age(last).as_secs()));
        let refused_for: Vec<String> =
            Table::refusals_of(row).map(|(name, count)| format!("{name}={count}")).collect();
        let tokens: Vec<String> = row.tokens.most_used().into_iter().map(token_name).collect();
        [
            row.peer.to_string(),
            requests,
            payloads,
            bytes,
            refused,
            may_be_more.to_string(),
            row.connections.to_string(),
            or_dash(last),
            or_dash(refused_for.join(",")),
            or_dash(tokens.join(",")),
        ]
    }

    /// The same for programs.
    fn json(&self, token_name: &dyn Fn(TokenId) -> String) -> String {
        let core = |(id, published): &(usize, Published)| {
            let age = published.as_ref().map(|of| self.age(of.taken).as_millis() as u64);
            json!({ "core": id, "age_ms": age })
        };
        let row = |row: &PeerRow| {
            let mut object = serde_json::Map::new();
            object.insert("peer".to_owned(), row.peer.to_string().into());
            for (at, name) in Measure::NAMES.iter().enumerate() {
                object.insert((*name).to_owned(), row.counted[at].into());
                object.insert(format!("{name}_max"), row.at_most[at].into());
            }
            let kinds: serde_json::Map<String, Value> = Table::refusals_of(row)
                .map(|(name, count)| (name.to_owned(), count.into()))
                .collect();
            object.insert("refused_for".to_owned(), kinds.into());
            object.insert(CONNECTIONS.to_owned(), row.connections.into());
            let age = row.last.map(|last| self.age(last).as_millis() as u64);
            object.insert("last_seen_ms_ago".to_owned(), age.into());
            let tokens: Vec<String> = row.tokens.most_used().into_iter().map(token_name).collect();
            object.insert("tokens".to_owned(), tokens.into());
            Value::from(object)
        };
        let page = json!({
            "by": self.by.name(),
            "known": self.known,
            "cores": self.cores.iter().map(core).collect::<Vec<_>>(),
            "peers": self.rows.iter().map(row).collect::<Vec<_>>(),
        });
        page.to_string() + "\n"
    }
}

const COLUMNS: [&str; 10] = [
    "peer",
    "requests",
    "payloads",
    "bytes",
    "refusals",
    "may_be_more",
    CONNECTIONS,
    "last_seen",
    "refused_for",
    "tokens",
];
const REFUSED_FOR: usize = 8;
const TOKENS: usize = 9;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::peers::tests::{Stream, of_requests, seed};
    use crate::http::peers::{Activity, ROWS_MAX, Sketch, TableCopy};

    /// A core that has seen `stream`.
    fn core(stream: &[(Peer, Activity)], connections: &[(Peer, u32)]) -> PeersSnapshot {
        let tables = Measure::ALL.map(|measure| {
            let mut sketch = Sketch::new(measure);
            stream.iter().for_each(|(peer, activity)| sketch.add(*peer, activity));
            TableCopy { rows: sketch.rows().to_vec(), least: sketch.least() }
        });
        PeersSnapshot { taken: rt::now(), tables, connections: connections.to_vec() }
    }

    /// An activity of all kinds.
    fn busy(requests: u64, payloads: u64, bytes: u64, unavailable: u64) -> Activity {
        let mut activity = Activity { payloads, bytes, ..of_requests(requests) };
        activity.refusals[RefusalKind::Unavailable as usize] = unavailable;
        activity.tokens.add(TokenId::of_name(7), requests as u32);
        activity.last = Some(rt::now());
        activity
    }

    #[test]
    fn few_peers_are_exact_over_all_cores() {
        let (one, two) = (Peer::V4(0x7f00_0002), Peer::V6(1 << 32));
        let cores = [
            core(&[(one, busy(3, 30, 300, 1)), (two, busy(1, 0, 10, 1))], &[(one, 2)]),
            core(&[(one, busy(4, 40, 400, 0))], &[(one, 1), (two, 5)]),
        ];
        let mut rows = merge(&cores.each_ref());
        rows.sort_by_key(|row| row.peer);
        assert_eq!(rows.len(), 2);
        assert_eq!((rows[0].peer, rows[0].connections), (one, 3));
        assert_eq!((rows[0].counted, rows[0].at_most), ([7, 70, 700, 1], [7, 70, 700, 1]));
        assert_eq!((rows[1].counted, rows[1].connections), ([1, 0, 10, 1], 5));
        assert_eq!(rows[0].tokens.most_used(), [TokenId::of_name(7)]);
    }

    /// More peers than rows on every core: each true figure is between the two that are shown, and
    /// who has more than its share is there.
    #[test]
    fn merged_figures_hold_the_true_ones() {
        let mut random = fastrand::Rng::with_seed(seed());
        for round in 0..12 {
            let mut truth: HashMap<Peer, Activity> = HashMap::new();
            let mut total = Activity::default();
            let cores: Vec<PeersSnapshot> = (0..random.usize(1..4))
                .map(|_| {
                    let mut source = Stream::new(&mut random);
                    let stream: Vec<_> = (0..5_000).map(|_| source.next(&mut random)).collect();
                    for (peer, activity) in &stream {
                        truth.entry(*peer).or_default().add(activity);
                        total.add(activity);
                    }
                    core(&stream, &[])
                })
                .collect();
            let rows = merge(&cores.iter().collect::<Vec<_>>());
            let rows: HashMap<Peer, PeerRow> =
                rows.into_iter().map(|row| (row.peer, row)).collect();
            for (peer, activity) in &truth {
                for measure in Measure::ALL {
                    let (true_count, at) = (activity.of(measure), measure as usize);
                    match rows.get(peer) {
                        Some(row) => {
                            let shown = row.counted[at]..=row.at_most[at];
                            assert!(shown.contains(&true_count), "{round}: {true_count} {row:?}");
                        }
                        None => {
                            let bound = total.of(measure) / ROWS_MAX as u64;
                            assert!(true_count <= bound, "{round}: {peer} {true_count} > {bound}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn queries_are_understood_or_explained() {
        fn of(query: &str) -> Result<(&'static str, usize), String> {
            PeersQuery::of(query).map(|wanted| (wanted.by.name(), wanted.limit))
        }
        assert_eq!(of(""), Ok(("requests", LIMIT_DEFAULT)));
        assert_eq!(of("by=bytes&limit=3"), Ok(("bytes", 3)));
        assert_eq!(of("limit=1000&by=connections&"), Ok(("connections", LIMIT_MAX)));
        for name in Measure::NAMES {
            assert_eq!(of(&format!("by={name}")), Ok((name, LIMIT_DEFAULT)));
        }
        for (query, says) in [
            ("by=", "by must be one of requests, payloads, bytes, refusals, connections\n"),
            ("by=Bytes", "by must be one of requests, payloads, bytes, refusals, connections\n"),
            ("limit=0", "limit must be 1 to 1000\n"),
            ("limit=1001", "limit must be 1 to 1000\n"),
            ("limit=-1", "limit must be 1 to 1000\n"),
            ("limit", "only by=NAME and limit=N are known\n"),
            ("sort=bytes", "only by=NAME and limit=N are known\n"),
        ] {
            assert_eq!(of(query), Err(says.to_owned()), "{query}");
        }
    }

    fn example() -> Table {
        let stream = [
            (Peer::V4(0x7f00_0002), busy(120, 6_500_000, 910_000_000, 4)),
            (Peer::V6(0x2001_0db8 << 32), busy(7, 70, 12_000, 0)),
        ];
        let core = Arc::new(core(&stream, &[(Peer::V4(0x7f00_0002), 64)]));
        let mut rows = merge(&[&core]);
        rows.sort_by_key(|row| row.peer);
        let now = core.taken + Duration::from_secs(3);
        let cores = vec![(0, Some(core)), (1, None)];
        Table { by: By::Measure(Measure::Payloads), known: 9, rows, cores, now }
    }

    #[test]
    fn the_text_is_aligned_and_says_what_is_missing() {
        let text =
            example().text(&|token| format!("name{}", u8::from(token == TokenId::of_name(7))));
        let expected = "\
# busiest peers by payloads since the start: 2 of 9
# core 0 has not answered: its figures are 3 s old
# core 1 has not answered: its peers are missing
peer           requests  payloads      bytes  refusals  may_be_more  connections  last_seen  refused_for    tokens
127.0.0.2           120   6500000  910000000         4            0           64         3s  unavailable=4  name1
2001:db8::/64         7        70      12000         0            0            0         3s  -              name1
";
        assert_eq!(text, expected);
    }

    #[test]
    fn the_json_has_the_same() {
        let json: Value = serde_json::from_str(
            &example().json(&|token| format!("name{}", u8::from(token == TokenId::of_name(7)))),
        )
        .unwrap();
        assert_eq!((&json["by"], &json["known"]), (&json!("payloads"), &json!(9)));
        assert_eq!(json["cores"][1], json!({ "core": 1, "age_ms": null }));
        let age = json["peers"][0]["last_seen_ms_ago"].clone();
        assert_eq!(
            json["peers"][0],
            json!({
                "peer": "127.0.0.2", "requests": 120, "requests_max": 120,
                "payloads": 6_500_000, "payloads_max": 6_500_000,
                "bytes": 910_000_000, "bytes_max": 910_000_000, "refusals": 4, "refusals_max": 4,
                "refused_for": { "unavailable": 4 }, "connections": 64,
                "last_seen_ms_ago": age, "tokens": ["name1"],
            })
        );
    }
}
