#!/usr/bin/env python3
"""What share of a store's rate is used when clients obey `retry-after`: millrace's own binary, a fake S3 with a rate, light
load, quiet, and then clients that post 1, 2 and 10 times what the store takes. Minutes, not for CI; the same is tested in
simulated time by src/queue/pace/tests.rs.

    tests/obey/run.py [--bin target/release/millrace] [--rate 1000] [--loads 1 2 10] [--clients 16] [--set NAME=VALUE ...]

One row per load; exit status 1 if less than 90 % was used over any ten seconds. The clients are urllib3's `Retry` where
Python has it, and otherwise a client of our own that waits exactly as long as it is told. The limits of this script are
those of Python: about 2,000 PUTs a second.
"""
import argparse
import http.client
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time

try:
    import urllib3
except ImportError:
    urllib3 = None

HERE = os.path.dirname(os.path.abspath(__file__))
STORE = os.path.join(HERE, "..", "links", "store.py")
PAYLOAD = 1000  # bytes
OVER = 10  # seconds
USED_LEAST = 0.9


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


class Own:
    """Waits exactly as long as `retry-after` says."""

    def __init__(self, port):
        self.port, self.conn = port, http.client.HTTPConnection("127.0.0.1", port)

    def post(self, body):
        while True:
            self.conn.request("POST", "/payloads", body)
            answer = self.conn.getresponse()
            text = answer.read()
            if answer.status == 200:
                return
            assert answer.status == 503, text
            time.sleep(int(answer.getheader("retry-after")))


class Urllib3:
    """Python's most used client, with the retries that it comes with."""

    def __init__(self, port):
        retry = urllib3.Retry(total=None, connect=0, read=0, redirect=0, other=0, status=100, status_forcelist=[503],
                              allowed_methods=None)
        self.url, self.pool = f"http://127.0.0.1:{port}/payloads", urllib3.PoolManager(retries=retry)

    def post(self, body):
        answer = self.pool.request("POST", self.url, body=body)
        assert answer.status == 200, answer.data


class Load:
    """Clients that post until they are stopped; none makes up for the time that it waited."""

    def __init__(self, options, port, payloads_a_second):
        self.stopped = False
        interval = options.clients * options.payloads / payloads_a_second
        body = '{"data":[%s]}' % ",".join(['"%s"' % ("x" * (PAYLOAD - 2))] * options.payloads)
        for number in range(options.clients):
            first = time.monotonic() + interval * number / options.clients
            threading.Thread(target=self.run, args=(port, body, interval, first), daemon=True).start()

    def run(self, port, body, interval, due):
        client = (Urllib3 if urllib3 else Own)(port)
        while not self.stopped:
            time.sleep(max(0, due - time.monotonic()))
            due = time.monotonic() + interval
            try:
                if not self.stopped:
                    client.post(body)
            except Exception:
                if self.stopped:
                    return  # The server has been ended.
                raise


def metrics(port):
    conn = http.client.HTTPConnection("127.0.0.1", port)
    conn.request("GET", "/metrics")
    found = {}
    for line in conn.getresponse().read().decode().splitlines():
        if not line.startswith("#"):
            series, value = line.rsplit(" ", 1)
            name = series.split("{")[0]
            if name == "millrace_requests_total":
                name = "503" if 'status="503"' in series else "other"
            found[name] = found.get(name, 0) + float(value)
    return found


def measure(options, load, directory):
    store, listen, admin = free_port(), free_port(), free_port()
    stats = os.path.join(directory, "stats")
    env = {
        "PATH": os.environ["PATH"], "AWS_ENDPOINT_URL": f"http://127.0.0.1:{store}", "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "s", "AWS_REGION": "us-east-1", "STORE": "s3://bucket/p/", "CORES": options.core,
        "LISTEN": f"127.0.0.1:{listen}", "ADMIN_LISTEN": f"127.0.0.1:{admin}", "DRAIN_TIMEOUT": "1s",
    }
    env.update(setting.split("=", 1) for setting in options.set)
    children = []
    try:
        children.append(subprocess.Popen([sys.executable, STORE, "127.0.0.1", str(store), stats, str(options.rate * PAYLOAD)]))
        time.sleep(0.5)
        with open(os.path.join(directory, "log"), "wb") as log:
            children.append(subprocess.Popen([os.path.abspath(options.bin)], env=env, cwd=directory, stderr=log))
        time.sleep(1)
        light = Load(options, listen, 0.3 * options.rate)
        time.sleep(3)
        light.stopped = True
        time.sleep(options.quiet)
        before = metrics(admin)
        running = Load(options, listen, load * options.rate)
        begun, notes = time.monotonic(), []

        def kept():
            with open(stats) as file:
                return json.load(file)["bytes_received"]

        while time.monotonic() - begun < options.seconds:
            notes.append((time.monotonic() - begun, kept()))
            time.sleep(0.25)
        running.stopped = True
        after = metrics(admin)
    finally:
        for child in reversed(children):
            child.kill()
            child.wait()
    least = 1e9
    for at, (from_s, from_bytes) in enumerate(notes):
        rest = [note for note in notes[at:] if note[0] >= from_s + OVER]
        # The first second is the clients' start.
        if rest and from_s >= 1:
            least = min(least, (rest[0][1] - from_bytes) / (rest[0][0] - from_s) / (options.rate * PAYLOAD))
    accepted = after["millrace_payloads_accepted_total"] - before["millrace_payloads_accepted_total"]
    print(f"{load:5g} {accepted:10.0f} {after['503'] - before.get('503', 0):8.0f} {100 * least:10.1f} %", flush=True)
    return least


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", default=os.path.join(HERE, "..", "..", "target", "release", "millrace"))
    parser.add_argument("--rate", type=int, default=1000, help="payloads of 1,000 bytes that the store takes a second")
    parser.add_argument("--loads", type=float, nargs="+", default=[1, 2, 10], help="times the store's rate")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--payloads", type=int, default=50, help="per request")
    parser.add_argument("--quiet", type=float, default=5, help="seconds between the light load and the load")
    parser.add_argument("--seconds", type=float, default=30, help="of load")
    parser.add_argument("--core", default="0", help="CORES of the server")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="more settings of the server")
    options = parser.parse_args()
    print(f"{'urllib3' if urllib3 else 'own'} clients: {options.clients}, store: {options.rate} payloads/s")
    print(" load   accepted     503s  least used over 10 s")
    bad = 0
    for load in options.loads:
        with tempfile.TemporaryDirectory() as directory:
            bad += measure(options, load, directory) < USED_LEAST
    sys.exit(bad > 0)


main()
