"""An S3 endpoint that takes every object and keeps none: python3 sink.py PORT

For objects of megabytes, of which there are few. One PUT for each payload is more than it can take.
"""

import http.server
import sys


class Sink(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_PUT(self):
        if self.headers.get("expect", "").lower() == "100-continue":
            self.send_response_only(100)
            self.end_headers()
        left = int(self.headers.get("content-length", 0))
        while left > 0:
            part = self.rfile.read(min(left, 1 << 20))
            if not part:
                self.close_connection = True
                return
            left -= len(part)
        self.send_response(200)
        self.send_header("etag", '"0"')
        self.send_header("content-length", "0")
        self.end_headers()

    def do_GET(self):
        page = b'<?xml version="1.0"?><ListBucketResult><KeyCount>0</KeyCount></ListBucketResult>'
        self.send_response(200)
        self.send_header("content-type", "application/xml")
        self.send_header("content-length", str(len(page)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(page)

    do_HEAD = do_GET

    def handle_expect_100(self):
        return True

    def log_message(self, *arguments):
        pass


http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Sink).serve_forever()
