// The figures of the admin page, without a browser: `node --test tests/page/`.

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import test from 'node:test';

const source = readFileSync(new URL('../../src/control/page/figures.js', import.meta.url), 'utf8');
const names = [
  'parse', 'sum', 'isRestart', 'observed', 'quantile', 'figures', 'fullness', 'responses', 'History',
  'intervalAfter', 'freshness', 'count', 'bytes', 'seconds', 'age', 'percent',
];
const F = new Function(`'use strict';${source}; return { ${names.join(', ')} };`)();

// A scrape of two cores; `of` maps names to the values of both.
function scrape(of = {}) {
  const all = { connections: [1, 2], payloads_accepted_total: [0, 0], ...of };
  return F.parse(Object.entries(all).map(([name, values]) =>
    values.map((value, core) => `millrace_${name}{core="${core}"} ${value}\n`).join('')).join(''));
}

const buckets = (counts) => counts.map(([le, count]) =>
  `millrace_request_latency_seconds_bucket{le="${le}",core="0"} ${count}\n`).join('');

test('lines of the classic format are read', () => {
  const read = F.parse([
    '# HELP millrace_connections Open connections',
    '# TYPE millrace_connections gauge',
    'millrace_connections{core="0"} 3',
    'millrace_connections{core="5"} 1e3',
    'millrace_requests_total{core="0",status="503",reason="queue_full"} 2',
    'millrace_token_requests_total{token="a \\"b\\", {c}\\\\ \\n",status="200"} 7 1700000000000',
    'millrace_dead_letter_directory_bytes 9',
    'millrace_odd NaN',
    '',
  ].join('\n'));
  assert.deepEqual(read.cores, ['0', '5']);
  assert.equal(F.sum(read, 'connections'), 1003);
  assert.equal(F.sum(read, 'connections', '5'), 1000);
  assert.equal(F.sum(read, 'dead_letter_directory_bytes'), 9);
  assert.equal(F.sum(read, 'no_such'), null);
  assert.equal(read.help.get('millrace_connections'), 'Open connections');
  const [token] = read.series.get('millrace_token_requests_total').get('');
  assert.deepEqual([token.labels.token, token.value], ['a "b", {c}\\ \n', 7]);
});

test('what is no scrape of a millrace is refused', () => {
  for (const text of ['', 'up 1\n', '<!doctype html>', 'millrace_connections{core="0"} x\n',
    'millrace_connections{core="0} 1\n', 'millrace_connections{core="0"}\n', '{"error":1}']) {
    assert.throws(() => F.parse(text), text);
  }
});

test('rates are of the time between two scrapes', () => {
  const before = scrape({ payloads_accepted_total: [100, 10], put_retries_total: [0, 0] });
  const after = scrape({ payloads_accepted_total: [300, 20], put_retries_total: [0, 1] });
  const all = F.figures(before, after, 2);
  assert.deepEqual([all.accepted, all.retries, all.acceptedTotal, all.connections], [105, 0.5, 320, 3]);
  const one = F.figures(before, after, 2, '0');
  assert.deepEqual([one.accepted, one.retries], [100, 0]);
  // Neither without an earlier scrape, nor of what is not there, nor in no time.
  assert.equal(F.figures(null, after, 2).accepted, null);
  assert.equal(all.stored, null);
  assert.equal(F.figures(before, after, 0).accepted, null);
});

test('a restart is no negative rate', () => {
  const before = scrape({ payloads_accepted_total: [100, 10], spool_syncs_total: [5, 5] });
  for (const [after, is] of [
    [scrape({ payloads_accepted_total: [100, 10], spool_syncs_total: [5, 5] }), false],
    [scrape({ payloads_accepted_total: [101, 10], spool_syncs_total: [5, 6] }), false],
    [scrape({ payloads_accepted_total: [0, 0], spool_syncs_total: [0, 0] }), true],
    // One core's counter tells it, even where the sum has grown.
    [scrape({ payloads_accepted_total: [500, 9], spool_syncs_total: [9, 9] }), true],
    [scrape({ payloads_accepted_total: [500, 90], spool_syncs_total: [9, 0] }), true],
    // Gauges may shrink.
    [scrape({ payloads_accepted_total: [100, 10], connections: [0, 0] }), false],
  ]) {
    assert.equal(F.isRestart(before, after), is, JSON.stringify([...after.series.keys()]));
  }
  assert.equal(F.figures(before, scrape(), 2).accepted, null);
  const started = (at, accepted) => F.parse(`millrace_connections{core="0"} 1\n` +
    `process_start_time_seconds ${at}\nmillrace_payloads_accepted_total{core="0"} ${accepted}\n`);
  assert.equal(F.isRestart(started(1, 5), started(2, 50)), true);
  assert.equal(F.isRestart(started(1, 5), started(1, 50)), false);
});

