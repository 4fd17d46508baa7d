// The page itself: asks, shows, and marks what is old. figures.js, which stands before it, computes.
// Nothing is ever parsed as HTML: names of tokens and peers are texts.

const PEERS_INTERVAL = 5000;
const PEERS_MAX = 10;
// No answer takes longer: /peers waits up to 2 s for the cores.
const ANSWER_MAX = 6000;
// Where the token is kept, in this tab and until it is closed.
const TOKEN = 'millrace-admin-token';

const $ = (id) => document.getElementById(id);

// An element with properties and children.
function make(name, properties = {}, ...children) {
  const element = Object.assign(document.createElement(name), properties);
  element.append(...children);
  return element;
}

// Sets a text only if it differs, so that screen readers do not read it again.
function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

const TILES = [
  { key: 'accepted', title: 'Accepted, payloads', unit: '/s', text: count, more: (f) => `${count(f.requests)} requests/s, ${bytes(f.acceptedBytes)}/s` },
  { key: 'stored', title: 'Stored, payloads', unit: '/s', text: count, more: (f) => `${count(f.puts)} PUTs/s, ${bytes(f.storedBytes)}/s` },
  { key: 'p50', title: 'Request latency p50', text: seconds, more: () => 'from head to answer' },
  { key: 'p99', title: 'Request latency p99', text: seconds, more: () => 'from head to answer' },
  { key: 'putP50', title: 'PUT latency p50', text: seconds, more: () => 'each attempt' },
  { key: 'putP99', title: 'PUT latency p99', text: seconds, more: () => 'each attempt' },
  { key: 'queueDepth', title: 'Queue, payloads', text: count, more: (f) => `${bytes(f.queueBytes)}; ${count(f.unfinished)} unfinished`, level: (f) => shareLevel(f.queueDepth, f.queueLimit) },
  { key: 'inFlight', title: 'Uploads in flight', text: count, more: (f) => `of ${count(f.inFlightLimit)} allowed now` },
  { key: 'retries', title: 'Retries', unit: '/s', text: count, more: (f) => `${count(f.retriesTotal)} since the start; ${count(f.awaitingRetry)} wait`, level: (f) => (f.retries > 0 ? 'warn' : '') },
  { key: 'oldest', title: 'Oldest unstored payload', text: seconds, optional: true, more: () => 'neither stored nor a dead letter' },
  { key: 'spoolBytes', title: 'Spool, not yet stored', text: bytes, more: (f) => `${count(f.spoolPayloads)} payloads${f.spoolFullIn === null ? '' : `; full in ${age(f.spoolFullIn * 1000)}`}`, level: (f) => (f.spoolFullIn === null ? '' : 'warn') },
  { key: 'deadLetteredTotal', title: 'Dead letters since the start', text: count, more: (f) => (f.deadLetters === null ? `${bytes(f.deadLetterBytes)} wait` : `${count(f.deadLetters)} wait, ${bytes(f.deadLetterBytes)}`), level: (f) => (f.deadLettered > 0 ? 'bad' : f.deadLetterBytes > 0 ? 'warn' : '') },
  { key: 'lostTotal', title: 'Lost since the start', text: count, more: (f) => `${count(f.lost)}/s`, level: (f) => (f.lostTotal > 0 ? 'bad' : '') },
  { key: 'unavailable', title: 'Answered 503', unit: '/s', text: count, more: (f) => `4xx: ${count(f.refused)}/s`, level: (f) => (f.unavailable > 0 ? 'bad' : '') },
  { key: 'connections', title: 'Connections', text: count, more: () => 'open now' },
];

