//! The admin page `/tap`: samples of payloads as they are admitted, a JSON text per line, for as long
//! as the client reads.
//!
//! Nothing here can hold up a core: it leaves samples in slots ([`crate::http::tap`]) and drops what
//! finds none. A task collects them ten times a second while somebody watches, masks what looks like
//! a secret, and hands each watcher as many as it asked for; what a watcher does not read in time is
//! dropped and counted too.

mod mask;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::convert::Infallible;
use std::fmt;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant, UNIX_EPOCH};

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use http::{Response, StatusCode};
use http_body::Frame;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use serde_json::json;
use serde_json::value::RawValue;

use super::access::SharedAdminToken;
use crate::http::tap::{TAP_SLOTS, TapBoard, TapSample};
use crate::http::tokens::SharedTokens;
use crate::rt::{self, sleep};
use crate::sync::{Flag, keep_waker};

/// How often samples are collected.
const PERIOD: Duration = Duration::from_millis(100);
/// Samples per second without `rate`, …
const RATE_DEFAULT: u16 = 10;
/// … and most of them.
const RATE_MAX: u16 = 100;
/// Clients that watch at a time.
const WATCHERS_MAX: usize = 4;
/// Lines that wait for a watcher to read them: two seconds at the highest rate, at most 5 MB.
const LINES_MAX: usize = 200;
/// A line without a sample comes this often, so that both sides notice when the other is gone.
const COUNTS_PERIOD: Duration = Duration::from_secs(2);
/// How long a client may watch.
pub(super) const WATCH_MAX: Duration = Duration::from_secs(3600);
/// A client that has read nothing for this long, while lines wait for it, watches no longer: its
/// place is another's.
const UNREAD_MAX: Duration = Duration::from_secs(30);

/// The page, and where it gets its samples.
pub(super) struct TapPage {
    /// One of each core, and its id; `None` with `TAP=off`.
    boards: Option<Vec<(usize, Arc<TapBoard>)>>,
    /// Tokens that clients may have; masked in samples, as is the admin token.
    tokens: Option<SharedTokens>,
    admin_token: SharedAdminToken,
    counts: Arc<TapCounts>,
    watchers: RefCell<Vec<Rc<Watcher>>>,
    /// The task that collects runs.
    is_collecting: Cell<bool>,
}

/// What a scrape says of the tap.
#[derive(Debug, Default)]
struct TapCounts {
    watchers: AtomicU64,
    /// Lines that wait for their watchers.
    waiting: AtomicU64,
    sent: AtomicU64,
    /// Samples that a watcher had asked for and did not get.
    dropped: AtomicU64,
}

/// One client.
struct Watcher {
    /// Samples per second.
    rate: u16,
    /// Samples that it may still get now, in tenths.
    allowance: Cell<u32>,
    lines: RefCell<VecDeque<Bytes>>,
    waker: RefCell<Option<Waker>>,
    sent: Cell<u64>,
    dropped: Cell<u64>,
    /// When it last got its counts.
    counted: Cell<Instant>,
    /// When its connection last took a line, or the first that waits has come.
    read: Cell<Instant>,
    /// Set when it has not read for [`UNREAD_MAX`]: its connection ends.
    gave_up: Rc<Flag>,
}

impl TapPage {
    /// A page without watchers. `boards`: one of each core, and its id; `None` with `TAP=off`.
    pub(super) fn new(
        boards: Option<Vec<(usize, Arc<TapBoard>)>>,
        tokens: Option<SharedTokens>,
        admin_token: SharedAdminToken,
    ) -> Rc<TapPage> {
        Rc::new(TapPage {
            boards,
            tokens,
            admin_token,
            counts: Arc::default(),
            watchers: RefCell::default(),
            is_collecting: Cell::new(false),
        })
    }

    /// What a scrape says of it.
    pub(super) fn collector(&self) -> TapCollector {
        TapCollector(self.counts.clone())
    }

    /// The rate that `QUERY` asks for, if somebody may watch now.
    ///
    /// # Errors
    /// The answer that says why not.
    fn judge(&self, query: &str) -> Result<u16, (StatusCode, String)> {
        if self.boards.is_none() {
            let off = "TAP is off: payloads are shown by a server that was started with TAP=on\n";
            return Err((StatusCode::NOT_FOUND, off.to_owned()));
        }
        let rate = rate_of(query).map_err(|why| (StatusCode::BAD_REQUEST, why))?;
        if self.watchers.borrow().len() >= WATCHERS_MAX {
            let full = format!("{WATCHERS_MAX} clients watch already\n");
            return Err((StatusCode::SERVICE_UNAVAILABLE, full));
        }
        Ok(rate)
    }