test('quantiles lie within the bucket that holds them', () => {
  const base = 'millrace_connections{core="0"} 1\n';
  const before = F.parse(base + buckets([[0.001, 10], [0.002, 10], [0.005, 10], ['+Inf', 10]]));
  const after = F.parse(base + buckets([[0.001, 10], [0.002, 60], [0.005, 110], ['+Inf', 110]]));
  const seen = F.observed(before, after, 'request_latency_seconds', null);
  assert.deepEqual(seen, [[0.001, 0], [0.002, 50], [0.005, 50], [Infinity, 0]]);
  assert.equal(F.quantile(seen, 0.5), 0.002);
  assert.ok(Math.abs(F.quantile(seen, 0.99) - 0.00494) < 1e-9);
  assert.ok(Math.abs(F.quantile(seen, 0.25) - 0.0015) < 1e-9);
  assert.equal(F.figures(before, after, 1).p50, 0.002);
  assert.equal(F.quantile([[0.001, 0], [Infinity, 0]], 0.5), null);
  assert.equal(F.quantile([[0.001, 0], [0.002, 0], [Infinity, 3]], 0.5), 0.002);
  assert.equal(F.quantile([[0.001, 4], [Infinity, 0]], 1), 0.001);
  assert.equal(F.quantile([], 0.5), null);
});

test('the fullest core of each limit is shown, fullest limit first', () => {
  const rows = F.fullness(scrape({
    queue_depth: [10, 90], queue_depth_limit: [100, 100], connections_limit: [1000, 1000],
    puts_in_flight: [1, 1], puts_limit: [2, 4], batch_bytes: [0, 0], batch_bytes_limit: [0, 0],
    lonely_limit: [1, 1], spool_disk_bytes: [9, 9], spool_filled_bytes: [1, 2], spool_disk_bytes_limit: [8, 8],
  }));
  assert.deepEqual(rows.map(({ name, core, share }) => [name, core, share]), [
    ['queue_depth', '1', 0.9], ['puts_in_flight', '0', 0.5], ['spool_filled_bytes', '1', 0.25], ['connections', '1', 0.002],
  ]);
  assert.deepEqual(rows.map(({ level }) => level), ['warn', '', '', '']);
  const [disk] = F.fullness(F.parse('millrace_connections{core="0"} 1\nmillrace_disk_size_bytes{directory="/a b"} 100\n' +
    'millrace_disk_free_bytes{directory="/a b"} 4\n'));
  assert.deepEqual([disk.help, disk.share, disk.level], ['Disk of /a b', 0.96, 'bad']);
  const [files] = F.fullness(F.parse('millrace_connections{core="0"} 1\nmillrace_request_bytes_limit 7\nprocess_open_fds 80\nprocess_max_fds 100\n'));
  assert.deepEqual([files.name, files.share, files.core], ['process_open_fds', 0.8, '']);
});

test('of ages the oldest is shown, and of the process what it has, whatever the core', () => {
  const text = 'millrace_connections{core="0"} 1\nmillrace_connections{core="1"} 1\n' +
    'millrace_oldest_unstored_payload_age_seconds{core="0"} 7\nmillrace_oldest_unstored_payload_age_seconds{core="1"} 3\n' +
    'millrace_spool_time_to_full_seconds{core="0"} 90\nmillrace_dead_letters 4\n';
  const of = (core) => { const { oldest, spoolFullIn, deadLetters } = F.figures(null, F.parse(text), 0, core); return [oldest, spoolFullIn, deadLetters]; };
  assert.deepEqual(of(null), [7, 90, 4]);
  assert.deepEqual(of('1'), [3, null, 4]);
  assert.equal(F.figures(null, scrape(), 0).oldest, null);
});