const CHARTS = [
  { title: 'Payloads per second', text: count, lines: [['accepted', 'accepted'], ['stored', 'stored']] },
  { title: 'Bytes per second', text: bytes, least: 1024, lines: [['acceptedBytes', 'accepted'], ['storedBytes', 'stored']] },
  { title: 'Requests per second', text: count, lines: [['requests', 'all'], ['refused', '4xx'], ['unavailable', '503']] },
  { title: 'Request latency', text: seconds, least: 1e-3, lines: [['p50', 'p50'], ['p99', 'p99']] },
  { title: 'PUT latency', text: seconds, least: 1e-3, lines: [['putP50', 'p50'], ['putP99', 'p99']] },
  { title: 'Queue, payloads', text: count, lines: [['queueDepth', 'queued'], ['unfinished', 'unfinished']] },
  { title: 'Uploads', text: count, lines: [['inFlight', 'in flight'], ['inFlightLimit', 'allowed'], ['awaitingRetry', 'wait for retry']] },
  { title: 'Failures per second', text: count, lines: [['retries', 'retries'], ['deadLettered', 'dead letters'], ['lost', 'lost']] },
  { title: 'Spool', text: bytes, least: 1024, lines: [['spoolBytes', 'not yet stored'], ['spoolDiskBytes', 'files']] },
];

const CORE_COLUMNS = [
  ['accepted/s', 'accepted', count], ['stored/s', 'stored', count], ['p50', 'p50', seconds], ['p99', 'p99', seconds],
  ['queue', 'queueDepth', count], ['in flight', 'inFlight', count], ['retries/s', 'retries', count],
  ['dead letters', 'deadLetteredTotal', count], ['503/s', 'unavailable', count], ['spool', 'spoolBytes', bytes], ['connections', 'connections', count],
];

// Everything the page knows.
const page = {
  history: new History(),
  scrape: null, // the newest
  shown: new Map(), // its figures, by core
  before: null, // the one before, of the same process
  seconds: 0, // between them
  last: null, // when the newest came, by performance.now()
  date: null, // the server's clock then, …
  dateBefore: null, // … and at the one before
  between: 0,
  failure: '', // of the newest attempt
  interval: INTERVAL,
  paused: false,
  timer: null, // of the next scrape; null while one is asked for
  restarts: 0,
  coreAges: new Map(), // what /peers says: milliseconds since a core published
  settings: null,
  token: sessionStorage.getItem(TOKEN) ?? '',
};

// ---- asking ----

class Refused extends Error {
  constructor(status, text) {
    super(text);
    this.status = status;
  }
}

async function ask(path, { guarded = false, accept = 'text/plain;version=0.0.4', also = [] } = {}) {
  const headers = { accept };
  if (guarded && page.token) headers.authorization = `Bearer ${page.token}`;
  const options = { headers, cache: 'no-store', credentials: 'omit', redirect: 'error', referrerPolicy: 'no-referrer' };
  const answer = await fetch(path, { ...options, signal: AbortSignal.timeout(ANSWER_MAX) });
  const text = await answer.text();
  if (!answer.ok && !also.includes(answer.status)) throw new Refused(answer.status, text.trim());
  return { status: answer.status, text, date: Date.parse(answer.headers.get('date') ?? '') || null };
}

const reasonOf = (error) => {
  if (error instanceof Refused) return `${error.status}: ${error.message}`;
  if (error.name === 'TimeoutError') return `no answer within ${ANSWER_MAX / 1000} s`;
  return error instanceof TypeError ? 'the server cannot be reached' : error.message;
};

// Nothing is asked for a tab that nobody sees.
async function poll() {
  const asked = performance.now();
  page.timer = null;
  if (!page.paused && !document.hidden) {
    try {
      const [metrics, ready] = await Promise.all([ask('/metrics'), ask('/readyz', { also: [503] })]);
      take(parse(metrics.text), metrics.date, performance.now());
      showReady(ready);
      page.failure = '';
      page.interval = intervalAfter(performance.now() - asked);
    } catch (error) {
      page.failure = reasonOf(error);
      page.interval = INTERVAL;
    }
    refresh();
  }
  page.timer = setTimeout(poll, Math.max(200, page.interval - (performance.now() - asked)));
}