    /// The answer to `HEAD /tap?QUERY`: what a `GET` would begin with.
    ///
    /// # Errors
    /// As for [`TapPage::answer`].
    pub(super) fn head(&self, query: &str) -> Result<Response<()>, (StatusCode, String)> {
        self.judge(query).map(|_rate| with_headers(()))
    }

    /// The answer to `GET /tap?QUERY`. `gave_up` is set when its client does not read.
    ///
    /// # Errors
    /// Another status, and why.
    pub(super) fn answer(
        self: &Rc<Self>,
        query: &str,
        gave_up: Rc<Flag>,
    ) -> Result<Response<TapBody>, (StatusCode, String)> {
        let rate = self.judge(query)?;
        let watcher = Rc::new(Watcher {
            rate,
            allowance: Cell::new(0),
            lines: RefCell::default(),
            waker: RefCell::default(),
            sent: Cell::new(0),
            dropped: Cell::new(0),
            counted: Cell::new(rt::now()),
            read: Cell::new(rt::now()),
            gave_up,
        });
        // The first line tells that the tap works, before anything comes in.
        watcher.push_counts(rt::now());
        self.watchers.borrow_mut().push(watcher.clone());
        self.counts.watchers.store(self.watchers.borrow().len() as u64, Relaxed);
        if !self.is_collecting.replace(true) {
            rt::spawn(self.clone().collect()).detach();
        }
        Ok(with_headers(TapBody { watcher, page: Rc::downgrade(self) }))
    }

    /// Runs while somebody watches.
    async fn collect(self: Rc<Self>) {
        let boards = self.boards.as_deref().unwrap_or_default();
        let mut dropped: u64 = boards.iter().map(|(_, board)| board.dropped()).sum();
        // Old samples are of no interest.
        boards.iter().for_each(|(_, board)| board.take().for_each(drop));
        let mut period = 0;
        while let Some(rate) = self.highest_rate() {
            period += 1;
            let samples = rate.div_ceil(10).min(TAP_SLOTS as u16);
            boards.iter().for_each(|(_, board)| board.ask(period, samples));
            sleep(PERIOD).await;
            let now_dropped: u64 = boards.iter().map(|(_, board)| board.dropped()).sum();
            self.deliver(boards, now_dropped - dropped, rt::now());
            dropped = now_dropped;
            self.end_unread(rt::now());
        }
        boards.iter().for_each(|(_, board)| board.stop());
        self.is_collecting.set(false);
    }

    /// `None` if nobody watches.
    fn highest_rate(&self) -> Option<u16> {
        self.watchers.borrow().iter().map(|watcher| watcher.rate).max()
    }

    /// Hands the watchers what the cores have left.
    fn deliver(&self, boards: &[(usize, Arc<TapBoard>)], dropped: u64, now: Instant) {
        let watchers = self.watchers.borrow();
        for watcher in watchers.iter() {
            let more = watcher.allowance.get() + u32::from(watcher.rate);
            // No more than a period's worth is saved up, or one sample.
            watcher.allowance.set(more.min(u32::from(watcher.rate).max(10)));
            watcher.dropped.set(watcher.dropped.get() + dropped);
        }
        self.counts.dropped.fetch_add(dropped, Relaxed);
        for (core, board) in boards {
            for sample in board.take() {
                if !watchers.iter().any(|watcher| watcher.wants_one()) {
                    continue;
                }
                let line = Bytes::from(self.line(*core, &sample));
                for watcher in watchers.iter().filter(|watcher| watcher.wants_one()) {
                    watcher.allowance.set(watcher.allowance.get() - 10);
                    let is_taken = watcher.push(line.clone());
                    let (of_all, own) = match is_taken {
                        true => (&self.counts.sent, &watcher.sent),
                        false => (&self.counts.dropped, &watcher.dropped),
                    };
                    of_all.fetch_add(1, Relaxed);
                    own.set(own.get() + 1);
                }
            }
        }
        for watcher in watchers.iter() {
            if now.saturating_duration_since(watcher.counted.get()) >= COUNTS_PERIOD {
                watcher.push_counts(now);
            }
        }
        let waiting: usize = watchers.iter().map(|watcher| watcher.lines.borrow().len()).sum();
        self.counts.waiting.store(waiting as u64, Relaxed);
    }

    /// Ends watching for those who do not read.
    fn end_unread(&self, now: Instant) {
        let watchers = self.watchers.borrow().clone();
        for watcher in watchers.iter().filter(|watcher| watcher.is_unread(now)) {
            watcher.gave_up.set();
            self.forget(watcher);
        }
    }

    fn line(&self, core: usize, sample: &TapSample) -> String {
        let is_secret = |text: &str| {
            let tokens = self.tokens.as_ref();
            tokens.is_some_and(|tokens| tokens.set.load().find(text.as_bytes()).is_some())
                || self.admin_token.load().as_ref().is_some_and(|token| token.is(text.as_bytes()))
        };
        line_of(core, sample, &is_secret)
    }

