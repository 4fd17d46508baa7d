//! The admin page: goal, what it shows is what the server says, old figures are marked, and everybody
//! can use it.
//!
//! Method: a headless browser shows the page of real servers that work, stop and start again; its
//! figures are compared with `/metrics`, its colours with what eyes need, its keys with where the
//! focus goes. `MILLRACE_TEST_SCREENSHOTS=DIR` has the tests leave pictures there.

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::devtools::Tab;
use crate::support::needs::{Need, skip, up_to_two_cores};
use crate::support::{Client, Metrics, Server};

const TOKEN: &str = "correct-horse-battery-staple";

/// The figures' own tests, under Node.js.
#[test]
fn figures_are_computed_as_they_should_be() {
    let there = Command::new("node").arg("--version").output();
    if there.is_err() {
        return skip(Need::Node, "there is no node");
    }
    let node = Command::new("node")
        .args(["--test", "tests/page/figures.test.mjs"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&node.stdout).into_owned();
    assert!(node.status.success() && said.contains("\n# fail 0\n"), "{said}");
    assert!(!said.contains("\n# pass 0\n"), "{said}");
}

#[test]
fn it_comes_with_headers_that_keep_everything_else_out() {
    let server = Server::start(&[]);
    let page = server.admin("/");
    assert_eq!((page.status, page.header("content-type")), (200, Some("text/html; charset=utf-8")));
    for (name, value) in [
        ("cache-control", "no-store"),
        ("x-content-type-options", "nosniff"),
        ("x-frame-options", "DENY"),
        ("referrer-policy", "no-referrer"),
    ] {
        assert_eq!(page.header(name), Some(value), "{name}");
    }
    let policy = page.header("content-security-policy").unwrap();
    for part in
        ["default-src 'none'", "connect-src 'self'", "frame-ancestors 'none'", "base-uri 'none'"]
    {
        assert!(policy.split("; ").any(|of| of == part), "{part}: {policy}");
    }
    assert!(!policy.contains("unsafe") && !policy.contains("http"), "{policy}");
    assert_eq!(server.admin("/settings").header("cache-control"), Some("no-store"));
    for path in ["/", "/settings"] {
        let mut client = Client::connect(server.admin);
        client
            .send(format!("POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 0\r\n\r\n"));
        assert_eq!(client.reply().status, 405, "{path}");
    }
}

/// Posts until it is dropped.
struct Load {
    ends: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Load {
    fn on(server: &Server) -> Load {
        let ends = Arc::new(AtomicBool::new(false));
        let (end, ingest) = (ends.clone(), server.ingest);
        let thread = std::thread::spawn(move || {
            let mut clients: Vec<Client> = (0..4).map(|_| Client::connect(ingest)).collect();
            let mut n = 0;
            while !end.load(Ordering::Relaxed) {
                for client in &mut clients {
                    n += 1;
                    let payloads: Vec<String> =
                        (0..n % 5 + 1).map(|i| format!("{{\"id\":{n},\"i\":{i}}}")).collect();
                    client.post(format!(r#"{{"data":[{}]}}"#, payloads.join(",")));
                }
                if n % 50 < 4 {
                    clients[0].post("no json");
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        });
        Load { ends, thread: Some(thread) }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        let _its_panic_is_reported = self.thread.take().unwrap().join();
    }
}

/// Figures of the page and where `/metrics` has them.
const FIGURES: [(&str, &str); 9] = [
    ("acceptedTotal", "millrace_payloads_accepted_total"),
    ("storedTotal", "millrace_payloads_stored_total"),
    ("requestsTotal", "millrace_requests_total"),
    ("retriesTotal", "millrace_put_retries_total"),
    ("deadLetteredTotal", "millrace_payloads_dead_lettered_total"),
    ("deadLetterBytes", "millrace_dead_letter_directory_bytes"),
    ("spoolDiskBytes", "millrace_spool_disk_bytes"),
    ("queueLimit", "millrace_queue_depth_limit"),
    ("connections", "millrace_connections"),
];

/// The figures that the page shows now, of all cores or of one.
fn shown(tab: &mut Tab, core: &str) -> Value {
    tab.value(&format!("({{ ...page.shown.get('{core}') }})"))
}

/// Waits for a scrape that the page asks for from now on.
fn next_scrape(tab: &mut Tab) {
    let last = tab.value("page.last");
    // The one on its way may have been answered before.
    tab.wait("a scrape", &format!("page.last > {last}"));
    let last = tab.value("page.last");
    tab.wait("another scrape", &format!("page.last > {last}"));
}

#[test]
fn its_figures_are_those_of_metrics() {
    let Some(mut tab) = Tab::open() else { return };
    let cores = up_to_two_cores();
    let server = Server::start(&[
        ("CORES", cores),
        ("SPOOL_DIR", "spool"),
        ("FAULTS", "seed=5,transient=0.1,object=0.02,delay=2ms"),
        ("RETRY_BASE", "1ms"),
    ]);
    let origin = format!("http://{}/", server.admin);
    let load = Load::on(&server);
    tab.screen(1280, "light");
    tab.go(&origin);
    tab.wait("rates", "page.shown.get('').accepted > 0 && page.history.rows.length > 2");
    // Under load each total lies between what /metrics said before and says after.
    let before = server.metrics();
    next_scrape(&mut tab);
    let figures = shown(&mut tab, "");
    let after = server.metrics();
    for (figure, name) in [FIGURES[0], FIGURES[1], FIGURES[2]] {
        let between = before.sum(name) as f64..=after.sum(name) as f64;
        let value = figures[figure].as_f64().unwrap();
        assert!(between.contains(&value), "{figure}: {value} is not in {between:?}");
    }
    // In some second there is something of each.
    tab.wait(
        "every rate and time",
        "['accepted', 'stored', 'requests', 'refused', 'retries', 'p50', 'p99', 'putP50', 'putP99']\
         .every(key => page.shown.get('')[key] > 0)",
    );
    looks_right_everywhere(&mut tab);

    drop(load);
    server.wait("nothing unfinished", |m| m.sum("millrace_payloads_unfinished") == 0);
    tab.wait(
        "no connections",
        "page.shown.get('').connections === 0 && page.shown.get('').accepted === 0",
    );
    let metrics = server.metrics();
    let figures = shown(&mut tab, "");
    for (figure, name) in FIGURES {
        assert_eq!(figures[figure].as_f64(), Some(metrics.sum(name) as f64), "{figure}");
    }
    for core in cores.split(',') {
        let figures = shown(&mut tab, core);
        for (figure, name) in &FIGURES[..5] {
            let expected = metrics.sum_where(name, &format!("core=\"{core}\"")) as f64;
            assert_eq!(figures[*figure].as_f64(), Some(expected), "core {core}: {figure}");
        }
    }
    // What is drawn adds up to what was counted.
    let [drawn, first] = [
        "page.history.rows.filter((row) => row.of.get('')).reduce((sum, row, at, rows) => {
            const rate = row.of.get('')[KEYS.indexOf('accepted')];
            return at && !Number.isNaN(rate) ? sum + rate * (row.at - rows[at - 1].at) : sum;
        }, 0)",
        "page.history.rows[0].of.get('')[KEYS.indexOf('acceptedTotal')]",
    ]
    .map(|of| tab.value(of).as_f64().unwrap());
    let counted = metrics.sum("millrace_payloads_accepted_total") as f64 - first;
    assert!((drawn - counted).abs() < 0.05 * counted, "drawn {drawn}, counted {counted}");
    latencies_lie_in_their_buckets(&mut tab, &metrics);
    // The tiles show these figures.
    let tile = tab
        .value("Number(document.querySelector('[data-figure=deadLetteredTotal]').dataset.value)");
    assert_eq!(tile, figures["deadLetteredTotal"]);
    assert_eq!(
        tab.value("document.querySelector('#limits [data-limit=queue_depth]').dataset.share"),
        "0"
    );
    assert!(tab.text("#responses").contains("400"));
    assert!(tab.text("#peers").contains("127.0.0.1"));
    assert!(tab.text("#settings").contains("SPOOL_DIR"));
    let (requested, complaints) = (tab.requested(), tab.complaints());
    let strange: Vec<_> = requested
        .iter()
        .filter(|url| {
            !url.starts_with(&origin) && *url != "about:blank" && !url.starts_with("data:")
        })
        .collect();
    assert!(strange.is_empty() && requested.len() > 10, "{strange:?}");
    assert!(complaints.is_empty(), "{complaints:?}");
}

fn latencies_lie_in_their_buckets(tab: &mut Tab, metrics: &Metrics) {
    for (name, q) in [
        ("request_latency_seconds", 0.5),
        ("request_latency_seconds", 0.99),
        ("put_latency_seconds", 0.99),
    ] {
        let shown =
            tab.value(&format!("quantile(observed(null, page.scrape, '{name}', null), {q})"));
        let shown = shown.as_f64().unwrap();
        let all = metrics.sum(&format!("millrace_{name}_count")) as f64;
        let at_most = |bound: f64| {
            metrics.sum_where(
                &format!("millrace_{name}_bucket"),
                &format!("le=\"{}\"", decimal(bound)),
            ) as f64
        };
        let bounds = millrace::internals::metrics::LATENCY_BOUNDS_US.map(|us| us as f64 / 1e6);
        let at =
            bounds.iter().position(|bound| at_most(*bound) >= q * all).expect("within the bounds");
        let least = at.checked_sub(1).map_or(0.0, |at| bounds[at]);
        assert!(
            shown >= least && shown <= bounds[at],
            "{name} {q}: {shown} is not in {least}..={}",
            bounds[at]
        );
    }
}

/// As a scrape writes it.
fn decimal(bound: f64) -> String {
    if bound.fract() == 0.0 { format!("{bound:.1}") } else { bound.to_string() }
}

/// Texts whose contrast to their ground is below 4.5 (WCAG 2.2, 1.4.3), as "contrast text".
const FAINT: &str = r"(() => {
  const rgb = (text) => text.match(/[\d.]+/g).map(Number);
  const light = ([r, g, b]) => {
    const part = (v) => (v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4);
    return 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
  };
  const ground = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = rgb(getComputedStyle(at).backgroundColor);
      if (colour.length < 4 || colour[3] > 0) return colour;
    }
    return [255, 255, 255];
  };
  const own = (element) => [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
  return [...document.body.querySelectorAll('*')].filter((element) => own(element) && element.checkVisibility() && element.tagName !== 'SCRIPT').map((element) => {
    const [a, b] = [light(rgb(getComputedStyle(element).color)), light(ground(element))].sort((x, y) => y - x);
    return [(a + 0.05) / (b + 0.05), element.textContent.trim().slice(0, 40)];
  }).filter(([contrast]) => contrast < 4.5).map(String);
})()";

/// On a phone and a desk, in the dark and in the light.
fn looks_right_everywhere(tab: &mut Tab) {
    let mut grounds = Vec::new();
    for (width, scheme) in [(360, "dark"), (360, "light"), (1280, "dark"), (1280, "light")] {
        tab.screen(width, scheme);
        tab.wait("the width", &format!("innerWidth === {width}"));
        tab.wait("charts as wide as they can be", "charts.every(({ plot, canvas }) => plot && Math.abs(plot.width - canvas.clientWidth) < 2)");
        let overflow = tab.value("document.scrollingElement.scrollWidth - innerWidth");
        assert!(overflow.as_i64().unwrap() <= 0, "{width} {scheme}: {overflow} px too wide");
        assert_eq!(tab.value(FAINT), json!([]), "{width} {scheme}");
        grounds.push(tab.value("getComputedStyle(document.body).backgroundColor"));
        tab.screenshot(&format!("live-{width}-{scheme}"));
    }
    assert_ne!(grounds[0], grounds[1]);
    assert_eq!(grounds[0], grounds[2]);
    // Every control, chart and bar says what it is.
    let tree = tab.call("Accessibility.getFullAXTree", json!({}));
    let roles = [
        "button",
        "combobox",
        "textbox",
        "checkbox",
        "link",
        "image",
        "img",
        "progressbar",
        "region",
    ];
    let mut named = 0;
    for node in tree["nodes"].as_array().unwrap() {
        if roles.iter().any(|role| node["role"]["value"] == *role) && node["ignored"] == false {
            assert!(node["name"]["value"].as_str().is_some_and(|name| !name.is_empty()), "{node}");
            named += 1;
        }
    }
    assert!(named > 20, "{named}");
    can_be_used_by_keyboard(tab);
}

fn can_be_used_by_keyboard(tab: &mut Tab) {
    tab.value(
        "document.activeElement.blur(); scrollTo(0, 0); getSelection().removeAllRanges(); true",
    );
    let focus =
        "(({ id, className, tagName }) => id || className || tagName)(document.activeElement)";
    let mut path = Vec::new();
    for _ in 0..11 {
        tab.press("Tab");
        path.push(tab.value(focus).as_str().unwrap().to_owned());
        let outline = tab.value("getComputedStyle(document.activeElement).outlineStyle");
        assert_ne!(outline, "none", "{path:?}");
    }
    let expected = [
        "skip", "core", "span", "pause", "scroll", "scroll", "by", "scroll", "changed", "scroll",
        "A",
    ];
    assert_eq!(path, expected);
    // Over the controls, and then on from the figures.
    tab.value("document.querySelector('.skip').focus()");
    tab.press("Enter");
    tab.wait("the figures have the focus", "document.activeElement.id === 'main'");
    tab.value("document.querySelector('#pause').focus()");
    tab.press(" ");
    tab.wait("a pause", "document.body.classList.contains('stale') && /^Paused/.test(document.querySelector('#fresh').textContent)");
    // One that was under way may still come.
    std::thread::sleep(Duration::from_millis(1500));
    let last = tab.value("page.last");
    std::thread::sleep(Duration::from_millis(2500));
    assert_eq!(tab.value("page.last"), last, "it asks nothing meanwhile");
    tab.press(" ");
    tab.wait("it goes on", "document.querySelector('#fresh').dataset.state === 'live'");
}

#[test]
fn what_is_guarded_is_shown_to_whoever_types_the_token_in() {
    let Some(mut tab) = Tab::open() else { return };
    let server = Server::start(&[("ADMIN_LISTEN", "0.0.0.0:0"), ("ADMIN_TOKEN", TOKEN)]);
    server.post_payloads(&["1"]);
    let origin = format!("http://127.0.0.1:{}/", server.admin.port());
    tab.screen(360, "light");
    tab.go(&origin);
    tab.wait(
        "it says that it has no token",
        "/this page has no token/.test(document.querySelector('#token').innerText)",
    );
    tab.wait("what is open is shown", "page.shown.get('').acceptedTotal === 1");
    assert_eq!(tab.text("#peers") + &tab.text("#settings"), "");
    tab.screenshot("token-missing");
    tab.value("document.querySelector('#token-input').focus()");
    tab.write("wrong-token-wrong-token");
    tab.press("Enter");
    tab.wait(
        "it is refused",
        "/does not accept this token/.test(document.querySelector('#token').innerText)",
    );
    tab.screenshot("token-wrong");
    tab.value("document.querySelector('#token-input').focus()");
    tab.write(TOKEN);
    tab.press("Enter");
    tab.wait("peers", "document.querySelector('#peers').innerText.includes('127.0.0.1')");
    tab.wait("settings", "document.querySelector('#settings').innerText.includes('ADMIN_TOKEN')");
    tab.screenshot("token-given");
    let kept = "[document.documentElement.outerHTML, document.cookie, location.href, ...Object.values(localStorage)].join()";
    assert!(!tab.value(kept).as_str().unwrap().contains(TOKEN));
    tab.call("Page.reload", json!({}));
    tab.wait(
        "it is kept in this tab",
        "document.querySelector('#peers').innerText.includes('127.0.0.1')",
    );
    tab.value("document.querySelector('#token-forget').click()");
    tab.wait(
        "it is forgotten",
        "document.querySelector('#peers').innerText === '' && sessionStorage.length === 0",
    );
    assert!(!tab.requested().iter().any(|url| url.contains(TOKEN)));
    let complaints = tab.complaints();
    assert!(complaints.is_empty(), "{complaints:?}");
}

#[test]
fn nothing_is_asked_for_a_tab_that_nobody_sees() {
    let Some(mut tab) = Tab::open() else { return };
    let server = Server::start(&[("STORE", "null:")]);
    tab.go(&format!("http://{}/", server.admin));
    tab.wait("it is ready", "document.querySelector('#ready').textContent === 'Ready'");
    next_scrape(&mut tab);
    // What the browser does when another tab is in front.
    let hide = "Object.defineProperty(document, 'hidden', { configurable: true, get: () => HIDDEN }); \
                document.dispatchEvent(new Event('visibilitychange'));";
    tab.value(&hide.replace("HIDDEN", "true"));
    // The one on its way comes in.
    tab.wait("nothing is on its way", "page.timer !== null");
    tab.wait("its title", "document.title.startsWith('not looked at')");
    let last = tab.value("page.last");
    std::thread::sleep(Duration::from_secs(5));
    assert_eq!(tab.value("page.last"), last, "two and more were due");
    tab.value(&hide.replace("HIDDEN", "false"));
    tab.wait("a scrape at once", &format!("page.last > {last}"));
    tab.wait("it is live", "document.querySelector('#fresh').dataset.state === 'live'");
}

#[test]
fn old_figures_are_marked_and_a_restart_draws_nothing_below_zero() {
    let Some(mut tab) = Tab::open() else { return };
    let faults = [("FAULTS", "outage=10m"), ("READY_STORE_GRACE", "1s"), ("RETRY_BASE", "50ms")];
    let server = Server::start(&faults);
    tab.screen(1280, "dark");
    tab.go(&format!("http://{}/", server.admin));
    tab.wait("it is ready", "document.querySelector('#ready').textContent === 'Ready'");
    for _ in 0..50 {
        server.post_payloads(&["1", "2"]);
    }
    tab.wait(
        "why it is not",
        "/the store has been failing/.test(document.querySelector('#reasons').innerText)",
    );
    assert_eq!(tab.text("#ready"), "Not ready");
    tab.wait("what was accepted", "page.shown.get('').acceptedTotal === 100");
    tab.screenshot("not-ready");
    let admin = server.admin.to_string();
    drop(server);
    tab.wait("stale", "document.querySelector('#fresh').dataset.state === 'stale'");
    tab.wait(
        "for some time",
        "/^Stale, \\d+\\u00a0s old$/.test(document.querySelector('#fresh').textContent)",
    );
    assert!(
        tab.text("#trouble").contains("the server cannot be reached"),
        "{}",
        tab.text("#trouble")
    );
    assert_eq!(tab.text("#ready"), "Readiness unknown");
    assert_eq!(
        tab.value(
            "document.body.classList.contains('stale') && document.title.startsWith('STALE')"
        ),
        true
    );
    tab.screenshot("stale");

    let server = Server::start(&[("ADMIN_LISTEN", &admin)]);
    tab.wait(
        "it is live again",
        "document.querySelector('#fresh').dataset.state === 'live' && page.restarts === 1",
    );
    server.post_payloads(&["1"]);
    tab.wait(
        "rates again",
        "page.shown.get('').acceptedTotal === 1 && page.shown.get('').accepted !== null",
    );
    assert_eq!(tab.value("document.body.classList.contains('stale')"), false);
    let history = "page.history.rows.map((row) => [...(row.of.get('') ?? [null])])";
    let rows = tab.value(history);
    let rows = rows.as_array().unwrap();
    let gaps = rows.iter().filter(|row| **row == json!([null])).count();
    assert_eq!(gaps, 1, "no line from one server to the next");
    let below = rows
        .iter()
        .flat_map(|row| row.as_array().unwrap())
        .filter_map(Value::as_f64)
        .find(|value| *value < 0.0);
    assert_eq!(below, None);
    let complaints = tab.complaints();
    assert!(complaints.is_empty(), "{complaints:?}");
}