// Takes a scrape that came at `now`.
function take(scrape, date, now) {
  const at = Date.now() / 1000;
  const isNew = page.scrape && isRestart(page.scrape, scrape);
  if (isNew) {
    page.restarts += 1;
    page.settings = null;
    askSettings();
  }
  // Rates over a long pause would be drawn as if they were of its end.
  const isGap = page.last !== null && now - page.last > 3 * page.interval;
  if (isNew || isGap) page.history.push(at - 0.001, null);
  page.before = isNew ? null : page.scrape;
  page.between = page.last === null ? 0 : now - page.last;
  page.seconds = page.before ? page.between / 1000 : 0;
  [page.scrape, page.last, page.dateBefore, page.date] = [scrape, now, isNew ? null : page.date, date];
  const byCore = new Map([['', figuresOf(null)]]);
  for (const core of scrape.cores) byCore.set(core, figuresOf(core));
  page.shown = byCore;
  page.history.push(at, byCore);
}

function figuresOf(core) {
  return figures(page.before, page.scrape, page.seconds, core);
}

// ---- showing ----

const tiles = TILES.map((tile) => {
  const output = make('output');
  output.dataset.figure = tile.key;
  const more = make('p');
  const box = make('div', { className: 'tile' }, make('h3', { textContent: tile.title }), output, more);
  $('tiles').append(box);
  return { ...tile, output, more, box, moreOf: tile.more };
});

function showTiles(of) {
  for (const tile of tiles) {
    const value = of[tile.key] ?? null;
    tile.output.dataset.value = value ?? '';
    const unit = tile.unit && value !== null ? [make('small', { textContent: ` ${tile.unit}` })] : [];
    tile.output.replaceChildren(tile.text(value), ...unit);
    say(tile.more, tile.moreOf(of));
    tile.box.className = `tile ${tile.level?.(of) ?? ''}`;
    tile.box.hidden = Boolean(tile.optional) && value === null;
  }
}

const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
// Distances between round sizes.
const BINARY = [0, 1, 2, 3, 4, 5].flatMap((power) => [1, 2, 4, 8, 16, 32, 64, 128, 256, 512].map((step) => step * 1024 ** power));
const LINE_STYLES = [['--one', []], ['--two', [6, 3]], ['--three', [2, 3]]];

const charts = CHARTS.map((chart) => {
  const values = chart.lines.map(() => make('dd'));
  const legend = make('dl');
  chart.lines.forEach(([, label], at) => {
    legend.append(make('div', {}, make('span', { className: `swatch c${at}` }), make('dt', { textContent: label }), values[at]));
  });
  const canvas = make('div', { className: 'canvas' });
  canvas.setAttribute('role', 'img');
  const top = make('div', { className: 'top' }, make('h3', { textContent: chart.title }), legend);
  $('charts').append(make('div', { className: 'chart' }, top, canvas));
  return { ...chart, values, canvas, plot: null };
});

function plotOf(chart) {
  const axis = { stroke: style('--soft'), grid: { stroke: style('--grid'), width: 1 }, ticks: { stroke: style('--grid'), width: 1 }, font: '12px system-ui, sans-serif' };
  const clock = (at) => new Date(at * 1000).toLocaleTimeString([], { hour: '2-digit', minute: '2-digit', second: '2-digit', hour12: false });
  return new uPlot({
    width: Math.max(200, chart.canvas.clientWidth),
    height: 150,
    legend: { show: false },
    cursor: { y: false, drag: { x: false, y: false }, points: { size: 6 } },
    // A line needs some width from its second point on; of one point uPlot knows no range.
    scales: { x: { time: true, range: (_, min, max) => [Math.min(min ?? Infinity, (max ?? Date.now() / 1000) - 20), max ?? Date.now() / 1000] }, y: { range: (_, min, max) => [0, max > 0 ? max * 1.08 : (chart.least ?? 1)] } },
    axes: [
      { ...axis, size: 26, space: 80, values: (_, at) => at.map(clock) },
      { ...axis, size: 70, space: 34, ...(chart.text === bytes ? { incrs: BINARY } : {}), values: (_, at) => at.map((value) => chart.text(value)) },
    ],
    series: [{}, ...chart.lines.map(([, label], at) => {
      const [colour, dash] = LINE_STYLES[at];
      return { label, stroke: style(colour), dash, width: 2, points: { show: false }, spanGaps: false };
    })],
    hooks: { setCursor: [(plot) => showLegend(chart, plot.cursor.idx)] },
  }, chart.data, chart.canvas);
}

