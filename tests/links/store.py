#!/usr/bin/env python3
"""A fake S3 for run.sh: keeps nothing, counts everything.

store.py ADDRESS PORT STATS [RATE]

RATE is bytes a second for all connections together (0 or absent: as fast as they come). STATS is a file that is
replaced four times a second by what was counted, as JSON; times are CLOCK_MONOTONIC.
"""
import json
import os
import socket
import sys
import threading
import time

LIST = (b"<ListBucketResult><Name>links</Name><KeyCount>0</KeyCount><MaxKeys>1</MaxKeys>"
        b"<IsTruncated>false</IsTruncated></ListBucketResult>")
STEP = 8192  # one read, and so the step in which the rate is handed out
CATCH_UP = 0.05  # seconds that an overslept thread may make up for


class Link:
    """The shared rate as a virtual clock: when the next byte may pass."""

    def __init__(self, rate):
        self.rate, self.free, self.lock = rate, time.monotonic(), threading.Lock()

    def wait(self, count):
        if self.rate:
            with self.lock:
                now = time.monotonic()
                self.free = max(self.free, now - CATCH_UP) + count / self.rate
                left = self.free - now
            if left > 0:
                time.sleep(left)


class Tally:
    """What was put, and how often the same."""

    def __init__(self):
        self.lock = threading.Lock()
        self.tries, self.kept_keys = {}, set()
        # bytes_wasted: received of PUTs that were broken off, or of objects that were kept already.
        self.n = dict(started=0, keys=0, kept=0, aborted=0, bytes_received=0, bytes_kept=0,
                      bytes_wasted=0, put_again=0, put_again_late=0, kept_twice=0, in_flight=0, first_put=None, last_kept=None)

    def begin(self, key):
        with self.lock:
            n, now = self.n, time.monotonic()
            n["first_put"] = n["first_put"] or now
            n["started"] += 1
            n["in_flight"] += 1
            if key in self.tries:
                n["put_again"] += 1
                n["put_again_late"] += now - n["first_put"] > 60
            self.tries[key] = self.tries.get(key, 0) + 1
            n["keys"] = len(self.tries)

    def received(self, count):
        with self.lock:
            self.n["bytes_received"] += count

    def end(self, key, size, kept, received):
        with self.lock:
            n = self.n
            n["in_flight"] -= 1
            if not kept:
                n["aborted"] += 1
                n["bytes_wasted"] += received
                return
            n["kept"] += 1
            if key in self.kept_keys:
                n["kept_twice"] += 1
                n["bytes_wasted"] += size
            else:
                n["bytes_kept"] += size
            self.kept_keys.add(key)
            n["last_kept"] = time.monotonic()

    def write(self, path):
        with self.lock:
            text = json.dumps(self.n)
        with open(path + ".new", "w") as file:
            file.write(text)
        os.replace(path + ".new", path)


def serve(conn, link, tally):
    conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    room, view, have = bytearray(STEP), None, b""
    view = memoryview(room)
    try:
        while True:
            while b"\r\n\r\n" not in have:
                data = conn.recv(STEP)
                if not data:
                    return
                have += data
            head, have = have.split(b"\r\n\r\n", 1)
            lines = head.split(b"\r\n")
            method, key = lines[0].split(b" ")[:2]
            size = 0
            for line in lines[1:]:
                if line[:15].lower() == b"content-length:":
                    size = int(line[15:])
            if method != b"PUT":
                conn.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(LIST), LIST))
                continue
            tally.begin(key)
            whole = False
            left = size - len(have)
            try:
                tally.received(len(have))
                link.wait(len(have))
                have = b""
                while left:
                    count = conn.recv_into(view[:min(STEP, left)])
                    if not count:
                        return
                    left -= count
                    tally.received(count)
                    link.wait(count)
                whole = True
            finally:
                tally.end(key, size, whole, size - left)
            conn.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
    except OSError:
        pass
    finally:
        conn.close()


def main():
    address, port, stats = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    rate = int(sys.argv[4]) if len(sys.argv) > 4 else 0
    link, tally = Link(rate), Tally()
    threading.stack_size(256 << 10)
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if rate:
        # What a receive buffer holds is acknowledged at once: a small one makes acknowledgements follow the rate.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2 * STEP)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 1460)
    listener.bind((address, port))
    listener.listen(4096)

    def publish():
        while True:
            tally.write(stats)
            time.sleep(0.25)

    threading.Thread(target=publish, daemon=True).start()
    while True:
        conn, _ = listener.accept()
        threading.Thread(target=serve, args=(conn, link, tally), daemon=True).start()


main()