    fn forget(&self, gone: &Rc<Watcher>) {
        self.watchers.borrow_mut().retain(|watcher| !Rc::ptr_eq(watcher, gone));
        self.counts.watchers.store(self.watchers.borrow().len() as u64, Relaxed);
        if self.watchers.borrow().is_empty() {
            self.counts.waiting.store(0, Relaxed);
        }
    }
}

fn with_headers<T>(body: T) -> Response<T> {
    let mut response = Response::new(body);
    for (name, value) in [(CONTENT_TYPE, "application/x-ndjson"), (CACHE_CONTROL, "no-store")] {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

/// A sample as a line. A payload that is cut is a text, because it is no JSON.
fn line_of(core: usize, sample: &TapSample, is_secret: mask::IsSecret<'_>) -> String {
    let text = String::from_utf8_lossy(&sample.start);
    let is_cut = sample.start.len() < sample.length;
    let masked = mask::mask(&text, is_secret);
    let payload = if is_cut { None } else { RawValue::from_string(masked.clone()).ok() };
    let time = UNIX_EPOCH + Duration::from_nanos(sample.stamp.unix_nanos);
    let time = humantime::format_rfc3339_micros(time).to_string();
    let head =
        json!({ "time": time, "core": core, "seq": sample.stamp.seq, "bytes": sample.length });
    let mut line = head.to_string();
    line.pop();
    match payload {
        Some(payload) => line += &format!(",\"payload\":{payload}}}"),
        None => line += &format!(",\"cut\":{}}}", json!(masked)),
    }
    one_line(&line)
}

/// Valid JSON as one line that does nothing to a terminal: raw line ends in it are between its parts,
/// and other control characters within its strings.
fn one_line(json: &str) -> String {
    let mut line = String::with_capacity(json.len() + 1);
    for c in json.chars() {
        match c {
            '\r' | '\n' => {}
            '\u{7f}'..='\u{9f}' => line += &format!("\\u{:04x}", u32::from(c)),
            c => line.push(c),
        }
    }
    line.push('\n');
    line
}

/// `rate=N`.
fn rate_of(query: &str) -> Result<u16, String> {
    let mut rate = RATE_DEFAULT;
    for part in query.split('&').filter(|part| !part.is_empty()) {
        let number = part.strip_prefix("rate=").and_then(|number| number.parse().ok());
        rate = number.filter(|rate| (1..=RATE_MAX).contains(rate)).ok_or_else(|| {
            format!("only rate=1 to rate={RATE_MAX} is known, samples per second\n")
        })?;
    }
    Ok(rate)
}

impl Watcher {
    fn wants_one(&self) -> bool {
        self.allowance.get() >= 10
    }

    /// Whether there was room.
    fn push(&self, line: Bytes) -> bool {
        let waiting = self.lines.borrow().len();
        if waiting == 0 {
            self.read.set(rt::now());
        }
        let has_room = waiting < LINES_MAX;
        if has_room {
            self.lines.borrow_mut().push_back(line);
        }
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
        has_room
    }

    fn is_unread(&self, now: Instant) -> bool {
        let waits = !self.lines.borrow().is_empty();
        waits && now.saturating_duration_since(self.read.get()) >= UNREAD_MAX
    }

    fn push_counts(&self, now: Instant) {
        self.counted.set(now);
        let (sent, dropped) = (self.sent.get(), self.dropped.get());
        let counts = json!({ "tap": { "rate": self.rate, "sent": sent, "dropped": dropped } });
        self.push(Bytes::from(format!("{counts}\n")));
    }
}

/// The lines for one client. Dropped with its connection, and then it watches no longer.
pub(super) struct TapBody {
    watcher: Rc<Watcher>,
    page: Weak<TapPage>,
}

impl http_body::Body for TapBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.watcher.lines.borrow_mut().pop_front() {
            Some(line) => {
                self.watcher.read.set(rt::now());
                Poll::Ready(Some(Ok(Frame::data(line))))
            }
            None => {
                keep_waker(&mut self.watcher.waker.borrow_mut(), cx);
                Poll::Pending
            }
        }
    }
}

impl Drop for TapBody {
    fn drop(&mut self) {
        if let Some(page) = self.page.upgrade() {
            page.forget(&self.watcher);
        }
    }
}

/// Reads the counts at a scrape.
#[derive(Debug)]
pub(super) struct TapCollector(Arc<TapCounts>);