// The values under the pointer, or the newest.
function showLegend(chart, at) {
  const last = chart.data[0].length - 1;
  chart.values.forEach((element, line) => say(element, chart.text(chart.data[line + 1][at ?? last] ?? null)));
}

function showCharts() {
  const core = $('core').value;
  const newest = page.history.rows.at(-1)?.at ?? 0;
  const span = Number($('span').value);
  for (const chart of charts) {
    chart.data = page.history.columns(core, chart.lines.map(([key]) => key), newest - span);
    if (chart.plot) chart.plot.setData(chart.data);
    else chart.plot = plotOf(chart);
    showLegend(chart, chart.plot.cursor.idx);
    const last = chart.lines.map(([, label], line) => `${label} ${chart.text(chart.data[line + 1].at(-1) ?? null)}`);
    chart.canvas.setAttribute('aria-label', `${chart.title}: ${last.join(', ')}`);
  }
}

function redrawCharts() {
  for (const chart of charts) {
    chart.plot?.destroy();
    chart.plot = null;
  }
  if (page.scrape) showCharts();
}

// Fills a table: `columns` are [title, is text?]; cells are texts or elements, the first one heads its row.
function fill(table, columns, rows) {
  const head = make('tr', {}, ...columns.map(([title, isText]) => make('th', { scope: 'col', textContent: title, className: isText ? 'text' : '' })));
  const body = rows.map((cells) => make('tr', {}, ...cells.map((cell, at) => {
    const element = at === 0 ? make('th', { scope: 'row' }) : make('td', { className: columns[at][1] ? 'text' : '' });
    element.append(cell);
    if (cell.className === 'wrap') element.classList.add('wrap');
    return element;
  })));
  table.replaceChildren(make('thead', {}, head), make('tbody', {}, ...body));
}

function showCores() {
  const stuck = (core) => ((page.coreAges.get(core) ?? 0) > 3000 ? ` (has not answered for ${age(page.coreAges.get(core))})` : '');
  const died = (core) => (sum(page.scrape, 'core_deaths_total', core) > 0 ? ' (has died)' : '');
  const row = (name, of) => [name, ...CORE_COLUMNS.map(([, key, text]) => text(of[key]))];
  const rows = page.scrape.cores.map((core) => row(`core ${core}${died(core) || stuck(core)}`, page.shown.get(core)));
  fill($('cores'), [['', true], ...CORE_COLUMNS.map(([title]) => [title, false])], [...rows, row('all', page.shown.get(''))]);
  const select = $('core');
  const shown = page.scrape.cores.slice(0, HISTORY_CORES_MAX);
  if (select.options.length !== shown.length + 1) {
    const chosen = select.value;
    select.replaceChildren(make('option', { value: '', textContent: 'all' }), ...shown.map((core) => make('option', { value: core, textContent: core })));
    select.value = shown.includes(chosen) ? chosen : '';
  }
}

function showLimits() {
  const text = (name) => (/bytes/.test(name) ? bytes : count);
  const rows = fullness(page.scrape).map(({ name, help, limitHelp, value, limit, share, core, level }) => {
    const what = make('span', { className: 'what' }, help || name.replaceAll('_', ' '), make('small', { textContent: limitHelp ? ` · ${limitHelp}` : '' }));
    const much = make('span', { className: 'much', textContent: `${text(name)(value)} of ${text(name)(limit)} (${percent(share)}${core === '' ? '' : `, core ${core}`})` });
    const bar = make('progress', { max: 1, value: Math.min(1, share) });
    bar.setAttribute('aria-label', help || name);
    const row = make('div', { className: `limit ${level}` }, what, much, bar);
    row.dataset.limit = name;
    row.dataset.share = share;
    return row;
  });
  $('limits').replaceChildren(...rows);
}

function showResponses() {
  const rows = responses(page.before, page.scrape, page.seconds).map((of) => [`${of.status} ${of.reason}`.trim(), count(of.rate), count(of.total)]);
  fill($('responses'), [['status', true], ['/s', false], ['since the start', false]], rows);
}

