#!/usr/bin/env python3
"""Posts a backlog to millrace, waits until it is stored, and prints one row of run.sh's table.

load.py INGEST ADMIN STATS --payload BYTES --each N --backlog BYTES --rate BYTES_PER_S --limit SECONDS --name TEXT

INGEST and ADMIN are HOST:PORT, STATS is the file that store.py writes. A row of tab-separated fields: name, MB kept,
seconds, share of the rate from the first POST to the last object kept, the same while there was more to begin (steady),
retries, put again, put again after the first minute, kept twice, limit median, lowest-highest limit, in flight at the
store median, dead letters, note.
"""
import argparse
import http.client
import json
import statistics
import threading
import time

POSTERS = 4
SAMPLE = 0.5


def post(args, jobs, accepted):
    body = '{"data":[%s]}' % ",".join(['"%s"' % ("x" * (args.payload - 2))] * args.each)
    conn = http.client.HTTPConnection(args.ingest, timeout=60)
    while not args.over.is_set():
        try:
            next(jobs)
        except StopIteration:
            return
        while not args.over.is_set():
            conn.request("POST", "/payloads", body)
            answer = conn.getresponse()
            answer.read()
            if answer.status == 200:
                accepted.append(args.each)
                break
            if answer.status != 503:
                raise SystemExit(f"POST answered {answer.status}")
            time.sleep(0.2)


def scrape(admin):
    conn = http.client.HTTPConnection(admin, timeout=10)
    conn.request("GET", "/metrics")
    sums = {}
    for line in conn.getresponse().read().decode().splitlines():
        if not line.startswith("#") and " " in line:
            series, value = line.rsplit(" ", 1)
            name = series.split("{", 1)[0]
            sums[name] = sums.get(name, 0) + float(value)
    conn.close()
    return sums


class Jobs:
    """`count` turns, for any number of threads."""

    def __init__(self, count):
        self.left, self.lock = count, threading.Lock()

    def __next__(self):
        with self.lock:
            if not self.left:
                raise StopIteration
            self.left -= 1


def steady(seen, keys, rate):
    """Share of the rate from a tenth of the bytes on until the last of `keys` objects was begun, in bytes that were not
    wasted; `seen` is (time, bytes, objects begun so far) in order."""
    total = seen[-1][1] if seen else 0
    inside = [(at, count) for at, count, begun in seen if count >= 0.1 * total and begun < keys]
    if len(inside) < 2:
        return "-"
    (begin, first), (end, last) = inside[0], inside[-1]
    return f"{100 * (last - first) / (end - begin) / rate:.0f} %"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("ingest")
    parser.add_argument("admin")
    parser.add_argument("stats")
    for name in ("payload", "each", "backlog", "rate", "limit"):
        parser.add_argument("--" + name, type=int, required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--samples", help="file for one line per sample")
    args = parser.parse_args()
    args.over = threading.Event()
    requests = max(1, args.backlog // (args.payload * args.each))
    jobs, accepted, begun = Jobs(requests), [], time.monotonic()
    posters = [threading.Thread(target=post, args=(args, jobs, accepted), daemon=True)
               for _ in range(POSTERS)]
    for poster in posters:
        poster.start()

    limits, flights, seen, done = [], [], [], False
    samples = open(args.samples, "w") if args.samples else None
    while time.monotonic() - begun < args.limit:
        time.sleep(SAMPLE)
        try:
            m, s = scrape(args.admin), json.load(open(args.stats))
        except (OSError, ValueError):
            continue
        ended = sum(m[f"millrace_payloads_{end}_total"] for end in ("stored", "dead_lettered", "lost"))
        if ended >= requests * args.each:
            done = True
            break
        if "millrace_puts_limit" in m:
            limits.append(int(m["millrace_puts_limit"]))
        flights.append(s["in_flight"])
        seen.append((time.monotonic(), s["bytes_received"] - s["bytes_wasted"], s["keys"]))
        if samples:
            print(f"{time.monotonic() - begun:.1f}\t{m.get('millrace_puts_limit', 0):.0f}\t{s['in_flight']}"
                  f"\t{s['bytes_kept']}\t{s['bytes_received']}\t{s['put_again']}"
                  f"\t{m['millrace_put_retries_total']:.0f}", file=samples, flush=True)
    args.over.set()
    time.sleep(0.6)
    m, s = scrape(args.admin), json.load(open(args.stats))
    took = (s["last_kept"] or begun) - begun if done else time.monotonic() - begun
    share = s["bytes_kept"] / took / args.rate if took > 0 else 0
    lost = m["millrace_payloads_dead_lettered_total"] + m["millrace_payloads_lost_total"]
    row = [
        args.name, f"{s['bytes_kept'] / 1e6:.1f}", f"{took:.1f}", f"{100 * share:.0f} %",
        steady(seen, s["keys"], args.rate),
        f"{m['millrace_put_retries_total']:.0f}", s["put_again"], s["put_again_late"], s["kept_twice"],
        f"{statistics.median(limits):.0f}" if limits else "-",
        f"{min(limits)}-{max(limits)}" if limits else "-",
        f"{statistics.median(flights):.0f}" if flights else "-",
        f"{lost:.0f}", "" if done else f"not done in {args.limit} s",
    ]
    print("\t".join(map(str, row)))


main()
