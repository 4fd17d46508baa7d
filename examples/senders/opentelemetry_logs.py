#!/usr/bin/env python3
"""Sends the log of a Python program by OpenTelemetry, as OTLP in JSON.

Run by the tests with opentelemetry-sdk 1.45 and opentelemetry-exporter-otlp-json-http 0.66b1 of PyPI, through refusals.
The usual exporter, opentelemetry-exporter-otlp-proto-http, sends protobuf, which the server does not take.

The server needs PATHS=/payloads,/v1/logs and BODY=object: each export request, of up to 512 records, is one payload.

Answers: the exporter retries after 429, 502, 503 and 504, at most 5 times and not beyond its timeout, which is 10 s for
all attempts together unless it is set as here; it waits as long as `retry-after` says. With ACK=stored or spooled a 502 or
504 could therefore store a request twice. What is not taken in time is lost.

    MILLRACE_TOKEN=TOKEN opentelemetry_logs.py [URL] < lines
"""

import logging
import os
import sys

from opentelemetry.exporter.otlp.json.http._log_exporter import OTLPLogExporter
from opentelemetry.sdk._logs import LoggerProvider, LoggingHandler
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.sdk.resources import Resource

url = sys.argv[1] if len(sys.argv) > 1 else "http://localhost:8080/v1/logs"
token = os.environ.get("MILLRACE_TOKEN")
headers = {"authorization": f"Bearer {token}"} if token else {}

# In seconds. retry-after is up to 30.
exporter = OTLPLogExporter(endpoint=url, headers=headers, timeout=120)
provider = LoggerProvider(resource=Resource.create({"service.name": "example"}))
# Up to 100,000 records wait in memory while the server takes nothing; further ones are dropped.
provider.add_log_record_processor(BatchLogRecordProcessor(exporter, max_queue_size=100_000, max_export_batch_size=512))

log = logging.getLogger("example")
log.addHandler(LoggingHandler(logger_provider=provider))
log.setLevel(logging.INFO)

for line in sys.stdin:
    log.info("%s", line.rstrip("\n"))
provider.shutdown()