test('responses are grouped over the cores', () => {
  const text = (a, b, c) => F.parse('millrace_connections{core="0"} 1\nmillrace_connections{core="1"} 1\n' +
    `millrace_requests_total{core="0",status="200"} ${a}\nmillrace_requests_total{core="1",status="200"} ${b}\n` +
    `millrace_requests_total{core="1",status="503",reason="queue_full"} ${c}\n` +
    'millrace_requests_total{core="1",status="400"} 0\n');
  assert.deepEqual(F.responses(text(1, 1, 0), text(5, 3, 1), 2), [
    { status: '200', reason: '', total: 8, rate: 3 }, { status: '503', reason: 'queue_full', total: 1, rate: 0.5 },
  ]);
  assert.equal(F.responses(null, text(5, 3, 1), 0)[0].rate, null);
});

test('the history is bounded and has gaps', () => {
  const history = new F.History(3, 1);
  for (let at = 1; at <= 5; at += 1) {
    const of = { accepted: at, p99: at === 4 ? null : at };
    history.push(at, at === 3 ? null : new Map([['', of], ['0', of], ['1', of]]));
  }
  assert.deepEqual(history.columns('', ['accepted', 'p99']), [[3, 4, 5], [null, 4, 5], [null, null, 5]]);
  assert.deepEqual(history.columns('0', ['accepted'], 4), [[4, 5], [4, 5]]);
  assert.deepEqual(history.columns('1', ['accepted']), [[3, 4, 5], [null, null, null]]);
});

test('old figures are called old', () => {
  const good = { now: 10000, last: 9000, interval: 2000, failed: false, date: 2000, dateBefore: 1000, between: 2000 };
  const state = (change) => F.freshness({ ...good, ...change }).state;
  assert.equal(state({}), 'live');
  assert.equal(state({ last: null }), 'none');
  assert.equal(state({ failed: true }), 'late');
  assert.equal(state({ now: 13500 }), 'late');
  assert.equal(state({ now: 15001 }), 'stale');
  // The server's clock stands: an old answer from somewhere between.
  assert.equal(state({ date: 1000 }), 'stale');
  assert.equal(state({ date: 1000, between: 900 }), 'live');
  assert.equal(state({ date: null }), 'live');
  assert.equal(F.freshness({ ...good, now: 15001 }).age, 6001);
});

test('a slow answer does not hide for long that the server is gone', () => {
  // What an answer took, when the next is asked for, and from which age on the figures are late and stale; in ms.
  for (const [took, interval, late, stale] of [
    [3, 2000, 4000, 6000], [200, 2000, 4000, 6000], [300, 3000, 4000, 6000], [500, 5000, 6250, 7500],
    [600, 6000, 7500, 9000], [5900, 6000, 7500, 9000],
  ]) {
    assert.equal(F.intervalAfter(took), interval, `${took}`);
    const state = (age) => F.freshness({ now: age, last: 0, interval, failed: false, date: null, dateBefore: null }).state;
    assert.deepEqual([late, late + 1, stale, stale + 1].map(state), ['live', 'late', 'late', 'stale'], `${took}`);
  }
});

test('texts are short', () => {
  const table = (f, pairs) => pairs.forEach(([value, text]) => assert.equal(f(value).replaceAll('\u00a0', ' '), text));
  table(F.count, [[0, '0'], [7, '7'], [9999, '9999'], [10000, '10k'], [12345, '12.3k'], [999999, '1M'],
    [1234567, '1.23M'], [0.5, '0.5'], [0.123, '0.12'], [99.96, '100'], [null, '–'], [NaN, '–'], [5e12, '5T']]);
  table(F.bytes, [[0, '0 B'], [1023, '1023 B'], [1024, '1 KiB'], [1536, '1.5 KiB'], [67108864, '64 MiB'],
    [1048575, '1 MiB'], [null, '–']]);
  table(F.seconds, [[0, '0 s'], [0.000123, '123 µs'], [0.0015, '1.5 ms'], [0.25, '250 ms'], [0.9999, '1 s'],
    [2, '2 s'], [null, '–']]);
  table(F.age, [[0, '0 s'], [8400, '8 s'], [60000, '1 min'], [200000, '3 min 20 s'], [7500000, '2 h 5 min']]);
  table(F.percent, [[0, '0 %'], [0.004, '< 1 %'], [0.5, '50 %'], [1, '100 %']]);
});