function showReady({ status, text }) {
  const [first, ...rest] = text.trim().split('\n');
  const isReady = status === 200;
  const badge = $('ready');
  badge.className = `badge ${isReady ? 'good' : 'bad'}`;
  say(badge, isReady ? 'Ready' : 'Not ready');
  const lines = isReady ? rest : [first, ...rest];
  const reasons = $('reasons');
  reasons.hidden = lines.length === 0;
  reasons.className = `notice ${isReady ? 'warn' : 'bad'}`;
  if (reasons.dataset.text === text) return;
  reasons.dataset.text = text;
  const title = isReady ? 'Ready, and yet:' : 'Not ready, because:';
  reasons.replaceChildren(make('strong', { textContent: title }), make('ul', {}, ...lines.map((line) => make('li', { textContent: line }))));
}

// Marks old figures. Runs whether or not there are answers.
function showFreshness() {
  const { last, interval, date, dateBefore, between } = page;
  const failed = page.failure !== '';
  const fresh = freshness({ now: performance.now(), failed, last, interval, date, dateBefore, between });
  const badge = $('fresh');
  const old = age(fresh.age ?? 0);
  const [kind, text] = page.paused
    ? ['warn', `Paused, ${old} old`]
    : { none: [page.failure ? 'bad' : 'none', page.failure ? 'No answer' : 'Waiting'], live: ['good', 'Live'], late: ['warn', `Late, ${old} old`], stale: ['bad', `Stale, ${old} old`] }[fresh.state];
  badge.className = `badge ${kind}`;
  badge.dataset.state = page.paused ? 'paused' : fresh.state;
  say(badge, text);
  const isStale = fresh.state === 'stale' || page.paused;
  document.body.classList.toggle('stale', isStale);
  if (fresh.state === 'stale' && !fresh.isFrozen) {
    $('ready').className = 'badge none';
    say($('ready'), 'Readiness unknown');
  }
  const trouble = $('trouble');
  const since = page.last === null ? 'There are no figures yet' : 'The figures below are the last ones';
  const why = fresh.isFrozen ? 'The answers of /metrics do not get newer: something between here and the server repeats old ones.'
    : page.failure && !page.paused && fresh.state !== 'live' ? `/metrics: ${page.failure}. ${since}; asked again every ${Math.round(page.interval / 1000)} s.` : '';
  trouble.hidden = why === '';
  say(trouble, why);
  const title = { live: $('ready').textContent, late: 'late', stale: 'STALE', none: 'no answer' }[fresh.state];
  const unseen = document.hidden ? 'not looked at' : title;
  document.title = `${page.paused ? 'paused' : unseen} · millrace ${location.host}`;
}

function refresh() {
  showFreshness();
  if (!page.scrape) return;
  const core = $('core').value;
  showTiles(page.shown.get(core) ?? page.shown.get(''));
  showCharts();
  showCores();
  showLimits();
  showResponses();
}

// ---- what asks for the token ----

function showToken(denied) {
  const form = $('token');
  const isSent = page.token !== '';
  form.hidden = !denied && !isSent;
  form.classList.toggle('warn', Boolean(denied));
  const text = {
    401: isSent ? 'The server does not accept this token: peers and settings are not shown.' : 'Peers and settings are shown to holders of ADMIN_TOKEN only, and this page has no token.',
    403: 'Peers and settings are not shown here:',
  }[denied?.status];
  say($('token-text'), denied ? `${text} ${denied.status === 403 ? denied.message : ''}`.trim() : 'The token is in use. It is kept in this tab only, until the tab is closed.');
  $('token-forget').hidden = !isSent;
  const isLocal = /^(localhost|127\..*|\[::1\])$/.test(location.hostname);
  const isClear = location.protocol === 'http:' && !isLocal;
  say($('token-hint'), isClear ? 'This page came over plain HTTP: the token is sent in the clear.' : '');
}

let denied = null;

async function guarded(path, take, note) {
  try {
    take(JSON.parse((await ask(path, { guarded: true, accept: 'application/json' })).text));
    denied = null;
    showToken(null);
    return true;
  } catch (error) {
    const isDenied = error instanceof Refused && [401, 403].includes(error.status);
    if (isDenied) denied = error;
    if (isDenied) showToken(denied);
    say(note, isDenied ? 'Not shown without the token.' : `Not shown: ${reasonOf(error)}`);
    return false;
  }
}

