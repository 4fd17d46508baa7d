#!/usr/bin/env python3
"""A long link in user space, for kernels without netem: two TUN devices, packets between them delayed and rate-limited.

wan.py DEVICE_A DEVICE_B BITS_PER_SECOND ROUND_TRIP_MS QUEUE_BYTES

Each direction has the rate, half the round trip as delay, and a queue that drops what does not fit. Prints "ready" when
both devices exist; they go away with this process. Says when it was not run in time, for then it is not the link that
was measured.
"""
import collections
import fcntl
import gc
import os
import select
import struct
import sys
import time

TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
LATE = 0.1  # seconds that are worth a line
BURST = 64  # packets read before the other direction gets its turn


def tun(name):
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH", name.encode(), IFF_TUN | IFF_NO_PI))
    return fd


class Direction:
    """Packets on their way: first through the rate, then for the delay."""

    def __init__(self, source, sink, rate, delay, room):
        self.source, self.sink = source, sink
        self.rate, self.delay, self.room = rate / 8, delay, room
        self.free, self.flying = 0.0, collections.deque()

    def take(self, now):
        for _ in range(BURST):
            try:
                packet = os.read(self.source, 65536)
            except BlockingIOError:
                return
            except OSError:
                return  # the device is down
            queued = max(0.0, self.free - now) * self.rate
            if queued + len(packet) > self.room:
                continue
            self.free = max(self.free, now) + len(packet) / self.rate
            self.flying.append((self.free + self.delay, packet))

    def deliver(self, now):
        flying = self.flying
        while flying and flying[0][0] <= now:
            try:
                os.write(self.sink, flying.popleft()[1])
            except OSError:
                pass  # the device is down: a lost packet


def main():
    name_a, name_b = sys.argv[1:3]
    rate, round_trip, room = float(sys.argv[3]), float(sys.argv[4]) / 1000, float(sys.argv[5])
    a, b = tun(name_a), tun(name_b)
    ways = [Direction(a, b, rate, round_trip / 2, room), Direction(b, a, rate, round_trip / 2, room)]
    poller = select.epoll()
    poller.register(a, select.EPOLLIN)
    poller.register(b, select.EPOLLIN)
    gc.disable()
    try:
        os.nice(-10)
    except OSError:
        pass
    print("ready", flush=True)
    while True:
        now = time.monotonic()
        due = [way.flying[0][0] for way in ways if way.flying]
        poller.poll(max(0.0, min(due) - now) if due else None)
        now = time.monotonic()
        if due and now - min(due) > LATE:
            print(f"{now:.1f}: {now - min(due):.2f} s late", flush=True)
        for way in ways:
            way.take(now)
            way.deliver(now)


main()
