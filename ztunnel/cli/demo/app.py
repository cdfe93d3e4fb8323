"""The demo's application: plain HTTP, the standard library, and no idea that there is a mesh.

Run as a script: `python app.py PORT`. Each request is one JSON line on standard output, as the application saw it.

    GET /hello    an answer that repeats the header X-Secret (any path but the next)
    GET /stream   a line every 50 ms until the client goes
"""

from __future__ import annotations

import json
import socket
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PERIOD = 0.05


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        secret = self.headers.get("X-Secret", "")
        peer = self.client_address[0].removeprefix("::ffff:")
        seen = {"peer": peer, "request": self.requestline, "secret": secret}
        print(json.dumps(seen), flush=True)
        if self.path == "/stream":
            self._stream()
        else:
            said = f", and keep {secret!r} to myself" if secret else ""
            self._answer(f"hello, I see you at {peer}{said}\n".encode())

    def log_message(self, *_: object) -> None:
        """Requests are told in `do_GET`."""

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _stream(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Connection", "close")
        self.end_headers()
        pause = threading.Event()
        number = 0
        try:
            while not pause.wait(PERIOD):
                number += 1
                self.wfile.write(f"line {number}\n".encode())
        except OSError:
            self.close_connection = True


class Server(ThreadingHTTPServer):
    address_family = socket.AF_INET6
    daemon_threads = True

    def server_bind(self) -> None:
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()


if __name__ == "__main__":
    Server(("::", int(sys.argv[1])), Handler).serve_forever()
