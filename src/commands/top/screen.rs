//! What `millrace top` draws. Nothing here asks or waits, so tests draw into a buffer.

use std::time::{Duration, Instant};

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Cell, Paragraph, Row, Sparkline, Table, Wrap};

use super::figures::{Fullness, Past, Scrape, Shown, bytes, count, seconds};

/// Screens lower than this have no charts.
const CHARTS_FROM_HEIGHT: u16 = 20;
/// Columns that a chart needs.
const CHART_WIDTH: u16 = 26;
/// Width of a figure in the table of cores: `1.25 GiB`.
const CORE_COLUMN: u16 = 8;
/// Lines of a notice.
const NOTICE_MAX: usize = 4;

/// What stands below the figures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum TopView {
    #[default]
    Cores,
    Limits,
    Peers,
}

impl TopView {
    pub(super) fn next(self) -> TopView {
        match self {
            TopView::Cores => TopView::Limits,
            TopView::Limits => TopView::Peers,
            TopView::Peers => TopView::Cores,
        }
    }

    fn title(self) -> &'static str {
        match self {
            TopView::Cores => " Cores ",
            TopView::Limits => " Limits, each on its fullest core ",
            TopView::Peers => " Peers ",
        }
    }
}

/// What the newest answers say.
#[derive(Default)]
pub(super) struct Answers {
    pub(super) newest: Option<Scrape>,
    pub(super) all: Shown,
    pub(super) by_core: Vec<(String, Shown)>,
    /// Status and text of `/readyz`.
    pub(super) ready: Option<(u16, String)>,
    /// `/peers`, or why it is not shown.
    pub(super) peers: String,
    /// Why the newest attempt failed; empty if it did not.
    pub(super) failure: String,
    /// When the newest figures came.
    pub(super) at: Option<Instant>,
    pub(super) past: Past,
}

impl Answers {
    /// Takes a scrape that came at `now`.
    pub(super) fn take(&mut self, scrape: Scrape, now: Instant) {
        let before = self.newest.take().filter(|before| !scrape.is_restart_of(before));
        if before.is_none() && self.at.is_some() {
            self.past.push(None);
        }
        let seconds = self.at.map_or(0.0, |at| now.saturating_duration_since(at).as_secs_f64());
        let before = before.as_ref().map(|before| (before, seconds));
        self.all = Shown::of(before, &scrape, None);
        let cores = scrape.cores.iter();
        self.by_core =
            cores.map(|core| (core.clone(), Shown::of(before, &scrape, Some(core)))).collect();
        self.past.push(Some(self.all.clone()));
        (self.newest, self.at) = (Some(scrape), Some(now));
    }
}

/// The whole screen.
#[derive(Default)]
pub(super) struct Screen {
    /// The listener, as its URL has it.
    pub(super) name: String,
    pub(super) every: Duration,
    pub(super) answers: Answers,
    pub(super) view: TopView,
    /// Rows of the table above the first one shown.
    pub(super) scroll: usize,
    pub(super) is_paused: bool,
    /// `NO_COLOR` is set.
    pub(super) is_plain: bool,
}

/// How severe something is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Severity {
    Good,
    Note,
    Bad,
}

impl Screen {
    /// Whether the figures are too old to act on: three answers are missing.
    fn is_stale(&self, now: Instant) -> bool {
        self.answers.at.is_some_and(|at| {
            now.saturating_duration_since(at) > 3 * self.every.max(Duration::from_secs(1))
        })
    }

    fn style(&self, alarm: Severity) -> Style {
        let style = Style::new().add_modifier(match alarm {
            Severity::Good => Modifier::empty(),
            Severity::Note => Modifier::BOLD,
            Severity::Bad => Modifier::BOLD | Modifier::REVERSED,
        });
        match (self.is_plain, alarm) {
            (true, _) => style,
            (false, Severity::Good) => style.fg(Color::Green),
            (false, Severity::Note) => style.fg(Color::Yellow),
            (false, Severity::Bad) => style.fg(Color::Red),
        }
    }

    fn soft(&self) -> Style {
        if self.is_plain { Style::new() } else { Style::new().fg(Color::DarkGray) }
    }

