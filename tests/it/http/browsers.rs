//! Goal: pages of other origins can post with what browsers have, `fetch` and `sendBeacon`, read
//! every answer where `CORS_ORIGINS` lists them, and are kept from it where it does not.
//!
//! Method: headless Chromium shows pages of this test, of `http://app.localhost` (listed) and
//! `http://127.0.0.1` (not listed), whose scripts send to real servers and report what they saw;
//! then what the servers stored and counted is compared with it.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::support::chromium::{Chromium, Pages};
use crate::support::{Server, wait_for};

/// A server with the token `al/pha` for pages of `http://*.localhost:PORT`.
fn start(port: u16, settings: &[(&str, &str)]) -> Server {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    std::fs::write(dir.path().join("tokens"), "al/pha\n").unwrap();
    let origins = format!("http://*.localhost:{port}");
    let all = [("TOKENS_FILE", "tokens"), ("TOKEN_IN_QUERY", "on"), ("CORS_ORIGINS", &origins)];
    Server::start_in(dir, &[&all, settings].concat())
}

/// A page that does what its query says and reports it. `servers=` is a list of ports.
const WORKER: &str = r#"<script type=module>
const [main, full, star] = new URLSearchParams(location.search).get('servers').split(',')
  .map((port) => `http://127.0.0.1:${port}`);
const bearer = { authorization: 'Bearer al/pha' };
const json = { ...bearer, 'content-type': 'application/json' };
const body = (text) => JSON.stringify({ data: [text] });