function takePeers({ known, cores, peers }) {
  page.coreAges = new Map(cores.map(({ core, age_ms: ms }) => [String(core), ms]));
  const behind = cores.filter(({ age_ms: ms }) => ms === null || ms > 3000);
  const late = behind.map(({ core, age_ms: ms }) => (ms === null ? `core ${core} has not answered` : `core ${core}: ${age(ms)} old`));
  const rows = peers.map((peer) => [
    peer.peer, count(peer.requests), count(peer.payloads), bytes(peer.bytes), count(peer.refusals), count(peer.connections),
    peer.last_seen_ms_ago === null ? '–' : age(peer.last_seen_ms_ago),
    Object.entries(peer.refused_for).map(([kind, times]) => `${kind} ${count(times)}`).join(', ') || '–', peer.tokens.join(', ') || '–',
  ]);
  fill($('peers'), [['peer', true], ['requests'], ['payloads'], ['bytes'], ['refusals'], ['connections'], ['last seen'], ['refused for', true], ['tokens', true]], rows);
  const shown = known === 0 ? 'Nobody has sent anything yet.' : `The busiest ${peers.length} of ${known} since the start, by ${$('by').value}.`;
  say($('peers-text'), [shown, ...late].join(' '));
}

async function pollPeers() {
  if (!page.paused && !document.hidden && page.failure === '') {
    await askPeers();
    if (!page.settings && !denied) await askSettings();
  }
  setTimeout(pollPeers, PEERS_INTERVAL);
}

async function askPeers() {
  const query = new URLSearchParams({ by: $('by').value, limit: PEERS_MAX });
  if (!(await guarded(`/peers?${query}`, takePeers, $('peers-text')))) $('peers').replaceChildren();
}

async function askSettings() {
  if (!(await guarded('/settings', (answer) => { page.settings = answer; }, $('settings-text')))) page.settings = null;
  showSettings();
}

function showSettings() {
  if (!page.settings) return $('settings').replaceChildren();
  const { version, node, settings } = page.settings;
  say($('who'), `${version} · ${location.host} · node ${node}`);
  const isShown = (of) => !$('changed').checked || of.source !== 'default';
  const rows = settings.filter(isShown).map(({ name, value, source }) => [
    name, value === null ? make('span', { className: 'hidden', textContent: 'not shown' }) : make('span', { className: 'wrap', textContent: value || '(empty)' }), source,
  ]);
  fill($('settings'), [['setting', true], ['value', true], ['from', true]], rows);
  say($('settings-text'), `${rows.length} of ${settings.length} settings, as they are in effect.`);
}

// ---- the operator ----

$('pause').addEventListener('click', () => {
  page.paused = !page.paused;
  $('pause').setAttribute('aria-pressed', String(page.paused));
  say($('pause'), page.paused ? 'Go on' : 'Pause');
  showFreshness();
});
for (const id of ['core', 'span']) $(id).addEventListener('change', refresh);
$('by').addEventListener('change', askPeers);
$('changed').addEventListener('change', showSettings);
$('token').addEventListener('submit', (event) => {
  event.preventDefault();
  const given = $('token-input').value.trim();
  if (!given) return;
  page.token = given;
  sessionStorage.setItem(TOKEN, given);
  $('token-input').value = '';
  askSettings();
  askPeers();
});
$('token-forget').addEventListener('click', () => {
  page.token = '';
  sessionStorage.removeItem(TOKEN);
  page.settings = null;
  askSettings();
  askPeers();
  $('token-input').focus();
});
new ResizeObserver(() => {
  for (const { plot, canvas } of charts) plot?.setSize({ width: Math.max(200, canvas.clientWidth), height: 150 });
}).observe($('charts'));
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', redrawCharts);

say($('who'), location.host);
document.addEventListener('visibilitychange', () => {
  if (document.hidden || page.timer === null) return;
  clearTimeout(page.timer);
  poll();
});
setInterval(showFreshness, 500);
poll();
askSettings();
pollPeers();