    /// Draws all of it, as of `now`.
    pub(super) fn draw(&self, frame: &mut Frame<'_>, now: Instant) {
        let notices = self.notices(now);
        let charts = if frame.area().height >= CHARTS_FROM_HEIGHT { 5 } else { 0 };
        let rows = [
            Constraint::Length(1),
            Constraint::Length(notices.len() as u16),
            Constraint::Length(charts),
            Constraint::Length(6),
            Constraint::Min(3),
            Constraint::Length(1),
        ];
        let [head, notice, chart, figures, table, foot] =
            Layout::vertical(rows).areas(frame.area());
        frame.render_widget(self.head(now), head);
        frame.render_widget(Paragraph::new(notices).wrap(Wrap { trim: true }), notice);
        if charts > 0 {
            self.draw_charts(frame, chart, now);
        }
        frame.render_widget(self.figures(now), figures);
        self.draw_table(frame, table, now);
        let keys = " q quit  p pause  Tab cores, limits, peers  ↑ ↓ scroll ";
        frame.render_widget(Paragraph::new(keys).style(self.soft()), foot);
    }

    fn head(&self, now: Instant) -> Line<'_> {
        let age = self.answers.at.map(|at| now.saturating_duration_since(at).as_secs());
        let old = |word: &str| format!(" {word}, {} s old ", age.unwrap_or_default());
        let (alarm, fresh) = match age {
            _ if self.is_paused => (Severity::Note, old("Paused")),
            None if self.answers.failure.is_empty() => (Severity::Note, " Waiting ".to_owned()),
            None => (Severity::Bad, " No answer ".to_owned()),
            Some(_) if self.is_stale(now) => (Severity::Bad, old("STALE")),
            Some(_) if !self.answers.failure.is_empty() => (Severity::Note, old("Late")),
            Some(_) => (Severity::Good, " Live ".to_owned()),
        };
        let ready = match &self.answers.ready {
            _ if self.is_stale(now) => (Severity::Note, " Readiness unknown "),
            Some((200, _)) => (Severity::Good, " Ready "),
            Some(_) => (Severity::Bad, " Not ready "),
            None => (Severity::Note, ""),
        };
        Line::from(vec![
            Span::styled(" millrace ", Style::new().add_modifier(Modifier::BOLD)),
            Span::raw(format!("{}  ", self.name)),
            Span::styled(ready.1, self.style(ready.0)),
            Span::raw(" "),
            Span::styled(fresh, self.style(alarm)),
            Span::styled(
                format!("  every {}", humantime::format_duration(self.every)),
                self.soft(),
            ),
        ])
    }

    /// Why there is no answer, and what `/readyz` says.
    fn notices(&self, now: Instant) -> Vec<Line<'_>> {
        let mut lines = Vec::new();
        if !self.answers.failure.is_empty() && !self.is_paused {
            let failure = format!(" {}", self.answers.failure);
            lines.push(Line::styled(failure, self.style(Severity::Bad)));
        }
        if let Some((status, text)) = &self.answers.ready
            && !self.is_stale(now)
        {
            let is_ready = *status == 200;
            let alarm = if is_ready { Severity::Note } else { Severity::Bad };
            let reasons = text.lines().skip(usize::from(is_ready));
            lines.extend(reasons.map(|line| Line::styled(format!(" {line}"), self.style(alarm))));
        }
        lines.truncate(NOTICE_MAX);
        lines
    }

    fn draw_charts(&self, frame: &mut Frame<'_>, area: Rect, now: Instant) {
        type Pick = fn(&Shown) -> Option<f64>;
        type Chart = (&'static str, Pick, fn(Option<f64>) -> String);
        let charts: [Chart; 4] = [
            ("accepted/s", |of| of.accepted, count),
            ("request p99", |of| of.latency.p99, seconds),
            ("unfinished", |of| of.levels.unfinished, count),
            ("uploads", |of| of.levels.in_flight, count),
        ];
        let shown = usize::from((area.width / CHART_WIDTH).clamp(1, 4));
        let columns = Layout::horizontal(vec![Constraint::Fill(1); shown]).split(area);
        for ((title, pick, text), area) in charts.into_iter().zip(columns.iter()) {
            let newest = text(self.answers.newest.as_ref().and_then(|_| pick(&self.answers.all)));
            let block = Block::new().borders(Borders::ALL).border_style(self.soft());
            let block = block.title(format!(" {title} {newest} "));
            let values = self.answers.past.values(usize::from(area.width.saturating_sub(2)), pick);
            let max = values.iter().flatten().copied().fold(0.0, f64::max);
            // The widget draws whole numbers.
            let scale = |value: f64| if max > 0.0 { (value / max * 1000.0) as u64 } else { 0 };
            let bars: Vec<Option<u64>> = values.iter().map(|value| value.map(scale)).collect();
            let colour = if self.is_plain || self.is_stale(now) {
                Style::new()
            } else {
                Style::new().fg(Color::Cyan)
            };
            let chart = Sparkline::default().block(block).data(bars).max(1000).style(colour);
            frame.render_widget(chart, *area);
        }
    }

    fn figures(&self, now: Instant) -> Paragraph<'_> {
        let Shown { levels, latency, put_latency, .. } = &self.answers.all;
        let all = &self.answers.all;
        let label = |text: &str| Span::styled(format!(" {text:<9}"), self.soft());
        let alarming = |text: String, value: Option<f64>, alarm: Severity| match value {
            Some(value) if value > 0.0 => Span::styled(text, self.style(alarm)),
            _ => Span::raw(text),
        };
        let oldest = match levels.oldest {
            Some(_) => format!("  oldest {}", seconds(levels.oldest)),
            None => String::new(),
        };
        let lines = vec![
            Line::from(vec![
                label("in"),
                Span::raw(format!(
                    "{} payloads/s  {}/s  {} requests/s  4xx {}/s  ",
                    count(all.accepted),
                    bytes(all.accepted_bytes),
                    count(all.requests),
                    count(all.refused)
                )),
                alarming(
                    format!("503 {}/s", count(all.unavailable)),
                    all.unavailable,
                    Severity::Bad,
                ),
            ]),
            Line::from(vec![
                label("stored"),
                Span::raw(format!(
                    "{} payloads/s  {}/s  {} PUTs/s  ",
                    count(all.stored),
                    bytes(all.stored_bytes),
                    count(all.puts)
                )),
                alarming(
                    format!(
                        "retries {}/s, {} wait",
                        count(all.retries),
                        count(levels.awaiting_retry)
                    ),
                    all.retries,
                    Severity::Note,
                ),
            ]),
            Line::from(vec![
                label("latency"),
                Span::raw(format!(
                    "requests p50 {} p99 {}  PUTs p50 {} p99 {}",
                    seconds(latency.p50),
                    seconds(latency.p99),
                    seconds(put_latency.p50),
                    seconds(put_latency.p99)
                )),
            ]),
            Line::from(vec![
                label("held"),
                Span::raw(format!(
                    "queue {}  unfinished {}  uploads {} of {}{oldest}  connections {}",
                    count(levels.queue),
                    count(levels.unfinished),
                    count(levels.in_flight),
                    count(levels.in_flight_limit),
                    count(levels.connections)
                )),
            ]),
            Line::from(vec![
                label("spool"),
                Span::raw(format!(
                    "{} in {} payloads that are not stored",
                    bytes(levels.spool_bytes),
                    count(levels.spool_payloads)
                )),
            ]),
            Line::from(vec![
                label("failed"),
                alarming(
                    format!(
                        "dead letters {} since the start, {} wait",
                        count(levels.dead_lettered),
                        bytes(levels.dead_letter_bytes)
                    ),
                    levels.dead_letter_bytes,
                    Severity::Note,
                ),
                Span::raw("  "),
                alarming(format!("lost {}", count(levels.lost)), levels.lost, Severity::Bad),
            ]),
        ];
        Paragraph::new(lines).style(self.age_style(now))
    }

    /// Old figures are dim.
    fn age_style(&self, now: Instant) -> Style {
        match self.is_stale(now) || self.is_paused {
            true => Style::new().add_modifier(Modifier::DIM),
            false => Style::new(),
        }
    }

    fn draw_table(&self, frame: &mut Frame<'_>, area: Rect, now: Instant) {
        let block = Block::new().borders(Borders::ALL).border_style(self.soft());
        let block = block.title(self.view.title());
        let style = self.age_style(now);
        match self.view {
            TopView::Cores => {
                frame.render_widget(self.cores(area.width).block(block).style(style), area);
            }
            TopView::Limits => {
                frame.render_widget(self.limits(area.width).block(block).style(style), area)
            }
            TopView::Peers => {
                let lines: Vec<&str> = self.answers.peers.lines().skip(self.scroll).collect();
                let text = Paragraph::new(lines.join("\n")).block(block).style(style);
                frame.render_widget(text, area);
            }
        }
    }

    /// How many rows the table has.
    pub(super) fn rows(&self) -> usize {
        match self.view {
            TopView::Cores => self.answers.by_core.len(),
            TopView::Limits => {
                self.answers.newest.as_ref().map_or(0, |newest| newest.fullness().len())
            }
            TopView::Peers => self.answers.peers.lines().count(),
        }
    }

    /// As many columns as have room: a number without its first digits would be another number.
    fn cores(&self, width: u16) -> Table<'_> {
        let titles = [
            "in/s", "out/s", "p50", "p99", "queue", "uploads", "retry/s", "503/s", "dead", "spool",
            "conns",
        ];
        // Borders and the column of ids take 6.
        let fitting = usize::from(width.saturating_sub(6) / (CORE_COLUMN + 1)).min(titles.len());
        let right = |text: String| Cell::from(Line::from(text).right_aligned());
        let names = titles.iter().take(fitting).map(|title| right((*title).to_owned()));
        let head = Row::new([Cell::from("core")].into_iter().chain(names));
        let rows = self.answers.by_core.iter().skip(self.scroll).map(|(core, of)| {
            let levels = &of.levels;
            let cells = [
                count(of.accepted),
                count(of.stored),
                seconds(of.latency.p50),
                seconds(of.latency.p99),
                count(levels.queue),
                count(levels.in_flight),
                count(of.retries),
                count(of.unavailable),
                count(levels.dead_lettered),
                bytes(levels.spool_bytes),
                count(levels.connections),
            ];
            let shown = cells.into_iter().take(fitting).map(right);
            Row::new([Cell::from(core.as_str())].into_iter().chain(shown))
        });
        let widths = std::iter::once(4).chain(std::iter::repeat_n(CORE_COLUMN, fitting));
        let widths = widths.map(Constraint::Length);
        Table::new(rows, widths).header(head.style(self.soft()))
    }

    fn limits(&self, width: u16) -> Table<'_> {
        let rows =
            self.answers.newest.iter().flat_map(Scrape::fullness).skip(self.scroll).map(|of| {
                let Fullness { what, is_bytes, may_be_full, core, value, limit, share } = of;
                let text = if is_bytes { bytes } else { count };
                let core = core.map(|core| format!("core {core}")).unwrap_or_default();
                let bar = "█".repeat(((share * 10.0).round() as usize).min(10));
                let alarm = match share {
                    _ if may_be_full => None,
                    share if share >= 0.95 => Some(Severity::Bad),
                    share if share >= 0.75 => Some(Severity::Note),
                    _ => None,
                };
                let style = alarm.map_or_else(Style::new, |alarm| self.style(alarm));
                Row::new([
                    Cell::from(what),
                    Cell::from(format!("{:>3.0} %", share * 100.0)),
                    Cell::from(format!("{bar:<10}")),
                    Cell::from(format!("{} of {}", text(Some(value)), text(Some(limit)))),
                    Cell::from(core),
                ])
                .style(style)
            });
        let what = width.saturating_sub(2 + 6 + 11 + 22 + 8 + 4).max(10);
        let widths = [what, 6, 11, 22, 8].map(Constraint::Length);
        Table::new(rows, widths)
    }
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::*;

    fn scrape(accepted: u64) -> Scrape {
        let lines: String = ["0", "1"].iter().map(|core| format!(
            "millrace_connections{{core=\"{core}\"}} 3\nmillrace_payloads_accepted_total{{core=\"{core}\"}} {accepted}\n\
             millrace_queue_depth{{core=\"{core}\"}} 96\nmillrace_queue_depth_limit{{core=\"{core}\"}} 100\n\
             millrace_payloads_lost_total{{core=\"{core}\"}} 1\n")).collect();
        Scrape::parse(&lines).unwrap()
    }

    fn example(now: Instant) -> Screen {
        let mut screen = Screen {
            name: "127.0.0.1:9090".into(),
            every: Duration::from_secs(1),
            ..Screen::default()
        };
        screen.answers.take(scrape(100), now);
        screen.answers.take(scrape(1100), now + Duration::from_secs(2));
        screen.answers.ready = Some((503, "core 0: the store has been failing for 9 s\n".into()));
        screen
    }

    /// The screen as text, and the styles in it.
    fn drawn(screen: &Screen, now: Instant, width: u16, height: u16) -> (String, Vec<Style>) {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| screen.draw(frame, now)).unwrap();
        let buffer = terminal.backend().buffer();
        let cells = buffer.content();
        let lines = cells.chunks(usize::from(width)).map(|line| {
            line.iter().map(|cell| cell.symbol()).collect::<String>().trim_end().to_owned()
        });
        (lines.collect::<Vec<_>>().join("\n"), cells.iter().map(|cell| cell.style()).collect())
    }

    #[test]
    fn everything_is_there() {
        let start = crate::rt::now();
        let mut screen = example(start);
        let now = start + Duration::from_secs(2);
        let (text, _) = drawn(&screen, now, 110, 30);
        for expected in [
            "millrace 127.0.0.1:9090",
            "Not ready",
            "Live",
            "the store has been failing for 9 s",
            "accepted/s 1000",
            "in       1000 payloads/s",
            "queue 192",
            "lost 2",
            "500",
            "q quit",
        ] {
            assert!(text.contains(expected), "{expected} not in\n{text}");
        }
        screen.view = TopView::Limits;
        let (text, _) = drawn(&screen, now, 110, 30);
        assert!(text.contains("96 %") && text.contains("96 of 100"), "{text}");
        screen.view = TopView::Peers;
        screen.answers.peers = "# busiest peers\npeer 1\npeer 2\n".into();
        screen.scroll = 2;
        let (text, _) = drawn(&screen, now, 110, 30);
        assert!(text.contains("peer 2") && !text.contains("peer 1"), "{text}");
    }

    /// A screen is as large as its user makes it.
    #[test]
    fn every_size_is_drawn() {
        let start = crate::rt::now();
        let mut screen = example(start);
        for view in [TopView::Cores, TopView::Limits, TopView::Peers] {
            screen.view = view;
            for (width, height) in [(1, 1), (3, 40), (40, 8), (80, 24), (200, 60), (80, 4)] {
                let (text, _) = drawn(&screen, start, width, height);
                assert!(text.lines().count() <= usize::from(height));
            }
        }
        screen.view = TopView::Cores;
        let (text, _) = drawn(&screen, start, 80, 24);
        assert!(text.contains("core") && text.contains("failed"), "{text}");
        // Columns leave as wholes.
        assert!(text.contains("503/s") && !text.contains("conns"), "{text}");
        assert!(drawn(&screen, start, 120, 24).0.contains("conns"));
    }

    #[test]
    fn old_figures_say_how_old_they_are() {
        let start = crate::rt::now();
        let mut screen = example(start);
        screen.answers.failure = "/metrics: Connection refused".into();
        let late = start + Duration::from_secs(2 + 34);
        let (text, styles) = drawn(&screen, late, 100, 24);
        assert!(text.contains("STALE, 34 s old") && text.contains("Connection refused"), "{text}");
        assert!(text.contains("Readiness unknown") && !text.contains("Not ready"), "{text}");
        assert!(styles.iter().any(|style| style.add_modifier.contains(Modifier::DIM)));
        screen.is_paused = true;
        let (text, _) = drawn(&screen, late, 100, 24);
        assert!(text.contains("Paused, 34 s old"), "{text}");
        let nothing = Screen::default();
        assert!(drawn(&nothing, start, 80, 24).0.contains("Waiting"));
    }

    #[test]
    fn without_colours_there_is_none() {
        let start = crate::rt::now();
        for is_plain in [true, false] {
            let mut screen = example(start);
            screen.is_plain = is_plain;
            let mut coloured = false;
            for view in [TopView::Cores, TopView::Limits] {
                screen.view = view;
                let (_, styles) = drawn(&screen, start, 100, 30);
                coloured |=
                    styles.iter().any(|style| !matches!(style.fg, None | Some(Color::Reset)));
            }
            assert_eq!(coloured, !is_plain);
        }
    }

    #[test]
    fn a_restart_is_a_gap() {
        let start = crate::rt::now();
        let mut screen = example(start);
        screen.answers.take(scrape(5), start + Duration::from_secs(3));
        assert_eq!(screen.answers.all.accepted, None);
        let drawn = screen.answers.past.values(9, |of| of.accepted);
        assert_eq!(drawn, [None, Some(1000.0), None, None]);
    }
}