const said = (text) => text.replace(/^{"error":.*multipart form.*/, 'form').replace(/^{"error":.*/, 'error');

// What a script sees of an answer.
async function post(url, options) {
  try {
    const answer = await fetch(url, { method: 'POST', ...options });
    const text = await answer.text();
    const headers = ['retry-after', 'www-authenticate', 'allow'].filter((name) => answer.headers.has(name));
    return [answer.type, answer.status, said(text), ...headers].join(' ');
  } catch (error) {
    return error.name;
  }
}

async function gzip(text) {
  const stream = new Blob([text]).stream().pipeThrough(new CompressionStream('gzip'));
  return new Response(stream).arrayBuffer();
}

const beacon = (data) => navigator.sendBeacon(`${main}/payloads?token=${encodeURIComponent('al/pha')}`, data);
const form = new FormData();
form.append('data', body('form'));

const tries = {
  simple: () => post(`${main}/payloads`, { body: JSON.stringify({ data: ['simple'], token: 'al/pha' }) }),
  query: () => post(`${main}/payloads?token=al%2Fpha`, { body: body('query') }),
  header: () => post(`${main}/payloads`, { headers: json, body: body('header') }),
  again: () => post(`${main}/payloads`, { headers: json, body: body('again') }),
  included: () => post(`${main}/payloads`, { body: body('included'), headers: bearer, credentials: 'include' }),
  stored: () => post(`${main}/payloads`, { headers: { ...json, 'millrace-ack': 'stored' }, body: body('stored') }),
  gzip: async () => post(`${main}/payloads`, { headers: { ...json, 'content-encoding': 'gzip' }, body: await gzip(body('gzip')) }),
  key: () => post(`${main}/payloads`, { headers: { 'x-api-key': 'al/pha' }, body: body('key') }),
  wrong: () => post(`${main}/payloads`, { headers: { authorization: 'Bearer wrong' }, body: body('no') }),
  none: () => post(`${main}/payloads?token=wrong`, { body: body('no') }),
  bad: () => post(`${main}/payloads`, { headers: json, body: 'no json' }),
  form: () => post(`${main}/payloads`, { headers: bearer, body: form }),
  nowhere: () => post(`${main}/nowhere`, { headers: json, body: body('no') }),
  get: () => post(`${main}/payloads`, { method: 'GET' }),
  put: () => post(`${main}/payloads`, { method: 'PUT', headers: json, body: body('no') }),
  strange: () => post(`${main}/payloads`, { headers: { ...json, 'x-strange': '1' }, body: body('no') }),
  opaque: () => post(`${main}/payloads?token=al%2Fpha`, { mode: 'no-cors', body: body('opaque') }),
  health: () => post(`${main}/readyz`, { method: 'GET' }),
  full: () => post(`${full}/payloads`, { headers: json, body: body('no') }),
  star: () => post(`${star}/payloads`, { headers: json, body: body('star') }),
  starred: () => post(`${star}/payloads`, { headers: json, body: body('no'), credentials: 'include' }),
  beacon_text: () => beacon(body('beacon_text')),
  beacon_json: () => beacon(new Blob([body('beacon_json')], { type: 'application/json' })),
  beacon_form: () => beacon(form),
};

const seen = {};
for (const [name, attempt] of Object.entries(tries)) seen[name] = await attempt();
await report(seen);
</script>"#;

#[test]
fn scripts_of_listed_origins_read_every_answer_and_others_none() {
    let pages = Pages::start(&[("/", WORKER.to_owned())]);
    let main = start(pages.port(), &[("INGEST_HEALTH", "on")]);
    let full = start(
        pages.port(),
        &[
            ("MAX_QUEUE", "1"),
            ("MAX_WORKERS", "1"),
            ("ENQUEUE_WAIT", "0s"),
            ("FAULTS", "delay=10m"),
            ("PUT_TIMEOUT", "20m"),
            ("PUT_TIMEOUT_MAX", "20m"),
        ],
    );
    let star = start(pages.port(), &[("CORS_ORIGINS", "*")]);
    wait_for("a full queue", || full.post(r#"{"data":[1],"token":"al/pha"}"#).status == 503);
    let servers = [&main, &full, &star].map(|server| server.ingest.port().to_string()).join(",");
    // The browser is to live until its beacons are sent, some time after the page's report.
    let see = |host: &str| -> Option<(Chromium, Value)> {
        let url = format!("http://{host}:{}/?servers={servers}", pages.port());
        let browser = Chromium::open(&url)?;
        Some((browser, pages.report()))
    };

    let Some((browser, seen)) = see("app.localhost") else { return };
    let taken = r#"cors 200 {"accepted":1,"ack":"queued"}"#;
    let expected = json!({
        "simple": taken,
        "query": taken,
        "header": taken,
        "again": taken,
        "included": taken,
        "stored": r#"cors 200 {"accepted":1,"ack":"stored"}"#,
        "gzip": taken,
        "key": taken,
        "wrong": "cors 401 error www-authenticate",
        "none": "cors 401 error www-authenticate",
        "bad": "cors 400 error",
        "form": "cors 400 form",
        "nowhere": "cors 404 error",
        "get": "cors 405 error allow",
        "put": "TypeError",
        "strange": "TypeError",
        "opaque": "opaque 0 ",
        "health": "cors 200 ready\n",
        "full": "cors 503 error retry-after",
        "star": taken,
        "starred": "TypeError",
        "beacon_text": true,
        "beacon_json": true,
        "beacon_form": true,
    });
    assert_eq!(seen, expected);
    let all = [
        "again",
        "beacon_json",
        "beacon_text",
        "gzip",
        "header",
        "included",
        "key",
        "opaque",
        "query",
        "simple",
        "stored",
    ];
    wait_for("the beacons", || main.stored().len() == all.len());
    assert_eq!(main.stored_texts(), all.map(|text| format!("\"{text}\"")));
    wait_for("the form", || main.metrics().requests(400) == 3);
    assert_eq!(star.stored_texts(), ["\"star\""]);
    drop(browser);
    let before = main.metrics();

    // The same from an origin that is not listed: what needs a permission is not sent, and what
    // does not is served but cannot be read.
    let (_browser, seen) = see("127.0.0.1").expect("there was a browser");
    let star_seen = ["star", "starred"].map(|name| seen[name].clone());
    assert_eq!(star_seen, [json!(taken), json!("TypeError")]);
    assert_eq!(seen["opaque"], "opaque 0 ");
    for name in expected.as_object().unwrap().keys() {
        let is_own = name.starts_with("beacon") || name.starts_with("star") || name == "opaque";
        assert!(is_own || seen[name] == "TypeError", "{name}: {seen}");
    }
    let served = ["beacon_text", "opaque", "query", "simple"];
    wait_for("what was served", || main.stored().len() == all.len() + served.len());
    let mut stored = [&all[..], &served].concat();
    stored.sort_unstable();
    let stored: Vec<_> = stored.iter().map(|text| format!("\"{text}\"")).collect();
    assert_eq!(main.stored_texts(), stored);
    let after = main.metrics();
    let grown = |name: &str| after.sum(name) - before.sum(name);
    assert_eq!(grown("millrace_preflights_total"), 0);
    assert!(grown("millrace_preflights_refused_total") >= 8, "{}", after.0);
}

#[test]
fn one_preflight_is_enough_for_many_posts() {
    const PAGE: &str = r#"<script type=module>
const url = `http://127.0.0.1:${new URLSearchParams(location.search).get('server')}/payloads`;
const options = {
  method: 'POST',
  headers: { authorization: 'Bearer al/pha', 'content-type': 'application/json' },
  body: '{"data":[1]}',
};
const seen = [];
for (let n = 0; n < 5; n += 1) seen.push((await fetch(url, options)).status);
await report(seen);
</script>"#;
    let pages = Pages::start(&[("/", PAGE.to_owned())]);
    let server = start(pages.port(), &[]);
    let url = format!("http://app.localhost:{}/?server={}", pages.port(), server.ingest.port());
    let Some(_browser) = Chromium::open(&url) else { return };
    assert_eq!(pages.report(), json!([200, 200, 200, 200, 200]));
    let metrics = server.metrics();
    assert_eq!((metrics.sum("millrace_preflights_total"), metrics.requests(200)), (1, 5));
}

/// The page of `docs/clients.md`.
fn documented_page() -> String {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/clients.md");
    let document = std::fs::read_to_string(path).unwrap();
    let (_, block) = document.split_once("```html\n").expect("a page in the document");
    block.split_once("\n```").unwrap().0.to_owned()
}

#[test]
fn the_documented_page_sends_while_it_is_shown_and_when_it_is_left() {
    const VISITOR: &str = r"<script type=module>
track({ at: 'first' });
// Once the first is answered, the second is left for the end of the page.
const isSent = (entry) => entry.name.endsWith('/payloads') && entry.responseEnd > 0;
while (!performance.getEntriesByType('resource').some(isSent)) {
  await new Promise((resolve) => setTimeout(resolve, 10));
}
track({ at: 'last' });
location.href = '/next';
</script>";
    let documented = documented_page();
    for name in ["https://ingest.example.com/payloads", "'TOKEN'"] {
        assert!(documented.contains(name), "{documented}");
    }
    let next = "<script>report('left')</script>".to_owned();
    // The pages know the server's port only once it runs, and it must know theirs.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let pages_port = listener.local_addr().unwrap().port();
    let server = start(pages_port, &[]);
    let shown = documented
        .replace("https://ingest.example.com", &format!("http://{}", server.ingest))
        .replace("'TOKEN'", "'al/pha'");
    let pages = Pages::on(listener, &[("/", shown + VISITOR), ("/next", next)]);
    let Some(_browser) = Chromium::open(&format!("http://app.localhost:{pages_port}/")) else {
        return;
    };
    assert_eq!(pages.report(), json!("left"));
    wait_for("the beacon", || server.stored().len() == 2);
    assert_eq!(server.stored_texts(), [r#"{"at":"first"}"#, r#"{"at":"last"}"#]);
    let metrics = server.metrics();
    assert_eq!((metrics.sum("millrace_preflights_total"), metrics.requests(200)), (1, 2));
}
