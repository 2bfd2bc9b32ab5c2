"""A relay in front of an S3 server that loses, cuts or changes what a test asks it to."""

import http.client
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal
from urllib.parse import urlparse

Fault = Literal["lose answer", "cut answer", "refuse", "ignore condition", "conflict"]


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    """With its query."""
    number: int
    """How many requests of this method and path came before."""


@contextmanager
def running_relay(upstream: str, fault: Callable[[Request], Fault | None]) -> Iterator[str]:
    """Yield the URL of a relay to `upstream`; `fault` says what happens to each request."""
    host = urlparse(upstream).netloc
    seen: dict[tuple[str, str], int] = {}
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def relay(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            with lock:
                number = seen.get((self.command, self.path), 0)
                seen[self.command, self.path] = number + 1
            chosen = fault(Request(self.command, self.path, number))
            if chosen in ("refuse", "conflict"):
                self.send_response(503 if chosen == "refuse" else 409)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            dropped = {"expect"} | ({"if-none-match"} if chosen == "ignore condition" else set())
            headers = {k: v for k, v in self.headers.items() if k.lower() not in dropped}
            self.close_connection = True
            connection = http.client.HTTPConnection(host)
            try:
                connection.request(self.command, self.path, body, headers)
                answer = connection.getresponse()
                data = answer.read()
            except (OSError, http.client.HTTPException):
                return  # the server is gone, and so is this connection
            finally:
                connection.close()
            if chosen == "lose answer":
                return
            self.send_response(answer.status)
            length = answer.headers.get("Content-Length") or str(len(data))
            for name, value in answer.headers.items():
                if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                    self.send_header(name, value)
            self.send_header("Content-Length", length)
            self.end_headers()
            self.wfile.write(data[: len(data) // 2] if chosen == "cut answer" else data)

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = relay

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
