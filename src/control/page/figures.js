// From the texts of /metrics to the figures that the page shows. Nothing here touches the document:
// tests/page/figures.test.mjs runs this file under Node.js.

// Samples that are kept; at one every 2 s that is half an hour.
const HISTORY_MAX = 900;
// Cores with a history of their own. Further ones are in the sums and in the table.
const HISTORY_CORES_MAX = 64;

const LABEL = /([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"(?:,|(?=\}))/y;
const unescaped = (text) =>
  text.includes('\\') ? text.replace(/\\(.)/g, (_, c) => (c === 'n' ? '\n' : c)) : text;

function number(text) {
  if (text === '+Inf') return Infinity;
  if (text === '-Inf') return -Infinity;
  const value = text === '' ? NaN : Number(text);
  if (Number.isNaN(value) && text !== 'NaN') throw new Error(`no number: ${text}`);
  return value;
}

// The samples of one line: { name, labels, value }.
function sampleOf(line) {
  const open = line.indexOf('{');
  let end = open < 0 ? line.indexOf(' ') : open;
  if (end < 1) throw new Error(`no sample: ${line}`);
  const name = line.slice(0, end);
  const labels = {};
  if (open >= 0) {
    LABEL.lastIndex = open + 1;
    end = open + 1;
    for (let label = LABEL.exec(line); label; label = LABEL.exec(line)) {
      labels[label[1]] = unescaped(label[2]);
      end = LABEL.lastIndex;
    }
    if (line[end] !== '}') throw new Error(`no labels: ${line}`);
    end += 1;
  }
  // A timestamp may follow.
  return { name, labels, value: number(line.slice(end).trim().split(' ')[0]) };
}

// A scrape in the classic text format: samples by name and core ('' without one), and what HELP says.
// Throws if it cannot be read or is not of a millrace.
function parse(text) {
  const series = new Map();
  const help = new Map();
  for (const line of text.split('\n')) {
    if (line.startsWith('# HELP ')) {
      const end = line.indexOf(' ', 7);
      help.set(line.slice(7, end), line.slice(end + 1));
    }
    if (line === '' || line[0] === '#') continue;
    const sample = sampleOf(line);
    const core = sample.labels.core ?? '';
    if (!series.has(sample.name)) series.set(sample.name, new Map());
    const byCore = series.get(sample.name);
    if (!byCore.has(core)) byCore.set(core, []);
    byCore.get(core).push(sample);
  }
  const cores = [...(series.get('millrace_connections')?.keys() ?? [])];
  if (cores.length === 0) throw new Error('the answer of /metrics is not that of a millrace');
  return { series, help, cores };
}

// The samples of `name`, of one core or, if `core` is null, of all.
function samples(scrape, name, core) {
  const byCore = scrape.series.get(`millrace_${name}`) ?? scrape.series.get(name);
  if (!byCore) return [];
  return core === null ? [...byCore.values()].flat() : (byCore.get(core) ?? []);
}

// The sum over the samples of `name` that `keep` accepts; null if there is none.
function sum(scrape, name, core = null, keep = () => true) {
  const kept = samples(scrape, name, core).filter((sample) => keep(sample.labels));
  return kept.length === 0 ? null : kept.reduce((all, sample) => all + sample.value, 0);
}

// The greatest or least of them, by `pick`; null if there is none.
function extreme(scrape, name, core, pick) {
  const found = samples(scrape, name, core);
  return found.length === 0 ? null : pick(...found.map((sample) => sample.value));
}

// Whether the process behind `after` is another one than that behind `before`: its counters start
// anew. A counter that has shrunk tells it where the start times are missing.
function isRestart(before, after) {
  const started = (scrape) => sum(scrape, 'process_start_time_seconds');
  if (started(before) !== null && started(after) !== null) return started(before) !== started(after);
  for (const [name, byCore] of after.series) {
    if (!/_(total|bucket|count)$/.test(name)) continue;
    for (const [core, now] of byCore) {
      const then = before.series.get(name)?.get(core);
      if (!then) continue;
      const all = (of) => of.reduce((sum, sample) => sum + sample.value, 0);
      if (all(now) < all(then)) return true;
    }
  }
  return false;
}

// Observations per upper bound between two scrapes: [[bound in seconds, count], …], ascending, each
// count that of its own bucket.
function observed(before, after, name, core) {
  const cumulated = new Map();
  const add = (scrape, sign) => {
    for (const sample of samples(scrape, `${name}_bucket`, core)) {
      const bound = number(sample.labels.le);
      cumulated.set(bound, (cumulated.get(bound) ?? 0) + sign * sample.value);
    }
  };
  add(after, 1);
  if (before) add(before, -1);
  let less = 0;
  return [...cumulated].sort(([a], [b]) => a - b).map(([bound, count]) => {
    const own = count - less;
    less = count;
    return [bound, own];
  });
}

// The quantile `q` of such buckets, in seconds, by a straight line within its bucket, as
// PromQL's histogram_quantile does. null without observations. Beyond the last finite bound it is
// that bound.
function quantile(buckets, q) {
  const all = buckets.reduce((sum, [, count]) => sum + count, 0);
  if (!(all > 0)) return null;
  let [seen, least] = [0, 0];
  for (const [bound, count] of buckets) {
    if (count > 0 && seen + count >= q * all) {
      return bound === Infinity ? least : least + (bound - least) * ((q * all - seen) / count);
    }
    seen += count;
    if (bound !== Infinity) least = bound;
  }
  return least;
}

const STATUS_REFUSED = (labels) => /^4/.test(labels.status);
const STATUS_UNAVAILABLE = (labels) => labels.status === '503';

// Counters whose growth per second is shown.
const RATES = {
  accepted: ['payloads_accepted_total'],
  acceptedBytes: ['bytes_accepted_total'],
  stored: ['payloads_stored_total'],
  storedBytes: ['bytes_stored_total'],
  puts: ['put_latency_seconds_count'],
  requests: ['requests_total'],
  refused: ['requests_total', STATUS_REFUSED],
  unavailable: ['requests_total', STATUS_UNAVAILABLE],
  retries: ['put_retries_total'],
  deadLettered: ['payloads_dead_lettered_total'],
  lost: ['payloads_lost_total'],
};
// Histograms whose quantiles are shown.
const QUANTILES = {
  p50: ['request_latency_seconds', 0.5],
  p99: ['request_latency_seconds', 0.99],
  putP50: ['put_latency_seconds', 0.5],
  putP99: ['put_latency_seconds', 0.99],
};
// Gauges and totals that are shown as they are.
const VALUES = {
  queueDepth: 'queue_depth',
  queueLimit: 'queue_depth_limit',
  queueBytes: 'queue_bytes',
  unfinished: 'payloads_unfinished',
  inFlight: 'puts_in_flight',
  inFlightLimit: 'puts_limit',
  awaitingRetry: 'puts_awaiting_retry',
  spoolPayloads: 'spool_payloads',
  spoolBytes: 'spool_bytes',
  spoolDiskBytes: 'spool_disk_bytes',
  connections: 'connections',
  acceptedTotal: 'payloads_accepted_total',
  storedTotal: 'payloads_stored_total',
  requestsTotal: 'requests_total',
  retriesTotal: 'put_retries_total',
  deadLetteredTotal: 'payloads_dead_lettered_total',
  lostTotal: 'payloads_lost_total',
};
// Gauges of which not the sum over the cores is shown, but the worst.
const WORST = {
  oldest: ['oldest_unstored_payload_age_seconds', Math.max],
  spoolFullIn: ['spool_time_to_full_seconds', Math.min],
};
// Figures of the process, shown for every core.
const OF_PROCESS = {
  deadLetters: 'dead_letters',
  deadLetterBytes: 'dead_letter_directory_bytes',
};
const KEYS = [RATES, QUANTILES, VALUES, WORST, OF_PROCESS].flatMap(Object.keys);

// All figures of one core, or of all (`core` is null). Rates and quantiles are of the time between
// the scrapes; null without an earlier one. `seconds` lie between them.
function figures(before, after, seconds, core = null) {
  const found = {};
  for (const [key, [name, keep]] of Object.entries(RATES)) {
    const now = sum(after, name, core, keep);
    const then = before && sum(before, name, core, keep);
    const grown = now === null || then === null ? null : now - then;
    found[key] = grown === null || grown < 0 || !(seconds > 0) ? null : grown / seconds;
  }
  for (const [key, [name, q]] of Object.entries(QUANTILES)) {
    found[key] = before ? quantile(observed(before, after, name, core), q) : null;
  }
  for (const [key, name] of Object.entries(VALUES)) found[key] = sum(after, name, core);
  for (const [key, [name, pick]] of Object.entries(WORST)) found[key] = extreme(after, name, core, pick);
  for (const [key, name] of Object.entries(OF_PROCESS)) found[key] = sum(after, name);
  return found;
}

// What a limit is of, where it is not called as the limit without its end.
const LIMITED = { puts: 'puts_in_flight', spool_disk_bytes: 'spool_filled_bytes', process_max_fds: 'process_open_fds' };
// Limits that may well be reached.
const MAY_BE_FULL = ['puts_in_flight', 'workers_busy'];

// What is limited, fullest first: { name, help, limitHelp, value, limit, share, core, level }, of the
// core that is fullest. Limits of 0 are of things that are off.
function fullness(scrape) {
  const rows = [];
  for (const name of scrape.series.keys()) {
    const base = name === 'process_max_fds' ? name : name.match(/^millrace_(.+)_limit$/)?.[1];
    if (!base) continue;
    const used = samples(scrape, LIMITED[base] ?? base, null).length > 0 ? (LIMITED[base] ?? base) : base;
    let fullest = null;
    for (const core of scrape.series.get(name).keys()) {
      const [value, limit] = [sum(scrape, used, core), sum(scrape, name, core)];
      if (value === null || !(limit > 0)) continue;
      const share = value / limit;
      if (!fullest || share > fullest.share) fullest = { value, limit, share, core };
    }
    if (!fullest) continue;
    const [help, limitHelp] = [used, name].map((of) => scrape.help.get(`millrace_${of}`) ?? scrape.help.get(of) ?? '');
    const level = MAY_BE_FULL.includes(used) ? '' : shareLevel(fullest.value, fullest.limit);
    rows.push({ name: used, help, limitHelp, ...fullest, level });
  }
  for (const { labels, value: limit } of samples(scrape, 'disk_size_bytes', null)) {
    const { directory } = labels;
    const free = sum(scrape, 'disk_free_bytes', null, (of) => of.directory === directory);
    if (free === null || !(limit > 0)) continue;
    const value = limit - free;
    rows.push({ name: 'disk_bytes', help: `Disk of ${directory}`, limitHelp: '', value, limit, share: value / limit, core: '', level: shareLevel(value, limit) });
  }
  return rows.sort((a, b) => b.share - a.share || a.name.localeCompare(b.name));
}

// How alarming it is that so much of a limit is used.
function shareLevel(value, limit) {
  if (!(limit > 0)) return '';
  return value / limit >= 0.95 ? 'bad' : value / limit >= 0.75 ? 'warn' : '';
}

// Responses by status and reason: { status, reason, total, rate }, most frequent first.
function responses(before, after, seconds) {
  const kinds = new Map();
  for (const { labels, value } of samples(after, 'requests_total', null)) {
    const kind = `${labels.status} ${labels.reason ?? ''}`.trim();
    const of = kinds.get(kind) ?? { status: labels.status, reason: labels.reason ?? '', total: 0 };
    of.total += value;
    kinds.set(kind, of);
  }
  const rows = [...kinds.values()].filter((of) => of.total > 0);
  for (const of of rows) {
    const keep = (labels) => labels.status === of.status && (labels.reason ?? '') === of.reason;
    const then = before && sum(before, 'requests_total', null, keep);
    of.rate = then === null || !(seconds > 0) ? null : (of.total - then) / seconds;
  }
  return rows.sort((a, b) => b.total - a.total);
}

// The figures of the last HISTORY_MAX scrapes.
class History {
  constructor(capacity = HISTORY_MAX, coresMax = HISTORY_CORES_MAX) {
    Object.assign(this, { capacity, coresMax, rows: [] });
  }

  // `at` is in seconds since 1970. `byCore` maps '' (all cores) and cores to figures; null is a gap:
  // no line is drawn over it.
  push(at, byCore) {
    const row = { at, of: new Map() };
    for (const [core, of] of byCore ?? []) {
      if (row.of.size > this.coresMax) break;
      row.of.set(core, Float64Array.from(KEYS, (key) => of[key] ?? NaN));
    }
    this.rows.push(row);
    if (this.rows.length > this.capacity) this.rows.shift();
  }

  // Columns for a chart: [times, values of keys[0], …], from `since` on.
  columns(core, keys, since = -Infinity) {
    const rows = this.rows.filter((row) => row.at >= since);
    const column = (key) => {
      const at = KEYS.indexOf(key);
      return rows.map((row) => {
        const value = row.of.get(core)?.[at];
        return value === undefined || Number.isNaN(value) ? null : value;
      });
    };
    return [rows.map((row) => row.at), ...keys.map(column)];
  }
}

// A scrape is asked for this often, in milliseconds, but never for more than a tenth of the time ...
const INTERVAL = 2000;
// ... unless that takes longer than this: one slow answer must not leave old figures for minutes.
const INTERVAL_MAX = 6000;

// When to ask next, after an answer that took so long.
const intervalAfter = (took) => Math.min(INTERVAL_MAX, Math.max(INTERVAL, 10 * took));

// How far the figures can be trusted. All times in milliseconds; `date` is the server's own, as the
// answers' headers have it, `dateBefore` that of the answer before, `between` the time from one to the other.
//   'none': there are none yet; 'live'; 'late': the newest answer is overdue; 'stale': do not act on them.
function freshness({ now, last, interval, failed, date, dateBefore, between }) {
  if (last === null) return { state: 'none', age: null };
  const age = now - last;
  if (age > Math.max(3 * INTERVAL, 1.5 * interval)) return { state: 'stale', age };
  // A header has whole seconds.
  const isFrozen = date !== null && dateBefore !== null && between > 1500 && date <= dateBefore;
  if (isFrozen) return { state: 'stale', age, isFrozen };
  return { state: failed || age > Math.max(2 * INTERVAL, 1.25 * interval) ? 'late' : 'live', age };
}

// ---- texts ----

// No line breaks between a number and its unit.
const SPACE = '\u00a0';

const digits = (value) => (value >= 100 ? 0 : value >= 10 ? 1 : 2);
const trimmed = (text) => (text.includes('.') ? text.replace(/\.?0+$/, '') : text);

// Three digits that count and a letter: 12.3k. Whole numbers below 10,000 are exact.
function count(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return '–';
  if (Number.isInteger(value) && Math.abs(value) < 10000) return String(value);
  let [scaled, unit] = [value, 0];
  while (Math.abs(scaled) >= 999.5 && unit < 4) [scaled, unit] = [scaled / 1000, unit + 1];
  return trimmed(scaled.toFixed(digits(Math.abs(scaled)))) + ['', 'k', 'M', 'G', 'T'][unit];
}

function bytes(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return '–';
  let [scaled, unit] = [value, 0];
  while (Math.abs(scaled) >= 1023.5 && unit < 5) [scaled, unit] = [scaled / 1024, unit + 1];
  const text = unit === 0 ? String(Math.round(scaled)) : trimmed(scaled.toFixed(digits(Math.abs(scaled))));
  return `${text}${SPACE}${['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB'][unit]}`;
}

function seconds(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return '–';
  if (value === 0) return `0${SPACE}s`;
  const [scaled, unit] = value < 0.9995e-3 ? [value * 1e6, 'µs'] : value < 0.9995 ? [value * 1e3, 'ms'] : [value, 's'];
  return `${trimmed(scaled.toFixed(digits(scaled)))}${SPACE}${unit}`;
}

// A time that has passed, in milliseconds: 8 s, 3 min 20 s, 2 h 5 min.
function age(value) {
  const all = Math.max(0, Math.round(value / 1000));
  const [h, min, s] = [Math.floor(all / 3600), Math.floor(all / 60) % 60, all % 60];
  const text = (of, unit) => `${of}${SPACE}${unit}`;
  const pair = (a, b, least) => (least === 0 ? a : `${a}${SPACE}${b}`);
  if (h > 0) return pair(text(h, 'h'), text(min, 'min'), min);
  return min > 0 ? pair(text(min, 'min'), text(s, 's'), s) : text(s, 's');
}

const percent = (share) => (share > 0 && share < 0.01 ? `<${SPACE}1${SPACE}%` : `${Math.round(share * 100)}${SPACE}%`);
