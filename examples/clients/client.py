#!/usr/bin/env python3
"""Sends JSON values, one a line on standard input, to a millrace server, and retries as docs/clients.md says.

    client.py [--form FORM] [--ack LEVEL] [--token TOKEN] [--resend-undecided] [--attempts N] URL < payloads.ndjson

Exit status: 0 all accepted, 1 refused, 2 usage, 3 not admitted in time, 4 undecided. Standard library only.
"""

import argparse
import http.client
import os
import random
import sys
import time
from urllib.parse import urlsplit

PAYLOADS_MAX = 500  # per request
BYTES_MAX = 512 * 1024  # per request; the server's MAX_LENGTH is 1 MiB by default
ANSWER_TIMEOUT = 60.0  # longer than the server's ACK_TIMEOUT of 30 s
IDLE_MAX = 30.0  # shorter than the server's IDLE_TIMEOUT of 75 s
BACKOFF_FIRST, BACKOFF_MAX = 0.1, 10.0
JITTER_MAX = 0.25  # on top of what the server asked for
# How payloads are put together: content type, what stands before, between and after them.
FORMS = {
    "collection": ("application/json", '{"data":[', ",", "]}"),
    "array": ("application/json", "[", ",", "]"),
    "lines": ("application/x-ndjson", "", "\n", "\n"),
}
# An answer that new attempts would get as well.
HOPELESS = {400, 401, 404, 405, 413, 415, 431, 501}


class Failed(Exception):
    """The request is not known to be accepted; `status` is the exit status."""

    def __init__(self, status, text):
        super().__init__(text)
        self.status = status


class Client:
    """One connection. It belongs to one core of the server: use several clients to use several cores."""

    def __init__(self, url, form="collection", ack=None, token=None, resend_undecided=False, attempts=8):
        parts = urlsplit(url)
        kinds = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}
        self.connection = kinds[parts.scheme](parts.netloc, timeout=ANSWER_TIMEOUT)
        self.path = parts.path or "/payloads"
        content_type, *self.around = FORMS[form]
        self.headers = {"content-type": content_type}
        if ack:
            self.headers["millrace-ack"] = ack
        if token:
            self.headers["authorization"] = f"Bearer {token}"
        self.resend_undecided, self.attempts = resend_undecided, attempts
        self.last_used = 0.0

    def send(self, payloads):
        """Sends JSON texts as one request, and returns once they are accepted; otherwise raises `Failed`."""
        before, between, after = self.around
        body = (before + between.join(payloads) + after).encode()
        undecided = False  # some attempt may have been admitted
        why = ""
        for attempt in range(self.attempts):
            if attempt > 0:
                pause = backoff(attempt, wait)
                print(f"{why}; attempt {attempt + 1} in {1000 * pause:.0f} ms", file=sys.stderr)
                time.sleep(pause)
            wait = 0.0
            try:
                status, headers, text = self.post(body)
            except NotSent as error:
                why = f"not sent: {error}"
                continue
            except (OSError, http.client.HTTPException) as error:
                self.connection.close()
                status, headers, text = None, {}, f"no answer: {error!r}"
            why = f"{status or 'undecided'}: {text}"
            if status == 200:
                return
            if status in HOPELESS:
                raise Failed(1, why)
            if status == 502 and '"accepted":' in text:
                # Everything was admitted, and some of it went to the server's dead letters.
                raise Failed(1, why)
            if status in (408, 429, 503):
                # Nothing was admitted: sending it again makes no duplicates.
                wait = seconds(headers.get("retry-after"))
                continue
            # 504, a lost connection, or a gateway's own error: it may be admitted or not.
            undecided = True
            if not self.resend_undecided:
                raise Failed(4, why)
        raise Failed(4 if undecided else 3, f"{why}; {self.attempts} attempts")

    def post(self, body):
        connection, now = self.connection, time.monotonic()
        if now - self.last_used > IDLE_MAX:
            connection.close()
        self.last_used = now
        if connection.sock is None:
            try:
                connection.connect()
            except OSError as error:
                raise NotSent(error) from error
        try:
            connection.request("POST", self.path, body, self.headers)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the server may have answered before it had read everything
        response = connection.getresponse()
        text = response.read().decode(errors="replace")
        return response.status, response.headers, text


class NotSent(Exception):
    """No connection: the server has seen nothing of the request."""


def backoff(attempt, wait):
    """What the server asked for and a little more, or full jitter if it did not."""
    if wait > 0:
        return wait + random.uniform(0, JITTER_MAX)
    return random.uniform(0, min(BACKOFF_MAX, BACKOFF_FIRST * 2**attempt))


def seconds(retry_after):
    return float(retry_after) if retry_after and retry_after.isdigit() else 0.0


def collections(lines):
    """Groups of lines that fit into one request."""
    group, size = [], 0
    for line in lines:
        line = line.strip()
        if not line:
            continue
        if group and (len(group) >= PAYLOADS_MAX or size + len(line) > BYTES_MAX):
            yield group
            group, size = [], 0
        group.append(line)
        size += len(line) + 1
    if group:
        yield group


def main():
    parser = argparse.ArgumentParser(description="Sends JSON values, one a line on stdin, to a millrace server.")
    parser.add_argument("url", metavar="URL", help="http://HOST:PORT/payloads")
    parser.add_argument("--form", choices=FORMS, default="collection")
    parser.add_argument("--ack", choices=["queued", "spooled", "stored"])
    # Other users of the host see arguments, but not the environment.
    parser.add_argument("--token", default=os.environ.get("MILLRACE_TOKEN"), help="otherwise MILLRACE_TOKEN")
    parser.add_argument("--resend-undecided", action="store_true", help="may store payloads twice")
    parser.add_argument("--attempts", type=int, default=8)
    options = vars(parser.parse_args())
    client = Client(**options)
    accepted = 0
    try:
        for payloads in collections(sys.stdin):
            client.send(payloads)
            accepted += len(payloads)
    except Failed as failed:
        print(f"{accepted} payloads accepted, then: {failed}", file=sys.stderr)
        return failed.status
    print(f"{accepted} payloads accepted", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