impl Collector for TapCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let TapCounts { watchers, waiting, sent, dropped } = &*self.0;
        let value = |cell: &AtomicU64| cell.load(Relaxed);
        for (name, help, value) in [
            ("tap_watchers", "Clients that read /tap", value(watchers)),
            ("tap_watchers_limit", "Most of them", WATCHERS_MAX as u64),
            ("tap_lines", "Lines of /tap that wait for their clients", value(waiting)),
            ("tap_lines_limit", "Most of them, of all clients", (WATCHERS_MAX * LINES_MAX) as u64),
        ] {
            let gauge = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            ConstGauge::new(value as i64).encode(gauge)?;
        }
        for (name, help, value) in [
            ("tap_samples", "Sampled payloads that clients of /tap got", value(sent)),
            (
                "tap_samples_dropped",
                "Sampled payloads that found no room on their way",
                value(dropped),
            ),
        ] {
            let counter = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            ConstCounter::new(value).encode(counter)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::job::Stamp;

    fn line(payload: &str, length: usize) -> String {
        let stamp = Stamp { unix_nanos: 1_500_000, seq: 7 };
        let sample = TapSample { stamp, length, start: payload.as_bytes().into() };
        line_of(3, &sample, &|text| text == "hush")
    }

    #[test]
    fn a_line_has_the_payload_as_json_or_its_beginning_as_text() {
        let head = r#""bytes":12,"core":3,"seq":7,"time":"1970-01-01T00:00:00.001500Z""#;
        assert_eq!(
            line(r#"{"a":"hush"}"#, 12),
            format!("{{{head},\"payload\":{{\"a\":\"***\"}}}}\n")
        );
        let cut = line("{\"a\":1,\"b\":\"hus", 12);
        assert_eq!(cut, format!("{{{head},\"cut\":\"{{\\\"a\\\":1,\\\"b\\\":\\\"***\\\"\"}}\n"));
        for text in [line("\"\n\"", 3), line("1", 1), cut] {
            assert!(text.ends_with('\n') && text.lines().count() == 1, "{text:?}");
            serde_json::from_str::<serde_json::Value>(&text).expect(&text);
        }
    }

    #[test]
    fn no_payload_ends_its_line_or_reaches_the_terminal() {
        for (payload, shown) in [
            ("[1,\n{\"tap\":\r\n{\"dropped\":9}}\n]\r", r#"[1,{"tap":{"dropped":9}}]"#),
            ("\"a\u{9b}2J\u{7f}\u{a0}\u{fc}\"", "\"a\\u009b2J\\u007f\u{a0}\u{fc}\""),
            (r#""a\n\u001b""#, r#""a\n\u001b""#),
        ] {
            let text = line(payload, payload.len());
            assert!(text.ends_with(&format!(",\"payload\":{shown}}}\n")), "{text:?}");
            let cut = line(payload, payload.len() + 1);
            for text in [text, cut] {
                assert_eq!(text.lines().count(), 1, "{text:?}");
                let is_harmless = |c: char| c == '\n' || !c.is_control();
                assert!(text.chars().all(is_harmless), "{text:?}");
                serde_json::from_str::<serde_json::Value>(&text).expect(&text);
            }
        }
    }

    #[test]
    fn who_does_not_read_watches_no_longer() {
        let executor = rt::Executor::unpinned("test").unwrap();
        executor.run(async {
            let page = TapPage::new(Some(Vec::new()), None, SharedAdminToken::default());
            let flags: Vec<Rc<Flag>> = (0..2).map(|_| Rc::default()).collect();
            let mut bodies: Vec<TapBody> = flags
                .iter()
                .map(|flag| page.answer("rate=1", flag.clone()).unwrap().into_body())
                .collect();
            // The first line of both waits; one is read.
            let cx = &mut Context::from_waker(Waker::noop());
            let read = |body: &mut TapBody, cx: &mut Context<'_>| {
                http_body::Body::poll_frame(Pin::new(body), cx).is_ready()
            };
            assert!(read(&mut bodies[1], cx) && !read(&mut bodies[1], cx));
            let end = |page: &TapPage, after: Duration| {
                page.end_unread(rt::now() + after);
                (page.watchers.borrow().len(), [flags[0].get(), flags[1].get()])
            };
            assert_eq!(end(&page, UNREAD_MAX - Duration::from_secs(1)), (2, [false, false]));
            assert_eq!(end(&page, UNREAD_MAX), (1, [true, false]));
            // Silence is no reason: there was nothing to read.
            assert_eq!(end(&page, 10 * UNREAD_MAX), (1, [true, false]));
            drop(bodies);
            assert_eq!(page.watchers.borrow().len(), 0);
        });
    }

    #[test]
    fn rates_are_bounded() {
        assert_eq!(
            (rate_of(""), rate_of("rate=1"), rate_of("rate=100&")),
            (Ok(10), Ok(1), Ok(100))
        );
        for query in ["rate=0", "rate=101", "rate=-1", "rate=", "rate", "n=5"] {
            assert!(rate_of(query).unwrap_err().contains("rate=100"), "{query}");
        }
    }
}
